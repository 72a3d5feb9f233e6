//! [`Oracle`]: the forward pass as the paper has it, and [`NaiveBackend`], the oracle as a backend.
//!
//! Written to be compared with the reference's `model.py` line by line, and with nothing to get wrong beside it: no KV cache,
//! no batch, no blocks. A slot of [`NaiveBackend`] is the list of its tokens, and every step computes the sequence anew, so
//! truncation, forks and chunks are right by construction. Weights are the file's numbers, widened exactly; all arithmetic is
//! f64, rounded once to give f32 logits: what an engine differs by is the engine's rounding alone.
//!
//! Shapes: `n` is the number of tokens of one sequence; `[n, width]` is `n` rows.

use crate::quant::dequantize;
use crate::{
    Backend, BackendError, Batch, Capabilities, DType, LoadParams, Logits, MemoryPlan, Model, ModelConfig,
    ModelSource, Slot, Slots, TokenId, Want, WeightError, WeightSource,
};

/// `[n, width]`: a row of activations per token.
type Rows = Vec<Vec<f64>>;

/// The forward pass of Llama 2 over one whole sequence (`Transformer.forward` in the reference, from `start_pos` 0).
#[derive(Debug)]
pub struct Oracle {
    config: ModelConfig,
    tok_embeddings: Matrix,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    output: Matrix,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Vec<f32>, // [dim]
    wq: Matrix,               // [n_heads * head_dim, dim]
    wk: Matrix,               // [n_kv_heads * head_dim, dim]
    wv: Matrix,               // [n_kv_heads * head_dim, dim]
    wo: Matrix,               // [dim, n_heads * head_dim]
    ffn_norm: Vec<f32>,       // [dim]
    w1: Matrix,               // [ffn_dim, dim]
    w2: Matrix,               // [dim, ffn_dim]
    w3: Matrix,               // [ffn_dim, dim]
}

/// `[out, n_in]`, row-major.
#[derive(Debug)]
struct Matrix {
    data: Vec<f32>,
    n_in: usize,
}

impl Oracle {
    /// Reads a whole checkpoint.
    ///
    /// # Errors
    ///
    /// [`BackendError::Config`] for a shape that makes no transformer, [`BackendError::Weights`] for a tensor that is missing
    /// or has another shape.
    pub fn new(source: &dyn WeightSource) -> Result<Self, BackendError> {
        let config = source.config().clone();
        config.validate()?;
        let vector = |name: &str, dim| read(source, name, &[dim]);
        let matrix =
            |name: &str, n_out, n_in| read(source, name, &[n_out, n_in]).map(|data| Matrix { data, n_in });
        let (dim, ffn_dim, vocab_size) = (config.dim, config.ffn_dim, config.vocab_size);
        let (q_dim, kv_dim) = (config.q_dim(), config.kv_dim());
        let layers = (0..config.n_layers).map(|i| {
            let name = |part: &str| format!("layers.{i}.{part}.weight");
            Ok(Layer {
                attention_norm: vector(&name("attention_norm"), dim)?,
                wq: matrix(&name("attention.wq"), q_dim, dim)?,
                wk: matrix(&name("attention.wk"), kv_dim, dim)?,
                wv: matrix(&name("attention.wv"), kv_dim, dim)?,
                wo: matrix(&name("attention.wo"), dim, q_dim)?,
                ffn_norm: vector(&name("ffn_norm"), dim)?,
                w1: matrix(&name("feed_forward.w1"), ffn_dim, dim)?,
                w2: matrix(&name("feed_forward.w2"), dim, ffn_dim)?,
                w3: matrix(&name("feed_forward.w3"), ffn_dim, dim)?,
            })
        });
        Ok(Self {
            tok_embeddings: matrix("tok_embeddings.weight", vocab_size, dim)?,
            layers: layers.collect::<Result<_, WeightError>>()?,
            norm: vector("norm.weight", dim)?,
            output: matrix("output.weight", vocab_size, dim)?,
            config,
        })
    }

    /// The logits after each token from index `first` on, `[n - first, vocab_size]`.
    ///
    /// # Panics
    ///
    /// Where a token is not below `vocab_size`: a bug of the test.
    #[must_use]
    pub fn logits(&self, tokens: &[TokenId], first: usize) -> Vec<Vec<f32>> {
        let ModelConfig { head_dim, rope_theta, .. } = self.config;
        let eps = f64::from(self.config.norm_eps);

        let mut x: Rows = tokens.iter().map(|&token| self.embed(token)).collect(); // [n, dim]
        for layer in &self.layers {
            let normed = rms_norm(&x, &layer.attention_norm, eps); // [n, dim]
            let mut q = linear(&normed, &layer.wq); // [n, n_heads * head_dim]
            let mut k = linear(&normed, &layer.wk); // [n, n_kv_heads * head_dim]
            let v = linear(&normed, &layer.wv); // [n, n_kv_heads * head_dim]
            rope(&mut q, head_dim, rope_theta);
            rope(&mut k, head_dim, rope_theta);
            let heads = attention(&q, &k, &v, &self.config); // [n, n_heads * head_dim]
            add(&mut x, &linear(&heads, &layer.wo)); // [n, dim]

            let normed = rms_norm(&x, &layer.ffn_norm, eps); // [n, dim]
            let gate = linear(&normed, &layer.w1); // [n, ffn_dim]
            let up = linear(&normed, &layer.w3); // [n, ffn_dim]
            add(&mut x, &linear(&swiglu(&gate, &up), &layer.w2)); // [n, dim]
        }
        let normed = rms_norm(&x[first.min(x.len())..], &self.norm, eps); // [n - first, dim]
        let logits = linear(&normed, &self.output); // [n - first, vocab_size]
        logits.iter().map(|row| row.iter().map(|&logit| logit as f32).collect()).collect()
    }

