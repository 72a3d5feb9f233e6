//! The libtorch backend's marks, on a random f32 model of TinyLlama's shape: what it makes of libtorch's own operations.
//!
//! What libtorch reaches is the sum of its `linear` and attention calls for one step, with nothing between them: 4.4 GB of the same
//! weights, in the model's order, so that no cache helps.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use llama_backend::testing::RandomWeights;
use llama_backend::{
    Backend, Batch, DType, LoadParams, Logits, Model, ModelConfig, ModelSource, Run, Slot, TokenId, Want,
    WeightSource,
};
use llama_backend_candle::CandleBackend;
use llama_backend_tch::TchBackend;
use llama_backend_tch::for_benches::Product;
use tch::{Device, Kind, Tensor};

use crate::Error;
use crate::marks::{median, time};

/// Tokens of the prompt.
const PROMPT: usize = 512;
/// Tokens generated after it.
const NEW: usize = 64;
/// Sequences that decode together.
const BATCH: usize = 8;

/// TinyLlama's shape.
#[must_use]
pub fn config() -> ModelConfig {
    ModelConfig {
        dim: 2048,
        n_layers: 22,
        n_heads: 32,
        n_kv_heads: 4,
        head_dim: 64,
        ffn_dim: 5632,
        vocab_size: 32000,
        norm_eps: 1e-5,
        rope_theta: 10000.0,
    }
}

/// What was measured, round by round.
#[derive(Debug, Default)]
pub struct TchMarks {
    /// The threads of everything.
    pub n_threads: usize,
    /// A prompt of 512.
    pub prefill: Vec<Duration>,
    /// One of the 64 tokens after it.
    pub decode: Vec<Duration>,
    /// One token for each of 8 sequences.
    pub decode_8: Vec<Duration>,
    /// libtorch's own calls for the prompt.
    pub engine_prefill: Vec<Duration>,
    /// libtorch's own calls for a token.
    pub engine_decode: Vec<Duration>,
    /// The prompt on candle.
    pub candle_prefill: Vec<Duration>,
    /// A token on candle.
    pub candle_decode: Vec<Duration>,
}

impl TchMarks {
    /// Measures everything in turns, `rounds` times after one that is not counted.
    ///
    /// # Errors
    ///
    /// What a workload says.
    pub fn measure(n_threads: usize, rounds: usize) -> Result<Self, Error> {
        let weights = Arc::new(RandomWeights::new(config(), DType::F32, 1).materialised());
        let engine = EngineOps::new(&weights)?;
        let mut ours = Sequences::new(&TchBackend::default(), &weights, n_threads)?;
        let mut candle = Sequences::new(&CandleBackend::default(), &weights, n_threads)?;
        let mut marks = Self { n_threads, ..Self::default() };
        for round in 0..=rounds {
            let times = [
                time(|| ours.prefill())?,
                time(|| engine.run(n_threads, PROMPT, PROMPT))?,
                time(|| ours.decode(1, NEW))? / NEW as u32,
                time(|| (0..8).try_for_each(|_| engine.run(n_threads, 1, PROMPT + NEW / 2)))? / 8,
                time(|| ours.decode(BATCH, 8))? / 8,
                time(|| candle.prefill())?,
                time(|| candle.decode(1, 8))? / 8,
            ];
            let [prefill, engine_prefill, decode, engine_decode, decode_8, candle_prefill, candle_decode] =
                times;
            if round > 0 {
                marks.prefill.push(prefill);
                marks.engine_prefill.push(engine_prefill);
                marks.decode.push(decode);
                marks.engine_decode.push(engine_decode);
                marks.decode_8.push(decode_8);
                marks.candle_prefill.push(candle_prefill);
                marks.candle_decode.push(candle_decode);
            }
        }
        Ok(marks)
    }

    /// Every measure by its name.
    #[must_use]
    pub fn measures(&self) -> [(&str, &[Duration]); 7] {
        [
            ("prefill_512", &self.prefill),
            ("prefill_512_libtorch_calls", &self.engine_prefill),
            ("decode", &self.decode),
            ("decode_libtorch_calls", &self.engine_decode),
            ("decode_8", &self.decode_8),
            ("prefill_512_candle", &self.candle_prefill),
            ("decode_candle", &self.candle_decode),
        ]
    }
}

impl fmt::Display for TchMarks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = |tokens: usize, times: &[Duration]| tokens as f64 / median(times);
        let ratio = |a: &[Duration], b: &[Duration]| median(a) / median(b);
        writeln!(f, "{} threads, medians of {} rounds", self.n_threads, self.prefill.len())?;
        writeln!(
            f,
            "prefill 512: {:.1} tok/s; over libtorch's own linear and attention calls {:.3} (at most 1.1); over candle {:.3}",
            rate(PROMPT, &self.prefill),
            ratio(&self.prefill, &self.engine_prefill),
            ratio(&self.prefill, &self.candle_prefill),
        )?;
        writeln!(
            f,
            "decode: {:.2} tok/s; over libtorch's own calls {:.3} (at most 1.1); over candle {:.3}",
            rate(1, &self.decode),
            ratio(&self.decode, &self.engine_decode),
            ratio(&self.decode, &self.candle_decode),
        )?;
        let eight = rate(BATCH, &self.decode_8);
        write!(
            f,
            "decode, 8 at a time: {eight:.2} tok/s, {:.2} times one alone (at least 3)",
            eight / rate(1, &self.decode)
        )
    }
}

