//! The handle of an upstream, and what is shared behind it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix::{Arbiter, ArbiterHandle};
use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::balance::{Choice, Turns};
use super::counters::{Counters, bump};
use super::queue::Queue;
use super::retry::RetryBudget;
use super::target::{Entry, Picked, Policy, Target, TargetId, Targets};
use super::{NoTarget, Refused};
use crate::clock::{Monotonic, Nanos};
use crate::gateway::breaker::{Breaker, Forced, Ticket};
use crate::gateway::options::{Discovery, TargetOptions, UpstreamOptions};

/// How long a target that is not listed any more is remembered.
const MEMORY: Nanos = 600_000_000_000;
/// How many of them are.
const MOST_REMEMBERED: usize = 1024;

/// A service behind the gateway. Its breaker's owner ends with the last handle.
#[derive(Clone)]
pub struct Upstream(pub(super) Arc<Core>);

pub(super) struct Core {
    pub name: Box<str>,
    pub clock: Monotonic,
    pub breaker: Breaker,
    pub queue: Queue,
    pub budget: RetryBudget,
    pub targets: ArcSwap<Targets>,
    pub turns: Turns,
    pub counters: Counters,
    book: Mutex<Book>,
}

/// What is known of targets. Who changes which are well, or listed, or how they are chosen, does so under its lock.
struct Book {
    known: HashMap<Box<str>, Known>,
    listed: Vec<(Arc<Target>, u32)>,
    policy: Policy,
    next: u32,
    in_panic: bool,
}

struct Known {
    target: Arc<Target>,
    /// Since when it is not listed.
    gone: Option<Nanos>,
}

impl Book {
    /// The targets of a list. Whoever is known already keeps its state; whoever is new among others begins slowly.
    fn list(&mut self, targets: &[TargetOptions], now: Nanos) {
        let first = self.listed.is_empty();
        let mut seen = HashSet::new();
        let mut listed = Vec::with_capacity(targets.len());
        for options in targets.iter().filter(|options| seen.insert(options.address.as_str())) {
            let since = if first { 0 } else { now };
            let target = match self.known.get_mut(options.address.as_str()) {
                Some(known) => {
                    if known.gone.take().is_some() {
                        known.target.since.store(since, Ordering::Relaxed);
                    }
                    known.target.clone()
                }
                None => {
                    let target = Arc::new(Target::new(TargetId(self.next), &options.address, since));
                    self.next = self.next.wrapping_add(1);
                    let known = Known { target: target.clone(), gone: None };
                    self.known.insert(options.address.as_str().into(), known);
                    target
                }
            };
            listed.push((target, options.weight.max(1)));
        }
        self.listed = listed;
        for (address, known) in &mut self.known {
            if !seen.contains(&**address) {
                known.gone.get_or_insert(now);
            }
        }
        self.forget(now);
    }

    fn forget(&mut self, now: Nanos) {
        self.known.retain(|_, known| {
            let recent = known.gone.is_none_or(|at| now.saturating_sub(at) < MEMORY);
            recent || known.target.in_flight() > 0
        });
        let mut gone: Vec<Nanos> = self.known.values().filter_map(|known| known.gone).collect();
        if let Some(surplus) = gone.len().checked_sub(MOST_REMEMBERED).filter(|surplus| *surplus > 0) {
            gone.sort_unstable();
            let mut left = surplus;
            let latest = gone.get(surplus - 1).copied().unwrap_or_default();
            self.known.retain(|_, known| {
                let goes = left > 0 && known.gone.is_some_and(|at| at <= latest);
                left -= usize::from(goes);
                !goes
            });
        }
    }

    fn targets(&self) -> Targets {
        let entries = self.listed.iter().map(|(target, weight)| Entry { target: target.clone(), weight: *weight });
        Targets::new(entries.collect(), self.policy)
    }
}

impl Core {
    /// Says anew which targets are used, after one has become well or unwell.
    pub fn recount(&self) {
        let mut book = self.book.lock();
        let targets = self.targets.load();
        targets.count();
        self.watch_panic(&mut book, &targets);
    }

    fn watch_panic(&self, book: &mut Book, targets: &Targets) {
        let in_panic = targets.in_panic();
        if in_panic == book.in_panic {
            return;
        }
        book.in_panic = in_panic;
        let (usable, all) = (targets.usable(), targets.len());
        if in_panic {
            log::warn!("{usable} of {all} targets of upstream {} are well: all are used", self.name);
        } else {
            log::info!("{usable} of {all} targets of upstream {} are well: only they are used", self.name);
        }
    }

