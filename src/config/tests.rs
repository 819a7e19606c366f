//! Tests of the config as a whole.

use super::*;
use crate::event::intake::PrivacyPolicy;

const FILE: &str = include_str!("../../config/tidegate.toml");

/// Sections whose entries have names of their own; the example at the end of the file has one of each.
const MANY: [&str; 5] =
    ["gateway.limits", "gateway.upstreams", "gateway.routes", "gateway.api_keys", "identity.issuers"];

fn load(text: &str, env: &[(&str, &str)]) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.toml");
    std::fs::write(&path, text).unwrap();
    let env: Vec<_> = env.iter().map(|(k, v)| (String::from(*k), String::from(*v))).collect();
    Config::load(Some(&path), env.into_iter())
        .map_err(|e| e.to_string().replace(&format!("{}/", folder.path().display()), ""))
}

#[test]
fn the_shipped_file_holds_every_default_and_no_other() {
    let raw: RawConfig = toml::from_str(FILE).unwrap();
    assert_eq!(raw, RawConfig::default());
    // Every key of the file, taken away from the struct's error message about an unknown one, leaves nothing.
    let table: toml::Table = toml::from_str(FILE).unwrap();
    for (section, keys) in &table {
        let error = toml::from_str::<RawConfig>(&format!("[{section}]\nnosuch = 1")).unwrap_err();
        let known: Vec<&str> = error.message().split('`').skip(3).step_by(2).collect();
        for key in &known {
            if MANY.contains(&format!("{section}.{key}").as_str()) {
                continue;
            }
            assert!(keys.as_table().unwrap().contains_key(*key), "{section}.{key} is not in the file");
        }
        assert!(!known.is_empty(), "{section}: {error}");
        for (inner, keys) in keys.as_table().unwrap().iter().filter(|(_, keys)| keys.is_table()) {
            // Others' own names, of which we have no list: stream.properties.
            let Err(error) = toml::from_str::<RawConfig>(&format!("[{section}.{inner}]\nnosuch = 1")) else {
                assert!(keys.as_table().unwrap().is_empty(), "{section}.{inner}");
                continue;
            };
            for key in error.message().split('`').skip(3).step_by(2) {
                assert!(keys.as_table().unwrap().contains_key(key), "{section}.{inner}.{key} is not in the file");
            }
            for (deeper, keys) in keys.as_table().unwrap().iter().filter(|(_, keys)| keys.is_table()) {
                let text = format!("[{section}.{inner}.{deeper}]\nnosuch = 1");
                let error = toml::from_str::<RawConfig>(&text).unwrap_err();
                for key in error.message().split('`').skip(3).step_by(2) {
                    let there = keys.as_table().unwrap().contains_key(key);
                    assert!(there, "{section}.{inner}.{deeper}.{key} is not in the file");
                }
            }
        }
    }
}

#[test]
fn the_example_for_production_is_valid() {
    let config = load(include_str!("../../config/production.toml"), &[]).unwrap();
    assert_eq!(config.live.trusted_proxies.len(), 2);
    let gateway = config.gateway;
    let names: Vec<&str> = gateway.routes.iter().map(|route| route.name.as_str()).collect();
    assert_eq!(names, ["users", "products", "beacons", "pixel", "tracker"]);
    let users = &gateway.upstreams["users"];
    let crate::gateway::options::Discovery::Static(targets) = &users.discovery else { panic!("{users:?}") };
    assert_eq!((targets.len(), users.max_fails, users.fail_timeout.as_secs(), users.keep_alive), (3, 3, 30, 32));
    let (address, key) = (&gateway.limits["per_address"], &gateway.limits["per_key"]);
    assert_eq!((address.limit, address.burst, key.limit, key.burst), (100, 10, 1000, 100));
}

#[test]
fn every_setting_has_a_comment() {
    let mut before = "";
    for line in FILE.lines() {
        if line.contains(" = ") && !line.starts_with('#') {
            assert!(before.starts_with("# "), "no comment above {line}");
        }
        before = line;
    }
}

