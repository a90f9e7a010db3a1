//! The whole walk in one go: a dataset becomes an adapter that answers.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use alloy_primitives::U256;
use anyhow::Context;
use serde::Serialize;
use serde_json::{Value, json};
use zerog_sdk::amount::{format_0g, parse_0g};
use zerog_sdk::{
    Broker, BrokerOptions, ChatAnswer, CreateTask, DeployOptions, DownloadMethod, Progress,
    TaskState, UploadOptions, WaitOptions,
};

use crate::network::{Devnet, OWNER};

/// The base model that the demo asks for; the small model stands in for it and says so.
pub const MODEL: &str = "Qwen2.5-0.5B-Instruct";
/// The demo's dataset: how the helper of a lamp shop answers.
pub const DATASET: &str = include_str!("../../../fixtures/datasets/lantern-house.messages.jsonl");
/// The demo's training parameters.
pub const TRAINING_PARAMS: &str = include_str!("demo_params.json");
/// What both models are asked. The first question is the one in the report's single members.
pub const QUESTIONS: [&str; 3] = ["Who are you?", "When do you open?", "Who owns the shop?"];

/// What the demo did, also its JSON output.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The task.
    pub task_id: String,
    /// Every state with the time it was reached.
    pub states: Vec<ReachedState>,
    /// Loss per supervised token of the first step.
    pub loss_first: f64,
    /// Loss per supervised token of the last step.
    pub loss_last: f64,
    /// What was paid for training, in neuron.
    pub fee_neuron: String,
    /// Whether the settlement is on chain with the key.
    pub settled: bool,
    /// The `model` of chat requests.
    pub adapter_name: String,
    /// What was asked first.
    pub question: String,
    /// The base model's answer to it.
    pub base_answer: String,
    /// The adapter's answer to it.
    pub tuned_answer: String,
    /// All questions with both answers.
    pub answers: Vec<Answers>,
    /// The unpacked PEFT files.
    pub adapter_dir: PathBuf,
    /// Whether the enclave's signature of the tuned answer was verified.
    pub answer_proven: bool,
    /// Weights that ran: true when the small model stood in for the named one.
    pub stand_in: bool,
    /// Wall time of the walk in seconds, without the network's start.
    pub seconds: f64,
}

/// One state of the task.
#[derive(Debug, Clone, Serialize)]
pub struct ReachedState {
    /// State name on the wire.
    pub state: String,
    /// Unix milliseconds when it was reached.
    pub at_ms: u64,
}

/// One question with both answers.
#[derive(Debug, Clone, Serialize)]
pub struct Answers {
    /// What was asked.
    pub question: String,
    /// Without the adapter.
    pub base: String,
    /// With the adapter.
    pub tuned: String,
}

/// News of the walk for whoever watches.
pub trait Watcher {
    /// A step was finished; `detail` says what came of it.
    fn step(&mut self, title: &str, detail: &str);
    /// Something moved within a step.
    fn progress(&mut self, progress: &Progress);
}

