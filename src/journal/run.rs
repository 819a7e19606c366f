//! A run: sorted dedup keys on disk, with a filter and a sparse index in memory.
//!
//! ```text
//! run = magic "TIDERUN1", count u64, from u64, to u64, newest u64 (Unix ms), filter words u64, crc32 of the header and
//!       filter, zeros to 64 bytes; filter; keys u128, ascending
//! ```
//!
//! The filter is a blocked Bloom filter (Putze, Sanders, Singler 2007): one 64-byte block a key, about 1 % false
//! positives at 10 bits a key. A probe that passes it reads one 4 KiB page of keys.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::clock::UnixMillis;

const MAGIC: &[u8; 8] = b"TIDERUN1";
const HEADER: u64 = 64;
/// Keys in one page, and between two entries of the sparse index.
const PAGE: usize = 256;
const ENDING: &str = "run";

/// A blocked Bloom filter over keys that are already good hashes.
#[derive(Debug, Default)]
pub struct Filter(Vec<[u64; 8]>);

impl Filter {
    /// For about so many keys.
    pub fn for_keys(keys: usize) -> Self {
        Self(vec![[0; 8]; (keys * 10).div_ceil(512).max(1)])
    }

    fn block(&self, key: u128) -> usize {
        // Multiply-shift maps the upper half evenly onto the blocks.
        (((key >> 64) * self.0.len() as u128) >> 64) as usize
    }

    /// Adds a key.
    pub fn insert(&mut self, key: u128) {
        let block = self.block(key);
        for bit in bits(key) {
            self.0[block][bit >> 6] |= 1 << (bit & 63);
        }
    }

    /// `false` if the key was certainly never added.
    pub fn may_contain(&self, key: u128) -> bool {
        let block = &self.0[self.block(key)];
        bits(key).all(|bit| block[bit >> 6] & 1 << (bit & 63) != 0)
    }

    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        self.0.iter().flatten().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// From bytes; `None` if their number is odd.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (blocks, rest) = bytes.as_chunks::<64>();
        if blocks.is_empty() || !rest.is_empty() {
            return None;
        }
        let word = |b: &[u8; 64], i: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&b[i * 8..i * 8 + 8]);
            u64::from_le_bytes(word)
        };
        Some(Self(blocks.iter().map(|b| std::array::from_fn(|i| word(b, i))).collect()))
    }
}

/// Six positions in a block of 512 bits, from the lower half of the key.
fn bits(key: u128) -> impl Iterator<Item = usize> {
    (0..6).map(move |i| (key >> (i * 9)) as usize & 511)
}

/// An immutable set of keys on disk.
#[derive(Debug)]
pub struct Run {
    path: PathBuf,
    file: File,
    count: u64,
    /// Journal sequence numbers it covers, the second exclusive.
    pub covers: (u64, u64),
    /// When its newest key was received.
    pub newest: UnixMillis,
    filter: Filter,
    /// Upper half of every 256th key.
    index: Vec<u64>,
    keys_at: u64,
}

impl Run {
    /// Writes sorted, distinct keys, of which there are at most `most`, and opens the result. It is complete on disk
    /// under its name or not there at all.
    pub fn write(
        folder: &Path,
        covers: (u64, u64),
        newest: UnixMillis,
        most: usize,
        keys: impl Iterator<Item = io::Result<u128>>,
    ) -> io::Result<Self> {
        let path = folder.join(format!("{:020}-{:020}.{ENDING}", covers.0, covers.1));
        let fresh = path.with_extension("new");
        let mut file = BufWriter::new(File::create(&fresh)?);
        let mut filter = Filter::for_keys(most);
        let filter_bytes = filter.0.len() as u64 * 64;
        file.seek(SeekFrom::Start(HEADER + filter_bytes))?;
        let mut count = 0u64;
        for key in keys {
            let key = key?;
            file.write_all(&key.to_le_bytes())?;
            filter.insert(key);
            count += 1;
        }
        file.seek(SeekFrom::Start(0))?;
        let filter = filter.encode();
        let mut header = [0; HEADER as usize];
        header[..8].copy_from_slice(MAGIC);
        for (i, word) in [count, covers.0, covers.1, newest as u64, filter_bytes].into_iter().enumerate() {
            header[8 + i * 8..16 + i * 8].copy_from_slice(&word.to_le_bytes());
        }
        let crc = checksum(&header, &filter);
        header[48..52].copy_from_slice(&crc.to_le_bytes());
        file.write_all(&header)?;
        file.write_all(&filter)?;
        file.into_inner().map_err(|e| e.into_error())?.sync_data()?;
        fs::rename(&fresh, &path)?;
        // The checkpoint will count on it: its name must survive a power loss too.
        File::open(folder)?.sync_all()?;
        Self::open(&path)
    }

