"""Supervised training of decoders by `peft` and `transformers.Trainer`."""

import tempfile
from pathlib import Path

import peft
import torch
import transformers

import common
from cases import MAXIMUM_POSITIONS, VOCABULARY

CONFIGS = {
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
}
EXAMPLES = 40


def base_model(case):
    config_class, model_class = CONFIGS[case.family]
    config = config_class(
        vocab_size=VOCABULARY,
        max_position_embeddings=MAXIMUM_POSITIONS,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        attn_implementation="eager",
        **case.config,
    )
    model = model_class(config).float()
    common.randomise(model, case.seed)
    model.tie_weights()
    return model.eval()


def examples(case) -> list[dict]:
    """Sequences of which a first part is given and the rest learned; one in five has a gap in the middle."""
    result = []
    for index, tokens in enumerate(common.sequences(case.seed + 100, EXAMPLES)):
        prompt = max(1, len(tokens) // 3)
        trained = [position >= prompt for position in range(len(tokens))]
        if index % 5 == 0:
            trained[len(tokens) // 2] = False
        result.append({"tokens": tokens, "trained": trained})
    return result


def collate(batch: list[dict]) -> dict[str, torch.Tensor]:
    """Padding on the right, as the library's collators do; padded and untrained positions have no label."""
    longest = max(len(example["tokens"]) for example in batch)
    rows = {"input_ids": [], "attention_mask": [], "labels": []}
    for example in batch:
        padding = longest - len(example["tokens"])
        labels = [token if learned else -100 for token, learned in zip(example["tokens"], example["trained"])]
        rows["input_ids"].append(example["tokens"] + [0] * padding)
        rows["attention_mask"].append([1] * len(example["tokens"]) + [0] * padding)
        rows["labels"].append(labels + [-100] * padding)
    return {name: torch.tensor(values) for name, values in rows.items()}


def logits_of(model, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([tokens])).logits[0].contiguous()


def adapted(base: Path, adapter: Path):
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    return peft.PeftModel.from_pretrained(model, adapter)


def greedy(model, prompt: list[int], count: int) -> list[int]:
    """The `count` most probable tokens, one after the other."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits_of(model, tokens)[-1].argmax()))
    return tokens[len(prompt):]


def generate(case, folder: Path) -> None:
    base = base_model(case)
    base.save_pretrained(folder / "base", **({"max_shard_size": case.shard_size} if case.shard_size else {}))
    (folder / "base" / "generation_config.json").unlink(missing_ok=True)
    probe = common.sequences(case.seed + 200, 1, 28, 28)[0]
    tensors = {"logits.base": logits_of(base, probe)}

    torch.manual_seed(case.seed)
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **case.lora))
    tensors |= common.copies("initial", common.trained(model))
    data = examples(case)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = common.training_arguments(case, Path(scratch))
        trainer = common.RecordingTrainer(model=model, args=arguments, train_dataset=data, data_collator=collate)
        trainer.train()
    assert len(trainer.steps) == common.STEPS
    common.save_adapter(model, folder / "adapter")
    tensors["logits.adapted"] = logits_of(model, probe)

    # Gradients where no matrix is zero any more, of the mean over the tokens of the first examples.
    model.zero_grad()
    batch = data[: common.BATCH * common.ACCUMULATION]
    model(**collate(batch)).loss.backward()
    tensors |= common.copies("gradient", {name: parameter.grad for name, parameter in common.trained(model).items()})

    record = {
        "method": "sft",
        "lora": case.lora,
        "examples": data,
        **common.optimiser_record(arguments, trainer.steps),
        "probe": probe,
    }
    common.write(folder, record, tensors)
