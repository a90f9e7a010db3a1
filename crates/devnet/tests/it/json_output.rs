//! Every command with `--json`: one value on standard output, one naming style, amounts as decimal neuron.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::{Cli, Network, fixture};

const MODEL: &str = "Qwen2.5-0.5B-Instruct";
const SHORT: &str = r#"{"max_steps": 2, "per_device_train_batch_size": 2, "max_seq_length": 128}"#;
/// Long enough to be cancelled while it runs.
const LONG: &str = r#"{"num_train_epochs": 100, "per_device_train_batch_size": 1}"#;

/// Member names that speak of coins and must therefore say their unit.
const COIN_WORDS: [&str; 7] = [
    "balance", "price", "amount", "deposit", "refund", "cost", "fee",
];

/// Runs commands with `--json`, checks what they print, and remembers which ones were run.
struct Checked<'a> {
    cli: &'a Cli,
    seen: BTreeSet<String>,
    amounts: usize,
}

impl Checked<'_> {
    fn run(&mut self, arguments: &[&str]) -> Value {
        self.run_with(0, arguments)
    }

    fn run_with(&mut self, code: i32, arguments: &[&str]) -> Value {
        self.seen.insert(command_name(arguments));
        let mut with_json = arguments.to_vec();
        with_json.push("--json");
        let output = self.cli.run(&with_json);
        let stdout = String::from_utf8(output.stdout).unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{stderr}");
        let value: Value = serde_json::from_str(&stdout)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}\n{stdout}"));
        self.check(&arguments.join(" "), &value);
        // Progress is JSON too, in the same style; sentences are not.
        for line in stderr.lines().filter(|line| line.starts_with('{')) {
            let progress = serde_json::from_str(line).unwrap();
            self.check(&format!("progress of {arguments:?}"), &progress);
        }
        value
    }

    fn check(&mut self, place: &str, value: &Value) {
        match value {
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.check(&format!("{place}[{index}]"), item);
                }
            }
            Value::Object(members) => {
                for (name, member) in members {
                    let place = format!("{place}.{name}");
                    self.check_name(&place, name, member);
                    self.check(&place, member);
                }
            }
            Value::String(text) => assert!(
                !is_hex_quantity(text),
                "{place} looks like an amount in hexadecimal: {text}"
            ),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn check_name(&mut self, place: &str, name: &str, member: &Value) {
        let is_snake = name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        assert!(is_snake, "{place} is not in snake case");
        if name.ends_with("_neuron") {
            let decimal = member.as_str().is_some_and(|text| {
                !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
            });
            assert!(decimal || member.is_null(), "{place} is {member}");
            self.amounts += usize::from(decimal);
        } else if member.is_string() || member.is_number() {
            let last = name.rsplit('_').next().unwrap();
            assert!(
                !COIN_WORDS.contains(&last),
                "{place} is an amount of coins without its unit: {member}"
            );
        }
    }
}

