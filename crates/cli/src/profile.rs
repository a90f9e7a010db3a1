//! The profile folder: the chosen network, the networks with names of their own, and the wallet key as an encrypted
//! keystore or, on demand, a private file.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zerog_sdk::wallet::{Keystore, parse_key};
use zerog_sdk::{NetworkSettings, SecretKey};

use crate::exit_code::{AUTHENTICATION, Failure, GENERAL, Outcome};

const FOLDER: &str = ".0g-compute-cli";
const NETWORK_FILE: &str = "network.json";
/// One file for each network that was given a name.
const NETWORKS_FOLDER: &str = "networks";
/// Longest name of a network in bytes.
const MAX_NAME_BYTES: usize = 64;
const KEYSTORE_FILE: &str = "keystore.json";
const PLAIN_KEY_FILE: &str = "plain.key";

/// The profile folder. It is made when something is first written.
#[derive(Debug, Clone)]
pub(crate) struct Profile {
    folder: PathBuf,
}

/// The saved choice of `setup-network`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedNetwork {
    network: NetworkSettings,
}

/// Which key is saved.
#[derive(Debug)]
pub(crate) enum SavedKey {
    /// Needs a password.
    Encrypted(Box<Keystore>),
    /// Readable for this user alone.
    Plain(SecretKey),
}

impl Profile {
    /// `ZG_HOME`, else a folder in the user's home.
    pub(crate) fn locate() -> Outcome<Self> {
        let set = |name: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let folder = match (set("ZG_HOME"), set("HOME").or_else(|| set("USERPROFILE"))) {
            (Some(folder), _) => folder,
            (None, Some(home)) => home.join(FOLDER),
            (None, None) => {
                return Err(Failure::new(
                    GENERAL,
                    "no_home",
                    "neither ZG_HOME nor HOME is set; set ZG_HOME to a folder for the profile",
                ));
            }
        };
        Ok(Self { folder })
    }

    /// Where it is.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Tokenizers and upload journals.
    pub(crate) fn cache_dir(&self) -> PathBuf {
        self.folder.join("cache")
    }

    /// The saved network.
    pub(crate) fn network(&self) -> Outcome<Option<NetworkSettings>> {
        read_network(&self.folder.join(NETWORK_FILE))
    }

    /// The network that was saved under a name of its own.
    pub(crate) fn named_network(&self, name: &str) -> Outcome<Option<NetworkSettings>> {
        if !is_network_name(name) {
            return Ok(None);
        }
        read_network(&self.folder.join(network_file(name)))
    }

    /// Every network that was saved under a name of its own, by name.
    pub(crate) fn named_networks(&self) -> Outcome<Vec<NetworkSettings>> {
        let folder = self.folder.join(NETWORKS_FOLDER);
        let failed = |error| Failure::file("read", &folder, error);
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut networks = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                networks.extend(read_network(&path)?);
            }
        }
        networks.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(networks)
    }

    /// Saves the network as the chosen one. One with a name of its own is kept when another is chosen.
    pub(crate) fn save_network(&self, network: &NetworkSettings) -> Outcome {
        // Earlier versions had the chosen one only. A damaged file is about to be replaced.
        if let Ok(Some(earlier)) = self.network()
            && self.named_network(&earlier.name)?.is_none()
        {
            self.keep(&earlier)?;
        }
        self.keep(network)?;
        self.write(NETWORK_FILE, &saved_text(network))
    }

    fn keep(&self, network: &NetworkSettings) -> Outcome {
        if !is_network_name(&network.name) || NetworkSettings::by_name(&network.name).is_ok() {
            return Ok(());
        }
        self.write(&network_file(&network.name), &saved_text(network))
    }

    /// The saved key.
    pub(crate) fn key(&self) -> Outcome<Option<SavedKey>> {
        if let Some(text) = read_optional(&self.folder.join(KEYSTORE_FILE))? {
            let keystore = serde_json::from_str(&text).map_err(|_| {
                Failure::new(
                    AUTHENTICATION,
                    "invalid_key",
                    "the keystore is damaged; run `0g-compute-cli login` again",
                )
            })?;
            return Ok(Some(SavedKey::Encrypted(Box::new(keystore))));
        }
        let path = self.folder.join(PLAIN_KEY_FILE);
        let Some(text) = read_optional(&path)? else {
            return Ok(None);
        };
        refuse_readable_by_others(&path)?;
        Ok(Some(SavedKey::Plain(parse_key(&text)?)))
    }

    /// Saves the key encrypted, in place of any saved before.
    pub(crate) fn save_keystore(&self, keystore: &Keystore) -> Outcome {
        let text = serde_json::to_string_pretty(keystore).expect("a keystore is plain data");
        self.write(KEYSTORE_FILE, &text)?;
        remove(&self.folder.join(PLAIN_KEY_FILE)).map(|_| ())
    }

    /// Saves the key as it is, readable for this user alone.
    pub(crate) fn save_plain_key(&self, key_text: &str) -> Outcome {
        self.write(PLAIN_KEY_FILE, key_text)?;
        remove(&self.folder.join(KEYSTORE_FILE)).map(|_| ())
    }

    /// Forgets the key; whether there was one.
    pub(crate) fn forget_key(&self) -> Outcome<bool> {
        let keystore = remove(&self.folder.join(KEYSTORE_FILE))?;
        let plain = remove(&self.folder.join(PLAIN_KEY_FILE))?;
        Ok(keystore || plain)
    }

    /// Writes a file of mode 0600 in a folder of mode 0700; it appears whole.
    fn write(&self, name: &str, text: &str) -> Outcome {
        let path = self.folder.join(name);
        let failed = |error: std::io::Error| Failure::file("write", &path, error);
        make_private_folder(path.parent().unwrap_or(&self.folder)).map_err(failed)?;
        // Temporary files are made with mode 0600.
        let mut temporary = tempfile::NamedTempFile::new_in(&self.folder).map_err(failed)?;
        std::io::Write::write_all(&mut temporary, text.as_bytes()).map_err(failed)?;
        temporary.as_file().sync_all().map_err(failed)?;
        temporary
            .persist(&path)
            .map_err(|error| failed(error.error))?;
        Ok(())
    }
}

