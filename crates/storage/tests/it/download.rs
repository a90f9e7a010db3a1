//! Downloads: verification, failover, resumption, and what is left on the disk.

use std::time::Duration;

use alloy_primitives::B256;
use serde_json::Value;
use zerog_storage::{ClientOptions, DownloadOptions, Endpoint, Error};

use crate::support::{Behaviour, Chain, brisk, client, content, hidden_files, proxy, quiet};

const SIZE: usize = 2_000_000;

/// A chain, a node with a file of eight segments, and its root.
async fn stored() -> (Chain, zerog_storage::node::StorageNode, B256) {
    let chain = Chain::start().await;
    let node = chain.node().await;
    let path = chain.file("source", &content(SIZE));
    let client = client(ClientOptions::node(node.node_url()));
    let root = client
        .upload_file(&path, &chain.client, &quiet)
        .await
        .unwrap()
        .root;
    (chain, node, root)
}

fn of_size(size: u64) -> DownloadOptions {
    DownloadOptions {
        size: Some(size),
        ..Default::default()
    }
}

fn segment_index(parameters: &Value) -> u64 {
    parameters[1].as_u64().unwrap()
}

#[tokio::test]
async fn false_data_is_noticed_and_fetched_elsewhere_or_not_at_all() {
    let (chain, node, root) = stored().await;
    let liar = proxy(node.node_url(), "zgs_download", |_, _| Behaviour::Corrupt).await;
    let target = chain.directory.path().join("copy");
    let alone = client(ClientOptions::node(liar.clone()));
    let error = alone
        .download_file(root, &target, &quiet)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::SegmentUnavailable { .. }),
        "{error}"
    );
    assert!(!target.exists(), "nothing unverified is ever in place");

    let endpoint = Endpoint::Nodes(vec![liar, node.node_url()]);
    let both = client(ClientOptions {
        endpoint,
        ..ClientOptions::node(node.node_url())
    });
    both.download_file(root, &target, &quiet).await.unwrap();
    assert_eq!(std::fs::read(&target).unwrap(), content(SIZE));
    assert!(hidden_files(chain.directory.path()).is_empty());
}

#[tokio::test]
async fn an_interrupted_download_goes_on_where_it_stopped() {
    let (chain, node, root) = stored().await;
    let ending = proxy(node.node_url(), "zgs_download", |parameters, _| {
        if segment_index(parameters) >= 5 {
            Behaviour::Null
        } else {
            Behaviour::Honest
        }
    })
    .await;
    let target = chain.directory.path().join("copy");
    let error = client(ClientOptions::node(ending))
        .download_file(root, &target, &quiet)
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::SegmentUnavailable { index: 5, .. }),
        "{error}"
    );
    assert_eq!(hidden_files(chain.directory.path()).len(), 1);

    let rest_only = proxy(node.node_url(), "zgs_download", |parameters, _| {
        if segment_index(parameters) < 5 {
            Behaviour::Null
        } else {
            Behaviour::Honest
        }
    })
    .await;
    let outcome = client(ClientOptions::node(rest_only))
        .download_file(root, &target, &quiet)
        .await
        .unwrap();
    assert_eq!(
        (outcome.resumed_bytes, outcome.size),
        (5 * 262_144, SIZE as u64)
    );
    assert_eq!(std::fs::read(&target).unwrap(), content(SIZE));
    assert!(hidden_files(chain.directory.path()).is_empty());
}

#[tokio::test]
async fn a_damaged_partial_file_is_fetched_afresh() {
    let (chain, node, root) = stored().await;
    let ending = proxy(node.node_url(), "zgs_download", |parameters, _| {
        if segment_index(parameters) >= 3 {
            Behaviour::Null
        } else {
            Behaviour::Honest
        }
    })
    .await;
    let target = chain.directory.path().join("copy");
    client(ClientOptions::node(ending))
        .download_file(root, &target, &quiet)
        .await
        .unwrap_err();
    let partial = hidden_files(chain.directory.path()).remove(0);
    let mut bytes = std::fs::read(&partial).unwrap();
    bytes[1_000] ^= 1;
    std::fs::write(&partial, bytes).unwrap();
    let outcome = client(ClientOptions::node(node.node_url()))
        .download_file(root, &target, &quiet)
        .await
        .unwrap();
    assert_eq!(outcome.resumed_bytes, 0);
    assert_eq!(std::fs::read(&target).unwrap(), content(SIZE));
}

