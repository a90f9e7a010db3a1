//! Uploads: what is paid, what is not, and what happens when things fail in between.

use std::{sync::Mutex, time::Duration};

use alloy_primitives::{Address, Bytes, U256};
use zerog_chain::{Addresses, ChainClient, flow::Submission};
use zerog_storage::{ClientOptions, Endpoint, Error, FileTree, NodeClient, Phase, Progress};

use crate::support::{
    Behaviour, Chain, brisk, client, content, eventually, hidden_files, proxy, quiet,
};

#[tokio::test]
async fn files_of_every_shape_are_paid_once_stored_and_fetched() {
    let chain = Chain::start().await;
    let node = chain.node().await;
    let client = client(ClientOptions::indexer(node.indexer_url()));
    let sizes = [
        1, 255, 256, 257, 1_025, 262_143, 262_144, 262_145, 1_048_577, 3_000_000,
    ];
    for (sequence, size) in sizes.into_iter().enumerate() {
        let path = chain.file("source", &content(size));
        let cost = client.upload_cost(&path, &chain.client).await.unwrap();
        assert_eq!(
            cost.fee,
            U256::from(30_733_644_962_u64) * U256::from(cost.sectors)
        );
        let reports = Mutex::new(Vec::new());
        let report = |progress: Progress| reports.lock().unwrap().push(progress);
        let outcome = client
            .upload_file(&path, &chain.client, &report)
            .await
            .unwrap();
        assert_eq!(
            (outcome.root, outcome.sequence, outcome.fee),
            (cost.root, sequence as u64, cost.fee)
        );
        assert!(!outcome.already_present && outcome.tx_hash.is_some());
        let moved: Vec<u64> = reports
            .lock()
            .unwrap()
            .iter()
            .filter(|progress| progress.phase == Phase::Transferring)
            .map(|progress| progress.done_bytes)
            .collect();
        assert!(
            moved.is_sorted() && moved.last() == Some(&(size as u64)),
            "{moved:?}"
        );

        let target = chain.directory.path().join(format!("copy-{size}"));
        client
            .download_file(outcome.root, &target, &quiet)
            .await
            .unwrap();
        assert_eq!(std::fs::read(target).unwrap(), content(size));
    }
    assert_eq!(chain.submissions().await, sizes.len() as u64);
}

#[tokio::test]
async fn a_stored_file_is_not_paid_again_by_anybody() {
    let chain = Chain::start().await;
    let node = chain.node().await;
    let path = chain.file("source", &content(300_000));
    let first = client(ClientOptions::node(node.node_url()));
    first
        .upload_file(&path, &chain.client, &quiet)
        .await
        .unwrap();
    let height = chain.devchain.block_number();

    let stranger = client(ClientOptions::indexer(node.indexer_url()));
    let without_wallet =
        ChainClient::connect(&chain.server.url(), chain.addresses, Default::default())
            .await
            .unwrap();
    let outcome = stranger
        .upload_file(&path, &without_wallet, &quiet)
        .await
        .unwrap();
    assert!(outcome.already_present);
    assert_eq!(
        (outcome.fee, outcome.tx_hash, outcome.sequence),
        (U256::ZERO, None, 0)
    );
    assert_eq!(chain.devchain.block_number(), height);
}

#[tokio::test]
async fn concurrent_uploads_of_one_file_pay_once() {
    let chain = Chain::start().await;
    let node = chain.node().await;
    let path = chain.file("source", &content(600_000));
    let client = client(ClientOptions::indexer(node.indexer_url()));
    let uploads = (0..8).map(|_| client.upload_file(&path, &chain.client, &quiet));
    let outcomes = futures::future::join_all(uploads).await;
    let paid = outcomes
        .iter()
        .filter(|outcome| outcome.as_ref().unwrap().fee > U256::ZERO)
        .count();
    assert_eq!((paid, chain.submissions().await), (1, 1));
}

/// The process dies after paying: segments cannot be delivered, and nothing of the client survives but its journal.
#[tokio::test]
async fn an_upload_interrupted_after_paying_is_completed_without_paying() {
    let chain = Chain::start().await;
    let node = chain.node().await;
    let path = chain.file("source", &content(600_000));
    let broken = proxy(node.node_url(), "zgs_upload", |_, _| {
        Behaviour::Refuse("disk full")
    })
    .await;
    let journal_dir = chain.directory.path().join("journal");
    let interrupted = client(ClientOptions {
        journal_dir: Some(journal_dir.clone()),
        ..ClientOptions::node(broken)
    });
    let error = interrupted
        .upload_file(&path, &chain.client, &quiet)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::Call(call) if call.to_string().contains("disk full")),
        "{error}"
    );
    assert_eq!(chain.submissions().await, 1);

    let again = client(ClientOptions {
        journal_dir: Some(journal_dir.clone()),
        ..ClientOptions::node(node.node_url())
    });
    let outcome = again
        .upload_file(&path, &chain.fresh_client().await, &quiet)
        .await
        .unwrap();
    assert_eq!((outcome.sequence, outcome.already_present), (0, false));
    assert!(outcome.tx_hash.is_some() && outcome.fee > U256::ZERO);
    assert_eq!(chain.submissions().await, 1);
    assert_eq!(
        std::fs::read_dir(journal_dir).unwrap().count(),
        0,
        "a finished upload leaves no journal"
    );
}

