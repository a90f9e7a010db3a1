"""The bodies of recent chats, so that their answers can be proven later."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

#: How many are kept.
_KEPT = 256


@dataclass(frozen=True)
class Exchange:
    """A request and its answer, byte for byte."""

    chat_id: str
    request_body: bytes
    response_body: bytes
    response: str
    content: str | None


class Answers:
    """Exchanges by provider and by any of their ids."""

    def __init__(self) -> None:
        self._exchanges: OrderedDict[tuple[str, str], Exchange] = OrderedDict()

    def remember(self, provider: str, answer: dict[str, Any]) -> dict[str, Any]:
        """Keeps what a native chat call gave, and returns the response alone."""
        response: dict[str, Any] = answer["response"]
        if answer["chat_id"]:
            exchange = Exchange(
                chat_id=answer["chat_id"],
                request_body=answer["request_body"],
                response_body=answer["response_body"],
                # As text, so that changes of the caller's dictionary are noticed.
                response=json.dumps(response),
                content=content_of(response),
            )
            for chat_id in {answer["chat_id"], response.get("id")}:
                if isinstance(chat_id, str):
                    self._exchanges[provider, chat_id] = exchange
            while len(self._exchanges) > _KEPT:
                self._exchanges.popitem(last=False)
        return response

    def find(self, provider: str, chat_id: str) -> Exchange | None:
        return self._exchanges.get((provider, chat_id))


def content_of(response: dict[str, Any]) -> str | None:
    """The text of the first choice."""
    try:
        content = response["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return None
    return content if isinstance(content, str) else None
