//! A run that is killed again and again ends with the very bytes of a run that was not, whatever it learns.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use zerog_trainer::{JobDirectory, Progress, exit, open_file};

use crate::workshop::{Case, classification, dora, key, language, preference};

const CHILD_JOB: &str = "ZEROG_TEST_KILLED_JOB";
/// Kills of each run.
const KILLS: usize = 3;

/// Not a test by itself: the process that the next test starts.
#[test]
fn child() {
    if let Some(directory) = std::env::var_os(CHILD_JOB) {
        let status = zerog_trainer::child_status(std::path::Path::new(&directory));
        std::process::exit(i32::from(status));
    }
}

fn spawn(directory: &JobDirectory) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kills::child", "--nocapture"])
        .env(CHILD_JOB, directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    writeln!(input, "{}", hex::encode(key().expose_bytes())).unwrap();
    child
}

/// The progress records among what the test harness prints.
fn records(child: &mut Child) -> impl Iterator<Item = Progress> + use<> {
    BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
        .filter_map(|line| serde_json::from_str(&line[line.find('{')?..]).ok())
}

/// Kills the run after as many records as `random` says; returns whether it was killed before its end.
fn kill_somewhere(directory: &JobDirectory, random: u64) -> bool {
    let mut child = spawn(directory);
    let count = 1 + (random % 9) as usize;
    let seen = records(&mut child).take(count).count();
    // `SIGKILL`: the process has no time for anything, and may be in the middle of a file.
    child.kill().unwrap();
    let status = child.wait().unwrap();
    seen == count && status.code() != Some(i32::from(exit::DONE))
}

#[test]
fn a_killed_run_of_every_method_gives_the_same_archive() {
    let folder = tempfile::tempdir().unwrap();
    // The seed is printed, so that a failure can be repeated.
    let mut random = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_nanos() as u64;
    println!("seed {random}");
    for case in [
        language(),
        dora(),
        preference(),
        classification(folder.path()),
    ] {
        let Case { name, .. } = case;
        let whole = case.run().archive;
        let parts = tempfile::tempdir().unwrap();
        let parts = case.prepare(parts.path());
        let mut kills = 0;
        for _ in 0..KILLS {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            kills += usize::from(kill_somewhere(&parts, random >> 33));
        }
        assert!(kills > 0, "{name}: no run was killed before its end");
        let mut child = spawn(&parts);
        let last = records(&mut child).last();
        assert_eq!(
            child.wait().unwrap().code(),
            Some(i32::from(exit::DONE)),
            "{name}: {last:?}"
        );
        let archive = open_file(&parts.adapter(), &key()).unwrap();
        assert!(archive == whole, "{name}: the archives differ");
    }
}
