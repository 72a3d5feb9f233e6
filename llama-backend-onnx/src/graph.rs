//! The forward pass of Llama 2 (arXiv 2307.09288; `Transformer.forward` in the reference) as a graph of the engine's operators.
//!
//! It is built in memory at load, and no file is written. The tokens of a batch are rows, and each matrix is multiplied once;
//! only attention knows of sequences, and only the wanted rows reach the output. The operators of the domain `com.microsoft`
//! do in one step what took several: attention with its cache and RoPE (`GroupQueryAttention`), the residual with the norm
//! behind it (`SkipSimplifiedLayerNormalization`), SiLU (`QuickGelu` at alpha 1).
//!
//! The graph has one of two [interfaces](Interface): the one that this crate calls, or the one that others know, for a file.
//! Ours: `embedded: [B, S, dim]` f32 (the tokens' rows, which the caller looks up in whatever type they are stored), `seqlens: [B]` i32 (a
//! sequence's last position), `longest: []` i32 (positions of the longest), `rows: [R]` i64 (which of the `B * S` rows are wanted),
//! `past.{keys,values}.N: [B, n_kv_heads, max_seq_len, width]` f32.
//! It gives `logits: [R, vocab_size]` f32, `present.{keys,values}.N`, which share the past's memory.
//!
//! Shapes: `h`, `x`: `[B * S, dim]`. The attention kernel wants heads of a multiple of 16 (it turns pairs with SIMD): other
//! heads are filled up with zeros around it, which changes no product; every checkpoint of Meta's has 128.

use std::collections::HashSet;

use llama_backend::ModelConfig;

use crate::blocks::Layout;

/// What the graph is made of, in the engine's words; [`load`](crate::load) turns it into a session, [`export`](crate::export)
/// into a file.
pub(crate) trait Target {
    /// What can go wrong.
    type Error;

    /// A node: operator, domain, inputs, outputs, attributes.
    fn node(&mut self, node: Node<'_>) -> Result<(), Self::Error>;

    /// A tensor of the checkpoint in f32, under its own name.
    fn weight(&mut self, name: &str, shape: &[usize]) -> Result<(), Self::Error>;

    /// A matrix of the checkpoint to multiply with: `None` for one in f32, under its own name. Blocks have that name too; their scales and
    /// minimums have it with `.scales` and `.minimums` behind it.
    fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Result<Option<Layout>, Self::Error>;

    /// A small tensor of ours.
    fn integers(&mut self, name: &str, values: &[i64]) -> Result<(), Self::Error>;

    /// A table of ours.
    fn floats(&mut self, name: &str, shape: [usize; 2], values: Vec<f32>) -> Result<(), Self::Error>;
}

/// A node of the graph.
pub(crate) struct Node<'a> {
    pub(crate) op: &'a str,
    pub(crate) domain: &'a str,
    pub(crate) inputs: &'a [&'a str],
    pub(crate) outputs: &'a [&'a str],
    pub(crate) attributes: &'a [(&'a str, Attribute)],
}

/// An attribute's value.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Attribute {
    Int(i64),
    Float(f32),
}

/// ONNX's own domain, and the one of ONNX Runtime's operators; with their versions.
pub(crate) const OPSETS: [(&str, u32); 2] = [("", 18), (MICROSOFT, 1)];
pub(crate) const ONNX: &str = "";
pub(crate) const MICROSOFT: &str = "com.microsoft";
/// `TensorProto.INT32`.
const INT32: i64 = 6;

/// The width of a head in the cache and in attention.
pub(crate) fn head_width(head_dim: usize) -> usize {
    head_dim.next_multiple_of(16)
}

/// How the graph is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interface {
    /// With lengths and wanted rows, as the module says.
    Ours,
    /// As onnxruntime-genai's graphs are: `input_ids: [B, S]`, `attention_mask: [B, T]` i64, whose ones are counted, and
    /// `past_key_values.N.{key,value}`; it gives `logits: [B, S, vocab_size]` and `present.N.{key,value}`.
    Common,
}

