//! [`Ranks`]: a model on all ranks of a [`Communicator`], loaded together and driven by rank 0.
//!
//! All begin together ([`Phase`]). Everything that can fail on one rank alone is agreed upon: each rank says whether it failed, and all have an error
//! if one has, so that nobody waits for a rank that has gone. After that the ranks are in step by construction: rank 0 tells each step before it takes it
//! ([`replay`](crate::replay)), and a step that fails ends the job.

use std::fmt::{Display, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::replay::{self, Leader};
use crate::{
    Backend, BackendError, Communicator, CommunicatorError, LoadParams, Model, ModelSource, Phase,
    WeightError, WeightSource,
};

/// The right to have a model on these ranks: one at a time. Where there is one rank only, it asks for nothing and costs nothing.
///
/// ```
/// use llama_backend::{LocalCommunicator, ModelSource, LoadParams, DType, Ranks};
/// # use llama_backend::{ModelConfig, testing::{NaiveBackend, RandomWeights}};
/// # use std::sync::Arc;
/// # let config = ModelConfig {
/// #     dim: 8, n_layers: 1, n_heads: 2, n_kv_heads: 1, head_dim: 4, ffn_dim: 12, vocab_size: 5,
/// #     norm_eps: 1e-5, rope_theta: 10000.0,
/// # };
/// # let (backend, source) = (NaiveBackend, ModelSource::Weights(Arc::new(RandomWeights::new(config, DType::F32, 7))));
/// let ranks = Ranks::claim(Arc::new(LocalCommunicator::default()))?;
/// let model = if ranks.rank() == 0 {
///     ranks.lead(&backend, source, LoadParams::new(8, 1))?
/// } else {
///     return ranks.follow(&backend, source, LoadParams::new(8, 1)); // until rank 0 drops its model
/// };
/// # Ok::<(), llama_backend::BackendError>(())
/// ```
#[derive(Debug)]
pub struct Ranks {
    communicator: Arc<dyn Communicator>,
}

impl Ranks {
    /// Asks for the ranks, for one model, and waits until all of them have come to this.
    ///
    /// # Errors
    ///
    /// [`CommunicatorError::InUse`] while there is another, at once; [`CommunicatorError::OutOfStep`] where a rank has come to something else, the
    /// end of its program above all.
    pub fn claim(communicator: Arc<dyn Communicator>) -> Result<Self, BackendError> {
        // One rank speaks with nobody: any number of models can.
        if communicator.size() > 1 && communicator.in_use().swap(true, Ordering::AcqRel) {
            return Err(CommunicatorError::InUse.into());
        }
        let ranks = Self { communicator };
        if !ranks.is_one() {
            Phase::Build.begin(ranks.communicator())?;
        }
        Ok(ranks)
    }

    /// This rank.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.communicator.rank()
    }

    pub(crate) fn is_one(&self) -> bool {
        self.communicator.size() <= 1
    }

    pub(crate) fn communicator(&self) -> &dyn Communicator {
        &*self.communicator
    }

    /// Waits for what every rank has come to: this rank's result, if none has failed.
    ///
    /// # Errors
    ///
    /// This rank's own error; where it has none, [`BackendError::OtherRank`] with the first that has.
    pub fn agree<T, E: Display + From<BackendError>>(&self, own: Result<T, E>) -> Result<T, E> {
        if self.is_one() {
            return own;
        }
        match (self.first_failure(own.as_ref().err()), own) {
            (_, Err(error)) => Err(error),
            (Ok(None), Ok(value)) => Ok(value),
            (Ok(Some((rank, message))), Ok(_)) => Err(BackendError::OtherRank { rank, message }.into()),
            (Err(error), Ok(_)) => Err(BackendError::from(error).into()),
        }
    }

    /// The first rank that failed, and its message.
    fn first_failure(
        &self,
        own: Option<&impl Display>,
    ) -> Result<Option<(usize, String)>, CommunicatorError> {
        let communicator = self.communicator();
        // What a rank has to say is as long as its message, of a length that f32 has exactly: 0 is nothing.
        let mut message = own.map_or(String::new(), |error| format!("{error} ")).into_bytes();
        message.truncate(1 << 16);
        let mut lens = vec![0.0; communicator.size()];
        communicator.all_gather(&[message.len() as f32], &vec![1; communicator.size()], &mut lens)?;
        let Some(rank) = lens.iter().position(|&len| len > 0.0) else { return Ok(None) };
        if rank != self.rank() {
            message = vec![0; lens[rank] as usize];
        }
        communicator.broadcast(rank, &mut message)?;
        Ok(Some((rank, String::from_utf8_lossy(&message).trim_end().to_owned())))
    }

    /// Loads this rank's part on rank 0, and gives the model of all ranks.
    ///
    /// Each step of the model is taken by all ranks. One that fails in the engine ends the job ([`Communicator::abort`]), since nobody knows where
    /// the other ranks are. Dropping the model lets the others go.
    ///
    /// # Errors
    ///
    /// As [`Backend::load`]; [`CommunicatorError::Differs`] where a rank was given another model or other choices than rank 0;
    /// [`CommunicatorError::Rank`] on another rank than 0; [`BackendError::OtherRank`] when another rank has an error.
    pub fn lead(
        self,
        backend: &dyn Backend,
        source: ModelSource,
        params: LoadParams,
    ) -> Result<Box<dyn Model>, BackendError> {
        let model = self.load(self.is_called("lead", self.rank() == 0), backend, source, params)?;
        if self.is_one() {
            return Ok(model);
        }
        Ok(Box::new(Leader::new(self, model)))
    }

    /// Loads this rank's part on another rank than 0, and takes the steps of rank 0 until its model is dropped: once for each model that rank
    /// 0 leads.
    ///
    /// # Errors
    ///
    /// As [`lead`](Self::lead), on every rank, and [`CommunicatorError::Rank`] on rank 0; then [`BackendError::Communicator`] when the job was ended.
    pub fn follow(
        self,
        backend: &dyn Backend,
        source: ModelSource,
        params: LoadParams,
    ) -> Result<(), BackendError> {
        let model = self.load(self.is_called("follow", self.rank() > 0), backend, source, params)?;
        replay::follow(&self, model)
    }

    fn is_called(&self, call: &'static str, is_its: bool) -> Result<(), BackendError> {
        let (rank, size) = (self.rank(), self.communicator.size());
        if is_its { Ok(()) } else { Err(CommunicatorError::Rank { rank, size, call }.into()) }
    }

    fn load(
        &self,
        is_called: Result<(), BackendError>,
        backend: &dyn Backend,
        source: ModelSource,
        params: LoadParams,
    ) -> Result<Box<dyn Model>, BackendError> {
        let params = LoadParams { communicator: Arc::clone(&self.communicator), ..params };
        if self.is_one() {
            return is_called.and_then(|()| backend.load(source, &params));
        }
        // A panic while loading must not leave the others waiting.
        let guard = Guard::new(self.communicator(), "the model was being loaded");
        // Nobody reads a checkpoint for a model that is not to be: each step is agreed upon before the next.
        let own = is_called.and_then(|()| Ok(terms(backend, &source, &params)?));
        let model = self
            .agree(own)
            .and_then(|terms| self.agree(self.same(&terms)))
            .and_then(|()| self.agree(backend.load(source, &params)));
        guard.disarm();
        model
    }

    /// Checks that rank 0 has the same terms.
    fn same(&self, own: &str) -> Result<(), BackendError> {
        let mut len = (own.len() as u32).to_le_bytes();
        self.communicator.broadcast(0, &mut len)?;
        let mut first = own.as_bytes().to_vec();
        first.resize(u32::from_le_bytes(len) as usize, 0);
        self.communicator.broadcast(0, &mut first)?;
        let first = String::from_utf8_lossy(&first);
        // Programs of different versions may have different terms too, and the version is the first.
        let Some((own, first)) = own.lines().zip(first.lines()).find(|(own, first)| own != first) else {
            return Ok(());
        };
        let (what, found) = own.split_once(": ").unwrap_or((own, ""));
        let expected = first.split_once(": ").map_or(first, |(_, value)| value);
        let (what, found, expected) = (what.to_owned(), found.to_owned(), expected.to_owned());
        Err(CommunicatorError::Differs { what, found, expected }.into())
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        if !self.is_one() {
            self.communicator.in_use().store(false, Ordering::Release);
        }
    }
}

