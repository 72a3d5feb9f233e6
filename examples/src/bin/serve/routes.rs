//! The routes, and what holds for every one of them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::{Path, Request as HttpRequest, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;

use crate::answer::Answers;
use crate::app::App;
use crate::error::ApiError;
use crate::events::Events;
use crate::format::{Format, Kind};
use crate::metrics::Underway;
use crate::request::{BadRequest, Request};
use crate::{access, body, page, request};

/// All routes.
pub(crate) fn router(app: &Arc<App>) -> Router {
    Router::new()
        .route("/", get(page::page))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .fallback(async |request: HttpRequest| {
            let message = format!("there is nothing at {} {}", request.method(), request.uri().path());
            ApiError::new(StatusCode::NOT_FOUND, "unknown_url", message)
        })
        .method_not_allowed_fallback(async |request: HttpRequest| {
            let message = format!("{} takes no {}", request.uri().path(), request.method());
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
        })
        .layer(middleware::from_fn_with_state(Arc::clone(app), every_request))
        .with_state(Arc::clone(app))
}

/// Who may ask, what all responses say, and that they are counted.
async fn every_request(State(app): State<Arc<App>>, request: HttpRequest, next: Next) -> Response {
    let route = route(request.uri().path());
    let headers = request.headers();
    let origin = app.access.allowed_origin(headers);
    let is_preflight = request.method() == Method::OPTIONS
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
        && origin.is_some();
    let mut response = if let Err(error) = app.access.check_source(headers) {
        error.into_response()
    } else if is_preflight {
        let mut response = StatusCode::NO_CONTENT.into_response();
        let asked = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
        access::allow(asked, response.headers_mut());
        response
    } else if let Err(error) = app.access.check_key(route, headers) {
        error.into_response()
    } else {
        next.run(request).await
    };
    if let Some(origin) = origin {
        access::share(origin, response.headers_mut());
    }
    let for_all = [(header::VARY, "origin"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    response.headers_mut().extend(for_all.map(|(name, value)| (name, HeaderValue::from_static(value))));
    app.metrics.responded(route, response.status().as_u16());
    response
}

/// The route as it is counted: paths that do not exist are one, since there is no end of them.
fn route(path: &str) -> &'static str {
    const ROUTES: [&str; 6] =
        ["/", "/health", "/metrics", "/v1/models", "/v1/chat/completions", "/v1/completions"];
    match ROUTES.into_iter().find(|route| *route == path) {
        Some(route) => route,
        None if path.starts_with("/v1/models/") => "/v1/models/{id}",
        None if path.starts_with("/v1/") => "/v1/*",
        None => "/*",
    }
}

async fn health(State(app): State<Arc<App>>) -> Response {
    let (status, word) = match app.closing.load(Ordering::Relaxed) {
        true => (StatusCode::SERVICE_UNAVAILABLE, "shutting down"),
        false if app.llama.failure().is_some() => (StatusCode::SERVICE_UNAVAILABLE, "the engine has stopped"),
        false => (StatusCode::OK, "ok"),
    };
    (status, json_body(&json!({ "status": word }))).into_response()
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let text = app.metrics.exposition(app.llama.stats(), app.in_flight());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn models(State(app): State<Arc<App>>) -> Response {
    json_body(&json!({"object": "list", "data": [app.describe()]})).into_response()
}

async fn model(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    check_model(&app, &id)?;
    Ok(json_body(&app.describe()).into_response())
}

async fn chat(State(app): State<Arc<App>>, request: HttpRequest) -> Result<Response, ApiError> {
    complete(&app, Kind::Chat, request).await
}

async fn completions(State(app): State<Arc<App>>, request: HttpRequest) -> Result<Response, ApiError> {
    complete(&app, Kind::Completion, request).await
}

/// Answers a request, all at once or as a stream.
async fn complete(app: &Arc<App>, kind: Kind, http: HttpRequest) -> Result<Response, ApiError> {
    let mut underway = Underway::new(&app.metrics);
    let (request, places) = match admit(app, kind, http).await {
        Ok(admitted) => admitted,
        Err(error) => {
            underway.ended(error.outcome());
            return Err(error);
        }
    };
    let format = Format::new(kind, app, &request);
    let streams = request.stream.is_some();
    let answers = Answers::begin(app, request, places, underway).await?;
    if streams {
        let headers = [
            (header::CONTENT_TYPE, "text/event-stream"),
            (header::CACHE_CONTROL, "no-cache"),
            (HeaderName::from_static("x-accel-buffering"), "no"), // a proxy is to keep nothing back
        ];
        let events = Events::new(format, answers, app.limits.keep_alive);
        return Ok((headers, axum::body::Body::new(events)).into_response());
    }
    let (answers, usage) = answers.wait().await?;
    // Logprobs are many.
    let body = tokio::task::block_in_place(|| format.whole(&answers, usage));
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// Reads a request, and gives it its places once it is there: who takes long to send one holds up nobody.
async fn admit(
    app: &Arc<App>,
    kind: Kind,
    http: HttpRequest,
) -> Result<(Request, OwnedSemaphorePermit), ApiError> {
    if app.closing.load(Ordering::Relaxed) {
        return Err(ApiError::shutting_down());
    }
    let bytes = body::read(http, app.limits.max_body_bytes).await?;
    let request = match kind {
        Kind::Chat => request::chat(&bytes, &app.defaults)?,
        Kind::Completion => request::completion(&bytes, &app.defaults)?,
    };
    drop(bytes);
    check_model(app, &request.model)?;
    let (asked, limit) = (request.max_logprobs(app.llama.max_seq_len()), app.limits.max_logprobs);
    if asked > limit {
        let message = format!(
            "up to {asked} log-probabilities are asked for, expected at most {limit}: less of `n`, tokens or `top_logprobs` gives fewer"
        );
        return Err(BadRequest::new("logprobs", message).into());
    }
    let places = app.places(request.n_answers())?;
    Ok((request, places))
}

fn check_model(app: &App, asked: &str) -> Result<(), ApiError> {
    if asked == app.model { Ok(()) } else { Err(ApiError::model_not_found(asked, &app.model)) }
}

fn json_body(value: &Value) -> impl IntoResponse + use<> {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string())
}
