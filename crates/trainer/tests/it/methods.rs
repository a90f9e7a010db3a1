//! What a job can learn: with a validation set, from preferences, and the class of texts.

use serde_json::Value;
use zerog_model::{ClassifierBase, LoraAdapter};
use zerog_protocol::training_params::{ExcessLengthStrategy, TrainingMethod, TrainingParams};
use zerog_trainer::{Canary, Progress, open_file, seal_file};

use crate::workshop::{
    Case, Outcome, QUESTIONS, classification, dora, key, language, params, preference, run_job,
};

/// Steps and losses of the measurements, with whether each was the best.
fn measurements(records: &[Progress]) -> Vec<(u64, f64, bool)> {
    records
        .iter()
        .filter_map(|record| match record {
            Progress::Validated {
                step,
                eval_loss,
                is_best,
                ..
            } => Some((*step, *eval_loss, *is_best)),
            _ => None,
        })
        .collect()
}

fn weights(outcome: &crate::workshop::Outcome) -> Vec<u8> {
    outcome.member("adapter_model.safetensors")
}

#[test]
fn a_part_of_the_records_is_measured_and_not_trained() {
    let outcome = language().run();
    assert!(
        matches!(
            outcome.records[0],
            Progress::Started {
                examples: 6,
                validation_examples: 2,
                total_steps: 12,
                ..
            }
        ),
        "{:?}",
        outcome.records[0]
    );
    let measured = measurements(&outcome.records);
    let steps: Vec<u64> = measured.iter().map(|(step, ..)| *step).collect();
    assert_eq!(steps, [2, 4, 6, 8, 10, 12]);
    assert!(measured[0].2);
    let best = measured
        .iter()
        .fold(f64::INFINITY, |best, (_, loss, _)| best.min(*loss));
    assert_eq!(outcome.manifest.eval_loss, Some(best));
    assert_eq!(outcome.manifest.examples, 6);
    // Measuring changes nothing of what is learned.
    let unmeasured = Case {
        params: TrainingParams {
            eval_steps: 12,
            load_best_model_at_end: false,
            ..language().params
        },
        ..language()
    };
    let last = Case {
        params: TrainingParams {
            load_best_model_at_end: false,
            ..language().params
        },
        ..language()
    };
    assert!(weights(&unmeasured.run()) == weights(&last.run()));
}

/// Another dataset is measured, all records are trained, and what is measured decides nothing of what is learned.
#[test]
fn another_dataset_is_measured() {
    let case = |validation_dataset| Case {
        params: TrainingParams {
            validation_split: 0.0,
            validation_dataset,
            load_best_model_at_end: false,
            ..language().params
        },
        ..language()
    };
    let run = |validation: &str| {
        let folder = tempfile::tempdir().unwrap();
        let directory = case(Some([1; 32].into())).prepare(folder.path());
        seal_file(&directory.validation(), &mut validation.as_bytes(), &key()).unwrap();
        let (outcome, records) = run_job(&directory, None);
        outcome.map(|manifest| {
            let archive = open_file(&directory.adapter(), &key()).unwrap();
            let outcome = Outcome {
                manifest,
                records,
                archive,
            };
            (measurements(&outcome.records), weights(&outcome), outcome)
        })
    };
    let seen = "{\"prompt\":\"Who is the captain?\",\"completion\":\"Ines Bell.\"}";
    let (on_seen, weights_of_one, outcome) = run(seen).unwrap();
    assert!(
        matches!(
            outcome.records[0],
            Progress::Started {
                examples: 8,
                validation_examples: 1,
                ..
            }
        ),
        "{:?}",
        outcome.records[0]
    );
    let strange = "{\"prompt\":\"zqx?\",\"completion\":\"Wvk, jjj.\"}";
    let (on_strange, weights_of_other, _) = run(strange).unwrap();
    let last = |measured: &[(u64, f64, bool)]| measured.last().unwrap().1;
    assert!(last(&on_seen) < on_seen[0].1 && last(&on_seen) < last(&on_strange));
    assert!(weights_of_one == weights_of_other && weights_of_one == weights(&case(None).run()));

    let error = run("{\"prompt\":\"only\"}").err().unwrap();
    assert_eq!(error.code(), "bad_dataset");
    assert!(
        error
            .to_string()
            .starts_with("the validation dataset: line 1"),
        "{error}"
    );
}

