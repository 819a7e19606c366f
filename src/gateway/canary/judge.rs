//! The judge: by how the canary does against the stable version it goes on, stays, or is aborted.
//!
//! Failures abort it when they cannot be chance ([`Evidence`]) and are more than is allowed; latency, when the canary's 99th
//! percentile is too long even where both are measured in its favour. A step is taken when its time is over, there were
//! enough requests, and what was measured is within what is allowed; else it waits.
//!
//! What it decides stands in a [`Ledger`], which is kept and shared; what it measured does not, and begins anew with it.

use std::time::Duration;

use super::evidence::{Evidence, Tally};
use super::latency::Latencies;
use super::ledger::{Answer, Ledger, Message, Turn};
use super::options::{CanaryOptions, Weight};
use super::state::State;
use super::stats::Reading;
use super::{Phase, Reason, Waits};
use crate::clock::{Nanos, UnixMillis};

/// A release that is as good as what it replaces is aborted for its failures with at most this probability.
const FALSE_ABORTS: f64 = 0.01;
/// The part of it that is for the release as a whole; the rest is for its windows, each for itself, which notice sooner what
/// goes wrong after it has long been well.
const OF_RELEASE: f64 = 0.9;
/// A slice of the evidence ends when the canary has had so many requests.
const SLICE: u64 = 16;
/// What is looked at together is at most so many intervals, so that what is long over does not count for ever.
const LONGEST_WINDOW: u64 = 10;
/// Latencies below which the 99th percentile says nothing yet, for a step.
const FEW: u64 = 100;
/// Standard deviations that both percentiles are moved by in the canary's favour before it is aborted: together as good as
/// never by chance, though it is looked at again and again.
const DEVIATIONS: f64 = 3.0;
/// Nobody notices less.
const LEAST_DELAY: Duration = Duration::from_millis(5);

/// Judges one release.
#[derive(Debug)]
pub(super) struct Judge {
    options: CanaryOptions,
    ledger: Ledger,
    /// When it came to where it is, or heard of it.
    since: Nanos,
    waits: Option<Waits>,
    /// Of all since it was begun.
    release: Evidence,
    /// Of what is looked at together: a step, or its last intervals.
    window: Evidence,
    /// How many windows there were, with this one.
    windows: u32,
    begun: Nanos,
    base: Reading,
    /// Where the slice began: the canary, and the stable version.
    slice: (Tally, Tally),
}

/// A moment, on both clocks: one for how long something takes, one for people and other machines.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub ticks: Nanos,
    pub wall: UnixMillis,
}

impl Judge {
    /// Of a release as it stands in its ledger. What is left of a step is not known any more, so that it lasts a whole one.
    pub fn new(options: &CanaryOptions, ledger: Ledger, now: Moment) -> Self {
        Self {
            options: options.clone(),
            ledger,
            since: now.ticks,
            waits: None,
            release: Evidence::default(),
            window: Evidence::default(),
            windows: 1,
            begun: now.ticks,
            base: Reading::default(),
            slice: (Tally::default(), Tally::default()),
        }
    }

    /// Looks at what was counted, and decides.
    pub fn look(&mut self, now: Moment, reading: &Reading) {
        let State { phase, weight, .. } = *self.state();
        if matches!(phase, Phase::Promoted | Phase::Aborted) {
            return;
        }
        self.weigh(reading);
        // Who only holds has done so.
        let decides = self.options.abort || phase == Phase::Running;
        if decides && let Some((reason, measured)) = self.fault(reading) {
            return match self.options.abort {
                true => self.turn(now, reading, Phase::Aborted, Weight::NONE, reason, Some(measured)),
                false => self.turn(now, reading, Phase::Held, weight, reason, Some(measured)),
            };
        }
        let next = self.next();
        self.waits = next.and_then(|_| self.waits_for(now, reading));
        let lasted = now.ticks.saturating_sub(self.begun);
        match next {
            Some(next) if self.waits.is_none() => {
                let phase = if next == Weight::ALL { Phase::Promoted } else { Phase::Running };
                self.turn(now, reading, phase, next, Reason::Step, None);
            }
            _ if lasted >= self.interval().saturating_mul(LONGEST_WINDOW)
                && self.tallies(reading).0.total() >= self.options.min_requests =>
            {
                self.begin_window(now, reading);
            }
            _ => {}
        }
    }

