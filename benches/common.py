"""What the benchmarks share: building, processes, JSON-RPC over one plain socket, peers, and the table at the end.

Only the standard library is used. Peers come from npm and PyPI, into `target/benches`.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "target" / "benches"
SPEEDS = []


def arguments(description, **more):
    """Flags of every benchmark."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--bin-dir", type=Path, default=None, help="use these binaries instead of a release build")
    parser.add_argument("--no-peers", action="store_true", help="measure only our own side")
    parser.add_argument("--json", type=Path, default=None, help="also write the results to this file")
    for flag, options in more.items():
        parser.add_argument("--" + flag.replace("_", "-"), **options)
    return parser.parse_args()


def build(args, *selection):
    """Folder with the binaries; built in release mode unless one was given."""
    if args.bin_dir:
        return args.bin_dir.resolve()
    for what in selection or ["--bins"]:
        subprocess.run(["cargo", "build", "--release", *what.split()], cwd=ROOT, check=True)
    return ROOT / "target" / "release"


def machine():
    """What the numbers were measured on, and whether anything else was running."""
    model = next(
        (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the run"


class Process:
    """A server in a process group of its own that ends with the benchmark."""

    def __init__(self, command, wait_for=None, timeout=60, **options):
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, start_new_session=True, **options,
        )
        self.first_line = None
        deadline = time.monotonic() + timeout
        while wait_for and not wait_for():
            if self.process.poll() is not None:
                sys.exit(f"{command[0]} ended with {self.process.returncode}")
            if time.monotonic() > deadline:
                self.stop()
                sys.exit(f"{command[0]} was not ready within {timeout} s")
            time.sleep(0.001)
        self.ready_s = time.perf_counter() - self.started

    def cpu_s(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Rpc:
    """JSON-RPC over one kept connection, with as little client as possible: its own cost must not hide the server's."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.rest = b""

    @staticmethod
    def encoded(method, *parameters):
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}).encode()
        head = f"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    def raw(self, request):
        """Sends an encoded request and returns the body of the answer."""
        self.socket.sendall(request)
        data = self.rest
        while b"\r\n\r\n" not in data:
            data += self._more()
        head, _, body = data.partition(b"\r\n\r\n")
        lower = head.lower()
        if b"chunked" in lower:
            while not body.endswith(b"0\r\n\r\n"):
                body += self._more()
            parts, rest = b"", body
            while True:
                size, _, rest = rest.partition(b"\r\n")
                if int(size, 16) == 0:
                    break
                parts += rest[: int(size, 16)]
                rest = rest[int(size, 16) + 2 :]
            self.rest = b""
            return parts
        length = int(lower.split(b"content-length:")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += self._more()
        self.rest = body[length:]
        return body[:length]

    def _more(self):
        data = self.socket.recv(1 << 16)
        if not data:
            sys.exit("the server closed the connection")
        return data

    def __call__(self, method, *parameters):
        answer = json.loads(self.raw(self.encoded(method, *parameters)))
        if answer.get("error"):
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]


class SlowProxy:
    """Passes connections to a port on and holds the first byte of every answer back, as distance would.

    It counts round trips: a request, however long, and what comes back. (HTTP/1.1 clients send one request at a time on a
    connection.) Bandwidth is left as it is.
    """

    def __init__(self, port, delay_s=0.0):
        self.target, self.delay_s, self.round_trips = port, delay_s, 0
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.target))
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            asked = threading.Event()
            threading.Thread(target=self._requests, args=(near, far, asked), daemon=True).start()
            threading.Thread(target=self._answers, args=(far, near, asked), daemon=True).start()

    def _requests(self, near, far, asked):
        for data in received(near):
            if not asked.is_set():
                asked.set()
                with self.lock:
                    self.round_trips += 1
            try:
                far.sendall(data)
            except OSError:
                break
        close(far)

    def _answers(self, far, near, asked):
        for data in received(far):
            if asked.is_set():
                asked.clear()
                time.sleep(self.delay_s)
            try:
                near.sendall(data)
            except OSError:
                break
        close(near)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # Closing alone does not wake a thread that accepts.
        try:
            self.listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.listener.close()


def received(end):
    """What arrives, until the connection ends in whatever way."""
    while True:
        try:
            data = end.recv(1 << 20)
        except OSError:
            return
        if not data:
            return
        yield data


def close(end):
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    end.close()


def answers(port):
    """Whether something speaks JSON-RPC there."""
    try:
        return Rpc(port)("eth_chainId") is not None
    except (OSError, SystemExit, ValueError, RuntimeError):
        return False


def npm(*packages):
    """Folder in which these packages are installed. Their install scripts are not run."""
    folder = CACHE / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "package.json").exists():
        (folder / "package.json").write_text('{"private": true}')
    wanted = [name for name in packages if not installed_npm(folder, name)]
    if wanted:
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *wanted]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return folder / "node_modules"


def installed_npm(folder, name_with_version):
    name, version = name_with_version.rsplit("@", 1)
    manifest = folder / "node_modules" / name / "package.json"
    return manifest.exists() and json.loads(manifest.read_text())["version"] == version


def pypi(*packages):
    """Python of an environment in which these packages are installed."""
    folder = CACHE / "python"
    python = folder / "bin" / "python"
    mark = folder / ("installed-" + "_".join(packages).replace("=", ""))
    if not mark.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        mark.touch()
    return python


def run_measured(command, **options):
    """Wall time, CPU time and peak memory (bytes) of a command that must succeed, and its output."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, **options
    )
    peak = Peak(process.pid)
    output = process.communicate()[0].decode(errors="replace")
    wall_s = time.perf_counter() - started
    peak.stop()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode != 0:
        sys.exit(f"{command[0]} ended with {process.returncode}:\n{output[-2000:]}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall_s, cpu_s, peak.bytes, output


class Peak:
    """Highest memory of a process and its descendants together, looked at every 20 ms."""

    def __init__(self, pid):
        self.pid, self.bytes, self.stopped = pid, 0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self):
        while not self.stopped.is_set():
            self.bytes = max(self.bytes, sum(resident(pid) for pid in descendants(self.pid)))
            self.stopped.wait(0.02)

    def stop(self):
        self.stopped.set()
        self.thread.join()


def descendants(pid):
    found, waiting = [], [pid]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                waiting += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
        except OSError:
            pass
    return found


def resident(pid):
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def median(values):
    return statistics.median(values)


def stripped_bytes(binary):
    """Size of a binary without symbols."""
    CACHE.mkdir(parents=True, exist_ok=True)
    copy = CACHE / (binary.name + ".stripped")
    shutil.copy(binary, copy)
    subprocess.run(["strip", copy], check=True)
    size = copy.stat().st_size
    copy.unlink()
    return size


class Report:
    """Rows of `what, ours, peer, ratio, demand`."""

    def __init__(self, title, args):
        self.title, self.args, self.rows, self.machine = title, args, [], machine()

    def add(self, what, ours, peer="", ratio=None, demand="", passed=None):
        self.rows.append({"what": what, "ours": ours, "peer": peer, "ratio": ratio, "demand": demand, "passed": passed})
        print(f"  {what}: {ours}" + (f" | {peer}" if peer else "") + (f" | {ratio:.1f}x" if ratio else ""), flush=True)

    def end(self):
        print(f"\n{self.title}\n{self.machine}")
        head = ("what", "ours", "peer", "ratio", "demanded", "met")
        cells = [head] + [
            (row["what"], row["ours"], row["peer"], f"{row['ratio']:.1f}x" if row["ratio"] else "", row["demand"],
             "" if row["passed"] is None else "yes" if row["passed"] else "NO")
            for row in self.rows
        ]
        widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
        for row in cells:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
        if self.args.json:
            self.args.json.write_text(json.dumps({"title": self.title, "machine": self.machine, "rows": self.rows}, indent=2))
        return 1 if any(row["passed"] is False for row in self.rows) else 0
