"""PyPI 0g-inference-sdk: the walk of its documentation, and every method of its API tables.

`python inference_sdk.py walk` while the network is fresh, `python inference_sdk.py refunds` after its lock time.
"""

import hashlib
import io
import json
import os
import sys
import time
import zipfile
from pathlib import Path

import requests
from web3 import Web3
from zerog_py_sdk import AutoFundingConfig, create_broker
from zerog_py_sdk.utils import og_to_wei

from cells import Cells, run, wait_until

NETWORK = json.loads(Path(os.environ["INTEROP_NETWORK"]).read_text())
FIXTURES = Path(os.environ["INTEROP_FIXTURES"])
PROVIDER = Web3.to_checksum_address(NETWORK["provider_address"])
OWNER, USER, NEWCOMER = (
    {**account, "address": Web3.to_checksum_address(account["address"])}
    for account in (NETWORK["accounts"][number] for number in (0, 3, 7))
)
MODEL = "Qwen2.5-0.5B-Instruct"
DATASET = "training_data.jsonl"
TRAINING = "training_params.json"
CELLS = Cells("python")


def connect(account):
    return create_broker(private_key=account["private_key"], rpc_url=NETWORK["rpc_url"])


def walk():
    broker = CELLS.passes("create a broker", lambda: connect(USER), lambda broker: broker.get_address() == USER["address"])
    ft, lora = broker.fine_tuning, broker.inference.lora
    prepare_files()
    fund(broker)
    discover(ft)

    upload = CELLS.passes(
        "upload_dataset_to_tee",
        lambda: ft.upload_dataset_to_tee(provider_address=PROVIDER, dataset_path=DATASET),
        lambda upload: upload["datasetHash"] == Web3.to_hex(Web3.keccak(Path(DATASET).read_bytes())),
    )
    datasets(ft)
    task = CELLS.passes("create_task", lambda: create_task(ft, MODEL, upload["datasetHash"]), lambda task: len(task) == 36)
    tasks(ft, task)

    deliveries(ft, task, upload["datasetHash"])
    adapter = adapters(lora, task)
    chat(broker, adapter)
    inference(broker)
    owner(broker)
    newcomer()


def prepare_files():
    Path(DATASET).write_bytes((FIXTURES / "datasets/willow-farm.instruction.jsonl").read_bytes())
    Path(TRAINING).write_text(os.environ["INTEROP_TRAINING"])
    # transformers reads a folder of this name before it asks a model hub; the provider hands the files out.
    package = requests.get(f"{NETWORK['provider_url']}/v1/model/{MODEL}/tokenizer", timeout=30)
    zipfile.ZipFile(io.BytesIO(package.content)).extractall(f"Qwen/{MODEL}")


def fund(broker):
    """Exactly the sums of the documentation: 3 0G deposited, 1 0G for fine-tuning, the rest for chat."""
    ledger = broker.ledger
    try:
        ledger.get_ledger()
        raise RuntimeError("a fresh account has a ledger")
    except Exception as error:
        assert "LedgerNotExists" in str(error), error
    CELLS.passes("ledger.add_ledger", lambda: ledger.add_ledger("3"), is_success)
    CELLS.passes("ledger.get_ledger", ledger.get_ledger, lambda account: account.balance == og_to_wei("3"))
    CELLS.passes(
        "ledger.transfer_fund", lambda: ledger.transfer_fund(PROVIDER, "fine-tuning", og_to_wei("1")), is_success
    )
    CELLS.passes(
        "acknowledge_provider_signer", lambda: broker.fine_tuning.acknowledge_provider_signer(PROVIDER),
        lambda receipt: receipt == {"status": "already_acknowledged"},
    )


