//! Delivery: download, check against the chain, acknowledge, decrypt, unpack.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use alloy_primitives::{Address, B256, Keccak256};
use futures::FutureExt;
use serde::Serialize;
use zerog_chain::Receipt;
use zerog_chain::fine_tuning::{Deliverable, DeliverableState};
use zerog_protocol::ecies::{self, EciesError};
use zerog_protocol::fine_tuning_api::LoraDownloadRequest;
use zerog_protocol::limits::{MAX_ADAPTER_BYTES, MAX_ARCHIVE_MEMBERS};
use zerog_protocol::manifest::{ARCHIVE_FOLDER, AdapterManifest, MANIFEST_MEMBER};
use zerog_protocol::{FileKey, TaskId, sealed_archive, signing};

use super::FineTuning;
use crate::broker::Context;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::provider_client::join;
use crate::transfer;

/// Where the encrypted adapter is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DownloadMethod {
    /// The storage network, then the provider.
    #[default]
    Auto,
    /// The provider only.
    Tee,
    /// The storage network only.
    Storage,
}

impl std::str::FromStr for DownloadMethod {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "tee" => Ok(Self::Tee),
            "storage" | "0g-storage" => Ok(Self::Storage),
            other => Err(Error::Argument {
                name: "download-method",
                reason: format!("`{other}` is unknown; use auto, tee or 0g-storage"),
            }),
        }
    }
}

/// A downloaded, checked and acknowledged adapter, still encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AcknowledgedModel {
    /// The encrypted file.
    pub path: PathBuf,
    /// The hash on chain that it was checked against.
    pub model_root_hash: B256,
    /// Where it was fetched; none: it was there already.
    pub method: Option<DownloadMethod>,
    /// Its size.
    pub bytes: u64,
    /// The acknowledgement; none when it had been sent before.
    pub receipt: Option<Receipt>,
}

/// Both hashes by which a file may be known on chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileHashes {
    pub(crate) storage_root: B256,
    pub(crate) keccak: B256,
    pub(crate) bytes: u64,
}

impl FineTuning {
    /// Downloads the adapter, accepts it only if it is the file on chain (by storage root or Keccak hash), and then
    /// acknowledges. `data_path` is a file, or a folder that gets `lora_model_<task>.zip`, which is encrypted.
    /// An interrupted download is continued. Acknowledging lets the provider settle, which puts the key on chain.
    ///
    /// # Errors
    /// [`Error::DeliverableMissing`], [`Error::HashMismatch`] (nothing is acknowledged and no file is left),
    /// [`Error::ModelNotOpenable`] for a wallet that cannot decrypt without the enclave's confirmation that it sealed the
    /// model to its recipient key, a failed download, or the chain.
    pub async fn acknowledge_model(
        &self,
        provider: Address,
        task: TaskId,
        data_path: &Path,
        method: DownloadMethod,
        mut on_progress: impl FnMut(Progress) + Send,
    ) -> Result<AcknowledgedModel> {
        let deliverable = self.deliverable(provider, task).await?;
        if deliverable.state() == DeliverableState::Delivered {
            self.check_recipient(provider, task).await?;
        }
        let expected = root_hash(&deliverable)?;
        let path = target_path(data_path, task)?;
        let (method, bytes) = self
            .fetch(provider, task, &path, expected, method, &mut on_progress)
            .await?;
        on_progress(Progress::step("acknowledging on chain"));
        let receipt = match deliverable.state() {
            DeliverableState::Delivered => Some(
                self.context
                    .chain
                    .fine_tuning()
                    .acknowledge_deliverable(provider, &task.to_string())
                    .await?,
            ),
            _ => None,
        };
        Ok(AcknowledgedModel {
            path,
            model_root_hash: expected,
            method,
            bytes,
            receipt,
        })
    }

    /// Acknowledges without downloading or checking anything, also whether this wallet can open the model: the way out
    /// when only the next task matters. `None` when it was acknowledged before.
    ///
    /// # Errors
    /// [`Error::DeliverableMissing`] or the chain.
    pub async fn acknowledge_deliverable(
        &self,
        provider: Address,
        task: TaskId,
    ) -> Result<Option<Receipt>> {
        let deliverable = self.deliverable(provider, task).await?;
        if deliverable.acknowledged {
            return Ok(None);
        }
        Ok(Some(
            self.context
                .chain
                .fine_tuning()
                .acknowledge_deliverable(provider, &task.to_string())
                .await?,
        ))
    }

