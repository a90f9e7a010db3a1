//! The storage network on its own.

use std::path::Path;

use serde_json::json;
use zerog_sdk::amount::format_0g;
use zerog_sdk::storage::{
    Decryption, DownloadOptions, Encryption, FileKey, UploadOptions, file_root,
};
use zerog_sdk::{B256, Progress};

use crate::app::{App, Wallet, parse_file_key, read_secret_file};
use crate::args::Storage;
use crate::exit_code::{AUTHENTICATION, Failure, Outcome};
use crate::view::{StorageCostOutput, StoredOutput};

pub(super) async fn run(app: &App, command: Storage) -> Outcome {
    match command {
        Storage::Upload {
            file,
            encrypt,
            encryption_key_file,
            fragment_size,
            max_fee,
        } => {
            let encryption = match (encryption_key_file, encrypt) {
                (Some(path), _) => Some(Encryption::Key(file_key(&path)?)),
                (None, true) => {
                    let wallet = app.wallet_key()?;
                    Some(Encryption::Recipient {
                        public_key: wallet.public_key().to_vec(),
                        sender: wallet,
                    })
                }
                (None, false) => None,
            };
            let options = UploadOptions {
                encryption,
                fragment_bytes: fragment_size,
                max_fee,
                ..UploadOptions::default()
            };
            upload(app, &file, &options).await
        }
        Storage::Download {
            file,
            root,
            decrypt,
            encryption_key_file,
        } => {
            let decryption = match (encryption_key_file, decrypt) {
                (Some(path), _) => Some(Decryption::Key(file_key(&path)?)),
                (None, true) => Some(Decryption::Wallet(app.wallet_key()?)),
                (None, false) => None,
            };
            let options = DownloadOptions {
                decryption,
                ..DownloadOptions::default()
            };
            download(app, &file, &root, &options).await
        }
        Storage::Root { file } => {
            let root = file_root(&file)?;
            app.output.line(format!("Root hash: {root}"));
            app.output.json(&json!({ "root_hash": root }));
            Ok(())
        }
        Storage::Cost { file } => cost(app, &file).await,
    }
}

async fn upload(app: &App, path: &Path, options: &UploadOptions) -> Outcome {
    if options.encryption.is_none() {
        app.output.warn(format!(
            "{} will be stored IN CLEAR on public storage: anyone with its root hash can read it (--encrypt makes it readable for this wallet only).",
            path.display()
        ));
        if !app.confirm("Store it in clear?").await? {
            return Err(Failure::usage("nothing was stored"));
        }
    }
    let storage = app.broker(Wallet::Needed).await?.storage()?;
    let mut progress = app.output.progress();
    let outcomes = storage
        .upload(path, options, |news: Progress| progress.show(&news))
        .await?;
    progress.clear();
    for outcome in &outcomes {
        app.output.note(match outcome.tx_hash {
            Some(hash) => format!(
                "Stored {} bytes as submission {}; paid {} 0G in {hash}",
                outcome.size,
                outcome.sequence,
                format_0g(outcome.fee)
            ),
            None => format!(
                "{} bytes are on the network already as submission {}; nothing was paid",
                outcome.size, outcome.sequence
            ),
        });
    }
    let roots: Vec<String> = outcomes
        .iter()
        .map(|outcome| outcome.root.to_string())
        .collect();
    app.output.line(match &roots[..] {
        [root] => format!("Root hash: {root}"),
        roots => format!("Root hashes: {}", roots.join(",")),
    });
    let outcomes: Vec<_> = outcomes.iter().map(StoredOutput::from).collect();
    app.output.json(&outcomes);
    Ok(())
}

async fn download(app: &App, path: &Path, roots: &[B256], options: &DownloadOptions) -> Outcome {
    let storage = app.broker(Wallet::NotNeeded).await?.storage()?;
    let mut progress = app.output.progress();
    let outcome = storage
        .download(roots, options, path, |news: Progress| progress.show(&news))
        .await?;
    progress.clear();
    app.output
        .line(format!("Downloaded and verified {}", path.display()));
    app.output.json(&json!({
        "path": path, "root_hashes": roots, "bytes": outcome.size, "resumed_bytes": outcome.resumed_bytes,
    }));
    Ok(())
}

async fn cost(app: &App, path: &Path) -> Outcome {
    let cost = app
        .broker(Wallet::NotNeeded)
        .await?
        .storage()?
        .cost(path)
        .await?;
    app.output.line(format!("Root hash: {}", cost.root));
    app.output.line(format!(
        "Storing it costs {} 0G for {} sectors of 256 bytes, padding included, and gas",
        format_0g(cost.fee),
        cost.sectors
    ));
    app.output.json(&StorageCostOutput::from(&cost));
    Ok(())
}

fn file_key(path: &Path) -> Outcome<FileKey> {
    let text = read_secret_file(path)?;
    parse_file_key(&text).ok_or_else(|| {
        Failure::new(
            AUTHENTICATION,
            "invalid_key",
            format!(
                "{} does not hold a file key: 64 hexadecimal digits",
                path.display()
            ),
        )
    })
}
