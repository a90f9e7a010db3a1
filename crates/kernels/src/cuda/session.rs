//! A device that is open: its memory, launches of kernels, products of matrices.
//!
//! Everything runs in the default stream of the device's primary context, one operation after the other.
#![allow(unsafe_code)]

use super::compile;
use super::libraries::{Compiler, Driver, Libraries, Products};
use super::memory::{Buffer, Element, Part, PartMut};
use crate::device::DeviceError;
use crate::matmul::Write;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_int, c_void};
use std::fmt;
use std::ops::Range;
use std::ptr::{null, null_mut};
use std::sync::Arc;

const ERROR_OUT_OF_MEMORY: c_int = 2;
const ERROR_NO_DEVICE: c_int = 100;
const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;
/// Given to cuBLAS, so that it neither allocates by itself nor chooses by what is free; the size that its documentation
/// recommends for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;
/// `CUDA_R_32F` and `CUBLAS_COMPUTE_32F`: sums in single precision, without TF32.
const SINGLE: c_int = 0;
const COMPUTE_SINGLE: c_int = 68;
const DEFAULT_ALGORITHM: c_int = -1;

/// An NVIDIA GPU that is open for computing. Clones are the same device.
#[derive(Clone)]
pub struct Cuda(Arc<Session>);

pub(super) struct Session {
    ordinal: u32,
    name: String,
    // Declared in the order in which they are to be closed.
    products: ProductsHandle,
    module: Module,
    functions: Mutex<HashMap<&'static str, Handle>>,
    context: Context,
}

/// A pointer of the driver's, valid on every thread whose current context is that of the device.
#[derive(Clone, Copy)]
struct Handle(*mut c_void);

// SAFETY: the driver's handles are not tied to a thread.
unsafe impl Send for Handle {}
// SAFETY: as above; calls that are not safe to make at once are made under a lock.
unsafe impl Sync for Handle {}

struct Context {
    driver: Driver,
    device: c_int,
    handle: Handle,
}

struct Module {
    context: Handle,
    unload: unsafe extern "C" fn(*mut c_void) -> c_int,
    enter: unsafe extern "C" fn(*mut c_void) -> c_int,
    handle: Handle,
}

struct ProductsHandle {
    library: Products,
    /// One call at a time.
    handle: Mutex<Handle>,
    workspace: u64,
}

/// An argument of a kernel.
#[derive(Clone, Copy)]
pub(super) enum Argument {
    Address(u64),
    U32(u32),
    U64(u64),
    F32(f32),
    F64(f64),
}

impl Argument {
    /// Its bytes, the low ones first.
    fn bits(self) -> u64 {
        match self {
            Self::Address(value) | Self::U64(value) => value.to_le(),
            Self::U32(value) => u64::from(value).to_le(),
            Self::F32(value) => u64::from(value.to_bits()).to_le(),
            Self::F64(value) => value.to_bits().to_le(),
        }
    }
}

/// Blocks, threads of a block and bytes of shared memory of a launch.
#[derive(Clone, Copy)]
pub(super) struct Grid {
    pub(super) blocks: (u32, u32),
    pub(super) threads: u32,
    pub(super) shared_bytes: u32,
}

/// A matrix of a product, row-major, as it is in memory.
#[derive(Clone, Copy)]
pub struct Operand<'a, T> {
    pub(super) values: Part<'a, T>,
    pub(super) columns: usize,
    pub(super) is_transposed: bool,
}

impl<'a, T: Element> Operand<'a, T> {
    /// The matrix with these `columns`.
    pub fn rows(values: impl Into<Part<'a, T>>, columns: usize) -> Self {
        Self {
            values: values.into(),
            columns,
            is_transposed: false,
        }
    }

    /// The transpose of the matrix with these `columns`.
    pub fn transposed(values: impl Into<Part<'a, T>>, columns: usize) -> Self {
        Self {
            is_transposed: true,
            ..Self::rows(values, columns)
        }
    }

    /// Rows and columns as a factor.
    fn shape(&self) -> (usize, usize) {
        let rows = self.values.len() / self.columns;
        assert_eq!(self.values.len(), rows * self.columns);
        match self.is_transposed {
            true => (self.columns, rows),
            false => (rows, self.columns),
        }
    }

