//! A model's tokenizer: `tokenizer.json`, the chat template and the stop tokens that
//! belong to it, read from a model directory.

use std::path::Path;
use std::sync::OnceLock;

use serde_json::Value;

use crate::chat_template::{ChatMessage, ChatTemplate, TemplateError};
use crate::token_table::{PieceAlphabet, TokenTable};

/// Largest tokenizer file that is read, in bytes. The largest public ones are near 35 MB.
const MAX_TOKENIZER_BYTES: u64 = 128 << 20;
/// Largest configuration or template file that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Markers that end a turn or a text in the supported families, when a vocabulary has them.
const KNOWN_STOP_TOKENS: [&str; 4] = ["<|im_end|>", "<|endoftext|>", "<|eot_id|>", "</s>"];

/// Texts by which two tokenizers are compared: words, numbers, blanks, marks, characters outside ASCII.
const COMPARED_TEXTS: [&str; 6] = [
    "The quick brown fox jumps over the lazy dog.",
    "  I'm 12345.678 years old,\tisn't it?\r\n\r\n",
    "fn main() { println!(\"{:?}\", x[0] == y); }",
    "Grüße aus Zürich — naïve café, ångström",
    "\u{4F60}\u{597D}\u{FF0C}\u{4E16}\u{754C}\u{FF01} \u{41F}\u{440}\u{438}\u{432}\u{435}\u{442} \u{1F30D}\u{1F468}\u{200D}\u{1F4BB}",
    "e\u{301} \u{FB01} \u{2460}",
];