/// What ranks must have in common, a line each: all but the threads, and who they are.
///
/// Of the weights that is every tensor's type and shape, and the numbers of the norms, which are small, whole on every rank, and different in
/// any two models.
fn terms(backend: &dyn Backend, source: &ModelSource, params: &LoadParams) -> Result<String, WeightError> {
    let LoadParams { max_seq_len, n_slots, max_batch_tokens, computation, kv_dtype, .. } = params;
    let mut terms = String::new();
    let mut term = |what: &str, value: &dyn Display| {
        let _ = writeln!(terms, "{what}: {value}"); // a string takes anything
    };
    term("version", &env!("CARGO_PKG_VERSION"));
    term("backend", &backend.name());
    term("model", &format_args!("{:?}", source.config()));
    term("max_seq_len", max_seq_len);
    term("n_slots", n_slots);
    term("max_batch_tokens", max_batch_tokens);
    term("computation", &format_args!("{:?}", backend.computation(*computation)));
    term("kv_dtype", kv_dtype);
    if let ModelSource::Weights(weights) = source {
        let [types, numbers] = digests(&**weights)?;
        term("the weights' types and shapes", &types);
        term("the norms' weights", &numbers);
    }
    Ok(terms)
}

/// What distinguishes weights: the types of their matrices, with a hash of each tensor's, and a hash of norms.
fn digests(weights: &dyn WeightSource) -> Result<[String; 2], WeightError> {
    let (mut types, mut tensors, mut norms) = (Vec::new(), Fnv::default(), Fnv::default());
    for (name, _) in weights.config().tensors() {
        let info = weights.info(&name)?;
        tensors.add(format!("{name} {} {:?}", info.dtype, info.shape).as_bytes());
        if info.shape.len() > 1 {
            let dtype = info.dtype.to_string();
            if !types.contains(&dtype) {
                types.push(dtype);
            }
        } else if name == "norm.weight" || name.starts_with("layers.0.") {
            norms.add(&weights.bytes(&name)?);
        }
    }
    Ok([format!("{} ({:016x})", types.join(", "), tensors.0), format!("{:016x}", norms.0)])
}

/// The hash of Fowler, Noll and Vo (FNV-1a, 64 bits): the same in every build, as the standard library's is not.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        // A byte that no name has parts one from the next.
        for &byte in bytes.iter().chain(&[0xff]) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

/// Ends the job where this rank leaves, by a panic, what the others wait in.
pub(crate) struct Guard<'a> {
    communicator: &'a dyn Communicator,
    what: &'static str,
}

impl<'a> Guard<'a> {
    pub(crate) fn new(communicator: &'a dyn Communicator, what: &'static str) -> Self {
        Self { communicator, what }
    }

    pub(crate) fn disarm(self) {
        std::mem::forget(self); // it owns nothing
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.communicator.abort(&format!("a panic while {}", self.what));
    }
}
