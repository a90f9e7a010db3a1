//! PEFT files: round trip and everything that is refused.

use super::*;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::BTreeMap;

fn identity() -> AdapterIdentity {
    AdapterIdentity {
        base_model: "Qwen/Qwen2.5-0.5B-Instruct".to_owned(),
        revision: None,
    }
}

fn adapter(base: &Arc<BaseModel>) -> LoraAdapter {
    let config = LoraConfig {
        dropout: 0.05,
        targets: targets(&[Projection::Query, Projection::Value, Projection::Down]),
        ..lora_config()
    };
    trained(base, config).adapter().unwrap()
}

#[test]
fn saved_files_have_the_names_and_shapes_of_peft_and_load_again() {
    let base = tiny_base(true);
    let adapter = adapter(&base);
    let directory = tempfile::tempdir().unwrap();
    adapter.save(directory.path(), &identity()).unwrap();
    let loaded = LoraAdapter::load(directory.path(), base.config()).unwrap();
    assert_eq!(
        loaded.settings(),
        &LoraConfig {
            seed: 0,
            ..adapter.settings().clone()
        }
    );
    let tokens = [1, 5, 9];
    let logits = |adapter: &LoraAdapter| {
        let mut cache = KvCache::new(base.config(), 3);
        let adapter = Some(Arc::new(adapter.clone()));
        let mut rows = [Row {
            tokens: &tokens,
            cache: &mut cache,
            adapter,
            wanted: LogitsWanted::All,
        }];
        base.forward(&mut rows, &mut InferenceScratch::default())
            .unwrap()
    };
    assert_eq!(logits(&loaded), logits(&adapter));

    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(directory.path().join(ADAPTER_CONFIG_FILE)).unwrap())
            .unwrap();
    assert_eq!(config["peft_type"], "LORA");
    assert_eq!(config["task_type"], "CAUSAL_LM");
    assert_eq!(config["r"], 3);
    assert_eq!(config["lora_alpha"], 6);
    assert_eq!(config["lora_dropout"], 0.05);
    assert_eq!(
        config["target_modules"],
        serde_json::json!(["q_proj", "v_proj", "down_proj"])
    );
    assert_eq!(
        config["base_model_name_or_path"],
        "Qwen/Qwen2.5-0.5B-Instruct"
    );
    let bytes = std::fs::read(directory.path().join(ADAPTER_WEIGHTS_FILE)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.len(), 2 * 3 * 2);
    let a = file
        .tensor("base_model.model.model.layers.1.mlp.down_proj.lora_A.weight")
        .unwrap();
    assert_eq!((a.dtype(), a.shape()), (Dtype::F32, &[3, 28][..]));
    let b = file
        .tensor("base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight")
        .unwrap();
    assert_eq!((b.dtype(), b.shape()), (Dtype::F32, &[24, 3][..]));
    let (settings, weights) = loaded.to_bytes(&identity()).unwrap();
    assert_eq!(weights, bytes, "the same adapter gives the same bytes");
    assert_eq!(
        settings,
        std::fs::read(directory.path().join(ADAPTER_CONFIG_FILE)).unwrap()
    );
}

