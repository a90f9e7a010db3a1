//! Makes and verifies TDX quotes.
