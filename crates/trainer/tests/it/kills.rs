//! A run that is killed again and again ends with the very bytes of a run that was not, whatever it learns.

use zerog_trainer::{JobDirectory, exit, open_file};

use crate::workshop::{Case, classification, dora, key, language, preference, records, spawn};

/// Kills of each run.
const KILLS: usize = 3;

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
