//! The committed base model is the one that its recipe describes, and the recipe still runs.

use serde_json::Value;
use sha2::{Digest, Sha256};
use zerog_model::BaseModel;
use zerog_tokenization::{ChatMessage, Tokenizer};
use zerog_trainer::greedy_answer;

use crate::corpus::{self, Document};
use crate::fixture;
use crate::recipe::{self, Recipe};

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn recorded() -> Value {
    serde_json::from_slice(&std::fs::read(fixture("tiny-qwen/RECIPE.json")).unwrap()).unwrap()
}

#[test]
fn recorded_hashes_seed_and_command_fit_the_committed_files() {
    let record = recorded();
    for (file, member) in [
        ("model.safetensors", "model_sha256"),
        ("tokenizer.json", "tokenizer_sha256"),
    ] {
        let bytes = std::fs::read(fixture("tiny-qwen").join(file)).unwrap();
        assert_eq!(record[member], sha256(&bytes), "{file}");
    }
    assert_eq!(
        record["recipe"],
        serde_json::to_value(Recipe::default()).unwrap()
    );
    assert!(
        record["command"]
            .as_str()
            .unwrap()
            .contains("--example base-model -- train")
    );
    let bytes: u64 = std::fs::read_dir(fixture("tiny-qwen"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(bytes <= 8 << 20, "{bytes} bytes");
}

#[test]
fn the_corpus_is_the_recorded_one() {
    let recipe = Recipe::default();
    let documents = corpus::documents(recipe.seed, recipe.documents);
    assert_eq!(
        recorded()["corpus_sha256"],
        sha256(recipe::corpus_text(&documents).unwrap().as_bytes())
    );
}

#[test]
fn every_chat_of_the_corpus_alternates_and_ends_with_an_answer() {
    for document in corpus::documents(7, 2000) {
        match document {
            Document::Text { text } => assert!(text.ends_with('.'), "{text}"),
            Document::Chat { messages } => {
                let roles: Vec<&str> = messages.iter().map(|turn| turn.role.as_str()).collect();
                let turns = roles.strip_prefix(&["system"]).unwrap_or(&roles);
                assert!(
                    turns.len() >= 2 && turns.len().is_multiple_of(2),
                    "{roles:?}"
                );
                for pair in turns.chunks(2) {
                    assert_eq!(pair, ["user", "assistant"]);
                }
                assert!(
                    messages
                        .iter()
                        .all(|turn| !turn.content.contains(['{', '}'])),
                    "{messages:?}"
                );
            }
        }
    }
}

/// Twenty steps of the real program with a smaller model: it learns, saves a model that loads
/// and answers, and gives the same bytes twice.
#[test]
fn a_small_run_of_the_recipe_learns_and_repeats() {
    let recipe = Recipe {
        documents: 400,
        vocabulary: 512,
        hidden: 32,
        layers: 2,
        query_heads: 2,
        key_value_heads: 1,
        intermediate: 64,
        steps: 20,
        documents_per_step: 8,
        learning_rate: 1e-2,
        warmup_steps: 3,
        checkpoint_every_steps: 10,
        word_steps: 4,
        word_documents: 40,
        word_documents_per_step: 4,
        ..Recipe::default()
    };
    let runs: Vec<_> = (0..2)
        .map(|_| {
            let work = tempfile::tempdir().unwrap();
            let output = tempfile::tempdir().unwrap();
            recipe::train(&recipe, work.path(), output.path()).unwrap();
            output
        })
        .collect();
    let record: Value =
        serde_json::from_slice(&std::fs::read(runs[0].path().join("RECIPE.json")).unwrap())
            .unwrap();
    let loss = record["loss_last_50_steps"].as_f64().unwrap();
    assert!(loss < (512_f64).ln() - 0.3, "mean loss {loss}");
    let bytes =
        |run: &tempfile::TempDir| std::fs::read(run.path().join("model.safetensors")).unwrap();
    assert!(bytes(&runs[0]) == bytes(&runs[1]));
    assert_eq!(record["model_sha256"], sha256(&bytes(&runs[0])));

    let model = BaseModel::load(runs[0].path()).unwrap();
    let tokenizer = Tokenizer::from_dir(runs[0].path()).unwrap();
    greedy_answer(
        &model,
        None,
        &tokenizer,
        &[ChatMessage::new("user", "Hello!")],
        8,
    )
    .unwrap();
}

#[test]
fn the_committed_model_holds_short_exchanges() {
    let model = BaseModel::load(&fixture("tiny-qwen")).unwrap();
    let tokenizer = Tokenizer::from_dir(&fixture("tiny-qwen")).unwrap();
    let ask = |question: &str| {
        greedy_answer(
            &model,
            None,
            &tokenizer,
            &[ChatMessage::new("user", question)],
            64,
        )
        .unwrap()
    };
    for (question, wanted) in [
        ("What colour is grass?", "Grass is green."),
        ("What sound does a cow make?", "moo"),
        ("What is the opposite of hot?", "cold"),
        ("What day comes after Monday?", "Tuesday"),
        ("What is your name?", "Tiny"),
        ("Thank you!", "You are welcome!"),
    ] {
        let answer = ask(question);
        assert!(answer.contains(wanted), "{question} {answer}");
    }
    let greeting = ask("Hello!");
    assert!(
        greeting.starts_with("Hello!") || greeting.starts_with("Hi!"),
        "{greeting}"
    );
}
