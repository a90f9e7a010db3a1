//! The fee of a task, term by term, in whole neuron (`docs/protocol.md`, fee).
//!
//! `fee = tokens × passes × price × coefficient + storage fee`. Passes are counted in whole examples, so that a run that
//! `max_steps` ends early pays only for what it trains on.

use alloy_primitives::U256;
use serde::{Deserialize, Serialize};

/// What a fee is computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeeTerms {
    /// Training tokens of one epoch.
    pub tokens_per_epoch: u64,
    /// Examples of one epoch.
    pub examples: u64,
    /// Epochs asked for.
    pub epochs: u64,
    /// Steps after which training ends; `None` = no limit.
    pub max_steps: Option<u64>,
    /// Examples of one step: batch size times accumulation.
    pub examples_per_step: u64,
    /// Price of one token in neuron.
    pub price_per_token: U256,
    /// The base model's multiplier.
    pub price_coefficient: u64,
    /// The base model's flat storage fee in neuron.
    pub storage_fee: U256,
}

/// A fee with every term that made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fee {
    /// Training tokens of one epoch.
    pub tokens_per_epoch: u64,
    /// Examples of one epoch.
    pub examples: u64,
    /// Examples that the run passes over, repetitions counted.
    pub trained_examples: u64,
    /// Tokens paid for.
    pub billed_tokens: u64,
    /// Price of one token in neuron.
    pub price_per_token: U256,
    /// The base model's multiplier.
    pub price_coefficient: u64,
    /// Neuron for training.
    pub training_fee: U256,
    /// Neuron for storage.
    pub storage_fee: U256,
    /// Sum in neuron.
    pub total: U256,
}

/// Why there is no fee.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum FeeError {
    /// More than 2^256 - 1 neuron, or more than 2^64 - 1 tokens.
    #[error("the fee is too large to write down")]
    Overflow,
    /// Nothing to train on.
    #[error("the dataset has no training examples")]
    NoExamples,
}

/// Computes a fee.
///
/// # Errors
/// See [`FeeError`].
pub fn quote(terms: &FeeTerms) -> Result<Fee, FeeError> {
    if terms.examples == 0 || terms.tokens_per_epoch == 0 {
        return Err(FeeError::NoExamples);
    }
    let all = terms
        .examples
        .checked_mul(terms.epochs)
        .ok_or(FeeError::Overflow)?;
    let trained_examples = match terms.max_steps {
        Some(steps) => all.min(steps.saturating_mul(terms.examples_per_step)),
        None => all,
    };
    let exact = u128::from(terms.tokens_per_epoch)
        .checked_mul(u128::from(trained_examples))
        .ok_or(FeeError::Overflow)?
        .div_ceil(u128::from(terms.examples));
    let billed_tokens = u64::try_from(exact).map_err(|_| FeeError::Overflow)?;
    let training_fee = U256::from(billed_tokens)
        .checked_mul(terms.price_per_token)
        .and_then(|fee| fee.checked_mul(U256::from(terms.price_coefficient)))
        .ok_or(FeeError::Overflow)?;
    let total = training_fee
        .checked_add(terms.storage_fee)
        .ok_or(FeeError::Overflow)?;
    Ok(Fee {
        tokens_per_epoch: terms.tokens_per_epoch,
        examples: terms.examples,
        trained_examples,
        billed_tokens,
        price_per_token: terms.price_per_token,
        price_coefficient: terms.price_coefficient,
        training_fee,
        storage_fee: terms.storage_fee,
        total,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms() -> FeeTerms {
        FeeTerms {
            tokens_per_epoch: 10_000,
            examples: 100,
            epochs: 3,
            max_steps: None,
            examples_per_step: 4,
            price_per_token: U256::from(500_000_000_000u64),
            price_coefficient: 1,
            storage_fee: U256::from(10_000_000_000_000_000u64),
        }
    }

    /// `fine-tuning-broker.md` section 5.1, both worked examples.
    #[test]
    fn fees_equal_the_published_examples() {
        let fee = quote(&terms()).unwrap();
        assert_eq!(fee.total, U256::from(25_000_000_000_000_000u64));
        assert_eq!(fee.training_fee + fee.storage_fee, fee.total);
        let recorded = FeeTerms {
            tokens_per_epoch: 772,
            examples: 10,
            price_per_token: U256::from(800_000_000_000u64),
            ..terms()
        };
        assert_eq!(
            quote(&recorded).unwrap().total,
            U256::from(11_852_800_000_000_000u64)
        );
    }

    #[test]
    fn steps_end_the_payment_with_the_training() {
        let fee = quote(&FeeTerms {
            max_steps: Some(10),
            ..terms()
        })
        .unwrap();
        assert_eq!((fee.trained_examples, fee.billed_tokens), (40, 4_000));
        let fee = quote(&FeeTerms {
            tokens_per_epoch: 10_001,
            max_steps: Some(1),
            examples_per_step: 1,
            ..terms()
        });
        assert_eq!(fee.unwrap().billed_tokens, 101);
        let all = quote(&FeeTerms {
            max_steps: Some(u64::MAX),
            ..terms()
        })
        .unwrap();
        assert_eq!(all.billed_tokens, 30_000);
    }

    #[test]
    fn impossible_fees_are_errors() {
        assert_eq!(
            quote(&FeeTerms {
                examples: 0,
                ..terms()
            }),
            Err(FeeError::NoExamples)
        );
        assert_eq!(
            quote(&FeeTerms {
                price_per_token: U256::MAX,
                ..terms()
            }),
            Err(FeeError::Overflow)
        );
        assert_eq!(
            quote(&FeeTerms {
                storage_fee: U256::MAX,
                ..terms()
            }),
            Err(FeeError::Overflow)
        );
        assert_eq!(
            quote(&FeeTerms {
                epochs: u64::MAX,
                ..terms()
            }),
            Err(FeeError::Overflow)
        );
    }
}
