//! One error type for all routes; the only place where failures become statuses and bodies.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use zerog_chain::ChainError;
use zerog_protocol::fine_tuning_api::ErrorBody;
use zerog_protocol::session_token::TokenError;
use zerog_protocol::signing::SignatureError;

use crate::store::StoreError;

/// A refusal, as it is answered.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    /// Stable identifier for programs.
    pub(crate) code: &'static str,
    /// Sentence for people.
    pub(crate) message: String,
    field: Option<&'static str>,
    pending: Option<u64>,
    retry_after_s: Option<u64>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            field: None,
            pending: None,
            retry_after_s: None,
        }
    }

    pub(crate) fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub(crate) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
    }

    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    pub(crate) fn not_found(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    pub(crate) fn conflict(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, message)
    }

    pub(crate) fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message).retry_after(2)
    }

    /// A fault of the provider: the cause is logged, not sent.
    pub(crate) fn internal(cause: impl std::fmt::Display) -> Self {
        tracing::error!(error = %cause, "a request failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "Internal Server Error",
        )
    }

    pub(crate) fn too_many(retry_after_s: u64) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "rate_limited",
            "Too many requests. Please try again later.",
        )
        .retry_after(retry_after_s)
    }

    pub(crate) fn field(mut self, field: &'static str) -> Self {
        self.field = Some(field);
        self
    }

    pub(crate) fn pending(mut self, pending: u64) -> Self {
        self.pending = Some(pending);
        self
    }

    pub(crate) fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    pub(crate) fn context(mut self, prefix: &str) -> Self {
        self.message = format!("{prefix}{}", self.message);
        self
    }

    /// The same refusal in OpenAI's form, for OpenAI's routes.
    pub(crate) fn openai(self) -> OpenAiError {
        OpenAiError(self)
    }

    fn respond(&self, body: &Value) -> Response {
        let mut response = (
            self.status,
            [(header::CONTENT_TYPE, "application/json")],
            body.to_string(),
        )
            .into_response();
        if let Some(seconds) = self.retry_after_s {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = ErrorBody {
            error: self.message.clone(),
            code: Some(self.code.to_owned()),
            field: self.field.map(str::to_owned),
            pending: self.pending,
        };
        self.respond(&json!(body))
    }
}

/// An [`ApiError`] whose body has OpenAI's form.
#[derive(Debug)]
pub(crate) struct OpenAiError(ApiError);

impl IntoResponse for OpenAiError {
    fn into_response(self) -> Response {
        let kind = match self.0.status.as_u16() {
            401 => "authentication_error",
            402 => "insufficient_quota",
            403 => "permission_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        self.0.respond(&json!({"error": {"message": self.0.message, "type": kind, "param": null, "code": self.0.code}}))
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict => Self::unavailable("busy", "the provider is busy; try again"),
            other => Self::internal(other),
        }
    }
}

impl From<ChainError> for ApiError {
    fn from(error: ChainError) -> Self {
        tracing::warn!(%error, "the chain could not be read for a request");
        Self::unavailable(
            "chain_unavailable",
            "the provider cannot read the chain at the moment; try again",
        )
    }
}

impl From<SignatureError> for ApiError {
    fn from(error: SignatureError) -> Self {
        let code = match error {
            SignatureError::TooOld { .. } | SignatureError::InFuture { .. } => "timestamp",
            _ => "invalid_signature",
        };
        Self {
            code,
            ..Self::unauthorized(error.to_string())
        }
    }
}

impl From<TokenError> for ApiError {
    fn from(error: TokenError) -> Self {
        let code = match error {
            TokenError::Expired => "token_expired",
            TokenError::Revoked | TokenError::GenerationExpired { .. } => "token_revoked",
            _ => "invalid_token",
        };
        Self {
            code,
            ..Self::unauthorized(error.to_string())
        }
    }
}

impl From<zerog_inference::ApiError> for ApiError {
    fn from(error: zerog_inference::ApiError) -> Self {
        let status =
            StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let own = Self::new(
            status,
            error.code.unwrap_or("invalid_request"),
            error.message,
        );
        match error.retry_after_s {
            Some(seconds) => own.retry_after(u64::from(seconds)),
            None => own,
        }
    }
}
