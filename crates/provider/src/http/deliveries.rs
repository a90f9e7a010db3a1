//! The encrypted result, for its owner.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;
use zerog_protocol::fine_tuning_api::LoraDownloadRequest;
use zerog_protocol::signing;

use super::error::ApiError;
use super::{auth, tasks};
use crate::app::App;

/// Bytes read from disk at a time.
const READ_BYTES: usize = 256 * 1024;

/// `POST /v1/user/{addr}/task/{id}/lora`: the raw encrypted file, whole or from the byte that `Range` names.
pub(crate) async fn lora(
    State(app): State<Arc<App>>,
    Path((address, id)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    let user = auth::address(&address)?;
    let id = tasks::parse_id(&id)?;
    let request: LoraDownloadRequest = serde_json::from_slice(&body)
        .map_err(|error| ApiError::bad_request("invalid_body", format!("bind ctx: {error}")))?;
    let failed = |error| ApiError::from(error).context("authentication failed: ");
    signing::check_timestamp(request.timestamp, app.clock.system_ms() / 1000).map_err(failed)?;
    let row = app
        .store
        .task(&id.to_string())
        .await?
        .ok_or_else(|| ApiError::not_found("task_not_found", format!("task {id} not found")))?;
    if row.task.user != user {
        return Err(ApiError::forbidden("task does not belong to this user"));
    }
    signing::verify_personal(
        signing::lora_download_hash(id, request.timestamp),
        &request.signature,
        user,
    )
    .map_err(failed)?;
    let slot = app.limiter.transfer(user)?;
    if !row.task.state.is_downloadable() {
        let text = "task is not ready for download. Please wait for 'Delivered' status";
        return Err(ApiError::conflict("not_ready", text));
    }
    let path = app.vault.archive_path(&id.to_string());
    let missing = |_| ApiError::unavailable("file_missing", "Service Unavailable");
    let mut file = tokio::fs::File::open(&path).await.map_err(missing)?;
    let length = file.metadata().await.map_err(missing)?.len();
    let range = range(&headers, length);
    let (first, last) = match range {
        Range::Whole => (0, length.saturating_sub(1)),
        Range::Part(first, last) => (first, last),
        Range::Unsatisfiable => {
            let mut response = ApiError::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "range",
                "the file is shorter than that",
            )
            .into_response();
            set(
                &mut response,
                header::CONTENT_RANGE,
                &format!("bytes */{length}"),
            )?;
            return Ok(response);
        }
    };
    file.seek(std::io::SeekFrom::Start(first))
        .await
        .map_err(missing)?;
    let count = last - first + 1;
    // The place of the user is taken until the last byte has gone.
    let stream = ReaderStream::with_capacity(file.take(count), READ_BYTES).map(move |chunk| {
        let _ = &slot;
        chunk
    });
    let mut response = Body::from_stream(stream).into_response();
    set(
        &mut response,
        header::CONTENT_TYPE,
        "application/octet-stream",
    )?;
    set(&mut response, header::CONTENT_LENGTH, &count.to_string())?;
    set(&mut response, header::ACCEPT_RANGES, "bytes")?;
    set(
        &mut response,
        header::CONTENT_DISPOSITION,
        &format!("attachment; filename=lora_encrypted_{id}.data"),
    )?;
    if let Some(root) = row.task.root_hash {
        set(&mut response, header::ETAG, &format!("\"{root}\""))?;
    }
    if matches!(range, Range::Part(..)) {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        set(
            &mut response,
            header::CONTENT_RANGE,
            &format!("bytes {first}-{last}/{length}"),
        )?;
    }
    Ok(response)
}

fn set(response: &mut Response, name: header::HeaderName, value: &str) -> Result<(), ApiError> {
    response.headers_mut().insert(
        name,
        HeaderValue::from_str(value).map_err(ApiError::internal)?,
    );
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Range {
    Whole,
    /// First and last byte.
    Part(u64, u64),
    Unsatisfiable,
}

/// Reads a single byte range; several ranges or another unit mean the whole file, as the standard allows.
fn range(headers: &HeaderMap, length: u64) -> Range {
    let Some(text) = headers
        .get(header::RANGE)
        .and_then(|value| value.to_str().ok())
    else {
        return Range::Whole;
    };
    let Some((first, last)) = text
        .trim()
        .strip_prefix("bytes=")
        .and_then(|text| text.split_once('-'))
    else {
        return Range::Whole;
    };
    let end = length.saturating_sub(1);
    match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), _) if first >= length => Range::Unsatisfiable,
        (Ok(first), Ok(last)) if last >= first => Range::Part(first, last.min(end)),
        (Ok(first), Err(_)) if last.trim().is_empty() => Range::Part(first, end),
        (Err(_), Ok(count)) if first.trim().is_empty() && count > 0 => {
            Range::Part(length.saturating_sub(count), end)
        }
        _ => Range::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_ranges_are_understood() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, text.parse().unwrap());
            range(&headers, 100)
        };
        assert_eq!(of("bytes=0-9"), Range::Part(0, 9));
        assert_eq!(of("bytes=40-"), Range::Part(40, 99));
        assert_eq!(of("bytes=90-500"), Range::Part(90, 99));
        assert_eq!(of("bytes=-10"), Range::Part(90, 99));
        assert_eq!(of("bytes=100-"), Range::Unsatisfiable);
        for whole in ["bytes=9-3", "bytes=0-1,4-5", "lines=0-1", "bytes=x-"] {
            assert_eq!(of(whole), Range::Whole, "{whole}");
        }
        assert_eq!(range(&HeaderMap::new(), 100), Range::Whole);
    }
}
