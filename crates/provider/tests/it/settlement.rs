//! Balances that do not cover what is owed, settlements that are paid in part, and a crash before the receipt is read:
//! what can be paid is paid once, the rest stays owed until there is money for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use alloy_primitives::U256;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde_json::{Value, json};
use zerog_provider::{Config, Provider};

use crate::world::{User, World};

/// Neuron in a tenth of a 0G.
const TENTH: u128 = 100_000_000_000_000_000;
/// What one answer of one token costs.
const ANSWER: u128 = 3 * TENTH;

/// Long enough for whatever a test does before the first settlement.
const LATER: Duration = Duration::from_secs(2);
const SOON: Duration = Duration::from_millis(100);
const NEVER: Duration = Duration::from_secs(3600);

/// A provider whose every answer costs the same.
fn dear(world: &World, settles_every: Duration) -> Config {
    let mut config = world.config("p");
    let role = config.inference.as_mut().unwrap();
    // The registered prices stay the same over restarts.
    role.input_price = U256::ZERO;
    role.output_price = U256::from(ANSWER);
    role.min_settlement_fee = U256::ONE;
    role.settlement_interval = settles_every;
    config
}

async fn ask(user: &User) {
    let body = json!({"model": "mock-model", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1});
    let answer = user.post_signed("/v1/proxy/chat/completions", body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["usage"]["completion_tokens"], 1);
}

async fn owed(user: &User) -> u128 {
    let path = format!("/v1/user/{}/unsettledfee", user.address());
    let fee = user.get_signed(&path).await.json();
    fee["unsettledFee"].as_str().unwrap().parse().unwrap()
}

