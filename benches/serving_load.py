"""Latencies of serving under load: a thousand adapters with room for a hundred, and what HTTP costs.

    cargo build --release -p zerog-inference --examples
    python benches/serving_load.py
    python benches/serving_load.py --requests 200 --seconds 3 --rate 300      # a quick try

Models are small and random: this measures the machinery around the computation. The two sides of each comparison
alternate in one process. Quote figures only from a machine that is otherwise quiet; the load average is printed for that.
Ends with 1 when a demanded value is missed.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binaries", type=Path, default=ROOT / "target/release/examples")
    parser.add_argument("--folder", type=Path, default=ROOT / "target/bench-serving")
    parser.add_argument("--names", type=int, default=1000)
    parser.add_argument("--places", type=int, default=100)
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rate", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=15)
    options = parser.parse_args()
    for shape, adapters in (("small", "16"), ("tiny", "0")):
        folder = options.folder / shape
        if not (folder / "model.safetensors").exists():
            folder.mkdir(parents=True, exist_ok=True)
            subprocess.run([options.binaries / "serving_bench", "make", folder, shape, adapters], check=True)

    def measure(kind, shape, *arguments):
        command = [options.binaries / "load_bench", kind, options.folder / shape, *map(str, arguments)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    print(f"load average before: {os.getloadavg()}, {os.cpu_count()} cores")
    found = measure("adapters", "small", options.names, options.places, options.at_once, options.requests)
    print(f"{found['names']} adapters, room for {found['places']}, {found['at_once']} requests at once, "
          f"{found['requests']} requests, {found['loads']} loads")
    print(f"  resident p50 {found['resident_ms']['p50']:.1f} p99 {found['resident_ms']['p99']:.1f} ms; "
          f"ten times too many p50 {found['crowded_ms']['p50']:.1f} p99 {found['crowded_ms']['p99']:.1f} ms")
    print(f"  p99 ratio {found['p99_ratio']:.2f}  (goal at most 3)")
    overhead = measure("http", "tiny", options.rate, options.seconds)
    print(f"HTTP at {overhead['rate']} requests/s, {overhead['requests']} requests of one token")
    for name in ("completion_ms", "engine_ms", "models_ms"):
        print(f"  {name[:-3]}: p50 {overhead[name]['p50']:.2f} p99 {overhead[name]['p99']:.2f} ms")
    print(f"  overhead: p50 {overhead['overhead_p50_ms']:.2f} p99 {overhead['overhead_p99_ms']:.2f} ms  (goal p99 at most 2)")
    print(f"load average after: {os.getloadavg()}")
    return int(found["p99_ratio"] > 3 or overhead["overhead_p99_ms"] > 2)


if __name__ == "__main__":
    sys.exit(main())
