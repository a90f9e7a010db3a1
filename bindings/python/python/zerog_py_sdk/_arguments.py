"""Checks arguments before anything happens, and says which one is wrong."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from decimal import Decimal, InvalidOperation
from typing import Any

from ._native import checksum_address
from .exceptions import ArgumentTypeError, ArgumentValueError

#: The largest amount in wei that is accepted.
_MAX_WEI = 2**128 - 1

_SERVICES = {
    "fine-tuning": "fine-tuning",
    "fine_tuning": "fine-tuning",
    "finetuning": "fine-tuning",
    "fineTuning": "fine-tuning",
    "fine-tuning-v1.0": "fine-tuning",
    "inference": "inference",
    "inference-v1.0": "inference",
}


class Arguments:
    """The arguments of one operation."""

    def __init__(self, operation: str) -> None:
        self.operation = operation

    def wrong_type(self, name: str, expected: str, value: object) -> ArgumentTypeError:
        return ArgumentTypeError(self.operation, name, f"must be {expected}, not {type(value).__name__}")

    def wrong_value(self, name: str, reason: str) -> ArgumentValueError:
        return ArgumentValueError(self.operation, name, reason)

    def text(self, name: str, value: object, *, allow_empty: bool = False) -> str:
        if not isinstance(value, str):
            raise self.wrong_type(name, "str", value)
        if not value and not allow_empty:
            raise self.wrong_value(name, "it is empty")
        return value

    def optional_text(self, name: str, value: object) -> str | None:
        return None if value is None else self.text(name, value)

    def address(self, name: str, value: object) -> str:
        checked = checksum_address(self.text(name, value).strip())
        if checked is None:
            raise self.wrong_value(name, f"{value!r} is no address; it is 0x and 40 hexadecimal digits")
        return checked

    def optional_address(self, name: str, value: object) -> str | None:
        return None if value is None else self.address(name, value)

    def hash(self, name: str, value: object) -> str:
        text = self.text(name, value)
        digits = text[2:] if text.startswith("0x") else ""
        if len(digits) != 64 or any(digit not in "0123456789abcdefABCDEF" for digit in digits):
            raise self.wrong_value(name, f"{text!r} is no hash; it is 0x and 64 hexadecimal digits")
        return text

    def path(self, name: str, value: object) -> str:
        if not isinstance(value, (str, os.PathLike)):
            raise self.wrong_type(name, "str or os.PathLike", value)
        path = os.fspath(value)
        if not isinstance(path, str):
            raise self.wrong_type(name, "a path of str", path)
        if not path:
            raise self.wrong_value(name, "it is empty")
        return path

    def optional_path(self, name: str, value: object) -> str | None:
        return None if value is None else self.path(name, value)

    def boolean(self, name: str, value: object) -> bool:
        if not isinstance(value, bool):
            raise self.wrong_type(name, "bool", value)
        return value

    def integer(self, name: str, value: object, low: int = 0, high: int = 2**63 - 1) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong_type(name, "int", value)
        if not low <= value <= high:
            raise self.wrong_value(name, f"{value} is not between {low} and {high}")
        return value

    def optional_integer(self, name: str, value: object, low: int = 0, high: int = 2**63 - 1) -> int | None:
        return None if value is None else self.integer(name, value, low, high)

    def wei(self, name: str, value: object) -> int:
        """An amount in wei (neuron)."""
        return self.integer(name, value, 0, _MAX_WEI)

    def optional_wei(self, name: str, value: object) -> int | None:
        return None if value is None else self.wei(name, value)

    def og(self, name: str, value: object) -> int:
        """An amount in 0G, as wei."""
        if isinstance(value, bool) or not isinstance(value, (str, int, float, Decimal)):
            raise self.wrong_type(name, "str, int, float or Decimal (an amount in 0G)", value)
        try:
            wei = Decimal(str(value).strip()) * 10**18
        except InvalidOperation:
            raise self.wrong_value(name, f"{value!r} is no amount; write for example \"0.25\"") from None
        if not wei.is_finite() or wei < 0:
            raise self.wrong_value(name, f"{value!r} is no amount; it must not be negative")
        if wei != wei.to_integral_value():
            raise self.wrong_value(name, f"{value!r} has more than 18 digits after the point")
        return self.wei(name, int(wei))

    def seconds(self, name: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong_type(name, "int or float (seconds)", value)
        if not math.isfinite(value) or value < 0:
            raise self.wrong_value(name, f"{value} is no number of seconds")
        return float(value)

    def optional_seconds(self, name: str, value: object) -> float | None:
        return None if value is None else self.seconds(name, value)

    def callback(self, name: str, value: Callable[..., Any] | None) -> Callable[..., Any] | None:
        if value is not None and not callable(value):
            raise self.wrong_type(name, "callable", value)
        return value

    def service(self, name: str, value: object) -> str:
        text = self.text(name, value)
        known = _SERVICES.get(text)
        if known is None:
            raise self.wrong_value(name, f"{text!r} is no service; use \"fine-tuning\" or \"inference\"")
        return known

    def choice(self, name: str, value: object, known: Iterable[str]) -> str:
        text = self.text(name, value)
        if text.lower() not in known:
            raise self.wrong_value(name, f"{text!r} is unknown; use {', '.join(known)}")
        return text.lower()

    def mapping(self, name: str, value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.wrong_type(name, "dict", value)
        return value

    def body(self, name: str, value: object) -> bytes:
        if isinstance(value, str):
            return value.encode()
        if not isinstance(value, (bytes, bytearray)):
            raise self.wrong_type(name, "bytes or str", value)
        return bytes(value)
