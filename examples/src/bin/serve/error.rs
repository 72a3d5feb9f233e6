//! [`ApiError`]: everything that a client is told instead of an answer, in OpenAI's form, so that its clients raise the exception that fits.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use llama_core::sampler::SamplingError;
use llama_core::{Error, FinishReason, GenerateError, Judgement};
use serde_json::json;

use crate::request::{BadRequest, Prompts};

#[derive(Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
    header: Option<(&'static str, &'static str)>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: Some(code), header: None }
    }

    pub(crate) fn with_header(self, name: &'static str, value: &'static str) -> Self {
        Self { header: Some((name, value)), ..self }
    }

    /// There is no room now, and soon there may be.
    pub(crate) fn busy(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message)
            .with_header("retry-after", "1")
    }

    pub(crate) fn shutting_down() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", "the server is shutting down")
    }

    pub(crate) fn out_of_time() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "deadline_exceeded",
            "the time for an answer was up before it began",
        )
    }

    pub(crate) fn model_not_found(asked: &str, model: &str) -> Self {
        let message = format!("there is no model {asked:?}: this server has {model:?}");
        let error = Self::new(StatusCode::NOT_FOUND, "model_not_found", message);
        Self { param: Some("model".to_owned()), ..error }
    }

    /// What a client cannot mend and is not to know more about: the operator is told.
    pub(crate) fn internal(cause: &dyn std::fmt::Display) -> Self {
        crate::log(&format!("an answer failed: {cause}"));
        let message = "the answer failed; the server's log has the cause";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    /// A call that llama-core has not taken, of prompts each of which was to be answered n times.
    pub(crate) fn not_taken(error: Error, prompts: &Prompts, n: usize) -> Self {
        let message = error.to_string();
        let bad =
            |param: String, code| BadRequest { message: message.clone(), param: Some(param), code }.into();
        match error {
            Error::Generate(GenerateError::QueueFull { .. }) => Self::busy(message),
            Error::ContextOverflow { row, .. } => bad(prompts.path(row / n), Some("context_length_exceeded")),
            Error::EmptyPrompt { row } | Error::TokenOutOfRange { row, .. } => {
                bad(prompts.path(row / n), None)
            }
            Error::Guarded { .. } => {
                let message =
                    "lists of token ids cannot be judged, and this server's model is guarded: send text";
                BadRequest::new("prompt", message).into()
            }
            Error::Option { option, .. } => bad(option.to_owned(), None),
            Error::Generate(GenerateError::Sampling(SamplingError::MinP(_))) => bad("min_p".to_owned(), None),
            Error::Generate(GenerateError::Sampling(SamplingError::TopK)) => bad("top_k".to_owned(), None),
            Error::Generate(GenerateError::Sampling(SamplingError::RepetitionPenalty(_))) => {
                bad("repetition_penalty".to_owned(), None)
            }
            other => Self::internal(&other),
        }
    }

    /// A prompt that was refused before it began.
    pub(crate) fn refused(param: String, reason: FinishReason, judgements: &[Judgement]) -> Self {
        let (param, message) = match judgements.last() {
            Some(judgement) if reason == FinishReason::Guarded => {
                let Judgement { message, category, reason, .. } = judgement;
                let param = if param == "messages" { format!("messages[{message}].content") } else { param };
                let category = if category.is_empty() { String::new() } else { format!(" ({category})") };
                (param, format!("a guard refused the input{category}: {reason}"))
            }
            _ => (param, "the input holds a tag of the chat format".to_owned()),
        };
        BadRequest::new(param, message).with_code("content_filter").into()
    }

    /// The error as JSON: a response's body, or an event of a stream.
    pub(crate) fn body(&self) -> String {
        let kind = if self.status.is_server_error() {
            "server_error"
        } else if self.status == StatusCode::TOO_MANY_REQUESTS {
            "requests"
        } else {
            "invalid_request_error"
        };
        let error = json!({"message": self.message, "type": kind, "param": self.param, "code": self.code});
        json!({ "error": error }).to_string()
    }
}

impl From<BadRequest> for ApiError {
    fn from(BadRequest { message, param, code }: BadRequest) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message, param, code, header: None }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let content_type = [(header::CONTENT_TYPE, "application/json")];
        let mut response = (self.status, content_type, self.body()).into_response();
        let more =
            self.header.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        response.headers_mut().extend(more);
        response
    }
}
