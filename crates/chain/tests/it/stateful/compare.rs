//! The chain's state, read through every view, against the model's.

use alloy_primitives::{Address, Bytes, U256};
use alloy_sol_types::SolError;
use zerog_chain::bindings::{FineTuningServing as F, InferenceServing as I, LedgerManager as L};

use super::{
    acts::Service,
    claims::{Item, signed},
    forms,
    machine::Machine,
    model::{Model, judge_batch},
    observe::Observed,
    random::Random,
};

/// Compares two values and says where they differ.
macro_rules! same {
    ($found:expr, $expected:expr, $($place:tt)+) => {{
        let (found, expected) = ($found, $expected);
        if found != expected {
            return Err(format!(
                "{}:\n   the chain: {found:?}\n   the model: {expected:?}",
                format_args!($($place)+)
            ));
        }
    }};
}
pub(crate) use same;

type Check = Result<(), String>;

/// What changes with almost every step: coins, ledgers, sub-accounts, services, all in their order.
pub(crate) fn compare_state(found: &Observed, model: &Model) -> Check {
    for (address, coins) in &model.coins {
        same!(found.coins.get(address), Some(coins), "coins of {address}");
    }
    let expected: Vec<L::Ledger> = model
        .ledger
        .users
        .iter()
        .map(|user| forms::ledger_view(model, *user))
        .collect();
    same!(&found.ledgers, &expected, "ledgers");

    let serving = model.serving(Service::FineTuning);
    let expected: Vec<F::AccountSummary> = serving
        .pairs
        .iter()
        .map(|pair| forms::summary(serving, *pair))
        .collect();
    same!(&found.fine_tuning, &expected, "fine-tuning sub-accounts");
    let expected: Vec<F::Service> = serving
        .providers
        .iter()
        .map(|provider| forms::fine_tuning_service(serving, *provider))
        .collect();
    same!(
        &found.fine_tuning_services,
        &expected,
        "fine-tuning services"
    );

    for (service, found) in [Service::Inference, Service::SecondInference]
        .into_iter()
        .zip(&found.inference)
    {
        let serving = model.serving(service);
        let expected: Vec<I::Account> = serving
            .pairs
            .iter()
            .map(|pair| forms::inference_account(serving, *pair))
            .collect();
        same!(&found.accounts, &expected, "sub-accounts of {service:?}");
        let expected: Vec<I::Service> = serving
            .providers
            .iter()
            .map(|provider| forms::inference_service(serving, *provider))
            .collect();
        same!(&found.services, &expected, "services of {service:?}");
    }
    Ok(())
}

/// One pair in both forms of the fine-tuning contract, deliverables included.
pub(crate) fn compare_pair(
    machine: &Machine,
    model: &Model,
    user: Address,
    provider: Address,
) -> Check {
    let serving = model.serving(Service::FineTuning);
    let found = machine.view(serving.address, &F::getAccountCall { user, provider });
    let Some(life) = serving.life(user, provider) else {
        let missing = F::AccountNotExists { user, provider }.abi_encode();
        same!(found, Err(missing.into()), "getAccount({user}, {provider})");
        return Ok(());
    };
    let expected = forms::details(serving, (user, provider), life);
    same!(found, Ok(expected), "getAccount({user}, {provider})");
    Ok(())
}

/// Every view of every contract, for all pairs of `actors`, with pages chosen at random.
pub(crate) fn compare_views(
    machine: &Machine,
    model: &Model,
    actors: &[Address],
    random: &mut Random,
) -> Check {
    compare_ledger_views(machine, model, actors, random)?;
    for service in Service::ALL {
        compare_settings(machine, model, service)?;
        for user in actors {
            for provider in actors {
                compare_common(machine, model, service, (*user, *provider))?;
                if service.is_fine_tuning() {
                    compare_pair(machine, model, *user, *provider)?;
                    compare_deliverables(machine, model, *user, *provider)?;
                } else {
                    compare_tokens(machine, model, service, (*user, *provider), random)?;
                }
            }
            compare_pages(machine, model, service, *user, actors, random)?;
        }
    }
    Ok(())
}

