//! The bytes that each token stands for, and which tokens are not text at all.
//!
//! A token may end inside a character, so its own text is bytes. They are what log probabilities show and what an
//! answer of a fixed form is checked against, token by token.

use std::ops::Range;

/// What a piece of a vocabulary is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PieceAlphabet {
    /// One printable character for each byte, as GPT-2 introduced it.
    ByteLevel,
    /// Text with `▁` for a space and `<0x0A>` for single bytes.
    SentencePiece,
    /// The text itself.
    Plain,
}

impl PieceAlphabet {
    /// The alphabet that a decoder, as written in `tokenizer.json`, undoes.
    pub(crate) fn of_decoder(decoder: &serde_json::Value) -> Self {
        let mut kinds = vec![decoder];
        let mut alphabet = Self::Plain;
        while let Some(value) = kinds.pop() {
            match value["type"].as_str() {
                Some("ByteLevel") => return Self::ByteLevel,
                Some("ByteFallback" | "Metaspace") => alphabet = Self::SentencePiece,
                Some("Sequence") => {
                    kinds.extend(value["decoders"].as_array().into_iter().flatten())
                }
                _ => {}
            }
        }
        alphabet
    }

    fn bytes(self, piece: &str) -> Vec<u8> {
        match self {
            Self::Plain => piece.as_bytes().to_vec(),
            Self::ByteLevel => {
                let bytes: Option<Vec<u8>> = piece.chars().map(byte_of).collect();
                bytes.unwrap_or_else(|| piece.as_bytes().to_vec())
            }
            Self::SentencePiece => {
                let byte = piece
                    .strip_prefix("<0x")
                    .and_then(|rest| rest.strip_suffix('>'))
                    .and_then(|digits| u8::from_str_radix(digits, 16).ok());
                byte.map_or_else(
                    || piece.replace('\u{2581}', " ").into_bytes(),
                    |byte| vec![byte],
                )
            }
        }
    }
}

/// The byte that a character of a byte-level vocabulary stands for: printable bytes are themselves, the others follow
/// from U+0100 on in their order.
fn byte_of(character: char) -> Option<u8> {
    let code = u32::from(character);
    let is_itself = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if let Ok(byte) = u8::try_from(code) {
        return is_itself(byte).then_some(byte);
    }
    let place = usize::try_from(code.checked_sub(0x100)?).ok()?;
    (0..=u8::MAX).filter(|byte| !is_itself(*byte)).nth(place)
}

/// Bytes of every token of a vocabulary.
#[derive(Debug)]
pub struct TokenTable {
    bytes: Vec<u8>,
    /// For each id, its bytes; empty and not text for ids without a token.
    places: Vec<Range<u32>>,
    is_text: Vec<bool>,
}

impl TokenTable {
    /// From pairs of id and piece, and triples of id, content and whether it is special, for added tokens.
    pub(crate) fn new(
        pieces: impl Iterator<Item = (u32, String)>,
        added: impl Iterator<Item = (u32, String, bool)>,
        alphabet: PieceAlphabet,
    ) -> Self {
        let mut all: Vec<(u32, Vec<u8>, bool)> = pieces
            .map(|(id, piece)| (id, alphabet.bytes(&piece), true))
            .collect();
        all.extend(added.map(|(id, content, special)| (id, content.into_bytes(), !special)));
        let count = all
            .iter()
            .map(|entry| entry.0 as usize + 1)
            .max()
            .unwrap_or(0);
        let mut table = Self {
            bytes: Vec::new(),
            places: vec![0..0; count],
            is_text: vec![false; count],
        };
        for (id, bytes, is_text) in all {
            let start = table.bytes.len() as u32;
            table.bytes.extend_from_slice(&bytes);
            table.places[id as usize] = start..table.bytes.len() as u32;
            table.is_text[id as usize] = is_text && !bytes.is_empty();
        }
        table
    }

    /// Number of ids, those without a token included.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Bytes of a token; of a special one those of its name. Empty for ids without a token.
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.places.get(id as usize).map_or(&[], |place| {
            &self.bytes[place.start as usize..place.end as usize]
        })
    }

    /// Whether a token is part of a text: it exists and is not special.
    pub fn is_text(&self, id: u32) -> bool {
        self.is_text.get(id as usize).copied().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_has_256_letters() {
        let letters: Vec<u8> = (0..0x200)
            .filter_map(char::from_u32)
            .filter_map(byte_of)
            .collect();
        let mut sorted = letters.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..=255).collect::<Vec<u8>>());
        // The two everybody knows: Ġ is a space, Ċ a line feed.
        assert_eq!((byte_of('Ġ'), byte_of('Ċ')), (Some(b' '), Some(b'\n')));
        assert_eq!(byte_of(' '), None);
    }

    #[test]
    fn pieces_of_other_vocabularies_are_understood() {
        let sequence = serde_json::json!({"type": "Sequence", "decoders": [
            {"type": "Replace"}, {"type": "ByteFallback"}, {"type": "Fuse"}]});
        let alphabet = PieceAlphabet::of_decoder(&sequence);
        assert_eq!(alphabet, PieceAlphabet::SentencePiece);
        assert_eq!(alphabet.bytes("\u{2581}the"), b" the");
        assert_eq!(alphabet.bytes("<0xE4>"), [0xE4]);
        assert_eq!(
            PieceAlphabet::of_decoder(&serde_json::Value::Null),
            PieceAlphabet::Plain
        );
    }
}
