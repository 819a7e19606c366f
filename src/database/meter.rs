//! Counts statements, and tells of the slow ones: text and time, never values.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use crate::clock::Stopwatch;

/// What the statements of a store were, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct QueryStats {
    /// Statements that were run.
    pub statements: u64,
    /// Those that were slower than the threshold.
    pub slow: u64,
    /// Time of all, in microseconds.
    pub micros: u64,
}

#[derive(Debug)]
pub(super) struct Meter {
    threshold: Duration,
    statements: AtomicU64,
    slow: AtomicU64,
    micros: AtomicU64,
}

/// A statement that runs. One that is given up counts too.
pub(super) struct Running<'a> {
    meter: &'a Meter,
    sql: &'a str,
    watch: Stopwatch,
}

impl Meter {
    pub fn new(threshold: Duration) -> Arc<Self> {
        Arc::new(Self { threshold, statements: AtomicU64::new(0), slow: AtomicU64::new(0), micros: AtomicU64::new(0) })
    }

    pub fn run<'a>(&'a self, sql: &'a str) -> Running<'a> {
        Running { meter: self, sql, watch: Stopwatch::start() }
    }

    pub fn stats(&self) -> QueryStats {
        QueryStats {
            statements: self.statements.load(Ordering::Relaxed),
            slow: self.slow.load(Ordering::Relaxed),
            micros: self.micros.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let took = self.watch.elapsed();
        self.meter.statements.fetch_add(1, Ordering::Relaxed);
        self.meter.micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if took >= self.meter.threshold {
            self.meter.slow.fetch_add(1, Ordering::Relaxed);
            log::warn!(target: "tidegate::slow", "slow query: {} ms: {}", took.as_millis(), self.sql);
        }
    }
}
