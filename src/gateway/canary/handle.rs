//! The handle: choosing, telling how it went, orders, numbers; and the owner, who looks at the counts now and then.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use actix::ArbiterHandle;
use hyper::HeaderMap;
use hyper::header::HeaderValue;
use parking_lot::Mutex;

use super::judge::{Judge, Moment};
use super::keeper::Bell;
use super::ledger::{Answer, Kept, Ledger, Message};
use super::options::{CanaryOptions, Weight};
use super::split::{self, Choice, Split};
use super::state::{Change, State};
use super::stats::{Reading, Side, SideReading};
use super::{CanarySnapshot, Phase, Reason, SideSnapshot, Transition};
use crate::clock::{Clock, Monotonic, Nanos};
use crate::gateway::limit::Caller;
use crate::gateway::task::Task;

/// Between two looks, at most: so that a canary with thousands of requests a second does not fail more of them than it must.
const PAUSE: Duration = Duration::from_millis(100);
/// In place of a weight, when nobody goes to the canary, not even who asks for it.
const CLOSED: u32 = u32::MAX;

/// A canary of a route. Cheap to clone; its owner ends with the last handle.
#[derive(Clone, Debug)]
pub struct Canary(Arc<Inner>);

/// A canary as long as somebody has it.
#[derive(Clone, Debug, Default)]
pub(super) struct WeakCanary(Weak<Inner>);

impl WeakCanary {
    pub fn upgrade(&self) -> Option<Canary> {
        self.0.upgrade().map(Canary)
    }
}

#[derive(Debug)]
struct Inner {
    route: Arc<str>,
    options: CanaryOptions,
    /// By which it is known again.
    release: String,
    clock: Monotonic,
    wall: Clock,
    bell: Arc<Bell>,
    begun: Nanos,
    /// Whether it was asked whether instances share something of it, and that is answered, or was waited for long enough.
    asked: AtomicBool,
    /// Whether anybody may go there: not before, if nothing is known of it here.
    open: AtomicBool,
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

/// Which release begins, and what is known of it.
#[derive(Debug)]
pub(super) struct Beginning<'a> {
    pub route: &'a str,
    /// By which it is known again.
    pub release: String,
    pub options: &'a CanaryOptions,
    /// As it was kept.
    pub kept: Option<Kept>,
    pub bell: Arc<Bell>,
}

impl Canary {
    /// Begins a release, or goes on with it, and starts its owner on an arbiter. Must be called within actix's runtime.
    pub(super) fn start(beginning: Beginning<'_>, clock: Monotonic, wall: Clock, arbiter: ArbiterHandle) -> Self {
        let canary = Self::idle(beginning, clock, wall);
        let inner = Arc::downgrade(&canary.0);
        let pause = (canary.options().interval / 5).clamp(Duration::from_millis(5), PAUSE);
        let work = move || -> crate::gateway::task::Work { Box::pin(keep_looking(inner.clone(), pause)) };
        let _ = canary.0.owner.set(Owner(Task::start("canary", arbiter, work)));
        canary
    }

    /// One that nobody looks after.
    pub(super) fn idle(beginning: Beginning<'_>, clock: Monotonic, wall: Clock) -> Self {
        let Beginning { route, release, options, kept, bell } = beginning;
        let open = kept.is_some() || !bell.shares();
        let now = Moment { ticks: clock.now(), wall: wall.now() };
        let ledger = match kept {
            Some(kept) => Ledger::restore(kept, bell.seed()),
            None => Ledger::new(options.first(), now.wall, bell.seed()),
        };
        let judge = Judge::new(options, ledger, now);
        let inner = Inner {
            route: Arc::from(route),
            split: Split::new(route, options),
            options: options.clone(),
            release,
            clock,
            wall,
            begun: now.ticks,
            asked: AtomicBool::new(!bell.shares()),
            bell,
            open: AtomicBool::new(open),
            weight: AtomicU32::new(if open { published(judge.state()) } else { CLOSED }),
            canary: Side::default(),
            stable: Side::default(),
            judge: Mutex::new(judge),
            owner: OnceLock::new(),
        };
        Self(Arc::new(inner))
    }

    /// Whether both are handles of the same.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
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

    /// Takes the next step now, and goes on by itself from there; false if there is none, or it has ended.
    pub fn step(&self) -> bool {
        let mut taken = false;
        self.0.act(|judge, now, reading| taken = judge.step(now, reading));
        taken
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
        if self.0.open.load(Ordering::Relaxed) {
            self.0.act(Judge::look);
        }
    }

    /// Waits until the disk has what was ordered; whether it has in time.
    pub async fn saved(&self, within: Duration) -> bool {
        tokio::time::timeout(within, self.0.bell.saved()).await.is_ok()
    }

