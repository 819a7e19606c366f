//! The actor that hands on aggregates: a loop like the publisher's, with a session and a cursor of its own.

use std::sync::atomic::Ordering;
use std::time::Duration;

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Context, WrapFuture};

use super::record::Maker;
use super::state::{AggregateCursor, State};
use super::touched::Touched;
use super::work::{self, Plan};
use crate::actor::supervisor::{Exit, Life};
use crate::clock::{Clock, Stopwatch, UnixMillis};
use crate::event::codec::Entry;
use crate::journal::{Journal, Reader};
use crate::stats::{Retention, StatsHandle};
use crate::stream::handle::Lane;
use crate::stream::outgoing::Outgoing;
use crate::stream::publisher::{LONGEST_WAIT, LOOK, Parts, SHORTEST_WAIT, after, blocking, discard, pause};
use crate::stream::session::{Failure, Session};
use crate::stream::{StreamError, StreamOptions, Topics, readback};

/// Bytes of entries read in one go.
const CHUNK: usize = 1 << 20;
/// Minutes touched in one turn.
const MINUTES: usize = 2_000;
/// Bytes of entries read in one turn.
const TURN: usize = 16 << 20;

/// The actor.
pub struct Aggregates {
    life: Life,
    parts: Parts,
    stats: StatsHandle,
    retention: Retention,
}

impl Aggregates {
    pub fn new(life: Life, parts: Parts, stats: StatsHandle, retention: Retention) -> Self {
        Self { life, parts, stats, retention }
    }
}

impl Actor for Aggregates {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        let work = run(self.parts.clone(), self.stats.clone(), self.retention).into_actor(self);
        let work = work.map(|exit, this, ctx| {
            if exit == Exit::Stopped {
                this.parts.shared.aggregates.ended.send_replace(true);
            }
            this.life.ends(exit);
            ctx.stop();
        });
        ctx.spawn(work);
    }
}

/// What a session needs to say something.
struct Desk {
    session: Option<Session>,
    options: StreamOptions,
    topics: Topics,
    key: String,
    clock: Clock,
    /// Records that Kafka refuses are sent without their sets, and then not at all.
    max_bytes: usize,
}

