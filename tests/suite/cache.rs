//! The cache over several instances on a real Redis: one fill for all, invalidations, and what a bad line does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use deadpool_redis::redis::{self as protocol, Commands};
use futures_util::future::join_all;
use tidegate::cache::{
    self, CacheError, CacheHandle, CacheOptions, FillError, Filled, Found, Freshness, Kind, L2Options, Tier,
    TypeOptions, Why,
};
use tidegate::clock::Clock;
use tidegate::redis::RedisOptions;

use crate::services::{Line, Proxy, Service, fresh, redis, redis_client};
use crate::support::{eventually, within};

fn kind(name: &str) -> TypeOptions {
    TypeOptions {
        name: String::from(name),
        lifetime: Duration::from_secs(600),
        stale: Duration::from_secs(60),
        stale_if_error: Duration::from_secs(3600),
        negative: Duration::from_secs(60),
        l1: true,
        l2: true,
        jitter: 0.0,
    }
}

fn options(url: &str, prefix: &str, timeout: u64) -> CacheOptions {
    let redis = RedisOptions {
        setting: "cache.url",
        urls: url.split(',').map(String::from).collect(),
        cluster: url.contains(','),
        ca: None,
        timeout: Duration::from_millis(timeout),
    };
    CacheOptions {
        types: vec![kind("product"), kind("search"), TypeOptions { l2: false, ..kind("local") }],
        l1_bytes: 8 << 20,
        l1_entries: 10_000,
        xfetch_beta: 0.0,
        fill_timeout: Duration::from_secs(10),
        error_memory: Duration::from_secs(1),
        seed: None,
        l2: Some(L2Options { redis, prefix: prefix.to_owned(), lease: Duration::from_secs(2) }),
    }
}

async fn connected(options: CacheOptions, clock: &Clock) -> CacheHandle {
    let cache = cache::start(options, clock.clone()).unwrap();
    assert!(cache.connected(Duration::from_secs(10)).await, "{:?}", cache.stats());
    cache
}

/// A source whose value can be changed, that can be slow or down, and that counts.
#[derive(Clone, Default)]
struct Source {
    calls: Arc<AtomicU32>,
    value: Arc<AtomicU64>,
    slow: Arc<AtomicU64>,
    down: Arc<AtomicBool>,
}

impl Source {
    fn calls(&self) -> u32 {
        self.calls.load(Ordering::SeqCst)
    }

    fn set(&self, value: u64) {
        self.value.store(value, Ordering::SeqCst);
    }

    async fn read(self) -> Result<Filled, FillError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let value = self.value.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(self.slow.load(Ordering::SeqCst))).await;
        if self.down.load(Ordering::SeqCst) {
            return Err(FillError::Unavailable { what: "it is down".into(), retry_after: Duration::from_secs(1) });
        }
        Ok(Filled::new(value.to_string(), value))
    }

    async fn get_of(&self, cache: &CacheHandle, name: &str, id: &str) -> Result<Found, CacheError> {
        let source = self.clone();
        cache.get(cache.kind(name).unwrap(), id, move || source.clone().read()).await
    }

    async fn get(&self, cache: &CacheHandle, id: &str) -> Found {
        self.get_of(cache, "product", id).await.unwrap()
    }
}

fn product(cache: &CacheHandle) -> Kind {
    cache.kind("product").unwrap()
}

#[actix_web::test]
async fn one_fill_for_all_reads_of_a_cold_key_in_all_instances() {
    let (prefix, clock, source) = (fresh("cache-one-"), Clock::system(), Source::default());
    source.slow.store(400, Ordering::SeqCst);
    let mut caches = vec![];
    for _ in 0..3 {
        caches.push(connected(options(redis(), &prefix, 5000), &clock).await);
    }
    let reads = (0..9_999).map(|i| source.get(&caches[i % 3], "cold"));
    let found = join_all(reads).await;
    assert_eq!(source.calls(), 1);
    assert_eq!(found.iter().filter(|found| !found.collapsed && found.tier == Tier::L3).count(), 1);
    // And what is there is taken by who comes later.
    let late = connected(options(redis(), &prefix, 5000), &clock).await;
    assert_eq!(source.get(&late, "cold").await.tier, Tier::L2);
    assert_eq!(source.calls(), 1);
    let mut redis = redis_client(redis());
    let keys: Vec<String> = redis.keys(format!("{prefix}*")).unwrap();
    assert_eq!(keys.len(), 1, "the lease is gone: {keys:?}");
    let ttl: u64 = redis.pttl(&keys[0]).unwrap();
    assert!((4_000_000..=4_200_000).contains(&ttl), "lifetime and what is served beyond it: {ttl}");
}

