//! A part of all buckets, behind one short lock: those of limits that this process alone keeps, those it shares with others
//! ([`super::lease`]), and the sketch of both kinds' evicted ones.
//!
//! Memory is given out at the start. When a table is full, an eighth of it goes at once, which keeps the cost of one request
//! small: what is full again, then what will be soonest.

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::gcra::{Rate, Tat};
use super::lease::Lease;
use super::sketch::Sketch;
use crate::clock::Nanos;

/// A bucket is 24 bytes, and one more of the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    hash: u64,
    nanos: Nanos,
    part: u32,
    kind: Kind,
}

/// Which limit a bucket is of, and its class in the sketch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind(u32);

impl Kind {
    pub fn new(slot: u32, fill: u64) -> Self {
        Self(slot << 2 | u32::from(Sketch::class(fill)))
    }

    pub fn slot(self) -> u32 {
        self.0 >> 2
    }

    pub fn class(self) -> u8 {
        (self.0 & 3) as u8
    }
}

impl Bucket {
    fn tat(&self) -> Tat {
        Tat { nanos: self.nanos, part: self.part }
    }
}

/// How many of something each limit has had, by slot.
#[derive(Debug, Default)]
pub(super) struct Tally(Vec<(u32, u64)>);

impl Tally {
    pub fn add(&mut self, slot: u32, n: u64) {
        match self.0.iter_mut().find(|(of, _)| *of == slot) {
            Some((_, sum)) => *sum += n,
            None => self.0.push((slot, n)),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, u64)> {
        self.0.iter().copied()
    }
}

/// How a shard's memory is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Shards; a power of two.
    pub shards: usize,
    sketch: usize,
    buckets: usize,
    leases: usize,
}

/// What a shard takes beside its tables.
const AROUND: usize = 512;
/// What a lease may take in the list of those that have something to tell, which doubles as it grows.
const LISTED: usize = 16;

impl Plan {
    /// For so many bytes in all. With shared limits the half is for theirs.
    pub fn new(max_bytes: u64, shared: bool) -> Self {
        let bytes = usize::try_from(max_bytes).unwrap_or(usize::MAX).max(64 << 10);
        // Small ones: an eviction goes through one of them under its lock.
        let shards = (bytes / (64 << 10)).clamp(1, 1024).next_power_of_two().clamp(16, 1024);
        let each = (bytes / shards).saturating_sub(AROUND).max(2 << 10);
        let sketch = each / 8;
        let tables = each - sketch;
        let (local, leases) = if shared { (tables / 2, tables / 2) } else { (tables, 0) };
        Self {
            shards,
            sketch,
            buckets: slots(size_of::<Bucket>(), local),
            leases: slots(size_of::<Lease>() + LISTED, leases),
        }
    }
}

