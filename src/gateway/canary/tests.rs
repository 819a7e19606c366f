use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::HeaderMap;
use hyper::header::HeaderValue;

use super::handle::Beginning;
use super::keeper::Bell;
use super::*;
use crate::clock::{Clock, Monotonic, Stopwatch};
use crate::gateway::limit::Caller;

pub(super) fn percent(percent: f64) -> Weight {
    Weight::percent(percent).unwrap()
}

pub(super) fn options(steps: &[f64]) -> CanaryOptions {
    CanaryOptions {
        upstream: String::from("next"),
        release: String::new(),
        weight: Weight::NONE,
        steps: steps.iter().map(|step| percent(*step)).collect(),
        interval: Duration::from_secs(60),
        min_requests: 500,
        max_error_difference: 0.005,
        max_p99_ratio: 1.5,
        abort: true,
        by: CanaryKey::User,
        header: None,
        cookie: None,
    }
}

fn caller(user: Option<&str>) -> Caller<'_> {
    Caller { address: IpAddr::from([192, 0, 2, 1]), api_key: None, user, route: "r" }
}

fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(*name, HeaderValue::from_static(value));
    }
    headers
}

fn idle(options: &CanaryOptions) -> (Canary, Monotonic) {
    let clock = Monotonic::manual();
    (Canary::idle(beginning(options), clock.clone(), Clock::manual(1_800_000_000_000)), clock)
}

fn beginning(options: &CanaryOptions) -> Beginning<'_> {
    let bell = Arc::new(Bell::new(false, 1));
    Beginning { route: "r", release: String::from("1"), options, kept: None, bell }
}

/// So many requests to one side, of which every so manieth fails; 0 is none.
fn requests(canary: &Canary, to_canary: bool, count: u64, fails: u64) {
    for number in 1..=count {
        let choice = Choice { canary: to_canary, ..Choice::default() };
        canary.begin(&choice).finish(fails > 0 && number % fails == 0);
    }
}

#[test]
fn nobody_flips_back_while_the_weight_grows_and_all_return_together() {
    const USERS: usize = 100_000;
    let (canary, _) = idle(&options(&[0.01]));
    let names: Vec<String> = (0..USERS).map(|user| format!("user-{user}")).collect();
    let none = HeaderMap::new();
    let mut before = vec![false; USERS];
    for weight in [0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 33.33, 50.0, 66.6, 75.0, 90.0, 99.0, 99.99, 100.0] {
        canary.set_weight(percent(weight));
        let mut count = 0;
        for (name, before) in names.iter().zip(&mut before) {
            let now = canary.choose(&none, &caller(Some(name))).canary;
            assert!(now || !*before, "{name} flipped back at {weight} %");
            *before = now;
            count += u32::from(now);
        }
        let part = 100.0 * f64::from(count) / USERS as f64;
        assert!((part - weight).abs() < 0.5, "{part} % at a weight of {weight} %");
    }
    canary.abort();
    assert!(names.iter().all(|name| canary.choose(&none, &caller(Some(name))) == Choice::default()));
}

#[test]
fn instances_agree_and_canaries_begin_with_others() {
    let first = split::Split::new("r", &options(&[]));
    let same = split::Split::new("r", &options(&[]));
    let (route, upstream) = (
        split::Split::new("s", &options(&[])),
        split::Split::new("r", &CanaryOptions { upstream: String::from("later"), ..options(&[]) }),
    );
    let slots = |split: &split::Split| (0..1000).map(|user: u32| split.slot(&user.to_le_bytes())).collect::<Vec<_>>();
    assert_eq!(slots(&first), slots(&same));
    for other in [&route, &upstream] {
        let met = slots(&first).iter().zip(slots(other)).filter(|(one, two)| **one < 1000 && *two < 1000).count();
        assert!(met < 30, "{met} of 1,000 are in a tenth of both");
    }
}