#[test]
fn mistakes_say_where_and_what_instead() {
    let error = load("[server]\nlisten = \"127.0.0.1:0\"\nworker = 3\n", &[]).unwrap_err();
    assert!(error.starts_with("t.toml:3:1: server.worker: unknown key `worker`; did you mean `workers`?"), "{error}");
    let error = load("[journal]\nretention = \"1 year\"\n", &[]).unwrap_err();
    assert!(error.starts_with("t.toml:2:13: journal.retention: `1 year` is no duration"), "{error}");
    let error = load("[journal]\ndurability = \"sometimes\"\n", &[]).unwrap_err();
    assert!(error.contains("t.toml:2") && error.contains("synced"), "{error}");
    let error = load("[server\n", &[]).unwrap_err();
    assert!(error.starts_with("t.toml:1"), "{error}");
    let error = load("[server]\nlisten = \"here\"\n[stats]\nmax_keys = 1\n", &[]).unwrap_err();
    assert!(error.starts_with("t.toml:2: server.listen: `here` is no address"), "{error}");
    assert!(error.contains("\nt.toml:4: stats.max_keys: "), "all at once: {error}");
    let error = load("[server]\nadmin_key = \"short\"\n", &[]).unwrap_err();
    assert!(error.contains("admin_key") && !error.contains("short"), "{error}");
}

#[test]
fn the_shared_store_is_one_address_or_a_list() {
    assert!(load("", &[]).unwrap().shared.is_none());
    let config = load("[stats]\nurl = \"redis://127.0.0.1:1/2\"\n[stats.redis]\nuniques = \"hll\"\n", &[]).unwrap();
    let shared = config.shared.unwrap();
    assert_eq!(
        (shared.redis.urls.len(), shared.redis.cluster, shared.uniques),
        (1, false, crate::stats::UniquesMode::Hll)
    );
    let config = load("[stats]\nurl = [\"redis://a:1\", \"redis://a:2\"]\n", &[]).unwrap();
    assert!(config.shared.unwrap().redis.cluster);
    assert!(load("", &[("TIDEGATE__STATS__URL", "redis://a:1, redis://b:1")]).unwrap().shared.unwrap().redis.cluster);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "a b/c\n").unwrap();
    let env = [
        ("TIDEGATE__STATS__URL", r#"["rediss://a:1", "rediss://b:1"]"#),
        ("TIDEGATE__STATS__REDIS__PASSWORD_FILE", file.to_str().unwrap()),
    ];
    assert_eq!(
        load("", &env).unwrap().shared.unwrap().redis.urls,
        ["rediss://:a%20b%2Fc@a:1", "rediss://:a%20b%2Fc@b:1"]
    );
    let error = load("[stats]\nurl = \"http://user:secret@x\"\n", &[]).unwrap_err();
    assert!(error.starts_with("t.toml:2: stats.url: an address must be like") && !error.contains("secret"), "{error}");
    for odd in ["redis://127.0.0.1:6379/abc", "redis://", "redis://:secret@a:1,rediss://b:1", "redis://a:99999"] {
        let error = load(&format!("[stats]\nurl = \"{odd}\"\n"), &[]).unwrap_err();
        assert!(error.starts_with("t.toml:2: stats.url: no client") && !error.contains("secret"), "{odd}: {error}");
    }
    let error = load("[stats]\nurl = \"redis://x\"\n[stats.redis]\nprefix = \"{a}\"\n", &[]).unwrap_err();
    assert!(error.starts_with("t.toml:4: stats.redis.prefix:"), "{error}");
}

#[test]
fn the_environment_overrides_the_file() {
    let file = "[server]\nlisten = \"127.0.0.1:1\"\n";
    let config = load(
        file,
        &[
            ("TIDEGATE__SERVER__LISTEN", "127.0.0.1:2"),
            ("TIDEGATE__SERVER__WORKERS", "3"),
            ("TIDEGATE__SERVER__ADMIN_KEY", "1234567890123456"),
            ("TIDEGATE__INGEST__CORS_ORIGINS", "[\"https://a\"]"),
            ("TIDEGATE__SITES__SHOP__PRIVACY_SIGNAL", "drop"),
            ("TIDEGATE__SITES__SHOP__WRITE_KEYS", "[\"key-of-now\", \"key-before\"]"),
            ("HOME", "/"),
        ],
    )
    .unwrap();
    assert_eq!((config.listen.port(), config.workers), (2, 3));
    assert_eq!(config.live.admin_key.as_deref(), Some("1234567890123456"));
    assert_eq!(config.live.cors.as_ref().map(Vec::len), Some(1));
    let shop = config.live.rules.sites.get("shop").unwrap();
    assert_eq!((shop.privacy, shop.access.write_keys.len()), (Some(PrivacyPolicy::Drop), 2));
    let error = load(file, &[("TIDEGATE__SERVER__LISTN", "x")]).unwrap_err();
    assert_eq!(error, "environment variable TIDEGATE__SERVER__LISTN: unknown key `listn`; did you mean `listen`?");
    let error = load(file, &[("TIDEGATE__SERVER__LISTEN", "there")]).unwrap_err();
    assert!(error.starts_with("environment variable TIDEGATE__SERVER__LISTEN: `there` is no address"), "{error}");
    let error = load(file, &[("TIDEGATE__SERVER", "x")]).unwrap_err();
    assert!(error.contains("TIDEGATE__SECTION__KEY"), "{error}");
}

