//! Hands a request to the model: what is checked, judged and turned into tokens before it is answered.

use std::sync::Arc;

use llama_core::{BatchStream, Error, GenerationOptions, Llama};

use crate::app::App;
use crate::error::ApiError;
use crate::request::{Prompts, Request};

/// Submits the request, on a thread where that may take long.
pub(crate) async fn submit(app: &Arc<App>, request: Request) -> Result<BatchStream, ApiError> {
    let app = Arc::clone(app);
    let submitted = tokio::task::spawn_blocking(move || submit_now(&app, request));
    // A guard may panic: this is then the one request that fails.
    submitted.await.map_err(|panic| ApiError::internal(&panic))?
}

fn submit_now(app: &App, request: Request) -> Result<BatchStream, ApiError> {
    let Request { prompts, n, mut options, .. } = request;
    options.cancel = Some(app.cancel.clone());
    options.seed = options.seed.or_else(|| Some(app.seed()));
    let stream = streams(&app.llama, &prompts, n, &options)
        .map_err(|error| ApiError::not_taken(error, &prompts, n))?;
    let Some((row, reason, judgements)) = stream.refused() else { return Ok(stream) };
    app.metrics.judged(judgements);
    Err(ApiError::refused(prompts.path(row / n), reason, judgements))
}

/// Each prompt n times, side by side.
fn streams(
    llama: &Llama,
    prompts: &Prompts,
    n: usize,
    options: &GenerationOptions,
) -> Result<BatchStream, Error> {
    fn times<T: Clone>(prompts: &[T], n: usize) -> Vec<T> {
        prompts.iter().flat_map(|prompt| std::iter::repeat_n(prompt, n)).cloned().collect()
    }
    match prompts {
        Prompts::Dialog(dialog) => llama.chat_streams(&times(std::slice::from_ref(dialog), n), options),
        Prompts::Texts(texts) => llama.text_streams(&times(texts, n), options),
        Prompts::Tokens(lists) => llama.generate_streams(&times(lists, n), options),
    }
}
