//! The first tier's hit ratio beside plain LRU, on traces that can be made again; and the tier beside a simple model.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use proptest::prelude::*;

use super::Kind;
use super::entry::{Dice, Entry, OVERHEAD, Seen, State};
use super::l1::{Inserted, L1};
use super::options::TypeOptions;
use super::published::Published;
use std::time::Duration;

fn options() -> TypeOptions {
    TypeOptions {
        name: String::from("t"),
        lifetime: Duration::from_secs(1),
        stale: Duration::ZERO,
        stale_if_error: Duration::ZERO,
        negative: Duration::ZERO,
        l1: true,
        l2: false,
        jitter: 0.0,
    }
}

fn entry(published: &Published, kind: Kind, id: &str, now: i64, lifetime: i64, tag: u64, size: usize) -> Arc<Entry> {
    let hash = published.hash(kind, id);
    let body = Some(vec![0; size].into());
    let epoch = published.epoch(kind, hash);
    let seen = Seen { kind, id, hash, body, tag, stored_at: now, lifetime, delta: 0.0, as_of: 0, epoch };
    Arc::new(Entry::new(seen, &options()))
}

/// What it is compared with: the least recently used goes.
struct Lru {
    most: usize,
    at: u64,
    when: HashMap<u64, u64>,
    order: BTreeMap<u64, u64>,
}

impl Lru {
    fn hit(&mut self, key: u64) -> bool {
        self.at += 1;
        let before = self.when.insert(key, self.at);
        before.map(|before| self.order.remove(&before));
        self.order.insert(self.at, key);
        if self.when.len() > self.most
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.when.remove(&oldest);
        }
        before.is_some()
    }
}

/// Ranks of n items, the k-th with a weight of 1/k^s.
fn zipf(n: usize, s: f64, dice: &Dice) -> impl FnMut() -> u64 {
    let mut sum = 0.0;
    let sums: Vec<f64> = (1..=n)
        .map(|k| {
            sum += (k as f64).powf(-s);
            sum
        })
        .collect();
    move || {
        let at = dice.roll() * sum;
        sums.partition_point(|sum| *sum < at) as u64
    }
}

/// Hit ratios of the tier and of LRU with so many entries.
fn ratios(most: usize, trace: &[u64]) -> (f64, f64) {
    let published = Arc::new(Published::new(1));
    let mut l1 = L1::new(published.clone(), 1, u64::MAX / 2, most);
    let mut lru = Lru { most, at: 0, when: HashMap::new(), order: BTreeMap::new() };
    let (mut ours, mut theirs) = (0_u32, 0_u32);
    for key in trace {
        let id = key.to_string();
        match published.find(Kind(0), &id, published.hash(Kind(0), &id)) {
            Some(entry) => {
                entry.touch();
                ours += 1;
            }
            None => {
                assert_eq!(l1.insert(&entry(&published, Kind(0), &id, 0, 1, 0, 1), 0), Inserted::Stored);
            }
        }
        assert!(l1.entries() <= most);
        theirs += u32::from(lru.hit(*key));
    }
    let share = |hits: u32| f64::from(hits) / trace.len() as f64;
    (share(ours), share(theirs))
}

