//! A target, the list of them that is published, and what a request holds of one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::counters::bump;
use super::ewma::PeakEwma;
use super::handle::Core;
use super::passive::{Passive, Rules};
use super::ring::Ring;
use crate::clock::Nanos;
use crate::gateway::options::{Balance, UpstreamOptions};

/// Parts of a weight's unit.
pub(super) const UNIT: u64 = 1000;
/// The least that a target in its slow start has of its weight, in such parts.
const FLOOR: u64 = UNIT / 10;

/// Names a target within its upstream for as long as its state is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetId(pub u32);

/// An instance of the service, as long as anybody knows of it.
pub struct Target {
    pub(super) id: TargetId,
    pub(super) address: Box<str>,
    /// What active checks say.
    pub(super) healthy: AtomicBool,
    /// Until when it is left alone; 0 is not at all. It stays so after that time until a request has tried it.
    pub(super) until: AtomicU64,
    /// When the request that tries it began; 0 is none.
    trial: AtomicU64,
    /// Since when it is there or back; 0 is always.
    pub(super) since: AtomicU64,
    pub(super) in_flight: AtomicU32,
    /// Its standing in `round_robin`, moved under that lock.
    pub(super) turn: AtomicI64,
    pub(super) ewma: Mutex<PeakEwma>,
    pub(super) passive: Mutex<Passive>,
    pub(super) requests: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) ejections: AtomicU64,
}

impl Target {
    pub(super) fn new(id: TargetId, address: &str, since: Nanos) -> Self {
        Self {
            id,
            address: address.into(),
            healthy: AtomicBool::new(true),
            until: AtomicU64::new(0),
            trial: AtomicU64::new(0),
            since: AtomicU64::new(since),
            in_flight: AtomicU32::new(0),
            turn: AtomicI64::new(0),
            ewma: Mutex::default(),
            passive: Mutex::default(),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            ejections: AtomicU64::new(0),
        }
    }

    /// Its name.
    pub fn id(&self) -> TargetId {
        self.id
    }

    /// `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What active checks say. A target that was never checked is healthy.
    pub fn healthy(&self) -> bool {
        self.healthy.load(Ordering::Acquire)
    }

    /// Requests under way to it.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Whether requests go to it as things are: no check and no request says otherwise.
    pub fn usable(&self) -> bool {
        self.until.load(Ordering::Acquire) == 0 && self.healthy()
    }

    /// Takes it for the one request that tries it, if it is to be tried. One that has not ended for as long as the target
    /// was left alone is not waited for.
    pub(super) fn try_out(&self, now: Nanos, patience: Nanos) -> bool {
        let until = self.until.load(Ordering::Acquire);
        if until == 0 || now < until || !self.healthy() {
            return false;
        }
        let trial = self.trial.load(Ordering::Acquire);
        let free = trial == 0 || trial.saturating_add(patience.max(1)) <= now;
        free && self.trial.compare_exchange(trial, now, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// It may be used again, slowly at first.
    pub(super) fn restore(&self, now: Nanos) {
        let mut passive = self.passive.lock();
        if self.until.swap(0, Ordering::AcqRel) != 0 {
            passive.restored(now);
        }
        self.trial.store(0, Ordering::Release);
        self.since.store(now, Ordering::Relaxed);
    }

    /// It is not to be used.
    fn eject(&self, until: Nanos) {
        self.until.store(until, Ordering::Release);
        self.trial.store(0, Ordering::Release);
        bump(&self.ejections);
    }
}

/// Which targets are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// All of them are well.
    All,
    /// Those that are well.
    Well,
    /// All, because too few are well.
    Panic,
    /// All that no check speaks against, because none is well and nothing else may be used.
    Desperate,
    /// None.
    None,
}

/// The targets as they are published, with what choosing among them needs.
pub struct Targets {
    pub(super) list: Vec<Entry>,
    pub(super) ring: Ring,
    pub(super) policy: Policy,
    mode: AtomicU8,
    usable: AtomicUsize,
}

pub(super) struct Entry {
    pub target: Arc<Target>,
    pub weight: u32,
}

/// The settings that choosing needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Policy {
    pub balance: Balance,
    pub hash_load: f64,
    pub slow_start: Nanos,
    pub panic_threshold: f64,
    pub passive: Rules,
}

impl Policy {
    pub fn of(options: &UpstreamOptions) -> Self {
        Self {
            balance: options.balance,
            hash_load: options.hash_load.max(1.0),
            slow_start: nanos(options.slow_start),
            panic_threshold: options.panic_threshold,
            // Each is remembered with its time.
            passive: Rules { max_fails: options.max_fails.min(10_000), fail_timeout: nanos(options.fail_timeout) },
        }
    }
}

pub(super) fn nanos(duration: Duration) -> Nanos {
    Nanos::try_from(duration.as_nanos()).unwrap_or(Nanos::MAX)
}

impl Entry {
    /// Its weight now, in parts of a unit.
    pub fn share(&self, now: Nanos, slow_start: Nanos) -> u64 {
        let whole = u64::from(self.weight) * UNIT;
        let since = self.target.since.load(Ordering::Relaxed);
        let been = now.saturating_sub(since);
        if since == 0 || been >= slow_start {
            return whole;
        }
        let part = (u128::from(been) * u128::from(UNIT) / u128::from(slow_start.max(1))) as u64;
        u64::from(self.weight) * part.max(FLOOR)
    }
}