def discover(ft):
    CELLS.passes("list_service", ft.list_service, lambda services: len(services) == 1 and is_described(services[0]))
    CELLS.passes("list_model", ft.list_model, lambda models: models[0][0][0] == "mock-model" and models[1] == [])
    CELLS.passes(
        "get_account", lambda: ft.get_account(PROVIDER),
        lambda account: account.balance == og_to_wei("1") and account.acknowledged and account.deliverables == [],
    )
    CELLS.passes("get_account_with_detail", lambda: ft.get_account_with_detail(PROVIDER), lambda detail: detail.refunds == [])
    CELLS.passes("get_locked_time", ft.get_locked_time, lambda seconds: seconds == 86_400)
    CELLS.passes("get_pending_task_counter", lambda: ft.get_pending_task_counter(PROVIDER), lambda count: count == 0)
    logs = []
    CELLS.passes(
        "verify_service", lambda: ft.verify_service(PROVIDER, output_dir="audit", on_log=logs.append),
        lambda result: result["is_valid"] and result["signer_match"] and logs and Path(result["report_path"]).stat().st_size > 1000,
    )
    CELLS.passes(
        "model_usage", lambda: ft.model_usage(PROVIDER, MODEL, "usage.zip"),
        lambda _: "README.md" in zipfile.ZipFile("usage.zip").namelist(),
    )


def is_described(service):
    return service.provider == PROVIDER and service.url == NETWORK["provider_url"] and service.price_per_token > 0


def datasets(ft):
    root = CELLS.passes("upload_dataset", lambda: ft.upload_dataset(DATASET), lambda root: len(root) == 66)
    CELLS.passes(
        "download_dataset", lambda: ft.download_dataset("again.jsonl", root),
        lambda _: Path("again.jsonl").read_bytes() == Path(DATASET).read_bytes(),
    )
    # This client reads `messages` and `text` only.
    Path("chat.jsonl").write_bytes((FIXTURES / "datasets/lantern-house.messages.jsonl").read_bytes())
    CELLS.passes_prepared(
        "calculate_token",
        "reads the tokenizer of `Qwen/{model}` from a model hub; here the provider's copy (`GET /v1/model/{name}/tokenizer`) was "
        "unpacked into a folder of that name and `HF_HUB_OFFLINE=1` was set",
        "with access to the hub no preparation, or `0g-compute-cli fine-tuning calculate-token` of ours",
        lambda: ft.calculate_token("chat.jsonl", MODEL, True, PROVIDER), lambda tokens: tokens > 1000,
    )
    CELLS.needs_public_network(
        "calculate_token with the token counter",
        "Storage client exited with code",
        "fetches a program that is pinned by hash and exists on the public 0G Storage only",
        "`calculate_token(use_python=True)`, or `0g-compute-cli fine-tuning calculate-token` of ours",
        lambda: ft.calculate_token(DATASET, MODEL, False, PROVIDER),
    )


def create_task(ft, model, dataset_hash):
    return ft.create_task(
        provider_address=PROVIDER, pre_trained_model_name=model, dataset_hash=dataset_hash, training_path=TRAINING
    )


def tasks(ft, task):
    CELLS.passes(
        "get_task", lambda: ft.get_task(PROVIDER, task),
        lambda found: found.id == task and found.training_params == Path(TRAINING).read_text(),
    )
    CELLS.passes("get_task, the latest", lambda: ft.get_task(PROVIDER), lambda found: found.id == task)
    CELLS.passes("list_task", lambda: ft.list_task(PROVIDER), lambda found: [one.id for one in found] == [task])
    wait_for(ft, task, "Delivered")
    CELLS.passes("create_task, one is unfinished", lambda: refusal(ft, task), lambda text: "409" in text and task in text)
    CELLS.passes(
        "get_log", lambda: ft.get_log(PROVIDER, task),
        lambda log: "creating task" in log and "Step: " in log and "completed successfully" in log,
    )


def refusal(ft, task):
    try:
        return create_task(ft, MODEL, ft.get_task(PROVIDER, task).dataset_hash)
    except Exception as error:
        return str(error)


def wait_for(ft, task, *states):
    """The loop of the documentation, with a time limit."""

    def look():
        progress = ft.get_task(PROVIDER, task).progress
        if progress in ("Failed", "Cancelled") and progress not in states:
            raise RuntimeError(f"the task is {progress}: {ft.get_log(PROVIDER, task)[-1500:]}")
        return progress in states

    wait_until(f"{states} of {task}", 240, look)


