//! The journal: the one log that everything downstream reads.
//!
//! [`Journal`] is the handle. [`Journal::append`] hands a request's [`Batch`] to the writer's thread, which drops
//! duplicates, assigns visits, and writes all waiting batches as one checksummed block (`block`); the answer comes when
//! the block is as durable as the configuration asks. [`Reader`]s follow with a cursor of their own. The dedup index,
//! open visits and totals are the writer's alone; a checkpoint and the entries behind it bring them back after a crash.
//! A [`Gatherer`] is one HTTP thread's way in; [`export`] and [`Journal::latest`] are ways out for people.

mod block;
mod checkpoint;
mod dedup;
mod disk;
pub mod export;
mod gather;
mod reader;
mod recovery;
mod run;
mod search;
mod totals;
mod writer;

#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use crate::actor::admission::{Admission, Overloaded, Permit};
use crate::clock::{Clock, DAY, MINUTE, UnixMillis};
use crate::event::Batch;

pub use gather::Gatherer;
pub use reader::{Chunk, Reader};
pub use recovery::Recovery;
pub use totals::{SiteTotals, Totals};

/// When an event is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// Once it is in the writer's queue: the fastest, and lost when the process dies within the next milliseconds.
    Received,
    /// Once the operating system has it: survives the death of the process, not of the machine.
    #[default]
    Written,
    /// Once the disk has it: survives power loss.
    Synced,
}

impl Durability {
    /// The word in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Durability::Received => "received",
            Durability::Written => "written",
            Durability::Synced => "synced",
        }
    }
}

/// How a journal is kept.
#[derive(Clone, Debug)]
pub struct JournalOptions {
    /// When events are acknowledged.
    pub durability: Durability,
    /// Bytes after which a new segment begins.
    pub segment_bytes: u64,
    /// Bytes the journal may take on disk.
    pub max_bytes: u64,
    /// Bytes of the disk to leave free.
    pub min_free_bytes: u64,
    /// How long entries are kept after every reader is done with them.
    pub retention: UnixMillis,
    /// How long client ids are remembered.
    pub dedup_window: UnixMillis,
    /// Silence that ends a visit.
    pub visit_timeout: UnixMillis,
    /// Visits open at once.
    pub max_visits: usize,
    /// Sites counted.
    pub max_sites: usize,
    /// Batches that may wait for the writer.
    pub queue_batches: usize,
    /// Bytes of requests that may be in the server at once, body and waiting events.
    pub queue_bytes: usize,
}

impl Default for JournalOptions {
    fn default() -> Self {
        Self {
            durability: Durability::Written,
            segment_bytes: 32 << 20,
            max_bytes: 64 << 30,
            min_free_bytes: 64 << 20,
            retention: 7 * DAY,
            dedup_window: DAY,
            visit_timeout: 30 * MINUTE,
            max_visits: 500_000,
            max_sites: 1000,
            queue_batches: 10_000,
            queue_bytes: 64 << 20,
        }
    }
}

/// Why the journal cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk.
    #[error("journal: {0}")]
    Io(#[from] io::Error),
    /// Files that do not fit together.
    #[error("journal: {0}")]
    Damaged(String),
}

/// Why a batch was not appended. Nothing of it is in the journal, and the client may send it again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Too much waits already.
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
    /// The disk is full, or the journal's share of it.
    #[error("the journal cannot be written: {0}")]
    Unavailable(String),
    /// The server stops.
    #[error("the server is shutting down")]
    Closed,
}

/// What became of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    /// Events that are now in the journal.
    pub accepted: u32,
    /// Events that were there before.
    pub duplicates: u32,
    /// Indexes of events of sites beyond the configured number.
    pub too_many_sites: Vec<u32>,
    /// The sequence number after the last entry.
    pub end: u64,
}

