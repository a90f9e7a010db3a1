//! What actors do: every function of the contracts that changes something, as data that can be printed and replayed.

use alloy_primitives::{Address, Bytes, U256};
use alloy_sol_types::SolCall;
use zerog_chain::{
    ContractCall,
    bindings::{FineTuningServing as F, InferenceServing as I, LedgerManager as L},
    calls, fine_tuning, inference,
};

use super::{
    claims::{Claim, Item, signed},
    machine::{Machine, Puppet},
};

/// One of the service contracts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Service {
    FineTuning,
    Inference,
    /// Not registered in the ledger at the start.
    SecondInference,
}

impl Service {
    pub(crate) const ALL: [Self; 3] = [Self::FineTuning, Self::Inference, Self::SecondInference];

    pub(crate) fn address(self, machine: &Machine) -> Address {
        match self {
            Self::FineTuning => machine.addresses.fine_tuning,
            Self::Inference => machine.addresses.inference,
            Self::SecondInference => machine.second_inference,
        }
    }

    pub(crate) fn is_fine_tuning(self) -> bool {
        self == Self::FineTuning
    }
}

/// A text of one repeated letter, so that lengths at the bounds print short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Text(pub(crate) char, pub(crate) usize);

impl Text {
    pub(crate) const EMPTY: Self = Self('-', 0);
}

impl std::fmt::Display for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.to_string().repeat(self.1))
    }
}

/// What a provider registers; each service contract takes the fields that it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) url: Text,
    /// GPU type of fine-tuning, service type of inference.
    pub(crate) kind: Text,
    /// Model names of fine-tuning; inference takes the first.
    pub(crate) models: Vec<Text>,
    pub(crate) verifiability: Text,
    pub(crate) info: Text,
    pub(crate) price: u64,
    pub(crate) occupied: bool,
    pub(crate) signer: Address,
}

impl Offer {
    pub(crate) fn model(&self) -> Text {
        self.models.first().copied().unwrap_or(Text::EMPTY)
    }

    pub(crate) fn fine_tuning(&self) -> fine_tuning::ServiceParams {
        fine_tuning::ServiceParams {
            url: self.url.to_string(),
            quota: fine_tuning::Quota {
                cpu_count: 2,
                node_memory: 24,
                gpu_count: self.price,
                node_storage: 50,
                gpu_type: self.kind.to_string(),
            },
            price_per_token: U256::from(self.price),
            occupied: self.occupied,
            models: self.models.iter().map(Text::to_string).collect(),
            tee_signer: self.signer,
        }
    }

    pub(crate) fn inference(&self) -> inference::ServiceParams {
        inference::ServiceParams {
            service_type: self.kind.to_string(),
            url: self.url.to_string(),
            model: self.model().to_string(),
            verifiability: self.verifiability.to_string(),
            input_price: U256::from(self.price),
            output_price: U256::from(self.price) * U256::from(2),
            additional_info: self.info.to_string(),
            tee_signer: self.signer,
        }
    }
}

/// Functions of the service contracts for the ledger alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LedgerOnly {
    AddAccount,
    DepositFund,
    RequestRefundAll,
    ProcessRefund,
    DeleteAccount,
}

/// A contract that has an owner, an initializer and a refusal of coins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contract {
    Ledger,
    Serving(Service),
}

impl Contract {
    pub(crate) fn address(self, machine: &Machine) -> Address {
        match self {
            Self::Ledger => machine.addresses.ledger,
            Self::Serving(service) => service.address(machine),
        }
    }
}

/// One call. Service names are the full names of the ledger's registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Act {
    AddLedger {
        info: Text,
        value: U256,
    },
    DepositFund {
        value: U256,
    },
    DepositFundFor {
        recipient: Address,
        value: U256,
    },
    Refund {
        amount: U256,
    },
    TransferFund {
        provider: Address,
        service: String,
        amount: U256,
    },
    RetrieveFund {
        providers: Vec<Address>,
        service: String,
    },
    DeleteLedger,
    UpdateAdditionalInfo {
        info: Text,
    },
    SpendFund {
        user: Address,
        amount: U256,
    },
    RegisterService {
        kind: String,
        version: String,
        address: Address,
    },
    SetRecommendedService {
        kind: String,
        version: String,
    },

    Pay {
        to: Contract,
        value: U256,
    },
    TransferOwnership {
        contract: Contract,
        to: Address,
    },
    RenounceOwnership {
        contract: Contract,
    },
    Initialize {
        contract: Contract,
    },

    LedgerOnly {
        service: Service,
        function: LedgerOnly,
        user: Address,
        provider: Address,
    },
    AddOrUpdateService {
        service: Service,
        offer: Offer,
        stake: U256,
    },
    RemoveService {
        service: Service,
    },
    AcknowledgeSigner {
        service: Service,
        provider: Address,
        acknowledged: bool,
    },
    AcknowledgeSignerByOwner {
        service: Service,
        provider: Address,
        acknowledged: bool,
    },
    UpdateLockTime {
        service: Service,
        seconds: u64,
    },

    UpdatePenalty {
        percentage: u64,
    },
    UpdateAckWindow {
        seconds: u64,
    },
    AddDeliverable {
        user: Address,
        id: Text,
        root: Bytes,
    },
    AbandonDeliverable {
        user: Address,
        id: Text,
    },
    AcknowledgeDeliverable {
        provider: Address,
        id: Text,
    },
    SettleFees(Claim),

    SettleFeesWithTee {
        service: Service,
        items: Vec<Item>,
    },
    RevokeToken {
        service: Service,
        provider: Address,
        id: u8,
    },
    RevokeTokens {
        service: Service,
        provider: Address,
        ids: Vec<u8>,
    },
    RevokeAllTokens {
        service: Service,
        provider: Address,
    },
}

