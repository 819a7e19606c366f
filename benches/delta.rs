//! What counting costs: folding an event into a delta, committing a delta to the SQLite store, asking the store.
//!
//! `cargo bench --bench delta`

use criterion::{BatchSize, Criterion, Throughput};
use std::hint::black_box;
use tidegate::clock::{DAY, MINUTE, UnixMillis};
use tidegate::event::codec::{self, Entry};
use tidegate::event::{Event, EventId, PAGE_VIEW};
use tidegate::stats::{
    Delta, Interval, Live, Metric, Queries, Range, SqliteStore, StatsOptions, StatsStore, WindowName,
};
use xxhash_rust::xxh3::xxh3_64;

const EVENTS: usize = 50_000;
const AT: UnixMillis = 20_000 * DAY + DAY / 2;

fn hash(n: u64) -> u64 {
    xxh3_64(&n.to_le_bytes())
}

/// A journal block of events: many pages and visitors, as a busy shop has them.
fn block(pages: u64, visitors: u64, at: UnixMillis, salt: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for i in 0..EVENTS as u64 {
        let n = hash(i ^ salt);
        // The square makes some pages hot, as pages are.
        let rank = if i < pages { i } else { (n % 65_536) * (n % 65_536) / 65_536 * pages / 65_536 };
        let url = format!("https://shop.example/products/category-{}/item-{rank}?utm_source=mail", rank % 40);
        let referrer = format!("https://www.site{}.example/search?q=x", n % 300);
        let visitor = hash(hash(n) % visitors) | 1;
        let event = Event {
            received: at + (i / 100) as i64,
            timestamp: at + (i / 100) as i64,
            site: if n.is_multiple_of(10) { "blog" } else { "shop" },
            event_type: if n.is_multiple_of(7) { "add_to_cart" } else { PAGE_VIEW },
            id: EventId::None,
            visitor,
            session: visitor ^ 1,
            url: Some(&url),
            referrer: n.is_multiple_of(4).then_some(&referrer),
            title: None,
            user_id: None,
            session_id: None,
            product_id: None,
            data: None,
            bot: None,
            imported: false,
        };
        codec::put_event(&mut bytes, &event).expect("a short event");
    }
    bytes
}

fn entries(mut bytes: &[u8]) -> Vec<Entry<'_>> {
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        let (entry, rest) = codec::take(bytes).expect("just written");
        entries.push(entry);
        bytes = rest;
    }
    entries
}

fn fold(from: u64, entries: &[Entry<'_>]) -> Delta {
    let mut delta = Delta::new(from);
    for (i, entry) in entries.iter().enumerate() {
        delta.apply(from + i as u64, black_box(entry));
    }
    delta
}

fn apply(c: &mut Criterion) {
    let mut group = c.benchmark_group("delta/apply");
    group.throughput(Throughput::Elements(EVENTS as u64));
    for (pages, visitors) in [(2_000, 10_000), (10_000, 40_000)] {
        let block = block(pages, visitors, AT, 0);
        let entries = entries(&block);
        group.bench_function(format!("{pages} pages, {visitors} visitors"), |b| {
            b.iter_batched(|| (), |()| fold(0, &entries), BatchSize::PerIteration);
        });
    }
    group.finish();
}

fn commit(c: &mut Criterion) {
    let mut group = c.benchmark_group("store/commit");
    group.sample_size(30);
    for (pages, visitors) in [(2_000, 10_000), (10_000, 10_000), (10_000, 1_000_000)] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut store = SqliteStore::open(&dir.path().join("stats.db"), StatsOptions::default()).expect("a store");
        let mut live = Live::load(&mut store, StatsOptions::default(), AT).expect("an empty store");
        let mut commits = 0;
        let mut next = || {
            // Five commits a second: minutes and quarters pass by as they would.
            let at = AT + commits * 200;
            commits += 1;
            let block = block(pages, visitors, at, commits as u64 % 50 * 1_000_003);
            (block, at)
        };
        group.bench_function(format!("{EVENTS} events, {pages} pages, {visitors} visitors"), |b| {
            b.iter_custom(|iters| {
                let mut total = std::time::Duration::ZERO;
                for _ in 0..iters {
                    let (block, at) = next();
                    let from = store.cursor().expect("a cursor").next;
                    let delta = fold(from, &entries(&block));
                    let watch = tidegate::clock::Stopwatch::start();
                    store.commit(&delta, at).expect("a commit");
                    total += watch.elapsed();
                    live.apply(&delta, at);
                }
                total
            });
        });
        group.bench_function(format!("live, {pages} pages, {visitors} visitors"), |b| {
            b.iter_custom(|iters| {
                let mut total = std::time::Duration::ZERO;
                for _ in 0..iters {
                    let (block, at) = next();
                    let from = store.cursor().expect("a cursor").next;
                    let delta = fold(from, &entries(&block));
                    store.commit(&delta, at).expect("a commit");
                    let watch = tidegate::clock::Stopwatch::start();
                    live.apply(&delta, at);
                    total += watch.elapsed();
                }
                total
            });
        });
    }
    group.finish();
}

