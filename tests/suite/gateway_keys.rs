//! Keys of `tidegate key` at the gateway: in either header, with scopes, with limits of their own; and what the upstream hears.

use serde_json::{Value, json};
use tidegate::clock::Clock;

use crate::backend::Backend;
use crate::client;
use crate::gateway::{code, route, seen, sha256, told, upstream};
use crate::identity::{CHEAP, Key, KeyServer, login, me, register, tidegate};
use crate::support::{Answer, TestApp, eventually, within};

#[actix_web::test]
async fn keys_of_identity_open_routes_by_their_scopes() {
    let backend = Backend::echo();
    let server = KeyServer::start();
    let issuers_key = Key::new("EdDSA");
    server.keys.lock().unwrap().push(issuers_key.jwk("1"));
    let toml = upstream(&backend)
        + "[gateway.limits.each]\nby = [\"api_key\"]\nlimit = 2\nperiod = \"1h\"\nburst = 2\n"
        + &route("open", "path = \"/open/\"")
        + &route("closed", "path = \"/closed/\"\nauth = \"api_key\"")
        + &route("orders", "path = \"/orders/\"\nauth = \"api_key\"\nscopes = [\"orders:read\", \"stock\"]")
        + &route("people", "path = \"/people/\"\nauth = \"user\"\nscopes = [\"orders:read\"]")
        + &route("few", "path = \"/few/\"\nauth = \"api_key\"\nlimits = [\"each\"]")
        + &format!(
            "[gateway.api_keys]\ntill = \"sha256:{}\"\nlike = \"sha256:{}\"\n",
            sha256("opensesame"),
            sha256("tg_opensesame")
        )
        + &format!(
            "[[identity.issuers]]\nissuer = \"https://login.example\"\njwks_url = \"{}\"\naudience = \"shop\"\nalgorithms = [\"EdDSA\"]\n",
            server.url
        );
    let settings = [CHEAP.as_slice(), &[("identity.refresh_interval", "100ms")]].concat();
    let app = TestApp::with_gateway(&toml, &settings).await;
    let data = app.folder.path().join("data");
    let make = |scopes: &[&str]| {
        let mut args = vec!["key", "create", "--name", "till"];
        args.extend(scopes.iter().flat_map(|scope| ["--scope", scope]));
        tidegate(&data, "", &args).1
    };
    let (all, some, none) = (make(&["stock", "orders:read", "more"]), make(&["orders:read"]), make(&[]));
    eventually("the keys are seen", async || me(&app.url, &none).await.status == 200).await;
    let get = async |path: &str, header: &str, value: &str| -> Answer {
        client::get_with(&format!("{}{path}", app.gateway()), &[(header, value)]).await
    };
    let shown = |key: &str| key[..15].to_owned();
    for key in [&all, &some, &none] {
        for path in ["/closed/", "/open/"] {
            // In either header; the upstream hears whose it is, and never the key.
            for (header, value) in [("x-api-key", key.clone()), ("authorization", format!("bEARER {key}"))] {
                let heard = seen(&get(path, header, &value).await);
                assert_eq!(told(&heard, "x-internal-consumer"), [shown(key)], "{path} {header}");
                assert!(!heard.to_string().contains(&key[16..]), "{path} {header}: {heard}");
            }
        }
    }
    let heard = seen(&get("/people/", "authorization", &format!("Bearer {some}")).await);
    assert_eq!(told(&heard, "x-internal-user"), [shown(&some)]);
    assert!(!heard.to_string().contains(&some[16..]), "{heard}");

    // Scopes: all that a route names.
    for (key, status) in [(&all, 200), (&some, 403), (&none, 403)] {
        for (header, value) in [("x-api-key", key.clone()), ("authorization", format!("Bearer {key}"))] {
            let answer = get("/orders/", header, &value).await;
            assert_eq!(answer.status, status, "{}", answer.text());
            if status == 403 {
                assert_eq!(code(&answer), (403, String::from("forbidden")));
            }
        }
    }
    assert_eq!(code(&get("/orders/", "x-api-key", "opensesame").await).0, 403, "those of the config have none");
    for of_the_config in ["opensesame", "tg_opensesame"] {
        assert_eq!(get("/closed/", "x-api-key", of_the_config).await.status, 200, "{of_the_config}");
    }
    assert_eq!(code(&get("/people/", "authorization", &format!("Bearer {none}")).await).0, 403);
    // Accounts are not limited by scopes; what another issuer vouches for is.
    register(&app.url, "joe").await;
    let (access, _) = login(&app.url, "joe").await;
    let heard = seen(&get("/people/", "authorization", &format!("Bearer {access}")).await);
    assert_eq!(told(&heard, "authorization").len(), 1, "an access token is for the upstream too: {heard}");
    let now = Clock::system().now() / 1000;
    for (scope, status) in [("orders:read x", 200), ("x", 403)] {
        let claims =
            json!({"iss": "https://login.example", "aud": "shop", "sub": "42", "exp": now + 600, "scope": scope});
        let bearer = format!("Bearer {}", issuers_key.token("1", &claims));
        assert_eq!(get("/people/", "authorization", &bearer).await.status, status, "{scope}");
    }

    // What is none: refused where keys are asked for, and in their own header everywhere.
    let last = if none.ends_with('0') { "1" } else { "0" };
    let forged = format!("{}{last}", &none[..87]);
    let before = backend.count();
    for (path, header, value) in [
        ("/closed/", "x-api-key", forged.clone()),
        ("/open/", "x-api-key", forged.clone()),
        ("/closed/", "authorization", format!("Bearer {forged}")),
        ("/closed/", "authorization", format!("Bearer {access}")),
        ("/closed/", "authorization", format!("Basic {none}")),
        ("/closed/", "x-api-key", String::from("tg_")),
    ] {
        let answer = get(path, header, &value).await;
        assert_eq!(code(&answer), (401, String::from("unauthorized")), "{path} {header} {value}");
        assert_eq!(answer.header("www-authenticate"), Some("ApiKey"));
    }
    assert_eq!(backend.count(), before);
    let theirs = seen(&get("/open/", "authorization", "Bearer tg_of-the-upstream").await);
    assert_eq!(told(&theirs, "authorization"), ["Bearer tg_of-the-upstream"], "an upstream has tokens of its own");

    // A key in the one header does not carry one in the other to the upstream, nor does a dead one go there.
    for (path, named) in [("/open/", "opensesame"), ("/closed/", all.as_str())] {
        let bearer = format!("Bearer {some}");
        let both = [("x-api-key", named), ("authorization", bearer.as_str())];
        let heard = seen(&client::get_with(&format!("{}{path}", app.gateway()), &both).await);
        assert!(
            told(&heard, "authorization").is_empty() && !heard.to_string().contains(&some[16..]),
            "{path}: {heard}"
        );
    }

    // A limit of its own for each key, in whichever header it comes.
    for key in [&all, &some] {
        let statuses = [
            get("/few/", "x-api-key", key).await.status,
            get("/few/", "authorization", &format!("Bearer {key}")).await.status,
            get("/few/", "x-api-key", key).await.status,
        ];
        assert_eq!(statuses, [200, 200, 429]);
    }
    let bucket = format!("{}/api/v1/admin/limits/each/bucket?api_key={}", app.admin(), shown(&all));
    assert_eq!(client::get(&bucket).await.json()["data"]["remaining"], 0);
    assert_eq!(client::request("DELETE", &bucket, &[]).await.json()["data"], json!({"reset": true}));
    let log = std::fs::read_to_string(data.join("audit.log")).unwrap();
    let line: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!(line["detail"], json!({"by": ["api_key"], "api_key": shown(&all), "route": null}));
    assert_eq!(get("/few/", "x-api-key", &all).await.status, 200);

    // A revoked one ends.
    assert!(tidegate(&data, "", &["key", "revoke", &shown(&none)]).0);
    let patience = std::time::Duration::from_secs(5);
    within(patience, "it ends", async || get("/closed/", "x-api-key", &none).await.status == 401).await;
    let heard = seen(&get("/open/", "authorization", &format!("Bearer {none}")).await);
    assert!(!heard.to_string().contains(&none[16..]), "{heard}");
    for key in [&all, &some, &none] {
        assert!(!app.get("/metrics").await.text().contains(&key[16..]));
    }
    app.stop().await;
}
