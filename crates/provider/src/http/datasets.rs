//! Datasets on their way in: streamed to disk under a key, checked, hashed, and kept sealed.

use std::io::Read;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use alloy_primitives::{Address, keccak256};
use axum::Json;
use axum::body::Bytes;
use axum::extract::multipart::{Field, Multipart, MultipartError};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use tokio::sync::mpsc;
use zerog_protocol::fine_tuning_api::{DatasetDeleteRequest, DatasetUploadResponse};
use zerog_protocol::limits::SIGNATURE_MAX_AGE_S;
use zerog_protocol::seal::{SealContext, SealPurpose, open_key};
use zerog_protocol::sealed_archive::{self, ArchiveError};
use zerog_protocol::{FileKey, signing};
use zerog_tokenization::check_dataset;
use zeroize::Zeroizing;

use super::error::ApiError;
use super::{auth, upload_parts};
use crate::app::App;
use crate::effects::remove_dataset;
use crate::store::DatasetRow;
use crate::vault::{KeyUse, open_to_memory, seal_to_file};

/// Longest text field of the form in bytes.
const MAX_FIELD_BYTES: usize = 8 * 1024;
/// Most fields of the form.
const MAX_FIELDS: usize = 16;
/// Room for the header and tags of a sealed file above the limit of its plaintext.
const SEAL_OVERHEAD_BYTES: u64 = 4096;

/// The text fields of the form.
#[derive(Debug, Default)]
struct Fields {
    signature: Option<String>,
    timestamp: Option<String>,
    seal_version: Option<String>,
    sealed_key: Option<String>,
    dataset_hash: Option<String>,
    upload_id: Option<String>,
}

/// The file.
#[derive(Debug)]
enum Incoming {
    /// As it came with the form, encrypted on disk under a key of its own.
    File {
        folder: tempfile::TempDir,
        key: FileKey,
        name: String,
    },
    /// Sealed by the user, as it came in parts.
    Parts(PathBuf),
}

/// `POST /v1/user/{addr}/dataset`: the parts may come in any order.
pub(crate) async fn upload(
    State(app): State<Arc<App>>,
    Path(address): Path<String>,
    mut form: Multipart,
) -> Result<Json<DatasetUploadResponse>, ApiError> {
    let user = auth::address(&address)?;
    let mut fields = Fields::default();
    let mut incoming = None;
    let mut is_verified = false;
    let mut slot = None;
    for _ in 0..MAX_FIELDS {
        let Some(field) = form.next_field().await.map_err(broken_form)? else {
            break;
        };
        let name = field.name().unwrap_or_default().to_owned();
        let target = match name.as_str() {
            "file" => {
                // With the fields first, nobody can make us store what he did not sign for.
                if fields.signature.is_some() && fields.timestamp.is_some() {
                    fields.verify(&app, &address, user)?;
                    is_verified = true;
                    slot = Some(app.limiter.transfer(user)?);
                }
                incoming = Some(receive(&app, field).await?);
                continue;
            }
            "signature" => &mut fields.signature,
            "timestamp" => &mut fields.timestamp,
            "sealVersion" => &mut fields.seal_version,
            "sealedKey" => &mut fields.sealed_key,
            "datasetHash" => &mut fields.dataset_hash,
            "uploadId" => &mut fields.upload_id,
            _ => continue,
        };
        *target = Some(text(field).await?);
    }
    if !is_verified {
        fields.verify(&app, &address, user)?;
        slot = Some(match fields.upload_id {
            Some(_) => app.limiter.transfer_under_way(user)?,
            None => app.limiter.transfer(user)?,
        });
    }
    let row = match (incoming, fields.upload_id.as_deref()) {
        (Some(incoming), _) => store(&app, user, fields, incoming).await?,
        (None, Some(id)) => match upload_parts::finished(&app, user, id)? {
            Some(path) => {
                let row = store(&app, user, fields, Incoming::Parts(path.clone())).await?;
                remove(&path);
                row
            }
            None => stored_before(&app, user, &fields).await?,
        },
        (None, None) => {
            return Err(ApiError::bad_request("file_missing", "No file provided").field("file"));
        }
    };
    drop(slot);
    tracing::info!(dataset.hash = row.hash, dataset.bytes = row.bytes, task.user = %user, "dataset stored");
    Ok(Json(DatasetUploadResponse {
        dataset_hash: row.hash,
        message: "Dataset uploaded successfully. Use this hash when creating a fine-tuning task."
            .into(),
    }))
}