    fn operation(&self) -> c_int {
        c_int::from(self.is_transposed)
    }
}

impl fmt::Debug for Cuda {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Cuda({}: {})", self.0.ordinal, self.0.name)
    }
}

impl Driver {
    fn check(&self, function: &'static str, status: c_int) -> Result<(), DeviceError> {
        if status == 0 {
            return Ok(());
        }
        let mut name = null();
        // SAFETY: the pointer is valid for one pointer; the text that it gets is constant.
        let name = unsafe {
            match (self.cuGetErrorName)(status, &mut name) {
                0 if !name.is_null() => CStr::from_ptr(name).to_string_lossy().into_owned(),
                _ => "an unknown error".to_owned(),
            }
        };
        Err(DeviceError::Call {
            function,
            reason: format!("{name} ({status})"),
        })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context was retained once by this object. A failure leaves nothing to be done.
        unsafe {
            (self.driver.cuDevicePrimaryCtxRelease_v2)(self.device);
        }
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: the handles are valid, and no kernel is launched any more.
        unsafe {
            (self.enter)(self.context.0);
            (self.unload)(self.handle.0);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let handle = *self.products.handle.lock();
        // SAFETY: the handle and the memory came from these libraries and are not used again.
        unsafe {
            (self.context.driver.cuCtxSetCurrent)(self.context.handle.0);
            (self.products.library.cublasDestroy_v2)(handle.0);
            (self.context.driver.cuMemFree_v2)(self.products.workspace);
        }
    }
}

impl Cuda {
    /// Opens GPU number `ordinal` with NVIDIA's libraries from `libraries`, and compiles the kernels for it.
    ///
    /// # Errors
    /// [`DeviceError::LibraryMissing`] or [`DeviceError::FunctionMissing`] naming the library,
    /// [`DeviceError::NoDevice`], [`DeviceError::TooOld`], [`DeviceError::Compile`], [`DeviceError::OutOfMemory`],
    /// [`DeviceError::Call`].
    pub fn open(ordinal: u32, libraries: &Libraries) -> Result<Self, DeviceError> {
        let driver = Driver::open(libraries)?;
        let missing = |found| DeviceError::NoDevice { ordinal, found };
        // SAFETY: the functions of the driver are called with valid pointers, in the order that its documentation asks.
        unsafe {
            match (driver.cuInit)(0) {
                ERROR_NO_DEVICE => return Err(missing(0)),
                status => driver.check("cuInit", status)?,
            }
            let mut count = 0;
            driver.check("cuDeviceGetCount", (driver.cuDeviceGetCount)(&mut count))?;
            if i64::from(ordinal) >= i64::from(count) {
                return Err(missing(count.max(0) as u32));
            }
            let mut device = 0;
            let status = (driver.cuDeviceGet)(&mut device, ordinal as c_int);
            driver.check("cuDeviceGet", status)?;
            let name = driver.name(device)?;
            let capability = driver.capability(device)?;
            if capability < compile::OLDEST {
                let (major, minor) = capability;
                return Err(DeviceError::TooOld { name, major, minor });
            }
            let mut release = 0;
            let status = (driver.cuDriverGetVersion)(&mut release);
            driver.check("cuDriverGetVersion", status)?;
            let release = (release / 1000).max(0) as u32;
            let compiler = Compiler::open(libraries, release)?;
            let library = Products::open(libraries, release)?;

            let mut handle = null_mut();
            let status = (driver.cuDevicePrimaryCtxRetain)(&mut handle, device);
            driver.check("cuDevicePrimaryCtxRetain", status)?;
            let context = Context {
                driver,
                device,
                handle: Handle(handle),
            };
            context.enter()?;
            let module = context.load(&compile::image(&compiler, capability)?)?;
            let products = context.products(library)?;
            Ok(Self(Arc::new(Session {
                ordinal,
                name,
                products,
                module,
                functions: Mutex::default(),
                context,
            })))
        }
    }

    /// The name of the GPU.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Bytes of device memory that are free.
    ///
    /// # Errors
    /// [`DeviceError::Call`].
    pub fn free_bytes(&self) -> Result<usize, DeviceError> {
        self.0.context.enter()?;
        self.0.context.free_bytes()
    }

