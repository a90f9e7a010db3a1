//! Training examples: the token ids of a record and which of them are learned.
//!
//! Every chat-capable record goes through the model's chat template, so that training
//! sees exactly what serving sends. Text that the model is given is masked; what it
//! should say, with the marker that ends its turn, is learned. The parts are tokenised
//! one after the other at the boundaries of the template, as they are when a prompt is
//! encoded first and an answer follows.

use std::hash::{Hash, Hasher};

use crate::chat_template::ChatMessage;
use crate::dataset::{DatasetError, Format, Record, RecordContent, SourcePosition};
use crate::samples::{Objective, RenderOptions};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// One record as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The tokens.
    pub token_ids: Vec<u32>,
    /// For each token, whether predicting it is learned. The first one never is.
    pub loss_mask: Vec<bool>,
    /// Where the record begins in the dataset.
    pub position: SourcePosition,
    /// Tokens that did not fit.
    pub truncated_tokens: usize,
}

impl Example {
    /// How many tokens are learned.
    pub fn supervised_tokens(&self) -> usize {
        self.loss_mask.iter().filter(|learned| **learned).count()
    }

    /// Feeds what is trained, which is not where it stands.
    pub(crate) fn hash_content(&self, hasher: &mut impl Hasher) {
        (&self.token_ids, &self.loss_mask).hash(hasher);
    }

    /// The first `length` tokens.
    pub(crate) fn truncated(mut self, length: usize) -> Self {
        self.truncated_tokens += self.token_ids.len().saturating_sub(length);
        self.token_ids.truncate(length);
        self.loss_mask.truncate(length);
        self
    }

    /// Pieces of at most `length` tokens, in order.
    pub(crate) fn pieces(self, length: usize) -> impl Iterator<Item = Self> {
        let chunks: Vec<Self> = self
            .token_ids
            .chunks(length)
            .zip(self.loss_mask.chunks(length))
            .map(|(token_ids, loss_mask)| {
                let mut loss_mask = loss_mask.to_vec();
                loss_mask[0] = false;
                Self {
                    token_ids: token_ids.to_vec(),
                    loss_mask,
                    position: self.position,
                    truncated_tokens: 0,
                }
            })
            .collect();
        chunks.into_iter()
    }
}

/// Why a record cannot become an example.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExampleError {
    /// The dataset itself is bad.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// Tokenizer or template failed on a record.
    #[error("{position}: {source}")]
    Render {
        /// Where the record begins.
        position: SourcePosition,
        /// What failed.
        source: TokenizerError,
    },
    /// The template renders earlier turns differently once later ones follow, in a way
    /// that leaves no boundary between prompt and answer.
    #[error(
        "{position}: the model's chat template rewrites earlier turns, so the answer at `messages[{message}]` cannot be separated from its prompt; keep only the last answer of this conversation"
    )]
    UnstableTemplate {
        /// Where the record begins.
        position: SourcePosition,
        /// Index of the assistant message.
        message: usize,
    },
    /// The record is for another kind of training.
    #[error("{position}: {format} records do not train {objective}; {}", objective.remedy())]
    WrongFormat {
        /// Where the record begins.
        position: SourcePosition,
        /// Its format.
        format: Format,
        /// What is trained.
        objective: Objective,
    },
    /// A record is longer than allowed, and the run asks for an error then.
    #[error(
        "{position}: this record has {tokens} tokens, more than max_seq_length {max_seq_length}; shorten it, raise max_seq_length or choose another excess_length_strategy"
    )]
    TooLong {
        /// Where the record begins.
        position: SourcePosition,
        /// Its tokens.
        tokens: usize,
        /// The limit in force.
        max_seq_length: usize,
    },
    /// Pieces of the record would have no meaning.
    #[error(
        "{position}: this record has more tokens than max_seq_length, and only text that continues can be split, not {format} records; choose truncate, drop or raise as excess_length_strategy"
    )]
    CannotSplit {
        /// Where the record begins.
        position: SourcePosition,
        /// Its format.
        format: Format,
    },
    /// There is no validation set and a training set in so few records.
    #[error(
        "validation_split needs at least 2 records to learn from, this dataset has {records}; leave validation_split out or add records"
    )]
    TooFewToValidate {
        /// Records that can be learned from.
        records: usize,
    },
    /// Nothing can be told apart, or far too much.
    #[error(
        "`label` has {found} different values; a classifier needs 2 to {limit}, so check the labels of the dataset"
    )]
    Labels {
        /// Different labels.
        found: usize,
        /// The most.
        limit: usize,
    },
    /// A class to be measured that is not learned.
    #[error("`label` {label:?} of the validation dataset does not occur in the training dataset")]
    UnknownLabel {
        /// The class.
        label: String,
    },
    /// Not one token of the whole dataset would be learned.
    #[error(
        "no token of this dataset would be learned: {records} records, {truncated} of them cut at max_seq_length {max_seq_length} before their answer begins; raise max_seq_length or shorten the prompts"
    )]
    NothingToLearn {
        /// Records read.
        records: usize,
        /// Records that were cut.
        truncated: usize,
        /// The limit in force.
        max_seq_length: usize,
    },
}

