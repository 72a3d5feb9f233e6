//! What one of several ranks holds of a model (tensor parallel: Megatron-LM, arXiv 1909.08053, as the reference's fairscale layers do it).
//!
//! `wq`, `wk`, `wv`, `w1`, `w3` and `output` are cut between rows, so that a rank has some heads, some of the feed-forward network's width and
//! some of the vocabulary; `wo` and `w2`, which take these in, are cut between columns at the same places, and their results are parts of a
//! sum. Embeddings and norms are whole on every rank: a step reads a few rows of the one, and the other is small.
//!
//! Columns are cut between blocks. The feed-forward network's width goes by the blocks of `w2`, unevenly where they do not divide; heads cannot
//! give way, and where their border cuts a block of `wo` the matrix is kept in another type ([`Columns::dtype`]).

use std::ops::Range;

use llama_backend::{BackendError, Communicator, Computation, DType, ModelConfig};

/// One rank's view of a model's shape.
#[derive(Debug, Clone)]
pub(crate) struct Split {
    rank: usize,
    size: usize,
    config: ModelConfig,
    computation: Computation,
}

/// The columns of a matrix that a rank holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Columns {
    pub(crate) range: Range<usize>,
    /// As they are kept: the stored type, where all ranks' borders lie between its blocks.
    pub(crate) dtype: DType,
}

impl Split {
    /// This rank's part. Fails where there is no part for every rank.
    pub(crate) fn new(
        config: &ModelConfig,
        communicator: &dyn Communicator,
        computation: Computation,
    ) -> Result<Self, BackendError> {
        let (rank, size) = (communicator.rank(), communicator.size().max(1));
        let refuse = |what, found, expected| Err(BackendError::Ranks { ranks: size, what, found, expected });
        if !config.n_kv_heads.is_multiple_of(size) {
            return refuse("n_kv_heads", config.n_kv_heads, "a multiple of the ranks");
        }
        for (what, found) in [("ffn_dim", config.ffn_dim), ("vocab_size", config.vocab_size)] {
            if found < size {
                return refuse(what, found, "at least one for each rank");
            }
        }
        Ok(Self { rank, size, config: config.clone(), computation })
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.size == 1
    }

    /// The rank's rows of `wq`: its query heads.
    pub(crate) fn q(&self) -> Range<usize> {
        part(self.config.q_dim(), self.config.q_dim() / self.size, self.rank, self.size)
    }

    /// Its rows of `wk` and `wv`: its key and value heads.
    pub(crate) fn kv(&self) -> Range<usize> {
        part(self.config.kv_dim(), self.config.kv_dim() / self.size, self.rank, self.size)
    }

    /// Each rank's rows of `output`.
    pub(crate) fn vocab(&self) -> impl Iterator<Item = Range<usize>> {
        (0..self.size).map(|rank| part(self.config.vocab_size, 1, rank, self.size))
    }

    /// This rank's rows of it.
    pub(crate) fn own_vocab(&self) -> Range<usize> {
        part(self.config.vocab_size, 1, self.rank, self.size)
    }

    /// The rank's columns of a `wo` that is stored so.
    pub(crate) fn wo(&self, stored: DType) -> Columns {
        let range = self.q();
        let fits = |dtype: DType| range.len().is_multiple_of(dtype.block_len());
        Columns { dtype: self.kept(stored, fits), range }
    }

    /// Its columns of a `w2` that is stored so, and its rows of the `w1` and `w3` beside it.
    pub(crate) fn w2(&self, stored: DType) -> Columns {
        let ffn_dim = self.config.ffn_dim;
        let blocks = |dtype: DType| ffn_dim / dtype.block_len();
        let fits = |dtype: DType| ffn_dim.is_multiple_of(dtype.block_len()) && blocks(dtype) >= self.size;
        let dtype = self.kept(stored, fits);
        Columns { range: part(ffn_dim, dtype.block_len(), self.rank, self.size), dtype }
    }

    /// The type that columns are kept in: the stored one if it fits; else one with smaller blocks, where rounding is allowed; else the numbers
    /// themselves.
    fn kept(&self, stored: DType, fits: impl Fn(DType) -> bool) -> DType {
        let may_round = self.computation == Computation::Fast;
        match stored {
            _ if fits(stored) => stored,
            _ if may_round && fits(DType::Q8_0) => DType::Q8_0,
            _ => DType::F32,
        }
    }

    /// The shape of what the rank holds, the vocabulary whole: its heads, and the widest of its feed-forward parts were all stored so.
    pub(crate) fn local(&self, stored: DType) -> ModelConfig {
        ModelConfig {
            n_heads: self.config.n_heads / self.size,
            n_kv_heads: self.config.n_kv_heads / self.size,
            ffn_dim: self.w2(stored).range.len(),
            ..self.config.clone()
        }
    }
}

