//! Other issuers whose tokens are taken: their keys are read ahead, by one at a time, and kept while that fails.

mod fetch;
mod jwks;
mod schedule;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::error::Rejection;
use super::options::IssuerOptions;
use super::token::VerifyingKey;
use crate::clock::Clock;
use fetch::{Fault, Fetcher};
use jwks::KeySet;
use schedule::Schedule;

/// One of them.
#[derive(Debug)]
pub(super) struct Issuer {
    pub options: IssuerOptions,
    fetcher: Fetcher,
    /// Published for every request.
    keys: ArcSwap<KeySet>,
    schedule: Mutex<Schedule>,
    /// Who reads; others wait for what comes of it.
    reading: tokio::sync::Mutex<()>,
    /// Readings that have ended.
    read: AtomicU64,
    clock: Clock,
    /// Moves when the keys do.
    generation: Arc<AtomicU64>,
}

impl Issuer {
    pub fn new(options: IssuerOptions, clock: Clock, generation: Arc<AtomicU64>) -> Result<Arc<Self>, String> {
        let fetcher = Fetcher::new(options.jwks.clone(), options.ca.as_deref(), options.timeout);
        let fetcher = fetcher.map_err(|fault| fault.to_string())?;
        let schedule = Mutex::new(Schedule::new(options.refresh, options.stale));
        Ok(Arc::new(Self {
            options,
            fetcher,
            keys: ArcSwap::default(),
            schedule,
            reading: tokio::sync::Mutex::default(),
            read: AtomicU64::new(0),
            clock,
            generation,
        }))
    }

    /// Reads the keys if it is time to. Nobody waits for this.
    pub async fn tend(&self) {
        if self.schedule.lock().due(self.clock.now()) {
            let before = self.read.load(Ordering::Acquire);
            self.read_once(before).await;
        }
    }

    /// The key of a token. One that is not there is looked for at the issuer, if that is allowed now.
    pub async fn key(&self, kid: Option<&str>) -> Result<VerifyingKey, Rejection> {
        if let Some(key) = self.known(kid) {
            return Ok(key);
        }
        let before = self.read.load(Ordering::Acquire);
        // Somebody may have read them since we looked, or reads them now.
        let busy = self.reading.try_lock().is_err();
        if busy || self.schedule.lock().ask(self.clock.now()) {
            self.read_once(before).await;
        }
        if let Some(key) = self.known(kid) {
            return Ok(key);
        }
        // That there is no such key is known only from one who answers.
        if self.schedule.lock().fresh() {
            Err(Rejection::Invalid("unknown_key"))
        } else {
            Err(Rejection::Unavailable { retry_after: Duration::from_secs(1) })
        }
    }

    /// What is the matter with its keys, if anything.
    pub fn fault(&self) -> Option<&'static str> {
        self.schedule.lock().fault(self.clock.now())
    }

    /// That of a token, if it is here.
    pub fn known(&self, kid: Option<&str>) -> Option<VerifyingKey> {
        if !self.schedule.lock().usable(self.clock.now()) {
            return None;
        }
        self.keys.load().find(kid).cloned()
    }

    /// Reads them, unless somebody has done so since `before`.
    async fn read_once(&self, before: u64) {
        let _one = self.reading.lock().await;
        if self.read.load(Ordering::Acquire) != before {
            return;
        }
        let read = self.fetcher.fetch().await.and_then(|text| {
            KeySet::read(&text, &self.options.algorithms).filter(|set| set.len() > 0).ok_or(Fault::NoKeys)
        });
        let now = self.clock.now();
        let well = self.schedule.lock().fresh();
        let name = &self.options.issuer;
        match read {
            Ok(keys) => {
                if !well {
                    log::info!("identity: {} keys of {name} are read", keys.len());
                }
                self.keys.store(Arc::new(keys));
                self.generation.fetch_add(1, Ordering::Release);
                self.schedule.lock().succeeded(now);
            }
            Err(fault) => {
                if well {
                    log::warn!("identity: the keys of {name} cannot be read: {fault}; those that are known are used");
                } else {
                    log::debug!("identity: the keys of {name} cannot be read: {fault}");
                }
                self.schedule.lock().failed(now);
            }
        }
        self.read.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests;
