//! The writer: one thread that owns the end of the journal.
//!
//! It takes all batches that wait, drops duplicates, assigns visits, and writes the rest as one block with one `write`
//! (and one `fdatasync` in mode `synced`): a group commit. Slow work that is not on the way of an answer (sorting and
//! merging dedup runs, checkpoints, syncing full segments) is done by a second thread, the housekeeper.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::block::{self, SEGMENT_HEADER, SegmentHeader};
use super::dedup::{DedupIndex, Job};
use super::disk::{self, SegmentInfo};
use super::recovery::Opened;
use super::totals::Totals;
use super::{AppendError, Appended, Durability, Message, Reply, Shared, checkpoint, search};
use crate::actor::admission::Permit;
use crate::clock::{Clock, MINUTE, SECOND, UnixMillis};
use crate::event::visit::Visits;
use crate::event::{Batch, Outcome, RejectCode, codec};

/// A group commit takes no further batch once it has so many bytes.
const GROUP_BYTES: usize = 1 << 20;
/// How often the disk is asked for its free space, and old things are looked for.
const TICK: UnixMillis = SECOND;
/// Entries after which a checkpoint is due at once.
const CHECKPOINT_ENTRIES: u64 = 500_000;
/// A segment spans at most this part of the retention, so that what is deleted as a whole is not much too old.
const SLICES: UnixMillis = 8;
/// Age after which a checkpoint is due if anything was written.
const CHECKPOINT_AGE: UnixMillis = MINUTE;

struct Pending {
    batch: Batch,
    /// Held until the batch is written: dropping it makes room for the next.
    _permit: Permit,
    appended: Appended,
}

/// All that goes into one block, and who waits for how many of its batches.
#[derive(Default)]
struct Group {
    pending: Vec<Pending>,
    replies: Vec<(usize, Option<Reply>)>,
}

enum Chore {
    Dedup { imported: bool, folder: std::path::PathBuf, job: Job },
    Checkpoint { seq: u64, bytes: Vec<u8> },
    Seal { file: File, base: u64 },
}

struct Writer {
    shared: Arc<Shared>,
    clock: Clock,
    file: File,
    segments: Vec<SegmentInfo>,
    journal_id: [u8; 16],
    next: u64,
    totals: Totals,
    visits: Visits,
    index: DedupIndex,
    imports: DedupIndex,
    /// The block under construction.
    buffer: Vec<u8>,
    /// Bytes of a failed write stand behind the end and must go before the next one.
    dirty: bool,
    chores: Sender<Chore>,
    checkpointed: Arc<AtomicU64>,
    checkpoint_at: (u64, UnixMillis),
    ticked: UnixMillis,
    room: Result<(), String>,
    /// Bytes that may be written before the disk is asked again.
    free: u64,
}

/// Starts the writer and its housekeeper.
pub(super) fn start(
    opened: Opened,
    shared: Arc<Shared>,
    clock: Clock,
    tx: Sender<Message>,
    rx: Receiver<Message>,
) -> io::Result<Vec<JoinHandle<()>>> {
    let (chores, jobs) = channel();
    let checkpointed = Arc::new(AtomicU64::new(0));
    let folder = shared.folder.clone();
    let done = checkpointed.clone();
    let housekeeper =
        thread::Builder::new().name("journal-chores".into()).spawn(move || keep_house(&folder, &jobs, &tx, &done))?;
    let now = clock.now();
    let mut writer = Writer {
        shared,
        clock,
        file: opened.file,
        segments: opened.segments,
        journal_id: opened.journal_id,
        next: opened.next,
        totals: opened.totals,
        visits: opened.visits,
        index: opened.index,
        imports: opened.imports,
        buffer: Vec::new(),
        dirty: false,
        chores,
        checkpointed,
        checkpoint_at: (opened.next, now),
        ticked: now - TICK,
        room: Ok(()),
        free: 0,
    };
    let writing = thread::Builder::new().name("journal".into()).spawn(move || writer.run(&rx))?;
    Ok(vec![writing, housekeeper])
}

fn keep_house(folder: &std::path::Path, chores: &Receiver<Chore>, tx: &Sender<Message>, done: &AtomicU64) {
    while let Ok(chore) = chores.recv() {
        match chore {
            Chore::Dedup { imported, folder, job } => {
                let run = job.run(&folder);
                // The writer is gone only at the end, when nobody asks for the run any more.
                let _ = tx.send(Message::Done { imported, job, run });
            }
            Chore::Checkpoint { seq, bytes } => match checkpoint::write(folder, &bytes) {
                Ok(()) => done.store(seq, Ordering::Release),
                Err(error) => log::warn!("cannot write the journal's checkpoint: {error}"),
            },
            Chore::Seal { file, base } => {
                if let Err(error) = file.sync_data() {
                    log::error!("cannot sync a full journal segment: {error}");
                }
                // Without its filter a segment is only slower to search.
                if let Err(error) = search::write_filter(folder, base) {
                    log::warn!("cannot write the visitor filter of a journal segment: {error}");
                }
            }
        }
    }
}

