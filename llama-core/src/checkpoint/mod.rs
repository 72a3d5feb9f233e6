//! Checkpoints of Llama 2, from the files of every maker into one canonical form.
//!
//! [`open`] looks at what a folder holds and picks the reader. All readers end in the same place: a [`WeightSource`] with
//! Meta's tensor names, row-major, RoPE pairs interleaved, so that no backend knows a file format. Everything that can be
//! wrong with a checkpoint is found when it is opened, before memory is taken for a model: every tensor's presence, type,
//! shape and place, and no tensor too many.
//!
//! | layout | files | types |
//! |---|---|---|
//! | [Meta](Format::Meta) | `params.json`, `consolidated.00.pth` … one for each model-parallel rank, zip or legacy | f32, f16, bf16 |
//! | [Hugging Face](Format::HuggingFace) | `config.json`, `model.safetensors` or `model.safetensors.index.json` with its shards | f32, f16, bf16 |
//! | [ONNX](Format::Onnx) | `model.onnx` of Optimum or of onnxruntime-genai's builder, with `config.json` or `genai_config.json` | f32 |
//!
//! The last is no checkpoint but a computation, for engines that run graphs: it has a shape and no tensors to be read.
//!
//! Files are mapped into memory and read when a tensor is asked for. A file is data, whatever it says: a `.pth` file's pickle
//! can call nothing, nothing is ever inflated, and every offset and length is checked against the file.
//!
//! ```no_run
//! use llama_core::checkpoint;
//!
//! let checkpoint = checkpoint::open("llama-2-7b-chat")?;
//! println!("{} layers", checkpoint.config().n_layers);
//! let norm = checkpoint.weights().bytes("norm.weight")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod archive;
mod blob;
mod error;
mod hf;
mod json;
mod meta;
mod mmap;
mod onnx;
mod pickle;
mod pth;
mod safetensors;
mod view;
mod weights;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use llama_backend::{ModelConfig, ModelSource, WeightSource};

pub use archive::ArchiveError;
pub use error::CheckpointError;
pub use pickle::PickleError;

use blob::Blob;
use weights::Weights;

/// Whose layout a checkpoint has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// `params.json` and `consolidated.*.pth`.
    Meta,
    /// `config.json` and `*.safetensors`.
    HuggingFace,
    /// `model.onnx`, with `config.json` or `genai_config.json`.
    Onnx,
}

/// An open checkpoint: the model's shape, and its tensors to be read. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    weights: Arc<Weights>,
    graph: Option<PathBuf>,
    format: Format,
    max_seq_len: Option<usize>,
    tokenizer: Option<PathBuf>,
}

impl Checkpoint {
    /// What a backend loads.
    #[must_use]
    pub fn source(&self) -> ModelSource {
        match &self.graph {
            Some(path) => ModelSource::Graph { path: path.clone(), config: self.config().clone() },
            None => ModelSource::Weights(self.weights()),
        }
    }

    /// The tensors, in the canonical form. In [`Format::Onnx`] there are none: each is reported as missing.
    #[must_use]
    pub fn weights(&self) -> Arc<dyn WeightSource> {
        Arc::clone(&self.weights) as Arc<dyn WeightSource>
    }

    /// The shape of the model.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        self.weights.config()
    }

    /// The positions that the model was trained for (`max_position_embeddings`); `None` in Meta's layout, which does not say.
    #[must_use]
    pub fn max_seq_len(&self) -> Option<usize> {
        self.max_seq_len
    }

    /// The tokenizer beside the checkpoint: `tokenizer.model` or, where that is not there, `tokenizer.json`.
    ///
    /// The former comes first because it is the reference's own: `tokenizer.json` takes the text `</s>` for the control token.
    #[must_use]
    pub fn tokenizer_path(&self) -> Option<&Path> {
        self.tokenizer.as_deref()
    }

    /// Whose layout the checkpoint has.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }
}

/// Opens the checkpoint in a folder.
///
/// Its files are mapped into memory. They must not be changed or shortened while the checkpoint, a model made of it or any of its
/// [`WeightBytes`](llama_backend::WeightBytes) is in use: the tensors would change too, and where a file became shorter the
/// system may end the process. To replace a checkpoint, write the new files elsewhere and rename them.
///
/// # Errors
///
/// [`CheckpointError`] says which file or tensor is missing, superfluous or wrong, what was found and what was expected.
pub fn open(dir: impl AsRef<Path>) -> Result<Checkpoint, CheckpointError> {
    let dir = dir.as_ref();
    let names = list(dir)?;
    let has = |name: &str| names.contains(name);
    let shards: Vec<String> = names.iter().filter(|name| meta::is_shard(name)).cloned().collect();

    let format = sniff(dir, &names, &shards)?;
    let (graph, weights, max_seq_len) = match format {
        Format::Meta => (None, meta::open(dir, shards)?, None),
        Format::HuggingFace => {
            let (weights, max_seq_len) = hf::open(dir, has(hf::INDEX))?;
            (None, weights, Some(max_seq_len))
        }
        Format::Onnx => {
            let (graph, weights, max_seq_len) = onnx::open(dir, has)?;
            (Some(graph), weights, Some(max_seq_len))
        }
    };
    let tokenizer = ["tokenizer.model", "tokenizer.json"].into_iter().find(|name| has(name));
    Ok(Checkpoint {
        weights: Arc::new(weights),
        graph,
        format,
        max_seq_len,
        tokenizer: tokenizer.map(|name| dir.join(name)),
    })
}

