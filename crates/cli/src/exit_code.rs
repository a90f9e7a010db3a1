//! Exit codes, and the one failure type that carries them to `main`.

use std::fmt;

use zerog_sdk::{Category, Error};

/// Everything went well.
pub(crate) const OK: u8 = 0;
/// Anything without a code of its own.
pub(crate) const GENERAL: u8 = 1;
/// A missing, unknown or contradictory argument.
pub(crate) const USAGE: u8 = 2;
/// No key, wrong key, wrong password.
pub(crate) const AUTHENTICATION: u8 = 3;
/// Not enough money, or no account.
pub(crate) const FUNDS: u8 = 4;
/// A dataset, model or training parameter that cannot be used.
pub(crate) const VALIDATION: u8 = 5;
/// The provider does not answer, or refuses.
pub(crate) const PROVIDER: u8 = 6;
/// The chain does not answer, or a contract refuses.
pub(crate) const CHAIN: u8 = 7;
/// Evidence, hash or signature does not hold.
pub(crate) const VERIFICATION: u8 = 8;
/// Something did not happen in time.
pub(crate) const TIMEOUT: u8 = 9;
/// The storage network failed.
pub(crate) const STORAGE: u8 = 10;
/// A local file cannot be read or written, or the disk is full.
pub(crate) const DISK: u8 = 11;
/// `verify` found a simulated enclave: consistent, and worth nothing.
pub(crate) const SIMULATED: u8 = 12;
/// Stopped by the user (128 + SIGINT).
pub(crate) const INTERRUPTED: u8 = 130;

/// For `--help`.
pub(crate) const HELP: &str = "Exit codes: 0 success, 1 other failure, 2 usage, 3 key or password, 4 funds, 5 dataset, \
model or parameters, 6 provider, 7 chain, 8 verification failed, 9 timeout, 10 storage, 11 file or disk, \
12 verify: simulated only, 130 interrupted.";

/// Why a command ended without success.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What `$?` shows.
    pub(crate) exit_code: u8,
    /// Stable identifier for programs.
    pub(crate) code: String,
    /// What is wrong and what to do.
    pub(crate) message: String,
}

/// The result of a command.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// The arguments do not fit together.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self {
            exit_code: USAGE,
            code: "usage".into(),
            message: message.into(),
        }
    }

    /// A failure with its own code.
    pub(crate) fn new(exit_code: u8, code: &str, message: impl Into<String>) -> Self {
        Self {
            exit_code,
            code: code.into(),
            message: message.into(),
        }
    }

    /// A local file failed.
    pub(crate) fn file(
        action: &'static str,
        path: &std::path::Path,
        error: std::io::Error,
    ) -> Self {
        Error::file(action, path, error).into()
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            exit_code: of_category(error.category()),
            code: error.code().to_owned(),
            message: error.to_string(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

fn of_category(category: Category) -> u8 {
    match category {
        Category::Usage => USAGE,
        Category::Authentication => AUTHENTICATION,
        Category::Funds => FUNDS,
        Category::Validation => VALIDATION,
        Category::Provider => PROVIDER,
        Category::Chain => CHAIN,
        Category::Verification => VERIFICATION,
        Category::Timeout => TIMEOUT,
        Category::Interrupted => INTERRUPTED,
        Category::Storage => STORAGE,
        Category::Disk => DISK,
        _ => GENERAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_distinct_and_in_the_help() {
        let codes = [
            OK,
            GENERAL,
            USAGE,
            AUTHENTICATION,
            FUNDS,
            VALIDATION,
            PROVIDER,
            CHAIN,
            VERIFICATION,
            TIMEOUT,
            STORAGE,
            DISK,
            SIMULATED,
            INTERRUPTED,
        ];
        let distinct: std::collections::BTreeSet<u8> = codes.into_iter().collect();
        assert_eq!(distinct.len(), codes.len());
        for code in codes {
            assert!(HELP.contains(&format!("{code} ")), "{code}");
        }
    }
}
