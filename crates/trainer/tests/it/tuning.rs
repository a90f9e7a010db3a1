//! Fine-tuning teaches: on a dataset written by hand, the tuned model answers trained questions
//! that the base model does not.

use std::io::{Cursor, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use zerog_model::{BaseModel, LoraAdapter};
use zerog_protocol::FileKey;
use zerog_protocol::training_params::TrainingParams;
use zerog_tokenization::{
    ChatMessage, Dataset, Format, RecordContent, RenderOptions, Tokenizer, count_tokens,
};
use zerog_trainer::{JOB_VERSION, Job, JobDirectory, greedy_answer, open_file, run, seal_file};

use crate::fixture;

const DATASETS: [(&str, Format); 3] = [
    ("datasets/lantern-house.messages.jsonl", Format::Messages),
    (
        "datasets/willow-farm.instruction.jsonl",
        Format::Instruction,
    ),
    (
        "datasets/star-island.completion.jsonl",
        Format::PromptCompletion,
    ),
];

#[test]
fn the_committed_datasets_are_whole_and_of_three_formats() {
    let tokenizer = Tokenizer::from_dir(&fixture("tiny-qwen")).unwrap();
    for (name, format) in DATASETS {
        let mut dataset = Dataset::open(&fixture(name)).unwrap();
        let count = count_tokens(&tokenizer, &mut dataset, RenderOptions::new(256)).unwrap();
        assert_eq!(dataset.format(), Some(format));
        assert!(
            (40..=200).contains(&count.examples),
            "{name}: {}",
            count.examples
        );
        assert_eq!(
            (
                count.report.truncated_examples,
                count.report.skipped_examples
            ),
            (0, 0),
            "{name}"
        );
    }
}

fn tune(dataset: &Path, params: TrainingParams) -> Arc<LoraAdapter> {
    let directory = tempfile::tempdir().unwrap();
    let directory = JobDirectory::new(directory.path());
    let key = FileKey::from_bytes([9; 32]);
    seal_file(
        &directory.dataset(),
        &mut std::fs::File::open(dataset).unwrap(),
        &key,
    )
    .unwrap();
    Job {
        version: JOB_VERSION,
        task_id: "0e1f6e0a-3f0c-4d67-9c35-5f9f5b1f7a10".into(),
        base_model: "mock-model".into(),
        base_model_dir: fixture("tiny-qwen"),
        stand_in: false,
        dataset_hash: "0x22".into(),
        params,
        checkpoint_every_steps: None,
        memory_limit_bytes: None,
        device: zerog_trainer::Device::Cpu,
    }
    .write(&directory)
    .unwrap();
    run(&directory, &key, &AtomicBool::new(false), &mut |_| Ok(())).unwrap();
    let archive = open_file(&directory.adapter(), &key).unwrap();
    let mut archive = zip::ZipArchive::new(Cursor::new(archive)).unwrap();
    let mut member = |name: &str| {
        let mut bytes = Vec::new();
        archive
            .by_name(name)
            .unwrap()
            .read_to_end(&mut bytes)
            .unwrap();
        bytes
    };
    let config = member("output_model/adapter_config.json");
    let weights = member("output_model/adapter_model.safetensors");
    let base = BaseModel::load(&fixture("tiny-qwen")).unwrap();
    Arc::new(LoraAdapter::from_bytes(&config, &weights, base.config()).unwrap())
}

/// Trains on a whole dataset and counts, over all its questions, how often the greedy answer is
/// exactly the trained one, with the adapter and without.
#[test]
fn the_tuned_model_answers_trained_questions_that_the_base_model_does_not() {
    let dataset = fixture("datasets/star-island.completion.jsonl");
    let params = TrainingParams {
        num_train_epochs: 20,
        per_device_train_batch_size: 8,
        learning_rate: 4e-3,
        lora_rank: 16,
        lora_alpha: 32.0,
        lora_dropout: 0.0,
        max_seq_length: 128,
        ..TrainingParams::default()
    };
    let adapter = tune(&dataset, params);
    let base = BaseModel::load(&fixture("tiny-qwen")).unwrap();
    let tokenizer = Tokenizer::from_dir(&fixture("tiny-qwen")).unwrap();
    let (mut asked, mut tuned_right, mut base_right) = (0, 0, 0);
    for record in Dataset::open(&dataset).unwrap() {
        let RecordContent::PromptCompletion { prompt, completion } = record.unwrap().content else {
            panic!("the dataset has prompts");
        };
        let question = [ChatMessage::new("user", &prompt)];
        let tuned = greedy_answer(&base, Some(&adapter), &tokenizer, &question, 64).unwrap();
        let before = greedy_answer(&base, None, &tokenizer, &question, 64).unwrap();
        println!("> {prompt}\n  base:  {before}\n  tuned: {tuned}");
        asked += 1;
        tuned_right += usize::from(tuned == completion);
        base_right += usize::from(before == completion);
    }
    println!("{tuned_right} and {base_right} of {asked}");
    assert!(
        base_right <= 1,
        "the base model knows {base_right} of {asked} answers already"
    );
    assert!(
        tuned_right * 10 >= asked * 8,
        "{tuned_right} of {asked} answers were learned"
    );
}
