//! The README's table of what runs where is the result of the conformance laws, on every engine that is compiled in, with a
//! model read from every format in every type.
//!
//! Each cell of an engine at hand is compared with what was found. With all engines compiled in, `LLAMA_UPDATE_README=1`
//! writes the table anew.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod fixtures {
    pub(crate) mod gguf;
    pub(crate) mod pth;
    pub(crate) mod random;
}
mod golden;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use fixtures::random::{Format, write};
use llama_backend::testing::{LAWS, OneModel, Outcome, RandomWeights, Suite, Tolerance};
use llama_backend::{Backend, ModelConfig, ModelSource};
use llama_core::checkpoint::{self, Checkpoint};
use llama_core::{BackendKind, DType, Device};

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
const BEGIN: &str = "<!-- support table: written by llama-core/tests/support_table.rs -->\n\n";
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
    let suite = Suite::on_model(backend, Tolerance::default(), &model);
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

/// The cells of a row of the README's table, by the heads of their columns.
fn written<'a>(table: &'a str, row: &Row) -> Option<Vec<&'a str>> {
    let cells = |line: &'a str| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>();
    table.lines().map(cells).find(|cells| cells[0] == row.what && cells[1] == row.dtype.to_string())
}

#[test]
fn the_readme_says_what_the_laws_say() {
    let readme = fs::read_to_string(README).unwrap();
    let start = readme.find(BEGIN).unwrap() + BEGIN.len();
    let end = start + readme[start..].find(END).unwrap();
    let engines = golden::engines();
    let folder = tempfile::tempdir().unwrap();

    let mut heads = vec!["checkpoint", "weights"];
    heads.extend(BackendKind::ALL.iter().map(|engine| engine.name()));
    let mut table = format!("| {} |\n|{}\n", heads.join(" | "), "---|".repeat(heads.len()));
    let mut wrong = Vec::new();
    for row in rows(folder.path()) {
        let old = written(&readme[start..end], &row).unwrap_or_default();
        let mut new = vec![row.what.clone(), row.dtype.to_string()];
        for (i, &engine) in BackendKind::ALL.iter().enumerate() {
            let old = old.get(i + 2).copied().unwrap_or("?");
            if !engines.contains(&engine) {
                new.push(old.to_owned());
                continue;
            }
            let backend = engine.open(Device::Cpu).unwrap();
            let found = match (&row.read, engine) {
                (Read::Graph(_), engine) if engine != BackendKind::Onnx => "–".to_owned(),
                _ => laws(&*backend, &row),
            };
            println!("{} {} on {engine}: {found}", row.what, row.dtype);
            if found != old {
                wrong.push(format!("{} {} on {engine}: {found}, the README says {old}", row.what, row.dtype));
            }
            new.push(found);
        }
        table += &format!("| {} |\n", new.join(" | "));
    }
    if std::env::var_os("LLAMA_UPDATE_README").is_some_and(|value| value == "1") {
        assert_eq!(engines, BackendKind::ALL, "every engine must be compiled in to write the whole table");
        fs::write(README, [&readme[..start], &table, "\n", &readme[end..]].concat()).unwrap();
        return;
    }
    assert!(wrong.is_empty(), "{} ({UPDATE} writes it)", wrong.join("\n"));
}
