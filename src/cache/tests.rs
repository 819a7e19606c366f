//! The cache in one process, without Redis.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Semaphore;

use super::*;
use crate::clock::{Clock, Stopwatch};

fn kind(name: &str) -> TypeOptions {
    TypeOptions {
        name: String::from(name),
        lifetime: Duration::from_secs(100),
        stale: Duration::from_secs(20),
        stale_if_error: Duration::from_secs(1000),
        negative: Duration::from_secs(10),
        l1: true,
        l2: true,
        jitter: 0.0,
    }
}

fn options() -> CacheOptions {
    CacheOptions {
        types: vec![kind("product"), TypeOptions { l1: false, ..kind("nowhere") }],
        l1_bytes: 1 << 20,
        l1_entries: 1000,
        xfetch_beta: 0.0,
        fill_timeout: Duration::from_secs(10),
        error_memory: Duration::from_secs(1),
        seed: Some(1),
        l2: None,
    }
}

/// A source that can fail, be slow, and counts.
#[derive(Clone)]
struct Source {
    calls: Arc<AtomicU32>,
    gate: Arc<Semaphore>,
    broken: Arc<std::sync::atomic::AtomicBool>,
}

impl Source {
    fn new() -> Self {
        let gate = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        Self { calls: Arc::default(), gate, broken: Arc::default() }
    }

    /// One that answers only as it is let.
    fn gated() -> Self {
        Self { gate: Arc::new(Semaphore::new(0)), ..Self::new() }
    }

    fn calls(&self) -> u32 {
        self.calls.load(Ordering::SeqCst)
    }

    fn fail(&self, broken: bool) {
        self.broken.store(broken, Ordering::SeqCst);
    }

    /// What it says carries the number of the call.
    async fn read(self) -> Result<Filled, FillError> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        if let Ok(permit) = self.gate.acquire().await {
            permit.forget();
        }
        if self.broken.load(Ordering::SeqCst) {
            return Err(FillError::Unavailable {
                what: "the source is down".into(),
                retry_after: Duration::from_secs(3),
            });
        }
        Ok(Filled::new(format!("call {call}"), u64::from(call)))
    }

    async fn get(&self, cache: &CacheHandle, id: &str) -> Result<Found, CacheError> {
        let source = self.clone();
        cache.get(cache.kind("product").unwrap(), id, move || source.clone().read()).await
    }
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Stopwatch::start();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Until what was filled is in the first tier.
async fn landed(cache: &CacheHandle) {
    until("everything has landed", || cache.core().flights.len() == 0).await;
}

fn cache() -> (CacheHandle, Clock) {
    let clock = Clock::manual(1_000_000);
    (start(options(), clock.clone()).unwrap(), clock)
}

#[actix::test]
async fn a_value_is_filled_once_and_then_read_from_the_first_tier() {
    let ((cache, clock), source) = (cache(), Source::new());
    let first = source.get(&cache, "a").await.unwrap();
    assert_eq!(
        (first.tier, first.forward, first.collapsed, first.stored),
        (Tier::L3, Some(Forward::Miss), false, true)
    );
    landed(&cache).await;
    clock.advance(Duration::from_secs(30));
    let second = source.get(&cache, "a").await.unwrap();
    assert_eq!((second.tier, second.forward, second.tag), (Tier::L1, None, 1));
    assert_eq!((second.age.as_secs(), second.remaining.as_secs()), (30, 70));
    assert_eq!(source.calls(), 1);
    let stats = cache.stats();
    assert_eq!((stats.of("product").unwrap().l1_hits, stats.l1.entries), (1, 1));
    cache.stop(Duration::from_secs(1)).await;
}

#[actix::test]
async fn ten_thousand_reads_of_a_cold_key_are_one_fill() {
    let ((cache, _), source) = (cache(), Source::gated());
    let reads = join_all((0..10_000).map(|_| source.get(&cache, "cold")));
    let open = async {
        until("all wait", || cache.stats().of("product").unwrap().coalesced == 9_999).await;
        source.gate.add_permits(1);
    };
    let (found, ()) = futures_util::future::join(reads, open).await;
    assert!(found.iter().all(|found| found.as_ref().unwrap().tag == 1));
    assert_eq!(found.iter().filter(|found| !found.as_ref().unwrap().collapsed).count(), 1);
    // Those that come while it lands, and after, find it too.
    for _ in 0..100 {
        assert_eq!(source.get(&cache, "cold").await.unwrap().tag, 1);
    }
    assert_eq!(source.calls(), 1);
}

