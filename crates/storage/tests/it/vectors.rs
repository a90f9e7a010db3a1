//! Published vectors of roots, submission nodes, proofs, calldata and placement.

use alloy_primitives::{Address, B256, Bytes, b256, hex, keccak256};
use zerog_chain::{
    calls,
    flow::{Submission, SubmissionNode},
};
use zerog_storage::{
    Error, FileShape, FileTree,
    merkle::{
        FileProof, InvalidSegment, SEGMENT_BYTES, check_segment, root_of_nodes, tree_root,
        zero_hash,
    },
};

use crate::support::{Chain, content};

/// Size, sectors, padded sectors, segments, padded segments, node heights, root.
type Row = (u64, u64, u64, u64, u64, &'static [u8], B256);

const ROWS: &[Row] = &[
    (
        1,
        1,
        1,
        1,
        1,
        &[0],
        b256!("71bfab3b73c19ec6548f3e1dcc56d9a8c7c66b51b71e4dbbfb1fc0e0bf2826ba"),
    ),
    (
        2,
        1,
        1,
        1,
        1,
        &[0],
        b256!("0af84e92712ea3870e9f46a72a782ec228efa122479adb34658fce532020c6bd"),
    ),
    (
        255,
        1,
        1,
        1,
        1,
        &[0],
        b256!("20b600d0d7b8fcf7233d99d4a33a20d6b57dabfd480025ad2d71d3b4e615226f"),
    ),
    (
        256,
        1,
        1,
        1,
        1,
        &[0],
        b256!("126c6843d5088b660af05889b60ac7a955a24654f8e3508053d6eff082d6b5b6"),
    ),
    (
        257,
        2,
        2,
        1,
        1,
        &[1],
        b256!("679a0858384c14d0ccacedfe450439de110b73e4aa5febd3b4ce9590ca15feb2"),
    ),
    (
        511,
        2,
        2,
        1,
        1,
        &[1],
        b256!("016c6aea4f3785eebff93292da7df8a3c761fa3f21cfd4aa37947bc835189410"),
    ),
    (
        512,
        2,
        2,
        1,
        1,
        &[1],
        b256!("41f080eda98f82dec40563835c74a57f5b14f5934c0117704b81bcf310483220"),
    ),
    (
        513,
        3,
        3,
        1,
        1,
        &[1, 0],
        b256!("e78466bff663a881997d653dcbd06f750e7078d9e2e865956630aaeecacff1aa"),
    ),
    (
        1023,
        4,
        4,
        1,
        1,
        &[2],
        b256!("f91b2408b06184f4f14e94b622ee8facd2ad3712373b34d73f183297d4461fc0"),
    ),
    (
        1024,
        4,
        4,
        1,
        1,
        &[2],
        b256!("8bcfda4ad4f728d781ecdcf6eef3e86932db7e963f205f3e1c7f86e54433e83e"),
    ),
    (
        1025,
        5,
        5,
        1,
        1,
        &[2, 0],
        b256!("0b65df2c9092781534395beffd496ff0c6dfb974856d9a845ecc52b6373cae65"),
    ),
    (
        4096,
        16,
        16,
        1,
        1,
        &[4],
        b256!("138ae824d1469ae7a59807a9d0054ad39faa83bb5111499d57936968dd2016b7"),
    ),
    (
        4097,
        17,
        18,
        1,
        1,
        &[4, 1],
        b256!("df4cb53ce73c9ea1eb6d04cbe45e9f244c899c989577ce171b743cf9a81212fd"),
    ),
    (
        5000,
        20,
        20,
        1,
        1,
        &[4, 2],
        b256!("8a53283e24b9959726185085295238faf8a0b55138bd74ddfac4e70e9b2c26bd"),
    ),
    (
        65_536,
        256,
        256,
        1,
        1,
        &[8],
        b256!("ee1e042ac2ee077c007325b3da47562fa64348b82aae968de25c838e2cc4a08c"),
    ),
    (
        100_000,
        391,
        416,
        1,
        1,
        &[8, 7, 5],
        b256!("42695047837343cffc125496d4f135a3c0a22ee0225cfd6424f68989d9d74eb4"),
    ),
    (
        262_143,
        1024,
        1024,
        1,
        1,
        &[10],
        b256!("21addae32f3bdf3302185fa5c5cda8a00cd91f4f526783fa47532a67fe57aa47"),
    ),
    (
        262_144,
        1024,
        1024,
        1,
        1,
        &[10],
        b256!("8ebcdb8fedaf772b6ca29c79fb59a3d1b392c6835d227a8bd5bf256ddc3ade3a"),
    ),
    (
        262_145,
        1025,
        1152,
        2,
        2,
        &[10, 7],
        b256!("80f499a5327b3719ef23fa2cf03ca12275702d0e258bbc19511f32f4e555b276"),
    ),
    (
        524_289,
        2049,
        2304,
        3,
        3,
        &[11, 8],
        b256!("53edd1068cc4b6bb652d39614162bd2444a4a77f0b1883b533a922dc55f037d9"),
    ),
    (
        1_048_575,
        4096,
        4096,
        4,
        4,
        &[12],
        b256!("d2638f2716d0b9ad17ad2624937ce526ca0254610ce1c839cd9b184f1af4dc30"),
    ),
    (
        1_048_576,
        4096,
        4096,
        4,
        4,
        &[12],
        b256!("2da75c6cfe571cd2ccc50628a4b6ec98db45de3d504331e844a29659553cf3c1"),
    ),
    (
        1_048_577,
        4097,
        4608,
        5,
        5,
        &[12, 9],
        b256!("0a3e25121227b8376e3784ee9262e8997b9719d38d962157e42c1b05b3e98960"),
    ),
    (
        5_000_000,
        19_532,
        20_480,
        20,
        20,
        &[14, 12],
        b256!("e6842dbe4aecff180b2b3f931841eba7f40cae7c19572f83bf56adab9304af6b"),
    ),
    (
        10_000_000,
        39_063,
        40_960,
        39,
        40,
        &[15, 13],
        b256!("71fc82994e765b7bec6f6a48e03a7e9b74701cf24d322307c3e29d79a6db251a"),
    ),
    (
        10_485_760,
        40_960,
        40_960,
        40,
        40,
        &[15, 13],
        b256!("1bd405fba829bcfd8e16a4a8220e5162d0353ed99a271f004209e35f9c9ac559"),
    ),
    (
        10_485_761,
        40_961,
        45_056,
        41,
        44,
        &[15, 13, 12],
        b256!("3d193848e9daa06f65f77e1a61e043c1a86dc25c99cac63355c5143e51fa2910"),
    ),
];

/// Submission node roots; files of one node have their root there.
const NODES: &[(u64, &[B256])] = &[
    (
        513,
        &[
            b256!("41f080eda98f82dec40563835c74a57f5b14f5934c0117704b81bcf310483220"),
            b256!("8143ef1515ccfdef63ba67bb94653405cd6dc31d031dcf34af6ecece5bfb86c9"),
        ],
    ),
    (
        1025,
        &[
            b256!("8bcfda4ad4f728d781ecdcf6eef3e86932db7e963f205f3e1c7f86e54433e83e"),
            b256!("d46dd1fbc41e7ba7ec57884ca361d3abc373badb9b6e7b9f058a13fca99611cb"),
        ],
    ),
    (
        4097,
        &[
            b256!("138ae824d1469ae7a59807a9d0054ad39faa83bb5111499d57936968dd2016b7"),
            b256!("86c3dda105941e2608655655e130da2eccfc91b35a5ce7703fffb7f50b745dd0"),
        ],
    ),
    (
        5000,
        &[
            b256!("138ae824d1469ae7a59807a9d0054ad39faa83bb5111499d57936968dd2016b7"),
            b256!("776897e091c6faa6b1f452e063fad6e376b4bd6005be2ee9f95b997435e4732e"),
        ],
    ),
    (
        100_000,
        &[
            b256!("ee1e042ac2ee077c007325b3da47562fa64348b82aae968de25c838e2cc4a08c"),
            b256!("dfe3ec0521f5e609b413de9da32edced88cfc55115955a6c219a054ce8e361d4"),
            b256!("0adf8754c34ce731927aff56fd59ba136a3805c6cbb2c4521257fd786edadc16"),
        ],
    ),
    (
        262_145,
        &[
            b256!("8ebcdb8fedaf772b6ca29c79fb59a3d1b392c6835d227a8bd5bf256ddc3ade3a"),
            b256!("408dc229b1b499d7099cd9ae95ceffdb1c2d4709b9f7a2e36c5bb6d866619c9a"),
        ],
    ),
    (
        524_289,
        &[
            b256!("0710864a97f2ae5b05e7c9327b418026a426e1f66f826889e541e6cb26ce12e4"),
            b256!("945f06375fc9da7019ea9ffc62f5456e0a84031c7ad26bfe588addfce3020f3b"),
        ],
    ),
    (
        1_048_577,
        &[
            b256!("2da75c6cfe571cd2ccc50628a4b6ec98db45de3d504331e844a29659553cf3c1"),
            b256!("d4bf27aee7f9e835f3770d1c5a5c9835bcc242ab55f8bf51e0a046d7ef35d876"),
        ],
    ),
    (
        5_000_000,
        &[
            b256!("cc9b1728552cd9a51a8f9bf4aa3f20e04227fd3c73b1f045e9e2e3260f961c8f"),
            b256!("e8a73b1a3a0168df7cc6a7837ed80985fd4cdda17d4e1f26e84b976323d6659a"),
        ],
    ),
    (
        10_000_000,
        &[
            b256!("ae9086ae93836ac46a42e4a321cbe02576d5e300a293a25c0f3a84a5951d8266"),
            b256!("6562a603b4c7b57695889b567e9cefe60c12e49d9f6729d44e42a15002ff57ab"),
        ],
    ),
    (
        10_485_760,
        &[
            b256!("ae9086ae93836ac46a42e4a321cbe02576d5e300a293a25c0f3a84a5951d8266"),
            b256!("e8b51e21bb4db7f76611a2ca53b0d26cb77efd0b71c754581221c3b49a24d80d"),
        ],
    ),
    (
        10_485_761,
        &[
            b256!("ae9086ae93836ac46a42e4a321cbe02576d5e300a293a25c0f3a84a5951d8266"),
            b256!("e8b51e21bb4db7f76611a2ca53b0d26cb77efd0b71c754581221c3b49a24d80d"),
            b256!("6538f24bfea08cb034be68f44e434ae8512079eccc1318f806a7d71f21072b8c"),
        ],
    ),
];

fn tree(data: &[u8]) -> FileTree {
    FileTree::read(FileShape::new(data.len() as u64).unwrap(), data).unwrap()
}

#[test]
fn zero_subtrees_have_the_published_hashes() {
    let published = [
        b256!("d397b3b043d87fcd6fad1291ff0bfd16401c274896d8c63a923727f077b8e0b5"),
        b256!("f73e6947d7d1628b9976a6e40d7b278a8a16405e96324a68df45b12a51b7cfde"),
        b256!("a1520264ae93cac619e22e8718fc4fa7ebdd23f493cad602434d2a58ff4868fb"),
        b256!("de5747106ac1194a1fa9071dbd6cf19dc2bc7964497ef0afec7e4bdbcf08c47e"),
        b256!("09c7082879180d28c789c05fafe7030871c76cedbe82c948b165d6a1d66ac15b"),
        b256!("aa7a02bcf29fba687f84123c808b5b48834ff5395abe98e622fadc14e4180c95"),
        b256!("7608fd46b710b589e0f2ee5a13cd9c41d432858a30d524f84c6d5db37f66273a"),
        b256!("a5d9a2f7f3573ac9a1366bc484688b4daf934b87ea9b3bf2e703da8fd9f09708"),
        b256!("6c1779477f4c3fca26b4607398859a43b90a286ce8062500744bd4949981757f"),
        b256!("45c22df3d952c33d5edce122eed85e5cda3fd61939e7ad7b3e03b6927bb598ea"),
        b256!("e68d02859bb6211cec64f52368b77d422de3b8eac34bf615942b814b643301b5"),
        b256!("62d78399b954d51cb9728601738ad13ddc43b2300064660716bb661d2f4d686f"),
        b256!("6e250d9abdbbb3993fce08de0395cdb56f0483e67d8762a798de011f6a50866a"),
    ];
    for (height, hash) in published.into_iter().enumerate() {
        assert_eq!(zero_hash(height), hash);
    }
}

#[test]
fn shapes_nodes_and_roots_are_the_published_ones() {
    for &(size, sectors, padded, segments, padded_segments, heights, root) in ROWS {
        let tree = tree(&content(size as usize));
        let shape = tree.shape();
        assert_eq!(
            (shape.sectors(), shape.padded_sectors()),
            (sectors, padded),
            "{size}"
        );
        assert_eq!(
            (shape.segments(), shape.padded_segments()),
            (segments, padded_segments),
            "{size}"
        );
        assert_eq!(tree.root(), root, "{size}");
        let nodes = tree.submission_nodes();
        assert_eq!(
            nodes.iter().map(|node| node.height).collect::<Vec<_>>(),
            heights,
            "{size}"
        );
        assert_eq!(root_of_nodes(&nodes), root, "{size}");
        match NODES.iter().find(|(listed, _)| *listed == size) {
            Some((_, roots)) => assert_eq!(
                nodes.iter().map(|node| node.root).collect::<Vec<_>>(),
                *roots,
                "{size}"
            ),
            None => assert_eq!(nodes[0].root, root, "{size}"),
        }
    }
}

#[test]
fn a_file_on_disk_has_the_root_of_its_content_and_an_empty_one_has_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    std::fs::write(&path, content(5_000_000)).unwrap();
    assert_eq!(
        zerog_storage::merkle::root_of_file(&path).unwrap(),
        ROWS[23].6
    );
    std::fs::write(&path, []).unwrap();
    assert!(matches!(
        zerog_storage::merkle::root_of_file(&path),
        Err(Error::EmptyFile)
    ));
    assert!(matches!(
        zerog_storage::merkle::root_of_file(directory.path()),
        Err(Error::File { .. })
    ));
    let shape = FileShape::new(1_000).unwrap();
    assert!(
        FileTree::read(shape, &content(999)[..]).is_err(),
        "a file that shrank"
    );
    assert!(
        FileTree::read(shape, &content(1_001)[..]).is_err(),
        "a file that grew"
    );
}

