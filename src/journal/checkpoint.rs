//! The writer's state at one sequence number, so that a start reads seconds of the journal and not days.
//!
//! ```text
//! checkpoint = magic "TIDECKP1", crc32 of the rest, seq u64, journal id [16], totals, visits, keys, imported keys
//! keys       = count u64, u128 each
//! ```
//!
//! Losing it costs a longer start and, once old segments are gone, the audit's totals of what was in them.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::dedup::DedupIndex;
use super::totals::Totals;
use crate::event::visit::Visits;

const MAGIC: &[u8; 8] = b"TIDECKP1";
const NAME: &str = "checkpoint";

/// The state of the writer, as bytes.
pub fn encode(seq: u64, journal_id: [u8; 16], totals: &Totals, visits: &Visits, indexes: [&DedupIndex; 2]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 << 16);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&seq.to_le_bytes());
    out.extend_from_slice(&journal_id);
    totals.encode(&mut out);
    visits.encode(&mut out);
    for index in indexes {
        let at = out.len();
        out.extend_from_slice(&[0; 8]);
        let mut count = 0u64;
        for key in index.in_memory() {
            out.extend_from_slice(&key.to_le_bytes());
            count += 1;
        }
        out[at..at + 8].copy_from_slice(&count.to_le_bytes());
    }
    let crc = crc32fast::hash(&out[12..]);
    out[8..12].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Puts a checkpoint in the place of the one before, durably.
pub fn write(folder: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = folder.join("checkpoint.new");
    let mut file = File::create(&fresh)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    fs::rename(&fresh, folder.join(NAME))?;
    File::open(folder)?.sync_all()
}

/// What a checkpoint says.
pub struct Checkpoint {
    /// Everything before this sequence number is in it.
    pub seq: u64,
    /// Of which journal.
    pub journal_id: [u8; 16],
    /// Totals by site.
    pub totals: Totals,
}

/// Reads the checkpoint into the writer's state; `None` if there is none that can be read.
pub fn read(folder: &Path, visits: &mut Visits, indexes: [&mut DedupIndex; 2]) -> io::Result<Option<Checkpoint>> {
    let bytes = match fs::read(folder.join(NAME)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let read = decode(&bytes, visits, indexes);
    if read.is_none() {
        log::error!("the journal's checkpoint is damaged; reading the whole journal instead");
    }
    Ok(read)
}

fn decode(bytes: &[u8], visits: &mut Visits, indexes: [&mut DedupIndex; 2]) -> Option<Checkpoint> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*crc) != crc32fast::hash(rest) {
        return None;
    }
    let (seq, rest) = rest.split_first_chunk::<8>()?;
    let (journal_id, rest) = rest.split_first_chunk::<16>()?;
    let (totals, rest) = Totals::decode(rest)?;
    let mut rest = visits.decode(rest)?;
    for index in indexes {
        let (count, keys) = rest.split_first_chunk::<8>()?;
        let size = usize::try_from(u64::from_le_bytes(*count)).ok()?.checked_mul(16)?;
        let (keys, tail) = keys.split_at_checked(size)?;
        for key in keys.as_chunks::<16>().0 {
            index.replay(u128::from_le_bytes(*key), 0);
        }
        rest = tail;
    }
    Some(Checkpoint { seq: u64::from_le_bytes(*seq), journal_id: *journal_id, totals })
}
