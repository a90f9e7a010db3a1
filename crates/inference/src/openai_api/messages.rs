//! Conversations and tools, made ready for the chat template.

use serde_json::Value;
use zerog_tokenization::ChatMessage;

use super::request::RequestMessage;
use crate::error::ApiError;
use crate::grammar::{Grammar, MAX_CHOICES_OF_TOOL};

/// Most messages of one conversation.
pub const MAX_MESSAGES: usize = 4096;
/// Most tools of one request.
pub const MAX_TOOLS: usize = MAX_CHOICES_OF_TOOL;
/// Longest name of a tool.
const MAX_NAME_BYTES: usize = 64;

/// What an answer may do with tools.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ToolUse {
    /// Tools for the template, as JSON; none means that calls are not looked for.
    pub tools: Option<Vec<Value>>,
    /// Names of the tools of which one has to be called.
    pub forced: Option<Vec<String>>,
    /// Whether an answer ends with its first call.
    pub one_call_only: bool,
}

impl ToolUse {
    /// Checks `tools`, `tool_choice` and `parallel_tool_calls` together.
    pub(super) fn checked(
        tools: Option<Vec<Value>>,
        choice: Option<&Value>,
        parallel: Option<bool>,
    ) -> Result<Self, ApiError> {
        let tools = tools.filter(|tools| !tools.is_empty());
        let names = tool_names(tools.as_deref().unwrap_or_default())?;
        let needs_tools = || {
            Err(ApiError::parameter(
                "tool_choice",
                "tool_choice needs tools",
            ))
        };
        let forced = match choice {
            None | Some(Value::Null) => None,
            Some(Value::String(kind)) => match kind.as_str() {
                // The model is not shown what it may not call.
                "none" => return Ok(Self::default()),
                "auto" => None,
                "required" if names.is_empty() => return needs_tools(),
                "required" => Some(names),
                _ => return Err(unknown_choice()),
            },
            Some(choice) => {
                let name = choice["function"]["name"].as_str();
                match name.filter(|_| choice["type"] == "function") {
                    None => return Err(unknown_choice()),
                    Some(name) if names.iter().any(|known| known == name) => {
                        Some(vec![name.to_owned()])
                    }
                    Some(_) if names.is_empty() => return needs_tools(),
                    Some(name) => {
                        let text = format!("tool_choice names {name:?}, which is not one of tools");
                        return Err(ApiError::parameter("tool_choice", text));
                    }
                }
            }
        };
        Ok(Self {
            one_call_only: tools.is_some() && parallel == Some(false),
            tools,
            forced,
        })
    }

    /// The form of an answer that has to call a tool.
    pub(super) fn grammar(&self) -> Option<Grammar> {
        self.forced.clone().map(|names| Grammar::ToolCall { names })
    }
}

fn unknown_choice() -> ApiError {
    ApiError::parameter(
        "tool_choice",
        "tool_choice is none, auto, required or {\"type\": \"function\", \"function\": {\"name\": …}}",
    )
}

fn tool_names(tools: &[Value]) -> Result<Vec<String>, ApiError> {
    if tools.len() > MAX_TOOLS {
        return Err(ApiError::parameter(
            "tools",
            format!("at most {MAX_TOOLS} tools are read"),
        ));
    }
    let is_name = |name: &&str| {
        !name.is_empty()
            && name.len() <= MAX_NAME_BYTES
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
    };
    let names = tools.iter().enumerate().map(|(place, tool)| {
        let name = tool["function"]["name"].as_str().filter(is_name);
        match name.filter(|_| tool["type"] == "function") {
            Some(name) => Ok(name.to_owned()),
            None => Err(ApiError::parameter(
                format!("tools[{place}]"),
                "a tool has type function and a name of letters, digits, underscores, points and dashes",
            )),
        }
    });
    names.collect()
}

/// Messages for the template.
pub(super) fn checked(messages: Vec<RequestMessage>) -> Result<Vec<ChatMessage>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::parameter(
            "messages",
            "messages must not be empty",
        ));
    }
    if messages.len() > MAX_MESSAGES {
        return Err(ApiError::parameter(
            "messages",
            format!("at most {MAX_MESSAGES} messages are read"),
        ));
    }
    messages
        .into_iter()
        .enumerate()
        .map(|(place, message)| message.checked(place))
        .collect()
}

impl RequestMessage {
    fn checked(self, place: usize) -> Result<ChatMessage, ApiError> {
        let content = match self.content {
            Value::Null => String::new(),
            Value::String(text) => text,
            Value::Array(parts) => {
                let texts: Option<Vec<&str>> = parts
                    .iter()
                    .map(|part| part.get("text").and_then(Value::as_str))
                    .collect();
                let texts = texts.ok_or_else(|| {
                    ApiError::parameter(
                        format!("messages[{place}].content"),
                        "only parts of type text are served",
                    )
                })?;
                texts.concat()
            }
            _ => {
                let problem = "content must be a string or an array of parts";
                return Err(ApiError::parameter(
                    format!("messages[{place}].content"),
                    problem,
                ));
            }
        };
        // `developer` is the newer name of `system`; chat templates know only the old one.
        let role = if self.role == "developer" {
            "system".to_owned()
        } else {
            self.role
        };
        if !["system", "user", "assistant", "tool"].contains(&role.as_str()) {
            return Err(ApiError::parameter(
                format!("messages[{place}].role"),
                format!("unknown role {role:?}"),
            ));
        }
        let mut extra = self.extra;
        if let Some(calls) = extra.get_mut("tool_calls") {
            open_arguments(calls, place)?;
        }
        Ok(ChatMessage {
            role,
            content,
            extra,
        })
    }
}

/// The interface carries arguments as JSON text; templates write them as JSON, so they get the value.
fn open_arguments(calls: &mut Value, place: usize) -> Result<(), ApiError> {
    for call in calls.as_array_mut().into_iter().flatten() {
        let Some(arguments) = call.pointer_mut("/function/arguments") else {
            continue;
        };
        let Some(text) = arguments.as_str() else {
            continue;
        };
        *arguments = serde_json::from_str(text).map_err(|error| {
            ApiError::parameter(
                format!("messages[{place}].tool_calls"),
                format!("the arguments of a call are not JSON: {error}"),
            )
        })?;
    }
    Ok(())
}