/// Why a tokenizer could not be loaded or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is larger than any real one.
    #[error("{path} has {bytes} bytes; at most {limit} are read")]
    TooLarge {
        /// The file.
        path: String,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A file does not have the expected content.
    #[error("{path} is not usable: {problem}")]
    Invalid {
        /// The file.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The tokenizer failed on a text.
    #[error("the tokenizer failed: {0}")]
    Tokenize(String),
    /// The model has no chat template.
    #[error(
        "this model has no chat template (no chat_template.jinja and none in tokenizer_config.json)"
    )]
    NoChatTemplate,
    /// The chat template failed or refused the conversation.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// A tokenizer with its chat template and stop tokens.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    template: Option<ChatTemplate>,
    /// Whether the template looks at tools, and writes calls between `<tool_call>` and `</tool_call>`.
    template_calls_tools: bool,
    /// Text of the template.
    template_source: Option<String>,
    end_of_text: Option<u32>,
    stop_ids: Vec<u32>,
    table: OnceLock<TokenTable>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, where present, `tokenizer_config.json`,
    /// `generation_config.json` and `chat_template.jinja` (or `chat_template.json`).
    ///
    /// # Errors
    /// [`TokenizerError::Read`], [`TokenizerError::TooLarge`], [`TokenizerError::Invalid`],
    /// [`TokenizerError::Template`].
    pub fn from_dir(directory: &Path) -> Result<Self, TokenizerError> {
        let tokenizer = read_limited(&directory.join("tokenizer.json"), MAX_TOKENIZER_BYTES)?
            .ok_or_else(|| TokenizerError::Read {
                path: directory.join("tokenizer.json").display().to_string(),
                source: std::io::ErrorKind::NotFound.into(),
            })?;
        let optional = |name: &str| read_limited(&directory.join(name), MAX_CONFIG_BYTES);
        let config = optional("tokenizer_config.json")?;
        let generation = optional("generation_config.json")?;
        let mut template = match optional("chat_template.jinja")? {
            Some(bytes) => Some(text_of(bytes, "chat_template.jinja")?),
            None => None,
        };
        if template.is_none()
            && let Some(bytes) = optional("chat_template.json")?
        {
            template = template_in(&json_of(&bytes, "chat_template.json")?);
        }
        Self::from_parts(
            &tokenizer,
            config.as_deref(),
            template.as_deref(),
            generation.as_deref(),
        )
    }

    /// The same from file contents: `tokenizer.json`, `tokenizer_config.json`, the text of
    /// `chat_template.jinja` (it wins over a template inside the configuration) and
    /// `generation_config.json`.
    ///
    /// # Errors
    /// [`TokenizerError::Invalid`] and [`TokenizerError::Template`].
    pub fn from_parts(
        tokenizer_json: &[u8],
        tokenizer_config: Option<&[u8]>,
        chat_template: Option<&str>,
        generation_config: Option<&[u8]>,
    ) -> Result<Self, TokenizerError> {
        let mut inner = tokenizers::Tokenizer::from_bytes(tokenizer_json).map_err(|error| {
            TokenizerError::Invalid {
                path: "tokenizer.json".into(),
                problem: error.to_string(),
            }
        })?;
        // Padding and truncation stored in the file are for other programs: counts and
        // masks need every token and no filler.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|error| TokenizerError::Tokenize(error.to_string()))?;

        let config = match tokenizer_config {
            Some(bytes) => json_of(bytes, "tokenizer_config.json")?,
            None => Value::Null,
        };
        let special_tokens: Vec<(String, String)> =
            ["bos_token", "eos_token", "pad_token", "unk_token"]
                .into_iter()
                .filter_map(|name| Some((name.to_owned(), token_text(&config[name])?)))
                .collect();
        let end_of_text = special_tokens
            .iter()
            .find(|(name, _)| name == "eos_token")
            .and_then(|(_, token)| inner.token_to_id(token))
            .or_else(|| {
                KNOWN_STOP_TOKENS
                    .iter()
                    .find_map(|token| inner.token_to_id(token))
            });

        let mut stop_ids: Vec<u32> = end_of_text.into_iter().collect();
        stop_ids.extend(
            KNOWN_STOP_TOKENS
                .iter()
                .filter_map(|token| inner.token_to_id(token)),
        );
        if let Some(bytes) = generation_config {
            let generation = json_of(bytes, "generation_config.json")?;
            match &generation["eos_token_id"] {
                Value::Number(id) => {
                    stop_ids.extend(id.as_u64().and_then(|id| u32::try_from(id).ok()))
                }
                Value::Array(ids) => stop_ids.extend(
                    ids.iter()
                        .filter_map(Value::as_u64)
                        .filter_map(|id| u32::try_from(id).ok()),
                ),
                _ => {}
            }
        }
        stop_ids.sort_unstable();
        stop_ids.dedup();

        let source = chat_template
            .map(str::to_owned)
            .or_else(|| template_in(&config));
        let template_calls_tools = source
            .as_deref()
            .is_some_and(|source| source.contains("tools") && source.contains("<tool_call>"));
        let template = source
            .as_deref()
            .map(|source| ChatTemplate::compile(source, special_tokens))
            .transpose()?;
        Ok(Self {
            inner,
            template,
            template_calls_tools,
            template_source: source,
            end_of_text,
            stop_ids,
            table: OnceLock::new(),
        })
    }

    /// Token ids of a text. Special tokens written in the text become their ids; with
    /// `add_special_tokens` the tokenizer's own prefix and suffix are added (a rendered
    /// chat already holds everything, so it is encoded without).
    ///
    /// # Errors
    /// [`TokenizerError::Tokenize`].
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        self.inner
            .encode_fast(text, add_special_tokens)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| TokenizerError::Tokenize(error.to_string()))
    }

    /// Text of token ids, with or without the special tokens among them.
    ///
    /// # Errors
    /// [`TokenizerError::Tokenize`].
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, TokenizerError> {
        self.inner
            .decode(ids, skip_special_tokens)
            .map_err(|error| TokenizerError::Tokenize(error.to_string()))
    }

    /// The prompt of a conversation, by the model's chat template.
    ///
    /// # Errors
    /// [`TokenizerError::NoChatTemplate`] and [`TokenizerError::Template`].
    pub fn render_chat(
        &self,
        messages: &[ChatMessage],
        tools: Option<&[Value]>,
        add_generation_prompt: bool,
    ) -> Result<String, TokenizerError> {
        let none = serde_json::Map::new();
        self.render_chat_with(messages, tools, add_generation_prompt, &none)
    }

    /// [`Tokenizer::render_chat`] with further variables of the template, for example `enable_thinking`.
    ///
    /// # Errors
    /// As [`Tokenizer::render_chat`].
    pub fn render_chat_with(
        &self,
        messages: &[ChatMessage],
        tools: Option<&[Value]>,
        add_generation_prompt: bool,
        variables: &serde_json::Map<String, Value>,
    ) -> Result<String, TokenizerError> {
        let template = self
            .template
            .as_ref()
            .ok_or(TokenizerError::NoChatTemplate)?;
        Ok(template.render_with(messages, tools, add_generation_prompt, variables)?)
    }

    /// Where this tokenizer and another one differ, as far as prompts and answers can show it: the vocabulary, the
    /// stop tokens, and how texts are cut. `None` when they do not.
    pub fn difference_to(&self, other: &Self) -> Option<String> {
        let (own, others) = (self.table(), other.table());
        if own.len() != others.len() {
            return Some(format!("{} tokens instead of {}", own.len(), others.len()));
        }
        let differs = |id: &u32| {
            own.bytes(*id) != others.bytes(*id) || own.is_text(*id) != others.is_text(*id)
        };
        if let Some(id) = (0..own.len() as u32).find(differs) {
            return Some(format!("token {id} is another one"));
        }
        if self.stop_ids != other.stop_ids {
            return Some("other tokens end an answer".into());
        }
        let is_cut_differently =
            |text: &&&str| self.encode(text, true).ok() != other.encode(text, true).ok();
        COMPARED_TEXTS
            .iter()
            .find(is_cut_differently)
            .map(|text| format!("{text:?} is cut into other tokens"))
    }

    /// Whether both have the same chat template, blanks at its ends aside.
    pub fn has_same_template(&self, other: &Self) -> bool {
        let text = |tokenizer: &Self| {
            tokenizer
                .template_source
                .as_deref()
                .map(str::trim)
                .map(str::to_owned)
        };
        text(self) == text(other)
    }

    /// Whether the model has a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.template.is_some()
    }

    /// Whether the chat template shows tools to the model and has it write calls in the form of the Qwen family:
    /// JSON between `<tool_call>` and `</tool_call>`.
    pub fn has_tool_calls(&self) -> bool {
        self.template_calls_tools
    }

    /// The bytes of every token; made at the first call.
    pub fn table(&self) -> &TokenTable {
        self.table.get_or_init(|| {
            let decoder = serde_json::to_value(self.inner.get_decoder()).unwrap_or(Value::Null);
            let pieces = self.inner.get_vocab(false).into_iter();
            let added = self.inner.get_added_tokens_decoder().into_iter();
            TokenTable::new(
                pieces.map(|(piece, id)| (id, piece)),
                added.map(|(id, token)| (id, token.content, token.special)),
                PieceAlphabet::of_decoder(&decoder),
            )
        })
    }

    /// Number of ids including added tokens.
    pub fn vocabulary_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Id of a token written as in the vocabulary, for example `<|im_end|>`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token that ends a text: `eos_token` of the configuration.
    pub fn end_of_text_id(&self) -> Option<u32> {
        self.end_of_text
    }

    /// Every token at which generation stops, ascending: the end-of-text token, the
    /// end-of-turn markers of the vocabulary and those of `generation_config.json`.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }
}

