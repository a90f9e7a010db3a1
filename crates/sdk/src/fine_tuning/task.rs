//! Tasks: create, look, cancel, logs.

use alloy_primitives::{Address, B256, U256};
use zerog_protocol::fine_tuning_api::{
    CancelTaskRequest, CreateTaskRequest, CreateTaskResponse, TaskView,
};
use zerog_protocol::{TaskId, signing};

use super::FineTuning;
use super::quote::parse_params;
use crate::broker::Context;
use crate::error::{Error, Result, ServiceKind};
use crate::provider_client::{MAX_FILE_BYTES, join, parse_json};

/// What a task is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateTask {
    /// Who trains.
    pub provider: Address,
    /// Base model, by name.
    pub model: String,
    /// Hash of an uploaded dataset, or its storage root: `0x` and 64 digits.
    pub dataset_hash: String,
    /// Text of the training parameter file; it is sent as it is.
    pub training_params: String,
    /// Whether to wait in line when other tasks are pending; otherwise they are an error.
    pub queue: bool,
    /// Most neuron that the task may cost; only providers of ours check it. None: no bound.
    pub max_fee: Option<U256>,
}

impl FineTuning {
    /// Signs and submits a task. Model, parameters and queue are checked first; the fee is worked out by the provider
    /// and taken from the sub-account after delivery.
    ///
    /// # Errors
    /// [`Error::UnknownModel`], [`Error::TrainingParameters`], [`Error::AccountMissing`], [`Error::NotAcknowledged`],
    /// [`Error::QueueNotEmpty`], [`Error::ModelNotOpenable`] for a wallet that cannot decrypt, [`Error::Signing`], or the
    /// provider's refusal.
    pub async fn create_task(&self, task: &CreateTask) -> Result<TaskId> {
        let wallet = self.context.wallet()?;
        let (user, provider) = (wallet.address(), task.provider);
        if task.dataset_hash.len() != 66 || task.dataset_hash.parse::<B256>().is_err() {
            return Err(Error::Argument {
                name: "dataset",
                reason: format!(
                    "`{}` is not a dataset hash; it is 0x and 64 digits, as `upload` prints it",
                    task.dataset_hash
                ),
            });
        }
        self.check_openable(provider).await?;
        let service = self.get_service(provider).await?;
        if !service.tee_signer_acknowledged {
            return Err(Error::ServiceNotAcknowledged {
                provider,
                service: ServiceKind::FineTuning,
            });
        }
        let model_hash = self.model_hash(provider, &task.model).await?;
        let facts = self.model_facts(Some(provider), &task.model).await?;
        parse_params(Some(&task.training_params), &facts)?;
        let account = self.get_account(provider).await?;
        if !account.acknowledged {
            return Err(Error::NotAcknowledged {
                provider,
                service: ServiceKind::FineTuning,
            });
        }
        if !task.queue {
            let pending = self.get_pending_task_counter(provider).await?;
            if pending > 0 {
                return Err(Error::QueueNotEmpty { pending });
            }
        }
        // Milliseconds with a fixed tail, as all clients make it, and above what the account has seen.
        let clock = U256::from(Context::now_ms()) * U256::from(10_000u64) + U256::from(40u64);
        let nonce = clock.max(account.nonce.saturating_add(U256::ONE));
        let mut request = CreateTaskRequest {
            user_address: user.to_string(),
            dataset_hash: task.dataset_hash.clone(),
            training_params: task.training_params.clone(),
            pre_trained_model_hash: model_hash.to_string(),
            fee: task.max_fee.unwrap_or_default().to_string(),
            nonce: nonce.to_string(),
            signature: String::new(),
            wait: task.queue,
            recipient: None,
        };
        request.recipient = self.recipient(wallet, provider, nonce, &request).await?;
        let digest = signing::create_task_hash(user, nonce, &task.dataset_hash);
        request.signature = wallet.sign_personal("the task", digest).await?;
        let url = join(&service.url, &format!("/v1/user/{user}/task"));
        let answer = match self
            .context
            .http
            .post_json("create task", &url, None, &request)
            .await
        {
            Err(Error::ProviderRefused {
                status: 409,
                code: Some(code),
                ..
            }) if code == "queue_not_empty" => {
                let pending = self.get_pending_task_counter(provider).await?;
                return Err(Error::QueueNotEmpty { pending });
            }
            other => other?,
        };
        let created: CreateTaskResponse = parse_json("create task", &answer.body)?;
        let id: TaskId =
            created
                .id
                .parse()
                .map_err(
                    |error: zerog_protocol::ids::TaskIdError| Error::ProviderAnswer {
                        operation: "create task",
                        reason: error.to_string(),
                    },
                )?;
        match self.check_recipient(provider, id).await {
            Ok(()) => Ok(id),
            // Before training has ended this costs nothing.
            Err(Error::ModelNotOpenable { reason, .. }) => {
                let outcome = match self.cancel_task(provider, id).await {
                    Ok(_) => format!("task {id} was cancelled"),
                    Err(error) => {
                        format!("task {id} was not cancelled ({error}); do not acknowledge it")
                    }
                };
                let reason = format!("{reason}; {outcome}");
                Err(Error::ModelNotOpenable { provider, reason })
            }
            // The task is there. It is asked again before the model is acknowledged, so before it is paid.
            Err(error) => {
                tracing::warn!(task.id = %id, %error, "the enclave's confirmation of the recipient key could not be read yet");
                Ok(id)
            }
        }
    }

