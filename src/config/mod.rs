//! The config: defaults, then a file, then the environment; raw first ([`raw`]), then validated ([`Config`]).
//!
//! Errors say where (file and line, or the variable), which key, what is wrong, and what to write instead.

pub mod admin;
pub mod cache;
mod catalog;
pub mod effective;
pub mod gateway;
mod identity;
pub mod live;
mod place;
pub mod popularity;
pub mod raw;
mod redis;
pub mod sites;
pub mod stream;
pub mod units;

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

use crate::cache::CacheOptions;
use crate::catalog::popularity::PopularityOptions;
use crate::database::DatabaseOptions;
use crate::event::intake::Rules;
use crate::gateway::options::GatewayOptions;
use crate::identity::IdentityOptions;
use crate::journal::JournalOptions;
use crate::stats::{Retention, SharedOptions, StatsOptions};
use crate::stream::StreamOptions;
use admin::AdminOptions;
use effective::Effective;
use live::Live;
use place::{describe, hint, line_of};
use raw::RawConfig;
use units::Span;

/// Variables that begin so set config keys.
pub const ENV_PREFIX: &str = "TIDEGATE__";

/// The table whose keys are another's names, with dots in them. A variable has `_` for each: none that is of use has one itself.
const FOREIGN: &str = "stream.properties";

/// What is wrong with a config; one message a mistake.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

/// A config that can be run. What is not in `live` is of the process' start.
#[derive(Clone, Debug)]
pub struct Config {
    /// What a running server follows.
    pub live: Arc<Live>,
    /// Address to listen on.
    pub listen: SocketAddr,
    /// HTTP threads.
    pub workers: usize,
    /// Connections in each of them.
    pub max_connections: usize,
    /// For heads and pauses.
    pub client_timeout: Duration,
    /// For idle connections.
    pub keep_alive: Duration,
    /// For a stop.
    pub drain_timeout: Duration,
    /// Folder of all data.
    pub data: PathBuf,
    /// How the journal is kept.
    pub journal: JournalOptions,
    /// How events are counted.
    pub stats: StatsOptions,
    /// Age at which counts are written and shown.
    pub flush_interval: Duration,
    /// Where several instances add up.
    pub shared: Option<SharedOptions>,
    /// What is handed on to Kafka.
    pub stream: StreamOptions,
    /// What is cached.
    pub cache: CacheOptions,
    /// How products are scored.
    pub popularity: PopularityOptions,
    /// Where the products are.
    pub catalog: DatabaseOptions,
    /// Accounts, tokens and keys.
    pub identity: IdentityOptions,
    /// What stands behind the gateway, and who may pass.
    pub gateway: GatewayOptions,
    /// How a running server is steered.
    pub admin: AdminOptions,
    /// Where all of this came from.
    pub origin: Origin,
    /// What is set, key by key.
    pub effective: Effective,
}

impl Config {
    /// Reads a file (if one is given) and variables, and checks everything.
    ///
    /// # Errors
    /// With every mistake, where it was made.
    pub fn load(file: Option<&Path>, env: impl Iterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let variables = env.filter(|(name, _)| name.starts_with(ENV_PREFIX)).collect();
        Origin { file: file.map(Path::to_owned), variables }.read()
    }

