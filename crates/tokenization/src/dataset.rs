//! Dataset files: JSON Lines, or one JSON array of objects, read as a stream of records.
//!
//! The first record fixes the format of the whole file. Every problem is reported with
//! line, column and field, and says how to mend it, so that a file can be refused before
//! anything is paid for. Byte order marks, CRLF line ends and blank lines are accepted.
//! Formats: `docs/protocol.md`, section 3.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde_json::{Map, Value};

use crate::chat_template::ChatMessage;

/// Largest dataset file, in bytes.
pub const MAX_DATASET_BYTES: u64 = 104_857_600;
/// Largest single record, in bytes.
pub const MAX_RECORD_BYTES: usize = 4 << 20;
/// Most records in one file.
pub const MAX_RECORDS: usize = 1_000_000;
/// Most messages in one conversation.
pub const MAX_MESSAGES_PER_RECORD: usize = 512;

/// What kind of records a dataset holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// `{"messages": [{"role", "content"}, …]}`
    Messages,
    /// `{"instruction", "input"?, "output"}`
    Instruction,
    /// `{"prompt", "completion"}`
    PromptCompletion,
    /// `{"text"}`
    Text,
    /// `{"text", "label"}`, for classification models only.
    Classification,
    /// `{"prompt", "chosen", "rejected"}`, for training on preferences.
    Preference,
}

impl Format {
    /// The fields that a record of this format must have.
    pub fn required_fields(self) -> &'static [&'static str] {
        match self {
            Self::Messages => &["messages"],
            Self::Instruction => &["instruction", "output"],
            Self::PromptCompletion => &["prompt", "completion"],
            Self::Text => &["text"],
            Self::Classification => &["text", "label"],
            Self::Preference => &["prompt", "chosen", "rejected"],
        }
    }

    /// The format that the fields of a record announce, if they announce one.
    fn of(record: &Map<String, Value>) -> Option<Self> {
        let has = |field: &str| record.contains_key(field);
        if has("messages") {
            Some(Self::Messages)
        } else if has("instruction") || (has("output") && has("input")) {
            Some(Self::Instruction)
        } else if has("chosen") || has("rejected") {
            Some(Self::Preference)
        } else if has("prompt") || has("completion") {
            Some(Self::PromptCompletion)
        } else if has("text") && has("label") {
            Some(Self::Classification)
        } else if has("text") {
            Some(Self::Text)
        } else {
            None
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Messages => "messages",
            Self::Instruction => "instruction/input/output",
            Self::PromptCompletion => "prompt/completion",
            Self::Text => "text",
            Self::Classification => "text/label",
            Self::Preference => "prompt/chosen/rejected",
        })
    }
}

/// A place in the file. Lines and columns count from 1; columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourcePosition {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

impl std::fmt::Display for SourcePosition {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "line {}, column {}", self.line, self.column)
    }
}

/// One checked record and where it begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Where the record begins in the file.
    pub position: SourcePosition,
    /// Its content.
    pub content: RecordContent,
}

/// The content of a record, by format.
#[derive(Debug, Clone, PartialEq)]
pub enum RecordContent {
    /// A conversation; at least one assistant message has text or tool calls.
    Messages(Vec<ChatMessage>),
    /// An instruction with optional input and the wanted output.
    Instruction {
        /// What to do.
        instruction: String,
        /// What to do it with; may be empty.
        input: String,
        /// The wanted answer, never blank.
        output: String,
    },
    /// A prompt and the text that should follow it.
    PromptCompletion {
        /// The prompt; may be empty.
        prompt: String,
        /// What should follow, never blank.
        completion: String,
    },
    /// Plain text, never blank.
    Text(String),
    /// Text with its class.
    Classification {
        /// The text, never blank.
        text: String,
        /// The class as written, numbers in decimal.
        label: String,
    },
    /// A prompt with a better and a worse answer.
    Preference {
        /// The conversation so far; a prompt that is plain text is one message of the user.
        prompt: Vec<ChatMessage>,
        /// The better answer, never blank.
        chosen: String,
        /// The worse answer, never blank.
        rejected: String,
    },
}

impl RecordContent {
    /// The format that it came in.
    pub fn format(&self) -> Format {
        match self {
            Self::Messages(_) => Format::Messages,
            Self::Instruction { .. } => Format::Instruction,
            Self::PromptCompletion { .. } => Format::PromptCompletion,
            Self::Text(_) => Format::Text,
            Self::Classification { .. } => Format::Classification,
            Self::Preference { .. } => Format::Preference,
        }
    }
}

