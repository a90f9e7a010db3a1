//! From a checked OpenAI request to the exact bytes of its answer, whole or streamed, with usage known at the end.
//!
//! A caller that signs or bills answers uses this module directly: every byte of a body passes through its hands.

mod frames;
mod streamed;
mod whole;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use zerog_tokenization::Tokenizer;

pub use frames::DONE;
pub use streamed::{ReplyEvent, ReplyStream};

use crate::engine::EngineHandle;
use crate::error::{ApiError, EngineError};
use crate::generation::{GenerateRequest, Generation};
use crate::openai_api::{CheckedRequest, Input, PromptText, Route, Usage};

/// Bytes of a prompt from which on making tokens of it is not done on a thread that serves others.
const LONG_PROMPT_BYTES: usize = 16 * 1024;

/// Which weights answer, and under which name.
#[derive(Debug, Clone, Default)]
pub struct Target {
    /// Name in the answer's `model` member: what the caller asked for.
    pub model: String,
    /// Adapter in the engine; none means the base model.
    pub adapter: Option<String>,
    /// Who asks. Callers do not share computed beginnings of prompts, and take turns on the base model.
    pub caller: String,
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

/// A request whose prompts are tokens.
#[derive(Debug)]
pub struct Prepared {
    request: CheckedRequest,
    prompts: Vec<Vec<u32>>,
}

/// A request in the engine's hands: the number of its prompt tokens is known, and nothing has been sent.
#[derive(Debug)]
pub struct Started {
    request: CheckedRequest,
    target: Target,
    id: AnswerId,
    prompt_tokens: usize,
    /// For each generation, what is repeated in front of it.
    echoes: Vec<Arc<str>>,
    generations: Vec<Generation>,
}

/// Makes tokens of a request's prompts, by the model's chat template where it is a conversation.
///
/// # Errors
/// [`ApiError`] when template or tokenizer refuse.
pub async fn prepare(
    tokenizer: &Arc<Tokenizer>,
    request: CheckedRequest,
) -> Result<Prepared, ApiError> {
    if text_bytes(&request.input) <= LONG_PROMPT_BYTES {
        return prepare_here(tokenizer, request);
    }
    let tokenizer = Arc::clone(tokenizer);
    let prepared = tokio::task::spawn_blocking(move || prepare_here(&tokenizer, request)).await;
    prepared.map_err(|_| EngineError::Computation {
        reason: "making tokens of the prompt panicked".into(),
    })?
}

/// [`prepare`] on the calling thread.
///
/// # Errors
/// As [`prepare`].
pub fn prepare_here(tokenizer: &Tokenizer, request: CheckedRequest) -> Result<Prepared, ApiError> {
    if request.reads_tool_calls && !tokenizer.has_tool_calls() {
        return Err(ApiError::parameter(
            "tools",
            "the chat template of this model does not take tools",
        ));
    }
    let failed = |error: zerog_tokenization::TokenizerError| EngineError::Template {
        reason: error.to_string(),
    };
    let prompts = match &request.input {
        Input::Chat {
            messages,
            tools,
            variables,
        } => {
            let text = tokenizer
                .render_chat_with(messages, tools.as_deref(), true, variables)
                .map_err(failed)?;
            vec![tokenizer.encode(&text, false).map_err(failed)?]
        }
        Input::Prompts(prompts) => prompts
            .iter()
            .map(|prompt| match prompt {
                PromptText::Text(text) => tokenizer.encode(text, true).map_err(failed),
                PromptText::Tokens(tokens) => Ok(tokens.clone()),
            })
            .collect::<Result<_, _>>()?,
    };
    Ok(Prepared { request, prompts })
}

fn text_bytes(input: &Input) -> usize {
    match input {
        Input::Chat { messages, .. } => messages.iter().map(|message| message.content.len()).sum(),
        Input::Prompts(prompts) => prompts
            .iter()
            .map(|prompt| match prompt {
                PromptText::Text(text) => text.len(),
                PromptText::Tokens(_) => 0,
            })
            .sum(),
    }
}

impl Prepared {
    /// Tokens of all prompts.
    pub fn prompt_tokens(&self) -> usize {
        self.prompts.iter().map(Vec::len).sum()
    }

    /// The request.
    pub fn request(&self) -> &CheckedRequest {
        &self.request
    }

    /// Answers that will be given.
    pub fn answers(&self) -> usize {
        self.prompts.len() * self.request.choices
    }

    /// Hands the request to the engine. It is refused here or it will be answered.
    ///
    /// # Errors
    /// [`ApiError`] with the status to answer, before anything was sent.
    pub fn start(
        self,
        engine: &EngineHandle,
        target: Target,
        id: AnswerId,
    ) -> Result<Started, ApiError> {
        let prompt_tokens = self.prompt_tokens();
        let Self { request, prompts } = self;
        let (mut generations, mut echoes) = (Vec::new(), Vec::new());
        for prompt in prompts {
            let echo: Arc<str> = if request.echo {
                let text = engine.tokenizer().decode(&prompt, true);
                let text = text.map_err(|error| EngineError::Template {
                    reason: error.to_string(),
                })?;
                text.into()
            } else {
                "".into()
            };
            // Several answers from one seed would all be equal.
            let seeds: Vec<u64> = (0..request.choices)
                .map(|choice| match request.seeded {
                    true => request.sampling.seed.wrapping_add(choice as u64),
                    false => rand::random(),
                })
                .collect();
            let wanted = GenerateRequest {
                prompt,
                adapter: target.adapter.clone(),
                sampling: request.sampling.clone(),
                max_tokens: request.max_tokens,
                stop: request.stop.clone(),
                logprobs: request.logprobs,
                grammar: request.grammar.clone(),
                cache_scope: target.caller.clone(),
                flow: target.adapter.is_none().then(|| target.caller.clone()),
            };
            generations.extend(engine.generate_choices(wanted, &seeds)?);
            echoes.resize(generations.len(), echo);
        }
        Ok(Started {
            request,
            target,
            id,
            prompt_tokens,
            echoes,
            generations,
        })
    }
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

    /// Tokens of all prompts.
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
        whole::finish(self).await
    }

    /// The answer as server-sent events.
    pub fn into_stream(self) -> ReplyStream {
        streamed::reply(self)
    }
}

/// Adds the usage of one answer. Answers to one prompt share its beginning, which counts once.
fn add_usage(total: &mut Usage, own: Usage) {
    let cached = total
        .prompt_tokens_details
        .cached_tokens
        .max(own.prompt_tokens_details.cached_tokens);
    *total = Usage::new(
        total.prompt_tokens,
        total.completion_tokens + own.completion_tokens,
    )
    .with_cached(cached.min(total.prompt_tokens));
}