    /// To the next step at once, from where it is or is held, and on from there; false where there is none. What was against it
    /// is forgotten, as whoever orders it has seen that.
    pub fn step(&mut self, now: Moment, reading: &Reading) -> bool {
        let State { phase, weight, .. } = *self.state();
        let next = self.after(weight).filter(|_| matches!(phase, Phase::Running | Phase::Held));
        let Some(next) = next else { return false };
        let phase = if next == Weight::ALL { Phase::Promoted } else { Phase::Running };
        self.forget();
        self.turn(now, reading, phase, next, Reason::Ordered, None);
        true
    }

    /// All to the canary, whatever it does.
    pub fn promote(&mut self, now: Moment, reading: &Reading) {
        if self.state().phase != Phase::Promoted {
            self.turn(now, reading, Phase::Promoted, Weight::ALL, Reason::Ordered, None);
        }
    }

    /// Nothing to the canary.
    pub fn abort(&mut self, now: Moment, reading: &Reading) {
        if self.state().phase != Phase::Aborted {
            self.turn(now, reading, Phase::Aborted, Weight::NONE, Reason::Ordered, None);
        }
    }

    /// A part, which it keeps.
    pub fn set_weight(&mut self, now: Moment, reading: &Reading, weight: Weight) {
        if (self.state().phase, self.state().weight) != (Phase::Held, weight) {
            self.turn(now, reading, Phase::Held, weight, Reason::Ordered, None);
        }
    }

    /// On from where it is held, or from the beginning where it has ended. What was against it is forgotten.
    pub fn resume(&mut self, now: Moment, reading: &Reading) {
        let weight = match self.state().phase {
            Phase::Running => return,
            Phase::Held => self.state().weight,
            Phase::Promoted | Phase::Aborted => self.options.first(),
        };
        self.forget();
        self.turn(now, reading, Phase::Running, weight, Reason::Ordered, None);
    }

    /// What there is to ask of what instances share.
    pub fn message(&self) -> Message {
        self.ledger.message()
    }

