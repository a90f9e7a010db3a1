"""What the reference libraries compute, for comparison with this project's trainer.

    python reference.py generate FOLDER [CASE...]   trains every case and writes weights, adapters and numbers
    python reference.py verify FOLDER OURS          loads the adapters that this project trained, compares logits and answers

A case's folder holds `base/` (the model), `adapter/` (PEFT's own files after training), `reference.json`
(settings, data, losses) and `reference.safetensors` (initial adapter, logits, gradients).
"""

import json
import os
import shutil
import sys
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
warnings.filterwarnings("ignore", category=FutureWarning)

import torch
import transformers
from safetensors.torch import load_file

import cases
import causal
import classification
import dpo

LIMIT = 1e-4
METHODS = {"sft": causal.generate, "dpo": dpo.generate, "classification": classification.generate}


def generate(folder: Path, names: list[str]) -> None:
    for case in cases.CASES:
        if names and case.name not in names:
            continue
        target = folder / case.name
        if target.exists():
            shutil.rmtree(target)
        target.mkdir(parents=True)
        METHODS[case.method](case, target)
        print(f"{case.name}: done", file=sys.stderr)


def verify(folder: Path, ours: Path) -> int:
    """Loads each adapter folder that this project wrote and compares logits and greedy answers; prints JSON objects."""
    failures = 0
    for case in cases.CASES:
        reference = json.loads((folder / case.name / "reference.json").read_text())
        wanted = load_file(ours / case.name / "logits.safetensors")["logits"]
        paths = (folder / case.name / "base", ours / case.name / "adapter")
        if case.method == "classification":
            logits = classification.logits_with(*paths, reference["probes"])
        else:
            model = causal.adapted(*paths)
            logits = causal.logits_of(model, reference["probe"])
            answered = json.loads((ours / case.name / "greedy.json").read_text())
            others = sum(causal.greedy(model, prompt, len(answer)) != answer for prompt, answer in answered)
            passed = others == 0 and len(answered) == 20
            failures += not passed
            print(json.dumps({"case": case.name, "measure": "greedy answers to 20 prompts, different ones", "value": others,
                              "limit": 0, "passed": passed}))
        difference = (logits - wanted).abs().max().item()
        effect = (logits - load_file(folder / case.name / "reference.safetensors")["logits.base"]).abs().max().item()
        passed = difference <= LIMIT and effect > 100 * LIMIT
        failures += not passed
        print(json.dumps({"case": case.name, "measure": "our adapter in PEFT, logits", "value": difference, "limit": LIMIT,
                          "passed": passed}))
    return failures


def main() -> int:
    torch.set_num_threads(int(os.environ.get("PARITY_THREADS", "1")))
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if len(sys.argv) >= 3 and sys.argv[1] == "generate":
        generate(Path(sys.argv[2]), sys.argv[3:])
        return 0
    if len(sys.argv) == 4 and sys.argv[1] == "verify":
        return verify(Path(sys.argv[2]), Path(sys.argv[3]))
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
