//! The publisher: reads the journal and brings the shared store up to it, exactly once.
//!
//! It reads where the fences in Redis say, gathers entries for the flush interval, publishes the windows they touched
//! whole, then sends the delta with its fence. A script of which nothing was heard is sent again; one that finds the
//! fence elsewhere makes it look at all fences and begin again from there. A group without a fence is built anew
//! ([`super::base`]).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use deadpool_redis::redis::{Cmd, FromRedisValue, Value};
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::build::touched;
use super::fence::{Fence, Fences, Outcome};
use super::fold::{Fold, Known};
use super::keys::Keys;
use super::ops::{Expiring, Group, Ops};
use super::{Role, SharedOptions, SharedState};
use crate::clock::{Clock, SECOND, Stopwatch, UnixMillis};
use crate::event::visitor::Salts;
use crate::journal::{Journal, JournalError, Pin, Reader};
use crate::redis::{Client, Script, StoreError};
use crate::stats::{Queries, Retention, StatsError};

/// Bytes of entries read in one go.
const CHUNK: usize = 256 << 10;
/// Events in one delta, at least and at most; more wait for the next. What does not get through in time is made smaller.
pub(super) const EVENTS: (u64, u64) = (1_000, 400_000);
/// Bytes of texts in one delta at most, by role: company makes counts cheaper, and events no dearer.
const BYTES: [u64; 2] = [40 << 20, 4 << 20];
/// Under load a delta of counts gathers on until its commands are this part of its events, but not for ever: the more
/// events there are to a key, the cheaper each is.
const COMMANDS_AN_EVENT: f64 = 0.02;
/// Load is from here on, in events a delta.
const LOAD: u64 = 10_000;
/// How many flush intervals a delta gathers under load.
const LONGER: u32 = 8;
/// How often a delta is sent again before it is made anew, smaller.
const SENDINGS: u32 = 3;
/// How often an idle publisher looks whether its fences still stand.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long to wait after a failure, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Everything the publisher works with.
pub(super) struct Publisher {
    pub role: Role,
    pub client: Arc<Client>,
    pub keys: Keys,
    pub options: SharedOptions,
    pub retention: Retention,
    pub journal: Journal,
    pub queries: Queries,
    /// How far the embedded store has counted.
    pub counted: watch::Receiver<u64>,
    pub pin: Pin,
    pub clock: Clock,
    pub salts: Arc<Salts>,
    pub state: Arc<SharedState>,
    /// The journal's end when it was opened.
    pub opened_at: u64,
    pub stop: watch::Receiver<bool>,
    pub script: Script,
    pub expiring: Expiring,
    /// Events in one delta, as the line takes them.
    pub most_events: u64,
}

