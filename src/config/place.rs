//! Where in a file a mistake is: its line, and the key that is wrong.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::effective::{is_secret, without_password};

/// File, line, column, key and hint of an error in a file. What may be a secret is not repeated.
pub(super) fn describe(file: &str, text: &str, error: &toml::de::Error) -> String {
    let Some(span) = error.span() else { return format!("{file}: {}", hint(error.message())) };
    let (line, column) = position(text, span.start);
    let (key, content) = match DeTable::parse(text) {
        Ok(document) => (key_at(document.get_ref(), span.start), true),
        // It is no TOML, so that nobody knows where a text ends and what is a secret.
        Err(_) => (key_near(text, line), false),
    };
    // Also where secrets should stand below.
    let secret = is_secret(&key) || is_secret(&format!("{key}."));
    let message = match hint(error.message()) {
        message if secret && !message.starts_with("unknown key") => about_secret(&message),
        message => without_password(&message),
    };
    // What a key means that is not known is not known either.
    let content = content && !message.starts_with("unknown key");
    let key = if key.is_empty() { key } else { format!("{key}: ") };
    let shown = text.lines().nth(line - 1).unwrap_or_default().trim();
    let shown = if content && !secret && !may_hold_secret(shown) && !shown.is_empty() {
        format!("\n    {}", without_password(shown))
    } else {
        String::new()
    };
    format!("{file}:{line}:{column}: {key}{message}{shown}")
}

/// What is wrong with a secret. The parser's messages repeat the value, before what it should be; ours do not.
fn about_secret(message: &str) -> String {
    match message.rsplit_once(", expected ") {
        Some((_, expected)) => format!("expected {expected}"),
        None if message.starts_with("it must ") => message.to_owned(),
        None => String::from("it has not the form that it must have"),
    }
}

/// Whether a line may set a secret beside what is wrong in it, as an inline table does.
fn may_hold_secret(line: &str) -> bool {
    ["password", "token", "secret", "key", "properties"].iter().any(|word| line.contains(word))
}

/// Line and column of a byte, both from 1.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let start = before.rfind('\n').map_or(0, |end| end + 1);
    (before.matches('\n').count() + 1, before[start..].chars().count() + 1)
}

/// The key that a byte belongs to: to its name or its value. Entries of a list are called as [`line_of`] has them.
fn key_at(table: &DeTable<'_>, at: usize) -> String {
    let mut found = String::new();
    look(table, at, "", &mut found);
    found
}

fn look(table: &DeTable<'_>, at: usize, above: &str, found: &mut String) {
    for (name, value) in table {
        let path = match above {
            "" => name.get_ref().to_string(),
            above => format!("{above}.{}", name.get_ref()),
        };
        if name.span().contains(&at) || value.span().contains(&at) {
            found.clone_from(&path);
        }
        match value.get_ref() {
            // The parts of a table may be anywhere in the file.
            DeValue::Table(inner) => look(inner, at, &path, found),
            DeValue::Array(entries) => {
                for (place, entry) in entries.iter().enumerate() {
                    let DeValue::Table(inner) = entry.get_ref() else { continue };
                    let name = match inner.get("name").map(Spanned::get_ref) {
                        Some(DeValue::String(name)) => name.to_string(),
                        _ => format!("#{}", place + 1),
                    };
                    let path = format!("{path}.{name}");
                    if entry.span().contains(&at) {
                        found.clone_from(&path);
                    }
                    look(inner, at, &path, found);
                }
            }
            _ => {}
        }
    }
}

/// What is probably the key on a line of what is no TOML: the last header above it, and what stands before `=`, there or where
/// a list was begun that it seems to be part of.
fn key_near(text: &str, line: usize) -> String {
    let mut header = "";
    let mut key = "";
    for (number, content) in text.lines().take(line).enumerate() {
        let content = content.trim();
        let name = content.split_once('=').map(|(name, _)| name.trim());
        if content.starts_with('[') && name.is_none() {
            header = content.split('#').next().unwrap_or_default().trim().trim_matches(['[', ']']).trim();
            key = "";
        } else if let Some(name) = name {
            key = if is_key(name) { name } else { "" };
        } else if number + 1 == line && content.starts_with(|c: char| c.is_ascii_alphabetic()) {
            // No value is a bare word: it is a key that lacks its `=`.
            key = "";
        }
    }
    match (header, key) {
        ("", key) => key.to_owned(),
        (header, "") => header.to_owned(),
        (header, key) => format!("{header}.{key}"),
    }
}

fn is_key(name: &str) -> bool {
    let part =
        |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    name.len() <= 64 && name.split('.').all(|name| part(name.trim().trim_matches('"')))
}

