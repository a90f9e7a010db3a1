//! The real binary: flags, files, exit codes and texts. The whole walk against a network is in `crates/devnet/tests`.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop at what it did not expect"
)]

use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const PROVIDER: &str = "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC";
const TASK: &str = "6b607314-88b0-4fef-91e7-43227a54de57";
/// A published development key; never a secret.
const KEY: &str = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
const ADDRESS: &str = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266";

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_0g-compute-cli"));
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ZG_"))
        {
            command.env_remove(name);
        }
        command
            .args(arguments)
            .env("ZG_HOME", self.path().join("profile"))
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        Ended(self.command(arguments).output().unwrap())
    }

    fn on_devnet() -> Self {
        let home = Self::new();
        home.run(&[
            "setup-network",
            "--network",
            "devnet",
            "--rpc",
            "http://127.0.0.1:9",
        ])
        .is(0);
        home
    }
}

struct Ended(Output);

impl Ended {
    fn is(self, code: i32) -> Self {
        assert_eq!(
            self.0.status.code(),
            Some(code),
            "stdout: {}\nstderr: {}",
            self.stdout(),
            self.stderr()
        );
        self
    }

    fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }

    fn says(self, text: &str) -> Self {
        assert!(
            self.stderr().contains(text),
            "expected {text:?} in: {}",
            self.stderr()
        );
        self
    }
}

#[test]
fn without_a_network_the_remedy_is_named() {
    Home::new()
        .run(&["fine-tuning", "list-providers"])
        .is(2)
        .says("setup-network --network testnet");
    Home::new().run(&["setup-network"]).is(2).says("--network");
    Home::new()
        .run(&["setup-network", "--network", "moon"])
        .is(2)
        .says("mainnet, testnet, testnet-dev, devnet");
}

#[test]
fn networks_with_names_stay_when_another_one_is_chosen() {
    let home = Home::new();
    let save = |name: &str, rpc: &str| {
        home.run(&[
            "setup-network",
            "--network",
            "devnet",
            "--rpc",
            rpc,
            "--name",
            name,
        ])
    };
    save("lab", "http://127.0.0.1:7").is(0);
    save("attic", "http://127.0.0.1:8").is(0);
    let shown = home.run(&["show-network"]).is(0).stdout();
    assert!(
        shown.contains("│ lab ") && shown.contains("│ attic ") && shown.contains("127.0.0.1:7"),
        "{shown}"
    );
    let shown = |arguments: &[&str]| -> serde_json::Value {
        let arguments = [&["show-network", "--json"][..], arguments].concat();
        serde_json::from_str(&home.run(&arguments).is(0).stdout()).unwrap()
    };
    assert_eq!(shown(&[])["name"], "attic");
    let lab = shown(&["--network", "lab"]);
    assert_eq!(
        (&lab["name"], &lab["rpc_url"]),
        (&"lab".into(), &"http://127.0.0.1:7".into())
    );
    assert_eq!(lab["saved_networks"], serde_json::json!(["attic", "lab"]));
    home.run(&["setup-network", "--network", "lab"]).is(0);
    assert_eq!(shown(&[])["name"], "lab");
    home.run(&["show-network", "--network", "moon"])
        .is(2)
        .says("saved networks: attic, lab");
    save("testnet", "http://127.0.0.1:7").is(2).says("another");
    save("../lab", "http://127.0.0.1:7").is(2).says("--name");
}

#[test]
fn the_network_is_saved_and_shown() {
    let home = Home::new();
    let ended = home
        .run(&[
            "setup-network",
            "--network",
            "devnet",
            "--rpc",
            "http://127.0.0.1:7",
        ])
        .is(0);
    assert_eq!(
        ended.stdout(),
        "Network set to devnet (chain 31337, http://127.0.0.1:7)\n"
    );
    let shown: serde_json::Value =
        serde_json::from_str(&home.run(&["show-network", "--json"]).is(0).stdout()).unwrap();
    assert_eq!(
        (&shown["name"], &shown["rpc_url"]),
        (&"devnet".into(), &"http://127.0.0.1:7".into())
    );
    let shown = home
        .run(&["show-network", "--rpc", "http://127.0.0.1:8"])
        .is(0);
    assert!(
        shown.stdout().contains("http://127.0.0.1:8"),
        "a flag wins over the profile"
    );
    let shown = home
        .run(&["show-network", "--network", "testnet"])
        .is(0)
        .stdout();
    assert!(
        shown.contains("16602") && !shown.contains("127.0.0.1"),
        "{shown}"
    );
}

