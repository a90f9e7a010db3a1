//! What a command that spends will send and what it will cost: told before it is sent, or instead with `--dry-run`. Only
//! reads; nothing is signed for the chain, uploaded or stored.

use serde::Serialize;
use zerog_sdk::amount::NEURON_PER_0G;
use zerog_sdk::{Address, Broker, Error, ServiceKind, TaskState, U256};

use super::fine_tuning::{read_config, sum_0g, wanted};
use super::{ledger, quote, walk};
use crate::app::{App, Wallet};
use crate::args::{self, Command, FineTuning, Inference, Storage, Via};
use crate::exit_code::{FUNDS, Failure, OK, Outcome};

/// One thing that would be sent.
#[derive(Debug, Serialize)]
struct Step {
    /// In words.
    action: String,
    /// Coins that it moves, without gas; none where only the provider will know.
    amount_neuron: Option<String>,
    /// Whether it is a transaction, which costs gas as well.
    is_transaction: bool,
}

impl Step {
    /// The action after `before`, and whether it costs gas as well.
    fn told(&self, before: &str) -> String {
        let gas = if self.is_transaction {
            ", plus gas"
        } else {
            ""
        };
        format!("{before} {}{gas}", self.action)
    }
}

/// Everything that a command would do.
#[derive(Debug, Default)]
struct Plan {
    steps: Vec<Step>,
    problems: Vec<String>,
}

impl Plan {
    fn transaction(&mut self, action: impl Into<String>, amount: U256) {
        self.steps.push(Step {
            action: action.into(),
            amount_neuron: Some(amount.to_string()),
            is_transaction: true,
        });
    }

    fn request(&mut self, action: impl Into<String>, amount: Option<U256>) {
        self.steps.push(Step {
            action: action.into(),
            amount_neuron: amount.map(|amount| amount.to_string()),
            is_transaction: false,
        });
    }

    fn require(&mut self, what: &str, required: U256, available: U256) {
        if available < required {
            self.problems.push(format!(
                "{what} holds {}, {} are needed",
                sum_0g(available),
                sum_0g(required)
            ));
        }
    }
}

/// Prints what `command` would do; the exit code says whether the money is there.
pub(super) async fn run(app: &App, command: &Command) -> Outcome<u8> {
    if !spends(command) {
        return Err(Failure::usage(
            "this command spends nothing; leave --dry-run out",
        ));
    }
    let broker = app.broker(Wallet::Needed).await?;
    let mut plan = Plan::default();
    plan_of(app, &broker, command, &mut plan).await?;
    tell(app, &broker, &plan).await?;
    Ok(if plan.problems.is_empty() { OK } else { FUNDS })
}

/// Says what `command` is about to send, as talk; programs that read JSON ask with `--dry-run`.
pub(super) async fn announce(app: &App, command: &Command) -> Outcome {
    // These say it themselves, once they have counted the dataset, or asked whether it may be public.
    let says_it_itself = matches!(
        command,
        Command::FineTuning(
            FineTuning::CreateTask(_) | FineTuning::Run(_) | FineTuning::Upload { .. }
        )
    );
    if app.output.is_json() || says_it_itself || !spends(command) || !is_complete(command) {
        return Ok(());
    }
    let broker = app.broker(Wallet::Needed).await?;
    say(app, async |plan| plan_of(app, &broker, command, plan).await).await;
    Ok(())
}

/// Says what a new task will send and charge.
pub(super) async fn announce_task(app: &App, broker: &Broker, arguments: &args::CreateTask) {
    say(app, async |plan| create_task(broker, arguments, plan).await).await;
}

/// Says what storing a file costs.
pub(super) async fn announce_storing(app: &App, broker: &Broker, file: &std::path::Path) {
    say(app, async |plan| store(broker, file, plan).await).await;
}

/// Says what acknowledging a result sends, and what the provider then takes.
pub(super) async fn announce_acknowledgement(
    app: &App,
    broker: &Broker,
    provider: Address,
    task: zerog_sdk::TaskId,
) {
    let plan = async |plan: &mut Plan| acknowledge_task(broker, provider, task, plan).await;
    say(app, plan).await;
}

