//! `published.json` holds the vectors of the protocol documents, each with the section it comes from.

use serde_json::Value;
use zerog_protocol::ids::{adapter_name, canonical_adapter_name};
use zerog_protocol::signing::{self, FineTuningSettlement, InferenceSettlement, SettledRequest};
use zerog_protocol::{Address, B256, SecretKey, TaskId, U256, ecies, session_token};

fn file() -> Value {
    serde_json::from_str(include_str!("../vectors/published.json")).unwrap()
}

/// A list that must not be empty, so that a renamed member cannot switch a test off.
fn list<'a>(file: &'a Value, name: &str, length: usize) -> &'a [Value] {
    let list = file[name].as_array().unwrap();
    assert_eq!(list.len(), length, "{name}");
    list
}

fn text<'a>(vector: &'a Value, member: &str) -> &'a str {
    vector[member]
        .as_str()
        .unwrap_or_else(|| panic!("{member} of {}", vector["source"]))
}

fn parsed<T: std::str::FromStr>(vector: &Value, member: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text(vector, member).parse().unwrap()
}

fn key(vector: &Value) -> SecretKey {
    parsed(vector, "key")
}

/// The hash that the user signs for a request of this kind.
fn hash(vector: &Value) -> B256 {
    let timestamp = || vector["timestamp"].as_u64().unwrap();
    match text(vector, "kind") {
        "create_task" => signing::create_task_hash(
            parsed(vector, "user"),
            parsed(vector, "nonce"),
            text(vector, "dataset_hash"),
        ),
        "cancel_task" => signing::cancel_task_hash(parsed::<TaskId>(vector, "task")),
        "dataset_upload" => signing::dataset_upload_hash(text(vector, "address"), timestamp()),
        "lora_download" => {
            signing::lora_download_hash(parsed::<TaskId>(vector, "task"), timestamp())
        }
        other => panic!("unknown kind {other}"),
    }
}

#[test]
fn requests_are_signed_as_published() {
    let file = file();
    for vector in list(&file, "signatures", 6) {
        let (key, hash, signature) = (key(vector), hash(vector), text(vector, "signature"));
        assert_eq!(hash, parsed::<B256>(vector, "hash"), "{}", vector["source"]);
        assert_eq!(signing::sign_personal(&key, hash), signature);
        let public = signing::verify_personal(hash, signature, key.address()).unwrap();
        assert_eq!(public, key.public_key());
        // v as 0 or 1 is accepted, another hash and another user are not.
        let low = format!("{}{:02x}", &signature[..130], low_v(signature));
        signing::verify_personal(hash, &low, key.address()).unwrap();
        signing::verify_personal(B256::repeat_byte(1), signature, key.address()).unwrap_err();
        signing::verify_personal(hash, signature, Address::ZERO).unwrap_err();
    }
}

fn low_v(signature: &str) -> u8 {
    u8::from_str_radix(&signature[130..], 16).unwrap() - 27
}

/// The TypeScript client drops leading zero bytes before it signs; Python and we do not. Both verify.
#[test]
fn both_spellings_of_a_hash_with_a_leading_zero_verify() {
    let file = file();
    for vector in list(&file, "leading_zero", 2) {
        let (key, hash) = (key(vector), hash(vector));
        assert_eq!((hash, hash[0]), (parsed::<B256>(vector, "hash"), 0));
        assert_eq!(
            signing::sign_personal(&key, hash),
            text(vector, "signature")
        );
        for member in ["signature", "stripped_signature"] {
            signing::verify_personal(hash, text(vector, member), key.address()).unwrap();
        }
        // The short spelling is another message: it does not verify where no zero leads.
        let mut full = hash;
        full[0] = 1;
        let stripped = text(vector, "stripped_signature");
        signing::verify_personal(full, stripped, key.address()).unwrap_err();
    }
}

#[test]
fn fine_tuning_settlements_are_signed_as_published() {
    let file = file();
    for vector in list(&file, "fine_tuning_settlements", 4) {
        let settlement = FineTuningSettlement {
            id: text(vector, "id").to_owned(),
            encrypted_secret: hex::decode(text(vector, "encrypted_secret"))
                .unwrap()
                .into(),
            model_root_hash: hex::decode(text(vector, "model_root_hash")).unwrap().into(),
            nonce: parsed(vector, "nonce"),
            task_fee: parsed(vector, "task_fee"),
            user: parsed(vector, "user"),
        };
        let chain_id = vector["chain_id"].as_u64().unwrap();
        let contract: Address = parsed(vector, "contract");
        let digest = settlement.digest(chain_id, contract);
        check_settlement(vector, digest);
        assert_ne!(settlement.digest(chain_id + 1, contract), digest);
        assert_ne!(settlement.digest(chain_id, Address::ZERO), digest);
    }
}

