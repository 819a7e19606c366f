//! The check of a request: all its limits are looked at under their shards' locks, and then all are charged, or none.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard};

use super::gcra::{Refused, Tat};
use super::key::{self, Caller, Seed};
use super::lease::{Lease, Terms};
use super::limits::{Limit, Pace, Registry};
use super::shard::{Plan, Shard};
use super::verdict::{Denial, LimitSet, Standing, Verdict};
use crate::clock::Nanos;
use crate::gateway::options::StoreDown;

/// So many limits of one request are looked at without taking memory.
const USUAL: usize = 8;
/// What a request is told to wait while Redis is away, in nanoseconds.
const AWAY: u64 = 1_000_000_000;

/// On its own cache lines, so that neighbours do not slow each other down.
#[repr(align(128))]
pub(super) struct Padded(pub Mutex<Shard>);

/// All buckets.
pub(super) struct Store {
    pub shards: Box<[Padded]>,
    pub seed: Seed,
    pub registry: ArcSwap<Registry>,
    pub pace: Pace,
    /// Odd while Redis is away.
    pub epoch: AtomicU32,
}

/// A limit that a request has to pay.
#[derive(Clone, Copy)]
struct Due<'a> {
    index: u8,
    shard: u16,
    hash: u64,
    limit: &'a Limit,
    found: Found,
}

/// How it stands with it.
#[derive(Clone, Copy)]
enum Found {
    /// Not looked at, or not limited at present.
    Free,
    Passes(Tat),
    PassesShared,
    Refused(Tat, Refused),
    RefusedShared(Refused),
    Closed,
}

impl Found {
    fn refusal(&self) -> Option<(Denial, Option<u64>)> {
        match self {
            Self::Free | Self::Passes(_) | Self::PassesShared => None,
            Self::Closed => Some((Denial::StoreDown, Some(AWAY))),
            Self::Refused(_, Refused::Wait(wait)) | Self::RefusedShared(Refused::Wait(wait)) => {
                Some((Denial::Exhausted, Some(*wait)))
            }
            Self::Refused(_, Refused::Never) | Self::RefusedShared(Refused::Never) => {
                Some((Denial::CostTooLarge, None))
            }
        }
    }
}

type Guard<'a> = MutexGuard<'a, Shard>;

impl Store {
    pub fn new(plan: Plan, pace: Pace) -> Self {
        Self {
            shards: (0..plan.shards).map(|_| Padded(Mutex::new(Shard::new(plan)))).collect(),
            seed: Seed::random(),
            registry: ArcSwap::default(),
            pace,
            epoch: AtomicU32::new(1),
        }
    }

    pub fn shard_of(&self, hash: u64) -> usize {
        (hash >> 40) as usize & (self.shards.len() - 1)
    }

