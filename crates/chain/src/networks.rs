//! Addresses and endpoints by network name (`docs/protocol.md`, networks).

use alloy_primitives::{Address, address};

use crate::Addresses;

/// One public or development network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// Name as typed in `setup-network --network`.
    pub name: &'static str,
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// Default JSON-RPC endpoint.
    pub rpc_url: &'static str,
    /// Indexer of the storage network that fine-tuning uses ("turbo").
    pub storage_indexer_url: &'static str,
    /// Indexer of the standard storage network, where one is published.
    pub storage_standard_indexer_url: Option<&'static str>,
    /// Block explorer, where there is one.
    pub explorer_url: Option<&'static str>,
    /// Contract addresses. Flow is the turbo one; a storage node's status must agree with it.
    pub addresses: Addresses,
}

/// 0G mainnet.
pub const MAINNET: Network = Network {
    name: "mainnet",
    chain_id: 16661,
    rpc_url: "https://evmrpc.0g.ai",
    storage_indexer_url: "https://indexer-storage-turbo.0g.ai",
    storage_standard_indexer_url: Some("https://indexer-storage-standard.0g.ai"),
    explorer_url: Some("https://chainscan.0g.ai"),
    addresses: Addresses {
        ledger: address!("2dE54c845Cd948B72D2e32e39586fe89607074E3"),
        inference: address!("47340d900bdFec2BD393c626E12ea0656F938d84"),
        fine_tuning: address!("4e3474095518883744ddf135b7E0A23301c7F9c0"),
        flow: Some(address!("62D4144dB0F0a6fBBaeb6296c785C71B3D57C526")),
    },
};

/// The public testnet ("Galileo").
pub const TESTNET: Network = Network {
    name: "testnet",
    chain_id: 16602,
    rpc_url: "https://evmrpc-testnet.0g.ai",
    storage_indexer_url: "https://indexer-storage-testnet-turbo.0g.ai",
    storage_standard_indexer_url: Some("https://indexer-storage-testnet-standard.0g.ai"),
    explorer_url: Some("https://chainscan-galileo.0g.ai"),
    addresses: Addresses {
        ledger: address!("E70830508dAc0A97e6c087c75f402f9Be669E406"),
        inference: address!("a79F4c8311FF93C06b8CfB403690cc987c93F91E"),
        fine_tuning: address!("C6C075D8039763C8f1EbE580be5ADdf2fd6941bA"),
        flow: Some(address!("22E03a6A89B950F1c82ec5e74F8eCa321a105296")),
    },
};

/// Development contracts on the public testnet's chain.
pub const TESTNET_DEV: Network = Network {
    name: "testnet-dev",
    chain_id: 16602,
    rpc_url: "https://evmrpc-testnet.0g.ai",
    storage_indexer_url: "https://indexer-storage-testnet-turbo.0g.ai",
    storage_standard_indexer_url: Some("https://indexer-storage-testnet-standard.0g.ai"),
    explorer_url: Some("https://chainscan-galileo.0g.ai"),
    addresses: Addresses {
        ledger: address!("815B93ab4Ba4BDF530dbF1552649a3c534F8BbF7"),
        inference: address!("41bD7Ac5c19000A974D5c192bcd5FB67b56C85c5"),
        fine_tuning: address!("4e4158DF35CfdC0ac63264D3E112F5B8E9a5c569"),
        flow: Some(address!("22E03a6A89B950F1c82ec5e74F8eCa321a105296")),
    },
};

/// A whole network on this machine (`0g-compute-devnet`).
pub const DEVNET: Network = Network {
    name: "devnet",
    chain_id: 31337,
    rpc_url: "http://127.0.0.1:8545",
    storage_indexer_url: "http://127.0.0.1:5678",
    storage_standard_indexer_url: None,
    explorer_url: None,
    addresses: Addresses {
        ledger: address!("9fE46736679d2D9a65F0992F2272dE9f3c7fa6e0"),
        inference: address!("0165878A594ca255338adfa4d48449f69242Eb8F"),
        fine_tuning: address!("A51c1fc2f0D1a1b8494Ed1FE312d7C3a78Ed91C0"),
        flow: Some(address!("9A9f2CCfdE556A7E9Ff0848998Aa4a0CFD8863AE")),
    },
};

/// Every known network.
pub const ALL: [Network; 4] = [MAINNET, TESTNET, TESTNET_DEV, DEVNET];

/// Fee market of the development network, which Flow asks for its price.
pub const DEVNET_MARKET: Address = address!("959922bE3CAee4b8Cd9a407cc3ac1C251C2007B1");

/// The network with this name, in any case; `hardhat` and `local` also mean [`DEVNET`].
#[must_use]
pub fn by_name(name: &str) -> Option<Network> {
    let name = name.to_ascii_lowercase();
    let name = match name.as_str() {
        "hardhat" | "local" => "devnet",
        other => other,
    };
    ALL.into_iter().find(|network| network.name == name)
}

/// The network with this chain id; 16602 means the public testnet's own contracts.
#[must_use]
pub fn by_chain_id(chain_id: u64) -> Option<Network> {
    ALL.into_iter().find(|network| network.chain_id == chain_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_chain_ids_find_their_network() {
        assert_eq!(by_name("Mainnet"), Some(MAINNET));
        assert_eq!(by_name("hardhat"), Some(DEVNET));
        assert_eq!(by_name("nowhere"), None);
        assert_eq!(by_chain_id(16602), Some(TESTNET));
        assert_eq!(by_chain_id(31337), Some(DEVNET));
        assert_eq!(by_chain_id(1), None);
    }
}
