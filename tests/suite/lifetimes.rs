//! What ends, and what is forgotten of it: API keys, sessions, used tokens; on all three databases. And a disk that takes its time.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidegate::clock::{Clock, HOUR};
use tidegate::config::Config;
use tidegate::database::{Database, DatabaseError, Session, Value, Work};

use crate::identity::{
    CHEAP, NOON, code, coded, login, me, post, refresh, register, servers, tidegate, tokens, with_token,
};
use crate::support::{TestApp, eventually};

#[actix_web::test]
async fn an_api_key_ends_when_it_says_on_every_database() {
    // The server's clock stands still at what the command line takes for the beginning.
    let clock = Clock::manual(Clock::system().now());
    let settings = [("identity.refresh_interval", "100ms"), ("server.admin_key", "0123456789abcdef")];
    for (name, database, app) in servers(&settings, &clock).await {
        clock.set(Clock::system().now());
        let data = app.folder.path().join("data");
        let (fine, key, said) = tidegate(&data, &database, &["key", "create", "--name", "till", "--expires", "1s"]);
        assert!(fine, "{name}: {said}");
        eventually("the key is seen", async || me(&app.url, &key).await.status == 200).await;
        // It takes as long as it takes to get here: it ended a second after it was made.
        clock.set(Clock::system().now() + 1000);
        assert_eq!(code(&me(&app.url, &key).await), coded(401, "unauthorized"), "{name}");
        assert_eq!(code(&with_token(&app.url, "/api/v1/export", &key).await), coded(401, "unauthorized"), "{name}");
        let metrics = app.get("/metrics").await.text();
        assert!(metrics.contains("tidegate_tokens_rejected_total{reason=\"ended_key"), "{name}: {metrics}");
        app.stop().await;
    }
}

#[actix_web::test]
async fn a_session_ends_however_often_it_is_refreshed_on_every_database() {
    let clock = Clock::manual(NOON);
    let settings = [("identity.refresh_lifetime", "20m"), ("identity.session_lifetime", "1h")];
    for (name, _, app) in servers(&settings, &clock).await {
        let url = &app.url;
        register(url, "joe").await;
        let (_, mut token) = login(url, "joe").await;
        for minute in (10..60).step_by(10) {
            clock.advance(Duration::from_secs(600));
            let answer = refresh(url, &token).await;
            token = tokens(&answer).1;
            let left = answer.json()["data"]["refresh_expires_in"].as_i64().unwrap();
            assert_eq!(left, 60 * (60 - minute).min(20), "{name}, after {minute} minutes");
        }
        clock.advance(Duration::from_secs(599));
        let (access, token) = tokens(&refresh(url, &token).await);
        clock.advance(Duration::from_secs(1));
        assert_eq!(code(&refresh(url, &token).await), coded(401, "unauthorized"), "{name}");
        let seen = with_token(url, "/api/v1/auth/sessions", &access).await;
        assert_eq!(seen.json()["data"].as_array().map(Vec::len), Some(0), "{name}: {}", seen.text());
        app.stop().await;
    }
}