#[test]
fn a_key_is_saved_encrypted_from_standard_input() {
    let home = Home::on_devnet();
    home.run(&["login"])
        .is(2)
        .says("--key-file FILE or --key-stdin");
    let mut child = home
        .command(&["login", "--key-stdin"])
        .env("ZG_KEYSTORE_PASSWORD", "pass")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(KEY.as_bytes())
        .unwrap();
    let ended = Ended(child.wait_with_output().unwrap()).is(0);
    assert_eq!(ended.stdout(), format!("Logged in as {ADDRESS}\n"));

    let keystore = std::fs::read_to_string(home.path().join("profile/keystore.json")).unwrap();
    assert!(!keystore.contains(&KEY[2..]) && keystore.contains("scrypt"));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |name: &str| {
            std::fs::metadata(home.path().join(name))
                .unwrap()
                .permissions()
                .mode()
                & 0o777
        };
        assert_eq!(
            (mode("profile"), mode("profile/keystore.json")),
            (0o700, 0o600)
        );
    }
    home.run(&["get-account"])
        .is(3)
        .says("ZG_KEYSTORE_PASSWORD");
    let wrong = home
        .command(&["get-account"])
        .env("ZG_KEYSTORE_PASSWORD", "no")
        .output()
        .unwrap();
    Ended(wrong).is(3).says("password is wrong");
    let right = home
        .command(&["get-account"])
        .env("ZG_KEYSTORE_PASSWORD", "pass")
        .output()
        .unwrap();
    Ended(right).is(7).says("no answer from the chain");
    assert_eq!(home.run(&["logout"]).is(0).stdout(), "Logged out\n");
    home.run(&["get-account"])
        .is(3)
        .says("0g-compute-cli login");
}

#[test]
fn a_plain_key_file_must_be_private() {
    let home = Home::on_devnet();
    let key = home.path().join("wallet.key");
    std::fs::write(&key, format!("{KEY}\n")).unwrap();
    let key = key.to_str().unwrap();
    home.run(&["login", "--key-file", key])
        .is(2)
        .says("--plaintext");
    home.run(&["login", "--key-file", key, "--plaintext"])
        .is(0)
        .says("unencrypted");
    home.run(&["get-account"]).is(7);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let saved = home.path().join("profile/plain.key");
        assert_eq!(
            std::fs::metadata(&saved).unwrap().permissions().mode() & 0o777,
            0o600
        );
        std::fs::set_permissions(&saved, std::fs::Permissions::from_mode(0o640)).unwrap();
        home.run(&["get-account"]).is(3).says("chmod 600");
    }
    std::fs::write(home.path().join("bad.key"), "not a key").unwrap();
    let bad = home.path().join("bad.key");
    home.run(&["get-account", "--key-file", bad.to_str().unwrap()])
        .is(3)
        .says("64 hexadecimal digits");
    home.run(&["get-account", "--key-file", "/nonexistent"])
        .is(3)
        .says("/nonexistent");
}

#[test]
fn flag_errors_name_the_flags() {
    let home = Home::on_devnet();
    let create = [
        "fine-tuning",
        "create-task",
        "--provider",
        PROVIDER,
        "--model",
        "mock-model",
        "--config-path",
        "c.json",
    ];
    home.run(&create)
        .is(2)
        .says("Error: Either --dataset (hash) or --dataset-path (file path) must be provided");
    home.run(
        &[
            &create[..],
            &["--dataset", "0x12", "--dataset-path", "d.jsonl"],
        ]
        .concat(),
    )
    .is(2)
    .says("Error: --dataset and --dataset-path are mutually exclusive. Please provide only one.");
    home.run(&["ft", "chat", "--provider", PROVIDER, "--message", "hi"])
        .is(2)
        .says("Error: Provide either --adapter-name or both --model and --task-id");
    home.run(&["deposit", "--amount", "1e3"])
        .is(2)
        .says("is not an amount");
    home.run(&[
        "transfer-fund",
        "--provider",
        PROVIDER,
        "--amount",
        "1",
        "--service",
        "gpu",
    ])
    .is(2)
    .says("fine-tuning or inference");
    home.run(&["ft", "get-task", "--provider", "0x12"]).is(2);
    home.run(&[
        "ft",
        "cancel-task",
        "--provider",
        PROVIDER,
        "--task",
        "../x",
    ])
    .is(2)
    .says("is not a task id");
    home.run(&["nonsense"]).is(2);
    home.run(&[&create[..], &["--dataset", "0x12", "--queue", "--no-queue"]].concat())
        .is(2);
}

