//! One answer on its way: its tokens, where it stands in its form and its text, and what comes out of the next one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use zerog_model::{KvCache, Sampler, log_probability, top_log_probabilities};
use zerog_tokenization::{Tokenizer, TokenizerError};

use crate::adapters::LoadedAdapter;
use crate::answer_text::AnswerText;
use crate::error::EngineError;
use crate::generation::GenerationEvent;
use crate::grammar::{Matcher, Vocabulary};
use crate::openai_api::{FinishReason, TokenLogprob, TopLogprob, Usage};
use crate::prefix_cache::Root;

/// What all answers to one prompt share.
pub(crate) struct Question {
    pub(crate) prompt: Vec<u32>,
    pub(crate) adapter: Option<Arc<LoadedAdapter>>,
    /// Most tokens to generate; together with the prompt it fits the context.
    pub(crate) max_tokens: usize,
    /// `Some(k)`: log probabilities with k alternatives.
    pub(crate) logprobs: Option<usize>,
    /// Whose turn counts.
    pub(crate) flow: Arc<str>,
    /// Where beginnings are shared.
    pub(crate) root: Root,
}

/// What belongs to one answer alone.
pub(crate) struct Choice {
    pub(crate) sampler: Sampler,
    pub(crate) matcher: Option<Matcher>,
    pub(crate) text: AnswerText,
    pub(crate) events: mpsc::UnboundedSender<GenerationEvent>,
    pub(crate) progress: Arc<AtomicU64>,
    /// The place in the engine; free again when the answer is dropped.
    pub(crate) _place: OwnedSemaphorePermit,
}

impl Choice {
    pub(crate) fn is_cancelled(&self) -> bool {
        self.events.is_closed()
    }

    pub(crate) fn fail(&self, error: &EngineError) {
        let _ = self.events.send(GenerationEvent::Failed(error.clone()));
    }
}

/// An answer, waiting or running.
pub(crate) struct Sequence {
    pub(crate) question: Arc<Question>,
    pub(crate) choice: Choice,
    /// Other answers to the same prompt, which begin when it is computed.
    pub(crate) followers: Vec<Choice>,
    /// Prompt and answer. What the cache has not seen is computed next.
    pub(crate) tokens: Vec<u32>,
    pub(crate) cache: KvCache,
    /// Tokens of the prompt that did not have to be computed.
    pub(crate) reused: usize,
}

/// Reused between tokens of one engine.
#[derive(Default)]
pub(crate) struct Marks {
    allowed: Vec<bool>,
}

impl Sequence {
    /// Tokens that the cache has not seen.
    pub(crate) fn left(&self) -> usize {
        self.tokens.len() - self.cache.len()
    }

    /// Generated tokens.
    pub(crate) fn generated(&self) -> usize {
        self.tokens.len() - self.question.prompt.len()
    }

    /// Whether the next step is an ordinary one: a single token behind a computed prompt.
    pub(crate) fn is_decoding(&self) -> bool {
        self.left() == 1 && self.generated() > 0
    }

    /// Rows that it takes, its followers included.
    pub(crate) fn rows(&self) -> usize {
        1 + self.followers.len()
    }

    /// Drops answers that nobody waits for. Returns whether none is left.
    pub(crate) fn drop_cancelled(&mut self) -> bool {
        self.followers.retain(|choice| !choice.is_cancelled());
        if !self.choice.is_cancelled() {
            return false;
        }
        // Followers exist only before the first token, when every answer is like the other.
        match self.followers.pop() {
            Some(next) => {
                self.choice = next;
                false
            }
            None => true,
        }
    }

    /// A follower, at the end of the prompt that this sequence has computed.
    pub(crate) fn fork(&self, choice: Choice) -> Self {
        Self {
            question: Arc::clone(&self.question),
            choice,
            followers: Vec::new(),
            tokens: self.tokens.clone(),
            cache: self.cache.clone(),
            reused: self.reused,
        }
    }