#[test]
fn inference_settlements_are_signed_as_published() {
    let file = file();
    for vector in list(&file, "inference_settlements", 2) {
        let settlement = InferenceSettlement {
            requests_hash: parsed(vector, "requests_hash"),
            nonce: parsed(vector, "nonce"),
            provider: parsed(vector, "provider"),
            user: parsed(vector, "user"),
            total_fee: parsed(vector, "total_fee"),
        };
        let chain_id = vector["chain_id"].as_u64().unwrap();
        let contract: Address = parsed(vector, "contract");
        let digest = settlement.digest(chain_id, contract);
        check_settlement(vector, digest);
        assert_ne!(settlement.digest(chain_id + 1, contract), digest);
    }
    for vector in list(&file, "requests_hash", 1) {
        let requests: Vec<SettledRequest> = vector["requests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|request| SettledRequest {
                request_hash: text(request, "request_hash").to_owned(),
                user: text(request, "user").to_owned(),
                fee: parsed(request, "fee"),
                input_fee: parsed(request, "input_fee"),
                output_fee: parsed(request, "output_fee"),
            })
            .collect();
        assert_eq!(
            signing::requests_hash(&requests),
            parsed::<B256>(vector, "hash")
        );
    }
}

/// Digest and signature are the published ones, and the signature recovers its signer.
fn check_settlement(vector: &Value, digest: B256) {
    let (key, signature) = (key(vector), text(vector, "signature"));
    assert_eq!(
        digest,
        parsed::<B256>(vector, "digest"),
        "{}",
        vector["source"]
    );
    assert_eq!(signing::signature_hex(&key.sign_digest(digest)), signature);
    let parsed = signing::parse_signature(signature).unwrap();
    assert_eq!(signing::recover(&parsed, digest).unwrap().0, key.address());
}

#[test]
fn domains_of_all_networks_are_the_published_ones() {
    let file = file();
    for vector in list(&file, "domains", 8) {
        let chain_id = vector["chain_id"].as_u64().unwrap();
        let contract = parsed(vector, "contract");
        let domain = match text(vector, "kind") {
            "fine_tuning" => signing::fine_tuning_domain(chain_id, contract),
            _ => signing::inference_domain(chain_id, contract),
        };
        assert_eq!(
            domain.separator(),
            parsed::<B256>(vector, "separator"),
            "{vector}"
        );
    }
}

#[test]
fn session_tokens_verify_and_are_made_byte_for_byte() {
    let file = file();
    for vector in list(&file, "session_tokens", 7) {
        let (raw, signature, token) = (
            text(vector, "raw"),
            text(vector, "signature"),
            text(vector, "token"),
        );
        let claims: session_token::TokenClaims = serde_json::from_str(raw).unwrap();
        assert_eq!(session_token::create(&key(vector), &claims), token);
        let provider: Address = claims.provider.parse().unwrap();
        let now_ms = claims.timestamp + 1_000;
        let verified = session_token::verify(&format!("Bearer {token}"), provider, now_ms).unwrap();
        assert_eq!(
            (verified.user, &verified.claims),
            (key(vector).address(), &claims)
        );
        session_token::verify_raw(raw, signature, provider, now_ms).unwrap();
        session_token::verify(&format!("Bearer {token}"), Address::ZERO, now_ms).unwrap_err();
        let generation = U256::from(claims.generation);
        session_token::check_revocation(&claims, generation, U256::ZERO).unwrap();
        session_token::check_revocation(&claims, generation + U256::ONE, U256::ZERO).unwrap_err();
        if claims.expires_at > 0 {
            session_token::verify_raw(raw, signature, provider, claims.expires_at).unwrap_err();
        }
    }
    let vector = &file["provider_token"];
    let provider = key(vector).address();
    let now_ms = 1_750_000_001_000;
    let (raw, signature) = (text(vector, "raw"), text(vector, "signature"));
    let verified = session_token::verify_raw(raw, signature, provider, now_ms).unwrap();
    assert_eq!(verified.user, provider);
}

#[test]
fn responses_are_signed_as_published() {
    let file = file();
    for vector in list(&file, "responses", 1) {
        let said = signing::response_text(
            signing::sha256(text(vector, "request").as_bytes()),
            signing::sha256(text(vector, "response").as_bytes()),
        );
        assert_eq!(said, text(vector, "text"));
        let signature = signing::sign_response_text(&key(vector), &said);
        assert_eq!(signature, text(vector, "signature"));
        let signer = signing::recover_response_signer(&said, &signature).unwrap();
        assert_eq!(signer, key(vector).address());
    }
}

