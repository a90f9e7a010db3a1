//! From a dataset to an answer: fund, upload, train, take delivery, decrypt, deploy, ask.
//!
//! `PRIVATE_KEY=0x… cargo run -p zerog-sdk --example whole_walk -- DATASET PARAMETERS OUTPUT_FOLDER`

#![allow(clippy::print_stdout, reason = "an example talks to its user")]

mod common;

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use zerog_sdk::amount::format_0g;
use zerog_sdk::inference::lora::DeployOptions;
use zerog_sdk::{CreateTask, DownloadMethod, Progress, UploadOptions, WaitOptions};

const MODEL: &str = "Qwen2.5-0.5B-Instruct";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let [dataset, parameters, output] =
        common::arguments(["DATASET", "PARAMETERS", "OUTPUT_FOLDER"])?;
    let training_params = std::fs::read_to_string(&parameters)?;
    let broker = common::connect().await?;
    let tuning = &broker.fine_tuning;
    let services = tuning.list_service(false).await?;
    let provider = services.first().ok_or("no provider")?.provider;

    // Money moves only as far as it is missing.
    let quote = tuning
        .quote_fee(provider, MODEL, dataset.as_ref(), &training_params)
        .await?;
    let plan = broker
        .plan_funds(provider, quote.total, Some(provider))
        .await?;
    println!(
        "{} training tokens cost {} 0G; {} 0G are deposited",
        quote.billed_tokens,
        format_0g(quote.total),
        format_0g(plan.deposit)
    );
    broker.apply_funds(&plan, show).await?;
    tuning.acknowledge_provider_signer(provider, show).await?;

    let options = UploadOptions::default();
    let uploaded = tuning
        .upload_dataset_to_tee_with(provider, dataset.as_ref(), &options, show)
        .await?;
    let task = tuning
        .create_task(&CreateTask {
            provider,
            model: MODEL.into(),
            dataset_hash: uploaded.dataset_hash,
            training_params,
            queue: true,
            max_fee: Some(quote.total),
        })
        .await?;
    println!("task {task}");
    tuning
        .wait_for_delivery(provider, task, &WaitOptions::default(), show)
        .await?;

    let folder = Path::new(&output);
    let (encrypted, archive) = (folder.join("adapter.enc"), folder.join("adapter.zip"));
    std::fs::create_dir_all(folder)?;
    tuning
        .acknowledge_model(provider, task, &encrypted, DownloadMethod::Auto, show)
        .await?;
    // The key is published when the provider settles the fee.
    let patience = Duration::from_secs(300);
    tuning
        .decrypt_model(provider, task, &encrypted, &archive, patience, show)
        .await?;
    tuning
        .unpack_adapter(&archive, &folder.join("adapter"))
        .await?;

    let lora = &broker.inference.lora;
    let options = DeployOptions {
        wait: true,
        ..DeployOptions::default()
    };
    let deployed = lora
        .deploy_adapter(provider, MODEL, task, &options, show)
        .await?;
    let answer = lora
        .chat(provider, &deployed.adapter_name, "Who are you?", None)
        .await?;
    let proof = lora.verify_answer(provider, &answer).await?;
    println!("{}", answer.content().unwrap_or_default());
    println!("signed by the enclave {}", proof.signer);
    Ok(())
}

fn show(progress: Progress) {
    match progress {
        Progress::Task {
            state,
            step: Some(step),
            total_steps: Some(total),
            ..
        } => println!("{state} {step}/{total}"),
        Progress::Task { state, .. } | Progress::Adapter { state } => println!("{state}"),
        Progress::Step { text } | Progress::Notice { text } => println!("{text}"),
        _ => {}
    }
}
