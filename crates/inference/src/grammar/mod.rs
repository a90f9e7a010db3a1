//! Answers of a fixed form: which tokens may come next.
//!
//! A form is a row of parts: given text, one of several given texts, or a JSON object. Before every token the
//! matcher marks the tokens whose bytes can follow, and of those only the ones after which the tokens that are left
//! still suffice to end well: the answer is whole even when it meets its limit.

mod json;
mod vocabulary;

use std::sync::Arc;

use json::JsonMachine;
pub(crate) use vocabulary::Vocabulary;

/// Most tools that a call can be forced to choose from.
pub(crate) const MAX_CHOICES_OF_TOOL: usize = 128;

/// The form of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grammar {
    /// One JSON object and nothing else.
    JsonObject,
    /// One call of one of these tools, in the form of the Qwen family.
    ToolCall {
        /// Names that may be called.
        names: Vec<String>,
    },
}

impl Grammar {
    fn parts(&self) -> Vec<Part> {
        match self {
            Self::JsonObject => vec![Part::Json],
            Self::ToolCall { names } => {
                let quoted = |name: &String| {
                    format!(
                        "{}, \"arguments\": ",
                        serde_json::Value::from(name.as_str())
                    )
                    .into_bytes()
                };
                let names = names.iter().take(MAX_CHOICES_OF_TOOL).map(quoted).collect();
                vec![
                    Part::Text(b"<tool_call>\n{\"name\": ".to_vec()),
                    Part::OneOf(names),
                    Part::Json,
                    Part::Text(b"}\n</tool_call>".to_vec()),
                ]
            }
        }
    }

    /// The fewest bytes, and therefore the most tokens that the shortest answer takes.
    pub(crate) fn least_bytes(&self) -> usize {
        Matcher::new(self).bytes_to_end()
    }
}

#[derive(Debug)]
enum Part {
    Text(Vec<u8>),
    OneOf(Vec<Vec<u8>>),
    Json,
}

impl Part {
    fn start(&self) -> Progress {
        match self {
            Self::Text(_) => Progress::Text { at: 0 },
            Self::OneOf(_) => Progress::OneOf {
                at: 0,
                alive: u128::MAX,
            },
            Self::Json => Progress::Json(JsonMachine::new()),
        }
    }

    fn least_bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::OneOf(texts) => texts.iter().map(Vec::len).min().unwrap_or(0),
            Self::Json => JsonMachine::new().bytes_to_end(),
        }
    }
}

/// How far one answer has come in its form.
#[derive(Debug, Clone)]
pub(crate) struct Matcher {
    parts: Arc<[Part]>,
    at: At,
}

/// The part that does not own anything, so that trying a token out costs nothing.
#[derive(Debug, Clone, Copy)]
struct At {
    part: usize,
    progress: Progress,
}

#[derive(Debug, Clone, Copy)]
enum Progress {
    Text {
        at: usize,
    },
    /// Texts that still fit, by their number.
    OneOf {
        at: usize,
        alive: u128,
    },
    Json(JsonMachine),
    End,
}

impl Matcher {
    /// At the beginning of an answer.
    pub(crate) fn new(grammar: &Grammar) -> Self {
        let parts: Arc<[Part]> = grammar.parts().into();
        let progress = parts.first().map_or(Progress::End, Part::start);
        Self {
            parts,
            at: At { part: 0, progress },
        }
    }

    /// Whether the answer is whole.
    pub(crate) fn is_complete(&self) -> bool {
        matches!(self.at.progress, Progress::End)
    }

    /// The fewest bytes after which the answer is whole.
    pub(crate) fn bytes_to_end(&self) -> usize {
        self.rest(self.at)
    }

