//! What a graph asks for and gives, read from its inputs and outputs and checked against the configuration.

use std::ffi::CString;

use llama_backend::{BackendError, ModelConfig};
use ort::session::Session;
use ort::value::{Outlet, TensorElementType};

use crate::{NAME, engine, graph};

/// Who keeps the time: see the table in [`super`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// Optimum's.
    Growing,
    /// onnxruntime-genai's.
    InPlace,
}

/// How a graph is to be called.
#[derive(Debug)]
pub(super) struct Interface {
    pub(super) style: Style,
    /// Past and present: keys and values of each layer in turn.
    pub(super) cache_names: Vec<[CString; 2]>,
    /// The width of a head in the cache: `head_dim`, or what [`export`](crate::export) makes of it.
    pub(super) width: usize,
}

impl Interface {
    /// The interface of a session, which must be that of a model of this shape.
    pub(super) fn of(session: &Session, config: &ModelConfig) -> Result<Self, BackendError> {
        let (inputs, outputs) = (session.inputs(), session.outputs());
        let layers = |outlets: &[Outlet], prefix: &str| {
            let is_key =
                |outlet: &&Outlet| outlet.name().starts_with(prefix) && outlet.name().ends_with(".key");
            outlets.iter().filter(is_key).count()
        };
        for (outlets, prefix) in [(inputs, "past_key_values."), (outputs, "present.")] {
            same("n_layers", config.n_layers, layers(outlets, prefix), prefix)?;
        }
        let mut cache_names = Vec::with_capacity(2 * config.n_layers);
        let mut width = config.head_dim;
        for (layer, kind) in graph::planes(config.n_layers) {
            let names = graph::Interface::Common.cache_names(layer, kind);
            for (outlets, name) in [(inputs, &names[0]), (outputs, &names[1])] {
                let [_, n_kv_heads, _, head_dim] = dims(outlets, name, TensorElementType::Float32)?;
                same("n_kv_heads", config.n_kv_heads, n_kv_heads, name)?;
                if layer == 0 && usize::try_from(head_dim) == Ok(graph::head_width(config.head_dim)) {
                    width = graph::head_width(config.head_dim);
                }
                if usize::try_from(head_dim) != Ok(width) {
                    same("head_dim", config.head_dim, head_dim, name)?;
                }
            }
            let [past, present] = names.map(CString::new);
            cache_names.push([past.map_err(engine)?, present.map_err(engine)?]);
        }
        let [_, _, vocab_size] = dims(outputs, "logits", TensorElementType::Float32)?;
        same("vocab_size", config.vocab_size, vocab_size, "logits")?;
        let int = TensorElementType::Int64;
        let [_, _] = dims(inputs, "input_ids", int)?;
        let [_, _] = dims(inputs, "attention_mask", int)?;
        let positions = inputs.iter().any(|input| input.name() == "position_ids");
        if positions {
            let [_, _] = dims(inputs, "position_ids", int)?;
        }
        let known = |name: &str| {
            ["input_ids", "attention_mask", "position_ids"].contains(&name)
                || name.starts_with("past_key_values.")
        };
        if let Some(input) = inputs.iter().find(|input| !known(input.name())) {
            return Err(unsupported(format!("a graph with the input {:?}", input.name())));
        }
        let style = if positions { Style::Growing } else { Style::InPlace };
        Ok(Self { style, cache_names, width })
    }
}

/// The dimensions of an input or output, -1 where they vary; it is there, and has this type and as many.
fn dims<const N: usize>(
    outlets: &[Outlet],
    name: &str,
    ty: TensorElementType,
) -> Result<[i64; N], BackendError> {
    let Some(outlet) = outlets.iter().find(|outlet| outlet.name() == name) else {
        return Err(unsupported(format!("a graph without {name:?}")));
    };
    let found = outlet.dtype();
    if found.tensor_type() != Some(ty) {
        return Err(unsupported(format!(
            "a graph whose {name:?} is a {found}, where a tensor of {ty} is expected"
        )));
    }
    let shape = found.tensor_shape().map(|shape| shape.to_vec()).unwrap_or_default();
    shape.try_into().map_err(|_| {
        unsupported(format!("a graph whose {name:?} is a {found}, where {N} dimensions are expected"))
    })
}

/// That the configuration says what the graph says. A dimension that varies says nothing.
fn same(
    what: &'static str,
    config: usize,
    graph: impl TryInto<i64>,
    place: &str,
) -> Result<(), BackendError> {
    match graph.try_into() {
        Ok(-1) => Ok(()),
        Ok(graph) if i64::try_from(config) == Ok(graph) => Ok(()),
        Ok(graph) => {
            Err(BackendError::config(what, config, format!("{graph}, as the graph has it in {place:?}")))
        }
        Err(_) => Err(BackendError::config(what, config, "what the graph has")),
    }
}

fn unsupported(what: String) -> BackendError {
    BackendError::Unsupported { backend: NAME, what }
}
