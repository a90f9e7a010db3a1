//! Downloads that break, hashes that do not fit, keys that come late.

use std::io::Cursor;
use std::path::Path;
use std::time::Duration;

use alloy_primitives::{B256, keccak256};
use zerog_protocol::{FileKey, ecies, sealed_archive};
use zerog_sdk::{DownloadMethod, Error, TaskId};

use crate::support::{Response, World};

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn content() -> Vec<u8> {
    (0..200_000u32).map(|index| (index % 251) as u8).collect()
}

#[tokio::test]
async fn a_cut_download_goes_on_where_it_stopped() {
    let world = World::start().await;
    let (task, content, folder) = (TaskId::random(), content(), tempfile::tempdir().unwrap());
    world.deliver(task, keccak256(&content)).await;
    let served = content.clone();
    world.answer(move |request| {
        request.path.ends_with("/lora").then(|| {
            let response = Response::ranged(request, &served);
            // Every connection breaks after 70 000 bytes.
            response.cut_at(70_000)
        })
    });
    let path = folder.path().join("adapter.enc");
    let acknowledged = world
        .broker
        .fine_tuning
        .acknowledge_model(world.provider, task, &path, DownloadMethod::Auto, |_| ())
        .await
        .unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), content);
    assert_eq!(names(folder.path()), ["adapter.enc"]);
    assert_eq!(
        (acknowledged.method, acknowledged.bytes),
        (Some(DownloadMethod::Tee), 200_000)
    );
    assert!(acknowledged.receipt.is_some() && world.is_acknowledged(task).await);
    let starts: Vec<Option<usize>> = world
        .requests("/lora")
        .iter()
        .map(|request| request.range_start())
        .collect();
    assert_eq!(starts, [None, Some(70_000), Some(140_000)]);

    // The second call finds the file and the acknowledgement.
    let again = world
        .broker
        .fine_tuning
        .acknowledge_model(world.provider, task, &path, DownloadMethod::Tee, |_| ())
        .await
        .unwrap();
    assert!(again.method.is_none() && again.receipt.is_none());
    assert_eq!(world.requests("/lora").len(), 3);
}

#[tokio::test]
async fn another_file_is_neither_kept_nor_acknowledged() {
    let world = World::start().await;
    let (task, folder) = (TaskId::random(), tempfile::tempdir().unwrap());
    world.deliver(task, B256::repeat_byte(9)).await;
    world.answer(|request| {
        request
            .path
            .ends_with("/lora")
            .then(|| Response::ranged(request, b"something else"))
    });
    let path = folder.path().join("adapter.enc");
    let error = world
        .broker
        .fine_tuning
        .acknowledge_model(world.provider, task, &path, DownloadMethod::Auto, |_| ())
        .await
        .unwrap_err();
    let Error::HashMismatch {
        expected, keccak, ..
    } = &error
    else {
        panic!("{error:?}")
    };
    assert_eq!(
        (*expected, *keccak),
        (B256::repeat_byte(9), keccak256("something else"))
    );
    assert!(names(folder.path()).is_empty());
    assert!(!world.is_acknowledged(task).await);
}

#[tokio::test]
async fn kept_bytes_of_another_file_are_thrown_away() {
    let world = World::start().await;
    let (task, content, folder) = (TaskId::random(), content(), tempfile::tempdir().unwrap());
    world.deliver(task, keccak256(&content)).await;
    let path = folder.path().join("adapter.enc");
    std::fs::write(folder.path().join("adapter.enc.partial"), vec![0xaa; 1000]).unwrap();
    let served = content.clone();
    world.answer(move |request| {
        request
            .path
            .ends_with("/lora")
            .then(|| Response::ranged(request, &served))
    });
    let fine_tuning = &world.broker.fine_tuning;
    fine_tuning
        .download_lora_from_tee(world.provider, task, &path, |_| ())
        .await
        .unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), content);
    assert_eq!(names(folder.path()), ["adapter.enc"]);
    assert!(
        !world.is_acknowledged(task).await,
        "downloading alone acknowledges nothing"
    );
}

