//! Which tokens are computed next: every running answer gets one token a step, and what is left of the step goes to
//! prompts, first come, first served. Each row of a step has its own adapter or none.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use zerog_model::{Sampler, log_probabilities, top_log_probabilities};
use zerog_tokenization::{Tokenizer, TokenizerError};

use crate::adapters::LoadedAdapter;
use crate::engine::{Counters, EngineConfig, GenerateRequest, GenerationEvent};
use crate::error::EngineError;
use crate::executor::{Executor, SlotRow};
use crate::openai_api::{FinishReason, TokenLogprob, TopLogprob, Usage};
use crate::sequence::AnswerText;

/// A request that the engine has taken.
pub(crate) struct Arrival {
    pub(crate) request: GenerateRequest,
    pub(crate) adapter: Option<Arc<LoadedAdapter>>,
    /// Most tokens to generate; together with the prompt it fits the context.
    pub(crate) max_tokens: usize,
    pub(crate) events: mpsc::UnboundedSender<GenerationEvent>,
    pub(crate) progress: Arc<AtomicU64>,
    /// The place in the engine; free again when the request is dropped.
    pub(crate) _place: OwnedSemaphorePermit,
}

impl Arrival {
    fn reserved_tokens(&self) -> usize {
        self.request.prompt.len() + self.max_tokens
    }
}

struct Running {
    arrival: Arrival,
    slot: usize,
    /// Prompt tokens that are in the cache.
    computed: usize,
    /// Token that the next step computes, once the prompt is done.
    next_token: Option<u32>,
    sampler: Sampler,
    text: AnswerText,
    generated: usize,
}

/// The running and the waiting requests of one engine.
pub(crate) struct Scheduler {
    executor: Executor,
    tokenizer: Arc<Tokenizer>,
    config: EngineConfig,
    waiting: VecDeque<Arrival>,
    running: Vec<Running>,
    free_slots: Vec<usize>,
    reserved_tokens: usize,
    counters: Arc<Counters>,
}

impl Scheduler {
    pub(crate) fn new(
        executor: Executor,
        tokenizer: Arc<Tokenizer>,
        config: EngineConfig,
        counters: Arc<Counters>,
    ) -> Self {
        let free_slots = (0..config.max_running).rev().collect();
        Self {
            executor,
            tokenizer,
            config,
            waiting: VecDeque::new(),
            running: Vec::new(),
            free_slots,
            reserved_tokens: 0,
            counters,
        }
    }

