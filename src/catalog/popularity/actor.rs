//! The actor: reads the journal into the scores, publishes the ranking, and writes the snapshot.
//!
//! What blocks (reading, counting, publishing, writing) is done piece by piece on a thread that may; in between the actor
//! waits for entries, for the publish interval to be over, or for the stop. An actor that panicked begins again from the
//! snapshot.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Context, WrapFuture};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::handle::{PopularityHandle, Published};
use super::ranking::Ranking;
use super::reading::Reading;
use super::scores::{Mark, Scores};
use super::shared::{self, SharedPopularity, Sharing};
use super::store::{Loaded, OpenStore, Store};
use super::{PopularityError, PopularityOptions};
use crate::actor::background;
use crate::actor::supervisor::{Exit, Life, Supervised};
use crate::clock::{Clock, Stopwatch};
use crate::event::codec::Entry;
use crate::journal::{Chunk, Journal, Pin, Reader};

/// Bytes of entries read in one go.
const CHUNK: usize = 256 << 10;
/// How long to wait after a failure.
const RETRY: Duration = Duration::from_millis(500);
/// How often windows are looked at while nothing comes.
const IDLE: Duration = Duration::from_secs(1);
/// How often a snapshot is made to survive a power loss, after which the journal may drop what it covers.
const CHECKPOINT: Duration = Duration::from_secs(60);
/// A snapshot that cannot be written holds the journal's entries for so long. Then they go: scores are worth less than
/// the events that a full journal would refuse, and are in memory anyway.
const HOLD: Duration = Duration::from_secs(3600);

/// Starts counting popularity from where the snapshot is.
///
/// # Errors
/// When the snapshot is another journal's and cannot be emptied, no thread can be started, or Redis' address makes no sense.
pub fn start(
    opened: OpenStore,
    journal: &Journal,
    clock: Clock,
    options: PopularityOptions,
) -> Result<PopularityHandle, PopularityError> {
    let OpenStore { mut store, mut loaded, rebuilt } = opened;
    let shared = options.share.as_ref().map(|share| (share, Arc::new(SharedPopularity::new())));
    let state = shared.as_ref().map(|(_, state)| state.clone());
    let sharing = shared.map(|(share, state)| Sharing::new(share, journal.name(), state)).transpose()?;
    let published = Arc::new(Published::new(options.steps.clone(), 0, state));
    published.numbers.rebuilds.store(u64::from(rebuilt), Ordering::Relaxed);
    if let Some((next, of)) = &loaded.cursor
        && (of != journal.name() || *next > journal.end())
    {
        log::error!(
            "{} is of another journal or of entries that this one has lost; popularity is counted again from its oldest entry",
            store.path().display()
        );
        loaded = store.clear()?;
        published.numbers.rebuilds.fetch_add(1, Ordering::Relaxed);
    }
    let next = begin(journal, &loaded);
    published.counted.send_replace(next);
    published.saved.send_replace(next);
    let pin = journal.pin(next);
    let reading = Reading::new(&options.view_types, &options.purchase_types);
    let Loaded { scores, steps, .. } = loaded;
    let work = Work {
        ranking: Ranking::new(published.clone(), steps, options.max_products),
        published: published.clone(),
        store,
        scores,
        reading,
        next,
        sharable: journal.end(),
        clock: clock.clone(),
        journal: journal.clone(),
        pin,
        fresh: true,
        saved: Stopwatch::start(),
        checkpointed: Stopwatch::start(),
        failing: None,
    };
    let work = Arc::new(Mutex::new(work));
    let (stop, asked) = watch::channel(false);
    let (end, ended) = watch::channel(false);
    // The ranking of the snapshot is there before anybody asks.
    {
        let mut work = work.lock();
        work.scores.mark_all(Mark::Unshown);
        work.publish();
    }
    let parts = Parts {
        work,
        options,
        journal: journal.clone(),
        published: published.clone(),
        sharing: sharing.map(Arc::new),
        stop: asked,
        ended: end,
    };
    let actor = Supervised::start("popularity", background()?, move |life| Scorer { life, parts: parts.clone() });
    Ok(PopularityHandle { published, actor, journal: journal.clone(), clock, stop, ended })
}

/// The entry to begin with.
fn begin(journal: &Journal, loaded: &Loaded) -> u64 {
    let oldest = journal.stats().oldest.load(Ordering::Relaxed);
    let next = loaded.cursor.as_ref().map_or(oldest, |(next, _)| *next);
    if next < oldest {
        log::error!(
            "the journal no longer has entries {next}..{oldest}: they are missing in the popularity of products"
        );
    }
    next.max(oldest).min(journal.end())
}

