//! No changed evidence is accepted, whatever is changed: a signed field of a quote, a length, a certificate or its text
//! form, a member of a report, an entry of an event log.
//!
//! The ordinary run tries some hundreds. `ZEROG_MUTATED_QUOTES=100000` tries as many as it says; `cargo xtask mutations`
//! does so, and is a part of `cargo xtask test --all`.

use std::sync::atomic::{AtomicUsize, Ordering};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use zerog_attestation::bundle::sign_body;
use zerog_attestation::event_log::{self, Event};
use zerog_attestation::policy::Level;
use zerog_attestation::{
    CheckId, CheckStatus, Collateral, EnclaveKeys, Evidence, Policy, QuoteBundle, Simulated,
    SimulatedOptions, TeeBackend, TrustRoot, Verdict, VerifyError, evaluate, report_data,
    verify_quote,
};

use crate::fixture;

const TIME_OF_V4: u64 = 1_751_000_000;
const TIME_OF_V5: u64 = 1_792_000_000;
const TIME_OF_DSTACK: u64 = 1_772_000_000;
const NOW: u64 = 1_790_000_000;
/// Mutations of an ordinary run.
const FEW: usize = 800;
/// Of so many changed reports, one has its event log changed entry by entry.
const LOGS: usize = 3;

/// One kind of evidence: changes it by a random number generator, and says whether that was a change at all. A change that
/// is accepted panics.
trait Target: Sync {
    fn try_one(&self, random: &mut StdRng) -> Outcome;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The change gave what there was.
    Unchanged,
    /// Refused before any signature was looked at.
    Early,
    /// Refused by signatures, or judged as what it is.
    Judged,
}

/// One random change: a flipped bit, another byte, a swapped, repeated or zeroed range, or another length.
fn mutate(original: &[u8], random: &mut StdRng) -> Vec<u8> {
    let mut changed = original.to_vec();
    let at = random.random_range(0..original.len());
    let length = random.random_range(1..=64).min(original.len() - at);
    match random.random_range(0..8) {
        0..=2 => changed[at] ^= 1 << random.random_range(0..8),
        3 => changed[at] = random.random(),
        4 => random.fill(&mut changed[at..at + length]),
        5 => changed[at..at + length].fill(0),
        6 => changed.truncate(at),
        _ => {
            let to = random.random_range(0..=original.len() - length);
            changed.copy_within(at..at + length, to);
        }
    }
    changed
}

/// A hardware quote alone, under Intel's root.
struct Quote {
    bytes: Vec<u8>,
    collateral: Collateral,
    now_s: u64,
}

impl Quote {
    /// `data_at` is where the length of the signature data stands.
    fn new(quote: &str, collateral: &str, data_at: usize, now_s: u64) -> Self {
        let mut bytes = fixture(quote);
        let collateral = serde_json::from_slice(&fixture(collateral)).unwrap();
        let verify = |quote: &[u8]| verify_quote(quote, &collateral, &TrustRoot::Intel, now_s);
        let padded = verify(&bytes).unwrap();
        // The zeros behind it are not part of the quote: fewer of them are no change.
        let length = u32::from_le_bytes(bytes[data_at..data_at + 4].try_into().unwrap());
        bytes.truncate(data_at + 4 + length as usize);
        assert_eq!(verify(&bytes).unwrap(), padded);
        Self {
            bytes,
            collateral,
            now_s,
        }
    }
}

impl Target for Quote {
    fn try_one(&self, random: &mut StdRng) -> Outcome {
        let changed = mutate(&self.bytes, random);
        if changed == self.bytes {
            return Outcome::Unchanged;
        }
        match verify_quote(&changed, &self.collateral, &TrustRoot::Intel, self.now_s) {
            Err(VerifyError::Quote(_)) => Outcome::Early,
            Err(_) => Outcome::Judged,
            Ok(accepted) => panic!("accepted: {accepted:?}"),
        }
    }
}

