//! Popularity over Redis: several instances add up, and each ranks by the whole shop.
//!
//! A product has a hash with a field an instance, which holds what that instance has of it ([`wire`]): absolute numbers of
//! one writer, which may be sent twice. One [script](run) writes these fields, sums all of them, and sets
//! `product:views:24h:ID` and `product:sales:7d:ID`, which the OpenResty deployment reads with GET. It notes which products
//! changed, by number, so that the others read those alone, and when a product's next bucket leaves; whoever comes then
//! makes the sum anew. An instance that is gone keeps its part until that has left the windows.
//!
//! A call leaves a mark of its instance. Another mark than its own tells an instance that the store was flushed, or came
//! back older: it brings everything again and reads everything again.
//!
//! In a Redis Cluster a product is in one of 16 slot groups. The plain keys carry no tag and lie in other slots, so
//! they are set after the script, and again by whoever set one while somebody else changed the product.
//!
//! Only what is counted singly is shared. What an instance has in its tail, only it knows; what went there from the
//! counted ones stays in the store as it was last.

mod keys;
mod run;
mod wire;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::PopularityError;
use crate::redis::RedisOptions;
pub(super) use run::{Sharing, run};
pub(super) use wire::Part;

/// Where popularity is shared.
#[derive(Clone, Debug)]
pub struct ShareOptions {
    /// Where Redis is.
    pub redis: RedisOptions,
    /// Stands before every key.
    pub prefix: String,
    /// How long changes gather before they are brought there, and how often those of the others are asked for.
    pub interval: Duration,
}

/// What sharing says of itself; read without asking it.
#[derive(Debug)]
pub struct SharedPopularity {
    /// The journal's sequence number through which everything is in Redis.
    through: watch::Sender<u64>,
    fault: Mutex<Option<String>>,
    /// Numbers for the metrics.
    pub numbers: SharedNumbers,
}

/// Numbers for the metrics.
#[derive(Debug, Default)]
pub struct SharedNumbers {
    /// Scripts that were applied.
    pub scripts: AtomicU64,
    /// Products that were brought to Redis.
    pub published: AtomicU64,
    /// Products of other instances that were read.
    pub read: AtomicU64,
    /// Times that nothing was heard from Redis, or a refusal.
    pub failures: AtomicU64,
    /// Times that Redis had lost what it had confirmed.
    pub losses: AtomicU64,
    /// Keys that were left alone because they hold something foreign.
    pub foreign: AtomicU64,
}

impl SharedPopularity {
    pub(super) fn new() -> Self {
        Self {
            through: watch::Sender::new(0),
            fault: Mutex::new(Some(String::from("not connected yet"))),
            numbers: SharedNumbers::default(),
        }
    }

    /// The journal's sequence number through which everything is in Redis.
    pub fn through(&self) -> u64 {
        *self.through.borrow()
    }

    /// Waits until everything before `seq` is in Redis.
    pub async fn delivered_through(&self, seq: u64) {
        // The sender lives as long as this.
        let _ = self.through.subscribe().wait_for(|through| *through >= seq).await;
    }

    /// Why the numbers of the other instances may be old, while they may.
    pub fn fault(&self) -> Option<String> {
        self.fault.lock().clone()
    }

    fn works(&self) {
        if self.fault.lock().take().is_some() {
            log::info!("popularity is shared");
        }
    }

    fn fails(&self, why: &PopularityError) {
        self.numbers.failures.fetch_add(1, Ordering::Relaxed);
        let why = why.to_string();
        let mut fault = self.fault.lock();
        if fault.as_ref() != Some(&why) {
            log::warn!("popularity is not shared for now, this instance's own numbers go on: {why}");
        }
        *fault = Some(why);
    }
}
