//! Everything that is to be said about a dataset before it is paid for: its count, and each mistake and doubt with its
//! line. The count is the one of [`crate::count_tokens`]; only a dataset without mistakes has one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::BufRead;

use crate::count::TokenCount;
use crate::dataset::{Dataset, DatasetError, Format, Record};
use crate::examples::ExampleError;
use crate::samples::{RenderOptions, Renderer, Sample};
use crate::tokenizer::Tokenizer;

/// Most findings that are listed; the rest is only counted.
pub const MAX_FINDINGS: usize = 100;

/// What a finding means for a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The dataset is refused.
    Error,
    /// The dataset trains, perhaps not as meant.
    Warning,
}

impl Severity {
    /// `error` or `warning`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// One thing to know about a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Line in the file, from 1; none where it is about the whole file.
    pub line: Option<usize>,
    /// What it means for a task.
    pub severity: Severity,
    /// What it is and what to do about it.
    pub message: String,
}

/// What [`inspect`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// Record format, if one record showed it.
    pub format: Option<Format>,
    /// The count; none when there is an error.
    pub count: Option<TokenCount>,
    /// At most [`MAX_FINDINGS`], in file order.
    pub findings: Vec<Finding>,
    /// Findings beyond those.
    pub more_findings: usize,
}

impl Inspection {
    fn add(&mut self, line: Option<usize>, severity: Severity, message: String) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(Finding {
                line,
                severity,
                message,
            });
        } else {
            self.more_findings += 1;
        }
    }
}

/// Reads a whole dataset, going on after a bad record where the next one can still be found. Never fails: what is wrong
/// is among the findings.
pub fn inspect<R: BufRead>(tokenizer: &Tokenizer, reader: R, options: RenderOptions) -> Inspection {
    let mut dataset = Dataset::parse(reader);
    let mut found = Inspection {
        format: None,
        count: None,
        findings: Vec::new(),
        more_findings: 0,
    };
    let mut renderer = Renderer::new(tokenizer, options);
    let mut kept = Vec::new();
    let mut is_good = true;
    // Lines by the hash of their tokens: two records that train the same.
    let mut seen: HashMap<u64, usize> = HashMap::new();
    loop {
        match dataset.next_record() {
            Ok(Some(record)) => match look_at(&mut renderer, &record, &mut seen, &mut found) {
                Ok(samples) => kept.extend(samples.iter().map(Sample::cost)),
                Err(error) => {
                    is_good = false;
                    let line = match &error {
                        ExampleError::Dataset(error) => error.position().map(|at| at.line),
                        _ => Some(record.position.line),
                    };
                    found.add(line, Severity::Error, error.to_string());
                }
            },
            Ok(None) => break,
            // Every record before was bad and is reported; there is no more to say.
            Err(DatasetError::Empty) if !is_good => break,
            Err(error) => {
                is_good = false;
                let goes_on = dataset.can_go_on_after(&error);
                let line = error.position().map(|position| position.line);
                found.add(line, Severity::Error, error.to_string());
                if !goes_on {
                    break;
                }
            }
        }
    }
    found.format = dataset.format();
    if is_good {
        match renderer.finish(&kept) {
            Ok(finished) => found.count = Some(TokenCount::of(finished.report)),
            Err(error) => found.add(None, Severity::Error, error.to_string()),
        }
    }
    found
}

/// Renders one record and notes what is to be said about it.
fn look_at(
    renderer: &mut Renderer<'_>,
    record: &Record,
    seen: &mut HashMap<u64, usize>,
    found: &mut Inspection,
) -> Result<Vec<Sample>, ExampleError> {
    let line = record.position.line;
    let before = *renderer.report();
    let samples = renderer.render(record)?;
    let after = *renderer.report();
    let limit = renderer.max_seq_length();
    let cut = after.truncated_tokens - before.truncated_tokens;
    let mut warn = |text: String| {
        found.add(
            Some(line),
            Severity::Warning,
            format!("line {line}: {text}"),
        );
    };
    if after.dropped_examples > before.dropped_examples {
        warn(format!(
            "longer than max_seq_length {limit}, so this record is left out; raise max_seq_length or shorten it"
        ));
    } else if samples.is_empty() && cut > 0 {
        warn(format!(
            "nothing of the answer is within max_seq_length {limit}, so this record is left out; raise max_seq_length or shorten the prompt"
        ));
    } else if samples.is_empty() {
        warn("no token of this record would be learned, so it is left out".to_owned());
    } else if cut > 0 {
        warn(format!(
            "{cut} tokens beyond max_seq_length {limit} are cut off; raise max_seq_length or split the record"
        ));
    }
    if samples.is_empty() {
        return Ok(samples);
    }
    match seen.entry(hash_of(&samples)) {
        Entry::Occupied(first) => warn(format!(
            "trains the same as line {} and is paid again; remove it unless it should count twice",
            first.get()
        )),
        Entry::Vacant(place) => {
            place.insert(line);
        }
    }
    Ok(samples)
}

