//! `fine-tuning run`: from a dataset to an adapter that answers, in one go.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use zerog_sdk::{
    Address, Broker, CreateTask, DeployOptions, FeeQuote, FundPlan, Progress, ServiceKind,
};

use super::fine_tuning::{chat_command, read_config, sum_0g};
use super::{dry_run, task};
use crate::app::{App, Wallet};
use crate::args::Run;
use crate::exit_code::{Failure, Outcome};
use crate::view::{AcknowledgedOutput, DeploymentOutput, TaskOutput};

/// Longest wait for the settlement that puts the key on chain.
const KEY_TIMEOUT: Duration = Duration::from_secs(600);
/// Longest wait for the adapter to be served.
const DEPLOY_TIMEOUT: Duration = Duration::from_secs(300);

pub(super) async fn run(app: &App, arguments: &Run) -> Outcome {
    let params = match &arguments.config_path {
        Some(path) => read_config(path)?,
        None => "{}".to_owned(),
    };
    if let Some(folder) = arguments
        .output_dir
        .as_ref()
        .filter(|folder| folder.exists())
    {
        return Err(Failure::usage(format!(
            "{} exists already; name a new folder with --output-dir",
            folder.display()
        )));
    }
    let broker = app.broker(Wallet::Needed).await?;
    let provider = match arguments.provider {
        Some(provider) => provider,
        None => cheapest(app, &broker).await?,
    };
    let serving = if arguments.no_deploy {
        None
    } else {
        Some(serving_provider(&broker, arguments, provider).await?)
    };

    let queue =
        task::decide_queue(app, &broker, provider, arguments.queue, arguments.no_queue).await?;
    let quote = broker
        .fine_tuning
        .quote_fee(provider, &arguments.model, &arguments.dataset_path, &params)
        .await?;
    app.output.line(quote_text(&quote));
    // Moving money acknowledges the provider, so it is verified before.
    app.output.line("Verify provider...");
    task::verify(app, &broker, provider).await?;
    app.output.line("Provider verified");
    let plan = broker.plan_funds(provider, quote.total, serving).await?;
    fund(app, &broker, &plan).await?;
    acknowledge(app, &broker, provider).await?;

    let dataset_hash = task::hand_over(
        app,
        &broker,
        provider,
        &arguments.dataset_path,
        arguments.via,
        arguments.plain,
    )
    .await?;
    let id = broker
        .fine_tuning
        .create_task(&CreateTask {
            provider,
            model: arguments.model.clone(),
            dataset_hash,
            training_params: params,
            queue,
            // The quote is a promise of a provider that counts like this program.
            max_fee: (!quote.is_estimate).then_some(quote.total),
        })
        .await?;
    app.output.line(format!("Created Task ID: {id}"));
    task::wait(app, &broker, provider, id).await?;

    let folder = arguments
        .output_dir
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("adapter-{id}")));
    let (encrypted, zip) = (folder.with_extension("enc"), folder.with_extension("zip"));
    dry_run::announce_acknowledgement(app, &broker, provider, id).await;
    let acknowledged = {
        let mut progress = app.output.progress();
        let show = |news: Progress| progress.show(&news);
        broker
            .fine_tuning
            .acknowledge_model(provider, id, &encrypted, arguments.download_method, show)
            .await?
    };
    app.output.line("Acknowledged model");
    {
        let mut progress = app.output.progress();
        let show = |news: Progress| progress.show(&news);
        broker
            .fine_tuning
            .decrypt_model(provider, id, &encrypted, &zip, KEY_TIMEOUT, show)
            .await?;
    }
    let manifest = broker.fine_tuning.unpack_adapter(&zip, &folder).await?;
    app.output
        .line(format!("Decrypted model to {}", folder.display()));

    let deployed = match serving {
        Some(serving) => {
            let options = DeployOptions {
                wait: true,
                timeout: DEPLOY_TIMEOUT,
                fine_tuning_provider: (serving != provider).then_some(provider),
            };
            let mut progress = app.output.progress();
            let show = |news: Progress| progress.show(&news);
            Some(
                broker
                    .inference
                    .lora
                    .deploy_adapter(serving, &arguments.model, id, &options, show)
                    .await?,
            )
        }
        None => None,
    };
    let view = broker.fine_tuning.get_task(provider, Some(id)).await?;
    if let Some(fee) = task::fee(&view) {
        app.output.line(format!("Fee: {}", sum_0g(fee)));
    }
    if let (Some(serving), Some(deployed)) = (serving, &deployed) {
        app.output
            .line(format!("Adapter name: {}", deployed.adapter_name));
        app.output.line(format!(
            "Talk to it: {}",
            chat_command(serving, &deployed.adapter_name)
        ));
    }
    app.output.json(&json!({
        "task_id": id,
        "provider": provider,
        "inference_provider": serving,
        "quote": quote,
        "funds": plan,
        "task": TaskOutput::from(&view),
        "model": AcknowledgedOutput::from(&acknowledged),
        "adapter_dir": folder,
        "manifest": manifest,
        "deployed": deployed.as_ref().map(DeploymentOutput::from),
    }));
    Ok(())
}

