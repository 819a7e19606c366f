//! The journal on disk: segments of checksummed blocks.
//!
//! ```text
//! segment = magic "TIDEJRN1", base seq u64, created u64 (Unix ms), journal id [16], crc32, zeros to 64 bytes; block*
//! block   = len u32, crc32 (of all that follows), seq u64, time u64 (Unix ms), count u32, entries [len]
//! ```
//!
//! A segment's file is named for its base: the sequence number of its first entry. One group commit is one block, so an
//! event and its dedup key are durable together or not at all.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::clock::UnixMillis;

/// Bytes of a segment's header.
pub const SEGMENT_HEADER: u64 = 64;
/// Bytes of a block's header.
pub const BLOCK_HEADER: usize = 28;
/// A longer block is no block.
pub const MAX_BLOCK: usize = 32 << 20;

const MAGIC: &[u8; 8] = b"TIDEJRN1";
const ENDING: &str = "journal";

/// A segment's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Sequence number of the first entry.
    pub base: u64,
    /// When it was begun.
    pub created: UnixMillis,
    /// Which journal it belongs to, so that folders cannot be mixed up.
    pub journal_id: [u8; 16],
}

impl SegmentHeader {
    /// As bytes.
    pub fn encode(&self) -> [u8; SEGMENT_HEADER as usize] {
        let mut bytes = [0; SEGMENT_HEADER as usize];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..16].copy_from_slice(&self.base.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.created.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.journal_id);
        let crc = crc32fast::hash(&bytes[..40]);
        bytes[40..44].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// From bytes; `None` if they are no header.
    pub fn decode(bytes: &[u8; SEGMENT_HEADER as usize]) -> Option<Self> {
        let crc = u32::from_le_bytes(bytes[40..44].try_into().ok()?);
        if &bytes[..8] != MAGIC || crc != crc32fast::hash(&bytes[..40]) {
            return None;
        }
        Some(Self {
            base: u64::from_le_bytes(bytes[8..16].try_into().ok()?),
            created: i64::from_le_bytes(bytes[16..24].try_into().ok()?),
            journal_id: bytes[24..40].try_into().ok()?,
        })
    }

