//! `broker.ledger`.

use pyo3::prelude::*;
use zerog_sdk::{ServiceKind, U256};

use crate::call::{Answer, Call, Waiter};
use crate::convert::address;

#[pyclass(frozen)]
pub(crate) struct Ledger(pub(crate) zerog_sdk::Ledger);

#[pymethods]
impl Ledger {
    #[pyo3(signature = (waiter=None))]
    fn get_ledger(&self, py: Python<'_>, waiter: Waiter) -> Answer {
        let ledger = self.0.clone();
        Call::new(waiter).run(py, async move { ledger.get_ledger().await })
    }

    #[pyo3(signature = (amount, waiter=None))]
    fn add_ledger(&self, py: Python<'_>, amount: u128, waiter: Waiter) -> Answer {
        let ledger = self.0.clone();
        Call::new(waiter).run(
            py,
            async move { ledger.add_ledger(U256::from(amount)).await },
        )
    }

    #[pyo3(signature = (amount, waiter=None))]
    fn deposit_fund(&self, py: Python<'_>, amount: u128, waiter: Waiter) -> Answer {
        let ledger = self.0.clone();
        Call::new(waiter).run(
            py,
            async move { ledger.deposit_fund(U256::from(amount)).await },
        )
    }

    #[pyo3(signature = (recipient, amount, waiter=None))]
    fn deposit_fund_for(
        &self,
        py: Python<'_>,
        recipient: String,
        amount: u128,
        waiter: Waiter,
    ) -> Answer {
        let ledger = self.0.clone();
        Call::new(waiter).run(py, async move {
            let recipient = address(&recipient, "recipient")?;
            ledger.deposit_fund_for(recipient, U256::from(amount)).await
        })
    }

    #[pyo3(signature = (provider, service, amount, waiter=None))]
    fn transfer_fund(
        &self,
        py: Python<'_>,
        provider: String,
        service: String,
        amount: u128,
        waiter: Waiter,
    ) -> Answer {
        let ledger = self.0.clone();
        Call::new(waiter).run(py, async move {
            let provider = address(&provider, "provider_address")?;
            let service: ServiceKind = service.parse()?;
            ledger
                .transfer_fund(provider, service, U256::from(amount))
                .await
        })
    }

    #[pyo3(signature = (service, providers, waiter=None))]
    fn retrieve_fund(
        &self,
        py: Python<'_>,
        service: String,
        providers: Option<Vec<String>>,
        waiter: Waiter,
    ) -> Answer {
        let ledger = self.0.clone();
        Call::new(waiter).run(py, async move {
            let service: ServiceKind = service.parse()?;
            let providers = providers.map(|providers| {
                providers
                    .iter()
                    .map(|text| address(text, "provider_address"))
                    .collect::<zerog_sdk::Result<Vec<_>>>()
            });
            let providers = providers.transpose()?;
            ledger.retrieve_fund(service, providers.as_deref()).await
        })
    }

    #[pyo3(signature = (amount, waiter=None))]
    fn refund(&self, py: Python<'_>, amount: u128, waiter: Waiter) -> Answer {
        let ledger = self.0.clone();
        Call::new(waiter).run(py, async move { ledger.refund(U256::from(amount)).await })
    }

    #[pyo3(signature = (waiter=None))]
    fn delete_ledger(&self, py: Python<'_>, waiter: Waiter) -> Answer {
        let ledger = self.0.clone();
        Call::new(waiter).run(py, async move { ledger.delete_ledger().await })
    }

    #[pyo3(signature = (service, waiter=None))]
    fn get_providers(&self, py: Python<'_>, service: String, waiter: Waiter) -> Answer {
        let ledger = self.0.clone();
        Call::new(waiter).run(
            py,
            async move { ledger.get_providers(service.parse()?).await },
        )
    }

    #[pyo3(signature = (waiter=None))]
    fn min_account_balance(&self, py: Python<'_>, waiter: Waiter) -> Answer {
        let ledger = self.0.clone();
        Call::new(waiter).run(py, async move { ledger.min_account_balance().await })
    }

    #[pyo3(signature = (waiter=None))]
    fn min_transfer_amount(&self, py: Python<'_>, waiter: Waiter) -> Answer {
        let ledger = self.0.clone();
        Call::new(waiter).run(py, async move { ledger.min_transfer_amount().await })
    }
}
