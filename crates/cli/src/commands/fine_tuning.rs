//! `fine-tuning`: discovery, datasets, deliverables, adapters. Tasks and `run` have files of their own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use zerog_sdk::amount::{format_0g, format_0g_fixed};
use zerog_sdk::{
    Address, B256, Broker, DeployOptions, FineTuningService, Level, ListedModel, Progress, TaskId,
    TrainingParams, UploadOptions, VerificationReport, ids, models, write_file,
};

use super::{dry_run, quote, task, walk};
use crate::app::{App, Wallet};
use crate::args::{AcknowledgeModel, AdapterArgs, Chat, DeployAdapter, FineTuning, Verify};
use crate::exit_code::{Failure, OK, Outcome, SIMULATED, VERIFICATION};
use crate::output::{Table, wrapped};
use crate::view::{
    AcknowledgedOutput, AcknowledgementOutput, AdapterOutput, ChatOutput, DeploymentOutput,
    FineTuningServiceOutput, ReceiptOutput,
};

/// Longest wait of a deployment that follows an acknowledgement, as the published command line.
const DEPLOY_AFTER_ACKNOWLEDGE: Duration = Duration::from_secs(180);

pub(super) async fn run(app: &App, command: FineTuning) -> Outcome<u8> {
    match command {
        FineTuning::ListProviders { include_invalid } => {
            list_providers(app, include_invalid).await?
        }
        FineTuning::ListModels => list_models(app).await?,
        FineTuning::ModelUsage {
            provider,
            model,
            output,
        } => {
            let broker = app.broker(Wallet::NotNeeded).await?;
            let path = broker
                .fine_tuning
                .model_usage(provider, &model, &output)
                .await?;
            app.output
                .line(format!("Model downloaded and saved to {}", path.display()));
            app.output.json(&json!({ "path": path }));
        }
        FineTuning::InitConfig {
            model,
            output,
            strict,
        } => init_config(app, model.as_deref(), &output, strict).await?,
        FineTuning::CheckDataset {
            dataset_path,
            model,
            provider,
            config_path,
        } => {
            check_dataset(
                app,
                &dataset_path,
                model.as_deref(),
                provider,
                config_path.as_deref(),
            )
            .await?;
        }
        FineTuning::Upload {
            data_path,
            provider,
            plain,
        } => upload(app, &data_path, provider, plain).await?,
        FineTuning::DeleteDataset { provider, dataset } => {
            let broker = app.broker(Wallet::Needed).await?;
            let message = broker
                .fine_tuning
                .delete_dataset(provider, &dataset.to_string())
                .await?;
            app.output.line(&message);
            app.output
                .json(&json!({ "dataset_hash": dataset, "message": message }));
        }
        FineTuning::Download {
            data_path,
            data_root,
        } => download(app, &data_path, data_root).await?,
        FineTuning::CalculateToken {
            model,
            dataset_path,
            provider,
            config_path,
        } => {
            calculate_token(app, &model, &dataset_path, provider, config_path.as_deref()).await?;
        }
        FineTuning::Quote(arguments) => return quote::run(app, &arguments).await,
        FineTuning::CreateTask(arguments) => task::create(app, &arguments).await?,
        FineTuning::GetTask(arguments) => task::get(app, &arguments).await?,
        FineTuning::ListTasks { provider } => task::list(app, provider).await?,
        FineTuning::GetLog {
            task,
            follow,
            curve,
        } => task::log(app, &task, follow, &curve).await?,
        FineTuning::CancelTask { provider, task } => task::cancel(app, provider, task).await?,
        FineTuning::AcknowledgeModel(arguments) => acknowledge_model(app, &arguments).await?,
        FineTuning::AcknowledgeDeliverable { provider, task_id } => {
            let broker = app.broker(Wallet::Needed).await?;
            let receipt = broker
                .fine_tuning
                .acknowledge_deliverable(provider, task_id)
                .await?;
            app.output.line(format!(
                "Acknowledged deliverable for task {task_id}. Note: no model hash was verified by this call."
            ));
            app.output.json(&AcknowledgementOutput::from(&receipt));
        }
        FineTuning::AcknowledgeProvider { provider } => {
            let broker = app.broker(Wallet::Needed).await?;
            let mut progress = app.output.progress();
            let show = |news: Progress| progress.show(&news);
            let receipt = broker
                .fine_tuning
                .acknowledge_provider_signer(provider, show)
                .await?;
            app.output.line(acknowledged_text(receipt.is_some()));
            app.output.json(&AcknowledgementOutput::from(&receipt));
        }
        FineTuning::Revoke { provider } => {
            let broker = app.broker(Wallet::Needed).await?;
            let receipt = broker
                .fine_tuning
                .revoke_tee_signer_acknowledgement(provider)
                .await?;
            app.output
                .line("Provider TEE signer acknowledgement revoked successfully!");
            app.output.json(&ReceiptOutput::from(&receipt));
        }
        FineTuning::DecryptModel {
            provider,
            task_id,
            encrypted_model,
            output,
            unpack,
            timeout,
        } => {
            let timeout = Duration::from_secs(timeout);
            decrypt_model(
                app,
                provider,
                task_id,
                &encrypted_model,
                &output,
                unpack.as_deref(),
                timeout,
            )
            .await?;
        }
        FineTuning::GetAdapterName { model, task_id } => {
            let name = ids::adapter_name(&model, &task_id);
            app.output.line(&name);
            app.output.json(&json!({ "adapter_name": name }));
        }
        FineTuning::ListAdapters { provider } => list_adapters(app, provider).await?,
        FineTuning::ShareAdapter {
            provider,
            adapter_name,
            address,
            revoke,
        } => {
            let broker = app.broker(Wallet::Needed).await?;
            let lora = &broker.inference.lora;
            let shares = lora
                .share_adapter(provider, &adapter_name, address, revoke)
                .await?;
            let with = match shares.shared_with.as_slice() {
                [] => "nobody".to_owned(),
                addresses => addresses.join(", "),
            };
            app.output
                .line(format!("{} is shared with {with}", shares.adapter_name));
            app.output.json(&json!({
                "adapter_name": shares.adapter_name,
                "shared_with": shares.shared_with,
            }));
        }
        FineTuning::DeployAdapter(arguments) => deploy_adapter(app, &arguments).await?,
        FineTuning::Chat(arguments) => chat(app, &arguments).await?,
        FineTuning::Verify(arguments) => {
            let broker = app.broker(Wallet::NotNeeded).await?;
            let output_dir = Some(arguments.output_dir.as_path());
            let on_log = |step: &zerog_sdk::VerificationStep| app.output.line(&step.message);
            let report = broker
                .fine_tuning
                .verify_service(arguments.provider, output_dir, on_log)
                .await?;
            return Ok(verdict(app, &arguments, &report));
        }
        FineTuning::Run(arguments) => walk::run(app, &arguments).await?,
    }
    Ok(OK)
}

