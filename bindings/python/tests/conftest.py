"""A network for the whole session, and wallets for the tests."""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

import zerog_py_sdk
from zerog_py_sdk import ZGServingBroker, create_broker, utils

ROOT = pathlib.Path(__file__).resolve().parents[3]
MODEL = "Qwen2.5-0.5B-Instruct"
PARAMETERS = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 0.0002, "lora_rank": 8}
START_TIMEOUT_S = 120


@dataclass
class Network:
    """A running ``0g-compute-devnet up``."""

    info: dict[str, Any]
    ready_file: pathlib.Path
    #: Accounts that no test has taken yet; 0 is the owner, 2 the provider.
    free: list[int] = field(default_factory=lambda: [9, 8, 7, 6, 5, 4, 3, 1])

    @property
    def provider(self) -> str:
        return utils.format_address(self.info["provider_address"])

    def take_key(self) -> str:
        """The key of an account of one's own, with nothing in the ledger."""
        return str(self.info["accounts"][self.free.pop()]["private_key"])

    def environment(self, key: str) -> dict[str, str]:
        return {**os.environ, "PRIVATE_KEY": key, "ZEROG_DEVNET_READY_FILE": str(self.ready_file)}


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    binary = os.environ.get("ZEROG_DEVNET_BINARY", str(ROOT / "target/debug/0g-compute-devnet"))
    folder = tmp_path_factory.mktemp("devnet")
    ready_file = folder / "ready.json"
    with open(folder / "log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [binary, "up", "--rpc-port", "0", "--storage-port", "0", "--provider-port", "0", "--ready-file", ready_file],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready_file.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the network did not start: {(folder / 'log').read_text(encoding='utf-8')}")
            time.sleep(0.05)
        os.environ["ZEROG_DEVNET_READY_FILE"] = str(ready_file)
        yield Network(json.loads(ready_file.read_text(encoding="utf-8")), ready_file)
    finally:
        os.environ.pop("ZEROG_DEVNET_READY_FILE", None)
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def broker(network: Network) -> ZGServingBroker:
    """A wallet with a ledger and both sub-accounts, for tests that leave nothing behind that others could mind."""
    made = create_broker(private_key=network.take_key(), network="devnet")
    made.ledger.add_ledger("10")
    made.ledger.transfer_fund(network.provider, "fine-tuning", 10**18)
    return made


def write_inputs(folder: pathlib.Path) -> tuple[str, str]:
    """A small dataset and its parameters."""
    source = ROOT / "fixtures/datasets/lantern-house.messages.jsonl"
    lines = source.read_text(encoding="utf-8").splitlines()[:8]
    dataset, parameters = folder / "training_data.jsonl", folder / "training_params.json"
    dataset.write_text("\n".join(lines) + "\n", encoding="utf-8")
    parameters.write_text(json.dumps(PARAMETERS), encoding="utf-8")
    return str(dataset), str(parameters)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@dataclass
class Delivered:
    """A task that waits for its user."""

    broker: ZGServingBroker
    key: str
    provider: str
    task_id: str
    progress: list[zerog_py_sdk.Progress]


@pytest.fixture(scope="session")
def delivered(network: Network, inputs: tuple[str, str]) -> Delivered:
    """A wallet of its own whose task is delivered and not acknowledged."""
    key = network.take_key()
    broker = create_broker(private_key=key, network="devnet")
    dataset, parameters = inputs
    broker.ledger.add_ledger("5")
    broker.ledger.transfer_fund(network.provider, "fine-tuning", 10**18)
    upload = broker.fine_tuning.upload_dataset_to_tee(network.provider, dataset)
    task_id = broker.fine_tuning.create_task(
        network.provider, MODEL, upload["datasetHash"], parameters, queue=True
    )
    news: list[zerog_py_sdk.Progress] = []
    broker.fine_tuning.wait_for_delivery(network.provider, task_id, 300, news.append)
    return Delivered(broker, key, network.provider, task_id, news)


@pytest.fixture
def run_script(network: Network, tmp_path: pathlib.Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a script as a user would: in a process and a folder of its own, with a wallet of its own."""

    def run(script: str, *arguments: str, key: str | None = None) -> subprocess.CompletedProcess[str]:
        write_inputs(tmp_path)
        (tmp_path / "fixtures").symlink_to(ROOT / "fixtures")
        path = tmp_path / "script.py"
        path.write_text(script, encoding="utf-8")
        return subprocess.run(
            [sys.executable, path, *arguments],
            cwd=tmp_path,
            env=network.environment(key or network.take_key()),
            capture_output=True,
            text=True,
            timeout=540,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def awaited(network: Network) -> zerog_py_sdk.AsyncBroker:
    """A broker to be awaited, with a wallet of its own."""
    return asyncio.run(zerog_py_sdk.create_async_broker(private_key=network.take_key(), network="devnet"))