    fn publish(&self, book: &mut Book) {
        let targets = Arc::new(book.targets());
        self.watch_panic(book, &targets);
        self.targets.store(targets);
    }

    /// Logs what happened to a target, by its name within the upstream.
    pub fn say(&self, target: &Target, what: &str) {
        log::warn!("target {} of upstream {} {what}", target.id().0, self.name);
    }

    fn pass(&self, now: Nanos) -> Result<Ticket, Refused> {
        self.breaker.admit(now).map_err(|retry_after| {
            bump(&self.counters.refused_open);
            Refused::Open { retry_after }
        })
    }

    /// Waits for a place. Who has waited through a change of the breaker passes it anew.
    async fn wait(&self, ticket: Ticket) -> Result<Ticket, Refused> {
        let held = Held { breaker: &self.breaker, ticket: Some(ticket) };
        self.queue.enter().await?;
        if self.breaker.holds(ticket) {
            return Ok(held.keep(ticket));
        }
        drop(held);
        self.pass(self.clock.now()).inspect_err(|_| self.queue.leave())
    }
}

/// A ticket that goes back if the future is dropped.
struct Held<'a> {
    breaker: &'a Breaker,
    ticket: Option<Ticket>,
}

impl Held<'_> {
    fn keep(mut self, ticket: Ticket) -> Ticket {
        self.ticket = None;
        ticket
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.ticket.take().into_iter().for_each(|ticket| self.breaker.cancel(ticket));
    }
}

/// How a call of an upstream ended, as its breaker is to see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallOutcome {
    /// It was answered.
    Success,
    /// It was not, or with what counts as failure.
    Failure,
    /// It says nothing of the upstream, as when a client leaves.
    Ignored,
}

/// Leave to call an upstream, and a place among the requests under way until this is dropped.
pub struct Admission {
    core: Arc<Core>,
    ticket: Option<Ticket>,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("name", &self.0.name).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admission").field("ticket", &self.ticket).finish_non_exhaustive()
    }
}

impl Admission {
    /// How the call ended, and how long it took up to that. The first word counts; without one it has said nothing.
    pub fn finish(&mut self, outcome: CallOutcome, took: Duration) {
        let Some(ticket) = self.ticket.take() else { return };
        match outcome {
            CallOutcome::Success => self.core.breaker.finish(ticket, false, took),
            CallOutcome::Failure => self.core.breaker.finish(ticket, true, took),
            CallOutcome::Ignored => self.core.breaker.cancel(ticket),
        }
    }

    /// Whether this call is one of those that try an upstream whose breaker was open.
    pub fn is_probe(&self) -> bool {
        self.ticket.is_some_and(|ticket| ticket.is_probe())
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.ticket.take().into_iter().for_each(|ticket| self.core.breaker.cancel(ticket));
        self.core.queue.leave();
    }
}

