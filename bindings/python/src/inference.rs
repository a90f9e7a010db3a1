//! `broker.inference`, and adapters under `lora`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use tokio::sync::Mutex;
use zerog_sdk::inference::lora::DeployOptions;
use zerog_sdk::{Error, TaskId};

use crate::call::{Answer, Call, Callback, Waiter};
use crate::convert::{ToPython, address, parse_json, task_id};
use crate::fine_tuning::seconds;

fn provider_address(text: &str) -> zerog_sdk::Result<zerog_sdk::Address> {
    address(text, "provider_address")
}

#[pyclass(frozen)]
pub(crate) struct Inference(pub(crate) zerog_sdk::inference::Inference);

#[pymethods]
impl Inference {
    fn lora(&self) -> Lora {
        Lora(self.0.lora.clone())
    }

    #[pyo3(signature = (offset, limit, include_unacknowledged, waiter=None))]
    fn list_service(
        &self,
        py: Python<'_>,
        offset: usize,
        limit: usize,
        include_unacknowledged: bool,
        waiter: Waiter,
    ) -> Answer {
        let inference = self.0.clone();
        Call::new(waiter).run(py, async move {
            inference
                .list_service(offset, limit, include_unacknowledged)
                .await
        })
    }

    #[pyo3(signature = (provider, waiter=None))]
    fn get_service(&self, py: Python<'_>, provider: String, waiter: Waiter) -> Answer {
        let inference = self.0.clone();
        Call::new(waiter).run(py, async move {
            inference.get_service(provider_address(&provider)?).await
        })
    }

    #[pyo3(signature = (provider, waiter=None))]
    fn get_service_metadata(&self, py: Python<'_>, provider: String, waiter: Waiter) -> Answer {
        let inference = self.0.clone();
        Call::new(waiter).run(py, async move {
            inference
                .get_service_metadata(provider_address(&provider)?)
                .await
        })
    }

    #[pyo3(signature = (provider, waiter=None))]
    fn get_provider_models(&self, py: Python<'_>, provider: String, waiter: Waiter) -> Answer {
        let inference = self.0.clone();
        Call::new(waiter).run(py, async move {
            inference
                .get_provider_models(provider_address(&provider)?)
                .await
        })
    }

    #[pyo3(signature = (provider, waiter=None))]
    fn get_account(&self, py: Python<'_>, provider: String, waiter: Waiter) -> Answer {
        let inference = self.0.clone();
        Call::new(waiter).run(py, async move {
            inference.get_account(provider_address(&provider)?).await
        })
    }

    #[pyo3(signature = (provider, waiter=None))]
    fn get_account_with_detail(&self, py: Python<'_>, provider: String, waiter: Waiter) -> Answer {
        let inference = self.0.clone();
        Call::new(waiter).run(py, async move {
            inference
                .get_account_with_detail(provider_address(&provider)?)
                .await
        })
    }

    #[pyo3(signature = (waiter=None))]
    fn get_locked_time(&self, py: Python<'_>, waiter: Waiter) -> Answer {
        let inference = self.0.clone();
        Call::new(waiter).run(py, async move { inference.get_locked_time().await })
    }

