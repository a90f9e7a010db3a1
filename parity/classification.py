"""Sequence classification by `peft` and `transformers.Trainer`: LoRA in the encoder, a head that is trained whole."""

import tempfile
from pathlib import Path

import peft
import torch
import transformers

import common
from cases import MAXIMUM_POSITIONS, VOCABULARY

EXAMPLES = 40
CLASSES = 3
HEAD = ["pre_classifier", "classifier"]


def base_model(case):
    config = transformers.DistilBertConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=MAXIMUM_POSITIONS,
        dropout=0.0,
        attention_dropout=0.0,
        seq_classif_dropout=0.0,
        num_labels=CLASSES,
        id2label={0: "no", 1: "maybe", 2: "yes"},
        label2id={"no": 0, "maybe": 1, "yes": 2},
        attn_implementation="eager",
        **case.config,
    )
    model = transformers.DistilBertForSequenceClassification(config).float()
    common.randomise(model, case.seed)
    return model.eval()


def examples(case) -> list[dict]:
    """Texts whose class follows from one of their tokens."""
    return [
        {"tokens": tokens, "label": tokens[len(tokens) // 2] % CLASSES}
        for tokens in common.sequences(case.seed + 100, EXAMPLES)
    ]


def collate(batch: list[dict]) -> dict[str, torch.Tensor]:
    longest = max(len(example["tokens"]) for example in batch)
    rows = {"input_ids": [], "attention_mask": []}
    for example in batch:
        padding = longest - len(example["tokens"])
        rows["input_ids"].append(example["tokens"] + [0] * padding)
        rows["attention_mask"].append([1] * len(example["tokens"]) + [0] * padding)
    result = {name: torch.tensor(values) for name, values in rows.items()}
    result["labels"] = torch.tensor([example["label"] for example in batch])
    return result


def logits_of(model, probe: list[list[int]]) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return torch.cat([model(input_ids=torch.tensor([tokens])).logits for tokens in probe]).contiguous()


def logits_with(base: Path, adapter: Path, probe: list[list[int]]) -> torch.Tensor:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager"
    )
    return logits_of(peft.PeftModel.from_pretrained(model, adapter), probe)


def generate(case, folder: Path) -> None:
    base = base_model(case)
    base.save_pretrained(folder / "base")
    probe = common.sequences(case.seed + 200, 4)
    tensors = {"logits.base": logits_of(base, probe)}

    torch.manual_seed(case.seed)
    settings = peft.LoraConfig(task_type="SEQ_CLS", lora_dropout=0.0, modules_to_save=HEAD, **case.lora)
    model = peft.get_peft_model(base, settings)
    tensors |= common.copies("initial", common.trained(model))
    data = examples(case)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = common.training_arguments(case, Path(scratch))
        trainer = common.RecordingTrainer(model=model, args=arguments, train_dataset=data, data_collator=collate)
        trainer.train()
    assert len(trainer.steps) == common.STEPS
    common.save_adapter(model, folder / "adapter")
    tensors["logits.adapted"] = logits_of(model, probe)

    model.zero_grad()
    model(**collate(data[: common.BATCH * common.ACCUMULATION])).loss.backward()
    tensors |= common.copies("gradient", {name: parameter.grad for name, parameter in common.trained(model).items()})
    common.write(
        folder,
        {
            "method": "classification",
            "lora": case.lora,
            "texts": data,
            "probes": probe,
            **common.optimiser_record(arguments, trainer.steps),
        },
        tensors,
    )
