//! [`LlamaBuilder`]: where a model comes from, what it runs on, and its limits.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use llama_backend::{
    Backend, BackendError, Communicator, Computation, DType, Device, LoadParams, LocalCommunicator,
    MemoryPlan, ModelConfig, ModelSource, Ranks, WeightSource,
};

use crate::checkpoint::{self, Checkpoint};
use crate::generate::{Engine, Limits};
use crate::memory::{self, MemoryLimit};
use crate::tokenizer::Tokenizer;
use crate::weights::{Cast, Progress, Quantization, Rule, Watched};
use crate::{BackendKind, Error, Llama};

/// Positions that Meta trained Llama 2 for; its checkpoints do not say so themselves.
const LLAMA2_CONTEXT: usize = 4096;

/// Builds a [`Llama`]. Every setting but the checkpoint has a default.
///
/// ```no_run
/// use llama_core::Llama;
///
/// let llama = Llama::builder().checkpoint("llama-2-7b-chat").max_seq_len(2048).seed(7).build()?;
/// # Ok::<(), llama_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct LlamaBuilder {
    checkpoint: CheckpointFrom,
    tokenizer: Option<TokenizerFrom>,
    backend: BackendFrom,
    device: Device,
    dtype: Option<DType>,
    quantization: Option<Quantization>,
    computation: Computation,
    kv_dtype: DType,
    seed: u64,
    threads: Option<usize>,
    max_seq_len: usize,
    max_batch_size: usize,
    idle_slots: usize,
    max_queue_len: usize,
    context_limit: Option<usize>,
    memory_limit: MemoryLimit,
    progress: Option<Progress>,
    communicator: Arc<dyn Communicator>,
}

#[derive(Debug, Clone)]
enum CheckpointFrom {
    Nowhere,
    Path(PathBuf),
    Opened(Checkpoint),
    Weights(Arc<dyn WeightSource>),
}

#[derive(Debug, Clone)]
enum TokenizerFrom {
    Path(PathBuf),
    Opened(Tokenizer),
}

#[derive(Debug, Clone)]
enum BackendFrom {
    Kind(BackendKind),
    Custom(Arc<dyn Backend>),
}

/// What is needed of a checkpoint, wherever it comes from.
struct Source {
    model: ModelSource,
    config: ModelConfig,
    max_seq_len: Option<usize>,
    tokenizer: Option<PathBuf>,
}

impl From<Checkpoint> for Source {
    fn from(checkpoint: Checkpoint) -> Self {
        Self {
            model: checkpoint.source(),
            config: checkpoint.config().clone(),
            max_seq_len: checkpoint.max_seq_len(),
            tokenizer: checkpoint.tokenizer_path().map(Path::to_owned),
        }
    }
}

impl Default for LlamaBuilder {
    fn default() -> Self {
        Self {
            checkpoint: CheckpointFrom::Nowhere,
            tokenizer: None,
            backend: BackendFrom::Kind(BackendKind::default()),
            device: Device::default(),
            dtype: None,
            quantization: None,
            computation: Computation::default(),
            kv_dtype: DType::F32,
            seed: 1, // the reference's
            threads: None,
            max_seq_len: 512,
            max_batch_size: 8,
            idle_slots: 0,
            max_queue_len: 1024,
            context_limit: None,
            memory_limit: MemoryLimit::default(),
            progress: None,
            communicator: Arc::new(LocalCommunicator::default()),
        }
    }
}

impl LlamaBuilder {
    /// The checkpoint: a folder with Meta's layout, Hugging Face's, an ONNX graph, or one GGUF file, sniffed; or the GGUF file itself.
    #[must_use]
    pub fn checkpoint(mut self, path: impl AsRef<Path>) -> Self {
        self.checkpoint = CheckpointFrom::Path(path.as_ref().to_owned());
        self
    }

    /// A checkpoint that is open already, or lies in memory.
    #[must_use]
    pub fn checkpoint_from(mut self, checkpoint: Checkpoint) -> Self {
        self.checkpoint = CheckpointFrom::Opened(checkpoint);
        self
    }

    /// Weights of a reader of one's own, in the canonical form. They bring no tokenizer.
    #[must_use]
    pub fn weights(mut self, weights: Arc<dyn WeightSource>) -> Self {
        self.checkpoint = CheckpointFrom::Weights(weights);
        self
    }