/// Says what `fill` plans, unless a program reads the output.
async fn say(app: &App, fill: impl AsyncFnOnce(&mut Plan) -> Outcome) {
    if app.output.is_json() {
        return;
    }
    let mut plan = Plan::default();
    match fill(&mut plan).await {
        Ok(()) => plan
            .steps
            .iter()
            .for_each(|step| app.output.note(step.told("This will"))),
        // The command goes on: it may work all the same, and says what is wrong if it does not.
        Err(failure) => app.output.note(format!(
            "What this will send could not be worked out beforehand: {failure}"
        )),
    }
}

/// Whether flags that belong together are all there; the command says what is missing.
fn is_complete(command: &Command) -> bool {
    let adapter = match command {
        Command::FineTuning(FineTuning::DeployAdapter(arguments)) => &arguments.adapter,
        Command::FineTuning(FineTuning::Chat(arguments)) => &arguments.adapter,
        _ => return true,
    };
    wanted(adapter).is_ok()
}

async fn plan_of(app: &App, broker: &Broker, command: &Command, plan: &mut Plan) -> Outcome {
    match command {
        Command::Deposit(amount) | Command::AddAccount(amount) => {
            deposit(broker, amount.amount, plan).await?;
        }
        Command::TransferFund(transfer) => {
            let service = ledger::service_of(broker, &transfer.account).await?;
            let provider = transfer.account.provider;
            plan.transaction(
                format!(
                    "move {} from the ledger to the {service} sub-account with {provider}",
                    sum_0g(transfer.amount)
                ),
                transfer.amount,
            );
            let available = broker.ledger.get_ledger().await?.available_balance;
            plan.require("the ledger", transfer.amount, available);
        }
        Command::RetrieveFund(retrieve) => retrieve_fund(broker, retrieve, plan).await?,
        Command::Refund(amount) => {
            let available = broker.ledger.get_ledger().await?.available_balance;
            plan.transaction(
                format!(
                    "pay {} of the ledger out to the wallet",
                    sum_0g(amount.amount)
                ),
                amount.amount,
            );
            plan.require("the ledger", amount.amount, available);
        }
        Command::FineTuning(command) => fine_tuning(app, broker, command, plan).await?,
        Command::Inference(command) => inference(broker, command, plan).await?,
        Command::Storage(Storage::Upload { file, .. }) => store(broker, file, plan).await?,
        _ => {}
    }
    Ok(())
}

/// Whether a command moves coins or costs gas.
fn spends(command: &Command) -> bool {
    matches!(
        command,
        Command::Deposit(_)
            | Command::AddAccount(_)
            | Command::TransferFund(_)
            | Command::RetrieveFund(_)
            | Command::Refund(_)
            | Command::Storage(Storage::Upload { .. })
            | Command::FineTuning(
                FineTuning::Upload { provider: None, .. }
                    | FineTuning::CreateTask(_)
                    | FineTuning::AcknowledgeProvider { .. }
                    | FineTuning::Revoke { .. }
                    | FineTuning::AcknowledgeModel(_)
                    | FineTuning::AcknowledgeDeliverable { .. }
                    | FineTuning::DeployAdapter(_)
                    | FineTuning::Chat(_)
                    | FineTuning::Run(_),
            )
            | Command::Inference(
                Inference::AcknowledgeProvider { .. }
                    | Inference::Revoke { .. }
                    | Inference::Serve(_)
                    | Inference::RevokeToken { .. }
                    | Inference::RevokeAllTokens { .. },
            )
    )
}

