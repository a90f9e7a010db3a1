//! Every bound on outside input, with its unit and the reason for its value.

/// Largest dataset upload in bytes: the limit of the published clients (100 MiB).
pub const MAX_DATASET_BYTES: u64 = 100 * 1024 * 1024;
/// Bytes of one part of a sealed dataset that is sent in parts (4 MiB): what a broken connection costs at most.
pub const UPLOAD_PART_BYTES: usize = 4 * 1024 * 1024;
/// Largest JSON request body of the fine-tuning routes in bytes; the biggest member is the training parameter text.
pub const MAX_JSON_BODY_BYTES: usize = 1024 * 1024;
/// Largest chat request body in bytes, as the published inference broker.
pub const MAX_CHAT_BODY_BYTES: usize = 32 * 1024 * 1024;
/// Largest session token in bytes as it stands in the `Authorization` header.
pub const MAX_SESSION_TOKEN_BYTES: usize = 4096;
/// Oldest accepted signed timestamp, in seconds before now.
pub const SIGNATURE_MAX_AGE_S: u64 = 300;
/// Furthest accepted signed timestamp, in seconds after now (clock skew).
pub const SIGNATURE_MAX_SKEW_S: u64 = 60;
/// Plaintext bytes in one chunk of an encrypted archive; the published readers split at this size plus the tag.
pub const ARCHIVE_CHUNK_BYTES: usize = 64 * 1024 * 1024;
/// Longest life of an ephemeral session token in milliseconds (24 hours).
pub const EPHEMERAL_TOKEN_MAX_MS: u64 = 86_400_000;
/// Longest on-chain deliverable id in bytes; ours are 36.
pub const MAX_DELIVERABLE_ID_BYTES: usize = 256;
/// Largest unpacked adapter in bytes: rank 128 on every linear layer of a 32B model stays below.
pub const MAX_ADAPTER_BYTES: u64 = 4 * 1024 * 1024 * 1024;
/// Most members in an adapter archive.
pub const MAX_ARCHIVE_MEMBERS: usize = 256;
/// Most CPU-heavy blocking jobs (hashing, zip, encryption) that the daemon runs at once.
pub const BLOCKING_JOBS: usize = 4;
