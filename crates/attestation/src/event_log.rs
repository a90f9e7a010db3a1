//! The run-time event log of a dstack guest: replaying it must give the quote's registers, and only then do its
//! entries mean anything (`docs/protocol.md`, attestation: event log).

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha384};

use crate::Measurement;

/// Event type of every run-time (RTMR3) entry.
pub const RUNTIME_EVENT_TYPE: u32 = 0x0800_0001;
/// Most entries that are read; real logs have about 30.
pub const MAX_EVENTS: usize = 4096;
/// Name of the entry after which the application can add its own: nothing later is trusted.
pub const SYSTEM_READY: &str = "system-ready";

/// Register of run-time events.
const RUNTIME_REGISTER: u32 = 3;
/// Entries that may appear once before `system-ready`.
const UNIQUE_EVENTS: [&str; 4] = ["compose-hash", "app-id", "instance-id", "key-provider"];

/// Why an event log proves nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventLogError {
    /// Not a JSON array of entries.
    #[error("the event log is not a JSON array of events: {reason}")]
    Malformed {
        /// What the parser found.
        reason: String,
    },
    /// More than [`MAX_EVENTS`] entries.
    #[error("the event log has {events} entries, more than {MAX_EVENTS}")]
    TooLong {
        /// Entries found.
        events: usize,
    },
    /// A digest or payload is not hexadecimal or has the wrong length.
    #[error("event {index} ({event}): {field} is malformed")]
    BadField {
        /// Position in the log.
        index: usize,
        /// Name of the event.
        event: String,
        /// Field at fault.
        field: &'static str,
    },
    /// The supplied digest is not the digest of event and payload.
    #[error("event {index} ({event}): the digest does not belong to the payload")]
    DigestMismatch {
        /// Position in the log.
        index: usize,
        /// Name of the event.
        event: String,
    },
    /// An entry that must be unique appears twice before `system-ready`.
    #[error("event {event} appears more than once before {SYSTEM_READY}")]
    Duplicate {
        /// Name of the event.
        event: String,
    },
}

/// One entry of the log, as the JSON spells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Register that the entry extends, 0 to 3.
    pub imr: u32,
    /// Type number; [`RUNTIME_EVENT_TYPE`] for register 3.
    pub event_type: u32,
    /// Hexadecimal SHA-384 that was extended; new guests leave it empty for register 3.
    #[serde(default)]
    pub digest: String,
    /// Name of a run-time event.
    #[serde(default)]
    pub event: String,
    /// Hexadecimal payload.
    #[serde(default)]
    pub event_payload: String,
    /// 2 for the canonical-JSON digest; absent for the first form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// Hexadecimal text that the second digest form hashes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preimage: Option<String>,
}

impl Event {
    /// A run-time event of the first digest form, digest filled in.
    pub fn runtime(name: &str, payload: &[u8]) -> Self {
        Self {
            imr: RUNTIME_REGISTER,
            event_type: RUNTIME_EVENT_TYPE,
            digest: hex::encode(runtime_digest(name, payload)),
            event: name.to_owned(),
            event_payload: hex::encode(payload),
            version: None,
            preimage: None,
        }
    }
}

/// What the trusted part of register 3 says about the running application.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuntimeFacts {
    /// SHA-256 of the compose text.
    pub compose_hash: Option<Vec<u8>>,
    /// Application id, 20 bytes.
    pub app_id: Option<Vec<u8>>,
    /// Instance id, 20 bytes.
    pub instance_id: Option<Vec<u8>>,
    /// JSON text naming the key provider.
    pub key_provider: Option<Vec<u8>>,
    /// Summary of the GPU attestation that the guest made while booting.
    pub gpu_attestation: Option<Vec<u8>>,
    /// Whether `system-ready` was seen.
    pub system_ready: bool,
    /// Names and payloads after `system-ready`: written by applications.
    pub application_events: Vec<(String, Vec<u8>)>,
}

/// Reads the JSON text of an event log.
///
/// # Errors
/// [`EventLogError::Malformed`], [`EventLogError::TooLong`].
pub fn parse(text: &str) -> Result<Vec<Event>, EventLogError> {
    let events: Vec<Event> =
        serde_json::from_str(text).map_err(|error| EventLogError::Malformed {
            reason: error.to_string(),
        })?;
    if events.len() > MAX_EVENTS {
        return Err(EventLogError::TooLong {
            events: events.len(),
        });
    }
    Ok(events)
}