/// Why a dataset is refused. Every variant's message ends with what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatasetError {
    /// The file could not be read.
    #[error("cannot read the dataset: {0}")]
    Read(#[from] std::io::Error),
    /// No record at all.
    #[error("the dataset holds no record; write one JSON object per line")]
    Empty,
    /// The file is too large.
    #[error("the dataset has more than {limit} bytes; split it or leave records out")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// There are too many records.
    #[error("line {line}: the dataset has more than {limit} records; leave some out")]
    TooManyRecords {
        /// Line of the first record too many.
        line: usize,
        /// The limit.
        limit: usize,
    },
    /// One record is too large.
    #[error("line {line}: this record has more than {limit} bytes; split it")]
    RecordTooLarge {
        /// Line where the record begins.
        line: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The file is not UTF-8.
    #[error("{position}: not UTF-8 text; save the file with UTF-8 encoding")]
    Encoding {
        /// Where the first bad byte is.
        position: SourcePosition,
    },
    /// A record is not JSON.
    #[error("{position}: not valid JSON: {problem}; {fix}")]
    Json {
        /// Where parsing stopped.
        position: SourcePosition,
        /// What the parser expected.
        problem: String,
        /// How to mend it.
        fix: &'static str,
    },
    /// A record is JSON but not an object.
    #[error(
        "{position}: a record must be a JSON object like {{\"messages\": [...]}}, this is {found}; wrap it in an object"
    )]
    NotAnObject {
        /// Where the value begins.
        position: SourcePosition,
        /// The kind of value.
        found: &'static str,
    },
    /// The first record has no known set of fields.
    #[error(
        "{position}: unknown record format with the fields {fields}; use `messages`, `instruction`+`output`, `prompt`+`completion`, `text`, `text`+`label` or `prompt`+`chosen`+`rejected`"
    )]
    UnknownFormat {
        /// Where the record begins.
        position: SourcePosition,
        /// The fields that it has.
        fields: String,
    },
    /// A later record has another format than the first one.
    #[error(
        "{position}: this record is {found}, but the first record of the file is {expected}; keep one format per file"
    )]
    Mixed {
        /// Where the record begins.
        position: SourcePosition,
        /// The format of the file.
        expected: Format,
        /// The format of this record.
        found: Format,
    },
    /// A required field is missing.
    #[error("{position}: field `{field}` is missing; every {format} record needs it")]
    MissingField {
        /// Where the record begins.
        position: SourcePosition,
        /// Path of the field, for example `messages[2].content`.
        field: String,
        /// The format of the file.
        format: Format,
    },
    /// A field has the wrong type.
    #[error("{position}: field `{field}` must be {expected}, this is {found}; change its value")]
    WrongType {
        /// Where the field begins.
        position: SourcePosition,
        /// Path of the field.
        field: String,
        /// What is wanted.
        expected: &'static str,
        /// What is there.
        found: &'static str,
    },
    /// A field that must say something is blank.
    #[error("{position}: field `{field}` is empty; fill it or remove the record")]
    EmptyField {
        /// Where the field begins.
        position: SourcePosition,
        /// Path of the field.
        field: String,
    },
    /// A role that chat templates do not know.
    #[error("{position}: field `{field}` is \"{found}\"; use system, user, assistant or tool")]
    UnknownRole {
        /// Where the messages begin.
        position: SourcePosition,
        /// Path of the field.
        field: String,
        /// The value.
        found: String,
    },
    /// A conversation from which nothing can be learned.
    #[error(
        "{position}: no assistant message with text in `messages`; add the answer that the model should learn"
    )]
    NoAssistant {
        /// Where the messages begin.
        position: SourcePosition,
    },
    /// A conversation is too long.
    #[error(
        "{position}: `messages` has {found} messages; at most {limit} are allowed, split the conversation"
    )]
    TooManyMessages {
        /// Where the messages begin.
        position: SourcePosition,
        /// How many there are.
        found: usize,
        /// The limit.
        limit: usize,
    },
}

impl DatasetError {
    /// Where in the file the problem is, if it is at one place.
    pub fn position(&self) -> Option<SourcePosition> {
        match self {
            Self::Read(_) | Self::Empty | Self::TooLarge { .. } => None,
            Self::TooManyRecords { line, .. } | Self::RecordTooLarge { line, .. } => {
                Some(SourcePosition {
                    line: *line,
                    column: 1,
                })
            }
            Self::Encoding { position }
            | Self::Json { position, .. }
            | Self::NotAnObject { position, .. }
            | Self::UnknownFormat { position, .. }
            | Self::Mixed { position, .. }
            | Self::MissingField { position, .. }
            | Self::WrongType { position, .. }
            | Self::EmptyField { position, .. }
            | Self::UnknownRole { position, .. }
            | Self::NoAssistant { position }
            | Self::TooManyMessages { position, .. } => Some(*position),
        }
    }

