//! Sealed datasets that arrive in parts, so that a broken connection costs one part and not the whole transfer.
//!
//! The parts are pieces of a file that this enclave alone can open, and are kept as they came. A user has one such file
//! under way: a new one takes the place of an older one, a forgotten one is removed, and none survives a restart (the
//! client begins again then).

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use alloy_primitives::Address;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use serde::Deserialize;
use zerog_protocol::fine_tuning_api::{
    UPLOAD_SIGNATURE_HEADER, UPLOAD_TIMESTAMP_HEADER, UploadPosition,
};

use super::auth;
use super::datasets::{largest_file, no_room, too_large, verify};
use super::error::ApiError;
use crate::app::App;
use crate::vault::create_private_folder;

/// How the folders of users with a file under way begin.
const FOLDER: &str = "parts-";
/// Digits of an upload's id.
const ID_DIGITS: usize = 32;
/// A file that has not grown for so long is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);

/// Where a part belongs.
#[derive(Debug, Deserialize)]
pub(crate) struct PartQuery {
    /// Its first byte in the file.
    offset: u64,
}

/// `PUT /v1/user/{addr}/dataset/parts/{id}?offset=N`: keeps the part if the file ends at `offset`. The answer says where
/// the file ends now, which is where the next part belongs.
pub(crate) async fn receive(
    State(app): State<Arc<App>>,
    Path((address, id)): Path<(String, String)>,
    Query(query): Query<PartQuery>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<UploadPosition>, ApiError> {
    let user = auth::address(&address)?;
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let (signature, timestamp) = (
        header(UPLOAD_SIGNATURE_HEADER),
        header(UPLOAD_TIMESTAMP_HEADER),
    );
    verify(&app, signature, timestamp, &address, user)?;
    let path = file_of(&app, user, &id)?;
    let slot = match query.offset {
        0 => app.limiter.transfer(user)?,
        _ => app.limiter.transfer_under_way(user)?,
    };
    if query.offset.saturating_add(body.len() as u64) > largest_file(&app) {
        return Err(too_large(&app));
    }
    let offset = app
        .run_blocking(move || append(&path, query.offset, &body))
        .await
        .map_err(no_room)?;
    drop(slot);
    Ok(Json(UploadPosition { offset }))
}

/// The file that a user's parts make, if there is any.
pub(super) fn finished(app: &App, user: Address, id: &str) -> Result<Option<PathBuf>, ApiError> {
    let path = file_of(app, user, id)?;
    Ok(path.is_file().then_some(path))
}

fn file_of(app: &App, user: Address, id: &str) -> Result<PathBuf, ApiError> {
    if id.len() != ID_DIGITS || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let text = format!("the id of an upload has {ID_DIGITS} hexadecimal digits");
        return Err(ApiError::bad_request("upload_id", text).field("uploadId"));
    }
    let folder = app.vault.incoming().join(format!("{FOLDER}{user:x}"));
    Ok(folder.join(id.to_ascii_lowercase()))
}

/// Writes `bytes` at `offset` if the file ends there; returns where it ends.
fn append(path: &FilePath, offset: u64, bytes: &[u8]) -> std::io::Result<u64> {
    if offset == 0 && !path.exists() {
        let folder = path.parent().expect("a file in a user's folder");
        match std::fs::remove_dir_all(folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => create_private_folder(folder)?,
        }
        File::create_new(path)?;
    }
    let mut file = match OpenOptions::new().write(true).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        other => other?,
    };
    let end = file.metadata()?.len();
    if end != offset {
        return Ok(end);
    }
    file.seek(SeekFrom::Start(offset))?;
    if let Err(error) = file.write_all(bytes) {
        // Half a part is worse than none: the next one would be refused.
        file.set_len(offset)?;
        return Err(error);
    }
    Ok(offset + bytes.len() as u64)
}

/// Removes what nobody has added to for a while.
pub(crate) fn sweep(incoming: &FilePath, now: SystemTime) -> std::io::Result<()> {
    for folder in std::fs::read_dir(incoming)? {
        let folder = folder?;
        if !folder.file_name().to_string_lossy().starts_with(FOLDER) {
            continue;
        }
        let mut newest = folder.metadata()?.modified()?;
        for file in std::fs::read_dir(folder.path())? {
            newest = newest.max(file?.metadata()?.modified()?);
        }
        if now
            .duration_since(newest)
            .is_ok_and(|age| age > FORGOTTEN_AFTER)
        {
            std::fs::remove_dir_all(folder.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_kept_in_order_alone() {
        let incoming = tempfile::tempdir().unwrap();
        let folder = incoming.path().join("parts-aa");
        let (one, two) = (folder.join("1"), folder.join("2"));
        assert_eq!(
            append(&one, 4, b"late").unwrap(),
            0,
            "it begins at its beginning"
        );
        assert_eq!(append(&one, 0, b"abcd").unwrap(), 4);
        assert_eq!(append(&one, 0, b"abcd").unwrap(), 4, "heard twice");
        assert_eq!(append(&one, 9, b"hole").unwrap(), 4);
        assert_eq!(append(&one, 4, b"ef").unwrap(), 6);
        assert_eq!(std::fs::read(&one).unwrap(), b"abcdef");
        assert_eq!(append(&two, 0, b"new").unwrap(), 3);
        assert!(!one.exists(), "a user has one file under way");

        let now = SystemTime::now();
        sweep(incoming.path(), now).unwrap();
        assert!(two.exists());
        sweep(
            incoming.path(),
            now + FORGOTTEN_AFTER + Duration::from_secs(60),
        )
        .unwrap();
        assert!(!folder.exists());
    }
}
