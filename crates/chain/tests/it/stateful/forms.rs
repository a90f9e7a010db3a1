//! The model's state in the form of the contracts' views.

use alloy_primitives::{Address, Bytes, U256};
use alloy_sol_types::SolError;
use zerog_chain::bindings::{FineTuningServing as F, InferenceServing as I, LedgerManager as L};

use super::model::{Account, Deliverable, Life, Model, Registered, Serving};

pub(crate) fn missing(user: Address, provider: Address) -> Bytes {
    I::AccountNotExists { user, provider }.abi_encode().into()
}

pub(crate) fn ledger_view(model: &Model, user: Address) -> L::Ledger {
    let record = &model.ledger.records[&user];
    L::Ledger {
        user,
        availableBalance: record.available,
        totalBalance: record.total,
        additionalInfo: record.info.clone(),
    }
}

pub(crate) fn no_service_info() -> L::ServiceInfo {
    L::ServiceInfo {
        serviceAddress: Address::ZERO,
        serviceContract: Address::ZERO,
        serviceType: String::new(),
        version: String::new(),
        fullName: String::new(),
        description: String::new(),
        isRecommended: false,
        registeredAt: U256::ZERO,
    }
}

/// All zero for a sub-account that does not exist.
pub(crate) fn summary(
    serving: &Serving,
    (user, provider): (Address, Address),
) -> F::AccountSummary {
    let Account { nonce, life, .. } = serving.account(user, provider);
    let exists = life.is_some();
    let life = life.unwrap_or_default();
    F::AccountSummary {
        user: if exists { user } else { Address::ZERO },
        provider: if exists { provider } else { Address::ZERO },
        nonce: if exists { nonce } else { U256::ZERO },
        balance: life.balance,
        pendingRefund: life.pending,
        additionalInfo: life.info,
        validRefundsLength: U256::from(life.refunds.len()),
        deliverablesCount: U256::from(life.deliverables.list.len()),
        acknowledged: life.acknowledged,
    }
}

/// All zero for a sub-account that does not exist.
pub(crate) fn inference_account(
    serving: &Serving,
    (user, provider): (Address, Address),
) -> I::Account {
    let Account {
        nonce,
        generation,
        life,
    } = serving.account(user, provider);
    let exists = life.is_some();
    let life = life.unwrap_or_default();
    I::Account {
        user: if exists { user } else { Address::ZERO },
        provider: if exists { provider } else { Address::ZERO },
        nonce: if exists { nonce } else { U256::ZERO },
        balance: life.balance,
        pendingRefund: life.pending,
        refunds: refunds(&life).map(Into::into).collect(),
        additionalInfo: life.info,
        acknowledged: life.acknowledged,
        validRefundsLength: U256::from(life.refunds.len()),
        generation: if exists {
            U256::from(generation)
        } else {
            U256::ZERO
        },
        revokedBitmap: life.revoked,
    }
}

/// Index, amount, request time and the flag that is never set, as in the tuple of both contracts.
fn refunds(life: &Life) -> impl Iterator<Item = (U256, U256, U256, bool)> {
    let refund = |(index, (amount, requested)): (usize, &(U256, u64))| {
        (U256::from(index), *amount, U256::from(*requested), false)
    };
    life.refunds.iter().enumerate().map(refund)
}

/// A fine-tuning sub-account with all that belongs to it.
pub(crate) fn details(
    serving: &Serving,
    (user, provider): (Address, Address),
    life: &Life,
) -> F::AccountDetails {
    F::AccountDetails {
        user,
        provider,
        nonce: serving.account(user, provider).nonce,
        balance: life.balance,
        pendingRefund: life.pending,
        refunds: refunds(life).map(Into::into).collect(),
        additionalInfo: life.info.clone(),
        deliverables: deliverables(life),
        validRefundsLength: U256::from(life.refunds.len()),
        deliverablesHead: U256::from(life.deliverables.evictions % 20),
        deliverablesCount: U256::from(life.deliverables.list.len()),
        acknowledged: life.acknowledged,
    }
}

pub(crate) fn deliverables(life: &Life) -> Vec<F::Deliverable> {
    life.deliverables
        .list
        .iter()
        .map(deliverable_view)
        .collect()
}

pub(crate) fn deliverable_view(deliverable: &Deliverable) -> F::Deliverable {
    F::Deliverable {
        id: deliverable.id.clone(),
        modelRootHash: deliverable.root.clone(),
        encryptedSecret: deliverable.secret.clone(),
        acknowledged: deliverable.acknowledged,
        timestamp: alloy_primitives::Uint::from(deliverable.delivered_at),
        settled: deliverable.settled,
    }
}

pub(crate) fn fine_tuning_service(serving: &Serving, provider: Address) -> F::Service {
    let registration = &serving.registrations[&provider];
    let params = registration.offer.fine_tuning();
    F::Service {
        provider,
        url: params.url,
        quota: params.quota.into(),
        pricePerToken: params.price_per_token,
        occupied: params.occupied,
        models: params.models,
        teeSignerAddress: params.tee_signer,
        teeSignerAcknowledged: registration.acknowledged,
    }
}

pub(crate) fn inference_service(serving: &Serving, provider: Address) -> I::Service {
    let registration = &serving.registrations[&provider];
    let params = registration.offer.inference();
    I::Service {
        provider,
        serviceType: params.service_type,
        url: params.url,
        inputPrice: params.input_price,
        outputPrice: params.output_price,
        updatedAt: U256::from(registration.updated_at),
        model: params.model,
        verifiability: params.verifiability,
        additionalInfo: params.additional_info,
        teeSignerAddress: params.tee_signer,
        teeSignerAcknowledged: registration.acknowledged,
    }
}

pub(crate) fn service_info(model: &Model, entry: &Registered) -> L::ServiceInfo {
    L::ServiceInfo {
        serviceAddress: entry.address,
        serviceContract: entry.address,
        serviceType: entry.kind.clone(),
        version: entry.version.clone(),
        fullName: entry.full_name(),
        description: entry.description.clone(),
        isRecommended: model.ledger.recommended.get(&entry.kind) == Some(&entry.address),
        registeredAt: U256::from(entry.at),
    }
}
