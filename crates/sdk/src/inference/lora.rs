//! `broker.inference.lora`: deployed adapters.
//!
//! An adapter that another provider trained is handed over inside the deploy request: its key is taken from the chain and
//! sealed to the attested enclave that shall serve it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy_primitives::Address;
use serde::Serialize;
use serde_json::{Value, json};
use zerog_protocol::TaskId;
use zerog_protocol::ids::adapter_name;
use zerog_protocol::inference_api::{
    AdapterList, AdapterShares, AdapterView, DeployRequest, DeployResponse, ShareRequest,
};
use zerog_protocol::seal::{SealContext, SealPurpose, seal_key};

use super::verify::ResponseProof;
use crate::broker::Context;
use crate::error::{Error, Result, ServiceKind};
use crate::fine_tuning::FineTuning;
use crate::fine_tuning::deliverable::root_hash;
use crate::fine_tuning::services::path_segment;
use crate::ledger::Ledger;
use crate::progress::Progress;
use crate::provider_client::{Answer, join, parse_json, read_answer};

/// Default of the published clients.
pub const DEFAULT_DEPLOY_TIMEOUT: Duration = Duration::from_secs(120);
/// System prompt of the published clients.
pub const DEFAULT_SYSTEM_PROMPT: &str = "You are a helpful assistant.";
/// Longest wait for an archive key during a hand-over.
const KEY_TIMEOUT: Duration = Duration::from_secs(300);

/// How an adapter is deployed.
#[derive(Debug, Clone)]
pub struct DeployOptions {
    /// Whether to wait until it is served.
    pub wait: bool,
    /// Longest wait.
    pub timeout: Duration,
    /// Who trained it, when that is not the serving provider; none: looked up on chain.
    pub fine_tuning_provider: Option<Address>,
}

impl Default for DeployOptions {
    fn default() -> Self {
        Self {
            wait: false,
            timeout: DEFAULT_DEPLOY_TIMEOUT,
            fine_tuning_provider: None,
        }
    }
}

/// An answer with what is needed to prove it.
#[derive(Debug, Clone, Serialize)]
pub struct ChatAnswer {
    /// The adapter or model that answered.
    pub model: String,
    /// OpenAI's response object.
    pub response: Value,
    /// Handle of the response signature.
    pub chat_id: Option<String>,
    /// The exact request body.
    #[serde(skip)]
    pub request_body: Vec<u8>,
    /// The exact response body.
    #[serde(skip)]
    pub response_body: Vec<u8>,
}

impl ChatAnswer {
    /// The text of the first choice.
    #[must_use]
    pub fn content(&self) -> Option<&str> {
        self.response
            .pointer("/choices/0/message/content")?
            .as_str()
    }

    /// Prompt, completion and total tokens, where the provider tells.
    #[must_use]
    pub fn usage(&self) -> Option<(u64, u64, u64)> {
        let usage = self.response.get("usage")?;
        let number = |name: &str| usage.get(name).and_then(Value::as_u64);
        Some((
            number("prompt_tokens")?,
            number("completion_tokens")?,
            number("total_tokens")?,
        ))
    }
}

/// `broker.inference.lora`.
#[derive(Debug, Clone)]
pub struct Lora {
    context: Arc<Context>,
    ledger: Ledger,
}

/// What to deploy.
#[derive(Debug, Clone)]
enum Wanted {
    Task { base_model: String, task: TaskId },
    Name(String),
}

impl Lora {
    pub(crate) fn new(context: Arc<Context>, ledger: Ledger) -> Self {
        Self { context, ledger }
    }

    /// The wallet's adapters at a provider.
    ///
    /// # Errors
    /// [`Error::ServiceMissing`] or an unreachable provider.
    pub async fn list_adapters(&self, provider: Address) -> Result<Vec<AdapterView>> {
        let url = join(&self.base_url(provider).await?, "/v1/lora/adapters");
        let answer = self.get(provider, "list adapters", &url).await?;
        let list: AdapterList = parse_json("list adapters", &answer.body)?;
        Ok(list.adapters)
    }

