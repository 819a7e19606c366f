//! The shared store: Redis or Redis Cluster, where several instances add up.
//!
//! The embedded store stays what it is: this instance's own numbers. The [`Publisher`](publish) is one more reader of the
//! journal; it adds each delta to the keys of the [older deployment](keys) in atomic scripts that compare and move this
//! instance's fence, and publishes this instance's windows whole ([`blob`]). [`SharedReads`] puts the instances' numbers
//! together; while Redis is away the embedded store answers alone, and says so.

mod actor;
mod base;
mod blob;
mod build;
mod fence;
mod fold;
mod keys;
mod ops;
mod publish;
mod read;
mod realtime;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::watch;

use crate::redis::RedisOptions;
pub use crate::redis::StoreError;
pub use actor::SharedHandle;
pub(in crate::stats) use actor::start;
pub(in crate::stats) use keys::Part;
pub use read::SharedReads;

/// How unique visitors are kept in the shared windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UniquesMode {
    /// As sets: exact, and what the older deployment reads.
    #[default]
    Set,
    /// As Redis' HyperLogLog: 12 KiB a window, within 1.63 % (two standard deviations).
    Hll,
}

/// Where the shared store is, and what goes there.
#[derive(Clone)]
pub struct SharedOptions {
    /// Where it is.
    pub redis: RedisOptions,
    /// Stands before every key.
    pub prefix: String,
    /// How visitors are kept.
    pub uniques: UniquesMode,
    /// How long a delta gathers.
    pub flush_interval: Duration,
    /// Whether events go into a stream a type.
    pub event_streams: bool,
    /// Entries of a stream, of up to 200 events each.
    pub stream_entries: u64,
    /// Whether events go under the older deployment's keys, one for each second.
    pub event_keys: bool,
    /// Whether a user's latest events are kept.
    pub user_events: bool,
}

impl std::fmt::Debug for SharedOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedOptions")
            .field("redis", &self.redis)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// What a publisher brings to the shared store. Each has a fence of its own, because they go at different paces: counts of
/// many events are one write a key, while an event is as long alone as in company.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Counters, sets, users' lists, books, and the windows that are published whole.
    Counts = 0,
    /// The events themselves.
    Events = 1,
}

/// What the publishers say of themselves; read without asking them.
#[derive(Debug)]
pub struct SharedState {
    /// Every entry before this is in the shared store, by role.
    delivered: [watch::Sender<u64>; 2],
    /// Whether the fences were looked at once, by role.
    looked: [AtomicBool; 2],
    /// Whether Redis answered when it was last asked.
    up: AtomicBool,
    /// What is wrong, by role.
    faults: [Mutex<Option<String>>; 2],
    /// Numbers for the metrics.
    pub counters: SharedCounters,
    /// Types of events seen, by site: the older deployment's counters cannot be listed, only asked by name.
    types: Mutex<BTreeMap<String, std::collections::BTreeSet<String>>>,
}

/// Numbers for the metrics.
#[derive(Debug, Default)]
pub struct SharedCounters {
    /// Scripts that were applied.
    pub scripts: AtomicU64,
    /// Events in them.
    pub events: AtomicU64,
    /// Times that nothing was heard from the shared store, or a refusal.
    pub failures: AtomicU64,
    /// Scripts that were sent again, as nothing was heard of them.
    pub resent: AtomicU64,
    /// Scripts that turned out to have been applied by an earlier sending.
    pub already: AtomicU64,
    /// Times that the shared store had lost what it had confirmed.
    pub losses: AtomicU64,
    /// Slot groups whose numbers were put down anew from the embedded store and the journal.
    pub rebuilds: AtomicU64,
    /// Keys that were left alone because they hold something foreign.
    pub foreign_keys: AtomicU64,
    /// Questions that the embedded store answered because the shared one did not.
    pub degraded: AtomicU64,
    /// Questions to the shared store.
    pub questions: AtomicU64,
    /// Questions that were answered by another one's answer.
    pub coalesced: AtomicU64,
}

/// Whether the addresses make sense; nothing is connected.
///
/// # Errors
/// When no client can be made of them.
pub fn check(options: &SharedOptions) -> Result<(), StoreError> {
    crate::redis::Client::new(&options.redis).map(drop)
}

/// Event types remembered of a site.
const MOST_TYPES: usize = 256;

impl SharedState {
    /// Nothing is known yet; `events` says whether events are brought there.
    fn new(events: bool) -> Arc<Self> {
        Arc::new(Self {
            delivered: [watch::Sender::new(0), watch::Sender::new(if events { 0 } else { u64::MAX })],
            looked: Default::default(),
            up: AtomicBool::new(false),
            faults: [true, events].map(|there| Mutex::new(there.then(|| String::from("not connected yet")))),
            counters: SharedCounters::default(),
            types: Mutex::default(),
        })
    }

    /// Every journal entry before this is in the shared store.
    pub fn delivered(&self) -> u64 {
        self.delivered.iter().map(|delivered| *delivered.borrow()).min().unwrap_or(0)
    }

    /// Waits until everything before `seq` is in the shared store.
    pub async fn delivered_through(&self, seq: u64) {
        for delivered in &self.delivered {
            let _ = delivered.subscribe().wait_for(|delivered| *delivered >= seq).await;
        }
    }

    /// What is wrong, while something is.
    pub fn fault(&self) -> Option<String> {
        self.faults.iter().find_map(|fault| fault.lock().clone())
    }

    /// Whether it answers.
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// Something was written, or nothing waits to be.
    fn works(&self, role: Role) {
        let had = self.faults[role as usize].lock().take().is_some();
        let up = self.fault().is_none();
        self.up.store(up, Ordering::Relaxed);
        if had && up {
            log::info!("the shared store works");
        }
    }

    fn fails(&self, role: Role, why: &StoreError) {
        self.counters.failures.fetch_add(1, Ordering::Relaxed);
        self.up.store(false, Ordering::Relaxed);
        let why = why.to_string();
        let known = self.faults.iter().any(|fault| fault.lock().as_ref() == Some(&why));
        *self.faults[role as usize].lock() = Some(why.clone());
        if !known {
            log::warn!("{why}; the journal holds what comes meanwhile");
        }
    }

    /// Remembers the types of a site.
    fn saw<'a>(&self, site: &str, types: impl Iterator<Item = &'a str>) {
        let mut known = self.types.lock();
        if !known.contains_key(site) {
            known.insert(site.to_owned(), Default::default());
        }
        if let Some(of_site) = known.get_mut(site) {
            for name in types {
                if of_site.len() < MOST_TYPES && !of_site.contains(name) {
                    of_site.insert(name.to_owned());
                }
            }
        }
    }

    fn types_of(&self, site: &str) -> Vec<String> {
        self.types.lock().get(site).map(|types| types.iter().cloned().collect()).unwrap_or_default()
    }
}
