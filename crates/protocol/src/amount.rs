//! Exact conversion between 0G decimals and neuron (1 0G = 10^18 neuron). No floating point anywhere.

use alloy_primitives::U256;

/// Neuron in one 0G.
pub const NEURON_PER_0G: u128 = 1_000_000_000_000_000_000;

/// Why an amount was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum AmountError {
    /// Not a plain decimal number.
    #[error("`{0}` is not an amount: write digits with at most one point, for example 1 or 0.25")]
    NotDecimal(String),
    /// More than 18 digits after the point.
    #[error(
        "`{0}` has more than 18 digits after the point; the smallest amount is 0.000000000000000001 0G"
    )]
    TooFine(String),
    /// Larger than 2^256 - 1 neuron.
    #[error("`{0}` is too large")]
    TooLarge(String),
}

/// Parses a decimal number of 0G, for example `3`, `0.1` or `.5`, to neuron.
///
/// # Errors
/// See [`AmountError`]; signs, exponents and separators are refused.
pub fn parse_0g(text: &str) -> Result<U256, AmountError> {
    let trimmed = text.trim();
    let (whole, fraction) = trimmed.split_once('.').unwrap_or((trimmed, ""));
    let digits_only = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !digits_only(whole) || !digits_only(fraction) {
        return Err(AmountError::NotDecimal(text.to_owned()));
    }
    if fraction.len() > 18 {
        return Err(AmountError::TooFine(text.to_owned()));
    }
    let too_large = || AmountError::TooLarge(text.to_owned());
    let whole = if whole.is_empty() {
        U256::ZERO
    } else {
        U256::from_str_radix(whole, 10).map_err(|_| too_large())?
    };
    let fraction = format!("{fraction:0<18}")
        .parse::<u128>()
        .map_err(|_| too_large())?;
    whole
        .checked_mul(U256::from(NEURON_PER_0G))
        .and_then(|neuron| neuron.checked_add(U256::from(fraction)))
        .ok_or_else(too_large)
}

/// Formats neuron as 0G without trailing zeros: `1`, `0.25`, `0.000000000000000001`.
pub fn format_0g(neuron: U256) -> String {
    let fixed = format_0g_fixed(neuron);
    fixed.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Formats neuron as 0G with exactly 18 decimals, as the tables of the published command line do.
pub fn format_0g_fixed(neuron: U256) -> String {
    let (whole, fraction) = neuron.div_rem(U256::from(NEURON_PER_0G));
    format!("{whole}.{:0>18}", fraction.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_round_trip_exactly() {
        for (text, neuron) in [
            ("1", NEURON_PER_0G),
            ("0.1", NEURON_PER_0G / 10),
            ("0.000000000000000001", 1),
            ("0", 0),
        ] {
            assert_eq!(parse_0g(text).unwrap(), U256::from(neuron));
            assert_eq!(format_0g(U256::from(neuron)), text);
        }
        assert_eq!(parse_0g(".5").unwrap(), U256::from(NEURON_PER_0G / 2));
        assert_eq!(
            format_0g_fixed(U256::from(500_000_000_000u64)),
            "0.000000500000000000"
        );
    }

    #[test]
    fn bad_amounts_are_refused() {
        for text in ["", ".", "-1", "+1", "1e3", "1,5", "0x1", "1.2.3", " "] {
            assert!(
                matches!(parse_0g(text), Err(AmountError::NotDecimal(_))),
                "{text:?}"
            );
        }
        assert!(matches!(
            parse_0g("0.0000000000000000001"),
            Err(AmountError::TooFine(_))
        ));
        assert!(matches!(
            parse_0g(&"9".repeat(80)),
            Err(AmountError::TooLarge(_))
        ));
    }
}