    fn parse(origin: &Origin, name: String, text: Option<String>) -> Result<Self, ConfigError> {
        let mut table = toml::Table::new();
        let mut sources = Sources::default();
        if let Some(text) = text {
            // Once from the text, for the line numbers of its errors; the merged table has none.
            toml::from_str::<RawConfig>(&text).map_err(|error| ConfigError(vec![describe(&name, &text, &error)]))?;
            table = toml::from_str(&text).map_err(|error| ConfigError(vec![format!("{name}: {error}")]))?;
            sources.file = Some((name, text));
        }
        let mut errors = Vec::new();
        let mut variables = origin.variables.clone();
        variables.sort();
        for (name, value) in variables {
            // As text if it can be that: a key of digits is no number.
            let typed = [toml::Value::String(value.clone())].into_iter().chain(typed(&value));
            let tried = typed.map(|value| {
                let mut trial = table.clone();
                set(&mut trial, &name, value)?;
                RawConfig::deserialize(trial.clone()).map_err(|e| hint(e.message())).map(|_| trial)
            });
            match tried.reduce(|first, next| first.or(next)).unwrap_or_else(|| Ok(table.clone())) {
                Ok(trial) => {
                    table = trial;
                    sources.variables.push(name);
                }
                Err(error) => errors.push(format!("environment variable {name}: {error}")),
            }
        }
        if !errors.is_empty() {
            return Err(ConfigError(errors));
        }
        let raw = RawConfig::deserialize(table.clone()).map_err(|e| ConfigError(vec![hint(e.message())]))?;
        let config = validate(&raw).map_err(|mistakes| {
            ConfigError(mistakes.iter().map(|(key, message)| sources.describe(key, message)).collect())
        })?;
        Ok(Self { origin: origin.clone(), effective: Effective::new(table), ..config })
    }
}

/// Where a config came from, to be read again.
#[derive(Clone, Default)]
pub struct Origin {
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// Variables, and options of the command line as such. They may hold secrets.
    variables: Vec<(String, String)>,
}

impl std::fmt::Debug for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Origin").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Origin {
    /// What errors call the file.
    fn name(&self) -> String {
        self.file.as_ref().map_or_else(|| String::from("config"), |file| file.display().to_string())
    }

    /// What the file says, if there is one.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn text(&self) -> Result<Option<String>, ConfigError> {
        let Some(file) = &self.file else { return Ok(None) };
        let text = std::fs::read_to_string(file);
        text.map(Some).map_err(|error| ConfigError(vec![format!("{}: cannot be read: {error}", file.display())]))
    }

    /// Reads all of it again.
    ///
    /// # Errors
    /// With every mistake, where it was made.
    pub fn read(&self) -> Result<Config, ConfigError> {
        Config::parse(self, self.name(), self.text()?)
    }

    /// The same, if the file said this.
    ///
    /// # Errors
    /// With every mistake, where it was made.
    pub fn with_text(&self, text: String) -> Result<Config, ConfigError> {
        Config::parse(self, self.name(), Some(text))
    }

    /// The same, if the file said what comes from elsewhere, which errors call `name`.
    ///
    /// # Errors
    /// With every mistake, where it was made.
    pub fn with_foreign(&self, name: &str, text: String) -> Result<Config, ConfigError> {
        Config::parse(self, name.to_owned(), Some(text))
    }
}

/// Where settings were made, to tell where one is wrong.
#[derive(Default)]
struct Sources {
    file: Option<(String, String)>,
    variables: Vec<String>,
}

impl Sources {
    fn describe(&self, key: &str, message: &str) -> String {
        let variable = match key.strip_prefix(FOREIGN).and_then(|rest| rest.strip_prefix('.')) {
            Some(name) => format!("{FOREIGN}.{}", name.replace('.', "_")),
            None => key.to_owned(),
        };
        // The dots left are those between tables.
        let variable = format!("{ENV_PREFIX}{}", variable.to_ascii_uppercase().replace('.', "__"));
        if self.variables.contains(&variable) {
            return format!("environment variable {variable}: {message}");
        }
        // A variable may also hold a whole table, or a list of them.
        let holds = |set: &&String| variable.strip_prefix(set.as_str()).is_some_and(|rest| rest.starts_with("__"));
        if let Some(set) = self.variables.iter().find(holds) {
            return format!("environment variable {set}: {key}: {message}");
        }
        match self.file.as_ref().and_then(|(name, text)| Some((name, line_of(text, key)?))) {
            Some((name, line)) => format!("{name}:{line}: {key}: {message}"),
            None => format!("{key}: {message}"),
        }
    }
}

