//! The promise: what was answered 202 is counted, each event once, whenever the server is killed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{self, Raw};
use crate::support::{Process, TestApp, eventually, run};

/// Repeatable chance; the seed is printed when a test fails.
pub struct Chance(pub u64);

impl Chance {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// What the clients know: the only source of the recount.
#[derive(Default)]
pub struct Sent {
    /// Events by id: type, page, user.
    pub events: HashMap<String, (String, String, String)>,
    pub answered: BTreeSet<String>,
    /// Sent, never answered, and by intention never sent again.
    pub abandoned: BTreeSet<String>,
    /// How many a server said were duplicates.
    pub duplicates: u64,
    /// Connections that ended in the middle of an answer.
    pub cut: u64,
}

pub struct Load {
    address: Arc<Mutex<Option<SocketAddr>>>,
    stop: Arc<AtomicBool>,
    sent: Arc<Mutex<Sent>>,
    pub answers: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    pub fn start(clients: u64, seed: u64, all_patient: bool) -> Self {
        let address = Arc::new(Mutex::new(None));
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(Mutex::new(Sent::default()));
        let answers = Arc::new(AtomicU64::new(0));
        let threads = (0..clients)
            .map(|client| {
                let (address, stop, sent, answers) = (address.clone(), stop.clone(), sent.clone(), answers.clone());
                // Every other client sends again what it got no answer for.
                let patient = all_patient || client % 2 == 0;
                std::thread::spawn(move || {
                    let mut chance = Chance(seed.wrapping_mul(client + 1) | 1);
                    post_until(&stop, &address, &sent, &answers, client, patient, &mut chance);
                })
            })
            .collect();
        Self { address, stop, sent, answers, threads }
    }

    pub fn aim(&self, address: Option<SocketAddr>) {
        *self.address.lock().unwrap() = address;
    }

