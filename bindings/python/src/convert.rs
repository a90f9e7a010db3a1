//! Values of the SDK as Python objects: amounts are integers, addresses checksummed text, hashes `0x…` text, bytes bytes.

use std::path::PathBuf;

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};
use serde_json::Value;
use zerog_sdk::{Address, B256, U256};

/// A value that Python can have.
pub(crate) trait ToPython {
    /// The value as a Python object.
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>>;
}

/// Makes dictionaries of structs: `name` is a field, `name = value` anything that `this` gives.
macro_rules! record {
    (@value $this:ident $name:ident) => { $this.$name };
    (@value $this:ident $name:ident $value:expr) => { $value };
    ($type:ty, $this:ident: $($name:ident $(= $value:expr)?),+ $(,)?) => {
        impl $crate::convert::ToPython for $type {
            fn to_python<'py>(
                &self,
                py: pyo3::Python<'py>,
            ) -> pyo3::PyResult<pyo3::Bound<'py, pyo3::PyAny>> {
                use pyo3::types::PyDictMethods as _;
                let $this = self;
                let dictionary = pyo3::types::PyDict::new(py);
                $(dictionary.set_item(
                    stringify!($name),
                    $crate::convert::ToPython::to_python(
                        &$crate::convert::record!(@value $this $name $($value)?),
                        py,
                    )?,
                )?;)+
                Ok(dictionary.into_any())
            }
        }
    };
}
pub(crate) use record;

macro_rules! plain {
    ($($type:ty),+) => {$(
        impl ToPython for $type {
            fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
                self.into_bound_py_any(py)
            }
        }
    )+};
}
plain!(bool, u8, u32, u64, usize, f64, u128, String, str);

impl<T: ToPython + ?Sized> ToPython for &T {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        (**self).to_python(py)
    }
}

impl ToPython for () {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(py.None().into_bound(py))
    }
}

impl<T: ToPython> ToPython for Option<T> {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self {
            Some(value) => value.to_python(py),
            None => ().to_python(py),
        }
    }
}

impl<T: ToPython> ToPython for Vec<T> {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let items = self.iter().map(|item| item.to_python(py));
        Ok(PyList::new(py, items.collect::<PyResult<Vec<_>>>()?)?.into_any())
    }
}

impl<A: ToPython, B: ToPython> ToPython for (A, B) {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let pair = [self.0.to_python(py)?, self.1.to_python(py)?];
        Ok(PyTuple::new(py, pair)?.into_any())
    }
}

impl ToPython for Address {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.to_checksum(None).to_python(py)
    }
}

impl ToPython for B256 {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.to_string().to_python(py)
    }
}

impl ToPython for U256 {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match u128::try_from(*self) {
            Ok(number) => number.to_python(py),
            Err(_) => py
                .get_type::<pyo3::types::PyInt>()
                .call1((self.to_string(),)),
        }
    }
}

impl ToPython for PathBuf {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.to_string_lossy().as_ref().to_python(py)
    }
}

/// Bytes as bytes; a `Vec<u8>` of the SDK is never a list of numbers.
pub(crate) struct Binary<'a>(pub(crate) &'a [u8]);

impl ToPython for Binary<'_> {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(PyBytes::new(py, self.0).into_any())
    }
}

impl ToPython for Value {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self {
            Self::Null => ().to_python(py),
            Self::Bool(value) => value.to_python(py),
            Self::String(text) => text.to_python(py),
            Self::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => number.to_python(py),
                (None, Some(number)) => number.into_bound_py_any(py),
                (None, None) => number.as_f64().to_python(py),
            },
            Self::Array(items) => items.to_python(py),
            Self::Object(members) => {
                let dictionary = PyDict::new(py);
                for (name, value) in members {
                    dictionary.set_item(name, value.to_python(py)?)?;
                }
                Ok(dictionary.into_any())
            }
        }
    }
}

/// A Python value of JSON types as JSON; it was read back from text, so it holds nothing else.
pub(crate) fn parse_json(text: &str, name: &'static str) -> zerog_sdk::Result<Value> {
    serde_json::from_str(text).map_err(|error| zerog_sdk::Error::Argument {
        name,
        reason: error.to_string(),
    })
}

/// An address argument.
pub(crate) fn address(text: &str, name: &'static str) -> zerog_sdk::Result<Address> {
    text.parse().map_err(|_| zerog_sdk::Error::Argument {
        name,
        reason: format!("`{text}` is no address; it is 0x and 40 hexadecimal digits"),
    })
}

/// A task id argument.
pub(crate) fn task_id(text: &str) -> zerog_sdk::Result<zerog_sdk::TaskId> {
    text.parse().map_err(
        |error: zerog_sdk::ids::TaskIdError| zerog_sdk::Error::Argument {
            name: "task_id",
            reason: error.to_string(),
        },
    )
}

/// A hash argument.
pub(crate) fn hash(text: &str, name: &'static str) -> zerog_sdk::Result<B256> {
    text.parse().map_err(|_| zerog_sdk::Error::Argument {
        name,
        reason: format!("`{text}` is no hash; it is 0x and 64 hexadecimal digits"),
    })
}
