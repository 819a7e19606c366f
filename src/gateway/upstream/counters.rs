//! What is counted, where it happens.

use std::sync::atomic::{AtomicU64, Ordering};

/// Of an upstream.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub requests: AtomicU64,
    pub failures: AtomicU64,
    pub refused_open: AtomicU64,
    pub retries_granted: AtomicU64,
    pub retries_denied: AtomicU64,
    pub panic_picks: AtomicU64,
    pub no_target: AtomicU64,
}

/// Adds one.
pub(super) fn bump(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What it says.
pub(super) fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