#[tokio::test]
async fn a_storage_root_is_accepted_as_well() {
    let world = World::start().await;
    let (task, folder) = (TaskId::random(), tempfile::tempdir().unwrap());
    let file = folder.path().join("source");
    std::fs::write(&file, content()).unwrap();
    world
        .deliver(task, zerog_storage::merkle::root_of_file(&file).unwrap())
        .await;
    world.answer(|request| {
        request
            .path
            .ends_with("/lora")
            .then(|| Response::ranged(request, &content()))
    });
    let path = folder.path().join("adapter.enc");
    let fine_tuning = &world.broker.fine_tuning;
    fine_tuning
        .acknowledge_model(world.provider, task, &path, DownloadMethod::Tee, |_| ())
        .await
        .unwrap();
    assert!(world.is_acknowledged(task).await);
}

#[tokio::test]
async fn refusals_end_a_download_at_once() {
    let world = World::start().await;
    let (task, folder) = (TaskId::random(), tempfile::tempdir().unwrap());
    let fine_tuning = &world.broker.fine_tuning;
    let path = folder.path().join("adapter.enc");
    let missing = fine_tuning
        .acknowledge_model(world.provider, task, &path, DownloadMethod::Tee, |_| ())
        .await;
    assert_eq!(missing.unwrap_err().code(), "deliverable_missing");
    world.deliver(task, B256::repeat_byte(1)).await;
    world.answer(|request| {
        request
            .path
            .ends_with("/lora")
            .then(|| Response::new(401, r#"{"error":"authentication failed: x"}"#))
    });
    let refused = fine_tuning
        .acknowledge_model(world.provider, task, &path, DownloadMethod::Tee, |_| ())
        .await;
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("authentication failed")
    );
    assert_eq!(world.requests("/lora").len(), 1);
    assert!(names(folder.path()).is_empty());
}

#[tokio::test]
async fn a_settled_adapter_is_decrypted_after_its_signature_was_checked() {
    let world = World::start().await;
    let (task, folder) = (TaskId::random(), tempfile::tempdir().unwrap());
    let key = FileKey::random();
    let mut sealed = Cursor::new(Vec::new());
    sealed_archive::encrypt(
        &mut &b"PK the adapter"[..],
        &mut sealed,
        &key,
        &world.keys.signer,
    )
    .unwrap();
    let sealed = sealed.into_inner();
    let hash = keccak256(&sealed);
    let (encrypted, output) = (
        folder.path().join("adapter.enc"),
        folder.path().join("adapter.zip"),
    );
    std::fs::write(&encrypted, &sealed).unwrap();
    world.deliver(task, hash).await;
    let fine_tuning = &world.broker.fine_tuning;
    let decrypt = |timeout| {
        fine_tuning.decrypt_model(world.provider, task, &encrypted, &output, timeout, |_| ())
    };

    let early = decrypt(Duration::ZERO).await.unwrap_err();
    assert_eq!(early.code(), "deliverable_not_acknowledged");
    fine_tuning
        .acknowledge_deliverable(world.provider, task)
        .await
        .unwrap()
        .unwrap();
    assert!(
        fine_tuning
            .acknowledge_deliverable(world.provider, task)
            .await
            .unwrap()
            .is_none()
    );
    let waiting = decrypt(Duration::ZERO).await.unwrap_err();
    assert_eq!(waiting.code(), "timeout");
    assert!(!output.exists());

    let secret = ecies::seal(&world.user.public_key(), key.expose_bytes()).unwrap();
    world.settle(task, hash, secret).await;
    assert_eq!(decrypt(Duration::from_secs(5)).await.unwrap(), output);
    assert_eq!(std::fs::read(&output).unwrap(), b"PK the adapter");
    assert_eq!(names(folder.path()), ["adapter.enc", "adapter.zip"]);
}
