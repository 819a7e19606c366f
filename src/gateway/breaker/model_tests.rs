//! Gate and judge beside a plain model of what a breaker is, on random traces.

use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;

use super::gate::{Gate, Ticket};
use super::judge::{Judge, Outcome};
use super::window::PARTS;
use super::{Forced, State};
use crate::clock::Nanos;
use crate::gateway::options::{BreakerOptions, BreakerWindow};

const MS: Nanos = 1_000_000;

#[derive(Clone, Debug)]
enum Step {
    Admit,
    /// The call of this place among those under way, failed, slow.
    Finish(usize, bool, bool),
    Cancel(usize),
    Weigh,
    Wait(u64),
    Force(Option<Forced>),
}

/// What the words say, with lists and without atomics: calls carry the era in which they passed, and every change of state
/// begins another.
struct Model {
    options: BreakerOptions,
    state: State,
    era: u64,
    /// Half-open: calls that passed and were not cancelled.
    out: u32,
    until: Nanos,
    /// Of this era: when, failed, slow.
    seen: Vec<(Nanos, bool, bool)>,
}

impl Model {
    fn becomes(&mut self, state: State, now: Nanos) {
        self.state = state;
        self.era += 1;
        self.out = 0;
        self.seen.clear();
        self.until = match state {
            State::Open => now + self.options.open_for.as_nanos() as u64,
            State::HalfOpen => {
                let slow = 2 * self.options.slow_call.as_nanos() as u64;
                now + (self.options.open_for.as_nanos() as u64).max(slow).max(10_000 * MS)
            }
            _ => 0,
        };
    }

    fn admit(&mut self, now: Nanos) -> Option<u64> {
        let over = now >= self.until;
        if over && (self.state == State::Open || self.state == State::HalfOpen && self.out == self.options.probes) {
            self.becomes(State::HalfOpen, now);
        }
        match self.state {
            State::Closed | State::ForcedClosed => Some(self.era),
            State::HalfOpen if self.out < self.options.probes => {
                self.out += 1;
                Some(self.era)
            }
            _ => None,
        }
    }

    fn cancel(&mut self, era: u64) {
        if era == self.era && self.state == State::HalfOpen {
            self.out -= 1;
        }
    }

    fn weigh(&mut self, era: u64, failed: bool, slow: bool, now: Nanos) {
        if era != self.era || !matches!(self.state, State::Closed | State::HalfOpen) {
            return;
        }
        self.seen.push((now, failed, slow));
        let slow_rate = self.options.slow_rate;
        let is = |n: usize, of: usize, rate: f64| n > 0 && n as f64 / of as f64 >= rate - 1e-12;
        if self.state == State::HalfOpen {
            let slow = self.seen.iter().filter(|seen| seen.2).count();
            if failed || slow_rate < 1.0 && is(slow, self.options.probes as usize, slow_rate) {
                self.becomes(State::Open, now);
            } else if self.seen.len() == self.options.probes as usize {
                self.becomes(State::Closed, now);
            }
            return;
        }
        let looked_at: Vec<_> = match self.options.window {
            BreakerWindow::Count(n) => self.seen.iter().rev().take(n as usize).collect(),
            BreakerWindow::Time(length) => {
                let part = length.as_nanos() as u64 / PARTS;
                self.seen.iter().filter(|seen| seen.0 / part + PARTS > now / part).collect()
            }
        };
        let calls = looked_at.len();
        let enough = match self.options.window {
            BreakerWindow::Count(n) => self.options.min_calls.min(n),
            BreakerWindow::Time(_) => self.options.min_calls,
        };
        let bad = looked_at.iter().filter(|seen| seen.1).count();
        let slow = looked_at.iter().filter(|seen| seen.2).count();
        if calls >= enough as usize
            && (is(bad, calls, self.options.failure_rate) || slow_rate < 1.0 && is(slow, calls, slow_rate))
        {
            self.becomes(State::Open, now);
        }
    }
}