#[test]
fn who_asks_is_heard_but_not_after_an_abort() {
    let decider =
        |name: &str, value: Option<&str>| Some(Decider { name: name.to_owned(), value: value.map(String::from) });
    let options = CanaryOptions {
        header: decider("x-canary", Some("always")),
        cookie: decider("beta", None),
        weight: percent(100.0),
        ..options(&[])
    };
    let (canary, _) = idle(&options);
    let choose = |lines: &[_]| canary.choose(&headers(lines), &caller(None));
    for (weight, chance) in [(0.0, false), (100.0, true)] {
        canary.set_weight(percent(weight));
        for (lines, expected) in [
            (&[("x-canary", "always")][..], Some(true)),
            (&[("x-canary", "never")], Some(false)),
            (&[("x-canary", "perhaps")], None),
            (&[("cookie", "a=b; beta=1")], Some(true)),
            (&[("cookie", "a=b"), ("cookie", "beta=never")], Some(false)),
            (&[("cookie", "notbeta=1; beta2=1; beta")], None),
            // The header is heard first.
            (&[("x-canary", "never"), ("cookie", "beta=1")], Some(false)),
            (&[("x-canary", "?"), ("cookie", "beta=1")], Some(true)),
        ] {
            let choice = choose(lines);
            assert_eq!((choice.forced, choice.canary), (expected.is_some(), expected.unwrap_or(chance)), "{lines:?}");
        }
    }
    canary.abort();
    assert_eq!(choose(&[("x-canary", "always")]), Choice::default());
    canary.resume();
    assert!(choose(&[("x-canary", "always")]).canary);
}

#[test]
fn a_browser_gets_an_id_once_and_stays() {
    let (canary, _) = idle(&CanaryOptions { by: CanaryKey::Cookie, weight: percent(50.0), ..options(&[]) });
    let mut sides = [0, 0];
    for _ in 0..1000 {
        let first = canary.choose(&HeaderMap::new(), &caller(None));
        let id = first.new_id.unwrap();
        let set = Canary::set_cookie(&id, true).unwrap();
        let set = set.to_str().unwrap();
        let (pair, rest) = set.split_once("; ").unwrap();
        assert_eq!(rest, "Path=/; Max-Age=2592000; HttpOnly; SameSite=Lax; Secure");
        let mut headers = HeaderMap::new();
        headers.insert("cookie", HeaderValue::from_str(&format!("a=1; {pair};b=2")).unwrap());
        let again = canary.choose(&headers, &caller(None));
        assert_eq!((again.canary, again.new_id), (first.canary, None));
        sides[usize::from(first.canary)] += 1;
    }
    assert!((420..580).contains(&sides[1]), "{sides:?}");
    let long = headers(&[("cookie", "tidegate_canary=")]);
    assert!(canary.choose(&long, &caller(None)).new_id.is_some(), "an empty id is none");
    canary.set_weight(Weight::NONE);
    assert_eq!(canary.choose(&HeaderMap::new(), &caller(None)), Choice::default(), "nobody is told apart");
}

#[test]
fn keys_that_are_missing_are_addresses() {
    for by in [CanaryKey::ApiKey, CanaryKey::User, CanaryKey::Address] {
        let (canary, _) = idle(&CanaryOptions { by, weight: percent(50.0), ..options(&[]) });
        let choose = |address: &str| {
            let caller = Caller { address: address.parse().unwrap(), ..caller(None) };
            canary.choose(&HeaderMap::new(), &caller).canary
        };
        let of_net =
            |host: u32| (choose(&format!("2001:db8:0:{host:x}::1")), choose(&format!("2001:db8:0:{host:x}::2")));
        let nets: Vec<_> = (0..200).map(of_net).collect();
        assert!(nets.iter().all(|(one, two)| one == two), "{by:?}");
        assert!((60..140).contains(&nets.iter().filter(|(one, _)| *one).count()), "{by:?}");
        assert_eq!(choose("::ffff:192.0.2.7"), choose("192.0.2.7"));
    }
}

