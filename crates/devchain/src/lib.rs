//! A deterministic embedded EVM with a JSON-RPC front.
