//! The development root and everything it signs: certificates, revocation lists, collateral.
//!
//! The keys come from a seed that is written here, so anybody can issue under this root. That is the point: it can
//! never be mistaken for a secret, and every name in the certificates says what it is.

use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use dcap_qvl::QuoteCollateralV3;
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::der;

/// Seed of every key of the development PKI. Public on purpose.
const DEVELOPMENT_SEED: &str =
    "zerog development attestation root - simulated - not for production - v1";
/// Words that every subject name of this PKI contains.
pub const NAME_MARK: &str = "SIMULATED - NOT FOR PRODUCTION";
/// Signer measurement of the simulated quoting enclave.
pub(super) const QE_MR_SIGNER: [u8; 32] = [0x44; 32];

/// Certificates are valid from 2020 to 2100, in the two time forms that X.509 prescribes for these years.
const NOT_BEFORE: (u8, &str) = (0x17, "200101000000Z");
const NOT_AFTER: (u8, &str) = (0x18, "21000101000000Z");
/// Collateral is dated one day back, so that clocks may differ, and lasts thirty days, as Intel's does.
const ISSUED_BEFORE_S: u64 = 86_400;
const VALID_FOR_S: u64 = 30 * 86_400;

const ECDSA_WITH_SHA256: [u32; 7] = [1, 2, 840, 10045, 4, 3, 2];
const INTEL_EXTENSION: [u32; 7] = [1, 2, 840, 113_741, 1, 13, 1];

pub(super) struct DevelopmentPki {
    root_certificate: Vec<u8>,
    pck_key: SigningKey,
    pck_chain_pem: String,
    tcb_key: SigningKey,
    tcb_chain_pem: String,
    qe_identity_key: SigningKey,
    qe_identity_chain_pem: String,
    pck_ca_chain_pem: String,
    root_revocations: Vec<u8>,
    pck_revocations: Vec<u8>,
}

struct Subject<'a> {
    name: &'a str,
    key: &'a SigningKey,
}

impl DevelopmentPki {
    /// The one development PKI; built once a process.
    pub(super) fn get() -> &'static Self {
        static PKI: OnceLock<DevelopmentPki> = OnceLock::new();
        PKI.get_or_init(Self::build)
    }

    fn build() -> Self {
        let keys = ["root", "pck-ca", "pck", "tcb", "qe-identity"]
            .map(|name| deterministic_key(DEVELOPMENT_SEED.as_bytes(), name));
        let [root_key, pck_ca_key, pck_key, tcb_key, qe_identity_key] = keys;
        let root = Subject {
            name: "Development Root CA",
            key: &root_key,
        };
        let pck_ca = Subject {
            name: "Development PCK Processor CA",
            key: &pck_ca_key,
        };
        let root_certificate = certificate(1, &root, &root, &ca_extensions(&root));
        let pck_ca_certificate = certificate(2, &pck_ca, &root, &ca_extensions(&pck_ca));
        let leaf = |serial, name, key, issuer: &Subject<'_>, extra: &[Vec<u8>]| {
            let subject = Subject { name, key };
            certificate(
                serial,
                &subject,
                issuer,
                &[&leaf_extensions(issuer)[..], extra].concat(),
            )
        };
        let pck = leaf(
            3,
            "Development PCK",
            &pck_key,
            &pck_ca,
            &[platform_extension()],
        );
        let tcb = leaf(4, "Development TCB Signing", &tcb_key, &root, &[]);
        let qe_identity = leaf(
            5,
            "Development QE Identity Signing",
            &qe_identity_key,
            &root,
            &[],
        );
        Self {
            pck_chain_pem: pem(&[&pck, &pck_ca_certificate, &root_certificate]),
            tcb_chain_pem: pem(&[&tcb, &root_certificate]),
            qe_identity_chain_pem: pem(&[&qe_identity, &root_certificate]),
            pck_ca_chain_pem: pem(&[&pck_ca_certificate, &root_certificate]),
            root_revocations: revocation_list(&root),
            pck_revocations: revocation_list(&pck_ca),
            root_certificate,
            pck_key,
            tcb_key,
            qe_identity_key,
        }
    }

    pub(super) fn root_certificate(&self) -> &[u8] {
        &self.root_certificate
    }

    pub(super) fn pck_chain_pem(&self) -> &str {
        &self.pck_chain_pem
    }

    /// Signs as the platform's certified key does: raw `r ‖ s`.
    pub(super) fn sign_as_platform(&self, message: &[u8]) -> [u8; 64] {
        raw_signature(&self.pck_key, message)
    }

    /// Collateral dated around `now_s`, in Unix seconds.
    pub(super) fn collateral(&self, now_s: u64) -> QuoteCollateralV3 {
        let issued = rfc3339(now_s.saturating_sub(ISSUED_BEFORE_S));
        let next = rfc3339(now_s.saturating_add(VALID_FOR_S));
        let zeros = vec![json!({"svn": 0}); 16];
        let level_date = "2020-01-01T00:00:00Z";
        let tcb_info = json!({
            "id": "TDX", "version": 3, "issueDate": issued, "nextUpdate": next,
            "fmspc": "000000000000", "pceId": "0000", "tcbType": 0, "tcbEvaluationDataNumber": 1,
            "tdxModule": {"mrsigner": "00".repeat(48), "attributes": "00".repeat(8), "attributesMask": "FF".repeat(8)},
            "tcbLevels": [{
                "tcb": {"sgxtcbcomponents": zeros, "pcesvn": 0, "tdxtcbcomponents": zeros},
                "tcbDate": level_date, "tcbStatus": "UpToDate",
            }],
        })
        .to_string();
        let qe_identity = json!({
            "id": "TD_QE", "version": 2, "issueDate": issued, "nextUpdate": next, "tcbEvaluationDataNumber": 1,
            "miscselect": "00".repeat(4), "miscselectMask": "FF".repeat(4),
            "attributes": "00".repeat(16), "attributesMask": "FF".repeat(16),
            "mrsigner": hex::encode_upper(QE_MR_SIGNER), "isvprodid": 1,
            "tcbLevels": [{"tcb": {"isvsvn": 0}, "tcbDate": level_date, "tcbStatus": "UpToDate"}],
        })
        .to_string();
        QuoteCollateralV3 {
            pck_crl_issuer_chain: self.pck_ca_chain_pem.clone(),
            root_ca_crl: self.root_revocations.clone(),
            pck_crl: self.pck_revocations.clone(),
            tcb_info_issuer_chain: self.tcb_chain_pem.clone(),
            tcb_info_signature: raw_signature(&self.tcb_key, tcb_info.as_bytes()).to_vec(),
            tcb_info,
            qe_identity_issuer_chain: self.qe_identity_chain_pem.clone(),
            qe_identity_signature: raw_signature(&self.qe_identity_key, qe_identity.as_bytes())
                .to_vec(),
            qe_identity,
            pck_certificate_chain: Some(self.pck_chain_pem.clone()),
        }
    }
}

