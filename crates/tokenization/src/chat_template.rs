//! Chat templates: the Jinja text that comes with a model, rendered as the reference
//! Python implementation renders it (trimmed blocks, Python methods on values,
//! `raise_exception`, `strftime_now`, a `tojson` that does not escape for HTML).

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, ErrorKind};
use serde::{Deserialize, Serialize};

/// One message of a conversation, in the shape of the chat completions API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// Text of the message; empty when a message only carries tool calls.
    #[serde(default)]
    pub content: String,
    /// Everything else that a template may read, for example `tool_calls` or `name`.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl ChatMessage {
    /// A message with a role and text and nothing else.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
            extra: serde_json::Map::new(),
        }
    }
}

/// Why a chat template could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The template is not valid Jinja.
    #[error("the model's chat template does not parse: {0}")]
    Syntax(String),
    /// The template stopped with its own message, for example about the order of roles.
    #[error("the model's chat template refuses this conversation: {0}")]
    Refused(String),
    /// The template failed while it ran.
    #[error("the model's chat template failed: {0}")]
    Render(String),
}

/// A compiled chat template with the special tokens that it may print.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: Vec<(String, String)>,
}

const TEMPLATE_NAME: &str = "chat_template";
/// Marks a message raised by the template itself, so that it can be told from a failure.
const REFUSAL_MARK: &str = "\u{1}refused\u{1}";

impl ChatTemplate {
    /// Compiles a template. `special_tokens` are pairs such as `("bos_token", "<s>")`.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`].
    pub fn compile(
        source: &str,
        special_tokens: Vec<(String, String)>,
    ) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|error| TemplateError::Syntax(describe(&error)))?;
        environment.set_syntax(syntax);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(TEMPLATE_NAME, without_generation_tags(source))
            .map_err(|error| TemplateError::Syntax(describe(&error)))?;
        Ok(Self {
            environment,
            special_tokens,
        })
    }

    /// Renders a conversation. With `add_generation_prompt` the text ends where the
    /// assistant's next answer begins.
    ///
    /// # Errors
    /// [`TemplateError::Refused`] and [`TemplateError::Render`].
    pub fn render(
        &self,
        messages: &[ChatMessage],
        tools: Option<&[serde_json::Value]>,
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let none = serde_json::Map::new();
        self.render_with(messages, tools, add_generation_prompt, &none)
    }

    /// [`ChatTemplate::render`] with further variables, for example `enable_thinking`. They cannot replace the
    /// template's own.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_with(
        &self,
        messages: &[ChatMessage],
        tools: Option<&[serde_json::Value]>,
        add_generation_prompt: bool,
        variables: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<String, TemplateError> {
        let mut context: Vec<(String, Value)> = variables
            .iter()
            .map(|(name, value)| (name.clone(), Value::from(Serde(value))))
            .collect();
        context.extend([
            ("messages".to_owned(), Value::from(Serde(messages))),
            (
                "tools".to_owned(),
                tools.map_or(Value::from(()), |tools| Value::from(Serde(tools))),
            ),
            ("documents".to_owned(), Value::from(())),
            (
                "add_generation_prompt".to_owned(),
                Value::from(add_generation_prompt),
            ),
        ]);
        for (name, token) in &self.special_tokens {
            context.push((name.clone(), Value::from(token.clone())));
        }
        let context = Value::from_pairs(context);
        self.environment
            .get_template(TEMPLATE_NAME)
            .and_then(|template| template.render(context))
            .map_err(|error| {
                let text = describe(&error);
                match text.split_once(REFUSAL_MARK) {
                    Some((_, rest)) => TemplateError::Refused(
                        rest.split(REFUSAL_MARK).next().unwrap_or(rest).to_owned(),
                    ),
                    None => TemplateError::Render(text),
                }
            })
    }
}

/// `{% generation %}` blocks only mark text for trainers that mask by them; the mask
/// here comes from rendering prefixes, so the block becomes one that is always taken.
/// Writing it as `if` keeps the whitespace control of the original tags.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let Some(length) = rest[open..].find("%}") else {
            break;
        };
        let tag = &rest[open..open + length + 2];
        let inner = tag[2..tag.len() - 2].trim_matches(['-', '+', ' ', '\n', '\t']);
        out.push_str(&rest[..open]);
        match inner {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = &rest[open + length + 2..];
    }
    out.push_str(rest);
    out
}