/// The cheapest acknowledged provider, a free one if there is any.
pub(super) async fn cheapest(app: &App, broker: &Broker) -> Outcome<Address> {
    let services = broker.fine_tuning.list_service(false).await?;
    let chosen = services
        .iter()
        .min_by_key(|service| (service.occupied, service.price_per_token));
    let service = chosen.ok_or_else(|| {
        Failure::new(
            crate::exit_code::PROVIDER,
            "no_provider",
            "there is no acknowledged fine-tuning provider on this network",
        )
    })?;
    app.output.line(format!("Provider: {}", service.provider));
    Ok(service.provider)
}

/// Where the adapter will be served: as told, else the trainer if it serves as well.
pub(super) async fn serving_provider(
    broker: &Broker,
    arguments: &Run,
    trainer: Address,
) -> Outcome<Address> {
    let provider = arguments.inference_provider.unwrap_or(trainer);
    match broker.inference.get_service(provider).await {
        Ok(_) => Ok(provider),
        Err(zerog_sdk::Error::ServiceMissing { .. }) => Err(Failure::usage(format!(
            "{provider} serves no inference; name a serving provider with --inference-provider, or leave deployment out with --no-deploy"
        ))),
        Err(error) => Err(error.into()),
    }
}

/// The price with its parts.
pub(super) fn quote_text(quote: &FeeQuote) -> String {
    let label = if quote.is_estimate {
        "Estimated fee"
    } else {
        "Fee"
    };
    format!(
        "{label}: {} = {} tokens × {} neuron × {} + {} storage ({} tokens in {} examples, {} steps)",
        sum_0g(quote.total),
        quote.billed_tokens,
        quote.price_per_token,
        quote.price_coefficient,
        sum_0g(quote.storage_fee),
        quote.calculation.tokens,
        quote.calculation.examples,
        quote.total_steps,
    )
}

async fn fund(app: &App, broker: &Broker, plan: &FundPlan) -> Outcome {
    if plan.is_empty() {
        return Ok(());
    }
    let text = plan_text(plan);
    if app.global.yes && !app.output.is_json() {
        app.output.note(&text);
    }
    if !app.confirm(&format!("{text} Go on?")).await? {
        return Err(Failure::usage("nothing was moved and no task was created"));
    }
    let mut progress = app.output.progress();
    broker
        .apply_funds(plan, |news| progress.show(&news))
        .await?;
    Ok(())
}

fn plan_text(plan: &FundPlan) -> String {
    let mut parts = Vec::new();
    if !plan.deposit.is_zero() {
        parts.push(format!("deposit {} from the wallet", sum_0g(plan.deposit)));
    }
    for (amount, service) in [
        (plan.fine_tuning, ServiceKind::FineTuning),
        (plan.inference, ServiceKind::Inference),
    ] {
        if !amount.is_zero() {
            parts.push(format!(
                "move {} to the {service} sub-account",
                sum_0g(amount)
            ));
        }
    }
    format!("This will {}.", parts.join(", "))
}

async fn acknowledge(app: &App, broker: &Broker, provider: Address) -> Outcome {
    let account = broker.fine_tuning.get_account(provider).await?;
    if !account.acknowledged {
        let mut progress = app.output.progress();
        let show = |news: Progress| progress.show(&news);
        broker
            .fine_tuning
            .acknowledge_provider_signer(provider, show)
            .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerog_sdk::U256;

    #[test]
    fn a_plan_is_told_in_one_sentence() {
        let plan = FundPlan {
            deposit: U256::from(3_000_000_000_000_000_000u64),
            fine_tuning: U256::from(1_000_000_000_000_000_000u64),
            inference: U256::ZERO,
            fine_tuning_provider: Address::ZERO,
            inference_provider: None,
        };
        let text =
            "This will deposit 3 0G from the wallet, move 1 0G to the fine-tuning sub-account.";
        assert_eq!(plan_text(&plan), text);
        assert!(!plan.is_empty());
    }
}
