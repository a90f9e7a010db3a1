# Made from _async by make_sync.py; change the original.
"""``broker.inference``: discovery, sessions and API keys, verification; adapters under ``lora``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from .. import _native
from .._answers import Answers
from .._arguments import Arguments
from .._calls import Manager, call, logger, progress, provider_alias, receipt
from .._verification import inference_result
from ..exceptions import InvalidResponseError
from ..models import (
    Account,
    AccountWithDetail,
    AdapterInfo,
    AdapterStatusResponse,
    ApiKeyInfo,
    DeployResponse,
    Funding,
    Progress,
    RefundDetail,
    Result,
    ServiceMetadata,
    VerificationStep,
    build,
    build_all,
)
from .lora import DEFAULT_DEPLOY_TIMEOUT_SECONDS, DEFAULT_SYSTEM_PROMPT, LoRAProcessor

Path = str | os.PathLike[str]


@provider_alias
class InferenceManager(Manager):
    """Chat, API keys, verification, and deployed adapters under ``lora``."""

    def __init__(self, broker: _native.Broker) -> None:
        super().__init__(broker)
        self._answers = Answers()
        #: Adapters: deploy, look, chat.
        self.lora = LoRAProcessor(broker, self._answers)

    def _inference(self, gas_price: int | None = None) -> _native.Inference:
        return self._native_broker(gas_price).inference()

    # Discovery.

    def list_service(
        self, offset: int = 0, limit: int = 20, include_unacknowledged: bool = True
    ) -> list[ServiceMetadata]:
        """Inference services, from ``offset`` on, at most ``limit``."""
        given = Arguments("listService")
        value = call(
            given.operation,
            self._inference().list_service,
            given.integer("offset", offset),
            given.integer("limit", limit),
            given.boolean("include_unacknowledged", include_unacknowledged),
        )
        return build_all(ServiceMetadata, value)

    def get_service(self, provider_address: str) -> ServiceMetadata:
        """One provider's service."""
        given = Arguments("getService")
        provider = given.address("provider_address", provider_address)
        return build(ServiceMetadata, call(given.operation, self._inference().get_service, provider))

    def get_service_metadata(self, provider_address: str, model: str | None = None) -> dict[str, str]:
        """``endpoint`` (in front of ``/chat/completions``) and ``model``."""
        given = Arguments("getServiceMetadata")
        provider = given.address("provider_address", provider_address)
        wanted = given.optional_text("model", model)
        metadata: dict[str, str] = call(
            given.operation, self._inference().get_service_metadata, provider
        )
        return {**metadata, "model": wanted} if wanted else metadata

    def get_provider_models(self, provider_address: str) -> list[dict[str, Any]]:
        """The provider's model catalogue, in OpenAI's form."""
        given = Arguments("getProviderModels")
        provider = given.address("provider_address", provider_address)
        models: list[dict[str, Any]] = call(
            given.operation, self._inference().get_provider_models, provider
        )
        return models

    # Account.

    def get_account(self, provider_address: str) -> Account:
        """The wallet's sub-account with a provider."""
        given = Arguments("getAccount")
        provider = given.address("provider_address", provider_address)
        return build(Account, call(given.operation, self._inference().get_account, provider))

    def get_account_with_detail(self, provider_address: str) -> AccountWithDetail:
        """The sub-account with the seconds until each refund can be collected."""
        given = Arguments("getAccountWithDetail")
        provider = given.address("provider_address", provider_address)
        account, refunds = call(given.operation, self._inference().get_account_with_detail, provider)
        return AccountWithDetail(build(Account, account), build_all(RefundDetail, refunds))

    def get_locked_time(self) -> int:
        """Seconds between asking for a refund and collecting it."""
        lock_time: int = call("getLockedTime", self._inference().get_locked_time)
        return lock_time

    def acknowledge_provider_signer(
        self,
        provider_address: str,
        gas_price: int | None = None,
        *,
        on_progress: Callable[[Progress], Any] | None = None,
    ) -> Result:
        """Verifies the provider's enclave and acknowledges its signer; creates the sub-account if there is none."""
        given = Arguments("acknowledgeProviderSigner")
        provider = given.address("provider_address", provider_address)
        manager = self._inference(given.optional_wei("gas_price", gas_price))
        tell = progress(given.callback("on_progress", on_progress))
        return receipt(
            call(given.operation, manager.acknowledge_provider_signer, provider, on_progress=tell)
        )

    def revoke_tee_signer_acknowledgement(self, provider_address: str, gas_price: int | None = None) -> Result:
        """Takes the acknowledgement back: the contract's owner for everybody, anyone else for themselves."""
        given = Arguments("revokeTEESignerAcknowledgement")
        provider = given.address("provider_address", provider_address)
        manager = self._inference(given.optional_wei("gas_price", gas_price))
        return Result(call(given.operation, manager.revoke_tee_signer_acknowledgement, provider))

    def prepare_account(self, provider_address: str) -> Funding:
        """Creates, acknowledges and funds the sub-account so that the next requests are accepted, and says how much."""
        given = Arguments("prepareAccount")
        provider = given.address("provider_address", provider_address)
        funding = build(Funding, call(given.operation, self._inference().prepare_account, provider))
        _tell_funding(funding, provider)
        return funding

    # Sessions and keys.

    def get_request_headers(
        self, provider_address: str, content: str = "", use_legacy: bool = False
    ) -> dict[str, str]:
        """Headers for a chat request of your own; funds the sub-account first if needed.

        The token in them is good for a day. ``content`` has no effect, and headers of the legacy form are refused.
        """
        given = Arguments("getRequestHeaders")
        provider = given.address("provider_address", provider_address)
        given.text("content", content, allow_empty=True)
        if given.boolean("use_legacy", use_legacy):
            raise given.wrong_value("use_legacy", "providers no longer accept the legacy headers; leave it out")
        self.prepare_account(provider)
        headers: dict[str, str] = call(
            given.operation, self._inference().get_request_headers, provider
        )
        return headers

    def create_api_key(
        self, provider_address: str, expires_in: int | None = None, token_id: int | None = None
    ) -> ApiKeyInfo:
        """Makes an API key. Nothing is stored anywhere: keep the result.

        ``expires_in`` is in milliseconds; none or 0 = never. ``token_id`` none = the first that is not revoked.
        """
        given = Arguments("createApiKey")
        provider = given.address("provider_address", provider_address)
        duration = given.optional_integer("expires_in", expires_in) or None
        number = given.optional_integer("token_id", token_id, 0, 254)
        value = call(given.operation, self._inference().create_api_key, provider, number, duration)
        return build(ApiKeyInfo, value)

    def get_secret(
        self, provider_address: str, token_id: int | None = None, expires_in: int | None = None
    ) -> str:
        """The token of a new API key alone."""
        return (self.create_api_key(provider_address, expires_in, token_id)).raw_token

    def revoke_token(self, provider_address: str, token_id: int, gas_price: int | None = None) -> Result:
        """Revokes one API key on chain."""
        number = Arguments("revokeToken").integer("token_id", token_id, 0, 254)
        return self.revoke_tokens(provider_address, [number], gas_price)

    def revoke_api_key(self, provider_address: str, token_id: int, gas_price: int | None = None) -> Result:
        """The same as :meth:`revoke_token`."""
        return self.revoke_token(provider_address, token_id, gas_price)

    def revoke_tokens(
        self, provider_address: str, token_ids: list[int], gas_price: int | None = None
    ) -> Result:
        """Revokes API keys on chain, in one transaction."""
        given = Arguments("revokeTokens")
        provider = given.address("provider_address", provider_address)
        if not isinstance(token_ids, (list, tuple)):
            raise given.wrong_type("token_ids", "a list of int", token_ids)
        numbers = [given.integer("token_ids", item, 0, 254) for item in token_ids]
        manager = self._inference(given.optional_wei("gas_price", gas_price))
        return Result(call(given.operation, manager.revoke_tokens, provider, numbers))

    def revoke_all_tokens(self, provider_address: str, gas_price: int | None = None) -> Result:
        """Revokes every key and session on chain."""
        given = Arguments("revokeAllTokens")
        provider = given.address("provider_address", provider_address)
        manager = self._inference(given.optional_wei("gas_price", gas_price))
        return Result(call(given.operation, manager.revoke_all_tokens, provider))

    # Verification.

    def verify_service(
        self,
        provider_address: str,
        output_dir: Path | None = None,
        on_log: Callable[[VerificationStep], Any] | None = None,
    ) -> Result:
        """Judges the provider's enclave; see ``broker.fine_tuning.verify_service``.

        ``success`` is the verdict, not that the call returned: a simulated or failed enclave gives ``False``. With
        ``output_dir`` the result is kept there as ``verification_<provider>_<seconds>.json`` too.
        """
        given = Arguments("verifyService")
        provider = given.address("provider_address", provider_address)
        folder = given.optional_path("output_dir", output_dir)
        log = given.callback("on_log", on_log)
        service = call(given.operation, self._inference().get_service, provider)
        value = call(
            given.operation,
            self._inference().verify_service,
            provider,
            folder,
            on_log=None if log is None else lambda step: log(build(VerificationStep, step)),
        )
        return inference_result(value, service, folder)

    def process_response(
        self,
        provider_address: str,
        content: str,
        chat_id: str | None = None,
        *,
        request_body: bytes | str | None = None,
        response_body: bytes | str | None = None,
    ) -> bool:
        """Whether the provider's enclave signed exactly this exchange.

        ``chat_id`` is the ``ZG-Res-Key`` header or the completion's ``id``. For answers of this broker's ``lora.chat``
        both bodies are known; for requests of your own give them byte for byte (of a stream, every byte). ``content``
        is the answer's text; it is compared with the signed one where that is known.
        """
        given = Arguments("processResponse")
        provider = given.address("provider_address", provider_address)
        text = given.text("content", content, allow_empty=True)
        known = given.optional_text("chat_id", chat_id)
        if known is None:
            raise given.wrong_value("chat_id", "name the ZG-Res-Key header or the completion's id")
        exchange = self._answers.find(provider, known)
        if request_body is not None and response_body is not None:
            sent = given.body("request_body", request_body)
            came = given.body("response_body", response_body)
        elif exchange is not None:
            sent, came = exchange.request_body, exchange.response_body
            if text and exchange.content is not None and text != exchange.content:
                logger.warning("the content is not the one that came with chat %s", known)
                return False
        else:
            raise given.wrong_value(
                "request_body", "give request_body and response_body: this broker did not make the request itself"
            )
        try:
            call(
                given.operation, self._inference().process_response, provider, known, sent, came
            )
        except InvalidResponseError as error:
            logger.warning("%s", error.reason)
            return False
        return True

    # The same as under ``lora``.

    def list_adapters(self, provider_address: str) -> list[AdapterInfo]:
        """See ``lora.list_adapters``."""
        return self.lora.list_adapters(provider_address)

    def get_adapter_status(self, provider_address: str, adapter_name: str) -> AdapterStatusResponse:
        """See ``lora.get_adapter_status``."""
        return self.lora.get_adapter_status(provider_address, adapter_name)

    def deploy_adapter(
        self,
        provider_address: str,
        base_model: str,
        task_id: str,
        wait: bool = False,
        timeout_seconds: float = DEFAULT_DEPLOY_TIMEOUT_SECONDS,
        on_progress: Callable[[str], Any] | None = None,
    ) -> DeployResponse:
        """See ``lora.deploy_adapter``."""
        return self.lora.deploy_adapter(
            provider_address, base_model, task_id, wait, timeout_seconds, on_progress
        )

    def chat_with_fine_tuned_model(
        self,
        provider_address: str,
        adapter_name: str,
        message: str,
        system_prompt: str = DEFAULT_SYSTEM_PROMPT,
    ) -> dict[str, Any]:
        """See ``lora.chat``."""
        return self.lora.chat(provider_address, adapter_name, message, system_prompt)


def _tell_funding(funding: Funding, provider: str) -> None:
    if funding.transferred:
        logger.warning(
            "moved %s wei from the ledger into the inference account with %s", funding.transferred, provider
        )
