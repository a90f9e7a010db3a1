//! Serves an embedded chain with all contracts and a storage node until Ctrl-C, and prints where they are:
//! `cargo run -p zerog-storage --features node --example storage_node`

#![allow(
    clippy::print_stdout,
    reason = "the addresses are this program's output"
)]

use zerog_chain::deploy;
use zerog_devchain::{DevChain, Options};
use zerog_storage::node::{NodeOptions, StorageNode};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let genesis = deploy::genesis(&deploy::DeployOptions::default())?;
    let options = Options {
        genesis_transactions: genesis.transactions,
        ..Default::default()
    };
    let server =
        DevChain::open(options)?.serve(tokio::net::TcpListener::bind("127.0.0.1:0").await?)?;
    let data_dir = tempfile::tempdir()?;
    let flow = genesis
        .addresses
        .flow
        .ok_or("the genesis has a Flow contract")?;
    let options = NodeOptions::new(data_dir.path(), server.url(), flow);
    let node = StorageNode::start(NodeOptions {
        listen: ([127, 0, 0, 1], 0).into(),
        ..options
    })
    .await?;
    println!("rpc {}", server.url());
    println!("storage {}", node.node_url());
    println!("flow {flow}");
    tokio::signal::ctrl_c().await?;
    node.shutdown().await;
    server.shutdown().await;
    Ok(())
}