#[test]
fn failures_have_distinct_exit_codes() {
    let home = Home::on_devnet();
    home.run(&["deposit", "--amount", "1"])
        .is(3)
        .says("ZG_PRIVATE_KEY");
    home.run(&["ft", "list-providers"])
        .is(7)
        .says("✗ Operation failed: no answer from the chain");
    let json = home.run(&["ft", "list-providers", "--json"]).is(7);
    let body: serde_json::Value = serde_json::from_str(&json.stderr()).unwrap();
    assert_eq!(
        (&body["code"], &body["exit_code"]),
        (&"chain_unreachable".into(), &7.into())
    );
    assert!(json.stdout().is_empty());
    home.run(&[
        "ft",
        "check-dataset",
        "--dataset-path",
        "/nonexistent.jsonl",
    ])
    .is(11)
    .says("/nonexistent.jsonl");
    home.run(&["ft", "upload", "--data-path", "x.jsonl"])
        .is(2)
        .says("IN CLEAR")
        .says("--yes");
}

#[test]
fn datasets_are_checked_without_a_network() {
    let home = Home::new();
    let path = home.path().join("d.jsonl");
    let path_text = path.to_str().unwrap().to_owned();
    std::fs::write(
        &path,
        "{\"prompt\":\"a\",\"completion\":\"b\"}\n{\"prompt\":\"a\",}\n",
    )
    .unwrap();
    home.run(&["ft", "check-dataset", "--dataset-path", &path_text])
        .is(5)
        .says("line 2");
    std::fs::write(&path, "\n\n").unwrap();
    home.run(&["ft", "check-dataset", "--dataset-path", &path_text])
        .is(5)
        .says("no record");
    std::fs::write(&path, "{\"prompt\":\"a\",\"completion\":\"b\"}\n").unwrap();
    let ended = home
        .run(&["ft", "check-dataset", "--dataset-path", &path_text])
        .is(0);
    assert!(
        ended.stdout().starts_with("1 records")
            && ended.stdout().ends_with("The dataset is fine\n"),
        "{}",
        ended.stdout()
    );
}

#[test]
fn configurations_are_written_once() {
    let home = Home::new();
    let path = home.path().join("params.json");
    let arguments = [
        "ft",
        "init-config",
        "--model",
        "mock-model",
        "--output",
        path.to_str().unwrap(),
    ];
    home.run(&arguments).is(0);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(
        text.contains("\"lora_rank\": 8") && text.contains("\"learning_rate\": 0.0002"),
        "{text}"
    );
    home.run(&arguments).is(2).says("--yes");
    home.run(&[&arguments[..], &["--yes", "--strict"]].concat())
        .is(0);
    assert!(
        !std::fs::read_to_string(&path)
            .unwrap()
            .contains("lora_rank")
    );
}

#[test]
fn adapter_names_and_completions_need_no_network() {
    let home = Home::new();
    let ended = home
        .run(&[
            "ft",
            "get-adapter-name",
            "--model",
            "Qwen2.5-0.5B-Instruct",
            "--task-id",
            TASK,
        ])
        .is(0);
    assert_eq!(ended.stdout(), "ft-Qwen2-5-0-5B-Instruct-6b607314-88b\n");
    assert!(
        home.run(&["completion", "bash"])
            .is(0)
            .stdout()
            .contains("0g-compute-cli")
    );
    let help = home.run(&["--help"]).is(0).stdout();
    assert!(
        help.contains("Exit codes: 0 success") && help.contains("130 interrupted"),
        "{help}"
    );
}

/// Goal: Ctrl-C ends a waiting command with a sentence and 130. Method: a chain endpoint that accepts and never answers.
#[cfg(unix)]
#[test]
fn an_interrupted_command_says_so() {
    let home = Home::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let child = home
        .command(&["ft", "list-providers", "--network", "devnet", "--rpc", &url])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The command waits for the chain as soon as it has connected.
    let _connection = silent.accept().unwrap();
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    let started = Instant::now();
    let ended = Ended(child.wait_with_output().unwrap())
        .is(130)
        .says("Interrupted.");
    assert!(ended.stdout().is_empty());
    assert!(
        started.elapsed() < Duration::from_secs(60),
        "it did not wait for its own timeouts"
    );
}

