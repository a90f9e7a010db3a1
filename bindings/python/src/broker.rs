//! Connecting, and the broker that holds the managers.

use std::path::PathBuf;
use std::time::Duration;

use pyo3::prelude::*;
use zerog_sdk::{BrokerOptions, Error, NetworkSettings, Requirement, wallet};

use crate::call::{Answer, Call, Waiter};
use crate::convert::{ToPython, address};
use crate::error::{native_error, refused};
use crate::fine_tuning::FineTuning;
use crate::inference::Inference;
use crate::ledger::Ledger;

/// A connected broker.
#[pyclass(frozen)]
pub(crate) struct Broker {
    broker: zerog_sdk::Broker,
    process: u32,
}

impl ToPython for zerog_sdk::Broker {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let broker = Broker {
            broker: self.clone(),
            process: std::process::id(),
        };
        Ok(Bound::new(py, broker)?.into_any())
    }
}

/// What `create_broker` was given; everything but the key may be none.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct ConnectOptions {
    private_key: Option<String>,
    network: Option<String>,
    rpc_url: Option<String>,
    storage_indexer_url: Option<String>,
    ledger_address: Option<String>,
    inference_address: Option<String>,
    fine_tuning_address: Option<String>,
    gas_price: Option<u128>,
    max_gas_price: Option<u128>,
    require_verified: bool,
    policy_file: Option<PathBuf>,
    collateral_file: Option<PathBuf>,
    cache_dir: Option<PathBuf>,
    tokenizer_dir: Option<PathBuf>,
    poll_interval_s: Option<f64>,
}

/// Connects to a network.
#[pyfunction]
#[pyo3(signature = (options, waiter=None))]
pub(crate) fn connect(py: Python<'_>, options: ConnectOptions, waiter: Waiter) -> Answer {
    Call::new(waiter).run(py, async move {
        zerog_sdk::Broker::connect(broker_options(options).await?).await
    })
}

async fn broker_options(given: ConnectOptions) -> zerog_sdk::Result<BrokerOptions> {
    let mut network = match (&given.network, &given.rpc_url) {
        (Some(name), _) => NetworkSettings::find(&name.replace('_', "-"))?,
        (None, Some(url)) => NetworkSettings::detect(url).await?,
        (None, None) => NetworkSettings::find("mainnet")?,
    };
    if let Some(url) = given.rpc_url {
        network.rpc_url = url;
    }
    if let Some(url) = given.storage_indexer_url {
        network.storage_indexer_url = url;
    }
    let addresses = &mut network.addresses;
    for (text, name, target) in [
        (
            given.ledger_address,
            "ledger_address",
            &mut addresses.ledger,
        ),
        (
            given.inference_address,
            "inference_address",
            &mut addresses.inference,
        ),
        (
            given.fine_tuning_address,
            "fine_tuning_address",
            &mut addresses.fine_tuning,
        ),
    ] {
        if let Some(text) = text {
            *target = address(&text, name)?;
        }
    }
    let mut options = BrokerOptions::custom(network);
    if let Some(key) = given.private_key {
        options.wallet = Some(wallet::parse_key(&key)?.into());
    }
    options.gas_price = given.gas_price;
    options.max_gas_price = given.max_gas_price;
    if given.require_verified {
        options.requirement = Requirement::Verified;
    }
    if let Some(path) = &given.policy_file {
        options.policy = zerog_sdk::read_policy(path)?;
    }
    options.collateral.file = given.collateral_file;
    options.cache_dir = given.cache_dir;
    options.tokenizer_dir = given.tokenizer_dir;
    options.poll_interval = match given.poll_interval_s.map(Duration::try_from_secs_f64) {
        None => None,
        Some(Ok(interval)) => Some(interval),
        Some(Err(error)) => {
            return Err(Error::Argument {
                name: "poll_interval_s",
                reason: error.to_string(),
            });
        }
    };
    Ok(options)
}