/// Renders one record for supervised fine-tuning of a language model, cut at `max_seq_length`.
///
/// # Errors
/// [`ExampleError::Render`], [`ExampleError::UnstableTemplate`],
/// [`ExampleError::WrongFormat`].
pub fn render_example(
    tokenizer: &Tokenizer,
    record: &Record,
    options: RenderOptions,
) -> Result<Example, ExampleError> {
    Ok(render_whole(tokenizer, record)?.truncated(options.max_seq_length))
}

/// Renders one record at its full length.
pub(crate) fn render_whole(
    tokenizer: &Tokenizer,
    record: &Record,
) -> Result<Example, ExampleError> {
    let position = record.position;
    let mut builder = ExampleBuilder::new(tokenizer, position);
    match &record.content {
        RecordContent::Messages(messages) => builder.conversation(messages)?,
        RecordContent::Instruction {
            instruction,
            input,
            output,
        } => {
            let request = match (instruction.trim().is_empty(), input.trim().is_empty()) {
                (_, true) => instruction.clone(),
                (true, false) => input.clone(),
                (false, false) => format!("{instruction}\n\n{input}"),
            };
            if tokenizer.has_chat_template() {
                builder.exchange(&request, output)?;
            } else {
                let input_block = if input.trim().is_empty() {
                    String::new()
                } else {
                    format!("### Input:\n{input}\n\n")
                };
                builder.plain(
                    &format!("### Instruction:\n{instruction}\n\n{input_block}### Response:\n"),
                    output,
                )?;
            }
        }
        RecordContent::PromptCompletion { prompt, completion } => {
            if tokenizer.has_chat_template() {
                builder.exchange(prompt, completion)?;
            } else {
                builder.plain(prompt, completion)?;
            }
        }
        RecordContent::Text(text) => builder.plain("", text)?,
        RecordContent::Classification { .. } => {
            return Err(wrong_format(position, Format::Classification));
        }
        RecordContent::Preference { .. } => {
            return Err(wrong_format(position, Format::Preference));
        }
    }
    Ok(builder.finish())
}

fn wrong_format(position: SourcePosition, format: Format) -> ExampleError {
    ExampleError::WrongFormat {
        position,
        format,
        objective: Objective::Language,
    }
}

/// Renders a prompt with one of its answers, of which the answer is learned.
pub(crate) fn render_answer(
    tokenizer: &Tokenizer,
    position: SourcePosition,
    prompt: &[ChatMessage],
    answer: &str,
) -> Result<Example, ExampleError> {
    let mut builder = ExampleBuilder::new(tokenizer, position);
    match prompt {
        [only] if !tokenizer.has_chat_template() => builder.plain(&only.content, answer)?,
        _ => {
            // Earlier answers belong to the prompt, which is the same for both answers of a pair.
            let mut messages = prompt.to_vec();
            for message in &mut messages {
                message.extra.insert("weight".into(), 0.into());
            }
            messages.push(ChatMessage::new("assistant", answer));
            builder.conversation(&messages)?;
        }
    }
    Ok(builder.finish())
}

