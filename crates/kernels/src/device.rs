//! Where a model computes, and what can be wrong with the place.

use std::fmt;
use std::str::FromStr;

/// A place to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// The NVIDIA GPU with this number, as the driver counts them.
    Cuda(u32),
}

/// A text that names no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("device {text:?} is not known; write \"cpu\", or \"cuda:0\" for the first NVIDIA GPU")]
pub struct UnknownDevice {
    text: String,
}

impl Device {
    /// Opens the device, closes it again and returns its name: whether a run on it can begin.
    ///
    /// # Errors
    /// [`DeviceError`], which says what is missing.
    pub fn probe(self) -> Result<String, DeviceError> {
        match self {
            Self::Cpu => Ok("the processor".to_owned()),
            #[cfg(feature = "cuda")]
            Self::Cuda(ordinal) => {
                use crate::cuda::{Cuda, Libraries};
                Ok(Cuda::open(ordinal, &Libraries::System)?.name().to_owned())
            }
            #[cfg(not(feature = "cuda"))]
            Self::Cuda(_) => Err(DeviceError::NotBuilt { device: self }),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => write!(formatter, "cpu"),
            Self::Cuda(ordinal) => write!(formatter, "cuda:{ordinal}"),
        }
    }
}

impl FromStr for Device {
    type Err = UnknownDevice;

    /// Reads `cpu`, `cuda:N`, or `cuda` for `cuda:0`.
    fn from_str(text: &str) -> Result<Self, UnknownDevice> {
        let unknown = || UnknownDevice {
            text: text.to_owned(),
        };
        match text {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let number = text.strip_prefix("cuda:").ok_or_else(unknown)?;
                // `parse` alone takes a sign.
                if !number.bytes().all(|digit| digit.is_ascii_digit()) {
                    return Err(unknown());
                }
                Ok(Self::Cuda(number.parse().map_err(|_| unknown())?))
            }
        }
    }
}

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The program has no code for the device.
    #[error(
        "device {device} needs a program that was built with `--features cuda`; build it so, or set the device to \"cpu\""
    )]
    NotBuilt {
        /// What was asked for.
        device: Device,
    },
    /// A library of NVIDIA's is not on this machine.
    #[error("{library} was not found ({reason}); {remedy}")]
    LibraryMissing {
        /// The names that were tried.
        library: String,
        /// What the loader said.
        reason: String,
        /// What to install.
        remedy: &'static str,
    },
    /// A library of NVIDIA's is not the one that is meant.
    #[error("{library} has no function {function}; install CUDA 12 or newer")]
    FunctionMissing {
        /// The library.
        library: String,
        /// The function.
        function: &'static str,
    },
    /// The driver has no GPU with this number.
    #[error(
        "there is no device cuda:{ordinal}: the NVIDIA driver reports {found} GPU(s); see `nvidia-smi` and CUDA_VISIBLE_DEVICES, or set the device to \"cpu\""
    )]
    NoDevice {
        /// The number that was asked for.
        ordinal: u32,
        /// How many there are.
        found: u32,
    },
    /// The GPU lacks instructions that are needed.
    #[error(
        "{name} has compute capability {major}.{minor}; 8.0 or newer is needed (Ampere and later)"
    )]
    TooOld {
        /// The GPU's name.
        name: String,
        /// Its compute capability.
        major: u32,
        /// The part after the point.
        minor: u32,
    },
    /// The memory of the GPU is used up.
    #[error(
        "the device's memory is used up ({bytes} bytes more were needed, {free} are free); use a smaller batch, shorter sequences or a larger device"
    )]
    OutOfMemory {
        /// What was asked for last.
        bytes: usize,
        /// What the driver says is left.
        free: usize,
    },
    /// NVRTC refused the kernels.
    #[error("NVRTC does not compile the kernels: {log}")]
    Compile {
        /// Its messages.
        log: String,
    },
    /// A call failed.
    #[error("{function} failed: {reason}")]
    Call {
        /// The function of the driver, of NVRTC or of cuBLAS.
        function: &'static str,
        /// What it reported.
        reason: String,
    },
    /// The model has a shape that the kernels do not cover.
    #[error("{what} cannot be computed on a CUDA device; set the device to \"cpu\"")]
    Unsupported {
        /// The shape or operation.
        what: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for device in [Device::Cpu, Device::Cuda(0), Device::Cuda(11)] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for text in [
            "",
            "gpu",
            "cuda:",
            "cuda:+1",
            "cuda:x",
            "CPU",
            "cuda:4294967296",
        ] {
            let error = text.parse::<Device>().unwrap_err().to_string();
            assert!(text.is_empty() || error.contains(text), "{error}");
        }
    }
}
