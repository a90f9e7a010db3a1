//! The engine on a CUDA device, with emulated libraries of NVIDIA's, against the engine on the processor.

use std::sync::Arc;

use zerog_inference::engine::{self, EngineConfig, EngineHandle};
use zerog_inference::{
    CanaryCheck, CanaryError, EngineError, GenerateRequest, LoadError, StartError,
};
use zerog_model::cuda::{Cuda, Libraries};
use zerog_model::{LoraAdapter, Placement, Precision};

use crate::emulator::{self, Order};
use crate::world::{
    adapter, adapter_files, answer, config, endless, load, model_with_seed, start, tokenizer,
};

fn open() -> Cuda {
    let folder = emulator::folder(env!("CARGO_TARGET_TMPDIR"), Order::Forward);
    Cuda::open(0, &Libraries::Folder(folder)).unwrap()
}

fn try_start(cuda: &Cuda, config: EngineConfig) -> Result<EngineHandle, StartError> {
    let model = model_with_seed(5);
    let placement = Placement::on_cuda(&model, cuda).unwrap();
    engine::start_on(&placement, model, Arc::new(tokenizer()), config)
}

/// Sizes for an engine whose greedy answers are the processor's.
fn single() -> EngineConfig {
    EngineConfig {
        precision: Precision::F32,
        max_cached_tokens: 2048,
        ..config()
    }
}

fn prompts() -> Vec<Vec<u32>> {
    ["one prompt", "another"]
        .map(|text| text.bytes().map(u32::from).collect())
        .to_vec()
}

/// Loads an adapter through the reference logits that the processor's engine recorded.
async fn load_checked(device: &EngineHandle, processor: &EngineHandle, id: &str, seed: u32) -> f32 {
    let weights = adapter(processor, seed);
    let record = processor.record_canary(prompts(), weights.clone()).await;
    let check = CanaryCheck::Run(record.unwrap());
    let report = device.load_adapter(id, weights, check).await.unwrap();
    report.canary.unwrap().largest_error
}

#[tokio::test]
async fn two_adapters_and_the_base_are_served_at_once_as_on_the_processor() {
    let processor = start(single());
    let device = try_start(&open(), single()).unwrap();
    for (id, seed) in [("ft-a", 1), ("ft-b", 2)] {
        load(&processor, id, seed).await;
        let error = load_checked(&device, &processor, id, seed).await;
        assert!(error < 1e-3, "{error}");
    }
    let requests: Vec<GenerateRequest> = [
        "short",
        "a prompt that takes several pieces of prefill",
        "x",
    ]
    .iter()
    .flat_map(|prompt| [None, Some("ft-a"), Some("ft-b")].map(|id| endless(prompt, id, 20)))
    .collect();
    let mut expected = Vec::new();
    for request in &requests {
        expected.push(answer(&processor, request.clone()).await.text);
    }
    assert_ne!(expected[0], expected[1]);
    assert_ne!(expected[1], expected[2]);
    // The second time beginnings are known.
    for cached in [0, 32] {
        let together: Vec<_> = requests
            .iter()
            .map(|request| device.generate(request.clone()).unwrap())
            .collect();
        for (index, generation) in together.into_iter().enumerate() {
            let got = generation.collect().await.unwrap();
            assert_eq!(got.text, expected[index], "{index}");
            if requests[index].prompt.len() > 40 {
                assert_eq!(got.usage.prompt_tokens_details.cached_tokens, cached);
            }
        }
    }
    // Several answers to one prompt go on from the same blocks.
    let seeds = [0; 3];
    let choices = device
        .generate_choices(requests[4].clone(), &seeds)
        .unwrap();
    for choice in choices {
        assert_eq!(choice.collect().await.unwrap().text, expected[4]);
    }
}

#[tokio::test]
async fn answers_that_give_way_on_a_device_come_to_their_end() {
    let processor = start(single());
    let narrow = EngineConfig {
        max_cached_tokens: 96,
        max_context_tokens: 96,
        ..single()
    };
    let device = try_start(&open(), narrow).unwrap();
    let request = |index: usize| endless(&format!("answer number {index}"), None, 40);
    let together: Vec<_> = (0..4)
        .map(|index| device.generate(request(index)).unwrap())
        .collect();
    for (index, generation) in together.into_iter().enumerate() {
        let expected = answer(&processor, request(index)).await;
        assert_eq!(generation.collect().await.unwrap().text, expected.text);
    }
    assert!(device.stats().preempted > 0, "nobody had to give way");
    assert!(device.stats().blocks <= 7);
}

