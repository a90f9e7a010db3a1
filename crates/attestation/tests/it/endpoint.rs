//! Whether TLS ends in the enclave: what the quote names, compared with the connection's certificate.

use rcgen::{CertificateParams, CustomExtension, KeyPair};
use zerog_attestation::bundle::sign_body;
use zerog_attestation::policy::Challenge;
use zerog_attestation::{
    CertificateError, Check, CheckId, CheckStatus, Connection, EnclaveKeys, Evidence, Level,
    PeerCertificate, Policy, QuoteBundle, Simulated, SimulatedOptions, TeeBackend, evaluate,
};

const NOW: u64 = 1_790_000_000;
const NONCE: [u8; 32] = [3; 32];

struct Enclave {
    backend: Simulated,
    keys: EnclaveKeys,
}

impl Enclave {
    fn new(program: u8) -> Self {
        let options = SimulatedOptions::new([7; 32]).program_sha256([program; 32]);
        let backend = Simulated::new(options);
        let keys = EnclaveKeys::derive(&backend).unwrap();
        Self { backend, keys }
    }

    /// What it answers to the nonce, naming a TLS key.
    fn answer(&self, named: Option<[u8; 32]>) -> QuoteBundle {
        let data = self.keys.challenge_report_data(&NONCE, named.as_ref());
        let mut bundle = self.backend.quote(&data).unwrap();
        bundle.tls_key_sha256 = named;
        bundle
    }

    /// The level and the checks of freshness and endpoint.
    fn judge(
        &self,
        bundle: &QuoteBundle,
        connection: Connection,
        sealed: bool,
    ) -> (Level, Check, Check) {
        let body = bundle.to_json();
        let signature = sign_body(&self.keys.signer, body.as_bytes());
        let evidence = Evidence {
            body: body.as_bytes(),
            body_signature: Some(&signature),
            registered_signer: Some(self.keys.signer_address()),
            acknowledged: Some(true),
            challenge: Some(Challenge {
                nonce: NONCE,
                sealing_key: self.keys.sealing.public(),
            }),
            connection,
            sealed,
            ..Evidence::default()
        };
        let verdict = evaluate(&evidence, &Policy::devnet(), NOW);
        let check = |id| verdict.check(id).unwrap().clone();
        (
            verdict.level,
            check(CheckId::Freshness),
            check(CheckId::Endpoint),
        )
    }
}

/// A certificate of a key, with a quote in dstack's extension.
fn certificate(key: &KeyPair, quote: Option<&[u8]>) -> Vec<u8> {
    let mut parameters = CertificateParams::new(vec!["provider.example".to_owned()]).unwrap();
    if let Some(quote) = quote {
        let content = match u8::try_from(quote.len()) {
            Ok(length) if length < 0x80 => [&[0x04, length], quote].concat(),
            _ => {
                let length = u16::try_from(quote.len()).unwrap().to_be_bytes();
                [&[0x04, 0x82], &length[..], quote].concat()
            }
        };
        let oid = [1, 3, 6, 1, 4, 1, 62397, 1, 1];
        let extension = CustomExtension::from_oid_content(&oid, content);
        parameters.custom_extensions.push(extension);
    }
    parameters.self_signed(key).unwrap().der().to_vec()
}

fn tls(der: &[u8]) -> Connection {
    Connection::Tls(PeerCertificate::parse(der).unwrap())
}

fn key_sha256(key: &KeyPair) -> [u8; 32] {
    PeerCertificate::parse(&certificate(key, None))
        .unwrap()
        .key_sha256
}

