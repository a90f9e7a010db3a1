"""Makes the documented exceptions of what the native module reports, with remedies in Python's words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from . import exceptions as errors

Facts = Mapping[str, Any]

#: Arguments that the SDK names in the words of the command line.
_ARGUMENTS = {
    "dataset": "dataset_hash",
    "service": "service_type",
    "method": "download_method",
    "http": "rpc_url",
}


def _og(wei: int) -> str:
    return f"{Decimal(wei) / 10**18:f}"


def _service_manager(facts: Facts) -> str:
    return "broker.fine_tuning" if facts["service"] == "fine-tuning" else "broker.inference"


#: Messages whose remedy is a command; here it is a call.
_MESSAGES: dict[str, Callable[[Facts], str]] = {
    "no_wallet": lambda facts: (
        "this needs a wallet; make the broker with create_broker(private_key=...) instead of a read-only one"
    ),
    "ledger_missing": lambda facts: (
        f"{facts['user']} has no ledger yet; create it with broker.ledger.add_ledger(\"3\")"
    ),
    "account_missing": lambda facts: (
        f"{facts['user']} has no {facts['service']} account with provider {facts['provider']}; create it with "
        f"broker.ledger.transfer_fund(\"{facts['provider']}\", \"{facts['service']}\", og_to_wei(\"1\"))"
    ),
    "insufficient_account_balance": lambda facts: (
        f"the {facts['service']} account with provider {facts['provider']} holds {_og(facts['available'])} 0G, "
        f"{_og(facts['required'])} 0G are needed; move more with broker.ledger.transfer_fund"
    ),
    "insufficient_ledger_balance": lambda facts: (
        f"the ledger holds {_og(facts['available'])} 0G available, {_og(facts['required'])} 0G are needed; put more in "
        "with broker.ledger.deposit_fund"
    ),
    "service_missing": lambda facts: (
        f"provider {facts['provider']} has no {facts['service']} service on this network; see "
        f"{_service_manager(facts)}.list_service()"
    ),
    "provider_not_acknowledged": lambda facts: (
        f"you have not acknowledged provider {facts['provider']}; call "
        f"{_service_manager(facts)}.acknowledge_provider_signer(\"{facts['provider']}\") first"
    ),
    "unknown_model": lambda facts: (
        f"unknown model {facts['model']!r}; known are {', '.join(facts['known']) or 'none'}, and what "
        "broker.fine_tuning.list_model() shows"
    ),
    "tokenizer_missing": lambda facts: (
        f"no tokenizer for {facts['model']} was found: {facts['reason']}; name a provider that serves the model "
        "(provider_address), or pass tokenizer_dir to create_broker"
    ),
    "sealing_unsupported": lambda facts: (
        f"provider {facts['provider']} accepts no sealed datasets; plain=True sends the dataset over TLS only"
    ),
    "queue_not_empty": lambda facts: (
        f"there are {facts['pending']} tasks in the provider's queue; queue=True waits in line"
    ),
    "deliverable_missing": lambda facts: (
        f"task {facts['task']} has no deliverable on chain yet; wait until get_task shows Delivered"
    ),
    "deliverable_not_acknowledged": lambda facts: (
        f"the deliverable of task {facts['task']} is not acknowledged yet; call acknowledge_model first"
    ),
    "task_ended": lambda facts: f"task {facts['task']} ended as {facts['state']}: {facts['reason']}; see get_log",
    "hash_mismatch": lambda facts: (
        f"the downloaded file is not the delivered one: the chain says {facts['expected']}, the file has storage root "
        f"{facts['storage_root']} and Keccak hash {facts['keccak']}; it was removed and nothing was acknowledged; try "
        "again, or use another download_method"
    ),
    "chain_unreachable": lambda facts: (
        f"{facts['message'].partition('. Check the network')[0]}; check network and rpc_url (for network \"devnet\": is "
        "`0g-compute-devnet up` running?)"
    ),
}


def from_native(operation: str, facts: Facts) -> errors.ZGServingBrokerError:
    """The exception for what a native call reported."""
    code = str(facts["code"])
    write = _MESSAGES.get(code)
    message = write(facts) if write else str(facts["message"])
    error = _build(operation, code, message, facts)
    error.code = code
    error.category = str(facts["category"])
    error.is_passing = bool(facts.get("is_passing", False))
    return error


def _build(operation: str, code: str, message: str, facts: Facts) -> errors.ZGServingBrokerError:
    if operation == "createBroker" and facts["category"] in ("usage", "authentication", "chain"):
        return errors.ConfigurationError(message)
    if code == "other_process":
        return errors.ConfigurationError(message)
    if code == "invalid_argument":
        name = str(facts["argument"]).replace("-", "_")
        return errors.ArgumentValueError(operation, _ARGUMENTS.get(name, name), str(facts["reason"]))
    if code in ("no_wallet", "invalid_key"):
        return errors.AuthenticationError(message, operation=operation)
    if code in ("ledger_missing", "account_missing"):
        return errors.AccountNotFoundError(operation, message)
    if "required" in facts:
        return errors.InsufficientBalanceError(
            facts["required"], facts["available"], operation=operation, message=message
        )
    if code == "service_missing":
        return errors.ServiceNotFoundError(facts["provider"], operation=operation, message=message)
    if code in ("provider_not_acknowledged", "service_not_acknowledged"):
        return errors.ProviderNotAcknowledgedError(facts["provider"], operation=operation, message=message)
    if code == "queue_not_empty":
        return errors.QueueNotEmptyError(message, facts["pending"], operation=operation)
    if code == "provider_unreachable":
        return errors.NetworkError(message, facts["url"], operation=operation)
    if "status" in facts:
        refusal = errors.AuthenticationError if facts["status"] == 401 else None
        if refusal:
            return refusal(message, operation=operation)
        return errors.ProviderError(
            message, operation=operation, status=facts["status"], retry_after_s=facts.get("retry_after_s")
        )
    if code == "chain_unreachable":
        return errors.NetworkError(message, operation=operation)
    if code in ("provider_answer_malformed", "response_not_proven", "quote_not_proven"):
        return errors.InvalidResponseError(message, operation=operation)
    if code in ("hash_mismatch", "archive_unreadable", "adapter_archive_invalid"):
        return errors.ModelVerificationError(message, operation=operation)
    if code in ("verification_failed", "sealing_unsupported"):
        return errors.ServiceVerificationError(
            operation, message, level=facts.get("level", ""), failures=facts.get("failures", ())
        )
    if code == "task_ended":
        return errors.TaskEndedError(operation, message, task_id=facts["task"], state=facts["state"])
    if code == "adapter_failed":
        return errors.AdapterFailedError(operation, message, adapter_name=facts["adapter"])
    if code == "timeout":
        return errors.OperationTimeoutError(operation, message, last=facts["last"])
    if facts["category"] == "validation":
        return errors.ValidationError(operation, message)
    if facts["category"] == "storage":
        return errors.StorageError(message, operation=operation)
    if facts["category"] == "disk":
        return errors.FileError(operation, message, path=facts["path"], errno=facts.get("errno"))
    if facts["category"] == "timeout":
        return errors.OperationTimeoutError(operation, message)
    return errors.ContractError(
        operation,
        message,
        error_name=facts.get("error_name"),
        error_args=(facts["details"],) if "details" in facts else (),
        revert_data=facts.get("revert_data"),
    )
