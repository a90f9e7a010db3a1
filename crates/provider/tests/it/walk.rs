//! The whole walk: sealed upload, training, delivery, acknowledgement, settlement, decryption, deployment, chat, billing.

use std::time::{Duration, Instant};

use alloy_primitives::{Address, B256, U256};
use reqwest::multipart::Form;
use serde_json::{Value, json};
use zerog_protocol::adapter::AdapterState;
use zerog_protocol::seal::{SealContext, SealPurpose, seal_key};
use zerog_protocol::{FileKey, TaskId, ecies, sealed_archive, signing};
use zerog_provider::Provider;

use crate::world::{Answer, User, World, dataset, now_s, send};

/// The dataset sealed to the enclave, as our client does it.
struct Sealed<'a> {
    user: &'a User,
    hash: String,
    sealed_key: String,
    /// The same file key, sealed for another dataset.
    foreign_key: String,
    file: Vec<u8>,
}

impl<'a> Sealed<'a> {
    async fn new(user: &'a User, chain_id: u64, dataset: &str) -> Self {
        let quote = user.get("/v1/quote?legacy=false").await;
        let bundle = zerog_attestation::QuoteBundle::parse(&quote.body).unwrap();
        let report = zerog_attestation::ReportData::parse(&bundle.report_data).unwrap();
        let hash = alloy_primitives::keccak256(dataset).to_string();
        let key = FileKey::random();
        let seal = |id: &str| {
            let context = SealContext {
                chain_id,
                provider: user.provider,
                user: user.address(),
                purpose: SealPurpose::Dataset,
                id,
            };
            seal_key(&report.sealing_key().unwrap(), &context, &key).unwrap()
        };
        let (sealed_key, foreign_key) = (seal(&hash), seal("0x00"));
        let mut file = std::io::Cursor::new(Vec::new());
        sealed_archive::encrypt(&mut dataset.as_bytes(), &mut file, &key, &user.key).unwrap();
        Self {
            user,
            hash,
            sealed_key,
            foreign_key,
            file: file.into_inner(),
        }
    }

    fn signature(&self) -> (String, String) {
        let now = now_s();
        let digest = signing::dataset_upload_hash(&self.user.address().to_string(), now);
        (
            signing::sign_personal(&self.user.key, digest),
            now.to_string(),
        )
    }

    fn form(&self, sealed_key: &str) -> Form {
        let (signature, timestamp) = self.signature();
        Form::new()
            .text("signature", signature)
            .text("timestamp", timestamp)
            .text("sealVersion", "1")
            .text("sealedKey", sealed_key.to_owned())
            .text("datasetHash", self.hash.clone())
    }

    async fn send(&self, form: Form) -> Answer {
        send(
            self.user
                .http
                .post(self.user.path("dataset"))
                .multipart(form),
        )
        .await
    }

    async fn send_part(&self, id: &str, offset: usize, part: &[u8]) -> Answer {
        let (signature, timestamp) = self.signature();
        let path = self
            .user
            .path(&format!("dataset/parts/{id}?offset={offset}"));
        let request = self.user.http.put(path).body(part.to_vec());
        let request = request.header("zg-signature", signature);
        send(request.header("zg-timestamp", timestamp)).await
    }
}

