//! The breaker, exactly, on time that is moved by hand; and its owner.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use actix::Arbiter;

use super::gate::{Gate, Ticket};
use super::judge::{Judge, Outcome};
use super::{Breaker, Forced, Reason, State};
use crate::clock::{Monotonic, Nanos, Stopwatch};
use crate::gateway::options::{BreakerOptions, BreakerWindow};

const SECOND: Nanos = 1_000_000_000;
const START: Nanos = 86_400 * SECOND;

fn options() -> BreakerOptions {
    BreakerOptions {
        window: BreakerWindow::Count(10),
        min_calls: 4,
        failure_rate: 0.5,
        slow_call: Duration::from_millis(100),
        slow_rate: 0.5,
        open_for: Duration::from_secs(5),
        probes: 3,
    }
}

struct Pair(Gate, Judge);

impl Pair {
    fn new(options: &BreakerOptions) -> Self {
        Self(Gate::new(Some(options), START), Judge::new(Some(options)))
    }

    fn ends(&mut self, ticket: Ticket, failed: bool, slow: bool, now: Nanos) {
        self.1.weigh(&self.0, Outcome::new(ticket, failed, slow), now);
    }

    fn call(&mut self, failed: bool, slow: bool, now: Nanos) {
        let ticket = self.0.admit(now).unwrap();
        self.ends(ticket, failed, slow, now);
    }

    fn state(&self) -> State {
        self.0.state().1
    }

    fn reason(&self) -> Reason {
        self.0.past().1.last().unwrap().reason
    }

    fn opened(options: &BreakerOptions) -> Self {
        let mut pair = Self::new(options);
        for _ in 0..options.min_calls {
            pair.call(true, false, START);
        }
        assert_eq!(pair.state(), State::Open);
        pair
    }
}

#[test]
fn nothing_is_decided_below_the_least_calls_and_then_by_the_rates() {
    let mut pair = Pair::new(&options());
    for _ in 0..3 {
        pair.call(true, true, START);
        assert_eq!(pair.state(), State::Closed);
    }
    pair.call(false, false, START);
    assert_eq!(pair.state(), State::Open, "the call that makes it four may be a good one");
    assert_eq!(pair.reason(), Reason::FailureRate { failed: 3, calls: 4 });

    let mut pair = Pair::new(&options());
    for slow in [false, false, false, true, true] {
        pair.call(false, slow, START);
    }
    assert_eq!(pair.state(), State::Closed);
    pair.call(false, true, START);
    assert_eq!((pair.state(), pair.reason()), (State::Open, Reason::SlowRate { slow: 3, calls: 6 }));

    let mut never = Pair::new(&BreakerOptions { slow_rate: 1.0, ..options() });
    (0..50).for_each(|_| never.call(false, true, START));
    assert_eq!(never.state(), State::Closed, "a rate of 1 never opens");
}

#[test]
fn windows_forget() {
    let mut pair = Pair::new(&options());
    for n in 0..100 {
        pair.call(n % 10 >= 6, false, START);
    }
    assert_eq!(pair.state(), State::Closed, "never more than four of ten");
    let time = BreakerOptions { window: BreakerWindow::Time(Duration::from_secs(64)), ..options() };
    let mut pair = Pair::new(&time);
    (0..3).for_each(|_| pair.call(true, false, START));
    (0..3).for_each(|_| pair.call(false, false, START + 64 * SECOND));
    pair.call(true, false, START + 64 * SECOND);
    assert_eq!(pair.state(), State::Closed, "the failures were too long ago");
    (0..2).for_each(|_| pair.call(true, false, START + 100 * SECOND));
    assert_eq!(pair.reason(), Reason::FailureRate { failed: 3, calls: 6 });
}

#[test]
fn it_opens_for_its_time_and_then_probes() {
    let mut pair = Pair::opened(&options());
    assert_eq!(pair.0.admit(START), Err(Duration::from_secs(5)));
    assert_eq!(pair.0.admit(START + 5 * SECOND - 1), Err(Duration::from_nanos(1)));
    let now = START + 5 * SECOND;
    let probes: Vec<_> = (0..3).map(|_| pair.0.admit(now).unwrap()).collect();
    assert!(probes.iter().all(Ticket::is_probe));
    assert_eq!(probes.iter().filter(|probe| probe.moved).count(), 1);
    assert_eq!(pair.0.admit(now), Err(Duration::from_secs(1)));
    // A place that comes back goes to another.
    pair.0.give_back(probes[0]);
    let other = pair.0.admit(now).unwrap();
    assert!(pair.0.admit(now).is_err());
    for probe in [probes[1], probes[2]] {
        pair.ends(probe, false, false, now);
        assert_eq!(pair.state(), State::HalfOpen);
    }
    assert!(pair.0.admit(now).is_err(), "so many in all, not at once");
    pair.ends(other, false, false, now);
    assert_eq!((pair.state(), pair.reason()), (State::Closed, Reason::ProbesGood));
    assert!(pair.0.admit(now).is_ok_and(|ticket| !ticket.probe));
}

