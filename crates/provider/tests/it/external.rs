//! The life of adapters on an external engine, through the provider's own interface.

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use alloy_primitives::U256;
use serde_json::{Value, json};
use zerog_protocol::adapter::AdapterState;
use zerog_provider::config::{ExternalConfig, ExternalKind};
use zerog_provider::{Config, Provider};

use crate::external_server::{BASE, ExternalServer};
use crate::walk::wait_adapter;
use crate::world::{User, World};

fn config(
    world: &World,
    server: &ExternalServer,
    kind: ExternalKind,
    folder: &std::path::Path,
) -> Config {
    let mut config = world.config("p");
    let mut external = ExternalConfig::new(kind, &server.url, folder);
    external.model = Some(BASE.into());
    external.max_adapters = 1;
    external.stall_timeout = Duration::from_secs(2);
    config.inference.as_mut().unwrap().external = Some(external);
    config.limits.chat_per_minute = 10_000.0;
    config
}

/// A folder in memory.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

/// A user with a finished adapter, and its name.
async fn trained(world: &World, provider: &Provider, account: usize) -> (User, String) {
    let user = world.user(account, provider).await;
    let id = user.submit().await;
    user.wait(id, &["Delivered"]).await;
    user.chain
        .fine_tuning()
        .acknowledge_deliverable(user.provider, &id.to_string())
        .await
        .unwrap();
    let name = zerog_protocol::ids::adapter_name("Qwen2.5-0.5B-Instruct", &id.to_string());
    wait_adapter(&user, &name, AdapterState::Ready).await;
    (user, name)
}

