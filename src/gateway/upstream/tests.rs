//! The handle: health, the breaker and the queue together, and what is kept over changes.

use std::time::Duration;

use actix::{Arbiter, ArbiterHandle};

use super::{CallOutcome, NoTarget, Refused, TargetId, TargetOutcome, Upstream};
use crate::clock::{Monotonic, Nanos, Stopwatch};
use crate::gateway::breaker::{Forced, State};
use crate::gateway::options::{
    Balance, BreakerOptions, BreakerWindow, Discovery, HashOn, HealthOptions, Protocol, TargetOptions, UpstreamOptions,
};

pub(super) fn target(n: usize, weight: u32) -> TargetOptions {
    TargetOptions { address: format!("10.0.0.{n}:8080"), weight }
}

pub(super) fn targets(n: usize) -> Vec<TargetOptions> {
    (0..n).map(|n| target(n, 1)).collect()
}

pub(super) fn answered(ms: u64) -> TargetOutcome {
    TargetOutcome::Answered { first_byte: Duration::from_millis(ms) }
}

pub(super) fn options(n: usize) -> UpstreamOptions {
    UpstreamOptions {
        discovery: Discovery::Static(targets(n)),
        balance: Balance::RoundRobin,
        hash_on: HashOn::Path,
        hash_load: 1.25,
        max_fails: 3,
        fail_timeout: Duration::from_secs(30),
        health: None,
        slow_start: Duration::ZERO,
        panic_threshold: 0.5,
        breaker: None,
        retry_budget: 0.2,
        retry_floor: 1,
        keep_alive: 8,
        keep_alive_timeout: Duration::from_secs(60),
        max_in_flight: 10_000,
        max_queue: 10,
        queue_timeout: Duration::from_secs(10),
        protocol: Protocol::Http1,
        tls: None,
    }
}

fn checked() -> HealthOptions {
    let second = Duration::from_secs(1);
    HealthOptions { path: String::from("/"), interval: second, timeout: second, healthy_after: 1, unhealthy_after: 1 }
}

fn breaker() -> BreakerOptions {
    BreakerOptions {
        window: BreakerWindow::Count(4),
        min_calls: 4,
        failure_rate: 0.5,
        slow_call: Duration::from_secs(1),
        slow_rate: 1.0,
        open_for: Duration::from_secs(5),
        probes: 2,
    }
}

/// Upstreams on one thread and one clock.
pub(super) struct Upstreams {
    pub clock: Monotonic,
    pub start: Nanos,
    arbiter: ArbiterHandle,
}

impl Upstreams {
    pub fn new() -> Self {
        let clock = Monotonic::manual();
        Self { start: clock.now(), clock, arbiter: Arbiter::new().handle() }
    }

    pub fn start(&self, options: &UpstreamOptions) -> Upstream {
        Upstream::start_on(self.arbiter.clone(), "users", options, self.clock.clone())
    }
}

impl Drop for Upstreams {
    fn drop(&mut self) {
        self.arbiter.stop();
    }
}

/// One request that is tried on the target of this place.
fn ends(upstream: &Upstream, place: u32, outcome: TargetOutcome) {
    let others: Vec<_> = upstream.targets().iter().map(|target| target.id()).filter(|id| id.0 != place).collect();
    upstream.pick(0, &others).unwrap().finish(outcome);
}

