use alloy_primitives::{Address, B256, Bytes, U256, b256, hex, keccak256};
use zerog_chain::{
    ContractErrorKind as Kind, calls,
    flow::{Submission, SubmissionNode},
};

use crate::support::{OWNER, World, og, refusal, refused};

/// The subtrees of a padded file: chunks rounded up to 1/16 of the next power of two, split into
/// powers of two.
fn submission(length: u64) -> Submission {
    let chunks = length.div_ceil(256);
    let power = chunks.next_power_of_two();
    let unit = (power / 16).max(1);
    let padded = chunks.div_ceil(unit) * unit;
    let nodes = (0..64_u8)
        .rev()
        .filter(|height| padded >> height & 1 == 1)
        .map(|height| SubmissionNode {
            root: keccak256([height]),
            height,
        })
        .collect();
    Submission {
        length,
        tags: Bytes::new(),
        nodes,
        submitter: Address::repeat_byte(0x11),
    }
}

/// Published placements on a fresh contract: size, first sector, sectors.
#[tokio::test]
async fn files_are_placed_as_on_the_public_contract() {
    const PLACEMENTS: [(u64, u64, u64); 18] = [
        (1, 1, 1),
        (257, 2, 2),
        (255, 4, 1),
        (1_025, 8, 5),
        (4_097, 16, 18),
        (5_000, 48, 20),
        (262_143, 1_024, 1_024),
        (262_145, 2_048, 1_152),
        (1, 3_200, 1),
        (65_536, 3_328, 256),
        (100_000, 3_584, 416),
        (262_400, 4_096, 1_152),
        (1_048_577, 8_192, 4_608),
        (257, 12_800, 2),
        (10_000_000, 32_768, 40_960),
        (1_024, 73_728, 4),
        (524_289, 75_776, 2_304),
        (1_048_576, 81_920, 4_096),
    ];
    let world = World::start().await;
    let client = world.client(3);
    let flow = client.flow().unwrap();
    for (index, (length, start, sectors)) in (0_u64..).zip(PLACEMENTS) {
        let (submitted, _) = flow.submit(&submission(length)).await.unwrap();
        assert_eq!(
            (submitted.index, submitted.start_sector, submitted.sectors),
            (index, start, sectors),
            "{length}"
        );
        assert_eq!(submitted.submission, submission(length));
        assert_eq!(submitted.submitter, Address::repeat_byte(0x11));
    }
    assert_eq!(flow.submissions().await.unwrap(), 18);
}

/// Published calldata of a 257-byte file, and the event it leads to as second submission.
#[tokio::test]
async fn the_published_submission_vector_is_produced() {
    // Root of 257 bytes of the published test content: two chunks, one subtree of height 1.
    let root = b256!("679a0858384c14d0ccacedfe450439de110b73e4aa5febd3b4ce9590ca15feb2");
    let file = Submission {
        length: 257,
        tags: Bytes::new(),
        nodes: vec![SubmissionNode { root, height: 1 }],
        submitter: Address::repeat_byte(0x11),
    };
    let data = calls::flow::submit(Address::ZERO, &file, U256::ZERO).data;
    assert_eq!(data.len(), 324);
    let word = |value: u64| format!("{value:064x}");
    let expected = [
        "bc8c11f8".to_owned(),
        word(0x20),
        word(0x40),
        format!("{:0>64}", "11".repeat(20)),
        word(0x101),
        word(0x60),
        word(0x80),
        word(0),
        word(1),
        hex::encode(root),
        word(1),
    ];
    assert_eq!(hex::encode(&data), expected.concat());
    assert_eq!(
        keccak256(&data),
        b256!("35cdd5951d749dba3bdd8ddfaf7b621ffe87f26b9044cc5db943669e4db74c72")
    );

    let world = World::start().await;
    let flow = world.client(3).flow().unwrap();
    flow.submit(&submission(1)).await.unwrap();
    let (submitted, receipt) = flow.submit(&file).await.unwrap();
    assert_eq!(
        submitted.identity,
        b256!("483f8f57d4d2cf0fc148fd7f5fed748ad33ca08cb9c4366b34192467815e48d2")
    );
    let log = receipt
        .logs
        .iter()
        .find(|log| log.address == flow.address())
        .unwrap();
    let expected = [
        word(1),
        word(2),
        word(2),
        word(0x80),
        word(0x101),
        word(0x60),
        word(0x80),
        word(0),
        word(1),
        hex::encode(root),
        word(1),
    ];
    assert_eq!(hex::encode(&log.data), expected.concat());
    // The event, its sender, the identity.
    let topics = [
        b256!("167ce04d2aa1981994d3a31695da0d785373335b1078cec239a1a3a2c7675555"),
        Address::repeat_byte(0x11).into_word(),
        submitted.identity,
    ];
    assert_eq!(log.topics, topics);
}

