//! From a body to a request that can be answered.

use serde::Deserialize;
use serde_json::{Map, Value};
use zerog_model::SamplingParams;
use zerog_tokenization::ChatMessage;

use super::answer::Route;
use super::messages::{self, ToolUse};
use super::request::{ChatRequest, CommonParams, CompletionRequest, Prompt, Stop};
use crate::error::ApiError;
use crate::grammar::Grammar;

/// Most completions of one request, all prompts together.
pub const MAX_CHOICES: usize = 16;
/// Most stop strings of one request; OpenAI allows 4.
pub const MAX_STOP_STRINGS: usize = 16;
/// Longest stop string in bytes.
pub const MAX_STOP_BYTES: usize = 1024;
/// Most alternatives in `top_logprobs`.
pub const MAX_TOP_LOGPROBS: usize = 20;
/// Most entries of `logit_bias`.
pub const MAX_LOGIT_BIASES: usize = 1024;
/// Where a call ends in the form of the Qwen family.
const END_OF_CALL: &str = "</tool_call>";

/// A checked request, the same for both routes.
#[derive(Debug, Clone)]
pub struct CheckedRequest {
    /// Model named by the caller; may be empty.
    pub model: String,
    /// What to complete.
    pub input: Input,
    /// Whether to stream.
    pub stream: bool,
    /// Whether the stream ends with usage.
    pub include_usage: bool,
    /// Limit of generated tokens, if the caller gave one.
    pub max_tokens: Option<usize>,
    /// Number of answers to each prompt.
    pub choices: usize,
    /// Sampling; the seed in it counts only if [`CheckedRequest::seeded`].
    pub sampling: SamplingParams,
    /// Whether the caller chose the seed; otherwise every answer gets a random one.
    pub seeded: bool,
    /// Stop strings, none empty.
    pub stop: Vec<String>,
    /// `Some(k)`: log probabilities with k alternatives.
    pub logprobs: Option<usize>,
    /// The form that the answer must have.
    pub grammar: Option<Grammar>,
    /// Whether calls of tools are looked for in the answer.
    pub reads_tool_calls: bool,
    /// Route that the request came by.
    pub route: Route,
    /// Whether to repeat the prompt in front (completions only).
    pub echo: bool,
}

/// What a request asks to complete.
#[derive(Debug, Clone)]
pub enum Input {
    /// A conversation with what the template needs besides.
    Chat {
        /// Messages in order.
        messages: Vec<ChatMessage>,
        /// Tools, as JSON.
        tools: Option<Vec<Value>>,
        /// Further variables of the template.
        variables: Map<String, Value>,
    },
    /// One prompt or several.
    Prompts(Vec<PromptText>),
}

/// One prompt of a completion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromptText {
    /// A plain text.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
}

/// Reads and checks the body of `POST /chat/completions`.
///
/// # Errors
/// [`ApiError`] of status 400, naming the parameter at fault.
pub fn parse_chat(body: &[u8]) -> Result<CheckedRequest, ApiError> {
    let request: ChatRequest = parse_json(body)?;
    let common = &request.common;
    common.refuse_unserved()?;
    let top = request.top_logprobs.unwrap_or(0) as usize;
    if top > MAX_TOP_LOGPROBS {
        return Err(ApiError::parameter(
            "top_logprobs",
            format!("top_logprobs is at most {MAX_TOP_LOGPROBS}"),
        ));
    }
    if top > 0 && request.logprobs != Some(true) {
        return Err(ApiError::parameter(
            "top_logprobs",
            "top_logprobs needs logprobs: true",
        ));
    }
    let messages = messages::checked(request.messages)?;
    let tool_use = ToolUse::checked(
        request.tools,
        request.tool_choice.as_ref(),
        request.parallel_tool_calls,
    )?;
    let format = response_format(request.response_format.as_ref())?;
    if format.is_some() && tool_use.tools.is_some() {
        return Err(ApiError::parameter(
            "response_format",
            "response_format json_object and tools cannot be used together",
        ));
    }
    let mut stop = common.stop_strings()?;
    if tool_use.one_call_only {
        stop.push(END_OF_CALL.to_owned());
    }
    let limit = request.max_completion_tokens.or(common.max_tokens);
    Ok(CheckedRequest {
        model: common.model.clone(),
        stream: common.stream(),
        include_usage: common.include_usage()?,
        max_tokens: checked_limit(limit)?,
        choices: common.choices(1)?,
        sampling: common.sampling()?,
        seeded: common.seed.is_some(),
        stop,
        logprobs: (request.logprobs == Some(true)).then_some(top),
        grammar: format.or_else(|| tool_use.grammar()),
        reads_tool_calls: tool_use.tools.is_some(),
        route: Route::Chat,
        echo: false,
        input: Input::Chat {
            messages,
            tools: tool_use.tools,
            variables: request.chat_template_kwargs.unwrap_or_default(),
        },
    })
}

