//! An adapter that one provider trained is served by another one: its owner opens the archive key and seals it to the
//! other enclave inside the deploy request.

use crate::provider_process::ProviderProcess;
use crate::support::{Cli, Network, fixture};

const MODEL: &str = "Qwen2.5-0.5B-Instruct";
const PARAMS: &str = r#"{"max_steps": 4, "per_device_train_batch_size": 2, "max_seq_length": 128}"#;

#[test]
fn an_adapter_moves_to_another_provider_and_answers_there() {
    let network = Network::start(&["--no-provider"]);
    let trainer = ProviderProcess::start(&network, "trainer", 2, "[fine_tuning]\n");
    let serving = format!("[inference]\nmodel = \"{MODEL}\"\n");
    let server = ProviderProcess::start(&network, "server", 8, &serving);
    let cli = Cli::logged_in(&network, 5);
    trainer.wait_acknowledged(&cli, &["fine-tuning"]);
    server.wait_acknowledged(&cli, &["inference"]);
    let (a, b) = (trainer.address.to_string(), server.address.to_string());
    let dataset = fixture("datasets/star-island.completion.jsonl");
    let params = cli.write("params.json", PARAMS);

    cli.ok(&["deposit", "--amount", "9"]);
    cli.ok(&[
        "transfer-fund",
        "--provider",
        &a,
        "--amount",
        "1",
        "--service",
        "fine-tuning",
    ]);
    let create = [
        "fine-tuning",
        "create-task",
        "--provider",
        &a,
        "--model",
        MODEL,
        "--dataset-path",
        &dataset,
        "--config-path",
        &params,
        "--wait",
    ];
    let task = cli.json(&create)["task_id"].as_str().unwrap().to_owned();
    let of_adapter = ["--provider", &b, "--model", MODEL, "--task-id", &task];
    let deploy = [
        &["fine-tuning", "deploy-adapter", "--wait"][..],
        &of_adapter,
    ]
    .concat();
    let chat = [
        &[
            "fine-tuning",
            "chat",
            "--message",
            "Where is Star Island?",
            "--verify",
        ][..],
        &of_adapter,
    ]
    .concat();

    // Before the acknowledgement there is no key to hand over, and the other provider learns nothing.
    let refused = cli.fails(6, &deploy);
    assert!(refused.contains("acknowledge-model"), "{refused}");
    let listed = cli.json(&["fine-tuning", "list-adapters", "--provider", &b]);
    assert_eq!(listed.as_array().unwrap().len(), 0);

    cli.ok(&[
        "fine-tuning",
        "acknowledge-model",
        "--provider",
        &a,
        "--task-id",
        &task,
        "--data-path",
        &cli.path("adapter.enc"),
    ]);
    // Who trained it is looked up on chain.
    let deployed = cli.json(&deploy);
    assert_eq!(deployed["status"], "active", "{}", server.log());
    let answer = cli.json(&chat);
    assert!(!answer["content"].as_str().unwrap().trim().is_empty());
    assert_eq!(answer["model"], deployed["adapter_name"]);
    let services = cli.json(&["inference", "list-providers"]);
    assert_eq!(
        answer["proof"]["signer"], services[0]["tee_signer"],
        "the serving enclave signed it"
    );

    // Deploying again starts nothing, and names the trainer or not.
    let named = [&deploy[..], &["--fine-tuning-provider", &a]].concat();
    assert_eq!(cli.json(&named)["status"], "active");

    // Somebody else has no business with it.
    let stranger = Cli::logged_in(&network, 6);
    stranger.ok(&["deposit", "--amount", "5"]);
    let without_wait = [&["fine-tuning", "deploy-adapter"][..], &of_adapter].concat();
    let refused = stranger.fails(6, &without_wait);
    assert!(refused.contains("adapter not found"), "{refused}");

    // One verb, with training and serving in different places.
    let out = cli.path("out");
    let ran = cli.json(&[
        "fine-tuning",
        "run",
        "--provider",
        &a,
        "--inference-provider",
        &b,
        "--dataset-path",
        &dataset,
        "--model",
        MODEL,
        "--config-path",
        &params,
        "--output-dir",
        &out,
        "--yes",
    ]);
    assert_eq!(ran["deployed"]["status"], "active");
    let name = ran["deployed"]["adapter_name"].as_str().unwrap();
    assert_ne!(answer["model"], name);
    let mut server = server;
    server.kill_and_restart();
    let by_name = [
        "fine-tuning",
        "chat",
        "--provider",
        &b,
        "--adapter-name",
        name,
        "--message",
        "Where is Star Island?",
    ];
    let answer = crate::support::wait_for(
        "the adapter to answer after a restart",
        std::time::Duration::from_secs(60),
        || {
            let output = cli.run(&by_name);
            output.status.success().then_some(output.stdout)
        },
    );
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.contains("Assistant: "), "{answer}");
}