    /// Chooses the next token and hands out what it means. Returns whether the answer has ended.
    pub(crate) fn advance(
        &mut self,
        logits: &[f32],
        tokenizer: &Tokenizer,
        vocabulary: &Vocabulary,
        marks: &mut Marks,
    ) -> bool {
        let outcome = self.next_event(logits, tokenizer, vocabulary, marks);
        let events = &self.choice.events;
        match outcome {
            Ok((delta, reason)) => {
                if let Some(delta) = delta {
                    let _ = events.send(delta);
                }
                let Some(reason) = reason else { return false };
                let usage = Usage::new(
                    self.question.prompt.len() as u64,
                    self.choice.progress.load(Ordering::Relaxed),
                )
                .with_cached(self.reused as u64);
                let _ = events.send(GenerationEvent::Finished { reason, usage });
                true
            }
            Err(error) => {
                let _ = events.send(GenerationEvent::Failed(error));
                true
            }
        }
    }

    fn next_event(
        &mut self,
        logits: &[f32],
        tokenizer: &Tokenizer,
        vocabulary: &Vocabulary,
        marks: &mut Marks,
    ) -> Result<Step, EngineError> {
        let broken = |reason: &str| EngineError::Computation {
            reason: reason.into(),
        };
        let failed = |error: TokenizerError| broken(&error.to_string());
        if logits.iter().any(|logit| logit.is_nan()) {
            return Err(broken("the logits are not numbers"));
        }
        let generated = self.generated() + 1;
        let left = self.question.max_tokens - generated;
        let choice = &mut self.choice;
        let allowed = match &choice.matcher {
            Some(matcher) => {
                matcher.allow(vocabulary, left, &mut marks.allowed);
                if !marks.allowed.contains(&true) {
                    return Err(broken("no token fits the form of the answer"));
                }
                Some(marks.allowed.as_slice())
            }
            None => None,
        };
        let token = choice.sampler.sample_among(logits, allowed).token;
        choice.progress.store(generated as u64, Ordering::Relaxed);
        if choice.matcher.is_none() && tokenizer.stop_ids().contains(&token) {
            let rest = choice.text.finish(tokenizer).map_err(failed)?;
            return Ok((delta(rest.text, Vec::new()), Some(FinishReason::Stop)));
        }
        let mut logprobs = Vec::new();
        if let Some(alternatives) = self.question.logprobs {
            logprobs.push(describe(token, logits, alternatives, tokenizer));
        }
        let piece = choice.text.push(tokenizer, token).map_err(failed)?;
        if piece.stopped {
            return Ok((delta(piece.text, logprobs), Some(FinishReason::Stop)));
        }
        let is_whole = choice.matcher.as_mut().is_some_and(|matcher| {
            matcher.push(vocabulary.bytes(token));
            matcher.is_complete()
        });
        if !is_whole && left > 0 {
            self.tokens.push(token);
            return Ok((delta(piece.text, logprobs), None));
        }
        let rest = choice.text.finish(tokenizer).map_err(failed)?;
        let reason = if is_whole || rest.stopped {
            FinishReason::Stop
        } else {
            FinishReason::Length
        };
        Ok((delta(piece.text + &rest.text, logprobs), Some(reason)))
    }
}

type Step = (Option<GenerationEvent>, Option<FinishReason>);

fn delta(text: String, logprobs: Vec<TokenLogprob>) -> Option<GenerationEvent> {
    (!text.is_empty() || !logprobs.is_empty()).then_some(GenerationEvent::Delta { text, logprobs })
}

/// Log probabilities of a place in the answer, under the model alone: before temperature, penalties and cuts.
fn describe(
    token: u32,
    logits: &[f32],
    alternatives: usize,
    tokenizer: &Tokenizer,
) -> TokenLogprob {
    let named = |id: u32, logprob: f32| {
        let bytes = tokenizer.table().bytes(id).to_vec();
        TopLogprob {
            token: String::from_utf8_lossy(&bytes).into_owned(),
            logprob,
            bytes,
        }
    };
    let top_logprobs = top_log_probabilities(logits, alternatives)
        .into_iter()
        .map(|(id, logprob)| named(id, logprob))
        .collect();
    let chosen = named(token, log_probability(logits, token));
    TokenLogprob {
        token: chosen.token,
        logprob: chosen.logprob,
        bytes: chosen.bytes,
        top_logprobs,
    }
}
