//! Tasks: create, show, list, log, cancel.

use std::path::Path;

use serde_json::json;
use zerog_sdk::loss_curve::LossCurve;
use zerog_sdk::{
    Address, Broker, Progress, Task, TaskId, TaskState, U256, UploadOptions, WaitOptions,
};

use super::fine_tuning::{read_config, store, sum_0g};
use super::{dry_run, quote};
use crate::app::{App, Wallet, is_interactive};
use crate::args::{self, TaskArgs, Via};
use crate::exit_code::{Failure, Outcome, PROVIDER};
use crate::output::{Table, wrapped, write_text};
use crate::view::TaskOutput;

/// Size of a drawn chart in characters.
const CHART_WIDTH: usize = 64;
const CHART_HEIGHT: usize = 12;

pub(super) async fn create(app: &App, arguments: &args::CreateTask) -> Outcome {
    match (&arguments.dataset, &arguments.dataset_path) {
        (None, None) => {
            return Err(Failure::usage(
                "Either --dataset (hash) or --dataset-path (file path) must be provided",
            ));
        }
        (Some(_), Some(_)) => {
            return Err(Failure::usage(
                "--dataset and --dataset-path are mutually exclusive. Please provide only one.",
            ));
        }
        _ => {}
    }
    let params = read_config(&arguments.config_path)?;
    let broker = app.broker(Wallet::Needed).await?;
    let provider = arguments.provider;
    // What can be refused without sending anything is refused before the upload.
    let queue = decide_queue(app, &broker, provider, arguments.queue, arguments.no_queue).await?;
    let max_fee = quote::most(&broker, arguments, &params).await?;
    let counted = match &arguments.dataset_path {
        Some(path) => check_size(app, &broker, arguments, path, &params).await?,
        None => None,
    };
    dry_run::announce_task(app, &broker, arguments).await;
    let dataset_hash = match (&arguments.dataset, &arguments.dataset_path) {
        (Some(hash), _) => hash.clone(),
        (None, Some(path)) => {
            hand_over(app, &broker, provider, path, arguments.via, arguments.plain).await?
        }
        (None, None) => return Err(Failure::usage("no dataset was named")),
    };
    app.output.line("Verify provider...");
    verify(app, &broker, provider).await?;
    app.output.line("Provider verified");
    warn_about_balance(app, &broker, provider).await?;
    app.output
        .line("Creating task (fee will be calculated automatically)...");
    app.output
        .line("Fee will be automatically calculated by the broker based on actual token count");
    let task = broker
        .fine_tuning
        .create_task(&quote::task_of(
            arguments,
            dataset_hash,
            params,
            queue,
            max_fee,
        ))
        .await?;
    app.output.line(format!("Created Task ID: {task}"));
    if !arguments.wait {
        app.output.json(&json!({ "task_id": task }));
        return Ok(());
    }
    let view = wait(app, &broker, provider, task).await?;
    if let (Some(said), None, Some(tokens)) = (arguments.data_size, counted, view.tokens)
        && said != tokens
    {
        app.output.warn(format!(
            "--data-size {said} is not the dataset's size: it has {tokens} tokens"
        ));
    }
    app.output.line(format!("Task {task} is {}", view.progress));
    app.output.note(next_step(provider, task));
    app.output.json(&TaskOutput::from(&view));
    Ok(())
}

/// Counts the dataset and compares with `--data-size`; returns the true number. A dataset of which nothing would be
/// learned is refused here, before it is sent; one that cannot be counted here is left to the provider.
async fn check_size(
    app: &App,
    broker: &Broker,
    arguments: &args::CreateTask,
    path: &Path,
    params: &str,
) -> Outcome<Option<u64>> {
    let fine_tuning = &broker.fine_tuning;
    let calculation = match fine_tuning
        .calculate_token(
            path,
            &arguments.model,
            Some(arguments.provider),
            Some(params),
        )
        .await
    {
        Err(zerog_sdk::Error::Tokenizer { .. }) => return Ok(None),
        other => other?,
    };
    if let Some(said) = arguments
        .data_size
        .filter(|said| *said != calculation.tokens)
    {
        app.output.warn(format!(
            "--data-size {said} is not the dataset's size: it has {} tokens",
            calculation.tokens
        ));
    }
    Ok(Some(calculation.tokens))
}

/// Brings a dataset file to where the task finds it, and returns its hash.
pub(super) async fn hand_over(
    app: &App,
    broker: &Broker,
    provider: Address,
    path: &Path,
    via: Via,
    plain: bool,
) -> Outcome<String> {
    match via {
        Via::Storage => {
            app.output.warn("The dataset is stored IN CLEAR on public storage: anyone with its root hash can read it.");
            if !app.confirm("Store it in clear?").await? {
                return Err(Failure::usage(
                    "nothing was stored; leave --via storage out to seal the dataset to the enclave",
                ));
            }
            app.output.line("Uploading dataset to 0G Storage...");
            let root = store(app, broker, path).await?;
            app.output
                .line(format!("Dataset uploaded to 0G Storage, root hash: {root}"));
            Ok(root.to_string())
        }
        Via::Tee => {
            app.output.line("Uploading dataset to TEE...");
            let mut progress = app.output.progress();
            let show = |news: Progress| progress.show(&news);
            let options = UploadOptions { plain };
            let uploaded = broker
                .fine_tuning
                .upload_dataset_to_tee_with(provider, path, &options, show)
                .await?;
            drop(progress);
            app.output.line(format!(
                "Dataset uploaded to TEE, hash: {}",
                uploaded.dataset_hash
            ));
            Ok(uploaded.dataset_hash)
        }
    }
}

