//! The handle: reads, invalidations, numbers.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use actix::{Arbiter, ArbiterHandle};
use tokio::sync::watch;

use super::Kind;
use super::actor::{Keeper, Owner};
use super::core::{Core, Inbox, Job, KindState, Look, brought, found};
use super::drive::drive;
use super::entry::{Dice, Entry, State};
use super::flight::{Flight, Flights, Joined};
use super::l2::L2;
use super::options::CacheOptions;
use super::published::Published;
use super::stats::{CacheStats, Counters, L1Stats, L2Stats, bump};
use super::value::{CacheError, FillError, Filled, Forward, Found, Tier, Why};
use crate::actor::supervisor::Supervised;
use crate::clock::{Clock, Stopwatch, UnixMillis};

/// The cache.
#[derive(Clone)]
pub struct CacheHandle {
    core: Arc<Core>,
    stop: watch::Sender<bool>,
    arbiter: ArbiterHandle,
}

/// Makes a cache and starts its owner and its link. Returns at once: Redis need not be there.
///
/// # Errors
/// When a setting or an address makes no sense, or no thread can be started.
pub fn start(options: CacheOptions, clock: Clock) -> Result<CacheHandle, CacheError> {
    let mut names = HashSet::new();
    if let Some(twice) = options.types.iter().find(|kind| !names.insert(kind.name.as_str())) {
        return Err(CacheError::Options(format!("there are two types `{}`", twice.name)));
    }
    if options.types.len() > usize::from(u16::MAX) {
        return Err(CacheError::Options(String::from("there are too many types")));
    }
    let since = Stopwatch::start();
    let random = RandomState::new().hash_one(clock.now());
    let l2 = options.l2.clone().map(|l2| L2::new(l2, &options, since, random)).transpose()?;
    let kinds: Vec<KindState> = options
        .types
        .iter()
        .map(|kind| KindState {
            options: kind.clone(),
            counters: Counters::default(),
            failing_until: AtomicI64::new(0),
        })
        .collect();
    let core = Arc::new(Core {
        published: Arc::new(Published::new(kinds.len())),
        kinds,
        clock,
        since,
        flights: Arc::new(Flights::new()),
        inbox: Inbox::new(options.l1_bytes),
        l2,
        dice: Dice::new(options.seed.unwrap_or(random)),
        driving: watch::Sender::new(0),
        options,
    });
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    // Not in the background: what is stored and what is invalidated must not wait for a quiet moment.
    let arbiter = Arbiter::try_with_tokio_rt(runtime).map_err(|error| CacheError::Thread(Arc::new(error)))?.handle();
    let stop = watch::Sender::new(false);
    let (shared, stopped) = (core.clone(), stop.subscribe());
    let owner =
        Supervised::start("cache", arbiter.clone(), move |life| Owner::new(life, shared.clone(), stopped.clone()));
    let _ = core.inbox.owner.set(owner);
    if core.l2.is_some() {
        let (shared, stopped) = (core.clone(), stop.subscribe());
        Supervised::start("cache link", arbiter.clone(), move |life| Keeper {
            life,
            core: shared.clone(),
            stop: stopped.clone(),
        });
    }
    Ok(CacheHandle { core, stop, arbiter })
}

/// What one read waits for.
struct Wait {
    flight: Arc<Flight>,
    collapsed: bool,
    fallback: Option<Arc<Entry>>,
}

/// A driver at work, counted so that a stop can wait for it.
struct Driving(Arc<Core>);

impl Drop for Driving {
    fn drop(&mut self) {
        self.0.driving.send_modify(|n| *n -= 1);
    }
}

impl CacheHandle {
    /// The type of a name.
    pub fn kind(&self, name: &str) -> Option<Kind> {
        self.core.find_kind(name)
    }

    /// A value. What no tier has is filled by `fill`, which runs apart from its callers: all who want the same at once get
    /// what one fill brings, and it goes on when they leave.
    ///
    /// # Errors
    /// When it is nowhere and the fill failed, now or a moment ago, or took too long.
    pub async fn get<F, R>(&self, kind: Kind, id: &str, fill: F) -> Result<Found, CacheError>
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<Filled, FillError>> + Send + 'static,
    {
        self.get_with(kind, id, || fill).await
    }

