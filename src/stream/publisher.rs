//! The publisher: the actor that reads the journal into the topic of events.
//!
//! It is one loop: connect and ask Kafka how far it is; then wait for entries, let them gather, deliver them with the new
//! cursor, again and again. What blocks (Kafka's calls, reading the journal) runs off the runtime, one thing at a time.
//! Nothing is queued here: while Kafka is down or slow, entries wait in the journal.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Context, WrapFuture};
use tokio::sync::watch;

use super::handle::Shared;
use super::session::Failure;
use super::worker::{Ran, Worker};
use super::{StreamError, StreamOptions};
use crate::actor::supervisor::{Exit, Life};
use crate::clock::{Clock, Stopwatch};
use crate::journal::{Journal, Pin};

/// The first wait after a failure; it doubles up to [`LONGEST_WAIT`].
pub(super) const SHORTEST_WAIT: Duration = Duration::from_millis(200);
/// The longest wait after a failure.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// What fails after so long a time without a failure fails for the first time.
const CALM: Duration = Duration::from_secs(30);

/// How often it is looked after the topics while there is nothing to send.
pub(super) const LOOK: Duration = Duration::from_secs(15);

/// Runs in a row that may be given up before the session is.
const ABORTS: u32 = 3;

/// What the actor works with.
#[derive(Clone)]
pub(super) struct Parts {
    pub journal: Journal,
    pub clock: Clock,
    pub pin: Pin,
    pub shared: Arc<Shared>,
}

/// The actor.
pub struct Publisher {
    life: Life,
    parts: Parts,
}

impl Publisher {
    pub(super) fn new(life: Life, parts: Parts) -> Self {
        Self { life, parts }
    }
}

impl Actor for Publisher {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        let work = run(self.parts.clone()).into_actor(self).map(|exit, this, ctx| {
            if exit == Exit::Stopped {
                this.parts.shared.events.ended.send_replace(true);
            }
            this.life.ends(exit);
            ctx.stop();
        });
        ctx.spawn(work);
    }
}

async fn run(parts: Parts) -> Exit {
    let Parts { journal, clock, pin, shared } = parts;
    let lane = &shared.events;
    let mut stop = shared.stop.subscribe();
    let mut wait = SHORTEST_WAIT;
    loop {
        let opened = {
            let (options, journal, clock) = (shared.options.clone(), journal.clone(), clock.clone());
            // Before this process has delivered anything, Kafka cannot rightly be further than the journal was.
            let most = (!*lane.known.borrow()).then_some(shared.opened_at);
            blocking(move || Worker::open(&options, &journal, &clock, most)).await
        };
        let mut worker = match opened {
            Ok(worker) => worker,
            Err(StreamError::Interrupted) => return Exit::Failed,
            Err(error) => {
                if matches!(error, StreamError::Topics(_)) {
                    shared.miss_topics(lane);
                }
                lane.report("events", &error);
                if pause(wait, &mut stop).await {
                    return left_over(&journal, lane.delivered());
                }
                wait = (wait * 2).min(LONGEST_WAIT);
                continue;
            }
        };
        if worker.session().made_topics {
            shared.miss_topics(lane);
        }
        let gone = shared.topics_gone.load(Ordering::Relaxed);
        lane.opened("events", worker.cursor().next);
        shared.cursor.store(Arc::new(worker.cursor().clone()));
        pin.set(worker.cursor().next);
        // What was wrong with reaching Kafka is over; what else may be wrong shows with the first run.
        *lane.fault.lock() = None;
        let mut idle_since = Stopwatch::start();
        let mut well = Stopwatch::start();
        let mut aborted = 0;
        loop {
            if worker.reader().caught_up() {
                if *stop.borrow() {
                    discard(worker).await;
                    return Exit::Stopped;
                }
                tokio::select! {
                    _ = worker.reader().ready() => {}
                    _ = stop.wait_for(|stop| *stop) => continue,
                    () = tokio::time::sleep(LOOK) => {
                        let options = shared.options.clone();
                        let looked = blocking(move || {
                            let looked = worker.session().deleted_topic(&options);
                            Ok((worker, looked))
                        });
                        let Ok((back, looked)) = looked.await else { return Exit::Failed };
                        worker = back;
                        match looked {
                            Ok(None) if gone == shared.topics_gone.load(Ordering::Relaxed) => lane.well(),
                            Ok(None) => {
                                discard(worker).await;
                                break;
                            }
                            // A new session makes it anew, and finds out what was in it.
                            Ok(Some(deleted)) => {
                                shared.miss_topics(lane);
                                lane.report("events", &deleted);
                                discard(worker).await;
                                break;
                            }
                            Err(error) => lane.report("events", &error),
                        }
                        continue;
                    }
                }
                let left = shared.options.flush_interval.saturating_sub(idle_since.elapsed());
                pause(left, &mut stop).await;
            }
            let (back, ran) = match blocking(move || {
                let ran = worker.run();
                Ok((worker, ran))
            })
            .await
            {
                Ok(back) => back,
                Err(_) => return Exit::Failed,
            };
            worker = back;
            match ran {
                Ok(Ran { events, dead }) => {
                    let cursor = worker.cursor();
                    shared.cursor.store(Arc::new(cursor.clone()));
                    shared.dead_letters.fetch_add(dead, Ordering::Relaxed);
                    pin.set(cursor.next);
                    lane.confirm(cursor.next, events);
                    wait = SHORTEST_WAIT;
                    aborted = 0;
                    idle_since = Stopwatch::start();
                }
                Err(failure) => {
                    let mut lost = lane.failed("events", &failure);
                    wait = after(wait, &well);
                    well = Stopwatch::start();
                    if !matches!(failure, Failure::Refused(_)) {
                        // What fails again and again may need what only a new session looks after: its topics.
                        aborted += 1;
                        lost |= aborted >= ABORTS;
                        pause(wait, &mut stop).await;
                        wait = (wait * 2).min(LONGEST_WAIT);
                    }
                    if lost {
                        // Its end may block as well.
                        discard(worker).await;
                        break;
                    }
                }
            }
        }
    }
}

/// The wait after a failure, when things were well since then.
pub(super) fn after(wait: Duration, well: &Stopwatch) -> Duration {
    if well.elapsed() > CALM { SHORTEST_WAIT } else { wait }
}

/// Says what a stop leaves to the next start.
fn left_over(journal: &Journal, delivered: u64) -> Exit {
    let left = journal.end().saturating_sub(delivered);
    log::warn!("the stream ends while Kafka cannot be reached; {left} entries wait for the next start");
    Exit::Stopped
}

/// Runs what blocks.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StreamError> + Send + 'static,
) -> Result<T, StreamError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(StreamError::Interrupted))
}

/// Drops what may block in its end.
pub(super) async fn discard<T: Send + 'static>(what: T) {
    let _ = tokio::task::spawn_blocking(move || drop(what)).await;
}

/// Waits, but not when the stream is to stop: then it is true at once.
pub(super) async fn pause(wait: Duration, stop: &mut watch::Receiver<bool>) -> bool {
    tokio::time::timeout(wait, stop.wait_for(|stop| *stop)).await.is_ok()
}

/// Checks what can be checked before the broker is there.
pub(super) fn check(options: &StreamOptions) -> Result<(), StreamError> {
    options.probe()
}
