//! The second tier: values and leases in Redis.
//!
//! A fill there is under a lease, and a value is stored only by who still holds it. An invalidation takes both away, so
//! that what was read before it is not stored after it, by any instance. A type is invalidated by a new generation, which
//! is read along with each value: nothing is searched for, and nothing depends on a message that was missed.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use deadpool_redis::redis::{Cmd, Value};
use parking_lot::Mutex;
use tokio::sync::broadcast;

use super::Kind;
use super::breaker::Breaker;
use super::key::{RedisKeys, encode, generation};
use super::options::{CacheOptions, L2Options};
use super::pending::{Pending, Ticket};
use super::wire::Stored;
use crate::clock::{Stopwatch, UnixMillis};
use crate::redis::{Call, Client, Script, StoreError};

/// What an entry may be old while nothing is heard of invalidations, in microseconds.
const CAP: u64 = 1_000_000;
/// Invalidations sent at once.
const BATCH: usize = 500;

pub(super) struct L2 {
    pub client: Client,
    pub options: L2Options,
    pub trust: Trust,
    pub breaker: Mutex<Breaker>,
    pub filled: broadcast::Sender<u64>,
    pub errors: AtomicU64,
    pub opened: AtomicU64,
    /// Round trips that read values.
    pub reads: AtomicU64,
    pub channel: String,
    /// Tells this instance's own messages from those of others.
    pub instance: String,
    pending: Mutex<Pending>,
    /// How many, to be asked without the lock.
    waiting: AtomicUsize,
    names: Vec<String>,
    generations: Vec<AtomicU64>,
    next_token: AtomicU64,
    since: Stopwatch,
    claim: Script,
    settle: Script,
    renew: Script,
    drop: Script,
    next: Script,
}

/// A key that is wanted.
pub(super) struct Ask<'a> {
    pub id: &'a str,
    pub newer_than: UnixMillis,
}

/// What the second tier has of it.
pub(super) struct Claim {
    /// The value, fresh or not.
    pub stored: Option<Stored>,
    pub lease: Lease,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lease {
    /// None is needed: the value is fresh.
    Needless,
    /// It is ours to fill.
    Ours,
    /// Another instance fills it.
    Theirs,
}

/// Since when invalidations are heard, in microseconds of the cache's own time.
pub(super) struct Trust {
    since: AtomicU64,
    heard: AtomicU64,
}

impl Trust {
    fn new() -> Self {
        Self { since: AtomicU64::new(u64::MAX), heard: AtomicU64::new(0) }
    }

    /// The channel is listened to from now on; what was read before may have been invalidated unheard.
    pub fn begins(&self, now: u64) {
        self.heard.store(now, Ordering::SeqCst);
        self.since.store(now, Ordering::SeqCst);
    }

    /// The line was alive then.
    pub fn alive(&self, at: u64) {
        self.heard.fetch_max(at, Ordering::SeqCst);
    }

    pub fn ends(&self) {
        self.since.store(u64::MAX, Ordering::SeqCst);
    }

    pub fn listening(&self) -> bool {
        self.since.load(Ordering::SeqCst) != u64::MAX
    }

    /// Whether every invalidation of what was read at a moment is known, but for those of the last second.
    pub fn holds(&self, as_of: u64, now: u64) -> bool {
        let heard = as_of >= self.since.load(Ordering::SeqCst) && now <= self.heard.load(Ordering::SeqCst) + CAP;
        heard || now <= as_of + CAP
    }
}

impl L2 {
    pub fn new(options: L2Options, all: &CacheOptions, since: Stopwatch, seed: u64) -> Result<Self, StoreError> {
        Ok(Self {
            client: Client::new(&options.redis)?,
            trust: Trust::new(),
            breaker: Mutex::new(Breaker::new()),
            filled: broadcast::Sender::new(4096),
            errors: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            channel: format!("{}cache:changes", options.prefix),
            instance: format!("{seed:016x}"),
            pending: Mutex::default(),
            waiting: AtomicUsize::new(0),
            names: all.types.iter().map(|kind| kind.name.clone()).collect(),
            generations: all.types.iter().map(|_| AtomicU64::new(0)).collect(),
            next_token: AtomicU64::new(0),
            since,
            claim: Script::new(include_str!("claim.lua")),
            settle: Script::new(include_str!("settle.lua")),
            renew: Script::new(include_str!("renew.lua")),
            drop: Script::new(include_str!("drop.lua")),
            next: Script::new(include_str!("next.lua")),
            options,
        })
    }

