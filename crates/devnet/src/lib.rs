//! The whole network on one machine: embedded chain, storage node, provider, and the walk through all of it.
//!
//! [`Devnet::start`] brings everything up in this process; [`demo::run`] takes a dataset through training, delivery,
//! settlement, deployment and chat. The crate is the only one that sees both sides of the wire, and has no logic of its
//! own beyond wiring.

pub mod base_model;
pub mod demo;
pub mod network;

pub use network::{Devnet, DevnetError, DevnetOptions, ReadyInfo};