/// Part `rank` of `n` things in whole units: the first parts are larger by one where the units do not divide.
fn part(n: usize, unit: usize, rank: usize, size: usize) -> Range<usize> {
    let units = n / unit.max(1);
    let start = |rank: usize| (units / size * rank + rank.min(units % size)) * unit;
    start(rank)..start(rank + 1)
}

#[cfg(test)]
mod tests {
    use llama_backend::testing::ThreadCommunicator;

    use super::*;

    fn llama_7b() -> ModelConfig {
        ModelConfig {
            dim: 4096,
            n_layers: 32,
            n_heads: 32,
            n_kv_heads: 32,
            head_dim: 128,
            ffn_dim: 11008,
            vocab_size: 32000,
            norm_eps: 1e-5,
            rope_theta: 10000.0,
        }
    }

    fn splits(config: &ModelConfig, size: usize, computation: Computation) -> Vec<Split> {
        let split = |rank: std::sync::Arc<ThreadCommunicator>| Split::new(config, &*rank, computation);
        ThreadCommunicator::group(size).map(|rank| split(rank).unwrap()).collect()
    }

    #[test]
    fn blocks_of_w2_go_unevenly() {
        let ranges: Vec<_> =
            splits(&llama_7b(), 2, Computation::Fast).iter().map(|split| split.w2(DType::Q4_K)).collect();
        assert_eq!(ranges[0], Columns { range: 0..22 * 256, dtype: DType::Q4_K });
        assert_eq!(ranges[1], Columns { range: 22 * 256..11008, dtype: DType::Q4_K });
    }

    #[test]
    fn parts_are_the_whole_in_whole_blocks() {
        for computation in [Computation::Fast, Computation::Exact] {
            for (config, sizes) in [
                (llama_7b(), &[1, 2, 4, 8, 16, 32][..]),
                (
                    ModelConfig { dim: 5120, n_heads: 40, n_kv_heads: 40, ffn_dim: 13824, ..llama_7b() },
                    &[2, 5, 8],
                ),
                (
                    ModelConfig {
                        n_heads: 6,
                        n_kv_heads: 3,
                        head_dim: 6,
                        ffn_dim: 100,
                        vocab_size: 7,
                        ..llama_7b()
                    },
                    &[3],
                ),
            ] {
                for &size in sizes {
                    for &dtype in DType::ALL {
                        let splits = splits(&config, size, computation);
                        let is_whole = |ranges: Vec<Range<usize>>, n: usize| {
                            let ends = ranges.iter().scan(0, |end, range| {
                                let joins = range.start == *end && !range.is_empty();
                                *end = range.end;
                                Some((joins, range.end))
                            });
                            let ends: Vec<_> = ends.collect();
                            assert!(
                                ends.iter().all(|end| end.0) && ends[size - 1].1 == n,
                                "{ranges:?} of {n}"
                            );
                        };
                        let all = |range: &dyn Fn(&Split) -> Range<usize>| splits.iter().map(range).collect();
                        is_whole(all(&|split| split.q()), config.q_dim());
                        is_whole(all(&|split| split.kv()), config.kv_dim());
                        is_whole(splits[0].vocab().collect(), config.vocab_size);
                        is_whole(all(&|split| split.wo(dtype).range), config.q_dim());
                        // What does not fit into blocks is no matrix of this type.
                        if config.ffn_dim.is_multiple_of(dtype.block_len()) {
                            is_whole(all(&|split| split.w2(dtype).range), config.ffn_dim);
                        }
                        for columns in splits.iter().flat_map(|split| [split.wo(dtype), split.w2(dtype)]) {
                            let Columns { range, dtype: kept } = columns;
                            assert!(
                                range.len().is_multiple_of(kept.block_len()),
                                "{dtype} {range:?} in {kept}"
                            );
                            assert!(computation == Computation::Fast || kept == dtype || kept == DType::F32);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_border_within_a_block_makes_q8_0_or_stays_exact() {
        // Five heads of 128 a rank: two and a half blocks of 256.
        let config = ModelConfig { dim: 5120, n_heads: 40, n_kv_heads: 40, ffn_dim: 13824, ..llama_7b() };
        let kept = |computation| splits(&config, 8, computation)[3].wo(DType::Q4_K);
        assert_eq!(kept(Computation::Fast), Columns { range: 1920..2560, dtype: DType::Q8_0 });
        assert_eq!(kept(Computation::Exact).dtype, DType::F32);
    }

    #[test]
    fn ranks_without_a_part_are_refused_with_the_numbers() {
        let refused = |config: ModelConfig, size| {
            let rank = ThreadCommunicator::group(size).next().unwrap();
            Split::new(&config, &*rank, Computation::Fast).unwrap_err().to_string()
        };
        let error = refused(llama_7b(), 3);
        assert!(error.contains("3 ranks") && error.contains("n_kv_heads is 32"), "{error}");
        let error = refused(ModelConfig { vocab_size: 3, ..llama_7b() }, 4);
        assert!(error.contains("vocab_size is 3"), "{error}");
    }
}