/// Turns a stream of token ids into text pieces that are always whole characters.
///
/// A byte-level token may end inside a character. The decoder holds such a tail back
/// until the rest arrives. The context of earlier tokens is kept, because some
/// tokenizers decode the first token of a text differently.
#[derive(Debug, Clone, Default)]
pub struct IncrementalDecoder {
    ids: Vec<u32>,
    /// Start of the context tokens in `ids`.
    context_start: usize,
    /// End of the tokens whose text was already handed out.
    emitted_end: usize,
}

/// Tokens without a complete character after which the text is given out with
/// replacement characters; no real character needs this many.
const MAX_HELD_TOKENS: usize = 8;

impl IncrementalDecoder {
    /// A decoder at the beginning of a text.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one token; returns the text that became complete, if any.
    ///
    /// # Errors
    /// [`TokenizerError::Tokenize`].
    pub fn push(
        &mut self,
        tokenizer: &Tokenizer,
        id: u32,
    ) -> Result<Option<String>, TokenizerError> {
        self.ids.push(id);
        let held = self.ids.len() - self.emitted_end;
        self.emit(tokenizer, held > MAX_HELD_TOKENS)
    }

    /// The text still held back, at the end of the stream. An unfinished character
    /// becomes U+FFFD.
    ///
    /// # Errors
    /// [`TokenizerError::Tokenize`].
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<Option<String>, TokenizerError> {
        self.emit(tokenizer, true)
    }

    fn emit(
        &mut self,
        tokenizer: &Tokenizer,
        force: bool,
    ) -> Result<Option<String>, TokenizerError> {
        let before = tokenizer.decode(&self.ids[self.context_start..self.emitted_end], true)?;
        let after = tokenizer.decode(&self.ids[self.context_start..], true)?;
        if after.len() <= before.len() || (!force && after.ends_with('\u{FFFD}')) {
            return Ok(None);
        }
        let text = after.get(before.len()..).map(str::to_owned);
        self.context_start = self.emitted_end;
        self.emitted_end = self.ids.len();
        // Only the context is needed from here on.
        self.ids.drain(..self.context_start);
        self.emitted_end -= self.context_start;
        self.context_start = 0;
        Ok(text)
    }
}

fn read_limited(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, TokenizerError> {
    let failed = |source| TokenizerError::Read {
        path: path.display().to_string(),
        source,
    };
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if metadata.len() > limit => {
            return Err(TokenizerError::TooLarge {
                path: path.display().to_string(),
                bytes: metadata.len(),
                limit,
            });
        }
        Ok(_) => {}
    }
    std::fs::read(path).map(Some).map_err(failed)
}

fn json_of(bytes: &[u8], path: &str) -> Result<Value, TokenizerError> {
    serde_json::from_slice(bytes).map_err(|error| TokenizerError::Invalid {
        path: path.to_owned(),
        problem: error.to_string(),
    })
}

