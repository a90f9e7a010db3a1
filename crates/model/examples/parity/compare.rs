//! One comparison: the files of a case in, differences out.

use safetensors::SafeTensors;
use serde::Deserialize;
use std::collections::HashMap;
use std::error::Error;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zerog_model::*;

/// Largest difference of a logit.
pub(crate) const LOGITS: f64 = 1e-4;
/// Largest relative difference of gradients and losses.
pub(crate) const RELATIVE: f64 = 1e-3;

/// Prompts that are answered, and tokens of each answer.
const PROMPTS: usize = 20;
const ANSWER_TOKENS: usize = 12;

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
    #[serde(default)]
    examples: Vec<Example>,
    #[serde(default)]
    texts: Vec<Text>,
    #[serde(default)]
    pairs: Vec<Pair>,
    #[serde(default)]
    beta: f64,
    examples_per_step: usize,
    weight_decay: f32,
    max_grad_norm: f32,
    betas: (f32, f32),
    epsilon: f32,
    steps: Vec<Step>,
    #[serde(default)]
    probe: Vec<u32>,
    #[serde(default)]
    probes: Vec<Vec<u32>>,
}

impl Reference {
    /// Beginnings of what is learned.
    fn prompts(&self) -> Vec<&[u32]> {
        let examples = self
            .examples
            .iter()
            .map(|example| &example.tokens[..example.tokens.len().div_ceil(2)]);
        let pairs = self.pairs.iter().map(|pair| pair.prompt.as_slice());
        examples.chain(pairs).cycle().take(PROMPTS).collect()
    }
}

/// A text with its class.
#[derive(Debug, Deserialize)]
struct Text {
    tokens: Vec<u32>,
    label: u32,
}

/// Two answers to a prompt.
#[derive(Debug, Deserialize)]
struct Pair {
    prompt: Vec<u32>,
    chosen: Vec<u32>,
    rejected: Vec<u32>,
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

/// Where base models serve and their adapters are trained.
pub(crate) trait Place {
    fn decoder(&self, base: &Arc<BaseModel>) -> Result<Placement, ModelError>;

    fn encoder(&self, base: &Arc<ClassifierBase>) -> Result<Placement, ModelError>;
}

impl Place for Device {
    fn decoder(&self, base: &Arc<BaseModel>) -> Result<Placement, ModelError> {
        Placement::new(base, *self)
    }