    /// A row of `tok_embeddings`, `[dim]`.
    fn embed(&self, token: TokenId) -> Vec<f64> {
        let dim = self.config.dim;
        let row = &self.tok_embeddings.data[token.0 as usize * dim..][..dim];
        row.iter().map(|&w| f64::from(w)).collect()
    }
}

/// `x * rsqrt(mean(x²) + eps) * weight`, row by row: `[n, dim]` (Zhang & Sennrich 2019).
fn rms_norm(x: &[Vec<f64>], weight: &[f32], eps: f64) -> Rows {
    let normed = |row: &Vec<f64>| {
        let mean_square = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
        let scale = 1.0 / (mean_square + eps).sqrt();
        row.iter().zip(weight).map(|(x, &w)| x * scale * f64::from(w)).collect()
    };
    x.iter().map(normed).collect()
}

/// `x · wᵀ`: `[n, n_in]` to `[n, n_out]`.
fn linear(x: &[Vec<f64>], w: &Matrix) -> Rows {
    let dot = |row: &[f64], weights: &[f32]| {
        let mut sum = 0.0;
        for (x, &w) in row.iter().zip(weights) {
            sum += x * f64::from(w);
        }
        sum
    };
    x.iter().map(|row| w.data.chunks_exact(w.n_in).map(|weights| dot(row, weights)).collect()).collect()
}

/// Turns the pair (2i, 2i + 1) of every head of the row at position p by `p * theta^(-2i / head_dim)` (Su et al. 2021).
fn rope(rows: &mut Rows, head_dim: usize, theta: f64) {
    for (position, row) in rows.iter_mut().enumerate() {
        for head in row.chunks_exact_mut(head_dim) {
            for (i, pair) in head.chunks_exact_mut(2).enumerate() {
                let frequency = theta.powf(-((2 * i) as f64) / head_dim as f64);
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                let (re, im) = (pair[0], pair[1]);
                pair[0] = re * cos - im * sin;
                pair[1] = re * sin + im * cos;
            }
        }
    }
}

/// Causal attention, `[n, n_heads * head_dim]`: key and value head `j` serves the query heads `j * n_rep .. (j + 1) * n_rep`.
fn attention(q: &Rows, k: &Rows, v: &Rows, config: &ModelConfig) -> Rows {
    let (n_heads, n_rep, head_dim) = (config.n_heads, config.n_rep(), config.head_dim);
    let mut out = vec![vec![0.0; n_heads * head_dim]; q.len()];
    for (position, out) in out.iter_mut().enumerate() {
        for head in 0..n_heads {
            let kv = head / n_rep * head_dim..(head / n_rep + 1) * head_dim;
            let q = &q[position][head * head_dim..][..head_dim]; // [head_dim]
            let score = |k: &Vec<f64>| {
                let dot: f64 = q.iter().zip(&k[kv.clone()]).map(|(q, k)| q * k).sum();
                dot / (head_dim as f64).sqrt()
            };
            let scores: Vec<f64> = k[..=position].iter().map(score).collect(); // [position + 1]
            let weights = softmax(&scores); // [position + 1]
            for (weight, v) in weights.iter().zip(v) {
                for (out, v) in out[head * head_dim..][..head_dim].iter_mut().zip(&v[kv.clone()]) {
                    *out += weight * v;
                }
            }
        }
    }
    out
}

