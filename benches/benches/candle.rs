//! The candle backend: each workload by criterion, then the marks, measured in turns.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark ends where it fails")]

use benches::bandwidth::Bandwidth;
use benches::marks::Marks;
use benches::workload::{Forward, PREFILL, Products, decode_bytes, weights};
use criterion::{Criterion, SamplingMode, Throughput};
use llama_backend_candle::CandleBackend;

fn workloads(c: &mut Criterion) {
    let n_threads = std::thread::available_parallelism().unwrap().get();
    let weights = weights();
    let products = Products::new(&weights).unwrap();
    let mut forward = Forward::new(&CandleBackend::default(), weights, n_threads).unwrap();

    let mut group = c.benchmark_group("candle/prefill");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.throughput(Throughput::Elements(PREFILL as u64));
    group.bench_function("512 tokens", |b| b.iter(|| forward.prefill().unwrap()));
    group.bench_function("its products by candle's matmul", |b| {
        b.iter(|| products.run().unwrap());
    });
    group.finish();

    let mut group = c.benchmark_group("candle/decode");
    group.sample_size(20);
    group.throughput(Throughput::Bytes(decode_bytes() as u64));
    group.bench_function("1 token", |b| b.iter(|| forward.decode().unwrap()));
    let bandwidth = Bandwidth::new(n_threads).unwrap();
    group.throughput(Throughput::Bytes(bandwidth.bytes() as u64));
    group.bench_function("read 1 GiB, the best kernel", |b| {
        b.iter_custom(|n| (0..n).map(|_| bandwidth.read()).sum());
    });
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    workloads(&mut criterion);
    criterion.final_summary();
    // `cargo test --benches` only wants to know that the workloads run.
    if std::env::args().any(|arg| arg == "--bench") {
        println!("{}", Marks::measure(5).unwrap());
    }
}
