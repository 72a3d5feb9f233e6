//! What is measured of the ONNX Runtime backend: prefill, decode and a batch of decodes at TinyLlama's shape, and beside each
//! the engine's own products of the same shapes, without anything else of the model.
//!
//! The model: dim 2048, 22 layers, 32 heads with 4 KV heads, ffn_dim 5632, vocabulary 32000, random, in f32: 4.4 GB.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use llama_backend::testing::RandomWeights;
use llama_backend::{
    Backend, Batch, DType, LoadParams, Logits, Model, ModelConfig, ModelSource, Run, Slot, TokenId, Want,
};
use llama_backend_onnx::OnnxBackend;
use ort::editor::{self, Graph, Node, Opset};
use ort::environment::Environment;
use ort::memory::Allocator;
use ort::operator::Attribute;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::{Outlet, Shape, SymbolicDimensions, Tensor, TensorElementType, ValueType};

use crate::Error;

/// Tokens of a prompt.
pub const PROMPT: usize = 512;
/// Tokens that are decoded after it.
pub const NEW: usize = 64;
/// Sequences of a batch.
pub const BATCH: usize = 8;

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
        vocab_size: 32_000,
        norm_eps: 1e-5,
        rope_theta: 10_000.0,
    }
}

/// The rounds of each measure, in turns; the name of each is its column in the record.
///
/// # Errors
///
/// What the backend or the engine says.
pub fn measure(n_threads: usize, rounds: usize) -> Result<Vec<(&'static str, Vec<Duration>)>, Error> {
    let environment = ort::init_from(library())?.with_telemetry(false).build()?;
    let mut model = Measured::new(&environment, n_threads)?;
    let mut products = Products::new(&environment, n_threads)?;
    let mut times: Vec<(&'static str, Vec<Duration>)> = [
        "prefill_512",
        "prefill_512_products",
        "decode_64",
        "decode_64_products",
        "decode_64_batch_8",
        "decode_64_batch_8_products",
    ]
    .map(|name| (name, Vec::new()))
    .into();
    for _ in 0..rounds {
        let round = [
            model.prefill()?,
            products.run(PROMPT, 1)?,
            model.decode(1)?,
            products.run(1, 1)? * NEW as u32,
            model.decode(BATCH)?,
            products.run(BATCH, BATCH)? * NEW as u32,
        ];
        times.iter_mut().zip(round).for_each(|((_, times), time)| times.push(time));
    }
    Ok(times)
}

/// The library that the backend would take.
fn library() -> std::path::PathBuf {
    std::env::var_os("ORT_DYLIB_PATH").unwrap_or_else(|| "libonnxruntime.so".into()).into()
}

/// The whole model.
struct Measured {
    model: Box<dyn Model>,
    tokens: Vec<TokenId>,
    logits: Logits,
}

impl Measured {
    fn new(environment: &Environment, n_threads: usize) -> Result<Self, Error> {
        let weights = Arc::new(RandomWeights::new(config(), DType::F32, 1).materialised());
        let mut params = LoadParams::new(PROMPT + NEW, BATCH);
        params.threads = Some(n_threads);
        let backend = OnnxBackend::with_environment(environment.clone());
        Ok(Self {
            model: backend.load(ModelSource::Weights(weights), &params)?,
            tokens: (0..PROMPT as u32).map(|i| TokenId(i * 7 % 32_000)).collect(),
            logits: Logits::new(),
        })
    }

    /// Feeds the prompt to an empty slot, and then to the others by a copy.
    fn prefill(&mut self) -> Result<Duration, Error> {
        self.model.truncate(Slot(0), 0)?;
        let run = Run { slot: Slot(0), start_pos: 0, tokens: &self.tokens, want: Want::Last };
        let started = Instant::now();
        self.model.forward(&Batch::new(&[run]), &mut self.logits)?;
        let time = started.elapsed();
        for slot in 1..BATCH {
            self.model.fork(Slot(0), Slot(slot), PROMPT)?;
        }
        Ok(time)
    }

