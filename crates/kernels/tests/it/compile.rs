//! The text of the kernels in NVIDIA's own compiler, which needs no GPU: `cargo xtask cuda` installs it and sets the
//! variable.

use std::path::PathBuf;
use zerog_kernels::cuda::{Libraries, check_source};

/// The folder with `libnvrtc.so.12`.
const COMPILER: &str = "ZEROG_NVRTC_DIR";

#[test]
fn nvrtc_makes_machine_code_of_the_kernels() {
    let Some(folder) = std::env::var_os(COMPILER) else {
        eprintln!("not run: {COMPILER} is not set");
        return;
    };
    let libraries = Libraries::Folder(PathBuf::from(folder));
    // The last one is of no GPU: the compiler makes intermediate code for it.
    for capability in [(8, 0), (8, 6), (8, 9), (9, 0), (99, 0)] {
        let bytes = check_source(&libraries, 12, capability).unwrap();
        assert!(bytes > 10_000, "{capability:?}: {bytes} bytes");
    }
}
