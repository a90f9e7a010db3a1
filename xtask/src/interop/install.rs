//! The published clients, installed from npm and PyPI with pinned versions into `target/clients`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

use crate::check::{command, has};

/// Where everything is after [`Clients::install`].
pub(crate) struct Clients {
    folder: PathBuf,
    unshare_flags: &'static [&'static str],
}

/// As root, and as anybody else where the kernel lets users make namespaces.
const UNSHARE_FLAGS: [&[&str]; 2] = [&["--net"], &["--net", "--user", "--map-root-user"]];
/// The helper executable inside the npm package, which the package looks for by this path.
const BUNDLED_HELPER: &str =
    "node_modules/@0gfoundation/0g-compute-ts-sdk/binary/0g-storage-client";

impl Clients {
    /// Installs what is not there yet.
    ///
    /// # Errors
    /// Says what is missing: Node, Python, or the right to make a network namespace.
    pub(crate) fn install(root: &Path) -> anyhow::Result<Self> {
        if !has("node") || !has("npm") {
            bail!("Node and npm were not found");
        }
        if node_version() < Some(20) {
            bail!("the npm packages need Node 20 or newer");
        }
        if !has("python3") {
            bail!("python3 was not found");
        }
        let unshare_flags = UNSHARE_FLAGS.into_iter().find(|flags| can_unshare(flags));
        let Some(unshare_flags) = unshare_flags else {
            bail!("`unshare --net` is not allowed here, neither as this user nor with --user");
        };
        let clients = Self {
            unshare_flags,
            ..Self::installed(root)
        };
        fs::create_dir_all(&clients.folder)?;
        clients.install_node(root)?;
        for name in ["0g-inference-sdk", "0g-storage-sdk"] {
            clients.install_python(root, name)?;
        }
        Ok(clients)
    }

    /// The same paths, without a look at whether something is there.
    pub(crate) fn installed(root: &Path) -> Self {
        Self {
            folder: root.join("target/clients"),
            unshare_flags: &[],
        }
    }

    pub(crate) fn unshare_flags(&self) -> &'static [&'static str] {
        self.unshare_flags
    }

    /// The folder that Node resolves packages from; scripts are copied into it.
    pub(crate) fn node(&self) -> PathBuf {
        self.folder.join("node")
    }

    /// The interpreter of one PyPI package's environment.
    pub(crate) fn python(&self, package: &str) -> PathBuf {
        self.folder.join(package).join("bin/python")
    }

    /// The entry of the npm command line.
    pub(crate) fn compute_cli(&self) -> PathBuf {
        self.node()
            .join("node_modules/@0gfoundation/0g-compute-ts-sdk/cli.commonjs/cli/index.js")
    }

    /// The helper that the npm package brings.
    pub(crate) fn go_helper(&self) -> PathBuf {
        self.folder.join("0g-storage-client-of-npm")
    }

    /// The helper of this build.
    pub(crate) fn our_helper(&self) -> PathBuf {
        self.node().join(BUNDLED_HELPER)
    }

    /// Puts our storage helper where the npm package looks for its own: it has no setting for that, and the one it brings
    /// has the public network's addresses from its caller.
    pub(crate) fn place_helper(&self, root: &Path) -> anyhow::Result<()> {
        let ours = root.join("target/debug/0g-storage-client");
        let place = self.our_helper();
        // A program that runs cannot be written to, but it can be replaced.
        let fresh = place.with_extension("new");
        fs::copy(&ours, &fresh).with_context(|| format!("cannot copy {}", ours.display()))?;
        fs::rename(&fresh, &place)?;
        Ok(())
    }

    fn install_node(&self, root: &Path) -> anyhow::Result<()> {
        let source = root.join("interop/node");
        let lock = fs::read(source.join("package-lock.json"))?;
        let marker = self.node().join("installed");
        let folder = self.node();
        if !is_current(&marker, &lock) {
            fs::create_dir_all(&folder)?;
            for file in ["package.json", "package-lock.json"] {
                fs::copy(source.join(file), folder.join(file))?;
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
            )?;
            fs::copy(folder.join(BUNDLED_HELPER), self.go_helper())?;
            fs::write(marker, hex::encode(Sha256::digest(&lock)))?;
        }
        // Node looks for packages beside the script.
        for entry in fs::read_dir(root.join("interop/clients"))? {
            let entry = entry?;
            fs::copy(entry.path(), folder.join(entry.file_name()))?;
        }
        Ok(())
    }

    fn install_python(&self, root: &Path, package: &str) -> anyhow::Result<()> {
        let pins = root.join("interop/python").join(format!("{package}.txt"));
        let content = fs::read(&pins)?;
        let environment = self.folder.join(package);
        let marker = environment.join("installed");
        if is_current(&marker, &content) {
            return Ok(());
        }
        command(
            root,
            "python3",
            &["-m", "venv", "--clear", &environment.to_string_lossy()],
            &[],
        )?;
        let arguments = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--requirement",
            &pins.to_string_lossy(),
        ];
        command(
            root,
            &self.python(package).to_string_lossy(),
            &arguments,
            &[],
        )?;
        fs::write(marker, hex::encode(Sha256::digest(&content)))?;
        Ok(())
    }
}

fn is_current(marker: &Path, pins: &[u8]) -> bool {
    fs::read_to_string(marker).is_ok_and(|found| found == hex::encode(Sha256::digest(pins)))
}

/// The first number of `v20.1.0`.
fn node_version() -> Option<u32> {
    let output = Command::new("node").arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.trim_start_matches('v').split('.').next()?.parse().ok()
}

fn can_unshare(flags: &[&str]) -> bool {
    Command::new("unshare")
        .args(flags)
        .arg("true")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
