//! `zerog_py_sdk._native`: the Rust SDK for Python, as thin as it can be.
//!
//! Methods take values that the Python layer has checked, and give dictionaries, lists and numbers that it makes typed
//! records of. A call waits without the interpreter lock; see `call`.

mod broker;
mod call;
mod convert;
mod error;
mod fine_tuning;
mod inference;
mod ledger;
mod loss_curve;
mod records;

use pyo3::prelude::*;

/// The native half of the package.
#[pymodule]
mod _native {
    #[pymodule_export]
    use crate::broker::{Broker, adapter_name, checksum_address, connect};
    #[pymodule_export]
    use crate::call::Pending;
    #[pymodule_export]
    use crate::error::NativeError;
    #[pymodule_export]
    use crate::fine_tuning::FineTuning;
    #[pymodule_export]
    use crate::inference::{ChatStream, Inference, Lora};
    #[pymodule_export]
    use crate::ledger::Ledger;
    #[pymodule_export]
    use crate::loss_curve::LossCurve;

    use super::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