pub(super) fn acknowledged_text(sent: bool) -> &'static str {
    if sent {
        "Provider acknowledged successfully!"
    } else {
        "Provider signer already acknowledged"
    }
}

async fn list_providers(app: &App, include_invalid: bool) -> Outcome {
    let broker = app.broker(Wallet::NotNeeded).await?;
    let services = broker.fine_tuning.list_service(include_invalid).await?;
    if services.is_empty() {
        app.output.note("There are no fine-tuning providers on this network (--include-invalid shows unacknowledged ones).");
    } else {
        app.output.table(&providers_table(&services));
    }
    let services: Vec<_> = services.iter().map(FineTuningServiceOutput::from).collect();
    app.output.json(&services);
    Ok(())
}

fn providers_table(services: &[FineTuningService]) -> Table {
    let mut table = Table::new(&[50, 50]);
    for (index, service) in services.iter().enumerate() {
        table.highlighted_row([
            format!("Provider {}", index + 1),
            service.provider.to_string(),
        ]);
        table.row([
            "Available".into(),
            if service.occupied {
                "✗".into()
            } else {
                "✓".into()
            },
        ]);
        table.row([
            "Price Per Byte in Dataset (0G)".into(),
            format_0g_fixed(service.price_per_token),
        ]);
    }
    table
}

