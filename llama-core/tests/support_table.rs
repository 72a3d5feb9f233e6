//! The README's tables of what runs where. The first is the result of the conformance laws, on every engine that is compiled in, with a
//! model read from every format in every type, computed exactly. The second is how each type is kept and multiplied by default.
//!
//! Each cell of an engine at hand is compared with what was found. With all engines compiled in, `LLAMA_UPDATE_README=1`
//! writes the tables anew.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod fixtures {
    pub(crate) mod gguf;
    pub(crate) mod pth;
    pub(crate) mod random;
    pub(crate) mod random_gguf;
}
mod golden;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use fixtures::random::{self, Format, write};
use llama_backend::testing::{LAWS, OneModel, Outcome, RandomWeights, Suite, Tolerance};
use llama_backend::{
    Backend, Batch, Computation, LoadParams, Logits, ModelConfig, ModelSource, Run, Slot, TokenId, Want,
};
use llama_core::checkpoint::{self, Checkpoint};
use llama_core::{BackendKind, DType, Device};

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
const END: &str = "<!-- end of the support table -->";
const UPDATE: &str = "LLAMA_UPDATE_README=1";

/// What the laws say of a model on an engine.
fn laws(backend: &dyn Backend, row: &Row) -> String {
    let model = match &row.read {
        Read::Weights(opened) => {
            let weights = opened.weights_for(backend);
            OneModel { source: ModelSource::Weights(weights), weights: opened.weights() }
        }
        Read::Graph(model) => model.clone(),
    };
    let suite = Suite::on_model(backend, Tolerance::default(), &model).computing(Computation::Exact);
    let kept = LAWS.iter().filter(|law| match suite.check(law.name) {
        Ok(outcome) => outcome == Outcome::Kept,
        Err(violation) => panic!("{} {}: {violation}", row.what, row.dtype),
    });
    format!("{} of {} laws", kept.count(), LAWS.len())
}

/// A row: what is read, and of what type its matrices are.
struct Row {
    what: String,
    dtype: DType,
    read: Read,
}

enum Read {
    Weights(Checkpoint),
    /// For engines that run graphs.
    Graph(OneModel),
}

fn rows(folder: &Path) -> Vec<Row> {
    let mut rows = Vec::new();
    for format in Format::ALL {
        for &dtype in format.dtypes() {
            let folder = folder.join(format!("{format:?}-{dtype}"));
            fs::create_dir(&folder).unwrap();
            write(&folder, format, dtype);
            let read = Read::Weights(checkpoint::open(&folder).unwrap());
            rows.push(Row { what: format.to_string(), dtype, read });
        }
    }
    for (maker, name) in [("Optimum", "optimum"), ("onnxruntime-genai", "genai")] {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../llama-backend-onnx/tests/fixtures");
        let folder = fixtures.join(name);
        // Those of make_fixtures.py. genai_config.json does not say ffn_dim.
        let config = ModelConfig { ffn_dim: 172, ..checkpoint::open(&folder).unwrap().config().clone() };
        let source = ModelSource::Graph { path: folder.join("model.onnx"), config: config.clone() };
        let weights = Arc::new(RandomWeights::new(config, DType::F32, 7));
        let read = Read::Graph(OneModel { source, weights });
        rows.push(Row { what: format!("`model.onnx` of {maker}"), dtype: DType::F32, read });
    }
    rows
}

/// How an engine keeps and multiplies weights of a type, as it does by default.
fn how(backend: &dyn Backend, dtype: DType) -> String {
    let taken = backend.capabilities().dtypes.contains(&dtype);
    let kept = if taken { dtype } else { DType::F32 };
    let config = ModelConfig {
        dim: 4096,
        n_layers: 32,
        n_heads: 32,
        n_kv_heads: 32,
        head_dim: 128,
        ffn_dim: 11008,
        vocab_size: 32000,
        norm_eps: 1e-5,
        rope_theta: 1e4,
    };
    let bytes =
        backend.plan(&config, kept, &LoadParams::new(16, 1)).weights as f64 / config.n_params() as f64;
    let exact =
        !taken || logits(backend, dtype, Computation::Exact) == logits(backend, dtype, Computation::Fast);
    format!("{bytes:.2}, {}", if exact { "exact" } else { "8-bit activations" })
}

