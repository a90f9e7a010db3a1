"""0G Compute for Python: fine-tuning and inference in attested enclaves.

>>> from zerog_py_sdk import create_broker
>>> broker = create_broker(private_key="0x...", network="testnet")  # doctest: +SKIP
>>> broker.fine_tuning.list_service()  # doctest: +SKIP

``broker.ledger`` is the prepaid account, ``broker.fine_tuning`` trains, ``broker.inference`` and
``broker.inference.lora`` serve. :class:`AsyncBroker` is the same to be awaited. Steps and notices are logged under
``zerog_py_sdk``; notices, which are about money or trust, are warnings.
"""

from ._async.broker import (
    AsyncBroker,
    create_async_broker,
    create_async_broker_from_env,
    create_async_read_only_broker,
)
from ._async.fine_tuning import AsyncFineTuningBroker
from ._async.inference import AsyncInferenceManager
from ._async.ledger import AsyncLedgerManager
from ._async.lora import AsyncChatStream, AsyncLoRAProcessor
from ._loss_curve import LossCurve
from ._native import __version__
from ._sync.broker import ZGServingBroker, create_broker, create_broker_from_env, create_read_only_broker
from ._sync.fine_tuning import FineTuningBroker
from ._sync.inference import InferenceManager
from ._sync.ledger import LedgerManager
from ._sync.lora import ChatStream, LoRAProcessor
from .exceptions import (
    AccountNotFoundError,
    AdapterFailedError,
    ArgumentTypeError,
    ArgumentValueError,
    AuthenticationError,
    ConfigurationError,
    ContractError,
    FileError,
    HeadersAlreadyUsedError,
    InsufficientBalanceError,
    InvalidResponseError,
    ModelVerificationError,
    NetworkError,
    OperationTimeoutError,
    ProviderError,
    ProviderNotAcknowledgedError,
    QueueNotEmptyError,
    ServiceNotFoundError,
    ServiceVerificationError,
    StorageError,
    TaskEndedError,
    ValidationError,
    ZGServingBrokerError,
)
from .models import (
    Account,
    AccountWithDetail,
    AdapterInfo,
    AdapterStatusResponse,
    ApiKeyInfo,
    CustomizedModel,
    DatasetFinding,
    DatasetReport,
    Deliverable,
    DeployResponse,
    EvaluationPoint,
    FeeQuote,
    FineTuningAccountDetail,
    FineTuningAccountDetails,
    FineTuningService,
    FineTuningTask,
    FundPlan,
    Funding,
    LedgerAccount,
    LedgerDetail,
    LossPoint,
    NetworkInfo,
    Progress,
    Quota,
    Quote,
    Refund,
    RefundDetail,
    ResponseProof,
    Result,
    ServiceMetadata,
    Task,
    TdxQuoteResponse,
    TokenCalculation,
    SignedQuote,
    TrainingProgress,
    VerificationStep,
)

#: Which package this is: the published one installs the same import name.
IMPLEMENTATION = "zerog"

#: Names under which the published clients export the same.
ZGComputeNetworkBroker = ZGServingBroker
create_zg_compute_network_broker = create_broker
InferenceBroker = InferenceManager
LedgerBroker = LedgerManager

__all__ = [
    "Account",
    "AccountNotFoundError",
    "AccountWithDetail",
    "AdapterFailedError",
    "AdapterInfo",
    "AdapterStatusResponse",
    "ApiKeyInfo",
    "ArgumentTypeError",
    "ArgumentValueError",
    "AsyncBroker",
    "AsyncChatStream",
    "AsyncFineTuningBroker",
    "AsyncInferenceManager",
    "AsyncLedgerManager",
    "AsyncLoRAProcessor",
    "AuthenticationError",
    "ChatStream",
    "ConfigurationError",
    "ContractError",
    "CustomizedModel",
    "DatasetFinding",
    "DatasetReport",
    "Deliverable",
    "DeployResponse",
    "EvaluationPoint",
    "FeeQuote",
    "FileError",
    "FineTuningAccountDetail",
    "FineTuningAccountDetails",
    "FineTuningBroker",
    "FineTuningService",
    "FineTuningTask",
    "FundPlan",
    "Funding",
    "HeadersAlreadyUsedError",
    "IMPLEMENTATION",
    "InferenceBroker",
    "InferenceManager",
    "InsufficientBalanceError",
    "InvalidResponseError",
    "LedgerAccount",
    "LedgerBroker",
    "LedgerDetail",
    "LedgerManager",
    "LoRAProcessor",
    "LossCurve",
    "LossPoint",
    "ModelVerificationError",
    "NetworkError",
    "NetworkInfo",
    "OperationTimeoutError",
    "Progress",
    "ProviderError",
    "ProviderNotAcknowledgedError",
    "QueueNotEmptyError",
    "Quota",
    "Quote",
    "Refund",
    "RefundDetail",
    "ResponseProof",
    "Result",
    "ServiceMetadata",
    "ServiceNotFoundError",
    "ServiceVerificationError",
    "StorageError",
    "Task",
    "TaskEndedError",
    "TdxQuoteResponse",
    "TokenCalculation",
    "SignedQuote",
    "TrainingProgress",
    "ValidationError",
    "VerificationStep",
    "ZGComputeNetworkBroker",
    "ZGServingBroker",
    "ZGServingBrokerError",
    "__version__",
    "create_async_broker",
    "create_async_broker_from_env",
    "create_async_read_only_broker",
    "create_broker",
    "create_broker_from_env",
    "create_read_only_broker",
    "create_zg_compute_network_broker",
]
