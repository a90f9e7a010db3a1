//! `broker.fine_tuning`.

use std::path::PathBuf;
use std::time::Duration;

use pyo3::prelude::*;
use zerog_sdk::{CreateTask, Error, U256, UploadOptions, WaitOptions};

use crate::call::{Answer, Call, Waiter};
use crate::convert::{Binary, ToPython, address, hash, task_id};

#[pyclass(frozen)]
pub(crate) struct FineTuning(pub(crate) zerog_sdk::FineTuning);

/// A provider's address, under the name that the Python interface gives it.
fn provider_address(text: &str) -> zerog_sdk::Result<zerog_sdk::Address> {
    address(text, "provider_address")
}

/// A span of time from Python.
pub(crate) fn seconds(name: &'static str, seconds: f64) -> zerog_sdk::Result<Duration> {
    Duration::try_from_secs_f64(seconds).map_err(|error| Error::Argument {
        name,
        reason: error.to_string(),
    })
}

/// A document of JSON text.
struct Document(String);

impl ToPython for Document {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Binary(self.0.as_bytes()).to_python(py)
    }
}

#[pymethods]
impl FineTuning {
    #[pyo3(signature = (include_unacknowledged, waiter=None))]
    fn list_service(&self, py: Python<'_>, include_unacknowledged: bool, waiter: Waiter) -> Answer {
        let fine_tuning = self.0.clone();
        Call::new(waiter).run(py, async move {
            fine_tuning.list_service(include_unacknowledged).await
        })
    }

    #[pyo3(signature = (provider, waiter=None))]
    fn get_service(&self, py: Python<'_>, provider: String, waiter: Waiter) -> Answer {
        let fine_tuning = self.0.clone();
        Call::new(waiter).run(py, async move {
            fine_tuning.get_service(provider_address(&provider)?).await
        })
    }

    #[pyo3(signature = (provider, waiter=None))]
    fn get_provider_url(&self, py: Python<'_>, provider: String, waiter: Waiter) -> Answer {
        let fine_tuning = self.0.clone();
        Call::new(waiter).run(py, async move {
            fine_tuning
                .get_provider_url(provider_address(&provider)?)
                .await
        })
    }

    #[pyo3(signature = (waiter=None))]
    fn list_model(&self, py: Python<'_>, waiter: Waiter) -> Answer {
        let fine_tuning = self.0.clone();
        Call::new(waiter).run(py, async move { fine_tuning.list_model().await })
    }

    #[pyo3(signature = (provider, name_or_hash, waiter=None))]
    fn get_model(
        &self,
        py: Python<'_>,
        provider: String,
        name_or_hash: String,
        waiter: Waiter,
    ) -> Answer {
        let fine_tuning = self.0.clone();
        Call::new(waiter).run(py, async move {
            fine_tuning
                .get_model(provider_address(&provider)?, &name_or_hash)
                .await
        })
    }

    #[pyo3(signature = (provider, model, output, waiter=None))]
    fn model_usage(
        &self,
        py: Python<'_>,
        provider: String,
        model: String,
        output: PathBuf,
        waiter: Waiter,
    ) -> Answer {
        let fine_tuning = self.0.clone();
        Call::new(waiter).run(py, async move {
            fine_tuning
                .model_usage(provider_address(&provider)?, &model, &output)
                .await
        })
    }

    #[pyo3(signature = (provider, waiter=None))]
    fn get_pending_task_counter(&self, py: Python<'_>, provider: String, waiter: Waiter) -> Answer {
        let fine_tuning = self.0.clone();
        Call::new(waiter).run(py, async move {
            fine_tuning
                .get_pending_task_counter(provider_address(&provider)?)
                .await
        })
    }

    #[pyo3(signature = (provider, waiter=None))]
    fn get_quote(&self, py: Python<'_>, provider: String, waiter: Waiter) -> Answer {
        let fine_tuning = self.0.clone();
        Call::new(waiter).run(py, async move {
            let quote = fine_tuning.get_quote(provider_address(&provider)?).await?;
            Ok(Document(quote))
        })
    }

    #[pyo3(signature = (provider, waiter=None))]
    fn get_account(&self, py: Python<'_>, provider: String, waiter: Waiter) -> Answer {
        let fine_tuning = self.0.clone();
        Call::new(waiter).run(py, async move {
            fine_tuning.get_account(provider_address(&provider)?).await
        })
    }

