//! Ranks: what their operations give, and that a model on several of them is one model.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::sync::{Arc, Mutex};
use std::thread;

use llama_backend::testing::{NaiveBackend, RandomWeights, ThreadCommunicator, ThreadRanks};
use llama_backend::{
    Backend, BackendError, Batch, Capabilities, Communicator, CommunicatorError, Computation, DType,
    LoadParams, LocalCommunicator, Logits, MemoryPlan, Model, ModelConfig, ModelSource, Phase, Ranks, Run,
    Slot, TokenId, Want,
};

/// What each rank's thread gives, in their order.
fn on_each<T: Send>(size: usize, rank: impl Fn(Arc<ThreadCommunicator>) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let start = |communicator| scope.spawn(|| rank(communicator));
        let threads: Vec<_> = ThreadCommunicator::group(size).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// The same, of the operations alone.
fn on_ranks<T: Send>(size: usize, rank: impl Fn(&ThreadCommunicator) -> T + Sync) -> Vec<T> {
    on_each(size, |communicator| rank(&communicator))
}

#[test]
fn sums_are_taken_in_the_order_of_the_ranks() {
    // In any other order the small ones are lost, or not.
    let parts = [1e8_f32, 1.0, -1e8, 1.0];
    let expected = ((parts[0] + parts[1]) + parts[2]) + parts[3];
    assert_ne!(expected, (parts[0] + parts[2]) + (parts[1] + parts[3]));
    for len in [1, 3, 1000] {
        let sums = on_ranks(4, |rank| {
            let mut data = vec![parts[rank.rank()]; len];
            rank.all_reduce_sum(&mut data).unwrap();
            data
        });
        assert!(sums.iter().flatten().all(|&sum| sum == expected), "{len}");
    }
}

#[test]
fn what_is_gathered_and_told_is_everyones() {
    for size in [1, 2, 5] {
        let lens: Vec<usize> = (0..size).collect(); // the first has nothing
        let expected: Vec<f32> = (0..size).flat_map(|rank| vec![rank as f32; rank]).collect();
        let found = on_ranks(size, |rank| {
            let mut all = vec![f32::NAN; expected.len()];
            rank.all_gather(&vec![rank.rank() as f32; rank.rank()], &lens, &mut all).unwrap();
            let mut told = [rank.rank() as u8; 3];
            rank.broadcast(size - 1, &mut told).unwrap();
            rank.barrier().unwrap();
            (all, told)
        });
        assert!(found.iter().all(|found| *found == (expected.clone(), [size as u8 - 1; 3])), "{found:?}");
    }
    let one = LocalCommunicator::default();
    let mut all = [0.0; 2];
    one.all_gather(&[1.0, 2.0], &[2], &mut all).unwrap();
    assert_eq!(all, [1.0, 2.0]);
    let error = one.all_gather(&[1.0], &[2], &mut all).unwrap_err();
    assert!(matches!(error, CommunicatorError::Lengths { what: "own", found: 1, expected: 2 }), "{error}");
}

#[test]
fn who_waits_is_told_of_an_end_and_of_a_rank_out_of_step() {
    let errors = on_ranks(3, |rank| match rank.rank() {
        2 => {
            rank.abort("the disk is on fire");
            String::new()
        }
        _ => rank.barrier().unwrap_err().to_string(),
    });
    assert_eq!(errors[..2], ["rank 2 ended the job: the disk is on fire"; 2]);
    // One that leaves, as a panic would make it.
    let errors = on_ranks(2, |rank| (rank.rank() == 0).then(|| rank.barrier().unwrap_err().to_string()));
    assert_eq!(errors[0].as_deref(), Some("rank 1 ended the job: it has left"));
    let errors = on_ranks(2, |rank| match rank.rank() {
        0 => rank.barrier().unwrap_err(),
        _ => rank.all_reduce_sum(&mut [0.0]).unwrap_err(),
    });
    assert!(errors.iter().any(|e| matches!(e, CommunicatorError::OutOfStep { .. })), "{errors:?}");
}

const CONFIG: ModelConfig = ModelConfig {
    dim: 8,
    n_layers: 1,
    n_heads: 2,
    n_kv_heads: 1,
    head_dim: 4,
    ffn_dim: 12,
    vocab_size: 500,
    norm_eps: 1e-5,
    rope_theta: 10000.0,
};

fn source() -> ModelSource {
    ModelSource::Weights(Arc::new(RandomWeights::new(CONFIG, DType::F32, 1)))
}

/// The naive backend, whole on every rank; it writes down what each rank is asked.
#[derive(Debug, Clone, Default)]
struct Whole {
    asked: Arc<Mutex<Vec<Vec<String>>>>,
    fails: Option<(usize, Fails)>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fails {
    AtLoad,
    AtForward,
    ByPanic,
}

struct WholeModel {
    inner: Box<dyn Model>,
    backend: Whole,
    params: LoadParams,
}

impl Backend for Whole {
    fn name(&self) -> &'static str {
        "whole"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { tensor_parallel: true, ..NaiveBackend.capabilities() }
    }

    fn plan(&self, config: &ModelConfig, dtype: DType, params: &LoadParams) -> MemoryPlan {
        NaiveBackend.plan(config, dtype, params)
    }

    fn load(&self, source: ModelSource, params: &LoadParams) -> Result<Box<dyn Model>, BackendError> {
        if self.fails == Some((params.communicator.rank(), Fails::AtLoad)) {
            return Err(BackendError::params("nothing", "this", "that"));
        }
        self.asked.lock().unwrap().resize(params.communicator.size(), Vec::new());
        let alone = LoadParams::new(params.max_seq_len, params.n_slots);
        let inner = NaiveBackend.load(source, &alone)?;
        Ok(Box::new(WholeModel { inner, backend: self.clone(), params: params.clone() }))
    }
}

impl WholeModel {
    fn asked(&self, what: String) {
        self.backend.asked.lock().unwrap()[self.params.communicator.rank()].push(what);
    }
}

impl Model for WholeModel {
    fn config(&self) -> &ModelConfig {
        self.inner.config()
    }

    fn params(&self) -> &LoadParams {
        &self.params
    }

    fn forward(&mut self, batch: &Batch<'_>, out: &mut Logits) -> Result<(), BackendError> {
        self.asked(format!("{batch:?}"));
        match self.backend.fails {
            Some((rank, Fails::AtForward)) if rank == self.params.communicator.rank() => {
                return Err(BackendError::engine("whole", "the disk is on fire"));
            }
            Some((rank, Fails::ByPanic)) if rank == self.params.communicator.rank() => panic!("the disk"),
            _ => {}
        }
        self.inner.forward(batch, out)?;
        self.params.communicator.barrier()?; // as an all-reduce: nobody is done before all have come
        Ok(())
    }

    fn truncate(&mut self, slot: Slot, len: usize) -> Result<(), BackendError> {
        self.asked(format!("truncate {slot} {len}"));
        self.inner.truncate(slot, len)
    }

    fn fork(&mut self, from: Slot, to: Slot, len: usize) -> Result<(), BackendError> {
        self.asked(format!("fork {from} {to} {len}"));
        self.inner.fork(from, to, len)
    }
}

fn run(slot: usize, start_pos: usize, tokens: &[TokenId], want: Want) -> Run<'_> {
    Run { slot: Slot(slot), start_pos, tokens, want }
}

