//! The first tier as its owner sees it: the published map and who stays in it. No clock, no mailbox.

use std::sync::Arc;

use super::Kind;
use super::entry::{Entry, State};
use super::policy::Policy;
use super::published::{Published, SHARDS};
use crate::clock::UnixMillis;

/// The part of the room that a single entry may take.
pub(super) const LARGEST: u64 = 8;

pub(super) struct L1 {
    published: Arc<Published>,
    policy: Policy,
    largest: u64,
    next_shard: usize,
    kinds: Vec<Held>,
}

/// What a type has in the tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub entries: u64,
    pub bytes: u64,
    pub evicted: u64,
    pub expired: u64,
}

/// What became of an insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inserted {
    /// It is there.
    Stored,
    /// Its source was read before an invalidation.
    Outdated,
    /// It has expired on the way.
    Expired,
    /// It would take too much of the room.
    TooLarge,
}

impl L1 {
    /// A tier that begins with nothing.
    pub fn new(published: Arc<Published>, kinds: usize, max_bytes: u64, max_entries: usize) -> Self {
        published.clear();
        let policy = Policy::new(max_bytes, max_entries);
        Self { published, policy, largest: max_bytes / LARGEST, next_shard: 0, kinds: vec![Held::default(); kinds] }
    }

    pub fn insert(&mut self, entry: &Arc<Entry>, now: UnixMillis) -> Inserted {
        if entry.weight() > self.largest {
            // What it would have replaced is older than it.
            if let Some(old) = self.published.find(entry.kind, &entry.id, entry.hash) {
                self.published.withdraw(&old);
                self.forget(&old);
            }
            return Inserted::TooLarge;
        }
        if entry.state(now) == State::Gone {
            return Inserted::Expired;
        }
        let Ok(replaced) = self.published.publish(entry) else { return Inserted::Outdated };
        let held = &mut self.kinds[entry.kind.index()];
        held.entries += 1;
        held.bytes += entry.weight();
        let gone = match replaced {
            Some(old) => {
                held.entries -= 1;
                held.bytes -= old.weight();
                self.policy.replace(&old, entry.clone())
            }
            None => self.policy.insert(entry.clone()),
        };
        for entry in gone {
            self.published.withdraw(&entry);
            let held = self.held(entry.kind);
            held.entries -= 1;
            held.bytes -= entry.weight();
            held.evicted += 1;
        }
        Inserted::Stored
    }

    /// Gives back the room of what was invalidated.
    pub fn reap(&mut self) {
        for entry in self.published.take_dead() {
            self.forget(&entry);
        }
    }

    /// Takes out what has expired, in the next few shards.
    pub fn sweep(&mut self, shards: usize, now: UnixMillis) {
        for _ in 0..shards {
            for entry in self.published.sweep(self.next_shard, now) {
                self.forget(&entry);
                self.held(entry.kind).expired += 1;
            }
            self.next_shard = (self.next_shard + 1) % SHARDS;
        }
    }

    fn forget(&mut self, entry: &Arc<Entry>) {
        if self.policy.remove(entry) {
            let held = self.held(entry.kind);
            held.entries -= 1;
            held.bytes -= entry.weight();
        }
    }

    fn held(&mut self, kind: Kind) -> &mut Held {
        &mut self.kinds[kind.index()]
    }

    pub fn kinds(&self) -> &[Held] {
        &self.kinds
    }

    pub fn entries(&self) -> usize {
        self.policy.entries()
    }

    pub fn bytes(&self) -> u64 {
        self.policy.bytes()
    }
}