    #[pyo3(signature = (provider, waiter=None))]
    fn get_account_with_detail(&self, py: Python<'_>, provider: String, waiter: Waiter) -> Answer {
        let fine_tuning = self.0.clone();
        Call::new(waiter).run(py, async move {
            fine_tuning
                .get_account_with_detail(provider_address(&provider)?)
                .await
        })
    }

    #[pyo3(signature = (waiter=None))]
    fn get_locked_time(&self, py: Python<'_>, waiter: Waiter) -> Answer {
        let fine_tuning = self.0.clone();
        Call::new(waiter).run(py, async move { fine_tuning.get_locked_time().await })
    }

    #[pyo3(signature = (provider, on_progress=None, waiter=None))]
    fn acknowledge_provider_signer(
        &self,
        py: Python<'_>,
        provider: String,
        on_progress: Option<Py<PyAny>>,
        waiter: Waiter,
    ) -> Answer {
        let fine_tuning = self.0.clone();
        let call = Call::new(waiter);
        let news = call.callback(on_progress);
        call.run(py, async move {
            fine_tuning
                .acknowledge_provider_signer(provider_address(&provider)?, |progress| {
                    news.tell(progress);
                })
                .await
        })
    }

    #[pyo3(signature = (provider, waiter=None))]
    fn revoke_tee_signer_acknowledgement(
        &self,
        py: Python<'_>,
        provider: String,
        waiter: Waiter,
    ) -> Answer {
        let fine_tuning = self.0.clone();
        Call::new(waiter).run(py, async move {
            fine_tuning
                .revoke_tee_signer_acknowledgement(provider_address(&provider)?)
                .await
        })
    }

    #[pyo3(signature = (provider, required, on_progress=None, waiter=None))]
    fn ensure_funds(
        &self,
        py: Python<'_>,
        provider: String,
        required: u128,
        on_progress: Option<Py<PyAny>>,
        waiter: Waiter,
    ) -> Answer {
        let fine_tuning = self.0.clone();
        let call = Call::new(waiter);
        let news = call.callback(on_progress);
        call.run(py, async move {
            let provider = provider_address(&provider)?;
            fine_tuning
                .ensure_funds(provider, U256::from(required), |progress| {
                    news.tell(progress);
                })
                .await
        })
    }

    #[pyo3(signature = (provider, output_dir, on_log=None, waiter=None))]
    fn verify_service(
        &self,
        py: Python<'_>,
        provider: String,
        output_dir: Option<PathBuf>,
        on_log: Option<Py<PyAny>>,
        waiter: Waiter,
    ) -> Answer {
        let fine_tuning = self.0.clone();
        let call = Call::new(waiter);
        let log = call.callback(on_log);
        call.run(py, async move {
            let provider = provider_address(&provider)?;
            fine_tuning
                .verify_service(provider, output_dir.as_deref(), |step| {
                    log.tell(step.clone());
                })
                .await
        })
    }

    #[pyo3(signature = (provider, on_progress=None, waiter=None))]
    fn require_verified(
        &self,
        py: Python<'_>,
        provider: String,
        on_progress: Option<Py<PyAny>>,
        waiter: Waiter,
    ) -> Answer {
        let fine_tuning = self.0.clone();
        let call = Call::new(waiter);
        let news = call.callback(on_progress);
        call.run(py, async move {
            fine_tuning
                .require_verified(provider_address(&provider)?, |progress| news.tell(progress))
                .await
        })
    }

    #[pyo3(signature = (path, waiter=None))]
    fn check_dataset(&self, py: Python<'_>, path: PathBuf, waiter: Waiter) -> Answer {
        let fine_tuning = self.0.clone();
        Call::new(waiter).run(py, async move {
            let checking = tokio::task::spawn_blocking(move || fine_tuning.check_dataset(&path));
            checking.await.expect("checking a dataset does not panic")
        })
    }

