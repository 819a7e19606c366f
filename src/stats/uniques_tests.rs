use std::collections::HashSet;

use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::*;

fn hash(i: u64) -> u64 {
    xxh3_64(&i.to_le_bytes())
}

fn of(limit: usize, numbers: impl IntoIterator<Item = u64>) -> Uniques {
    let mut set = Uniques::new(limit);
    numbers.into_iter().for_each(|i| {
        set.insert(hash(i));
    });
    set
}

fn again(set: &Uniques) -> Uniques {
    let mut copy = Uniques::new(set.limit);
    copy.absorb(&set.encode()).unwrap();
    assert_eq!(copy.count(), set.count());
    copy
}

#[test]
fn it_is_exact_up_to_the_limit_and_not_beyond() {
    let mut set = of(10_000, 0..10_000);
    assert_eq!(set.count(), Unique { count: 10_000, error_bound: None });
    assert!(!set.insert(hash(77)));
    assert!(set.exact(), "what is known does not count");
    assert!(again(&set).exact());
    assert!(set.memory() < 200_000);
    assert_eq!(set.hashes().unwrap().count(), 10_000);

    set.insert(hash(10_000));
    assert!(!set.exact() && set.hashes().is_none());
    assert!(!again(&set).exact());
    let Unique { count, error_bound } = set.count();
    assert!((count as f64 / 10_001.0 - 1.0).abs() < error_bound.unwrap(), "{count}");
    assert!(set.memory() < 20_000);
}

#[test]
fn unions_stay_exact_if_they_fit() {
    let mut set = of(100, 0..60);
    set.union(&of(100, 40..100));
    assert_eq!(set.count(), Unique { count: 100, error_bound: None });
    set.union(&of(100, [100]));
    assert!(!set.exact());
}

#[test]
fn the_sketch_keeps_to_its_bound() {
    for n in [12_000u64, 30_000, 100_000, 1_000_000] {
        let set = of(10_000, 0..n);
        let Unique { count, error_bound } = set.count();
        let bound = error_bound.unwrap();
        assert!((count as f64 / n as f64 - 1.0).abs() <= bound, "{count} of {n}");
    }
}

#[test]
fn damaged_bytes_are_refused() {
    let bytes = of(10, 0..5).encode();
    for bad in [&bytes[..bytes.len() - 1], &[9, 1], &[1, 9], &[1, 2, 3], &[]] {
        assert_eq!(Uniques::new(10).absorb(bad), Err(MalformedSet));
    }
    let mut sketch = of(10, 0..50_000).encode();
    sketch.truncate(500);
    assert_eq!(Uniques::new(10).absorb(&sketch), Err(MalformedSet));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn it_counts_like_a_hash_set(parts in proptest::collection::vec(proptest::collection::vec(0u64..400, 0..200), 1..6)) {
        let mut model = HashSet::new();
        let mut united = Uniques::new(300);
        let mut one = Uniques::new(300);
        for part in &parts {
            for i in part {
                let new = one.insert(hash(*i));
                prop_assert!(!new || !model.contains(i));
                model.insert(*i);
            }
            united.union(&again(&of(300, part.iter().copied())));
        }
        prop_assert_eq!(one.count(), united.count());
        if model.len() <= 300 {
            prop_assert_eq!(one.count(), Unique { count: model.len() as u64, error_bound: None });
            prop_assert_eq!(one.encode(), united.encode());
        } else {
            prop_assert!(!one.exact() && !united.exact());
        }
    }

    /// Whatever the order and the batches: the same set, the same number.
    #[test]
    fn the_number_does_not_depend_on_the_way(n in 900u64..4_000, cut in 1u64..3_000, stride in 1u64..50) {
        let cut = cut.min(n);
        let all = of(1_000, 0..n);
        let mut parts = of(1_000, (cut..n).rev());
        parts.union(&of(1_000, (0..cut).filter(|i| i % stride == 0)));
        let mut rest = of(1_000, (0..cut).filter(|i| i % stride != 0));
        rest.union(&again(&parts));
        prop_assert_eq!(all.count(), rest.count());
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Uniques::new(10).absorb(&bytes);
    }
}
