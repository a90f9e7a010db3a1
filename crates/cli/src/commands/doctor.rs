//! `doctor`: what works, what does not, and what to do about it.

use serde::Serialize;
use zerog_sdk::{Address, Broker, BrokerOptions, Error, Level, ServiceKind, U256};

use super::fine_tuning::sum_0g;
use super::ledger;
use crate::app::App;
use crate::exit_code::{Failure, OK, Outcome, SIMULATED, VERIFICATION};

/// Providers that are looked at when none is named.
const MAX_PROVIDERS: usize = 8;
/// Below this a wallet may run out of gas, in neuron: 0.01 0G.
const LITTLE_NEURON: u64 = 10_000_000_000_000_000;

/// How one thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    /// Fine.
    Ok,
    /// Works, but somebody should look at it.
    Warning,
    /// Does not work.
    Failed,
    /// Could not be looked at, because something before it failed.
    Skipped,
}

#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    status: Status,
    detail: String,
    /// What to do; none where nothing has to be done.
    fix: Option<String>,
    /// What the command would end with for this alone.
    #[serde(skip)]
    exit_code: u8,
}

/// Everything found so far; each finding is printed when it is made.
struct Doctor<'a> {
    app: &'a App,
    findings: Vec<Finding>,
}

impl Doctor<'_> {
    fn add(&mut self, check: &'static str, status: Status, detail: String, fix: Option<String>) {
        self.push(check, status, detail, fix, crate::exit_code::GENERAL);
    }

    fn ok(&mut self, check: &'static str, detail: impl Into<String>) {
        self.add(check, Status::Ok, detail.into(), None);
    }

    fn warn(&mut self, check: &'static str, detail: impl Into<String>, fix: impl Into<String>) {
        self.add(check, Status::Warning, detail.into(), Some(fix.into()));
    }

    /// The messages of failures say what to do already.
    fn fail(&mut self, check: &'static str, failure: impl Into<Failure>) {
        let failure = failure.into();
        self.push(
            check,
            Status::Failed,
            failure.message,
            None,
            failure.exit_code,
        );
    }

    fn skip(&mut self, check: &'static str, because: &str) {
        self.add(
            check,
            Status::Skipped,
            format!("not checked: {because}"),
            None,
        );
    }

    fn push(
        &mut self,
        check: &'static str,
        status: Status,
        detail: String,
        fix: Option<String>,
        exit_code: u8,
    ) {
        let mark = match status {
            Status::Ok => "✓",
            Status::Warning => "!",
            Status::Failed => "✗",
            Status::Skipped => "–",
        };
        self.app.output.line(format!("{mark} {check}: {detail}"));
        if let Some(fix) = &fix {
            self.app.output.line(format!("    → {fix}"));
        }
        self.findings.push(Finding {
            check,
            status,
            detail,
            fix,
            exit_code,
        });
    }

    /// The exit code of the first failure.
    fn exit_code(&self) -> u8 {
        let failed = |finding: &&Finding| finding.status == Status::Failed;
        let first = self.findings.iter().find(failed);
        first.map_or(OK, |finding| finding.exit_code)
    }
}

pub(super) async fn run(app: &App, provider: Option<Address>) -> Outcome<u8> {
    let mut doctor = Doctor {
        app,
        findings: Vec::new(),
    };
    look(&mut doctor, provider).await;
    let code = doctor.exit_code();
    app.output.line(match code {
        OK => "Nothing stands in the way",
        _ => "Mend what is marked with ✗ and run doctor again",
    });
    app.output.json(&serde_json::json!({
        "healthy": code == OK,
        "checks": doctor.findings,
    }));
    Ok(code)
}

async fn look(doctor: &mut Doctor<'_>, provider: Option<Address>) {
    let app = doctor.app;
    let network = match app.network().await {
        Ok(network) => {
            doctor.ok(
                "network",
                format!("{} (chain {})", network.name, network.chain_id),
            );
            Some(network)
        }
        Err(failure) => {
            doctor.fail("network", failure);
            None
        }
    };
    let key = match app.wallet_key() {
        Ok(key) => {
            doctor.ok("key", key.address().to_string());
            Some(key)
        }
        Err(failure) => {
            doctor.fail("key", failure);
            None
        }
    };
    let has_key = key.is_some();
    let Some(network) = network else {
        for check in ["rpc", "contracts", "storage", "providers"] {
            doctor.skip(check, "no network is chosen");
        }
        return;
    };
    let rpc_url = network.rpc_url.clone();
    let mut options = BrokerOptions::custom(network);
    options.wallet = key.map(Into::into);
    options.cache_dir = Some(app.profile.cache_dir());
    let broker = match Broker::connect(options).await {
        Ok(broker) => {
            doctor.ok(
                "rpc",
                format!("{rpc_url} serves chain {}", broker.chain().chain_id()),
            );
            broker
        }
        Err(error) => {
            doctor.fail("rpc", error);
            for check in ["contracts", "storage", "providers"] {
                doctor.skip(check, "the chain cannot be reached");
            }
            return;
        }
    };
    contracts(doctor, &broker).await;
    if has_key {
        money(doctor, &broker).await;
    } else {
        doctor.skip("wallet", "there is no key");
        doctor.skip("ledger", "there is no key");
    }
    match broker.storage() {
        Ok(storage) => match storage.ping().await {
            Ok(()) => doctor.ok(
                "storage",
                format!("{} answers", broker.network().storage_indexer_url),
            ),
            Err(error) => doctor.fail("storage", error),
        },
        Err(error) => doctor.fail("storage", error),
    }
    match providers(&broker, provider, has_key).await {
        Ok(providers) if providers.is_empty() => doctor.warn(
            "providers",
            "there are no fine-tuning providers on this network",
            "choose another network with setup-network, or wait for a provider",
        ),
        Ok(providers) => {
            for provider in providers {
                one_provider(doctor, &broker, provider, has_key).await;
            }
        }
        Err(error) => doctor.fail("providers", error),
    }
}