fn compare_ledger_views(
    machine: &Machine,
    model: &Model,
    actors: &[Address],
    random: &mut Random,
) -> Check {
    let contract = machine.addresses.ledger;
    let ledger = &model.ledger;
    same!(
        machine.view(contract, &L::ownerCall {}),
        Ok(ledger.owner),
        "ledger owner"
    );
    same!(
        machine.view(contract, &L::initializedCall {}),
        Ok(true),
        "ledger initialized"
    );
    let (offset, limit) = (random.below(6), random.below(60));
    let page = L::getAllLedgersCall {
        offset: U256::from(offset),
        limit: U256::from(limit),
    };
    let found = machine
        .view(contract, &page)
        .map_err(|data| format!("getAllLedgers reverts with {data}"))?;
    // Above 50 the ledger gives 50 without a word; there are never that many here.
    let size = if limit == 0 { 50 } else { limit.min(50) };
    let expected: Vec<L::Ledger> = ledger
        .users
        .iter()
        .skip(offset as usize)
        .take(size as usize)
        .map(|user| forms::ledger_view(model, *user))
        .collect();
    same!(found.ledgers, expected, "page {offset}, {limit} of ledgers");
    for &user in actors {
        let found = machine.view(contract, &L::getLedgerCall { user });
        let expected = match ledger.records.get(&user) {
            Some(_) => Ok(forms::ledger_view(model, user)),
            None => Err(L::LedgerNotExists { user }.abi_encode().into()),
        };
        same!(found, expected, "getLedger({user})");
        for entry in &ledger.registry {
            let expected = ledger.providers_of(user, entry.service).to_vec();
            let call = L::getLedgerProvidersCall {
                user,
                serviceName: entry.full_name(),
            };
            same!(
                machine.view(contract, &call),
                Ok(expected.clone()),
                "providers of {user}"
            );
            let call = L::getProvidersOfCall {
                user,
                service: entry.address,
            };
            same!(
                machine.view(contract, &call),
                Ok(expected),
                "providers of {user}"
            );
        }
    }
    compare_registry(machine, model)
}

fn compare_registry(machine: &Machine, model: &Model) -> Check {
    let contract = machine.addresses.ledger;
    let ledger = &model.ledger;
    let info = |entry| forms::service_info(model, entry);
    let all: Vec<L::ServiceInfo> = ledger.registry.iter().map(info).collect();
    same!(
        machine.view(contract, &L::getAllActiveServicesCall {}),
        Ok(all.clone()),
        "registry"
    );
    for service in Service::ALL {
        let address = service.address(machine);
        let expected = all
            .iter()
            .find(|entry| entry.serviceAddress == address)
            .cloned()
            .unwrap_or_else(forms::no_service_info);
        let call = L::getServiceInfoCall {
            serviceAddress: address,
        };
        same!(
            machine.view(contract, &call),
            Ok(expected),
            "getServiceInfo"
        );
    }
    for name in [
        "inference-v1.0",
        "inference-v2.0",
        "fine-tuning-v1.0",
        "nobody",
    ] {
        let expected = ledger
            .named(name)
            .map_or(Address::ZERO, |entry| entry.address);
        let call = L::getServiceAddressByNameCall {
            serviceName: name.to_owned(),
        };
        same!(
            machine.view(contract, &call),
            Ok(expected),
            "address of {name}"
        );
    }
    for kind in ["inference", "fine-tuning", "nothing"] {
        let of_kind: Vec<&L::ServiceInfo> = all
            .iter()
            .filter(|entry| entry.serviceType == kind)
            .collect();
        let found = machine.view(
            contract,
            &L::getAllVersionsCall {
                serviceType: kind.to_owned(),
            },
        );
        let expected = L::getAllVersionsReturn {
            versions: of_kind.iter().map(|entry| entry.version.clone()).collect(),
            addresses: of_kind.iter().map(|entry| entry.serviceAddress).collect(),
            isRecommendedFlags: of_kind.iter().map(|entry| entry.isRecommended).collect(),
        };
        same!(found, Ok(expected), "versions of {kind}");
        let found = machine.view(
            contract,
            &L::getRecommendedServiceCall {
                serviceType: kind.to_owned(),
            },
        );
        let expected = of_kind
            .iter()
            .find(|entry| entry.isRecommended)
            .map_or_else(
                || {
                    let error = L::NoRecommendedService {
                        serviceType: kind.to_owned(),
                    };
                    Err(Bytes::from(error.abi_encode()))
                },
                |entry| {
                    Ok(L::getRecommendedServiceReturn {
                        version: entry.version.clone(),
                        serviceAddress: entry.serviceAddress,
                    })
                },
            );
        same!(found, expected, "recommended {kind}");
        for version in ["v1.0", "v2.0"] {
            let expected = of_kind
                .iter()
                .any(|entry| entry.version == version && entry.isRecommended);
            let call = L::isRecommendedVersionCall {
                serviceType: kind.to_owned(),
                version: version.to_owned(),
            };
            same!(
                machine.view(contract, &call),
                Ok(expected),
                "{kind} {version}"
            );
        }
    }
    Ok(())
}