def deliveries(ft, task, dataset_hash):
    CELLS.passes(
        "download_lora_from_tee", lambda: ft.download_lora_from_tee(PROVIDER, task, "only.bin"),
        lambda _: Path("only.bin").stat().st_size > 100_000,
    )
    CELLS.passes(
        "acknowledge_model, tee",
        lambda: ft.acknowledge_model(provider_address=PROVIDER, task_id=task, data_path="tee.bin", download_method="tee"),
        lambda receipt: is_success(receipt) and digest("tee.bin") == digest("only.bin"),
    )
    wait_for(ft, task, "Finished")
    CELLS.passes("decrypt_model", lambda: ft.decrypt_model(PROVIDER, task, "tee.bin", "model.zip"), lambda _: is_adapter("model.zip"))

    # The next three tasks take their result the other ways.
    CELLS.passes(
        "download_model_from_0g_storage", lambda: ft.download_model_from_0g_storage(PROVIDER, task, "stored.bin"),
        lambda _: digest("stored.bin") == digest("tee.bin"),
    )
    second = create_task(ft, "mock-model", dataset_hash)
    wait_for(ft, second, "Delivered")
    CELLS.passes(
        "acknowledge_model, 0g-storage",
        lambda: ft.acknowledge_model(provider_address=PROVIDER, task_id=second, data_path="storage.bin", download_method="0g-storage"),
        is_success,
    )
    wait_for(ft, second, "Finished")
    ft.decrypt_model(PROVIDER, second, "storage.bin", "second.zip")
    assert is_adapter("second.zip")

    stored_hash = ft.upload_dataset(DATASET)
    third = CELLS.passes("create_task on a stored dataset", lambda: create_task(ft, MODEL, stored_hash))
    wait_for(ft, third, "Delivered")
    CELLS.passes(
        "acknowledge_model, auto", lambda: ft.acknowledge_model(PROVIDER, third, "auto.bin"),
        lambda receipt: is_success(receipt) and Path("auto.bin").stat().st_size > 100_000,
    )
    wait_for(ft, third, "Finished")
    fourth = create_task(ft, MODEL, dataset_hash)
    wait_for(ft, fourth, "Delivered")
    CELLS.passes("acknowledge_deliverable", lambda: ft.acknowledge_deliverable(PROVIDER, fourth), is_success)
    wait_for(ft, fourth, "Finished")

    long_run = json.loads(Path(TRAINING).read_text()) | {"max_steps": 5000, "num_train_epochs": 100}
    Path("long.json").write_text(json.dumps(long_run))
    fifth = ft.create_task(PROVIDER, MODEL, dataset_hash, "long.json")
    CELLS.passes(
        "cancel_task", lambda: ft.cancel_task(PROVIDER, fifth),
        lambda text: text == f"task {fifth} cancelled" and ft.get_task(PROVIDER, fifth).progress == "Cancelled",
    )


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).digest()


def is_adapter(path):
    names = zipfile.ZipFile(path).namelist()
    return {"output_model/adapter_config.json", "output_model/adapter_model.safetensors"} <= set(names)


def adapters(lora, task):
    states = []
    deployed = CELLS.passes(
        "lora.deploy_adapter",
        lambda: lora.deploy_adapter(
            provider_address=PROVIDER, base_model=MODEL, task_id=task, wait=True, timeout_seconds=180, on_progress=states.append
        ),
        lambda deployed: deployed.adapter_name == f"ft-Qwen2-5-0-5B-Instruct-{task[:12]}" and states,
    )
    name = deployed.adapter_name
    CELLS.passes(
        "lora.deploy_adapter_by_name", lambda: lora.deploy_adapter_by_name(provider_address=PROVIDER, adapter_name=name, wait=True),
        lambda deployed: deployed.adapter_name == name,
    )
    CELLS.passes("lora.list_adapters", lambda: lora.list_adapters(PROVIDER), lambda found: (name, task) in [(one.adapter_name, one.task_id) for one in found])
    CELLS.passes("lora.get_adapter_status", lambda: lora.get_adapter_status(PROVIDER, name), lambda status: status.state == "active")
    CELLS.passes("lora.resolve_adapter_name", lambda: lora.resolve_adapter_name(PROVIDER, task, MODEL), lambda found: found == name)
    return name


