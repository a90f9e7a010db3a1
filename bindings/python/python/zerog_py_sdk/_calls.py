"""Running native calls, blocking or awaited, and turning their failures into exceptions."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from . import _native
from ._failures import from_native
from .models import Progress, Result, build

logger = logging.getLogger("zerog_py_sdk")

C = TypeVar("C", bound=type)

#: The argument under which native methods take a callable.
_CALLBACKS = ("on_progress", "on_log", "on_text")


def call(operation: str, method: Callable[..., Any], *arguments: Any, **callbacks: Any) -> Any:
    """Runs a native method and waits for it."""
    try:
        return method(*arguments, **callbacks)
    except _native.NativeError as error:
        raise from_native(operation, error.args[0]) from None


async def call_async(operation: str, method: Callable[..., Any], *arguments: Any, **callbacks: Any) -> Any:
    """Runs a native method on the runtime's threads and awaits it. Cancelling the awaiting task stops the work."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def in_loop(function: Callable[[Any], Any]) -> Callable[[Any], None]:
        def deliver(news: Any) -> None:
            if future.done():
                return
            try:
                function(news)
            except Exception as error:
                settle(None, error)

        return lambda news: _soon(loop, deliver, news)

    marshalled = {
        name: in_loop(function) if name in _CALLBACKS and function is not None else function
        for name, function in callbacks.items()
    }
    waiter = lambda result, error: _soon(loop, settle, result, error)  # noqa: E731
    pending = method(*arguments, **marshalled, waiter=waiter)
    try:
        return await future
    except _native.NativeError as error:
        raise from_native(operation, error.args[0]) from None
    finally:
        pending.cancel()


def _soon(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: Any) -> None:
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:
        # The loop was closed while the call went on; nobody waits for it any more.
        logger.debug("a result came after the event loop was closed")


def progress(on_progress: Callable[[Progress], Any] | None) -> Callable[[Any], None]:
    """What a native method tells, for a callable of the user and for the log. Notices are about money or trust."""

    def tell(news: dict[str, Any]) -> None:
        event = build(Progress, news)
        _log(event)
        if on_progress is not None:
            on_progress(event)

    return tell


def adapter_states(on_progress: Callable[[str], Any] | None) -> Callable[[Any], None]:
    """As :func:`progress`, for callables that take the state's name only."""

    def tell(news: dict[str, Any]) -> None:
        event = build(Progress, news)
        _log(event)
        if on_progress is not None and event.event == "adapter":
            on_progress(event.state or "")

    return tell


def _log(event: Progress) -> None:
    if event.event == "notice":
        logger.warning("%s", event.text)
    elif event.event == "step":
        logger.info("%s", event.text)
    elif event.event == "funded":
        logger.warning("moved %s wei into the %s account with %s", event.amount, event.service, event.provider)


def provider_alias(manager: C) -> C:
    """Lets ``provider=`` name what is called ``provider_address`` in full: both names are in use."""
    for name, method in list(vars(manager).items()):
        if name.startswith("_") or not inspect.isfunction(method):
            continue
        if "provider_address" in inspect.signature(method).parameters:
            setattr(manager, name, _with_alias(method))
    return manager


def _with_alias(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def aliased(*arguments: Any, **named: Any) -> Any:
        if "provider" in named and "provider_address" not in named:
            named["provider_address"] = named.pop("provider")
        return method(*arguments, **named)

    return aliased


class Manager:
    """What the managers of a broker share: the native broker, and calls with other gas prices."""

    def __init__(self, broker: _native.Broker) -> None:
        self._broker = broker

    def _native_broker(self, gas_price: int | None = None, max_gas_price: int | None = None) -> _native.Broker:
        try:
            self._broker.check_process()
        except _native.NativeError as error:
            raise from_native("request", error.args[0]) from None
        if gas_price is None and max_gas_price is None:
            return self._broker
        return self._broker.with_gas_prices(gas_price, max_gas_price)


def receipt(value: dict[str, Any] | None) -> Result:
    """A receipt; without one, nothing had to be done."""
    return Result(status="already_acknowledged") if value is None else Result(value)