    /// Path of the field that is wrong, if it is one field.
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::MissingField { field, .. }
            | Self::WrongType { field, .. }
            | Self::EmptyField { field, .. }
            | Self::UnknownRole { field, .. } => Some(field),
            Self::NoAssistant { .. } | Self::TooManyMessages { .. } => Some("messages"),
            _ => None,
        }
    }
}

/// A dataset being read: an iterator over checked records. It ends after the first error.
#[derive(Debug)]
pub struct Dataset<R> {
    source: RecordSource<R>,
    format: Option<Format>,
    records: usize,
    ended: bool,
}

impl Dataset<BufReader<File>> {
    /// Opens a file for reading record by record.
    ///
    /// # Errors
    /// [`DatasetError::Read`] and [`DatasetError::TooLarge`]; problems of the content come
    /// with the records.
    pub fn open(path: &Path) -> Result<Self, DatasetError> {
        let file = File::open(path)?;
        if file.metadata()?.len() > MAX_DATASET_BYTES {
            return Err(DatasetError::TooLarge {
                limit: MAX_DATASET_BYTES,
            });
        }
        Ok(Self::parse(BufReader::new(file)))
    }
}

impl<R: BufRead> Dataset<R> {
    /// Reads records from any source, for example a decrypting reader.
    pub fn parse(reader: R) -> Self {
        Self {
            source: RecordSource::new(reader),
            format: None,
            records: 0,
            ended: false,
        }
    }

    /// The format, known after the first record.
    pub fn format(&self) -> Option<Format> {
        self.format
    }

    /// Whether the records behind one with this error can still be told apart.
    pub(crate) fn can_go_on_after(&self, error: &DatasetError) -> bool {
        match error {
            DatasetError::Json { .. } => self.source.container == Some(Container::Lines),
            DatasetError::NotAnObject { .. }
            | DatasetError::UnknownFormat { .. }
            | DatasetError::Mixed { .. }
            | DatasetError::MissingField { .. }
            | DatasetError::WrongType { .. }
            | DatasetError::EmptyField { .. }
            | DatasetError::UnknownRole { .. }
            | DatasetError::NoAssistant { .. }
            | DatasetError::TooManyMessages { .. } => true,
            _ => false,
        }
    }

    pub(crate) fn next_record(&mut self) -> Result<Option<Record>, DatasetError> {
        let Some(raw) = self.source.next_raw()? else {
            return match self.records {
                0 => Err(DatasetError::Empty),
                _ => Ok(None),
            };
        };
        let position = raw.position;
        let fields = raw.object(self.source.container)?;
        if self.records == MAX_RECORDS {
            return Err(DatasetError::TooManyRecords {
                line: position.line,
                limit: MAX_RECORDS,
            });
        }
        let found = Format::of(&fields);
        let format = match (self.format, found) {
            (None, Some(found)) => *self.format.insert(found),
            (None, None) => {
                let names: Vec<_> = fields
                    .keys()
                    .take(8)
                    .map(|key| format!("`{key}`"))
                    .collect();
                return Err(DatasetError::UnknownFormat {
                    position,
                    fields: if names.is_empty() {
                        "none".into()
                    } else {
                        names.join(", ")
                    },
                });
            }
            (Some(expected), Some(found)) if expected != found => {
                return Err(DatasetError::Mixed {
                    position,
                    expected,
                    found,
                });
            }
            (Some(expected), _) => expected,
        };
        let content = FieldReader {
            raw: &raw,
            fields: &fields,
            format,
        }
        .content()?;
        self.records += 1;
        Ok(Some(Record { position, content }))
    }
}

impl<R: BufRead> Iterator for Dataset<R> {
    type Item = Result<Record, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.next_record().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

/// What a complete check of a dataset found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatasetSummary {
    /// The format of every record.
    pub format: Format,
    /// How many records there are.
    pub records: usize,
}

/// Reads a whole dataset and reports its format and size, or the first problem.
///
/// # Errors
/// Any [`DatasetError`].
pub fn check_dataset<R: BufRead>(reader: R) -> Result<DatasetSummary, DatasetError> {
    let mut dataset = Dataset::parse(reader);
    for record in &mut dataset {
        record?;
    }
    Ok(DatasetSummary {
        format: dataset.format.ok_or(DatasetError::Empty)?,
        records: dataset.records,
    })
}