/// Entries of a table whose memory fits.
fn slots(each: usize, bytes: usize) -> usize {
    // A table has a power of two of slots, 16 bytes of its own, and is full at seven eighths.
    let slots = (bytes.saturating_sub(16) / (each + 1) / 2 + 1).next_power_of_two();
    if bytes == 0 { 0 } else { slots.max(8) / 8 * 7 }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Shard {
    buckets: HashTable<Bucket>,
    leases: HashTable<Lease>,
    sketch: Sketch,
    /// Keys of leases that have something to tell Redis.
    pub dirty: Vec<u64>,
    evicted: Tally,
    plan: Plan,
}

impl Shard {
    pub fn new(plan: Plan) -> Self {
        Self {
            buckets: HashTable::new(),
            leases: HashTable::new(),
            sketch: Sketch::new(plan.sketch),
            dirty: Vec::new(),
            evicted: Tally::default(),
            plan,
        }
    }

    /// When a bucket is full again, as far as is known.
    pub fn find(&self, kind: Kind, hash: u64, rate: &Rate, now: Nanos) -> Tat {
        match self.buckets.find(hash, |bucket| bucket.hash == hash) {
            Some(bucket) => bucket.tat(),
            None => rate.at_most_empty(self.sketch.read(kind.class(), hash), now),
        }
    }

    /// The same of those alone that are held.
    pub fn held(&self, hash: u64) -> Option<Tat> {
        self.buckets.find(hash, |bucket| bucket.hash == hash).map(Bucket::tat)
    }

    /// A request was paid.
    pub fn put(&mut self, kind: Kind, hash: u64, tat: Tat, now: Nanos) {
        if let Some(bucket) = self.buckets.find_mut(hash, |bucket| bucket.hash == hash) {
            (bucket.nanos, bucket.part) = (tat.nanos, tat.part);
            return;
        }
        if full(&self.buckets, self.plan.buckets) {
            self.make_room(now);
        }
        let bucket = Bucket { hash, nanos: tat.nanos, part: tat.part, kind };
        self.buckets.insert_unique(hash, bucket, |bucket| bucket.hash);
    }

    fn make_room(&mut self, now: Nanos) {
        let wanted = self.plan.buckets / 8;
        let mut alive: Vec<Nanos> =
            self.buckets.iter().filter(|bucket| !over(bucket, now)).map(|bucket| bucket.nanos).collect();
        // Some go that are not yet full, unless enough are.
        let goes = (alive.len() + wanted).saturating_sub(self.plan.buckets);
        let line = match goes.checked_sub(1) {
            Some(nth) if nth < alive.len() => *alive.select_nth_unstable(nth).1,
            _ => 0,
        };
        // Anew: a table that is full of holes would grow.
        let full = std::mem::replace(&mut self.buckets, HashTable::with_capacity(self.plan.buckets));
        for bucket in full {
            if over(&bucket, now) {
                continue;
            }
            if bucket.nanos <= line {
                // Not its part of a nanosecond: rounded up.
                self.sketch.add(bucket.kind.class(), bucket.hash, bucket.nanos + 1);
                self.evicted.add(bucket.kind.slot(), 1);
            } else {
                self.buckets.insert_unique(bucket.hash, bucket, |bucket| bucket.hash);
            }
        }
    }

    /// Forgets a bucket; whether there was one.
    pub fn remove(&mut self, hash: u64) -> bool {
        self.buckets.find_entry(hash, |bucket| bucket.hash == hash).map(|found| found.remove()).is_ok()
    }

    /// A shared bucket, if there is one or room for one.
    pub fn lease(&mut self, hash: u64, now: Nanos, make: impl FnOnce() -> Lease) -> Option<&mut Lease> {
        // Looked for twice: the table may have to be cleared in between.
        let known = self.leases.find(hash, |lease| lease.hash == hash).is_some();
        if !known && full(&self.leases, self.plan.leases) {
            self.make_room_for_leases(now);
            if full(&self.leases, self.plan.leases) {
                return None;
            }
        }
        let sketch = &self.sketch;
        match self.leases.entry(hash, |lease| lease.hash == hash, |lease| lease.hash) {
            Entry::Occupied(found) => Some(found.into_mut()),
            Entry::Vacant(room) => {
                let mut lease = make();
                let spoilt = sketch.read(lease.kind.class(), hash);
                if spoilt > now {
                    lease.spoil();
                }
                Some(room.insert(lease).into_mut())
            }
        }
    }

    fn make_room_for_leases(&mut self, now: Nanos) {
        let mut wanted = (self.plan.leases / 8).max(1);
        let full = std::mem::replace(&mut self.leases, HashTable::with_capacity(self.plan.leases));
        for lease in full {
            if wanted > 0 && lease.may_go(now) {
                wanted -= 1;
                if let Some(until) = lease.spoilt_until() {
                    self.sketch.add(lease.kind.class(), lease.hash, until);
                }
                self.evicted.add(lease.kind.slot(), 1);
            } else {
                self.leases.insert_unique(lease.hash, lease, |lease| lease.hash);
            }
        }
    }

    pub fn lease_mut(&mut self, hash: u64) -> Option<&mut Lease> {
        self.leases.find_mut(hash, |lease| lease.hash == hash)
    }

    pub fn leases(&mut self) -> impl Iterator<Item = &mut Lease> {
        self.leases.iter_mut()
    }

    /// Takes out what is full again, and counts what is there and what was evicted.
    pub fn sweep(&mut self, now: Nanos, there: &mut Tally, evicted: &mut Tally) {
        self.buckets.retain(|bucket| {
            let stays = !over(bucket, now);
            if stays {
                there.add(bucket.kind.slot(), 1);
            }
            stays
        });
        self.leases.retain(|lease| {
            let stays = !(lease.may_go(now) && lease.spoilt_until().is_none_or(|until| until <= now));
            if stays {
                there.add(lease.kind.slot(), 1);
            }
            stays
        });
        self.evicted.iter().for_each(|(slot, n)| evicted.add(slot, n));
        self.evicted = Tally::default();
        if self.buckets.len() < self.buckets.capacity() / 8 {
            self.buckets.shrink_to(self.buckets.len() * 2, |bucket| bucket.hash);
        }
        if self.leases.len() < self.leases.capacity() / 8 {
            self.leases.shrink_to(self.leases.len() * 2, |lease| lease.hash);
        }
    }

    /// A limit has another rate from now on.
    pub fn convert(&mut self, kind: Kind, old: &Rate, new: &Rate, now: Nanos) {
        for bucket in self.buckets.iter_mut().filter(|bucket| bucket.kind.slot() == kind.slot()) {
            let tat = new.taken_over(old, bucket.tat(), now);
            (bucket.nanos, bucket.part, bucket.kind) = (tat.nanos, tat.part, kind);
        }
    }

    /// Bytes of everything in it.
    pub fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.buckets.allocation_size()
            + self.leases.allocation_size()
            + self.sketch.bytes()
            + self.dirty.capacity() * size_of::<u64>()
    }
}