    /// Takes over what other instances did.
    pub fn answered(&mut self, now: Moment, reading: &Reading, message: Message, answer: Answer) {
        let State { phase, weight, orders, .. } = *self.state();
        self.ledger.answered(message, answer);
        let state = self.state();
        if (phase, weight, orders) == (state.phase, state.weight, state.orders) {
            return;
        }
        // It was resumed, or begun again: what was against it is forgotten, as where that was ordered.
        if state.phase == Phase::Running && state.orders != orders {
            self.forget();
        }
        self.begin(now, reading);
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Where it stands.
    pub fn state(&self) -> &State {
        self.ledger.state()
    }

    /// What its next step waits for, if anything.
    pub fn waits(&self) -> Option<Waits> {
        self.waits
    }

    /// What is looked at together.
    pub fn window(&self, reading: &Reading) -> Reading {
        reading.since(&self.base)
    }

    fn interval(&self) -> Nanos {
        Nanos::try_from(self.options.interval.as_nanos()).unwrap_or(Nanos::MAX)
    }

    /// The step after this one.
    pub fn next(&self) -> Option<Weight> {
        let State { phase, weight, .. } = *self.state();
        self.after(weight).filter(|_| phase == Phase::Running)
    }

    fn after(&self, weight: Weight) -> Option<Weight> {
        self.options.steps.iter().copied().find(|step| *step > weight)
    }

    fn weigh(&mut self, reading: &Reading) {
        let canary = reading.canary.tally.since(self.slice.0);
        // How the requests went must not say when a slice ends.
        if canary.total() < SLICE {
            return;
        }
        let stable = reading.stable.tally.since(self.slice.1);
        self.release.add(canary, stable);
        self.window.add(canary, stable);
        self.slice = (reading.canary.tally, reading.stable.tally);
    }

    /// What it is to be aborted for.
    fn fault(&self, reading: &Reading) -> Option<(Reason, String)> {
        let allowed = self.options.max_error_difference;
        let of_windows = f64::from(self.windows) * (f64::from(self.windows) + 1.0);
        let fails = [
            (&self.release, 1.0 / (FALSE_ABORTS * OF_RELEASE)),
            // 1/(1*2) + 1/(2*3) + ... is 1.
            (&self.window, of_windows / (FALSE_ABORTS * (1.0 - OF_RELEASE))),
        ]
        .into_iter()
        .any(|(evidence, least)| {
            evidence.log() >= least.ln() && evidence.difference().is_some_and(|difference| difference > allowed)
        });
        if fails {
            let (canary, stable) = self.tallies(reading);
            let measured = format!(
                "{:.2} % of {} requests failed, of the stable version's {:.2} % of {}",
                100.0 * canary.rate(),
                canary.total(),
                100.0 * stable.rate(),
                stable.total(),
            );
            return Some((Reason::Errors, measured));
        }
        let (canary, stable) = self.latencies(reading)?;
        let (Some(least), _) = canary.p99_within(DEVIATIONS) else { return None };
        let (_, Some(most)) = stable.p99_within(DEVIATIONS) else { return None };
        self.is_slow(least, most).then(|| {
            let ms = |p99: Option<Duration>| p99.unwrap_or_default().as_secs_f64() * 1000.0;
            let measured = format!(
                "the 99th percentile of {} requests is {:.1} ms, of the stable version's {} {:.1} ms",
                canary.total(),
                ms(canary.p99()),
                stable.total(),
                ms(stable.p99()),
            );
            (Reason::Latency, measured)
        })
    }

    fn is_slow(&self, canary: Duration, stable: Duration) -> bool {
        canary > stable.mul_f64(self.options.max_p99_ratio).max(stable + LEAST_DELAY)
    }

    fn waits_for(&self, now: Moment, reading: &Reading) -> Option<Waits> {
        if now.ticks.saturating_sub(self.since) < self.interval() {
            return Some(Waits::Interval);
        }
        if self.tallies(reading).0.total() < self.options.min_requests {
            return Some(Waits::Requests);
        }
        let Some(difference) = self.window.difference() else { return Some(Waits::Requests) };
        // With few requests a bad one may be within what is allowed by luck, so that what speaks against it must not outweigh
        // what speaks for it.
        if difference > self.options.max_error_difference || self.window.log() > 0.0 {
            return Some(Waits::Errors);
        }
        let (canary, stable) = self.latencies(reading)?;
        let slow = canary.p99().zip(stable.p99()).is_some_and(|(canary, stable)| self.is_slow(canary, stable));
        slow.then_some(Waits::Latency)
    }

    /// Outcomes within the window: the canary's, and the stable version's.
    fn tallies(&self, reading: &Reading) -> (Tally, Tally) {
        let Reading { canary, stable } = &self.base;
        (reading.canary.tally.since(canary.tally), reading.stable.tally.since(stable.tally))
    }

    /// Latencies within the window, likewise, unless they are too few to say anything.
    fn latencies(&self, reading: &Reading) -> Option<(Latencies, Latencies)> {
        let side = |now: &Latencies, then: &Latencies| {
            let enough = now.total().saturating_sub(then.total()) >= FEW;
            enough.then(|| now.since(then))
        };
        let Reading { canary, stable } = &self.base;
        side(&reading.canary.latency, &canary.latency).zip(side(&reading.stable.latency, &stable.latency))
    }

    fn begin_window(&mut self, now: Moment, reading: &Reading) {
        self.windows = self.windows.saturating_add(1);
        self.window = Evidence::default();
        self.begun = now.ticks;
        self.base = reading.clone();
        self.slice = (reading.canary.tally, reading.stable.tally);
    }

    fn turn(
        &mut self,
        now: Moment,
        reading: &Reading,
        phase: Phase,
        weight: Weight,
        reason: Reason,
        measured: Option<String>,
    ) {
        self.ledger.turn(Turn { at: now.wall, phase, weight, reason, measured });
        self.begin(now, reading);
    }

    /// It is somewhere else now.
    fn begin(&mut self, now: Moment, reading: &Reading) {
        self.since = now.ticks;
        self.waits = None;
        self.begin_window(now, reading);
    }

    fn forget(&mut self) {
        self.release = Evidence::default();
        self.windows = 0;
    }
}
