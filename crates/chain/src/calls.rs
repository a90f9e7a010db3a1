//! Typed contract calls as calldata. Nothing here does input or output.
//!
//! A [`ContractCall`] is what [`crate::ChainClient::send`] sends at once and what
//! [`crate::ChainClient::prepare`] signs for a caller that stores the transaction first. Amounts are
//! in neuron. Each submodule has the calls of one contract.

use alloy_primitives::{Address, Bytes, U256};
use alloy_sol_types::SolCall;

/// One call or contract creation, not yet signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContractCall {
    /// Function name, for messages and logs.
    pub name: &'static str,
    /// Contract; `None` creates one.
    pub to: Option<Address>,
    /// Value sent along, in neuron.
    pub value: U256,
    /// Selector and arguments, or creation code.
    pub data: Bytes,
}

impl ContractCall {
    /// A call without value.
    pub fn new<C: SolCall>(name: &'static str, to: Address, call: &C) -> Self {
        Self {
            name,
            to: Some(to),
            value: U256::ZERO,
            data: call.abi_encode().into(),
        }
    }

    /// The same call with value, in neuron.
    #[must_use]
    pub fn with_value(mut self, value: U256) -> Self {
        self.value = value;
        self
    }

    /// A plain payment.
    #[must_use]
    pub fn payment(to: Address, value: U256) -> Self {
        Self {
            name: "payment",
            to: Some(to),
            value,
            data: Bytes::new(),
        }
    }
}

/// Calls of the LedgerManager.
pub mod ledger {
    use super::{Address, ContractCall, U256};
    use crate::bindings::LedgerManager as abi;

    /// Creates the sender's ledger with `value`; at least the contract's minimum.
    #[must_use]
    pub fn add_ledger(ledger: Address, additional_info: &str, value: U256) -> ContractCall {
        let call = abi::addLedgerCall {
            additionalInfo: additional_info.to_owned(),
        };
        ContractCall::new("addLedger", ledger, &call).with_value(value)
    }

    /// Adds `value` to the sender's ledger, creating it if needed.
    #[must_use]
    pub fn deposit_fund(ledger: Address, value: U256) -> ContractCall {
        ContractCall::new("depositFund", ledger, &abi::depositFundCall {}).with_value(value)
    }

    /// Adds `value` to the ledger of `recipient`, creating it if needed.
    #[must_use]
    pub fn deposit_fund_for(ledger: Address, recipient: Address, value: U256) -> ContractCall {
        ContractCall::new(
            "depositFundFor",
            ledger,
            &abi::depositFundForCall { recipient },
        )
        .with_value(value)
    }

    /// Pays `amount` of the available balance out to the sender.
    #[must_use]
    pub fn refund(ledger: Address, amount: U256) -> ContractCall {
        ContractCall::new("refund", ledger, &abi::refundCall { amount })
    }

    /// Moves `amount` to the sender's sub-account with `provider`; `service_name` is the full name,
    /// e.g. `fine-tuning-v1.0`.
    #[must_use]
    pub fn transfer_fund(
        ledger: Address,
        provider: Address,
        service_name: &str,
        amount: U256,
    ) -> ContractCall {
        let call = abi::transferFundCall {
            provider,
            serviceName: service_name.to_owned(),
            amount,
        };
        ContractCall::new("transferFund", ledger, &call)
    }

    /// Collects unlocked refunds of `providers` and requests the rest.
    #[must_use]
    pub fn retrieve_fund(
        ledger: Address,
        providers: Vec<Address>,
        service_name: &str,
    ) -> ContractCall {
        let call = abi::retrieveFundCall {
            providers,
            serviceName: service_name.to_owned(),
        };
        ContractCall::new("retrieveFund", ledger, &call)
    }

    /// Deletes the sender's ledger, whose funds must all be spent.
    #[must_use]
    pub fn delete_ledger(ledger: Address) -> ContractCall {
        ContractCall::new("deleteLedger", ledger, &abi::deleteLedgerCall {})
    }

    /// Replaces the text of the sender's ledger.
    #[must_use]
    pub fn update_additional_info(ledger: Address, additional_info: &str) -> ContractCall {
        let call = abi::updateAdditionalInfoCall {
            additionalInfo: additional_info.to_owned(),
        };
        ContractCall::new("updateAdditionalInfo", ledger, &call)
    }

    /// Initializes a new ledger (deployment).
    #[must_use]
    pub fn initialize(ledger: Address, owner: Address) -> ContractCall {
        ContractCall::new("initialize", ledger, &abi::initializeCall { owner_: owner })
    }

    /// Owner: registers a service contract as `service_type-version`.
    #[must_use]
    pub fn register_service(
        ledger: Address,
        service_type: &str,
        version: &str,
        service: Address,
        description: &str,
    ) -> ContractCall {
        let call = abi::registerServiceCall {
            serviceType: service_type.to_owned(),
            version: version.to_owned(),
            serviceAddress: service,
            description: description.to_owned(),
        };
        ContractCall::new("registerService", ledger, &call)
    }

