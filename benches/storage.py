#!/usr/bin/env python3
"""Storage: the root of a large file against the published Python and TypeScript clients; moving it to and from the
embedded node, beside what the disk and the hash alone allow.

    python3 benches/storage.py

The published clients hash a shorter file (`--peer-mib`), since their speed does not depend on the length; the time that
they need for one mebibyte, mostly starting, is taken off. Every root is compared with ours. Transfers use the helper `0g-storage-client`, ours and the one in the npm package, against one
embedded node and chain. That they are not bound by round trips is demanded: with 20 ms added to each they may take at most
1.3 times as long. The CPU time of both sides is printed beside the wall time, and what disk and hash take alone.
"""

import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import common
from common import Process, SlowProxy, median, run_measured

KEY = "0x7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6"  # development account 3
MIB = 2**20
DIRECTIONS = ("upload", "download")
LOG_LEVEL = ["--log-level=info"]
# What a machine in the same part of the world is away, and how much longer a transfer may take for it: one that waits for
# its round trips one after the other takes several times as long.
DELAY_S = 0.020
MOST_SLOWER = 1.3

PYTHON_ROOT = """
import sys
from core.file import ZgFile
file = ZgFile.from_file_path(sys.argv[1])
tree, error = file.merkle_tree()
assert error is None, error
print("0x" + tree.root_hash().removeprefix("0x"))
"""
TYPESCRIPT_ROOT = """
const { ZgFile } = require("@0gfoundation/0g-ts-sdk");
(async () => {
  const file = await ZgFile.fromFilePath(process.argv[2]);
  const [tree, error] = await file.merkleTree();
  if (error) throw error;
  console.log(tree.rootHash());
  await file.close();
})();
"""


def main():
    args = common.arguments(
        __doc__.splitlines()[0],
        mib=dict(type=int, default=1024, help="size of our file"),
        peer_mib=dict(type=int, default=64, help="size of the file that the published clients hash"),
        transfer_mib=dict(type=int, default=256, help="size of the file that is moved"),
    )
    report = common.Report("Storage", args)
    folder = common.build(args)
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as scratch:
        scratch = Path(scratch)
        roots(report, args, folder, scratch)
        transfers(report, args, folder, scratch)
    return report.end()


