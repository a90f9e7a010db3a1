//! The tokens of a vocabulary, sorted for the question which of them may come next.

use zerog_tokenization::TokenTable;

/// Bytes of the tokens that are text, by first byte, and those that may stand anywhere in a JSON text.
#[derive(Debug)]
pub(crate) struct Vocabulary {
    tokens: Vec<Box<[u8]>>,
    /// Ids of the tokens that begin with a byte.
    by_first_byte: Vec<Vec<u32>>,
    /// Ids of tokens that are whole characters without quotation marks, backslashes and control characters.
    plain: Vec<u32>,
    /// Ids of all other tokens that are text.
    others: Vec<u32>,
}

impl Vocabulary {
    /// Of a tokenizer; special tokens are never allowed.
    pub(crate) fn of_table(table: &TokenTable, vocabulary_size: usize) -> Self {
        Self::new((0..vocabulary_size as u32).map(|id| table.is_text(id).then(|| table.bytes(id))))
    }

    /// From the bytes of each token; `None` for tokens that are not text.
    pub(crate) fn new<'a>(tokens: impl Iterator<Item = Option<&'a [u8]>>) -> Self {
        let mut vocabulary = Self {
            tokens: Vec::new(),
            by_first_byte: vec![Vec::new(); 256],
            plain: Vec::new(),
            others: Vec::new(),
        };
        for (id, bytes) in (0..).zip(tokens) {
            let bytes = bytes.unwrap_or_default();
            vocabulary.tokens.push(bytes.into());
            let Some(first) = bytes.first() else {
                continue;
            };
            vocabulary.by_first_byte[usize::from(*first)].push(id);
            let is_plain = std::str::from_utf8(bytes).is_ok()
                && !bytes
                    .iter()
                    .any(|byte| matches!(byte, 0..0x20 | b'"' | b'\\' | 0x7F));
            if is_plain {
                vocabulary.plain.push(id);
            } else {
                vocabulary.others.push(id);
            }
        }
        vocabulary
    }

    /// Number of ids.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Bytes of a token; empty for what is not text.
    pub(crate) fn bytes(&self, id: u32) -> &[u8] {
        self.tokens.get(id as usize).map_or(&[], |bytes| bytes)
    }

    pub(crate) fn allow_plain(&self, allowed: &mut [bool]) {
        for id in &self.plain {
            allowed[*id as usize] = true;
        }
    }

    pub(crate) fn allow_others(&self, allowed: &mut [bool], may: impl Fn(&[u8]) -> bool) {
        for id in &self.others {
            allowed[*id as usize] = may(&self.tokens[*id as usize]);
        }
    }

    pub(crate) fn allow_by_first_byte(
        &self,
        allowed: &mut [bool],
        first: impl Fn(u8) -> bool,
        may: impl Fn(&[u8]) -> bool,
    ) {
        for (byte, ids) in (0..=u8::MAX).zip(&self.by_first_byte) {
            if ids.is_empty() || !first(byte) {
                continue;
            }
            for id in ids {
                allowed[*id as usize] = may(&self.tokens[*id as usize]);
            }
        }
    }
}