impl Interface {
    /// The names of a layer's keys or values, before and after.
    pub(crate) fn cache_names(self, layer: usize, kind: Kind) -> [String; 2] {
        match (self, kind) {
            (Self::Ours, Kind::Keys) => [format!("past.keys.{layer}"), format!("present.keys.{layer}")],
            (Self::Ours, Kind::Values) => [format!("past.values.{layer}"), format!("present.values.{layer}")],
            (Self::Common, Kind::Keys) => {
                [format!("past_key_values.{layer}.key"), format!("present.{layer}.key")]
            }
            (Self::Common, Kind::Values) => {
                [format!("past_key_values.{layer}.value"), format!("present.{layer}.value")]
            }
        }
    }
}

/// What a cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Keys,
    Values,
}

/// Keys and values of each layer in turn: the order of all inputs and outputs of the cache.
pub(crate) fn planes(n_layers: usize) -> impl Iterator<Item = (usize, Kind)> {
    (0..n_layers).flat_map(|layer| [(layer, Kind::Keys), (layer, Kind::Values)])
}

/// Builds the whole graph.
pub(crate) fn build<T: Target>(
    target: &mut T,
    config: &ModelConfig,
    max_seq_len: usize,
    interface: Interface,
) -> Result<(), T::Error> {
    let mut builder = Builder { target, config, interface, sums: HashSet::new() };
    builder.constants(max_seq_len)?;
    builder.embed()?;
    for layer in 0..config.n_layers {
        builder.attention(layer)?;
        builder.feed_forward(layer)?;
    }
    builder.output()
}

pub(crate) struct Builder<'a, T> {
    pub(crate) target: &'a mut T,
    config: &'a ModelConfig,
    interface: Interface,
    /// The sums of activations that are made already.
    pub(crate) sums: HashSet<String>,
}

