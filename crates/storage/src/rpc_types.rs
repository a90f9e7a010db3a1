//! JSON of the storage node and indexer RPC (`docs/protocol.md`, storage).

use alloy_primitives::{Address, B256};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use crate::merkle::FileProof;

/// Which segments a node keeps: those whose global index is `shard_id` modulo `num_shard`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShardConfig {
    /// Below `num_shard`.
    pub shard_id: u64,
    /// A power of two.
    pub num_shard: u64,
}

impl ShardConfig {
    /// A node that keeps everything.
    pub const WHOLE: Self = Self {
        shard_id: 0,
        num_shard: 1,
    };

    /// Whether the numbers make sense.
    pub fn is_valid(&self) -> bool {
        self.num_shard.is_power_of_two() && self.shard_id < self.num_shard
    }

    /// Whether the node keeps the segment with this global index.
    pub fn holds(&self, global_segment: u64) -> bool {
        global_segment % self.num_shard == self.shard_id
    }

    /// How many of `count` segments from `first` on the node keeps.
    pub fn held_among(&self, first: u64, count: u64) -> u64 {
        let below = |end: u64| (end + self.num_shard - 1 - self.shard_id) / self.num_shard;
        below(first + count) - below(first)
    }
}

/// `zgs_getStatus`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Other nodes it is connected to.
    pub connected_peers: u64,
    /// Block up to which it knows submissions.
    pub log_sync_height: u64,
    /// Hash of that block.
    pub log_sync_block: B256,
    /// Submissions it knows.
    pub next_tx_seq: u64,
    /// The network it belongs to.
    pub network_identity: NetworkIdentity,
}

/// What makes storage nodes one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkIdentity {
    /// Chain of the Flow contract.
    pub chain_id: u64,
    /// The Flow contract.
    pub flow_address: Address,
    /// Version of the protocol among nodes.
    pub p2p_protocol_version: ProtocolVersion,
}

/// A version in three numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtocolVersion {
    /// Incompatible changes.
    pub major: u8,
    /// Compatible additions.
    pub minor: u8,
    /// Corrections.
    pub build: u8,
}

/// A submission as nodes report it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Transaction {
    /// Empty for files.
    #[serde(default)]
    pub stream_ids: Vec<String>,
    /// Empty for files.
    #[serde(default)]
    pub data: Vec<u8>,
    /// The file's root.
    pub data_merkle_root: B256,
    /// Submission nodes, each with its height **plus one**.
    pub merkle_nodes: Vec<(u64, B256)>,
    /// First sector in the flow.
    pub start_entry_index: u64,
    /// Bytes of the file.
    pub size: u64,
    /// Number of the submission.
    pub seq: u64,
}

/// `zgs_getFileInfo`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileInfo {
    /// The submission.
    pub tx: Transaction,
    /// Whether the node has all its segments.
    pub finalized: bool,
    /// Whether segments wait for the submission to be seen.
    pub is_cached: bool,
    /// Segments received.
    pub uploaded_seg_num: u64,
    /// Whether the node has thrown the file away.
    #[serde(default)]
    pub pruned: bool,
}

/// One segment on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SegmentWithProof {
    /// The file's root.
    pub root: B256,
    /// Whole sectors.
    #[serde(with = "base64_bytes")]
    pub data: Vec<u8>,
    /// Position in the file.
    pub index: u64,
    /// That the segment belongs there.
    pub proof: FileProof,
    /// Bytes of the file.
    pub file_size: u64,
}

impl SegmentWithProof {
    /// Appends the segment as JSON, the same that serde writes, without copying the long text about.
    pub(crate) fn write_json(&self, text: &mut Vec<u8>) {
        let Self {
            root,
            data,
            index,
            proof,
            file_size,
        } = self;
        text.extend_from_slice(format!(r#"{{"root":"{root}","data":""#).as_bytes());
        base64_bytes::append(data, text);
        text.extend_from_slice(format!(r#"","index":{index},"proof":"#).as_bytes());
        serde_json::to_writer(&mut *text, proof).expect("a proof is plain data");
        text.extend_from_slice(format!(r#","fileSize":{file_size}}}"#).as_bytes());
    }
}

/// A node as indexers list it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardedNode {
    /// Where its RPC is.
    pub url: String,
    /// What it keeps.
    pub config: ShardConfig,
    /// Milliseconds.
    #[serde(default)]
    pub latency: i64,
    /// Unix seconds at which the indexer first saw it.
    #[serde(default)]
    pub since: i64,
}

/// `indexer_getShardedNodes`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardedNodes {
    /// Nodes that the indexer was configured with.
    #[serde(deserialize_with = "null_is_empty", default)]
    pub trusted: Vec<ShardedNode>,
    /// Nodes that it found.
    #[serde(deserialize_with = "null_is_empty", default)]
    pub discovered: Vec<ShardedNode>,
}

fn null_is_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ShardedNode>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The sequence number or the root of a file, in one parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SequenceOrRoot {
    /// Number of the submission.
    Sequence(u64),
    /// Root of the file.
    Root(B256),
}

/// Bytes as standard base64 with padding.
pub(crate) mod base64_bytes {
    use base64::{Engine as _, engine::general_purpose::STANDARD};

    use super::{Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(crate) fn append(bytes: &[u8], text: &mut Vec<u8>) {
        let start = text.len();
        text.resize(start + bytes.len().div_ceil(3) * 4, 0);
        STANDARD
            .encode_slice(bytes, &mut text[start..])
            .expect("the place is as long as the text");
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        struct Text;
        impl serde::de::Visitor<'_> for Text {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("base64 text")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Vec<u8>, E> {
                STANDARD
                    .decode(text)
                    .map_err(|error| E::custom(format!("invalid base64: {error}")))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// A bare segment: base64 text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment(pub Vec<u8>);

impl Serialize for Segment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        base64_bytes::serialize(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for Segment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        base64_bytes::deserialize(deserializer).map(Self)
    }
}