    /// Decodes in so many slots after the prompt.
    fn decode(&mut self, n: usize) -> Result<Duration, Error> {
        let started = Instant::now();
        for i in 0..NEW {
            let run = |slot| Run {
                slot: Slot(slot),
                start_pos: PROMPT + i,
                tokens: &self.tokens[i..=i],
                want: Want::Last,
            };
            let runs: Vec<Run<'_>> = (0..n).map(run).collect();
            self.model.forward(&Batch::new(&runs), &mut self.logits)?;
        }
        let time = started.elapsed();
        for slot in 0..n {
            self.model.truncate(Slot(slot), PROMPT)?;
        }
        Ok(time)
    }
}

/// One layer's products and the output's, as the engine computes them by itself: 22 times the one and once the other is what
/// a step has to multiply. A layer's matrices are 176 MB, which no cache holds.
struct Products {
    layer: Session,
    output: Session,
}

impl Products {
    fn new(environment: &Environment, n_threads: usize) -> Result<Self, Error> {
        let ModelConfig { dim, ffn_dim, vocab_size, .. } = config();
        let (q_dim, kv_dim) = (config().q_dim(), config().kv_dim());
        let layer = [
            ("x", "q", q_dim, dim),
            ("x", "k", kv_dim, dim),
            ("x", "v", kv_dim, dim),
            ("q", "o", dim, q_dim),
            ("o", "gate", ffn_dim, dim),
            ("o", "up", ffn_dim, dim),
            ("gate", "y", dim, ffn_dim),
        ];
        Ok(Self {
            layer: session(environment, n_threads, dim, &layer)?,
            output: session(environment, n_threads, dim, &[("x", "y", vocab_size, dim)])?,
        })
    }

    /// The time of all products for so many tokens, and the output for so many rows.
    fn run(&mut self, n_tokens: usize, n_rows: usize) -> Result<Duration, Error> {
        let mut time = Duration::ZERO;
        for (session, n, times) in
            [(&mut self.layer, n_tokens, config().n_layers), (&mut self.output, n_rows, 1)]
        {
            let shape = Shape::new([n as i64, config().dim as i64]);
            let mut x = Tensor::<f32>::new(&Allocator::default(), shape)?;
            x.extract_tensor_mut().1.fill(0.5);
            let started = Instant::now();
            for _ in 0..times {
                black_box(session.run(ort::inputs!["x" => &x])?);
            }
            time += started.elapsed();
        }
        Ok(time)
    }
}

/// A session of products: from, to, `n_out`, `n_in`. What nothing is made of is an output.
fn session(
    environment: &Environment,
    n_threads: usize,
    dim: usize,
    products: &[(&str, &str, usize, usize)],
) -> Result<Session, Error> {
    let rows = |name: &str, n: usize| {
        let (ty, shape) = (TensorElementType::Float32, Shape::new([-1, n as i64]));
        Outlet::new(name, ValueType::Tensor { ty, shape, dimension_symbols: SymbolicDimensions::empty(2) })
    };
    let mut graph = Graph::new()?;
    graph.set_inputs([rows("x", dim)])?;
    let used = |name: &str| products.iter().any(|(from, ..)| *from == name);
    graph.set_outputs(
        products.iter().filter(|(_, to, ..)| !used(to)).map(|&(_, to, n_out, _)| rows(to, n_out)),
    )?;
    for &(from, to, n_out, n_in) in products {
        let weight = format!("{to}.weight");
        let mut tensor = Tensor::<f32>::new(&Allocator::default(), Shape::new([n_out as i64, n_in as i64]))?;
        let numbers = tensor.extract_tensor_mut().1;
        numbers.iter_mut().enumerate().for_each(|(i, w)| *w = (i % 251) as f32 / 1e5 - 0.001);
        graph.add_initializer(&weight, tensor, true)?;
        let attributes = [Attribute::new("transB", 1_i64)?];
        graph.add_node(Node::new("Gemm", "", to, [from, &weight], [to], attributes)?)?;
    }
    let mut model = editor::Model::new([Opset::new("", 18)?])?;
    model.set_graph(graph)?;
    let failed = |error: ort::Error<SessionBuilder>| error.to_string();
    let options = Session::builder(environment)?
        .with_intra_threads(n_threads)
        .map_err(failed)?
        .with_intra_op_spinning(false)
        .map_err(failed)?
        .with_optimization_level(GraphOptimizationLevel::Disable)
        .map_err(failed)?
        .with_prepacking(false)
        .map_err(failed)?;
    Ok(model.into_session(&options)?)
}
