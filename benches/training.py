#!/usr/bin/env python3
"""Training speed and memory against PEFT, in turns, on random weights of the Qwen2.5-0.5B shape; ratios printed.

    python3 benches/training.py
    python3 benches/training.py --shape small --rounds 1 --only packed,chat       # a quick try

LoRA of rank 8 on all linear layers, AdamW, no dropout, on both sides. The peers are transformers and PEFT with the loop
of the Hugging Face Trainer reduced to its arithmetic (forward under autocast for bf16, backward, clipping, AdamW): what
the Trainer does besides would only make them slower. Packing is TRL's own (`trl.pack_dataset` and its collator). Every
program is one process that keeps its model and answers one request a line; rounds go A B C A B C, the first step of
each is not counted, and medians are compared. Peak memory is the process's own high-water mark, with the pages of mapped
weights counted on both sides.

On a machine without AVX-512 BF16, or with `--f32`, the comparison is in single precision and the demands for that case
apply; the peers' bf16 runs are then a single step each, for their memory. Quote figures only from a machine that is otherwise quiet.
"""

import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
from common import ROOT, median

PACKAGES = ("torch==2.15.0", "transformers==5.23.0", "peft==0.21.2", "accelerate==1.15.0", "trl==1.16.0", "datasets==5.2.0")
THREADS = os.cpu_count() or 2
RANK = 8
# Floating-point operations of a token in a LoRA step, by shape: two for each frozen weight forward and two backward.
LAYER_WEIGHTS = {
    "qwen2.5-0.5b": 24 * (896 * 896 * 2 + 896 * 128 * 2 + 3 * 896 * 4864),
    "small": 6 * (192 * 192 * 2 + 192 * 64 * 2 + 3 * 192 * 512),
}
HEAD_WEIGHTS = {"qwen2.5-0.5b": 151_936 * 896, "small": 2048 * 192}
VOCABULARY = {"qwen2.5-0.5b": 151_936, "small": 2048}


class Child:
    """A program that answers one line with one JSON object."""

    def __init__(self, name, command, **environment):
        self.name = name
        self.process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **environment},
        )

    def ask(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended on {words!r} with {self.process.wait()}")
        return json.loads(line)

    def peak_bytes(self):
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        sys.exit(f"{self.name}: no high-water mark of memory in /proc")

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)


def main():
    args = common.arguments(
        __doc__.splitlines()[0],
        shape=dict(default="qwen2.5-0.5b", choices=sorted(LAYER_WEIGHTS)),
        rounds=dict(type=int, default=3, help="of each comparison"),
        steps=dict(type=int, default=2, help="optimiser steps of a round"),
        only=dict(default="packed,chat,context,process", help="parts to run"),
        f32=dict(action="store_true", help="force single precision on our side"),
        python=dict(type=Path, help="interpreter with the peers; without it they are installed below target/benches"),
    )
    report = common.Report("Training", args)
    python = args.python or common.pypi(*PACKAGES)
    binaries = build(args)
    folder = ROOT / "target" / "benches" / f"training-{args.shape}"
    if not (folder / "model.safetensors").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([binaries / "training_bench", "make", folder, args.shape], check=True)
    peak = json.loads(subprocess.run([binaries / "peak"], check=True, capture_output=True, text=True).stdout)
    bf16 = peak["bf16_gflops"] is not None and not args.f32
    ceiling = peak["bf16_gflops"] if bf16 else peak["f32_gflops"]
    report.add("peak of the arithmetic units", f"{peak['f32_gflops']:.0f} GFLOP/s f32",
               f"bf16 {peak['bf16_gflops'] or 'not in this machine'}")
    bench = Bench(args, report, python, binaries, folder, bf16, ceiling)
    for part in args.only.split(","):
        getattr(bench, part)()
    return report.end()


def build(args):
    return common.build(args, "--workspace --example training_bench --example peak") / "examples"


