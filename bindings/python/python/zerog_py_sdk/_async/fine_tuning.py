"""``broker.fine_tuning``: providers, accounts, datasets, tasks."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from typing import Any

from .._arguments import Arguments
from .._calls import call_async, progress, provider_alias, receipt
from .._loss_curve import LossCurve
from .._verification import fine_tuning_result
from ..exceptions import FileError
from ..models import (
    CustomizedModel,
    DatasetReport,
    FeeQuote,
    FineTuningAccountDetail,
    FineTuningAccountDetails,
    FineTuningService,
    FundPlan,
    Progress,
    Quote,
    RefundDetail,
    Result,
    Task,
    TdxQuoteResponse,
    TokenCalculation,
    build,
    build_all,
)
from .deliverables import AsyncDeliverables

Path = str | os.PathLike[str]
OnProgress = Callable[[Progress], Any]


@provider_alias
class AsyncFineTuningBroker(AsyncDeliverables):
    """Training: discovery, accounts, datasets, tasks; results are in the base class."""

    # Discovery.

    async def list_service(self, include_unacknowledged: bool = False) -> list[FineTuningService]:
        """Every fine-tuning service; those that the network's owner has not acknowledged only on demand."""
        given = Arguments("listService")
        everything = given.boolean("include_unacknowledged", include_unacknowledged)
        return build_all(FineTuningService, await call_async(given.operation, self._fine_tuning().list_service, everything))

    async def get_service(self, provider_address: str) -> FineTuningService:
        """One provider's service."""
        given = Arguments("getService")
        provider = given.address("provider_address", provider_address)
        return build(FineTuningService, await call_async(given.operation, self._fine_tuning().get_service, provider))

    async def list_model(self) -> tuple[list[tuple[str, dict[str, Any]]], list[tuple[str, dict[str, Any]]]]:
        """Predefined models of this network, and those of providers that answer, as ``(name, details)``."""
        predefined, customised = await call_async("listModel", self._fine_tuning().list_model)
        return (
            [
                (
                    model["name"],
                    {
                        "turbo": model["hash"],
                        "standard": "",
                        "tokenizer": model["tokenizer"],
                        "type": "text",
                        "description": model["description"],
                    },
                )
                for model in predefined
            ],
            [
                (
                    model["name"],
                    {
                        "description": model["description"],
                        "provider": model["provider"],
                        "hash": model["hash"],
                        "tokenizer": model["tokenizer"],
                    },
                )
                for model in customised
            ],
        )

    async def get_customized_model(self, provider_address: str, model_name: str) -> CustomizedModel:
        """A provider's entry of a model, by name or hash."""
        given = Arguments("getCustomizedModel")
        provider = given.address("provider_address", provider_address)
        name = given.text("model_name", model_name)
        return build(CustomizedModel, await call_async(given.operation, self._fine_tuning().get_model, provider, name))

    async def model_usage(self, provider_address: str, model_name: str, output_path: Path) -> None:
        """Saves a model's usage package; a path that ends in ``.md`` gets its README alone."""
        given = Arguments("modelUsage")
        provider = given.address("provider_address", provider_address)
        name = given.text("model_name", model_name)
        path = given.path("output_path", output_path)
        await call_async(given.operation, self._fine_tuning().model_usage, provider, name, path)

    async def get_provider_url(self, provider_address: str) -> str:
        """Base URL of a provider."""
        given = Arguments("getProviderUrl")
        provider = given.address("provider_address", provider_address)
        url: str = await call_async(given.operation, self._fine_tuning().get_provider_url, provider)
        return url

    async def get_pending_task_counter(self, provider_address: str) -> int:
        """Tasks of all users that wait or run at the provider."""
        given = Arguments("getPendingTaskCounter")
        provider = given.address("provider_address", provider_address)
        pending: int = await call_async(given.operation, self._fine_tuning().get_pending_task_counter, provider)
        return pending

    async def get_quote(self, provider_address: str) -> TdxQuoteResponse:
        """The provider's evidence as served. Nothing is verified here: see :meth:`verify_service`."""
        given = Arguments("getQuote")
        provider = given.address("provider_address", provider_address)
        report: bytes = await call_async(given.operation, self._fine_tuning().get_quote, provider)
        return TdxQuoteResponse(report.decode("utf-8", "replace"), _named_signer(report))

    async def verify_service(
        self,
        provider_address: str,
        output_dir: Path = ".",
        on_log: Callable[[str], Any] | None = None,
    ) -> Result:
        """Judges the provider's enclave and keeps the report in ``output_dir``.

        Returns normally also when the provider fails: look at ``is_valid``, ``level`` and ``checks``. A simulated
        enclave is never valid.
        """
        given = Arguments("verifyService")
        provider = given.address("provider_address", provider_address)
        folder = given.path("output_dir", output_dir)
        log = given.callback("on_log", on_log)
        value = await call_async(
            given.operation,
            self._fine_tuning().verify_service,
            provider,
            folder,
            on_log=None if log is None else lambda step: log(step["message"]),
        )
        return fine_tuning_result(value)

    async def require_verified(self, provider_address: str, on_progress: OnProgress | None = None) -> None:
        """Refuses a provider whose enclave is not verified; uploads and deployments do the same by themselves.

        Raises:
            ServiceVerificationError: with ``level`` and ``failures``.
        """
        given = Arguments("requireVerified")
        provider = given.address("provider_address", provider_address)
        tell = progress(given.callback("on_progress", on_progress))
        await call_async(given.operation, self._fine_tuning().require_verified, provider, on_progress=tell)

    # Account.

    async def get_account(self, provider_address: str) -> FineTuningAccountDetails:
        """The wallet's sub-account with a provider.

        Raises:
            AccountNotFoundError: there is none.
        """
        given = Arguments("getAccount")
        provider = given.address("provider_address", provider_address)
        return build(
            FineTuningAccountDetails, await call_async(given.operation, self._fine_tuning().get_account, provider)
        )

    async def get_account_with_detail(self, provider_address: str) -> FineTuningAccountDetail:
        """The sub-account with the seconds until each refund can be collected."""
        given = Arguments("getAccountWithDetail")
        provider = given.address("provider_address", provider_address)
        account, refunds = await call_async(given.operation, self._fine_tuning().get_account_with_detail, provider)
        return FineTuningAccountDetail(build(FineTuningAccountDetails, account), build_all(RefundDetail, refunds))

    async def get_locked_time(self) -> int:
        """Seconds between asking for a refund and collecting it."""
        lock_time: int = await call_async("getLockedTime", self._fine_tuning().get_locked_time)
        return lock_time

    async def acknowledge_provider_signer(
        self,
        provider_address: str,
        gas_price: int | None = None,
        *,
        on_progress: OnProgress | None = None,
    ) -> Result:
        """Verifies the provider's enclave and acknowledges its signer; creates the sub-account if there is none.

        Raises:
            ServiceVerificationError: the enclave is not good enough.
        """
        given = Arguments("acknowledgeProviderSigner")
        provider = given.address("provider_address", provider_address)
        price = given.optional_wei("gas_price", gas_price)
        tell = progress(given.callback("on_progress", on_progress))
        manager = self._fine_tuning(price)
        return receipt(
            await call_async(given.operation, manager.acknowledge_provider_signer, provider, on_progress=tell)
        )

    async def revoke_tee_signer_acknowledgement(self, provider_address: str, gas_price: int | None = None) -> Result:
        """Takes the acknowledgement back: the contract's owner for everybody, anyone else for themselves.

        Raises:
            ContractError: while the sub-account holds money.
        """
        given = Arguments("revokeTEESignerAcknowledgement")
        provider = given.address("provider_address", provider_address)
        manager = self._fine_tuning(given.optional_wei("gas_price", gas_price))
        return Result(await call_async(given.operation, manager.revoke_tee_signer_acknowledgement, provider))

    async def ensure_funds(
        self, provider_address: str, required: int, on_progress: OnProgress | None = None
    ) -> None:
        """Tops the sub-account up from the ledger until ``required`` wei are free in it."""
        given = Arguments("ensureFunds")
        provider = given.address("provider_address", provider_address)
        wei = given.wei("required", required)
        tell = progress(given.callback("on_progress", on_progress))
        await call_async(given.operation, self._fine_tuning().ensure_funds, provider, wei, on_progress=tell)

    # Datasets.

    async def check_dataset(self, dataset_path: Path) -> DatasetReport:
        """Reads a dataset and finds the first mistake, with line, column, field and remedy.

        Raises:
            ValidationError: (a ValueError) the dataset cannot be used.
        """
        given = Arguments("checkDataset")
        path = given.path("dataset_path", dataset_path)
        return build(DatasetReport, await call_async(given.operation, self._fine_tuning().check_dataset, path))

    async def upload_dataset_to_tee(
        self,
        provider_address: str,
        dataset_path: Path,
        *,
        plain: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Result:
        """Checks the dataset, verifies the provider's enclave, and uploads the file sealed to it.

        The result has ``datasetHash``, ``message`` and ``sealed``. ``plain=True`` sends the file over TLS only.

        Raises:
            ValidationError: the dataset cannot be used; nothing was sent.
            ServiceVerificationError: the enclave is not verified; nothing was sent.
        """
        given = Arguments("uploadDatasetToTEE")
        provider = given.address("provider_address", provider_address)
        path = given.path("dataset_path", dataset_path)
        is_plain = given.boolean("plain", plain)
        tell = progress(given.callback("on_progress", on_progress))
        value = await call_async(
            given.operation, self._fine_tuning().upload_dataset_to_tee, provider, path, is_plain, on_progress=tell
        )
        return Result(datasetHash=value["dataset_hash"], message=value["message"], sealed=value["sealed"])

    async def upload_dataset(
        self,
        data_path: Path,
        gas_price: int | None = None,
        max_gas_price: int | None = None,
        *,
        on_progress: OnProgress | None = None,
    ) -> str:
        """Stores a file **in clear** on the public storage network and returns its root hash.

        Anyone who knows the root can read the file; :meth:`upload_dataset_to_tee` seals it.
        """
        given = Arguments("uploadDataset")
        path = given.path("data_path", data_path)
        manager = self._fine_tuning(
            given.optional_wei("gas_price", gas_price), given.optional_wei("max_gas_price", max_gas_price)
        )
        tell = progress(given.callback("on_progress", on_progress))
        root: str = await call_async(given.operation, manager.upload_dataset, path, on_progress=tell)
        return root

    async def download_dataset(
        self, data_path: Path, data_root: str, *, on_progress: OnProgress | None = None
    ) -> None:
        """Fetches a stored file by its root hash; every segment is verified."""
        given = Arguments("downloadDataset")
        path = given.path("data_path", data_path)
        root = given.hash("data_root", data_root)
        tell = progress(given.callback("on_progress", on_progress))
        await call_async(given.operation, self._fine_tuning().download_dataset, path, root, on_progress=tell)

    async def calculate_token(
        self,
        dataset_path: Path,
        pre_trained_model_name: str,
        use_python: bool = True,
        provider_address: str | None = None,
        *,
        training_path: Path | None = None,
    ) -> int:
        """Counts the training tokens of one epoch, exactly as our providers do. ``use_python`` has no effect."""
        given = Arguments("calculateToken")
        given.boolean("use_python", use_python)
        calculation = await self.count_tokens(
            dataset_path, pre_trained_model_name, provider_address, training_path=training_path
        )
        return calculation.tokens

    async def count_tokens(
        self,
        dataset_path: Path,
        pre_trained_model_name: str,
        provider_address: str | None = None,
        *,
        training_path: Path | None = None,
    ) -> TokenCalculation:
        """As :meth:`calculate_token`, with everything that was counted."""
        given = Arguments("calculateToken")
        path = given.path("dataset_path", dataset_path)
        model = given.text("pre_trained_model_name", pre_trained_model_name)
        provider = given.optional_address("provider_address", provider_address)
        parameters = None if training_path is None else _read_parameters(given, training_path)
        return build(
            TokenCalculation,
            await call_async(given.operation, self._fine_tuning().calculate_token, path, model, provider, parameters),
        )

    async def quote_fee(
        self,
        provider_address: str,
        pre_trained_model_name: str,
        dataset_path: Path,
        training_path: Path,
    ) -> FeeQuote:
        """What a task will cost with this provider, itemised, before anything is sent."""
        given = Arguments("quoteFee")
        provider = given.address("provider_address", provider_address)
        model = given.text("pre_trained_model_name", pre_trained_model_name)
        path = given.path("dataset_path", dataset_path)
        parameters = _read_parameters(given, training_path)
        return build(
            FeeQuote, await call_async(given.operation, self._fine_tuning().quote_fee, provider, model, path, parameters)
        )

    async def quote(
        self,
        provider_address: str,
        pre_trained_model_name: str,
        training_path: Path,
        *,
        dataset_path: Path | None = None,
        dataset_hash: str | None = None,
    ) -> Quote:
        """What a task will cost, when it could run, and what is to be said about its dataset.

        With ``dataset_path`` the file is counted here and not sent; with ``dataset_hash`` the enclave counts the
        dataset that was uploaded to it, and signs. Mistakes in the dataset are ``findings``, not exceptions; ``fee`` is
        ``None`` then. A task created with ``max_fee=quote.fee.total`` never costs more.

        Raises:
            InvalidResponseError: the quote is not signed by the registered enclave.
        """
        given = Arguments("quote")
        provider = given.address("provider_address", provider_address)
        model = given.text("pre_trained_model_name", pre_trained_model_name)
        parameters = _read_parameters(given, training_path)
        if (dataset_path is None) == (dataset_hash is None):
            raise given.wrong_value("dataset_path", "name either a dataset_path or a dataset_hash")
        if dataset_hash is not None:
            dataset = given.hash("dataset_hash", dataset_hash)
            return build(
                Quote,
                await call_async(
                    given.operation, self._fine_tuning().quote_uploaded, provider, model, dataset, parameters
                ),
            )
        path = given.path("dataset_path", dataset_path)
        return build(
            Quote, await call_async(given.operation, self._fine_tuning().quote, provider, model, path, parameters)
        )

    async def delete_dataset(self, provider_address: str, dataset_hash: str) -> str:
        """Removes an uploaded dataset from a provider now, instead of some days after its last use.

        Returns the provider's sentence.

        Raises:
            ContractError: the provider has no such dataset, or an unfinished task uses it.
        """
        given = Arguments("deleteDataset")
        provider = given.address("provider_address", provider_address)
        dataset = given.hash("dataset_hash", dataset_hash)
        sentence: str = await call_async(given.operation, self._fine_tuning().delete_dataset, provider, dataset)
        return sentence

    # Tasks.

    async def create_task(
        self,
        provider_address: str,
        pre_trained_model_name: str,
        dataset_hash: str,
        training_path: Path,
        gas_price: int | None = None,
        *,
        queue: bool = False,
        max_fee: int | None = None,
        auto_fund: bool = False,
        on_progress: OnProgress | None = None,
    ) -> str:
        """Signs and submits a task and returns its id.

        ``queue=True`` waits in line when other tasks are pending; ``max_fee`` is the most that it may cost, in wei. A
        task is no transaction, so ``gas_price`` has no effect.

        ``auto_fund=True`` takes an uploaded dataset's quote from the enclave, moves what is missing for it from the
        wallet through the ledger into the sub-account (told as ``funded`` to ``on_progress`` and to the log), and lets
        the task cost no more than was quoted. Nothing moves when the quote is above ``max_fee``.

        Raises:
            QueueNotEmptyError: other tasks are pending and ``queue`` is false.
            ValidationError: an unknown model, bad training parameters, or a dataset that would be refused.
            InsufficientBalanceError: the wallet cannot pay for it.
        """
        given = Arguments("createTask")
        provider = given.address("provider_address", provider_address)
        model = given.text("pre_trained_model_name", pre_trained_model_name)
        dataset = given.hash("dataset_hash", dataset_hash)
        given.optional_wei("gas_price", gas_price)
        in_line = given.boolean("queue", queue)
        bound = given.optional_wei("max_fee", max_fee)
        pay = given.boolean("auto_fund", auto_fund)
        tell = progress(given.callback("on_progress", on_progress))
        parameters = _read_parameters(given, training_path)
        if pay:
            quoted = await call_async(
                given.operation, self._fine_tuning().quote_uploaded, provider, model, dataset, parameters
            )
            fee = build(Quote, quoted).fee
            # Without a fee, or with one above the bound, the provider refuses the task and says why.
            if fee is not None and (bound is None or fee.total <= bound):
                bound = fee.total
                broker = self._native_broker()
                plan = build(FundPlan, await call_async(given.operation, broker.plan_funds, provider, bound, None))
                amounts = (plan.deposit, plan.fine_tuning, plan.inference)
                await call_async(given.operation, broker.apply_funds, amounts, provider, None, on_progress=tell)
        task: str = await call_async(
            given.operation, self._fine_tuning().create_task, provider, model, dataset, parameters, in_line, bound
        )
        return task

    async def list_task(self, provider_address: str) -> list[Task]:
        """All tasks of the wallet with a provider, newest first."""
        given = Arguments("listTask")
        provider = given.address("provider_address", provider_address)
        return build_all(Task, await call_async(given.operation, self._fine_tuning().list_task, provider))

    async def get_task(self, provider_address: str, task_id: str | None = None) -> Task:
        """One task, or the newest one."""
        given = Arguments("getTask")
        provider = given.address("provider_address", provider_address)
        task = given.optional_text("task_id", task_id)
        return build(Task, await call_async(given.operation, self._fine_tuning().get_task, provider, task))

    async def cancel_task(self, provider_address: str, task_id: str) -> str:
        """Cancels a task that is not trained yet; nothing is charged. Returns the provider's sentence."""
        given = Arguments("cancelTask")
        provider = given.address("provider_address", provider_address)
        task = given.text("task_id", task_id)
        sentence: str = await call_async(given.operation, self._fine_tuning().cancel_task, provider, task)
        return sentence

    async def get_log(self, provider_address: str, task_id: str | None = None) -> str:
        """The log of a task, or of the newest one."""
        given = Arguments("getLog")
        provider = given.address("provider_address", provider_address)
        task = given.optional_text("task_id", task_id)
        log: str = await call_async(given.operation, self._fine_tuning().get_log, provider, task)
        return log

    async def get_loss_curve(self, provider_address: str, task_id: str | None = None) -> LossCurve:
        """The losses in the log of a task, or of the newest one, to be drawn or written as CSV, SVG or for TensorBoard."""
        return LossCurve.from_log(await self.get_log(provider_address, task_id))

    async def follow_log(self, provider_address: str, task_id: str, on_text: Callable[[str], Any]) -> Task:
        """Hands out the log as it grows, until the task ends or waits for its user."""
        given = Arguments("followLog")
        provider = given.address("provider_address", provider_address)
        task = given.text("task_id", task_id)
        tell = given.callback("on_text", on_text)
        return build(
            Task, await call_async(given.operation, self._fine_tuning().follow_log, provider, task, on_text=tell)
        )

    async def wait_for_delivery(
        self,
        provider_address: str,
        task_id: str,
        timeout_seconds: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Task:
        """Waits until the adapter can be downloaded, telling every change.

        Raises:
            TaskEndedError: (a RuntimeError) the task failed or was cancelled.
            OperationTimeoutError: (a TimeoutError) it goes on without you.
        """
        return await self.wait_for_state(provider_address, task_id, "Delivered", timeout_seconds, on_progress)

    async def wait_for_state(
        self,
        provider_address: str,
        task_id: str,
        state: str,
        timeout_seconds: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Task:
        """Waits until a task is in a state on the wire, for example ``"Finished"``, or in a later one."""
        given = Arguments("waitForState")
        provider = given.address("provider_address", provider_address)
        task = given.text("task_id", task_id)
        target = given.text("state", state)
        timeout = given.optional_seconds("timeout_seconds", timeout_seconds)
        tell = progress(given.callback("on_progress", on_progress))
        value = await call_async(
            given.operation, self._fine_tuning().wait_for_state, provider, task, target, timeout, on_progress=tell
        )
        return build(Task, value)


def _read_parameters(given: Arguments, training_path: Path) -> str:
    """The text of a parameter file."""
    path = given.path("training_path", training_path)
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        reason = f"training_path: cannot read {path}: {error.strerror}"
        raise FileError(given.operation, reason, path=path, errno=error.errno) from None
    except UnicodeDecodeError:
        raise given.wrong_value("training_path", f"{path} is no text in UTF-8") from None


def _named_signer(report: bytes) -> str:
    """The signer in the unauthenticated copy of the report data, empty if it names none."""
    try:
        data = json.loads(report)["report_data"]
        return base64.b64decode(data).replace(b"\0", b"").decode()
    except (ValueError, KeyError, TypeError):
        return ""