/// The same for samples that train the same, wherever they stand.
fn hash_of(samples: &[Sample]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for sample in samples {
        match sample {
            Sample::Language(example) => example.hash_content(&mut hasher),
            Sample::Preference(pair) => {
                pair.chosen.hash_content(&mut hasher);
                pair.rejected.hash_content(&mut hasher);
            }
            Sample::Classification(text) => (&text.token_ids, &text.label).hash(&mut hasher),
        }
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::count::count_tokens;
    use crate::tokenizer::tests::{CHATML, byte_tokenizer};

    fn look(text: &str, max_seq_length: usize) -> Inspection {
        let tokenizer = byte_tokenizer(Some(CHATML));
        inspect(
            &tokenizer,
            text.as_bytes(),
            RenderOptions::new(max_seq_length),
        )
    }

    fn lines(found: &Inspection, severity: Severity) -> Vec<Option<usize>> {
        found
            .findings
            .iter()
            .filter(|finding| finding.severity == severity)
            .map(|finding| finding.line)
            .collect()
    }

    #[test]
    fn a_good_dataset_has_the_count_that_is_billed() {
        let text = "{\"prompt\":\"Q\",\"completion\":\"A\"}\n\n{\"prompt\":\"QQ\",\"completion\":\"AAA\"}\n";
        let found = look(text, 64);
        let counted = count_tokens(
            &byte_tokenizer(Some(CHATML)),
            Dataset::parse(text.as_bytes()),
            RenderOptions::new(64),
        );
        assert_eq!(found.count, Some(counted.unwrap()));
        assert_eq!(found.findings, []);
        assert_eq!(found.format, Some(Format::PromptCompletion));
    }

    #[test]
    fn every_bad_line_is_named() {
        let good = "{\"prompt\":\"Q\",\"completion\":\"A\"}";
        let text = format!(
            "{good}\n{{\"prompt\":\"Q\"}}\nnot json\n{{\"prompt\":1,\"completion\":\"B\"}}\n[]\n{{\"text\":\"x\"}}\n"
        );
        let found = look(&text, 64);
        let expected: Vec<_> = (2..=6).map(Some).collect();
        assert_eq!(lines(&found, Severity::Error), expected);
        assert_eq!(found.count, None, "a dataset with mistakes has no price");
        assert!(
            found.findings[0].message.contains("completion"),
            "{:?}",
            found.findings[0]
        );
    }

    #[test]
    fn cut_lost_and_repeated_records_are_warned_about() {
        let long = "x".repeat(200);
        let text = format!(
            "{{\"prompt\":\"Q\",\"completion\":\"A\"}}\n{{\"prompt\":\"Q\",\"completion\":\"{long}\"}}\n{{\"prompt\":\"{long}\",\"completion\":\"A\"}}\n{{\"prompt\":\"Q\",\"completion\":\"A\"}}\n"
        );
        let found = look(&text, 80);
        assert_eq!(
            lines(&found, Severity::Warning),
            [Some(2), Some(3), Some(4)]
        );
        let count = found.count.unwrap();
        assert_eq!(count.examples, 3);
        assert_eq!(count.report.skipped_examples, 1);
    }

    #[test]
    fn nothing_at_all_is_one_finding() {
        for text in ["", "[]"] {
            let found = look(text, 64);
            assert_eq!(lines(&found, Severity::Error), [None], "{text:?}");
            assert_eq!(found.count, None);
        }
        // An array cannot be read on after its brackets are wrong, but bad elements can.
        let found = look(
            "[{\"text\":\"a\"}, {\"text\":\"\"},\n 7, {\"text\":\"b\"",
            64,
        );
        let expected = [Some(1), Some(2), Some(2)];
        assert_eq!(lines(&found, Severity::Error), expected);
    }

    #[test]
    fn a_flood_of_mistakes_is_counted() {
        let text =
            "{\"prompt\":\"Q\",\"completion\":\"A\"}\n".to_owned() + &"nonsense\n".repeat(250);
        let found = look(&text, 64);
        assert_eq!((found.findings.len(), found.more_findings), (100, 150));
    }
}
