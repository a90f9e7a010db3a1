"""Names, arguments, defaults: docs/api.md and the published interface."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import zerog_py_sdk
from conftest import ROOT
from zerog_py_sdk import AsyncBroker, ZGServingBroker, utils

NOTHING = inspect.Parameter.empty

#: The published signatures: manager, method, arguments with defaults in their order.
PUBLISHED: list[tuple[str, str, dict[str, Any]]] = [
    ("fine_tuning", "list_service", {"include_unacknowledged": False}),
    ("fine_tuning", "list_model", {}),
    ("fine_tuning", "get_account", {"provider_address": NOTHING}),
    ("fine_tuning", "get_account_with_detail", {"provider_address": NOTHING}),
    ("fine_tuning", "get_locked_time", {}),
    ("fine_tuning", "acknowledge_provider_signer", {"provider_address": NOTHING}),
    ("fine_tuning", "revoke_tee_signer_acknowledgement", {"provider_address": NOTHING}),
    (
        "fine_tuning",
        "create_task",
        {
            "provider_address": NOTHING,
            "pre_trained_model_name": NOTHING,
            "dataset_hash": NOTHING,
            "training_path": NOTHING,
        },
    ),
    ("fine_tuning", "list_task", {"provider_address": NOTHING}),
    ("fine_tuning", "get_task", {"provider_address": NOTHING, "task_id": None}),
    ("fine_tuning", "cancel_task", {"provider_address": NOTHING, "task_id": NOTHING}),
    ("fine_tuning", "get_log", {"provider_address": NOTHING, "task_id": None}),
    ("fine_tuning", "upload_dataset_to_tee", {"provider_address": NOTHING, "dataset_path": NOTHING}),
    ("fine_tuning", "upload_dataset", {"data_path": NOTHING, "gas_price": None, "max_gas_price": None}),
    ("fine_tuning", "download_dataset", {"data_path": NOTHING, "data_root": NOTHING}),
    (
        "fine_tuning",
        "calculate_token",
        {
            "dataset_path": NOTHING,
            "pre_trained_model_name": NOTHING,
            "use_python": True,
            "provider_address": None,
        },
    ),
    (
        "fine_tuning",
        "acknowledge_model",
        {"provider_address": NOTHING, "task_id": NOTHING, "data_path": NOTHING, "download_method": "tee"},
    ),
    (
        "fine_tuning",
        "download_lora_from_tee",
        {"provider_address": NOTHING, "task_id": NOTHING, "output_path": NOTHING},
    ),
    (
        "fine_tuning",
        "decrypt_model",
        {
            "provider_address": NOTHING,
            "task_id": NOTHING,
            "encrypted_model_path": NOTHING,
            "decrypted_model_path": NOTHING,
        },
    ),
    (
        "fine_tuning",
        "model_usage",
        {"provider_address": NOTHING, "model_name": NOTHING, "output_path": NOTHING},
    ),
    ("fine_tuning", "verify_service", {"provider_address": NOTHING, "output_dir": ".", "on_log": None}),
    (
        "inference.lora",
        "deploy_adapter",
        {
            "provider_address": NOTHING,
            "base_model": NOTHING,
            "task_id": NOTHING,
            "wait": False,
            "timeout_seconds": 120,
            "on_progress": None,
        },
    ),
    (
        "inference.lora",
        "deploy_adapter_by_name",
        {"provider_address": NOTHING, "adapter_name": NOTHING, "wait": False, "timeout_seconds": 120},
    ),
    ("inference.lora", "list_adapters", {"provider_address": NOTHING}),
    ("inference.lora", "get_adapter_status", {"provider_address": NOTHING, "adapter_name": NOTHING}),
    (
        "inference.lora",
        "chat",
        {
            "provider_address": NOTHING,
            "adapter_name": NOTHING,
            "message": NOTHING,
            "system_prompt": "You are a helpful assistant.",
        },
    ),
    ("inference", "get_service_metadata", {"provider_address": NOTHING}),
    ("inference", "get_request_headers", {"provider_address": NOTHING}),
    ("ledger", "get_ledger", {}),
    ("ledger", "add_ledger", {"amount": NOTHING}),
    ("ledger", "deposit_fund", {"amount": NOTHING}),
    ("ledger", "transfer_fund", {"provider_address": NOTHING, "service_type": NOTHING, "amount": 0}),
    ("ledger", "retrieve_fund", {"service_type": "inference"}),
    ("ledger", "refund", {"amount": NOTHING}),
]


def table_names() -> list[str]:
    """The Python names of docs/api.md."""
    names = []
    for line in (ROOT / "docs/api.md").read_text(encoding="utf-8").splitlines():
        cells = line.split("|")
        if line.startswith("| ") and len(cells) == 6:
            names += [name.split("(")[0] for name in cells[3].split("`")[1::2]]
    return names


def managers(broker: ZGServingBroker | AsyncBroker) -> dict[str, Any]:
    return {
        "": broker,
        "ledger": broker.ledger,
        "fine_tuning": broker.fine_tuning,
        "inference": broker.inference,
        "inference.lora": broker.inference.lora,
    }


def test_every_name_of_the_table_exists_blocking_and_awaited(
    broker: ZGServingBroker, awaited: AsyncBroker
) -> None:
    names = table_names()
    assert len(names) > 60, f"only {len(names)} names were found in the table"
    for name in names:
        manager, _, method = name.rpartition(".")
        if manager == "utils":
            assert callable(getattr(utils, method)), name
        elif name in managers(broker) or manager in managers(broker):
            for one in (broker, awaited):
                if not manager and hasattr(zerog_py_sdk, method):
                    assert callable(getattr(zerog_py_sdk, method)), name
                else:
                    assert hasattr(managers(one)[manager], method), f"{name} is missing in {type(one).__name__}"
        else:
            pytest.fail(f"docs/api.md names `{name}`, and there is no {manager!r}")


def test_every_public_method_is_in_the_table(broker: ZGServingBroker) -> None:
    names = set(table_names())
    # Names of the published package for what the table has under another one.
    aliases = {
        "inference.list_adapters", "inference.get_adapter_status", "inference.deploy_adapter",
        "inference.chat_with_fine_tuned_model", "inference.revoke_api_key", "inference.get_secret",
        "ledger.retrieve_fund_from_provider", "fine_tuning.wait_for_state",
    }  # fmt: skip
    for path, manager in managers(broker).items():
        for name, _ in inspect.getmembers(type(manager), inspect.isfunction):
            full = f"{path}.{name}" if path else name
            if not name.startswith("_") and full not in aliases:
                assert full in names, f"`{full}` is missing in docs/api.md"


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: f"{entry[0]}.{entry[1]}")
def test_published_arguments_keep_names_order_and_defaults(
    entry: tuple[str, str, dict[str, Any]], broker: ZGServingBroker, awaited: AsyncBroker
) -> None:
    manager, method, expected = entry
    for one in (broker, awaited):
        parameters = list(inspect.signature(getattr(managers(one)[manager], method)).parameters.values())
        found = {parameter.name: parameter.default for parameter in parameters[: len(expected)]}
        assert list(found.items()) == list(expected.items())
        # What comes after them can be left out.
        assert all(parameter.default is not NOTHING for parameter in parameters[len(expected) :])


def test_provider_may_be_named_in_short(broker: ZGServingBroker) -> None:
    service = broker.fine_tuning.list_service()[0]
    account = broker.fine_tuning.get_account(provider=service.provider)  # type: ignore[call-arg]
    assert account.provider == service.provider