class Bench:
    def __init__(self, args, report, python, binaries, folder, bf16, ceiling):
        self.args, self.report, self.python, self.binaries, self.folder = args, report, python, binaries, folder
        self.bf16, self.ceiling = bf16, ceiling
        self.data = Path(tempfile.mkdtemp(prefix="training-bench-"))

    def ours(self, *options):
        precision = [] if self.bf16 else ["f32"]
        return Child(" ".join(["ours", *options]), [self.binaries / "training_bench", "steps", self.folder, *precision, *options],
                     RAYON_NUM_THREADS=str(THREADS))

    def peer(self, name, kind, *options):
        return Child(name, [self.python, Path(__file__).resolve(), "peer", self.folder, kind, *options],
                     OMP_NUM_THREADS=str(THREADS), TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

    def write(self, name, records):
        path = self.data / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    def compare(self, title, children, file, batch, demands, measure):
        """Alternates `children` over `file`; rates of `measure` and ratios to the first. Returns medians and peaks."""
        steps, rates = self.args.steps, {child.name: [] for child in children}
        for child in children:
            child.ask(file, batch, 1)
        for _ in range(self.args.rounds):
            for child in children:
                answer = child.ask(file, batch, steps)
                rates[child.name].append(answer[measure] / answer["seconds"])
        medians = {name: median(values) for name, values in rates.items()}
        peaks = {child.name: child.peak_bytes() for child in children}
        for child in children:
            child.close()
        ours = medians["ours"]
        spread = f"{min(rates['ours']):.1f} to {max(rates['ours']):.1f}"
        self.report.add(title, f"{ours:.1f} tokens/s ({spread}), {peaks['ours'] / 2**30:.2f} GiB")
        for name, rate in list(medians.items())[1:]:
            demand = demands.get(name)
            self.report.add(
                f"{title}: speed", "", f"{name}: {rate:.1f}", ours / rate,
                f"≥ {demand}×" if demand else "", ours / rate >= demand if demand else None,
            )
        return medians, peaks

    def packed(self):
        """Sequences of 512 tokens, every one trained."""
        source = random.Random(1)
        top = VOCABULARY[self.args.shape] - 1
        records = [{"input_ids": [source.randint(3, top) for _ in range(512)]} for _ in range(self.args.steps)]
        for record in records:
            record["labels"] = record["input_ids"]
        file = self.write("packed.jsonl", records)
        children = [self.ours(), self.peer("PEFT f32", "f32")]
        demands = {"PEFT f32": 1.2}
        if self.bf16:
            children.append(self.peer("PEFT bf16", "bf16"))
            demands = {"PEFT bf16": 1.4, "PEFT f32": 2.6}
        medians, peaks = self.compare("512 tokens, all trained", children, file, 1, demands, "tokens")
        flops = 4 * (LAYER_WEIGHTS[self.args.shape] + HEAD_WEIGHTS[self.args.shape])
        share = medians["ours"] * flops / 1e9 / self.ceiling
        wanted = 0.7 if self.bf16 else None
        self.report.add("512 tokens: share of the peak", f"{share:.0%} of {self.ceiling:.0f} GFLOP/s", "",
                        demand="≥ 70 %" if wanted else "", passed=share >= wanted if wanted else None)
        child = self.ours("recompute")
        child.ask(file, 1, 1)
        step = child.ask(file, 1, 1)
        checkpointing = child.peak_bytes()
        self.report.add("layers computed twice", f"{step['tokens'] / step['seconds']:.1f} tokens/s, {checkpointing / 2**30:.2f} GiB")
        child.close()
        for name, options, ours, demand in (("PEFT bf16", [], peaks["ours"], 0.45),
                                            ("PEFT bf16, checkpointing", ["checkpointing"], checkpointing, 0.5)):
            child = self.peer(name, "bf16", *options)
            step = child.ask(file, 1, 1)
            print(f"  one step of {name}: {step['seconds']:.1f} s", flush=True)
            self.memory("memory" + ", checkpointing" * bool(options), ours, name, child.peak_bytes(), demand)
            child.close()

    def memory(self, title, ours, name, theirs, demand):
        ratio = ours / theirs
        self.report.add(title, f"{ours / 2**30:.2f} GiB", f"{name}: {theirs / 2**30:.2f} GiB, ours is {ratio:.2f} of it",
                        demand=f"≤ {demand}", passed=ratio <= demand)

    def chat(self):
        """Records of mixed lengths, 30 % of their tokens trained: log-normal with median 160, σ 0.7, within 16 to 512."""
        source = random.Random(0)
        top = VOCABULARY[self.args.shape] - 1
        records = []
        for _ in range(256):
            length = min(512, max(16, round(math.exp(source.gauss(math.log(160), 0.7)))))
            tokens = [source.randint(3, top) for _ in range(length)]
            learned = round(0.3 * length)
            records.append({"input_ids": tokens, "labels": [-100] * (length - learned) + tokens[length - learned:]})
        records = records[: 4 * self.args.steps]
        file = self.write("chat.jsonl", records)
        kind = "bf16" if self.bf16 else "f32"
        demands = {"PEFT bf16, padded": 2.5, "TRL bf16, packing": 1.6}
        # One peer at a time: with logits of a whole padded batch each of them takes gigabytes.
        for name, options in ((f"PEFT {kind}, padded", []), (f"PEFT {kind}, group_by_length", ["grouped"]),
                              (f"TRL {kind}, packing", ["packed"])):
            children = [self.ours(), self.peer(name, kind, *options)]
            self.compare("chat records, 30 % trained", children, file, 4, demands, "trained_tokens")

    def context(self):
        """Time of a token, attention included, when the sequence grows."""
        child, source = self.ours(), random.Random(1)
        top = VOCABULARY[self.args.shape] - 1
        seconds, peaks = {}, {}
        for length in (512, 1024, 2048, 4096):
            tokens = [source.randint(3, top) for _ in range(length)]
            file = self.write(f"context-{length}.jsonl", [{"input_ids": tokens, "labels": tokens}])
            child.ask(file, 1, 1)
            times = [child.ask(file, 1, 1)["seconds"] for _ in range(1 if length == 4096 else self.args.rounds)]
            seconds[length], peaks[length] = median(times) / length, child.peak_bytes()
            self.report.add(f"context of {length}", f"{seconds[length] * 1e3:.2f} ms a token, {peaks[length] / 2**30:.2f} GiB")
        child.close()
        growth = seconds[4096] / seconds[512]
        self.report.add("4096 against 512, time of a token", f"{growth:.2f}", demand="≤ 1.5", passed=growth <= 1.5)
        # Linear: the second doubling adds twice what the first one added, up to what does not depend on the length.
        added = (peaks[4096] - peaks[2048]) / max(1, 2 * (peaks[2048] - peaks[1024]))
        self.report.add("memory linear in the context", f"{added:.2f} of twice the doubling before", demand="≤ 1.1",
                        passed=added <= 1.1)

    def process(self):
        """The training process as a provider starts it, over all 215 hand-written records; `--steps 14` reads each once."""
        job, steps = self.data / "job", 4 * self.args.steps
        records = self.write("records.jsonl", conversations())
        made = subprocess.run([self.binaries / "training_bench", "job", self.folder, records, job, str(steps)],
                              check=True, capture_output=True, text=True)
        with open(self.folder / "model.safetensors", "rb") as weights:  # Into the page cache.
            while weights.read(1 << 24):
                pass
        started = time.perf_counter()
        child = subprocess.Popen([self.binaries / "training_bench", "train", job], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE, text=True)
        child.stdin.write(json.loads(made.stdout)["key"] + "\n")
        child.stdin.close()
        resident = []
        for line in child.stdout:
            record = json.loads(line)
            if record["event"] == "started":
                wait = time.perf_counter() - started
                self.report.add("process start to first step", f"{wait:.2f} s", demand="≤ 2 s", passed=wait <= 2)
            elif record["event"] == "step":
                resident.append(common.resident(child.pid))
            elif record["event"] == "failed":
                sys.exit(f"the training process failed: {record}")
            if len(resident) == steps:
                break
        child.terminate()
        child.wait(timeout=120)
        # The first step fills the buffers.
        growth = max(resident) - max(resident[: len(resident) // 2])
        self.report.add(f"memory over {steps} steps of the process", f"{max(resident) / 2**30:.2f} GiB",
                        f"{growth / 2**20:.1f} MiB more than in the first half", demand="≤ 16 MiB", passed=growth <= 2**24)


def conversations():
    """The records of all datasets of the project as chat messages."""
    for file in sorted((ROOT / "fixtures/datasets").glob("*.jsonl")):
        for line in file.read_text().splitlines():
            record = json.loads(line)
            question = "\n".join(record[key] for key in ("instruction", "input", "prompt") if record.get(key))
            answer = record.get("output", record.get("completion"))
            yield {"messages": record.get("messages") or [{"role": "user", "content": question},
                                                          {"role": "assistant", "content": answer}]}


def peer(folder, kind, layout="padded"):
    """A peer's process: `FILE BATCH STEPS` on a line, one JSON object back."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(THREADS)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[kind]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.config.use_cache = False
    model = get_peft_model(model, LoraConfig(
        r=RANK, lora_alpha=16, lora_dropout=0.0, task_type="CAUSAL_LM",
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    ))
    if layout == "checkpointing":
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.0)

    for line in sys.stdin:
        file, batch, steps = line.split()
        records = [json.loads(text) for text in Path(file).read_text().splitlines()][: int(batch) * int(steps)]
        start = time.perf_counter()
        tokens = trained = 0
        for inputs in batches(records, int(batch), layout):
            with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
                loss = model(**inputs).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        seconds = time.perf_counter() - start
        for record in records:
            tokens += len(record["input_ids"])
            trained += sum(label >= 0 for label in record["labels"])
        print(json.dumps({"seconds": seconds, "tokens": tokens, "trained_tokens": trained, "loss": loss.item()}), flush=True)


def batches(records, batch, layout):
    """What the peer's own collators make of the records: padded, grouped by length first, or packed by TRL."""
    import torch

    if layout == "packed":
        from datasets import Dataset
        from trl import pack_dataset
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

        packed = pack_dataset(Dataset.from_list(records), seq_length=512, strategy="bfd")
        collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
        # As many sequences of 512 as make the batch on average, so that a step learns as many tokens.
        tokens = sum(len(record["input_ids"]) for record in records) * batch / len(records)
        count = max(1, round(tokens / 512))
        return [collate([packed[row] for row in range(first, min(first + count, len(packed)))])
                for first in range(0, len(packed), count)]
    if layout == "grouped":
        records = sorted(records, key=lambda record: -len(record["input_ids"]))

    def padded(rows):
        longest = max(len(row["input_ids"]) for row in rows)
        fill = lambda row, name, value: row[name] + [value] * (longest - len(row[name]))
        return {
            "input_ids": torch.tensor([fill(row, "input_ids", 0) for row in rows]),
            "labels": torch.tensor([fill(row, "labels", -100) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]),
        }

    return [padded(records[first : first + batch]) for first in range(0, len(records), batch)]


if __name__ == "__main__":
    if sys.argv[1:2] == ["peer"]:
        peer(*sys.argv[2:])
    else:
        sys.exit(main())