async fn wait_until_owed(user: &User, expected: u128) {
    let started = Instant::now();
    loop {
        let owed = owed(user).await;
        if owed == expected {
            return;
        }
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "still {owed} neuron owed instead of {expected}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn balance(user: &User) -> u128 {
    let account = user
        .chain
        .inference()
        .account(user.address(), user.provider)
        .await
        .unwrap();
    account.unwrap().balance.to()
}

async fn add(user: &User, neuron: u128) {
    let ledger = user.chain.ledger();
    let name = ledger.inference_service_name().await.unwrap();
    ledger
        .transfer_fund(user.provider, &name, U256::from(neuron))
        .await
        .unwrap();
}

/// Takes everything out of the sub-account and puts `neuron` back in.
async fn reduce_balance_to(world: &World, user: &User, neuron: u128) {
    let ledger = user.chain.ledger();
    let name = ledger.inference_service_name().await.unwrap();
    ledger.retrieve_fund(&[user.provider], &name).await.unwrap();
    let lock_s = user.chain.inference().lock_time_s().await.unwrap();
    world.chain.advance_time(lock_s + 1).unwrap();
    ledger.retrieve_fund(&[user.provider], &name).await.unwrap();
    assert_eq!(balance(user).await, 0);
    add(user, neuron).await;
}

async fn restart(config: Config, user: &User) -> (Provider, User) {
    let provider = Provider::start(config).await.unwrap();
    let user = User {
        url: provider.url().to_owned(),
        ..user.clone()
    };
    (provider, user)
}

#[tokio::test]
async fn what_a_balance_does_not_cover_is_owed_until_it_does() {
    let world = World::start().await;
    let provider = Provider::start(dear(&world, NEVER)).await.unwrap();
    world.accept(&provider).await;
    let user = world.user(3, &provider).await;
    for _ in 0..3 {
        ask(&user).await;
    }
    assert_eq!(owed(&user).await, 3 * ANSWER);
    provider.shutdown().await;
    reduce_balance_to(&world, &user, 7 * TENTH).await;

    // Two of three requests fit.
    let (provider, user) = restart(dear(&world, SOON), &user).await;
    wait_until_owed(&user, ANSWER).await;
    assert_eq!(balance(&user).await, TENTH, "only whole requests were paid");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(
        (owed(&user).await, balance(&user).await),
        (ANSWER, TENTH),
        "no later round takes what covers no request"
    );
    let nonce = account_nonce(&user).await;

    // Still owed after a restart, and paid as soon as it can be.
    provider.abandon().await;
    let (provider, user) = restart(dear(&world, SOON), &user).await;
    assert_eq!(owed(&user).await, ANSWER);
    add(&user, 10 * TENTH).await;
    wait_until_owed(&user, 0).await;
    assert_eq!(balance(&user).await, 11 * TENTH - ANSWER);
    assert!(account_nonce(&user).await > nonce);
    provider.shutdown().await;
}

async fn account_nonce(user: &User) -> U256 {
    let account = user
        .chain
        .inference()
        .account(user.address(), user.provider)
        .await
        .unwrap();
    account.unwrap().nonce
}

/// Goal: the contract pays in part although the preview promised everything (the balance shrank in between), and the provider
/// dies before it reads the receipt. Method: an endpoint between provider and chain that answers the preview with "all
/// well" and goes silent once the settlement is sent.
#[tokio::test]
async fn a_part_payment_before_a_crash_is_counted_once() {
    let world = World::start().await;
    let front = Front::start(&world.rpc_url).await;
    let provider = Provider::start(dear(&world, NEVER)).await.unwrap();
    world.accept(&provider).await;
    let user = world.user(3, &provider).await;
    for _ in 0..3 {
        ask(&user).await;
    }
    provider.shutdown().await;
    reduce_balance_to(&world, &user, 7 * TENTH).await;

    let mut through_front = dear(&world, LATER);
    through_front.chain.rpc_url = front.url.clone();
    let provider = Provider::start(through_front).await.unwrap();
    front.rules.armed.store(true, Ordering::SeqCst);
    let started = Instant::now();
    while balance(&user).await != 0 {
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "nothing landed"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(front.rules.silent.load(Ordering::SeqCst));
    provider.abandon().await;

    // All of the balance was taken: two requests and a third of the last one.
    let (provider, user) = restart(dear(&world, NEVER), &user).await;
    assert_eq!(owed(&user).await, 3 * ANSWER, "nobody has looked yet");
    provider.shutdown().await;
    let (provider, user) = restart(dear(&world, SOON), &user).await;
    wait_until_owed(&user, 2 * TENTH).await;
    add(&user, 10 * TENTH).await;
    wait_until_owed(&user, 0).await;
    assert_eq!(
        balance(&user).await,
        8 * TENTH,
        "three answers were paid, each once"
    );
    provider.shutdown().await;
}

/// A JSON-RPC endpoint in front of the chain.
struct Front {
    url: String,
    rules: Arc<Rules>,
}

struct Rules {
    behind: String,
    http: reqwest::Client,
    /// Whether the preview is answered here and the end comes with the next transaction.
    armed: AtomicBool,
    /// Whether nothing is answered any more.
    silent: AtomicBool,
}

impl Front {
    async fn start(behind: &str) -> Self {
        let rules = Arc::new(Rules {
            behind: behind.to_owned(),
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            armed: AtomicBool::new(false),
            silent: AtomicBool::new(false),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new()
            .fallback(forward)
            .with_state(Arc::clone(&rules));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, rules }
    }
}

async fn forward(State(rules): State<Arc<Rules>>, body: String) -> axum::response::Response {
    /// `previewSettlementResults` as calldata begins.
    const PREVIEW: &str = "0x28b60476";
    if rules.silent.load(Ordering::SeqCst) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let request: Value = serde_json::from_str(&body).unwrap();
    let is_armed = rules.armed.load(Ordering::SeqCst);
    let calldata = ["input", "data"]
        .iter()
        .find_map(|name| request["params"][0][name].as_str());
    if is_armed && calldata.is_some_and(|data| data.starts_with(PREVIEW)) {
        // Four empty lists: their places, then their lengths.
        let words: String = [0x80, 0xa0, 0xc0, 0xe0, 0, 0, 0, 0]
            .iter()
            .map(|word| format!("{word:064x}"))
            .collect();
        let answer = json!({"jsonrpc": "2.0", "id": request["id"], "result": format!("0x{words}")});
        return axum::Json(answer).into_response();
    }
    let answer = rules
        .http
        .post(&rules.behind)
        .header("content-type", "application/json")
        .body(body)
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    if is_armed && request["method"] == "eth_sendRawTransaction" {
        rules.silent.store(true, Ordering::SeqCst);
    }
    ([("content-type", "application/json")], answer).into_response()
}
