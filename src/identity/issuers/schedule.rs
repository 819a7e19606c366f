//! When an issuer's keys are read: ahead of need, more often while that fails, and for an unknown key at most every ten
//! seconds.

use std::time::Duration;

use crate::clock::{UnixMillis, millis};

/// Between two readings for keys that are not there.
pub(super) const UNKNOWN: Duration = Duration::from_secs(10);
/// Between two tries while reading fails, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What is known of the readings of one issuer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    refresh: Duration,
    stale: Duration,
    /// When keys were read last.
    read_at: Option<UnixMillis>,
    /// When they were tried to be read for an unknown key, or for want of any.
    asked_at: Option<UnixMillis>,
    /// Failures since the last success.
    failures: u32,
    next: UnixMillis,
}

impl Schedule {
    pub fn new(refresh: Duration, stale: Duration) -> Self {
        Self { refresh, stale, read_at: None, asked_at: None, failures: 0, next: UnixMillis::MIN }
    }

    /// Whether it is time to read them, with nobody waiting.
    pub fn due(&self, now: UnixMillis) -> bool {
        now >= self.next
    }

    /// Whether the keys that were read last are still believed.
    pub fn usable(&self, now: UnixMillis) -> bool {
        now < self.usable_until()
    }

    /// Until when they are.
    pub fn usable_until(&self) -> UnixMillis {
        self.read_at.map_or(UnixMillis::MIN, |at| at.saturating_add(millis(self.stale)))
    }

    /// Whether the keys are what the issuer has, as far as can be known.
    pub fn fresh(&self) -> bool {
        self.read_at.is_some() && self.failures == 0
    }

    /// What is the matter with the keys, if it is worth telling: one reading that fails is not.
    pub fn fault(&self, now: UnixMillis) -> Option<&'static str> {
        let Some(read_at) = self.read_at.filter(|_| self.failures > 0) else {
            return (self.failures > 0).then_some("could never be read; its tokens are answered 503");
        };
        if !self.usable(now) {
            return Some("could not be read for max_stale, and are not used any more");
        }
        let old = now.saturating_sub(read_at) >= millis(self.refresh).saturating_mul(2);
        old.then_some("cannot be read; those that are known are used")
    }

    /// Whether they may be read for a key that is not there; then that counts.
    pub fn ask(&mut self, now: UnixMillis) -> bool {
        let may = self.asked_at.is_none_or(|at| now.saturating_sub(at) >= millis(UNKNOWN) || now < at);
        if may {
            self.asked_at = Some(now);
        }
        may
    }

    /// How long it takes until they may be read for a key that is not there, or are read anyway: in whole seconds, one at
    /// least.
    pub fn wait(&self, now: UnixMillis) -> Duration {
        let asked = self.asked_at.map_or(now, |at| at.saturating_add(millis(UNKNOWN)));
        let wait = u64::try_from(asked.min(self.next).saturating_sub(now)).unwrap_or(0);
        Duration::from_secs(wait.div_ceil(1000).clamp(1, UNKNOWN.as_secs()))
    }

    /// They were read.
    pub fn succeeded(&mut self, now: UnixMillis) {
        self.failures = 0;
        self.read_at = Some(now);
        self.next = now.saturating_add(millis(self.refresh));
    }

    /// They could not be.
    pub fn failed(&mut self, now: UnixMillis) {
        let wait = (RETRY.0 * 2_u32.saturating_pow(self.failures.min(10))).min(RETRY.1).min(self.refresh);
        self.failures = self.failures.saturating_add(1);
        self.next = now.saturating_add(millis(wait));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{HOUR, MINUTE, SECOND};

    #[test]
    fn keys_are_read_ahead_and_kept_while_that_fails() {
        let mut schedule = Schedule::new(Duration::from_secs(300), Duration::from_secs(86_400));
        assert!(schedule.due(0) && !schedule.usable(0) && !schedule.fresh() && schedule.fault(0).is_none());
        let mut never = schedule;
        never.failed(0);
        assert!(never.fault(0).unwrap().contains("never"));
        schedule.succeeded(0);
        assert!(!schedule.due(299_999) && schedule.due(300_000) && schedule.fresh());
        schedule.failed(300_000);
        assert_eq!((schedule.fault(599_999), schedule.fault(600_000).is_some()), (None, true));
        schedule.succeeded(0);
        assert_eq!(schedule.fault(24 * HOUR), None, "it is not known to fail");
        let (mut now, mut tries) = (5 * MINUTE, 0);
        while now < HOUR {
            if schedule.due(now) {
                tries += 1;
                schedule.failed(now);
            }
            assert!(schedule.usable(now), "an hour without its issuer changes nothing");
            now += SECOND;
        }
        assert!((100..=130).contains(&tries), "{tries} tries in 55 minutes");
        assert!(!schedule.fresh() && !schedule.usable(24 * HOUR));
        assert!(
            schedule.fault(HOUR).unwrap().contains("are used")
                && schedule.fault(24 * HOUR).unwrap().contains("max_stale")
        );
        schedule.succeeded(now);
        assert!(schedule.fresh() && schedule.usable(now + 23 * HOUR));
    }

    #[test]
    fn a_flood_of_unknown_keys_reads_once_in_ten_seconds() {
        let mut schedule = Schedule::new(Duration::from_secs(300), Duration::from_secs(86_400));
        let reads = (0..60_000).filter(|now| schedule.ask(*now)).count();
        assert_eq!(reads, 6);
        schedule.succeeded(59_000);
        for (now, seconds) in [(59_999, 1), (50_000, 10), (50_001, 10), (58_001, 2), (70_000, 1)] {
            assert_eq!(schedule.wait(now), Duration::from_secs(seconds), "{now}");
        }
        schedule.failed(59_000);
        assert_eq!(schedule.wait(59_000), Duration::from_secs(1), "it is read earlier than it may be asked for");
    }
}
