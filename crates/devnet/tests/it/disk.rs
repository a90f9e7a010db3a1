//! Full disks and cut downloads: one clear message, an exit code of its own, nothing half-written, and the same command goes
//! on when there is room again.
//!
//! A disk is full here in two ways: as a small file system of its own where the test may mount one, and always as a limit on
//! the size of files, which makes the same writes fail.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::provider_process::{BOTH_ROLES, ProviderProcess};
use crate::support::{Cli, Network, binary, fixture, wait_for};

const MODEL: &str = "Qwen2.5-0.5B-Instruct";
const PARAMS: &str = r#"{"max_steps": 2, "per_device_train_batch_size": 2, "max_seq_length": 128}"#;
/// Less than an adapter, more than everything else that these commands write.
const ROOM_KIB: u32 = 64;

/// A folder that takes [`ROOM_KIB`], or what the test says, and no more.
struct SmallDisk {
    folder: PathBuf,
    is_mounted: bool,
}

impl SmallDisk {
    /// A file system of its own; `None` where mounting is not allowed.
    fn mounted(folder: PathBuf, room_kib: u32) -> Option<Self> {
        fs::create_dir(&folder).unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={room_kib}k"), "tmpfs"])
            .arg(&folder)
            .stderr(Stdio::null())
            .status();
        status.is_ok_and(|status| status.success()).then_some(Self {
            folder,
            is_mounted: true,
        })
    }

    /// An ordinary folder, for commands that may not write larger files.
    fn limited(folder: PathBuf) -> Self {
        fs::create_dir(&folder).unwrap();
        Self {
            folder,
            is_mounted: false,
        }
    }

    /// Takes all the room that is left, until the file is removed.
    fn fill(&self) -> PathBuf {
        let path = self.folder.join("filler");
        let mut file = fs::File::create(&path).unwrap();
        let block = [0; 4096];
        while std::io::Write::write_all(&mut file, &block).is_ok() {}
        path
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    fn run(&self, cli: &Cli, arguments: &[&str]) -> Output {
        let program = binary("ZEROG_CLI_BINARY", "0g-compute-cli");
        if self.is_mounted {
            return cli.run_as(Command::new(program), arguments);
        }
        // The limit counts blocks of 512 bytes; without the trap it would end the process.
        let script = format!(
            r#"trap "" XFSZ; ulimit -f {}; exec "$0" "$@""#,
            2 * ROOM_KIB
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script]).arg(program);
        cli.run_as(command, arguments)
    }

    /// Runs a command that must find the disk full, and checks that it leaves nothing.
    fn refuses(&self, cli: &Cli, arguments: &[&str]) {
        let before = files(&self.folder);
        let output = self.run(cli, &[arguments, &["--json"]].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(11), "{arguments:?}\n{stderr}");
        let failure: Value = serde_json::from_str(stderr.lines().last().unwrap()).unwrap();
        assert_eq!(failure["code"], "disk_full", "{failure}");
        let message = failure["error"].as_str().unwrap();
        assert!(
            message.contains("no space left") && message.contains("run the command again"),
            "{message}"
        );
        assert!(message.contains(self.folder.to_str().unwrap()), "{message}");
        assert_eq!(files(&self.folder), before, "{arguments:?} left something");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if self.is_mounted {
            let _ = Command::new("umount").arg(&self.folder).status();
        }
    }
}

/// Every file and folder below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        }
        found.push(path);
    }
    found.sort();
    found
}

fn delivered_task(cli: &Cli, provider: &str) -> String {
    cli.ok(&["deposit", "--amount", "4"]);
    cli.ok(&[
        "transfer-fund",
        "--provider",
        provider,
        "--amount",
        "1",
        "--service",
        "fine-tuning",
    ]);
    let created = cli.json(&[
        "fine-tuning",
        "create-task",
        "--provider",
        provider,
        "--model",
        MODEL,
        "--dataset-path",
        &fixture("datasets/star-island.completion.jsonl"),
        "--config-path",
        &cli.write("params.json", PARAMS),
        "--wait",
    ]);
    created["task_id"].as_str().unwrap().to_owned()
}

#[test]
fn a_full_disk_at_the_user_leaves_nothing_and_acknowledges_nothing() {
    let network = Network::start(&[]);
    let provider = network.info.provider_address.to_string();
    let cli = Cli::logged_in(&network, 5);
    let task = delivered_task(&cli, &provider);
    let of_task = ["--provider", provider.as_str(), "--task-id", &task];
    let at = |name: &str| network.folder.path().join(name);
    let mut disks = vec![SmallDisk::limited(at("limited"))];
    disks.extend(SmallDisk::mounted(at("mounted"), ROOM_KIB));

    for disk in &disks {
        for method in ["tee", "0g-storage"] {
            let target = disk.path("adapter.enc");
            let download = [
                &["fine-tuning", "acknowledge-model", "--data-path", &target][..],
                &["--download-method", method],
                &of_task,
            ];
            disk.refuses(&cli, &download.concat());
        }
    }
    let show = ["fine-tuning", "get-task", "--provider", &provider];
    assert_eq!(
        cli.json(&show)["progress"],
        "Delivered",
        "a file that could not be kept is not acknowledged"
    );

    let encrypted = cli.path("adapter.enc");
    let acknowledge = [
        &[
            "fine-tuning",
            "acknowledge-model",
            "--data-path",
            &encrypted,
        ][..],
        &of_task,
    ];
    cli.ok(&acknowledge.concat());
    let (zip, unpacked) = (cli.path("adapter.zip"), cli.path("unpacked"));
    let decrypt = |output: &str| {
        let command = ["fine-tuning", "decrypt-model", "--encrypted-model"];
        cli.ok(&[&command[..], &[&encrypted, "--output", output], &of_task].concat())
    };
    for disk in &disks {
        let target = disk.path("adapter.zip");
        let command = ["fine-tuning", "decrypt-model", "--encrypted-model"];
        let command = [&command[..], &[&encrypted, "--output", &target], &of_task].concat();
        disk.refuses(&cli, &command);
        let report = disk.path("report");
        let verify = ["fine-tuning", "verify", "--provider", &provider];
        let output = disk.run(&cli, &[&verify[..], &["--output-dir", &report]].concat());
        assert_eq!(output.status.code(), Some(12), "what fits is written");
    }
    decrypt(&zip);
    assert_eq!(&fs::read(&zip).unwrap()[..4], b"PK\x03\x04");
    assert!(!Path::new(&unpacked).exists());
}

