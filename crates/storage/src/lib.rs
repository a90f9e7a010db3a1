//! 0G Storage: Merkle tree, transfer client and embedded node.
//!
//! [`Client`] stores files on the network and fetches them, verified segment by segment, in constant memory, resumable,
//! and without ever paying twice for the same file. [`merkle`] computes the roots that name files. With the feature
//! `node`, [`node::StorageNode`] is a storage node and indexer in one process, for development networks and tests; it
//! speaks the protocol of the public network, so the published clients work with it too.

mod client;
mod content;
mod encryption;
mod error;
pub mod indexer;
pub mod merkle;
#[cfg(feature = "node")]
pub mod node;
mod rpc;
pub mod rpc_types;

pub use client::{
    Client, ClientOptions, DownloadOptions, DownloadOutcome, Endpoint, Phase, Progress,
    ProgressCallback, UploadCost, UploadOptions, UploadOutcome,
};
pub use content::Content;
pub use encryption::{Decryption, Encryption, decrypt_file};
pub use error::{CallError, CallFailure, Error};
pub use merkle::{FileShape, FileTree};
pub use rpc::{IndexerClient, NodeClient};