fn chosen(upstream: &Upstream, n: usize) -> Vec<u32> {
    let mut ids: Vec<_> = (0..n).map(|_| upstream.pick(0, &[]).unwrap().id().0).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

#[actix::test]
async fn a_target_that_fails_is_left_alone_then_tried_once_and_used_again() {
    let test = Upstreams::new();
    let upstream = test.start(&options(3));
    (0..2).for_each(|_| ends(&upstream, 1, TargetOutcome::Failed));
    assert_eq!(chosen(&upstream, 9), [0, 1, 2]);
    ends(&upstream, 1, TargetOutcome::Failed);
    assert_eq!(chosen(&upstream, 9), [0, 2]);
    assert_eq!(upstream.pick(0, &[TargetId(0), TargetId(2)]).unwrap_err(), NoTarget::Tried);
    test.clock.advance(Duration::from_secs(30) - Duration::from_nanos(1));
    assert_eq!(chosen(&upstream, 9), [0, 2]);
    test.clock.advance(Duration::from_nanos(1));
    // One request tries it; others do not meanwhile. If it is dropped, the next one tries.
    for _ in 0..2 {
        let trial = upstream.pick(0, &[]).unwrap();
        assert!(trial.is_trial() && trial.id() == TargetId(1));
        assert_eq!(chosen(&upstream, 9), [0, 2]);
    }
    upstream.pick(0, &[]).unwrap().finish(TargetOutcome::Failed);
    assert_eq!(chosen(&upstream, 9), [0, 2]);
    test.clock.advance(Duration::from_secs(30));
    assert_eq!(chosen(&upstream, 9), [0, 2], "for longer now");
    test.clock.advance(Duration::from_secs(30));
    assert!(upstream.pick(0, &[TargetId(0)]).is_ok_and(|picked| !picked.is_trial()), "a retry does not try it");
    let mut trial = upstream.pick(0, &[]).unwrap();
    assert!(trial.is_trial());
    trial.finish(answered(1));
    assert_eq!(chosen(&upstream, 9), [0, 1, 2]);
    let snapshot = upstream.snapshot();
    assert_eq!((snapshot.targets[1].failures, snapshot.targets[1].ejections, snapshot.failures), (4, 2, 4));
}

#[actix::test]
async fn a_trial_that_never_ends_is_not_waited_for() {
    let test = Upstreams::new();
    let upstream = test.start(&options(3));
    (0..3).for_each(|_| ends(&upstream, 1, TargetOutcome::Failed));
    test.clock.advance(Duration::from_secs(30));
    let stuck = upstream.pick(0, &[]).unwrap();
    test.clock.advance(Duration::from_secs(30));
    let other = upstream.pick(0, &[]).unwrap();
    assert!(stuck.is_trial() && other.is_trial());
    drop(stuck);
    assert_eq!(chosen(&upstream, 9), [0, 2], "its place is the other one's");
    drop(other);
    assert!(upstream.pick(0, &[]).is_ok_and(|picked| picked.is_trial()), "and now it is free");
}

#[actix::test]
async fn only_who_went_there_later_says_that_it_is_back() {
    let test = Upstreams::new();
    let upstream = test.start(&options(3));
    let mut early = upstream.pick(0, &[TargetId(0), TargetId(2)]).unwrap();
    let mut failing: Vec<_> = (0..9).map(|_| upstream.pick(0, &[TargetId(0), TargetId(2)]).unwrap()).collect();
    failing.iter_mut().for_each(|picked| picked.finish(TargetOutcome::Failed));
    early.finish(answered(1));
    early.finish(answered(1));
    assert_eq!(chosen(&upstream, 9), [0, 2]);
    let snapshot = upstream.snapshot();
    assert_eq!((snapshot.targets[1].ejections, snapshot.targets[1].ejected_ms), (1, Some(30_000)));
}

#[actix::test]
async fn two_threads_never_try_the_same_at_once() {
    let test = Upstreams::new();
    let upstream = test.start(&options(3));
    (0..3).for_each(|_| ends(&upstream, 1, TargetOutcome::Failed));
    test.clock.advance(Duration::from_secs(30));
    for _ in 0..100 {
        let barrier = std::sync::Barrier::new(2);
        let held: Vec<_> = std::thread::scope(|scope| {
            let run = || {
                barrier.wait();
                (0..10).map(|_| upstream.pick(0, &[]).unwrap()).collect::<Vec<_>>()
            };
            let threads = [scope.spawn(run), scope.spawn(run)];
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(held.iter().filter(|picked| picked.is_trial()).count(), 1);
        assert_eq!(held.iter().filter(|picked| picked.id().0 == 1).count(), 1);
    }
}

#[actix::test]
async fn too_few_that_are_well_are_a_panic() {
    let test = Upstreams::new();
    let upstream = test.start(&UpstreamOptions { health: Some(checked()), ..options(4) });
    for n in 0..2 {
        upstream.set_health(&target(n, 1).address, false);
    }
    assert_eq!(chosen(&upstream, 12), [2, 3], "a half is not below a half");
    assert!(!upstream.snapshot().in_panic);
    (0..3).for_each(|_| ends(&upstream, 2, TargetOutcome::Failed));
    assert_eq!(chosen(&upstream, 12), [0, 1, 2, 3]);
    let snapshot = upstream.snapshot();
    assert_eq!((snapshot.in_panic, snapshot.usable, snapshot.panic_picks), (true, 1, 12));
    // Whoever answers is well.
    ends(&upstream, 2, answered(1));
    assert_eq!(chosen(&upstream, 12), [2, 3]);
    for n in 2..4 {
        upstream.set_health(&target(n, 1).address, false);
    }
    assert_eq!(chosen(&upstream, 12), [0, 1, 2, 3]);
    // Without a panic, what checks speak against is never used.
    upstream.apply(&UpstreamOptions { health: Some(checked()), panic_threshold: 0.0, ..options(4) });
    assert_eq!(upstream.pick(0, &[]).unwrap_err(), NoTarget::Unhealthy);
    upstream.set_health(&target(1, 1).address, true);
    assert_eq!(chosen(&upstream, 12), [1]);
    (0..9).for_each(|_| ends(&upstream, 1, TargetOutcome::Failed));
    assert_eq!(chosen(&upstream, 12), [1], "the last one is not left alone");
    assert!(upstream.snapshot().in_panic);
    ends(&upstream, 1, answered(1));
    assert!(!upstream.snapshot().in_panic);
}

#[actix::test]
async fn the_only_target_is_used_whatever_it_does() {
    let test = Upstreams::new();
    let upstream = test.start(&options(1));
    (0..20).for_each(|_| ends(&upstream, 0, TargetOutcome::Failed));
    assert!(upstream.snapshot().in_panic);
    ends(&upstream, 0, answered(1));
    assert_eq!((upstream.snapshot().in_panic, upstream.snapshot().usable), (false, 1));
}

#[actix::test]
async fn there_is_a_target_at_every_moment() {
    for (balance, panic_threshold) in
        [(Balance::RoundRobin, 0.0), (Balance::LeastConn, 0.5), (Balance::P2cEwma, 0.0), (Balance::ConsistentHash, 0.5)]
    {
        let test = Upstreams::new();
        let upstream = test.start(&UpstreamOptions { balance, panic_threshold, max_fails: 1, ..options(2) });
        std::thread::scope(|scope| {
            for thread in 0..2u64 {
                let upstream = &upstream;
                scope.spawn(move || {
                    for n in 0..20_000 {
                        let mut picked = upstream.pick(n, &[]).expect("whatever fails meanwhile");
                        let well = (n / 3 + thread) % 2 == 0;
                        picked.finish(if well { answered(1) } else { TargetOutcome::Failed });
                    }
                });
            }
        });
        assert!(upstream.snapshot().panic_picks > 0);
    }
}

#[actix::test]
async fn checks_bring_a_target_back_at_once_and_slowly() {
    let test = Upstreams::new();
    let slow = Duration::from_secs(10);
    let upstream = test.start(&UpstreamOptions { health: Some(checked()), slow_start: slow, ..options(3) });
    (0..3).for_each(|_| ends(&upstream, 1, TargetOutcome::Failed));
    upstream.set_health(&target(1, 1).address, false);
    test.clock.advance(Duration::from_secs(60));
    assert_eq!(chosen(&upstream, 12), [0, 2], "it is not tried while checks speak against it");
    (0..3).for_each(|_| ends(&upstream, 0, TargetOutcome::Failed));
    test.clock.advance(Duration::from_secs(1));
    upstream.set_health(&target(1, 1).address, true);
    let snapshot = upstream.snapshot();
    assert_eq!((snapshot.targets[1].ejected_ms, snapshot.targets[1].share, snapshot.usable), (None, 0.1, 2));
    test.clock.advance(Duration::from_secs(6));
    assert_eq!(upstream.snapshot().targets[1].share, 0.6);
}

#[actix::test]
async fn what_is_known_of_an_address_stays() {
    let test = Upstreams::new();
    let with_checks = UpstreamOptions {
        health: Some(checked()),
        breaker: Some(breaker()),
        discovery: Discovery::Consul {
            address: String::from("agent:8500"),
            service: String::from("users"),
            tag: None,
            token: None,
        },
        ..options(0)
    };
    let upstream = test.start(&with_checks);
    assert_eq!(upstream.pick(0, &[]).unwrap_err(), NoTarget::Unknown);
    upstream.update_targets(&targets(6));
    upstream.set_health(&target(0, 1).address, false);
    (0..3).for_each(|_| ends(&upstream, 1, TargetOutcome::Failed));
    let held = upstream.pick(0, &[TargetId(2), TargetId(3), TargetId(4)]).unwrap();
    upstream.force(Some(Forced::Open));
    // In another order, with other weights, twice the same, and one more.
    let mut other: Vec<_> = (0..7).rev().map(|n| target(n, 3)).collect();
    other.push(target(3, 9));
    upstream.update_targets(&other);
    upstream.apply(&UpstreamOptions {
        balance: Balance::LeastConn,
        fail_timeout: Duration::from_secs(7),
        ..with_checks
    });
    let snapshot = upstream.snapshot();
    let ids: Vec<_> = snapshot.targets.iter().map(|target| (target.id, target.weight)).collect();
    assert_eq!(ids, [(6, 3), (5, 3), (4, 3), (3, 3), (2, 3), (1, 3), (0, 3)]);
    assert!(!snapshot.targets[6].healthy && snapshot.targets[5].ejected_ms == Some(30_000));
    assert_eq!((snapshot.targets[1].in_flight, snapshot.usable), (1, 5));
    assert_eq!(snapshot.breaker.unwrap().state, State::ForcedOpen);
    // Also where it has left meanwhile.
    upstream.update_targets(&other[1..5]);
    upstream.set_health(&target(5, 1).address, false);
    test.clock.advance(Duration::from_secs(300));
    upstream.update_targets(&other);
    let snapshot = upstream.snapshot();
    assert!(!snapshot.targets[6].healthy && !snapshot.targets[1].healthy);
    assert_eq!((snapshot.targets[1].in_flight, snapshot.targets[5].id), (1, 1));
    drop(held);
    assert_eq!(upstream.snapshot().targets[1].in_flight, 0);
    // Not for ever.
    upstream.update_targets(&other[..2]);
    test.clock.advance(Duration::from_secs(601));
    upstream.update_targets(&other[..2]);
    upstream.update_targets(&other);
    assert_eq!(upstream.snapshot().targets[6].id, 11, "nobody remembers it");
    // What is checked no more is not ill.
    upstream.apply(&UpstreamOptions { health: None, ..options(6) });
    assert!(upstream.snapshot().targets.iter().all(|target| target.healthy));
}

#[actix::test]
async fn memory_of_addresses_is_bounded() {
    let test = Upstreams::new();
    let upstream = test.start(&options(1));
    for round in 0..40 {
        let others: Vec<_> = (0..100).map(|n| target(1000 * round + n, 1)).collect();
        upstream.update_targets(&others);
    }
    assert!(upstream.known() <= 1024 + 100, "{}", upstream.known());
}

#[actix::test]
async fn it_admits_by_breaker_and_place() {
    let test = Upstreams::new();
    let options = UpstreamOptions { breaker: Some(breaker()), max_in_flight: 2, max_queue: 1, ..options(3) };
    let upstream = test.start(&options);
    let held = [upstream.admit().await.unwrap(), upstream.admit().await.unwrap()];
    let waits = actix::spawn({
        let upstream = upstream.clone();
        async move { upstream.admit().await.map(|_| ()) }
    });
    tokio::task::yield_now().await;
    assert_eq!((upstream.snapshot().in_flight, upstream.snapshot().waiting), (2, 1));
    assert_eq!(upstream.admit().await.unwrap_err(), Refused::Full);
    // It opens while one waits, who then does not pass.
    upstream.force(Some(Forced::Open));
    assert!(matches!(upstream.admit().await, Err(Refused::Open { .. })));
    drop(held);
    assert!(matches!(waits.await.unwrap(), Err(Refused::Open { .. })));
    let snapshot = upstream.snapshot();
    assert_eq!((snapshot.in_flight, snapshot.waiting, snapshot.requests), (0, 0, 2));
    assert_eq!((snapshot.refused_open, snapshot.refused_full, snapshot.refused_timeout), (2, 1, 0));
}

#[actix::test]
async fn probes_that_get_no_place_give_theirs_back() {
    let test = Upstreams::new();
    let timeout = Duration::from_millis(5);
    let options = UpstreamOptions { breaker: Some(breaker()), queue_timeout: timeout, max_in_flight: 5, ..options(3) };
    let upstream = test.start(&options);
    let mut held = vec![upstream.admit().await.unwrap()];
    for _ in 0..4 {
        let mut call = upstream.admit().await.unwrap();
        call.finish(CallOutcome::Failure, Duration::ZERO);
        call.finish(CallOutcome::Success, Duration::ZERO);
        held.push(call);
    }
    let watch = Stopwatch::start();
    while upstream.admit_state() != State::Open {
        assert!(watch.elapsed() < Duration::from_secs(10), "it does not trip");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    test.clock.advance(Duration::from_secs(5));
    for _ in 0..3 {
        assert_eq!(upstream.admit().await.unwrap_err(), Refused::QueueTimeout);
    }
    drop(held);
    let mut probes = [upstream.admit().await.unwrap(), upstream.admit().await.unwrap()];
    assert!(probes.iter().all(super::Admission::is_probe));
    assert!(upstream.admit().await.is_err());
    probes[0].finish(CallOutcome::Ignored, Duration::ZERO);
    let mut third = upstream.admit().await.unwrap();
    third.finish(CallOutcome::Success, Duration::ZERO);
    probes[1].finish(CallOutcome::Success, Duration::ZERO);
    let watch = Stopwatch::start();
    while upstream.admit_state() != State::Closed {
        assert!(watch.elapsed() < Duration::from_secs(10), "it does not close");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[actix::test]
async fn retries_are_counted() {
    let test = Upstreams::new();
    let upstream = test.start(&UpstreamOptions { retry_floor: 0, ..options(3) });
    for _ in 0..50 {
        drop(upstream.admit().await.unwrap());
    }
    assert_eq!((0..100).filter(|_| upstream.may_retry()).count(), 10);
    let snapshot = upstream.snapshot();
    assert_eq!((snapshot.retries_granted, snapshot.retries_denied), (10, 90));
}

#[actix::test]
async fn its_thread_ends_with_it() {
    let upstream = Upstream::start("users", &options(1), Monotonic::system()).unwrap();
    let gone = upstream.watch_end();
    let call = upstream.admit().await.unwrap();
    drop(upstream);
    assert!(gone.upgrade().is_some());
    drop(call);
    let watch = Stopwatch::start();
    while gone.upgrade().is_some() {
        assert!(watch.elapsed() < Duration::from_secs(10), "somebody holds it");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
