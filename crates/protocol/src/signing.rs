//! Every signed digest of the protocol, its signature and its recovery. No other module builds digests.
//!
//! User signatures are EIP-191 personal messages over a 32-byte Keccak hash. The published TypeScript client drops leading
//! zero bytes of that hash before signing; verification accepts both spellings, signing always uses all 32 bytes
//! (`docs/protocol.md`, "Signatures").

use alloy_primitives::{Address, B256, Bytes, Signature, U256, eip191_hash_message, keccak256};
use alloy_sol_types::{Eip712Domain, SolStruct, eip712_domain, sol};
use sha2::{Digest, Sha256};

use crate::ids::TaskId;
use crate::limits::{SIGNATURE_MAX_AGE_S, SIGNATURE_MAX_SKEW_S};
use crate::secret::SecretKey;

/// Why a signature was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SignatureError {
    /// Not `0x` and 130 hexadecimal digits, or the last byte is none of 0, 1, 27, 28.
    #[error("a signature is 0x and 130 hexadecimal digits ending in 1b, 1c, 00 or 01")]
    Malformed,
    /// The signature is well formed but somebody else's.
    #[error(
        "signature verification failed: address mismatch (signed by {recovered}, expected {expected})"
    )]
    AddressMismatch {
        /// Who signed this message, if it was this message that was signed.
        recovered: Address,
        /// Who should have signed.
        expected: Address,
    },
    /// The signed time is too far in the past.
    #[error("timestamp is too old: {age_s} seconds ago (max {SIGNATURE_MAX_AGE_S} seconds)")]
    TooOld {
        /// Age in seconds.
        age_s: u64,
    },
    /// The signed time is too far in the future.
    #[error("timestamp is too far in the future: {ahead_s} seconds ahead")]
    InFuture {
        /// Distance in seconds.
        ahead_s: u64,
    },
}

/// The hash behind a create-task signature: Keccak of user address, 32-byte nonce and the dataset hash text as sent.
pub fn create_task_hash(user: Address, nonce: U256, dataset_hash: &str) -> B256 {
    let mut payload = Vec::with_capacity(52 + dataset_hash.len());
    payload.extend_from_slice(user.as_slice());
    payload.extend_from_slice(&nonce.to_be_bytes::<32>());
    payload.extend_from_slice(dataset_hash.as_bytes());
    keccak256(payload)
}

/// The hash behind a cancel signature: Keccak of the 16 bytes of the task id.
pub fn cancel_task_hash(task: TaskId) -> B256 {
    keccak256(task.as_bytes())
}

/// The hash behind a dataset upload: Keccak of the address text as it stands in the path, and the decimal time in seconds.
pub fn dataset_upload_hash(address_text: &str, timestamp_s: u64) -> B256 {
    keccak256(format!("{address_text}{timestamp_s}"))
}

/// The hash behind a LoRA download: Keccak of the task id without dashes and the decimal time in seconds.
pub fn lora_download_hash(task: TaskId, timestamp_s: u64) -> B256 {
    keccak256(format!("{}{timestamp_s}", task.simple()))
}

/// The hash behind the deletion of a dataset: Keccak of the dataset hash in lower case and the decimal time in seconds.
pub fn dataset_delete_hash(dataset_hash: &str, timestamp_s: u64) -> B256 {
    keccak256(format!("{}{timestamp_s}", dataset_hash.to_lowercase()))
}

/// Checks a signed time in Unix seconds against now.
///
/// # Errors
/// [`SignatureError::TooOld`] or [`SignatureError::InFuture`].
pub fn check_timestamp(timestamp_s: u64, now_s: u64) -> Result<(), SignatureError> {
    if timestamp_s.saturating_add(SIGNATURE_MAX_AGE_S) < now_s {
        return Err(SignatureError::TooOld {
            age_s: now_s - timestamp_s,
        });
    }
    if timestamp_s > now_s.saturating_add(SIGNATURE_MAX_SKEW_S) {
        return Err(SignatureError::InFuture {
            ahead_s: timestamp_s - now_s,
        });
    }
    Ok(())
}

/// Signs a hash as an EIP-191 personal message of 32 bytes; wire form `0x…` with v 27 or 28.
pub fn sign_personal(key: &SecretKey, hash: B256) -> String {
    signature_hex(&key.sign_digest(eip191_hash_message(hash)))
}

/// A signature as `0x` and 130 digits with v 27 or 28.
pub fn signature_hex(signature: &Signature) -> String {
    format!("0x{}", hex::encode(signature.as_bytes()))
}

