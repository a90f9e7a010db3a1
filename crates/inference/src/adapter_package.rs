//! An adapter as it arrives: the members of a decrypted archive or of a folder, read within limits and compared with
//! what the engine serves.
//!
//! Everything comes from outside. What would make the adapter act otherwise than it did after training is refused here,
//! by reading, or by [`crate::canary`], by computing.

use std::borrow::Cow;
use std::io::{Cursor, Read};
use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};
use zerog_model::{ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, BaseModel};
use zerog_protocol::limits::{MAX_ADAPTER_BYTES, MAX_ARCHIVE_MEMBERS};
use zerog_protocol::manifest::AdapterManifest;
use zerog_tokenization::Tokenizer;
use zip::CompressionMethod;

use crate::canary::{Canary, CanaryError};

/// Largest member that is not the weights, in bytes.
const MAX_SMALL_MEMBER_BYTES: u64 = 64 << 20;
/// Largest expansion of a compressed member.
const MAX_EXPANSION: u64 = 10;
/// Bytes that a small member may expand to, whatever its compressed size.
const SMALL_EXPANSION: u64 = 1 << 20;

/// Why a package was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackageError {
    /// The archive is not one.
    #[error("the archive is not a zip file: {problem}")]
    NotAnArchive {
        /// What is wrong.
        problem: String,
    },
    /// More members than any adapter has.
    #[error("the archive has more than {MAX_ARCHIVE_MEMBERS} members")]
    TooManyMembers,
    /// A member would be written outside the archive's folder.
    #[error("the archive member {name:?} leaves the archive")]
    PathLeavesArchive {
        /// Its name.
        name: String,
    },
    /// A member is there twice.
    #[error("the archive holds {name} twice")]
    Duplicate {
        /// Its name.
        name: String,
    },
    /// Members are too large, or far larger than their compressed form.
    #[error("the archive unpacks to more than an adapter may have")]
    TooLarge,
    /// A member cannot be unpacked.
    #[error("{name} does not unpack: {problem}")]
    Damaged {
        /// Its name.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// A file that every adapter has is not there.
    #[error("the adapter has no {name}")]
    Missing {
        /// Its name.
        name: &'static str,
    },
    /// A member is not JSON of the known form.
    #[error("{name} is not valid: {problem}")]
    Invalid {
        /// Its name.
        name: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// A file of a folder cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The manifest names other base weights.
    #[error("the adapter was trained on base weights {expected}; this engine serves {found}")]
    WrongBase {
        /// Hash in the manifest.
        expected: String,
        /// Hash of the served base.
        found: String,
    },
    /// The tokenizer of the package is another one.
    #[error("the adapter was trained with another tokenizer: {difference}")]
    OtherTokenizer {
        /// Where they differ.
        difference: String,
    },
    /// The chat template of the package is another one.
    #[error("the adapter was trained with another chat template")]
    OtherTemplate,
    /// The record of reference logits cannot be read.
    #[error(transparent)]
    Canary(#[from] CanaryError),
}

/// Where a package is read from.
pub enum PackageSource {
    /// The bytes of a decrypted archive.
    Zip(Box<dyn AsRef<[u8]> + Send + Sync>),
    /// A folder.
    Folder(PathBuf),
}

impl std::fmt::Debug for PackageSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Zip(_) => f.write_str("Zip"),
            Self::Folder(path) => f.debug_tuple("Folder").field(path).finish(),
        }
    }
}

impl PackageSource {
    /// Reads it.
    ///
    /// # Errors
    /// [`PackageError`].
    pub fn read(&self) -> Result<AdapterPackage<'_>, PackageError> {
        match self {
            Self::Zip(bytes) => AdapterPackage::from_zip((**bytes).as_ref()),
            Self::Folder(path) => AdapterPackage::from_folder(path),
        }
    }
}

/// The files of an adapter.
#[derive(Debug)]
pub struct AdapterPackage<'a> {
    /// `adapter_config.json`.
    pub config: Cow<'a, [u8]>,
    /// `adapter_model.safetensors`.
    pub weights: Cow<'a, [u8]>,
    /// `canary.json`: the reference logits, if there are any.
    pub canary: Option<Canary>,
    /// `manifest.json`, if there is one.
    pub manifest: Option<AdapterManifest>,
    tokenizer: TokenizerFiles<'a>,
}

