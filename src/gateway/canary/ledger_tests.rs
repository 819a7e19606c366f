//! Instances that share a release, against a model of the script: whatever comes late, gets lost, comes twice or is killed.

use std::collections::{BTreeSet, HashMap};

use proptest::prelude::*;

use super::judge::{Judge, Moment};
use super::ledger::{Answer, Kept, Ledger, Message, Turn};
use super::state::{Change, KEPT, State};
use super::stats::Reading;
use super::tests::{options, percent};
use super::{Phase, Reason, Weight};

const STEPS: [f64; 6] = [1.0, 5.0, 10.0, 25.0, 50.0, 100.0];

/// What `place.lua` does, and all changes that ever were in what it holds.
#[derive(Default)]
struct Redis {
    state: Option<State>,
    log: Vec<Change>,
}

impl Redis {
    fn run(&mut self, message: &Message) -> Answer {
        let there = self.state.as_ref().map(State::token);
        if there != message.known {
            // Through its text, as it comes from there.
            let text = serde_json::to_string(&self.state).unwrap();
            let state: Option<State> = serde_json::from_str(&text).unwrap();
            assert_eq!(state.as_ref().and_then(State::fault), None);
            return Answer::Other(state);
        }
        let Some(put) = &message.put else { return Answer::Same };
        let known: BTreeSet<u64> = self.log.iter().map(|change| change.id).collect();
        self.log.extend(put.last.iter().filter(|change| !known.contains(&change.id)).cloned());
        self.state = Some(put.clone());
        Answer::Put
    }
}

struct Instance {
    ledger: Ledger,
    disk: Kept,
    on_its_way: Option<(Message, Answer)>,
}

impl Instance {
    fn new(seed: u64) -> Self {
        let ledger = Ledger::new(percent(STEPS[0]), 0, seed);
        Self { disk: ledger.kept("r"), ledger, on_its_way: None }
    }

    fn state(&self) -> &State {
        self.ledger.state()
    }

    fn turn(&mut self, phase: Phase, weight: Weight, reason: Reason) -> u64 {
        self.ledger.turn(Turn { at: 1, phase, weight, reason, measured: None });
        self.state().last.back().unwrap().id
    }

    /// What a judge, or an operator, may do here; the id of the change, if it is one.
    fn act(&mut self, what: u8, weight: u8) -> Option<u64> {
        let State { phase, weight: now, .. } = *self.state();
        let next = STEPS.map(percent).into_iter().find(|step| *step > now);
        let goes_on = matches!(phase, Phase::Running | Phase::Held);
        match what {
            0..=3 if phase == Phase::Running => {
                let next = next?;
                let phase = if next == Weight::ALL { Phase::Promoted } else { Phase::Running };
                Some(self.turn(phase, next, Reason::Step))
            }
            4 if goes_on => Some(self.turn(Phase::Aborted, Weight::NONE, Reason::Errors)),
            5 if phase == Phase::Running => Some(self.turn(Phase::Held, now, Reason::Latency)),
            6 if phase != Phase::Promoted => Some(self.turn(Phase::Promoted, Weight::ALL, Reason::Ordered)),
            7 if phase != Phase::Aborted => Some(self.turn(Phase::Aborted, Weight::NONE, Reason::Ordered)),
            8 if weight >= 180 && goes_on => {
                let next = next?;
                let phase = if next == Weight::ALL { Phase::Promoted } else { Phase::Running };
                Some(self.turn(phase, next, Reason::Ordered))
            }
            8 => Some(self.turn(Phase::Held, percent(f64::from(weight % 101)), Reason::Ordered)),
            9 | 10 if phase != Phase::Running => {
                let weight = if phase == Phase::Held { now } else { percent(STEPS[0]) };
                Some(self.turn(Phase::Running, weight, Reason::Ordered))
            }
            _ => None,
        }
    }
}

/// Instances that have heard of the same beginning.
struct World {
    redis: Redis,
    up: bool,
    instances: Vec<Instance>,
    seeds: u64,
    /// Aborts that somebody made, and has not lost by being killed before anybody heard of it.
    aborts: BTreeSet<u64>,
    /// Of them, those that found another one there already.
    absorbed: BTreeSet<u64>,
    /// The abort that whoever gave an order knew of.
    undoes: HashMap<u64, u64>,
}

impl World {
    fn new(count: u64) -> Self {
        let mut world = Self {
            redis: Redis::default(),
            up: true,
            instances: (1..=count).map(Instance::new).collect(),
            seeds: count,
            aborts: BTreeSet::new(),
            absorbed: BTreeSet::new(),
            undoes: HashMap::new(),
        };
        world.settle();
        for instance in &mut world.instances {
            instance.disk = instance.ledger.kept("r");
        }
        world
    }