/// As above, but the nodes have not even seen the submission, so only the journal knows of it.
#[tokio::test]
async fn a_payment_that_the_nodes_have_not_seen_is_found_in_the_journal() {
    let chain = Chain::start().await;
    let node = chain.node().await;
    let path = chain.file("source", &content(1_000));
    let blind = proxy(node.node_url(), "zgs_getFileInfo", |_, _| Behaviour::Null).await;
    let options = ClientOptions {
        journal_dir: Some(chain.directory.path().join("journal")),
        sync_timeout: Duration::from_millis(50),
        ..brisk(ClientOptions::node(blind))
    };
    for _ in 0..3 {
        let error = client(options.clone())
            .upload_file(&path, &chain.fresh_client().await, &quiet)
            .await
            .unwrap_err();
        assert!(
            matches!(
                error,
                Error::NotSynced {
                    sequence: 0,
                    transaction: Some(_),
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(chain.submissions().await, 1);
    }
    let seeing = ClientOptions {
        endpoint: Endpoint::Nodes(vec![node.node_url()]),
        ..options
    };
    client(seeing)
        .upload_file(&path, &chain.fresh_client().await, &quiet)
        .await
        .unwrap();
    assert_eq!(chain.submissions().await, 1);
}

/// The chain of a development network may be thrown away; what was paid on it counts for nothing.
#[tokio::test]
async fn a_payment_on_a_chain_that_was_replaced_is_made_again() {
    let chain = Chain::start().await;
    let node = chain.node().await;
    let path = chain.file("source", &content(1_000));
    let snapshot = chain.devchain.request("evm_snapshot", &[]).unwrap();
    chain.devchain.advance_time(10).unwrap();
    let blind = proxy(node.node_url(), "zgs_getFileInfo", |_, _| Behaviour::Null).await;
    let options = ClientOptions {
        journal_dir: Some(chain.directory.path().join("journal")),
        sync_timeout: Duration::from_millis(50),
        ..brisk(ClientOptions::node(blind))
    };
    client(options.clone())
        .upload_file(&path, &chain.client, &quiet)
        .await
        .unwrap_err();
    chain.devchain.request("evm_revert", &[snapshot]).unwrap();
    assert_eq!(chain.submissions().await, 0);
    let seeing = ClientOptions {
        endpoint: Endpoint::Nodes(vec![node.node_url()]),
        sync_timeout: Duration::from_secs(60),
        ..options
    };
    client(seeing)
        .upload_file(&path, &chain.fresh_client().await, &quiet)
        .await
        .unwrap();
    assert_eq!(chain.submissions().await, 1);
}

#[tokio::test]
async fn a_submission_without_data_is_used_instead_of_paying() {
    let chain = Chain::start().await;
    let node = chain.node().await;
    let path = chain.file("source", &content(300_000));
    let tree = FileTree::of_file(&path).unwrap();
    let submitter = chain.client.wallet_address().unwrap();
    let submission = Submission {
        length: 300_000,
        tags: Bytes::new(),
        nodes: tree.submission_nodes(),
        submitter,
    };
    for _ in 0..2 {
        chain
            .client
            .flow()
            .unwrap()
            .submit(&submission)
            .await
            .unwrap();
    }
    let direct = NodeClient::new(&node.node_url(), Duration::from_secs(5)).unwrap();
    eventually(async || direct.file_info_by_sequence(1).await.unwrap()).await;
    let client = client(ClientOptions::node(node.node_url()));
    let outcome = client
        .upload_file(&path, &chain.client, &quiet)
        .await
        .unwrap();
    assert!(outcome.already_present);
    assert_eq!(chain.submissions().await, 2);
    for sequence in 0..2 {
        assert!(
            direct
                .file_info_by_sequence(sequence)
                .await
                .unwrap()
                .unwrap()
                .finalized,
            "{sequence}"
        );
    }
}

#[tokio::test]
async fn a_failing_node_is_replaced_and_shards_get_their_segments() {
    let chain = Chain::start().await;
    let (even, odd, whole) = (
        chain.shard(0, 2).await,
        chain.shard(1, 2).await,
        chain.node().await,
    );
    let path = chain.file("source", &content(3_000_000));
    let broken = proxy(whole.node_url(), "zgs_upload", |_, _| {
        Behaviour::Refuse("disk full")
    })
    .await;
    let endpoint = Endpoint::Nodes(vec![broken, even.node_url(), odd.node_url()]);
    let client = client(ClientOptions {
        endpoint,
        ..ClientOptions::node(whole.node_url())
    });
    let outcome = client
        .upload_file(&path, &chain.client, &quiet)
        .await
        .unwrap();
    assert_eq!(chain.submissions().await, 1);
    for (node, finalized) in [(&even, true), (&odd, true), (&whole, false)] {
        let info = NodeClient::new(&node.node_url(), Duration::from_secs(5))
            .unwrap()
            .file_info(outcome.root)
            .await;
        assert_eq!(info.unwrap().unwrap().finalized, finalized);
    }
    let target = chain.directory.path().join("copy");
    client
        .download_file(outcome.root, &target, &quiet)
        .await
        .unwrap();
    assert_eq!(std::fs::read(target).unwrap(), content(3_000_000));
}

#[tokio::test]
async fn a_busy_node_is_waited_for() {
    let chain = Chain::start().await;
    let node = chain.node().await;
    let path = chain.file("source", &content(10));
    let busy = proxy(node.node_url(), "zgs_upload", |_, count| {
        if count < 2 {
            Behaviour::Refuse("too many data writing: 32")
        } else {
            Behaviour::Honest
        }
    })
    .await;
    client(ClientOptions::node(busy))
        .upload_file(&path, &chain.client, &quiet)
        .await
        .unwrap();
}

#[tokio::test]
async fn money_goes_only_to_the_known_contract() {
    let chain = Chain::start().await;
    let node = chain.node().await;
    let path = chain.file("source", &content(10));
    let height = chain.devchain.block_number();
    let elsewhere = Addresses {
        flow: Some(Address::repeat_byte(5)),
        ..chain.addresses
    };
    let suspicious = ChainClient::connect(&chain.server.url(), elsewhere, Default::default())
        .await
        .unwrap();
    let client = client(ClientOptions::indexer(node.indexer_url()));
    let error = client
        .upload_file(&path, &suspicious, &quiet)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::WrongFlow { .. }), "{error}");
    assert_eq!(chain.devchain.block_number(), height);

    let empty = chain.file("empty", &[]);
    assert!(matches!(
        client.upload_file(&empty, &chain.client, &quiet).await,
        Err(Error::EmptyFile)
    ));
}

#[tokio::test]
async fn fragments_and_encrypted_files_come_back_whole() {
    use zerog_protocol::{FileKey, SecretKey};
    use zerog_storage::{Decryption, DownloadOptions, Encryption, UploadOptions};

    let chain = Chain::start().await;
    let node = chain.node().await;
    let client = client(ClientOptions::indexer(node.indexer_url()));
    let content = content(700_000);
    let path = chain.file("source", &content);
    let wallet = SecretKey::random();
    let key = FileKey::random();
    let for_wallet = Encryption::Recipient {
        public_key: wallet.public_key().to_vec(),
        sender: SecretKey::random(),
    };
    let cases = [
        (None, None, None, 1),
        (None, None, Some(300_000), 2),
        (
            Some(Encryption::Key(key.clone())),
            Some(Decryption::Key(key)),
            Some(131_072),
            6,
        ),
        (Some(for_wallet), Some(Decryption::Wallet(wallet)), None, 1),
    ];
    for (number, (encryption, decryption, fragment_bytes, objects)) in cases.into_iter().enumerate()
    {
        let options = UploadOptions {
            encryption,
            fragment_bytes,
            ..Default::default()
        };
        let outcomes = client
            .upload(&path, &options, &chain.client, &quiet)
            .await
            .unwrap();
        assert_eq!(outcomes.len(), objects, "case {number}");
        let before = chain.submissions().await;
        let again = client
            .upload(&path, &options, &chain.client, &quiet)
            .await
            .unwrap();
        assert!(
            again.iter().all(|outcome| outcome.already_present),
            "case {number}"
        );
        assert_eq!(chain.submissions().await, before, "nothing is paid twice");

        let roots: Vec<_> = outcomes.iter().map(|outcome| outcome.root).collect();
        let target = chain.directory.path().join(format!("copy-{number}"));
        let options = DownloadOptions {
            decryption,
            ..Default::default()
        };
        client
            .download(&roots, &options, &target, &quiet)
            .await
            .unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), content, "case {number}");
        assert!(hidden_files(chain.directory.path()).is_empty());
    }
}
