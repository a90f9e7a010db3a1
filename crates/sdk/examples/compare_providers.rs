//! What one task costs and how long it waits, at every provider: cheapest first, and of equal ones the shortest queue.
//!
//! `PRIVATE_KEY=0x… cargo run -p zerog-sdk --example compare_providers -- DATASET PARAMETERS`

#![allow(clippy::print_stdout, reason = "an example talks to its user")]

mod common;

use std::error::Error;

use zerog_sdk::amount::format_0g;
use zerog_sdk::{Address, Broker, Result as SdkResult, U256};

const MODEL: &str = "Qwen2.5-0.5B-Instruct";

/// One provider's offer. The order of the members is the order of preference.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Offer {
    fee: U256,
    pending: u64,
    provider: Address,
    is_estimate: bool,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let [dataset, parameters] = common::arguments(["DATASET", "PARAMETERS"])?;
    let training_params = std::fs::read_to_string(&parameters)?;
    let broker = common::connect().await?;
    let services = broker.fine_tuning.list_service(false).await?;
    let (broker, dataset, training_params) = (&broker, &dataset, &training_params);
    let asked = services.iter().map(|service| async move {
        let provider = service.provider;
        let offer = offer(broker, provider, dataset, training_params).await;
        (provider, offer)
    });
    let asked = futures::future::join_all(asked).await;

    let mut offers = Vec::new();
    for (provider, offer) in asked {
        match offer {
            Ok(offer) => offers.push(offer),
            // One provider that is down must not hide the others.
            Err(error) => println!("{provider}  left out: {error}"),
        }
    }
    offers.sort();
    for offer in &offers {
        println!(
            "{}  {:>12} 0G{}  {} waiting",
            offer.provider,
            format_0g(offer.fee),
            if offer.is_estimate { " (estimate)" } else { "" },
            offer.pending
        );
    }
    let best = offers.first().ok_or("no provider made an offer")?;
    println!("best: {}", best.provider);
    Ok(())
}

async fn offer(
    broker: &Broker,
    provider: Address,
    dataset: &str,
    training_params: &str,
) -> SdkResult<Offer> {
    let tuning = &broker.fine_tuning;
    let quote = tuning
        .quote_fee(provider, MODEL, dataset.as_ref(), training_params)
        .await?;
    Ok(Offer {
        fee: quote.total,
        pending: tuning.get_pending_task_counter(provider).await?,
        provider,
        is_estimate: quote.is_estimate,
    })
}