#[test]
fn one_bad_probe_or_too_many_slow_ones_open_it_again() {
    let now = START + 5 * SECOND;
    let mut pair = Pair::opened(&options());
    let probes: Vec<_> = (0..3).map(|_| pair.0.admit(now).unwrap()).collect();
    pair.ends(probes[0], false, false, now);
    pair.ends(probes[1], true, false, now);
    assert_eq!((pair.state(), pair.reason()), (State::Open, Reason::ProbeFailed));
    assert_eq!(pair.0.admit(now), Err(Duration::from_secs(5)), "for its time, from now on");
    pair.ends(probes[2], false, false, now);
    pair.0.give_back(probes[2]);
    assert_eq!(pair.state(), State::Open, "it is another time now");

    let mut pair = Pair::opened(&options());
    let probes: Vec<_> = (0..3).map(|_| pair.0.admit(now).unwrap()).collect();
    pair.ends(probes[0], false, true, now);
    assert_eq!(pair.state(), State::HalfOpen, "one of three is less than a half");
    pair.ends(probes[1], false, true, now);
    assert_eq!((pair.state(), pair.reason()), (State::Open, Reason::ProbesSlow));
}

#[test]
fn results_of_an_earlier_time_do_not_count() {
    let mut pair = Pair::new(&options());
    let early: Vec<_> = (0..20).map(|_| pair.0.admit(START).unwrap()).collect();
    (0..4).for_each(|_| pair.call(true, false, START));
    let now = START + 5 * SECOND;
    for _ in 0..3 {
        pair.call(false, false, now);
    }
    assert_eq!(pair.state(), State::Closed);
    for ticket in early {
        pair.ends(ticket, true, true, now);
    }
    assert_eq!(pair.state(), State::Closed);
    let (sum, late) = pair.1.sum(&pair.0, now);
    assert_eq!((sum.calls, late), (0, 20));
}

#[test]
fn probes_that_never_end_are_given_up() {
    let mut pair = Pair::opened(&options());
    let now = START + 5 * SECOND;
    let stuck: Vec<_> = (0..3).map(|_| pair.0.admit(now).unwrap()).collect();
    assert!(pair.0.admit(now + 10 * SECOND - 1).is_err());
    let now = now + 10 * SECOND;
    let others: Vec<_> = (0..3).map(|_| pair.0.admit(now).unwrap()).collect();
    assert_eq!(pair.reason(), Reason::ProbesStuck);
    assert!(pair.0.admit(now).is_err());
    stuck.iter().for_each(|probe| pair.ends(*probe, true, false, now));
    stuck.iter().for_each(|probe| pair.0.give_back(*probe));
    assert!(pair.0.admit(now).is_err(), "what was given up has no place to give back");
    others.iter().for_each(|probe| pair.ends(*probe, false, false, now));
    assert_eq!(pair.state(), State::Closed);
}

#[test]
fn many_threads_take_exactly_the_probes() {
    for round in 0..200u64 {
        let pair = Pair::opened(&BreakerOptions { probes: 7, ..options() });
        let (passed, barrier) = (AtomicU32::new(0), Barrier::new(4));
        let now = START + 5 * SECOND + round;
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (gate, passed, barrier) = (&pair.0, &passed, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    let taken: Vec<_> = (0..5).filter_map(|_| gate.admit(now).ok()).collect();
                    passed.fetch_add(taken.len() as u32, Ordering::SeqCst);
                    barrier.wait();
                    // Two of the threads give theirs back while the others ask again.
                    if thread % 2 == 0 {
                        passed.fetch_sub(taken.len() as u32, Ordering::SeqCst);
                        taken.into_iter().for_each(|ticket| gate.give_back(ticket));
                    } else {
                        passed.fetch_add((0..9).filter(|_| gate.admit(now).is_ok()).count() as u32, Ordering::SeqCst);
                    }
                });
            }
        });
        while pair.0.admit(now).is_ok() {
            passed.fetch_add(1, Ordering::SeqCst);
        }
        assert_eq!(passed.load(Ordering::SeqCst), 7);
        assert_eq!(pair.0.past().0, 2, "opened once, tried once");
    }
}

#[test]
fn orders_stand_until_they_end() {
    let mut pair = Pair::new(&options());
    pair.0.force(Some(Forced::Closed), START);
    (0..50).for_each(|_| pair.call(true, true, START));
    assert_eq!(pair.state(), State::ForcedClosed);
    pair.0.force(Some(Forced::Open), START);
    assert!(pair.0.admit(START + 1000 * SECOND).is_err());
    pair.0.apply(None, START);
    assert_eq!(pair.state(), State::ForcedOpen);
    pair.0.force(None, START);
    assert_eq!(pair.state(), State::Off, "there is none any more");
    pair.0.force(None, START);
    assert_eq!(pair.0.past().0, 3);
    pair.0.apply(Some(&options()), START);
    assert_eq!(pair.state(), State::Closed);
}