    /// The state of one adapter; `tier` is the true one where the provider tells it.
    ///
    /// # Errors
    /// [`Error::ProviderRefused`] with status 404 for an unknown adapter.
    pub async fn get_adapter_status(&self, provider: Address, name: &str) -> Result<AdapterView> {
        let url = join(
            &self.base_url(provider).await?,
            &format!("/v1/lora/adapters/{}", path_segment(name)),
        );
        let answer = self.get(provider, "get adapter status", &url).await?;
        parse_json("get adapter status", &answer.body)
    }

    /// Lets another address use an adapter of the caller, or ends that; returns with whom it is shared then.
    ///
    /// # Errors
    /// [`Error::ProviderRefused`] with status 404 for an adapter that is not the caller's.
    pub async fn share_adapter(
        &self,
        provider: Address,
        name: &str,
        with: Address,
        revoke: bool,
    ) -> Result<AdapterShares> {
        let url = join(
            &self.base_url(provider).await?,
            &format!("/v1/lora/adapters/{}/share", path_segment(name)),
        );
        let request = ShareRequest {
            address: with.to_string(),
            revoke,
        };
        let authorization = self.context.authorization(provider).await?;
        let answer = self
            .context
            .http
            .post_json("share adapter", &url, Some(&authorization), &request)
            .await?;
        parse_json("share adapter", &answer.body)
    }

    /// The name under which a task's adapter is known at a provider: its own, else the computed one.
    ///
    /// # Errors
    /// As [`Lora::list_adapters`].
    pub async fn resolve_adapter_name(
        &self,
        provider: Address,
        base_model: &str,
        task: TaskId,
    ) -> Result<String> {
        let id = task.to_string();
        let known = self
            .list_adapters(provider)
            .await?
            .into_iter()
            .find(|adapter| adapter.task_id == id);
        Ok(known.map_or_else(
            || adapter_name(base_model, &id),
            |adapter| adapter.adapter_name,
        ))
    }

    /// Makes a task's adapter available for chat. Prepares the inference sub-account as well.
    ///
    /// # Errors
    /// [`Error::AdapterFailed`], [`Error::Timeout`], [`Error::VerificationFailed`] at a hand-over, or the provider's
    /// refusal.
    pub async fn deploy_adapter(
        &self,
        provider: Address,
        base_model: &str,
        task: TaskId,
        options: &DeployOptions,
        mut on_progress: impl FnMut(Progress) + Send,
    ) -> Result<DeployResponse> {
        let wanted = Wanted::Task {
            base_model: base_model.to_owned(),
            task,
        };
        self.deploy(provider, wanted, options, &mut on_progress)
            .await
    }

    /// As [`Lora::deploy_adapter`], for an adapter that the provider knows already.
    ///
    /// # Errors
    /// As there.
    pub async fn deploy_adapter_by_name(
        &self,
        provider: Address,
        name: &str,
        options: &DeployOptions,
        mut on_progress: impl FnMut(Progress) + Send,
    ) -> Result<DeployResponse> {
        self.deploy(
            provider,
            Wanted::Name(name.to_owned()),
            options,
            &mut on_progress,
        )
        .await
    }

