//! What this instance has done with a release, and what became of it where instances share it.
//!
//! What they share is one state, which is replaced only by who has seen it: whoever comes too late is told what is there
//! instead, and makes its own changes anew on top of that, as far as they still make sense. Each change is made once, as it
//! is known again by its id; an abort is made whatever came before it, and undone only by an order of somebody who knew it.
//! A step is made only where the weight is still less, so that a weight falls by orders and aborts alone.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::options::Weight;
use super::state::{Change, KEPT, Mark, State};
use super::{Phase, Reason};
use crate::clock::UnixMillis;

/// A release as this instance knows it.
#[derive(Clone, Debug)]
pub(super) struct Ledger {
    /// As it is here.
    state: State,
    /// What was shared of that, as far as is known.
    base: Mark,
    /// Changes that came on top of it here, oldest first.
    untold: VecDeque<Change>,
    /// The token of what is shared, as of the last answer.
    seen: Option<String>,
    /// This process.
    seed: u64,
    /// Ids that it has given.
    made: u64,
}

/// A ledger as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// Which release it is of.
    pub release: String,
    pub state: State,
    base: Mark,
    untold: VecDeque<Change>,
}

/// A question to what is shared.
#[derive(Clone, Debug)]
pub(super) struct Message {
    /// What is thought to be there; nothing, if nothing.
    pub known: Option<String>,
    /// What is to be put in its place.
    pub put: Option<State>,
}

/// What is answered.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// What was thought to be there was, and nothing was to be put.
    Same,
    /// It was put down.
    Put,
    /// This is there instead; or nothing is.
    Other(Option<State>),
}

/// How a change is made.
pub(super) struct Turn {
    pub at: UnixMillis,
    pub phase: Phase,
    pub weight: Weight,
    pub reason: Reason,
    pub measured: Option<String>,
}

impl Kept {
    /// What cannot be of one that came from outside.
    pub fn fault(&self) -> Option<&'static str> {
        let leads = self.state.follows(&self.base) && self.untold.iter().all(|change| self.state.has(change));
        self.state.fault().or_else(|| (!leads).then_some("what was shared of it does not lead to it"))
    }
}

impl Ledger {
    /// Of a release that begins with a weight. The seed is to be another one in each process.
    pub fn new(weight: Weight, now: UnixMillis, seed: u64) -> Self {
        let state = State::new(id(seed, 0), weight, now);
        Self { base: state.mark(), state, untold: VecDeque::new(), seen: None, seed, made: 1 }
    }

    /// As it was kept.
    pub fn restore(kept: Kept, seed: u64) -> Self {
        let Kept { state, base, untold, .. } = kept;
        Self { state, base, untold, seen: None, seed, made: 0 }
    }

