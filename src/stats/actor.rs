//! The aggregator: the actor that reads the journal into the statistics.
//!
//! It owns the [`Delta`] that gathers, the running windows ([`Live`]) and the feed's writing side. What blocks (reading
//! the journal, committing to the store) runs as a task whose result comes back as a message, one at a time: read until
//! there is nothing more or enough, commit, publish, and begin again no sooner than the flush interval. Nothing is queued
//! here: while the store is down or the machine busy, entries wait in the journal.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actix::{
    Actor, ActorContext, ActorFutureExt, Arbiter, AsyncContext, Context, Handler, Message, SpawnHandle, WrapFuture,
};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use super::handle::{Shared, StatsHandle};
use super::store::{Committed, StatsStore};
use super::{Delta, Feed, Live, Queries, SharedOptions, SqliteStore, StatsError, StatsOptions, shared};
use crate::actor::supervisor::{Exit, Life, Supervised};
use crate::clock::{Clock, MINUTE, Stopwatch, UnixMillis};
use crate::event::visitor::Salts;
use crate::journal::{Chunk, Journal, JournalError, Pin, Reader};

/// Bytes of entries read in one go.
const CHUNK: usize = 1 << 20;
/// Bytes of entries in one commit; more wait for the next.
const COMMIT: usize = 16 << 20;
/// How long to wait after a failed commit or read.
const RETRY: Duration = Duration::from_millis(500);

/// A statistics store that is open, with how far it has counted.
pub struct OpenStore {
    store: SqliteStore,
    cursor: u64,
    queries: Queries,
}

impl OpenStore {
    /// The next entry to count.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }
}

/// Opens the embedded store.
pub fn open_store(path: &std::path::Path, options: StatsOptions) -> Result<OpenStore, StatsError> {
    let mut store = SqliteStore::open(path, options.clone())?;
    let cursor = store.cursor()?.next;
    Ok(OpenStore { store, cursor, queries: Queries::open(path, options)? })
}

/// Starts counting.
pub fn start(
    opened: OpenStore,
    journal: &Journal,
    clock: Clock,
    options: &StatsOptions,
    flush_interval: Duration,
    shared_store: Option<(SharedOptions, Arc<Salts>)>,
) -> Result<StatsHandle, StatsError> {
    let OpenStore { mut store, cursor, queries } = opened;
    let live = Live::load(&mut store, options.clone(), clock.now())?;
    let feed = Feed::new(live.reader(), clock.clone());
    let shared = Arc::new(Shared {
        counted: watch::Sender::new(cursor),
        live: live.reader(),
        feed,
        fault: Mutex::default(),
        lost: AtomicU64::new(0),
        commits: AtomicU64::new(0),
    });
    let shared_store = shared_store
        .map(|(shared_options, salts)| {
            let counted = shared.counted.subscribe();
            let (clock, stats) = (clock.clone(), options.clone());
            shared::start(shared_options, stats, journal, queries.clone(), counted, clock, salts)
        })
        .transpose()
        .map_err(|error| StatsError::Pool(error.to_string()))?;
    let parts = Arc::new(Mutex::new(Parts { store, live }));
    let pin = journal.pin(cursor);
    let (journal, published) = (journal.clone(), shared.clone());
    let factory = move |life| Aggregator {
        life,
        parts: parts.clone(),
        journal: journal.clone(),
        pin: pin.clone(),
        clock: clock.clone(),
        shared: published.clone(),
        flush_interval,
        delta: Delta::new(0),
        gathered: 0,
        cycle: Stopwatch::start(),
        swept: 0,
        idle: None,
        stopping: None,
    };
    // An arbiter of its own: folding a megabyte of entries must not hold up a request.
    let actor = Supervised::start("aggregator", Arbiter::new().handle(), factory);
    Ok(StatsHandle { shared, actor, queries, shared_store })
}

/// What commits write to; behind a lock, because the task of an actor that panicked may still hold it.
struct Parts {
    store: SqliteStore,
    live: Live,
}

pub(super) struct Aggregator {
    life: Life,
    parts: Arc<Mutex<Parts>>,
    journal: Journal,
    pin: Pin,
    clock: Clock,
    shared: Arc<Shared>,
    flush_interval: Duration,
    delta: Delta,
    /// Bytes of entries in the delta.
    gathered: usize,
    /// Since the last commit ended.
    cycle: Stopwatch,
    swept: UnixMillis,
    /// The reader, while it waits for the interval to be over, and the timer that ends this.
    idle: Option<(Reader, SpawnHandle)>,
    stopping: Option<oneshot::Sender<()>>,
}

/// The store's cursor, from which a new actor reads on.
#[derive(Message)]
#[rtype(result = "()")]
struct Resumed(Result<u64, StatsError>);

#[derive(Message)]
#[rtype(result = "()")]
struct Read {
    reader: Reader,
    chunk: Result<Option<Chunk>, JournalError>,
}

