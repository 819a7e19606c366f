//! Canaries of several instances through a real Redis: what one decides or is told all do, whoever is away or comes later.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidegate::gateway::Gateway;
use tidegate::gateway::canary::{CanarySnapshot, Phase, Reason, Weight};

use crate::backend::Backend;
use crate::client;
use crate::gateway_canary::{gateway, named, snapshot};
use crate::services::{Line, Proxy, Service, fresh, redis, redis_client};
use crate::support::{Process, TestApp, eventually, within};
use crate::wire::{Wire, beside};

const GET: &str = "GET / HTTP/1.1\r\nhost: t\r\n\r\n";
/// What the documentation promises, and something for a machine that is busy.
const SOON: Duration = Duration::from_secs(8);

/// Settings of instances that share.
struct Shared {
    stable: Backend,
    next: Backend,
    prefix: String,
    settings: &'static str,
}

impl Shared {
    fn new(next_fails: Option<u64>, settings: &'static str) -> Self {
        let (stable, next) = (named("stable", None), named("next", next_fails));
        Self { stable, next, prefix: fresh("canaries-"), settings }
    }

    fn toml(&self, redis: &str) -> String {
        let nodes: Vec<&str> = redis.split(',').collect();
        let settings = format!("{}\n[gateway.limiter]\nurl = {nodes:?}\nprefix = \"{}\"", self.settings, self.prefix);
        gateway(&self.stable.address.to_string(), &self.next.address.to_string(), &settings)
    }

    async fn start(&self, redis: &str) -> Instance {
        let app = TestApp::with_gateway(&self.toml(redis), &[]).await;
        let gateway = app.app().gateway().unwrap().clone();
        Instance { app, gateway }
    }

    /// Keys of releases.
    fn keys(&self, redis: &str) -> Vec<String> {
        let pattern = format!("{}gateway:canary:*", self.prefix);
        deadpool_redis::redis::cmd("KEYS").arg(pattern).query(&mut redis_client(redis)).unwrap()
    }
}

struct Instance {
    app: TestApp,
    gateway: Gateway,
}

impl Instance {
    fn now(&self) -> CanarySnapshot {
        snapshot(&self.gateway)
    }

    fn stands(&self) -> (Phase, Weight) {
        (self.now().phase, self.now().weight)
    }

