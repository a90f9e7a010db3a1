"""A task from its delivery to its answers, and calls that are interrupted."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable

import pytest
import requests

from conftest import MODEL, ROOT, Delivered, Network
from zerog_py_sdk import (
    AsyncBroker,
    ContractError,
    InvalidResponseError,
    ModelVerificationError,
    OperationTimeoutError,
    Progress,
    create_async_broker,
)


def test_progress_is_told_step_by_step(delivered: Delivered) -> None:
    states = [news.state for news in delivered.progress if news.event == "task"]
    assert states[-1] == "Delivered" and "Training" in states
    training = [news for news in delivered.progress if news.step]
    assert training and all(news.total_steps == 4 for news in training)
    assert any(news.loss and news.tokens_per_s and news.learning_rate for news in training)


def test_tasks_and_logs_can_be_read(delivered: Delivered) -> None:
    manager = delivered.broker.fine_tuning
    task = manager.get_task(delivered.provider, delivered.task_id)
    assert (task.progress, task.state, task.id) == ("Delivered", "Delivered", delivered.task_id)
    assert task["datasetHash"] == task.dataset_hash and int(task.fee) > 0
    assert task.fee_breakdown and int(task.fee_breakdown.total) == int(task.fee)
    assert task.training and task.training.step == 4
    assert [each.id for each in manager.list_task(delivered.provider)] == [delivered.task_id]
    assert manager.get_task(delivered.provider).id == delivered.task_id
    log = manager.get_log(delivered.provider, delivered.task_id)
    assert "completed successfully" in log and manager.get_log(delivered.provider) == log
    curve = manager.get_loss_curve(delivered.provider, delivered.task_id)
    assert [point.step for point in curve.points] == [1, 2, 3, 4] and curve.evaluations == []
    assert len(curve.to_csv().splitlines()) == 5 and "<polyline" in curve.to_svg() and "step 1" in curve.to_text()
    pieces: list[str] = []
    assert manager.follow_log(delivered.provider, delivered.task_id, pieces.append).state == "Delivered"
    assert "completed successfully" in "".join(pieces)
    with pytest.raises(ContractError):
        manager.cancel_task(delivered.provider, delivered.task_id)


def test_waiting_ends_in_time(delivered: Delivered) -> None:
    with pytest.raises(TimeoutError) as caught:
        delivered.broker.fine_tuning.wait_for_state(delivered.provider, delivered.task_id, "Finished", 0.5)
    assert isinstance(caught.value, OperationTimeoutError) and caught.value.last == "Delivered"


WAIT_FOREVER = """
import os, signal, sys
from zerog_py_sdk import create_broker
# As at a terminal; where tests run in the background, the signal is ignored from the start.
signal.signal(signal.SIGINT, signal.default_int_handler)
broker = create_broker(private_key=os.environ["PRIVATE_KEY"], network="devnet")
def told(news):
    print("waiting", flush=True)
try:
    broker.fine_tuning.wait_for_state(sys.argv[1], sys.argv[2], "Finished", on_progress=told)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    # The broker still works.
    print(broker.fine_tuning.get_task(sys.argv[1], sys.argv[2]).progress, flush=True)