def write_file(path, mib):
    """The content of the protocol's vectors: byte i is (31 i + 7) mod 251."""
    pattern = bytes((i * 31 + 7) % 251 for i in range(251)) * (MIB // 251 + 2)
    with path.open("wb") as file:
        for block in range(mib):
            start = block * MIB % 251
            file.write(pattern[start : start + MIB])
    return path


def our_root(folder, path):
    wall_s, cpu_s, peak, output = run_measured([folder / "0g-compute-cli", "storage", "root", "--file", path, "--json"])
    return wall_s, cpu_s, peak, json.loads(output)["root_hash"]


def roots(report, args, folder, scratch):
    large = write_file(scratch / "large", args.mib)
    runs = [our_root(folder, large) for _ in range(5)]
    wall_s = median([run[0] for run in runs])
    rate = args.mib * MIB / wall_s / 1e6
    small_peak = our_root(folder, write_file(scratch / "small", 16))[2]
    large_peak = max(run[2] for run in runs)
    report.add(f"root of {args.mib} MiB (median wall)", f"{wall_s:.2f} s, {rate:.0f} MB/s")
    report.add("CPU for it", f"{median([run[1] for run in runs]):.2f} s")
    report.add(
        "memory, against a file of 16 MiB", f"{large_peak / MIB:.1f} MiB and {small_peak / MIB:.1f} MiB", demand="constant",
        passed=large_peak < small_peak + 8 * MIB,
    )
    large.unlink()
    if args.no_peers:
        return
    peer_file = write_file(scratch / "peer", args.peer_mib)
    expected = our_root(folder, peer_file)[3]
    modules = common.npm("@0gfoundation/0g-ts-sdk@1.2.8", "ethers@6.13.1")
    script = modules.parent / "root.cjs"
    script.write_text(TYPESCRIPT_ROOT)
    python = common.pypi("0g-storage-sdk==0.4.0")
    peers = (("TypeScript 1.2.8", ["node", script, peer_file]), ("Python 0.4.0", [python, "-c", PYTHON_ROOT, peer_file]))
    start_file = write_file(scratch / "start", 1)
    for name, command in peers:
        start_s = run_measured([*command[:-1], start_file])[0]
        peer_s, _, _, output = run_measured(command)
        peer_s -= start_s
        found = output.strip().splitlines()[-1]
        assert found == expected, f"{name} has root {found}, ours is {expected}"
        peer_rate = (args.peer_mib - 1) * MIB / peer_s / 1e6
        report.add("storage root", f"{rate:.0f} MB/s", f"{name}: {peer_rate:.1f} MB/s", rate / peer_rate, ">= 40x", rate / peer_rate >= 40)


def disk_write(path, mib):
    """Writing that many bytes and syncing them, in seconds: no transfer can be faster."""
    block = os.urandom(MIB)
    started = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(mib):
            file.write(block)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    path.unlink()
    return seconds


def transfers(report, args, folder, scratch):
    ready = scratch / "ready.json"
    command = [folder / "0g-compute-devnet", "up", "--data-dir", scratch / "network", "--rpc-port", "0", "--storage-port", "0",
               "--provider-port", "0", "--ready-file", ready]
    write_s = disk_write(scratch / "disk", args.transfer_mib)
    path = write_file(scratch / "moved", args.transfer_mib)
    hash_s = median([our_root(folder, path)[0] for _ in range(3)])
    with Process(command, wait_for=ready.exists) as node:
        network = json.loads(ready.read_text())
        ours = move(folder / "0g-storage-client", network, scratch, path, node)
        near, far = (
            move_at_a_distance(folder / "0g-storage-client", network, scratch, path, node, delay_s, name)
            for delay_s, name in ((0.0, b"near file...."), (DELAY_S, b"far file....."))
        )
        theirs = None
        if not args.no_peers:
            binary = common.npm("@0gfoundation/0g-compute-ts-sdk@0.9.0") / "@0gfoundation/0g-compute-ts-sdk/binary/0g-storage-client"
            binary.chmod(0o755)
            change(path, b"another file.")
            theirs = move(binary, network, scratch, path, node)
    alone_s = write_s + hash_s
    for direction, measured, peer, close_by, far_off in zip(DIRECTIONS, ours[0], theirs[0] if theirs else (None, None), near, far):
        what = f"{direction} of {args.transfer_mib} MiB"
        rate = args.transfer_mib * MIB / measured["wall_s"] / 1e6
        report.add(
            what, f"{measured['wall_s']:.2f} s, {rate:.0f} MB/s", f"bundled helper: {peer['wall_s']:.2f} s" if peer else "",
            peer["wall_s"] / measured["wall_s"] if peer else None,
        )
        cpu_s = measured["helper_cpu_s"] + measured["node_cpu_s"]
        report.add(
            f"{what}: CPU of the helper and of the node",
            f"{measured['helper_cpu_s']:.2f} s + {measured['node_cpu_s']:.2f} s, {cpu_s / measured['wall_s']:.2f} cores of {os.cpu_count()} busy",
            f"disk and hash alone: {alone_s:.2f} s",
        )
        slower = far_off["wall_s"] / close_by["wall_s"]
        report.add(
            f"{what}: {DELAY_S * 1000:.0f} ms more a round trip, {far_off['round_trips']} round trips", f"{far_off['wall_s']:.2f} s",
            f"same proxy without delay: {close_by['wall_s']:.2f} s", slower, f"<= {MOST_SLOWER}x", slower <= MOST_SLOWER,
        )
    report.add(f"disk alone, write and sync of {args.transfer_mib} MiB", f"{write_s:.2f} s")
    report.add(f"hash alone, {args.transfer_mib} MiB", f"{hash_s:.2f} s")
    report.add("memory of our helper, up and down", f"{ours[1] / MIB:.0f} MiB", demand="constant")


def change(path, name):
    """Another content of the same length, so that nothing of it is stored yet."""
    with path.open("r+b") as file:
        file.write(name)


def move(binary, network, scratch, path, node):
    """What an upload and a download need with the exact arguments of the published SDKs, and the helper's peak memory."""
    return there_and_back(
        binary, network["rpc_url"], ["--indexer", network["indexer_url"]], scratch, path, node, lambda: 0, LOG_LEVEL
    )


def move_at_a_distance(binary, network, scratch, path, node, delay_s, name):
    """The same through a proxy in front of node and chain. The indexer would name the node itself, so the node is named."""
    change(path, name)
    port = lambda url: int(url.rstrip("/").rsplit(":", 1)[1])
    with SlowProxy(port(network["storage_url"]), delay_s) as storage, SlowProxy(port(network["rpc_url"]), delay_s) as chain:
        return there_and_back(
            binary, f"http://127.0.0.1:{chain.port}", ["--node", f"http://127.0.0.1:{storage.port}"], scratch, path, node,
            lambda: storage.round_trips + chain.round_trips, LOG_LEVEL,
        )[0]


def there_and_back(binary, rpc_url, endpoint, scratch, path, node, round_trips, more):
    environment = {**os.environ, "ZG_HOME": str(scratch / "home")}
    upload = [binary, "upload", "--url", rpc_url, "--key", KEY, *endpoint, "--file", path, "--skip-tx=false", *more]
    peaks = []

    def measured(command):
        before_cpu_s, before_round_trips = node.cpu_s(), round_trips()
        wall_s, cpu_s, peak, output = run_measured(command, env=environment, cwd=scratch)
        peaks.append(peak)
        used = dict(wall_s=wall_s, helper_cpu_s=cpu_s, node_cpu_s=node.cpu_s() - before_cpu_s, round_trips=round_trips() - before_round_trips)
        return used, output

    up, output = measured(upload)
    root = re.findall(r"root\s*=\s*(0x[0-9a-fA-F]{64})", output)[-1]
    target = scratch / "fetched"
    down, output = measured([binary, "download", "--file", target, *endpoint, "--roots", root])
    assert output.strip().endswith("Succeeded to validate the downloaded file"), output
    with path.open("rb") as left, target.open("rb") as right:
        while block := left.read(MIB):
            assert block == right.read(MIB), "the same bytes came back"
        assert right.read(1) == b""
    target.unlink()
    return (up, down), max(peaks)


if __name__ == "__main__":
    sys.exit(main())