impl Writer {
    fn run(&mut self, rx: &Receiver<Message>) {
        self.tick();
        let mut group = Group::default();
        loop {
            let mut stop = None;
            let mut bytes = 0;
            let mut message = rx.recv_timeout(Duration::from_millis(TICK as u64));
            loop {
                match message {
                    Ok(Message::Append { batches, reply }) => {
                        group.replies.push((batches.len(), reply));
                        for (batch, permit) in batches {
                            bytes += batch.bytes.len();
                            group.pending.push(Pending { batch, _permit: permit, appended: Appended::default() });
                        }
                    }
                    Ok(Message::Done { imported, job, run }) => self.dedup_done(imported, &job, run),
                    Ok(Message::Stop(done)) => stop = Some(done),
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
                }
                if bytes >= GROUP_BYTES {
                    break;
                }
                message = rx.try_recv().map_err(|_| RecvTimeoutError::Timeout);
            }
            if !group.pending.is_empty() {
                self.commit(&mut group);
            }
            if let Some(done) = stop {
                self.close();
                let _ = done.send(());
                return;
            }
            if self.clock.now() - self.ticked >= TICK {
                self.tick();
            }
        }
    }

    fn commit(&mut self, group: &mut Group) {
        let written = self.write(&mut group.pending);
        let mut fault = self.shared.fault.lock();
        match &written {
            Ok(()) => *fault = None,
            Err(reason) => {
                if fault.is_none() {
                    log::error!("the journal cannot be written: {reason}");
                }
                *fault = Some(reason.clone());
                self.shared.stats.failures.fetch_add(1, Ordering::Relaxed);
            }
        }
        drop(fault);
        let mut pending = group.pending.drain(..);
        for (count, reply) in group.replies.drain(..) {
            let answers = pending.by_ref().take(count).map(|pending| match &written {
                Ok(()) => Ok(pending.appended),
                Err(reason) => Err(AppendError::Unavailable(reason.clone())),
            });
            let answers = answers.collect();
            if let Some(reply) = reply {
                // Clients that went away need no answer.
                let _ = reply.send(answers);
            }
        }
    }

    fn write(&mut self, group: &mut [Pending]) -> Result<(), String> {
        if self.free < GROUP_BYTES as u64 {
            self.look_for_room();
        }
        self.room.clone()?;
        let now = self.clock.now();
        let mut inserted: Vec<(bool, u128)> = Vec::new();
        let built = self.build(group, now, &mut inserted);
        let written = built.and_then(|(count, added)| {
            if count > 0 {
                self.put(now, count).map_err(|error| describe(&error))?;
            }
            Ok((count, added))
        });
        match written {
            Ok((count, added)) => {
                self.next += u64::from(count);
                for pending in group.iter_mut() {
                    pending.appended.end = self.next;
                }
                self.publish(count, &added);
                self.housekeeping();
                Ok(())
            }
            Err(reason) => {
                for (imported, key) in inserted {
                    if imported { self.imports.remove(key) } else { self.index.remove(key) }
                }
                Err(reason)
            }
        }
    }

