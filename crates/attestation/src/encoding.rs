//! The one encoding of a quote. A verifier of signatures skips what no signature covers: lengths, the text form of the
//! certificates, the quote's own copy of the root. Here each of them must be what a platform writes, so that no byte of an
//! accepted quote can be another one.
//!
//! Layout: Intel, *TDX DCAP Quoting Library API*, appendix A.3 and A.4.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Bytes of header and body under the signature: version 4.
const SIGNED_V4: usize = 48 + 584;
/// Version 5 has a header and, before the body, its type and length.
const DESCRIPTOR_END_V5: usize = 48 + 6;
/// Signature and public key of the attestation key.
const ATTESTATION: usize = 128;
/// Report of the quoting enclave and its signature.
const QE_REPORT: usize = 384 + 64;
/// Certification data that holds the report of the quoting enclave, and that holds a PEM chain.
const QE_REPORT_DATA: u16 = 6;
const PCK_CHAIN: u16 = 5;
/// Characters in a line of PEM.
const PEM_LINE: usize = 64;

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// The certificates of a quote in DER, from the platform's to the root; or what is not as platforms write it. Zeros behind
/// the quote are padding.
pub(crate) fn certificates(quote: &[u8], version: u16) -> Result<Vec<Vec<u8>>, &'static str> {
    const SHORT: &str = "the quote ends too early";
    let signed = match version {
        4 => SIGNED_V4,
        _ => {
            let length = Reader(quote.get(DESCRIPTOR_END_V5 - 4..).ok_or(SHORT)?).length()?;
            DESCRIPTOR_END_V5.checked_add(length).ok_or(SHORT)?
        }
    };
    let mut rest = Reader(quote.get(signed..).ok_or(SHORT)?);
    let length = rest.length()?;
    let mut authentication = Reader(rest.take(length)?);
    if rest.0.iter().any(|byte| *byte != 0) {
        return Err("there is something behind the quote");
    }
    authentication.take(ATTESTATION)?;
    let mut report = Reader(authentication.certification(QE_REPORT_DATA)?);
    authentication.end()?;
    report.take(QE_REPORT)?;
    let length = report.u16()?;
    report.take(length.into())?;
    let chain = report.certification(PCK_CHAIN)?;
    report.end()?;
    parse_pem(chain)
}

/// What is left of the bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self
            .0
            .split_at_checked(length)
            .ok_or("a length goes beyond the quote")?;
        self.0 = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, &'static str> {
        let bytes = self.take(2)?;
        Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    fn length(&mut self) -> Result<usize, &'static str> {
        let bytes = self.take(4)?;
        let length = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        usize::try_from(length).map_err(|_| "a length goes beyond the quote")
    }

    /// Certification data of a type.
    fn certification(&mut self, expected: u16) -> Result<&'a [u8], &'static str> {
        if self.u16()? != expected {
            return Err("the certification data is of another type");
        }
        let length = self.length()?;
        self.take(length)
    }

    fn end(&self) -> Result<(), &'static str> {
        match self.0 {
            [] => Ok(()),
            _ => Err("a length is too small"),
        }
    }
}

/// Certificates in the PEM form that Intel's service gives out: lines of 64 characters, every line ended, and after the last
/// one at most the zero of a C string.
fn parse_pem(bytes: &[u8]) -> Result<Vec<Vec<u8>>, &'static str> {
    const FORM: &str = "the certificates are not in the form that platforms write";
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|_| FORM)?;
    let mut lines = text.strip_suffix('\n').ok_or(FORM)?.split('\n');
    let mut certificates = Vec::new();
    while let Some(first) = lines.next() {
        if first != BEGIN {
            return Err(FORM);
        }
        let mut content = String::new();
        let mut is_last = false;
        loop {
            let line = lines.next().ok_or(FORM)?;
            if line == END {
                break;
            }
            if is_last || line.is_empty() || line.len() > PEM_LINE {
                return Err(FORM);
            }
            is_last = line.len() < PEM_LINE;
            content.push_str(line);
        }
        certificates.push(STANDARD.decode(content).map_err(|_| FORM)?);
    }
    Ok(certificates)
}