/// `exp(x - max) / Σ exp(x - max)`.
fn softmax(x: &[f64]) -> Vec<f64> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = x.iter().map(|x| (x - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.iter().map(|e| e / sum).collect()
}

/// `silu(gate) * up`, element by element: `[n, ffn_dim]` (Shazeer 2020).
fn swiglu(gate: &Rows, up: &Rows) -> Rows {
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let row = |(gate, up): (&Vec<f64>, &Vec<f64>)| gate.iter().zip(up).map(|(&g, u)| silu(g) * u).collect();
    gate.iter().zip(up).map(row).collect()
}

/// The residual: `x += y`, `[n, dim]`.
fn add(x: &mut Rows, y: &Rows) {
    for (x, y) in x.iter_mut().flatten().zip(y.iter().flatten()) {
        *x += y;
    }
}

/// A tensor's elements, widened to f32 without loss.
fn read(source: &dyn WeightSource, name: &str, expected: &[usize]) -> Result<Vec<f32>, WeightError> {
    let info = source.info(name)?;
    let misfit = |found: Vec<usize>| WeightError::Shape {
        file: "weights".into(),
        tensor: name.to_owned(),
        found,
        expected: expected.to_vec(),
    };
    if info.shape != expected {
        return Err(misfit(info.shape));
    }
    let bytes = source.bytes(name)?;
    if Some(bytes.len()) != info.n_bytes() {
        return Err(misfit(vec![bytes.len() / info.dtype.size()]));
    }
    let mut data = vec![0.0; info.shape.iter().product()];
    // The lengths are those of the shape.
    dequantize(info.dtype, &bytes, &mut data).map_err(|source| WeightError::Read {
        file: "weights".into(),
        tensor: name.to_owned(),
        source: source.into(),
    })?;
    Ok(data)
}

/// The oracle as a backend: slow, and right in every detail that the laws look at.
#[derive(Debug, Clone, Copy, Default)]
pub struct NaiveBackend;

impl Backend for NaiveBackend {
    fn name(&self) -> &'static str {
        "naive"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            dtypes: &[DType::F32, DType::F16, DType::BF16],
            skipped_laws: &[],
            tensor_parallel: false,
        }
    }

    fn plan(&self, config: &ModelConfig, _dtype: DType, params: &LoadParams) -> MemoryPlan {
        let saturating = |factors: &[usize]| factors.iter().fold(1_u64, |n, &f| n.saturating_mul(f as u64));
        let f64_rows = |width: usize| saturating(&[8, params.max_seq_len, width]);
        MemoryPlan {
            weights: config.n_params().saturating_mul(4),
            in_place: 0,
            // A cache of tokens: all that the next step is computed from.
            kv_cache: saturating(&[size_of::<TokenId>(), params.n_slots, params.max_seq_len]),
            scratch: f64_rows(config.dim).saturating_add(f64_rows(config.ffn_dim).saturating_mul(3)),
        }
    }

    fn load(&self, source: ModelSource, params: &LoadParams) -> Result<Box<dyn Model>, BackendError> {
        let ModelSource::Weights(source) = source else {
            return Err(BackendError::Unsupported {
                backend: "naive",
                what: "a source without weights".to_owned(),
            });
        };
        params.validate()?;
        params.require_one_rank("naive")?;
        let oracle = Oracle::new(&*source)?;
        let n_positions = params.n_slots.saturating_mul(params.max_seq_len);
        let mut tokens = Vec::new();
        tokens.try_reserve_exact(n_positions).map_err(|_| {
            BackendError::params("n_slots * max_seq_len", n_positions, "as many as fit in memory")
        })?;
        tokens.resize(n_positions, TokenId(0));
        Ok(Box::new(NaiveModel {
            slots: Slots::new(&oracle.config, params),
            oracle,
            params: params.clone(),
            tokens,
        }))
    }
}

#[derive(Debug)]
struct NaiveModel {
    oracle: Oracle,
    params: LoadParams,
    slots: Slots,
    /// `[n_slots, max_seq_len]`.
    tokens: Vec<TokenId>,
}

impl NaiveModel {
    /// Where a slot's first position lies in `tokens`.
    fn start(&self, slot: Slot) -> usize {
        slot.0 * self.params.max_seq_len
    }
}

impl Model for NaiveModel {
    fn config(&self) -> &ModelConfig {
        &self.oracle.config
    }

    fn params(&self) -> &LoadParams {
        &self.params
    }

    fn forward(&mut self, batch: &Batch<'_>, out: &mut Logits) -> Result<(), BackendError> {
        self.slots.check(batch)?;
        let vocab_size = self.oracle.config.vocab_size;
        let mut rows = out.reset(batch.n_rows(), vocab_size).chunks_exact_mut(vocab_size);
        for run in batch.runs {
            let start = self.start(run.slot);
            self.tokens[start + run.start_pos..][..run.tokens.len()].copy_from_slice(run.tokens);
            let first_row = match run.want {
                Want::None => continue,
                Want::Last => run.end_pos() - 1,
                Want::All => run.start_pos,
            };
            let sequence = &self.tokens[start..][..run.end_pos()];
            let logits = self.oracle.logits(sequence, first_row);
            // `rows` second: a zip that ends has taken one more from its first.
            for (logits, row) in logits.iter().zip(rows.by_ref()) {
                row.copy_from_slice(logits);
            }
        }
        self.slots.advance(batch);
        Ok(())
    }

    fn truncate(&mut self, slot: Slot, len: usize) -> Result<(), BackendError> {
        self.slots.truncate(slot, len)
    }

    fn fork(&mut self, from: Slot, to: Slot, len: usize) -> Result<(), BackendError> {
        self.slots.fork(from, to, len)?;
        let (from, to) = (self.start(from), self.start(to));
        self.tokens.copy_within(from..from + len, to);
        Ok(())
    }
}
