//! The node's RPC and plain file routes over HTTP.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use alloy_primitives::B256;
use axum::{
    Json, Router,
    body::{Body, Bytes, HttpBody as _},
    extract::{
        DefaultBodyLimit, FromRequest, Path, Query, Request as HttpRequest, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::{HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures::stream;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json, value::RawValue};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};

use super::{
    Shared, flow_log::StoredSubmission, store::Presence,
    upload_cache::MAX_FILE_BYTES as MAX_CACHED_FILE_BYTES,
};
use crate::{
    Error,
    indexer::{Preference, select_covering},
    merkle::{InvalidSegment, SECTOR_BYTES, SEGMENT_SECTORS, check_segment},
    rpc_types::{
        FileInfo, Segment, SegmentWithProof, SequenceOrRoot, ShardedNode, ShardedNodes, Status,
    },
};

/// The public nodes' limit, which clients rely on for batches of segments.
const MAX_BODY_BYTES: usize = 100 << 20;
/// Bodies in memory at the same time.
const CONCURRENT_REQUESTS: usize = 8;
/// A client that sends slower than this blocks others.
const BODY_TIMEOUT: Duration = Duration::from_secs(120);
/// Syncing more than this may take longer than a client waits for an answer.
const MAX_SYNC_IN_CALL_BYTES: u64 = 16 << 20;
/// Largest file of the plain route, as the public indexers.
const MAX_PLAIN_FILE_BYTES: u64 = 100 << 20;

#[derive(Clone)]
struct Front {
    shared: Arc<Shared>,
    permits: Arc<Semaphore>,
}

pub(super) async fn serve(
    shared: Arc<Shared>,
    listener: TcpListener,
    mut stopped: watch::Receiver<bool>,
) {
    let front = Front {
        shared,
        permits: Arc::new(Semaphore::new(CONCURRENT_REQUESTS)),
    };
    let router = Router::new()
        .route("/", post(answer).fallback(only_post))
        .route("/file", get(plain_file).fallback(only_get))
        .route("/file/info/{id}", get(plain_info).fallback(only_get))
        .route("/files/info", get(plain_infos).fallback(only_get))
        .route("/node/status", get(plain_status).fallback(only_get))
        .fallback(no_route)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(front);
    let until_stopped = async move {
        // An error means that the handle was dropped, which is a stop as well.
        let _ = stopped.changed().await;
    };
    if let Err(error) = axum::serve(listener, router)
        .with_graceful_shutdown(until_stopped)
        .await
    {
        tracing::error!(%error, "the storage node stops serving");
    }
}

// ---- JSON-RPC ----

/// The error object of the public nodes. Clients match texts and details, so they are kept word for word.
#[derive(Debug)]
struct Refusal {
    code: i64,
    message: String,
    data: Option<String>,
}

impl Refusal {
    fn plain(message: impl Into<String>) -> Self {
        Self {
            code: -32_000,
            message: message.into(),
            data: None,
        }
    }

    fn parameter(name: &str, data: impl Into<String>) -> Self {
        Self {
            code: -32_602,
            message: format!("Invalid params: {name}"),
            data: Some(data.into()),
        }
    }

    /// The body is no JSON.
    fn unreadable(data: impl Into<String>) -> Self {
        Self {
            code: -32_700,
            message: "Parse error".to_owned(),
            data: Some(data.into()),
        }
    }

    /// The request as a whole is not one that the node takes.
    fn request(data: impl Into<String>) -> Self {
        Self {
            code: -32_600,
            message: "Invalid Request".to_owned(),
            data: Some(data.into()),
        }
    }

    fn internal(data: impl Into<String>) -> Self {
        Self {
            code: -32_603,
            message: "Internal error".to_owned(),
            data: Some(data.into()),
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        tracing::error!(%error, "the storage node's disk fails");
        Self::internal("storage failed")
    }
}

impl From<InvalidSegment> for Refusal {
    fn from(error: InvalidSegment) -> Self {
        let parameter = match error {
            InvalidSegment::Index => "index",
            InvalidSegment::Length => "data",
            InvalidSegment::ProofForm | InvalidSegment::Mismatch | InvalidSegment::Padding => {
                "proof"
            }
        };
        Self::parameter(parameter, error.to_string())
    }
}

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    method: String,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
}

async fn answer(State(front): State<Front>, request: HttpRequest) -> Response {
    // What says beforehand that it is too long is not read.
    if request.body().size_hint().lower() > MAX_BODY_BYTES as u64 {
        return too_long();
    }
    let Ok(_permit) = front.permits.acquire().await else {
        let refusal = Refusal::internal("the node is stopping; ask again later");
        return refused(StatusCode::SERVICE_UNAVAILABLE, refusal);
    };
    let body = match tokio::time::timeout(BODY_TIMEOUT, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => body,
        Ok(Err(error)) if error.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            return too_long();
        }
        Ok(Err(error)) => {
            let reason = "the body ended before its announced length; send it again";
            return refused(error.status(), Refusal::unreadable(reason));
        }
        Err(_) => {
            let seconds = BODY_TIMEOUT.as_secs();
            let reason = format!("the body did not arrive within {seconds} s; send it again");
            return refused(StatusCode::REQUEST_TIMEOUT, Refusal::request(reason));
        }
    };
    match tokio::task::spawn_blocking(move || respond(&front.shared, &body)).await {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(_) => {
            let refusal = Refusal::internal("the call failed inside the node; see its log");
            refused(StatusCode::INTERNAL_SERVER_ERROR, refusal)
        }
    }
}