/// A P-256 key from a seed and a name.
pub(super) fn deterministic_key(seed: &[u8], name: &str) -> SigningKey {
    // A digest is at least the group order with probability 2^-32; the counter steps over it.
    (0u8..=255)
        .find_map(|counter| {
            let digest = Sha256::new()
                .chain_update(seed)
                .chain_update(name.as_bytes())
                .chain_update([counter])
                .finalize();
            SigningKey::from_bytes(&digest).ok()
        })
        .expect("one of 256 digests is below the order of P-256")
}

/// The 64 bytes `x ‖ y` of a public key.
pub(super) fn public_point(key: &SigningKey) -> [u8; 64] {
    let point = key.verifying_key().to_encoded_point(false);
    let mut bytes = [0u8; 64];
    for (place, byte) in bytes.iter_mut().zip(point.as_bytes().iter().skip(1)) {
        *place = *byte;
    }
    bytes
}

pub(super) fn raw_signature(key: &SigningKey, message: &[u8]) -> [u8; 64] {
    let signature: Signature = key.sign(message);
    signature.to_bytes().into()
}

fn certificate(
    serial: u8,
    subject: &Subject<'_>,
    issuer: &Subject<'_>,
    extensions: &[Vec<u8>],
) -> Vec<u8> {
    let body = der::sequence(&[
        der::tagged(0, &der::integer(2)),
        der::integer(serial),
        signature_algorithm(),
        distinguished_name(issuer.name),
        der::sequence(&[time(NOT_BEFORE), time(NOT_AFTER)]),
        distinguished_name(subject.name),
        public_key_info(subject.key),
        der::tagged(3, &der::sequence(extensions)),
    ]);
    signed(body, issuer.key)
}

fn revocation_list(issuer: &Subject<'_>) -> Vec<u8> {
    let number = extension(&[2, 5, 29, 20], false, &der::integer(1));
    let body = der::sequence(&[
        der::integer(1),
        signature_algorithm(),
        distinguished_name(issuer.name),
        time(NOT_BEFORE),
        time(NOT_AFTER),
        der::tagged(0, &der::sequence(&[authority_key_id(issuer), number])),
    ]);
    signed(body, issuer.key)
}

fn signed(body: Vec<u8>, key: &SigningKey) -> Vec<u8> {
    let signature: Signature = key.sign(&body);
    let signature = der::bits(signature.to_der().as_bytes());
    der::sequence(&[body, signature_algorithm(), signature])
}

