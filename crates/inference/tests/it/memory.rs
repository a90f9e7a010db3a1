//! Keys and values in blocks: shared beginnings, answers that give way, turns between flows.

use zerog_inference::engine::EngineConfig;
use zerog_inference::{GenerateRequest, GenerationEvent, SamplingParams};

use crate::world::{answer, config, endless, load, start, until};

fn prompt_of(tokens: usize, seed: usize) -> String {
    (0..tokens)
        .map(|index| char::from(b'a' + ((index * 7 + seed) % 26) as u8))
        .collect()
}

#[tokio::test]
async fn a_known_beginning_is_not_computed_again_and_changes_nothing() {
    let fresh = start(EngineConfig {
        reuse_prefixes: false,
        ..config()
    });
    let engine = start(config());
    let (first, second) = (prompt_of(100, 0), format!("{}!?", prompt_of(90, 0)));
    for (prompt, reused) in [(&first, 0), (&second, 80), (&first, 96)] {
        let got = answer(&engine, endless(prompt, None, 20)).await;
        let expected = answer(&fresh, endless(prompt, None, 20)).await;
        assert_eq!(got.text, expected.text);
        assert_eq!(got.usage.prompt_tokens_details.cached_tokens, reused);
        assert_eq!(expected.usage.prompt_tokens_details.cached_tokens, 0);
    }
    // 100, 12 and 4 tokens.
    assert_eq!(engine.stats().prompt_tokens, 116);
    // The answer is part of the next turn's beginning.
    let turn = answer(&engine, endless(&first, None, 60)).await;
    let next = format!("{first}{}", turn.text);
    if next.len() == 160 {
        let answer = answer(&engine, endless(&next, None, 4)).await;
        assert!(answer.usage.prompt_tokens_details.cached_tokens >= 144);
    }
}

#[tokio::test]
async fn neither_other_callers_nor_other_weights_share_a_beginning() {
    let engine = start(config());
    load(&engine, "ft-a", 1).await;
    let request = |scope: &str, adapter| GenerateRequest {
        cache_scope: scope.into(),
        ..endless(&prompt_of(64, 1), adapter, 2)
    };
    let mut cached = Vec::new();
    for (scope, adapter) in [
        ("alice", None),
        ("bob", None),
        ("alice", Some("ft-a")),
        ("alice", Some("ft-a")),
    ] {
        let answer = answer(&engine, request(scope, adapter)).await;
        cached.push(answer.usage.prompt_tokens_details.cached_tokens);
    }
    assert_eq!(cached, [0, 0, 0, 48]);
    // The same name with other weights is another adapter.
    load(&engine, "ft-a", 2).await;
    let after = answer(&engine, request("alice", Some("ft-a"))).await;
    assert_eq!(after.usage.prompt_tokens_details.cached_tokens, 0);
}

#[tokio::test]
async fn answers_that_give_way_end_as_if_they_had_not() {
    let roomy = start(config());
    // Room for about two of four answers at their full length.
    let narrow = start(EngineConfig {
        max_cached_tokens: 272,
        max_context_tokens: 272,
        ..config()
    });
    let request = |seed: usize| {
        let mut request = endless(&prompt_of(40, seed), None, 80);
        request.sampling = SamplingParams {
            temperature: 1.0,
            seed: seed as u64,
            ..request.sampling
        };
        request
    };
    let together: Vec<_> = (0..4)
        .map(|seed| narrow.generate(request(seed)).unwrap())
        .collect();
    for (seed, generation) in together.into_iter().enumerate() {
        let expected = answer(&roomy, request(seed)).await;
        let got = generation.collect().await.unwrap();
        assert_eq!(got.text, expected.text);
        assert_eq!(got.usage.total_tokens, 120);
    }
    assert!(narrow.stats().preempted > 0, "nobody had to give way");
    assert!(narrow.stats().blocks <= 18);
}

#[tokio::test]
async fn choices_compute_their_prompt_once() {
    let engine = start(config());
    let request = GenerateRequest {
        sampling: SamplingParams {
            temperature: 1.0,
            ..endless("", None, 1).sampling
        },
        ..endless(&prompt_of(50, 3), None, 12)
    };
    // More than fit at once.
    let seeds: Vec<u64> = (0..6).collect();
    let generations = engine.generate_choices(request.clone(), &seeds).unwrap();
    let mut texts = Vec::new();
    for (seed, generation) in seeds.iter().zip(generations) {
        let completion = generation.collect().await.unwrap();
        let mut alone = request.clone();
        alone.sampling.seed = *seed;
        alone.cache_scope = "apart".into();
        assert_eq!(completion.text, answer(&engine, alone).await.text);
        texts.push(completion.text);
    }
    texts.sort();
    texts.dedup();
    assert_eq!(texts.len(), 6);
    // Once for the first four, the end of the last block again for the other two, and once in the other scope.
    assert_eq!(engine.stats().prompt_tokens, (50 + 2) + (50 + 5 * 2));
}

#[tokio::test]
async fn one_adapters_queue_does_not_hold_up_another_adapter() {
    let engine = start(EngineConfig {
        max_running: 1,
        ..config()
    });
    load(&engine, "ft-a", 1).await;
    load(&engine, "ft-b", 2).await;
    let mut blocker = engine.generate(endless("go", None, 4000)).unwrap();
    assert!(matches!(
        blocker.next().await,
        Some(GenerationEvent::Delta { .. })
    ));
    let crowd: Vec<_> = (0..8)
        // Long answers: this thread may be woken late, and the crowd goes on meanwhile.
        .map(|_| {
            engine
                .generate(endless("crowd", Some("ft-a"), 400))
                .unwrap()
        })
        .collect();
    let single = engine
        .generate(endless("single", Some("ft-b"), 30))
        .unwrap();
    let progress: Vec<_> = crowd
        .iter()
        .map(|generation| generation.progress())
        .collect();
    until(&engine, |engine| engine.stats().waiting == 9).await;
    drop(blocker);
    single.collect().await.unwrap();
    let done = progress
        .iter()
        .filter(|tokens| tokens.load(std::sync::atomic::Ordering::Relaxed) >= 400)
        .count();
    assert!(
        done <= 2,
        "{done} of the crowd were served before the single request"
    );
}