#[derive(Message)]
#[rtype(result = "()")]
struct Done {
    reader: Reader,
    delta: Delta,
    committed: Result<(), StatsError>,
    swept: bool,
}

#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Stop(pub oneshot::Sender<()>);

impl Actor for Aggregator {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.resume(ctx);
        // The feed's last frame of a burst is due even when nothing more comes.
        ctx.run_interval(Duration::from_millis(125), |this, _| this.shared.feed.tick(this.clock.now()));
    }
}

impl Aggregator {
    fn resume(&self, ctx: &mut Context<Self>) {
        let (parts, clock, feed) = (self.parts.clone(), self.clock.clone(), self.shared.feed.clone());
        blocking(ctx, Duration::ZERO, move || {
            let Parts { store, live } = &mut *parts.lock();
            let resumed = (|| {
                let cursor = store.cursor()?.next;
                // A commit whose outcome nobody took in has to show as well.
                if live.reader().as_of().offset != cursor {
                    live.reload(store, clock.now())?;
                    feed.reset();
                }
                Ok(cursor)
            })();
            Resumed(resumed)
        });
    }

    /// Waits for entries, then reads some.
    fn read(&self, mut reader: Reader, ctx: &mut Context<Self>) {
        let wait = async move {
            let ready = reader.ready().await;
            let read = tokio::task::spawn_blocking(move || {
                let chunk = if ready { reader.read(CHUNK) } else { Ok(None) };
                Read { reader, chunk }
            });
            read.await
        };
        let wait = wait.into_actor(self).map(|read, this, ctx| match read {
            Ok(read) => ctx.notify(read),
            Err(error) => this.fail(&error, ctx),
        });
        ctx.spawn(wait);
    }

    fn read_or_commit(&mut self, reader: Reader, ctx: &mut Context<Self>) {
        if reader.caught_up() { self.commit(reader, ctx) } else { self.read(reader, ctx) }
    }

    /// Commits what has gathered, publishes it, and now and then sweeps out what is too old.
    fn commit(&mut self, reader: Reader, ctx: &mut Context<Self>) {
        let next = Delta::new(reader.next());
        let delta = std::mem::replace(&mut self.delta, next);
        self.gathered = 0;
        let (parts, clock, shared, pin) =
            (self.parts.clone(), self.clock.clone(), self.shared.clone(), self.pin.clone());
        let sweep = self.clock.now() - self.swept >= MINUTE || self.stopping.is_some();
        blocking(ctx, Duration::ZERO, move || {
            let parts = &mut *parts.lock();
            let committed = parts.commit(&delta, clock.now(), &shared);
            let swept = sweep && committed.is_ok() && parts.sweep(clock.now(), &pin);
            Done { reader, delta, committed, swept }
        });
    }

    fn fail(&mut self, why: &dyn std::fmt::Display, ctx: &mut Context<Self>) {
        log::error!("the aggregator gives up and starts again: {why}");
        self.life.ends(Exit::Failed);
        ctx.stop();
    }

    fn fault(&self, why: &dyn std::fmt::Display) {
        let mut fault = self.shared.fault.lock();
        if fault.is_none() {
            log::error!("counting has stopped, and is tried again: {why}");
        }
        *fault = Some(why.to_string());
    }

    fn finish(&mut self, ctx: &mut Context<Self>) {
        if let Some(done) = self.stopping.take() {
            let _ = done.send(());
            self.life.ends(Exit::Stopped);
            ctx.stop();
        }
    }
}

impl Parts {
    fn commit(&mut self, delta: &Delta, now: UnixMillis, shared: &Shared) -> Result<(), StatsError> {
        if delta.from == delta.to {
            return Ok(());
        }
        match self.store.commit(delta, now)? {
            Committed::Applied if self.live.apply(delta, now) => shared.feed.commit(delta, now),
            // It was counted before, and what is shown does not know: begin again from what is stored.
            Committed::Applied | Committed::Already => {
                self.live.reload(&mut self.store, now)?;
                shared.feed.reset();
            }
        }
        shared.commits.fetch_add(1, Ordering::Relaxed);
        shared.counted.send_replace(delta.to);
        Ok(())
    }

    /// Deletes old windows, and lets go of the journal's entries that are safe in the store. True when all is done.
    fn sweep(&mut self, now: UnixMillis, pin: &Pin) -> bool {
        let swept = self.store.expire(now).and_then(|expired| {
            self.store.checkpoint()?;
            pin.set(self.store.cursor()?.next);
            Ok(!expired.more)
        });
        swept.unwrap_or_else(|error| {
            // A query that reads just now keeps the log of SQLite busy; the next sweep will do.
            if !matches!(error, StatsError::Busy(_)) {
                log::warn!("cannot sweep the statistics: {error}");
            }
            true
        })
    }
}

