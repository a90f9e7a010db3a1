//! Identifiers: task ids and adapter names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A task id: a UUID, written in the dashed lower-case form on the wire and on chain.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskId(Uuid);

impl TaskId {
    /// A fresh random id (UUID v4).
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// The 16 raw bytes, the payload of a cancel signature.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The 32 lower-case hexadecimal digits without dashes, part of a download signature.
    pub fn simple(&self) -> String {
        self.0.simple().to_string()
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A task id that is not a UUID.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a task id: expected a UUID such as 6b607314-88b0-4fef-91e7-43227a54de57")]
pub struct TaskIdError(pub String);

impl FromStr for TaskId {
    type Err = TaskIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(text.trim())
            .map(Self)
            .map_err(|_| TaskIdError(text.to_owned()))
    }
}

/// The adapter name that clients compute: `ft-`, the base model with `/`, `.` and white space replaced by `-` and outer
/// dashes removed, `-`, and the first 12 characters of the task id.
pub fn adapter_name(base_model: &str, task_id: &str) -> String {
    let replaced: String = base_model
        .chars()
        .map(|c| {
            if c == '/' || c == '.' || c.is_whitespace() {
                '-'
            } else {
                c
            }
        })
        .collect();
    let short_id: String = task_id.chars().take(12).collect();
    format!("ft-{}-{short_id}", replaced.trim_matches('-'))
}

/// The adapter name of the published broker: as [`adapter_name`], but only the last path component of the base model.
pub fn canonical_adapter_name(base_model: &str, task_id: &str) -> String {
    let short = base_model.rsplit('/').next().unwrap_or(base_model);
    adapter_name(short, task_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `inference-broker.md` section 6.4.
    #[test]
    fn adapter_names_match_the_published_clients() {
        let id = "1f6fef2b-e0f6-4c1a-9b1e-000000000001";
        assert_eq!(
            adapter_name("Qwen2.5-0.5B-Instruct", id),
            "ft-Qwen2-5-0-5B-Instruct-1f6fef2b-e0f"
        );
        assert_eq!(
            adapter_name("Qwen/Qwen2.5-7B-Instruct", id),
            "ft-Qwen-Qwen2-5-7B-Instruct-1f6fef2b-e0f"
        );
        assert_eq!(
            canonical_adapter_name("Qwen/Qwen2.5-7B-Instruct", id),
            "ft-Qwen2-5-7B-Instruct-1f6fef2b-e0f"
        );
        let id = "3b8a5d1e-0000-4000-8000-000000000000";
        assert_eq!(
            adapter_name("/models/Qwen3-32B", id),
            "ft-models-Qwen3-32B-3b8a5d1e-000"
        );
        assert_eq!(
            canonical_adapter_name("/models/Qwen3-32B", id),
            "ft-Qwen3-32B-3b8a5d1e-000"
        );
        assert_eq!(adapter_name(" a.b/c d. ", "short"), "ft-a-b-c-d-short");
        assert_eq!(
            adapter_name("Llama 3.1\t8B", "0xabc123def456"),
            "ft-Llama-3-1-8B-0xabc123def4"
        );
        assert_eq!(adapter_name("..", "x"), "ft--x");
        assert_eq!(
            adapter_name("Qwen/Qwen3-32B", "6b607314-88b0-4fef-91e7-43227a54de57"),
            "ft-Qwen-Qwen3-32B-6b607314-88b"
        );
    }

    #[test]
    fn task_ids_print_dashed_and_refuse_paths() {
        let id: TaskId = "6B607314-88b0-4fef-91e7-43227a54de57".parse().unwrap();
        assert_eq!(id.to_string(), "6b607314-88b0-4fef-91e7-43227a54de57");
        assert_eq!(id.simple(), "6b60731488b04fef91e743227a54de57");
        assert!("../../etc/passwd".parse::<TaskId>().is_err());
    }
}