#[actix_web::test]
async fn a_lease_whose_holder_is_dead_runs_out_and_a_long_fill_keeps_it() {
    let (prefix, clock, source) = (fresh("cache-lease-"), Clock::system(), Source::default());
    let short = || {
        let mut options = options(redis(), &prefix, 5000);
        options.l2.as_mut().unwrap().lease = Duration::from_millis(400);
        options
    };
    let (a, b) = (connected(short(), &clock).await, connected(short(), &clock).await);
    source.slow.store(1500, Ordering::SeqCst);
    let (long, other) = futures_util::future::join(source.get(&a, "long"), async {
        within(Duration::from_secs(5), "the first reads", async || source.calls() == 1).await;
        source.get(&b, "long").await
    })
    .await;
    assert_eq!((source.calls(), long.tier, other.tier), (1, Tier::L3, Tier::L2), "kept beyond its 400 ms");
    // A lease that nobody prolongs.
    let mut redis = redis_client(redis());
    let keys: Vec<String> = redis.keys(format!("{prefix}cache:value:*long")).unwrap();
    let lease = keys[0].replace("cache:value:", "cache:lease:");
    let _: () = redis.del(&keys[0]).unwrap();
    let _: () = protocol::cmd("SET").arg(&lease).arg("of a dead one").arg("PX").arg(600).query(&mut redis).unwrap();
    source.slow.store(0, Ordering::SeqCst);
    let began = Instant::now();
    let third = connected(short(), &clock).await;
    assert_eq!(source.get(&third, "long").await.tier, Tier::L3);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(source.calls(), 2);
}

