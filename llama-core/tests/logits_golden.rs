//! The forward pass against the reference's: logits at every position, of every kind of checkpoint.
//!
//! Quantised files are asked twice. Computed exactly, they give the reference's numbers on the dequantised weights; computed fast, they lie
//! about as far from those as llama.cpp does on the same file, which the golden file says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod golden;

use std::collections::{BTreeMap, HashMap};

use golden::{Check, Golden, TOLERANCE, close, ids};
use llama_backend::{
    Batch, Computation, Device, LoadParams, Logits, Model, ModelSource, Run, Slot, TokenId, Want,
};
use llama_core::{BackendKind, checkpoint};
use serde::Deserialize;
use serde_json::Value;

/// Positions of the longest case.
const MAX_SEQ_LEN: usize = 512;

#[derive(Deserialize)]
struct LogitsCase {
    checkpoint: String,
    positions: Vec<Position>,
    last_logits: Vec<f32>,
}

/// The logits after the tokens up to `pos`, or up to the position's own place in the list.
#[derive(Deserialize)]
struct Position {
    pos: Option<usize>,
    top_ids: Vec<usize>,
    top_logits: Vec<f32>,
    sum: f64,
    l2: f64,
    logsumexp: f64,
}

#[derive(Deserialize)]
struct RandomCase {
    last_logits: Vec<f32>,
    top_ids: Vec<usize>,
}

/// A model per checkpoint, loaded on one engine when it is first asked for.
struct Models {
    engine: BackendKind,
    computation: Computation,
    loaded: HashMap<String, Box<dyn Model>>,
}

impl Models {
    fn on(engine: BackendKind) -> Self {
        Self { engine, computation: Computation::Exact, loaded: HashMap::new() }
    }

    fn fast(engine: BackendKind) -> Self {
        Self { computation: Computation::Fast, ..Self::on(engine) }
    }

    /// All rows of logits of `tokens`; `None` where the checkpoint is absent and may be.
    fn logits(&mut self, name: &str, tokens: &[TokenId]) -> Option<Logits> {
        if !self.loaded.contains_key(name) {
            let backend = self.engine.open(Device::Cpu).unwrap();
            let weights = checkpoint::open(golden::data(name)?).unwrap().weights_for(&*backend);
            let mut params = LoadParams::new(MAX_SEQ_LEN, 1);
            params.max_batch_tokens = MAX_SEQ_LEN;
            params.computation = self.computation;
            self.loaded
                .insert(name.to_owned(), backend.load(ModelSource::Weights(weights), &params).unwrap());
        }
        let model = self.loaded.get_mut(name)?;
        let mut logits = Logits::new();
        let run = Run { slot: Slot(0), start_pos: 0, tokens, want: Want::All };
        model.forward(&Batch::new(&[run]), &mut logits).unwrap();
        model.truncate(Slot(0), 0).unwrap();
        Some(logits)
    }
}

fn near(what: &str, expected: f64, found: f64, tolerance: f64) -> Check {
    // A NaN is near nothing.
    if (expected - found).abs() <= tolerance {
        return Ok(());
    }
    Err(format!("{what}: expected {expected}, found {found}"))
}

fn check_position(position: &Position, row: &[f32]) -> Check {
    let tolerance = f64::from(TOLERANCE);
    let n = row.len() as f64;
    let wide = || row.iter().copied().map(f64::from);
    let top: Vec<f32> = position.top_ids.iter().map(|&id| row[id]).collect();
    close("top logits", &position.top_logits, &top)?;
    // Sums of n logits, each within the tolerance.
    near("sum", position.sum, wide().sum(), tolerance * n)?;
    near("l2", position.l2, wide().map(|x| x * x).sum::<f64>().sqrt(), tolerance * n.sqrt())?;
    near("logsumexp", position.logsumexp, wide().map(f64::exp).sum::<f64>().ln(), tolerance)
}

#[test]
fn logits_stories260k() {
    let Some(golden) = Golden::load("logits_stories260k.json") else { return };
    for engine in golden::engines() {
        check_logits(&golden, engine);
    }
}

fn check_logits(golden: &Golden, engine: BackendKind) {
    let mut models = Models::on(engine);
    golden.check_on(engine, |json| {
        let case: LogitsCase = serde_json::from_value(json.clone()).map_err(|error| error.to_string())?;
        let tokens = ids(&json["tokens"]);
        let Some(logits) = models.logits(&case.checkpoint, &tokens) else { return Ok(()) };
        for (i, position) in case.positions.iter().enumerate() {
            let pos = position.pos.unwrap_or(i);
            let row = logits.row(pos).ok_or_else(|| format!("no row {pos}"))?;
            check_position(position, row).map_err(|wrong| format!("position {pos}: {wrong}"))?;
        }
        close("last logits", &case.last_logits, logits.rows().last().unwrap_or_default())
    });
}

