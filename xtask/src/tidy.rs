//! `cargo xtask tidy`: the structure of the workspace against its own rules.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The edges between our crates; any other one fails. Development dependencies are free.
const EDGES: &[(&str, &[&str])] = &[
    ("protocol", &[]),
    ("tokenization", &["protocol"]),
    ("kernels", &[]),
    ("keccak", &[]),
    ("devchain", &[]),
    ("lifecycle", &["protocol"]),
    ("attestation", &["protocol"]),
    ("chain", &["protocol"]),
    ("storage", &["protocol", "chain", "keccak"]),
    ("model", &["kernels"]),
    ("trainer", &["model", "tokenization", "protocol"]),
    ("inference", &["model", "tokenization", "protocol"]),
    (
        "provider",
        &[
            "protocol",
            "lifecycle",
            "attestation",
            "chain",
            "storage",
            "tokenization",
            "model",
            "trainer",
            "inference",
        ],
    ),
    (
        "sdk",
        &[
            "protocol",
            "attestation",
            "chain",
            "storage",
            "tokenization",
        ],
    ),
    ("cli", &["sdk"]),
    (
        "devnet",
        &["provider", "sdk", "chain", "devchain", "storage"],
    ),
    // The network is an optional edge for shared builds; nothing of it is linked.
    ("python", &["sdk", "devnet"]),
];

/// Crates that the command line must not link, directly or through others.
const FORBIDDEN_IN_CLI: &[&str] = &[
    "revm",
    "zerog-kernels",
    "zerog-model",
    "zerog-devchain",
    "zerog-trainer",
];

/// Runs every structural check and prints the longest files for the reader.
pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    let mut problems = Vec::new();
    check_dependencies(root, &mut problems)?;
    check_cli_links(root, &mut problems)?;
    let files = tracked_files(root)?;
    check_notes(root, &files, &mut problems)?;
    check_links(root, &files, &mut problems)?;
    check_recorded_hashes(root, &mut problems)?;
    print_longest(root, &files)?;
    if !problems.is_empty() {
        for problem in &problems {
            eprintln!("tidy: {problem}");
        }
        bail!("{} structural problem(s)", problems.len());
    }
    Ok(())
}

fn check_dependencies(root: &Path, problems: &mut Vec<String>) -> anyhow::Result<()> {
    let metadata = metadata(root)?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata has no packages")?;
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(short) = name.strip_prefix("zerog-") else {
            continue;
        };
        let Some((_, allowed)) = EDGES.iter().find(|(crate_name, _)| *crate_name == short) else {
            problems.push(format!(
                "crate {name} is not in the dependency table of xtask/src/tidy.rs"
            ));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let is_normal = dependency["kind"].is_null();
            let target = dependency["name"]
                .as_str()
                .and_then(|name| name.strip_prefix("zerog-"));
            if let Some(target) = target.filter(|target| is_normal && !allowed.contains(target)) {
                problems.push(format!(
                    "{name} must not depend on zerog-{target} (docs/architecture.md, crates)"
                ));
            }
        }
    }
    Ok(())
}

fn check_cli_links(root: &Path, problems: &mut Vec<String>) -> anyhow::Result<()> {
    let output = Command::new("cargo")
        .args([
            "tree",
            "--package",
            "zerog-cli",
            "--edges",
            "normal",
            "--prefix",
            "none",
        ])
        .current_dir(root)
        .output()?;
    if !output.status.success() {
        bail!(
            "cargo tree failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let tree = String::from_utf8_lossy(&output.stdout);
    let linked: BTreeSet<&str> = tree
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    for forbidden in FORBIDDEN_IN_CLI
        .iter()
        .filter(|name| linked.contains(**name))
    {
        problems.push(format!(
            "0g-compute-cli links {forbidden}; it must stay free of tensor code and of an EVM"
        ));
    }
    Ok(())
}

fn metadata(root: &Path) -> anyhow::Result<Value> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--no-deps", "--locked"])
        .current_dir(root)
        .output()?;
    if !output.status.success() {
        bail!(
            "cargo metadata failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn tracked_files(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(root)
        .output()?;
    let listing = String::from_utf8(output.stdout)?;
    let files: Vec<PathBuf> = listing
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(PathBuf::from)
        .filter(|file| root.join(file).exists())
        .collect();
    if files.is_empty() {
        bail!("git lists no files: run this inside the repository");
    }
    Ok(files)
}

/// An open end in the code must say why it is open.
fn check_notes(root: &Path, files: &[PathBuf], problems: &mut Vec<String>) -> anyhow::Result<()> {
    let markers = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("unimplemented", "!("),
        concat!("to", "do!("),
    ];
    for file in files
        .iter()
        .filter(|file| has_extension(file, "rs") || has_extension(file, "sol"))
    {
        for (index, line) in fs::read_to_string(root.join(file))?.lines().enumerate() {
            if markers.iter().any(|marker| line.contains(marker)) {
                problems.push(format!(
                    "{}:{}: an open end: finish it or return a typed error",
                    file.display(),
                    index + 1
                ));
            }
        }
    }
    Ok(())
}

/// Relative links in Markdown files must lead somewhere.
fn check_links(root: &Path, files: &[PathBuf], problems: &mut Vec<String>) -> anyhow::Result<()> {
    for file in files.iter().filter(|file| has_extension(file, "md")) {
        let text = fs::read_to_string(root.join(file))?;
        let folder = root
            .join(file)
            .parent()
            .map(Path::to_path_buf)
            .unwrap_or_default();
        for target in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            let path = target.split('#').next().unwrap_or_default();
            let is_local =
                !path.is_empty() && !path.contains("://") && !path.starts_with("mailto:");
            if is_local && !folder.join(path).exists() {
                problems.push(format!("{}: dead link {target}", file.display()));
            }
        }
    }
    Ok(())
}

/// The small base model is what its recipe recorded.
fn check_recorded_hashes(root: &Path, problems: &mut Vec<String>) -> anyhow::Result<()> {
    let folder = root.join("fixtures/tiny-qwen");
    let recipe = fs::read(folder.join("RECIPE.json")).context("fixtures/tiny-qwen/RECIPE.json")?;
    let recipe: Value = serde_json::from_slice(&recipe)?;
    let recorded = [
        ("model.safetensors", "model_sha256"),
        ("tokenizer.json", "tokenizer_sha256"),
    ];
    for (name, member) in recorded {
        let content =
            fs::read(folder.join(name)).with_context(|| format!("fixtures/tiny-qwen/{name}"))?;
        let actual = hex::encode(Sha256::digest(content));
        if recipe[member].as_str() != Some(actual.as_str()) {
            problems.push(format!(
                "fixtures/tiny-qwen/{name} has SHA-256 {actual}, RECIPE.json records {}",
                recipe[member]
            ));
        }
    }
    Ok(())
}

fn print_longest(root: &Path, files: &[PathBuf]) -> anyhow::Result<()> {
    let mut lengths = Vec::new();
    for file in files.iter().filter(|file| has_extension(file, "rs")) {
        lengths.push((fs::read_to_string(root.join(file))?.lines().count(), file));
    }
    lengths.sort_unstable_by(|left, right| right.cmp(left));
    let longest: Vec<String> = lengths
        .iter()
        .take(5)
        .map(|(lines, file)| format!("{} ({lines})", file.display()))
        .collect();
    eprintln!("    longest files: {}", longest.join(", "));
    Ok(())
}

fn has_extension(file: &Path, extension: &str) -> bool {
    file.extension().is_some_and(|found| found == extension)
}
