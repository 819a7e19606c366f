//! The calls a breaker looks at: the last so many, or those of the last so long.

use std::collections::VecDeque;

use super::nanos;
use crate::clock::Nanos;
use crate::gateway::options::BreakerWindow;

/// Parts of a time window; it is short by at most one of them.
pub(super) const PARTS: u64 = 64;

/// What calls came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub calls: u32,
    pub failed: u32,
    pub slow: u32,
}

impl Sum {
    fn add(&mut self, failed: bool, slow: bool) {
        self.calls = self.calls.saturating_add(1);
        self.failed = self.failed.saturating_add(u32::from(failed));
        self.slow = self.slow.saturating_add(u32::from(slow));
    }

    fn take(&mut self, other: Sum) {
        self.calls = self.calls.saturating_sub(other.calls);
        self.failed = self.failed.saturating_sub(other.failed);
        self.slow = self.slow.saturating_sub(other.slow);
    }
}

/// The last outcomes, and their sum.
#[derive(Debug)]
pub(super) struct Window {
    kind: BreakerWindow,
    /// A call each, or, in a time window, a part each, with its number.
    held: VecDeque<(u64, Sum)>,
    sum: Sum,
}

impl Window {
    pub fn new(kind: BreakerWindow) -> Self {
        Self { kind, held: VecDeque::new(), sum: Sum::default() }
    }

    pub fn clear(&mut self) {
        self.held.clear();
        self.sum = Sum::default();
    }

    /// Another size keeps what fits; another kind begins empty.
    pub fn resize(&mut self, kind: BreakerWindow) {
        match (self.kind, kind) {
            (BreakerWindow::Count(_), BreakerWindow::Count(most)) => {
                self.kind = kind;
                self.trim(most);
            }
            (before, after) if before == after => {}
            _ => *self = Self::new(kind),
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((_, gone)) = self.held.pop_front() {
            self.sum.take(gone);
        }
    }

    fn trim(&mut self, most: u32) {
        while self.held.len() > most.max(1) as usize {
            self.drop_oldest();
        }
    }

    fn expire(&mut self, part: u64) {
        while self.held.front().is_some_and(|(number, _)| number + PARTS <= part) {
            self.drop_oldest();
        }
    }

    /// Which part of time a moment is in.
    fn part(now: Nanos, length: std::time::Duration) -> u64 {
        now / (nanos(length) / PARTS).max(1)
    }

    pub fn push(&mut self, now: Nanos, failed: bool, slow: bool) {
        self.sum.add(failed, slow);
        match self.kind {
            BreakerWindow::Count(most) => {
                let mut one = Sum::default();
                one.add(failed, slow);
                self.held.push_back((0, one));
                self.trim(most);
            }
            BreakerWindow::Time(length) => {
                let part = Self::part(now, length);
                match self.held.back_mut() {
                    // A clock that other threads read a little earlier does not go back.
                    Some((number, sum)) if *number >= part => sum.add(failed, slow),
                    _ => {
                        let mut sum = Sum::default();
                        sum.add(failed, slow);
                        self.held.push_back((part, sum));
                    }
                }
                self.expire(part);
            }
        }
    }

    /// What there is at this moment.
    pub fn sum(&mut self, now: Nanos) -> Sum {
        if let BreakerWindow::Time(length) = self.kind {
            self.expire(Self::part(now, length));
        }
        self.sum
    }
}