    fn encoder(&self, base: &Arc<ClassifierBase>) -> Result<Placement, ModelError> {
        Placement::of_classifier(base, *self)
    }
}

/// Runs one case in `place`; with `output`, the adapter trained here and its logits are written there.
pub(crate) fn compare(
    case: &Path,
    output: Option<&Path>,
    place: &dyn Place,
) -> Outcome<Vec<Measure>> {
    let reference: Reference =
        serde_json::from_slice(&std::fs::read(case.join("reference.json"))?)?;
    let tensors = Tensors::read(&case.join("reference.safetensors"))?;
    match reference.method.as_str() {
        "sft" => decoder(case, &reference, &tensors, output, place, |model, range| {
            let mut batch = PackedBatch::default();
            for example in &reference.examples[range] {
                batch.push(&example.tokens, &example.trained);
            }
            let loss = model.forward_backward(&batch, &StepOptions::default())?;
            Ok((loss.loss_sum, loss.supervised_tokens))
        }),
        "dpo" => decoder(case, &reference, &tensors, output, place, |model, range| {
            let mut batch = PreferenceBatch::default();
            for pair in &reference.pairs[range] {
                let [chosen, rejected] =
                    [&pair.chosen, &pair.rejected].map(|answer| with_prompt(&pair.prompt, answer));
                batch.push((&chosen.0, &chosen.1), (&rejected.0, &rejected.1));
            }
            let options = StepOptions::default();
            let loss = model.preference_forward_backward(&batch, reference.beta, &options)?;
            Ok((loss.loss_sum, loss.pairs))
        }),
        "classification" => classifier(case, &reference, &tensors, output, place),
        other => Err(format!("unknown method {other}").into()),
    }
}

/// Tokens of prompt and answer, and which of them are the answer's.
fn with_prompt(prompt: &[u32], answer: &[u32]) -> (Vec<u32>, Vec<bool>) {
    let mut marks = vec![false; prompt.len()];
    marks.resize(prompt.len() + answer.len(), true);
    ([prompt, answer].concat(), marks)
}

/// A decoder case. `run` adds the gradients of some examples and returns the sum of their losses and what it is a
/// sum over.
fn decoder(
    case: &Path,
    reference: &Reference,
    tensors: &Tensors,
    output: Option<&Path>,
    place: &dyn Place,
    run: impl Fn(&mut TrainableModel, Range<usize>) -> Outcome<(f64, usize)>,
) -> Outcome<Vec<Measure>> {
    let base = BaseModel::load(&case.join("base"))?;
    let placement = place.decoder(&base)?;
    let adapter = LoraAdapter::load(&case.join("adapter"), base.config())?;
    let settings = adapter.settings().clone();
    let logits = |adapter| all_logits((&base, &placement), adapter, &reference.probe);
    let mut measures = vec![
        logits_measure(
            "logits of the base model",
            &logits(None)?,
            tensors,
            "logits.base",
        )?,
        logits_measure(
            "logits with PEFT's adapter",
            &logits(Some(Arc::new(adapter.clone())))?,
            tensors,
            "logits.adapted",
        )?,
    ];
    let mut model = TrainableModel::lora_from(base.clone(), settings.clone(), &adapter)?;
    model.place(&placement)?;
    let (_, count) = run(&mut model, 0..reference.examples_per_step)?;
    measures.push(gradient_measure(model.parameters(), tensors, count)?);

    let mut model = TrainableModel::lora(base.clone(), settings)?;
    model.place(&placement)?;
    measures.extend(curve(&mut model, reference, tensors, run)?);
    if let Some(output) = output {
        let trained = model.adapter()?;
        trained.save(&output.join("adapter"), &identity(case))?;
        let trained = Arc::new(trained);
        let answers = greedy_answers((&base, &placement), &trained, &reference.prompts())?;
        std::fs::write(output.join("greedy.json"), serde_json::to_vec(&answers)?)?;
        let logits = logits(Some(trained))?;
        write_logits(output, reference.probe.len(), &logits)?;
    }
    Ok(measures)
}

fn classifier(
    case: &Path,
    reference: &Reference,
    tensors: &Tensors,
    output: Option<&Path>,
    place: &dyn Place,
) -> Outcome<Vec<Measure>> {
    let base = ClassifierBase::load(&case.join("base"))?;
    let placement = place.encoder(&base)?;
    let adapter = LoraAdapter::load_classifier(&case.join("adapter"), base.config())?;
    let settings = adapter.settings().clone();
    let classes = base.config().labels.len();
    let mut probes = ClassifierBatch::default();
    for probe in &reference.probes {
        probes.push(probe, 0);
    }
    let run = |model: &mut TrainableClassifier, range: Range<usize>| {
        let mut batch = ClassifierBatch::default();
        for text in &reference.texts[range] {
            batch.push(&text.tokens, text.label);
        }
        let loss = model.forward_backward(&batch, &StepOptions::default())?;
        Ok((loss.loss_sum, loss.supervised_tokens))
    };
    let alone = |adapter: &LoraAdapter| -> Outcome<Vec<f32>> {
        let rows = reference
            .probes
            .iter()
            .map(|probe| base.classify(adapter, probe));
        Ok(rows.collect::<Result<Vec<_>, _>>()?.concat())
    };

    let mut model = TrainableClassifier::new(base.clone(), settings.clone(), classes)?;
    model.place(&placement)?;
    let untrained = model.logits(&probes, AdapterUse::Without)?.concat();
    let mut measures = vec![
        logits_measure(
            "logits of the base model",
            &untrained,
            tensors,
            "logits.base",
        )?,
        logits_measure(
            "logits with PEFT's adapter",
            &alone(&adapter)?,
            tensors,
            "logits.adapted",
        )?,
    ];
    let mut continued =
        TrainableClassifier::from_adapter(base.clone(), settings.clone(), &adapter)?;
    continued.place(&placement)?;
    let packed = continued.logits(&probes, AdapterUse::With)?.concat();
    measures.push(logits_measure(
        "packed logits with PEFT's adapter",
        &packed,
        tensors,
        "logits.adapted",
    )?);
    let (_, count) = run(&mut continued, 0..reference.examples_per_step)?;
    measures.push(gradient_measure(continued.parameters(), tensors, count)?);

    measures.extend(curve(&mut model, reference, tensors, run)?);
    if let Some(output) = output {
        let trained = model.adapter();
        trained.save(&output.join("adapter"), &identity(case))?;
        write_logits(output, reference.probes.len(), &alone(&trained)?)?;
    }
    Ok(measures)
}

fn identity(case: &Path) -> AdapterIdentity {
    AdapterIdentity {
        base_model: case.join("base").display().to_string(),
        revision: None,
    }
}

/// Starts from the adapter that PEFT drew and repeats its run, on the same examples with the same learning rates.
fn curve<M: Trainable>(
    model: &mut M,
    reference: &Reference,
    tensors: &Tensors,
    run: impl Fn(&mut M, Range<usize>) -> Outcome<(f64, usize)>,
) -> Outcome<[Measure; 2]> {
    set_initial(model.parameters_mut(), tensors)?;
    let count = reference.examples.len() + reference.texts.len() + reference.pairs.len();
    let (mut losses, mut norms) = (0.0_f64, 0.0_f64);
    for (number, step) in reference.steps.iter().enumerate() {
        let start = number * reference.examples_per_step % count;
        let (loss, count) = run(model, start..start + reference.examples_per_step)?;
        let clipped = model.clipped_scale(count, Some(reference.max_grad_norm));
        model.apply_update(&UpdateOptions {
            learning_rate: step.learning_rate as f32,
            weight_decay: reference.weight_decay,
            betas: reference.betas,
            epsilon: reference.epsilon,
            gradient_scale: clipped.scale,
        });
        losses = losses.max(relative(loss / count as f64, step.loss));
        norms = norms.max(relative(clipped.gradient_norm, step.gradient_norm));
    }
    Ok([
        Measure {
            name: "loss curve, 50 steps",
            value: losses,
            limit: RELATIVE,
        },
        Measure {
            name: "gradient norms, 50 steps",
            value: norms,
            limit: RELATIVE,
        },
    ])
}

/// Takes over the adapter that PEFT drew.
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
    (base, placement): (&Arc<BaseModel>, &Placement),
    adapter: Option<Arc<LoraAdapter>>,
    tokens: &[u32],
) -> Outcome<Vec<f32>> {
    let sizes = ServingSizes {
        blocks: tokens.len().div_ceil(BLOCK_TOKENS),
        step_tokens: tokens.len(),
        step_rows: tokens.len(),
        precision: Precision::F32,
    };
    let mut serving = Serving::new(Arc::clone(base), placement, &sizes)?;
    let mut cache = KvCache::in_pool(serving.pool());
    let mut rows = [Row {
        tokens,
        cache: &mut cache,
        adapter,
        wanted: LogitsWanted::All,
    }];
    let place = serving.forward(&mut rows)?.swap_remove(0);
    Ok(serving.logits(place).to_vec())
}

