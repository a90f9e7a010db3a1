//! What the helper says: lines on standard error.

use std::io::Write;

use tracing_subscriber::filter::LevelFilter;

/// Callers look for `root=` or `root =` and a hash in the output, and take it for the result.
const RESULT_MARK: &[u8] = b"root=";
const HARMLESS: &[u8] = b"root:";

/// Shows warnings of the libraries, or more of what they do; the HTTP client's own chatter is left out.
pub(super) fn start(level: LevelFilter) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| {
        tracing_subscriber::EnvFilter::new(format!(
            "error,zerog_storage={level},zerog_chain={level},zerog_sdk={level}"
        ))
    });
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(|| Unmarked)
        .try_init();
}

/// One line; nobody reading it any more is no reason to stop a transfer.
pub(super) fn say(text: &str) {
    let mut stderr = std::io::stderr().lock();
    let _ = writeln!(stderr, "{text}");
    let _ = stderr.flush();
}

/// Standard error without anything that callers take for a result.
struct Unmarked;

impl Write for Unmarked {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        std::io::stderr().lock().write_all(&unmarked(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().lock().flush()
    }
}

fn unmarked(bytes: &[u8]) -> Vec<u8> {
    let mut text = bytes.to_vec();
    for start in 0..text.len() {
        if text[start..].starts_with(RESULT_MARK) {
            text[start..start + HARMLESS.len()].copy_from_slice(HARMLESS);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_log_are_not_taken_for_a_result() {
        let line = b"WARN a file root=0x12 segment_root=0x34";
        assert_eq!(
            unmarked(line),
            b"WARN a file root:0x12 segment_root:0x34".to_vec()
        );
    }
}
