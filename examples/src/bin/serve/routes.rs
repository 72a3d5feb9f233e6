//! The routes, and what holds for every one of them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use axum::Router;
use axum::extract::{Path, Request as HttpRequest, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

use crate::answer::Answers;
use crate::app::App;
use crate::error::ApiError;
use crate::events::Events;
use crate::format::{Format, Kind};
use crate::{body, page, request};

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
    let origin = app.access.allowed_origin(request.headers());
    let is_preflight = request.method() == Method::OPTIONS && origin.is_some();
    let mut response = if is_preflight {
        StatusCode::NO_CONTENT.into_response()
    } else if let Err(error) = app.access.check(route, request.headers()) {
        error.into_response()
    } else {
        next.run(request).await
    };
    if let Some(origin) = origin {
        app.access.allow(origin, response.headers_mut());
    }
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
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
    let text = app.metrics.text(app.llama.stats(), app.in_flight());
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
    let arrived = Instant::now();
    if app.closing.load(Ordering::Relaxed) {
        return Err(ApiError::shutting_down());
    }
    let place = app.place()?;
    let bytes = body::read(http, app.limits.max_body_bytes).await?;
    let request = match kind {
        Kind::Chat => request::chat(&bytes, &app.defaults)?,
        Kind::Completion => request::completion(&bytes, &app.defaults)?,
    };
    drop(bytes);
    check_model(app, &request.model)?;
    let (asked, limit) = (request.prompts.len().saturating_mul(request.n), app.limits.max_queue_len);
    if asked > limit {
        let message = format!("{asked} answers are asked for in one request, expected at most {limit}");
        return Err(request::BadRequest::new("n", message).into());
    }
    let format = Format::new(kind, &app.id(), app.model.clone(), request.options.logprobs);
    let streaming = request.stream;
    let answers = Answers::begin(app, request, arrived, place).await?;
    Ok(match streaming {
        Some(streaming) => {
            let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
            (headers, axum::body::Body::new(Events::new(format, streaming, answers, app.limits.keep_alive)))
                .into_response()
        }
        None => {
            let (answers, usage) = answers.wait().await?;
            json_body(&format.whole(answers, usage)).into_response()
        }
    })
}

fn check_model(app: &App, asked: &str) -> Result<(), ApiError> {
    if asked == app.model { Ok(()) } else { Err(ApiError::model_not_found(asked, &app.model)) }
}

fn json_body(value: &Value) -> impl IntoResponse + use<> {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string())
}