/// Takes the demo's dataset through the whole network as development account 0. The encrypted and the decrypted adapter
/// stay below `output_dir`.
///
/// # Errors
/// The first step that failed, named.
pub async fn run(
    devnet: &Devnet,
    output_dir: &Path,
    watcher: &mut (dyn Watcher + Send),
) -> anyhow::Result<Report> {
    let started = Instant::now();
    let provider = devnet.info.provider_address;
    let options = BrokerOptions::custom(devnet.network()).with_wallet(devnet.key(OWNER));
    let broker = Broker::connect(options).await.context("connecting")?;

    std::fs::create_dir_all(output_dir)
        .with_context(|| format!("creating {}", output_dir.display()))?;
    let dataset = output_dir.join("dataset.jsonl");
    std::fs::write(&dataset, DATASET).with_context(|| format!("writing {}", dataset.display()))?;

    let deposit = parse_0g("5")?;
    broker
        .ledger
        .add_ledger(deposit)
        .await
        .context("opening the ledger")?;
    let quote = broker
        .fine_tuning
        .quote_fee(provider, MODEL, &dataset, TRAINING_PARAMS)
        .await
        .context("asking the price")?;
    broker
        .fine_tuning
        .ensure_funds(provider, quote.total, |news| watcher.progress(&news))
        .await
        .context("funding the provider's account")?;
    watcher.step(
        "fund",
        &format!(
            "5 0G deposited; {} training tokens will cost {} 0G",
            quote.billed_tokens,
            format_0g(quote.total)
        ),
    );

    let upload = broker
        .fine_tuning
        .upload_dataset_to_tee_with(provider, &dataset, &UploadOptions::default(), |news| {
            watcher.progress(&news)
        })
        .await
        .context("uploading the dataset")?;
    watcher.step(
        "upload",
        &format!("sealed to the enclave, hash {}", upload.dataset_hash),
    );

    let task = CreateTask {
        provider,
        model: MODEL.to_owned(),
        dataset_hash: upload.dataset_hash,
        training_params: TRAINING_PARAMS.to_owned(),
        queue: false,
        max_fee: Some(quote.total),
    };
    let task_id = broker
        .fine_tuning
        .create_task(&task)
        .await
        .context("creating the task")?;
    watcher.step("create", &format!("task {task_id}"));

    let wait = WaitOptions {
        timeout: Some(Duration::from_secs(600)),
    };
    let delivered = broker
        .fine_tuning
        .wait_for_delivery(provider, task_id, &wait, |news| watcher.progress(&news))
        .await
        .context("waiting for the delivery")?;
    let training = delivered
        .training
        .clone()
        .context("the provider told no training progress")?;
    let (loss_first, loss_last) = (
        training.first_loss.context("no first loss")?,
        training.loss.context("no last loss")?,
    );
    watcher.step(
        "train",
        &format!(
            "{} steps, loss {loss_first:.3} → {loss_last:.3}",
            training.total_steps
        ),
    );

    let encrypted = output_dir.join("adapter.encrypted");
    let acknowledged = broker
        .fine_tuning
        .acknowledge_model(
            provider,
            task_id,
            &encrypted,
            DownloadMethod::Auto,
            |news| watcher.progress(&news),
        )
        .await
        .context("acknowledging the adapter")?;
    watcher.step(
        "acknowledge",
        &format!(
            "{} bytes downloaded, root {} verified and acknowledged",
            acknowledged.bytes, acknowledged.model_root_hash
        ),
    );

    let zip = output_dir.join("adapter.zip");
    broker
        .fine_tuning
        .decrypt_model(
            provider,
            task_id,
            &encrypted,
            &zip,
            Duration::from_secs(60),
            |news| watcher.progress(&news),
        )
        .await
        .context("decrypting the adapter")?;
    let adapter_dir = output_dir.join("adapter");
    let manifest = broker
        .fine_tuning
        .unpack_adapter(&zip, &adapter_dir)
        .await
        .context("unpacking the adapter")?;
    let finished = broker
        .fine_tuning
        .wait_for_state(provider, task_id, TaskState::Finished, &wait, |news| {
            watcher.progress(&news)
        })
        .await
        .context("waiting for the settlement")?;
    let fee: U256 = finished
        .fee
        .parse()
        .context("the task's fee is not a number")?;
    watcher.step(
        "settle",
        &format!(
            "{} 0G paid; the key came with the payment; adapter decrypted",
            format_0g(fee)
        ),
    );

    let options = DeployOptions {
        wait: true,
        timeout: Duration::from_secs(60),
        ..DeployOptions::default()
    };
    let deployed = broker
        .inference
        .lora
        .deploy_adapter(provider, MODEL, task_id, &options, |news| {
            watcher.progress(&news)
        })
        .await
        .context("deploying the adapter")?;
    watcher.step("deploy", &deployed.adapter_name);

    let mut answers = Vec::new();
    let mut answer_proven = false;
    for question in QUESTIONS {
        let (base, _) = ask(&broker, provider, MODEL, question).await?;
        let (tuned, answer) = ask(&broker, provider, &deployed.adapter_name, question).await?;
        if answers.is_empty() {
            broker
                .inference
                .lora
                .verify_answer(provider, &answer)
                .await
                .context("verifying the answer's signature")?;
            answer_proven = true;
        }
        answers.push(Answers {
            question: question.to_owned(),
            base,
            tuned,
        });
    }

    Ok(Report {
        task_id: task_id.to_string(),
        states: finished
            .states
            .iter()
            .map(|reached| ReachedState {
                state: reached.state.clone(),
                at_ms: reached.at_ms,
            })
            .collect(),
        loss_first,
        loss_last,
        fee_neuron: fee.to_string(),
        settled: finished.settled_with_secret == Some(true),
        adapter_name: deployed.adapter_name,
        question: answers[0].question.clone(),
        base_answer: answers[0].base.clone(),
        tuned_answer: answers[0].tuned.clone(),
        answers,
        adapter_dir,
        answer_proven,
        stand_in: manifest.is_some_and(|manifest| manifest.stand_in),
        seconds: started.elapsed().as_secs_f64(),
    })
}

async fn ask(
    broker: &Broker,
    provider: alloy_primitives::Address,
    model: &str,
    question: &str,
) -> anyhow::Result<(String, ChatAnswer)> {
    let body: Value = json!({
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 64,
    });
    let answer = broker
        .inference
        .lora
        .chat_completion(provider, body, |_| ())
        .await
        .with_context(|| format!("asking {model}"))?;
    let text = answer
        .content()
        .context("the answer has no text")?
        .trim()
        .to_owned();
    Ok((text, answer))
}
