#!/usr/bin/env python3
"""The demo of a release build: its time and memory, when the network is ready, and how soon training begins.

    python3 benches/demo.py
"""

import json
import sys
import tempfile
from pathlib import Path

import common
from common import Process, median, run_measured


def main():
    args = common.arguments(__doc__.splitlines()[0], runs=dict(type=int, default=3, help="of the demo"))
    report = common.Report("Demo and network", args)
    folder = common.build(args)
    devnet = folder / "0g-compute-devnet"
    walls, peaks, waits = [], [], []
    for _ in range(args.runs):
        with tempfile.TemporaryDirectory() as scratch:
            command = [devnet, "demo", "--json", "--output", Path(scratch) / "demo"]
            wall_s, cpu_s, peak, output = run_measured(command, cwd=scratch)
            result = json.loads(output[output.index("{") :])
            assert result["settled"], "the task was paid"
            assert result["base_answer"] != result["tuned_answer"], "training changed the answer"
            walls.append(wall_s)
            peaks.append(peak)
            waits.append(until_training(result["states"]))
            print(f"  demo: {wall_s:.1f} s wall, {cpu_s:.1f} s CPU, {peak / 2**20:.0f} MiB", flush=True)
    report.add("demo, wall (median)", f"{median(walls):.1f} s", demand="<= 60 s", passed=median(walls) <= 60)
    report.add("demo, memory of all its processes (highest)", f"{max(peaks) / 2**20:.0f} MiB", demand="<= 1536 MiB",
               passed=max(peaks) <= 1536 * 2**20)
    report.add("task submitted to state Training (median)", f"{median(waits):.2f} s", demand="<= 1 s to the first step",
               passed=median(waits) <= 1)
    starts = []
    for _ in range(5):
        with tempfile.TemporaryDirectory() as scratch:
            ready = Path(scratch) / "ready.json"
            command = [devnet, "up", "--rpc-port", "0", "--storage-port", "0", "--provider-port", "0", "--ready-file", ready]
            with Process(command, wait_for=ready.exists) as network:
                starts.append(network.ready_s)
    report.add("whole network ready (median)", f"{median(starts):.2f} s", demand="<= 2 s", passed=median(starts) <= 2)
    size = common.stripped_bytes(folder / "0g-compute-cli") / 2**20
    is_release = not args.bin_dir or "release" in args.bin_dir.parts
    report.add("0g-compute-cli, stripped", f"{size:.1f} MiB", demand="<= 25 MiB", passed=size <= 25 if is_release else None)
    return report.end()


def until_training(states):
    """Seconds from the task's creation to the state Training; that state begins with the trainer's process."""
    times = {entry["state"]: entry["at_ms"] for entry in states}
    return (times["Training"] - times["Init"]) / 1000


if __name__ == "__main__":
    sys.exit(main())