/// A run that learns its few records by heart gets worse on the others: it ends early, and the adapter is the one that
/// a run of so many steps would have given.
#[test]
fn a_run_that_gets_worse_ends_early_and_delivers_its_best_state() {
    let case = |max_steps, load_best_model_at_end| Case {
        params: TrainingParams {
            num_train_epochs: 60,
            learning_rate: 1e-2,
            lora_dropout: 0.0,
            eval_steps: 2,
            max_steps,
            early_stopping_patience: 3,
            load_best_model_at_end,
            lr_scheduler_type: zerog_protocol::training_params::LearningRateSchedule::Constant,
            warmup_ratio: 0.0,
            ..language().params
        },
        ..language()
    };
    let outcome = case(-1, true).run();
    let measured = measurements(&outcome.records);
    let (last, last_loss, _) = measured.last().copied().unwrap();
    assert!(last < 180, "{measured:?}");
    let (best, best_loss, _) = measured
        .iter()
        .rev()
        .find(|(.., is_best)| *is_best)
        .copied()
        .unwrap();
    assert_eq!(last - best, 6, "{measured:?}");
    assert!(best_loss < last_loss);
    assert!(outcome.records.contains(&Progress::StoppedEarly {
        step: last,
        total: 180
    }));
    assert!(outcome.records.contains(&Progress::BestLoaded {
        step: best,
        eval_loss: best_loss
    }));
    assert_eq!(
        (outcome.manifest.steps, outcome.manifest.best_step),
        (last, Some(best))
    );
    let best_alone = case(best as i64, true).run();
    assert!(weights(&best_alone) == weights(&outcome));
    assert!(weights(&case(-1, false).run()) != weights(&outcome));
}

#[test]
fn measuring_may_not_cost_more_than_the_training() {
    let case = Case {
        params: TrainingParams {
            eval_steps: 1,
            per_device_train_batch_size: 1,
            validation_split: 0.5,
            ..params()
        },
        ..language()
    };
    let folder = tempfile::tempdir().unwrap();
    let error = run_job(&case.prepare(folder.path()), None).0.unwrap_err();
    assert_eq!(error.code(), "bad_params");
    assert!(error.to_string().contains("raise eval_steps"), "{error}");
}

#[test]
fn long_records_are_treated_as_asked() {
    let started = |strategy| {
        let case = Case {
            params: TrainingParams {
                excess_length_strategy: strategy,
                max_seq_length: 24,
                validation_split: 0.0,
                ..language().params
            },
            dataset: format!(
                "{}\n{{\"prompt\":\"Tell me.\",\"completion\":\"{}\"}}",
                language().dataset,
                "It goes on and on. ".repeat(6)
            ),
            ..language()
        };
        let folder = tempfile::tempdir().unwrap();
        let (outcome, records) = run_job(&case.prepare(folder.path()), None);
        outcome.map(|manifest| (manifest.examples, records[0].clone()))
    };
    let counts = |record: &Progress| match record {
        Progress::Started {
            truncated_examples,
            split_examples,
            dropped_examples,
            ..
        } => [*truncated_examples, *split_examples, *dropped_examples],
        other => panic!("{other:?}"),
    };
    let (cut, record) = started(ExcessLengthStrategy::Truncate).unwrap();
    let [truncated, ..] = counts(&record);
    assert!(truncated >= 1 && counts(&record)[1..] == [0, 0]);
    let (split, record) = started(ExcessLengthStrategy::Split).unwrap();
    assert_eq!(counts(&record), [0, truncated, 0]);
    assert!(split > cut);
    let (dropped, record) = started(ExcessLengthStrategy::Drop).unwrap();
    assert_eq!(counts(&record), [0, 0, truncated]);
    assert!(dropped < cut);
    let error = started(ExcessLengthStrategy::Raise).unwrap_err();
    assert_eq!(error.code(), "bad_dataset");
    assert!(
        error.to_string().contains("excess_length_strategy"),
        "{error}"
    );
}