/// Uploads a dataset sealed to the enclave, as our client does.
pub(crate) async fn upload_sealed(user: &User, chain_id: u64, dataset: &str) -> String {
    let sealed = Sealed::new(user, chain_id, dataset).await;
    let file = || reqwest::multipart::Part::bytes(sealed.file.clone()).file_name("d.jsonl");
    let refused = sealed
        .send(sealed.form(&sealed.foreign_key).part("file", file()))
        .await;
    refused.refusal(400, "sealed_key");
    let answer = sealed
        .send(sealed.form(&sealed.sealed_key).part("file", file()))
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["datasetHash"], sealed.hash);
    sealed.hash
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_dataset_arrives_in_parts() {
    let world = World::start().await;
    let provider = Provider::start(world.config("p")).await.unwrap();
    world.accept(&provider).await;
    let user = world.user(3, &provider).await;
    let sealed = Sealed::new(&user, world.chain.chain_id(), &dataset()).await;
    let (id, half) = ("ab".repeat(16), sealed.file.len() / 2);
    let part = async |offset: usize, bytes: &[u8]| {
        let answer = sealed.send_part(&id, offset, bytes).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["offset"].as_u64().unwrap() as usize
    };
    assert_eq!(
        part(half, &sealed.file[half..]).await,
        0,
        "nothing is there yet"
    );
    assert_eq!(part(0, &sealed.file[..half]).await, half);
    assert_eq!(part(0, &sealed.file[..half]).await, half, "heard twice");
    let finish = |key: &str| sealed.form(key).text("uploadId", id.clone());
    sealed
        .send(finish(&sealed.sealed_key))
        .await
        .refusal(400, "sealed_file");
    assert_eq!(part(half, &sealed.file[half..]).await, sealed.file.len());

    sealed
        .send(finish(&sealed.foreign_key))
        .await
        .refusal(400, "sealed_key");
    for _ in 0..2 {
        let answer = sealed.send(finish(&sealed.sealed_key)).await;
        assert_eq!(
            answer.status,
            200,
            "the end may be told twice: {}",
            answer.text()
        );
        assert_eq!(answer.json()["datasetHash"], sealed.hash);
    }

    let refused = sealed.send_part("../../etc", 0, b"x").await;
    assert_eq!(refused.status, 404, "{}", refused.text());
    sealed
        .send_part("ab", 0, b"x")
        .await
        .refusal(400, "upload_id");
    let far = sealed.send_part(&id, usize::MAX / 2, b"x").await;
    far.refusal(413, "file_too_large");
    let unsigned = user
        .http
        .put(user.path(&format!("dataset/parts/{id}?offset=0")));
    assert_eq!(send(unsigned.body("x")).await.status, 401);
    let (signature, timestamp) = sealed.signature();
    part(0, b"{}").await;
    let plain = Form::new()
        .text("signature", signature)
        .text("timestamp", timestamp)
        .text("uploadId", id.clone());
    sealed.send(plain).await.refusal(400, "seal_version");
    provider.shutdown().await;
}

pub(crate) async fn download(user: &User, id: TaskId, range: Option<&str>) -> crate::world::Answer {
    let now = now_s();
    let body = json!({"signature": signing::sign_personal(&user.key, signing::lora_download_hash(id, now)), "timestamp": now});
    let mut request = user
        .http
        .post(user.path(&format!("task/{id}/lora")))
        .header("content-type", "application/json")
        .body(body.to_string());
    if let Some(range) = range {
        request = request.header("range", range);
    }
    send(request).await
}

/// Opens the delivered archive with the key from the chain; the members' names.
pub(crate) async fn open_delivery(
    user: &User,
    id: TaskId,
    encrypted: &[u8],
    signer: Address,
) -> Vec<String> {
    let deliverable = user
        .chain
        .fine_tuning()
        .deliverable(user.address(), user.provider, &id.to_string())
        .await
        .unwrap()
        .unwrap();
    let key = ecies::open(&user.key, &deliverable.encrypted_secret).unwrap();
    let key = FileKey::from_slice(&key).unwrap();
    let mut zip = Vec::new();
    sealed_archive::decrypt_signed_by(&mut &encrypted[..], &mut zip, &key, signer).unwrap();
    let archive = zip::ZipArchive::new(std::io::Cursor::new(zip)).unwrap();
    archive
        .file_names()
        .map(|name| name.unwrap().into_owned())
        .collect()
}

