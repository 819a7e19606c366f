//! Releases by chance: how soon a bad one is noticed, and how often a good one is taken for bad.

use std::time::Duration;

use super::judge::{Judge, Moment};
use super::ledger::Ledger;
use super::stats::{Reading, SideReading};
use super::tests::{options, percent};
use super::*;
use crate::gateway::backoff::Dice;

/// What services do.
#[derive(Clone, Copy)]
struct Service {
    /// Part of failures.
    fails: f64,
    /// Median of the latencies, which are log-normal with a sigma of 0.5; zero does not measure them.
    median: Duration,
}

impl Service {
    fn failing(fails: f64) -> Self {
        Self { fails, median: Duration::ZERO }
    }

    /// Adds requests.
    fn serve(self, count: u64, side: &mut SideReading, dice: &mut Dice) {
        let failed = some_of(count, self.fails, dice);
        side.tally.failed += failed;
        side.tally.good += count - failed;
        let timed = if self.median.is_zero() { 0 } else { count };
        for _ in 0..timed {
            // Box and Muller, 1958.
            let normal = (-2.0 * (1.0 - dice.roll()).ln()).sqrt() * (std::f64::consts::TAU * dice.roll()).cos();
            side.latency.record(self.median.mul_f64((0.5 * normal).exp()));
        }
    }
}

/// How many of so many something happens to that has this probability: by the distances between them, which are geometric.
fn some_of(count: u64, probability: f64, dice: &mut Dice) -> u64 {
    if probability <= 0.0 {
        return 0;
    }
    let (mut at, mut found) = (0, 0);
    loop {
        // As far as that goes: a float that is too great is the greatest number.
        let distance = ((1.0 - dice.roll()).ln() / (1.0 - probability).ln()) as u64;
        at = distance.saturating_add(at).saturating_add(1);
        if at > count {
            break;
        }
        found += 1;
    }
    found
}

struct Run {
    phase: Phase,
    reason: Reason,
    requests: u64,
}

/// A release with 100 requests a second that is looked at every second, until it ends or the canary has had so many requests.
fn run(options: &CanaryOptions, most: u64, dice: &mut Dice, services: impl Fn(u64) -> (Service, Service)) -> Run {
    const SECOND: u64 = 1_000_000_000;
    let moment = |second: u64| Moment { ticks: second * SECOND, wall: 1000 * second as i64 };
    let mut judge = Judge::new(options, Ledger::new(options.first(), 0, 1), moment(0));
    let mut reading = Reading::default();
    for second in 0.. {
        let (stable, canary) = services(second);
        let part = judge.state().weight.part();
        let ours = some_of(100, part.min(1.0 - 1e-9), dice);
        canary.serve(ours, &mut reading.canary, dice);
        stable.serve(100 - ours, &mut reading.stable, dice);
        judge.look(moment(second), &reading);
        let state = judge.state();
        let requests = reading.canary.tally.total();
        if matches!(state.phase, Phase::Aborted | Phase::Promoted) || requests >= most {
            return Run { phase: state.phase, reason: state.reason, requests };
        }
    }
    unreachable!("seconds do not end")
}

/// Of so many releases: those that were aborted within their requests; the median and the most of these.
fn aborts(
    runs: u64,
    seed: u64,
    options: &CanaryOptions,
    most: u64,
    stable: Service,
    canary: Service,
) -> (u64, u64, u64) {
    let mut after = Vec::new();
    for number in 0..runs {
        let mut dice = Dice::seeded(seed + number);
        let run = run(options, most, &mut dice, |_| (stable, canary));
        if run.phase == Phase::Aborted {
            after.push(run.requests);
        }
    }
    after.sort_unstable();
    let median = after.get(after.len() / 2).copied().unwrap_or_default();
    (after.len() as u64, median, after.last().copied().unwrap_or_default())
}

/// Held at a weight, and judged.
fn at(weight: f64) -> CanaryOptions {
    CanaryOptions { weight: percent(weight), ..options(&[]) }
}