#[test]
fn the_root_does_not_bind_trailing_zeros() {
    let mut padded = vec![7];
    padded.resize(256, 0);
    assert_eq!(tree(&padded).root(), ROWS[0].6);
    assert_eq!(tree(&[7, 0]).root(), ROWS[0].6);
}

#[test]
fn the_plain_tree_rule_gives_the_vectors_of_the_go_client() {
    let expected = [
        (
            5,
            b256!("2dea03c693750777940bcd0cc3f5d93543c075fa3b9a07b9fd86ec8fbaf6a8b2"),
        ),
        (
            6,
            b256!("318c92000aefba6ebf570a8a6daa57aa643f04350ffbe583999ddd9e24ceb147"),
        ),
        (
            7,
            b256!("ca80116fb7fb8d6ef4a47e322f22e94ae8beb03e6fcbf8ab59c4d6f54fe42c4d"),
        ),
    ];
    for (count, root) in expected {
        let leaves = (0..count)
            .map(|number| keccak256(format!("chunk data - {number}")))
            .collect();
        assert_eq!(tree_root(leaves), root);
    }
}

#[test]
fn fragments_and_encrypted_objects_have_the_published_roots() {
    let whole = content(5_000_000);
    let roots = [
        b256!("2da75c6cfe571cd2ccc50628a4b6ec98db45de3d504331e844a29659553cf3c1"),
        b256!("0a55a448d27a8b72edf4cc24a56474738e1969020bd5e3e25f897ebf34af1b3d"),
        b256!("94e33e74c0e71b85343a72e488662396b738f312552a36308cea8c44b04eddfc"),
        b256!("b994f957b22b5d54059d4053283c0e216e78ff69ae8ccc6a33692f0d94a634c3"),
        b256!("3e084f6f51d91f94a205f42c10c1266762704f322185736f6df0dceb15839979"),
    ];
    for (fragment, root) in whole.chunks(1_048_576).zip(roots) {
        assert_eq!(tree(fragment).root(), root);
    }
    let with_key = hex!(
        "01a0a1a2a3a4a5a6a7a8a9aaabacadaeafdbb94499f51abded0b68aae48b94523de0f1d44f01dd2ef21597c4d11da96b486ff1ddfa9ff12cde86b936d5d97c31a03f360e19ae31ab1486f84a877ecec088"
    );
    assert_eq!(
        tree(&with_key).root(),
        b256!("bf7d98e4f2b15d524316dc84c07d01880aecccc7fb6efd555ea96670cd6e2f88")
    );
    let with_public_key = hex!(
        "0202466d7fcae563e5cb09a0d1870bb580344804617879a14949cf22285f1bae3f27a0a1a2a3a4a5a6a7a8a9aaabacadaeaf63ec7439630d01b1e13c7fa1a5e378a2cab3257769554637a3f2c3bbe67599dee275b7deabb2235ec32d61c2a966f819373a0915665293bebd3a068a76d890c1"
    );
    assert_eq!(
        tree(&with_public_key).root(),
        b256!("6e36b4ac152fdef99e701f5e337570118643c48671bafb366b91ccf24acd47c2")
    );
}

