//! The conclusion: a level, what stands behind it, and every check that led to it.

use std::fmt;

use alloy_primitives::Address;
use serde::Serialize;

use crate::checks::{Check, CheckId, CheckStatus};

/// What was found, as one word for people and exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    /// Every required check passed and none was left open.
    Verified,
    /// Nothing failed; the checks marked skipped or warning were left open.
    Partial,
    /// Valid under the development root alone. Never counts as verified.
    Simulated,
    /// A required check failed or could not be made.
    Failed,
}

impl Level {
    /// Exit code of a verifying program.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Verified => 0,
            Self::Failed => 1,
            Self::Partial => 3,
            Self::Simulated => 4,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Verified => "VERIFIED",
            Self::Partial => "PARTIAL",
            Self::Simulated => "SIMULATED",
            Self::Failed => "FAILED",
        })
    }
}

/// What stands behind a level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Assurance {
    /// Genuine hardware, as far as the checks went.
    Hardware,
    /// Software that only claims to be a TEE.
    Simulated,
    /// Nothing.
    None,
}

/// What a caller insists on before it hands over data (`docs/protocol.md`, trust).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Requirement {
    /// Only [`Level::Verified`].
    Verified,
    /// [`Level::Verified`] or [`Level::Partial`].
    #[default]
    NothingFailed,
    /// Also [`Level::Simulated`]: for the development network alone.
    AllowSimulated,
}

/// What was found out about a provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The conclusion.
    pub level: Level,
    /// What stands behind it.
    pub assurance: Assurance,
    /// Every check, in order.
    pub checks: Vec<Check>,
    /// Signer that the quote itself names.
    pub signer: Option<Address>,
    /// X25519 key that data can be sealed to, where the report data carries it (hexadecimal in JSON).
    #[serde(serialize_with = "optional_hex")]
    pub sealing_key: Option<[u8; 32]>,
    /// SHA-256 of the compose text, hexadecimal.
    pub compose_hash: Option<String>,
    /// Images that the compose text names.
    pub images: Vec<String>,
    /// TCB status, where the quote was verified.
    pub tcb_status: Option<String>,
    /// Intel's advisories for the platform.
    pub advisory_ids: Vec<String>,
}

impl Verdict {
    /// Whether the verdict is good enough for the caller.
    pub fn satisfies(&self, requirement: Requirement) -> bool {
        match self.level {
            Level::Verified => true,
            Level::Partial => requirement != Requirement::Verified,
            Level::Simulated => requirement == Requirement::AllowSimulated,
            Level::Failed => false,
        }
    }

    /// Checks that failed.
    pub fn failures(&self) -> impl Iterator<Item = &Check> {
        self.checks
            .iter()
            .filter(|check| check.status == CheckStatus::Fail)
    }

    /// Checks that were left open or carry a reservation: what a client prints once.
    pub fn open(&self) -> impl Iterator<Item = &Check> {
        self.checks
            .iter()
            .filter(|check| matches!(check.status, CheckStatus::Skipped | CheckStatus::Warning))
    }

    /// The check with the given id.
    pub fn check(&self, id: CheckId) -> Option<&Check> {
        self.checks.iter().find(|check| check.id == id)
    }
}

fn optional_hex<S: serde::Serializer>(
    bytes: &Option<[u8; 32]>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    bytes.map(hex::encode).serialize(serializer)
}
