//! Developer commands: `cargo xtask test`, `tidy`, `contracts`, `cuda`, `gas`, `interop`, `mutations`, `parity`,
//! `python`.

mod check;
mod clients;
mod cuda;
mod interop;
mod openai_clients;
mod parity;
mod python;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Developer commands of the workspace.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every check: format, lints, structure, documents, tests, contract artifacts, chain clients.
    Test {
        /// Treat a part that had to be skipped (no Node, no Python, no PostgreSQL) as a failure.
        #[arg(long)]
        all: bool,
        /// Pass the rest to `cargo test`, for example a test name.
        #[arg(last = true)]
        test_arguments: Vec<String>,
    },
    /// Check the structure: dependency directions, links in documents, recorded hashes.
    Tidy,
    /// Rebuild the contract artifacts from the Solidity sources (needs Node).
    Contracts {
        /// Compare with the committed artifacts instead of writing them.
        #[arg(long)]
        check: bool,
    },
    /// Compare the trainer with PEFT and transformers from PyPI (installs them once, several gigabytes).
    Parity {
        /// Write new recorded numbers for the ordinary tests instead of comparing.
        #[arg(long)]
        record: bool,
    },
    /// Test the CUDA backend on emulated libraries, and its kernels in NVIDIA's compiler (needs g++ and Python).
    Cuda,
    /// Measure what each contract call costs and write the table of docs/compatibility.md.
    Gas,
    /// Change quotes and reports of enclaves a hundred thousand times: none may be accepted (some minutes).
    Mutations,
    /// Build the Python wheel, install it into an environment below `target`, and run its tests.
    Python {
        /// Pass the rest to pytest, for example a test name with -k.
        #[arg(last = true)]
        test_arguments: Vec<String>,
    },
    /// Run the published clients against a network of this build (needs Node, Python and network namespaces).
    Interop {
        /// Write the table into docs/compatibility.md instead of comparing it.
        #[arg(long)]
        write: bool,
        /// Run only these lanes, and leave the document alone.
        #[arg(long)]
        only: Vec<String>,
    },
    /// The part of `interop` that runs where only loopback exists.
    #[command(hide = true)]
    InteropLane {
        /// The lane's name.
        name: String,
    },
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        // Without the stack trace of `Debug`: the part and its last words are what a reader looks for.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let root = workspace_root();
    match Arguments::parse().command {
        Command::Test {
            all,
            test_arguments,
        } => check::run(&root, all, &test_arguments),
        Command::Tidy => tidy::run(&root),
        Command::Contracts { check } => check::contracts(&root, check),
        Command::Parity { record } => {
            let reference = parity::Reference::install(&root)?;
            if record {
                reference.record(&root)
            } else {
                reference.compare(&root)
            }
        }
        Command::Cuda => cuda::Compiler::install(&root)?.test(&root),
        Command::Gas => check::gas(&root),
        Command::Mutations => check::mutations(&root, &[]),
        Command::Python { test_arguments } => {
            check::build_binaries(&root)?;
            python::install(&root)?.run(&root, &test_arguments)
        }
        Command::Interop { write, only } => {
            let document = if write {
                interop::Document::Write
            } else {
                interop::Document::Check
            };
            interop::run(&root, &interop::Clients::install(&root)?, &only, document)
        }
        Command::InteropLane { name } => interop::run_lane(&root, &name),
    }
}

fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_path_buf)
        .unwrap_or_default()
}
