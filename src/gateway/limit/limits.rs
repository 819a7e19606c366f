//! The limits themselves, as the config has them, with what is worked out of it once and what they count.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::gcra::Rate;
use super::key::{self, Caller, Seed};
use super::lease::Terms;
use super::shard::Kind;
use crate::clock::Nanos;
use crate::gateway::options::{LimitKey, LimitOptions, LimiterOptions, StoreDown};

/// Of the burst, so much is there for credits if it is less than half: a small burst must let the first request of a key
/// through before anything else.
const LEAST_RESERVE: u64 = 12;
/// Instances are counted for the credit as long as this at least, in nanoseconds.
const REMEMBERED: u64 = 60_000_000_000;
/// One that was not heard of for so long does not live, in milliseconds.
const LIVE: u64 = 3000;

/// A limit as it was, and as it is.
pub type Changed = (Arc<Limit>, Arc<Limit>);

/// A limit.
#[derive(Debug)]
pub(super) struct Limit {
    pub name: Arc<str>,
    pub slot: u32,
    pub kind: Kind,
    pub rate: Rate,
    pub options: LimitOptions,
    /// Its item of `RateLimit-Policy`.
    pub policy: String,
    /// Its name as an item of a structured field.
    pub quoted: String,
    pub counters: Arc<Counters>,
    pub sharing: Option<Sharing>,
}

/// What a limit counts. Cache lines of their own: every request writes here.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Counters {
    pub allowed: AtomicU64,
    pub denied: AtomicU64,
    pub would_deny: AtomicU64,
    pub evicted: AtomicU64,
    pub leased: AtomicU64,
    pub returned: AtomicU64,
}

/// What a shared limit has beside.
#[derive(Debug)]
pub(super) struct Sharing {
    /// Tokens in Redis at most.
    pub cap: u32,
    /// Of the burst, what all credits may be together.
    reserve: u64,
    credit: AtomicU32,
    share: ArcSwap<Rate>,
    /// Units a microsecond, and a token.
    pub redis_rate: (u64, u64),
    pub down: StoreDown,
    /// What its keys in Redis begin with.
    pub prefix: String,
}

/// A text as a structured field's string (RFC 9651, section 3.3.3). What cannot stand in one becomes `?`.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            ' '..='~' => quoted.push(c),
            _ => quoted.push('?'),
        }
    }
    quoted.push('"');
    quoted
}

/// The largest whole number of a structured field.
const LARGEST: u64 = 999_999_999_999_999;

/// Nanoseconds as whole seconds, rounded up.
pub(super) fn seconds(nanos: u64) -> u64 {
    nanos.div_ceil(1_000_000_000)
}

impl Limit {
    pub fn new(
        name: &str,
        slot: u32,
        options: &LimitOptions,
        limiter: &LimiterOptions,
        counters: Arc<Counters>,
        ages: &[u64],
    ) -> Self {
        let rate = Rate::new(options.limit, options.period, options.burst);
        let quoted = quoted(name);
        let window = seconds(u64::try_from(options.period.as_nanos()).unwrap_or(u64::MAX)).clamp(1, LARGEST);
        let policy = format!("{quoted};q={};w={window}", options.limit.min(LARGEST));
        let sharing = (options.shared && limiter.redis.is_some()).then(|| {
            let sharing = Sharing::new(name, options, &rate, &limiter.prefix);
            sharing.instances(options, &rate, ages);
            sharing
        });
        let kind = Kind::new(slot, rate.fill());
        Self { name: name.into(), slot, kind, rate, options: options.clone(), policy, quoted, counters, sharing }
    }

    pub fn hash(&self, seed: Seed, caller: &Caller<'_>) -> Option<u64> {
        key::hash(seed, self.slot, &self.options.by, caller)
    }

    /// Told how long ago each instance was heard of, in milliseconds.
    pub fn instances(&self, ages: &[u64]) {
        if let Some(sharing) = &self.sharing {
            sharing.instances(&self.options, &self.rate, ages);
        }
    }

    /// Whether this one and an older one of its name mean the same buckets.
    pub fn same_buckets(&self, by: &[LimitKey]) -> bool {
        self.options.by == by
    }
}

/// Of a burst, what all credits may be together; the rest is what leases are taken from.
fn reserve(burst: u64) -> u64 {
    (burst / 2).max(LEAST_RESERVE).min(burst.saturating_sub(1))
}

/// The most that a request may cost to pass a limit with this burst at all.
pub fn most_at_once(burst: u64, shared: bool) -> u64 {
    if shared { burst - reserve(burst) } else { burst }
}

