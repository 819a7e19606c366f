//! What an upstream says of itself, for operators and metrics. Addresses are in here and in no log.

use std::sync::atomic::Ordering;

use serde::Serialize;
use utoipa::ToSchema;

use super::counters::read;
use super::handle::Upstream;
use super::target::{Entry, Targets, UNIT};
use crate::clock::Nanos;
use crate::gateway::breaker::{BreakerSnapshot, State};
use crate::gateway::options::Balance;

/// An upstream.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct UpstreamSnapshot {
    /// Its name.
    pub name: String,
    /// When this was said, on the monotonic clock, in nanoseconds.
    pub now: Nanos,
    /// Requests that were admitted.
    pub requests: u64,
    /// Failures of targets.
    pub failures: u64,
    /// Requests refused because the breaker was open.
    pub refused_open: u64,
    /// Requests refused because too many waited.
    pub refused_full: u64,
    /// Requests refused after they had waited.
    pub refused_timeout: u64,
    /// Requests under way.
    pub in_flight: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Retries that were granted.
    pub retries_granted: u64,
    /// Retries that were not.
    pub retries_denied: u64,
    /// Choices made among all targets because too few were well.
    pub panic_picks: u64,
    /// Choices that found no target.
    pub no_target: u64,
    /// Whether choices are made so now.
    pub in_panic: bool,
    /// Targets that are well.
    pub usable: usize,
    /// The breaker, if there is one or somebody ordered its state.
    pub breaker: Option<BreakerSnapshot>,
    /// Its targets.
    pub targets: Vec<TargetSnapshot>,
}

/// A target.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct TargetSnapshot {
    /// Its name in logs.
    pub id: u32,
    /// `host:port`.
    pub address: String,
    /// Its weight.
    pub weight: u32,
    /// The part of it that it has now, 0 to 1: less than 1 in a slow start.
    pub share: f64,
    /// What active checks say.
    pub healthy: bool,
    /// Whether it is left alone for its failures; if so, for how many milliseconds yet, and 0 once it may be tried.
    pub ejected_ms: Option<u64>,
    /// Requests sent to it.
    pub requests: u64,
    /// Those that failed.
    pub failures: u64,
    /// How often it was left alone.
    pub ejections: u64,
    /// Requests under way to it.
    pub in_flight: u32,
    /// Its time to answer as `p2c_ewma` estimates it, in milliseconds, where that is used.
    pub latency_ms: Option<f64>,
}

impl Upstream {
    /// What it has to say.
    pub fn snapshot(&self) -> UpstreamSnapshot {
        let core = &self.0;
        let (now, targets, counters) = (core.clock.now(), core.targets.load(), &core.counters);
        let (in_flight, waiting) = core.queue.counts();
        let breaker = core.breaker.snapshot();
        UpstreamSnapshot {
            name: core.name.to_string(),
            now,
            requests: read(&counters.requests),
            failures: read(&counters.failures),
            refused_open: read(&counters.refused_open),
            refused_full: read(&core.queue.full),
            refused_timeout: read(&core.queue.timed_out),
            in_flight,
            waiting,
            retries_granted: read(&counters.retries_granted),
            retries_denied: read(&counters.retries_denied),
            panic_picks: read(&counters.panic_picks),
            no_target: read(&counters.no_target),
            in_panic: targets.in_panic(),
            usable: targets.usable(),
            breaker: (breaker.state != State::Off).then_some(breaker),
            targets: targets.list.iter().map(|entry| entry.snapshot(&targets, now)).collect(),
        }
    }
}

impl Entry {
    fn snapshot(&self, targets: &Targets, now: Nanos) -> TargetSnapshot {
        let target = &self.target;
        let until = target.until.load(Ordering::Acquire);
        let whole = u64::from(self.weight.max(1)) * UNIT;
        let estimated = targets.policy.balance == Balance::P2cEwma;
        TargetSnapshot {
            id: target.id.0,
            address: target.address.to_string(),
            weight: self.weight,
            share: self.share(now, targets.policy.slow_start) as f64 / whole as f64,
            healthy: target.healthy(),
            ejected_ms: (until != 0).then(|| until.saturating_sub(now) / 1_000_000),
            requests: read(&target.requests),
            failures: read(&target.failures),
            ejections: read(&target.ejections),
            in_flight: target.in_flight(),
            latency_ms: estimated.then(|| target.ewma.lock().get(now) / 1e6),
        }
    }
}
