//! Where a model is trained, in every build.

use super::*;

#[test]
fn the_processor_is_where_models_are_trained_by_default() {
    let placement = Placement::new(&tiny_base(true), Device::Cpu).unwrap();
    assert!(!placement.is_on_device());
    assert_eq!(placement.free_bytes().unwrap(), None);
    TrainableModel::full(&tiny_base(true), 1)
        .place(&placement)
        .unwrap();
}

/// Whether the program has code for the device.
fn is_built() -> bool {
    cfg!(feature = "cuda")
}

/// Without code for the device, or without the driver. A machine with a GPU has both.
#[test]
fn a_device_that_cannot_be_used_is_an_error_that_says_what_to_do() {
    let Err(error) = Placement::new(&tiny_base(true), Device::Cuda(0)) else {
        assert!(is_built());
        return;
    };
    let text = error.to_string();
    match error {
        ModelError::Device(DeviceError::NotBuilt {
            device: Device::Cuda(0),
        }) => {
            assert!(!is_built() && text.contains("--features cuda"), "{text}");
        }
        ModelError::Device(DeviceError::LibraryMissing { .. } | DeviceError::NoDevice { .. }) => {
            assert!(is_built() && text.contains("\"cpu\""), "{text}");
        }
        other => panic!("{other}"),
    }
}