/// Reads the fields of one record in the format of its file.
struct FieldReader<'a> {
    raw: &'a RawRecord,
    fields: &'a Map<String, Value>,
    format: Format,
}

impl FieldReader<'_> {
    fn content(&self) -> Result<RecordContent, DatasetError> {
        for field in self.format.required_fields() {
            if !self.fields.contains_key(*field) {
                return Err(DatasetError::MissingField {
                    position: self.raw.position,
                    field: (*field).to_owned(),
                    format: self.format,
                });
            }
        }
        Ok(match self.format {
            Format::Messages => {
                let messages = self.messages("messages")?;
                if !messages.iter().any(teaches) {
                    let position = self.position_of("messages");
                    return Err(DatasetError::NoAssistant { position });
                }
                RecordContent::Messages(messages)
            }
            Format::Preference => RecordContent::Preference {
                prompt: match &self.fields["prompt"] {
                    Value::Array(_) => self.messages("prompt")?,
                    _ => vec![ChatMessage::new("user", self.filled("prompt")?)],
                },
                chosen: self.preferred_answer("chosen")?,
                rejected: self.preferred_answer("rejected")?,
            },
            Format::Instruction => {
                let instruction = self.text("instruction")?;
                let input = match self.fields.get("input") {
                    None | Some(Value::Null) => String::new(),
                    Some(_) => self.text("input")?,
                };
                if instruction.trim().is_empty() && input.trim().is_empty() {
                    return Err(self.empty("instruction"));
                }
                RecordContent::Instruction {
                    instruction,
                    input,
                    output: self.filled("output")?,
                }
            }
            Format::PromptCompletion => RecordContent::PromptCompletion {
                prompt: self.text("prompt")?,
                completion: self.filled("completion")?,
            },
            Format::Text => RecordContent::Text(self.filled("text")?),
            Format::Classification => RecordContent::Classification {
                text: self.filled("text")?,
                label: match &self.fields["label"] {
                    Value::String(label) => label.clone(),
                    Value::Bool(label) => label.to_string(),
                    Value::Number(label) if !label.is_f64() => label.to_string(),
                    other => {
                        return Err(self.wrong_type(
                            "label",
                            "label",
                            "a string or a whole number",
                            other,
                        ));
                    }
                },
            },
        })
    }

    fn messages(&self, key: &str) -> Result<Vec<ChatMessage>, DatasetError> {
        let value = &self.fields[key];
        let Value::Array(items) = value else {
            return Err(self.wrong_type(key, key, "a list of messages", value));
        };
        let position = self.position_of(key);
        if items.len() > MAX_MESSAGES_PER_RECORD {
            return Err(DatasetError::TooManyMessages {
                position,
                found: items.len(),
                limit: MAX_MESSAGES_PER_RECORD,
            });
        }
        let mut messages = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let path = |field: &str| format!("{key}[{index}].{field}");
            let Value::Object(item) = item else {
                return Err(self.wrong_type(
                    key,
                    &format!("{key}[{index}]"),
                    "an object with role and content",
                    item,
                ));
            };
            let role = match item.get("role") {
                Some(Value::String(role)) => role.clone(),
                Some(other) => {
                    return Err(self.wrong_type(key, &path("role"), "a string", other));
                }
                None => return Err(self.missing(key, path("role"))),
            };
            if !matches!(role.as_str(), "system" | "user" | "assistant" | "tool") {
                return Err(DatasetError::UnknownRole {
                    position,
                    field: path("role"),
                    found: role,
                });
            }
            let calls_tools = item.get("tool_calls").is_some_and(|calls| !calls.is_null());
            let content = match item.get("content") {
                Some(Value::String(content)) => content.clone(),
                Some(Value::Array(parts)) => self.joined_parts(parts, key, &path("content"))?,
                None | Some(Value::Null) if calls_tools => String::new(),
                Some(other) => {
                    return Err(self.wrong_type(key, &path("content"), "a string", other));
                }
                None => return Err(self.missing(key, path("content"))),
            };
            if role == "user" && content.trim().is_empty() {
                return Err(DatasetError::EmptyField {
                    position,
                    field: path("content"),
                });
            }
            let extra = item
                .iter()
                .filter(|(key, _)| !matches!(key.as_str(), "role" | "content"))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            messages.push(ChatMessage {
                role,
                content,
                extra,
            });
        }
        Ok(messages)
    }

    /// An answer of a pair: text, or a list with one assistant message.
    fn preferred_answer(&self, key: &str) -> Result<String, DatasetError> {
        const EXPECTED: &str = "a string, or a list with one assistant message (what comes before it belongs to `prompt`)";
        let value = &self.fields[key];
        if !value.is_array() {
            return self.filled(key);
        }
        let mut messages = self.messages(key)?;
        match messages.pop() {
            Some(answer) if messages.is_empty() && answer.role == "assistant" => {
                match answer.content.trim().is_empty() {
                    true => Err(self.empty(key)),
                    false => Ok(answer.content),
                }
            }
            _ => Err(self.wrong_type(key, key, EXPECTED, value)),
        }
    }

    /// The chat completions API also writes text as a list of parts.
    fn joined_parts(&self, parts: &[Value], key: &str, path: &str) -> Result<String, DatasetError> {
        let mut text = String::new();
        for part in parts {
            match part["text"].as_str() {
                Some(piece) if part["type"] == "text" => text.push_str(piece),
                _ => {
                    return Err(self.wrong_type(key, path, "text, or a list of text parts", part));
                }
            }
        }
        Ok(text)
    }

    fn text(&self, field: &str) -> Result<String, DatasetError> {
        match &self.fields[field] {
            Value::String(text) => Ok(text.clone()),
            other => Err(self.wrong_type(field, field, "a string", other)),
        }
    }

    fn filled(&self, field: &str) -> Result<String, DatasetError> {
        let text = self.text(field)?;
        if text.trim().is_empty() {
            return Err(self.empty(field));
        }
        Ok(text)
    }

    fn missing(&self, key: &str, field: String) -> DatasetError {
        DatasetError::MissingField {
            position: self.position_of(key),
            field,
            format: self.format,
        }
    }

    fn empty(&self, field: &str) -> DatasetError {
        DatasetError::EmptyField {
            position: self.position_of(field),
            field: field.to_owned(),
        }
    }

    fn wrong_type(
        &self,
        key: &str,
        field: &str,
        expected: &'static str,
        found: &Value,
    ) -> DatasetError {
        DatasetError::WrongType {
            position: self.position_of(key),
            field: field.to_owned(),
            expected,
            found: kind_of(found),
        }
    }

    /// Where a top-level field is written, or the begin of the record.
    fn position_of(&self, key: &str) -> SourcePosition {
        let quoted = format!("\"{key}\"");
        let text = &self.raw.text;
        let mut from = 0;
        while let Some(found) = text[from..].find(&quoted).map(|at| at + from) {
            let after = text[found + quoted.len()..].trim_start();
            if after.starts_with(':') {
                return self.raw.position_at(found);
            }
            from = found + quoted.len();
        }
        self.raw.position
    }
}