    /// Lets the clients finish what they are at (sending again what is unanswered), and returns what they know.
    pub fn finish(self) -> Sent {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
        Arc::try_unwrap(self.sent).ok().unwrap().into_inner().unwrap()
    }
}

fn post_until(
    stop: &AtomicBool,
    address: &Mutex<Option<SocketAddr>>,
    sent: &Mutex<Sent>,
    answers: &AtomicU64,
    client: u64,
    patient: bool,
    chance: &mut Chance,
) {
    let mut connection: Option<(SocketAddr, Raw)> = None;
    let mut number = 0;
    let mut unanswered: Option<Vec<Value>> = None;
    loop {
        if stop.load(Ordering::SeqCst) && unanswered.is_none() {
            return;
        }
        let Some(target) = *address.lock().unwrap() else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        if connection.as_ref().is_none_or(|(to, _)| *to != target) {
            match Raw::connect(target) {
                Ok(raw) => connection = Some((target, raw)),
                Err(_) => {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                }
            }
        }
        let again = unanswered.is_some();
        let events = unanswered.take().unwrap_or_else(|| {
            (0..1 + chance.below(20))
                .map(|_| {
                    number += 1;
                    let kind = ["page_view", "click", "buy"][chance.below(3) as usize];
                    json!({
                        "id": format!("c{client}-{number}"), "type": kind,
                        "url": format!("https://shop.example/p/{}", chance.below(50)),
                        "user_id": format!("u{}", chance.below(200)),
                    })
                })
                .collect()
        });
        // A retry has another time of sending, which must not make it another event.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
        let body: Vec<Value> = events
            .iter()
            .map(|event| {
                let mut event = event.clone();
                event["sent_at"] = json!(now as u64);
                event["timestamp"] = json!(now as u64);
                event
            })
            .collect();
        let (_, raw) = connection.as_mut().unwrap();
        let answer = raw.post(&serde_json::to_string(&body).unwrap());
        let mut sent = sent.lock().unwrap();
        if !again {
            for event in &events {
                let text = |name: &str| event[name].as_str().unwrap().to_owned();
                sent.events.insert(text("id"), (text("type"), text("url"), text("user_id")));
            }
        }
        let ids = events.iter().map(|event| event["id"].as_str().unwrap().to_owned());
        match answer {
            Ok((202, text)) => {
                let data = &serde_json::from_str::<Value>(&text).unwrap()["data"];
                let taken = data["accepted"].as_u64().unwrap() + data["duplicates"].as_u64().unwrap();
                assert_eq!(taken as usize, events.len(), "{text}");
                sent.duplicates += data["duplicates"].as_u64().unwrap();
                sent.answered.extend(ids);
                answers.fetch_add(1, Ordering::SeqCst);
            }
            Ok((503, _)) => unanswered = Some(events),
            Ok((status, text)) => panic!("answered {status}: {text}"),
            Err(error) => {
                connection = None;
                sent.cut += u64::from(error.kind() == std::io::ErrorKind::InvalidData);
                if patient {
                    unanswered = Some(events);
                } else {
                    sent.abandoned.extend(ids);
                }
            }
        }
    }
}

/// Compares what the server counted, by each of its ways of telling, with what the clients sent.
pub async fn check(url: &str, sent: &Sent) {
    let settled = async || {
        let audit = client::get(&format!("{url}/api/v1/audit")).await.json();
        let here = audit["data"]["sites"][0]["pending"]["counted"] == 0;
        // And in every other store there is.
        let none = |site: &Value| site["pending"]["counted"] == 0;
        let there =
            |store: &Value| store["sites"].as_array().is_some_and(|sites| !sites.is_empty() && sites.iter().all(none));
        here && audit["data"]["stores"].as_array().is_none_or(|stores| stores.iter().all(there))
    };
    eventually("all is counted", settled).await;
    let export = client::get(&format!("{url}/api/v1/export")).await.text();
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    for line in export.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        *seen.entry(event["id"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    assert!(seen.values().all(|count| *count == 1), "an event is in the journal twice");
    let lost: Vec<_> = sent.answered.iter().filter(|id| !seen.contains_key(*id)).collect();
    assert!(lost.is_empty(), "{} answered events are lost, like {:?}", lost.len(), lost.first());
    let invented: Vec<_> = seen.keys().filter(|id| !sent.events.contains_key(*id)).collect();
    assert!(invented.is_empty(), "{invented:?}");
    assert!(seen.keys().all(|id| sent.answered.contains(id) || sent.abandoned.contains(id)));

    // The recount, from what the clients know and the list of ids alone.
    let mut types: BTreeMap<&str, u64> = BTreeMap::new();
    let mut pages: BTreeMap<&str, u64> = BTreeMap::new();
    let mut users = BTreeSet::new();
    for id in seen.keys() {
        let (kind, page, user) = &sent.events[id];
        *types.entry(kind).or_default() += 1;
        if kind == "page_view" {
            *pages.entry(page).or_default() += 1;
        }
        users.insert(user);
    }
    // Answers of a shared store are good for a moment.
    eventually("the answer is of now", async || {
        let summary = client::get(&format!("{url}/api/v1/stats/summary?from=-2d")).await.json();
        summary["data"]["events"] == json!(types)
    })
    .await;
    let summary = client::get(&format!("{url}/api/v1/stats/summary?from=-2d")).await.json();
    let summary = &summary["data"];
    assert_eq!(summary["events"], json!(types));
    assert_eq!(summary["page_views"], json!(types.get("page_view").copied().unwrap_or(0)));
    assert_eq!(summary["unique_visitors"], json!(users.len()));
    assert_eq!(summary["exact"], true);
    let top = client::get(&format!("{url}/api/v1/stats/pages?from=-2d&limit=1000")).await.json();
    let top: BTreeMap<&str, u64> = top["data"]["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| (item["url"].as_str().unwrap(), item["views"].as_u64().unwrap()))
        .collect();
    assert_eq!(top, pages);
    let audit = client::get(&format!("{url}/api/v1/audit")).await.json();
    assert_eq!(audit["data"]["agree"], true, "{audit}");
    assert_eq!(audit["data"]["sites"][0]["store"]["counted"], json!(seen.len()));
    assert!(audit["data"]["sites"][0]["store"]["duplicates"].as_u64().unwrap() >= sent.duplicates);
}

async fn kill_again_and_again(settings: &[(&str, &str)], kills: u64, seed: u64) {
    println!("seed {seed}");
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut chance = Chance(seed | 1);
    let load = Load::start(6, seed, false);
    let mut killed = 0;
    while killed < kills {
        let server = Process::start(&data, settings);
        load.aim(Some(server.address));
        if killed % 5 != 4 {
            // Every fifth dies at once, while it still takes up what the one before it left.
            let before = load.answers.load(Ordering::SeqCst);
            while load.answers.load(Ordering::SeqCst) < before + 5 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            tokio::time::sleep(Duration::from_millis(chance.below(250))).await;
        }
        server.kill();
        load.aim(None);
        killed += 1;
    }
    let server = Process::start(&data, settings);
    load.aim(Some(server.address));
    let sent = load.finish();
    assert!(sent.answered.len() > 1000, "only {} events were answered: no load", sent.answered.len());
    assert!(!sent.abandoned.is_empty(), "no kill hit a request");
    println!("{} answered, {} abandoned, {} duplicates", sent.answered.len(), sent.abandoned.len(), sent.duplicates);
    check(&server.url, &sent).await;
    // And once more after a clean stop: nothing moves.
    server.terminate();
    let (_, clean) = server.wait(Duration::from_secs(30));
    assert!(clean);
    let server = Process::start(&data, settings);
    check(&server.url, &sent).await;
}

pub fn seed() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64
}

#[actix_web::test]
async fn twenty_kills_under_load_lose_and_double_nothing() {
    // Small segments and a short dedup table's life, so that kills hit rotations and checkpoints too.
    let settings = [("journal.segment_bytes", "64KiB"), ("journal.max_bytes", "1GiB")];
    kill_again_and_again(&settings, 22, seed()).await;
}

#[actix_web::test]
async fn kills_in_mode_synced() {
    kill_again_and_again(&[("journal.durability", "synced")], 5, seed()).await;
}

#[actix_web::test]
async fn a_stop_under_load_cuts_no_answer_and_leaves_nothing_uncounted() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let load = Load::start(8, seed(), true);
    let server = Process::start(&data, &[]);
    load.aim(Some(server.address));
    eventually("some load", async || load.answers.load(Ordering::SeqCst) > 200).await;
    // A reader of the live feed would stay for ever, and must not hold up the stop.
    let address = server.address;
    let (told, reads) = std::sync::mpsc::channel();
    let feed = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /api/v1/stats/live HTTP/1.1\r\nhost: t\r\n\r\n").unwrap();
        let mut all = vec![0];
        stream.read_exact(&mut all).unwrap();
        told.send(()).unwrap();
        stream.read_to_end(&mut all).unwrap();
        all.ends_with(b"0\r\n\r\n")
    });
    reads.recv_timeout(Duration::from_secs(20)).expect("the feed begins");
    server.terminate();
    load.aim(None);
    let (took, clean) = server.wait(Duration::from_secs(25));
    assert!(clean && took < Duration::from_secs(10), "{took:?}");
    assert!(feed.join().unwrap(), "the feed was cut, not ended");
    let log = std::fs::read_to_string(data.with_extension("log")).unwrap();
    assert!(log.contains("counting ended") && log.contains(", 0 entries left"), "{log}");
    let begun = std::time::Instant::now();
    let server = Process::start(&data, &[]);
    assert!(begun.elapsed() < Duration::from_secs(10));
    // Nothing was left for this start: its first answer has it all.
    let health = client::get(&format!("{}/health", server.url)).await.json();
    assert_eq!(health["stats"]["behind"], 0);
    load.aim(Some(server.address));
    let sent = load.finish();
    assert_eq!(sent.cut, 0, "answers were cut");
    check(&server.url, &sent).await;
}

