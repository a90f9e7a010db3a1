"""What is installed, and that it is whole."""

from __future__ import annotations

import importlib.metadata
import pathlib
import subprocess
import sys

import zerog_py_sdk
from conftest import ROOT

HERE = ROOT / "bindings/python"


def test_this_package_is_loaded_and_not_the_published_one() -> None:
    # Both install the same import name.
    assert zerog_py_sdk.IMPLEMENTATION == "zerog"
    owners = set(importlib.metadata.packages_distributions()["zerog_py_sdk"])
    assert owners == {"zerog-py-sdk"}
    assert pathlib.Path(zerog_py_sdk.__file__).is_relative_to(sys.prefix)
    assert zerog_py_sdk.__version__ == importlib.metadata.version("zerog-py-sdk")


def test_the_wheel_has_types_and_fits_every_supported_python() -> None:
    files = {str(file) for file in importlib.metadata.files("zerog-py-sdk") or []}
    assert {"zerog_py_sdk/py.typed", "zerog_py_sdk/_native.pyi"} <= files
    assert any(file.endswith("_native.abi3.so") for file in files), "the module must use the stable ABI"


def test_the_blocking_half_is_made_of_the_awaited_one() -> None:
    made = subprocess.run(
        [sys.executable, "make_sync.py", "--check"], cwd=HERE, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr


def test_types_hold_strictly_inside_and_for_users(tmp_path: pathlib.Path) -> None:
    user = tmp_path / "user.py"
    user.write_text(
        "from zerog_py_sdk import ZGServingBroker, AsyncBroker, Task\n"
        "def block(broker: ZGServingBroker) -> int:\n"
        "    task: Task = broker.fine_tuning.get_task('0x', 'id')\n"
        "    return broker.fine_tuning.get_account('0x').balance + task.deliver_time\n"
        "async def wait(broker: AsyncBroker) -> str:\n"
        "    return (await broker.inference.lora.deploy_adapter('0x', 'm', 't', wait=True)).adapter_name\n",
        encoding="utf-8",
    )
    example = HERE / "examples/end_to_end.py"
    checked = _mypy("-p", "zerog_py_sdk"), _mypy(str(user), str(example))
    for outcome in checked:
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr

    user.write_text(
        "from zerog_py_sdk import ZGServingBroker\n"
        "def wrong(broker: ZGServingBroker) -> None:\n"
        "    broker.fine_tuning.get_task(1)\n",
        encoding="utf-8",
    )
    refused = _mypy(str(user))
    assert refused.returncode == 1 and "arg-type" in refused.stdout, refused.stdout


def _mypy(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir=/dev/null", *arguments],
        cwd=ROOT / "target",
        capture_output=True,
        text=True,
        check=False,
    )


def test_losses_are_read_and_written(tmp_path: pathlib.Path) -> None:
    log = (
        "[2025-03-11T01:20:08.000Z] Step: 1, Logs: {'loss': 2.5000, 'learning_rate': 2e-4, 'epoch': 0.50}\n"
        "[2025-03-11T01:20:09.000Z] Step: 2, Logs: {'loss': 2.0000, 'learning_rate': 1e-4, 'epoch': 1.00}\n"
        "[2025-03-11T01:20:09.500Z] Step: 2, Logs: {'eval_loss': 2.2500, 'epoch': 1.00}, the best so far\n"
    )
    curve = zerog_py_sdk.LossCurve.from_log(log)
    assert [(point.step, point.loss) for point in curve.points] == [(1, 2.5), (2, 2.0)]
    assert [(point.step, point.eval_loss) for point in curve.evaluations] == [(2, 2.25)]
    assert curve.to_csv().splitlines()[2] == "2,2,0.0001,1,1741656009,2.25"
    assert curve.to_svg().count("<polyline") == 2 and "eval loss 2.2500" in curve.to_text(20, 4)
    written = pathlib.Path(curve.write_tensorboard(tmp_path / "events"))
    assert written.name.startswith("events.out.tfevents.") and b"eval/loss" in written.read_bytes()
    assert zerog_py_sdk.LossCurve.from_log("").points == []