    /// `target (M, N) = scale · left (M, K) · right (K, N)`, or added to it; sums are in single precision.
    ///
    /// # Errors
    /// [`DeviceError::Call`].
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn multiply<'a, T: Element>(
        &self,
        left: Operand<'_, T>,
        right: Operand<'_, T>,
        target: impl Into<PartMut<'a, f32>>,
        write: Write,
        scale: f32,
    ) -> Result<(), DeviceError> {
        let target = target.into();
        let (rows, inner) = left.shape();
        let (right_inner, columns) = right.shape();
        assert_eq!(inner, right_inner, "inner sizes");
        assert_eq!(target.len(), rows * columns, "the product's size");
        let kind = T::PRODUCT_TYPE.expect("products are of f32 or bf16");
        let size = |value: usize| c_int::try_from(value).expect("sizes of matrices fit 31 bits");
        let factor: f32 = match write {
            Write::Replace => 0.0,
            Write::Add => 1.0,
        };
        let session = &self.0;
        session.context.enter()?;
        let handle = session.products.handle.lock();
        // cuBLAS counts columns first: what is a matrix here is its transpose there, and (L·R)ᵀ = Rᵀ·Lᵀ.
        // SAFETY: the matrices are in device memory of this session and have the sizes that were checked above.
        let status = unsafe {
            (session.products.library.cublasGemmEx)(
                handle.0,
                right.operation(),
                left.operation(),
                size(columns),
                size(rows),
                size(inner),
                (&raw const scale).cast(),
                right.values.address() as *const c_void,
                kind,
                size(right.columns),
                left.values.address() as *const c_void,
                kind,
                size(left.columns),
                (&raw const factor).cast(),
                target.address() as *mut c_void,
                SINGLE,
                size(columns),
                COMPUTE_SINGLE,
                DEFAULT_ALGORITHM,
            )
        };
        check_product("cublasGemmEx", status)
    }

    /// Launches a kernel; an empty grid is no launch.
    pub(super) fn launch(
        &self,
        kernel: &'static str,
        grid: Grid,
        arguments: &[Argument],
    ) -> Result<(), DeviceError> {
        if grid.blocks.0 == 0 || grid.blocks.1 == 0 {
            return Ok(());
        }
        let session = &self.0;
        session.context.enter()?;
        let function = session.function(kernel)?;
        let mut bits: Vec<u64> = arguments.iter().map(|argument| argument.bits()).collect();
        let mut pointers: Vec<*mut c_void> = bits
            .iter_mut()
            .map(|bits| (&raw mut *bits).cast())
            .collect();
        let driver = &session.context.driver;
        // SAFETY: each argument is of the kernel's type and lives until the call returns; addresses are of buffers that
        // `operations` checked against what the kernel touches.
        let status = unsafe {
            (driver.cuLaunchKernel)(
                function.0,
                grid.blocks.0,
                grid.blocks.1,
                1,
                grid.threads,
                1,
                1,
                grid.shared_bytes,
                null_mut(),
                pointers.as_mut_ptr(),
                null_mut(),
            )
        };
        driver.check("cuLaunchKernel", status)
    }

    /// A buffer of `length` elements whose content is undefined.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], [`DeviceError::Call`].
    pub fn allocate<T: Element>(&self, length: usize) -> Result<Buffer<T>, DeviceError> {
        self.0.context.enter()?;
        // The driver refuses empty allocations.
        let address = self
            .0
            .context
            .allocate((length * size_of::<T>()).max(size_of::<T>()))?;
        Ok(Buffer::new(self.clone(), address, length))
    }

    /// A buffer with a copy of `values`.
    ///
    /// # Errors
    /// As [`Cuda::allocate`].
    pub fn upload<T: Element>(&self, values: &[T]) -> Result<Buffer<T>, DeviceError> {
        let mut buffer = self.allocate(values.len())?;
        self.write(values, &mut buffer)?;
        Ok(buffer)
    }

