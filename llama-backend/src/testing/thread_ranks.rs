//! [`ThreadRanks`]: a backend that splits each model over ranks of this process, so that whatever is asked of a backend can be asked of
//! its ranks.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::ThreadCommunicator;
use crate::{
    Backend, BackendError, Batch, Capabilities, Computation, DType, LoadParams, Logits, MemoryPlan, Model,
    ModelConfig, ModelSource, Notice, Ranks, Slot,
};

/// A backend on several ranks, each a thread: rank 0 is the caller's, the others follow it.
#[derive(Debug)]
pub struct ThreadRanks {
    backend: Arc<dyn Backend>,
    size: usize,
    /// Whether fewer will do.
    at_most: bool,
    last: Mutex<Vec<Arc<ThreadCommunicator>>>,
    sizes: Mutex<BTreeSet<usize>>,
}

impl ThreadRanks {
    /// The backend on so many ranks.
    #[must_use]
    pub fn new(backend: Arc<dyn Backend>, size: usize) -> Self {
        Self { backend, size, at_most: false, last: Mutex::default(), sizes: Mutex::default() }
    }

    /// The backend on as many ranks as a model has parts for, up to so many: for laws, whose models have any shape.
    #[must_use]
    pub fn at_most(backend: Arc<dyn Backend>, size: usize) -> Self {
        Self { at_most: true, ..Self::new(backend, size) }
    }

    fn group(&self, config: &ModelConfig) -> impl Iterator<Item = Arc<ThreadCommunicator>> {
        let ModelConfig { n_kv_heads, ffn_dim, vocab_size, .. } = *config;
        let has_parts = |&size: &usize| n_kv_heads.is_multiple_of(size) && size <= ffn_dim.min(vocab_size);
        let size = if self.at_most { (1..=self.size).rev().find(has_parts).unwrap_or(1) } else { self.size };
        ThreadCommunicator::group(size)
    }

    /// On how many ranks models were loaded.
    #[must_use]
    pub fn sizes(&self) -> BTreeSet<usize> {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The ranks of the model that was loaded last, to ask what they did.
    #[must_use]
    pub fn last(&self) -> Vec<Arc<ThreadCommunicator>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Backend for ThreadRanks {
    fn name(&self) -> &'static str {
        self.backend.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.backend.capabilities()
    }

    fn computation(&self, asked: Computation) -> Computation {
        self.backend.computation(asked)
    }

    /// What all ranks take together, since they are one process.
    fn plan(&self, config: &ModelConfig, dtype: DType, params: &LoadParams) -> MemoryPlan {
        let plan =
            |communicator| self.backend.plan(config, dtype, &LoadParams { communicator, ..params.clone() });
        let none = MemoryPlan { weights: 0, in_place: 0, kv_cache: 0, scratch: 0 };
        self.group(config).fold(none, |sum, rank| {
            let plan = plan(rank);
            MemoryPlan {
                weights: sum.weights.saturating_add(plan.weights),
                in_place: sum.in_place.saturating_add(plan.in_place),
                kv_cache: sum.kv_cache.saturating_add(plan.kv_cache),
                scratch: sum.scratch.saturating_add(plan.scratch),
            }
        })
    }

    fn load(&self, source: ModelSource, params: &LoadParams) -> Result<Box<dyn Model>, BackendError> {
        let ranks: Vec<_> = self.group(source.config()).collect();
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = ranks.clone();
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner).insert(ranks.len());
        let mut ranks = ranks.into_iter();
        let Some(leader) = ranks.next() else {
            return Err(BackendError::params("ranks", self.size, "at least 1"));
        };
        let followers = ranks.map(|rank| {
            let (backend, source, params) = (Arc::clone(&self.backend), source.clone(), params.clone());
            thread::spawn(move || Ranks::claim(rank)?.follow(&*backend, source, params))
        });
        let followers: Vec<_> = followers.collect();
        let model = Ranks::claim(leader)?.lead(&*self.backend, source, params.clone())?;
        Ok(Box::new(ThreadModel { model: Some(model), followers, params: params.clone() }))
    }
}

struct ThreadModel {
    /// `None` only while it is dropped.
    model: Option<Box<dyn Model>>,
    followers: Vec<JoinHandle<Result<(), BackendError>>>,
    /// As the caller gave them, to whom there is one rank.
    params: LoadParams,
}

#[allow(clippy::expect_used, reason = "there is a model until it is dropped")]
impl ThreadModel {
    fn inner(&self) -> &dyn Model {
        self.model.as_deref().expect("a model")
    }

    fn inner_mut(&mut self) -> &mut dyn Model {
        self.model.as_deref_mut().expect("a model")
    }
}

impl Model for ThreadModel {
    fn config(&self) -> &ModelConfig {
        self.inner().config()
    }

    fn params(&self) -> &LoadParams {
        &self.params
    }

    fn notices(&self) -> &[Notice] {
        self.inner().notices()
    }

    fn forward(&mut self, batch: &Batch<'_>, out: &mut Logits) -> Result<(), BackendError> {
        self.inner_mut().forward(batch, out)
    }

    fn truncate(&mut self, slot: Slot, len: usize) -> Result<(), BackendError> {
        self.inner_mut().truncate(slot, len)
    }

    fn fork(&mut self, from: Slot, to: Slot, len: usize) -> Result<(), BackendError> {
        self.inner_mut().fork(from, to, len)
    }
}

impl Drop for ThreadModel {
    fn drop(&mut self) {
        drop(self.model.take());
        for follower in self.followers.drain(..) {
            let _ = follower.join(); // its error was rank 0's too
        }
    }
}
