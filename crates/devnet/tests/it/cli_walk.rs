//! The documented walk of the command line, command by command, against a running network; and its refusals.

use std::fs;
use std::time::Duration;

use crate::provider_process::{BOTH_ROLES, ProviderProcess};
use crate::support::{Cli, Network, fixture, wait_for};

const MODEL: &str = "Qwen2.5-0.5B-Instruct";
const PARAMS: &str = r#"{"neftune_noise_alpha":5,"num_train_epochs":2,"per_device_train_batch_size":4,"learning_rate":0.002,"max_steps":12}"#;

fn progress(cli: &Cli, provider: &str, task: &str) -> String {
    let view = cli.json(&[
        "fine-tuning",
        "get-task",
        "--provider",
        provider,
        "--task",
        task,
    ]);
    view["progress"].as_str().unwrap().to_owned()
}

fn wait_progress(cli: &Cli, provider: &str, task: &str, wanted: &str) {
    wait_for(
        &format!("the task to be {wanted}"),
        Duration::from_secs(180),
        || {
            let state = progress(cli, provider, task);
            assert!(
                !matches!(state.as_str(), "Failed" | "Cancelled"),
                "{}",
                cli.ok(&[
                    "fine-tuning",
                    "get-log",
                    "--provider",
                    provider,
                    "--task",
                    task
                ])
            );
            (state == wanted).then_some(())
        },
    );
}

/// Runs a command and checks that it says, before it is done, what it is about to send.
fn announces(cli: &Cli, arguments: &[&str], sentences: &[&str]) -> String {
    let (stdout, stderr) = cli.told(arguments);
    let mut rest = stderr.as_str();
    for sentence in sentences {
        let at = rest
            .find(sentence)
            .unwrap_or_else(|| panic!("{arguments:?} does not say `{sentence}` there: {stderr}"));
        rest = &rest[at + sentence.len()..];
    }
    stdout
}