/// A whole report, judged as a client does. What is signed or measured may not pass when it is changed.
struct Report {
    body: Value,
    collateral: Option<Collateral>,
    signature: Option<String>,
    keys: Option<EnclaveKeys>,
    policy: Policy,
    now_s: u64,
    /// The bundle and verdict of the unchanged report.
    bundle: QuoteBundle,
    verdict: Verdict,
}

impl Report {
    fn new(
        body: Value,
        collateral: Option<Collateral>,
        keys: Option<EnclaveKeys>,
        policy: Policy,
        now_s: u64,
    ) -> Self {
        let text = body.to_string();
        let bundle = QuoteBundle::parse(text.as_bytes()).unwrap();
        let signature = keys
            .as_ref()
            .map(|keys| sign_body(&keys.signer, text.as_bytes()));
        let verdict = judge(
            text.as_bytes(),
            signature.as_deref(),
            collateral.as_ref(),
            keys.as_ref(),
            &policy,
            now_s,
        );
        for id in [CheckId::QuoteSignature, CheckId::EventLog] {
            assert_eq!(verdict.check(id).unwrap().status, CheckStatus::Pass, "{id}");
        }
        Self {
            body,
            collateral,
            signature,
            keys,
            policy,
            now_s,
            bundle,
            verdict,
        }
    }

    /// A real report of a dstack guest. It names no signer, so its level is FAILED from the beginning; its checks count.
    fn dstack() -> Self {
        let mut body: Value = serde_json::from_slice(&fixture("dstack_report.json")).unwrap();
        let data = hex::decode(body["report_data"].as_str().unwrap()).unwrap();
        body["report_data"] = report_data::to_base64(&data.try_into().unwrap()).into();
        let collateral = serde_json::from_slice(&fixture("dstack_collateral.json")).unwrap();
        Self::new(
            body,
            Some(collateral),
            None,
            Policy::default(),
            TIME_OF_DSTACK,
        )
    }

    /// A simulated enclave's, whose level is SIMULATED.
    fn simulated() -> Self {
        let backend = Simulated::new(SimulatedOptions::new([7; 32]).program_sha256([0xab; 32]));
        let keys = EnclaveKeys::derive(&backend).unwrap();
        let bundle = backend.quote(&keys.structured_report_data()).unwrap();
        let body = serde_json::from_str(&bundle.to_json()).unwrap();
        let report = Self::new(body, None, Some(keys), Policy::devnet(), NOW);
        assert_eq!(report.verdict.level, Level::Simulated);
        report
    }

    /// The report with another event log.
    fn with_changed_log(&self, random: &mut StdRng) -> Vec<u8> {
        let mut events = event_log::parse(&self.bundle.event_log).unwrap();
        let at = random.random_range(0..events.len());
        let other = random.random_range(0..events.len());
        match random.random_range(0..9) {
            0 => drop(events.remove(at)),
            1 => events.swap(at, other),
            2 => events.insert(other, events[at].clone()),
            3 => events[at].digest.clear(),
            4 => events[at].digest = hex::encode(random.random::<[u8; 48]>()),
            5 => events[at].event_payload = hex::encode(random.random::<[u8; 32]>()),
            6 => events[at].event.push('x'),
            7 => events[at].imr = random.random_range(0..6),
            _ => events.push(Event::runtime("compose-hash", &[9; 32])),
        }
        let mut body = self.body.clone();
        body["event_log"] = serde_json::to_string(&events).unwrap().into();
        body.to_string().into_bytes()
    }
}

