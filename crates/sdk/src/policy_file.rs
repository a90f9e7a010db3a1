//! A verification policy as a file, TOML or JSON: which platforms, images and programs a user accepts.
//!
//! ```
//! let policy = zerog_sdk::policy_file::parse(r#"
//!     tcb_statuses = ["SWHardeningNeeded"] # besides UpToDate; Intel's advisories are shown either way
//!     min_tcb_evaluation_number = 17 # refuse collateral that may hide a newer advisory
//!     compose_hashes = ["3763bc34552cf3a27ff71ad5f7a90471562a1a2df552dfc1998cba2d60da27e7"] # texts that you reviewed
//!     kms_ids = ["3059301306072a8648ce3d02"] # key-management services whose keys you trust
//! "#)?;
//! assert_eq!(policy.min_tcb_evaluation_number, 17);
//! # Ok::<(), zerog_sdk::Error>(())
//! ```
//!
//! An image is a table `[[os_images]]` with `name` and the registers `mrtd`, `rtmr0`, `rtmr1` and `rtmr2`, 96 hexadecimal
//! digits each.

use std::path::Path;

use serde::Deserialize;
use zerog_attestation::{Measurement, OsMeasurement, Policy, TcbStatus};

use crate::collateral::read_limited;
use crate::error::{Error, Result};

/// Largest policy file in bytes.
const MAX_BYTES: usize = 1024 * 1024;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    tcb_statuses: Vec<TcbStatus>,
    min_tcb_evaluation_number: u32,
    compose_hashes: Vec<String>,
    os_images: Vec<OsImage>,
    kms_ids: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OsImage {
    name: String,
    mrtd: String,
    rtmr0: String,
    rtmr1: String,
    rtmr2: String,
}

/// Reads a policy file.
///
/// # Errors
/// [`Error::Argument`] when it cannot be read, naming what is wrong in it.
pub fn read_policy(path: &Path) -> Result<Policy> {
    let named = |reason: String| refused(format!("{}: {reason}", path.display()));
    let text = read_limited(path, MAX_BYTES).map_err(|error| named(error.to_string()))?;
    let text = std::str::from_utf8(&text).map_err(|_| named("it is not UTF-8 text".into()))?;
    parse(text).map_err(|error| match error {
        Error::Argument { reason, .. } => named(reason),
        other => other,
    })
}

/// Reads the text of a policy: JSON if it begins with a brace, else TOML. Simulated enclaves cannot be allowed by it.
///
/// # Errors
/// [`Error::Argument`], naming what is wrong.
pub fn parse(text: &str) -> Result<Policy> {
    let file: File = if text.trim_start().starts_with('{') {
        serde_json::from_str(text).map_err(|error| refused(error.to_string()))?
    } else {
        toml::from_str(text).map_err(|error| refused(error.to_string().trim_end().to_owned()))?
    };
    if file.tcb_statuses.contains(&TcbStatus::Revoked) {
        return Err(refused(
            "tcb_statuses: revoked platforms are never accepted".into(),
        ));
    }
    let compose_hashes = file.compose_hashes.iter();
    Ok(Policy {
        accept_development_root: false,
        extra_tcb_statuses: file.tcb_statuses,
        min_tcb_evaluation_number: file.min_tcb_evaluation_number,
        known_compose_hashes: compose_hashes
            .map(|text| digits("compose_hashes", text))
            .collect::<Result<_>>()?,
        known_os_images: file
            .os_images
            .into_iter()
            .map(OsImage::into_measurement)
            .collect::<Result<_>>()?,
        known_kms_ids: file.kms_ids,
    })
}

impl OsImage {
    fn into_measurement(self) -> Result<OsMeasurement> {
        let register = |key, text: &str| -> Result<Measurement> { digits(key, text) };
        Ok(OsMeasurement {
            mrtd: register("os_images.mrtd", &self.mrtd)?,
            rtmr: [
                register("os_images.rtmr0", &self.rtmr0)?,
                register("os_images.rtmr1", &self.rtmr1)?,
                register("os_images.rtmr2", &self.rtmr2)?,
            ],
            name: self.name,
        })
    }
}

fn digits<const N: usize>(key: &str, text: &str) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text.strip_prefix("0x").unwrap_or(text), &mut bytes).map_err(|_| {
        refused(format!(
            "{key}: `{text}` is not {} hexadecimal digits",
            2 * N
        ))
    })?;
    Ok(bytes)
}

fn refused(reason: String) -> Error {
    Error::Argument {
        name: "policy",
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "3763bc34552cf3a27ff71ad5f7a90471562a1a2df552dfc1998cba2d60da27e7";

    #[test]
    fn toml_and_json_say_the_same() {
        let register = "ab".repeat(48);
        let toml = format!(
            "tcb_statuses = ['SWHardeningNeeded']\nmin_tcb_evaluation_number = 17\ncompose_hashes = ['0x{HASH}']\nkms_ids = ['k']\n[[os_images]]\nname = 'x'\nmrtd = '{register}'\nrtmr0 = '{register}'\nrtmr1 = '{register}'\nrtmr2 = '{register}'\n"
        );
        let json = serde_json::json!({
            "tcb_statuses": ["SWHardeningNeeded"],
            "min_tcb_evaluation_number": 17,
            "compose_hashes": [HASH],
            "kms_ids": ["k"],
            "os_images": [{"name": "x", "mrtd": register, "rtmr0": register, "rtmr1": register, "rtmr2": register}],
        });
        let policy = parse(&toml).unwrap();
        assert_eq!(policy, parse(&json.to_string()).unwrap());
        assert_eq!(policy.extra_tcb_statuses, [TcbStatus::SWHardeningNeeded]);
        assert_eq!(hex::encode(policy.known_compose_hashes[0]), HASH);
        assert_eq!(policy.known_os_images[0].rtmr, [[0xab; 48]; 3]);
        assert_eq!(parse("").unwrap(), Policy::default());
    }

    #[test]
    fn mistakes_are_named_and_nothing_dangerous_is_accepted() {
        for (text, part) in [
            ("compose_hash = []", "compose_hash"),
            ("compose_hashes = ['12']", "64 hexadecimal digits"),
            ("tcb_statuses = ['Revoked']", "never accepted"),
            ("tcb_statuses = ['Fine']", "Fine"),
            ("accept_development_root = true", "accept_development_root"),
            ("{\"min_tcb_evaluation_number\": -1}", "-1"),
            ("[[os_images]]\nname = 'x'", "mrtd"),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.code(), "invalid_argument");
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
    }
}