/// The logits of a few tokens.
fn logits(backend: &dyn Backend, dtype: DType, computation: Computation) -> Vec<f32> {
    let config = ModelConfig { dim: 256, head_dim: 64, ffn_dim: 512, ..random::config() };
    let source = ModelSource::Weights(Arc::new(RandomWeights::new(config, dtype, 3)));
    let mut params = LoadParams::new(16, 1);
    params.computation = computation;
    let mut model = backend.load(source, &params).unwrap();
    let tokens: Vec<TokenId> = (0..16).map(TokenId).collect();
    let run = Run { slot: Slot(0), start_pos: 0, tokens: &tokens, want: Want::All };
    let mut logits = Logits::new();
    model.forward(&Batch::new(&[run]), &mut logits).unwrap();
    logits.as_slice().to_vec()
}

/// A table in the README: what its rows are about, and what is found for a row on an engine.
struct Table<'a> {
    begin: &'static str,
    heads: [&'static str; 2],
    rows: Vec<[String; 2]>,
    found: &'a dyn Fn(usize, BackendKind) -> String,
}

impl Table<'_> {
    /// The README with this table as it was found, and the cells in which it was not so.
    fn check(&self, readme: &str, engines: &[BackendKind]) -> (String, Vec<String>) {
        let start = readme.find(self.begin).unwrap() + self.begin.len();
        let end = start + readme[start..].find(END).unwrap();
        let written = |row: &[String; 2]| {
            let cells =
                |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
            readme[start..end].lines().map(cells).find(|cells: &Vec<String>| cells.starts_with(row))
        };
        let mut heads = self.heads.map(str::to_owned).to_vec();
        heads.extend(BackendKind::ALL.iter().map(|engine| engine.name().to_owned()));
        let mut table = format!("\n\n| {} |\n|{}\n", heads.join(" | "), "---|".repeat(heads.len()));
        let mut wrong = Vec::new();
        for (i, row) in self.rows.iter().enumerate() {
            let old = written(row).unwrap_or_default();
            let mut new = row.to_vec();
            for (column, &engine) in BackendKind::ALL.iter().enumerate() {
                let old = old.get(column + 2).map_or("?", String::as_str);
                if !engines.contains(&engine) {
                    new.push(old.to_owned());
                    continue;
                }
                let found = (self.found)(i, engine);
                println!("{} {} on {engine}: {found}", row[0], row[1]);
                if found != old {
                    wrong.push(format!("{} {} on {engine}: {found}, the README says {old}", row[0], row[1]));
                }
                new.push(found);
            }
            table += &format!("| {} |\n", new.join(" | "));
        }
        ([&readme[..start], &table, "\n", &readme[end..]].concat(), wrong)
    }
}

#[test]
fn the_readme_says_what_is_found() {
    let readme = fs::read_to_string(README).unwrap();
    let engines = golden::engines();
    let folder = tempfile::tempdir().unwrap();
    let rows = rows(folder.path());
    let laws = Table {
        begin: "<!-- support table: written by llama-core/tests/support_table.rs -->",
        heads: ["checkpoint", "weights"],
        rows: rows.iter().map(|row| [row.what.clone(), row.dtype.to_string()]).collect(),
        found: &|row, engine| match (&rows[row].read, engine) {
            (Read::Graph(_), engine) if engine != BackendKind::Onnx => "–".to_owned(),
            _ => laws(&*engine.open(Device::Cpu).unwrap(), &rows[row]),
        },
    };
    let size = |dtype: DType| format!("{:.2}", dtype.size() as f64 / dtype.block_len() as f64);
    let hows = Table {
        begin: "<!-- table of types: written by llama-core/tests/support_table.rs -->",
        heads: ["weights", "bytes in a file"],
        rows: DType::ALL.iter().map(|&dtype| [dtype.to_string(), size(dtype)]).collect(),
        found: &|row, engine| how(&*engine.open(Device::Cpu).unwrap(), DType::ALL[row]),
    };
    let (readme, mut wrong) = laws.check(&readme, &engines);
    let (readme, more) = hows.check(&readme, &engines);
    wrong.extend(more);
    if std::env::var_os("LLAMA_UPDATE_README").is_some_and(|value| value == "1") {
        assert_eq!(engines, BackendKind::ALL, "every engine must be compiled in to write the whole tables");
        fs::write(README, readme).unwrap();
        return;
    }
    assert!(wrong.is_empty(), "{} ({UPDATE} writes it)", wrong.join("\n"));
}
