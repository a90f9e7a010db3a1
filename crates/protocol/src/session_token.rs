//! Session tokens and provider tokens of the inference broker: made and signed by the client alone.

use alloy_primitives::{Address, B256, U256, keccak256};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand::RngCore;
use serde::{Deserialize, Serialize};

use crate::limits::{EPHEMERAL_TOKEN_MAX_MS, MAX_SESSION_TOKEN_BYTES};
use crate::secret::SecretKey;
use crate::signing::{SignatureError, sign_personal, verify_personal};

/// The token id of an ephemeral session; ids 0 to 254 are API keys.
pub const EPHEMERAL_TOKEN_ID: u8 = 255;
/// Tokens may not be dated further in the future than this, in milliseconds.
const MAX_FUTURE_MS: u64 = 5 * 60 * 1000;

/// What a token says. The member order is the order on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenClaims {
    /// The user's address.
    pub address: String,
    /// The provider the token is for.
    pub provider: String,
    /// Creation, Unix milliseconds.
    pub timestamp: u64,
    /// Expiry, Unix milliseconds; 0 = never (API keys only).
    pub expires_at: u64,
    /// Free text that makes tokens differ.
    pub nonce: String,
    /// The account's token generation on chain.
    pub generation: u64,
    /// 255 for sessions, 0 to 254 for API keys.
    pub token_id: u64,
}

/// Why a token was refused. The texts follow the published broker.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenError {
    /// No usable header.
    #[error(
        "missing or invalid Authorization header, must be Bearer app-sk-<base64(rawMessage|signature)>"
    )]
    Missing,
    /// Not base64 or not `raw|signature`.
    #[error("invalid base64 in Authorization header")]
    Encoding,
    /// The claims are not the seven expected members.
    #[error("invalid session token: {0}")]
    Claims(String),
    /// For another provider.
    #[error("session token is for different provider")]
    Provider,
    /// A session without an end.
    #[error("ephemeral token must have an expiration time")]
    NoExpiry,
    /// A session longer than 24 hours.
    #[error("ephemeral token duration cannot exceed 24 hours")]
    TooLong,
    /// Dated in the future.
    #[error("session token is dated in the future: check this machine's clock")]
    InFuture,
    /// Ended.
    #[error("session token expired")]
    Expired,
    /// Signed by somebody else, or malformed.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// All tokens of an older generation were revoked.
    #[error(
        "session token has been revoked (generation expired): token generation {token}, current generation {current}"
    )]
    GenerationExpired {
        /// Generation of the token.
        token: u64,
        /// Generation on chain.
        current: u64,
    },
    /// A generation that does not exist yet.
    #[error(
        "invalid session token (future generation): token generation {token}, current generation {current}"
    )]
    GenerationInFuture {
        /// Generation of the token.
        token: u64,
        /// Generation on chain.
        current: u64,
    },
    /// This API key was revoked.
    #[error("session token has been revoked")]
    Revoked,
}

/// A token whose form, provider, times and signature were checked, but not yet its revocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedToken {
    /// Who signed it.
    pub user: Address,
    /// What it says.
    pub claims: TokenClaims,
}

/// Makes and signs a token; returns the `app-sk-…` text that goes behind `Bearer `.
pub fn create(key: &SecretKey, claims: &TokenClaims) -> String {
    let unsigned = UnsignedToken::new(claims);
    let signature = sign_personal(key, unsigned.hash());
    unsigned.signed(&signature)
}

/// A token on its way to whoever signs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsignedToken(String);

impl UnsignedToken {
    /// Writes the claims down.
    pub fn new(claims: &TokenClaims) -> Self {
        Self(serde_json::to_string(claims).expect("claims are plain strings and numbers"))
    }

    /// The hash that the user signs as a personal message.
    pub fn hash(&self) -> B256 {
        keccak256(&self.0)
    }

    /// The `app-sk-…` text that goes behind `Bearer `, with the wire form of the signature.
    pub fn signed(self, signature: &str) -> String {
        let raw = self.0;
        format!("app-sk-{}", STANDARD.encode(format!("{raw}|{signature}")))
    }
}

/// Claims for a session that starts now; `duration_ms` is cut to 24 hours.
pub fn ephemeral_claims(
    user: Address,
    provider: Address,
    now_ms: u64,
    duration_ms: u64,
    generation: u64,
) -> TokenClaims {
    TokenClaims {
        address: user.to_string(),
        provider: provider.to_string(),
        timestamp: now_ms,
        expires_at: now_ms.saturating_add(duration_ms.min(EPHEMERAL_TOKEN_MAX_MS)),
        nonce: random_nonce(),
        generation,
        token_id: u64::from(EPHEMERAL_TOKEN_ID),
    }
}

/// 32 random hexadecimal characters.
pub fn random_nonce() -> String {
    let mut bytes = [0u8; 16];
    rand::rng().fill_bytes(&mut bytes);
    hex::encode(bytes)
}

