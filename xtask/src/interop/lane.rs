//! One lane: a network, the clients that use it, and the end of both.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::LaneFolder;
use super::install::Clients;

/// Seconds that a network may take until it answers.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest time that one client's phase may take.
const PHASE_TIMEOUT: Duration = Duration::from_secs(900);
/// Refunds may be taken after this; a little more than the contracts' lock time of one day.
const AFTER_LOCK_TIME_S: u64 = 86_400 + 60;
/// A run that takes seconds. The keys are the five that every published client and provider knows.
const TRAINING: &str = r#"{"neftune_noise_alpha": 0, "num_train_epochs": 1, "per_device_train_batch_size": 2, "learning_rate": 0.0002, "max_steps": 3}"#;

/// Runs the named lane to its end.
pub(super) fn run(
    root: &Path,
    name: &str,
    clients: &Clients,
    folder: &LaneFolder,
) -> anyhow::Result<()> {
    let node = |script: &str, phase: &str| program("node", &clients.node(), script, &[phase]);
    let python = |package: &str, script: &str, arguments: &[&str]| {
        program(
            &clients.python(package).to_string_lossy(),
            &clients.node(),
            script,
            arguments,
        )
    };
    let helper = |path: PathBuf, column: &str, phase: &str| {
        let path = path.to_string_lossy().into_owned();
        program(
            "python3",
            &clients.node(),
            "storage_helper.py",
            &[phase, column, &path],
        )
    };
    let compute: Option<&dyn Fn(&str) -> Command> = match name {
        "python" => Some(&|phase| python("0g-inference-sdk", "inference_sdk.py", &[phase])),
        "cli" => Some(&|phase| program("python3", &clients.node(), "compute_cli.py", &[phase])),
        "cjs" => Some(&|phase| node("compute_sdk.cjs", phase)),
        "esm" => Some(&|phase| node("compute_sdk.mjs", phase)),
        _ => None,
    };
    if let Some(client) = compute {
        let network = Network::start(root, folder, &[])?;
        network.run(root, clients, folder, client("walk"))?;
        network.pass_time(AFTER_LOCK_TIME_S)?;
        return network.run(root, clients, folder, client("refunds"));
    }
    let storage = |column: &str, phase: &str| match column {
        "storage-ts" => node("storage_sdk.mjs", phase),
        "storage-python" => python("0g-storage-sdk", "storage_sdk.py", &[phase]),
        "storage-go" => helper(clients.go_helper(), column, phase),
        _ => helper(clients.our_helper(), column, phase),
    };
    let network = Network::start(root, folder, &["--no-provider"])?;
    if name != "storage-shared" {
        return network.run(root, clients, folder, storage(name, "walk"));
    }
    fs::create_dir_all(folder.folder.join("shared"))?;
    for phase in ["give", "take"] {
        for column in ["storage-ts", "storage-python", "storage-go", "storage-ours"] {
            network.run(root, clients, folder, storage(column, phase))?;
        }
    }
    Ok(())
}

fn program(interpreter: &str, scripts: &Path, script: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(interpreter);
    command.arg(scripts.join(script)).args(arguments);
    command
}

/// A running `0g-compute-devnet up`, ended when this goes out of scope.
struct Network {
    process: Child,
    ready_file: PathBuf,
    rpc_url: String,
    indexer_url: String,
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Network {
    fn start(root: &Path, folder: &LaneFolder, arguments: &[&str]) -> anyhow::Result<Self> {
        let ready_file = folder.folder.join("network.json");
        let log = fs::File::create(folder.folder.join("network.log"))?;
        let mut process = Command::new(root.join("target/debug/0g-compute-devnet"))
            .args([
                "up",
                "--rpc-port",
                "0",
                "--storage-port",
                "0",
                "--provider-port",
                "0",
            ])
            .arg("--data-dir")
            .arg(folder.folder.join("network"))
            .arg("--ready-file")
            .arg(&ready_file)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot start 0g-compute-devnet")?;
        let started = Instant::now();
        while !ready_file.exists() {
            let ended = process.try_wait()?;
            if ended.is_some() || started.elapsed() > START_TIMEOUT {
                let _ = process.kill();
                let _ = process.wait();
                bail!(
                    "the network did not start; see {}",
                    folder.folder.join("network.log").display()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let info: serde_json::Value = serde_json::from_slice(&fs::read(&ready_file)?)?;
        let url = |key: &str| info[key].as_str().unwrap_or_default().to_owned();
        Ok(Self {
            process,
            rpc_url: url("rpc_url"),
            indexer_url: url("indexer_url"),
            ready_file,
        })
    }

    /// Runs one phase of a client in the lane's `files` folder.
    fn run(
        &self,
        root: &Path,
        clients: &Clients,
        folder: &LaneFolder,
        mut client: Command,
    ) -> anyhow::Result<()> {
        let files = folder.folder.join("files");
        fs::create_dir_all(&files)?;
        let mut process = client
            .current_dir(&files)
            .env("INTEROP_NETWORK", &self.ready_file)
            .env("INTEROP_RESULTS", folder.results())
            .env("INTEROP_FIXTURES", root.join("fixtures"))
            .env("INTEROP_TRAINING", TRAINING)
            .env("INTEROP_VECTORS", root.join("interop/storage_vectors.json"))
            .env("INTEROP_SHARED", folder.folder.join("shared"))
            .env("INTEROP_COMPUTE_CLI", clients.compute_cli())
            // The clients hand the public testnet's addresses to the helper; this is how it is told otherwise.
            .env("ZG_STORAGE_CLIENT_PATH", clients.our_helper())
            .env("ZG_STORAGE_RPC_OVERRIDE", &self.rpc_url)
            .env("ZG_STORAGE_INDEXER_OVERRIDE", &self.indexer_url)
            .env("HOME", &files)
            // Not the clients' own questions to the world.
            .env("HF_HUB_OFFLINE", "1")
            .env("PIP_NO_INDEX", "1")
            .stdin(Stdio::null())
            .spawn()
            .context("cannot start the client")?;
        let started = Instant::now();
        let status = loop {
            if let Some(status) = process.try_wait()? {
                break status;
            }
            if started.elapsed() > PHASE_TIMEOUT {
                process.kill()?;
                process.wait()?;
                bail!("the client was stopped after {} s", PHASE_TIMEOUT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        if !status.success() {
            bail!("the client ended with {status}");
        }
        Ok(())
    }

    /// Moves the chain's clock, as a day would.
    fn pass_time(&self, seconds: u64) -> anyhow::Result<()> {
        for body in [
            serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": "evm_increaseTime", "params": [seconds]}),
            serde_json::json!({"jsonrpc": "2.0", "id": 2, "method": "evm_mine", "params": []}),
        ] {
            let answer = post(&self.rpc_url, &body.to_string())?;
            if !answer.contains("\"result\"") {
                bail!("the chain's clock was not moved: {answer}");
            }
        }
        Ok(())
    }
}

/// One HTTP request to loopback, answered in full.
fn post(url: &str, body: &str) -> anyhow::Result<String> {
    use std::io::{Read, Write};
    let authority = url
        .strip_prefix("http://")
        .and_then(|rest| rest.split('/').next())
        .context("the chain's URL is not http")?;
    let mut stream = std::net::TcpStream::connect(authority)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "POST / HTTP/1.1\r\nHost: {authority}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