/// Reads and checks the body of `POST /completions`.
///
/// # Errors
/// [`ApiError`] of status 400, naming the parameter at fault.
pub fn parse_completion(body: &[u8]) -> Result<CheckedRequest, ApiError> {
    let request: CompletionRequest = parse_json(body)?;
    let common = &request.common;
    common.refuse_unserved()?;
    let prompts: Vec<PromptText> = match request.prompt {
        Some(Prompt::Text(text)) => vec![PromptText::Text(text)],
        Some(Prompt::Tokens(tokens)) if !tokens.is_empty() => vec![PromptText::Tokens(tokens)],
        Some(Prompt::Texts(texts)) => texts.into_iter().map(PromptText::Text).collect(),
        Some(Prompt::TokenLists(lists)) => lists.into_iter().map(PromptText::Tokens).collect(),
        Some(Prompt::Tokens(_)) | None => Vec::new(),
    };
    if prompts.is_empty() {
        return Err(ApiError::parameter("prompt", "prompt must not be empty"));
    }
    let logprobs = request.logprobs.map(|top| top as usize);
    if logprobs.is_some_and(|top| top > MAX_TOP_LOGPROBS) {
        return Err(ApiError::parameter(
            "logprobs",
            format!("logprobs is at most {MAX_TOP_LOGPROBS}"),
        ));
    }
    let echo = request.echo.unwrap_or(false);
    if echo && logprobs.is_some() {
        return Err(ApiError::parameter(
            "echo",
            "log probabilities of the prompt are not served: leave out echo or logprobs",
        ));
    }
    Ok(CheckedRequest {
        model: common.model.clone(),
        stream: common.stream(),
        include_usage: common.include_usage()?,
        max_tokens: Some(checked_limit(common.max_tokens)?.unwrap_or(16)),
        choices: common.choices(prompts.len())?,
        sampling: common.sampling()?,
        seeded: common.seed.is_some(),
        stop: common.stop_strings()?,
        logprobs,
        grammar: None,
        reads_tool_calls: false,
        route: Route::Completion,
        echo,
        input: Input::Prompts(prompts),
    })
}

fn response_format(format: Option<&Value>) -> Result<Option<Grammar>, ApiError> {
    let Some(format) = format.filter(|format| !format.is_null()) else {
        return Ok(None);
    };
    match format["type"].as_str() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Grammar::JsonObject)),
        _ => Err(ApiError::parameter(
            "response_format",
            "response_format has type text or json_object",
        )),
    }
}