fn too_long() -> Response {
    let reason = format!("the body exceeds {MAX_BODY_BYTES} bytes; send fewer segments");
    refused(StatusCode::PAYLOAD_TOO_LARGE, Refusal::request(reason))
}

/// What HTTP itself refuses, still as an answer that a JSON-RPC client reads.
fn refused(status: StatusCode, refusal: Refusal) -> Response {
    let text = envelope_of(Err(refusal), "null");
    let json = [(header::CONTENT_TYPE, "application/json")];
    (status, json, text).into_response()
}

async fn only_post(method: Method) -> Response {
    let refusal = Refusal::request(format!("calls are sent with POST, not {method}"));
    let mut response = refused(StatusCode::METHOD_NOT_ALLOWED, refusal);
    let allowed = HeaderValue::from_static("POST");
    response.headers_mut().insert(header::ALLOW, allowed);
    response
}

fn respond(shared: &Arc<Shared>, body: &[u8]) -> String {
    let (id, result) = match serde_json::from_slice::<Request<'_>>(body) {
        Ok(request) => {
            let parameters = request.params.map_or("[]", RawValue::get);
            (
                request.id.map_or("null", RawValue::get),
                call(shared, &request.method, parameters),
            )
        }
        Err(error) => ("null", Err(Refusal::unreadable(error.to_string()))),
    };
    envelope_of(result, id)
}

