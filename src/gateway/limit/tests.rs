use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proptest::prelude::*;

use super::check::Store;
use super::key::Caller;
use super::limits::{Pace, Registry};
use super::shard::{Plan, Tally};
use super::verdict::{Denial, LimitSet, Verdict};
use crate::clock::Nanos;
use crate::gateway::options::{LimitKey, LimitOptions, LimiterOptions, StoreDown};

const START: Nanos = 86_400_000_000_000;
const SECOND: Nanos = 1_000_000_000;

fn limit(by: &[LimitKey], limit: u64, period: Duration, burst: u64) -> LimitOptions {
    let (shadow, shared, store_down) = (false, false, StoreDown::Closed);
    LimitOptions { by: by.to_vec(), limit, period, burst, shadow, shared, store_down }
}

fn apply(store: &Store, limits: &[(&str, LimitOptions)], now: Nanos) {
    let limits: BTreeMap<_, _> = limits.iter().map(|(name, limit)| (String::from(*name), limit.clone())).collect();
    let (registry, changed) = store.registry.load().with(&limits, &LimiterOptions::default(), &[]);
    store.registry.store(Arc::new(registry));
    for (old, new) in changed {
        store.shards.iter().for_each(|shard| shard.0.lock().convert(new.kind, &old.rate, &new.rate, now));
    }
}

fn store(limits: &[(&str, LimitOptions)], max_bytes: u64) -> Store {
    let store = Store::new(Plan::new(max_bytes, false), Pace::new(&LimiterOptions::default()));
    apply(&store, limits, START);
    store
}

fn set(store: &Store, names: &[&str]) -> LimitSet {
    let registry: Arc<Registry> = store.registry.load_full();
    LimitSet::of(names.iter().map(|name| registry.by_name[*name].clone()).collect())
}

fn address(n: u32) -> Caller<'static> {
    Caller { address: IpAddr::V4(Ipv4Addr::from_bits(n)), api_key: None, user: None, route: "r" }
}

fn headers(verdict: &Verdict) -> Vec<String> {
    verdict.headers().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect()
}

/// A token bucket in whole numbers: tokens times the period's nanoseconds. It knows nothing of GCRA.
#[derive(Clone, Copy)]
struct Oracle {
    level: u128,
    at: Nanos,
}

impl Oracle {
    fn new(options: &LimitOptions, now: Nanos) -> Self {
        Self { level: u128::from(options.burst) * options.period.as_nanos(), at: now }
    }

    fn fill(&mut self, options: &LimitOptions, now: Nanos) {
        let cap = u128::from(options.burst) * options.period.as_nanos();
        self.level = cap.min(self.level + u128::from(now - self.at) * u128::from(options.limit));
        self.at = now;
    }

    /// Nanoseconds to wait; 0 passes, `None` never will.
    fn wait(&self, options: &LimitOptions, cost: u32) -> Option<u64> {
        let need = u128::from(cost) * options.period.as_nanos();
        let lacks = need.saturating_sub(self.level);
        (u64::from(cost) <= options.burst).then(|| lacks.div_ceil(u128::from(options.limit)) as u64)
    }

    fn remaining(&self, options: &LimitOptions) -> u64 {
        (self.level / options.period.as_nanos()) as u64
    }
}

