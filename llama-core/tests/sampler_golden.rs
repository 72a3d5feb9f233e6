//! Top-p against the reference's `sample_top_p`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panic")]

mod golden;

use golden::{Check, Golden, float, same, text};
use llama_core::sampler::{Kept, Sampler, SamplingError, SamplingOptions, softmax, top_p};
use serde_json::Value;

/// What the sampler would draw from, by its parts.
fn kept(logits: &[f32], options: &SamplingOptions) -> Result<Vec<Kept>, SamplingError> {
    options.validate()?;
    let mut probs = logits.to_vec();
    softmax(&mut probs, options.temperature)?;
    Ok(top_p(&probs, options.top_p))
}

fn numbers(list: &Value) -> Vec<usize> {
    list.as_array().into_iter().flatten().map(|id| id.as_u64().unwrap() as usize).collect()
}

/// The group of equal probabilities that a token belongs to, named by its first; most are alone.
fn group(tied: &[Vec<usize>], id: usize) -> usize {
    tied.iter().find(|group| group.contains(&id)).map_or(id, |group| group[0])
}

fn case(vectors: &Value, case: &Value) -> Check {
    let logits: Vec<f32> = vectors[text(&case["logits"])].as_array().unwrap().iter().map(float).collect();
    let options = SamplingOptions {
        temperature: case["temperature"].as_f64().unwrap(),
        top_p: case["p"].as_f64().unwrap(),
        ..Default::default()
    };
    let found = kept(&logits, &options);
    let sampled = Sampler::new(options.clone(), 1, 0).and_then(|mut sampler| sampler.sample(&logits));
    if case.get("error").is_some() {
        same("sample", &found.as_ref().err(), &sampled.as_ref().err())?;
        return found.map_or(Ok(()), |kept| Err(format!("expected an error, kept {}", kept.len())));
    }
    let found = found.map_err(|e| e.to_string())?;
    let id = sampled.map_err(|e| e.to_string())?;
    if !found.iter().any(|kept| kept.id == id) {
        return Err(format!("sampled {id}, which is not kept"));
    }
    let mut probs = logits.clone();
    softmax(&mut probs, options.temperature).map_err(|e| e.to_string())?;
    let range = numbers(&Value::from(vec![case["n_kept_min"].clone(), case["n_kept_max"].clone()]));
    if !(range[0]..=range[1]).contains(&found.len()) {
        return Err(format!("n_kept: expected {range:?}, found {}", found.len()));
    }
    let tied: Vec<Vec<usize>> =
        case.get("tied_groups").and_then(Value::as_array).into_iter().flatten().map(numbers).collect();
    let same_number = found.len() == case["n_kept"].as_u64().unwrap() as usize;
    let expected_probs = case["kept_probs"].as_array().unwrap();
    for (i, expected) in numbers(&case["kept_idx"]).into_iter().enumerate().take(found.len()) {
        let Kept { id, prob } = found[i];
        // torch's sort leaves equals in any order, and a cut among equals keeps any of them.
        if probs[id.0 as usize] != probs[expected] {
            same("kept_idx", &group(&tied, expected), &group(&tied, id.0 as usize))?;
        }
        let expected = float(&expected_probs[i]);
        // The probabilities depend on how many are kept only by the tail's share.
        let tolerance = if same_number { 1e-6 + 1e-5 * expected } else { 1e-5 };
        if (prob - expected).abs() > tolerance {
            return Err(format!("kept_probs[{i}]: expected {expected}, found {prob}"));
        }
    }
    Ok(())
}

#[test]
fn sampling_top_p() {
    let Some(golden) = Golden::load("sampling_top_p.json") else {
        return;
    };
    golden.check("cases", |c| case(&golden.json["vectors"], c));
}