/// Whether to wait in line: flags, else a question on a terminal, else no.
pub(super) async fn decide_queue(
    app: &App,
    broker: &Broker,
    provider: Address,
    queue: bool,
    no_queue: bool,
) -> Outcome<bool> {
    if queue {
        return Ok(true);
    }
    let pending = broker
        .fine_tuning
        .get_pending_task_counter(provider)
        .await?;
    if pending == 0 {
        return Ok(false);
    }
    if no_queue || (!is_interactive() && !app.global.yes) {
        return Err(zerog_sdk::Error::QueueNotEmpty { pending }.into());
    }
    if app
        .confirm(&format!(
            "There are {pending} tasks in the queue. Do you want to continue?"
        ))
        .await?
    {
        return Ok(true);
    }
    Err(Failure::new(
        PROVIDER,
        "queue_not_empty",
        "User opted not to continue due to pending tasks in the queue.",
    ))
}

/// Refuses a provider whose enclave is not good enough.
pub(super) async fn verify(app: &App, broker: &Broker, provider: Address) -> Outcome {
    let mut progress = app.output.progress();
    let show = |news: Progress| progress.show(&news);
    Ok(broker.fine_tuning.require_verified(provider, show).await?)
}

async fn warn_about_balance(app: &App, broker: &Broker, provider: Address) -> Outcome {
    let account = broker.fine_tuning.get_account(provider).await?;
    if account.free_balance().is_zero() {
        app.output.warn(format!(
            "The fine-tuning sub-account holds {} available. Add funds: 0g-compute-cli transfer-fund --provider {provider} --service fine-tuning --amount 1",
            sum_0g(account.free_balance())
        ));
    }
    Ok(())
}

/// Waits for delivery with a progress bar.
pub(super) async fn wait(
    app: &App,
    broker: &Broker,
    provider: Address,
    task: TaskId,
) -> Outcome<Task> {
    let mut progress = app.output.progress();
    let show = |news: Progress| progress.show(&news);
    Ok(broker
        .fine_tuning
        .wait_for_delivery(provider, task, &WaitOptions::default(), show)
        .await?)
}

fn next_step(provider: Address, task: TaskId) -> String {
    format!(
        "Next: 0g-compute-cli fine-tuning acknowledge-model --provider {provider} --task-id {task} --data-path ./adapter.enc"
    )
}

pub(super) async fn get(app: &App, arguments: &TaskArgs) -> Outcome {
    let broker = app.broker(Wallet::Needed).await?;
    let task = broker
        .fine_tuning
        .get_task(arguments.provider, arguments.task)
        .await?;
    app.output.table(&task_table(&task));
    if let Some(reason) = &task.failure_reason {
        app.output.note(format!("Reason: {reason}"));
    }
    if let Some(training) = task
        .training
        .as_ref()
        .filter(|_| task.state() == Some(TaskState::Training))
    {
        app.output.note(format!(
            "Step {} of {}",
            training.step, training.total_steps
        ));
    }
    if task.state() == Some(TaskState::Delivered)
        && let Some(deadline) = task.ack_deadline
    {
        app.output.note(format!(
            "Acknowledge by Unix time {deadline}. {}",
            task_hint(arguments.provider, &task)
        ));
    }
    app.output.json(&TaskOutput::from(&task));
    Ok(())
}

fn task_hint(provider: Address, task: &Task) -> String {
    task.id
        .parse()
        .map_or_else(|_| String::new(), |id| next_step(provider, id))
}

fn task_table(task: &Task) -> Table {
    let mut table = Table::with_head(&[("Field", 35), ("Value", 85)]);
    table.row(["ID".into(), task.id.clone()]);
    table.row([
        "Created At".into(),
        task.created_at.clone().unwrap_or_default(),
    ]);
    table.row([
        "Pre-trained Model Hash".into(),
        task.pre_trained_model_hash.clone(),
    ]);
    table.row(["Dataset Hash".into(), task.dataset_hash.clone()]);
    table.row([
        "Training Params".into(),
        wrapped(&one_line(&task.training_params), 80),
    ]);
    table.row(["Fee (neuron)".into(), task.fee.clone()]);
    table.row(["Progress".into(), task.progress.clone()]);
    table
}

/// A parameter file without its line ends, which would break the table.
fn one_line(text: &str) -> String {
    text.lines()
        .map(str::trim)
        .collect::<Vec<_>>()
        .join(" ")
        .trim()
        .to_owned()
}