/// `id` is JSON text, sent back as it came.
fn envelope_of(result: Result<String, Refusal>, id: &str) -> String {
    match result {
        Ok(value) => format!(r#"{{"jsonrpc":"2.0","result":{value},"id":{id}}}"#),
        Err(Refusal {
            code,
            message,
            data,
        }) => {
            let mut error = json!({"code": code, "message": message});
            if let Some(data) = data {
                error["data"] = json!(data);
            }
            format!(r#"{{"jsonrpc":"2.0","error":{error},"id":{id}}}"#)
        }
    }
}

/// Carries out a call; the result is JSON text.
fn call(shared: &Arc<Shared>, method: &str, parameters: &str) -> Result<String, Refusal> {
    match method {
        "zgs_getStatus" => json_text(shared.status()),
        "zgs_getShardConfig" => json_text(shared.shard),
        "zgs_getFileInfo" => {
            let (root,): (B256,) = leading(parameters)?;
            json_text(
                shared
                    .find(SequenceOrRoot::Root(root))
                    .map(|found| shared.info(&found)),
            )
        }
        "zgs_getFileInfoByTxSeq" => {
            let (sequence,): (u64,) = leading(parameters)?;
            json_text(
                shared
                    .find(SequenceOrRoot::Sequence(sequence))
                    .map(|found| shared.info(&found)),
            )
        }
        "zgs_checkFileFinalized" => {
            let (file,): (SequenceOrRoot,) = leading(parameters)?;
            json_text(shared.find(file).map(|found| shared.is_finalized(&found)))
        }
        "zgs_uploadSegment" => {
            let (segment,): (SegmentWithProof,) = leading(parameters)?;
            shared.upload(vec![segment], None)
        }
        "zgs_uploadSegments" => {
            let (segments,): (Vec<SegmentWithProof>,) = leading(parameters)?;
            shared.upload(segments, None)
        }
        "zgs_uploadSegmentByTxSeq" => {
            let (segment, sequence): (SegmentWithProof, u64) = parse(parameters)?;
            shared.upload(vec![segment], Some(sequence))
        }
        "zgs_uploadSegmentsByTxSeq" => {
            let (segments, sequence): (Vec<SegmentWithProof>, u64) = parse(parameters)?;
            shared.upload(segments, Some(sequence))
        }
        "zgs_downloadSegment" => {
            let (root, start, end): (B256, u64, u64) = parse(parameters)?;
            json_text(shared.sectors(SequenceOrRoot::Root(root), start, end)?)
        }
        "zgs_downloadSegmentByTxSeq" => {
            let (sequence, start, end): (u64, u64, u64) = parse(parameters)?;
            json_text(shared.sectors(SequenceOrRoot::Sequence(sequence), start, end)?)
        }
        "zgs_downloadSegmentWithProof" => {
            let (root, index): (B256, u64) = parse(parameters)?;
            segment_text(shared.segment(SequenceOrRoot::Root(root), index)?)
        }
        "zgs_downloadSegmentWithProofByTxSeq" => {
            let (sequence, index): (u64, u64) = parse(parameters)?;
            segment_text(shared.segment(SequenceOrRoot::Sequence(sequence), index)?)
        }
        "indexer_getShardedNodes" => json_text(ShardedNodes {
            trusted: vec![shared.itself()],
            discovered: Vec::new(),
        }),
        "indexer_getSelectedNodes" => json_text(shared.select(parameters)?),
        "indexer_getNodeLocations" => json_text(json!({})),
        "indexer_getFileLocations" => {
            let (root,): (B256,) = leading(parameters)?;
            let found = shared
                .find(SequenceOrRoot::Root(root))
                .ok_or_else(|| Refusal::plain("file not found"))?;
            json_text(shared.is_finalized(&found).then(|| vec![shared.itself()]))
        }
        _ => Err(Refusal {
            code: -32_601,
            message: "Method not found".to_owned(),
            data: None,
        }),
    }
}

fn json_text(result: impl Serialize) -> Result<String, Refusal> {
    serde_json::to_string(&result).map_err(|error| Refusal::internal(error.to_string()))
}

fn segment_text(segment: Option<SegmentWithProof>) -> Result<String, Refusal> {
    let Some(segment) = segment else {
        return Ok("null".to_owned());
    };
    let mut text = Vec::with_capacity(segment.data.len() / 3 * 4 + 4_096);
    segment.write_json(&mut text);
    String::from_utf8(text).map_err(|error| Refusal::internal(error.to_string()))
}

/// Exactly these parameters.
fn parse<T: DeserializeOwned>(parameters: &str) -> Result<T, Refusal> {
    serde_json::from_str(parameters).map_err(|error| Refusal {
        code: -32_602,
        message: "Invalid params".to_owned(),
        data: Some(error.to_string()),
    })
}

/// The first parameter; clients of other versions send more.
fn leading<T: DeserializeOwned>(parameters: &str) -> Result<(T,), Refusal> {
    let values: Vec<&RawValue> = serde_json::from_str(parameters).map_err(|error| Refusal {
        code: -32_602,
        message: "Invalid params".to_owned(),
        data: Some(error.to_string()),
    })?;
    Ok((parse(values.first().map_or("null", |value| value.get()))?,))
}

impl Shared {
    fn itself(&self) -> ShardedNode {
        ShardedNode {
            url: self.url.clone(),
            config: self.shard,
            latency: 0,
            since: self.started_unix_s,
        }
    }

    fn status(&self) -> Status {
        let log = self.log.read();
        let (log_sync_height, log_sync_block) = log.position();
        Status {
            connected_peers: 0,
            log_sync_height,
            log_sync_block,
            next_tx_seq: log.next_sequence(),
            network_identity: self.identity.clone(),
        }
    }

    /// A submission; of several with one root the first finalized one, else the first.
    fn find(&self, file: SequenceOrRoot) -> Option<StoredSubmission> {
        let log = self.log.read();
        let found = match file {
            SequenceOrRoot::Sequence(sequence) => log.get(sequence).cloned(),
            SequenceOrRoot::Root(root) => {
                let finalized = log
                    .of_root(root)
                    .find(|submission| self.is_finalized(submission));
                finalized.or_else(|| log.of_root(root).next()).cloned()
            }
        };
        if found.is_none() {
            self.asked_in_vain.notify_one();
        }
        found
    }

    fn info(&self, submission: &StoredSubmission) -> FileInfo {
        let (root, size) = (submission.root, submission.shape.size());
        let finalized = self.is_finalized(submission);
        FileInfo {
            tx: submission.to_transaction(),
            finalized,
            is_cached: self.cache.lock().has(root, size),
            uploaded_seg_num: if finalized {
                submission.shape.segments()
            } else {
                self.store.count(root, size)
            },
            pruned: false,
        }
    }

    /// Takes segments in; `null`, because some clients take anything else for an error.
    fn upload(
        self: &Arc<Self>,
        segments: Vec<SegmentWithProof>,
        sequence: Option<u64>,
    ) -> Result<String, Refusal> {
        for segment in segments {
            self.upload_one(segment, sequence)?;
        }
        Ok("null".to_owned())
    }

    fn upload_one(
        self: &Arc<Self>,
        segment: SegmentWithProof,
        sequence: Option<u64>,
    ) -> Result<(), Refusal> {
        if segment.data.is_empty() {
            return Err(Refusal::plain("data is empty"));
        }
        let shape = crate::FileShape::new(segment.file_size)
            .map_err(|error| Refusal::parameter("file_size", error.to_string()))?;
        let submission = self.submission_for(&segment, sequence)?;
        if let Some(submission) = &submission {
            if self.is_finalized(submission) {
                return Err(Refusal::parameter("root", "already uploaded and finalized"));
            }
            if self
                .store
                .has(segment.root, segment.file_size, segment.index)
            {
                return match sequence {
                    Some(_) => Ok(()),
                    None => Err(Refusal::plain(
                        "segment has already been uploaded or is being uploaded",
                    )),
                };
            }
        } else if segment.file_size > MAX_CACHED_FILE_BYTES {
            let reason = "caching of large file when tx is unavailable is not supported";
            return Err(Refusal::parameter("file_size", reason));
        }
        check_segment(
            shape,
            segment.root,
            segment.index,
            &segment.data,
            &segment.proof,
        )?;
        let Some(submission) = submission else {
            let (root, size) = (segment.root, segment.file_size);
            if !self.cache.lock().add(segment, Instant::now()) {
                return Err(Refusal::plain(
                    "exceeds the maximum cached chunks of whole pool",
                ));
            }
            // The submission may have been seen between the look and the caching.
            let seen = self
                .log
                .read()
                .of_root(root)
                .find(|submission| submission.shape.size() == size)
                .cloned();
            match seen {
                Some(submission) => self.keep_cached(&submission)?,
                None => self.asked_in_vain.notify_one(),
            }
            return Ok(());
        };
        let first = submission.start_sector / SEGMENT_SECTORS;
        if self.shard.holds(first + segment.index) {
            self.store.put(shape, &segment)?;
            if self.presence(&submission) == Presence::Received {
                self.complete(submission)?;
            }
        }
        Ok(())
    }

    /// Makes a file that has arrived durable: at once, or behind the answer when that takes long.
    fn complete(self: &Arc<Self>, submission: StoredSubmission) -> Result<(), Refusal> {
        let (root, shape) = (submission.root, submission.shape);
        if shape.size() <= MAX_SYNC_IN_CALL_BYTES {
            return Ok(self.store.sync(root, shape)?);
        }
        let shared = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = shared.store.sync(root, shape) {
                tracing::error!(%error, "the storage node's disk fails; a file is not finalized");
            }
        });
        Ok(())
    }

    /// The submission that a segment is for; `None` when it was not seen yet.
    fn submission_for(
        &self,
        segment: &SegmentWithProof,
        sequence: Option<u64>,
    ) -> Result<Option<StoredSubmission>, Refusal> {
        let log = self.log.read();
        let other_size = || {
            Refusal::parameter(
                "file_size",
                "segment file size not matched with tx file size",
            )
        };
        if let Some(sequence) = sequence {
            let Some(submission) = log.get(sequence) else {
                return Ok(None);
            };
            if submission.root != segment.root {
                return Err(Refusal::internal("data root and tx seq not match"));
            }
            if submission.shape.size() != segment.file_size {
                return Err(other_size());
            }
            return Ok(Some(submission.clone()));
        }
        let same_size = log
            .of_root(segment.root)
            .find(|submission| submission.shape.size() == segment.file_size);
        match same_size {
            Some(submission) => Ok(Some(submission.clone())),
            None if log.of_root(segment.root).next().is_some() => Err(other_size()),
            None => Ok(None),
        }
    }

    /// Whole sectors `start..end` of a file; `None` when any of them is not here.
    fn sectors(
        &self,
        file: SequenceOrRoot,
        start: u64,
        end: u64,
    ) -> Result<Option<Segment>, Refusal> {
        if start >= end {
            return Err(Refusal::parameter("end_index", "invalid chunk index"));
        }
        if end - start > SEGMENT_SECTORS {
            return Err(Refusal::parameter(
                "end_index",
                "exceeds maximum chunks 1024",
            ));
        }
        let Some(submission) = self.find(file) else {
            return Ok(None);
        };
        if end > submission.shape.sectors() {
            return Err(Refusal::parameter("end_index", "invalid chunk index"));
        }
        let mut data = Vec::with_capacity((end - start) as usize * SECTOR_BYTES);
        for index in start / SEGMENT_SECTORS..=(end - 1) / SEGMENT_SECTORS {
            let Some(segment) = self.store.get(submission.root, submission.shape, index)? else {
                return Ok(None);
            };
            let first = index * SEGMENT_SECTORS;
            let from = start.saturating_sub(first) as usize * SECTOR_BYTES;
            let to = ((end - first).min(SEGMENT_SECTORS) as usize * SECTOR_BYTES)
                .min(segment.data.len());
            data.extend_from_slice(&segment.data[from..to]);
        }
        Ok(Some(Segment(data)))
    }

    fn segment(
        &self,
        file: SequenceOrRoot,
        index: u64,
    ) -> Result<Option<SegmentWithProof>, Refusal> {
        let Some(submission) = self.find(file) else {
            return Ok(None);
        };
        if index >= submission.shape.segments() {
            return Err(Refusal::parameter("index", "index out of bound"));
        }
        Ok(self.store.get(submission.root, submission.shape, index)?)
    }

    fn select(&self, parameters: &str) -> Result<ShardedNodes, Refusal> {
        let values: Vec<Value> = parse(parameters)?;
        let replicas = values.first().and_then(Value::as_u64).unwrap_or(1).max(1);
        let preference = match values.get(1).and_then(Value::as_str) {
            None | Some("min" | "random" | "") => Preference::FewShards,
            Some("max") => Preference::ManyShards,
            Some(number) => {
                let shards = number
                    .parse()
                    .map_err(|_| Refusal::parameter("method", "unknown method"))?;
                Preference::Exactly(shards)
            }
        };
        let dropped = values
            .get(3)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        let is_dropped = dropped
            .into_iter()
            .any(|url| url.trim_end_matches('/') == self.url);
        let nodes = if is_dropped {
            Vec::new()
        } else {
            vec![self.itself()]
        };
        let replicas = u32::try_from(replicas).unwrap_or(u32::MAX);
        let trusted = select_covering(&nodes, replicas, preference).ok_or_else(|| {
            Refusal::plain("cannot select any shard config that meets the replication requirement")
        })?;
        Ok(ShardedNodes {
            trusted,
            discovered: Vec::new(),
        })
    }
}