/// Why a round of reading ended.
#[derive(Debug)]
pub(super) enum End {
    /// Asked to stop, and everything is delivered that could be.
    Stopped,
    /// The shared store stands elsewhere than thought: look again.
    Elsewhere,
    /// It is away, or refuses.
    Store(StoreError),
    /// The journal or the embedded store cannot be read.
    Local(String),
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<StatsError> for End {
    fn from(error: StatsError) -> Self {
        Self::Local(error.to_string())
    }
}

impl From<JournalError> for End {
    fn from(error: JournalError) -> Self {
        Self::Local(error.to_string())
    }
}

/// How large a delta may be.
struct Full {
    events: u64,
    bytes: u64,
}

impl Full {
    fn is(&self, fold: &Fold) -> bool {
        fold.events() >= self.events || fold.bytes() as u64 >= self.bytes
    }
}

/// Reads a chunk into the fold; no entry at or after `until`.
fn read_chunk(
    mut reader: Reader,
    mut fold: Fold,
    until: Option<u64>,
    journal: &str,
    options: &SharedOptions,
) -> Result<(Reader, Fold), JournalError> {
    if until.is_some_and(|until| fold.delta.to >= until) {
        return Ok((reader, fold));
    }
    let Some(chunk) = reader.read(CHUNK)? else { return Ok((reader, fold)) };
    for (seq, entry) in chunk.entries() {
        if until.is_some_and(|until| seq >= until) {
            break;
        }
        match entry {
            Ok(entry) => fold.apply(seq, &entry, journal, options),
            Err(error) => log::error!("entry {seq} of the journal: {error}; it is not counted"),
        }
    }
    fold.delta.advance(until.map_or(chunk.end, |until| chunk.end.min(until)));
    reader.recycle(chunk);
    Ok((reader, fold))
}

impl Publisher {
    /// Runs until it is asked to stop.
    pub async fn run(&mut self) {
        let mut wait = RETRY.0;
        loop {
            match self.round().await {
                End::Stopped => return,
                End::Elsewhere => {
                    self.expiring.forget();
                    wait = RETRY.0;
                    // Somebody else who moves our fence all the time must not make us run in circles.
                    tokio::time::sleep(RETRY.0).await;
                    continue;
                }
                End::Store(error) => {
                    // What was to expire with what did not get through does not yet.
                    self.expiring.forget();
                    self.state.fails(self.role, &error);
                    self.most_events = (self.most_events / 2).max(EVENTS.0);
                }
                End::Local(error) => {
                    self.expiring.forget();
                    log::error!("the shared store is not fed for now: {error}");
                }
            }
            if *self.stop.borrow() {
                return;
            }
            let mut stop = self.stop.clone();
            let _ = tokio::time::timeout(wait, stop.wait_for(|stop| *stop)).await;
            wait = (wait * 2).min(RETRY.1);
        }
    }

    /// Looks at the fences, builds what is missing, and delivers until something ends it.
    async fn round(&mut self) -> End {
        match self.deliver().await {
            Ok(()) => End::Stopped,
            Err(end) => end,
        }
    }

    async fn deliver(&mut self) -> Result<(), End> {
        self.share_salt().await?;
        let mut fences = self.fences().await?;
        let missing = fences.missing();
        if !missing.is_empty() {
            if self.state.looked[self.role as usize].load(Ordering::Relaxed) {
                self.state.counters.losses.fetch_add(1, Ordering::Relaxed);
                self.state.counters.rebuilds.fetch_add(missing.len() as u64, Ordering::Relaxed);
                log::error!("the shared store has lost this instance's numbers; they are built anew");
                self.delivered().send_replace(0);
            }
            self.build(&missing).await?;
            fences = self.fences().await?;
            if !fences.missing().is_empty() {
                return Err(End::Elsewhere);
            }
        }
        if self.role == Role::Counts && fences.0.iter().flatten().any(|fence| fence.parts_pending) {
            self.publish_all().await?;
        }
        self.note_loss(&mut fences).await?;
        let confirmed = fences.start();
        self.confirmed(confirmed);
        self.nothing_is_due(confirmed);
        self.follow(fences).await
    }

    /// A fence before what was confirmed is a loss; one after the journal's end is the journal's.
    async fn note_loss(&mut self, fences: &mut Fences) -> Result<(), End> {
        let start = fences.start();
        if start < *self.delivered().borrow() {
            self.state.counters.losses.fetch_add(1, Ordering::Relaxed);
            let had = *self.delivered().borrow();
            log::error!("the shared store has lost entries {start}..{had} that it had confirmed; they are sent again");
        }
        let oldest = self.journal.stats().oldest.load(Ordering::Relaxed);
        if start < oldest {
            log::error!("the journal no longer has entries {start}..{oldest}: they are missing in the shared store");
        }
        for (group, fence) in fences.0.iter_mut().enumerate() {
            // Before this process has delivered anything, no fence can rightly be further than the journal was.
            let looked = self.state.looked[self.role as usize].load(Ordering::Relaxed);
            let Some(fence) = fence.as_mut().filter(|fence| !looked && fence.next > self.opened_at) else { continue };
            // The machine lost the journal's tail with its power, and the numbers are given again to other entries.
            log::error!("the shared store has entries up to {}, which the journal has lost", fence.next);
            let next = self.opened_at;
            let mut command = Cmd::new();
            command.arg("HSET").arg(self.keys.fence(self.role, group, self.journal.name())).arg("next").arg(next);
            self.client.one(&command).await?;
            fence.next = next;
        }
        self.state.looked[self.role as usize].store(true, Ordering::Relaxed);
        Ok(())
    }