    pub fn lock(&self, hash: u64) -> Option<Guard<'_>> {
        self.shards.get(self.shard_of(hash)).map(|shard| shard.0.lock())
    }

    pub fn check(&self, now: Nanos, set: &LimitSet, caller: &Caller<'_>, cost: u32) -> Verdict {
        let none = || set.0.first().map(|limit| Due { index: 0, shard: 0, hash: 0, limit, found: Found::Free });
        let Some(none) = none() else { return nothing(set) };
        if set.0.len() <= USUAL {
            let mut room = [none; USUAL];
            let mut guards = [const { None }; USUAL];
            self.check_in(&mut room, &mut guards, now, set, caller, cost)
        } else {
            let mut room = vec![none; set.0.len()];
            let mut guards: Vec<Option<Guard<'_>>> = room.iter().map(|_| None).collect();
            self.check_in(&mut room, &mut guards, now, set, caller, cost)
        }
    }

    fn check_in<'a>(
        &'a self,
        room: &mut [Due<'a>],
        guards: &mut [Option<Guard<'a>>],
        now: Nanos,
        set: &'a LimitSet,
        caller: &Caller<'_>,
        cost: u32,
    ) -> Verdict {
        let mut applied = 0_u64;
        let mut count = 0;
        for (index, limit) in set.0.iter().enumerate() {
            if let Some(hash) = limit.hash(self.seed, caller)
                && let Some(place) = room.get_mut(count)
            {
                let shard = self.shard_of(hash) as u16;
                *place = Due { index: index.min(255) as u8, shard, hash, limit, found: Found::Free };
                count += 1;
                applied |= if index < 64 { 1 << index } else { 0 };
            }
        }
        let (dues, _) = room.split_at_mut(count);
        // Locks are taken in one order by all, and each once.
        dues.sort_unstable_by_key(|due| due.shard);
        let mut last = None;
        for (due, guard) in dues.iter().zip(&mut *guards) {
            if last != Some(due.shard) {
                *guard = self.shards.get(usize::from(due.shard)).map(|shard| shard.0.lock());
                last = Some(due.shard);
            }
        }
        let epoch = self.epoch.load(Ordering::Acquire);
        let mut at = 0;
        for (n, due) in dues.iter_mut().enumerate() {
            if let Some(Some(_)) = guards.get(n) {
                at = n;
            }
            if let Some(Some(shard)) = guards.get_mut(at) {
                due.found = self.look(shard, due, epoch, now, caller, cost);
            }
        }
        let passes = dues.iter().all(|due| due.limit.options.shadow || due.found.refusal().is_none());
        let mut verdict = Verdict { set: set.clone(), applied, denial: None, tightest: None, wait: None };
        for (n, due) in dues.iter().enumerate() {
            if let Some(Some(_)) = guards.get(n) {
                at = n;
            }
            if let Some(Some(shard)) = guards.get_mut(at) {
                self.charge(shard, due, epoch, now, if passes { cost } else { 0 }, passes, &mut verdict, cost);
            }
        }
        guards.iter_mut().for_each(|guard| *guard = None);
        for due in dues.iter() {
            count_one(due, passes);
        }
        verdict
    }

    fn look(&self, shard: &mut Shard, due: &Due<'_>, epoch: u32, now: Nanos, caller: &Caller<'_>, cost: u32) -> Found {
        let limit = due.limit;
        let Some(sharing) = &limit.sharing else {
            let tat = shard.find(limit.kind, due.hash, &limit.rate, now);
            return match limit.rate.charge(tat, now, cost) {
                Ok(next) => Found::Passes(next),
                Err(refused) => Found::Refused(tat, refused),
            };
        };
        if epoch % 2 == 1 {
            match sharing.down {
                StoreDown::Open => return Found::Free,
                StoreDown::Closed => return Found::Closed,
                StoreDown::LocalShare => {}
            }
        }
        let terms = sharing.terms(limit, self.pace, epoch, now);
        let make = || {
            // All parts are there, or there were no hash.
            let name = key::name(&limit.options.by, caller).unwrap_or_default();
            Lease::new(due.hash, limit.kind, name, &terms)
        };
        let Some(lease) = shard.lease(due.hash, now, make) else {
            // There is no memory for a key whose credit could be told from one that was spent.
            return Found::RefusedShared(Refused::Wait(self.pace.interval));
        };
        lease.turn(&terms);
        match lease.asks(&terms, cost) {
            Ok(()) => Found::PassesShared,
            Err(refused) => Found::RefusedShared(refused),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the state of one check, which nobody else has")]
    fn charge(
        &self,
        shard: &mut Shard,
        due: &Due<'_>,
        epoch: u32,
        now: Nanos,
        paid: u32,
        passes: bool,
        verdict: &mut Verdict,
        cost: u32,
    ) {
        let limit = due.limit;
        let (remaining, full_in) = match due.found {
            Found::Free => return,
            Found::Passes(next) => {
                if paid > 0 {
                    shard.put(limit.kind, due.hash, next, now);
                    (limit.rate.remaining(next, now), next.nanos.saturating_sub(now))
                } else {
                    let tat = shard.find(limit.kind, due.hash, &limit.rate, now);
                    (limit.rate.remaining(tat, now), tat.nanos.saturating_sub(now))
                }
            }
            Found::Refused(tat, _) => (limit.rate.remaining(tat, now), tat.nanos.saturating_sub(now)),
            Found::PassesShared | Found::RefusedShared(_) => {
                let Some(sharing) = &limit.sharing else { return };
                let terms = sharing.terms(limit, self.pace, epoch, now);
                self.charge_shared(shard, due, &terms, paid, cost, limit)
            }
            Found::Closed => (0, AWAY),
        };
        if limit.options.shadow {
            return;
        }
        let standing = Standing { index: due.index, remaining, full_in };
        match due.found.refusal() {
            Some((denial, wait)) => {
                // What never passes is said before what passes later, and of those the one that takes longest.
                let worse = verdict.denial.is_none() || wait.is_none() || verdict.wait.is_some() && wait > verdict.wait;
                if worse {
                    (verdict.denial, verdict.wait, verdict.tightest) = (Some(denial), wait, Some(standing));
                }
            }
            None if passes => {
                let key = |standing: &Standing| (standing.remaining, u64::MAX - standing.full_in);
                if verdict.tightest.is_none_or(|other| key(&standing) < key(&other)) {
                    verdict.tightest = Some(standing);
                }
            }
            None => {}
        }
    }

    fn charge_shared(
        &self,
        shard: &mut Shard,
        due: &Due<'_>,
        terms: &Terms,
        paid: u32,
        cost: u32,
        limit: &Limit,
    ) -> (u64, u64) {
        let Some(lease) = shard.lease_mut(due.hash) else { return (0, terms.interval) };
        let tell = match due.found {
            Found::PassesShared if paid > 0 => {
                lease.pay(terms, paid);
                true
            }
            Found::RefusedShared(Refused::Wait(_)) => lease.misses(terms, cost),
            _ => false,
        };
        let remaining = lease.remaining(terms, due.found.refusal().is_some());
        let burst = limit.rate.burst();
        let full_in = limit.rate.time_of(burst - remaining.min(burst));
        if tell && !lease.dirty && terms.epoch.is_multiple_of(2) {
            lease.dirty = true;
            shard.dirty.push(due.hash);
        }
        (remaining, full_in)
    }

    /// Bytes of all buckets and what belongs to them.
    pub fn bytes(&self) -> u64 {
        let shards: usize = self.shards.iter().map(|shard| shard.0.lock().bytes()).sum();
        (shards + size_of_val(&*self.shards) - self.shards.len() * size_of::<Shard>()) as u64
    }
}

fn nothing(set: &LimitSet) -> Verdict {
    Verdict { set: set.clone(), applied: 0, denial: None, tightest: None, wait: None }
}

fn count_one(due: &Due<'_>, passes: bool) {
    let counters = &due.limit.counters;
    let counter = match (due.found.refusal().is_some(), due.limit.options.shadow) {
        (true, true) => &counters.would_deny,
        (true, false) => &counters.denied,
        (false, _) if passes => &counters.allowed,
        (false, _) => return,
    };
    counter.fetch_add(1, Ordering::Relaxed);
}

impl LimitSet {
    pub(super) fn of(limits: Vec<Arc<Limit>>) -> Self {
        Self(limits.into())
    }
}
