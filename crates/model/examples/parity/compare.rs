//! One comparison: the files of a case in, differences out.

use safetensors::SafeTensors;
use serde::Deserialize;
use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zerog_model::*;

/// Largest difference of a logit.
pub(crate) const LOGITS: f64 = 1e-4;
/// Largest relative difference of gradients and losses.
pub(crate) const RELATIVE: f64 = 1e-3;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// A difference and how large it may be.
#[derive(Debug)]
pub(crate) struct Measure {
    pub(crate) name: &'static str,
    pub(crate) value: f64,
    pub(crate) limit: f64,
}

impl Measure {
    /// Whether the limit is kept; a number that is none exceeds it.
    pub(crate) fn passed(&self) -> bool {
        self.value <= self.limit
    }
}

/// `reference.json` of a case.
#[derive(Debug, Deserialize)]
struct Reference {
    method: String,
    examples: Vec<Example>,
    examples_per_step: usize,
    weight_decay: f32,
    max_grad_norm: f32,
    betas: (f32, f32),
    epsilon: f32,
    steps: Vec<Step>,
    probe: Vec<u32>,
}

#[derive(Debug, Deserialize)]
struct Example {
    tokens: Vec<u32>,
    trained: Vec<bool>,
}

#[derive(Debug, Deserialize)]
struct Step {
    loss: f64,
    learning_rate: f64,
    gradient_norm: f64,
}

/// Tensors of a safetensors file in f32.
struct Tensors(HashMap<String, Vec<f32>>);

impl Tensors {
    fn read(path: &Path) -> Outcome<Self> {
        let bytes = std::fs::read(path)?;
        let file = SafeTensors::deserialize(&bytes)?;
        let mut tensors = HashMap::new();
        for (name, tensor) in file.iter() {
            let (values, _) = tensor.data().as_chunks::<4>();
            let values = values.iter().map(|value| f32::from_le_bytes(*value));
            tensors.insert(name.to_owned(), values.collect());
        }
        Ok(Self(tensors))
    }

    fn get(&self, name: &str) -> Outcome<&[f32]> {
        let values = self.0.get(name);
        Ok(values.ok_or_else(|| format!("the reference has no tensor {name}"))?)
    }

    /// Names and values of the tensors with a prefix, without it.
    fn under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a [f32])> {
        self.0
            .iter()
            .filter_map(move |(name, values)| Some((name.strip_prefix(prefix)?, values.as_slice())))
    }
}

/// The folders of all cases, sorted.
pub(crate) fn cases(folder: &Path) -> Outcome<Vec<PathBuf>> {
    let mut cases: Vec<PathBuf> = std::fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Outcome<_>>()?;
    cases.retain(|path| path.join("reference.json").is_file());
    cases.sort();
    if cases.is_empty() {
        return Err(format!("no case in {}", folder.display()).into());
    }
    Ok(cases)
}

/// Runs one case; with `output`, the adapter trained here and its logits are written there.
pub(crate) fn compare(case: &Path, output: Option<&Path>) -> Outcome<Vec<Measure>> {
    let reference: Reference =
        serde_json::from_slice(&std::fs::read(case.join("reference.json"))?)?;
    let tensors = Tensors::read(&case.join("reference.safetensors"))?;
    match reference.method.as_str() {
        "sft" => decoder(case, &reference, &tensors, output),
        other => Err(format!("unknown method {other}").into()),
    }
}

fn decoder(
    case: &Path,
    reference: &Reference,
    tensors: &Tensors,
    output: Option<&Path>,
) -> Outcome<Vec<Measure>> {
    let base = BaseModel::load(&case.join("base"))?;
    let adapter = LoraAdapter::load(&case.join("adapter"), base.config())?;
    let settings = adapter.settings().clone();
    let mut measures = Vec::new();

    let logits = |adapter| all_logits(&base, adapter, &reference.probe);
    measures.push(Measure {
        name: "logits of the base model",
        value: largest_difference(&logits(None)?, tensors.get("logits.base")?),
        limit: LOGITS,
    });
    measures.push(Measure {
        name: "logits with PEFT's adapter",
        value: largest_difference(
            &logits(Some(Arc::new(adapter.clone())))?,
            tensors.get("logits.adapted")?,
        ),
        limit: LOGITS,
    });

    let mut model = TrainableModel::lora_from(base.clone(), settings.clone(), &adapter)?;
    let first = pack(&reference.examples[..reference.examples_per_step]);
    let loss = model.forward_backward(&first, &StepOptions::default())?;
    measures.push(Measure {
        name: "gradients",
        value: gradient_difference(model.parameters(), tensors, loss.supervised_tokens)?,
        limit: RELATIVE,
    });

    let mut model = TrainableModel::lora(base.clone(), settings)?;
    set_initial(model.parameters_mut(), tensors)?;
    let mut curve = Curve::default();
    for (number, step) in reference.steps.iter().enumerate() {
        let batch = pack(chosen(reference, number));
        let loss = model.forward_backward(&batch, &StepOptions::default())?;
        let norm = finish_step(&mut model, reference, step, loss.supervised_tokens);
        curve.add(step, loss.mean(), norm);
    }
    measures.extend(curve.measures());
    let trained = model.adapter()?;
    if let Some(output) = output {
        let identity = AdapterIdentity {
            base_model: case.join("base").display().to_string(),
            revision: None,
        };
        trained.save(&output.join("adapter"), &identity)?;
        let logits = all_logits(&base, Some(Arc::new(trained)), &reference.probe)?;
        let shape = vec![reference.probe.len(), logits.len() / reference.probe.len()];
        write_logits(&output.join("logits.safetensors"), shape, &logits)?;
    }
    Ok(measures)
}

