"""Direct preference optimisation (Rafailov et al. 2023) of a PEFT adapter, the frozen base being the reference."""

from pathlib import Path

import peft
import torch
import transformers

import causal
import common

PAIRS = 40
BETA = 0.2
SETTINGS = {"weight_decay": 0.01, "max_grad_norm": 1.0, "betas": [0.9, 0.999], "epsilon": 1e-8}
LEARNING_RATE = 5e-3
WARMUP = 5


def pairs(case) -> list[dict]:
    chosen = common.sequences(case.seed + 100, PAIRS, 8, 24)
    rejected = common.sequences(case.seed + 300, PAIRS, 6, 20)
    result = []
    for good, bad in zip(chosen, rejected):
        prompt = good[: len(good) // 3]
        result.append({"prompt": prompt, "chosen": good[len(prompt) :], "rejected": bad})
    return result


def log_probability(model, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Sum over the answer's tokens."""
    tokens = torch.tensor([prompt + answer])
    logits = model(input_ids=tokens).logits[0, :-1].log_softmax(-1)
    chosen = logits.gather(1, tokens[0, 1:, None])[:, 0]
    return chosen[len(prompt) - 1 :].sum()


def loss_of(model, pair: dict) -> torch.Tensor:
    def margin():
        good = log_probability(model, pair["prompt"], pair["chosen"])
        return good - log_probability(model, pair["prompt"], pair["rejected"])

    with torch.no_grad(), model.disable_adapter():
        reference = margin()
    return -torch.nn.functional.logsigmoid(BETA * (margin() - reference))


def generate(case, folder: Path) -> None:
    base = causal.base_model(case)
    base.save_pretrained(folder / "base")
    (folder / "base" / "generation_config.json").unlink(missing_ok=True)
    probe = common.sequences(case.seed + 200, 1, 28, 28)[0]
    tensors = {"logits.base": causal.logits_of(base, probe)}
    torch.manual_seed(case.seed)
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **case.lora))
    tensors |= common.copies("initial", common.trained(model))

    data = pairs(case)
    per_step = common.BATCH * common.ACCUMULATION
    trained = list(common.trained(model).values())
    optimiser = torch.optim.AdamW(
        trained,
        lr=LEARNING_RATE,
        betas=tuple(SETTINGS["betas"]),
        eps=SETTINGS["epsilon"],
        weight_decay=SETTINGS["weight_decay"],
    )
    schedule = transformers.get_linear_schedule_with_warmup(optimiser, WARMUP, common.STEPS)
    steps = []
    for number in range(common.STEPS):
        start = number * per_step % len(data)
        loss = sum(loss_of(model, pair) for pair in data[start : start + per_step]) / per_step
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, SETTINGS["max_grad_norm"])
        steps.append({"loss": loss.item(), "learning_rate": schedule.get_last_lr()[0], "gradient_norm": norm.item()})
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    common.save_adapter(model, folder / "adapter")
    tensors["logits.adapted"] = causal.logits_of(model, probe)

    loss = sum(loss_of(model, pair) for pair in data[:per_step]) / per_step
    loss.backward()
    tensors |= common.copies("gradient", {name: parameter.grad for name, parameter in common.trained(model).items()})
    record = {
        "method": "dpo",
        "lora": case.lora,
        "beta": BETA,
        "pairs": data,
        "examples_per_step": per_step,
        "steps": steps,
        "probe": probe,
        **SETTINGS,
    }
    common.write(folder, record, tensors)
