//! Where adapters lie in clear for a server that reads files: in memory only, for as long as the server has them.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use zerog_inference::AdapterPackage;

/// An adapter's files. They are removed when this is dropped.
#[derive(Debug)]
pub(super) struct AdapterFolder {
    path: PathBuf,
}

impl AdapterFolder {
    /// Writes the two files of PEFT into a folder that only this account reads.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn write(
        parent: &Path,
        name: &str,
        package: &AdapterPackage<'_>,
    ) -> std::io::Result<Self> {
        let path = parent.join(name);
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        DirBuilder::new().mode(0o700).create(&path)?;
        let folder = Self { path };
        for (name, content) in [
            ("adapter_config.json", &package.config),
            ("adapter_model.safetensors", &package.weights),
        ] {
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(folder.path.join(name))?
                .write_all(content)?;
        }
        Ok(folder)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for AdapterFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::error!(%error, "an adapter's files could not be removed from memory");
        }
    }
}

/// Creates the shared folder, empties it and makes sure that it is in memory: nothing sealed is written to a disk in clear.
///
/// # Errors
/// A sentence with the remedy.
pub(super) fn open_shared(folder: &Path) -> Result<PathBuf, String> {
    DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(folder)
        .and_then(|()| std::fs::canonicalize(folder))
        .map_err(|error| format!("{} cannot be created: {error}", folder.display()))
        .and_then(|folder| {
            let mounts = std::fs::read_to_string("/proc/self/mountinfo")
                .map_err(|error| format!("the mounts cannot be read: {error}"))?;
            match file_system_of(&folder, &mounts) {
                Some("tmpfs" | "ramfs") => Ok(folder),
                found => Err(format!(
                    "{} is on {}, where an adapter in clear would reach a disk; choose a folder on tmpfs, for example below \
                     /dev/shm",
                    folder.display(),
                    found.unwrap_or("an unknown file system")
                )),
            }
        })
        .and_then(|folder| {
            clear(&folder).map_err(|error| format!("{} cannot be emptied: {error}", folder.display()))?;
            Ok(folder)
        })
}

/// Removes what a process that was killed left; nothing but our own folders.
fn clear(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with(super::NAME_PREFIX)
        {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// The type of the file system that a path is on, from the text of `/proc/self/mountinfo`.
fn file_system_of<'a>(path: &Path, mounts: &'a str) -> Option<&'a str> {
    let mut best: Option<(usize, &str)> = None;
    for line in mounts.lines() {
        let mut fields = line.split(' ');
        let Some(point) = fields.nth(4) else { continue };
        let Some(kind) = line
            .split_once(" - ")
            .and_then(|(_, rest)| rest.split(' ').next())
        else {
            continue;
        };
        // A later mount on the same point hides the earlier one.
        if path.starts_with(point) && best.is_none_or(|(length, _)| point.len() >= length) {
            best = Some((point.len(), kind));
        }
    }
    best.map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
        23 22 0:20 / /dev/shm rw,nosuid shared:3 - tmpfs tmpfs rw\n\
        24 23 8:2 / /dev/shm/disk rw - xfs /dev/sdb rw\n";

    #[test]
    fn the_innermost_mount_decides() {
        let of = |path: &str| file_system_of(Path::new(path), MOUNTS);
        assert_eq!(of("/var/lib"), Some("ext4"));
        assert_eq!(of("/dev/shm/a"), Some("tmpfs"));
        assert_eq!(of("/dev/shm/disk/a"), Some("xfs"));
        assert_eq!(of("/dev/shmem"), Some("ext4"));
    }

    #[test]
    fn a_folder_on_a_disk_is_refused() {
        // Process information is on no disk, but not on tmpfs either, and cannot be written.
        let refused = open_shared(Path::new("/proc/self")).unwrap_err();
        assert!(refused.contains("proc"), "{refused}");
    }
}