async fn list_models(app: &App) -> Outcome {
    let broker = app.broker(Wallet::NotNeeded).await?;
    let (predefined, customised) = broker.fine_tuning.list_model().await?;
    app.output.line("Predefined Model:");
    app.output.table(&models_table(&predefined, false));
    app.output.line("Provider's Model:");
    app.output.table(&models_table(&customised, true));
    app.output
        .json(&json!({ "predefined": predefined, "customised": customised }));
    Ok(())
}

fn models_table(models: &[ListedModel], with_provider: bool) -> Table {
    let (name, description) = (("Name", 30), ("Description", 75));
    let mut table = if with_provider {
        Table::with_head(&[name, description, ("Provider", 45)])
    } else {
        Table::with_head(&[name, description])
    };
    for model in models {
        let (name, description) = (wrapped(&model.name, 28), wrapped(&model.description, 73));
        match model.provider.filter(|_| with_provider) {
            Some(provider) => table.row([name, description, wrapped(&provider.to_string(), 42)]),
            None => table.row([name, description]),
        }
    }
    table
}

async fn init_config(app: &App, model: Option<&str>, output: &Path, strict: bool) -> Outcome {
    if let Some(model) = model
        && models::find(model).is_none()
    {
        app.output.warn(format!(
            "{model} is no predefined model; its provider may limit the values further."
        ));
    }
    if output.exists()
        && !app
            .confirm(&format!("{} exists. Replace it?", output.display()))
            .await?
    {
        return Err(Failure::usage(format!(
            "{} was left as it is",
            output.display()
        )));
    }
    let text = config_text(strict);
    write_file(output, text.as_bytes())?;
    app.output
        .line(format!("Configuration written to {}", output.display()));
    app.output.json(&json!({ "path": output }));
    Ok(())
}

/// A parameter file with defaults.
fn config_text(strict: bool) -> String {
    if strict {
        // Decimal notation and all five keys, which the strictest provider asks for.
        return "{\n  \"neftune_noise_alpha\": 5,\n  \"num_train_epochs\": 3,\n  \"per_device_train_batch_size\": 2,\n  \"learning_rate\": 0.0002,\n  \"max_steps\": -1\n}\n".to_owned();
    }
    let mut text = serde_json::to_string_pretty(&TrainingParams::default())
        .expect("parameters are plain data");
    text.push('\n');
    text
}

async fn check_dataset(
    app: &App,
    path: &Path,
    model: Option<&str>,
    provider: Option<Address>,
    config_path: Option<&Path>,
) -> Outcome {
    let report = zerog_sdk::fine_tuning::dataset::check_dataset_file(path)?;
    app.output.line(format!(
        "{} records ({}), {} bytes",
        report.records, report.format, report.bytes
    ));
    app.output.line(format!("Dataset hash: {}", report.keccak));
    let calculation = match model {
        Some(model) => {
            let params = config_path.map(read_config).transpose()?;
            let broker = app.broker(Wallet::NotNeeded).await?;
            let calculation = broker
                .fine_tuning
                .calculate_token(path, model, provider, params.as_deref())
                .await?;
            app.output.line(format!(
                "{} tokens in {} examples",
                calculation.tokens, calculation.examples
            ));
            if let Some(supervised) = calculation.supervised_tokens {
                app.output.line(format!("{supervised} tokens are learned"));
            }
            if calculation.truncated_examples > 0 {
                app.output.warn(format!(
                    "{} examples are longer than max_seq_length {} and are cut",
                    calculation.truncated_examples, calculation.max_seq_length
                ));
            }
            Some(calculation)
        }
        None => None,
    };
    app.output.line("The dataset is fine");
    app.output
        .json(&json!({ "dataset": report, "tokens": calculation }));
    Ok(())
}

/// The text of a parameter file.
pub(super) fn read_config(path: &Path) -> Outcome<String> {
    std::fs::read_to_string(path).map_err(|error| Failure::file("read", path, error))
}

async fn upload(app: &App, path: &Path, provider: Option<Address>, plain: bool) -> Outcome {
    let Some(provider) = provider else {
        return upload_to_storage(app, path).await;
    };
    let broker = app.broker(Wallet::Needed).await?;
    let mut progress = app.output.progress();
    let show = |news: Progress| progress.show(&news);
    let options = UploadOptions { plain };
    let uploaded = broker
        .fine_tuning
        .upload_dataset_to_tee_with(provider, path, &options, show)
        .await?;
    app.output.note(&uploaded.message);
    app.output
        .line(format!("Root hash: {}", uploaded.dataset_hash));
    app.output.json(&uploaded);
    Ok(())
}

