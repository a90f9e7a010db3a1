//! Where TLS ends: the key of a connection, and the evidence that a certificate may carry itself (RA-TLS).
//!
//! dstack writes its quote into the certificates that it issues: extension 1.3.6.1.4.1.62397.1.1, an octet string, over
//! the report data SHA-512(`ratls-cert:` ‖ the certificate's SubjectPublicKeyInfo).

use sha2::{Digest, Sha512};
use x509_cert::Certificate;
use x509_cert::der::asn1::{ObjectIdentifier, OctetStringRef};
use x509_cert::der::{Decode, Encode};

use crate::sha256;

const RA_TLS_QUOTE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.62397.1.1");
const RA_TLS_TAG: &[u8] = b"ratls-cert:";

/// How the evidence came to the caller.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Connection {
    /// Out of a file, or by hands that the caller does not know.
    #[default]
    Unknown,
    /// In clear, from this machine.
    Local,
    /// In clear, over a network.
    Plain,
    /// Over TLS, whose certificate the caller's TLS library has accepted.
    Tls(PeerCertificate),
    /// Over TLS, with a certificate that could not be read here.
    UnreadableTls,
}

/// The certificate at the other end of a TLS connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// SHA-256 of the SubjectPublicKeyInfo.
    pub key_sha256: [u8; 32],
    /// The quote inside, unproven.
    pub quote: Option<Vec<u8>>,
    /// What such a quote has as report data when it is about this certificate's key.
    pub ra_tls_report_data: [u8; 64],
}

/// The bytes are no certificate.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the connection's certificate cannot be read")]
pub struct CertificateError;

impl PeerCertificate {
    /// Reads a certificate in DER. Its signature is the TLS library's business.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        let certificate = Certificate::from_der(der).map_err(|_| CertificateError)?;
        let certificate = certificate.tbs_certificate();
        let key = certificate
            .subject_public_key_info()
            .to_der()
            .map_err(|_| CertificateError)?;
        let quote = certificate
            .extensions()
            .into_iter()
            .flatten()
            .find(|extension| extension.extn_id == RA_TLS_QUOTE)
            .map(|extension| {
                let content = extension.extn_value.as_bytes();
                // Bytes of another form are no quote, and are found to be none later.
                <&OctetStringRef>::from_der(content)
                    .map_or(content, OctetStringRef::as_bytes)
                    .to_vec()
            });
        let report_data = Sha512::new().chain_update(RA_TLS_TAG).chain_update(&key);
        Ok(Self {
            key_sha256: sha256(&key),
            quote,
            ra_tls_report_data: report_data.finalize().into(),
        })
    }
}
