//! What a contract says when it refuses, and what to do about it.

use std::fmt;

use alloy_primitives::{Bytes, hex};
use alloy_sol_types::{Panic, Revert, SolError};

use crate::{
    ChainError,
    bindings::{
        FineTuningServing as ft, Flow as flow, InferenceServing as inf, LedgerManager as ledger,
    },
};

/// A decoded refusal of a contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContractError {
    /// Which error it is.
    pub kind: ContractErrorKind,
    /// Name and arguments, e.g. `LedgerNotExists { user: 0x… }`; the text of a plain revert; or the
    /// raw data of an unknown error.
    pub details: String,
    /// Raw revert data.
    pub data: Bytes,
}

macro_rules! contract_errors {
    ($($kind:ident: $($abi:ident)+, $remedy:expr;)+) => {
        /// Every error of the contracts, by name. One that two contracts declare with different
        /// arguments is one kind.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ContractErrorKind {
            $(#[doc = concat!("`", stringify!($kind), "`")] $kind,)+
            /// `revert("text")` or `require(…, "text")`.
            Text,
            /// A failed assertion or arithmetic error.
            Panic,
            /// Refused without data: an unknown function, or not enough gas.
            Empty,
            /// An error that none of the known contracts declares.
            Unknown,
        }

        impl ContractErrorKind {
            /// Name as declared in the contract.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => stringify!($kind),)+
                    Self::Text => "Error",
                    Self::Panic => "Panic",
                    Self::Empty => "Empty",
                    Self::Unknown => "Unknown",
                }
            }

            /// What a person can do, naming the command where there is one.
            #[must_use]
            pub fn remedy(self) -> Option<&'static str> {
                let remedy: &'static str = match self {
                    $(Self::$kind => $remedy,)+
                    Self::Empty => "the contract does not know this call, or the gas ran out; check the network setting",
                    Self::Text | Self::Panic | Self::Unknown => "",
                };
                (!remedy.is_empty()).then_some(remedy)
            }
        }

        fn decode_custom(data: &[u8]) -> Option<(ContractErrorKind, String)> {
            $($(
                if let Ok(error) = $abi::$kind::abi_decode(data) {
                    return Some((ContractErrorKind::$kind, format!("{error:?}")));
                }
            )+)+
            None
        }

        /// Selectors of all declared errors, for tests against the ABIs.
        #[cfg(test)]
        fn all_selectors() -> Vec<[u8; 4]> {
            vec![$($($abi::$kind::SELECTOR,)+)+]
        }
    };
}

