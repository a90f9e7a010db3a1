//! `fine-tuning quote`: what a task would cost, before anything is paid.

use std::path::Path;

use serde_json::json;
use zerog_sdk::fine_tuning::offer::dataset_hash;
use zerog_sdk::{Broker, CreateTask, Quote, SignedQuote, U256};

use super::fine_tuning::read_config;
use super::{task, walk};
use crate::app::{App, Wallet};
use crate::args::{self, Via};
use crate::exit_code::{Failure, OK, Outcome, VALIDATION};

/// Longest quote file in bytes; findings are limited, so quotes are short.
const MAX_QUOTE_BYTES: u64 = 4 * 1024 * 1024;

pub(super) async fn run(app: &App, arguments: &args::Quote) -> Outcome<u8> {
    let params = match &arguments.config_path {
        Some(path) => read_config(path)?,
        None => "{}".to_owned(),
    };
    if arguments.output.is_some() && arguments.dataset.is_none() && !arguments.upload {
        return Err(Failure::usage(
            "--output keeps a quote that the enclave signed; add --upload, or name an uploaded dataset with --dataset",
        ));
    }
    let (provider, model) = (arguments.provider, arguments.model.as_str());
    let quote = match (&arguments.dataset, &arguments.dataset_path) {
        (None, Some(path)) if !arguments.upload => {
            let broker = app.broker(Wallet::NotNeeded).await?;
            broker
                .fine_tuning
                .quote(provider, model, path, &params)
                .await?
        }
        (dataset, path) => {
            let broker = app.broker(Wallet::Needed).await?;
            let hash = match (dataset, path) {
                (Some(hash), _) => hash.to_string(),
                (None, Some(path)) => {
                    task::hand_over(app, &broker, provider, path, Via::Tee, false).await?
                }
                (None, None) => return Err(Failure::usage("no dataset was named")),
            };
            broker
                .fine_tuning
                .quote_uploaded(provider, model, &hash, &params)
                .await?
        }
    };
    show(app, &quote);
    if let (Some(path), Some(signed)) = (&arguments.output, &quote.signed) {
        let text = serde_json::to_vec_pretty(signed).expect("a quote is plain data");
        zerog_sdk::write_file(path, &text)?;
        app.output.line(format!(
            "Signed quote kept in {}; create-task --quote holds the provider to it",
            path.display()
        ));
    }
    app.output.json(&output(&quote));
    Ok(if quote.is_trainable() { OK } else { VALIDATION })
}

fn show(app: &App, quote: &Quote) {
    for finding in &quote.findings {
        app.output
            .line(format!("{}: {}", finding.severity, finding.message));
    }
    if quote.more_findings > 0 {
        app.output
            .line(format!("and {} more findings", quote.more_findings));
    }
    match &quote.fee {
        Some(fee) => app.output.line(walk::quote_text(fee)),
        None => app
            .output
            .line("No fee: the dataset has mistakes and would be refused"),
    }
    let start = match (quote.queue_position, quote.estimated_start_s) {
        (0, _) => "no task is ahead".to_owned(),
        (ahead, Some(seconds)) => format!("{ahead} tasks are ahead, start in about {seconds} s"),
        (ahead, None) => format!("{ahead} tasks are ahead, start unknown"),
    };
    let duration = quote.estimated_duration_s.map_or_else(
        || "duration unknown".to_owned(),
        |seconds| format!("about {seconds} s of training"),
    );
    app.output.line(format!("Queue: {start}; {duration}"));
    match quote.signer {
        Some(signer) => app.output.line(format!("Signed by the enclave {signer}")),
        None => app.output.line(
            "Counted on this machine; nothing was sent (--upload asks the enclave to sign it)",
        ),
    }
}

/// The quote as JSON; the signed text stays whole, so that it can be checked again.
fn output(quote: &Quote) -> serde_json::Value {
    json!({
        "provider": quote.provider,
        "model": quote.model,
        "dataset_hash": quote.dataset_hash,
        "fee": quote.fee,
        "queue_position": quote.queue_position,
        "estimated_start_s": quote.estimated_start_s,
        "estimated_duration_s": quote.estimated_duration_s,
        "findings": quote.findings,
        "more_findings": quote.more_findings,
        "signed": quote.signed.as_ref().map(|signed| json!({
            "text": signed.quote,
            "signature": signed.signature,
        })),
        "signer": quote.signer,
    })
}

/// The most that a task may cost by a kept quote, after checking that it is for this very task. `dataset` is the hash of
/// an uploaded dataset; otherwise the file is hashed.
pub(super) async fn limit(
    broker: &Broker,
    arguments: &args::CreateTask,
    params: &str,
    file: &Path,
) -> Outcome<U256> {
    let signed = read(file)?;
    let hash = match (&arguments.dataset, &arguments.dataset_path) {
        (Some(hash), _) => hash.clone(),
        (None, Some(path)) => dataset_hash(path)?.to_string(),
        (None, None) => return Err(Failure::usage("no dataset was named")),
    };
    let (provider, model) = (arguments.provider, &arguments.model);
    let quote = broker
        .fine_tuning
        .open_quote(provider, model, &hash, params, &signed)
        .await?;
    match &quote.fee {
        Some(fee) => Ok(fee.total),
        None => Err(Failure::new(
            VALIDATION,
            "invalid_dataset",
            "the quote has no fee, because the dataset has mistakes; mend it and ask again",
        )),
    }
}

fn read(path: &Path) -> Outcome<SignedQuote> {
    let failed = |error| Failure::file("read", path, error);
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    std::io::Read::read_to_string(&mut std::io::Read::take(file, MAX_QUOTE_BYTES), &mut text)
        .map_err(failed)?;
    serde_json::from_str(&text).map_err(|error| {
        Failure::usage(format!(
            "{} is no quote that `fine-tuning quote --output` wrote: {error}",
            path.display()
        ))
    })
}

/// The most that a task may cost: by flag, else by a kept quote, else no bound.
pub(super) async fn most(
    broker: &Broker,
    arguments: &args::CreateTask,
    params: &str,
) -> Outcome<Option<U256>> {
    match &arguments.quote {
        Some(file) => Ok(Some(limit(broker, arguments, params, file).await?)),
        None => Ok(arguments.max_fee),
    }
}

/// A task as it is created by flags.
pub(super) fn task_of(
    arguments: &args::CreateTask,
    dataset_hash: String,
    training_params: String,
    queue: bool,
    max_fee: Option<U256>,
) -> CreateTask {
    CreateTask {
        provider: arguments.provider,
        model: arguments.model.clone(),
        dataset_hash,
        training_params,
        queue,
        max_fee,
    }
}