    /// Of an open segment.
    pub fn read(file: &File) -> io::Result<Option<Self>> {
        let mut bytes = [0; SEGMENT_HEADER as usize];
        match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => Ok(Self::decode(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A block's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHeader {
    /// Bytes of its entries.
    pub len: u32,
    crc: u32,
    /// Sequence number of its first entry.
    pub seq: u64,
    /// When it was written.
    pub time: UnixMillis,
    /// How many entries it has.
    pub count: u32,
}

impl BlockHeader {
    /// Reads a header; says nothing of its truth.
    pub fn decode(bytes: &[u8; BLOCK_HEADER]) -> Self {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        Self { len: word(0), crc: word(4), seq: long(8), time: long(16) as i64, count: word(24) }
    }

    /// Whether header and entries are what was written.
    pub fn holds(&self, header: &[u8; BLOCK_HEADER], entries: &[u8]) -> bool {
        entries.len() == self.len as usize && self.crc == checksum(&header[8..], entries)
    }

    /// The sequence number after its last entry.
    pub fn end(&self) -> u64 {
        self.seq + u64::from(self.count)
    }
}

fn checksum(head: &[u8], entries: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(entries);
    hasher.finalize()
}

/// Begins a block in an empty `out`; entries are appended, then [`seal`] completes it.
pub fn begin(out: &mut Vec<u8>) {
    out.clear();
    out.resize(BLOCK_HEADER, 0);
}

/// Completes the block that [`begin`] began.
pub fn seal(out: &mut [u8], seq: u64, time: UnixMillis, count: u32) {
    let len = (out.len() - BLOCK_HEADER) as u32;
    out[0..4].copy_from_slice(&len.to_le_bytes());
    out[8..16].copy_from_slice(&seq.to_le_bytes());
    out[16..24].copy_from_slice(&time.to_le_bytes());
    out[24..28].copy_from_slice(&count.to_le_bytes());
    let crc = checksum(&out[8..BLOCK_HEADER], &out[BLOCK_HEADER..]);
    out[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// What stands at a place in a segment.
#[derive(Debug)]
pub enum Found {
    /// A block, whose entries are in the buffer that was passed.
    Block(BlockHeader),
    /// The segment ends exactly here.
    End,
    /// Bytes that are no whole block.
    Broken,
}

/// The block that `bytes` begin with, if it is whole and true.
pub fn first(bytes: &[u8]) -> Option<BlockHeader> {
    let head = bytes.first_chunk::<BLOCK_HEADER>()?;
    let header = BlockHeader::decode(head);
    let entries = bytes.get(BLOCK_HEADER..BLOCK_HEADER.checked_add(header.len as usize)?)?;
    header.holds(head, entries).then_some(header)
}

/// Reads the block at `at` of a segment that has `size` bytes; its entries go into `entries`.
pub fn read_block(file: &File, at: u64, size: u64, entries: &mut Vec<u8>) -> io::Result<Found> {
    if at >= size {
        return Ok(Found::End);
    }
    let mut head = [0; BLOCK_HEADER];
    if size - at < BLOCK_HEADER as u64 {
        return Ok(Found::Broken);
    }
    file.read_exact_at(&mut head, at)?;
    let header = BlockHeader::decode(&head);
    let room = size - at - BLOCK_HEADER as u64;
    if header.len as usize > MAX_BLOCK || u64::from(header.len) > room {
        return Ok(Found::Broken);
    }
    entries.resize(header.len as usize, 0);
    file.read_exact_at(entries, at + BLOCK_HEADER as u64)?;
    Ok(if header.holds(&head, entries) { Found::Block(header) } else { Found::Broken })
}

/// Looks behind broken bytes at `at` for the next whole block whose first entry is `least` or later.
///
/// Reads the rest of the segment, which happens only after damage.
pub fn find_next(file: &File, at: u64, size: u64, least: u64) -> io::Result<Option<(u64, BlockHeader)>> {
    let mut rest = vec![0; usize::try_from(size.saturating_sub(at)).unwrap_or(0)];
    file.read_exact_at(&mut rest, at)?;
    for skip in 1..rest.len() {
        let Some(head) = rest[skip..].first_chunk::<BLOCK_HEADER>() else { break };
        let header = BlockHeader::decode(head);
        let entries = skip + BLOCK_HEADER;
        // The cheap tests first: a checksum over a random length at every byte would take minutes.
        if header.seq < least || header.seq > least + (1 << 32) || header.count == 0 {
            continue;
        }
        let Some(entries) = rest.get(entries..entries.saturating_add(header.len as usize)) else { continue };
        if header.holds(head, entries) {
            return Ok(Some((at + skip as u64, header)));
        }
    }
    Ok(None)
}

/// Path of the segment with this base.
pub fn path_of(folder: &Path, base: u64) -> PathBuf {
    folder.join(format!("{base:020}.{ENDING}"))
}

/// Bases of the segments in a folder, oldest first.
pub fn list(folder: &Path) -> io::Result<Vec<u64>> {
    let mut bases = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == ENDING)
            && let Some(base) = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok())
        {
            bases.push(base);
        }
    }
    bases.sort_unstable();
    Ok(bases)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn block(seq: u64, text: &[u8], count: u32) -> Vec<u8> {
        let mut out = Vec::new();
        begin(&mut out);
        out.extend_from_slice(text);
        seal(&mut out, seq, 77, count);
        out
    }

    #[test]
    fn headers_round_trip_and_notice_every_flipped_byte() {
        let header = SegmentHeader { base: 9, created: 5, journal_id: [3; 16] };
        let bytes = header.encode();
        assert_eq!(SegmentHeader::decode(&bytes), Some(header));
        for at in 0..44 {
            let mut bad = bytes;
            bad[at] ^= 1;
            assert_eq!(SegmentHeader::decode(&bad), None, "byte {at}");
        }
    }

    #[test]
    fn a_block_notices_every_flipped_byte_and_every_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let good = block(5, b"hello world", 3);
        let mut entries = Vec::new();
        let mut read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let file = File::open(&path).unwrap();
            read_block(&file, 0, bytes.len() as u64, &mut entries).unwrap()
        };
        assert!(matches!(read(&good), Found::Block(BlockHeader { seq: 5, time: 77, count: 3, .. })));
        assert_eq!(first(&[good.as_slice(), b"more"].concat()).map(|header| header.end()), Some(8));
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(matches!(read(&bad), Found::Broken), "byte {at}");
            assert_eq!(first(&bad), None, "byte {at}");
            assert_eq!(first(&good[..at]), None, "cut at {at}");
            if at > 0 {
                assert!(matches!(read(&good[..at]), Found::Broken), "cut at {at}");
            }
        }
        assert!(matches!(read(&[]), Found::End));
    }

    #[test]
    fn the_next_whole_block_is_found_behind_damage() {
        let mut file = tempfile::tempfile().unwrap();
        let (first, second) = (block(0, b"aaaa", 4), block(4, b"bbb", 2));
        let mut bytes = [first.as_slice(), second.as_slice()].concat();
        bytes[BLOCK_HEADER + 1] ^= 1;
        file.write_all(&bytes).unwrap();
        let (at, header) = find_next(&file, 0, bytes.len() as u64, 0).unwrap().unwrap();
        assert_eq!((at, header.seq), (first.len() as u64, 4));
        assert!(find_next(&file, 0, bytes.len() as u64 - 1, 0).unwrap().is_none());
    }
}
