//! What owners of accounts, and operators in their name, do with them: passwords, sessions, the end; on all three databases.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidegate::clock::{Clock, rfc3339};

use crate::client;
use crate::identity::{
    CHEAP, NOON, PASSWORD, code, coded, login, me, post, refresh, register, servers, tidegate, tidegate_with, tokens,
    with_token,
};
use crate::support::{Answer, TestApp, eventually};

const NEXT: &str = "incorrect zebra battery";

async fn as_user(method: &str, url: &str, path: &str, token: &str, body: &Value) -> Answer {
    let bearer = format!("Bearer {token}");
    client::send(method, &format!("{url}/api/v1/auth/{path}"), &[("authorization", &bearer)], body).await
}

async fn change(url: &str, token: &str, current: &str, new: &str) -> Answer {
    as_user("POST", url, "password", token, &json!({"current_password": current, "new_password": new})).await
}

async fn delete_me(url: &str, token: &str, password: &str) -> Answer {
    as_user("DELETE", url, "me", token, &json!({ "password": password })).await
}

async fn sessions(url: &str, token: &str) -> Vec<Value> {
    let answer = with_token(url, "/api/v1/auth/sessions", token).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    answer.json()["data"].as_array().unwrap().clone()
}

async fn log_in(url: &str, name: &str, password: &str) -> Answer {
    post(url, "login", &json!({"login": name, "password": password})).await
}