/// Whether a network can be saved under a name: it is part of a file's name.
pub(crate) fn is_network_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(is_plain)
}

fn network_file(name: &str) -> String {
    format!("{NETWORKS_FOLDER}/{name}.json")
}

fn saved_text(network: &NetworkSettings) -> String {
    let network = network.clone();
    serde_json::to_string_pretty(&SavedNetwork { network }).expect("settings are plain data")
}

fn read_network(path: &Path) -> Outcome<Option<NetworkSettings>> {
    let Some(text) = read_optional(path)? else {
        return Ok(None);
    };
    let saved: SavedNetwork = serde_json::from_str(&text).map_err(|error| {
        let message = format!(
            "{} cannot be read ({error}); remove it and run `0g-compute-cli setup-network` again",
            path.display()
        );
        Failure::new(GENERAL, "profile", message)
    })?;
    Ok(Some(saved.network))
}

fn read_optional(path: &Path) -> Outcome<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::file("read", path, error)),
    }
}

fn remove(path: &Path) -> Outcome<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Failure::file("remove", path, error)),
    }
}

fn make_private_folder(folder: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

/// A key that other users can read is not used.
pub(crate) fn refuse_readable_by_others(path: &Path) -> Outcome {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let metadata =
            std::fs::metadata(path).map_err(|error| Failure::file("read", path, error))?;
        if metadata.permissions().mode() & 0o077 != 0 {
            let message = format!(
                "{} can be read by other users; run `chmod 600 {}`",
                path.display(),
                path.display()
            );
            return Err(Failure::new(
                AUTHENTICATION,
                "key_file_permissions",
                message,
            ));
        }
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile() -> (tempfile::TempDir, Profile) {
        let folder = tempfile::tempdir().unwrap();
        let profile = Profile {
            folder: folder.path().join("deep/profile"),
        };
        (folder, profile)
    }

    #[cfg(unix)]
    fn mode(path: &Path) -> u32 {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn networks_are_saved_and_damaged_files_are_named() {
        let (_guard, profile) = profile();
        assert_eq!(profile.network().unwrap(), None);
        let network = NetworkSettings::by_name("devnet").unwrap();
        profile.save_network(&network).unwrap();
        assert_eq!(profile.network().unwrap(), Some(network));
        std::fs::write(profile.folder().join(NETWORK_FILE), "{\"x\":1}").unwrap();
        assert!(
            profile
                .network()
                .unwrap_err()
                .message
                .contains("setup-network")
        );
    }

    #[test]
    fn networks_with_names_are_kept_when_another_is_chosen() {
        let (_guard, profile) = profile();
        let network = |name: &str| NetworkSettings {
            name: name.into(),
            rpc_url: format!("http://{name}:8545"),
            ..NetworkSettings::by_name("devnet").unwrap()
        };
        for name in ["lab", "attic", "devnet"] {
            profile.save_network(&network(name)).unwrap();
        }
        assert_eq!(profile.network().unwrap(), Some(network("devnet")));
        assert_eq!(
            profile.named_networks().unwrap(),
            [network("attic"), network("lab")]
        );
        assert_eq!(profile.named_network("lab").unwrap(), Some(network("lab")));
        assert_eq!(profile.named_network("../network").unwrap(), None);
        assert_eq!(profile.named_network("devnet").unwrap(), None);

        // What an earlier version saved, which had one file, is kept as well.
        let old = saved_text(&network("old"));
        std::fs::write(profile.folder().join(NETWORK_FILE), old).unwrap();
        profile.save_network(&network("devnet")).unwrap();
        assert_eq!(profile.named_network("old").unwrap(), Some(network("old")));
        for name in ["", ".lab", "a/b", "a b", &"a".repeat(65)] {
            assert!(!is_network_name(name), "{name}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn keys_are_private_and_replace_each_other() {
        let (_guard, profile) = profile();
        assert!(profile.key().unwrap().is_none());
        let key = SecretKey::random();
        profile
            .save_plain_key(&format!("0x{}", hex::encode(key.expose_bytes())))
            .unwrap();
        assert_eq!(mode(profile.folder()), 0o700);
        assert_eq!(mode(&profile.folder().join(PLAIN_KEY_FILE)), 0o600);
        assert!(
            matches!(profile.key().unwrap(), Some(SavedKey::Plain(saved)) if saved.address() == key.address())
        );

        profile
            .save_keystore(&Keystore::encrypt(&key, "pass").unwrap())
            .unwrap();
        assert_eq!(mode(&profile.folder().join(KEYSTORE_FILE)), 0o600);
        assert!(!profile.folder().join(PLAIN_KEY_FILE).exists());
        assert!(matches!(
            profile.key().unwrap(),
            Some(SavedKey::Encrypted(_))
        ));
        assert!(profile.forget_key().unwrap());
        assert!(!profile.forget_key().unwrap());
    }

    #[cfg(unix)]
    #[test]
    fn a_plain_key_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let (_guard, profile) = profile();
        profile.save_plain_key(&"11".repeat(32)).unwrap();
        let path = profile.folder().join(PLAIN_KEY_FILE);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let failure = profile.key().unwrap_err();
        assert_eq!(failure.exit_code, AUTHENTICATION);
        assert!(failure.message.contains("chmod 600"));
    }
}