/// The examples of step `number`, in file order, again and again.
fn chosen(reference: &Reference, number: usize) -> &[Example] {
    let start = number * reference.examples_per_step % reference.examples.len();
    &reference.examples[start..start + reference.examples_per_step]
}

fn pack(examples: &[Example]) -> PackedBatch {
    let mut batch = PackedBatch::default();
    for example in examples {
        batch.push(&example.tokens, &example.trained);
    }
    batch
}

/// Starts from the adapter that PEFT drew.
fn set_initial(parameters: &mut Parameters, tensors: &Tensors) -> Outcome<()> {
    let count = parameters.names().count();
    let mut given = 0;
    for (name, values) in tensors.under("initial.") {
        parameters
            .set(name, values)
            .map_err(|error| format!("{name}: {error}"))?;
        given += 1;
    }
    if given != count {
        return Err(format!("the reference trains {given} tensors, this crate {count}").into());
    }
    Ok(())
}

/// Clips and updates as the reference does; returns the norm of the mean gradient.
fn finish_step(
    model: &mut impl Trainable,
    reference: &Reference,
    step: &Step,
    count: usize,
) -> f64 {
    let clipped = model.clipped_scale(count, Some(reference.max_grad_norm));
    model.apply_update(&UpdateOptions {
        learning_rate: step.learning_rate as f32,
        weight_decay: reference.weight_decay,
        betas: reference.betas,
        epsilon: reference.epsilon,
        gradient_scale: clipped.scale,
    });
    clipped.gradient_norm
}

/// Largest relative differences over the steps of a run.
#[derive(Default)]
struct Curve {
    loss: f64,
    norm: f64,
}

impl Curve {
    fn add(&mut self, step: &Step, loss: f64, norm: f64) {
        self.loss = self.loss.max(relative(loss, step.loss));
        self.norm = self.norm.max(relative(norm, step.gradient_norm));
    }

    fn measures(self) -> [Measure; 2] {
        [
            Measure {
                name: "loss curve, 50 steps",
                value: self.loss,
                limit: RELATIVE,
            },
            Measure {
                name: "gradient norms, 50 steps",
                value: self.norm,
                limit: RELATIVE,
            },
        ]
    }
}

fn relative(ours: f64, theirs: f64) -> f64 {
    let difference = (ours - theirs).abs() / theirs.abs();
    // `max` would pass over it silently.
    if difference.is_nan() {
        f64::INFINITY
    } else {
        difference
    }
}

fn all_logits(
    base: &BaseModel,
    adapter: Option<Arc<LoraAdapter>>,
    tokens: &[u32],
) -> Outcome<Vec<f32>> {
    let mut cache = KvCache::new(base.config(), tokens.len());
    let mut rows = [Row {
        tokens,
        cache: &mut cache,
        adapter,
        wanted: LogitsWanted::All,
    }];
    Ok(base
        .forward(&mut rows, &mut InferenceScratch::default())?
        .swap_remove(0))
}

fn largest_difference(ours: &[f32], theirs: &[f32]) -> f64 {
    if ours.len() != theirs.len() {
        return f64::INFINITY;
    }
    ours.iter()
        .zip(theirs)
        .fold(0.0, |largest, (ours, theirs)| {
            let difference = f64::from(ours - theirs).abs();
            if difference.is_nan() {
                f64::INFINITY
            } else {
                difference.max(largest)
            }
        })
}

/// Over all tensors, the largest `‖ours − theirs‖ / ‖theirs‖`; ours are sums, theirs means over `count`.
fn gradient_difference(parameters: &Parameters, tensors: &Tensors, count: usize) -> Outcome<f64> {
    let mut largest = 0.0_f64;
    for (name, theirs) in tensors.under("gradient.") {
        let ours = parameters
            .gradient(name)
            .ok_or_else(|| format!("{name} is not trained here"))?;
        if ours.len() != theirs.len() {
            return Err(format!("{name} has another size").into());
        }
        let (mut difference, mut norm) = (0.0, 0.0);
        for (ours, theirs) in ours.iter().zip(theirs) {
            difference += (f64::from(*ours) / count as f64 - f64::from(*theirs)).powi(2);
            norm += f64::from(*theirs).powi(2);
        }
        largest = largest.max(relative(difference.sqrt() + norm.sqrt(), norm.sqrt()));
    }
    if largest == 0.0 {
        return Err("the reference has no gradient".into());
    }
    Ok(largest)
}

fn write_logits(path: &Path, shape: Vec<usize>, logits: &[f32]) -> Outcome<()> {
    let bytes: Vec<u8> = logits
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, &bytes)?;
    let file = safetensors::serialize([("logits", view)], None)?;
    std::fs::write(path, file)?;
    Ok(())
}