#[actix_web::test]
async fn an_owners_life_is_the_same_on_every_database() {
    let clock = Clock::manual(NOON);
    for (name, _, app) in servers(&[], &clock).await {
        let url = &app.url;
        register(url, "jo.doe").await;
        register(url, "other").await;
        let (_, of_other) = login(url, "other").await;
        let begun = clock.now();
        let (first, first_token) = login(url, "jo.doe").await;
        clock.advance(Duration::from_secs(60));
        let (second, second_token) = login(url, "jo.doe").await;
        clock.advance(Duration::from_secs(60));
        let (first, first_token) = {
            let _ = first;
            tokens(&refresh(url, &first_token).await)
        };

        // Sessions: the one that was used last first, and none of somebody else's.
        let seen = sessions(url, &first).await;
        assert_eq!(seen.len(), 2, "{name}: {seen:?}");
        assert_eq!((&seen[0]["current"], &seen[1]["current"]), (&json!(true), &json!(false)), "{name}: {seen:?}");
        let at = |seconds: i64| rfc3339(begun + 1000 * seconds);
        assert_eq!((&seen[0]["created_at"], &seen[0]["last_used_at"]), (&json!(at(0)), &json!(at(120))), "{name}");
        assert_eq!(seen[0]["expires_at"], at(120 + 30 * 86_400), "{name}");
        assert_eq!(seen[1]["last_used_at"], at(60), "{name}");
        assert!(seen[0].as_object().unwrap().keys().all(|key| key != "network"), "{name}: {seen:?}");
        let id = |session: &Value| session["id"].as_str().unwrap().to_owned();
        let others = sessions(url, &tokens(&refresh(url, &of_other).await).0).await;
        let end = async |id: &str| as_user("DELETE", url, &format!("sessions/{id}"), &first, &Value::Null).await;
        assert_eq!(code(&end(&id(&others[0])).await), coded(404, "not_found"), "{name}: somebody else's");
        assert_eq!(code(&end("nonsense").await), coded(404, "not_found"), "{name}");
        assert_eq!(end(&id(&seen[1])).await.status, 204, "{name}");
        assert_eq!(code(&end(&id(&seen[1])).await), coded(404, "not_found"), "{name}: it is ended");
        assert_eq!(refresh(url, &second_token).await.status, 401, "{name}");
        assert_eq!(me(url, &second).await.status, 200, "{name}: an access token that is out holds");
        assert_eq!(sessions(url, &first).await.len(), 1, "{name}");

        // Another password: what there was of sessions ends, this one too, and a new one begins.
        let (_, third_token) = login(url, "jo.doe").await;
        assert_eq!(code(&change(url, &first, "wrong horse", NEXT).await), coded(401, "invalid_credentials"), "{name}");
        for bad in ["short", "Jo.Doe", &"x".repeat(1025)] {
            let refused = change(url, &first, PASSWORD, bad).await;
            assert_eq!(code(&refused), coded(422, "validation_failed"), "{name}: {bad}");
            assert_eq!(refused.json()["error"]["fields"][0]["field"], "new_password", "{name}");
        }
        assert_eq!(code(&change(url, "rubbish", PASSWORD, NEXT).await), coded(401, "unauthorized"), "{name}");
        let (access, token) = tokens(&change(url, &first, PASSWORD, NEXT).await);
        for ended in [&first_token, &third_token] {
            assert_eq!(code(&refresh(url, ended).await), coded(401, "unauthorized"), "{name}");
        }
        assert_eq!(code(&log_in(url, "jo.doe", PASSWORD).await), coded(401, "invalid_credentials"), "{name}");
        let seen = sessions(url, &access).await;
        assert_eq!((seen.len(), &seen[0]["current"]), (1, &json!(true)), "{name}");
        let (access, token) = {
            let _ = access;
            tokens(&refresh(url, &token).await)
        };

        // Everywhere out.
        let again = tokens(&log_in(url, "jo.doe", NEXT).await).1;
        assert_eq!(as_user("DELETE", url, "sessions", &access, &Value::Null).await.status, 204, "{name}");
        for ended in [&token, &again] {
            assert_eq!(refresh(url, ended).await.status, 401, "{name}");
        }
        assert_eq!(sessions(url, &access).await, Vec::<Value>::new(), "{name}");

        // The end.
        let (access, token) = tokens(&log_in(url, "jo.doe", NEXT).await);
        assert_eq!(code(&delete_me(url, &access, PASSWORD).await), coded(401, "invalid_credentials"), "{name}");
        assert_eq!(
            code(&as_user("DELETE", url, "me", &access, &json!({})).await),
            coded(422, "validation_failed"),
            "{name}"
        );
        assert_eq!(delete_me(url, &access, NEXT).await.status, 204, "{name}");
        assert_eq!(refresh(url, &token).await.status, 401, "{name}");
        assert_eq!(code(&log_in(url, "jo.doe", NEXT).await), coded(401, "invalid_credentials"), "{name}");
        for gone in
            [me(url, &access).await, change(url, &access, NEXT, PASSWORD).await, delete_me(url, &access, NEXT).await]
        {
            assert_eq!(code(&gone), coded(401, "unauthorized"), "{name}");
        }
        assert_eq!(sessions(url, &access).await, Vec::<Value>::new(), "{name}");
        assert_eq!(log_in(url, "other", PASSWORD).await.status, 200, "{name}: nobody else's");
        // The name is free, and what was before is not its new owner's.
        register(url, "jo.doe").await;
        assert_eq!(me(url, &access).await.status, 401, "{name}");
        let (access, token) = login(url, "jo.doe").await;
        // One that nobody refreshed for its lifetime is none that is shown.
        clock.advance(Duration::from_secs(30 * 86_400 - 60));
        let (access, _) = {
            let _ = (access, token);
            login(url, "jo.doe").await
        };
        assert_eq!(sessions(url, &access).await.len(), 2, "{name}");
        clock.advance(Duration::from_secs(61));
        assert_eq!(sessions(url, &access).await.len(), 1, "{name}");
        app.stop().await;
    }
}

