//! `0g-compute-devnet`: the whole network on one machine.

#![allow(
    clippy::print_stdout,
    reason = "this is the output module of a command"
)]

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use zerog_devnet::demo::{self, Watcher};
use zerog_devnet::{Devnet, DevnetError, DevnetOptions};
use zerog_provider::StopSignals;
use zerog_sdk::Progress;

/// Exit code for a port that another program has.
const PORT_TAKEN: u8 = 13;

/// A local 0G Compute network: chain, storage node and provider in one process.
#[derive(Parser)]
#[command(name = "0g-compute-devnet", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Take a dataset through the whole network: fund, upload, train, deliver, settle, deploy, chat.
    Demo {
        /// Print one JSON object instead of the story.
        #[arg(long)]
        json: bool,
        /// Where the adapter is left; each run gets a folder of its own below it.
        #[arg(long, default_value = "zerog-demo")]
        output: PathBuf,
    },
    /// Run the network in the foreground until interrupted.
    Up(Up),
    /// Run one training job. The provider starts this itself.
    #[command(hide = true)]
    Train {
        /// The job directory.
        #[arg(long)]
        job: PathBuf,
    },
}

#[derive(clap::Args)]
struct Up {
    /// Keep everything here and go on from it next time. Without it, nothing is kept.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Port of the chain's JSON-RPC; 0 takes a free one.
    #[arg(long, default_value_t = 8545)]
    rpc_port: u16,
    /// Port of the storage node and indexer; 0 takes a free one.
    #[arg(long, default_value_t = 5678)]
    storage_port: u16,
    /// Port of the provider; 0 takes a free one.
    #[arg(long, default_value_t = 3080)]
    provider_port: u16,
    /// Write addresses and keys to this file, as JSON, when everything answers.
    #[arg(long)]
    ready_file: Option<PathBuf>,
    /// Do not run a provider; start one yourself with `0g-compute-provider serve`.
    #[arg(long)]
    no_provider: bool,
    /// Folder of another base model, in Hugging Face form.
    #[arg(long)]
    model_folder: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // The trainer logs and exits by its own contract.
    if let Command::Train { job } = &arguments.command {
        return zerog_provider::train_child(job);
    }
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::anyhow!(error).context("cannot start the runtime")),
    };
    let result = match arguments.command {
        Command::Demo { json, output } => runtime.block_on(run_demo(json, &output)),
        Command::Up(up) => runtime.block_on(run_up(up)),
        Command::Train { .. } => Ok(()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    match error.downcast_ref::<DevnetError>() {
        Some(DevnetError::PortTaken { .. }) => ExitCode::from(PORT_TAKEN),
        _ => ExitCode::FAILURE,
    }
}

async fn run_up(up: Up) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut stop = StopSignals::listen()?;
    let start = Devnet::start(DevnetOptions {
        data_dir: up.data_dir,
        rpc_port: up.rpc_port,
        storage_port: up.storage_port,
        provider_port: up.provider_port,
        provider: !up.no_provider,
        trainer_command: None,
        model_folder: up.model_folder,
    });
    let devnet = tokio::select! {
        devnet = start => devnet?,
        () = stop.received() => return Ok(()),
    };
    let ready = serde_json::to_string_pretty(&devnet.info)?;
    println!("{ready}");
    eprintln!(
        "ready in {} ms; press Ctrl-C to stop",
        started.elapsed().as_millis()
    );
    if let Some(path) = &up.ready_file {
        write_ready_file(path, &ready)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    stop.received().await;
    eprintln!("stopping");
    devnet.shutdown().await;
    if let Some(path) = &up.ready_file {
        // A stale ready file would send others to a network that is gone.
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

/// Readers see the whole file or none.
fn write_ready_file(path: &Path, text: &str) -> std::io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

async fn run_demo(json: bool, output: &Path) -> anyhow::Result<()> {
    let mut stop = StopSignals::listen()?;
    let mut story = Story::new(!json);
    let devnet = Devnet::start(DevnetOptions::default()).await?;
    story.step(
        "network",
        &format!(
            "chain, storage node and provider {} are up",
            devnet.info.provider_address
        ),
    );
    std::fs::create_dir_all(output)
        .with_context(|| format!("cannot create {}", output.display()))?;
    let folder = tempfile::Builder::new()
        .prefix("run-")
        .tempdir_in(output)?
        .keep();
    let result = tokio::select! {
        result = demo::run(&devnet, &folder, &mut story) => result,
        () = stop.received() => Err(anyhow::anyhow!("interrupted")),
    };
    story.finish();
    devnet.shutdown().await;
    let report = result?;
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    if report.stand_in {
        println!(
            "\nThe small model of this repository stood in for {}.",
            demo::MODEL
        );
    }
    for answer in &report.answers {
        println!("\n  question  {}", answer.question);
        println!("  base      {}", answer.base);
        println!("  tuned     {}", answer.tuned);
    }
    println!("\nadapter files: {}", report.adapter_dir.display());
    println!("The whole walk took {:.1} s.", report.seconds);
    Ok(())
}

/// Tells the walk line by line; a bar shows training on a terminal only.
struct Story {
    enabled: bool,
    started: Instant,
    bar: Option<ProgressBar>,
}

impl Story {
    fn new(enabled: bool) -> Self {
        Self {
            enabled,
            started: Instant::now(),
            bar: None,
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Watcher for Story {
    fn step(&mut self, title: &str, detail: &str) {
        self.finish();
        if self.enabled {
            println!(
                "{:>6.1} s  {title:<12} {detail}",
                self.started.elapsed().as_secs_f64()
            );
        }
    }

    fn progress(&mut self, progress: &Progress) {
        if !self.enabled || !std::io::stderr().is_terminal() {
            return;
        }
        if let Progress::Task {
            state,
            step: Some(step),
            total_steps: Some(total),
            loss,
            ..
        } = progress
        {
            let bar = self.bar.get_or_insert_with(|| {
                let style = ProgressStyle::with_template(
                    "          {msg:<30} {bar:30} {pos}/{len}, {eta} left",
                )
                .unwrap_or_else(|_| ProgressStyle::default_bar());
                ProgressBar::new(*total).with_style(style)
            });
            bar.set_position(*step);
            bar.set_message(
                loss.map_or_else(|| state.clone(), |loss| format!("{state}, loss {loss:.3}")),
            );
        }
    }
}
