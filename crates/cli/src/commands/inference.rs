//! `inference`: providers, keys, verification.

use std::time::Duration;

use zerog_sdk::amount::format_0g_fixed;
use zerog_sdk::{Address, Progress};

use super::fine_tuning::{acknowledged_text, verdict};
use super::ledger::done;
use super::serve;
use crate::app::{App, Wallet};
use crate::args::Inference;
use crate::exit_code::{Failure, GENERAL, OK, Outcome};
use crate::output::{Table, wrapped};
use crate::view::{
    AcknowledgementOutput, InferenceServiceDetail, InferenceServiceOutput, ServedModelOutput,
};

const NO_PROVIDERS: &str = "There are no inference providers on this network (--include-invalid shows unacknowledged ones).";

pub(super) async fn run(app: &App, command: Inference) -> Outcome<u8> {
    match command {
        Inference::ListProviders { include_invalid } => {
            list_providers(app, include_invalid).await?
        }
        Inference::ListProvidersDetail { include_invalid } => {
            list_providers_detail(app, include_invalid).await?;
        }
        Inference::Revoke { provider } => {
            let broker = app.broker(Wallet::Needed).await?;
            let receipt = broker
                .inference
                .revoke_tee_signer_acknowledgement(provider)
                .await?;
            let text = "Provider TEE signer acknowledgement revoked successfully!";
            done(app, text, &receipt);
        }
        Inference::DownloadReport { provider, output } => {
            let broker = app.broker(Wallet::NotNeeded).await?;
            let report = broker.inference.get_quote(provider).await?;
            zerog_sdk::write_file(&output, report.as_bytes())?;
            app.output
                .line(format!("Report saved to {}", output.display()));
            app.output.note(format!(
                "Nothing in it was checked: `0g-compute-cli inference verify --provider {provider}` does that."
            ));
            app.output.json(&serde_json::json!({ "path": output }));
        }
        Inference::GetModels { provider } => get_models(app, provider).await?,
        Inference::AcknowledgeProvider { provider } => {
            let broker = app.broker(Wallet::Needed).await?;
            let mut progress = app.output.progress();
            let show = |news: Progress| progress.show(&news);
            let receipt = broker
                .inference
                .acknowledge_provider_signer(provider, show)
                .await?;
            app.output.line(acknowledged_text(receipt.is_some()));
            app.output.json(&AcknowledgementOutput::from(&receipt));
        }
        Inference::GetSecret {
            provider,
            token_id,
            duration,
        } => {
            let broker = app.broker(Wallet::Needed).await?;
            let lifetime = (duration > 0).then(|| Duration::from_millis(duration));
            let key = broker
                .inference
                .create_api_key(provider, token_id, lifetime)
                .await?;
            app.output.note(format!(
                "Token id {}; revoke it with `0g-compute-cli inference revoke-token`. Keep the key: it is stored nowhere.",
                key.token_id
            ));
            app.output.line(&key.raw_token);
            app.output.json(&key);
        }
        Inference::RevokeToken { provider, token_id } => {
            let broker = app.broker(Wallet::Needed).await?;
            let receipt = broker.inference.revoke_token(provider, token_id).await?;
            done(app, &format!("Revoked token {token_id}"), &receipt);
        }
        Inference::RevokeAllTokens { provider } => {
            let broker = app.broker(Wallet::Needed).await?;
            let receipt = broker.inference.revoke_all_tokens(provider).await?;
            done(app, "Revoked all tokens", &receipt);
        }
        Inference::Verify(arguments) => {
            let broker = app.broker(Wallet::NotNeeded).await?;
            let output_dir = Some(arguments.output_dir.as_path());
            let on_log = |step: &zerog_sdk::VerificationStep| app.output.line(&step.message);
            let report = broker
                .inference
                .verify_service(arguments.provider, output_dir, on_log)
                .await?;
            return Ok(verdict(app, &arguments, &report));
        }
        Inference::Serve(arguments) => serve::run(app, &arguments).await?,
        Inference::ServeLocal { arguments } => return serve_local(&arguments),
    }
    Ok(OK)
}

