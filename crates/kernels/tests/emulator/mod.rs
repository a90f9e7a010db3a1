//! NVIDIA's libraries for tests on machines without a GPU: the same functions over the processor's memory, so that
//! everything of the backend runs but the driver, NVRTC and cuBLAS themselves.
//!
//! They are compiled with g++ on first use. The folder is shared by all tests of a build and is never changed once it is
//! complete.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// The order in which the threads of a block take turns. Results that depend on it lack a barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code)] // Not every test program uses both.
pub(crate) enum Order {
    /// From the first to the last.
    Forward,
    /// From the last to the first.
    Reversed,
}

/// The libraries and their sources.
const LIBRARIES: [(&str, &str); 3] = [
    ("libcuda.so.1", "driver.cpp"),
    ("libnvrtc.so.12", "compiler.cpp"),
    ("libcublas.so.12", "products.cpp"),
];

/// A folder with the emulated libraries; `target` is the test program's `CARGO_TARGET_TMPDIR`.
pub(crate) fn folder(target: &str, order: Order) -> PathBuf {
    static BUILDING: Mutex<()> = Mutex::new(());
    let _guard = BUILDING
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels/tests/emulator");
    let folder =
        Path::new(target).join(format!("emulator-{order:?}-{:016x}", fingerprint(&sources)));
    if folder.exists() {
        return folder;
    }
    // Built elsewhere and put in place at once: other test programs may do the same.
    let building = Path::new(target).join(format!("emulator-{order:?}-{}", std::process::id()));
    fs::create_dir_all(&building).unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    for (library, source) in LIBRARIES {
        let mut command = Command::new("g++");
        command
            .args(["-std=c++17", "-O2", "-shared", "-fPIC", "-Wall", "-Werror"])
            .arg(format!("-DFOLDER=\"{}\"", text(&folder)))
            .arg(format!("-DHEADER=\"{}\"", text(&sources.join("thread.h"))))
            .arg(match order {
                Order::Forward => "-DORDER=\"\"",
                Order::Reversed => "-DORDER=\"-DREVERSED\"",
            })
            .arg(sources.join(source))
            .arg("-o")
            .arg(building.join(library));
        let status = command
            .status()
            .expect("g++ is needed for the tests of the feature `cuda`");
        assert!(status.success(), "g++ does not compile {source}");
    }
    if fs::rename(&building, &folder).is_err() {
        assert!(folder.exists(), "the emulator cannot be put in place");
        fs::remove_dir_all(&building).unwrap();
    }
    folder
}

/// A folder as [`folder`], whose device has memory that no other test takes from. `name` is that of the test.
#[allow(dead_code)] // Not every test program needs it.
pub(crate) fn folder_of_one_test(target: &str, name: &str) -> PathBuf {
    let shared = folder(target, Order::Forward);
    let own = Path::new(target).join(format!("emulator-{name}"));
    fs::create_dir_all(&own).unwrap();
    for (library, _) in LIBRARIES {
        // Removed first: the system may still have the old file mapped.
        let _ = fs::remove_file(own.join(library));
        fs::copy(shared.join(library), own.join(library)).unwrap();
    }
    own
}

/// A number that changes with the sources (FNV-1a).
fn fingerprint(sources: &Path) -> u64 {
    let mut names: Vec<PathBuf> = fs::read_dir(sources)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end != "rs"))
        .collect();
    names.sort();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for name in names {
        for byte in fs::read(name).unwrap() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}