/// Parses a wire signature; v may be 0, 1, 27 or 28.
///
/// # Errors
/// [`SignatureError::Malformed`].
pub fn parse_signature(text: &str) -> Result<Signature, SignatureError> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let mut bytes = [0u8; 65];
    hex::decode_to_slice(digits, &mut bytes).map_err(|_| SignatureError::Malformed)?;
    parse_signature_bytes(&bytes)
}

/// Parses 65 signature bytes `r ‖ s ‖ v`; v may be 0, 1, 27 or 28.
///
/// # Errors
/// [`SignatureError::Malformed`].
pub fn parse_signature_bytes(bytes: &[u8; 65]) -> Result<Signature, SignatureError> {
    if !matches!(bytes[64], 0 | 1 | 27 | 28) {
        return Err(SignatureError::Malformed);
    }
    Signature::from_raw_array(bytes).map_err(|_| SignatureError::Malformed)
}

/// Verifies a personal signature over `hash` by `expected`, in both spellings of a hash with leading zeros, and returns
/// the signer's 65-byte uncompressed public key (for ECIES).
///
/// # Errors
/// [`SignatureError::Malformed`] or [`SignatureError::AddressMismatch`].
pub fn verify_personal(
    hash: B256,
    signature: &str,
    expected: Address,
) -> Result<[u8; 65], SignatureError> {
    let signature = parse_signature(signature)?;
    let (recovered, public_key) = recover(&signature, eip191_hash_message(hash))?;
    if recovered == expected {
        return Ok(public_key);
    }
    if hash[0] == 0 {
        let first = hash.iter().position(|byte| *byte != 0).unwrap_or(31);
        let (stripped, public_key) = recover(&signature, eip191_hash_message(&hash[first..]))?;
        if stripped == expected {
            return Ok(public_key);
        }
    }
    Err(SignatureError::AddressMismatch {
        recovered,
        expected,
    })
}

/// Verifies a dataset upload signature; the address text may be spelled as in the path, checksummed or in lower case.
///
/// # Errors
/// As [`verify_personal`].
pub fn verify_dataset_upload(
    address_text: &str,
    timestamp_s: u64,
    signature: &str,
    expected: Address,
) -> Result<[u8; 65], SignatureError> {
    let verbatim = verify_personal(
        dataset_upload_hash(address_text, timestamp_s),
        signature,
        expected,
    );
    if !matches!(verbatim, Err(SignatureError::AddressMismatch { .. })) {
        return verbatim;
    }
    let checksummed = expected.to_string();
    let lower = checksummed.to_lowercase();
    [checksummed, lower]
        .iter()
        .find_map(|text| {
            verify_personal(dataset_upload_hash(text, timestamp_s), signature, expected).ok()
        })
        .map_or(verbatim, Ok)
}

/// Recovers the address and uncompressed public key behind a signature over a ready digest.
///
/// # Errors
/// [`SignatureError::Malformed`] when no key fits.
pub fn recover(signature: &Signature, digest: B256) -> Result<(Address, [u8; 65]), SignatureError> {
    let key = signature
        .recover_from_prehash(&digest)
        .map_err(|_| SignatureError::Malformed)?;
    let mut public_key = [0u8; 65];
    public_key.copy_from_slice(key.to_encoded_point(false).as_bytes());
    Ok((Address::from_public_key(&key), public_key))
}

sol! {
    /// The fine-tuning settlement that the enclave signs.
    struct VerifierMessage {
        string id;
        bytes encryptedSecret;
        bytes modelRootHash;
        uint256 nonce;
        uint256 taskFee;
        address user;
    }

    /// The inference settlement that the enclave signs.
    struct TEESettlement {
        bytes32 requestsHash;
        uint256 nonce;
        address provider;
        address user;
        uint256 totalFee;
    }
}

/// The EIP-712 domain of the FineTuningServing contract.
pub fn fine_tuning_domain(chain_id: u64, contract: Address) -> Eip712Domain {
    eip712_domain! { name: "0G Fine-Tuning Serving", version: "1", chain_id: chain_id, verifying_contract: contract, }
}

/// The EIP-712 domain of the InferenceServing contract.
pub fn inference_domain(chain_id: u64, contract: Address) -> Eip712Domain {
    eip712_domain! { name: "0G Inference Serving", version: "1", chain_id: chain_id, verifying_contract: contract, }
}

/// The members of a fine-tuning settlement, the argument of `settleFees` without its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FineTuningSettlement {
    /// Task id text.
    pub id: String,
    /// ECIES blob of the file key to the user; empty when the user did not acknowledge.
    pub encrypted_secret: Bytes,
    /// The hash as delivered: 32 bytes.
    pub model_root_hash: Bytes,
    /// The nonce of the create-task request.
    pub nonce: U256,
    /// The full fee in neuron.
    pub task_fee: U256,
    /// Who pays.
    pub user: Address,
}