// ---- plain routes of indexers ----

/// The envelope of the plain routes. What the business refuses comes with HTTP status 200.
fn envelope(code: u32, message: &str, data: impl Serialize) -> Response {
    Json(json!({"code": code, "message": message, "data": json!(data)})).into_response()
}

fn success(data: impl Serialize) -> Response {
    envelope(0, "Success", data)
}

fn invalid_parameter(what: &str) -> Response {
    envelope(1, "Invalid parameter", what)
}

async fn only_get(method: Method) -> Response {
    let mut response = invalid_parameter(&format!("this route is read with GET, not {method}"));
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    let allowed = HeaderValue::from_static("GET, HEAD");
    response.headers_mut().insert(header::ALLOW, allowed);
    response
}

async fn no_route(uri: Uri) -> Response {
    const ROUTES: &str =
        "POST / for calls, GET /file, /file/info/{id}, /files/info or /node/status";
    let what = format!("there is no route {}; there are {ROUTES}", uri.path());
    let mut response = envelope(101, "Route not found", what);
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}

fn not_found() -> Response {
    envelope(101, "File not found", Value::Null)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileQuery {
    root: Option<String>,
    tx_seq: Option<String>,
    name: Option<String>,
}

impl FileQuery {
    /// The file that is asked for; what is wrong with the query otherwise.
    fn file(&self) -> Result<SequenceOrRoot, &'static str> {
        match (&self.root, &self.tx_seq) {
            (Some(root), None) => root
                .parse()
                .map(SequenceOrRoot::Root)
                .map_err(|_| "root must be 0x and 64 hexadecimal digits"),
            (None, Some(sequence)) => sequence
                .parse()
                .map(SequenceOrRoot::Sequence)
                .map_err(|_| "txSeq must be a whole number from 0"),
            _ => Err("either root or txSeq is needed"),
        }
    }
}