    pub(crate) fn executor(&mut self) -> &mut Executor {
        &mut self.executor
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    pub(crate) fn enqueue(&mut self, arrival: Arrival) {
        self.waiting.push_back(arrival);
        self.count();
    }

    /// Drops what was cancelled, admits what fits, computes one step, and hands out what came of it.
    pub(crate) fn step(&mut self) {
        self.drop_cancelled();
        self.admit();
        self.count();
        let plan = self.plan();
        if plan.is_empty() {
            return;
        }
        let rows: Vec<SlotRow<'_>> = plan
            .iter()
            .map(|part| {
                let running = &self.running[part.index];
                let tokens = match &running.next_token {
                    Some(token) => std::slice::from_ref(token),
                    None => {
                        &running.arrival.request.prompt
                            [running.computed..running.computed + part.tokens]
                    }
                };
                SlotRow {
                    slot: running.slot,
                    tokens,
                    adapter: running
                        .arrival
                        .adapter
                        .as_ref()
                        .map(|adapter| Arc::clone(&adapter.weights)),
                    samples: part.samples,
                }
            })
            .collect();
        let outcome = self.executor.forward(&rows);
        drop(rows);
        match outcome {
            Ok(logits) => self.apply(&plan, &logits),
            Err(error) => self.fail_all(&error),
        }
        self.count();
    }

    fn drop_cancelled(&mut self) {
        self.waiting.retain(|arrival| !arrival.events.is_closed());
        let gone: Vec<usize> = (0..self.running.len())
            .filter(|index| self.running[*index].arrival.events.is_closed())
            .collect();
        self.release(&gone);
    }

    fn admit(&mut self) {
        while let Some(arrival) = self.waiting.front() {
            let tokens = arrival.reserved_tokens();
            let fits = self.reserved_tokens + tokens <= self.config.max_cached_tokens
                || self.running.is_empty();
            if !fits || self.free_slots.is_empty() {
                return;
            }
            let (Some(arrival), Some(slot)) = (self.waiting.pop_front(), self.free_slots.pop())
            else {
                return;
            };
            self.executor.prepare(slot, tokens);
            self.reserved_tokens += tokens;
            let sampler = Sampler::new(arrival.request.sampling.clone(), &arrival.request.prompt);
            let text = AnswerText::new(arrival.request.stop.clone());
            self.running.push(Running {
                arrival,
                slot,
                computed: 0,
                next_token: None,
                sampler,
                text,
                generated: 0,
            });
        }
    }

    fn plan(&self) -> Vec<Part> {
        let mut plan = Vec::new();
        let mut prompt_budget = self.config.prefill_chunk_tokens.max(1);
        for (index, running) in self.running.iter().enumerate() {
            if running.next_token.is_some() {
                plan.push(Part {
                    index,
                    tokens: 1,
                    samples: true,
                });
                continue;
            }
            let left = running.arrival.request.prompt.len() - running.computed;
            let tokens = left.min(prompt_budget);
            if tokens > 0 {
                prompt_budget -= tokens;
                plan.push(Part {
                    index,
                    tokens,
                    samples: tokens == left,
                });
            }
        }
        plan
    }

    fn apply(&mut self, plan: &[Part], logits: &[Vec<f32>]) {
        let mut ended = Vec::new();
        for (part, logits) in plan.iter().zip(logits) {
            let running = &mut self.running[part.index];
            if running.next_token.is_none() {
                running.computed += part.tokens;
                self.counters
                    .prompt
                    .fetch_add(part.tokens as u64, Ordering::Relaxed);
            }
            if !part.samples {
                continue;
            }
            self.counters.generated.fetch_add(1, Ordering::Relaxed);
            if advance(running, logits, &self.tokenizer) {
                ended.push(part.index);
            }
        }
        self.release(&ended);
    }

    fn fail_all(&mut self, error: &EngineError) {
        tracing::error!(%error, requests = self.running.len(), "an inference step failed");
        for running in &self.running {
            let _ = running
                .arrival
                .events
                .send(GenerationEvent::Failed(error.clone()));
        }
        let all: Vec<usize> = (0..self.running.len()).collect();
        self.release(&all);
    }

    /// Removes running requests; `indices` are ascending.
    fn release(&mut self, indices: &[usize]) {
        for index in indices.iter().rev() {
            let running = self.running.remove(*index);
            self.reserved_tokens -= running.arrival.reserved_tokens();
            self.executor.clear(running.slot);
            self.free_slots.push(running.slot);
        }
    }

    fn count(&self) {
        self.counters
            .running
            .store(self.running.len(), Ordering::Relaxed);
        self.counters
            .waiting
            .store(self.waiting.len(), Ordering::Relaxed);
    }
}

/// One row of a step.
struct Part {
    /// Place in the list of running requests.
    index: usize,
    tokens: usize,
    /// Whether a token is chosen after this row.
    samples: bool,
}

/// Chooses the next token of one answer and hands out what it means. Returns whether the answer has ended.
fn advance(running: &mut Running, logits: &[f32], tokenizer: &Tokenizer) -> bool {
    let outcome = if logits.iter().any(|logit| logit.is_nan()) {
        Err(EngineError::Computation {
            reason: "the logits are not numbers".into(),
        })
    } else {
        next_event(running, logits, tokenizer).map_err(|error| EngineError::Computation {
            reason: error.to_string(),
        })
    };
    let events = &running.arrival.events;
    match outcome {
        Ok((delta, reason)) => {
            if let Some(delta) = delta {
                let _ = events.send(delta);
            }
            let Some(reason) = reason else { return false };
            let usage = Usage::new(
                running.arrival.request.prompt.len() as u64,
                running.generated as u64,
            );
            let _ = events.send(GenerationEvent::Finished { reason, usage });
            true
        }
        Err(error) => {
            let _ = events.send(GenerationEvent::Failed(error));
            true
        }
    }
}

type Step = (Option<GenerationEvent>, Option<FinishReason>);

fn next_event(
    running: &mut Running,
    logits: &[f32],
    tokenizer: &Tokenizer,
) -> Result<Step, TokenizerError> {
    let token = running.sampler.sample(logits).token;
    running.generated += 1;
    running
        .arrival
        .progress
        .store(running.generated as u64, Ordering::Relaxed);
    if tokenizer.stop_ids().contains(&token) {
        let rest = running.text.finish(tokenizer)?;
        return Ok((delta(rest.text, Vec::new()), Some(FinishReason::Stop)));
    }
    let mut logprobs = Vec::new();
    if let Some(alternatives) = running.arrival.request.logprobs {
        logprobs.push(describe(token, logits, alternatives, tokenizer)?);
    }
    let piece = running.text.push(tokenizer, token)?;
    if piece.stopped {
        return Ok((delta(piece.text, logprobs), Some(FinishReason::Stop)));
    }
    running.next_token = Some(token);
    if running.generated < running.arrival.max_tokens {
        return Ok((delta(piece.text, logprobs), None));
    }
    let rest = running.text.finish(tokenizer)?;
    let reason = if rest.stopped {
        FinishReason::Stop
    } else {
        FinishReason::Length
    };
    Ok((delta(piece.text + &rest.text, logprobs), Some(reason)))
}

fn delta(text: String, logprobs: Vec<TokenLogprob>) -> Option<GenerationEvent> {
    (!text.is_empty() || !logprobs.is_empty()).then_some(GenerationEvent::Delta { text, logprobs })
}

/// Log probabilities of a place in the answer, under the model alone: before temperature, penalties and cuts.
fn describe(
    token: u32,
    logits: &[f32],
    alternatives: usize,
    tokenizer: &Tokenizer,
) -> Result<TokenLogprob, TokenizerError> {
    let mut top_logprobs = Vec::with_capacity(alternatives);
    for (id, logprob) in top_log_probabilities(logits, alternatives) {
        let token = tokenizer.decode(&[id], false)?;
        top_logprobs.push(TopLogprob {
            bytes: token.clone().into_bytes(),
            token,
            logprob,
        });
    }
    let logprob = log_probabilities(logits)
        .get(token as usize)
        .copied()
        .unwrap_or(f32::NEG_INFINITY);
    let token = tokenizer.decode(&[token], false)?;
    Ok(TokenLogprob {
        bytes: token.clone().into_bytes(),
        token,
        logprob,
        top_logprobs,
    })
}
