//! What finished calls are weighed by. Pure: it takes outcomes and the time, and turns the gate.

use super::gate::{Gate, Ticket};
use super::window::{Sum, Window};
use super::{Reason, State};
use crate::clock::Nanos;
use crate::gateway::options::{BreakerOptions, BreakerWindow};

/// How a call ended: its generation above two bits, failed and slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome(u64);

impl Outcome {
    pub fn new(ticket: Ticket, failed: bool, slow: bool) -> Self {
        Self((ticket.generation << 2) | (u64::from(failed) << 1) | u64::from(slow))
    }

    fn generation(self) -> u64 {
        self.0 >> 2
    }

    fn failed(self) -> bool {
        self.0 & 2 != 0
    }

    fn slow(self) -> bool {
        self.0 & 1 != 0
    }
}

#[derive(Debug)]
struct Rates {
    min_calls: u32,
    failure_rate: f64,
    slow_rate: f64,
    probes: u32,
}

/// Weighs what belongs to the gate's present generation.
#[derive(Debug)]
pub(super) struct Judge {
    /// `None` without a breaker.
    rates: Option<Rates>,
    window: Window,
    generation: u64,
    /// Of the probes of this generation.
    probes: Sum,
    late: u64,
}

/// Whether a part of the calls reaches a rate. No calls reach none.
fn reaches(part: u32, calls: u32, rate: f64) -> bool {
    part > 0 && f64::from(part) >= rate * f64::from(calls)
}

impl Judge {
    pub fn new(options: Option<&BreakerOptions>) -> Self {
        let kind = options.map_or(BreakerWindow::Count(1), |options| options.window);
        let mut judge = Self { rates: None, window: Window::new(kind), generation: 0, probes: Sum::default(), late: 0 };
        judge.apply(options);
        judge
    }

    /// Other settings; the window is kept as far as it can be.
    pub fn apply(&mut self, options: Option<&BreakerOptions>) {
        self.rates = options.map(|options| Rates {
            // More than the window holds would never be there.
            min_calls: match options.window {
                BreakerWindow::Count(most) => options.min_calls.min(most).max(1),
                BreakerWindow::Time(_) => options.min_calls.max(1),
            },
            failure_rate: options.failure_rate,
            slow_rate: options.slow_rate,
            probes: options.probes.max(1),
        });
        if let Some(options) = options {
            self.window.resize(options.window);
        }
    }

    /// Weighs one call.
    pub fn weigh(&mut self, gate: &Gate, outcome: Outcome, now: Nanos) {
        let state = self.follow(gate);
        let Some(rates) = &self.rates else { return };
        if outcome.generation() != self.generation {
            self.late += 1;
            return;
        }
        let slow_counts = rates.slow_rate < 1.0;
        let verdict = match state {
            State::Closed => {
                self.window.push(now, outcome.failed(), outcome.slow());
                let Sum { calls, failed, slow } = self.window.sum(now);
                if calls < rates.min_calls {
                    None
                } else if reaches(failed, calls, rates.failure_rate) {
                    Some((State::Open, Reason::FailureRate { failed, calls }))
                } else if slow_counts && reaches(slow, calls, rates.slow_rate) {
                    Some((State::Open, Reason::SlowRate { slow, calls }))
                } else {
                    None
                }
            }
            State::HalfOpen => {
                self.probes.calls += 1;
                self.probes.slow += u32::from(outcome.slow());
                if outcome.failed() {
                    Some((State::Open, Reason::ProbeFailed))
                } else if slow_counts && reaches(self.probes.slow, rates.probes, rates.slow_rate) {
                    Some((State::Open, Reason::ProbesSlow))
                } else {
                    (self.probes.calls >= rates.probes).then_some((State::Closed, Reason::ProbesGood))
                }
            }
            State::Off | State::Open | State::ForcedOpen | State::ForcedClosed => None,
        };
        if let Some((to, reason)) = verdict {
            gate.turn(self.generation, to, now, reason);
        }
    }

    /// A new generation begins with nothing.
    fn follow(&mut self, gate: &Gate) -> State {
        let (generation, state) = gate.state();
        if generation != self.generation {
            self.generation = generation;
            self.window.clear();
            self.probes = Sum::default();
        }
        state
    }

    /// What is in the window, and how many came too late.
    pub fn sum(&mut self, gate: &Gate, now: Nanos) -> (Sum, u64) {
        let state = self.follow(gate);
        (if state == State::HalfOpen { self.probes } else { self.window.sum(now) }, self.late)
    }
}
