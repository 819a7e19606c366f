//! The first tier as readers see it: a sharded map that only the owner fills, and the epochs of invalidations.
//!
//! A read holds a shard's lock for the look alone. An invalidation moves the key's epoch first and takes the entry out
//! then; an entry is published under the same lock only if its epoch has not moved since its source was read. So there is
//! no order of the two in which the old value stays.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Place;
use parking_lot::{Mutex, RwLock};

use super::Kind;
use super::entry::{Entry, Epoch, State};
use crate::clock::UnixMillis;

/// Locks of the map.
pub(super) const SHARDS: usize = 64;
/// Epochs of keys. Two keys that share one cost each other a stored value at times, never a wrong one.
const SLOTS: usize = 1 << 14;

pub(super) struct Published {
    shards: Vec<RwLock<HashTable<Arc<Entry>>>>,
    slots: Vec<AtomicU64>,
    kinds: Vec<AtomicU64>,
    hasher: RandomState,
    /// Taken out by invalidations; the owner forgets them when it comes to it. Each was in the map once, so there are never
    /// more of them than it had room for between two looks of the owner.
    dead: Mutex<Vec<Arc<Entry>>>,
}

/// The entry was read before an invalidation.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outdated;

impl Published {
    pub fn new(kinds: usize) -> Self {
        let numbers = |n: usize| (0..n).map(|_| AtomicU64::new(0)).collect();
        Self {
            shards: (0..SHARDS).map(|_| RwLock::new(HashTable::new())).collect(),
            slots: numbers(SLOTS),
            kinds: numbers(kinds),
            // Not to be guessed from outside, so nobody can make ids that share a place.
            hasher: RandomState::new(),
            dead: Mutex::default(),
        }
    }

    pub fn hash(&self, kind: Kind, id: &str) -> u64 {
        self.hasher.hash_one((kind.0, id))
    }

    fn shard(&self, hash: u64) -> &RwLock<HashTable<Arc<Entry>>> {
        &self.shards[(hash >> 40) as usize % SHARDS]
    }

    /// The epoch of a key.
    pub fn epoch(&self, kind: Kind, hash: u64) -> Epoch {
        Epoch {
            slot: self.slots[(hash >> 20) as usize % SLOTS].load(Ordering::SeqCst),
            kind: self.kinds[kind.index()].load(Ordering::SeqCst),
        }
    }

    /// What is there of a key and was not invalidated.
    pub fn find(&self, kind: Kind, id: &str, hash: u64) -> Option<Arc<Entry>> {
        let found = self.shard(hash).read().find(hash, |entry| is(entry, kind, id, hash)).cloned()?;
        (found.epoch.kind == self.kinds[kind.index()].load(Ordering::SeqCst)).then_some(found)
    }

    /// Shows an entry, and returns the one it replaces.
    pub fn publish(&self, entry: &Arc<Entry>) -> Result<Option<Arc<Entry>>, Outdated> {
        let mut shard = self.shard(entry.hash).write();
        if self.epoch(entry.kind, entry.hash) != entry.epoch {
            return Err(Outdated);
        }
        let same = |other: &Arc<Entry>| is(other, entry.kind, &entry.id, entry.hash);
        match shard.entry(entry.hash, same, |entry| entry.hash) {
            Place::Occupied(mut there) => Ok(Some(std::mem::replace(there.get_mut(), entry.clone()))),
            Place::Vacant(free) => {
                free.insert(entry.clone());
                Ok(None)
            }
        }
    }

    /// Takes this very entry out; whether it was there.
    pub fn withdraw(&self, entry: &Arc<Entry>) -> bool {
        let mut shard = self.shard(entry.hash).write();
        let Ok(there) = shard.find_entry(entry.hash, |other| Arc::ptr_eq(other, entry)) else { return false };
        there.remove();
        true
    }

    /// From now on nothing that was read of this key before is served or stored; whether something was there.
    pub fn invalidate(&self, kind: Kind, id: &str, hash: u64) -> bool {
        self.slots[(hash >> 20) as usize % SLOTS].fetch_add(1, Ordering::SeqCst);
        let mut shard = self.shard(hash).write();
        let Ok(there) = shard.find_entry(hash, |entry| is(entry, kind, id, hash)) else { return false };
        let (entry, _) = there.remove();
        drop(shard);
        self.dead.lock().push(entry);
        true
    }

    /// The same for all keys of a type. The entries leave when the owner sweeps.
    pub fn invalidate_kind(&self, kind: Kind) {
        self.kinds[kind.index()].fetch_add(1, Ordering::SeqCst);
    }

    /// What invalidations took out since it was last asked.
    pub fn take_dead(&self) -> Vec<Arc<Entry>> {
        std::mem::take(&mut *self.dead.lock())
    }

    /// Takes out of one shard what is good for nothing any more.
    pub fn sweep(&self, shard: usize, now: UnixMillis) -> Vec<Arc<Entry>> {
        let useless = |entry: &Arc<Entry>| {
            let epoch = self.kinds[entry.kind.index()].load(Ordering::SeqCst);
            entry.state(now) == State::Gone || entry.epoch.kind != epoch
        };
        let shard = &self.shards[shard % SHARDS];
        // Mostly there is nothing to do, and then no reader waits.
        if !shard.read().iter().any(useless) {
            return Vec::new();
        }
        shard.write().extract_if(|entry| useless(entry)).collect()
    }

    /// Takes everything out, for an owner that begins anew.
    pub fn clear(&self) {
        for shard in &self.shards {
            *shard.write() = HashTable::new();
        }
        self.dead.lock().clear();
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }
}

fn is(entry: &Entry, kind: Kind, id: &str, hash: u64) -> bool {
    entry.hash == hash && entry.kind == kind && *entry.id == *id
}
