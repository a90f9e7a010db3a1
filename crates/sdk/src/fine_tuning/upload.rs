//! How a dataset gets to a provider: in one form, or, sealed and large, in parts that a broken connection does not undo.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use reqwest::multipart::{Form, Part};
use zerog_protocol::fine_tuning_api::{
    UPLOAD_SIGNATURE_HEADER, UPLOAD_TIMESTAMP_HEADER, UploadPosition,
};
use zerog_protocol::limits::{SIGNATURE_MAX_AGE_S, UPLOAD_PART_BYTES};
use zerog_protocol::signing;

use crate::broker::Context;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::provider_client::{Answer, Backoff, join, parse_json};
use crate::wallet::Wallet;

const OPERATION: &str = "upload dataset";
/// Times in a row that a part may fail: with the pauses between them, an interruption of about a minute.
const MOST_FAILURES: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long a person's signature is used again, in seconds: well before providers call it too old.
const CONFIRMED_FOR_S: u64 = SIGNATURE_MAX_AGE_S / 2;

/// A dataset encrypted under a fresh key, and that key sealed to the enclave.
pub(super) struct SealedFile {
    /// `sealVersion` of the form.
    pub(super) version: &'static str,
    pub(super) sealed_key: String,
    pub(super) file: File,
    /// Keccak hash of the plaintext.
    pub(super) dataset_hash: String,
}

/// One upload to one provider.
pub(super) struct Upload<'a> {
    pub(super) context: &'a Context,
    pub(super) wallet: &'a Wallet,
    /// Base URL of the provider.
    pub(super) provider_url: &'a str,
    /// The dataset, whose name and, unless it is sealed, content are sent.
    pub(super) path: &'a Path,
    /// What a person confirmed last, and the time in seconds that is signed.
    pub(super) signed: Mutex<Option<(u64, String)>>,
}