async fn plain_file(
    State(front): State<Front>,
    query: Result<Query<FileQuery>, QueryRejection>,
) -> Response {
    let query = match query {
        Ok(Query(query)) => query,
        Err(error) => return invalid_parameter(&error.body_text()),
    };
    let file = match query.file() {
        Ok(file) => file,
        Err(what) => return invalid_parameter(what),
    };
    let Some(submission) = front.shared.find(file) else {
        return not_found();
    };
    if !front.shared.is_finalized(&submission) {
        return envelope(103, "File not finalized", Value::Null);
    }
    let size = submission.shape.size();
    if size > MAX_PLAIN_FILE_BYTES {
        return envelope(105, "File too large", size);
    }
    let name: String = query
        .name
        .unwrap_or_else(|| format!("{:x}", submission.root))
        .chars()
        .filter(|character| character.is_ascii_alphanumeric() || "._- ".contains(*character))
        .take(255)
        .collect();
    let mut response = Body::from_stream(stream::try_unfold(
        (front.shared, submission, 0),
        next_segment,
    ))
    .into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    if let Ok(disposition) = HeaderValue::from_str(&format!("attachment; filename=\"{name}\"")) {
        headers.insert(header::CONTENT_DISPOSITION, disposition);
    }
    response
}

type Position = (Arc<Shared>, StoredSubmission, u64);

