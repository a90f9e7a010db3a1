//! Collateral: what Intel signs about a platform besides its quote, and how a collateral service is asked for it.
//!
//! All of it is data: only [`crate::verify_quote`] says whether it proves anything, so it does not matter who hands it
//! over. This module opens no connection; a [`Transport`] does. The routes are those of Intel's *PCS* and of a caching
//! service (*PCCS*), both in version 4 of their interface.

use std::fmt;

use dcap_qvl::QuoteCollateralV3 as Collateral;
use dcap_qvl::config::{Config, ParsedCert, PckCa, X509Codec};
use dcap_qvl::configs::DefaultConfig;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::encoding;
use crate::quote::{QuoteError, TdxQuote};

/// Intel's own service. It limits how often one address may ask.
pub const INTEL_SERVICE: &str = "https://api.trustedservices.intel.com";
/// Services that are asked where none is named, in this order: a public cache of Intel's data, then Intel.
pub const PUBLIC_SERVICES: [&str; 2] = ["https://pccs.phala.network", INTEL_SERVICE];
/// Longest answer of a service that is worth reading, in bytes; real ones have some ten thousand.
pub const MAX_ANSWER_BYTES: usize = 1024 * 1024;

/// Where Intel's root publishes its revocation list; Intel's service has no route for it, caching services have.
const INTEL_ROOT_CRL: &str = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der";
/// First byte of a DER sequence. Some services answer hexadecimal text where DER is asked for.
const DER_SEQUENCE: u8 = 0x30;

/// Why there is no collateral.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CollateralError {
    /// The quote does not parse.
    #[error(transparent)]
    Quote(#[from] QuoteError),
    /// The quote's certificates name no platform.
    #[error("the quote does not say which platform it comes from: {reason}")]
    NoPlatform {
        /// What is wrong with its certificates.
        reason: String,
    },
    /// The service does not answer, or refuses.
    #[error(
        "{url} gives no collateral: {reason}; try again later, or ask another collateral service"
    )]
    Unreachable {
        /// The request.
        url: String,
        /// What happened.
        reason: String,
    },
    /// The answer has another shape.
    #[error("the answer of {url} is not collateral: {reason}; ask another collateral service")]
    Malformed {
        /// The request.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// The kind of machine that a quote comes from; all machines of a kind share their collateral.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Platform {
    fmspc: [u8; 6],
    authority: &'static str,
}

impl Platform {
    /// Reads the platform out of a binary quote's certificates. Nothing is proven by it.
    ///
    /// # Errors
    /// [`CollateralError::Quote`], [`CollateralError::NoPlatform`].
    pub fn of_quote(quote: &[u8]) -> Result<Self, CollateralError> {
        let no_platform = |reason: String| CollateralError::NoPlatform { reason };
        let version = TdxQuote::parse(quote)?.version;
        let certificates =
            encoding::certificates(quote, version).map_err(|reason| no_platform(reason.into()))?;
        let own = certificates
            .first()
            .ok_or_else(|| no_platform("it carries no certificate".into()))?;
        let extension = dcap_qvl::intel::parse_pck_extension(own)
            .map_err(|error| no_platform(format!("{error:#}")))?;
        let authority = <DefaultConfig as Config>::X509::from_der(own)
            .map_err(|error| no_platform(format!("{error:#}")))?
            .pck_ca()
            .unwrap_or(PckCa::Processor)
            .as_id_str();
        Ok(Self {
            fmspc: extension.fmspc,
            authority,
        })
    }
}

/// The family of processors (FMSPC) and the authority of the certificate; fit for a file name.
impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tdx-{}-{}", hex::encode(self.fmspc), self.authority)
    }
}

/// A service's answer to one request.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    /// Header names and values.
    pub headers: Vec<(String, String)>,
    /// The body, at most [`MAX_ANSWER_BYTES`].
    pub body: Vec<u8>,
}

impl Reply {
    /// A certificate chain, which services send as percent-encoded PEM.
    fn chain(&self, url: &str, names: &[&str]) -> Result<String, CollateralError> {
        let value = self
            .headers
            .iter()
            .find(|(header, _)| names.iter().any(|name| header.eq_ignore_ascii_case(name)))
            .map(|(_, value)| value)
            .ok_or_else(|| malformed(url, format!("there is no header {}", names.join(" or "))))?;
        percent_encoding::percent_decode_str(value)
            .decode_utf8()
            .map(Into::into)
            .map_err(|error| malformed(url, error))
    }