#[actix_web::test]
async fn operators_do_it_from_the_command_line_on_every_database() {
    for (name, database, app) in servers(&[("identity.refresh_interval", "100ms")], &Clock::system()).await {
        let (url, data) = (&app.url, app.folder.path().join("data"));
        let run = |args: &[&str]| tidegate(&data, &database, args);
        let made = json!({"login": "jo.doe", "email": "jo@shop.example", "password": PASSWORD});
        assert_eq!(post(url, "register", &made).await.status, 201, "{name}");
        register(url, "anna").await;
        let (_, list, _) = run(&["user", "list"]);
        let rows: Vec<Vec<&str>> = list.lines().map(|line| line.split('\t').collect()).collect();
        assert_eq!((rows.len(), rows[0][0], rows[1][0]), (2, "anna", "jo.doe"), "{name}: {list}");
        assert_eq!((rows[0][2], rows[1][2], rows[1][3]), ("-", "jo@shop.example", "user"), "{name}: {list}");
        assert!(!list.contains("argon2"), "{name}: {list}");

        let (_, token) = login(url, "jo.doe").await;
        let (fine, _, said) = tidegate_with(&data, &database, &["user", "password", "Jo@Shop.example"], "short\n");
        assert!(!fine && said.contains("8 to 1024 bytes") && !said.contains("short"), "{name}: {said}");
        let (fine, told, said) = tidegate_with(&data, &database, &["user", "password", "jo.doe"], &format!("{NEXT}\n"));
        assert!(fine && !told.contains(NEXT) && !said.contains(NEXT), "{name}: {told} {said}");
        assert_eq!(refresh(url, &token).await.status, 401, "{name}");
        assert_eq!(log_in(url, "jo.doe", PASSWORD).await.status, 401, "{name}");
        let (access, token) = tokens(&log_in(url, "jo.doe", NEXT).await);
        assert!(run(&["user", "logout", "jo.doe"]).0, "{name}");
        assert_eq!(refresh(url, &token).await.status, 401, "{name}");
        assert!(run(&["user", "delete", "jo.doe"]).0, "{name}");
        assert_eq!(code(&me(url, &access).await), coded(401, "unauthorized"), "{name}");
        for (command, more) in [("delete", None), ("logout", None), ("roles", Some("user"))] {
            let args: Vec<&str> = ["user", command, "jo.doe"].into_iter().chain(more).collect();
            let (fine, _, said) = run(&args);
            assert!(!fine && said.contains("there is no such account"), "{name}: {command}: {said}");
        }
        let (_, key, _) = run(&["key", "create", "--name", "till", "--scope", "stock", "--expires", "1d"]);
        assert!(run(&["key", "revoke", &key[..15]]).0, "{name}");

        let log = std::fs::read_to_string(data.join("audit.log")).unwrap();
        let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let actions: Vec<(&str, &str)> =
            lines.iter().map(|line| (line["action"].as_str().unwrap(), line["target"].as_str().unwrap())).collect();
        let wanted = [
            ("user.password", "jo.doe"),
            ("user.logout", "jo.doe"),
            ("user.delete", "jo.doe"),
            ("key.create", &key[..15]),
            ("key.revoke", &key[..15]),
        ];
        assert_eq!(actions, wanted, "{name}");
        assert_eq!(lines[3]["detail"]["scopes"], json!(["stock"]), "{name}");
        for secret in [NEXT, PASSWORD, &key[16..], "argon2"] {
            assert!(!log.contains(secret), "{name}: {log}");
        }
        // Made also where nobody may register, and by the name that is free.
        let create = ["user", "create", "New.One", "--email", "new@shop.example"];
        let (fine, _, said) = tidegate_with(&data, &database, &create, &format!("{PASSWORD}\n"));
        assert!(fine, "{name}: {said}");
        let (fine, _, said) = tidegate_with(&data, &database, &create, &format!("{PASSWORD}\n"));
        assert!(!fine && said.contains("already"), "{name}: {said}");
        assert_eq!(log_in(url, "new@shop.example", PASSWORD).await.status, 200, "{name}");
        let log = std::fs::read_to_string(data.join("audit.log")).unwrap();
        assert!(
            log.contains("\"action\":\"user.create\",\"target\":\"new.one\"") && !log.contains(PASSWORD),
            "{name}: {log}"
        );
        // A machine that has the database and not the folder.
        if !database.is_empty() {
            let elsewhere = data.join("no").join("such");
            let (fine, _, said) = tidegate(&elsewhere, &database, &["user", "roles", "anna", "user", "admin"]);
            assert!(fine && said.contains("in no log of changes"), "{name}: {said}");
        }
        app.stop().await;
    }
}

