//! The provider's offers on chain: registered at the start, updated only where something differs.

use alloy_primitives::{Address, U256};
use serde_json::json;
use zerog_chain::{ChainClient, ChainError, calls, fine_tuning, inference};

use crate::catalogue::Catalogue;
use crate::config::{FineTuningConfig, InferenceConfig};
use crate::outbox::{Outbox, OutboxError};

/// What the fine-tuning role offers.
#[must_use]
pub(crate) fn fine_tuning_offer(
    config: &FineTuningConfig,
    catalogue: &Catalogue,
    url: &str,
    signer: Address,
) -> fine_tuning::ServiceParams {
    fine_tuning::ServiceParams {
        url: url.to_owned(),
        quota: config.quota.clone(),
        price_per_token: config.price_per_token,
        occupied: false,
        models: catalogue.customised_names(),
        tee_signer: signer,
    }
}

/// What the inference role offers. Nothing volatile goes into the additional information: a change of it takes the
/// contract owner's acceptance away.
#[must_use]
pub(crate) fn inference_offer(
    config: &InferenceConfig,
    url: &str,
    signer: Address,
    is_simulated: bool,
) -> inference::ServiceParams {
    let information = json!({
        "VerifierURL": "",
        "TEEVerifier": "dstack",
        "TargetSeparated": false,
        "TargetTeeAddress": "",
        "ImageName": "zerog/provider",
        "ImageDigest": "",
        "ProviderType": "decentralized",
        "LoRAEnabled": true,
        "LoRABaseModel": config.model,
        "LoRAAdapterPrefix": "ft-",
        "Simulated": is_simulated,
    });
    inference::ServiceParams {
        service_type: "chatbot".into(),
        url: url.to_owned(),
        model: config.model.clone(),
        verifiability: "TeeML".into(),
        input_price: config.input_price,
        output_price: config.output_price,
        additional_info: information.to_string(),
        tee_signer: signer,
    }
}

/// Registers or updates the fine-tuning service if the chain shows anything else; true when a transaction was sent.
///
/// # Errors
/// [`OutboxError`]; a missing stake shows as a contract error.
pub(crate) async fn register_fine_tuning(
    chain: &ChainClient,
    outbox: &Outbox,
    provider: Address,
    offer: &fine_tuning::ServiceParams,
    now_ms: u64,
) -> Result<bool, OutboxError> {
    let contract = chain.fine_tuning();
    let stake = match contract.service(provider).await? {
        Some(service) if is_same_fine_tuning(&service, offer) => return Ok(false),
        Some(_) => U256::ZERO,
        None => minimum_stake(contract.min_provider_stake().await)?,
    };
    let call = calls::fine_tuning::add_or_update_service(contract.address(), offer, stake);
    outbox.submit("service/fine_tuning", call, now_ms).await?;
    tracing::info!(service.url = offer.url, "fine-tuning service registered");
    Ok(true)
}

/// As [`register_fine_tuning`], for the inference service.
///
/// # Errors
/// As [`register_fine_tuning`].
pub(crate) async fn register_inference(
    chain: &ChainClient,
    outbox: &Outbox,
    provider: Address,
    offer: &inference::ServiceParams,
    now_ms: u64,
) -> Result<bool, OutboxError> {
    let contract = chain.inference();
    let stake = match contract.service(provider).await? {
        Some(service) if is_same_inference(&service, offer) => return Ok(false),
        Some(service) => {
            if service.additional_info != offer.additional_info || service.model != offer.model {
                tracing::warn!(
                    "this update takes the contract owner's acceptance of the inference service away"
                );
            }
            U256::ZERO
        }
        None => minimum_stake(contract.min_provider_stake().await)?,
    };
    let call = calls::inference::add_or_update_service(contract.address(), offer, stake);
    outbox.submit("service/inference", call, now_ms).await?;
    tracing::info!(service.url = offer.url, "inference service registered");
    Ok(true)
}

/// Published contracts may not tell their minimum; it is 100 0G.
fn minimum_stake(answer: Result<U256, ChainError>) -> Result<U256, ChainError> {
    match answer {
        Err(error) if error.contract_error().is_some() => Ok(
            U256::from(100u64).saturating_mul(U256::from(zerog_protocol::amount::NEURON_PER_0G))
        ),
        other => other,
    }
}

fn is_same_fine_tuning(service: &fine_tuning::Service, offer: &fine_tuning::ServiceParams) -> bool {
    service.url == offer.url
        && service.quota == offer.quota
        && service.price_per_token == offer.price_per_token
        && service.occupied == offer.occupied
        && service.models == offer.models
        && service.tee_signer == offer.tee_signer
}

fn is_same_inference(service: &inference::Service, offer: &inference::ServiceParams) -> bool {
    service.url == offer.url
        && service.service_type == offer.service_type
        && service.model == offer.model
        && service.verifiability == offer.verifiability
        && service.input_price == offer.input_price
        && service.output_price == offer.output_price
        && service.additional_info == offer.additional_info
        && service.tee_signer == offer.tee_signer
}