/// What a puppet does with a payment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reaction {
    Take,
    Refuse,
    /// Acts before it takes the payment, itself or through the other puppet.
    Act {
        puppet: Address,
        act: Box<Act>,
    },
}

/// One step of a play.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// A puppet acts when `from` is one.
    Act {
        from: Address,
        act: Act,
    },
    React {
        puppet: Address,
        reaction: Reaction,
    },
    Wait {
        seconds: u64,
    },
}

impl Act {
    /// The call, with its signatures.
    pub(crate) fn encode(&self, from: Address, machine: &Machine) -> ContractCall {
        let ledger = machine.addresses.ledger;
        let fine_tuning = machine.addresses.fine_tuning;
        match self {
            Self::AddLedger { info, value } => {
                calls::ledger::add_ledger(ledger, &info.to_string(), *value)
            }
            Self::DepositFund { value } => calls::ledger::deposit_fund(ledger, *value),
            Self::DepositFundFor { recipient, value } => {
                calls::ledger::deposit_fund_for(ledger, *recipient, *value)
            }
            Self::Refund { amount } => calls::ledger::refund(ledger, *amount),
            Self::TransferFund {
                provider,
                service,
                amount,
            } => calls::ledger::transfer_fund(ledger, *provider, service, *amount),
            Self::RetrieveFund { providers, service } => {
                calls::ledger::retrieve_fund(ledger, providers.clone(), service)
            }
            Self::DeleteLedger => calls::ledger::delete_ledger(ledger),
            Self::UpdateAdditionalInfo { info } => {
                calls::ledger::update_additional_info(ledger, &info.to_string())
            }
            Self::SpendFund { user, amount } => {
                let call = L::spendFundCall {
                    user: *user,
                    amount: *amount,
                };
                ContractCall::new("spendFund", ledger, &call)
            }
            Self::RegisterService {
                kind,
                version,
                address,
            } => calls::ledger::register_service(ledger, kind, version, *address, DESCRIPTION),
            Self::SetRecommendedService { kind, version } => {
                calls::ledger::set_recommended_service(ledger, kind, version)
            }
            Self::Pay { to, value } => ContractCall::payment(to.address(machine), *value),
            Self::TransferOwnership { contract, to } => ContractCall::new(
                "transferOwnership",
                contract.address(machine),
                &L::transferOwnershipCall { newOwner: *to },
            ),
            Self::RenounceOwnership { contract } => ContractCall::new(
                "renounceOwnership",
                contract.address(machine),
                &L::renounceOwnershipCall {},
            ),
            Self::Initialize { contract } => match contract {
                Contract::Ledger => calls::ledger::initialize(ledger, from),
                Contract::Serving(Service::FineTuning) => {
                    calls::fine_tuning::initialize(fine_tuning, 86_400, ledger, from, 30)
                }
                Contract::Serving(service) => {
                    calls::inference::initialize(service.address(machine), 86_400, ledger, from)
                }
            },
            Self::LedgerOnly {
                service,
                function,
                user,
                provider,
            } => ledger_only(service.address(machine), *function, *user, *provider),
            Self::AddOrUpdateService {
                service,
                offer,
                stake,
            } => {
                let contract = service.address(machine);
                if service.is_fine_tuning() {
                    let params = offer.fine_tuning();
                    calls::fine_tuning::add_or_update_service(contract, &params, *stake)
                } else {
                    let params = offer.inference();
                    calls::inference::add_or_update_service(contract, &params, *stake)
                }
            }
            Self::RemoveService { service } => {
                calls::serving::remove_service(service.address(machine))
            }
            Self::AcknowledgeSigner {
                service,
                provider,
                acknowledged,
            } => calls::serving::acknowledge_tee_signer(
                service.address(machine),
                *provider,
                *acknowledged,
            ),
            Self::AcknowledgeSignerByOwner {
                service,
                provider,
                acknowledged,
            } => {
                let contract = service.address(machine);
                if *acknowledged {
                    calls::serving::acknowledge_tee_signer_by_owner(contract, *provider)
                } else {
                    calls::serving::revoke_tee_signer_acknowledgement(contract, *provider)
                }
            }
            Self::UpdateLockTime { service, seconds } => {
                calls::serving::update_lock_time(service.address(machine), *seconds)
            }
            Self::UpdatePenalty { percentage } => {
                let call = F::updatePenaltyPercentageCall {
                    newPercentage: U256::from(*percentage),
                };
                ContractCall::new("updatePenaltyPercentage", fine_tuning, &call)
            }
            Self::UpdateAckWindow { seconds } => {
                calls::fine_tuning::update_ack_window(fine_tuning, *seconds)
            }
            Self::AddDeliverable { user, id, root } => calls::fine_tuning::add_deliverable(
                fine_tuning,
                *user,
                &id.to_string(),
                root.clone(),
            ),
            Self::AbandonDeliverable { user, id } => {
                calls::fine_tuning::abandon_deliverable(fine_tuning, *user, &id.to_string())
            }
            Self::AcknowledgeDeliverable { provider, id } => {
                calls::fine_tuning::acknowledge_deliverable(fine_tuning, *provider, &id.to_string())
            }
            Self::SettleFees(claim) => {
                calls::fine_tuning::settle_fees(fine_tuning, &claim.signed(machine))
            }
            Self::SettleFeesWithTee { service, items } => {
                let contract = service.address(machine);
                calls::inference::settle_fees_with_tee(contract, &signed(items, contract, machine))
            }
            Self::RevokeToken {
                service,
                provider,
                id,
            } => calls::inference::revoke_token(service.address(machine), *provider, *id),
            Self::RevokeTokens {
                service,
                provider,
                ids,
            } => calls::inference::revoke_tokens(service.address(machine), *provider, ids),
            Self::RevokeAllTokens { service, provider } => {
                calls::inference::revoke_all_tokens(service.address(machine), *provider)
            }
        }
    }
}

