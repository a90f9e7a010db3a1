//! A client that may be killed at any time: it writes down what it has, and started again goes on from there. Nothing is
//! uploaded, created or paid twice.
//!
//! `PRIVATE_KEY=0x… cargo run -p zerog-sdk --example resume -- DATASET PARAMETERS OUTPUT_FOLDER`

#![allow(clippy::print_stdout, reason = "an example talks to its user")]

mod common;

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zerog_sdk::{
    Address, Broker, CreateTask, DownloadMethod, Progress, TaskId, UploadOptions, WaitOptions,
};

const MODEL: &str = "Qwen2.5-0.5B-Instruct";

/// What must survive a crash.
#[derive(Debug, Serialize, Deserialize)]
struct Journal {
    provider: Address,
    dataset_hash: Option<String>,
    task: Option<TaskId>,
}

impl Journal {
    fn save(&self, path: &Path) -> Result<(), Box<dyn Error>> {
        let folder = path.parent().ok_or("the journal needs a folder")?;
        let file = tempfile::NamedTempFile::new_in(folder)?;
        serde_json::to_writer(&file, self)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let [dataset, parameters, output] =
        common::arguments(["DATASET", "PARAMETERS", "OUTPUT_FOLDER"])?;
    let broker = common::connect().await?;
    let folder = Path::new(&output);
    std::fs::create_dir_all(folder)?;
    let journal_path = folder.join("journal.json");
    let mut journal = match std::fs::read(&journal_path) {
        Ok(text) => {
            println!("going on from {}", journal_path.display());
            serde_json::from_slice(&text)?
        }
        Err(_) => begin(&broker).await?,
    };
    journal.save(&journal_path)?;
    let (tuning, provider) = (&broker.fine_tuning, journal.provider);

    if journal.dataset_hash.is_none() {
        let options = UploadOptions::default();
        let uploaded = tuning
            .upload_dataset_to_tee(provider, dataset.as_ref(), &options)
            .await?;
        journal.dataset_hash = Some(uploaded.dataset_hash);
        journal.save(&journal_path)?;
    }
    let dataset_hash = journal.dataset_hash.clone().unwrap_or_default();
    let task = match journal.task {
        Some(task) => task,
        None => {
            let task = create_once(&broker, provider, dataset_hash, &parameters).await?;
            journal.task = Some(task);
            journal.save(&journal_path)?;
            task
        }
    };
    println!("task {task}");

    // All of these look first and do what is left to do.
    tuning
        .wait_for_delivery(provider, task, &WaitOptions::default(), show)
        .await?;
    let (encrypted, archive) = (folder.join("adapter.enc"), folder.join("adapter.zip"));
    tuning
        .acknowledge_model(provider, task, &encrypted, DownloadMethod::Auto, |_| ())
        .await?;
    let patience = Duration::from_secs(300);
    tuning
        .decrypt_model(provider, task, &encrypted, &archive, patience, |_| ())
        .await?;
    println!("decrypted to {}", archive.display());
    Ok(())
}

/// Chooses a provider and makes sure that a task can be paid.
async fn begin(broker: &Broker) -> Result<Journal, Box<dyn Error>> {
    let services = broker.fine_tuning.list_service(false).await?;
    let provider = services.first().ok_or("no provider")?.provider;
    let one = zerog_sdk::amount::parse_0g("1")?;
    let plan = broker.plan_funds(provider, one, None).await?;
    broker.apply_funds(&plan, |_| ()).await?;
    Ok(Journal {
        provider,
        dataset_hash: None,
        task: None,
    })
}

/// A crash between the provider's answer and the journal leaves a task that nobody wrote down: it is looked for first.
async fn create_once(
    broker: &Broker,
    provider: Address,
    dataset_hash: String,
    parameters: &str,
) -> Result<TaskId, Box<dyn Error>> {
    let tasks = broker.fine_tuning.list_task(provider).await?;
    let unfinished = tasks.iter().find(|task| {
        task.dataset_hash == dataset_hash && task.state().is_some_and(|state| !state.is_terminal())
    });
    if let Some(task) = unfinished {
        return Ok(task.id.parse()?);
    }
    let task = CreateTask {
        provider,
        model: MODEL.into(),
        dataset_hash,
        training_params: std::fs::read_to_string(parameters)?,
        queue: true,
        max_fee: None,
    };
    Ok(broker.fine_tuning.create_task(&task).await?)
}

fn show(progress: Progress) {
    if let Progress::Task { state, step, .. } = progress {
        println!("{state} {}", step.unwrap_or(0));
    }
}
