//! NVIDIA's libraries, opened at run time: the driver, the compiler NVRTC and cuBLAS.
//!
//! Only functions that are in every release since CUDA 12 are named, with the types of NVIDIA's documentation.
#![allow(unsafe_code)]

use crate::device::DeviceError;
use libloading::Library;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::mem::ManuallyDrop;
use std::path::PathBuf;

/// Where NVIDIA's libraries are looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Libraries {
    /// Where the system's loader finds libraries: its standard folders and `LD_LIBRARY_PATH`.
    #[default]
    System,
    /// In this folder alone.
    Folder(PathBuf),
}

impl Libraries {
    /// Opens the first of `names` that is there.
    fn open(
        &self,
        names: &[String],
        remedy: &'static str,
    ) -> Result<(Library, String), DeviceError> {
        let mut reason = String::new();
        for name in names {
            let path = match self {
                Self::System => PathBuf::from(name),
                Self::Folder(folder) => folder.join(name),
            };
            // SAFETY: these are NVIDIA's libraries, whose initialisers may run at any time; whoever can put others in
            // their place decides what this process runs anyway.
            match unsafe { Library::new(&path) } {
                Ok(library) => return Ok((library, name.clone())),
                Err(error) => reason = error.to_string(),
            }
        }
        Err(DeviceError::LibraryMissing {
            library: names.join(" or "),
            reason,
            remedy,
        })
    }
}

/// Declares the functions of a library as a table of pointers.
macro_rules! functions {
    ($(#[$meta:meta])* $table:ident { $($function:ident($($argument:ty),* $(,)?);)* }) => {
        $(#[$meta])*
        #[allow(non_snake_case)] // The names are NVIDIA's.
        pub(super) struct $table {
            $(pub(super) $function: unsafe extern "C" fn($($argument),*) -> c_int,)*
            /// Keeps the functions where they are. NVIDIA's libraries are never unloaded: their own threads and exit
            /// handlers may still use them.
            _library: ManuallyDrop<Library>,
        }

        impl $table {
            fn of((library, name): (Library, String)) -> Result<Self, DeviceError> {
                Ok(Self {
                    $($function: {
                        // SAFETY: the type is that of NVIDIA's documentation for the function of this name.
                        let found = unsafe {
                            library.get::<unsafe extern "C" fn($($argument),*) -> c_int>(stringify!($function).as_bytes())
                        };
                        *found.map_err(|_| DeviceError::FunctionMissing {
                            library: name.clone(),
                            function: stringify!($function),
                        })?
                    },)*
                    _library: ManuallyDrop::new(library),
                })
            }
        }
    };
}

functions! {
    /// `libcuda`: devices, memory, modules, launches.
    Driver {
        cuInit(c_uint);
        cuDriverGetVersion(*mut c_int);
        cuDeviceGetCount(*mut c_int);
        cuDeviceGet(*mut c_int, c_int);
        cuDeviceGetName(*mut c_char, c_int, c_int);
        cuDeviceGetAttribute(*mut c_int, c_int, c_int);
        cuDevicePrimaryCtxRetain(*mut *mut c_void, c_int);
        cuDevicePrimaryCtxRelease_v2(c_int);
        cuCtxSetCurrent(*mut c_void);
        cuMemGetInfo_v2(*mut usize, *mut usize);
        cuMemAlloc_v2(*mut u64, usize);
        cuMemFree_v2(u64);
        cuMemcpyHtoD_v2(u64, *const c_void, usize);
        cuMemcpyDtoH_v2(*mut c_void, u64, usize);
        cuMemcpyDtoDAsync_v2(u64, u64, usize, *mut c_void);
        cuMemsetD8Async(u64, u8, usize, *mut c_void);
        cuModuleLoadData(*mut *mut c_void, *const c_void);
        cuModuleUnload(*mut c_void);
        cuModuleGetFunction(*mut *mut c_void, *mut c_void, *const c_char);
        cuLaunchKernel(
            *mut c_void, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint,
            *mut c_void, *mut *mut c_void, *mut *mut c_void,
        );
        cuGetErrorName(c_int, *mut *const c_char);
    }
}

functions! {
    /// `libnvrtc`: compiles CUDA C.
    Compiler {
        nvrtcGetNumSupportedArchs(*mut c_int);
        nvrtcGetSupportedArchs(*mut c_int);
        nvrtcCreateProgram(
            *mut *mut c_void, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char,
        );
        nvrtcCompileProgram(*mut c_void, c_int, *const *const c_char);
        nvrtcGetProgramLogSize(*mut c_void, *mut usize);
        nvrtcGetProgramLog(*mut c_void, *mut c_char);
        nvrtcGetCUBINSize(*mut c_void, *mut usize);
        nvrtcGetCUBIN(*mut c_void, *mut c_char);
        nvrtcGetPTXSize(*mut c_void, *mut usize);
        nvrtcGetPTX(*mut c_void, *mut c_char);
        nvrtcDestroyProgram(*mut *mut c_void);
    }
}

functions! {
    /// `libcublas`: products of matrices.
    Products {
        cublasCreate_v2(*mut *mut c_void);
        cublasDestroy_v2(*mut c_void);
        cublasSetMathMode(*mut c_void, c_int);
        cublasSetWorkspace_v2(*mut c_void, *mut c_void, usize);
        cublasGemmEx(
            *mut c_void, c_int, c_int, c_int, c_int, c_int, *const c_void, *const c_void, c_int, c_int,
            *const c_void, c_int, c_int, *const c_void, *mut c_void, c_int, c_int, c_int, c_int,
        );
    }
}

impl Driver {
    pub(super) fn open(libraries: &Libraries) -> Result<Self, DeviceError> {
        let names = ["libcuda.so.1", "libcuda.so"].map(str::to_owned);
        Self::of(libraries.open(
            &names,
            "it comes with the NVIDIA driver: install the driver, or set the device to \"cpu\"",
        )?)
    }
}

/// Names of a library of the CUDA toolkit for a driver of the release `major`: a driver runs what its own release or an
/// earlier one made.
fn names_for(base: &str, major: u32) -> Vec<String> {
    let mut names: Vec<String> = (12..=major.max(12))
        .rev()
        .map(|release| format!("{base}.so.{release}"))
        .collect();
    names.push(format!("{base}.so"));
    names
}

impl Compiler {
    /// The compiler for a driver of CUDA release `major`.
    pub(super) fn open(libraries: &Libraries, major: u32) -> Result<Self, DeviceError> {
        Self::of(libraries.open(
            &names_for("libnvrtc", major),
            "install NVRTC of the CUDA toolkit and name its folder in LD_LIBRARY_PATH",
        )?)
    }
}

impl Products {
    /// The library for a driver of CUDA release `major`.
    pub(super) fn open(libraries: &Libraries, major: u32) -> Result<Self, DeviceError> {
        Self::of(libraries.open(
            &names_for("libcublas", major),
            "install cuBLAS of the CUDA toolkit and name its folder in LD_LIBRARY_PATH",
        )?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_release_than_the_drivers_is_no_first_choice() {
        let expected = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];
        assert_eq!(names_for("libnvrtc", 13), expected);
        assert_eq!(names_for("libnvrtc", 11)[0], "libnvrtc.so.12");
    }
}