#[tokio::test]
async fn products_in_bf16_pass_the_check_of_rounded_engines_and_a_wrong_adapter_does_not() {
    let processor = start(single());
    let rounded = EngineConfig {
        precision: Precision::Bf16,
        ..single()
    };
    let device = try_start(&open(), rounded).unwrap();
    let error = load_checked(&device, &processor, "ft-a", 1).await;
    assert!(error > 1e-5, "nothing was rounded: {error}");
    let record = processor
        .record_canary(prompts(), adapter(&processor, 1))
        .await;
    let check = CanaryCheck::Run(record.unwrap());
    let other = adapter(&processor, 2);
    let refused = device.load_adapter("ft-b", other, check).await.unwrap_err();
    assert!(
        matches!(
            refused,
            LoadError::Canary(
                CanaryError::AdapterDiffers { .. } | CanaryError::EffectDiffers { .. }
            )
        ),
        "{refused}"
    );
    assert!(!device.has_adapter("ft-b"));
}

/// Only the narrow tolerance of engines that round nothing sees the difference.
#[tokio::test]
async fn an_adapter_that_is_applied_too_weakly_is_noticed_in_single_precision() {
    let processor = start(single());
    let record = processor
        .record_canary(prompts(), adapter(&processor, 1))
        .await;
    let record = record.unwrap();
    let (settings, weights) = adapter_files(1, 0.6 * 16.0);
    let config = processor.model().config();
    let weaker = Arc::new(LoraAdapter::from_bytes(&settings, &weights, config).unwrap());
    for precision in [Precision::F32, Precision::Bf16] {
        let config = EngineConfig {
            precision,
            ..single()
        };
        let device = try_start(&open(), config).unwrap();
        let check = CanaryCheck::Run(record.clone());
        let loaded = device.load_adapter("ft-a", weaker.clone(), check).await;
        match precision {
            Precision::F32 => assert!(
                matches!(
                    loaded,
                    Err(LoadError::Canary(
                        CanaryError::AdapterDiffers { .. } | CanaryError::EffectDiffers { .. }
                    ))
                ),
                "{loaded:?}"
            ),
            Precision::Bf16 => assert!(loaded.is_ok(), "{loaded:?}"),
        }
    }
}

#[tokio::test]
async fn memory_that_is_used_up_costs_a_request_and_not_the_engine() {
    let folder = emulator::folder_of_one_test(env!("CARGO_TARGET_TMPDIR"), "engine-memory");
    let cuda = Cuda::open(0, &Libraries::Folder(folder)).unwrap();
    let too_large = EngineConfig {
        max_cached_tokens: 1 << 30,
        ..single()
    };
    let Err(StartError::CacheTooLarge { asked, fitting }) = try_start(&cuda, too_large) else {
        panic!("a cache of a billion tokens fits")
    };
    assert_eq!(asked, 1 << 30);
    let fits = |tokens| {
        let config = EngineConfig {
            max_cached_tokens: tokens,
            ..single()
        };
        try_start(&cuda, config)
    };
    let text = fits(fitting + 16).unwrap_err().to_string();
    assert!(
        text.contains("max_cached_tokens") && text.contains(&fitting.to_string()),
        "{text}"
    );
    let device = fits(fitting).unwrap();

    load(&device, "ft-a", 1).await;
    answer(&device, endless("base", None, 3)).await;
    let ballast = cuda
        .allocate::<u32>(cuda.free_bytes().unwrap() / 4)
        .unwrap();
    let request = endless("adapter", Some("ft-a"), 3);
    let lost = device
        .generate(request.clone())
        .unwrap()
        .collect()
        .await
        .unwrap_err();
    assert!(
        matches!(&lost, EngineError::Computation { reason } if reason.contains("device's memory")),
        "{lost}"
    );
    answer(&device, endless("base", None, 3)).await;
    drop(ballast);
    assert_eq!(answer(&device, request).await.usage.completion_tokens, 3);
}