/// What an actor is made of, each time anew.
#[derive(Clone)]
struct Parts {
    work: Arc<Mutex<Work>>,
    options: PopularityOptions,
    journal: Journal,
    published: Arc<Published>,
    sharing: Option<Arc<Sharing>>,
    stop: watch::Receiver<bool>,
    ended: watch::Sender<bool>,
}

pub(super) struct Scorer {
    life: Life,
    parts: Parts,
}

impl Actor for Scorer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        let run = count_and_share(self.parts.clone()).into_actor(self).map(|ended, this, ctx| {
            match ended {
                Ok(()) => {
                    this.parts.ended.send_replace(true);
                    this.life.ends(Exit::Stopped);
                }
                Err(error) => {
                    log::error!("the popularity of products starts again: {error}");
                    this.life.ends(Exit::Failed);
                }
            }
            ctx.stop();
        });
        ctx.spawn(run);
    }
}

/// What the blocking pieces work on; behind a lock, because a piece of an actor that panicked may still hold it.
pub(super) struct Work {
    store: Store,
    pub scores: Scores,
    pub ranking: Ranking,
    published: Arc<Published>,
    reading: Reading,
    /// The next entry to count.
    pub next: u64,
    /// From this entry on it is not behind what it may have shared before.
    pub sharable: u64,
    pub clock: Clock,
    journal: Journal,
    pin: Pin,
    /// The scores are as the store or the last piece left them.
    fresh: bool,
    saved: Stopwatch,
    checkpointed: Stopwatch,
    /// Since when snapshots fail.
    failing: Option<Stopwatch>,
}

impl Work {
    /// Begins again from the snapshot, if a piece was cut off within its work. Returns where to read on.
    fn resume(&mut self) -> Result<u64, PopularityError> {
        if !std::mem::replace(&mut self.fresh, false) {
            let loaded = self.store.load()?;
            self.next = begin(&self.journal, &loaded);
            self.scores = loaded.scores;
            self.sharable = self.journal.end();
            self.scores.mark_all(Mark::Unshared);
            self.ranking.reset(&mut self.scores, loaded.steps, self.clock.now());
            self.publish();
        }
        self.fresh = true;
        Ok(self.next)
    }

    fn count(&mut self, chunk: &Chunk) {
        self.fresh = false;
        let now = self.clock.now();
        if self.scores.set_right(now) {
            log::warn!("the clock was set back; views and sales counted ahead of it are dropped");
        }
        for (seq, entry) in chunk.entries() {
            match entry {
                Ok(Entry::Event(event)) => self.scores.apply(&event, &self.reading, now),
                Ok(Entry::Outcome { .. }) => {}
                Err(error) => log::error!("entry {seq} of the journal: {error}; popularity passes over it"),
            }
        }
        self.next = chunk.end;
        self.fresh = true;
    }

    /// Publishes what changed.
    pub fn publish(&mut self) {
        self.ranking.publish(&mut self.scores, self.clock.now(), self.next);
    }

    fn save(&mut self) -> Result<(), PopularityError> {
        self.saved = Stopwatch::start();
        let saved = self.store.save(&mut self.scores, self.ranking.changed_steps(), self.next, self.journal.name());
        if let Err(error) = saved {
            let failing = self.failing.get_or_insert_with(Stopwatch::start);
            if failing.elapsed() >= HOLD {
                self.pin.set(self.next);
            }
            return Err(error);
        }
        self.failing = None;
        // What could not be read is no more, either: else there would be nothing to save.
        *self.published.fault.lock() = None;
        self.ranking.saved();
        let numbers = &self.published.numbers;
        numbers.snapshots.fetch_add(1, Ordering::Relaxed);
        numbers.bytes.store(self.scores.bytes() as u64, Ordering::Relaxed);
        self.published.saved.send_replace(self.next);
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<(), PopularityError> {
        self.checkpointed = Stopwatch::start();
        if self.store.checkpoint()? {
            self.pin.set(*self.published.saved.borrow());
        }
        Ok(())
    }

    /// Saves and checkpoints when that is due, or at the end.
    fn keep(&mut self, interval: Duration, last: bool) -> Result<(), PopularityError> {
        let behind = self.next != *self.published.saved.borrow();
        if behind && (last || self.saved.elapsed() >= interval) {
            self.save()?;
        }
        if last || self.checkpointed.elapsed() >= CHECKPOINT {
            self.checkpoint()?;
        }
        Ok(())
    }
}

/// Runs a piece of work on a thread that may block.
pub(super) async fn piece<T: Send + 'static>(
    work: &Arc<Mutex<Work>>,
    piece: impl FnOnce(&mut Work) -> Result<T, PopularityError> + Send + 'static,
) -> Result<T, PopularityError> {
    let work = work.clone();
    let done = tokio::task::spawn_blocking(move || piece(&mut work.lock())).await;
    done.map_err(|_| PopularityError::Interrupted)?
}