/// `0x` and digits that are no address, hash or signature.
fn is_hex_quantity(text: &str) -> bool {
    text.strip_prefix("0x").is_some_and(|digits| {
        let fixed = [40, 64, 130].contains(&digits.len());
        !fixed && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// The command's words: what stands before the first flag.
fn command_name(arguments: &[&str]) -> String {
    let words: Vec<&str> = arguments
        .iter()
        .take_while(|word| !word.starts_with('-'))
        .copied()
        .collect();
    words.join(" ")
}

/// Every command that `--help` lists.
fn listed_commands(cli: &Cli) -> BTreeSet<String> {
    let of = |words: &[&str]| -> Vec<String> {
        let help = cli.ok(&[words, &["--help"][..]].concat());
        let commands = help
            .split("Commands:\n")
            .nth(1)
            .expect("a list of commands");
        commands
            .lines()
            .take_while(|line| !line.trim().is_empty())
            // Names stand two columns in; what is further in belongs to a description.
            .filter_map(|line| line.strip_prefix("  "))
            .filter(|line| !line.starts_with(' '))
            .filter_map(|line| line.split_whitespace().next())
            .filter(|word| *word != "help")
            .map(str::to_owned)
            .collect()
    };
    let mut found = BTreeSet::new();
    for command in of(&[]) {
        match command.as_str() {
            "fine-tuning" | "inference" | "storage" => found.extend(
                of(&[&command])
                    .into_iter()
                    .map(|sub| format!("{command} {sub}")),
            ),
            // It prints a script.
            "completion" => {}
            _ => {
                found.insert(command);
            }
        }
    }
    found
}

#[test]
fn every_command_prints_one_style_of_json() {
    let network = Network::start(&[]);
    let provider = network.info.provider_address.to_string();
    let p = ["--provider", provider.as_str()];
    let cli = Cli::logged_in(&network, 0);
    let mut walk = Checked {
        cli: &cli,
        seen: BTreeSet::new(),
        amounts: 0,
    };
    let ft = |name: &'static str, rest: &[&'static str]| -> Vec<&'static str> {
        [&["fine-tuning", name][..], rest].concat()
    };
    let dataset = fixture("datasets/star-island.completion.jsonl");
    let (short, long) = (cli.write("short.json", SHORT), cli.write("long.json", LONG));
    let key = cli.path("key");
    let model = ["--model", MODEL];

    // Profile and money.
    let info = &network.info;
    walk.run(&[
        "setup-network",
        "--network",
        "devnet",
        "--rpc",
        &info.rpc_url,
        "--storage-indexer",
        &info.indexer_url,
    ]);
    walk.run(&["show-network"]);
    let status = walk.run(&["status"]);
    assert_eq!(status["key"], "plain file", "{status}");
    // No ledger yet: a warning, not a failure.
    let health = walk.run(&["doctor"]);
    assert_eq!(health["healthy"], true, "{health}");
    let pages = walk.run(&["man-pages", "--output-dir", &cli.path("man")]);
    assert!(pages["pages"].as_array().unwrap().len() > 40, "{pages}");
    let planned = walk.run(&["deposit", "--amount", "3", "--dry-run"]);
    assert_eq!(planned["steps"][0]["amount_neuron"], "3000000000000000000");
    let planned = walk.run_with(4, &["deposit", "--amount", "0.5", "--dry-run"]);
    assert_eq!(planned["problems"].as_array().unwrap().len(), 1);
    walk.run(&["login", "--plaintext", "--key-file", &key]);
    walk.run(&["add-account", "--amount", "3"]);
    walk.run(&["deposit", "--amount", "7"]);
    let transfer = [
        &["transfer-fund"][..],
        &p,
        &["--amount", "2", "--service", "fine-tuning"],
    ]
    .concat();
    let receipt = walk.run(&transfer);
    assert_eq!(receipt["succeeded"], true);
    let account = walk.run(&["get-account"]);
    assert_eq!(
        account["ledger"]["total_balance_neuron"],
        "10000000000000000000"
    );

    // Discovery and data.
    let services = walk.run(&ft("list-providers", &[]));
    assert_eq!(services[0]["provider"], provider.as_str());
    walk.run(&ft("list-models", &[]));
    let usage = cli.path("usage.zip");
    walk.run(&[&ft("model-usage", &["--output"])[..], &[&usage], &p, &model].concat());
    let defaults = cli.path("defaults.json");
    walk.run(&[&ft("init-config", &["--output"])[..], &[&defaults]].concat());
    walk.run(
        &[
            &ft("check-dataset", &["--dataset-path"])[..],
            &[&dataset],
            &p,
            &model,
        ]
        .concat(),
    );
    walk.run(&[&ft("upload", &["--data-path"])[..], &[&dataset], &p].concat());
    let stored = walk.run(&[&ft("upload", &["--yes", "--data-path"])[..], &[&dataset]].concat());
    let (root, copy) = (
        stored["root_hash"].as_str().unwrap(),
        cli.path("copy.jsonl"),
    );
    walk.run(
        &[
            &ft("download", &["--data-root"])[..],
            &[root, "--data-path", &copy],
        ]
        .concat(),
    );
    let count = [
        &ft("calculate-token", &["--dataset-path"])[..],
        &[&dataset],
        &p,
        &model,
    ]
    .concat();
    walk.run(&count);
    let quote = walk.run(&[&count[..], &["--config-path", &short]].concat());
    assert_eq!(quote["is_estimate"], false);
    walk.run(&[&ft("acknowledge-provider", &[])[..], &p].concat());
    let ask = [
        &ft("quote", &["--dataset-path"])[..],
        &[&dataset, "--config-path", &short],
        &p,
        &model,
    ]
    .concat();
    let counted = walk.run(&ask);
    assert_eq!(counted["fee"], quote);
    assert!(counted["signed"].is_null());
    let signed_file = cli.path("quote.json");
    let signed = walk.run(&[&ask[..], &["--upload", "--output", &signed_file]].concat());
    assert_eq!(signed["fee"]["total_neuron"], quote["total_neuron"]);
    assert!(signed["signer"].is_string());

    // One task that is cancelled, one that is delivered.
    let create = [
        &ft("create-task", &["--dataset-path"])[..],
        &[&dataset],
        &p,
        &model,
    ]
    .concat();
    let created = walk.run(&[&create[..], &["--config-path", &long]].concat());
    let cancelled = created["task_id"].as_str().unwrap();
    walk.run(&[&ft("cancel-task", &["--task"])[..], &[cancelled], &p].concat());
    let with_quote = ["--queue", "--config-path", &short, "--quote", &signed_file];
    let planned = walk.run(&[&create[..], &with_quote, &["--dry-run"]].concat());
    let last = planned["steps"].as_array().unwrap().last().unwrap();
    assert_eq!(last["amount_neuron"], quote["total_neuron"]);
    // The quote is for other parameters.
    let other = [
        &create[..],
        &["--queue", "--config-path", &long, "--quote", &signed_file],
    ]
    .concat();
    assert!(cli.fails(8, &other).contains("another parameter file"));
    let task = walk.run(&[&create[..], &with_quote, &["--wait"]].concat());
    assert_eq!(task["progress"], "Delivered", "{task}");
    assert_eq!(task["fee_neuron"], quote["total_neuron"]);
    let id = task["task_id"].as_str().unwrap();
    walk.run(&[&ft("get-task", &["--task"])[..], &[id], &p].concat());
    let tasks = walk.run(&[&ft("list-tasks", &[])[..], &p].concat());
    assert_eq!(tasks.as_array().unwrap().len(), 2);
    let (csv, svg, events) = (cli.path("l.csv"), cli.path("l.svg"), cli.path("tb"));
    let log = [
        &ft("get-log", &["--chart", "--task"])[..],
        &[id, "--csv", &csv, "--svg", &svg, "--tensorboard", &events],
        &p,
    ]
    .concat();
    let log = walk.run(&log);
    assert_eq!(log["losses"].as_array().unwrap().len(), 2, "{log}");
    assert_eq!(std::fs::read_to_string(&csv).unwrap().lines().count(), 3);
    assert!(std::fs::read_to_string(&svg).unwrap().contains("<polyline"));
    assert_eq!(std::fs::read_dir(&events).unwrap().count(), 1);

    // Delivery, adapter, chat.
    let of_task = [&p[..], &["--task-id", id]].concat();
    let (encrypted, zip, folder) = (
        cli.path("adapter.enc"),
        cli.path("adapter.zip"),
        cli.path("adapter"),
    );
    let acknowledged = walk.run(
        &[
            &ft("acknowledge-model", &["--data-path"])[..],
            &[&encrypted],
            &of_task,
        ]
        .concat(),
    );
    assert_eq!(acknowledged["receipt"]["succeeded"], true);
    let again = walk.run(&[&ft("acknowledge-deliverable", &[])[..], &of_task].concat());
    assert_eq!(again["was_acknowledged_before"], true);
    let decrypt = [
        &ft("decrypt-model", &["--encrypted-model"])[..],
        &[&encrypted, "--output", &zip, "--unpack", &folder],
        &of_task,
    ];
    let decrypted = walk.run(&decrypt.concat());
    assert_eq!(decrypted["manifest"]["stand_in"], true);
    let named = walk.run(&[&ft("get-adapter-name", &["--task-id"])[..], &[id], &model].concat());
    walk.run(&[&ft("list-adapters", &[])[..], &p].concat());
    walk.run(&[&ft("deploy-adapter", &["--wait"])[..], &of_task, &model].concat());
    let question = ["--message", "Where is Star Island?", "--verify"];
    let answer = walk.run(&[&ft("chat", &question)[..], &of_task, &model].concat());
    assert!(answer["completion_tokens"].as_u64().unwrap() > 0);
    assert!(answer["proof"]["signer"].is_string());
    let adapter = named["adapter_name"].as_str().unwrap();
    let friend = network.info.accounts[1].address.to_string();
    let share = [
        &ft("share-adapter", &["--adapter-name"])[..],
        &[adapter, "--address", &friend],
        &p,
    ]
    .concat();
    let shares = walk.run(&share);
    assert_eq!(shares["shared_with"].as_array().unwrap().len(), 1);
    let shares = walk.run(&[&share[..], &["--revoke"]].concat());
    assert_eq!(shares["shared_with"].as_array().unwrap().len(), 0);
    let here = cli.path("");
    walk.run_with(
        12,
        &[&ft("verify", &["--output-dir"])[..], &[&here], &p].concat(),
    );
    let verdict = std::fs::read_to_string(cli.path("fine_tuning_verdict.json")).unwrap();
    let verdict: Value = serde_json::from_str(&verdict).unwrap();
    assert_eq!(verdict["verdict"]["level"], "SIMULATED");
    assert_eq!(verdict["nonce"].as_str().unwrap().len(), 64);
    let checks = verdict["verdict"]["checks"].as_array().unwrap();
    let fresh = checks.iter().find(|check| check["id"] == "V15").unwrap();
    assert_eq!(
        fresh["status"], "pass",
        "the quote answers this run's nonce"
    );
    let summary = std::fs::read_to_string(cli.path("fine_tuning_report.md")).unwrap();
    assert!(summary.starts_with("# Verification of a fine-tuning provider: SIMULATED"));
    let out = cli.path("out");
    let run = [
        &ft("run", &["--yes", "--queue", "--dataset-path"])[..],
        &[&dataset, "--config-path", &short, "--output-dir", &out],
        &model,
    ];
    let ran = walk.run(&run.concat());
    assert_eq!(ran["deployed"]["status"], "active");

    // Inference.
    let inference = |name: &'static str| -> Vec<&str> { [&["inference", name][..], &p].concat() };
    walk.run(&["inference", "list-providers"]);
    let details = walk.run(&["inference", "list-providers-detail"]);
    assert_eq!(details[0]["is_reachable"], true, "{details}");
    let report = cli.path("report.json");
    walk.run(&[&inference("download-report")[..], &["--output", &report]].concat());
    let report = std::fs::read_to_string(&report).unwrap();
    assert!(report.contains("\"quote\""), "{report}");
    let models = walk.run(&inference("get-models"));
    assert!(models[0]["input_price_neuron"].is_string());
    walk.run(&inference("acknowledge-provider"));
    let secret = walk.run(&inference("get-secret"));
    assert!(secret["raw_token"].as_str().unwrap().starts_with("app-sk-"));
    walk.run(&[&inference("revoke-token")[..], &["--token-id", "0"]].concat());
    walk.run(&inference("revoke-all-tokens"));
    walk.run_with(
        12,
        &[&inference("verify")[..], &["--output-dir", &here]].concat(),
    );

    let dataset_hash = task["dataset_hash"].as_str().unwrap();
    walk.run(
        &[
            &ft("delete-dataset", &["--dataset"])[..],
            &[dataset_hash],
            &p,
        ]
        .concat(),
    );

    // Storage on its own.
    let file = cli.write("note.txt", "a note");
    walk.run(&["storage", "cost", "--file", &file]);
    let root = walk.run(&["storage", "root", "--file", &file]);
    let stored = walk.run(&["storage", "upload", "--encrypt", "--file", &file]);
    assert_eq!(stored[0]["already_present"], false);
    assert_ne!(stored[0]["root_hash"], root["root_hash"]);
    let (root, back) = (
        stored[0]["root_hash"].as_str().unwrap(),
        cli.path("back.txt"),
    );
    walk.run(&[
        "storage",
        "download",
        "--decrypt",
        "--root",
        root,
        "--file",
        &back,
    ]);
    assert_eq!(std::fs::read_to_string(&back).unwrap(), "a note");

    // The money's way back.
    walk.run(&["retrieve-fund"]);
    let sub_account = [&["get-sub-account"][..], &p].concat();
    let account = walk.run(&sub_account);
    assert!(account["refunds"][0]["amount_neuron"].is_string());
    walk.run(&["refund", "--amount", "0.5"]);
    walk.run(&[&ft("revoke", &[])[..], &p].concat());
    walk.run(&["logout"]);

    let missing: Vec<_> = listed_commands(&cli)
        .difference(&walk.seen)
        // Servers that run until they are stopped.
        .filter(|command| !command.starts_with("inference serve"))
        .cloned()
        .collect();
    assert!(missing.is_empty(), "not run with --json: {missing:?}");
    assert!(walk.amounts > 40, "only {} amounts were seen", walk.amounts);
}

#[test]
fn a_failure_is_one_object_on_standard_error() {
    let home = tempfile::tempdir().unwrap();
    let output =
        std::process::Command::new(crate::support::binary("ZEROG_CLI_BINARY", "0g-compute-cli"))
            .args(["get-account", "--json"])
            .env("HOME", home.path())
            .env_remove("ZG_PRIVATE_KEY")
            .output()
            .unwrap();
    let failure: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(failure["code"], "usage");
    assert_eq!(
        failure["exit_code"].as_i64(),
        output.status.code().map(i64::from)
    );
    assert!(output.stdout.is_empty());
}