    /// The record on chain.
    ///
    /// # Errors
    /// [`Error::DeliverableMissing`] or a failed read.
    pub async fn deliverable(&self, provider: Address, task: TaskId) -> Result<Deliverable> {
        let user = self.context.user()?;
        let found = self
            .context
            .chain
            .fine_tuning()
            .deliverable(user, provider, &task.to_string())
            .await?;
        found.ok_or(Error::DeliverableMissing { task })
    }

    /// Downloads the encrypted adapter from the provider and checks it against the chain. Acknowledges nothing.
    ///
    /// # Errors
    /// As [`FineTuning::acknowledge_model`].
    pub async fn download_lora_from_tee(
        &self,
        provider: Address,
        task: TaskId,
        output_path: &Path,
        mut on_progress: impl FnMut(Progress) + Send,
    ) -> Result<PathBuf> {
        let expected = root_hash(&self.deliverable(provider, task).await?)?;
        let path = target_path(output_path, task)?;
        self.fetch(
            provider,
            task,
            &path,
            expected,
            DownloadMethod::Tee,
            &mut on_progress,
        )
        .await?;
        Ok(path)
    }

    /// Downloads the encrypted adapter from the storage network and checks it. Acknowledges nothing.
    ///
    /// # Errors
    /// As [`FineTuning::acknowledge_model`].
    pub async fn download_model_from_0g_storage(
        &self,
        provider: Address,
        task: TaskId,
        output_path: &Path,
        mut on_progress: impl FnMut(Progress) + Send,
    ) -> Result<PathBuf> {
        let expected = root_hash(&self.deliverable(provider, task).await?)?;
        let path = target_path(output_path, task)?;
        self.fetch(
            provider,
            task,
            &path,
            expected,
            DownloadMethod::Storage,
            &mut on_progress,
        )
        .await?;
        Ok(path)
    }