    /// Goes on by the bytes of a token; `false` when they cannot follow, and then nothing changes.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> bool {
        match self.follow(self.at, bytes) {
            Some(at) => {
                self.at = at;
                true
            }
            None => false,
        }
    }

    /// Marks the tokens that may come next, when `left` tokens may come after the next one. When the vocabulary
    /// cannot end the answer in time, that condition is left out.
    pub(crate) fn allow(&self, vocabulary: &Vocabulary, left: usize, allowed: &mut Vec<bool>) {
        allowed.clear();
        allowed.resize(vocabulary.len(), false);
        let budget = if self.bytes_to_end() <= left.saturating_add(1) {
            left
        } else {
            usize::MAX
        };
        let may = |bytes: &[u8]| {
            self.follow(self.at, bytes)
                .is_some_and(|at| self.rest(at) <= budget)
        };
        if let Progress::Json(machine) = self.at.progress
            && machine.is_in_text()
            && self.rest(self.at) <= budget
        {
            // Nearly the whole vocabulary is plain text; only the rest is tried byte by byte.
            vocabulary.allow_plain(allowed);
            vocabulary.allow_others(allowed, may);
        } else {
            let first = |byte| self.follow(self.at, &[byte]).is_some();
            vocabulary.allow_by_first_byte(allowed, first, may);
        }
    }

    fn follow(&self, mut at: At, bytes: &[u8]) -> Option<At> {
        for byte in bytes {
            at = self.after(at, *byte)?;
        }
        Some(at)
    }

    fn after(&self, at: At, byte: u8) -> Option<At> {
        let part = self.parts.get(at.part)?;
        let (progress, is_over) = match (part, at.progress) {
            (Part::Text(text), Progress::Text { at }) => {
                (*text.get(at)? == byte).then_some(())?;
                (Progress::Text { at: at + 1 }, at + 1 == text.len())
            }
            (Part::OneOf(texts), Progress::OneOf { at, alive }) => {
                let fits =
                    |index: &usize| alive >> index & 1 == 1 && texts[*index].get(at) == Some(&byte);
                let alive = (0..texts.len().min(MAX_CHOICES_OF_TOOL))
                    .filter(fits)
                    .fold(0_u128, |alive, index| alive | 1 << index);
                if alive == 0 {
                    return None;
                }
                // No text is the beginning of another: each ends with a mark that names cannot hold.
                let chosen = &texts[alive.trailing_zeros() as usize];
                (
                    Progress::OneOf { at: at + 1, alive },
                    at + 1 == chosen.len(),
                )
            }
            (Part::Json, Progress::Json(machine)) => {
                let machine = machine.after(byte)?;
                (Progress::Json(machine), machine.is_complete())
            }
            _ => return None,
        };
        if !is_over {
            return Some(At { progress, ..at });
        }
        let part = at.part + 1;
        let progress = self.parts.get(part).map_or(Progress::End, Part::start);
        Some(At { part, progress })
    }

    fn rest(&self, at: At) -> usize {
        let this = match (self.parts.get(at.part), at.progress) {
            (Some(Part::Text(text)), Progress::Text { at }) => text.len() - at,
            (Some(Part::OneOf(texts)), Progress::OneOf { at, alive }) => texts
                .iter()
                .take(MAX_CHOICES_OF_TOOL)
                .enumerate()
                .filter(|(index, _)| alive >> index & 1 == 1)
                .map(|(_, text)| text.len() - at)
                .min()
                .unwrap_or(0),
            (Some(Part::Json), Progress::Json(machine)) => machine.bytes_to_end(),
            _ => 0,
        };
        let later = self.parts.iter().skip(at.part + 1);
        this + later.map(Part::least_bytes).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens of one byte each, and a few longer ones.
    fn vocabulary() -> Vocabulary {
        let mut tokens: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| vec![byte]).collect();
        for longer in [
            "{\"",
            "\":",
            "</tool_call>",
            "<tool_call>",
            "true",
            "plain words",
            "\"}",
            "ab\"",
            "\u{1F30D}",
        ] {
            tokens.push(longer.as_bytes().to_vec());
        }
        tokens.push(Vec::new());
        Vocabulary::new(tokens.iter().map(|token| Some(token.as_slice())))
    }

    /// Walks at random until the form is complete or the budget is gone.
    fn walk(grammar: &Grammar, budget: usize, seed: u64) -> (String, bool) {
        let vocabulary = vocabulary();
        let mut matcher = Matcher::new(grammar);
        let (mut text, mut state) = (Vec::new(), seed);
        let mut allowed = Vec::new();
        for step in 0..budget {
            matcher.allow(&vocabulary, budget - step - 1, &mut allowed);
            let choices: Vec<usize> = (0..allowed.len()).filter(|id| allowed[*id]).collect();
            assert!(
                !choices.is_empty(),
                "stuck after {:?}",
                String::from_utf8_lossy(&text)
            );
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let token = choices[(state >> 33) as usize % choices.len()];
            let bytes = vocabulary.bytes(token as u32);
            assert!(matcher.push(bytes));
            text.extend_from_slice(bytes);
            if matcher.is_complete() {
                return (String::from_utf8(text).unwrap(), true);
            }
        }
        (String::from_utf8_lossy(&text).into_owned(), false)
    }

    #[test]
    fn whatever_is_chosen_the_answer_parses_within_its_limit() {
        for seed in 0..300 {
            let budget = 2 + (seed as usize % 60);
            let (text, whole) = walk(&Grammar::JsonObject, budget, seed);
            assert!(whole, "{text}");
            let value: serde_json::Value =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert!(value.is_object());
        }
    }

    #[test]
    fn a_forced_call_names_one_of_the_tools() {
        let names = vec!["get".to_owned(), "get_time".to_owned()];
        let grammar = Grammar::ToolCall {
            names: names.clone(),
        };
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..60 {
            let (text, whole) = walk(&grammar, 90, seed);
            assert!(whole, "{text}");
            let inner = text.strip_prefix("<tool_call>\n").unwrap();
            let inner = inner.strip_suffix("\n</tool_call>").unwrap();
            let call: serde_json::Value = serde_json::from_str(inner).unwrap();
            assert!(call["arguments"].is_object());
            seen.insert(call["name"].as_str().unwrap().to_owned());
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), names);
        assert!(grammar.least_bytes() > 30);
    }

    #[test]
    fn plain_text_and_the_slow_way_agree() {
        let vocabulary = vocabulary();
        let mut matcher = Matcher::new(&Grammar::JsonObject);
        assert!(matcher.push(b"{\"a"));
        let mut allowed = Vec::new();
        matcher.allow(&vocabulary, 100, &mut allowed);
        for (id, allowed) in allowed.iter().enumerate() {
            let bytes = vocabulary.bytes(id as u32);
            let expected = !bytes.is_empty() && matcher.clone().push(bytes);
            assert_eq!(*allowed, expected, "{:?}", String::from_utf8_lossy(bytes));
        }
        // Four more bytes close it: with three tokens left behind the next one, only the closing mark may come.
        assert_eq!(matcher.bytes_to_end(), 4);
        matcher.allow(&vocabulary, 3, &mut allowed);
        assert!(allowed[usize::from(b'"')] && !allowed[usize::from(b'b')]);
    }
}
