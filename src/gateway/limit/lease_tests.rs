//! The accounting of shared limits under a network that loses, delays and repeats, against a model of the script.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use proptest::prelude::*;

use super::gcra::Rate;
use super::lease::{Answer, Lease, Message, Terms};
use super::shard::Kind;

const START: u64 = 86_400_000_000_000;
const MILLI: u64 = 1_000_000;
const LEASE: u64 = 300 * MILLI;

/// What an instance has at Redis.
#[derive(Clone, Copy, Default)]
struct Field {
    seq: u64,
    owed: u64,
    hold: i128,
    want: i128,
    until: u64,
}

/// The script, in whole numbers: a level is tokens times nanoseconds of the period.
struct Redis {
    level: i128,
    at: u64,
    fields: HashMap<usize, Field>,
    limit: i128,
    unit: i128,
    cap: i128,
}

impl Redis {
    fn fill(&mut self, to: u64, held: i128) {
        if to > self.at {
            self.level = (self.level + i128::from(to - self.at) * self.limit).min((self.cap - held) * self.unit);
            self.at = to;
        }
    }

    fn run(&mut self, id: usize, message: &Message, now: u64) -> Option<Answer> {
        let seen = self.fields.get(&id).copied().unwrap_or_default();
        if message.seq <= seen.seq {
            return None;
        }
        let held = self.fields.values().map(|field| field.hold).sum();
        let live = |field: &&Field| field.until > now;
        let ended = self.fields.values().filter(|field| !live(field)).map(|field| field.until).max();
        let still = self.fields.values().filter(live).map(|field| field.hold).sum();
        let wants: i128 =
            self.fields.iter().filter(|(of, field)| **of != id && live(field)).map(|(_, field)| field.want).sum();
        self.fill(ended.unwrap_or(0).min(now), held);
        self.fill(now, still);
        self.fields.retain(|of, field| *of == id || field.until > now);
        let (debited, noted) = if seen.until > now { (seen.owed, seen.hold) } else { (0, 0) };
        let base = message.acked.max(debited);
        self.level -= i128::from(message.owed.saturating_sub(base)) * self.unit;
        let hold = i128::from(message.hold).min(noted);
        self.level += i128::from(message.back).min(noted - hold) * self.unit;
        let (want, whole) = (i128::from(message.want), self.level.div_euclid(self.unit));
        let granted = if want > 0 && whole > 0 {
            let part = (whole * want + wants + want - 1) / (wants + want);
            want.min(part.max((whole + 1) / 2))
        } else {
            0
        };
        self.level -= granted * self.unit;
        let field = Field { seq: message.seq, owed: message.owed, hold: hold + granted, want, until: now + LEASE };
        self.fields.insert(id, field);
        let lacks = (self.unit - self.level).max(0);
        Some(Answer {
            hold: hold as u32,
            granted: granted as u32,
            level: self.level.div_euclid(self.unit) as i64,
            wait: (lacks / self.limit) as u64,
        })
    }
}

