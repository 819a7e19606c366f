//! Passive health: a target that fails too often within a time is left alone for a time, and then tried by one request.
//!
//! The rule of nginx (`max_fails`, `fail_timeout`), with what it lacks: each ejection that follows on another is twice as
//! long, up to [`LONGEST`] times, and is forgiven after as much time without one.

use std::collections::VecDeque;

use crate::clock::Nanos;

/// The longest ejection, in times of `fail_timeout`.
const LONGEST: u64 = 8;

/// What the settings say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    /// 0 is never.
    pub max_fails: u32,
    pub fail_timeout: Nanos,
}

/// What is known of one target's failures.
#[derive(Debug, Default)]
pub(super) struct Passive {
    /// The last of them, no more than are needed.
    fails: VecDeque<Nanos>,
    /// How long the last ejection was, in times of `fail_timeout`; 0 before the first.
    times: u64,
    /// When the last ejection ended, or was to end.
    over: Nanos,
}

impl Passive {
    /// It failed. If that is once too often, it is to be left alone until the time that is returned.
    pub fn failed(&mut self, now: Nanos, rules: Rules) -> Option<Nanos> {
        if rules.max_fails == 0 {
            return None;
        }
        self.fails.push_back(now);
        while self.fails.len() > rules.max_fails as usize
            || self.fails.front().is_some_and(|at| at.saturating_add(rules.fail_timeout) <= now)
        {
            self.fails.pop_front();
        }
        (self.fails.len() == rules.max_fails as usize).then(|| self.eject(now, rules))
    }

    /// Leaves it alone from now on; until when.
    pub fn eject(&mut self, now: Nanos, rules: Rules) -> Nanos {
        self.fails.clear();
        // Half of what it has been punished with is forgiven for each `fail_timeout` that has gone well since.
        let well = now.saturating_sub(self.over) / rules.fail_timeout.max(1);
        self.times = (self.times >> well.min(63)).saturating_mul(2).clamp(1, LONGEST);
        self.over = now.saturating_add(rules.fail_timeout.saturating_mul(self.times));
        self.over
    }

    /// It is back.
    pub fn restored(&mut self, now: Nanos) {
        self.fails.clear();
        self.over = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { max_fails: 3, fail_timeout: 100 };

    #[test]
    fn it_takes_so_many_failures_within_the_time() {
        let mut passive = Passive::default();
        for at in [1000, 1050, 1100, 1150, 1200] {
            assert_eq!(passive.failed(at, RULES), None, "two at most are within 100");
        }
        assert_eq!(passive.failed(1201, RULES), Some(1301));
        assert_eq!(passive.failed(1301, RULES), None, "it begins anew");
        let never = Rules { max_fails: 0, ..RULES };
        assert!((0..1000).all(|at| passive.failed(at, never).is_none()));
        let once = Rules { max_fails: 1, ..RULES };
        assert!(Passive::default().failed(7, once).is_some());
    }

    #[test]
    fn ejections_in_a_row_grow_and_are_forgiven() {
        let mut passive = Passive::default();
        let (mut now, mut lengths) = (1000, vec![]);
        for _ in 0..6 {
            let until = passive.eject(now, RULES);
            lengths.push(until - now);
            now = until;
        }
        assert_eq!(lengths, [100, 200, 400, 800, 800, 800]);
        passive.restored(now);
        assert_eq!(passive.eject(now + 99, RULES) - now, 99 + 800, "not well for long enough");
        passive.restored(now);
        assert_eq!(passive.eject(now + 200, RULES) - now, 200 + 400);
        passive.restored(now);
        assert_eq!(passive.eject(now + 100_000, RULES) - now, 100_000 + 100);
    }
}
