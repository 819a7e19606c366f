//! Other issuers whose tokens are taken: their keys are read ahead, by one at a time, and kept while that fails.

mod fetch;
mod jwks;
mod schedule;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::error::Rejection;
use super::options::IssuerOptions;
use super::token::VerifyingKey;
use super::unknown::Unknown;
use crate::clock::{Clock, UnixMillis};
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
    /// Until when they are believed: as the schedule says, for every request.
    usable_until: AtomicI64,
    schedule: Mutex<Schedule>,
    unknown: Mutex<Unknown>,
    /// Who reads; others wait for what comes of it.
    reading: Arc<tokio::sync::Mutex<()>>,
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
            usable_until: AtomicI64::new(UnixMillis::MIN),
            schedule,
            unknown: Mutex::new(Unknown::new()),
            reading: Arc::default(),
            clock,
            generation,
        }))
    }

    /// Reads the keys if it is time to. Nobody waits for this.
    pub async fn tend(&self) {
        if self.schedule.lock().due(self.clock.now()) {
            let _one = self.reading.lock().await;
            // Somebody who needed them may have read them while this waited.
            if self.schedule.lock().due(self.clock.now()) {
                self.read().await;
            }
        }
    }

    /// The key of a token. One that is not there is looked for at the issuer, if that is allowed now.
    pub async fn key(self: &Arc<Self>, kid: Option<&str>) -> Result<VerifyingKey, Rejection> {
        if let Some(key) = self.known(kid) {
            return Ok(key);
        }
        let before = {
            let mut unknown = self.unknown.lock();
            unknown.see(kid);
            unknown.begun()
        };
        let held = self.reading.clone().lock_owned().await;
        // Whether to ask is decided by who holds the lock, so that of many who come at once one does. Somebody may have read
        // the keys since this one looked.
        let asks = self.known(kid).is_none()
            && self.unknown.lock().begun() == before
            && self.schedule.lock().ask(self.clock.now());
        if asks {
            let issuer = self.clone();
            // The reading belongs to nobody: who hangs up must not have used up the question for those who wait.
            let reading = tokio::spawn(async move {
                let _one = held;
                issuer.read().await;
            });
            drop(reading.await);
        } else {
            drop(held);
        }
        if let Some(key) = self.known(kid) {
            return Ok(key);
        }
        let now = self.clock.now();
        let schedule = *self.schedule.lock();
        // That there is no such key is known only from one who answers.
        if !schedule.fresh() || !schedule.usable(now) {
            return Err(Rejection::Unavailable { retry_after: Duration::from_secs(1) });
        }
        if self.unknown.lock().answered(kid) {
            Err(Rejection::Invalid("unknown_key"))
        } else {
            Err(Rejection::Unavailable { retry_after: schedule.wait(now) })
        }
    }

    /// What is the matter with its keys, if anything.
    pub fn fault(&self) -> Option<&'static str> {
        self.schedule.lock().fault(self.clock.now())
    }

    /// That of a token, if it is here.
    pub fn known(&self, kid: Option<&str>) -> Option<VerifyingKey> {
        if !self.usable(self.clock.now()) {
            return None;
        }
        self.keys.load().find(kid).cloned()
    }

    /// Whether the keys that were read last are still believed.
    pub fn usable(&self, now: UnixMillis) -> bool {
        now < self.usable_until.load(Ordering::Acquire)
    }

    /// Reads them. Only who holds the lock may.
    async fn read(&self) {
        let reading = self.unknown.lock().begin();
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
                let mut schedule = self.schedule.lock();
                schedule.succeeded(now);
                self.usable_until.store(schedule.usable_until(), Ordering::Release);
                self.unknown.lock().succeeded(reading);
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
    }
}

#[cfg(test)]
mod tests;