async fn contracts(doctor: &mut Doctor<'_>, broker: &Broker) {
    let addresses = *broker.chain().addresses();
    for (name, address) in [
        ("ledger", addresses.ledger),
        ("fine-tuning", addresses.fine_tuning),
        ("inference", addresses.inference),
    ] {
        match broker.chain().code(address).await {
            Ok(code) if code.is_empty() => {
                let failure = Failure::new(
                    crate::exit_code::CHAIN,
                    "not_a_contract",
                    format!(
                        "there is no contract at {address} ({name}); name the right one with setup-network and --ledger-ca, --fine-tuning-ca, --inference-ca"
                    ),
                );
                return doctor.fail("contracts", failure);
            }
            Ok(_) => {}
            Err(error) => return doctor.fail("contracts", Error::from(error)),
        }
    }
    doctor.ok("contracts", "ledger, fine-tuning and inference are there");
}

async fn money(doctor: &mut Doctor<'_>, broker: &Broker) {
    match broker.wallet_balance().await {
        Ok(balance) if balance < U256::from(LITTLE_NEURON) => doctor.warn(
            "wallet",
            format!("holds {}, too little for gas", sum_0g(balance)),
            "send coins to this address",
        ),
        Ok(balance) => doctor.ok("wallet", format!("holds {}", sum_0g(balance))),
        Err(error) => doctor.fail("wallet", error),
    }
    match broker.ledger.get_ledger().await {
        Ok(ledger) if ledger.total_balance.is_zero() => doctor.warn(
            "ledger",
            "is empty",
            "put coins in: 0g-compute-cli deposit --amount 3",
        ),
        Ok(ledger) => doctor.ok(
            "ledger",
            format!(
                "holds {}, {} of it free",
                sum_0g(ledger.total_balance),
                sum_0g(ledger.available_balance)
            ),
        ),
        Err(Error::LedgerMissing { .. }) => doctor.warn(
            "ledger",
            "there is none yet",
            "create it: 0g-compute-cli deposit --amount 3",
        ),
        Err(error) => doctor.fail("ledger", error),
    }
}

/// The named one, else those with a sub-account, else the listed ones.
async fn providers(
    broker: &Broker,
    named: Option<Address>,
    has_key: bool,
) -> zerog_sdk::Result<Vec<Address>> {
    if let Some(provider) = named {
        return Ok(vec![provider]);
    }
    let mut found = Vec::new();
    if has_key {
        match broker.ledger.get_providers(ServiceKind::FineTuning).await {
            Ok(providers) => found = providers,
            Err(Error::LedgerMissing { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    if found.is_empty() {
        let services = broker.fine_tuning.list_service(false).await?;
        found = services.iter().map(|service| service.provider).collect();
    }
    found.truncate(MAX_PROVIDERS);
    Ok(found)
}

async fn one_provider(doctor: &mut Doctor<'_>, broker: &Broker, provider: Address, has_key: bool) {
    let service = match broker.fine_tuning.get_service(provider).await {
        Ok(service) => service,
        Err(error) => return doctor.fail("provider", error),
    };
    match broker.fine_tuning.get_pending_task_counter(provider).await {
        Ok(pending) => doctor.ok(
            "provider",
            format!(
                "{provider} answers at {}, {pending} tasks pending",
                service.url
            ),
        ),
        Err(error) => {
            doctor.fail("provider", error);
            return doctor.skip("attestation", "the provider does not answer");
        }
    }
    if has_key {
        match ledger::sub_account(broker, provider, ServiceKind::FineTuning).await {
            Ok(account) if !account.acknowledged => doctor.warn(
                "acknowledgement",
                format!("the signer of {provider} is not acknowledged"),
                format!("0g-compute-cli fine-tuning acknowledge-provider --provider {provider}"),
            ),
            Ok(account) => doctor.ok(
                "acknowledgement",
                format!(
                    "{provider} is acknowledged, its sub-account has {} free",
                    sum_0g(account.available())
                ),
            ),
            Err(Error::AccountMissing { .. }) => doctor.warn(
                "acknowledgement",
                format!("there is no sub-account with {provider}"),
                format!(
                    "0g-compute-cli transfer-fund --provider {provider} --service fine-tuning --amount 1"
                ),
            ),
            Err(error) => doctor.fail("acknowledgement", error),
        }
    }
    match broker
        .fine_tuning
        .verify_service(provider, None, |_| ())
        .await
    {
        Ok(report) => match report.level {
            Level::Verified => doctor.ok("attestation", format!("{provider} is verified")),
            Level::Partial => doctor.warn(
                "attestation",
                format!("{provider}: nothing failed, not everything could be checked"),
                format!("0g-compute-cli fine-tuning verify --provider {provider} lists it"),
            ),
            Level::Simulated if broker.network().name == "devnet" => doctor.warn(
                "attestation",
                format!("{provider}: the TEE is SIMULATED and protects nothing"),
                "use it for development only",
            ),
            level => {
                let code = if level == Level::Simulated {
                    SIMULATED
                } else {
                    VERIFICATION
                };
                let detail = format!(
                    "{provider} is {level}: {}; send it nothing and choose another provider",
                    report.errors.join("; ")
                );
                doctor.fail(
                    "attestation",
                    Failure::new(code, "verification_failed", detail),
                );
            }
        },
        Err(error) => doctor.fail("attestation", error),
    }
}
