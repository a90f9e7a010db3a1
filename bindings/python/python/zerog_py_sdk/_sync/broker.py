# Made from _async by make_sync.py; change the original.
"""Making a broker."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import Any

from .. import _native
from .._arguments import Arguments
from .._calls import Manager, call, progress
from .._environment import read_settings
from .._failures import from_native
from ..exceptions import ArgumentTypeError, ArgumentValueError, ConfigurationError
from ..models import FundPlan, NetworkInfo, Progress, build
from .fine_tuning import FineTuningBroker
from .inference import InferenceManager
from .ledger import LedgerManager

Path = str | os.PathLike[str]


class ZGServingBroker(Manager):
    """A connection to the network: ``ledger``, ``fine_tuning``, ``inference`` and ``inference.lora``.

    It can be used in a ``with`` statement. A broker belongs to the process that made it, and may be used from several
    threads.
    """

    def __init__(self, broker: _native.Broker) -> None:
        super().__init__(broker)
        #: The prepaid account.
        self.ledger = LedgerManager(broker)
        #: Training.
        self.fine_tuning = FineTuningBroker(broker)
        #: Chat, API keys and deployed adapters.
        self.inference = InferenceManager(broker)

    def __enter__(self) -> ZGServingBroker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forgets the key and the connection; the broker cannot be used any more."""
        closed = _Closed()
        for manager in (self, self.ledger, self.fine_tuning, self.inference, self.inference.lora):
            manager._broker = closed  # type: ignore[assignment]

    def get_address(self) -> str:
        """The wallet's address.

        Raises:
            AuthenticationError: the broker is read-only.
        """
        try:
            return self._native_broker().address()
        except _native.NativeError as error:
            raise from_native("getAddress", error.args[0]) from None

    @property
    def network(self) -> NetworkInfo:
        """Endpoints and contract addresses in use."""
        return build(NetworkInfo, self._native_broker().network())

    def wallet_balance(self) -> int:
        """Coins of the wallet outside the ledger, in wei."""
        balance: int = call("walletBalance", self._native_broker().wallet_balance)
        return balance

    def plan_funds(
        self, fine_tuning_provider: str, fee: int, inference_provider: str | None = None
    ) -> FundPlan:
        """What is missing for a task of ``fee`` wei and, if a serving provider is named, for chat afterwards."""
        given = Arguments("planFunds")
        value = call(
            given.operation,
            self._native_broker().plan_funds,
            given.address("fine_tuning_provider", fine_tuning_provider),
            given.wei("fee", fee),
            given.optional_address("inference_provider", inference_provider),
        )
        return build(FundPlan, value)

    def apply_funds(self, plan: FundPlan, on_progress: Callable[[Progress], Any] | None = None) -> None:
        """Moves what a plan says."""
        given = Arguments("applyFunds")
        if not isinstance(plan, FundPlan):
            raise given.wrong_type("plan", "FundPlan (see plan_funds)", plan)
        tell = progress(given.callback("on_progress", on_progress))
        call(
            given.operation,
            self._native_broker().apply_funds,
            (plan.deposit, plan.fine_tuning, plan.inference),
            plan.fine_tuning_provider,
            plan.inference_provider,
            on_progress=tell,
        )


class _Closed:
    """Stands where the native broker was."""

    def check_process(self) -> None:
        raise ConfigurationError("this broker is closed; make another one")


