//! JSON, byte by byte: which byte may come next, and how few bytes would end the value.
//!
//! The machine accepts one object as RFC 8259 defines it, with what no parser is sure about left out: surrogate
//! escapes, numbers beyond double precision, deep nesting. White space is bounded, because a model that may write
//! blanks for ever sometimes does.

/// Deepest nesting.
const MAX_DEPTH: u8 = 48;
/// Most white space between two marks.
const MAX_BLANKS: u8 = 64;
/// Most digits of one part of a number, and of an exponent.
const MAX_DIGITS: (u8, u8) = (40, 2);

/// Where in an object the text stands. Small and cheap to copy: it is tried out on thousands of tokens a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct JsonMachine {
    place: Place,
    /// Open containers, innermost in the lowest bit; 1 is an object.
    containers: u64,
    depth: u8,
    blanks: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before the object.
    Start,
    /// After `{`.
    FirstKey,
    /// After `,` in an object.
    NextKey,
    /// After a key.
    Colon,
    /// Before a value that must come.
    Value,
    /// After `[`.
    FirstElement,
    /// After a value.
    AfterValue,
    Text {
        is_key: bool,
        within: Text,
    },
    Number {
        part: Number,
        digits: u8,
    },
    Word {
        rest: &'static [u8],
    },
    /// After the object.
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Text {
    Plain,
    /// After a backslash.
    Escape,
    /// In `\uXXXX`: digits still to come, and whether the first was a `d`, which begins surrogates.
    Hex {
        left: u8,
        after_d: bool,
    },
    /// Inside a character: bytes still to come and the range of the next one.
    Character {
        left: u8,
        low: u8,
        high: u8,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    Minus,
    Zero,
    Integer,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
}

impl Number {
    fn may_end(self) -> bool {
        matches!(
            self,
            Self::Zero | Self::Integer | Self::Fraction | Self::ExponentDigits
        )
    }
}

impl JsonMachine {
    /// Before the first byte of an object.
    pub(crate) fn new() -> Self {
        Self {
            place: Place::Start,
            containers: 0,
            depth: 0,
            blanks: 0,
        }
    }

    /// Whether the object is closed.
    pub(crate) fn is_complete(&self) -> bool {
        self.place == Place::End
    }

    /// Whether any text without quotation marks, backslashes and control characters may follow.
    pub(crate) fn is_in_text(&self) -> bool {
        matches!(
            self.place,
            Place::Text {
                within: Text::Plain,
                ..
            }
        )
    }

    /// The fewest bytes after which the object is closed.
    pub(crate) fn bytes_to_end(&self) -> usize {
        let depth = usize::from(self.depth);
        let text = |within| match within {
            Text::Plain => 1,
            Text::Escape => 2,
            Text::Hex { left, .. } | Text::Character { left, .. } => usize::from(left) + 1,
        };
        match self.place {
            Place::Start => 2,
            Place::FirstKey | Place::FirstElement | Place::AfterValue => depth,
            Place::NextKey => depth + 4,
            Place::Colon => depth + 2,
            Place::Value => depth + 1,
            Place::Text { is_key, within } => depth + text(within) + if is_key { 2 } else { 0 },
            Place::Number { part, .. } => depth + usize::from(!part.may_end()),
            Place::Word { rest } => depth + rest.len(),
            Place::End => 0,
        }
    }

    /// The machine after one more byte; `None` when the byte cannot follow.
    pub(crate) fn after(mut self, byte: u8) -> Option<Self> {
        if let Place::Text { is_key, within } = self.place {
            self.place = after_in_text(is_key, within, byte)?;
            return Some(self);
        }
        if let Place::Word { rest } = self.place {
            let (first, rest) = rest.split_first()?;
            if *first != byte {
                return None;
            }
            self.place = if rest.is_empty() {
                Place::AfterValue
            } else {
                Place::Word { rest }
            };
            return Some(self);
        }
        if let Place::Number { part, digits } = self.place {
            if let Some(place) = after_in_number(part, digits, byte) {
                self.place = place;
                return Some(self);
            }
            if !part.may_end() {
                return None;
            }
            self.place = Place::AfterValue;
        }
        if matches!(byte, b' ' | b'\n' | b'\t' | b'\r') {
            self.blanks += 1;
            return (self.blanks <= MAX_BLANKS && self.place != Place::End).then_some(self);
        }
        self.blanks = 0;
        match (self.place, byte) {
            (Place::Start, b'{') => self.open(true),
            (Place::FirstKey | Place::NextKey, b'"') => self.become_text(true),
            (Place::FirstKey, b'}') | (Place::FirstElement, b']') => self.close(),
            (Place::Colon, b':') => {
                self.place = Place::Value;
                Some(self)
            }
            (Place::Value | Place::FirstElement, _) => self.begin_value(byte),
            (Place::AfterValue, b',') => {
                self.place = if self.is_in_object() {
                    Place::NextKey
                } else {
                    Place::Value
                };
                Some(self)
            }
            (Place::AfterValue, b'}') if self.is_in_object() => self.close(),
            (Place::AfterValue, b']') if !self.is_in_object() => self.close(),
            _ => None,
        }
    }

    fn begin_value(mut self, byte: u8) -> Option<Self> {
        let number = |part| Place::Number { part, digits: 1 };
        self.place = match byte {
            b'{' => return self.open(true),
            b'[' => return self.open(false),
            b'"' => return self.become_text(false),
            b'-' => number(Number::Minus),
            b'0' => number(Number::Zero),
            b'1'..=b'9' => number(Number::Integer),
            b't' => Place::Word { rest: b"rue" },
            b'f' => Place::Word { rest: b"alse" },
            b'n' => Place::Word { rest: b"ull" },
            _ => return None,
        };
        Some(self)
    }

    fn become_text(mut self, is_key: bool) -> Option<Self> {
        self.place = Place::Text {
            is_key,
            within: Text::Plain,
        };
        Some(self)
    }

    fn open(mut self, is_object: bool) -> Option<Self> {
        if self.depth == MAX_DEPTH {
            return None;
        }
        self.depth += 1;
        self.containers = self.containers << 1 | u64::from(is_object);
        self.place = if is_object {
            Place::FirstKey
        } else {
            Place::FirstElement
        };
        Some(self)
    }

    fn close(mut self) -> Option<Self> {
        self.depth -= 1;
        self.containers >>= 1;
        self.place = if self.depth == 0 {
            Place::End
        } else {
            Place::AfterValue
        };
        Some(self)
    }

    fn is_in_object(&self) -> bool {
        self.containers & 1 == 1
    }
}

fn after_in_text(is_key: bool, within: Text, byte: u8) -> Option<Place> {
    let character = |left, low, high| Text::Character { left, low, high };
    let within = match within {
        Text::Plain => match byte {
            b'"' if is_key => return Some(Place::Colon),
            b'"' => return Some(Place::AfterValue),
            b'\\' => Text::Escape,
            0x20..=0x7E => Text::Plain,
            // The well-formed byte sequences of Unicode, table 3-7.
            0xC2..=0xDF => character(1, 0x80, 0xBF),
            0xE0 => character(2, 0xA0, 0xBF),
            0xED => character(2, 0x80, 0x9F),
            0xE1..=0xEF => character(2, 0x80, 0xBF),
            0xF0 => character(3, 0x90, 0xBF),
            0xF1..=0xF3 => character(3, 0x80, 0xBF),
            0xF4 => character(3, 0x80, 0x8F),
            _ => return None,
        },
        Text::Escape => match byte {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Text::Plain,
            b'u' => Text::Hex {
                left: 4,
                after_d: false,
            },
            _ => return None,
        },
        Text::Hex { left, after_d } => match byte {
            b'8'..=b'9' | b'a'..=b'f' | b'A'..=b'F' if after_d => return None,
            b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F' if left > 1 => Text::Hex {
                left: left - 1,
                after_d: left == 4 && matches!(byte, b'd' | b'D'),
            },
            b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F' => Text::Plain,
            _ => return None,
        },
        Text::Character { left, low, high } => match byte {
            byte if byte < low || byte > high => return None,
            _ if left > 1 => character(left - 1, 0x80, 0xBF),
            _ => Text::Plain,
        },
    };
    Some(Place::Text { is_key, within })
}