impl<T: Target> Builder<'_, T> {
    pub(crate) fn op(&mut self, op: &str, inputs: &[&str], output: &str) -> Result<(), T::Error> {
        self.target.node(Node { op, domain: ONNX, inputs, outputs: &[output], attributes: &[] })
    }

    fn constants(&mut self, max_seq_len: usize) -> Result<(), T::Error> {
        let ModelConfig { dim, n_heads, n_kv_heads, head_dim, rope_theta, .. } = *self.config;
        let width = head_width(head_dim);
        let int = |n: usize| n as i64; // validated: at most 2^24
        let [cos, sin] = crate::rope::tables(max_seq_len, head_dim, width, rope_theta);
        self.target.floats("rope.cos", [max_seq_len, width / 2], cos)?;
        self.target.floats("rope.sin", [max_seq_len, width / 2], sin)?;
        self.target.integers("shape.h", &[-1, int(dim)])?;
        self.target.integers("shape.q", &[-1, int(n_heads * head_dim)])?;
        self.target.integers("width.q", &[int(n_heads * width)])?;
        self.target.integers("width.kv", &[int(n_kv_heads * width)])?;
        if width != head_dim {
            self.target.integers("shape.q_heads", &[-1, int(n_heads), int(head_dim)])?;
            self.target.integers("shape.kv_heads", &[-1, int(n_kv_heads), int(head_dim)])?;
            self.target.integers("shape.wide_heads", &[-1, int(n_heads), int(width)])?;
            self.target.integers("padding", &[0, 0, 0, 0, 0, int(width - head_dim)])?;
            self.target.integers("from", &[0])?;
            self.target.integers("to", &[int(head_dim)])?;
            self.target.integers("axis", &[2])?;
        }
        // [B, S] of this batch, then [B, S, width] of queries and of keys.
        let source = match self.interface {
            Interface::Ours => "embedded",
            Interface::Common => "input_ids",
        };
        self.target.node(Node {
            op: "Shape",
            domain: ONNX,
            inputs: &[source],
            outputs: &["batch"],
            attributes: &[("end", Attribute::Int(2))],
        })?;
        self.join(&["batch", "width.q"], "batch.q")?;
        self.join(&["batch", "width.kv"], "batch.kv")?;
        match self.interface {
            Interface::Ours => Ok(()),
            Interface::Common => self.count(),
        }
    }

    /// `seqlens` and `longest` from `attention_mask`.
    fn count(&mut self) -> Result<(), T::Error> {
        self.target.integers("width.logits", &[self.config.vocab_size as i64])?; // validated: at most 2^24
        self.join(&["batch", "width.logits"], "batch.logits")?;
        self.target.integers("one", &[1])?;
        self.target.node(Node {
            op: "ReduceSum",
            domain: ONNX,
            inputs: &["attention_mask", "one"],
            outputs: &["mask.sums"],
            attributes: &[("keepdims", Attribute::Int(0))],
        })?;
        self.op("Sub", &["mask.sums", "one"], "mask.lasts")?;
        self.cast("mask.lasts", "seqlens", INT32)?;
        self.op("Shape", &["attention_mask"], "mask.shape")?;
        self.op("Gather", &["mask.shape", "one"], "mask.longest")?;
        self.cast("mask.longest", "longest", INT32)
    }

    fn cast(&mut self, input: &str, output: &str, to: i64) -> Result<(), T::Error> {
        let attributes = &[("to", Attribute::Int(to))];
        self.target.node(Node { op: "Cast", domain: ONNX, inputs: &[input], outputs: &[output], attributes })
    }

    fn join(&mut self, inputs: &[&str], output: &str) -> Result<(), T::Error> {
        let attributes = &[("axis", Attribute::Int(0))];
        self.target.node(Node { op: "Concat", domain: ONNX, inputs, outputs: &[output], attributes })
    }

    /// `h` and its norm: `[B * S, dim]`.
    fn embed(&mut self) -> Result<(), T::Error> {
        let ModelConfig { dim, vocab_size, norm_eps, .. } = *self.config;
        if self.interface == Interface::Common {
            self.target.weight("tok_embeddings.weight", &[vocab_size, dim])?;
            self.op("Gather", &["tok_embeddings.weight", "input_ids"], "embedded")?;
        }
        self.op("Reshape", &["embedded", "shape.h"], "h")?;
        self.target.weight("layers.0.attention_norm.weight", &[dim])?;
        let attributes = &[("axis", Attribute::Int(-1)), ("epsilon", Attribute::Float(norm_eps))];
        self.target.node(Node {
            op: "SimplifiedLayerNormalization",
            domain: ONNX,
            inputs: &["h", "layers.0.attention_norm.weight"],
            outputs: &["layers.0.attention_norm"],
            attributes,
        })
    }

    /// `skip + x`, and its norm.
    fn add_norm(&mut self, [skip, x]: [&str; 2], norm: &str, sum: &str) -> Result<(), T::Error> {
        let weight = format!("{norm}.weight");
        self.target.weight(&weight, &[self.config.dim])?;
        let outputs = [norm, "", "", sum];
        self.target.node(Node {
            op: "SkipSimplifiedLayerNormalization",
            domain: MICROSOFT,
            inputs: &[x, skip, &weight],
            // Outputs at the end that nobody uses are left out.
            outputs: if sum.is_empty() { &outputs[..1] } else { &outputs },
            attributes: &[("epsilon", Attribute::Float(self.config.norm_eps))],
        })
    }

    /// From the normed `layers.N.attention_norm` to `layers.N.attention.wo`, and the norm of the two residuals' sum.
    fn attention(&mut self, layer: usize) -> Result<(), T::Error> {
        let ModelConfig { dim, n_heads, n_kv_heads, head_dim, .. } = *self.config;
        let (q_dim, kv_dim) = (self.config.q_dim(), self.config.kv_dim());
        let name = |part: &str| format!("layers.{layer}.{part}");
        let x = name("attention_norm");
        let wide = head_width(head_dim) != head_dim;
        for (part, n_out, heads, batch) in [
            ("attention.wq", q_dim, "shape.q_heads", "batch.q"),
            ("attention.wk", kv_dim, "shape.kv_heads", "batch.kv"),
            ("attention.wv", kv_dim, "shape.kv_heads", "batch.kv"),
        ] {
            let product = name(part);
            self.linear(&x, &format!("{product}.weight"), &product, [n_out, dim])?;
            let mut flat = product.clone();
            if wide {
                let (apart, filled) = (format!("{product}.heads"), format!("{product}.wide"));
                self.op("Reshape", &[&product, heads], &apart)?;
                self.op("Pad", &[&apart, "padding"], &filled)?;
                flat = filled;
            }
            self.op("Reshape", &[&flat, batch], &format!("{product}.batch"))?; // [B, S, heads * width]
        }
        let [past_keys, present_keys] = self.interface.cache_names(layer, Kind::Keys);
        let [past_values, present_values] = self.interface.cache_names(layer, Kind::Values);
        self.target.node(Node {
            op: "GroupQueryAttention",
            domain: MICROSOFT,
            inputs: &[
                &name("attention.wq.batch"),
                &name("attention.wk.batch"),
                &name("attention.wv.batch"),
                &past_keys,
                &past_values,
                "seqlens",
                "longest",
                "rope.cos",
                "rope.sin",
            ],
            outputs: &[&name("attention"), &present_keys, &present_values],
            attributes: &[
                ("num_heads", Attribute::Int(n_heads as i64)),
                ("kv_num_heads", Attribute::Int(n_kv_heads as i64)),
                ("scale", Attribute::Float(1.0 / (head_dim as f32).sqrt())),
                ("do_rotary", Attribute::Int(1)),
                ("rotary_interleaved", Attribute::Int(1)), // Meta's pairs: (2i, 2i + 1)
            ],
        })?;
        let mut heads = name("attention");
        if wide {
            let (apart, narrow) = (name("attention.heads"), name("attention.narrow"));
            self.op("Reshape", &[&heads, "shape.wide_heads"], &apart)?;
            self.op("Slice", &[&apart, "from", "to", "axis"], &narrow)?;
            heads = narrow;
        }
        let (rows, wo) = (name("attention.rows"), name("attention.wo"));
        self.op("Reshape", &[&heads, "shape.q"], &rows)?;
        self.linear(&rows, &format!("{wo}.weight"), &wo, [dim, q_dim])?;
        let before = if layer == 0 { "h".to_owned() } else { name("before") };
        self.add_norm([&before, &wo], &name("ffn_norm"), &name("between"))
    }

    /// From the normed `layers.N.ffn_norm` to `layers.N.feed_forward.w2`, and the next layer's norm.
    fn feed_forward(&mut self, layer: usize) -> Result<(), T::Error> {
        let ModelConfig { dim, ffn_dim, n_layers, .. } = *self.config;
        let name = |part: &str| format!("layers.{layer}.{part}");
        let [w1, w2, w3] = ["w1", "w2", "w3"].map(|w| name(&format!("feed_forward.{w}")));
        let (x, gate, gated) = (name("ffn_norm"), name("gate"), name("gated"));
        for w in [&w1, &w3] {
            self.linear(&x, &format!("{w}.weight"), w, [ffn_dim, dim])?;
        }
        self.target.node(Node {
            op: "QuickGelu",
            domain: MICROSOFT,
            inputs: &[&w1],
            outputs: &[&gate],
            attributes: &[("alpha", Attribute::Float(1.0))],
        })?;
        self.op("Mul", &[&gate, &w3], &gated)?;
        self.linear(&gated, &format!("{w2}.weight"), &w2, [dim, ffn_dim])?;
        let between = name("between");
        if layer + 1 < n_layers {
            let next = format!("layers.{}", layer + 1);
            return self.add_norm(
                [&between, &w2],
                &format!("{next}.attention_norm"),
                &format!("{next}.before"),
            );
        }
        if self.interface == Interface::Common {
            return self.add_norm([&between, &w2], "norm", "");
        }
        // What nobody wants to see is not carried further.
        self.op("Gather", &[&between, "rows"], "wanted.between")?;
        self.op("Gather", &[&w2, "rows"], "wanted.ffn")?;
        self.add_norm(["wanted.between", "wanted.ffn"], "norm", "")
    }

    fn output(&mut self) -> Result<(), T::Error> {
        let ModelConfig { dim, vocab_size, .. } = *self.config;
        let rows = if self.interface == Interface::Ours { "logits" } else { "logits.rows" };
        self.linear("norm", "output.weight", rows, [vocab_size, dim])?;
        match self.interface {
            Interface::Ours => Ok(()),
            Interface::Common => self.op("Reshape", &["logits.rows", "batch.logits"], "logits"),
        }
    }
}