    fn act(&mut self, at: usize, what: u8, weight: u8) {
        let instance = &mut self.instances[at];
        let before = instance.state().clone();
        // What is forgotten for want of room would be missing in the log of this model.
        if untold(&instance.ledger).len() == KEPT {
            return;
        }
        let Some(id) = instance.act(what, weight) else { return };
        let change = instance.state().last.back().unwrap();
        if change.is_abort() {
            self.aborts.insert(id);
        }
        if before.phase == Phase::Aborted {
            assert!(change.is_order(), "only an order ends an abort");
            self.undoes.insert(id, before.last.back().unwrap().id);
        }
    }

    fn send(&mut self, at: usize, loses_answer: bool) {
        let instance = &mut self.instances[at];
        if !self.up || instance.on_its_way.is_some() {
            return;
        }
        let message = instance.ledger.message();
        let answer = self.redis.run(&message);
        if !loses_answer {
            instance.on_its_way = Some((message, answer));
        }
    }

    fn receive(&mut self, at: usize) {
        let instance = &mut self.instances[at];
        let Some((message, answer)) = instance.on_its_way.take() else { return };
        let before = instance.state().clone();
        let had = untold(&instance.ledger);
        instance.ledger.answered(message, answer);
        let after = instance.state();
        assert_eq!(after.fault(), None);
        let has = untold(&instance.ledger);
        for abort in had.iter().filter(|change| change.is_abort() && !after.has(change)) {
            assert!(after.phase == Phase::Aborted || after.forgotten_aborts() > 0, "{abort:?}");
            self.absorbed.insert(abort.id);
        }
        assert!(has.iter().all(|change| after.has(change)));
        if after.weight < before.weight {
            let told = after.last.iter().filter(|change| !before.has(change));
            let mut lowers = told.filter(|change| change.is_order() || change.is_abort());
            let long_ago = after.transitions > before.transitions + KEPT as u64;
            assert!(long_ago || lowers.next().is_some(), "{before:?} fell to {after:?}");
        }
    }

    /// Killed, and started again with what the disk has.
    fn crash(&mut self, at: usize) {
        self.seeds += 1;
        let instance = &mut self.instances[at];
        let log: BTreeSet<u64> = self.redis.log.iter().map(|change| change.id).collect();
        let kept = instance.disk.clone();
        for lost in untold(&instance.ledger) {
            if !kept.state.has(&lost) && !log.contains(&lost.id) {
                self.aborts.remove(&lost.id);
            }
        }
        let text = serde_json::to_string(&kept).unwrap();
        let kept: Kept = serde_json::from_str(&text).unwrap();
        assert_eq!(kept.fault(), None);
        instance.ledger = Ledger::restore(kept, self.seeds);
        instance.on_its_way = None;
    }

    fn settle(&mut self) {
        self.up = true;
        for _ in 0..3 {
            for at in 0..self.instances.len() {
                for _ in 0..3 {
                    self.send(at, false);
                    self.receive(at);
                }
            }
        }
    }

    fn check(&self) {
        let shared = self.redis.state.as_ref().unwrap();
        for instance in &self.instances {
            assert_eq!(instance.state(), shared, "all come to the same");
            assert!(untold(&instance.ledger).is_empty() && instance.ledger.is_told());
        }
        let log = &self.redis.log;
        assert_eq!(log.len() as u64, shared.transitions, "nothing is made twice");
        let mut before = (Phase::Running, percent(STEPS[0]), 0);
        for change in log {
            let (phase, weight, id) = before;
            assert_eq!(change.from, weight);
            assert!(change.to >= weight || change.is_order() || change.is_abort(), "{change:?}");
            if phase == Phase::Aborted {
                assert_eq!(self.undoes.get(&change.id), Some(&id), "nobody undoes an abort that they did not know of");
            }
            before = (change.phase, change.to, change.id);
        }
        for abort in self.aborts.difference(&self.absorbed) {
            assert!(log.iter().any(|change| change.id == *abort), "the abort {abort} is lost");
        }
    }
}

