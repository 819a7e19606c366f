//! The handle: passing, telling how it went, orders, numbers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use actix::ArbiterHandle;
use actix::dev::SendError;
use parking_lot::Mutex;

use super::actor::{Owner, Wake};
use super::gate::{Gate, Ticket};
use super::judge::{Judge, Outcome};
use super::{BreakerSnapshot, Forced, State};
use crate::actor::supervisor::Supervised;
use crate::clock::{Monotonic, Nanos};
use crate::gateway::options::BreakerOptions;

/// Outcomes that may wait for the owner. It takes them fifty times a second.
const MOST_WAITING: usize = 1 << 16;

/// A breaker. Its owner ends with the last handle.
#[derive(Clone)]
pub struct Breaker(Arc<Inner>);

pub(super) struct Inner {
    name: Arc<str>,
    clock: Monotonic,
    gate: Gate,
    /// Taken by the owner, for a batch, and by who asks for numbers or changes settings.
    judge: Mutex<Judge>,
    outbox: Mutex<Outbox>,
    lost: AtomicU64,
    /// Transitions that are in the log.
    told: AtomicU64,
    owner: OnceLock<Supervised<Owner>>,
}

#[derive(Default)]
struct Outbox {
    waiting: Vec<Outcome>,
    /// Whether the owner knows, or will look anyway.
    known: bool,
}

impl Inner {
    /// Weighs what waits; whether there was something. The box is empty afterwards, and who fills it next wakes the owner
    /// if there was nothing.
    pub fn settle(&self, batch: &mut Vec<Outcome>) -> bool {
        batch.clear();
        {
            let mut outbox = self.outbox.lock();
            std::mem::swap(&mut outbox.waiting, batch);
            outbox.known = !batch.is_empty();
        }
        if !batch.is_empty() {
            let now = self.clock.now();
            let mut judge = self.judge.lock();
            for outcome in batch.iter() {
                judge.weigh(&self.gate, *outcome, now);
            }
        }
        self.tell();
        !batch.is_empty()
    }

    /// Logs what has changed.
    fn tell(&self) {
        let (count, last) = self.gate.past();
        let news = count.saturating_sub(self.told.swap(count, Ordering::Relaxed));
        let known = last.len().saturating_sub(usize::try_from(news).unwrap_or(usize::MAX));
        for change in last.iter().skip(known) {
            let level = if change.to == State::Open { log::Level::Warn } else { log::Level::Info };
            log::log!(
                level,
                "the breaker of upstream {} went from {:?} to {:?}: {:?}",
                self.name,
                change.from,
                change.to,
                change.reason
            );
        }
    }

    /// Nobody looks into the box any more.
    pub fn forget_owner(&self) {
        self.outbox.lock().known = false;
    }

    /// Has somebody look. While the owner is made anew, which may take seconds if it fails again and again, that is the one
    /// who found it missing: a breaker must trip all the same.
    fn wake(&self) {
        let sent = self.owner.get().map(|owner| owner.try_send(Wake));
        // A full mailbox wakes it anyway.
        if let Some(Err(SendError::Closed(_))) = sent {
            self.settle(&mut Vec::new());
            self.forget_owner();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The owner sees that it owns nothing, and ends.
        if let Some(owner) = self.owner.get() {
            let _ = owner.try_send(Wake);
        }
    }
}

impl Breaker {
    /// Makes a breaker, closed, or off without options, and starts its owner on an arbiter; `own_thread` if that is to end
    /// with it.
    pub fn start(
        name: &str,
        options: Option<&BreakerOptions>,
        clock: Monotonic,
        arbiter: ArbiterHandle,
        own_thread: bool,
    ) -> Self {
        let inner = Arc::new(Inner {
            name: Arc::from(name),
            gate: Gate::new(options, clock.now()),
            clock,
            judge: Mutex::new(Judge::new(options)),
            outbox: Mutex::default(),
            lost: AtomicU64::new(0),
            told: AtomicU64::new(0),
            owner: OnceLock::new(),
        });
        let weak = Arc::downgrade(&inner);
        let owner = Supervised::start("breaker", arbiter, move |life| Owner::new(life, weak.clone(), own_thread));
        let _ = inner.owner.set(owner);
        Self(inner)
    }

    /// Lets a call pass, which is then to be told of by [`Breaker::finish`] or [`Breaker::cancel`].
    ///
    /// # Errors
    /// When it does not pass; when to ask again.
    pub fn admit(&self, now: Nanos) -> Result<Ticket, Duration> {
        let admitted = self.0.gate.admit(now);
        if admitted.is_ok_and(|ticket| ticket.moved) {
            self.0.wake();
        }
        admitted
    }

    /// Whether the result of a call that passed would still count.
    pub fn holds(&self, ticket: Ticket) -> bool {
        self.0.gate.holds(ticket)
    }

    /// How a call ended, and how long it took.
    pub fn finish(&self, ticket: Ticket, failed: bool, took: Duration) {
        if !ticket.weighed {
            return;
        }
        let outcome = Outcome::new(ticket, failed, self.0.gate.is_slow(took));
        let mut outbox = self.0.outbox.lock();
        let room = outbox.waiting.len() < MOST_WAITING;
        if room {
            outbox.waiting.push(outcome);
        }
        // On a probe's result others wait, and a box that fills up does not wait for the next look.
        let urgent = ticket.probe || outbox.waiting.len() == MOST_WAITING / 2;
        let wake = !std::mem::replace(&mut outbox.known, true) || urgent;
        drop(outbox);
        if !room {
            self.0.lost.fetch_add(1, Ordering::Relaxed);
            // Else the place of a probe would be gone until probes are given up.
            self.cancel(ticket);
        }
        if wake {
            self.0.wake();
        }
    }

    /// A call that passed tells nothing.
    pub fn cancel(&self, ticket: Ticket) {
        self.0.gate.give_back(ticket);
    }

    /// Orders a state, or ends the order.
    pub fn force(&self, forced: Option<Forced>) {
        self.0.gate.force(forced, self.0.clock.now());
        self.0.wake();
    }

    /// Other settings; state and window are kept.
    pub fn apply(&self, options: Option<&BreakerOptions>) {
        let mut judge = self.0.judge.lock();
        judge.apply(options);
        self.0.gate.apply(options, self.0.clock.now());
    }

    /// Its state.
    pub fn state(&self) -> State {
        self.0.gate.state().1
    }

    /// What it has to say.
    pub fn snapshot(&self) -> BreakerSnapshot {
        let inner = &self.0;
        let (sum, late) = inner.judge.lock().sum(&inner.gate, inner.clock.now());
        let (state, since, until) = inner.gate.standing();
        let (transitions, last) = inner.gate.past();
        let restarts = inner.owner.get().map_or(0, |owner| {
            let restarts = owner.restarts();
            restarts.panicked.load(Ordering::Relaxed) + restarts.failed.load(Ordering::Relaxed)
        });
        BreakerSnapshot {
            state,
            since,
            until,
            calls: sum.calls,
            failed: sum.failed,
            slow: sum.slow,
            late,
            lost: inner.lost.load(Ordering::Relaxed),
            transitions,
            last,
            restarts,
        }
    }

    #[cfg(test)]
    pub(super) fn crash(&self) {
        if let Some(owner) = self.0.owner.get() {
            let _ = owner.try_send(super::actor::Crash);
        }
    }

    #[cfg(test)]
    pub(super) fn is_orphan(&self) -> bool {
        self.0.owner.get().is_none_or(|owner| matches!(owner.try_send(Wake), Err(SendError::Closed(_))))
    }
}
