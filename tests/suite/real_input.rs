//! Real input: an access log and a shop's click stream, counted here and by a few lines that share no code with it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::Read;

use serde_json::{Value, json};

use crate::client;
use crate::support::{Process, TestApp, real_data, run};

const NEEDED: &str = "the real input is missing: put access-2015-05.log and ecom-clickstream.csv.gz into ../shared/data, \
                      or name their folder in TIDEGATE_TEST_DATA";

type Days<T> = BTreeMap<String, T>;
type Visitors = HashSet<(String, String)>;

/// Views and visitors (address and agent) by UTC day, from the text of the log alone.
fn recount(text: &str) -> (Days<u64>, Days<Visitors>, usize) {
    let (mut views, mut visitors, mut odd) = (BTreeMap::new(), BTreeMap::<_, HashSet<_>>::new(), 0);
    for line in text.lines() {
        let quotes: Vec<&str> = line.split('"').collect();
        // address - - [17/May/2015:10:05:03 +0000] "request" status size "referrer" "agent"
        if quotes.len() < 7 || !line.ends_with('"') {
            odd += 1;
            continue;
        }
        let day = line.split('[').nth(1).unwrap()[..11].to_owned();
        let address = line.split(' ').next().unwrap().to_owned();
        let agent = quotes[5..quotes.len() - 1].join("\"");
        *views.entry(day.clone()).or_default() += 1;
        visitors.entry(day).or_default().insert((address, agent));
    }
    (views, visitors, odd)
}

async fn by_day(url: &str, metric: &str) -> BTreeMap<String, u64> {
    let path = format!(
        "{url}/api/v1/stats/timeseries?metric={metric}&interval=day&from=2015-05-17T00:00:00Z&to=2015-05-21T00:00:00Z"
    );
    let answer = client::get(&path).await.json();
    assert_eq!(answer["data"]["exact"], true);
    let points = answer["data"]["points"].as_array().unwrap().clone();
    points
        .iter()
        .map(|point| {
            let day = &point["start"].as_str().unwrap()[8..10];
            (format!("{day}/May/2015"), point["value"].as_u64().unwrap())
        })
        .collect()
}

#[actix_web::test]
async fn an_access_log_comes_out_as_a_recount_says() {
    let log = real_data("access-2015-05.log").expect(NEEDED);
    let text = String::from_utf8_lossy(&std::fs::read(&log).unwrap()).into_owned();
    let (views, visitors, odd) = recount(&text);
    assert_eq!((views.values().sum::<u64>() + odd as u64, odd), (10_000, 1));
    let visitors: BTreeMap<String, u64> = visitors.into_iter().map(|(day, who)| (day, who.len() as u64)).collect();
    let (log, folder) = (log.to_str().unwrap().to_owned(), tempfile::tempdir().unwrap());
    let data = folder.path().join("data");
    let data_arg = data.to_str().unwrap();

    // Straight into a folder, and again: the second changes nothing.
    let import = |extra: &[&str]| {
        let mut args = vec!["import", "--format", "combined", "--raw", &log];
        args.extend(extra);
        let (code, stdout, stderr) = run(&args);
        assert_eq!(code, Some(0), "{stderr}");
        (stdout, stderr)
    };
    let (stdout, stderr) = import(&["--data", data_arg]);
    assert!(stdout.contains("10000 lines: 9999 imported, 0 known before, 1 refused"), "{stdout}");
    let line = text.lines().position(|line| line.split('"').count() < 7 || !line.ends_with('"')).unwrap() + 1;
    assert!(stderr.contains(&format!("line {line}: ")), "{stderr}");
    let (stdout, _) = import(&["--data", data_arg]);
    assert!(stdout.contains("10000 lines: 0 imported, 9999 known before, 1 refused"), "{stdout}");

    let server = Process::start(&data, &[]);
    assert_eq!(by_day(&server.url, "page_views").await, views);
    assert_eq!(by_day(&server.url, "unique_visitors").await, visitors);
    // Through the server that holds the folder, found by its lock; and to a folder that is held, told so.
    let (stdout, _) = import(&["--url", &server.url]);
    assert!(stdout.contains("0 imported, 9999 known before"), "{stdout}");
    let (code, _, stderr) = run(&["import", "--format", "combined", &log, "--data", data_arg]);
    assert!(code == Some(1) && stderr.contains("held by process"), "{stderr}");
    let (code, stdout, _) = run(&["audit", "--url", &server.url]);
    assert_eq!(code, Some(0), "{stdout}");
    assert_eq!(by_day(&server.url, "page_views").await, views);
}