contract_errors! {
    // Ledger.
    LedgerNotExists: ledger, "create a ledger first: 0g-compute-cli add-account --amount 3 (or deposit)";
    LedgerExists: ledger, "the ledger exists already; add funds with 0g-compute-cli deposit";
    InsufficientBalance: ledger, "the available balance is smaller than this; see 0g-compute-cli get-account, and retrieve-fund for money in sub-accounts";
    InsufficientAvailableBalance: ledger, "deposit more (0g-compute-cli deposit) or move less";
    TooManyProviders: ledger, "name fewer providers in one call";
    InvalidServiceType: ledger, "";
    TooManyProvidersForService: ledger, "this ledger already has sub-accounts with 50 providers of this service";
    ServiceNotRegistered: ledger, "";
    ServiceNameExists: ledger, "choose another version name";
    InvalidServiceAddress: ledger, "";
    LedgerLocked: ledger, "another operation on this ledger is running; try again";
    CallerNotRegisteredService: ledger, "";
    ServiceNotFound: ledger, "the ledger knows no service of this name; check the network setting";
    MinimumDepositRequired: ledger, "a new ledger needs 3 0G, a new sub-account 1 0G, and a refund must leave 3 0G or nothing";
    ZeroAmountNotAllowed: ledger, "the amount must be larger than 0";
    ZeroAddressNotAllowed: ledger, "the address must not be zero";
    CallFailed: ledger, "the service contract refused without a reason, or the gas ran out";
    MustWithdrawAllFundsFirst: ledger, "get the money out first: 0g-compute-cli retrieve-fund, wait for the lock time, then refund";
    ServiceTypeRequired: ledger, "";
    VersionRequired: ledger, "";
    ServiceAlreadyRegistered: ledger, "";
    ServiceMustImplementIServing: ledger, "";
    ServiceRegistryLimitReached: ledger, "";
    NoRecommendedService: ledger, "";
    // Sub-accounts and services.
    AccountExists: ft, "";
    AccountNotExists: ft, "there is no sub-account with this provider; create it with 0g-compute-cli transfer-fund --provider <address> --amount 1";
    AdditionalInfoTooLong: ledger ft, "the text may have 4096 bytes";
    AlreadyInitialized: ledger, "";
    AmountTooLarge: ft, "";
    BatchSizeTooLarge: ft, "ask for fewer users at once";
    CallerNotLedger: ft inf, "only the ledger contract may call this";
    CannotAddStakeWhenUpdating: ft, "an update of a service must not carry a stake";
    CannotRevokeWithNonZeroBalance: ft, "the acknowledgement can be withdrawn when the sub-account is empty: 0g-compute-cli retrieve-fund, wait for the lock time, and again";
    DirectDepositsDisabled: ledger, "contracts take money through depositFund only";
    FieldTooLong: ft, "shorten the named field";
    InsufficientStake: ft, "a first registration needs a stake of 100 0G; put it into the provider account";
    InvalidAddress: ft, "the address must not be zero";
    ProviderCannotBeUser: ft, "an account cannot be its own provider; use another wallet";
    ServiceNotExist: ft, "this provider has no service; see 0g-compute-cli fine-tuning list-providers or inference list-providers";
    TooManyRefunds: ft, "five refunds are pending already; wait until the oldest is unlocked and collect it with 0g-compute-cli retrieve-fund";
    TransferFailed: ledger, "the recipient refused the payment";
    LimitTooLarge: ft inf, "ask for at most 50 entries at once";
    LockTimeOutOfRange: ft inf, "the lock time must be between 1 hour and 7 days";
    // Inference.
    InvalidTEESignature: inf, "";
    NoSettlementsProvided: inf, "";
    TooManySettlements: inf, "settle at most 50 items at once";
    // Fine-tuning.
    AckWindowOpen: ft, "the user can still acknowledge; the penalty can be collected from the named time on";
    AckWindowOutOfRange: ft, "";
    CannotAbandonSettledDeliverable: ft, "the deliverable is settled already";
    CannotAcknowledgeSettledDeliverable: ft, "the deliverable is settled already; see 0g-compute-cli fine-tuning get-task";
    CannotEvictUnsettledDeliverable: ft, "20 deliverables are on record and the oldest is not settled; the provider must settle or abandon it";
    DeliverableAlreadyExists: ft, "";
    DeliverableAlreadySettled: ft, "";
    DeliverableIdInvalidLength: ft, "";
    DeliverableNotExists: ft, "there is no deliverable for this task yet; see 0g-compute-cli fine-tuning get-task";
    ETHTransferFailed: ft, "the recipient refused the payment";
    InvalidLedgerAddress: ft, "";
    InvalidVerifierInput: ft, "";
    PenaltyPercentageTooHigh: ft, "";
    PreviousDeliverableNotAcknowledged: ft, "the user must acknowledge the previous task (0g-compute-cli fine-tuning acknowledge-model), or the provider abandon it";
    SecretShouldBeEmpty: ft, "";
    SecretShouldNotBeEmpty: ft, "";
    TransferToLedgerFailed: ft, "";
    // Storage.
    NotEnoughFee: flow, "the storage price changed; try again";
    FeeTransferFailed: flow, "";
}

impl ContractError {
    /// Decodes revert data. Anything decodes: an unknown error keeps its selector.
    #[must_use]
    pub fn decode(data: Bytes) -> Self {
        let (kind, details) = if data.is_empty() {
            (ContractErrorKind::Empty, "no reason given".to_owned())
        } else if let Some(found) = decode_custom(&data) {
            found
        } else if let Ok(revert) = Revert::abi_decode(&data) {
            (ContractErrorKind::Text, revert.reason().to_owned())
        } else if let Ok(panic) = Panic::abi_decode(&data) {
            (ContractErrorKind::Panic, panic.to_string())
        } else {
            let selector = &data[..data.len().min(4)];
            (
                ContractErrorKind::Unknown,
                format!("unknown error 0x{}", hex::encode(selector)),
            )
        };
        Self {
            kind,
            details,
            data,
        }
    }

