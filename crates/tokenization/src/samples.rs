//! What a run learns from: the records of a dataset rendered for its objective, those that are too long treated as
//! asked, and a share of them set aside for validation.
//!
//! The trainer keeps the samples and the counter only their sizes; both go through [`Renderer`], so that what is paid
//! for is what is trained.

use std::collections::BTreeSet;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use zerog_protocol::models::ModelKind;
use zerog_protocol::training_params::{ExcessLengthStrategy, TrainingMethod, TrainingParams};

use crate::dataset::{DatasetError, Format, Record, RecordContent, SourcePosition};
use crate::examples::{Example, ExampleError, render_answer, render_whole};
use crate::tokenizer::Tokenizer;

/// Most classes of a classifier.
pub const MAXIMUM_LABELS: usize = 1000;
/// Stream of the random numbers that set records aside; the streams of epochs count from 0.
const VALIDATION_STREAM: u64 = u64::MAX;

/// What is learned, which decides what records must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objective {
    /// To answer, or to continue text.
    Language,
    /// To prefer one answer over another.
    Preference,
    /// The class of a text.
    Classification,
}

impl Objective {
    /// Which records this objective needs, as advice.
    pub(crate) fn remedy(self) -> &'static str {
        match self {
            Self::Language => {
                "use `messages`, `instruction`+`output`, `prompt`+`completion` or `text`; `text`+`label` needs a classification model, `prompt`+`chosen`+`rejected` needs \"training_method\": \"dpo\""
            }
            Self::Preference => {
                "\"training_method\": \"dpo\" needs `prompt`, `chosen` and `rejected`"
            }
            Self::Classification => "a classification model needs `text` and `label`",
        }
    }
}

impl std::fmt::Display for Objective {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Language => "a language model",
            Self::Preference => "preferences",
            Self::Classification => "a classification model",
        })
    }
}

/// Which records are set aside for validation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ValidationSplit {
    /// Share of the records, above 0 and at most a half; rounded up to whole records.
    pub fraction: f64,
    /// Start of the random numbers that draw them.
    pub seed: u64,
}

/// How records become samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RenderOptions {
    /// Most tokens of one sequence.
    pub max_seq_length: usize,
    /// What happens to longer ones.
    pub excess_length_strategy: ExcessLengthStrategy,
    /// What is learned.
    pub objective: Objective,
    /// What is set aside.
    pub validation: Option<ValidationSplit>,
}

impl RenderOptions {
    /// Supervised fine-tuning of a language model on all records, cut at `max_seq_length`.
    pub fn new(max_seq_length: usize) -> Self {
        Self {
            max_seq_length,
            excess_length_strategy: ExcessLengthStrategy::Truncate,
            objective: Objective::Language,
            validation: None,
        }
    }

    /// The options of a run with `params` on a base model of `kind`.
    pub fn of_run(params: &TrainingParams, kind: ModelKind) -> Self {
        Self {
            max_seq_length: params.max_seq_length as usize,
            excess_length_strategy: params.excess_length_strategy,
            objective: match (kind, params.training_method) {
                (ModelKind::SequenceClassification, _) => Objective::Classification,
                (ModelKind::CausalLanguage, TrainingMethod::Sft) => Objective::Language,
                (ModelKind::CausalLanguage, TrainingMethod::Dpo) => Objective::Preference,
            },
            validation: (params.validation_split > 0.0).then_some(ValidationSplit {
                fraction: params.validation_split,
                seed: params.seed,
            }),
        }
    }
}

/// A prompt with two answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreferencePair {
    /// The prompt with the better answer.
    pub chosen: Example,
    /// The prompt with the worse one.
    pub rejected: Example,
}

/// A text with its class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelledText {
    /// Token ids, special tokens included.
    pub token_ids: Vec<u32>,
    /// The class as the dataset names it.
    pub label: String,
}

/// What one record, or a piece of it, teaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sample {
    /// A sequence of which some tokens are learned.
    Language(Example),
    /// A pair of answers.
    Preference(PreferencePair),
    /// A text with its class.
    Classification(LabelledText),
}