/// Runs what blocks, after a wait, and sends its result to the actor.
fn blocking<M>(ctx: &mut Context<Aggregator>, after: Duration, work: impl FnOnce() -> M + Send + 'static)
where
    M: Message + Send + 'static,
    M::Result: Send,
    Aggregator: Handler<M>,
{
    let task = async move {
        if !after.is_zero() {
            tokio::time::sleep(after).await;
        }
        tokio::task::spawn_blocking(work).await
    };
    let task = actix::fut::wrap_future::<_, Aggregator>(task).map(|message, this, ctx| match message {
        Ok(message) => ctx.notify(message),
        Err(error) => this.fail(&error, ctx),
    });
    ctx.spawn(task);
}

impl Handler<Resumed> for Aggregator {
    type Result = ();

    fn handle(&mut self, Resumed(cursor): Resumed, ctx: &mut Context<Self>) {
        match cursor {
            Ok(cursor) => {
                self.delta = Delta::new(cursor);
                self.shared.counted.send_replace(cursor);
                self.read(self.journal.reader(cursor), ctx);
            }
            Err(error) => {
                self.fault(&error);
                ctx.run_later(RETRY, |this, ctx| this.resume(ctx));
            }
        }
    }
}

impl Handler<Read> for Aggregator {
    type Result = ();

    fn handle(&mut self, Read { mut reader, chunk }: Read, ctx: &mut Context<Self>) {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) => {
                self.fault(&error);
                ctx.run_later(RETRY, move |this, ctx| this.read(reader, ctx));
                return;
            }
        };
        self.shared.lost.fetch_max(reader.lost(), Ordering::Relaxed);
        let Some(chunk) = chunk else {
            // Committed, but not to be read: damage at the very end, over which the next block will lead.
            ctx.run_later(RETRY, move |this, ctx| this.commit(reader, ctx));
            return;
        };
        for (seq, entry) in chunk.entries() {
            match entry {
                Ok(entry) => self.delta.apply(seq, &entry),
                Err(error) => log::error!("entry {seq} of the journal: {error}; it is not counted"),
            }
        }
        self.delta.advance(chunk.end);
        self.gathered += chunk.len();
        reader.recycle(chunk);
        let due = self.cycle.elapsed() >= self.flush_interval || self.stopping.is_some();
        if due || self.gathered >= COMMIT {
            self.commit(reader, ctx);
        } else if reader.caught_up() {
            let left = self.flush_interval.saturating_sub(self.cycle.elapsed());
            // Until the interval is over more may come, which then goes into the same commit.
            let timer = ctx.run_later(left, |this, ctx| {
                if let Some((reader, _)) = this.idle.take() {
                    this.read_or_commit(reader, ctx);
                }
            });
            self.idle = Some((reader, timer));
        } else {
            self.read(reader, ctx);
        }
    }
}

impl Handler<Done> for Aggregator {
    type Result = ();

    fn handle(&mut self, Done { reader, delta, committed, swept }: Done, ctx: &mut Context<Self>) {
        self.cycle = Stopwatch::start();
        if swept {
            self.swept = self.clock.now();
        }
        match committed {
            Ok(()) => *self.shared.fault.lock() = None,
            Err(StatsError::Fence { .. }) => {
                // Somebody else has moved the cursor; the store knows best where to go on.
                self.resume(ctx);
                return;
            }
            Err(error) => {
                self.fault(&error);
                self.delta = delta;
                ctx.run_later(RETRY, move |this, ctx| this.commit(reader, ctx));
                return;
            }
        }
        if self.stopping.is_some() && reader.caught_up() {
            self.finish(ctx);
        } else {
            self.read(reader, ctx);
        }
    }
}

impl Handler<Stop> for Aggregator {
    type Result = ();

    fn handle(&mut self, Stop(done): Stop, ctx: &mut Context<Self>) {
        self.stopping = Some(done);
        if let Some((reader, timer)) = self.idle.take() {
            ctx.cancel_future(timer);
            self.read_or_commit(reader, ctx);
            return;
        }
        // A reader that waits for entries of a closed journal would wait for ever.
        if self.journal.end() <= *self.shared.counted.borrow() {
            let (parts, clock, pin) = (self.parts.clone(), self.clock.clone(), self.pin.clone());
            let sweep = tokio::task::spawn_blocking(move || parts.lock().sweep(clock.now(), &pin));
            ctx.spawn(sweep.into_actor(self).map(|_, this, ctx| this.finish(ctx)));
        }
    }
}

#[cfg(test)]
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Panic;

#[cfg(test)]
impl Handler<Panic> for Aggregator {
    type Result = ();
    fn handle(&mut self, _: Panic, _: &mut Context<Self>) {
        panic!("as the test asked");
    }
}

#[cfg(test)]
#[path = "actor_tests.rs"]
mod tests;