def create_broker(
    private_key: str,
    network: str | None = None,
    rpc_url: str | None = None,
    inference_address: str | None = None,
    ledger_address: str | None = None,
    fine_tuning_address: str | None = None,
    binary_config: object = None,
    *,
    storage_indexer_url: str | None = None,
    gas_price: int | None = None,
    max_gas_price: int | None = None,
    require_verified: bool = False,
    policy_file: Path | None = None,
    collateral_file: Path | None = None,
    cache_dir: Path | None = None,
    tokenizer_dir: Path | None = None,
    poll_interval_seconds: float | None = None,
) -> ZGServingBroker:
    """Connects to a network with a wallet.

    Args:
        private_key: The wallet's key, with or without 0x. It stays in this process.
        network: ``"mainnet"`` (the default), ``"testnet"``, ``"testnet_dev"`` or ``"devnet"``. ``devnet`` finds a
            running ``0g-compute-devnet up``: by the file that ``ZEROG_DEVNET_READY_FILE`` names, else on its default
            ports.
        rpc_url: Another chain endpoint; without ``network`` its chain id tells the network.
        inference_address, ledger_address, fine_tuning_address: Other contracts.
        binary_config: Has no effect: nothing here needs a helper program.
        storage_indexer_url: Another storage indexer.
        gas_price, max_gas_price: In wei, for every transaction.
        require_verified: Insist on every check of an enclave, instead of on none having failed.
        policy_file: What counts as a passed check of an enclave, as TOML or JSON (``docs/security.md``).
        collateral_file: Collateral for quotes, as a verification writes it; nobody is asked for any then.
        cache_dir: Where tokenizers and collateral are kept.
        tokenizer_dir: A folder with ``tokenizer.json``, used before all other sources.
        poll_interval_seconds: Pause between two looks at a task or adapter.

    Raises:
        ConfigurationError: a setting cannot be used, or nothing answers.
    """
    given = Arguments("createBroker")
    try:
        key = given.text("private_key", private_key)
        return _connect(
            given,
            {
                "private_key": key,
                "network": given.optional_text("network", network),
                "rpc_url": given.optional_text("rpc_url", rpc_url),
                "storage_indexer_url": given.optional_text("storage_indexer_url", storage_indexer_url),
                "ledger_address": given.optional_address("ledger_address", ledger_address),
                "inference_address": given.optional_address("inference_address", inference_address),
                "fine_tuning_address": given.optional_address("fine_tuning_address", fine_tuning_address),
                "gas_price": given.optional_wei("gas_price", gas_price),
                "max_gas_price": given.optional_wei("max_gas_price", max_gas_price),
                "require_verified": given.boolean("require_verified", require_verified),
                "policy_file": given.optional_path("policy_file", policy_file),
                "collateral_file": given.optional_path("collateral_file", collateral_file),
                "cache_dir": given.optional_path("cache_dir", cache_dir),
                "tokenizer_dir": given.optional_path("tokenizer_dir", tokenizer_dir),
                "poll_interval_s": given.optional_seconds("poll_interval_seconds", poll_interval_seconds),
            },
        )
    except (ArgumentTypeError, ArgumentValueError) as error:
        raise ConfigurationError(error.reason or str(error), code=error.code) from None


def create_read_only_broker(
    network: str | None = None,
    rpc_url: str | None = None,
    *,
    storage_indexer_url: str | None = None,
    policy_file: Path | None = None,
    collateral_file: Path | None = None,
    cache_dir: Path | None = None,
) -> ZGServingBroker:
    """Connects to a network without a wallet: for discovery, prices and verification.

    Raises:
        ConfigurationError: a setting cannot be used, or nothing answers.
    """
    given = Arguments("createBroker")
    try:
        return _connect(
            given,
            {
                "network": given.optional_text("network", network),
                "rpc_url": given.optional_text("rpc_url", rpc_url),
                "storage_indexer_url": given.optional_text("storage_indexer_url", storage_indexer_url),
                "policy_file": given.optional_path("policy_file", policy_file),
                "collateral_file": given.optional_path("collateral_file", collateral_file),
                "cache_dir": given.optional_path("cache_dir", cache_dir),
                "require_verified": False,
            },
        )
    except (ArgumentTypeError, ArgumentValueError) as error:
        raise ConfigurationError(error.reason or str(error), code=error.code) from None


def create_broker_from_env(env_file: Path = ".env", network: str | None = None) -> ZGServingBroker:
    """Connects with ``PRIVATE_KEY``, ``RPC_URL`` and ``NETWORK`` of the environment, or of a file in ``.env`` form.

    Raises:
        ConfigurationError: there is no ``PRIVATE_KEY``, or as :func:`create_broker`.
    """
    settings = read_settings(os.fspath(env_file))
    key = settings.get("PRIVATE_KEY")
    if not key:
        raise ConfigurationError(f"PRIVATE_KEY is neither in the environment nor in {os.fspath(env_file)}")
    return create_broker(
        private_key=key,
        network=network or settings.get("NETWORK") or None,
        rpc_url=settings.get("RPC_URL") or None,
    )


_OPTIONS = (
    "private_key",
    "network",
    "rpc_url",
    "storage_indexer_url",
    "ledger_address",
    "inference_address",
    "fine_tuning_address",
    "gas_price",
    "max_gas_price",
    "require_verified",
    "policy_file",
    "collateral_file",
    "cache_dir",
    "tokenizer_dir",
    "poll_interval_s",
)


def _connect(given: Arguments, options: dict[str, Any]) -> ZGServingBroker:
    complete = {name: options.get(name) for name in _OPTIONS}
    return ZGServingBroker(call(given.operation, _native.connect, complete))