pub(super) async fn list(app: &App, provider: Address) -> Outcome {
    let broker = app.broker(Wallet::Needed).await?;
    let tasks = broker.fine_tuning.list_task(provider).await?;
    let mut table = Table::with_head(&[("ID", 50), ("Created At", 30), ("Status", 30)]);
    for task in &tasks {
        table.row([
            task.id.clone(),
            task.created_at.clone().unwrap_or_default(),
            task.progress.clone(),
        ]);
    }
    app.output.table(&table);
    let tasks: Vec<_> = tasks.iter().map(TaskOutput::from).collect();
    app.output.json(&tasks);
    Ok(())
}

pub(super) async fn log(
    app: &App,
    arguments: &TaskArgs,
    follow: bool,
    curve: &args::Curve,
) -> Outcome {
    let broker = app.broker(Wallet::Needed).await?;
    let (provider, fine_tuning) = (arguments.provider, &broker.fine_tuning);
    if !follow {
        let log = fine_tuning.get_log(provider, arguments.task).await?;
        return show_log(app, &log, curve);
    }
    let task = match arguments.task {
        Some(task) => task,
        None => parse_id(&fine_tuning.get_task(provider, None).await?)?,
    };
    let is_json = app.output.is_json();
    let view = fine_tuning
        .follow_log(provider, task, |text| {
            if is_json {
                text.lines()
                    .for_each(|line| write_text(&format!("{}\n", json!({ "log": line }))));
            } else {
                write_text(text);
            }
        })
        .await?;
    app.output.note(format!("Task {task} is {}", view.progress));
    Ok(())
}

/// Prints a log, or the losses in it, and writes the files that were asked for.
fn show_log(app: &App, log: &str, arguments: &args::Curve) -> Outcome {
    let curve = LossCurve::from_log(log);
    if arguments.chart {
        app.output
            .line(curve.to_text(CHART_WIDTH, CHART_HEIGHT).trim_end());
    } else {
        app.output.line(log.trim_end());
    }
    let mut files = Vec::new();
    let mut keep = |path: std::path::PathBuf, content: &[u8]| -> Outcome {
        zerog_sdk::write_file(&path, content)?;
        app.output.note(format!(
            "Wrote {} losses to {}",
            curve.points.len(),
            path.display()
        ));
        files.push(path);
        Ok(())
    };
    if let Some(path) = &arguments.csv {
        keep(path.clone(), curve.to_csv().as_bytes())?;
    }
    if let Some(path) = &arguments.svg {
        keep(path.clone(), curve.to_svg().as_bytes())?;
    }
    if let Some(folder) = &arguments.tensorboard {
        let path = folder.join(curve.tensorboard_file_name());
        keep(path, &curve.to_tensorboard())?;
    }
    app.output.json(&json!({
        "log": log,
        "losses": curve.points,
        "evaluations": curve.evaluations,
        "files": files,
    }));
    Ok(())
}

fn parse_id(task: &Task) -> Outcome<TaskId> {
    task.id.parse().map_err(|_| {
        Failure::new(
            PROVIDER,
            "provider_answer_malformed",
            format!("`{}` is no task id", task.id),
        )
    })
}

pub(super) async fn cancel(app: &App, provider: Address, task: TaskId) -> Outcome {
    let broker = app.broker(Wallet::Needed).await?;
    let text = broker.fine_tuning.cancel_task(provider, task).await?;
    app.output.line(&text);
    app.output
        .json(&json!({ "task_id": task, "message": text }));
    Ok(())
}

/// Fee of a finished task as a sum.
pub(super) fn fee(task: &Task) -> Option<U256> {
    task.fee.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_parameters_are_cut_every_80_characters() {
        let task: Task = serde_json::from_value(json!({
            "id": "beb6f0d8-4660-4c62-988d-00246ce913d2", "createdAt": "2025-03-11T01:20:07.644Z", "updatedAt": null,
            "userAddress": "0x", "preTrainedModelHash": "0xcb42", "datasetHash": "0xaae9",
            "trainingParams": format!("{{\n  \"a\": \"{}\"\n}}\n", "x".repeat(90)), "fee": "179668154", "nonce": "1",
            "signature": "0x", "progress": "Delivered",
        }))
        .unwrap();
        let text = task_table(&task).render(false);
        let rows: Vec<&str> = text.lines().collect();
        assert_eq!(rows[1], format!("│ {:<33} │ {:<83} │", "Field", "Value"));
        let first = rows
            .iter()
            .position(|row| row.contains("Training Params"))
            .unwrap();
        assert!(rows[first].contains("│ { \"a\": \"xxx"));
        assert!(rows[first + 1].starts_with(&format!("│ {:<33} │ xxx", "")));
        assert!(
            rows.iter()
                .any(|row| row.contains("│ Fee (neuron)") && row.contains("179668154"))
        );
        assert!(rows.iter().all(|row| row.chars().count() == 123));
    }
}