async fn deploy(user: &User, name: &str) {
    let answer = user
        .post_signed("/v1/lora/adapters/deploy", json!({"adapterName": name}))
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

fn question(model: &str) -> Value {
    json!({
        "model": model, "messages": [{"role": "user", "content": "What is behind door 3?"}], "max_tokens": 6,
        "temperature": 0, "lora_path": "zerog-another",
    })
}

async fn ask(user: &User, body: Value) -> crate::world::Answer {
    user.post_signed("/v1/proxy/chat/completions", body).await
}

async fn unsettled(user: &User) -> U256 {
    let path = format!("/v1/user/{}/unsettledfee", user.address());
    let fee = user.get_signed(&path).await.json();
    fee["unsettledFee"].as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adapters_live_on_a_vllm_server() {
    let world = World::start().await;
    let server = ExternalServer::start(ExternalKind::Vllm).await;
    let memory = folder();
    let config = config(&world, &server, ExternalKind::Vllm, memory.path());
    let provider = Provider::start(config.clone()).await.unwrap();
    world.accept(&provider).await;
    let (user, name) = trained(&world, &provider, 3).await;

    // A server that reads the adapter and does not apply it.
    server.state.ignores_adapters.store(true, Ordering::Relaxed);
    deploy(&user, &name).await;
    let failed = wait_adapter(&user, &name, AdapterState::Failed).await;
    let reason = failed["error"].as_str().unwrap();
    assert!(reason.contains("times what was recorded"), "{reason}");
    assert!(server.loaded().is_empty());
    assert_eq!(ask(&user, question(&name)).await.status, 409);
    assert_eq!(std::fs::read_dir(memory.path()).unwrap().count(), 0);

    // The same server, mended.
    server
        .state
        .ignores_adapters
        .store(false, Ordering::Relaxed);
    deploy(&user, &name).await;
    wait_adapter(&user, &name, AdapterState::Active).await;
    let on_server = server.loaded().remove(0);
    let files = memory.path().join(&on_server);
    let mode =
        |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&files), 0o700);
    assert_eq!(mode(&files.join("adapter_model.safetensors")), 0o600);

    // An answer: the caller's names on the outside, the server's inside, and nothing else passed on.
    let answer = ask(&user, question(&name)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["model"], name.as_str());
    let chats = server.state.chats.lock().clone();
    let last = chats.last().unwrap();
    assert_eq!(
        (last["model"].as_str(), last.get("lora_path")),
        (Some(on_server.as_str()), None)
    );
    let role = config.inference.as_ref().unwrap();
    let fee = |answer: &Value| {
        let count = |name: &str| U256::from(answer["usage"][name].as_u64().unwrap());
        role.input_price * count("prompt_tokens") + role.output_price * count("completion_tokens")
    };
    let mut owed = fee(&answer.json());
    assert_eq!(unsettled(&user).await, owed);
    let key = answer.headers["zg-res-key"].to_str().unwrap();
    let signature = user.get(&format!("/v1/proxy/signature/{key}")).await.json();
    let hash = hex::encode(zerog_protocol::signing::sha256(&answer.body));
    assert!(
        signature["text"].as_str().unwrap().ends_with(&hash),
        "{signature}"
    );

    // A stream says the same and is billed by the server's count, which the caller did not ask for.
    let mut streamed = question(&name);
    streamed["stream"] = json!(true);
    let stream = ask(&user, streamed.clone()).await.text();
    assert!(
        stream.ends_with("data: [DONE]\n\n") && !stream.contains("usage"),
        "{stream}"
    );
    assert!(!stream.contains(&on_server), "{stream}");
    owed += fee(&answer.json());
    assert_eq!(unsettled(&user).await, owed);

    // Nobody else learns that it exists, and the server does not hear of it.
    let before = server.state.chats.lock().len();
    let stranger = world.user(4, &provider).await;
    assert_eq!(ask(&stranger, question(&name)).await.status, 404);
    assert_eq!(ask(&stranger, question(&on_server)).await.status, 404);
    assert_eq!(server.state.chats.lock().len(), before);

    // The server is started anew and has lost everything.
    let loads = server.state.loads.load(Ordering::Relaxed);
    server.restart();
    let again = ask(&user, question(&name)).await;
    assert_eq!(again.json()["choices"], answer.json()["choices"]);
    assert_eq!(server.state.loads.load(Ordering::Relaxed), loads + 1);
    owed += fee(&answer.json());

    // Failures are told without the server's secrets and cost nothing.
    server.state.fails.store(true, Ordering::Relaxed);
    let failed = ask(&user, question(&name)).await;
    assert_eq!(failed.status, 502, "{}", failed.text());
    assert!(!failed.text().contains("CUDA"), "{}", failed.text());
    server.state.fails.store(false, Ordering::Relaxed);
    assert_eq!(unsettled(&user).await, owed);

    // A stream that stops half way ends with an error instead of a good end, and what came is billed.
    server.state.stalls.store(true, Ordering::Relaxed);
    let stalled = ask(&user, streamed).await.text();
    assert!(
        stalled.contains("engine_failed") && !stalled.contains("[DONE]"),
        "{stalled}"
    );
    server.state.stalls.store(false, Ordering::Relaxed);
    assert!(unsettled(&user).await > owed);

    // One place: the adapter used longest ago makes room, and comes back when it is asked for.
    let (other, second) = trained(&world, &provider, 5).await;
    deploy(&other, &second).await;
    wait_adapter(&other, &second, AdapterState::Active).await;
    wait_adapter(&user, &name, AdapterState::Offloaded).await;
    assert!(!files.exists() && server.loaded() != [on_server.clone()]);
    assert_eq!(ask(&user, question(&name)).await.status, 200);
    assert_eq!(server.loaded(), [on_server]);

    // The end leaves nothing behind.
    provider.shutdown().await;
    assert!(server.loaded().is_empty());
    assert_eq!(std::fs::read_dir(memory.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adapters_live_on_an_sglang_server() {
    let world = World::start().await;
    let server = ExternalServer::start(ExternalKind::Sglang).await;
    let memory = folder();
    let config = config(&world, &server, ExternalKind::Sglang, memory.path());
    let provider = Provider::start(config).await.unwrap();
    world.accept(&provider).await;
    let (user, name) = trained(&world, &provider, 3).await;
    let answer = ask(&user, question(&name)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let base = ask(&user, question("Qwen2.5-0.5B-Instruct")).await;
    assert_eq!(base.status, 200, "{}", base.text());
    let models: Vec<String> = server
        .state
        .chats
        .lock()
        .iter()
        .map(|chat| chat["model"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        models,
        [format!("{BASE}:{}", server.loaded()[0]), BASE.into()]
    );
    server.restart();
    let again = ask(&user, question(&name)).await;
    assert_eq!(again.json()["choices"], answer.json()["choices"]);

    // A request that the server does not like is its caller's business, and does not load anything.
    let loads = server.state.loads.load(Ordering::Relaxed);
    let mut wrong = question(&name);
    wrong["messages"] = json!([]);
    let refused = ask(&user, wrong).await;
    assert_eq!(refused.status, 400, "{}", refused.text());
    assert_eq!(server.state.loads.load(Ordering::Relaxed), loads);
    provider.shutdown().await;
}

#[tokio::test]
async fn adapters_never_reach_a_disk() {
    let world = World::start().await;
    let server = ExternalServer::start(ExternalKind::Vllm).await;
    let config = config(
        &world,
        &server,
        ExternalKind::Vllm,
        std::path::Path::new("/proc/self"),
    );
    let refused = Provider::start(config).await.unwrap_err().to_string();
    assert!(refused.contains("tmpfs"), "{refused}");
    assert!(server.loaded().is_empty());
}