/// Whether something can be learned from a message.
fn teaches(message: &ChatMessage) -> bool {
    let calls_tools = message
        .extra
        .get("tool_calls")
        .is_some_and(|calls| !calls.is_null());
    message.role == "assistant" && (calls_tools || !message.content.trim().is_empty())
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Container {
    Lines,
    Array,
}

/// The text of one record.
#[derive(Debug)]
struct RawRecord {
    position: SourcePosition,
    text: String,
}

impl RawRecord {
    fn position_at(&self, offset: usize) -> SourcePosition {
        let before = &self.text[..offset];
        match before.rfind('\n') {
            Some(last) => SourcePosition {
                line: self.position.line + before.matches('\n').count(),
                column: before[last + 1..].chars().count() + 1,
            },
            None => SourcePosition {
                line: self.position.line,
                column: self.position.column + before.chars().count(),
            },
        }
    }

    fn object(&self, container: Option<Container>) -> Result<Map<String, Value>, DatasetError> {
        match serde_json::from_str(&self.text) {
            Ok(Value::Object(fields)) => Ok(fields),
            Ok(other) => Err(DatasetError::NotAnObject {
                position: self.position,
                found: kind_of(&other),
            }),
            Err(error) => {
                let line_start = self
                    .text
                    .split_inclusive('\n')
                    .take(error.line().saturating_sub(1))
                    .map(str::len)
                    .sum::<usize>();
                let mut offset =
                    (line_start + error.column().saturating_sub(1)).min(self.text.len());
                while !self.text.is_char_boundary(offset) {
                    offset -= 1;
                }
                let full = error.to_string();
                let problem = full.split(" at line ").next().unwrap_or(&full).to_owned();
                Err(DatasetError::Json {
                    position: self.position_at(offset),
                    problem,
                    fix: self.fix_for(&error, offset, container),
                })
            }
        }
    }

    fn fix_for(
        &self,
        error: &serde_json::Error,
        offset: usize,
        container: Option<Container>,
    ) -> &'static str {
        let rest = self.text[offset..].trim_start();
        if error.is_eof() && container == Some(Container::Lines) {
            "put the whole record on one line, or make the file one JSON array"
        } else if container == Some(Container::Lines) && rest == "," {
            "remove the comma at the end: records of a .jsonl file are separated by line ends alone"
        } else if rest.starts_with('\'') {
            "use double quotes"
        } else if rest.starts_with('{') && container == Some(Container::Lines) {
            "put each record on its own line"
        } else {
            "mend the record at this place"
        }
    }
}