    /// Copies `values` to the device.
    ///
    /// # Errors
    /// [`DeviceError::Call`].
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn write<'a, T: Element>(
        &self,
        values: &[T],
        target: impl Into<PartMut<'a, T>>,
    ) -> Result<(), DeviceError> {
        let target = target.into();
        assert_eq!(values.len(), target.len());
        if values.is_empty() {
            return Ok(());
        }
        self.0.context.enter()?;
        let driver = &self.0.context.driver;
        // SAFETY: both sides have the length; the call returns when the values were read.
        let status = unsafe {
            (driver.cuMemcpyHtoD_v2)(
                target.address(),
                values.as_ptr().cast(),
                size_of_val(values),
            )
        };
        driver.check("cuMemcpyHtoD", status)
    }

    /// Copies a part of device memory to `values`, after all work before it is done.
    ///
    /// # Errors
    /// [`DeviceError::Call`], also for failures of work before it.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn read<'a, T: Element>(
        &self,
        source: impl Into<Part<'a, T>>,
        values: &mut [T],
    ) -> Result<(), DeviceError> {
        let source = source.into();
        assert_eq!(values.len(), source.len());
        if values.is_empty() {
            return Ok(());
        }
        self.0.context.enter()?;
        let driver = &self.0.context.driver;
        // SAFETY: both sides have the length; every bit pattern is an element; the call returns when all is written.
        let status = unsafe {
            (driver.cuMemcpyDtoH_v2)(
                values.as_mut_ptr().cast(),
                source.address(),
                size_of_val(values),
            )
        };
        driver.check("cuMemcpyDtoH", status)
    }

    /// Copies within device memory.
    ///
    /// # Errors
    /// [`DeviceError::Call`].
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn copy<'a, 'b, T: Element>(
        &self,
        source: impl Into<Part<'a, T>>,
        target: impl Into<PartMut<'b, T>>,
    ) -> Result<(), DeviceError> {
        let (source, target) = (source.into(), target.into());
        assert_eq!(source.len(), target.len());
        if source.is_empty() {
            return Ok(());
        }
        self.0.context.enter()?;
        let driver = &self.0.context.driver;
        // SAFETY: both parts have the length, and do not overlap because one is borrowed mutably.
        let status = unsafe {
            (driver.cuMemcpyDtoDAsync_v2)(
                target.address(),
                source.address(),
                source.len() * size_of::<T>(),
                null_mut(),
            )
        };
        driver.check("cuMemcpyDtoDAsync", status)
    }

    /// Copies the elements `source` of a buffer to those from `target` on.
    ///
    /// # Errors
    /// [`DeviceError::Call`].
    ///
    /// # Panics
    /// If one of the two is not inside, or if they overlap.
    pub fn copy_within<T: Element>(
        &self,
        buffer: &mut Buffer<T>,
        source: Range<usize>,
        target: usize,
    ) -> Result<(), DeviceError> {
        let length = source.len();
        assert!(source.end <= target || target + length <= source.start);
        let source = buffer.part(source).address();
        let target = buffer.part_mut(target..target + length).address();
        self.0.context.enter()?;
        let driver = &self.0.context.driver;
        // SAFETY: both places are inside the buffer, have the length and do not overlap.
        let status = unsafe {
            (driver.cuMemcpyDtoDAsync_v2)(target, source, length * size_of::<T>(), null_mut())
        };
        driver.check("cuMemcpyDtoDAsync", status)
    }

    /// Sets every element to zero.
    ///
    /// # Errors
    /// [`DeviceError::Call`].
    pub fn clear<'a, T: Element>(
        &self,
        target: impl Into<PartMut<'a, T>>,
    ) -> Result<(), DeviceError> {
        let target = target.into();
        if target.is_empty() {
            return Ok(());
        }
        self.0.context.enter()?;
        let driver = &self.0.context.driver;
        // SAFETY: the part has the length; zero bytes are a zero of every element type.
        let status = unsafe {
            (driver.cuMemsetD8Async)(
                target.address(),
                0,
                target.len() * size_of::<T>(),
                null_mut(),
            )
        };
        driver.check("cuMemsetD8Async", status)
    }

    /// Gives memory back.
    pub(super) fn free(&self, address: u64) {
        if self.0.context.enter().is_ok() {
            // SAFETY: the address is of a buffer that is being dropped. A failure leaves nothing to be done.
            unsafe {
                (self.0.context.driver.cuMemFree_v2)(address);
            }
        }
    }
}