/// Counts, and beside it shares what is counted.
async fn count_and_share(parts: Parts) -> Result<(), PopularityError> {
    let Some(sharing) = parts.sharing.clone() else { return run(parts).await };
    let work = parts.work.clone();
    let (done, is_done) = watch::channel(false);
    let count = async {
        let counted = run(parts).await;
        done.send_replace(true);
        counted
    };
    futures_util::future::join(count, shared::run(&sharing, &work, is_done)).await.0
}

async fn run(parts: Parts) -> Result<(), PopularityError> {
    let Parts { work, options, journal, published, mut stop, .. } = parts;
    let interval = options.snapshot_interval;
    let next = piece(&work, Work::resume).await?;
    let mut reader = journal.reader(next);
    let mut shown = Stopwatch::start();
    // Whether something is counted and not shown.
    let mut pending = false;
    loop {
        let stopping = *stop.borrow();
        if reader.caught_up() {
            let left = options.publish_interval.saturating_sub(shown.elapsed());
            if stopping || (pending && left.is_zero()) || shown.elapsed() >= IDLE {
                let kept = piece(&work, move |work| {
                    work.publish();
                    work.keep(interval, stopping)
                });
                if let Err(error) = kept.await {
                    report(&published, error)?;
                    if stopping {
                        return Ok(());
                    }
                }
                (shown, pending) = (Stopwatch::start(), false);
                if stopping {
                    return Ok(());
                }
            }
            let wait = if pending { left } else { IDLE.saturating_sub(shown.elapsed()) };
            let closed = tokio::select! {
                open = reader.ready() => !open,
                () = tokio::time::sleep(wait) => false,
                () = stopped(&mut stop) => false,
            };
            if closed {
                // The stop follows.
                let _ = tokio::time::timeout(wait, stopped(&mut stop)).await;
            }
            if reader.caught_up() {
                continue;
            }
        }
        let publish = shown.elapsed() >= options.publish_interval;
        let (back, done) = read(&work, reader, publish, interval).await?;
        reader = back;
        match done {
            Ok(true) => pending = true,
            // Committed, but not to be read: damage at the very end, over which the next block will lead.
            Ok(false) if stopping => return piece(&work, move |work| work.keep(interval, true)).await,
            Ok(false) => tokio::time::sleep(RETRY).await,
            Err(error) => {
                report(&published, error)?;
                if stopping {
                    return Ok(());
                }
                tokio::time::sleep(RETRY).await;
            }
        }
        if publish {
            shown = Stopwatch::start();
        }
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // Its sender lives as long as the handle; without one nobody will ask.
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// A piece that was cut off ends the actor, which begins anew; all else is tried again.
fn report(published: &Published, error: PopularityError) -> Result<(), PopularityError> {
    if matches!(error, PopularityError::Interrupted) {
        return Err(error);
    }
    published.fails(&error);
    Ok(())
}

/// Reads some entries and counts them; false when there were none.
async fn read(
    work: &Arc<Mutex<Work>>,
    mut reader: Reader,
    publish: bool,
    interval: Duration,
) -> Result<(Reader, Result<bool, PopularityError>), PopularityError> {
    piece(work, move |work| {
        let chunk = match reader.read(CHUNK) {
            Ok(chunk) => chunk,
            Err(error) => return Ok((reader, Err(error.into()))),
        };
        work.published.numbers.lost.fetch_max(reader.lost(), Ordering::Relaxed);
        let Some(chunk) = chunk else { return Ok((reader, Ok(false))) };
        work.count(&chunk);
        reader.recycle(chunk);
        if publish {
            work.publish();
        }
        let kept = work.keep(interval, false);
        Ok((reader, kept.map(|()| true)))
    })
    .await
}

#[cfg(test)]
impl PopularityHandle {
    /// As a piece of work that panics would end it.
    async fn fail(&self) {
        let _ = self.actor.send(Fail).await;
    }
}

#[cfg(test)]
#[derive(actix::Message)]
#[rtype(result = "()")]
struct Fail;

#[cfg(test)]
impl actix::Handler<Fail> for Scorer {
    type Result = ();
    fn handle(&mut self, _: Fail, _: &mut Context<Self>) {
        // In the middle of its work.
        self.parts.work.lock().fresh = false;
        panic!("as the test asked");
    }
}

#[cfg(test)]
#[path = "actor_tests.rs"]
mod tests;
