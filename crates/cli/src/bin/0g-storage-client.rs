//! `0g-storage-client`.

use std::process::ExitCode;

fn main() -> ExitCode {
    zerog_cli::storage_client()
}