    /// To be kept, as one of this release.
    pub fn kept(&self, release: &str) -> Kept {
        let (state, base, untold) = (self.state.clone(), self.base, self.untold.clone());
        Kept { release: release.to_owned(), state, base, untold }
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// Whether a change was made by this process.
    pub fn made(&self, change: &Change) -> bool {
        change.by == self.seed
    }

    /// Whether what is shared is what is here, as far as is known.
    pub fn is_told(&self) -> bool {
        self.seen.as_ref().is_some_and(|seen| *seen == self.state.token())
    }

    /// Makes a change.
    pub fn turn(&mut self, turn: Turn) {
        let Turn { at, phase, weight, reason, measured } = turn;
        let id = id(self.seed, self.made);
        self.made += 1;
        let change = Change { id, by: self.seed, at, from: self.state.weight, to: weight, phase, reason, measured };
        self.state.turn(change.clone());
        // More than are remembered cannot be known again anywhere; those that came later say what counts.
        if self.untold.len() == KEPT {
            self.untold.pop_front();
        }
        self.untold.push_back(change);
    }

    /// What there is to ask.
    pub fn message(&self) -> Message {
        Message { known: self.seen.clone(), put: (!self.is_told()).then(|| self.state.clone()) }
    }

    /// Takes over what was answered.
    pub fn answered(&mut self, message: Message, answer: Answer) {
        match answer {
            Answer::Same => {}
            Answer::Put => {
                let Some(put) = message.put else { return };
                self.seen = Some(put.token());
                self.base = put.mark();
                self.untold.retain(|change| !put.has(change));
            }
            Answer::Other(None) => self.seen = None,
            Answer::Other(Some(shared)) => {
                self.seen = Some(shared.token());
                if shared.follows(&self.base) {
                    self.rebase(shared);
                } else if !self.state.follows(&shared.mark()) && !self.state.outweighs(&shared) {
                    // Else it has lost what it had, which it is told again.
                    self.base = shared.mark();
                    self.state = shared;
                    self.untold.clear();
                }
            }
        }
    }

    /// Makes the changes that it does not know on top of what is shared.
    fn rebase(&mut self, shared: State) {
        let (told, untold): (Vec<_>, Vec<_>) = self.untold.drain(..).partition(|change| shared.has(change));
        let count = |of: fn(&Change) -> bool| told.iter().filter(|change| of(change)).count() as u64;
        let mut unseen = Unseen {
            orders: shared.orders > self.base.orders + count(Change::is_order),
            aborts: shared.aborts > self.base.aborts + count(Change::is_abort),
        };
        // So much has come since that it may have been told: an order is too old to count then, and of a step or a hold it makes
        // no difference.
        let too_old = |change: &Change| match change.phase {
            Phase::Aborted => shared.forgotten_aborts() > self.base.aborts,
            _ => change.is_order() && shared.forgotten() > self.base.transitions,
        };
        let untold: Vec<_> = untold.into_iter().filter(|change| !too_old(change)).collect();
        self.base = shared.mark();
        self.state = shared;
        for change in untold {
            let is_order = change.is_order();
            let again = again(&self.state, change, unseen);
            // An order counts as the later one, or was given there too. What came of it then comes after all that is there.
            if is_order && (again.is_some() || self.state.phase == Phase::Running) {
                unseen.orders = false;
            }
            if let Some(change) = again {
                self.state.turn(change.clone());
                self.untold.push_back(change);
            }
        }
    }
}

/// What others did that was not known here.
#[derive(Clone, Copy)]
struct Unseen {
    orders: bool,
    aborts: bool,
}

/// A change as it is made on another state than it was meant for, if it is.
fn again(state: &State, change: Change, unseen: Unseen) -> Option<Change> {
    let running = state.phase == Phase::Running;
    match (change.phase, change.reason) {
        (Phase::Aborted, _) => (state.phase != Phase::Aborted).then_some(change),
        // Who gave it may have ordered otherwise, had they known.
        (_, Reason::Ordered) if state.phase == Phase::Aborted && unseen.aborts => None,
        // A step, which is also one from there.
        (Phase::Running, Reason::Ordered)
            if (running || state.phase == Phase::Held) && change.to > change.from.max(state.weight) =>
        {
            Some(change)
        }
        // That leads nowhere where it has all, and must not take it back to where it led.
        (Phase::Running, Reason::Ordered)
            if state.phase == Phase::Promoted && Weight::NONE < change.from && change.from < change.to =>
        {
            None
        }
        // To go on: from where it is now.
        (Phase::Running, Reason::Ordered) if running => None,
        (Phase::Running, Reason::Ordered) if state.phase == Phase::Held => Some(Change { to: state.weight, ..change }),
        (_, Reason::Ordered) => Some(change),
        // What was measured was measured of something else.
        _ if unseen.orders => None,
        (_, Reason::Step) => {
            let goes_on = running || state.phase == Phase::Held;
            let phase = if running { change.phase } else { state.phase };
            (goes_on && change.to > state.weight).then_some(Change { phase, ..change })
        }
        _ => running.then_some(Change { to: state.weight, ..change }),
    }
}

/// 53 bits, which every reader of JSON can hold.
fn id(seed: u64, number: u64) -> u64 {
    xxh3_64_with_seed(&number.to_le_bytes(), seed) >> 11
}