#[actix_web::test]
async fn an_invalidation_reaches_the_others_within_50_ms() {
    let (prefix, clock, source) = (fresh("cache-inv-"), Clock::system(), Source::default());
    let a = connected(options(redis(), &prefix, 5000), &clock).await;
    let b = connected(options(redis(), &prefix, 5000), &clock).await;
    let mut took = Vec::new();
    for round in 1..=40_u64 {
        for (name, id) in [("product", "x"), ("search", "q"), ("local", "l")] {
            for cache in [&a, &b] {
                source.get_of(cache, name, id).await.unwrap();
            }
            source.set(round * 10);
            let began = Instant::now();
            match name {
                "search" => a.invalidate_kind(a.kind(name).unwrap()).await,
                _ => a.invalidate(a.kind(name).unwrap(), &[id, "never seen"]).await,
            }
            while source.get_of(&b, name, id).await.unwrap().tag != round * 10 {
                assert!(began.elapsed() < Duration::from_secs(2), "{name}: the old value stays");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            took.push((began.elapsed(), name));
            assert_eq!(source.get_of(&a, name, id).await.unwrap().tag, round * 10, "here at once: {name}");
            source.set(round * 10 + 1);
        }
    }
    took.sort();
    println!("invalidated here, read anew there: p50 {:?}, p95 {:?}, worst {:?}", took[60], took[114], took[119]);
    assert!(took[119].0 < Duration::from_millis(50), "{:?}", &took[100..]);
}

#[actix_web::test]
async fn a_new_generation_is_not_given_to_what_was_read_before_it() {
    let (prefix, clock, source) = (fresh("cache-gen-"), Clock::system(), Source::default());
    let a = connected(options(redis(), &prefix, 5000), &clock).await;
    let b = connected(options(redis(), &prefix, 5000), &clock).await;
    source.set(1);
    source.slow.store(600, Ordering::SeqCst);
    let (old, ()) = futures_util::future::join(source.get_of(&b, "search", "q1"), async {
        within(Duration::from_secs(5), "b reads", async || source.calls() == 1).await;
        source.set(2);
        a.invalidate_kind(a.kind("search").unwrap()).await;
        source.slow.store(0, Ordering::SeqCst);
        // B learns of the new generation while its old reading still runs.
        assert_eq!(source.get_of(&b, "search", "q2").await.unwrap().tag, 2);
    })
    .await;
    assert_eq!(old.unwrap().tag, 1);
    b.stop(Duration::from_secs(5)).await;
    let late = connected(options(redis(), &prefix, 5000), &clock).await;
    assert_eq!(source.get_of(&late, "search", "q1").await.unwrap().tag, 2);
}

#[actix_web::test]
async fn no_lease_is_left_by_who_learns_of_a_new_generation() {
    let (prefix, clock, source) = (fresh("cache-left-"), Clock::system(), Source::default());
    let a = connected(options(redis(), &prefix, 5000), &clock).await;
    let b = connected(options(redis(), &prefix, 5000), &clock).await;
    a.invalidate_kind(a.kind("search").unwrap()).await;
    source.get_of(&a, "search", "q").await.unwrap();
    let mut redis = redis_client(redis());
    let mut count = |what: &str| redis.keys::<_, Vec<String>>(format!("{prefix}cache:{what}:*")).unwrap().len();
    eventually("it is in Redis", async || count("value") == 1 && count("lease") == 0).await;
    assert_eq!(source.get_of(&b, "search", "q").await.unwrap().tier, Tier::L2);
    assert_eq!(count("lease"), 0);
}

#[actix_web::test]
async fn what_was_read_before_an_invalidation_is_stored_nowhere_after_it() {
    let (prefix, clock, source) = (fresh("cache-race-"), Clock::system(), Source::default());
    let a = connected(options(redis(), &prefix, 5000), &clock).await;
    let b = connected(options(redis(), &prefix, 5000), &clock).await;
    for (round, whole) in [(0_u64, false), (1, true), (2, false), (3, true)] {
        let id = format!("r{round}");
        source.set(round * 10);
        source.slow.store(300, Ordering::SeqCst);
        let before = source.calls();
        // B reads the old value and is slow; meanwhile it changes, and A says so.
        let (old, ()) = futures_util::future::join(source.get(&b, &id), async {
            within(Duration::from_secs(5), "b reads", async || source.calls() > before).await;
            source.set(round * 10 + 1);
            match whole {
                true => a.invalidate_kind(product(&a)).await,
                false => a.invalidate(product(&a), &[id.as_str()]).await,
            }
        })
        .await;
        assert_eq!(old.tag, round * 10, "who asked before may have the old one");
        source.slow.store(0, Ordering::SeqCst);
        for cache in [&b, &a, &b] {
            assert_eq!(source.get(cache, &id).await.tag, round * 10 + 1, "{round}");
        }
        let late = connected(options(redis(), &prefix, 5000), &clock).await;
        assert_eq!(source.get(&late, &id).await.tag, round * 10 + 1, "Redis has the new one");
    }
}

#[actix_web::test]
async fn a_batch_is_one_round_trip_and_one_fill_whatever_is_where() {
    let service = Service::start("redis", &[]);
    let (prefix, clock, source) = (fresh("cache-many-"), Clock::system(), Source::default());
    let a = connected(options(&service.address, &prefix, 5000), &clock).await;
    let b = connected(options(&service.address, &prefix, 5000), &clock).await;
    let ids: Vec<String> = (0..60).map(|i| i.to_string()).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    for id in &ids[..20] {
        source.get(&a, id).await;
    }
    for id in &ids[20..40] {
        source.get(&b, id).await;
    }
    let mut redis = redis_client(&service.address);
    eventually("all are in Redis", async || {
        redis.keys::<_, Vec<String>>(format!("{prefix}cache:value:*")).unwrap().len() == 40
    })
    .await;
    let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
    let told = asked.clone();
    let fill = move |ids: Vec<Arc<str>>| {
        told.lock().unwrap().push(ids.len());
        async move { Ok(ids.iter().map(|_| Filled::new("new", 9)).collect()) }
    };
    let reads = a.stats().l2.unwrap().reads;
    let found = a.get_many(product(&a), &ids, fill).await.unwrap();
    assert_eq!(a.stats().l2.unwrap().reads, reads + 1, "one round trip");
    let tiers: Vec<Tier> = found.iter().map(|found| found.as_ref().unwrap().tier).collect();
    assert!(tiers[..20].iter().all(|tier| *tier == Tier::L1), "{tiers:?}");
    assert!(tiers[20..40].iter().all(|tier| *tier == Tier::L2), "{tiers:?}");
    assert!(tiers[40..].iter().all(|tier| *tier == Tier::L3), "{tiers:?}");
    assert_eq!(*asked.lock().unwrap(), [20]);
    // What another instance fills just now is waited for.
    source.slow.store(300, Ordering::SeqCst);
    let before = source.calls();
    let (_, many) = futures_util::future::join(source.get(&b, "77"), async {
        within(Duration::from_secs(5), "b reads", async || source.calls() > before).await;
        let fill = |ids: Vec<Arc<str>>| {
            assert_eq!(ids.iter().map(|id| &**id).collect::<Vec<_>>(), ["78"]);
            async move { Ok(vec![Filled::new("new", 9)]) }
        };
        a.get_many(product(&a), &["77", "78", "1"], fill).await.unwrap()
    })
    .await;
    let tiers: Vec<Tier> = many.iter().map(|found| found.as_ref().unwrap().tier).collect();
    assert_eq!(tiers, [Tier::L2, Tier::L3, Tier::L1]);
}

#[actix_web::test]
async fn a_value_that_cannot_be_read_is_not_there() {
    let (prefix, clock, source) = (fresh("cache-odd-"), Clock::system(), Source::default());
    let a = connected(options(redis(), &prefix, 5000), &clock).await;
    source.get(&a, "1").await;
    let mut redis = redis_client(redis());
    let mut key = String::new();
    eventually("it is in Redis", async || {
        let keys: Vec<String> = redis.keys(format!("{prefix}cache:value:*")).unwrap();
        key = keys.into_iter().next().unwrap_or_default();
        !key.is_empty()
    })
    .await;
    let whole: Vec<u8> = redis.get(&key).unwrap();
    let mut torn = whole.clone();
    *torn.last_mut().unwrap() ^= 1;
    for (round, odd) in [b"".to_vec(), b"hello".to_vec(), whole[..30].to_vec(), torn].into_iter().enumerate() {
        let _: () = redis.set(&key, odd).unwrap();
        let b = connected(options(redis_url(), &prefix, 5000), &clock).await;
        assert_eq!(source.get(&b, "1").await.tier, Tier::L3, "{round}");
        eventually("its lease has ended", async || {
            redis.keys::<_, Vec<String>>(format!("{prefix}cache:lease:*")).unwrap().is_empty()
        })
        .await;
    }
    let _: () = redis.del(&key).unwrap();
    let _: () = redis.hset(&key, "a", 1).unwrap();
    let b = connected(options(redis_url(), &prefix, 5000), &clock).await;
    assert_eq!(source.get(&b, "1").await.tier, Tier::L3, "a hash");
}

fn redis_url() -> &'static str {
    redis()
}

