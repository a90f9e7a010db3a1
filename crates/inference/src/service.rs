//! From a checked OpenAI request to the exact bytes of its answer, whole or streamed, with usage known at the end.
//!
//! A caller that signs or bills answers uses this module directly: every byte of a body passes through its hands.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use futures::Stream;
use serde_json::{Value, json};

use crate::engine::{Completion, EngineHandle, GenerateRequest, Generation, GenerationEvent};
use crate::error::{ApiError, EngineError};
use crate::openai_api::{CheckedRequest, FinishReason, Input, Route, TokenLogprob, Usage};
use crate::stream;

/// Which weights answer, and under which name.
#[derive(Debug, Clone)]
pub struct Target {
    /// Name in the answer's `model` member: what the caller asked for.
    pub model: String,
    /// Adapter in the engine; none means the base model.
    pub adapter: Option<String>,
}

/// Identity of one answer.
#[derive(Debug, Clone)]
pub struct AnswerId {
    /// `id` member, for example `chatcmpl-…`.
    pub id: String,
    /// `created` member, Unix seconds.
    pub created_s: u64,
}

impl AnswerId {
    /// A fresh random id of the route, dated now.
    pub fn fresh(route: Route) -> Self {
        let created_s = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |elapsed| elapsed.as_secs());
        Self {
            id: format!("{}{}", route.id_prefix(), uuid::Uuid::new_v4().simple()),
            created_s,
        }
    }
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// JSON body, exactly as to be sent.
    pub body: Bytes,
    /// Tokens to bill.
    pub usage: Usage,
}

/// Tokens used so far by a request. It outlives the stream, so that a caller who goes away is still billed.
#[derive(Debug, Clone)]
pub struct UsageMeter {
    prompt_tokens: u64,
    generated: Vec<Arc<AtomicU64>>,
}

impl UsageMeter {
    /// The usage up to now.
    pub fn now(&self) -> Usage {
        Usage::new(
            self.prompt_tokens,
            self.generated
                .iter()
                .map(|count| count.load(Ordering::Relaxed))
                .sum(),
        )
    }
}

/// A prompt in the engine's hands: the number of its tokens is known, and nothing has been sent.
#[derive(Debug)]
pub struct Started {
    request: CheckedRequest,
    target: Target,
    id: AnswerId,
    prompt_tokens: usize,
    echo: String,
    generations: Vec<Generation>,
}

/// Renders the prompt of a request into tokens, by the model's chat template where it is a conversation.
///
/// # Errors
/// [`EngineError::Template`] when template or tokenizer refuse.
pub fn prompt_tokens(engine: &EngineHandle, input: &Input) -> Result<Vec<u32>, EngineError> {
    let tokenizer = engine.tokenizer();
    let failed = |error: zerog_tokenization::TokenizerError| EngineError::Template {
        reason: error.to_string(),
    };
    match input {
        Input::Chat { messages, tools } => {
            let text = tokenizer
                .render_chat(messages, tools.as_deref(), true)
                .map_err(failed)?;
            tokenizer.encode(&text, false).map_err(failed)
        }
        Input::Text(text) => tokenizer.encode(text, true).map_err(failed),
        Input::Tokens(tokens) => Ok(tokens.clone()),
    }
}

/// Hands a request to the engine. It is refused here or it will be answered.
///
/// # Errors
/// [`ApiError`] with the status to answer, before anything was sent.
pub fn start(
    engine: &EngineHandle,
    request: CheckedRequest,
    target: Target,
    id: AnswerId,
) -> Result<Started, ApiError> {
    let prompt = prompt_tokens(engine, &request.input)?;
    let echo = if request.echo {
        engine
            .tokenizer()
            .decode(&prompt, true)
            .map_err(|error| EngineError::Template {
                reason: error.to_string(),
            })?
    } else {
        String::new()
    };
    let prompt_tokens = prompt.len();
    let mut generations = Vec::with_capacity(request.choices);
    for choice in 0..request.choices {
        let mut sampling = request.sampling.clone();
        // Several answers from one seed would all be equal.
        sampling.seed = if request.seeded {
            sampling.seed.wrapping_add(choice as u64)
        } else {
            rand::random()
        };
        generations.push(engine.generate(GenerateRequest {
            prompt: prompt.clone(),
            adapter: target.adapter.clone(),
            sampling,
            max_tokens: request.max_tokens,
            stop: request.stop.clone(),
            logprobs: request.logprobs,
        })?);
    }
    Ok(Started {
        request,
        target,
        id,
        prompt_tokens,
        echo,
        generations,
    })
}