/// The dataset of an upload in parts whose end was told before, and whose answer was lost.
async fn stored_before(app: &App, user: Address, fields: &Fields) -> Result<DatasetRow, ApiError> {
    let stored = match &fields.dataset_hash {
        Some(hash) => app.store.dataset(user, hash.trim()).await?,
        None => None,
    };
    stored.ok_or_else(|| {
        ApiError::not_found(
            "upload_missing",
            "this provider has no parts of that upload any more; send the dataset again",
        )
    })
}

/// `DELETE /v1/user/{addr}/dataset/{hash}`: at once instead of some days after its last use; not while a task needs it.
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Path((address, hash)): Path<(String, String)>,
    body: Bytes,
) -> Result<Json<DatasetUploadResponse>, ApiError> {
    let user = auth::address(&address)?;
    let request: DatasetDeleteRequest = serde_json::from_slice(&body)
        .map_err(|error| ApiError::bad_request("invalid_body", format!("bind ctx: {error}")))?;
    let failed = |error| ApiError::from(error).context("Authentication failed: ");
    let now_ms = app.clock.system_ms();
    signing::check_timestamp(request.timestamp, now_ms / 1000).map_err(failed)?;
    let digest = signing::dataset_delete_hash(&hash, request.timestamp);
    signing::verify_personal(digest, &request.signature, user).map_err(failed)?;
    let dataset = app.store.dataset(user, &hash).await?.ok_or_else(|| {
        ApiError::not_found(
            "dataset_not_found",
            format!("this provider has no dataset {hash} of this user"),
        )
    })?;
    if app
        .store
        .is_dataset_in_use(&dataset.user_address, &dataset.hash)
        .await?
    {
        return Err(ApiError::conflict(
            "dataset_in_use",
            "an unfinished task uses this dataset; cancel the task or wait until it has ended",
        ));
    }
    // Heard twice, it could remove a later upload of the same file.
    let until_ms = request.timestamp.saturating_add(SIGNATURE_MAX_AGE_S) * 1000;
    let spent = format!("dataset_delete/{user:#x}/{digest}");
    if !app.store.spend_signature(&spent, until_ms, now_ms).await? {
        return Err(ApiError::unauthorized(
            "Authentication failed: this signature was used before",
        ));
    }
    remove_dataset(&app, &dataset)
        .await?
        .map_err(ApiError::internal)?;
    tracing::info!(dataset.hash = dataset.hash, task.user = %user, "dataset deleted by its owner");
    Ok(Json(DatasetUploadResponse {
        dataset_hash: dataset.hash,
        message: "Dataset deleted.".into(),
    }))
}

impl Fields {
    fn verify(&self, app: &App, address: &str, user: Address) -> Result<(), ApiError> {
        let (signature, timestamp) = (self.signature.as_deref(), self.timestamp.as_deref());
        verify(app, signature, timestamp, address, user)
    }
}

/// Whether `user` signed that he uploads now.
pub(super) fn verify(
    app: &App,
    signature: Option<&str>,
    timestamp: Option<&str>,
    address: &str,
    user: Address,
) -> Result<(), ApiError> {
    let signature = signature.ok_or_else(|| ApiError::unauthorized("Signature is required"))?;
    let timestamp = timestamp.ok_or_else(|| ApiError::unauthorized("Timestamp is required"))?;
    let timestamp: u64 = timestamp.trim().parse().map_err(|_| {
        ApiError::bad_request("invalid_timestamp", "Invalid timestamp format").field("timestamp")
    })?;
    let failed = |error| ApiError::from(error).context("Authentication failed: ");
    signing::check_timestamp(timestamp, app.clock.system_ms() / 1000).map_err(failed)?;
    signing::verify_dataset_upload(address, timestamp, signature.trim(), user).map_err(failed)?;
    Ok(())
}

fn check_name(name: &str) -> Result<(), ApiError> {
    let is_plain =
        !name.is_empty() && !name.contains(['/', '\\', '\0']) && name != "." && name != "..";
    let lower = name.to_lowercase();
    if is_plain && (lower.ends_with(".jsonl") || lower.ends_with(".json")) {
        return Ok(());
    }
    Err(ApiError::bad_request(
        "file_type",
        "Invalid file type. Only JSONL/JSON files are allowed",
    )
    .field("file"))
}

/// Most bytes of a file on its way in.
pub(super) fn largest_file(app: &App) -> u64 {
    let largest = app.config.limits.max_dataset_bytes;
    largest.saturating_add(SEAL_OVERHEAD_BYTES)
}

