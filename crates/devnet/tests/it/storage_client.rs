//! `0g-storage-client` as the published SDKs start it: their arguments, the lines that they parse, the exit codes.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;
use zerog_storage::{FileShape, FileTree};

use crate::support::{Network, Process, binary, wait_for};

const ACCOUNT: usize = 5;
const SUCCESS: &str = "Succeeded to validate the downloaded file";
/// Nobody listens there.
const DEAD: &str = "http://127.0.0.1:1";

/// What a run of the helper left.
struct Said {
    code: Option<i32>,
    /// Standard output and standard error; only the latter is used.
    text: String,
}

impl Said {
    fn last_line(&self) -> &str {
        self.text.trim_end().lines().next_back().unwrap_or_default()
    }

    /// What the SDKs take for the result: every `root = 0x…`, with or without spaces.
    fn results(&self) -> Vec<String> {
        self.text
            .match_indices("root")
            .filter_map(|(start, mark)| {
                let rest = self.text[start + mark.len()..].trim_start();
                let digits = rest.strip_prefix('=')?.trim_start().strip_prefix("0x")?;
                let end = digits.find(|digit: char| !digit.is_ascii_hexdigit());
                let digits = &digits[..end.unwrap_or(digits.len())];
                (!digits.is_empty()).then(|| format!("0x{digits}"))
            })
            .collect()
    }

    /// The root of an upload that went well.
    fn uploaded(&self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.text);
        let root = self.last_line().strip_prefix("file uploaded, root = ");
        let root = root.unwrap_or_else(|| panic!("{}", self.text)).to_owned();
        assert_eq!(self.results(), [root.as_str()], "{}", self.text);
        root
    }

    fn downloaded(&self) {
        assert_eq!(self.code, Some(0), "{}", self.text);
        assert!(self.text.trim().ends_with(SUCCESS), "{}", self.text);
    }

    fn failed(&self, reason: &str) {
        assert_eq!(self.code, Some(1), "{}", self.text);
        assert!(self.text.contains(reason), "{reason}: {}", self.text);
        assert!(!self.text.contains("panicked"), "{}", self.text);
        assert!(!self.text.contains(SUCCESS), "{}", self.text);
        assert_eq!(self.results(), [""; 0], "{}", self.text);
    }
}

struct Helper {
    network: Network,
}

impl Helper {
    fn start() -> Self {
        Self {
            network: Network::start(&["--no-provider"]),
        }
    }

    fn key(&self) -> &str {
        &self.network.info.accounts[ACCOUNT].private_key
    }

    fn path(&self, name: &str) -> String {
        self.network.folder.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, content: &[u8]) -> String {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let binary: PathBuf = binary("ZEROG_STORAGE_CLIENT_BINARY", "0g-storage-client");
        let mut command = Command::new(binary);
        command
            .args(arguments)
            .env("HOME", self.network.folder.path())
            .current_dir(self.network.folder.path())
            .stdin(Stdio::null());
        for variable in [
            "ZG_HOME",
            "ZG_PRIVATE_KEY",
            "ZG_STORAGE_RPC_OVERRIDE",
            "ZG_STORAGE_INDEXER_OVERRIDE",
            "RUST_LOG",
        ] {
            command.env_remove(variable);
        }
        command
    }

    fn run(&self, arguments: &[&str]) -> Said {
        self.finish(self.command(arguments))
    }

    fn finish(&self, mut command: Command) -> Said {
        let output = command.output().expect("the helper starts");
        assert!(output.stdout.is_empty(), "everything is said on stderr");
        let text = String::from_utf8(output.stderr).unwrap();
        let digits = self.key().trim_start_matches("0x");
        assert!(!text.contains(digits), "the key is never said");
        Said {
            code: output.status.code(),
            text,
        }
    }

    /// The arguments that both SDKs pass, and more.
    fn upload(&self, file: &str, more: &[&str]) -> Said {
        let info = &self.network.info;
        let mut arguments = vec![
            "upload",
            "--url",
            &info.rpc_url,
            "--key",
            self.key(),
            "--indexer",
            &info.indexer_url,
            "--file",
            file,
            "--skip-tx=false",
            "--log-level=debug",
        ];
        arguments.extend(more);
        self.run(&arguments)
    }

    fn download(&self, file: &str, more: &[&str]) -> Said {
        let indexer = &self.network.info.indexer_url;
        let mut arguments = vec!["download", "--file", file, "--indexer", indexer];
        arguments.extend(more);
        self.run(&arguments)
    }

    /// Transactions of the paying wallet so far.
    fn transactions(&self) -> String {
        let address = &self.network.info.accounts[ACCOUNT].address;
        let count = self
            .network
            .rpc("eth_getTransactionCount", json!([address, "latest"]));
        count.as_str().unwrap().to_owned()
    }
}