/// Checks the value of an `Authorization` header for the given provider at the given time. The caller then checks
/// revocation with [`check_revocation`].
///
/// # Errors
/// See [`TokenError`]; checks run in the order of the variants.
pub fn verify(header: &str, provider: Address, now_ms: u64) -> Result<VerifiedToken, TokenError> {
    let token = header
        .strip_prefix("Bearer ")
        .map(str::trim)
        .ok_or(TokenError::Missing)?;
    let encoded = token.strip_prefix("app-sk-").ok_or(TokenError::Missing)?;
    if token.len() > MAX_SESSION_TOKEN_BYTES {
        return Err(TokenError::Missing);
    }
    let decoded = STANDARD.decode(encoded).map_err(|_| TokenError::Encoding)?;
    let text = String::from_utf8(decoded).map_err(|_| TokenError::Encoding)?;
    let (raw, signature) = text.rsplit_once('|').ok_or(TokenError::Encoding)?;
    verify_raw(raw, signature, provider, now_ms)
}

/// Checks a raw claims text and its signature, as they stand in the operator headers `Session-Token` and
/// `Session-Signature`.
///
/// # Errors
/// As [`verify`].
pub fn verify_raw(
    raw: &str,
    signature: &str,
    provider: Address,
    now_ms: u64,
) -> Result<VerifiedToken, TokenError> {
    // Serde refuses duplicate members of a struct, and ignores unknown ones such as `appId`.
    let claims: TokenClaims =
        serde_json::from_str(raw).map_err(|error| TokenError::Claims(error.to_string()))?;
    let user: Address = claims
        .address
        .parse()
        .map_err(|_| TokenError::Claims("address is not an address".into()))?;
    if claims.token_id > u64::from(EPHEMERAL_TOKEN_ID) {
        return Err(TokenError::Claims("tokenId must be 0 to 255".into()));
    }
    if claims.provider.parse::<Address>() != Ok(provider) {
        return Err(TokenError::Provider);
    }
    if claims.timestamp > now_ms.saturating_add(MAX_FUTURE_MS) {
        return Err(TokenError::InFuture);
    }
    if claims.token_id == u64::from(EPHEMERAL_TOKEN_ID) {
        if claims.expires_at == 0 {
            return Err(TokenError::NoExpiry);
        }
        if claims.expires_at.saturating_sub(claims.timestamp) > EPHEMERAL_TOKEN_MAX_MS {
            return Err(TokenError::TooLong);
        }
    }
    if claims.expires_at != 0 && now_ms >= claims.expires_at {
        return Err(TokenError::Expired);
    }
    verify_personal(keccak256(raw), signature, user)?;
    Ok(VerifiedToken { user, claims })
}