fn realtime(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut store = SqliteStore::open(&dir.path().join("stats.db"), StatsOptions::default()).expect("a store");
    let mut live = Live::load(&mut store, StatsOptions::default(), AT).expect("an empty store");
    live.apply(&fold(0, &entries(&block(2_000, 10_000, AT, 0))), AT);
    let reader = live.reader();
    c.bench_function("live/realtime_json", |b| {
        b.iter(|| reader.realtime_json(black_box("shop"), WindowName::Hour, AT + 1));
    });
}

fn query(c: &mut Criterion) {
    let mut group = c.benchmark_group("query");
    group.sample_size(20);
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("stats.db");
    let mut store = SqliteStore::open(&path, StatsOptions::default()).expect("a store");
    // Two days of 2,000 pages and 10,000 visitors a quarter.
    for quarter in 0..192 {
        let at = AT - (192 - quarter) * 15 * MINUTE;
        let block = block(2_000, 10_000, at, quarter as u64 * 1_000_003);
        let delta = fold(quarter as u64 * EVENTS as u64, &entries(&block));
        store.commit(&delta, AT).expect("a commit");
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let queries = Queries::open(&path, StatsOptions::default()).expect("queries");
    let mut from = AT - DAY;
    let mut range = || {
        from = if from <= AT - DAY - 14 * MINUTE { AT - DAY } else { from - MINUTE };
        let next = store.cursor().expect("a cursor").next;
        store.commit(&advance(next), AT).expect("a commit");
        Range { from, to: AT + 1 }
    };
    group.bench_function("pages of the last 24 h", |b| {
        b.iter(|| runtime.block_on(queries.pages("shop", range(), 10, AT)).expect("pages"));
    });
    group.bench_function("summary of the last 24 h", |b| {
        b.iter(|| runtime.block_on(queries.summary("shop", range(), AT)).expect("a summary"));
    });
    for (name, metric) in [("page_views", Metric::PageViews), ("unique_visitors", Metric::UniqueVisitors)] {
        group.bench_function(format!("{name} by hour of the last 24 h"), |b| {
            b.iter(|| {
                let tz = "Asia/Kathmandu";
                let series = queries.timeseries("shop", metric, Interval::Hour, tz, range(), AT);
                runtime.block_on(series).expect("a series")
            });
        });
    }
    group.finish();
    runtime.block_on(queries.close());
}

/// Moves the store's cursor on, so that it remembers no answer.
fn advance(from: u64) -> Delta {
    let mut delta = Delta::new(from);
    delta.advance(from + 1);
    delta
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    apply(&mut criterion);
    commit(&mut criterion);
    realtime(&mut criterion);
    query(&mut criterion);
    criterion.final_summary();
}
