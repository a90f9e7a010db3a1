//! What no client sends on purpose: raw requests over loopback, and the published clients' own retries at the limits that
//! a provider has by default.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use zerog_protocol::{TaskId, signing};
use zerog_provider::Provider;
use zerog_provider::config::LimitsConfig;

use crate::world::{User, World, dataset, now_s, send};

async fn start() -> (World, Provider, User) {
    let world = World::start().await;
    let provider = Provider::start(world.config("p")).await.unwrap();
    world.accept(&provider).await;
    let user = world.user(3, &provider).await;
    (world, provider, user)
}

/// Whether a caller says that it has sent everything, as one does whose program ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Wait,
    HangUp,
}

/// Sends bytes as they are and reads the whole answer: status and body, or nothing.
async fn raw(user: &User, request: &[u8], then: Then) -> Option<(u16, String)> {
    let authority = user.url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(authority).await.unwrap();
    // The server may answer and close before it has read everything.
    let _ = stream.write_all(request).await;
    if then == Then::HangUp {
        let _ = stream.shutdown().await;
    }
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer))
        .await
        .expect("the server answers or hangs up")
        .unwrap_or_default();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.get(9..12)?.parse().ok()?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Some((status, body.to_owned()))
}

async fn raw_path(user: &User, verb: &str, path: &str) -> (u16, String) {
    let request = format!(
        "{verb} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    );
    raw(user, request.as_bytes(), Then::Wait)
        .await
        .expect("an answer")
}

/// The text of a refusal, which is JSON on every route: a string, or the object of the OpenAI routes.
fn refusal(what: &str, status: u16, body: &str) -> String {
    assert!((400..500).contains(&status), "{what}: {status} {body}");
    let body: Value =
        serde_json::from_str(body).unwrap_or_else(|_| panic!("{what}: no JSON: {body}"));
    let text = body["error"].as_str().or(body["error"]["message"].as_str());
    text.unwrap_or_else(|| panic!("{what}: {body}")).to_owned()
}

#[tokio::test]
async fn tricks_in_paths_reach_nothing() {
    let (_world, provider, user) = start().await;
    let address = user.address();
    let long = "a".repeat(8_000);
    for path in [
        "/../../../../etc/passwd".to_owned(),
        "/%2e%2e/%2e%2e/etc/passwd".to_owned(),
        "/v1/user/../../etc/passwd/task".to_owned(),
        "/v1/user/%2e%2e/task".to_owned(),
        format!("/v1/user/{address}%2f..%2f{address}/task"),
        format!("/v1/user/{address}%00/task"),
        format!("/v1/user/{address}/task/.."),
        format!("/v1/user/{address}/task/%2e%2e%2f%2e%2e%2fprovider.db"),
        format!("/v1/user/{address}/task/%00"),
        format!("/v1/user/{address}/task/%ff%fe"),
        format!("/v1/user/{address}/task/{long}"),
        format!("/v1/user/{address}/task/%2e%2e/log"),
        format!("/v1/user/{long}/task"),
        format!("/v1/user/{address}/dataset/.."),
        "/v1/model/..%2f..%2f..%2fetc%2fpasswd".to_owned(),
        "/v1/model/..%5c..%5c".to_owned(),
        "/v1/model/%ff".to_owned(),
        format!("/v1/model/{long}"),
        "/v1/model/desc/..%2f..%2fetc%2fpasswd".to_owned(),
        "/v1/model/desc/%2e%2e".to_owned(),
        "/v1/model/..%2f/tokenizer".to_owned(),
        "/v1/lora/adapters/..%2f..%2fetc%2fpasswd".to_owned(),
        "/v1/proxy/../user".to_owned(),
        "/v1/proxy/%2e%2e/%2e%2e/etc/passwd".to_owned(),
        "/v1/proxy/signature/..%2f..%2fetc%2fpasswd".to_owned(),
        "/v1/quote?nonce=%ff".to_owned(),
        "/v1/quote?nonce=../../etc/passwd".to_owned(),
        "/%".to_owned(),
        "/v1/%zz".to_owned(),
    ] {
        let (status, body) = raw_path(&user, "GET", &path).await;
        let text = refusal(&path, status, &body);
        assert!(
            !body.contains("root:") && !text.contains("panick"),
            "{path}: {body}"
        );
    }
    // Nothing of it was an error of the server.
    let metrics = user.get("/health").await;
    assert_eq!(metrics.status, 200);
    provider.shutdown().await;
}

#[tokio::test]
async fn other_verbs_are_refused_as_json_on_every_route() {
    let (_world, provider, user) = start().await;
    let (address, id) = (user.address(), TaskId::random());
    for (path, allowed) in [
        ("/v1/quote".to_owned(), &["GET"][..]),
        (format!("/v1/user/{address}/task"), &["GET", "POST"]),
        (format!("/v1/user/{address}/task/{id}"), &["GET"]),
        (format!("/v1/user/{address}/task/{id}/cancel"), &["POST"]),
        (format!("/v1/user/{address}/task/{id}/log"), &["GET"]),
        (format!("/v1/user/{address}/task/{id}/lora"), &["POST"]),
        (format!("/v1/user/{address}/dataset"), &["POST"]),
        (format!("/v1/user/{address}/unsettledfee"), &["GET"]),
        ("/v1/task/pending".to_owned(), &["GET"]),
        ("/v1/model".to_owned(), &["GET"]),
        ("/v1/models".to_owned(), &["GET"]),
        ("/v1/lora/adapters".to_owned(), &["GET"]),
        ("/v1/lora/adapters/deploy".to_owned(), &["GET", "POST"]),
    ] {
        for verb in ["GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"] {
            if allowed.contains(&verb) {
                continue;
            }
            let what = format!("{verb} {path}");
            let (status, body) = raw_path(&user, verb, &path).await;
            refusal(&what, status, &body);
            assert_eq!(status, 405, "{what}: {body}");
        }
    }
    provider.shutdown().await;
}

#[tokio::test]
async fn bodies_that_end_early_harm_nobody() {
    let (_world, provider, user) = start().await;
    let address = user.address();
    let now = now_s();
    let signature = signing::sign_personal(
        &user.key,
        signing::dataset_upload_hash(&address.to_string(), now),
    );
    let fields = format!(
        "--B\r\nContent-Disposition: form-data; name=\"signature\"\r\n\r\n{signature}\r\n\
         --B\r\nContent-Disposition: form-data; name=\"timestamp\"\r\n\r\n{now}\r\n"
    );
    let file = "--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"d.jsonl\"\r\n\r\n";
    let half = &dataset()[..200];
    for (what, length, body) in [
        ("no closing boundary", None, format!("{fields}{file}{half}")),
        (
            "less than announced",
            Some(100_000),
            format!("{fields}{file}{half}"),
        ),
        (
            "no end of a head",
            None,
            format!("{fields}--B\r\nContent-Disposition: form-da"),
        ),
        (
            "the file first, then nothing",
            None,
            format!("{file}{half}"),
        ),
        ("nothing at all", Some(500), String::new()),
        ("not a form", None, "\u{0}\u{1}\u{2}".repeat(50)),
    ] {
        let length = length.unwrap_or(body.len());
        let request = format!(
            "POST /v1/user/{address}/dataset HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Content-Type: multipart/form-data; boundary=B\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        // Where the announced length never comes there is nobody left to answer.
        if let Some((status, body)) = raw(&user, request.as_bytes(), Then::HangUp).await {
            refusal(what, status, &body);
        }
    }
    for (what, content_type) in [
        ("no boundary", "multipart/form-data"),
        ("another type", "application/json"),
    ] {
        let body = format!("{fields}{file}{half}\r\n--B--\r\n");
        let request = format!(
            "POST /v1/user/{address}/dataset HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Content-Type: {content_type}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let (status, body) = raw(&user, request.as_bytes(), Then::Wait).await.unwrap();
        refusal(what, status, &body);
    }
    for path in ["task", "task/00000000-0000-4000-8000-000000000000/lora"] {
        for body in ["", "{", "[]", "null", "\"x\"", "{\"signature\":1}", "\u{0}"] {
            let answer = send(user.http.post(user.path(path)).body(body)).await;
            refusal(&format!("{path} {body:?}"), answer.status, &answer.text());
        }
        let request = format!(
            "POST /v1/user/{address}/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 900\r\n\r\n{{\"sig"
        );
        if let Some((status, body)) = raw(&user, request.as_bytes(), Then::HangUp).await {
            refusal(path, status, &body);
        }
    }
    // None of it left a dataset, and an ordinary upload goes through.
    assert_eq!(
        user.upload("d.jsonl", dataset().as_bytes()).await.status,
        200
    );
    provider.shutdown().await;
}

#[tokio::test]
async fn names_of_files_are_names_and_nothing_else() {
    let (_world, provider, user) = start().await;
    for name in [
        "",
        "../d.jsonl",
        "/etc/d.jsonl",
        "..\\d.jsonl",
        "C:\\d.jsonl",
        "a/b/d.jsonl",
        "d.jsonl/..",
        "d.jsonl/",
        "d.exe",
        "jsonl",
        "d.jsonl.zip",
    ] {
        let answer = user.upload(name, dataset().as_bytes()).await;
        assert_eq!(answer.status, 400, "{name:?}: {}", answer.text());
        answer.json()["error"].as_str().unwrap();
    }
    for name in [
        "d.jsonl",
        "D.JSONL",
        "ünï cødé.json",
        "..d.jsonl",
        &format!("{}.jsonl", "n".repeat(3_000)),
    ] {
        let answer = user.upload(name, dataset().as_bytes()).await;
        assert_eq!(answer.status, 200, "{name:?}: {}", answer.text());
    }
    provider.shutdown().await;
}

#[tokio::test]
async fn a_signature_is_good_for_its_owner_and_its_time_only() {
    let (world, provider, user) = start().await;
    let other = world.user(4, &provider).await;
    let (mine, now) = (user.address(), now_s());
    let form = |signature: String, at: u64| {
        let part = reqwest::multipart::Part::bytes(dataset().into_bytes()).file_name("d.jsonl");
        reqwest::multipart::Form::new()
            .text("signature", signature)
            .text("timestamp", at.to_string())
            .part("file", part)
    };
    let sign = |who: &User, of: &User, at: u64| {
        signing::sign_personal(
            &who.key,
            signing::dataset_upload_hash(&of.address().to_string(), at),
        )
    };
    // Another's signature, one's own for another's address, too old, too early, and for another time than it says.
    for (to, signature, at) in [
        (&user, sign(&other, &user, now), now),
        (&user, sign(&user, &other, now), now),
        (&user, sign(&user, &user, now - 301), now - 301),
        (&user, sign(&user, &user, now + 120), now + 120),
        (&user, sign(&user, &user, now - 10), now),
    ] {
        let upload = to
            .http
            .post(to.path("dataset"))
            .multipart(form(signature, at));
        let answer = send(upload).await;
        assert_eq!(answer.status, 401, "{}", answer.text());
        answer.json()["error"].as_str().unwrap();
    }
    // The same upload twice is one dataset, and it is not the other user's.
    let signature = sign(&user, &user, now);
    let hash = alloy_primitives::keccak256(dataset()).to_string();
    for _ in 0..2 {
        let upload = user
            .http
            .post(user.path("dataset"))
            .multipart(form(signature.clone(), now));
        assert_eq!(send(upload).await.json()["datasetHash"], hash);
    }
    let nonce = now * 10_000_000 + 40;
    other
        .create(other.task_request(&hash, nonce))
        .await
        .refusal(400, "dataset_not_found");

    let good = user.task_request(&hash, nonce);
    let id: TaskId = user.create(good.clone()).await.json()["id"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    // A request that was seen on its way is worth nothing at another's path, and nothing with other terms.
    let stolen = other.post(&other.path("task"), good.clone()).await;
    assert_eq!(stolen.status, 400, "{}", stolen.text());
    let mut altered = good.clone();
    altered["nonce"] = json!((nonce + 1).to_string());
    user.create(altered).await.refusal(401, "invalid_signature");

    // Task, log, cancel and download with the other's path, the other's key, and both.
    let lora = |who: &User| {
        let signature = signing::sign_personal(&who.key, signing::lora_download_hash(id, now));
        json!({"signature": signature, "timestamp": now})
    };
    let cancel = |who: &User| json!({"signature": signing::sign_personal(&who.key, signing::cancel_task_hash(id))});
    for (answer, status) in [
        (
            send(other.http.get(other.path(&format!("task/{id}")))).await,
            404,
        ),
        (
            send(other.http.get(other.path(&format!("task/{id}/log")))).await,
            403,
        ),
        (
            other
                .post(&other.path(&format!("task/{id}/lora")), lora(&other))
                .await,
            403,
        ),
        (
            other
                .post(&other.path(&format!("task/{id}/lora")), lora(&user))
                .await,
            403,
        ),
        (
            other
                .post(&user.path(&format!("task/{id}/lora")), lora(&other))
                .await,
            401,
        ),
        (
            other
                .post(&other.path(&format!("task/{id}/cancel")), cancel(&other))
                .await,
            403,
        ),
        (
            other
                .post(&user.path(&format!("task/{id}/cancel")), cancel(&other))
                .await,
            401,
        ),
    ] {
        assert_eq!(answer.status, status, "{}", answer.text());
        answer.json()["error"].as_str().unwrap();
    }
    let old = json!({
        "signature": signing::sign_personal(&user.key, signing::lora_download_hash(id, now - 400)), "timestamp": now - 400,
    });
    user.post(&user.path(&format!("task/{id}/lora")), old)
        .await
        .refusal(401, "timestamp");
    let list = send(other.http.get(other.path("task"))).await.json();
    assert_eq!(list, json!([]), "a list holds the address's own tasks only");
    let tasks = send(user.http.get(user.path("task"))).await.json();
    assert_eq!(
        tasks[0]["userAddress"].as_str().map(str::to_lowercase),
        Some(format!("{mine:#x}"))
    );

    // A session token of another user, for another provider, or cut short.
    let token = user.token();
    for wrong in [
        token[..token.len() - 8].to_owned(),
        token.replacen("app-sk-", "app-sk-AAAA", 1),
        token.replace("Bearer ", "Basic "),
        format!("Bearer app-sk-{}", "A".repeat(6_000)),
        "Bearer app-sk-".to_owned(),
    ] {
        let request = user.http.get(format!("{}/v1/lora/adapters", user.url));
        let answer = send(request.header("authorization", wrong)).await;
        answer.refusal(401, "invalid_token");
    }
    user.wait(id, &["Delivered"]).await;
    provider.shutdown().await;
}

#[tokio::test]
async fn the_published_clients_retries_meet_no_limit_and_floods_meet_one_that_says_when() {
    let world = World::start().await;
    let mut config = world.config("p");
    config.limits = LimitsConfig::default();
    let provider = Provider::start(config).await.unwrap();
    world.accept(&provider).await;
    let user = world.user(3, &provider).await;

    // Quote, dataset, quote within a second, three times; then the three attempts at a download.
    for _ in 0..3 {
        assert_eq!(user.get("/v1/quote").await.status, 200);
        assert_eq!(
            user.upload("d.jsonl", dataset().as_bytes()).await.status,
            200
        );
        assert_eq!(user.get("/v1/quote").await.status, 200);
    }
    let id = TaskId::random();
    let now = now_s();
    let lora = json!({"signature": signing::sign_personal(&user.key, signing::lora_download_hash(id, now)), "timestamp": now});
    for _ in 0..3 {
        let answer = user
            .post(&user.path(&format!("task/{id}/lora")), lora.clone())
            .await;
        answer.refusal(404, "task_not_found");
    }
    // Waiting for an adapter: list and status again and again; and what the clients ask for before each chat.
    for _ in 0..100 {
        assert_eq!(user.get_signed("/v1/lora/adapters").await.status, 200);
        user.get_signed("/v1/lora/adapters/ft-none")
            .await
            .refusal(404, "adapter_not_found");
    }
    let fee = format!("/v1/user/{}/unsettledfee", user.address());
    for _ in 0..20 {
        assert_eq!(user.get_signed(&fee).await.status, 200);
    }

    // A flood of quotes is told to wait, and for how long.
    let mut refused = None;
    for _ in 0..100 {
        let answer = user.get("/v1/quote").await;
        if answer.status == 429 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("the limit of quotes is reached");
    refused.json()["error"].as_str().unwrap();
    let wait: u64 = refused.headers["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    // Strangers share no bucket with verified users, whose transfers still pass.
    assert_eq!(
        user.upload("d.jsonl", dataset().as_bytes()).await.status,
        200
    );
    provider.shutdown().await;
}