#[actix::test]
async fn a_caller_that_leaves_does_not_cancel_the_fill() {
    let ((cache, _), source) = (cache(), Source::gated());
    let left = tokio::time::timeout(Duration::from_millis(20), source.get(&cache, "a")).await;
    assert!(left.is_err());
    source.gate.add_permits(1);
    landed(&cache).await;
    assert_eq!(source.get(&cache, "a").await.unwrap().tier, Tier::L1);
    assert_eq!(source.calls(), 1);
}

#[actix::test]
async fn a_failed_fill_is_everybodys_and_is_tried_again_later() {
    let ((cache, clock), source) = (cache(), Source::new());
    source.fail(true);
    let all = join_all((0..500).map(|_| source.get(&cache, "a"))).await;
    for failed in &all {
        assert_eq!(failed.as_ref().unwrap_err().retry_after(), Some(Duration::from_secs(3)));
    }
    assert!(source.get(&cache, "a").await.is_err());
    assert_eq!(source.calls(), 1, "it is remembered");
    source.fail(false);
    clock.advance(Duration::from_millis(1001));
    assert_eq!(source.get(&cache, "a").await.unwrap().tag, 2);
    assert_eq!(cache.stats().of("product").unwrap().fill_errors, 1);
}

#[actix::test]
async fn a_fill_that_panics_or_hangs_ends_for_who_waits() {
    let (cache, _) = cache();
    let kind = cache.kind("product").unwrap();
    let panics = || async { if true { panic!("as the test asked") } else { Ok(Filled::missing()) } };
    let failed = cache.get(kind, "p", panics).await.unwrap_err();
    assert!(matches!(failed, CacheError::Fill(FillError::Failed(_))), "{failed}");
    let short = CacheOptions { fill_timeout: Duration::from_millis(50), ..options() };
    let (cache, source) = (start(short, Clock::manual(0)).unwrap(), Source::gated());
    let failed = source.get(&cache, "h").await.unwrap_err();
    assert!(matches!(failed, CacheError::TimedOut(_)) && failed.retry_after().is_some(), "{failed}");
}

#[actix::test]
async fn stale_is_served_while_a_fresh_one_is_fetched() {
    let ((cache, clock), source) = (cache(), Source::new());
    source.get(&cache, "a").await.unwrap();
    landed(&cache).await;
    clock.advance(Duration::from_secs(101));
    let stale = source.get(&cache, "a").await.unwrap();
    assert_eq!((stale.tag, stale.freshness), (1, Freshness::Stale(Why::Revalidating)));
    assert_eq!((stale.remaining, stale.age.as_secs()), (Duration::ZERO, 101));
    until("it is refreshed", || source.calls() == 2).await;
    landed(&cache).await;
    let fresh = source.get(&cache, "a").await.unwrap();
    assert_eq!((fresh.tag, fresh.freshness, fresh.tier), (2, Freshness::Fresh, Tier::L1));
    clock.advance(Duration::from_secs(121));
    let late = source.get(&cache, "a").await.unwrap();
    assert_eq!((late.tag, late.forward), (3, Some(Forward::Stale)), "beyond the window it is waited for");
}

#[actix::test]
async fn stale_is_served_when_the_source_is_down_and_says_so() {
    let ((cache, clock), source) = (cache(), Source::new());
    source.get(&cache, "a").await.unwrap();
    landed(&cache).await;
    source.fail(true);
    for minute in 2..15 {
        clock.set(1_000_000 + minute * 60_000 + 5_000);
        let stale = source.get(&cache, "a").await.unwrap();
        assert_eq!((stale.tag, stale.freshness), (1, Freshness::Stale(Why::Error)));
    }
    assert!(source.get(&cache, "b").await.is_err(), "never seen");
    clock.advance(Duration::from_secs(400));
    assert!(source.get(&cache, "a").await.is_err(), "too old");
    source.fail(false);
    clock.advance(Duration::from_secs(2));
    assert_eq!(source.get(&cache, "a").await.unwrap().freshness, Freshness::Fresh);
}

