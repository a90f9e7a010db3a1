//! `0g-compute-cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    zerog_cli::compute_cli()
}
