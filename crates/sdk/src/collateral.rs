//! Where the collateral of a quote comes from: a file, the cache, the provider itself, and at last a collateral service.
//!
//! Collateral is signed by Intel and only believed when it verifies the quote under Intel's root, so that none of these
//! sources is trusted. What verified is cached, by kind of platform, until its time is over.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use zerog_attestation::collateral::{self, MAX_ANSWER_BYTES, Platform, Reply, Transport};
use zerog_attestation::{Collateral, Policy, TrustRoot, bundle, verify_quote};

use crate::broker::Context;
use crate::error::Error;
use crate::fine_tuning::services::write_file;
use crate::provider_client::{ProviderClient, join};

/// Where collateral comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollateralSources {
    /// A file of collateral, as a verification writes it (`collateral.json`). With one, nobody else is asked.
    pub file: Option<PathBuf>,
    /// Base URLs of collateral services (PCCS, or Intel's PCS), asked in this order when neither the cache nor the
    /// provider has valid collateral. Empty: none is asked.
    pub services: Vec<String>,
    /// Whether the cache folder is ignored, so that everything is fetched anew.
    pub refresh: bool,
}

impl Default for CollateralSources {
    /// No file; a public cache of Intel's data, then Intel's own service.
    fn default() -> Self {
        Self {
            file: None,
            services: collateral::PUBLIC_SERVICES.map(str::to_owned).to_vec(),
            refresh: false,
        }
    }
}

/// Collateral that verified a quote in this process.
#[derive(Debug, Default)]
pub(crate) struct CollateralCache {
    verified: Mutex<HashMap<Platform, Collateral>>,
}

/// What was found for a quote.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// What verifies the quote, else the last that was offered.
    pub(crate) collateral: Option<Collateral>,
    /// If nothing verifies the quote: what was tried and what to do.
    pub(crate) problem: Option<String>,
}

impl Context {
    /// Looks for collateral that verifies a binary quote at `now_s` (Unix seconds) and is new enough for the policy.
    pub(crate) async fn collateral(
        &self,
        quote: &[u8],
        provider_url: &str,
        policy: &Policy,
        now_s: u64,
    ) -> Found {
        let sources = &self.options.collateral;
        if let Some(file) = &sources.file {
            return match read(file) {
                Ok(collateral) => Found {
                    collateral: Some(collateral),
                    problem: None,
                },
                Err(reason) => Found {
                    collateral: None,
                    problem: Some(format!(
                        "{}: {reason}; name a file that a verification wrote, or leave --collateral out",
                        file.display()
                    )),
                },
            };
        }
        let platform = match Platform::of_quote(quote) {
            Ok(platform) => platform,
            Err(error) => {
                return Found {
                    collateral: None,
                    problem: Some(error.to_string()),
                };
            }
        };
        let mut search = Search {
            quote,
            policy,
            now_s,
            last: None,
            problems: Vec::new(),
        };
        let cached = self.cached(&platform);
        if let Some(found) = cached.and_then(|cached| search.consider("the cache", cached)) {
            return found;
        }
        let offer = provider_offer(&self.http, provider_url).await;
        if let Some(found) = search.weigh("the provider", offer) {
            self.keep(&platform, &found);
            return found;
        }
        for service in &sources.services {
            let offer = collateral::fetch(&Services(&self.http), service, &platform).await;
            if let Some(found) = search.weigh(service, offer.map_err(|error| error.to_string())) {
                self.keep(&platform, &found);
                return found;
            }
        }
        search.in_vain()
    }

    fn cached(&self, platform: &Platform) -> Option<Collateral> {
        let verified = self
            .collateral
            .verified
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(platform)
            .cloned();
        if verified.is_some() || self.options.collateral.refresh {
            return verified;
        }
        read(&self.cache_file(platform)?).ok()
    }