/// Cuts the file into records, one line or one array element at a time.
#[derive(Debug)]
struct RecordSource<R> {
    reader: R,
    container: Option<Container>,
    line: usize,
    /// Column in bytes of the next byte; only counted in arrays and before the first record.
    column: usize,
    bytes: u64,
    /// In an array: whether an element was already read.
    in_array: bool,
    finished: bool,
}

impl<R: BufRead> RecordSource<R> {
    fn new(reader: R) -> Self {
        Self {
            reader,
            container: None,
            line: 1,
            column: 1,
            bytes: 0,
            in_array: false,
            finished: false,
        }
    }

    fn next_raw(&mut self) -> Result<Option<RawRecord>, DatasetError> {
        if self.finished {
            return Ok(None);
        }
        if self.container.is_none() {
            self.begin()?;
        }
        match self.container {
            Some(Container::Lines) => self.next_line(),
            Some(Container::Array) => self.next_element(),
            None => Ok(None),
        }
    }

    /// Skips a byte order mark and leading blanks, and sees which container this is.
    fn begin(&mut self) -> Result<(), DatasetError> {
        for expected in [0xEF, 0xBB, 0xBF] {
            if self.peek()? != Some(expected) {
                break;
            }
            self.take()?;
            self.column = 1;
        }
        self.skip_blanks()?;
        self.container = match self.peek()? {
            Some(b'[') => {
                self.take()?;
                Some(Container::Array)
            }
            Some(_) => Some(Container::Lines),
            None => {
                self.finished = true;
                None
            }
        };
        Ok(())
    }

    fn next_line(&mut self) -> Result<Option<RawRecord>, DatasetError> {
        loop {
            let position = SourcePosition {
                line: self.line,
                column: self.column,
            };
            let mut line = Vec::new();
            let limit = MAX_RECORD_BYTES as u64 + 2;
            let read = std::io::Read::take(&mut self.reader, limit).read_until(b'\n', &mut line)?;
            if read == 0 {
                self.finished = true;
                return Ok(None);
            }
            self.count(read as u64)?;
            let ended = line.last() == Some(&b'\n');
            while matches!(line.last(), Some(b'\n' | b'\r')) {
                line.pop();
            }
            if line.len() > MAX_RECORD_BYTES || (!ended && read as u64 == limit) {
                return Err(DatasetError::RecordTooLarge {
                    line: self.line,
                    limit: MAX_RECORD_BYTES,
                });
            }
            self.line += 1;
            self.column = 1;
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            return into_text(line, position).map(Some);
        }
    }

    fn next_element(&mut self) -> Result<Option<RawRecord>, DatasetError> {
        self.skip_blanks()?;
        let position = SourcePosition {
            line: self.line,
            column: self.column,
        };
        let broken = |position, problem: &str| DatasetError::Json {
            position,
            problem: problem.to_owned(),
            fix: "mend the array at this place",
        };
        match self.peek()? {
            None => return Err(broken(position, "the array is not closed")),
            Some(b']') if !self.in_array => {
                self.take()?;
                return self.end_array();
            }
            Some(b']') => return Err(broken(position, "trailing comma")),
            Some(_) => {}
        }
        self.in_array = true;
        let mut element = Vec::new();
        let mut depth = 0_usize;
        let mut in_string = false;
        let mut escaped = false;
        loop {
            let Some(byte) = self.peek()? else {
                return Err(broken(
                    SourcePosition {
                        line: self.line,
                        column: self.column,
                    },
                    "the array is not closed",
                ));
            };
            if in_string {
                in_string = escaped || byte != b'"';
                escaped = !escaped && byte == b'\\';
            } else {
                match byte {
                    b'"' => in_string = true,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' if depth > 0 => depth -= 1,
                    b',' | b']' if depth == 0 => break,
                    _ => {}
                }
            }
            element.push(byte);
            if element.len() > MAX_RECORD_BYTES {
                return Err(DatasetError::RecordTooLarge {
                    line: position.line,
                    limit: MAX_RECORD_BYTES,
                });
            }
            self.take()?;
        }
        let closes = self.take()? == Some(b']');
        if closes {
            self.end_array()?;
        }
        into_text(element, position).map(Some)
    }

