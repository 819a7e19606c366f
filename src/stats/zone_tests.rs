use super::*;
use crate::clock::parse_rfc3339;

fn starts(zone: &str, interval: Interval, from: &str, to: &str) -> Vec<String> {
    let zone = Zone::named(zone).unwrap();
    let (mut at, to) = (parse_rfc3339(from).unwrap(), parse_rfc3339(to).unwrap());
    let mut starts = Vec::new();
    while at < to {
        let (start, end) = zone.interval(interval, at);
        assert!(start <= at && at < end, "{start} {at} {end}");
        assert_eq!(zone.interval(interval, end - 1), (start, end), "the same from its end");
        starts.push(zone.rfc3339(start));
        at = end;
    }
    starts
}

#[test]
fn berlins_days_have_23_and_25_hours_when_clocks_change() {
    let spring = starts("Europe/Berlin", Interval::Hour, "2026-03-29T00:00:00+01:00", "2026-03-30T00:00:00+02:00");
    assert_eq!(spring.len(), 23);
    assert_eq!(spring[1..3], ["2026-03-29T01:00:00+01:00", "2026-03-29T03:00:00+02:00"]);
    let autumn = starts("Europe/Berlin", Interval::Hour, "2026-10-25T00:00:00+02:00", "2026-10-26T00:00:00+01:00");
    assert_eq!(autumn.len(), 25);
    assert_eq!(autumn[2..4], ["2026-10-25T02:00:00+02:00", "2026-10-25T02:00:00+01:00"]);

    let days = starts("Europe/Berlin", Interval::Day, "2026-03-28T12:00:00+01:00", "2026-03-31T00:00:00+02:00");
    assert_eq!(days, ["2026-03-28T00:00:00+01:00", "2026-03-29T00:00:00+01:00", "2026-03-30T00:00:00+02:00"],);
    let zone = Zone::named("Europe/Berlin").unwrap();
    for (day, hours) in [("2026-03-29T12:00:00Z", 23), ("2026-10-25T12:00:00Z", 25), ("2026-07-01T12:00:00Z", 24)] {
        let (from, to) = zone.interval(Interval::Day, parse_rfc3339(day).unwrap());
        assert_eq!((to - from) / HOUR, hours, "{day}");
    }
}

#[test]
fn kathmandus_hours_begin_at_a_quarter() {
    let hours = starts("Asia/Kathmandu", Interval::Hour, "2026-05-01T00:00:00Z", "2026-05-01T02:00:00Z");
    assert_eq!(hours, ["2026-05-01T05:00:00+05:45", "2026-05-01T06:00:00+05:45", "2026-05-01T07:00:00+05:45"],);
    let day =
        Zone::named("Asia/Kathmandu").unwrap().interval(Interval::Day, parse_rfc3339("2026-05-01T00:00:00Z").unwrap());
    assert_eq!(day.0, parse_rfc3339("2026-04-30T18:15:00Z").unwrap());
    assert_eq!(day.1 - day.0, DAY);
}

#[test]
fn lord_howes_clocks_change_by_half_an_hour() {
    // Back from +11:00 to +10:30 at 02:00 on 5 April, and ahead again at 02:00 on 4 October.
    let autumn =
        starts("Australia/Lord_Howe", Interval::Hour, "2026-04-05T00:00:00+11:00", "2026-04-05T04:00:00+10:30");
    assert_eq!(
        autumn,
        [
            "2026-04-05T00:00:00+11:00",
            "2026-04-05T01:00:00+11:00",
            "2026-04-05T01:30:00+10:30",
            "2026-04-05T02:00:00+10:30",
            "2026-04-05T03:00:00+10:30",
        ]
    );
    let spring =
        starts("Australia/Lord_Howe", Interval::Hour, "2026-10-04T00:00:00+10:30", "2026-10-04T04:00:00+11:00");
    assert_eq!(
        spring,
        [
            "2026-10-04T00:00:00+10:30",
            "2026-10-04T01:00:00+10:30",
            "2026-10-04T02:30:00+11:00",
            "2026-10-04T03:00:00+11:00",
        ]
    );
    let zone = Zone::named("Australia/Lord_Howe").unwrap();
    for (day, minutes) in [("2026-04-05T00:00:00Z", 24 * 60 + 30), ("2026-10-04T00:00:00Z", 23 * 60 + 30)] {
        let (from, to) = zone.interval(Interval::Day, parse_rfc3339(day).unwrap());
        assert_eq!((to - from) / MINUTE, minutes);
    }
}

#[test]
fn on_chatham_clocks_change_within_an_hour() {
    let spring = starts("Pacific/Chatham", Interval::Hour, "2026-09-27T01:00:00+12:45", "2026-09-27T05:00:00+13:45");
    assert_eq!(
        spring,
        [
            "2026-09-27T01:00:00+12:45",
            "2026-09-27T02:00:00+12:45",
            "2026-09-27T03:45:00+13:45",
            "2026-09-27T04:00:00+13:45",
        ]
    );
    let autumn = starts("Pacific/Chatham", Interval::Hour, "2026-04-05T02:00:00+13:45", "2026-04-05T04:00:00+12:45");
    assert_eq!(
        autumn,
        [
            "2026-04-05T02:00:00+13:45",
            "2026-04-05T03:00:00+13:45",
            "2026-04-05T02:45:00+12:45",
            "2026-04-05T03:00:00+12:45",
        ]
    );
}

#[test]
fn days_without_a_midnight_and_days_left_out_do_not_stop_it() {
    // Clocks in Beirut, Santiago and Asuncion change at midnight; Apia left out 30 December 2011.
    for (zone, from, to, days) in [
        ("Asia/Beirut", "2026-03-27T12:00:00Z", "2026-03-31T12:00:00Z", 5),
        ("America/Santiago", "2026-09-04T12:00:00Z", "2026-09-08T12:00:00Z", 5),
        ("Pacific/Apia", "2011-12-29T00:00:00Z", "2012-01-01T20:00:00Z", 5),
    ] {
        let days_found = starts(zone, Interval::Day, from, to);
        assert!((days - 1..=days).contains(&days_found.len()), "{zone} {days_found:?}");
    }
}

#[test]
fn every_zone_lies_quarters_off_utc() {
    let mut zones = 0;
    for name in jiff::tz::db().available() {
        let Ok(zone) = Zone::named(name.as_str()) else { continue };
        zones += 1;
        for month in 0..36 {
            let at = parse_rfc3339("2025-01-01T00:00:00Z").unwrap() + month * 30 * DAY;
            assert_eq!(zone.offset(at) % Tier::Quarter.width(), 0, "{}", zone.name);
            for interval in [Interval::Hour, Interval::Day] {
                let (from, to) = zone.interval(interval, at);
                assert!(from <= at && at < to && Tier::Quarter.floor(from) == from && Tier::Quarter.floor(to) == to);
            }
        }
    }
    assert!(zones > 400, "{zones}");
}

#[test]
fn unknown_zones_are_refused() {
    for bad in ["", "Berlin", "Europe/Atlantis", "../../etc/passwd", &"x".repeat(100)] {
        assert!(matches!(Zone::named(bad), Err(StatsError::BadQuery(_))), "{bad}");
    }
    assert_eq!(Zone::named("europe/berlin").unwrap().name, "Europe/Berlin");
    assert_eq!(Zone::named("UTC").unwrap().name, "UTC");
}
