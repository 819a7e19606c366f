//! Fills that are running: who wants the same value joins one.
//!
//! A flight stays until its value is in the first tier, so that nobody comes between the two and fills again; a failed one
//! stays as the memory of its failure. Who comes after an invalidation does not join what began before it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Place;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::Kind;
use super::entry::{Entry, Epoch};
use super::value::{CacheError, Tier, Why};
use crate::clock::UnixMillis;

const SHARDS: usize = 64;

/// Not failed.
const NEVER: i64 = i64::MAX;

/// What a flight brought.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub entry: Arc<Entry>,
    pub tier: Tier,
    pub stale: Option<Why>,
    pub stored: bool,
}

pub(super) struct Flight {
    pub kind: Kind,
    pub id: Arc<str>,
    pub hash: u64,
    pub epoch: Epoch,
    /// When it began, in microseconds of the cache's own time.
    pub as_of: u64,
    /// Only what the source said after this is news.
    pub newer_than: UnixMillis,
    done: watch::Sender<Option<Result<Outcome, CacheError>>>,
    /// Until when its failure is remembered.
    failed_until: AtomicI64,
}

impl Flight {
    pub fn new(kind: Kind, id: &str, hash: u64, epoch: Epoch, as_of: u64, newer_than: UnixMillis) -> Self {
        let (done, failed_until) = (watch::Sender::new(None), AtomicI64::new(NEVER));
        Self { kind, id: id.into(), hash, epoch, as_of, newer_than, done, failed_until }
    }

    /// Tells everybody who waits.
    pub fn deliver(&self, outcome: Result<Outcome, CacheError>) {
        self.done.send_replace(Some(outcome));
    }

    /// Tells everybody that it failed, unless they have something already, and is remembered as failed.
    pub fn fail(&self, error: CacheError, until: UnixMillis) {
        self.failed_until.store(until, Ordering::SeqCst);
        self.done.send_if_modified(|done| {
            let silent = done.is_none();
            if silent {
                *done = Some(Err(error));
            }
            silent
        });
    }

    pub fn delivered(&self) -> bool {
        self.done.borrow().is_some()
    }

    fn over(&self, now: UnixMillis) -> bool {
        now >= self.failed_until.load(Ordering::SeqCst)
    }

    /// Waits for what it brings.
    pub async fn outcome(&self) -> Result<Outcome, CacheError> {
        let mut done = self.done.subscribe();
        match done.wait_for(Option::is_some).await {
            Ok(done) => done.clone().unwrap_or_else(|| Err(lost())),
            Err(_) => Err(lost()),
        }
    }
}

/// What waiters get when a fill ended without a word.
pub(super) fn lost() -> CacheError {
    CacheError::Fill(super::FillError::Failed("the fill panicked or was stopped".into()))
}

pub(super) struct Flights(Vec<Mutex<HashTable<Arc<Flight>>>>);

/// What somebody found who wanted a value.
pub(super) enum Joined<T> {
    /// A fill to wait for.
    Running(Arc<Flight>),
    /// A fill to start.
    New(Arc<Flight>),
    /// The value itself: it landed a moment ago.
    Landed(T),
}

impl Flights {
    pub fn new() -> Self {
        Self((0..SHARDS).map(|_| Mutex::new(HashTable::new())).collect())
    }

    fn shard(&self, hash: u64) -> &Mutex<HashTable<Arc<Flight>>> {
        &self.0[(hash >> 40) as usize % SHARDS]
    }

    /// Joins the running fill of the same key and epoch, or else asks `landed`, or else takes `new` for it.
    pub fn join<T>(&self, new: Flight, now: UnixMillis, landed: impl FnOnce() -> Option<T>) -> Joined<T> {
        let mut shard = self.shard(new.hash).lock();
        let same = |other: &Arc<Flight>| other.hash == new.hash && other.kind == new.kind && other.id == new.id;
        match shard.entry(new.hash, same, |flight| flight.hash) {
            Place::Occupied(there) if there.get().epoch == new.epoch && !there.get().over(now) => {
                Joined::Running(there.get().clone())
            }
            Place::Occupied(mut there) => {
                *there.get_mut() = Arc::new(new);
                Joined::New(there.get().clone())
            }
            Place::Vacant(free) => match landed() {
                Some(landed) => Joined::Landed(landed),
                None => Joined::New(free.insert(Arc::new(new)).get().clone()),
            },
        }
    }

    /// Ends a flight.
    pub fn remove(&self, flight: &Arc<Flight>) {
        let mut shard = self.shard(flight.hash).lock();
        if let Ok(there) = shard.find_entry(flight.hash, |other| Arc::ptr_eq(other, flight)) {
            there.remove();
        }
    }

    /// Forgets failures whose time is over.
    pub fn sweep(&self, now: UnixMillis) {
        for shard in &self.0 {
            shard.lock().retain(|flight| !flight.over(now));
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.iter().map(|shard| shard.lock().len()).sum()
    }
}
