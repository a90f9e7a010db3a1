//! The small base model, carried inside the binary so that one file runs the network anywhere.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::{fs, io};

const FILES: &[(&str, &[u8])] = &[
    (
        "config.json",
        include_bytes!("../../../fixtures/tiny-qwen/config.json"),
    ),
    (
        "generation_config.json",
        include_bytes!("../../../fixtures/tiny-qwen/generation_config.json"),
    ),
    (
        "model.safetensors",
        include_bytes!("../../../fixtures/tiny-qwen/model.safetensors"),
    ),
    (
        "tokenizer.json",
        include_bytes!("../../../fixtures/tiny-qwen/tokenizer.json"),
    ),
    (
        "tokenizer_config.json",
        include_bytes!("../../../fixtures/tiny-qwen/tokenizer_config.json"),
    ),
];

/// Writes the model's files to `<data_dir>/models/tiny-qwen`, unless they are there unchanged, and returns that folder.
///
/// # Errors
/// Whatever the file system says.
pub fn unpack(data_dir: &Path) -> io::Result<PathBuf> {
    let folder = data_dir.join("models/tiny-qwen");
    fs::create_dir_all(&folder)?;
    for (name, content) in FILES {
        let path = folder.join(name);
        if fs::read(&path).is_ok_and(|existing| existing == *content) {
            continue;
        }
        let mut file = tempfile::NamedTempFile::new_in(&folder)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(&path)?;
    }
    Ok(folder)
}
