use super::*;
use crate::clock::{DAY, MINUTE};
use crate::event::EventId;
use proptest::prelude::*;

const NOW: UnixMillis = 1_700_000_000_000;

fn reading() -> Reading {
    Reading::new(&[String::from("page_view")], &[String::from("purchase")])
}

fn event<'a>(received: UnixMillis, timestamp: UnixMillis, kind: &'a str, product: &'a str, data: &'a str) -> Event<'a> {
    Event {
        received,
        timestamp,
        site: "default",
        event_type: kind,
        id: EventId::None,
        visitor: 1,
        session: 1,
        url: None,
        referrer: None,
        title: None,
        user_id: None,
        session_id: None,
        product_id: Some(product),
        data: Some(data),
        bot: None,
        imported: false,
    }
}

fn scores(max: usize) -> Scores {
    let mut scores = Scores::new(max);
    scores.advance(NOW);
    scores
}

fn sums(scores: &Scores, id: &str) -> [u64; 2] {
    scores.find(id).map_or([0, 0], |product| product.sums(edges(scores.time())))
}

#[test]
fn an_event_counts_by_its_own_time_and_the_future_is_now() {
    let (mut scores, reading) = (scores(10), reading());
    scores.apply(&event(NOW, NOW - 23 * HOUR, "page_view", "a", "{}"), &reading, NOW);
    scores.apply(&event(NOW, NOW + DAY, "page_view", "a", "{}"), &reading, NOW);
    scores.apply(&event(NOW, NOW - 25 * HOUR, "page_view", "a", "{}"), &reading, NOW);
    scores.apply(&event(NOW, NOW - 6 * DAY, "purchase", "a", "{\"quantity\": 3}"), &reading, NOW);
    scores.apply(&event(NOW, NOW - 8 * DAY, "purchase", "a", "{}"), &reading, NOW);
    assert_eq!((sums(&scores, "a"), scores.ignored()), ([2, 3], 2));
    // What happened 23 hours ago leaves first.
    scores.advance(NOW + 2 * HOUR);
    assert_eq!(sums(&scores, "a"), [1, 3]);
    scores.advance(NOW + 2 * DAY);
    assert_eq!(sums(&scores, "a"), [0, 0], "sold 8 days ago");
    assert!(scores.is_empty(), "nothing of it is kept");
}

#[test]
fn a_clock_that_was_far_ahead_does_not_stop_the_counting() {
    let (mut scores, reading) = (scores(10), reading());
    scores.apply(&event(NOW, NOW, "page_view", "a", "{}"), &reading, NOW);
    let wrong = NOW + 365 * DAY;
    scores.apply(&event(wrong, wrong, "page_view", "b", "{}"), &reading, wrong);
    assert!(scores.set_right(NOW + MINUTE) && !scores.set_right(NOW + MINUTE));
    scores.apply(&event(NOW + MINUTE, NOW + MINUTE, "page_view", "c", "{}"), &reading, NOW + MINUTE);
    assert_eq!((sums(&scores, "b"), sums(&scores, "c")), ([0, 0], [1, 0]));
    // Entries of that clock, read again after it was set right.
    scores.apply(&event(wrong, wrong, "page_view", "b", "{}"), &reading, NOW + MINUTE);
    assert!(scores.time() <= NOW + MINUTE + SET_BACK);
}

#[test]
fn a_product_of_the_tail_that_grows_changes_places_with_the_lowest() {
    let mut scores = scores(4);
    for (id, n) in [("a", 9), ("b", 8), ("c", 7), ("d", 6)] {
        scores.add(Kind::Views, id, NOW, n);
    }
    for seen in 1..=6 {
        scores.add(Kind::Views, "new", NOW, 1);
        assert!(scores.find("new").is_none(), "{seen}");
    }
    let unsure = scores.tail().error(NOW).score;
    for _ in 0..unsure {
        scores.add(Kind::Views, "new", NOW, 1);
    }
    assert!(scores.find("new").is_none());
    scores.add(Kind::Views, "new", NOW, 1);
    let new = scores.find("new").unwrap();
    assert_eq!((new.sums(edges(NOW)), new.exact_from > NOW), ([7 + unsure, 0], true));
    assert!(scores.find("d").is_none());
    assert_eq!(scores.tail().estimate(Hash::of("d"), NOW), [6, 0], "nothing of it is lost");
    // It is exact again when all that came with it has left.
    let leaves = new.exact_from;
    assert!((NOW + 20 * HOUR..=NOW + DAY).contains(&leaves), "{leaves}");
    scores.advance(NOW + 2 * HOUR);
    scores.add(Kind::Views, "new", scores.time(), 3);
    scores.advance(leaves);
    assert_eq!(sums(&scores, "new"), [3, 0]);
    scores.advance(NOW + 3 * DAY);
    scores.add(Kind::Views, "d", scores.time(), 1);
    assert_eq!(scores.find("d").unwrap().exact_from, 0, "the tail is empty: there is nothing to be unsure of");
}

