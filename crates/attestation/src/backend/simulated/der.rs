//! The few DER forms that certificates and revocation lists need, written but never read.

/// One tag, its length and content.
pub(super) fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut encoded = vec![tag];
    let length = content.len();
    let bytes = length.to_be_bytes();
    let significant: Vec<u8> = bytes
        .iter()
        .copied()
        .skip_while(|byte| *byte == 0)
        .collect();
    if length < 128 {
        encoded.extend(significant.first().copied().or(Some(0)));
    } else {
        // The content of a certificate is far below 2^64 bytes, so one length octet holds the count.
        encoded.push(0x80 | u8::try_from(significant.len()).unwrap_or(8));
        encoded.extend_from_slice(&significant);
    }
    encoded.extend_from_slice(content);
    encoded
}

pub(super) fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    element(0x30, &parts.concat())
}

pub(super) fn set(parts: &[Vec<u8>]) -> Vec<u8> {
    element(0x31, &parts.concat())
}

/// A context-specific constructed tag.
pub(super) fn tagged(number: u8, content: &[u8]) -> Vec<u8> {
    element(0xa0 | number, content)
}

/// A small non-negative integer.
pub(super) fn integer(value: u8) -> Vec<u8> {
    if value < 128 {
        element(0x02, &[value])
    } else {
        element(0x02, &[0, value])
    }
}

pub(super) fn enumerated(value: u8) -> Vec<u8> {
    element(0x0a, &[value])
}

pub(super) fn boolean_true() -> Vec<u8> {
    element(0x01, &[0xff])
}

pub(super) fn octets(content: &[u8]) -> Vec<u8> {
    element(0x04, content)
}

/// A bit string of whole bytes.
pub(super) fn bits(content: &[u8]) -> Vec<u8> {
    element(0x03, &[&[0], content].concat())
}

pub(super) fn text(content: &str) -> Vec<u8> {
    element(0x0c, content.as_bytes())
}

/// An object identifier from its arcs.
pub(super) fn oid(arcs: &[u32]) -> Vec<u8> {
    let mut content = Vec::new();
    let (first, rest) = match arcs {
        [first, second, rest @ ..] => (first.saturating_mul(40).saturating_add(*second), rest),
        _ => (0, arcs),
    };
    for arc in std::iter::once(&first).chain(rest) {
        let mut groups = vec![(arc & 0x7f) as u8];
        let mut remaining = arc >> 7;
        while remaining > 0 {
            groups.push((remaining & 0x7f) as u8 | 0x80);
            remaining >>= 7;
        }
        content.extend(groups.iter().rev());
    }
    element(0x06, &content)
}
