//! What is done in the background: keys take turns, what others changed is read, and what has ended is forgotten.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{OwnedMutexGuard, watch};

use super::api_key::Keys;
use super::error::IdentityError;
use super::issuers::Issuer;
use super::service::{Identity, Inner};
use super::store::{AllKeys, ChangedKeys, PublishKeys, Purge};
use crate::clock::{HOUR, MINUTE, UnixMillis};

/// How often an issuer's schedule is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Between two chunks of what is forgotten, so that others get at the database.
const BREATH: Duration = Duration::from_millis(20);

pub(super) fn start(inner: &Arc<Inner>) {
    let stopping = || inner.stopping.subscribe();
    let issuers = inner.issuers.iter().map(|issuer| tokio::spawn(tend_issuer(Arc::downgrade(issuer), stopping())));
    let mut tasks: Vec<_> = issuers.collect();
    tasks.push(tokio::spawn(tend(Arc::downgrade(inner), stopping())));
    tasks.push(tokio::spawn(forget(Arc::downgrade(inner), stopping())));
    *inner.tasks.lock() = tasks;
}

/// Waits; whether to go on.
async fn pause(span: Duration, stopping: &mut watch::Receiver<bool>) -> bool {
    // Who is gone does not say stop any more, and there is nothing left to tend.
    tokio::time::timeout(span, stopping.wait_for(|stop| *stop)).await.is_err()
}

async fn tend_issuer(issuer: Weak<Issuer>, mut stopping: watch::Receiver<bool>) {
    while let Some(issuer) = issuer.upgrade() {
        issuer.tend().await;
        drop(issuer);
        if !pause(LOOK, &mut stopping).await {
            return;
        }
    }
}

async fn tend(weak: Weak<Inner>, mut stopping: watch::Receiver<bool>) {
    let mut well = true;
    while let Some(inner) = weak.upgrade() {
        let rotated = inner.rotate().await;
        let stuck = inner.stuck.swap(rotated.is_err(), Ordering::Relaxed);
        match rotated {
            Ok(true) => log::info!("identity: the next signing key is in use"),
            Ok(false) => {}
            // Once: it is tried every few seconds.
            Err(_) if stuck => {}
            Err(error) => log::error!("identity: {error}; the old one is used on"),
        }
        // Whatever becomes of the rest, ours are known here.
        inner.publish();
        if inner.database.is_ready() {
            let done = inner.sync().await;
            match &done {
                Err(error) if well => log::warn!("identity: {error}; keys are used as they were read last"),
                Ok(()) if !well => log::info!("identity: the database can be read again"),
                _ => {}
            }
            well = done.is_ok();
        }
        let wait = inner.options.refresh_interval.min(inner.options.key_rotation / 4);
        drop(inner);
        if !pause(wait, &mut stopping).await {
            return;
        }
    }
}

/// Forgets what has ended, beside the rest: after months of it that takes many chunks.
async fn forget(weak: Weak<Inner>, mut stopping: watch::Receiver<bool>) {
    let mut next = UnixMillis::MIN;
    let mut well = true;
    while let Some(inner) = weak.upgrade() {
        let mut wait = inner.options.refresh_interval;
        if inner.database.is_ready() && inner.clock.now() >= next {
            let done = inner.database.run(Purge).await;
            match &done {
                Err(error) if well => log::warn!("identity: {error}; sessions that have ended are forgotten later"),
                Ok(_) if !well => log::info!("identity: sessions that have ended are forgotten again"),
                _ => {}
            }
            well = done.is_ok();
            if done == Ok(true) {
                wait = BREATH;
            }
            next = inner.clock.now().saturating_add(until_next(&done));
        }
        drop(inner);
        if !pause(wait, &mut stopping).await {
            return;
        }
    }
}

/// When what has ended is looked for again, by whether there may be more of it.
fn until_next(done: &Result<bool, IdentityError>) -> UnixMillis {
    match done {
        Ok(true) => 0,
        Ok(false) => HOUR,
        Err(_) => MINUTE,
    }
}

impl Inner {
    /// Hands our public keys to the other instances, and takes theirs and the API keys.
    pub async fn sync(&self) -> Result<(), IdentityError> {
        self.sync_holding(self.syncing.clone().lock_owned().await).await
    }

    /// The same, by who holds the lock already.
    pub async fn sync_holding(&self, _one: OwnedMutexGuard<()>) -> Result<(), IdentityError> {
        let reading = self.unknown.lock().begin();
        let done = self.sync_alone().await;
        if done.is_ok() {
            self.synced_at.store(self.clock.now(), Ordering::Relaxed);
            self.unknown.lock().succeeded(reading);
        }
        self.synced.store(done.is_ok(), Ordering::Release);
        done
    }

    /// Sees to it that what is signed now can be verified by every instance: the key that signs must be in the database. It is
    /// not there yet if the database came late, or was away for as long as a key signs.
    pub async fn may_issue(&self) -> Result<(), IdentityError> {
        self.ready()?;
        if self.is_handed() {
            return Ok(());
        }
        let held = self.syncing.clone().lock_owned().await;
        // Somebody may have seen to it while this one waited.
        if !self.is_handed() {
            self.sync_holding(held).await?;
        }
        if self.is_handed() { Ok(()) } else { Err(IdentityError::NotReady) }
    }

    fn is_handed(&self) -> bool {
        let signing = self.signing.load();
        self.handed.load().contains(&signing.ring.active.kid)
    }

    async fn sync_alone(&self) -> Result<(), IdentityError> {
        let ours = self.public_keys();
        let kids = ours.iter().map(|key| key.kid.clone()).collect();
        let all = self.database.run(AllKeys).await?;
        let missing: Vec<_> = ours.into_iter().filter(|key| !all.contains(key)).collect();
        if !missing.is_empty() {
            self.database.run(PublishKeys(missing)).await?;
        }
        self.handed.store(Arc::new(kids));
        self.others.store(Arc::new(all));
        self.publish();
        let mark = *self.mark.lock();
        if let Some((mark, keys)) = self.database.run(ChangedKeys(mark)).await? {
            self.api_keys.store(Some(Arc::new(Keys::new(keys))));
            *self.mark.lock() = Some(mark);
        }
        Ok(())
    }
}

impl Identity {
    /// Ends what is done in the background, before the database is closed.
    pub async fn stop(&self, deadline: Duration) {
        self.inner.stopping.send_replace(true);
        let tasks = std::mem::take(&mut *self.inner.tasks.lock());
        let all = async {
            for task in tasks {
                let _ = task.await;
            }
        };
        if tokio::time::timeout(deadline, all).await.is_err() {
            log::warn!("drain: the refreshing of keys did not end in time");
        }
    }

    /// Waits until what others made is read, at most so long; whether it is.
    pub async fn ready(&self, limit: Duration) -> bool {
        let sync = async { self.inner.database.ready(limit).await && self.inner.sync().await.is_ok() };
        tokio::time::timeout(limit, sync).await.unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_forgotten_at_once_and_what_failed_soon() {
        assert_eq!(until_next(&Ok(true)), 0);
        assert_eq!(until_next(&Ok(false)), HOUR);
        assert_eq!(until_next(&Err(IdentityError::NotReady)), MINUTE);
    }
}