/// A model, and 8 slots that begin alike.
struct Sequences {
    model: Box<dyn Model>,
    logits: Logits,
    tokens: Vec<TokenId>,
}

impl Sequences {
    fn new(backend: &dyn Backend, weights: &Arc<RandomWeights>, n_threads: usize) -> Result<Self, Error> {
        let mut params = LoadParams::new(PROMPT + NEW, BATCH);
        params.threads = Some(n_threads);
        let source = ModelSource::Weights(Arc::<RandomWeights>::clone(weights));
        let tokens = (0..(PROMPT + NEW) as u32).map(|i| TokenId(i * 7 % 32000)).collect();
        Ok(Self { model: backend.load(source, &params)?, logits: Logits::new(), tokens })
    }

    /// The prompt, into slot 0.
    fn prefill(&mut self) -> Result<(), Error> {
        self.model.truncate(Slot(0), 0)?;
        let run = Run { slot: Slot(0), start_pos: 0, tokens: &self.tokens[..PROMPT], want: Want::Last };
        Ok(self.model.forward(&Batch::new(&[run]), &mut self.logits)?)
    }

    /// `steps` tokens after the prompt, in each of the first slots. The forks that make them cost a thousandth of a step.
    fn decode(&mut self, n_slots: usize, steps: usize) -> Result<(), Error> {
        for slot in 0..n_slots {
            self.model.fork(Slot(0), Slot(slot), PROMPT)?;
        }
        for start_pos in PROMPT..PROMPT + steps {
            let tokens = &self.tokens[start_pos..=start_pos];
            let run = |slot| Run { slot: Slot(slot), start_pos, tokens, want: Want::Last };
            let runs: Vec<_> = (0..n_slots).map(run).collect();
            self.model.forward(&Batch::new(&runs), &mut self.logits)?;
        }
        Ok(())
    }
}

/// The matrices and the KV cache of one sequence, for libtorch's own calls.
struct EngineOps {
    /// In the order of the forward pass.
    matrices: Vec<Product>,
    /// `[1, n_kv_heads, positions, head_dim]`, keys and values of each layer.
    caches: Vec<[Tensor; 2]>,
}

impl EngineOps {
    fn new(weights: &RandomWeights) -> Result<Self, Error> {
        let config = config();
        let mut matrices = Vec::new();
        for (name, shape) in config.tensors() {
            if let &[n_out, n_in] = shape.as_slice()
                && name != "tok_embeddings.weight"
            {
                matrices.push(Product::new([n_out, n_in], DType::F32, weights.bytes(&name)?, false)?);
            }
        }
        let size = [1, config.n_kv_heads, PROMPT + NEW, config.head_dim].map(|n| n as i64);
        let random = || Tensor::f_randn(size, (Kind::Float, Device::Cpu));
        let cache = |_| Ok([random()?, random()?]);
        Ok(Self { matrices, caches: (0..config.n_layers).map(cache).collect::<Result<_, Error>>()? })
    }

    /// Every product for `n` rows (the last for one), and each layer's attention over `len` positions.
    fn run(&self, n_threads: usize, n: usize, len: usize) -> Result<(), Error> {
        tch::set_num_threads(i32::try_from(n_threads)?);
        let _no_grad = tch::no_grad_guard();
        let kind = (Kind::Float, Device::Cpu);
        for (i, product) in self.matrices.iter().enumerate() {
            let rows = if i + 1 == self.matrices.len() { 1 } else { n };
            let weight = product.weight().ok_or("blocks")?;
            let x = Tensor::f_ones([rows as i64, weight.size()[1]], kind)?;
            let _ = std::hint::black_box(x.f_linear(weight, None::<&Tensor>)?);
        }
        let ModelConfig { n_heads, n_kv_heads, head_dim, .. } = config();
        for [keys, values] in &self.caches {
            let part = |whole: &Tensor| whole.f_narrow(2, 0, len as i64);
            // A decode's query heads folded into rows, the fastest way.
            let size = if n == 1 {
                [1, n_kv_heads, n_heads / n_kv_heads, head_dim]
            } else {
                [1, n_heads, n, head_dim]
            };
            let q = Tensor::f_ones(size.map(|n| n as i64), kind)?;
            let (keys, values) = (part(keys)?, part(values)?);
            let none = None::<&Tensor>;
            let (causal, grouped) = (n > 1, n > 1);
            let _ = std::hint::black_box(Tensor::f_scaled_dot_product_attention(
                &q, &keys, &values, none, 0.0, causal, None, grouped,
            )?);
        }
        Ok(())
    }
}
