//! `[catalog]`: where the products are, as it is written, and what becomes of it.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

use super::raw::section;
use super::units::{Hidden, Span};
use crate::database::{Address, DatabaseOptions};

section! {
    /// `[catalog]`
    Catalog {
        /// Of the database.
        url: Hidden = Hidden::default(),
        /// File with the password.
        password_file: String = String::new(),
        /// Authorities, PEM.
        ca_file: String = String::new(),
        /// Connections.
        pool_size: usize = 8,
        /// Requests that wait for one.
        pool_queue: usize = 1000,
        /// How long they wait.
        pool_timeout: Span = Span::secs(1),
        /// For an answer.
        query_timeout: Span = Span::secs(5),
        /// What is told of in the log.
        slow_query: Span = Span::millis(200),
        /// Products read at start.
        warm_up: usize = 1000,
        /// Of them a second.
        warm_rate: u32 = 500,
    }
}

/// Checks what the types cannot; every mistake goes to `bad` with its key. The address is not repeated in messages, as it may
/// hold a password.
pub(super) fn validate(raw: &Catalog, data: &Path, bad: &mut impl FnMut(&str, String)) -> DatabaseOptions {
    let mut finite = |key: &str, span: Span, least: u64| match span.0 {
        Some(span) if span >= Duration::from_millis(least) => span,
        _ => {
            bad(key, format!("it must be at least {least}ms, and not forever"));
            Duration::from_millis(least)
        }
    };
    let pool_timeout = finite("catalog.pool_timeout", raw.pool_timeout, 1);
    let query_timeout = finite("catalog.query_timeout", raw.query_timeout, 10);
    let slow_query = finite("catalog.slow_query", raw.slow_query, 1);
    if !(1..=1000).contains(&raw.pool_size) {
        bad("catalog.pool_size", String::from("it must be 1 to 1000"));
    }
    if raw.warm_up > 1000 {
        bad("catalog.warm_up", String::from("it must be 0 to 1000"));
    }
    if raw.warm_rate == 0 {
        bad("catalog.warm_rate", String::from("it must be at least 1"));
    }
    let mut read = |key: &str, file: &str| -> Option<String> {
        if file.is_empty() {
            return None;
        }
        std::fs::read_to_string(file).map_err(|error| bad(key, format!("cannot be read: {error}"))).ok()
    };
    let password = read("catalog.password_file", &raw.password_file);
    let password = password.map(|text| text.trim_end_matches(['\n', '\r']).to_owned());
    let ca = read("catalog.ca_file", &raw.ca_file);
    let address = address(&raw.url.0, password, data).unwrap_or_else(|message| {
        bad("catalog.url", message);
        Address::Sqlite(data.join("catalog.db"))
    });
    DatabaseOptions {
        address,
        ca: ca.map(String::into_bytes),
        pool_size: raw.pool_size.clamp(1, 1000),
        pool_queue: raw.pool_queue,
        pool_timeout,
        query_timeout,
        slow_query,
    }
}

fn address(url: &str, password: Option<String>, data: &Path) -> Result<Address, String> {
    if url.is_empty() {
        return Ok(Address::Sqlite(data.join("catalog.db")));
    }
    match url.split_once("://") {
        Some(("sqlite", path)) if !path.is_empty() => Ok(Address::Sqlite(PathBuf::from(path))),
        Some(("postgres" | "postgresql", _)) => {
            let mut to = tokio_postgres::Config::from_str(url).map_err(|_| {
                String::from("it is no address like postgres://user:password@db.example:5432/shop?sslmode=require")
            })?;
            if let Some(password) = password.filter(|_| to.get_password().is_none()) {
                to.password(password);
            }
            if to.get_hosts().is_empty() {
                return Err(String::from("it names no host"));
            }
            Ok(Address::Postgres(Box::new(to)))
        }
        Some(("mysql", _)) => {
            let opts = mysql_async::Opts::from_url(url).map_err(|_| {
                String::from("it is no address like mysql://user:password@db.example:3306/shop?require_ssl=true")
            })?;
            if opts.db_name().is_none_or(str::is_empty) {
                return Err(String::from("it names no database; write it behind the last slash"));
            }
            let with = password.filter(|_| opts.pass().is_none());
            let mut builder = mysql_async::OptsBuilder::from_opts(opts);
            if with.is_some() {
                builder = builder.pass(with);
            }
            Ok(Address::MySql(Box::new(builder.into())))
        }
        _ => Err(String::from(
            "an address must be like sqlite://shop.db, postgres://user@host/shop or mysql://user@host/shop",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(text: &str) -> Vec<(String, String)> {
        let raw: Catalog = toml::from_str(text).unwrap();
        let mut found = Vec::new();
        validate(&raw, Path::new("data"), &mut |key, message| found.push((key.to_owned(), message)));
        found
    }

    fn options(text: &str) -> DatabaseOptions {
        let raw: Catalog = toml::from_str(text).unwrap();
        validate(&raw, Path::new("data"), &mut |key, message| panic!("{key}: {message}"))
    }

    #[test]
    fn the_address_picks_the_database() {
        let Address::Sqlite(path) = options("").address else { panic!("no SQLite") };
        assert_eq!(path, Path::new("data/catalog.db"));
        let Address::Sqlite(path) = options("url = \"sqlite:///var/shop.db\"").address else { panic!("no SQLite") };
        assert_eq!(path, Path::new("/var/shop.db"));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        std::fs::write(&file, "p@ss/word\n").unwrap();
        let file = format!("password_file = \"{}\"", file.display());
        let Address::Postgres(to) = options(&format!("url = \"postgres://u@h/d?sslmode=require\"\n{file}")).address
        else {
            panic!("no PostgreSQL")
        };
        assert_eq!(to.get_password(), Some(&b"p@ss/word"[..]));
        let Address::MySql(to) = options(&format!("url = \"mysql://u@h:1/d?require_ssl=true\"\n{file}")).address else {
            panic!("no MySQL")
        };
        assert_eq!((to.pass(), to.ssl_opts().is_some()), (Some("p@ss/word"), true));
    }

    #[test]
    fn mistakes_name_the_key_and_never_a_secret() {
        for (text, key) in [
            ("url = \"redis://hunter2@h\"", "catalog.url"),
            ("url = \"postgres://u:hunter2@h:port/d\"", "catalog.url"),
            ("url = \"postgres://u:hunter2@h/d?sslmode=maybe\"", "catalog.url"),
            ("url = \"mysql://u:hunter2@h\"", "catalog.url"),
            ("url = \"mysql://u:hunter2@h/d?pool_min=9&pool_max=1\"", "catalog.url"),
            ("url = \"sqlite://\"", "catalog.url"),
            ("pool_size = 0", "catalog.pool_size"),
            ("query_timeout = \"forever\"", "catalog.query_timeout"),
            ("password_file = \"/no/such/file\"", "catalog.password_file"),
            ("ca_file = \"/no/such/file\"", "catalog.ca_file"),
        ] {
            let found = mistakes(text);
            assert!(found.iter().any(|(at, _)| at == key), "{text}: {found:?}");
            assert!(found.iter().all(|(_, message)| !message.contains("hunter2")), "{found:?}");
        }
        let raw: Catalog = toml::from_str("url = \"postgres://u:hunter2@h/d\"").unwrap();
        assert!(!format!("{raw:?}").contains("hunter2"));
        assert!(!format!("{:?}", options("url = \"postgres://u:hunter2@h/d\"")).contains("hunter2"));
    }
}