#[actix_web::test]
async fn stale_values_of_redis_serve_a_cold_instance_while_the_source_is_down() {
    let (prefix, source) = (fresh("cache-stale-"), Source::default());
    let clock = Clock::manual(Clock::system().now());
    let a = connected(options(redis(), &prefix, 5000), &clock).await;
    source.get(&a, "1").await;
    let mut redis = redis_client(redis());
    eventually("it is in Redis", async || {
        !redis.keys::<_, Vec<String>>(format!("{prefix}cache:value:*")).unwrap().is_empty()
    })
    .await;
    clock.advance(Duration::from_secs(610));
    source.slow.store(200, Ordering::SeqCst);
    let b = connected(options(redis_url(), &prefix, 5000), &clock).await;
    let stale = source.get(&b, "1").await;
    assert_eq!((stale.tier, stale.freshness), (Tier::L2, Freshness::Stale(Why::Revalidating)));
    eventually("it is refreshed", async || source.get(&b, "1").await.freshness == Freshness::Fresh).await;
    clock.advance(Duration::from_secs(1200));
    source.down.store(true, Ordering::SeqCst);
    let c = connected(options(redis_url(), &prefix, 5000), &clock).await;
    let stale = source.get(&c, "1").await;
    assert_eq!((stale.tier, stale.freshness), (Tier::L2, Freshness::Stale(Why::Error)));
    assert!(source.get_of(&c, "product", "never seen").await.unwrap_err().retry_after().is_some());
}

