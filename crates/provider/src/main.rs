//! `0g-compute-provider`: the command line of the provider daemon.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use zerog_provider::{Config, Provider};

/// Provider daemon of the 0G Compute fine-tuning network.
#[derive(Debug, Parser)]
#[command(name = "0g-compute-provider", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve requests and work on tasks until interrupted.
    Serve {
        #[command(flatten)]
        config: ConfigFile,
        /// Write log lines as JSON.
        #[arg(long, env = "ZG_LOG_JSON")]
        log_json: bool,
    },
    /// Change what is registered on chain.
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Run one training job (started by the daemon).
    #[command(hide = true)]
    Train {
        /// The job directory.
        #[arg(long)]
        job: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum ServiceCommand {
    /// Register the services, with the contract's stake.
    Register(ConfigFile),
    /// Update the services where the configuration differs from the chain.
    Update(ConfigFile),
    /// Remove the services; the stake comes back.
    Remove(ConfigFile),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check a configuration file.
    Check(ConfigFile),
}

#[derive(Debug, clap::Args)]
struct ConfigFile {
    /// The configuration file.
    #[arg(
        long,
        short,
        env = "ZG_PROVIDER_CONFIG",
        default_value = "provider.toml"
    )]
    config: PathBuf,
}

impl ConfigFile {
    fn load(&self) -> anyhow::Result<Config> {
        Ok(Config::load(&self.config)?)
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // The training process starts no runtime: it computes.
    if let Command::Train { job } = &arguments.command {
        return zerog_trainer::child_main(job);
    }
    start_logging(matches!(
        &arguments.command,
        Command::Serve { log_json: true, .. }
    ));
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the runtime did not start");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(run(arguments.command));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve { config, .. } => serve(config.load()?).await,
        Command::Service(ServiceCommand::Register(file) | ServiceCommand::Update(file)) => {
            Ok(zerog_provider::register_services(&file.load()?).await?)
        }
        Command::Service(ServiceCommand::Remove(file)) => {
            Ok(zerog_provider::remove_services(&file.load()?).await?)
        }
        Command::Config(ConfigCommand::Check(file)) => {
            let text = std::fs::read_to_string(&file.config)
                .with_context(|| format!("cannot read {}", file.config.display()))?;
            Config::check_text(&text)?;
            tracing::info!(file = %file.config.display(), "the configuration is valid");
            Ok(())
        }
        Command::Train { .. } => Ok(()),
    }
}

async fn serve(config: Config) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt()).context("signals cannot be received")?;
    let mut terminate = signal(SignalKind::terminate()).context("signals cannot be received")?;
    let provider = tokio::select! {
        provider = Provider::start(config) => provider?,
        _ = interrupt.recv() => return Ok(()),
        _ = terminate.recv() => return Ok(()),
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tracing::info!("stopping");
    provider.shutdown().await;
    Ok(())
}

fn start_logging(is_json: bool) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| {
        tracing_subscriber::EnvFilter::new("info,sqlx=warn,hyper=warn,reqwest=warn")
    });
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if is_json {
        subscriber.json().init();
    } else {
        subscriber.init();
    }
}