impl Sharing {
    fn new(name: &str, options: &LimitOptions, rate: &Rate, prefix: &str) -> Self {
        let reserve = reserve(rate.burst());
        let cap = u32::try_from(rate.burst() - reserve).unwrap_or(u32::MAX);
        let limit = u128::from(options.limit.max(1)) * 1000;
        let period = options.period.as_nanos().max(1);
        let common = gcd(limit, period);
        let units = |n: u128| u64::try_from(n / common).unwrap_or(u64::MAX).max(1);
        Self {
            cap,
            reserve,
            credit: AtomicU32::new(0),
            share: ArcSwap::from_pointee(*rate),
            redis_rate: (units(limit), units(period)),
            down: options.store_down,
            prefix: format!("{prefix}limit:{name}:"),
        }
    }

    /// All credits together must never exceed the reserve, however instances come and go. Each divides it by those it has
    /// heard of, those that died within the time that a bucket takes to fill included, and as many again for those that it
    /// will have heard of only in a moment.
    fn instances(&self, options: &LimitOptions, rate: &Rate, ages: &[u64]) {
        let recent = rate.fill().max(REMEMBERED) / 1_000_000;
        let known = ages.iter().filter(|age| **age <= recent).count().max(1) as u64;
        let live = ages.iter().filter(|age| **age <= LIVE).count().max(1) as u64;
        let credit = self.reserve / (known + known.max(2));
        self.credit.store(u32::try_from(credit).unwrap_or(u32::MAX), Ordering::Relaxed);
        let period = options.period.saturating_mul(u32::try_from(live).unwrap_or(u32::MAX));
        self.share.store(Arc::new(Rate::new(options.limit, period, (options.burst / live).max(1))));
    }

    pub fn terms(&self, limit: &Limit, pace: Pace, epoch: u32, now: Nanos) -> Terms {
        Terms {
            now,
            epoch,
            credit: self.credit.load(Ordering::Relaxed),
            cap: self.cap,
            // Only needed in an outage, and at its end.
            share: **self.share.load(),
            fill: limit.rate.fill(),
            interval: pace.interval,
            lease: pace.lease,
        }
    }
}

fn gcd(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// How often leases are exchanged, and how long they are spent, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub interval: u64,
    pub lease: u64,
}

impl Pace {
    pub fn new(options: &LimiterOptions) -> Self {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX >> 8).min(u64::MAX >> 8);
        let interval = nanos(options.interval).max(1_000_000);
        // A lease shorter than a few intervals would be over before it is renewed.
        Self { interval, lease: nanos(options.lease).max(interval * 4) }
    }
}

/// All limits at a moment.
#[derive(Debug, Default)]
pub(super) struct Registry {
    pub by_name: BTreeMap<String, Arc<Limit>>,
    pub next_slot: u32,
}

impl Registry {
    /// The limits that are to be from now on, and of those with another rate than before, the old one. A limit keeps its
    /// buckets as long as its name and what it is by stay the same.
    pub fn with(
        &self,
        wanted: &BTreeMap<String, LimitOptions>,
        limiter: &LimiterOptions,
        ages: &[u64],
    ) -> (Self, Vec<Changed>) {
        let mut next_slot = self.next_slot;
        let mut changed = Vec::new();
        let mut by_name = BTreeMap::new();
        for (name, options) in wanted {
            let old = self.by_name.get(name).filter(|old| old.same_buckets(&options.by));
            let (slot, counters) = match old {
                Some(old) => (old.slot, old.counters.clone()),
                None => {
                    next_slot += 1;
                    (next_slot, Arc::default())
                }
            };
            let limit = Arc::new(Limit::new(name, slot, options, limiter, counters, ages));
            if let Some(old) = old
                && old.rate != limit.rate
            {
                changed.push((old.clone(), limit.clone()));
            }
            by_name.insert(name.clone(), limit);
        }
        (Self { by_name, next_slot }, changed)
    }

    pub fn slot(&self, slot: u32) -> Option<&Arc<Limit>> {
        self.by_name.values().find(|limit| limit.slot == slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_structured_strings() {
        assert_eq!(quoted("per-ip"), "\"per-ip\"");
        assert_eq!(quoted("a\"b\\c\u{e9}\r\nd"), "\"a\\\"b\\\\c???d\"");
    }

    #[test]
    fn credits_together_stay_within_the_reserve_however_instances_come() {
        for burst in [1, 5, 6, 20, 100, 1000] {
            let options = LimitOptions {
                by: vec![],
                limit: 100,
                period: Duration::from_secs(60),
                burst,
                shadow: false,
                shared: true,
                store_down: StoreDown::Closed,
            };
            let rate = Rate::new(100, Duration::from_secs(60), burst);
            // Each has heard of itself and those before it, and of no later one.
            let all: u64 = (1..=4)
                .map(|n| {
                    let sharing = Sharing::new("x", &options, &rate, "");
                    sharing.instances(&options, &rate, &vec![0; n]);
                    assert_eq!(u64::from(sharing.cap) + sharing.reserve, burst);
                    u64::from(sharing.credit.load(Ordering::Relaxed))
                })
                .sum();
            assert!(all <= reserve(burst), "{all} of {burst}");
            assert!(burst < 9 || all >= 4, "{all} of {burst}");
        }
    }
}
