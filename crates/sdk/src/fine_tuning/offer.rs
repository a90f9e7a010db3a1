//! The quote before paying: exact count, exact fee, queue and findings of a task that does not exist yet; counted here,
//! or by the enclave over an uploaded dataset and signed by it.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::time::Duration;

use alloy_primitives::{Address, B256, U256, keccak256};
use serde::{Deserialize, Serialize};
use zerog_protocol::limits::MAX_DATASET_BYTES;
use zerog_protocol::quote::{QuoteFinding, QuoteRequest, SignedQuote, TaskQuote, request_hash};
use zerog_tokenization::{Inspection, RenderOptions, Tokenizer, inspect};

use super::FineTuning;
use super::dataset::check_size_and_name;
use super::quote::{FeeQuote, TokenCalculation, fee_quote, is_ours, model_kind, parse_params};
use crate::broker::Context;
use crate::error::{Error, Result};
use crate::provider_client::{join, parse_json};

/// Longest wait for the provider to count a dataset of the largest size.
const COUNT_TIMEOUT: Duration = Duration::from_secs(300);

/// What a task will cost, when it could run, and what is to be said about its dataset.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Quote {
    /// Who would train.
    pub provider: Address,
    /// Base model.
    pub model: String,
    /// Dataset at the provider; none when it was counted here and not sent.
    pub dataset_hash: Option<String>,
    /// Count and fee; none when a finding is an error.
    pub fee: Option<FeeQuote>,
    /// Tasks that wait or train at the provider.
    pub queue_position: u64,
    /// Seconds until training could begin; none when nobody knows.
    pub estimated_start_s: Option<u64>,
    /// Seconds of training; none when nobody knows.
    pub estimated_duration_s: Option<u64>,
    /// What is to be said about the dataset.
    pub findings: Vec<DatasetFinding>,
    /// Findings beyond those that are listed.
    pub more_findings: u64,
    /// The enclave's own words and signature; none when it was counted here.
    pub signed: Option<SignedQuote>,
    /// The enclave's signer, as the chain has it.
    pub signer: Option<Address>,
}

/// One thing to know about a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetFinding {
    /// Line in the file, from 1; none where it is about the whole file.
    pub line: Option<u64>,
    /// `error` or `warning`.
    pub severity: String,
    /// What it is and what to do about it.
    pub message: String,
}

impl FineTuning {
    /// Counts a dataset here and prices it with the provider's terms. Nothing of the dataset leaves this machine.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Dataset`] for a file that no provider takes, [`Error::TrainingParameters`],
    /// [`Error::UnknownModel`], [`Error::Tokenizer`], an unreachable chain or provider. What is wrong inside the dataset
    /// is no error but among the findings.
    pub async fn quote(
        &self,
        provider: Address,
        model: &str,
        dataset_path: &Path,
        training_params: &str,
    ) -> Result<Quote> {
        check_size_and_name(dataset_path)?;
        let service = self.get_service(provider).await?;
        let facts = self.model_facts(Some(provider), model).await?;
        let params = parse_params(Some(training_params), &facts)?;
        let queue_position = self.get_pending_task_counter(provider).await?;
        let (folder, source) = self.tokenizer_folder(Some(provider), &facts).await?;
        let (path, options, name) = (
            dataset_path.to_path_buf(),
            RenderOptions::of_run(&params, model_kind(&facts)),
            facts.name.clone(),
        );
        let inspecting = tokio::task::spawn_blocking(move || -> Result<Inspection> {
            let tokenizer = Tokenizer::from_dir(&folder).map_err(|error| Error::Tokenizer {
                model: name,
                reason: error.to_string(),
            })?;
            let file = File::open(&path).map_err(|error| Error::file("read", &path, error))?;
            Ok(inspect(&tokenizer, BufReader::new(file), options))
        });
        let inspection = inspecting.await.expect("inspecting does not panic")?;
        let calculation = match &inspection.count {
            // Another provider counts by its own rule; its number is an estimate.
            Some(_) if !is_ours(&facts) => Some(
                self.count(dataset_path, Some(provider), &facts, &params)
                    .await?,
            ),
            Some(count) => Some(TokenCalculation {
                tokens: count.tokens,
                examples: count.examples,
                supervised_tokens: Some(count.report.supervised_tokens),
                truncated_examples: count.report.truncated_examples as u64,
                max_seq_length: params.max_seq_length,
                tokenizer: source,
                is_estimate: false,
            }),
            None => None,
        };
        let fee = calculation
            .map(|calculation| fee_quote(calculation, &facts, &params, service.price_per_token))
            .transpose()?;
        Ok(Quote {
            provider,
            model: facts.name,
            dataset_hash: None,
            fee,
            queue_position,
            estimated_start_s: (queue_position == 0).then_some(0),
            estimated_duration_s: None,
            findings: inspection
                .findings
                .iter()
                .map(|finding| DatasetFinding {
                    line: finding.line.map(|line| line as u64),
                    severity: finding.severity.as_str().to_owned(),
                    message: finding.message.clone(),
                })
                .collect(),
            more_findings: inspection.more_findings as u64,
            signed: None,
            signer: None,
        })
    }

