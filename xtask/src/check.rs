//! `cargo xtask test`: every check in one order, each part announced, each skip said.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};

use crate::{clients, cuda, interop, openai_clients, parity, python, tidy};

/// Runs all checks. With `all`, a part that cannot run is a failure.
pub(crate) fn run(root: &Path, all: bool, test_arguments: &[String]) -> anyhow::Result<()> {
    let mut skipped = Vec::new();
    let started = Instant::now();

    part("format", || cargo(root, &["fmt", "--all", "--check"], &[]))?;
    part("structure", || tidy::run(root))?;
    part("lints", || {
        let start = ["clippy", "--workspace", "--all-targets", "--quiet"];
        let rest = ["--", "-D", "warnings"];
        cargo(root, &[&start[..], &cuda::FEATURES, &rest].concat(), &[])
    })?;
    part("documents", || {
        let flags = [("RUSTDOCFLAGS", "-D warnings")];
        cargo(
            root,
            &[
                "doc",
                "--workspace",
                "--no-deps",
                "--document-private-items",
                "--quiet",
            ],
            &flags,
        )
    })?;
    part("binaries", || build_binaries(root))?;
    // Tests are built once: with the code for devices where its tests can run. Binaries are as users build them.
    let compiler = cuda::Compiler::install(root);
    let features = match &compiler {
        Ok(_) => &cuda::FEATURES[..],
        Err(error) => {
            skipped.push(format!("CUDA without a GPU: {error:#}"));
            &[]
        }
    };
    part("tests", || {
        let bins = root.join("target/debug");
        let binary = |name: &str| bins.join(name).to_string_lossy().into_owned();
        let (cli, provider, devnet) = (
            binary("0g-compute-cli"),
            binary("0g-compute-provider"),
            binary("0g-compute-devnet"),
        );
        let mut environment = vec![
            ("ZEROG_CLI_BINARY", cli.as_str()),
            ("ZEROG_PROVIDER_BINARY", provider.as_str()),
            ("ZEROG_DEVNET_BINARY", devnet.as_str()),
        ];
        let compiler = compiler.as_ref().ok().map(cuda::Compiler::environment);
        environment.extend(
            compiler
                .as_ref()
                .map(|(name, value)| (*name, value.as_str())),
        );
        let mut arguments = vec!["test", "--workspace", "--no-fail-fast", "--quiet"];
        arguments.extend(features);
        arguments.extend(test_arguments.iter().map(String::as_str));
        cargo(root, &arguments, &environment)
    })?;

    if all {
        part("mutated evidence", || mutations(root, features))?;
    }

    if has("node") && has("npm") {
        match install_contract_compiler(root) {
            Ok(()) => part("contract artifacts", || contracts(root, true))?,
            Err(error) => skipped.push(format!("contract artifacts: {error:#}")),
        }
    } else {
        skipped.push("contract artifacts: Node and npm were not found".to_owned());
    }
    for client in clients::ALL {
        match client.install(root) {
            Ok(installed) => part(client.title(), || installed.run(root))?,
            Err(error) => skipped.push(format!("{}: {error:#}", client.title())),
        }
    }
    for client in openai_clients::ALL {
        match client.install(root) {
            Ok(installed) => part(client.title(), || installed.run(root))?,
            Err(error) => skipped.push(format!("{}: {error:#}", client.title())),
        }
    }
    if all || parity::Reference::is_installed(root) {
        match parity::Reference::install(root) {
            Ok(reference) => {
                part("parity with PEFT", || reference.compare(root))?;
                part("training speed, for the record", || reference.speed(root))?;
            }
            Err(error) => skipped.push(format!("parity with PEFT: {error:#}")),
        }
    } else {
        skipped.push(
            "parity with PEFT: its libraries are not installed (`cargo xtask parity`)".to_owned(),
        );
    }
    match python::install(root) {
        Ok(tools) => {
            part("Python package", || tools.run(root, &[]))?;
            // The text is kept beside the project, not in it: its absence is said, and is no failure of a clone.
            if let Some(reason) = python::missing_product_text() {
                eprintln!("not run: {reason}");
            }
        }
        Err(error) => skipped.push(format!("Python package: {error:#}")),
    }
    if all {
        match interop::Clients::install(root) {
            Ok(clients) => part("published clients", || {
                interop::run(root, &clients, &[], interop::Document::Check)
            })?,
            Err(error) => skipped.push(format!("published clients: {error:#}")),
        }
    } else {
        skipped.push("published clients: run with --all, or `cargo xtask interop`".to_owned());
    }
    if std::env::var_os("TEST_DATABASE_URL").is_none() {
        skipped.push(
            "the store suite on PostgreSQL: TEST_DATABASE_URL is not set (SQLite was tested)"
                .to_owned(),
        );
    }

    for reason in &skipped {
        eprintln!("skipped: {reason}");
    }
    if all && !skipped.is_empty() {
        bail!("--all was given and {} part(s) were skipped", skipped.len());
    }
    eprintln!("all checks passed in {} s", started.elapsed().as_secs());
    Ok(())
}

/// Builds the three binaries and this one.
pub(crate) fn build_binaries(root: &Path) -> anyhow::Result<()> {
    cargo(root, &["build", "--workspace", "--bins", "--quiet"], &[])
}

/// Tries a hundred thousand changed quotes and reports, in the test programs that were built with these features.
pub(crate) fn mutations(root: &Path, features: &[&str]) -> anyhow::Result<()> {
    let start = ["test", "--workspace", "--test", "it", "--quiet"];
    let arguments = [&start[..], features, &["--", "mutations::"]].concat();
    cargo(root, &arguments, &[("ZEROG_MUTATED_QUOTES", "100000")])
}

/// Rebuilds the contract artifacts, or compares a rebuild with them.
pub(crate) fn contracts(root: &Path, check: bool) -> anyhow::Result<()> {
    install_contract_compiler(root)?;
    let mut arguments = vec!["build.mjs"];
    if check {
        arguments.push("--check");
    }
    command(&root.join("contracts"), "node", &arguments, &[])
}

/// Lets the gas test write its table instead of comparing it.
pub(crate) fn gas(root: &Path) -> anyhow::Result<()> {
    let arguments = ["test", "--package", "zerog-chain", "--test", "it", "gas::"];
    cargo(root, &arguments, &[("ZEROG_WRITE_GAS_TABLE", "1")])
}

fn install_contract_compiler(root: &Path) -> anyhow::Result<()> {
    let folder = root.join("contracts");
    if folder.join("node_modules/solc").exists() {
        return Ok(());
    }
    command(
        &folder,
        "npm",
        &[
            "ci",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--silent",
        ],
        &[],
    )
}

fn part(name: &str, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    eprintln!("==> {name}");
    let started = Instant::now();
    work().with_context(|| format!("the part `{name}` failed"))?;
    eprintln!("    {name}: passed in {} s", started.elapsed().as_secs());
    Ok(())
}

pub(crate) fn cargo(
    root: &Path,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> anyhow::Result<()> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    command(root, &cargo, arguments, environment)
}

pub(crate) fn command(
    folder: &Path,
    program: &str,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> anyhow::Result<()> {
    let status = Command::new(program)
        .args(arguments)
        .envs(environment.iter().copied())
        .current_dir(folder)
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot start {program}"))?;
    if !status.success() {
        bail!("{program} {} ended with {status}", arguments.join(" "));
    }
    Ok(())
}

pub(crate) fn has(program: &str) -> bool {
    succeeds(Command::new(program).arg("--version"))
}

fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