impl Target for Report {
    fn try_one(&self, random: &mut StdRng) -> Outcome {
        let original = self.body.to_string();
        let changed = if random.random_range(0..LOGS) == 0 {
            self.with_changed_log(random)
        } else {
            mutate(original.as_bytes(), random)
        };
        if changed == original.as_bytes() {
            return Outcome::Unchanged;
        }
        // Without a signature over the body, everything rests on the quote and what it measures.
        let signature = self
            .signature
            .as_deref()
            .filter(|_| random.random_range(0..4) == 0);
        let verdict = judge(
            &changed,
            signature,
            self.collateral.as_ref(),
            self.keys.as_ref(),
            &self.policy,
            self.now_s,
        );
        let passes = |id| verdict.check(id).map(|check| check.status) == Some(CheckStatus::Pass);
        assert!(
            matches!(verdict.level, Level::Failed | Level::Simulated),
            "{:#?}",
            verdict.checks
        );
        assert!(
            !(signature.is_some() && passes(CheckId::BodySignature)),
            "the signature of another body passes"
        );
        let Ok(bundle) = QuoteBundle::parse(&changed) else {
            assert_eq!(verdict.level, Level::Failed);
            return Outcome::Early;
        };
        if passes(CheckId::QuoteSignature) {
            assert_eq!(bundle.quote, self.bundle.quote, "another quote passes");
        }
        if passes(CheckId::EventLog) && passes(CheckId::QuoteSignature) {
            assert_eq!(measured(&bundle), measured(&self.bundle));
        }
        if passes(CheckId::ComposeHash) && passes(CheckId::EventLog) {
            assert_eq!(bundle.app_compose(), self.bundle.app_compose());
        }
        if verdict.level == Level::Simulated {
            assert_eq!(verdict.signer, self.verdict.signer);
            assert_eq!(verdict.sealing_key, self.verdict.sealing_key);
            assert_eq!(verdict.compose_hash, self.verdict.compose_hash);
            assert_eq!(verdict.images, self.verdict.images);
        }
        Outcome::Judged
    }
}

/// What the run-time events of a log say.
fn measured(bundle: &QuoteBundle) -> event_log::RuntimeFacts {
    event_log::runtime_facts(&event_log::parse(&bundle.event_log).unwrap()).unwrap()
}

fn judge(
    body: &[u8],
    signature: Option<&str>,
    collateral: Option<&Collateral>,
    keys: Option<&EnclaveKeys>,
    policy: &Policy,
    now_s: u64,
) -> Verdict {
    let evidence = Evidence {
        body,
        body_signature: signature,
        collateral,
        registered_signer: keys.map(EnclaveKeys::signer_address),
        acknowledged: Some(true),
        ..Evidence::default()
    };
    evaluate(&evidence, policy, now_s)
}

#[test]
fn no_changed_evidence_is_accepted() {
    let count = std::env::var("ZEROG_MUTATED_QUOTES")
        .ok()
        .map_or(FEW, |text| text.parse().expect("a number of mutations"));
    let v4 = Quote::new("tdx_v4.bin", "tdx_v4_collateral.json", 632, TIME_OF_V4);
    // Behind the body of the newest form, whose length stands in front of it.
    let body = u32::from_le_bytes(fixture("tdx_td15ex.bin")[50..54].try_into().unwrap());
    let v5 = Quote::new(
        "tdx_td15ex.bin",
        "tdx_td15ex_collateral.json",
        54 + body as usize,
        TIME_OF_V5,
    );
    let (dstack, simulated) = (Report::dstack(), Report::simulated());
    let targets: [&dyn Target; 8] = [&v4, &v5, &v4, &v5, &v4, &dstack, &v5, &simulated];
    let tally: [AtomicUsize; 3] = Default::default();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (targets, tally) = (&targets, &tally);
            scope.spawn(move || {
                for index in (thread..count).step_by(threads) {
                    // Every mutation can be made again by its number.
                    let mut random = StdRng::seed_from_u64(index as u64);
                    let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        targets[index % targets.len()].try_one(&mut random)
                    }));
                    let outcome = tried.unwrap_or_else(|_| panic!("mutation {index}"));
                    tally[outcome as usize].fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let [unchanged, early, judged] = tally.map(AtomicUsize::into_inner);
    assert_eq!(unchanged + early + judged, count);
    assert!(unchanged * 20 < count, "{unchanged} changed nothing");
    assert!(judged * 2 > count, "only {judged} of {count} were judged");
}