impl Sample {
    /// The sizes by which the sample is counted.
    pub fn cost(&self) -> SampleCost {
        let of = |example: &Example| (example.token_ids.len(), example.supervised_tokens());
        let (tokens, supervised_tokens) = match self {
            Self::Language(example) => of(example),
            Self::Preference(pair) => {
                let (chosen, rejected) = (of(&pair.chosen), of(&pair.rejected));
                (chosen.0 + rejected.0, chosen.1 + rejected.1)
            }
            // The class is one thing to learn, whatever the text's length.
            Self::Classification(text) => (text.token_ids.len(), 1),
        };
        SampleCost {
            tokens,
            supervised_tokens,
        }
    }
}

/// Sizes of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleCost {
    /// Tokens that are read.
    pub tokens: usize,
    /// Tokens, or classes, that are learned.
    pub supervised_tokens: usize,
}

/// What happened to the records of a dataset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RenderReport {
    /// Records read.
    pub records: usize,
    /// Examples that are trained on.
    pub examples: usize,
    /// Tokens of those examples.
    pub tokens: u64,
    /// Tokens among them that are learned.
    pub supervised_tokens: u64,
    /// Records that were cut at `max_seq_length`.
    pub truncated_examples: usize,
    /// Tokens cut off.
    pub truncated_tokens: u64,
    /// Records that became several examples because they are longer than `max_seq_length`.
    pub split_examples: usize,
    /// Records left out because they are longer than `max_seq_length`.
    pub dropped_examples: usize,
    /// Records left out because nothing of their answer is within `max_seq_length`.
    pub skipped_examples: usize,
    /// Examples set aside for validation.
    pub validation_examples: usize,
    /// Tokens of those examples.
    pub validation_tokens: u64,
}

/// All samples of a dataset, in file order.
#[derive(Debug, Clone)]
pub struct RenderedDataset {
    /// The samples that are trained on.
    pub training: Vec<Sample>,
    /// The samples that were set aside.
    pub validation: Vec<Sample>,
    /// The classes of a classification dataset: in numeric order if all are whole numbers, in alphabetic order if not.
    pub labels: Vec<String>,
    /// What happened to the records.
    pub report: RenderReport,
}

impl RenderedDataset {
    /// Measures on the samples of `other`, rendered with the same options, instead of on records set aside.
    ///
    /// # Errors
    /// [`ExampleError::UnknownLabel`].
    pub fn validate_on(&mut self, other: Self) -> Result<(), ExampleError> {
        if let Some(label) = other
            .labels
            .iter()
            .find(|label| !self.labels.contains(label))
        {
            return Err(ExampleError::UnknownLabel {
                label: label.clone(),
            });
        }
        self.report.validation_examples = other.report.examples;
        self.report.validation_tokens = other.report.tokens;
        self.validation = other.training;
        Ok(())
    }
}

/// Renders every record. Records of which nothing would be learned are left out and counted.
///
/// # Errors
/// The first error of the dataset, of rendering, or of what the records are together.
pub fn render_dataset<I>(
    tokenizer: &Tokenizer,
    records: I,
    options: RenderOptions,
) -> Result<RenderedDataset, ExampleError>
where
    I: IntoIterator<Item = Result<Record, DatasetError>>,
{
    let mut renderer = Renderer::new(tokenizer, options);
    let mut samples = Vec::new();
    for record in records {
        samples.extend(renderer.render(&record?)?);
    }
    let costs: Vec<SampleCost> = samples.iter().map(Sample::cost).collect();
    let Finished {
        report,
        labels,
        is_validation,
    } = renderer.finish(&costs)?;
    let mut dataset = RenderedDataset {
        training: Vec::with_capacity(report.examples),
        validation: Vec::with_capacity(report.validation_examples),
        labels,
        report,
    };
    for (sample, is_validation) in samples.into_iter().zip(is_validation) {
        match is_validation {
            true => dataset.validation.push(sample),
            false => dataset.training.push(sample),
        }
    }
    Ok(dataset)
}

/// Renders records one by one and keeps account of them.
pub(crate) struct Renderer<'a> {
    tokenizer: &'a Tokenizer,
    options: RenderOptions,
    report: RenderReport,
    labels: BTreeSet<String>,
    /// Samples of each record that has any.
    kept: Vec<usize>,
}

