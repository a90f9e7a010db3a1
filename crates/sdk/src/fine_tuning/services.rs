//! Discovery: providers and base models.

use std::path::Path;

use alloy_primitives::{Address, B256};
use futures::future::join_all;
use serde::Serialize;
use zerog_chain::fine_tuning::Service;
use zerog_protocol::fine_tuning_api::ModelView;
use zerog_protocol::models::{self, PredefinedModel};

use super::FineTuning;
use crate::error::{Error, Result, ServiceKind};
use crate::provider_client::{Answer, MAX_FILE_BYTES, join, parse_json};

/// One line of a model list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedModel {
    /// Name as typed in `--model`.
    pub name: String,
    /// Hash that tasks carry, where it is known.
    pub hash: Option<B256>,
    /// What it is.
    pub description: String,
    /// Where its tokenizer comes from.
    pub tokenizer: String,
    /// Who offers it; none for predefined models.
    pub provider: Option<Address>,
}

/// What is known of a base model: constants of the protocol, the provider's entry, or both.
#[derive(Debug, Clone)]
pub(crate) struct ModelFacts {
    pub(crate) name: String,
    pub(crate) hash: B256,
    pub(crate) predefined: Option<&'static PredefinedModel>,
    pub(crate) view: Option<ModelView>,
}

impl FineTuning {
    /// Every fine-tuning service; those whose signer the network's owner has not acknowledged only on demand.
    ///
    /// ```
    /// # use zerog_sdk::{Broker, BrokerOptions};
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let devnet = zerog_devnet::Devnet::start(Default::default()).await?;
    /// // Without a wallet one can look.
    /// let broker = Broker::connect(BrokerOptions::custom(devnet.network())).await?;
    /// for service in broker.fine_tuning.list_service(false).await? {
    ///     println!("{} {} wei per token, {} GPUs", service.url, service.price_per_token, service.quota.gpu_count);
    /// }
    /// # assert_eq!(broker.fine_tuning.list_service(false).await?.len(), 1);
    /// # devnet.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// A failed read.
    pub async fn list_service(&self, include_unacknowledged: bool) -> Result<Vec<Service>> {
        let mut services = self.context.chain.fine_tuning().services().await?;
        services.retain(|service| include_unacknowledged || service.tee_signer_acknowledged);
        Ok(services)
    }

    /// One provider's service.
    ///
    /// # Errors
    /// [`Error::ServiceMissing`] or a failed read.
    pub async fn get_service(&self, provider: Address) -> Result<Service> {
        self.context
            .chain
            .fine_tuning()
            .service(provider)
            .await?
            .ok_or(Error::ServiceMissing {
                provider,
                service: ServiceKind::FineTuning,
            })
    }

    /// Base URL of a provider, without a slash at the end.
    ///
    /// # Errors
    /// As [`FineTuning::get_service`].
    pub async fn get_provider_url(&self, provider: Address) -> Result<String> {
        Ok(self
            .get_service(provider)
            .await?
            .url
            .trim_end_matches('/')
            .to_owned())
    }

    /// Predefined models of this network, and the customised ones of all providers that answer.
    ///
    /// # Errors
    /// A failed read of the chain; unreachable providers are left out.
    pub async fn list_model(&self) -> Result<(Vec<ListedModel>, Vec<ListedModel>)> {
        let chain_id = self.context.chain.chain_id();
        let predefined = models::PREDEFINED
            .iter()
            .filter(|model| model.is_listed_on(chain_id))
            .map(|model| ListedModel {
                name: model.name.to_owned(),
                hash: Some(model.hash),
                description: model.description.to_owned(),
                tokenizer: model.tokenizer.to_owned(),
                provider: None,
            });
        let services = self.context.chain.fine_tuning().services().await?;
        let lists = join_all(services.iter().map(|service| self.provider_models(service))).await;
        Ok((predefined.collect(), lists.into_iter().flatten().collect()))
    }

