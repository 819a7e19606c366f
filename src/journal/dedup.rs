//! The dedup index: which event ids were accepted before.
//!
//! A small log-structured set: new keys gather in memory, a full memory table is frozen and written as a sorted [`Run`]
//! in the background, and runs of like size are merged, so that a probe meets few filters. The journal is its log: keys
//! that were only in memory come back from the journal's checkpoint and the entries after it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hashbrown::HashSet;

use super::run::{self, Run};
use crate::clock::UnixMillis;

/// Keys in memory before they are written as a run; 9 MB.
const TABLE: usize = 1 << 18;
/// So many runs of like size become one.
const FAN_IN: usize = 8;
/// Larger runs are not merged further, so that they can expire.
const LARGEST_MERGE: u64 = 64 << 20;

/// Work that the index wants done on another thread.
#[derive(Debug)]
pub enum Job {
    /// Write a frozen table as a run.
    Freeze {
        /// The keys.
        table: Arc<HashSet<u128>>,
        /// Journal sequence numbers they come from.
        covers: (u64, u64),
        /// When the newest was received.
        newest: UnixMillis,
    },
    /// Merge runs.
    Merge(Vec<Arc<Run>>),
}

impl Job {
    /// Does it. Blocks on the disk.
    pub fn run(&self, folder: &Path) -> io::Result<Run> {
        match self {
            Job::Freeze { table, covers, newest } => {
                let mut keys: Vec<u128> = table.iter().copied().collect();
                keys.sort_unstable();
                Run::write(folder, *covers, *newest, keys.len(), keys.into_iter().map(Ok))
            }
            Job::Merge(runs) => run::merge(folder, runs),
        }
    }
}

/// The keys of accepted events.
#[derive(Debug)]
pub struct DedupIndex {
    folder: PathBuf,
    /// How long a key is remembered at least; `None` is for ever.
    window: Option<UnixMillis>,
    table: HashSet<u128>,
    table_from: u64,
    newest: UnixMillis,
    frozen: Option<Arc<HashSet<u128>>>,
    runs: Vec<Arc<Run>>,
    merging: bool,
}