#[test]
fn every_rank_takes_the_steps_of_rank_0_and_no_others() {
    let backend = Whole::default();
    let ranks = ThreadRanks::new(Arc::new(backend.clone()), 3);
    let params = LoadParams::new(200, 2);
    let mut model = ranks.load(source(), &params).unwrap();
    let mut logits = Logits::new();
    // Longer than a frame, and several runs.
    let long: Vec<TokenId> = (0..150).map(TokenId).collect();
    model.forward(&Batch::new(&[run(0, 0, &long, Want::All)]), &mut logits).unwrap();
    assert_eq!(logits.n_rows(), 150);
    let two = [run(0, 150, &long[..1], Want::Last), run(1, 0, &long[3..5], Want::None)];
    model.forward(&Batch::new(&two), &mut logits).unwrap();
    model.truncate(Slot(0), 7).unwrap();
    model.fork(Slot(0), Slot(1), 5).unwrap();
    // Refused on rank 0, and nobody hears of it.
    assert!(model.forward(&Batch::new(&[run(0, 9, &long[..1], Want::Last)]), &mut logits).is_err());
    assert!(model.truncate(Slot(1), 6).is_err());
    assert!(model.fork(Slot(0), Slot(2), 1).is_err());
    model.forward(&Batch::new(&[run(1, 5, &long[5..6], Want::Last)]), &mut logits).unwrap();
    let expected: Vec<f32> = logits.as_slice().to_vec();
    drop(model); // lets the others go, or this would not return

    let asked = backend.asked.lock().unwrap();
    assert_eq!(asked[0].len(), 5, "{asked:?}");
    assert!(asked.iter().all(|rank| *rank == asked[0]), "{asked:?}");
    // And the logits are those of the sequence alone.
    let mut alone = NaiveBackend.load(source(), &params).unwrap();
    alone.forward(&Batch::new(&[run(0, 0, &long[..6], Want::Last)]), &mut logits).unwrap();
    assert_eq!(logits.as_slice(), expected);
}