#[test]
fn proofs_are_the_published_ones() {
    let big = tree(&content(1_048_577));
    let last = b256!("d4bf27aee7f9e835f3770d1c5a5c9835bcc242ab55f8bf51e0a046d7ef35d876");
    let first_four = b256!("2da75c6cfe571cd2ccc50628a4b6ec98db45de3d504331e844a29659553cf3c1");
    let root = b256!("0a3e25121227b8376e3784ee9262e8997b9719d38d962157e42c1b05b3e98960");
    assert_eq!(
        big.proof(4),
        FileProof {
            lemma: vec![last, first_four, root],
            path: vec![false]
        }
    );
    assert_eq!(
        big.proof(0),
        FileProof {
            lemma: vec![
                b256!("8ebcdb8fedaf772b6ca29c79fb59a3d1b392c6835d227a8bd5bf256ddc3ade3a"),
                b256!("9176f05e22a3ad31b0f20d067c34ac66b09c5835331f60ca39d92f7d6b1b6f21"),
                b256!("131c39e45e9a39ab00d397e2bbabac4f32d529226dac8858c51e28e0aae69035"),
                last,
                root
            ],
            path: vec![true, true, true],
        }
    );
    assert_eq!(
        big.proof(3),
        FileProof {
            lemma: vec![
                b256!("76739159ac18d0eadc5651d1bc57f30eda3eba5f38a7416e899965c3b2b5dfbd"),
                b256!("40c22f354f8eaa60d5818f806a4c0280796c99ecc5cca2d810d350071d4a52cd"),
                b256!("0710864a97f2ae5b05e7c9327b418026a426e1f66f826889e541e6cb26ce12e4"),
                last,
                root
            ],
            path: vec![false, false, true],
        }
    );
    let small = tree(&content(262_145));
    assert_eq!(small.proof(1).lemma[..2], [NODES[5].1[1], NODES[5].1[0]]);
    assert_eq!(small.proof(1).path, [false]);
    let single = tree(&content(4_097));
    assert_eq!(
        single.proof(0),
        FileProof {
            lemma: vec![single.root()],
            path: vec![]
        }
    );
    assert_eq!(
        tree(&content(10_000_000)).proof(38),
        FileProof {
            lemma: vec![
                b256!("fdc3e679a63211cccb19cce3d487af74489a67ae705d105bf01f8abe352d29d9"),
                zero_hash(10),
                b256!("dee79ee277da4359d815427771fd3faf935e76b32343cce0aa86447176bbe8ab"),
                b256!("dc2d9125131d14e91b3f28d45edfb0b744c7904cc87d2c215b1aebda0babbe25"),
                b256!("ae9086ae93836ac46a42e4a321cbe02576d5e300a293a25c0f3a84a5951d8266"),
                b256!("71fc82994e765b7bec6f6a48e03a7e9b74701cf24d322307c3e29d79a6db251a"),
            ],
            path: vec![true, false, false, false],
        }
    );
}