    /// A name for a lease that no other has.
    pub fn token(&self) -> String {
        format!("{}-{}", self.instance, self.next_token.fetch_add(1, Ordering::Relaxed))
    }

    pub fn up(&self) -> bool {
        self.breaker.lock().closed()
    }

    fn name(&self, kind: Kind) -> &str {
        self.names.get(kind.index()).map_or("", String::as_str)
    }

    fn keys(&self, kind: Kind, id: &str) -> RedisKeys {
        RedisKeys::new(&self.options.prefix, self.name(kind), id)
    }

    /// Waits for an answer as long as a request may, and tells the breaker.
    async fn ask<T>(&self, answer: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        if !self.up() {
            return Err(StoreError::Away(String::from("is not asked for the moment")));
        }
        let limit = self.options.redis.timeout;
        let late = |_| Err(StoreError::Away(String::from("does not answer in time")));
        let answer = tokio::time::timeout(limit, answer).await.unwrap_or_else(late);
        match &answer {
            Ok(_) => self.breaker.lock().answered(),
            Err(error) => {
                self.errors.fetch_add(1, Ordering::Relaxed);
                if self.breaker.lock().failed(self.since.elapsed()) {
                    self.opened.fetch_add(1, Ordering::Relaxed);
                    log::warn!("the cache's {error}; it goes on without the second tier until that is well again");
                }
            }
        }
        answer
    }

    /// Reads values, and takes leases for those that are not there or not fresh: one round trip. Also answers the generation,
    /// which goes into what is read of the source from now on.
    pub async fn claim(
        &self,
        kind: Kind,
        asks: &[Ask<'_>],
        token: &str,
        now: UnixMillis,
    ) -> Result<(u64, Vec<Claim>), StoreError> {
        self.ask(async {
            let at = &self.generations[kind.index()];
            let keys: Vec<RedisKeys> = asks.iter().map(|ask| self.keys(kind, ask.id)).collect();
            let (now, lease) = (now.to_string(), self.options.lease.as_millis().to_string());
            let mut again = "0";
            loop {
                self.reads.fetch_add(1, Ordering::Relaxed);
                let known = at.load(Ordering::SeqCst);
                let told = known.to_string();
                let make = |call: Call| {
                    let mut commands = Vec::with_capacity(1 + asks.len());
                    let mut get = Cmd::new();
                    get.arg("GET").arg(generation(&self.options.prefix, self.name(kind)));
                    commands.push(get);
                    for (ask, keys) in asks.iter().zip(&keys) {
                        let newer = ask.newer_than.max(-1).to_string();
                        let args = [&*now, &told, &newer, token, &lease, again].map(str::as_bytes);
                        commands.push(self.claim.command(call, &[&keys.value, &keys.lease], &args));
                    }
                    commands
                };
                let mut values = self.client.all_with_scripts(make).await?.into_iter();
                let current = values.next().map_or(0, number);
                if current != known {
                    // Mostly once in a process. What was just claimed stays ours under the same token.
                    at.store(current, Ordering::SeqCst);
                    again = "1";
                    continue;
                }
                return Ok((current, values.map(|value| claimed(value, current)).collect()));
            }
        })
        .await
    }

    /// Stores values under leases, if those are still ours, and ends them. `None` only ends.
    pub async fn settle(&self, kind: Kind, values: &[(&str, Option<(Stored, UnixMillis)>)], token: &str) {
        let encoded: Vec<_> = values
            .iter()
            .map(|(id, value)| {
                let (bytes, kept) = match value {
                    Some((stored, kept)) => (stored.encode(), *kept),
                    None => (Vec::new(), 1),
                };
                (self.keys(kind, id), bytes, kept.max(1).to_string(), format!("f{}", encode(self.name(kind), id)))
            })
            .collect();
        let make = |call: Call| {
            let one = |(keys, bytes, kept, word): &(RedisKeys, Vec<u8>, String, String)| {
                let args = [token.as_bytes(), bytes, kept.as_bytes(), self.channel.as_bytes(), word.as_bytes()];
                self.settle.command(call, &[&keys.value, &keys.lease], &args)
            };
            encoded.iter().map(one).collect()
        };
        if let Err(error) = self.ask(self.client.all_with_scripts(make)).await {
            log::debug!("values were not stored in the second tier: {error}");
        }
    }

    /// Prolongs leases.
    pub async fn renew(&self, kind: Kind, ids: &[&str], token: &str) {
        let keys: Vec<RedisKeys> = ids.iter().map(|id| self.keys(kind, id)).collect();
        let lease = self.options.lease.as_millis().to_string();
        let make = |call: Call| {
            let one =
                |keys: &RedisKeys| self.renew.command(call, &[&keys.lease], &[token.as_bytes(), lease.as_bytes()]);
            keys.iter().map(one).collect()
        };
        if let Err(error) = self.ask(self.client.all_with_scripts(make)).await {
            log::debug!("leases were not prolonged: {error}");
        }
    }

    /// Whether Redis has not heard of an invalidation of this key.
    pub fn is_pending(&self, kind: Kind, id: &str) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0 && self.pending.lock().holds(kind, id)
    }

