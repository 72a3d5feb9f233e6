//! What is exported is the model: the laws hold on it as on the checkpoint; and nothing is left of what could not be.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use llama_backend::testing::{OneModel, RandomWeights, Tolerance};
use llama_backend::{
    BackendError, DType, Device, ModelConfig, ModelSource, TensorInfo, WeightBytes, WeightError, WeightSource,
};
use llama_backend_onnx::{ExportError, OnnxBackend, export_onnx};

fn config() -> ModelConfig {
    ModelConfig {
        dim: 32,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 6,
        ffn_dim: 43,
        vocab_size: 61,
        norm_eps: 1e-5,
        rope_theta: 10_000.0,
    }
}

fn weights(dtype: DType) -> RandomWeights {
    RandomWeights::new(config(), dtype, 3)
}

/// The model in a folder that is there as long as the tests run; its weights were f16.
fn exported() -> OneModel {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        export_onnx(&weights(DType::F16), 512, folder.path().join("model")).unwrap();
        folder
    });
    let path = folder.path().join("model").join("model.onnx");
    OneModel { source: ModelSource::Graph { path, config: config() }, weights: Arc::new(weights(DType::F16)) }
}

mod laws {
    use super::{Device, OnnxBackend, Tolerance, exported};

    llama_backend::conformance_tests!(
        OnnxBackend::new(Device::Cpu).unwrap(),
        Tolerance::default(),
        exported()
    );
}

/// How many files and folders there are.
fn entries(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

/// Weights of which one cannot be read.
#[derive(Debug)]
struct Unreadable(RandomWeights);

impl WeightSource for Unreadable {
    fn config(&self) -> &ModelConfig {
        self.0.config()
    }

    fn info(&self, name: &str) -> Result<TensorInfo, WeightError> {
        self.0.info(name)
    }

    fn bytes(&self, name: &str) -> Result<WeightBytes, WeightError> {
        if name == "layers.1.ffn_norm.weight" {
            let source = "the disk is on fire".into();
            return Err(WeightError::Read { file: "checkpoint".into(), tensor: name.to_owned(), source });
        }
        self.0.bytes(name)
    }

    fn read_slice(&self, _: &str, _: usize, _: Range<usize>, _: &mut [u8]) -> Result<(), WeightError> {
        Err(WeightError::Slice { tensor: "any".to_owned(), what: "whole tensors are read".to_owned() })
    }
}

#[test]
fn a_failed_export_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("model");
    let error = export_onnx(&Unreadable(weights(DType::F32)), 64, &dir).unwrap_err();
    assert!(matches!(error, ExportError::Checkpoint(BackendError::Weights(_))), "{error:?}");
    let error = export_onnx(&weights(DType::F32), 0, &dir).unwrap_err();
    assert!(error.to_string().contains("max_seq_len"), "{error}");
    let broken = ModelConfig { n_kv_heads: 3, ..config() };
    let error = export_onnx(&RandomWeights::new(broken, DType::F32, 3), 64, &dir).unwrap_err();
    assert!(matches!(error, ExportError::Checkpoint(BackendError::Config { .. })), "{error:?}");
    assert_eq!(entries(folder.path()), 0);
}

#[test]
fn what_is_there_is_not_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let error = export_onnx(&weights(DType::F32), 64, folder.path()).unwrap_err();
    assert!(matches!(error, ExportError::Exists { .. }), "{error:?}");
    assert_eq!(entries(folder.path()), 0);
}

#[test]
fn the_folder_holds_the_graph_its_tensors_and_the_shape() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("model");
    export_onnx(&weights(DType::F32), 64, &dir).unwrap();
    assert_eq!((entries(folder.path()), entries(&dir)), (1, 3));
    let size = |name: &str| std::fs::metadata(dir.join(name)).unwrap().len();
    assert!(size("model.onnx.data") >= 4 * config().n_params());
    assert!(size("model.onnx") < 64 << 10, "{} bytes for a graph", size("model.onnx"));
    assert!(std::fs::read_to_string(dir.join("config.json")).unwrap().contains("\"head_dim\": 6"));
}