/// The line on which `section.key` is set, or where the table begins that it should stand in. The entry of a list is called by
/// its `name`, or by its place, as `#2`.
pub(super) fn line_of(text: &str, key: &str) -> Option<usize> {
    let document = DeTable::parse(text).ok()?;
    let mut at = None;
    let mut table = document.get_ref();
    let mut rest = key;
    'deeper: loop {
        // Names may have dots, so the longest that is there counts.
        let ends = rest.match_indices('.').map(|(end, _)| end).chain([rest.len()]);
        let named = ends.rev().find_map(|end| table.get_key_value(&rest[..end]).map(|found| (end, found)));
        let Some((end, (name, value))) = named else { break };
        at = Some(name.span().start);
        rest = rest.get(end + 1..).unwrap_or_default();
        table = match value.get_ref() {
            DeValue::Table(inner) => inner,
            DeValue::Array(entries) => {
                let (entry, behind) = rest.split_once('.').unwrap_or((rest, ""));
                for (place, found) in entries.iter().enumerate() {
                    let DeValue::Table(inner) = found.get_ref() else { break 'deeper };
                    let is_named =
                        |name: &Spanned<DeValue<'_>>| matches!(name.get_ref(), DeValue::String(name) if name == entry);
                    if inner.get("name").is_some_and(is_named) || format!("#{}", place + 1) == entry {
                        at = Some(found.span().start);
                        table = inner;
                        rest = behind;
                        continue 'deeper;
                    }
                }
                break;
            }
            _ => break,
        };
    }
    at.map(|at| position(text, at).0)
}

/// Adds the nearest known key to an error about an unknown one.
pub(super) fn hint(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match (message.starts_with("unknown field"), quoted.as_slice()) {
        (true, [unknown, known @ ..]) => {
            let near = known
                .iter()
                .map(|key| (strsim::damerau_levenshtein(unknown, key), key))
                .min()
                .filter(|(distance, key)| *distance <= 3.max(key.len() / 2));
            match near {
                Some((_, key)) => format!("unknown key `{unknown}`; did you mean `{key}`?"),
                None => format!("unknown key `{unknown}`; known here are {}", known.join(", ")),
            }
        }
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::raw::RawConfig;

    fn told(text: &str) -> String {
        describe("t.toml", text, &toml::from_str::<RawConfig>(text).unwrap_err())
    }

    #[test]
    fn every_mistake_has_its_line_and_its_key() {
        for (text, expected) in [
            ("[server]\nworkers = \"x\"", "2: server.workers: invalid type"),
            ("[server]\nworkers = -1", "2: server.workers: "),
            ("[server]\nworker = 1", "2: server.worker: unknown key `worker`; did you mean `workers`?"),
            ("servers.listen = 1", "1: servers: unknown key `servers`; did you mean `server`?"),
            ("server.workers = true", "1: server.workers: "),
            ("[server]\nworkers = 1\nworkers = 2", "3: server.workers: duplicate key"),
            ("[server]\nworkers 1", "2: server: "),
            ("[server]\nworkers = ", "2: server.workers: "),
            ("[server]\nlisten = \"x\nworkers = 1", "2: server.listen: "),
            ("# x\n[server\nworkers = 1", "2: server: "),
            ("[[gateway.routes]]\nname = \"a\"\n[[gateway.routes]]\nretries = \"x\"", "4: gateway.routes.#2.retries: "),
            (
                "[[gateway.routes]]\nname = \"a\"\n[gateway.routes.cors]\norigin = []",
                "4: gateway.routes.a.cors.origin: ",
            ),
            ("gateway.limits.x = { limit = 1, perio = \"1s\" }", "1: gateway.limits.x.perio: "),
            ("[cache.types.session]\nl1 = [1, 2]", "2: cache.types.session.l1: "),
        ] {
            let told = told(text);
            let mut parts = told.splitn(4, ':');
            let found = [parts.next(), parts.next(), parts.next(), parts.next()].map(Option::unwrap_or_default);
            assert!(found[2].parse::<usize>().is_ok() && found[0] == "t.toml", "{told}");
            assert!(format!("{}:{}", found[1], found[3]).starts_with(expected), "{text}\n{told}");
        }
    }

    #[test]
    fn no_secret_is_repeated() {
        for text in [
            "[server]\nadmin_key = [\"s3cr3t\"]",
            "[server]\nadmin_key = 53637",
            "[server]\nadmin_key = \"s3cr3t",
            "[server]\nadmin_key = s3cr3t",
            "[server]\nadmin_key = \"s3cr3t\" x",
            "server = { admin_key = \"s3cr3t\", worker = 1 }",
            "[server]\nlisten = 5 # the key is s3cr3t",
            "[gateway.api_keys]\ntill = { s3cr3t = 1 }",
            "[gateway.api_keys]\ntill = 53637",
            "[sites.a]\nwrite_keys = [\n  \"s3cr3t\",\n  5\n]",
            "[sites.a]\nwrite_keys = \"s3cr3t\"",
            "[catalog]\npwd = \"s3cr3t\"",
            "[stream]\nproperties = \"s3cr3t\"",
            "stream = { properties = { \"a.b\" = \"s3cr3t\" }, broker = 1 }",
            "[catalog]\nurl = \"postgres://me:s3cr3t@host/shop\"\nurls = \"postgres://me:s3cr3t@host/shop\"",
            "catalog = \"postgres://me:s3cr3t@host/shop\"",
        ] {
            let told = told(text);
            assert!(!told.contains("s3cr3t") && !told.contains("53637"), "{text}\n{told}");
            assert!(told.starts_with("t.toml:") && told.len() > 20, "{told}");
        }
    }
}
