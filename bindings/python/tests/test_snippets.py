"""Every Python snippet of our own documents runs, each document as one script."""

from __future__ import annotations

import pathlib
import re
import subprocess
from collections.abc import Callable

import pytest

from conftest import ROOT


def documents() -> list[pathlib.Path]:
    """Documents of the repository with Python in them."""
    listed = subprocess.run(["git", "ls-files", "-z", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.exists() and snippets(path)]


def snippets(path: pathlib.Path) -> str:
    """The document's Python, each line at its own number, so that failures name the document's line."""
    lines, inside = [], False
    for line in path.read_text(encoding="utf-8").splitlines():
        opens, closes = re.match(r"```python\b", line), line.strip() == "```"
        lines.append("" if opens or closes or not inside else line)
        inside = bool(opens) or (inside and not closes)
    return "\n".join(lines) if any(lines) else ""


def test_the_main_documents_have_snippets() -> None:
    names = {str(path.relative_to(ROOT)) for path in documents()}
    assert {"README.md", "bindings/python/README.md"} <= names


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_snippets_run(document: pathlib.Path, run_script: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    ran = run_script(snippets(document))
    assert ran.returncode == 0, f"{document}:\n{ran.stdout}\n{ran.stderr}"
