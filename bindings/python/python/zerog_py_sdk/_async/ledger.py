"""``broker.ledger``: the prepaid account."""

from __future__ import annotations

from decimal import Decimal

from .._arguments import Arguments
from .._calls import Manager, call_async
from ..exceptions import ContractError
from ..models import LedgerAccount, LedgerDetail, Result, build

Amount = str | int | float | Decimal


class AsyncLedgerManager(Manager):
    """The prepaid account: deposits, transfers to providers, and the way back."""

    async def get_ledger(self) -> LedgerAccount:
        """The wallet's ledger.

        Raises:
            AccountNotFoundError: there is none yet.
        """
        value = await call_async("getLedger", self._native_broker().ledger().get_ledger)
        return build(LedgerAccount, value)

    async def get_ledger_with_detail(self) -> LedgerDetail:
        """The ledger with the balances of its sub-accounts."""
        ledger = await self.get_ledger()
        broker = self._native_broker()
        detail = LedgerDetail(ledger.total_balance, ledger.locked, ledger.balance)
        for service, manager, found in (
            ("inference", broker.inference(), detail.inference_providers),
            ("fine-tuning", broker.fine_tuning(), detail.fine_tuning_providers),
        ):
            for provider in await call_async("getLedgerWithDetail", broker.ledger().get_providers, service):
                account = await call_async("getLedgerWithDetail", manager.get_account, provider)
                found.append((provider, account["balance"], account["pending_refund"]))
        return detail

    async def add_ledger(self, amount: Amount) -> Result:
        """Creates the ledger with an amount in 0G, for example ``"3"``.

        Raises:
            ArgumentValueError: (a ValueError) less than the contract's minimum.
            ContractError: the ledger exists, or the wallet cannot pay.
        """
        given = Arguments("addLedger")
        wei = given.og("amount", amount)
        ledger = self._native_broker().ledger()
        minimum = await call_async(given.operation, ledger.min_account_balance)
        if wei < minimum:
            raise given.wrong_value("amount", f"a new ledger needs at least {minimum / 10**18:g} 0G")
        return Result(await call_async(given.operation, ledger.add_ledger, wei))

    async def deposit_fund(self, amount: Amount) -> Result:
        """Adds an amount in 0G, creating the ledger if there is none."""
        given = Arguments("depositFund")
        wei = given.og("amount", amount)
        if wei == 0:
            raise given.wrong_value("amount", "it must be more than 0")
        return Result(await call_async(given.operation, self._native_broker().ledger().deposit_fund, wei))

    async def deposit_fund_for(self, recipient: str, amount: Amount) -> Result:
        """Puts an amount in 0G into the ledger of another wallet."""
        given = Arguments("depositFundFor")
        to = given.address("recipient", recipient)
        wei = given.og("amount", amount)
        return Result(await call_async(given.operation, self._native_broker().ledger().deposit_fund_for, to, wei))

    async def transfer_fund(self, provider_address: str, service_type: str, amount: int = 0) -> Result:
        """Moves an amount in **wei** into the sub-account with a provider, creating it if needed.

        A transfer acknowledges the provider's signer. ``service_type`` is ``"fine-tuning"`` or ``"inference"``; the
        first transfer must be at least 1 0G: ``og_to_wei("1")``.
        """
        given = Arguments("transferFund")
        provider = given.address("provider_address", provider_address)
        service = given.service("service_type", service_type)
        wei = given.wei("amount", amount)
        ledger = self._native_broker().ledger()
        return Result(await call_async(given.operation, ledger.transfer_fund, provider, service, wei))

    async def retrieve_fund(self, service_type: str = "inference", providers: list[str] | None = None) -> Result:
        """Collects unlocked refunds and asks everything else back, from the named providers or from all.

        Returns the last receipt; ``receipts`` holds all of them.
        """
        given = Arguments("retrieveFund")
        service = given.service("service_type", service_type)
        if providers is not None and not isinstance(providers, (list, tuple)):
            raise given.wrong_type("providers", "a list of addresses", providers)
        named = None if providers is None else [given.address("providers", item) for item in providers]
        ledger = self._native_broker().ledger()
        receipts = await call_async(given.operation, ledger.retrieve_fund, service, named)
        if not receipts:
            raise ContractError(given.operation, f"there is no {service} account to retrieve funds from")
        return Result(receipts[-1], receipts=[Result(item) for item in receipts])

    async def retrieve_fund_from_provider(self, provider_address: str, service_type: str = "inference") -> Result:
        """As :meth:`retrieve_fund`, from one provider."""
        provider = Arguments("retrieveFund").address("provider_address", provider_address)
        return await self.retrieve_fund(service_type, [provider])

    async def refund(self, amount: Amount) -> Result:
        """Pays an amount in 0G of the available balance out to the wallet."""
        given = Arguments("refund")
        wei = given.og("amount", amount)
        return Result(await call_async(given.operation, self._native_broker().ledger().refund, wei))

    async def delete_ledger(self) -> Result:
        """Deletes a ledger whose funds are all spent or paid out."""
        return Result(await call_async("deleteLedger", self._native_broker().ledger().delete_ledger))

    async def get_providers(self, service_type: str = "inference") -> list[str]:
        """Providers with whom the wallet has a sub-account."""
        given = Arguments("getProviders")
        service = given.service("service_type", service_type)
        providers: list[str] = await call_async(
            given.operation, self._native_broker().ledger().get_providers, service
        )
        return providers

    async def get_providers_with_balance(self, service_type: str = "inference") -> list[tuple[str, int, int]]:
        """``(provider, balance, pending_refund)`` of sub-accounts that are not empty."""
        service = Arguments("getProvidersWithBalance").service("service_type", service_type)
        detail = await self.get_ledger_with_detail()
        found = detail.inference_providers if service == "inference" else detail.fine_tuning_providers
        return [item for item in found if item[1] or item[2]]
