//! The handle: checks, and what operators ask and change.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix::{Arbiter, ArbiterHandle};
use tokio::sync::watch;

use super::actor::{Ending, Gauge, Keeper, OWNERS, Owner};
use super::check::Store;
use super::exchange::Exchange;
use super::key::Caller;
use super::limits::{Limit, Pace};
use super::shard::Plan;
use super::verdict::{LimitSet, Verdict};
use crate::actor::supervisor::Supervised;
use crate::clock::{Monotonic, Nanos, Stopwatch};
use crate::gateway::options::{LimitOptions, LimiterOptions};

/// The limits.
#[derive(Clone)]
pub struct Limits {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<Store>,
    options: LimiterOptions,
    clock: Monotonic,
    exchange: Option<Arc<Exchange>>,
    gauges: Vec<Arc<Gauge>>,
    stop: watch::Sender<Ending>,
    stopped: watch::Sender<bool>,
    arbiter: ArbiterHandle,
}

/// How long after the end the thread goes: until then its actors have seen it.
const LINGER: Duration = Duration::from_millis(250);

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.send_if_modified(|ending| {
            let running = *ending == Ending::Not;
            if running {
                *ending = Ending::AtOnce;
            }
            running
        });
        let arbiter = self.arbiter.clone();
        self.arbiter.spawn(async move {
            tokio::time::sleep(LINGER).await;
            arbiter.stop();
        });
    }
}

/// A bucket, for operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketState {
    /// Requests that would pass at once, of the limit's burst.
    pub remaining: u64,
    /// As many as ever can.
    pub burst: u64,
    /// Until it is full; a guess for shared limits.
    pub full_in: Duration,
    /// Whether it is held in memory; else it is full, or was evicted and is as empty as it may be.
    pub held: bool,
}

/// What a limit has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitStats {
    /// Its name.
    pub name: Arc<str>,
    /// As it is configured.
    pub options: LimitOptions,
    /// Requests that paid it.
    pub allowed: u64,
    /// Requests that it denied.
    pub denied: u64,
    /// Requests that it would have denied were it not in shadow.
    pub would_deny: u64,
    /// Buckets that went before they were full, for want of memory.
    pub evicted: u64,
    /// Buckets that are not full; as of the last sweep, up to 2 s ago.
    pub buckets: u64,
    /// Tokens taken from Redis.
    pub leased: u64,
    /// Tokens given back to it.
    pub returned: u64,
    /// Whether it works by `store_down` at present.
    pub degraded: bool,
}

/// What all limits have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimiterStats {
    /// Each limit, by name.
    pub limits: Vec<LimitStats>,
    /// Bytes of all buckets, tables and sketches.
    pub bytes: u64,
    /// Instances that share with this one, itself included; 0 before Redis was reached, or without it.
    pub instances: u64,
    /// Whether shared limits work without Redis at present.
    pub degraded: bool,
    /// How often they began to.
    pub outages: u64,
    /// Answers of Redis, each for up to 256 buckets.
    pub round_trips: u64,
    /// Times that it did not answer.
    pub failures: u64,
}

impl std::fmt::Debug for Limits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Limits")
    }
}

impl Limits {
    /// Starts them; Redis need not be there. Until it is, shared limits work by their `store_down`. To be called within an
    /// actix system.
    ///
    /// # Errors
    /// When Redis' address makes no sense, or no thread can be started.
    pub fn start(
        limits: &BTreeMap<String, LimitOptions>,
        options: &LimiterOptions,
        clock: Monotonic,
    ) -> io::Result<Self> {
        let plan = Plan::new(options.max_bytes, options.redis.is_some());
        let store = Arc::new(Store::new(plan, Pace::new(options)));
        let exchange = Exchange::new(store.clone(), options, clock.clone()).map_err(io::Error::other)?.map(Arc::new);
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
        // Not in the background: leases that are renewed late are lost.
        let arbiter = Arbiter::try_with_tokio_rt(runtime)?.handle();
        let (stop, stopped) = (watch::Sender::new(Ending::Not), watch::Sender::new(exchange.is_none()));
        let gauges: Vec<Arc<Gauge>> = (0..OWNERS).map(|_| Arc::default()).collect();
        for (number, gauge) in gauges.iter().enumerate() {
            let (store, gauge, clock, stop) = (store.clone(), gauge.clone(), clock.clone(), stop.subscribe());
            Supervised::start("limits", arbiter.clone(), move |life| {
                Owner::new(life, number, store.clone(), gauge.clone(), clock.clone(), stop.clone())
            });
        }
        let this = Inner { store, options: options.clone(), clock, exchange, gauges, stop, stopped, arbiter };
        let this = Self { inner: Arc::new(this) };
        this.apply(limits);
        if let Some(exchange) = &this.inner.exchange {
            let (exchange, stop, stopped) = (exchange.clone(), this.inner.stop.subscribe(), this.inner.stopped.clone());
            let interval = Duration::from_nanos(this.inner.store.pace.interval);
            Supervised::start("limits' link", this.inner.arbiter.clone(), move |life| Keeper {
                life,
                exchange: exchange.clone(),
                interval,
                stop: stop.clone(),
                stopped: stopped.clone(),
            });
        }
        Ok(this)
    }

    /// The limits of some names, to be kept by who checks them: once a route, and again after [`Limits::apply`]. Names that
    /// are not known, or said twice, are passed over.
    pub fn resolve(&self, names: &[String]) -> LimitSet {
        let registry = self.inner.store.registry.load();
        let mut found: Vec<Arc<Limit>> = Vec::with_capacity(names.len());
        for limit in names.iter().filter_map(|name| registry.by_name.get(name)) {
            if !found.iter().any(|other| other.slot == limit.slot) && found.len() < 255 {
                found.push(limit.clone());
            }
        }
        LimitSet::of(found)
    }