impl FineTuningSettlement {
    /// The EIP-712 digest that the enclave signs for the given contract.
    pub fn digest(&self, chain_id: u64, contract: Address) -> B256 {
        VerifierMessage {
            id: self.id.clone(),
            encryptedSecret: self.encrypted_secret.clone(),
            modelRootHash: self.model_root_hash.clone(),
            nonce: self.nonce,
            taskFee: self.task_fee,
            user: self.user,
        }
        .eip712_signing_hash(&fine_tuning_domain(chain_id, contract))
    }
}

/// The members of an inference settlement for one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InferenceSettlement {
    /// Hash over the settled requests, see [`requests_hash`].
    pub requests_hash: B256,
    /// Strictly increasing per user and provider.
    pub nonce: U256,
    /// Who is paid.
    pub provider: Address,
    /// Who pays.
    pub user: Address,
    /// Sum of the request fees in neuron.
    pub total_fee: U256,
}

impl InferenceSettlement {
    /// The EIP-712 digest that the enclave signs for the given contract.
    pub fn digest(&self, chain_id: u64, contract: Address) -> B256 {
        TEESettlement {
            requestsHash: self.requests_hash,
            nonce: self.nonce,
            provider: self.provider,
            user: self.user,
            totalFee: self.total_fee,
        }
        .eip712_signing_hash(&inference_domain(chain_id, contract))
    }
}

/// One billed request as it enters [`requests_hash`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettledRequest {
    /// Hash text of the request, as stored.
    pub request_hash: String,
    /// The user's address as text (EIP-55).
    pub user: String,
    /// Total fee in neuron.
    pub fee: U256,
    /// Part for prompt tokens.
    pub input_fee: U256,
    /// Part for completion tokens.
    pub output_fee: U256,
}

/// Keccak over the concatenated texts of all requests in creation order, as the published broker builds it.
pub fn requests_hash(requests: &[SettledRequest]) -> B256 {
    let mut preimage = String::new();
    for request in requests {
        preimage.push_str(&request.request_hash);
        preimage.push_str(&request.user);
        preimage.push_str(&request.fee.to_string());
        preimage.push_str(&request.input_fee.to_string());
        preimage.push_str(&request.output_fee.to_string());
    }
    keccak256(preimage)
}

/// The text of a response signature: the SHA-256 of the request body and of the response body in hex, joined by `:`.
pub fn response_text(request_body_sha256: [u8; 32], response_body_sha256: [u8; 32]) -> String {
    format!(
        "{}:{}",
        hex::encode(request_body_sha256),
        hex::encode(response_body_sha256)
    )
}

/// Signs a response text as an EIP-191 personal message; wire form with v 27 or 28.
pub fn sign_response_text(key: &SecretKey, text: &str) -> String {
    signature_hex(&key.sign_digest(eip191_hash_message(text)))
}

/// Who signed a response text.
///
/// # Errors
/// [`SignatureError::Malformed`].
pub fn recover_response_signer(text: &str, signature: &str) -> Result<Address, SignatureError> {
    Ok(recover(&parse_signature(signature)?, eip191_hash_message(text))?.0)
}

/// SHA-256 of bytes.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

#[cfg(test)]
mod tests {
    use alloy_primitives::{address, b256};

    use super::*;

    const USER: Address = address!("f39Fd6e51aad88F6F4ce6aB8827279cffFb92266");

    fn user_key() -> SecretKey {
        "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
            .parse()
            .unwrap()
    }

    fn enclave_key() -> SecretKey {
        "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d"
            .parse()
            .unwrap()
    }

    fn task() -> TaskId {
        "6b607314-88b0-4fef-91e7-43227a54de57".parse().unwrap()
    }

