//! What is set, key by key, as it may be shown: with defaults where nothing is set, and without secrets.

use std::collections::BTreeMap;

use serde::Serialize;
use toml::{Table, Value};
use utoipa::ToSchema;

use super::Config;

/// Every setting with its default.
const DEFAULTS: &str = include_str!("../../config/tidegate.toml");
/// What stands for a secret.
const HIDDEN: &str = "(hidden)";

/// The settings that a config was made of. Secrets are in it, and are never shown.
#[derive(Clone, Default, PartialEq)]
pub struct Effective(Table);

impl std::fmt::Debug for Effective {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Effective")
    }
}

/// A setting that is not what it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize, ToSchema)]
pub struct Change {
    /// Its key, like `gateway.routes.users.retries`.
    #[schema(example = "gateway.routes.users.retries")]
    pub key: String,
    /// What it was; nothing where it was not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "1")]
    pub before: Option<String>,
    /// What it is; nothing where it is not set any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "2")]
    pub after: Option<String>,
}

/// What is set otherwise in `after`, and whether a file has another admin key, of which the config has only the name.
pub fn changes_between(before: &Config, after: &Config) -> Vec<Change> {
    let mut changes = before.effective.changes(&after.effective);
    let is_told = changes.iter().any(|change| change.key.starts_with("server.admin_key"));
    if before.live.admin_key != after.live.admin_key && !is_told {
        let hidden = |key: &Option<String>| key.as_ref().map(|_| HIDDEN.to_owned());
        changes.push(Change {
            key: String::from("server.admin_key"),
            before: hidden(&before.live.admin_key),
            after: hidden(&after.live.admin_key),
        });
    }
    changes
}

impl Effective {
    /// Of what a file and variables set.
    pub fn new(set: Table) -> Self {
        Self(set)
    }

    /// All settings, with defaults, and texts in the place of secrets.
    pub fn shown(&self) -> Table {
        // It is compiled in, and a test reads it.
        let mut all: Table = toml::from_str(DEFAULTS).unwrap_or_default();
        merge(&mut all, &self.0);
        mask(&mut all, "");
        all
    }

    /// What is set otherwise in `after`, by key. Secrets are told to have changed, and no more.
    pub fn changes(&self, after: &Self) -> Vec<Change> {
        let (before, after) = (self.flat(), after.flat());
        let keys: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        let shown = |key: &str, value: Option<&String>| {
            value.map(|value| if is_secret(key) { HIDDEN.to_owned() } else { without_password(value) })
        };
        let changed = keys.into_iter().filter(|key| before.get(*key) != after.get(*key));
        changed
            .map(|key| Change {
                key: key.clone(),
                before: shown(key, before.get(key)),
                after: shown(key, after.get(key)),
            })
            .collect()
    }

    fn flat(&self) -> BTreeMap<String, String> {
        let mut flat = BTreeMap::new();
        for (key, value) in &self.0 {
            flatten(key, value, &mut flat);
        }
        flat
    }
}

fn merge(all: &mut Table, set: &Table) {
    for (key, value) in set {
        match (all.get_mut(key), value) {
            (Some(Value::Table(inner)), Value::Table(set)) => merge(inner, set),
            _ => {
                all.insert(key.clone(), value.clone());
            }
        }
    }
}

fn flatten(key: &str, value: &Value, flat: &mut BTreeMap<String, String>) {
    match value {
        Value::Table(table) => {
            for (name, value) in table {
                flatten(&format!("{key}.{name}"), value, flat);
            }
        }
        Value::Array(list) if list.iter().all(Value::is_table) && !list.is_empty() => {
            for (place, value) in list.iter().enumerate() {
                let name = value.get("name").and_then(Value::as_str).map_or(format!("#{}", place + 1), str::to_owned);
                flatten(&format!("{key}.{name}"), value, flat);
            }
        }
        Value::String(text) => {
            flat.insert(key.to_owned(), text.clone());
        }
        other => {
            flat.insert(key.to_owned(), other.to_string());
        }
    }
}

/// Whether a key's value is a secret, whatever it is. Names of files with secrets are none.
pub(super) fn is_secret(key: &str) -> bool {
    let name = key.rsplit('.').next().unwrap_or(key);
    let secret = |word: &str| name == word || name.ends_with(&format!("_{word}"));
    key.starts_with("gateway.api_keys.")
        || key.contains(".request_headers.")
        || key.starts_with("stream.properties.")
        || ["password", "token", "secret", "admin_key", "write_keys"].iter().any(|word| secret(word))
}

fn mask(table: &mut Table, prefix: &str) {
    for (name, value) in table.iter_mut() {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        mask_value(&key, value);
    }
}

fn mask_value(key: &str, value: &mut Value) {
    match value {
        Value::Table(table) => mask(table, key),
        Value::Array(list) => list.iter_mut().for_each(|value| mask_value(key, value)),
        Value::String(text) if text.is_empty() => {}
        Value::String(text) if is_secret(key) => *text = HIDDEN.to_owned(),
        Value::String(text) => *text = without_password(text),
        other if is_secret(key) => *other = Value::String(HIDDEN.to_owned()),
        _ => {}
    }
}