#[test]
fn the_documented_commands_take_a_dataset_from_storage_to_a_chat() {
    let network = Network::start(&[]);
    let provider = network.info.provider_address.to_string();
    let p = provider.as_str();
    let cli = Cli::logged_in(&network, 0);

    announces(
        &cli,
        &["deposit", "--amount", "3"],
        &["This will deposit 3 0G from the wallet into the ledger, plus gas"],
    );
    let sentence = format!(
        "This will move 1 0G from the ledger to the fine-tuning sub-account with {p}, plus gas"
    );
    let transfer = ["transfer-fund", "--provider", p, "--amount", "1"];
    announces(
        &cli,
        &[&transfer[..], &["--service", "fine-tuning"]].concat(),
        &[&sentence],
    );
    // Programs that read JSON are told by --dry-run.
    let amounts = ["--amount", "2.5", "--json"];
    let (_, said) = cli.told(&[&["deposit"][..], &amounts].concat());
    assert_eq!(said, "");
    announces(
        &cli,
        &["refund", "--amount", "0.5"],
        &["This will pay 0.5 0G of the ledger out to the wallet, plus gas"],
    );
    assert!(cli.ok(&["get-account"]).contains("│ 5 "));
    let services = cli.ok(&["fine-tuning", "list-providers"]);
    assert!(
        services.contains("Provider 1") && services.contains(p) && services.contains('✓'),
        "{services}"
    );
    assert!(
        cli.ok(&["fine-tuning", "list-models"])
            .contains("mock-model")
    );

    // The data path of the documentation: storage first, the root in the task.
    let dataset = fixture("datasets/willow-farm.instruction.jsonl");
    let uploaded = announces(
        &cli,
        &["fine-tuning", "upload", "--data-path", &dataset, "--yes"],
        &[
            "This will store ",
            " 0G (nothing if the network has it already), plus gas",
        ],
    );
    let root = uploaded
        .lines()
        .rev()
        .find_map(|line| line.split("Root hash: ").nth(1))
        .expect("a root hash")
        .trim()
        .to_owned();
    let copy = cli.path("copy.jsonl");
    cli.ok(&[
        "fine-tuning",
        "download",
        "--data-path",
        &copy,
        "--data-root",
        &root,
    ]);
    assert_eq!(fs::read(&copy).unwrap(), fs::read(&dataset).unwrap());

    let params = cli.write("params.json", PARAMS);
    let counted = cli.ok(&[
        "fine-tuning",
        "calculate-token",
        "--model",
        MODEL,
        "--dataset-path",
        &dataset,
        "--provider",
        p,
    ]);
    let tokens = counted
        .lines()
        .find_map(|line| line.split(": ").nth(1))
        .unwrap()
        .trim()
        .to_owned();
    assert!(tokens.parse::<u64>().unwrap() > 500, "{counted}");

    let create = [
        "fine-tuning",
        "create-task",
        "--provider",
        p,
        "--model",
        MODEL,
        "--dataset",
        &root,
        "--config-path",
        &params,
        "--data-size",
        &tokens,
    ];
    // A dataset on public storage is counted by the provider only.
    let created = announces(
        &cli,
        &create,
        &[
            "This will create a task with ",
            "charges its fee from the fine-tuning sub-account once the result is acknowledged",
            "--max-fee",
        ],
    );
    for line in [
        "Verify provider...",
        "Provider verified",
        "Created Task ID: ",
    ] {
        assert!(created.contains(line), "{created}");
    }
    let task = created
        .split("Created Task ID: ")
        .nth(1)
        .unwrap()
        .lines()
        .next()
        .unwrap()
        .trim()
        .to_owned();

    wait_progress(&cli, p, &task, "Delivered");
    let table = cli.ok(&["fine-tuning", "get-task", "--provider", p, "--task", &task]);
    for field in [
        "ID",
        "Created At",
        "Pre-trained Model Hash",
        "Dataset Hash",
        "Training Params",
        "Fee (neuron)",
        "Progress",
    ] {
        assert!(table.contains(&format!("│ {field}")), "{table}");
    }
    assert!(
        cli.ok(&["fine-tuning", "list-tasks", "--provider", p])
            .contains(&task)
    );
    let log = cli.ok(&["fine-tuning", "get-log", "--provider", p, "--task", &task]);
    assert!(
        log.contains("creating task....") && log.contains("'loss'"),
        "{log}"
    );
    assert!(
        log.contains(&format!(
            "Training model for task {task} completed successfully"
        )),
        "{log}"
    );

    // Decrypting before acknowledging is refused, acknowledging a second task is not needed yet.
    let encrypted = cli.path("model.bin");
    let zip = cli.path("model.zip");
    fs::write(&encrypted, b"not yet").unwrap();
    cli.run(&[
        "fine-tuning",
        "decrypt-model",
        "--provider",
        p,
        "--task-id",
        &task,
        "--encrypted-model",
        &encrypted,
        "--output",
        &zip,
    ]);
    assert!(!std::path::Path::new(&zip).exists());
    fs::remove_file(&encrypted).unwrap();

    let acknowledge = [
        "fine-tuning",
        "acknowledge-model",
        "--provider",
        p,
        "--task-id",
        &task,
        "--data-path",
        &encrypted,
        "--download-method",
        "tee",
    ];
    let acknowledged = announces(
        &cli,
        &acknowledge,
        &[
            "This will acknowledge the result of task ",
            "This will let the provider take its fee of 0.0",
            " 0G from the fine-tuning sub-account",
        ],
    );
    assert!(acknowledged.contains("Acknowledged model"));
    wait_progress(&cli, p, &task, "Finished");
    let decrypted = cli.ok(&[
        "fine-tuning",
        "decrypt-model",
        "--provider",
        p,
        "--task-id",
        &task,
        "--encrypted-model",
        &encrypted,
        "--output",
        &zip,
    ]);
    assert!(decrypted.contains("Decrypted model"));
    assert_eq!(&fs::read(&zip).unwrap()[..4], b"PK\x03\x04");

    let name = cli.ok(&[
        "fine-tuning",
        "get-adapter-name",
        "--model",
        MODEL,
        "--task-id",
        &task,
    ]);
    assert!(
        name.contains(&format!("ft-Qwen2-5-0-5B-Instruct-{}", &task[..12])),
        "{name}"
    );
    let adapter = ["--provider", p, "--model", MODEL, "--task-id", &task];
    announces(
        &cli,
        &[&["fine-tuning", "deploy-adapter", "--wait"][..], &adapter].concat(),
        &[
            "This will move 2 0G (more if fees are unsettled) from the ledger to the inference sub-account",
            "This will deploy the adapter",
            "moved 2 0G from the ledger",
        ],
    );
    let question = ["--message", "When is the farm open?", "--verify"];
    let chat = announces(
        &cli,
        &[&["fine-tuning", "chat"][..], &adapter, &question].concat(),
        &["This will send one chat request, paid by its tokens from the inference sub-account"],
    );
    assert!(
        chat.contains("Assistant: ") && chat.contains("Tokens: "),
        "{chat}"
    );

    // Simulated evidence is named as such, with an exit code of its own.
    cli.fails(
        12,
        &[
            "fine-tuning",
            "verify",
            "--provider",
            p,
            "--output-dir",
            &cli.path(""),
        ],
    );
    cli.ok(&["inference", "acknowledge-provider", "--provider", p]);
    assert!(cli.ok(&["inference", "list-providers"]).contains(p));
    assert!(
        cli.ok(&["inference", "get-secret", "--provider", p])
            .contains("app-sk-")
    );
    cli.ok(&[
        "fine-tuning",
        "model-usage",
        "--provider",
        p,
        "--model",
        "mock-model",
        "--output",
        &cli.path("usage.md"),
    ]);
    assert!(
        fs::read_to_string(cli.path("usage.md"))
            .unwrap()
            .contains("mock-model")
    );

    // The rest of the money goes back by itself: request, then out after the lock.
    announces(
        &cli,
        &["retrieve-fund"],
        &[
            "This will ask ",
            " 0G back from the fine-tuning sub-account with ",
        ],
    );
    let account = cli.json(&[
        "get-sub-account",
        "--provider",
        p,
        "--service",
        "fine-tuning",
    ]);
    let asked_back = account["pending_refund_neuron"].as_str().unwrap();
    assert!(asked_back.parse::<u128>().unwrap() > 0, "{account}");
}

