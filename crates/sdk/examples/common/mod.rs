//! What the examples share: a broker for the wallet and network of the environment.

use std::error::Error;

use zerog_sdk::{Broker, BrokerOptions, SecretKey};

/// Connects as `PRIVATE_KEY` to the network `NETWORK`, by default the `devnet` that runs on this machine.
pub(crate) async fn connect() -> Result<Broker, Box<dyn Error>> {
    let key = std::env::var("PRIVATE_KEY")
        .map_err(|_| "set PRIVATE_KEY; `0g-compute-devnet up` prints development keys")?;
    let network = std::env::var("NETWORK").unwrap_or_else(|_| "devnet".into());
    let options = BrokerOptions::network(&network)?.with_wallet(key.trim().parse::<SecretKey>()?);
    Ok(Broker::connect(options).await?)
}

/// Arguments of the program, exactly as many as there are names.
pub(crate) fn arguments<const N: usize>(names: [&str; N]) -> Result<[String; N], Box<dyn Error>> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    <[String; N]>::try_from(given).map_err(|_| format!("arguments: {}", names.join(" ")).into())
}
