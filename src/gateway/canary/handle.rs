//! The handle: choosing, telling how it went, orders, numbers; and the owner, who looks at the counts now and then.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use actix::ArbiterHandle;
use hyper::HeaderMap;
use hyper::header::HeaderValue;
use parking_lot::Mutex;

use super::judge::{Judge, Standing};
use super::options::{CanaryOptions, Weight};
use super::split::{self, Choice, Split};
use super::stats::{Reading, Side, SideReading};
use super::{CanarySnapshot, Phase, SideSnapshot, Transition};
use crate::clock::{Monotonic, Nanos};
use crate::gateway::limit::Caller;
use crate::gateway::task::Task;

/// Between two looks, at most: so that a canary with thousands of requests a second does not fail more of them than it must.
const PAUSE: Duration = Duration::from_millis(100);
/// In place of a weight, when nobody goes to the canary, not even who asks for it.
const CLOSED: u32 = u32::MAX;

/// A canary of a route. Cheap to clone; its owner ends with the last handle.
#[derive(Clone, Debug)]
pub struct Canary(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    route: Arc<str>,
    options: CanaryOptions,
    clock: Monotonic,
    split: Split,
    /// Slots, or [`CLOSED`]: what requests read.
    weight: AtomicU32,
    canary: Side,
    stable: Side,
    /// Taken by the owner for a look, and by who orders or asks.
    judge: Mutex<Judge>,
    owner: OnceLock<Owner>,
}

struct Owner(Task);

impl std::fmt::Debug for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Owner").field("restarts", &self.0.restarts()).finish()
    }
}

/// A request whose outcome is to be counted; dropped without one, only the time it waited is.
#[must_use]
#[derive(Debug)]
pub struct Trial<'a> {
    canary: &'a Canary,
    side: &'a Side,
    forced: bool,
    begun: Nanos,
    told: bool,
}

impl Canary {
    /// Begins a release along a route, and starts its owner on an arbiter. Must be called within actix's runtime.
    pub fn start(route: &str, options: &CanaryOptions, clock: Monotonic, arbiter: ArbiterHandle) -> Self {
        let canary = Self::idle(route, options, clock);
        let inner = Arc::downgrade(&canary.0);
        let pause = (options.interval / 5).clamp(Duration::from_millis(5), PAUSE);
        let work = move || -> crate::gateway::task::Work { Box::pin(keep_looking(inner.clone(), pause)) };
        let _ = canary.0.owner.set(Owner(Task::start("canary", arbiter, work)));
        canary
    }

    /// One that nobody looks after.
    pub(super) fn idle(route: &str, options: &CanaryOptions, clock: Monotonic) -> Self {
        let judge = Judge::new(options, clock.now());
        let inner = Inner {
            route: Arc::from(route),
            split: Split::new(route, options),
            options: options.clone(),
            clock,
            weight: AtomicU32::new(published(&judge.standing())),
            canary: Side::default(),
            stable: Side::default(),
            judge: Mutex::new(judge),
            owner: OnceLock::new(),
        };
        Self(Arc::new(inner))
    }

    /// What it was started with.
    pub fn options(&self) -> &CanaryOptions {
        &self.0.options
    }

    /// Whether a request goes to the canary.
    pub fn choose(&self, headers: &HeaderMap, caller: &Caller<'_>) -> Choice {
        match self.0.weight.load(Ordering::Relaxed) {
            CLOSED => Choice::default(),
            slots => self.0.split.choose(slots, headers, caller),
        }
    }

    /// The header that lets a client keep the id that it was given by a [`Choice`].
    pub fn set_cookie(id: &str, secure: bool) -> Option<HeaderValue> {
        split::set_cookie(id, secure)
    }