    /// `fine-tuning-broker.md` sections 10.1 to 10.4.
    #[test]
    fn user_signatures_equal_the_published_vectors() {
        let dataset_hash = "0x11f829834eddf1d3b21142033c1d4a8c5d5f82c4b7235e9a0c37cc7e657a7a59";
        let cases = [
            (
                create_task_hash(USER, U256::from(17600000000000040u64), dataset_hash),
                b256!("78e8ea91120b593a152cb99e1d25e1b1a861b92e1378b960d68f8496ebdf5dd2"),
                "0x57102452e4777fe91fa89fc17f6a48d78578104e24fd2bdc6bd59bd425770fc56b9ff714643b87f50a195719e6b58ca155168924271e9ad27e6720afa2edf7471b",
            ),
            (
                cancel_task_hash(task()),
                b256!("8bb2e4c59f8045ba14d32b7cb67d3469a05a47d196751718dcf7a9fc2ade5b1b"),
                "0x43ae40d295866273d4c6535142f2c444d93a639100d54f4e18eb66d8f7cc88185e1669f6ebdd0ec13d93318169e52fac7b6c79c36057119fac2bfe27c9b4ed7c1b",
            ),
            (
                dataset_upload_hash("0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266", 1_760_000_000),
                b256!("5ddcbace7ad8fc4113f8d74bc2268eb7a00c26631e43dfd8ea0cf21cc4424f72"),
                "0x220f5d678d71278bff54ca4af5a99a766fd28a596b52ed7d816dc6c29951fe2064e7429bedf3246d2bfd0ab980b877c36424530130e4a595d3f27a09dcd539f11b",
            ),
            (
                lora_download_hash(task(), 1_760_000_000),
                b256!("b9972d7b6f718f5c91e68a3e20a6169ee5060f62f0a33a767a40e58a471b9310"),
                "0x38a5457dc539cbd931eec255565c830793fe15e3f5babb094da8c0b8cf7b1483127c3919ac1fd763c04be05a244f1d18640a7218daaa5adf0380e1134aab90001b",
            ),
        ];
        for (hash, expected_hash, expected_signature) in cases {
            assert_eq!(hash, expected_hash);
            assert_eq!(sign_personal(&user_key(), hash), expected_signature);
            assert_eq!(
                verify_personal(hash, expected_signature, USER).unwrap(),
                user_key().public_key()
            );
        }
    }

    /// `fine-tuning-broker.md` section 10.5.
    #[test]
    fn both_spellings_of_a_leading_zero_hash_are_accepted() {
        let hash = dataset_upload_hash("0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266", 1_760_000_084);
        let stripped = "0xdfb45bcc124715224bbf379ad786d3d91c36ad7e17ab337d34e1fa3808c48cf448ef3e024c8452a85d83a76161968bf042db6e9d945189688d01fec65c670aba1c";
        let full = "0x1b90715a53dcdb547bd6f95f35814525186e84405edd59a57a6d73f8e0bd353a1260cd28745df09d5f63eb95260c189fe224fc5bf7441eb55adb9559fb5eabd71c";
        assert_eq!(sign_personal(&user_key(), hash), full);
        for signature in [stripped, full] {
            assert!(verify_personal(hash, signature, USER).is_ok());
        }
        let cancel = cancel_task_hash("72c45a03-c0c9-4624-99d1-835e5fe9bedb".parse().unwrap());
        for signature in [
            "0x4c417bf65ca560bbc823913cd5f34d317ff40e2a26ad1c5bf216ea33b109ce7615a84671bb6d37896c869356db150ce1c2dd64771b892843be6a006534979feb1c",
            "0x1150c0218f67860d251a0dae8fe49448d3642292ccdcbde33ba21649b21dfda54f604cb2b5893fa9871675848bca3fa5612f18c42fa7db969bab04ecb95734021c",
        ] {
            assert!(verify_personal(cancel, signature, USER).is_ok());
        }
    }

    #[test]
    fn foreign_and_malformed_signatures_are_refused() {
        let hash = cancel_task_hash(task());
        let foreign = sign_personal(&enclave_key(), hash);
        assert!(matches!(
            verify_personal(hash, &foreign, USER),
            Err(SignatureError::AddressMismatch { .. })
        ));
        for bad in [
            "",
            "0x",
            "0x12",
            &format!("0x{}", "00".repeat(65)),
            &format!("{foreign}00"),
        ] {
            assert_eq!(
                verify_personal(hash, bad, USER).unwrap_err(),
                SignatureError::Malformed,
                "{bad}"
            );
        }
        assert!(check_timestamp(1000, 1300).is_ok());
        assert_eq!(
            check_timestamp(1000, 1301),
            Err(SignatureError::TooOld { age_s: 301 })
        );
        assert_eq!(
            check_timestamp(1061, 1000),
            Err(SignatureError::InFuture { ahead_s: 61 })
        );
        assert!(check_timestamp(u64::MAX, 1000).is_err());
    }

    #[test]
    fn dataset_upload_accepts_other_spellings_of_the_address() {
        let lower = USER.to_string().to_lowercase();
        let signature = sign_personal(&user_key(), dataset_upload_hash(&USER.to_string(), 5));
        assert!(verify_dataset_upload(&lower, 5, &signature, USER).is_ok());
        assert!(verify_dataset_upload(&lower, 6, &signature, USER).is_err());
    }

