//! Downloads that survive interruptions: ranged, resumable, checked before they get their name.
//!
//! Bytes go to `<name>.partial`, which stays when the process is stopped and is continued by the next call. The caller
//! checks the whole file and then publishes it with [`publish`], which syncs and renames.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::BoxFuture;
use reqwest::StatusCode;
use tokio::io::AsyncWriteExt;

use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::provider_client::{Backoff, ProviderClient, unreachable};

/// Attempts without a new byte before giving up.
const FRUITLESS_ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const MAX_PAUSE: Duration = Duration::from_secs(15);
/// Progress is told at most once per this many bytes.
const REPORT_BYTES: u64 = 256 * 1024;
const OPERATION: &str = "download the adapter";

/// The name of an unfinished download.
pub(crate) fn partial_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    path.with_file_name(name)
}

/// Downloads by repeated POST with a fresh body each time (its signature is dated) until the file is complete.
/// Continues an earlier `.partial`; returns its path and whether bytes of an earlier run are in it.
pub(crate) async fn download_by_post<'a, B: serde::Serialize + Sync>(
    http: &ProviderClient,
    url: &str,
    body: &(impl Fn() -> BoxFuture<'a, Result<B>> + Sync),
    destination: &Path,
    max_bytes: u64,
    on_progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<(PathBuf, bool)> {
    let partial = partial_path(destination);
    let kept = std::fs::metadata(&partial).map_or(0, |metadata| metadata.len());
    let mut done = kept;
    let mut fruitless = 0;
    let mut backoff = Backoff::new(FIRST_PAUSE, MAX_PAUSE);
    loop {
        let before = done;
        match attempt(
            http,
            url,
            &body().await?,
            &partial,
            &mut done,
            max_bytes,
            on_progress,
        )
        .await
        {
            Ok(()) => return Ok((partial, kept > 0)),
            Err(error) if !error.is_passing() => {
                if matches!(error, Error::DiskFull { .. }) {
                    let _ = std::fs::remove_file(&partial);
                }
                return Err(error);
            }
            Err(error) => {
                if done > before {
                    fruitless = 0;
                    backoff.reset();
                } else {
                    fruitless += 1;
                }
                if fruitless >= FRUITLESS_ATTEMPTS {
                    return Err(error);
                }
                tracing::debug!(%error, done_bytes = done, "download interrupted, going on");
                backoff.pause(&error).await;
            }
        }
    }
}

async fn attempt(
    http: &ProviderClient,
    url: &str,
    body: &impl serde::Serialize,
    partial: &Path,
    done: &mut u64,
    max_bytes: u64,
    on_progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<()> {
    let mut response = http.post_range(OPERATION, url, body, *done).await?;
    let total = match response.status() {
        StatusCode::PARTIAL_CONTENT => match content_range(&response) {
            Some((start, total)) if start == *done => total,
            _ => {
                restart(partial, done)?;
                return Err(broken(
                    url,
                    "the provider sent another part of the file than was asked for",
                ));
            }
        },
        StatusCode::RANGE_NOT_SATISFIABLE => {
            // `bytes */N`: everything is here already, or the kept bytes belong to another file.
            if unsatisfied_total(&response) == Some(*done) && *done > 0 {
                return Ok(());
            }
            restart(partial, done)?;
            return Err(broken(
                url,
                "the kept part does not fit the file; starting over",
            ));
        }
        // The provider ignored the range and sends everything.
        _ => {
            restart(partial, done)?;
            response.content_length()
        }
    };
    if total.unwrap_or(0) > max_bytes {
        return Err(Error::ProviderAnswer {
            operation: OPERATION,
            reason: format!("more than {max_bytes} bytes"),
        });
    }
    let failed = |error| Error::file("write", partial, error);
    let mut file = tokio::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(partial)
        .await
        .map_err(failed)?;
    let mut reported = *done;
    loop {
        let chunk = match response.chunk().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            Err(error) => {
                file.flush().await.map_err(failed)?;
                return Err(unreachable(url, &error));
            }
        };
        if *done + chunk.len() as u64 > max_bytes {
            return Err(Error::ProviderAnswer {
                operation: OPERATION,
                reason: format!("more than {max_bytes} bytes"),
            });
        }
        file.write_all(&chunk).await.map_err(failed)?;
        *done += chunk.len() as u64;
        if *done - reported >= REPORT_BYTES {
            reported = *done;
            on_progress(Progress::Transfer {
                done_bytes: *done,
                total_bytes: total,
            });
        }
    }
    file.flush().await.map_err(failed)?;
    on_progress(Progress::Transfer {
        done_bytes: *done,
        total_bytes: total,
    });
    match total {
        Some(total) if *done < total => Err(broken(url, "the download was cut short")),
        _ if *done == 0 => Err(broken(url, "the provider sent an empty file")),
        _ => Ok(()),
    }
}

fn broken(url: &str, reason: &str) -> Error {
    Error::ProviderUnreachable {
        url: url.to_owned(),
        reason: reason.to_owned(),
    }
}

fn restart(partial: &Path, done: &mut u64) -> Result<()> {
    *done = 0;
    match std::fs::remove_file(partial) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::file("remove", partial, error))
        }
        _ => Ok(()),
    }
}

/// First byte and total length of `Content-Range: bytes 5-9/10`.
fn content_range(response: &reqwest::Response) -> Option<(u64, Option<u64>)> {
    let value = response.headers().get("content-range")?.to_str().ok()?;
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, total.trim().parse().ok()))
}

fn unsatisfied_total(response: &reqwest::Response) -> Option<u64> {
    response
        .headers()
        .get("content-range")?
        .to_str()
        .ok()?
        .strip_prefix("bytes */")?
        .trim()
        .parse()
        .ok()
}

/// Gives a checked file its name: sync, rename, sync of the folder.
pub(crate) fn publish(temporary: &Path, destination: &Path) -> Result<()> {
    // Windows syncs only what is open for writing.
    let synced = std::fs::OpenOptions::new()
        .write(true)
        .open(temporary)
        .and_then(|file| file.sync_all());
    synced.map_err(|error| Error::file("write", temporary, error))?;
    std::fs::rename(temporary, destination)
        .map_err(|error| Error::file("write", destination, error))?;
    sync_folder(destination);
    Ok(())
}

/// Not every file system can sync a folder; the file itself is safe by now.
pub(crate) fn sync_folder(path: &Path) {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    if let Ok(folder) = std::fs::File::open(folder) {
        let _ = folder.sync_all();
    }
}