fn content(size: usize) -> Vec<u8> {
    (0..size).map(|i| ((i * 31 + 7) % 251) as u8).collect()
}

fn root_of(content: &[u8]) -> String {
    let shape = FileShape::new(content.len() as u64).unwrap();
    FileTree::read(shape, content).unwrap().root().to_string()
}

#[test]
fn the_invocations_of_the_sdks_end_as_they_expect_and_are_paid_once() {
    let helper = Helper::start();
    for size in [1, 256, 262_145, 1_048_577] {
        let content = content(size);
        let file = helper.write(&format!("source-{size}"), &content);
        let root = helper.upload(&file, &[]).uploaded();
        assert_eq!(root, root_of(&content), "{size} bytes");
        let paid = helper.transactions();
        let priced = ["--gas-price", "3000000000", "--max-gas-price", "4000000000"];
        assert_eq!(helper.upload(&file, &priced).uploaded(), root);
        assert_eq!(helper.transactions(), paid, "{size} bytes are paid once");

        let by_roots = helper.path(&format!("by-roots-{size}"));
        helper.download(&by_roots, &["--roots", &root]).downloaded();
        assert_eq!(std::fs::read(&by_roots).unwrap(), content);
        let proven = helper.path(&format!("proven-{size}"));
        let arguments = ["--root", &root, "--proof"];
        helper.download(&proven, &arguments).downloaded();
        assert_eq!(std::fs::read(&proven).unwrap(), content);
    }
    assert_eq!(helper.transactions(), "0x4");
}

#[test]
fn fragments_are_listed_and_come_back_as_one_file() {
    let helper = Helper::start();
    let content = content(600_000);
    let file = helper.write("source", &content);
    let said = helper.upload(&file, &["--fragment-size", "262144"]);
    assert_eq!(said.code, Some(0), "{}", said.text);
    let roots = said
        .last_line()
        .strip_prefix("file uploaded in 3 fragments, roots = ")
        .unwrap_or_else(|| panic!("{}", said.text));
    let expected: Vec<String> = content.chunks(262_144).map(root_of).collect();
    assert_eq!(roots, expected.join(","));
    // The SDKs know one root only, and must not take a fragment for the file.
    assert_eq!(said.results(), [""; 0], "{}", said.text);
    let target = helper.path("copy");
    helper.download(&target, &["--roots", roots]).downloaded();
    assert_eq!(std::fs::read(&target).unwrap(), content);
}

#[test]
fn a_download_replaces_a_file_by_a_verified_one_only() {
    let helper = Helper::start();
    let content = content(300_000);
    let root = helper
        .upload(&helper.write("source", &content), &[])
        .uploaded();
    let target = helper.write("target", b"earlier");
    let unknown = format!("0x{}", "ab".repeat(32));
    helper.download(&target, &["--root", &unknown]).failed("ab");
    assert_eq!(std::fs::read(&target).unwrap(), b"earlier");
    // The paid cache of newer versions is not asked, and needs not exist.
    let hot = ["--roots", &root, "--hot-router", DEAD, "--chain-id=16602"];
    helper.download(&target, &hot).downloaded();
    assert_eq!(std::fs::read(&target).unwrap(), content);
    helper.download(&target, &["--roots", &root]).downloaded();
    let left: Vec<_> = std::fs::read_dir(helper.network.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains(".part") || name.contains(".plain"))
        .collect();
    assert_eq!(left, [""; 0]);
}

#[test]
fn encrypted_files_come_back_to_their_key_alone() {
    let helper = Helper::start();
    let content = content(300_000);
    let file = helper.write("source", &content);
    let (key, other) = (
        format!("0x{}", "11".repeat(32)),
        format!("0x{}", "22".repeat(32)),
    );
    let wallet = helper.key().to_owned();
    let stranger = helper.network.info.accounts[ACCOUNT + 1]
        .private_key
        .clone();
    let cases: [(&[&str], &[&str], &[&str]); 2] = [
        (
            &["--encryption-key", &key],
            &["--encryption-key", &key],
            &["--encryption-key", &other],
        ),
        (
            &["--encrypt"],
            &["--decrypt", "--private-key", &wallet],
            &["--decrypt=true", "--private-key", &stranger],
        ),
    ];
    for (number, (encrypt, decrypt, wrong)) in cases.into_iter().enumerate() {
        let root = helper.upload(&file, encrypt).uploaded();
        assert_ne!(root, root_of(&content), "what is stored is not the file");
        let target = helper.path(&format!("plain-{number}"));
        let with = |more: &[&str], target: &str| {
            helper.download(target, &[&["--root", root.as_str()], more].concat())
        };
        with(decrypt, &target).downloaded();
        assert_eq!(std::fs::read(&target).unwrap(), content);
        let stored = helper.path(&format!("stored-{number}"));
        with(&[], &stored).downloaded();
        let stored = std::fs::read(&stored).unwrap();
        assert!(stored.len() > content.len() && !stored.ends_with(&content[1_000..]));
        // The format has no tag: another key gives other bytes, as with the original.
        let garbled = helper.path(&format!("garbled-{number}"));
        with(wrong, &garbled).downloaded();
        let garbled = std::fs::read(&garbled).unwrap();
        assert!(garbled.len() == content.len() && garbled != content);
    }
    let without = ["--root", &root_of(&content), "--decrypt"];
    helper
        .download(&helper.path("none"), &without)
        .failed("ZG_PRIVATE_KEY");
}

