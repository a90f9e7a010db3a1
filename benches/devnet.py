#!/usr/bin/env python3
"""The embedded chain against anvil: time to be ready with all contracts, and transactions one at a time.

    python3 benches/devnet.py

Every transaction is signed beforehand and sent with eth_sendRawTransaction; then its receipt is asked for until it is
there. Both chains get the same bytes over one kept connection, in turns of a hundred, so that other load on the machine
falls on both. anvil comes from npm and keeps its defaults; a second row gives it --prune-history, which makes it faster.
"""

import sys
import time

import common
import transactions
from common import Process, Rpc, median

CHAIN_ID = 31337
KEY = 0x2A871D0798F97D79848A013D4936A73BF4CC922C825D33C1CF7073DFF6D409C6  # development account 9
FLOW = "0x9a9f2ccfde556a7e9ff0848998aa4a0cfd8863ae"
# Stores its first argument in slot 0: PUSH0 CALLDATALOAD PUSH0 SSTORE, behind code that returns it.
STORE = bytes.fromhex("6004600c60003960046000f3" + "5f355f55")
ROUND = 100


def main():
    args = common.arguments(
        __doc__.splitlines()[0],
        transactions=dict(type=int, default=1000, help="of each kind"),
        starts=dict(type=int, default=11, help="how often readiness is measured"),
    )
    report = common.Report("Embedded chain", args)
    folder = common.build(args, "--workspace --example contracts_chain")
    program = folder / "examples" / "contracts_chain"
    anvil = None
    if not args.no_peers:
        anvil = common.npm("@foundry-rs/anvil-linux-amd64@1.7.1") / "@foundry-rs/anvil-linux-amd64/bin/anvil"
        anvil.chmod(0o755)

    readiness(report, args, program, anvil)
    requests = signed_requests(args.transactions)
    rows(report, requests, program, anvil, [], "anvil 1.7.1", demand=5)
    if anvil:
        rows(report, requests, program, anvil, ["--prune-history", "50"], "anvil --prune-history 50")
    return report.end()


def start(program, port):
    return Process([program, str(port)], wait_for=lambda: common.answers(port))


def start_anvil(anvil, port, more=()):
    return Process([anvil, "--silent", "--port", str(port), *more], wait_for=lambda: common.answers(port))


def readiness(report, args, program, anvil):
    """Spawn to the first answer; ours must then have the contracts."""
    ours, theirs = [], []
    for _ in range(args.starts):
        port = common.free_port()
        with start(program, port) as chain:
            ours.append(chain.ready_s)
            assert len(Rpc(port)("eth_getCode", FLOW, "latest")) > 1000, "the contracts are there"
        if anvil:
            port = common.free_port()
            with start_anvil(anvil, port) as chain:
                theirs.append(chain.ready_s)
    peer = f"anvil, empty: {median(theirs) * 1e3:.0f} ms" if theirs else ""
    ratio = median(theirs) / median(ours) if theirs else None
    report.add(
        "ready, ours with all contracts (median)", f"{median(ours) * 1e3:.0f} ms", peer, ratio, "<= 50 ms", median(ours) <= 0.050
    )


def signed_requests(count):
    """Transfers and contract calls of one account, interleaved per round, encoded for the wire."""
    print(f"  signing {2 * count} transactions ...", flush=True)
    sender = transactions.address_of(KEY)
    store = transactions.created_address(sender, 0)
    nonce = 0

    def request(to, value, data, gas):
        nonlocal nonce
        raw = transactions.signed(KEY, CHAIN_ID, nonce, to, value, data, gas, 3_000_000_000)
        nonce += 1
        digest = "0x" + transactions.keccak(bytes.fromhex(raw[2:])).hex()
        return Rpc.encoded("eth_sendRawTransaction", raw), Rpc.encoded("eth_getTransactionReceipt", digest)

    requests = [("deploy", [request(b"", 0, STORE, 200_000)])]
    for first in range(0, count, ROUND):
        size = min(ROUND, count - first)
        requests.append(("transfer", [request(bytes.fromhex("11" * 20), 1, b"", 21_000) for _ in range(size)]))
        calls = [request(store, 0, (first + i + 1).to_bytes(32, "big"), 60_000) for i in range(size)]
        requests.append(("contract call", calls))
    return requests


def rows(report, requests, program, anvil, more, name, demand=None):
    """One row for each kind of transaction."""
    port, other_port = common.free_port(), common.free_port()
    with start(program, port) as chain:
        sides = [("ours", Rpc(port), chain)]
        peer = start_anvil(anvil, other_port, more) if anvil else None
        if peer:
            sides.append(("peer", Rpc(other_port), peer))
        try:
            times = {}
            cpu_before = [server.cpu_s() for _, _, server in sides]
            for kind, pairs in requests:
                for side, rpc, _ in sides:
                    times.setdefault((side, kind), []).extend(send(rpc, pair) for pair in pairs)
            cpu = [server.cpu_s() - before for (_, _, server), before in zip(sides, cpu_before)]
            for _, rpc, _ in sides:
                store = transactions.created_address(transactions.address_of(KEY), 0)
                assert int(rpc("eth_getStorageAt", "0x" + store.hex(), "0x0", "latest"), 16) > 0, "the calls had an effect"
        finally:
            if peer:
                peer.stop()
    for kind in ("transfer", "contract call"):
        ours = median(times["ours", kind])
        theirs = median(times["peer", kind]) if anvil else None
        report.add(
            f"{kind}, send + receipt (median)", f"{ours * 1e6:.0f} us",
            f"{name}: {theirs * 1e6:.0f} us" if anvil else "", theirs / ours if anvil else None,
            f">= {demand}x" if demand and anvil else "", theirs / ours >= demand if demand and anvil else None,
        )
    sent = sum(len(pairs) for _, pairs in requests)
    report.add(
        "CPU per transaction", f"{cpu[0] / sent * 1e6:.0f} us",
        f"{name}: {cpu[1] / sent * 1e6:.0f} us" if anvil else "", cpu[1] / max(cpu[0], 0.01) if anvil else None,
    )


def send(rpc, pair):
    """Seconds from sending to holding the receipt."""
    started = time.perf_counter()
    answer = rpc.raw(pair[0])
    assert b'"error"' not in answer, answer
    while True:
        receipt = rpc.raw(pair[1])
        if b'"blockNumber"' in receipt:
            assert b'"status":"0x1"' in receipt.replace(b" ", b""), receipt
            return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
