//! More than there is room for: floods, a full disk, a journal at its limit, rubbish.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use tidegate::clock::Clock;

use crate::client::{self, Raw};
use crate::support::{Process, TestApp, eventually};

#[actix_web::test]
async fn a_flood_is_answered_503_and_memory_stays_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let settings =
        [("journal.queue_bytes", "4MiB"), ("server.max_body_bytes", "1MiB"), ("journal.segment_bytes", "1MiB")];
    let server = Process::start(&folder.path().join("data"), &settings);
    let event = format!(r#"{{"type":"flood","data":{{"x":"{}"}}}}"#, "y".repeat(4000));
    let body = Arc::new(format!("[{}]", vec![event; 150].join(",")));
    let warm = Raw::connect(server.address).unwrap().post(&body).unwrap();
    assert_eq!(warm.0, 202, "{}", warm.1);
    let before = server.resident();
    let stop = Arc::new(AtomicBool::new(false));
    let (taken, refused) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = (0..24)
        .map(|_| {
            let (body, stop, taken, refused) = (body.clone(), stop.clone(), taken.clone(), refused.clone());
            let address = server.address;
            std::thread::spawn(move || {
                let mut connection = None;
                while !stop.load(Ordering::SeqCst) {
                    let raw = match &mut connection {
                        Some(raw) => raw,
                        None => connection.insert(Raw::connect(address).unwrap()),
                    };
                    match raw.post(&body) {
                        Ok((202, text)) => {
                            let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
                            assert_eq!(answer["data"]["accepted"], 150, "taken by half: {text}");
                            taken.fetch_add(150, Ordering::SeqCst);
                        }
                        Ok((503, text)) => {
                            assert!(text.contains("\"overloaded\""), "{text}");
                            refused.fetch_add(1, Ordering::SeqCst);
                        }
                        Ok((status, text)) => panic!("{status} {text}"),
                        // Refused while still sending: the connection is closed with the answer.
                        Err(_) => connection = None,
                    }
                }
            })
        })
        .collect();
    let mut most = 0;
    let mut level = vec![];
    for _ in 0..6 {
        let count = taken.load(Ordering::SeqCst);
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            most = most.max(server.resident());
        }
        level.push(taken.load(Ordering::SeqCst) - count);
    }
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.join().unwrap();
    }
    let (taken, refused) = (taken.load(Ordering::SeqCst) + 150, refused.load(Ordering::SeqCst));
    println!("{taken} taken, {refused} refused, {} MiB -> {} MiB, {level:?}", before >> 20, most >> 20);
    assert!(refused > 0, "24 clients with 600 KB each fit into 4 MiB?");
    assert!(most < before + (96 << 20), "{} MiB became {} MiB", before >> 20, most >> 20);
    // The second half goes on like the first.
    let (first, second): (u64, u64) = (level[..3].iter().sum(), level[3..].iter().sum());
    assert!(second * 3 > first, "throughput fell: {level:?}");
    eventually("all is counted", async || {
        let data = client::get(&format!("{}/api/v1/stats/summary", server.url)).await.json();
        data["data"]["events"]["flood"] == json!(taken)
    })
    .await;
}

fn gzip(text: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(text).unwrap();
    packed.finish().unwrap()
}

#[actix_web::test]
async fn small_bodies_that_grow_stay_within_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    let server = Process::start(&folder.path().join("data"), &[]);
    let url = format!("{}/api/v1/events", server.url);
    assert_eq!(client::post(&url, &[], br#"{"type":"warm"}"#.to_vec()).await.status, 202);
    let before = server.resident();
    // Ten kilobytes that are millions of bad events.
    let many = gzip(format!("[{}0]", "0,".repeat(4_900_000)).as_bytes());
    assert!(many.len() < 20_000);
    let answer = client::post(&url, &[("content-encoding", "gzip")], many).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json()["error"]["rejected"].as_array().unwrap().len(), 1000);
    // Thirty times ten megabytes at once, from thirty times ten kilobytes.
    let spaces = gzip(&vec![b' '; 10 << 20]);
    let all = futures_util::future::join_all(
        (0..30).map(|_| client::post(&url, &[("content-encoding", "gzip")], spaces.clone())),
    );
    let answers = all.await;
    assert!(answers.iter().all(|answer| [400, 503].contains(&answer.status)));
    let after = server.resident();
    // The allocator keeps some of what threads have freed: about 200 MiB here, and 350 without the budget.
    assert!(after < before + (256 << 20), "{} MiB became {} MiB", before >> 20, after >> 20);
}

