"""Wrong arguments: the documented exception, with the argument's name, before anything happens."""

from __future__ import annotations

import asyncio
import inspect
from decimal import Decimal
from typing import Any

import pytest

import zerog_py_sdk
from conftest import Network
from zerog_py_sdk import (
    ArgumentTypeError,
    ArgumentValueError,
    AsyncBroker,
    ConfigurationError,
    ContractError,
    FundPlan,
    ZGServingBroker,
    create_broker,
    utils,
)

ADDRESS = "0x" + "12" * 20
TASK = "6b607314-88b0-4fef-91e7-43227a54de57"

#: A right value for every argument that must be given.
RIGHT: dict[str, Any] = {
    "provider_address": ADDRESS,
    "fine_tuning_provider": ADDRESS,
    "recipient": ADDRESS,
    "amount": 1,
    "required": 1,
    "fee": 1,
    "service_type": "inference",
    "task_id": TASK,
    "model_name": "m",
    "pre_trained_model_name": "m",
    "base_model": "m",
    "adapter_name": "a",
    "message": "?",
    "content": "",
    "state": "Finished",
    "token_id": 1,
    "token_ids": [1],
    "dataset_hash": "0x" + "0" * 64,
    "data_root": "0x" + "0" * 64,
    "body": {},
    "response": {"id": "x"},
    "plan": FundPlan(0, 0, 0, ADDRESS),
    "on_text": print,
    "chat_id": "x",
}
#: Optional arguments whose type is checked where they come into play only.
LATER = {"request_body", "response_body"}


def paths(name: str) -> bool:
    return name.endswith("_path") or name in ("zip_path", "folder")


def cases() -> list[tuple[str, str, str]]:
    """Every argument of every method."""
    found = []
    kinds = {
        "ledger": zerog_py_sdk.LedgerManager,
        "fine_tuning": zerog_py_sdk.FineTuningBroker,
        "inference": zerog_py_sdk.InferenceManager,
        "inference.lora": zerog_py_sdk.LoRAProcessor,
        "": ZGServingBroker,
    }
    for manager, kind in kinds.items():
        for method, function in inspect.getmembers(kind, inspect.isfunction):
            if method.startswith("_") or method == "close":
                continue
            for name in list(inspect.signature(function).parameters)[1:]:
                if name not in LATER:
                    found.append((manager, method, name))
    return found


class Wrong:
    """An object that fits nowhere."""


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case[0]}.{case[1]}({case[2]})")
def test_every_argument_is_checked_by_name(
    case: tuple[str, str, str], broker: ZGServingBroker, awaited: AsyncBroker, tmp_path: Any
) -> None:
    manager, method, wrong = case
    parameters_file = tmp_path / "parameters.json"
    parameters_file.write_text("{}", encoding="utf-8")
    for one in (broker, awaited):
        owner: Any = one
        for step in filter(None, manager.split(".")):
            owner = getattr(owner, step)
        function = getattr(owner, method)
        arguments: dict[str, Any] = {}
        for name, parameter in inspect.signature(function).parameters.items():
            if name == wrong:
                arguments[name] = Wrong()
            elif parameter.default is inspect.Parameter.empty:
                arguments[name] = str(parameters_file) if paths(name) else RIGHT[name]
        with pytest.raises(ArgumentTypeError) as caught:
            outcome = function(**arguments)
            if inspect.isawaitable(outcome):
                asyncio.run(settle(outcome))
        assert isinstance(caught.value, ContractError) and isinstance(caught.value, TypeError)
        assert caught.value.argument == wrong
        assert wrong in str(caught.value) and "Wrong" in str(caught.value)


