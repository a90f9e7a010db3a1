//! Collateral of this machine: fetched once from a collateral service, and handed to whoever verifies a quote until its
//! time is over. Clients check Intel's signatures themselves; this only saves each of them the way.

use std::time::Duration;

use tokio::sync::Mutex;
use zerog_attestation::collateral::{self, MAX_ANSWER_BYTES, Platform, Reply, Transport};
use zerog_attestation::{Collateral, TrustRoot, verify_quote};

/// Longest wait for one answer of a service.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Pause after a failure, so that a public route cannot be used to hammer a service, in seconds.
const PAUSE_S: u64 = 60;

/// Keeps the collateral of one machine.
#[derive(Debug)]
pub(crate) struct CollateralKeeper {
    services: Vec<String>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What verified the own quote, and when that ends, Unix seconds.
    valid: Option<(Collateral, u64)>,
    /// When fetching failed last, Unix seconds, and why.
    failed: Option<(u64, String)>,
}

impl CollateralKeeper {
    /// A keeper that asks these services, in this order.
    pub(crate) fn new(services: Vec<String>) -> Self {
        Self {
            services,
            state: Mutex::default(),
        }
    }

    /// Collateral that verifies the machine's own binary quote at `now_s` (Unix seconds).
    ///
    /// # Errors
    /// In words for operators and clients: what was tried and what to do.
    pub(crate) async fn get(&self, quote: &[u8], now_s: u64) -> Result<Collateral, String> {
        // Whoever comes while it is being fetched waits and gets the same.
        let mut state = self.state.lock().await;
        match &*state {
            State {
                valid: Some((collateral, ends_s)),
                ..
            } if now_s < *ends_s => return Ok(collateral.clone()),
            State {
                failed: Some((at_s, reason)),
                ..
            } if now_s < at_s.saturating_add(PAUSE_S) => return Err(reason.clone()),
            _ => {}
        }
        match self.fetch(quote, now_s).await {
            Ok((collateral, ends_s)) => {
                *state = State {
                    valid: Some((collateral.clone(), ends_s)),
                    failed: None,
                };
                Ok(collateral)
            }
            Err(reason) => {
                tracing::warn!(reason, "no collateral for this machine's quotes");
                *state = State {
                    valid: None,
                    failed: Some((now_s, reason.clone())),
                };
                Err(reason)
            }
        }
    }

    async fn fetch(&self, quote: &[u8], now_s: u64) -> Result<(Collateral, u64), String> {
        let platform = Platform::of_quote(quote).map_err(|error| error.to_string())?;
        let client = reqwest::Client::builder()
            .timeout(ANSWER_TIMEOUT)
            .build()
            .map_err(|error| format!("HTTPS cannot be used: {error}"))?;
        let mut problems = Vec::new();
        for service in &self.services {
            let fetched = collateral::fetch(&Services(&client), service, &platform).await;
            let problem = match fetched {
                Ok(collateral) => {
                    match verify_quote(quote, &collateral, &TrustRoot::Intel, now_s) {
                        Ok(tee) => return Ok((collateral, tee.collateral_expires_s)),
                        Err(error) => error.to_string(),
                    }
                }
                Err(error) => error.to_string(),
            };
            problems.push(format!("{service}: {problem}"));
        }
        Err(format!(
            "this provider could fetch no collateral ({}). Its operator can name services that the machine reaches in identity.collateral_services; clients may ask others, or use a file",
            if problems.is_empty() {
                "no service is named".to_owned()
            } else {
                problems.join("; ")
            }
        ))
    }
}

/// Requests to a collateral service.
struct Services<'a>(&'a reqwest::Client);