fn compare_settings(machine: &Machine, model: &Model, service: Service) -> Check {
    let serving = model.serving(service);
    let contract = serving.address;
    same!(
        machine.view(contract, &I::lockTimeCall {}),
        Ok(U256::from(serving.lock_time)),
        "lock time"
    );
    same!(
        machine.view(contract, &I::ownerCall {}),
        Ok(serving.owner),
        "owner"
    );
    same!(
        machine.view(contract, &I::initializedCall {}),
        Ok(true),
        "initialized"
    );
    same!(
        machine.view(contract, &I::ledgerAddressCall {}),
        Ok(machine.addresses.ledger),
        "ledger address"
    );
    if service.is_fine_tuning() {
        same!(
            machine.view(contract, &F::penaltyPercentageCall {}),
            Ok(U256::from(serving.penalty)),
            "penalty"
        );
        same!(
            machine.view(contract, &F::ackWindowCall {}),
            Ok(U256::from(serving.ack_window)),
            "window"
        );
    }
    Ok(())
}

/// Views that both service contracts have in the same form.
fn compare_common(
    machine: &Machine,
    model: &Model,
    service: Service,
    (user, provider): (Address, Address),
) -> Check {
    let serving = model.serving(service);
    let contract = serving.address;
    let life = serving.life(user, provider);
    let call = I::accountExistsCall { user, provider };
    same!(
        machine.view(contract, &call),
        Ok(life.is_some()),
        "accountExists"
    );
    let call = I::getPendingRefundCall { user, provider };
    let expected = life.map_or_else(
        || Err(forms::missing(user, provider)),
        |life| Ok(life.pending),
    );
    same!(machine.view(contract, &call), expected, "getPendingRefund");
    let stake = serving.stakes.get(&provider).copied().unwrap_or_default();
    same!(
        machine.view(contract, &I::stakeOfCall { provider }),
        Ok(stake),
        "stake of {provider}"
    );
    let unknown: Bytes = I::ServiceNotExist { provider }.abi_encode().into();
    let is_registered = serving.registrations.contains_key(&provider);
    if service.is_fine_tuning() {
        let expected = is_registered
            .then(|| forms::fine_tuning_service(serving, provider))
            .ok_or(unknown);
        let found = machine.view(contract, &F::getServiceCall { provider });
        same!(found, expected, "getService");
    } else {
        let expected = is_registered
            .then(|| forms::inference_service(serving, provider))
            .ok_or(unknown);
        let found = machine.view(contract, &I::getServiceCall { provider });
        same!(found, expected, "getService");
        let found = machine.view(contract, &I::serviceExistsCall { provider });
        same!(found, Ok(is_registered), "serviceExists");
    }
    Ok(())
}

fn compare_deliverables(
    machine: &Machine,
    model: &Model,
    user: Address,
    provider: Address,
) -> Check {
    let serving = model.serving(Service::FineTuning);
    let contract = serving.address;
    let life = serving.life(user, provider);
    let found = machine.view(contract, &F::getDeliverablesCall { user, provider });
    let expected = life.map_or_else(
        || Err(forms::missing(user, provider)),
        |life| Ok(forms::deliverables(life)),
    );
    same!(found, expected, "getDeliverables");
    let Some(life) = life else {
        return Ok(());
    };
    for deliverable in &life.deliverables.list {
        let id = deliverable.id.clone();
        let call = F::getDeliverableCall {
            user,
            provider,
            id: id.clone(),
        };
        let expected = forms::deliverable_view(deliverable);
        same!(
            machine.view(contract, &call),
            Ok(expected),
            "getDeliverable({id})"
        );
        let call = F::acknowledgeDeadlineCall { user, provider, id };
        let expected = U256::from(deliverable.acknowledge_until);
        same!(
            machine.view(contract, &call),
            Ok(expected),
            "acknowledgeDeadline"
        );
    }
    let id = "no such task".to_owned();
    let unknown: Bytes = F::DeliverableNotExists { id: id.clone() }
        .abi_encode()
        .into();
    let call = F::getDeliverableCall { user, provider, id };
    same!(
        machine.view(contract, &call),
        Err(unknown),
        "an unknown deliverable"
    );
    Ok(())
}

/// Session tokens and the preview of a settlement.
fn compare_tokens(
    machine: &Machine,
    model: &Model,
    service: Service,
    (user, provider): (Address, Address),
    random: &mut Random,
) -> Check {
    let serving = model.serving(service);
    let contract = serving.address;
    let id = random.below(256) as u8;
    let call = I::isTokenRevokedCall {
        user,
        provider,
        tokenId: id,
    };
    let expected = serving.life(user, provider).map_or_else(
        || Err(forms::missing(user, provider)),
        |life| Ok(life.revoked.bit(id.into())),
    );
    same!(
        machine.view(contract, &call),
        expected,
        "isTokenRevoked({id})"
    );
    let found = machine.view(contract, &I::getAccountCall { user, provider });
    let expected = serving.life(user, provider).map_or_else(
        || Err(forms::missing(user, provider)),
        |_| Ok(forms::inference_account(serving, (user, provider))),
    );
    same!(found, expected, "getAccount({user}, {provider})");
    Ok(())
}