async def settle(outcome: Any) -> Any:
    return await outcome


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda broker: broker.ledger.add_ledger("-3"), "amount"),
        (lambda broker: broker.ledger.add_ledger("three"), "amount"),
        (lambda broker: broker.ledger.add_ledger("nan"), "amount"),
        (lambda broker: broker.ledger.add_ledger("2.9"), "amount"),
        (lambda broker: broker.ledger.deposit_fund(0), "amount"),
        (lambda broker: broker.ledger.deposit_fund("0.0000000000000000001"), "amount"),
        (lambda broker: broker.ledger.transfer_fund(ADDRESS, "training", 1), "service_type"),
        (lambda broker: broker.ledger.transfer_fund(ADDRESS, "inference", -1), "amount"),
        (lambda broker: broker.ledger.transfer_fund(ADDRESS, "inference", 2**200), "amount"),
        (lambda broker: broker.fine_tuning.get_account("0x12"), "provider_address"),
        (lambda broker: broker.fine_tuning.get_task(ADDRESS, "not-a-task"), "task_id"),
        (lambda broker: broker.fine_tuning.download_dataset("x", "0x12"), "data_root"),
        (lambda broker: broker.fine_tuning.acknowledge_model(ADDRESS, TASK, "x", "ftp"), "download_method"),
        (lambda broker: broker.fine_tuning.wait_for_state(ADDRESS, TASK, "Done"), "state"),
        (lambda broker: broker.inference.create_api_key(ADDRESS, token_id=255), "token_id"),
        (lambda broker: broker.inference.lora.deploy_adapter(ADDRESS, "m", TASK, True, -1), "timeout_seconds"),
        (lambda broker: broker.inference.lora.chat_completion(ADDRESS, {"x": object()}), "body"),
        (lambda broker: broker.inference.get_request_headers(ADDRESS, use_legacy=True), "use_legacy"),
    ],
)
def test_impossible_values_are_named(call: Any, argument: str, broker: ZGServingBroker) -> None:
    with pytest.raises(ArgumentValueError) as caught:
        call(broker)
    assert isinstance(caught.value, ContractError) and isinstance(caught.value, ValueError)
    assert caught.value.argument == argument
    assert argument in str(caught.value)


def test_brokers_refuse_settings_by_name_and_never_repeat_a_key(network: Network) -> None:
    key = "0x" + "ab" * 31
    for settings, named in (
        ({"private_key": 5}, "private_key"),
        ({"private_key": ""}, "private_key"),
        ({"private_key": key}, "private key"),
        ({"private_key": "0x" + "11" * 32, "network": "moon"}, "moon"),
        ({"private_key": "0x" + "11" * 32, "network": 5}, "network"),
        ({"private_key": "0x" + "11" * 32, "network": "devnet", "ledger_address": "0x1"}, "ledger_address"),
        ({"private_key": "0x" + "11" * 32, "rpc_url": "ftp://127.0.0.1"}, "ftp"),
        ({"private_key": "0x" + "11" * 32, "network": "testnet", "rpc_url": network.info["rpc_url"]}, "31337"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            create_broker(**settings)
        assert named in str(caught.value), str(caught.value)
        assert key[2:] not in str(caught.value)


def test_amounts_convert_exactly() -> None:
    assert utils.og_to_wei("1") == 10**18
    assert utils.og_to_wei("0.1") == utils.og_to_wei(0.1) == 10**17
    assert utils.og_to_wei(Decimal("0.000000000000000001")) == 1
    assert utils.wei_to_og(10**18 + 1) == Decimal("1.000000000000000001")
    assert utils.wei_to_og(0) == 0
    assert f"{utils.wei_to_og(3 * 10**18)} OG" == "3 OG"
    assert utils.format_balance(10**17) == "0.1000 OG"
    assert utils.validate_amount("0.1") and not utils.validate_amount("-1") and not utils.validate_amount("x")
    with pytest.raises(TypeError, match="amount_og"):
        utils.og_to_wei(None)  # type: ignore[arg-type]


def test_addresses_and_names_have_their_published_forms() -> None:
    lower = "0xf07240efa67755b5311bc75784a061edb47165dd"
    assert utils.format_address(lower) == "0xf07240Efa67755B5311bc75784a061eDB47165Dd"
    assert utils.validate_provider_address(lower) and not utils.validate_provider_address("invalid")
    with pytest.raises(ValueError, match="address"):
        utils.format_address("invalid")
    name = utils.make_adapter_name("Qwen2.5-0.5B-Instruct", "0xabc123def456789")
    assert name == "ft-Qwen2-5-0-5B-Instruct-0xabc123def4"
