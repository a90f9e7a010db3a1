//! Every public sample quote with its result: verified, refused and why, or parsed alone; each at the borders of the time
//! in which its collateral holds.
//!
//! Not here, since no package registry carries them: dstack's `verifier/fixtures/tdx-lite-attestation.json` (a versioned
//! attestation, which providers do not serve), `dstack-util/tests/fixtures/gpu_attestation_h100.json` and
//! `cc-eventlog/samples/ccel.bin` (inputs of the guest, not of a verifier), and the quotes of Automata's
//! `automata-dcap-attestation` (`rust-crates/samples/quotev4.hex`, `evm/forge-test/assets/quotes/`), which come without the
//! collateral of their time. The collateral of `dstack_lite_report.json` is not public: `real_quotes` replays its log.

use zerog_attestation::{
    Collateral, QuoteError, Rejection, TdxQuote, TrustRoot, VerifyError, verify_quote,
};

use crate::fixture;

/// A quote with its collateral and what must come of it while the collateral holds.
struct Sample {
    quote: &'static str,
    version: u16,
    collateral: &'static str,
    /// First second in which the collateral holds, and first in which it does not any more. A revocation list ends with its
    /// `nextUpdate`, signed JSON one second later.
    window: (u64, u64),
    /// The TCB status, or why it is refused.
    result: Result<&'static str, Rejection>,
    /// Why it is refused before and after; the end is the earliest of several.
    outside: (Rejection, Rejection),
}

const SAMPLES: [Sample; 4] = [
    Sample {
        quote: "tdx_v4.bin",
        version: 4,
        collateral: "tdx_v4_collateral.json",
        window: (1_750_329_147, 1_752_919_235),
        result: Ok("UpToDate"),
        outside: (Rejection::NotYetValid, Rejection::Expired),
    },
    Sample {
        quote: "tdx_v5.bin",
        version: 5,
        collateral: "dstack_collateral.json",
        window: (1_771_412_331, 1_774_003_275),
        result: Err(Rejection::OutOfDate),
        outside: (Rejection::NotYetValid, Rejection::Expired),
    },
    Sample {
        quote: "tdx_td15ex.bin",
        version: 5,
        collateral: "tdx_td15ex_collateral.json",
        window: (1_791_419_306, 1_794_008_712),
        result: Ok("UpToDate"),
        outside: (Rejection::NotYetValid, Rejection::Expired),
    },
    Sample {
        quote: "dstack_report.json",
        version: 4,
        collateral: "dstack_collateral.json",
        window: (1_771_412_331, 1_774_003_275),
        result: Ok("UpToDate"),
        outside: (Rejection::NotYetValid, Rejection::Expired),
    },
];

fn quote(name: &str) -> Vec<u8> {
    let bytes = fixture(name);
    if !name.ends_with(".json") {
        return bytes;
    }
    let report: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    hex::decode(report["quote"].as_str().unwrap()).unwrap()
}

fn collateral(name: &str) -> Collateral {
    serde_json::from_slice(&fixture(name)).unwrap()
}

/// TCB status and advisories, or why it is refused.
fn outcome(
    quote: &[u8],
    collateral: &Collateral,
    now_s: u64,
) -> Result<(String, Vec<String>), Rejection> {
    match verify_quote(quote, collateral, &TrustRoot::Intel, now_s) {
        Ok(verified) => Ok((verified.tcb_status.to_string(), verified.advisory_ids)),
        Err(error) => Err(error
            .rejection()
            .unwrap_or_else(|| panic!("not a quote: {error}"))),
    }
}

#[test]
fn every_sample_has_its_stated_result_exactly_while_its_collateral_holds() {
    for sample in &SAMPLES {
        let (quote, collateral) = (quote(sample.quote), collateral(sample.collateral));
        assert_eq!(TdxQuote::parse(&quote).unwrap().version, sample.version);
        let at = |now_s| outcome(&quote, &collateral, now_s);
        let expected = sample
            .result
            .map(|status| (status.to_owned(), Vec::<String>::new()));
        let (first, end) = sample.window;
        for now_s in [first, first + 1, (first + end) / 2, end - 1] {
            assert_eq!(at(now_s), expected, "{} at {now_s}", sample.quote);
        }
        let (before, after) = sample.outside;
        assert_eq!(at(first - 1), Err(before), "{} before", sample.quote);
        assert_eq!(at(end), Err(after), "{} after", sample.quote);
        assert_eq!(at(0), Err(before));
        assert_eq!(at(u64::from(u32::MAX)), Err(after));
    }
}

#[test]
fn a_flipped_bit_is_a_forgery_in_every_sample_that_verifies() {
    for sample in SAMPLES.iter().filter(|sample| sample.result.is_ok()) {
        let (quote, collateral) = (quote(sample.quote), collateral(sample.collateral));
        // A version 5 quote has its body's type and length in front of the body.
        let shift = if sample.version == 5 { 6 } else { 0 };
        for (field, position) in [("RTMR3", 520), ("REPORT_DATA", 568)] {
            let mut changed = quote.clone();
            changed[position + shift] ^= 1;
            let found = outcome(&changed, &collateral, sample.window.0);
            assert_eq!(found, Err(Rejection::Forged), "{field} of {}", sample.quote);
        }
    }
}