    pub(super) fn downgrade(&self) -> WeakCanary {
        WeakCanary(Arc::downgrade(&self.0))
    }

    pub(super) fn route(&self) -> &str {
        &self.0.route
    }

    pub(super) fn release(&self) -> &str {
        &self.0.release
    }

    /// For how long it has been there.
    pub(super) fn age(&self) -> Duration {
        Duration::from_nanos(self.0.clock.now().saturating_sub(self.0.begun))
    }

    /// What is to be kept of it.
    pub(super) fn kept(&self) -> Kept {
        self.0.judge.lock().ledger().kept(&self.0.release)
    }

    /// What there is to ask of what instances share.
    pub(super) fn message(&self) -> Message {
        self.0.judge.lock().message()
    }

    /// Takes over what was answered.
    pub(super) fn answered(&self, message: Message, answer: Answer) {
        self.0.answered(message, answer);
        self.opens();
    }

    pub(super) fn phase(&self) -> Phase {
        self.0.judge.lock().state().phase
    }

    /// Whether what instances share of it was asked for with success, or for long enough.
    pub(super) fn is_asked(&self) -> bool {
        self.0.asked.load(Ordering::Relaxed)
    }

    /// It goes on with what is known by now.
    pub(super) fn opens(&self) {
        self.0.asked.store(true, Ordering::Relaxed);
        let judge = self.0.judge.lock();
        if !self.0.open.swap(true, Ordering::Relaxed) {
            self.0.weight.store(published(judge.state()), Ordering::Relaxed);
        }
    }

    /// What it has to say.
    pub fn snapshot(&self) -> CanarySnapshot {
        let inner = &self.0;
        let (state, last, next, waits, told, window) = {
            let judge = inner.judge.lock();
            let ledger = judge.ledger();
            let last = ledger.state().last.iter().map(|change| transition(change, ledger.made(change))).collect();
            let window = judge.window(&inner.read());
            (ledger.state().clone(), last, judge.next(), judge.waits(), ledger.is_told(), window)
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
            phase: state.phase,
            weight: state.weight,
            next,
            since: state.since,
            reason: state.reason,
            waits,
            stable: side(&inner.stable, &window.stable),
            canary: side(&inner.canary, &window.canary),
            transitions: state.transitions,
            aborts: state.aborts,
            last,
            saved: inner.bell.is_saved(),
            shared: inner.bell.shares().then_some(told),
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

    fn now(&self) -> Moment {
        Moment { ticks: self.clock.now(), wall: self.wall.now() }
    }

    /// Has the judge do something, and tells of what came of it.
    fn act(&self, what: impl FnOnce(&mut Judge, Moment, &Reading)) {
        let mut judge = self.judge.lock();
        let before = judge.state().transitions;
        what(&mut judge, self.now(), &self.read());
        let state = judge.state();
        if state.transitions == before {
            return;
        }
        self.publish(state);
        // Within the lock, so that the log has the order of the changes.
        if let Some(change) = state.last.back() {
            self.tell(change, "");
        }
        self.bell.ring();
    }

    /// Takes over what other instances did.
    fn answered(&self, message: Message, answer: Answer) {
        if matches!(answer, Answer::Same) {
            return;
        }
        let mut judge = self.judge.lock();
        let before = judge.ledger().kept("");
        judge.answered(self.now(), &self.read(), message, answer);
        if judge.ledger().kept("") == before {
            return;
        }
        let state = judge.state();
        self.publish(state);
        if (state.phase, state.weight) != (before.state.phase, before.state.weight)
            && let Some(change) = state.last.back()
        {
            self.tell(&Change { from: before.state.weight, ..change.clone() }, ", as another instance says");
        }
        self.bell.to_disk();
    }

    fn publish(&self, state: &State) {
        if self.open.load(Ordering::Relaxed) {
            self.weight.store(published(state), Ordering::Relaxed);
        }
    }

    fn tell(&self, change: &Change, whose: &str) {
        let Change { from, to, phase, reason, measured, .. } = change;
        let level = match (phase, reason) {
            (Phase::Aborted, _) | (_, Reason::Errors | Reason::Latency) => log::Level::Warn,
            _ => log::Level::Info,
        };
        let measured = measured.as_ref().map(|measured| format!(": {measured}")).unwrap_or_default();
        let (route, upstream) = (&self.route, &self.options.upstream);
        log::log!(
            level,
            "the canary {upstream} of route {route} went from {from} to {to}, {phase:?} ({reason:?}){whose}{measured}"
        );
    }
}

fn published(state: &State) -> u32 {
    if state.phase == Phase::Aborted { CLOSED } else { state.weight.slots() }
}

fn transition(change: &Change, here: bool) -> Transition {
    let Change { at, from, to, phase, reason, measured, .. } = change.clone();
    Transition { at, from, to, phase, reason, measured, here }
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
