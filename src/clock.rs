//! The only place that asks for the time.
//!
//! Everything else is handed a [`Clock`] or a plain `now`, so that tests move time by hand. Wall time is in Unix
//! milliseconds ([`UnixMillis`]); clippy's `disallowed-methods` keeps other callers of `SystemTime::now` out.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970-01-01T00:00:00Z.
pub type UnixMillis = i64;

/// One second, in [`UnixMillis`].
pub const SECOND: UnixMillis = 1_000;
/// One minute, in [`UnixMillis`].
pub const MINUTE: UnixMillis = 60 * SECOND;
/// One hour, in [`UnixMillis`].
pub const HOUR: UnixMillis = 60 * MINUTE;
/// One UTC day, in [`UnixMillis`].
pub const DAY: UnixMillis = 24 * HOUR;

/// A span in the unit of [`UnixMillis`], as long as that can say.
pub fn millis(span: Duration) -> UnixMillis {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

/// Wall time, real or moved by hand.
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<Arc<AtomicI64>>);

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self(None)
    }

    /// A clock that stands still until [`Clock::advance`] or [`Clock::set`] moves it.
    pub fn manual(at: UnixMillis) -> Self {
        Self(Some(Arc::new(AtomicI64::new(at))))
    }

    /// Now.
    #[expect(clippy::disallowed_methods, reason = "this is the place")]
    pub fn now(&self) -> UnixMillis {
        match &self.0 {
            Some(manual) => manual.load(Ordering::SeqCst),
            // A clock before 1970 is broken; 0 makes that visible without a panic.
            None => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis),
        }
    }

    /// Moves a manual clock on; does nothing to the system's.
    pub fn advance(&self, by: Duration) {
        if let Some(manual) = &self.0 {
            manual.fetch_add(millis(by), Ordering::SeqCst);
        }
    }

    /// Sets a manual clock; does nothing to the system's.
    pub fn set(&self, to: UnixMillis) {
        if let Some(manual) = &self.0 {
            manual.store(to, Ordering::SeqCst);
        }
    }
}

/// Now, as the timers of the runtime count it: for deadlines that are handed to them.
pub fn instant() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

/// A monotonic stopwatch, for durations that are measured and not compared with event times.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts now.
    #[expect(clippy::disallowed_methods, reason = "this is the place")]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// `at` as RFC 3339 in UTC with milliseconds, `2026-11-23T07:30:07.123Z`.
pub fn rfc3339(at: UnixMillis) -> String {
    match jiff::Timestamp::from_millisecond(at) {
        Ok(ts) => format!("{ts:.3}"),
        Err(_) => String::from("out of range"),
    }
}

/// Parses RFC 3339 (`2026-11-23T07:30:07+01:00`).
pub fn parse_rfc3339(text: &str) -> Option<UnixMillis> {
    text.parse::<jiff::Timestamp>().ok().map(|ts| ts.as_millisecond())
}

/// Nanoseconds on a [`Monotonic`] clock. They start at a day, so that a moment before now can always be said.
pub type Nanos = u64;

/// Time that only goes forward, for limits, time-outs and measures within this process; real, or moved by hand.
#[derive(Clone, Debug)]
pub struct Monotonic(Ticks);

#[derive(Clone, Debug)]
enum Ticks {
    Real(Instant),
    Manual(Arc<AtomicU64>),
}

/// Where a [`Monotonic`] clock starts.
const FIRST: Nanos = 86_400_000_000_000;

impl Monotonic {
    /// The system's, which starts now.
    #[expect(clippy::disallowed_methods, reason = "this is the place")]
    pub fn system() -> Self {
        Self(Ticks::Real(Instant::now()))
    }

    /// One that stands still until [`Monotonic::advance`] moves it.
    pub fn manual() -> Self {
        Self(Ticks::Manual(Arc::new(AtomicU64::new(FIRST))))
    }

    /// Now.
    pub fn now(&self) -> Nanos {
        match &self.0 {
            Ticks::Real(start) => FIRST + start.elapsed().as_nanos() as Nanos,
            Ticks::Manual(at) => at.load(Ordering::SeqCst),
        }
    }

    /// Moves a manual clock on; does nothing to the system's.
    pub fn advance(&self, by: Duration) {
        if let Ticks::Manual(at) = &self.0 {
            at.fetch_add(by.as_nanos() as Nanos, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3339_round_trips() {
        let at = 1_700_000_000_123;
        assert_eq!(rfc3339(at), "2023-11-14T22:13:20.123Z");
        assert_eq!(parse_rfc3339(&rfc3339(at)), Some(at));
        assert_eq!(parse_rfc3339("2023-11-14T23:13:20+01:00"), Some(1_700_000_000_000));
        assert_eq!(parse_rfc3339("yesterday"), None);
    }

    #[test]
    fn a_manual_clock_moves_only_by_hand() {
        let clock = Clock::manual(5);
        let same = clock.clone();
        clock.advance(Duration::from_millis(7));
        assert_eq!(same.now(), 12);
    }
}