    /// Puts the block of a group together. Returns how many entries it has and what it adds to the totals.
    fn build(
        &mut self,
        group: &mut [Pending],
        now: UnixMillis,
        inserted: &mut Vec<(bool, u128)>,
    ) -> Result<(u32, Totals), String> {
        let mut count = 0;
        let mut added = Totals::default();
        let mut outcomes: Vec<Outcome> = Vec::new();
        block::begin(&mut self.buffer);
        for pending in group.iter_mut() {
            let Batch { bytes, entries, outcomes: refused, .. } = &mut pending.batch;
            for meta in entries.iter() {
                let entry = &mut bytes[meta.start as usize..];
                let Some(len) = codec::entry_len(entry) else { return Err(String::from("a batch is malformed")) };
                let entry = &mut entry[..len];
                let site = codec::site_of(entry);
                if !self.totals.0.contains_key(site)
                    && !added.0.contains_key(site)
                    && self.totals.0.len() + added.0.len() >= self.shared.options.max_sites
                {
                    refuse(&mut outcomes, crate::event::reject::UNKNOWN_SITE, RejectCode::TooManySites, 1);
                    pending.appended.too_many_sites.push(meta.index);
                    continue;
                }
                if let Some(key) = meta.key {
                    // A beacon may come again by an import, and the other way round.
                    let (index, other) = match meta.imported {
                        true => (&mut self.imports, &self.index),
                        false => (&mut self.index, &self.imports),
                    };
                    let known = other.contains(key).and_then(|known| Ok(known || !index.insert(key, now)?));
                    if known.map_err(|error| describe(&error))? {
                        refuse(&mut outcomes, site, RejectCode::Duplicate, 1);
                        pending.appended.duplicates += 1;
                        continue;
                    }
                    inserted.push((meta.imported, key));
                }
                added.site(site).accepted += 1;
                if let Some((visitor, at)) = meta.visit {
                    let session = self.visits.assign(visitor, at, now);
                    codec::set_session(entry, session);
                }
                self.buffer.extend_from_slice(entry);
                count += 1;
                pending.appended.accepted += 1;
            }
            for outcome in refused.drain(..) {
                refuse(&mut outcomes, &outcome.site, outcome.code, outcome.count);
            }
        }
        for outcome in outcomes {
            // Sites that only ever sent rubbish must not push real ones out.
            let known = self.totals.0.contains_key(&outcome.site) || added.0.contains_key(&outcome.site);
            let room = self.totals.0.len() + added.0.len() < self.shared.options.max_sites;
            let site = if known || room { outcome.site } else { crate::event::reject::UNKNOWN_SITE.to_owned() };
            let outcome = Outcome { site, ..outcome };
            codec::put_outcome(&mut self.buffer, &outcome);
            added.site(&outcome.site).refuse(outcome.code, outcome.count);
            count += 1;
        }
        Ok((count, added))
    }

    /// Writes the block. After an error the file is as before, or will be made so before the next write.
    fn put(&mut self, now: UnixMillis, count: u32) -> io::Result<()> {
        if self.buffer.len() - block::BLOCK_HEADER > block::MAX_BLOCK {
            // No reader would take it for a block.
            return Err(io::Error::other("a group of events is too large for a block"));
        }
        let Some(segment) = self.segments.last_mut() else { return Err(io::Error::other("there is no segment")) };
        if self.dirty {
            self.file.set_len(segment.size)?;
            self.dirty = false;
        }
        block::seal(&mut self.buffer, self.next, now, count);
        let synced = self.shared.options.durability == Durability::Synced;
        let file = &self.file;
        let result =
            file.write_all_at(&self.buffer, segment.size).and_then(|()| if synced { file.sync_data() } else { Ok(()) });
        if let Err(error) = result {
            self.dirty = self.file.set_len(segment.size).is_err();
            return Err(error);
        }
        segment.size += self.buffer.len() as u64;
        self.free = self.free.saturating_sub(self.buffer.len() as u64);
        Ok(())
    }

    fn publish(&mut self, count: u32, added: &Totals) {
        for (site, more) in &added.0 {
            let totals = self.totals.site(site);
            totals.accepted += more.accepted;
            totals.duplicates += more.duplicates;
            for (code, count) in &more.rejected {
                totals.refuse(*code, *count);
            }
        }
        let stats = &self.shared.stats;
        if count > 0 {
            let mut shared = self.shared.totals.lock();
            shared.0 = self.next;
            for site in added.0.keys() {
                if let Some(totals) = self.totals.0.get(site) {
                    shared.1.site(site).clone_from(totals);
                }
            }
            drop(shared);
            stats.entries.fetch_add(u64::from(count), Ordering::Relaxed);
            stats.blocks.fetch_add(1, Ordering::Relaxed);
            stats.bytes.fetch_add(self.buffer.len() as u64, Ordering::Relaxed);
            self.shared.committed.send_replace(self.next);
        }
    }

    /// After a write: begins a new segment, a run or a checkpoint where one is due.
    fn housekeeping(&mut self) {
        if self.segments.last().is_some_and(|segment| segment.size >= self.shared.options.segment_bytes) {
            self.rotate();
        }
        for imported in [false, true] {
            let index = if imported { &mut self.imports } else { &mut self.index };
            if let Some(job) = index.job(self.next) {
                let folder = index.folder().to_owned();
                let _ = self.chores.send(Chore::Dedup { imported, folder, job });
            }
        }
        if self.next - self.checkpoint_at.0 >= CHECKPOINT_ENTRIES {
            self.checkpoint();
        }
    }

