"""The compared models: small random shapes that use every branch of their family, and how each is trained."""

from dataclasses import dataclass, field

VOCABULARY = 96
MAXIMUM_POSITIONS = 64

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL_LINEAR = ATTENTION + ["gate_proj", "up_proj", "down_proj"]

# The library's trainer adds up the means of accumulated batches for classifiers instead of averaging them (it takes
# them for models that divide by the number of items themselves), so that route is compared without accumulation.
WITHOUT_ACCUMULATION = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}


@dataclass(frozen=True)
class Case:
    """One comparison: a model shape, an adapter and a training method."""

    name: str
    family: str
    """`qwen2`, `qwen3`, `llama` or `distilbert`."""
    config: dict
    """Members of the model's configuration beside the common ones."""
    lora: dict
    """Arguments of `peft.LoraConfig`."""
    seed: int
    method: str = "sft"
    """`sft`, `dpo` or `classification`."""
    shard_size: str | None = None
    """Largest weight file, to get sharded weights."""
    training: dict = field(default_factory=dict)
    """Arguments of `transformers.TrainingArguments` that differ from the common ones."""


CASES = [
    Case(
        name="qwen2-tied",
        family="qwen2",
        config={
            "hidden_size": 48,
            "intermediate_size": 72,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        },
        lora={"r": 4, "lora_alpha": 8, "target_modules": ALL_LINEAR},
        seed=1,
    ),
    Case(
        name="qwen2-untied-rslora",
        family="qwen2",
        config={
            "hidden_size": 40,
            "intermediate_size": 56,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "tie_word_embeddings": False,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
        lora={"r": 6, "lora_alpha": 9, "use_rslora": True, "target_modules": ["q_proj", "v_proj", "down_proj"]},
        seed=2,
        shard_size="30KB",
        training={"lr_scheduler_type": "linear", "weight_decay": 0.1},
    ),
    Case(
        name="qwen3",
        family="qwen3",
        config={
            "hidden_size": 40,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        },
        lora={"r": 4, "lora_alpha": 8, "target_modules": ALL_LINEAR},
        seed=3,
    ),
    Case(
        name="llama3",
        family="llama",
        config={
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "tie_word_embeddings": False,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
        lora={"r": 4, "lora_alpha": 8, "target_modules": ALL_LINEAR},
        seed=4,
        shard_size="40KB",
    ),
    Case(
        name="llama-biases",
        family="llama",
        config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0},
        },
        lora={"r": 3, "lora_alpha": 5, "target_modules": ["k_proj", "o_proj", "gate_proj", "up_proj"]},
        seed=5,
        training={"lr_scheduler_type": "constant_with_warmup", "max_grad_norm": 0.3},
    ),
    Case(
        name="qwen2-dora",
        family="qwen2",
        config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        },
        lora={"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": ALL_LINEAR},
        seed=6,
    ),
    Case(
        name="qwen3-dpo",
        family="qwen3",
        config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        },
        lora={"r": 4, "lora_alpha": 8, "target_modules": ALL_LINEAR},
        seed=7,
        method="dpo",
    ),
    Case(
        name="distilbert",
        family="distilbert",
        config={"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
        lora={"r": 4, "lora_alpha": 8, "target_modules": ["q_lin", "k_lin", "v_lin", "out_lin"]},
        seed=8,
        method="classification",
        training=WITHOUT_ACCUMULATION,
    ),
    Case(
        name="distilbert-all-linear",
        family="distilbert",
        config={"dim": 24, "hidden_dim": 40, "n_layers": 3, "n_heads": 2},
        lora={"r": 3, "lora_alpha": 6, "target_modules": ["q_lin", "v_lin", "lin1", "lin2"]},
        seed=9,
        method="classification",
        training=WITHOUT_ACCUMULATION,
    ),
]


def find(name: str) -> Case:
    """The case of that name."""
    return next(case for case in CASES if case.name == name)