impl Started {
    /// Identity of the answer.
    pub fn id(&self) -> &AnswerId {
        &self.id
    }

    /// Whether the caller asked for a stream.
    pub fn wants_stream(&self) -> bool {
        self.request.stream
    }

    /// Tokens of the prompt.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// A meter that goes on counting after this request was handed on or dropped.
    pub fn meter(&self) -> UsageMeter {
        UsageMeter {
            prompt_tokens: self.prompt_tokens as u64,
            generated: self.generations.iter().map(Generation::progress).collect(),
        }
    }

    /// Waits for the whole answer.
    ///
    /// # Errors
    /// [`ApiError`] when the computation fails.
    pub async fn finish(self) -> Result<Reply, ApiError> {
        let Self {
            request,
            target,
            id,
            prompt_tokens,
            echo,
            generations,
        } = self;
        let mut choices = Vec::with_capacity(generations.len());
        let mut generated = 0;
        for (index, generation) in generations.into_iter().enumerate() {
            let completion = generation.collect().await?;
            generated += completion.usage.completion_tokens;
            choices.push(whole_choice(&request, index, &echo, completion));
        }
        let usage = Usage::new(prompt_tokens as u64, generated);
        let body = json!({
            "id": id.id, "object": request.route.object(), "created": id.created_s, "model": target.model,
            "choices": choices, "usage": usage,
        });
        Ok(Reply {
            body: Bytes::from(body.to_string()),
            usage,
        })
    }

    /// The answer as server-sent events.
    pub fn into_stream(self) -> ReplyStream {
        let meter = self.meter();
        ReplyStream {
            meter,
            inner: Box::pin(events(self)),
        }
    }
}

/// One item of a streamed answer.
#[derive(Debug, Clone)]
pub enum ReplyEvent {
    /// Bytes to send as they are.
    Bytes(Bytes),
    /// The end; nothing follows.
    Finished {
        /// Tokens to bill.
        usage: Usage,
        /// What cut the answer short, after it had begun.
        error: Option<ApiError>,
    },
}

/// A streamed answer: bytes, then one [`ReplyEvent::Finished`]. Dropping it cancels the computation.
pub struct ReplyStream {
    meter: UsageMeter,
    inner: Pin<Box<dyn Stream<Item = ReplyEvent> + Send>>,
}

impl ReplyStream {
    /// A meter that goes on counting after the stream was dropped.
    pub fn meter(&self) -> UsageMeter {
        self.meter.clone()
    }
}

impl std::fmt::Debug for ReplyStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplyStream")
            .field("meter", &self.meter)
            .finish_non_exhaustive()
    }
}

impl Stream for ReplyStream {
    type Item = ReplyEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<ReplyEvent>> {
        self.inner.as_mut().poll_next(context)
    }
}

fn events(started: Started) -> impl Stream<Item = ReplyEvent> + Send {
    async_stream::stream! {
        let Started { request, target, id, prompt_tokens, echo, generations } = started;
        let frame = Frame { id: &id, model: &target.model, request: &request };
        let choices = generations.len();
        let mut merged = merge(generations);
        for index in 0..choices {
            if request.route == Route::Chat {
                yield frame.bytes(index, json!({"role": "assistant", "content": ""}), None, None);
            } else if !echo.is_empty() {
                yield frame.bytes(index, Value::from(echo.as_str()), None, None);
            }
        }
        let mut usage = Usage::new(prompt_tokens as u64, 0);
        let mut open = choices;
        let mut error = None;
        while open > 0 {
            let Some((index, event)) = futures::StreamExt::next(&mut merged).await else {
                error = Some(ApiError::from(EngineError::Stopped));
                break;
            };
            match event {
                GenerationEvent::Delta { text, logprobs } => {
                    let delta = match request.route {
                        Route::Chat => json!({"content": text}),
                        Route::Completion => Value::from(text),
                    };
                    yield frame.bytes(index, delta, Some(&logprobs), None);
                }
                GenerationEvent::Finished { reason, usage: own } => {
                    open -= 1;
                    usage = Usage::new(usage.prompt_tokens, usage.completion_tokens + own.completion_tokens);
                    let delta = match request.route {
                        Route::Chat => json!({}),
                        Route::Completion => Value::from(""),
                    };
                    yield frame.bytes(index, delta, None, Some(reason));
                }
                GenerationEvent::Failed(failure) => {
                    error = Some(ApiError::from(failure));
                    break;
                }
            }
        }
        match &error {
            None => {
                if request.include_usage {
                    yield frame.usage(usage);
                }
                yield ReplyEvent::Bytes(stream::done());
            }
            // Without the closing event clients know that the answer is not whole.
            Some(error) => yield ReplyEvent::Bytes(stream::event(&error.body())),
        }
        yield ReplyEvent::Finished { usage, error };
    }
}

