//! What handle, owner, fills and link of one cache share.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::Kind;
use super::actor::Owner;
use super::entry::{Dice, Entry, Seen, State, millis};
use super::flight::{Flight, Flights, Joined, Outcome, lost};
use super::key;
use super::l2::L2;
use super::options::{CacheOptions, TypeOptions};
use super::published::Published;
use super::stats::{Counters, bump};
use super::value::{CacheError, Filled, Forward, Found, Freshness, Tier, Why};
use super::wire::Stored;
use crate::actor::admission::{Admission, Permit};
use crate::actor::supervisor::Supervised;
use crate::clock::{Clock, Stopwatch, UnixMillis};

/// Insertions that may wait for the owner.
const QUEUE: usize = 4096;

pub(super) struct Core {
    pub options: CacheOptions,
    pub kinds: Vec<KindState>,
    pub clock: Clock,
    pub since: Stopwatch,
    pub published: Arc<Published>,
    pub flights: Arc<Flights>,
    pub inbox: Inbox,
    pub l2: Option<L2>,
    pub dice: Dice,
    /// Drivers of fills at work.
    pub driving: watch::Sender<usize>,
}

pub(super) struct KindState {
    pub options: TypeOptions,
    pub counters: Counters,
    /// Until when the last failure of its source counts.
    pub failing_until: AtomicI64,
}

/// What waits for the owner: values to store.
pub(super) struct Inbox {
    admission: Admission,
    queue: Mutex<Vec<Insertion>>,
    pub owner: std::sync::OnceLock<Supervised<Owner>>,
    pub entries: AtomicU64,
    pub bytes: AtomicU64,
}

/// A value to store. However it ends, its flight does with it.
pub(super) struct Insertion {
    pub entry: Arc<Entry>,
    _landing: Landing,
    _permit: Permit,
}

struct Landing {
    flights: Arc<Flights>,
    flight: Arc<Flight>,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.flights.remove(&self.flight);
    }
}

