//! The access log: a line of JSON for each request that passed the gateway.
//!
//! A request appends its line to a buffer in memory and goes on; a thread of its own writes what has gathered in one call.
//! The buffer is bounded: when the disk is slower than the traffic, lines are dropped and counted, and no request waits.
//! A line has no address of a client, no query and no header's value but the request's id.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::mem;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use serde::{Serialize, Serializer};

use super::options::AccessLog as Options;
use crate::clock::{UnixMillis, rfc3339};

/// Bytes of lines that may wait.
const CAPACITY: usize = 4 << 20;
/// Bytes that are written at once, sooner than after [`LINGER`].
const BATCH: usize = 64 << 10;
/// How long lines gather.
const LINGER: Duration = Duration::from_millis(50);
/// Characters of a path that are logged.
const MAX_PATH: usize = 1024;

/// What is logged of a request.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Entry<'a> {
    /// When it came.
    #[serde(rename = "time", serialize_with = "as_rfc3339")]
    pub at: UnixMillis,
    /// Its id.
    pub request_id: &'a str,
    /// Of its trace, 32 hexadecimal digits.
    pub trace_id: &'a str,
    /// As it was sent.
    pub method: &'a str,
    /// Name of its route, if it found one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<&'a str>,
    /// In its canonical form, without the query; empty where it has none.
    #[serde(serialize_with = "shortened")]
    pub path: &'a str,
    /// Of the answer; 0 when the client left before there was one.
    pub status: u16,
    /// Of the request's body.
    pub bytes_in: u64,
    /// Of the answer's body, as it was sent.
    pub bytes_out: u64,
    /// From the end of its head to the end of the answer.
    pub duration_us: u64,
    /// Name of the upstream that answered, or was asked last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<&'a str>,
    /// The target's place among the upstream's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<usize>,
    /// Whether it went to the route's canary.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub canary: bool,
    /// How often it was tried again.
    pub retries: u32,
    /// What answered in the upstream's place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Used>,
    /// Stable code of an error that the gateway made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'a str>,
    /// Why the last target could not be reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<&'a str>,
}

/// What answers in an upstream's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Used {
    /// Its last good answer.
    Stale,
    /// Another upstream.
    Upstream,
}

fn as_rfc3339<S: Serializer>(at: &UnixMillis, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(*at))
}

fn shortened<S: Serializer>(path: &&str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(path.get(..MAX_PATH).unwrap_or(path))
}

/// The log, for all who write to it. Clones are the same log.
#[derive(Clone, Debug)]
pub struct AccessLog(Arc<Shared>);

/// What has become of lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Written.
    pub written: u64,
    /// Dropped, because the buffer was full or writing failed.
    pub dropped: u64,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Tells the writer that there is something to do.
    work: Condvar,
    /// Tells who waits that something was done.
    done: Condvar,
    written: AtomicU64,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    buffer: Vec<u8>,
    /// In the buffer.
    lines: u64,
    /// Whether lines are being written.
    is_writing: bool,
    reopen: bool,
    stop: bool,
    stopped: bool,
}

/// Where lines go.
trait Sink: Send {
    fn write(&mut self, lines: &[u8]) -> io::Result<()>;

    fn reopen(&mut self) -> io::Result<()>;
}

struct Stderr;

impl Sink for Stderr {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        io::stderr().lock().write_all(lines)
    }

    fn reopen(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct LogFile {
    path: PathBuf,
    file: File,
    /// Whether a line may have been written in part.
    is_torn: bool,
}

impl LogFile {
    fn open(path: PathBuf) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        Ok(Self { path, file, is_torn: false })
    }
}

impl Sink for LogFile {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.is_torn {
            self.file.write_all(b"\n")?;
        }
        self.is_torn = true;
        self.file.write_all(lines)?;
        self.is_torn = false;
        Ok(())
    }

    fn reopen(&mut self) -> io::Result<()> {
        *self = Self::open(self.path.clone())?;
        Ok(())
    }
}

