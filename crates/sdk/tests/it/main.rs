//! The SDK against the embedded chain with the real contracts, and against a scripted provider.

mod chat;
mod datasets;
mod deliverables;
mod provider_quirks;
mod support;
mod surface;
