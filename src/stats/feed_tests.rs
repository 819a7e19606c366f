use std::collections::BTreeMap;

use serde_json::Value;

use super::*;
use crate::clock::{DAY, HOUR};
use crate::stats::test_events::{Made, NoStore, Recount, Rng, deltas, events};
use crate::stats::{Live, StatsOptions};

const NOW: UnixMillis = 20_000 * DAY + 12 * HOUR;

struct Owner {
    live: Live,
    feed: Feed,
    clock: Clock,
    next: u64,
}

impl Owner {
    fn new() -> Self {
        let clock = Clock::manual(NOW);
        let live = Live::load(&mut NoStore, StatsOptions::default(), NOW).unwrap();
        Self { feed: Feed::new(live.reader(), clock.clone()), live, clock, next: 0 }
    }

    fn commit(&mut self, events: &[Made]) {
        for delta in deltas(events, self.next, 1000) {
            self.next = delta.to;
            assert!(self.live.apply(&delta, self.clock.now()));
            self.feed.commit(&delta, self.clock.now());
        }
    }

    fn pass(&self, millis: u64) {
        self.clock.advance(std::time::Duration::from_millis(millis));
        self.feed.tick(self.clock.now());
    }
}

fn view(site: &'static str) -> Made {
    Made { at: NOW, site, url: Some("/a".into()), ..Made::default() }
}

/// A dashboard: adds up what it is told, and checks that it always adds up.
#[derive(Default)]
struct Dashboard {
    id: Option<String>,
    page_views: u64,
    bots: u64,
    events: BTreeMap<String, u64>,
    snapshots: usize,
    gaps: usize,
    told_gap: bool,
}

impl Dashboard {
    fn take(&mut self, event: &FeedEvent) {
        let data: Value = serde_json::from_slice(&event.data).unwrap();
        let n = |value: &Value| value.as_u64().unwrap();
        let counts = |value: &Value| -> Vec<(String, u64)> {
            value.as_object().unwrap().iter().map(|(name, count)| (name.clone(), n(count))).collect()
        };
        self.id = Some(event.id.clone());
        match event.kind {
            FeedKind::Gap => {
                assert_eq!(data["missed"], true);
                self.gaps += 1;
                self.told_gap = true;
            }
            FeedKind::Snapshot => {
                let day = &data["windows"]["day"];
                (self.page_views, self.bots) = (n(&day["page_views"]), n(&day["bots"]));
                self.events = counts(&day["events"]).into_iter().collect();
                self.snapshots += 1;
                self.told_gap = false;
            }
            FeedKind::Delta => {
                assert!(!self.told_gap, "a snapshot follows a gap");
                self.page_views += n(&data["page_views"]);
                self.bots += n(&data["bots"]);
                counts(&data["events"]).into_iter().for_each(|(kind, n)| *self.events.entry(kind).or_default() += n);
                assert_eq!(self.page_views, n(&data["windows"]["day"]["page_views"]));
            }
        }
    }
}

#[test]
fn snapshot_and_deltas_always_add_up() {
    for seed in 0..6 {
        let mut rng = Rng::new(seed);
        let mut owner = Owner::new();
        let made = events(seed, 6_000, NOW, 12 * HOUR);
        let mut readers: Vec<(Option<Subscription>, Dashboard)> = (0..8).map(|_| Default::default()).collect();
        let mut rest = &made[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(1 + rng.below(9) as usize));
            rest = later;
            owner.commit(now);
            owner.pass(rng.below(400));
            for (at, (subscription, dashboard)) in readers.iter_mut().enumerate() {
                // The first ones read at every step, the last ones hardly ever; all of them reconnect at times.
                if rng.below(1 + (at * at * at) as u64 * 3) > 0 {
                    continue;
                }
                if rng.below(10) == 0 {
                    *subscription = None;
                }
                let subscription = subscription.get_or_insert_with(|| {
                    let id = dashboard.id.clone();
                    owner.feed.subscribe("shop", id.as_deref())
                });
                for _ in 0..1 + rng.below(20) {
                    let Some(event) = subscription.try_next() else { break };
                    dashboard.take(&event);
                }
            }
        }
        owner.pass(250);
        let shop = Recount::of(made.iter().filter(|made| made.site == "shop"));
        for (subscription, dashboard) in &mut readers {
            let id = dashboard.id.clone();
            let subscription = subscription.get_or_insert_with(|| owner.feed.subscribe("shop", id.as_deref()));
            while let Some(event) = subscription.try_next() {
                dashboard.take(&event);
            }
            assert_eq!((dashboard.page_views, dashboard.bots), (shop.page_views, shop.bots));
            assert_eq!(dashboard.events, shop.events);
            assert_eq!(dashboard.snapshots, dashboard.gaps + 1, "a snapshot at first and after each gap only");
        }
        assert_eq!(readers[0].1.gaps, 0, "who keeps up misses nothing");
        assert!(readers.iter().any(|(_, dashboard)| dashboard.gaps > 0), "the slowest do");
    }
}