    fn keep(&self, platform: &Platform, found: &Found) {
        let Some(collateral) = &found.collateral else {
            return;
        };
        self.collateral
            .verified
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(platform.clone(), collateral.clone());
        if let Some(path) = self.cache_file(platform) {
            let text = serde_json::to_vec(collateral).expect("collateral is plain data");
            if let Err(error) = write_file(&path, &text) {
                tracing::warn!(%error, "collateral is not cached");
            }
        }
    }

    fn cache_file(&self, platform: &Platform) -> Option<PathBuf> {
        let folder = self.options.cache_dir.as_ref()?.join("collateral");
        Some(folder.join(format!("{platform}.json")))
    }
}

/// One search through the sources.
struct Search<'a> {
    quote: &'a [u8],
    policy: &'a Policy,
    now_s: u64,
    last: Option<Collateral>,
    problems: Vec<String>,
}

impl Search<'_> {
    fn weigh(&mut self, source: &str, offer: Result<Collateral, String>) -> Option<Found> {
        match offer {
            Ok(collateral) => self.consider(source, collateral),
            Err(reason) => {
                self.problems.push(format!("{source}: {reason}"));
                None
            }
        }
    }

    /// The offer, if it verifies the quote.
    fn consider(&mut self, source: &str, collateral: Collateral) -> Option<Found> {
        let verified = verify_quote(self.quote, &collateral, &TrustRoot::Intel, self.now_s);
        let problem = match verified {
            Ok(tee) if tee.tcb_evaluation_number >= self.policy.min_tcb_evaluation_number => {
                return Some(Found {
                    collateral: Some(collateral),
                    problem: None,
                });
            }
            Ok(tee) => format!(
                "its TCB data set {} is older than the policy demands",
                tee.tcb_evaluation_number
            ),
            Err(error) => error.to_string(),
        };
        tracing::debug!(source, problem, "collateral is not usable");
        self.problems.push(format!("{source}: {problem}"));
        self.last = Some(collateral);
        None
    }

    fn in_vain(self) -> Found {
        Found {
            problem: Some(format!(
                "tried {}; name a file with --collateral, or another service with --collateral-service",
                self.problems.join("; ")
            )),
            collateral: self.last,
        }
    }
}

/// What the provider itself hands over, as ours do.
async fn provider_offer(http: &ProviderClient, provider_url: &str) -> Result<Collateral, String> {
    let url = join(provider_url, "/v1/quote/collateral");
    match http
        .get("quote collateral", &url, None, bundle::MAX_BODY_BYTES)
        .await
    {
        Ok(answer) => serde_json::from_slice(&answer.body)
            .map_err(|error| format!("its answer is not collateral: {error}")),
        Err(Error::ProviderRefused { status: 404, .. }) => Err("it offers none".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn read(path: &Path) -> Result<Collateral, String> {
    let text = read_limited(path, MAX_ANSWER_BYTES).map_err(|error| error.to_string())?;
    serde_json::from_slice(&text).map_err(|error| format!("it is not collateral: {error}"))
}

/// Reads a file of at most `max_bytes`.
pub(crate) fn read_limited(path: &Path, max_bytes: usize) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut content = Vec::new();
    let limit = u64::try_from(max_bytes).unwrap_or(u64::MAX);
    std::fs::File::open(path)?
        .take(limit.saturating_add(1))
        .read_to_end(&mut content)?;
    if content.len() > max_bytes {
        return Err(std::io::Error::other(format!(
            "it is longer than {max_bytes} bytes"
        )));
    }
    Ok(content)
}

/// Requests to a collateral service.
struct Services<'a>(&'a ProviderClient);

impl Transport for Services<'_> {
    async fn get(&self, url: &str) -> Result<Reply, String> {
        let answer = self.0.get("collateral", url, None, MAX_ANSWER_BYTES).await;
        let answer = answer.map_err(|error| match error {
            Error::ProviderUnreachable { reason, .. } => reason,
            Error::ProviderRefused { status, .. } => format!("it answers HTTP {status}"),
            other => other.to_string(),
        })?;
        let headers = answer
            .headers
            .iter()
            .filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())))
            .collect();
        Ok(Reply {
            headers,
            body: answer.body,
        })
    }
}
