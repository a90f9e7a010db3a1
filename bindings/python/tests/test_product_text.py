"""The product's own example runs as it stands, but for network and provider address."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
from collections.abc import Callable

import pytest

import product_text
from conftest import Network


@pytest.fixture
def text() -> str:
    folder = os.environ.get("PRODUCT_TEXT_DIR")
    if not folder:
        pytest.skip("PRODUCT_TEXT_DIR is not set")
    (path,) = pathlib.Path(folder).glob("000_*.txt")
    return path.read_text(encoding="utf-8")


def test_the_end_to_end_example_runs_as_it_stands(
    text: str,
    network: Network,
    run_script: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    example = product_text.end_to_end_example(text)
    script = product_text.restore(example)
    assert product_text.same_tokens(example, script)
    script = product_text.substitute(script, "0xFineTuningProvider...", network.provider)
    script = product_text.substitute(script, '"mainnet"', '"devnet"')
    ran = run_script(script)
    assert ran.returncode == 0, f"{script}\n{ran.stdout}\n{ran.stderr}"
    lines = ran.stdout.split("\n")
    assert any(re.match(r"Progress:\s*Delivered", line) for line in lines), ran.stdout
    assert lines[-2].strip(), "the adapter's answer is missing"


def test_restoring_gives_back_blocks_and_nothing_else() -> None:
    damaged = (
        "try :\nuse( 1 )\nexcept Exception :\nuse( 2 )\nuse( 3 ,\n4 ,\n)\nwhile True :\nx = look()\n"
        'print ( f "{ x } " )\nif x in ( "a" , "b" ):\nbreak\nwait( 15 )\n# 2. Next\nuse( 5 )\n'
    )
    whole = (
        "try :\n    use( 1 )\nexcept Exception :\n    use( 2 )\nuse( 3 ,\n    4 ,\n)\nwhile True :\n    x = look()\n"
        '    print ( f"{ x } " )\n    if x in ( "a" , "b" ):\n        break\n    wait( 15 )\n# 2. Next\nuse( 5 )\n'
    )
    assert product_text.restore(damaged) == whole
    compile(whole, "whole", "exec")
    assert product_text.same_tokens(damaged, whole)
    assert not product_text.same_tokens(damaged, whole.replace("15", "1"))