#[actix::test]
async fn a_source_that_hangs_is_waited_for_once_by_who_has_something_stale() {
    let short = CacheOptions { fill_timeout: Duration::from_millis(300), ..options() };
    let clock = Clock::manual(1_000_000);
    let (cache, source) = (start(short, clock.clone()).unwrap(), Source::new());
    source.get(&cache, "a").await.unwrap();
    landed(&cache).await;
    let hung = Source::gated();
    clock.advance(Duration::from_secs(130));
    assert_eq!(hung.get(&cache, "a").await.unwrap().freshness, Freshness::Stale(Why::Error));
    until("the failure is known", || cache.stats().of("product").unwrap().fill_errors == 1).await;
    clock.advance(Duration::from_secs(2));
    let began = Stopwatch::start();
    assert_eq!(hung.get(&cache, "a").await.unwrap().freshness, Freshness::Stale(Why::Error));
    assert!(began.elapsed() < Duration::from_millis(150), "{:?}", began.elapsed());
}

#[actix::test]
async fn what_does_not_exist_is_remembered_for_its_own_time() {
    let (cache, clock) = cache();
    let (kind, calls) = (cache.kind("product").unwrap(), Arc::new(AtomicU32::new(0)));
    let ask = || {
        let calls = calls.clone();
        cache.get(kind, "ghost", move || {
            calls.fetch_add(1, Ordering::SeqCst);
            async { Ok(Filled::missing()) }
        })
    };
    assert_eq!(ask().await.unwrap().body, None);
    landed(&cache).await;
    assert_eq!((ask().await.unwrap().tier, calls.load(Ordering::SeqCst)), (Tier::L1, 1));
    assert_eq!(cache.stats().of("product").unwrap().negative_hits, 1);
    clock.advance(Duration::from_secs(11));
    assert_eq!(ask().await.unwrap().tier, Tier::L3);
}

#[actix::test]
async fn a_fill_begun_before_an_invalidation_is_neither_joined_nor_stored_after_it() {
    let ((cache, _), source) = (cache(), Source::gated());
    let kind = cache.kind("product").unwrap();
    for round in 0..4_u32 {
        let before = source.calls();
        let old = source.get(&cache, "a");
        let rest = async {
            until("the old one is read", || source.calls() == before + 1).await;
            match round % 2 {
                0 => cache.invalidate(kind, &["a"]).await,
                _ => cache.invalidate_kind(kind).await,
            }
            let new = source.get(&cache, "a");
            let open = async {
                until("the new one is read", || source.calls() == before + 2).await;
                source.gate.add_permits(2);
            };
            futures_util::future::join(new, open).await.0
        };
        let (old, new) = futures_util::future::join(old, rest).await;
        assert_eq!((old.unwrap().tag, new.unwrap().tag), (u64::from(before) + 1, u64::from(before) + 2));
        landed(&cache).await;
        assert_eq!(source.get(&cache, "a").await.unwrap().tag, u64::from(before) + 2);
        cache.invalidate(kind, &["a"]).await;
    }
}

#[actix::test]
async fn lifetimes_follow_the_fill_and_are_shortened_by_the_jitter() {
    let types = vec![TypeOptions { jitter: 0.2, ..kind("product") }];
    let read = async |seed| {
        let jittered = CacheOptions { types: types.clone(), seed: Some(seed), ..options() };
        let cache = start(jittered, Clock::manual(0)).unwrap();
        let kind = cache.kind("product").unwrap();
        let mut lives = vec![];
        for id in 0..200 {
            let lifetime = Some(Duration::from_secs(if id % 2 == 0 { 1000 } else { 2000 }));
            let fill = move || async move { Ok(Filled { lifetime, ..Filled::new("x", 1) }) };
            lives.push(cache.get(kind, &id.to_string(), fill).await.unwrap().remaining.as_millis());
        }
        lives
    };
    let lives = read(5).await;
    for (id, life) in lives.iter().enumerate() {
        let whole = if id % 2 == 0 { 1_000_000 } else { 2_000_000 };
        assert!((whole * 8 / 10..=whole).contains(life), "{life} of {whole}");
    }
    assert_eq!(lives, read(5).await, "one seed, one order");
    assert_ne!(lives, read(6).await);
}