/// Opens a checkpoint in Meta's layout that lies in memory: the content of `params.json`, and of each `consolidated.*.pth` in order.
///
/// A program carries its model with it by `include_bytes!`. Tensors are handed out without a copy where the bytes are
/// aligned to the element, so put the included bytes behind an alignment of 4 or more where memory counts.
///
/// ```no_run
/// # macro_rules! include_bytes { ($path:literal) => { b"" } }
/// use llama_core::checkpoint;
///
/// let params = include_bytes!("tiny/params.json");
/// let model: &'static [u8] = include_bytes!("tiny/consolidated.00.pth");
/// let checkpoint = checkpoint::from_bytes(params, [model])?;
/// # Ok::<(), checkpoint::CheckpointError>(())
/// ```
///
/// # Errors
///
/// As [`open`]; files are named as they are in Meta's layout.
pub fn from_bytes<B>(
    params_json: &[u8],
    shards: impl IntoIterator<Item = B>,
) -> Result<Checkpoint, CheckpointError>
where
    B: AsRef<[u8]> + Send + Sync + 'static,
{
    let params = Blob::new(Path::new(meta::PARAMS), Arc::new(params_json.to_vec()));
    let shards: Vec<_> = shards
        .into_iter()
        .enumerate()
        .map(|(i, bytes)| Blob::new(Path::new(&format!("consolidated.{i:02}.pth")), Arc::new(bytes)))
        .collect();
    let root = Path::new("embedded checkpoint");
    if shards.is_empty() {
        return Err(CheckpointError::Shards {
            dir: root.to_owned(),
            found: Vec::new(),
            expected: "consolidated.00.pth".to_owned(),
        });
    }
    Ok(Checkpoint {
        weights: Arc::new(meta::join(root, &params, shards)?),
        graph: None,
        format: Format::Meta,
        max_seq_len: None,
        tokenizer: None,
    })
}

/// Whose layout a folder with these files has, when it is complete. Weights without their shape, or the reverse, say which
/// file is missing; two checkpoints in one folder are an error, because either could be meant.
fn sniff(dir: &Path, names: &BTreeSet<String>, shards: &[String]) -> Result<Format, CheckpointError> {
    let has = |name: &&str| names.contains(*name);
    let missing = |name: &str, asks: &str| CheckpointError::MissingFile {
        file: dir.join(name),
        needed_for: format!("{asks} asks for it"),
    };
    let weights: Vec<&str> = shards
        .first()
        .map(String::as_str)
        .into_iter()
        .chain([hf::MODEL, hf::INDEX, onnx::MODEL].into_iter().filter(has))
        .collect();
    match (has(&meta::PARAMS), has(&hf::CONFIG), &*weights) {
        (true, _, [shard]) if meta::is_shard(shard) => Ok(Format::Meta),
        (_, _, [onnx::MODEL]) => Ok(Format::Onnx),
        (_, true, [model]) if !meta::is_shard(model) => Ok(Format::HuggingFace),
        (_, _, [shard]) if meta::is_shard(shard) => Err(missing(meta::PARAMS, shard)),
        (_, _, [model]) => Err(missing(hf::CONFIG, model)),
        (true, false, []) => Err(missing("consolidated.00.pth", meta::PARAMS)),
        (false, true, []) => Err(missing(hf::MODEL, hf::CONFIG)),
        (_, _, []) => Err(CheckpointError::NoCheckpoint {
            dir: dir.to_owned(),
            found: names.iter().take(MAX_NAMES).cloned().collect(),
            entries: names.len(),
        }),
        (_, _, several) => Err(CheckpointError::Ambiguous {
            dir: dir.to_owned(),
            found: several.iter().map(|&name| name.to_owned()).collect(),
        }),
    }
}

/// As many names of files as an error lists.
const MAX_NAMES: usize = 5;

/// The names of a folder's entries, in order.
fn list(dir: &Path) -> Result<BTreeSet<String>, CheckpointError> {
    let failed = |source| CheckpointError::Io { path: dir.to_owned(), source };
    if dir.is_file() {
        let path = dir.to_owned();
        return Err(CheckpointError::NotAFolder { path });
    }
    fs::read_dir(dir)
        .map_err(failed)?
        .map(|entry| {
            // A name that is not UTF-8 is none that is looked for.
            Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned())
        })
        .collect()
}
