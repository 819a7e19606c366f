//! Releases that have left the config: what they were is remembered for a while, as the change may be taken back.
//!
//! They are kept on disk with those that are there, so that one and the same file says both what is and what was: a release is in
//! it before, between and after the writes of a change, in whatever order these are made.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::Phase;
use super::handle::WeakCanary;
use super::ledger::Kept;
use crate::clock::UnixMillis;

/// Those that are remembered.
const MOST: usize = 256;

/// A release that is not there any more.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Gone {
    pub route: String,
    /// Since when.
    pub since: UnixMillis,
    pub kept: Kept,
    /// Requests that are under way may still say something of it.
    #[serde(skip)]
    pub handle: WeakCanary,
}

impl Gone {
    fn is(&self, route: &str, release: &str) -> bool {
        self.route == route && self.kept.release == release
    }

    fn is_aborted(&self) -> bool {
        self.kept.state.phase == Phase::Aborted
    }

    /// Whether it is too long ago to count.
    fn is_over(&self, now: UnixMillis) -> bool {
        let remembered = i64::try_from(self.kept.state.phase.remembered().as_millis()).unwrap_or(i64::MAX);
        now.saturating_sub(self.since) > remembered
    }
}

/// All of them, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Former(Vec<Gone>);

impl Former {
    /// What was there before the start: those that had gone, and those that had not, which are to come again.
    pub fn new(mut gone: Vec<Gone>, was_there: impl Iterator<Item = (String, Kept)>, now: UnixMillis) -> Self {
        for one in &mut gone {
            // A clock that was ahead must not make it last.
            one.since = one.since.min(now);
        }
        let was_there = was_there.map(|(route, kept)| Gone { route, since: now, kept, handle: WeakCanary::default() });
        gone.extend(was_there);
        gone.retain(|one| !one.is_over(now));
        Self(gone)
    }

    /// Another one has gone.
    pub fn add(&mut self, gone: Gone) {
        self.0.retain(|one| !one.is(&gone.route, &gone.kept.release));
        self.0.push(gone);
    }

    /// It is there again.
    pub fn remove(&mut self, route: &str, release: &str) {
        self.0.retain(|one| !one.is(route, release));
    }

    /// Forgets what is over, and what is too much: of those that were not aborted before those that were, and of the route that
    /// has the most, so that one that changes all the time costs no other what is known of it.
    pub fn tidy(&mut self, now: UnixMillis) {
        self.refresh();
        self.0.retain(|one| !one.is_over(now));
        while self.0.len() > MOST {
            let aborted = self.0.iter().all(Gone::is_aborted);
            let mut counts: HashMap<&str, usize> = HashMap::new();
            for one in self.0.iter().filter(|one| one.is_aborted() == aborted) {
                *counts.entry(&one.route).or_default() += 1;
            }
            let most = counts.values().max();
            let is_first = |one: &Gone| one.is_aborted() == aborted && counts.get(&*one.route) == most;
            let place = self.0.iter().position(is_first);
            match place {
                Some(place) => drop(self.0.remove(place)),
                None => break,
            }
        }
    }

    /// Where a release stood, unless that is too long ago.
    pub fn find(&mut self, route: &str, release: &str, now: UnixMillis) -> Option<Kept> {
        self.refresh();
        self.0.iter().find(|one| one.is(route, release) && !one.is_over(now)).map(|one| one.kept.clone())
    }

    /// Whether a route had any.
    pub fn knows(&self, route: &str) -> bool {
        self.0.iter().any(|one| one.route == route)
    }

    /// All, as they are to be kept.
    pub fn all(&mut self) -> Vec<Gone> {
        self.refresh();
        self.0.clone()
    }

    /// What came of those that requests were still under way to.
    fn refresh(&mut self) {
        for one in &mut self.0 {
            if let Some(canary) = one.handle.upgrade() {
                one.kept = canary.kept();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::canary::ledger::{Ledger, Turn};
    use crate::gateway::canary::{Reason, Weight};

    const DAY: UnixMillis = 86_400_000;

    fn gone(route: &str, release: &str, phase: Phase, since: UnixMillis) -> Gone {
        let mut ledger = Ledger::new(Weight::percent(1.0).unwrap(), 5, 7);
        let weight = if phase == Phase::Aborted { Weight::NONE } else { Weight::percent(5.0).unwrap() };
        ledger.turn(Turn { at: 9, phase, weight, reason: Reason::Ordered, measured: None });
        let (route, kept) = (String::from(route), ledger.kept(release));
        Gone { route, since, kept, handle: WeakCanary::default() }
    }

    fn phase(former: &mut Former, route: &str, release: &str, now: UnixMillis) -> Option<Phase> {
        former.find(route, release, now).map(|kept| kept.state.phase)
    }

    #[test]
    fn an_abort_is_remembered_for_longer() {
        let mut former = Former::default();
        former.add(gone("r", "1", Phase::Aborted, 0));
        former.add(gone("r", "2", Phase::Held, 0));
        assert_eq!(phase(&mut former, "r", "2", 3_600_000), Some(Phase::Held));
        assert_eq!(phase(&mut former, "r", "2", 3_600_001), None);
        assert_eq!(phase(&mut former, "s", "1", 0), None);
        former.tidy(30 * DAY);
        assert_eq!(former.all().len(), 1);
        assert_eq!(phase(&mut former, "r", "1", 30 * DAY), Some(Phase::Aborted));
        former.tidy(30 * DAY + 1);
        assert!(former.all().is_empty() && !former.knows("r"));
    }

    #[test]
    fn a_route_that_changes_all_the_time_costs_no_other_its_abort() {
        let mut former = Former::default();
        former.add(gone("mine", "1", Phase::Aborted, 0));
        former.add(gone("mine", "2", Phase::Held, 0));
        for number in 0..3 * MOST as i64 {
            former.add(gone("flaps", &format!("held {number}"), Phase::Held, number));
            former.tidy(number);
        }
        assert_eq!(former.all().len(), MOST);
        assert_eq!(phase(&mut former, "mine", "2", 9), Some(Phase::Held));
        // The latest of it are there.
        let last = 3 * MOST as i64 - 1;
        assert!(former.find("flaps", &format!("held {last}"), last).is_some());
        for number in 0..3 * MOST as i64 {
            former.add(gone("flaps", &format!("aborted {number}"), Phase::Aborted, number));
            former.tidy(number);
            let aborts = former.all().iter().filter(|one| one.is_aborted()).count();
            assert_eq!(aborts, MOST.min(number as usize + 2), "no abort goes before all others have");
        }
        assert_eq!(phase(&mut former, "mine", "1", 9), Some(Phase::Aborted));
        assert!(former.find("flaps", &format!("aborted {last}"), last).is_some());
    }

    #[test]
    fn all_that_was_there_comes_again_however_many() {
        let there = (0..2 * MOST).map(|n| (format!("route {n}"), gone("", "1", Phase::Aborted, 0).kept));
        let ahead = gone("ahead", "1", Phase::Held, 900 * DAY);
        let mut former = Former::new(vec![ahead, gone("over", "1", Phase::Aborted, 0)], there, 40 * DAY);
        assert_eq!(former.all().len(), 2 * MOST + 1);
        assert_eq!(phase(&mut former, "ahead", "1", 40 * DAY + 3_600_001), None);
        for number in 0..2 * MOST {
            let route = format!("route {number}");
            assert_eq!(phase(&mut former, &route, "1", 40 * DAY), Some(Phase::Aborted));
            former.remove(&route, "1");
            assert_eq!(phase(&mut former, &route, "1", 40 * DAY), None);
        }
    }
}