#[test]
fn every_segment_passes_its_check_and_nothing_else_does() {
    for size in [1, 256, 4_097, 262_144, 262_145, 1_048_577, 10_485_761] {
        let data = content(size);
        let tree = tree(&data);
        let (shape, root) = (tree.shape(), tree.root());
        let segment = |index: u64| {
            let mut segment =
                data[index as usize * SEGMENT_BYTES..][..shape.file_bytes(index)].to_vec();
            segment.resize(shape.segment_bytes(index), 0);
            segment
        };
        let last = shape.segments() - 1;
        for index in 0..shape.segments() {
            assert_eq!(
                check_segment(shape, root, index, &segment(index), &tree.proof(index)),
                Ok(()),
                "{size}/{index}"
            );
        }
        let (good, proof) = (segment(last), tree.proof(last));
        let check =
            |index, data: &[u8], proof: &FileProof| check_segment(shape, root, index, data, proof);
        let mut flipped = good.clone();
        flipped[0] ^= 1;
        assert_eq!(check(last, &flipped, &proof), Err(InvalidSegment::Mismatch));
        assert_eq!(check(last + 1, &good, &proof), Err(InvalidSegment::Index));
        assert_eq!(check(last, &good[1..], &proof), Err(InvalidSegment::Length));
        assert_eq!(
            check(last, &[&good[..], &[0; 256]].concat(), &proof),
            Err(InvalidSegment::Length)
        );
        let longer = FileProof {
            lemma: [&proof.lemma[..], &[root]].concat(),
            path: proof.path.clone(),
        };
        assert_eq!(check(last, &good, &longer), Err(InvalidSegment::ProofForm));
        for step in 0..proof.path.len() {
            let mut other = proof.clone();
            other.path[step] = !other.path[step];
            assert!(check(last, &good, &other).is_err(), "{size}, path {step}");
        }
        for hash in 0..proof.lemma.len() {
            let mut other = proof.clone();
            other.lemma[hash].0[5] ^= 1;
            assert!(check(last, &good, &other).is_err(), "{size}, hash {hash}");
        }
        if last > 0 {
            let wrong_place = check(0, &segment(0), &tree.proof(1));
            assert_eq!(wrong_place, Err(InvalidSegment::Mismatch), "{size}");
        }
    }
}

