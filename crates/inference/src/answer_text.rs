//! The text side of one answer: whole characters only, stop strings cut off, nothing given out that could still
//! become part of a stop string.

use zerog_tokenization::{IncrementalDecoder, Tokenizer, TokenizerError};

/// Turns token ids into text that may be sent.
#[derive(Debug)]
pub(crate) struct AnswerText {
    decoder: IncrementalDecoder,
    stop: StopMatcher,
}

/// What one more token brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Text that may be sent now; may be empty.
    pub(crate) text: String,
    /// Whether a stop string was completed. It and everything after it are not in any text.
    pub(crate) stopped: bool,
}

impl AnswerText {
    pub(crate) fn new(stop: Vec<String>) -> Self {
        Self {
            decoder: IncrementalDecoder::new(),
            stop: StopMatcher::new(stop),
        }
    }

    pub(crate) fn push(
        &mut self,
        tokenizer: &Tokenizer,
        token: u32,
    ) -> Result<Piece, TokenizerError> {
        let text = self.decoder.push(tokenizer, token)?.unwrap_or_default();
        Ok(self.stop.push(&text))
    }

    /// The text still held back, when the answer ends without a stop string.
    pub(crate) fn finish(&mut self, tokenizer: &Tokenizer) -> Result<Piece, TokenizerError> {
        let text = self.decoder.finish(tokenizer)?.unwrap_or_default();
        let mut piece = self.stop.push(&text);
        if !piece.stopped {
            piece.text.push_str(&self.stop.release());
        }
        Ok(piece)
    }
}

/// Finds the first stop string in streamed text.
#[derive(Debug)]
struct StopMatcher {
    stop: Vec<String>,
    held: String,
}

impl StopMatcher {
    fn new(stop: Vec<String>) -> Self {
        Self {
            stop,
            held: String::new(),
        }
    }

    fn push(&mut self, text: &str) -> Piece {
        if self.stop.is_empty() {
            return Piece {
                text: text.to_owned(),
                stopped: false,
            };
        }
        self.held.push_str(text);
        if let Some(start) = self
            .stop
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()))
            .min()
        {
            self.held.truncate(start);
            return Piece {
                text: self.release(),
                stopped: true,
            };
        }
        let keep = self
            .stop
            .iter()
            .map(|stop| overlap(&self.held, stop))
            .max()
            .unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Piece {
            text: std::mem::replace(&mut self.held, rest),
            stopped: false,
        }
    }

    fn release(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest end of `text` that is a proper beginning of `stop`, in bytes.
fn overlap(text: &str, stop: &str) -> usize {
    let starts = stop
        .char_indices()
        .map(|(index, _)| index)
        .filter(|index| *index > 0 && *index <= text.len());
    starts
        .filter(|length| text.as_bytes().ends_with(&stop.as_bytes()[..*length]))
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stop: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut matcher = StopMatcher::new(stop.iter().map(|text| (*text).to_owned()).collect());
        let mut sent = Vec::new();
        for piece in pieces {
            let result = matcher.push(piece);
            sent.push(result.text);
            if result.stopped {
                return (sent, true);
            }
        }
        sent.push(matcher.release());
        (sent, false)
    }

    #[test]
    fn a_stop_string_across_pieces_is_never_sent() {
        let (sent, stopped) = run(&["END"], &["ab E", "N", "D more"]);
        assert!(stopped);
        assert_eq!(sent.concat(), "ab ");
        assert_eq!(
            sent[0], "ab ",
            "what cannot belong to a stop string goes out at once"
        );
    }

    #[test]
    fn a_beginning_that_goes_on_differently_is_sent() {
        let (sent, stopped) = run(&["END"], &["E", "NE", "ND"]);
        assert!(stopped);
        assert_eq!(sent.concat(), "EN");
        assert_eq!(run(&["END"], &["EN", "x"]).0.concat(), "ENx");
        assert_eq!(
            run(&["END"], &["EN"]),
            (vec![String::new(), "EN".into()], false)
        );
    }

    #[test]
    fn the_earliest_of_several_wins_and_characters_stay_whole() {
        let (sent, stopped) = run(&["c", "b"], &["abc"]);
        assert!(stopped);
        assert_eq!(sent.concat(), "a");
        let (sent, stopped) = run(&["é!"], &["caf", "é", "s"]);
        assert!(!stopped);
        assert_eq!(sent.concat(), "cafés");
    }
}