/// Tokenizer files that came with the adapter; all optional.
#[derive(Debug, Default)]
struct TokenizerFiles<'a> {
    tokenizer: Option<Cow<'a, [u8]>>,
    config: Option<Cow<'a, [u8]>>,
    template: Option<Cow<'a, [u8]>>,
    generation: Option<Cow<'a, [u8]>>,
}

/// What was found, by name.
#[derive(Debug, Default)]
struct Found<'a> {
    config: Option<Cow<'a, [u8]>>,
    weights: Option<Cow<'a, [u8]>>,
    canary: Option<Cow<'a, [u8]>>,
    manifest: Option<Cow<'a, [u8]>>,
    tokenizer: TokenizerFiles<'a>,
}

impl<'a> Found<'a> {
    fn slot(&mut self, name: &str) -> Option<&mut Option<Cow<'a, [u8]>>> {
        Some(match name {
            ADAPTER_CONFIG_FILE => &mut self.config,
            ADAPTER_WEIGHTS_FILE => &mut self.weights,
            "canary.json" => &mut self.canary,
            "manifest.json" => &mut self.manifest,
            "tokenizer.json" => &mut self.tokenizer.tokenizer,
            "tokenizer_config.json" => &mut self.tokenizer.config,
            "chat_template.jinja" => &mut self.tokenizer.template,
            "generation_config.json" => &mut self.tokenizer.generation,
            _ => return None,
        })
    }

    fn package(self) -> Result<AdapterPackage<'a>, PackageError> {
        let manifest = match &self.manifest {
            Some(json) => {
                let parsed = serde_json::from_slice(json);
                Some(parsed.map_err(|error| PackageError::Invalid {
                    name: "manifest.json",
                    problem: error.to_string(),
                })?)
            }
            None => None,
        };
        Ok(AdapterPackage {
            config: self.config.ok_or(PackageError::Missing {
                name: ADAPTER_CONFIG_FILE,
            })?,
            weights: self.weights.ok_or(PackageError::Missing {
                name: ADAPTER_WEIGHTS_FILE,
            })?,
            canary: self.canary.map(|json| Canary::parse(&json)).transpose()?,
            manifest,
            tokenizer: self.tokenizer,
        })
    }
}

impl<'a> AdapterPackage<'a> {
    /// Reads the members of a zip file: no paths that leave it, no links, no bombs. What is stored uncompressed is not
    /// copied.
    ///
    /// # Errors
    /// [`PackageError`].
    pub fn from_zip(bytes: &'a [u8]) -> Result<Self, PackageError> {
        let not_an_archive = |error: &dyn std::fmt::Display| PackageError::NotAnArchive {
            problem: error.to_string(),
        };
        let mut zip =
            zip::ZipArchive::new(Cursor::new(bytes)).map_err(|error| not_an_archive(&error))?;
        if zip.len() > MAX_ARCHIVE_MEMBERS {
            return Err(PackageError::TooManyMembers);
        }
        let mut found = Found::default();
        let mut total = 0u64;
        for index in 0..zip.len() {
            let mut member = zip
                .by_index(index)
                .map_err(|error| not_an_archive(&error))?;
            let name = member
                .name()
                .map_err(|error| not_an_archive(&error))?
                .into_owned();
            if !stays_inside(&name) || member.is_symlink() {
                return Err(PackageError::PathLeavesArchive { name });
            }
            if member.is_dir() {
                continue;
            }
            let size = member.size();
            total = total.saturating_add(size);
            let most = member
                .compressed_size()
                .saturating_mul(MAX_EXPANSION)
                .max(SMALL_EXPANSION);
            if total > MAX_ADAPTER_BYTES || size > most {
                return Err(PackageError::TooLarge);
            }
            let Some(short) = short_name(&name) else {
                continue;
            };
            let Some(slot) = found.slot(short) else {
                continue;
            };
            if slot.is_some() {
                return Err(PackageError::Duplicate { name: short.into() });
            }
            if short != ADAPTER_WEIGHTS_FILE && size > MAX_SMALL_MEMBER_BYTES {
                return Err(PackageError::TooLarge);
            }
            let stored = (member.compression() == CompressionMethod::Stored)
                .then(|| stored_member(bytes, member.data_start()?, size))
                .flatten();
            *slot = Some(match stored {
                Some(slice) => Cow::Borrowed(slice),
                None => {
                    let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
                    member
                        .by_ref()
                        .take(size.saturating_add(1))
                        .read_to_end(&mut content)
                        .map_err(|error| PackageError::Damaged {
                            name: short.into(),
                            problem: error.to_string(),
                        })?;
                    Cow::Owned(content)
                }
            });
        }
        found.package()
    }