pub(crate) async fn wait_adapter(user: &User, name: &str, state: AdapterState) -> Value {
    let started = Instant::now();
    loop {
        let answer = user.get_signed(&format!("/v1/lora/adapters/{name}")).await;
        if answer.status == 200 && answer.json()["tier"] == state.as_str() {
            return answer.json();
        }
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "waiting for {state}: {}",
            answer.text()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn adapter_tier(user: &User, name: &str) -> String {
    let answer = user.get_signed(&format!("/v1/lora/adapters/{name}")).await;
    answer.json()["tier"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_dataset_becomes_an_adapter_that_answers() {
    let world = World::start().await;
    let mut config = world.config("p");
    let role = config.inference.as_mut().unwrap();
    role.settlement_interval = Duration::from_millis(300);
    role.min_settlement_fee = U256::ONE;
    let provider = Provider::start(config.clone()).await.unwrap();
    world.accept(&provider).await;
    let user = world.user(3, &provider).await;
    let hash = upload_sealed(&user, 31337, &dataset()).await;
    let created = user
        .create(user.task_request(&hash, now_s() * 10_000_000 + 40))
        .await;
    assert_eq!(created.status, 201, "{}", created.text());
    let id: TaskId = created.json()["id"].as_str().unwrap().parse().unwrap();

    let task = user.wait(id, &["Delivered"]).await;
    assert_ne!(task["fee"], "0");
    // Twelve records in batches of four, one pass: `max_steps` never adds passes.
    assert_eq!(task["training"]["step"], 3);
    let deadline = task["ackDeadline"].as_u64().unwrap();
    assert!(deadline > task["deliverTime"].as_u64().unwrap());
    let reached: Vec<_> = task["states"]
        .as_array()
        .unwrap()
        .iter()
        .map(|state| state["state"].as_str().unwrap())
        .collect();
    assert_eq!(
        reached,
        [
            "Init",
            "SettingUp",
            "SetUp",
            "Training",
            "Trained",
            "Delivering",
            "Delivered"
        ]
    );
    let log = user.log(id).await;
    assert!(
        log.contains("Step: 1, Logs: {'loss':") && log.contains("completed successfully"),
        "{log}"
    );

    let whole = download(&user, id, None).await;
    assert_eq!(whole.status, 200);
    assert_eq!(
        whole.headers["content-length"],
        whole.body.len().to_string()
    );
    let rest = download(&user, id, Some("bytes=100-")).await;
    assert_eq!((rest.status, &rest.body[..]), (206, &whole.body[100..]));
    assert_eq!(
        download(&user, id, Some("bytes=99999999-")).await.status,
        416
    );
    let root: B256 = task["modelRootHash"].as_str().unwrap().parse().unwrap();
    let deliverable = user
        .chain
        .fine_tuning()
        .deliverable(user.address(), user.provider, &id.to_string())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(deliverable.model_root_hash.as_ref(), root.as_slice());

    user.chain
        .fine_tuning()
        .acknowledge_deliverable(user.provider, &id.to_string())
        .await
        .unwrap();
    let task = user.wait(id, &["Finished"]).await;
    assert_eq!(task["settledWithSecret"], true);
    let members = open_delivery(&user, id, &whole.body, provider.signer()).await;
    assert!(
        members
            .iter()
            .any(|name| name == "output_model/adapter_model.safetensors"),
        "{members:?}"
    );

    // Deployment, by the names that clients compute.
    let name = zerog_protocol::ids::adapter_name("Qwen2.5-0.5B-Instruct", &id.to_string());
    wait_adapter(&user, &name, AdapterState::Ready).await;
    let deploy = json!({"taskId": id.to_string(), "baseModel": "mock-model"});
    let deployed = user
        .post_signed("/v1/lora/adapters/deploy", deploy.clone())
        .await;
    assert_eq!(deployed.status, 200, "{}", deployed.text());
    assert_eq!(deployed.json()["adapterName"], name);
    let adapter = wait_adapter(&user, &name, AdapterState::Active).await;
    assert_eq!(adapter["userAddress"], user.address().to_string());
    let again = user
        .post_signed("/v1/lora/adapters/deploy", json!({"adapterName": name}))
        .await;
    assert_eq!(
        again.json()["message"],
        "Adapter is already deployed and active!"
    );
    let wrong = user
        .post_signed(
            "/v1/lora/adapters/deploy",
            json!({"taskId": id.to_string(), "baseModel": "other"}),
        )
        .await;
    wrong.refusal(400, "wrong_base_model");

    let chat = json!({"model": name, "messages": [{"role": "user", "content": "What is behind door 3?"}], "max_tokens": 8, "temperature": 0});
    let answer = user
        .post_signed("/v1/proxy/chat/completions", chat.clone())
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["model"], name);
    let stranger = world.user(4, &provider).await;
    let refused = |name: &str| {
        let chat =
            json!({"model": name, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1});
        let stranger = stranger.clone();
        async move {
            stranger
                .post_signed("/v1/proxy/chat/completions", chat)
                .await
        }
    };
    // Another user's adapter is answered exactly like one that does not exist.
    let (foreign, unknown) = (refused(&name).await, refused("ft-nobody").await);
    assert_eq!((foreign.status, unknown.status), (404, 404));
    assert_eq!(foreign.text().replace(&name, "ft-nobody"), unknown.text());
    stranger
        .get_signed(&format!("/v1/lora/adapters/{name}"))
        .await
        .refusal(404, "adapter_not_found");

    // Its owner can share it, and end that.
    let share = format!("/v1/lora/adapters/{name}/share");
    let with_stranger = json!({"address": stranger.address().to_string()});
    stranger
        .post_signed(&share, with_stranger.clone())
        .await
        .refusal(404, "adapter_not_found");
    let shared = user.post_signed(&share, with_stranger.clone()).await;
    assert_eq!(
        shared.json()["sharedWith"],
        json!([stranger.address().to_string()])
    );
    assert_eq!(refused(&name).await.status, 200);
    stranger
        .get_signed(&share)
        .await
        .refusal(404, "adapter_not_found");
    let listed = stranger.get_signed("/v1/lora/adapters").await.json();
    assert_eq!(listed["adapters"][0]["adapterName"], name);
    let mut revoke = with_stranger;
    revoke["revoke"] = json!(true);
    let revoked = user.post_signed(&share, revoke).await;
    assert_eq!(revoked.json()["sharedWith"], json!([]));
    assert_eq!(refused(&name).await.status, 404);

    // The requests are settled, once.
    let started = Instant::now();
    loop {
        let fee = user
            .get_signed(&format!("/v1/user/{}/unsettledfee", user.address()))
            .await
            .json();
        if fee["unsettledFee"] == "0" {
            break;
        }
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "nothing was settled: {fee}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let usage = answer.json()["usage"].clone();
    let role = config.inference.as_ref().unwrap();
    let expected = role.input_price * U256::from(usage["prompt_tokens"].as_u64().unwrap())
        + role.output_price * U256::from(usage["completion_tokens"].as_u64().unwrap());
    let account = user
        .chain
        .inference()
        .account(user.address(), user.provider)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        account.balance + expected,
        U256::from(5u128 * 10u128.pow(18))
    );

    // After a restart the adapter is loaded again on first use.
    provider.shutdown().await;
    let provider = Provider::start(config.clone()).await.unwrap();
    let user = User {
        url: provider.url().to_owned(),
        ..user
    };
    assert_eq!(adapter_tier(&user, &name).await, "ready");
    let answer = user
        .post_signed("/v1/proxy/chat/completions", chat.clone())
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(
        wait_adapter(&user, &name, AdapterState::Active).await["state"],
        "active"
    );
    provider.shutdown().await;

    // Without disk for it the adapter stays in storage alone, until the first request.
    config.inference.as_mut().unwrap().max_adapter_disk_bytes = 0;
    let provider = Provider::start(config).await.unwrap();
    let user = User {
        url: provider.url().to_owned(),
        ..user
    };
    let started = Instant::now();
    loop {
        let listed = user.get_signed("/v1/lora/adapters").await.json();
        if listed["adapters"][0]["tier"] == "archived" {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{listed}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let answer = user.post_signed("/v1/proxy/chat/completions", chat).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    provider.shutdown().await;
}
