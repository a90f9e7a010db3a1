//! A provider that is killed with SIGKILL in each state goes on where it was, and the task still ends well.

use std::time::Duration;

use alloy_primitives::U256;
use serde_json::Value;

use crate::provider_process::{BOTH_ROLES, ProviderProcess};
use crate::support::{Cli, Network, fixture, wait_for};

/// Long enough that every state can be caught, short enough for a test.
const PARAMS: &str = r#"{"num_train_epochs": 4, "per_device_train_batch_size": 8, "learning_rate": 0.002, "lora_dropout": 0.0, "max_seq_length": 128}"#;

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
    let mut provider_process = ProviderProcess::start(&network, "provider", 2, BOTH_ROLES);
    let provider = network.info.provider_address.to_string();
    let cli = Cli::logged_in(&network, 3);
    provider_process.wait_acknowledged(&cli, &["fine-tuning", "inference"]);
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
    let task = created["task_id"].as_str().expect("a task id").to_owned();

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
    let balance: U256 = account["balance_neuron"].as_str().unwrap().parse().unwrap();
    let fee: U256 = view["fee_neuron"].as_str().unwrap().parse().unwrap();
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