/// Description of services that are registered during a play.
pub(crate) const DESCRIPTION: &str = "another one";

impl Step {
    /// Sender, receiver, value and data of the transaction; nothing for waiting.
    pub(crate) fn transaction(
        &self,
        driver: Address,
        machine: &Machine,
    ) -> Option<(Address, Address, U256, Bytes)> {
        match self {
            Self::Wait { .. } => None,
            Self::Act { from, act } => {
                let call = act.encode(*from, machine);
                let to = call.to.expect("no act creates a contract");
                if !machine.puppets.contains(from) {
                    return Some((*from, to, call.value, call.data));
                }
                Some((
                    driver,
                    *from,
                    U256::ZERO,
                    execute(to, call.value, call.data),
                ))
            }
            Self::React { puppet, reaction } => {
                let (number, target, data) = match reaction {
                    Reaction::Take => (0, Address::ZERO, Bytes::new()),
                    Reaction::Refuse => (1, Address::ZERO, Bytes::new()),
                    Reaction::Act { puppet: actor, act } => {
                        let call = act.encode(*actor, machine);
                        assert!(call.value.is_zero(), "reactions send no coins");
                        let to = call.to.expect("no act creates a contract");
                        if actor == puppet {
                            (2, to, call.data)
                        } else {
                            (2, *actor, execute(to, U256::ZERO, call.data))
                        }
                    }
                };
                let call = Puppet::reactCall {
                    reaction: number,
                    target,
                    data,
                };
                Some((driver, *puppet, U256::ZERO, call.abi_encode().into()))
            }
        }
    }
}

fn execute(target: Address, value: U256, data: Bytes) -> Bytes {
    Puppet::executeCall {
        target,
        value,
        data,
    }
    .abi_encode()
    .into()
}

fn ledger_only(
    contract: Address,
    function: LedgerOnly,
    user: Address,
    provider: Address,
) -> ContractCall {
    let (name, data) = match function {
        LedgerOnly::AddAccount => (
            "addAccount",
            I::addAccountCall {
                user,
                provider,
                additionalInfo: String::new(),
            }
            .abi_encode(),
        ),
        LedgerOnly::DepositFund => (
            "depositFund",
            I::depositFundCall {
                user,
                provider,
                cancelRetrievingAmount: U256::ZERO,
            }
            .abi_encode(),
        ),
        LedgerOnly::RequestRefundAll => (
            "requestRefundAll",
            I::requestRefundAllCall { user, provider }.abi_encode(),
        ),
        LedgerOnly::ProcessRefund => (
            "processRefund",
            I::processRefundCall { user, provider }.abi_encode(),
        ),
        LedgerOnly::DeleteAccount => (
            "deleteAccount",
            I::deleteAccountCall { user, provider }.abi_encode(),
        ),
    };
    ContractCall {
        name,
        to: Some(contract),
        value: U256::ZERO,
        data: data.into(),
    }
}
