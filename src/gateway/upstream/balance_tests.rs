//! How targets are chosen, through the handle, on time that is moved by hand.

use std::collections::HashMap;
use std::sync::Barrier;
use std::time::Duration;

use super::tests::{Upstreams, answered, options, target, targets};
use super::{NoTarget, Picked, TargetId, Upstream};
use crate::gateway::options::{Balance, UpstreamOptions};

fn with(balance: Balance, weights: &[u32]) -> UpstreamOptions {
    let mut options = options(weights.len());
    options.balance = balance;
    options.discovery =
        crate::gateway::options::Discovery::Static((0..).zip(weights).map(|(n, weight)| target(n, *weight)).collect());
    options
}

fn pick(upstream: &Upstream) -> Picked {
    upstream.pick(0, &[]).unwrap()
}

fn loads(upstream: &Upstream) -> Vec<u32> {
    upstream.targets().iter().map(|target| target.in_flight()).collect()
}

fn spread(loads: &[u32]) -> u32 {
    loads.iter().max().unwrap() - loads.iter().min().unwrap()
}

const ALL: [Balance; 4] = [Balance::RoundRobin, Balance::LeastConn, Balance::P2cEwma, Balance::ConsistentHash];

#[actix::test]
async fn round_robin_is_smooth_by_weight() {
    let test = Upstreams::new();
    let upstream = test.start(&with(Balance::RoundRobin, &[5, 1, 1]));
    let order: Vec<_> = (0..14).map(|_| pick(&upstream).id().0).collect();
    assert_eq!(order, [0, 0, 1, 0, 2, 0, 0].repeat(2), "as nginx's own example has it");
    let order: Vec<_> = (0..4).map(|_| upstream.pick(0, &[TargetId(0)]).unwrap().id().0).collect();
    assert_eq!(order, [1, 2, 1, 2]);
}

#[actix::test]
async fn least_conn_takes_the_least_and_in_turn() {
    let test = Upstreams::new();
    let upstream = test.start(&with(Balance::LeastConn, &[1, 1, 1]));
    // Nothing is under way when the next one comes, so all are equal.
    let mut order: Vec<_> = (0..6).map(|_| pick(&upstream).id().0).collect();
    let first = order.iter().position(|id| *id == 0).unwrap();
    order.rotate_left(first);
    assert_eq!(order, [0, 1, 2, 0, 1, 2]);
    let mut held: Vec<_> = (0..30).map(|_| pick(&upstream)).collect();
    assert_eq!(loads(&upstream), [10, 10, 10]);
    // Of two equal ones and a busy one, the two take turns.
    held.retain(|picked| picked.id().0 == 1);
    let mut order: Vec<_> = (0..4).map(|_| pick(&upstream).id().0).collect();
    order.sort_unstable();
    assert_eq!(order, [0, 0, 2, 2]);
    drop(held);
    let weighted = test.start(&with(Balance::LeastConn, &[4, 2, 1]));
    let held: Vec<_> = (0..70).map(|_| pick(&weighted)).collect();
    assert_eq!((loads(&weighted), held.len()), (vec![40, 20, 10], 70));
}

