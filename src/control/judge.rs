//! Whether errors jumped after a change: the part of failed requests since then against that of the time before.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Nanos;
use crate::config::admin::AdminOptions;

/// How far back the time before a change is looked at.
const BEFORE: Duration = Duration::from_secs(60);
/// How sure is sure: standard errors by which the two parts must differ (a one-sided test of two proportions, p below 0.0014).
const SURE: f64 = 3.0;

/// Requests so far, and those that failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// All.
    pub requests: u64,
    /// Answered with 500 and above.
    pub failed: u64,
}

impl Totals {
    fn since(self, before: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(before.requests),
            failed: self.failed.saturating_sub(before.failed),
        }
    }

    fn part(self) -> f64 {
        if self.requests == 0 { 0.0 } else { self.failed as f64 / self.requests as f64 }
    }
}

/// What is to be done about a change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// Look again.
    Wait,
    /// Its time is over, and nothing was wrong.
    Good,
    /// Take it back.
    Harmful {
        /// Part of failed requests before.
        before: f64,
        /// And since.
        after: f64,
    },
}

/// Looks at totals again and again, and judges a change when there is one.
#[derive(Debug, Default)]
pub struct Judge {
    samples: VecDeque<(Nanos, Totals)>,
    change: Option<Change>,
}

#[derive(Clone, Copy, Debug)]
struct Change {
    at: Nanos,
    totals: Totals,
    before: Totals,
}

impl Judge {
    /// A change was made now.
    pub fn changed(&mut self, now: Nanos, totals: Totals) {
        let oldest = self.samples.front().map_or(totals, |(_, oldest)| *oldest);
        // Of changes in quick succession the time before the first counts, or a harmful one would be the next one's measure.
        let before = self.change.map_or_else(|| totals.since(oldest), |change| change.before);
        self.change = Some(Change { at: now, totals, before });
    }

    /// Nothing is judged any more.
    pub fn forget(&mut self) {
        self.change = None;
        self.samples.clear();
    }

    /// Takes the totals of now.
    pub fn look(&mut self, now: Nanos, totals: Totals, options: &AdminOptions) -> Verdict {
        let Some(change) = self.change else {
            let reach = BEFORE.as_nanos() as Nanos;
            while self.samples.front().is_some_and(|(at, _)| now.saturating_sub(*at) > reach) {
                self.samples.pop_front();
            }
            self.samples.push_back((now, totals));
            return Verdict::Wait;
        };
        let (before, after) = (change.before, totals.since(change.totals));
        let rise = after.part() - before.part();
        if after.requests >= options.min_requests && rise >= options.max_rise && rise / error_of(before, after) >= SURE
        {
            self.forget();
            return Verdict::Harmful { before: before.part(), after: after.part() };
        }
        if now.saturating_sub(change.at) >= options.watch_for.as_nanos() as Nanos {
            self.forget();
            return Verdict::Good;
        }
        Verdict::Wait
    }
}

/// Standard error of the difference of two proportions, pooled. Without any request before, the part before is taken as known.
fn error_of(before: Totals, after: Totals) -> f64 {
    let pooled = Totals { requests: before.requests + after.requests, failed: before.failed + after.failed }.part();
    let inverse = |n: u64| if n == 0 { 0.0 } else { 1.0 / n as f64 };
    (pooled * (1.0 - pooled) * (inverse(before.requests) + inverse(after.requests))).sqrt().max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;
    const OPTIONS: AdminOptions = AdminOptions {
        listen: None,
        watch_file: false,
        watch_for: Duration::from_secs(30),
        max_rise: 0.1,
        min_requests: 20,
    };

    fn totals(requests: u64, failed: u64) -> Totals {
        Totals { requests, failed }
    }

    /// A judge that has seen a minute with 100 requests a second, of which `failed` failed.
    fn after_a_minute(failed: u64) -> (Judge, Totals) {
        let mut judge = Judge::default();
        for second in 0..=60 {
            assert_eq!(judge.look(second * SECOND, totals(100 * second, failed * second), &OPTIONS), Verdict::Wait);
        }
        (judge, totals(6000, 60 * failed))
    }

    #[test]
    fn a_change_after_which_all_fails_is_harmful_as_soon_as_that_is_sure() {
        let (mut judge, at) = after_a_minute(1);
        judge.changed(60 * SECOND, at);
        let look = |judge: &mut Judge, n| judge.look(61 * SECOND, totals(at.requests + n, at.failed + n), &OPTIONS);
        assert_eq!(look(&mut judge, 19), Verdict::Wait);
        assert_eq!(look(&mut judge, 20), Verdict::Harmful { before: 0.01, after: 1.0 });
        assert_eq!(look(&mut judge, 25), Verdict::Wait, "it is judged once");
    }

    #[test]
    fn what_failed_before_is_not_the_changes_fault() {
        let (mut judge, at) = after_a_minute(40);
        judge.changed(60 * SECOND, at);
        for n in 1..30 {
            let now = totals(at.requests + 100 * n, at.failed + 42 * n);
            assert_eq!(judge.look((60 + n) * SECOND, now, &OPTIONS), Verdict::Wait);
        }
        assert_eq!(judge.look(90 * SECOND, totals(at.requests + 3000, at.failed + 1260), &OPTIONS), Verdict::Good);
    }

    #[test]
    fn a_few_failures_by_chance_are_none() {
        let (mut judge, at) = after_a_minute(5);
        judge.changed(60 * SECOND, at);
        // 4 of 25 is a rise above a tenth, and not sure.
        assert_eq!(judge.look(61 * SECOND, totals(at.requests + 25, at.failed + 4), &OPTIONS), Verdict::Wait);
    }

    #[test]
    fn without_traffic_before_failures_count_from_nothing() {
        let mut judge = Judge::default();
        judge.changed(SECOND, totals(0, 0));
        assert!(matches!(judge.look(2 * SECOND, totals(20, 20), &OPTIONS), Verdict::Harmful { .. }));
    }

    #[test]
    fn a_second_change_is_measured_by_the_time_before_the_first() {
        let (mut judge, at) = after_a_minute(0);
        judge.changed(60 * SECOND, at);
        judge.changed(61 * SECOND, totals(at.requests + 15, at.failed + 15));
        let now = totals(at.requests + 35, at.failed + 35);
        assert!(matches!(judge.look(62 * SECOND, now, &OPTIONS), Verdict::Harmful { before: 0.0, .. }));
    }
}
