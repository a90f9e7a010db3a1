//! An answer as server-sent events, chunk by chunk as it is made.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Bytes;
use futures::Stream;
use serde_json::{Value, json};

use super::frames::{self, Frame, logprobs_json};
use super::whole::with_calls;
use super::{Started, UsageMeter, add_usage};
use crate::error::{ApiError, EngineError};
use crate::generation::{Generation, GenerationEvent};
use crate::openai_api::{FinishReason, Route, TokenLogprob, Usage};
use crate::tool_calls::{Part, ToolCallReader};

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

pub(super) fn reply(started: Started) -> ReplyStream {
    ReplyStream {
        meter: started.meter(),
        inner: Box::pin(events(started)),
    }
}

fn events(started: Started) -> impl Stream<Item = ReplyEvent> + Send {
    async_stream::stream! {
        let Started { request, target, id, prompt_tokens, echoes, generations } = started;
        let frame = Frame {
            id: &id,
            model: &target.model,
            route: request.route,
            has_logprobs: request.logprobs.is_some(),
            include_usage: request.include_usage,
        };
        let mut choices: Vec<ChoiceStream> = echoes
            .iter()
            .map(|echo| ChoiceStream::new(request.reads_tool_calls, echo))
            .collect();
        for (index, echo) in echoes.iter().enumerate() {
            if let Some(first) = first_chunk(&frame, index, echo) {
                yield ReplyEvent::Bytes(first);
            }
        }
        let mut usage = Usage::new(prompt_tokens as u64, 0);
        let mut open = choices.len();
        let mut error = None;
        let mut merged = merge(generations);
        while open > 0 {
            let Some((index, event)) = futures::StreamExt::next(&mut merged).await else {
                error = Some(ApiError::from(EngineError::Stopped));
                break;
            };
            match event {
                GenerationEvent::Delta { text, logprobs } => {
                    for chunk in choices[index].delta(&frame, index, text, &logprobs) {
                        yield ReplyEvent::Bytes(chunk);
                    }
                }
                GenerationEvent::Finished { reason, usage: own } => {
                    open -= 1;
                    add_usage(&mut usage, own);
                    for chunk in choices[index].finish(&frame, index, reason) {
                        yield ReplyEvent::Bytes(chunk);
                    }
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
                    yield ReplyEvent::Bytes(frame.usage(usage));
                }
                yield ReplyEvent::Bytes(frames::done());
            }
            // Without the closing event clients know that the answer is not whole.
            Some(error) => yield ReplyEvent::Bytes(frames::event(&error.body())),
        }
        yield ReplyEvent::Finished { usage, error };
    }
}

fn first_chunk(frame: &Frame<'_>, index: usize, echo: &str) -> Option<Bytes> {
    let delta = match frame.route {
        Route::Chat => json!({"role": "assistant", "content": "", "refusal": null}),
        Route::Completion if echo.is_empty() => return None,
        Route::Completion => Value::from(echo),
    };
    Some(frame.choice(index, delta, None, None))
}

/// What has to be remembered of one choice between its chunks.
struct ChoiceStream {
    calls: Option<ToolCallReader>,
    /// Characters of the tokens so far.
    characters: usize,
}

impl ChoiceStream {
    fn new(reads_tool_calls: bool, echo: &str) -> Self {
        Self {
            calls: reads_tool_calls.then(ToolCallReader::default),
            characters: echo.chars().count(),
        }
    }

    fn delta(
        &mut self,
        frame: &Frame<'_>,
        index: usize,
        text: String,
        logprobs: &[TokenLogprob],
    ) -> Vec<Bytes> {
        let mut logprobs = frame.has_logprobs.then(|| {
            let json = logprobs_json(frame.route, logprobs, self.characters);
            let lengths = logprobs.iter().map(|entry| entry.token.chars().count());
            self.characters += lengths.sum::<usize>();
            json
        });
        let Some(calls) = &mut self.calls else {
            let delta = match frame.route {
                Route::Chat => json!({"content": text}),
                Route::Completion => Value::from(text),
            };
            return vec![frame.choice(index, delta, logprobs, None)];
        };
        let parts = calls.push(&text);
        let mut chunks = chunks_of(parts, frame, index, &mut logprobs);
        if logprobs.is_some() {
            // The tokens of a call that is not complete yet.
            chunks.push(frame.choice(index, json!({}), logprobs, None));
        }
        chunks
    }

    fn finish(&mut self, frame: &Frame<'_>, index: usize, reason: FinishReason) -> Vec<Bytes> {
        let mut chunks = Vec::new();
        let mut has_calls = false;
        if let Some(calls) = &mut self.calls {
            let parts = calls.finish();
            chunks = chunks_of(parts, frame, index, &mut None);
            has_calls = calls.calls() > 0;
        }
        let delta = match frame.route {
            Route::Chat => json!({}),
            Route::Completion => Value::from(""),
        };
        let reason = with_calls(Some(reason), has_calls);
        chunks.push(frame.choice(index, delta, None, reason));
        chunks
    }
}

fn chunks_of(
    parts: Vec<Part>,
    frame: &Frame<'_>,
    index: usize,
    logprobs: &mut Option<Value>,
) -> Vec<Bytes> {
    parts
        .into_iter()
        .map(|part| {
            let delta = match part {
                Part::Text(text) => json!({"content": text}),
                Part::Call(call) => json!({"tool_calls": [call.to_json(true)]}),
            };
            frame.choice(index, delta, logprobs.take(), None)
        })
        .collect()
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
