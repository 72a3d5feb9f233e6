//! The command line, and which flags belong together.

use std::path::PathBuf;

use llama_core::BackendKind;

use crate::engine::Choices;
use crate::random_model::{FileType, RandomModel, Shape};

/// Measures how fast a checkpoint answers.
///
/// Several values, separated by commas, measure each. `pp512` is a prompt of 512 tokens, `tg128` the 128 tokens after it, one at a time;
/// `@ d1024`: after 1024 others; `x8`: eight sequences at a time, the tokens of all of them counted.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "llama-bench", version)]
pub struct Flags {
    /// The checkpoint: a GGUF file, or a folder of any layout that llama-core opens
    #[arg(short = 'm', long = "model", value_name = "FILE_OR_DIR")]
    pub model: Option<PathBuf>,
    /// Tokens of the prompts; 0 for none
    #[arg(short = 'p', long, value_delimiter = ',', default_value = "512")]
    pub n_prompt: Vec<usize>,
    /// Tokens to generate; 0 for none
    #[arg(short = 'n', long, value_delimiter = ',', default_value = "128")]
    pub n_gen: Vec<usize>,
    /// Sequences that are generated at a time
    #[arg(short = 'b', long, value_delimiter = ',', default_value = "1")]
    pub batch: Vec<usize>,
    /// Tokens that one forward pass of a prompt may hold
    #[arg(long, default_value_t = 512)]
    pub ubatch: usize,
    /// Threads [default: as many as the process may use]
    #[arg(short = 't', long, value_delimiter = ',')]
    pub threads: Vec<usize>,
    /// Positions that are filled before the measurement
    #[arg(short = 'd', long = "n-depth", value_delimiter = ',', default_value = "0")]
    pub depth: Vec<usize>,
    /// Measurements of each
    #[arg(short = 'r', long, default_value_t = 5)]
    pub repetitions: usize,
    /// The engine: candle, tch or onnx
    #[arg(long, default_value = "candle")]
    pub backend: BackendKind,
    /// How the engine computes, and keeps its cache
    #[command(flatten)]
    pub choices: Choices,
    /// How the result is printed
    #[arg(short = 'o', long, value_enum, default_value_t = Output::Md)]
    pub output: Output,
    /// A random model of this shape instead of a checkpoint: tinyllama, 7b, 13b or 70b
    #[arg(long, value_name = "SHAPE")]
    pub random: Option<Shape>,
    /// The type of the random model: f32, f16, bf16, q8_0, q4_0, q4_K, q4_K_M and on [default: q4_0]
    #[arg(long = "type", value_name = "TYPE")]
    pub file_type: Option<FileType>,
    /// Every matrix of the random model in that type, the output too
    #[arg(long)]
    pub pure: bool,
    /// Where random numbers come from
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write the random model to a GGUF file, and measure nothing
    #[arg(long, value_name = "FILE.gguf")]
    pub write: Option<PathBuf>,
}

/// How the result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// A Markdown table.
    Md,
    /// An array of objects, one for each row of the table.
    Json,
}

/// Flags that make no sense, alone or together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FlagError {
    /// Nothing to measure or to write.
    #[error("no model: give a checkpoint with -m, or a shape with --random")]
    NoModel,
    /// Two models.
    #[error("two models: -m and --random exclude each other")]
    TwoModels,
    /// A flag about random models beside a checkpoint.
    #[error("{flag} says how a random model is made: it needs --random")]
    NeedsRandom {
        /// The flag.
        flag: &'static str,
    },
    /// A number below the least that makes sense.
    #[error("{flag} is {found}, expected {expected}")]
    Number {
        /// The flag.
        flag: &'static str,
        /// Its value.
        found: usize,
        /// What would have been accepted.
        expected: &'static str,
    },
    /// Neither a prompt nor an answer.
    #[error("nothing to measure: -p and -n are both 0")]
    NothingToMeasure,
}