#[pymethods]
impl Broker {
    /// Refuses use in a forked child: sockets and nonces belong to the parent.
    fn check_process(&self, py: Python<'_>) -> PyResult<()> {
        if self.process == std::process::id() {
            return Ok(());
        }
        Err(refused(
            py,
            "other_process",
            "this broker was made in another process; make one after the fork (create_broker)",
        ))
    }

    fn address(&self, py: Python<'_>) -> PyResult<String> {
        let address = self.broker.address();
        address
            .map(|address| address.to_checksum(None))
            .map_err(|error| native_error(py, &error))
    }

    fn network(&self, py: Python<'_>) -> Answer {
        Ok(self.broker.network().to_python(py)?.unbind())
    }

    fn with_gas_prices(&self, gas_price: Option<u128>, max_gas_price: Option<u128>) -> Self {
        Self {
            broker: self.broker.with_gas_prices(gas_price, max_gas_price),
            process: self.process,
        }
    }

    fn ledger(&self) -> Ledger {
        Ledger(self.broker.ledger.clone())
    }

    fn fine_tuning(&self) -> FineTuning {
        FineTuning(self.broker.fine_tuning.clone())
    }

    fn inference(&self) -> Inference {
        Inference(self.broker.inference.clone())
    }

    #[pyo3(signature = (waiter=None))]
    fn wallet_balance(&self, py: Python<'_>, waiter: Waiter) -> Answer {
        let broker = self.broker.clone();
        Call::new(waiter).run(py, async move { broker.wallet_balance().await })
    }

    #[pyo3(signature = (fine_tuning_provider, fee, inference_provider, waiter=None))]
    fn plan_funds(
        &self,
        py: Python<'_>,
        fine_tuning_provider: String,
        fee: u128,
        inference_provider: Option<String>,
        waiter: Waiter,
    ) -> Answer {
        let broker = self.broker.clone();
        Call::new(waiter).run(py, async move {
            let trainer = address(&fine_tuning_provider, "fine_tuning_provider")?;
            let server = inference_provider.map(|text| address(&text, "inference_provider"));
            let fee = zerog_sdk::U256::from(fee);
            broker.plan_funds(trainer, fee, server.transpose()?).await
        })
    }

    /// `amounts`: deposit, fine-tuning, inference.
    #[pyo3(signature = (amounts, fine_tuning_provider, inference_provider, on_progress=None, waiter=None))]
    fn apply_funds(
        &self,
        py: Python<'_>,
        amounts: (u128, u128, u128),
        fine_tuning_provider: String,
        inference_provider: Option<String>,
        on_progress: Option<Py<PyAny>>,
        waiter: Waiter,
    ) -> Answer {
        let broker = self.broker.clone();
        let call = Call::new(waiter);
        let news = call.callback(on_progress);
        call.run(py, async move {
            let server = inference_provider.map(|text| address(&text, "inference_provider"));
            let plan = zerog_sdk::funds::FundPlan {
                deposit: zerog_sdk::U256::from(amounts.0),
                fine_tuning: zerog_sdk::U256::from(amounts.1),
                inference: zerog_sdk::U256::from(amounts.2),
                fine_tuning_provider: address(&fine_tuning_provider, "fine_tuning_provider")?,
                inference_provider: server.transpose()?,
            };
            broker
                .apply_funds(&plan, |progress| news.tell(progress))
                .await
        })
    }
}

/// An address with the mixed case that guards against typing errors; none if it is no address.
#[pyfunction]
pub(crate) fn checksum_address(text: &str) -> Option<String> {
    let address: zerog_sdk::Address = text.parse().ok()?;
    Some(address.to_checksum(None))
}

/// The name under which a task's adapter is known.
#[pyfunction]
pub(crate) fn adapter_name(base_model: &str, task_id: &str) -> String {
    zerog_sdk::ids::adapter_name(base_model, task_id)
}