/// The cases of the .pth, asked of the same model from Hugging Face's layout too, and those of each GGUF file.
#[test]
fn random256() {
    let Some(golden) = Golden::load("random256.json") else { return };
    let is_gguf = |case: &Value| golden::text(&case["path"]).ends_with(".gguf");
    for engine in golden::engines() {
        let mut models = Models::on(engine);
        for checkpoint in ["random256", "random256-hf"] {
            let note = format!("{checkpoint}, {engine}");
            golden.check_where(
                "cases",
                &note,
                |case| !is_gguf(case),
                |json| check_random(&mut models, checkpoint, json),
            );
        }
        golden.check_where("cases", &format!("GGUF, {engine}"), is_gguf, |json| {
            check_random(&mut models, golden::text(&json["path"]), json)
        });
    }
}

fn check_random(models: &mut Models, checkpoint: &str, json: &Value) -> Check {
    let case: RandomCase = serde_json::from_value(json.clone()).map_err(|error| error.to_string())?;
    let Some(logits) = models.logits(checkpoint, &ids(&json["tokens"])) else { return Ok(()) };
    let last = logits.rows().last().unwrap_or_default();
    close(checkpoint, &case.last_logits, last)?;
    let descending = case.top_ids.is_sorted_by(|&a, &b| last[a] >= last[b] - TOLERANCE);
    golden::same("top ids are in order", &true, &descending)
}

/// Each file's weights as ggml dequantises them, through the reference's model.
#[test]
fn gguf_stories260k() {
    let Some(golden) = Golden::load("gguf_stories260k.json") else { return };
    for engine in golden::engines() {
        let mut models = Models::on(engine);
        golden.check_on(engine, |json| {
            let file = format!("stories260K-gguf/{}", golden::text(&json["file"]));
            let case: RandomCase =
                serde_json::from_value(json["dequant_f32"].clone()).map_err(|error| error.to_string())?;
            let Some(logits) = models.logits(&file, &ids(&json["tokens"])) else { return Ok(()) };
            close(&file, &case.last_logits, logits.rows().last().unwrap_or_default())
        });
    }
}

/// The largest distance of a file's logits from the golden ones, and llama.cpp's.
#[derive(Default, Clone, Copy)]
struct Distance {
    ours: f32,
    theirs: f32,
}

/// How much farther than llama.cpp an engine may lie when it computes fast.
fn margin(engine: BackendKind) -> f32 {
    match engine {
        // It rounds as llama.cpp does, activations by blocks of 32, and as the largest of some hundred chances either is the farther one on some
        // files: 0.63 to 1.16 times as far where this was written. Its kernels differ from processor to processor.
        BackendKind::Onnx => 1.5,
        _ => 1.0,
    }
}

/// Fast, on every engine: not farther from the golden logits than llama.cpp, file by file.
fn fast_is_as_near_as_llama_cpp(
    golden: &Golden,
    meant: impl Fn(&Value) -> bool,
    case: impl Fn(&Value) -> (String, Vec<f32>, f32),
) {
    let mut farther = Vec::new();
    for engine in golden::engines() {
        let mut models = Models::fast(engine);
        let mut files: BTreeMap<String, Distance> = BTreeMap::new();
        golden.check_where("cases", &format!("{engine}, fast"), &meant, |json| {
            let (file, expected, theirs) = case(json);
            let Some(logits) = models.logits(&file, &ids(&json["tokens"])) else { return Ok(()) };
            let last = logits.rows().last().unwrap_or_default();
            golden::same("vocabulary", &expected.len(), &last.len())?;
            // A NaN is farther than anything.
            let apart = expected
                .iter()
                .zip(last)
                .map(|(a, b)| if b.is_nan() { f32::INFINITY } else { (a - b).abs() });
            let file = files.entry(file).or_default();
            file.ours = apart.fold(file.ours, f32::max);
            file.theirs = file.theirs.max(theirs);
            Ok(())
        });
        for (file, Distance { ours, theirs }) in files {
            println!("{file} on {engine}, fast: {ours:.4} from the golden logits, llama.cpp {theirs:.4}");
            // Files of plain types are as exact as ever, and llama.cpp may be equal to the reference there.
            if ours > (theirs * margin(engine)).max(TOLERANCE) {
                farther.push(format!("{file} on {engine}: {ours}, llama.cpp {theirs}"));
            }
        }
    }
    assert!(farther.is_empty(), "{}", farther.join("\n"));
}

#[test]
fn fast_gguf_stories260k() {
    let Some(golden) = Golden::load("gguf_stories260k.json") else { return };
    fast_is_as_near_as_llama_cpp(
        &golden,
        |_| true,
        |json| {
            let file = format!("stories260K-gguf/{}", golden::text(&json["file"]));
            let case: RandomCase = serde_json::from_value(json["dequant_f32"].clone()).unwrap();
            (file, case.last_logits, golden::float(&json["llama_cpp"]["max_abs_logit_diff_vs_dequant"]))
        },
    );
}

#[test]
fn fast_random256() {
    let Some(golden) = Golden::load("random256.json") else { return };
    let is_gguf = |case: &Value| golden::text(&case["path"]).ends_with(".gguf");
    fast_is_as_near_as_llama_cpp(&golden, is_gguf, |json| {
        let case: RandomCase = serde_json::from_value(json.clone()).unwrap();
        (
            golden::text(&json["path"]).to_owned(),
            case.last_logits,
            golden::float(&json["llama_cpp_max_abs_diff"]),
        )
    });
}
