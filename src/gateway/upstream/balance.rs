//! Which target a request goes to.
//!
//! Each way of choosing also takes: it counts the request as under way at once, by exchange where the count decides, so that
//! requests on other threads choose knowing of it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::NoTarget;
use super::ring::mix;
use super::target::{Entry, Mode, TargetId, Targets};
use crate::clock::Nanos;
use crate::gateway::options::Balance;

/// What choosing remembers from one time to the next.
#[derive(Default)]
pub(super) struct Turns {
    /// Held while `round_robin` moves the standings.
    round_robin: Mutex<()>,
    /// The place that `least_conn` took last.
    last: AtomicUsize,
    dice: AtomicU64,
}

/// A request's choice.
pub(super) struct Choice<'a> {
    pub targets: &'a Targets,
    pub turns: &'a Turns,
    pub now: Nanos,
    pub hash: u64,
    pub tried: &'a [TargetId],
    mode: Mode,
}

/// What was chosen.
pub(super) struct Chosen<'a> {
    pub entry: &'a Entry,
    /// Taken to be tried.
    pub trial: bool,
    /// Chosen although it, or others, are not well.
    pub panic: bool,
}

impl<'a> Choice<'a> {
    pub fn new(targets: &'a Targets, turns: &'a Turns, now: Nanos, hash: u64, tried: &'a [TargetId]) -> Self {
        Self { targets, turns, now, hash, tried, mode: targets.mode() }
    }

