//! Reads a request's body, within a limit of bytes and of time.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper::body::{Body, Bytes};

use crate::error::ApiError;

/// For a client to send it.
pub(crate) const TIME: Duration = Duration::from_secs(30);

/// A body that is too long is read on and thrown away, up to so many times the limit: most clients hear nothing before they have sent all.
const DISCARDED: usize = 16;

/// The body of a request that says it is JSON. The other types that a page of another origin may send unasked are none.
pub(crate) async fn read(request: Request, limit: usize) -> Result<Vec<u8>, ApiError> {
    if !is_json(request.headers()) {
        let message = "the request is to have the header `Content-Type: application/json`";
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message));
    }
    match tokio::time::timeout(TIME, read_all(request.into_body(), limit)).await {
        Ok(read) => read,
        Err(_) => {
            let message = format!("the body did not come within {} seconds", TIME.as_secs());
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message))
        }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let kind = value.split(|byte| *byte == b';').next().unwrap_or_default();
    kind.trim_ascii().eq_ignore_ascii_case(b"application/json")
}

async fn read_all(mut body: axum::body::Body, limit: usize) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    let mut len: usize = 0;
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let frame = frame.map_err(|error| {
            let message = format!("the body could not be read: {error}");
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_body", message)
        })?;
        let data: Bytes = frame.into_data().unwrap_or_default();
        len = len.saturating_add(data.len());
        if len <= limit {
            bytes.extend_from_slice(&data);
        } else if len > limit.saturating_mul(DISCARDED) {
            break;
        }
    }
    if len > limit {
        let message = format!("the body is longer than {limit} bytes");
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message));
    }
    Ok(bytes)
}
