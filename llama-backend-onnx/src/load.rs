//! From a checkpoint's tensors to a session of the engine, and what that will cost.
//!
//! Everything is checked before anything large is allocated. A matrix in f32 is lent to the engine where it lies, and the first
//! step that uses it brings it in. The engine keeps no copy of its own: it does so only for packing, which is off; for f32
//! that makes prefill slower by less than a fifth, and decode no slower.
//!
//! A quantised matrix is repacked into tensors of the engine's own, or widened into one, as [`Computation`] says. The engine packs the blocks
//! once more, into its processor's order, and lets go of those tensors when it has packed all: one copy is kept, and there are two while the
//! model is loaded. What is f32 in such a model is packed with it.

use std::ffi::CString;

use half::f16;
use half::slice::HalfFloatSliceExt;
use llama_backend::quant::dequantize;
use llama_backend::{
    BackendError, Computation, DType, LoadParams, MemoryPlan, ModelConfig, WeightBytes, WeightError,
    WeightSource, check_weights, read_tensor,
};
use ort::editor::{self, Graph, Opset};
use ort::environment::Environment;
use ort::memory::Allocator;
use ort::operator::Attribute as OrtAttribute;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::{
    Outlet, PrimitiveTensorElementType, Shape as OrtShape, SymbolicDimensions, Tensor, TensorElementType,
    ValueType,
};

use crate::blocks::{Layout, Repacked, repack};
use crate::embedding::Embedding;
use crate::graph::{self, Attribute, Interface, Node, OPSETS, Target, head_width, planes};
use crate::kv_cache::{KvCache, Shape};
use crate::model::OnnxModel;
use crate::sys::{self, Bound};
use crate::{DTYPES, NAME, engine};

/// Smaller tensors become a part of the graph: it takes no small ones beside it.
const LEAST_EXTERNAL: usize = 128;

/// The bytes of a model of this shape. Computed in 128 bits and cut at `u64::MAX`; any numbers may come, also absurd ones.
pub(crate) fn plan(config: &ModelConfig, dtype: DType, params: &LoadParams) -> MemoryPlan {
    let product = |sizes: &[usize]| {
        let sizes = sizes.iter().map(|&size| size as u128);
        sizes.fold(1, u128::saturating_mul)
    };
    let sum = |sizes: &[u128]| sizes.iter().copied().fold(0, u128::saturating_add);
    let cut = |bytes: u128| u64::try_from(bytes).unwrap_or(u64::MAX);
    let bytes = |numbers: u128| cut(numbers.saturating_mul(4));
    let ModelConfig { dim, n_layers, n_heads, n_kv_heads, head_dim, ffn_dim, vocab_size, .. } = *config;

    // The embeddings stay as they are stored: their rows are widened as they are looked up.
    let embeddings = product(&[vocab_size, dim]);
    let others = u128::from(config.n_params()).saturating_sub(embeddings);
    let stored = embeddings.saturating_mul(dtype.size() as u128) / dtype.block_len() as u128;
    // f32 is used where it lies, and so are the embeddings of any type.
    let (other_bytes, others_in_place) = match layout(dtype, params) {
        Some(layout) => (layout.n_bytes(others), 0),
        None if dtype == DType::F32 => (others.saturating_mul(4), others.saturating_mul(4)),
        None => (others.saturating_mul(4), 0),
    };
    let weights = sum(&[stored, other_bytes]);

    let width = head_dim.saturating_add(15) / 16 * 16;
    let positions = product(&[2, n_layers, params.n_slots, params.max_seq_len]);
    let (q_dim, kv_dim) = (product(&[n_heads, width]), product(&[n_kv_heads, width]));

    // The widest points of a block, beside h, its successor and x: q, k and v, each once more with RoPE, and what attention
    // gives; or gate, up and their product.
    let in_attention = sum(&[q_dim.saturating_mul(3), kv_dim.saturating_mul(4)]);
    let in_ffn = product(&[3, ffn_dim]);
    let row = sum(&[product(&[3, dim]), in_attention.max(in_ffn)]);
    let activations = row.saturating_mul(params.max_batch_tokens as u128);
    let rope = product(&[params.max_seq_len, width]);
    // The attention kernel holds the scores of all heads.
    let scores = product(&[n_heads, params.max_batch_tokens, params.max_seq_len]);
    let logits = product(&[params.n_slots, vocab_size]);
    MemoryPlan {
        weights: cut(weights),
        in_place: cut(sum(&[stored, others_in_place])),
        kv_cache: bytes(positions.saturating_mul(kv_dim)),
        scratch: bytes(sum(&[activations, rope, scores, logits])),
    }
}