/// What [`Renderer::finish`] knows once all records were seen.
pub(crate) struct Finished {
    pub(crate) report: RenderReport,
    pub(crate) labels: Vec<String>,
    /// For each sample, in order.
    pub(crate) is_validation: Vec<bool>,
}

impl<'a> Renderer<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer, options: RenderOptions) -> Self {
        Self {
            tokenizer,
            options,
            report: RenderReport::default(),
            labels: BTreeSet::new(),
            kept: Vec::new(),
        }
    }

    /// What happened to the records so far.
    pub(crate) fn report(&self) -> &RenderReport {
        &self.report
    }

    pub(crate) fn max_seq_length(&self) -> usize {
        self.options.max_seq_length
    }

    /// The samples of the next record; none if nothing can be learned from it.
    pub(crate) fn render(&mut self, record: &Record) -> Result<Vec<Sample>, ExampleError> {
        self.report.records += 1;
        let mut samples = match (self.options.objective, &record.content) {
            (
                Objective::Preference,
                RecordContent::Preference {
                    prompt,
                    chosen,
                    rejected,
                },
            ) => {
                let answer = |text| render_answer(self.tokenizer, record.position, prompt, text);
                let pair = PreferencePair {
                    chosen: answer(chosen)?,
                    rejected: answer(rejected)?,
                };
                self.pair(record.position, pair)?
            }
            (Objective::Classification, RecordContent::Classification { text, label }) => {
                self.text(record.position, text, label)?
            }
            (Objective::Language, _) => {
                let example = render_whole(self.tokenizer, record)?;
                self.language(example)?
            }
            (objective, content) => {
                return Err(ExampleError::WrongFormat {
                    position: record.position,
                    format: content.format(),
                    objective,
                });
            }
        };
        samples.retain(teaches);
        match samples.len() {
            0 => self.report.skipped_examples += 1,
            count => self.kept.push(count),
        }
        Ok(samples)
    }

    fn language(&mut self, example: Example) -> Result<Vec<Sample>, ExampleError> {
        let limit = self.options.max_seq_length;
        let tokens = example.token_ids.len();
        if tokens > limit && self.options.excess_length_strategy == ExcessLengthStrategy::Split {
            self.report.split_examples += 1;
            return Ok(example.pieces(limit).map(Sample::Language).collect());
        }
        Ok(
            match self.too_long(example.position, tokens, Format::Text)? {
                Excess::Drop => Vec::new(),
                Excess::Keep => vec![Sample::Language(example.truncated(limit))],
            },
        )
    }

    fn pair(
        &mut self,
        position: SourcePosition,
        pair: PreferencePair,
    ) -> Result<Vec<Sample>, ExampleError> {
        let limit = self.options.max_seq_length;
        let lengths = [&pair.chosen, &pair.rejected].map(|answer| answer.token_ids.len());
        let longest = lengths.into_iter().fold(0, usize::max);
        Ok(
            match self.too_long(position, longest, Format::Preference)? {
                Excess::Drop => Vec::new(),
                Excess::Keep => {
                    let shorter: usize = lengths
                        .iter()
                        .map(|length| length.saturating_sub(limit))
                        .sum();
                    // The longer answer was counted with the record.
                    self.report.truncated_tokens +=
                        shorter.saturating_sub(longest.saturating_sub(limit)) as u64;
                    vec![Sample::Preference(PreferencePair {
                        chosen: pair.chosen.truncated(limit),
                        rejected: pair.rejected.truncated(limit),
                    })]
                }
            },
        )
    }

    fn text(
        &mut self,
        position: SourcePosition,
        text: &str,
        label: &str,
    ) -> Result<Vec<Sample>, ExampleError> {
        let encode = |text: &str| {
            self.tokenizer
                .encode(text, true)
                .map_err(|source| ExampleError::Render { position, source })
        };
        let mut token_ids = encode(text)?;
        let limit = self.options.max_seq_length;
        let tokens = token_ids.len();
        if let Excess::Drop = self.too_long(position, tokens, Format::Classification)? {
            return Ok(Vec::new());
        }
        if tokens > limit {
            // The marks that the tokenizer puts behind a text stay, as in the transformers library.
            let none = encode("")?;
            let behind = none
                .iter()
                .rev()
                .zip(token_ids.iter().rev())
                .take_while(|(mark, token)| mark == token)
                .count()
                .min(none.len().saturating_sub(1))
                .min(limit);
            token_ids.drain(limit - behind..tokens - behind);
        }
        if self.labels.len() <= MAXIMUM_LABELS {
            self.labels.insert(label.to_owned());
        }
        Ok(vec![Sample::Classification(LabelledText {
            token_ids,
            label: label.to_owned(),
        })])
    }

    /// What becomes of a record of `tokens` tokens, noted in the report.
    fn too_long(
        &mut self,
        position: SourcePosition,
        tokens: usize,
        format: Format,
    ) -> Result<Excess, ExampleError> {
        let limit = self.options.max_seq_length;
        if tokens <= limit {
            return Ok(Excess::Keep);
        }
        match self.options.excess_length_strategy {
            ExcessLengthStrategy::Truncate => {
                self.report.truncated_examples += 1;
                self.report.truncated_tokens += (tokens - limit) as u64;
                Ok(Excess::Keep)
            }
            ExcessLengthStrategy::Drop => {
                self.report.dropped_examples += 1;
                Ok(Excess::Drop)
            }
            ExcessLengthStrategy::Split => Err(ExampleError::CannotSplit { position, format }),
            ExcessLengthStrategy::Raise => Err(ExampleError::TooLong {
                position,
                tokens,
                max_seq_length: limit,
            }),
        }
    }

    /// The account of all records, whose samples have `costs`, and what is set aside.
    pub(crate) fn finish(mut self, costs: &[SampleCost]) -> Result<Finished, ExampleError> {
        // Dropped records have no samples either; they are not counted twice.
        self.report.skipped_examples -= self.report.dropped_examples;
        if costs.is_empty() {
            return Err(ExampleError::NothingToLearn {
                records: self.report.records,
                truncated: self.report.truncated_examples + self.report.dropped_examples,
                max_seq_length: self.options.max_seq_length,
            });
        }
        if self.options.objective == Objective::Classification
            && !(2..=MAXIMUM_LABELS).contains(&self.labels.len())
        {
            return Err(ExampleError::Labels {
                found: self.labels.len(),
                limit: MAXIMUM_LABELS,
            });
        }
        let aside = match self.options.validation {
            Some(split) => set_aside(self.kept.len(), split)?,
            None => vec![false; self.kept.len()],
        };
        let is_validation: Vec<bool> = aside
            .iter()
            .zip(&self.kept)
            .flat_map(|(aside, count)| std::iter::repeat_n(*aside, *count))
            .collect();
        let report = &mut self.report;
        for (cost, is_validation) in costs.iter().zip(&is_validation) {
            if *is_validation {
                report.validation_examples += 1;
                report.validation_tokens += cost.tokens as u64;
            } else {
                report.examples += 1;
                report.tokens += cost.tokens as u64;
                report.supervised_tokens += cost.supervised_tokens as u64;
            }
        }
        Ok(Finished {
            report: self.report,
            labels: in_order(self.labels),
            is_validation,
        })
    }
}