    /// Checks a request, and charges all limits that apply to it, or none when one denies it.
    pub fn check(&self, now: Nanos, set: &LimitSet, caller: &Caller<'_>, cost: u32) -> Verdict {
        self.inner.store.check(now, set, caller, cost)
    }

    /// Other limits from now on. A limit whose name and `by` stay the same keeps its buckets: with another rate or burst, what
    /// was spent in them stays spent, up to the new burst. Routes must [`resolve`](Limits::resolve) again.
    pub fn apply(&self, limits: &BTreeMap<String, LimitOptions>) {
        let store = &self.inner.store;
        let ages = self.inner.exchange.as_ref().map(|exchange| exchange.ages.load_full()).unwrap_or_default();
        let (registry, changed) = store.registry.load().with(limits, &self.inner.options, &ages);
        store.registry.store(Arc::new(registry));
        let now = self.inner.clock.now();
        for (old, new) in changed {
            for shard in &store.shards {
                shard.0.lock().convert(new.kind, &old.rate, &new.rate, now);
            }
        }
    }

    /// How a bucket stands; `None` when there is no such limit, or a part of its key is missing.
    pub fn look_up(&self, limit: &str, caller: &Caller<'_>) -> Option<BucketState> {
        let store = &self.inner.store;
        let registry = store.registry.load();
        let limit = registry.by_name.get(limit)?;
        let hash = limit.hash(store.seed, caller)?;
        let now = self.inner.clock.now();
        let burst = limit.rate.burst();
        let mut shard = store.lock(hash)?;
        if let Some(sharing) = &limit.sharing {
            let terms = sharing.terms(limit, store.pace, store.epoch.load(Ordering::Acquire), now);
            let lease = shard.lease_mut(hash);
            let held = lease.is_some();
            let remaining = lease.map_or(burst, |lease| lease.remaining(&terms, false)).min(burst);
            let full_in = Duration::from_nanos(limit.rate.time_of(burst - remaining));
            return Some(BucketState { remaining, burst, full_in, held });
        }
        let tat = shard.find(limit.kind, hash, &limit.rate, now);
        Some(BucketState {
            remaining: limit.rate.remaining(tat, now),
            burst,
            full_in: Duration::from_nanos(tat.nanos.saturating_sub(now)),
            held: shard.held(hash).is_some(),
        })
    }

    /// Forgets what was spent in a bucket; whether it was held. A bucket that was evicted before, or shares a place with such
    /// ones, does not come back full by this; of a shared limit only this instance's credit is given anew, since what the
    /// others and Redis have of it is theirs.
    pub fn reset(&self, limit: &str, caller: &Caller<'_>) -> bool {
        let store = &self.inner.store;
        let registry = store.registry.load();
        let Some(limit) = registry.by_name.get(limit) else { return false };
        let Some(hash) = limit.hash(store.seed, caller) else { return false };
        let Some(mut shard) = store.lock(hash) else { return false };
        let Some(sharing) = &limit.sharing else { return shard.remove(hash) };
        let epoch = store.epoch.load(Ordering::Acquire);
        let terms = sharing.terms(limit, store.pace, epoch, self.inner.clock.now());
        shard.lease_mut(hash).map(|lease| lease.forgive(&terms)).is_some()
    }

    /// What there is and what was done.
    pub fn stats(&self) -> LimiterStats {
        let inner = &self.inner;
        let registry = inner.store.registry.load();
        let exchange = inner.exchange.as_ref();
        let degraded = exchange.is_some_and(|exchange| exchange.away());
        let one = |limit: &Arc<Limit>| {
            let counters = &limit.counters;
            LimitStats {
                name: limit.name.clone(),
                options: limit.options.clone(),
                allowed: counters.allowed.load(Ordering::Relaxed),
                denied: counters.denied.load(Ordering::Relaxed),
                would_deny: counters.would_deny.load(Ordering::Relaxed),
                evicted: counters.evicted.load(Ordering::Relaxed),
                buckets: inner.gauges.iter().map(|gauge| gauge.of(limit.slot)).sum(),
                leased: counters.leased.load(Ordering::Relaxed),
                returned: counters.returned.load(Ordering::Relaxed),
                degraded: degraded && limit.sharing.is_some(),
            }
        };
        let count = |of: fn(&Exchange) -> u64| exchange.map_or(0, |exchange| of(exchange));
        LimiterStats {
            limits: registry.by_name.values().map(one).collect(),
            bytes: inner.store.bytes(),
            instances: count(|exchange| exchange.live.load(Ordering::Relaxed)),
            degraded,
            outages: count(|exchange| exchange.outages.load(Ordering::Relaxed)),
            round_trips: count(|exchange| exchange.round_trips.load(Ordering::Relaxed)),
            failures: count(|exchange| exchange.failures.load(Ordering::Relaxed)),
        }
    }

    /// Waits until limits are shared; whether they are in time. Without Redis there is nothing to wait for.
    pub async fn connected(&self, within: Duration) -> bool {
        let waited = Stopwatch::start();
        while self.inner.exchange.as_ref().is_some_and(|exchange| exchange.away()) {
            if waited.elapsed() > within {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }

    /// Ends: leases go back to the other instances, if Redis takes them before the deadline; else they run out. The thread goes
    /// with the last handle, which may also just be dropped: then they run out too.
    pub async fn stop(&self, deadline: Duration) {
        self.inner.stop.send_replace(Ending::InOrder);
        let mut stopped = self.inner.stopped.subscribe();
        if tokio::time::timeout(deadline, stopped.wait_for(|stopped| *stopped)).await.is_err() {
            log::warn!("leases of limits were not given back in {} ms; they run out", deadline.as_millis());
        }
    }
}