impl Inbox {
    pub fn new(max_bytes: u64) -> Self {
        let bytes = usize::try_from((max_bytes / 4).max(1 << 20)).unwrap_or(usize::MAX);
        Self {
            admission: Admission::new(QUEUE, bytes),
            queue: Mutex::default(),
            owner: std::sync::OnceLock::new(),
            entries: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// All that waits.
    pub fn take(&self) -> Vec<Insertion> {
        std::mem::take(&mut *self.queue.lock())
    }

    fn put(&self, insertion: Insertion) {
        let mut queue = self.queue.lock();
        queue.push(insertion);
        let first = queue.len() == 1;
        drop(queue);
        // Who finds others waiting need not wake again. A mailbox that is full wakes anyway.
        if first && let Some(owner) = self.owner.get() {
            let _ = owner.try_send(super::actor::Wake);
        }
    }
}

/// What the first tier has to say to a read.
pub(super) enum Look {
    /// An answer.
    Hit(Found),
    /// An answer, and a refresh that brings something newer than this.
    Refresh(Found, UnixMillis),
    /// No answer; what could serve if there is no other, and whether it may before the other is known to be missing.
    Miss(Option<Arc<Entry>>, bool),
}

impl Core {
    pub fn kind(&self, kind: Kind) -> &KindState {
        &self.kinds[kind.index()]
    }

    /// Microseconds of the cache's own time.
    pub fn micros(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// The second tier, for a type that is kept there.
    pub fn l2_of(&self, kind: Kind) -> Option<&L2> {
        self.l2.as_ref().filter(|_| self.kind(kind).options.l2)
    }

    fn trusted(&self, entry: &Entry) -> bool {
        self.l2.as_ref().is_none_or(|l2| l2.trust.holds(entry.as_of, self.micros()))
    }

    pub fn look(&self, kind: Kind, id: &str, hash: u64, now: UnixMillis) -> Look {
        let state = self.kind(kind);
        if !state.options.l1 {
            return Look::Miss(None, false);
        }
        let counters = &state.counters;
        let Some(entry) = self.published.find(kind, id, hash) else {
            bump(&counters.l1_misses);
            return Look::Miss(None, false);
        };
        let trusted = self.trusted(&entry);
        match entry.state(now) {
            State::Fresh if trusted => {
                entry.touch();
                bump(&counters.l1_hits);
                if entry.body.is_none() {
                    bump(&counters.negative_hits);
                }
                let found = found(&entry, now, Tier::L1, None);
                match self.dice.refreshes(entry.fresh_until - now, entry.delta, self.options.xfetch_beta) {
                    true => Look::Refresh(found, entry.stored_at),
                    false => Look::Hit(found),
                }
            }
            State::Revalidate if trusted => {
                entry.touch();
                bump(&counters.l1_misses);
                bump(&counters.stale_revalidating);
                Look::Refresh(found(&entry, now, Tier::L1, Some(Why::Revalidating)), entry.stored_at)
            }
            State::Gone => {
                bump(&counters.l1_misses);
                Look::Miss(None, false)
            }
            _ => {
                bump(&counters.l1_misses);
                // A source that just failed is not waited for while there is something to serve.
                Look::Miss(Some(entry), trusted && now < state.failing_until.load(Ordering::Relaxed))
            }
        }
    }

    /// Joins the running fill of a key, or begins one.
    pub fn join(&self, kind: Kind, id: &str, hash: u64, now: UnixMillis, newer_than: UnixMillis) -> Joined<Arc<Entry>> {
        let flight = Flight::new(kind, id, hash, self.published.epoch(kind, hash), self.micros(), newer_than);
        self.flights.join(flight, now, || {
            // Between the look and this it may have landed.
            let entry = self.published.find(kind, id, hash)?;
            (entry.state(now) == State::Fresh && entry.stored_at > newer_than && self.trusted(&entry)).then_some(entry)
        })
    }

    /// An entry of what a source said.
    pub fn entry(&self, flight: &Flight, filled: Filled, took: Duration, now: UnixMillis) -> Arc<Entry> {
        let options = &self.kind(flight.kind).options;
        let whole = match &filled.body {
            Some(_) => filled.lifetime.unwrap_or(options.lifetime),
            None => filled.lifetime.unwrap_or(options.negative).min(options.negative),
        };
        let part = 1.0 - options.jitter.clamp(0.0, 1.0) * self.dice.roll();
        self.make(
            flight,
            Stored {
                generation: 0,
                stored_at: now,
                lifetime: millis(whole.mul_f64(part)),
                delta: took.as_secs_f64() * 1000.0,
                tag: filled.tag,
                body: filled.body,
            },
        )
    }

    /// An entry of what the second tier had.
    pub fn make(&self, flight: &Flight, stored: Stored) -> Arc<Entry> {
        let seen = Seen {
            kind: flight.kind,
            id: &flight.id,
            hash: flight.hash,
            body: stored.body,
            tag: stored.tag,
            stored_at: stored.stored_at,
            lifetime: stored.lifetime,
            delta: stored.delta,
            as_of: flight.as_of,
            epoch: flight.epoch,
        };
        Arc::new(Entry::new(seen, &self.kind(flight.kind).options))
    }

    /// Gives an entry to all who wait for it, and to the owner.
    fn land(&self, flight: &Arc<Flight>, entry: Arc<Entry>, tier: Tier, in_l2: bool) {
        let state = self.kind(flight.kind);
        let fresh = entry.state(self.clock.now()) == State::Fresh;
        let permit = match fresh && state.options.l1 {
            true => self.inbox.admission.admit(usize::try_from(entry.weight()).unwrap_or(usize::MAX)),
            false => Err(crate::actor::admission::Overloaded),
        };
        if fresh && state.options.l1 && permit.is_err() {
            bump(&state.counters.l1_dropped);
        }
        let fits = entry.weight() <= self.options.l1_bytes / super::l1::LARGEST;
        let stored = (permit.is_ok() && fits) || (in_l2 && fresh);
        flight.deliver(Ok(Outcome { entry: entry.clone(), tier, stale: None, stored }));
        let landing = Landing { flights: self.flights.clone(), flight: flight.clone() };
        if let Ok(permit) = permit {
            self.inbox.put(Insertion { entry, _landing: landing, _permit: permit });
        }
    }

    /// Acts on what an instance has published.
    pub fn heard(&self, message: &[u8]) {
        let Some((what, text)) = std::str::from_utf8(message).ok().and_then(|text| text.split_at_checked(1)) else {
            return;
        };
        let Some(l2) = &self.l2 else { return };
        let text = match what {
            "f" => text,
            // One's own have been acted on.
            _ => match text.split_at_checked(l2.instance.len()) {
                Some((from, text)) if from != l2.instance => text,
                _ => return,
            },
        };
        let Some((name, id)) = key::decode(text) else { return };
        // A type that this instance does not have.
        let Some(kind) = self.find_kind(name) else { return };
        match what {
            "f" => {
                let _ = l2.filled.send(self.published.hash(kind, id));
            }
            "i" => self.invalidate(kind, id),
            "k" => self.invalidate_kind(kind),
            _ => {}
        }
    }

    pub fn invalidate(&self, kind: Kind, id: &str) {
        bump(&self.kind(kind).counters.invalidations);
        self.published.invalidate(kind, id, self.published.hash(kind, id));
    }

    pub fn invalidate_kind(&self, kind: Kind) {
        bump(&self.kind(kind).counters.invalidations);
        self.published.invalidate_kind(kind);
    }

    pub fn find_kind(&self, name: &str) -> Option<Kind> {
        let at = self.kinds.iter().position(|kind| kind.options.name == name)?;
        u16::try_from(at).ok().map(Kind)
    }
}

/// A flight that has to end, one way or another.
pub(super) struct Job {
    core: Arc<Core>,
    pub flight: Arc<Flight>,
    /// The generation of its type when its lease was taken: an invalidation of the type since then makes it worthless.
    pub generation: u64,
    /// What serves if there is nothing better.
    fallback: Option<Arc<Entry>>,
    ended: bool,
}

impl Job {
    pub fn new(core: &Arc<Core>, flight: Arc<Flight>) -> Self {
        Self { core: core.clone(), flight, generation: 0, fallback: None, ended: false }
    }

    /// It brings this. `in_l2` says whether the second tier has it, or will.
    pub fn land(mut self, entry: Arc<Entry>, tier: Tier, in_l2: bool) {
        self.ended = true;
        self.core.land(&self.flight, entry, tier, in_l2);
    }

    /// There is something stale, which serves as long as it is allowed to.
    pub fn soften(&mut self, entry: Arc<Entry>, now: UnixMillis) {
        match entry.state(now) {
            State::Revalidate if !self.flight.delivered() => {
                let stale = Some(Why::Revalidating);
                self.flight.deliver(Ok(Outcome { entry: entry.clone(), tier: Tier::L2, stale, stored: true }));
            }
            State::Gone => return,
            _ => {}
        }
        self.fallback = Some(entry);
    }

    /// It brings nothing.
    pub fn fail(mut self, error: CacheError) {
        self.end(error);
    }

    fn end(&mut self, error: CacheError) {
        self.ended = true;
        let now = self.core.clock.now();
        let memory = millis(self.core.options.error_memory);
        let fallback = self.fallback.take().filter(|entry| entry.state(now) != State::Gone);
        if let Some(entry) = fallback.filter(|_| !self.flight.delivered()) {
            let stale = Some(Why::Error);
            self.flight.deliver(Ok(Outcome { entry, tier: Tier::L2, stale, stored: true }));
        }
        self.flight.fail(error, now.saturating_add(memory));
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.ended {
            self.end(lost());
        }
    }
}

/// An entry as a read sees it.
pub(super) fn found(entry: &Entry, now: UnixMillis, tier: Tier, stale: Option<Why>) -> Found {
    let span = |ms: i64| Duration::from_millis(u64::try_from(ms).unwrap_or(0));
    Found {
        body: entry.body.clone(),
        tag: entry.tag,
        tier,
        freshness: stale.map_or(Freshness::Fresh, Freshness::Stale),
        age: span(now - entry.stored_at),
        remaining: span(entry.fresh_until - now),
        past: span(now - entry.fresh_until),
        collapsed: false,
        stored: true,
        forward: None,
    }
}

/// A flight's outcome as one of those who waited for it sees it.
pub(super) fn brought(outcome: &Outcome, now: UnixMillis, collapsed: bool, had_stale: bool) -> Found {
    let forward = match (outcome.tier, outcome.stale) {
        (Tier::L3, _) if had_stale => Some(Forward::Stale),
        (Tier::L3, _) => Some(Forward::Miss),
        (_, Some(Why::Error)) => Some(Forward::Stale),
        _ => None,
    };
    let found = found(&outcome.entry, now, outcome.tier, outcome.stale);
    Found { collapsed, stored: outcome.stored, forward, ..found }
}
