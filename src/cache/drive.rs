//! Filling, apart from all who wait: asks the second tier, takes leases or waits for who has them, and asks the source.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::broadcast;

use super::Kind;
use super::core::{Core, Job};
use super::entry::{State, millis};
use super::l2::{Ask, L2, Lease};
use super::stats::bump;
use super::value::{CacheError, FillError, Filled, Tier};
use super::wire::Stored;
use crate::clock::Stopwatch;

/// How often a lease of another is looked at, should its holder die or its word be lost.
const POLL: Duration = Duration::from_millis(100);

/// Brings all jobs to an end.
pub(super) async fn drive<F, R>(core: Arc<Core>, kind: Kind, jobs: Vec<Job>, fill: F)
where
    F: Fn(Vec<Arc<str>>) -> R,
    R: Future<Output = Result<Vec<Filled>, FillError>>,
{
    let Some(l2) = core.l2_of(kind).filter(|l2| l2.up()) else {
        return ask_source(&core, kind, jobs, None, &fill).await;
    };
    let (mut waiting, aside): (Vec<Job>, Vec<Job>) =
        jobs.into_iter().partition(|job| !l2.is_pending(kind, &job.flight.id));
    let token = l2.token();
    // Before the first look, so that no word is missed.
    let mut words = l2.filled.subscribe();
    let began = Stopwatch::start();
    let mut fills = FuturesUnordered::new();
    let mut first = true;
    let mut alone = aside;
    loop {
        let mut mine = Vec::new();
        let mut theirs = Vec::new();
        if !waiting.is_empty() {
            match claim(&core, l2, kind, waiting, &token, first).await {
                Ok(claimed) => (mine, theirs) = claimed,
                Err(jobs) => alone.extend(jobs),
            }
        }
        // One call of the source for all of them, with and without a lease.
        let leased = mine.len();
        mine.append(&mut alone);
        if !mine.is_empty() {
            fills.push(ask_source(&core, kind, mine, Some((l2, token.as_str(), leased)), &fill));
        }
        if first {
            core.kind(kind).counters.lease_waits.fetch_add(theirs.len() as u64, Ordering::Relaxed);
            first = false;
        }
        waiting = theirs;
        if waiting.is_empty() {
            while fills.next().await.is_some() {}
            return;
        }
        if began.elapsed() >= core.options.fill_timeout {
            waiting.drain(..).for_each(|job| job.fail(CacheError::TimedOut(core.options.fill_timeout)));
            continue;
        }
        tokio::select! {
            () = word(&mut words, &waiting) => {}
            () = tokio::time::sleep(POLL) => {}
            Some(()) = fills.next() => {}
        }
    }
}

/// Waits for the word that one of these was filled.
async fn word(words: &mut broadcast::Receiver<u64>, waiting: &[Job]) {
    loop {
        match words.recv().await {
            Ok(hash) if waiting.iter().any(|job| job.flight.hash == hash) => return,
            Ok(_) => {}
            // Some were missed: to look is cheaper than to wonder.
            Err(broadcast::error::RecvError::Lagged(_)) => return,
            Err(broadcast::error::RecvError::Closed) => return std::future::pending().await,
        }
    }
}

/// Asks the second tier. What is fresh there lands; the rest is ours to fill, or another's. Gives all back if it fails.
async fn claim(
    core: &Core,
    l2: &L2,
    kind: Kind,
    jobs: Vec<Job>,
    token: &str,
    first: bool,
) -> Result<(Vec<Job>, Vec<Job>), Vec<Job>> {
    let counters = &core.kind(kind).counters;
    let now = core.clock.now();
    let asks: Vec<Ask<'_>> =
        jobs.iter().map(|job| Ask { id: &job.flight.id, newer_than: job.flight.newer_than }).collect();
    let claims = l2.claim(kind, &asks, token, now).await;
    drop(asks);
    let Ok((generation, claims)) = claims else { return Err(jobs) };
    let (mut mine, mut theirs) = (Vec::new(), Vec::new());
    for (mut job, claim) in jobs.into_iter().zip(claims) {
        job.generation = generation;
        // An invalidation that Redis does not know yet: what it has is old.
        if l2.is_pending(kind, &job.flight.id) {
            mine.push(job);
            continue;
        }
        let entry = claim.stored.map(|stored| core.make(&job.flight, stored));
        match (claim.lease, entry) {
            (Lease::Needless, Some(entry)) if entry.state(now) == State::Fresh => {
                bump(&counters.l2_hits);
                if entry.body.is_none() {
                    bump(&counters.negative_hits);
                }
                job.land(entry, Tier::L2, true);
                continue;
            }
            (_, Some(entry)) if entry.state(now) != State::Fresh => job.soften(entry, now),
            _ => {}
        }
        if first {
            bump(&counters.l2_misses);
        }
        match claim.lease {
            Lease::Theirs => theirs.push(job),
            _ => mine.push(job),
        }
    }
    Ok((mine, theirs))
}

