//! The product API over HTTP, on all three databases; what it says of its cache; and that it goes on when parts are away.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidegate::clock::Clock;

use super::catalog_stores::urls;
use super::client;
use super::services::{Service, fresh, redis};
use super::support::{Answer, TestApp, eventually};

const NOON: i64 = 1_795_435_200_000;

async fn send(app: &TestApp, method: &str, path: &str, body: Value) -> Answer {
    client::send(method, &format!("{}{path}", app.url), &[], &body).await
}

async fn create(app: &TestApp, body: Value) -> Answer {
    let answer = send(app, "POST", "/api/v1/products", body).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    answer
}

fn cache_status(answer: &Answer) -> &str {
    answer.header("cache-status").unwrap_or_else(|| panic!("no Cache-Status: {answer:?}"))
}

/// A server on each database.
async fn shops(settings: &[(&str, &str)], clock: &Clock) -> Vec<(&'static str, TestApp)> {
    let mut shops = vec![];
    for (name, url) in urls().await {
        let mut all = settings.to_vec();
        all.push(("catalog.url", &url));
        shops.push((name, TestApp::with(&all, clock.clone()).await));
    }
    shops
}

#[actix_web::test]
async fn a_products_life_is_the_same_on_every_database() {
    let clock = Clock::manual(NOON);
    for (name, app) in shops(&[], &clock).await {
        assert_eq!(app.get("/api/v1/products/42").await.status, 404, "{name}");
        let made = create(
            &app,
            json!({"id": "42", "name": "Oak table", "price": "249.00", "stock": 7, "category": "Tables", "brand": "Nordhus",
                "images": [{"url": "/img/42.webp", "alt": "A table"}], "attributes": [{"name": "Colour", "value": "Oak"}],
                "related": ["43"]}),
        )
        .await;
        assert_eq!(made.header("location"), Some("/api/v1/products/42"), "{name}");
        create(&app, json!({"id": "43", "name": "Oak chair", "price": 79.5})).await;

        // That it was not there was cached, and is forgotten with the write.
        let first = app.get("/api/v1/products/42").await;
        assert_eq!(first.status, 200, "{name}: {}", first.text());
        assert!(cache_status(&first).starts_with("tidegate; fwd=miss; ttl="), "{name}: {}", cache_status(&first));
        let data = first.json()["data"].clone();
        assert_eq!(
            (&data["price"], &data["brand"], &data["attributes"][0]["value"]),
            (&json!("249.00"), &json!("Nordhus"), &json!("Oak"))
        );
        assert_eq!(
            (&data["related"][0]["name"], &data["related"][0]["price"]),
            (&json!("Oak chair"), &json!("79.50")),
            "{name}"
        );
        clock.advance(Duration::from_secs(60));
        let second = app.get("/api/v1/products/42").await;
        assert!(cache_status(&second).starts_with("tidegate; hit; ttl="), "{name}: {}", cache_status(&second));
        assert!(cache_status(&second).ends_with("detail=L1"), "{name}");
        assert_eq!((second.header("age"), &second.json()["data"]), (Some("60"), &data), "{name}");
        let tag = second.header("etag").unwrap().to_owned();
        let url = format!("{}/api/v1/products/42", app.url);
        let known = client::get_with(&url, &[("if-none-match", &tag)]).await;
        assert_eq!((known.status, known.body.len(), known.header("etag")), (304, 0, Some(tag.as_str())), "{name}");

        // Writes: only at the version that is expected, and seen at once, also where it is shown as related.
        let stale = client::send("PATCH", &url, &[("if-match", "\"1\"")], &json!({"stock": 1})).await;
        assert_eq!((stale.status, &stale.json()["error"]["code"]), (412, &json!("precondition_failed")), "{name}");
        let patched = client::send("PATCH", &url, &[("if-match", &tag)], &json!({"stock": 6, "brand": null})).await;
        assert_eq!(patched.status, 200, "{name}: {}", patched.text());
        let now = app.data("/api/v1/products/42").await;
        assert_eq!(
            (&now["stock"], &now["brand"], &now["name"]),
            (&json!(6), &json!(null), &json!("Oak table")),
            "{name}"
        );
        assert_ne!(patched.header("etag"), Some(tag.as_str()), "{name}");
        let chair =
            send(&app, "PUT", "/api/v1/products/43", json!({"name": "Ash chair", "price": "80", "stock": 2})).await;
        assert_eq!(chair.status, 200, "{name}: {}", chair.text());
        assert_eq!(app.data("/api/v1/products/42").await["related"][0]["name"], "Ash chair", "{name}");
        // It shows something else now, of the same version: what a client has of it holds no longer.
        let before = patched.header("etag").unwrap().trim_matches('"').to_owned();
        let tag = app.get("/api/v1/products/42").await.header("etag").unwrap().to_owned();
        assert!(tag.starts_with(&format!("\"{before}-")), "{name}: {before} and {tag}");
        let chair = send(&app, "PATCH", "/api/v1/products/43", json!({"price": "81"})).await;
        assert_eq!(chair.status, 200, "{name}");
        let changed = client::get_with(&url, &[("if-none-match", &tag)]).await;
        assert_eq!((changed.status, changed.header("etag") == Some(tag.as_str())), (200, false), "{name}");
        let again = send(&app, "POST", "/api/v1/products", json!({"id": "42", "name": "x", "price": "1"})).await;
        assert_eq!((again.status, &again.json()["error"]["code"]), (409, &json!("already_exists")), "{name}");
        let gone = send(&app, "DELETE", "/api/v1/products/43", json!({})).await;
        assert_eq!(gone.status, 204, "{name}");
        assert_eq!(app.get("/api/v1/products/43").await.status, 404, "{name}");
        assert_eq!(app.data("/api/v1/products/42").await["related"], json!([]), "{name}");
        let hidden = send(&app, "PATCH", "/api/v1/products/42", json!({"status": "inactive"})).await;
        assert_eq!((hidden.status, app.get("/api/v1/products/42").await.status), (200, 404), "{name}");
        app.stop().await;
    }
}