impl CommonParams {
    /// Refuses parameters of the interface that would change the answer and are not served.
    fn refuse_unserved(&self) -> Result<(), ApiError> {
        let is_default = |name: &str, value: &Value| match name {
            "modalities" => *value == serde_json::json!(["text"]),
            "best_of" => value.as_u64() == Some(u64::from(self.n.unwrap_or(1))),
            "suffix" => value.as_str() == Some(""),
            "functions" => value.as_array().is_some_and(Vec::is_empty),
            _ => false,
        };
        let unserved = [
            ("functions", "send tools instead"),
            ("function_call", "send tool_choice instead"),
            ("modalities", "only text is served"),
            ("audio", "only text is served"),
            ("prediction", "predicted outputs are not served"),
            ("web_search_options", "there is no web search"),
            (
                "reasoning_effort",
                "send chat_template_kwargs for what the model's template knows",
            ),
            ("best_of", "best_of is not served unless it equals n"),
            ("suffix", "text after the answer is not served"),
        ];
        for (name, problem) in unserved {
            let value = self.others.get(name).filter(|value| !value.is_null());
            if value.is_some_and(|value| !is_default(name, value)) {
                return Err(ApiError::parameter(name, format!("{name}: {problem}")));
            }
        }
        Ok(())
    }

    fn stream(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    fn include_usage(&self) -> Result<bool, ApiError> {
        if self.stream_options.is_some() && !self.stream() {
            return Err(ApiError::parameter(
                "stream_options",
                "stream_options needs stream: true",
            ));
        }
        Ok(self
            .stream_options
            .and_then(|options| options.include_usage)
            .unwrap_or(false))
    }

    fn choices(&self, prompts: usize) -> Result<usize, ApiError> {
        let choices = self.n.unwrap_or(1) as usize;
        if choices == 0 || choices.saturating_mul(prompts) > MAX_CHOICES {
            return Err(ApiError::parameter(
                "n",
                format!(
                    "n is at least 1, and at most {MAX_CHOICES} answers are given to all prompts together"
                ),
            ));
        }
        Ok(choices)
    }

    fn sampling(&self) -> Result<SamplingParams, ApiError> {
        let top_k = match self.top_k {
            None | Some(0 | -1) => 0,
            Some(k) => usize::try_from(k)
                .map_err(|_| ApiError::parameter("top_k", "top_k is 0, -1 or positive"))?,
        };
        Ok(SamplingParams {
            // OpenAI's defaults sample; the model crate's are greedy.
            temperature: in_range("temperature", self.temperature, 0.0, 2.0)?.unwrap_or(1.0),
            top_k,
            top_p: in_range("top_p", self.top_p, 0.0, 1.0)?.unwrap_or(1.0),
            min_p: in_range("min_p", self.min_p, 0.0, 1.0)?.unwrap_or(0.0),
            repetition_penalty: in_range(
                "repetition_penalty",
                self.repetition_penalty,
                0.01,
                10.0,
            )?
            .unwrap_or(1.0),
            presence_penalty: in_range("presence_penalty", self.presence_penalty, -2.0, 2.0)?
                .unwrap_or(0.0),
            frequency_penalty: in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?
                .unwrap_or(0.0),
            logit_bias: self.logit_bias()?,
            seed: self.seed.map_or(0, |seed| seed as u64),
        })
    }

    fn logit_bias(&self) -> Result<Vec<(u32, f32)>, ApiError> {
        let Some(biases) = &self.logit_bias else {
            return Ok(Vec::new());
        };
        if biases.len() > MAX_LOGIT_BIASES {
            return Err(ApiError::parameter(
                "logit_bias",
                format!("at most {MAX_LOGIT_BIASES} tokens can be biased"),
            ));
        }
        let checked = biases.iter().map(|(token, bias)| {
            let token = token.parse().ok()?;
            (-100.0..=100.0).contains(bias).then_some((token, *bias))
        });
        let problem = "logit_bias maps token ids to numbers between -100 and 100";
        checked
            .collect::<Option<_>>()
            .ok_or_else(|| ApiError::parameter("logit_bias", problem))
    }

    fn stop_strings(&self) -> Result<Vec<String>, ApiError> {
        let stop = match &self.stop {
            None => return Ok(Vec::new()),
            Some(Stop::One(text)) => vec![text.clone()],
            Some(Stop::Many(texts)) => texts.clone(),
        };
        if stop.len() > MAX_STOP_STRINGS {
            return Err(ApiError::parameter(
                "stop",
                format!("at most {MAX_STOP_STRINGS} stop strings"),
            ));
        }
        if stop
            .iter()
            .any(|text| text.is_empty() || text.len() > MAX_STOP_BYTES)
        {
            return Err(ApiError::parameter(
                "stop",
                format!("a stop string has 1 to {MAX_STOP_BYTES} bytes"),
            ));
        }
        Ok(stop)
    }
}

fn parse_json<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::invalid(format!("the request body is not valid: {error}")))
}