#[test]
fn frames_keep_their_pace() {
    let mut owner = Owner::new();
    let mut reader = owner.feed.subscribe("shop", None);
    assert_eq!(reader.try_next().unwrap().kind, FeedKind::Snapshot);
    let mut frames = 0;
    for _ in 0..100 {
        owner.commit(&[view("shop"), view("shop")]);
        owner.pass(10);
        frames += usize::from(reader.try_next().is_some());
    }
    assert_eq!(frames, 5, "one at once, four in the second after it");
    owner.commit(&[view("shop")]);
    owner.pass(250);
    assert_eq!(reader.try_next().unwrap().kind, FeedKind::Delta);
    owner.pass(1000);
    assert_eq!(reader.try_next(), None, "no news, no frame");
}

#[test]
fn a_snapshot_counts_through_the_frame_it_names() {
    let mut owner = Owner::new();
    owner.commit(&[view("shop")]);
    owner.commit(&[view("shop")]);
    // The second commit is published but waits for its frame.
    let mut reader = owner.feed.subscribe("shop", None);
    let snapshot: Value = serde_json::from_slice(&reader.try_next().unwrap().data).unwrap();
    assert_eq!((&snapshot["windows"]["day"]["page_views"], &snapshot["as_of"]["offset"]), (&1.into(), &1.into()));
    owner.pass(250);
    let delta: Value = serde_json::from_slice(&reader.try_next().unwrap().data).unwrap();
    assert_eq!((&delta["page_views"], &delta["windows"]["day"]["page_views"]), (&1.into(), &2.into()));
    assert_eq!((&delta["pages"], &delta["visitors_now"]), (&serde_json::json!({"/a": 1}), &1.into()));
}

#[test]
fn who_comes_back_is_carried_on_or_told() {
    let mut owner = Owner::new();
    owner.commit(&[view("shop")]);
    let mut reader = owner.feed.subscribe("shop", None);
    let id = reader.try_next().unwrap().id;
    drop(reader);
    owner.pass(250);
    owner.commit(&[view("shop")]);
    owner.pass(250);
    let mut again = owner.feed.subscribe("shop", Some(&id));
    assert_eq!(again.try_next().unwrap().kind, FeedKind::Delta);
    assert_eq!(again.try_next(), None);

    let epoch = id.split_once('-').unwrap().0;
    for unknown in ["otherprocess-2", "", "x", &format!("{epoch}-99"), &format!("{epoch}-0"), &format!("{epoch}-")] {
        let mut reader = owner.feed.subscribe("shop", Some(unknown));
        let gap = reader.try_next().unwrap();
        assert_eq!(gap.kind, FeedKind::Gap, "{unknown}");
        assert_eq!(reader.try_next().unwrap().kind, FeedKind::Snapshot);
        assert_eq!(reader.try_next(), None);
        let mut between = owner.feed.subscribe("shop", Some(&gap.id));
        assert_eq!(between.try_next().unwrap().kind, FeedKind::Gap, "nobody carries on from a gap");
    }
    owner.feed.reset();
    assert_eq!(again.try_next().unwrap().kind, FeedKind::Gap);
    assert_eq!(again.try_next().unwrap().kind, FeedKind::Snapshot);
}

#[test]
fn the_ring_is_bounded_in_memory_too() {
    let mut owner = Owner::new();
    let long = "x".repeat(400);
    for i in 0..700 {
        let events: Vec<Made> =
            (0..60).map(|page| Made { url: Some(format!("/{i}/{page}/{long}")), ..view("shop") }).collect();
        owner.commit(&events);
        owner.pass(250);
        let ring = owner.feed.0.ring.lock();
        assert!(ring.frames.len() <= RING && ring.bytes <= RING_BYTES);
        assert_eq!(ring.bytes, ring.frames.iter().map(|frame| frame.bytes).sum::<usize>());
    }
    assert!(owner.feed.0.ring.lock().frames.len() > 100);
}

#[tokio::test]
async fn readers_wait_for_news_of_their_site() {
    let mut owner = Owner::new();
    let mut shop = owner.feed.subscribe("shop", None);
    assert_eq!(shop.next().await.unwrap().kind, FeedKind::Snapshot);
    assert_eq!(owner.feed.subscribers(), 1);
    let waiting = tokio::spawn(async move {
        let mut views = Vec::new();
        while let Some(event) = shop.next().await {
            let data: Value = serde_json::from_slice(&event.data).unwrap();
            views.push(data["page_views"].as_u64().unwrap());
        }
        views
    });
    tokio::task::yield_now().await;
    owner.commit(&[view("blog")]);
    owner.pass(250);
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished(), "another site's news");
    owner.commit(&[view("shop")]);
    owner.pass(100);
    owner.commit(&[view("shop"), view("shop")]);
    owner.feed.close();
    assert_eq!(waiting.await.unwrap(), [1, 2], "what was waiting goes out before the end");
    assert!(owner.feed.subscribe("shop", None).next().await.is_some(), "a snapshot is still to be had");
}