struct ExampleBuilder<'a> {
    tokenizer: &'a Tokenizer,
    position: SourcePosition,
    token_ids: Vec<u32>,
    loss_mask: Vec<bool>,
}

impl<'a> ExampleBuilder<'a> {
    fn new(tokenizer: &'a Tokenizer, position: SourcePosition) -> Self {
        Self {
            tokenizer,
            position,
            token_ids: Vec::new(),
            loss_mask: Vec::new(),
        }
    }

    fn exchange(&mut self, request: &str, answer: &str) -> Result<(), ExampleError> {
        self.conversation(&[
            ChatMessage::new("user", request),
            ChatMessage::new("assistant", answer),
        ])
    }

    /// Turns after the last answer teach nothing and are not rendered.
    fn conversation(&mut self, messages: &[ChatMessage]) -> Result<(), ExampleError> {
        let length = messages
            .iter()
            .rposition(|message| message.role == "assistant")
            .map_or(0, |last| last + 1);
        let messages = &messages[..length];
        let full = self.render(messages, false)?;
        let mut done = 0;
        for (index, message) in messages.iter().enumerate() {
            if message.role != "assistant" || !is_learned(message) {
                continue;
            }
            let unstable = || ExampleError::UnstableTemplate {
                position: self.position,
                message: index,
            };
            let prompt = self.render(&messages[..index], true)?;
            let through = self.render(&messages[..=index], false)?;
            let is_last = index + 1 == length;
            // A template may put less after the prompt marker than the answer (Qwen3 keeps an
            // empty thinking block in the last turn only); then the boundary is gone.
            if prompt.len() < done
                || through.len() < prompt.len()
                || !full.starts_with(&prompt)
                || !(is_last || full.starts_with(&through))
            {
                return Err(unstable());
            }
            self.push(&full[done..prompt.len()], false)?;
            self.answer(&full[prompt.len()..through.len()])?;
            done = through.len();
        }
        // An unlearned answer at the end (weight 0) still is context of nothing; it is left out.
        Ok(())
    }

    /// An answer as the template prints it: learned up to and including the marker that ends
    /// the turn; line ends after the marker only separate turns.
    fn answer(&mut self, text: &str) -> Result<(), ExampleError> {
        let ids = self.encode(text)?;
        let stop_ids = self.tokenizer.stop_ids();
        let end = ids.iter().rposition(|id| stop_ids.contains(id));
        let learned = end.map_or(ids.len(), |end| end + 1);
        self.loss_mask
            .extend((0..ids.len()).map(|index| index < learned));
        self.token_ids.extend(ids);
        if end.is_none() {
            // The template does not end turns; without an end the model would never stop.
            self.end_of_text();
        }
        Ok(())
    }

    fn plain(&mut self, prompt: &str, text: &str) -> Result<(), ExampleError> {
        let start = self
            .tokenizer
            .encode("", true)
            .map_err(|source| ExampleError::Render {
                position: self.position,
                source,
            })?;
        // Of the tokens that a tokenizer adds by itself only those in front belong here.
        let stop_ids = self.tokenizer.stop_ids();
        for id in start.into_iter().take_while(|id| !stop_ids.contains(id)) {
            self.token_ids.push(id);
            self.loss_mask.push(false);
        }
        self.push(prompt, false)?;
        self.push(text, true)?;
        self.end_of_text();
        Ok(())
    }

    fn end_of_text(&mut self) {
        if let Some(id) = self.tokenizer.end_of_text_id()
            && self.token_ids.last() != Some(&id)
        {
            self.token_ids.push(id);
            self.loss_mask.push(true);
        }
    }

    fn push(&mut self, text: &str, learned: bool) -> Result<(), ExampleError> {
        let ids = self.encode(text)?;
        self.loss_mask
            .extend(std::iter::repeat_n(learned, ids.len()));
        self.token_ids.extend(ids);
        Ok(())
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, ExampleError> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        self.tokenizer
            .encode(text, false)
            .map_err(|source| ExampleError::Render {
                position: self.position,
                source,
            })
    }

    fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<String, ExampleError> {
        if messages.is_empty() && !add_generation_prompt {
            return Ok(String::new());
        }
        self.tokenizer
            .render_chat(messages, None, add_generation_prompt)
            .map_err(|source| ExampleError::Render {
                position: self.position,
                source,
            })
    }

    fn finish(mut self) -> Example {
        // There is nothing before the first token to predict it from.
        if let Some(first) = self.loss_mask.first_mut() {
            *first = false;
        }
        Example {
            token_ids: self.token_ids,
            loss_mask: self.loss_mask,
            position: self.position,
            truncated_tokens: 0,
        }
    }
}

/// `"weight": 0` on an assistant message keeps it as context only.
fn is_learned(message: &ChatMessage) -> bool {
    message
        .extra
        .get("weight")
        .and_then(serde_json::Value::as_f64)
        != Some(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Dataset;
    use crate::samples::{RenderReport, Sample, render_dataset};
    use crate::tokenizer::tests::{CHATML, byte_tokenizer};

    const START: u32 = 256;
    const END: u32 = 257;

    #[derive(Debug)]
    struct Rendered {
        examples: Vec<Example>,
        report: RenderReport,
    }

    fn render(
        template: Option<&str>,
        text: &str,
        max_seq_length: usize,
    ) -> Result<Rendered, ExampleError> {
        let rendered = render_dataset(
            &byte_tokenizer(template),
            Dataset::parse(text.as_bytes()),
            RenderOptions::new(max_seq_length),
        )?;
        let examples = rendered.training.into_iter().map(|sample| match sample {
            Sample::Language(example) => example,
            other => panic!("{other:?}"),
        });
        Ok(Rendered {
            examples: examples.collect(),
            report: rendered.report,
        })
    }

    /// The learned tokens with the markers spelled out.
    fn learned(example: &Example) -> String {
        let tokenizer = byte_tokenizer(None);
        let ids: Vec<u32> = example
            .token_ids
            .iter()
            .zip(&example.loss_mask)
            .filter_map(|(id, learned)| learned.then_some(*id))
            .collect();
        tokenizer.decode(&ids, false).unwrap()
    }

    #[test]
    fn only_assistant_turns_and_their_end_are_learned() {
        let text = r#"{"messages":[{"role":"system","content":"S"},{"role":"user","content":"Q1"},{"role":"assistant","content":"A1"},{"role":"user","content":"Q2"},{"role":"assistant","content":"A2"},{"role":"user","content":"Q3"}]}"#;
        let rendered = render(Some(CHATML), text, 512).unwrap();
        let example = &rendered.examples[0];
        assert_eq!(
            byte_tokenizer(None)
                .decode(&example.token_ids, false)
                .unwrap(),
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n\
             <|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\nA2<|im_end|>\n"
        );
        assert_eq!(learned(example), "A1<|im_end|>A2<|im_end|>");
        assert_eq!(
            example.token_ids.iter().filter(|id| **id == START).count(),
            5
        );
    }

    #[test]
    fn chat_capable_formats_give_the_same_example() {
        let chat = r#"{"messages":[{"role":"user","content":"Q\n\nI"},{"role":"assistant","content":"A"}]}"#;
        let instruction = r#"{"instruction":"Q","input":"I","output":"A"}"#;
        let completion = r#"{"prompt":"Q\n\nI","completion":"A"}"#;
        let expected = render(Some(CHATML), chat, 512).unwrap();
        for text in [instruction, completion] {
            let other = render(Some(CHATML), text, 512).unwrap();
            assert_eq!(other.examples, expected.examples);
            assert_eq!(other.report, expected.report);
        }
    }

    #[test]
    fn the_prompt_of_an_example_is_what_serving_sends() {
        let tokenizer = byte_tokenizer(Some(CHATML));
        let prompt = tokenizer
            .render_chat(&[ChatMessage::new("user", "Q")], None, true)
            .unwrap();
        let prompt = tokenizer.encode(&prompt, false).unwrap();
        let rendered = render(Some(CHATML), r#"{"prompt":"Q","completion":"A"}"#, 512).unwrap();
        let example = &rendered.examples[0];
        assert_eq!(example.token_ids[..prompt.len()], prompt);
        assert_eq!(
            example.loss_mask.iter().position(|learned| *learned),
            Some(prompt.len())
        );
    }

    #[test]
    fn markers_inside_an_answer_do_not_shorten_it() {
        let rendered = render(
            Some(CHATML),
            r#"{"prompt":"Q","completion":"a<|im_end|>b"}"#,
            512,
        )
        .unwrap();
        assert_eq!(learned(&rendered.examples[0]), "a<|im_end|>b<|im_end|>");
    }

    #[test]
    fn answers_of_weight_zero_are_context() {
        let text = r#"{"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":"bad","weight":0},{"role":"user","content":"R"},{"role":"assistant","content":"good","weight":1}]}"#;
        let rendered = render(Some(CHATML), text, 512).unwrap();
        assert_eq!(learned(&rendered.examples[0]), "good<|im_end|>");
    }

    #[test]
    fn text_is_learned_whole_and_ended() {
        let rendered = render(None, r#"{"text":"abc"}"#, 512).unwrap();
        assert_eq!(rendered.examples[0].token_ids, [97, 98, 99, END]);
        assert_eq!(rendered.examples[0].loss_mask, [false, true, true, true]);
    }

    #[test]
    fn without_a_template_prompts_are_still_masked() {
        let rendered = render(None, r#"{"prompt":"Q: ","completion":"A"}"#, 512).unwrap();
        assert_eq!(learned(&rendered.examples[0]), "A<|im_end|>");
        let rendered = render(
            None,
            r#"{"instruction":"Do","input":"it","output":"Done"}"#,
            512,
        )
        .unwrap();
        assert_eq!(learned(&rendered.examples[0]), "Done<|im_end|>");
        let text = byte_tokenizer(None)
            .decode(&rendered.examples[0].token_ids, true)
            .unwrap();
        assert_eq!(
            text,
            "### Instruction:\nDo\n\n### Input:\nit\n\n### Response:\nDone"
        );
    }

    #[test]
    fn truncation_is_counted_and_lost_answers_are_left_out() {
        let text = "{\"prompt\":\"Q\",\"completion\":\"A\"}\n{\"prompt\":\"a much longer question\",\"completion\":\"A\"}";
        let whole = render(Some(CHATML), text, 512).unwrap();
        let length = whole.examples[0].token_ids.len();
        let rendered = render(Some(CHATML), text, length).unwrap();
        assert_eq!(rendered.examples.len(), 1);
        let second = whole.examples[1].token_ids.len();
        assert_eq!(
            rendered.report,
            RenderReport {
                records: 2,
                examples: 1,
                tokens: length as u64,
                supervised_tokens: 2,
                truncated_examples: 1,
                truncated_tokens: (second - length) as u64,
                skipped_examples: 1,
                ..RenderReport::default()
            }
        );
    }

    #[test]
    fn a_dataset_that_teaches_nothing_is_refused() {
        let error = render(Some(CHATML), r#"{"prompt":"Q","completion":"A"}"#, 16).unwrap_err();
        assert!(
            matches!(
                error,
                ExampleError::NothingToLearn {
                    records: 1,
                    truncated: 1,
                    ..
                }
            ),
            "{error}"
        );
        let error = render(Some(CHATML), r#"{"text":"Q","label":"A"}"#, 64).unwrap_err();
        assert!(matches!(error, ExampleError::WrongFormat { .. }), "{error}");
    }

    #[test]
    fn a_template_that_rewrites_history_is_refused_with_a_remedy() {
        // Prints only the last message of a conversation.
        let template = "{{ messages[-1].content }}";
        let text = r#"{"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":"A"},{"role":"user","content":"R"},{"role":"assistant","content":"B"}]}"#;
        let error = render(Some(template), text, 64).unwrap_err();
        assert!(
            matches!(error, ExampleError::UnstableTemplate { message: 1, .. }),
            "{error}"
        );
    }
}