#[test]
fn published_keys_of_deliveries_open() {
    let file = file();
    for vector in list(&file, "ecies", 3) {
        let blob = hex::decode(text(vector, "blob")).unwrap();
        let plaintext = hex::decode(text(vector, "plaintext")).unwrap();
        assert_eq!(
            ecies::open(&key(vector), &blob).unwrap(),
            plaintext,
            "{}",
            vector["source"]
        );
    }
}

/// The construction step by step, written a second time: ECDH, HKDF-SHA256 over both points, AES-256-GCM with a nonce of
/// 16 bytes. With the published ephemeral key and nonce it gives the published blob, and what we seal is made the same way.
#[test]
fn the_key_of_a_delivery_is_sealed_as_published() {
    use aes_gcm::aead::{AeadInPlace, KeyInit, consts::U16};
    use k256::elliptic_curve::sec1::ToEncodedPoint;
    type Cipher = aes_gcm::AesGcm<aes_gcm::aes::Aes256, U16>;

    fn symmetric_key(sender: &[u8], shared: &k256::PublicKey) -> [u8; 32] {
        let points = [sender, shared.to_encoded_point(false).as_bytes()].concat();
        let mut key = [0; 32];
        let derivation = hkdf::Hkdf::<sha2::Sha256>::new(None, &points);
        derivation.expand(&[], &mut key).unwrap();
        key
    }

    /// The product of a secret and a point.
    fn shared(secret: &SecretKey, public: &[u8]) -> k256::PublicKey {
        let secret = k256::SecretKey::from_slice(&secret.expose_bytes()).unwrap();
        let public = k256::PublicKey::from_sec1_bytes(public).unwrap();
        let product = public.to_projective() * *secret.to_nonzero_scalar();
        k256::PublicKey::from_affine(product.to_affine()).unwrap()
    }

    let file = file();
    let vector = &list(&file, "ecies", 3)[0];
    let bytes = |member: &str| hex::decode(text(vector, member)).unwrap();
    let (recipient, ephemeral): (SecretKey, SecretKey) = (key(vector), parsed(vector, "ephemeral"));
    let sender = ephemeral.public_key();
    let point = shared(&ephemeral, &recipient.public_key());
    let encoded = point.to_encoded_point(false);
    assert_eq!(encoded.as_bytes(), bytes("shared_point"));
    let derived = symmetric_key(&sender, &point);
    assert_eq!(derived.as_slice(), bytes("symmetric_key"));
    let (nonce, mut ciphertext) = (bytes("nonce"), bytes("plaintext"));
    let cipher = Cipher::new_from_slice(&derived).unwrap();
    let tag = cipher
        .encrypt_in_place_detached(nonce.as_slice().into(), b"", &mut ciphertext)
        .unwrap();
    let produced = [&sender[..], &nonce, &tag, &ciphertext].concat();
    assert_eq!(hex::encode(produced), text(vector, "blob"));

    let ours = ecies::seal(&recipient.public_key(), &bytes("plaintext")).unwrap();
    let (sender, rest) = ours.split_at(65);
    let (nonce, rest) = rest.split_at(16);
    let (tag, sealed) = rest.split_at(16);
    let derived = symmetric_key(sender, &shared(&recipient, sender));
    let mut opened = sealed.to_vec();
    Cipher::new_from_slice(&derived)
        .unwrap()
        .decrypt_in_place_detached(nonce.into(), b"", &mut opened, tag.into())
        .unwrap();
    assert_eq!(opened, bytes("plaintext"));
}

#[test]
fn adapters_are_named_as_published() {
    let file = file();
    for vector in list(&file, "adapter_names", 8) {
        let (model, task) = (text(vector, "base_model"), text(vector, "task"));
        assert_eq!(adapter_name(model, task), text(vector, "name"));
        if let Some(canonical) = vector["canonical"].as_str() {
            assert_eq!(canonical_adapter_name(model, task), canonical);
        }
    }
}

#[test]
fn the_small_dataset_has_its_published_hashes() {
    let file = file();
    let vector = &file["dataset"];
    let bytes = hex::decode(text(vector, "bytes")).unwrap();
    assert_eq!(bytes.len(), 254);
    assert_eq!(
        alloy_primitives::keccak256(&bytes),
        parsed::<B256>(vector, "keccak")
    );
    assert_eq!(hex::encode(signing::sha256(&bytes)), text(vector, "sha256"));
}