/// A text without the passwords of addresses in it. Clients of databases find a password up to the last `@`, and in parameters,
/// whatever RFC 3986 says, so it may have any of `/?#,`; only of the web's addresses is what stands behind a `/` a path.
pub(super) fn without_password(text: &str) -> String {
    let is_scheme = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, address) = rest.split_at(at + 3);
        let scheme = before[..at].rsplit(|c| !is_scheme(c)).next().unwrap_or_default();
        // Up to where the next address begins.
        let end = address.find("://").map_or(address.len(), |next| address[..next].trim_end_matches(is_scheme).len());
        let (address, behind) = address.split_at(end);
        let authority = match scheme {
            "http" | "https" => address.find(['/', '?', '#', ',']).unwrap_or(address.len()),
            _ => address.len(),
        };
        shown.push_str(before);
        match address[..authority].rfind('@') {
            Some(last) => {
                let who = &address[..last];
                let user = who.split(':').next().unwrap_or_default();
                shown.push_str(user);
                if who.contains(':') {
                    shown.push(':');
                    shown.push_str(HIDDEN);
                }
                shown.push_str(&address[last..]);
            }
            None => shown.push_str(address),
        }
        rest = behind;
    }
    shown.push_str(rest);
    without_parameters(&shown)
}

/// The same without `password=...`, as parameters of an address have it.
fn without_parameters(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.to_ascii_lowercase().find("password=") {
        let (before, value) = rest.split_at(at + "password=".len());
        shown.push_str(before);
        let end = value.find(['&', ' ', ',', '"']).unwrap_or(value.len());
        if end > 0 {
            shown.push_str(HIDDEN);
        }
        rest = &value[end..];
    }
    shown.push_str(rest);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Effective {
        Effective::new(toml::from_str(text).unwrap())
    }

    #[test]
    fn all_settings_are_shown_and_no_secret_is() {
        let shown = of("[server]\nadmin_key = \"s3cr3t-key-of-ours\"\n[catalog]\nurl = \"postgres://me:s3cr3t@host/shop?sslmode=require\"\n\
             [stream]\nsasl_password = \"s3cr3t\"\nproperties = { \"ssl.key.password\" = \"s3cr3t\" }\n\
             [sites.shop]\nwrite_keys = [\"s3cr3t-1\", \"s3cr3t-2\"]\n[stats]\nurl = [\"redis://:s3cr3t@a:1\", \"redis://b\"]\n[gateway.api_keys]\ntill = \"sha256:s3cr3t\"\n\
             [[gateway.routes]]\nname = \"a\"\nrequest_headers = { x-internal-token = \"s3cr3t\", authorization = \"s3cr3t\" }")
        .shown();
        let text = toml::to_string(&shown).unwrap();
        assert!(!text.contains("s3cr3t"), "{text}");
        assert_eq!(shown["catalog"]["url"].as_str(), Some("postgres://me:(hidden)@host/shop?sslmode=require"));
        assert_eq!(shown["journal"]["durability"].as_str(), Some("written"), "defaults are there");
        assert_eq!(shown["server"]["admin_key_file"].as_str(), Some(""), "the name of a file is no secret");
    }

    #[test]
    fn changes_are_told_by_key() {
        let before = of("[[gateway.routes]]\nname = \"a\"\nretries = 1\n[server]\nadmin_key = \"one\"");
        let after = of("[[gateway.routes]]\nname = \"a\"\nretries = 2\npath = \"/\"\n[server]\nadmin_key = \"two\"");
        let change = |key: &str, before: Option<&str>, after: Option<&str>| Change {
            key: key.to_owned(),
            before: before.map(str::to_owned),
            after: after.map(str::to_owned),
        };
        assert_eq!(
            before.changes(&after),
            [
                change("gateway.routes.a.path", None, Some("/")),
                change("gateway.routes.a.retries", Some("1"), Some("2")),
                change("server.admin_key", Some(HIDDEN), Some(HIDDEN)),
            ]
        );
        assert!(before.changes(&before.clone()).is_empty());
    }

    #[test]
    fn write_keys_are_told_to_have_changed_and_no_more() {
        let keys = |keys: &str| of(&format!("[sites.shop]\nwrite_keys = [{keys}]\norigins = [\"https://a\"]"));
        let changes = keys("\"s3cr3t-one\"").changes(&keys("\"s3cr3t-one\", \"s3cr3t-two\""));
        let hidden = Some(HIDDEN.to_owned());
        let change = Change { key: String::from("sites.shop.write_keys"), before: hidden.clone(), after: hidden };
        assert_eq!(changes, [change]);
        let added = of("").changes(&keys("\"s3cr3t-one\""));
        assert_eq!(added.len(), 2);
        assert!(!format!("{added:?}").contains("s3cr3t"));
    }

    #[test]
    fn passwords_are_taken_out_of_addresses() {
        assert_eq!(without_password("redis://:pw@h:1/0"), "redis://:(hidden)@h:1/0");
        assert_eq!(without_password("redis://u:p@h,redis://u:q@i"), "redis://u:(hidden)@h,redis://u:(hidden)@i");
        assert_eq!(without_password("https://shop.example/a@b"), "https://shop.example/a@b");
        assert_eq!(without_password("plain"), "plain");
        assert_eq!(without_password("https://u:s3cret@shop.example/a@b"), "https://u:(hidden)@shop.example/a@b");
        assert_eq!(
            without_password("[\"redis://:s3cret@a:1\", \"redis://b:1\"]"),
            "[\"redis://:(hidden)@a:1\", \"redis://b:1\"]"
        );
        for odd in ["s3,cret", "s3/cret", "s3?cret", "s3#cret", "s3@cret", "s3:cret"] {
            let shown = without_password(&format!("postgres://me:{odd}@h/shop?sslmode=require"));
            assert_eq!(shown, "postgres://me:(hidden)@h/shop?sslmode=require");
            let shown = without_password(&format!("`mysql://me:{odd}@h/shop` is none"));
            assert_eq!(shown, "`mysql://me:(hidden)@h/shop` is none");
        }
        let shown = without_password("postgres://me@h/shop?password=s3cret&sslmode=require");
        assert_eq!(shown, "postgres://me@h/shop?password=(hidden)&sslmode=require");
    }
}
