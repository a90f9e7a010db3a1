//! The kernels' text and its translation for a device.
#![allow(unsafe_code)]

use super::libraries::{Compiler, Libraries};
use crate::device::DeviceError;
use std::ffi::{CString, c_char, c_int, c_void};
use std::ptr::{null, null_mut};

/// The kernels in CUDA C, in the order in which they need each other.
const SOURCES: [&str; 5] = [
    include_str!("source/common.cu"),
    include_str!("source/elementwise.cu"),
    include_str!("source/rows.cu"),
    include_str!("source/attention.cu"),
    include_str!("source/serving.cu"),
];

/// The oldest compute capability that is supported, for which every release of NVRTC makes intermediate code.
pub(super) const OLDEST: (u32, u32) = (8, 0);

fn check(function: &'static str, status: c_int) -> Result<(), DeviceError> {
    match status {
        0 => Ok(()),
        _ => Err(DeviceError::Call {
            function,
            reason: format!("NVRTC error {status}"),
        }),
    }
}

/// Compiles the kernels for a compute capability with the NVRTC that is found for CUDA release `release`; a check of
/// the text that needs neither a driver nor a GPU. Returns the size of the machine code in bytes.
///
/// # Errors
/// [`DeviceError::LibraryMissing`], [`DeviceError::FunctionMissing`], [`DeviceError::Compile`], [`DeviceError::Call`].
pub fn check_source(
    libraries: &Libraries,
    release: u32,
    capability: (u32, u32),
) -> Result<usize, DeviceError> {
    let compiler = Compiler::open(libraries, release)?;
    Ok(image(&compiler, capability)?.len())
}

/// Code for a device of this compute capability: machine code where the compiler knows it, because that runs on older
/// drivers of the same release too; else intermediate code, which the driver finishes.
pub(super) fn image(compiler: &Compiler, capability: (u32, u32)) -> Result<Vec<u8>, DeviceError> {
    let (major, minor) = capability;
    let wanted = (10 * major + minor) as c_int;
    let mut count = 0;
    // SAFETY: the pointer is valid for one number.
    check("nvrtcGetNumSupportedArchs", unsafe {
        (compiler.nvrtcGetNumSupportedArchs)(&mut count)
    })?;
    let mut known = vec![0 as c_int; count.max(0) as usize];
    // SAFETY: the buffer has the number of places that the library asked for.
    check("nvrtcGetSupportedArchs", unsafe {
        (compiler.nvrtcGetSupportedArchs)(known.as_mut_ptr())
    })?;
    let is_known = known.contains(&wanted);
    let architecture = match is_known {
        true => format!("--gpu-architecture=sm_{wanted}"),
        false => format!("--gpu-architecture=compute_{}{}", OLDEST.0, OLDEST.1),
    };

    let program = Program::new(compiler, &SOURCES.concat())?;
    program.compile(&architecture)?;
    match is_known {
        true => program.read(
            "nvrtcGetCUBIN",
            compiler.nvrtcGetCUBINSize,
            compiler.nvrtcGetCUBIN,
        ),
        false => program.read(
            "nvrtcGetPTX",
            compiler.nvrtcGetPTXSize,
            compiler.nvrtcGetPTX,
        ),
    }
}

/// A program of NVRTC's.
struct Program<'a> {
    compiler: &'a Compiler,
    handle: *mut c_void,
}

type Size = unsafe extern "C" fn(*mut c_void, *mut usize) -> c_int;
type Content = unsafe extern "C" fn(*mut c_void, *mut c_char) -> c_int;

impl<'a> Program<'a> {
    fn new(compiler: &'a Compiler, source: &str) -> Result<Self, DeviceError> {
        let source = CString::new(source).expect("the kernels' text has no zero byte");
        let mut handle = null_mut();
        // SAFETY: the texts end with zero; there are no headers.
        check("nvrtcCreateProgram", unsafe {
            (compiler.nvrtcCreateProgram)(
                &mut handle,
                source.as_ptr(),
                c"zerog.cu".as_ptr(),
                0,
                null(),
                null(),
            )
        })?;
        Ok(Self { compiler, handle })
    }

    fn compile(&self, architecture: &str) -> Result<(), DeviceError> {
        let options = [architecture, "--std=c++17"]
            .map(|option| CString::new(option).expect("options have no zero byte"));
        let pointers = options.each_ref().map(|option| option.as_ptr());
        // SAFETY: the options live until the call returns.
        let status = unsafe {
            (self.compiler.nvrtcCompileProgram)(
                self.handle,
                pointers.len() as c_int,
                pointers.as_ptr(),
            )
        };
        if status == 0 {
            return Ok(());
        }
        let log = self.read(
            "nvrtcGetProgramLog",
            self.compiler.nvrtcGetProgramLogSize,
            self.compiler.nvrtcGetProgramLog,
        )?;
        let text = String::from_utf8_lossy(&log);
        Err(DeviceError::Compile {
            log: format!("{} (error {status})", text.trim_end_matches('\0').trim()),
        })
    }

    fn read(
        &self,
        function: &'static str,
        size: Size,
        content: Content,
    ) -> Result<Vec<u8>, DeviceError> {
        let mut length = 0;
        // SAFETY: the pointer is valid for one number.
        check(function, unsafe { size(self.handle, &mut length) })?;
        let mut bytes = vec![0_u8; length];
        // SAFETY: the buffer has the length that the library asked for.
        check(function, unsafe {
            content(self.handle, bytes.as_mut_ptr().cast())
        })?;
        Ok(bytes)
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle came from the library and is not used again. A failure leaves nothing to be done.
        unsafe {
            (self.compiler.nvrtcDestroyProgram)(&mut self.handle);
        }
    }
}
