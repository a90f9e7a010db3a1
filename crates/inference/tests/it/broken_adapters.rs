//! Adapters that would do nothing or something else, each made from a good one: every one is refused with its reason.

use std::io::{Cursor, Write};

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use zerog_inference::{Canary, EngineHandle, PackageSource, Trust};
use zerog_protocol::training_params::TrainingParams;
use zip::write::SimpleFileOptions;

use crate::world::{
    adapter, adapter_tensors, config, model_with_seed, start, tokenizer, tokenizer_files,
};

const FIRST: Trust = Trust::FirstLoad {
    accepts_unrecorded: false,
};

/// The parts of a package; what is set to `None` is left out.
#[derive(Clone)]
struct Pieces {
    config: Option<Vec<u8>>,
    tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
    dtype: Dtype,
    /// In place of what the tensors give.
    weights: Option<Vec<u8>>,
    has_weights: bool,
    canary: Option<Vec<u8>>,
    manifest: Value,
    tokenizer: (Vec<u8>, Vec<u8>),
    template: String,
    more: Vec<(String, Vec<u8>)>,
}

impl Pieces {
    fn settings(&mut self, change: impl FnOnce(&mut Value)) {
        let mut settings: Value = serde_json::from_slice(self.config.as_ref().unwrap()).unwrap();
        change(&mut settings);
        self.config = Some(settings.to_string().into_bytes());
    }

    fn set(&mut self, name: &str, value: Value) {
        self.settings(|settings| settings[name] = value);
    }

    fn record(&mut self, change: impl FnOnce(&mut Canary)) {
        let mut canary = Canary::parse(self.canary.as_ref().unwrap()).unwrap();
        change(&mut canary);
        self.canary = Some(serde_json::to_vec(&canary).unwrap());
    }

    /// The tensors whose name ends so.
    fn each(&mut self, end: &str, mut change: impl FnMut(&mut (String, Vec<usize>, Vec<f32>))) {
        let mut found = 0;
        for tensor in self
            .tensors
            .iter_mut()
            .filter(|tensor| tensor.0.ends_with(end))
        {
            change(tensor);
            found += 1;
        }
        assert!(found > 0, "no tensor ends with {end}");
    }

    fn rename(&mut self, from: &str, to: &str) {
        for tensor in &mut self.tensors {
            tensor.0 = tensor.0.replace(from, to);
        }
    }

    /// Exchanges the numbers of two tensors of one shape.
    fn swap(&mut self, left: &str, right: &str) {
        let place = |end: &str| {
            self.tensors
                .iter()
                .position(|tensor| tensor.0.ends_with(end))
                .unwrap()
        };
        let (left, right) = (place(left), place(right));
        assert_eq!(self.tensors[left].1, self.tensors[right].1);
        let values = self.tensors[left].2.clone();
        self.tensors[left].2 = std::mem::replace(&mut self.tensors[right].2, values);
    }

    fn weight_bytes(&self) -> Vec<u8> {
        if let Some(bytes) = &self.weights {
            return bytes.clone();
        }
        let bytes: Vec<Vec<u8>> = self
            .tensors
            .iter()
            .map(|(_, _, values)| match self.dtype {
                Dtype::F64 => values
                    .iter()
                    .flat_map(|v| f64::from(*v).to_le_bytes())
                    .collect(),
                Dtype::I32 => values
                    .iter()
                    .flat_map(|v| (*v as i32).to_le_bytes())
                    .collect(),
                _ => values
                    .iter()
                    .flat_map(|value| value.to_le_bytes())
                    .collect(),
            })
            .collect();
        let views = self
            .tensors
            .iter()
            .zip(&bytes)
            .map(|((name, shape, _), bytes)| {
                (
                    name.as_str(),
                    TensorView::new(self.dtype, shape.clone(), bytes).unwrap(),
                )
            });
        safetensors::serialize(views, None).unwrap()
    }

