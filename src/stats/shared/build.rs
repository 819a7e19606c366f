//! What the publisher does beside its deltas: builds lost groups anew, publishes windows whole, agrees on salts.

use std::sync::atomic::Ordering;

use deadpool_redis::redis::{Cmd, FromRedisValue, Value};

use super::Role;
use super::base;
use super::blob;
use super::fold::{Fold, Known};
use super::keys::{Part, part};
use super::ops::Ops;
use super::publish::{End, Publisher};
use crate::clock::{DAY, HOUR, SECOND, UnixMillis};
use crate::redis::StoreError;
use crate::stats::Tier;
use crate::stats::rollup::WindowKey;

/// Arguments of one script that are worth a word.
const MOST_ARGS: usize = 400_000;
/// Windows read and published at once when all of them are.
const PARTS_AT_ONCE: usize = 20;

impl Publisher {
    /// Puts down groups that have no fence: what the journal no longer tells, at once.
    pub async fn build(&mut self, missing: &[usize]) -> Result<(), End> {
        let oldest = self.journal.stats().oldest.load(Ordering::Relaxed);
        let now = self.clock.now();
        let mut known = Known { base: 0, since: UnixMillis::MIN };
        let mut reader = self.journal.reader(oldest);
        let first = tokio::task::spawn_blocking(move || reader.read(1).map(|chunk| chunk.map(|chunk| chunk.time())));
        let first = first.await.map_err(|error| End::Local(error.to_string()))??;
        if oldest > 0 && self.role == Role::Counts {
            known.since = first.unwrap_or(now);
        }
        let (options, name) = (self.options.clone(), self.journal.name().to_owned());
        self.expiring.forget();
        let mut expiring = std::mem::take(&mut self.expiring);
        let keys = self.keys.clone();
        let mut ops = Ops::new(&keys, &mut expiring, now / SECOND);
        if oldest > 0 && self.role == Role::Counts {
            let base = self.queries.base(known.since, now).await?;
            for rollup in &base.windows {
                base::put_window(&mut ops, rollup, known, &options);
            }
            base.totals.put(&mut ops);
            base::put_audit(&mut ops, &base.audit, &name);
            known.base = base.audit.as_of.offset;
        }
        let groups = std::mem::take(&mut ops.groups);
        self.expiring = expiring;
        for (group, ops) in groups.into_iter().enumerate().filter(|(group, _)| missing.contains(group)) {
            if ops.args.len() > MOST_ARGS {
                log::warn!("{} operations go to the shared store at once", ops.keys.len());
            }
            // Whether a sending that was not answered took effect shows in the fences, which are read again.
            self.run_script(group, &ops, [oldest, oldest], first, Some(known)).await?;
        }
        Ok(())
    }

    /// Publishes every window there is.
    pub async fn publish_all(&mut self) -> Result<(), End> {
        let mut count = 0;
        for tier in Tier::ALL {
            let from = self.retention.deleted_before(tier, self.clock.now());
            for some in self.queries.windows(tier, from, UnixMillis::MAX).await?.chunks(PARTS_AT_ONCE) {
                count += some.len();
                self.publish(some.to_vec()).await?;
            }
        }
        let done = (0..self.keys.groups()).map(|group| {
            let mut command = Cmd::new();
            command.arg("HSET").arg(self.keys.fence(self.role, group, self.journal.name())).arg("parts").arg("done");
            command
        });
        self.client.all(done.collect()).await?;
        log::info!("{count} windows of the embedded store are published in the shared store");
        Ok(())
    }

    /// Publishes windows as the embedded store has them now.
    pub async fn publish(&mut self, windows: Vec<WindowKey>) -> Result<(), End> {
        let now = self.clock.now();
        let mut commands = Vec::new();
        let mut named = Vec::new();
        for rollup in self.queries.rollups(windows).await?.rollups {
            let WindowKey { site, tier, start } = &rollup.key;
            for what in Part::ALL {
                let Some(bytes) = blob::encode(&rollup, what) else { continue };
                let key = self.keys.key(&part(site, *tier, *start, what));
                let mut set = Cmd::new();
                set.arg("HSET").arg(&key).arg(self.journal.name()).arg(bytes);
                commands.push(set);
                named.push((key.clone(), true));
                if let Some(kept) = self.retention.of(*tier) {
                    let expires = (start + tier.width() + kept).max(now) / SECOND + 60;
                    if self.expiring.first(&key, expires) {
                        let mut expire = Cmd::new();
                        expire.arg("EXPIREAT").arg(&key).arg(expires);
                        commands.push(expire);
                        named.push((key, false));
                    }
                }
            }
        }
        let answers = self.client.all(commands).await?;
        for ((key, _), answer) in named.iter().zip(answers).filter(|((_, sets), _)| *sets) {
            if answer == Value::Nil {
                self.state.counters.foreign_keys.fetch_add(1, Ordering::Relaxed);
                log::error!("the key {key} in the shared store holds something else; left alone");
            }
        }
        Ok(())
    }

    /// Agrees with the other instances on the day's salt, so that a visitor without an id is the same one everywhere; on
    /// tomorrow's an hour before.
    pub async fn share_salt(&self) -> Result<(), StoreError> {
        let now = self.clock.now();
        for day in [now, now + HOUR].map(|at| at.div_euclid(DAY)) {
            if self.salts.is_shared(day) {
                continue;
            }
            let key = self.keys.key(&format!("tg:salt:{day}"));
            let mut offer = Cmd::new();
            let own = self.salts.offer(day, now);
            offer.arg("SET").arg(&key).arg(&own[..]).arg("NX").arg("EXAT").arg((day + 1) * DAY / SECOND);
            let mut take = Cmd::new();
            take.arg("GET").arg(&key);
            self.client.one(&offer).await?;
            let taken = <Vec<u8>>::from_redis_value(self.client.one(&take).await?).unwrap_or_default();
            if let Ok(salt) = taken.try_into() {
                self.salts.adopt(day, salt);
            }
        }
        Ok(())
    }
}

/// The windows that a delta touched.
pub(super) fn touched(fold: &Fold) -> Vec<WindowKey> {
    let mut windows = Vec::new();
    for site in &fold.delta.sites {
        for minute in &site.minutes {
            let of = |tier: Tier| WindowKey { site: site.name.clone(), tier, start: tier.floor(minute.start) };
            windows.extend(Tier::ALL.map(of));
        }
    }
    windows.sort_unstable();
    windows.dedup();
    windows
}
