//! Datasets: checked before anything is sent, sealed to the enclave unless told otherwise.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::Mutex;

use alloy_primitives::{Address, B256, Keccak256};
use serde::Serialize;
use zerog_protocol::fine_tuning_api::{DatasetDeleteRequest, DatasetUploadResponse};
use zerog_protocol::limits::MAX_DATASET_BYTES;
use zerog_protocol::seal::{SealContext, SealPurpose, seal_key};
use zerog_protocol::sealed_archive::ArchiveError;
use zerog_protocol::{FileKey, sealed_archive, signing};
use zerog_tokenization::check_dataset;

use super::FineTuning;
use super::services::path_segment;
use super::upload::{SealedFile, Upload};
use crate::broker::Context;
use crate::error::{Error, Result, ServiceKind};
use crate::progress::Progress;
use crate::provider_client::{join, parse_json};

/// Above this the published clients warn that the upload takes a while.
const LARGE_DATASET_BYTES: u64 = 10 * 1024 * 1024;

/// What a dataset file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DatasetReport {
    /// Record format in words.
    pub format: String,
    /// Number of records.
    pub records: usize,
    /// File size.
    pub bytes: u64,
    /// Keccak hash of the file: the `datasetHash` of an upload to an enclave.
    pub keccak: B256,
}

/// How a dataset is handed over.
#[derive(Debug, Clone, Copy, Default)]
pub struct UploadOptions {
    /// Send the file over TLS only, readable for whoever ends TLS, instead of sealing it to the enclave.
    pub plain: bool,
}

/// An accepted dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UploadResult {
    /// Hash to create a task with.
    pub dataset_hash: String,
    /// The provider's sentence.
    pub message: String,
    /// Whether the file was sealed to the enclave.
    pub sealed: bool,
}

impl FineTuning {
    /// Reads a dataset and finds the first mistake, with line, column, field and remedy.
    ///
    /// # Errors
    /// [`Error::Dataset`] or [`Error::File`].
    pub fn check_dataset(&self, path: &Path) -> Result<DatasetReport> {
        check_dataset_file(path)
    }

    /// Checks the dataset, verifies the provider's enclave, and uploads the file sealed to it.
    ///
    /// # Errors
    /// [`Error::Dataset`], [`Error::VerificationFailed`], [`Error::SealingUnsupported`], or the provider's refusal.
    pub async fn upload_dataset_to_tee(
        &self,
        provider: Address,
        path: &Path,
        options: &UploadOptions,
    ) -> Result<UploadResult> {
        self.upload_dataset_to_tee_with(provider, path, options, |_| ())
            .await
    }

    /// As [`FineTuning::upload_dataset_to_tee`], telling what happens.
    ///
    /// # Errors
    /// As there.
    pub async fn upload_dataset_to_tee_with(
        &self,
        provider: Address,
        path: &Path,
        options: &UploadOptions,
        mut on_progress: impl FnMut(Progress) + Send,
    ) -> Result<UploadResult> {
        let wallet = self.context.wallet()?;
        let report = check_dataset_file(path)?;
        if report.bytes > LARGE_DATASET_BYTES {
            on_progress(Progress::notice(format!(
                "The dataset has {} MiB; the upload takes a while.",
                report.bytes >> 20
            )));
        }
        let mut registration = self
            .context
            .registration(provider, ServiceKind::FineTuning)
            .await?;
        registration.sealed = !options.plain;
        on_progress(Progress::step("verifying the provider"));
        let enclave = self
            .context
            .require_enclave(&registration, &mut on_progress)
            .await?;
        let sealed = match (options.plain, enclave.sealing_key) {
            (true, _) => None,
            (false, Some(sealing_key))
                if wallet.secret_key().is_some() || enclave.takes_personal_seals =>
            {
                on_progress(Progress::step("sealing the dataset to the enclave"));
                let sealed = self.seal_dataset(provider, path, &report, &sealing_key);
                Some(sealed.await?)
            }
            (false, _) => return Err(Error::SealingUnsupported { provider }),
        };
        on_progress(Progress::step("uploading the dataset"));
        let is_sealed = sealed.is_some();
        let upload = Upload {
            context: &self.context,
            wallet,
            provider_url: &registration.url,
            path,
            signed: Mutex::default(),
        };
        let answer = upload.send(sealed, &mut on_progress).await?;
        let uploaded: DatasetUploadResponse = parse_json("upload dataset", &answer.body)?;
        if uploaded.dataset_hash.parse() != Ok(report.keccak) {
            return Err(Error::ProviderAnswer {
                operation: "upload dataset",
                reason: format!(
                    "it names hash {}, the file has {}",
                    uploaded.dataset_hash, report.keccak
                ),
            });
        }
        Ok(UploadResult {
            dataset_hash: uploaded.dataset_hash,
            message: uploaded.message,
            sealed: is_sealed,
        })
    }

