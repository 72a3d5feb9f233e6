//! A checkpoint as a folder that ONNX Runtime runs in any language: `model.onnx`, its tensors in `model.onnx.data`, and
//! `config.json`.
//!
//! The graph is the one that this crate computes with, under the names that onnxruntime-genai's builder gives its inputs and
//! outputs; so this crate opens it again, too. All tensors are f32, and `model.onnx` itself holds none that is large.
//!
//! The folder appears when it is complete, or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use llama_backend::{BackendError, ModelConfig, WeightSource, check_weights, read_tensor};

use crate::DTYPES;
use crate::blocks::Layout;
use crate::graph::{self, Attribute, Interface, Node, OPSETS, Target, head_width, planes};
use crate::load::widen;
use crate::protobuf::Message;

/// The name of the file with the tensors, in the file with the graph and beside it.
const DATA: &str = "model.onnx.data";
/// Tensors begin at a multiple of this, so that an engine can map them.
const ALIGN: u64 = 4096;
/// `TensorProto`'s types.
const FLOAT: i64 = 1;
const INT64: i64 = 7;

/// Why a checkpoint could not be exported. Nothing was left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The folder is there already.
    #[error("{} exists: an export makes a folder of its own", .path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// A file could not be written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The checkpoint makes no model, or a tensor of it could not be had.
    #[error(transparent)]
    Checkpoint(#[from] BackendError),
}

/// Writes a checkpoint as an ONNX graph for up to `max_seq_len` positions, into a folder that does not exist yet.
///
/// ONNX Runtime itself is not needed.
///
/// # Errors
///
/// [`ExportError`]; the folder then does not exist.
pub fn export_onnx(
    source: &dyn WeightSource,
    max_seq_len: usize,
    dir: impl AsRef<Path>,
) -> Result<(), ExportError> {
    let dir = dir.as_ref();
    let config = source.config();
    config.validate()?;
    const LIMIT: usize = 1 << 24;
    if !(1..=LIMIT).contains(&max_seq_len) {
        let expected = format!("between 1 and {LIMIT}");
        return Err(BackendError::params("max_seq_len", max_seq_len, expected).into());
    }
    check_weights(source, DTYPES).map_err(BackendError::from)?;
    if dir.exists() {
        return Err(ExportError::Exists { path: dir.to_owned() });
    }
    // Beside the folder, so that the last step is one rename.
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(format!(".partial-{}", std::process::id()));
    let partial = Partial(dir.with_file_name(name));
    create(&partial.0)?;
    write(source, config, max_seq_len, &partial.0)?;
    fs::rename(&partial.0, dir).map_err(|source| ExportError::Io { path: dir.to_owned(), source })
}

/// A folder that goes when it is not renamed.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // Where it was renamed there is none; where it cannot be removed nobody can be told.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn create(path: &Path) -> Result<(), ExportError> {
    fs::create_dir_all(path).map_err(|source| ExportError::Io { path: path.to_owned(), source })
}

fn write(
    source: &dyn WeightSource,
    config: &ModelConfig,
    max_seq_len: usize,
    dir: &Path,
) -> Result<(), ExportError> {
    let path = dir.join(DATA);
    let data = match File::create_new(&path) {
        Ok(file) => Data { file: BufWriter::new(file), path, len: 0 },
        Err(source) => return Err(ExportError::Io { path, source }),
    };
    let mut file = Export { source, graph: Message::default().bytes(2, "llama"), data };
    graph::build(&mut file, config, max_seq_len, Interface::Common)?;
    let Export { graph, mut data, .. } = file;
    data.write(|file| file.flush())?;

    let width = head_width(config.head_dim);
    let plane = |name: String, positions: &str| {
        let dims =
            ["batch_size".to_owned(), config.n_kv_heads.to_string(), positions.to_owned(), width.to_string()];
        value(&name, FLOAT, &dims)
    };
    let tokens = ["batch_size".to_owned(), "sequence_length".to_owned()];
    let mask = ["batch_size".to_owned(), "total_sequence_length".to_owned()];
    let logits = [tokens[0].clone(), tokens[1].clone(), config.vocab_size.to_string()];
    let graph = graph
        .message(11, value("input_ids", INT64, &tokens))
        .message(11, value("attention_mask", INT64, &mask))
        .message(12, value("logits", FLOAT, &logits))
        .each(planes(config.n_layers), |graph, (layer, kind)| {
            let [past, present] = Interface::Common.cache_names(layer, kind);
            let past = plane(past, "past_sequence_length");
            graph.message(11, past).message(12, plane(present, "total_sequence_length"))
        });
    let model = Message::default()
        .int(1, 8) // the version of the format that knows opset 18
        .bytes(2, env!("CARGO_PKG_NAME"))
        .message(7, graph)
        .each(OPSETS, |model, (domain, version)| {
            model.message(8, Message::default().bytes(1, domain).int(2, i64::from(version)))
        });
    save(&dir.join("config.json"), shape(config, max_seq_len).as_bytes())?;
    save(&dir.join("model.onnx"), &model.into_bytes())
}

fn save(path: &Path, bytes: &[u8]) -> Result<(), ExportError> {
    fs::write(path, bytes).map_err(|source| ExportError::Io { path: path.to_owned(), source })
}

