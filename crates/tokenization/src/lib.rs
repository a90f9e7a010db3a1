//! Tokenizer, chat template, dataset parsing, token count and loss mask.