    /// Asks the enclave for a signed quote over a dataset that was uploaded to it. A task created with the quote's sum
    /// as `max_fee` never costs more.
    ///
    /// # Errors
    /// The provider's refusal, or [`Error::QuoteNotProven`] when the quote is not what was asked for or not signed by
    /// the registered enclave.
    pub async fn quote_uploaded(
        &self,
        provider: Address,
        model: &str,
        dataset_hash: &str,
        training_params: &str,
    ) -> Result<Quote> {
        let wallet = self.context.wallet()?;
        let service = self.get_service(provider).await?;
        let facts = self.model_facts(Some(provider), model).await?;
        parse_params(Some(training_params), &facts)?;
        let timestamp = Context::now_s();
        let digest = request_hash(wallet.address(), provider, dataset_hash, timestamp);
        let signature = wallet
            .sign_personal("the request for a quote", digest)
            .await?;
        let request = QuoteRequest {
            dataset_hash: dataset_hash.to_owned(),
            training_params: training_params.to_owned(),
            pre_trained_model_hash: facts.hash.to_string(),
            signature,
            timestamp,
        };
        let url = join(
            &service.url,
            &format!("/v1/user/{}/quote", wallet.address()),
        );
        let body = serde_json::to_vec(&request).expect("a request is plain data");
        let answer = self
            .context
            .http
            .post_bytes("quote task", &url, None, &body, COUNT_TIMEOUT)
            .await?;
        let signed: SignedQuote = parse_json("quote task", &answer.body)?;
        self.open_quote(provider, model, dataset_hash, training_params, &signed)
            .await
    }

    /// Checks a signed quote, for example one that was kept in a file: signed by the enclave that the chain names, for
    /// this wallet, dataset, model and parameters, and summed up correctly.
    ///
    /// # Errors
    /// [`Error::QuoteNotProven`], or a failed read.
    pub async fn open_quote(
        &self,
        provider: Address,
        model: &str,
        dataset_hash: &str,
        training_params: &str,
        signed: &SignedQuote,
    ) -> Result<Quote> {
        let user = self.context.user()?;
        let service = self.get_service(provider).await?;
        let facts = self.model_facts(Some(provider), model).await?;
        let refused = |reason: String| Error::QuoteNotProven { provider, reason };
        let quote = signed
            .open(service.tee_signer)
            .map_err(|error| refused(error.to_string()))?;
        let same_hash = |a: &str, b: &str| a.eq_ignore_ascii_case(b);
        for (what, fits) in [
            ("chain", quote.chain_id == self.context.chain.chain_id()),
            ("provider", quote.provider == provider),
            ("wallet", quote.user == user),
            ("dataset", same_hash(&quote.dataset_hash, dataset_hash)),
            (
                "model",
                quote.pre_trained_model_hash.parse() == Ok(facts.hash),
            ),
            (
                "parameter file",
                quote.training_params_hash == keccak256(training_params),
            ),
        ] {
            if !fits {
                return Err(refused(format!("it is for another {what}")));
            }
        }
        let fee = signed_fee(&quote).map_err(refused)?;
        Ok(Quote {
            provider,
            model: facts.name,
            dataset_hash: Some(quote.dataset_hash),
            fee,
            queue_position: quote.queue_position,
            estimated_start_s: quote.estimated_start_s,
            estimated_duration_s: quote.estimated_duration_s,
            findings: quote.findings.into_iter().map(Into::into).collect(),
            more_findings: quote.more_findings,
            signed: Some(signed.clone()),
            signer: Some(service.tee_signer),
        })
    }
}