fn options() -> impl Strategy<Value = BreakerOptions> {
    let window = prop_oneof![
        (1u32..12).prop_map(BreakerWindow::Count),
        (100u64..2000).prop_map(|ms| BreakerWindow::Time(Duration::from_millis(ms)))
    ];
    let rate = prop_oneof![Just(0.25), Just(0.5), Just(0.8), Just(1.0)];
    (window, 1u32..8, rate.clone(), rate, 50u64..20_000, 1u32..5).prop_map(
        |(window, min_calls, failure_rate, slow_rate, open_for, probes)| BreakerOptions {
            window,
            min_calls,
            failure_rate,
            slow_call: Duration::from_millis(100),
            slow_rate,
            open_for: Duration::from_millis(open_for),
            probes,
        },
    )
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let forced = prop_oneof![Just(None), Just(Some(Forced::Open)), Just(Some(Forced::Closed))];
    let step = prop_oneof![
        12 => Just(Step::Admit),
        9 => (0usize..8, prop::bool::weighted(0.4), prop::bool::weighted(0.2))
            .prop_map(|(at, failed, slow)| Step::Finish(at, failed, slow)),
        2 => (0usize..8).prop_map(Step::Cancel),
        8 => Just(Step::Weigh),
        4 => prop_oneof![1u64..200, 1000u64..21_000].prop_map(Step::Wait),
        1 => forced.prop_map(Step::Force),
    ];
    prop::collection::vec(step, 1..250)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn it_does_what_the_model_does(options in options(), steps in steps()) {
        let mut now: Nanos = 86_400_000 * MS;
        let gate = Gate::new(Some(&options), now);
        let mut judge = Judge::new(Some(&options));
        let mut model =
            Model { options: options.clone(), state: State::Closed, era: 0, out: 0, until: 0, seen: vec![] };
        let mut under_way: Vec<(Ticket, u64)> = vec![];
        let mut waiting: VecDeque<(Outcome, bool, u64, bool, bool)> = VecDeque::new();
        for step in steps {
            match step {
                Step::Admit => {
                    let (real, meant) = (gate.admit(now), model.admit(now));
                    prop_assert_eq!(real.is_ok(), meant.is_some());
                    if let (Err(again), State::Open) = (real, model.state) {
                        prop_assert_eq!(again.as_nanos() as u64, model.until - now);
                    }
                    if let (Ok(ticket), Some(era)) = (real, meant) {
                        under_way.push((ticket, era));
                    }
                }
                Step::Finish(at, failed, slow) if at < under_way.len() => {
                    let (ticket, era) = under_way.remove(at);
                    waiting.push_back((Outcome::new(ticket, failed, slow), ticket.weighed, era, failed, slow));
                }
                Step::Cancel(at) if at < under_way.len() => {
                    let (ticket, era) = under_way.remove(at);
                    gate.give_back(ticket);
                    model.cancel(era);
                }
                Step::Finish(..) | Step::Cancel(_) => {}
                Step::Weigh => {
                    for (outcome, weighed, era, failed, slow) in waiting.drain(..) {
                        if weighed {
                            judge.weigh(&gate, outcome, now);
                        }
                        model.weigh(era, failed, slow, now);
                    }
                }
                Step::Wait(ms) => now += ms * MS,
                Step::Force(forced) => {
                    gate.force(forced, now);
                    match forced {
                        Some(Forced::Open) => model.becomes(State::ForcedOpen, now),
                        Some(Forced::Closed) => model.becomes(State::ForcedClosed, now),
                        None if matches!(model.state, State::ForcedOpen | State::ForcedClosed) => {
                            model.becomes(State::Closed, now);
                        }
                        None => {}
                    }
                }
            }
            let (_, state) = gate.state();
            prop_assert_eq!(state, model.state);
        }
        prop_assert_eq!(gate.past().0, model.era);
    }
}