fn options() -> impl Strategy<Value = LimitOptions> {
    let period = prop_oneof![
        Just(1_000_000_000_u64),
        Just(60_000_000_000),
        Just(3_600_000_000_000),
        1_u64..10_000,
        999_999_000..1_000_001_000_u64
    ];
    let per = prop_oneof![1_u64..200, 1_000_000_u64..1_000_010];
    (per, period, 1_u64..20)
        .prop_map(|(per, period, burst)| limit(&[LimitKey::Address], per, Duration::from_nanos(period), burst))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn decisions_equal_those_of_exact_arithmetic(
        limits in proptest::collection::vec(options(), 1..4),
        steps in proptest::collection::vec((0_u32..3, 0_u32..22, 0_u64..=100, any::<bool>()), 1..120),
    ) {
        let names = ["a", "b", "c"];
        let named: Vec<_> = names.iter().copied().zip(limits.iter().cloned()).collect();
        let names = &names[..limits.len()];
        let store = store(&named, 1 << 20);
        let set = set(&store, names);
        let mut now = START;
        let mut oracles: Vec<[Oracle; 3]> = limits.iter().map(|limit| [Oracle::new(limit, now); 3]).collect();
        let mut passed: Vec<(Nanos, u32, u64)> = vec![];
        let mut wait = 0;
        for (key, cost, percent, exactly) in steps {
            // Around the time that one token takes, or to the nanosecond when a refused one would pass.
            let token = limits[0].period.as_nanos() as u64 / limits[0].limit;
            now += if exactly { wait } else { token * percent / 50 };
            let verdict = store.check(now, &set, &address(key), cost);
            let mut waits = vec![];
            for (limit, keys) in limits.iter().zip(&mut oracles) {
                keys[key as usize].fill(limit, now);
                waits.push(keys[key as usize].wait(limit, cost));
            }
            let passes = waits.iter().all(|wait| *wait == Some(0));
            prop_assert_eq!(verdict.allowed(), passes);
            if passes {
                for (limit, keys) in limits.iter().zip(&mut oracles) {
                    keys[key as usize].level -= u128::from(cost) * limit.period.as_nanos();
                }
                passed.push((now, key, u64::from(cost)));
                let least = limits.iter().zip(&oracles).map(|(limit, keys)| keys[key as usize].remaining(limit)).min();
                prop_assert_eq!(verdict.tightest().map(|report| report.remaining), least);
                wait = 0;
            } else if waits.contains(&None) {
                prop_assert_eq!(verdict.denial(), Some(Denial::CostTooLarge));
                prop_assert_eq!(verdict.retry_after(), None);
                wait = 0;
            } else {
                wait = waits.iter().flatten().copied().max().unwrap();
                prop_assert_eq!(verdict.denial(), Some(Denial::Exhausted));
                prop_assert_eq!(verdict.retry_after(), Some(Duration::from_nanos(wait)));
            }
        }
        // Whatever the oracle says: in no window is it more than promised.
        for key in 0..3 {
            let passed: Vec<_> = passed.iter().filter(|(_, of, _)| *of == key).collect();
            for first in 0..passed.len() {
                let mut sum = 0_u128;
                for last in &passed[first..] {
                    sum += u128::from(last.2);
                    for limit in &limits {
                        let period = limit.period.as_nanos();
                        let bound = u128::from(limit.burst) * period
                            + u128::from(limit.limit) * u128::from(last.0 - passed[first].0);
                        prop_assert!(sum * period <= bound);
                    }
                }
            }
        }
    }
}

#[test]
fn all_limits_are_charged_together_or_none() {
    let minute = Duration::from_secs(60);
    let store = store(
        &[
            ("ip", limit(&[LimitKey::Address], 100, minute, 10)),
            ("key", limit(&[LimitKey::ApiKey], 1000, minute, 3)),
            ("route", limit(&[LimitKey::Route], 6, minute, 20)),
        ],
        1 << 20,
    );
    let all = set(&store, &["ip", "key", "route"]);
    let caller = Caller { api_key: Some("k"), ..address(1) };
    for left in [2, 1, 0] {
        let verdict = store.check(START, &all, &caller, 1);
        assert!(verdict.allowed());
        let report = verdict.tightest().unwrap();
        assert_eq!((report.name, report.quota, report.window, report.remaining), ("key", 1000, 60, left));
    }
    for _ in 0..50 {
        let verdict = store.check(START, &all, &caller, 1);
        assert_eq!((verdict.denial(), verdict.tightest().unwrap().name), (Some(Denial::Exhausted), "key"));
        assert_eq!(verdict.retry_after(), Some(Duration::from_millis(60)));
    }
    // The other two have paid for three, and a caller without a key does not pay that one.
    let verdict = store.check(START, &all, &address(1), 1);
    assert!(verdict.allowed());
    assert_eq!(verdict.tightest().unwrap().remaining, 6);
    assert_eq!(
        headers(&verdict),
        ["ratelimit-policy: \"ip\";q=100;w=60, \"route\";q=6;w=60", "ratelimit: \"ip\";r=6;t=3"]
    );
    // Denied by two: the one that takes longer is told.
    let verdict = store.check(START, &all, &caller, 3);
    assert_eq!(verdict.tightest().unwrap().name, "key");
    assert!(store.check(START, &set(&store, &["route"]), &caller, 16).allowed());
    let verdict = store.check(START, &all, &caller, 3);
    assert_eq!(verdict.tightest().unwrap().name, "route");
    assert_eq!(verdict.retry_after(), Some(Duration::from_secs(30)));
    assert_eq!(headers(&verdict)[1..], ["ratelimit: \"route\";r=0;t=30", "retry-after: 30"]);
}

