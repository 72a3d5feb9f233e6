//! Models from a `model.onnx` that somebody else exported.
//!
//! Two makers' conventions are known, and told apart by what the graph asks for:
//!
//! | | Optimum | onnxruntime-genai's builder |
//! |---|---|---|
//! | positions | `position_ids` | counted from `attention_mask` |
//! | sequences of different lengths | padded on the left | padded on the right |
//! | cache | grows: `present` is a longer tensor than `past` | one buffer, written in place |
//!
//! Either way a slot is a slot: the model keeps the cache itself, so that truncation, forks and batches mean what they mean
//! everywhere. What a graph says of itself (layers, heads, vocabulary, types) is checked against the configuration beside it.

mod interface;
mod model;

use std::path::Path;

use llama_backend::{BackendError, DType, LoadParams, ModelConfig, Slots};
use ort::environment::Environment;
use ort::session::builder::SessionBuilder;

use crate::kv_cache::{KvCache, Shape};
use crate::load::{options, plan};
use crate::sys::Bound;
use crate::{NAME, engine};
use interface::Interface;
pub(crate) use model::FileModel;

/// Loads the graph in a file.
pub(crate) fn load(
    environment: &Environment,
    path: &Path,
    config: &ModelConfig,
    params: &LoadParams,
) -> Result<FileModel, BackendError> {
    config.validate()?;
    params.validate()?;
    params.require_one_rank(NAME)?;
    params.require_f32_cache(crate::NAME)?;
    plan(config, DType::F32, params).check()?;
    let session = options(environment, params)
        .and_then(|mut options: SessionBuilder| options.commit_from_file(path))
        .map_err(|error| engine(format!("{}: {error}", path.display())))?;
    let interface = Interface::of(&session, config)?;
    let cache = KvCache::new(Shape {
        n_layers: config.n_layers,
        n_slots: params.n_slots,
        n_kv_heads: config.n_kv_heads,
        max_seq_len: params.max_seq_len,
        width: interface.width,
    })?;
    let slots = Slots::new(config, params);
    let bound = Bound::new(session).map_err(engine)?;
    let mut model = FileModel::new(bound, interface, cache, slots, config.clone(), params.clone());
    // A graph of another convention fails here, and not in the middle of a conversation.
    model.probe().map_err(|error| BackendError::Unsupported {
        backend: NAME,
        what: format!("the graph in {}: a step of one token failed: {error}", path.display()),
    })?;
    Ok(model)
}
