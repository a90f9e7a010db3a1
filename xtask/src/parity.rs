//! `cargo xtask parity`: the trainer against PEFT and `transformers` from PyPI, on fresh random models.
//!
//! The reference libraries need several gigabytes, so their environment is shared between checkouts: it lies in
//! `$ZEROG_CACHE_DIR`, else `$XDG_CACHE_HOME/zerog`, else `~/.cache/zerog`, under the hash of its requirements.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::check::{cargo, command, has};

/// Where the recorded numbers lie, which the ordinary tests read.
const FIXTURES: &str = "fixtures/parity";

/// A Python environment with the reference libraries.
pub(crate) struct Reference {
    python: PathBuf,
}

impl Reference {
    /// Whether the environment is there already, so that using it costs no download.
    pub(crate) fn is_installed(root: &Path) -> bool {
        environment(root).is_ok_and(|folder| folder.join("complete").exists())
    }

    /// Installs the pinned libraries, unless they are there.
    pub(crate) fn install(root: &Path) -> anyhow::Result<Self> {
        let folder = environment(root)?;
        let python = folder.join("bin/python");
        let marker = folder.join("complete");
        if !marker.exists() {
            if !has("python3") {
                bail!("python3 was not found");
            }
            fs::create_dir_all(&folder)?;
            let folder_text = folder.to_string_lossy();
            command(root, "python3", &["-m", "venv", &folder_text], &[])?;
            let arguments = [
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--requirement",
                "parity/requirements.txt",
            ];
            command(root, &python.to_string_lossy(), &arguments, &[])?;
            fs::write(marker, "")?;
        }
        Ok(Self { python })
    }

    /// Trains every case by both sides, lets each read what the other wrote, and prints the differences.
    pub(crate) fn compare(&self, root: &Path) -> anyhow::Result<()> {
        let work = root.join("target/parity");
        let (theirs, ours) = (work.join("reference"), work.join("ours"));
        for folder in [&theirs, &ours] {
            if folder.exists() {
                fs::remove_dir_all(folder)?;
            }
            fs::create_dir_all(folder)?;
        }
        self.generate(root, &theirs)?;
        let (theirs, ours) = (theirs.to_string_lossy(), ours.to_string_lossy());
        // Of the whole workspace, so that the crates of the tests are used again and not built with other features.
        cargo(
            root,
            &["build", "--quiet", "--workspace", "--example", "parity"],
            &[],
        )?;
        let mut example = Command::new(root.join("target/debug/examples/parity"));
        example.args([&*theirs, &*ours]);
        let mut verification = Command::new(&self.python);
        verification.args(["parity/reference.py", "verify", &theirs, &ours]);

        let mut rows = measures(root, example)?;
        rows.extend(measures(root, verification)?);
        rows.sort_by(|left, right| left["case"].as_str().cmp(&right["case"].as_str()));
        print_table(&rows);
        let failed = rows.iter().filter(|row| row["passed"] != true).count();
        if rows.is_empty() || failed > 0 {
            bail!("{failed} of {} measures exceed their limit", rows.len());
        }
        Ok(())
    }

    /// A short run of the training benchmark against PEFT, for the record: tests measure no time, so a ratio that is
    /// missed here fails nothing.
    pub(crate) fn speed(&self, root: &Path) -> anyhow::Result<()> {
        let examples = ["--example", "training_bench", "--example", "peak"];
        let build = [&["build", "--quiet", "--workspace"], &examples[..]].concat();
        cargo(root, &build, &[])?;
        let results = root.join("target/parity/training.json");
        if results.exists() {
            fs::remove_file(&results)?;
        }
        let status = Command::new("python3")
            .args([
                "benches/training.py",
                "--shape",
                "small",
                "--only",
                "packed",
            ])
            .args(["--rounds", "1", "--steps", "1", "--bin-dir", "target/debug"])
            .arg("--json")
            .arg(&results)
            .arg("--python")
            .arg(&self.python)
            .current_dir(root)
            .stdin(Stdio::null())
            .status()
            .context("cannot start python3")?;
        if !results.exists() {
            bail!("the benchmark ended with {status}");
        }
        Ok(())
    }

    /// Replaces the recorded numbers by new ones.
    pub(crate) fn record(&self, root: &Path) -> anyhow::Result<()> {
        let folder = root.join(FIXTURES);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        self.generate(root, &folder)
    }

    fn generate(&self, root: &Path, folder: &Path) -> anyhow::Result<()> {
        let folder = folder.to_string_lossy();
        let arguments = ["parity/reference.py", "generate", &folder];
        command(root, &self.python.to_string_lossy(), &arguments, &[])
    }
}

/// Folder of the environment for the present requirements.
fn environment(root: &Path) -> anyhow::Result<PathBuf> {
    let requirements = fs::read(root.join("parity/requirements.txt"))?;
    let hash = hex::encode(Sha256::digest(requirements));
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = folder("ZEROG_CACHE_DIR")
        .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("zerog")))
        .or_else(|| Some(folder("HOME")?.join(".cache/zerog")))
        .context("no cache folder: set ZEROG_CACHE_DIR")?;
    Ok(cache.join(format!("parity-{}", &hash[..16])))
}

/// The JSON objects that a program prints, one a line. A failed measure is in its row; a program that fails without
/// one is an error.
fn measures(root: &Path, mut program: Command) -> anyhow::Result<Vec<Value>> {
    let output = program
        .current_dir(root)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start the comparison")?;
    let text = String::from_utf8(output.stdout)?;
    let rows: Vec<Value> = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    if !output.status.success() && rows.iter().all(|row| row["passed"] == true) {
        bail!("the comparison ended with {}", output.status);
    }
    Ok(rows)
}

fn print_table(rows: &[Value]) {
    eprintln!("| case | measure | difference | limit | |\n|---|---|---|---|---|");
    for row in rows {
        let text = |member: &str| row[member].as_str().unwrap_or_default().to_owned();
        let number = |member: &str| row[member].as_f64().unwrap_or(f64::NAN);
        eprintln!(
            "| {} | {} | {:.1e} | {:.0e} | {} |",
            text("case"),
            text("measure"),
            number("value"),
            number("limit"),
            if row["passed"] == true {
                "ok"
            } else {
                "EXCEEDED"
            },
        );
    }
}