/// Starts the provider's program, which has the engine: this one links no tensor code.
fn serve_local(arguments: &[std::ffi::OsString]) -> Outcome<u8> {
    const PROGRAM: &str = "0g-compute-provider";
    let beside = std::env::current_exe()
        .ok()
        .map(|path| path.with_file_name(PROGRAM))
        .filter(|path| path.is_file());
    let program = beside.unwrap_or_else(|| PROGRAM.into());
    let status = std::process::Command::new(&program)
        .arg("serve-local")
        .args(arguments)
        .status();
    match status {
        Ok(status) => Ok(status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(GENERAL)),
        Err(error) => Err(Failure::usage(format!(
            "the local server is part of {PROGRAM}, which cannot be started ({error}); install it beside this program or \
             in the PATH, then run: {PROGRAM} serve-local --model DIR --adapter NAME=DIR --port N"
        ))),
    }
}

async fn list_providers(app: &App, include_invalid: bool) -> Outcome {
    let broker = app.broker(Wallet::NotNeeded).await?;
    let services = broker
        .inference
        .list_service(0, usize::MAX, include_invalid)
        .await?;
    if services.is_empty() {
        app.output.note(NO_PROVIDERS);
    } else {
        let mut table = Table::new(&[50, 50]);
        for (index, service) in services.iter().enumerate() {
            table.highlighted_row([
                format!("Provider {}", index + 1),
                service.provider.to_string(),
            ]);
            table.row(["Model".into(), service.model.clone()]);
            table.row([
                "Input Price Per Token (0G)".into(),
                format_0g_fixed(service.input_price),
            ]);
            table.row([
                "Output Price Per Token (0G)".into(),
                format_0g_fixed(service.output_price),
            ]);
            table.row(["Verifiability".into(), service.verifiability.clone()]);
        }
        app.output.table(&table);
    }
    let services: Vec<_> = services.iter().map(InferenceServiceOutput::from).collect();
    app.output.json(&services);
    Ok(())
}

async fn list_providers_detail(app: &App, include_invalid: bool) -> Outcome {
    let broker = app.broker(Wallet::NotNeeded).await?;
    let services = broker
        .inference
        .list_service(0, usize::MAX, include_invalid)
        .await?;
    let questions = services
        .iter()
        .map(|service| broker.inference.get_provider_models(service.provider));
    let answers = futures::future::join_all(questions).await;
    let mut table = Table::new(&[50, 60]);
    let mut details = Vec::new();
    for (index, (service, answer)) in services.iter().zip(answers).enumerate() {
        table.highlighted_row([
            format!("Provider {}", index + 1),
            service.provider.to_string(),
        ]);
        let yes = |is_so: bool| if is_so { "✓" } else { "✗" }.to_owned();
        let answers = match &answer {
            Ok(models) => format!("✓ ({} models)", models.len()),
            Err(error) => format!("✗ {error}"),
        };
        for (field, value) in [
            ("Model", service.model.clone()),
            (
                "Input Price Per Token (0G)",
                format_0g_fixed(service.input_price),
            ),
            (
                "Output Price Per Token (0G)",
                format_0g_fixed(service.output_price),
            ),
            ("Verifiability", service.verifiability.clone()),
            ("URL", service.url.clone()),
            ("TEE Signer", service.tee_signer.to_string()),
            (
                "TEE Signer Acknowledged",
                yes(service.tee_signer_acknowledged),
            ),
            ("Answers", answers),
        ] {
            table.row([field.to_owned(), wrapped(&value, 58)]);
        }
        details.push(InferenceServiceDetail {
            service: InferenceServiceOutput::from(service),
            is_reachable: answer.is_ok(),
            error: answer.err().map(|error| error.to_string()),
        });
    }
    if services.is_empty() {
        app.output.note(NO_PROVIDERS);
    } else {
        app.output.table(&table);
    }
    app.output.json(&details);
    Ok(())
}

async fn get_models(app: &App, provider: Address) -> Outcome {
    let broker = app.broker(Wallet::NotNeeded).await?;
    let models = broker.inference.get_provider_models(provider).await?;
    let mut table = Table::with_head(&[("Model", 60)]);
    for model in &models {
        table.row([model
            .get("id")
            .and_then(serde_json::Value::as_str)
            .unwrap_or_default()
            .to_owned()]);
    }
    app.output.table(&table);
    let models: Vec<_> = models.iter().map(ServedModelOutput::from).collect();
    app.output.json(&models);
    Ok(())
}