#[test]
fn what_costs_more_than_the_burst_is_not_told_to_come_again() {
    let store = store(&[("ip\"", limit(&[LimitKey::Address], 100, Duration::from_secs(60), 10))], 1 << 20);
    let set = set(&store, &["ip\""]);
    let verdict = store.check(START, &set, &address(1), 11);
    assert_eq!((verdict.denial(), verdict.retry_after()), (Some(Denial::CostTooLarge), None));
    assert_eq!(headers(&verdict), ["ratelimit-policy: \"ip\\\"\";q=100;w=60", "ratelimit: \"ip\\\"\";r=10;t=0"]);
    assert!(store.check(START, &set, &address(1), 10).allowed());
    let verdict = store.check(START, &set, &address(1), 1);
    assert_eq!(verdict.retry_after(), Some(Duration::from_millis(600)));
    assert_eq!(headers(&verdict)[2], "retry-after: 1");
}

#[test]
fn a_limit_in_shadow_counts_and_denies_nothing() {
    let minute = Duration::from_secs(60);
    let shadow = LimitOptions { shadow: true, ..limit(&[LimitKey::Address], 2, minute, 2) };
    let store = store(&[("shadow", shadow), ("real", limit(&[LimitKey::Address], 5, minute, 5))], 1 << 20);
    let both = set(&store, &["shadow", "real"]);
    let passed = (0..8).filter(|_| store.check(START, &both, &address(1), 1).allowed()).count();
    assert_eq!(passed, 5);
    let registry = store.registry.load();
    let count = |name: &str| {
        let counters = &registry.by_name[name].counters;
        [&counters.allowed, &counters.denied, &counters.would_deny].map(|counter| counter.load(Ordering::Relaxed))
    };
    // Two of its own, three that it would have denied, and three more that the other denied too.
    assert_eq!((count("shadow"), count("real")), ([2, 0, 6], [5, 3, 0]));
    let verdict = store.check(START + 12 * SECOND, &both, &address(1), 1);
    assert_eq!(headers(&verdict), ["ratelimit-policy: \"real\";q=5;w=60", "ratelimit: \"real\";r=0;t=60"]);
    assert!(headers(&store.check(START, &set(&store, &["shadow"]), &address(1), 1)).is_empty());
}

#[test]
fn without_a_limit_that_applies_everything_passes_untold() {
    let store =
        store(&[("key", limit(&[LimitKey::ApiKey, LimitKey::Address], 1, Duration::from_secs(60), 1))], 1 << 20);
    for set in [set(&store, &[]), set(&store, &["key"])] {
        for _ in 0..3 {
            let verdict = store.check(START, &set, &address(1), 1);
            assert!(verdict.allowed() && verdict.tightest().is_none() && headers(&verdict).is_empty());
        }
    }
}

#[test]
fn more_limits_than_usual_are_all_paid() {
    let names: Vec<String> = (0..20).map(|n| format!("limit-{n:02}")).collect();
    let named: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(n, name)| (name.as_str(), limit(&[LimitKey::Address], 10, Duration::from_secs(60), 5 + n as u64)))
        .collect();
    let store = store(&named, 64 << 10);
    let all = set(&store, &names.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!((0..9).filter(|_| store.check(START, &all, &address(1), 1).allowed()).count(), 5);
    let last = set(&store, &["limit-19"]);
    assert_eq!(store.check(START, &last, &address(1), 1).tightest().unwrap().remaining, 18);
}