/// A configuration as the npm program writes it.
fn npm_config(home: &Home, key: &str) -> String {
    let folder = home.path().join(".0g-compute-cli");
    std::fs::create_dir_all(&folder).unwrap();
    let config = serde_json::json!({
        "privateKey": key,
        "rpcEndpoint": "http://127.0.0.1:9",
        "network": "testnet",
        "lastUpdated": "2026-01-01T00:00:00.000Z",
    });
    let path = folder.join("config.json");
    std::fs::write(&path, config.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_npm_programs_key_and_network_are_imported_encrypted() {
    let home = Home::new();
    let path = npm_config(&home, KEY);
    let mut import = home.command(&["login", "--import"]);
    import
        .env("HOME", home.path())
        .env("ZG_KEYSTORE_PASSWORD", "a password");
    let ended = Ended(import.output().unwrap()).is(0).says("in clear");
    assert!(ended.stdout().contains(ADDRESS), "{}", ended.stdout());
    let digits = KEY.trim_start_matches("0x");
    for entry in std::fs::read_dir(home.path().join("profile")).unwrap() {
        let file = entry.unwrap().path();
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(!text.contains(digits), "{} holds the key", file.display());
    }
    let network = home.run(&["show-network", "--json"]).is(0).stdout();
    let network: serde_json::Value = serde_json::from_str(&network).unwrap();
    assert_eq!(network["name"], "testnet");
    assert_eq!(network["rpc_url"], "http://127.0.0.1:9");

    // A chosen network stays, also when the file is named.
    let other = Home::on_devnet();
    let mut import = other.command(&["login", "--import", &path, "--json"]);
    import.env("ZG_KEYSTORE_PASSWORD", "a password");
    let ended = Ended(import.output().unwrap()).is(0);
    let value: serde_json::Value = serde_json::from_str(&ended.stdout()).unwrap();
    assert_eq!(
        (&value["encrypted"], &value["network"]),
        (&true.into(), &().into())
    );
}

#[test]
fn a_bad_import_names_the_file_and_never_the_key() {
    let home = Home::new();
    let path = npm_config(&home, "0x12");
    home.run(&["login", "--import", &path, "--plaintext"]).is(3);
    std::fs::write(&path, format!("{{\"privateKey\": {KEY}}}")).unwrap();
    let ended = home
        .run(&["login", "--import", &path, "--plaintext"])
        .is(2)
        .says("config.json");
    assert!(!ended.stderr().contains(&KEY[2..20]), "{}", ended.stderr());
    std::fs::write(&path, "{}").unwrap();
    home.run(&["login", "--import", &path, "--plaintext"])
        .is(3)
        .says("holds no key");
    home.run(&["login", "--import", "/nonexistent.json"]).is(11);
}

#[test]
fn the_doctor_names_what_is_missing_and_how_to_mend_it() {
    let ended = Home::new().run(&["doctor"]).is(2);
    let text = ended.stdout();
    assert!(
        text.contains("✗ network") && text.contains("setup-network"),
        "{text}"
    );
    assert!(text.contains("✗ key") && text.contains("– rpc"), "{text}");

    // The first failure gives the exit code: here the chain, since the key is there.
    let home = Home::on_devnet();
    let mut doctor = home.command(&["doctor", "--json"]);
    doctor.env("ZG_PRIVATE_KEY", KEY);
    let ended = Ended(doctor.output().unwrap()).is(7);
    let report: serde_json::Value = serde_json::from_str(&ended.stdout()).unwrap();
    let status = |name: &str| {
        let checks = report["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["check"] == name).unwrap();
        check["status"].as_str().unwrap().to_owned()
    };
    assert_eq!(report["healthy"], false);
    assert_eq!(
        (status("network"), status("key")),
        ("ok".into(), "ok".into())
    );
    assert_eq!(
        (status("rpc"), status("storage")),
        ("failed".into(), "skipped".into())
    );
    assert!(!ended.stdout().contains(&KEY[2..20]));
}

#[test]
fn manual_pages_cover_every_command() {
    let home = Home::new();
    let folder = home.path().join("man");
    home.run(&["man-pages", "--output-dir", folder.to_str().unwrap()])
        .is(0);
    let page = |name: &str| {
        std::fs::read_to_string(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    assert!(page("0g-compute-cli.1").contains("Exit codes"));
    let quote = page("0g-compute-cli-fine-tuning-quote.1");
    assert!(
        quote.contains(".TH") && quote.contains("dataset\\-path"),
        "{quote}"
    );
    assert!(page("0g-compute-cli-storage-upload.1").contains("fragment\\-size"));
}

#[test]
fn dry_runs_are_for_spending_alone_and_need_the_chain() {
    let home = Home::on_devnet();
    let run = |arguments: &[&str]| {
        let mut command = home.command(arguments);
        command.env("ZG_PRIVATE_KEY", KEY);
        Ended(command.output().unwrap())
    };
    run(&["logout", "--dry-run"]).is(2).says("spends nothing");
    run(&["ft", "list-providers", "--dry-run"])
        .is(2)
        .says("spends nothing");
    run(&["deposit", "--amount", "1", "--dry-run"]).is(7);
}