    async fn order(&self, order: Value) {
        let url = format!("{}/api/v1/admin/routes/all/canary", self.app.admin());
        let answer = client::send("POST", &url, &[("content-type", "application/json")], &order).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    /// Sends requests until that is so.
    async fn send(&self, until: impl Fn(&CanarySnapshot) -> bool + Send + 'static) {
        let (at, gateway) = (self.app.gateway(), self.gateway.clone());
        beside(move || {
            let begun = Instant::now();
            let mut wire = Wire::to(&at);
            while !until(&snapshot(&gateway)) {
                assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", snapshot(&gateway));
                for _ in 0..20 {
                    wire.ask(GET);
                }
            }
        })
        .await;
    }

    async fn health(&self) -> Option<String> {
        self.app.get("/health").await.json()["gateway"]["canaries"].as_str().map(String::from)
    }
}

fn percent(percent: f64) -> Weight {
    Weight::percent(percent).unwrap()
}

/// All stand there, and know that the others do.
async fn all(instances: &[&Instance], phase: Phase, weight: f64) {
    let there =
        async || instances.iter().all(|one| one.stands() == (phase, percent(weight)) && one.now().shared == Some(true));
    let begun = Instant::now();
    within(SOON, &format!("all are {phase:?} at {weight} %"), there).await;
    println!("all {} are {phase:?} at {weight} % after {} ms", instances.len(), begun.elapsed().as_millis());
}

#[actix_web::test]
async fn an_abort_and_an_order_reach_all_and_who_comes_later() {
    let shared = Shared::new(Some(3), "steps = [50, 100]\nheader = \"x-canary\"");
    let (a, b, c) = (shared.start(redis()).await, shared.start(redis()).await, shared.start(redis()).await);
    all(&[&a, &b, &c], Phase::Running, 50.0).await;
    a.send(|now| now.phase == Phase::Aborted).await;
    all(&[&a, &b, &c], Phase::Aborted, 0.0).await;
    let (told, heard) = (a.now(), b.now());
    assert_eq!((heard.reason, heard.since, heard.aborts), (Reason::Errors, told.since, 1));
    assert_eq!((told.last[0].here, heard.last[0].here), (true, false));
    assert_eq!(told.last[0].measured, heard.last[0].measured);
    assert_eq!(client::get_with(&b.app.gateway(), &[("x-canary", "always")]).await.text(), "stable");
    // Without a file of its own it has it before it takes a request.
    let later = shared.start(redis()).await;
    assert_eq!((later.stands(), later.now().since), ((Phase::Aborted, Weight::NONE), told.since));
    assert_eq!(client::get_with(&later.app.gateway(), &[("x-canary", "always")]).await.text(), "stable");

    b.order(json!("resume")).await;
    all(&[&a, &b, &c, &later], Phase::Running, 50.0).await;
    c.order(json!({"weight": 12.5})).await;
    all(&[&a, &b, &c, &later], Phase::Held, 12.5).await;
    later.order(json!("promote")).await;
    all(&[&a, &b, &c, &later], Phase::Promoted, 100.0).await;
    let another = shared.start(redis()).await;
    assert_eq!(another.stands(), (Phase::Promoted, Weight::ALL));
    let changes: Vec<_> = another.now().last.iter().map(|change| (change.phase, change.to)).collect();
    let percents = [(Phase::Aborted, 0.0), (Phase::Running, 50.0), (Phase::Held, 12.5), (Phase::Promoted, 100.0)];
    assert_eq!(changes, percents.map(|(phase, weight)| (phase, percent(weight))));
    let metrics = another.app.get("/metrics").await.text();
    assert!(metrics.contains("tidegate_canary_shared{route=\"all\"} 1"), "{metrics}");
    assert_eq!(another.health().await, None);
}

#[actix_web::test]
async fn a_step_of_one_is_taken_by_all_and_one_restarted_alone_keeps_who_is_in() {
    let shared = Shared::new(None, "steps = [20, 60]\ninterval = \"300ms\"\nmin_requests = 50\nmax_p99_ratio = 1000.0");
    let (a, b) = (shared.start(redis()).await, shared.start(redis()).await);
    all(&[&a, &b], Phase::Running, 20.0).await;
    // Only the first has requests to judge by.
    a.send(|now| now.weight == percent(60.0)).await;
    all(&[&a, &b], Phase::Running, 60.0).await;
    let now = b.now();
    assert_eq!((now.transitions, now.reason, now.canary.requests), (1, Reason::Step, 0));
    // A server of its own folder, killed and without the folder, is where the others are at its first request.
    let folder = tempfile::tempdir().unwrap();
    for data in ["one", "two"] {
        let process = Process::with_gateway(&folder.path().join(data), &shared.toml(redis()), &[]);
        let routes = client::get(&format!("{}/api/v1/admin/routes", process.admin)).await.json();
        assert_eq!(routes["data"][0]["canary"]["weight"], 60.0);
        process.kill();
    }
}

#[actix_web::test]
async fn while_redis_is_down_each_goes_on_and_then_the_abort_wins() {
    let own = Service::start("redis", &[]);
    let shared = Shared::new(None, "steps = [10, 20, 50]\ninterval = \"1h\"");
    let (a, b, c) =
        (shared.start(&own.address).await, shared.start(&own.address).await, shared.start(&own.address).await);
    all(&[&a, &b, &c], Phase::Running, 10.0).await;
    own.kill(None);
    within(Duration::from_secs(10), "all notice", async || {
        let mut told = true;
        for one in [&a, &b, &c] {
            told &= one.health().await.is_some_and(|why| why.contains("cannot be shared: Redis"));
        }
        told
    })
    .await;
    assert_eq!(a.app.get("/health").await.json()["gateway"]["status"], "degraded");
    // Each acts as if it were alone.
    a.order(json!({"weight": 40.0})).await;
    b.order(json!("abort")).await;
    c.order(json!("promote")).await;
    assert_eq!(
        [a.stands(), b.stands(), c.stands()].map(|(phase, _)| phase),
        [Phase::Held, Phase::Aborted, Phase::Promoted]
    );
    assert_eq!(a.now().shared, Some(false));
    // Who starts now without anything is on its own too, and is not kept from it.
    let alone = shared.start(&own.address).await;
    eventually("it begins", async || client::get(&alone.app.gateway()).await.status == 200).await;
    assert_eq!(alone.stands(), (Phase::Running, percent(10.0)));
    own.restart();
    within(Duration::from_secs(15), "the abort wins", async || {
        [&a, &b, &c, &alone].iter().all(|one| one.stands().0 == Phase::Aborted && one.now().shared == Some(true))
    })
    .await;
    eventually("all is well", async || a.health().await.is_none() && alone.health().await.is_none()).await;
    // Who knows of it may undo it.
    a.order(json!("resume")).await;
    all(&[&a, &b, &c, &alone], Phase::Running, 10.0).await;
    // A Redis that has lost all is told again.
    b.order(json!({"weight": 33.0})).await;
    all(&[&a, &b, &c, &alone], Phase::Held, 33.0).await;
    let _: () = deadpool_redis::redis::cmd("FLUSHALL").query(&mut redis_client(&own.address)).unwrap();
    within(SOON, "it is there again", async || shared.keys(&own.address).len() == 1).await;
    let later = shared.start(&own.address).await;
    assert_eq!(later.stands(), (Phase::Held, percent(33.0)));
    all(&[&a, &b, &c, &alone, &later], Phase::Held, 33.0).await;
}

#[actix_web::test]
async fn an_abort_whose_answers_are_lost_arrives_once() {
    let shared = Shared::new(None, "steps = [10, 50]\ninterval = \"1h\"");
    let line = Proxy::to(redis());
    let far = shared.start(&format!("redis://{}", line.address)).await;
    let near = shared.start(redis()).await;
    all(&[&far, &near], Phase::Running, 10.0).await;
    line.set(Line::Swallow);
    far.order(json!("abort")).await;
    within(SOON, "it arrives", async || near.stands() == (Phase::Aborted, Weight::NONE)).await;
    near.order(json!("resume")).await;
    within(Duration::from_secs(10), "it is missed", async || far.health().await.is_some()).await;
    assert_eq!(far.stands().0, Phase::Aborted);
    line.cut();
    line.set(Line::Good);
    within(Duration::from_secs(10), "it hears that it was resumed", async || far.stands().0 == Phase::Running).await;
    all(&[&far, &near], Phase::Running, 10.0).await;
    assert_eq!((near.now().aborts, near.now().transitions), (1, 2));
}

#[actix_web::test]
async fn other_settings_are_another_release_and_what_is_foreign_is_left_alone() {
    let old = Shared::new(None, "steps = [10, 50]");
    let new = Shared {
        prefix: old.prefix.clone(),
        settings: "steps = [5, 50]",
        stable: named("stable", None),
        next: named("next", None),
    };
    let (a, b) = (old.start(redis()).await, new.start(redis()).await);
    all(&[&a], Phase::Running, 10.0).await;
    all(&[&b], Phase::Running, 5.0).await;
    a.order(json!("abort")).await;
    b.order(json!({"weight": 7.0})).await;
    all(&[&a], Phase::Aborted, 0.0).await;
    all(&[&b], Phase::Held, 7.0).await;
    let second = new.start(redis()).await;
    assert_eq!(second.stands(), (Phase::Held, percent(7.0)));
    assert_eq!(a.stands(), (Phase::Aborted, Weight::NONE));
    let mut connection = redis_client(redis());
    let keys = old.keys(redis());
    assert_eq!(keys.len(), 2, "{keys:?}");
    for key in &keys {
        let phase: String = deadpool_redis::redis::cmd("HGET").arg(key).arg("phase").query(&mut connection).unwrap();
        let left: i64 = deadpool_redis::redis::cmd("PTTL").arg(key).query(&mut connection).unwrap();
        // One that was aborted is remembered for long, any other for as long as somebody has it.
        let hours = left as f64 / 3_600_000.0;
        match phase.as_str() {
            "aborted" => assert!((700.0..=720.0).contains(&hours), "{hours}"),
            "held" => assert!((0.4..=1.0).contains(&hours), "{hours}"),
            other => panic!("{other}"),
        }
    }
    // Somebody else's, and rubbish: neither is taken over, nor written over.
    for key in &keys {
        let _: () = deadpool_redis::redis::cmd("DEL").arg(key).query(&mut connection).unwrap();
        let _: () = deadpool_redis::redis::cmd("SET").arg(key).arg("theirs").query(&mut connection).unwrap();
    }
    let told = |why: Option<String>, key: &str| why.is_some_and(|why| why.contains("delete it") && why.contains(key));
    within(SOON, "it is told", async || told(a.health().await, "gateway:canary:all:")).await;
    for key in &keys {
        let _: () = deadpool_redis::redis::cmd("DEL").arg(key).query(&mut connection).unwrap();
        let mut command = deadpool_redis::redis::cmd("HSET");
        let _: () = command.arg(key).arg("token").arg("1-2-3").arg("state").arg("{}").query(&mut connection).unwrap();
    }
    let unreadable = async || b.health().await.is_some_and(|why| why.contains("a state that cannot be read"));
    within(SOON, "that is told", unreadable).await;
    assert_eq!((a.stands(), b.stands().1), ((Phase::Aborted, Weight::NONE), percent(7.0)));
    for key in &keys {
        let _: () = deadpool_redis::redis::cmd("DEL").arg(key).query(&mut connection).unwrap();
    }
    all(&[&a], Phase::Aborted, 0.0).await;
    all(&[&b, &second], Phase::Held, 7.0).await;
    within(SOON, "all is well", async || a.health().await.is_none() && b.health().await.is_none()).await;
}

#[actix_web::test]
async fn an_instance_may_keep_to_itself_and_a_new_config_is_shared_at_once() {
    let shared = Shared::new(None, "steps = [10, 50]\n[gateway.canaries]\nshare = false");
    let (a, b) = (shared.start(redis()).await, shared.start(redis()).await);
    a.order(json!("abort")).await;
    assert_eq!((a.now().shared, shared.keys(redis()).len()), (None, 0));
    assert_eq!(b.stands().0, Phase::Running);
    // A release that comes with a reload is withheld until it is known what became of it elsewhere.
    let shared = Shared::new(None, "steps = [10, 50]\nheader = \"x-canary\"");
    let line = Proxy::to(redis());
    let (a, b) = (shared.start(redis()).await, shared.start(&format!("redis://{}", line.address)).await);
    let mut options = (*a.gateway.options()).clone();
    options.routes[0].canary.as_mut().unwrap().release = String::from("2");
    a.gateway.apply(options.clone()).unwrap();
    all(&[&a], Phase::Running, 10.0).await;
    a.order(json!("abort")).await;
    all(&[&a], Phase::Aborted, 0.0).await;
    assert_eq!(b.stands().0, Phase::Running, "it has another release");
    line.set(Line::Slow);
    b.gateway.apply(options).unwrap();
    let begun = Instant::now();
    let count = shared.next.count();
    while b.stands().0 != Phase::Aborted {
        assert!(begun.elapsed() < SOON);
        let answer = client::get_with(&b.app.gateway(), &[("x-canary", "always")]).await;
        assert_eq!(answer.text(), "stable");
    }
    assert_eq!(shared.next.count(), count, "it got nothing");
}

#[actix_web::test]
async fn a_cluster_shares_as_one_server_does() {
    let cluster = Service::start("redis-cluster", &[]);
    let shared = Shared::new(None, "steps = [10, 50]");
    let (a, b) = (shared.start(&cluster.address).await, shared.start(&cluster.address).await);
    within(Duration::from_secs(20), "both share", async || [&a, &b].iter().all(|one| one.now().shared == Some(true)))
        .await;
    b.order(json!("abort")).await;
    all(&[&a, &b], Phase::Aborted, 0.0).await;
    a.order(json!("resume")).await;
    all(&[&a, &b], Phase::Running, 10.0).await;
    assert_eq!(a.now().transitions, 2);
}