#[actix_web::test]
async fn a_long_body_is_taken_whole_in_blocks_of_bounded_size() {
    let settings = [("server.max_body_bytes", "64MiB"), ("journal.queue_bytes", "256MiB")];
    let app = TestApp::with(&settings, Clock::system()).await;
    let filler = "y".repeat(8000);
    let events: Vec<_> = (0..4500).map(|i| json!({"type": "big", "id": i, "data": {"x": filler}})).collect();
    let body = json!(events).to_string();
    assert!(body.len() > 34 << 20);
    let answer = app.post(body).await.json();
    assert_eq!(answer["data"]["accepted"], 4500, "{answer}");
    let small = app.post(format!("[{}{{\"x\":1}}]", r#"{"url":"/a"},"#.repeat(800_000))).await.json();
    assert_eq!(
        (&small["data"]["accepted"], &small["data"]["rejected"][0]["index"]),
        (&json!(800_000), &json!(800_000))
    );
    app.counted().await;
    let folder = app.stop().await;
    let app = TestApp::on(folder, &settings, Clock::system()).await;
    let audit = app.data("/api/v1/audit").await;
    assert_eq!((&audit["agree"], &audit["lost"]), (&json!(true), &json!(0)), "{audit}");
    assert_eq!(app.data("/api/v1/stats/summary").await["events"], json!({"big": 4500, "page_view": 800_000}));
}

/// A file system of a few megabytes; needs root, as `scripts/test` has it.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(size: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder.path()).status();
        assert!(mounted.is_ok_and(|status| status.success()), "cannot mount a small disk: run the tests as root");
        Self(folder)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[actix_web::test]
async fn a_full_disk_refuses_before_anything_is_lost_and_recovers() {
    let disk = SmallDisk::mount("12m");
    let data = disk.0.path().join("data");
    // Without a reserve, so that the write itself meets the end of the disk.
    let settings = [("journal.min_free_bytes", "0"), ("journal.segment_bytes", "1MiB"), ("journal.max_bytes", "1GiB")];
    let server = Process::start(&data, &settings);
    let ballast = disk.0.path().join("ballast");
    std::fs::write(&ballast, vec![1; 6 << 20]).unwrap();
    let url = format!("{}/api/v1/events", server.url);
    let filler = "z".repeat(2000);
    let batch = |n: u64| -> String {
        let events: Vec<_> =
            (0..20).map(|i| json!({"type": "fill", "id": format!("{n}-{i}"), "data": {"x": filler}})).collect();
        json!(events).to_string()
    };
    let (mut n, mut accepted, mut refused) = (0, 0, vec![]);
    while refused.len() < 3 {
        let answer = client::post(&url, &[], batch(n).into()).await;
        match answer.status {
            202 => accepted += answer.json()["data"]["accepted"].as_u64().unwrap(),
            503 => {
                assert_eq!(answer.json()["error"]["code"], "unavailable");
                assert!(answer.header("retry-after").is_some());
                assert!(answer.text().contains("the disk is full"), "{}", answer.text());
                refused.push(n);
            }
            other => panic!("{other}: {}", answer.text()),
        }
        n += 1;
        assert!(n < 1000, "the disk never filled");
    }
    let ready = client::get(&format!("{}/health/ready", server.url)).await;
    assert_eq!((ready.status, ready.json()["journal"]["reason"].as_str()), (503, Some("the disk is full")));
    std::fs::remove_file(&ballast).unwrap();
    // The clients retry what was refused: with the same ids, and none of it was half taken.
    for n in refused {
        eventually("room again", async || {
            let answer = client::post(&url, &[], batch(n).into()).await;
            let done = answer.status == 202;
            if done {
                assert_eq!(answer.json()["data"]["accepted"], 20, "{}", answer.text());
                accepted += 20;
            }
            done
        })
        .await;
    }
    let counted = async |server: &Process| {
        let data = client::get(&format!("{}/api/v1/stats/summary", server.url)).await.json();
        data["data"]["events"]["fill"].clone()
    };
    eventually("all is counted", async || counted(&server).await == json!(accepted)).await;
    let audit = client::get(&format!("{}/api/v1/audit", server.url)).await.json();
    assert_eq!(audit["data"]["agree"], true, "{audit}");
    assert_eq!(client::get(&format!("{}/health/ready", server.url)).await.status, 200);
    server.kill();
    let server = Process::start(&data, &settings);
    eventually("the same after a crash", async || counted(&server).await == json!(accepted)).await;
}

#[actix_web::test]
async fn nothing_that_is_sent_makes_a_5xx() {
    let app = TestApp::start().await;
    let url = format!("{}/api/v1/events", app.url);
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let good = br#"[{"url":"/a","id":"1","timestamp":1700000000000,"data":{"a":[1,2,{"b":null}]}},{"type":"x"}]"#;
    for round in 0..400 {
        let mut body = good.to_vec();
        for _ in 0..=(next() % 8) {
            let at = (next() % body.len() as u64) as usize;
            match next() % 4 {
                0 => body[at] = next() as u8,
                1 => drop(body.drain(at..)),
                2 => body.insert(at, b"{}[]\",:\\0"[(next() % 9) as usize]),
                _ => body.extend_from_within(..at),
            }
            if body.is_empty() {
                body.push(b'{');
            }
        }
        let coding = ["identity", "gzip", "br", "zstd", "deflate"][(next() % 5) as usize];
        let kind = ["application/json", "text/plain", "application/x-ndjson", "x/y"][(next() % 4) as usize];
        let answer = client::post(&url, &[("content-encoding", coding), ("content-type", kind)], body).await;
        assert!([202, 400].contains(&answer.status), "round {round}: {} {}", answer.status, answer.text());
    }
    let deep = format!(r#"{{"type":"a","data":{}{}}}"#, r#"{"a":"#.repeat(2000), "1".to_owned() + &"}".repeat(2000));
    for body in [deep, "[".repeat(100_000), format!(r#"{{"type":"a","data":{}"#, "[".repeat(50_000))] {
        let status = app.post(body).await.status;
        assert!([202, 400].contains(&status), "{status}");
    }
    app.counted().await;
    assert_eq!(app.data("/api/v1/audit").await["agree"], true);
}

#[actix_web::test]
async fn slow_senders_hold_no_place_and_are_let_go() {
    use std::io::{Read, Write};
    let settings = [("journal.queue_batches", "2"), ("server.client_timeout", "400ms")];
    let app = TestApp::with(&settings, Clock::system()).await;
    let slow: Vec<_> = (0..8)
        .map(|_| {
            let mut stream = std::net::TcpStream::connect(app.app().address()).unwrap();
            stream.write_all(b"POST /api/v1/events HTTP/1.1\r\nhost: t\r\ncontent-length: 50\r\n\r\n{").unwrap();
            stream
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(app.post(r#"{"type":"a"}"#).await.status, 202, "there is room beside them");
    for mut stream in slow {
        let answer = actix_web::rt::task::spawn_blocking(move || {
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let mut answer = [0; 600];
            let length = stream.read(&mut answer).unwrap();
            String::from_utf8_lossy(&answer[..length]).into_owned()
        });
        let answer = answer.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("request_timeout"), "{answer}");
    }
}

#[actix_web::test]
async fn many_sites_are_bounded() {
    let app = TestApp::with(&[("ingest.max_sites", "5")], Clock::system()).await;
    let mut refused = 0;
    for i in 0..20 {
        let answer = app.post(format!(r#"{{"type":"a","site":"s{i}"}}"#)).await;
        assert_eq!(answer.status, if i < 5 { 202 } else { 400 });
        refused += usize::from(answer.text().contains("too_many_sites"));
    }
    assert_eq!(refused, 15);
    app.counted().await;
    let audit = app.data("/api/v1/audit").await;
    assert_eq!((audit["agree"].as_bool(), audit["sites"].as_array().unwrap().len()), (Some(true), 6), "{audit}");
}
