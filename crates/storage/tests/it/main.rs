//! The client against the embedded node, on the embedded chain with the real contracts; and the published vectors.

#![allow(clippy::unwrap_used, reason = "test helpers fail by panicking")]

mod abuse;
mod download;
mod node;
mod support;
mod upload;
mod vectors;