#[test]
fn a_rank_that_fails_fails_all_and_nobody_waits() {
    for guilty in [0, 1, 2] {
        let backend = Whole { fails: Some((guilty, Fails::AtLoad)), ..Default::default() };
        let error =
            ThreadRanks::new(Arc::new(backend), 3).load(source(), &LoadParams::new(8, 1)).err().unwrap();
        match (guilty, &error) {
            (0, BackendError::Params { .. }) => {}
            (_, BackendError::OtherRank { rank, message }) if guilty > 0 => {
                assert_eq!((*rank, message.contains("nothing is this")), (guilty, true), "{error}");
            }
            _ => panic!("{guilty}: {error}"),
        }
        for fails in [Fails::AtForward, Fails::ByPanic] {
            let backend = Whole { fails: Some((guilty, fails)), ..Default::default() };
            let mut model =
                ThreadRanks::new(Arc::new(backend), 3).load(source(), &LoadParams::new(8, 1)).unwrap();
            let mut step =
                || model.forward(&Batch::new(&[run(0, 0, &[TokenId(1)], Want::Last)]), &mut Logits::new());
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&mut step));
            if let Ok(taken) = caught {
                let error = taken.unwrap_err().to_string();
                let why = if fails == Fails::AtForward { "the disk is on fire" } else { "a panic while" };
                assert!(error.contains(why), "{guilty} {fails:?}: {error}");
            } else {
                assert_eq!((guilty, fails), (0, Fails::ByPanic));
            }
            // The job has ended: the next step is refused at once.
            assert!(matches!(step(), Err(BackendError::Communicator(CommunicatorError::Aborted { .. }))));
        }
    }
}

/// What a build comes to on each rank, which is given what is its own; a model is dropped at once.
fn build_each(
    size: usize,
    backend: &Whole,
    given: impl Fn(usize) -> (ModelSource, LoadParams) + Sync,
) -> Vec<Result<(), BackendError>> {
    on_each(size, |communicator| {
        let rank = communicator.rank();
        let (source, params) = given(rank);
        let ranks = Ranks::claim(communicator)?;
        match rank {
            0 => ranks.lead(backend, source, params).map(drop),
            _ => ranks.follow(backend, source, params),
        }
    })
}