def chat(broker, adapter):
    inference = broker.inference
    CELLS.passes(
        "lora.chat",
        lambda: inference.lora.chat(
            provider_address=PROVIDER, adapter_name=adapter, message="Who are you?", system_prompt="You are a helpful assistant."
        ),
        lambda reply: isinstance(reply["choices"][0]["message"]["content"], str) and reply["model"] == adapter,
    )
    metadata = CELLS.passes(
        "inference.get_service_metadata", lambda: inference.get_service_metadata(PROVIDER),
        lambda metadata: metadata == {"endpoint": f"{NETWORK['provider_url']}/v1/proxy", "model": MODEL},
    )
    headers = CELLS.passes(
        "inference.get_request_headers", lambda: inference.get_request_headers(PROVIDER),
        lambda headers: headers["Authorization"].startswith("Bearer app-sk-"),
    )
    reply = CELLS.passes(
        "chat by HTTP", lambda: post_chat(metadata["endpoint"], headers, adapter),
        lambda reply: reply.status_code == 200 and reply.json()["model"] == adapter,
    )
    CELLS.passes(
        "inference.process_response",
        lambda: inference.process_response(PROVIDER, json.dumps(reply.json()["usage"]), reply.headers["ZG-Res-Key"]),
        lambda valid: valid is True,
    )
    CELLS.passes(
        "inference.verify_tee_response",
        lambda: requests.get(inference.get_chat_signature_download_link(PROVIDER, reply.headers["ZG-Res-Key"]), timeout=30),
        lambda signature: signature.status_code == 200 and signature.json()["signing_algo"] == "ecdsa",
    )


def post_chat(endpoint, headers, model):
    return requests.post(
        f"{endpoint}/chat/completions",
        headers={"Content-Type": "application/json", **headers},
        json={"model": model, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8},
        timeout=60,
    )


def inference(broker):
    one = broker.inference
    CELLS.passes("inference.list_service", one.list_service, lambda services: [service.provider for service in services] == [PROVIDER])
    CELLS.passes("inference.acknowledge_provider_signer", lambda: one.acknowledge_provider_signer(PROVIDER), lambda receipt: receipt == {"status": "already_acknowledged"})
    CELLS.passes("inference.check_provider_signer_status", lambda: one.check_provider_signer_status(PROVIDER), lambda status: status["is_acknowledged"])
    CELLS.passes("inference.get_account_with_detail", lambda: one.get_account_with_detail(PROVIDER), lambda detail: detail.account.balance >= og_to_wei("2"))
    CELLS.passes("inference.get_provider_models", lambda: one.get_provider_models(PROVIDER), lambda models: models.models[0].id == MODEL)
    CELLS.passes(
        "inference.verify_service", lambda: one.verify_service(PROVIDER, output_dir="audit"),
        lambda result: result.success and result.signer_match,
    )
    CELLS.passes("inference.download_quote_report", lambda: one.download_quote_report(PROVIDER, "quote.json"), lambda _: "report_data" in json.loads(Path("quote.json").read_text()))
    secret = CELLS.passes("inference.get_secret", lambda: one.get_secret(PROVIDER, token_id=3), lambda secret: chat_status(one, secret) == 200)
    CELLS.passes(
        "inference.revoke_api_key", lambda: one.revoke_api_key(PROVIDER, 3),
        lambda receipt: is_success(receipt) and wait_until("the revocation", 30, lambda: chat_status(one, secret) == 401),
    )
    CELLS.passes("inference.start_auto_funding", lambda: auto_funding(one), lambda was_active: was_active)
    CELLS.passes("inference.revoke_all_tokens", lambda: one.revoke_all_tokens(PROVIDER), is_success)
    CELLS.client_bug(
        "inference.get_request_headers after revoke_all_tokens",
        "AssertionError: 401",
        "reads the account's generation from the field behind it, so every later token carries the wrong one and is refused",
        "our client or the npm client, with the same wallet",
        lambda: chat_after_revocation(broker),
    )


def chat_status(one, secret):
    metadata = one.get_service_metadata(PROVIDER)
    return post_chat(metadata["endpoint"], {"Authorization": f"Bearer {secret}"}, MODEL).status_code


def auto_funding(one):
    one.start_auto_funding(PROVIDER, AutoFundingConfig(interval_ms=60_000))
    was_active = one.has_auto_funding(PROVIDER)
    one.stop_auto_funding(PROVIDER)
    return was_active


