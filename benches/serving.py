"""Serving speed against llama.cpp and transformers with PEFT, alternating in one run, ratio printed.

    cargo build --release -p zerog-inference --example serving_bench
    python benches/serving.py --shape qwen2.5-0.5b --rounds 3
    python benches/serving.py --shape small --rounds 1 --tokens 8        # a quick try

Weights are random: speed and memory only. Every program is one child process that keeps its model loaded and answers one
request a line; rounds go A B A B, and the medians are compared. Peers that are not installed are named and left out:
llama-cpp-python 0.3.36 with gguf 0.19.0 (build with CMAKE_ARGS=-DGGML_NATIVE=ON), torch 2.15.0, transformers 5.23.0,
peft 0.21.2. Quote figures only from a machine that is otherwise quiet; the load average is printed for that.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
THREADS = os.cpu_count() or 2


class Child:
    """A program that answers one line with one JSON object."""

    def __init__(self, name, command):
        self.name = name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, request):
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended on {request!r}")
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)


def installed(*modules):
    return all(importlib.util.find_spec(module) for module in modules)


def compare(title, goal, ours, request, others, member, rounds, better=max):
    """Alternates between programs and prints medians and ratios. `others` are (child, request) pairs."""
    programs = [(ours, request)] + others
    seen = {id(child): [] for child, _ in programs}
    for _ in range(rounds):
        for child, wanted in programs:
            seen[id(child)].append(child.ask(wanted)[member])
    own = statistics.median(seen[id(ours)])
    print(f"\n{title}: ours {own:.2f} {member}  (all rounds: {[round(v, 2) for v in seen[id(ours)]]})")
    for child, _ in others:
        theirs = statistics.median(seen[id(child)])
        ratio = own / theirs if better is max else theirs / own
        print(f"  {child.name} {theirs:.2f}: ratio {ratio:.2f}{goal}")
    return own


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen2.5-0.5b", choices=["qwen2.5-0.5b", "small"])
    parser.add_argument("--binary", default=ROOT / "target/release/examples/serving_bench")
    parser.add_argument("--folder", default=ROOT / "target/bench-serving")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--streams", type=int, default=16)
    options = parser.parse_args()
    folder = Path(options.folder) / options.shape
    if not (folder / "adapter-15").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([options.binary, "make", folder, options.shape, "16"], check=True)
    print(f"load average before: {os.getloadavg()}, {THREADS} threads")
    ours = Child("ours", [str(options.binary), "serve", str(folder)])
    rounded = Child("ours int8", [str(options.binary), "serve", str(folder), "int8"])
    peers = {}
    if installed("torch", "transformers", "peft"):
        peers["transformers"] = Child("transformers bf16 + PEFT", peer_command("transformers", folder))
    else:
        print("not installed, left out: torch, transformers, peft")
    if installed("llama_cpp", "gguf"):
        peers["llama"] = Child("llama.cpp BF16", peer_command("llama", folder))
        peers["llama-q8"] = Child("llama.cpp Q8_0", peer_command("llama-q8", folder))
    else:
        print("not installed, left out: llama_cpp, gguf")
    names = [name for name in ("llama", "transformers") if name in peers]
    prompt, tokens, streams = options.prompt, options.tokens, options.streams
    for child in [ours, rounded, *peers.values()]:
        child.ask("prefill 16")

    def others(request):
        return [(peers[name], request) for name in names]

    compare("prefill", "  (goal 1.15 against llama.cpp)", ours, f"prefill {prompt}", others(f"prefill {prompt}"),
            "tokens_per_s", options.rounds)
    one = compare("decode, one stream", "  (goal 1.0 against llama.cpp, 1.6 against transformers with PEFT)", ours,
                  f"decode 1 {prompt} {tokens} 0", others(f"decode 1 {prompt} {tokens} 0"), "tokens_per_s", options.rounds)
    many_request = f"decode {streams} 64 {tokens} 0"
    multi = [(peers["llama"], many_request)] if "llama" in peers else []
    many = compare(f"decode, {streams} streams on the base model", "  (goal 1.5)", ours, many_request, multi,
                   "tokens_per_s", options.rounds)
    adapted = compare(f"decode, {streams} streams with {streams} adapters", "", ours,
                      f"decode {streams} 64 {tokens} {min(streams, 16)}", [], "tokens_per_s", options.rounds)
    eight = compare("decode, 8 streams", "", ours, f"decode 8 64 {tokens} 0", [], "tokens_per_s", options.rounds)
    print(f"  8 streams against one: {eight / one:.2f}; {streams} streams against one: {many / one:.2f}  (goal 4)")
    print(f"  {streams} adapters against the base model: {adapted / many:.2f}  (goal 0.9)")
    for member in ("tokens_per_s", "tokens_per_cpu_s"):
        base_request = f"decode {streams} 64 {tokens} 0"
        pairs = [(ours.ask(f"decode {streams} 64 {tokens} {min(streams, 16)}")[member], ours.ask(base_request)[member])
                 for _ in range(options.rounds)]
        ratios = [adapted / base for adapted, base in pairs]
        print(f"  {streams} adapters against the base model in turns, {member}: {statistics.median(ratios):.2f} "
              f"{[round(ratio, 2) for ratio in ratios]}")
    if "llama-q8" in peers:
        request = f"decode 1 {prompt} {tokens} 0"
        compare("int8 decode, one stream", "  (goal 1.0 against llama.cpp Q8_0)", rounded, request,
                [(peers["llama-q8"], request)], "tokens_per_s", options.rounds)
    for count in (1, streams):
        request = f"decode {count} 64 {tokens} 0"
        for member in ("tokens_per_s", "tokens_per_cpu_s"):
            compare(f"int8 decode, {count} streams, {member}", "  (int8 against bf16)", rounded, request,
                    [(ours, request)], member, options.rounds)
    sizes = rounded.ask("memory"), ours.ask("memory")
    print(f"\nmatrices: int8 {sizes[0]['matrix_bytes'] / 1e6:.1f} MB, bf16 {sizes[1]['matrix_bytes'] / 1e6:.1f} MB, ratio "
          f"{sizes[0]['matrix_bytes'] / sizes[1]['matrix_bytes']:.3f}; adapters {sizes[1]['adapter_bytes'] / 1e6:.1f} MB")
    tiers = {"base": [], "memory": [], "disk": []}
    for _ in range(5 * options.rounds):
        for tier, times in tiers.items():
            times.append(ours.ask(f"first-token {tier}")["ms"])
    base = statistics.median(tiers["base"])
    print(f"\nfirst token: base model {base:.2f} ms")
    for tier, goal in (("memory", 2), ("disk", 10)):
        print(f"  adapter {tier}: {statistics.median(tiers[tier]) - base:+.2f} ms  (goal at most +{goal} ms)")
    bandwidth = read_bandwidth()
    read = one * sizes[1]["matrix_bytes"] / 1e9
    print(f"memory: one stream reads {read:.1f} GB/s of weights, a read test {bandwidth:.1f}: {read / bandwidth:.2f}  "
          f"(goal 0.8); load average after: {os.getloadavg()}")
    for child in [ours, rounded, *peers.values()]:
        child.close()


def read_bandwidth():
    """Best rate at which all cores together read memory, in GB/s; one process a core."""
    code = ("import time;b=b'\\x02'*(256<<20);best=9e9\n"
            "for _ in range(5):\n t=time.perf_counter();b.find(b'\\x01');best=min(best,time.perf_counter()-t)\n"
            "print((256<<20)/best/1e9)")
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(THREADS)]
    return sum(float(process.communicate()[0]) for process in running)


def peer_command(kind, folder):
    return [sys.executable, __file__, "peer", kind, str(folder)]


def peer(kind, folder):
    """A peer's process: reads the same requests as ours."""
    answer = {
        "transformers": transformers_peer,
        "llama": lambda folder: llama_peer(folder, "BF16"),
        "llama-q8": lambda folder: llama_peer(folder, "Q8_0"),
    }[kind](Path(folder))
    for line in sys.stdin:
        words = line.split()
        print(json.dumps(answer(words[0], [int(word) for word in words[1:]])), flush=True)


