//! The README's first command.

use std::process::Command;

use serde_json::Value;

use crate::support::devnet_binary;

#[test]
fn the_demo_ends_with_a_settled_adapter_that_answers_otherwise_than_the_base() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(devnet_binary())
        .args(["demo", "--json", "--output"])
        .arg(folder.path())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();

    let states: Vec<&str> = report["states"]
        .as_array()
        .unwrap()
        .iter()
        .map(|state| state["state"].as_str().unwrap())
        .collect();
    assert_eq!(
        states,
        [
            "Init",
            "SettingUp",
            "SetUp",
            "Training",
            "Trained",
            "Delivering",
            "Delivered",
            "UserAcknowledged",
            "Finished"
        ]
    );
    assert!(report["loss_last"].as_f64().unwrap() < report["loss_first"].as_f64().unwrap() / 2.0);
    assert_eq!(report["settled"], true);
    assert_eq!(report["answer_proven"], true);
    assert_eq!(report["stand_in"], true);
    assert!(
        report["fee_neuron"]
            .as_str()
            .unwrap()
            .parse::<u128>()
            .unwrap()
            > 0
    );
    assert!(
        report["adapter_name"]
            .as_str()
            .unwrap()
            .starts_with("ft-Qwen2-5-0-5B-Instruct-")
    );
    // The question and its answer stand in the dataset; the base model has never heard of Pip.
    assert!(
        report["tuned_answer"].as_str().unwrap().contains("Pip"),
        "{report}"
    );
    assert!(
        !report["base_answer"].as_str().unwrap().contains("Pip"),
        "{report}"
    );

    let adapter = std::path::PathBuf::from(report["adapter_dir"].as_str().unwrap());
    for file in [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    ] {
        assert!(adapter.join(file).metadata().unwrap().len() > 0, "{file}");
    }
}
