//! What a read from the first tier costs: one hot key, many keys, a batch. A read may cost 300 ns at p50.
//!
//! `cargo bench --bench cache`

use criterion::Criterion;
use std::hint::black_box;
use std::time::Duration;
use tidegate::cache::{self, CacheHandle, CacheOptions, Filled, Kind, Tier, TypeOptions};
use tidegate::clock::{Clock, Stopwatch};

const KEYS: usize = 10_000;

fn cache() -> (CacheHandle, Kind) {
    let kind = TypeOptions {
        name: String::from("product_detail"),
        lifetime: Duration::from_secs(36_000),
        stale: Duration::ZERO,
        stale_if_error: Duration::ZERO,
        negative: Duration::ZERO,
        l1: true,
        l2: false,
        jitter: 0.1,
    };
    let options = CacheOptions {
        types: vec![kind],
        l1_bytes: 256 << 20,
        l1_entries: 100_000,
        xfetch_beta: 1.0,
        fill_timeout: Duration::from_secs(5),
        error_memory: Duration::from_secs(1),
        seed: Some(1),
        l2: None,
    };
    let cache = cache::start(options, Clock::system()).expect("a cache");
    let kind = cache.kind("product_detail").expect("a type");
    (cache, kind)
}

async fn fill() -> Result<Filled, cache::FillError> {
    Ok(Filled::new(vec![b'x'; 2000], 1))
}

fn main() {
    let system = actix::System::new();
    let mut criterion = Criterion::default().configure_from_args();
    let ids: Vec<String> = (0..KEYS).map(|n| format!("{}", 100_000 + n)).collect();
    let (cache, kind) = system.block_on(async {
        let (cache, kind) = cache();
        for id in &ids {
            cache.get(kind, id, fill).await.expect("a value");
        }
        let waited = Stopwatch::start();
        while cache.stats().l1.entries < KEYS as u64 {
            assert!(waited.elapsed() < Duration::from_secs(20), "the values do not land");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        (cache, kind)
    });
    let read = |id: &str| {
        // A hit never waits, so one poll ends it; no runtime is measured.
        let mut get = std::pin::pin!(cache.get(kind, id, fill));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match get.as_mut().poll(&mut context) {
            std::task::Poll::Ready(Ok(found)) => assert!(found.tier == Tier::L1),
            other => panic!("no hit: {other:?}"),
        }
    };
    let mut group = criterion.benchmark_group("L1 read");
    group.bench_function("one key", |b| b.iter(|| read(black_box("100042"))));
    let mut next = 0;
    group.bench_function("10,000 keys", |b| {
        b.iter(|| {
            next = (next + 7919) % KEYS;
            read(&ids[next]);
        });
    });
    group.finish();
    // The median of single reads, less what asking for the time costs.
    let single = |work: &dyn Fn(usize)| {
        let mut took: Vec<u128> = (0..200_000)
            .map(|i| {
                let watch = Stopwatch::start();
                work(i * 7919 % KEYS);
                watch.elapsed().as_nanos()
            })
            .collect();
        took.sort_unstable();
        (took[took.len() / 2], took[took.len() * 999 / 1000])
    };
    let empty = single(&|_| {});
    let reads = single(&|i| read(&ids[i]));
    println!(
        "L1 read, singly: p50 {} ns, p99.9 {} ns",
        reads.0.saturating_sub(empty.0),
        reads.1.saturating_sub(empty.1)
    );
    assert!(reads.0.saturating_sub(empty.0) <= 300, "p50 is above 300 ns");
    system.block_on(cache.stop(Duration::from_secs(1)));
    criterion.final_summary();
}