/// Streams the file to disk, encrypted as it comes.
async fn receive(app: &App, mut field: Field<'_>) -> Result<Incoming, ApiError> {
    let limit = largest_file(app);
    let name = field.file_name().unwrap_or_default().to_owned();
    let folder = tempfile::tempdir_in(app.vault.incoming()).map_err(no_room)?;
    let key = FileKey::random();
    let (sender, receiver) = mpsc::channel::<Bytes>(16);
    let (path, file_key) = (folder.path().join("file"), key.clone());
    let writer = tokio::task::spawn_blocking(move || {
        let mut reader = ChannelReader {
            receiver,
            current: Bytes::new(),
        };
        seal_to_file(&path, &mut reader, &file_key, None)
    });
    let mut received = 0u64;
    while let Some(chunk) = field.chunk().await.map_err(broken_form)? {
        received = received.saturating_add(chunk.len() as u64);
        if received > limit {
            // A client that is still sending reads no answer; listen a little longer.
            drain(&mut field, limit).await;
            return Err(too_large(app));
        }
        if sender.send(chunk).await.is_err() {
            break;
        }
    }
    drop(sender);
    match writer.await.map_err(ApiError::internal)? {
        Ok(()) => Ok(Incoming::File { folder, key, name }),
        Err(crate::vault::VaultError::Archive(ArchiveError::EmptyPlaintext)) => {
            Err(invalid("the file is empty"))
        }
        Err(error) => Err(no_room(error)),
    }
}

/// Reads on without keeping anything, up to `most` bytes.
async fn drain(field: &mut Field<'_>, most: u64) {
    let mut dropped = 0u64;
    while let Ok(Some(chunk)) = field.chunk().await {
        dropped = dropped.saturating_add(chunk.len() as u64);
        if dropped > most {
            return;
        }
    }
}

/// Opens what came, checks it, and puts it where tasks find it.
async fn store(
    app: &Arc<App>,
    user: Address,
    fields: Fields,
    incoming: Incoming,
) -> Result<DatasetRow, ApiError> {
    if let Incoming::File { name, .. } = &incoming {
        check_name(name)?;
    }
    let kept = app.store.dataset_bytes(user).await?;
    let worker = Arc::clone(app);
    app.run_blocking(move || {
        let received = match &incoming {
            Incoming::File { folder, key, .. } => {
                open_to_memory(&folder.path().join("file"), key, None).map_err(ApiError::internal)?
            }
            Incoming::Parts(path) => std::fs::read(path).map(Zeroizing::new).map_err(ApiError::internal)?,
        };
        let plaintext = match fields.seal_version.as_deref() {
            None if matches!(incoming, Incoming::Parts(_)) => {
                let text = "what comes in parts is kept as it comes, so it must be sealed: sealVersion 1";
                return Err(ApiError::bad_request("seal_version", text).field("sealVersion"));
            }
            None => received,
            Some("1" | "v1") => open_sealed(&worker, user, &fields, |key, plaintext| {
                sealed_archive::decrypt_signed_by(&mut &received[..], plaintext, key, user)
            })?,
            Some("2" | "v2") => open_sealed(&worker, user, &fields, |key, plaintext| {
                sealed_archive::decrypt_personally_signed_by(&mut &received[..], plaintext, key, user)
            })?,
            Some(_) => {
                return Err(ApiError::bad_request("seal_version", "sealVersion must be 1 or 2").field("sealVersion"));
            }
        };
        let bytes = plaintext.len() as u64;
        if bytes > worker.config.limits.max_dataset_bytes {
            return Err(too_large(&worker));
        }
        check_dataset(plaintext.as_slice()).map_err(|error| invalid(&error.to_string()))?;
        let hash = keccak256(plaintext.as_slice()).to_string();
        if fields.dataset_hash.as_deref().is_some_and(|claimed| !claimed.trim().eq_ignore_ascii_case(&hash)) {
            return Err(invalid("the content does not have the datasetHash that was sent with it"));
        }
        if kept.saturating_add(bytes) > worker.config.limits.max_dataset_bytes_per_user {
            let text = "this user keeps as many datasets as allowed; they are removed some days after their last use";
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "dataset_quota", text));
        }
        let user = format!("{user:#x}");
        let key = FileKey::random();
        let row = DatasetRow {
            sealed_key: worker.vault.seal_key(KeyUse::Dataset, &format!("{user}/{hash}"), &key),
            user_address: user,
            hash,
            file: uuid::Uuid::new_v4().to_string(),
            bytes,
            created_ms: worker.clock.now().0,
        };
        seal_to_file(&worker.vault.dataset_path(&row.file), &mut plaintext.as_slice(), &key, None).map_err(no_room)?;
        Ok(row)
    })
    .await
    .map(|row| (app, row))
    .map(insert)?
    .await
}

