//! The rules of the house that a compiler does not know.

use std::path::{Path, PathBuf};

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
    found
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Which rooms a room may use. `clock` is everybody's.
const ARROWS: &[(&str, &[&str])] = &[
    ("actor", &[]),
    ("event", &[]),
    ("lifecycle", &[]),
    ("durable", &[]),
    ("redis", &[]),
    ("cache", &["actor", "redis"]),
    ("journal", &["event", "actor"]),
    ("stats", &["journal", "event", "actor", "redis"]),
    ("stream", &["stats", "journal", "event", "actor"]),
    ("database", &[]),
    ("catalog", &["cache", "database", "journal", "event", "actor", "redis"]),
    ("identity", &["actor", "database", "durable"]),
    ("gateway", &["actor", "durable", "redis"]),
    (
        "config",
        &["cache", "catalog", "database", "event", "gateway", "identity", "journal", "redis", "stats", "stream"],
    ),
    ("control", &["config", "durable", "gateway"]),
    (
        "diagnostics",
        &["cache", "catalog", "database", "gateway", "identity", "journal", "stats", "stream", "event", "lifecycle"],
    ),
    (
        "http",
        &[
            "actor",
            "cache",
            "catalog",
            "config",
            "control",
            "diagnostics",
            "event",
            "gateway",
            "identity",
            "journal",
            "lifecycle",
            "stats",
            "stream",
        ],
    ),
    (
        "app",
        &[
            "actor",
            "cache",
            "catalog",
            "config",
            "control",
            "database",
            "diagnostics",
            "event",
            "gateway",
            "http",
            "identity",
            "journal",
            "lifecycle",
            "stats",
            "stream",
        ],
    ),
    (
        "cli",
        &[
            "app",
            "catalog",
            "config",
            "control",
            "database",
            "diagnostics",
            "event",
            "identity",
            "journal",
            "lifecycle",
            "stats",
            "stream",
        ],
    ),
];

/// Rooms that a line of code names, from `crate::room` anywhere and `use crate::{a, b}`.
fn used(line: &str) -> Vec<String> {
    let mut rooms = vec![];
    let mut rest = line;
    while let Some(at) = rest.find("crate::") {
        rest = &rest[at + "crate::".len()..];
        let names = match rest.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap_or_default().split(',').collect(),
            None => vec![rest],
        };
        for name in names {
            let name: String = name.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            rooms.push(name);
        }
    }
    rooms
}

fn room_of(path: &Path) -> String {
    let relative = path.strip_prefix(src()).unwrap();
    let first = relative.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

#[test]
fn imports_point_one_way() {
    let mut looked = 0;
    for path in sources(&src()) {
        let room = room_of(&path);
        if ["lib", "main", "clock"].contains(&room.as_str()) {
            continue;
        }
        let (_, allowed) = ARROWS.iter().find(|(name, _)| *name == room).unwrap_or_else(|| {
            panic!("{room} is a new room: say in ARROWS what it may use");
        });
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            if line.trim_start().starts_with("//") {
                continue;
            }
            for used in used(line) {
                let fine = used == room || used == "clock" || allowed.contains(&used.as_str());
                assert!(fine, "{}: {room} must not use {used}: {line}", path.display());
                looked += 1;
            }
        }
    }
    assert!(looked > 100, "only {looked} uses were found");
}

#[test]
fn the_check_sees_arrows_that_point_the_wrong_way() {
    assert_eq!(used("use crate::{http, stats::Live};"), ["http", "stats"]);
    assert_eq!(used("    let x = crate::app::Core::open(crate::clock::now());"), ["app", "clock"]);
}

#[test]
fn http_knows_no_stores_and_no_actors() {
    for path in sources(&src().join("http")) {
        let text = std::fs::read_to_string(&path).unwrap();
        for word in ["stats::store", "SqliteStore", "Aggregator", "Addr<", "journal::writer", "rusqlite"] {
            assert!(!text.contains(word), "{} names {word}", path.display());
        }
    }
}

#[test]
fn only_the_clock_asks_for_the_time() {
    for path in sources(&src()) {
        let text = std::fs::read_to_string(&path).unwrap();
        if room_of(&path) != "clock" {
            for word in ["SystemTime::now", "Instant::now"] {
                assert!(!text.contains(word), "{} has {word}", path.display());
            }
        }
    }
}

#[test]
fn messages_are_never_sent_without_asking() {
    for path in sources(&src()) {
        let text = std::fs::read_to_string(&path).unwrap();
        let code: String = text.lines().filter(|l| !l.trim_start().starts_with("//")).collect();
        assert!(!code.contains(".do_send("), "{}: do_send ignores every bound", path.display());
    }
}

#[test]
fn files_stay_short_and_say_what_they_are_for() {
    for path in sources(&src()) {
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines().count();
        assert!(lines <= 550, "{} has {lines} lines", path.display());
        let tests = path.file_stem().unwrap().to_string_lossy().ends_with("tests");
        assert!(tests || text.starts_with("//! "), "{} does not say what it is for", path.display());
    }
}
