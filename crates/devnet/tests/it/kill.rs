//! A provider that is killed with SIGKILL in each state goes on where it was, and the task still ends well.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use alloy_primitives::U256;
use serde_json::Value;

use crate::support::{Cli, Network, Process, binary, fixture, wait_for};

/// Long enough that every state can be caught, short enough for a test.
const PARAMS: &str = r#"{"num_train_epochs": 4, "per_device_train_batch_size": 8, "learning_rate": 0.002, "lora_dropout": 0.0, "max_seq_length": 128}"#;

struct Provider {
    config: PathBuf,
    log: PathBuf,
    process: Process,
}

impl Provider {
    fn start(network: &Network) -> Self {
        let folder = network.folder.path();
        let port = free_port();
        let info = &network.info;
        let key_file = folder.join("provider.key");
        fs::write(&key_file, &info.accounts[2].private_key).unwrap();
        let model = fixture("tiny-qwen");
        let config = folder.join("provider.toml");
        let text = format!(
            r#"data_dir = "{data}"

[chain]
network = "devnet"
rpc_url = "{rpc}"
wallet_key_file = "{key}"
storage_indexer_url = "{indexer}"
poll_interval_ms = 200

[identity]
tee = "simulated"

[server]
listen = "127.0.0.1:{port}"

[[models]]
name = "mock-model"
folder = "{model}"

[[models]]
name = "Qwen2.5-0.5B-Instruct"
folder = "{model}"
stand_in = true

[fine_tuning]

[inference]
model = "Qwen2.5-0.5B-Instruct"
"#,
            data = folder.join("provider").display(),
            rpc = info.rpc_url,
            key = key_file.display(),
            indexer = info.indexer_url,
        );
        fs::write(&config, text).unwrap();
        let log = folder.join("provider.log");
        let process = Self::spawn(&config, &log);
        let provider = Self {
            config,
            log,
            process,
        };
        provider.wait_answers(port);
        provider
    }

    fn spawn(config: &PathBuf, log: &PathBuf) -> Process {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        Process::spawn(
            Command::new(binary("ZEROG_PROVIDER_BINARY", "0g-compute-provider"))
                .args(["serve", "--config"])
                .arg(config)
                .stdout(Stdio::null())
                .stderr(log),
        )
    }

    fn wait_answers(&self, port: u16) {
        wait_for("the provider to answer", Duration::from_secs(60), || {
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()
        });
    }

    fn kill_and_restart(&mut self) {
        self.process.kill();
        self.process = Self::spawn(&self.config, &self.log);
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// The newest task, or nothing while the provider is down.
fn newest_task(cli: &Cli, provider: &str) -> Option<Value> {
    let output = cli.run(&["fine-tuning", "get-task", "--provider", provider, "--json"]);
    output
        .status
        .success()
        .then(|| serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn a_task_survives_a_kill_in_every_state() {
    let network = Network::start(&["--no-provider"]);
    let mut provider_process = Provider::start(&network);
    let provider = network.info.provider_address.to_string();
    let cli = Cli::logged_in(&network, 3);
    wait_for(
        "the services to be acknowledged",
        Duration::from_secs(60),
        || {
            let services = cli.json(&["fine-tuning", "list-providers"]);
            (!services.as_array()?.is_empty()).then_some(())
        },
    );
    cli.ok(&["deposit", "--amount", "5"]);
    cli.ok(&[
        "transfer-fund",
        "--provider",
        &provider,
        "--amount",
        "2",
        "--service",
        "fine-tuning",
    ]);
    let params = cli.write("params.json", PARAMS);
    let created = cli.json(&[
        "fine-tuning",
        "create-task",
        "--provider",
        &provider,
        "--model",
        "Qwen2.5-0.5B-Instruct",
        "--dataset-path",
        &fixture("datasets/star-island.completion.jsonl"),
        "--config-path",
        &params,
    ]);
    let task = created["id"]
        .as_str()
        .or(created["task_id"].as_str())
        .expect("a task id")
        .to_owned();

    // One kill for every state that is seen; quick ones may pass unseen, the long ones may not.
    let mut killed_in: Vec<String> = Vec::new();
    let encrypted = cli.path("adapter.encrypted");
    let mut acknowledged = false;
    wait_for("the task to finish", Duration::from_secs(240), || {
        let view = newest_task(&cli, &provider)?;
        let state = view["progress"].as_str().unwrap().to_owned();
        assert!(
            !matches!(state.as_str(), "Failed" | "Cancelled"),
            "after kills in {killed_in:?}: {view}\n{}",
            provider_process.log()
        );
        if state == "Finished" {
            return Some(());
        }
        if !killed_in.contains(&state) {
            killed_in.push(state);
            provider_process.kill_and_restart();
        } else if state == "Delivered" && !acknowledged {
            cli.ok(&[
                "fine-tuning",
                "acknowledge-model",
                "--provider",
                &provider,
                "--task-id",
                &task,
                "--data-path",
                &encrypted,
            ]);
            acknowledged = true;
        }
        None
    });
    for state in ["Training", "Delivered"] {
        assert!(
            killed_in.iter().any(|seen| seen == state),
            "never caught in {state}: {killed_in:?}"
        );
    }

    // Paid once, key on chain, adapter decrypts and answers after all that, and after one more kill.
    let zip = cli.path("adapter.zip");
    cli.ok(&[
        "fine-tuning",
        "decrypt-model",
        "--provider",
        &provider,
        "--task-id",
        &task,
        "--encrypted-model",
        &encrypted,
        "--output",
        &zip,
    ]);
    let view = newest_task(&cli, &provider).unwrap();
    let account = cli.json(&[
        "get-sub-account",
        "--provider",
        &provider,
        "--service",
        "fine-tuning",
    ]);
    let balance: U256 = account["balance"].as_str().unwrap().parse().unwrap();
    let fee: U256 = view["fee"].as_str().unwrap().parse().unwrap();
    assert!(!fee.is_zero());
    assert_eq!(
        balance + fee,
        U256::from(2_000_000_000_000_000_000u64),
        "the fee was taken exactly once"
    );

    provider_process.kill_and_restart();
    wait_for("the provider to come back", Duration::from_secs(60), || {
        newest_task(&cli, &provider)
    });
    cli.ok(&[
        "fine-tuning",
        "deploy-adapter",
        "--provider",
        &provider,
        "--model",
        "Qwen2.5-0.5B-Instruct",
        "--task-id",
        &task,
        "--wait",
    ]);
    provider_process.kill_and_restart();
    wait_for("the provider to come back", Duration::from_secs(60), || {
        newest_task(&cli, &provider)
    });
    let answer = wait_for(
        "the adapter to answer after a restart",
        Duration::from_secs(60),
        || {
            let output = cli.run(&[
                "fine-tuning",
                "chat",
                "--provider",
                &provider,
                "--model",
                "Qwen2.5-0.5B-Instruct",
                "--task-id",
                &task,
                "--message",
                "Where is Star Island?",
            ]);
            output
                .status
                .success()
                .then(|| String::from_utf8(output.stdout).unwrap())
        },
    );
    assert!(answer.contains("Assistant: "), "{answer}");
}