async fn upload_to_storage(app: &App, path: &Path) -> Outcome {
    app.output.warn(format!(
        "{} will be stored IN CLEAR on public storage: anyone with its root hash can read it. With --provider it is sealed to that provider's enclave instead.",
        path.display()
    ));
    if !app.confirm("Store it in clear?").await? {
        return Err(Failure::usage("nothing was stored"));
    }
    let broker = app.broker(Wallet::Needed).await?;
    dry_run::announce_storing(app, &broker, path).await;
    let root = store(app, &broker, path).await?;
    app.output.line(format!("Root hash: {root}"));
    app.output.json(&json!({ "root_hash": root }));
    Ok(())
}

/// Stores a file on the storage network.
pub(super) async fn store(app: &App, broker: &Broker, path: &Path) -> Outcome<B256> {
    let mut progress = app.output.progress();
    Ok(broker
        .fine_tuning
        .upload_dataset(path, |news| progress.show(&news))
        .await?)
}

async fn download(app: &App, path: &Path, root: B256) -> Outcome {
    let broker = app.broker(Wallet::NotNeeded).await?;
    let mut progress = app.output.progress();
    broker
        .fine_tuning
        .download_dataset(path, root, |news| progress.show(&news))
        .await?;
    app.output
        .line(format!("Downloaded and verified {}", path.display()));
    app.output.json(&json!({ "path": path, "root_hash": root }));
    Ok(())
}

async fn calculate_token(
    app: &App,
    model: &str,
    path: &Path,
    provider: Option<Address>,
    config_path: Option<&Path>,
) -> Outcome {
    let broker = app.broker(Wallet::NotNeeded).await?;
    let params = config_path.map(read_config).transpose()?;
    if let (Some(provider), Some(params)) = (provider, &params) {
        let quote = broker
            .fine_tuning
            .quote_fee(provider, model, path, params)
            .await?;
        app.output.line(format!(
            "Token size for dataset {}: {}",
            path.display(),
            quote.calculation.tokens
        ));
        app.output.note(walk::quote_text(&quote));
        app.output.json(&quote);
        return Ok(());
    }
    let calculation = broker
        .fine_tuning
        .calculate_token(path, model, provider, params.as_deref())
        .await?;
    app.output.line(format!(
        "Token size for dataset {}: {}",
        path.display(),
        calculation.tokens
    ));
    if calculation.is_estimate {
        app.output
            .note("This is an estimate: the provider counts with rules of its own.");
    }
    app.output.json(&calculation);
    Ok(())
}

async fn acknowledge_model(app: &App, arguments: &AcknowledgeModel) -> Outcome {
    let broker = app.broker(Wallet::Needed).await?;
    let (provider, task) = (arguments.provider, arguments.task_id);
    let acknowledged = {
        let mut progress = app.output.progress();
        let show = |news: Progress| progress.show(&news);
        broker
            .fine_tuning
            .acknowledge_model(
                provider,
                task,
                &arguments.data_path,
                arguments.download_method,
                show,
            )
            .await?
    };
    app.output.line("Acknowledged model");
    if !arguments.deploy {
        app.output.json(&AcknowledgedOutput::from(&acknowledged));
        return Ok(());
    }
    let model = match &arguments.model {
        Some(model) => model.clone(),
        None => task_model(&broker, provider, task).await?,
    };
    let serving = arguments.inference_provider.unwrap_or(provider);
    let options = DeployOptions {
        wait: true,
        timeout: DEPLOY_AFTER_ACKNOWLEDGE,
        fine_tuning_provider: (serving != provider).then_some(provider),
    };
    let deployed = {
        let mut progress = app.output.progress();
        broker
            .inference
            .lora
            .deploy_adapter(serving, &model, task, &options, |news| progress.show(&news))
            .await?
    };
    app.output
        .line(format!("Adapter name: {}", deployed.adapter_name));
    app.output.line(&deployed.message);
    app.output.json(&json!({
        "acknowledged": AcknowledgedOutput::from(&acknowledged),
        "deployed": DeploymentOutput::from(&deployed),
    }));
    Ok(())
}

