//! Finding one visitor's latest events without an index a visitor: newest segments first, skipping those whose filter
//! says that the visitor is not in them.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_128;

use super::block::{self, Found, SEGMENT_HEADER};
use super::run::Filter;
use crate::event::Event;
use crate::event::codec::{self, Entry};

fn filter_path(folder: &Path, base: u64) -> PathBuf {
    folder.join(format!("{base:020}.visitors"))
}

fn key(visitor: u64) -> u128 {
    xxh3_128(&visitor.to_le_bytes())
}

/// Writes the visitor filter of a full segment.
pub fn write_filter(folder: &Path, base: u64) -> io::Result<()> {
    let mut visitors = hashbrown::HashSet::new();
    scan(folder, base, |_, event| {
        visitors.insert(event.visitor);
    })?;
    let mut filter = Filter::for_keys(visitors.len());
    for visitor in visitors {
        filter.insert(key(visitor));
    }
    let path = filter_path(folder, base);
    let fresh = path.with_extension("visitors-new");
    fs::write(&fresh, filter.encode())?;
    fs::rename(fresh, path)
}

/// Removes the filter of a segment that goes.
pub fn remove_filter(folder: &Path, base: u64) {
    // A segment that was never full has none.
    let _ = fs::remove_file(filter_path(folder, base));
}

/// Calls `each` with the visitor's latest events, newest first, at most `limit`, at most through `end`.
pub fn latest(
    folder: &Path,
    visitor: u64,
    end: u64,
    limit: usize,
    mut each: impl FnMut(u64, &Event<'_>),
) -> io::Result<()> {
    let mut left = limit;
    for base in block::list(folder)?.into_iter().rev() {
        if left == 0 {
            break;
        }
        let filter = fs::read(filter_path(folder, base)).ok().and_then(|bytes| Filter::decode(&bytes));
        if filter.is_some_and(|filter| !filter.may_contain(key(visitor))) {
            continue;
        }
        // Within a segment the latest come last, so keep the newest few as they pass.
        let mut found: VecDeque<(u64, Vec<u8>)> = VecDeque::new();
        scan_raw(folder, base, |seq, raw, event| {
            if event.visitor == visitor && seq < end {
                if found.len() == left {
                    found.pop_front();
                }
                found.push_back((seq, raw.to_vec()));
            }
        })?;
        left -= found.len();
        for (seq, raw) in found.iter().rev() {
            if let Ok((Entry::Event(event), _)) = codec::take(raw) {
                each(*seq, &event);
            }
        }
    }
    Ok(())
}

fn scan(folder: &Path, base: u64, mut each: impl FnMut(u64, &Event<'_>)) -> io::Result<()> {
    scan_raw(folder, base, |seq, _, event| each(seq, event))
}

fn scan_raw(folder: &Path, base: u64, mut each: impl FnMut(u64, &[u8], &Event<'_>)) -> io::Result<()> {
    let file = match File::open(block::path_of(folder, base)) {
        Ok(file) => file,
        // Deleted by the retention since the folder was listed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let size = file.metadata()?.len();
    let mut at = SEGMENT_HEADER;
    let mut entries = Vec::new();
    loop {
        match block::read_block(&file, at, size, &mut entries)? {
            Found::Block(header) => {
                at += (block::BLOCK_HEADER + entries.len()) as u64;
                let mut rest = entries.as_slice();
                for seq in header.seq..header.end() {
                    let Ok((entry, tail)) = codec::take(rest) else { break };
                    if let Entry::Event(event) = entry {
                        each(seq, &rest[..rest.len() - tail.len()], &event);
                    }
                    rest = tail;
                }
            }
            Found::End => return Ok(()),
            // Damage, or a block that is being written right now.
            Found::Broken => match block::find_next(&file, at, size, 0)? {
                Some((next, _)) => at = next,
                None => return Ok(()),
            },
        }
    }
}