fn after_in_number(part: Number, digits: u8, byte: u8) -> Option<Place> {
    let first = |part| Some(Place::Number { part, digits: 1 });
    let more = |part, most| {
        (digits < most).then_some(Place::Number {
            part,
            digits: digits + 1,
        })
    };
    match (part, byte) {
        (Number::Minus, b'0') => first(Number::Zero),
        (Number::Minus, b'1'..=b'9') => first(Number::Integer),
        (Number::Integer, b'0'..=b'9') => more(Number::Integer, MAX_DIGITS.0),
        (Number::Zero | Number::Integer, b'.') => first(Number::Point),
        (Number::Point, b'0'..=b'9') => first(Number::Fraction),
        (Number::Fraction, b'0'..=b'9') => more(Number::Fraction, MAX_DIGITS.0),
        (Number::Zero | Number::Integer | Number::Fraction, b'e' | b'E') => first(Number::Exponent),
        (Number::Exponent, b'+' | b'-') => first(Number::ExponentSign),
        (Number::Exponent | Number::ExponentSign, b'0'..=b'9') => first(Number::ExponentDigits),
        (Number::ExponentDigits, b'0'..=b'9') => more(Number::ExponentDigits, MAX_DIGITS.1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &[u8]) -> Option<JsonMachine> {
        text.iter()
            .try_fold(JsonMachine::new(), |machine, byte| machine.after(*byte))
    }

    #[test]
    fn whole_objects_are_accepted_and_end_there() {
        for text in [
            "{}",
            " \n{ }",
            r#"{"a":1}"#,
            r#"{"a" : [ ] , "b":[1,-0.5e+10,true,null,"x",{"y":{}}]}"#,
            r#"{"é🌍\n\u00e9":"\"\\"}"#,
        ] {
            let machine = run(text.as_bytes()).unwrap_or_else(|| panic!("{text}"));
            assert!(machine.is_complete(), "{text}");
            assert!(machine.after(b' ').is_none(), "nothing follows the object");
            serde_json::from_str::<serde_json::Value>(text).unwrap();
        }
    }

    #[test]
    fn what_a_parser_refuses_is_refused() {
        for text in [
            "[",
            "1",
            "\"",
            "{,",
            "{1",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":,",
            "{\"a\":1,}",
            "{\"a\":01",
            "{\"a\":-,",
            "{\"a\":1.}",
            "{\"a\":1e}",
            "{\"a\":tru}",
            "{\"a\":[1}",
            "{\"a\":[1,]",
            "{\"a\":\"\n",
            "{\"a\":\"\\x",
            "{\"a\":\"\\ud8",
            "{\"a\":1e100",
            "{} ",
            "{}x",
        ] {
            assert!(run(text.as_bytes()).is_none(), "{text}");
        }
        assert!(run(b"{\"\xC0\x80").is_none(), "overlong");
        assert!(run(b"{\"\xED\xA0\x80").is_none(), "a surrogate");
        assert!(run(b"{\"\xE2\x82\"").is_none(), "half a character");
        assert!(run("{\"a\":".repeat(60).as_bytes()).is_none(), "too deep");
        assert!(run(format!("{{{}", " ".repeat(100)).as_bytes()).is_none());
    }

    /// Whatever the place, exactly the promised number of bytes closes the object, and not fewer.
    #[test]
    fn the_shortest_end_is_known_everywhere() {
        let text = r#"{"k":[-1.5e-7,"aéb\u00e9\n",{"x":null,"y":[[]]},false], "z" :{}}"#;
        for cut in 0..=text.len() {
            let machine = run(&text.as_bytes()[..cut]).unwrap();
            let promised = machine.bytes_to_end();
            let mut reached = vec![machine];
            for round in 0..=promised {
                let done = reached.iter().any(JsonMachine::is_complete);
                assert_eq!(
                    done,
                    round == promised,
                    "after {:?}",
                    &text.as_bytes()[..cut]
                );
                let mut next: Vec<JsonMachine> = Vec::new();
                for machine in &reached {
                    let all = (0..=u8::MAX).filter_map(|byte| machine.after(byte));
                    for machine in all.filter(|next| next.bytes_to_end() < machine.bytes_to_end()) {
                        if !next.contains(&machine) {
                            next.push(machine);
                        }
                    }
                }
                reached = next;
            }
        }
    }
}
