//! The handle of popularity: what the rest of the code sees of it. It reads what the owner has published, and never waits.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use hashbrown::{DefaultHashBuilder, HashMap};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use super::actor::Scorer;
use super::lifetime::{Lifetime, Steps};
use super::score;
use super::shared::SharedPopularity;
use super::tail::{Hash, Tail, TailError};
use crate::actor::supervisor::Supervised;
use crate::clock::Clock;
use crate::journal::Journal;

/// Maps that the published products are spread over, so that a writer seldom meets a reader.
const SHARDS: usize = 64;
/// Products in the published list of the hottest.
pub(super) const HOTTEST: usize = 1_000;

/// How popular a product is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Score {
    /// Views of the last 24 hours.
    pub views_24h: u64,
    /// Units sold in the last 7 days.
    pub units_7d: u64,
    /// Views and ten times units.
    pub score: u64,
    /// Whether that is the number, or an estimate that may be too high by [`PopularityHandle::error`].
    pub exact: bool,
}

/// One of the most popular products.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hot {
    /// Its id.
    pub product_id: Arc<str>,
    /// How popular it is.
    pub score: Score,
}

/// A product as it is published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shown {
    /// Views and units of this instance; `None` when it does not count it singly.
    pub local: Option<[u64; 2]>,
    /// Those of the other instances.
    pub others: [u64; 2],
    pub exact: bool,
    pub step: u8,
}

impl Shown {
    pub fn score(&self) -> u64 {
        let local = self.local.unwrap_or_default();
        score(local[0].saturating_add(self.others[0]), local[1].saturating_add(self.others[1]))
    }
}

/// What the owner publishes, and what outlives it.
pub(super) struct Published {
    shards: [RwLock<HashMap<Arc<str>, Shown>>; SHARDS],
    hasher: DefaultHashBuilder,
    pub tail: ArcSwap<Tail>,
    pub hottest: ArcSwap<Vec<Hot>>,
    pub steps: Steps,
    /// The journal's sequence number through which everything is published.
    pub counted: watch::Sender<u64>,
    /// The same of the snapshot.
    pub saved: watch::Sender<u64>,
    pub fault: Mutex<Option<String>>,
    pub shared: Option<Arc<SharedPopularity>>,
    pub numbers: Numbers,
}

/// Numbers for the metrics.
#[derive(Debug, Default)]
pub struct Numbers {
    /// Products counted singly.
    pub products: AtomicU64,
    /// Bytes they and the tail take.
    pub bytes: AtomicU64,
    /// Snapshots since the start.
    pub snapshots: AtomicU64,
    /// Views and sales that came too late for their windows.
    pub ignored: AtomicU64,
    /// Entries of the journal that could not be read.
    pub lost: AtomicU64,
    /// Times that the snapshot was no use and everything was read again.
    pub rebuilds: AtomicU64,
}

impl Published {
    pub fn new(steps: Steps, counted: u64, shared: Option<Arc<SharedPopularity>>) -> Self {
        Self {
            shards: std::array::from_fn(|_| RwLock::default()),
            hasher: DefaultHashBuilder::default(),
            tail: ArcSwap::default(),
            hottest: ArcSwap::default(),
            steps,
            counted: watch::Sender::new(counted),
            saved: watch::Sender::new(counted),
            fault: Mutex::default(),
            shared,
            numbers: Numbers::default(),
        }
    }

    fn shard(&self, id: &str) -> &RwLock<HashMap<Arc<str>, Shown>> {
        &self.shards[self.hasher.hash_one(id) as usize % SHARDS]
    }

    pub fn shown(&self, id: &str) -> Option<Shown> {
        self.shard(id).read().get(id).copied()
    }

    pub fn show(&self, id: &Arc<str>, shown: Option<Shown>) {
        let mut shard = self.shard(id).write();
        match shown {
            Some(shown) => match shard.get_mut(&**id) {
                Some(held) => *held = shown,
                None => {
                    shard.insert(id.clone(), shown);
                }
            },
            None => {
                shard.remove(&**id);
            }
        }
    }

    pub fn fails(&self, why: &dyn std::fmt::Display) {
        let mut fault = self.fault.lock();
        if fault.is_none() {
            log::error!("popularity is not kept up to date, and is tried again: {why}");
        }
        *fault = Some(why.to_string());
    }
}

/// The handle of popularity.
#[derive(Clone)]
pub struct PopularityHandle {
    pub(super) published: Arc<Published>,
    pub(super) actor: Supervised<Scorer>,
    pub(super) journal: Journal,
    pub(super) clock: Clock,
    pub(super) stop: watch::Sender<bool>,
    pub(super) ended: watch::Receiver<bool>,
}