/// A submitter could hide data in the padding; its hash has to be that of zeros.
#[test]
fn padding_must_be_zeros() {
    let data = content(10_000_000);
    let honest = tree(&data);
    let mut roots: Vec<B256> = (0..40).map(|index| honest.segment_root(index)).collect();
    roots[39] = B256::repeat_byte(9);
    let mut proof = honest.proof(38);
    proof.lemma[1] = roots[39];
    let root = tree_root(roots);
    *proof.lemma.last_mut().unwrap() = root;
    let segment = &mut data[38 * SEGMENT_BYTES..].to_vec();
    segment.resize(honest.shape().segment_bytes(38), 0);
    let checked = check_segment(honest.shape(), root, 38, segment, &proof);
    assert_eq!(checked, Err(InvalidSegment::Padding));
}

#[test]
fn calldata_is_the_published_one() {
    let vectors = [
        (
            257,
            324,
            b256!("35cdd5951d749dba3bdd8ddfaf7b621ffe87f26b9044cc5db943669e4db74c72"),
        ),
        (
            1025,
            388,
            b256!("9c4e4b691d546c3d49506c6e70516c76ac0ec7027a7470ff1267e2f22282c294"),
        ),
    ];
    for (size, length, hash) in vectors {
        let submission = Submission {
            length: size as u64,
            tags: Bytes::new(),
            nodes: tree(&content(size)).submission_nodes(),
            submitter: Address::repeat_byte(0x11),
        };
        let call = calls::flow::submit(Address::ZERO, &submission, Default::default());
        assert_eq!((call.data.len(), keccak256(&call.data)), (length, hash));
    }
}

