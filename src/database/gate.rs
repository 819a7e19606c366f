//! The way to the connections of a pool: so many at once, a bounded queue before them, and what is known of both.
//!
//! The pools of the three databases wait in different ways, and one of them for ever. So none of them ever has to: who has
//! a permit finds a connection, and all databases count alike.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use utoipa::ToSchema;

use super::DatabaseError;

/// How a pool is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct PoolStats {
    /// `main`, or of SQLite `read` and `write`.
    pub name: &'static str,
    /// Connections that there may be.
    pub size: usize,
    /// Connections that nobody uses.
    pub idle: usize,
    /// Connections in use.
    pub in_use: usize,
    /// Requests that wait for one.
    pub waiting: usize,
    /// Requests that waited too long, since the start.
    pub wait_timeouts: u64,
    /// Requests that found the queue full, since the start.
    pub refused: u64,
}

#[derive(Debug)]
pub(super) struct Gate {
    name: &'static str,
    size: usize,
    queue: usize,
    patience: Duration,
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
    wait_timeouts: AtomicU64,
    refused: AtomicU64,
}

/// One that waits, until it does not any more, for whatever reason.
struct Waiter<'a>(&'a AtomicUsize);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Gate {
    pub fn new(name: &'static str, size: usize, queue: usize, patience: Duration) -> Self {
        Self {
            name,
            size,
            queue,
            patience,
            permits: Arc::new(Semaphore::new(size)),
            waiting: AtomicUsize::new(0),
            wait_timeouts: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Waits for a permit, in turn.
    pub async fn enter(&self) -> Result<OwnedSemaphorePermit, DatabaseError> {
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            return Ok(permit);
        }
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiter = Waiter(&self.waiting);
        if before >= self.queue {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(DatabaseError::Busy("too many requests wait for a connection"));
        }
        match tokio::time::timeout(self.patience, self.permits.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(DatabaseError::Unavailable(String::from("is closed"))),
            Err(_) => {
                self.wait_timeouts.fetch_add(1, Ordering::Relaxed);
                Err(DatabaseError::Busy("no connection came free in time"))
            }
        }
    }

    /// Lets nobody in any more.
    pub fn close(&self) {
        self.permits.close();
    }

    /// With the number of open connections.
    pub fn stats(&self, open: usize) -> PoolStats {
        let in_use = self.size - self.permits.available_permits().min(self.size);
        PoolStats {
            name: self.name,
            size: self.size,
            idle: open.saturating_sub(in_use),
            in_use,
            waiting: self.waiting.load(Ordering::Relaxed),
            wait_timeouts: self.wait_timeouts.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[actix_web::test]
    async fn the_queue_is_bounded_in_length_and_time() {
        let gate = Arc::new(Gate::new("main", 1, 1, Duration::from_millis(50)));
        let held = gate.enter().await.unwrap();
        let waits = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter().await.map(drop) }
        });
        while gate.stats(1).waiting == 0 {
            tokio::task::yield_now().await;
        }
        assert!(matches!(gate.enter().await, Err(DatabaseError::Busy(_))), "the queue is full");
        assert!(matches!(waits.await.unwrap(), Err(DatabaseError::Busy(_))), "it waited too long");
        let stats = gate.stats(1);
        assert_eq!((stats.in_use, stats.waiting, stats.wait_timeouts, stats.refused), (1, 0, 1, 1));
        drop(held);
        drop(gate.enter().await.unwrap());
        assert_eq!(gate.stats(1).idle, 1);
    }
}