    /// Opens a run.
    pub fn open(path: &Path) -> io::Result<Self> {
        let broken = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("dedup run: {what}"));
        let file = File::open(path)?;
        let mut header = [0; HEADER as usize];
        file.read_exact_at(&mut header, 0)?;
        let word = |i: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&header[8 + i * 8..16 + i * 8]);
            u64::from_le_bytes(word)
        };
        let (count, filter_bytes) = (word(0), word(4));
        let keys_at = HEADER.saturating_add(filter_bytes);
        let size = file.metadata()?.len();
        if &header[..8] != MAGIC || keys_at.saturating_add(count.saturating_mul(16)) != size {
            return Err(broken("not a whole file"));
        }
        let mut filter = vec![0; filter_bytes as usize];
        file.read_exact_at(&mut filter, HEADER)?;
        let crc = u32::from_le_bytes([header[48], header[49], header[50], header[51]]);
        let mut unsigned = header;
        unsigned[48..52].fill(0);
        if crc != checksum(&unsigned, &filter) {
            return Err(broken("wrong checksum"));
        }
        let filter = Filter::decode(&filter).ok_or_else(|| broken("odd filter"))?;
        let mut index = Vec::with_capacity((count as usize).div_ceil(PAGE));
        let mut upper = [0; 8];
        for first in (0..count).step_by(PAGE) {
            file.read_exact_at(&mut upper, keys_at + first * 16 + 8)?;
            index.push(u64::from_le_bytes(upper));
        }
        let covers = (word(1), word(2));
        Ok(Self { path: path.to_owned(), file, count, covers, newest: word(3) as i64, filter, index, keys_at })
    }

    /// Opens all runs of a folder; removes what a merge or a crash left behind.
    pub fn open_all(folder: &Path) -> io::Result<Vec<Self>> {
        let mut runs = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            match path.extension().and_then(|ending| ending.to_str()) {
                Some(ENDING) => runs.push(Self::open(&path)?),
                Some("new") => fs::remove_file(&path)?,
                _ => {}
            }
        }
        // A merged run covers those it was made of.
        runs.sort_by_key(|run| (run.covers.0, std::cmp::Reverse(run.covers.1)));
        let mut kept: Vec<Self> = Vec::new();
        for run in runs {
            match kept.last() {
                Some(last) if run.covers.1 <= last.covers.1 => run.remove(),
                _ => kept.push(run),
            }
        }
        Ok(kept)
    }

    /// Whether the key is in it.
    pub fn contains(&self, key: u128) -> io::Result<bool> {
        if !self.filter.may_contain(key) {
            return Ok(false);
        }
        // Keys with the same upper half may lie on both sides of a page's edge, so look at every page that can hold it.
        let upper = (key >> 64) as u64;
        let first = self.index.partition_point(|page| *page < upper).saturating_sub(1);
        let last = self.index.partition_point(|page| *page <= upper);
        let mut page = [0; PAGE * 16];
        for number in first..last {
            let keys = (self.count - (number * PAGE) as u64).min(PAGE as u64) as usize;
            let page = &mut page[..keys * 16];
            self.file.read_exact_at(page, self.keys_at + (number * PAGE * 16) as u64)?;
            let (keys, _) = page.as_chunks::<16>();
            if keys.binary_search_by_key(&key, |bytes| u128::from_le_bytes(*bytes)).is_ok() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Its keys, ascending.
    pub fn keys(&self) -> io::Result<impl Iterator<Item = io::Result<u128>> + use<>> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.keys_at))?;
        let mut file = BufReader::with_capacity(1 << 16, file);
        let mut left = self.count;
        Ok(std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let mut key = [0; 16];
            Some(file.read_exact(&mut key).map(|()| u128::from_le_bytes(key)))
        }))
    }

    /// How many keys it has.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// Removes it from disk. A run that cannot be removed costs space and is met again at the next start.
    pub fn remove(&self) {
        if let Err(error) = fs::remove_file(&self.path) {
            log::warn!("cannot remove an old dedup run: {error}");
        }
    }
}