#[actix_web::test]
async fn rubbish_is_told_apart_field_by_field() {
    let app = TestApp::start().await;
    let bad =
        send(&app, "POST", "/api/v1/products", json!({"id": "a b", "price": "-1", "stock": 1.5, "colour": "red"}))
            .await;
    assert_eq!((bad.status, &bad.json()["error"]["code"]), (422, &json!("validation_failed")));
    let fields: Vec<String> = bad.json()["error"]["fields"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| f["field"].as_str().unwrap().to_owned())
        .collect();
    for field in ["id", "price", "stock", "colour", "name"] {
        assert!(fields.iter().any(|f| f == field), "{field} is not among {fields:?}");
    }
    for (path, status) in [
        ("/api/v1/products?page=0", 422),
        ("/api/v1/products?min_price=cheap&per_page=1000", 422),
        ("/api/v1/products?cursor=rubbish", 422),
        ("/api/v1/products?colour=red", 400),
        ("/api/v1/products/no%20such", 404),
        ("/api/v1/products/1?explain=everything", 400),
        ("/api/v1/products/hot?limit=0", 400),
        ("/api/v1/products?q=%22%27%3B--%00%F0%9F%91%9F*%20AND%20OR", 200),
    ] {
        let answer = app.get(path).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
    }
    for body in ["", "[]", "{\"ids\":1}", "{\"ids\":[1]}", "nonsense"] {
        let answer = client::post(&format!("{}/api/v1/products/batch", app.url), &[], body.into()).await;
        assert_eq!(answer.status, 422, "{body}: {}", answer.text());
    }
    let many = send(&app, "POST", "/api/v1/products/batch", json!({"ids": vec!["1"; 201]})).await;
    assert_eq!(many.status, 422);
    let long = json!({"id": "1", "name": "x", "price": "1", "description": "x".repeat(2 << 20)});
    assert_eq!(send(&app, "POST", "/api/v1/products", long).await.status, 413);
    let wrong = client::send(
        "PUT",
        &format!("{}/api/v1/products/1", app.url),
        &[("if-match", "W/\"x\"")],
        &json!({"name": "x", "price": "1"}),
    )
    .await;
    assert_eq!(wrong.status, 400, "{}", wrong.text());
    app.stop().await;
}