    /// Owner: recommends one version of a service type.
    #[must_use]
    pub fn set_recommended_service(
        ledger: Address,
        service_type: &str,
        version: &str,
    ) -> ContractCall {
        let call = abi::setRecommendedServiceCall {
            serviceType: service_type.to_owned(),
            version: version.to_owned(),
        };
        ContractCall::new("setRecommendedService", ledger, &call)
    }
}

/// Calls that both service contracts have in the same form. `contract` is either of them.
pub mod serving {
    use super::{Address, ContractCall, U256};
    use crate::bindings::FineTuningServing as abi;

    /// Sets the sender's own acknowledgement of the provider's TEE signer.
    #[must_use]
    pub fn acknowledge_tee_signer(
        contract: Address,
        provider: Address,
        acknowledged: bool,
    ) -> ContractCall {
        let call = abi::acknowledgeTEESignerCall {
            provider,
            acknowledged,
        };
        ContractCall::new("acknowledgeTEESigner", contract, &call)
    }

    /// Owner: accepts the TEE signer that `provider` registered.
    #[must_use]
    pub fn acknowledge_tee_signer_by_owner(contract: Address, provider: Address) -> ContractCall {
        let call = abi::acknowledgeTEESignerByOwnerCall { provider };
        ContractCall::new("acknowledgeTEESignerByOwner", contract, &call)
    }

    /// Owner: takes the acceptance back.
    #[must_use]
    pub fn revoke_tee_signer_acknowledgement(contract: Address, provider: Address) -> ContractCall {
        let call = abi::revokeTEESignerAcknowledgementCall { provider };
        ContractCall::new("revokeTEESignerAcknowledgement", contract, &call)
    }

    /// Provider: removes the sender's service and returns its stake.
    #[must_use]
    pub fn remove_service(contract: Address) -> ContractCall {
        ContractCall::new("removeService", contract, &abi::removeServiceCall {})
    }

    /// Owner: changes the lock time of refunds, in seconds.
    #[must_use]
    pub fn update_lock_time(contract: Address, lock_time_s: u64) -> ContractCall {
        let call = abi::updateLockTimeCall {
            newLockTime: U256::from(lock_time_s),
        };
        ContractCall::new("updateLockTime", contract, &call)
    }
}

/// Calls of FineTuningServing.
pub mod fine_tuning {
    use super::{Address, Bytes, ContractCall, U256};
    use crate::{
        bindings::FineTuningServing as abi,
        fine_tuning::{ServiceParams, Settlement},
    };

    /// Provider: registers or updates the sender's service. `stake` is the contract's minimum the
    /// first time and zero later.
    #[must_use]
    pub fn add_or_update_service(
        contract: Address,
        params: &ServiceParams,
        stake: U256,
    ) -> ContractCall {
        let call = abi::addOrUpdateServiceCall {
            url: params.url.clone(),
            quota: params.quota.clone().into(),
            pricePerToken: params.price_per_token,
            occupied: params.occupied,
            models: params.models.clone(),
            teeSignerAddress: params.tee_signer,
        };
        ContractCall::new("addOrUpdateService", contract, &call).with_value(stake)
    }

    /// Provider: records a finished task.
    #[must_use]
    pub fn add_deliverable(
        contract: Address,
        user: Address,
        id: &str,
        model_root_hash: Bytes,
    ) -> ContractCall {
        let call = abi::addDeliverableCall {
            user,
            id: id.to_owned(),
            modelRootHash: model_root_hash,
        };
        ContractCall::new("addDeliverable", contract, &call)
    }

    /// Provider: gives a deliverable up without payment.
    #[must_use]
    pub fn abandon_deliverable(contract: Address, user: Address, id: &str) -> ContractCall {
        let call = abi::abandonDeliverableCall {
            user,
            id: id.to_owned(),
        };
        ContractCall::new("abandonDeliverable", contract, &call)
    }

    /// User: accepts a deliverable of `provider`.
    #[must_use]
    pub fn acknowledge_deliverable(contract: Address, provider: Address, id: &str) -> ContractCall {
        let call = abi::acknowledgeDeliverableCall {
            provider,
            id: id.to_owned(),
        };
        ContractCall::new("acknowledgeDeliverable", contract, &call)
    }

    /// Provider: collects the fee of one deliverable.
    #[must_use]
    pub fn settle_fees(contract: Address, settlement: &Settlement) -> ContractCall {
        let call = abi::settleFeesCall {
            input: settlement.clone().into(),
        };
        ContractCall::new("settleFees", contract, &call)
    }

