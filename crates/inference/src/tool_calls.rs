//! Calls of tools in an answer, in the form of the Qwen family: `<tool_call>` JSON `</tool_call>`.

use serde_json::{Value, json};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// Separates text from calls while an answer comes in.
#[derive(Debug, Default)]
pub(crate) struct ToolCallReader {
    held: String,
    is_in_call: bool,
    calls: usize,
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Part {
    /// Text to show.
    Text(String),
    /// A whole call.
    Call(ToolCall),
}

/// One call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ToolCall {
    /// Number within the answer.
    pub(crate) index: usize,
    /// Name of the tool.
    pub(crate) name: String,
    /// Arguments, as JSON text.
    pub(crate) arguments: String,
}

impl ToolCall {
    /// As a message carries it; a chunk of a stream also says which call it is.
    pub(crate) fn to_json(&self, with_index: bool) -> Value {
        let id = format!("call_{}", uuid::Uuid::new_v4().simple());
        let mut call = json!({
            "id": id, "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        });
        if let (true, Some(members)) = (with_index, call.as_object_mut()) {
            members.insert("index".into(), self.index.into());
        }
        call
    }
}

impl ToolCallReader {
    /// Calls that were read so far.
    pub(crate) fn calls(&self) -> usize {
        self.calls
    }

    /// Adds text; returns what is complete.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        loop {
            let mark = if self.is_in_call { CLOSE } else { OPEN };
            let Some(start) = self.held.find(mark) else {
                break;
            };
            let rest = self.held.split_off(start + mark.len());
            self.held.truncate(start);
            let before = std::mem::replace(&mut self.held, rest);
            if self.is_in_call {
                parts.push(self.read_call(&before, CLOSE));
            } else {
                add_text(&mut parts, before.trim_end());
            }
            self.is_in_call = !self.is_in_call;
        }
        if !self.is_in_call {
            let keep = self.held.split_off(sendable(&self.held));
            add_text(&mut parts, &std::mem::replace(&mut self.held, keep));
        }
        parts
    }

    /// What is left at the end. A call whose end is missing counts when it is whole otherwise: the model stopped at its
    /// end, or was stopped there.
    pub(crate) fn finish(&mut self) -> Vec<Part> {
        let rest = std::mem::take(&mut self.held);
        let mut parts = Vec::new();
        if self.is_in_call {
            parts.push(self.read_call(&rest, ""));
        } else {
            add_text(&mut parts, &rest);
        }
        self.is_in_call = false;
        parts
    }

    /// A call, or the text as it was when it is none: nothing that the model said is lost.
    fn read_call(&mut self, text: &str, end: &str) -> Part {
        let read = || {
            let value: Value = serde_json::from_str(text.trim()).ok()?;
            let name = value["name"].as_str()?.to_owned();
            let arguments = match &value["arguments"] {
                Value::Null => json!({}).to_string(),
                arguments @ Value::Object(_) => arguments.to_string(),
                Value::String(text) => text.clone(),
                _ => return None,
            };
            Some((name, arguments))
        };
        match read() {
            Some((name, arguments)) => {
                let index = self.calls;
                self.calls += 1;
                Part::Call(ToolCall {
                    index,
                    name,
                    arguments,
                })
            }
            None => Part::Text(format!("{OPEN}{text}{end}")),
        }
    }
}

fn add_text(parts: &mut Vec<Part>, text: &str) {
    if !text.is_empty() {
        parts.push(Part::Text(text.to_owned()));
    }
}

/// Bytes of `text` that can neither belong to the mark of a call nor be the blanks in front of one.
fn sendable(text: &str) -> usize {
    let overlap = (1..OPEN.len().min(text.len() + 1))
        .rev()
        .find(|length| text.as_bytes().ends_with(&OPEN.as_bytes()[..*length]))
        .unwrap_or(0);
    text[..text.len() - overlap].trim_end().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a text in pieces of `step` characters; neighbouring texts are joined.
    fn read(text: &str, step: usize) -> (String, Vec<(String, String)>) {
        let mut reader = ToolCallReader::default();
        let characters: Vec<char> = text.chars().collect();
        let mut parts = Vec::new();
        for piece in characters.chunks(step) {
            parts.extend(reader.push(&piece.iter().collect::<String>()));
        }
        parts.extend(reader.finish());
        let (mut said, mut calls) = (String::new(), Vec::new());
        for part in parts {
            match part {
                Part::Text(text) => said.push_str(&text),
                Part::Call(call) => {
                    assert_eq!(call.index, calls.len());
                    calls.push((call.name, call.arguments));
                }
            }
        }
        (said, calls)
    }

    #[test]
    fn calls_and_text_come_apart_however_they_arrive() {
        let text = "Let me see < 3 .\n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": \"é\"}}\n</tool_call>\n\
                    <tool_call>{\"name\": \"now\"}</tool_call>";
        for step in [1, 2, 3, 7, 500] {
            let (said, calls) = read(text, step);
            assert_eq!(said, "Let me see < 3 .", "{step}");
            let expected = [
                ("add".to_owned(), "{\"a\":1,\"b\":\"é\"}".to_owned()),
                ("now".to_owned(), "{}".to_owned()),
            ];
            assert_eq!(calls, expected, "{step}");
        }
    }

    #[test]
    fn what_is_no_call_stays_text() {
        for text in [
            "plain  ",
            "<tool_call>{broken</tool_call>",
            "<tool_call>[1]</tool_call> after",
            "a <tool_cal",
        ] {
            assert_eq!(read(text, 2), (text.to_owned(), Vec::new()), "{text}");
        }
    }

    #[test]
    fn the_last_call_may_lack_its_end() {
        let (said, calls) = read("<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n", 4);
        assert_eq!((said.as_str(), calls.len()), ("", 1));
        let (said, calls) = read("<tool_call>\n{\"name\": \"f\", \"argu", 4);
        assert_eq!(
            (said.as_str(), calls.len()),
            ("<tool_call>\n{\"name\": \"f\", \"argu", 0)
        );
    }
}