/// Stores the row; the file of a dataset that the user has already is removed again.
async fn insert((app, row): (&Arc<App>, DatasetRow)) -> Result<DatasetRow, ApiError> {
    let is_new = app.store.insert_dataset(&row).await;
    if !matches!(is_new, Ok(true)) {
        remove(&app.vault.dataset_path(&row.file));
    }
    is_new?;
    Ok(row)
}

/// The plaintext of a sealed file, which `decrypt` reads with the key in the form and whose signer it checks.
fn open_sealed(
    app: &App,
    user: Address,
    fields: &Fields,
    decrypt: impl FnOnce(&FileKey, &mut Vec<u8>) -> Result<(), ArchiveError>,
) -> Result<Zeroizing<Vec<u8>>, ApiError> {
    let missing = |name: &'static str| {
        ApiError::bad_request(
            "sealed_upload",
            format!("a sealed upload needs the part {name}"),
        )
        .field(name)
    };
    let sealed_key = fields
        .sealed_key
        .as_deref()
        .ok_or_else(|| missing("sealedKey"))?;
    // The seal is bound to the hash of the plaintext, which nobody can compute before it is open.
    let hash = fields
        .dataset_hash
        .as_deref()
        .ok_or_else(|| missing("datasetHash"))?
        .trim()
        .to_lowercase();
    let context = SealContext {
        chain_id: app.chain.chain_id(),
        provider: app.provider,
        user,
        purpose: SealPurpose::Dataset,
        id: &hash,
    };
    let key = open_key(
        app.identity.keys().sealing.expose_secret(),
        &context,
        sealed_key.trim(),
    )
    .map_err(|error| ApiError::bad_request("sealed_key", error.to_string()).field("sealedKey"))?;
    let mut plaintext = Zeroizing::new(Vec::new());
    decrypt(&key, &mut plaintext)
        .map_err(|error| ApiError::bad_request("sealed_file", error.to_string()).field("file"))?;
    Ok(plaintext)
}

async fn text(field: Field<'_>) -> Result<String, ApiError> {
    let mut field = field;
    let mut bytes = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(broken_form)? {
        if bytes.len() + chunk.len() > MAX_FIELD_BYTES {
            return Err(ApiError::bad_request(
                "field_too_long",
                "a text part of the form is too long",
            ));
        }
        bytes.extend_from_slice(&chunk);
    }
    String::from_utf8(bytes)
        .map_err(|_| ApiError::bad_request("invalid_body", "a text part of the form is not UTF-8"))
}

fn broken_form(error: MultipartError) -> ApiError {
    // The reader takes a body that ends early for an error of ours.
    let status = match error.status() {
        status if status.is_server_error() => StatusCode::BAD_REQUEST,
        status => status,
    };
    ApiError::new(
        status,
        "invalid_body",
        format!("the form cannot be read: {}", error.body_text()),
    )
}

pub(super) fn too_large(app: &App) -> ApiError {
    let text = format!(
        "File too large. Maximum size is {}MB",
        app.config.limits.max_dataset_bytes / (1024 * 1024)
    );
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "file_too_large", text).field("file")
}

fn invalid(problem: &str) -> ApiError {
    ApiError::bad_request(
        "invalid_dataset",
        format!("save dataset: invalid JSONL format: {problem}"),
    )
    .field("file")
}

pub(super) fn no_room(error: impl std::fmt::Display) -> ApiError {
    tracing::error!(%error, "an upload could not be written");
    ApiError::new(
        StatusCode::INSUFFICIENT_STORAGE,
        "no_room",
        "the provider cannot store the file at the moment",
    )
}

fn remove(path: &FilePath) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(%error, "a file could not be removed");
    }
}

/// What came over the network, read by a thread.
struct ChannelReader {
    receiver: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Read for ChannelReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(next) => self.current = next,
                None => return Ok(0),
            }
        }
        let count = self.current.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_of_json_files_pass() {
        for good in ["d.jsonl", "D.JSON", "a b.jsonl"] {
            check_name(good).unwrap();
        }
        for bad in [
            "",
            "d.txt",
            "../d.jsonl",
            "a/d.jsonl",
            "a\\d.jsonl",
            "jsonl",
        ] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