/// The prompts with the most probable tokens after them, all computed together.
fn greedy_answers<'a>(
    (base, placement): (&Arc<BaseModel>, &Placement),
    adapter: &Arc<LoraAdapter>,
    prompts: &[&'a [u32]],
) -> Outcome<Vec<(&'a [u32], Vec<u32>)>> {
    let longest = prompts.iter().map(|prompt| prompt.len()).max().unwrap_or(0);
    let sizes = ServingSizes {
        blocks: prompts.len() * (longest + ANSWER_TOKENS).div_ceil(BLOCK_TOKENS),
        step_tokens: prompts.len() * longest,
        step_rows: prompts.len(),
        precision: Precision::F32,
    };
    let mut serving = Serving::new(Arc::clone(base), placement, &sizes)?;
    let pool = Arc::clone(serving.pool());
    let mut caches: Vec<KvCache> = prompts.iter().map(|_| KvCache::in_pool(&pool)).collect();
    let mut answers = vec![Vec::new(); prompts.len()];
    for step in 0..ANSWER_TOKENS {
        let mut rows: Vec<Row<'_>> = (prompts.iter().zip(&answers).zip(&mut caches))
            .map(|((prompt, answer), cache)| Row {
                tokens: match step {
                    0 => prompt,
                    _ => &answer[step - 1..],
                },
                cache,
                adapter: Some(Arc::clone(adapter)),
                wanted: LogitsWanted::Last,
            })
            .collect();
        let places = serving.forward(&mut rows)?;
        drop(rows);
        for (answer, place) in answers.iter_mut().zip(places) {
            let logits = serving.logits(place).iter().enumerate();
            let best = logits.max_by(|left, right| left.1.total_cmp(right.1));
            answer.push(best.map_or(0, |(token, _)| token as u32));
        }
    }
    Ok(prompts.iter().copied().zip(answers).collect())
}

fn logits_measure(
    name: &'static str,
    ours: &[f32],
    tensors: &Tensors,
    theirs: &str,
) -> Outcome<Measure> {
    Ok(Measure {
        name,
        value: largest_difference(ours, tensors.get(theirs)?),
        limit: LOGITS,
    })
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
fn gradient_measure(parameters: &Parameters, tensors: &Tensors, count: usize) -> Outcome<Measure> {
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
    Ok(Measure {
        name: "gradients",
        value: largest,
        limit: RELATIVE,
    })
}

/// Writes logits in `rows` rows for the reference libraries to compare with.
fn write_logits(output: &Path, rows: usize, logits: &[f32]) -> Outcome<()> {
    let shape = vec![rows, logits.len() / rows];
    let bytes: Vec<u8> = logits
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, &bytes)?;
    let file = safetensors::serialize([("logits", view)], None)?;
    std::fs::write(output.join("logits.safetensors"), file)?;
    Ok(())
}
