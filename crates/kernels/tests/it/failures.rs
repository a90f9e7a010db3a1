//! What is said when a library, a device or memory is missing.

use crate::emulator::Order;
use crate::{libraries, open};
use std::fs;
use zerog_kernels::attention::Heads;
use zerog_kernels::cuda::{Cuda, Libraries, Tiles};
use zerog_kernels::device::DeviceError;

/// The error with the libraries of `names` alone.
fn with_only(names: &[&str]) -> DeviceError {
    let Libraries::Folder(complete) = libraries(Order::Forward) else {
        unreachable!("the emulator is a folder")
    };
    let folder = tempfile::tempdir().unwrap();
    for name in names {
        fs::copy(complete.join(name), folder.path().join(name)).unwrap();
    }
    Cuda::open(0, &Libraries::Folder(folder.path().to_owned())).unwrap_err()
}

#[test]
fn a_missing_library_is_named_with_what_to_install() {
    let cases: [(&[&str], &str, &str); 3] = [
        (&[], "libcuda.so.1", "driver"),
        (&["libcuda.so.1"], "libnvrtc.so.12", "NVRTC"),
        (
            &["libcuda.so.1", "libnvrtc.so.12"],
            "libcublas.so.12",
            "cuBLAS",
        ),
    ];
    for (present, missing, remedy) in cases {
        let text = match with_only(present) {
            error @ DeviceError::LibraryMissing { .. } => error.to_string(),
            other => panic!("{other}"),
        };
        assert!(text.contains(missing) && text.contains(remedy), "{text}");
    }
}

#[test]
fn a_library_that_lacks_a_function_is_named() {
    let Libraries::Folder(complete) = libraries(Order::Forward) else {
        unreachable!("the emulator is a folder")
    };
    let folder = tempfile::tempdir().unwrap();
    fs::copy(
        complete.join("libcublas.so.12"),
        folder.path().join("libcuda.so.1"),
    )
    .unwrap();
    let error = Cuda::open(0, &Libraries::Folder(folder.path().to_owned())).unwrap_err();
    assert!(
        matches!(
            error,
            DeviceError::FunctionMissing {
                function: "cuInit",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_device_that_is_not_there_is_counted() {
    let error = Cuda::open(3, &libraries(Order::Forward)).unwrap_err();
    assert!(
        matches!(
            error,
            DeviceError::NoDevice {
                ordinal: 3,
                found: 1
            }
        ),
        "{error}"
    );
}

#[test]
fn memory_that_is_used_up_is_an_error_and_later_allocations_work() {
    let cuda = open(Order::Forward);
    let error = cuda.allocate::<f32>(1 << 30).unwrap_err();
    assert!(
        matches!(error, DeviceError::OutOfMemory { bytes, .. } if bytes == 4 << 30),
        "{error}"
    );
    let mut buffer = cuda.upload(&[1.0_f32, 2.0]).unwrap();
    assert_eq!(buffer.to_vec().unwrap(), [1.0, 2.0]);
    assert!(buffer.resize(1 << 30).is_err());
    cuda.write(&[3.0, 4.0], buffer.resize(2).unwrap()).unwrap();
    assert_eq!(buffer.to_vec().unwrap(), [3.0, 4.0]);
}

#[test]
fn heads_that_the_kernels_do_not_hold_are_refused() {
    let heads = Heads {
        queries: 1,
        groups: 1,
        size: 258,
    };
    let error = Tiles::new(&open(Order::Forward), heads, &[4]).unwrap_err();
    assert!(error.to_string().contains("258"), "{error}");
}