    /// `fine-tuning-broker.md` section 10.10.
    #[test]
    fn fine_tuning_settlement_equals_the_vector() {
        let contract = address!("5FbDB2315678afecb367f032d93F642f64180aa3");
        let secret = "044f355bdcb7cc0af728ef3cceb9615d90684bb5b2ca5f859ab0f0b704075871aa385b6b1b8ead809ca67454d9683fcf2ba03456d6fe2c4abe2b07f0fbdbb2f1c1a0a1a2a3a4a5a6a7a8a9aaabacadaeaf627c38906a488dfd3a5c74dff79660fab5e28b620d4144740f8fb2963294548161f2b4714f6af8d09fadedeec9618ad7";
        let mut settlement = FineTuningSettlement {
            id: task().to_string(),
            encrypted_secret: hex::decode(secret).unwrap().into(),
            model_root_hash: hex::decode(
                "fc8d10138665075cded4670f5be1bf375357da6574d0ed8a45320f4abb55d84c",
            )
            .unwrap()
            .into(),
            nonce: U256::from(17600000000000040u64),
            task_fee: U256::from(25_000_000_000_000_000u64),
            user: USER,
        };
        let digest = settlement.digest(31337, contract);
        assert_eq!(
            digest,
            b256!("b780ea7dba2e8396f10ff89f2bc1e1747ad9ac61c61aef83b7556972b1ae6220")
        );
        assert_eq!(
            signature_hex(&enclave_key().sign_digest(digest)),
            "0x496de32497d05ee9e0b7cf43f2f929d77b344d42ca5a9c41e8773d68339843c059829b079a27365a5fa34b0f6a01744d31210137a08e32b5b8abb3bc0fb2a84a1b"
        );
        settlement.encrypted_secret = Bytes::new();
        assert_eq!(
            settlement.digest(31337, contract),
            b256!("1122ca3b373ee4ef991d3557e7823542f1b33af990dc57054a667b7f3c8785eb")
        );
    }

    /// `inference-broker.md` sections 6.5 and 6.6.
    #[test]
    fn inference_settlement_and_response_signature_equal_the_vectors() {
        let hash = requests_hash(&[SettledRequest {
            request_hash: "abcd1234".into(),
            user: "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC".into(),
            fee: U256::from(1_000_000),
            input_fee: U256::from(400_000),
            output_fee: U256::from(600_000),
        }]);
        assert_eq!(
            hash,
            b256!("5798117838aed63bc62c9dd091b798e99eb52e2dfbdbc9c064484cef024522bf")
        );
        let settlement = InferenceSettlement {
            requests_hash: hash,
            nonce: U256::from(17500000000000000u64),
            provider: address!("70997970C51812dc3A010C7d01b50e0d17dc79C8"),
            user: address!("3C44CdDdB6a900fa2b585dd299e03d12FA4293BC"),
            total_fee: U256::from(1_000_000),
        };
        let digest = settlement.digest(31337, address!("0165878A594ca255338adfa4d48449f69242Eb8F"));
        assert_eq!(
            digest,
            b256!("d500eaa9f5eb1fabcb63f63171b10c6384a61445a22e6f9710d5c30667ac59f0")
        );
        assert_eq!(
            signature_hex(&user_key().sign_digest(digest)),
            "0x1d8b99f71dd8e456404d975bbad423d52b39aab5c265138205ad67b868695b9a7cdc9ab954c386d5a2aa9a57e2ea191163418c2fc60f289fe77749205885ba8e1c"
        );

        let request = br#"{"model":"ft-Qwen2-5-0-5B-Instruct-1f6fef2b-e0f6","messages":[{"role":"user","content":"Hi"}]}"#;
        let response = br#"{"id":"chatcmpl-1","object":"chat.completion","choices":[]}"#;
        let text = response_text(sha256(request), sha256(response));
        assert_eq!(
            text,
            "e33f82773a10b1ac7580421f9de72c2bfc5cbd99f494c4f3d3001ca978efb9a7:a2d3400e9584d4f699003277e939b322d40469e030f0ea6bac2694a5e7bdc086"
        );
        let signature = sign_response_text(&user_key(), &text);
        assert_eq!(
            signature,
            "0x97702880204d22ab75b44bb2eba47056bce55e7fe5d9e30659d18cac163aef0a2e83b01656275051f59c3b221e2787b031d293c74e546f49cea04093ccdfd9d61b"
        );
        assert_eq!(recover_response_signer(&text, &signature).unwrap(), USER);
    }
}
