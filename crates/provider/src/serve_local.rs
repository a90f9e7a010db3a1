//! The engine without a chain: a model folder and adapter folders behind OpenAI's routes on this machine.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::net::TcpListener;
use zerog_inference::{
    EngineConfig, EngineHandle, LoadError, PackageSource, Served, StartError, Trust, engine, router,
};
use zerog_model::{BaseModel, Device, ModelError, Placement};
use zerog_tokenization::{Tokenizer, TokenizerError};

use crate::config::Quantization;

/// What is served.
#[derive(Debug, Clone)]
pub struct LocalOptions {
    /// Folder of the base model.
    pub model: PathBuf,
    /// Name of the base model; its folder's name by default.
    pub name: Option<String>,
    /// Adapters: name and folder.
    pub adapters: Vec<(String, PathBuf)>,
    /// Whether weights are rounded when they are loaded.
    pub quantize: Option<Quantization>,
    /// Where the engine computes.
    pub device: Device,
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Most answers that are computed together.
    pub max_running: usize,
    /// Most requests that wait.
    pub max_waiting: usize,
    /// Most tokens of prompt and answer together.
    pub max_context_tokens: usize,
}

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalError {
    /// The base model cannot be loaded.
    #[error("the base model in {} cannot be loaded: {source}", folder.display())]
    Model {
        /// Its folder.
        folder: PathBuf,
        /// What is wrong.
        source: ModelError,
    },
    /// The tokenizer cannot be loaded.
    #[error("the tokenizer of the base model cannot be loaded: {0}")]
    Tokenizer(#[from] TokenizerError),
    /// An adapter is refused.
    #[error("the adapter {name} in {} is refused: {source}", folder.display())]
    Adapter {
        /// Its name.
        name: String,
        /// Its folder.
        folder: PathBuf,
        /// The reason.
        source: LoadError,
    },
    /// Two things have one name.
    #[error("the name {0} is given twice")]
    Name(String),
    /// The weights cannot be put on the device.
    #[error("--device: {0}")]
    Device(ModelError),
    /// The engine cannot be started where the weights are.
    #[error("{0}; tokens of --max-context times --max-running are cached")]
    Engine(#[from] StartError),
    /// The address cannot be listened on.
    #[error("cannot serve on {address}: {source}; choose another port with --port")]
    Listen {
        /// As asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A local server that is ready.
#[derive(Debug)]
pub struct LocalServer {
    engine: EngineHandle,
    names: Vec<String>,
    listener: TcpListener,
    address: SocketAddr,
}

impl LocalServer {
    /// Loads everything and listens. An adapter that would do nothing is refused here, not discovered later.
    ///
    /// # Errors
    /// [`LocalError`].
    pub async fn start(options: LocalOptions) -> Result<Self, LocalError> {
        let listen_error = |source| LocalError::Listen {
            address: options.listen,
            source,
        };
        let listener = TcpListener::bind(options.listen)
            .await
            .map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        let (folder, quantize) = (options.model.clone(), options.quantize);
        let device = options.device;
        let loaded = tokio::task::spawn_blocking(move || {
            let model = BaseModel::load(&folder).map_err(|source| LocalError::Model {
                folder: folder.clone(),
                source,
            })?;
            let model = match quantize {
                Some(Quantization::Int8) => model.quantized(),
                None => model,
            };
            let tokenizer = Tokenizer::from_dir(&folder)?;
            let placement = Placement::new(&model, device).map_err(LocalError::Device)?;
            Ok::<_, LocalError>((model, placement, tokenizer))
        })
        .await;
        let (model, placement, tokenizer) =
            loaded.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        let sizes = EngineConfig {
            max_running: options.max_running,
            max_waiting: options.max_waiting,
            max_context_tokens: options.max_context_tokens,
            max_cached_tokens: options.max_context_tokens * options.max_running.max(1),
            max_adapters: options.adapters.len().max(1),
            ..EngineConfig::default()
        };
        let engine = engine::start_on(&placement, model, Arc::new(tokenizer), sizes)?;
        let base_name = options.name.unwrap_or_else(|| folder_name(&options.model));
        let mut names = vec![base_name];
        for (name, folder) in options.adapters {
            if names.contains(&name) {
                return Err(LocalError::Name(name));
            }
            let trust = Trust::FirstLoad {
                accepts_unrecorded: true,
            };
            let report = engine
                .load_package(&name, PackageSource::Folder(folder.clone()), trust)
                .await
                .map_err(|source| LocalError::Adapter {
                    name: name.clone(),
                    folder,
                    source,
                })?;
            match report.canary {
                Some(canary) => tracing::info!(
                    adapter.name = name,
                    canary.largest_error = canary.largest_error,
                    canary.largest_effect = canary.largest_effect,
                    "adapter loaded; its reference logits are reproduced"
                ),
                None => tracing::warn!(
                    adapter.name = name,
                    "adapter loaded; it brings no reference logits (canary.json), so only its effect was checked"
                ),
            }
            names.push(name);
        }
        Ok(Self {
            engine,
            names,
            listener,
            address,
        })
    }

    /// Address with the real port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Names that requests can ask for, the base model's first.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Serves until `stop` ends.
    ///
    /// # Errors
    /// What the system says when the socket fails.
    pub async fn serve(
        self,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> std::io::Result<()> {
        let created_s = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |elapsed| elapsed.as_secs());
        let served = Served {
            engine: self.engine,
            base_names: self.names.into_iter().take(1).collect(),
            created_s,
        };
        axum::serve(self.listener, router(served))
            .with_graceful_shutdown(stop)
            .await
    }
}

fn folder_name(folder: &std::path::Path) -> String {
    let absolute = std::fs::canonicalize(folder).unwrap_or_else(|_| folder.to_path_buf());
    absolute.file_name().map_or_else(
        || "model".into(),
        |name| name.to_string_lossy().into_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerog_model::DeviceError;

    /// Without code for the device, or without the driver. A machine with a GPU has both.
    #[tokio::test]
    async fn a_device_that_cannot_be_used_is_an_error_that_says_what_to_do() {
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/tiny-qwen");
        let started = LocalServer::start(LocalOptions {
            model: fixture.into(),
            name: None,
            adapters: Vec::new(),
            quantize: None,
            device: Device::Cuda(0),
            listen: ([127, 0, 0, 1], 0).into(),
            max_running: 1,
            max_waiting: 1,
            max_context_tokens: 64,
        })
        .await;
        let is_built = cfg!(feature = "cuda");
        let Err(error) = started else {
            assert!(is_built);
            return;
        };
        let text = error.to_string();
        match error {
            LocalError::Device(ModelError::Device(DeviceError::NotBuilt { .. })) => {
                assert!(!is_built && text.contains("--features cuda"), "{text}");
            }
            LocalError::Device(ModelError::Device(
                DeviceError::LibraryMissing { .. } | DeviceError::NoDevice { .. },
            )) => assert!(is_built && text.contains("\"cpu\""), "{text}"),
            _ => panic!("{text}"),
        }
    }
}