    /// Initializes a new contract (deployment).
    #[must_use]
    pub fn initialize(
        contract: Address,
        lock_time_s: u64,
        ledger: Address,
        owner: Address,
        penalty_percentage: u8,
    ) -> ContractCall {
        let call = abi::initializeCall {
            locktime: U256::from(lock_time_s),
            ledger,
            owner_: owner,
            penalty: U256::from(penalty_percentage),
        };
        ContractCall::new("initialize", contract, &call)
    }

    /// Owner: changes the penalty of unacknowledged deliverables, in percent.
    #[must_use]
    pub fn update_penalty_percentage(contract: Address, percentage: u8) -> ContractCall {
        let call = abi::updatePenaltyPercentageCall {
            newPercentage: U256::from(percentage),
        };
        ContractCall::new("updatePenaltyPercentage", contract, &call)
    }

    /// Owner: changes the acknowledgement window of later deliverables, in seconds.
    #[must_use]
    pub fn update_ack_window(contract: Address, window_s: u64) -> ContractCall {
        let call = abi::updateAckWindowCall {
            newWindow: U256::from(window_s),
        };
        ContractCall::new("updateAckWindow", contract, &call)
    }
}

/// Calls of InferenceServing.
pub mod inference {
    use super::{Address, ContractCall, U256};
    use crate::{
        bindings::InferenceServing as abi,
        inference::{ServiceParams, Settlement},
    };

    /// Provider: registers or updates the sender's service. `stake` is the contract's minimum the
    /// first time and zero later.
    #[must_use]
    pub fn add_or_update_service(
        contract: Address,
        params: &ServiceParams,
        stake: U256,
    ) -> ContractCall {
        let call = abi::addOrUpdateServiceCall {
            params: params.clone().into(),
        };
        ContractCall::new("addOrUpdateService", contract, &call).with_value(stake)
    }

    /// Provider: collects signed fees; at most 50 items.
    #[must_use]
    pub fn settle_fees_with_tee(contract: Address, settlements: &[Settlement]) -> ContractCall {
        let call = abi::settleFeesWithTEECall {
            settlements: settlements.iter().cloned().map(Into::into).collect(),
        };
        ContractCall::new("settleFeesWithTEE", contract, &call)
    }

    /// User: revokes one session token id.
    #[must_use]
    pub fn revoke_token(contract: Address, provider: Address, token_id: u8) -> ContractCall {
        ContractCall::new(
            "revokeToken",
            contract,
            &abi::revokeTokenCall {
                provider,
                tokenId: token_id,
            },
        )
    }

    /// User: revokes several session token ids.
    #[must_use]
    pub fn revoke_tokens(contract: Address, provider: Address, token_ids: &[u8]) -> ContractCall {
        let call = abi::revokeTokensCall {
            provider,
            tokenIds: token_ids.to_vec(),
        };
        ContractCall::new("revokeTokens", contract, &call)
    }

    /// User: revokes every session token by starting a new generation.
    #[must_use]
    pub fn revoke_all_tokens(contract: Address, provider: Address) -> ContractCall {
        ContractCall::new(
            "revokeAllTokens",
            contract,
            &abi::revokeAllTokensCall { provider },
        )
    }

    /// Initializes a new contract (deployment).
    #[must_use]
    pub fn initialize(
        contract: Address,
        lock_time_s: u64,
        ledger: Address,
        owner: Address,
    ) -> ContractCall {
        let call = abi::initializeCall {
            locktime: U256::from(lock_time_s),
            ledger,
            owner_: owner,
        };
        ContractCall::new("initialize", contract, &call)
    }
}

/// Calls of the storage Flow contract and its fee market.
pub mod flow {
    use super::{Address, ContractCall, U256};
    use crate::{
        bindings::{FixedPriceMarket, Flow as abi},
        flow::Submission,
    };

    /// Adds one file; `fee` must be exactly the market's price for its sectors.
    #[must_use]
    pub fn submit(flow: Address, submission: &Submission, fee: U256) -> ContractCall {
        let call = abi::submitCall {
            submission: submission.clone().into(),
        };
        ContractCall::new("submit", flow, &call).with_value(fee)
    }

    /// Adds several files in one transaction; `fee` is the sum.
    #[must_use]
    pub fn batch_submit(flow: Address, submissions: &[Submission], fee: U256) -> ContractCall {
        let call = abi::batchSubmitCall {
            submissions: submissions.iter().cloned().map(Into::into).collect(),
        };
        ContractCall::new("batchSubmit", flow, &call).with_value(fee)
    }

    /// Market owner: changes the price, in neuron per 256-byte sector.
    #[must_use]
    pub fn set_price_per_sector(market: Address, price: U256) -> ContractCall {
        let call = FixedPriceMarket::setPricePerSectorCall { newPrice: price };
        ContractCall::new("setPricePerSector", market, &call)
    }
}