    pub fn pending(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Notes invalidations before they are sent, so that none is lost with a line.
    pub fn note(&self, kind: Kind, ids: Option<&[&str]>) -> Vec<Ticket> {
        let mut pending = self.pending.lock();
        let tickets = match ids {
            Some(ids) => ids.iter().map(|id| pending.add(kind, id)).collect(),
            None => vec![pending.add_kind(kind)],
        };
        self.waiting.store(pending.len(), Ordering::SeqCst);
        tickets
    }

    /// Sends invalidations, as long as a request may wait; what does not get through is sent again from the background.
    pub async fn send(&self, tickets: &[Ticket], now: UnixMillis) {
        for tickets in tickets.chunks(BATCH) {
            if self.ask(self.drop_all(tickets, now)).await.is_err() {
                return;
            }
        }
    }

    /// Sends what is pending, whatever the breaker says.
    pub async fn flush(&self, now: UnixMillis) -> Result<(), StoreError> {
        loop {
            let tickets = self.pending.lock().some(BATCH);
            if tickets.is_empty() {
                return Ok(());
            }
            self.drop_all(&tickets, now).await?;
        }
    }

    async fn drop_all(&self, tickets: &[Ticket], now: UnixMillis) -> Result<(), StoreError> {
        let now = now.to_string();
        let make = |call: Call| {
            let one = |ticket: &Ticket| {
                let name = self.name(ticket.kind);
                let channel = self.channel.as_bytes();
                match &ticket.id {
                    Some(id) => {
                        let keys = self.keys(ticket.kind, id);
                        let word = format!("i{}{}", self.instance, encode(name, id));
                        self.drop.command(call, &[&keys.value, &keys.lease], &[channel, word.as_bytes()])
                    }
                    None => {
                        let word = format!("k{}{}", self.instance, encode(name, ""));
                        let key = generation(&self.options.prefix, name);
                        self.next.command(call, &[&key], &[now.as_bytes(), channel, word.as_bytes()])
                    }
                }
            };
            tickets.iter().map(one).collect()
        };
        self.client.all_with_scripts(make).await?;
        let mut pending = self.pending.lock();
        tickets.iter().for_each(|ticket| pending.done(ticket));
        self.waiting.store(pending.len(), Ordering::SeqCst);
        Ok(())
    }

    /// Whether it answers, as long as a connection may take.
    pub async fn look(&self) -> Result<(), StoreError> {
        let mut ping = Cmd::new();
        // A key, so that a cluster knows whom to ask.
        ping.arg("EXISTS").arg(&self.channel);
        self.client.one(&ping).await.map(drop)
    }

    /// How long a look may take: a connection must be made in it.
    pub fn look_limit(&self) -> Duration {
        Duration::from_secs(3) + self.options.redis.timeout
    }
}

fn number(value: Value) -> u64 {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(&bytes).ok().and_then(|text| text.parse().ok()).unwrap_or(0),
        Value::Int(n) => u64::try_from(n).unwrap_or(0),
        _ => 0,
    }
}

/// Reads the answer of `claim.lua`. A value that cannot be read, or of another generation, is not there.
fn claimed(value: Value, generation: u64) -> Claim {
    let (value, lease) = match value {
        Value::Array(parts) => {
            let mut parts = parts.into_iter();
            (parts.next(), parts.next())
        }
        _ => (None, None),
    };
    let stored = match value {
        Some(Value::BulkString(bytes)) => Stored::decode(Bytes::from(bytes)).filter(|it| it.generation == generation),
        _ => None,
    };
    let lease = match (lease, &stored) {
        (Some(Value::Int(0)), Some(_)) => Lease::Needless,
        (Some(Value::Int(2)), _) => Lease::Theirs,
        // Fresh by its header but not whole: it is filled again, without a lease.
        _ => Lease::Ours,
    };
    Claim { stored, lease }
}