    /// Begins to measure a request that goes as was chosen.
    pub fn begin(&self, choice: &Choice) -> Trial<'_> {
        let side = if choice.canary { &self.0.canary } else { &self.0.stable };
        Trial { canary: self, side, forced: choice.forced, begun: self.0.clock.now(), told: false }
    }

    /// Sends all to the canary.
    pub fn promote(&self) {
        self.0.act(Judge::promote);
    }

    /// Sends all to the stable version, also who asks for the canary, until [`Canary::resume`].
    pub fn abort(&self) {
        self.0.act(Judge::abort);
    }

    /// Gives the canary a part, which it keeps unless it does badly.
    pub fn set_weight(&self, weight: Weight) {
        self.0.act(|judge, now, reading| judge.set_weight(now, reading, weight));
    }

    /// Goes on by itself: from where it is held, or from the first step if it has ended.
    pub fn resume(&self) {
        self.0.act(Judge::resume);
    }

    /// Looks at the counts; the owner does.
    pub(super) fn look(&self) {
        self.0.act(Judge::look);
    }

    /// What it has to say.
    pub fn snapshot(&self) -> CanarySnapshot {
        let inner = &self.0;
        let (standing, last, window) = {
            let judge = inner.judge.lock();
            (judge.standing(), judge.last().cloned().collect(), judge.window(&inner.read()))
        };
        let side = |side: &Side, window: &SideReading| {
            let all = side.all();
            SideSnapshot {
                requests: all.total(),
                failures: all.failed,
                window_requests: window.tally.total(),
                window_failures: window.tally.failed,
                window_p99_us: window.latency.p99().map(|p99| u64::try_from(p99.as_micros()).unwrap_or(u64::MAX)),
            }
        };
        CanarySnapshot {
            upstream: inner.options.upstream.clone(),
            phase: standing.phase,
            weight: standing.weight,
            next: standing.next,
            since: standing.since,
            reason: standing.reason,
            waits: standing.waits,
            stable: side(&inner.stable, &window.stable),
            canary: side(&inner.canary, &window.canary),
            transitions: standing.transitions,
            aborts: standing.aborts,
            last,
            restarts: inner.owner.get().map_or(0, |owner| owner.0.restarts()),
        }
    }
}

impl Trial<'_> {
    /// The head of an answer has come, or it is known that none will: whether that is the service's failure.
    pub fn finish(mut self, failed: bool) {
        self.side.count(self.forced, failed);
        self.told = true;
        self.time();
    }

    /// It was refused before it was asked, at once: a failure, but no latency.
    pub fn refused(mut self) {
        self.side.count(self.forced, true);
        self.told = true;
    }

    /// It says nothing of the service.
    pub fn discard(mut self) {
        self.told = true;
    }

    fn time(&self) {
        if !self.forced {
            let took = self.canary.0.clock.now().saturating_sub(self.begun);
            self.side.latency.record(Duration::from_nanos(took));
        }
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        // The client has left: the answer would have taken longer still.
        if !self.told {
            self.time();
        }
    }
}

impl Inner {
    fn read(&self) -> Reading {
        Reading { canary: self.canary.read(), stable: self.stable.read() }
    }

    /// Has the judge do something, and tells of what came of it.
    fn act(&self, what: impl FnOnce(&mut Judge, Nanos, &Reading)) {
        let mut judge = self.judge.lock();
        let before = judge.standing().transitions;
        let reading = self.read();
        what(&mut judge, self.clock.now(), &reading);
        let standing = judge.standing();
        if standing.transitions == before {
            return;
        }
        self.weight.store(published(&standing), Ordering::Relaxed);
        // Within the lock, so that the log has the order of the changes.
        for transition in judge.last().skip(judge.last().len().saturating_sub(1)) {
            self.tell(transition);
        }
    }

    fn tell(&self, transition: &Transition) {
        let Transition { from, to, phase, reason, measured, .. } = transition;
        let level = match (phase, reason) {
            (Phase::Aborted, _) | (_, super::Reason::Errors | super::Reason::Latency) => log::Level::Warn,
            _ => log::Level::Info,
        };
        let measured = measured.as_ref().map(|measured| format!(": {measured}")).unwrap_or_default();
        let (route, upstream) = (&self.route, &self.options.upstream);
        log::log!(
            level,
            "the canary {upstream} of route {route} went from {from} to {to}, {phase:?} ({reason:?}){measured}"
        );
    }
}

fn published(standing: &Standing) -> u32 {
    if standing.phase == Phase::Aborted { CLOSED } else { standing.weight.slots() }
}

async fn keep_looking(inner: Weak<Inner>, pause: Duration) {
    loop {
        tokio::time::sleep(pause).await;
        match inner.upgrade() {
            Some(inner) => Canary(inner).look(),
            None => std::future::pending().await,
        }
    }
}
