//! The fields of a TDX quote (versions 4 and 5) that a verdict needs. Signatures are the business of `verify`.

use dcap_qvl::quote::Quote;

use crate::Measurement;

/// Longest quote that is parsed, in bytes. Real ones have about 5,000; some are padded to 16,000.
pub const MAX_QUOTE_BYTES: usize = 64 * 1024;

/// TEE type of TDX in a quote header; 0 would be SGX.
const TEE_TYPE_TDX: u32 = 0x81;

/// Header user data of every quote of the simulated back-end, inside the signed part.
pub const SIMULATED_USER_DATA: &[u8; 20] = b"SIMULATED NOT A TEE ";

/// Why bytes are not a TDX quote.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuoteError {
    /// The text is not bare hexadecimal.
    #[error("the quote is not hexadecimal text")]
    NotHex,
    /// More than [`MAX_QUOTE_BYTES`].
    #[error("the quote has {bytes} bytes, more than {MAX_QUOTE_BYTES}")]
    TooLong {
        /// Size found.
        bytes: usize,
    },
    /// The bytes do not have the layout of a quote.
    #[error("the quote does not parse: {reason}")]
    Malformed {
        /// What the parser found.
        reason: String,
    },
    /// A quote of another technology, such as SGX.
    #[error(
        "the quote is of TEE type {tee_type:#x}, version {version}; expected TDX (0x81), version 4 or 5"
    )]
    NotTdx {
        /// TEE type in the header.
        tee_type: u32,
        /// Version in the header.
        version: u16,
    },
}

/// What a TDX quote says. None of it is proven before [`crate::verify_quote`] has accepted the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TdxQuote {
    /// Quote version, 4 or 5.
    pub version: u16,
    /// Vendor id of the quoting enclave.
    pub qe_vendor_id: [u8; 16],
    /// Free bytes of the header; [`SIMULATED_USER_DATA`] marks a simulated quote.
    pub user_data: [u8; 20],
    /// Attributes of the trust domain; bit 0 of the first byte is DEBUG.
    pub td_attributes: [u8; 8],
    /// Measurement of the TDX module.
    pub mr_seam: Measurement,
    /// Measurement of the firmware.
    pub mrtd: Measurement,
    /// Configuration identity; new dstack guests put the compose hash here.
    pub mr_config_id: Measurement,
    /// Owner identity.
    pub mr_owner: Measurement,
    /// Owner configuration.
    pub mr_owner_config: Measurement,
    /// Run-time measurement registers 0 to 3.
    pub rtmr: [Measurement; 4],
    /// Measurement of bound service domains (TDX 1.5 bodies only).
    pub mr_service_td: Option<Measurement>,
    /// The 64 bytes that the guest chose.
    pub report_data: [u8; 64],
}

impl TdxQuote {
    /// Parses the binary form of a quote.
    ///
    /// # Errors
    /// [`QuoteError::TooLong`], [`QuoteError::Malformed`], [`QuoteError::NotTdx`].
    pub fn parse(bytes: &[u8]) -> Result<Self, QuoteError> {
        if bytes.len() > MAX_QUOTE_BYTES {
            return Err(QuoteError::TooLong { bytes: bytes.len() });
        }
        let quote = Quote::parse(bytes).map_err(|error| QuoteError::Malformed {
            reason: format!("{error:#}"),
        })?;
        let (header, report) = (&quote.header, &quote.report);
        let not_tdx = QuoteError::NotTdx {
            tee_type: header.tee_type,
            version: header.version,
        };
        if header.tee_type != TEE_TYPE_TDX || !(header.version == 4 || header.version == 5) {
            return Err(not_tdx);
        }
        let Some(body) = report.as_td10() else {
            return Err(not_tdx);
        };
        Ok(Self {
            version: header.version,
            qe_vendor_id: header.qe_vendor_id,
            user_data: header.user_data,
            td_attributes: body.td_attributes,
            mr_seam: body.mr_seam,
            mrtd: body.mr_td,
            mr_config_id: body.mr_config_id,
            mr_owner: body.mr_owner,
            mr_owner_config: body.mr_owner_config,
            rtmr: [body.rt_mr0, body.rt_mr1, body.rt_mr2, body.rt_mr3],
            mr_service_td: report.as_td15().map(|body| body.mr_service_td),
            report_data: body.report_data,
        })
    }

    /// Parses the hexadecimal form, without `0x` (the official verifier container refuses the prefix).
    ///
    /// # Errors
    /// [`QuoteError::NotHex`] and those of [`TdxQuote::parse`].
    pub fn parse_hex(text: &str) -> Result<Self, QuoteError> {
        Self::parse(&hex::decode(text).map_err(|_| QuoteError::NotHex)?)
    }

    /// Whether the host may read this domain's memory.
    pub fn is_debug(&self) -> bool {
        self.td_attributes.first().is_some_and(|byte| byte & 1 == 1)
    }

    /// Whether the header says that the quote is simulated. A hardware quote never does.
    pub fn is_marked_simulated(&self) -> bool {
        &self.user_data == SIMULATED_USER_DATA
    }

    /// SHA-256 over MRTD and RTMR0–3, and over the three configuration registers if any of them is set
    /// (dstack's `mr_aggregated`).
    pub fn mr_aggregated(&self) -> [u8; 32] {
        let mut joined = self.mrtd.to_vec();
        for register in &self.rtmr {
            joined.extend_from_slice(register);
        }
        let configuration = [self.mr_config_id, self.mr_owner, self.mr_owner_config].concat();
        if configuration.iter().any(|byte| *byte != 0) {
            joined.extend_from_slice(&configuration);
        }
        crate::sha256(&joined)
    }
}
