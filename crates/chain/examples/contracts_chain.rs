//! Serves an embedded chain with all contracts on the given port (0 picks one) until Ctrl-C, and prints where it is:
//! `cargo run -p zerog-chain --example contracts_chain -- 8545`. `benches/devnet.py` measures it.

#![allow(clippy::print_stdout, reason = "the address is this program's output")]

use zerog_chain::deploy;
use zerog_devchain::{DevChain, Options};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port: u16 = std::env::args().nth(1).map_or(Ok(0), |port| port.parse())?;
    let genesis = deploy::genesis(&deploy::DeployOptions::default())?;
    let chain = DevChain::open(Options {
        genesis_transactions: genesis.transactions,
        dev_methods: true,
        ..Default::default()
    })?;
    let server = chain.serve(tokio::net::TcpListener::bind(("127.0.0.1", port)).await?)?;
    println!("{}", server.url());
    tokio::signal::ctrl_c().await?;
    server.shutdown().await;
    Ok(())
}
