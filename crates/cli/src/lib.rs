//! The programs `0g-compute-cli` and `0g-storage-client`: arguments, profile, tables and JSON over the SDK. There is no
//! business logic here.

mod app;
mod args;
mod commands;
mod exit_code;
mod output;
mod profile;
mod storage_client;
mod view;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::app::App;
use crate::args::Cli;
use crate::exit_code::{Failure, INTERRUPTED, Outcome};
use crate::output::Output;

/// How long unfinished work on other threads may take to clean up behind itself.
const SHUTDOWN: Duration = Duration::from_secs(2);

/// Runs `0g-compute-cli` on this process's arguments.
pub fn compute_cli() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.global.json);
    start_logging(cli.global.verbose);
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            output.failure(&Failure::new(
                exit_code::GENERAL,
                "runtime",
                format!("cannot start: {error}"),
            ));
            return ExitCode::from(exit_code::GENERAL);
        }
    };
    let outcome = runtime.block_on(run(cli, output));
    runtime.shutdown_timeout(SHUTDOWN);
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(failure.exit_code)
        }
    }
}

/// Runs `0g-storage-client` on this process's arguments: the helper program of the published SDKs, with the same
/// arguments and output.
pub fn storage_client() -> ExitCode {
    storage_client::main()
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
}

/// Runs the command until it ends or the user stops it. Stopping drops it, which removes its temporary files; parts of
/// downloads have names of their own and stay.
async fn run(cli: Cli, output: Output) -> Outcome<u8> {
    let app = App::new(cli.global, output)?;
    tokio::select! {
        // In this order signals are heard before the command has done anything.
        biased;
        () = stopped() => Err(Failure::new(
            INTERRUPTED,
            "interrupted",
            "Interrupted. Finished parts of a download are kept; the same command goes on from there. A submitted task goes on without you.",
        )),
        outcome = commands::run(&app, cli.command) => outcome,
    }
}

async fn stopped() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminated) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminated.recv() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}

fn start_logging(verbose: bool) {
    let default = if verbose {
        "info,zerog=debug,zerog_sdk=debug,zerog_chain=debug"
    } else {
        "error"
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
}