    /// Removes an uploaded dataset from a provider now, instead of some days after its last use.
    ///
    /// # Errors
    /// The provider's refusal: it has no such dataset, or an unfinished task uses it.
    pub async fn delete_dataset(&self, provider: Address, dataset_hash: &str) -> Result<String> {
        let wallet = self.context.wallet()?;
        let timestamp = Context::now_s();
        let digest = signing::dataset_delete_hash(dataset_hash, timestamp);
        let signature = wallet
            .sign_personal("the removal of the dataset", digest)
            .await?;
        let request = DatasetDeleteRequest {
            signature,
            timestamp,
        };
        let path = format!(
            "/v1/user/{}/dataset/{}",
            wallet.address(),
            path_segment(dataset_hash)
        );
        let url = join(&self.get_provider_url(provider).await?, &path);
        let answer = self
            .context
            .http
            .delete_json("delete dataset", &url, &request)
            .await?;
        let deleted: DatasetUploadResponse = parse_json("delete dataset", &answer.body)?;
        Ok(deleted.message)
    }

    /// Stores a file **in clear** on the public storage network and returns its root hash. Anyone who knows the root can
    /// read it.
    ///
    /// # Errors
    /// [`Error::Storage`], or the chain.
    pub async fn upload_dataset(
        &self,
        path: &Path,
        mut on_progress: impl FnMut(Progress) + Send,
    ) -> Result<B256> {
        self.context.wallet()?;
        std::fs::metadata(path).map_err(|error| Error::file("read", path, error))?;
        self.context.storage_upload(path, &mut on_progress).await
    }

    /// Fetches a stored file by its root hash; every segment is verified.
    ///
    /// # Errors
    /// [`Error::Storage`] or [`Error::File`].
    pub async fn download_dataset(
        &self,
        path: &Path,
        root: B256,
        mut on_progress: impl FnMut(Progress) + Send,
    ) -> Result<()> {
        self.context
            .storage_download(root, path, &mut on_progress)
            .await
            .map(|_| ())
    }

    async fn seal_dataset(
        &self,
        provider: Address,
        path: &Path,
        report: &DatasetReport,
        sealing_key: &[u8; 32],
    ) -> Result<SealedFile> {
        let wallet = self.context.wallet()?;
        let id = report.keccak.to_string();
        let context = SealContext {
            chain_id: self.context.chain.chain_id(),
            provider,
            user: wallet.address(),
            purpose: SealPurpose::Dataset,
            id: &id,
        };
        let file_key = FileKey::random();
        let sealed_key =
            seal_key(sealing_key, &context, &file_key).map_err(|error| Error::ProviderAnswer {
                operation: "quote",
                reason: error.to_string(),
            })?;
        let mut plaintext =
            BufReader::new(File::open(path).map_err(|error| Error::file("read", path, error))?);
        let mut file = tempfile::tempfile()
            .map_err(|error| Error::file("create", std::env::temp_dir(), error))?;
        let failed = |error| match error {
            ArchiveError::Io(error) => Error::file("write", std::env::temp_dir(), error),
            other => Error::Archive {
                path: path.to_path_buf(),
                reason: other.to_string(),
            },
        };
        let version = match wallet.secret_key() {
            Some(key) => {
                sealed_archive::encrypt(&mut plaintext, &mut file, &file_key, key)
                    .map_err(failed)?;
                "1"
            }
            None => {
                let tags = sealed_archive::encrypt_unsigned(&mut plaintext, &mut file, &file_key)
                    .map_err(failed)?;
                let signature = wallet.sign_message("the dataset", tags.as_slice()).await?;
                sealed_archive::write_signature(&mut file, 0, &signature)
                    .map_err(|error| failed(error.into()))?;
                "2"
            }
        };
        Ok(SealedFile {
            version,
            sealed_key,
            file,
            dataset_hash: id,
        })
    }
}

