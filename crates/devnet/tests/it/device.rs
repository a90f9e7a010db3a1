//! The whole walk with a wallet that lives on a device: it signs, and its key never leaves it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use zerog_sdk::inference::lora::DeployOptions;
use zerog_sdk::{
    Broker, BrokerOptions, CreateTask, DownloadMethod, NetworkSettings, Progress, SecretKey,
    ServiceKind, UploadOptions, WaitOptions, amount,
};

use crate::device_signer::{Device, Prompt};
use crate::support::Network;

const MODEL: &str = "Qwen2.5-0.5B-Instruct";
const PARAMETERS: &str = r#"{"num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 0.002, "lora_rank": 8}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_device_pays_trains_decrypts_and_chats() {
    let network = Network::start(&[]);
    let folder = network.folder.path();
    let settings = NetworkSettings::from_ready_file(&folder.join("ready.json")).unwrap();
    let key: SecretKey = network.info.accounts[5].private_key.parse().unwrap();
    let device = Device::new(&key);
    let connect =
        || Broker::connect(BrokerOptions::custom(settings.clone()).with_wallet(device.wallet()));
    let broker = connect().await.unwrap();
    let (provider, quiet) = (network.info.provider_address, |_: Progress| ());
    let zero_g = |text| amount::parse_0g(text).unwrap();

    broker.ledger.deposit_fund(zero_g("10")).await.unwrap();
    broker
        .ledger
        .transfer_fund(provider, ServiceKind::FineTuning, zero_g("1"))
        .await
        .unwrap();
    assert_eq!(device.prompts(), [Prompt::Transaction, Prompt::Transaction]);

    let fixture = "../../fixtures/datasets/lantern-house.messages.jsonl";
    let fixture = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(fixture)).unwrap();
    let records: Vec<&str> = fixture.lines().take(16).collect();
    let dataset = folder.join("data.jsonl");
    fs::write(&dataset, records.join("\n") + "\n").unwrap();
    let tuning = &broker.fine_tuning;
    let uploaded = tuning
        .upload_dataset_to_tee(provider, &dataset, &UploadOptions::default())
        .await
        .unwrap();
    assert!(uploaded.sealed);
    assert_eq!(device.prompts().len(), 2, "the file and the request");
    let task = tuning
        .create_task(&CreateTask {
            provider,
            model: MODEL.into(),
            dataset_hash: uploaded.dataset_hash,
            training_params: PARAMETERS.into(),
            queue: true,
            max_fee: None,
        })
        .await
        .unwrap();
    assert_eq!(
        device.prompts().len(),
        4,
        "the key twice, its use, the task"
    );
    let view = tuning.get_task(provider, Some(task)).await.unwrap();
    assert!(view.recipient.is_some());
    tuning
        .wait_for_delivery(provider, task, &WaitOptions::default(), quiet)
        .await
        .unwrap();

    let (encrypted, archive) = (folder.join("adapter.enc"), folder.join("adapter.zip"));
    tuning
        .acknowledge_model(provider, task, &encrypted, DownloadMethod::Auto, quiet)
        .await
        .unwrap();
    assert_eq!(device.prompts(), [Prompt::Transaction]);
    // Another process, or another machine: nothing was kept.
    let anew = connect().await.unwrap();
    let patience = Duration::from_secs(120);
    anew.fine_tuning
        .decrypt_model(provider, task, &encrypted, &archive, patience, quiet)
        .await
        .unwrap();
    let adapter = folder.join("adapter");
    anew.fine_tuning
        .unpack_adapter(&archive, &adapter)
        .await
        .unwrap();
    assert!(adapter.join("adapter_model.safetensors").is_file());

    let options = DeployOptions {
        wait: true,
        ..DeployOptions::default()
    };
    let lora = &anew.inference.lora;
    let deployed = lora
        .deploy_adapter(provider, MODEL, task, &options, quiet)
        .await
        .unwrap();
    device.prompts();
    let answer = lora
        .chat(provider, &deployed.adapter_name, "Who are you?", None)
        .await
        .unwrap();
    lora.verify_answer(provider, &answer).await.unwrap();
    assert!(answer.content().is_some_and(|text| !text.is_empty()));
    assert!(
        device.prompts().is_empty(),
        "the access token is signed once"
    );
}