/// The name of the base model of a task.
async fn task_model(broker: &Broker, provider: Address, task: TaskId) -> Outcome<String> {
    let hash = broker
        .fine_tuning
        .get_task(provider, Some(task))
        .await?
        .pre_trained_model_hash;
    if let Some(model) = models::find(&hash) {
        return Ok(model.name.to_owned());
    }
    Ok(broker.fine_tuning.get_model(provider, &hash).await?.name)
}

async fn decrypt_model(
    app: &App,
    provider: Address,
    task: TaskId,
    encrypted: &Path,
    output: &Path,
    unpack: Option<&Path>,
    timeout: Duration,
) -> Outcome {
    let broker = app.broker(Wallet::Needed).await?;
    let mut progress = app.output.progress();
    let show = |news: Progress| progress.show(&news);
    let path: PathBuf = broker
        .fine_tuning
        .decrypt_model(provider, task, encrypted, output, timeout, show)
        .await?;
    app.output.line("Decrypted model");
    let manifest = match unpack {
        Some(folder) => {
            let manifest = broker.fine_tuning.unpack_adapter(&path, folder).await?;
            app.output.line(format!("Unpacked to {}", folder.display()));
            manifest
        }
        None => None,
    };
    app.output
        .json(&json!({ "path": path, "unpacked": unpack, "manifest": manifest }));
    Ok(())
}

async fn list_adapters(app: &App, provider: Address) -> Outcome {
    let broker = app.broker(Wallet::Needed).await?;
    let adapters = broker.inference.lora.list_adapters(provider).await?;
    let mut table = Table::with_head(&[("Adapter", 48), ("Task", 40), ("State", 15)]);
    for adapter in &adapters {
        let state = adapter
            .tier
            .clone()
            .unwrap_or_else(|| adapter.state.clone());
        table.row([adapter.adapter_name.clone(), adapter.task_id.clone(), state]);
    }
    app.output.table(&table);
    let adapters: Vec<_> = adapters.iter().map(AdapterOutput::from).collect();
    app.output.json(&adapters);
    Ok(())
}

/// Which adapter is meant: by name, or by base model and task.
pub(super) enum Wanted<'a> {
    Name(&'a str),
    Task(&'a str, TaskId),
}

pub(super) fn wanted(arguments: &AdapterArgs) -> Outcome<Wanted<'_>> {
    match (&arguments.adapter_name, &arguments.model, arguments.task_id) {
        (Some(name), ..) => Ok(Wanted::Name(name)),
        (None, Some(model), Some(task)) => Ok(Wanted::Task(model, task)),
        _ => Err(Failure::usage(
            "Provide either --adapter-name or both --model and --task-id",
        )),
    }
}

async fn deploy_adapter(app: &App, arguments: &DeployAdapter) -> Outcome {
    let wanted = wanted(&arguments.adapter)?;
    let broker = app.broker(Wallet::Needed).await?;
    let provider = arguments.adapter.provider;
    let options = DeployOptions {
        wait: arguments.wait,
        timeout: Duration::from_secs(arguments.timeout),
        fine_tuning_provider: arguments.fine_tuning_provider,
    };
    let deployed = {
        let mut progress = app.output.progress();
        let show = |news: Progress| progress.show(&news);
        let lora = &broker.inference.lora;
        match wanted {
            Wanted::Name(name) => {
                lora.deploy_adapter_by_name(provider, name, &options, show)
                    .await?
            }
            Wanted::Task(model, task) => {
                lora.deploy_adapter(provider, model, task, &options, show)
                    .await?
            }
        }
    };
    app.output
        .line(format!("Adapter name: {}", deployed.adapter_name));
    app.output.line(&deployed.message);
    app.output.json(&DeploymentOutput::from(&deployed));
    Ok(())
}