#[actix::test]
async fn hot_values_are_refreshed_before_they_end() {
    let clock = Clock::manual(1_000_000);
    let cache = start(CacheOptions { xfetch_beta: 1.0, ..options() }, clock.clone()).unwrap();
    let kind = cache.kind("product").unwrap();
    let calls = Arc::new(AtomicU32::new(0));
    let get = || {
        let calls = calls.clone();
        cache.get(kind, "hot", move || {
            let call = calls.fetch_add(1, Ordering::SeqCst);
            async move {
                tokio::time::sleep(Duration::from_millis(30)).await;
                Ok(Filled::new("hot", u64::from(call)))
            }
        })
    };
    get().await.unwrap();
    landed(&cache).await;
    for _ in 0..500 {
        get().await.unwrap();
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1, "far from its end nothing happens");
    clock.advance(Duration::from_millis(99_990));
    for _ in 0..200 {
        let found = get().await.unwrap();
        assert_eq!((found.freshness, found.tier), (Freshness::Fresh, Tier::L1), "nobody waits");
    }
    until("it is refreshed", || calls.load(Ordering::SeqCst) == 2).await;
    landed(&cache).await;
    assert_eq!(get().await.unwrap().remaining.as_secs(), 100);
    assert_eq!(cache.stats().of("product").unwrap().early_refreshes, 1);
}

#[actix::test]
async fn many_keys_are_one_fill_of_what_is_missing() {
    let ((cache, clock), source) = (cache(), Source::new());
    let kind = cache.kind("product").unwrap();
    for id in ["b", "d"] {
        source.get(&cache, id).await.unwrap();
    }
    landed(&cache).await;
    let asked = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let many = async |ids: &[&str]| {
        let asked = asked.clone();
        cache
            .get_many(kind, ids, move |ids| {
                asked.lock().push(ids.join(","));
                async move { Ok(ids.iter().map(|id| Filled::new(format!("many {id}"), 7)).collect()) }
            })
            .await
            .unwrap()
    };
    let found = many(&["a", "b", "c", "d", "a"]).await;
    let bodies: Vec<_> = found.into_iter().map(|found| found.unwrap().body.unwrap()).collect();
    assert_eq!(bodies, ["many a", "call 1", "many c", "call 2", "many a"]);
    landed(&cache).await;
    clock.advance(Duration::from_secs(101));
    // All of them stale: one refresh.
    assert_eq!(many(&["a", "b", "c", "d"]).await.len(), 4);
    until("they are refreshed", || asked.lock().len() == 2).await;
    assert_eq!(*asked.lock(), ["a,c", "a,b,c,d"]);
    assert!(many(&[]).await.is_empty());
    landed(&cache).await;
    // A source that does not know how many it was asked for.
    let wrong = cache.get_many(kind, &["x", "y"], |_| async { Ok(vec![Filled::missing()]) }).await.unwrap();
    assert!(wrong.iter().all(Result::is_err));
}

#[actix::test]
async fn a_type_without_a_tier_is_only_brought_together() {
    let ((cache, _), calls) = (cache(), Arc::new(AtomicU32::new(0)));
    let kind = cache.kind("nowhere").unwrap();
    let get = || {
        let calls = calls.clone();
        cache.get(kind, "a", move || {
            calls.fetch_add(1, Ordering::SeqCst);
            async { Ok(Filled::new("x", 1)) }
        })
    };
    let all = join_all((0..50).map(|_| get())).await;
    assert!(all.into_iter().all(|found| !found.unwrap().stored));
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    get().await.unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

#[actix::test]
async fn the_bounds_hold_and_a_body_that_is_too_large_is_served_all_the_same() {
    let small = CacheOptions { l1_bytes: 64 << 10, l1_entries: 40, ..options() };
    let cache = start(small, Clock::manual(0)).unwrap();
    let kind = cache.kind("product").unwrap();
    for id in 0..300 {
        cache.get(kind, &id.to_string(), || async { Ok(Filled::new(vec![0; 3000], 1)) }).await.unwrap();
    }
    landed(&cache).await;
    let stats = cache.stats();
    assert!(stats.l1.entries > 10 && stats.l1.entries <= 40 && stats.l1.bytes <= 64 << 10, "{stats:?}");
    let of = stats.of("product").unwrap();
    assert_eq!((of.entries + of.l1_evictions, of.bytes), (300, stats.l1.bytes));
    let large = cache.get(kind, "large", || async { Ok(Filled::new(vec![0; 60_000], 1)) }).await.unwrap();
    assert_eq!((large.body.unwrap().len(), large.stored), (60_000, false));
    until("it was refused", || cache.stats().of("product").unwrap().l1_too_large == 1).await;
    assert!(start(CacheOptions { types: vec![kind_twice(), kind_twice()], ..options() }, Clock::manual(0)).is_err());
}

fn kind_twice() -> TypeOptions {
    kind("product")
}