#[test]
fn other_settings_keep_state_and_window() {
    let mut pair = Pair::new(&options());
    (0..3).for_each(|_| pair.call(true, false, START));
    let other = BreakerOptions { window: BreakerWindow::Count(5), min_calls: 5, probes: 1, ..options() };
    pair.1.apply(Some(&other));
    pair.0.apply(Some(&other), START);
    pair.call(false, false, START);
    assert_eq!(pair.state(), State::Closed);
    pair.call(false, false, START);
    assert_eq!(pair.reason(), Reason::FailureRate { failed: 3, calls: 5 }, "the failures of before count");
    let other = BreakerOptions { open_for: Duration::from_secs(1), ..other };
    pair.0.apply(Some(&other), START + SECOND);
    assert_eq!(pair.0.admit(START + 2 * SECOND), Err(Duration::from_secs(3)), "it is open for as long as was said");
    assert!(pair.0.admit(START + 5 * SECOND).is_ok());
    assert!(pair.0.admit(START + 5 * SECOND).is_err(), "one probe now");
}

fn started(clock: &Monotonic) -> Breaker {
    Breaker::start("users", Some(&options()), clock.clone(), Arbiter::new().handle(), true)
}

async fn becomes(breaker: &Breaker, state: State) -> Duration {
    let watch = Stopwatch::start();
    while breaker.state() != state {
        assert!(watch.elapsed() < Duration::from_secs(10), "it is still {:?}", breaker.state());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    watch.elapsed()
}

/// A machine that is busy with something else may be late at times, a breaker that is slow always is.
fn in_time(took: &[Duration]) {
    assert!(took.iter().filter(|took| **took < Duration::from_millis(100)).count() >= 2, "{took:?}");
}

fn call(breaker: &Breaker, clock: &Monotonic, failed: bool) {
    let ticket = breaker.admit(clock.now()).unwrap();
    breaker.finish(ticket, failed, Duration::ZERO);
}

#[actix::test]
async fn the_owner_trips_it_in_time_and_closes_it() {
    let clock = Monotonic::manual();
    let breaker = started(&clock);
    let mut took = vec![];
    // Both from a standing start and while the owner is between two looks.
    for pause in [0, 5, 0, 5, 0] {
        for failed in [false, true, true, true] {
            call(&breaker, &clock, failed);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        took.push(becomes(&breaker, State::Open).await);
        assert!(breaker.admit(clock.now()).is_err());
        clock.advance(Duration::from_secs(5));
        (0..3).for_each(|_| call(&breaker, &clock, false));
        becomes(&breaker, State::Closed).await;
    }
    in_time(&took);
    let snapshot = breaker.snapshot();
    assert_eq!((snapshot.transitions, snapshot.restarts, snapshot.lost), (15, 0, 0));
    let states: Vec<_> = snapshot.last.iter().map(|change| change.to).collect();
    assert_eq!(states, [State::Open, State::HalfOpen, State::Closed].repeat(5));
}

#[actix::test]
async fn an_owner_that_panics_forgets_nothing() {
    let clock = Monotonic::manual();
    let mut took = vec![];
    for _ in 0..5 {
        let breaker = started(&clock);
        (0..3).for_each(|_| call(&breaker, &clock, true));
        let watch = Stopwatch::start();
        while breaker.snapshot().calls < 3 {
            assert!(watch.elapsed() < Duration::from_secs(10), "they are not weighed");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        breaker.crash();
        call(&breaker, &clock, false);
        took.push(becomes(&breaker, State::Open).await);
        assert_eq!(breaker.snapshot().last[0].reason, Reason::FailureRate { failed: 3, calls: 4 });
    }
    in_time(&took);
}

#[actix::test]
async fn without_an_owner_it_trips_too() {
    let clock = Monotonic::manual();
    let breaker = started(&clock);
    for crashes in 1..=3 {
        breaker.crash();
        let watch = Stopwatch::start();
        while breaker.snapshot().restarts < crashes || (crashes == 3 && !breaker.is_orphan()) {
            assert!(watch.elapsed() < Duration::from_secs(10), "it did not fail");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if crashes < 3 {
            // Until there is another that can fail.
            while breaker.is_orphan() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
    // The next one comes in 200 ms.
    (0..4).for_each(|_| call(&breaker, &clock, true));
    assert_eq!(breaker.state(), State::Open, "who leaves the outcome has it weighed");
}

#[actix::test]
async fn a_hundred_thousand_outcomes_send_few_messages_and_all_count() {
    let clock = Monotonic::manual();
    let big = BreakerOptions { window: BreakerWindow::Count(100_000), min_calls: 100_000, ..options() };
    let breaker = Breaker::start("users", Some(&big), clock.clone(), Arbiter::new().handle(), true);
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let (breaker, clock) = (breaker.clone(), clock.clone());
            std::thread::spawn(move || (0..25_000).for_each(|n| call(&breaker, &clock, n % 5 == 0)))
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let watch = Stopwatch::start();
    while breaker.snapshot().calls < 50_000 {
        assert!(watch.elapsed() < Duration::from_secs(10), "{:?}", breaker.snapshot());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let snapshot = breaker.snapshot();
    assert_eq!((snapshot.failed, snapshot.lost, snapshot.state), (10_000, 0, State::Closed));
}
