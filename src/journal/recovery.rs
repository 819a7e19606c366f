//! Opening a journal: the checkpoint, the entries behind it, and a tail that a crash may have torn.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use super::block::{self, Found, SEGMENT_HEADER, SegmentHeader};
use super::checkpoint;
use super::dedup::DedupIndex;
use super::disk::{self, SegmentInfo};
use super::totals::Totals;
use super::{JournalError, JournalOptions};
use crate::clock::{Stopwatch, UnixMillis};
use crate::event::codec::{self, Entry};
use crate::event::visit::Visits;
use crate::event::visitor;
use crate::event::{Event, EventId};

/// What opening the journal found.
#[derive(Clone, Debug, Default)]
pub struct Recovery {
    /// Entries read to rebuild the writer's state.
    pub replayed: u64,
    /// Bytes of a torn tail that were cut; nothing in them had been acknowledged as written.
    pub cut_bytes: u64,
    /// Where the torn bytes were put aside, if there were any.
    pub cut_into: Option<PathBuf>,
    /// Entries lost to damage in the middle of the journal.
    pub lost: u64,
    /// How long it took.
    pub took: std::time::Duration,
}

/// A journal that is ready to be written.
pub(super) struct Opened {
    pub file: File,
    pub segments: Vec<SegmentInfo>,
    pub journal_id: [u8; 16],
    pub next: u64,
    pub totals: Totals,
    pub visits: Visits,
    pub index: DedupIndex,
    pub imports: DedupIndex,
    pub recovery: Recovery,
}

pub(super) fn open(
    folder: &Path,
    options: &JournalOptions,
    now: UnixMillis,
    at_least: u64,
) -> Result<Opened, JournalError> {
    let watch = Stopwatch::start();
    fs::create_dir_all(folder)?;
    let mut index = DedupIndex::open(folder.join("dedup"), Some(options.dedup_window))?;
    let mut imports = DedupIndex::open(folder.join("dedup-import"), None)?;
    let mut visits = Visits::new(options.visit_timeout, options.max_visits);
    let mut recovery = Recovery::default();
    let checkpoint = checkpoint::read(folder, &mut visits, [&mut index, &mut imports])?;

    let mut bases = block::list(folder)?;
    drop_headless_tail(folder, &mut bases, &mut recovery)?;
    let mut totals = Totals::default();
    let mut journal_id = *uuid::Uuid::new_v4().as_bytes();
    let mut next = bases.first().copied().unwrap_or(0);
    if let Some(checkpoint) = checkpoint {
        (next, totals, journal_id) = (checkpoint.seq, checkpoint.totals, checkpoint.journal_id);
    } else if next > 0 {
        log::error!("the journal has no checkpoint and begins at entry {next}: the audit's totals start there");
    }

    let mut segments = Vec::new();
    let first = bases.partition_point(|base| *base <= next).saturating_sub(1);
    let mut scratch = Vec::new();
    for (i, base) in bases.iter().copied().enumerate() {
        let path = block::path_of(folder, base);
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let Some(header) = SegmentHeader::read(&file)?.filter(|header| header.base == base) else {
            return Err(JournalError::Damaged(format!("{} has no valid header; move it away", path.display())));
        };
        if i == 0 && segments.is_empty() && next == base {
            journal_id = header.journal_id;
        } else if header.journal_id != journal_id {
            return Err(JournalError::Damaged(format!("{} belongs to another journal", path.display())));
        }
        let mut size = file.metadata()?.len();
        if i >= first {
            let last = i + 1 == bases.len();
            size = scan(folder, &file, size, last, &mut next, &mut scratch, &mut recovery, |entry| {
                replay(entry, &mut totals, &mut visits, &mut index, &mut imports);
            })?;
        }
        segments.push(SegmentInfo { base, created: header.created, size });
    }

    // Numbers that a reader may have counted already must not come again, so a gap begins a segment of its own.
    let skips = next < at_least;
    if skips {
        log::warn!("the journal ends at entry {next}, before the store's cursor {at_least}: it goes on from there");
        next = at_least;
    }
    let file = match segments.last() {
        Some(last) if !skips => OpenOptions::new().read(true).write(true).open(block::path_of(folder, last.base))?,
        _ => {
            let (file, info) = disk::create(folder, SegmentHeader { base: next, created: now, journal_id })?;
            segments.push(info);
            file
        }
    };
    recovery.took = watch.elapsed();
    Ok(Opened { file, segments, journal_id, next, totals, visits, index, imports, recovery })
}

