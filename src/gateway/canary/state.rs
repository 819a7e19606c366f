//! Where a release stands: what is kept over a restart and shared by instances, and which of two such states came first.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::options::Weight;
use super::{Phase, Reason};
use crate::clock::UnixMillis;

/// Changes that are remembered.
pub(super) const KEPT: usize = 16;
/// The longest text of what was measured that is taken from outside, in bytes.
const LONGEST_MEASURED: usize = 1000;

/// A change, as it is kept. By its id it is known again wherever it comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Change {
    pub id: u64,
    /// The process that made it.
    pub by: u64,
    pub at: UnixMillis,
    pub from: Weight,
    pub to: Weight,
    pub phase: Phase,
    pub reason: Reason,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<String>,
}

/// All that is kept of a release, but for what was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    /// By which a beginning is told from another one of the same release.
    pub lineage: u64,
    pub phase: Phase,
    pub weight: Weight,
    pub reason: Reason,
    pub since: UnixMillis,
    /// Changes since the beginning.
    pub transitions: u64,
    /// Of them, those that were ordered.
    pub orders: u64,
    /// Of them, those to nothing.
    pub aborts: u64,
    /// The last of them, oldest first.
    pub last: VecDeque<Change>,
    /// Ids of the last aborts, which must be known again for longer.
    pub aborted: VecDeque<u64>,
}

/// A state that another one may have come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    pub lineage: u64,
    pub transitions: u64,
    pub orders: u64,
    pub aborts: u64,
    /// The last change, or the lineage where there was none.
    pub id: u64,
}

impl Change {
    pub fn is_order(&self) -> bool {
        self.reason == Reason::Ordered
    }

    pub fn is_abort(&self) -> bool {
        self.phase == Phase::Aborted
    }
}

impl State {
    /// At the beginning.
    pub fn new(lineage: u64, weight: Weight, now: UnixMillis) -> Self {
        Self {
            lineage,
            phase: Phase::Running,
            weight,
            reason: Reason::Configured,
            since: now,
            transitions: 0,
            orders: 0,
            aborts: 0,
            last: VecDeque::new(),
            aborted: VecDeque::new(),
        }
    }

    /// Makes a change; what it is from is known only now.
    pub fn turn(&mut self, change: Change) {
        let change = Change { from: self.weight, ..change };
        (self.phase, self.weight) = (change.phase, change.to);
        (self.reason, self.since) = (change.reason, change.at);
        self.transitions += 1;
        self.orders += u64::from(change.is_order());
        self.aborts += u64::from(change.is_abort());
        if change.is_abort() {
            push(&mut self.aborted, change.id);
        }
        push(&mut self.last, change);
    }

    pub fn mark(&self) -> Mark {
        Mark {
            lineage: self.lineage,
            transitions: self.transitions,
            orders: self.orders,
            aborts: self.aborts,
            id: self.last.back().map_or(self.lineage, |change| change.id),
        }
    }

    /// What tells it from every other one.
    pub fn token(&self) -> String {
        let Mark { lineage, transitions, id, .. } = self.mark();
        format!("{lineage:x}-{transitions}-{id:x}")
    }

    /// Whether it holds a change, as far as it remembers.
    pub fn has(&self, change: &Change) -> bool {
        self.last.iter().any(|other| other.id == change.id) || self.aborted.contains(&change.id)
    }

    /// Changes that it does not remember.
    pub fn forgotten(&self) -> u64 {
        self.transitions.saturating_sub(self.last.len() as u64)
    }

    /// Of them, aborts.
    pub fn forgotten_aborts(&self) -> u64 {
        self.aborts.saturating_sub(self.aborted.len() as u64)
    }

    /// Whether it is, or came from, what was marked. What is too long ago to tell is believed.
    pub fn follows(&self, mark: &Mark) -> bool {
        if self.lineage != mark.lineage || self.transitions < mark.transitions {
            return false;
        }
        let Some(place) = mark.transitions.checked_sub(self.forgotten() + 1) else { return true };
        usize::try_from(place).ok().and_then(|place| self.last.get(place)).is_some_and(|change| change.id == mark.id)
    }

    /// Which of two counts that know nothing of each other: an abort before all else, then orders, then the greater weight, so
    /// that nobody who is in must leave.
    pub fn outweighs(&self, other: &Self) -> bool {
        let rank = |state: &Self| (state.phase == Phase::Aborted, state.orders, state.weight);
        rank(self) > rank(other)
    }

    /// What cannot be of a state that came from outside.
    pub fn fault(&self) -> Option<&'static str> {
        let of_phase = match self.phase {
            Phase::Aborted => self.weight == Weight::NONE,
            Phase::Promoted => self.weight == Weight::ALL,
            Phase::Running | Phase::Held => true,
        };
        let same = |change: &Change| (change.phase, change.to) == (self.phase, self.weight);
        let is_last = match self.last.back() {
            Some(change) => same(change),
            None => self.phase == Phase::Running,
        };
        let short = |change: &Change| change.measured.as_ref().is_none_or(|text| text.len() <= LONGEST_MEASURED);
        if !of_phase {
            Some("its weight does not go with its phase")
        } else if self.last.len() as u64 != self.transitions.min(KEPT as u64) || !is_last {
            Some("its last changes do not lead to it")
        } else if self.orders > self.transitions || self.aborts > self.transitions || self.transitions >= 1 << 53 {
            Some("its counts make no sense")
        } else if self.aborted.len() as u64 != self.aborts.min(KEPT as u64) {
            Some("its aborts are not as many as it says")
        } else if !self.last.iter().all(short) {
            Some("a text in it is too long")
        } else {
            None
        }
    }
}

fn push<T>(last: &mut VecDeque<T>, one: T) {
    if last.len() == KEPT {
        last.pop_front();
    }
    last.push_back(one);
}