impl Transport for Services<'_> {
    async fn get(&self, url: &str) -> Result<Reply, String> {
        // The address is in the caller's text already.
        let failed = |error: reqwest::Error| error.without_url().to_string();
        let mut response = self.0.get(url).send().await.map_err(failed)?;
        if !response.status().is_success() {
            return Err(format!("it answers HTTP {}", response.status().as_u16()));
        }
        let headers = response
            .headers()
            .iter()
            .filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())))
            .collect();
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(failed)? {
            body.extend_from_slice(&piece);
            if body.len() > MAX_ANSWER_BYTES {
                return Err(format!(
                    "its answer is longer than {MAX_ANSWER_BYTES} bytes"
                ));
            }
        }
        Ok(Reply { headers, body })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Router;
    use axum::http::{StatusCode, Uri};
    use axum::response::{IntoResponse, Response};
    use serde_json::Value;
    use zerog_attestation::TdxQuote;

    use super::*;

    /// A time at which the recorded collateral is valid, and one after its end.
    const VALID_S: u64 = 1_772_000_000;
    const OVER_S: u64 = 1_775_000_000;

    fn fixture(name: &str) -> Vec<u8> {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/quotes");
        std::fs::read(folder.join(name)).unwrap()
    }

    fn quote() -> Vec<u8> {
        let report: Value = serde_json::from_slice(&fixture("dstack_report.json")).unwrap();
        let quote = hex::decode(report["quote"].as_str().unwrap()).unwrap();
        TdxQuote::parse(&quote).unwrap();
        quote
    }

    /// A caching service that has the recorded collateral.
    async fn service(requests: Arc<AtomicUsize>) -> String {
        let recorded: Collateral =
            serde_json::from_slice(&fixture("dstack_collateral.json")).unwrap();
        let answer = move |uri: Uri| {
            requests.fetch_add(1, Ordering::SeqCst);
            let chain = |name: &'static str, chain: &str| [(name, chain.replace('\n', "%0A"))];
            let signed = |key: &str, text: &str, signature: &[u8]| {
                format!(
                    "{{\"{key}\":{text},\"signature\":\"{}\"}}",
                    hex::encode(signature)
                )
            };
            let c = &recorded;
            let answer: Response = match uri.path() {
                "/tdx/certification/v4/tcb" => (
                    chain("TCB-Info-Issuer-Chain", &c.tcb_info_issuer_chain),
                    signed("tcbInfo", &c.tcb_info, &c.tcb_info_signature),
                )
                    .into_response(),
                "/tdx/certification/v4/qe/identity" => (
                    chain(
                        "SGX-Enclave-Identity-Issuer-Chain",
                        &c.qe_identity_issuer_chain,
                    ),
                    signed("enclaveIdentity", &c.qe_identity, &c.qe_identity_signature),
                )
                    .into_response(),
                "/sgx/certification/v4/pckcrl" => (
                    chain("SGX-PCK-CRL-Issuer-Chain", &c.pck_crl_issuer_chain),
                    c.pck_crl.clone(),
                )
                    .into_response(),
                "/sgx/certification/v4/rootcacrl" => hex::encode(&c.root_ca_crl).into_response(),
                _ => StatusCode::NOT_FOUND.into_response(),
            };
            std::future::ready(answer)
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer);
        tokio::spawn(async move { axum::serve(listener, router).await });
        url
    }

    #[tokio::test]
    async fn it_is_fetched_once_and_again_when_its_time_is_over() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let requests = Arc::new(AtomicUsize::new(0));
        // The first service is not there.
        let services = vec![
            "http://127.0.0.1:9".into(),
            service(Arc::clone(&requests)).await,
        ];
        let keeper = CollateralKeeper::new(services);
        let quote = quote();
        let first = keeper.get(&quote, VALID_S).await.unwrap();
        assert_eq!(requests.load(Ordering::SeqCst), 4);
        assert!(verify_quote(&quote, &first, &TrustRoot::Intel, VALID_S).is_ok());
        assert_eq!(keeper.get(&quote, VALID_S + 5).await.unwrap(), first);
        assert_eq!(requests.load(Ordering::SeqCst), 4);
        // The service has nothing newer: that is no collateral, and it is not asked again at once.
        for _ in 0..2 {
            let reason = keeper.get(&quote, OVER_S).await.unwrap_err();
            assert!(reason.contains("must be fetched anew"), "{reason}");
            assert!(reason.contains("identity.collateral_services"), "{reason}");
            assert_eq!(requests.load(Ordering::SeqCst), 8);
        }
        assert!(keeper.get(&quote, OVER_S + PAUSE_S).await.is_err());
        assert_eq!(requests.load(Ordering::SeqCst), 12);
    }
}
