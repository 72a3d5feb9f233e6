//! Checkpoints of Llama 2, from the files of every maker into one canonical form.
//!
//! [`open`] looks at what a path holds and picks the reader. All readers end in the same place: a [`WeightSource`] with
//! Meta's tensor names, row-major, RoPE pairs interleaved, so that no backend knows a file format. Everything that can be
//! wrong with a checkpoint is found when it is opened, before memory is taken for a model: every tensor's presence, type,
//! shape and place, and no tensor too many.
//!
//! | layout | files | types |
//! |---|---|---|
//! | [Meta](Format::Meta) | `params.json`, `consolidated.00.pth` … one for each model-parallel rank, zip or legacy | f32, f16, bf16 |
//! | [Hugging Face](Format::HuggingFace) | `config.json`, `model.safetensors` or `model.safetensors.index.json` with its shards | f32, f16, bf16 |
//! | [GGUF](Format::Gguf) | one file, which holds the tokenizer too; versions 2 and 3, architecture `llama` | the same, and the quantised types of [`DType`](llama_backend::DType) |
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
pub(crate) mod blob;
mod error;
pub(crate) mod gguf;
mod hf;
mod json;
mod meta;
pub(crate) mod mmap;
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

use llama_backend::{Backend, Communicator, LocalCommunicator, ModelConfig, ModelSource, WeightSource};

pub use archive::ArchiveError;
pub use error::CheckpointError;
pub use gguf::GgufError;
pub use pickle::PickleError;

use crate::weights::{Cast, Rule};
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
    /// One `.gguf` file.
    Gguf,
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

    /// The tensors as a backend takes them: those of a type that it does not name in its capabilities are converted to f32 when they are
    /// asked for. [`LlamaBuilder`](crate::LlamaBuilder) does this by itself; it is for callers who drive a backend themselves.
    #[must_use]
    pub fn weights_for(&self, backend: &dyn Backend) -> Arc<dyn WeightSource> {
        Cast::wrap(
            self.weights(),
            Rule::Fit(backend.capabilities().dtypes),
            LocalCommunicator::default().n_threads(),
        )
    }

    /// The shape of the model.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        self.weights.config()
    }

    /// The positions that the model was trained for (`max_position_embeddings`, `context_length`); `None` in Meta's layout, which does not say.
    #[must_use]
    pub fn max_seq_len(&self) -> Option<usize> {
        self.max_seq_len
    }

    /// The tokenizer beside the checkpoint: `tokenizer.model` or, where that is not there, `tokenizer.json`. For a GGUF file that
    /// holds a tokenizer it is the file itself, which [`Tokenizer::open`](crate::tokenizer::Tokenizer::open) reads.
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

/// Opens the checkpoint in a folder, or in a GGUF file.
///
/// The files are mapped into memory. They must not be changed or shortened while the checkpoint, a model made of it or any of its
/// [`WeightBytes`](llama_backend::WeightBytes) is in use: the tensors would change too, and where a file became shorter the
/// system may end the process. To replace a checkpoint, write the new files elsewhere and rename them.
///
/// # Errors
///
/// [`CheckpointError`] says which file or tensor is missing, superfluous or wrong, what was found and what was expected.
pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint, CheckpointError> {
    let path = path.as_ref();
    if path.is_file() {
        return match gguf::is_name(&path.to_string_lossy()) || gguf::sniff(path) {
            true => open_gguf(path),
            false => Err(CheckpointError::NotAFolder { path: path.to_owned() }),
        };
    }
    let names = list(path)?;
    let shards: Vec<String> = names.iter().filter(|name| meta::is_shard(name)).cloned().collect();

    let (format, model) = sniff(path, &names, &shards)?;
    let (graph, weights, max_seq_len) = match format {
        Format::Meta => (None, meta::open(path, shards)?, None),
        Format::HuggingFace => {
            let (weights, max_seq_len) = hf::open(path, model == hf::INDEX)?;
            (None, weights, Some(max_seq_len))
        }
        Format::Onnx => {
            let (graph, weights, max_seq_len) = onnx::open(path, |name| names.contains(name))?;
            (Some(graph), weights, Some(max_seq_len))
        }
        Format::Gguf => return open_gguf(&path.join(model)),
    };
    let tokenizer = TOKENIZERS.into_iter().find(|&name| names.contains(name)).map(|name| path.join(name));
    Ok(Checkpoint { weights: Arc::new(weights), graph, format, max_seq_len, tokenizer })
}

/// The files that a tokenizer lies in, the preferred one first.
const TOKENIZERS: [&str; 2] = ["tokenizer.model", "tokenizer.json"];

fn open_gguf(file: &Path) -> Result<Checkpoint, CheckpointError> {
    let model = gguf::open(file)?;
    let tokenizer = match &*model.tokenizer.unwrap_or_default() {
        gguf::TOKENIZER => Some(file.to_owned()),
        // One that is not read is better than none: its error says of what kind it is.
        kind => TOKENIZERS
            .map(|name| file.with_file_name(name))
            .into_iter()
            .find(|beside| beside.exists())
            .or_else(|| (!kind.is_empty()).then(|| file.to_owned())),
    };
    Ok(Checkpoint {
        weights: Arc::new(model.weights),
        graph: None,
        format: Format::Gguf,
        max_seq_len: Some(model.max_seq_len),
        tokenizer,
    })
}

/// Opens a GGUF file that lies in memory, say one that is embedded in the program.
///
/// Tensors are handed out without a copy where the bytes are aligned to their type. The tokenizer is for
/// [`Tokenizer::from_bytes`](crate::tokenizer::Tokenizer::from_bytes) to read from the same bytes.
///
/// # Errors
///
/// As [`open`].
pub fn from_gguf_bytes(
    bytes: impl AsRef<[u8]> + Send + Sync + 'static,
) -> Result<Checkpoint, CheckpointError> {
    let model = gguf::read(Blob::new(Path::new("embedded.gguf"), Arc::new(bytes)))?;
    Ok(Checkpoint {
        weights: Arc::new(model.weights),
        graph: None,
        format: Format::Gguf,
        max_seq_len: Some(model.max_seq_len),
        tokenizer: None,
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

/// Whose layout a folder with these files has, when it is complete, and the file that shows it. Weights without their shape, or the
/// reverse, say which file is missing; two checkpoints in one folder are an error, because either could be meant.
fn sniff<'a>(
    dir: &Path,
    names: &'a BTreeSet<String>,
    shards: &'a [String],
) -> Result<(Format, &'a str), CheckpointError> {
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
        .chain(names.iter().map(String::as_str).filter(|name| gguf::is_name(name)))
        .collect();
    match (has(&meta::PARAMS), has(&hf::CONFIG), &*weights) {
        (_, _, [file]) if gguf::is_name(file) => Ok((Format::Gguf, file)),
        (_, _, [onnx::MODEL]) => Ok((Format::Onnx, onnx::MODEL)),
        (true, _, [shard]) if meta::is_shard(shard) => Ok((Format::Meta, shard)),
        (_, true, [model]) if !meta::is_shard(model) => Ok((Format::HuggingFace, model)),
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
    fs::read_dir(dir)
        .map_err(failed)?
        .map(|entry| {
            // A name that is not UTF-8 is none that is looked for.
            Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned())
        })
        .collect()
}