/// What the flags ask for.
#[derive(Debug, Clone, PartialEq)]
pub enum Job {
    /// To write a random model.
    Write {
        /// The model.
        model: RandomModel,
        /// The file.
        to: PathBuf,
    },
    /// To measure.
    Measure {
        /// Of which model.
        model: ModelFrom,
        /// What.
        plan: Plan,
    },
}

/// Where the model comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelFrom {
    /// A checkpoint.
    Checkpoint(PathBuf),
    /// A random one.
    Random(RandomModel),
}

/// What is measured. Every combination of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Tokens of prompts.
    pub prompts: Vec<usize>,
    /// Tokens of answers.
    pub answers: Vec<usize>,
    /// Sequences that are answered at a time.
    pub batches: Vec<usize>,
    /// Positions filled before.
    pub depths: Vec<usize>,
    /// Threads.
    pub threads: Vec<usize>,
    /// Tokens of a forward pass.
    pub max_batch_tokens: usize,
    /// Measurements of each.
    pub repetitions: usize,
    /// Where tokens come from.
    pub seed: u64,
}

impl Flags {
    /// What they ask for.
    ///
    /// # Errors
    ///
    /// [`FlagError`] names the flag.
    pub fn job(&self) -> Result<Job, FlagError> {
        let model = match (&self.model, self.random) {
            (None, None) => return Err(FlagError::NoModel),
            (Some(_), Some(_)) => return Err(FlagError::TwoModels),
            (Some(path), None) => ModelFrom::Checkpoint(path.clone()),
            (None, Some(shape)) => ModelFrom::Random(RandomModel {
                config: shape.config(),
                name: format!("random {}", shape.name()),
                file_type: self.file_type.unwrap_or(FileType::Plain(llama_backend::DType::Q4_0)),
                pure: self.pure,
                seed: self.seed,
            }),
        };
        let model = match (model, &self.write) {
            (ModelFrom::Random(model), Some(to)) => return Ok(Job::Write { model, to: to.clone() }),
            (model, _) => model,
        };
        let of_random =
            [("--type", self.file_type.is_some()), ("--pure", self.pure), ("--write", self.write.is_some())];
        if let (Some(&(flag, _)), ModelFrom::Checkpoint(_)) = (of_random.iter().find(|flag| flag.1), &model) {
            return Err(FlagError::NeedsRandom { flag });
        }
        Ok(Job::Measure { model, plan: self.plan()? })
    }