#[test]
fn three_percent_of_errors_against_one_are_noticed_within_2000_requests() {
    let (good, bad) = (Service::failing(0.01), Service::failing(0.03));
    let steps = options(&[1.0, 5.0, 10.0, 25.0, 50.0, 100.0]);
    for (name, options, least) in [
        ("steps", steps, 995),
        ("5 %", at(5.0), 995),
        ("10 %", at(10.0), 995),
        ("25 %", at(25.0), 990),
        ("50 %", at(50.0), 940),
    ] {
        let (aborted, median, most) = aborts(1000, 1, &options, 2000, good, bad);
        eprintln!("{name}: {aborted} of 1000 aborted, after {median} requests in the median, {most} at most");
        assert!(aborted >= least, "{name}: {aborted} of 1,000");
        assert!(median <= 1000, "{name}: {median}");
    }
}

/// What bounds that: of tests that are wrong in one of a hundred the best (the uniformly most powerful unbiased one, given the sum
/// of failures: J. Tocher, 1950), which looks but once, at the end.
#[test]
fn at_a_half_and_half_split_no_test_of_one_percent_would_notice_more_than_99_in_100() {
    const RUNS: u64 = 20_000;
    let mut dice = Dice::seeded(9);
    let found = (0..RUNS).map(|_| {
        let (canary, stable) = (some_of(2000, 0.03, &mut dice), some_of(2000, 0.01, &mut dice));
        let sum = canary + stable;
        // Each of the failures is the canary's by the toss of a coin, if both are equal: so probable are so many, and more.
        let (mut exactly, mut above) = (0.5_f64.powf(sum as f64), 0.0);
        for more in (canary + 1..=sum).rev() {
            above += exactly;
            exactly *= more as f64 / (sum - more + 1) as f64;
        }
        ((0.01 - above) / exactly).clamp(0.0, 1.0)
    });
    let found = found.sum::<f64>() / RUNS as f64;
    eprintln!("the best test notices {:.2} % of them", 100.0 * found);
    assert!((0.985..0.993).contains(&found), "{found}");
}

#[test]
fn equal_rates_are_hardly_ever_taken_for_worse() {
    for (fails, weight) in [(0.01, 5.0), (0.01, 50.0), (0.001, 25.0), (0.2, 50.0)] {
        let same = Service::failing(fails);
        let (aborted, ..) = aborts(1000, 100_000, &at(weight), 5000, same, same);
        eprintln!("{fails} at {weight} %: {aborted} of 1000 aborted falsely");
        assert!(aborted < 10, "{fails} at {weight} %: {aborted} of 1,000");
    }
}

#[test]
fn a_good_one_arrives_though_both_have_their_troubles() {
    let mut promoted = 0;
    for seed in 0..1000 {
        // For a minute of every ten a tenth fails, at every step.
        let troubled = |second: u64| Service::failing(if second % 600 < 60 { 0.1 } else { 0.005 });
        let both = |second: u64| (troubled(second), troubled(second));
        let run = run(&options(&[1.0, 5.0, 10.0, 25.0, 50.0, 100.0]), 200_000, &mut Dice::seeded(seed), both);
        promoted += u32::from(run.phase == Phase::Promoted);
        assert!(run.phase == Phase::Promoted || run.reason == Reason::Errors, "it must not be held for ever");
    }
    eprintln!("{promoted} of 1000 good ones promoted");
    assert!(promoted > 990, "{promoted} of 1,000");
}

#[test]
fn slow_ones_are_noticed_and_equal_ones_are_not_taken_for_slow() {
    let with = |ms: u64| Service { fails: 0.0, median: Duration::from_millis(ms) };
    let (aborted, median, most) = aborts(200, 7, &at(25.0), 3000, with(40), with(80));
    eprintln!("twice as slow: {aborted} of 200 aborted, after {median} requests in the median, {most} at most");
    assert!(aborted >= 190 && median <= 1500, "{aborted} of 200, {median}");
    let strict = CanaryOptions { max_p99_ratio: 1.0, ..at(50.0) };
    let (aborted, ..) = aborts(1000, 8, &strict, 2000, with(40), with(40));
    eprintln!("as slow, with a bound of 1: {aborted} of 1000 aborted falsely");
    assert!(aborted < 5, "{aborted} of 1,000");
}