impl Targets {
    pub(super) fn new(list: Vec<Entry>, policy: Policy) -> Self {
        let ring = if policy.balance == Balance::ConsistentHash {
            Ring::new(list.iter().map(|entry| (&*entry.target.address, entry.weight)))
        } else {
            Ring::default()
        };
        let this = Self { list, ring, policy, mode: AtomicU8::new(0), usable: AtomicUsize::new(0) };
        this.count();
        this
    }

    /// Counts those that are well, and says anew which are used. To be called under the lock of the book after each change.
    pub(super) fn count(&self) {
        let all = self.list.len();
        let usable = self.list.iter().filter(|entry| entry.target.usable()).count();
        let unhealthy = self.list.iter().filter(|entry| !entry.target.healthy()).count();
        let threshold = self.policy.panic_threshold;
        let mode = if all == 0 {
            Mode::None
        } else if usable == all {
            Mode::All
        } else if (usable as f64) < threshold * all as f64 {
            Mode::Panic
        } else if usable > 0 {
            Mode::Well
        } else if unhealthy < all {
            Mode::Desperate
        } else {
            Mode::None
        };
        self.usable.store(usable, Ordering::Release);
        self.mode.store(mode as u8, Ordering::Release);
    }

    pub(super) fn mode(&self) -> Mode {
        // Read once: it may change between two looks.
        let now = self.mode.load(Ordering::Acquire);
        let is = |mode: &Mode| *mode as u8 == now;
        [Mode::All, Mode::Well, Mode::Panic, Mode::Desperate].into_iter().find(is).unwrap_or(Mode::None)
    }

    /// All of them, well or not.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Target>> {
        self.list.iter().map(|entry| &entry.target)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many of them are well.
    pub fn usable(&self) -> usize {
        self.usable.load(Ordering::Acquire)
    }

    /// Whether all are used because too few are well.
    pub fn in_panic(&self) -> bool {
        matches!(self.mode(), Mode::Panic | Mode::Desperate)
    }
}

/// How a request to a target went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetOutcome {
    /// It answered, whatever; after how long.
    Answered {
        /// From sending the request to the answer's first byte.
        first_byte: Duration,
    },
    /// It did not, or with what counts as failure.
    Failed,
}

/// A target that was chosen, with the request counted as under way to it until this is dropped.
pub struct Picked {
    pub(super) core: Arc<Core>,
    pub(super) target: Arc<Target>,
    /// Until when it was to be left alone as it was picked; 0 is not at all.
    pub(super) until: Nanos,
    /// When it was taken to be tried; 0 is not for that.
    pub(super) trial: Nanos,
    pub(super) told: bool,
}

impl std::fmt::Debug for Picked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Picked").field("id", &self.target.id).field("trial", &(self.trial != 0)).finish_non_exhaustive()
    }
}

impl Picked {
    /// Where it is: `host:port`.
    pub fn address(&self) -> &str {
        &self.target.address
    }

    /// Its name.
    pub fn id(&self) -> TargetId {
        self.target.id
    }

    /// Whether this request is the one that tries a target that was left alone.
    pub fn is_trial(&self) -> bool {
        self.trial != 0
    }

    /// How it went. The first word counts. The request stays counted as under way until this is dropped.
    pub fn finish(&mut self, outcome: TargetOutcome) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        let policy = self.core.targets.load().policy;
        match outcome {
            TargetOutcome::Answered { first_byte } => {
                if policy.balance == Balance::P2cEwma {
                    self.target.ewma.lock().answered(self.core.clock.now(), nanos(first_byte));
                }
                // Only who went there after it was ejected knows that it is back.
                if self.until != 0 && self.target.until.load(Ordering::Acquire) == self.until {
                    self.target.restore(self.core.clock.now());
                    self.core.recount();
                    self.core.say(&self.target, "is used again: it answered");
                }
            }
            TargetOutcome::Failed => {
                bump(&self.target.failures);
                bump(&self.core.counters.failures);
                if policy.balance == Balance::P2cEwma {
                    self.target.ewma.lock().failed(self.core.clock.now());
                }
                if policy.passive.max_fails > 0 && self.ejects(policy.passive) {
                    self.core.recount();
                    self.core.say(&self.target, "is left alone: it failed too often");
                }
            }
        }
    }

    /// It answered, and the answer broke off: that counts as a failure after all.
    pub fn broke_off(&mut self) {
        self.told = false;
        self.finish(TargetOutcome::Failed);
    }

    /// Weighs a failure; whether the target is newly to be left alone.
    fn ejects(&self, rules: Rules) -> bool {
        let now = self.core.clock.now();
        let mut passive = self.target.passive.lock();
        let until = self.target.until.load(Ordering::Acquire);
        if until == 0 {
            let ejected = passive.failed(now, rules);
            ejected.into_iter().for_each(|until| self.target.eject(until));
            return ejected.is_some();
        }
        // It is left alone already. Its time begins anew if that was over and this is the request that tried it.
        if until == self.until && now >= until {
            let until = passive.eject(now, rules);
            self.target.eject(until);
        }
        false
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        self.target.in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.trial != 0 && !self.told {
            // Nothing was learnt, and another one may try.
            let _ = self.target.trial.compare_exchange(self.trial, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}