fn ca_extensions(subject: &Subject<'_>) -> Vec<Vec<u8>> {
    // Key usage: keyCertSign and cRLSign, bits 5 and 6, so one unused bit at the end.
    let key_usage = der::element(0x03, &[1, 0b0000_0110]);
    vec![
        extension(
            &[2, 5, 29, 19],
            true,
            &der::sequence(&[der::boolean_true()]),
        ),
        extension(&[2, 5, 29, 15], true, &key_usage),
        extension(&[2, 5, 29, 14], false, &der::octets(&key_id(subject.key))),
    ]
}

fn leaf_extensions(issuer: &Subject<'_>) -> Vec<Vec<u8>> {
    // Key usage: digitalSignature, bit 0, so seven unused bits.
    vec![
        extension(
            &[2, 5, 29, 15],
            true,
            &der::element(0x03, &[7, 0b1000_0000]),
        ),
        authority_key_id(issuer),
    ]
}

fn authority_key_id(issuer: &Subject<'_>) -> Vec<u8> {
    extension(
        &[2, 5, 29, 35],
        false,
        &der::sequence(&[der::element(0x80, &key_id(issuer.key))]),
    )
}

/// Intel's extension of a platform certificate: identity and security versions, all zero here.
fn platform_extension() -> Vec<u8> {
    let member = |path: &[u32], value: Vec<u8>| {
        der::sequence(&[der::oid(&[&INTEL_EXTENSION[..], path].concat()), value])
    };
    let mut versions: Vec<Vec<u8>> = (1..=16)
        .map(|component| member(&[2, component], der::integer(0)))
        .collect();
    versions.push(member(&[2, 17], der::integer(0)));
    versions.push(member(&[2, 18], der::octets(&[0; 16])));
    let members = [
        member(&[1], der::octets(&[0; 16])),
        member(&[2], der::sequence(&versions)),
        member(&[3], der::octets(&[0; 2])),
        member(&[4], der::octets(&[0; 6])),
        member(&[5], der::enumerated(0)),
    ];
    extension(&INTEL_EXTENSION, false, &der::sequence(&members))
}

fn extension(id: &[u32], critical: bool, value: &[u8]) -> Vec<u8> {
    let mut parts = vec![der::oid(id)];
    if critical {
        parts.push(der::boolean_true());
    }
    parts.push(der::octets(value));
    der::sequence(&parts)
}

fn signature_algorithm() -> Vec<u8> {
    der::sequence(&[der::oid(&ECDSA_WITH_SHA256)])
}

fn distinguished_name(name: &str) -> Vec<u8> {
    let attribute =
        |id: &[u32], value: &str| der::set(&[der::sequence(&[der::oid(id), der::text(value)])]);
    der::sequence(&[
        attribute(&[2, 5, 4, 3], &format!("{NAME_MARK} {name}")),
        attribute(&[2, 5, 4, 10], "zerog development"),
    ])
}

fn public_key_info(key: &SigningKey) -> Vec<u8> {
    let algorithm = der::sequence(&[
        der::oid(&[1, 2, 840, 10045, 2, 1]),
        der::oid(&[1, 2, 840, 10045, 3, 1, 7]),
    ]);
    der::sequence(&[
        algorithm,
        der::bits(&[&[4], &public_point(key)[..]].concat()),
    ])
}

fn key_id(key: &SigningKey) -> Vec<u8> {
    crate::sha256(&public_point(key))
        .into_iter()
        .take(20)
        .collect()
}

fn time((tag, text): (u8, &str)) -> Vec<u8> {
    der::element(tag, text.as_bytes())
}

fn pem(certificates: &[&Vec<u8>]) -> String {
    let mut text = String::new();
    for certificate in certificates {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let encoded = BASE64.encode(certificate);
        let mut rest = encoded.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(64));
            text.push_str(line);
            text.push('\n');
            rest = after;
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

/// Unix seconds as RFC 3339 in UTC, whole seconds.
fn rfc3339(unix_s: u64) -> String {
    let days = unix_s / 86_400;
    let second_of_day = unix_s % 86_400;
    // Howard Hinnant's days-to-civil, for days after 1970 only.
    let shifted = days.saturating_add(719_468);
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era
        .saturating_sub(day_of_era / 1460)
        .saturating_add(day_of_era / 36_524)
        .saturating_sub(day_of_era / 146_096))
        / 365;
    let day_of_year =
        day_of_era.saturating_sub(365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 {
        month_index + 3
    } else {
        month_index - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (
        second_of_day / 3600,
        second_of_day / 60 % 60,
        second_of_day % 60,
    );
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_civil() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(rfc3339(1_767_225_599), "2025-12-31T23:59:59Z");
    }
}