#[test]
fn training_continues_from_a_loaded_adapter() {
    let base = tiny_base(true);
    let adapter = adapter(&base);
    let model =
        TrainableModel::lora_from(base.clone(), adapter.settings().clone(), &adapter).unwrap();
    assert_eq!(model.adapter().unwrap(), adapter);
    let other = LoraConfig {
        rank: 2,
        ..adapter.settings().clone()
    };
    assert!(matches!(
        TrainableModel::lora_from(base, other, &adapter),
        Err(ModelError::AdapterMismatch)
    ));
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn weights_with(bytes: &[u8], change: impl FnOnce(&mut Tensors)) -> Vec<u8> {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let mut tensors: Tensors = file
        .iter()
        .map(|(name, tensor)| {
            (
                name.to_owned(),
                (
                    tensor.dtype(),
                    tensor.shape().to_vec(),
                    tensor.data().to_vec(),
                ),
            )
        })
        .collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

#[test]
fn half_precision_files_load() {
    let base = tiny_base(true);
    let (settings, weights) = adapter(&base).to_bytes(&identity()).unwrap();
    for dtype in [Dtype::BF16, Dtype::F16] {
        let halved = weights_with(&weights, |tensors| {
            for (kind, _, data) in tensors.values_mut() {
                let numbers = data
                    .chunks_exact(4)
                    .map(|value| f32::from_le_bytes(value.try_into().unwrap()));
                *data = numbers
                    .flat_map(|value| match dtype {
                        Dtype::BF16 => half::bf16::from_f32(value).to_le_bytes(),
                        _ => half::f16::from_f32(value).to_le_bytes(),
                    })
                    .collect();
                *kind = dtype;
            }
        });
        let loaded = LoraAdapter::from_bytes(&settings, &halved, base.config()).unwrap();
        // bf16 stays as it is in memory; f16 fits only into single precision.
        let parts = if dtype == Dtype::BF16 { 2 } else { 1 };
        assert_eq!(loaded.bytes() * parts, adapter(&base).bytes());
        let (_, again) = loaded.to_bytes(&identity()).unwrap();
        assert_eq!(
            LoraAdapter::from_bytes(&settings, &again, base.config()).unwrap(),
            loaded
        );
    }
}

#[test]
fn damaged_or_foreign_files_are_refused_by_name() {
    let base = tiny_base(true);
    let (settings, weights) = adapter(&base).to_bytes(&identity()).unwrap();
    let load =
        |settings: &[u8], weights: &[u8]| LoraAdapter::from_bytes(settings, weights, base.config());
    load(&settings, &weights).unwrap();

    let changed = |member: &str, value: serde_json::Value| {
        let mut config: serde_json::Value = serde_json::from_slice(&settings).unwrap();
        config[member] = value;
        load(config.to_string().as_bytes(), &weights).unwrap_err()
    };
    for (member, value) in [
        ("peft_type", serde_json::json!("LOHA")),
        ("lora_bias", serde_json::json!(true)),
        ("alora_invocation_tokens", serde_json::json!([7])),
        ("init_lora_weights", serde_json::json!("pissa")),
        ("fan_in_fan_out", serde_json::json!(true)),
        ("bias", serde_json::json!("all")),
        ("modules_to_save", serde_json::json!(["lm_head"])),
        ("rank_pattern", serde_json::json!({"q_proj": 4})),
        ("layers_to_transform", serde_json::json!([0])),
        ("target_modules", serde_json::json!("model.*q_proj")),
    ] {
        let error = changed(member, value);
        assert!(
            matches!(&error, AdapterError::UnsupportedSetting { setting, .. } if *setting == member),
            "{error}"
        );
    }
    assert!(matches!(
        changed("r", serde_json::json!(0)),
        AdapterError::Rank { rank: 0 }
    ));
    assert!(matches!(
        changed("r", serde_json::json!(513)),
        AdapterError::Rank { rank: 513 }
    ));
    assert!(matches!(
        changed("r", serde_json::json!(4)),
        AdapterError::Shape { .. }
    ));
    assert!(matches!(
        changed("r", serde_json::json!(-1)),
        AdapterError::Config { .. }
    ));
    assert!(matches!(
        changed("lora_alpha", serde_json::json!(-2)),
        AdapterError::Alpha { .. }
    ));
    assert!(matches!(
        changed("target_modules", serde_json::json!([])),
        AdapterError::NoTargetModule
    ));
    assert!(matches!(
        changed("target_modules", serde_json::json!(["q_proj", "c_attn"])),
        AdapterError::TargetModule { name } if name == "c_attn"
    ));
    assert!(matches!(
        changed("target_modules", serde_json::json!(["q_proj", "v_proj"])),
        AdapterError::UnexpectedTensor { .. }
    ));
    assert!(matches!(
        changed("target_modules", serde_json::json!(["q_proj", "v_proj", "down_proj", "o_proj"])),
        AdapterError::MissingTensor { name } if name.contains("o_proj.lora_A")
    ));
    assert!(matches!(
        load(b"{", &weights),
        Err(AdapterError::Config { .. })
    ));
    assert!(matches!(
        load(&vec![b' '; 2_000_000], &weights),
        Err(AdapterError::ConfigTooLarge { .. })
    ));

    let with = |change: &dyn Fn(&mut Tensors)| {
        load(&settings, &weights_with(&weights, change)).unwrap_err()
    };
    let name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    let renamed = |to: &'static str| {
        with(&move |tensors| {
            let tensor = tensors.remove(name).unwrap();
            tensors.insert(to.to_owned(), tensor);
        })
    };
    assert!(matches!(
        renamed("model.layers.0.self_attn.q_proj.lora_A.weight"),
        AdapterError::TensorPrefix { .. }
    ));
    for other in [
        "base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.00.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.mlp.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_C.weight",
    ] {
        assert!(matches!(renamed(other), AdapterError::UnexpectedTensor { name } if name == other));
    }
    assert!(matches!(
        with(&|tensors| { tensors.remove(name); }),
        AdapterError::MissingTensor { name: missing } if missing == name
    ));
    assert!(matches!(
        with(&|tensors| tensors.get_mut(name).unwrap().2[0..4].copy_from_slice(&f32::NAN.to_le_bytes())),
        AdapterError::NotFinite { name: bad } if bad == name
    ));
    assert!(matches!(
        with(&|tensors| tensors.get_mut(name).unwrap().1 = vec![20, 3]),
        AdapterError::Shape { expected, found, .. } if expected == [3, 20] && found == [20, 3]
    ));
    assert!(matches!(
        with(&|tensors| tensors.get_mut(name).unwrap().0 = Dtype::I32),
        AdapterError::ElementType { found, .. } if found == "I32"
    ));
    let zero_b = |tensors: &mut Tensors| {
        tensors
            .iter_mut()
            .filter(|(name, _)| name.contains("lora_B"))
            .for_each(|(_, tensor)| tensor.2.fill(0));
    };
    assert!(matches!(with(&zero_b), AdapterError::NoEffect));
    assert!(matches!(
        load(&settings, &weights[..weights.len() / 2]),
        Err(AdapterError::Weights { .. })
    ));
    let other = BaseModel::init_random(
        ModelConfig {
            hidden_size: 24,
            ..tiny_config(true)
        },
        0,
    )
    .unwrap();
    assert!(matches!(
        LoraAdapter::from_bytes(&settings, &weights, other.config()),
        Err(AdapterError::Shape { .. })
    ));
}