/// A variable's value as the number, truth value, list or table that it reads as.
fn typed(value: &str) -> Option<toml::Value> {
    let value = toml::from_str::<toml::Table>(&format!("v = {value}")).ok()?.remove("v")?;
    let is_typed = matches!(
        value,
        toml::Value::Integer(_)
            | toml::Value::Float(_)
            | toml::Value::Boolean(_)
            | toml::Value::Array(_)
            | toml::Value::Table(_)
    );
    is_typed.then_some(value)
}

/// Puts `TIDEGATE__SERVER__LISTEN` into the table as `server.listen`.
fn set(table: &mut toml::Table, name: &str, value: toml::Value) -> Result<(), String> {
    let path: Vec<String> = name[ENV_PREFIX.len()..].split("__").map(str::to_ascii_lowercase).collect();
    let Some((key, sections)) = path.split_last().filter(|(key, sections)| !key.is_empty() && !sections.is_empty())
    else {
        return Err(String::from("it must be like TIDEGATE__SECTION__KEY"));
    };
    let mut inner = table;
    for section in sections {
        inner = inner
            .entry(section.clone())
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(|| format!("{section} is no section"))?;
    }
    let foreign = sections.join(".") == FOREIGN;
    inner.insert(if foreign { key.replace('_', ".") } else { key.clone() }, value);
    Ok(())
}

/// Bytes that one request may need: a body as sent, as decompressed, and what becomes of it.
fn room_for(max_body: u64) -> u64 {
    max_body.saturating_mul(2).saturating_add(1 << 20)
}