/// The start positions that the official contract gives to a sequence of files.
#[tokio::test]
async fn the_contract_places_files_as_the_official_one() {
    let placed = [
        (1, 1, 1),
        (257, 2, 2),
        (255, 4, 1),
        (1025, 8, 5),
        (4097, 16, 18),
        (5000, 48, 20),
        (262_143, 1024, 1024),
        (262_145, 2048, 1152),
        (1, 3200, 1),
        (65_536, 3328, 256),
        (100_000, 3584, 416),
        (262_400, 4096, 1152),
        (1_048_577, 8192, 4608),
        (257, 12_800, 2),
        (10_000_000, 32_768, 40_960),
        (1024, 73_728, 4),
        (524_289, 75_776, 2304),
        (1_048_576, 81_920, 4096),
    ];
    let chain = Chain::start().await;
    let flow = chain.client.flow().unwrap();
    for (index, (size, start, sectors)) in placed.into_iter().enumerate() {
        let nodes: Vec<SubmissionNode> = tree(&content(size)).submission_nodes();
        let submitter = chain.client.wallet_address().unwrap();
        let submission = Submission {
            length: size as u64,
            tags: Bytes::new(),
            nodes,
            submitter,
        };
        let (submitted, _) = flow.submit(&submission).await.unwrap();
        assert_eq!(
            (submitted.index, submitted.start_sector, submitted.sectors),
            (index as u64, start, sectors),
            "{size}"
        );
    }
}

/// Files of the fine-tuning protocol: the small dataset and a sealed delivery.
#[test]
fn published_datasets_and_deliveries_have_their_roots() {
    let file: serde_json::Value = serde_json::from_str(include_str!(
        "../../../protocol/tests/vectors/published.json"
    ))
    .unwrap();
    for (name, bytes, length) in [("dataset", "bytes", 254), ("delivery", "file", 124)] {
        let vector = &file[name];
        let text = |member: &str| vector[member].as_str().unwrap();
        let content = hex::decode(text(bytes)).unwrap();
        assert_eq!(content.len(), length, "{name}");
        assert_eq!(keccak256(&content).to_string(), text("keccak"), "{name}");
        let shape = FileShape::new(length as u64).unwrap();
        let root = FileTree::read(shape, content.as_slice()).unwrap().root();
        assert_eq!(root.to_string(), text("storage_root"), "{name}");
    }
}