"""


def test_ctrl_c_ends_a_long_call(network: Network, delivered: Delivered) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT_FOREVER, delivered.provider, delivered.task_id],
        env=network.environment(delivered.key),
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == "waiting"
            process.send_signal(signal.SIGINT)
            rest, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert rest.split() == ["interrupted", "Delivered"]
    assert process.returncode == 0


def test_other_threads_run_during_a_call(delivered: Delivered) -> None:
    count = 0

    def work() -> None:
        nonlocal count
        while not done.is_set():
            count += 1
            time.sleep(0.01)

    done = threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    try:
        with pytest.raises(TimeoutError):
            delivered.broker.fine_tuning.wait_for_state(delivered.provider, delivered.task_id, "Finished", 1)
    finally:
        done.set()
        thread.join()
    assert count > 10


def test_a_callback_that_fails_ends_the_call(delivered: Delivered) -> None:
    def fail(news: Progress) -> None:
        raise LookupError(news.event)

    with pytest.raises(LookupError, match="task"):
        delivered.broker.fine_tuning.wait_for_state(
            delivered.provider, delivered.task_id, "Finished", on_progress=fail
        )


def test_a_callback_may_call_the_broker(delivered: Delivered) -> None:
    seen = []

    def look(news: Progress) -> None:
        seen.append(delivered.broker.fine_tuning.get_task(delivered.provider).progress)

    delivered.broker.fine_tuning.wait_for_delivery(delivered.provider, delivered.task_id, 60, look)
    assert seen == ["Delivered"]


def test_awaited_calls_run_together_and_can_be_cancelled(delivered: Delivered) -> None:
    async def walk() -> None:
        broker = await create_async_broker(private_key=delivered.key, network="devnet")
        async with broker:
            manager = broker.fine_tuning
            news: list[Progress] = []
            waiting = asyncio.create_task(
                manager.wait_for_state(delivered.provider, delivered.task_id, "Finished", on_progress=news.append)
            )
            tasks = await asyncio.gather(*(manager.get_task(delivered.provider) for _ in range(8)))
            assert {task.progress for task in tasks} == {"Delivered"}
            while not news:
                await asyncio.sleep(0.01)
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiting
            assert waiting.cancelled()

            def fail(_: Progress) -> None:
                raise LookupError

            with pytest.raises(LookupError):
                await manager.wait_for_state(delivered.provider, delivered.task_id, "Finished", on_progress=fail)
            with pytest.raises(ContractError):
                await manager.get_task("0x" + "12" * 20)

    asyncio.run(asyncio.wait_for(walk(), 120))


def test_results_come_out_whole(delivered: Delivered, tmp_path: pathlib.Path) -> None:
    """One test, because a task is acknowledged once."""
    manager, provider, task = delivered.broker.fine_tuning, delivered.provider, delivered.task_id
    with pytest.raises(ContractError, match="acknowledge_model"):
        manager.decrypt_model(provider, task, _written(tmp_path / "any", b"x"), tmp_path / "any.zip")
    other = tmp_path / "other.bin"
    other.write_bytes(b"something else")
    with pytest.raises(ValueError, match="data_path"):
        manager.acknowledge_model(provider, task, str(other))
    assert not manager.get_deliverable(provider, task).acknowledged

    transfers: list[Progress] = []
    manager.download_lora_from_tee(provider, task, tmp_path / "lora.bin", on_progress=transfers.append)
    assert any(news.event == "transfer" for news in transfers)
    manager.download_model_from_0g_storage(provider, task, tmp_path / "stored.bin")
    assert (tmp_path / "stored.bin").read_bytes() == (tmp_path / "lora.bin").read_bytes()

    receipt = manager.acknowledge_model(provider, task, data_path=tmp_path / "lora.bin", download_method="tee")
    assert receipt["status"] == 1 and receipt.modelRootHash.startswith("0x")
    assert manager.acknowledge_deliverable(provider, task) == {"status": "already_acknowledged"}

    # Right after the acknowledgement: it waits for the key.
    manager.decrypt_model(provider, task, str(tmp_path / "lora.bin"), str(tmp_path / "lora.zip"))
    assert zipfile.is_zipfile(tmp_path / "lora.zip")
    assert manager.get_task(provider, task).progress in ("Delivered", "Completed")
    deliverable = manager.get_deliverable(provider, task)
    assert deliverable.settled and deliverable.encrypted_secret

    content = bytearray((tmp_path / "lora.bin").read_bytes())
    content[-1] ^= 1
    with pytest.raises(ModelVerificationError):
        manager.decrypt_model(provider, task, _written(tmp_path / "bad.bin", bytes(content)), tmp_path / "bad.zip")
    assert not (tmp_path / "bad.zip").exists()

    manifest = manager.unpack_adapter(tmp_path / "lora.zip", tmp_path / "adapter")
    assert manifest and manifest["task_id"] == task and manifest["stand_in"] is True
    assert (tmp_path / "adapter/adapter_model.safetensors").is_file()


def _written(path: pathlib.Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


@pytest.fixture(scope="module")
def adapter(delivered: Delivered) -> str:
    """The delivered task's adapter, served."""
    delivered.broker.fine_tuning.acknowledge_deliverable(delivered.provider, delivered.task_id)
    delivered.broker.ledger.deposit_fund("2")
    states: list[str] = []
    response = delivered.broker.inference.lora.deploy_adapter(
        provider_address=delivered.provider,
        base_model=MODEL,
        task_id=delivered.task_id,
        wait=True,
        timeout_seconds=180,
        on_progress=states.append,
    )
    assert response.message and states[-1] == "active"
    return response.adapter_name


