//! Shell completion.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;

pub(super) fn print(shell: Shell) {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "0g-compute-cli", &mut script);
    crate::output::write_text(&String::from_utf8_lossy(&script));
}
