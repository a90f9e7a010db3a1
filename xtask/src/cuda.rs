//! `cargo xtask cuda`: the CUDA backend on a machine without a GPU. Its tests run on emulated libraries, and NVIDIA's own
//! compiler, which needs no GPU, translates the kernels.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::check::{cargo, command, has};

/// NVRTC as NVIDIA publishes it on PyPI.
const PACKAGE: &str = "nvidia-cuda-nvrtc-cu12==12.9.86";

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

    /// Runs the tests of the backend: kernels, passes, whole jobs.
    pub(crate) fn test(&self, root: &Path) -> anyhow::Result<()> {
        let folder = self.folder.to_string_lossy();
        let environment = [("ZEROG_NVRTC_DIR", &*folder)];
        let start = ["test", "--quiet", "--features", "zerog-trainer/cuda"];
        let of_kernels = ["--package", "zerog-kernels", "--package", "zerog-trainer"];
        // One selection of packages for all, so that nothing is built twice.
        let packages = [
            &of_kernels[..],
            &["--package", "zerog-model", "--test", "it", "--"],
        ]
        .concat();
        let filters = [
            "compile::",
            "failures::",
            "operations::",
            "products::",
            "cuda::",
            "devices::",
            "placement::",
        ];
        cargo(
            root,
            &[&start[..], &packages, &filters].concat(),
            &environment,
        )
    }
}