/// Something on its way.
enum Flight {
    There(usize, Message),
    Back(usize, Message, Option<Answer>),
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// How a run went.
struct Run {
    granted: u64,
    over: i128,
}

fn run(seed: u64, per_second: u64, burst: u32, faults: u64, forget: bool) -> Run {
    const INSTANCES: usize = 3;
    let mut dice = Dice(seed);
    let period = 1_000_000_000_i128;
    let (cap, credit) = (burst - burst / 2, burst / 2 / 6);
    let rate = Rate::new(per_second, Duration::from_secs(1), u64::from(burst));
    let terms =
        |now| Terms { now, epoch: 0, credit, cap, share: rate, fill: rate.fill(), interval: 50 * MILLI, lease: LEASE };
    let kind = Kind::new(1, rate.fill());
    let mut redis = Redis {
        level: i128::from(cap) * period,
        at: START,
        fields: HashMap::new(),
        limit: i128::from(per_second),
        unit: period,
        cap: i128::from(cap),
    };
    let mut leases: Vec<Option<Lease>> = vec![None; INSTANCES];
    // One round at a time, as the exchange does; it gives up after a while.
    let mut asking: [Option<(u64, Message)>; INSTANCES] = [None; INSTANCES];
    let mut flights: VecDeque<(u64, Flight)> = VecDeque::new();
    let mut granted = vec![];
    let (mut seq, mut weights) = (0, [90, 8, 2]);
    for step in 0..6000_u64 {
        let now = START + step * MILLI;
        let terms = terms(now);
        if step % 1500 == 1499 {
            weights.rotate_left(1);
        }
        let mut busy = dice.below(100) < 60;
        while busy {
            let mut pick = dice.below(100);
            let id = (0..INSTANCES).find(|id| {
                let here = pick < weights[*id];
                pick = pick.saturating_sub(weights[*id]);
                here
            });
            let id = id.unwrap_or(0);
            let lease = leases[id].get_or_insert_with(|| Lease::new(1, kind, [0; 16], &terms));
            if lease.asks(&terms, 1).is_ok() {
                lease.pay(&terms, 1);
                lease.dirty = true;
                granted.push(now);
            } else if lease.misses(&terms, 1) {
                lease.dirty = true;
            }
            busy = dice.below(100) < 40;
        }
        for id in 0..INSTANCES {
            let Some(lease) = &mut leases[id] else { continue };
            if let Some((until, _)) = asking[id]
                && now >= until
            {
                lease.unanswered();
                lease.dirty = true;
                asking[id] = None;
            }
            if (step + id as u64 * 17).is_multiple_of(50) && asking[id].is_none() && lease.dirty {
                seq += 1;
                if let Some(message) = lease.message(&terms, seq, false) {
                    asking[id] = Some((now + 200 * MILLI, message));
                    let way = |dice: &mut Dice| {
                        let slow = dice.below(100) < faults;
                        (now + if slow { dice.below(900) } else { dice.below(3) } * MILLI, Flight::There(id, message))
                    };
                    if dice.below(100) >= faults {
                        flights.push_back(way(&mut dice));
                    }
                    if dice.below(100) < faults {
                        flights.push_back(way(&mut dice));
                    }
                }
            }
            // Whoever is evicted is begun anew.
            if forget
                && dice.below(200) == 0
                && asking[id].is_none()
                && lease.may_go(now)
                && lease.spoilt_until().is_none()
            {
                leases[id] = None;
            }
        }
        let due: VecDeque<_> = {
            let (due, rest): (VecDeque<_>, VecDeque<_>) = flights.into_iter().partition(|(at, _)| *at <= now);
            flights = rest;
            due
        };
        for (_, flight) in due {
            match flight {
                Flight::There(id, message) => {
                    let answer = redis.run(id, &message, now);
                    if dice.below(100) >= faults {
                        let late = if dice.below(100) < faults { dice.below(900) } else { dice.below(3) };
                        flights.push_back((now + late * MILLI, Flight::Back(id, message, answer)));
                    }
                }
                Flight::Back(id, message, answer) => {
                    // What comes after it was given up is not heard.
                    if asking[id].is_some_and(|(_, asked)| asked == message)
                        && let Some(lease) = &mut leases[id]
                    {
                        asking[id] = None;
                        match answer {
                            Some(answer) => lease.dirty |= lease.answered(&message, &answer, LEASE, now),
                            None => {
                                lease.unanswered();
                                lease.dirty = true;
                            }
                        }
                    }
                }
            }
        }
    }
    let (mut least, mut worst) = (i128::MAX, i128::MIN);
    for (n, at) in granted.iter().enumerate() {
        let due = n as i128 * period - i128::from(per_second) * i128::from(*at);
        least = least.min(due);
        worst = worst.max(due + period - least);
    }
    Run { granted: granted.len() as u64, over: worst - i128::from(burst) * period }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_window_has_more_than_the_limit_whatever_the_network_does(
        seed in any::<u64>(),
        per_second in 1_u64..400,
        burst in 6_u32..200,
        faults in prop_oneof![Just(0_u64), 1_u64..60],
        forget in any::<bool>(),
    ) {
        let run = run(seed, per_second, burst, faults, forget);
        prop_assert!(run.over <= 0, "{} over", run.over);
    }
}

#[test]
fn on_a_good_network_hardly_anything_is_left() {
    for seed in 0..20 {
        let run = run(seed, 200, 60, 0, true);
        let allowed = 60 + 200 * 6;
        assert!(run.over <= 0);
        assert!(run.granted * 100 >= allowed * 95, "{} of {allowed}", run.granted);
    }
}