    /// The same, where making `fill` is worth sparing a hit.
    ///
    /// # Errors
    /// As [`CacheHandle::get`].
    pub async fn get_with<M, F, R>(&self, kind: Kind, id: &str, make: M) -> Result<Found, CacheError>
    where
        M: FnOnce() -> F,
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<Filled, FillError>> + Send + 'static,
    {
        let core = &self.core;
        let now = core.clock.now();
        let hash = core.published.hash(kind, id);
        let mut jobs = Vec::new();
        let ready = self.look(kind, id, hash, now, &mut jobs);
        if !jobs.is_empty() {
            let fill = make();
            self.spawn(kind, jobs, move |_| {
                let filled = fill();
                async move { filled.await.map(|filled| vec![filled]) }
            });
        }
        match ready {
            Ok(found) => Ok(found),
            Err(wait) => self.wait_within(core.options.fill_timeout, wait).await,
        }
    }

    /// Several values of a type, in the order of their ids. However many are missing and wherever, this makes at most one
    /// round trip to Redis and one call of `fill`, which gets the missing ids and brings as many values in their order. An
    /// id that another instance is filling right now is waited for, and filled by a call of its own only if that one dies.
    ///
    /// # Errors
    /// None as a whole at present; each value has its own.
    pub async fn get_many<F, R>(
        &self,
        kind: Kind,
        ids: &[&str],
        fill: F,
    ) -> Result<Vec<Result<Found, CacheError>>, CacheError>
    where
        F: Fn(Vec<Arc<str>>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Vec<Filled>, FillError>> + Send + 'static,
    {
        let core = &self.core;
        let now = core.clock.now();
        let mut jobs = Vec::new();
        let ready: Vec<Result<Found, Wait>> =
            ids.iter().map(|id| self.look(kind, id, core.published.hash(kind, id), now, &mut jobs)).collect();
        if !jobs.is_empty() {
            self.spawn(kind, jobs, fill);
        }
        let began = Stopwatch::start();
        let mut all = Vec::with_capacity(ids.len());
        for ready in ready {
            all.push(match ready {
                Ok(found) => Ok(found),
                Err(wait) => {
                    let left = core.options.fill_timeout.saturating_sub(began.elapsed());
                    self.wait_within(left, wait).await
                }
            });
        }
        Ok(all)
    }

    /// An answer, or what to wait for. What has to be filled for either is added to the jobs.
    fn look(&self, kind: Kind, id: &str, hash: u64, now: UnixMillis, jobs: &mut Vec<Job>) -> Result<Found, Wait> {
        let core = &self.core;
        let counters = &core.kind(kind).counters;
        match core.look(kind, id, hash, now) {
            Look::Hit(found) => Ok(found),
            Look::Refresh(found, newer_than) => {
                if let Joined::New(flight) = core.join(kind, id, hash, now, newer_than) {
                    if found.remaining > Duration::ZERO {
                        bump(&counters.early_refreshes);
                    }
                    jobs.push(Job::new(core, flight));
                }
                Ok(found)
            }
            Look::Miss(fallback, at_once) => {
                let (flight, collapsed) = match core.join(kind, id, hash, now, UnixMillis::MIN) {
                    Joined::Landed(entry) => {
                        bump(&counters.coalesced);
                        return Ok(Found { collapsed: true, ..found(&entry, now, Tier::L1, None) });
                    }
                    Joined::Running(flight) => (flight, true),
                    Joined::New(flight) => {
                        jobs.push(Job::new(core, flight.clone()));
                        (flight, false)
                    }
                };
                match fallback {
                    Some(entry) if at_once => Ok(self.stale(&entry, now)),
                    fallback => {
                        if collapsed {
                            bump(&counters.coalesced);
                        }
                        Err(Wait { flight, collapsed, fallback })
                    }
                }
            }
        }
    }

    fn stale(&self, entry: &Entry, now: UnixMillis) -> Found {
        bump(&self.core.kind(entry.kind).counters.stale_on_error);
        Found { forward: Some(Forward::Stale), ..found(entry, now, Tier::L1, Some(Why::Error)) }
    }

    async fn wait_within(&self, limit: Duration, wait: Wait) -> Result<Found, CacheError> {
        let core = &self.core;
        let outcome = tokio::time::timeout(limit, wait.flight.outcome()).await;
        let outcome = outcome.unwrap_or(Err(CacheError::TimedOut(core.options.fill_timeout)));
        let now = core.clock.now();
        let counters = &core.kind(wait.flight.kind).counters;
        match (outcome, wait.fallback) {
            (Ok(outcome), fallback) => {
                match outcome.stale {
                    Some(Why::Revalidating) => bump(&counters.stale_revalidating),
                    Some(Why::Error) => bump(&counters.stale_on_error),
                    None => {}
                }
                Ok(brought(&outcome, now, wait.collapsed, fallback.is_some()))
            }
            (Err(_), Some(entry)) if entry.state(now) != State::Gone => Ok(self.stale(&entry, now)),
            (Err(error), _) => Err(error),
        }
    }

    fn spawn<F, R>(&self, kind: Kind, jobs: Vec<Job>, fill: F)
    where
        F: Fn(Vec<Arc<str>>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Vec<Filled>, FillError>> + Send + 'static,
    {
        let core = self.core.clone();
        core.driving.send_modify(|n| *n += 1);
        let driving = Driving(core.clone());
        tokio::spawn(async move {
            let _driving = driving;
            drive(core, kind, jobs, fill).await;
        });
    }

    /// From now on nothing is served that was read of these keys before: here at once, in Redis and in every other instance
    /// before this returns, or as soon as Redis can be reached. It is called after what they show was changed.
    pub async fn invalidate(&self, kind: Kind, ids: &[&str]) {
        // Noted first: between the two nobody may take the old value from Redis.
        let tickets = self.core.l2.as_ref().map(|l2| (l2, l2.note(kind, Some(ids))));
        ids.iter().for_each(|id| self.core.invalidate(kind, id));
        if let Some((l2, tickets)) = tickets {
            l2.send(&tickets, self.core.clock.now()).await;
        }
    }

    /// The same for all keys of a type, however many they are.
    pub async fn invalidate_kind(&self, kind: Kind) {
        let tickets = self.core.l2.as_ref().map(|l2| (l2, l2.note(kind, None)));
        self.core.invalidate_kind(kind);
        if let Some((l2, tickets)) = tickets {
            l2.send(&tickets, self.core.clock.now()).await;
        }
    }

    /// Waits until Redis answers and invalidations are heard, at most so long; whether they are. True without Redis.
    pub async fn connected(&self, limit: Duration) -> bool {
        let Some(l2) = &self.core.l2 else { return true };
        let began = Stopwatch::start();
        loop {
            if l2.up() && l2.trust.listening() {
                return true;
            }
            if began.elapsed() >= limit {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The numbers.
    pub fn stats(&self) -> CacheStats {
        let core = &self.core;
        let read = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
        let restarts = core.inbox.owner.get().map_or(0, |owner| {
            let restarts = owner.restarts();
            read(&restarts.panicked) + read(&restarts.failed)
        });
        CacheStats {
            l1: L1Stats {
                entries: read(&core.inbox.entries),
                bytes: read(&core.inbox.bytes),
                max_entries: core.options.l1_entries as u64,
                max_bytes: core.options.l1_bytes,
                restarts,
            },
            l2: core.l2.as_ref().map(|l2| L2Stats {
                up: l2.up(),
                listening: l2.trust.listening(),
                pending: l2.pending() as u64,
                reads: read(&l2.reads),
                errors: read(&l2.errors),
                opened: read(&l2.opened),
            }),
            types: core.kinds.iter().map(|kind| kind.counters.read(&kind.options.name)).collect(),
        }
    }

    /// Ends: fills that run may finish until the deadline, and what Redis has not heard of is sent once more.
    pub async fn stop(&self, deadline: Duration) {
        let began = Stopwatch::start();
        let mut driving = self.core.driving.subscribe();
        if tokio::time::timeout(deadline, driving.wait_for(|n| *n == 0)).await.is_err() {
            log::warn!("the cache had fills still running after {} ms", deadline.as_millis());
        }
        if let Some(l2) = self.core.l2.as_ref().filter(|l2| l2.pending() > 0) {
            let left = deadline.saturating_sub(began.elapsed());
            let flushed = tokio::time::timeout(left, l2.flush(self.core.clock.now())).await;
            if !matches!(flushed, Ok(Ok(()))) {
                log::warn!("{} invalidations did not reach Redis; its values of them expire", l2.pending());
            }
        }
        self.stop.send_replace(true);
        // The actors see it within a tick and end; their thread would otherwise stay as long as the process.
        tokio::time::sleep(Duration::from_millis(150)).await;
        self.arbiter.stop();
    }

    #[cfg(test)]
    pub(super) fn core(&self) -> &Arc<Core> {
        &self.core
    }
}
