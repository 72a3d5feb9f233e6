//! [`CheckpointError`]: what can be wrong with a checkpoint, with the file, the tensor, what was found and what was expected.

use std::io;
use std::path::PathBuf;

use llama_backend::{BackendError, WeightError};

use super::{ArchiveError, GgufError, PickleError};

/// Why a checkpoint could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file or folder could not be read.
    #[error("{}: {source}", .path.display())]
    Io {
        /// What was to be read.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file where a checkpoint's folder is wanted, or a GGUF file.
    #[error("{} is no GGUF file and not a folder; give the folder that holds the checkpoint", .path.display())]
    NotAFolder {
        /// The path that was given.
        path: PathBuf,
    },
    /// A folder that holds no checkpoint.
    #[error("{} holds no checkpoint: found {}; expected params.json with consolidated.00.pth (Meta), or config.json \
             with model.safetensors or model.safetensors.index.json (Hugging Face) or model.onnx (ONNX), or one .gguf file", .dir.display(), names(.found, *.entries))]
    NoCheckpoint {
        /// The folder.
        dir: PathBuf,
        /// What it holds; the first names only, where they are many.
        found: Vec<String>,
        /// How many files and folders it holds.
        entries: usize,
    },
    /// A folder that holds more than one checkpoint.
    #[error("{} holds more than one checkpoint: found {found:?}; expected one of them alone (of \
             several .gguf files, give the one's path)", .dir.display())]
    Ambiguous {
        /// The folder.
        dir: PathBuf,
        /// The files that make it so.
        found: Vec<String>,
    },
    /// A file without which the others are of no use.
    #[error("{} is missing: {needed_for}", .file.display())]
    MissingFile {
        /// The file that was expected.
        file: PathBuf,
        /// What asks for it.
        needed_for: String,
    },
    /// Model-parallel shards that do not make a model.
    #[error("{}: found shards {found:?}; expected {expected}", .dir.display())]
    Shards {
        /// The folder.
        dir: PathBuf,
        /// The shards' file names.
        found: Vec<String>,
        /// What would have been accepted.
        expected: String,
    },
    /// A file that is not JSON.
    #[error("{}: {source}", .file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
    /// A field of `params.json`, `config.json`, an index or a GGUF file's metadata that is unknown, absent, or has a value that is not supported.
    #[error("{}: {field:?} is {found}, expected {expected}", .file.display())]
    Field {
        /// The file.
        file: PathBuf,
        /// The field, as the file names it.
        field: String,
        /// Its value.
        found: String,
        /// What would have been accepted.
        expected: String,
    },
    /// Numbers that make no transformer.
    #[error("{}: {source}", .file.display())]
    Config {
        /// The file they stand in.
        file: PathBuf,
        /// The first that does not fit.
        source: Box<BackendError>,
    },
    /// A `.pth` file whose zip archive cannot be used.
    #[error("{}: {source}", .file.display())]
    Archive {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: ArchiveError,
    },
    /// A `.pth` file whose pickle cannot be used.
    #[error("{}: {source}", .file.display())]
    Pickle {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: PickleError,
    },
    /// A `.safetensors` file whose header cannot be used.
    #[error("{}: {source}", .file.display())]
    Safetensors {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A GGUF file whose header cannot be used.
    #[error("{}: {source}", .file.display())]
    Gguf {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: GgufError,
    },
    /// A tensor that lies outside its storage or its file, or whose storage is not what the file says.
    #[error("{}: tensor {tensor:?}: {what}", .file.display())]
    Layout {
        /// The file.
        file: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// What was found, and what was expected.
        what: String,
    },
    /// A tensor that a Llama 2 model does not have.
    #[error("{}: tensor {tensor:?} belongs to no Llama 2 model of this configuration", .file.display())]
    ExtraTensor {
        /// The file.
        file: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
    },
    /// A tensor that is missing, mis-shaped or of a type that is not supported.
    #[error(transparent)]
    Weights(#[from] WeightError),
}

/// The names of files that were found, and how many more there are.
fn names(found: &[String], entries: usize) -> String {
    match entries.saturating_sub(found.len()) {
        0 if found.is_empty() => "nothing".to_owned(),
        0 => found.join(", "),
        more => format!("{} and {more} more", found.join(", ")),
    }
}

impl CheckpointError {
    /// Whether the path, or a file that the checkpoint needs, does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::NoCheckpoint { .. } | Self::MissingFile { .. } => true,
            _ => false,
        }
    }

    /// Whether a file is damaged or hostile: no version of a right file looks like that.
    #[must_use]
    pub fn is_malformed(&self) -> bool {
        match self {
            Self::Json { .. } | Self::Safetensors { .. } | Self::Layout { .. } => true,
            Self::Archive { source, .. } => {
                !matches!(source, ArchiveError::NotStored { .. } | ArchiveError::ByteOrder { .. })
            }
            Self::Gguf { source, .. } => !source.is_unsupported(),
            Self::Pickle { source, .. } => {
                !matches!(source, PickleError::Global { .. } | PickleError::Opcode { .. })
            }
            _ => false,
        }
    }
}