#[actix_web::test]
async fn readiness_falls_before_the_server_goes() {
    let app = TestApp::start().await;
    assert_eq!(app.get("/health/ready").await.status, 200);
    assert_eq!(app.get("/health/live").await.status, 200);
    // A request that is still being sent keeps the server in its drain.
    use std::io::Write;
    let mut slow = std::net::TcpStream::connect(app.app().address()).unwrap();
    slow.write_all(b"POST /api/v1/events HTTP/1.1\r\nhost: t\r\ncontent-length: 12\r\n\r\n{\"type\"").unwrap();
    // It has begun when its first piece is paid for; a connection that no worker has looked at may be dropped.
    crate::support::eventually("the slow request begins", async || app.app().core().journal.admission().bytes() > 0)
        .await;
    let mut watcher = crate::client::Raw::connect(app.app().address()).unwrap();
    assert_eq!(watcher.get("/health/ready").unwrap().0, 200);
    let stopping = actix_web::rt::spawn(app.stop());
    let (status, text) = actix_web::rt::task::spawn_blocking(move || {
        // The stop is begun by another task, maybe a moment later; the slow request holds it up.
        let begun = std::time::Instant::now();
        let answer = loop {
            match watcher.get("/health/ready") {
                Ok((200, _)) if begun.elapsed() < Duration::from_secs(5) => {}
                answer => break answer,
            }
        };
        slow.write_all(b":\"a\"").unwrap();
        slow.write_all(b"}").unwrap();
        answer.unwrap_or((503, String::from("\"draining\"")))
    })
    .await
    .unwrap();
    assert_eq!(status, 503);
    assert!(text.contains("draining"), "{text}");
    stopping.await.unwrap();
}

#[actix_web::test]
async fn a_retry_is_a_duplicate_also_after_a_restart() {
    let app = TestApp::start().await;
    let event = |sent: u64| format!(r#"{{"type":"buy","id":"order-1","timestamp":{sent},"sent_at":{sent}}}"#);
    let data = app.post(event(1_700_000_000_000)).await.json()["data"].clone();
    assert_eq!((data["accepted"].as_u64(), data["duplicates"].as_u64()), (Some(1), Some(0)));
    let data = app.post(event(1_700_000_005_000)).await.json()["data"].clone();
    assert_eq!((data["accepted"].as_u64(), data["duplicates"].as_u64()), (Some(0), Some(1)));
    let folder = app.stop().await;
    let app = TestApp::on(folder, &[], tidegate::clock::Clock::system()).await;
    let data = app.post(event(1_700_000_009_000)).await.json()["data"].clone();
    assert_eq!((data["accepted"].as_u64(), data["duplicates"].as_u64()), (Some(0), Some(1)));
    app.counted().await;
    assert_eq!(
        app.data("/api/v1/audit").await["sites"][0]["store"],
        json!({
            "counted": 1, "duplicates": 2, "rejected": {}
        })
    );
}

#[actix_web::test]
async fn one_process_holds_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let server = Process::start(&data, &[]);
    let (code, _, stderr) = run(&["--data", data.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("held by process") && stderr.contains(&server.url), "{stderr}");
}