#[test]
fn steps_are_taken_in_their_time_and_end_with_all() {
    let (canary, clock) = idle(&options(&[1.0, 10.0, 100.0]));
    let now = |canary: &Canary| {
        let snapshot = canary.snapshot();
        (snapshot.phase, snapshot.weight, snapshot.next, snapshot.waits)
    };
    canary.look();
    assert_eq!(now(&canary), (Phase::Running, percent(1.0), Some(percent(10.0)), Some(Waits::Interval)));
    requests(&canary, true, 499, 0);
    requests(&canary, false, 5000, 100);
    clock.advance(Duration::from_secs(60));
    canary.look();
    assert_eq!(now(&canary).3, Some(Waits::Requests));
    requests(&canary, true, 1, 0);
    canary.look();
    assert_eq!(now(&canary), (Phase::Running, percent(10.0), Some(Weight::ALL), None));
    // Before its time, and then with too many failures, though perhaps by chance.
    requests(&canary, false, 5000, 100);
    requests(&canary, true, 500, 60);
    canary.look();
    assert_eq!(now(&canary).3, Some(Waits::Interval));
    clock.advance(Duration::from_secs(60));
    canary.look();
    assert_eq!(now(&canary).3, Some(Waits::Errors));
    requests(&canary, true, 1000, 250);
    requests(&canary, false, 10_000, 100);
    canary.look();
    assert_eq!(now(&canary), (Phase::Promoted, Weight::ALL, None, None));
    let snapshot = canary.snapshot();
    let reasons: Vec<_> = snapshot.last.iter().map(|change| (change.from, change.to, change.reason)).collect();
    let (one, ten) = (percent(1.0), percent(10.0));
    assert_eq!(reasons, [(one, ten, Reason::Step), (ten, Weight::ALL, Reason::Step)]);
    assert_eq!((snapshot.transitions, snapshot.aborts, snapshot.canary.requests), (2, 0, 2000));
    assert_eq!((snapshot.canary.failures, snapshot.canary.window_requests), (12, 0));
}

#[test]
fn one_that_fails_is_aborted_and_stays_so() {
    let (canary, clock) = idle(&options(&[10.0, 50.0]));
    requests(&canary, false, 900, 100);
    requests(&canary, true, 100, 10);
    canary.look();
    let snapshot = canary.snapshot();
    assert_eq!((snapshot.phase, snapshot.weight, snapshot.reason), (Phase::Aborted, Weight::NONE, Reason::Errors));
    let measured = snapshot.last[0].measured.as_deref().unwrap();
    assert_eq!(measured, "10.00 % of 100 requests failed, of the stable version's 1.00 % of 900");
    clock.advance(Duration::from_secs(86_400));
    requests(&canary, false, 10_000, 0);
    canary.look();
    assert_eq!((canary.snapshot().phase, canary.snapshot().transitions), (Phase::Aborted, 1));
    // What was against it is forgotten.
    canary.resume();
    canary.look();
    assert_eq!((canary.snapshot().phase, canary.snapshot().weight), (Phase::Running, percent(10.0)));
    requests(&canary, false, 900, 100);
    requests(&canary, true, 100, 10);
    canary.look();
    assert_eq!((canary.snapshot().phase, canary.snapshot().aborts), (Phase::Aborted, 2));
}

#[test]
fn without_abort_it_only_goes_no_further() {
    let (canary, clock) = idle(&CanaryOptions { abort: false, ..options(&[10.0, 50.0]) });
    for _ in 0..3 {
        requests(&canary, false, 900, 100);
        requests(&canary, true, 600, 10);
        canary.look();
        clock.advance(Duration::from_secs(60));
    }
    let snapshot = canary.snapshot();
    assert_eq!((snapshot.phase, snapshot.weight, snapshot.transitions), (Phase::Held, percent(10.0), 1));
}

#[test]
fn one_that_is_slow_is_aborted_and_one_that_is_hardly_slower_is_not() {
    let run = |slow_ms: u64| {
        let (canary, clock) = idle(&options(&[50.0, 100.0]));
        for number in 0..2000 {
            for to_canary in [false, true] {
                let trial = canary.begin(&Choice { canary: to_canary, ..Choice::default() });
                // One in fifty is slow.
                let ms = if number % 50 > 0 {
                    10
                } else if to_canary {
                    slow_ms
                } else {
                    100
                };
                clock.advance(Duration::from_millis(ms));
                trial.finish(false);
            }
        }
        clock.advance(Duration::from_secs(60));
        canary.look();
        canary.snapshot()
    };
    let slow = run(200);
    assert_eq!((slow.phase, slow.reason), (Phase::Aborted, Reason::Latency));
    let measured = slow.last[0].measured.as_deref().unwrap();
    assert!(measured.starts_with("the 99th percentile of 2000 requests is 2"), "{measured}");
    assert_eq!(run(130).phase, Phase::Promoted);
    // Too slow to go on, but not so much that it could not be how it is counted.
    let between = run(155);
    assert_eq!((between.phase, between.waits), (Phase::Running, Some(Waits::Latency)));
}