    /// Nothing may follow the array.
    fn end_array(&mut self) -> Result<Option<RawRecord>, DatasetError> {
        self.skip_blanks()?;
        self.finished = true;
        match self.peek()? {
            None => Ok(None),
            Some(_) => Err(DatasetError::Json {
                position: SourcePosition {
                    line: self.line,
                    column: self.column,
                },
                problem: "text after the end of the array".to_owned(),
                fix: "a file is either one array of objects or one object per line",
            }),
        }
    }

    fn skip_blanks(&mut self) -> Result<(), DatasetError> {
        while matches!(self.peek()?, Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.take()?;
        }
        Ok(())
    }

    fn peek(&mut self) -> Result<Option<u8>, DatasetError> {
        loop {
            match self.reader.fill_buf() {
                Ok(buffer) => return Ok(buffer.first().copied()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn take(&mut self) -> Result<Option<u8>, DatasetError> {
        let byte = self.peek()?;
        if let Some(byte) = byte {
            self.reader.consume(1);
            self.count(1)?;
            if byte == b'\n' {
                self.line += 1;
                self.column = 1;
            } else if byte & 0xC0 != 0x80 {
                // Continuation bytes belong to a character that was counted already.
                self.column += 1;
            }
        }
        Ok(byte)
    }

    fn count(&mut self, bytes: u64) -> Result<(), DatasetError> {
        self.bytes += bytes;
        if self.bytes > MAX_DATASET_BYTES {
            return Err(DatasetError::TooLarge {
                limit: MAX_DATASET_BYTES,
            });
        }
        Ok(())
    }
}

fn into_text(bytes: Vec<u8>, position: SourcePosition) -> Result<RawRecord, DatasetError> {
    match String::from_utf8(bytes) {
        Ok(text) => Ok(RawRecord { position, text }),
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let text = String::from_utf8_lossy(&error.as_bytes()[..valid]).into_owned();
            let record = RawRecord { position, text };
            Err(DatasetError::Encoding {
                position: record.position_at(record.text.len()),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<Record>, DatasetError> {
        Dataset::parse(text.as_bytes()).collect()
    }

    fn fails(text: &str) -> DatasetError {
        parse(text).expect_err("the dataset is bad")
    }

    fn at(line: usize, column: usize) -> Option<SourcePosition> {
        Some(SourcePosition { line, column })
    }

    #[test]
    fn every_format_is_recognised_by_its_first_record() {
        for (text, format) in [
            (
                r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
                Format::Messages,
            ),
            (r#"{"instruction":"a","output":"b"}"#, Format::Instruction),
            (
                r#"{"instruction":"a","input":null,"output":"b","id":7}"#,
                Format::Instruction,
            ),
            (
                r#"{"prompt":"a","completion":"b"}"#,
                Format::PromptCompletion,
            ),
            (r#"{"text":"a"}"#, Format::Text),
            (r#"{"text":"a","label":1}"#, Format::Classification),
        ] {
            let summary = check_dataset(text.as_bytes()).unwrap();
            assert_eq!(summary, DatasetSummary { format, records: 1 }, "{text}");
        }
    }

    #[test]
    fn byte_order_mark_crlf_and_blank_lines_are_accepted() {
        let records = parse("\u{FEFF}\r\n{\"text\":\"a\"}\r\n\r\n  \n{\"text\":\"b\"}").unwrap();
        assert_eq!(records.len(), 2);
        assert_eq!(records[0].position, SourcePosition { line: 2, column: 1 });
        assert_eq!(records[1].position, SourcePosition { line: 5, column: 1 });
        assert_eq!(records[1].content, RecordContent::Text("b".into()));
    }

    #[test]
    fn one_array_of_objects_is_read_element_by_element() {
        let records =
            parse("[\n  {\"text\": \"a ] , } \\\" é\"},\n  {\"text\": \"b\"} ]\n").unwrap();
        assert_eq!(
            records[0].content,
            RecordContent::Text("a ] , } \" é".into())
        );
        assert_eq!(records[1].position, SourcePosition { line: 3, column: 3 });
        assert!(matches!(fails("[]"), DatasetError::Empty));
        assert!(
            fails("[{\"text\":\"a\"},]")
                .to_string()
                .contains("trailing comma")
        );
        assert!(
            fails("[{\"text\":\"a\"}")
                .to_string()
                .contains("not closed")
        );
        assert_eq!(fails("[{\"text\":\"a\"}]\n{}").position(), at(2, 1));
        let error = fails("[{\"text\":\"a\"},\n {\"text\":\n  oops}]");
        assert_eq!(error.position(), at(3, 3), "{error}");
    }

    #[test]
    fn an_empty_file_is_refused() {
        for text in ["", "\u{FEFF}", "\n \r\n\t"] {
            assert!(matches!(fails(text), DatasetError::Empty));
        }
    }

    #[test]
    fn broken_json_is_located_and_explained() {
        let error = fails("{\"text\":\"a\"}\n{\"text\":\"ü\", oops}");
        assert_eq!(error.position(), at(2, 14), "{error}");
        let error = fails("{\"text\":\"a\"},\n{\"text\":\"b\"}");
        assert!(error.to_string().contains("remove the comma"), "{error}");
        let error = fails("{\n\"text\":\"a\"}\n");
        assert!(error.to_string().contains("on one line"), "{error}");
        let error = fails("{'text':'a'}\n");
        assert!(error.to_string().contains("double quotes"), "{error}");
        let error = fails("{\"text\":\"a\"}\n3\n");
        assert!(
            matches!(
                error,
                DatasetError::NotAnObject {
                    found: "a number",
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn text_that_is_not_utf8_is_located() {
        let error =
            check_dataset(&b"{\"text\":\"a\"}\n{\"text\":\"\xC3\xA9\xFF\"}"[..]).unwrap_err();
        assert!(matches!(error, DatasetError::Encoding { .. }));
        assert_eq!(error.position(), at(2, 11));
    }

    #[test]
    fn formats_may_not_be_mixed() {
        let error = fails("{\"text\":\"a\"}\n{\"prompt\":\"a\",\"completion\":\"b\"}\n");
        assert!(
            matches!(
                error,
                DatasetError::Mixed {
                    expected: Format::Text,
                    found: Format::PromptCompletion,
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(error.position(), at(2, 1));
    }

    #[test]
    fn bad_fields_are_named_with_their_place() {
        let error = fails("{\"instruction\":\"a\",\"output\":\"b\"}\n{\"instruction\":\"a\"}");
        assert_eq!(
            (error.position(), error.field()),
            (at(2, 1), Some("output"))
        );
        let error = fails("{\"prompt\":\"a\", \"completion\":7}");
        assert_eq!(
            (error.position(), error.field()),
            (at(1, 16), Some("completion"))
        );
        let error = fails("{\"prompt\":\"a\",\"completion\":\" \"}");
        assert!(matches!(error, DatasetError::EmptyField { .. }), "{error}");
        let error = fails(r#"{"conversations":[]}"#);
        assert!(error.to_string().contains("`conversations`"), "{error}");
        let error =
            fails(r#"{"messages":[{"role":"user","content":"a"},{"role":"bot","content":"b"}]}"#);
        assert_eq!(error.field(), Some("messages[1].role"));
        let error = fails(r#"{"messages":[{"role":"user"}]}"#);
        assert_eq!(error.field(), Some("messages[0].content"));
        let error = fails(r#"{"messages":[{"role":"user","content":"a"}]}"#);
        assert!(matches!(error, DatasetError::NoAssistant { .. }), "{error}");
        let error = fails(r#"{"messages":"hi"}"#);
        assert!(matches!(error, DatasetError::WrongType { .. }), "{error}");
    }

    #[test]
    fn text_parts_are_joined() {
        let records = parse(
            r#"{"messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},{"role":"assistant","content":"c"}]}"#,
        )
        .unwrap();
        let RecordContent::Messages(messages) = &records[0].content else {
            panic!()
        };
        assert_eq!(messages[0].content, "ab");
    }

    #[test]
    fn an_oversized_record_is_refused_without_reading_on() {
        let long = format!("{{\"text\":\"{}\"}}\n", "x".repeat(MAX_RECORD_BYTES));
        assert!(matches!(
            fails(&long),
            DatasetError::RecordTooLarge { line: 1, .. }
        ));
        let long = format!("[{long}]");
        assert!(matches!(
            fails(&long),
            DatasetError::RecordTooLarge { line: 1, .. }
        ));
    }
}