async fn tell(app: &App, broker: &Broker, plan: &Plan) -> Outcome {
    let gas_price = broker.chain().gas_price().await.map_err(Error::from)?;
    if plan.steps.is_empty() {
        app.output.line("Nothing would be sent");
    }
    for step in &plan.steps {
        app.output.line(step.told("Would"));
    }
    for problem in &plan.problems {
        app.output.warn(format!("It would fail: {problem}"));
    }
    app.output.line(format!(
        "Dry run: nothing was sent. Gas costs {gas_price} neuron a unit at the moment"
    ));
    app.output.json(&serde_json::json!({
        "dry_run": true,
        "steps": plan.steps,
        "problems": plan.problems,
        "gas_price_neuron": gas_price.to_string(),
    }));
    Ok(())
}

async fn deposit(broker: &Broker, amount: U256, plan: &mut Plan) -> Outcome {
    plan.transaction(
        format!("deposit {} from the wallet into the ledger", sum_0g(amount)),
        amount,
    );
    plan.require("the wallet", amount, broker.wallet_balance().await?);
    match broker.ledger.get_ledger().await {
        Ok(_) => {}
        Err(Error::LedgerMissing { .. }) => {
            let least = broker.ledger.min_account_balance().await?;
            if amount < least {
                plan.problems.push(format!(
                    "the first deposit must be at least {}",
                    sum_0g(least)
                ));
            }
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

async fn retrieve_fund(
    broker: &Broker,
    arguments: &args::RetrieveFund,
    plan: &mut Plan,
) -> Outcome {
    let services = match arguments.service {
        Some(service) => vec![service],
        None => vec![ServiceKind::FineTuning, ServiceKind::Inference],
    };
    for service in services {
        let providers = match arguments.provider {
            Some(provider) => vec![provider],
            None => broker.ledger.get_providers(service).await?,
        };
        for provider in providers {
            match ledger::sub_account(broker, provider, service).await {
                Ok(account) => {
                    let amount = account.available();
                    plan.transaction(
                        format!(
                            "ask {} back from the {service} sub-account with {provider}, and collect what is unlocked of {}",
                            sum_0g(amount),
                            sum_0g(account.pending_refund)
                        ),
                        amount,
                    );
                }
                Err(Error::AccountMissing { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

async fn fine_tuning(app: &App, broker: &Broker, command: &FineTuning, plan: &mut Plan) -> Outcome {
    match command {
        FineTuning::Upload {
            data_path,
            provider: None,
            ..
        } => store(broker, data_path, plan).await?,
        FineTuning::CreateTask(arguments) => create_task(broker, arguments, plan).await?,
        FineTuning::AcknowledgeProvider { provider } => {
            acknowledge(broker, *provider, ServiceKind::FineTuning, plan).await?;
        }
        FineTuning::Revoke { provider } => plan.transaction(
            format!("take the acknowledgement of {provider} back"),
            U256::ZERO,
        ),
        FineTuning::AcknowledgeModel(arguments) => {
            acknowledge_task(broker, arguments.provider, arguments.task_id, plan).await?;
            if arguments.deploy {
                let serving = arguments.inference_provider.unwrap_or(arguments.provider);
                chat_account(broker, serving, plan).await?;
            }
        }
        FineTuning::AcknowledgeDeliverable { provider, task_id } => {
            acknowledge_task(broker, *provider, *task_id, plan).await?;
        }
        FineTuning::DeployAdapter(arguments) => {
            chat_account(broker, arguments.adapter.provider, plan).await?;
            plan.request("deploy the adapter", Some(U256::ZERO));
        }
        FineTuning::Chat(arguments) => {
            chat_account(broker, arguments.adapter.provider, plan).await?;
            plan.request(
                "send one chat request, paid by its tokens from the inference sub-account",
                None,
            );
        }
        FineTuning::Run(arguments) => whole_walk(app, broker, arguments, plan).await?,
        _ => {}
    }
    Ok(())
}

async fn inference(broker: &Broker, command: &Inference, plan: &mut Plan) -> Outcome {
    match command {
        Inference::AcknowledgeProvider { provider } => {
            acknowledge(broker, *provider, ServiceKind::Inference, plan).await?;
        }
        Inference::Revoke { provider } => plan.transaction(
            format!("take the acknowledgement of {provider} back"),
            U256::ZERO,
        ),
        Inference::Serve(arguments) => {
            chat_account(broker, arguments.provider, plan).await?;
            plan.request(
                "pass requests on, each paid by its tokens from the inference sub-account, which is filled up from the ledger",
                None,
            );
        }
        Inference::RevokeToken { token_id, .. } => {
            plan.transaction(format!("revoke token {token_id}"), U256::ZERO);
        }
        Inference::RevokeAllTokens { .. } => {
            plan.transaction("revoke every token and session", U256::ZERO);
        }
        _ => {}
    }
    Ok(())
}

async fn store(broker: &Broker, file: &std::path::Path, plan: &mut Plan) -> Outcome {
    let cost = broker.storage()?.cost(file).await?;
    plan.transaction(
        format!(
            "store {} for {} (nothing if the network has it already)",
            file.display(),
            sum_0g(cost.fee)
        ),
        cost.fee,
    );
    plan.require("the wallet", cost.fee, broker.wallet_balance().await?);
    Ok(())
}

async fn create_task(broker: &Broker, arguments: &args::CreateTask, plan: &mut Plan) -> Outcome {
    let params = read_config(&arguments.config_path)?;
    let (provider, model) = (arguments.provider, &arguments.model);
    let most = quote::most(broker, arguments, &params).await?;
    let mut bound = "";
    let fee = match &arguments.dataset_path {
        Some(path) => {
            let counted = broker
                .fine_tuning
                .quote_fee(provider, model, path, &params)
                .await?;
            match arguments.via {
                Via::Storage => store(broker, path, plan).await?,
                Via::Tee => plan.request(
                    format!("upload {} to the enclave of {provider}", path.display()),
                    Some(U256::ZERO),
                ),
            }
            if counted.is_estimate {
                bound = "about ";
            }
            Some(counted.total)
        }
        None if most.is_some() => {
            bound = "at most ";
            most
        }
        None => uploaded_fee(broker, arguments, &params).await,
    };
    let action = match fee {
        Some(fee) => format!(
            "create a task with {provider}; once its result is acknowledged it charges {bound}{} from the fine-tuning sub-account",
            sum_0g(fee)
        ),
        None => format!(
            "create a task with {provider}; it counts the dataset, and charges its fee from the fine-tuning sub-account once the result is acknowledged. Name the most that it may be with --max-fee"
        ),
    };
    plan.request(action, fee);
    if let (Some(most), Some(fee)) = (most, fee)
        && fee > most
    {
        plan.problems
            .push(format!("the fee is above the allowed {}", sum_0g(most)));
    }
    let account = broker.fine_tuning.get_account(provider).await;
    let available = match account {
        Ok(account) => account.free_balance(),
        Err(Error::AccountMissing { .. }) => U256::ZERO,
        Err(error) => return Err(error.into()),
    };
    plan.require(
        "the fine-tuning sub-account",
        fee.unwrap_or(U256::ONE),
        available,
    );
    Ok(())
}

/// What the provider asks for a task on a dataset that it has; none where it does not say.
async fn uploaded_fee(broker: &Broker, arguments: &args::CreateTask, params: &str) -> Option<U256> {
    let hash = arguments.dataset.as_ref()?;
    let (provider, model) = (arguments.provider, &arguments.model);
    let quote = broker
        .fine_tuning
        .quote_uploaded(provider, model, hash, params)
        .await;
    Some(quote.ok()?.fee?.total)
}

async fn acknowledge_task(
    broker: &Broker,
    provider: Address,
    task: zerog_sdk::TaskId,
    plan: &mut Plan,
) -> Outcome {
    let view = broker.fine_tuning.get_task(provider, Some(task)).await?;
    match view.state() {
        // Nothing is sent or paid any more.
        Some(TaskState::Finished) => return Ok(()),
        Some(TaskState::UserAcknowledged) => {}
        _ => plan.transaction(format!("acknowledge the result of task {task}"), U256::ZERO),
    }
    match super::task::fee(&view) {
        Some(fee) => plan.request(
            format!(
                "let the provider take its fee of {} from the fine-tuning sub-account",
                sum_0g(fee)
            ),
            Some(fee),
        ),
        None => plan.request(
            "let the provider take its fee from the fine-tuning sub-account",
            None,
        ),
    }
    Ok(())
}

async fn acknowledge(
    broker: &Broker,
    provider: Address,
    service: ServiceKind,
    plan: &mut Plan,
) -> Outcome {
    match ledger::sub_account(broker, provider, service).await {
        Ok(account) if account.acknowledged => {}
        Ok(_) => plan.transaction(format!("acknowledge the signer of {provider}"), U256::ZERO),
        Err(Error::AccountMissing { .. }) => {
            let amount = broker.ledger.min_transfer_amount().await?;
            plan.transaction(
                format!(
                    "move {} from the ledger to a new {service} sub-account with {provider}, which acknowledges its signer",
                    sum_0g(amount)
                ),
                amount,
            );
            let available = broker.ledger.get_ledger().await?.available_balance;
            plan.require("the ledger", amount, available);
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Deploying and chatting keep 2 0G free at the serving provider, and move at least 1 0G at a time.
async fn chat_account(broker: &Broker, provider: Address, plan: &mut Plan) -> Outcome {
    let service = ServiceKind::Inference;
    let free = match ledger::sub_account(broker, provider, service).await {
        Ok(account) => account.available(),
        Err(Error::AccountMissing { .. }) => U256::ZERO,
        Err(error) => return Err(error.into()),
    };
    let missing = U256::from(2 * NEURON_PER_0G).saturating_sub(free);
    if missing.is_zero() {
        return Ok(());
    }
    let amount = missing.max(broker.ledger.min_transfer_amount().await?);
    plan.transaction(
        format!(
            "move {} (more if fees are unsettled) from the ledger to the {service} sub-account with {provider}",
            sum_0g(amount)
        ),
        amount,
    );
    let available = broker.ledger.get_ledger().await?.available_balance;
    plan.require("the ledger", amount, available);
    Ok(())
}

async fn whole_walk(app: &App, broker: &Broker, arguments: &args::Run, plan: &mut Plan) -> Outcome {
    let params = match &arguments.config_path {
        Some(path) => read_config(path)?,
        None => "{}".to_owned(),
    };
    let provider = match arguments.provider {
        Some(provider) => provider,
        None => walk::cheapest(app, broker).await?,
    };
    let serving = if arguments.no_deploy {
        None
    } else {
        Some(walk::serving_provider(broker, arguments, provider).await?)
    };
    let fee = broker
        .fine_tuning
        .quote_fee(provider, &arguments.model, &arguments.dataset_path, &params)
        .await?;
    app.output.line(walk::quote_text(&fee));
    match broker.plan_funds(provider, fee.total, serving).await {
        Ok(funds) => {
            for (amount, action) in [
                (funds.deposit, "from the wallet into the ledger"),
                (
                    funds.fine_tuning,
                    "from the ledger to the fine-tuning sub-account",
                ),
                (
                    funds.inference,
                    "from the ledger to the inference sub-account",
                ),
            ] {
                if !amount.is_zero() {
                    plan.transaction(format!("move {} {action}", sum_0g(amount)), amount);
                }
            }
        }
        Err(Error::InsufficientCoins {
            required,
            available,
            ..
        }) => plan.require("the wallet", required, available),
        Err(error) => return Err(error.into()),
    }
    match arguments.via {
        Via::Storage => store(broker, &arguments.dataset_path, plan).await?,
        Via::Tee => plan.request(
            format!("upload the dataset to the enclave of {provider}"),
            Some(U256::ZERO),
        ),
    }
    plan.request(
        format!(
            "create a task that costs {} after delivery",
            sum_0g(fee.total)
        ),
        Some(fee.total),
    );
    plan.transaction("acknowledge the result", U256::ZERO);
    if serving.is_some() {
        plan.request("deploy the adapter", Some(U256::ZERO));
    }
    Ok(())
}