    #[pyo3(signature = (provider, on_progress=None, waiter=None))]
    fn acknowledge_provider_signer(
        &self,
        py: Python<'_>,
        provider: String,
        on_progress: Option<Py<PyAny>>,
        waiter: Waiter,
    ) -> Answer {
        let inference = self.0.clone();
        let call = Call::new(waiter);
        let news = call.callback(on_progress);
        call.run(py, async move {
            inference
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
        let inference = self.0.clone();
        Call::new(waiter).run(py, async move {
            inference
                .revoke_tee_signer_acknowledgement(provider_address(&provider)?)
                .await
        })
    }

    #[pyo3(signature = (provider, waiter=None))]
    fn get_request_headers(&self, py: Python<'_>, provider: String, waiter: Waiter) -> Answer {
        let inference = self.0.clone();
        Call::new(waiter).run(py, async move {
            inference
                .get_request_headers(provider_address(&provider)?)
                .await
        })
    }

    #[pyo3(signature = (provider, waiter=None))]
    fn prepare_account(&self, py: Python<'_>, provider: String, waiter: Waiter) -> Answer {
        let inference = self.0.clone();
        Call::new(waiter).run(py, async move {
            inference
                .prepare_account(provider_address(&provider)?)
                .await
        })
    }

    #[pyo3(signature = (provider, token_id, duration_ms, waiter=None))]
    fn create_api_key(
        &self,
        py: Python<'_>,
        provider: String,
        token_id: Option<u8>,
        duration_ms: Option<u64>,
        waiter: Waiter,
    ) -> Answer {
        let inference = self.0.clone();
        Call::new(waiter).run(py, async move {
            let duration = duration_ms.map(Duration::from_millis);
            inference
                .create_api_key(provider_address(&provider)?, token_id, duration)
                .await
        })
    }

    #[pyo3(signature = (provider, token_ids, waiter=None))]
    fn revoke_tokens(
        &self,
        py: Python<'_>,
        provider: String,
        token_ids: Vec<u8>,
        waiter: Waiter,
    ) -> Answer {
        let inference = self.0.clone();
        Call::new(waiter).run(py, async move {
            let provider = provider_address(&provider)?;
            match token_ids.as_slice() {
                [token_id] => inference.revoke_token(provider, *token_id).await,
                token_ids => inference.revoke_tokens(provider, token_ids).await,
            }
        })
    }

    #[pyo3(signature = (provider, waiter=None))]
    fn revoke_all_tokens(&self, py: Python<'_>, provider: String, waiter: Waiter) -> Answer {
        let inference = self.0.clone();
        Call::new(waiter).run(py, async move {
            inference
                .revoke_all_tokens(provider_address(&provider)?)
                .await
        })
    }

    #[pyo3(signature = (provider, chat_id, request_body, response_body, waiter=None))]
    fn process_response(
        &self,
        py: Python<'_>,
        provider: String,
        chat_id: String,
        request_body: Vec<u8>,
        response_body: Vec<u8>,
        waiter: Waiter,
    ) -> Answer {
        let inference = self.0.clone();
        Call::new(waiter).run(py, async move {
            let provider = provider_address(&provider)?;
            inference
                .process_response(provider, &chat_id, &request_body, &response_body)
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
        let inference = self.0.clone();
        let call = Call::new(waiter);
        let log = call.callback(on_log);
        call.run(py, async move {
            let provider = provider_address(&provider)?;
            inference
                .verify_service(provider, output_dir.as_deref(), |step| {
                    log.tell(step.clone());
                })
                .await
        })
    }
}

#[pyclass(frozen)]
pub(crate) struct Lora(zerog_sdk::inference::lora::Lora);

/// How to deploy, as Python says it.
type DeployArguments = (bool, f64, Option<String>);

fn deploy_options(arguments: DeployArguments) -> zerog_sdk::Result<DeployOptions> {
    let (wait, timeout_s, trainer) = arguments;
    let trainer = trainer.map(|text| address(&text, "fine_tuning_provider"));
    Ok(DeployOptions {
        wait,
        timeout: seconds("timeout_seconds", timeout_s)?,
        fine_tuning_provider: trainer.transpose()?,
    })
}

#[pymethods]
impl Lora {
    #[pyo3(signature = (provider, waiter=None))]
    fn list_adapters(&self, py: Python<'_>, provider: String, waiter: Waiter) -> Answer {
        let lora = self.0.clone();
        Call::new(waiter).run(py, async move {
            lora.list_adapters(provider_address(&provider)?).await
        })
    }

    #[pyo3(signature = (provider, name, waiter=None))]
    fn get_adapter_status(
        &self,
        py: Python<'_>,
        provider: String,
        name: String,
        waiter: Waiter,
    ) -> Answer {
        let lora = self.0.clone();
        Call::new(waiter).run(py, async move {
            lora.get_adapter_status(provider_address(&provider)?, &name)
                .await
        })
    }

    #[pyo3(signature = (provider, base_model, task, waiter=None))]
    fn resolve_adapter_name(
        &self,
        py: Python<'_>,
        provider: String,
        base_model: String,
        task: String,
        waiter: Waiter,
    ) -> Answer {
        let lora = self.0.clone();
        Call::new(waiter).run(py, async move {
            let (provider, task) = (provider_address(&provider)?, task_id(&task)?);
            lora.resolve_adapter_name(provider, &base_model, task).await
        })
    }

    #[pyo3(signature = (provider, base_model, task, options, on_progress=None, waiter=None))]
    #[allow(
        clippy::too_many_arguments,
        reason = "callback and waiter belong to every wait"
    )]
    fn deploy_adapter(
        &self,
        py: Python<'_>,
        provider: String,
        base_model: String,
        task: String,
        options: DeployArguments,
        on_progress: Option<Py<PyAny>>,
        waiter: Waiter,
    ) -> Answer {
        let lora = self.0.clone();
        let call = Call::new(waiter);
        let news = call.callback(on_progress);
        call.run(py, async move {
            let (provider, task): (_, TaskId) = (provider_address(&provider)?, task_id(&task)?);
            let options = deploy_options(options)?;
            lora.deploy_adapter(provider, &base_model, task, &options, |progress| {
                news.tell(progress);
            })
            .await
        })
    }

    #[pyo3(signature = (provider, name, options, on_progress=None, waiter=None))]
    fn deploy_adapter_by_name(
        &self,
        py: Python<'_>,
        provider: String,
        name: String,
        options: DeployArguments,
        on_progress: Option<Py<PyAny>>,
        waiter: Waiter,
    ) -> Answer {
        let lora = self.0.clone();
        let call = Call::new(waiter);
        let news = call.callback(on_progress);
        call.run(py, async move {
            let provider = provider_address(&provider)?;
            let options = deploy_options(options)?;
            lora.deploy_adapter_by_name(provider, &name, &options, |progress| {
                news.tell(progress);
            })
            .await
        })
    }

    /// `body` is JSON text.
    #[pyo3(signature = (provider, body, on_progress=None, waiter=None))]
    fn chat_completion(
        &self,
        py: Python<'_>,
        provider: String,
        body: String,
        on_progress: Option<Py<PyAny>>,
        waiter: Waiter,
    ) -> Answer {
        let lora = self.0.clone();
        let call = Call::new(waiter);
        let news = call.callback(on_progress);
        call.run(py, async move {
            let (provider, body) = (provider_address(&provider)?, parse_json(&body, "body")?);
            lora.chat_completion(provider, body, |progress| news.tell(progress))
                .await
        })
    }

    /// `body` is JSON text.
    #[pyo3(signature = (provider, body, on_progress=None, waiter=None))]
    fn chat_stream(
        &self,
        py: Python<'_>,
        provider: String,
        body: String,
        on_progress: Option<Py<PyAny>>,
        waiter: Waiter,
    ) -> Answer {
        let lora = self.0.clone();
        let call = Call::new(waiter);
        let news: Callback = call.callback(on_progress);
        call.run(py, async move {
            let (provider, body) = (provider_address(&provider)?, parse_json(&body, "body")?);
            let stream = lora
                .chat_stream(provider, body, |progress| news.tell(progress))
                .await?;
            Ok(Opened(Arc::new(Mutex::new(Some(stream)))))
        })
    }
}

/// An answer on its way.
#[pyclass(frozen)]
pub(crate) struct ChatStream(Arc<Mutex<Option<zerog_sdk::inference::stream::ChatStream>>>);

/// What the Python object shares with the call that made it.
struct Opened(Arc<Mutex<Option<zerog_sdk::inference::stream::ChatStream>>>);

impl ToPython for Opened {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(Bound::new(py, ChatStream(Arc::clone(&self.0)))?.into_any())
    }
}

fn is_over() -> Error {
    Error::Argument {
        name: "stream",
        reason: "the answer was taken already".into(),
    }
}

#[pymethods]
impl ChatStream {
    /// The next piece of text, or none at the end.
    #[pyo3(signature = (waiter=None))]
    fn next(&self, py: Python<'_>, waiter: Waiter) -> Answer {
        let shared = Arc::clone(&self.0);
        Call::new(waiter).run(py, async move {
            let mut stream = shared.lock().await;
            stream.as_mut().ok_or_else(is_over)?.next().await
        })
    }

    /// Reads to the end and gives the whole answer.
    #[pyo3(signature = (waiter=None))]
    fn finish(&self, py: Python<'_>, waiter: Waiter) -> Answer {
        let shared = Arc::clone(&self.0);
        Call::new(waiter).run(py, async move {
            let stream = shared.lock().await.take().ok_or_else(is_over)?;
            stream.finish().await
        })
    }
}
