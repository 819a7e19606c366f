//! What became of requests, a side: counted by every thread, read by the owner.

use std::sync::atomic::{AtomicU64, Ordering};

use super::evidence::Tally;
use super::latency::{Histogram, Latencies};

/// On its own cache lines, so that the sides do not slow each other down.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Side {
    good: AtomicU64,
    failed: AtomicU64,
    forced_good: AtomicU64,
    forced_failed: AtomicU64,
    pub latency: Histogram,
}

/// What was counted of one side, as of a moment or of a while.
#[derive(Clone, Debug, Default)]
pub(super) struct SideReading {
    pub tally: Tally,
    pub latency: Latencies,
}

/// What was counted of both.
#[derive(Clone, Debug, Default)]
pub(super) struct Reading {
    pub canary: SideReading,
    pub stable: SideReading,
}

impl Side {
    pub fn count(&self, forced: bool, failed: bool) {
        let count = match (forced, failed) {
            (false, false) => &self.good,
            (false, true) => &self.failed,
            (true, false) => &self.forced_good,
            (true, true) => &self.forced_failed,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Of those that chance sent here.
    pub fn tally(&self) -> Tally {
        Tally { good: self.good.load(Ordering::Relaxed), failed: self.failed.load(Ordering::Relaxed) }
    }

    /// Of all.
    pub fn all(&self) -> Tally {
        let Tally { good, failed } = self.tally();
        Tally {
            good: good + self.forced_good.load(Ordering::Relaxed),
            failed: failed + self.forced_failed.load(Ordering::Relaxed),
        }
    }

    pub fn read(&self) -> SideReading {
        SideReading { tally: self.tally(), latency: self.latency.read() }
    }
}

impl Reading {
    /// What has come since an earlier moment.
    pub fn since(&self, before: &Self) -> Self {
        let side = |now: &SideReading, then: &SideReading| SideReading {
            tally: now.tally.since(then.tally),
            latency: now.latency.since(&then.latency),
        };
        Self { canary: side(&self.canary, &before.canary), stable: side(&self.stable, &before.stable) }
    }
}