#[test]
fn failures_end_with_one_and_a_reason() {
    let helper = Helper::start();
    let info = &helper.network.info;
    let file = helper.write("source", b"content");
    let root = root_of(b"content");
    let missing = helper.path("missing");
    let target = helper.path("target");
    let key = helper.key();
    let (url, indexer) = (info.rpc_url.as_str(), info.indexer_url.as_str());
    let source = ["upload", "--url", url, "--indexer", indexer, "--file"];
    let upload = |more: &[&str]| helper.run(&[&source, more].concat());
    upload(&[&missing, "--key", key]).failed("missing");
    upload(&[&file]).failed("--key-file");
    upload(&[&file, "--key", "0x1234"]).failed("key");
    upload(&[&file, "--key", key, "--bogus"]).failed("--bogus");
    upload(&[&file, "--key", key, "--node", url]).failed("--node");
    upload(&[&file, "--key", key, "--skip-tx=maybe"]).failed("true or false");
    helper.run(&["upload", "--key", key]).failed("--file");
    helper.run(&["download", "--root", &root]).failed("--file");
    helper.download(&target, &[]).failed("--root");
    helper.download(&target, &["--root", "0x12"]).failed("0x12");
    helper.download(&target, &["--root", &root]).failed("0x");
    let dead = ["download", "--root", &root, "--indexer", DEAD, "--file"];
    helper
        .run(&[&dead, [target.as_str()].as_slice()].concat())
        .failed("127.0.0.1:1");
    assert!(!PathBuf::from(&target).exists());
    assert_eq!(helper.transactions(), "0x0", "nothing was paid");
}

#[test]
fn endpoints_of_the_environment_win_and_that_is_said() {
    let helper = Helper::start();
    let file = helper.write("source", b"content");
    let mut command = helper.command(&[
        "upload",
        "--url",
        DEAD,
        "--indexer",
        DEAD,
        "--file",
        &file,
        "--skip-tx=false",
    ]);
    command
        .env("ZG_STORAGE_RPC_OVERRIDE", &helper.network.info.rpc_url)
        .env(
            "ZG_STORAGE_INDEXER_OVERRIDE",
            &helper.network.info.indexer_url,
        )
        .env("ZG_PRIVATE_KEY", helper.key());
    let said = helper.finish(command);
    assert_eq!(said.uploaded(), root_of(b"content"));
    let told = "Endpoints of the environment are used instead of the flags: \
                ZG_STORAGE_RPC_OVERRIDE, ZG_STORAGE_INDEXER_OVERRIDE";
    assert!(said.text.contains(told), "{}", said.text);
}

/// Other users of the machine see arguments and, with the same name, the environment.
#[cfg(target_os = "linux")]
#[test]
fn the_key_does_not_stay_in_the_process_list() {
    let helper = Helper::start();
    let file = helper.write("source", b"content");
    // It takes connections and never answers, so the helper waits.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let indexer = format!("http://{}", silent.local_addr().unwrap());
    let (url, key) = (helper.network.info.rpc_url.as_str(), helper.key());
    let process = Process::spawn(
        helper
            .command(&[
                "upload",
                "--url",
                url,
                "--key",
                key,
                "--indexer",
                &indexer,
                "--file",
                &file,
            ])
            .stderr(Stdio::null()),
    );
    let read = |name: &str| {
        let bytes = std::fs::read(format!("/proc/{}/{name}", process.id())).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    };
    let arguments = wait_for("stars in the arguments", Duration::from_secs(20), || {
        read("cmdline").filter(|arguments| arguments.contains("***"))
    });
    let digits = key.trim_start_matches("0x");
    assert!(arguments.contains("upload") && !arguments.contains(digits));
    assert!(!read("environ").unwrap().contains(digits));
}
