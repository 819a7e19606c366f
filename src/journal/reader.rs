//! Reading the journal from a cursor on: the only way anything downstream gets at events.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use tokio::sync::watch;

use super::JournalError;
use super::block::{self, BlockHeader, Found, SEGMENT_HEADER, SegmentHeader};
use crate::clock::UnixMillis;
use crate::event::codec::{self, Entry};

/// Bytes of a segment that are read at once: at first, and then.
const PIECE: (usize, usize) = (32 << 10, 256 << 10);

/// Reads entries in order, each once. Its methods block on the disk, so call them off the runtime.
#[derive(Debug)]
pub struct Reader {
    folder: PathBuf,
    /// What is committed; `None` reads a journal that nobody writes, to its end.
    committed: Option<watch::Receiver<u64>>,
    next: u64,
    segment: Option<Segment>,
    lost: u64,
    scratch: Vec<u8>,
    /// Memory of an earlier chunk.
    spare: Vec<u8>,
}

#[derive(Debug)]
struct Segment {
    base: u64,
    file: File,
    at: u64,
}

/// A run of entries.
#[derive(Debug, Default)]
pub struct Chunk {
    bytes: Vec<u8>,
    blocks: Vec<(BlockHeader, Range<usize>)>,
    from: u64,
    /// The sequence number after the last entry.
    pub end: u64,
}

impl Chunk {
    /// The entries with their sequence numbers. A malformed one ends its block: its checksum was right, so it comes from
    /// a newer version, and is reported by the reader of the chunk.
    pub fn entries(&self) -> impl Iterator<Item = (u64, Result<Entry<'_>, codec::Malformed>)> {
        self.blocks.iter().flat_map(move |(header, range)| {
            let mut rest = &self.bytes[range.clone()];
            let mut seq = header.seq;
            std::iter::from_fn(move || {
                if rest.is_empty() {
                    return None;
                }
                let entry = match codec::take(rest) {
                    Ok((entry, tail)) => {
                        rest = tail;
                        Ok(entry)
                    }
                    Err(malformed) => {
                        rest = &[];
                        Err(malformed)
                    }
                };
                seq += 1;
                Some((seq - 1, entry))
            })
            .filter(move |(seq, _)| *seq >= self.from)
        })
    }

    /// The sequence number before the first entry.
    pub fn from(&self) -> u64 {
        self.from
    }

    /// Bytes of entries and of what holds them.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// When the last of it was written.
    pub fn time(&self) -> UnixMillis {
        self.blocks.last().map_or(0, |(header, _)| header.time)
    }
}

impl Reader {
    pub(super) fn new(folder: PathBuf, committed: Option<watch::Receiver<u64>>, next: u64) -> Self {
        Self { folder, committed, next, segment: None, lost: 0, scratch: Vec::new(), spare: Vec::new() }
    }

    /// Reads a journal that no server holds, from its first entry at or after `next`.
    pub fn offline(folder: PathBuf, next: u64) -> Self {
        Self::new(folder, None, next)
    }

    /// The sequence number of the next entry.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Entries that were gone or damaged when their turn came.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Waits until there is something to read; `false` when the journal has closed and all is read.
    pub async fn ready(&mut self) -> bool {
        let next = self.next;
        match &mut self.committed {
            Some(committed) => committed.wait_for(|end| *end > next).await.is_ok(),
            None => true,
        }
    }

    /// Whether all that is committed has been read.
    pub fn caught_up(&self) -> bool {
        self.committed.as_ref().is_some_and(|committed| *committed.borrow() <= self.next)
    }

    /// Takes back a chunk that is done with, for its memory: fresh pages cost more than the reading.
    pub fn recycle(&mut self, chunk: Chunk) {
        self.spare = chunk.bytes;
        self.spare.clear();
    }

