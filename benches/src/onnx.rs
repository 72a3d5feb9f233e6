//! What is measured of the ONNX Runtime backend: prefill, decode and a batch of decodes at TinyLlama's shape, and beside each
//! the engine's own products of the same shapes, without anything else of the model; beside a prefill its attention too.
//!
//! The engine's own calls are what it reaches by itself: whatever a model takes beyond them is what we add to it. Attention is one of
//! them, as in the libtorch bench; beside decodes it is left out, which is to our disadvantage, since without the model's cache bound in
//! place the engine would copy all keys and values at each step.
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

/// What is measured by one run of the program: each is a minute or two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A prompt of 512.
    Prefill,
    /// 64 tokens after it.
    Decode,
    /// The same in 8 sequences.
    Batch,
    /// A prompt and the tokens after it with quantised weights, computed fast.
    Blocks,
}

impl Part {
    /// All of them, and their names on the command line.
    pub const ALL: [(&str, Self); 4] = [
        ("prefill", Self::Prefill),
        ("decode", Self::Decode),
        ("batch", Self::Batch),
        ("blocks", Self::Blocks),
    ];
}

/// The rounds of each measure of a part, in turns; the name of each is its column in the record. A first round is not counted: it
/// brings the weights in.
///
/// # Errors
///
/// What the backend or the engine says.
pub fn measure(
    part: Part,
    n_threads: usize,
    rounds: usize,
) -> Result<Vec<(&'static str, Vec<Duration>)>, Error> {
    let environment = ort::init_from(library())?.with_telemetry(false).build()?;
    if part == Part::Blocks {
        return blocks(&environment, n_threads, rounds);
    }
    let mut model = Measured::new(&environment, DType::F32, n_threads)?;
    let mut calls = Calls::new(&environment, n_threads)?;
    let names: &[&'static str] = match part {
        Part::Prefill => &["prefill_512", "prefill_512_products", "prefill_512_attention"],
        Part::Decode => &["decode_64", "decode_64_products"],
        Part::Batch => &["decode_64_batch_8", "decode_64_batch_8_products"],
        Part::Blocks => &[],
    };
    let mut times: Vec<(&'static str, Vec<Duration>)> =
        names.iter().map(|&name| (name, Vec::new())).collect();
    model.prefill()?;
    for round in 0..=rounds {
        let new = NEW as u32;
        let found = match part {
            Part::Prefill => vec![model.prefill()?, calls.products(PROMPT, 1)?, calls.attention(PROMPT)?],
            Part::Decode => vec![model.decode(1)?, calls.products(1, 1)? * new],
            Part::Batch => vec![model.decode(BATCH)?, calls.products(BATCH, BATCH)? * new],
            Part::Blocks => Vec::new(),
        };
        if round > 0 {
            times.iter_mut().zip(found).for_each(|((_, times), time)| times.push(time));
        }
    }
    Ok(times)
}

/// Prefill and decode with quantised weights, type after type.
fn blocks(
    environment: &Environment,
    n_threads: usize,
    rounds: usize,
) -> Result<Vec<(&'static str, Vec<Duration>)>, Error> {
    let mut times = Vec::new();
    for (dtype, prefill, decode) in [
        (DType::Q4_0, "prefill_512_q4_0", "decode_64_q4_0"),
        (DType::Q8_0, "prefill_512_q8_0", "decode_64_q8_0"),
        (DType::Q5_K, "prefill_512_q5_k", "decode_64_q5_k"),
    ] {
        let mut model = Measured::new(environment, dtype, n_threads)?;
        model.prefill()?;
        model.decode(1)?;
        let (mut prefills, mut decodes) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            prefills.push(model.prefill()?);
            decodes.push(model.decode(1)?);
        }
        times.extend([(prefill, prefills), (decode, decodes)]);
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
    fn new(environment: &Environment, dtype: DType, n_threads: usize) -> Result<Self, Error> {
        let weights = Arc::new(RandomWeights::new(config(), dtype, 1).materialised());
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

/// One layer's products and attention and the output's product, as the engine computes them by itself: 22 times the ones and once
/// the other is what a step has to compute. A layer's matrices are 176 MB, which no cache holds.
struct Calls {
    layer: Session,
    attention: Session,
    output: Session,
}

impl Calls {
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
        let options = options(environment, n_threads)?;
        Ok(Self {
            layer: products(&options, dim, &layer)?,
            attention: attention(&options)?,
            output: products(&options, dim, &[("x", "y", vocab_size, dim)])?,
        })
    }

    /// The time of all products for so many tokens, and the output for so many rows.
    fn products(&mut self, n_tokens: usize, n_rows: usize) -> Result<Duration, Error> {
        let mut time = Duration::ZERO;
        for (session, n, times) in
            [(&mut self.layer, n_tokens, config().n_layers), (&mut self.output, n_rows, 1)]
        {
            let x = numbers(&[n, config().dim])?;
            let started = Instant::now();
            for _ in 0..times {
                black_box(session.run(ort::inputs!["x" => &x])?);
            }
            time += started.elapsed();
        }
        Ok(time)
    }

    /// The time of attention in all layers for a prompt at the start of its slot.
    fn attention(&mut self, n_tokens: usize) -> Result<Duration, Error> {
        let q = numbers(&[1, n_tokens, config().q_dim()])?;
        let k = numbers(&[1, n_tokens, config().kv_dim()])?;
        let last = integer(&[1], n_tokens as i32 - 1)?;
        let longest = integer(&[], n_tokens as i32)?;
        let started = Instant::now();
        for _ in 0..config().n_layers {
            let inputs =
                ort::inputs!["q" => &q, "k" => &k, "v" => &k, "last" => &last, "longest" => &longest];
            black_box(self.attention.run(inputs)?);
        }
        Ok(started.elapsed())
    }
}

fn numbers(shape: &[usize]) -> Result<Tensor<f32>, Error> {
    let shape = Shape::new(shape.iter().map(|&dim| dim as i64));
    let mut x = Tensor::<f32>::new(&Allocator::default(), shape)?;
    x.extract_tensor_mut().1.fill(0.5);
    Ok(x)
}

fn integer(shape: &[i64], value: i32) -> Result<Tensor<i32>, Error> {
    let mut x = Tensor::<i32>::new(&Allocator::default(), Shape::new(shape.iter().copied()))?;
    x.extract_tensor_mut().1.fill(value);
    Ok(x)
}

/// The options with which the backend computes, too.
fn options(environment: &Environment, n_threads: usize) -> Result<SessionBuilder, Error> {
    let failed = |error: ort::Error<SessionBuilder>| error.to_string();
    Ok(Session::builder(environment)?
        .with_intra_threads(n_threads)
        .map_err(failed)?
        .with_intra_op_spinning(false)
        .map_err(failed)?
        .with_optimization_level(GraphOptimizationLevel::Disable)
        .map_err(failed)?
        .with_prepacking(false)
        .map_err(failed)?)
}

/// A session of products: from, to, `n_out`, `n_in`. What nothing is made of is an output.
fn products(
    options: &SessionBuilder,
    dim: usize,
    products: &[(&str, &str, usize, usize)],
) -> Result<Session, Error> {
    let rows = |name: &str, n: usize| outlet(name, TensorElementType::Float32, &[-1, n as i64]);
    let mut graph = Graph::new()?;
    graph.set_inputs([rows("x", dim)])?;
    let used = |name: &str| products.iter().any(|(from, ..)| *from == name);
    graph.set_outputs(
        products.iter().filter(|(_, to, ..)| !used(to)).map(|&(_, to, n_out, _)| rows(to, n_out)),
    )?;
    for &(from, to, n_out, n_in) in products {
        let weight = format!("{to}.weight");
        let mut tensor = numbers(&[n_out, n_in])?;
        let numbers = tensor.extract_tensor_mut().1;
        numbers.iter_mut().enumerate().for_each(|(i, w)| *w = (i % 251) as f32 / 1e5 - 0.001);
        graph.add_initializer(&weight, tensor, true)?;
        let attributes = [Attribute::new("transB", 1_i64)?];
        graph.add_node(Node::new("Gemm", "", to, [from, &weight], [to], attributes)?)?;
    }
    finished(graph, options)
}

/// A session of one layer's attention, with RoPE, and without a past.
fn attention(options: &SessionBuilder) -> Result<Session, Error> {
    let ModelConfig { n_heads, n_kv_heads, head_dim, .. } = config();
    let (float, int) = (TensorElementType::Float32, TensorElementType::Int32);
    let [q_dim, kv_dim, heads, head] =
        [config().q_dim(), config().kv_dim(), n_kv_heads, head_dim].map(|n| n as i64);
    let mut graph = Graph::new()?;
    graph.set_inputs([
        outlet("q", float, &[1, -1, q_dim]),
        outlet("k", float, &[1, -1, kv_dim]),
        outlet("v", float, &[1, -1, kv_dim]),
        outlet("last", int, &[1]),
        outlet("longest", int, &[]),
    ])?;
    graph.set_outputs([
        outlet("y", float, &[1, -1, q_dim]),
        outlet("keys", float, &[1, heads, -1, head]),
        outlet("values", float, &[1, heads, -1, head]),
    ])?;
    for (name, at) in [("cos", 1.0), ("sin", 0.0)] {
        let mut table = numbers(&[PROMPT, head_dim / 2])?;
        table.extract_tensor_mut().1.fill(at);
        graph.add_initializer(name, table, true)?;
    }
    let attributes = [
        Attribute::new("num_heads", n_heads as i64)?,
        Attribute::new("kv_num_heads", n_kv_heads as i64)?,
        Attribute::new("do_rotary", 1_i64)?,
        Attribute::new("rotary_interleaved", 1_i64)?,
    ];
    let inputs = ["q", "k", "v", "", "", "last", "longest", "cos", "sin"];
    let outputs = ["y", "keys", "values"];
    graph.add_node(Node::new("GroupQueryAttention", MICROSOFT, "y", inputs, outputs, attributes)?)?;
    finished(graph, options)
}

/// The domain of ONNX Runtime's own operators.
const MICROSOFT: &str = "com.microsoft";

/// An input or output; -1 is a dimension that varies.
fn outlet(name: &str, ty: TensorElementType, shape: &[i64]) -> Outlet {
    let dimension_symbols = SymbolicDimensions::empty(shape.len());
    let shape = Shape::new(shape.iter().copied());
    Outlet::new(name, ValueType::Tensor { ty, shape, dimension_symbols })
}

fn finished(graph: Graph, options: &SessionBuilder) -> Result<Session, Error> {
    let mut model = editor::Model::new([Opset::new("", 18)?, Opset::new(MICROSOFT, 1)?])?;
    model.set_graph(graph)?;
    Ok(model.into_session(options)?)
}