/// A crash while a segment was created leaves a file without a header, in which nothing can have been acknowledged.
fn drop_headless_tail(folder: &Path, bases: &mut Vec<u64>, recovery: &mut Recovery) -> Result<(), JournalError> {
    if let Some(last) = bases.last().copied() {
        let path = block::path_of(folder, last);
        let file = File::open(&path)?;
        let size = file.metadata()?.len();
        if size <= SEGMENT_HEADER && SegmentHeader::read(&file)?.is_none() {
            fs::remove_file(&path)?;
            recovery.cut_bytes += size;
            bases.pop();
        }
    }
    Ok(())
}

/// Reads a segment's blocks from `next` on. Returns its size, which is less than before when a torn tail was cut.
#[expect(clippy::too_many_arguments, reason = "one place calls it")]
fn scan(
    folder: &Path,
    file: &File,
    size: u64,
    last: bool,
    next: &mut u64,
    scratch: &mut Vec<u8>,
    recovery: &mut Recovery,
    mut each: impl FnMut(&Entry<'_>),
) -> Result<u64, JournalError> {
    let mut at = SEGMENT_HEADER;
    loop {
        match block::read_block(file, at, size, scratch)? {
            Found::End => return Ok(size),
            Found::Block(header) => {
                at += (block::BLOCK_HEADER + scratch.len()) as u64;
                if header.end() <= *next {
                    continue;
                }
                recovery.lost += header.seq.saturating_sub(*next);
                let mut rest = scratch.as_slice();
                for seq in header.seq..header.end() {
                    let (entry, tail) = codec::take(rest)
                        .map_err(|_| JournalError::Damaged(format!("entry {seq} is of an unknown kind")))?;
                    if seq >= *next {
                        each(&entry);
                        recovery.replayed += 1;
                    }
                    rest = tail;
                }
                *next = header.end();
            }
            Found::Broken => {
                // Whole blocks behind the damage were acknowledged: step over it, and never cut them off.
                if let Some((found, header)) = block::find_next(file, at, size, *next)? {
                    log::error!("journal damaged: {} bytes are unreadable before entry {}", found - at, header.seq);
                    at = found;
                } else if last {
                    cut(folder, file, at, size, *next, recovery)?;
                    return Ok(at);
                } else {
                    log::error!("journal damaged: the end of a segment is unreadable after entry {next}");
                    return Ok(size);
                }
            }
        }
    }
}

/// Cuts a torn tail, and puts its bytes aside for a person to look at.
fn cut(folder: &Path, file: &File, at: u64, size: u64, next: u64, recovery: &mut Recovery) -> Result<(), JournalError> {
    use std::os::unix::fs::FileExt;
    let mut torn = vec![0; usize::try_from(size - at).unwrap_or(0)];
    file.read_exact_at(&mut torn, at)?;
    let aside = folder.join(format!("torn-{next:020}.bin"));
    if let Err(error) = fs::write(&aside, &torn) {
        log::warn!("cannot put the torn bytes aside: {error}");
    } else {
        recovery.cut_into = Some(aside);
    }
    file.set_len(at)?;
    file.sync_all()?;
    recovery.cut_bytes += size - at;
    log::warn!("cut a torn block of {} bytes from the end of the journal, after entry {next}", size - at);
    Ok(())
}

fn replay(
    entry: &Entry<'_>,
    totals: &mut Totals,
    visits: &mut Visits,
    index: &mut DedupIndex,
    imports: &mut DedupIndex,
) {
    totals.add(entry);
    let Entry::Event(event) = entry else { return };
    if let Some(key) = key_of(event) {
        let index = if event.imported { imports } else { index };
        index.replay(key, event.received);
    }
    if event.session_id.is_none() && event.bot.is_none() {
        visits.assign(event.visitor, event.timestamp, event.received);
    }
}

/// The dedup key that an event was accepted under.
fn key_of(event: &Event<'_>) -> Option<u128> {
    match event.id {
        EventId::None => None,
        EventId::Uuid(bytes) => {
            let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
            let text = uuid::Uuid::from_bytes(bytes).hyphenated().encode_lower(&mut text);
            Some(visitor::dedup_key(event.site, text.as_bytes()))
        }
        EventId::Text(text) => Some(visitor::dedup_key(event.site, text.as_bytes())),
    }
}
