//! From a checkpoint's tensors to a model, and what that will cost.
//!
//! Everything is checked before anything large is allocated. A matrix on the CPU is not read at all: it stays in the reader's
//! memory map, in the type that it has there, and the first step that uses it brings it in.

use llama_backend::{
    BackendError, DType, LoadParams, MemoryPlan, ModelConfig, Slots, WeightError, WeightSource,
    check_weights, read_tensor,
};
use tch::Tensor;

use crate::attention::Attention;
use crate::kv_cache::KvCache;
use crate::linear::{Linear, Ops, TILE};
use crate::model::{Layer, TchModel, Transformer, use_threads};
use crate::{DTYPES, NAME, TchBackend, engine, message};

/// The bytes of a model of this shape.
pub(crate) fn plan(
    backend: &TchBackend,
    config: &ModelConfig,
    dtype: DType,
    params: &LoadParams,
) -> MemoryPlan {
    // A device is given blocks in f32.
    let on_cpu = backend.device == tch::Device::Cpu;
    let dtype = if on_cpu || !dtype.is_quantized() { dtype } else { DType::F32 };
    let product = |sizes: &[usize]| sizes.iter().fold(1, |n: u128, &size| n.saturating_mul(size as u128));
    let sum = |sizes: &[u128]| sizes.iter().copied().fold(0, u128::saturating_add);
    let ModelConfig { dim, n_heads, n_kv_heads, head_dim, ffn_dim, vocab_size, .. } = *config;
    let (q_dim, kv_dim) = (product(&[n_heads, head_dim]), product(&[n_kv_heads, head_dim]));

    // The widest points of a block, beside h and x: q, k and v, before and after RoPE, and attention's output in two orders; or gate,
    // up and the copies in which oneDNN takes and gives its operands.
    let in_attention = sum(&[q_dim.saturating_mul(4), kv_dim.saturating_mul(3)]);
    let in_ffn = product(&[4, ffn_dim]);
    let width = sum(&[product(&[3, dim]), in_attention.max(in_ffn)]);
    let activations = width.saturating_mul(params.max_batch_tokens as u128);
    let rope = product(&[params.max_seq_len, head_dim]);
    // A chunk of a prompt that is not its first has a mask.
    let mask = product(&[params.max_batch_tokens, params.max_seq_len]);
    let logits = product(&[2, params.max_batch_tokens.min(128), vocab_size]);
    let tile = if dtype == DType::F32 { 0 } else { TILE.max(dim).max(ffn_dim) as u128 };
    let plan = MemoryPlan::as_stored(config, dtype, params, sum(&[activations, rope, mask, logits, tile]));
    // A device has a copy of its own.
    MemoryPlan { in_place: if on_cpu { plan.in_place } else { 0 }, ..plan }
}

/// Loads a model to where it will run.
pub(crate) fn load(
    backend: &TchBackend,
    source: &dyn WeightSource,
    params: &LoadParams,
) -> Result<TchModel, BackendError> {
    let config = source.config().clone();
    config.validate()?;
    params.validate()?;
    params.require_one_rank(NAME)?;
    params.require_f32_cache(NAME)?;
    plan(backend, &config, DType::F32, params).check()?;
    check_weights(source, DTYPES)?;

    let n_threads = i32::try_from(params.n_threads()).unwrap_or(i32::MAX); // `validate` saw that it is far below
    use_threads(n_threads);
    let _no_grad = tch::no_grad_guard();
    let device = backend.device;
    // The cache is the largest allocation: it comes first, so that a size that cannot be had costs nothing.
    let cache = KvCache::new(&config, params.n_slots, params.max_seq_len, device).map_err(|error| {
        let expected = format!("as many as fit in memory ({})", message(&error));
        BackendError::params("n_slots * max_seq_len", params.n_slots * params.max_seq_len, expected)
    })?;
    let attention = Attention::new(&config, params.max_seq_len, device).map_err(engine)?;
    let widest = config.dim.max(config.q_dim()).max(config.ffn_dim);
    let ops = Ops::new(device, backend.half_products, widest).map_err(engine)?;
    let transformer = transformer(source, &config, attention, ops)?;
    let slots = Slots::new(&config, params);
    Ok(TchModel { slots, params: params.clone(), n_threads, config, transformer, cache })
}

/// Takes the tensors of a checkpoint by name.
fn transformer(
    source: &dyn WeightSource,
    config: &ModelConfig,
    attention: Attention,
    ops: Ops,
) -> Result<Transformer, BackendError> {
    let ModelConfig { dim, ffn_dim, vocab_size, .. } = *config;
    let (q_dim, kv_dim) = (config.q_dim(), config.kv_dim());
    let matrix = |name: &str, n_out, n_in| -> Result<Linear, BackendError> {
        let (dtype, bytes) = read_tensor(source, name)?;
        ops.matrix(n_out, n_in, dtype, bytes).map_err(|error| unreadable(name, &error))
    };
    let norm = |name: &str| -> Result<Tensor, BackendError> {
        let (dtype, bytes) = read_tensor(source, name)?;
        ops.vector(dtype, &bytes).map_err(|error| unreadable(name, &error))
    };
    let layer = |i: usize| {
        let name = |part: &str| format!("layers.{i}.{part}.weight");
        Ok(Layer {
            attention_norm: norm(&name("attention_norm"))?,
            wq: matrix(&name("attention.wq"), q_dim, dim)?,
            wk: matrix(&name("attention.wk"), kv_dim, dim)?,
            wv: matrix(&name("attention.wv"), kv_dim, dim)?,
            wo: matrix(&name("attention.wo"), dim, q_dim)?,
            ffn_norm: norm(&name("ffn_norm"))?,
            w1: matrix(&name("feed_forward.w1"), ffn_dim, dim)?,
            w2: matrix(&name("feed_forward.w2"), dim, ffn_dim)?,
            w3: matrix(&name("feed_forward.w3"), ffn_dim, dim)?,
        })
    };
    Ok(Transformer {
        tok_embeddings: matrix("tok_embeddings.weight", vocab_size, dim)?,
        layers: (0..config.n_layers).map(layer).collect::<Result<_, BackendError>>()?,
        norm: norm("norm.weight")?,
        output: matrix("output.weight", vocab_size, dim)?,
        norm_eps: f64::from(config.norm_eps),
        attention,
        ops,
    })
}

fn unreadable(name: &str, error: &tch::TchError) -> BackendError {
    BackendError::Weights(WeightError::unreadable(name, message(error)))
}
