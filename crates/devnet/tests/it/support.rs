//! Starting the real binaries, waiting for what they say, and stopping them by process id whatever happens.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use zerog_devnet::ReadyInfo;

/// The `0g-compute-devnet` binary of this build.
pub(crate) fn devnet_binary() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_0g-compute-devnet"))
}

/// Another binary of the workspace: named by the environment, or beside this package's own.
pub(crate) fn binary(variable: &str, name: &str) -> PathBuf {
    let path = std::env::var_os(variable)
        .map_or_else(|| devnet_binary().with_file_name(name), PathBuf::from);
    assert!(
        path.exists(),
        "{} is missing: run `cargo build --workspace --bins` first",
        path.display()
    );
    path
}

/// A child process that is killed when it goes out of scope.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn spawn(command: &mut Command) -> Self {
        Self(
            command
                .stdin(Stdio::null())
                .spawn()
                .expect("the binary starts"),
        )
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// SIGKILL, as a power cut would.
    pub(crate) fn kill(&mut self) {
        self.0.kill().expect("the process is ours");
        self.0.wait().expect("the process is ours");
    }

    pub(crate) fn exit_status(&mut self) -> Option<std::process::ExitStatus> {
        self.0.try_wait().expect("the process is ours")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running `0g-compute-devnet up` on free ports.
pub(crate) struct Network {
    pub(crate) info: ReadyInfo,
    pub(crate) folder: tempfile::TempDir,
    _process: Process,
}

impl Network {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ready_file = folder.path().join("ready.json");
        let log = fs::File::create(folder.path().join("devnet.log")).unwrap();
        let mut process = Process::spawn(
            Command::new(devnet_binary())
                .args([
                    "up",
                    "--rpc-port",
                    "0",
                    "--storage-port",
                    "0",
                    "--provider-port",
                    "0",
                    "--ready-file",
                ])
                .arg(&ready_file)
                .args(arguments)
                .stdout(Stdio::null())
                .stderr(log),
        );
        let text = wait_for("the network to be ready", Duration::from_secs(60), || {
            if let Some(status) = process.exit_status() {
                panic!(
                    "the network ended with {status}: {}",
                    fs::read_to_string(folder.path().join("devnet.log")).unwrap()
                );
            }
            fs::read_to_string(&ready_file).ok()
        });
        Self {
            info: serde_json::from_str(&text).unwrap(),
            folder,
            _process: process,
        }
    }

    /// Moves the chain's clock.
    pub(crate) fn advance_time(&self, seconds: u64) {
        self.rpc("evm_increaseTime", json!([seconds]));
        self.rpc("evm_mine", json!([]));
    }

    /// A call of the chain that must succeed.
    pub(crate) fn rpc(&self, method: &str, parameters: Value) -> Value {
        let host = self.info.rpc_url.strip_prefix("http://").unwrap();
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters});
        let body = body.to_string();
        let mut stream = TcpStream::connect(host).unwrap();
        write!(
            stream,
            "POST / HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        let mut answer: Value = serde_json::from_str(body).expect("JSON");
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].take()
    }
}

/// Polls until `attempt` gives something, or panics naming what was waited for.
pub(crate) fn wait_for<T>(
    what: &str,
    timeout: Duration,
    mut attempt: impl FnMut() -> Option<T>,
) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(started.elapsed() < timeout, "waited {timeout:?} for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The command line with a profile of its own.
pub(crate) struct Cli {
    home: PathBuf,
}

impl Cli {
    /// A profile on the given network, logged in as one of its accounts.
    pub(crate) fn logged_in(network: &Network, account: usize) -> Self {
        let home = network.folder.path().join(format!("home-{account}"));
        fs::create_dir_all(&home).unwrap();
        let key_file = home.join("key");
        fs::write(&key_file, &network.info.accounts[account].private_key).unwrap();
        let cli = Self { home };
        let info = &network.info;
        cli.ok(&[
            "setup-network",
            "--network",
            "devnet",
            "--rpc",
            &info.rpc_url,
            "--storage-indexer",
            &info.indexer_url,
        ]);
        cli.ok(&[
            "login",
            "--plaintext",
            "--key-file",
            key_file.to_str().unwrap(),
        ]);
        cli
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        let program = Command::new(binary("ZEROG_CLI_BINARY", "0g-compute-cli"));
        self.run_as(program, arguments)
    }

    /// Starts a command that runs until it is stopped.
    pub(crate) fn spawn(&self, arguments: &[&str], stdout: fs::File, stderr: fs::File) -> Process {
        let mut program = Command::new(binary("ZEROG_CLI_BINARY", "0g-compute-cli"));
        let command = self.prepare(&mut program, arguments);
        Process::spawn(command.stdout(stdout).stderr(stderr))
    }

    /// Runs the command line by another command that ends in it.
    pub(crate) fn run_as(&self, mut program: Command, arguments: &[&str]) -> Output {
        self.prepare(&mut program, arguments)
            .output()
            .expect("the command line starts")
    }

    fn prepare<'a>(&self, program: &'a mut Command, arguments: &[&str]) -> &'a mut Command {
        program
            .args(arguments)
            .env("HOME", &self.home)
            .env_remove("ZG_PRIVATE_KEY")
            .env("NO_COLOR", "1")
            .current_dir(&self.home)
            .stdin(Stdio::null())
    }

    /// Runs a command that must succeed and returns what it printed.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        self.told(arguments).0
    }

    /// Runs a command that must succeed and returns what it printed, and what it said on standard error.
    pub(crate) fn told(&self, arguments: &[&str]) -> (String, String) {
        let output = self.run(arguments);
        let (stdout, stderr) = texts(&output);
        assert!(
            output.status.success(),
            "{arguments:?} ended with {}\n{stdout}\n{stderr}",
            output.status
        );
        (stdout, stderr)
    }

    /// Runs a command with `--json` that must succeed and returns its object.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let mut arguments = arguments.to_vec();
        arguments.push("--json");
        let text = self.ok(&arguments);
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{arguments:?} printed no JSON: {error}\n{text}"))
    }

    /// Runs a command that must fail with the given exit code and returns what it said.
    pub(crate) fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let (stdout, stderr) = texts(&output);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}\n{stdout}\n{stderr}"
        );
        stderr
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.home.join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn write(&self, name: &str, content: &str) -> String {
        fs::write(self.home.join(name), content).unwrap();
        self.path(name)
    }
}

fn texts(output: &Output) -> (String, String) {
    (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// A file of `fixtures/`.
pub(crate) fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures")
        .join(name);
    path.canonicalize()
        .expect("the fixture exists")
        .to_str()
        .unwrap()
        .to_owned()
}