    /// A store that can be read works only if nothing waits to be written: it may refuse that.
    fn nothing_is_due(&self, delivered: u64) {
        if delivered >= self.journal.end() {
            self.state.works(self.role);
        }
    }

    fn delivered(&self) -> &watch::Sender<u64> {
        &self.state.delivered[self.role as usize]
    }

    fn confirmed(&self, to: u64) {
        self.delivered().send_replace(to);
        self.pin.set(to);
    }

    async fn fences(&self) -> Result<Fences, StoreError> {
        let groups = 0..self.keys.groups();
        let ask = groups.map(|group| {
            let mut command = Cmd::new();
            command
                .arg("HMGET")
                .arg(self.keys.fence(self.role, group, self.journal.name()))
                .arg(&["next", "base", "since", "parts"]);
            command
        });
        let answers = self.client.all(ask.collect()).await?;
        let parse = |answer: Value| {
            let fields = <Vec<Option<String>>>::from_redis_value(answer).ok()?;
            let field = |at: usize| fields.get(at).and_then(Option::as_deref);
            Fence::parse(field(0)?, field(1), field(2), field(3))
        };
        Ok(Fences(answers.into_iter().map(parse).collect()))
    }

    /// Reads on from the fences and delivers, until it is asked to stop and nothing is left.
    async fn follow(&mut self, mut fences: Fences) -> Result<(), End> {
        let mut reader = self.journal.reader(fences.start());
        let mut fold = Fold::new(self.role, fences.start());
        let mut beat = Stopwatch::start();
        loop {
            // Otherwise something was read ahead.
            if fold.delta.is_empty() {
                let stopping = *self.stop.borrow();
                if reader.caught_up() && stopping {
                    return Ok(());
                }
                // Asked while nothing comes, too: whoever flushes an idle store wants it filled again.
                if beat.elapsed() >= HEARTBEAT {
                    beat = Stopwatch::start();
                    self.check(&fences).await?;
                }
                let mut stop = self.stop.clone();
                let ready = tokio::select! {
                    ready = tokio::time::timeout(HEARTBEAT, reader.ready()) => ready,
                    _ = stop.wait_for(|stop| *stop), if !stopping => continue,
                };
                match ready {
                    Err(_) => continue,
                    Ok(false) => return Ok(()),
                    Ok(true) => {}
                }
            }
            let gathering = Stopwatch::start();
            loop {
                (reader, fold) = self.read(reader, fold, fences.boundary(fences.start())).await?;
                let full = self.full().is(&fold);
                let patience = self.patience(&fold);
                let due = gathering.elapsed() >= patience || *self.stop.borrow();
                let cut = fences.boundary(fences.start()).is_some_and(|end| fold.delta.to >= end);
                if full || due || cut {
                    break;
                }
                if reader.caught_up() {
                    let left = patience.saturating_sub(gathering.elapsed()).min(self.options.flush_interval);
                    let mut stop = self.stop.clone();
                    let _ = tokio::time::timeout(left, stop.wait_for(|stop| *stop)).await;
                    // It gathers on for company, which does not come any more.
                    if reader.caught_up() && gathering.elapsed() >= self.options.flush_interval {
                        break;
                    }
                }
            }
            let next = fold.delta.to;
            if fold.delta.is_empty() {
                // Committed, but not to be read: damage at the very end, over which the next block will lead.
                tokio::time::sleep(RETRY.0).await;
                continue;
            }
            let delta = std::mem::replace(&mut fold, Fold::new(self.role, next));
            if reader.next() != next {
                // A delta that had to end early; what was read beyond it is read again.
                reader = self.journal.reader(next);
            }
            if reader.caught_up() || fences.boundary(next).is_some() {
                self.send(delta, &mut fences).await?;
            } else {
                // Behind, it folds the next one while Redis applies this one.
                let ahead = self.read_ahead(reader, fold);
                self.send(delta, &mut fences).await?;
                (reader, fold) = ahead.await.map_err(|error| End::Local(error.to_string()))??;
            }
            beat = Stopwatch::start();
        }
    }