/// Whether providers take a file of this kind, size and name at all; returns its size in bytes.
///
/// # Errors
/// [`Error::Dataset`] or [`Error::File`].
pub(crate) fn check_size_and_name(path: &Path) -> Result<u64> {
    let refused = |reason: String| Error::Dataset {
        path: path.to_path_buf(),
        reason,
    };
    let metadata = std::fs::metadata(path).map_err(|error| Error::file("read", path, error))?;
    if !metadata.is_file() {
        return Err(refused(
            "this is not a file; name a .jsonl file with one JSON object per line".into(),
        ));
    }
    if metadata.len() > MAX_DATASET_BYTES {
        return Err(refused(format!(
            "the file has {} bytes, the limit is {MAX_DATASET_BYTES} (100 MiB); split it",
            metadata.len()
        )));
    }
    let extension = path
        .extension()
        .map(|extension| extension.to_ascii_lowercase());
    if !extension.is_some_and(|extension| extension == "jsonl" || extension == "json") {
        return Err(refused(
            "providers take files named .jsonl or .json; rename it".into(),
        ));
    }
    Ok(metadata.len())
}

/// Reads, checks and hashes a dataset file.
pub fn check_dataset_file(path: &Path) -> Result<DatasetReport> {
    let refused = |reason: String| Error::Dataset {
        path: path.to_path_buf(),
        reason,
    };
    let bytes = check_size_and_name(path)?;
    let file = File::open(path).map_err(|error| Error::file("read", path, error))?;
    let mut reader = BufReader::new(HashingReader {
        inner: file,
        hash: Keccak256::new(),
    });
    let summary = check_dataset(&mut reader).map_err(|error| refused(error.to_string()))?;
    // The parser may stop before trailing blanks; the hash is over the whole file.
    std::io::copy(&mut reader, &mut std::io::sink())
        .map_err(|error| Error::file("read", path, error))?;
    Ok(DatasetReport {
        format: summary.format.to_string(),
        records: summary.records,
        bytes,
        keccak: reader.into_inner().hash.finalize(),
    })
}

struct HashingReader<R> {
    inner: R,
    hash: Keccak256,
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dataset_is_checked_and_hashed_in_one_pass() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.jsonl");
        let text = "{\"prompt\":\"a\",\"completion\":\"b\"}\r\n\n{\"prompt\":\"c\",\"completion\":\"d\"}\n\n \n";
        std::fs::write(&path, text).unwrap();
        let report = check_dataset_file(&path).unwrap();
        assert_eq!((report.records, report.bytes), (2, text.len() as u64));
        assert_eq!(report.keccak, alloy_primitives::keccak256(text));
    }

    #[test]
    fn bad_datasets_name_the_line_and_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.jsonl");
        std::fs::write(&path, "{\"prompt\":\"a\",\"completion\":\"b\"}\n{oops}\n").unwrap();
        let error = check_dataset_file(&path).unwrap_err();
        assert_eq!(error.code(), "invalid_dataset");
        assert!(error.to_string().contains('2'), "{error}");
        std::fs::write(&path, "").unwrap();
        assert!(
            check_dataset_file(&path)
                .unwrap_err()
                .to_string()
                .contains("no record")
        );
        let text = folder.path().join("d.txt");
        std::fs::write(&text, "{}").unwrap();
        assert!(
            check_dataset_file(&text)
                .unwrap_err()
                .to_string()
                .contains(".jsonl")
        );
        assert_eq!(
            check_dataset_file(folder.path()).unwrap_err().code(),
            "invalid_dataset"
        );
        assert_eq!(
            check_dataset_file(&folder.path().join("none.jsonl"))
                .unwrap_err()
                .code(),
            "file"
        );
    }
}