#[test]
fn the_hit_ratio_is_not_below_plain_lru() {
    const LENGTH: usize = 120_000;
    let dice = Dice::new(42);
    let mut traces: Vec<(String, usize, Vec<u64>)> = Vec::new();
    for s in [0.7, 0.9, 1.1] {
        for most in [100, 1000] {
            let mut draw = zipf(10_000, s, &dice);
            traces.push((format!("Zipf {s}"), most, (0..LENGTH).map(|_| draw()).collect()));
        }
    }
    for most in [100, 1000] {
        let mut draw = zipf(10_000, 0.9, &dice);
        // Somebody reads the whole catalogue now and then.
        let polluted = (0..LENGTH as u64).map(|i| if i % 20_000 > 12_000 { 1_000_000 + i } else { draw() });
        traces.push((String::from("Zipf 0.9 with scans"), most, polluted.collect()));
    }
    for round in [900, 1000, 1100, 2000, 5000] {
        traces.push((format!("loop of {round}"), 1000, (0..LENGTH as u64).map(|i| i % round).collect()));
    }
    // What is popular moves on.
    let mut draw = zipf(2_000, 0.9, &dice);
    traces.push((String::from("moving Zipf"), 500, (0..LENGTH as u64).map(|i| draw() + i / 10_000 * 200).collect()));
    for (name, most, trace) in traces {
        let (ours, lru) = ratios(most, &trace);
        println!("{name:20} {most:5} entries: {ours:.4}, LRU {lru:.4}");
        assert!(ours >= lru, "{name}, {most} entries: {ours} is below LRU's {lru}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert {
        key: u8,
        kind: u16,
        lifetime: i64,
        size: usize,
    },
    /// Read before the steps in between, stored after them.
    Begin {
        key: u8,
        kind: u16,
    },
    Finish,
    Read {
        key: u8,
        kind: u16,
    },
    Advance(i64),
    Invalidate {
        key: u8,
        kind: u16,
    },
    InvalidateKind(u16),
    Sweep,
}

fn step() -> impl Strategy<Value = Step> {
    let (key, kind) = (|| 0..24_u8, || 0..2_u16);
    prop_oneof![
        6 => (key(), kind(), 1..200_i64, 0..600_usize)
            .prop_map(|(key, kind, lifetime, size)| Step::Insert { key, kind, lifetime, size }),
        2 => (key(), kind()).prop_map(|(key, kind)| Step::Begin { key, kind }),
        2 => Just(Step::Finish),
        8 => (key(), kind()).prop_map(|(key, kind)| Step::Read { key, kind }),
        3 => (0..80_i64).prop_map(Step::Advance),
        2 => (key(), kind()).prop_map(|(key, kind)| Step::Invalidate { key, kind }),
        1 => kind().prop_map(Step::InvalidateKind),
        1 => Just(Step::Sweep),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn the_tier_agrees_with_a_model(
        steps in proptest::collection::vec(step(), 1..250), max_entries in 1..40_usize, room in 8..40_u64,
    ) {
        let max_bytes = room * (OVERHEAD as u64 + 100);
        let published = Arc::new(Published::new(2));
        let mut l1 = L1::new(published.clone(), 2, max_bytes, max_entries);
        // Of each key: version and end.
        let mut model: HashMap<(u16, u8), (u64, i64)> = HashMap::new();
        let (mut now, mut next, mut begun, mut crowded) = (0_i64, 0_u64, Vec::new(), false);
        for step in steps {
            match step {
                Step::Insert { key, kind, lifetime, size } => {
                    next += 1;
                    let new = entry(&published, Kind(kind), &key.to_string(), now, lifetime, next, size);
                    let before = (l1.entries(), l1.bytes());
                    let large = new.weight() > max_bytes / 8;
                    crowded |= before.0 + 1 > max_entries || before.1 + new.weight() > max_bytes;
                    let stored = l1.insert(&new, now);
                    prop_assert_eq!(stored, if large { Inserted::TooLarge } else { Inserted::Stored });
                    if large {
                        model.remove(&(kind, key));
                    } else {
                        model.insert((kind, key), (next, now + lifetime));
                    }
                }
                Step::Begin { key, kind } => {
                    next += 1;
                    let new = entry(&published, Kind(kind), &key.to_string(), now, 100, next, 10);
                    begun.push((key, kind, new, false));
                }
                Step::Finish => {
                    if let Some((key, kind, new, outdated)) = begun.pop() {
                        crowded |= l1.entries() + 1 > max_entries || l1.bytes() + new.weight() > max_bytes;
                        let large = new.weight() > max_bytes / 8;
                        let stored = l1.insert(&new, now);
                        // Too large comes before all else, and takes away what is there.
                        match stored {
                            Inserted::Stored => {
                                prop_assert!(!outdated && now < new.fresh_until);
                                model.insert((kind, key), (new.tag, new.fresh_until));
                            }
                            Inserted::TooLarge => {
                                prop_assert!(large);
                                model.remove(&(kind, key));
                            }
                            Inserted::Expired => prop_assert!(now >= new.fresh_until),
                            // Keys may share an epoch, but not a fate that matters: it is stored less often.
                            Inserted::Outdated => {}
                        }
                    }
                }
                Step::Read { key, kind } => {
                    let id = key.to_string();
                    let found = published.find(Kind(kind), &id, published.hash(Kind(kind), &id));
                    let found = found.filter(|entry| entry.state(now) == State::Fresh);
                    let wanted = model.get(&(kind, key)).filter(|(_, end)| now < *end);
                    match (found, wanted) {
                        (Some(found), Some((tag, _))) => {
                            prop_assert_eq!(found.tag, *tag);
                            found.touch();
                        }
                        (Some(found), None) => prop_assert!(false, "{} is served after its end", found.tag),
                        (None, Some(_)) => prop_assert!(crowded, "lost without need"),
                        (None, None) => {}
                    }
                }
                Step::Advance(by) => now += by,
                Step::Invalidate { key, kind } => {
                    let id = key.to_string();
                    published.invalidate(Kind(kind), &id, published.hash(Kind(kind), &id));
                    l1.reap();
                    model.remove(&(kind, key));
                    begun.iter_mut().filter(|it| (it.0, it.1) == (key, kind)).for_each(|it| it.3 = true);
                }
                Step::InvalidateKind(kind) => {
                    published.invalidate_kind(Kind(kind));
                    model.retain(|(of, _), _| *of != kind);
                    begun.iter_mut().filter(|it| it.1 == kind).for_each(|it| it.3 = true);
                }
                Step::Sweep => {
                    l1.sweep(64, now);
                    let alive = model.values().filter(|(_, end)| now < *end).count();
                    prop_assert!(l1.entries() <= alive, "what is good for nothing has left");
                }
            }
            prop_assert!(l1.entries() <= max_entries && l1.bytes() <= max_bytes);
            prop_assert_eq!(l1.entries(), published.len());
            let held = l1.kinds().iter().fold((0, 0), |sum, kind| (sum.0 + kind.entries, sum.1 + kind.bytes));
            prop_assert_eq!(held, (l1.entries() as u64, l1.bytes()));
        }
    }
}