fn text_of(bytes: Vec<u8>, path: &str) -> Result<String, TokenizerError> {
    String::from_utf8(bytes).map_err(|error| TokenizerError::Invalid {
        path: path.to_owned(),
        problem: error.to_string(),
    })
}

/// A token is written as text or as an object with its `content`.
fn token_text(value: &Value) -> Option<String> {
    value
        .as_str()
        .or_else(|| value["content"].as_str())
        .map(str::to_owned)
}

/// `chat_template` is one text, or a list of named ones of which `default` is meant.
fn template_in(config: &Value) -> Option<String> {
    match &config["chat_template"] {
        Value::String(text) => Some(text.clone()),
        Value::Array(named) => named
            .iter()
            .find(|entry| entry["name"] == "default")
            .or(named.first())
            .and_then(|entry| entry["template"].as_str())
            .map(str::to_owned),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A byte-level tokenizer without merges: one token per byte, and two markers.
    pub(crate) fn byte_tokenizer(template: Option<&str>) -> Tokenizer {
        let mut vocabulary = serde_json::Map::new();
        let mut printable: Vec<u8> = (b'!'..=b'~').collect();
        printable.extend(0xA1..=0xAC_u8);
        printable.extend(0xAE..=0xFF_u8);
        let mut next = 256_u32;
        for byte in 0..=255_u8 {
            let character = if printable.contains(&byte) {
                char::from(byte)
            } else {
                let character = char::from_u32(next).unwrap();
                next += 1;
                character
            };
            vocabulary.insert(character.to_string(), Value::from(u32::from(byte)));
        }
        let special = |id: u32, content: &str| {
            serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        };
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [special(256, "<|im_start|>"), special(257, "<|im_end|>")],
            "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "vocab": vocabulary, "merges": []}
        });
        let config = serde_json::json!({"eos_token": {"content": "<|im_end|>"}});
        Tokenizer::from_parts(
            &serde_json::to_vec(&json).unwrap(),
            Some(&serde_json::to_vec(&config).unwrap()),
            template,
            Some(b"{\"eos_token_id\": [257, 99]}"),
        )
        .unwrap()
    }

    pub(crate) const CHATML: &str = "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

    #[test]
    fn markers_are_single_tokens_and_stop_ids_come_from_all_files() {
        let tokenizer = byte_tokenizer(None);
        assert_eq!(tokenizer.encode("<|im_start|>a", true).unwrap(), [256, 97]);
        assert_eq!(tokenizer.stop_ids(), [99, 257]);
        assert_eq!(tokenizer.end_of_text_id(), Some(257));
        assert_eq!(tokenizer.vocabulary_size(), 258);
        assert!(matches!(
            tokenizer.render_chat(&[], None, true),
            Err(TokenizerError::NoChatTemplate)
        ));
    }

    #[test]
    fn streamed_text_is_whole_characters_and_complete() {
        let tokenizer = byte_tokenizer(None);
        let text = "Grüße, 世界 🌍!";
        let mut decoder = IncrementalDecoder::new();
        let mut pieces = Vec::new();
        for id in tokenizer.encode(text, false).unwrap() {
            pieces.extend(decoder.push(&tokenizer, id).unwrap());
        }
        assert_eq!(decoder.finish(&tokenizer).unwrap(), None);
        assert!(pieces.iter().all(|piece| !piece.contains('\u{FFFD}')));
        assert!(pieces.contains(&"🌍".to_owned()));
        assert_eq!(pieces.concat(), text);
    }

    #[test]
    fn an_unfinished_character_is_marked_at_the_end() {
        let tokenizer = byte_tokenizer(None);
        let ids = tokenizer.encode("é", false).unwrap();
        let mut decoder = IncrementalDecoder::new();
        assert_eq!(decoder.push(&tokenizer, ids[0]).unwrap(), None);
        assert_eq!(
            decoder.finish(&tokenizer).unwrap().as_deref(),
            Some("\u{FFFD}")
        );
    }

    #[test]
    fn the_table_has_the_bytes_of_every_token() {
        let tokenizer = byte_tokenizer(None);
        let table = tokenizer.table();
        assert_eq!(table.len(), 258);
        for byte in 0..=255_u8 {
            assert_eq!(table.bytes(u32::from(byte)), [byte]);
            assert!(table.is_text(u32::from(byte)));
        }
        assert_eq!(table.bytes(257), b"<|im_end|>");
        assert!(!table.is_text(257) && !table.is_text(9_999));
    }

    #[test]
    fn a_missing_directory_names_the_file() {
        let error = Tokenizer::from_dir(Path::new("/nonexistent/model")).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("/nonexistent/model/tokenizer.json"),
            "{error}"
        );
    }
}