    /// Reads up to about `most` bytes of entries; `None` at the end.
    pub fn read(&mut self, most: usize) -> Result<Option<Chunk>, JournalError> {
        let end = self.committed.as_ref().map_or(u64::MAX, |committed| *committed.borrow());
        let bytes = std::mem::take(&mut self.spare);
        let mut chunk = Chunk { bytes, from: self.next, end: self.next, ..Chunk::default() };
        while self.next < end && chunk.bytes.len() < most {
            if self.segment.is_none() && !self.open()? {
                break;
            }
            if self.take_blocks(&mut chunk, end, most)? {
                continue;
            }
            // The end of the segment, a block longer than what is read at once, or damage.
            let Some(segment) = &mut self.segment else { break };
            let size = segment.file.metadata()?.len();
            match block::read_block(&segment.file, segment.at, size, &mut self.scratch)? {
                Found::Block(header) => {
                    segment.at += (block::BLOCK_HEADER + self.scratch.len()) as u64;
                    if header.end() <= self.next {
                        continue;
                    }
                    self.lost += header.seq.saturating_sub(self.next);
                    let start = chunk.bytes.len();
                    chunk.bytes.extend_from_slice(&self.scratch);
                    chunk.blocks.push((header, start..chunk.bytes.len()));
                    self.next = header.end();
                    chunk.end = self.next;
                }
                Found::End => {
                    if !self.follow()? {
                        break;
                    }
                }
                Found::Broken => {
                    let base = segment.base;
                    match block::find_next(&segment.file, segment.at, size, self.next)? {
                        Some((at, header)) => {
                            log::error!(
                                "journal segment {base}: damage at byte {}, {} entries lost",
                                segment.at,
                                header.seq.saturating_sub(self.next)
                            );
                            segment.at = at;
                        }
                        None if !self.follow()? => break,
                        None => log::error!("journal segment {base}: damaged at its end"),
                    }
                }
            }
        }
        Ok((chunk.end > chunk.from).then_some(chunk))
    }

    /// Takes the blocks that lie whole in the next piece of the segment; `false` if not one does. A group commit of few
    /// events is a small block, and a system call for each would cost more than what is done with it.
    fn take_blocks(&mut self, chunk: &mut Chunk, end: u64, most: usize) -> Result<bool, JournalError> {
        let Some(segment) = &mut self.segment else { return Ok(false) };
        let start = chunk.bytes.len();
        // A reader that has caught up finds little.
        let piece = if start == 0 { PIECE.0 } else { PIECE.1 };
        chunk.bytes.resize(start + piece.min(most.saturating_sub(start)).max(block::BLOCK_HEADER), 0);
        let read = segment.file.read_at(&mut chunk.bytes[start..], segment.at)?;
        let (mut at, mut kept) = (start, start);
        while self.next < end
            && let Some(header) = block::first(&chunk.bytes[at..start + read])
        {
            let entries = at + block::BLOCK_HEADER..at + block::BLOCK_HEADER + header.len as usize;
            at = entries.end;
            if header.end() > self.next {
                self.lost += header.seq.saturating_sub(self.next);
                chunk.blocks.push((header, entries));
                kept = at;
                self.next = header.end();
                chunk.end = self.next;
            }
        }
        segment.at += (at - start) as u64;
        chunk.bytes.truncate(kept);
        Ok(at > start)
    }

    /// Opens the segment that has the next entry; `false` if the journal is empty.
    fn open(&mut self) -> Result<bool, JournalError> {
        let bases = block::list(&self.folder)?;
        let at = bases.partition_point(|base| *base <= self.next);
        let Some(base) = bases.get(at.saturating_sub(1)).copied() else { return Ok(false) };
        self.enter(base)?;
        Ok(true)
    }

    /// Goes on to the next segment; `false` if there is none.
    fn follow(&mut self) -> Result<bool, JournalError> {
        let current = self.segment.as_ref().map_or(0, |segment| segment.base);
        let Some(base) = block::list(&self.folder)?.into_iter().find(|base| *base > current) else {
            return Ok(false);
        };
        self.enter(base)?;
        Ok(true)
    }

    fn enter(&mut self, base: u64) -> Result<(), JournalError> {
        let file = File::open(block::path_of(&self.folder, base))?;
        if SegmentHeader::read(&file)?.is_none_or(|header| header.base != base) {
            return Err(JournalError::Damaged(format!("segment {base} has no valid header")));
        }
        self.segment = Some(Segment { base, file, at: SEGMENT_HEADER });
        Ok(())
    }
}