/// Compares a token with the account's generation and revocation bitmap on chain.
///
/// # Errors
/// The last three variants of [`TokenError`].
pub fn check_revocation(
    claims: &TokenClaims,
    generation: U256,
    revoked_bitmap: U256,
) -> Result<(), TokenError> {
    let current = generation.saturating_to::<u64>();
    if claims.generation < current {
        return Err(TokenError::GenerationExpired {
            token: claims.generation,
            current,
        });
    }
    if claims.generation > current {
        return Err(TokenError::GenerationInFuture {
            token: claims.generation,
            current,
        });
    }
    let is_api_key = claims.token_id < u64::from(EPHEMERAL_TOKEN_ID);
    if is_api_key && revoked_bitmap.bit(usize::try_from(claims.token_id).unwrap_or(usize::MAX)) {
        return Err(TokenError::Revoked);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use alloy_primitives::address;

    use super::*;

    const PROVIDER: Address = address!("70997970C51812dc3A010C7d01b50e0d17dc79C8");
    const USER: Address = address!("f39Fd6e51aad88F6F4ce6aB8827279cffFb92266");
    const NOW: u64 = 1_750_000_001_000;

    fn key() -> SecretKey {
        "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
            .parse()
            .unwrap()
    }

    fn session() -> TokenClaims {
        TokenClaims {
            address: USER.to_string(),
            provider: PROVIDER.to_string(),
            timestamp: 1_750_000_000_000,
            expires_at: 1_750_086_400_000,
            nonce: "000102030405060708090a0b0c0d0e0f".into(),
            generation: 0,
            token_id: 255,
        }
    }

    /// `inference-broker.md` section 6.1.
    #[test]
    fn the_session_token_equals_the_vector_and_verifies() {
        let token = create(&key(), &session());
        assert_eq!(
            token,
            "app-sk-eyJhZGRyZXNzIjoiMHhmMzlGZDZlNTFhYWQ4OEY2RjRjZTZhQjg4MjcyNzljZmZGYjkyMjY2IiwicHJvdmlkZXIiOiIweDcwOTk3OTcwQzUxODEyZGMzQTAxMEM3ZDAxYjUwZTBkMTdkYzc5QzgiLCJ0aW1lc3RhbXAiOjE3NTAwMDAwMDAwMDAsImV4cGlyZXNBdCI6MTc1MDA4NjQwMDAwMCwibm9uY2UiOiIwMDAxMDIwMzA0MDUwNjA3MDgwOTBhMGIwYzBkMGUwZiIsImdlbmVyYXRpb24iOjAsInRva2VuSWQiOjI1NX18MHgwMGExMjM1ZmQyMWYzYWI2ZmZkZWFiM2FmYzQ1N2EzNGZkODRlN2I1M2U3OWFlZTFiZDg5MjYyNjIyZDRhYjQwMjZhMTk0ZTcyNjgyZTk0NTY2YWVlMzQ2NDE1NDRhY2E5YzdhZjIyOTQ2ZmM2ZmRkNmRmZDdjMDhiNDQyYzI4MTFi"
        );
        let header = format!("Bearer {token}");
        let verified = verify(&header, PROVIDER, NOW).unwrap();
        assert_eq!(verified.user, USER);
        assert_eq!(
            check_revocation(&verified.claims, U256::ZERO, U256::ZERO),
            Ok(())
        );
        assert_eq!(
            check_revocation(&verified.claims, U256::from(1), U256::ZERO),
            Err(TokenError::GenerationExpired {
                token: 0,
                current: 1
            })
        );
        assert_eq!(verify(&header, USER, NOW), Err(TokenError::Provider));
        assert_eq!(
            verify(&header, PROVIDER, 1_750_086_400_000),
            Err(TokenError::Expired)
        );
    }

    /// `inference-broker.md` section 6.2.
    #[test]
    fn variants_follow_the_table() {
        let api_key = TokenClaims {
            expires_at: 0,
            token_id: 7,
            ..session()
        };
        let signed = create(&key(), &api_key);
        let text = String::from_utf8(STANDARD.decode(&signed["app-sk-".len()..]).unwrap()).unwrap();
        assert!(text.ends_with("|0x67aa4eeb0332056735201e83c0286e79598c61ddda2881e019a6171656f66ade068a1b1ccf4f52488976d668abaf2130850f1745611fc20742f3fe8c6d08fc391b"));
        let claims = verify(&format!("Bearer {signed}"), PROVIDER, NOW)
            .unwrap()
            .claims;
        assert_eq!(
            check_revocation(&claims, U256::ZERO, U256::from(128)),
            Err(TokenError::Revoked)
        );

        let future = TokenClaims {
            expires_at: 0,
            generation: 1,
            token_id: 3,
            ..session()
        };
        assert_eq!(
            check_revocation(&future, U256::ZERO, U256::ZERO),
            Err(TokenError::GenerationInFuture {
                token: 1,
                current: 0
            })
        );
        assert_eq!(check_revocation(&future, U256::from(1), U256::ZERO), Ok(()));

        let lower = TokenClaims {
            provider: PROVIDER.to_string().to_lowercase(),
            ..session()
        };
        assert!(verify(&format!("Bearer {}", create(&key(), &lower)), PROVIDER, NOW).is_ok());
        let endless = TokenClaims {
            expires_at: 0,
            ..session()
        };
        assert_eq!(
            verify(
                &format!("Bearer {}", create(&key(), &endless)),
                PROVIDER,
                NOW
            ),
            Err(TokenError::NoExpiry)
        );
        let long = TokenClaims {
            expires_at: 1_750_086_400_001,
            ..session()
        };
        assert_eq!(
            verify(&format!("Bearer {}", create(&key(), &long)), PROVIDER, NOW),
            Err(TokenError::TooLong)
        );
    }

    #[test]
    fn a_changed_signature_byte_is_refused_and_v_zero_accepted() {
        let raw = serde_json::to_string(&session()).unwrap();
        let signature = sign_personal(&key(), keccak256(&raw));
        let with_v = |v: &str| format!("{}{v}", &signature[..130]);
        assert!(verify_raw(&raw, &with_v("1b"), PROVIDER, NOW).is_ok());
        assert!(verify_raw(&raw, &with_v("00"), PROVIDER, NOW).is_ok());
        assert!(matches!(
            verify_raw(&raw, &with_v("1c"), PROVIDER, NOW),
            Err(TokenError::Signature(_))
        ));
        let doubled = raw.replace("\"tokenId\":255", "\"tokenId\":255,\"tokenId\":255");
        assert!(matches!(
            verify_raw(&doubled, &signature, PROVIDER, NOW),
            Err(TokenError::Claims(_))
        ));
    }

    /// `inference-broker.md` section 6.3: provider tokens carry an extra member and sorted keys.
    #[test]
    fn provider_tokens_verify() {
        let raw = r#"{"address":"0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266","appId":"fine-tuning-broker","expiresAt":1750000300000,"generation":1,"nonce":"1750000000-1f6fef2b-e0f6-4c1a-9b1e-000000000001","provider":"0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266","timestamp":1750000000000,"tokenId":255}"#;
        let signature = "0x3acf8f84f5441d0fb63cc50c7a8e2b30b7d2047dfe2c1c4831a33c744c1f08e02683eb7f9a417428953bf3a4feefc6b393083fba72f2668d83108ecc6f1a80721c";
        assert_eq!(verify_raw(raw, signature, USER, NOW).unwrap().user, USER);
    }
}
