//! The storage network, as the managers use it.

use std::path::Path;
use std::sync::Mutex;

use alloy_primitives::B256;
use zerog_storage::{Client, ClientOptions, merkle};

use crate::broker::Context;
use crate::error::{Error, Result};
use crate::progress::Progress;

/// Storage root of a local file.
pub(crate) fn file_root(path: &Path) -> Result<B256> {
    merkle::root_of_file(path).map_err(storage_error)
}

impl Context {
    fn storage_client(&self) -> Result<Client> {
        let mut options = ClientOptions::indexer(&self.options.network.storage_indexer_url);
        options.journal_dir = self
            .options
            .cache_dir
            .as_ref()
            .map(|folder| folder.join("uploads"));
        Client::new(options).map_err(storage_error)
    }

    /// Stores a file, paying once, and returns its root.
    pub(crate) async fn storage_upload(
        &self,
        path: &Path,
        on_progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<B256> {
        let client = self.storage_client()?;
        let shared = Mutex::new(on_progress);
        let outcome = client
            .upload_file(path, &self.chain, &|progress| tell(&shared, progress))
            .await;
        Ok(outcome.map_err(storage_error)?.root)
    }

    /// Fetches a file by its root, every segment verified, and returns its size in bytes.
    pub(crate) async fn storage_download(
        &self,
        root: B256,
        path: &Path,
        on_progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<u64> {
        let client = self.storage_client()?;
        let shared = Mutex::new(on_progress);
        let outcome = client
            .download_file(root, path, &|progress| tell(&shared, progress))
            .await;
        Ok(outcome.map_err(storage_error)?.size)
    }
}

fn tell(shared: &Mutex<&mut (dyn FnMut(Progress) + Send)>, progress: zerog_storage::Progress) {
    if let Ok(mut on_progress) = shared.lock() {
        on_progress(Progress::Transfer {
            done_bytes: progress.done_bytes,
            total_bytes: Some(progress.total_bytes),
        });
    }
}

/// Errors of the storage crate by what the caller can do about them.
fn storage_error(error: zerog_storage::Error) -> Error {
    use zerog_storage::Error as Storage;
    let remedy = match &error {
        Storage::File { path, source } => {
            let source = std::io::Error::new(source.kind(), source.to_string());
            return Error::file("use", path, source);
        }
        Storage::Chain(_) => {
            let Storage::Chain(chain) = error else {
                unreachable!("just matched")
            };
            return Error::Chain(chain);
        }
        Storage::DestinationExists { path } => {
            return Error::Argument {
                name: "data-path",
                reason: format!(
                    "{} exists with other content; remove it or name another file",
                    path.display()
                ),
            };
        }
        Storage::EmptyFile | Storage::FileTooLarge { .. } => "",
        Storage::FileChanged { .. } => {
            "; leave the file alone during the upload and run the command again"
        }
        Storage::InvalidUrl { .. } | Storage::WrongChain { .. } | Storage::WrongFlow { .. } => {
            "; check the network setting (0g-compute-cli show-network)"
        }
        Storage::NotFound { .. } => "; check the root hash and the network",
        Storage::Busy { .. } => "; wait for the other command to end",
        _ => "; run the command again later, it goes on where it stopped and pays nothing twice",
    };
    Error::Storage {
        reason: format!("{error}{remedy}"),
    }
}