/// What the preview says about a batch, compared with the judgement of each item on its own.
pub(crate) fn compare_preview(
    machine: &Machine,
    model: &Model,
    service: Service,
    caller: Address,
    items: &[Item],
) -> Check {
    let contract = model.serving(service).address;
    let call = I::previewSettlementResultsCall {
        settlements: signed(items, contract, machine)
            .into_iter()
            .map(Into::into)
            .collect(),
    };
    let found = machine.view_as(caller, contract, &call);
    let expected = judge_batch(model, caller, service, items).map(|judged| {
        let (failed, partial): (Vec<_>, Vec<_>) = judged
            .into_iter()
            .filter(|(_, status, _)| *status != 0)
            .partition(|(_, status, _)| *status != 1);
        I::previewSettlementResultsReturn {
            failedUsers: failed.iter().map(|(user, ..)| *user).collect(),
            failureReasons: failed.iter().map(|(_, status, _)| *status).collect(),
            partialUsers: partial.iter().map(|(user, ..)| *user).collect(),
            partialAmounts: partial.iter().map(|(.., unsettled)| *unsettled).collect(),
        }
    });
    same!(found, expected, "previewSettlementResults of {service:?}");
    Ok(())
}

/// Pages of accounts by user and provider, the whole batch for a provider, and the refusal of large pages.
fn compare_pages(
    machine: &Machine,
    model: &Model,
    service: Service,
    actor: Address,
    actors: &[Address],
    random: &mut Random,
) -> Check {
    let serving = model.serving(service);
    let contract = serving.address;
    let (offset, limit) = (random.below(8), random.below(53));
    let of_provider = serving.pairs_of.get(&actor).cloned().unwrap_or_default();
    let of_user: Vec<_> = model
        .ledger
        .providers_of(actor, service)
        .iter()
        .map(|provider| (actor, *provider))
        .collect();
    let page = |pairs: &[(Address, Address)]| -> Vec<(Address, Address)> {
        let size = if limit == 0 { 50 } else { limit as usize };
        pairs
            .iter()
            .skip(offset as usize)
            .take(size)
            .copied()
            .collect()
    };
    let (from, size) = (U256::from(offset), U256::from(limit));
    let users = actors.to_vec();
    let batch: Vec<_> = actors.iter().map(|user| (*user, actor)).collect();
    if service.is_fine_tuning() {
        let summaries = |pairs: Vec<(Address, Address)>| -> Vec<F::AccountSummary> {
            pairs
                .into_iter()
                .map(|pair| forms::summary(serving, pair))
                .collect()
        };
        let expected = |pairs: &[(Address, Address)]| {
            if limit > 50 {
                return Err(Bytes::from(F::LimitTooLarge { limit: size }.abi_encode()));
            }
            Ok((summaries(page(pairs)), U256::from(pairs.len())))
        };
        let call = F::getAccountsByProviderCall {
            provider: actor,
            offset: from,
            limit: size,
        };
        let found = machine
            .view(contract, &call)
            .map(|found| (found.accounts, found.total));
        same!(
            found,
            expected(&of_provider),
            "accounts by provider {actor}"
        );
        let call = F::getAccountsByUserCall {
            user: actor,
            offset: from,
            limit: size,
        };
        let found = machine
            .view(contract, &call)
            .map(|found| (found.accounts, found.total));
        same!(found, expected(&of_user), "accounts by user {actor}");
        let call = F::getBatchAccountsByUsersCall { users };
        let found = machine.view_as(actor, contract, &call);
        same!(found, Ok(summaries(batch)), "batch of {actor}");
    } else {
        let accounts = |pairs: Vec<(Address, Address)>| -> Vec<I::Account> {
            pairs
                .into_iter()
                .map(|pair| forms::inference_account(serving, pair))
                .collect()
        };
        let expected = |pairs: &[(Address, Address)]| {
            if limit > 50 {
                let error = I::LimitTooLarge {
                    limit: size,
                    max: U256::from(50),
                };
                return Err(Bytes::from(error.abi_encode()));
            }
            Ok((accounts(page(pairs)), U256::from(pairs.len())))
        };
        let call = I::getAccountsByProviderCall {
            provider: actor,
            offset: from,
            limit: size,
        };
        let found = machine
            .view(contract, &call)
            .map(|found| (found.accounts, found.total));
        same!(
            found,
            expected(&of_provider),
            "accounts by provider {actor}"
        );
        let call = I::getAccountsByUserCall {
            user: actor,
            offset: from,
            limit: size,
        };
        let found = machine
            .view(contract, &call)
            .map(|found| (found.accounts, found.total));
        same!(found, expected(&of_user), "accounts by user {actor}");
        let call = I::getBatchAccountsByUsersCall { users };
        let found = machine.view_as(actor, contract, &call);
        same!(found, Ok(accounts(batch)), "batch of {actor}");
    }
    Ok(())
}