    /// The tokenizer's file: `tokenizer.model`, `tokenizer.json` or a GGUF file. Default: the one in the GGUF file, or beside the
    /// checkpoint.
    #[must_use]
    pub fn tokenizer(mut self, path: impl AsRef<Path>) -> Self {
        self.tokenizer = Some(TokenizerFrom::Path(path.as_ref().to_owned()));
        self
    }

    /// A tokenizer that is open already.
    #[must_use]
    pub fn tokenizer_from(mut self, tokenizer: Tokenizer) -> Self {
        self.tokenizer = Some(TokenizerFrom::Opened(tokenizer));
        self
    }

    /// The engine that computes. Default: candle.
    #[must_use]
    pub fn backend(mut self, kind: BackendKind) -> Self {
        self.backend = BackendFrom::Kind(kind);
        self
    }

    /// An engine that this project does not have. It brings its device.
    #[must_use]
    pub fn custom_backend(mut self, backend: Arc<dyn Backend>) -> Self {
        self.backend = BackendFrom::Custom(backend);
        self
    }

    /// Where the backend computes. Default: the processor.
    #[must_use]
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// The type to which matrices are converted while they are loaded: f32, f16 or bf16. Default: as they are stored, which costs
    /// no copy; those of a type that the backend does not take ([`Capabilities::dtypes`](llama_backend::Capabilities::dtypes)) are
    /// converted to f32, which costs 4 bytes an element.
    #[must_use]
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = Some(dtype);
        self
    }

    /// Quantises matrices while they are loaded, from a checkpoint in f32, f16 or bf16. Default: no.
    ///
    /// It comes before [`dtype`](Self::dtype): both together compute in that type with the numbers of the quantised model. A backend
    /// that does not take the blocks is given them in f32, so that memory is not saved there, but answers are the same.
    #[must_use]
    pub fn quantize(mut self, quantization: Quantization) -> Self {
        self.quantization = Some(quantization);
        self
    }

    /// How quantised weights are multiplied. Default: [`Computation::Fast`]; answers equal the reference's token for token, as those
    /// of other weights do, under [`Computation::Exact`].
    #[must_use]
    pub fn computation(mut self, computation: Computation) -> Self {
        self.computation = computation;
        self
    }

    /// How keys and values are kept: [`DType::F32`], the default, or [`DType::F16`]: half the memory to hold and to read at each token, and
    /// answers near the reference's, not equal to them. A backend that has no such cache refuses it.
    #[must_use]
    pub fn kv_dtype(mut self, kv_dtype: DType) -> Self {
        self.kv_dtype = kv_dtype;
        self
    }

    /// Seed of the random streams that answers are sampled with. Default: 1.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Threads to compute on. Default: as many as the process may use; of several ranks on a host, its part of them.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Tokens that prompt and answer may have together. Default: 512.
    #[must_use]
    pub fn max_seq_len(mut self, max_seq_len: usize) -> Self {
        self.max_seq_len = max_seq_len;
        self
    }

    /// Prompts that run at a time; more may be asked, and wait their turn. Default: 8.
    #[must_use]
    pub fn max_batch_size(mut self, max_batch_size: usize) -> Self {
        self.max_batch_size = max_batch_size;
        self
    }

    /// Slots of the KV cache beside those of `max_batch_size`: each keeps a prefix, a conversation's usually, for the request that goes on with
    /// it, and takes `max_seq_len` positions of memory. Default: 0; a slot keeps its prefix until another prompt needs it.
    #[must_use]
    pub fn idle_slots(mut self, idle_slots: usize) -> Self {
        self.idle_slots = idle_slots;
        self
    }

    /// Prompts that may wait for their turn; what a call does beyond that its options say
    /// ([`when_full`](crate::GenerationOptions::when_full)). Default: 1024.
    #[must_use]
    pub fn max_queue_len(mut self, max_queue_len: usize) -> Self {
        self.max_queue_len = max_queue_len;
        self
    }

    /// The largest `max_seq_len` to allow, where it differs from what the checkpoint says (for Meta's layout, which says
    /// nothing: 4096).
    #[must_use]
    pub fn context_limit(mut self, positions: usize) -> Self {
        self.context_limit = Some(positions);
        self
    }

    /// The memory that the model may take. Default: what the system has available.
    #[must_use]
    pub fn memory_limit(mut self, limit: MemoryLimit) -> Self {
        self.memory_limit = limit;
        self
    }

    /// Called while weights are loaded, on the thread that loads: bytes done, bytes in all. Never for a graph, which the engine
    /// reads.
    #[must_use]
    pub fn on_progress(mut self, progress: impl Fn(u64, u64) + Send + Sync + 'static) -> Self {
        self.progress = Some(Progress::new(progress));
        self
    }

    /// Splits the model over ranks, each with a part of every layer: rank 0 calls [`build`](Self::build), the others [`follow`](Self::follow), with
    /// the same choices. Default: one rank. Their number divides the key and value heads, and has nothing to do with that of a checkpoint's shards.
    /// One model at a time speaks through a communicator.
    #[must_use]
    pub fn communicator(mut self, communicator: Arc<dyn Communicator>) -> Self {
        self.communicator = communicator;
        self
    }

    /// The bytes that the model will take under these choices, without loading it: its weights in their types, the KV cache and the
    /// scratch. The checkpoint is opened, and none of it read.
    ///
    /// ```no_run
    /// use llama_core::Llama;
    ///
    /// let plan = Llama::builder().checkpoint("llama-2-7b-chat").max_seq_len(4096).max_batch_size(1).plan()?;
    /// println!("{} bytes, {} of them for the KV cache", plan.total(), plan.kv_cache);
    /// # Ok::<(), llama_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build), but for [`Error::Memory`].
    pub fn plan(&self) -> Result<MemoryPlan, Error> {
        Ok(self.clone().prepare()?.plan)
    }

    /// Opens the checkpoint and the tokenizer, and loads the model.
    ///
    /// # Errors
    ///
    /// Every option is checked before anything is loaded, and so is the memory: [`Error::Memory`] has what the model takes and what there
    /// is. See [`Error`] for the others. What is wrong on one of several ranks is an error on all of them.
    pub fn build(self) -> Result<Llama, Error> {
        let _loading = crate::trace::load();
        let (max_seq_len, seed) = (self.max_seq_len, self.seed);
        let limits = Limits { max_batch_size: self.max_batch_size, max_queue_len: self.max_queue_len };
        let available = self.available();
        let ranks = Ranks::claim(Arc::clone(&self.communicator))?;
        let prepared = ranks.agree(self.prepare_for("build", ranks.rank() == 0, available))?;
        let Prepared { backend, source, tokenizer, config, params, .. } = prepared;
        let lead = move || ranks.lead(&*backend, source, params);
        let engine = Engine::start(limits, Arc::new(Instant::now), lead)?;
        Ok(Llama::new(engine, tokenizer, config, max_seq_len, seed))
    }

    /// Loads this rank's part, on another rank than 0, and takes the steps of rank 0's model until that is dropped: once for each
    /// [`build`](Self::build) of rank 0, in their order.
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build), on every rank. Once all are loaded, whatever fails on one rank ends the job
    /// ([`Communicator::abort`]).
    pub fn follow(self) -> Result<(), Error> {
        let loading = crate::trace::load();
        let available = self.available();
        let ranks = Ranks::claim(Arc::clone(&self.communicator))?;
        let prepared = ranks.agree(self.prepare_for("follow", ranks.rank() > 0, available))?;
        drop(loading);
        Ok(ranks.follow(&*prepared.backend, prepared.source, prepared.params)?)
    }

    /// Checks that the call is this rank's, every choice, and the memory.
    fn prepare_for(
        self,
        call: &'static str,
        is_its: bool,
        available: Option<u64>,
    ) -> Result<Prepared, Error> {
        if !is_its {
            let (rank, size) = (self.communicator.rank(), self.communicator.size());
            return Err(Error::Rank { rank, size, call });
        }
        self.prepare()?.within(available)
    }

    /// The bytes that the model may take; `None` for any number.
    fn available(&self) -> Option<u64> {
        // Of a device's memory, and of where another engine takes its own, nothing is known here.
        let is_known = matches!(self.backend, BackendFrom::Kind(_)) && self.device == Device::Cpu;
        match self.memory_limit {
            MemoryLimit::Available if is_known => {
                memory::available().map(|bytes| bytes / self.communicator.ranks_on_host().max(1) as u64)
            }
            MemoryLimit::Bytes(bytes) => Some(bytes),
            MemoryLimit::Available | MemoryLimit::Unlimited => None,
        }
    }

    /// Checks every choice, and opens what is to be loaded.
    fn prepare(self) -> Result<Prepared, Error> {
        let sizes = [
            ("max_batch_size", self.max_batch_size),
            ("max_seq_len", self.max_seq_len),
            ("max_queue_len", self.max_queue_len),
        ];
        for (option, found) in sizes {
            if found == 0 {
                return Err(Error::option(option, found, "at least 1"));
            }
        }
        if let Some(dtype) = self.dtype.filter(|dtype| dtype.is_quantized()) {
            return Err(Error::option("dtype", dtype, "f32, f16 or bf16 (`quantize` makes blocks)"));
        }
        let backend = match self.backend {
            BackendFrom::Kind(kind) => kind.open(self.device)?,
            BackendFrom::Custom(backend) if self.device == Device::default() => backend,
            BackendFrom::Custom(_) => {
                let expected = "none beside a custom backend, which brings its own";
                return Err(Error::option("device", self.device, expected));
            }
        };
        let checkpoint = match self.checkpoint {
            CheckpointFrom::Nowhere => return Err(Error::NoCheckpoint),
            CheckpointFrom::Path(path) => Source::from(checkpoint::open(path)?),
            CheckpointFrom::Opened(checkpoint) => Source::from(checkpoint),
            CheckpointFrom::Weights(weights) => Source {
                config: weights.config().clone(),
                model: ModelSource::Weights(weights),
                max_seq_len: None,
                tokenizer: None,
            },
        };
        let limit = self.context_limit.or(checkpoint.max_seq_len).unwrap_or(LLAMA2_CONTEXT);
        if self.max_seq_len > limit {
            return Err(Error::MaxSeqLen { found: self.max_seq_len, limit });
        }
        let tokenizer = match self.tokenizer {
            Some(TokenizerFrom::Opened(tokenizer)) => tokenizer,
            Some(TokenizerFrom::Path(path)) => Tokenizer::open(path)?,
            None => Tokenizer::open(checkpoint.tokenizer.ok_or(Error::NoTokenizer)?)?,
        };
        let config = checkpoint.config;
        let vocab_size = config.vocab_size;
        if tokenizer.vocab_size() != vocab_size {
            return Err(Error::VocabularyMismatch {
                tokenizer: tokenizer.vocab_size(),
                checkpoint: vocab_size,
            });
        }
        let threads = self.threads.unwrap_or_else(|| self.communicator.n_threads());
        let source = match checkpoint.model {
            ModelSource::Weights(mut weights) => {
                if let Some(quantization) = self.quantization {
                    refuse_quantized(&*weights)?;
                    weights = Cast::wrap(weights, Rule::Quantize(quantization), threads);
                }
                let rule = match self.dtype {
                    Some(dtype) => Rule::Matrices(dtype),
                    None => Rule::Fit(backend.capabilities().dtypes),
                };
                weights = Cast::wrap(weights, rule, threads);
                if let Some(progress) = self.progress {
                    weights = Watched::wrap(weights, progress);
                }
                ModelSource::Weights(weights)
            }
            graph => {
                let expected = "none for a graph, whose types are its maker's";
                if let Some(dtype) = self.dtype {
                    return Err(Error::option("dtype", dtype, expected));
                }
                if let Some(quantization) = self.quantization {
                    return Err(Error::option("quantize", format!("{quantization:?}"), expected));
                }
                graph
            }
        };
        let mut params = Engine::params(self.max_seq_len, self.max_batch_size, self.idle_slots, self.threads);
        params.computation = self.computation;
        params.kv_dtype = self.kv_dtype;
        params.communicator = self.communicator;
        let plan = memory::plan(&*backend, &config, &source, &params)?;
        Ok(Prepared { backend, source, tokenizer, config, params, plan })
    }
}

/// All that a model is loaded with.
struct Prepared {
    backend: Arc<dyn Backend>,
    source: ModelSource,
    tokenizer: Tokenizer,
    config: ModelConfig,
    params: LoadParams,
    plan: MemoryPlan,
}

impl Prepared {
    /// Refuses what takes more memory than there is.
    fn within(self, available: Option<u64>) -> Result<Self, Error> {
        match available {
            Some(available) if self.plan.allocated() > available => {
                Err(Error::Memory { plan: self.plan, available })
            }
            _ => Ok(self),
        }
    }
}

/// Refuses to quantise what is quantised already: each time loses.
fn refuse_quantized(weights: &dyn WeightSource) -> Result<(), Error> {
    for (name, _) in weights.config().tensors() {
        let dtype = weights.info(&name).map_err(BackendError::from)?.dtype;
        if dtype.is_quantized() {
            let found = format!("asked for, but {name} is {dtype} already");
            return Err(Error::option("quantize", found, "a checkpoint in f32, f16 or bf16"));
        }
    }
    Ok(())
}
