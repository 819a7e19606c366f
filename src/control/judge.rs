//! Whether errors jumped after a change: the part of failed requests since then against that of the time before, of all routes
//! together and of each.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::clock::Nanos;
use crate::config::admin::AdminOptions;

/// How far back the time before a change is looked at.
const BEFORE: Duration = Duration::from_secs(60);
/// How often it is noted how far the totals are.
const SAMPLE: Duration = Duration::from_secs(5);
/// How sure is sure: standard errors by which the two parts must differ (a one-sided test of two proportions, p below 0.0014).
const SURE: f64 = 3.0;
/// The same for a single route (p below 3e-7): there may be many, and each is looked at again and again.
const SURE_OF_ONE: f64 = 5.0;
/// Part of failed requests that is harm where nothing is known of the time before: more fail than not.
const HARM_OF_NEW: f64 = 0.5;

/// Requests so far, and those that failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// All.
    pub requests: u64,
    /// Answered with 500 and above, or not at all before the client left.
    pub failed: u64,
}

/// Those of each route, by its name. They only grow, also while a name is away.
pub type Totals = HashMap<String, Tally>;

impl Tally {
    fn since(self, before: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(before.requests),
            failed: self.failed.saturating_sub(before.failed),
        }
    }

    fn part(self) -> f64 {
        if self.requests == 0 { 0.0 } else { self.failed as f64 / self.requests as f64 }
    }

    fn sum(all: impl Iterator<Item = Self>) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            requests: sum.requests + one.requests,
            failed: sum.failed + one.failed,
        })
    }
}

/// What came of each route since; of one that was not there, nothing is known.
fn since(now: &Totals, then: &Totals) -> Totals {
    let known = now.iter().filter_map(|(name, now)| Some((name.clone(), now.since(*then.get(name)?))));
    known.collect()
}

/// What is to be done about a change.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Look again.
    Wait,
    /// Its time is over, and nothing was wrong.
    Good,
    /// Take it back.
    Harmful {
        /// The route that it is about; all together if there is none.
        route: Option<String>,
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

#[derive(Clone, Debug)]
struct Change {
    at: Nanos,
    /// When it was made.
    totals: Totals,
    /// In the time before it.
    before: Totals,
}

impl Judge {
    /// A change was made now; totals of the routes that were, and of those that are.
    pub fn changed(&mut self, now: Nanos, were: &Totals, are: Totals) {
        // Of changes in quick succession the time before the first counts, or a harmful one would be the next one's measure.
        let before = match self.change.take() {
            Some(change) => change.before,
            None => self.samples.front().map(|(_, oldest)| since(were, oldest)).unwrap_or_default(),
        };
        self.change = Some(Change { at: now, totals: are, before });
    }

    /// A change was taken back: nothing is judged any more, and what it did is no measure of what comes.
    pub fn taken_back(&mut self) {
        if let Some(change) = self.change.take() {
            self.samples.retain(|(at, _)| *at <= change.at);
        }
    }

    /// Whether it has to look at the totals now.
    pub fn wants(&self, now: Nanos) -> bool {
        self.change.is_some() || self.samples.back().is_none_or(|(at, _)| now.saturating_sub(*at) >= nanos(SAMPLE))
    }

    /// Takes the totals of now. It says that a change is harmful until that is [`Judge::taken_back`].
    pub fn look(&mut self, now: Nanos, totals: Totals, options: &AdminOptions) -> Verdict {
        let verdict = self.change.as_ref().map_or(Verdict::Wait, |change| change.judge(now, &totals, options));
        if verdict == Verdict::Good {
            self.change = None;
        }
        if self.samples.back().is_none_or(|(at, _)| now.saturating_sub(*at) >= nanos(SAMPLE)) {
            self.samples.push_back((now, totals));
        }
        // The oldest is what there was a minute ago.
        while self.samples.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= nanos(BEFORE)) {
            self.samples.pop_front();
        }
        verdict
    }
}

impl Change {
    fn judge(&self, now: Nanos, totals: &Totals, options: &AdminOptions) -> Verdict {
        // A route that is new has no total from when the change was made, if nobody has used it before.
        let after: Totals = totals
            .iter()
            .map(|(name, now)| (name.clone(), now.since(self.totals.get(name).copied().unwrap_or_default())))
            .collect();
        // Of routes that are gone nothing fails any more, and what did not fail there says nothing of those that stay.
        let stay = self.before.iter().filter(|(name, _)| after.contains_key(*name));
        let whole = Tally::sum(stay.map(|(_, before)| *before));
        let whole_after = Tally::sum(after.values().copied());
        if is_harm(whole, whole_after, SURE, options) {
            return Verdict::Harmful { route: None, before: whole.part(), after: whole_after.part() };
        }
        for (name, after) in &after {
            let Some(before) = self.before.get(name).filter(|before| before.requests >= options.min_requests) else {
                continue;
            };
            if is_harm(*before, *after, SURE_OF_ONE, options) {
                return Verdict::Harmful { route: Some(name.clone()), before: before.part(), after: after.part() };
            }
        }
        if now.saturating_sub(self.at) >= nanos(options.watch_for) { Verdict::Good } else { Verdict::Wait }
    }
}

fn is_harm(before: Tally, after: Tally, sure: f64, options: &AdminOptions) -> bool {
    let rise = after.part() - before.part();
    let least =
        if before.requests < options.min_requests { options.max_rise.max(HARM_OF_NEW) } else { options.max_rise };
    after.requests >= options.min_requests && rise >= least && rise / error_of(before, after) >= sure
}

fn nanos(span: Duration) -> Nanos {
    Nanos::try_from(span.as_nanos()).unwrap_or(Nanos::MAX)
}