/// Runs a statement; the first column of the first row, if there is one.
struct Ask(&'static str, Vec<Value>);

impl Work for Ask {
    type Done = Option<i64>;
    type Error = DatabaseError;

    fn writes(&self) -> bool {
        true
    }

    async fn run<S: Session>(&self, s: &mut S, _: i64) -> Result<Option<i64>, DatabaseError> {
        s.rows(self.0, self.1.clone()).await?.first_mut().map(|row| row.int(0)).transpose()
    }
}

/// A line of its own to the database of a server.
fn beside(app: &TestApp, url: &str) -> Database {
    let env = [
        (String::from("TIDEGATE__CATALOG__URL"), url.to_owned()),
        (String::from("TIDEGATE__DATA__DIR"), app.folder.path().join("data").display().to_string()),
    ];
    let config = Config::load(None, env.into_iter()).unwrap();
    Database::new(&config.catalog, Clock::system()).unwrap()
}

async fn count(database: &Database, sql: &'static str) -> i64 {
    database.run(Ask(sql, vec![])).await.unwrap().unwrap()
}

const TOKENS: &str = "SELECT COUNT(*) FROM refresh_tokens";
const FAMILIES: &str = "SELECT COUNT(*) FROM token_families";

#[actix_web::test]
async fn used_tokens_do_not_pile_up_and_are_known_for_used_on_every_database() {
    let clock = Clock::manual(NOON);
    for (name, database, app) in servers(&[], &clock).await {
        let (url, beside) = (&app.url, beside(&app, &database));
        register(url, "joe").await;
        let (_, first) = login(url, "joe").await;
        let (_, other) = login(url, "joe").await;
        let mut token = first.clone();
        let mut held = vec![];
        for _ in 0..50 {
            clock.advance(Duration::from_secs(600));
            held.push(token.clone());
            token = tokens(&refresh(url, &token).await).1;
        }
        let rows = count(&beside, TOKENS).await;
        assert!(rows <= 4, "{name}: {rows} tokens of two sessions");
        // One of long ago, of which there is nothing any more: it was stolen.
        let before = app.get("/metrics").await.text();
        assert!(before.contains("tidegate_refresh_tokens_reused_total 0"), "{name}: {before}");
        assert_eq!(code(&refresh(url, &held[10]).await), coded(401, "unauthorized"), "{name}");
        assert_eq!(refresh(url, &token).await.status, 401, "{name}: its session ends");
        let after = app.get("/metrics").await.text();
        assert!(after.contains("tidegate_refresh_tokens_reused_total 1"), "{name}: {after}");
        let (_, other) = tokens(&refresh(url, &other).await);
        // What was never one ends nothing, also if it begins like one.
        for made_up in [format!("tgr_{}", "0".repeat(64)), format!("{}{}", &first[..36], "0".repeat(32))] {
            assert_eq!(refresh(url, &made_up).await.status, 401, "{name}");
        }
        let (_, other) = tokens(&refresh(url, &other).await);
        // Logging out by one of long ago.
        clock.advance(Duration::from_secs(1200));
        let (_, next) = tokens(&refresh(url, &other).await);
        clock.advance(Duration::from_secs(1200));
        let (_, last) = tokens(&refresh(url, &next).await);
        let out = post(url, "logout", &serde_json::json!({"refresh_token": other})).await;
        assert_eq!((out.status, refresh(url, &last).await.status), (204, 401), "{name}");

        // A session of before there were handles keeps what it used.
        let (_, mut token) = login(url, "joe").await;
        beside.run(Ask("UPDATE token_families SET handle = NULL WHERE revoked_at IS NULL", vec![])).await.unwrap();
        let old = token.clone();
        for _ in 0..5 {
            clock.advance(Duration::from_secs(1200));
            token = tokens(&refresh(url, &token).await).1;
        }
        assert_eq!(refresh(url, &old).await.status, 401, "{name}");
        assert_eq!(refresh(url, &token).await.status, 401, "{name}: it ends all the same");
        beside.close().await;
        app.stop().await;
    }
}

#[actix_web::test]
async fn what_has_ended_is_forgotten_by_and_by_on_every_database() {
    let clock = Clock::manual(NOON);
    for (name, database, app) in servers(&[("identity.refresh_interval", "100ms")], &clock).await {
        let (url, beside) = (&app.url, beside(&app, &database));
        register(url, "joe").await;
        let (_, kept) = login(url, "joe").await;
        // Many sessions, one of them with very many tokens, that end in a while.
        let ends = clock.now() + 2 * HOUR;
        let family = "INSERT INTO token_families (id, account_id, network, created_at, expires_at) \
                      SELECT ?, id, '', 0, ? FROM accounts";
        let token = "INSERT INTO refresh_tokens (hash, family_id, created_at, expires_at) VALUES (?, ?, 0, ?)";
        for n in 0..600 {
            let (id, hash) = (Value::text(format!("family{n}")), Value::text(format!("token{n}")));
            beside.run(Ask(family, vec![id, Value::Int(ends)])).await.unwrap();
            let of = Value::text(if n < 550 { String::from("family0") } else { format!("family{n}") });
            beside.run(Ask(token, vec![hash, of, Value::Int(ends)])).await.unwrap();
        }
        assert_eq!((count(&beside, TOKENS).await, count(&beside, FAMILIES).await), (601, 601), "{name}");
        clock.advance(Duration::from_secs(2 * 3600 + 1));
        eventually("what has ended is forgotten", async || {
            (count(&beside, TOKENS).await, count(&beside, FAMILIES).await) == (1, 1)
        })
        .await;
        assert_eq!(refresh(url, &kept).await.status, 200, "{name}: and nothing else");
        let index = match name {
            "SQLite" => "SELECT COUNT(*) FROM sqlite_master WHERE name = 'refresh_tokens_expiry'",
            "PostgreSQL" => "SELECT COUNT(*) FROM pg_indexes WHERE indexname = 'refresh_tokens_expiry'",
            _ => {
                "SELECT COUNT(*) FROM information_schema.statistics WHERE table_schema = DATABASE() \
                 AND index_name = 'refresh_tokens_expiry'"
            }
        };
        assert_eq!(count(&beside, index).await, 1, "{name}");
        beside.close().await;
        app.stop().await;
    }
}

#[actix_web::test]
async fn a_slow_disk_holds_up_no_request_while_keys_take_turns() {
    let clock = Clock::manual(NOON);
    let settings =
        [CHEAP.as_slice(), &[("identity.key_rotation", "1h"), ("identity.refresh_interval", "100ms")]].concat();
    let app = TestApp::with(&settings, clock.clone()).await;
    register(&app.url, "joe").await;
    // The next keys go into a pipe that is full, which takes them when somebody reads it.
    let path = app.folder.path().join("data/identity/keys.json.new");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::from(0o600), 0).unwrap();
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let mut pipe = std::fs::OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path).unwrap();
    while std::io::Write::write(&mut pipe, &[b' '; 4096]).is_ok() {}
    let (mut reader, path_read) = (pipe.try_clone().unwrap(), path.clone());
    // Should the server hang, it is let go, so that this test ends.
    let (well, hung) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (done, told) = (well.clone(), hung.clone());
    let watchdog = std::thread::spawn(move || {
        for _ in 0..1000 {
            if done.load(Ordering::SeqCst) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        told.store(!done.load(Ordering::SeqCst), Ordering::SeqCst);
        std::fs::remove_file(path_read).unwrap();
        let mut sink = [0; 65536];
        while reader.read(&mut sink).is_ok_and(|n| n > 0) {}
    });
    let signs = async || {
        let (access, _) = login(&app.url, "joe").await;
        access.split('.').next().unwrap().to_owned()
    };
    let before = signs().await;
    clock.advance(Duration::from_secs(3601));
    eventually("the keys are being written", async || {
        let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        open.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|at| at == path)).count() > 2
    })
    .await;
    assert_eq!(signs().await, before, "the old key signs on until the next is written");
    well.store(true, Ordering::SeqCst);
    watchdog.join().unwrap();
    assert!(!hung.load(Ordering::SeqCst), "a request waited for the disk");
    drop(pipe);
    eventually("the next key signs", async || signs().await != before).await;
    app.stop().await;
}
