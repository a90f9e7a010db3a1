//! Who is asking: session tokens of users, and addresses in paths.

use alloy_primitives::Address;
use axum::http::{HeaderMap, header};
use zerog_protocol::session_token;

use super::error::ApiError;
use crate::app::App;
use crate::inference_role::InferenceRole;

/// The role, or the refusal of its routes.
pub(crate) fn inference(app: &App) -> Result<&InferenceRole, ApiError> {
    app.inference
        .as_ref()
        .ok_or_else(|| ApiError::unavailable("inference_off", "LoRA serving not enabled"))
}

/// The user behind a session token: form, provider, times and signature first, then revocation as the chain has it.
pub(crate) async fn user(app: &App, headers: &HeaderMap) -> Result<Address, ApiError> {
    let role = inference(app)?;
    let value = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let token = session_token::verify(value, app.provider, app.clock.system_ms())?;
    // Without an account nothing can have been revoked; billing refuses later.
    if let Some(account) = role.account(&app.chain, app.provider, token.user).await?
        && let Err(first) = session_token::check_revocation(
            &token.claims,
            account.generation,
            account.revoked_bitmap,
        )
    {
        // The token may be newer than what is remembered.
        role.forget_account(token.user);
        match role.account(&app.chain, app.provider, token.user).await? {
            Some(account) => {
                session_token::check_revocation(
                    &token.claims,
                    account.generation,
                    account.revoked_bitmap,
                )?;
            }
            None => return Err(first.into()),
        }
    }
    Ok(token.user)
}

/// Reads the address in a path: 40 digits with or without `0x`, nothing else.
pub(crate) fn address(text: &str) -> Result<Address, ApiError> {
    let digits = text
        .strip_prefix("0x")
        .or_else(|| text.strip_prefix("0X"))
        .unwrap_or(text);
    let is_address = digits.len() == 40 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_address {
        return Err(ApiError::bad_request(
            "invalid_address",
            "the user address must be 0x and 40 hexadecimal digits",
        ));
    }
    digits.parse().map_err(|_| {
        ApiError::bad_request(
            "invalid_address",
            "the user address must be 0x and 40 hexadecimal digits",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_paths_are_strict() {
        let user = "f39Fd6e51aad88F6F4ce6aB8827279cffFb92266";
        for good in [
            user.to_owned(),
            format!("0x{user}"),
            format!("0X{}", user.to_uppercase()),
        ] {
            assert_eq!(
                format!("{:x}", address(&good).unwrap()),
                user.to_lowercase()
            );
        }
        for bad in [
            "",
            "0x",
            "..",
            &format!("{user}0"),
            &format!("0x{user}/.."),
            "0xzz9Fd6e51aad88F6F4ce6aB8827279cffFb92266",
        ] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
