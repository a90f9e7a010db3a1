//! Bytes to be stored: a file, or a part of it, as it is or encrypted on the fly.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use crate::{Error, encryption::Cipher};

/// Bytes that several threads read at any position.
pub trait Content: Sync {
    /// How many there are now.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    fn size(&self) -> io::Result<u64>;

    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    ///
    /// What the operating system says; [`io::ErrorKind::UnexpectedEof`] when there are not as many bytes.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl Content for [u8] {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..)?.get(..buffer.len()))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

impl Content for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    #[cfg(unix)]
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buffer, offset)
    }

    #[cfg(windows)]
    fn read_exact_at(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            match std::os::windows::fs::FileExt::seek_read(self, buffer, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    buffer = &mut buffer[read..];
                    offset += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Writes all bytes at a position.
pub(crate) fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::write_all_at(file, bytes, offset);
    #[cfg(windows)]
    {
        let (mut bytes, mut offset) = (bytes, offset);
        while !bytes.is_empty() {
            match std::os::windows::fs::FileExt::seek_write(file, bytes, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    bytes = &bytes[written..];
                    offset += written as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Makes the names in a directory durable. Only Unix has, and needs, such a thing.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    #[cfg(unix)]
    return File::open(directory)?.sync_all();
    #[cfg(not(unix))]
    {
        let _ = directory;
        Ok(())
    }
}

/// One object as the network gets it: a file, encrypted if wished, or a fragment of that.
#[derive(Debug)]
pub(crate) struct StoredObject {
    file: File,
    path: PathBuf,
    file_bytes: u64,
    cipher: Option<Cipher>,
    /// Where this fragment begins in header and ciphertext.
    start: u64,
    length: u64,
}

impl StoredObject {
    /// A whole file as it is.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::File {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(failed(io::Error::other("not a regular file")));
        }
        if metadata.len() == 0 {
            return Err(Error::EmptyFile);
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            file_bytes: metadata.len(),
            cipher: None,
            start: 0,
            length: metadata.len(),
        })
    }

    /// The same file behind a cipher.
    pub(crate) fn encrypted(mut self, cipher: Cipher) -> Self {
        self.length = cipher.header().len() as u64 + self.file_bytes;
        self.cipher = Some(cipher);
        self
    }

    /// The object cut into fragments of this size; the last one is shorter.
    pub(crate) fn fragments(self, fragment_bytes: u64) -> Result<Vec<Self>, Error> {
        let failed = |source| Error::File {
            path: self.path.clone(),
            source,
        };
        (0..self.length.div_ceil(fragment_bytes))
            .map(|index| {
                let start = index * fragment_bytes;
                Ok(Self {
                    file: self.file.try_clone().map_err(failed)?,
                    path: self.path.clone(),
                    cipher: self.cipher.clone(),
                    start: self.start + start,
                    length: fragment_bytes.min(self.length - start),
                    ..self
                })
            })
            .collect()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that are stored.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    pub(crate) fn failed(&self, source: io::Error) -> Error {
        if source.kind() == io::ErrorKind::InvalidData
            || source.kind() == io::ErrorKind::UnexpectedEof
        {
            return Error::FileChanged {
                path: self.path.clone(),
            };
        }
        Error::File {
            path: self.path.clone(),
            source,
        }
    }
}

impl Content for StoredObject {
    fn size(&self) -> io::Result<u64> {
        if self.file.metadata()?.len() != self.file_bytes {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the file's length changed",
            ));
        }
        Ok(self.length)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if offset + buffer.len() as u64 > self.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let position = self.start + offset;
        let Some(cipher) = &self.cipher else {
            return self.file.read_exact_at(buffer, position);
        };
        let header = cipher.header();
        let in_header = usize::try_from(position)
            .ok()
            .and_then(|position| header.get(position..))
            .unwrap_or_default();
        let (from_header, rest) = buffer.split_at_mut(in_header.len().min(buffer.len()));
        from_header.copy_from_slice(&in_header[..from_header.len()]);
        let plain_offset = position.saturating_sub(header.len() as u64);
        self.file.read_exact_at(rest, plain_offset)?;
        cipher.apply(rest, plain_offset);
        Ok(())
    }
}