#[test]
fn ranks_that_were_given_different_things_say_so_and_load_nothing() {
    let weights = |dtype, seed| {
        let weights = RandomWeights::new(CONFIG, dtype, seed);
        (ModelSource::Weights(Arc::new(weights)), LoadParams::new(8, 1))
    };
    let params = |change: fn(&mut LoadParams)| {
        let mut params = LoadParams::new(8, 1);
        change(&mut params);
        (weights(DType::F32, 1).0, params)
    };
    // What rank 1 is given, and what its error names.
    type Given = (ModelSource, LoadParams);
    let cases: [(Given, &str); 6] = [
        (params(|params| params.max_seq_len = 16), "max_seq_len: 16 on this rank, 8 on rank 0"),
        (params(|params| params.n_slots = 2), "n_slots"),
        (params(|params| params.computation = Computation::Exact), "computation: Exact on this rank, Fast"),
        (params(|params| params.kv_dtype = DType::F16), "kv_dtype: f16"),
        (weights(DType::F16, 1), "the weights' types and shapes: f16"),
        (weights(DType::F32, 2), "the norms' weights"),
    ];
    for (given, why) in cases {
        let backend = Whole::default();
        let built = build_each(2, &backend, |rank| match rank {
            0 => weights(DType::F32, 1),
            _ => given.clone(),
        });
        let errors: Vec<_> = built.into_iter().map(Result::unwrap_err).collect();
        assert!(
            matches!(&errors[1], BackendError::Communicator(CommunicatorError::Differs { .. })),
            "{errors:?}"
        );
        assert!(matches!(&errors[0], BackendError::OtherRank { rank: 1, .. }), "{errors:?}");
        assert!(errors.iter().all(|error| error.to_string().contains(why)), "no {why:?} in {errors:?}");
        assert!(backend.asked.lock().unwrap().is_empty(), "a model was loaded");
    }
    // Threads are each rank's own affair.
    let built = build_each(2, &Whole::default(), |rank| {
        let (source, mut params) = weights(DType::F32, 1);
        params.threads = Some(rank + 1);
        (source, params)
    });
    assert!(built.iter().all(Result::is_ok), "{built:?}");
}

#[test]
fn a_call_that_is_another_ranks_is_refused_on_all() {
    let is_rank = |error: &BackendError, expected| matches!(error, BackendError::Communicator(CommunicatorError::Rank { call, .. }) if *call == expected);
    let one = Ranks::claim(Arc::new(LocalCommunicator::default())).unwrap();
    let error = one.follow(&Whole::default(), source(), LoadParams::new(8, 1)).unwrap_err();
    assert!(is_rank(&error, "follow"), "{error}");

    let backend = Whole::default();
    let errors = on_each(2, |rank| {
        Ranks::claim(rank).unwrap().lead(&backend, source(), LoadParams::new(8, 1)).err().unwrap()
    });
    assert!(matches!(&errors[0], BackendError::OtherRank { rank: 1, .. }), "{errors:?}");
    assert!(is_rank(&errors[1], "lead"), "{errors:?}");
    assert!(backend.asked.lock().unwrap().is_empty(), "a model was loaded");
}

#[test]
fn ranks_that_build_and_finish_different_numbers_of_times_are_told() {
    let errors = on_ranks(3, |rank| {
        let phase = if rank.rank() == 0 { Phase::Finish } else { Phase::Build };
        let error = phase.begin(rank).unwrap_err();
        // And nobody goes on.
        assert!(matches!(rank.barrier(), Err(CommunicatorError::Aborted { .. })));
        error
    });
    for error in errors {
        assert!(matches!(error, CommunicatorError::OutOfStep { rank: 1, .. }), "{error}");
        let said = error.to_string();
        assert!(said.contains("the loading of a model") && said.contains("the end of the job"), "{said}");
    }
    assert!(on_ranks(3, |rank| Phase::Finish.begin(rank)).iter().all(Result::is_ok));
}

#[test]
fn nobody_is_told_anything_by_a_rank_that_does_not_exist() {
    let one = LocalCommunicator::default();
    let errors = [one.broadcast(1, &mut [0]), on_ranks(2, |rank| rank.broadcast(2, &mut [0])).remove(0)];
    for (size, error) in [1, 2].into_iter().zip(errors) {
        let error = error.unwrap_err();
        assert!(
            matches!(error, CommunicatorError::Root { root, size: found } if (root, found) == (size, size)),
            "{error}"
        );
    }
}

#[test]
fn one_model_at_a_time() {
    on_each(2, |rank| {
        let claim = || Ranks::claim(Arc::<ThreadCommunicator>::clone(&rank));
        let first = claim().unwrap();
        assert!(matches!(claim(), Err(BackendError::Communicator(CommunicatorError::InUse))));
        drop(first);
        assert!(claim().is_ok());
    });
    // One rank has nobody to disturb.
    let one: Arc<dyn Communicator> = Arc::new(LocalCommunicator::default());
    let claims = [Ranks::claim(Arc::clone(&one)), Ranks::claim(one)];
    assert!(claims.iter().all(Result::is_ok));
}