fn describe(error: &minijinja::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(
        ErrorKind::InvalidOperation,
        format!("{REFUSAL_MARK}{message}{REFUSAL_MARK}"),
    ))
}

/// The date for templates that print one. UTC, so that a record renders alike everywhere.
fn strftime_now(format: String) -> Result<String, minijinja::Error> {
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    jiff::fmt::strtime::format(format.as_str(), &now).map_err(|error| {
        minijinja::Error::new(
            ErrorKind::InvalidOperation,
            format!("strftime_now: {error}"),
        )
    })
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=…)`.
fn to_json(value: Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Arguments without an effect on chat templates are accepted as the original accepts them.
    let _: Option<bool> = options.get("ensure_ascii")?;
    let _: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let bad = |error: serde_json::Error| {
        minijinja::Error::new(ErrorKind::BadSerialization, error.to_string())
    };
    let value = serde_json::to_value(&value).map_err(bad)?;
    let mut bytes = Vec::new();
    match indent {
        None => {
            let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, PythonJson);
            value.serialize(&mut serializer).map_err(bad)?;
        }
        Some(width) => {
            let spaces = " ".repeat(width.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
            value.serialize(&mut serializer).map_err(bad)?;
        }
    }
    let text = String::from_utf8(bytes)
        .map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(Value::from_safe_string(text))
}

/// Separators of Python's `json` module: `", "` and `": "`.
struct PythonJson;

impl serde_json::ser::Formatter for PythonJson {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation() -> Vec<ChatMessage> {
        vec![
            ChatMessage::new("system", "Be brief."),
            ChatMessage::new("user", "  Hi <there> & you "),
            ChatMessage::new("assistant", "Hello."),
        ]
    }

    #[test]
    fn chatml_renders_turns_and_the_generation_prompt() {
        let template = ChatTemplate::compile(
            "{%- for message in messages %}\n    {{- '<|im_start|>' + message.role + '\\n' + message.content.strip() + '<|im_end|>' + '\\n' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n",
            Vec::new(),
        )
        .unwrap();
        assert_eq!(
            template.render(&conversation(), None, true).unwrap(),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <there> & you<|im_end|>\n\
             <|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>assistant\n"
        );
    }

    #[test]
    fn a_refusal_carries_the_message_of_the_template() {
        let template = ChatTemplate::compile(
            "{% if messages[0].role != 'user' %}{{ raise_exception('start with the user') }}{% endif %}",
            Vec::new(),
        )
        .unwrap();
        let error = template.render(&conversation(), None, false).unwrap_err();
        assert!(
            matches!(&error, TemplateError::Refused(text) if text == "start with the user"),
            "{error}"
        );
    }

    #[test]
    fn tojson_is_the_python_one() {
        let template = ChatTemplate::compile(
            "{{ tools[0] | tojson }}|{{ tools[0] | tojson(indent=2) }}|{{ tools is none }}",
            Vec::new(),
        )
        .unwrap();
        let tool = serde_json::json!({"name": "a<b>'é", "list": [1, 2]});
        assert_eq!(
            template.render(&[], Some(&[tool]), false).unwrap(),
            "{\"name\": \"a<b>'é\", \"list\": [1, 2]}|{\n  \"name\": \"a<b>'é\",\n  \"list\": [\n    1,\n    2\n  ]\n}|False"
        );
    }

    #[test]
    fn generation_blocks_leave_the_text_alone() {
        let template = ChatTemplate::compile(
            "{% for m in messages %}{%- generation -%} {{ m.content }} {%- endgeneration -%};{% endfor %}{{ eos_token }}",
            vec![("eos_token".to_owned(), "<end>".to_owned())],
        )
        .unwrap();
        assert_eq!(
            template
                .render(&[ChatMessage::new("assistant", "x")], None, false)
                .unwrap(),
            "x;<end>"
        );
    }

    #[test]
    fn dates_follow_the_format() {
        let template = ChatTemplate::compile("{{ strftime_now('%Y') }}", Vec::new()).unwrap();
        let year = template.render(&[], None, false).unwrap();
        assert_eq!(year.len(), 4);
        assert!(year.parse::<u32>().unwrap() >= 2024);
    }
}
