//! Who gets how much when targets differ.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::{Ask, Load, ask, at, failures, gateway, start};
use crate::backend::{Backend, Reply};

fn taking(millis: u64) -> Backend {
    Backend::start(move |_| Reply::ok("ok").after(Duration::from_millis(millis))).forgetful()
}

/// How many requests each of two fast targets and a slow one gets.
async fn shares(balance: &str) -> Vec<u64> {
    let backends = [taking(2), taking(60), taking(2)];
    let toml = gateway(&[&backends[0], &backends[1], &backends[2]], &format!("balance = \"{balance}\""), "");
    let app = start(&toml).await;
    let address = at(&app);
    let load = Load::start(8, |_| address, |_, i| (i < 100).then(|| Ask::get("/")));
    let all = load.end().await;
    assert_eq!(failures(&all), Vec::<String>::new());
    app.stop().await;
    backends.iter().map(Backend::count).collect()
}

#[actix_web::test]
async fn a_slow_target_gets_less_where_load_counts() {
    for balance in ["least_conn", "p2c_ewma"] {
        let counts = shares(balance).await;
        println!("{balance}: {counts:?}");
        assert_eq!(counts.iter().sum::<u64>(), 800);
        assert!(counts[1] >= 1 && counts[1] < 200, "{balance}: {counts:?}");
        assert!(counts[0] > 200 && counts[2] > 200, "{balance}: {counts:?}");
    }
    let counts = shares("round_robin").await;
    assert!(counts.iter().all(|count| (260..=275).contains(count)), "in turn, whatever they take: {counts:?}");
}

#[actix_web::test]
async fn sessions_stick_to_their_targets_and_move_only_if_they_must() {
    let name = |n: usize| Backend::start(move |_| Reply::ok(&n.to_string()));
    let backends = [name(0), name(1), name(2)];
    let upstream = "balance = \"consistent_hash\"\nhash_on = \"header:x-session\"\nfail_timeout = \"10s\"";
    let toml = gateway(&[&backends[0], &backends[1], &backends[2]], upstream, "");
    let app = start(&toml).await;
    let address = at(&app);
    let places = |times: usize| {
        let mut of: HashMap<usize, HashSet<String>> = HashMap::new();
        for session in (0..30).cycle().take(30 * times) {
            let got = ask(address, "GET", &format!("/{times}"), &format!("x-session: s{session}\r\n"), "");
            assert_eq!(got.status, 200, "{got:?}");
            of.entry(session).or_default().insert(got.body);
        }
        of
    };
    let before = places(5);
    assert!(before.values().all(|targets| targets.len() == 1), "{before:?}");
    let used: HashSet<_> = before.values().flatten().collect();
    assert_eq!(used.len(), 3);
    backends[1].kill();
    // Those of the dead one go elsewhere by a retry until it is left alone, the others stay.
    let after = places(4);
    for (session, targets) in &before {
        if !targets.contains("1") {
            assert_eq!(Some(targets), after.get(session), "session {session} moved without need");
        }
    }
    assert!(after.values().flatten().all(|target| target != "1"));
    app.stop().await;
}