#[tokio::test]
async fn only_lists_of_a_padded_file_are_accepted() {
    let world = World::start().await;
    let flow = world.client(3).flow().unwrap().address();
    let node = |height| SubmissionNode {
        root: B256::repeat_byte(1),
        height,
    };
    let with = |length: u64, heights: &[u8]| Submission {
        length,
        tags: Bytes::new(),
        nodes: heights.iter().copied().map(node).collect(),
        submitter: Address::repeat_byte(0x11),
    };
    let send = async |file: Submission| {
        let fee = U256::from(30_733_644_962_u64) * file.sectors().min(U256::from(1_000_000));
        world.send(3, calls::flow::submit(flow, &file, fee)).await
    };
    let mut nobody = with(257, &[1]);
    nobody.submitter = Address::ZERO;
    let bad = [
        nobody,
        with(1, &[]),
        with(1, &[64]),
        with(257, &[0]),
        with(256, &[1]),
        with(0, &[0]),
        with(700, &[1, 1]),
        with(1 << 20, &[12, 8]),
        // A whole unit more than the file needs.
        with(65_536 / 2, &[8]),
    ];
    for file in bad {
        let (kind, text) = refusal(send(file.clone()).await);
        assert_eq!(
            (kind, text.as_str()),
            (Kind::Text, "Invalid submission"),
            "{file:?}"
        );
    }
    assert_eq!(refused(send(with(700, &[0, 1])).await), Kind::Panic);
    send(with(700, &[1, 0])).await.unwrap();
}

#[tokio::test]
async fn the_fee_is_checked_against_the_balance_and_forwarded() {
    let world = World::start().await;
    let client = world.client(3);
    let flow = client.flow().unwrap();
    let market = flow.market().await.unwrap();
    let price = flow.price_per_sector().await.unwrap();
    assert_eq!(price, U256::from(30_733_644_962_u64));

    // The surplus of genesis pays for a submission without value, as clients that estimate first need.
    let free = calls::flow::submit(flow.address(), &submission(257), U256::ZERO);
    world.send(3, free.clone()).await.unwrap();
    assert_eq!(client.balance(market).await.unwrap(), price * U256::from(2));
    assert_eq!(
        client.balance(flow.address()).await.unwrap(),
        og(1) - price * U256::from(2)
    );

    let set = calls::flow::set_price_per_sector(market, og(1));
    assert_eq!(refused(world.send(3, set.clone()).await), Kind::Text);
    world.send(OWNER, set).await.unwrap();
    let (kind, details) = refusal(world.send(3, free).await);
    assert_eq!(kind, Kind::NotEnoughFee);
    assert!(details.contains("sectors: 2"), "{details}");
    let before = client.balance(market).await.unwrap();
    flow.submit(&submission(257)).await.unwrap();
    assert_eq!(client.balance(market).await.unwrap() - before, og(2));

    let (submitted, receipt) = flow
        .batch_submit(&[submission(1), submission(1_025)])
        .await
        .unwrap();
    assert_eq!(
        submitted
            .iter()
            .map(|file| file.sectors)
            .collect::<Vec<_>>(),
        [1, 5]
    );
    assert_eq!(submitted[1].index, submitted[0].index + 1);
    assert_eq!(flow.submitted(&receipt).len(), 2);
    let gas = world.gas_needed(
        3,
        &calls::flow::submit(flow.address(), &submission(257), og(2)),
    );
    assert!(gas < 225_000, "{gas}");
}