/// Changes that are not known to be shared.
fn untold(ledger: &Ledger) -> Vec<Change> {
    let kept = serde_json::to_value(ledger.kept("r")).unwrap();
    serde_json::from_value(kept["untold"].clone()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn all_come_to_the_same_and_no_abort_is_lost(
        count in 1..4_u64,
        moves in prop::collection::vec((0..4_usize, 0..24_u8, any::<u8>()), 1..80),
    ) {
        let mut world = World::new(count);
        for (at, what, weight) in moves {
            let at = at % world.instances.len();
            match what {
                0..=10 => world.act(at, what, weight),
                11..=14 => world.send(at, false),
                15..=18 => world.receive(at),
                19 => world.send(at, true),
                20 | 21 => world.instances[at].disk = world.instances[at].ledger.kept("r"),
                22 => world.crash(at),
                _ => world.up = !world.up,
            }
        }
        world.settle();
        // What was under way comes first.
        world.settle();
        world.check();
    }

    /// Nobody has heard of the others, and what is shared gets lost: then an abort wins, else who has orders, else who is further.
    #[test]
    fn beginnings_that_know_nothing_of_each_other_come_together(
        moves in prop::collection::vec((0..3_usize, 0..16_u8, any::<u8>()), 1..60),
        ordered in any::<bool>(),
    ) {
        let mut world = World {
            redis: Redis::default(),
            up: true,
            instances: (1..=3).map(Instance::new).collect(),
            seeds: 3,
            aborts: BTreeSet::new(),
            absorbed: BTreeSet::new(),
            undoes: HashMap::new(),
        };
        let (mut aborted, mut most) = (false, percent(STEPS[0]));
        for (at, what, weight) in moves {
            match what {
                0..=5 => drop(world.instances[at].act(what, weight)),
                6..=10 if ordered => drop(world.instances[at].act(what, weight)),
                11..=14 => {
                    world.send(at, false);
                    let instance = &mut world.instances[at];
                    if let Some((message, answer)) = instance.on_its_way.take() {
                        instance.ledger.answered(message, answer);
                    }
                }
                15 => world.redis = Redis::default(),
                _ => {}
            }
            let state = world.instances[at].state();
            prop_assert_eq!(state.fault(), None);
            aborted |= state.phase == Phase::Aborted;
            most = most.max(state.weight);
        }
        for _ in 0..9 {
            for instance in &mut world.instances {
                let message = instance.ledger.message();
                let answer = world.redis.run(&message);
                instance.ledger.answered(message, answer);
            }
        }
        let shared = world.redis.state.as_ref().unwrap();
        for instance in &world.instances {
            prop_assert_eq!(instance.state(), shared);
        }
        if !ordered {
            prop_assert_eq!(shared.phase == Phase::Aborted, aborted);
            prop_assert!(aborted || shared.weight == most);
        }
    }
}

/// Two that share, as of a weight of 10.
fn two() -> World {
    let mut world = World::new(2);
    for _ in 0..2 {
        world.act(0, 0, 0);
    }
    world.settle();
    assert!(world.instances.iter().all(|instance| instance.state().weight == percent(10.0)));
    world
}

#[test]
fn an_abort_wins_over_steps_and_over_orders_that_did_not_know_of_it() {
    for (first, second) in [(0, 1), (1, 0)] {
        for other in [0, 5, 6, 8] {
            let mut world = two();
            world.act(0, 4, 0);
            world.act(1, other, 50);
            for at in [first, second] {
                world.send(at, false);
                world.receive(at);
            }
            world.settle();
            world.check();
            assert_eq!(world.instances[0].state().phase, Phase::Aborted, "{first} first, beside {other}");
            // Who knows of it may undo it.
            world.act(1, 9, 0);
            world.settle();
            world.check();
            let state = world.instances[0].state();
            assert_eq!((state.phase, state.weight, state.aborts), (Phase::Running, percent(1.0), 1));
        }
    }
}

#[test]
fn a_step_that_two_take_is_one_and_one_that_is_further_is_kept() {
    let mut world = two();
    for at in [0, 1, 1] {
        world.act(at, 0, 0);
    }
    world.settle();
    world.check();
    let state = world.instances[0].state();
    let steps: Vec<Weight> = state.last.iter().map(|change| change.to).collect();
    assert_eq!(steps, [5.0, 10.0, 25.0, 50.0].map(percent));
    // After an order it counts for nothing.
    world.act(0, 0, 0);
    world.act(1, 8, 7);
    world.send(1, false);
    world.receive(1);
    world.settle();
    let state = world.instances[0].state();
    assert_eq!((state.phase, state.weight), (Phase::Held, percent(7.0)));
}

#[test]
fn of_two_orders_the_one_that_comes_later_counts() {
    let mut world = two();
    world.act(0, 8, 30);
    world.act(1, 8, 20);
    world.send(1, false);
    world.receive(1);
    world.settle();
    world.check();
    assert_eq!(world.instances[1].state().weight, percent(30.0));
    // Both let it go on.
    world.act(0, 9, 0);
    world.act(1, 9, 0);
    world.act(1, 0, 0);
    world.settle();
    world.check();
    let state = world.instances[0].state();
    assert_eq!((state.phase, state.weight, state.orders), (Phase::Running, percent(50.0), 3));
}

#[test]
fn an_abort_whose_answer_was_lost_is_not_made_again_after_it_was_undone() {
    let mut world = two();
    world.act(0, 4, 0);
    world.send(0, true);
    world.send(1, false);
    world.receive(1);
    world.act(1, 9, 0);
    world.send(1, false);
    world.receive(1);
    world.crash(1);
    world.settle();
    world.check();
    let state = world.instances[0].state();
    assert_eq!((state.phase, state.aborts, state.transitions), (Phase::Running, 1, 4));
}

#[test]
fn what_comes_from_outside_must_make_sense() {
    let mut ledger = Ledger::new(percent(5.0), 0, 1);
    let (weight, measured) = (Weight::NONE, Some(String::from("m")));
    ledger.turn(Turn { at: 1, phase: Phase::Aborted, weight, reason: Reason::Errors, measured });
    let good = serde_json::to_value(ledger.kept("r")).unwrap();
    let fault = |value: &serde_json::Value| match serde_json::from_value::<Kept>(value.clone()) {
        Ok(kept) => kept.fault().map(String::from),
        Err(error) => Some(error.to_string()),
    };
    assert_eq!(fault(&good), None);
    for (place, value) in [
        ("/state/weight", serde_json::json!(5.0)),
        ("/state/weight", serde_json::json!(-1)),
        ("/state/phase", serde_json::json!("running")),
        ("/state/phase", serde_json::json!("Aborted")),
        ("/state/transitions", serde_json::json!(2)),
        ("/state/transitions", serde_json::json!(-1)),
        ("/state/orders", serde_json::json!(9)),
        ("/state/last", serde_json::json!([])),
        ("/state/last/0/to", serde_json::json!(50.0)),
        ("/state/last/0/measured", serde_json::json!("x".repeat(1001))),
        ("/base/lineage", serde_json::json!(3)),
        ("/untold/0/id", serde_json::json!(3)),
    ] {
        let mut bad = good.clone();
        *bad.pointer_mut(place).unwrap_or_else(|| panic!("{place}")) = value.clone();
        assert!(fault(&bad).is_some(), "{place} = {value:.50}");
    }
}

/// Instances with a judge each, that look at different times and ask once a second.
#[test]
fn all_of_them_together_take_a_step_an_interval() {
    const SECOND: u64 = 1_000_000_000;
    let mut options = options(&STEPS);
    options.min_requests = 100;
    let mut redis = Redis::default();
    let begin = |seed: u64| {
        let ledger = Ledger::new(options.first(), 0, seed);
        Judge::new(&options, ledger, Moment { ticks: 0, wall: 0 })
    };
    let mut judges: Vec<Judge> = (1..=5).map(begin).collect();
    let mut readings = vec![Reading::default(); judges.len()];
    let mut taken: Vec<(u64, Weight)> = Vec::new();
    for tenth in 1..6000_u64 {
        let now = Moment { ticks: tenth * SECOND / 10, wall: 100 * tenth as i64 };
        for (at, (judge, reading)) in judges.iter_mut().zip(&mut readings).enumerate() {
            // The fifth instance has hardly any requests, and goes along.
            if at < 4 || tenth % 100 == 0 {
                reading.canary.tally.good += 1 + at as u64;
                reading.stable.tally.good += 10;
            }
            // The third was away for a while.
            let reached = at != 2 || !(700..1900).contains(&tenth);
            if tenth % 10 == 2 * at as u64 && reached {
                for _ in 0..3 {
                    let message = judge.message();
                    let answer = redis.run(&message);
                    judge.answered(now, reading, message, answer);
                }
            }
            judge.look(now, reading);
        }
        let most = judges.iter().map(|judge| judge.state().weight).max().unwrap();
        if taken.last().is_none_or(|(_, weight)| *weight < most) {
            taken.push((tenth, most));
        }
        let least = judges.iter().enumerate().filter(|(at, _)| *at != 2).map(|(_, judge)| judge.state().weight).min();
        let since = tenth - taken.last().unwrap().0;
        assert!(least == Some(most) || since <= 20, "after {since} tenths of a second {least:?} is not {most}");
    }
    let between: Vec<u64> = taken.windows(2).map(|two| two[1].0 - two[0].0).collect();
    assert_eq!(taken.last().map(|(_, weight)| *weight), Some(Weight::ALL));
    assert!(between[1..].iter().all(|tenths| *tenths >= 600), "{between:?}");
    assert!(judges.iter().all(|judge| judge.state().phase == Phase::Promoted));
    assert_eq!(redis.log.len(), 5);
}