#[test]
fn one_verb_does_the_whole_walk() {
    let network = Network::start(&[]);
    let cli = Cli::logged_in(&network, 4);
    let params = cli.write("params.json", PARAMS);
    let (dataset, folder) = (
        fixture("datasets/star-island.completion.jsonl"),
        cli.path("out"),
    );
    let run = [
        "fine-tuning",
        "run",
        "--dataset-path",
        &dataset,
        "--model",
        MODEL,
        "--config-path",
        &params,
        "--output-dir",
        &folder,
        "--yes",
    ];
    let output = announces(
        &cli,
        &run,
        &[
            "This will deposit ",
            "This will acknowledge the result of task ",
            "This will let the provider take its fee of 0.0",
        ],
    );
    assert!(output.contains("ft-Qwen2-5-0-5B-Instruct-"), "{output}");
    let found = walk(&cli.path("out"));
    assert!(
        found
            .iter()
            .any(|file| file.ends_with("adapter_model.safetensors")),
        "{found:?}"
    );
}

fn walk(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(walk(path.to_str().unwrap()));
        } else {
            found.push(path.to_str().unwrap().to_owned());
        }
    }
    found
}

#[test]
fn refusals_name_the_remedy_and_have_their_own_exit_codes() {
    let network = Network::start(&[]);
    let provider = network.info.provider_address.to_string();
    let p = provider.as_str();
    let cli = Cli::logged_in(&network, 5);
    let params = cli.write("params.json", PARAMS);
    let dataset = fixture("datasets/star-island.completion.jsonl");
    let create = |model: &str, dataset: &str, params: &str| {
        cli.run(&[
            "fine-tuning",
            "create-task",
            "--provider",
            p,
            "--model",
            model,
            "--dataset-path",
            dataset,
            "--config-path",
            params,
        ])
    };
    let refused = |output: std::process::Output, code: i32, words: &[&str]| {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        for word in words {
            assert!(stderr.contains(word), "no `{word}` in: {stderr}");
        }
    };

    // No account yet: funds.
    refused(create(MODEL, &dataset, &params), 4, &["transfer-fund"]);
    cli.ok(&["deposit", "--amount", "4"]);
    let transfer = [
        "transfer-fund",
        "--provider",
        p,
        "--amount",
        "1",
        "--service",
        "fine-tuning",
    ];
    cli.ok(&transfer);

    // An account whose owner took everything out and then the acknowledgement of the provider's signer back; a transfer
    // gives it again.
    cli.ok(&["retrieve-fund"]);
    network.advance_time(2 * 86_400);
    cli.ok(&["retrieve-fund"]);
    cli.ok(&["fine-tuning", "revoke", "--provider", p]);
    refused(
        create(MODEL, &dataset, &params),
        6,
        &["fine-tuning acknowledge-provider", p],
    );
    cli.ok(&transfer);

    let broken = cli.write(
        "broken.jsonl",
        "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": oops}\n",
    );
    refused(create(MODEL, &broken, &params), 5, &["line 2", "column"]);
    let empty = cli.write("empty.jsonl", "");
    refused(create(MODEL, &empty, &params), 5, &["empty"]);
    let untrained = cli.write(
        "untrained.jsonl",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n",
    );
    refused(create(MODEL, &untrained, &params), 5, &["assistant"]);
    refused(create("gpt-5", &dataset, &params), 5, &["gpt-5"]);
    let unknown = cli.write("unknown.json", r#"{"learning_rat": 0.1}"#);
    refused(create(MODEL, &dataset, &unknown), 5, &["learning_rate"]);
    let range = cli.write("range.json", r#"{"lora_rank": 4096}"#);
    refused(create(MODEL, &dataset, &range), 5, &["lora_rank", "128"]);

    let stranger = "6b607314-88b0-4fef-91e7-43227a54de57";
    cli.fails(
        6,
        &[
            "fine-tuning",
            "get-task",
            "--provider",
            p,
            "--task",
            stranger,
        ],
    );
    cli.fails(2, &["fine-tuning", "create-task", "--provider", p]);
    let down = cli.run(&["--rpc", "http://127.0.0.1:9", "get-account"]);
    assert_eq!(
        down.status.code(),
        Some(7),
        "{}",
        String::from_utf8_lossy(&down.stderr)
    );
    // A provider that is down: named with its address, and the network itself still answers.
    let stopped = Network::start(&["--no-provider"]);
    let mut provider = ProviderProcess::start(&stopped, "provider", 2, BOTH_ROLES);
    let there = Cli::logged_in(&stopped, 5);
    provider.wait_acknowledged(&there, &["fine-tuning"]);
    provider.kill();
    let stderr = there.fails(6, &["fine-tuning", "list-tasks", "--provider", p]);
    for words in [
        "no answer from the provider at http://127.0.0.1:",
        "Check that it is running",
    ] {
        assert!(stderr.contains(words), "{stderr}");
    }

    let bad_key = cli.write("bad.key", "not a key");
    cli.fails(3, &["--key-file", &bad_key, "get-account"]);
}