/// Calls the source once for all jobs, the first so many of which hold leases, and lands what it says.
async fn ask_source<F, R>(core: &Core, kind: Kind, jobs: Vec<Job>, leases: Option<(&L2, &str, usize)>, fill: &F)
where
    F: Fn(Vec<Arc<str>>) -> R,
    R: Future<Output = Result<Vec<Filled>, FillError>>,
{
    let state = core.kind(kind);
    let ids: Vec<Arc<str>> = jobs.iter().map(|job| job.flight.id.clone()).collect();
    let leases = leases.filter(|(.., count)| *count > 0);
    let leased: Vec<&str> = ids.iter().take(leases.map_or(0, |(.., count)| count)).map(|id| &**id).collect();
    bump(&state.counters.fills);
    state.counters.filled_values.fetch_add(ids.len() as u64, Ordering::Relaxed);
    let took = Stopwatch::start();
    let said = {
        let limit = core.options.fill_timeout;
        let mut said = std::pin::pin!(tokio::time::timeout(limit, fill(ids.clone())));
        loop {
            let Some((l2, token, _)) = leases else { break said.await };
            tokio::select! {
                said = &mut said => break said,
                () = tokio::time::sleep(l2.options.lease / 3) => l2.renew(kind, &leased, token).await,
            }
        }
    };
    let said = match said {
        Ok(Ok(said)) if said.len() == jobs.len() => Ok(said),
        Ok(Ok(said)) => {
            let what = format!("the fill of {} values brought {}", jobs.len(), said.len());
            Err(CacheError::Fill(FillError::Failed(what.into())))
        }
        Ok(Err(error)) => Err(CacheError::Fill(error)),
        Err(_) => Err(CacheError::TimedOut(core.options.fill_timeout)),
    };
    let now = core.clock.now();
    let mut settled: Vec<(&str, Option<(Stored, i64)>)> = Vec::with_capacity(leased.len());
    match said {
        Ok(said) => {
            state.failing_until.store(0, Ordering::Relaxed);
            for (job, filled) in jobs.into_iter().zip(said) {
                let entry = core.entry(&job.flight, filled, took.elapsed(), now);
                let id = leased.get(settled.len()).copied();
                if let Some(id) = id {
                    let stored = Stored {
                        generation: job.generation,
                        stored_at: entry.stored_at,
                        lifetime: entry.fresh_until - entry.stored_at,
                        delta: entry.delta,
                        tag: entry.tag,
                        body: entry.body.clone(),
                    };
                    let worth = entry.state(now) == State::Fresh;
                    settled.push((id, worth.then_some((stored, entry.error_until - now))));
                }
                job.land(entry, Tier::L3, id.is_some());
            }
        }
        Err(error) => {
            bump(&state.counters.fill_errors);
            let counts = millis(core.options.error_memory).saturating_mul(5).max(5_000);
            state.failing_until.store(now.saturating_add(counts), Ordering::Relaxed);
            settled.extend(leased.iter().map(|id| (*id, None)));
            jobs.into_iter().for_each(|job| job.fail(error.clone()));
        }
    }
    if let Some((l2, token, _)) = leases {
        l2.settle(kind, &settled, token).await;
    }
}