/// Loads a model.
pub(crate) fn load(
    environment: &Environment,
    source: &dyn WeightSource,
    params: &LoadParams,
) -> Result<OnnxModel, BackendError> {
    let config = source.config().clone();
    config.validate()?;
    params.validate()?;
    params.require_one_rank(NAME)?;
    params.require_f32_cache(NAME)?;
    plan(&config, DType::F32, params).check()?;
    check_weights(source, DTYPES)?;
    // The cache is the largest allocation: it comes first, so that a size that cannot be had costs nothing.
    let cache = KvCache::new(Shape {
        n_layers: config.n_layers,
        n_slots: params.n_slots,
        n_kv_heads: config.n_kv_heads,
        max_seq_len: params.max_seq_len,
        width: head_width(config.head_dim),
    })?;
    let graph = Graph::new().map_err(engine)?;
    let embedding = Embedding::new(source, &config)?;
    let mut assembly = Assembly { graph, source, params, kept: Vec::new(), packs: false };
    graph::build(&mut assembly, &config, params.max_seq_len, Interface::Ours)?;
    let session = assembly.session(environment, &config, params).map_err(engine)?;
    let bound = Bound::new(session).map_err(engine)?;
    OnnxModel::new(bound, assembly.kept, embedding, cache, config, params.clone())
}

/// How the engine multiplies with matrices of a type; `None` for f32.
fn layout(dtype: DType, params: &LoadParams) -> Option<Layout> {
    Layout::of(dtype).filter(|_| params.computation == Computation::Fast)
}

/// The options of every session.
pub(crate) fn options(environment: &Environment, params: &LoadParams) -> ort::Result<SessionBuilder> {
    // `?` would keep the builder that failed beside the error.
    let recover = |error: ort::Error<SessionBuilder>| ort::Error::new(error.to_string());
    Session::builder(environment)?
        .with_intra_threads(params.n_threads())
        .map_err(recover)?
        .with_inter_threads(1)
        .map_err(recover)?
        // Threads that wait by running in circles take the processor from whoever else wants it.
        .with_intra_op_spinning(false)
        .map_err(recover)?
        // Its patterns are kept for each shape that ever came: prompts have many.
        .with_memory_pattern(false)
        .map_err(recover)
}

/// A tensor's elements, widened without loss, as many as there are.
pub(crate) fn widen(name: &str, dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<(), WeightError> {
    match bytemuck::try_cast_slice::<u8, f16>(bytes) {
        // By the processor's own instruction.
        Ok(halves) if dtype == DType::F16 && halves.len() == out.len() => halves.convert_to_f32_slice(out),
        _ => dequantize(dtype, bytes, out).map_err(|error| WeightError::unreadable(name, error))?,
    }
    Ok(())
}

/// A graph under construction, and the memory that it borrows.
struct Assembly<'a> {
    graph: Graph,
    source: &'a dyn WeightSource,
    params: &'a LoadParams,
    kept: Vec<WeightBytes>,
    /// Whether there are blocks, which the engine has to pack.
    packs: bool,
}

