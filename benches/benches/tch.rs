//! The libtorch backend beside candle: the same workloads, by criterion.

#![allow(clippy::unwrap_used, reason = "a benchmark ends where it fails")]

use benches::workload::{Forward, PREFILL, decode_bytes, weights};
use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use llama_backend::Backend;
use llama_backend_candle::CandleBackend;
use llama_backend_tch::TchBackend;

fn workloads(c: &mut Criterion) {
    let n_threads = std::thread::available_parallelism().unwrap().get();
    let weights = weights();
    let backends: [&dyn Backend; 2] = [&TchBackend::default(), &CandleBackend::default()];
    let mut forwards =
        backends.map(|backend| (backend.name(), Forward::new(backend, weights.clone(), n_threads).unwrap()));

    let mut group = c.benchmark_group("prefill 512");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.throughput(Throughput::Elements(PREFILL as u64));
    for (name, forward) in &mut forwards {
        group.bench_function(*name, |b| b.iter(|| forward.prefill().unwrap()));
    }
    group.finish();

    let mut group = c.benchmark_group("decode");
    group.sample_size(20);
    group.throughput(Throughput::Bytes(decode_bytes() as u64));
    for (name, forward) in &mut forwards {
        group.bench_function(*name, |b| b.iter(|| forward.decode().unwrap()));
    }
    group.finish();
}

criterion_group!(all, workloads);
criterion_main!(all);
