//! Packed training batches: sequences laid end to end without padding.

use crate::config::ModelConfig;
use crate::error::ModelError;
pub use zerog_kernels::cross_entropy::NO_LABEL;

/// Sequences laid end to end. Attention does not cross segments and positions restart in each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedBatch {
    /// Token ids of all segments.
    pub tokens: Vec<u32>,
    /// Lengths of the segments; they add up to the number of tokens.
    pub segment_lengths: Vec<usize>,
    /// For each token the id that should follow it, or [`NO_LABEL`].
    pub targets: Vec<i32>,
}

impl PackedBatch {
    /// Appends a sequence. `trained[i]` says whether predicting `tokens[i]` from what precedes it counts
    /// towards the loss; the first token is never predicted.
    ///
    /// # Panics
    /// If the two slices differ in length.
    pub fn push(&mut self, tokens: &[u32], trained: &[bool]) {
        assert_eq!(tokens.len(), trained.len());
        if tokens.is_empty() {
            return;
        }
        self.tokens.extend_from_slice(tokens);
        self.segment_lengths.push(tokens.len());
        for (next, trained) in tokens.iter().zip(trained).skip(1) {
            // An id above the range of `i32` cannot be in a vocabulary; the check before use refuses it.
            self.targets.push(if *trained {
                i32::try_from(*next).unwrap_or(i32::MAX)
            } else {
                NO_LABEL
            });
        }
        self.targets.push(NO_LABEL);
    }

    /// Number of tokens with a label.
    pub fn supervised_tokens(&self) -> usize {
        self.targets
            .iter()
            .filter(|target| **target != NO_LABEL)
            .count()
    }

    /// Refuses what the model cannot compute.
    pub(crate) fn check(&self, config: &ModelConfig) -> Result<(), ModelError> {
        if self.tokens.is_empty() {
            return Err(ModelError::EmptyBatch);
        }
        let segments: usize = self.segment_lengths.iter().sum();
        if segments != self.tokens.len() || self.targets.len() != self.tokens.len() {
            return Err(ModelError::BatchLengths {
                tokens: self.tokens.len(),
                targets: self.targets.len(),
                segments,
            });
        }
        check_tokens(&self.tokens, config)?;
        let vocabulary = config.vocabulary_size;
        for target in &self.targets {
            if *target != NO_LABEL
                && !usize::try_from(*target).is_ok_and(|target| target < vocabulary)
            {
                return Err(ModelError::TokenOutOfRange {
                    token: i64::from(*target),
                    vocabulary,
                });
            }
        }
        for length in &self.segment_lengths {
            if *length > config.maximum_positions {
                return Err(ModelError::SequenceTooLong {
                    tokens: *length,
                    limit: config.maximum_positions,
                });
            }
        }
        Ok(())
    }
}

pub(crate) fn check_tokens(tokens: &[u32], config: &ModelConfig) -> Result<(), ModelError> {
    check_token_range(tokens, config.vocabulary_size)
}

pub(crate) fn check_token_range(tokens: &[u32], vocabulary: usize) -> Result<(), ModelError> {
    match tokens.iter().find(|token| **token as usize >= vocabulary) {
        Some(token) => Err(ModelError::TokenOutOfRange {
            token: i64::from(*token),
            vocabulary,
        }),
        None => Ok(()),
    }
}

/// Pairs of answers to one prompt each, laid end to end: the chosen one, then the rejected one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PreferenceBatch {
    packed: PackedBatch,
}

impl PreferenceBatch {
    /// Appends a pair. Each answer comes with its prompt; as in [`PackedBatch::push`], `trained` marks the answer.
    ///
    /// # Panics
    /// If tokens and marks of an answer differ in number.
    pub fn push(&mut self, chosen: (&[u32], &[bool]), rejected: (&[u32], &[bool])) {
        if chosen.0.is_empty() || rejected.0.is_empty() {
            return;
        }
        self.packed.push(chosen.0, chosen.1);
        self.packed.push(rejected.0, rejected.1);
    }

    /// Number of pairs.
    pub fn pairs(&self) -> usize {
        self.packed.segment_lengths.len() / 2
    }

    /// Number of tokens of all answers with their prompts.
    pub fn tokens(&self) -> usize {
        self.packed.tokens.len()
    }

    pub(crate) fn packed(&self) -> &PackedBatch {
        &self.packed
    }
}