/// Whether a table has no room, and must not grow. It would double, also where it only has many holes.
fn full<T>(table: &HashTable<T>, most: usize) -> bool {
    let slots = table.num_buckets();
    let grown = if slots < 16 { table.len() + 1 } else { slots * 2 / 8 * 7 };
    table.len() == table.capacity() && grown > most
}

/// Whether it is full again, its part of a nanosecond included.
fn over(bucket: &Bucket, now: Nanos) -> bool {
    bucket.nanos < now || bucket.nanos == now && bucket.part == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const START: Nanos = 86_400_000_000_000;

    #[test]
    fn the_plan_keeps_to_its_bytes() {
        for max in [64 << 10, 1 << 20, 3 << 20, 16 << 20, 64 << 20, 100 << 20, 1 << 30] {
            for shared in [false, true] {
                let plan = Plan::new(max, shared);
                let buckets = HashTable::<Bucket>::with_capacity(plan.buckets);
                let leases = HashTable::<Lease>::with_capacity(plan.leases);
                let each = buckets.allocation_size() + leases.allocation_size() + Sketch::new(plan.sketch).bytes();
                let all = (each + AROUND) * plan.shards;
                assert!(all as u64 <= max, "{max}: {all} bytes, {plan:?}");
                assert!(plan.buckets >= 14 && size_of::<Bucket>() == 24 && size_of::<Shard>() < AROUND);
            }
        }
        assert!(Plan::new(64 << 20, false).buckets * 1024 > 1_000_000);
    }

    #[test]
    fn what_is_full_soonest_goes_first_and_is_remembered() {
        let plan = Plan::new(1 << 20, false);
        let mut shard = Shard::new(plan);
        let rate = Rate::new(1, Duration::from_secs(1), 1000);
        let kind = Kind::new(1, rate.fill());
        let key = |n: u64| n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let most = plan.buckets as u64;
        // Buckets that are full again after 1 s, 2 s, and so on.
        for n in 1..=most {
            shard.put(kind, key(n), Tat { nanos: START + n * 1_000_000_000, part: 0 }, START);
        }
        let full = shard.buckets.allocation_size();
        let now = START + 10_500_000_000;
        shard.put(kind, key(0), Tat { nanos: now + 1, part: 0 }, now);
        assert_eq!(shard.buckets.allocation_size(), full, "it does not grow");
        // The first ten were full; the next went into the sketch.
        let gone: Vec<u64> = (1..=most).filter(|n| shard.held(key(*n)).is_none()).collect();
        assert_eq!(gone, (1..=most / 8).collect::<Vec<_>>());
        for n in 1..=most {
            let tat = shard.find(kind, key(n), &rate, now);
            assert!(n <= 10 || tat.nanos >= START + n * 1_000_000_000, "{n} is fuller than it was");
        }
        let (mut there, mut evicted) = (Tally::default(), Tally::default());
        shard.sweep(now, &mut there, &mut evicted);
        assert_eq!(evicted.iter().collect::<Vec<_>>(), [(1, most / 8 - 10)]);
        assert_eq!(there.iter().collect::<Vec<_>>(), [(1, most - most / 8 + 1)]);
        shard.sweep(START + most * 1_000_000_000, &mut there, &mut evicted);
        assert!(shard.buckets.is_empty() && shard.buckets.allocation_size() < full);
    }
}
