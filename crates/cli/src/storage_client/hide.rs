//! Secrets out of the process list.
//!
//! The published SDKs pass the wallet key as an argument, where every user of the machine can read it while the program
//! runs. So it starts itself again in the same process, with stars in its place, and hands itself the true arguments
//! through a pipe on standard input, which those SDKs leave unused. Only Unix can replace a process by itself; on other
//! systems the key stays visible, so `--key-file` and the variable are better there.

use std::ffi::OsString;

/// Flags whose values nobody else should see.
#[cfg(any(unix, test))]
const SECRET_FLAGS: [&str; 3] = ["--key", "--private-key", "--encryption-key"];
/// What is seen instead.
#[cfg(any(unix, test))]
const STARS: &str = "***";

/// The true arguments of this process, the program's name first.
pub(super) fn arguments() -> Vec<OsString> {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    #[cfg(unix)]
    return unix::exchanged(arguments);
    #[cfg(not(unix))]
    arguments
}

/// The arguments with stars in place of secrets; `None` when there are none.
#[cfg(any(unix, test))]
fn starred(arguments: &[OsString]) -> Option<Vec<OsString>> {
    let mut found = false;
    let mut is_secret = false;
    let starred = arguments
        .iter()
        .map(|argument| {
            if std::mem::take(&mut is_secret) {
                found = true;
                return STARS.into();
            }
            let text = argument.to_string_lossy();
            for flag in SECRET_FLAGS {
                is_secret |= text == flag;
                if let Some(rest) = text.strip_prefix(flag)
                    && rest.starts_with('=')
                {
                    found = true;
                    return format!("{flag}={STARS}").into();
                }
            }
            argument.clone()
        })
        .collect();
    found.then_some(starred)
}

#[cfg(unix)]
mod unix {
    use std::ffi::OsString;
    use std::io::{Read, Write};
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    use zeroize::Zeroizing;

    /// Says that the true arguments come through standard input. Its value is the number of them.
    const MARK: &str = "ZG_STORAGE_CLIENT_ARGUMENTS_ON_STDIN";
    /// A pipe holds this much without a reader.
    const MAX_BYTES: usize = 60 * 1024;

    /// Reads the true arguments if they were sent, or sends them if there are secrets among them.
    pub(super) fn exchanged(arguments: Vec<OsString>) -> Vec<OsString> {
        if let Ok(count) = std::env::var(MARK)
            && let Some(received) = receive(&count)
        {
            return received;
        }
        if let Some(starred) = super::starred(&arguments) {
            // It only returns when it failed; then the arguments stay visible, and work.
            send(&arguments, &starred);
        }
        arguments
    }

    fn receive(count: &str) -> Option<Vec<OsString>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_BYTES));
        std::io::stdin()
            .lock()
            .take(MAX_BYTES as u64)
            .read_to_end(&mut bytes)
            .ok()?;
        let arguments: Vec<OsString> = bytes
            .split(|byte| *byte == 0)
            .map(|argument| OsString::from_vec(argument.to_vec()))
            .collect();
        (Some(arguments.len()) == count.parse().ok()).then_some(arguments)
    }

    fn send(arguments: &[OsString], starred: &[OsString]) {
        let joined: Vec<&[u8]> = arguments
            .iter()
            .map(|argument| argument.as_bytes())
            .collect();
        let joined = Zeroizing::new(joined.join(&0));
        if joined.len() > MAX_BYTES {
            return;
        }
        let Ok(program) = std::env::current_exe() else {
            return;
        };
        let Ok((reader, mut writer)) = std::io::pipe() else {
            return;
        };
        if writer.write_all(&joined).is_err() {
            return;
        }
        drop(writer);
        let mut command = Command::new(program);
        if let Some((name, rest)) = starred.split_first() {
            command.arg0(name).args(rest);
        }
        let _ = command
            .env(MARK, arguments.len().to_string())
            .stdin(Stdio::from(reader))
            .exec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(arguments: &[&str]) -> Option<Vec<String>> {
        let arguments: Vec<OsString> = arguments.iter().map(Into::into).collect();
        starred(&arguments).map(|starred| {
            starred
                .into_iter()
                .map(|argument| argument.into_string().unwrap())
                .collect()
        })
    }

    #[test]
    fn values_of_secret_flags_become_stars_in_both_spellings() {
        let starred = of(&[
            "c",
            "upload",
            "--key",
            "abc",
            "--private-key=def",
            "--file",
            "--key",
        ]);
        assert_eq!(
            starred.unwrap(),
            [
                "c",
                "upload",
                "--key",
                "***",
                "--private-key=***",
                "--file",
                "--key"
            ]
        );
        assert_eq!(
            of(&["c", "download", "--key-file", "f", "--keyfoo=1"]),
            None
        );
    }
}