impl DedupIndex {
    /// Opens the index in `folder`.
    pub fn open(folder: PathBuf, window: Option<UnixMillis>) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        let runs: Vec<_> = Run::open_all(&folder)?.into_iter().map(Arc::new).collect();
        let table_from = runs.iter().map(|run| run.covers.1).max().unwrap_or(0);
        Ok(Self { folder, window, table: HashSet::new(), table_from, newest: 0, frozen: None, runs, merging: false })
    }

    /// The keys that are in memory only, for the journal's checkpoint.
    pub fn in_memory(&self) -> impl Iterator<Item = u128> {
        self.table.iter().chain(self.frozen.iter().flat_map(|table| table.iter())).copied()
    }

    /// Whether a key is there.
    pub fn contains(&self, key: u128) -> io::Result<bool> {
        if self.table.contains(&key) || self.frozen.as_ref().is_some_and(|table| table.contains(&key)) {
            return Ok(true);
        }
        for run in self.runs.iter().rev() {
            if run.contains(key)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Adds a key; `false` if it was there.
    pub fn insert(&mut self, key: u128, now: UnixMillis) -> io::Result<bool> {
        if self.contains(key)? {
            return Ok(false);
        }
        self.table.insert(key);
        self.newest = self.newest.max(now);
        Ok(true)
    }

    /// Takes up a key from the journal, without asking whether it is known.
    pub fn replay(&mut self, key: u128, received: UnixMillis) {
        self.table.insert(key);
        self.newest = self.newest.max(received);
    }

    /// Takes a key back whose event could not be written.
    pub fn remove(&mut self, key: u128) {
        self.table.remove(&key);
    }

    /// Work to be done, if there is any. `next` is the journal's next sequence number; all its keys are inserted.
    pub fn job(&mut self, next: u64) -> Option<Job> {
        if self.table.len() >= TABLE && self.frozen.is_none() {
            return self.freeze(next);
        }
        if self.merging {
            return None;
        }
        let mut sizes: Vec<(u32, usize)> = Vec::new();
        for run in self.runs.iter().filter(|run| run.len() < LARGEST_MERGE) {
            let class = run.len().max(1).ilog2() / FAN_IN.ilog2();
            match sizes.iter_mut().find(|(c, _)| *c == class) {
                Some((_, count)) => *count += 1,
                None => sizes.push((class, 1)),
            }
        }
        let (class, _) = sizes.into_iter().find(|(_, count)| *count >= FAN_IN)?;
        let parts: Vec<_> = self
            .runs
            .iter()
            .filter(|run| run.len() < LARGEST_MERGE && run.len().max(1).ilog2() / FAN_IN.ilog2() == class)
            .cloned()
            .collect();
        self.merging = true;
        Some(Job::Merge(parts))
    }

    /// The keys in memory as a job, however few; for a clean stop.
    pub fn freeze(&mut self, next: u64) -> Option<Job> {
        if self.table.is_empty() || self.frozen.is_some() {
            return None;
        }
        let table = Arc::new(std::mem::take(&mut self.table));
        let covers = (self.table_from, next);
        self.frozen = Some(table.clone());
        self.table_from = next;
        Some(Job::Freeze { table, covers, newest: self.newest })
    }

    /// Takes in what a job made.
    pub fn done(&mut self, job: &Job, run: Run) {
        match job {
            Job::Freeze { .. } => self.frozen = None,
            Job::Merge(parts) => {
                self.runs.retain(|run| !parts.iter().any(|part| Arc::ptr_eq(part, run)));
                for part in parts {
                    part.remove();
                }
                self.merging = false;
            }
        }
        self.runs.push(Arc::new(run));
        self.runs.sort_by_key(|run| run.covers);
    }

    /// Notes that a job could not be done. A frozen table goes on being searched, in memory, and is tried again.
    pub fn failed(&mut self, job: &Job) {
        match job {
            Job::Freeze { table, covers, .. } => {
                let mut table = HashSet::clone(table);
                table.extend(self.table.drain());
                self.table = table;
                self.table_from = covers.0;
                self.frozen = None;
            }
            Job::Merge(_) => self.merging = false,
        }
    }

    /// Forgets runs whose keys are all older than the window.
    pub fn expire(&mut self, now: UnixMillis) {
        let Some(window) = self.window else { return };
        self.runs.retain(|run| {
            let keep = run.newest + window >= now;
            if !keep {
                run.remove();
            }
            keep
        });
    }

    /// Keys it holds.
    pub fn len(&self) -> u64 {
        let memory = self.table.len() + self.frozen.as_ref().map_or(0, |table| table.len());
        memory as u64 + self.runs.iter().map(|run| run.len()).sum::<u64>()
    }

    /// Where its runs are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::HOUR;
    use xxhash_rust::xxh3::xxh3_128;

    fn key(i: u64) -> u128 {
        xxh3_128(&i.to_le_bytes())
    }

    fn work(index: &mut DedupIndex, next: u64) {
        while let Some(job) = index.job(next) {
            let run = job.run(index.folder()).unwrap();
            index.done(&job, run);
        }
    }

    #[test]
    fn keys_are_found_in_memory_frozen_and_on_disk() {
        let folder = tempfile::tempdir().unwrap();
        let mut index = DedupIndex::open(folder.path().to_owned(), Some(24 * HOUR)).unwrap();
        assert!(index.insert(key(1), 0).unwrap());
        assert!(!index.insert(key(1), 0).unwrap());
        let job = index.freeze(1).unwrap();
        assert!(!index.insert(key(1), 0).unwrap());
        assert_eq!(index.in_memory().count(), 1, "not yet on disk");
        let run = job.run(index.folder()).unwrap();
        index.done(&job, run);
        assert!(!index.insert(key(1), 0).unwrap());
        assert_eq!(index.in_memory().count(), 0);
        let mut again = DedupIndex::open(folder.path().to_owned(), Some(24 * HOUR)).unwrap();
        assert!(!again.insert(key(1), 0).unwrap());
        assert!(again.insert(key(2), 0).unwrap());
    }

    #[test]
    fn many_small_runs_become_few() {
        let folder = tempfile::tempdir().unwrap();
        let mut index = DedupIndex::open(folder.path().to_owned(), None).unwrap();
        for i in 0..100u64 {
            for k in 0..10 {
                assert!(index.insert(key(i * 10 + k), 0).unwrap());
            }
            let job = index.freeze((i + 1) * 10).unwrap();
            let run = job.run(index.folder()).unwrap();
            index.done(&job, run);
            work(&mut index, (i + 1) * 10);
        }
        assert!(index.runs.len() < 3 * FAN_IN, "{}", index.runs.len());
        assert_eq!(index.len(), 1000);
        for k in 0..1000 {
            assert!(!index.insert(key(k), 0).unwrap());
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), index.runs.len());
    }

    #[test]
    fn old_runs_expire_and_imports_do_not() {
        for (window, remembered) in [(Some(24 * HOUR), false), (None, true)] {
            let folder = tempfile::tempdir().unwrap();
            let mut index = DedupIndex::open(folder.path().to_owned(), window).unwrap();
            index.insert(key(1), 0).unwrap();
            let job = index.freeze(1).unwrap();
            let run = job.run(index.folder()).unwrap();
            index.done(&job, run);
            index.expire(24 * HOUR);
            assert!(!index.insert(key(1), 24 * HOUR).unwrap(), "a day is remembered whole");
            index.expire(25 * HOUR);
            assert_eq!(!index.insert(key(1), 25 * HOUR).unwrap(), remembered);
        }
    }

    #[test]
    fn a_failed_job_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut index = DedupIndex::open(folder.path().to_owned(), None).unwrap();
        index.insert(key(1), 0).unwrap();
        let job = index.freeze(1).unwrap();
        index.insert(key(2), 0).unwrap();
        index.failed(&job);
        assert!(!index.insert(key(1), 0).unwrap());
        assert!(!index.insert(key(2), 0).unwrap());
        assert_eq!(index.in_memory().count(), 2);
    }
}