    async fn provider_models(&self, service: &Service) -> Vec<ListedModel> {
        let url = join(&service.url, "/v1/model");
        // Some brokers write an empty list as null.
        let views: Vec<ModelView> = match self
            .context
            .http
            .get_json::<Option<Vec<ModelView>>>("list models", &url, None)
            .await
        {
            Ok(views) => views.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(provider = %service.provider, %error, "the provider's models are left out");
                return Vec::new();
            }
        };
        views
            .into_iter()
            .map(|view| ListedModel {
                hash: view.hash.parse().ok(),
                name: view.name,
                description: view.description,
                tokenizer: view.tokenizer,
                provider: Some(service.provider),
            })
            .collect()
    }

    /// A provider's entry of a model, by name or hash.
    ///
    /// # Errors
    /// [`Error::UnknownModel`] when the provider does not have it.
    pub async fn get_model(&self, provider: Address, name_or_hash: &str) -> Result<ModelView> {
        let url = join(
            &self.get_provider_url(provider).await?,
            &format!("/v1/model/{}", path_segment(name_or_hash)),
        );
        match self.context.http.get_json("get model", &url, None).await {
            // The original answers 400 for an unknown model, ours 404.
            Err(Error::ProviderRefused {
                status: 400 | 404, ..
            }) => Err(Error::UnknownModel {
                model: name_or_hash.to_owned(),
                known: self.known_models(),
            }),
            other => other,
        }
    }

    /// Constants and, if a provider is given, its entry of a model.
    pub(crate) async fn model_facts(
        &self,
        provider: Option<Address>,
        name: &str,
    ) -> Result<ModelFacts> {
        let predefined = models::find(name);
        let view = match provider {
            Some(provider) => match self.get_model(provider, name).await {
                Ok(view) => Some(view),
                // Other providers do not describe predefined models.
                Err(Error::UnknownModel { .. }) if predefined.is_some() => None,
                Err(error) => return Err(error),
            },
            None => None,
        };
        let hash = predefined
            .map(|model| model.hash)
            .or_else(|| view.as_ref().and_then(|view| view.hash.parse().ok()))
            .ok_or_else(|| Error::UnknownModel {
                model: name.to_owned(),
                known: self.known_models(),
            })?;
        Ok(ModelFacts {
            name: name.to_owned(),
            hash,
            predefined,
            view,
        })
    }

    /// The hash that a task for this model carries: predefined ones are known, others are asked for.
    pub(crate) async fn model_hash(&self, provider: Address, name: &str) -> Result<B256> {
        match models::find(name) {
            Some(model) => Ok(model.hash),
            None => Ok(self.model_facts(Some(provider), name).await?.hash),
        }
    }

    fn known_models(&self) -> Vec<String> {
        let chain_id = self.context.chain.chain_id();
        let listed = models::PREDEFINED
            .iter()
            .filter(|model| model.is_listed_on(chain_id));
        listed.map(|model| model.name.to_owned()).collect()
    }

    /// Writes a model's usage package: the zip as it is, or its README when `output` ends in `.md`. A folder gets
    /// `<model>.zip`. Returns the file written.
    ///
    /// # Errors
    /// [`Error::UnknownModel`], an unreachable provider, or an unwritable path.
    pub async fn model_usage(
        &self,
        provider: Address,
        model: &str,
        output: &Path,
    ) -> Result<std::path::PathBuf> {
        let base = self.get_provider_url(provider).await?;
        let url = join(&base, &format!("/v1/model/desc/{}", path_segment(model)));
        let answer: Answer = match self
            .context
            .http
            .get("model usage", &url, None, MAX_FILE_BYTES)
            .await
        {
            Err(Error::ProviderRefused {
                status: 400 | 404, ..
            }) => {
                return Err(Error::UnknownModel {
                    model: model.to_owned(),
                    known: self.known_models(),
                });
            }
            other => other?,
        };
        let output = if output.is_dir() {
            output.join(format!("{model}.zip"))
        } else {
            output.to_path_buf()
        };
        let wants_markdown = output
            .extension()
            .is_some_and(|extension| extension.eq_ignore_ascii_case("md"));
        let is_zip = answer.body.starts_with(b"PK");
        let content = if wants_markdown && is_zip {
            readme(answer.body)?
        } else {
            answer.body
        };
        write_file(&output, &content)?;
        Ok(output)
    }

    /// Tasks of all users that wait or run at the provider.
    ///
    /// # Errors
    /// An unreachable provider.
    pub async fn get_pending_task_counter(&self, provider: Address) -> Result<u64> {
        let url = join(&self.get_provider_url(provider).await?, "/v1/task/pending");
        let answer = self
            .context
            .http
            .get("count pending tasks", &url, None, 4096)
            .await?;
        parse_json("count pending tasks", &answer.body)
    }

    /// The provider's evidence as served: the raw body of `/v1/quote`.
    ///
    /// # Errors
    /// An unreachable provider.
    pub async fn get_quote(&self, provider: Address) -> Result<String> {
        let url = self.get_provider_url(provider).await?;
        let answer = self.context.fetch_quote(&url, "/v1/quote").await?;
        Ok(String::from_utf8_lossy(&answer.body).into_owned())
    }
}

/// The README of a usage package.
fn readme(package: Vec<u8>) -> Result<Vec<u8>> {
    use std::io::Read;
    let malformed = |reason: String| Error::ProviderAnswer {
        operation: "model usage",
        reason,
    };
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(package))
        .map_err(|error| malformed(error.to_string()))?;
    let name = archive
        .file_names()
        .filter_map(std::result::Result::ok)
        .map(std::borrow::Cow::into_owned)
        .filter(|name| name.to_ascii_lowercase().ends_with("readme.md"))
        .min_by_key(|name| name.len())
        .ok_or_else(|| malformed("the package holds no README.md".into()))?;
    let member = archive
        .by_name(&name)
        .map_err(|error| malformed(error.to_string()))?;
    let mut text = Vec::new();
    member
        .take(MAX_FILE_BYTES as u64)
        .read_to_end(&mut text)
        .map_err(|error| malformed(error.to_string()))?;
    Ok(text)
}

/// Writes a whole file through a temporary one, so that a failure leaves nothing behind.
///
/// # Errors
/// [`Error::File`] or [`Error::DiskFull`].
pub fn write_file(path: &Path, content: &[u8]) -> Result<()> {
    use std::io::Write;
    let failed = |error| Error::file("write", path, error);
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(failed)?;
    let mut builder = tempfile::Builder::new();
    // What is written here is public; the user's mask decides who may read it.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut temporary = builder.tempfile_in(folder).map_err(failed)?;
    temporary.write_all(content).map_err(failed)?;
    temporary.as_file().sync_all().map_err(failed)?;
    temporary
        .persist(path)
        .map_err(|error| failed(error.error))?;
    Ok(())
}

/// A value as one segment of a URL path.
pub(crate) fn path_segment(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_one_path_segment() {
        assert_eq!(
            path_segment("Qwen/Qwen2.5-0.5B-Instruct"),
            "Qwen%2FQwen2.5-0.5B-Instruct"
        );
        assert_eq!(path_segment("../a b?"), "..%2Fa%20b%3F");
    }

    #[test]
    fn whole_files_replace_and_leave_no_temporary() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/usage.md");
        write_file(&path, b"one").unwrap();
        write_file(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1
        );
    }
}
