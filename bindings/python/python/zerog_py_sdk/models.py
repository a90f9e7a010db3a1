"""What operations return.

Records are data classes that can also be read like dictionaries, by their attribute names or by the names of the wire:
``task.dataset_hash``, ``task["dataset_hash"]`` and ``task["datasetHash"]`` are the same. Where the interface promises a
dictionary, :class:`Result` is one, and can be read by attributes as well. Amounts are integers in wei (1 0G = 10**18).
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

R = TypeVar("R")


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word[:1].upper() + word[1:] for word in rest)


class Record:
    """A data class that can be read like a dictionary."""

    def keys(self) -> list[str]:
        return [item.name for item in dataclasses.fields(self)]  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _snake(name) in self.keys()

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise KeyError(name)
        return getattr(self, _snake(name))

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary, with plain dictionaries inside."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]


class Result(dict[str, Any]):
    """A dictionary that can be read by attributes, and by snake_case and camelCase names alike."""

    def __missing__(self, name: str) -> Any:
        for other in (_camel(name), _snake(name)):
            if other in self:
                return self[other]
        raise KeyError(name)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            try:
                return self[name]
            except KeyError:
                pass
        raise AttributeError(f"{type(self).__name__} has no {name!r}; it has {', '.join(self)}")


_HINTS: dict[type, dict[str, Any]] = {}


def _types(record: type) -> dict[str, Any]:
    """The fields' types, which are worked out once."""
    if record not in _HINTS:
        _HINTS[record] = typing.get_type_hints(record)
    return _HINTS[record]


def build(kind: type[R], value: Any) -> R:
    """The record of a native dictionary, with the records inside it."""
    hints = _types(kind)
    fields = {name: _convert(hints[name], value[name]) for name in hints if name in value}
    return kind(**fields)


def build_all(kind: type[R], values: list[Any]) -> list[R]:
    return [build(kind, value) for value in values]


