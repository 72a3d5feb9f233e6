//! Every product that the libtorch backend could choose, beside the one that it does: `[n, 4096]` times a 7B's `[11008, 4096]`.

use std::time::Duration;

use llama_backend::testing::RandomWeights;
use llama_backend::{DType, ModelConfig, WeightSource};
use llama_backend_tch::for_benches::Product;
use tch::{Device, Kind, Tensor};

use crate::Error;
use crate::marks::{median, time};

const NONE: Option<&Tensor> = None;
const N_IN: usize = 4096;
const N_OUT: usize = 11008;

/// A call's rounds, by the name `<dtype> <rows> <call>`.
pub type Call = (String, Vec<Duration>);

/// Measures every call in turns, `rounds` times after one that is not counted.
///
/// # Errors
///
/// What libtorch says.
pub fn measure(n_threads: usize, rounds: usize) -> Result<Vec<Call>, Error> {
    tch::set_num_threads(i32::try_from(n_threads)?);
    let _no_grad = tch::no_grad_guard();
    let mut calls = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let product = |half_products| {
            let weights = RandomWeights::new(shape(), dtype, 1);
            let bytes = weights.bytes("layers.0.feed_forward.w1.weight")?;
            Ok::<_, Error>(Product::new([N_OUT, N_IN], dtype, bytes, half_products)?)
        };
        let (whole, half) = (product(false)?, product(true)?);
        let w = whole.weight().ok_or("blocks")?;
        let kind = w.f_kind()?;
        let scratch = Tensor::f_empty([N_OUT as i64, N_IN as i64], (Kind::Float, Device::Cpu))?;
        for n in [1, 8, 16, 512] {
            let x = Tensor::f_randn([n, N_IN as i64], (Kind::Float, Device::Cpu))?;
            let out = Tensor::f_empty([n, N_OUT as i64], (Kind::Float, Device::Cpu))?;
            let oned = |w: &Tensor| x.f_to_mkldnn(None)?.f_mkldnn_linear(w, NONE)?.f_to_dense(None, false);
            let linear = || x.f_to_kind(kind)?.f_linear(w, NONE)?.f_to_kind(Kind::Float);
            let widened = || {
                scratch.shallow_clone().f_copy_(w)?;
                x.f_matmul_out(&out, &scratch.f_tr()?)
            };
            let mut run = |name: &str, call: &dyn Fn() -> Result<Tensor, Error>| {
                let mut times = Vec::new();
                for round in 0..=rounds {
                    let taken = time(|| call().map(drop))?;
                    if round > 0 {
                        times.push(taken);
                    }
                }
                calls.push((format!("{dtype} {n} {name}"), times));
                Ok::<_, Error>(())
            };
            run("ours", &|| Ok(whole.run(&x)?))?;
            if dtype == DType::F32 {
                run("mkldnn_linear", &|| Ok(oned(w)?))?;
            } else {
                run("ours with half products", &|| Ok(half.run(&x)?))?;
                run("widened as a whole and matmul_out", &|| Ok(widened()?))?;
            }
            // Where it is emulated, one of these takes minutes.
            if n <= 16 || dtype == DType::F32 {
                run("linear", &|| Ok(linear()?))?;
            }
        }
    }
    Ok(calls)
}

/// Our choices' times over that of the fastest call, by medians: what was compared, the ratio, and the fastest.
///
/// What rounds activations is compared with what does not, and both with all.
#[must_use]
pub fn ratios(calls: &[Call]) -> Vec<(String, f64, String)> {
    // "bf16 16" and "linear" of "bf16 16 linear".
    let split = |name: &str| {
        let at = name.match_indices(' ').nth(1).map_or(name.len(), |(at, _)| at);
        (name[..at].to_owned(), name[at..].trim_start().to_owned())
    };
    let rounds = |name: &str| {
        !name.starts_with("f32") && (name.ends_with(" linear") || name.ends_with("half products"))
    };
    let ours = calls.iter().filter(|(name, _)| split(name).1.starts_with("ours"));
    let ratio = |(name, times): &Call| {
        let case = split(name).0;
        let rivals =
            calls.iter().filter(|(rival, _)| split(rival).0 == case && (rounds(name) || !rounds(rival)));
        let fastest = rivals.min_by(|(_, a), (_, b)| median(a).total_cmp(&median(b)))?;
        Some((name.clone(), median(times) / median(&fastest.1), split(&fastest.0).1))
    };
    ours.filter_map(ratio).collect()
}

/// A model that has the matrix.
fn shape() -> ModelConfig {
    ModelConfig {
        dim: N_IN,
        n_layers: 1,
        n_heads: 32,
        n_kv_heads: 32,
        head_dim: 128,
        ffn_dim: N_OUT,
        vocab_size: 1,
        norm_eps: 1e-5,
        rope_theta: 10000.0,
    }
}