impl Quote {
    /// Whether a task can be created: the dataset has no mistake.
    #[must_use]
    pub fn is_trainable(&self) -> bool {
        self.fee.is_some()
    }
}

impl From<QuoteFinding> for DatasetFinding {
    fn from(finding: QuoteFinding) -> Self {
        Self {
            line: finding.line,
            severity: finding.severity,
            message: finding.message,
        }
    }
}

/// The fee of a signed quote, summed up again.
fn signed_fee(quote: &TaskQuote) -> std::result::Result<Option<FeeQuote>, String> {
    let (Some(count), Some(fee)) = (&quote.count, &quote.fee) else {
        return Ok(None);
    };
    let amount = |name: &str, text: &str| {
        U256::from_str_radix(text, 10).map_err(|_| format!("its {name} `{text}` is no amount"))
    };
    let price_per_token = amount("price", &fee.price_per_token)?;
    let training_fee = amount("training fee", &fee.training_fee)?;
    let storage_fee = amount("storage fee", &fee.storage_fee)?;
    let total = amount("sum", &fee.total)?;
    let product = U256::from(fee.billed_tokens)
        .checked_mul(price_per_token)
        .and_then(|sum| sum.checked_mul(U256::from(fee.price_coefficient)));
    if product != Some(training_fee) || training_fee.checked_add(storage_fee) != Some(total) {
        return Err("its items do not add up to its sum".into());
    }
    Ok(Some(FeeQuote {
        calculation: TokenCalculation {
            tokens: count.tokens,
            examples: count.examples,
            supervised_tokens: Some(count.supervised_tokens),
            truncated_examples: count.truncated_examples,
            max_seq_length: count.max_seq_length,
            tokenizer: "provider".into(),
            is_estimate: false,
        },
        billed_tokens: fee.billed_tokens,
        total_steps: count.total_steps,
        price_per_token,
        price_coefficient: fee.price_coefficient,
        training_fee,
        storage_fee,
        total,
        is_estimate: false,
    }))
}

/// The hash that a dataset file has at an enclave.
///
/// # Errors
/// [`Error::File`], or [`Error::Dataset`] for a file that no provider takes.
pub fn dataset_hash(path: &Path) -> Result<B256> {
    check_size_and_name(path)?;
    let mut content = Vec::new();
    let file = File::open(path).map_err(|error| Error::file("read", path, error))?;
    std::io::Read::read_to_end(
        &mut std::io::Read::take(file, MAX_DATASET_BYTES),
        &mut content,
    )
    .map_err(|error| Error::file("read", path, error))?;
    Ok(keccak256(content))
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerog_protocol::fine_tuning_api::FeeBreakdown;
    use zerog_protocol::quote::QuoteCount;

    fn quote() -> TaskQuote {
        TaskQuote {
            version: 1,
            chain_id: 31337,
            provider: Address::ZERO,
            user: Address::ZERO,
            dataset_hash: "0x".into(),
            pre_trained_model_hash: "0x".into(),
            training_params_hash: B256::ZERO,
            count: Some(QuoteCount {
                tokens: 10,
                examples: 2,
                supervised_tokens: 5,
                truncated_examples: 0,
                skipped_examples: 0,
                max_seq_length: 64,
                total_steps: 2,
            }),
            fee: Some(FeeBreakdown {
                billed_tokens: 20,
                price_per_token: "3".into(),
                price_coefficient: 2,
                training_fee: "120".into(),
                storage_fee: "5".into(),
                total: "125".into(),
            }),
            queue_position: 0,
            estimated_start_s: None,
            estimated_duration_s: None,
            findings: Vec::new(),
            more_findings: 0,
            issued_at: 0,
        }
    }

    #[test]
    fn a_sum_that_does_not_add_up_is_refused() {
        let fee = signed_fee(&quote()).unwrap().unwrap();
        assert_eq!(fee.total, U256::from(125));
        for change in [
            |fee: &mut FeeBreakdown| fee.total = "124".into(),
            |fee: &mut FeeBreakdown| fee.training_fee = "60".into(),
            |fee: &mut FeeBreakdown| fee.billed_tokens = 21,
            |fee: &mut FeeBreakdown| fee.storage_fee = "-1".into(),
        ] {
            let mut wrong = quote();
            change(wrong.fee.as_mut().unwrap());
            assert!(signed_fee(&wrong).is_err(), "{wrong:?}");
        }
    }
}
