//! `cargo xtask python`: the wheel of the Python package, installed into an environment of its own, and its tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::check::command;

/// What the build and the tests need, pinned; `bindings/python/pyproject.toml` names the same versions.
const TOOLS: [&str; 4] = [
    "maturin==1.16.0",
    "pytest==9.2.0",
    "mypy==2.4.1",
    "requests==2.34.2",
];
/// Oldest Python that the package supports.
const OLDEST: (u32, u32) = (3, 10);

/// An environment with everything that is needed.
pub(crate) struct Tools {
    environment: PathBuf,
}

/// Why a test is left out although Python is there.
pub(crate) fn missing_product_text() -> Option<String> {
    std::env::var_os("PRODUCT_TEXT_DIR")
        .is_none()
        .then(|| "the product text's own example in Python: PRODUCT_TEXT_DIR is not set".to_owned())
}

/// Makes the environment below `target/python`, unless it is there.
pub(crate) fn install(root: &Path) -> anyhow::Result<Tools> {
    let python = std::env::var("ZEROG_PYTHON").unwrap_or_else(|_| "python3".into());
    let version = version_of(&python)?;
    if version < OLDEST {
        bail!(
            "{python} is version {}.{}, the package needs {}.{} (name another with ZEROG_PYTHON)",
            version.0,
            version.1,
            OLDEST.0,
            OLDEST.1
        );
    }
    let environment = root.join(format!("target/python/venv-{}.{}", version.0, version.1));
    let tools = Tools { environment };
    let marker = tools.environment.join("installed");
    let wanted = TOOLS.join("\n");
    if fs::read_to_string(&marker).is_ok_and(|installed| installed == wanted) {
        return Ok(tools);
    }
    let folder = tools.environment.to_string_lossy().into_owned();
    command(root, &python, &["-m", "venv", "--clear", &folder], &[])
        .context("Python cannot make a virtual environment (python3-venv is missing?)")?;
    let mut arguments = vec![
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ];
    arguments.extend(TOOLS);
    command(root, &tools.program("python"), &arguments, &[])?;
    fs::write(marker, wanted)?;
    Ok(tools)
}

fn version_of(python: &str) -> anyhow::Result<(u32, u32)> {
    let script = "import sys; print(sys.version_info[0], sys.version_info[1])";
    let output = Command::new(python)
        .args(["-c", script])
        .output()
        .map_err(|_| anyhow::anyhow!("{python} was not found"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut numbers = text.split_whitespace().filter_map(|word| word.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if output.status.success() => Ok((major, minor)),
        _ => bail!("{python} does not tell its version"),
    }
}

impl Tools {
    fn program(&self, name: &str) -> String {
        self.environment
            .join("bin")
            .join(name)
            .to_string_lossy()
            .into_owned()
    }

    /// Builds the wheel, installs it, and runs the tests with the network of this build.
    pub(crate) fn run(&self, root: &Path, test_arguments: &[String]) -> anyhow::Result<()> {
        let wheel = self.build(root)?;
        let wheel = wheel.to_string_lossy();
        let install = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-index",
            "--no-deps",
            "--force-reinstall",
            &wheel,
        ];
        command(root, &self.program("python"), &install, &[])?;
        let devnet = std::env::var("ZEROG_DEVNET_BINARY").unwrap_or_else(|_| {
            root.join("target/debug/0g-compute-devnet")
                .to_string_lossy()
                .into_owned()
        });
        if !Path::new(&devnet).exists() {
            bail!("{devnet} is missing: run `cargo build --workspace --bins` first");
        }
        let mut arguments = vec!["-m", "pytest", "-p", "no:cacheprovider"];
        arguments.extend(test_arguments.iter().map(String::as_str));
        let environment = [
            ("ZEROG_DEVNET_BINARY", devnet.as_str()),
            ("PYTHONDONTWRITEBYTECODE", "1"),
        ];
        let folder = root.join("bindings/python");
        command(&folder, &self.program("python"), &arguments, &environment)
    }

    /// A wheel of the development profile, which shares its build with the workspace.
    fn build(&self, root: &Path) -> anyhow::Result<PathBuf> {
        let wheels = root.join("target/python/wheels");
        if wheels.exists() {
            fs::remove_dir_all(&wheels)?;
        }
        let folder = wheels.to_string_lossy();
        let arguments = [
            "build",
            "--quiet",
            "--locked",
            "--profile",
            "dev",
            "--strip",
            "--features",
            "shared-build",
            "--auditwheel",
            "skip",
            "--manifest-path",
            "bindings/python/Cargo.toml",
            "--out",
            &folder,
        ];
        command(root, &self.program("maturin"), &arguments, &[])?;
        let mut found = fs::read_dir(&wheels)?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "whl"));
        match (found.next(), found.next()) {
            (Some(wheel), None) => Ok(wheel),
            _ => bail!("maturin did not leave exactly one wheel in {folder}"),
        }
    }
}