/// Checks what the types cannot; every mistake with its key.
fn validate(raw: &RawConfig) -> Result<Config, Vec<(String, String)>> {
    let mut errors = Vec::new();
    let mut bad = |key: &str, message: String| errors.push((key.to_owned(), message));

    // A name is fine where it stands for an address, as localhost does.
    let listen = raw.server.listen.to_socket_addrs().ok().and_then(|mut found| found.next()).unwrap_or_else(|| {
        bad("server.listen", format!("`{}` is no address like 127.0.0.1:8080", raw.server.listen));
        SocketAddr::from(([127, 0, 0, 1], 0))
    });
    let mut trusted_proxies = Vec::new();
    for range in &raw.server.trusted_proxies {
        match range.parse::<IpNet>().or_else(|_| range.parse().map(|ip: std::net::IpAddr| ip.into())) {
            Ok(range) => trusted_proxies.push(range),
            Err(_) => bad("server.trusted_proxies", format!("`{range}` is no range like 10.0.0.0/8")),
        }
    }
    let mut admin_key = raw.server.admin_key.clone();
    if !raw.server.admin_key_file.is_empty() {
        match std::fs::read_to_string(&raw.server.admin_key_file) {
            Ok(text) => admin_key = text.trim().to_owned(),
            Err(error) => bad("server.admin_key_file", format!("cannot be read: {error}")),
        }
    }
    if !admin_key.is_empty() && admin_key.len() < 16 {
        bad("server.admin_key", String::from("it must have at least 16 characters"));
    }
    let mut finite = |key: &str, span: Span, least: u64| match span.0 {
        Some(span) if span >= Duration::from_millis(least) => span,
        Some(_) => {
            bad(key, format!("it must be at least {least}ms"));
            Duration::from_millis(least)
        }
        None => {
            bad(key, String::from("it cannot be forever"));
            Duration::from_millis(least)
        }
    };
    let client_timeout = finite("server.client_timeout", raw.server.client_timeout, 100);
    let keep_alive = finite("server.keep_alive", raw.server.keep_alive, 0);
    let drain_timeout = finite("server.drain_timeout", raw.server.drain_timeout, 100);
    let visit_timeout = finite("ingest.visit_timeout", raw.ingest.visit_timeout, 1000);
    let max_future = finite("ingest.max_future", raw.ingest.max_future, 0);
    let dedup_window = finite("journal.dedup_window", raw.journal.dedup_window, 1000);
    let flush_interval = finite("stats.flush_interval", raw.stats.flush_interval, 1);
    finite("stats.retention_minutes", raw.stats.retention_minutes, 60 * 60 * 1000);
    let mut least = |key: &str, value: u64, least: u64| {
        if value < least {
            bad(key, format!("it must be at least {least}"));
        }
    };
    least("server.max_body_bytes", raw.server.max_body_bytes.0, 1024);
    least("server.max_connections", raw.server.max_connections as u64, 1);
    least("journal.segment_bytes", raw.journal.segment_bytes.0, 4096);
    least("journal.max_bytes", raw.journal.max_bytes.0, 2 * raw.journal.segment_bytes.0);
    least("journal.queue_batches", raw.journal.queue_batches as u64, 1);
    least("journal.queue_bytes", raw.journal.queue_bytes.0, room_for(raw.server.max_body_bytes.0));
    least("ingest.max_sites", raw.ingest.max_sites as u64, 1);
    least("ingest.max_open_visits", raw.ingest.max_open_visits as u64, 100);
    least("stats.max_keys", raw.stats.max_keys as u64, 10);
    let shared = redis::shared(&raw.stats, &mut bad);
    let sites = sites::sites(&raw.sites, raw.ingest.unknown_sites, &mut bad);
    let cors = sites::cors(&raw.ingest, &raw.sites, &mut bad);
    let stream = stream::validate(&raw.stream, &mut bad);
    let cache = cache::validate(&raw.cache, &mut bad);
    let popularity = popularity::validate(&raw.popularity, shared.as_ref(), &mut bad);
    let catalog = catalog::validate(&raw.catalog, &raw.data.dir, &mut bad);
    let identity = identity::validate(&raw.identity, &raw.data.dir, &mut bad);
    let around =
        gateway::Around { data: &raw.data.dir, server: listen, trusted_proxies: &trusted_proxies, drain_timeout };
    let gateway = gateway::validate(&raw.gateway, &around, &mut bad);
    let admin = admin::validate(&raw.admin, !admin_key.is_empty(), &mut bad);
    if !errors.is_empty() {
        return Err(errors);
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let millis = |d: Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX / 4);
    let live = Live {
        trusted_proxies,
        admin_key: Some(admin_key).filter(|key| !key.is_empty()),
        max_body: raw.server.max_body_bytes.0 as usize,
        cors,
        rules: Rules {
            max_future: millis(max_future),
            max_age: raw.ingest.max_age.as_millis(),
            privacy: raw.ingest.privacy_signal,
            unknown_sites: raw.ingest.unknown_sites,
            sites,
        },
        warm_up: raw.catalog.warm_up,
        warm_rate: raw.catalog.warm_rate,
        log: raw.log.level.clone(),
    };
    Ok(Config {
        live: Arc::new(live),
        listen,
        workers: if raw.server.workers == 0 { cores } else { raw.server.workers },
        max_connections: raw.server.max_connections,
        client_timeout,
        keep_alive,
        drain_timeout,
        data: raw.data.dir.clone(),
        journal: JournalOptions {
            durability: raw.journal.durability,
            segment_bytes: raw.journal.segment_bytes.0,
            max_bytes: raw.journal.max_bytes.0,
            min_free_bytes: raw.journal.min_free_bytes.0,
            retention: raw.journal.retention.as_millis().unwrap_or(i64::MAX / 4),
            dedup_window: millis(dedup_window),
            visit_timeout: millis(visit_timeout),
            max_visits: raw.ingest.max_open_visits,
            max_sites: raw.ingest.max_sites,
            queue_batches: raw.journal.queue_batches,
            queue_bytes: raw.journal.queue_bytes.0 as usize,
        },
        stats: StatsOptions {
            retention: Retention {
                minutes: raw.stats.retention_minutes.as_millis(),
                quarters: raw.stats.retention_hours.as_millis(),
                days: raw.stats.retention_days.as_millis(),
            },
            exact_uniques: raw.stats.exact_uniques,
            max_keys: raw.stats.max_keys,
            ..StatsOptions::default()
        },
        flush_interval,
        shared,
        stream,
        cache,
        popularity,
        catalog,
        identity,
        gateway,
        admin,
        origin: Origin::default(),
        effective: Effective::default(),
    })
}

#[cfg(test)]
mod tests;
