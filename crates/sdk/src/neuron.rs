//! Amounts in JSON: decimal neuron inside a string, which every language reads exactly. Members that hold one end in
//! `_neuron`.

use alloy_primitives::U256;
use serde::Serializer;

/// For `serialize_with`.
pub(crate) fn serialize<S: Serializer>(amount: &U256, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(amount)
}
