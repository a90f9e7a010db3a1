"""Connecting, records, money, and errors that say what to do."""

from __future__ import annotations

import functools
import json
import multiprocessing
import pathlib
from typing import Any

import pytest

import zerog_py_sdk
from conftest import MODEL, Network
from zerog_py_sdk import (
    AccountNotFoundError,
    AuthenticationError,
    ConfigurationError,
    ContractError,
    FileError,
    InsufficientBalanceError,
    Progress,
    ServiceNotFoundError,
    ValidationError,
    ZGServingBroker,
    create_broker,
    create_broker_from_env,
    create_read_only_broker,
)

NOBODY = "0x" + "12" * 20


def test_devnet_is_found_and_its_chain_names_it(network: Network, broker: ZGServingBroker) -> None:
    assert broker.network.name == "devnet"
    assert broker.network.rpc_url == network.info["rpc_url"]
    by_url = create_read_only_broker(rpc_url=network.info["rpc_url"])
    assert (by_url.network.name, by_url.network.chain_id) == ("devnet", 31337)


def test_addresses_can_be_overridden(network: Network) -> None:
    key = network.info["accounts"][1]["private_key"]
    elsewhere = create_broker(private_key=key, network="devnet", fine_tuning_address=NOBODY)
    assert elsewhere.network.fine_tuning_address.lower() == NOBODY
    with pytest.raises(ContractError):
        elsewhere.fine_tuning.list_service()


