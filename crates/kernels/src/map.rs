//! Read-only file mapping, the one place where a file becomes a byte slice without a copy.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

/// A file mapped into memory for reading.
///
/// Weight files are published by renaming a finished file into place and are never changed afterwards.
/// A file that another process truncates while it is mapped ends this process when the missing pages
/// are read; it cannot be turned into an error.
#[derive(Debug)]
pub struct MappedFile {
    /// `None` stands for an empty file, which the operating system refuses to map.
    map: Option<memmap2::Mmap>,
}

impl MappedFile {
    /// Maps the whole file at `path`.
    ///
    /// # Errors
    /// Whatever opening or mapping reports.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Ok(Self { map: None });
        }
        // SAFETY: the mapping is read-only and private; see the type's documentation for the file
        // being changed by others.
        let map = unsafe { memmap2::MmapOptions::new().map(&file)? };
        Ok(Self { map: Some(map) })
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_the_bytes_of_a_file_and_accepts_an_empty_one() {
        let directory = std::env::temp_dir().join(format!("zerog-map-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("bytes");
        std::fs::write(&path, b"seven words").unwrap();
        assert_eq!(&*MappedFile::open(&path).unwrap(), b"seven words");
        std::fs::write(&path, b"").unwrap();
        assert!(MappedFile::open(&path).unwrap().is_empty());
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