/// The digest of a run-time event in its first form.
pub fn runtime_digest(name: &str, payload: &[u8]) -> Measurement {
    let mut hasher = Sha384::new();
    hasher.update(RUNTIME_EVENT_TYPE.to_le_bytes());
    hasher.update(b":");
    hasher.update(name.as_bytes());
    hasher.update(b":");
    hasher.update(payload);
    hasher.finalize().into()
}

/// Replays the log and returns registers 0 to 3.
///
/// Digests of register 3 are computed from event and payload; a supplied one must agree. Digests of the other
/// registers are taken as given, because their payloads may be stripped.
///
/// # Errors
/// [`EventLogError::BadField`], [`EventLogError::DigestMismatch`].
pub fn replay(events: &[Event]) -> Result<[Measurement; 4], EventLogError> {
    let mut registers = [[0u8; 48]; 4];
    for (index, event) in events.iter().enumerate() {
        let bad = |field| EventLogError::BadField {
            index,
            event: event.event.clone(),
            field,
        };
        let digest = event_digest(index, event)?;
        let register = usize::try_from(event.imr)
            .ok()
            .and_then(|imr| registers.get_mut(imr))
            .ok_or_else(|| bad("imr"))?;
        let mut hasher = Sha384::new();
        hasher.update(&register[..]);
        hasher.update(digest);
        *register = hasher.finalize().into();
    }
    Ok(registers)
}

/// Collects the named events of register 3 that were written before the application could write any.
///
/// Call it only on a log whose [`replay`] equals the quote.
///
/// # Errors
/// [`EventLogError::Duplicate`], [`EventLogError::BadField`].
pub fn runtime_facts(events: &[Event]) -> Result<RuntimeFacts, EventLogError> {
    let mut facts = RuntimeFacts::default();
    for (index, event) in events
        .iter()
        .enumerate()
        .filter(|(_, event)| event.imr == RUNTIME_REGISTER)
    {
        let payload = hex::decode(&event.event_payload).map_err(|_| EventLogError::BadField {
            index,
            event: event.event.clone(),
            field: "event_payload",
        })?;
        if facts.system_ready {
            facts
                .application_events
                .push((event.event.clone(), payload));
            continue;
        }
        let place = match event.event.as_str() {
            "compose-hash" => &mut facts.compose_hash,
            "app-id" => &mut facts.app_id,
            "instance-id" => &mut facts.instance_id,
            "key-provider" => &mut facts.key_provider,
            "gpu-attestation" => &mut facts.gpu_attestation,
            SYSTEM_READY => {
                facts.system_ready = true;
                continue;
            }
            _ => continue,
        };
        if place.is_some() && UNIQUE_EVENTS.contains(&event.event.as_str()) {
            return Err(EventLogError::Duplicate {
                event: event.event.clone(),
            });
        }
        *place = Some(payload);
    }
    Ok(facts)
}

fn event_digest(index: usize, event: &Event) -> Result<Measurement, EventLogError> {
    let bad = |field| EventLogError::BadField {
        index,
        event: event.event.clone(),
        field,
    };
    let supplied: Option<Measurement> = if event.digest.is_empty() {
        None
    } else {
        let mut bytes = [0u8; 48];
        hex::decode_to_slice(&event.digest, &mut bytes).map_err(|_| bad("digest"))?;
        Some(bytes)
    };
    if event.imr != RUNTIME_REGISTER {
        return supplied.ok_or_else(|| bad("digest"));
    }
    if event.event_type != RUNTIME_EVENT_TYPE {
        return Err(bad("event_type"));
    }
    let payload = hex::decode(&event.event_payload).map_err(|_| bad("event_payload"))?;
    let computed = match event.version {
        None | Some(1) => runtime_digest(&event.event, &payload),
        Some(2) => {
            let canonical = canonical_event(&event.event, &payload);
            let preimage = event.preimage.as_deref().ok_or_else(|| bad("preimage"))?;
            if hex::decode(preimage).ok().as_deref() != Some(canonical.as_bytes()) {
                return Err(bad("preimage"));
            }
            crate::sha384(canonical.as_bytes())
        }
        Some(_) => return Err(bad("version")),
    };
    if supplied.is_some_and(|digest| digest != computed) {
        return Err(EventLogError::DigestMismatch {
            index,
            event: event.event.clone(),
        });
    }
    Ok(computed)
}

/// Canonical JSON (RFC 8785) of a run-time event; member names are already in order.
fn canonical_event(name: &str, payload: &[u8]) -> String {
    let name = serde_json::Value::from(name);
    format!(
        r#"{{"name":{name},"payload":"{}","type":{RUNTIME_EVENT_TYPE}}}"#,
        hex::encode(payload)
    )
}