#[test]
fn five_million_ids_stay_within_the_memory_of_a_hundred_thousand() {
    let most = 100_000;
    let mut scores = scores(most);
    let bucket = |i: u32| NOW - i64::from(i % 96) * 15 * MINUTE;
    let mut at_room = 0;
    for i in 0..5_000_000u32 {
        if i == most as u32 {
            at_room = scores.bytes();
        }
        let id = format!("product-{i}");
        scores.add(Kind::Views, &id, bucket(i / 1000), 1);
        if i % 100 == 0 {
            // Among them one that is wanted.
            scores.add(Kind::Views, "wanted", NOW, 1);
        }
    }
    assert_eq!(scores.len(), most);
    let sketches = scores.tail().bytes();
    assert!(sketches <= 7 * 4 * 131_072 * 4 * 11 / 10, "{sketches}");
    assert!(scores.bytes() < at_room * 2 + sketches, "{} after {at_room}", scores.bytes());
    assert!(scores.bytes() < 100 << 20, "{}", scores.bytes());
    // Its 50,000 views, in one of the first places from the beginning on.
    assert_eq!((sums(&scores, "wanted"), scores.find("wanted").unwrap().exact_from), ([50_000, 0], 0));
    let error = scores.tail().error(NOW);
    assert!(error.views <= 5_000_000 * 3 / 131_072 && error.units == 0, "{error:?}");
    let sample = (1..2000).map(|i| format!("product-{}", i * 2500)).filter(|id| scores.find(id).is_none());
    let estimates: Vec<u64> = sample.map(|id| scores.tail().estimate(Hash::of(&id), NOW)[0]).collect();
    assert!(estimates.len() > 1500 && estimates.iter().all(|n| *n >= 1));
    let beyond = estimates.iter().filter(|n| **n > 1 + error.views).count();
    assert!(beyond * 50 <= estimates.len(), "{beyond} of {}", estimates.len());
    // And a newcomer that outgrows what is unsure gets in.
    for _ in 0..2 * error.views + 3 {
        scores.add(Kind::Views, "newcomer", NOW, 1);
    }
    assert!(scores.find("newcomer").is_some());
}

#[test]
fn the_heaviest_product_is_bounded_too() {
    let mut scores = scores(1);
    for i in 0..1_000i64 {
        scores.add(Kind::Views, "a", NOW - i * 15 * MINUTE, 1);
        scores.add(Kind::Units, "a", NOW - i * HOUR, 10_000);
    }
    assert_eq!(sums(&scores, "a"), [96, 168 * 10_000]);
    assert!(scores.bytes() < 8_192, "{}", scores.bytes());
    for _ in 0..500_000 {
        scores.add(Kind::Units, "a", NOW, 10_000);
    }
    assert!(sums(&scores, "a")[1] >= u64::from(u32::MAX));
}

#[derive(Clone, Debug)]
struct Step {
    /// Minutes that pass before it.
    pause: i64,
    /// How many minutes ago it happened.
    ago: i64,
    product: u8,
    purchase: bool,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (0..200i64, 0..12_000i64, 0..12u8, any::<bool>()).prop_map(|(pause, ago, product, purchase)| Step {
        pause,
        ago: ago * (ago % 3) / 2,
        product,
        purchase,
    });
    proptest::collection::vec(step, 1..150)
}

proptest! {
    /// Against a list of all that happened, counted anew each time.
    #[test]
    fn sums_are_those_of_a_recount(steps in steps()) {
        let (mut scores, reading) = (scores(100), reading());
        let (mut all, mut now) = (Vec::new(), NOW);
        for step in steps {
            now += step.pause * MINUTE;
            let at = now - step.ago * MINUTE;
            let (kind, id) = (if step.purchase { "purchase" } else { "page_view" }, format!("p{}", step.product));
            scores.apply(&event(now, at, kind, &id, "{\"quantity\": 2}"), &reading, now);
            all.push((step.product, step.purchase, at));
            let count = |product: u8, purchase: bool, width: i64, buckets: i64| {
                let lived = |at: i64| at / width > now / width - buckets;
                all.iter().filter(|(p, b, at)| *p == product && *b == purchase && lived(*at)).count() as u64
            };
            for product in 0..12 {
                let expected = [count(product, false, 15 * MINUTE, 96), 2 * count(product, true, HOUR, 168)];
                prop_assert_eq!(sums(&scores, &format!("p{product}")), expected);
            }
            let by_order: Vec<u64> = scores.order.iter().map(|(score, _)| *score).collect();
            let mut by_count: Vec<u64> = scores.slots.iter().flatten().map(Product::score).collect();
            by_count.sort_unstable();
            prop_assert_eq!(by_order, by_count);
        }
    }

    /// With room for a few, no product is ever counted too low.
    #[test]
    fn with_a_tail_nothing_is_too_low(steps in steps()) {
        let (mut few, mut all, reading) = (scores(3), scores(100), reading());
        let mut now = NOW;
        for step in steps {
            now += step.pause * MINUTE;
            let (kind, id) = (if step.purchase { "purchase" } else { "page_view" }, format!("p{}", step.product));
            for scores in [&mut few, &mut all] {
                scores.apply(&event(now, now - step.ago * MINUTE, kind, &id, "{}"), &reading, now);
            }
            prop_assert!(few.len() <= 3);
            for product in 0..12 {
                let id = format!("p{product}");
                let truth = sums(&all, &id);
                let (shown, exact) = match few.find(&id) {
                    Some(product) => (product.sums(edges(now)), product.exact_from <= now),
                    None => (few.tail().estimate(Hash::of(&id), now), false),
                };
                prop_assert!(shown[0] >= truth[0] && shown[1] >= truth[1], "{id}: {shown:?} < {truth:?}");
                prop_assert!(!exact || shown == truth, "{id}: {shown:?} is said to be exact, {truth:?}");
            }
        }
    }
}
