//! `MR_CONFIG_ID`: the register in which newer dstack guests commit to their configuration before they boot
//! (`docs/protocol.md`, attestation: event log). Its first byte says how.

use alloy_primitives::keccak256;
use serde_json::Value;

use crate::Measurement;
use crate::event_log::RuntimeFacts;

/// What the register says about a compose text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigId {
    /// All zeros: an older guest, whose event log alone carries the compose hash.
    Unset,
    /// Commits to this compose text, in the form of this number.
    Commits(u8),
    /// Commits to something else, in the form of this number.
    Contradicts(u8),
    /// A form whose commitment cannot be computed from a report: 3 hashes a document that reports do not carry, 2 needs the
    /// application id and key provider of the event log, others are unknown.
    NotComputable(u8),
}

/// Compares the register with a compose text's SHA-256 and with what the event log measured.
pub fn compare(register: &Measurement, compose_hash: &[u8; 32], facts: &RuntimeFacts) -> ConfigId {
    let [form, rest @ ..] = register;
    let (commitment, padding) = rest.split_at(32);
    let is_padded = padding.iter().all(|byte| *byte == 0);
    let expected = match form {
        0 if rest.iter().all(|byte| *byte == 0) => return ConfigId::Unset,
        1 => *compose_hash,
        2 => match second_form(compose_hash, facts) {
            Some(expected) => expected,
            None => return ConfigId::NotComputable(2),
        },
        other => return ConfigId::NotComputable(*other),
    };
    if is_padded && commitment == expected {
        ConfigId::Commits(*form)
    } else {
        ConfigId::Contradicts(*form)
    }
}

/// Keccak-256 of compose hash, application id, kind of key provider and its id.
fn second_form(compose_hash: &[u8; 32], facts: &RuntimeFacts) -> Option<[u8; 32]> {
    let app_id = facts.app_id.as_deref().filter(|id| id.len() == 20)?;
    let provider: Value = serde_json::from_slice(facts.key_provider.as_deref()?).ok()?;
    let kind = match provider.get("name")?.as_str()? {
        "none" => 0,
        "local" | "local-sgx" => 1,
        "kms" => 2,
        "tpm" => 3,
        _ => return None,
    };
    let id = hex::decode(provider.get("id")?.as_str()?).ok()?;
    let joined = [compose_hash, app_id, &[kind], &id].concat();
    Some(keccak256(joined).0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(provider: &str) -> RuntimeFacts {
        RuntimeFacts {
            app_id: Some(vec![7; 20]),
            key_provider: Some(provider.as_bytes().to_vec()),
            ..RuntimeFacts::default()
        }
    }

    fn register(form: u8, commitment: &[u8]) -> Measurement {
        let mut bytes = [0; 48];
        bytes[0] = form;
        bytes[1..=commitment.len()].copy_from_slice(commitment);
        bytes
    }

    #[test]
    fn every_form_commits_contradicts_or_is_left_open() {
        let kms = facts(r#"{"name":"kms","id":"0a0b"}"#);
        let hash = [9; 32];
        let second = keccak256([&hash[..], &[7; 20], &[2], &[10, 11]].concat()).0;
        let changed = {
            let mut bytes = second;
            bytes[31] ^= 1;
            bytes
        };
        let mut behind = register(1, &hash);
        behind[47] = 1;
        let stray = {
            let mut bytes = [0; 48];
            bytes[20] = 1;
            bytes
        };
        for (register, facts, expected) in [
            ([0; 48], &kms, ConfigId::Unset),
            (stray, &kms, ConfigId::NotComputable(0)),
            (register(1, &hash), &kms, ConfigId::Commits(1)),
            (register(1, &[8; 32]), &kms, ConfigId::Contradicts(1)),
            (behind, &kms, ConfigId::Contradicts(1)),
            (register(2, &second), &kms, ConfigId::Commits(2)),
            (register(2, &changed), &kms, ConfigId::Contradicts(2)),
            (
                register(2, &second),
                &facts(r#"{"name":"tpm","id":"0a0b"}"#),
                ConfigId::Contradicts(2),
            ),
            (
                register(2, &second),
                &RuntimeFacts::default(),
                ConfigId::NotComputable(2),
            ),
            (
                register(2, &second),
                &facts(r#"{"name":"other","id":""}"#),
                ConfigId::NotComputable(2),
            ),
            (register(3, &second), &kms, ConfigId::NotComputable(3)),
            (register(9, &second), &kms, ConfigId::NotComputable(9)),
        ] {
            assert_eq!(compare(&register, &hash, facts), expected, "{register:?}");
        }
    }
}
