//! The handle of the stream: what the rest of the code sees of it, and which survives its actors' restarts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::cursor::Cursor;
use super::session::Failure;
use super::{StreamOptions, Topics};
use crate::actor::supervisor::{Restarts, Supervised};

/// How long a stop waits for a Kafka that is away.
const AWAY: Duration = Duration::from_secs(3);

/// What one of the stream's two readers publishes.
#[derive(Debug)]
pub struct Lane {
    /// How far it is delivered; 0 until Kafka has said so.
    pub(super) delivered: watch::Sender<u64>,
    /// Whether it knows how far.
    pub(super) known: watch::Sender<bool>,
    /// Why nothing is delivered, while that is so.
    pub(super) fault: Mutex<Option<String>>,
    pub(super) runs: AtomicU64,
    pub(super) aborts: AtomicU64,
    pub(super) sessions: AtomicU64,
    pub(super) records: AtomicU64,
    pub(super) losses: AtomicU64,
    pub(super) ended: watch::Sender<bool>,
}

impl Default for Lane {
    fn default() -> Self {
        Self {
            delivered: watch::Sender::new(0),
            known: watch::Sender::new(false),
            fault: Mutex::default(),
            runs: AtomicU64::new(0),
            aborts: AtomicU64::new(0),
            sessions: AtomicU64::new(0),
            records: AtomicU64::new(0),
            losses: AtomicU64::new(0),
            ended: watch::Sender::new(false),
        }
    }
}

impl Lane {
    /// The journal's number through which it is delivered.
    pub fn delivered(&self) -> u64 {
        *self.delivered.borrow()
    }

    /// Why nothing is delivered, while that is so.
    pub fn fault(&self) -> Option<String> {
        self.fault.lock().clone()
    }

    /// Transactions that were committed (in mode idempotent: runs that were confirmed).
    pub fn runs(&self) -> u64 {
        self.runs.load(Ordering::Relaxed)
    }

    /// Transactions that were given up and begun again.
    pub fn aborts(&self) -> u64 {
        self.aborts.load(Ordering::Relaxed)
    }

    /// Sessions that were opened: the first, and one after each failure.
    pub fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::Relaxed)
    }

    /// Records that went out.
    pub fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    /// How often Kafka had forgotten what it had confirmed.
    pub fn losses(&self) -> u64 {
        self.losses.load(Ordering::Relaxed)
    }

    /// Notes what a session found: how far Kafka says it is delivered.
    pub(super) fn opened(&self, name: &str, next: u64) {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        let before = self.delivered();
        if *self.known.borrow() && next < before {
            self.losses.fetch_add(1, Ordering::Relaxed);
            log::error!(
                "Kafka had confirmed {name} through {before} and now knows them through {next}: what it lost is sent again"
            );
        }
        self.delivered.send_replace(next);
        self.known.send_replace(true);
    }

    pub(super) fn confirm(&self, next: u64, records: u64) {
        self.runs.fetch_add(1, Ordering::Relaxed);
        self.records.fetch_add(records, Ordering::Relaxed);
        self.delivered.send_replace(next);
        self.well();
    }

    /// Nothing is wrong any more.
    pub(super) fn well(&self) {
        if self.fault.lock().take().is_some() {
            log::info!("the stream goes on");
        }
    }

    /// Notes a failed run; true when a new session is needed.
    pub(super) fn failed(&self, name: &str, failure: &Failure) -> bool {
        self.aborts.fetch_add(1, Ordering::Relaxed);
        match failure {
            // What is refused goes another way at once.
            Failure::Refused(_) => false,
            Failure::Aborted(why) => {
                self.report(name, why);
                false
            }
            Failure::Lost(why) => {
                self.report(name, why);
                true
            }
        }
    }

    pub(super) fn report(&self, name: &str, why: &dyn std::fmt::Display) {
        let mut fault = self.fault.lock();
        let why = why.to_string();
        // Said once, and again when the reason is another; health has it all the time.
        if fault.as_ref() != Some(&why) {
            log::warn!("the stream of {name} waits, and is tried again: {why}");
        }
        *fault = Some(why);
    }
}

/// What the actors publish, and what outlives them.
#[derive(Debug)]
pub(super) struct Shared {
    pub options: StreamOptions,
    pub events: Lane,
    pub aggregates: Lane,
    /// The cursor of the events with its books, as it is in Kafka.
    pub cursor: ArcSwap<Cursor>,
    pub dead_letters: AtomicU64,
    /// How often topics had gone that were there before.
    pub topics_gone: AtomicU64,
    pub stop: watch::Sender<bool>,
    /// The journal's end when the stream was started.
    pub opened_at: u64,
}