#[actix_web::test]
async fn writing_needs_the_key() {
    let app = TestApp::with(&[("server.admin_key", "0123456789abcdef")], Clock::system()).await;
    for (method, path) in [
        ("POST", "/api/v1/products"),
        ("PUT", "/api/v1/products/1"),
        ("PATCH", "/api/v1/products/1"),
        ("DELETE", "/api/v1/products/1"),
        ("DELETE", "/api/v1/cache/product_detail/1"),
        ("POST", "/api/v1/cache/warm"),
    ] {
        let product = json!({"id": "1", "name": "x", "price": "1"});
        assert_eq!(send(&app, method, path, product.clone()).await.status, 401, "{method} {path}");
    }
    let product = json!({"id": "1", "name": "x", "price": "1"});
    let headers = [("authorization", "Bearer 0123456789abcdef")];
    let made = client::send("POST", &format!("{}/api/v1/products", app.url), &headers, &product).await;
    assert_eq!(made.status, 201, "{}", made.text());
    app.stop().await;
}

#[actix_web::test]
async fn results_are_cached_under_one_form_of_the_question() {
    let clock = Clock::manual(NOON);
    for (name, app) in shops(&[], &clock).await {
        for n in 0..25 {
            let (kind, stock) = if n % 2 == 0 { ("table", 1) } else { ("chair", 0) };
            create(
                &app,
                json!({"id": n.to_string(), "name": format!("Oak {kind} {n:02}"), "price": format!("{}.50", n + 1),
                "stock": stock, "category": kind, "brand": "Nordhus"}),
            )
            .await;
        }
        let found = app.get("/api/v1/products?q=oak+TABLE&sort=price&per_page=5").await;
        assert!(cache_status(&found).contains("fwd=miss"), "{name}: {}", cache_status(&found));
        let page = found.json()["data"].clone();
        assert_eq!((&page["total"], &page["total_pages"], &page["page"]), (&json!(13), &json!(3), &json!(1)), "{name}");
        assert_eq!(page["items"][0]["name"], "Oak table 00", "{name}");
        assert_eq!(page["facets"]["categories"], json!([{"value": "table", "count": 13}]), "{name}");
        let same = app.get("/api/v1/products?per_page=5&q=%20Oak%20table%20&sort=price").await;
        assert!(cache_status(&same).ends_with("detail=L1"), "{name}: {}", cache_status(&same));
        // By the cursor, without a gap or a double, through entries of the cache.
        let (mut ids, mut path) = (vec![], String::from("/api/v1/products?q=Oak+table&sort=price&per_page=5"));
        loop {
            let page = app.data(&path).await;
            ids.extend(page["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()));
            let Some(next) = page["next"].as_str() else { break };
            path = format!("/api/v1/products?q=OAK+table&sort=price&per_page=5&cursor={next}");
        }
        assert_eq!(ids, (0..25).step_by(2).map(|n| n.to_string()).collect::<Vec<_>>(), "{name}");
        let filtered =
            app.data("/api/v1/products?in_stock=false&min_price=10&max_price=20&brand=Nordhus&facets=false").await;
        assert_eq!((&filtered["total"], &filtered["facets"]), (&json!(5), &json!(null)), "{name}");
        // A write makes every result old.
        create(&app, json!({"id": "new", "name": "Oak table, new", "price": "0.50"})).await;
        assert_eq!(app.data("/api/v1/products?q=oak+table&sort=price&per_page=5").await["total"], 14, "{name}");
        app.stop().await;
    }
}

#[actix_web::test]
async fn a_batch_says_what_is_where() {
    let app = TestApp::start().await;
    for id in ["1", "2", "3"] {
        create(&app, json!({"id": id, "name": format!("Thing {id}"), "price": "1.00"})).await;
    }
    app.data("/api/v1/products/2").await;
    let statements = async || {
        let metrics = app.get("/metrics").await.text();
        let line =
            metrics.lines().find(|line| line.starts_with("tidegate_catalog_statements_total")).unwrap().to_owned();
        line.split_whitespace().last().unwrap().parse::<f64>().unwrap()
    };
    let before = statements().await;
    let answer =
        send(&app, "POST", "/api/v1/products/batch", json!({"ids": ["3", "2", "nothing", "1", "3", "a b"]})).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let data = answer.json()["data"].clone();
    let ids: Vec<&str> = data["products"].as_array().unwrap().iter().map(|p| p["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["3", "2", "1"]);
    assert_eq!(data["missing"], json!(["a b", "nothing"]));
    assert_eq!((&data["from"]["l1"], &data["from"]["l3"]), (&json!(1), &json!(3)));
    assert!(statements().await - before <= 4.0, "one round trip a kind of query");
    let again = send(&app, "POST", "/api/v1/products/batch", json!({"ids": ["1", "2", "3", "nothing"]})).await;
    assert_eq!(again.json()["data"]["from"], json!({"l1": 4, "l2": 0, "l3": 0, "stale": 0}));
    app.stop().await;
}

#[actix_web::test]
async fn what_visitors_look_at_is_hot_within_a_second_and_lives_longer() {
    let app = TestApp::start().await;
    create(&app, json!({"id": "7", "name": "Lamp", "price": "20.00", "category": "Light"})).await;
    let view = r#"{"url":"https://shop.example/p/7","product_id":"7"}"#;
    let events = format!("[{}]", vec![view; 101].join(","));
    assert_eq!(app.post(events).await.status, 202);
    let begun = Instant::now();
    loop {
        let hot = app.data("/api/v1/products/hot?limit=5").await;
        if hot[0]["score"] == 101 {
            assert_eq!(
                (&hot[0]["product_id"], &hot[0]["product"]["name"], &hot[0]["exact"]),
                (&json!("7"), &json!("Lamp"), &json!(true))
            );
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{hot}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let bought = r#"{"type":"purchase","user_id":"u","data":{"items":[{"product_id":"8","quantity":100}]}}"#;
    assert_eq!(app.post(bought).await.status, 202);
    let scored = async || app.data("/api/v1/products/8?explain=cache").await["score"] == 1000;
    eventually("what is bought is scored", scored).await;
    let hot = app.data("/api/v1/products/hot").await;
    assert_eq!(hot.as_array().unwrap().len(), 1, "what the catalogue does not have is not shown: {hot}");
    // Read anew, it lives twice as long.
    assert_eq!(send(&app, "DELETE", "/api/v1/cache/product_detail/7", json!({})).await.status, 200);
    let read = app.get("/api/v1/products/7").await;
    let ttl = cache_status(&read).split("ttl=").nth(1).unwrap().split(';').next().unwrap().parse::<u64>().unwrap();
    assert!((6_400..=7_200).contains(&ttl), "two hours, less at most a tenth: {}", cache_status(&read));
    let why = app.data("/api/v1/products/7?explain=cache").await;
    assert_eq!(
        (&why["score"], &why["factor"], &why["lifetime"], &why["now"]["tier"]),
        (&json!(101), &json!(2), &json!(7200), &json!("L1"))
    );
    assert!(why["why"].as_str().unwrap().contains("above 100"), "{why}");
    // And it is warm after the next start.
    let folder = app.stop().await;
    let app = TestApp::on(folder, &[], Clock::system()).await;
    eventually("the hot product is warm", async || {
        let stats = app.data("/api/v1/cache").await;
        stats["types"][0]["entries"].as_u64() >= Some(2)
    })
    .await;
    assert!(cache_status(&app.get("/api/v1/products/7").await).ends_with("detail=L1"));
    let warmed = send(&app, "POST", "/api/v1/cache/warm", json!({"limit": 10})).await.json()["data"].clone();
    assert_eq!(
        (&warmed["asked"], &warmed["present"], &warmed["failed"]),
        (&json!(2), &json!(2), &json!(0)),
        "{warmed}"
    );
    app.stop().await;
}

#[actix_web::test]
async fn a_database_that_is_away_costs_only_what_was_never_seen() {
    let database = Service::start("postgres", &[]);
    let clock = Clock::manual(NOON);
    let settings =
        [("catalog.url", database.address.as_str()), ("catalog.query_timeout", "2s"), ("catalog.warm_up", "0")];
    let app = TestApp::with(&settings, clock.clone()).await;
    for id in ["seen", "old", "unseen"] {
        create(&app, json!({"id": id, "name": id, "price": "1.00"})).await;
    }
    app.data("/api/v1/products/old").await;
    clock.advance(Duration::from_secs(2 * 3600));
    app.data("/api/v1/products/seen").await;
    database.kill(None);
    for _ in 0..20 {
        let begun = Instant::now();
        let seen = app.get("/api/v1/products/seen").await;
        assert_eq!((seen.status, begun.elapsed() < Duration::from_secs(1)), (200, true), "{}", seen.text());
        assert!(cache_status(&seen).ends_with("detail=L1"));
        let old = app.get("/api/v1/products/old").await;
        assert_eq!(old.status, 200, "{}", old.text());
        assert!(cache_status(&old).ends_with("detail=stale-if-error"), "{}", cache_status(&old));
        assert!(cache_status(&old).contains("ttl=-"), "{}", cache_status(&old));
        let begun = Instant::now();
        let unseen = app.get("/api/v1/products/unseen").await;
        assert_eq!((unseen.status, &unseen.json()["error"]["code"]), (503, &json!("unavailable")));
        assert!(unseen.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
        assert!(begun.elapsed() < Duration::from_secs(6), "no request waits longer than its deadline");
        assert!(!unseen.text().contains("127.0.0.1"), "{}", unseen.text());
    }
    let health = app.get("/health").await;
    assert_eq!((health.status, &health.json()["catalog"]["status"]), (200, &json!("degraded")));
    let write = send(&app, "PATCH", "/api/v1/products/seen", json!({"stock": 1})).await;
    assert_eq!(write.status, 503, "{}", write.text());
    database.restart();
    // The failed fill is remembered for a second of the clock.
    eventually("what was never seen is there", async || {
        clock.advance(Duration::from_secs(2));
        app.get("/api/v1/products/unseen").await.status == 200
    })
    .await;
    assert_eq!(app.get("/health").await.json()["catalog"]["status"], "ok");
    app.stop().await;
}

#[actix_web::test]
async fn a_server_starts_while_its_database_is_away() {
    let database = Service::start("postgres", &[]);
    database.kill(None);
    let settings = [("catalog.url", database.address.as_str()), ("catalog.query_timeout", "500ms")];
    let app = TestApp::with(&settings, Clock::system()).await;
    assert_eq!(app.get("/api/v1/products/1").await.status, 503);
    assert_eq!(app.post(r#"{"url":"/"}"#).await.status, 202, "events do without");
    database.restart();
    eventually("the tables are made and read", async || app.get("/api/v1/products/1").await.status == 404).await;
    app.stop().await;
}

#[actix_web::test]
async fn a_write_reaches_every_instance_and_redis_may_go() {
    let url = urls().await[1].1.clone();
    let prefix = fresh("cache");
    let settings = [("catalog.url", url.as_str()), ("cache.url", redis()), ("cache.redis.prefix", prefix.as_str())];
    let (a, b) = (TestApp::with(&settings, Clock::system()).await, TestApp::with(&settings, Clock::system()).await);
    for app in [&a, &b] {
        eventually("the second tier is there", async || {
            app.get("/health").await.json()["catalog"]["second_tier"] == true
        })
        .await;
    }
    create(&a, json!({"id": "1", "name": "First", "price": "1.00"})).await;
    assert_eq!(a.data("/api/v1/products/1").await["name"], "First");
    let second = b.get("/api/v1/products/1").await;
    assert!(cache_status(&second).ends_with("detail=L2"), "{}", cache_status(&second));
    for n in 0..20 {
        let name = format!("Name {n}");
        assert!(b.data("/api/v1/products/1").await["name"].is_string());
        assert_eq!(send(&a, "PATCH", "/api/v1/products/1", json!({"name": name})).await.status, 200);
        let begun = Instant::now();
        while b.data("/api/v1/products/1").await["name"] != name.as_str() {
            assert!(begun.elapsed() < Duration::from_secs(2), "{name} does not arrive");
        }
    }
    let stats = b.data("/api/v1/cache").await;
    assert_eq!(stats["l2"]["up"], true);
    assert!(stats["types"][0]["invalidations"].as_u64().unwrap() >= 20, "{stats}");
    a.stop().await;
    b.stop().await;
}