impl Session {
    fn function(&self, kernel: &'static str) -> Result<Handle, DeviceError> {
        let mut functions = self.functions.lock();
        if let Some(function) = functions.get(kernel) {
            return Ok(*function);
        }
        let name = CString::new(kernel).expect("names of kernels have no zero byte");
        let driver = &self.context.driver;
        let mut handle = null_mut();
        // SAFETY: the module is loaded; the name ends with zero.
        let status = unsafe {
            (driver.cuModuleGetFunction)(&mut handle, self.module.handle.0, name.as_ptr())
        };
        driver.check("cuModuleGetFunction", status)?;
        functions.insert(kernel, Handle(handle));
        Ok(Handle(handle))
    }
}

impl Driver {
    fn name(&self, device: c_int) -> Result<String, DeviceError> {
        let mut name = [0; 256];
        // SAFETY: the buffer has the length that is passed; the driver ends the name with zero.
        let status =
            unsafe { (self.cuDeviceGetName)(name.as_mut_ptr(), name.len() as c_int, device) };
        self.check("cuDeviceGetName", status)?;
        let bytes: Vec<u8> = name
            .iter()
            .map(|byte| *byte as u8)
            .take_while(|byte| *byte != 0)
            .collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn capability(&self, device: c_int) -> Result<(u32, u32), DeviceError> {
        let number = |attribute| {
            let mut value = 0;
            // SAFETY: the pointer is valid for one number.
            let status = unsafe { (self.cuDeviceGetAttribute)(&mut value, attribute, device) };
            self.check("cuDeviceGetAttribute", status)?;
            Ok(value.max(0) as u32)
        };
        Ok((number(CAPABILITY_MAJOR)?, number(CAPABILITY_MINOR)?))
    }
}

impl Context {
    /// Makes the context that of the calling thread.
    fn enter(&self) -> Result<(), DeviceError> {
        // SAFETY: the context is retained as long as this object lives.
        let status = unsafe { (self.driver.cuCtxSetCurrent)(self.handle.0) };
        self.driver.check("cuCtxSetCurrent", status)
    }

    fn free_bytes(&self) -> Result<usize, DeviceError> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the pointers are valid for one number each.
        let status = unsafe { (self.driver.cuMemGetInfo_v2)(&mut free, &mut total) };
        self.driver.check("cuMemGetInfo", status)?;
        Ok(free)
    }

    fn allocate(&self, bytes: usize) -> Result<u64, DeviceError> {
        let mut address = 0;
        // SAFETY: the pointer is valid for one address.
        match unsafe { (self.driver.cuMemAlloc_v2)(&mut address, bytes) } {
            ERROR_OUT_OF_MEMORY => Err(DeviceError::OutOfMemory {
                bytes,
                free: self.free_bytes()?,
            }),
            status => {
                self.driver.check("cuMemAlloc", status)?;
                Ok(address)
            }
        }
    }

    fn load(&self, image: &[u8]) -> Result<Module, DeviceError> {
        let mut handle = null_mut();
        // SAFETY: the image is what NVRTC made, complete.
        let status = unsafe { (self.driver.cuModuleLoadData)(&mut handle, image.as_ptr().cast()) };
        self.driver.check("cuModuleLoadData", status)?;
        Ok(Module {
            context: self.handle,
            unload: self.driver.cuModuleUnload,
            enter: self.driver.cuCtxSetCurrent,
            handle: Handle(handle),
        })
    }

    fn products(&self, library: Products) -> Result<ProductsHandle, DeviceError> {
        let workspace = self.allocate(WORKSPACE_BYTES)?;
        let mut handle = null_mut();
        // SAFETY: the context is current; the workspace lives as long as the handle.
        unsafe {
            check_product("cublasCreate", (library.cublasCreate_v2)(&mut handle))?;
            check_product("cublasSetMathMode", (library.cublasSetMathMode)(handle, 0))?;
            let status =
                (library.cublasSetWorkspace_v2)(handle, workspace as *mut c_void, WORKSPACE_BYTES);
            check_product("cublasSetWorkspace", status)?;
        }
        Ok(ProductsHandle {
            library,
            handle: Mutex::new(Handle(handle)),
            workspace,
        })
    }
}

fn check_product(function: &'static str, status: c_int) -> Result<(), DeviceError> {
    match status {
        0 => Ok(()),
        _ => Err(DeviceError::Call {
            function,
            reason: format!("cuBLAS status {status}"),
        }),
    }
}