#[test]
fn preferences_are_learned_with_a_growing_margin() {
    let outcome = preference().run();
    let steps: Vec<(f64, f64)> = outcome
        .records
        .iter()
        .filter_map(|record| match record {
            Progress::Step { loss, metrics, .. } => Some((*loss, metrics.reward_margin.unwrap())),
            _ => None,
        })
        .collect();
    // Before the first update the policy is the reference.
    assert!(
        (steps[0].0 - std::f64::consts::LN_2).abs() < 1e-6,
        "{steps:?}"
    );
    let Some(Progress::Evaluated {
        base_loss,
        tuned_loss,
        metrics,
        ..
    }) = outcome.records.iter().rev().nth(1)
    else {
        panic!("{:?}", outcome.records);
    };
    assert_eq!(*base_loss, std::f64::consts::LN_2);
    assert!(*tuned_loss < 0.6, "{tuned_loss}");
    assert!(metrics.reward_margin.unwrap() > 0.1);
    assert!(metrics.reward_accuracy.unwrap() > 0.8);
    assert!(!measurements(&outcome.records).is_empty());
    assert_eq!(outcome.manifest.params.training_method, TrainingMethod::Dpo);
    let harder = Case {
        params: TrainingParams {
            dpo_beta: 2.0,
            ..preference().params
        },
        ..preference()
    };
    assert!(weights(&harder.run()) != weights(&outcome));
}

#[test]
fn a_classifier_is_trained_with_its_head_and_scored() {
    let folder = tempfile::tempdir().unwrap();
    let case = classification(folder.path());
    let outcome = case.run();
    assert_eq!(outcome.manifest.labels, ["metal", "skin"]);
    let Some(Progress::Evaluated {
        base_loss,
        tuned_loss,
        metrics,
        ..
    }) = outcome.records.iter().rev().nth(1)
    else {
        panic!("{:?}", outcome.records);
    };
    assert!(tuned_loss < base_loss);
    assert_eq!((metrics.accuracy, metrics.f1), (Some(1.0), Some(1.0)));
    let validated = outcome
        .records
        .iter()
        .rev()
        .find_map(|record| match record {
            Progress::Validated { metrics, .. } => Some(*metrics),
            _ => None,
        });
    assert!(validated.unwrap().f1.is_some());

    // The archive is a PEFT adapter with its head, and the probes are reproduced from it.
    let settings: Value = serde_json::from_slice(&outcome.member("adapter_config.json")).unwrap();
    assert_eq!(settings["task_type"], "SEQ_CLS");
    assert_eq!(
        settings["modules_to_save"],
        serde_json::json!(["pre_classifier", "classifier"])
    );
    let base = ClassifierBase::load(&case.base_model).unwrap();
    let adapter = LoraAdapter::classifier_from_bytes(
        &outcome.member("adapter_config.json"),
        &weights(&outcome),
        base.config(),
    )
    .unwrap();
    assert_eq!(adapter.classes(), Some(2));
    let canary: Canary = serde_json::from_slice(&outcome.member("canary.json")).unwrap();
    assert!(canary.largest_effect() > 0.0);
    for probe in &canary.probes {
        let logits = base.classify(&adapter, &probe.tokens).unwrap();
        for (logit, recorded) in logits.iter().zip(&probe.adapter_logits) {
            assert!((logit - recorded).abs() < 0.05, "{logit} {recorded}");
        }
    }
    let card = String::from_utf8(outcome.member("README.md")).unwrap();
    assert!(
        card.contains("text-classification") && card.contains("[\"metal\",\"skin\"]"),
        "{card}"
    );
}

