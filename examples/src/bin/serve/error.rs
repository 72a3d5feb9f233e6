//! [`ApiError`]: everything that a client is told instead of an answer, in OpenAI's form, so that its clients raise the exception that fits.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use llama_core::sampler::SamplingError;
use llama_core::{Error, FinishReason, GenerateError, Judgement};
use serde_json::json;

use crate::metrics::Outcome;
use crate::request::{BadRequest, Prompts};

#[derive(Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
    header: Option<(&'static str, &'static str)>,
    outcome: Outcome,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let (message, outcome) = (message.into(), Outcome::Refused);
        Self { status, message, param: None, code: Some(code), header: None, outcome }
    }

    pub(crate) fn with_header(self, name: &'static str, value: &'static str) -> Self {
        Self { header: Some((name, value)), ..self }
    }

    fn with_outcome(self, outcome: Outcome) -> Self {
        Self { outcome, ..self }
    }

    /// What becomes of a request that ends with it.
    pub(crate) fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// There is no room now, and soon there may be.
    pub(crate) fn busy(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message)
            .with_header("retry-after", "1")
    }

    pub(crate) fn shutting_down() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", "the server is shutting down")
            .with_outcome(Outcome::Shutdown)
    }

    pub(crate) fn out_of_time() -> Self {
        let message = "the time for an answer was up before it began";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "deadline_exceeded", message)
            .with_outcome(Outcome::Deadline)
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
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message).with_outcome(Outcome::Error)
    }

    /// A call that llama-core has not taken; its error names prompts by their place in the request.
    pub(crate) fn not_taken(error: Error, prompts: &Prompts) -> Self {
        let param = match &error {
            Error::Generate(GenerateError::QueueFull { .. }) => return Self::busy(error.to_string()),
            Error::Guarded { .. } => {
                let message =
                    "lists of token ids cannot be judged, and this server's model is guarded: send text";
                return BadRequest::new("prompt", message).into();
            }
            Error::ContextOverflow { row, .. } => {
                let overflow = BadRequest::new(prompts.path(*row), error.to_string());
                return overflow.with_code("context_length_exceeded").into();
            }
            Error::EmptyPrompt { row } | Error::TokenOutOfRange { row, .. } => prompts.path(*row),
            Error::Option { option, .. } => (*option).to_owned(),
            Error::Generate(GenerateError::Sampling(SamplingError::MinP(_))) => "min_p".to_owned(),
            Error::Generate(GenerateError::Sampling(SamplingError::TopK)) => "top_k".to_owned(),
            Error::Generate(GenerateError::Sampling(SamplingError::RepetitionPenalty(_))) => {
                "repetition_penalty".to_owned()
            }
            other => return Self::internal(other),
        };
        BadRequest::new(param, error.to_string()).into()
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
        let (status, outcome) = (StatusCode::BAD_REQUEST, Outcome::Refused);
        Self { status, message, param, code, header: None, outcome }
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