    fn zip(&self) -> Vec<u8> {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let options =
            SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        let mut add = |name: &str, bytes: &[u8]| {
            zip.start_file(format!("output_model/{name}"), options)
                .unwrap();
            zip.write_all(bytes).unwrap();
        };
        if let Some(settings) = &self.config {
            add("adapter_config.json", settings);
        }
        if self.has_weights {
            add("adapter_model.safetensors", &self.weight_bytes());
        }
        if let Some(canary) = &self.canary {
            add("canary.json", canary);
        }
        add("manifest.json", self.manifest.to_string().as_bytes());
        add("tokenizer.json", &self.tokenizer.0);
        add("tokenizer_config.json", &self.tokenizer.1);
        add("chat_template.jinja", self.template.as_bytes());
        for (name, bytes) in &self.more {
            zip.start_file(name.as_str(), options).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }
}

async fn good(engine: &EngineHandle) -> Pieces {
    let (settings, tensors) = adapter_tensors(1, 16.0);
    let prompts = vec![
        b"probe one".map(u32::from).to_vec(),
        b"two".map(u32::from).to_vec(),
    ];
    let canary = engine
        .record_canary(prompts, adapter(engine, 1))
        .await
        .unwrap();
    let (tokenizer_json, tokenizer_config, template) = tokenizer_files();
    let params = serde_json::to_value(TrainingParams::default()).unwrap();
    Pieces {
        config: Some(settings),
        tensors,
        dtype: Dtype::F32,
        weights: None,
        has_weights: true,
        canary: Some(serde_json::to_vec(&canary).unwrap()),
        manifest: json!({
            "version": 1, "task_id": "t", "base_model": "tiny", "base_model_sha256": canary.base_model_sha256,
            "stand_in": false, "tokenizer_sha256": "", "dataset_hash": "0x00", "examples": 1, "tokens": 1, "steps": 1,
            "loss_first": 1.0, "loss_last": 0.5, "params": params,
        }),
        tokenizer: (tokenizer_json, tokenizer_config),
        template,
        more: Vec::new(),
    }
}

async fn load(engine: &EngineHandle, zip: Vec<u8>) -> Result<(), String> {
    let loaded = engine
        .load_package("ft-x", PackageSource::Zip(Box::new(zip)), FIRST)
        .await;
    loaded.map(|_| ()).map_err(|error| error.to_string())
}

/// One broken adapter: its name, how it is made, and a part of the reason.
type Case = (&'static str, Box<dyn Fn(&mut Pieces)>, &'static str);

fn case(name: &'static str, reason: &'static str, change: impl Fn(&mut Pieces) + 'static) -> Case {
    (name, Box::new(change), reason)
}

fn settings_cases() -> Vec<Case> {
    vec![
        case(
            "settings that are not JSON",
            "adapter_config.json is not valid",
            |p| p.config = Some(b"{".to_vec()),
        ),
        case("empty settings", "adapter_config.json is not valid", |p| {
            p.config = Some(Vec::new())
        }),
        case("no settings", "no adapter_config.json", |p| p.config = None),
        case("huge settings", "at most", |p| {
            p.set("note", json!("x".repeat(2 << 20)))
        }),
        case("a setting twice", "duplicate field", |p| {
            let text = String::from_utf8(p.config.clone().unwrap()).unwrap();
            p.config = Some(text.replacen("\"r\":4", "\"r\":4,\"r\":8", 1).into_bytes());
        }),
        case("another kind of adapter", "peft_type", |p| {
            p.set("peft_type", json!("IA3"))
        }),
        case("no rank", "missing field `r`", |p| {
            p.settings(|settings| {
                settings.as_object_mut().unwrap().remove("r");
            });
        }),
        case("rank zero", "rank 0", |p| p.set("r", json!(0))),
        case("a negative rank", "adapter_config.json is not valid", |p| {
            p.set("r", json!(-4))
        }),
        case("a rank beyond all limits", "rank 9999", |p| {
            p.set("r", json!(9999))
        }),
        case("another rank than the tensors", "has shape", |p| {
            p.set("r", json!(8))
        }),
        case("alpha zero", "lora_alpha", |p| {
            p.set("lora_alpha", json!(0))
        }),
        case("a negative alpha", "lora_alpha", |p| {
            p.set("lora_alpha", json!(-16))
        }),
        case(
            "an alpha that is no number",
            "adapter_config.json is not valid",
            |p| p.set("lora_alpha", json!("NaN")),
        ),
        case("four times the alpha", "probe", |p| {
            p.set("lora_alpha", json!(64))
        }),
        case("a tenth more alpha", "probe", |p| {
            p.set("lora_alpha", json!(17.6))
        }),
        case("DoRA", "is missing", |p| p.set("use_dora", json!(true))),
        case("the other scale", "probe", |p| {
            p.set("use_rslora", json!(true))
        }),
        case("transposed layers", "fan_in_fan_out", |p| {
            p.set("fan_in_fan_out", json!(true))
        }),
        case("trained biases", "bias", |p| p.set("bias", json!("all"))),
        case("whole modules", "modules_to_save", |p| {
            p.set("modules_to_save", json!(["lm_head"]))
        }),
        case("ranks by pattern", "rank_pattern", |p| {
            p.set("rank_pattern", json!({"q_proj": 2}))
        }),
        case("alphas by pattern", "alpha_pattern", |p| {
            p.set("alpha_pattern", json!({"q_proj": 2}))
        }),
        case("some layers only", "layers_to_transform", |p| {
            p.set("layers_to_transform", json!([0]))
        }),
        case("no target", "no target module", |p| {
            p.set("target_modules", json!([]))
        }),
        case("an unknown target", "embed_tokens", |p| {
            p.set("target_modules", json!(["embed_tokens"]))
        }),
        case("targets by pattern", "target_modules", |p| {
            p.set("target_modules", json!(".*_proj"))
        }),
        case("disjoint modules", "belongs to no target module", |p| {
            p.set("target_modules", json!(["k_proj"]))
        }),
        case("a target without tensors", "is missing", |p| {
            p.set(
                "target_modules",
                json!(["q_proj", "v_proj", "down_proj", "up_proj"]),
            );
        }),
    ]
}

fn weight_cases() -> Vec<Case> {
    vec![
        case("no weights", "no adapter_model.safetensors", |p| {
            p.has_weights = false
        }),
        case(
            "pickled weights only",
            "no adapter_model.safetensors",
            |p| {
                p.has_weights = false;
                p.more
                    .push(("output_model/adapter_model.bin".into(), vec![0x80, 2]));
            },
        ),
        case("empty weights", "not a valid safetensors", |p| {
            p.weights = Some(Vec::new())
        }),
        case("truncated weights", "not a valid safetensors", |p| {
            let mut bytes = p.weight_bytes();
            bytes.truncate(bytes.len() - 9);
            p.weights = Some(bytes);
        }),
        case("a truncated header", "not a valid safetensors", |p| {
            let mut bytes = p.weight_bytes();
            bytes.truncate(40);
            p.weights = Some(bytes);
        }),
        case("a header that claims to be huge", "header", |p| {
            let mut bytes = p.weight_bytes();
            bytes[..8].copy_from_slice(&(1_u64 << 60).to_le_bytes());
            p.weights = Some(bytes);
        }),
        case("a huge header", "header", |p| {
            let mut header = b"{}".to_vec();
            header.resize(20 << 20, b' ');
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend(header);
            p.weights = Some(bytes);
        }),
        case(
            "a header that is not JSON",
            "not a valid safetensors",
            |p| {
                let mut bytes = p.weight_bytes();
                bytes[8] = b'[';
                p.weights = Some(bytes);
            },
        ),
        case(
            "numbers behind the last tensor",
            "not a valid safetensors",
            |p| {
                let mut bytes = p.weight_bytes();
                bytes.extend([0; 64]);
                p.weights = Some(bytes);
            },
        ),
        case("double precision", "element type", |p| p.dtype = Dtype::F64),
        case("integers", "element type", |p| p.dtype = Dtype::I32),
        case("not a number in A", "not finite", |p| {
            p.each("0.self_attn.q_proj.lora_A.weight", |t| t.2[3] = f32::NAN)
        }),
        case("infinity in B", "not finite", |p| {
            p.each("1.mlp.down_proj.lora_B.weight", |t| t.2[0] = f32::INFINITY)
        }),
        case("zero B", "every lora_B is zero", |p| {
            p.each("lora_B.weight", |t| t.2.fill(0.0))
        }),
        case("zero A", "probe", |p| {
            p.each("lora_A.weight", |t| t.2.fill(0.0))
        }),
        case("a B that vanishes", "probe", |p| {
            p.each("lora_B.weight", |t| t.2.iter_mut().for_each(|v| *v *= 1e-9))
        }),
        case("one layer of zeros", "probe", |p| {
            p.each("1.self_attn.v_proj.lora_B.weight", |t| t.2.fill(0.0))
        }),
        case("an extra tensor", "lm_head", |p| {
            p.tensors
                .push(("lm_head.weight".into(), vec![2], vec![0.0; 2]))
        }),
        case("an extra layer", "layers.2.", |p| {
            let mut more = p.tensors[0].clone();
            more.0 = more.0.replace("layers.0.", "layers.2.");
            p.tensors.push(more);
        }),
        case("a layer's tensor left out", "is missing", |p| {
            p.tensors.remove(3);
        }),
        case("no prefix", "does not begin with", |p| {
            p.rename("base_model.model.", "")
        }),
        case("too much prefix", "belongs to no", |p| {
            p.rename("base_model.model.", "base_model.model.model.")
        }),
        case("another family's names", "belongs to no", |p| {
            p.rename("model.layers.", "transformer.h.")
        }),
        case("names of an unmerged model", "belongs to no", |p| {
            p.rename(".weight", ".default.weight")
        }),
        case("renamed matrices", "belongs to no", |p| {
            p.rename("lora_A", "lora_a")
        }),
        case("a layer number with a zero", "belongs to no", |p| {
            p.rename("layers.0.", "layers.00.")
        }),
        case("a transposed A", "has shape", |p| {
            p.each("0.self_attn.q_proj.lora_A.weight", |t| t.1.reverse())
        }),
        case("a transposed B", "has shape", |p| {
            p.each("0.self_attn.q_proj.lora_B.weight", |t| t.1.reverse())
        }),
        case("A for B and B for A", "has shape", |p| {
            p.rename("lora_A", "lora_C");
            p.rename("lora_B", "lora_A");
            p.rename("lora_C", "lora_B");
        }),
        case("swapped layers", "probe", |p| {
            for end in [
                "self_attn.q_proj.lora_A.weight",
                "self_attn.q_proj.lora_B.weight",
            ] {
                p.swap(&format!("0.{end}"), &format!("1.{end}"));
            }
        }),
        case("swapped modules", "probe", |p| {
            p.swap(
                "0.self_attn.q_proj.lora_A.weight",
                "0.self_attn.v_proj.lora_A.weight",
            );
        }),
        case("the opposite adapter", "probe", |p| {
            p.each("lora_B.weight", |t| t.2.iter_mut().for_each(|v| *v = -*v))
        }),
        case("a lower rank filled up with zeros", "probe", |p| {
            p.each("lora_B.weight", |t| {
                t.2.chunks_mut(4).for_each(|row| row[2..].fill(0.0))
            });
        }),
        case("values rounded to signs", "probe", |p| {
            p.each("lora_A.weight", |t| {
                t.2.iter_mut().for_each(|v| *v = v.signum())
            })
        }),
        case("a matrix of another width", "has shape", |p| {
            p.each("0.mlp.down_proj.lora_A.weight", |t| {
                t.1[1] /= 2;
                t.2.truncate(t.1[0] * t.1[1]);
            });
        }),
        case("a flat tensor", "has shape", |p| {
            p.each("0.mlp.down_proj.lora_A.weight", |t| t.1 = vec![t.2.len()])
        }),
    ]
}

fn record_cases() -> Vec<Case> {
    vec![
        case("no record", "no reference logits", |p| p.canary = None),
        case("an empty record", "unusable", |p| {
            p.canary = Some(b"{}".to_vec())
        }),
        case("a record that is too long", "unusable", |p| {
            p.canary = Some(vec![b' '; 2 << 20])
        }),
        case("an unknown record", "unusable", |p| {
            p.record(|canary| canary.version = 2)
        }),
        case("a record without prompts", "unusable", |p| {
            p.record(|canary| canary.probes.clear())
        }),
        case("a record with a foreign token", "unusable", |p| {
            p.record(|canary| canary.probes[0].tokens[0] = 99_999)
        }),
        case("a record with lists of two lengths", "unusable", |p| {
            p.record(|canary| canary.probes[1].adapter_logits.truncate(2));
        }),
        case(
            "another base in the record",
            "was trained on base weights",
            |p| {
                p.record(|canary| canary.base_model_sha256 = "ab".repeat(32));
            },
        ),
        case("a record of the base alone", "no effect", |p| {
            p.record(|canary| {
                for probe in &mut canary.probes {
                    probe.adapter_logits.clone_from(&probe.base_logits);
                }
            });
        }),
        case(
            "a record of another base",
            "base model's logits differ",
            |p| {
                p.record(|canary| {
                    canary.probes[0]
                        .base_logits
                        .iter_mut()
                        .for_each(|logit| *logit += 0.3)
                });
            },
        ),
        case(
            "a record of another adapter",
            "adapter's logits differ",
            |p| {
                p.record(|canary| {
                    canary.probes[1]
                        .adapter_logits
                        .iter_mut()
                        .for_each(|logit| *logit += 0.3)
                });
            },
        ),
        case(
            "another base in the manifest",
            "was trained on base weights",
            |p| {
                p.manifest["base_model_sha256"] = json!("cd".repeat(32));
            },
        ),
        case("a broken manifest", "manifest.json is not valid", |p| {
            p.manifest = json!([])
        }),
        case(
            "another tokenizer than the manifest names",
            "another tokenizer",
            |p| {
                p.manifest["tokenizer_sha256"] = json!("ef".repeat(32));
            },
        ),
        case(
            "a tokenizer with exchanged tokens",
            "another tokenizer",
            |p| {
                let mut json: Value = serde_json::from_slice(&p.tokenizer.0).unwrap();
                let vocabulary = json["model"]["vocab"].as_object_mut().unwrap();
                let (a, b) = (vocabulary["a"].clone(), vocabulary["b"].clone());
                vocabulary.insert("a".into(), b);
                vocabulary.insert("b".into(), a);
                p.tokenizer.0 = serde_json::to_vec(&json).unwrap();
            },
        ),
        case(
            "a tokenizer with a further token",
            "another tokenizer",
            |p| {
                let mut json: Value = serde_json::from_slice(&p.tokenizer.0).unwrap();
                json["model"]["vocab"]["ab"] = json!(258);
                p.tokenizer.0 = serde_json::to_vec(&json).unwrap();
            },
        ),
        case(
            "a tokenizer that ends answers elsewhere",
            "another tokenizer",
            |p| {
                p.tokenizer.1 = serde_json::to_vec(&json!({"eos_token": "<|im_start|>"})).unwrap();
            },
        ),
        case(
            "a tokenizer that is none",
            "tokenizer.json is not valid",
            |p| p.tokenizer.0 = b"{}".to_vec(),
        ),
        case("another chat template", "another chat template", |p| {
            p.template = p.template.replace("assistant", "model")
        }),
        case("a template that does not parse", "is not valid", |p| {
            p.template = "{% if".into()
        }),
    ]
}

fn archive_cases() -> Vec<Case> {
    let member =
        |name: &'static str| move |p: &mut Pieces| p.more.push((name.to_owned(), b"x".to_vec()));
    vec![
        case(
            "a path upwards",
            "leaves the archive",
            member("../adapter_config.json"),
        ),
        case(
            "a path upwards from below",
            "leaves the archive",
            member("output_model/../../evil"),
        ),
        case(
            "an absolute path",
            "leaves the archive",
            member("/etc/evil"),
        ),
        case("two settings", "twice", member("other/adapter_config.json")),
        case("two weights", "twice", member("adapter_model.safetensors")),
        case("too many members", "members", |p| {
            for number in 0..300 {
                p.more.push((format!("output_model/{number}"), Vec::new()));
            }
        }),
    ]
}

#[tokio::test]
async fn every_broken_adapter_is_refused_with_its_reason() {
    let engine = start(config());
    let good = good(&engine).await;
    load(&engine, good.zip()).await.expect("the good one loads");
    assert!(engine.unload_adapter("ft-x"));
    let mut cases = settings_cases();
    cases.extend(weight_cases());
    cases.extend(record_cases());
    cases.extend(archive_cases());
    assert!(cases.len() >= 90, "{}", cases.len());
    let mut wrong = Vec::new();
    for (name, change, reason) in &cases {
        let mut pieces = good.clone();
        change(&mut pieces);
        match load(&engine, pieces.zip()).await {
            Ok(()) => wrong.push(format!("{name}: loaded")),
            Err(said) if !said.contains(reason) => wrong.push(format!("{name}: {said}")),
            Err(_) => {}
        }
        if engine.unload_adapter("ft-x") {
            wrong.push(format!("{name}: it is in the engine"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn broken_archives_are_refused() {
    let engine = start(config());
    let good = good(&engine).await.zip();
    for (bytes, reason) in [
        (b"no archive".to_vec(), "not a zip file"),
        (good[..good.len() / 2].to_vec(), "not a zip file"),
        (Vec::new(), "not a zip file"),
    ] {
        assert!(load(&engine, bytes).await.unwrap_err().contains(reason));
    }
    // A bomb: a thousand times its compressed size.
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file("adapter_model.safetensors", SimpleFileOptions::default())
        .unwrap();
    zip.write_all(&vec![0; 32 << 20]).unwrap();
    let bomb = zip.finish().unwrap().into_inner();
    assert!(
        load(&engine, bomb)
            .await
            .unwrap_err()
            .contains("unpacks to more")
    );
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    zip.add_symlink(
        "adapter_config.json",
        "/etc/passwd",
        SimpleFileOptions::default(),
    )
    .unwrap();
    let link = zip.finish().unwrap().into_inner();
    assert!(
        load(&engine, link)
            .await
            .unwrap_err()
            .contains("leaves the archive")
    );
}

#[tokio::test]
async fn a_good_adapter_on_another_base_is_refused() {
    let engine = start(config());
    let good = good(&engine).await;
    let other = zerog_inference::engine::start(
        model_with_seed(6),
        std::sync::Arc::new(tokenizer()),
        config(),
    )
    .unwrap();
    assert!(
        load(&other, good.zip())
            .await
            .unwrap_err()
            .contains("base weights")
    );
    // With every hash forged, the logits of the base still tell.
    let mut forged = good.clone();
    forged.manifest["base_model_sha256"] = json!(other.model().sha256_hex());
    forged.record(|canary| canary.base_model_sha256 = other.model().sha256_hex());
    assert!(
        load(&other, forged.zip())
            .await
            .unwrap_err()
            .contains("base model's logits differ")
    );
}

#[tokio::test]
async fn an_adapter_without_a_record_must_be_accepted_and_have_an_effect() {
    let engine = start(config());
    let mut pieces = good(&engine).await;
    pieces.canary = None;
    let accept = Trust::FirstLoad {
        accepts_unrecorded: true,
    };
    let source = |pieces: &Pieces| PackageSource::Zip(Box::new(pieces.zip()));
    engine
        .load_package("ft-x", source(&pieces), accept)
        .await
        .unwrap();
    assert!(engine.unload_adapter("ft-x"));
    pieces.each("lora_B.weight", |tensor| {
        tensor.2.iter_mut().for_each(|value| *value *= 1e-9);
    });
    let refused = engine
        .load_package("ft-x", source(&pieces), accept)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("no effect"), "{refused}");
}