#[actix_web::test]
async fn nothing_lives_on_that_met_a_change_of_the_password_on_any_database() {
    for (name, _, app) in servers(&[], &Clock::system()).await {
        let url = app.url.clone();
        let (mut refreshed, mut logged_in) = (0, 0);
        for round in 0..15_u64 {
            let user = format!("user{round}");
            register(&url, &user).await;
            let (access, mine) = login(&url, &user).await;
            let mut sessions = vec![];
            for _ in 0..4 {
                sessions.push(login(&url, &user).await.1);
            }
            // Refreshes one after the other in each session, and logins with the old password, until they are refused; the
            // password changes when each of them is in the middle of it.
            let going = Arc::new(AtomicUsize::new(0));
            let tasks = sessions.len() + 3;
            let deadline = Instant::now() + Duration::from_secs(20);
            let refreshing: Vec<_> = sessions
                .into_iter()
                .chain([mine])
                .map(|mut token| {
                    let (url, going) = (url.clone(), going.clone());
                    actix_web::rt::spawn(async move {
                        for n in 0.. {
                            let answer = refresh(&url, &token).await;
                            if answer.status != 200 {
                                assert_eq!(code(&answer), coded(401, "unauthorized"));
                                return n;
                            }
                            token = tokens(&answer).1;
                            going.fetch_add(usize::from(n == 0), Ordering::SeqCst);
                            assert!(Instant::now() < deadline, "a session lives on");
                        }
                        unreachable!()
                    })
                })
                .collect();
            let coming: Vec<_> = (0..2)
                .map(|_| {
                    let (url, user, going) = (url.clone(), user.clone(), going.clone());
                    actix_web::rt::spawn(async move {
                        let mut held = vec![];
                        loop {
                            let answer = log_in(&url, &user, PASSWORD).await;
                            if answer.status != 200 {
                                assert_eq!(code(&answer), coded(401, "invalid_credentials"));
                                return held;
                            }
                            held.push(tokens(&answer).1);
                            going.fetch_add(usize::from(held.len() == 1), Ordering::SeqCst);
                            assert!(Instant::now() < deadline, "the old password is good for ever");
                        }
                    })
                })
                .collect();
            eventually("all are at it", async || going.load(Ordering::SeqCst) == tasks).await;
            let (_, kept) = tokens(&change(&url, &access, PASSWORD, NEXT).await);
            for one in refreshing {
                refreshed += one.await.unwrap();
            }
            for one in coming {
                for token in one.await.unwrap() {
                    logged_in += 1;
                    assert_eq!(refresh(&url, &token).await.status, 401, "{name}, round {round}: it lives on");
                }
            }
            let (access, _) = tokens(&refresh(&url, &kept).await);
            assert_eq!(self::sessions(&url, &access).await.len(), 1, "{name}, round {round}");
        }
        println!("{name}: {refreshed} refreshes and {logged_in} logins came before the change");
        assert!(refreshed > 0 && logged_in > 0, "{name}: {refreshed} refreshes and {logged_in} logins met the change");
        app.stop().await;
    }
}

#[actix_web::test]
async fn of_two_changes_one_is_made_and_of_an_end_nothing_is_left_on_any_database() {
    for (name, _, app) in servers(&[], &Clock::system()).await {
        let url = app.url.clone();
        for round in 0..8 {
            let user = format!("user{round}");
            register(&url, &user).await;
            let (access, token) = login(&url, &user).await;
            let words = [format!("the first of {round}"), format!("the second of {round}")];
            let both = words.clone().map(|new| {
                let (url, access) = (url.clone(), access.clone());
                actix_web::rt::spawn(async move { change(&url, &access, PASSWORD, &new).await })
            });
            let mut answers = vec![];
            for one in both {
                answers.push(one.await.unwrap());
            }
            let made: Vec<usize> = (0..2).filter(|at| answers[*at].status == 200).collect();
            assert_eq!(made.len(), 1, "{name}: {} {}", answers[0].text(), answers[1].text());
            assert_eq!(code(&answers[1 - made[0]]), coded(401, "invalid_credentials"), "{name}");
            assert_eq!(refresh(&url, &token).await.status, 401, "{name}");
            let (access, token) = tokens(&answers[made[0]]);
            let password = &words[made[0]];
            // The end, with a refresh and a login beside it.
            let (deleting, refreshing, coming) = {
                let (a, b, c) = (url.clone(), url.clone(), url.clone());
                let (access, token, word) = (access.clone(), token.clone(), password.clone());
                let (name, other) = (user.clone(), password.clone());
                (
                    actix_web::rt::spawn(async move { delete_me(&a, &access, &word).await }),
                    actix_web::rt::spawn(async move { refresh(&b, &token).await }),
                    actix_web::rt::spawn(async move { log_in(&c, &name, &other).await }),
                )
            };
            assert_eq!(deleting.await.unwrap().status, 204, "{name}");
            for answer in [refreshing.await.unwrap(), coming.await.unwrap()] {
                match answer.status {
                    200 => assert_eq!(refresh(&url, &tokens(&answer).1).await.status, 401, "{name}: it lives on"),
                    status => assert_eq!(status, 401, "{name}: {}", answer.text()),
                }
            }
            assert_eq!(log_in(&url, &user, password).await.status, 401, "{name}");
            assert_eq!(refresh(&url, &token).await.status, 401, "{name}");
        }
        app.stop().await;
    }
}

