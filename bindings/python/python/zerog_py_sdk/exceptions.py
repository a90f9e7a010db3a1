"""Every exception of this package.

All derive from :class:`ZGServingBrokerError`. What an operation of a broker raises derives from :class:`ContractError`
too, so that one ``except ContractError`` is enough; those that mean the same as a built-in exception are that as well
(``TimeoutError``, ``TypeError``, ``ValueError``, ``OSError``, ``RuntimeError``).

Attributes that every exception of an operation has: ``operation``, ``reason``, ``code`` (stable, for programs),
``category`` (see docs/api.md) and ``is_passing`` (whether the same call can succeed later by itself).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class ZGServingBrokerError(Exception):
    """The root of all exceptions of this package."""

    code: str = "error"
    category: str = "general"
    is_passing: bool = False


class ConfigurationError(ZGServingBrokerError):
    """A broker cannot be made: a key, a network, an endpoint or an address does not fit."""

    code = "configuration"
    category = "usage"

    def __init__(self, message: str, *, code: str = "configuration") -> None:
        super().__init__(message)
        self.reason = message
        self.code = code


class ContractError(ZGServingBrokerError):
    """An operation failed. ``error_name`` and ``revert_data`` are set when a contract refused."""

    def __init__(
        self,
        operation: str,
        reason: str | None = None,
        *,
        error_name: str | None = None,
        error_args: Iterable[Any] = (),
        revert_data: str | None = None,
    ) -> None:
        super().__init__(f"{operation}: {reason}" if reason else operation)
        self.operation = operation
        self.reason = reason
        self.error_name = error_name
        self.error_args = tuple(error_args)
        self.revert_data = revert_data


class ArgumentTypeError(ContractError, TypeError):
    """An argument has the wrong type. ``argument`` is its name."""

    code = "invalid_argument"
    category = "usage"

    def __init__(self, operation: str, argument: str, reason: str) -> None:
        super().__init__(operation, f"{argument} {reason}")
        self.argument = argument


class ArgumentValueError(ContractError, ValueError):
    """An argument has a value that cannot be used. ``argument`` is its name."""

    code = "invalid_argument"
    category = "usage"

    def __init__(self, operation: str, argument: str, reason: str) -> None:
        super().__init__(operation, f"{argument}: {reason}")
        self.argument = argument


class AuthenticationError(ContractError):
    """No key, a wrong key, or a provider that does not accept the signature."""

    category = "authentication"

    def __init__(self, message: str, *, operation: str = "authentication") -> None:
        super().__init__(operation, message)


class InsufficientBalanceError(ContractError):
    """Too little in a sub-account, the ledger or the wallet. Amounts are in wei."""

    category = "funds"

    def __init__(
        self,
        required: int,
        available: int,
        *,
        operation: str = "payment",
        message: str | None = None,
    ) -> None:
        super().__init__(operation, message or f"{required} wei are needed, {available} wei are there")
        self.required = required
        self.available = available


class AccountNotFoundError(ContractError):
    """There is no ledger, or no sub-account with a provider."""

    category = "funds"


class ProviderNotAcknowledgedError(ContractError):
    """The provider's enclave was not acknowledged."""

    category = "provider"

    def __init__(
        self,
        provider_address: str,
        *,
        operation: str = "request",
        message: str | None = None,
    ) -> None:
        super().__init__(operation, message or f"provider {provider_address} is not acknowledged")
        self.provider_address = provider_address


class ServiceNotFoundError(ContractError):
    """The provider has no such service on this network."""

    category = "provider"

    def __init__(
        self, identifier: str, *, operation: str = "lookup", message: str | None = None
    ) -> None:
        super().__init__(operation, message or f"there is no service of {identifier}")
        self.identifier = identifier


class NetworkError(ContractError):
    """An endpoint does not answer."""

    category = "provider"

    def __init__(
        self, message: str, endpoint: str | None = None, *, operation: str = "request"
    ) -> None:
        super().__init__(operation, message)
        self.endpoint = endpoint


class ProviderError(NetworkError):
    """The provider refused. ``status`` is the HTTP status, ``retry_after_s`` when to try again if it said so."""

    def __init__(
        self,
        message: str,
        *,
        operation: str = "request",
        status: int | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message, operation=operation)
        self.status = status
        self.retry_after_s = retry_after_s


class QueueNotEmptyError(ProviderError):
    """Other tasks wait at the provider; ``queue=True`` waits in line. ``pending`` is how many."""

    def __init__(self, message: str, pending: int, *, operation: str = "createTask") -> None:
        super().__init__(message, operation=operation, status=409)
        self.pending = pending


class StorageError(NetworkError):
    """The storage network does not answer, refuses, or has not the file."""

    category = "storage"


class HeadersAlreadyUsedError(ContractError):
    """Part of the published interface; headers of this package may be used again, so it is never raised."""

    def __init__(self) -> None:
        super().__init__("request", "these headers were used before")


class InvalidResponseError(ContractError):
    """An answer cannot be read, or its signature does not hold."""

    category = "provider"

    def __init__(
        self,
        message: str,
        provider_address: str | None = None,
        *,
        operation: str = "response",
    ) -> None:
        super().__init__(operation, message)
        self.provider_address = provider_address


class ModelVerificationError(ContractError):
    """A downloaded adapter is not the delivered one, or is not signed by the enclave."""

    category = "verification"

    def __init__(
        self,
        message: str,
        expected_signer: str | None = None,
        recovered_signer: str | None = None,
        *,
        operation: str = "verification",
    ) -> None:
        super().__init__(operation, message)
        self.expected_signer = expected_signer
        self.recovered_signer = recovered_signer


class ServiceVerificationError(ContractError):
    """The provider's enclave is not verified; nothing was sent to it. ``level`` and ``failures`` say why."""

    category = "verification"

    def __init__(self, operation: str, message: str, *, level: str = "", failures: Iterable[str] = ()) -> None:
        super().__init__(operation, message)
        self.level = level
        self.failures = list(failures)


class ValidationError(ContractError, ValueError):
    """A dataset, a model name or a training parameter that cannot be used."""

    category = "validation"


class TaskEndedError(ContractError, RuntimeError):
    """A task failed or was cancelled. ``task_id`` and ``state`` name it."""

    category = "provider"

    def __init__(self, operation: str, message: str, *, task_id: str = "", state: str = "") -> None:
        super().__init__(operation, message)
        self.task_id = task_id
        self.state = state


class AdapterFailedError(ContractError, RuntimeError):
    """An adapter could not be prepared or loaded. ``adapter_name`` names it."""

    category = "provider"

    def __init__(self, operation: str, message: str, *, adapter_name: str = "") -> None:
        super().__init__(operation, message)
        self.adapter_name = adapter_name


class OperationTimeoutError(ContractError, TimeoutError):
    """Something did not happen in time. ``last`` is the last state that was seen."""

    category = "timeout"

    def __init__(self, operation: str, message: str, *, last: str | None = None) -> None:
        super().__init__(operation, message)
        self.last = last


class FileError(ContractError, OSError):
    """A local file cannot be read or written."""

    category = "disk"

    def __init__(
        self, operation: str, message: str, *, path: str | None = None, errno: int | None = None
    ) -> None:
        super().__init__(operation, message)
        self.filename = path
        self.errno = errno

    def __str__(self) -> str:
        # OSError would show number and file name alone.
        return f"{self.operation}: {self.reason}"
