//! What ranks on several hosts can be expected to reach: a cost model of a step, fitted to the record of the program `ranks`.
//!
//! A step takes `compute / N + exchanges × latency + bytes / bandwidth`. Exchanges and bytes are counted from the model's shape and the way that the
//! communicator sums ([`Traffic`]); a link's latency and bandwidth come from the sums that were measured on it, of one number and of the most; what a
//! step computes is the one number that is fitted, for each model, to all links together.

use std::collections::BTreeMap;

use llama_backend::ModelConfig;
use llama_parallel_mpi::Traffic;

use crate::random_model::{FileType, Shape};

/// What a step of so many tokens sends, the logits of one wanted: what to do is told, two sums a layer, the logits gathered.
#[must_use]
pub fn step_traffic(config: &ModelConfig, tokens: usize, size: usize) -> Traffic {
    let sum = Traffic::of_sum(tokens * config.dim, size);
    let sums = 2 * config.n_layers;
    let told = size.next_power_of_two().ilog2() as usize; // a tree
    Traffic {
        exchanges: told + sums * sum.exchanges + usize::from(size > 1),
        bytes: sums * sum.bytes + config.vocab_size * size_of::<f32>() * (size - 1) / size,
    }
}

/// What is between two ranks.
#[derive(Debug, Clone, PartialEq)]
pub struct Link {
    /// What it is called.
    pub name: String,
    /// Seconds that an exchange of nothing takes.
    pub latency: f64,
    /// Bytes a second, each way.
    pub bandwidth: f64,
}

impl Link {
    /// Seconds that so much takes.
    #[must_use]
    pub fn seconds(&self, traffic: Traffic) -> f64 {
        traffic.exchanges as f64 * self.latency + traffic.bytes as f64 / self.bandwidth
    }
}

/// A step that was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Shape and type.
    pub model: String,
    /// The shape.
    pub config: ModelConfig,
    /// `prefill` or `decode`.
    pub phase: String,
    /// How many tokens it has.
    pub tokens: usize,
    /// How many ranks.
    pub ranks: usize,
    /// What is between them.
    pub link: Link,
    /// How long it took, in seconds: the median.
    pub seconds: f64,
}

impl Step {
    /// Seconds of it that the link takes, by the model.
    #[must_use]
    pub fn sent(&self) -> f64 {
        self.link.seconds(step_traffic(&self.config, self.tokens, self.ranks))
    }
}

/// What is wrong with a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// A column that is not there.
    #[error("the record has no column {0:?}")]
    NoColumn(&'static str),
    /// A field that is no number.
    #[error("line {line}: {column} is {found:?}, expected a number")]
    Number {
        /// The line, from 1.
        line: usize,
        /// The column.
        column: &'static str,
        /// What it holds.
        found: String,
    },
}

/// What was measured in one run: its medians, by measure.
type Run = BTreeMap<String, Vec<f64>>;

/// The steps of random models on ranks, each with the link of its own run; the last run counts of those with the same model, link and ranks.
///
/// # Errors
///
/// [`RecordError`].
pub fn steps(csv: &str) -> Result<Vec<Step>, RecordError> {
    let mut lines = csv.lines();
    let header: Vec<_> = lines.next().unwrap_or_default().split(',').collect();
    let columns = ["date", "link", "model", "ranks", "measure", "seconds"]
        .map(|name| header.iter().position(|&column| column == name).ok_or(RecordError::NoColumn(name)));
    let [date, link, model, ranks, measure, seconds] = columns;
    let (date, link, model, ranks, measure, seconds) = (date?, link?, model?, ranks?, measure?, seconds?);
    let mut order: Vec<(String, String, usize)> = Vec::new();
    let mut runs: BTreeMap<(String, String, usize), (String, Run)> = BTreeMap::new();
    for (i, line) in lines.enumerate() {
        let fields: Vec<_> = line.split(',').collect();
        let field = |column: usize| fields.get(column).copied().unwrap_or_default().to_owned();
        let wrong = |column, found: String| RecordError::Number { line: i + 2, column, found };
        let size = field(ranks).parse().map_err(|_| wrong("ranks", field(ranks)))?;
        let time: f64 = field(seconds).parse().map_err(|_| wrong("seconds", field(seconds)))?;
        let key = (field(model), field(link), size);
        let (last, run) = runs.entry(key.clone()).or_default();
        if *last != field(date) {
            *last = field(date);
            run.clear();
        }
        run.entry(field(measure)).or_default().push(time);
        if !order.contains(&key) {
            order.push(key);
        }
    }
    Ok(order.iter().flat_map(|key| steps_of(key, &runs[key].1)).collect())
}

