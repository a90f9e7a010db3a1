"""Makes ``_sync`` from ``_async``: the same methods without ``await``.

Usage: python make_sync.py [--check]. With --check nothing is written, and a difference is a failure.
"""

from __future__ import annotations

import pathlib
import re
import sys

PACKAGE = pathlib.Path(__file__).parent / "python" / "zerog_py_sdk"
HEADER = "# Made from _async by make_sync.py; change the original.\n"

#: Words of the awaited interface, and of the blocking one.
WORDS = {
    "AsyncBroker": "ZGServingBroker",
    "AsyncLedgerManager": "LedgerManager",
    "AsyncFineTuningBroker": "FineTuningBroker",
    "AsyncDeliverables": "Deliverables",
    "AsyncInferenceManager": "InferenceManager",
    "AsyncLoRAProcessor": "LoRAProcessor",
    "AsyncChatStream": "ChatStream",
    "create_async_broker": "create_broker",
    "create_async_read_only_broker": "create_read_only_broker",
    "create_async_broker_from_env": "create_broker_from_env",
    "call_async": "call",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
    "StopAsyncIteration": "StopIteration",
}


def blocking(source: str) -> str:
    source = re.sub(r"\basync (def|with|for)\b", r"\1", source)
    source = re.sub(r"\bawait ", "", source)
    return HEADER + re.sub(r"\w+", lambda word: WORDS.get(word[0], word[0]), source)


def main() -> int:
    check = "--check" in sys.argv[1:]
    stale = []
    for original in sorted((PACKAGE / "_async").glob("*.py")):
        text = blocking(original.read_text(encoding="utf-8"))
        if original.name == "__init__.py":
            text = HEADER + '"""The interface that blocks."""\n'
        target = PACKAGE / "_sync" / original.name
        if target.exists() and target.read_text(encoding="utf-8") == text:
            continue
        stale.append(target.name)
        if not check:
            target.parent.mkdir(exist_ok=True)
            target.write_text(text, encoding="utf-8")
    if check and stale:
        print(f"_sync is not what make_sync.py makes of _async: {', '.join(stale)}; run it", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