    /// What a person can do, naming the command where there is one.
    #[must_use]
    pub fn remedy(&self) -> Option<&'static str> {
        match (self.kind, self.details.as_str()) {
            (ContractErrorKind::Text, text) if text.contains("caller is not the owner") => {
                Some("only the owner of the contract may do this")
            }
            (ContractErrorKind::InvalidVerifierInput, text)
                if text.contains("not acknowledged") =>
            {
                Some(
                    "the contract owner or the user has not acknowledged the provider's TEE signer",
                )
            }
            (ContractErrorKind::InvalidVerifierInput, text)
                if text.contains("insufficient balance") =>
            {
                Some("the user's sub-account does not cover the fee: 0g-compute-cli transfer-fund")
            }
            _ => self.kind.remedy(),
        }
    }
}

impl fmt::Display for ContractError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "the contract refused: {}", self.details)?;
        match self.remedy() {
            Some(remedy) => write!(formatter, " ({remedy})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ContractError {}

/// Turns "there is no such record" into `None`.
pub(crate) trait OrMissing<T> {
    fn or_missing(self, kinds: &[ContractErrorKind]) -> Result<Option<T>, ChainError>;
}

impl<T> OrMissing<T> for Result<T, ChainError> {
    fn or_missing(self, kinds: &[ContractErrorKind]) -> Result<Option<T>, ChainError> {
        match self {
            Ok(value) => Ok(Some(value)),
            Err(ChainError::Reverted(error)) if kinds.contains(&error.kind) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloy_primitives::{U256, address};

    use super::*;

    #[test]
    fn every_declared_error_is_decoded() {
        let declared = [
            ledger::LedgerManagerErrors::SELECTORS,
            ft::FineTuningServingErrors::SELECTORS,
            inf::InferenceServingErrors::SELECTORS,
            flow::FlowErrors::SELECTORS,
            crate::bindings::FixedPriceMarket::FixedPriceMarketErrors::SELECTORS,
        ];
        let known = all_selectors();
        for selector in declared.into_iter().flatten() {
            assert!(
                known.contains(selector),
                "0x{} is declared and not decoded",
                hex::encode(selector)
            );
        }
    }

    #[test]
    fn published_revert_data_is_decoded() {
        let data = hex!("7d2d536b000000000000000000000000f39fd6e51aad88f6f4ce6ab8827279cfffb92266");
        let error = ContractError::decode(Bytes::copy_from_slice(&data));
        assert_eq!(error.kind, ContractErrorKind::LedgerNotExists);
        assert!(error.to_string().contains("add-account"), "{error}");

        let error = ContractError::decode(
            ledger::MinimumDepositRequired {
                provided: U256::ZERO,
                required: U256::from(10).pow(U256::from(18)),
            }
            .abi_encode()
            .into(),
        );
        assert_eq!(error.kind, ContractErrorKind::MinimumDepositRequired);
        assert!(error.details.contains("1000000000000000000"), "{error}");
    }

    #[test]
    fn texts_panics_and_unknown_errors_are_told_apart() {
        let owner = Revert::from("Ownable: caller is not the owner".to_owned()).abi_encode();
        let error = ContractError::decode(owner.into());
        assert_eq!(
            (error.kind, error.details.as_str()),
            (ContractErrorKind::Text, "Ownable: caller is not the owner")
        );
        assert!(error.remedy().is_some());
        assert_eq!(
            ContractError::decode(Panic::from(0x11).abi_encode().into()).kind,
            ContractErrorKind::Panic
        );
        let unknown = ContractError::decode(Bytes::from_static(&hex!("deadbeef00")));
        assert_eq!(
            unknown.to_string(),
            "the contract refused: unknown error 0xdeadbeef"
        );
        assert_eq!(
            ContractError::decode(Bytes::new()).kind,
            ContractErrorKind::Empty
        );
    }

    #[test]
    fn one_name_with_two_forms_is_one_kind() {
        let inference = inf::CallerNotLedger {
            caller: address!("f39Fd6e51aad88F6F4ce6aB8827279cffFb92266"),
        };
        assert_eq!(
            ContractError::decode(inference.abi_encode().into()).kind,
            ContractErrorKind::CallerNotLedger
        );
        let fine_tuning = ft::CallerNotLedger {};
        assert_eq!(
            ContractError::decode(fine_tuning.abi_encode().into()).kind,
            ContractErrorKind::CallerNotLedger
        );
    }
}
