//! The handle of the statistics: what the rest of the code sees of them, and which survives the aggregator's restarts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use super::actor::{Aggregator, Stop};
use super::shared::{SharedHandle, SharedState, StoreError};
use super::{AuditTotals, Feed, LiveReader, Queries};
use crate::actor::supervisor::Supervised;
use crate::clock::Stopwatch;

/// The handle of the statistics.
#[derive(Clone)]
pub struct StatsHandle {
    pub(super) shared: Arc<Shared>,
    pub(super) actor: Supervised<Aggregator>,
    pub(super) queries: Queries,
    /// The shared store, if there is one.
    pub(super) shared_store: Option<SharedHandle>,
}

/// What the actor publishes, and what outlives it.
pub(super) struct Shared {
    /// The journal's sequence number through which everything is counted.
    pub counted: watch::Sender<u64>,
    /// The running windows.
    pub live: LiveReader,
    /// Deltas of them.
    pub feed: Feed,
    /// Why counting has stopped, while it has.
    pub fault: Mutex<Option<String>>,
    /// Entries that could not be read.
    pub lost: AtomicU64,
    /// Transactions since the start.
    pub commits: AtomicU64,
}

impl StatsHandle {
    /// The running windows.
    pub fn live(&self) -> &LiveReader {
        &self.shared.live
    }

    /// The live feed.
    pub fn feed(&self) -> &Feed {
        &self.shared.feed
    }

    /// Questions about the past.
    pub fn queries(&self) -> &Queries {
        &self.queries
    }

    /// The sequence number through which everything is counted.
    pub fn counted(&self) -> u64 {
        *self.shared.counted.borrow()
    }

    /// Waits until everything before `seq` is counted.
    pub async fn counted_through(&self, seq: u64) {
        // The sender lives as long as this handle.
        let _ = self.shared.counted.subscribe().wait_for(|counted| *counted >= seq).await;
    }

    /// What is known of the shared store, if there is one.
    pub fn shared_state(&self) -> Option<&Arc<SharedState>> {
        self.shared_store.as_ref().map(|shared| shared.reads.state())
    }

    /// This instance's books in the shared store, if there is one.
    pub async fn shared_audit(&self) -> Option<Result<AuditTotals, StoreError>> {
        Some(self.shared_store.as_ref()?.reads.audit().await)
    }

    /// Waits until everything before `seq` is counted, and in the shared store if there is one.
    pub async fn delivered_through(&self, seq: u64) {
        self.counted_through(seq).await;
        if let Some(state) = self.shared_state() {
            state.delivered_through(seq).await;
        }
    }

    /// Why counting has stopped, while it has.
    pub fn fault(&self) -> Option<String> {
        self.shared.fault.lock().clone()
    }

    /// Entries of the journal that were damaged when their turn came.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// Transactions since the start.
    pub fn commits(&self) -> u64 {
        self.shared.commits.load(Ordering::Relaxed)
    }

    /// How often the aggregator was made anew.
    pub fn restarts(&self) -> u64 {
        let (panicked, failed) = self.restarts_by_cause();
        panicked + failed
    }

    /// The same after panics, and after failures.
    pub fn restarts_by_cause(&self) -> (u64, u64) {
        let restarts = self.actor.restarts();
        (restarts.panicked.load(Ordering::Relaxed), restarts.failed.load(Ordering::Relaxed))
    }

    /// Counts what the (closed) journal still has, syncs the store, and ends. What is not done in time waits for the next
    /// start: it is in the journal.
    pub async fn stop(&self, deadline: Duration) {
        let watch = Stopwatch::start();
        loop {
            let (done, wait) = oneshot::channel();
            let left = deadline.saturating_sub(watch.elapsed());
            let stop = async {
                self.actor.send(Stop(done)).await.ok()?;
                wait.await.ok()
            };
            match tokio::time::timeout(left, stop).await {
                Ok(Some(())) => break,
                // It panicked meanwhile; its successor can be asked.
                Ok(None) => tokio::time::sleep(Duration::from_millis(20).min(left)).await,
                Err(_) => {
                    log::warn!("the statistics did not finish within {} s", deadline.as_secs());
                    break;
                }
            }
        }
        if let Some(shared) = &self.shared_store {
            shared.stop(deadline.saturating_sub(watch.elapsed())).await;
        }
        self.shared.feed.close();
    }

    /// Closes the connections of questions, after whatever else reads the store has ended. To be called within the
    /// runtime: its connections can only be dropped there.
    pub async fn close(&self) {
        self.queries.close().await;
    }

    #[cfg(test)]
    pub(super) async fn panic(&self) {
        let _ = self.actor.send(super::actor::Panic).await;
    }
}
