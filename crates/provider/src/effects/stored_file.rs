//! A file out of 0G Storage, in a folder of its own that goes with it.

use std::path::PathBuf;

use alloy_primitives::B256;
use zerog_lifecycle::event::FailureReason;
use zerog_storage::Error as StorageError;

use super::EffectError;
use crate::app::App;

/// A fetched file; dropping it removes it.
pub(crate) struct StoredFile(tempfile::TempDir);

impl StoredFile {
    /// Fetches the file with this root. A failure has `reason`; one that is not there fails for good, with `missing`.
    ///
    /// # Errors
    /// [`EffectError`].
    pub(crate) async fn fetch(
        app: &App,
        root: B256,
        reason: FailureReason,
        missing: impl FnOnce() -> String,
    ) -> Result<Self, EffectError> {
        let fetched = Self(tempfile::tempdir_in(app.vault.incoming())?);
        app.storage
            .download_file(root, &fetched.path(), &|_| {})
            .await
            .map_err(|error| match error {
                StorageError::NotFound { .. } => EffectError::permanent(reason, missing()),
                other => EffectError::retry(reason, other),
            })?;
        Ok(fetched)
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("file")
    }
}
