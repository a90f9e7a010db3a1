//! Files of the job directory at rest: everything but `job.json` is encrypted under the job key.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read};
use std::path::Path;

use zerog_protocol::FileKey;
use zerog_protocol::sealed_archive::{ArchiveError, decrypt, encrypt_unsigned};

use crate::error::TrainError;

/// Encrypts `plaintext` into `path`, which appears complete or not at all.
///
/// # Errors
/// [`TrainError::Io`].
pub fn seal_file(path: &Path, plaintext: &mut impl Read, key: &FileKey) -> Result<(), TrainError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let temporary =
        tempfile::NamedTempFile::new_in(directory).map_err(TrainError::io(directory))?;
    {
        let mut output = BufWriter::new(temporary.as_file());
        encrypt_unsigned(plaintext, &mut output, key).map_err(|source| sealed(path, source))?;
    }
    temporary
        .as_file()
        .sync_all()
        .map_err(TrainError::io(path))?;
    temporary.persist(path).map_err(|error| TrainError::Io {
        path: path.to_owned(),
        source: error.error,
    })?;
    // The rename itself is durable only once the directory is.
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(TrainError::io(directory))
}

/// Reads a sealed file whole. For files that are small or needed whole, such as checkpoints.
///
/// # Errors
/// [`TrainError::Io`] and [`TrainError::Sealed`].
pub fn open_file(path: &Path, key: &FileKey) -> Result<Vec<u8>, TrainError> {
    let mut input = BufReader::new(File::open(path).map_err(TrainError::io(path))?);
    let mut plaintext = Vec::new();
    decrypt(&mut input, &mut plaintext, key).map_err(|source| sealed(path, source))?;
    Ok(plaintext)
}

/// Decrypts a sealed file chunk by chunk while `consume` reads it.
///
/// # Errors
/// [`TrainError::Io`] and [`TrainError::Sealed`]; a failure of `consume` wins over a broken
/// pipe that it caused.
pub fn with_opened<T>(
    path: &Path,
    key: &FileKey,
    consume: impl FnOnce(&mut dyn Read) -> Result<T, TrainError>,
) -> Result<T, TrainError> {
    let mut input = BufReader::new(File::open(path).map_err(TrainError::io(path))?);
    let (mut reader, mut writer) = std::io::pipe().map_err(TrainError::io(path))?;
    std::thread::scope(|scope| {
        let decrypting = scope.spawn(move || decrypt(&mut input, &mut writer, key));
        let consumed = consume(&mut reader);
        // A consumer that stopped early leaves the writer with a closed pipe instead of waiting.
        drop(reader);
        match decrypting.join() {
            Ok(Ok(_)) => consumed,
            Ok(Err(ArchiveError::Io(error))) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                consumed
            }
            // What was read before the damage is not to be believed.
            Ok(Err(source)) => Err(sealed(path, source)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn sealed(path: &Path, source: ArchiveError) -> TrainError {
    match source {
        ArchiveError::Io(source) => TrainError::Io {
            path: path.to_owned(),
            source,
        },
        source => TrainError::Sealed {
            path: path.to_owned(),
            source,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_file_opens_with_its_key_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.sealed");
        let key = FileKey::from_bytes([7; 32]);
        seal_file(&path, &mut &b"secret words"[..], &key).unwrap();
        let stored = std::fs::read(&path).unwrap();
        assert!(!stored.windows(6).any(|window| window == b"secret"));
        assert_eq!(open_file(&path, &key).unwrap(), b"secret words");
        let mut text = String::new();
        with_opened(&path, &key, |reader| {
            reader.read_to_string(&mut text).unwrap();
            Ok(())
        })
        .unwrap();
        assert_eq!(text, "secret words");
        let other = FileKey::from_bytes([8; 32]);
        assert!(matches!(
            open_file(&path, &other),
            Err(TrainError::Sealed { .. })
        ));
        assert!(matches!(
            with_opened(&path, &other, |_| Ok(())),
            Err(TrainError::Sealed { .. })
        ));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