    async fn deploy(
        &self,
        provider: Address,
        wanted: Wanted,
        options: &DeployOptions,
        on_progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<DeployResponse> {
        let deadline = Deadline {
            started: Instant::now(),
            timeout: options.timeout,
        };
        self.prepare(provider, on_progress).await?;
        let mut name = match &wanted {
            Wanted::Task { base_model, task } => {
                self.resolve_adapter_name(provider, base_model, *task)
                    .await?
            }
            Wanted::Name(name) => name.clone(),
        };
        let handover = match &wanted {
            Wanted::Task { task, .. } => {
                self.handover(provider, *task, options, on_progress).await?
            }
            Wanted::Name(_) => None,
        };
        // A hand-over is what makes the provider fetch the adapter, so there is nothing to wait for before it.
        if options.wait && handover.is_none() {
            name = self
                .wait_until_ready(provider, &wanted, name, &deadline, on_progress)
                .await?;
        }
        if let Ok(status) = self.get_adapter_status(provider, &name).await
            && status.state == "active"
        {
            return Ok(DeployResponse {
                status: "active".into(),
                adapter_name: status.adapter_name,
                message: "Adapter is already deployed and active!".into(),
            });
        }
        let mut response = match self.request_deployment(provider, &wanted, handover).await {
            // The original refuses to start what it has started already.
            Err(error @ Error::ProviderRefused { status: 409, .. }) => {
                self.deployment_under_way(provider, &name, error).await?
            }
            other => other?,
        };
        if response.adapter_name.is_empty() {
            response.adapter_name = name;
        }
        if response.message.is_empty() {
            response.message = "Deploy request sent".into();
        }
        if !options.wait {
            return Ok(response);
        }
        self.wait_until_active(provider, &response.adapter_name, &deadline, on_progress)
            .await?;
        Ok(DeployResponse {
            status: "active".into(),
            message: "Adapter deployed successfully! You can now chat with it.".into(),
            ..response
        })
    }

    /// The deployment that made a provider answer 409, or `refusal` when there is none.
    async fn deployment_under_way(
        &self,
        provider: Address,
        name: &str,
        refusal: Error,
    ) -> Result<DeployResponse> {
        let status = self.get_adapter_status(provider, name).await?;
        match status.state.as_str() {
            "active" | "loading" | "downloading" | "pending" => Ok(DeployResponse {
                status: status.state,
                adapter_name: status.adapter_name,
                message: "The deployment is under way already.".into(),
            }),
            _ => Err(refusal),
        }
    }

    async fn request_deployment(
        &self,
        provider: Address,
        wanted: &Wanted,
        handover: Option<DeployRequest>,
    ) -> Result<DeployResponse> {
        let mut request = handover.unwrap_or_default();
        match wanted {
            Wanted::Task { base_model, task } => {
                request.task_id = Some(task.to_string());
                request.base_model = Some(base_model.clone());
            }
            Wanted::Name(name) => request.adapter_name = Some(name.clone()),
        }
        let url = join(&self.base_url(provider).await?, "/v1/lora/adapters/deploy");
        let authorization = self.context.authorization(provider).await?;
        let answer = self
            .context
            .http
            .post_json("deploy adapter", &url, Some(&authorization), &request)
            .await?;
        parse_json("deploy adapter", &answer.body)
    }

    /// The members that hand an adapter of another provider over; none when the serving provider trained it or has it.
    async fn handover(
        &self,
        provider: Address,
        task: TaskId,
        options: &DeployOptions,
        on_progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Option<DeployRequest>> {
        let id = task.to_string();
        let fine_tuning = FineTuning::new(Arc::clone(&self.context), self.ledger.clone());
        let trainer = match options.fine_tuning_provider {
            Some(trainer) => trainer,
            None => {
                let user = self.context.user()?;
                let contract = self.context.chain.fine_tuning();
                if contract.deliverable(user, provider, &id).await?.is_some() {
                    return Ok(None);
                }
                if self
                    .list_adapters(provider)
                    .await?
                    .iter()
                    .any(|adapter| adapter.task_id == id)
                {
                    return Ok(None);
                }
                let mut found = None;
                for account in contract.accounts_by_user(user).await? {
                    if contract
                        .deliverable(user, account.provider, &id)
                        .await?
                        .is_some()
                    {
                        found = Some(account.provider);
                        break;
                    }
                }
                match found {
                    Some(trainer) => trainer,
                    None => return Ok(None),
                }
            }
        };
        if trainer == provider {
            return Ok(None);
        }
        on_progress(Progress::step(
            "handing the adapter over to another provider",
        ));
        let deliverable = fine_tuning.deliverable(trainer, task).await?;
        let registration = self
            .context
            .registration(provider, ServiceKind::Inference)
            .await?;
        let enclave = self
            .context
            .require_enclave(&registration, on_progress)
            .await?;
        let sealing_key = enclave.sealing_key.ok_or_else(|| Error::AdapterFailed {
            adapter: id.clone(),
            reason: format!("provider {provider} accepts no sealed keys, so it cannot be given an adapter that {trainer} trained"),
        })?;
        let key = fine_tuning
            .archive_key(trainer, task, KEY_TIMEOUT, on_progress)
            .await?;
        let context = SealContext {
            chain_id: self.context.chain.chain_id(),
            provider,
            user: self.context.user()?,
            purpose: SealPurpose::Adapter,
            id: &id,
        };
        let sealed_key =
            seal_key(&sealing_key, &context, &key).map_err(|error| Error::ProviderAnswer {
                operation: "quote",
                reason: error.to_string(),
            })?;
        Ok(Some(DeployRequest {
            sealed_key: Some(sealed_key),
            storage_hash: Some(root_hash(&deliverable)?.to_string()),
            fine_tuning_provider: Some(trainer.to_string()),
            ..DeployRequest::default()
        }))
    }

    async fn wait_until_ready(
        &self,
        provider: Address,
        wanted: &Wanted,
        mut name: String,
        deadline: &Deadline,
        on_progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<String> {
        let mut last: Option<String> = None;
        loop {
            // The provider may give the adapter another name once it has registered it.
            if let Wanted::Task { base_model, task } = wanted
                && name == adapter_name(base_model, &task.to_string())
            {
                match self.resolve_adapter_name(provider, base_model, *task).await {
                    Ok(resolved) => name = resolved,
                    Err(error) if error.is_passing() => {}
                    Err(error) => return Err(error),
                }
            }
            match self.get_adapter_status(provider, &name).await {
                Ok(status) => {
                    report(&mut last, &status, on_progress);
                    match status.state.as_str() {
                        "ready" | "active" => return Ok(name),
                        "failed" => return Err(failed(&name, status, "preparation failed")),
                        _ => {}
                    }
                }
                Err(Error::ProviderRefused { status: 404, .. }) => {}
                Err(error) if error.is_passing() => {}
                Err(error) => return Err(error),
            }
            deadline.check(|| format!("adapter {name} to be ready"), &last)?;
            tokio::time::sleep(self.context.poll_interval()).await;
        }
    }

    async fn wait_until_active(
        &self,
        provider: Address,
        name: &str,
        deadline: &Deadline,
        on_progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<()> {
        let mut last: Option<String> = None;
        loop {
            match self.get_adapter_status(provider, name).await {
                Ok(status) => {
                    report(&mut last, &status, on_progress);
                    match status.state.as_str() {
                        "active" => return Ok(()),
                        "failed" => return Err(failed(name, status, "deployment failed")),
                        _ => {}
                    }
                }
                Err(error) if error.is_passing() => {}
                Err(error) => return Err(error),
            }
            deadline.check(|| format!("the deployment of adapter {name}"), &last)?;
            tokio::time::sleep(self.context.poll_interval()).await;
        }
    }

    /// Asks an adapter, or the base model when its name is given, one question.
    ///
    /// # Errors
    /// As [`crate::Inference::get_request_headers`], and the provider's refusal.
    pub async fn chat(
        &self,
        provider: Address,
        adapter_name: &str,
        message: &str,
        system_prompt: Option<&str>,
    ) -> Result<ChatAnswer> {
        let system = system_prompt.unwrap_or(DEFAULT_SYSTEM_PROMPT);
        let mut messages = Vec::new();
        if !system.is_empty() {
            messages.push(json!({"role": "system", "content": system}));
        }
        messages.push(json!({"role": "user", "content": message}));
        self.chat_completion(
            provider,
            json!({"model": adapter_name, "messages": messages}),
            |_| (),
        )
        .await
    }

    /// Sends any chat-completion body (without `stream`; see [`Lora::chat_stream`]).
    ///
    /// # Errors
    /// As [`Lora::chat`].
    pub async fn chat_completion(
        &self,
        provider: Address,
        body: Value,
        mut on_progress: impl FnMut(Progress) + Send,
    ) -> Result<ChatAnswer> {
        let request_body = serde_json::to_vec(&body).expect("a JSON value is always writable");
        let (url, response) = self
            .post_chat(provider, &request_body, &mut on_progress)
            .await?;
        let answer = read_answer("chat", &url, response).await?;
        let response: Value = parse_json("chat", &answer.body)?;
        if response.pointer("/choices/0").is_none() {
            return Err(Error::ProviderAnswer {
                operation: "chat",
                reason: "it has no choices".into(),
            });
        }
        let chat_id = answer.header("ZG-Res-Key").map(str::to_owned).or_else(|| {
            response
                .get("id")
                .and_then(Value::as_str)
                .map(str::to_owned)
        });
        Ok(ChatAnswer {
            model: body
                .get("model")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned(),
            response,
            chat_id,
            request_body,
            response_body: answer.body,
        })
    }

    /// Sends a chat request with the exact bytes of its body, and returns the URL and the answer, which is not read yet.
    pub(super) async fn post_chat(
        &self,
        provider: Address,
        request_body: &[u8],
        on_progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<(String, reqwest::Response)> {
        self.prepare(provider, on_progress).await?;
        let url = join(
            &self.base_url(provider).await?,
            "/v1/proxy/chat/completions",
        );
        let mut renewed = false;
        loop {
            let authorization = self.context.authorization(provider).await?;
            match self
                .context
                .http
                .post_chat(&url, &authorization, request_body)
                .await
            {
                // Revoked in the meantime: one fresh token.
                Err(Error::ProviderRefused { status: 401, .. }) if !renewed => {
                    renewed = true;
                    self.context.sessions.forget(provider);
                }
                other => return Ok((url, other?)),
            }
        }
    }

    /// Checks that the enclave signed this answer.
    ///
    /// # Errors
    /// [`Error::ResponseNotProven`].
    pub async fn verify_answer(
        &self,
        provider: Address,
        answer: &ChatAnswer,
    ) -> Result<ResponseProof> {
        let chat_id = answer
            .chat_id
            .as_deref()
            .ok_or_else(|| Error::ResponseNotProven {
                reason: "the response carries no ZG-Res-Key header and no id".into(),
            })?;
        self.context
            .verify_response(
                provider,
                chat_id,
                &answer.request_body,
                &answer.response_body,
            )
            .await
    }

    async fn prepare(
        &self,
        provider: Address,
        on_progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<()> {
        let funding = self
            .context
            .prepare_inference_account(&self.ledger, provider)
            .await?;
        if let Some(sentence) = funding.sentence() {
            on_progress(Progress::notice(sentence));
        }
        Ok(())
    }

    /// Base URL of the broker's own routes.
    async fn base_url(&self, provider: Address) -> Result<String> {
        let url = self.context.inference_service(provider).await?.url;
        let url = url.trim_end_matches('/');
        Ok(url.strip_suffix("/v1/proxy").unwrap_or(url).to_owned())
    }

    async fn get(&self, provider: Address, operation: &'static str, url: &str) -> Result<Answer> {
        let mut renewed = false;
        loop {
            let authorization = self.context.authorization(provider).await?;
            match self
                .context
                .http
                .get(operation, url, Some(&authorization), 4 << 20)
                .await
            {
                Err(Error::ProviderRefused { status: 401, .. }) if !renewed => {
                    renewed = true;
                    self.context.sessions.forget(provider);
                }
                other => return other,
            }
        }
    }
}

struct Deadline {
    started: Instant,
    timeout: Duration,
}

impl Deadline {
    fn check(&self, what: impl FnOnce() -> String, last: &Option<String>) -> Result<()> {
        if self.started.elapsed() < self.timeout {
            return Ok(());
        }
        let last = Some(last.clone().unwrap_or_else(|| "not found".into()));
        Err(Error::Timeout {
            what: what(),
            waited: self.timeout,
            last,
        })
    }
}

fn report(
    last: &mut Option<String>,
    status: &AdapterView,
    on_progress: &mut (dyn FnMut(Progress) + Send),
) {
    let state = status.tier.clone().unwrap_or_else(|| status.state.clone());
    if last.as_ref() != Some(&state) {
        on_progress(Progress::Adapter {
            state: state.clone(),
        });
        *last = Some(state);
    }
}

fn failed(name: &str, status: AdapterView, otherwise: &str) -> Error {
    Error::AdapterFailed {
        adapter: name.to_owned(),
        reason: status.error.unwrap_or_else(|| otherwise.to_owned()),
    }
}