#[test]
fn the_environment_sets_properties_with_dots_in_their_names() {
    let file = "[stream]\nproperties = { \"socket.timeout.ms\" = 7000, \"client.rack\" = \"a\" }\n";
    let properties = |env: &[(&str, &str)]| -> std::collections::BTreeMap<String, String> {
        let config = load(file, env).unwrap();
        config.stream.properties.into_iter().map(|(name, value)| (name, value.0)).collect()
    };
    let found = properties(&[
        ("TIDEGATE__STREAM__PROPERTIES__SOCKET_TIMEOUT_MS", "9000"),
        ("TIDEGATE__STREAM__PROPERTIES__SOCKET_KEEPALIVE_ENABLE", "true"),
    ]);
    let held: Vec<(&str, &str)> = found.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(held, [("client.rack", "a"), ("socket.keepalive.enable", "true"), ("socket.timeout.ms", "9000")]);
    // The whole table, in place of the file's.
    let found = properties(&[("TIDEGATE__STREAM__PROPERTIES", r#"{ "client.rack" = "b", socket.timeout.ms = 1000 }"#)]);
    assert_eq!((found.len(), found["client.rack"].as_str(), found["socket.timeout.ms"].as_str()), (2, "b", "1000"));
    let variable = "TIDEGATE__STREAM__PROPERTIES__SOCKET_TIMEOUT_MS";
    let error = load("", &[(variable, "soon")]).unwrap_err();
    assert!(error.starts_with(&format!("environment variable {variable}: ")), "{error}");
}

#[test]
fn a_mistake_in_a_list_or_a_nested_table_names_its_line() {
    let text = "\
[gateway]
listen = \"127.0.0.1:0\"
limits.slow = { limit = 5, period = \"forever\" }

[gateway.upstreams.users]
targets = [\"a:1\"]

[gateway.upstreams.users.health]
path = \"x\"

# A comment, and an entry without a name.
[[gateway.routes]]
path = \"/a/\"
own = true

[[gateway.routes]]
name = \"users\"
path = \"/b/\"
upstream = \"user\"

[gateway.routes.cors]
\"origins\" = [\"shop.example\"]

[[gateway.routes]]
name = \"users\"
own = true

[[gateway.routes]]
name = \"last\"
pattern = \"/{a\"
upstream = \"users\"
fallback = { upstream = \"users\" }
";
    let error = load(text, &[]).unwrap_err();
    let found: Vec<&str> = error.lines().map(|line| line.splitn(4, ':').take(3).last().unwrap_or_default()).collect();
    let lines: Vec<&str> = error.lines().map(|line| line.split(':').nth(1).unwrap_or_default()).collect();
    let expected = [
        ("3", " gateway.limits.slow.period"),
        ("9", " gateway.upstreams.users.health.path"),
        ("12", " gateway.routes.#1.name"),
        ("19", " gateway.routes.users.upstream"),
        ("22", " gateway.routes.users.cors.origins"),
        ("25", " gateway.routes.#3.name"),
        ("24", " gateway.routes.#3.path"),
        ("30", " gateway.routes.last.pattern"),
        ("32", " gateway.routes.last.fallback.upstream"),
    ];
    let found: Vec<(&str, &str)> = lines.into_iter().zip(found).collect();
    assert_eq!(found, expected, "{error}");
    // Unknown keys are found by the parser, and with the nearest known one.
    let error = load("[[gateway.routes]]\nname = \"a\"\nupstrem = \"b\"\n", &[]).unwrap_err();
    assert!(
        error.starts_with("t.toml:3:1: gateway.routes.a.upstrem: unknown key `upstrem`; did you mean `upstream`?"),
        "{error}"
    );
    let error = load("[gateway.upstreams.a.breaker]\nprobe = 1\n", &[]).unwrap_err();
    assert!(
        error.starts_with("t.toml:2:1: gateway.upstreams.a.breaker.probe: unknown key `probe`; did you mean `probes`?"),
        "{error}"
    );
    // What comes from a variable is the variable's.
    let routes = r#"[{ name = "a", path = "/a/", upstream = "b" }]"#;
    let error = load("[gateway]\nlisten = \"127.0.0.1:0\"\n", &[("TIDEGATE__GATEWAY__ROUTES", routes)]).unwrap_err();
    assert!(
        error.starts_with("environment variable TIDEGATE__GATEWAY__ROUTES: gateway.routes.a.upstream: "),
        "{error}"
    );
}