thread_local! {
    /// Lines are put together outside the lock.
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl AccessLog {
    /// Opens what the options name and starts the writer; `None` where nothing is logged.
    pub fn start(options: &Options) -> io::Result<Option<Self>> {
        match options {
            Options::Off => Ok(None),
            Options::Stderr => Self::start_with(Stderr).map(Some),
            Options::File(path) => Self::start_with(LogFile::open(path.clone())?).map(Some),
        }
    }

    fn start_with(sink: impl Sink + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let writer = shared.clone();
        thread::Builder::new().name("access-log".into()).spawn(move || run(&writer, sink))?;
        Ok(Self(shared))
    }

    /// Logs a request, or counts it as dropped. It never waits for the disk.
    pub fn log(&self, entry: &Entry<'_>) {
        LINE.with_borrow_mut(|line| {
            line.clear();
            // Into memory, and of texts and numbers: it cannot fail.
            if serde_json::to_writer(&mut *line, entry).is_ok() {
                line.push(b'\n');
                self.append(line);
            }
        });
    }

    fn append(&self, line: &[u8]) {
        let mut state = self.0.state.lock();
        let before = state.buffer.len();
        if state.stop || before + line.len() > CAPACITY {
            drop(state);
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.buffer.extend_from_slice(line);
        state.lines += 1;
        let after = state.buffer.len();
        drop(state);
        // The first is waited for, and then a batch; those between wake nobody.
        if before == 0 || (before < BATCH && after >= BATCH) {
            self.0.work.notify_one();
        }
    }

    /// Closes the file and opens its path anew, as the program that rotates logs asks for. The old one stays in use where
    /// the path cannot be opened.
    pub fn reopen(&self) {
        self.0.state.lock().reopen = true;
        self.0.work.notify_one();
    }

    /// What has become of lines so far.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts { written: read(&self.0.written), dropped: read(&self.0.dropped) }
    }

    /// Takes no more lines and waits until those that were taken are written, at most so long; whether they are. It blocks,
    /// so it is not for a thread that serves requests.
    pub fn stop(&self, within: Duration) -> bool {
        let mut state = self.0.state.lock();
        state.stop = true;
        self.0.work.notify_one();
        !self.0.done.wait_while_for(&mut state, |state| !state.stopped, within).timed_out()
    }

    /// Waits until everything that was logged and asked for is done.
    #[cfg(test)]
    fn settle(&self) {
        let mut state = self.0.state.lock();
        let busy = |state: &mut State| state.lines > 0 || state.is_writing || state.reopen;
        assert!(!self.0.done.wait_while_for(&mut state, busy, Duration::from_secs(20)).timed_out());
    }
}

/// The writer.
fn run(shared: &Shared, mut sink: impl Sink) {
    let mut lines = Vec::new();
    let mut is_failing = false;
    loop {
        let mut state = shared.state.lock();
        shared.work.wait_while(&mut state, |state| state.buffer.is_empty() && !state.stop && !state.reopen);
        shared.work.wait_while_for(
            &mut state,
            |state| state.buffer.len() < BATCH && !state.stop && !state.reopen,
            LINGER,
        );
        if state.stop && state.buffer.is_empty() {
            state.stopped = true;
            drop(state);
            shared.done.notify_all();
            return;
        }
        // The two buffers take turns, so none is allocated anew.
        lines.clear();
        mem::swap(&mut lines, &mut state.buffer);
        let count = mem::take(&mut state.lines);
        let reopen = mem::take(&mut state.reopen);
        state.is_writing = true;
        drop(state);
        // What was logged before is the old file's.
        let wrote = if lines.is_empty() { Ok(()) } else { sink.write(&lines) };
        let counter = if wrote.is_ok() { &shared.written } else { &shared.dropped };
        counter.fetch_add(count, Ordering::Relaxed);
        match wrote {
            Err(error) if !is_failing => {
                log::error!("the access log cannot be written, and its lines are dropped: {error}");
                is_failing = true;
            }
            Ok(()) if is_failing && count > 0 => {
                log::info!("the access log can be written again");
                is_failing = false;
            }
            _ => {}
        }
        if reopen && let Err(error) = sink.reopen() {
            log::error!("the access log cannot be opened anew, and goes on in the old file: {error}");
        }
        shared.state.lock().is_writing = false;
        shared.done.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn entry<'a>(path: &'a str) -> Entry<'a> {
        Entry {
            at: 1_700_000_000_123,
            request_id: "id-1",
            trace_id: "00000000000000000000000000000abc",
            method: "GET",
            route: Some("users"),
            path,
            status: 200,
            bytes_in: 1,
            bytes_out: 2,
            duration_us: 3,
            upstream: Some("users"),
            target: Some(0),
            canary: false,
            retries: 1,
            fallback: Some(Used::Stale),
            error: None,
            cause: None,
        }
    }

    /// Writes when it is told to, and fails when it is told to.
    struct Gated {
        results: mpsc::Receiver<io::Result<()>>,
        written: Arc<Mutex<Vec<u8>>>,
        calls: Arc<AtomicU64>,
    }

    impl Sink for Gated {
        fn write(&mut self, lines: &[u8]) -> io::Result<()> {
            self.calls.fetch_add(1, Ordering::SeqCst);
            self.results.recv().unwrap_or(Ok(()))?;
            self.written.lock().extend_from_slice(lines);
            Ok(())
        }

        fn reopen(&mut self) -> io::Result<()> {
            Err(io::Error::other("no"))
        }
    }

    struct Gate {
        open: mpsc::Sender<io::Result<()>>,
        written: Arc<Mutex<Vec<u8>>>,
        calls: Arc<AtomicU64>,
        log: AccessLog,
    }

    impl Gate {
        fn new() -> Self {
            let (open, results) = mpsc::channel();
            let (written, calls): (Arc<Mutex<Vec<u8>>>, Arc<AtomicU64>) = Default::default();
            let sink = Gated { results, written: written.clone(), calls: calls.clone() };
            Self { open, written, calls, log: AccessLog::start_with(sink).unwrap() }
        }

        fn is_writing(&self) -> bool {
            self.log.0.state.lock().is_writing
        }
    }

    #[test]
    fn a_line_says_what_happened_and_nothing_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        std::fs::write(&path, "before\n").unwrap();
        let log = AccessLog::start(&Options::File(path.clone())).unwrap().unwrap();
        log.log(&entry("/users/7"));
        let long = format!("/{}", "a".repeat(5000));
        log.log(&Entry {
            route: None,
            upstream: None,
            target: None,
            fallback: None,
            error: Some("too_long"),
            cause: None,
            ..entry(&long)
        });
        assert!(log.stop(Duration::from_secs(20)));
        let text = std::fs::read_to_string(&path).unwrap();
        let [before, first, second] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
        assert_eq!(before, "before", "the file is appended to");
        assert_eq!(
            first,
            "{\"time\":\"2023-11-14T22:13:20.123Z\",\"request_id\":\"id-1\",\
             \"trace_id\":\"00000000000000000000000000000abc\",\"method\":\"GET\",\"route\":\"users\",\"path\":\"/users/7\",\
             \"status\":200,\"bytes_in\":1,\"bytes_out\":2,\"duration_us\":3,\"upstream\":\"users\",\"target\":0,\
             \"retries\":1,\"fallback\":\"stale\"}"
        );
        let second: serde_json::Value = serde_json::from_str(second).unwrap();
        assert_eq!(second["path"].as_str().unwrap().len(), MAX_PATH);
        assert!(second["error"] == "too_long" && second.get("route").is_none());
        assert_eq!(log.counts(), Counts { written: 2, dropped: 0 });
        log.log(&entry("/late"));
        assert_eq!(log.counts(), Counts { written: 2, dropped: 1 }, "after the stop");
        assert!(AccessLog::start(&Options::Off).unwrap().is_none());
        assert!(AccessLog::start(&Options::File(folder.path().to_owned())).is_err());
    }

    #[test]
    fn a_file_that_was_moved_away_is_opened_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (path, old) = (folder.path().join("a.log"), folder.path().join("a.log.1"));
        let log = AccessLog::start(&Options::File(path.clone())).unwrap().unwrap();
        log.log(&entry("/1"));
        log.settle();
        std::fs::rename(&path, &old).unwrap();
        log.log(&entry("/2"));
        log.reopen();
        log.settle();
        log.log(&entry("/3"));
        assert!(log.stop(Duration::from_secs(20)));
        let lines = |path| std::fs::read_to_string(path).unwrap().lines().count();
        assert_eq!((lines(&old), lines(&path)), (2, 1));
    }

    #[test]
    fn a_slow_disk_costs_lines_and_no_request_its_time() {
        let gate = Gate::new();
        gate.log.log(&entry("/first"));
        // The writer has taken the first line, and hangs.
        while !gate.is_writing() {
            thread::yield_now();
        }
        let line = serde_json::to_vec(&entry("/x")).unwrap().len() + 1;
        let fit = (CAPACITY / line) as u64;
        for _ in 0..fit + 7 {
            gate.log.log(&entry("/x"));
        }
        assert_eq!(gate.log.counts(), Counts { written: 0, dropped: 7 });
        assert!(!gate.log.stop(Duration::from_millis(1)), "it does not wait longer than it may");
        gate.open.send(Ok(())).unwrap();
        gate.open.send(Ok(())).unwrap();
        assert!(gate.log.stop(Duration::from_secs(20)));
        assert_eq!(gate.log.counts(), Counts { written: 1 + fit, dropped: 7 });
        assert_eq!(gate.calls.load(Ordering::SeqCst), 2, "what gathered is written in one call");
        assert_eq!(gate.written.lock().iter().filter(|byte| **byte == b'\n').count() as u64, 1 + fit);
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_later_lines_are_tried() {
        let gate = Gate::new();
        gate.open.send(Err(io::Error::other("disk full"))).unwrap();
        gate.log.log(&entry("/1"));
        gate.log.settle();
        assert_eq!(gate.log.counts(), Counts { written: 0, dropped: 1 });
        gate.open.send(Ok(())).unwrap();
        gate.log.log(&entry("/2"));
        gate.log.reopen();
        gate.log.settle();
        assert_eq!(gate.log.counts(), Counts { written: 1, dropped: 1 });
    }

    #[test]
    fn many_threads_write_whole_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        let log = AccessLog::start(&Options::File(path.clone())).unwrap().unwrap();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..2000).for_each(|_| log.log(&entry("/a/b"))));
            }
        });
        assert!(log.stop(Duration::from_secs(20)));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
        let counts = log.counts();
        assert_eq!(text.lines().count() as u64, counts.written);
        assert_eq!(counts.written + counts.dropped, 8000);
    }
}
