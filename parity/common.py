"""What all methods share: versions, random weights, data and the exact record of a training run."""

import importlib.metadata
import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from torch.utils.data import SequentialSampler

from cases import VOCABULARY

VERSIONS = {name: importlib.metadata.version(name) for name in ["torch", "transformers", "peft", "accelerate"]}

STEPS = 50
BATCH = 2
ACCUMULATION = 2


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Replaces every weight by one large enough that a wrong operation shows: norms and biases too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.copy_(1.0 + 0.2 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(0.1 * noise)
            elif "embed" in name:
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(noise / parameter.shape[1] ** 0.5)


def sequences(seed: int, count: int, shortest: int = 6, longest: int = 30) -> list[list[int]]:
    """Walks through the vocabulary that mostly follow one rule, so that there is something to learn."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    result = []
    for _ in range(count):
        token = draw(0, VOCABULARY)
        tokens = [token]
        for _ in range(draw(shortest, longest + 1) - 1):
            token = (5 * token + 7) % VOCABULARY if draw(0, 4) else draw(0, VOCABULARY)
            tokens.append(token)
        result.append(tokens)
    return result


class RecordingTrainer(transformers.Trainer):
    """The library's trainer over the data in file order, with unrounded numbers of every step."""

    def __init__(self, **arguments):
        self.steps = []
        self.parts = []
        super().__init__(**arguments)
        self.remove_callback(transformers.PrinterCallback)
        self.add_callback(StepRecorder(self))

    def _get_train_sampler(self, *arguments, **named):
        return SequentialSampler(self.train_dataset)

    def training_step(self, *arguments, **named):
        loss = super().training_step(*arguments, **named)
        self.parts.append(loss.item())
        return loss

    def log(self, logs, *arguments, **named):
        if "grad_norm" in logs and self.steps:
            self.steps[-1]["gradient_norm"] = float(logs["grad_norm"])
        super().log(logs, *arguments, **named)


class StepRecorder(transformers.TrainerCallback):
    def __init__(self, trainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **named):
        rates = {group["lr"] for group in optimizer.param_groups}
        assert len(rates) == 1
        self.trainer.steps.append({"loss": sum(self.trainer.parts), "learning_rate": rates.pop()})
        self.trainer.parts = []


def training_arguments(case, folder: Path) -> transformers.TrainingArguments:
    settings = {
        "learning_rate": 5e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 5,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": ACCUMULATION,
        **case.training,
    }
    return transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_num_workers=0,
        remove_unused_columns=False,
        seed=case.seed,
        **settings,
    )


def optimiser_record(arguments: transformers.TrainingArguments, steps: list[dict]) -> dict:
    """What a run needs to be repeated, and what each of its steps measured."""
    return {
        "examples_per_step": BATCH * ACCUMULATION,
        "weight_decay": arguments.weight_decay,
        "max_grad_norm": arguments.max_grad_norm,
        "betas": [arguments.adam_beta1, arguments.adam_beta2],
        "epsilon": arguments.adam_epsilon,
        "steps": steps,
    }


def plain_name(name: str) -> str:
    """`base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight` → `model.layers.0.self_attn.q_proj.lora_A`."""
    name = name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
    return name.replace(".default.weight", "").replace(".default", "")


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The trained parameters by plain name."""
    return {plain_name(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def copies(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{name}": tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def write(folder: Path, record: dict, tensors: dict[str, torch.Tensor]) -> None:
    record = {"versions": VERSIONS, **record}
    (folder / "reference.json").write_text(json.dumps(record) + "\n")
    save_file(tensors, folder / "reference.safetensors")


def save_adapter(model, folder: Path) -> None:
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    # A set in the library, whose order differs from run to run.
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text())
    settings["target_modules"] = sorted(settings["target_modules"])
    path.write_text(json.dumps(settings, indent=2) + "\n")