    /// Chooses a target and counts the request as under way to it.
    pub fn take(&self) -> Result<Chosen<'a>, NoTarget> {
        let panic = match self.mode {
            Mode::None if self.targets.is_empty() => return Err(NoTarget::Unknown),
            Mode::None => return Err(NoTarget::Unhealthy),
            Mode::Panic | Mode::Desperate => true,
            Mode::All | Mode::Well => false,
        };
        let hashed = self.targets.policy.balance == Balance::ConsistentHash;
        // A request that failed elsewhere is not the one to try it with, and with hashing only a target's own keys do.
        if self.mode == Mode::Well
            && self.tried.is_empty()
            && !hashed
            && let Some(entry) = self.targets.list.iter().find(|entry| self.tries(entry))
        {
            entry.target.in_flight.fetch_add(1, Ordering::Relaxed);
            return Ok(Chosen { entry, trial: true, panic });
        }
        match self.choose() {
            (Some(entry), trial) => Ok(Chosen { entry, trial, panic }),
            (None, _) if !self.tried.is_empty() => Err(NoTarget::Tried),
            // The last one that was well is so no more, and it has not been said yet what is used now.
            (None, _) => {
                let mode = if self.targets.policy.panic_threshold > 0.0 { Mode::Panic } else { Mode::Desperate };
                let (entry, _) = Self { mode, ..*self }.choose();
                entry.map(|entry| Chosen { entry, trial: false, panic: true }).ok_or(NoTarget::Unhealthy)
            }
        }
    }

    fn choose(&self) -> (Option<&'a Entry>, bool) {
        match self.targets.policy.balance {
            Balance::RoundRobin => (self.round_robin(), false),
            Balance::LeastConn => (self.least_conn(), false),
            Balance::P2cEwma => (self.p2c(), false),
            Balance::ConsistentHash => self.hashed(),
        }
    }

    fn tries(&self, entry: &Entry) -> bool {
        entry.target.try_out(self.now, self.targets.policy.passive.fail_timeout)
    }

    /// Whether a target may be chosen.
    fn open(&self, entry: &Entry) -> bool {
        let well = match self.mode {
            Mode::All | Mode::Panic => true,
            Mode::Well => entry.target.usable(),
            Mode::Desperate => entry.target.healthy(),
            Mode::None => false,
        };
        well && (self.tried.is_empty() || !self.tried.contains(&entry.target.id))
    }

    fn candidates(&self) -> impl Iterator<Item = &'a Entry> {
        self.targets.list.iter().filter(|entry| self.open(entry))
    }

    fn share(&self, entry: &Entry) -> u64 {
        entry.share(self.now, self.targets.policy.slow_start)
    }

    /// Smooth weighted round robin, as in nginx: each gains its weight, the first in standing goes and pays for all.
    fn round_robin(&self) -> Option<&'a Entry> {
        let _one = self.turns.round_robin.lock();
        let mut total = 0i64;
        let mut best: Option<(&Entry, i64)> = None;
        for entry in self.candidates() {
            let share = self.share(entry) as i64;
            let standing = entry.target.turn.load(Ordering::Relaxed) + share;
            entry.target.turn.store(standing, Ordering::Relaxed);
            total += share;
            if best.is_none_or(|(_, most)| standing > most) {
                best = Some((entry, standing));
            }
        }
        let (entry, standing) = best?;
        entry.target.turn.store(standing - total, Ordering::Relaxed);
        entry.target.in_flight.fetch_add(1, Ordering::Relaxed);
        Some(entry)
    }

    /// The one that would have the fewest under way by its weight; of several, the next after the last that was taken.
    ///
    /// The count is exchanged, so it is still what was compared; those of others can only have grown by other requests that
    /// chose. So with equal weights choosing never makes the difference between two greater than one.
    fn least_conn(&self) -> Option<&'a Entry> {
        let list = &self.targets.list;
        loop {
            let (head, tail) = list.split_at((self.turns.last.load(Ordering::Relaxed) + 1).min(list.len()));
            let places = (head.len()..).zip(tail).chain((0..).zip(head));
            let mut best: Option<(usize, &Entry, u32, u64)> = None;
            for (place, entry) in places {
                if !self.open(entry) {
                    continue;
                }
                let (load, share) = (entry.target.in_flight.load(Ordering::Relaxed), self.share(entry));
                let less = |(_, _, least, its_share): (_, _, u32, u64)| {
                    (u64::from(load) + 1).saturating_mul(its_share) < (u64::from(least) + 1).saturating_mul(share)
                };
                if best.is_none_or(less) {
                    best = Some((place, entry, load, share));
                }
            }
            let (place, entry, load, _) = best?;
            let count = &entry.target.in_flight;
            if count.compare_exchange(load, load + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                self.turns.last.store(place, Ordering::Relaxed);
                return Some(entry);
            }
        }
    }

    fn roll(&self) -> u64 {
        mix(self.turns.dice.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed))
    }

    /// The cheaper of two at random (Mitzenmacher 2001), by Finagle's peak EWMA and the requests under way.
    fn p2c(&self) -> Option<&'a Entry> {
        let count = self.candidates().count();
        // Multiplied instead of divided (Lemire 2019); its bias is beyond measure for lists of targets.
        let below = |random: u32, n: usize| ((u64::from(random) * n as u64) >> 32) as usize;
        let random = self.roll();
        let one = below(random as u32, count);
        let mut other = below((random >> 32) as u32, count.saturating_sub(1));
        if other >= one {
            other += 1;
        }
        let cost = |entry: &Entry| {
            let in_flight = entry.target.in_flight.load(Ordering::Relaxed);
            entry.target.ewma.lock().cost(self.now, in_flight) / self.share(entry).max(1) as f64
        };
        let mut best: Option<(&Entry, f64)> = None;
        for (_, entry) in self.candidates().enumerate().filter(|(place, _)| *place == one || *place == other) {
            let cost = cost(entry);
            // In the order of the list the first has no advantage: a tie goes to the one that was drawn first.
            let wins = best.is_none_or(|(_, least)| cost < least || (cost == least && one > other));
            if wins {
                best = Some((entry, cost));
            }
        }
        // Those that were counted may have become fewer.
        let entry = best.map(|(entry, _)| entry).or_else(|| self.candidates().next())?;
        entry.target.in_flight.fetch_add(1, Ordering::Relaxed);
        Some(entry)
    }

    /// Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2016): the first target after the key on the
    /// ring that has not yet `hash_load` times its share of all that is under way, this request included, rounded up.
    fn hashed(&self) -> (Option<&'a Entry>, bool) {
        let list = &self.targets.list;
        let (mut total, mut shares) = (1u64, 0u64);
        for entry in self.candidates() {
            total += u64::from(entry.target.in_flight.load(Ordering::Relaxed));
            shares += self.share(entry);
        }
        let bound = |entry: &Entry| {
            let part = self.share(entry) as f64 / shares.max(1) as f64;
            (self.targets.policy.hash_load * total as f64 * part).ceil() as u32
        };
        let mut least: Option<&Entry> = None;
        for entry in self.targets.ring.from(self.hash).filter_map(|place| list.get(place)) {
            if !self.open(entry) {
                if self.mode == Mode::Well && self.tried.is_empty() && self.tries(entry) {
                    entry.target.in_flight.fetch_add(1, Ordering::Relaxed);
                    return (Some(entry), true);
                }
                continue;
            }
            let most = bound(entry);
            let room = |load: u32| (load < most).then_some(load + 1);
            if entry.target.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_ok() {
                return (Some(entry), false);
            }
            least = least.or(Some(entry));
        }
        // Others took all the room meanwhile: the one that the key belongs to.
        let entry = least.inspect(|entry| {
            entry.target.in_flight.fetch_add(1, Ordering::Relaxed);
        });
        (entry, false)
    }
}