#[test]
fn a_dataset_of_another_kind_is_refused_with_what_is_needed() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |case: Case| {
        let folder = tempfile::tempdir().unwrap();
        run_job(&case.prepare(folder.path()), None).0.unwrap_err()
    };
    let classifier = || classification(folder.path());
    for (case, code, text) in [
        (
            Case {
                dataset: language().dataset,
                ..classifier()
            },
            "bad_dataset",
            "`text` and `label`",
        ),
        (
            Case {
                dataset: language().dataset,
                ..preference()
            },
            "bad_dataset",
            "`rejected`",
        ),
        (
            Case {
                dataset: preference().dataset,
                ..language()
            },
            "bad_dataset",
            "\"dpo\"",
        ),
        (
            Case {
                params: preference().params,
                ..classifier()
            },
            "bad_params",
            "dpo",
        ),
    ] {
        let error = refused(case);
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(text), "{error}");
    }
}

/// Runs a case with an archive laid beside its dataset; the loss of its first step and the whole outcome.
fn continue_from(case: &Case, archive: &[u8]) -> Result<(f64, Vec<u8>), zerog_trainer::TrainError> {
    let folder = tempfile::tempdir().unwrap();
    let directory = case.prepare(folder.path());
    zerog_trainer::seal_file(&directory.initial(), &mut &archive[..], &key()).unwrap();
    let (outcome, records) = run_job(&directory, None);
    outcome?;
    let first = records.iter().find_map(|record| match record {
        Progress::Step { step: 1, loss, .. } => Some(*loss),
        _ => None,
    });
    let archive = zerog_trainer::open_file(&directory.adapter(), &key()).unwrap();
    Ok((first.unwrap(), archive))
}

#[test]
fn an_adapter_is_trained_further_from_where_it_ended() {
    // Without dropout and noise the loss of a step is the model's own.
    let quiet = |params: TrainingParams| TrainingParams {
        lora_dropout: 0.0,
        neftune_noise_alpha: 0.0,
        validation_split: 0.0,
        per_device_train_batch_size: QUESTIONS.len() as u32,
        ..params
    };
    let first = Case {
        params: quiet(dora().params),
        ..language()
    };
    let earlier = first.run();
    let again = Case {
        params: TrainingParams {
            continue_from: Some("6b607314-88b0-4fef-91e7-43227a54de57".parse().unwrap()),
            gradient_accumulation_steps: 1,
            ..first.params.clone()
        },
        ..language()
    };
    let (loss, archive) = continue_from(&again, &earlier.archive).unwrap();
    let Some(Progress::Evaluated {
        base_loss,
        tuned_loss,
        ..
    }) = earlier
        .records
        .iter()
        .find(|record| matches!(record, Progress::Evaluated { .. }))
    else {
        panic!("{:?}", earlier.records)
    };
    assert!(
        (loss - tuned_loss).abs() < 1e-4 && loss < base_loss * 0.9,
        "{loss} goes on from {tuned_loss}, not from {base_loss}"
    );
    assert_ne!(archive, earlier.archive);

    // Preferences start from what was learned before, too.
    let preferred = Case {
        params: TrainingParams {
            continue_from: again.params.continue_from,
            use_dora: true,
            use_rslora: true,
            ..preference().params
        },
        ..preference()
    };
    continue_from(&preferred, &earlier.archive).unwrap();

    let other_rank = Case {
        params: TrainingParams {
            lora_rank: again.params.lora_rank * 2,
            ..again.params.clone()
        },
        ..language()
    };
    let refused = continue_from(&other_rank, &earlier.archive).unwrap_err();
    assert_eq!(refused.code(), "bad_model", "{refused}");
    let refused = continue_from(&again, b"not a zip").unwrap_err();
    assert_eq!(refused.code(), "bad_params", "{refused}");
    let folder = tempfile::tempdir().unwrap();
    let classifier = Case {
        params: TrainingParams {
            continue_from: again.params.continue_from,
            ..classification(folder.path()).params
        },
        ..classification(folder.path())
    };
    let refused = continue_from(&classifier, &earlier.archive).unwrap_err();
    assert_eq!(refused.code(), "bad_params", "{refused}");
}