impl Upload<'_> {
    /// Sends the file and returns the provider's answer.
    pub(super) async fn send(
        &self,
        sealed: Option<SealedFile>,
        on_progress: &mut (impl FnMut(Progress) + Send),
    ) -> Result<Answer> {
        let Some(mut sealed) = sealed else {
            let file = File::open(self.path).map_err(|error| self.failed(error))?;
            return self.send_form(self.fields().await?, file).await;
        };
        let bytes = sealed
            .file
            .metadata()
            .map_err(|error| self.failed(error))?
            .len();
        if bytes > UPLOAD_PART_BYTES as u64
            && let Some(id) = self
                .send_parts(&mut sealed.file, bytes, on_progress)
                .await?
        {
            return self.finish(&sealed, &id).await;
        }
        let form = self.sealed_fields(&sealed).await?;
        self.send_form(form, sealed.file).await
    }

    /// The whole file in one form, read from disk as it is sent.
    async fn send_form(&self, form: Form, mut file: File) -> Result<Answer> {
        let bytes = file
            .seek(SeekFrom::End(0))
            .and_then(|bytes| file.rewind().map(|()| bytes))
            .map_err(|error| self.failed(error))?;
        let name = self.path.file_name().map_or_else(
            || "dataset.jsonl".to_owned(),
            |name| name.to_string_lossy().into_owned(),
        );
        let body = reqwest::Body::from(tokio::fs::File::from_std(file));
        let part = Part::stream_with_length(body, bytes)
            .file_name(name)
            .mime_str("application/octet-stream")
            .expect("a fixed, valid media type");
        // One minute, and half a minute more for every 10 MiB begun.
        let timeout = Duration::from_secs(60 + 30 * bytes.div_ceil(10 << 20));
        self.context
            .http
            .post_form(OPERATION, &self.url(""), form.part("file", part), timeout)
            .await
    }

    /// Sends the file in parts and returns the id under which the provider keeps them; nothing when it takes no parts.
    async fn send_parts(
        &self,
        file: &mut File,
        bytes: u64,
        on_progress: &mut (impl FnMut(Progress) + Send),
    ) -> Result<Option<String>> {
        let id = hex::encode(rand::random::<[u8; 16]>());
        let (mut offset, mut failures) = (0, 0);
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        while offset < bytes {
            let sent = self.send_part(file, &id, offset).await;
            let error = match sent {
                Ok(end) if end > offset && end <= bytes => {
                    offset = end;
                    failures = 0;
                    backoff.reset();
                    on_progress(Progress::Transfer {
                        done_bytes: offset,
                        total_bytes: Some(bytes),
                    });
                    continue;
                }
                Ok(end) => {
                    // It has lost what it had, or something is wrong with it.
                    offset = end.min(bytes);
                    Error::ProviderAnswer {
                        operation: OPERATION,
                        reason: format!("it has {end} bytes of {bytes} after a part was sent"),
                    }
                }
                Err(Error::ProviderRefused {
                    status: 404 | 405, ..
                }) if offset == 0 => return Ok(None),
                Err(error) if error.is_passing() => error,
                Err(error) => return Err(error),
            };
            failures += 1;
            if failures >= MOST_FAILURES {
                return Err(error);
            }
            on_progress(Progress::notice(format!(
                "The upload was interrupted at {offset} of {bytes} bytes and goes on there: {error}"
            )));
            backoff.pause(&error).await;
        }
        Ok(Some(id))
    }

    async fn send_part(&self, file: &mut File, id: &str, offset: u64) -> Result<u64> {
        let mut part = Vec::with_capacity(UPLOAD_PART_BYTES);
        file.seek(SeekFrom::Start(offset))
            .and_then(|_| file.take(UPLOAD_PART_BYTES as u64).read_to_end(&mut part))
            .map_err(|error| self.failed(error))?;
        let (signature, timestamp) = self.signature().await?;
        let headers = [
            (UPLOAD_SIGNATURE_HEADER, signature),
            (UPLOAD_TIMESTAMP_HEADER, timestamp),
        ];
        let url = self.url(&format!("/parts/{id}?offset={offset}"));
        let http = &self.context.http;
        let answer = http.put_part(OPERATION, &url, headers, part).await?;
        let position: UploadPosition = parse_json(OPERATION, &answer.body)?;
        Ok(position.offset)
    }

    /// Tells the provider that all parts are there. It may be told twice.
    async fn finish(&self, sealed: &SealedFile, id: &str) -> Result<Answer> {
        let mut failures = 0;
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let form = self
                .sealed_fields(sealed)
                .await?
                .text("uploadId", id.to_owned());
            let timeout = Duration::from_secs(300);
            let http = &self.context.http;
            match http
                .post_form(OPERATION, &self.url(""), form, timeout)
                .await
            {
                Err(error) if error.is_passing() && failures + 1 < MOST_FAILURES => {
                    failures += 1;
                    backoff.pause(&error).await;
                }
                other => return other,
            }
        }
    }

    async fn sealed_fields(&self, sealed: &SealedFile) -> Result<Form> {
        Ok(self
            .fields()
            .await?
            .text("sealVersion", sealed.version)
            .text("sealedKey", sealed.sealed_key.clone())
            .text("datasetHash", sealed.dataset_hash.clone()))
    }

    async fn fields(&self) -> Result<Form> {
        let (signature, timestamp) = self.signature().await?;
        Ok(Form::new()
            .text("signature", signature)
            .text("timestamp", timestamp))
    }

    /// A fresh one each time, because providers take none that is older than minutes; what a person confirmed is used
    /// as long as that allows.
    async fn signature(&self) -> Result<(String, String)> {
        let timestamp_s = Context::now_s();
        if self.wallet.asks_a_person()
            && let Some((signed_at_s, signature)) = self.signed().clone()
            && timestamp_s < signed_at_s + CONFIRMED_FOR_S
        {
            return Ok((signature, signed_at_s.to_string()));
        }
        let user = self.wallet.address().to_string();
        let digest = signing::dataset_upload_hash(&user, timestamp_s);
        let signature = self.wallet.sign_personal("the upload", digest).await?;
        *self.signed() = Some((timestamp_s, signature.clone()));
        Ok((signature, timestamp_s.to_string()))
    }

    fn signed(&self) -> MutexGuard<'_, Option<(u64, String)>> {
        self.signed
            .lock()
            .expect("no code panics while it holds this lock")
    }

    fn url(&self, rest: &str) -> String {
        let path = format!("/v1/user/{}/dataset{rest}", self.wallet.address());
        join(self.provider_url, &path)
    }

    fn failed(&self, error: std::io::Error) -> Error {
        Error::file("read", self.path, error)
    }
}
