//! `cargo xtask cuda`: the CUDA backend on a machine without a GPU. Its tests run on emulated libraries, and NVIDIA's own
//! compiler, which needs no GPU, translates the kernels.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::check::{cargo, command, has};

/// NVRTC as NVIDIA publishes it on PyPI.
const PACKAGE: &str = "nvidia-cuda-nvrtc-cu12==12.9.86";

/// Builds the code for devices and its tests.
pub(crate) const FEATURES: [&str; 2] = ["--features", "zerog-provider/cuda"];

/// What the tests need beside the workspace.
pub(crate) struct Compiler {
    folder: PathBuf,
}

impl Compiler {
    /// Installs the pinned compiler below `target/nvrtc`, unless it is there.
    pub(crate) fn install(root: &Path) -> anyhow::Result<Self> {
        if !has("g++") {
            bail!("g++ was not found");
        }
        let base = root.join("target/nvrtc");
        let marker = base.join(PACKAGE);
        if !marker.exists() {
            if !has("python3") {
                bail!("python3 was not found");
            }
            let (environment, target) = (base.join("venv"), base.join("package"));
            fs::create_dir_all(&base)?;
            command(
                root,
                "python3",
                &["-m", "venv", &environment.to_string_lossy()],
                &[],
            )
            .context("Python cannot make a virtual environment (python3-venv is missing?)")?;
            let arguments = [
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "--target",
                &target.to_string_lossy(),
                PACKAGE,
            ];
            let python = environment.join("bin/python");
            command(root, &python.to_string_lossy(), &arguments, &[])?;
            fs::write(marker, "")?;
        }
        Ok(Self {
            folder: base.join("package/nvidia/cuda_nvrtc/lib"),
        })
    }

    /// What the tests read to find it.
    pub(crate) fn environment(&self) -> (&'static str, String) {
        let folder = self.folder.to_string_lossy();
        ("ZEROG_NVRTC_DIR", folder.into_owned())
    }

    /// Runs the tests of the backend alone: kernels, passes, whole jobs, the engine.
    pub(crate) fn test(&self, root: &Path) -> anyhow::Result<()> {
        let (name, folder) = self.environment();
        // Of the whole workspace, so that the full check and this command build the same.
        let start = ["test", "--workspace", "--quiet", "--test", "it"];
        let filters = [
            "--",
            "compile::",
            "failures::",
            "operations::",
            "products::",
            // Those of the kernels, and all `cuda_serving::`.
            "serving::",
            "cuda::",
            "cuda_classification::",
            "devices::",
            "placement::",
        ];
        let arguments = [&start[..], &FEATURES, &filters].concat();
        cargo(root, &arguments, &[(name, &folder)])
    }
}