    fn plan(&self) -> Result<Plan, FlagError> {
        let threads = match &*self.threads {
            [] => vec![std::thread::available_parallelism().map_or(1, usize::from)],
            given => given.to_vec(),
        };
        let positive: [(&'static str, &[usize]); 4] = [
            ("-b", &self.batch),
            ("-t", &threads),
            ("-r", &[self.repetitions]),
            ("--ubatch", &[self.ubatch]),
        ];
        for (flag, found) in positive {
            if found.contains(&0) {
                return Err(FlagError::Number { flag, found: 0, expected: "at least 1" });
            }
        }
        // Sums of them are computed with.
        const LIMIT: usize = 1 << 24;
        for (flag, found) in [("-p", &self.n_prompt), ("-n", &self.n_gen), ("-d", &self.depth)] {
            if let Some(&found) = found.iter().find(|&&n| n > LIMIT) {
                return Err(FlagError::Number { flag, found, expected: "at most 16777216" });
            }
        }
        let without_zeros = |n: &[usize]| n.iter().copied().filter(|&n| n > 0).collect::<Vec<_>>();
        let (prompts, answers) = (without_zeros(&self.n_prompt), without_zeros(&self.n_gen));
        if prompts.is_empty() && answers.is_empty() {
            return Err(FlagError::NothingToMeasure);
        }
        Ok(Plan {
            prompts,
            answers,
            batches: self.batch.clone(),
            depths: self.depth.clone(),
            threads,
            max_batch_tokens: self.ubatch,
            repetitions: self.repetitions,
            seed: self.seed,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn flags(line: &str) -> Flags {
        Flags::try_parse_from(std::iter::once("llama-bench").chain(line.split_whitespace())).unwrap()
    }

    fn job(line: &str) -> Result<Job, FlagError> {
        flags(line).job()
    }

    #[test]
    fn llama_cpps_defaults_are_ours() {
        let Job::Measure { model, plan } = job("-m file.gguf").unwrap() else { panic!("a measurement") };
        assert_eq!(model, ModelFrom::Checkpoint("file.gguf".into()));
        assert_eq!((plan.prompts, plan.answers, plan.repetitions), (vec![512], vec![128], 5));
        assert_eq!((plan.batches, plan.depths, plan.max_batch_tokens), (vec![1], vec![0], 512));
        assert_eq!(plan.threads, [std::thread::available_parallelism().unwrap().get()]);
    }

    #[test]
    fn lists_are_separated_by_commas_and_zero_is_none() {
        let Job::Measure { plan, .. } = job("-m . -p 0 -n 16,64 -b 1,8 -t 1,2 -d 0,2048 -r 3").unwrap()
        else {
            panic!("a measurement")
        };
        assert_eq!((plan.prompts, plan.answers), (vec![], vec![16, 64]));
        assert_eq!((plan.batches, plan.threads, plan.depths), (vec![1, 8], vec![1, 2], vec![0, 2048]));
    }

    #[test]
    fn a_random_model_is_written_or_measured() {
        let made = |line: &str| match job(line).unwrap() {
            Job::Write { model, to } => (model, Some(to)),
            Job::Measure { model: ModelFrom::Random(model), .. } => (model, None),
            Job::Measure { model, .. } => panic!("{model:?}"),
        };
        let (model, to) = made("--random 7b --type q4_k_m --write a.gguf");
        assert_eq!((model.file_type, model.config), (FileType::Q4_K_M, Shape::Llama7B.config()));
        assert_eq!(to, Some("a.gguf".into()));
        let (model, to) = made("--random tinyllama --pure --seed 7");
        assert_eq!((model.file_type.to_string(), model.pure, model.seed), ("q4_0".to_owned(), true, 7));
        assert_eq!(to, None);
    }

    #[test]
    fn flags_that_do_not_fit_are_named() {
        use FlagError::*;
        assert_eq!(job(""), Err(NoModel));
        assert_eq!(job("-m a --random 7b"), Err(TwoModels));
        assert_eq!(job("-m a --type q4_0"), Err(NeedsRandom { flag: "--type" }));
        assert_eq!(job("-m a --pure"), Err(NeedsRandom { flag: "--pure" }));
        assert_eq!(job("-m a --write b"), Err(NeedsRandom { flag: "--write" }));
        assert_eq!(job("-m a -p 0 -n 0"), Err(NothingToMeasure));
        for flag in ["-b", "-t", "-r", "--ubatch"] {
            let zero = Err(Number { flag, found: 0, expected: "at least 1" });
            assert_eq!(job(&format!("-m a {flag} 0")), zero);
        }
        assert!(matches!(job("-m a -d 99999999"), Err(Number { flag: "-d", found: 99999999, .. })));
    }

    #[test]
    fn unknown_names_are_answered_with_the_known_ones() {
        let refused = |line: &str| {
            let args = std::iter::once("llama-bench").chain(line.split_whitespace());
            Flags::try_parse_from(args).unwrap_err().to_string()
        };
        assert!(refused("--random 8b").contains("tinyllama, 7b, 13b"));
        assert!(refused("--random 7b --type q9").contains("q4_K_M"));
        assert!(refused("-m a --backend torch").contains("candle"));
        assert!(refused("-m a -o csv").contains("json"));
        assert!(refused("-m a --computation quick").contains("exact or fast"));
    }
}
