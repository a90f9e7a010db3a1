//! The embedded node as published clients see it: raw JSON-RPC, plain routes, restarts, chain resets.

use std::time::Duration;

use alloy_primitives::{Address, B256, Bytes};
use serde_json::{Value, json};
use zerog_chain::flow::{Submission, Submitted};
use zerog_storage::{
    ClientOptions, Error, FileTree,
    node::{NodeOptions, StorageNode},
    rpc_types::SegmentWithProof,
};

use crate::support::{Chain, call, client, content, eventually, quiet, raw};

fn tree(data: &[u8]) -> FileTree {
    FileTree::read(
        zerog_storage::FileShape::new(data.len() as u64).unwrap(),
        data,
    )
    .unwrap()
}

fn segment(data: &[u8], index: u64) -> SegmentWithProof {
    let tree = tree(data);
    let shape = tree.shape();
    let mut bytes = data[index as usize * 262_144..][..shape.file_bytes(index)].to_vec();
    bytes.resize(shape.segment_bytes(index), 0);
    SegmentWithProof {
        root: tree.root(),
        data: bytes,
        index,
        proof: tree.proof(index),
        file_size: shape.size(),
    }
}

async fn submit(chain: &Chain, data: &[u8]) -> Submitted {
    let submitter = chain.client.wallet_address().unwrap();
    let nodes = tree(data).submission_nodes();
    let submission = Submission {
        length: data.len() as u64,
        tags: Bytes::new(),
        nodes,
        submitter,
    };
    chain
        .client
        .flow()
        .unwrap()
        .submit(&submission)
        .await
        .unwrap()
        .0
}

async fn refusal(url: &str, method: &str, parameters: Value) -> (i64, String, Option<String>) {
    let response = raw(
        url,
        json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}),
    )
    .await;
    let error = &response["error"];
    let text = |member: &str| error[member].as_str().map(str::to_owned);
    (
        error["code"]
            .as_i64()
            .unwrap_or_else(|| panic!("{response}")),
        text("message").unwrap(),
        text("data"),
    )
}

#[tokio::test]
async fn status_and_indexer_have_the_published_form() {
    let chain = Chain::start().await;
    let node = chain.node().await;
    let url = node.node_url();
    let without_parameters = raw(
        &url,
        json!({"jsonrpc": "2.0", "id": "x", "method": "zgs_getStatus"}),
    )
    .await;
    assert_eq!(without_parameters["id"], "x");
    let status = &without_parameters["result"];
    assert_eq!(status["networkIdentity"]["chainId"], 31_337);
    let flow = status["networkIdentity"]["flowAddress"].as_str().unwrap();
    assert_eq!(flow, format!("{:#x}", chain.addresses.flow.unwrap()));
    assert!(status["networkIdentity"]["p2pProtocolVersion"]["major"].is_u64());
    assert_eq!(status["nextTxSeq"], 0);
    assert_eq!(
        call(&url, "zgs_getShardConfig", json!([])).await,
        json!({"shardId": 0, "numShard": 1})
    );
    let nodes = call(&url, "indexer_getShardedNodes", json!([])).await;
    assert_eq!(nodes["trusted"][0]["url"], url);
    assert!(nodes["trusted"][0]["latency"].is_i64() && nodes["trusted"][0]["since"].is_i64());
    assert_eq!(nodes["discovered"], json!([]));
    let selected = call(
        &url,
        "indexer_getSelectedNodes",
        json!([1, "min", true, null]),
    )
    .await;
    assert_eq!(selected, nodes);
    let none = refusal(
        &url,
        "indexer_getSelectedNodes",
        json!([1, "min", true, [url]]),
    )
    .await;
    assert_eq!(none.0, -32_000);
    let unknown = refusal(&url, "indexer_getFileLocations", json!([B256::ZERO])).await;
    assert_eq!(unknown, (-32_000, "file not found".to_owned(), None));
    assert_eq!(refusal(&url, "zgs_dance", json!([])).await.0, -32_601);
    assert_eq!(
        raw(&url, json!("no request")).await["error"]["code"],
        -32_700
    );
}