#[actix_web::test]
async fn who_has_a_token_and_not_the_password_is_slowed_down_and_told_nothing() {
    let clock = Clock::manual(NOON);
    let settings =
        [CHEAP.as_slice(), &[("server.trusted_proxies", "[\"127.0.0.1\"]"), ("identity.refresh_interval", "100ms")]]
            .concat();
    let app = TestApp::with(&settings, clock.clone()).await;
    let made = json!({"login": "victim", "email": "victim@shop.example", "password": PASSWORD});
    assert_eq!(post(&app.url, "register", &made).await.status, 201);
    let (access, token) = login(&app.url, "victim").await;
    // The thief of an access token guesses, by changing and by deleting.
    let mut answers = vec![];
    for n in 0..12 {
        let guess = format!("a wrong horse {n}");
        answers.push(match n % 2 {
            0 => change(&app.url, &access, &guess, NEXT).await.status,
            _ => delete_me(&app.url, &access, &guess).await.status,
        });
    }
    assert_eq!(answers, [[401; 6], [429; 6]].concat());
    let refused = change(&app.url, &access, PASSWORD, NEXT).await;
    assert_eq!(code(&refused), coded(429, "too_many_attempts"), "also with the right one");
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refresh(&app.url, &token).await.status, 200, "its owner is left alone");
    assert_eq!(log_in(&app.url, "victim", PASSWORD).await.status, 200);
    clock.advance(Duration::from_secs(2));
    assert_eq!(change(&app.url, &access, PASSWORD, NEXT).await.status, 200);

    // Name and address of one account, and of none: the same answers after as many tries, whichever was tried before.
    let tried = async |first: &str, second: &str, network: &str| {
        let mut answers = vec![];
        for name in [[first; 8], [second; 8]].concat() {
            let body = json!({"login": name, "password": "wrong horse"});
            let url = format!("{}/api/v1/auth/login", app.url);
            let answer = client::send("POST", &url, &[("x-forwarded-for", network)], &body).await;
            answers.push((
                answer.status,
                answer.header("retry-after").map(str::to_owned),
                answer.json()["error"]["message"].clone(),
            ));
        }
        answers
    };
    let there = tried("victim", "victim@shop.example", "198.51.100.1").await;
    let nobody = tried("nobody", "nobody@shop.example", "198.51.100.2").await;
    assert_eq!(there, nobody);

    // Keys and other issuers have no password and no sessions here.
    let (_, key, _) = tidegate(&app.folder.path().join("data"), "", &["key", "create", "--name", "x"]);
    eventually("the key is seen", async || me(&app.url, &key).await.status == 200).await;
    for refused in [
        change(&app.url, &key, PASSWORD, NEXT).await,
        delete_me(&app.url, &key, PASSWORD).await,
        with_token(&app.url, "/api/v1/auth/sessions", &key).await,
        as_user("DELETE", &app.url, "sessions", &key, &Value::Null).await,
        as_user("DELETE", &app.url, "sessions/x", &key, &Value::Null).await,
    ] {
        assert_eq!(code(&refused), coded(403, "forbidden"), "{}", refused.text());
    }
}
