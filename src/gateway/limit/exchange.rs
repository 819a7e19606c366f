//! The exchange with Redis, in the background: what was spent is told, leases are taken, renewed and given back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use deadpool_redis::redis::{Cmd, Value};

use super::check::Store;
use super::lease::{Answer, Message};
use super::limits::Registry;
use crate::clock::{Monotonic, Nanos};
use crate::gateway::options::LimiterOptions;
use crate::redis::{Call, Client, Script, StoreError};

/// Buckets told of in one round trip.
const PIECE: usize = 256;
/// Round trips of one round; what is left waits for the next.
const PIECES: usize = 16;
/// How often it is said that this instance lives.
const BEAT: Duration = Duration::from_millis(250);
/// Redis is away when nothing was heard of it for so long.
const PATIENCE: Duration = Duration::from_millis(750);
/// How long an answer may take: a longer silence is an outage anyway.
const ANSWER: Duration = Duration::from_millis(400);
/// How long an instance is remembered, in microseconds.
const REMEMBER: u64 = 86_400_000_000;

/// The line to Redis.
pub(super) struct Exchange {
    store: Arc<Store>,
    clock: Monotonic,
    client: Client,
    /// This process, for as long as it lives.
    instance: String,
    instances_key: String,
    lease: Script,
    beat: Script,
    seq: AtomicU64,
    heard: AtomicU64,
    beaten: AtomicU64,
    /// Milliseconds since each instance was last heard of, as of the latest beat.
    pub ages: ArcSwap<Vec<u64>>,
    pub live: AtomicU64,
    pub round_trips: AtomicU64,
    pub failures: AtomicU64,
    pub outages: AtomicU64,
    told: AtomicBool,
}

impl Exchange {
    pub fn new(store: Arc<Store>, options: &LimiterOptions, clock: Monotonic) -> Result<Option<Self>, StoreError> {
        let Some(redis) = &options.redis else { return Ok(None) };
        let mut redis = redis.clone();
        redis.timeout = redis.timeout.min(ANSWER);
        Ok(Some(Self {
            store,
            client: Client::new(&redis)?,
            instance: uuid::Uuid::new_v4().simple().to_string(),
            instances_key: format!("{}limit-instances", options.prefix),
            lease: Script::new(include_str!("lease.lua")),
            beat: Script::new(include_str!("beat.lua")),
            seq: AtomicU64::new(1),
            heard: AtomicU64::new(clock.now()),
            beaten: AtomicU64::new(0),
            ages: ArcSwap::default(),
            live: AtomicU64::new(0),
            round_trips: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            outages: AtomicU64::new(0),
            told: AtomicBool::new(false),
            clock,
        }))
    }

    pub fn away(&self) -> bool {
        self.store.epoch.load(Ordering::Acquire) % 2 == 1
    }

    /// Says that Redis is away when it has been silent for too long. It must not depend on a round that hangs.
    pub fn watch(&self) {
        let silent = self.clock.now().saturating_sub(self.heard.load(Ordering::Relaxed));
        if silent > PATIENCE.as_nanos() as u64 && !self.away() {
            self.store.epoch.fetch_add(1, Ordering::AcqRel);
            self.outages.fetch_add(1, Ordering::Relaxed);
            log::warn!("shared limits work without Redis, each by its `store_down`");
        }
    }