impl Upstream {
    /// Makes an upstream with a thread for its breaker's owner, which is watched by the runtime that this is called in.
    /// Targets from the config are known at once.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(name: &str, options: &UpstreamOptions, clock: Monotonic) -> io::Result<Self> {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build();
        let arbiter = Arbiter::try_with_tokio_rt(runtime)?.handle();
        Ok(Self::make(name, options, clock, arbiter, true))
    }

    /// The same with the owner on an arbiter that others use too. It must not be one that answers requests: the owner is to
    /// be heard at once.
    pub fn start_on(arbiter: ArbiterHandle, name: &str, options: &UpstreamOptions, clock: Monotonic) -> Self {
        Self::make(name, options, clock, arbiter, false)
    }

    fn make(name: &str, options: &UpstreamOptions, clock: Monotonic, arbiter: ArbiterHandle, own: bool) -> Self {
        let policy = Policy::of(options);
        let mut book = Book { known: HashMap::new(), listed: vec![], policy, next: 0, in_panic: false };
        if let Discovery::Static(targets) = &options.discovery {
            book.list(targets, clock.now());
        }
        Self(Arc::new(Core {
            name: name.into(),
            breaker: Breaker::start(name, options.breaker.as_ref(), clock.clone(), arbiter, own),
            clock,
            queue: Queue::new(options.max_in_flight, options.max_queue, options.queue_timeout),
            budget: RetryBudget::new(options.retry_budget, options.retry_floor),
            targets: ArcSwap::from_pointee(book.targets()),
            turns: Turns::default(),
            counters: Counters::default(),
            book: Mutex::new(book),
        }))
    }

    /// Its name in the config.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether both are handles of the same.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The targets from now on. What is known of an address stays, also for some time after it has left the list.
    pub fn update_targets(&self, targets: &[TargetOptions]) {
        let mut book = self.0.book.lock();
        book.list(targets, self.0.clock.now());
        self.0.publish(&mut book);
    }

    /// The targets.
    pub fn targets(&self) -> Arc<Targets> {
        self.0.targets.load_full()
    }

    /// What active checks have found, of a target that is known. One that was unhealthy and is no more is used again at
    /// once, whatever requests had said of it.
    pub fn set_health(&self, address: &str, healthy: bool) {
        let mut book = self.0.book.lock();
        let Some(target) = book.known.get(address).map(|known| known.target.clone()) else { return };
        if target.healthy.swap(healthy, Ordering::AcqRel) == healthy {
            return;
        }
        if healthy {
            target.restore(self.0.clock.now());
        }
        let targets = self.0.targets.load();
        targets.count();
        self.0.watch_panic(&mut book, &targets);
        self.0.say(&target, if healthy { "is healthy, say its checks" } else { "is not healthy, say its checks" });
    }

    /// Other settings. Counts, health and the breaker's state are kept; targets from the config replace those that are
    /// there.
    pub fn apply(&self, options: &UpstreamOptions) {
        let core = &self.0;
        core.queue.apply(options.max_in_flight, options.max_queue, options.queue_timeout);
        core.budget.apply(options.retry_budget, options.retry_floor);
        core.breaker.apply(options.breaker.as_ref());
        let mut book = core.book.lock();
        book.policy = Policy::of(options);
        if let Discovery::Static(targets) = &options.discovery {
            book.list(targets, core.clock.now());
        }
        for known in book.known.values() {
            // What nobody checks or counts any more would stay so for ever.
            if options.health.is_none() {
                known.target.healthy.store(true, Ordering::Release);
            }
            if options.max_fails == 0 {
                known.target.until.store(0, Ordering::Release);
            }
        }
        core.publish(&mut book);
    }

    /// Leave to call it: passes the breaker, then takes a place under way, or waits for one. It does not wait, and can be
    /// ended by one poll, while there is a place.
    ///
    /// # Errors
    /// When the breaker is open, too many wait, or it waited too long.
    pub async fn admit(&self) -> Result<Admission, Refused> {
        let core = &self.0;
        let now = core.clock.now();
        let mut ticket = core.pass(now)?;
        if !core.queue.try_enter() {
            ticket = core.wait(ticket).await?;
        }
        bump(&core.counters.requests);
        core.budget.pay(now);
        Ok(Admission { core: core.clone(), ticket: Some(ticket) })
    }

    /// Chooses a target other than those that were tried, and counts the request as under way to it. `hash` is what
    /// `consistent_hash` goes by.
    ///
    /// # Errors
    /// When there is none.
    pub fn pick(&self, hash: u64, tried: &[TargetId]) -> Result<Picked, NoTarget> {
        let core = &self.0;
        let now = core.clock.now();
        let targets = core.targets.load();
        let choice = Choice::new(&targets, &core.turns, now, hash, tried);
        let chosen = choice.take().inspect_err(|_| bump(&core.counters.no_target))?;
        let target = chosen.entry.target.clone();
        bump(&target.requests);
        if chosen.panic {
            bump(&core.counters.panic_picks);
        }
        let until = target.until.load(Ordering::Acquire);
        let trial = if chosen.trial { now } else { 0 };
        Ok(Picked { core: core.clone(), target, until, trial, told: false })
    }

    /// Whether a request that failed may be tried again, which this then counts.
    pub fn may_retry(&self) -> bool {
        let granted = self.0.budget.take(self.0.clock.now());
        let counters = &self.0.counters;
        bump(if granted { &counters.retries_granted } else { &counters.retries_denied });
        granted
    }

    /// Orders a state of the breaker, or ends the order.
    pub fn force(&self, forced: Option<Forced>) {
        self.0.breaker.force(forced);
    }
}

#[cfg(test)]
impl Upstream {
    pub(super) fn known(&self) -> usize {
        self.0.book.lock().known.len()
    }

    pub(super) fn admit_state(&self) -> crate::gateway::breaker::State {
        self.0.breaker.state()
    }

    pub(super) fn watch_end(&self) -> std::sync::Weak<Core> {
        Arc::downgrade(&self.0)
    }
}