def prompt_tokens(count, stream=0):
    return [3 + (index * 7919 + stream * 104_729) % 2000 for index in range(count)]


def rate(tokens, start):
    seconds = time.perf_counter() - start
    return {"tokens_per_s": tokens / seconds, "seconds": seconds}


def transformers_peer(folder):
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(THREADS)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(model, folder / "adapter-0").eval()

    def answer(kind, numbers):
        with torch.inference_mode():
            if kind == "prefill":
                tokens = torch.tensor([prompt_tokens(numbers[0])])
                start = time.perf_counter()
                model(tokens, use_cache=True, logits_to_keep=1)
                return rate(numbers[0], start)
            streams, length, count, _ = numbers
            tokens = torch.tensor([prompt_tokens(length, stream) for stream in range(streams)])
            out = model(tokens, use_cache=True, logits_to_keep=1)
            start = time.perf_counter()
            for _ in range(count):
                chosen = out.logits[:, -1].argmax(-1, keepdim=True)
                out = model(chosen, past_key_values=out.past_key_values, use_cache=True)
            return rate(streams * count, start)

    return answer


def write_gguf(folder, path, matrices):
    """The random model in llama.cpp's format: matrices of this type and f32 vectors."""
    import gguf
    import numpy
    from safetensors import safe_open

    settings = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(settings["max_position_embeddings"])
    writer.add_embedding_length(settings["hidden_size"])
    writer.add_block_count(settings["num_hidden_layers"])
    writer.add_feed_forward_length(settings["intermediate_size"])
    writer.add_head_count(settings["num_attention_heads"])
    writer.add_head_count_kv(settings["num_key_value_heads"])
    writer.add_rope_freq_base(settings["rope_theta"])
    writer.add_layer_norm_rms_eps(settings["rms_norm_eps"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{number}" for number in range(settings["vocab_size"])])
    writer.add_token_types([1] * settings["vocab_size"])
    # An empty list is left out of the file, and without one it does not load.
    writer.add_token_merges(["t0 t1"])
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    inner = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
             "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    with safe_open(folder / "model.safetensors", "pt") as file:
        for name in file.keys():
            module, part = name.rsplit(".", 1)
            if module.startswith("model.layers."):
                _, _, layer, rest = module.split(".", 3)
                target = f"blk.{layer}.{inner[rest]}.{part}"
            else:
                target = f"{names[module]}.{part}"
            values = file.get_tensor(name).float().numpy()
            if values.ndim == 1:
                writer.add_tensor(target, values.astype(numpy.float32))
            else:
                kind = gguf.GGMLQuantizationType[matrices]
                writer.add_tensor(target, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_peer(folder, matrices):
    path = folder / f"model-{matrices.lower()}.gguf"
    if not path.exists():
        write_gguf(folder, path, matrices)
    import llama_cpp

    streams_most, context = 16, 1024
    parameters = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = streams_most * context
    settings.n_batch = settings.n_ubatch = 512
    settings.n_seq_max = streams_most
    settings.n_threads = settings.n_threads_batch = THREADS
    state = llama_cpp.llama_init_from_model(model, settings)
    batch = llama_cpp.llama_batch_init(512, 0, 1)
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def run(entries):
        """Computes (token, position, stream, wanted) entries."""
        batch.n_tokens = len(entries)
        for place, (token, position, stream, wanted) in enumerate(entries):
            batch.token[place], batch.pos[place] = token, position
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, stream
            batch.logits[place] = wanted
        if llama_cpp.llama_decode(state, batch):
            raise SystemExit("llama_decode failed")

    def best(place):
        logits = llama_cpp.llama_get_logits_ith(state, place)
        return max(range(vocabulary), key=logits.__getitem__) if vocabulary < 4096 else 3

    def prompts(streams, length):
        for stream in range(streams):
            tokens = prompt_tokens(length, stream)
            for start in range(0, length, 512):
                part = tokens[start:start + 512]
                run([(token, start + place, stream, start + place == length - 1) for place, token in enumerate(part)])

    def answer(kind, numbers):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(state), True)
        if kind == "prefill":
            start = time.perf_counter()
            prompts(1, numbers[0])
            return rate(numbers[0], start)
        streams, length, count, _ = numbers
        prompts(streams, length)
        start = time.perf_counter()
        for step in range(count):
            # Logits are computed for every row; which token follows does not change the work.
            run([(3 + step, length + step, stream, True) for stream in range(streams)])
        best(0)
        return rate(streams * count, start)

    return answer


if __name__ == "__main__":
    if sys.argv[1:2] == ["peer"]:
        peer(sys.argv[2], sys.argv[3])
    else:
        main()
