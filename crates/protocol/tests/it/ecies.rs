//! Blobs of the JavaScript and Python libraries open, and what we seal has their form. The files are recorded by the
//! scripts beside them, which also let each library open the other's blobs.

use serde_json::Value;
use zerog_protocol::{SecretKey, ecies};

/// Ephemeral key, nonce and tag.
const OVERHEAD: usize = 65 + 16 + 16;

fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

#[test]
fn blobs_of_both_libraries_open_with_their_key_alone() {
    for text in [
        include_str!("../vectors/ecies_js.json"),
        include_str!("../vectors/ecies_py.json"),
    ] {
        let file: Value = serde_json::from_str(text).unwrap();
        let vectors = file["vectors"].as_array().unwrap();
        assert_eq!(vectors.len(), 12);
        for vector in vectors {
            let name = format!("{}, {}", file["library"], vector["name"]);
            let key: SecretKey = vector["key"].as_str().unwrap().parse().unwrap();
            let (plaintext, blob) = (bytes(&vector["plaintext"]), bytes(&vector["blob"]));
            assert_eq!(blob.len(), plaintext.len() + OVERHEAD, "{name}");
            assert_eq!(ecies::open(&key, &blob).unwrap(), plaintext, "{name}");
            assert!(ecies::open(&SecretKey::random(), &blob).is_err(), "{name}");
            // One bit of the ephemeral key, the nonce, the tag and the ciphertext.
            for index in [1, 40, 70, 90, blob.len() - 1] {
                let mut damaged = blob.clone();
                damaged[index] ^= 1;
                assert!(ecies::open(&key, &damaged).is_err(), "{name}, byte {index}");
            }
            assert!(
                ecies::open(&key, &blob[..blob.len() - 1]).is_err(),
                "{name}"
            );

            let ours = ecies::seal(&key.public_key(), &plaintext).unwrap();
            assert_eq!((ours.len(), ours[0]), (blob.len(), 4), "{name}");
            assert_eq!(ecies::open(&key, &ours).unwrap(), plaintext, "{name}");
        }
    }
}