#[test]
fn a_named_key_must_be_the_connections() {
    let (enclave, own, other) = (
        Enclave::new(1),
        KeyPair::generate().unwrap(),
        KeyPair::generate().unwrap(),
    );
    let answer = enclave.answer(Some(key_sha256(&own)));
    let (level, fresh, endpoint) = enclave.judge(&answer, tls(&certificate(&own, None)), false);
    assert_eq!(
        (level, fresh.status, endpoint.status),
        (Level::Simulated, CheckStatus::Pass, CheckStatus::Pass),
        "{endpoint:?}"
    );
    // A connection's key is recognised where the provider does not say it in clear.
    let mut silent = answer.clone();
    silent.tls_key_sha256 = None;
    let (_, _, endpoint) = enclave.judge(&silent, tls(&certificate(&own, None)), false);
    assert_eq!(endpoint.status, CheckStatus::Pass);
    // Somebody else's certificate, also where what is sent is sealed.
    for sealed in [false, true] {
        let (level, fresh, endpoint) =
            enclave.judge(&answer, tls(&certificate(&other, None)), sealed);
        assert_eq!(
            (level, fresh.status, endpoint.status),
            (Level::Failed, CheckStatus::Pass, CheckStatus::Fail)
        );
        assert!(
            endpoint.detail.contains(&hex::encode(key_sha256(&own)))
                && endpoint.detail.contains(&hex::encode(key_sha256(&other))),
            "{}",
            endpoint.detail
        );
    }
    let (level, _, endpoint) = enclave.judge(&answer, Connection::UnreadableTls, false);
    assert_eq!((level, endpoint.status), (Level::Failed, CheckStatus::Fail));
    // What the provider says beside the quote names nothing.
    let mut claimed = enclave.answer(None);
    claimed.tls_key_sha256 = Some(key_sha256(&own));
    let (_, _, endpoint) = enclave.judge(&claimed, tls(&certificate(&own, None)), false);
    assert_eq!(endpoint.status, CheckStatus::Warning);
    // A name that nobody can recognise is not taken for an answer to the nonce.
    let (level, fresh, _) = enclave.judge(&silent, tls(&certificate(&other, None)), false);
    assert_eq!((level, fresh.status), (Level::Failed, CheckStatus::Fail));
}

#[test]
fn what_is_not_bound_stays_open() {
    let (enclave, key) = (Enclave::new(1), KeyPair::generate().unwrap());
    let over_tls = tls(&certificate(&key, None));
    let (unnamed, named) = (enclave.answer(None), enclave.answer(Some([5; 32])));
    for (bundle, connection, status, words) in [
        (
            &unnamed,
            over_tls.clone(),
            CheckStatus::Warning,
            "TLS ends outside the proof",
        ),
        (
            &unnamed,
            Connection::UnreadableTls,
            CheckStatus::Warning,
            "TLS ends outside the proof",
        ),
        (
            &unnamed,
            Connection::Plain,
            CheckStatus::Warning,
            "TLS ends outside the proof",
        ),
        (
            &named,
            Connection::Plain,
            CheckStatus::Warning,
            "TLS ends outside the proof",
        ),
        (
            &unnamed,
            Connection::Local,
            CheckStatus::Skipped,
            "no TLS key",
        ),
        (
            &unnamed,
            Connection::Unknown,
            CheckStatus::Skipped,
            "no TLS key",
        ),
        (
            &named,
            Connection::Unknown,
            CheckStatus::Skipped,
            "compared with no connection",
        ),
    ] {
        let (level, _, endpoint) = enclave.judge(bundle, connection.clone(), false);
        assert_eq!(
            (level, endpoint.status),
            (Level::Simulated, status),
            "{connection:?}"
        );
        assert!(endpoint.detail.contains(words), "{}", endpoint.detail);
        let (_, _, endpoint) = enclave.judge(bundle, connection, true);
        assert_eq!(endpoint.status, CheckStatus::Inapplicable);
    }
}

#[test]
fn a_quote_in_the_certificate_must_be_the_enclaves_and_about_this_key() {
    let (enclave, key, other) = (
        Enclave::new(1),
        KeyPair::generate().unwrap(),
        KeyPair::generate().unwrap(),
    );
    let answer = enclave.answer(None);
    let quote = |enclave: &Enclave, key: &KeyPair| {
        let blank = PeerCertificate::parse(&certificate(key, None)).unwrap();
        let data = blank.ra_tls_report_data;
        enclave.backend.quote(&data).unwrap().quote
    };
    let judge = |quote: &[u8]| enclave.judge(&answer, tls(&certificate(&key, Some(quote))), false);
    let good = quote(&enclave, &key);
    let (level, _, endpoint) = judge(&good);
    assert_eq!(
        (level, endpoint.status),
        (Level::Simulated, CheckStatus::Pass),
        "{endpoint:?}"
    );
    let mut forged = good.clone();
    forged[700] ^= 1;
    for (bad, words) in [
        (quote(&enclave, &other), "another TLS key"),
        (quote(&Enclave::new(2), &key), "another program"),
        (forged, "is not the enclave's"),
        (b"no quote".to_vec(), "is not the enclave's"),
    ] {
        let (level, _, endpoint) = judge(&bad);
        assert_eq!((level, endpoint.status), (Level::Failed, CheckStatus::Fail));
        assert!(endpoint.detail.contains(words), "{}", endpoint.detail);
    }
    assert_eq!(PeerCertificate::parse(b"\x30\x00"), Err(CertificateError));
}