    /// How long a delta gathers.
    fn patience(&self, fold: &Fold) -> Duration {
        let dear = fold.commands() as f64 > COMMANDS_AN_EVENT * fold.events() as f64;
        let longer = self.role == Role::Counts && fold.events() >= LOAD && dear;
        if longer { self.options.flush_interval * LONGER } else { self.options.flush_interval }
    }

    /// Looks whether the fences stand where they were left.
    async fn check(&mut self, fences: &Fences) -> Result<(), End> {
        self.share_salt().await?;
        let found = self.fences().await?;
        let same = found.0.iter().zip(&fences.0).all(|(found, left)| match (found, left) {
            (Some(found), Some(left)) => found.next == left.next,
            _ => false,
        });
        if same {
            self.nothing_is_due(fences.start());
            Ok(())
        } else {
            Err(End::Elsewhere)
        }
    }

    /// When a delta is as large as it may be.
    fn full(&self) -> Full {
        Full { events: self.most_events, bytes: BYTES[self.role as usize] * self.most_events / EVENTS.1 }
    }

    /// Reads a chunk into the fold, off the runtime; no entry at or after `until`.
    async fn read(&self, reader: Reader, fold: Fold, until: Option<u64>) -> Result<(Reader, Fold), End> {
        let (options, name) = (self.options.clone(), self.journal.name().to_owned());
        let work = tokio::task::spawn_blocking(move || read_chunk(reader, fold, until, &name, &options));
        Ok(work.await.map_err(|error| End::Local(error.to_string()))??)
    }

    /// Reads into the fold until it is full or nothing is left.
    fn read_ahead(&self, mut reader: Reader, mut fold: Fold) -> JoinHandle<Result<(Reader, Fold), JournalError>> {
        let (options, name, full) = (self.options.clone(), self.journal.name().to_owned(), self.full());
        tokio::task::spawn_blocking(move || {
            while !full.is(&fold) && !reader.caught_up() {
                let before = reader.next();
                (reader, fold) = read_chunk(reader, fold, None, &name, &options)?;
                if reader.next() == before {
                    break;
                }
            }
            Ok((reader, fold))
        })
    }

    /// Publishes the windows a delta touched, then sends the delta, again and again until its outcome is known.
    async fn send(&mut self, mut fold: Fold, fences: &mut Fences) -> Result<(), End> {
        let (from, to) = (fold.delta.from, fold.delta.to);
        if self.role == Role::Counts {
            // The embedded store is another reader of the same journal, and mostly ahead.
            let counted = self.counted.wait_for(|counted| *counted >= to).await;
            counted.map_err(|_| End::Local("counting has ended".into()))?;
        }
        for site in &fold.delta.sites {
            let types = site.minutes.iter().flat_map(|minute| minute.other_types.keys());
            self.state.saw(&site.name, types.map(|name| &**name));
        }
        self.publish(touched(&fold)).await?;
        let now = self.clock.now();
        let open: Vec<(usize, Fence)> = fences.open(from).collect();
        let mut known: Vec<Option<Known>> = Vec::new();
        for (_, fence) in &open {
            let this = (from < fence.known.base).then_some(fence.known);
            if !known.contains(&this) {
                known.push(this);
            }
        }
        let mut work: Vec<(usize, Group)> = Vec::new();
        for known in known {
            let mut ops = Ops::new(&self.keys, &mut self.expiring, now / SECOND);
            fold.counts(&mut ops, &self.options, self.journal.name(), known);
            let wants = |group: usize| {
                let known_of = |fence: &Fence| (from < fence.known.base).then_some(fence.known);
                open.iter().any(|(open, fence)| *open == group && known_of(fence) == known)
            };
            work.extend(ops.groups.into_iter().enumerate().filter(|(group, _)| wants(*group)));
        }
        let mut ops = Ops::new(&self.keys, &mut self.expiring, now / SECOND);
        fold.texts(&mut ops, &self.options, now);
        let texts = ops.groups;
        for (group, texts) in texts.into_iter().enumerate() {
            if let Some((_, ops)) = work.iter_mut().find(|(of, _)| *of == group) {
                ops.keys.extend(texts.keys);
                ops.args.extend(texts.args);
            }
        }
        let (events, time) = (fold.events(), fold.time());
        drop(fold);
        self.apply(from, to, time, work, fences).await?;
        self.most_events = (self.most_events * 2).min(EVENTS.1);
        self.state.counters.events.fetch_add(events, Ordering::Relaxed);
        self.confirmed(fences.start());
        self.state.works(self.role);
        Ok(())
    }

