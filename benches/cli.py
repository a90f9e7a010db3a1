#!/usr/bin/env python3
"""How long a command takes that only reads the chain, and how big the program is; against the npm command line.

    python3 benches/cli.py
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
from common import Process, median

KEY = "0x7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6"  # development account 3


def main():
    args = common.arguments(__doc__.splitlines()[0], runs=dict(type=int, default=21, help="of each command"))
    report = common.Report("Command line", args)
    folder = common.build(args)
    program = folder / "0g-compute-cli"
    with tempfile.TemporaryDirectory() as home:
        home = Path(home)
        ready = home / "ready.json"
        network = [folder / "0g-compute-devnet", "up", "--rpc-port", "0", "--storage-port", "0", "--provider-port", "0",
                   "--ready-file", ready]
        with Process(network, wait_for=ready.exists):
            rpc = json.loads(ready.read_text())["rpc_url"]
            environment = {**os.environ, "ZG_HOME": str(home / "profile"), "ZG_PRIVATE_KEY": KEY}
            for setup in (["setup-network", "--network", "devnet", "--rpc", rpc], ["deposit", "--amount", "3"]):
                subprocess.run([program, *setup], env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            ours = {}
            for command in (["get-account"], ["fine-tuning", "list-providers"]):
                ours[command[-1]] = timed([program, *command], args.runs, env=environment)
            peer = None if args.no_peers else npm_times(home, rpc, max(3, args.runs // 5))
    for name, seconds in ours.items():
        theirs = peer.get(name) if peer else None
        report.add(
            f"{name} (median wall)", f"{median(seconds) * 1e3:.0f} ms", f"npm: {median(theirs) * 1e3:.0f} ms" if theirs else "",
            median(theirs) / median(seconds) if theirs else None, "<= 60 ms", median(seconds) <= 0.060,
        )
    report.add("--version (median wall)", f"{median(timed([program, '--version'], args.runs)) * 1e3:.1f} ms")
    for binary in ("0g-compute-cli", "0g-storage-client"):
        size = common.stripped_bytes(folder / binary) / 2**20
        demand = ("<= 25 MiB", size <= 25) if binary == "0g-compute-cli" else ("", None)
        if args.bin_dir and "release" not in args.bin_dir.parts:
            demand = ("<= 25 MiB in release", None)
        report.add(f"{binary}, stripped", f"{size:.1f} MiB", demand=demand[0], passed=demand[1])
    return report.end()


def timed(command, runs, **options):
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
        seconds.append(time.perf_counter() - started)
    return seconds


def npm_times(home, rpc, runs):
    """The same questions to the published command line, with the profile that its own set-up and login write.

    It is told that there is no newer version: otherwise each command would wait for a registry as well.
    """
    name = "@0gfoundation/0g-compute-ts-sdk"
    package = common.npm(name + "@0.9.0") / name
    script = package / json.loads((package / "package.json").read_text())["bin"]["0g-compute-cli"]
    profile = home / "npm"
    (profile / ".0g-compute-cli").mkdir(parents=True)
    settings = {"rpcEndpoint": rpc, "network": "custom", "privateKey": KEY}
    (profile / ".0g-compute-cli" / "config.json").write_text(json.dumps(settings))
    note = profile / f"configstore/update-notifier-{name}.json"
    note.parent.mkdir(parents=True)
    update = {"latest": "0.9.0", "current": "0.9.0", "type": "latest", "name": name}
    note.write_text(json.dumps({"optOut": False, "lastUpdateCheck": int(time.time() * 1000), "update": update}))
    environment = {**os.environ, "HOME": str(profile), "XDG_CONFIG_HOME": str(profile), "NO_COLOR": "1", "NO_UPDATE_NOTIFIER": "1"}
    times = {}
    for command in (["get-account"], ["fine-tuning", "list-providers"]):
        full = ["node", str(script), *command]
        probe = subprocess.run(
            full, env=environment, cwd=home, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if probe.returncode != 0:
            sys.exit(f"npm {' '.join(command)} ended with {probe.returncode}: {probe.stdout[-1000:]}")
        times[command[-1]] = timed(full, runs, env=environment, cwd=home)
    return times


if __name__ == "__main__":
    sys.exit(main())
