use super::*;
use crate::clock::{DAY, MINUTE};
use crate::event::EventId;

const AT: UnixMillis = 20_000 * DAY;

fn event() -> Event<'static> {
    Event {
        received: AT + 500,
        timestamp: AT + 100,
        site: "shop",
        event_type: PAGE_VIEW,
        id: EventId::None,
        visitor: 7,
        session: 70,
        url: Some("https://shop.example/a?utm_source=x"),
        referrer: Some("https://www.News.example/today"),
        title: None,
        user_id: None,
        session_id: None,
        product_id: None,
        data: None,
        bot: None,
        imported: false,
    }
}

fn of(entries: &[Entry<'_>]) -> Delta {
    let mut delta = Delta::new(100);
    entries.iter().enumerate().for_each(|(i, entry)| delta.apply(100 + i as u64, entry));
    delta
}

fn count(tallies: &Tallies, name: &str) -> u64 {
    tallies.get(name).map_or(0, |tally| tally.n)
}

#[test]
fn page_views_count_with_page_referrer_visitor_and_session() {
    let delta = of(&[Entry::Event(event()), Entry::Event(Event { visitor: 8, session: 0, ..event() })]);
    assert_eq!((delta.from, delta.to, delta.time, delta.events()), (100, 102, Some(AT + 500), 2));
    let [site] = &delta.sites[..] else { panic!() };
    let [minute] = &site.minutes[..] else { panic!() };
    assert_eq!((&*site.name, minute.start, minute.page_views, minute.events), ("shop", AT, 2, 2));
    assert_eq!(count(&minute.pages, "https://shop.example/a"), 2);
    assert_eq!(count(&minute.referrers, "news.example"), 2);
    assert_eq!((minute.visitors.len(), minute.sessions.len()), (2, 1));
    assert_eq!(minute.page_view_tally(), Some(Tally { n: 2, first: 0 }));
}

#[test]
fn other_events_count_by_type_and_have_no_page() {
    let click = Event { event_type: "click", ..event() };
    let delta = of(&[Entry::Event(click), Entry::Event(event()), Entry::Event(click)]);
    let minute = &delta.sites[0].minutes[0];
    assert_eq!((minute.events, minute.page_views, count(&minute.other_types, "click")), (3, 1, 2));
    assert_eq!(count(&minute.pages, "https://shop.example/a"), 1);
    assert_eq!(count(&minute.referrers, "news.example"), 1);
    assert_eq!(minute.page_view_tally(), Some(Tally { n: 1, first: 1 }));
}

#[test]
fn bots_count_apart_and_in_the_audit() {
    let bot = Event { bot: Some(BotReason::Crawler), ..event() };
    let delta = of(&[Entry::Event(bot), Entry::Event(bot)]);
    let minute = &delta.sites[0].minutes[0];
    assert_eq!((minute.events, minute.page_views, minute.bot_events()), (0, 0, 2));
    assert!(minute.visitors.is_empty() && minute.sessions.is_empty() && minute.pages.is_empty());
    assert_eq!(minute.bots[BotReason::Crawler as usize], 2);
    assert_eq!(delta.sites[0].audit.counted, 2);
}

#[test]
fn outcomes_count_in_the_audit_only() {
    let outcome = |code, count| Entry::Outcome { site: "shop", code, count };
    let delta = of(&[
        outcome(RejectCode::Duplicate, 3),
        outcome(RejectCode::InvalidUrl, 2),
        outcome(RejectCode::InvalidUrl, 5),
        Entry::Event(event()),
    ]);
    let audit = &delta.sites[0].audit;
    assert_eq!((audit.counted, audit.duplicates), (1, 3));
    assert_eq!(audit.rejected, BTreeMap::from([(RejectCode::InvalidUrl, 7)]));
    assert_eq!(delta.events(), 1);
}

#[test]
fn sites_and_minutes_are_found_again() {
    let mut entries = Vec::new();
    for i in 0..60 {
        let site = ["a", "b", "c"][i % 3];
        let timestamp = AT + (i as i64 % 5) * MINUTE;
        entries.push(Entry::Event(Event { site, timestamp, ..event() }));
    }
    let delta = of(&entries);
    assert_eq!(delta.sites.iter().map(|site| &*site.name).collect::<Vec<_>>(), ["a", "b", "c"]);
    for site in &delta.sites {
        assert_eq!(site.minutes.len(), 5);
        assert!(site.minutes.iter().all(|minute| minute.page_views == 4));
    }
}

#[test]
fn an_empty_delta_can_still_move_on() {
    let mut delta = Delta::new(5);
    assert!(delta.is_empty());
    delta.advance(9);
    assert!(!delta.is_empty());
    assert_eq!((delta.to, delta.time), (9, None));
}