def test_adapters_answer_and_prove_it(delivered: Delivered, adapter: str) -> None:
    lora, provider = delivered.broker.inference.lora, delivered.provider
    (known,) = lora.list_adapters(provider)
    assert (known.adapter_name, known.task_id) == (adapter, delivered.task_id)
    assert lora.get_adapter_status(provider, adapter).state == "active"
    assert lora.resolve_adapter_name(provider, delivered.task_id, MODEL) == adapter
    again = lora.deploy_adapter_by_name(provider, adapter, wait=True)
    assert "already" in again.message

    response = lora.chat(provider, adapter, "Who are you?")
    content = response["choices"][0]["message"]["content"]
    assert isinstance(response, dict) and content
    proof = lora.verify_answer(provider, response)
    assert proof.signer == delivered.broker.inference.get_service(provider).tee_signer_address
    assert delivered.broker.inference.process_response(provider, content, response["id"])
    assert not delivered.broker.inference.process_response(provider, content + "!", response["id"])
    response["choices"][0]["message"]["content"] = "something else"
    with pytest.raises(InvalidResponseError, match="changed"):
        lora.verify_answer(provider, response)


def test_answers_stream(delivered: Delivered, adapter: str) -> None:
    lora, provider = delivered.broker.inference.lora, delivered.provider
    body = {"model": adapter, "messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0}
    stream = lora.chat_stream(provider, body)
    pieces = list(stream)
    assert stream.response is not None
    whole = stream.response["choices"][0]["message"]["content"]
    assert "".join(pieces) == whole == lora.chat_completion(provider, body)["choices"][0]["message"]["content"]
    assert len(pieces) > 1 and stream.response["usage"]["completion_tokens"] > 0
    lora.verify_answer(provider, stream.response)
    assert list(stream) == []


def test_answers_stream_awaited(delivered: Delivered, adapter: str) -> None:
    async def ask() -> str:
        broker: AsyncBroker = await create_async_broker(private_key=delivered.key, network="devnet")
        body = {"model": adapter, "messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0}
        stream = await broker.inference.lora.chat_stream(delivered.provider, body)
        text = "".join([piece async for piece in stream])
        assert stream.response is not None
        await broker.inference.lora.verify_answer(delivered.provider, stream.response)
        return text

    assert asyncio.run(asyncio.wait_for(ask(), 120))


def test_requests_of_ones_own_can_be_proven(delivered: Delivered, adapter: str) -> None:
    inference, provider = delivered.broker.inference, delivered.provider
    metadata = inference.get_service_metadata(provider)
    body = '{"model": "%s", "messages": [{"role": "user", "content": "Hello!"}]}' % adapter
    answer = requests.post(
        f"{metadata['endpoint']}/chat/completions",
        headers={"Content-Type": "application/json", **inference.get_request_headers(provider)},
        data=body,
        timeout=120,
    )
    assert answer.status_code == 200
    content, chat_id = answer.json()["choices"][0]["message"]["content"], answer.headers["ZG-Res-Key"]
    with pytest.raises(ValueError, match="request_body"):
        inference.process_response(provider, content, chat_id)
    proven = inference.process_response(
        provider, content, chat_id, request_body=body, response_body=answer.content
    )
    assert proven
    assert not inference.process_response(
        provider, content, chat_id, request_body=body + " ", response_body=answer.content
    )


def test_our_own_example_runs(run_script: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    script = (ROOT / "bindings/python/examples/end_to_end.py").read_text(encoding="utf-8")
    ran = run_script(script, "training_data.jsonl", "training_params.json", "devnet")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Delivered" in ran.stdout and "signed by enclave 0x" in ran.stdout
