//! Compares this crate with what the reference libraries computed (`parity/reference.py`).
//!
//! `parity [--device DEVICE] FOLDER [OUTPUT]` reads every case in `FOLDER`, prints one JSON object for each measure, and
//! writes the adapters that it trained to `OUTPUT`, where the reference libraries load them. It fails if a limit is
//! exceeded. Models serve and are trained on `DEVICE`, `cpu` or `cuda:N`; what a classifier answers alone is computed on
//! the processor.
#![allow(clippy::print_stdout)] // The comparison is its output.

mod compare;

use std::path::Path;
use std::process::ExitCode;
use zerog_model::Device;

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1).peekable();
    let usage = "usage: parity [--device DEVICE] FOLDER [OUTPUT]";
    let mut device = Device::Cpu;
    if arguments
        .next_if(|argument| argument == "--device")
        .is_some()
    {
        device = arguments.next().ok_or(usage)?.parse()?;
    }
    let folder = arguments.next().ok_or(usage)?;
    let output = arguments.next();
    let mut failed = false;
    for case in compare::cases(Path::new(&folder))? {
        let name = case
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let output = output.as_ref().map(|output| Path::new(output).join(&name));
        for measure in compare::compare(&case, output.as_deref(), &device)? {
            failed |= !measure.passed();
            let line = serde_json::json!({
                "case": name, "measure": measure.name, "value": measure.value, "limit": measure.limit,
                "passed": measure.passed(),
            });
            println!("{line}");
        }
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
