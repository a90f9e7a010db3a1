# Made from _async by make_sync.py; change the original.
"""The results of tasks: download, acknowledge, decrypt, unpack."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from .. import _native
from .._arguments import Arguments
from .._calls import Manager, call, progress, provider_alias, receipt
from ..models import Deliverable, Progress, Result, build

Path = str | os.PathLike[str]
OnProgress = Callable[[Progress], Any]

#: How long :meth:`Deliverables.decrypt_model` waits for the key.
KEY_TIMEOUT_SECONDS = 300.0
_METHODS = ("tee", "auto", "0g-storage", "storage")


@provider_alias
class Deliverables(Manager):
    """Part of ``broker.fine_tuning``: what comes after training."""

    def _fine_tuning(self, gas_price: int | None = None, max_gas_price: int | None = None) -> _native.FineTuning:
        return self._native_broker(gas_price, max_gas_price).fine_tuning()

    def acknowledge_model(
        self,
        provider_address: str,
        task_id: str,
        data_path: Path,
        download_method: str = "tee",
        *,
        gas_price: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Result:
        """Downloads the adapter, checks it against the chain, and only then acknowledges it.

        ``data_path`` is a file, or a folder that gets ``lora_model_<task>.zip``; the content is encrypted, see
        :meth:`decrypt_model`. ``download_method`` is ``"tee"`` (from the provider), ``"0g-storage"`` or ``"auto"``
        (storage, then the provider). An interrupted download is continued by the same call. Acknowledging lets the
        provider take the fee, and puts the key on chain.

        Raises:
            ModelVerificationError: (a ContractError) the file is not the delivered one; nothing was acknowledged.
        """
        given = Arguments("acknowledgeModel")
        provider = given.address("provider_address", provider_address)
        task = given.text("task_id", task_id)
        path = given.path("data_path", data_path)
        method = given.choice("download_method", download_method, _METHODS)
        manager = self._fine_tuning(given.optional_wei("gas_price", gas_price))
        tell = progress(given.callback("on_progress", on_progress))
        value = call(
            given.operation, manager.acknowledge_model, provider, task, path, method, on_progress=tell
        )
        done = receipt(value["receipt"])
        return Result(
            done,
            path=value["path"],
            modelRootHash=value["model_root_hash"],
            downloadMethod=value["method"],
            bytes=value["bytes"],
        )

    def acknowledge_deliverable(
        self, provider_address: str, task_id: str, gas_price: int | None = None
    ) -> Result:
        """Acknowledges without downloading or checking anything: the way out when only the next task matters."""
        given = Arguments("acknowledgeDeliverable")
        provider = given.address("provider_address", provider_address)
        task = given.text("task_id", task_id)
        manager = self._fine_tuning(given.optional_wei("gas_price", gas_price))
        return receipt(call(given.operation, manager.acknowledge_deliverable, provider, task))

    def get_deliverable(self, provider_address: str, task_id: str) -> Deliverable:
        """The task's record on chain."""
        given = Arguments("getDeliverable")
        provider = given.address("provider_address", provider_address)
        task = given.text("task_id", task_id)
        return build(
            Deliverable, call(given.operation, self._fine_tuning().get_deliverable, provider, task)
        )

    def download_lora_from_tee(
        self,
        provider_address: str,
        task_id: str,
        output_path: Path,
        *,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Downloads the encrypted adapter from the provider and checks it. Acknowledges nothing."""
        given = Arguments("downloadLoRAFromTEE")
        self._download(given, provider_address, task_id, "output_path", output_path, False, on_progress)

    def download_model_from_0g_storage(
        self,
        provider_address: str,
        task_id: str,
        data_path: Path,
        *,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Downloads the encrypted adapter from the storage network and checks it. Acknowledges nothing."""
        given = Arguments("downloadModelFrom0GStorage")
        self._download(given, provider_address, task_id, "data_path", data_path, True, on_progress)

    def _download(
        self,
        given: Arguments,
        provider_address: str,
        task_id: str,
        path_name: str,
        path: Path,
        from_storage: bool,
        on_progress: OnProgress | None,
    ) -> None:
        provider = given.address("provider_address", provider_address)
        task = given.text("task_id", task_id)
        target = given.path(path_name, path)
        tell = progress(given.callback("on_progress", on_progress))
        call(
            given.operation,
            self._fine_tuning().download_model,
            provider,
            task,
            target,
            from_storage,
            on_progress=tell,
        )

    def decrypt_model(
        self,
        provider_address: str,
        task_id: str,
        encrypted_model_path: Path,
        decrypted_model_path: Path,
        *,
        timeout_seconds: float = KEY_TIMEOUT_SECONDS,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Decrypts a downloaded adapter to a zip file, which appears only after the enclave's signature was checked.

        Waits up to ``timeout_seconds`` for the key: the provider publishes it when it settles the fee, soon after the
        acknowledgement.

        Raises:
            ModelVerificationError: the file is damaged or not signed by the enclave.
            OperationTimeoutError: (a TimeoutError) the key did not come in time; call again later.
        """
        given = Arguments("decryptModel")
        provider = given.address("provider_address", provider_address)
        task = given.text("task_id", task_id)
        encrypted = given.path("encrypted_model_path", encrypted_model_path)
        output = given.path("decrypted_model_path", decrypted_model_path)
        timeout = given.seconds("timeout_seconds", timeout_seconds)
        tell = progress(given.callback("on_progress", on_progress))
        call(
            given.operation,
            self._fine_tuning().decrypt_model,
            provider,
            task,
            encrypted,
            output,
            timeout,
            on_progress=tell,
        )

    def unpack_adapter(self, zip_path: Path, folder: Path) -> dict[str, Any] | None:
        """Unpacks a decrypted adapter into a folder of PEFT files, which appears whole. Returns its manifest."""
        given = Arguments("unpackAdapter")
        source = given.path("zip_path", zip_path)
        target = given.path("folder", folder)
        manifest: dict[str, Any] | None = call(
            given.operation, self._fine_tuning().unpack_adapter, source, target
        )
        return manifest