/// The file's bytes in the next segment.
async fn next_segment(
    (shared, submission, index): Position,
) -> std::io::Result<Option<(Vec<u8>, Position)>> {
    if index == submission.shape.segments() {
        return Ok(None);
    }
    let read = tokio::task::spawn_blocking(move || {
        let segment = shared.store.get(submission.root, submission.shape, index);
        (segment, shared, submission)
    });
    let (segment, shared, submission) = read.await.map_err(std::io::Error::other)?;
    let mut data = segment
        .map_err(std::io::Error::other)?
        .ok_or_else(|| std::io::Error::other("a segment of the file is damaged"))?
        .data;
    data.truncate(submission.shape.file_bytes(index));
    Ok(Some((data, (shared, submission, index + 1))))
}

async fn plain_info(
    State(front): State<Front>,
    id: Result<Path<String>, PathRejection>,
) -> Response {
    match id.ok().and_then(|Path(id)| parse_id(&id)) {
        Some(file) => match front.shared.find(file) {
            Some(submission) => success(front.shared.info(&submission)),
            None => not_found(),
        },
        None => invalid_parameter("the id is neither a root nor a number"),
    }
}

#[derive(Deserialize)]
struct InfosQuery {
    cid: Option<String>,
}

/// Several files, their ids separated by commas.
async fn plain_infos(
    State(front): State<Front>,
    query: Result<Query<InfosQuery>, QueryRejection>,
) -> Response {
    const MAX_IDS: usize = 100;
    let query = match query {
        Ok(Query(query)) => query,
        Err(error) => return invalid_parameter(&error.body_text()),
    };
    let ids: Option<Vec<SequenceOrRoot>> = query
        .cid
        .as_deref()
        .unwrap_or_default()
        .split(',')
        .take(MAX_IDS + 1)
        .map(parse_id)
        .collect();
    match ids {
        Some(ids) if ids.len() <= MAX_IDS => {
            let infos = ids
                .into_iter()
                .map(|id| front.shared.find(id).map(|found| front.shared.info(&found)));
            success(infos.collect::<Vec<_>>())
        }
        _ => invalid_parameter("cid must be at most 100 roots or numbers"),
    }
}

async fn plain_status(State(front): State<Front>) -> Response {
    success(front.shared.status())
}

fn parse_id(id: &str) -> Option<SequenceOrRoot> {
    match id.parse() {
        Ok(sequence) => Some(SequenceOrRoot::Sequence(sequence)),
        Err(_) => id.parse().ok().map(SequenceOrRoot::Root),
    }
}
