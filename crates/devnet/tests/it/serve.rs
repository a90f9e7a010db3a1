//! `inference serve`: programs that know OpenAI's interface talk to a provider through it.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Cli, Network, wait_for};

/// Sends one request and returns head and body of the answer.
fn request(host: &str, line: &str, headers: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(host).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    write!(
        stream,
        "{line} HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_local_endpoint_signs_pays_and_streams() {
    let network = Network::start(&[]);
    let provider = network.info.provider_address.to_string();
    let p = provider.as_str();
    let cli = Cli::logged_in(&network, 4);
    cli.ok(&["deposit", "--amount", "4"]);

    let (said, talk) = (cli.path("serve.json"), cli.path("serve.log"));
    let _server = cli.spawn(
        &[
            "inference",
            "serve",
            "--provider",
            p,
            "--port",
            "0",
            "--json",
        ],
        fs::File::create(&said).unwrap(),
        fs::File::create(&talk).unwrap(),
    );
    let started: Value = wait_for("the endpoint", Duration::from_secs(30), || {
        serde_json::from_str(&fs::read_to_string(&said).ok()?).ok()
    });
    let url = started["url"].as_str().unwrap();
    let host = url
        .strip_prefix("http://")
        .and_then(|rest| rest.strip_suffix("/v1"))
        .unwrap();
    assert!(host.starts_with("127.0.0.1:"), "{started}");

    let models = request(host, "GET /v1/models", "", "");
    assert!(
        models.starts_with("HTTP/1.1 200") && models.contains("\"object\":\"list\""),
        "{models}"
    );
    let chat = |stream: bool, content_type: &str| {
        let body = json!({
            "model": started["model"], "max_tokens": 4, "stream": stream,
            "messages": [{"role": "user", "content": "Who are you?"}],
        });
        let headers = format!("Content-Type: {content_type}\r\n");
        let line = "POST /v1/chat/completions";
        request(host, line, &headers, &body.to_string())
    };
    let answer = chat(false, "application/json");
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("\"choices\""),
        "{answer}\n{}",
        fs::read_to_string(&talk).unwrap()
    );
    assert!(
        answer.to_ascii_lowercase().contains("\r\nzg-res-key: "),
        "{answer}"
    );
    let streamed = chat(true, "application/json");
    assert!(
        streamed.contains("text/event-stream") && streamed.contains("data: [DONE]"),
        "{streamed}"
    );
    // The sub-account was made and filled for it.
    let account = cli.json(&["get-sub-account", "--provider", p, "--service", "inference"]);
    let balance: u128 = account["balance_neuron"].as_str().unwrap().parse().unwrap();
    assert!(balance > 0, "{account}");

    // A form of a web page is not passed on, and refusals of the provider come through as they are read by clients.
    assert!(chat(false, "text/plain").starts_with("HTTP/1.1 415"));
    let unknown = json!({"model": "nobody", "messages": [{"role": "user", "content": "?"}]});
    let headers = "Content-Type: application/json\r\n";
    let line = "POST /v1/chat/completions";
    let refused = request(host, line, headers, &unknown.to_string());
    assert!(
        refused.starts_with("HTTP/1.1 4") && refused.contains("\"error\":{"),
        "{refused}"
    );
    assert!(request(host, "GET /v1/jobs", "", "").starts_with("HTTP/1.1 404"));
}
