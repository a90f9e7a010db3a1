//! Makes the small base model of `fixtures/tiny-qwen` from nothing: the corpus, the tokenizer
//! and the weights.
//!
//! ```text
//! cargo run --release -p zerog-trainer --example base-model -- generate WORK_DIR
//! cargo run --release -p zerog-trainer --example base-model -- train WORK_DIR OUTPUT_DIR
//! cargo run --release -p zerog-trainer --example base-model -- sample MODEL_DIR "What colour is grass?"
//! ```
//!
//! `generate` writes `corpus.jsonl` for reading. `train` makes the same corpus again, learns
//! the tokenizer and the weights, and leaves model, tokenizer and `RECIPE.json` in the output
//! directory; interrupted, it goes on from its last checkpoint in the work directory.

mod corpus;
mod recipe;
mod tokenizer;
mod world;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use zerog_model::BaseModel;
use zerog_tokenization::{ChatMessage, Tokenizer};
use zerog_trainer::greedy_answer;

use crate::recipe::Recipe;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments.as_slice() {
        ["generate", work] => generate(Path::new(work)),
        ["train", work, output] => {
            recipe::train(&Recipe::default(), Path::new(work), Path::new(output))
        }
        ["sample", model, questions @ ..] if !questions.is_empty() => {
            sample(Path::new(model), questions)
        }
        _ => {
            eprintln!(
                "usage: base-model generate WORK_DIR | train WORK_DIR OUTPUT_DIR | sample MODEL_DIR QUESTION..."
            );
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn generate(work: &Path) -> Result<(), Box<dyn Error>> {
    let recipe = Recipe::default();
    std::fs::create_dir_all(work)?;
    let documents = corpus::documents(recipe.seed, recipe.documents);
    std::fs::write(work.join("corpus.jsonl"), recipe::corpus_text(&documents)?)?;
    Ok(())
}

/// Prints the model's answer to each question, each in a chat of its own.
#[allow(clippy::print_stdout)]
fn sample(directory: &Path, questions: &[&str]) -> Result<(), Box<dyn Error>> {
    let model = BaseModel::load(directory)?;
    let tokenizer = Tokenizer::from_dir(directory)?;
    for question in questions {
        let answer = greedy_answer(
            &model,
            None,
            &tokenizer,
            &[ChatMessage::new("user", *question)],
            96,
        )?;
        println!("> {question}\n{answer}\n");
    }
    Ok(())
}