/// The shape in the words that every reader of such a folder knows: Hugging Face's.
fn shape(config: &ModelConfig, max_seq_len: usize) -> String {
    let ModelConfig { dim, n_layers, n_heads, n_kv_heads, head_dim, ffn_dim, vocab_size, .. } = config;
    let (norm_eps, rope_theta) = (config.norm_eps, config.rope_theta);
    format!(
        r#"{{
  "architectures": ["LlamaForCausalLM"],
  "head_dim": {head_dim},
  "hidden_act": "silu",
  "hidden_size": {dim},
  "intermediate_size": {ffn_dim},
  "max_position_embeddings": {max_seq_len},
  "model_type": "llama",
  "num_attention_heads": {n_heads},
  "num_hidden_layers": {n_layers},
  "num_key_value_heads": {n_kv_heads},
  "rms_norm_eps": {norm_eps:e},
  "rope_theta": {rope_theta:?},
  "tie_word_embeddings": false,
  "vocab_size": {vocab_size}
}}
"#
    )
}

/// A `ValueInfoProto`: a dimension that is no number is a name.
fn value(name: &str, ty: i64, dims: &[String]) -> Message {
    let shape = Message::default().each(dims, |shape, dim| {
        let dimension = match dim.parse() {
            Ok(size) => Message::default().int(1, size),
            Err(_) => Message::default().bytes(2, dim),
        };
        shape.message(1, dimension)
    });
    let tensor = Message::default().int(1, ty).message(2, shape);
    Message::default().bytes(1, name).message(2, Message::default().message(1, tensor))
}

/// The file with the tensors, as long as it is written.
struct Data {
    file: BufWriter<File>,
    path: PathBuf,
    len: u64,
}

impl Data {
    fn write(
        &mut self,
        write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    ) -> Result<(), ExportError> {
        write(&mut self.file).map_err(|source| ExportError::Io { path: self.path.clone(), source })
    }

    /// Appends numbers; where they begin, and how many bytes they take.
    fn append(&mut self, values: &[f32]) -> Result<[u64; 2], ExportError> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let start = self.len.next_multiple_of(ALIGN);
        let gap = vec![0; (start - self.len) as usize]; // less than ALIGN
        self.write(|file| {
            file.write_all(&gap)?;
            file.write_all(bytes)
        })?;
        self.len = start + bytes.len() as u64;
        Ok([start, bytes.len() as u64])
    }
}

/// A `GraphProto` under construction, and the file of its tensors.
struct Export<'a> {
    source: &'a dyn WeightSource,
    graph: Message,
    data: Data,
}

impl Export<'_> {
    /// A `TensorProto` in the other file.
    fn external(&mut self, name: &str, shape: &[usize], values: &[f32]) -> Result<(), ExportError> {
        let [offset, length] = self.data.append(values)?;
        let entry = |key: &str, value: &str| Message::default().bytes(1, key).bytes(2, value);
        let tensor = Message::default()
            .each(shape, |tensor, &dim| tensor.int(1, dim as i64)) // validated: at most 2^24
            .int(2, FLOAT)
            .bytes(8, name)
            .message(13, entry("location", DATA))
            .message(13, entry("offset", &offset.to_string()))
            .message(13, entry("length", &length.to_string()))
            .int(14, 1); // EXTERNAL
        self.add(5, tensor);
        Ok(())
    }

    fn add(&mut self, field: u32, message: Message) {
        self.graph = std::mem::take(&mut self.graph).message(field, message);
    }
}

impl Target for Export<'_> {
    type Error = ExportError;

    fn node(&mut self, node: Node<'_>) -> Result<(), ExportError> {
        let attribute = |node: Message, &(name, value): &(&str, Attribute)| {
            let named = Message::default().bytes(1, name);
            node.message(
                5,
                match value {
                    Attribute::Float(value) => named.float(2, value).int(20, 1),
                    Attribute::Int(value) => named.int(3, value).int(20, 2),
                },
            )
        };
        let message = Message::default()
            .each(node.inputs, |message, input| message.bytes(1, input))
            .each(node.outputs, |message, output| message.bytes(2, output))
            .bytes(3, node.outputs.first().copied().unwrap_or_default())
            .bytes(4, node.op)
            .each(node.attributes, attribute)
            .bytes(7, node.domain);
        self.add(1, message);
        Ok(())
    }

    fn weight(&mut self, name: &str, shape: &[usize]) -> Result<(), ExportError> {
        let (dtype, bytes) = read_tensor(self.source, name).map_err(BackendError::from)?;
        let mut floats = vec![0.0; shape.iter().product()]; // as many as there are bytes for
        widen(name, dtype, &bytes, &mut floats).map_err(BackendError::from)?;
        self.external(name, shape, &floats)
    }

    fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Result<Option<Layout>, ExportError> {
        self.weight(name, &shape)?;
        Ok(None)
    }

    fn integers(&mut self, name: &str, values: &[i64]) -> Result<(), ExportError> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let tensor =
            Message::default().int(1, values.len() as i64).int(2, INT64).bytes(8, name).bytes(9, bytes);
        self.add(5, tensor);
        Ok(())
    }

    fn floats(&mut self, name: &str, shape: [usize; 2], values: Vec<f32>) -> Result<(), ExportError> {
        self.external(name, &shape, &values)
    }
}