/// Numbers for the metrics; all are read without asking the writer.
#[derive(Debug, Default)]
pub struct JournalStats {
    /// Entries appended since the start.
    pub entries: AtomicU64,
    /// Blocks (group commits) written since the start.
    pub blocks: AtomicU64,
    /// Bytes written since the start.
    pub bytes: AtomicU64,
    /// Bytes on disk.
    pub disk_bytes: AtomicU64,
    /// Segments on disk.
    pub segments: AtomicU64,
    /// Sequence number of the oldest entry on disk.
    pub oldest: AtomicU64,
    /// Keys in the dedup index.
    pub dedup_keys: AtomicU64,
    /// Visits open.
    pub visits: AtomicU64,
    /// Visits closed early for want of room.
    pub visits_evicted: AtomicU64,
    /// Group commits that failed.
    pub failures: AtomicU64,
}

/// Takes the answers to a message's batches, in their order.
type Reply = oneshot::Sender<Vec<Result<Appended, AppendError>>>;

enum Message {
    /// Batches with their permits, which are held until they are written; one answer for each comes back.
    Append {
        batches: Vec<(Batch, Permit)>,
        reply: Option<oneshot::Sender<Vec<Result<Appended, AppendError>>>>,
    },
    Done {
        imported: bool,
        job: dedup::Job,
        run: io::Result<run::Run>,
    },
    Stop(oneshot::Sender<()>),
}

struct Shared {
    folder: PathBuf,
    name: String,
    options: JournalOptions,
    admission: Admission,
    /// The sequence number after the last committed entry.
    committed: watch::Sender<u64>,
    totals: Mutex<(u64, Totals)>,
    pins: Mutex<Vec<Arc<AtomicU64>>>,
    /// Why nothing can be written, while that is so.
    fault: Mutex<Option<String>>,
    stats: JournalStats,
    recovery: Recovery,
}

/// The handle of the journal.
#[derive(Clone)]
pub struct Journal {
    shared: Arc<Shared>,
    tx: mpsc::Sender<Message>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

/// Keeps entries from `Pin::set`'s sequence number on from being deleted.
#[derive(Clone, Debug)]
pub struct Pin(Arc<AtomicU64>);

impl Pin {
    /// Everything before `seq` is durably counted and may go.
    pub fn set(&self, seq: u64) {
        self.0.store(seq, Ordering::Release);
    }
}

impl Journal {
    /// Opens the journal in `folder`, cuts a torn tail, and starts the writer. Its next entry will have at least the
    /// sequence number `at_least`: a store whose cursor is ahead of the journal (which lost its tail with the machine's
    /// power) must not meet the same number twice.
    pub fn open(folder: &Path, options: JournalOptions, clock: Clock, at_least: u64) -> Result<Self, JournalError> {
        let opened = recovery::open(folder, &options, clock.now(), at_least)?;
        let admission = Admission::new(options.queue_batches, options.queue_bytes);
        let (committed, _) = watch::channel(opened.next);
        let shared = Arc::new(Shared {
            folder: folder.to_owned(),
            name: name_of(opened.journal_id),
            options,
            admission,
            committed,
            totals: Mutex::new((opened.next, opened.totals.clone())),
            pins: Mutex::default(),
            fault: Mutex::default(),
            stats: JournalStats::default(),
            recovery: opened.recovery.clone(),
        });
        let (tx, rx) = mpsc::channel();
        let threads = writer::start(opened, shared.clone(), clock, tx.clone(), rx)?;
        Ok(Self { shared, tx, threads: Arc::new(Mutex::new(threads)) })
    }

    /// A share of the ingest budget: let it grow with the request's body, and take a place in the queue before appending.
    pub fn begin(&self) -> Permit {
        self.shared.admission.begin()
    }

    /// A place in the queue at once.
    pub fn admit(&self, bytes: usize) -> Result<Permit, Overloaded> {
        self.shared.admission.admit(bytes)
    }

