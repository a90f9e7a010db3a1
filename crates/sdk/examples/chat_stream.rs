//! Asks a question and prints the answer while it is made, then proves that the enclave gave it.
//!
//! `PRIVATE_KEY=0x… cargo run -p zerog-sdk --example chat_stream -- MODEL QUESTION`, with the name of an adapter or of the
//! base model.

#![allow(clippy::print_stdout, reason = "an example talks to its user")]

mod common;

use std::error::Error;
use std::io::Write;

use serde_json::json;
use zerog_sdk::Progress;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let [model, question] = common::arguments(["MODEL", "QUESTION"])?;
    let broker = common::connect().await?;
    let services = broker.inference.list_service(0, 1, false).await?;
    let provider = services.first().ok_or("no provider")?.provider;

    let lora = &broker.inference.lora;
    let body = json!({"model": model, "messages": [{"role": "user", "content": question}]});
    let show = |news: Progress| {
        if let Progress::Notice { text } = news {
            println!("{text}");
        }
    };
    let mut stream = lora.chat_stream(provider, body, show).await?;
    while let Some(text) = stream.next().await? {
        print!("{text}");
        std::io::stdout().flush()?;
    }
    let answer = stream.finish().await?;
    let proof = lora.verify_answer(provider, &answer).await?;
    let (prompt, completion, _) = answer.usage().unwrap_or_default();
    println!(
        "\n{prompt} + {completion} tokens, signed by the enclave {}",
        proof.signer
    );
    Ok(())
}
