//! The number that a task is priced by: training tokens of one epoch, and how many of
//! them a run with `max_steps` really passes over.

use crate::dataset::{DatasetError, Record};
use crate::examples::ExampleError;
use crate::samples::{RenderOptions, RenderReport, Renderer};
use crate::tokenizer::Tokenizer;

/// Tokens of a dataset as they are trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenCount {
    /// Training tokens of one epoch: chat template included, cut at `max_seq_length`, without the records set aside
    /// for validation. Both answers of a pair count, each with its prompt.
    pub tokens: u64,
    /// Examples of one epoch.
    pub examples: u64,
    /// How the records fared.
    pub report: RenderReport,
}

impl TokenCount {
    pub(crate) fn of(report: RenderReport) -> Self {
        Self {
            tokens: report.tokens,
            examples: report.examples as u64,
            report,
        }
    }
}

/// Counts a dataset without keeping its examples in memory.
///
/// # Errors
/// As [`crate::render_dataset`].
pub fn count_tokens<I>(
    tokenizer: &Tokenizer,
    records: I,
    options: RenderOptions,
) -> Result<TokenCount, ExampleError>
where
    I: IntoIterator<Item = Result<Record, DatasetError>>,
{
    let mut renderer = Renderer::new(tokenizer, options);
    let mut kept = Vec::new();
    for record in records {
        for sample in renderer.render(&record?)? {
            kept.push(sample.cost());
        }
    }
    Ok(TokenCount::of(renderer.finish(&kept)?.report))
}

/// How many examples a run passes over, repetitions counted: all epochs, or fewer when
/// `max_steps` ends the run earlier. `max_steps` of zero or less means no such limit.
/// `batch` and `accumulation` are examples per step.
pub fn trained_examples(
    examples: u64,
    epochs: u64,
    max_steps: i64,
    batch: u64,
    accumulation: u64,
) -> u64 {
    let all = examples.saturating_mul(epochs);
    match u64::try_from(max_steps) {
        Ok(steps) if steps > 0 => all.min(steps.saturating_mul(batch).saturating_mul(accumulation)),
        _ => all,
    }
}

/// Tokens that are paid for: `tokens × trained / examples`, rounded up; zero examples
/// have zero tokens. `trained` is what [`trained_examples`] returns.
pub fn billed_tokens(tokens: u64, examples: u64, trained: u64) -> u64 {
    if examples == 0 {
        return 0;
    }
    let exact = (u128::from(tokens) * u128::from(trained)).div_ceil(u128::from(examples));
    u64::try_from(exact).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Dataset;
    use crate::samples::render_dataset;
    use crate::tokenizer::tests::{CHATML, byte_tokenizer};

    #[test]
    fn the_count_is_the_sum_of_what_is_trained() {
        let text =
            "{\"prompt\":\"Q\",\"completion\":\"A\"}\n{\"prompt\":\"QQ\",\"completion\":\"AAA\"}\n";
        let tokenizer = byte_tokenizer(Some(CHATML));
        let options = RenderOptions::new(64);
        let count = count_tokens(&tokenizer, Dataset::parse(text.as_bytes()), options).unwrap();
        let rendered =
            render_dataset(&tokenizer, Dataset::parse(text.as_bytes()), options).unwrap();
        let sum: usize = rendered
            .training
            .iter()
            .map(|sample| sample.cost().tokens)
            .sum();
        assert_eq!((count.tokens, count.examples), (sum as u64, 2));
        assert_eq!(count.report, rendered.report);
    }

    #[test]
    fn passes_end_with_the_epochs_or_the_steps() {
        assert_eq!(trained_examples(100, 3, -1, 4, 1), 300);
        assert_eq!(trained_examples(100, 3, 10, 4, 2), 80);
        assert_eq!(trained_examples(100, 3, 1000, 4, 2), 300);
        assert_eq!(billed_tokens(1000, 100, 300), 3000);
        assert_eq!(billed_tokens(1001, 100, 1), 11);
        assert_eq!(billed_tokens(0, 0, 5), 0);
        assert_eq!(billed_tokens(u64::MAX, 1, u64::MAX), u64::MAX);
    }
}
