//! Hands a request to the model: what is checked, judged and turned into tokens before it is answered.

use std::sync::Arc;

use llama_core::{BatchStream, Error, GenerationOptions, Llama, RefusedPrompt, TokenId};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;

use crate::app::App;
use crate::error::ApiError;
use crate::request::{Prompts, Request};

/// Work on another thread, which is not begun any more when nobody waits for it. What is begun goes on.
struct Work<T>(JoinHandle<T>);

impl<T> Drop for Work<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Submits the request, on a thread where that may take long. Its places go along: they are taken as long as there is work, whoever has left.
pub(crate) async fn submit(
    app: &Arc<App>,
    request: Request,
    places: OwnedSemaphorePermit,
) -> Result<(BatchStream, OwnedSemaphorePermit), ApiError> {
    let app = Arc::clone(app);
    let submit = move || submit_now(&app, request).map(|stream| (stream, places));
    let mut work = Work(tokio::task::spawn_blocking(submit));
    // A guard may panic: this is then the one request that fails.
    (&mut work.0).await.map_err(|panic| ApiError::internal(&panic))?
}

fn submit_now(app: &App, request: Request) -> Result<BatchStream, ApiError> {
    let Request { prompts, n, mut options, .. } = request;
    options.cancel = Some(app.cancel.clone());
    options.seed = options.seed.or_else(|| Some(app.seed()));
    if app.is_guarded {
        check_lengths(&app.llama, &prompts, &options)
            .map_err(|error| ApiError::not_taken(error, &prompts))?;
    }
    let stream = streams(&app.llama, &prompts, n, &options)
        .map_err(|error| ApiError::not_taken(of_prompt(error, n), &prompts))?;
    match stream.refused() {
        None => Ok(stream),
        Some(RefusedPrompt { place, finish_reason, judgements, .. }) => {
            Err(ApiError::refused(prompts.path(place / n), *finish_reason, judgements))
        }
    }
}

/// Refuses what is too long before guards read it, to whom each of ten thousand messages is a question.
fn check_lengths(llama: &Llama, prompts: &Prompts, options: &GenerationOptions) -> Result<(), Error> {
    let limit = llama.max_seq_len();
    let reserved = usize::from(options.max_gen_len != Some(0));
    let check = |(row, tokens): (usize, Vec<TokenId>)| match tokens.len() {
        prompt if prompt + reserved > limit => Err(Error::ContextOverflow { row, prompt, reserved, limit }),
        _ => Ok(()),
    };
    match prompts {
        // One that cannot be encoded is refused for its tag.
        Prompts::Dialog(dialog) => {
            llama.tokenizer().encode_dialog(dialog).map_or(Ok(()), |tokens| check((0, tokens)))
        }
        Prompts::Texts(texts) => {
            texts.iter().map(|text| llama.tokenizer().encode_prompt(text)).enumerate().try_for_each(check)
        }
        Prompts::Tokens(_) => Ok(()), // which guards do not read
    }
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

/// The error with the place of the prompt among the client's, each of which stands n times in the call.
fn of_prompt(mut error: Error, n: usize) -> Error {
    if let Error::ContextOverflow { row, .. }
    | Error::EmptyPrompt { row }
    | Error::TokenOutOfRange { row, .. } = &mut error
    {
        *row /= n;
    }
    error
}

#[cfg(test)]
mod tests;
