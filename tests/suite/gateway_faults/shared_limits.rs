//! One limit over three servers with one Redis.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{Ask, Load, way};
use crate::backend::{Backend, Reply};
use crate::services::{fresh, redis};
use crate::support::{Process, within};

/// A second, and at once beyond that.
const RATE: f64 = 100.0;
const BURST: f64 = 40.0;

/// When requests arrived at the service, under three times the limit with nine tenths of it at one server. With `dies`, that
/// one is killed in the middle, and its clients go to another.
async fn arrivals(dies: bool) -> (Vec<Instant>, Duration) {
    let arrived: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let notes = arrived.clone();
    let backend = Backend::start(move |_| {
        notes.lock().unwrap().push(Instant::now());
        Reply::ok("ok")
    });
    let backend = backend.forgetful();
    let prefix = fresh("faults");
    let mut toml = format!("workers = 1\n[gateway.limiter]\nurl = [{:?}]\nprefix = \"{prefix}\"\n", redis());
    toml.push_str(&format!("[gateway.limits.all]\nby = [\"route\"]\nlimit = 300\nperiod = \"3s\"\nburst = {BURST}\n"));
    toml.push_str(&super::service("a", &[backend.address.to_string()], ""));
    toml.push_str(&way("all", "/", "a", "limits = [\"all\"]"));
    let folders: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let servers = folders.iter().map(|folder| Process::with_gateway(&folder.path().join("data"), &toml, &[]));
    let mut servers: Vec<Process> = servers.collect();
    let addresses: Vec<_> = servers.iter().map(|server| server.gateway.unwrap()).collect();
    let begun = Instant::now();
    let of = |client: usize, first: usize| match client {
        0 => addresses[1],
        1 => addresses[2],
        _ => addresses[first],
    };
    // Twenty clients with fifteen requests a second.
    let pace = Duration::from_millis(66);
    let ask = |_, _| Some(Ask::get("/"));
    let mut loads = vec![Load::paced(20, pace, |client| of(client, 0), ask)];
    let passes = async |most: u64| {
        let most = Duration::from_secs(most);
        within(most + Duration::from_secs(10), "time passes", async || begun.elapsed() >= most).await;
    };
    passes(4).await;
    if dies {
        servers.remove(0).kill();
        loads.remove(0).stop();
        loads.push(Load::paced(20, pace, |client| of(client, 1), ask));
    }
    passes(8).await;
    let took = begun.elapsed();
    loads.iter().for_each(Load::stop);
    for load in loads {
        let all = load.end().await;
        assert!(all.iter().all(|went| [200, 429].contains(&went.status())), "{:?}", super::failures(&all).first());
        let refused = |went: &super::Went| went.got.as_ref().is_some_and(|got| got.header("retry-after").is_some());
        assert!(all.iter().filter(|went| went.status() == 429).all(refused));
    }
    let arrived = arrived.lock().unwrap().clone();
    (arrived, took)
}

fn within_the_limit(arrived: &[Instant], took: Duration, least: f64) {
    // What was granted may be on its way for so long, on a busy machine.
    let late = 0.1;
    let mut worst = 0.0f64;
    for (n, first) in arrived.iter().enumerate() {
        for (m, last) in arrived.iter().enumerate().skip(n) {
            let over = (m - n + 1) as f64 - (BURST + 1.0 + RATE * ((*last - *first).as_secs_f64() + late));
            worst = worst.max(over);
        }
    }
    let granted = arrived.len() as f64 / (BURST + RATE * took.as_secs_f64());
    println!("{} in {took:?}: {granted:.3} of what is allowed, at most {worst:.1} too many", arrived.len());
    assert!(worst <= 0.0, "{worst} too many in some window");
    assert!(granted >= least, "only {granted:.3} of the limit was granted");
}

#[actix_web::test]
async fn three_servers_grant_one_limit_and_all_of_it() {
    let (arrived, took) = arrivals(false).await;
    within_the_limit(&arrived, took, 0.95);
}

#[actix_web::test]
async fn one_of_three_servers_with_a_limit_is_killed() {
    let (arrived, took) = arrivals(true).await;
    // What it had leased is lost until its leases end.
    within_the_limit(&arrived, took, 0.9);
}
