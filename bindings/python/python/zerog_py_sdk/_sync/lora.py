# Made from _async by make_sync.py; change the original.
"""``broker.inference.lora``: deployed adapters and chat."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from .. import _native
from .._answers import Answers
from .._arguments import Arguments
from .._calls import Manager, adapter_states, call, progress, provider_alias
from ..exceptions import InvalidResponseError
from ..models import AdapterInfo, AdapterStatusResponse, DeployResponse, ResponseProof, build, build_all

DEFAULT_SYSTEM_PROMPT = "You are a helpful assistant."
DEFAULT_DEPLOY_TIMEOUT_SECONDS = 120


class ChatStream:
    """An answer on its way: iterate over the pieces of its text, then read ``response``."""

    def __init__(self, stream: _native.ChatStream, provider: str, answers: Answers) -> None:
        self._stream = stream
        self._provider = provider
        self._answers = answers
        #: The whole answer, in the form of one that was not streamed; none before the end.
        self.response: dict[str, Any] | None = None

    def __iter__(self) -> ChatStream:
        return self

    def __next__(self) -> str:
        if self.response is not None:
            raise StopIteration
        text: str | None = call("chat", self._stream.next)
        if text is None:
            answer = call("chat", self._stream.finish)
            self.response = self._answers.remember(self._provider, answer)
            raise StopIteration
        return text


@provider_alias
class LoRAProcessor(Manager):
    """Adapters: deploy, look, chat."""

    def __init__(self, broker: _native.Broker, answers: Answers) -> None:
        super().__init__(broker)
        self._answers = answers

    def _lora(self) -> _native.Lora:
        return self._native_broker().inference().lora()

    def list_adapters(self, provider_address: str) -> list[AdapterInfo]:
        """The wallet's adapters at a provider."""
        given = Arguments("listAdapters")
        provider = given.address("provider_address", provider_address)
        return build_all(AdapterInfo, call(given.operation, self._lora().list_adapters, provider))

    def get_adapter_status(self, provider_address: str, adapter_name: str) -> AdapterStatusResponse:
        """The state of one adapter."""
        given = Arguments("getAdapterStatus")
        provider = given.address("provider_address", provider_address)
        name = given.text("adapter_name", adapter_name)
        value = call(given.operation, self._lora().get_adapter_status, provider, name)
        return build(AdapterStatusResponse, value)

    def resolve_adapter_name(self, provider_address: str, task_id: str, base_model: str) -> str:
        """The name under which a task's adapter is known at a provider."""
        given = Arguments("resolveAdapterName")
        provider = given.address("provider_address", provider_address)
        task = given.text("task_id", task_id)
        model = given.text("base_model", base_model)
        name: str = call(given.operation, self._lora().resolve_adapter_name, provider, model, task)
        return name

    def deploy_adapter(
        self,
        provider_address: str,
        base_model: str,
        task_id: str,
        wait: bool = False,
        timeout_seconds: float = DEFAULT_DEPLOY_TIMEOUT_SECONDS,
        on_progress: Callable[[str], Any] | None = None,
        *,
        fine_tuning_provider: str | None = None,
    ) -> DeployResponse:
        """Makes a task's adapter available for chat; with ``wait`` returns when it is.

        Creates, acknowledges and funds the inference sub-account if needed. ``on_progress`` gets the name of each
        state. ``fine_tuning_provider`` names who trained, where that is not the serving provider; it is looked up on
        chain otherwise.

        Raises:
            AdapterFailedError: (a RuntimeError) it cannot be loaded.
            OperationTimeoutError: (a TimeoutError) it was not active in time.
        """
        given = Arguments("deployAdapter")
        provider = given.address("provider_address", provider_address)
        model = given.text("base_model", base_model)
        task = given.text("task_id", task_id)
        trainer = given.optional_address("fine_tuning_provider", fine_tuning_provider)
        options = (given.boolean("wait", wait), given.seconds("timeout_seconds", timeout_seconds), trainer)
        tell = adapter_states(given.callback("on_progress", on_progress))
        value = call(
            given.operation, self._lora().deploy_adapter, provider, model, task, options, on_progress=tell
        )
        return build(DeployResponse, value)

    def deploy_adapter_by_name(
        self,
        provider_address: str,
        adapter_name: str,
        wait: bool = False,
        timeout_seconds: float = DEFAULT_DEPLOY_TIMEOUT_SECONDS,
        on_progress: Callable[[str], Any] | None = None,
    ) -> DeployResponse:
        """As :meth:`deploy_adapter`, for an adapter that the provider knows already."""
        given = Arguments("deployAdapterByName")
        provider = given.address("provider_address", provider_address)
        name = given.text("adapter_name", adapter_name)
        options = (given.boolean("wait", wait), given.seconds("timeout_seconds", timeout_seconds), None)
        tell = adapter_states(given.callback("on_progress", on_progress))
        value = call(
            given.operation, self._lora().deploy_adapter_by_name, provider, name, options, on_progress=tell
        )
        return build(DeployResponse, value)

    def chat(
        self,
        provider_address: str,
        adapter_name: str,
        message: str,
        system_prompt: str = DEFAULT_SYSTEM_PROMPT,
    ) -> dict[str, Any]:
        """Asks an adapter, or the base model when its name is given, one question; an OpenAI chat completion."""
        given = Arguments("chat")
        name = given.text("adapter_name", adapter_name)
        question = given.text("message", message)
        system = given.text("system_prompt", system_prompt, allow_empty=True)
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": question})
        return self.chat_completion(provider_address, {"model": name, "messages": messages})

    def chat_completion(self, provider_address: str, body: dict[str, Any]) -> dict[str, Any]:
        """Sends any chat-completion body, without ``stream``."""
        given = Arguments("chat")
        provider = given.address("provider_address", provider_address)
        text = _body(given, body)
        answer = call(
            given.operation, self._lora().chat_completion, provider, text, on_progress=progress(None)
        )
        return self._answers.remember(provider, answer)

    def chat_stream(self, provider_address: str, body: dict[str, Any]) -> ChatStream:
        """Sends any chat-completion body and hands the answer out as it is made."""
        given = Arguments("chat")
        provider = given.address("provider_address", provider_address)
        text = _body(given, body)
        stream = call(
            given.operation, self._lora().chat_stream, provider, text, on_progress=progress(None)
        )
        return ChatStream(stream, provider, self._answers)

    def verify_answer(self, provider_address: str, response: dict[str, Any]) -> ResponseProof:
        """Proves that the provider's enclave gave exactly this answer to exactly the question that was sent.

        ``response`` is a recent result of :meth:`chat`, :meth:`chat_completion` or a stream of this broker.

        Raises:
            InvalidResponseError: it is not proven; do not rely on it.
        """
        given = Arguments("verifyAnswer")
        provider = given.address("provider_address", provider_address)
        chat_id = given.mapping("response", response).get("id")
        exchange = self._answers.find(provider, chat_id) if isinstance(chat_id, str) else None
        if exchange is None:
            raise given.wrong_value("response", "it is no recent answer of this broker")
        if json.dumps(response) != exchange.response:
            raise InvalidResponseError("the response was changed after it came", provider, operation=given.operation)
        value = call(
            given.operation,
            self._native_broker().inference().process_response,
            provider,
            exchange.chat_id,
            exchange.request_body,
            exchange.response_body,
        )
        return build(ResponseProof, value)


def _body(given: Arguments, body: dict[str, Any]) -> str:
    members = given.mapping("body", body)
    try:
        return json.dumps(members)
    except (TypeError, ValueError) as error:
        raise given.wrong_value("body", f"it cannot be written as JSON: {error}") from None
