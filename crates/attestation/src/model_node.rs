//! Whether the model of an inference provider runs inside the enclave that is verified.

use alloy_primitives::Address;
use serde_json::Value;

/// Where the model runs, as the registration's `additionalInfo` says (`TargetSeparated`, `TargetTeeAddress`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ModelNode {
    /// In the enclave that signs, or there is no model to serve.
    #[default]
    Same,
    /// On another machine, which the signing enclave only relays.
    Separated {
        /// The signer of that machine, where the registration names one.
        signer: Option<Address>,
    },
    /// The registration does not say.
    Unknown,
}

impl ModelNode {
    /// Reads `additionalInfo` of an inference registration. Text that is no JSON object says nothing.
    pub fn of_registration(additional_info: &str) -> Self {
        let Ok(Value::Object(members)) = serde_json::from_str(additional_info) else {
            return Self::Unknown;
        };
        match members.get("TargetSeparated") {
            None | Some(Value::Bool(false)) => Self::Same,
            Some(Value::Bool(true)) => Self::Separated {
                signer: members
                    .get("TargetTeeAddress")
                    .and_then(Value::as_str)
                    .and_then(|text| text.parse().ok())
                    .filter(|address: &Address| !address.is_zero()),
            },
            Some(_) => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_word_makes_the_nodes_one() {
        let signer = Address::repeat_byte(0x11);
        for (text, expected) in [
            (r#"{"TargetSeparated":false}"#.to_owned(), ModelNode::Same),
            ("{}".to_owned(), ModelNode::Same),
            (
                format!(r#"{{"TargetSeparated":true,"TargetTeeAddress":"{signer}"}}"#),
                ModelNode::Separated {
                    signer: Some(signer),
                },
            ),
            (
                r#"{"TargetSeparated":true,"TargetTeeAddress":""}"#.to_owned(),
                ModelNode::Separated { signer: None },
            ),
            (
                r#"{"TargetSeparated":"yes"}"#.to_owned(),
                ModelNode::Unknown,
            ),
            ("not JSON".to_owned(), ModelNode::Unknown),
        ] {
            assert_eq!(ModelNode::of_registration(&text), expected, "{text}");
        }
    }
}
