"""Amounts, addresses and names."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from . import _native
from ._arguments import Arguments

__all__ = [
    "format_address",
    "format_balance",
    "get_adapter_name",
    "make_adapter_name",
    "og_to_wei",
    "parse_transaction_receipt",
    "validate_amount",
    "validate_provider_address",
    "wei_to_og",
]


def og_to_wei(amount_og: str | int | float | Decimal) -> int:
    """0G as wei (neuron), exactly: ``og_to_wei("0.1") == 10**17``."""
    return Arguments("ogToWei").og("amount_og", amount_og)


def wei_to_og(amount_wei: int) -> Decimal:
    """Wei as 0G, exactly: ``wei_to_og(10**17) == Decimal("0.1")``."""
    wei = Arguments("weiToOg").wei("amount_wei", amount_wei)
    # Decimal division would round to the context's precision.
    whole, fraction = divmod(wei, 10**18)
    return Decimal(f"{whole}.{fraction:018}".rstrip("0").rstrip("."))


def format_balance(balance_wei: int, decimals: int = 4) -> str:
    """Wei for people: ``format_balance(10**17) == "0.1000 OG"``."""
    places = Arguments("formatBalance").integer("decimals", decimals, 0, 18)
    return f"{wei_to_og(balance_wei):.{places}f} OG"


def format_address(address: str) -> str:
    """An address in its checksummed form.

    Raises:
        ArgumentValueError: (a ValueError) when it is no address.
    """
    return Arguments("formatAddress").address("address", address)


def validate_provider_address(address: str) -> bool:
    """Whether a text is an address."""
    return isinstance(address, str) and _native.checksum_address(address) is not None


def validate_amount(amount: str | int | float | Decimal) -> bool:
    """Whether an amount in 0G can be used and is more than nothing."""
    try:
        return og_to_wei(amount) > 0
    except (TypeError, ValueError):
        return False


def make_adapter_name(base_model: str, task_id: str) -> str:
    """The name under which a provider registers the adapter of a task."""
    given = Arguments("makeAdapterName")
    return _native.adapter_name(given.text("base_model", base_model), given.text("task_id", task_id))


#: The same under the name that docs/api.md uses.
get_adapter_name = make_adapter_name


def parse_transaction_receipt(receipt: Mapping[str, Any]) -> dict[str, Any]:
    """A receipt of a chain library in the form in which this package gives receipts."""
    transaction_hash = receipt.get("transactionHash")
    return {
        "transaction_hash": "0x" + bytes(transaction_hash).hex()
        if isinstance(transaction_hash, (bytes, bytearray))
        else transaction_hash,
        "block_number": receipt.get("blockNumber"),
        "gas_used": receipt.get("gasUsed"),
        "status": receipt.get("status"),
        "success": receipt.get("status") == 1,
    }
