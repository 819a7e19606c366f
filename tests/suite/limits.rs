//! Limits that instances share through a real Redis: never over the limit, hardly under it, and what outages do.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tidegate::clock::{Monotonic, Nanos};
use tidegate::gateway::limit::{Caller, Denial, LimitSet, Limits};
use tidegate::gateway::options::{LimitKey, LimitOptions, LimiterOptions, StoreDown};
use tidegate::redis::RedisOptions;

use crate::services::{Line, Proxy, Service, fresh, redis, redis_client};
use crate::support::within;

fn shared(limit: u64, period: Duration, burst: u64, store_down: StoreDown) -> LimitOptions {
    LimitOptions { by: vec![LimitKey::User], limit, period, burst, shadow: false, shared: true, store_down }
}

/// One instance with its limits.
struct Instance {
    limits: Limits,
    set: LimitSet,
    clock: Monotonic,
}

impl Instance {
    fn start(url: &str, prefix: &str, clock: &Monotonic, limit: &LimitOptions) -> Self {
        let redis = RedisOptions {
            setting: "gateway.limiter.url",
            urls: url.split(',').map(String::from).collect(),
            cluster: url.contains(','),
            ca: None,
            timeout: Duration::from_secs(2),
        };
        let options = LimiterOptions { redis: Some(redis), prefix: String::from(prefix), ..LimiterOptions::default() };
        let limits = BTreeMap::from([(String::from("shared"), limit.clone())]);
        let limits = Limits::start(&limits, &options, clock.clone()).unwrap();
        let set = limits.resolve(&[String::from("shared")]);
        Self { limits, set, clock: clock.clone() }
    }

    async fn connected(url: &str, prefix: &str, clock: &Monotonic, limit: &LimitOptions) -> Self {
        let this = Self::start(url, prefix, clock, limit);
        assert!(this.limits.connected(Duration::from_secs(10)).await, "{:?}", this.limits.stats());
        this
    }

    fn denial(&self, user: &str) -> Option<Denial> {
        let caller = Caller { address: [192, 0, 2, 1].into(), api_key: None, user: Some(user), route: "r" };
        self.limits.check(self.clock.now(), &self.set, &caller, 1).denial()
    }

    fn passes(&self, user: &str) -> bool {
        self.denial(user).is_none()
    }
}

/// Requests that passed, by when.
#[derive(Default)]
struct Passed(Vec<Nanos>);

impl Passed {
    /// How many more than allowed there were in the worst of all windows; not more than 0 is well.
    fn over(&self, limit: &LimitOptions) -> i128 {
        let (period, per) = (limit.period.as_nanos() as i128, i128::from(limit.limit));
        let mut least = i128::MAX;
        let mut worst = i128::MIN;
        for (n, at) in self.0.iter().enumerate() {
            let due = n as i128 * period - per * i128::from(*at);
            least = least.min(due);
            worst = worst.max(due + period - least);
        }
        (worst - i128::from(limit.burst) * period).div_euclid(period)
    }
}