/// Events of all choices as they come, with the number of the choice.
fn merge(
    generations: Vec<Generation>,
) -> impl Stream<Item = (usize, GenerationEvent)> + Send + Unpin {
    let streams = generations
        .into_iter()
        .enumerate()
        .map(|(index, generation)| {
            Box::pin(futures::stream::unfold(
                generation,
                move |mut generation| async move {
                    generation
                        .next()
                        .await
                        .map(|event| ((index, event), generation))
                },
            ))
        });
    futures::stream::select_all(streams)
}

/// What all chunks of one answer share.
struct Frame<'a> {
    id: &'a AnswerId,
    model: &'a str,
    request: &'a CheckedRequest,
}

impl Frame<'_> {
    fn bytes(
        &self,
        index: usize,
        delta: Value,
        logprobs: Option<&[TokenLogprob]>,
        reason: Option<FinishReason>,
    ) -> ReplyEvent {
        let logprobs = match logprobs {
            Some(logprobs) if self.request.logprobs.is_some() => {
                logprobs_json(self.request.route, logprobs)
            }
            _ => Value::Null,
        };
        let member = match self.request.route {
            Route::Chat => "delta",
            Route::Completion => "text",
        };
        let choice =
            json!({"index": index, member: delta, "logprobs": logprobs, "finish_reason": reason});
        self.chunk(json!([choice]), Value::Null)
    }

    fn usage(&self, usage: Usage) -> ReplyEvent {
        self.chunk(json!([]), json!(usage))
    }

    fn chunk(&self, choices: Value, usage: Value) -> ReplyEvent {
        let mut chunk = json!({
            "id": self.id.id, "object": self.request.route.chunk_object(), "created": self.id.created_s,
            "model": self.model, "choices": choices,
        });
        // With include_usage every chunk has the member, null but in the last one.
        if let (true, Some(members)) = (self.request.include_usage, chunk.as_object_mut()) {
            members.insert("usage".into(), usage);
        }
        ReplyEvent::Bytes(stream::event(&chunk))
    }
}

fn whole_choice(
    request: &CheckedRequest,
    index: usize,
    echo: &str,
    completion: Completion,
) -> Value {
    let logprobs = if request.logprobs.is_some() {
        logprobs_json(request.route, &completion.logprobs)
    } else {
        Value::Null
    };
    let reason = completion.finish_reason;
    match request.route {
        Route::Chat => json!({
            "index": index, "message": {"role": "assistant", "content": completion.text},
            "logprobs": logprobs, "finish_reason": reason,
        }),
        Route::Completion => json!({
            "index": index, "text": format!("{echo}{}", completion.text), "logprobs": logprobs, "finish_reason": reason,
        }),
    }
}

/// The two routes spell log probabilities differently.
fn logprobs_json(route: Route, logprobs: &[TokenLogprob]) -> Value {
    match route {
        Route::Chat => json!({"content": logprobs}),
        Route::Completion => {
            let tokens: Vec<&str> = logprobs.iter().map(|entry| entry.token.as_str()).collect();
            let values: Vec<f32> = logprobs.iter().map(|entry| entry.logprob).collect();
            let top: Vec<Value> = logprobs
                .iter()
                .map(|entry| {
                    entry
                        .top_logprobs
                        .iter()
                        .map(|other| (other.token.clone(), Value::from(other.logprob)))
                        .collect()
                })
                .collect();
            json!({"tokens": tokens, "token_logprobs": values, "top_logprobs": top})
        }
    }
}