    /// The checked file at `path`, and how it got there.
    async fn fetch(
        &self,
        provider: Address,
        task: TaskId,
        path: &Path,
        expected: B256,
        method: DownloadMethod,
        on_progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<(Option<DownloadMethod>, u64)> {
        if path.is_file() {
            let hashes = hash_file(path).await?;
            if hashes.matches(expected) {
                on_progress(Progress::notice(
                    "The file is there already and is the delivered one.",
                ));
                return Ok((None, hashes.bytes));
            }
            return Err(Error::Argument {
                name: "data-path",
                reason: format!(
                    "{} exists with other content; remove it or name another file",
                    path.display()
                ),
            });
        }
        if method != DownloadMethod::Tee {
            on_progress(Progress::step("downloading from storage"));
            match self.fetch_from_storage(path, expected, on_progress).await {
                Ok(bytes) => return Ok((Some(DownloadMethod::Storage), bytes)),
                Err(error)
                    if method == DownloadMethod::Storage
                        || matches!(error, Error::DiskFull { .. }) =>
                {
                    return Err(error);
                }
                Err(error) => {
                    on_progress(Progress::notice(format!(
                        "Storage does not have it ({error}); asking the provider."
                    )));
                }
            }
        }
        on_progress(Progress::step("downloading from the provider"));
        let bytes = self
            .fetch_from_provider(provider, task, path, expected, on_progress)
            .await?;
        Ok((Some(DownloadMethod::Tee), bytes))
    }

    async fn fetch_from_storage(
        &self,
        path: &Path,
        expected: B256,
        on_progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<u64> {
        self.context
            .storage_download(expected, path, on_progress)
            .await
    }

    async fn fetch_from_provider(
        &self,
        provider: Address,
        task: TaskId,
        path: &Path,
        expected: B256,
        on_progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<u64> {
        let wallet = self.context.wallet()?;
        let url = join(
            &self.get_provider_url(provider).await?,
            &format!("/v1/user/{}/task/{task}/lora", wallet.address()),
        );
        let request = || {
            async move {
                let timestamp = Context::now_s();
                let digest = signing::lora_download_hash(task, timestamp);
                let signature = wallet.sign_personal("the download", digest).await?;
                Ok(LoraDownloadRequest {
                    signature,
                    timestamp,
                })
            }
            .boxed()
        };
        let max_bytes = sealed_archive::encrypted_length(MAX_ADAPTER_BYTES);
        loop {
            let (partial, was_continued) = transfer::download_by_post(
                &self.context.http,
                &url,
                &request,
                path,
                max_bytes,
                on_progress,
            )
            .await?;
            let hashes = hash_file(&partial).await;
            // Kept bytes may be of another file with the same name: once more from the start.
            if was_continued
                && hashes
                    .as_ref()
                    .is_ok_and(|hashes| !hashes.matches(expected))
            {
                std::fs::remove_file(&partial)
                    .map_err(|error| Error::file("remove", &partial, error))?;
                continue;
            }
            return publish_checked(hashes, &partial, path, expected);
        }
    }

    /// Decrypts a downloaded adapter to a zip file. Waits until the provider has put the key on chain, which happens
    /// soon after the acknowledgement. The output appears only after the enclave's signature was checked.
    ///
    /// # Errors
    /// [`Error::DeliverableNotAcknowledged`], [`Error::Timeout`], [`Error::Archive`].
    pub async fn decrypt_model(
        &self,
        provider: Address,
        task: TaskId,
        encrypted_model_path: &Path,
        decrypted_model_path: &Path,
        timeout: Duration,
        mut on_progress: impl FnMut(Progress) + Send,
    ) -> Result<PathBuf> {
        std::fs::metadata(encrypted_model_path)
            .map_err(|error| Error::file("read", encrypted_model_path, error))?;
        let signer = self.get_service(provider).await?.tee_signer;
        let key = self
            .archive_key(provider, task, timeout, &mut on_progress)
            .await?;
        on_progress(Progress::step("decrypting"));
        let output = if decrypted_model_path.is_dir() {
            decrypted_model_path.join(format!("model_{task}.zip"))
        } else {
            decrypted_model_path.to_path_buf()
        };
        let (input, target) = (encrypted_model_path.to_path_buf(), output.clone());
        let decrypting =
            tokio::task::spawn_blocking(move || decrypt_file(&input, &target, &key, signer));
        decrypting.await.expect("decrypting does not panic")?;
        Ok(output)
    }

    /// The key of an adapter archive: waits for it on chain and opens it with the wallet, or with the wallet's recipient
    /// key when it is sealed to that one.
    pub(crate) async fn archive_key(
        &self,
        provider: Address,
        task: TaskId,
        timeout: Duration,
        on_progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<FileKey> {
        let wallet = self.context.wallet()?;
        let started = Instant::now();
        let mut told = false;
        let secret = loop {
            let deliverable = self.deliverable(provider, task).await?;
            match deliverable.state() {
                DeliverableState::Delivered => {
                    return Err(Error::DeliverableNotAcknowledged { task });
                }
                DeliverableState::SettledWithPenalty => {
                    return Err(no_key(
                        task,
                        "it was settled without acknowledgement, so the provider keeps the key; train again",
                    ));
                }
                DeliverableState::Abandoned => {
                    return Err(no_key(
                        task,
                        "the provider gave it up without payment; train again",
                    ));
                }
                DeliverableState::Settled => break deliverable.encrypted_secret,
                _ => {}
            }
            if !told {
                told = true;
                on_progress(Progress::step(
                    "waiting for the provider to settle and publish the key",
                ));
            }
            if started.elapsed() >= timeout {
                let what = format!(
                    "the key of task {task}: the provider publishes it when it settles the fee; run decrypt-model again later"
                );
                return Err(Error::Timeout {
                    what,
                    waited: timeout,
                    last: Some("UserAcknowledged".into()),
                });
            }
            tokio::time::sleep(self.context.poll_interval()).await;
        };
        let opened = match wallet.secret_key() {
            // A wallet whose key is here may have been on a device when the task was created.
            Some(key) => match ecies::open(key, &secret) {
                Err(EciesError::Open) => {
                    let recipient = self.context.recipient_key(provider).await?;
                    ecies::open(&recipient, &secret)
                }
                other => other,
            },
            None => ecies::open(&*self.context.recipient_key(provider).await?, &secret),
        };
        let opened = opened.map_err(|error| no_key(task, &error.to_string()))?;
        FileKey::from_slice(&opened)
            .ok_or_else(|| no_key(task, "the published key is not 32 bytes long"))
    }

    /// Unpacks a decrypted adapter into a folder of PEFT files, which appears whole. Returns its manifest, if it has one.
    ///
    /// # Errors
    /// [`Error::AdapterArchive`] for an unsafe or incomplete archive, [`Error::File`].
    pub async fn unpack_adapter(
        &self,
        zip_path: &Path,
        folder: &Path,
    ) -> Result<Option<AdapterManifest>> {
        let (zip_path, folder) = (zip_path.to_path_buf(), folder.to_path_buf());
        tokio::task::spawn_blocking(move || unpack_adapter(&zip_path, &folder))
            .await
            .expect("unpacking does not panic")
    }
}

fn no_key(task: TaskId, reason: &str) -> Error {
    Error::Archive {
        path: PathBuf::from(format!("the adapter of task {task}")),
        reason: reason.to_owned(),
    }
}

/// The hash on chain: 32 bytes, or the hexadecimal text that brokers wrote until October 2025. Those cut large files into
/// fragments and wrote the roots of all of them, separated by commas; no single hash belongs to such a file, so it is
/// refused with what to do.
pub(crate) fn root_hash(deliverable: &Deliverable) -> Result<B256> {
    let written = deliverable.model_root_hash.as_ref();
    let refused = |reason| Error::ProviderAnswer {
        operation: "read the deliverable",
        reason,
    };
    let roots = match B256::try_from(written) {
        Ok(hash) => vec![hash],
        Err(_) => std::str::from_utf8(written)
            .ok()
            .and_then(|text| {
                text.split(',')
                    .map(|root| root.trim().parse().ok())
                    .collect()
            })
            .unwrap_or_default(),
    };
    match roots[..] {
        [hash] if !hash.is_zero() => Ok(hash),
        [_, _, ..] => {
            let roots: Vec<String> = roots.iter().map(ToString::to_string).collect();
            Err(refused(format!(
                "an old broker stored the file in {} fragments, which have no common hash to check a download \
                 against; fetch them with `0g-compute-cli storage download --roots {} --file FILE`, then call \
                 `acknowledge_deliverable` of the SDK and decrypt FILE",
                roots.len(),
                roots.join(",")
            )))
        }
        _ => Err(refused(format!(
            "the hash on chain is {}, neither 32 bytes nor the text of a hash",
            deliverable.model_root_hash
        ))),
    }
}

/// The file to write: the path itself, or a name inside the folder.
fn target_path(data_path: &Path, task: TaskId) -> Result<PathBuf> {
    let path = if data_path.is_dir() {
        data_path.join(format!("lora_model_{task}.zip"))
    } else {
        data_path.to_path_buf()
    };
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|error| Error::file("create", folder, error))?;
    Ok(path)
}

impl FileHashes {
    pub(crate) fn matches(&self, expected: B256) -> bool {
        self.storage_root == expected || self.keccak == expected
    }
}

/// Names a downloaded file if it is the expected one, and removes it otherwise.
fn publish_checked(
    outcome: Result<FileHashes>,
    temporary: &Path,
    path: &Path,
    expected: B256,
) -> Result<u64> {
    let checked = outcome.and_then(|hashes| {
        if hashes.matches(expected) {
            transfer::publish(temporary, path).map(|()| hashes.bytes)
        } else {
            Err(Error::HashMismatch {
                expected,
                storage_root: hashes.storage_root,
                keccak: hashes.keccak,
            })
        }
    });
    if checked.is_err() {
        let _ = std::fs::remove_file(temporary);
    }
    checked
}

/// Both hashes of a file, with constant memory.
pub(crate) async fn hash_file(path: &Path) -> Result<FileHashes> {
    let path = path.to_path_buf();
    let hashing = tokio::task::spawn_blocking(move || {
        let failed = |error| Error::file("read", &path, error);
        let mut file = BufReader::with_capacity(1 << 20, File::open(&path).map_err(failed)?);
        let mut keccak = Keccak256::new();
        let mut buffer = vec![0u8; 1 << 20];
        let mut bytes = 0;
        loop {
            let count = file.read(&mut buffer).map_err(failed)?;
            if count == 0 {
                break;
            }
            keccak.update(&buffer[..count]);
            bytes += count as u64;
        }
        let storage_root = crate::storage::file_root(&path)?;
        Ok(FileHashes {
            storage_root,
            keccak: keccak.finalize(),
            bytes,
        })
    });
    hashing.await.expect("hashing does not panic")
}

fn decrypt_file(input: &Path, output: &Path, key: &FileKey, signer: Address) -> Result<()> {
    let failed = |error| Error::file("write", output, error);
    let folder = output
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(failed)?;
    let mut reader = BufReader::with_capacity(
        1 << 20,
        File::open(input).map_err(|error| Error::file("read", input, error))?,
    );
    let temporary = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    let mut writer = BufWriter::with_capacity(1 << 20, temporary);
    sealed_archive::decrypt_signed_by(&mut reader, &mut writer, key, signer).map_err(|error| {
        match error {
            sealed_archive::ArchiveError::Io(error) => failed(error),
            other => Error::Archive {
                path: input.to_path_buf(),
                reason: other.to_string(),
            },
        }
    })?;
    let temporary = writer
        .into_inner()
        .map_err(|error| failed(error.into_error()))?;
    temporary.as_file().sync_all().map_err(failed)?;
    temporary
        .persist(output)
        .map_err(|error| failed(error.error))?;
    transfer::sync_folder(output);
    Ok(())
}

/// Whether a member name is a plain relative path.
fn stays_inside(name: &str) -> bool {
    use std::path::Component;
    !name.is_empty()
        && !name.contains('\\')
        && Path::new(name)
            .components()
            .all(|component| matches!(component, Component::Normal(_)))
}

/// Unpacks the members of `output_model/` (or of the top level) into a new folder.
fn unpack_adapter(zip_path: &Path, folder: &Path) -> Result<Option<AdapterManifest>> {
    let refused = |reason: String| Error::AdapterArchive {
        path: zip_path.to_path_buf(),
        reason,
    };
    let failed = |error| Error::file("write", folder, error);
    if folder.exists() {
        return Err(Error::Argument {
            name: "output",
            reason: format!("{} exists already; name a new folder", folder.display()),
        });
    }
    let file = File::open(zip_path).map_err(|error| Error::file("read", zip_path, error))?;
    let mut archive =
        zip::ZipArchive::new(BufReader::new(file)).map_err(|error| refused(error.to_string()))?;
    if archive.len() > MAX_ARCHIVE_MEMBERS {
        return Err(refused(format!(
            "it has {} members, more than {MAX_ARCHIVE_MEMBERS}",
            archive.len()
        )));
    }
    let parent = folder
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(failed)?;
    let temporary = tempfile::tempdir_in(parent).map_err(failed)?;
    let mut left = MAX_ADAPTER_BYTES;
    let mut manifest = None;
    for index in 0..archive.len() {
        let member = archive
            .by_index(index)
            .map_err(|error| refused(error.to_string()))?;
        if member.is_dir() {
            continue;
        }
        let name = member
            .name()
            .map_err(|error| refused(error.to_string()))?
            .into_owned();
        let inner = name
            .strip_prefix(ARCHIVE_FOLDER)
            .and_then(|rest| rest.strip_prefix('/'))
            .unwrap_or(&name);
        if member.is_symlink() || !stays_inside(inner) {
            return Err(refused(format!(
                "member `{name}` points outside the archive"
            )));
        }
        let target = temporary.path().join(inner);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        let mut output = BufWriter::new(File::create(&target).map_err(failed)?);
        let copied = std::io::copy(&mut member.take(left + 1), &mut output).map_err(failed)?;
        if copied > left {
            return Err(refused(format!(
                "it unpacks to more than {MAX_ADAPTER_BYTES} bytes"
            )));
        }
        left -= copied;
        output.flush().map_err(failed)?;
        if name == MANIFEST_MEMBER {
            let text = std::fs::read(&target).map_err(failed)?;
            manifest = serde_json::from_slice(&text).ok();
        }
    }
    for needed in ["adapter_config.json", "adapter_model.safetensors"] {
        if !temporary.path().join(needed).is_file() {
            return Err(refused(format!("it holds no {needed}")));
        }
    }
    let kept = temporary.keep();
    std::fs::rename(&kept, folder).map_err(|error| {
        let _ = std::fs::remove_dir_all(&kept);
        failed(error)
    })?;
    // The temporary folder was private; the adapter gets ordinary permissions.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let _ = std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755));
    }
    transfer::sync_folder(folder);
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerog_protocol::SecretKey;

    fn zip_of(members: &[(&str, &[u8])]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.zip");
        let mut writer = zip::ZipWriter::new(File::create(&path).unwrap());
        for (name, content) in members {
            writer
                .start_file(*name, zip::write::SimpleFileOptions::default())
                .unwrap();
            writer.write_all(content).unwrap();
        }
        writer.finish().unwrap();
        (folder, path)
    }

    #[test]
    fn hashes_are_bytes_or_the_text_of_old_brokers() {
        let of = |written: &[u8]| {
            root_hash(&Deliverable {
                id: "t".into(),
                model_root_hash: written.to_vec().into(),
                encrypted_secret: Vec::new().into(),
                acknowledged: false,
                timestamp: 1,
                settled: false,
            })
        };
        let (one, two) = (B256::repeat_byte(0xab), B256::repeat_byte(0x12));
        assert_eq!(of(one.as_slice()).unwrap(), one);
        for text in [
            format!("{one}"),
            "ab".repeat(32),
            format!("0x{}", "AB".repeat(32)),
        ] {
            assert_eq!(of(text.as_bytes()).unwrap(), one, "{text}");
        }
        let fragments = of(format!("{one},{two}").as_bytes()).unwrap_err();
        let told = fragments.to_string();
        assert!(told.contains("2 fragments"), "{told}");
        assert!(told.contains(&format!("--roots {one},{two} ")), "{told}");
        for wrong in [
            Vec::new(),
            vec![0; 32],
            vec![7; 31],
            vec![7; 33],
            b"0x12".to_vec(),
            format!("{one},").into_bytes(),
            vec![0xff; 66],
        ] {
            let error = of(&wrong).unwrap_err();
            assert!(error.to_string().contains("neither"), "{wrong:?}: {error}");
        }
    }

    #[test]
    fn adapters_unpack_whole_or_not_at_all() {
        let good: [(&str, &[u8]); 2] = [
            ("output_model/adapter_config.json", b"{}"),
            ("output_model/adapter_model.safetensors", b"x"),
        ];
        let (folder, path) = zip_of(&good);
        let target = folder.path().join("adapter");
        assert!(unpack_adapter(&path, &target).unwrap().is_none());
        assert_eq!(
            std::fs::read(target.join("adapter_model.safetensors")).unwrap(),
            b"x"
        );
        assert_eq!(
            unpack_adapter(&path, &target).unwrap_err().code(),
            "invalid_argument"
        );

        for bad in [
            ("output_model/../../evil", "outside"),
            ("../evil", "outside"),
            ("/abs", "outside"),
            ("output_model/readme", "adapter_model.safetensors"),
        ] {
            let (folder, path) =
                zip_of(&[("output_model/adapter_config.json", b"{}"), (bad.0, b"no")]);
            let target = folder.path().join("adapter");
            let error = unpack_adapter(&path, &target).unwrap_err();
            assert!(error.to_string().contains(bad.1), "{error}");
            assert_eq!(
                std::fs::read_dir(folder.path()).unwrap().count(),
                1,
                "only the zip is left"
            );
        }
    }

    #[test]
    fn nothing_is_written_when_the_signer_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let (input, output) = (folder.path().join("in"), folder.path().join("out.zip"));
        let (key, signer) = (FileKey::random(), SecretKey::random());
        let mut file = File::create(&input).unwrap();
        sealed_archive::encrypt(&mut &b"weights"[..], &mut file, &key, &signer).unwrap();
        let error = decrypt_file(&input, &output, &key, Address::repeat_byte(1)).unwrap_err();
        assert_eq!(error.code(), "archive_unreadable");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        decrypt_file(&input, &output, &key, signer.address()).unwrap();
        assert_eq!(std::fs::read(&output).unwrap(), b"weights");
    }
}