impl Shared {
    /// Notes that a reader, having been at work before, found topics missing: whoever makes them anew, the other reader has
    /// lost what it had in them too, and is to look by opening a new session.
    pub fn miss_topics(&self, lane: &Lane) {
        if *lane.known.borrow() {
            self.topics_gone.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The handle of the stream.
#[derive(Clone)]
pub struct StreamHandle {
    pub(super) shared: Arc<Shared>,
    pub(super) publisher: Supervised<super::publisher::Publisher>,
    pub(super) aggregates: Supervised<super::aggregate::Aggregates>,
}

impl StreamHandle {
    /// How it is kept.
    pub fn options(&self) -> &StreamOptions {
        &self.shared.options
    }

    /// Its topics.
    pub fn topics(&self) -> Topics {
        Topics::new(&self.shared.options.topic_prefix)
    }

    /// The reader that hands on events.
    pub fn events(&self) -> &Lane {
        &self.shared.events
    }

    /// The reader that hands on aggregates.
    pub fn aggregates(&self) -> &Lane {
        &self.shared.aggregates
    }

    /// Records that were refused and went to the dead letters, since the start.
    pub fn dead_letters(&self) -> u64 {
        self.shared.dead_letters.load(Ordering::Relaxed)
    }

    /// The cursor of the events as it is in Kafka, with the books of what is delivered. Without a journal's name until
    /// Kafka has told.
    pub fn books(&self) -> Arc<Cursor> {
        self.shared.cursor.load_full()
    }

    /// Waits until Kafka has told how far the events are delivered; false when it does not in time.
    pub async fn known(&self, deadline: Duration) -> bool {
        let mut known = self.shared.events.known.subscribe();
        tokio::time::timeout(deadline, known.wait_for(|known| *known)).await.is_ok()
    }

    /// Waits until all events before `seq` are delivered.
    pub async fn delivered_through(&self, seq: u64) {
        // The sender lives as long as this handle.
        let _ = self.shared.events.delivered.subscribe().wait_for(|delivered| *delivered >= seq).await;
    }

    /// Waits until the aggregates of everything before `seq` are delivered.
    pub async fn aggregated_through(&self, seq: u64) {
        let _ = self.shared.aggregates.delivered.subscribe().wait_for(|delivered| *delivered >= seq).await;
    }

    /// How often an actor was made anew, after panics and after failures.
    pub fn restarts_by_cause(&self) -> (u64, u64) {
        let both = [self.publisher.restarts(), self.aggregates.restarts()];
        let sum = |read: fn(&Restarts) -> &AtomicU64| both.iter().map(|r| read(r).load(Ordering::Relaxed)).sum();
        (sum(|restarts| &restarts.panicked), sum(|restarts| &restarts.failed))
    }

    /// Delivers what the (closed) journal still has, and ends. What is not done in time waits for the next start: it is in
    /// the journal.
    pub async fn stop(&self, deadline: Duration) {
        self.shared.stop.send_replace(true);
        // While Kafka is away there is little to wait for.
        let away = self.events().fault().or_else(|| self.aggregates().fault()).is_some();
        let deadline = if away { deadline.min(AWAY) } else { deadline };
        let ended = async {
            for lane in [&self.shared.events, &self.shared.aggregates] {
                let _ = lane.ended.subscribe().wait_for(|ended| *ended).await;
            }
        };
        if tokio::time::timeout(deadline, ended).await.is_err() {
            log::warn!("the stream did not finish within {} s; the next start goes on where it is", deadline.as_secs());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kafka_that_forgets_is_noticed_and_one_that_begins_is_not() {
        let lane = Lane::default();
        lane.opened("events", 0);
        lane.confirm(20, 20);
        lane.opened("events", 20);
        lane.opened("events", 25);
        assert_eq!((lane.losses(), lane.sessions(), lane.delivered()), (0, 3, 25));
        lane.opened("events", 5);
        assert_eq!((lane.losses(), lane.delivered()), (1, 5));
    }

    #[test]
    fn a_fault_stands_until_a_run_succeeds() {
        let lane = Lane::default();
        assert!(!lane.failed("events", &Failure::Aborted("slow".into())));
        assert_eq!(lane.fault().as_deref(), Some("slow"));
        assert!(lane.failed("events", &Failure::Lost("gone".into())));
        assert!(!lane.failed("events", &Failure::Refused(Vec::new())));
        assert_eq!((lane.fault().as_deref(), lane.aborts()), (Some("gone"), 3));
        lane.confirm(1, 1);
        assert_eq!(lane.fault(), None);
    }
}