enum Excess {
    Keep,
    Drop,
}

/// Whether anything of a sample is learned. Half a pair teaches nothing.
fn teaches(sample: &Sample) -> bool {
    match sample {
        Sample::Language(example) => example.supervised_tokens() > 0,
        Sample::Preference(pair) => {
            pair.chosen.supervised_tokens() > 0 && pair.rejected.supervised_tokens() > 0
        }
        Sample::Classification(_) => true,
    }
}

/// Draws the records that are set aside: their share rounded up, and at least one record stays.
fn set_aside(records: usize, split: ValidationSplit) -> Result<Vec<bool>, ExampleError> {
    if records < 2 {
        return Err(ExampleError::TooFewToValidate { records });
    }
    let wanted = (records as f64 * split.fraction).ceil() as usize;
    let wanted = wanted.clamp(1, records - 1);
    let mut random = ChaCha8Rng::seed_from_u64(split.seed);
    random.set_stream(VALIDATION_STREAM);
    let mut order: Vec<usize> = (0..records).collect();
    let mut aside = vec![false; records];
    for index in 0..wanted {
        let other = index + (random.next_u64() % (records - index) as u64) as usize;
        order.swap(index, other);
        aside[order[index]] = true;
    }
    Ok(aside)
}

fn in_order(labels: BTreeSet<String>) -> Vec<String> {
    let mut labels: Vec<String> = labels.into_iter().collect();
    if let Ok(numbers) = labels
        .iter()
        .map(|label| label.parse::<i64>())
        .collect::<Result<Vec<_>, _>>()
    {
        let mut numbered: Vec<_> = numbers.into_iter().zip(labels).collect();
        numbered.sort();
        labels = numbered.into_iter().map(|(_, label)| label).collect();
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::count::count_tokens;
    use crate::dataset::Dataset;
    use crate::tokenizer::tests::{CHATML, byte_tokenizer};

    fn options(objective: Objective) -> RenderOptions {
        RenderOptions {
            objective,
            ..RenderOptions::new(64)
        }
    }

    fn render(text: &str, options: RenderOptions) -> Result<RenderedDataset, ExampleError> {
        let tokenizer = byte_tokenizer(Some(CHATML));
        let rendered = render_dataset(&tokenizer, Dataset::parse(text.as_bytes()), options)?;
        // What is counted is what is trained, for every option.
        let count = count_tokens(&tokenizer, Dataset::parse(text.as_bytes()), options)?;
        assert_eq!(count.report, rendered.report);
        assert_eq!(count.examples as usize, rendered.training.len());
        Ok(rendered)
    }

    fn lines(count: usize) -> String {
        (0..count)
            .map(|number| format!("{{\"prompt\":\"{number}\",\"completion\":\"{number}!\"}}\n"))
            .collect()
    }

    #[test]
    fn a_share_of_the_records_is_set_aside_by_the_seed() {
        let split = |fraction, seed| RenderOptions {
            validation: Some(ValidationSplit { fraction, seed }),
            ..options(Objective::Language)
        };
        let one = render(&lines(10), split(0.25, 1)).unwrap();
        assert_eq!((one.training.len(), one.validation.len()), (7, 3));
        assert_eq!(
            (one.report.examples, one.report.validation_examples),
            (7, 3)
        );
        let same = render(&lines(10), split(0.25, 1)).unwrap();
        assert_eq!(one.validation, same.validation);
        let other = render(&lines(10), split(0.25, 2)).unwrap();
        assert_ne!(one.validation, other.validation);
        let all = render(&lines(10), options(Objective::Language)).unwrap();
        for sample in &all.training {
            assert!(one.training.contains(sample) != one.validation.contains(sample));
        }
        let error = render(&lines(1), split(0.1, 1)).unwrap_err();
        assert!(error.to_string().contains("at least 2"), "{error}");
    }

    #[test]
    fn long_records_are_cut_split_left_out_or_refused() {
        let text = format!(
            "{{\"text\":\"{}\"}}\n{{\"text\":\"short\"}}\n",
            "x".repeat(150)
        );
        let with = |excess_length_strategy| RenderOptions {
            excess_length_strategy,
            ..options(Objective::Language)
        };
        let lengths = |rendered: &RenderedDataset| -> Vec<usize> {
            let costs = rendered.training.iter().map(Sample::cost);
            costs.map(|cost| cost.tokens).collect()
        };
        let cut = render(&text, with(ExcessLengthStrategy::Truncate)).unwrap();
        assert_eq!(lengths(&cut), [64, 6]);
        assert_eq!(
            (cut.report.truncated_examples, cut.report.truncated_tokens),
            (1, 87)
        );
        let split = render(&text, with(ExcessLengthStrategy::Split)).unwrap();
        assert_eq!(lengths(&split), [64, 64, 23, 6]);
        assert_eq!(
            (split.report.split_examples, split.report.truncated_tokens),
            (1, 0)
        );
        let dropped = render(&text, with(ExcessLengthStrategy::Drop)).unwrap();
        assert_eq!(lengths(&dropped), [6]);
        assert_eq!(
            (
                dropped.report.dropped_examples,
                dropped.report.skipped_examples
            ),
            (1, 0)
        );
        let error = render(&text, with(ExcessLengthStrategy::Raise)).unwrap_err();
        assert!(
            error.to_string().starts_with("line 1") && error.to_string().contains("151 tokens"),
            "{error}"
        );
    }

    /// Pieces of one record are on the same side, or the measurement would be of what was trained.
    #[test]
    fn pieces_of_a_record_stay_together() {
        let text: String = (0..6)
            .map(|number| format!("{{\"text\":\"{}\"}}\n", number.to_string().repeat(150)))
            .collect();
        let rendered = render(
            &text,
            RenderOptions {
                excess_length_strategy: ExcessLengthStrategy::Split,
                validation: Some(ValidationSplit {
                    fraction: 0.5,
                    seed: 3,
                }),
                ..options(Objective::Language)
            },
        )
        .unwrap();
        assert_eq!((rendered.training.len(), rendered.validation.len()), (9, 9));
        let first = |sample: &Sample| match sample {
            Sample::Language(example) => example.token_ids[0],
            other => panic!("{other:?}"),
        };
        let seen: BTreeSet<u32> = rendered.training.iter().map(first).collect();
        assert!(
            !rendered
                .validation
                .iter()
                .any(|sample| seen.contains(&first(sample)))
        );
    }

    #[test]
    fn pairs_share_their_prompt_and_learn_their_answers() {
        let plain = "{\"prompt\":\"Q\",\"chosen\":\"good\",\"rejected\":\"bad\"}\n";
        let chat = "{\"prompt\":[{\"role\":\"user\",\"content\":\"Q\"}],\"chosen\":[{\"role\":\"assistant\",\"content\":\"good\"}],\"rejected\":[{\"role\":\"assistant\",\"content\":\"bad\"}]}\n";
        let one = render(plain, options(Objective::Preference)).unwrap();
        let other = render(chat, options(Objective::Preference)).unwrap();
        assert_eq!(one.training, other.training);
        let Sample::Preference(pair) = &one.training[0] else {
            panic!("a pair was rendered");
        };
        let prompt = |example: &Example| {
            let learned = example
                .loss_mask
                .iter()
                .position(|learned| *learned)
                .unwrap();
            example.token_ids[..learned].to_vec()
        };
        assert_eq!(prompt(&pair.chosen), prompt(&pair.rejected));
        assert_eq!(
            (
                pair.chosen.supervised_tokens(),
                pair.rejected.supervised_tokens()
            ),
            (5, 4)
        );
        let cost = one.training[0].cost().tokens;
        assert_eq!(
            cost,
            pair.chosen.token_ids.len() + pair.rejected.token_ids.len()
        );
        assert_eq!(one.report.tokens, cost as u64);

        let error = render(&lines(1), options(Objective::Preference)).unwrap_err();
        assert!(error.to_string().contains("`rejected`"), "{error}");
        let error = render(plain, options(Objective::Language)).unwrap_err();
        assert!(error.to_string().contains("\"dpo\""), "{error}");
        let whole = chat.replace(
            "[{\"role\":\"assistant\"",
            "[{\"role\":\"user\",\"content\":\"Q\"},{\"role\":\"assistant\"",
        );
        let error = render(&whole, options(Objective::Preference)).unwrap_err();
        assert!(
            error.to_string().contains("one assistant message"),
            "{error}"
        );
    }

    #[test]
    fn labels_are_numbered_in_their_order() {
        let text = |labels: &[&str]| -> String {
            labels
                .iter()
                .map(|label| format!("{{\"text\":\"abc\",\"label\":{label}}}\n"))
                .collect()
        };
        let labels = |labels: &[&str]| {
            render(&text(labels), options(Objective::Classification)).map(|data| data.labels)
        };
        assert_eq!(labels(&["10", "9", "10"]).unwrap(), ["9", "10"]);
        assert_eq!(labels(&["\"b\"", "\"a\""]).unwrap(), ["a", "b"]);
        let error = labels(&["1", "1"]).unwrap_err();
        assert!(error.to_string().contains("1 different values"), "{error}");
        let error = render(&lines(2), options(Objective::Classification)).unwrap_err();
        assert!(error.to_string().contains("`text` and `label`"), "{error}");
    }
}