    fn rotate(&mut self) {
        let header = SegmentHeader { base: self.next, created: self.clock.now(), journal_id: self.journal_id };
        match disk::create(&self.shared.folder, header) {
            Ok((file, info)) => {
                let file = std::mem::replace(&mut self.file, file);
                let base = self.segments.last().map_or(0, |segment| segment.base);
                self.segments.push(info);
                let _ = self.chores.send(Chore::Seal { file, base });
            }
            // The old segment grows on; the next commit tries again.
            Err(error) => log::warn!("cannot begin a new journal segment: {error}"),
        }
    }

    fn checkpoint(&mut self) {
        let indexes = [&self.index, &self.imports];
        let bytes = checkpoint::encode(self.next, self.journal_id, &self.totals, &self.visits, indexes);
        self.checkpoint_at = (self.next, self.clock.now());
        let _ = self.chores.send(Chore::Checkpoint { seq: self.next, bytes });
    }

    fn dedup_done(&mut self, imported: bool, job: &Job, run: io::Result<super::run::Run>) {
        let index = if imported { &mut self.imports } else { &mut self.index };
        match run {
            Ok(run) => index.done(job, run),
            Err(error) => {
                log::warn!("cannot write the dedup index: {error}");
                index.failed(job);
            }
        }
    }

    fn tick(&mut self) {
        let now = self.clock.now();
        self.ticked = now;
        self.visits.expire(now);
        self.index.expire(now);
        if self.next > self.checkpoint_at.0 && now - self.checkpoint_at.1 >= CHECKPOINT_AGE {
            self.checkpoint();
        }
        // A quiet site's segment would take weeks to fill, and its first entries would outlive the retention.
        let oldest_entry = self.shared.options.retention / SLICES;
        if self.segments.last().is_some_and(|s| s.size > SEGMENT_HEADER && now - s.created >= oldest_entry) {
            self.rotate();
        }
        let options = &self.shared.options;
        let pinned = self.shared.pins.lock().iter().map(|pin| pin.load(Ordering::Acquire)).min().unwrap_or(self.next);
        let needed = pinned.min(self.checkpointed.load(Ordering::Acquire));
        let count = disk::deletable(&self.segments, needed, now, options.retention, options.max_bytes);
        for segment in self.segments.drain(..count) {
            if let Err(error) = disk::remove(&self.shared.folder, segment.base) {
                log::warn!("cannot delete an old journal segment: {error}");
            }
            search::remove_filter(&self.shared.folder, segment.base);
        }
        self.look_for_room();
        // Readiness must return even when nobody writes.
        *self.shared.fault.lock() = self.room.clone().err();
        let stats = &self.shared.stats;
        stats.disk_bytes.store(self.segments.iter().map(|segment| segment.size).sum(), Ordering::Relaxed);
        stats.segments.store(self.segments.len() as u64, Ordering::Relaxed);
        stats.oldest.store(self.segments.first().map_or(self.next, |segment| segment.base), Ordering::Relaxed);
        stats.dedup_keys.store(self.index.len() + self.imports.len(), Ordering::Relaxed);
        stats.visits.store(self.visits.len() as u64, Ordering::Relaxed);
        stats.visits_evicted.store(self.visits.evicted(), Ordering::Relaxed);
    }

    fn look_for_room(&mut self) {
        let options = &self.shared.options;
        let total: u64 = self.segments.iter().map(|segment| segment.size).sum();
        let free = disk::free_bytes(&self.shared.folder);
        self.free = free.as_ref().map_or(0, |free| free.saturating_sub(options.min_free_bytes));
        self.room = match free {
            _ if total > options.max_bytes => Err(String::from("it has reached journal.max_bytes")),
            Ok(free) if free < options.min_free_bytes => Err(String::from("less than journal.min_free_bytes is free")),
            Ok(_) => Ok(()),
            Err(error) => Err(describe(&error)),
        };
    }

    /// Everything that waited is written; leaves a checkpoint, so that the next start reads nothing.
    fn close(&mut self) {
        if self.next > self.checkpoint_at.0 {
            self.checkpoint();
        }
        if let Err(error) = self.file.sync_data() {
            log::error!("cannot sync the journal: {error}");
        }
        // The housekeeper ends when the last chore is done and this end of the channel is gone.
        self.chores = channel().0;
    }
}

fn refuse(outcomes: &mut Vec<Outcome>, site: &str, code: RejectCode, count: u64) {
    match outcomes.iter_mut().find(|outcome| outcome.code == code && outcome.site == site) {
        Some(outcome) => outcome.count += count,
        None => outcomes.push(Outcome { site: site.to_owned(), code, count }),
    }
}

/// What a person needs to know, without paths.
fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::StorageFull => String::from("the disk is full"),
        io::ErrorKind::QuotaExceeded => String::from("the disk quota is used up"),
        _ => error.to_string(),
    }
}
