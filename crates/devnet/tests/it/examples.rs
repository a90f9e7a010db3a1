//! The programs in `crates/sdk/examples`, run as they are against a running network.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{Network, devnet_binary};

const PARAMETERS: &str = r#"{"num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 0.002, "lora_rank": 8}"#;

/// A network, and inputs for the examples.
struct Stage {
    network: Network,
    dataset: PathBuf,
    parameters: PathBuf,
}

impl Stage {
    fn new() -> Self {
        let network = Network::start(&[]);
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let all = root.join("fixtures/datasets/lantern-house.messages.jsonl");
        let records: Vec<String> = fs::read_to_string(all)
            .unwrap()
            .lines()
            .take(32)
            .map(str::to_owned)
            .collect();
        let folder = network.folder.path();
        let (dataset, parameters) = (folder.join("data.jsonl"), folder.join("params.json"));
        fs::write(&dataset, records.join("\n") + "\n").unwrap();
        fs::write(&parameters, PARAMETERS).unwrap();
        Self {
            network,
            dataset,
            parameters,
        }
    }

    fn command(&self, example: &str, account: usize) -> Command {
        let program = devnet_binary().with_file_name("examples").join(example);
        assert!(
            program.exists(),
            "{} is missing: run `cargo build -p zerog-sdk --examples` first",
            program.display()
        );
        let mut command = Command::new(program);
        command
            .env(
                "PRIVATE_KEY",
                &self.network.info.accounts[account].private_key,
            )
            .env(
                "ZEROG_DEVNET_READY_FILE",
                self.network.folder.path().join("ready.json"),
            )
            .env_remove("NETWORK")
            .stdin(Stdio::null());
        command
    }

    fn inputs(&self) -> [&Path; 2] {
        [&self.dataset, &self.parameters]
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("the example starts");
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{command:?}\n{stdout}\n{stderr}");
    stdout
}

#[test]
fn the_whole_walk_ends_with_a_proven_answer() {
    let stage = Stage::new();
    let output = stage.network.folder.path().join("walk");
    let told = run(stage
        .command("whole_walk", 3)
        .args(stage.inputs())
        .arg(&output));
    assert!(
        told.contains("Delivered") && told.contains("signed by the enclave 0x"),
        "{told}"
    );
    assert!(output.join("adapter/adapter_model.safetensors").is_file());

    // The same network serves the shorter ones.
    let told = run(stage.command("compare_providers", 3).args(stage.inputs()));
    let provider = stage.network.info.provider_address.to_string();
    assert!(told.contains(&format!("best: {provider}")), "{told}");
    assert!(
        told.contains("0 waiting") && !told.contains("estimate"),
        "{told}"
    );

    let told = run(stage
        .command("chat_stream", 3)
        .args(["Qwen2.5-0.5B-Instruct", "Who are you?"]));
    assert!(told.contains("tokens, signed by the enclave 0x"), "{told}");
}

#[test]
fn a_killed_client_goes_on_where_it_was() {
    let stage = Stage::new();
    let output = stage.network.folder.path().join("resumed");
    let mut first = stage
        .command("resume", 4)
        .args(stage.inputs())
        .arg(&output)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the example starts");
    let lines = BufReader::new(first.stdout.take().expect("it is piped")).lines();
    let task = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("task ").map(str::to_owned))
        .expect("the task is told before it is waited for");
    first.kill().expect("the process is ours");
    first.wait().expect("the process is ours");

    let told = run(stage.command("resume", 4).args(stage.inputs()).arg(&output));
    assert!(
        told.contains("going on from") && told.contains(&format!("task {task}")),
        "{told}"
    );
    assert!(output.join("adapter.zip").is_file());
    // Started once more, nothing is left to do.
    let told = run(stage.command("resume", 4).args(stage.inputs()).arg(&output));
    assert!(told.contains(&format!("task {task}")), "{told}");
}