#[tokio::test]
async fn an_existing_target_is_kept() {
    let (chain, node, root) = stored().await;
    let client = client(ClientOptions::indexer(node.indexer_url()));
    let source = chain.directory.path().join("source");
    let outcome = client.download_file(root, &source, &quiet).await.unwrap();
    assert_eq!(
        outcome.resumed_bytes, SIZE as u64,
        "nothing is fetched when the file is there"
    );
    let other = chain.file("other", b"precious");
    let error = client
        .download_file(root, &other, &quiet)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::DestinationExists { .. }), "{error}");
    assert_eq!(std::fs::read(other).unwrap(), b"precious");
}

#[tokio::test]
async fn a_target_is_replaced_on_demand_once_the_new_file_is_verified() {
    let (chain, node, root) = stored().await;
    let client = client(ClientOptions::indexer(node.indexer_url()));
    let options = DownloadOptions {
        replace: true,
        ..DownloadOptions::default()
    };
    let target = chain.file("target", b"earlier");
    let wrong_key = DownloadOptions {
        decryption: Some(zerog_storage::Decryption::Key(
            zerog_protocol::FileKey::random(),
        )),
        ..options.clone()
    };
    for (root, options) in [(B256::repeat_byte(7), &options), (root, &wrong_key)] {
        let refused = client.download(&[root], options, &target, &quiet).await;
        assert!(refused.is_err(), "{refused:?}");
        assert_eq!(std::fs::read(&target).unwrap(), b"earlier");
    }
    let outcome = client.download(&[root], &options, &target, &quiet).await;
    assert_eq!(outcome.unwrap().size, SIZE as u64);
    assert_eq!(std::fs::read(&target).unwrap(), content(SIZE));
    let folder = chain.directory.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    let error = client
        .download(&[root], &options, &folder, &quiet)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::DestinationExists { .. }), "{error}");
}

#[tokio::test]
async fn a_known_size_is_demanded() {
    let (chain, node, root) = stored().await;
    let client = client(ClientOptions::indexer(node.indexer_url()));
    let target = chain.directory.path().join("copy");
    let error = client
        .download(&[root], &of_size(SIZE as u64 + 1), &target, &quiet)
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::SizeMismatch { found, .. } if found == SIZE as u64),
        "{error}"
    );
    client
        .download(&[root], &of_size(SIZE as u64), &target, &quiet)
        .await
        .unwrap();
}

#[tokio::test]
async fn missing_files_have_their_own_errors() {
    let (chain, node, root) = stored().await;
    let target = chain.directory.path().join("copy");
    let unknown = B256::repeat_byte(7);
    for options in [
        ClientOptions::indexer(node.indexer_url()),
        ClientOptions::node(node.node_url()),
    ] {
        let error = client(options)
            .download_file(unknown, &target, &quiet)
            .await
            .unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
    }
    let incomplete = proxy(node.node_url(), "indexer_getFileLocations", |_, _| {
        Behaviour::Null
    })
    .await;
    let error = client(ClientOptions::indexer(incomplete))
        .download_file(root, &target, &quiet)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::NotAvailable { .. }), "{error}");
    node.shutdown().await;
    let gone = ClientOptions {
        request_timeout: Duration::from_secs(2),
        ..brisk(ClientOptions::indexer("http://127.0.0.1:9"))
    };
    let error = client(gone)
        .download_file(root, &target, &quiet)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Call(_)), "{error}");
    assert!(client_url_is_refused("ftp://node") && client_url_is_refused("nonsense"));
}

fn client_url_is_refused(url: &str) -> bool {
    matches!(
        zerog_storage::Client::new(ClientOptions::node(url)),
        Err(Error::InvalidUrl { .. })
    )
}
