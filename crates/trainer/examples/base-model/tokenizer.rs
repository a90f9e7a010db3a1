//! Trains the byte-level BPE tokenizer of the base model and writes its files.

use std::io;
use std::path::Path;

use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::normalizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, Tokenizer};

use crate::corpus::Document;

/// How Qwen2 tokenizers cut text before merging bytes.
const QWEN2_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Turns in the markers of ChatML, as the Qwen2.5 template prints them.
pub(crate) const CHAT_TEMPLATE: &str = "{%- for message in messages %}\n    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n";

pub(crate) const END_OF_TEXT: &str = "<|endoftext|>";
pub(crate) const SPECIAL_TOKENS: [&str; 3] = [END_OF_TEXT, "<|im_start|>", "<|im_end|>"];

/// Longest context in tokens.
pub(crate) const CONTEXT: usize = 1024;

/// Learns a vocabulary of `size` tokens from the corpus and writes `tokenizer.json`,
/// `tokenizer_config.json` and `generation_config.json` into `directory`.
pub(crate) fn train(documents: &[Document], size: usize, directory: &Path) -> io::Result<()> {
    let broken =
        |error: Box<dyn std::error::Error + Send + Sync>| io::Error::other(error.to_string());
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_normalizer(Some(NFC)).map_err(broken)?;
    let split = Split::new(
        SplitPattern::Regex(QWEN2_PATTERN.into()),
        SplitDelimiterBehavior::Isolated,
        false,
    )
    .map_err(broken)?;
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
        PreTokenizerWrapper::from(split),
        PreTokenizerWrapper::from(ByteLevel::new(false, false, false)),
    ])));
    tokenizer.with_decoder(Some(ByteLevel::new(false, false, false)));

    let trainer = BpeTrainerBuilder::new()
        .vocab_size(size)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(
            SPECIAL_TOKENS
                .iter()
                .map(|token| AddedToken::from(*token, true))
                .collect(),
        )
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let texts = documents.iter().flat_map(|document| match document {
        Document::Chat { messages } => messages
            .iter()
            .flat_map(|turn| [turn.role.as_str(), turn.content.as_str()])
            .collect::<Vec<_>>(),
        Document::Text { text } => vec![text.as_str()],
    });
    let texts: Vec<&str> = texts.collect();
    tokenizer
        .train(&mut TrainerWrapper::from(trainer), texts.into_iter())
        .map_err(broken)?;

    std::fs::create_dir_all(directory)?;
    tokenizer
        .save(directory.join("tokenizer.json"), false)
        .map_err(broken)?;
    let added: serde_json::Map<String, serde_json::Value> = SPECIAL_TOKENS
        .iter()
        .enumerate()
        .map(|(id, token)| {
            let entry = serde_json::json!({"content": token, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": true});
            (id.to_string(), entry)
        })
        .collect();
    write_json(
        &directory.join("tokenizer_config.json"),
        &serde_json::json!({
            "add_bos_token": false, "add_prefix_space": false, "added_tokens_decoder": added,
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "bos_token": null,
            "chat_template": CHAT_TEMPLATE, "clean_up_tokenization_spaces": false,
            "eos_token": "<|im_end|>", "errors": "replace", "model_max_length": CONTEXT,
            "pad_token": END_OF_TEXT, "split_special_tokens": false,
            "tokenizer_class": "Qwen2Tokenizer", "unk_token": null,
        }),
    )?;
    write_json(
        &directory.join("generation_config.json"),
        &serde_json::json!({"do_sample": false, "eos_token_id": [2, 0], "pad_token_id": 0}),
    )
}

/// Pretty JSON with a final line end, written in place.
pub(crate) fn write_json(path: &Path, value: &serde_json::Value) -> io::Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
    text.push('\n');
    std::fs::write(path, text)
}
