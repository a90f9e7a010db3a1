//! What a dataset says never reaches the provider's disk: neither while a task runs nor after it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use zerog_protocol::TaskId;
use zerog_provider::Provider;

use crate::walk::{download, upload_sealed};
use crate::world::{World, now_s};

/// Words that stand in every record and nowhere else.
const MARKER: &str = "quiet-heron-lantern-4711";

fn marked_dataset() -> String {
    (0..8)
        .map(|number| {
            json!({"messages": [
                {"role": "user", "content": format!("What is the word of day {number}?")},
                {"role": "assistant", "content": format!("It is {MARKER}.")},
            ]})
            .to_string()
                + "\n"
        })
        .collect()
}

/// Files below `folder` that contain the marker, and how many were read. Files come and go while a task runs.
fn search(folder: &Path) -> (Vec<PathBuf>, usize) {
    let (mut found, mut count) = (Vec::new(), 0);
    for path in std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
    {
        if path.is_dir() {
            let (inner, inner_count) = search(&path);
            found.extend(inner);
            count += inner_count;
        } else if let Ok(content) = std::fs::read(&path) {
            count += 1;
            let marker = MARKER.as_bytes();
            if content.windows(marker.len()).any(|part| part == marker) {
                found.push(path);
            }
        }
    }
    (found, count)
}

#[test]
fn the_search_finds_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("deep")).unwrap();
    let path = folder.path().join("deep/record");
    std::fs::write(folder.path().join("other"), "nothing").unwrap();
    std::fs::write(&path, format!("\0\u{1}{MARKER}\0")).unwrap();
    assert_eq!(search(folder.path()), (vec![path], 2));
}

#[tokio::test]
async fn no_word_of_a_sealed_dataset_is_written_to_disk() {
    let world = World::start().await;
    let config = world.config("p");
    let data_dir = config.data_dir.clone();
    let provider = Provider::start(config).await.unwrap();
    world.accept(&provider).await;
    let user = world.user(3, &provider).await;

    // Looks all the time, so that files that live for a moment are seen as well.
    let is_done = Arc::new(AtomicBool::new(false));
    let watcher = {
        let (data_dir, is_done) = (data_dir.clone(), Arc::clone(&is_done));
        std::thread::spawn(move || {
            while !is_done.load(Ordering::Relaxed) {
                let (found, _) = search(&data_dir);
                if !found.is_empty() {
                    return found;
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            Vec::new()
        })
    };
    let hash = upload_sealed(&user, 31337, &marked_dataset()).await;
    let created = user
        .create(user.task_request(&hash, now_s() * 10_000_000 + 40))
        .await;
    assert_eq!(created.status, 201, "{}", created.text());
    let id: TaskId = created.json()["id"].as_str().unwrap().parse().unwrap();
    let task = user.wait(id, &["Delivered"]).await;
    // It was opened, counted and trained on.
    assert!(task["tokens"].as_u64().unwrap() > 0, "{task}");
    assert!(task["training"]["step"].as_u64().unwrap() > 0, "{task}");
    assert_eq!(download(&user, id, None).await.status, 200);
    is_done.store(true, Ordering::Relaxed);
    assert_eq!(watcher.join().unwrap(), Vec::<PathBuf>::new());

    // The database writes back what is in its log when it is closed.
    provider.shutdown().await;
    let (found, count) = search(&data_dir);
    assert_eq!(found, Vec::<PathBuf>::new());
    assert!(
        count >= 3 && data_dir.join("provider.sqlite").is_file(),
        "only {count} files were looked at"
    );
}