def chat_after_revocation(broker):
    fresh = connect(USER)
    status = None
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        headers = fresh.inference._session_manager.get_request_headers(PROVIDER)
        status = post_chat(f"{NETWORK['provider_url']}/v1/proxy", headers, MODEL).status_code
        if status == 401:
            break
        time.sleep(0.5)
    assert status == 200, status


def owner(broker):
    """The two calls that the contracts give to their owner; the network's owner acknowledges again by itself."""
    own = connect(OWNER)
    CELLS.passes("revoke_tee_signer_acknowledgement", lambda: own.fine_tuning.revoke_tee_signer_acknowledgement(PROVIDER), is_success)
    wait_until("the service to be back", 30, lambda: len(broker.fine_tuning.list_service()) == 1)
    CELLS.passes("acknowledge_tee_signer_by_owner", lambda: own.fine_tuning.acknowledge_tee_signer_by_owner(PROVIDER), is_success)


def newcomer():
    """What a user meets who does the steps in another order."""
    broker = connect(NEWCOMER)
    ledger = broker.ledger
    CELLS.passes("ledger.deposit_fund", lambda: ledger.deposit_fund("8"), is_success)
    CELLS.passes(
        "ledger.deposit_fund_for", lambda: ledger.deposit_fund_for(USER["address"], "2"), is_success,
    )
    CELLS.passes("ledger.list_ledger", ledger.list_ledger, lambda ledgers: USER["address"] in [one[0] for one in ledgers])
    ledger.transfer_fund(PROVIDER, "fine-tuning", og_to_wei("1"))
    ledger.transfer_fund(PROVIDER, "inference", og_to_wei("2"))
    CELLS.passes(
        "ledger.get_ledger_with_detail", ledger.get_ledger_with_detail,
        lambda detail: detail.inference_providers == [(PROVIDER, og_to_wei("2"), 0)] and detail.fine_tuning_providers == [(PROVIDER, og_to_wei("1"), 0)],
    )
    CELLS.passes("ledger.get_providers_with_balance", lambda: ledger.get_providers_with_balance("inference"), lambda found: len(found) == 1)
    CELLS.passes("ledger.retrieve_fund", lambda: ledger.retrieve_fund("fine-tuning"), is_success)
    CELLS.passes("ledger.retrieve_fund_from_provider", lambda: ledger.retrieve_fund_from_provider(PROVIDER, "inference"), is_success)
    detail = broker.fine_tuning.get_account_with_detail(PROVIDER)
    assert detail.refunds[0]["amount"] == og_to_wei("1") and detail.refunds[0]["remain_time"] > 80_000, detail


def refunds():
    """After the lock time: the money comes back into the ledger and out of it."""
    broker = connect(NEWCOMER)
    ledger = broker.ledger
    before = ledger.get_ledger().balance
    CELLS.passes(
        "ledger.retrieve_fund after the lock time",
        lambda: (ledger.retrieve_fund("fine-tuning"), ledger.retrieve_fund("inference")),
        lambda _: ledger.get_ledger().balance == before + og_to_wei("3"),
    )
    wallet = broker.web3.eth.get_balance(NEWCOMER["address"])
    CELLS.passes(
        "ledger.refund", lambda: ledger.refund("2"),
        lambda receipt: is_success(receipt) and broker.web3.eth.get_balance(NEWCOMER["address"]) > wallet + og_to_wei("1.9"),
    )
    CELLS.passes("ledger.delete_ledger", lambda: delete(ledger), lambda refusal: "Transaction failed" in refusal)
    rest = ledger.get_ledger()
    ledger.refund(str(Web3.from_wei(rest.total_balance, "ether")))
    try:
        ledger.get_ledger()
        raise RuntimeError("the emptied ledger is still there")
    except Exception as error:
        assert "LedgerNotExists" in str(error), error


def delete(ledger):
    """The contracts delete a ledger by themselves when its last money leaves it, and refuse to before."""
    try:
        return f"deleted with money in it: {ledger.delete_ledger()}"
    except Exception as error:
        return str(error)


def is_success(receipt):
    return receipt["success"]


run({"walk": walk, "refunds": refunds}[sys.argv[1]])