fn checked_limit(limit: Option<u32>) -> Result<Option<usize>, ApiError> {
    match limit {
        Some(0) => Err(ApiError::parameter(
            "max_tokens",
            "max_tokens is at least 1",
        )),
        other => Ok(other.map(|limit| limit as usize)),
    }
}

fn in_range(name: &str, value: Option<f32>, low: f32, high: f32) -> Result<Option<f32>, ApiError> {
    match value {
        Some(value) if !(low..=high).contains(&value) => Err(ApiError::parameter(
            name,
            format!("{name} is between {low} and {high}"),
        )),
        other => Ok(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_helpers_request_is_read() {
        let body = br#"{"model":"ft-x","messages":[{"role":"system","content":"S"},{"role":"user","content":"Hi"}]}"#;
        let request = parse_chat(body).unwrap();
        assert_eq!(
            (request.model.as_str(), request.choices, request.max_tokens),
            ("ft-x", 1, None)
        );
        assert!((request.sampling.temperature - 1.0).abs() < f32::EPSILON);
        let Input::Chat {
            messages, tools, ..
        } = request.input
        else {
            panic!("not a chat")
        };
        assert_eq!(messages[1].content, "Hi");
        assert!(tools.is_none());
    }

    #[test]
    fn parts_are_joined_and_newer_names_win() {
        let body = br#"{"model":"m","max_tokens":5,"max_completion_tokens":7,"stop":"x","top_k":-1,"seed":-3,
            "stream":true,"stream_options":{"include_usage":true},
            "messages":[{"role":"developer","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]}"#;
        let request = parse_chat(body).unwrap();
        assert_eq!(request.max_tokens, Some(7));
        assert_eq!(request.stop, ["x"]);
        assert!(request.stream && request.include_usage);
        let Input::Chat { messages, .. } = request.input else {
            panic!("not a chat")
        };
        assert_eq!(
            (messages[0].role.as_str(), messages[0].content.as_str()),
            ("system", "ab")
        );
    }

    #[test]
    fn faults_name_their_parameter() {
        let bad = [
            (r#"{"messages":[]}"#, "messages"),
            (
                r#"{"messages":[{"role":"user","content":"x"}],"temperature":3}"#,
                "temperature",
            ),
            (r#"{"messages":[{"role":"user","content":"x"}],"n":0}"#, "n"),
            (
                r#"{"messages":[{"role":"user","content":"x"}],"max_tokens":0}"#,
                "max_tokens",
            ),
            (
                r#"{"messages":[{"role":"user","content":"x"}],"stop":[""]}"#,
                "stop",
            ),
            (
                r#"{"messages":[{"role":"user","content":"x"}],"top_k":-5}"#,
                "top_k",
            ),
            (
                r#"{"messages":[{"role":"user","content":"x"}],"top_logprobs":3}"#,
                "top_logprobs",
            ),
            (
                r#"{"messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_schema"}}"#,
                "response_format",
            ),
            (
                r#"{"messages":[{"role":"user","content":"x"}],"stream_options":{"include_usage":true}}"#,
                "stream_options",
            ),
            (
                r#"{"messages":[{"role":"user","content":"x"}],"functions":[{"name":"f"}]}"#,
                "functions",
            ),
            (
                r#"{"messages":[{"role":"user","content":"x"}],"tools":[{"type":"function"}]}"#,
                "tools[0]",
            ),
            (
                r#"{"messages":[{"role":"user","content":"x"}],"tool_choice":"required"}"#,
                "tool_choice",
            ),
            (
                r#"{"messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"{"}}]}]}"#,
                "messages[0].tool_calls",
            ),
            (
                r#"{"messages":[{"role":"user","content":"x"}],"logit_bias":{"x":1}}"#,
                "logit_bias",
            ),
            (
                r#"{"messages":[{"role":"robot","content":"x"}]}"#,
                "messages[0].role",
            ),
            (
                r#"{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}"#,
                "messages[0].content",
            ),
        ];
        for (body, parameter) in bad {
            let error = parse_chat(body.as_bytes()).unwrap_err();
            assert_eq!(
                (error.status, error.param.as_deref()),
                (400, Some(parameter)),
                "{body}"
            );
        }
        assert_eq!(parse_chat(b"{").unwrap_err().status, 400);
    }

    #[test]
    fn completions_default_to_sixteen_tokens() {
        let request = parse_completion(br#"{"prompt":"x"}"#).unwrap();
        assert_eq!(request.max_tokens, Some(16));
        let prompts = |body: &str| match parse_completion(body.as_bytes()).unwrap().input {
            Input::Prompts(prompts) => prompts,
            Input::Chat { .. } => panic!("a conversation"),
        };
        let text = |text: &str| PromptText::Text(text.into());
        assert_eq!(
            prompts(r#"{"prompt":[1,2]}"#),
            [PromptText::Tokens(vec![1, 2])]
        );
        assert_eq!(prompts(r#"{"prompt":["a","b"]}"#), [text("a"), text("b")]);
        assert_eq!(
            prompts(r#"{"prompt":[[1],[2,3]]}"#),
            [PromptText::Tokens(vec![1]), PromptText::Tokens(vec![2, 3])]
        );
        for (body, param) in [
            (r#"{"prompt":[]}"#, "prompt"),
            (r#"{}"#, "prompt"),
            (r#"{"prompt":["a","b"],"n":9}"#, "n"),
            (r#"{"prompt":"a","echo":true,"logprobs":1}"#, "echo"),
            (r#"{"prompt":"a","suffix":"b"}"#, "suffix"),
            (r#"{"prompt":"a","best_of":3}"#, "best_of"),
        ] {
            let error = parse_completion(body.as_bytes()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{body}");
        }
    }

    #[test]
    fn tools_are_shown_forced_or_hidden() {
        let body = |choice: &str| {
            format!(
                r#"{{"messages":[{{"role":"user","content":"x"}}],"parallel_tool_calls":false,"tool_choice":{choice},
                "tools":[{{"type":"function","function":{{"name":"a"}}}},{{"type":"function","function":{{"name":"b"}}}}]}}"#
            )
        };
        let forced = |names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            Some(Grammar::ToolCall { names })
        };
        let named = r#"{"type":"function","function":{"name":"b"}}"#;
        for (choice, reads, grammar) in [
            ("null", true, None),
            (r#""auto""#, true, None),
            (r#""none""#, false, None),
            (r#""required""#, true, forced(&["a", "b"])),
            (named, true, forced(&["b"])),
        ] {
            let request = parse_chat(body(choice).as_bytes()).unwrap();
            assert_eq!(
                (request.reads_tool_calls, request.grammar),
                (reads, grammar),
                "{choice}"
            );
            let Input::Chat { tools, .. } = request.input else {
                panic!("not a chat")
            };
            assert_eq!(tools.is_some(), reads);
            assert_eq!(request.stop.is_empty(), !reads, "one call only");
        }
        let unknown = body(r#"{"type":"function","function":{"name":"c"}}"#);
        assert!(parse_chat(unknown.as_bytes()).is_err());
    }

    #[test]
    fn arguments_of_earlier_calls_are_opened() {
        let body = br#"{"messages":[{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function",
            "function":{"name":"f","arguments":"{\"x\": 1}"}}]},{"role":"tool","tool_call_id":"1","content":"2"}]}"#;
        let Input::Chat { messages, .. } = parse_chat(body).unwrap().input else {
            panic!("not a chat")
        };
        let call = &messages[0].extra["tool_calls"][0]["function"]["arguments"];
        assert_eq!(call, &serde_json::json!({"x": 1}));
    }
}
