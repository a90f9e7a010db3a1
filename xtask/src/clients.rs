//! The published chain libraries against the embedded chain: each probe is an ordinary script that takes the RPC URL.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};

use crate::check::{command, has};

const ETHERS: &str = "ethers@6.17.0";
const WEB3: &str = "web3==8.0.0";

/// A library that is probed.
#[derive(Clone, Copy)]
pub(crate) enum Client {
    Ethers,
    Web3,
}

/// All libraries.
pub(crate) const ALL: [Client; 2] = [Client::Ethers, Client::Web3];

/// A probe that is ready to run.
pub(crate) struct Installed {
    program: PathBuf,
    script: PathBuf,
}

impl Client {
    /// The name of this part of the checks.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Ethers => "ethers against the embedded chain",
            Self::Web3 => "web3.py against the embedded chain",
        }
    }

    /// Installs the pinned library below `target/clients`, unless it is there.
    pub(crate) fn install(self, root: &Path) -> anyhow::Result<Installed> {
        let folder = root.join("target/clients");
        fs::create_dir_all(&folder)?;
        let scripts = root.join("crates/devchain/tests/clients");
        match self {
            Self::Ethers => {
                if !has("node") || !has("npm") {
                    bail!("Node and npm were not found");
                }
                if !folder.join("node_modules/ethers").exists() {
                    let folder_text = folder.to_string_lossy();
                    let arguments = [
                        "install",
                        "--prefix",
                        &folder_text,
                        "--no-save",
                        "--ignore-scripts",
                        "--no-audit",
                        "--no-fund",
                        "--silent",
                        ETHERS,
                    ];
                    command(root, "npm", &arguments, &[])?;
                }
                // Node looks for packages beside the script.
                let script = folder.join("ethers.mjs");
                fs::copy(scripts.join("ethers.mjs"), &script)?;
                Ok(Installed {
                    program: "node".into(),
                    script,
                })
            }
            Self::Web3 => {
                if !has("python3") {
                    bail!("python3 was not found");
                }
                let environment = folder.join("venv");
                let python = environment.join("bin/python");
                let marker = environment.join(WEB3);
                if !marker.exists() {
                    command(
                        root,
                        "python3",
                        &["-m", "venv", &environment.to_string_lossy()],
                        &[],
                    )?;
                    let arguments = [
                        "-m",
                        "pip",
                        "install",
                        "--quiet",
                        "--disable-pip-version-check",
                        WEB3,
                    ];
                    command(root, &python.to_string_lossy(), &arguments, &[])?;
                    fs::write(marker, "")?;
                }
                Ok(Installed {
                    program: python,
                    script: scripts.join("web3_probe.py"),
                })
            }
        }
    }
}

impl Installed {
    /// Runs the probe against a fresh chain and ends that chain, whatever happens.
    pub(crate) fn run(&self, root: &Path) -> anyhow::Result<()> {
        let (mut server, url) = start_chain(root)?;
        let program = self.program.to_string_lossy();
        let result = command(root, &program, &[&self.script.to_string_lossy(), &url], &[]);
        server.kill().context("cannot stop the chain")?;
        server.wait()?;
        result
    }
}

fn start_chain(root: &Path) -> anyhow::Result<(Child, String)> {
    command(
        root,
        "cargo",
        &["build", "--quiet", "--workspace", "--example", "devchain"],
        &[],
    )?;
    let mut server = Command::new(root.join("target/debug/examples/devchain"))
        .arg("0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the chain")?;
    let stdout = server.stdout.take().context("the chain has no output")?;
    let mut url = String::new();
    BufReader::new(stdout).read_line(&mut url)?;
    if !url.starts_with("http") {
        server.kill()?;
        server.wait()?;
        bail!("the chain did not print its address");
    }
    Ok((server, url.trim().to_owned()))
}