    async fn apply(
        &self,
        from: u64,
        to: u64,
        time: Option<UnixMillis>,
        mut work: Vec<(usize, Group)>,
        fences: &mut Fences,
    ) -> Result<(), End> {
        let mut wait = RETRY.0;
        let mut sendings = 0;
        let mut elsewhere = false;
        loop {
            let scripts = work.iter().map(|(group, ops)| self.run_script(*group, ops, [from, to], time, None));
            let results = join_all(scripts).await;
            let mut failed = None;
            let mut left = Vec::new();
            for ((group, ops), result) in work.into_iter().zip(results) {
                match result {
                    Ok(Outcome::Applied) => fences.advance(group, to),
                    Ok(Outcome::Already) => {
                        self.state.counters.already.fetch_add(1, Ordering::Relaxed);
                        fences.advance(group, to);
                    }
                    Ok(Outcome::Elsewhere) => elsewhere = true,
                    Err(error) => {
                        failed = Some(error);
                        left.push((group, ops));
                    }
                }
            }
            if elsewhere {
                return Err(End::Elsewhere);
            }
            let Some(error) = failed else { return Ok(()) };
            sendings += 1;
            if *self.stop.borrow() || sendings == SENDINGS {
                // What became of it shows in the fences.
                return Err(End::Store(error));
            }
            self.state.fails(self.role, &error);
            let mut stop = self.stop.clone();
            let _ = tokio::time::timeout(wait, stop.wait_for(|stop| *stop)).await;
            wait = (wait * 2).min(RETRY.1);
            self.state.counters.resent.fetch_add(left.len() as u64, Ordering::Relaxed);
            work = left;
        }
    }

    pub async fn run_script(
        &self,
        group: usize,
        ops: &Group,
        [from, to]: [u64; 2],
        time: Option<UnixMillis>,
        base: Option<Known>,
    ) -> Result<Outcome, StoreError> {
        let fence = self.keys.fence(self.role, group, self.journal.name());
        let text = |value: Option<String>| value.unwrap_or_default().into_bytes();
        let head = [
            from.to_string().into_bytes(),
            to.to_string().into_bytes(),
            text(time.map(|time| time.to_string())),
            if base.is_some() { b"base".to_vec() } else { b"delta".to_vec() },
            text(base.map(|known| known.base.to_string())),
            text(base.map(|known| known.since.to_string())),
        ];
        let answer = self.client.script(&self.script, &fence, &ops.keys, &head, &ops.args).await?;
        self.state.counters.scripts.fetch_add(1, Ordering::Relaxed);
        let parsed = <(String, String, u64, String)>::from_redis_value(answer);
        let strange = || StoreError::Refused(String::from("its answer to the script makes no sense"));
        let (word, _, errors, first) = parsed.map_err(|_| strange())?;
        if errors > 0 {
            self.state.counters.foreign_keys.fetch_add(errors, Ordering::Relaxed);
            let code = first.split(' ').next().unwrap_or_default();
            log::error!(
                "{errors} operations met keys in the shared store that hold something else ({code}); left alone"
            );
        }
        Outcome::of(&word).ok_or_else(strange)
    }
}
