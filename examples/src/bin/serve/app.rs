//! [`App`]: what all requests share.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use llama_core::{CancelToken, GenerationOptions, Llama};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::access::Access;
use crate::error::ApiError;
use crate::format::unix_time;
use crate::metrics::Metrics;
use crate::request::BadRequest;

#[derive(Debug)]
pub(crate) struct App {
    pub(crate) llama: Llama,
    /// Whether its answers are judged where they are read.
    pub(crate) is_guarded: bool,
    /// The model's name.
    pub(crate) model: String,
    /// What a request says nothing about is so; but for the seed, which is the first that is given to one.
    pub(crate) defaults: GenerationOptions,
    pub(crate) limits: Limits,
    pub(crate) access: Access,
    pub(crate) metrics: Arc<Metrics>,
    /// A place for each answer that may be under way at a time.
    places: Arc<Semaphore>,
    /// Ends all answers.
    pub(crate) cancel: CancelToken,
    /// Whether new requests are turned away.
    pub(crate) closing: AtomicBool,
    created: u64,
    ids: AtomicU64,
    /// Of the next request that names none.
    seed: AtomicU64,
    random: RandomState,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) max_concurrent: usize,
    pub(crate) max_queue_len: usize,
    /// Of one request.
    pub(crate) max_logprobs: usize,
    pub(crate) max_body_bytes: usize,
    /// A stream is silent for so long at most.
    pub(crate) keep_alive: Duration,
}

impl App {
    pub(crate) fn new(
        llama: Llama,
        is_guarded: bool,
        model: String,
        defaults: GenerationOptions,
        limits: Limits,
        access: Access,
        metrics: Arc<Metrics>,
    ) -> Self {
        let random = RandomState::new();
        let seed = defaults.seed.unwrap_or_else(|| random.hash_one("seed"));
        Self {
            llama,
            is_guarded,
            model,
            defaults,
            limits,
            access,
            metrics,
            places: Arc::new(Semaphore::new(limits.max_concurrent)),
            cancel: CancelToken::new(),
            closing: AtomicBool::new(false),
            created: unix_time(),
            ids: AtomicU64::new(0),
            seed: AtomicU64::new(seed),
            random,
        }
    }

    /// A name that nobody can guess: hashes under a random key.
    pub(crate) fn id(&self) -> String {
        let n = self.ids.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}{:016x}", self.random.hash_one((n, 0)), self.random.hash_one((n, 1)))
    }

    /// A seed that no other request has had: who names none wants another answer each time.
    pub(crate) fn seed(&self) -> u64 {
        self.seed.fetch_add(1, Ordering::Relaxed)
    }

    /// Places for all answers to a request, free again when they are dropped. What will never have room is no matter of time.
    pub(crate) fn places(&self, asked: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let Limits { max_concurrent, max_queue_len, .. } = self.limits;
        let limit = max_concurrent.min(max_queue_len);
        let permits = u32::try_from(asked).ok().filter(|_| asked <= limit).ok_or_else(|| {
            let message = format!("{asked} answers are asked for in one request, expected at most {limit}");
            BadRequest::new("n", message)
        })?;
        Arc::clone(&self.places).try_acquire_many_owned(permits).map_err(|_| {
            let in_flight = self.in_flight();
            ApiError::busy(format!("{in_flight} answers are under way, and {max_concurrent} may be: there is no room for {asked} more"))
        })
    }

    /// Answers that have a place.
    pub(crate) fn in_flight(&self) -> usize {
        self.limits.max_concurrent - self.places.available_permits()
    }

    /// The model as OpenAI lists one.
    pub(crate) fn describe(&self) -> Value {
        json!({
            "id": self.model,
            "object": "model",
            "created": self.created,
            "owned_by": "llama-core",
            "max_model_len": self.llama.max_seq_len(),
        })
    }
}