#[tokio::test]
async fn a_file_is_known_then_uploaded_then_finalized() {
    let chain = Chain::start().await;
    let node = chain.node().await;
    let url = node.node_url();
    let data = content(600_000);
    let root = tree(&data).root();
    assert!(
        call(&url, "zgs_getFileInfo", json!([root, true]))
            .await
            .is_null()
    );
    assert!(
        call(&url, "zgs_checkFileFinalized", json!([root]))
            .await
            .is_null()
    );
    let submitted = submit(&chain, &data).await;
    let info = eventually(async || {
        Some(call(&url, "zgs_getFileInfo", json!([root])).await).filter(|i| !i.is_null())
    })
    .await;
    assert_eq!(
        (&info["finalized"], &info["uploadedSegNum"], &info["pruned"]),
        (&json!(false), &json!(0), &json!(false))
    );
    assert_eq!(
        (&info["tx"]["seq"], &info["tx"]["size"]),
        (&json!(0), &json!(600_000))
    );
    assert_eq!(info["tx"]["startEntryIndex"], submitted.start_sector);
    assert_eq!(
        (&info["tx"]["streamIds"], &info["tx"]["data"]),
        (&json!([]), &json!([]))
    );
    let heights: Vec<u64> = info["tx"]["merkleNodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| node[0].as_u64().unwrap())
        .collect();
    assert_eq!(heights, [12, 10], "heights plus one");
    assert!(
        call(&url, "indexer_getFileLocations", json!([root]))
            .await
            .is_null()
    );

    // The same segment twice in a batch is no error by sequence number.
    let batch = json!([[segment(&data, 0), segment(&data, 0), segment(&data, 2)], 0]);
    assert!(
        call(&url, "zgs_uploadSegmentsByTxSeq", batch)
            .await
            .is_null()
    );
    assert_eq!(
        call(&url, "zgs_getFileInfoByTxSeq", json!([0])).await["uploadedSegNum"],
        2
    );
    assert!(
        call(&url, "zgs_downloadSegmentByTxSeq", json!([0, 1024, 2048]))
            .await
            .is_null()
    );
    assert!(
        call(&url, "zgs_downloadSegmentWithProofByTxSeq", json!([0, 1]))
            .await
            .is_null()
    );
    let again = refusal(&url, "zgs_uploadSegment", json!([segment(&data, 0)])).await;
    assert_eq!(
        again,
        (
            -32_000,
            "segment has already been uploaded or is being uploaded".to_owned(),
            None
        )
    );
    assert!(
        call(&url, "zgs_uploadSegments", json!([[segment(&data, 1)]]))
            .await
            .is_null()
    );
    assert_eq!(call(&url, "zgs_checkFileFinalized", json!([0])).await, true);
    assert_eq!(
        call(&url, "indexer_getFileLocations", json!([root])).await[0]["url"],
        url
    );

    let proven: SegmentWithProof =
        serde_json::from_value(call(&url, "zgs_downloadSegmentWithProof", json!([root, 2])).await)
            .unwrap();
    assert_eq!(proven, segment(&data, 2));
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let across = call(&url, "zgs_downloadSegment", json!([root, 1_000, 1_100])).await;
    assert_eq!(
        STANDARD.decode(across.as_str().unwrap()).unwrap(),
        data[256_000..281_600]
    );
    let end = call(&url, "zgs_downloadSegmentByTxSeq", json!([0, 2_343, 2_344])).await;
    let mut last = data[2_343 * 256..].to_vec();
    last.resize(256, 0);
    assert_eq!(STANDARD.decode(end.as_str().unwrap()).unwrap(), last);
}

#[tokio::test]
async fn refusals_have_the_texts_that_clients_match() {
    let chain = Chain::start().await;
    let node = chain.node().await;
    let url = node.node_url();
    let (done, open, other) = (content(1_000), content(300_000), content(2_000));
    for data in [&done, &open] {
        submit(&chain, data).await;
    }
    eventually(async || {
        Some(call(&url, "zgs_getFileInfoByTxSeq", json!([1])).await).filter(|i| !i.is_null())
    })
    .await;
    call(
        &url,
        "zgs_uploadSegmentByTxSeq",
        json!([segment(&done, 0), 0]),
    )
    .await;

    let upload = async |segment: SegmentWithProof| {
        refusal(&url, "zgs_uploadSegmentsByTxSeq", json!([[segment], 1])).await
    };
    let parameter = |name: &str, data: &str| {
        (
            -32_602,
            format!("Invalid params: {name}"),
            Some(data.to_owned()),
        )
    };
    let good = segment(&open, 1);
    assert_eq!(
        refusal(&url, "zgs_uploadSegments", json!([[segment(&done, 0)]])).await,
        parameter("root", "already uploaded and finalized")
    );
    assert_eq!(
        upload(SegmentWithProof {
            file_size: 299_999,
            ..good.clone()
        })
        .await,
        parameter(
            "file_size",
            "segment file size not matched with tx file size"
        )
    );
    assert_eq!(
        upload(SegmentWithProof {
            index: 2,
            ..good.clone()
        })
        .await,
        parameter("index", "index out of bound")
    );
    assert_eq!(
        upload(SegmentWithProof {
            data: vec![0; 256],
            ..good.clone()
        })
        .await,
        parameter("data", "invalid data length")
    );
    assert_eq!(
        upload(SegmentWithProof {
            data: vec![],
            ..good.clone()
        })
        .await
        .1,
        "data is empty"
    );
    let mut bad = good.clone();
    bad.data[0] ^= 1;
    assert_eq!(upload(bad).await, parameter("proof", "validation failed"));
    let mut bad = good.clone();
    bad.proof.path.push(true);
    assert_eq!(upload(bad).await, parameter("proof", "invalid proof"));
    assert_eq!(
        upload(segment(&other, 0)).await,
        (
            -32_603,
            "Internal error".to_owned(),
            Some("data root and tx seq not match".to_owned())
        )
    );
    let unpaid = content(10_485_761);
    assert_eq!(
        refusal(&url, "zgs_uploadSegments", json!([[segment(&unpaid, 0)]])).await,
        parameter(
            "file_size",
            "caching of large file when tx is unavailable is not supported"
        )
    );
    let range = async |start: u64, end: u64| {
        refusal(&url, "zgs_downloadSegmentByTxSeq", json!([0, start, end])).await
    };
    assert_eq!(
        range(1, 1).await,
        parameter("end_index", "invalid chunk index")
    );
    assert_eq!(
        range(0, 1_025).await,
        parameter("end_index", "exceeds maximum chunks 1024")
    );
    assert_eq!(
        range(0, 5).await,
        parameter("end_index", "invalid chunk index")
    );
    assert!(
        call(&url, "zgs_downloadSegmentByTxSeq", json!([9, 0, 1]))
            .await
            .is_null()
    );
}

/// The published Go client sends small files before their payment is mined.
#[tokio::test]
async fn segments_may_come_before_their_payment() {
    let chain = Chain::start().await;
    let node = chain.node().await;
    let url = node.node_url();
    let data = content(300_000);
    for index in 0..2 {
        assert!(
            call(&url, "zgs_uploadSegments", json!([[segment(&data, index)]]))
                .await
                .is_null()
        );
    }
    let root = tree(&data).root();
    assert!(
        call(&url, "zgs_getFileInfo", json!([root, true]))
            .await
            .is_null()
    );
    submit(&chain, &data).await;
    eventually(async || {
        (call(&url, "zgs_checkFileFinalized", json!([root])).await == true).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_restart_keeps_everything_and_damage_is_noticed() {
    let chain = Chain::start().await;
    let node = chain.node().await;
    let path = chain.file("source", &content(600_000));
    let root = client(ClientOptions::node(node.node_url()))
        .upload_file(&path, &chain.client, &quiet)
        .await
        .unwrap()
        .root;
    let in_use = StorageNode::start(chain.node_options("node")).await;
    assert!(
        matches!(in_use, Err(Error::Busy { .. })),
        "one node per directory"
    );
    node.shutdown().await;

    let object = chain
        .directory
        .path()
        .join(format!("node/objects/{root:x}-600000"));
    std::fs::write(object.join("synced.new"), b"half").unwrap();
    let node = chain.node().await;
    let restarted = client(ClientOptions::indexer(node.indexer_url()));
    let target = chain.directory.path().join("copy");
    restarted
        .download_file(root, &target, &quiet)
        .await
        .unwrap();
    let mut bytes = std::fs::read(object.join("data")).unwrap();
    bytes[262_144 + 5] ^= 1;
    std::fs::write(object.join("data"), bytes).unwrap();
    assert!(
        call(
            &node.node_url(),
            "zgs_downloadSegmentWithProof",
            json!([root, 1])
        )
        .await
        .is_null()
    );
    assert_eq!(
        call(&node.node_url(), "zgs_checkFileFinalized", json!([root])).await,
        false
    );
    // The lost segment can be uploaded again, without paying.
    let outcome = restarted
        .upload_file(&path, &chain.client, &quiet)
        .await
        .unwrap();
    assert!(outcome.already_present);
    assert_eq!(
        call(&node.node_url(), "zgs_checkFileFinalized", json!([root])).await,
        true
    );
}

#[tokio::test]
async fn a_replaced_chain_is_read_again_and_files_stay() {
    let chain = Chain::start().await;
    let node = chain.node().await;
    let url = node.node_url();
    let snapshot = chain.devchain.request("evm_snapshot", &[]).unwrap();
    let path = chain.file("source", &content(1_000));
    let client = client(ClientOptions::node(url.clone()));
    let root = client
        .upload_file(&path, &chain.client, &quiet)
        .await
        .unwrap()
        .root;
    chain.devchain.request("evm_revert", &[snapshot]).unwrap();
    eventually(async || {
        call(&url, "zgs_getFileInfo", json!([root, true]))
            .await
            .is_null()
            .then_some(())
    })
    .await;
    // The submission is gone with the chain; its segments are not.
    let data = content(1_000);
    let submitter = Address::repeat_byte(9);
    let nodes = tree(&data).submission_nodes();
    let submission = Submission {
        length: 1_000,
        tags: Bytes::new(),
        nodes,
        submitter,
    };
    chain
        .fresh_client()
        .await
        .flow()
        .unwrap()
        .submit(&submission)
        .await
        .unwrap();
    eventually(async || {
        (call(&url, "zgs_checkFileFinalized", json!([root])).await == true).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_node_without_a_chain_is_told_and_remembers() {
    let directory = tempfile::tempdir().unwrap();
    let options = NodeOptions {
        listen: ([127, 0, 0, 1], 0).into(),
        ..NodeOptions::without_chain(directory.path(), 5, Address::repeat_byte(1))
    };
    let data = content(1_000);
    let submission = Submission {
        length: 1_000,
        tags: Bytes::new(),
        nodes: tree(&data).submission_nodes(),
        submitter: Address::repeat_byte(2),
    };
    let submitted = Submitted {
        index: 0,
        start_sector: 4,
        sectors: 4,
        identity: B256::ZERO,
        submitter: Address::repeat_byte(2),
        submission,
    };
    let node = StorageNode::start(options.clone()).await.unwrap();
    node.announce(submitted.clone()).await.unwrap();
    node.announce(submitted).await.unwrap();
    call(
        &node.node_url(),
        "zgs_uploadSegmentByTxSeq",
        json!([segment(&data, 0), 0]),
    )
    .await;
    node.shutdown().await;
    let node = StorageNode::start(options).await.unwrap();
    let url = node.node_url();
    assert_eq!(
        call(&url, "zgs_getFileInfoByTxSeq", json!([0])).await["finalized"],
        true
    );
    assert_eq!(
        call(&url, "zgs_getStatus", json!([])).await["networkIdentity"]["chainId"],
        5
    );
}

#[tokio::test]
async fn plain_routes_deliver_files_and_facts() {
    let chain = Chain::start().await;
    let node = chain.node().await;
    let url = node.indexer_url();
    let path = chain.file("source", &content(600_000));
    let root = client(ClientOptions::node(url.clone()))
        .upload_file(&path, &chain.client, &quiet)
        .await
        .unwrap()
        .root;
    let http = reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(10))
        .build()
        .unwrap();
    let get = async |path: String| http.get(format!("{url}{path}")).send().await.unwrap();
    let response = get(format!("/file?root={root}&name=../my%22file.txt")).await;
    assert_eq!(
        response.headers()["content-disposition"],
        "attachment; filename=\"..myfile.txt\""
    );
    assert_eq!(response.bytes().await.unwrap(), content(600_000));
    assert_eq!(
        get("/file?txSeq=0".to_owned()).await.bytes().await.unwrap(),
        content(600_000)
    );
    let answer = async |path: String| get(path).await.json::<Value>().await.unwrap();
    assert_eq!(
        answer(format!("/file?root={}", B256::ZERO)).await["code"],
        101
    );
    assert_eq!(answer("/file".to_owned()).await["code"], 1);
    assert_eq!(
        answer(format!("/file/info/{root}")).await["data"]["tx"]["size"],
        600_000
    );
    assert_eq!(
        answer("/file/info/0".to_owned()).await["data"]["finalized"],
        true
    );
    assert_eq!(
        answer("/files/info?cid=0,77".to_owned()).await["data"][1],
        Value::Null
    );
    assert_eq!(
        answer("/node/status".to_owned()).await["data"]["nextTxSeq"],
        1
    );
}
