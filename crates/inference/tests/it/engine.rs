//! Scheduling: nobody's answer depends on who else is there, and places come back.

use zerog_inference::engine::EngineConfig;
use zerog_inference::{
    EngineError, FinishReason, GenerateRequest, GenerationEvent, SamplingParams,
};

use crate::world::{END_OF_TURN, answer, config, endless, load, start, until};

#[tokio::test]
async fn an_answer_is_the_same_alone_and_in_company() {
    let engine = start(config());
    load(&engine, "ft-a", 1).await;
    load(&engine, "ft-b", 2).await;
    let adapters = [None, Some("ft-a"), Some("ft-b")];
    let prompts = [
        "short",
        "a prompt that takes several pieces of prefill",
        "x",
        "another one of middle length",
    ];
    let requests: Vec<GenerateRequest> = prompts
        .iter()
        .flat_map(|prompt| adapters.map(|adapter| endless(prompt, adapter, 40)))
        .collect();
    let mut alone = Vec::new();
    for request in &requests {
        alone.push(answer(&engine, request.clone()).await);
    }
    let together = requests
        .iter()
        .map(|request| engine.generate(request.clone()).unwrap())
        .collect::<Vec<_>>();
    for (alone, generation) in alone.iter().zip(together) {
        let together = generation.collect().await.unwrap();
        assert_eq!(together.text, alone.text);
        assert_eq!(together.usage.total_tokens, alone.usage.total_tokens);
    }
    assert!(
        alone
            .iter()
            .all(|completion| completion.usage.completion_tokens == 40)
    );
    assert_ne!(
        alone[0].text, alone[1].text,
        "an adapter changes the answer"
    );
    assert_ne!(alone[1].text, alone[2].text, "adapters differ");
}

#[tokio::test]
async fn pieces_of_a_prompt_do_not_change_the_answer() {
    let prompt = "The quick brown fox jumps over the lazy dog.";
    let whole = start(EngineConfig {
        prefill_chunk_tokens: 1000,
        ..config()
    });
    let pieces = start(EngineConfig {
        prefill_chunk_tokens: 3,
        ..config()
    });
    assert_eq!(
        answer(&whole, endless(prompt, None, 30)).await,
        answer(&pieces, endless(prompt, None, 30)).await
    );
}

#[tokio::test]
async fn a_seed_repeats_and_company_does_not_matter() {
    let engine = start(config());
    let request = |seed| {
        let mut request = endless("dice", None, 30);
        request.sampling = SamplingParams {
            temperature: 1.0,
            seed,
            ..request.sampling
        };
        request
    };
    let first = answer(&engine, request(7)).await;
    let others: Vec<_> = (0..3)
        .map(|seed| engine.generate(request(seed)).unwrap())
        .collect();
    assert_eq!(answer(&engine, request(7)).await.text, first.text);
    drop(others);
    assert_ne!(answer(&engine, request(8)).await.text, first.text);
}

#[tokio::test]
async fn stop_strings_end_an_answer_and_are_not_in_it() {
    let engine = start(config());
    let full = answer(&engine, endless("story", None, 60)).await;
    let characters: Vec<char> = full.text.chars().collect();
    let stop: String = characters[characters.len() / 2..].iter().take(3).collect();
    let expected = full.text.split(&stop).next().unwrap().to_owned();
    let request = GenerateRequest {
        stop: vec!["never there".into(), stop],
        ..endless("story", None, 60)
    };
    let stopped = answer(&engine, request).await;
    assert_eq!(stopped.text, expected);
    assert_eq!(stopped.finish_reason, Some(FinishReason::Stop));
    assert!(stopped.usage.completion_tokens < 60);
    assert_eq!(full.finish_reason, Some(FinishReason::Length));
}

#[tokio::test]
async fn the_end_of_turn_token_ends_an_answer() {
    let engine = start(config());
    let mut request = endless("bye", None, 50);
    request.sampling.logit_bias = vec![(END_OF_TURN, 1e9)];
    let ended = answer(&engine, request).await;
    assert_eq!(
        (ended.text.as_str(), ended.finish_reason),
        ("", Some(FinishReason::Stop))
    );
    assert_eq!(ended.usage.completion_tokens, 1);
}

#[tokio::test]
async fn a_full_engine_refuses_at_once_and_a_cancelled_request_frees_its_place() {
    let engine = start(EngineConfig {
        max_running: 1,
        max_waiting: 1,
        ..config()
    });
    let long = endless("long", None, 4000);
    let mut running = engine.generate(long.clone()).unwrap();
    assert!(matches!(
        running.next().await,
        Some(GenerationEvent::Delta { .. })
    ));
    let waiting = engine.generate(long.clone()).unwrap();
    assert_eq!(
        engine.generate(long.clone()).unwrap_err(),
        EngineError::Busy { in_flight: 2 }
    );
    let progress = running.progress();
    drop(running);
    // The waiting request gets the place of the cancelled one.
    until(&engine, |engine| {
        engine.stats().waiting == 0 && engine.stats().running == 1
    })
    .await;
    assert!(
        progress.load(std::sync::atomic::Ordering::Relaxed) > 0,
        "what was computed can still be billed"
    );
    drop(waiting);
    until(&engine, |engine| engine.stats().running == 0).await;
    assert_eq!(
        answer(&engine, endless("next", None, 5))
            .await
            .usage
            .completion_tokens,
        5
    );
}

#[tokio::test]
async fn impossible_requests_are_refused_before_they_wait() {
    let engine = start(EngineConfig {
        max_context_tokens: 32,
        ..config()
    });
    let refuse = |request| engine.generate(request).unwrap_err();
    assert_eq!(refuse(endless("", None, 5)), EngineError::EmptyPrompt);
    assert_eq!(
        refuse(endless(&"x".repeat(32), None, 5)),
        EngineError::PromptTooLong {
            prompt_tokens: 32,
            limit: 31
        }
    );
    assert_eq!(
        refuse(GenerateRequest::greedy(vec![9999], 5)),
        EngineError::TokenOutOfRange {
            id: 9999,
            vocabulary: 258
        }
    );
    assert_eq!(
        refuse(endless("x", Some("ft-x"), 5)),
        EngineError::AdapterNotLoaded {
            adapter: "ft-x".into()
        }
    );
    let cut = answer(&engine, endless("0123456789", None, 1000)).await;
    assert_eq!(cut.usage.total_tokens, 32, "the context is the limit");
    assert_eq!(cut.finish_reason, Some(FinishReason::Length));
}

#[tokio::test]
async fn log_probabilities_describe_the_chosen_tokens() {
    let engine = start(config());
    let request = GenerateRequest {
        logprobs: Some(3),
        ..endless("log", None, 6)
    };
    let completion = answer(&engine, request).await;
    assert_eq!(completion.logprobs.len(), 6);
    for entry in &completion.logprobs {
        assert!(entry.logprob < 0.0 && entry.top_logprobs.len() == 3);
        assert!(entry.top_logprobs[0].logprob >= entry.logprob);
    }
}