def test_settings_come_from_environment_and_file(
    network: Network, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = network.info["accounts"][1]
    for name in ("PRIVATE_KEY", "RPC_URL", "NETWORK"):
        monkeypatch.delenv(name, raising=False)
    env_file = tmp_path / ".env"
    with pytest.raises(ConfigurationError, match="PRIVATE_KEY"):
        create_broker_from_env(str(env_file))
    env_file.write_text(
        f"# a comment\nexport NETWORK=devnet\nPRIVATE_KEY=\"{account['private_key']}\"\n", encoding="utf-8"
    )
    made = create_broker_from_env(str(env_file))
    assert made.get_address().lower() == account["address"].lower()
    env_file.write_text("no assignment\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=":1:"):
        create_broker_from_env(str(env_file))


def test_records_read_by_attribute_and_by_name(network: Network, broker: ZGServingBroker) -> None:
    (service,) = broker.fine_tuning.list_service()
    assert service.provider == service["provider"] == network.provider
    assert service.quota.gpu_count == service["quota"]["gpuCount"]
    assert service.price_per_token == service["pricePerToken"] > 0
    assert service.get("nothing") is None and "url" in service and "nothing" not in service
    assert json.loads(json.dumps(service.to_dict()))["quota"]["cpu_count"] == service.quota.cpu_count
    with pytest.raises(KeyError):
        service["nothing"]
    receipt = broker.ledger.deposit_fund("0.5")
    assert receipt["status"] == 1 and receipt.success and receipt.transactionHash == receipt["transaction_hash"]
    with pytest.raises(AttributeError):
        receipt.nothing  # noqa: B018


def test_models_are_listed_as_published(broker: ZGServingBroker) -> None:
    predefined, customised = broker.fine_tuning.list_model()
    assert all(isinstance(name, str) and details["turbo"].startswith("0x") for name, details in predefined)
    assert all(details["provider"] for _, details in customised)


def test_money_goes_there_and_back(network: Network, broker: ZGServingBroker) -> None:
    before = broker.ledger.get_ledger()
    assert before.balance + before.locked == before.total_balance
    account = broker.fine_tuning.get_account(network.provider)
    assert account.acknowledged and account.locked_balance >= 10**18
    assert (network.provider, account.balance, account.pending_refund) in broker.ledger.get_ledger_with_detail()[
        "fine_tuning_providers"
    ]
    assert broker.ledger.get_providers("fine-tuning") == [network.provider]

    broker.ledger.transfer_fund(network.provider, "fine-tuning", 10**18)
    assert broker.ledger.get_ledger().balance == before.balance - 10**18
    broker.ledger.retrieve_fund("fine-tuning")
    detail = broker.fine_tuning.get_account_with_detail(network.provider)
    (refund,) = detail.refunds
    assert refund.amount == detail.account.pending_refund > 0
    assert 0 < refund.remain_time <= broker.fine_tuning.get_locked_time()
    # A transfer takes back what was asked back, so that later tests find the money where it was.
    broker.ledger.transfer_fund(network.provider, "fine-tuning", refund.amount)
    assert broker.fine_tuning.get_account(network.provider).pending_refund == 0

    assert broker.fine_tuning.acknowledge_provider_signer(network.provider) == {"status": "already_acknowledged"}
    with pytest.raises(InsufficientBalanceError) as caught:
        broker.ledger.transfer_fund(network.provider, "fine-tuning", 10**21)
    assert caught.value.required > caught.value.available
    assert "deposit_fund" in str(caught.value)


def test_gas_prices_can_be_given_per_call(broker: ZGServingBroker, inputs: tuple[str, str]) -> None:
    with pytest.raises(ContractError, match="gas price"):
        broker.fine_tuning.upload_dataset(inputs[0], max_gas_price=1)


def test_missing_things_are_named_with_the_call_that_makes_them(network: Network, broker: ZGServingBroker) -> None:
    stranger = create_broker(private_key="0x" + "42" * 32, network="devnet")
    with pytest.raises(AccountNotFoundError, match="add_ledger") as caught:
        stranger.ledger.get_ledger()
    assert caught.value.code == "ledger_missing" and caught.value.category == "funds"
    assert caught.value.operation == "getLedger"
    with pytest.raises(AccountNotFoundError, match="transfer_fund"):
        stranger.fine_tuning.get_account(network.provider)
    with pytest.raises(ServiceNotFoundError, match="list_service"):
        broker.fine_tuning.get_service(NOBODY)
    with pytest.raises(ContractError):
        stranger.ledger.add_ledger("3")


def test_bad_inputs_are_found_before_anything_is_sent(
    network: Network, broker: ZGServingBroker, inputs: tuple[str, str], tmp_path: pathlib.Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\n{oops}\n', encoding="utf-8")
    for check in (
        lambda: broker.fine_tuning.check_dataset(bad),
        lambda: broker.fine_tuning.upload_dataset_to_tee(network.provider, bad),
    ):
        with pytest.raises(ValidationError, match="2") as caught:
            check()
        assert isinstance(caught.value, ValueError) and isinstance(caught.value, ContractError)
    with pytest.raises(FileError, match="none.jsonl") as missing:
        broker.fine_tuning.upload_dataset_to_tee(network.provider, tmp_path / "none.jsonl")
    assert isinstance(missing.value, OSError)
    with pytest.raises(FileError, match="training_path"):
        broker.fine_tuning.create_task(network.provider, MODEL, "0x" + "0" * 64, tmp_path / "none.json")
    bad_parameters = tmp_path / "bad.json"
    bad_parameters.write_text('{"num_train_epochs": "many"}', encoding="utf-8")
    with pytest.raises(ValidationError, match="num_train_epochs"):
        broker.fine_tuning.quote_fee(network.provider, MODEL, inputs[0], bad_parameters)
    with pytest.raises(ValidationError, match="list_model"):
        broker.fine_tuning.quote_fee(network.provider, "Qwen-none", *inputs)


def test_tokens_are_counted_as_they_are_priced(
    network: Network, broker: ZGServingBroker, inputs: tuple[str, str]
) -> None:
    tokens = broker.fine_tuning.calculate_token(inputs[0], MODEL, use_python=True, provider_address=network.provider)
    quote = broker.fine_tuning.quote_fee(network.provider, MODEL, *inputs)
    assert tokens == quote.calculation.tokens > 0 and not quote.is_estimate
    assert quote.billed_tokens == 2 * tokens
    assert quote.total == quote.training_fee + quote.storage_fee
    assert quote.training_fee == quote.billed_tokens * quote.price_per_token * quote.price_coefficient


def test_quotes_are_counted_here_or_signed_by_the_enclave(
    network: Network, broker: ZGServingBroker, inputs: tuple[str, str], tmp_path: pathlib.Path
) -> None:
    manager = broker.fine_tuning
    counted = manager.quote(network.provider, MODEL, inputs[1], dataset_path=inputs[0])
    assert counted.fee == manager.quote_fee(network.provider, MODEL, *inputs)
    assert counted.signed is None and counted.dataset_hash is None
    uploaded = manager.upload_dataset_to_tee(network.provider, inputs[0])["datasetHash"]
    signed = manager.quote(network.provider, MODEL, inputs[1], dataset_hash=uploaded)
    assert counted.fee and signed.fee and signed.fee.total == counted.fee.total
    assert signed.signed and signed.signer == manager.get_service(network.provider).tee_signer_address
    assert manager.delete_dataset(network.provider, uploaded)
    with pytest.raises(ContractError):
        manager.delete_dataset(network.provider, uploaded)
    with pytest.raises(ContractError):
        manager.quote(network.provider, MODEL, inputs[1], dataset_hash=uploaded)
    with pytest.raises(ValueError, match="dataset_path"):
        manager.quote(network.provider, MODEL, inputs[1])

    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\n{oops}\n{"prompt": "a"}\n', encoding="utf-8")
    refused = manager.quote(network.provider, MODEL, inputs[1], dataset_path=bad)
    assert refused.fee is None
    assert [(finding.line, finding.severity) for finding in refused.findings] == [(2, "error"), (3, "error")]


def test_a_task_funds_itself_up_to_its_quote(network: Network, inputs: tuple[str, str]) -> None:
    made = create_broker(private_key=network.take_key(), network="devnet")
    manager = made.fine_tuning
    uploaded = manager.upload_dataset_to_tee(network.provider, inputs[0])["datasetHash"]
    create = functools.partial(manager.create_task, network.provider, MODEL, uploaded, inputs[1], queue=True)
    with pytest.raises(ContractError):
        create()
    with pytest.raises(ContractError):
        create(auto_fund=True, max_fee=1)
    news: list[Progress] = []
    task = create(auto_fund=True, on_progress=news.append)
    assert [event.service for event in news if event.event == "funded"] == ["fine-tuning"]
    account = manager.get_account(network.provider)
    assert account.acknowledged and account.balance > 0
    manager.cancel_task(network.provider, task)


def test_verification_says_that_the_enclave_is_simulated(
    network: Network, broker: ZGServingBroker, tmp_path: pathlib.Path
) -> None:
    lines: list[str] = []
    report = broker.fine_tuning.verify_service(network.provider, str(tmp_path / "audit"), lines.append)
    assert report.get("is_valid") is False and report["assurance"] == "simulated" and report.signer_match
    assert (tmp_path / "audit/fine_tuning_attestation_report.json").is_file()
    verdict = json.loads((tmp_path / "audit/fine_tuning_verdict.json").read_text(encoding="utf-8"))
    assert verdict["verdict"]["level"] == "SIMULATED" and verdict["nonce"] == report["nonce"]
    assert "SIMULATED" in (tmp_path / "audit/fine_tuning_report.md").read_text(encoding="utf-8")
    assert any("SIMULATED" in line for line in lines)
    quote = broker.fine_tuning.get_quote(network.provider)
    assert quote.signing_address.lower() == report.tee_signer.lower() == report.expected_signer.lower()
    steps: list[zerog_py_sdk.VerificationStep] = []
    judged = broker.inference.verify_service(network.provider, str(tmp_path / "audit"), steps.append)
    assert judged.success is False and judged["success"] is judged.is_valid, "success is the verdict"
    assert judged.assurance == "simulated" and judged.attestation_verified is False
    assert "simulated" in judged.attestation_error.lower()
    assert judged.reports_generated == ["combined"] and judged["reportsGenerated"] == ["combined"]
    assert judged.output_directory == str(tmp_path / "audit") and judged.target_separated is False
    assert judged.signer_verification["allMatch"] is True
    (signer,) = judged.signer_verification.report_addresses
    assert signer.address == judged.signer_verification.contract_address == judged.tee_signer
    composed = judged.compose_verification
    assert composed.passed is True and composed.details["combined"].error is None
    assert composed.details["combined"].calculated_hash == composed.details["combined"]["eventLogHash"]
    assert judged.is_acknowledged is True and judged.service_type and judged.model
    assert bytes.fromhex(judged.quote_data)[:2] == b"\x04\x00" and "report" not in judged
    (kept,) = (tmp_path / "audit").glob(f"verification_{network.provider}_*.json")
    document = json.loads(kept.read_text(encoding="utf-8"))
    assert document["success"] is False and document["assurance"] == "simulated"
    assert document["quote_data"] == judged.quote_data and document["timestamp"] == judged.timestamp
    assert broker.inference.verify_service(network.provider).output_directory is None
    assert {"step", "warning"} <= {step.type for step in steps}
    verdict = json.loads((tmp_path / "audit/verdict.json").read_text(encoding="utf-8"))
    assert verdict["service"] == "inference", "both services fit into one folder"
    assert (tmp_path / "audit/report.md").is_file() and (tmp_path / "audit/attestation_report.json").is_file()


def test_storage_keeps_a_file_in_clear(
    broker: ZGServingBroker, inputs: tuple[str, str], tmp_path: pathlib.Path
) -> None:
    root = broker.fine_tuning.upload_dataset(inputs[0])
    broker.fine_tuning.download_dataset(tmp_path / "again.jsonl", root)
    assert (tmp_path / "again.jsonl").read_bytes() == pathlib.Path(inputs[0]).read_bytes()


def test_usage_is_saved_as_text_or_package(network: Network, broker: ZGServingBroker, tmp_path: pathlib.Path) -> None:
    broker.fine_tuning.model_usage(network.provider, MODEL, tmp_path / "usage.md")
    assert MODEL in (tmp_path / "usage.md").read_text(encoding="utf-8")
    broker.fine_tuning.model_usage(network.provider, MODEL, str(tmp_path / "usage.zip"))
    assert (tmp_path / "usage.zip").read_bytes().startswith(b"PK")


def test_a_read_only_broker_looks_and_does_not_touch(network: Network) -> None:
    reader = create_read_only_broker(network="devnet")
    assert reader.fine_tuning.list_service()[0].provider == network.provider
    assert reader.inference.list_service()[0].url
    for call in (reader.get_address, reader.ledger.get_ledger, lambda: reader.ledger.deposit_fund("1")):
        with pytest.raises(AuthenticationError, match="private_key"):
            call()


def test_a_closed_broker_says_so(network: Network) -> None:
    with create_read_only_broker(network="devnet") as reader:
        assert reader.fine_tuning.list_service()
    for use in (
        reader.fine_tuning.list_service,
        lambda: reader.inference.lora.list_adapters(NOBODY),
        lambda: reader.network,
    ):
        with pytest.raises(ConfigurationError, match="closed"):
            use()


def _in_child(broker: ZGServingBroker, queue: Any) -> None:
    try:
        broker.ledger.get_ledger()
    except ConfigurationError as error:
        refused = "after the fork" in str(error)
    fresh = create_read_only_broker(network="devnet")
    queue.put((refused, fresh.network.chain_id))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_makes_a_broker_of_its_own(broker: ZGServingBroker) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(broker, queue))
    child.start()
    assert queue.get(timeout=60) == (True, 31337)
    child.join(30)
    assert child.exitcode == 0
    assert broker.ledger.get_ledger().total_balance > 0


def test_api_keys_are_made_and_revoked(network: Network, broker: ZGServingBroker) -> None:
    funding = broker.inference.prepare_account(network.provider)
    assert funding.created and funding.transferred == 2 * 10**18
    key = broker.inference.create_api_key(network.provider, expires_in=60_000)
    assert key.raw_token.startswith("app-sk-") and key.expires_at - key.created_at == 60_000
    assert key.raw_token not in repr(key)
    broker.inference.revoke_tokens(network.provider, [key.token_id, 7])
    assert broker.inference.get_account(network.provider).revoked_bitmap == 1 << key.token_id | 1 << 7
    with pytest.raises(ValueError, match="revoked"):
        broker.inference.create_api_key(network.provider, token_id=7)
    broker.inference.revoke_all_tokens(network.provider)
    assert broker.inference.get_account(network.provider).generation == 1