#[test]
fn who_asked_and_who_left_say_nothing_of_failures() {
    let (canary, clock) = idle(&options(&[10.0, 50.0]));
    let forced = Choice { canary: true, forced: true, new_id: None };
    for _ in 0..1000 {
        canary.begin(&forced).finish(true);
        canary.begin(&Choice { canary: true, ..Choice::default() }).discard();
    }
    requests(&canary, false, 1000, 0);
    canary.look();
    let snapshot = canary.snapshot();
    assert_eq!((snapshot.phase, snapshot.canary.requests, snapshot.canary.failures), (Phase::Running, 1000, 1000));
    assert_eq!((snapshot.canary.window_requests, snapshot.canary.window_p99_us), (0, None));
    // Who did not wait for it has waited all the same.
    let left = canary.begin(&Choice { canary: true, ..Choice::default() });
    clock.advance(Duration::from_secs(5));
    drop(left);
    let snapshot = canary.snapshot();
    assert_eq!(snapshot.canary.window_requests, 0);
    assert!(snapshot.canary.window_p99_us.unwrap() >= 5_000_000);
}

#[test]
fn orders_are_followed_and_only_so_many_changes_kept() {
    let (canary, clock) = idle(&options(&[1.0, 10.0]));
    for number in 1..=40_u32 {
        canary.set_weight(percent(f64::from(number)));
        canary.set_weight(percent(f64::from(number)));
    }
    let snapshot = canary.snapshot();
    assert_eq!((snapshot.phase, snapshot.weight, snapshot.next), (Phase::Held, percent(40.0), None));
    assert_eq!((snapshot.transitions, snapshot.last.len()), (40, 16));
    assert_eq!(snapshot.last.last().map(|change| change.to), Some(percent(40.0)));
    // Held is not going on.
    requests(&canary, true, 1000, 0);
    requests(&canary, false, 1000, 0);
    clock.advance(Duration::from_secs(600));
    canary.look();
    assert_eq!(canary.snapshot().weight, percent(40.0));
    canary.set_weight(percent(5.0));
    canary.resume();
    assert_eq!((canary.snapshot().phase, canary.snapshot().next), (Phase::Running, Some(percent(10.0))));
    canary.promote();
    assert_eq!((canary.snapshot().phase, canary.snapshot().weight), (Phase::Promoted, Weight::ALL));
    canary.resume();
    assert_eq!((canary.snapshot().phase, canary.snapshot().weight), (Phase::Running, percent(1.0)));
}

#[test]
fn a_step_that_is_ordered_is_taken_at_once_and_goes_on_from_there() {
    let (canary, clock) = idle(&options(&[1.0, 10.0, 50.0, 100.0]));
    let now = |canary: &Canary| (canary.snapshot().phase, canary.snapshot().weight, canary.snapshot().reason);
    assert!(canary.step());
    assert_eq!(now(&canary), (Phase::Running, percent(10.0), Reason::Ordered));
    // From between two steps, where it is held.
    canary.set_weight(percent(20.0));
    assert!(canary.step());
    assert_eq!(now(&canary), (Phase::Running, percent(50.0), Reason::Ordered));
    // It is judged there as ever.
    requests(&canary, true, 1000, 0);
    requests(&canary, false, 1000, 0);
    canary.look();
    assert_eq!(canary.snapshot().waits, Some(Waits::Interval));
    clock.advance(Duration::from_secs(60));
    canary.set_weight(percent(50.0));
    assert!(canary.step());
    assert_eq!(now(&canary), (Phase::Promoted, Weight::ALL, Reason::Ordered));
    let transitions = canary.snapshot().transitions;
    assert!(!canary.step(), "it has all");
    canary.abort();
    assert!(!canary.step(), "an abort is undone by who resumes it");
    assert_eq!((now(&canary).0, canary.snapshot().transitions), (Phase::Aborted, transitions + 1));
    let (last, _) = idle(&options(&[1.0]));
    assert!(!last.step() && last.snapshot().weight == percent(1.0));
}

#[actix::test]
async fn the_owner_looks_by_itself_and_ends_with_its_handle() {
    let arbiter = actix::Arbiter::new();
    let clock = Monotonic::system();
    let options = options(&[10.0, 50.0]);
    let canary = Canary::start(beginning(&options), clock, Clock::system(), arbiter.handle());
    requests(&canary, false, 900, 100);
    requests(&canary, true, 100, 2);
    let since = Stopwatch::start();
    while canary.snapshot().phase != Phase::Aborted {
        assert!(since.elapsed() < Duration::from_secs(10), "it did not look");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let choice = canary.choose(&HeaderMap::new(), &caller(Some("u")));
    assert_eq!(choice, Choice::default());
    assert_eq!(canary.snapshot().restarts, 0);
}