    #[pyo3(signature = (provider, path, plain, on_progress=None, waiter=None))]
    fn upload_dataset_to_tee(
        &self,
        py: Python<'_>,
        provider: String,
        path: PathBuf,
        plain: bool,
        on_progress: Option<Py<PyAny>>,
        waiter: Waiter,
    ) -> Answer {
        let fine_tuning = self.0.clone();
        let call = Call::new(waiter);
        let news = call.callback(on_progress);
        call.run(py, async move {
            let provider = provider_address(&provider)?;
            let options = UploadOptions { plain };
            fine_tuning
                .upload_dataset_to_tee_with(provider, &path, &options, |progress| {
                    news.tell(progress);
                })
                .await
        })
    }

    #[pyo3(signature = (path, on_progress=None, waiter=None))]
    fn upload_dataset(
        &self,
        py: Python<'_>,
        path: PathBuf,
        on_progress: Option<Py<PyAny>>,
        waiter: Waiter,
    ) -> Answer {
        let fine_tuning = self.0.clone();
        let call = Call::new(waiter);
        let news = call.callback(on_progress);
        call.run(py, async move {
            fine_tuning
                .upload_dataset(&path, |progress| news.tell(progress))
                .await
        })
    }

    #[pyo3(signature = (path, root, on_progress=None, waiter=None))]
    fn download_dataset(
        &self,
        py: Python<'_>,
        path: PathBuf,
        root: String,
        on_progress: Option<Py<PyAny>>,
        waiter: Waiter,
    ) -> Answer {
        let fine_tuning = self.0.clone();
        let call = Call::new(waiter);
        let news = call.callback(on_progress);
        call.run(py, async move {
            let root = hash(&root, "data_root")?;
            fine_tuning
                .download_dataset(&path, root, |progress| news.tell(progress))
                .await
        })
    }

    #[pyo3(signature = (path, model, provider, training_params, waiter=None))]
    fn calculate_token(
        &self,
        py: Python<'_>,
        path: PathBuf,
        model: String,
        provider: Option<String>,
        training_params: Option<String>,
        waiter: Waiter,
    ) -> Answer {
        let fine_tuning = self.0.clone();
        Call::new(waiter).run(py, async move {
            let provider = provider.map(|text| provider_address(&text)).transpose()?;
            fine_tuning
                .calculate_token(&path, &model, provider, training_params.as_deref())
                .await
        })
    }

    #[pyo3(signature = (provider, model, path, training_params, waiter=None))]
    fn quote_fee(
        &self,
        py: Python<'_>,
        provider: String,
        model: String,
        path: PathBuf,
        training_params: String,
        waiter: Waiter,
    ) -> Answer {
        let fine_tuning = self.0.clone();
        Call::new(waiter).run(py, async move {
            let provider = provider_address(&provider)?;
            fine_tuning
                .quote_fee(provider, &model, &path, &training_params)
                .await
        })
    }

    #[pyo3(signature = (provider, model, path, training_params, waiter=None))]
    fn quote(
        &self,
        py: Python<'_>,
        provider: String,
        model: String,
        path: PathBuf,
        training_params: String,
        waiter: Waiter,
    ) -> Answer {
        let fine_tuning = self.0.clone();
        Call::new(waiter).run(py, async move {
            let provider = provider_address(&provider)?;
            fine_tuning
                .quote(provider, &model, &path, &training_params)
                .await
        })
    }

    #[pyo3(signature = (provider, model, dataset_hash, training_params, waiter=None))]
    fn quote_uploaded(
        &self,
        py: Python<'_>,
        provider: String,
        model: String,
        dataset_hash: String,
        training_params: String,
        waiter: Waiter,
    ) -> Answer {
        let fine_tuning = self.0.clone();
        Call::new(waiter).run(py, async move {
            let provider = provider_address(&provider)?;
            fine_tuning
                .quote_uploaded(provider, &model, &dataset_hash, &training_params)
                .await
        })
    }

    #[pyo3(signature = (provider, dataset_hash, waiter=None))]
    fn delete_dataset(
        &self,
        py: Python<'_>,
        provider: String,
        dataset_hash: String,
        waiter: Waiter,
    ) -> Answer {
        let fine_tuning = self.0.clone();
        Call::new(waiter).run(py, async move {
            let provider = provider_address(&provider)?;
            fine_tuning.delete_dataset(provider, &dataset_hash).await
        })
    }

