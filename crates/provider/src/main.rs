//! `0g-compute-provider`: the command line of the provider daemon.

use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use zerog_provider::{Config, LocalOptions, LocalServer, Provider, StartError, StopSignals};

/// Exit code for a port that another program has.
const PORT_TAKEN: u8 = 13;

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
    /// Serve a model folder and adapter folders on this machine, without a chain: OpenAI's interface, no accounts.
    ServeLocal(ServeLocal),
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

#[derive(Debug, clap::Args)]
struct ServeLocal {
    /// Folder of the base model: config.json, weights, tokenizer.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Name of the base model in requests; the folder's name by default.
    #[arg(long)]
    name: Option<String>,
    /// An adapter folder and the name that requests ask for; may be repeated.
    #[arg(long = "adapter", value_name = "NAME=DIR", value_parser = named_folder)]
    adapters: Vec<(String, PathBuf)>,
    /// Round weights at load: int8 takes half the memory of bf16 and answers almost the same.
    #[arg(long, value_name = "int8")]
    quantize: Option<zerog_provider::config::Quantization>,
    /// Where to compute: cpu, or cuda:0 for the first NVIDIA GPU in a program built with --features cuda.
    #[arg(long, default_value = "cpu")]
    device: zerog_model::Device,
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    host: std::net::IpAddr,
    /// Port to listen on; 0 takes a free one.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Most answers that are computed together.
    #[arg(long, default_value_t = 8)]
    max_running: usize,
    /// Most requests that wait; one more is answered with 429.
    #[arg(long, default_value_t = 64)]
    max_waiting: usize,
    /// Most tokens of prompt and answer together.
    #[arg(long, default_value_t = 4096)]
    max_context: usize,
}

fn named_folder(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, folder)) if !name.is_empty() && !folder.is_empty() => {
            Ok((name.to_owned(), folder.into()))
        }
        _ => Err("write it as NAME=DIR".into()),
    }
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
            match error.downcast_ref::<StartError>() {
                Some(StartError::Listen { source, .. })
                    if source.kind() == ErrorKind::AddrInUse =>
                {
                    ExitCode::from(PORT_TAKEN)
                }
                _ => ExitCode::FAILURE,
            }
        }
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve { config, .. } => serve(config.load()?).await,
        Command::ServeLocal(options) => serve_local(options).await,
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
    let mut stop = StopSignals::listen().context("signals cannot be received")?;
    let provider = tokio::select! {
        provider = Provider::start(config) => provider?,
        () = stop.received() => return Ok(()),
    };
    stop.received().await;
    tracing::info!("stopping");
    provider.shutdown().await;
    Ok(())
}

async fn serve_local(options: ServeLocal) -> anyhow::Result<()> {
    let mut stop = StopSignals::listen().context("signals cannot be received")?;
    let server = LocalServer::start(LocalOptions {
        model: options.model,
        name: options.name,
        adapters: options.adapters,
        quantize: options.quantize,
        device: options.device,
        listen: (options.host, options.port).into(),
        max_running: options.max_running,
        max_waiting: options.max_waiting,
        max_context_tokens: options.max_context,
    })
    .await?;
    // The one line that scripts wait for.
    let mut out = std::io::stdout();
    writeln!(out, "http://{}/v1", server.address())?;
    out.flush()?;
    tracing::info!(models = ?server.names(), "ready; press Ctrl-C to stop");
    server
        .serve(async move { stop.received().await })
        .await
        .context("the server ended")
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