/// Sends requests to instances for a while, more than may pass, in these parts of a hundred.
async fn send(instances: &[&Instance], parts: &[u32], user: &str, lasts: Duration, passed: &mut Passed) -> u64 {
    let begun = Instant::now();
    let (mut n, mut sent) = (0_u32, 0);
    while begun.elapsed() < lasts {
        for _ in 0..3 {
            n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let mut dice = (n >> 16) % 100;
            for (instance, part) in instances.iter().zip(parts) {
                if dice < *part {
                    sent += 1;
                    let now = instance.clock.now();
                    if instance.passes(user) {
                        passed.0.push(now);
                    }
                    break;
                }
                dice -= part;
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    sent
}

#[actix_web::test]
async fn three_instances_let_through_what_one_limit_allows_however_skewed() {
    let (clock, prefix) = (Monotonic::system(), fresh("limits-skew-"));
    let limit = shared(400, Duration::from_secs(2), 60, StoreDown::Closed);
    let mut all = vec![];
    for _ in 0..3 {
        all.push(Instance::connected(redis(), &prefix, &clock, &limit).await);
    }
    let mut passed = Passed::default();
    let begun = clock.now();
    let mut sent = 0;
    for parts in [[90, 8, 2], [2, 8, 90], [34, 33, 33]] {
        let instances: Vec<&Instance> = all.iter().collect();
        sent += send(&instances, &parts, "u", Duration::from_secs(3), &mut passed).await;
    }
    // One is gone from one moment to the next, with what it holds.
    drop(all.pop());
    let left: Vec<&Instance> = all.iter().collect();
    sent += send(&left, &[80, 20], "u", Duration::from_secs(3), &mut passed).await;
    let took = clock.now() - begun;
    let allowed = limit.burst + 400 * took / 2_000_000_000;
    let granted = passed.0.len() as u64;
    let stats = all[0].limits.stats();
    println!(
        "{sent} sent, {granted} of {allowed} granted ({:.1} %), {} over, {} round trips",
        100.0 * granted as f64 / allowed as f64,
        passed.over(&limit),
        stats.round_trips
    );
    assert!(passed.over(&limit) <= 0, "{} over", passed.over(&limit));
    assert!(granted * 100 >= allowed * 95, "{granted} of {allowed}");
    assert_eq!((stats.outages, stats.failures, stats.degraded), (0, 0, false));
    // The background asks by time, not by request: a message for the key and a beat an interval at most.
    assert!(stats.round_trips <= took / 50_000_000 * 2 + 10, "{}", stats.round_trips);
}

#[actix_web::test]
async fn many_keys_at_a_modest_pace_are_not_denied_and_bursts_are_not_exceeded() {
    let (clock, prefix) = (Monotonic::system(), fresh("limits-many-"));
    let limit = shared(100, Duration::from_secs(60), 20, StoreDown::Closed);
    let a = Instance::connected(redis(), &prefix, &clock, &limit).await;
    let b = Instance::connected(redis(), &prefix, &clock, &limit).await;
    // First requests: none needs to wait for Redis.
    for n in 0..2000 {
        assert!(a.passes(&format!("user-{n}")) && b.passes(&format!("user-{n}")), "{n}");
    }
    // One who wants all gets the burst, and no more, of both together.
    let mut passed = Passed::default();
    send(&[&a, &b], &[50, 50], "greedy", Duration::from_secs(2), &mut passed).await;
    assert!(passed.over(&limit) <= 0);
    assert!((14..=23).contains(&passed.0.len()), "{}", passed.0.len());
    // The keys' names are not in Redis.
    let keys: Vec<String> =
        deadpool_redis::redis::Commands::keys(&mut redis_client(redis()), format!("{prefix}*")).unwrap();
    assert!(keys.len() > 2000 && !keys.iter().any(|key| key.contains("user") || key.contains("greedy")));
}

#[actix_web::test]
async fn who_stops_gives_back_what_it_holds() {
    let (clock, prefix) = (Monotonic::system(), fresh("limits-stop-"));
    let limit = shared(1, Duration::from_secs(3600), 100, StoreDown::Closed);
    let a = Instance::connected(redis(), &prefix, &clock, &limit).await;
    let b = Instance::connected(redis(), &prefix, &clock, &limit).await;
    // Takes leases for its pace, and leaves off.
    let mut by_a = 0;
    for _ in 0..4 {
        by_a += (0..10).filter(|_| a.passes("u")).count();
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    assert!(a.limits.stats().limits[0].leased > 0);
    a.limits.stop(Duration::from_secs(5)).await;
    let mut by_b = 0;
    for _ in 0..40 {
        by_b += usize::from(b.passes("u"));
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    // Half of the burst was in Redis and none of it is lost; when it is used up `b` has its credit, a quarter of the rest.
    assert!((61..=63).contains(&(by_a + by_b)), "{by_a} and {by_b}");
    assert!(a.limits.stats().limits[0].returned > 0);
}

#[actix_web::test]
async fn a_line_that_swallows_and_stalls_never_lets_more_through() {
    let (clock, prefix) = (Monotonic::system(), fresh("limits-line-"));
    let limit = shared(400, Duration::from_secs(2), 100, StoreDown::Closed);
    let lines = [Proxy::to(redis()), Proxy::to(redis()), Proxy::to(redis())];
    let mut all = vec![];
    for line in &lines {
        all.push(Instance::connected(&format!("redis://{}", line.address), &prefix, &clock, &limit).await);
    }
    let instances: Vec<&Instance> = all.iter().collect();
    let mut passed = Passed::default();
    let bad = [Line::Swallow, Line::Slow, Line::SwallowScripts, Line::Cut];
    for round in 0..12 {
        let (which, kind) = (round % 3, bad[round % 4]);
        lines[which].set(kind);
        send(&instances, &[40, 30, 30], "u", Duration::from_millis(350 + 50 * round as u64), &mut passed).await;
        lines[which].set(Line::Good);
        lines[which].cut();
        send(&instances, &[40, 30, 30], "u", Duration::from_millis(200), &mut passed).await;
    }
    println!("{} granted over bad lines, {} over", passed.0.len(), passed.over(&limit));
    assert!(passed.over(&limit) <= 0, "{} over", passed.over(&limit));
    assert!(passed.0.len() > 1000, "only {}", passed.0.len());
}

#[actix_web::test]
async fn without_redis_each_limit_does_as_it_is_told_and_recovers_by_itself() {
    let service = Service::start("redis", &[]);
    let (clock, prefix) = (Monotonic::system(), fresh("limits-down-"));
    let period = Duration::from_secs(1);
    let limit = |down| shared(100, period, 40, down);
    let mut pairs = vec![];
    for down in [StoreDown::LocalShare, StoreDown::Open, StoreDown::Closed] {
        let prefix = format!("{prefix}{down:?}-");
        let a = Instance::connected(&service.address, &prefix, &clock, &limit(down)).await;
        let b = Instance::connected(&service.address, &prefix, &clock, &limit(down)).await;
        // Both have heard of each other.
        within(Duration::from_secs(5), "two instances", async || {
            a.limits.stats().instances == 2 && b.limits.stats().instances == 2
        })
        .await;
        pairs.push((a, b));
    }
    let [(local, local_b), (open, _), (closed, _)] = pairs.as_slice() else { panic!("three") };
    let mut passed = Passed::default();
    send(&[local, local_b], &[50, 50], "u", Duration::from_secs(1), &mut passed).await;
    assert!(closed.passes("x") && open.passes("x"));
    let killed = Instant::now();
    service.kill(None);
    let all = || pairs.iter().flat_map(|(a, b)| [a, b]);
    within(Duration::from_secs(3), "the outage is seen", async || all().all(|i| i.limits.stats().degraded)).await;
    println!("the outage is seen after {:?}", killed.elapsed());
    assert!(killed.elapsed() < Duration::from_millis(1500));
    assert!(local.limits.stats().limits[0].degraded);
    assert_eq!((0..1000).filter(|_| open.passes("x")).count(), 1000);
    assert_eq!(closed.denial("x"), Some(Denial::StoreDown));
    let before = passed.0.len();
    send(&[local, local_b], &[95, 5], "u", Duration::from_secs(2), &mut passed).await;
    let shares = passed.0.len() - before;
    // The one with nearly all of the traffic lets through its half, the other what little it gets of its own.
    assert!((80..=220).contains(&shares), "{shares}");
    assert!(passed.over(&limit(StoreDown::LocalShare)) <= 0);
    service.restart();
    within(Duration::from_secs(10), "the limits are shared again", async || {
        all().all(|i| !i.limits.stats().degraded && i.limits.stats().instances == 2)
    })
    .await;
    let mut after = Passed::default();
    send(&[local, local_b], &[50, 50], "u", Duration::from_secs(2), &mut after).await;
    assert!(after.over(&limit(StoreDown::LocalShare)) <= 0);
    assert!(after.0.len() >= 150, "{}", after.0.len());
    passed.0.extend(after.0);
    // Redis has forgotten everything: at most one more burst.
    assert!(passed.over(&limit(StoreDown::LocalShare)) <= 40, "{}", passed.over(&limit(StoreDown::LocalShare)));
    assert!(closed.passes("x") && open.passes("y"));
    assert!(all().all(|i| i.limits.stats().outages == 1));
}

#[actix_web::test]
async fn a_cluster_shares_as_one_server_does() {
    let service = Service::start("redis-cluster", &[]);
    let (clock, prefix) = (Monotonic::system(), fresh("limits-cluster-"));
    let limit = shared(200, Duration::from_secs(1), 60, StoreDown::Closed);
    let a = Instance::connected(&service.address, &prefix, &clock, &limit).await;
    let b = Instance::connected(&service.address, &prefix, &clock, &limit).await;
    let users: Vec<String> = (0..8).map(|n| format!("user-{n}")).collect();
    for user in &users {
        let mut passed = Passed::default();
        let begun = clock.now();
        send(&[&a, &b], &[70, 30], user, Duration::from_secs(1), &mut passed).await;
        let allowed = 60 + 200 * (clock.now() - begun) / 1_000_000_000;
        assert!(passed.over(&limit) <= 0, "{user}: {} over", passed.over(&limit));
        assert!(passed.0.len() as u64 * 100 >= allowed * 75, "{user}: {} of {allowed}", passed.0.len());
    }
}
