//! Finding a network that runs on this machine.

use std::path::{Path, PathBuf};

use alloy_primitives::Address;
use serde::Deserialize;
use zerog_chain::Addresses;

use crate::broker::NetworkSettings;
use crate::error::{Error, Result};

/// Names the file that `0g-compute-devnet up --ready-file` wrote, for a network on other ports than the default ones.
pub const READY_FILE_VARIABLE: &str = "ZEROG_DEVNET_READY_FILE";

/// What this crate needs of a ready file.
#[derive(Deserialize)]
struct Ready {
    rpc_url: String,
    chain_id: u64,
    indexer_url: String,
    contracts: Contracts,
}

#[derive(Deserialize)]
struct Contracts {
    ledger: Address,
    inference: Address,
    fine_tuning: Address,
    flow: Address,
}

impl NetworkSettings {
    /// As [`NetworkSettings::by_name`], but `devnet` is the network that runs: the one of the ready file that
    /// [`READY_FILE_VARIABLE`] names, else the default ports.
    ///
    /// # Errors
    /// [`Error::Argument`] for an unknown name, [`Error::File`] for an unreadable ready file.
    pub fn find(name: &str) -> Result<Self> {
        let known = Self::by_name(name)?;
        match std::env::var_os(READY_FILE_VARIABLE).filter(|path| !path.is_empty()) {
            Some(path) if known.name == "devnet" => Self::from_ready_file(&PathBuf::from(path)),
            _ => Ok(known),
        }
    }

    /// The `devnet` of a ready file.
    ///
    /// # Errors
    /// [`Error::File`] when it cannot be read, [`Error::Argument`] when it is no ready file.
    pub fn from_ready_file(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).map_err(|error| Error::file("read", path, error))?;
        let ready: Ready = serde_json::from_str(&text).map_err(|error| Error::Argument {
            name: "ready-file",
            reason: format!(
                "{} was not written by `0g-compute-devnet up --ready-file` ({error})",
                path.display()
            ),
        })?;
        Ok(Self {
            name: "devnet".into(),
            rpc_url: ready.rpc_url,
            chain_id: ready.chain_id,
            storage_indexer_url: ready.indexer_url,
            addresses: Addresses {
                ledger: ready.contracts.ledger,
                inference: ready.contracts.inference,
                fine_tuning: ready.contracts.fine_tuning,
                flow: Some(ready.contracts.flow),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ready_file_names_ports_and_contracts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ready.json");
        let contract = |digit: &str| format!("0x{}", digit.repeat(40));
        let text = serde_json::json!({
            "rpc_url": "http://127.0.0.1:1", "chain_id": 31337, "storage_url": "http://127.0.0.1:2",
            "indexer_url": "http://127.0.0.1:3", "provider_url": "", "provider_address": contract("9"), "accounts": [],
            "contracts": {"ledger": contract("1"), "inference": contract("2"), "fine_tuning": contract("3"),
                          "flow": contract("4"), "market": contract("5")},
        });
        std::fs::write(&path, text.to_string()).unwrap();
        let network = NetworkSettings::from_ready_file(&path).unwrap();
        assert_eq!(
            (network.name.as_str(), network.rpc_url.as_str()),
            ("devnet", "http://127.0.0.1:1")
        );
        assert_eq!(network.storage_indexer_url, "http://127.0.0.1:3");
        assert_eq!(network.addresses.flow, Some(Address::repeat_byte(0x44)));

        std::fs::write(&path, "{}").unwrap();
        let error = NetworkSettings::from_ready_file(&path).unwrap_err();
        assert!(error.to_string().contains("--ready-file"), "{error}");
        let missing = NetworkSettings::from_ready_file(&folder.path().join("none"));
        assert_eq!(missing.unwrap_err().code(), "file");
    }
}