async fn run(parts: Parts, stats: StatsHandle, retention: Retention) -> Exit {
    let lane = &parts.shared.aggregates;
    let mut stop = parts.shared.stop.subscribe();
    let mut wait = SHORTEST_WAIT;
    loop {
        let well = Stopwatch::start();
        let error = match follow(&parts, &stats, &retention, &mut wait).await {
            Ok(()) => return Exit::Stopped,
            Err(StreamError::Interrupted) => return Exit::Failed,
            Err(error) => error,
        };
        if matches!(error, StreamError::Topics(_)) {
            parts.shared.miss_topics(lane);
        }
        lane.report("aggregates", &error);
        wait = after(wait, &well);
        if pause(wait, &mut stop).await {
            return Exit::Stopped;
        }
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// Opens a session and follows the journal with it, until it is lost (an error) or the stream is to stop.
async fn follow(
    parts: &Parts,
    stats: &StatsHandle,
    retention: &Retention,
    wait: &mut Duration,
) -> Result<(), StreamError> {
    let Parts { journal, clock, pin, shared } = parts;
    let (lane, options) = (&shared.aggregates, &shared.options);
    let mut stop = shared.stop.subscribe();
    let maker = Maker::new(&Topics::new(&options.topic_prefix));
    let (mut desk, stored) = open(options, journal, clock).await?;
    if desk.session.as_ref().is_some_and(|session| session.made_topics) {
        shared.miss_topics(lane);
    }
    let gone = shared.topics_gone.load(Ordering::Relaxed);
    let now = clock.now();
    let gap = stored.as_ref().is_some_and(|cursor| oldest(journal) > cursor.next);
    let mut state = match stored {
        Some(cursor) if cursor.complete && !gap => {
            let missed = State::new(cursor.clone()).missed_drops(retention, now);
            let mut state = State::new(cursor);
            if state.next() > journal.end() {
                state.journal_lost(journal.end());
            }
            work::reopen(stats.queries(), &mut state).await?;
            if missed {
                desk = sweep(desk, &maker, &state, retention, now, journal.name()).await?;
            }
            lane.opened("aggregates", state.next());
            state
        }
        stored => {
            // Everything from the store as it is now, and from here on what changes.
            let next = stats.counted();
            let before = stored.map_or_else(
                || AggregateCursor::begin(journal.name(), next),
                |cursor| AggregateCursor { next, complete: false, ..cursor },
            );
            let before = State::new(before);
            let watermark = before.watermark_at(None, next >= journal.end(), now, options.allowed_lateness);
            let plan = work::everything(stats.queries(), before.clone(), watermark, retention, now).await?;
            lane.opened("aggregates", 0);
            say(&mut desk, stats, &maker, journal, &before, &plan, lane).await?;
            lane.delivered.send_replace(plan.after.next());
            plan.after
        }
    };
    pin.set(state.next());
    *lane.fault.lock() = None;
    let mut reader = journal.reader(state.next());
    let mut looked = Stopwatch::start();
    loop {
        let turn = Stopwatch::start();
        let (back, touched) = fold(reader, state.next(), options.allowed_lateness).await?;
        reader = back;
        if !touched.is_empty() || touched.to > state.next() {
            tokio::select! {
                () = stats.counted_through(touched.to) => {}
                // At a stop the statistics count to the end first; what they could not is left to the next start.
                () = tokio::time::sleep(Duration::from_secs(60)) => {
                    return Err(StreamError::Cursor(String::from("the statistics do not come along")));
                }
            }
        }
        // The time first: what is received after it cannot be older.
        let now = clock.now();
        let caught_up = journal.end() <= touched.to;
        let watermark = state.watermark_at(touched.time, caught_up, now, options.allowed_lateness);
        let plan = work::plan(stats.queries(), &state, &touched, watermark, retention, now).await?;
        if !plan.is_empty(&state) {
            say(&mut desk, stats, &maker, journal, &state, &plan, lane).await?;
            *wait = SHORTEST_WAIT;
            looked = Stopwatch::start();
        } else if looked.elapsed() > LOOK {
            desk = look(desk).await?;
            if gone != shared.topics_gone.load(Ordering::Relaxed) {
                return Err(StreamError::Cursor(String::from("topics were deleted, and with them what it stood for")));
            }
            looked = Stopwatch::start();
        }
        state = plan.after;
        pin.set(state.next());
        if reader.caught_up() && *stop.borrow() {
            discard(desk).await;
            return Ok(());
        }
        // Changes gather, and windows become final without any.
        if reader.caught_up() {
            pause(options.aggregate_interval.saturating_sub(turn.elapsed()), &mut stop).await;
        }
    }
}

/// The number of the oldest entry that the journal still has.
fn oldest(journal: &Journal) -> u64 {
    journal.stats().oldest.load(Ordering::Relaxed)
}

async fn open(
    options: &StreamOptions,
    journal: &Journal,
    clock: &Clock,
) -> Result<(Desk, Option<AggregateCursor>), StreamError> {
    let (options, name, clock) = (options.clone(), journal.name().to_owned(), clock.clone());
    blocking(move || {
        let topics = Topics::new(&options.topic_prefix);
        let id = format!("{}-{name}-aggregates", options.topic_prefix);
        let key = format!("{name}/aggregates");
        let session = Session::open(&options, &topics, &id)?;
        let stored = readback::last_value(&options, &topics, &key)?;
        let stored = stored.map(|bytes| AggregateCursor::decode(&bytes)).transpose()?;
        let max_bytes = options.max_message_bytes;
        Ok((Desk { session: Some(session), options, topics, key, clock, max_bytes }, stored))
    })
    .await
}

/// Reads what the journal has, up to what a turn takes.
async fn fold(mut reader: Reader, from: u64, lateness: UnixMillis) -> Result<(Reader, Touched), StreamError> {
    blocking(move || {
        let mut touched = Touched::new(from, lateness);
        let mut bytes = 0;
        while !reader.caught_up() && bytes < TURN && touched.len() < MINUTES {
            let Some(chunk) = reader.read(CHUNK)? else { break };
            for (seq, entry) in chunk.entries() {
                match entry {
                    Ok(Entry::Event(event)) => touched.apply(&event),
                    Ok(Entry::Outcome { .. }) => {}
                    Err(error) => log::error!("entry {seq} of the journal: {error}; the stream passes over it"),
                }
            }
            touched.advance(chunk.end);
            bytes += chunk.len();
            reader.recycle(chunk);
        }
        Ok((reader, touched))
    })
    .await
}

/// Says all of a plan, piece by piece; the cursor moves with the last.
async fn say(
    desk: &mut Desk,
    stats: &StatsHandle,
    maker: &Maker,
    journal: &Journal,
    before: &State,
    plan: &Plan,
    lane: &Lane,
) -> Result<(), StreamError> {
    let pieces: Vec<_> = plan.pieces().collect();
    let count = pieces.len().max(1);
    for at in 0..count {
        let last = at + 1 == count;
        // Until all is said the cursor stays where it was: after a crash it is said again, and says the same.
        let cursor = if last { plan.after.cursor() } else { before.cursor() };
        let mut skip: Vec<usize> = Vec::new();
        loop {
            let now = desk.clock.now();
            let piece = pieces.get(at).copied().unwrap_or_default();
            let max = desk.max_bytes;
            let records = work::records(stats.queries(), maker, journal.name(), piece, &plan.after, now, max).await?;
            let sent = records.len() as u64;
            match deliver(desk, records, skip.clone(), cursor.encode()).await? {
                Ok(()) => {
                    lane.confirm(if last { plan.after.next() } else { before.next() }, sent);
                    break;
                }
                Err(failure) => {
                    lane.failed("aggregates", &failure);
                    match failure {
                        Failure::Refused(refused) if refused.is_empty() => {}
                        Failure::Refused(_) if desk.max_bytes > 4096 => desk.max_bytes = 4096,
                        Failure::Refused(refused) => {
                            log::error!("{} aggregates are refused by Kafka and left out", refused.len());
                            skip.extend(refused.iter().map(|(number, _)| *number));
                        }
                        Failure::Aborted(why) | Failure::Lost(why) => {
                            return Err(StreamError::Broker { what: "aggregates cannot be delivered", why });
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

/// Fails when a topic has been deleted: a new session makes it anew, and says what was in it.
async fn look(desk: Desk) -> Result<Desk, StreamError> {
    blocking(move || {
        let session = desk.session.as_ref().ok_or(StreamError::Interrupted)?;
        match session.deleted_topic(&desk.options)? {
            Some(deleted) => Err(deleted),
            None => Ok(desk),
        }
    })
    .await
}

/// Delivers records with a cursor.
async fn deliver(
    desk: &mut Desk,
    records: Vec<Outgoing>,
    skip: Vec<usize>,
    cursor: Vec<u8>,
) -> Result<Result<(), Failure>, StreamError> {
    let Some(mut session) = desk.session.take() else { return Err(StreamError::Interrupted) };
    let (events, key, now) = (desk.topics.events.clone(), desk.key.clone(), desk.clock.now());
    let (session, result) = blocking(move || {
        let result = (|| {
            session.begin()?;
            for (number, record) in records.iter().enumerate() {
                if !skip.contains(&number) {
                    session.send(number, record)?;
                }
            }
            session.commit(&events, &key, now, |_| cursor)
        })();
        Ok((session, result))
    })
    .await?;
    desk.session = Some(session);
    Ok(result)
}

/// Sends tombstones for keys whose windows the store has dropped while nobody was there to tell: they are looked for in
/// the topic itself.
async fn sweep(
    mut desk: Desk,
    maker: &Maker,
    state: &State,
    retention: &Retention,
    now: UnixMillis,
    instance: &str,
) -> Result<Desk, StreamError> {
    let edges: Vec<(&'static str, UnixMillis)> =
        state.dropping(retention, now).into_iter().map(|(size, _, edge)| (size.as_str(), edge)).collect();
    let (options, topics, instance) = (desk.options.clone(), desk.topics.clone(), instance.to_owned());
    let keys = blocking(move || {
        readback::live_keys(&options, &topics.latest, |key| {
            let mut parts = key.rsplit('|');
            let (Some(owner), Some(size), Some(start)) = (parts.next(), parts.next(), parts.next()) else {
                return false;
            };
            let start = crate::clock::parse_rfc3339(start);
            owner == instance && edges.iter().any(|(of, edge)| *of == size && start.is_some_and(|start| start < *edge))
        })
    })
    .await?;
    let count = keys.len();
    let mut keys = keys.into_iter().map(String::into_bytes);
    let cursor = state.cursor().encode();
    loop {
        let records: Vec<Outgoing> = keys.by_ref().take(10_000).map(|key| maker.tombstone(key, now)).collect();
        if records.is_empty() {
            break;
        }
        if let Err(failure) = deliver(&mut desk, records, Vec::new(), cursor.clone()).await? {
            return Err(StreamError::Broker { what: "tombstones cannot be delivered", why: format!("{failure:?}") });
        }
    }
    if count > 0 {
        log::info!("{count} aggregates of windows that were dropped meanwhile are deleted from Kafka");
    }
    Ok(desk)
}
