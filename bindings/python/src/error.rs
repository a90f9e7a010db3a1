//! Errors of the SDK as one exception that carries facts; the Python layer makes the documented exceptions of it.

use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use zerog_sdk::Error;

use crate::convert::ToPython;

create_exception!(
    zerog_py_sdk._native,
    NativeError,
    PyException,
    "A failed call; its argument is a dictionary of facts: code, category, message, is_passing, and what the code has."
);

/// The exception of an error.
pub(crate) fn native_error(py: Python<'_>, error: &Error) -> PyErr {
    match facts(py, error) {
        Ok(facts) => NativeError::new_err((facts.unbind(),)),
        Err(error) => error,
    }
}

/// The exception for something that only this layer can notice.
pub(crate) fn refused(py: Python<'_>, code: &str, message: &str) -> PyErr {
    let dictionary = PyDict::new(py);
    let filled = [("code", code), ("category", "usage"), ("message", message)]
        .into_iter()
        .try_for_each(|(name, value)| dictionary.set_item(name, value));
    match filled {
        Ok(()) => NativeError::new_err((dictionary.unbind(),)),
        Err(error) => error,
    }
}

struct Facts<'py>(Bound<'py, PyDict>);

impl Facts<'_> {
    fn set(&self, name: &str, value: &dyn ToPython) -> PyResult<()> {
        self.0.set_item(name, value.to_python(self.0.py())?)
    }
}

fn facts<'py>(py: Python<'py>, error: &Error) -> PyResult<Bound<'py, PyDict>> {
    let facts = Facts(PyDict::new(py));
    facts.set("code", &error.code())?;
    facts.set("category", &error.category().name())?;
    facts.set("message", &error.to_string())?;
    facts.set("is_passing", &error.is_passing())?;
    match error {
        Error::InvalidKey { reason }
        | Error::TrainingParameters { reason }
        | Error::ResponseNotProven { reason }
        | Error::Storage { reason } => facts.set("reason", reason)?,
        Error::Argument { name, reason } => {
            facts.set("argument", name)?;
            facts.set("reason", reason)?;
        }
        Error::Chain(chain) => {
            if let Some(contract) = chain.contract_error() {
                facts.set("error_name", &contract.kind.name())?;
                facts.set("details", &contract.details)?;
                facts.set("revert_data", &contract.data.to_string())?;
            }
        }
        Error::LedgerMissing { user } => facts.set("user", user)?,
        Error::AccountMissing {
            user,
            provider,
            service,
        } => {
            facts.set("user", user)?;
            facts.set("provider", provider)?;
            facts.set("service", &service.name())?;
        }
        Error::InsufficientAccount {
            provider,
            service,
            required,
            available,
        } => {
            facts.set("provider", provider)?;
            facts.set("service", &service.name())?;
            facts.set("required", required)?;
            facts.set("available", available)?;
        }
        Error::InsufficientLedger {
            required,
            available,
        } => {
            facts.set("required", required)?;
            facts.set("available", available)?;
        }
        Error::InsufficientCoins {
            address,
            required,
            available,
        } => {
            facts.set("address", address)?;
            facts.set("required", required)?;
            facts.set("available", available)?;
        }
        Error::ServiceMissing { provider, service }
        | Error::ServiceNotAcknowledged { provider, service }
        | Error::NotAcknowledged { provider, service } => {
            facts.set("provider", provider)?;
            facts.set("service", &service.name())?;
        }
        Error::ProviderUnreachable { url, reason } => {
            facts.set("url", url)?;
            facts.set("reason", reason)?;
        }
        Error::ProviderRefused {
            status,
            message,
            retry_after_s,
            ..
        } => {
            facts.set("status", &u64::from(*status))?;
            facts.set("reason", message)?;
            facts.set("retry_after_s", retry_after_s)?;
        }
        Error::ProviderAnswer { reason, .. } => facts.set("reason", reason)?,
        Error::Dataset { path, reason }
        | Error::Archive { path, reason }
        | Error::AdapterArchive { path, reason } => {
            facts.set("path", path)?;
            facts.set("reason", reason)?;
        }
        Error::UnknownModel { model, known } => {
            facts.set("model", model)?;
            facts.set("known", known)?;
        }
        Error::Tokenizer { model, reason } => {
            facts.set("model", model)?;
            facts.set("reason", reason)?;
        }
        Error::VerificationFailed {
            provider,
            level,
            failures,
        } => {
            facts.set("provider", provider)?;
            facts.set("level", level)?;
            facts.set("failures", failures)?;
        }
        Error::SealingUnsupported { provider } => facts.set("provider", provider)?,
        Error::HashMismatch {
            expected,
            storage_root,
            keccak,
        } => {
            facts.set("expected", expected)?;
            facts.set("storage_root", storage_root)?;
            facts.set("keccak", keccak)?;
        }
        Error::QueueNotEmpty { pending } => facts.set("pending", pending)?,
        Error::DeliverableMissing { task } | Error::DeliverableNotAcknowledged { task } => {
            facts.set("task", &task.to_string())?;
        }
        Error::NoTask { provider, user } => {
            facts.set("provider", provider)?;
            facts.set("user", user)?;
        }
        Error::TaskEnded {
            task,
            state,
            reason,
        } => {
            facts.set("task", &task.to_string())?;
            facts.set("state", state)?;
            facts.set("reason", reason)?;
        }
        Error::AdapterFailed { adapter, reason } => {
            facts.set("adapter", adapter)?;
            facts.set("reason", reason)?;
        }
        Error::Timeout { what, waited, last } => {
            facts.set("what", what)?;
            facts.set("waited_s", &waited.as_secs_f64())?;
            facts.set("last", last)?;
        }
        Error::DiskFull { path } => facts.set("path", path)?,
        Error::File { path, source, .. } => {
            facts.set("path", path)?;
            facts.set("reason", &source.to_string())?;
            if let Some(number) = source.raw_os_error() {
                facts.0.set_item("errno", number)?;
            }
        }
        // What has no facts of its own, and what a newer SDK adds.
        _ => {}
    }
    Ok(facts.0)
}
