//! Serves a chain with development methods on the given port (0 picks one) until Ctrl-C:
//! `cargo run -p zerog-devchain --example devchain -- 8545`

#![allow(clippy::print_stdout, reason = "the address is this program's output")]

use zerog_devchain::{DevChain, Options};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port: u16 = std::env::args().nth(1).map_or(Ok(0), |port| port.parse())?;
    let chain = DevChain::open(Options {
        dev_methods: true,
        ..Default::default()
    })?;
    let server = chain.serve(tokio::net::TcpListener::bind(("127.0.0.1", port)).await?)?;
    println!("{}", server.url());
    tokio::signal::ctrl_c().await?;
    server.shutdown().await;
    Ok(())
}