/// Standard error of the difference of two proportions, pooled. Without any request before, the part before is taken as known.
fn error_of(before: Tally, after: Tally) -> f64 {
    let pooled = Tally::sum([before, after].into_iter()).part();
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

    fn of(routes: &[(&str, u64, u64)]) -> Totals {
        routes
            .iter()
            .map(|(name, requests, failed)| ((*name).to_owned(), Tally { requests: *requests, failed: *failed }))
            .collect()
    }

    fn totals(requests: u64, failed: u64) -> Totals {
        of(&[("a", requests, failed)])
    }

    /// A judge that has seen a minute with 100 requests a second, of which `failed` failed.
    fn after_a_minute(failed: u64) -> Judge {
        let mut judge = Judge::default();
        for second in 0..=60 {
            assert_eq!(judge.look(second * SECOND, totals(100 * second, failed * second), &OPTIONS), Verdict::Wait);
        }
        judge
    }

    fn harmful(before: f64, after: f64) -> Verdict {
        Verdict::Harmful { route: None, before, after }
    }

    #[test]
    fn a_change_after_which_all_fails_is_harmful_as_soon_as_that_is_sure_and_until_it_is_taken_back() {
        let mut judge = after_a_minute(1);
        judge.changed(60 * SECOND, &totals(6000, 60), totals(6000, 60));
        let look = |judge: &mut Judge, n: u64| judge.look(61 * SECOND, totals(6000 + n, 60 + n), &OPTIONS);
        assert_eq!(look(&mut judge, 19), Verdict::Wait);
        assert_eq!(look(&mut judge, 20), harmful(0.01, 1.0));
        assert_eq!(look(&mut judge, 25), harmful(0.01, 1.0), "nobody has taken it back");
        judge.taken_back();
        assert_eq!(look(&mut judge, 30), Verdict::Wait);
        // What it did is not what the next is measured by.
        judge.changed(62 * SECOND, &totals(6000, 60), totals(6030, 90));
        assert_eq!(judge.look(63 * SECOND, totals(6050, 110), &OPTIONS), harmful(0.01, 1.0));
    }

    #[test]
    fn what_failed_before_is_not_the_changes_fault() {
        let mut judge = after_a_minute(40);
        judge.changed(60 * SECOND, &totals(6000, 2400), totals(6000, 2400));
        for n in 1..30 {
            assert_eq!(judge.look((60 + n) * SECOND, totals(6000 + 100 * n, 2400 + 42 * n), &OPTIONS), Verdict::Wait);
        }
        assert_eq!(judge.look(90 * SECOND, totals(9000, 3660), &OPTIONS), Verdict::Good);
        assert_eq!(judge.look(91 * SECOND, totals(9100, 3760), &OPTIONS), Verdict::Wait, "it is judged once");
    }

    #[test]
    fn a_few_failures_by_chance_are_none() {
        let mut judge = after_a_minute(5);
        judge.changed(60 * SECOND, &totals(6000, 300), totals(6000, 300));
        // 4 of 25 is a rise above a tenth, and not sure.
        assert_eq!(judge.look(61 * SECOND, totals(6025, 304), &OPTIONS), Verdict::Wait);
    }

    #[test]
    fn of_new_routes_most_must_fail() {
        for (failed, verdict) in [(20, harmful(0.0, 1.0)), (8, Verdict::Wait)] {
            let mut judge = Judge::default();
            judge.changed(SECOND, &Totals::new(), Totals::new());
            assert_eq!(judge.look(2 * SECOND, totals(20, failed), &OPTIONS), verdict);
        }
    }

    #[test]
    fn a_second_change_is_measured_by_the_time_before_the_first() {
        let mut judge = after_a_minute(0);
        judge.changed(60 * SECOND, &totals(6000, 0), totals(6000, 0));
        judge.changed(61 * SECOND, &totals(6015, 15), totals(6015, 15));
        assert_eq!(judge.look(62 * SECOND, totals(6035, 35), &OPTIONS), harmful(0.0, 1.0));
    }

    #[test]
    fn a_small_route_that_fails_wholly_is_harm_among_many_that_do_not() {
        let at = |second: u64, small_failed: u64| {
            of(&[("large", 1000 * second, second), ("small", 10 * second, small_failed)])
        };
        let mut judge = Judge::default();
        for second in 0..=60 {
            judge.look(second * SECOND, at(second, 0), &OPTIONS);
        }
        judge.changed(60 * SECOND, &at(60, 0), at(60, 0));
        assert_eq!(judge.look(61 * SECOND, at(61, 10), &OPTIONS), Verdict::Wait);
        let verdict = judge.look(62 * SECOND, at(62, 20), &OPTIONS);
        assert_eq!(verdict, Verdict::Harmful { route: Some(String::from("small")), before: 0.0, after: 1.0 });
    }

    #[test]
    fn routes_that_come_and_go_bring_no_past_along() {
        let mut judge = Judge::default();
        for second in 0..=60 {
            judge.look(
                second * SECOND,
                of(&[("busy", 1000 * second, 0), ("odd", 100 * second, 20 * second)]),
                &OPTIONS,
            );
        }
        // The busy one goes, so that a fifth of what is left fails, as before; and one comes back that once failed a lot.
        let were = of(&[("busy", 60_000, 0), ("odd", 6000, 1200)]);
        judge.changed(60 * SECOND, &were, of(&[("odd", 6000, 1200), ("back", 9000, 9000)]));
        for n in 1..=29 {
            let now = of(&[("odd", 6000 + 100 * n, 1200 + 20 * n), ("back", 9000, 9000)]);
            assert_eq!(judge.look((60 + n) * SECOND, now, &OPTIONS), Verdict::Wait);
        }
    }
}