#[test]
fn a_million_rotating_keys_stay_in_memory_bounds_and_none_regains_a_token_early() {
    const KEYS: u32 = 1_000_000;
    for (mib, per_key) in [(64, 64), (16, 17)] {
        let options = limit(&[LimitKey::Address], 7, Duration::from_secs(100), 5);
        let store = store(&[("ip", options.clone())], mib << 20);
        let set = set(&store, &["ip"]);
        let mut oracles: HashMap<u32, Oracle> = HashMap::with_capacity(KEYS as usize);
        let (mut now, mut most, mut allowed, mut stricter, mut early) = (START, 0, 0_u32, 0_u32, 0_u32);
        let (mut there, mut evicted) = (Tally::default(), Tally::default());
        for round in 0..3_u32 {
            for n in 0..KEYS {
                // In another order each time, faster than buckets fill.
                let key = n.wrapping_mul(2_654_435_761).wrapping_add(round) % KEYS;
                now += 20_000;
                let oracle = oracles.entry(key).or_insert_with(|| Oracle::new(&options, now));
                oracle.fill(&options, now);
                let cost = 1 + (key + round) % 3;
                let verdict = store.check(now, &set, &address(key), cost);
                let passes = oracle.wait(&options, cost) == Some(0);
                if verdict.allowed() {
                    allowed += 1;
                    early += u32::from(!passes);
                    oracle.level = oracle.level.saturating_sub(u128::from(cost) * options.period.as_nanos());
                } else {
                    stricter += u32::from(passes);
                }
                if n % 100_000 == 0 {
                    most = most.max(store.bytes());
                }
            }
            most = most.max(store.bytes());
            store.shards.iter().for_each(|shard| shard.0.lock().sweep(now, &mut there, &mut evicted));
        }
        println!(
            "{mib} MiB: {} bytes a key, {allowed} allowed, {stricter} stricter than exact, {} evicted",
            most / u64::from(KEYS),
            evicted.iter().map(|(_, n)| n).sum::<u64>()
        );
        assert_eq!(early, 0, "with {mib} MiB");
        assert!(most <= mib << 20, "{most} bytes of {mib} MiB");
        assert!(most / u64::from(KEYS) <= per_key);
        assert!(allowed > KEYS, "the bounds do not deny all");
        // With room for all keys nothing is evicted, and nothing denied that need not be.
        assert!(mib < 64 || stricter == 0);
        assert!(mib == 64 || evicted.iter().map(|(_, n)| n).sum::<u64>() > 0);
    }
}

#[test]
fn under_threads_exactly_the_limit_is_granted_and_nothing_is_half_charged() {
    let hour = Duration::from_secs(3600);
    let named = [
        ("ip", limit(&[LimitKey::Address], 1, hour, 50_000)),
        ("route", limit(&[LimitKey::Route], 1, hour, 30_000)),
        ("all", limit(&[], 1, hour, 40_000)),
    ];
    let store = store(&named, 1 << 20);
    let passed = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for names in [["ip", "route", "all"], ["all", "route", "ip"]] {
            let (store, passed) = (&store, &passed);
            scope.spawn(move || {
                let set = set(store, &names);
                for _ in 0..40_000 {
                    passed.fetch_add(u64::from(store.check(START, &set, &address(1), 1).allowed()), Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(passed.into_inner(), 30_000);
    for (name, left) in [("ip", 20_000), ("route", 0), ("all", 10_000)] {
        let verdict = store.check(START, &set(&store, &[name]), &address(1), 0);
        assert_eq!(verdict.tightest().unwrap().remaining, left, "{name}");
    }
}

#[test]
fn other_limits_keep_what_was_spent() {
    let minute = Duration::from_secs(60);
    let store = store(&[("ip", limit(&[LimitKey::Address], 60, minute, 20))], 1 << 20);
    assert!(store.check(START, &set(&store, &["ip"]), &address(1), 15).allowed());
    let left =
        |names: &str, now| store.check(now, &set(&store, &[names]), &address(1), 0).tightest().unwrap().remaining;
    for (per, burst, remaining) in [(7, 20, 5), (600, 40, 25), (600, 10, 0)] {
        apply(&store, &[("ip", limit(&[LimitKey::Address], per, minute, burst))], START);
        assert_eq!(left("ip", START), remaining, "{per} a minute, {burst} at once");
    }
    assert_eq!(left("ip", START + SECOND), 10);
    apply(&store, &[("ip", limit(&[LimitKey::Route], 600, minute, 10))], START);
    assert_eq!(left("ip", START), 10, "another key is another limit");
}
