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

#[derive(Debug)]
pub(crate) struct App {
    pub(crate) llama: Llama,
    /// Whether its answers are judged where they are read.
    pub(crate) is_guarded: bool,
    /// The model's name.
    pub(crate) model: String,
    pub(crate) defaults: GenerationOptions,
    pub(crate) limits: Limits,
    pub(crate) access: Access,
    pub(crate) metrics: Metrics,
    /// A place for each request that may be answered at a time.
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
        seed: Option<u64>,
    ) -> Self {
        let random = RandomState::new();
        Self {
            llama,
            is_guarded,
            model,
            defaults,
            limits,
            access,
            metrics: Metrics::default(),
            places: Arc::new(Semaphore::new(limits.max_concurrent)),
            cancel: CancelToken::new(),
            closing: AtomicBool::new(false),
            created: unix_time(),
            ids: AtomicU64::new(0),
            seed: AtomicU64::new(seed.unwrap_or_else(|| random.hash_one("seed"))),
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

    /// A place for a request, which frees it when it is dropped.
    pub(crate) fn place(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            let limit = self.limits.max_concurrent;
            ApiError::busy(format!("{limit} requests are being answered, and no more may be"))
        })
    }

    /// Requests that have a place.
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