#[test]
fn a_cut_download_goes_on_where_it_stopped() {
    let network = Network::start(&[]);
    let provider = network.info.provider_address.to_string();
    let cli = Cli::logged_in(&network, 6);
    let task = delivered_task(&cli, &provider);
    let download = |path: &str| {
        let output = cli.run(&[
            "fine-tuning",
            "acknowledge-model",
            "--provider",
            &provider,
            "--task-id",
            &task,
            "--data-path",
            path,
            "--download-method",
            "tee",
            "--json",
        ]);
        assert!(output.status.success());
        let progress: Vec<Value> = String::from_utf8(output.stderr)
            .unwrap()
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        progress
    };
    let whole = cli.path("whole.enc");
    download(&whole);
    let bytes = fs::read(&whole).unwrap();

    // What a stopped command leaves behind.
    let cut = cli.path("cut.enc");
    let half = bytes.len() / 2;
    fs::write(format!("{cut}.partial"), &bytes[..half]).unwrap();
    let progress = download(&cut);
    assert_eq!(fs::read(&cut).unwrap(), bytes);
    assert!(!Path::new(&format!("{cut}.partial")).exists());
    let transfers: Vec<u64> = progress
        .iter()
        .filter(|news| news["event"] == "transfer")
        .map(|news| news["done_bytes"].as_u64().unwrap())
        .collect();
    assert!(
        !transfers.is_empty() && transfers.iter().all(|done| *done > half as u64),
        "{transfers:?}"
    );
}

/// A provider whose disk is full refuses uploads, waits with what it has begun, and goes on when there is room: nothing
/// fails, nothing is lost, nothing half-written stays. Only a file system of its own can be filled as a whole, database
/// included, so this needs the right to mount one.
#[test]
fn a_full_disk_at_the_provider_is_waited_out() {
    let network = Network::start(&["--no-provider"]);
    let Some(disk) = SmallDisk::mounted(network.folder.path().join("provider"), 64 << 10) else {
        eprintln!("not run: a file system cannot be mounted by this user");
        return;
    };
    let provider = ProviderProcess::start(&network, "provider", 2, BOTH_ROLES);
    let address = provider.address.to_string();
    let cli = Cli::logged_in(&network, 5);
    provider.wait_acknowledged(&cli, &["fine-tuning"]);
    cli.ok(&["deposit", "--amount", "4"]);
    cli.ok(&[
        "transfer-fund",
        "--provider",
        &address,
        "--amount",
        "1",
        "--service",
        "fine-tuning",
    ]);
    let dataset = fixture("datasets/star-island.completion.jsonl");
    let upload = [
        "fine-tuning",
        "upload",
        "--data-path",
        &dataset,
        "--provider",
        &address,
    ];
    let stored = |folder: &str| files(&disk.folder.join(folder)).len();
    let filler = disk.fill();
    let refused = cli.fails(6, &upload);
    assert!(
        refused.contains("cannot store the file at the moment"),
        "{refused}"
    );
    assert_eq!((stored("incoming"), stored("datasets")), (0, 0));
    fs::remove_file(&filler).unwrap();
    cli.ok(&upload);
    assert_eq!((stored("incoming"), stored("datasets")), (0, 1));

    let params =
        r#"{"num_train_epochs": 4, "per_device_train_batch_size": 8, "max_seq_length": 128}"#;
    let created = cli.json(&[
        "fine-tuning",
        "create-task",
        "--provider",
        &address,
        "--model",
        MODEL,
        "--dataset-path",
        &dataset,
        "--config-path",
        &cli.write("params.json", params),
    ]);
    let task = created["task_id"].as_str().unwrap();
    let show = [
        "fine-tuning",
        "get-task",
        "--provider",
        &address,
        "--task",
        task,
    ];
    wait_for("the training to begin", Duration::from_secs(60), || {
        (cli.json(&show)["progress"] == "Training").then_some(())
    });
    let filler = disk.fill();
    wait_for(
        "the full disk to be noticed",
        Duration::from_secs(120),
        || provider.log().contains("an effect failed").then_some(()),
    );
    // Longer than all attempts that a failing training has, were they counted.
    std::thread::sleep(Duration::from_secs(10));
    let view = cli.json(&show);
    assert_eq!(view["progress"], "Training", "{view}\n{}", provider.log());
    fs::remove_file(&filler).unwrap();
    wait_for("the task to be delivered", Duration::from_secs(240), || {
        let view = cli.json(&show);
        assert_ne!(view["progress"], "Failed", "{view}\n{}", provider.log());
        (view["progress"] == "Delivered").then_some(())
    });
    let is_half = |path: &PathBuf| {
        (path.file_name()).is_some_and(|name| name.to_string_lossy().contains("tmp"))
    };
    let halves = files(&disk.folder).into_iter().find(is_half);
    assert_eq!(halves, None, "a half-written file stays");
}