impl PopularityHandle {
    /// How popular a product is, as of at most the publish interval ago. Nobody knows it: 0. Where it is shared, the counts
    /// of the other instances are in it, but not what they have in their tails.
    pub fn score(&self, product_id: &str) -> Score {
        self.look(product_id).0
    }

    /// The score, its step, and how much of the score may be others'.
    fn look(&self, product_id: &str) -> (Score, Option<u8>, u64) {
        let shown = self.published.shown(product_id);
        let (mut views, mut units, mut exact, mut unsure) = match shown {
            Some(Shown { local, others, exact, .. }) => {
                let local = local.unwrap_or_default();
                (local[0].saturating_add(others[0]), local[1].saturating_add(others[1]), exact, 0)
            }
            None => (0, 0, true, 0),
        };
        let tail = self.published.tail.load();
        if shown.is_none_or(|shown| shown.local.is_none()) && !tail.is_empty() {
            let now = self.clock.now();
            let estimate = tail.estimate(Hash::of(product_id), now);
            // An estimate of 0 is exact: it is never below the truth.
            if estimate != [0, 0] {
                views = views.saturating_add(estimate[0]);
                units = units.saturating_add(estimate[1]);
                (exact, unsure) = (false, tail.error(now).score.min(score(estimate[0], estimate[1])));
            }
        }
        let score = Score { views_24h: views, units_7d: units, score: score(views, units), exact };
        (score, shown.map(|shown| shown.step), unsure)
    }

    /// The most popular products, the first of them first, those of the same score by id; at most 1,000.
    pub fn hottest(&self, limit: usize) -> Arc<[Hot]> {
        let hottest = self.published.hottest.load();
        hottest.iter().take(limit).cloned().collect()
    }

    /// How long a product may be cached whose type lives for `base`. An estimate counts with what of it is sure.
    pub fn lifetime(&self, product_id: &str, base: Duration) -> Lifetime {
        let (score, step, unsure) = self.look(product_id);
        let sure = score.score - unsure;
        let steps = &self.published.steps;
        steps.lifetime(steps.step(step.map_or(0, usize::from), sure), sure, base)
    }

    /// What the score of a product that is not exact may be too high, in 98 of 100 cases; products that came out of the
    /// tail bring as much along.
    pub fn error(&self) -> TailError {
        let tail = self.published.tail.load();
        if tail.is_empty() { TailError::default() } else { tail.error(self.clock.now()) }
    }

    /// The sequence number through which everything is counted and published.
    pub fn counted(&self) -> u64 {
        *self.published.counted.borrow()
    }

    /// The same of what a crash would leave.
    pub fn saved(&self) -> u64 {
        *self.published.saved.borrow()
    }

    /// Entries of the journal that are not counted yet.
    pub fn behind(&self) -> u64 {
        self.journal.end().saturating_sub(self.counted())
    }

    /// Waits until everything before `seq` is counted and published.
    pub async fn delivered_through(&self, seq: u64) {
        // The sender lives as long as this handle.
        let _ = self.published.counted.subscribe().wait_for(|counted| *counted >= seq).await;
    }

    /// Why it is not kept up to date, while it is not.
    pub fn fault(&self) -> Option<String> {
        self.published.fault.lock().clone()
    }

    /// What sharing over Redis says of itself, if it is shared.
    pub fn shared(&self) -> Option<&SharedPopularity> {
        self.published.shared.as_deref()
    }

    /// Whether scores may lack what other instances counted lately: Redis is to be there, and is not.
    pub fn degraded(&self) -> bool {
        self.shared().is_some_and(|shared| shared.fault().is_some())
    }

    /// Numbers for the metrics.
    pub fn numbers(&self) -> &Numbers {
        &self.published.numbers
    }

    /// How often its actor was made anew.
    pub fn restarts(&self) -> u64 {
        let restarts = self.actor.restarts();
        restarts.panicked.load(Ordering::Relaxed) + restarts.failed.load(Ordering::Relaxed)
    }

    /// Counts what the (closed) journal still has, writes the snapshot, shares what is left, and ends. What is not done in time waits for the
    /// next start: it is in the journal.
    pub async fn stop(&self, deadline: Duration) {
        self.stop.send_replace(true);
        let mut ended = self.ended.clone();
        if tokio::time::timeout(deadline, ended.wait_for(|ended| *ended)).await.is_err() {
            log::warn!("popularity did not finish within {} ms", deadline.as_millis());
        }
    }
}