    #[pyo3(signature = (provider, model, dataset_hash, training_params, queue, max_fee, waiter=None))]
    #[allow(clippy::too_many_arguments, reason = "they are the task's fields")]
    fn create_task(
        &self,
        py: Python<'_>,
        provider: String,
        model: String,
        dataset_hash: String,
        training_params: String,
        queue: bool,
        max_fee: Option<u128>,
        waiter: Waiter,
    ) -> Answer {
        let fine_tuning = self.0.clone();
        Call::new(waiter).run(py, async move {
            let task = CreateTask {
                provider: provider_address(&provider)?,
                model,
                dataset_hash,
                training_params,
                queue,
                max_fee: max_fee.map(U256::from),
            };
            Ok(fine_tuning.create_task(&task).await?.to_string())
        })
    }

    #[pyo3(signature = (provider, waiter=None))]
    fn list_task(&self, py: Python<'_>, provider: String, waiter: Waiter) -> Answer {
        let fine_tuning = self.0.clone();
        Call::new(waiter).run(py, async move {
            fine_tuning.list_task(provider_address(&provider)?).await
        })
    }

    #[pyo3(signature = (provider, task, waiter=None))]
    fn get_task(
        &self,
        py: Python<'_>,
        provider: String,
        task: Option<String>,
        waiter: Waiter,
    ) -> Answer {
        let fine_tuning = self.0.clone();
        Call::new(waiter).run(py, async move {
            let task = task.map(|text| task_id(&text)).transpose()?;
            fine_tuning
                .get_task(provider_address(&provider)?, task)
                .await
        })
    }

    #[pyo3(signature = (provider, task, waiter=None))]
    fn cancel_task(
        &self,
        py: Python<'_>,
        provider: String,
        task: String,
        waiter: Waiter,
    ) -> Answer {
        let fine_tuning = self.0.clone();
        Call::new(waiter).run(py, async move {
            fine_tuning
                .cancel_task(provider_address(&provider)?, task_id(&task)?)
                .await
        })
    }

    #[pyo3(signature = (provider, task, waiter=None))]
    fn get_log(
        &self,
        py: Python<'_>,
        provider: String,
        task: Option<String>,
        waiter: Waiter,
    ) -> Answer {
        let fine_tuning = self.0.clone();
        Call::new(waiter).run(py, async move {
            let task = task.map(|text| task_id(&text)).transpose()?;
            fine_tuning
                .get_log(provider_address(&provider)?, task)
                .await
        })
    }

    #[pyo3(signature = (provider, task, on_text=None, waiter=None))]
    fn follow_log(
        &self,
        py: Python<'_>,
        provider: String,
        task: String,
        on_text: Option<Py<PyAny>>,
        waiter: Waiter,
    ) -> Answer {
        let fine_tuning = self.0.clone();
        let call = Call::new(waiter);
        let log = call.callback(on_text);
        call.run(py, async move {
            let (provider, task) = (provider_address(&provider)?, task_id(&task)?);
            fine_tuning
                .follow_log(provider, task, |text| log.tell(text.to_owned()))
                .await
        })
    }