fn steps_of((model, link, ranks): &(String, String, usize), run: &Run) -> Vec<Step> {
    let config = model.split_once(' ').and_then(|(shape, _)| shape.parse::<Shape>().ok());
    let (Some(config), Some(link)) = (config.map(Shape::config), link_of(link, *ranks, run)) else {
        return Vec::new(); // no random model, or no sums
    };
    let step = |(measure, times): (&String, &Vec<f64>)| {
        let (phase, tokens) = measure.split_once('_')?;
        let tokens: usize = tokens.parse().ok()?;
        let seconds = median(times);
        // A prompt is one step, an answer one for each token.
        let (tokens, seconds) = match phase {
            "prefill" => (tokens, seconds),
            "decode" => (1, seconds / tokens as f64),
            _ => return None,
        };
        let (model, phase, link) = (model.clone(), phase.to_owned(), link.clone());
        Some(Step { model, config: config.clone(), phase, tokens, ranks: *ranks, link, seconds })
    };
    run.iter().filter_map(step).collect()
}

/// The link, by the sums of one number and of the most.
fn link_of(name: &str, ranks: usize, run: &Run) -> Option<Link> {
    let sums = run.iter().filter_map(|(measure, times)| {
        let len: usize = measure.strip_prefix("sum_")?.parse().ok()?;
        Some((len, median(times)))
    });
    let sums: BTreeMap<usize, f64> = sums.collect();
    let latency = *sums.get(&1)?;
    let (&len, &seconds) = sums.last_key_value()?;
    let traffic = Traffic::of_sum(len, ranks);
    let bandwidth = traffic.bytes as f64 / (seconds - traffic.exchanges as f64 * latency);
    Some(Link { name: name.to_owned(), latency, bandwidth })
}

fn median(times: &[f64]) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What the ranks compute in a step, in seconds: such that the relative errors' squares are least.
#[must_use]
pub fn fit(steps: &[&Step]) -> f64 {
    let weighted =
        |of: fn(&Step) -> f64| steps.iter().map(|step| of(step) / step.seconds.powi(2)).sum::<f64>();
    weighted(|step| step.seconds - step.sent()) / weighted(|_| 1.0)
}

/// Bytes of a model's matrices that a token of an answer reads: all but the embeddings.
#[must_use]
pub fn bytes_read(config: &ModelConfig, file_type: FileType) -> f64 {
    matrices(config)
        .map(|(name, n)| {
            let dtype = file_type.dtype_of(&name, config.n_layers);
            n as f64 / dtype.block_len() as f64 * dtype.size() as f64
        })
        .sum()
}

/// Multiplications and additions of a token in these matrices.
#[must_use]
pub fn flops(config: &ModelConfig) -> f64 {
    matrices(config).map(|(_, n)| 2.0 * n as f64).sum()
}

fn matrices(config: &ModelConfig) -> impl Iterator<Item = (String, usize)> {
    config.tensors().filter_map(|(name, shape)| match shape[..] {
        [rows, columns] if name != "tok_embeddings.weight" => Some((name, rows * columns)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_sends_two_sums_a_layer_and_its_logits() {
        let config = Shape::Llama7B.config();
        let traffic = step_traffic(&config, 1, 2);
        assert_eq!(traffic, Traffic { exchanges: 1 + 64 + 1, bytes: 64 * 4096 * 4 + 64_000 });
        assert_eq!(step_traffic(&config, 1, 1), Traffic { exchanges: 0, bytes: 0 });
    }

    #[test]
    fn what_was_put_into_a_record_is_found_again() {
        let config = Shape::TinyLlama.config();
        let compute = 0.02;
        let mut csv = "date,link,model,ranks,measure,round,seconds\n".to_owned();
        let links = [("near", 2e-6, 5e9), ("far", 5e-4, 1.25e8)];
        for (name, latency, bandwidth) in links {
            let link = Link { name: name.to_owned(), latency, bandwidth };
            let decode = compute + link.seconds(step_traffic(&config, 1, 2));
            for (date, factor) in [("yesterday", 3.0), ("today", 1.0)] {
                for (measure, seconds) in [
                    ("sum_1", link.seconds(Traffic::of_sum(1, 2)) - 4.0 / bandwidth),
                    ("sum_2097152", link.seconds(Traffic::of_sum(1 << 21, 2))),
                    ("decode_64", decode * 64.0),
                    ("decode_64_alone", 1.0),
                ] {
                    csv += &format!("{date},{name},tinyllama q4_0,2,{measure},0,{:.12}\n", seconds * factor);
                }
            }
        }
        let steps = steps(&csv).unwrap();
        assert_eq!(steps.iter().map(|step| &step.link.name[..]).collect::<Vec<_>>(), ["near", "far"]);
        for (step, (_, latency, bandwidth)) in steps.iter().zip(links) {
            assert!((step.link.latency / latency - 1.0).abs() < 1e-6, "{step:?}");
            assert!((step.link.bandwidth / bandwidth - 1.0).abs() < 1e-6, "{step:?}");
        }
        let found = fit(&steps.iter().collect::<Vec<_>>());
        assert!((found / compute - 1.0).abs() < 1e-6, "{found}");
        assert_eq!(super::steps("date,link\n"), Err(RecordError::NoColumn("model")));
    }

    #[test]
    fn a_token_reads_every_matrix_but_the_embeddings() {
        let config = Shape::Llama7B.config();
        let f16 = bytes_read(&config, FileType::Plain(llama_backend::DType::F16));
        assert!((f16 / 1e9 - 13.21).abs() < 0.01, "{f16}");
        assert!((flops(&config) - f16).abs() < 1.0);
    }
}