async fn chat(app: &App, arguments: &Chat) -> Outcome {
    let wanted = wanted(&arguments.adapter)?;
    let broker = app.broker(Wallet::Needed).await?;
    let (provider, lora) = (arguments.adapter.provider, &broker.inference.lora);
    let name = match wanted {
        Wanted::Name(name) => name.to_owned(),
        Wanted::Task(model, task) => lora.resolve_adapter_name(provider, model, task).await?,
    };
    let mut messages = Vec::new();
    if !arguments.system.is_empty() {
        messages.push(json!({ "role": "system", "content": arguments.system }));
    }
    messages.push(json!({ "role": "user", "content": arguments.message }));
    let mut body = json!({ "model": name, "messages": messages });
    if let Some(max_tokens) = arguments.max_tokens {
        body["max_tokens"] = max_tokens.into();
    }
    if let Some(temperature) = arguments.temperature {
        body["temperature"] = temperature.into();
    }
    let answer = {
        let mut progress = app.output.progress();
        lora.chat_completion(provider, body, |news| progress.show(&news))
            .await?
    };
    let proof = if arguments.verify {
        Some(lora.verify_answer(provider, &answer).await?)
    } else {
        None
    };
    app.output.line(format!("Adapter model name: {name}"));
    app.output.line(format!(
        "Assistant: {}",
        answer.content().unwrap_or_default()
    ));
    if let Some((prompt, completion, total)) = answer.usage() {
        app.output.line(format!(
            "Tokens: {prompt} prompt + {completion} completion = {total} total"
        ));
    }
    if let Some(proof) = &proof {
        app.output.line(format!(
            "Verified: request and response are signed by {}",
            proof.signer
        ));
    }
    app.output.json(&ChatOutput::new(&answer, proof));
    Ok(())
}

/// Prints the result of a verification and says how it counts.
pub(super) fn verdict(app: &App, arguments: &Verify, report: &VerificationReport) -> u8 {
    app.output.json(report);
    let code = match report.level {
        Level::Verified | Level::Partial => {
            app.output.line("✅ Verification completed successfully");
            app.output.line("   Reports: combined");
            app.output.line(format!(
                "   Output directory: {}",
                arguments.output_dir.display()
            ));
            OK
        }
        Level::Simulated => {
            app.output.warn("⚠️  The evidence is consistent, but the TEE is SIMULATED: it proves and protects nothing.");
            SIMULATED
        }
        Level::Failed => {
            app.output.warn(format!(
                "❌ Verification failed: {}",
                report.errors.join("; ")
            ));
            VERIFICATION
        }
    };
    let open: Vec<&str> = report
        .checks
        .iter()
        .filter(|check| {
            matches!(
                check.status,
                zerog_sdk::CheckStatus::Skipped | zerog_sdk::CheckStatus::Warning
            )
        })
        .map(|check| check.name)
        .collect();
    if !open.is_empty() {
        app.output.note(format!("Left open: {}", open.join(", ")));
    }
    code
}

/// The command that talks to an adapter.
pub(super) fn chat_command(provider: Address, adapter_name: &str) -> String {
    format!(
        "0g-compute-cli fine-tuning chat --provider {provider} --adapter-name {adapter_name} --message \"Hello!\""
    )
}

/// The whole sum in words.
pub(super) fn sum_0g(neuron: zerog_sdk::U256) -> String {
    format!("{} 0G", format_0g(neuron))
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerog_sdk::Schema;

    #[test]
    fn written_configurations_are_valid() {
        let params = TrainingParams::parse(&config_text(false), Schema::Extended, 32_768).unwrap();
        assert_eq!(params, TrainingParams::default());
        TrainingParams::parse(&config_text(true), Schema::Strict, 32_768).unwrap();
    }

    #[test]
    fn model_tables_cut_hard() {
        let model = ListedModel {
            name: "a".repeat(30),
            hash: None,
            description: "d".repeat(74),
            tokenizer: String::new(),
            provider: Some(Address::ZERO),
        };
        let text = models_table(std::slice::from_ref(&model), true).render(false);
        assert!(
            text.contains(&format!("│ {} │ {} │ 0x", "a".repeat(28), "d".repeat(73))),
            "{text}"
        );
        assert!(
            text.contains(&format!("│ aa{} │ d{} │", " ".repeat(26), " ".repeat(72))),
            "{text}"
        );
        assert!(
            !models_table(&[model], false)
                .render(false)
                .contains("Provider")
        );
    }
}