#[actix::test]
async fn least_conn_is_exact_over_threads() {
    let test = Upstreams::new();
    let upstream = test.start(&with(Balance::LeastConn, &[7; 8]));
    for round in 0..100 {
        let barrier = Barrier::new(2);
        let held: Vec<Vec<Picked>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..2)
                .map(|thread| {
                    let (upstream, barrier) = (&upstream, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        (0..101 + thread * round).map(|_| pick(upstream)).collect()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let loads = loads(&upstream);
        assert!(spread(&loads) <= 1, "{loads:?}");
        assert_eq!(loads.iter().sum::<u32>(), 202 + round);
        drop(held);
        assert_eq!(super::balance_tests::loads(&upstream), [0; 8]);
    }
}

#[actix::test]
async fn counts_of_all_ways_come_out_even_over_threads() {
    for balance in ALL {
        let test = Upstreams::new();
        let upstream = test.start(&with(balance, &[1, 2, 3]));
        std::thread::scope(|scope| {
            for thread in 0..2u64 {
                let upstream = &upstream;
                scope.spawn(move || {
                    let mut held = std::collections::VecDeque::new();
                    for n in 0..5000 {
                        let mut picked = upstream.pick(n * 7919 + thread, &[]).unwrap();
                        picked.finish(answered(1));
                        held.push_back(picked);
                        if held.len() > 5 {
                            held.pop_front();
                        }
                    }
                });
            }
        });
        let snapshot = upstream.snapshot();
        assert!(snapshot.targets.iter().all(|target| target.in_flight == 0), "{balance:?}");
        assert_eq!(snapshot.targets.iter().map(|target| target.requests).sum::<u64>(), 10_000, "{balance:?}");
    }
}

#[actix::test]
async fn none_is_tried_twice() {
    for balance in ALL {
        let test = Upstreams::new();
        let upstream = test.start(&with(balance, &[1, 2, 3]));
        for hash in 0..50 {
            let mut tried = vec![];
            for _ in 0..3 {
                let id = upstream.pick(hash, &tried).unwrap().id();
                assert!(!tried.contains(&id), "{balance:?}");
                tried.push(id);
            }
            assert_eq!(upstream.pick(hash, &tried).unwrap_err(), NoTarget::Tried);
        }
        assert_eq!(upstream.snapshot().no_target, 50);
        upstream.update_targets(&[]);
        assert_eq!(upstream.pick(0, &[]).unwrap_err(), NoTarget::Unknown);
    }
}

#[actix::test]
async fn p2c_prefers_who_answers_fast_and_forgives() {
    let test = Upstreams::new();
    let upstream = test.start(&with(Balance::P2cEwma, &[1; 4]));
    let round = |requests: usize, slow: u32, ms: u64| {
        let mut counts = [0usize; 4];
        for _ in 0..requests {
            let mut picked = pick(&upstream);
            counts[picked.id().0 as usize] += 1;
            picked.finish(answered(if picked.id().0 == slow { ms } else { 5 }));
            drop(picked);
            test.clock.advance(Duration::from_millis(1));
        }
        counts
    };
    round(100, 0, 5);
    let counts = round(1000, 2, 500);
    assert!(counts[2] <= 5, "one slow answer, and then none is sent there: {counts:?}");
    assert!(counts.iter().enumerate().all(|(n, count)| n == 2 || (200..500).contains(count)), "{counts:?}");
    test.clock.advance(Duration::from_secs(120));
    let counts = round(1000, 9, 5);
    assert!(counts.iter().all(|count| (50..400).contains(count)), "what was long ago does not count: {counts:?}");
}

#[actix::test]
async fn p2c_counts_what_is_under_way() {
    let test = Upstreams::new();
    let upstream = test.start(&with(Balance::P2cEwma, &[1; 10]));
    for _ in 0..200 {
        pick(&upstream).finish(answered(5));
    }
    let held: Vec<_> = (0..1000).map(|_| pick(&upstream)).collect();
    let loads = loads(&upstream);
    assert!(spread(&loads) < 20, "two choices keep the difference small: {loads:?}");
    assert_eq!(held.len(), 1000);
}

#[actix::test]
async fn hashed_keys_stay_where_they_are_but_for_those_of_who_leaves() {
    let test = Upstreams::new();
    let upstream = test.start(&with(Balance::ConsistentHash, &[1; 6]));
    let homes = |upstream: &Upstream| -> HashMap<u64, String> {
        (0..5000).map(|key| (key, upstream.pick(key, &[]).unwrap().address().to_owned())).collect()
    };
    let before = homes(&upstream);
    assert_eq!(before, homes(&upstream));
    let rest: Vec<_> = targets(6).into_iter().filter(|options| options.address != target(3, 1).address).collect();
    upstream.update_targets(&rest);
    let after = homes(&upstream);
    for (key, home) in &before {
        assert!(*home == target(3, 1).address || after[key] == *home);
    }
    upstream.update_targets(&targets(6));
    test.clock.advance(Duration::from_secs(60));
    assert_eq!(homes(&upstream), before, "it gets its own back");
    // One that is only ill gives away its own for as long as it is.
    upstream.set_health(&target(3, 1).address, false);
    assert_eq!(homes(&upstream), after);
    let elsewhere = test.start(&with(Balance::ConsistentHash, &[1; 6]));
    assert_eq!(homes(&elsewhere), before, "other instances agree");
}

#[actix::test]
async fn a_hot_key_is_bounded() {
    let test = Upstreams::new();
    for (load, weights) in [(1.25, [1, 1, 1, 1]), (1.0, [1, 1, 1, 1]), (2.0, [4, 2, 1, 1])] {
        let mut options = with(Balance::ConsistentHash, &weights);
        options.hash_load = load;
        let upstream = test.start(&options);
        let mut held = vec![];
        for total in 1..=400u32 {
            held.push(upstream.pick(42, &[]).unwrap());
            let sum: u32 = weights.iter().sum();
            for (count, weight) in loads(&upstream).into_iter().zip(weights) {
                let most = (load * f64::from(total) * f64::from(weight) / f64::from(sum)).ceil() as u32;
                assert!(count <= most, "{count} of {total} at a weight of {weight}");
            }
        }
        drop(held);
        let home = upstream.pick(42, &[]).unwrap().id();
        assert!((0..100).all(|_| upstream.pick(42, &[]).unwrap().id() == home), "alone it goes home");
    }
}

#[actix::test]
async fn a_new_target_begins_slowly() {
    for (balance, tolerance) in [(Balance::RoundRobin, 0.02), (Balance::LeastConn, 0.02), (Balance::P2cEwma, 1.0)] {
        let test = Upstreams::new();
        let mut options = with(balance, &[1; 3]);
        options.slow_start = Duration::from_secs(100);
        let upstream = test.start(&options);
        assert!(upstream.snapshot().targets.iter().all(|target| target.share == 1.0), "the first begin at once");
        upstream.update_targets(&targets(4));
        let mut shares = vec![];
        for (at, part) in [(0, 0.1), (5, 0.1), (20, 0.2), (50, 0.5), (100, 1.0), (1000, 1.0)] {
            let started = test.clock.now();
            let wait = Duration::from_secs(at).saturating_sub(Duration::from_nanos(started - test.start));
            test.clock.advance(wait);
            assert_eq!(upstream.snapshot().targets[3].share, part);
            let held: Vec<_> = (0..1240).map(|_| pick(&upstream)).collect();
            let new = held.iter().filter(|picked| picked.id().0 == 3).count() as f64;
            let meant = 1240.0 * part / (3.0 + part);
            assert!((new - meant).abs() <= tolerance * 1240.0, "{balance:?} at {at} s: {new}, not {meant}");
            shares.push(new);
        }
        assert!(shares[0] < 0.5 * shares[5], "{balance:?}: {shares:?}");
    }
}