    /// One round: a beat when it is due, and what buckets have to tell.
    pub async fn round(&self) {
        let now = self.clock.now();
        let due = now.saturating_sub(self.beaten.load(Ordering::Relaxed)) >= BEAT.as_nanos() as u64;
        if due || self.away() {
            self.beaten.store(now, Ordering::Relaxed);
            if let Err(error) = self.beat(now).await {
                self.failed(&error);
                return;
            }
        }
        for _ in 0..PIECES {
            match self.piece(false).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    self.failed(&error);
                    break;
                }
            }
        }
    }

    /// The last one: everything goes back, once, whether it arrives or not.
    pub async fn end(&self) {
        for shard in &self.store.shards {
            let mut shard = shard.0.lock();
            let all: Vec<u64> = shard.leases().map(|lease| lease.hash).collect();
            shard.dirty = all;
        }
        while let Ok(true) = self.piece(true).await {}
    }

    fn failed(&self, error: &StoreError) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        if !self.told.swap(true, Ordering::Relaxed) {
            log::warn!("limits cannot be shared: {error}");
        }
    }

    fn heard(&self, sent: Nanos) {
        self.heard.fetch_max(sent, Ordering::Relaxed);
        self.round_trips.fetch_add(1, Ordering::Relaxed);
    }

    async fn beat(&self, sent: Nanos) -> Result<(), StoreError> {
        let remember = REMEMBER.to_string();
        let make = |call| {
            vec![self.beat.command(call, &[&self.instances_key], &[self.instance.as_bytes(), remember.as_bytes()])]
        };
        let values = self.client.all_with_scripts(make).await?;
        let Some(Value::Array(ages)) = values.into_iter().next() else {
            return Err(StoreError::Refused(String::from("the list of instances is something else")));
        };
        let ages: Vec<u64> = ages.iter().filter_map(whole).filter_map(|age| u64::try_from(age).ok()).collect();
        self.heard(sent);
        self.live.store(ages.iter().filter(|age| **age <= 3000).count() as u64, Ordering::Relaxed);
        let ages = Arc::new(ages);
        self.ages.store(ages.clone());
        let registry = self.store.registry.load();
        registry.by_name.values().for_each(|limit| limit.instances(&ages));
        // An answer that took long does not end an outage.
        if self.away() && self.clock.now().saturating_sub(sent) < PATIENCE.as_nanos() as u64 {
            self.store.epoch.fetch_add(1, Ordering::AcqRel);
            self.tell_of_outage();
            if self.told.swap(false, Ordering::Relaxed) {
                log::info!("limits are shared again");
            }
        }
        Ok(())
    }

    /// What was spent without Redis is debited now, also of keys that do not come again.
    fn tell_of_outage(&self) {
        for shard in &self.store.shards {
            let mut shard = shard.0.lock();
            let mut spent = Vec::new();
            for lease in shard.leases().filter(|lease| lease.in_outage() && !lease.dirty) {
                lease.dirty = true;
                spent.push(lease.hash);
            }
            shard.dirty.append(&mut spent);
        }
    }

    /// Tells of some buckets; whether there may be more.
    async fn piece(&self, all_back: bool) -> Result<bool, StoreError> {
        if self.away() {
            return Ok(false);
        }
        let registry = self.store.registry.load_full();
        let messages = self.gather(&registry, all_back);
        if messages.is_empty() {
            return Ok(false);
        }
        let more = messages.len() >= PIECE;
        let values = self.client.all_with_scripts(|call| self.commands(call, &registry, &messages)).await;
        match values {
            Ok(values) => {
                if let Some(first) = messages.first() {
                    self.heard(first.sent);
                }
                let nil = std::iter::repeat(Value::Nil);
                for (message, value) in messages.iter().zip(values.into_iter().chain(nil)) {
                    self.answered(&registry, message, &value);
                }
                Ok(more)
            }
            Err(error) => {
                for message in &messages {
                    self.unanswered(message);
                }
                Err(error)
            }
        }
    }

    fn gather(&self, registry: &Registry, all_back: bool) -> Vec<Message> {
        let seq = self.seq.fetch_add(1, Ordering::Relaxed);
        let mut messages = Vec::new();
        let shards = self.store.shards.len();
        // From another shard each time, so that all get their turn.
        for n in 0..shards {
            let Some(shard) = self.store.shards.get((seq as usize + n) % shards) else { continue };
            let mut shard = shard.0.lock();
            while messages.len() < PIECE
                && let Some(hash) = shard.dirty.pop()
            {
                let epoch = self.store.epoch.load(Ordering::Acquire);
                let now = self.clock.now();
                let Some(lease) = shard.lease_mut(hash) else { continue };
                let limit = registry.slot(lease.kind.slot());
                let Some((limit, sharing)) = limit.and_then(|limit| Some((limit, limit.sharing.as_ref()?))) else {
                    lease.dirty = false;
                    continue;
                };
                let terms = sharing.terms(limit, self.store.pace, epoch, now);
                messages.extend(lease.message(&terms, seq, all_back));
            }
            if messages.len() >= PIECE {
                break;
            }
            if shard.dirty.capacity() > 64 && shard.dirty.is_empty() {
                shard.dirty = Vec::new();
            }
        }
        messages
    }

    fn commands(&self, call: Call, registry: &Registry, messages: &[Message]) -> Vec<Cmd> {
        let lease = self.store.pace.lease / 1000;
        let command = |message: &Message| {
            let limit = registry.slot(message.kind.slot());
            let (prefix, rate, cap) = match limit.and_then(|limit| limit.sharing.as_ref()) {
                Some(sharing) => (sharing.prefix.as_str(), sharing.redis_rate, sharing.cap),
                // Gathered with the same registry.
                None => ("", (1, 1), 0),
            };
            let key = format!("{prefix}{:032x}", u128::from_be_bytes(message.name));
            let numbers = [
                message.seq,
                message.owed,
                message.acked,
                u64::from(message.hold),
                u64::from(message.back),
                u64::from(message.want),
                rate.0,
                rate.1,
                u64::from(cap),
                lease,
            ];
            let numbers = numbers.map(|n| n.to_string());
            let mut args = vec![self.instance.as_bytes()];
            args.extend(numbers.iter().map(String::as_bytes));
            self.lease.command(call, &[&key], &args)
        };
        messages.iter().map(command).collect()
    }

    fn answered(&self, registry: &Registry, message: &Message, value: &Value) {
        let Some(answer) = answer(value) else { return self.unanswered(message) };
        if let Some(limit) = registry.slot(message.kind.slot()) {
            limit.counters.leased.fetch_add(u64::from(answer.granted), Ordering::Relaxed);
            limit.counters.returned.fetch_add(u64::from(message.back), Ordering::Relaxed);
        }
        let Some(mut shard) = self.store.lock(message.hash) else { return };
        let now = self.clock.now();
        let Some(lease) = shard.lease_mut(message.hash) else { return };
        if lease.answered(message, &answer, self.store.pace.lease, now) && !lease.dirty {
            lease.dirty = true;
            shard.dirty.push(message.hash);
        }
    }

    fn unanswered(&self, message: &Message) {
        let Some(mut shard) = self.store.lock(message.hash) else { return };
        let Some(lease) = shard.lease_mut(message.hash) else { return };
        lease.unanswered();
        if !lease.dirty {
            lease.dirty = true;
            shard.dirty.push(message.hash);
        }
    }
}

fn whole(value: &Value) -> Option<i64> {
    match value {
        Value::Int(n) => Some(*n),
        _ => None,
    }
}

fn answer(value: &Value) -> Option<Answer> {
    let Value::Array(items) = value else { return None };
    let [one, hold, granted, level, wait] = items.as_slice() else { return None };
    (whole(one)? == 1).then_some(())?;
    Some(Answer {
        hold: u32::try_from(whole(hold)?).ok()?,
        granted: u32::try_from(whole(granted)?).ok()?,
        level: whole(level)?,
        wait: u64::try_from(whole(wait)?).ok()?.saturating_mul(1000),
    })
}