/// One run of the keys of several, duplicates dropped.
pub fn merge(folder: &Path, runs: &[std::sync::Arc<Run>]) -> io::Result<Run> {
    let covers = runs.iter().fold((u64::MAX, 0), |c, run| (c.0.min(run.covers.0), c.1.max(run.covers.1)));
    let newest = runs.iter().map(|run| run.newest).max().unwrap_or_default();
    let most = runs.iter().map(|run| run.len() as usize).sum();
    let mut sources = Vec::with_capacity(runs.len());
    for run in runs {
        sources.push(run.keys()?.peekable());
    }
    let merged = std::iter::from_fn(move || {
        let mut least = None;
        for source in &mut sources {
            match source.peek() {
                Some(Ok(key)) => least = Some(least.map_or(*key, |least: u128| least.min(*key))),
                Some(Err(_)) => return source.next(),
                None => {}
            }
        }
        let least = least?;
        for source in &mut sources {
            if matches!(source.peek(), Some(Ok(key)) if *key == least) {
                source.next();
            }
        }
        Some(Ok(least))
    });
    Run::write(folder, covers, newest, most, merged)
}

fn checksum(header: &[u8], filter: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(filter);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use xxhash_rust::xxh3::xxh3_128;

    fn keys(range: std::ops::Range<u64>) -> Vec<u128> {
        let mut keys: Vec<u128> = range.map(|i| xxh3_128(&i.to_le_bytes())).collect();
        keys.sort_unstable();
        keys
    }

    fn write(folder: &Path, range: std::ops::Range<u64>) -> Run {
        let keys = keys(range.clone());
        Run::write(folder, (range.start, range.end), 5, keys.len(), keys.into_iter().map(Ok)).unwrap()
    }

    #[test]
    fn a_run_knows_its_keys_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let run = write(folder.path(), 0..5000);
        assert!(keys(0..5000).iter().all(|key| run.contains(*key).unwrap()));
        assert!(!keys(5000..20_000).iter().any(|key| run.contains(*key).unwrap()));
        let passed = keys(5000..20_000).iter().filter(|key| run.filter.may_contain(**key)).count();
        assert!(passed < 15_000 * 3 / 100, "{passed} false positives of 15000");
    }

    #[test]
    fn merged_runs_replace_their_parts() {
        let folder = tempfile::tempdir().unwrap();
        let parts = [write(folder.path(), 0..3000), write(folder.path(), 2000..6000)].map(Arc::new);
        let run = merge(folder.path(), &parts).unwrap();
        assert_eq!((run.len(), run.covers), (6000, (0, 6000)));
        assert!(keys(0..6000).iter().all(|key| run.contains(*key).unwrap()));
        let kept = Run::open_all(folder.path()).unwrap();
        assert_eq!(kept.len(), 1, "the parts are gone");
    }

    #[test]
    fn damage_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let run = write(folder.path(), 0..300);
        let mut bytes = fs::read(&run.path).unwrap();
        bytes[70] ^= 1;
        fs::write(&run.path, &bytes).unwrap();
        assert!(Run::open(&run.path).is_err());
        fs::write(&run.path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(Run::open(&run.path).is_err());
    }

    #[test]
    fn an_empty_run_is_a_run() {
        let folder = tempfile::tempdir().unwrap();
        let run = Run::write(folder.path(), (0, 1), 5, 0, std::iter::empty()).unwrap();
        assert!(!run.contains(7).unwrap());
    }
}