    /// Reads the files of a folder, as PEFT or our own archives have them.
    ///
    /// # Errors
    /// [`PackageError`].
    pub fn from_folder(folder: &Path) -> Result<AdapterPackage<'static>, PackageError> {
        let mut found = Found::default();
        let mut total = 0;
        for name in [
            ADAPTER_CONFIG_FILE,
            ADAPTER_WEIGHTS_FILE,
            "canary.json",
            "manifest.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
            "generation_config.json",
        ] {
            let path = folder.join(name);
            let failed = |source| PackageError::Read {
                path: path.display().to_string(),
                source,
            };
            let size = match std::fs::metadata(&path) {
                Ok(metadata) => metadata.len(),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            };
            total += size;
            if total > MAX_ADAPTER_BYTES
                || (name != ADAPTER_WEIGHTS_FILE && size > MAX_SMALL_MEMBER_BYTES)
            {
                return Err(PackageError::TooLarge);
            }
            let content = std::fs::read(&path).map_err(failed)?;
            if let Some(slot) = found.slot(name) {
                *slot = Some(Cow::Owned(content));
            }
        }
        found.package()
    }

    /// Compares what the package says about its base model and brings as its tokenizer with what is served.
    ///
    /// # Errors
    /// [`PackageError::WrongBase`], [`PackageError::OtherTokenizer`], [`PackageError::OtherTemplate`],
    /// [`PackageError::Invalid`].
    pub fn check_fits(&self, model: &BaseModel, tokenizer: &Tokenizer) -> Result<(), PackageError> {
        if let Some(manifest) = &self.manifest {
            let expected = manifest.base_model_sha256.trim_start_matches("0x");
            let found = model.sha256_hex();
            if !expected.eq_ignore_ascii_case(&found) {
                return Err(PackageError::WrongBase {
                    expected: expected.to_owned(),
                    found,
                });
            }
        }
        let Some(own) = self.tokenizer()? else {
            return Ok(());
        };
        if let Some(difference) = own.difference_to(tokenizer) {
            return Err(PackageError::OtherTokenizer { difference });
        }
        if own.has_chat_template() && !own.has_same_template(tokenizer) {
            return Err(PackageError::OtherTemplate);
        }
        Ok(())
    }

    /// The tokenizer that came along. The manifest's hash must be that of its file.
    fn tokenizer(&self) -> Result<Option<Tokenizer>, PackageError> {
        let files = &self.tokenizer;
        let Some(json) = &files.tokenizer else {
            return Ok(None);
        };
        if let Some(manifest) = &self.manifest {
            let expected = manifest.tokenizer_sha256.trim_start_matches("0x");
            let found = hex::encode(Sha256::digest(json));
            if !expected.is_empty() && !expected.eq_ignore_ascii_case(&found) {
                return Err(PackageError::OtherTokenizer {
                    difference: "the file is not the one that the manifest names".into(),
                });
            }
        }
        let invalid = |problem: String| PackageError::Invalid {
            name: "tokenizer.json",
            problem,
        };
        let template = match &files.template {
            Some(bytes) => {
                Some(
                    std::str::from_utf8(bytes).map_err(|error| PackageError::Invalid {
                        name: "chat_template.jinja",
                        problem: error.to_string(),
                    })?,
                )
            }
            None => None,
        };
        Tokenizer::from_parts(
            json,
            files.config.as_deref(),
            template,
            files.generation.as_deref(),
        )
        .map(Some)
        .map_err(|error| invalid(error.to_string()))
    }
}

/// Whether a member's name is a plain relative path.
fn stays_inside(name: &str) -> bool {
    !name.is_empty()
        && !name.contains('\\')
        && Path::new(name)
            .components()
            .all(|component| matches!(component, Component::Normal(_)))
}

/// The name below at most one folder; `None` deeper down.
fn short_name(name: &str) -> Option<&str> {
    match name.split_once('/') {
        Some((_, rest)) if rest.contains('/') => None,
        Some((_, rest)) => Some(rest),
        None => Some(name),
    }
}

fn stored_member(bytes: &[u8], start: u64, size: u64) -> Option<&[u8]> {
    let start = usize::try_from(start).ok()?;
    bytes.get(start..start.checked_add(usize::try_from(size).ok()?)?)
}