impl Assembly<'_> {
    /// Adds a checkpoint's f32 tensor without copying it: it is kept from now on.
    fn lend(&mut self, name: &str, shape: &[usize], bytes: WeightBytes) -> Result<(), BackendError> {
        let name = CString::new(name).map_err(engine)?;
        self.kept.push(bytes);
        let Some(bytes) = self.kept.last() else { return Ok(()) }; // pushed just now
        // SAFETY: `kept` is only ever added to, and dropped after the graph (the order of the fields here) and after the session
        // (the order of the fields of `OnnxModel`). Growing it moves handles, not the bytes: those are on the heap or in a map,
        // and a `WeightBytes` gives the same ones each time.
        #[allow(unsafe_code, reason = "the engine borrows the weights")]
        unsafe {
            sys::lend_initializer(&mut self.graph, &name, &dims(shape), TensorElementType::Float32, bytes)
        }
        .map_err(engine)
    }

    /// Adds a tensor of the engine's own, which it lets go of when it has packed it.
    fn own<T: PrimitiveTensorElementType + std::fmt::Debug>(
        &mut self,
        name: &str,
        tensor: Tensor<T>,
        n_bytes: usize,
    ) -> Result<(), BackendError> {
        self.graph.add_initializer(name, tensor, n_bytes >= LEAST_EXTERNAL).map_err(engine)
    }

    /// The finished graph as a session. What the session borrows stays in `kept`.
    fn session(
        &mut self,
        environment: &Environment,
        config: &ModelConfig,
        params: &LoadParams,
    ) -> ort::Result<Session> {
        let mut graph = std::mem::replace(&mut self.graph, Graph::new()?);
        let sizes = [config.n_kv_heads, params.max_seq_len, head_width(config.head_dim)];
        let [heads, positions, width] = sizes.map(|size| size as i64); // validated: at most 2^24
        let plane = |name| outlet(name, TensorElementType::Float32, &[-1, heads, positions, width]);
        let (past, present): (Vec<_>, Vec<_>) = planes(config.n_layers)
            .map(|(layer, kind)| Interface::Ours.cache_names(layer, kind).map(plane).into())
            .unzip();
        let int = TensorElementType::Int64;
        let small = TensorElementType::Int32;
        let inputs = [
            outlet("embedded", TensorElementType::Float32, &[-1, -1, config.dim as i64]),
            outlet("seqlens", small, &[-1]),
            outlet("longest", small, &[]),
            outlet("rows", int, &[-1]),
        ];
        graph.set_inputs(inputs.into_iter().chain(past))?;
        let logits = outlet("logits", TensorElementType::Float32, &[-1, config.vocab_size as i64]);
        graph.set_outputs(std::iter::once(logits).chain(present))?;
        let opsets: Vec<Opset> = OPSETS
            .iter()
            .map(|&(domain, version)| Opset::new(domain, version))
            .collect::<ort::Result<_>>()?;
        let mut model = editor::Model::new(opsets)?;
        model.set_graph(graph)?;
        let recover = |error: ort::Error<SessionBuilder>| ort::Error::new(error.to_string());
        let options = options(environment, params)?
            // The graph is written as the engine likes it: there is nothing to fuse, and folding would copy weights.
            .with_optimization_level(GraphOptimizationLevel::Disable)
            .map_err(recover)?
            .with_prepacking(self.packs)
            .map_err(recover)?
            // Packed weights are as large as they are, and not the next power of two.
            .with_device_allocated_initializers()
            .map_err(recover)?;
        model.into_session(&options)
    }
}

/// An input or output; -1 is a dimension that varies.
fn outlet(name: impl Into<String>, ty: TensorElementType, shape: &[i64]) -> Outlet {
    let dimension_symbols = SymbolicDimensions::empty(shape.len());
    Outlet::new(
        name,
        ValueType::Tensor { ty, shape: OrtShape::new(shape.iter().copied()), dimension_symbols },
    )
}