#[actix_web::test]
async fn without_its_line_l1_serves_nothing_older_than_a_second() {
    for line in [Line::Cut, Line::Swallow] {
        let service = Service::start("redis", &[]);
        let proxy = Proxy::to(&service.address);
        let (prefix, clock, source) = (fresh("cache-line-"), Clock::system(), Source::default());
        let direct = connected(options(&service.address, &prefix, 2000), &clock).await;
        let far = connected(options(&format!("redis://{}", proxy.address), &prefix, 200), &clock).await;
        source.set(1);
        assert_eq!(source.get(&far, "x").await.tag, 1);
        eventually("it is in memory", async || source.get(&far, "x").await.tier == Tier::L1).await;
        proxy.set(line);
        source.set(2);
        direct.invalidate(product(&direct), &["x"]).await;
        let began = Instant::now();
        // Nobody can tell it; but a second after its line died it no longer trusts what it has.
        while source.get(&far, "x").await.tag != 2 {
            assert!(began.elapsed() < Duration::from_millis(1900), "{line:?}: still the old value");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        source.set(3);
        let began = Instant::now();
        while source.get(&far, "x").await.tag != 3 {
            assert!(began.elapsed() < Duration::from_millis(1900), "{line:?}: still the old value, later");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // What it says meanwhile is told when the line is back, before anything is read there.
        direct.invalidate(product(&direct), &["x"]).await;
        source.get(&direct, "y").await;
        source.set(4);
        far.invalidate(product(&far), &["y"]).await;
        assert_eq!(far.stats().l2.unwrap().pending, 1);
        proxy.set(Line::Good);
        eventually("it is back", async || far.connected(Duration::ZERO).await).await;
        assert_eq!(far.stats().l2.unwrap().pending, 0);
        within(Duration::from_secs(2), "the others know", async || source.get(&direct, "y").await.tag == 4).await;
        assert_eq!(source.get(&far, "y").await.tag, 4);
    }
}

#[actix_web::test]
async fn a_dead_or_slow_redis_costs_requests_nothing_for_long() {
    let service = Service::start("redis", &[]);
    let proxy = Proxy::to(&service.address);
    let (prefix, clock, source) = (fresh("cache-dead-"), Clock::system(), Source::default());
    let cache = connected(options(&format!("redis://{}", proxy.address), &prefix, 100), &clock).await;
    for line in [Line::Swallow, Line::Slow, Line::Cut] {
        proxy.set(line);
        let mut slow = 0;
        for i in 0..300 {
            let began = Instant::now();
            let found = source.get(&cache, &format!("{line:?} {i}")).await;
            assert_eq!(found.tier, Tier::L3);
            slow += u32::from(began.elapsed() > Duration::from_millis(60));
            assert!(began.elapsed() < Duration::from_millis(1000), "{:?}", began.elapsed());
        }
        assert!(slow <= 12, "{line:?}: {slow} of 300 waited");
        assert!(!cache.stats().l2.unwrap().up);
        proxy.set(Line::Good);
        eventually("it is back", async || cache.connected(Duration::ZERO).await).await;
    }
    assert!(cache.stats().l2.unwrap().opened >= 3);
    service.kill(None);
    eventually("it is noticed", async || {
        source.get(&cache, &format!("k{}", source.calls())).await;
        !cache.stats().l2.unwrap().up
    })
    .await;
    service.restart();
    eventually("it is back", async || cache.connected(Duration::ZERO).await).await;
    source.get(&cache, "after").await;
    let other = connected(options(&service.address, &prefix, 2000), &clock).await;
    eventually("it is used again", async || source.get(&other, "after").await.tier != Tier::L3).await;
}

#[actix_web::test]
async fn a_cluster_is_one_second_tier() {
    let service = Service::start("redis-cluster", &[]);
    let address = service.address.split_whitespace().collect::<Vec<_>>().join(",");
    let (prefix, clock, source) = (fresh("cache-cluster-"), Clock::system(), Source::default());
    let mut clustered = options(&address, &prefix, 5000);
    clustered.l2.as_mut().unwrap().redis.cluster = true;
    let (a, b) = (connected(clustered.clone(), &clock).await, connected(clustered, &clock).await);
    let ids: Vec<String> = (0..50).map(|i| format!("{{same}}{i}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let many = async |cache: &CacheHandle, tag: u64| {
        let fill = move |ids: Vec<Arc<str>>| async move { Ok(ids.iter().map(|_| Filled::new("v", tag)).collect()) };
        let found = cache.get_many(product(cache), &ids, fill).await.unwrap();
        found.into_iter().map(|found| found.unwrap()).map(|found| (found.tier, found.tag)).collect::<Vec<_>>()
    };
    assert_eq!(many(&a, 1).await, vec![(Tier::L3, 1); 50]);
    let waits = Instant::now();
    while a.stats().l1.entries < 50 {
        assert!(waits.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(many(&b, 2).await.iter().all(|found| *found == (Tier::L2, 1)), "those of the other");
    a.invalidate(product(&a), &ids).await;
    within(Duration::from_secs(2), "b knows", async || many(&b, 3).await.iter().all(|(_, tag)| *tag == 3)).await;
    a.invalidate_kind(product(&a)).await;
    within(Duration::from_secs(2), "b knows", async || many(&b, 4).await.iter().all(|(_, tag)| *tag == 4)).await;
    assert_eq!(source.get(&a, "z").await.tier, Tier::L3);
}