    /// Appends a batch and waits until it is as durable as configured.
    pub async fn append(&self, batch: Batch, permit: Permit) -> Result<Appended, AppendError> {
        let (reply, answer) = match self.shared.options.durability {
            Durability::Received => {
                // Nobody will hear of a failure later, so one that is known already is told now.
                if let Some(fault) = self.fault() {
                    return Err(AppendError::Unavailable(fault));
                }
                (None, Ok(Appended { accepted: batch.entries.len() as u32, ..Appended::default() }))
            }
            _ => {
                let (reply, answer) = oneshot::channel();
                (Some(reply), Err(answer))
            }
        };
        let batches = vec![(batch, permit)];
        self.tx.send(Message::Append { batches, reply }).map_err(|_| AppendError::Closed)?;
        match answer {
            Ok(appended) => Ok(appended),
            Err(answer) => answer.await.ok().and_then(|mut answers| answers.pop()).unwrap_or(Err(AppendError::Closed)),
        }
    }

    /// A way to append for one thread, which waits and wakes less often under load.
    pub fn gatherer(&self) -> Gatherer {
        Gatherer::new(self.clone())
    }

    /// A reader from `next` on.
    pub fn reader(&self, next: u64) -> Reader {
        Reader::new(self.shared.folder.clone(), Some(self.shared.committed.subscribe()), next)
    }

    /// Keeps entries from `seq` on until the pin moves.
    pub fn pin(&self, seq: u64) -> Pin {
        let pin = Arc::new(AtomicU64::new(seq));
        self.shared.pins.lock().push(pin.clone());
        Pin(pin)
    }

    /// The sequence number after the last committed entry.
    pub fn end(&self) -> u64 {
        *self.shared.committed.borrow()
    }

    /// Calls `each` with a visitor's latest events, newest first. Blocks on the disk.
    pub fn latest(
        &self,
        visitor: u64,
        limit: usize,
        each: impl FnMut(u64, &crate::event::Event<'_>),
    ) -> Result<(), JournalError> {
        Ok(search::latest(&self.shared.folder, visitor, self.end(), limit, each)?)
    }

    /// A short name of this journal, which makes its sequence numbers unique among journals.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Totals by site, through the sequence number that comes with them.
    pub fn totals(&self) -> (u64, Totals) {
        self.shared.totals.lock().clone()
    }

    /// What the last group commit failed of, until one succeeds.
    pub fn fault(&self) -> Option<String> {
        let ended = || {
            let ended = self.threads.lock().iter().any(JoinHandle::is_finished);
            ended.then(|| String::from("its writer has ended; the log says why, and a restart is needed"))
        };
        self.shared.fault.lock().clone().or_else(ended)
    }

    /// Numbers for the metrics.
    pub fn stats(&self) -> &JournalStats {
        &self.shared.stats
    }

    /// The queue's budget.
    pub fn admission(&self) -> &Admission {
        &self.shared.admission
    }

    /// What opening it found.
    pub fn recovery(&self) -> &Recovery {
        &self.shared.recovery
    }

    /// How it is kept.
    pub fn options(&self) -> &JournalOptions {
        &self.shared.options
    }

    /// Writes what waits, then a checkpoint, and ends the writer. Appends after it fail with [`AppendError::Closed`].
    pub async fn stop(&self) {
        let (done, wait) = oneshot::channel();
        if self.tx.send(Message::Stop(done)).is_ok() {
            let _ = wait.await;
        }
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            if thread.join().is_err() {
                log::error!("the journal's thread had panicked");
            }
        }
    }
}

/// The first half of a journal's id, in hex.
fn name_of(journal_id: [u8; 16]) -> String {
    journal_id[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name of a journal that nobody has open.
pub fn name_in(folder: &Path) -> Result<String, JournalError> {
    let Some(base) = block::list(folder)?.first().copied() else { return Ok(name_of([0; 16])) };
    let header = block::SegmentHeader::read(&std::fs::File::open(block::path_of(folder, base))?)?;
    let header = header.ok_or_else(|| JournalError::Damaged(format!("segment {base} has no valid header")))?;
    Ok(name_of(header.journal_id))
}