impl Target for Assembly<'_> {
    type Error = BackendError;

    fn node(&mut self, node: Node<'_>) -> Result<(), BackendError> {
        let attribute = |&(name, value): &(&str, Attribute)| match value {
            Attribute::Int(value) => OrtAttribute::new(name, value),
            Attribute::Float(value) => OrtAttribute::new(name, value),
        };
        let attributes =
            node.attributes.iter().map(attribute).collect::<ort::Result<Vec<_>>>().map_err(engine)?;
        // A node's name is its first output's.
        let name = node.outputs.first().copied().unwrap_or_default();
        let node = editor::Node::new(node.op, node.domain, name, node.inputs, node.outputs, attributes)
            .map_err(engine)?;
        self.graph.add_node(node).map_err(engine)
    }

    fn weight(&mut self, name: &str, shape: &[usize]) -> Result<(), BackendError> {
        let (dtype, bytes) = read_tensor(self.source, name)?;
        // Bytes that are not aligned are no numbers yet.
        let is_aligned = bytes.as_ptr().align_offset(size_of::<f32>()) == 0;
        if dtype == DType::F32 && is_aligned && bytes.len() >= LEAST_EXTERNAL {
            return self.lend(name, shape, bytes);
        }
        let mut floats = tensor::<f32>(shape)?;
        let out = floats.extract_tensor_mut().1;
        let n_bytes = size_of_val(out);
        widen(name, dtype, &bytes, out)?;
        drop(bytes); // before the next: so there is one copy, and one tensor
        self.own(name, floats, n_bytes)
    }

    fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Result<Option<Layout>, BackendError> {
        let dtype = self.source.info(name)?.dtype;
        let Some(layout) = layout(dtype, self.params) else {
            self.weight(name, &shape)?;
            return Ok(None);
        };
        let (dtype, bytes) = read_tensor(self.source, name)?;
        let [n_out, n_in] = shape; // whole blocks, as `read_tensor` saw
        let n_blocks = n_in / layout.len;
        let mut q = tensor::<u8>(&[n_out, n_blocks, layout.len * layout.bits / 8])?;
        let mut scales = tensor::<f32>(&[n_out, n_blocks])?;
        let mut minimums = tensor::<f32>(&[n_out, if layout.has_minimums { n_blocks } else { 0 }])?;
        let sizes = [q.extract_tensor_mut().1.len(), 4 * n_out * n_blocks];
        let out = Repacked {
            q: q.extract_tensor_mut().1,
            scales: scales.extract_tensor_mut().1,
            minimums: minimums.extract_tensor_mut().1,
        };
        repack(dtype, &bytes, out, self.params.n_threads());
        drop(bytes);
        self.packs = true;
        self.own(name, q, sizes[0])?;
        self.own(&format!("{name}.scales"), scales, sizes[1])?;
        if layout.has_minimums {
            self.own(&format!("{name}.minimums"), minimums, sizes[1])?;
        }
        Ok(Some(layout))
    }

    fn integers(&mut self, name: &str, values: &[i64]) -> Result<(), BackendError> {
        let mut integers = tensor::<i64>(&[values.len()])?;
        integers.extract_tensor_mut().1.copy_from_slice(values);
        self.own(name, integers, 0)
    }

    fn floats(&mut self, name: &str, shape: [usize; 2], values: Vec<f32>) -> Result<(), BackendError> {
        let mut floats = tensor::<f32>(&shape)?;
        floats.extract_tensor_mut().1.copy_from_slice(&values);
        self.own(name, floats, size_of_val(&values[..]))
    }
}

/// Memory of the engine's for a tensor.
fn tensor<T: PrimitiveTensorElementType + std::fmt::Debug>(
    shape: &[usize],
) -> Result<Tensor<T>, BackendError> {
    Tensor::new(&Allocator::default(), OrtShape::new(dims(shape))).map_err(engine)
}

/// A shape in the engine's numbers. Those of a model are validated: at most 2^24.
fn dims(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|&dim| dim as i64).collect()
}
