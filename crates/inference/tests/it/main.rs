//! The engine and its routes over a small random model, two adapters and a byte tokenizer.

mod adapters;
mod engine;
mod routes;
mod world;