    #[pyo3(signature = (provider, task, state, timeout_s, on_progress=None, waiter=None))]
    #[allow(
        clippy::too_many_arguments,
        reason = "callback and waiter belong to every wait"
    )]
    fn wait_for_state(
        &self,
        py: Python<'_>,
        provider: String,
        task: String,
        state: String,
        timeout_s: Option<f64>,
        on_progress: Option<Py<PyAny>>,
        waiter: Waiter,
    ) -> Answer {
        let fine_tuning = self.0.clone();
        let call = Call::new(waiter);
        let news = call.callback(on_progress);
        call.run(py, async move {
            let (provider, task) = (provider_address(&provider)?, task_id(&task)?);
            let target = state.parse().map_err(|_| Error::Argument {
                name: "state",
                reason: format!(
                    "`{state}` is no state of a task, for example Training or Delivered"
                ),
            })?;
            let timeout = timeout_s.map(|value| seconds("timeout_seconds", value));
            let options = WaitOptions {
                timeout: timeout.transpose()?,
            };
            fine_tuning
                .wait_for_state(provider, task, target, &options, |progress| {
                    news.tell(progress);
                })
                .await
        })
    }

    #[pyo3(signature = (provider, task, data_path, method, on_progress=None, waiter=None))]
    #[allow(
        clippy::too_many_arguments,
        reason = "callback and waiter belong to every download"
    )]
    fn acknowledge_model(
        &self,
        py: Python<'_>,
        provider: String,
        task: String,
        data_path: PathBuf,
        method: String,
        on_progress: Option<Py<PyAny>>,
        waiter: Waiter,
    ) -> Answer {
        let fine_tuning = self.0.clone();
        let call = Call::new(waiter);
        let news = call.callback(on_progress);
        call.run(py, async move {
            let (provider, task) = (provider_address(&provider)?, task_id(&task)?);
            fine_tuning
                .acknowledge_model(provider, task, &data_path, method.parse()?, |progress| {
                    news.tell(progress);
                })
                .await
        })
    }

    #[pyo3(signature = (provider, task, waiter=None))]
    fn acknowledge_deliverable(
        &self,
        py: Python<'_>,
        provider: String,
        task: String,
        waiter: Waiter,
    ) -> Answer {
        let fine_tuning = self.0.clone();
        Call::new(waiter).run(py, async move {
            fine_tuning
                .acknowledge_deliverable(provider_address(&provider)?, task_id(&task)?)
                .await
        })
    }

    #[pyo3(signature = (provider, task, waiter=None))]
    fn get_deliverable(
        &self,
        py: Python<'_>,
        provider: String,
        task: String,
        waiter: Waiter,
    ) -> Answer {
        let fine_tuning = self.0.clone();
        Call::new(waiter).run(py, async move {
            fine_tuning
                .deliverable(provider_address(&provider)?, task_id(&task)?)
                .await
        })
    }

    /// `from_storage`: from the storage network instead of from the provider.
    #[pyo3(signature = (provider, task, output_path, from_storage, on_progress=None, waiter=None))]
    #[allow(
        clippy::too_many_arguments,
        reason = "callback and waiter belong to every download"
    )]
    fn download_model(
        &self,
        py: Python<'_>,
        provider: String,
        task: String,
        output_path: PathBuf,
        from_storage: bool,
        on_progress: Option<Py<PyAny>>,
        waiter: Waiter,
    ) -> Answer {
        let fine_tuning = self.0.clone();
        let call = Call::new(waiter);
        let news = call.callback(on_progress);
        call.run(py, async move {
            let (provider, task) = (provider_address(&provider)?, task_id(&task)?);
            let tell = |progress| news.tell(progress);
            if from_storage {
                fine_tuning
                    .download_model_from_0g_storage(provider, task, &output_path, tell)
                    .await
            } else {
                fine_tuning
                    .download_lora_from_tee(provider, task, &output_path, tell)
                    .await
            }
        })
    }

    #[pyo3(signature = (provider, task, encrypted, output, timeout_s, on_progress=None, waiter=None))]
    #[allow(
        clippy::too_many_arguments,
        reason = "callback and waiter belong to every wait"
    )]
    fn decrypt_model(
        &self,
        py: Python<'_>,
        provider: String,
        task: String,
        encrypted: PathBuf,
        output: PathBuf,
        timeout_s: f64,
        on_progress: Option<Py<PyAny>>,
        waiter: Waiter,
    ) -> Answer {
        let fine_tuning = self.0.clone();
        let call = Call::new(waiter);
        let news = call.callback(on_progress);
        call.run(py, async move {
            let (provider, task) = (provider_address(&provider)?, task_id(&task)?);
            let timeout = seconds("timeout_seconds", timeout_s)?;
            fine_tuning
                .decrypt_model(provider, task, &encrypted, &output, timeout, |progress| {
                    news.tell(progress);
                })
                .await
        })
    }

    /// The manifest as a dictionary, if the archive has one.
    #[pyo3(signature = (zip_path, folder, waiter=None))]
    fn unpack_adapter(
        &self,
        py: Python<'_>,
        zip_path: PathBuf,
        folder: PathBuf,
        waiter: Waiter,
    ) -> Answer {
        let fine_tuning = self.0.clone();
        Call::new(waiter).run(py, async move {
            let manifest = fine_tuning.unpack_adapter(&zip_path, &folder).await?;
            Ok(manifest
                .map(|manifest| serde_json::to_value(manifest).expect("a manifest is plain data")))
        })
    }
}
