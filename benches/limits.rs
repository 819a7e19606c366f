//! What a check of a request's limits costs: by address, API key and route together, on one hot key and on 100,000, in one
//! thread and in two. A check may cost 1 µs at p50 under two threads.
//!
//! `cargo bench --bench limits`

use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Barrier;
use std::time::Duration;

use criterion::Criterion;
use tidegate::clock::{Monotonic, Stopwatch};
use tidegate::gateway::limit::{Caller, LimitSet, Limits};
use tidegate::gateway::options::{LimitKey, LimitOptions, LimiterOptions, StoreDown};

const KEYS: usize = 100_000;
const SINGLY: usize = 400_000;

fn limits() -> (Limits, LimitSet) {
    let limit = |by: LimitKey| LimitOptions {
        by: vec![by],
        limit: 1_000_000_000,
        period: Duration::from_secs(60),
        burst: 1_000_000_000,
        shadow: false,
        shared: false,
        store_down: StoreDown::Closed,
    };
    let all = [("address", LimitKey::Address), ("key", LimitKey::ApiKey), ("route", LimitKey::Route)];
    let all: BTreeMap<String, LimitOptions> = all.iter().map(|(name, by)| (String::from(*name), limit(*by))).collect();
    let limits = Limits::start(&all, &LimiterOptions::default(), Monotonic::system()).expect("limits");
    let set = limits.resolve(&["address", "key", "route"].map(String::from));
    (limits, set)
}

/// Median and 99.9th percentile of single checks in each of some threads at once, less what asking for the time costs.
fn singly(threads: usize, check: impl Fn(usize) + Sync) -> (u128, u128) {
    let measure = |work: &dyn Fn(usize), first: usize| {
        let mut took: Vec<u128> = (0..SINGLY)
            .map(|n| {
                let watch = Stopwatch::start();
                work(first + n);
                watch.elapsed().as_nanos()
            })
            .collect();
        took.sort_unstable();
        took
    };
    let empty = measure(&|_| {}, 0)[SINGLY / 2];
    let barrier = Barrier::new(threads);
    let mut all: Vec<u128> = std::thread::scope(|scope| {
        let (barrier, check, measure) = (&barrier, &check, &measure);
        let run = move |thread: usize| {
            barrier.wait();
            measure(&|n| check(n), thread * SINGLY / 3)
        };
        let runs: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        runs.into_iter().flat_map(|run| run.join().expect("a thread that measures")).collect()
    });
    all.sort_unstable();
    (all[all.len() / 2].saturating_sub(empty), all[all.len() * 999 / 1000].saturating_sub(empty))
}

fn main() {
    let system = actix::System::new();
    let mut criterion = Criterion::default().configure_from_args();
    let (limits, set) = system.block_on(async { limits() });
    let clock = Monotonic::system();
    let names: Vec<String> = (0..KEYS).map(|n| format!("customer-{n}")).collect();
    let check = |n: usize| {
        let caller = Caller {
            address: IpAddr::V4(Ipv4Addr::from_bits(n as u32)),
            api_key: Some(&names[n]),
            user: None,
            route: "products",
        };
        let verdict = limits.check(clock.now(), &set, &caller, 1);
        assert!(black_box(verdict).allowed());
    };
    let mut group = criterion.benchmark_group("three limits");
    group.bench_function("one key", |b| b.iter(|| check(black_box(42))));
    let mut next = 0;
    group.bench_function("100,000 keys", |b| {
        b.iter(|| {
            next = (next + 7919) % KEYS;
            check(next);
        });
    });
    group.bench_function("headers", |b| {
        let caller = Caller { address: Ipv4Addr::LOCALHOST.into(), api_key: Some("c"), user: None, route: "products" };
        let verdict = limits.check(clock.now(), &set, &caller, 1);
        b.iter(|| black_box(verdict.headers().count()));
    });
    group.finish();
    for threads in [1, 2] {
        let hot = singly(threads, |_| check(42));
        let many = singly(threads, |n| check(n * 7919 % KEYS));
        println!("one key, {threads} threads: p50 {} ns, p99.9 {} ns", hot.0, hot.1);
        println!("100,000 keys, {threads} threads: p50 {} ns, p99.9 {} ns", many.0, many.1);
        assert!(hot.0 <= 1000 && many.0 <= 1000, "p50 is above 1 µs");
    }
    println!("{} bytes for all buckets", limits.stats().bytes);
    criterion.final_summary();
}