#[actix_web::test]
async fn an_access_log_is_told_apart_as_a_person_would() {
    let log = real_data("access-2015-05.log").expect(NEEDED);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let data_arg = data.to_str().unwrap();
    let origin = "http://semicomplete.com";
    let log = log.to_str().unwrap();
    let (code, _, stderr) = run(&["import", "--format", "combined", "--origin", origin, log, "--data", data_arg]);
    assert_eq!(code, Some(0), "{stderr}");
    let server = Process::start(&data, &[]);
    let get = async |what: &str| {
        let url = format!("{}/api/v1/stats/{what}from=2015-05-17T00:00:00Z&to=2015-05-21T00:00:00Z", server.url);
        client::get(&url).await.json()["data"].clone()
    };
    let summary = get("summary?").await;
    let count = |name: &str| summary["events"][name].as_u64().unwrap_or(0);
    let all: u64 = summary["events"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(all + summary["bots"].as_u64().unwrap(), 9999);
    assert!(summary["bots"].as_u64().unwrap() > 1000 && count("asset") > 3000 && count("http_error") > 50, "{summary}");
    assert!(count("page_view") > 1000 && count("page_view") < 5000, "{summary}");
    for item in get("pages?limit=1000&").await["items"].as_array().unwrap() {
        let page = item["url"].as_str().unwrap();
        assert!(
            page.starts_with(origin) && ![".png", ".css", ".js", ".ico"].iter().any(|end| page.ends_with(end)),
            "{page}"
        );
    }
    for item in get("referrers?limit=1000&").await["items"].as_array().unwrap() {
        assert_ne!(item["referrer"], "semicomplete.com", "the site is no referrer of its own");
    }
}

#[actix_web::test]
async fn a_click_stream_is_exact_from_many_connections_shuffled_and_partly_twice() {
    let path = real_data("ecom-clickstream.csv.gz").expect(NEEDED);
    let mut text = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    let rows: Vec<Vec<&str>> = text.lines().skip(1).map(|line| line.split(',').collect()).collect();
    assert_eq!(rows.len(), 31_106);
    let mut types: BTreeMap<&str, u64> = BTreeMap::new();
    for row in &rows {
        *types.entry(row[2]).or_default() += 1;
    }
    let users: BTreeSet<&str> = rows.iter().map(|row| row[0]).collect();
    let sessions: BTreeSet<&str> = rows.iter().map(|row| row[1]).collect();
    assert_eq!((users.len(), sessions.len()), (600, 3605));

    let mut events: Vec<Value> = rows
        .iter()
        .enumerate()
        .map(|(n, row)| {
            json!({
                "id": format!("row-{n}"), "user_id": row[0], "session_id": row[1], "type": row[2],
                "timestamp": format!("{}Z", row[3].replace(' ', "T")), "data": {"platform": row[4]},
            })
        })
        .collect();
    events.extend_from_within(..rows.len() / 10);
    let mut seed = 7u64;
    for i in (1..events.len()).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        events.swap(i, (seed >> 33) as usize % (i + 1));
    }
    let app = TestApp::start().await;
    let address = app.app().address();
    let parts: Vec<Vec<Value>> = events.chunks(events.len() / 6 + 1).map(<[Value]>::to_vec).collect();
    let senders: Vec<_> = parts
        .into_iter()
        .map(|part| {
            actix_web::rt::task::spawn_blocking(move || {
                let mut raw = client::Raw::connect(address).unwrap();
                let (mut accepted, mut duplicates) = (0, 0);
                for piece in part.chunks(97) {
                    let (status, text) = raw.post(&json!(piece).to_string()).unwrap();
                    assert_eq!(status, 202, "{text}");
                    let data = &serde_json::from_str::<Value>(&text).unwrap()["data"];
                    accepted += data["accepted"].as_u64().unwrap();
                    duplicates += data["duplicates"].as_u64().unwrap();
                }
                (accepted, duplicates)
            })
        })
        .collect();
    let (mut accepted, mut duplicates) = (0, 0);
    for sender in senders {
        let (a, d) = sender.await.unwrap();
        (accepted, duplicates) = (accepted + a, duplicates + d);
    }
    assert_eq!((accepted, duplicates), (31_106, 3110));
    app.counted().await;
    let summary = app.data("/api/v1/stats/summary?from=2020-01-01T00:00:00Z").await;
    assert_eq!(summary["events"], json!(types));
    assert_eq!((&summary["unique_visitors"], &summary["sessions"]), (&json!(600), &json!(3605)));
    assert_eq!(summary["exact"], true);
    let listed = app.data("/api/v1/stats/events?from=2020-01-01T00:00:00Z&limit=1000").await;
    let listed: BTreeMap<&str, u64> = listed["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| (item["type"].as_str().unwrap(), item["count"].as_u64().unwrap()))
        .collect();
    assert_eq!(listed, types);
    assert_eq!(app.data("/api/v1/audit").await["agree"], true);
}

#[actix_web::test]
async fn the_command_line_exports_the_same_from_a_folder_and_through_its_server() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let data_arg = data.to_str().unwrap();
    let server = Process::start(&data, &[]);
    let body = br#"[{"url":"/a","id":"1"},{"type":"buy","site":"s2","user_id":"u"},{"x":1}]"#;
    client::post(&format!("{}/api/v1/events", server.url), &[], body.to_vec()).await;
    let export = |extra: &[&str]| {
        let (code, stdout, stderr) = run(&[&["export"], extra].concat());
        assert_eq!(code, Some(0), "{stderr}");
        stdout
    };
    let through = [export(&["--url", &server.url]), export(&["--url", &server.url, "--format", "csv", "--site", "s2"])];
    assert_eq!((through[0].lines().count(), through[1].lines().count()), (2, 2));
    let (code, _, stderr) = run(&["export", "--data", data_arg]);
    assert!(code == Some(1) && stderr.contains("held by process"), "{stderr}");
    server.terminate();
    server.wait(std::time::Duration::from_secs(20));
    let straight = [export(&["--data", data_arg]), export(&["--data", data_arg, "--format", "csv", "--site", "s2"])];
    assert_eq!(straight, through);
    assert_eq!(export(&["--data", data_arg, "--to", "-1h"]), "");
    let (code, stdout, _) = run(&["audit", "--data", data_arg]);
    assert!(code == Some(0) && stdout.contains("\"agree\": true"), "{stdout}");
}
