//! The config as it is written: one struct a section, unknown keys refused, defaults in one place.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::admin::Admin;
use super::cache::Cache;
use super::catalog::Catalog;
use super::gateway::Gateway;
use super::identity::Identity;
use super::popularity::Popularity;
use super::sites::Site;
use super::stream::Stream;
use super::units::{Bytes, Span, Urls};
use crate::event::intake::{PrivacyPolicy, UnknownSites};
use crate::journal::Durability;
use crate::stats::UniquesMode;

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawConfig {
    /// Listening and limits of HTTP.
    pub server: Server,
    /// Where things are kept.
    pub data: Data,
    /// What is taken as an event.
    pub ingest: Ingest,
    /// How events are kept.
    pub journal: Journal,
    /// How they are counted.
    pub stats: Stats,
    /// Where it is handed on to.
    pub stream: Stream,
    /// What is cached.
    pub cache: Cache,
    /// How products are scored.
    pub popularity: Popularity,
    /// Where the products are.
    pub catalog: Catalog,
    /// Accounts, tokens and keys.
    pub identity: Identity,
    /// What stands behind the gateway.
    pub gateway: Gateway,
    /// Where it is steered.
    pub admin: Admin,
    /// What is logged.
    pub log: Log,
    /// Settings of single sites.
    pub sites: BTreeMap<String, Site>,
}

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}

pub(super) use section;

section! {
    /// `[server]`
    Server {
        /// Address and port.
        listen: String = String::from("127.0.0.1:8080"),
        /// Threads; 0 is one a core.
        workers: usize = 0,
        /// Connections a worker.
        max_connections: usize = 10_000,
        /// CIDR ranges.
        trusted_proxies: Vec<String> = Vec::new(),
        /// Bearer key.
        admin_key: String = String::new(),
        /// File with the bearer key.
        admin_key_file: String = String::new(),
        /// Longest body.
        max_body_bytes: Bytes = Bytes::mib(10),
        /// For head and pauses.
        client_timeout: Span = Span::secs(15),
        /// For idle connections.
        keep_alive: Span = Span::secs(30),
        /// For a stop.
        drain_timeout: Span = Span::secs(25),
    }
}

section! {
    /// `[data]`
    Data {
        /// Folder.
        dir: PathBuf = PathBuf::from("data"),
    }
}

section! {
    /// `[ingest]`
    Ingest {
        /// Origins of beacons.
        cors_origins: Vec<String> = vec![String::from("*")],
        /// Sites without settings of their own.
        unknown_sites: UnknownSites = UnknownSites::Accept,
        /// Sites counted.
        max_sites: usize = 1000,
        /// Clock error forward.
        max_future: Span = Span::secs(86_400),
        /// Oldest event.
        max_age: Span = Span(None),
        /// For Sec-GPC and DNT.
        privacy_signal: PrivacyPolicy = PrivacyPolicy::Anonymous,
        /// Silence that ends a visit.
        visit_timeout: Span = Span::secs(1800),
        /// Visits open at once.
        max_open_visits: usize = 500_000,
    }
}

section! {
    /// `[journal]`
    Journal {
        /// When an event is acknowledged.
        durability: Durability = Durability::Written,
        /// Size of a segment.
        segment_bytes: Bytes = Bytes::mib(32),
        /// Size of the journal.
        max_bytes: Bytes = Bytes(64 << 30),
        /// Space to leave.
        min_free_bytes: Bytes = Bytes::mib(64),
        /// Age of raw events.
        retention: Span = Span::secs(7 * 86_400),
        /// Age of ids.
        dedup_window: Span = Span::secs(86_400),
        /// Requests that wait.
        queue_batches: usize = 10_000,
        /// Bytes that wait.
        queue_bytes: Bytes = Bytes::mib(64),
    }
}

section! {
    /// `[stats]`
    Stats {
        /// Of minutes.
        retention_minutes: Span = Span::secs(2 * 86_400),
        /// Of hours.
        retention_hours: Span = Span::secs(90 * 86_400),
        /// Of days.
        retention_days: Span = Span(None),
        /// Exact up to so many.
        exact_uniques: usize = 10_000,
        /// Keys a bucket.
        max_keys: usize = 10_000,
        /// Age at which counts are written.
        flush_interval: Span = Span::millis(100),
        /// Redis that several instances share.
        url: Urls = Urls::default(),
        /// How it is used.
        redis: StatsRedis = StatsRedis::default(),
    }
}

section! {
    /// `[stats.redis]`
    StatsRedis {
        /// One node of a cluster.
        cluster: bool = false,
        /// File with the password.
        password_file: String = String::new(),
        /// Authorities, PEM.
        ca_file: String = String::new(),
        /// Before every key.
        prefix: String = String::new(),
        /// Sets or sketches.
        uniques: UniquesMode = UniquesMode::Set,
        /// Age at which counts are sent.
        flush_interval: Span = Span::secs(1),
        /// For an answer.
        timeout: Span = Span::secs(2),
        /// A stream a type.
        event_streams: bool = true,
        /// Entries of a stream.
        stream_entries: u64 = 10_000,
        /// A key a second and type.
        event_keys: bool = false,
        /// A list a user.
        user_events: bool = true,
    }
}

section! {
    /// `[log]`
    Log {
        /// Filter of env_logger.
        level: String = String::from("info,refinery_core=warn,actix_server=warn"),
    }
}