    /// A revocation list as DER.
    fn revocations(&self, url: &str) -> Result<Vec<u8>, CollateralError> {
        // Hexadecimal text of it begins with the digit 3, which is another byte.
        if self.body.first() == Some(&DER_SEQUENCE) {
            return Ok(self.body.clone());
        }
        hex::decode(self.body.trim_ascii())
            .map_err(|_| malformed(url, "it is neither DER nor hexadecimal"))
    }
}

/// Who sends the requests.
pub trait Transport: Sync {
    /// One GET; an answer of 200, or in words why there is none. It must end within a bounded time.
    fn get(&self, url: &str) -> impl Future<Output = Result<Reply, String>> + Send;
}

#[derive(Deserialize)]
struct SignedTcbInfo<'a> {
    // Intel signs these very bytes.
    #[serde(rename = "tcbInfo", borrow)]
    content: &'a RawValue,
    signature: &'a str,
}

#[derive(Deserialize)]
struct SignedIdentity<'a> {
    #[serde(rename = "enclaveIdentity", borrow)]
    content: &'a RawValue,
    signature: &'a str,
}

/// Asks one service for the collateral of a platform.
///
/// # Errors
/// [`CollateralError::Unreachable`], [`CollateralError::Malformed`].
pub async fn fetch<T: Transport>(
    transport: &T,
    service: &str,
    platform: &Platform,
) -> Result<Collateral, CollateralError> {
    let base = service.trim_end_matches('/');
    let get = async |url: String| match transport.get(&url).await {
        Ok(reply) => Ok((url, reply)),
        Err(reason) => Err(CollateralError::Unreachable { url, reason }),
    };
    let fmspc = hex::encode_upper(platform.fmspc);

    let route = format!("{base}/tdx/certification/v4/tcb?fmspc={fmspc}&update=standard");
    let (url, reply) = get(route).await?;
    let tcb_info_issuer_chain = reply.chain(
        &url,
        &["TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain"],
    )?;
    let signed: SignedTcbInfo<'_> =
        serde_json::from_slice(&reply.body).map_err(|error| malformed(&url, error))?;
    let tcb_info = signed.content.get().to_owned();
    let tcb_info_signature =
        hex::decode(signed.signature).map_err(|error| malformed(&url, error))?;

    let route = format!("{base}/tdx/certification/v4/qe/identity?update=standard");
    let (url, reply) = get(route).await?;
    let qe_identity_issuer_chain = reply.chain(&url, &["SGX-Enclave-Identity-Issuer-Chain"])?;
    let signed: SignedIdentity<'_> =
        serde_json::from_slice(&reply.body).map_err(|error| malformed(&url, error))?;
    let qe_identity = signed.content.get().to_owned();
    let qe_identity_signature =
        hex::decode(signed.signature).map_err(|error| malformed(&url, error))?;

    let authority = platform.authority;
    let route = format!("{base}/sgx/certification/v4/pckcrl?ca={authority}&encoding=der");
    let (url, reply) = get(route).await?;
    let pck_crl_issuer_chain = reply.chain(&url, &["SGX-PCK-CRL-Issuer-Chain"])?;
    let pck_crl = reply.revocations(&url)?;

    let route = if base == INTEL_SERVICE {
        INTEL_ROOT_CRL.to_owned()
    } else {
        format!("{base}/sgx/certification/v4/rootcacrl")
    };
    let (url, reply) = get(route).await?;
    let root_ca_crl = reply.revocations(&url)?;

    Ok(Collateral {
        pck_crl_issuer_chain,
        root_ca_crl,
        pck_crl,
        tcb_info_issuer_chain,
        tcb_info,
        tcb_info_signature,
        qe_identity_issuer_chain,
        qe_identity,
        qe_identity_signature,
        // The quote carries it.
        pck_certificate_chain: None,
    })
}

fn malformed(url: &str, reason: impl ToString) -> CollateralError {
    CollateralError::Malformed {
        url: url.to_owned(),
        reason: reason.to_string(),
    }
}