def _convert(hint: Any, value: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if value is None:
        return None
    if typing.get_origin(hint) is list:
        (item,) = typing.get_args(hint)
        return [_convert(item, each) for each in value]
    if isinstance(hint, type) and issubclass(hint, Record):
        return build(hint, value)
    return value


@dataclass
class NetworkInfo(Record):
    """The network in use."""

    name: str
    rpc_url: str
    chain_id: int
    storage_indexer_url: str
    ledger_address: str
    inference_address: str
    fine_tuning_address: str
    flow_address: str | None = None


@dataclass
class LedgerAccount(Record):
    """The prepaid account. ``balance`` is what is free, ``locked`` what lies in sub-accounts."""

    balance: int
    locked: int
    total_balance: int

    @property
    def available(self) -> int:
        """The same as ``balance``."""
        return self.balance


@dataclass
class LedgerDetail(Record):
    """The ledger with its sub-accounts as ``(provider, balance, pending_refund)``."""

    total_balance: int
    locked_balance: int
    available_balance: int
    inference_providers: list[tuple[str, int, int]] = field(default_factory=list)
    fine_tuning_providers: list[tuple[str, int, int]] = field(default_factory=list)


@dataclass
class FundPlan(Record):
    """What must move before a task can be paid and its adapter be asked; all zero when everything is there."""

    deposit: int
    fine_tuning: int
    inference: int
    fine_tuning_provider: str
    inference_provider: str | None = None


@dataclass
class Quota(Record):
    """A provider's hardware. Memory and storage are in GB."""

    cpu_count: int
    node_memory: int
    gpu_count: int
    node_storage: int
    gpu_type: str


@dataclass
class FineTuningService(Record):
    """A registered fine-tuning service. ``price_per_token`` is in wei."""

    provider: str
    url: str
    quota: Quota
    price_per_token: int
    occupied: bool
    models: list[str] = field(default_factory=list)
    tee_signer_address: str = ""
    tee_signer_acknowledged: bool = False


@dataclass
class Refund(Record):
    """A refund that was asked for and not collected. ``created_at`` is in seconds since 1970."""

    index: int
    amount: int
    created_at: int


@dataclass
class RefundDetail(Record):
    """A refund with the seconds until it can be collected."""

    amount: int
    remain_time: int


@dataclass
class Deliverable(Record):
    """The record of a delivered task on chain."""

    id: str
    model_root_hash: bytes
    encrypted_secret: bytes
    acknowledged: bool
    timestamp: int
    settled: bool


@dataclass
class FineTuningAccountDetails(Record):
    """The sub-account with a fine-tuning provider."""

    user: str
    provider: str
    nonce: int
    balance: int
    pending_refund: int
    refunds: list[Refund] = field(default_factory=list)
    additional_info: str = ""
    deliverables: list[Deliverable] = field(default_factory=list)
    acknowledged: bool = False

    @property
    def locked_balance(self) -> int:
        """What was not asked back."""
        return self.balance - self.pending_refund


@dataclass
class FineTuningAccountDetail(Record):
    """The sub-account, and when its refunds can be collected."""

    account: FineTuningAccountDetails
    refunds: list[RefundDetail] = field(default_factory=list)


@dataclass
class CustomizedModel(Record):
    """A provider's entry of a base model."""

    name: str
    hash: str
    image: str = ""
    data_type: str = ""
    training_script: str = ""
    description: str = ""
    tokenizer: str = ""
    tokenizer_sha256: str | None = None
    price_coefficient: int | None = None
    storage_fee: str | None = None
    max_tokens: int | None = None
    stand_in: bool | None = None
    base_model_sha256: str | None = None


@dataclass
class TdxQuoteResponse(Record):
    """A provider's evidence as served, and the signer that it names. Nothing is verified here: see verify_service."""

    raw_report: str
    signing_address: str


@dataclass
class TrainingProgress(Record):
    """Where training is. Losses are per supervised token."""

    step: int
    total_steps: int
    loss: float | None = None
    first_loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None


@dataclass
class LossPoint(Record):
    """One training step in a log: loss per supervised token, and the time of its line in Unix seconds."""

    step: int
    loss: float
    learning_rate: float | None = None
    epoch: float | None = None
    at_s: float | None = None


@dataclass
class EvaluationPoint(Record):
    """One measurement on the records set aside for validation."""

    step: int
    eval_loss: float
    epoch: float | None = None
    at_s: float | None = None


@dataclass
class FeeBreakdown(Record):
    """The fee of a task, itemised; decimal text in wei."""

    billed_tokens: int
    price_per_token: str
    price_coefficient: int
    training_fee: str
    storage_fee: str
    total: str


#: The short lifecycle, by the state on the wire.
_LIFECYCLE = {
    "Init": "Init",
    "SettingUp": "Init",
    "SetUp": "Init",
    "Training": "Training",
    "Trained": "Trained",
    "Delivering": "Trained",
    "Delivered": "Delivered",
    "UserAcknowledged": "Delivered",
    "Finished": "Completed",
    "Failed": "Failed",
    "Cancelled": "Cancelled",
}


@dataclass
class Task(Record):
    """A task. ``progress`` is Init, Training, Trained, Delivered, Completed, Failed or Cancelled; ``state`` is the state
    on the wire, of which there are more (UserAcknowledged, for example)."""

    id: str
    created_at: str | None = None
    updated_at: str | None = None
    user_address: str = ""
    pre_trained_model_hash: str = ""
    dataset_hash: str = ""
    training_params: str = ""
    fee: str = "0"
    nonce: str = ""
    signature: str = ""
    progress: str = ""
    state: str = ""
    deliver_index: int = 0
    deliver_time: int = 0
    model_type: int = 0
    wait: bool = False
    failure_reason: str | None = None
    stage: str | None = None
    queue_position: int | None = None
    ack_deadline: int | None = None
    settled_with_secret: bool | None = None
    tokens: int | None = None
    fee_breakdown: FeeBreakdown | None = None
    training: TrainingProgress | None = None
    model_root_hash: str | None = None
    states: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.progress:
            self.progress = _LIFECYCLE.get(self.state, self.state)


#: The name under which the published package exports :class:`Task`.
FineTuningTask = Task


@dataclass
class DatasetReport(Record):
    """What a dataset file holds. ``keccak`` is the hash that an upload to an enclave gives."""

    format: str
    records: int
    bytes: int
    keccak: str


@dataclass
class TokenCalculation(Record):
    """Training tokens of one epoch. With ``is_estimate`` the provider may count differently."""

    tokens: int
    examples: int
    supervised_tokens: int | None
    truncated_examples: int
    max_seq_length: int
    tokenizer: str
    is_estimate: bool


@dataclass
class FeeQuote(Record):
    """The price of a task in wei, itemised."""

    calculation: TokenCalculation
    billed_tokens: int
    total_steps: int
    price_per_token: int
    price_coefficient: int
    training_fee: int
    storage_fee: int
    total: int
    is_estimate: bool


@dataclass
class DatasetFinding(Record):
    """One thing to know about a dataset; ``severity`` is ``error`` or ``warning``, ``line`` counts from 1."""

    severity: str
    message: str
    line: int | None = None


@dataclass
class SignedQuote(Record):
    """The enclave's own words, and its signature over them."""

    quote: str
    signature: str


@dataclass
class Quote(Record):
    """What a task will cost, when it could run, and what is to be said about its dataset.

    ``fee`` is ``None`` when a finding is an error; ``signed`` and ``signer`` are set when the enclave made the quote.
    """

    provider: str
    model: str
    queue_position: int
    dataset_hash: str | None = None
    fee: FeeQuote | None = None
    estimated_start_s: int | None = None
    estimated_duration_s: int | None = None
    findings: list[DatasetFinding] = field(default_factory=list)
    more_findings: int = 0
    signed: SignedQuote | None = None
    signer: str | None = None


@dataclass
class Progress(Record):
    """News of an operation. ``event`` is ``step``, ``notice``, ``transfer``, ``task``, ``adapter`` or ``funded``; the
    other fields are set as far as the event has them."""

    event: str
    text: str | None = None
    state: str | None = None
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None
    queue_position: int | None = None
    stage: str | None = None
    done_bytes: int | None = None
    total_bytes: int | None = None
    service: str | None = None
    provider: str | None = None
    amount: int | None = None


@dataclass
class ServiceMetadata(Record):
    """A registered inference service. Prices are in wei."""

    provider: str
    service_type: str
    url: str
    input_price: int
    output_price: int
    updated_at: int
    model: str
    verifiability: str
    additional_info: str = ""
    tee_signer_address: str = ""
    tee_signer_acknowledged: bool = True

    def is_verifiable(self) -> bool:
        """Whether the provider says that its answers can be proven."""
        return bool(self.verifiability)


@dataclass
class Account(Record):
    """The sub-account with an inference provider."""

    user: str
    provider: str
    nonce: int
    balance: int
    pending_refund: int
    refunds: list[Refund] = field(default_factory=list)
    additional_info: str = ""
    acknowledged: bool = False
    generation: int = 0
    revoked_bitmap: int = 0

    @property
    def locked_balance(self) -> int:
        """What was not asked back."""
        return self.balance - self.pending_refund


@dataclass
class AccountWithDetail(Record):
    """The sub-account, and when its refunds can be collected."""

    account: Account
    refund_details: list[RefundDetail] = field(default_factory=list)


@dataclass
class ApiKeyInfo(Record):
    """A long-lived token for programs. Times are in milliseconds since 1970; 0 = never expires."""

    token_id: int
    created_at: int
    expires_at: int
    raw_token: str = field(repr=False)


@dataclass
class Funding(Record):
    """What was done so that a provider accepts requests."""

    created: bool
    acknowledged: bool
    transferred: int


@dataclass
class AdapterInfo(Record):
    """An adapter at a provider. ``tier`` is its true state where the provider tells it."""

    adapter_name: str
    task_id: str
    base_model: str
    user_address: str
    state: str
    storage_path: str | None = None
    storage_root_hash: str | None = None
    error: str | None = None
    tier: str | None = None
    retryable: bool | None = None
    created_at: str | None = None
    updated_at: str | None = None


@dataclass
class AdapterStatusResponse(Record):
    """The state of one adapter. ``tier`` is its true state where the provider tells it."""

    adapter_name: str
    state: str
    error: str | None = None
    tier: str | None = None
    retryable: bool | None = None


@dataclass
class DeployResponse(Record):
    """What a deployment came to. ``adapter_name`` is the ``model`` of chat requests."""

    message: str
    adapter_name: str = ""
    status: str = ""


@dataclass
class VerificationStep(Record):
    """A line of a verification. ``kind`` is ``info``, ``success``, ``error``, ``warning`` or ``step``."""

    kind: str
    message: str

    @property
    def type(self) -> str:
        """The same as ``kind``."""
        return self.kind


@dataclass
class ResponseProof(Record):
    """A proven answer: the enclave's signer, and the text of both body hashes that it signed."""

    signer: str
    text: str