    /// All tasks of the wallet with a provider, newest first.
    ///
    /// # Errors
    /// An unreachable provider.
    pub async fn list_task(&self, provider: Address) -> Result<Vec<TaskView>> {
        let user = self.context.user()?;
        let url = join(
            &self.get_provider_url(provider).await?,
            &format!("/v1/user/{user}/task"),
        );
        // Some brokers write an empty list as null.
        let tasks: Option<Vec<TaskView>> =
            self.context.http.get_json("list tasks", &url, None).await?;
        Ok(tasks.unwrap_or_default())
    }

    /// One task, or the newest one.
    ///
    /// # Errors
    /// [`Error::NoTask`] without any task, or the provider's refusal.
    pub async fn get_task(&self, provider: Address, task: Option<TaskId>) -> Result<TaskView> {
        let user = self.context.user()?;
        let base = self.get_provider_url(provider).await?;
        match task {
            Some(task) => self.task_at(&base, user, task).await,
            None => {
                let url = join(&base, &format!("/v1/user/{user}/task?latest=true"));
                let tasks: Option<Vec<TaskView>> =
                    self.context.http.get_json("get task", &url, None).await?;
                tasks
                    .unwrap_or_default()
                    .into_iter()
                    .next()
                    .ok_or(Error::NoTask { provider, user })
            }
        }
    }

    pub(super) async fn task_at(
        &self,
        base: &str,
        user: Address,
        task: TaskId,
    ) -> Result<TaskView> {
        let url = join(base, &format!("/v1/user/{user}/task/{task}"));
        self.context.http.get_json("get task", &url, None).await
    }

    /// Cancels a task that is not trained yet; nothing is charged. Returns the provider's sentence.
    ///
    /// # Errors
    /// The provider's refusal, for example because training is done.
    pub async fn cancel_task(&self, provider: Address, task: TaskId) -> Result<String> {
        let wallet = self.context.wallet()?;
        let url = join(
            &self.get_provider_url(provider).await?,
            &format!("/v1/user/{}/task/{task}/cancel", wallet.address()),
        );
        let signature = wallet
            .sign_personal("the cancellation", signing::cancel_task_hash(task))
            .await?;
        let request = CancelTaskRequest { signature };
        let answer = self
            .context
            .http
            .post_json("cancel task", &url, None, &request)
            .await?;
        Ok(String::from_utf8_lossy(&answer.body).trim().to_owned())
    }

    /// The log of a task, or of the newest one.
    ///
    /// # Errors
    /// As [`FineTuning::get_task`].
    pub async fn get_log(&self, provider: Address, task: Option<TaskId>) -> Result<String> {
        let user = self.context.user()?;
        let task = match task {
            Some(task) => task.to_string(),
            None => self.get_task(provider, None).await?.id,
        };
        let url = join(
            &self.get_provider_url(provider).await?,
            &format!("/v1/user/{user}/task/{task}/log"),
        );
        self.context
            .http
            .get_text("get log", &url, MAX_FILE_BYTES)
            .await
    }
}
