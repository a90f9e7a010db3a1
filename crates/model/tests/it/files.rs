//! Base-model files: single, sharded, several element types, damaged.

use super::*;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest, Sha256};
use std::path::Path;

fn logits(base: &BaseModel) -> Vec<f32> {
    let mut cache = KvCache::new(base.config(), 4);
    let tokens = [3, 1, 4, 1];
    let mut rows = [Row {
        tokens: &tokens,
        cache: &mut cache,
        adapter: None,
        wanted: LogitsWanted::Last,
    }];
    base.forward(&mut rows, &mut InferenceScratch::default())
        .unwrap()
        .remove(0)
}

fn rewrite(directory: &Path, name: &str, dtype: Dtype, keep: impl Fn(&str) -> bool) {
    let bytes = std::fs::read(directory.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = file
        .iter()
        .filter(|(name, _)| keep(name))
        .map(|(name, tensor)| {
            let values = tensor
                .data()
                .chunks_exact(2)
                .map(|pair| half::bf16::from_le_bytes([pair[0], pair[1]]).to_f32());
            let data = match dtype {
                Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
                Dtype::F16 => values
                    .flat_map(|value| half::f16::from_f32(value).to_le_bytes())
                    .collect(),
                _ => tensor.data().to_vec(),
            };
            (name.to_owned(), tensor.shape().to_vec(), data)
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, shape, data)| (name, TensorView::new(dtype, shape.clone(), data).unwrap()));
    std::fs::write(
        directory.join(name),
        safetensors::serialize(views, None).unwrap(),
    )
    .unwrap();
}

#[test]
fn a_saved_model_loads_with_the_same_hash_and_logits() {
    for tied in [true, false] {
        let base = tiny_base(tied);
        let directory = tempfile::tempdir().unwrap();
        base.save(directory.path()).unwrap();
        let loaded = BaseModel::load(directory.path()).unwrap();
        assert_eq!(loaded.config(), base.config());
        assert_eq!(logits(&loaded), logits(&base));
        assert_eq!(loaded.sha256(), base.sha256());
        let plain =
            Sha256::digest(std::fs::read(directory.path().join("model.safetensors")).unwrap());
        assert_eq!(loaded.sha256_hex(), hex::encode(plain));
        assert_eq!(
            ModelFamily::of_folder(directory.path()).unwrap(),
            ModelFamily::Qwen2
        );
        assert_eq!(
            BaseModel::init_random(tiny_config(tied), 3)
                .unwrap()
                .sha256(),
            base.sha256()
        );
        assert_ne!(
            BaseModel::init_random(tiny_config(tied), 4)
                .unwrap()
                .sha256(),
            base.sha256()
        );
    }
}

#[test]
fn shards_and_other_element_types_load() {
    let base = tiny_base(true);
    let directory = tempfile::tempdir().unwrap();
    base.save(directory.path()).unwrap();
    let path = directory.path();
    rewrite(
        path,
        "model-00001-of-00002.safetensors",
        Dtype::F32,
        |name| name.contains("layers.0"),
    );
    rewrite(
        path,
        "model-00002-of-00002.safetensors",
        Dtype::BF16,
        |name| !name.contains("layers.0"),
    );
    std::fs::remove_file(path.join("model.safetensors")).unwrap();
    let index = |shard: &str| {
        let text = serde_json::json!({"metadata": {}, "weight_map": {
            "model.norm.weight": "model-00002-of-00002.safetensors", "other": shard}});
        std::fs::write(path.join("model.safetensors.index.json"), text.to_string()).unwrap();
    };
    index("model-00001-of-00002.safetensors");
    assert_eq!(logits(&BaseModel::load(path).unwrap()), logits(&base));
    index("../elsewhere.safetensors");
    assert!(matches!(
        BaseModel::load(path),
        Err(ModelError::UnsupportedSetting { setting: "weight_map", value }) if value == "../elsewhere.safetensors"
    ));

    base.save(path).unwrap();
    rewrite(path, "half.safetensors", Dtype::F16, |_| true);
    std::fs::rename(
        path.join("half.safetensors"),
        path.join("model.safetensors"),
    )
    .unwrap();
    for (a, b) in logits(&BaseModel::load(path).unwrap())
        .iter()
        .zip(logits(&base))
    {
        assert!((a - b).abs() < 1e-3);
    }
}

#[test]
fn missing_and_damaged_files_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    assert!(matches!(BaseModel::load(path), Err(ModelError::Io { .. })));
    tiny_base(false).save(path).unwrap();
    rewrite(path, "part.safetensors", Dtype::BF16, |name| {
        name != "lm_head.weight"
    });
    std::fs::rename(
        path.join("part.safetensors"),
        path.join("model.safetensors"),
    )
    .unwrap();
    assert!(
        matches!(BaseModel::load(path), Err(ModelError::MissingTensor { name }) if name == "lm_head.weight")
    );
    let bytes = std::fs::read(path.join("model.safetensors")).unwrap();
    std::fs::write(path.join("model.safetensors"), &bytes[..bytes.len() - 2]).unwrap();
    assert!(matches!(
        BaseModel::load(path),
        Err(ModelError::Safetensors { .. })
    ));
    std::fs::remove_file(path.join("model.safetensors")).unwrap();
    assert!(matches!(
        BaseModel::load(path),
        Err(ModelError::MissingWeights { .. })
    ));
    let config = ModelConfig {
        intermediate_size: 30,
        ..tiny_config(false)
    };
    tiny_base(false).save(path).unwrap();
    std::fs::write(path.join("config.json"), config.to_json()).unwrap();
    assert!(
        matches!(BaseModel::load(path), Err(ModelError::TensorShape { found, .. }) if found == [28, 20])
    );
}
