"""Reads Python out of a text whose typesetting lost its line structure.

The text of the product came from a web page: indentation is gone, and tokens are spread with blanks, also between the
``f`` of a string and its quote. :func:`restore` gives both back and changes nothing else; :func:`same_tokens` proves it.
"""

from __future__ import annotations

import re

#: Statements whose block goes on until the next comment or blank line; every other block is one statement.
_LONG = ("while ", "for ")
_OPENS = re.compile(r"^(try|else|finally|while|for|if|elif|except|with|def)\b.*:$")


def end_to_end_example(text: str) -> str:
    """The lines between the headings of the whole example and of the table after it."""
    found = re.search(r"^Full end-to-end example\n(.*?)^API at a glance$", text, re.DOTALL | re.MULTILINE)
    if found is None:
        raise LookupError("the text has no section `Full end-to-end example`")
    return found[1]


def restore(source: str) -> str:
    """The source with its indentation, and without blanks between ``f`` and its quote."""
    lines: list[str] = []
    #: Open blocks: whether they are long, and whether their next statement ends them.
    blocks: list[bool] = []
    brackets = 0
    for raw in source.splitlines():
        line = re.sub(r"\bf (?=[\"'])", "f", raw.strip())
        inside = brackets > 0
        brackets += _balance(line)
        if inside:
            lines.append("    " * (len(blocks) + (0 if line.startswith((")", "]", "}")) else 1)) + line)
            if brackets == 0:
                _leave(blocks)
            continue
        if not line or line.startswith("#"):
            blocks.clear()
            lines.append(line)
            continue
        lines.append("    " * len(blocks) + line)
        if brackets == 0 and _OPENS.match(re.sub(r"\s+:$", ":", line)):
            blocks.append(line.startswith(_LONG))
        elif brackets == 0:
            _leave(blocks)
    return "\n".join(lines) + "\n"


def _leave(blocks: list[bool]) -> None:
    """A statement is over; it closes the blocks that hold one statement only."""
    while blocks and not blocks[-1]:
        blocks.pop()


def _balance(line: str) -> int:
    code = re.sub(r"\"[^\"]*\"|'[^']*'|#.*", "", line)
    return sum(map(code.count, "([{")) - sum(map(code.count, ")]}"))


def same_tokens(one: str, other: str) -> bool:
    """Whether two sources differ in nothing but blanks."""
    return re.sub(r"\s+", "", one) == re.sub(r"\s+", "", other)


def substitute(source: str, what: str, value: str) -> str:
    """The source with the one place where ``what`` stands replaced."""
    if source.count(what) != 1:
        raise LookupError(f"{what!r} stands {source.count(what)} times in the example")
    return source.replace(what, value)