#[test]
fn other_roots_and_other_collateral_vouch_for_nothing() {
    let (v4, own) = (quote("tdx_v4.bin"), collateral("tdx_v4_collateral.json"));
    let now_s = 1_771_412_331;
    assert_eq!(
        outcome(&v4, &collateral("dstack_collateral.json"), now_s),
        Err(Rejection::ForeignCollateral)
    );
    let now_s = 1_750_329_147;
    let development = verify_quote(&v4, &own, &TrustRoot::Development, now_s).unwrap_err();
    assert_eq!(development.rejection(), Some(Rejection::OtherRoot));
    let sgx = collateral("sgx_v3_collateral.json");
    assert_eq!(
        outcome(&v4, &sgx, 1_750_330_571),
        Err(Rejection::Other),
        "an SGX identity says nothing about TDX"
    );
    for (change, expected) in [
        (
            (|c: &mut Collateral| c.tcb_info = c.tcb_info.replacen("UpToDate", "Revoked", 1))
                as fn(&mut Collateral),
            Rejection::Forged,
        ),
        (
            |c| c.qe_identity = c.qe_identity.replacen("UpToDate", "OutOfDate", 1),
            Rejection::Forged,
        ),
        (|c| c.tcb_info_signature[0] ^= 1, Rejection::Forged),
        (|c| c.tcb_info.clear(), Rejection::Other),
        (|c| c.pck_crl.truncate(20), Rejection::Other),
    ] {
        let mut changed = own.clone();
        change(&mut changed);
        assert_eq!(outcome(&v4, &changed, now_s), Err(expected));
    }
}

/// Collateral may bring a chain of its own for the platform; the quote's chain counts all the same.
#[test]
fn a_chain_in_the_collateral_does_not_replace_the_quotes_own() {
    let collateral = collateral("tdx_td15ex_collateral.json");
    assert!(collateral.pck_certificate_chain.is_some());
    let (quote, now_s) = (quote("tdx_td15ex.bin"), 1_792_000_000);
    assert!(outcome(&quote, &collateral, now_s).is_ok());
    let without = Collateral {
        pck_certificate_chain: None,
        ..collateral.clone()
    };
    assert!(outcome(&quote, &without, now_s).is_ok());
    let begin = b"-----BEGIN CERTIFICATE-----\n";
    let certificate = quote
        .windows(begin.len())
        .position(|window| window == begin)
        .unwrap();
    let mut changed = quote;
    // A letter of the platform's certificate, where its base64 stays whole.
    let letter = &mut changed[certificate + begin.len() + 300];
    *letter = if *letter == b'Q' { b'R' } else { b'Q' };
    assert!(outcome(&changed, &collateral, now_s).is_err());
}

#[test]
fn a_refusal_says_what_to_do() {
    let error = verify_quote(
        &quote("tdx_v4.bin"),
        &collateral("tdx_v4_collateral.json"),
        &TrustRoot::Intel,
        1_752_919_235,
    )
    .unwrap_err()
    .to_string();
    assert!(error.contains("(expired)"), "{error}");
    assert!(error.contains("fetched anew"), "{error}");
}

/// An SGX quote may be genuine, and is still no quote of a trust domain.
#[test]
fn sgx_quotes_are_genuine_and_refused_all_the_same() {
    let quote = fixture("sgx_v3.bin");
    let collateral = collateral("sgx_v3_collateral.json");
    let (first, end) = (1_750_330_571, 1_752_919_279);
    let verifier = dcap_qvl::verify::QuoteVerifier::new_prod();
    for now_s in [first, end - 1] {
        let report = verifier.verify(&quote, &collateral, now_s).unwrap();
        assert_eq!(
            report.status.to_string(),
            "ConfigurationAndSWHardeningNeeded"
        );
        assert_eq!(
            report.advisory_ids,
            ["INTEL-SA-00289", "INTEL-SA-00615"],
            "at {now_s}"
        );
        let refused = verify_quote(&quote, &collateral, &TrustRoot::Intel, now_s).unwrap_err();
        assert_eq!(
            refused,
            VerifyError::Quote(QuoteError::NotTdx {
                tee_type: 0,
                version: 3
            })
        );
        assert_eq!(refused.rejection(), None);
    }
    for now_s in [first - 1, end] {
        assert!(verifier.verify(&quote, &collateral, now_s).is_err());
    }
}

#[test]
fn quotes_as_text_parse_bare_and_only_bare() {
    let bare = String::from_utf8(fixture("tdx_tappd.hex")).unwrap();
    let prefixed = String::from_utf8(fixture("tdx_prefixed.hex")).unwrap();
    let (bare, prefixed) = (bare.trim(), prefixed.trim());
    let first = TdxQuote::parse_hex(bare).unwrap();
    assert_eq!((first.version, first.is_debug()), (4, false));
    assert_eq!(
        TdxQuote::parse_hex(&bare.to_uppercase()).unwrap(),
        first,
        "upper case is the same bytes"
    );
    assert_eq!(TdxQuote::parse_hex(prefixed), Err(QuoteError::NotHex));
    let second = TdxQuote::parse_hex(prefixed.strip_prefix("0x").unwrap()).unwrap();
    assert_eq!(second.version, 4);
    assert_ne!(first, second);
}
