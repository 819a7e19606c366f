//! One stream of HTTP/2: when its answer has taken long enough, or has not been taken for too long.
//!
//! hyper asks a body for its next piece only when the client's windows have room for it, so a body cannot end itself. Each stream
//! is a task, though, and its task can be: the stream is reset then, and the others of its connection go on.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Poll, ready};
use std::time::Duration;

use tokio::time::Sleep;

use super::connection::ConnectionState;
use crate::clock::{self, Monotonic, Nanos};

/// So many times as long as a client may pause altogether, one answer may wait while others of its connection are taken: a video
/// that is paused beside a page that is read.
const BESIDE: u32 = 4;

tokio::task_local! {
    static STREAM: Rc<Stream>;
}

/// What is known of a stream, by its answer and by its task.
#[derive(Debug)]
pub struct Stream {
    of: Streams,
    /// When its answer has taken long enough.
    deadline: Cell<Option<Nanos>>,
    /// Since when there is a piece of its answer that nobody asks for, as the client takes nothing.
    waits_since: Cell<Option<Nanos>>,
    /// Why it was ended.
    cut: Cell<Option<&'static str>>,
}

/// Spawns the streams of one connection on this thread, each with an eye on it.
#[derive(Clone, Debug)]
pub struct Streams {
    state: ConnectionState,
    clock: Monotonic,
    patience: Duration,
}

impl Streams {
    /// Of a connection whose client may pause for `patience` in what it takes.
    pub fn new(state: ConnectionState, clock: Monotonic, patience: Duration) -> Self {
        Self { state, clock, patience }
    }
}

impl Stream {
    /// The one whose task this is; none outside of HTTP/2.
    pub fn current() -> Option<Rc<Self>> {
        STREAM.try_with(Rc::clone).ok()
    }

    /// When its answer has taken long enough, from now on.
    pub fn until(&self, deadline: Option<Nanos>) {
        self.deadline.set(deadline);
    }

    /// Its answer has a piece that the client may take.
    pub fn offer(&self) {
        self.waits_since.set(Some(self.of.clock.now()));
    }

    /// The piece was taken, or never will be.
    pub fn taken(&self) {
        if self.waits_since.take().is_some() {
            self.of.state.moved(self.of.clock.now());
        }
    }

    /// Why it was ended, if it was.
    pub fn cut(&self) -> Option<&'static str> {
        self.cut.get()
    }

    /// When it is to be ended as things are, and why.
    fn due(&self) -> Option<(Nanos, &'static str)> {
        let late = self.deadline.get().map(|at| (at, "deadline"));
        let waits = self.waits_since.get().map(|since| {
            let moved_at = self.of.state.moved_at();
            (waits_until(since, moved_at, self.of.patience), "not_taken")
        });
        late.into_iter().chain(waits).min_by_key(|(at, _)| *at)
    }
}

/// Until when an answer may wait that does since `since`, on a connection of which anything was taken last at `moved_at`.
fn waits_until(since: Nanos, moved_at: Nanos, patience: Duration) -> Nanos {
    let patience_for = |times: u32| u64::try_from(patience.saturating_mul(times).as_nanos()).unwrap_or(Nanos::MAX);
    let alone = since.max(moved_at).saturating_add(patience_for(1));
    alone.min(since.saturating_add(patience_for(BESIDE)))
}

impl<F: Future + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, task: F) {
        let (deadline, waits_since, cut) = (Cell::new(None), Cell::new(None), Cell::new(None));
        let stream = Rc::new(Stream { of: self.clone(), deadline, waits_since, cut });
        tokio::task::spawn_local(STREAM.scope(stream.clone(), attend(task, stream)));
    }
}

/// Polls a stream to its end, or drops it when it is due.
async fn attend(task: impl Future, stream: Rc<Stream>) {
    let mut task = pin!(task);
    // Most are over before there is a need of one.
    let mut timer: Option<(Nanos, Pin<Box<Sleep>>)> = None;
    poll_fn(move |cx| {
        if task.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        loop {
            let Some((at, why)) = stream.due() else { return Poll::Pending };
            let left = at.saturating_sub(stream.of.clock.now());
            if left == 0 {
                stream.cut.set(Some(why));
                return Poll::Ready(());
            }
            // One that is early finds out that it was, which costs less than to set it with every piece.
            let (_, sleep) = match &mut timer {
                Some(set) if set.0 <= at => set,
                _ => {
                    let end = clock::instant() + Duration::from_nanos(left);
                    timer.insert((at, Box::pin(tokio::time::sleep_until(end))))
                }
            };
            ready!(sleep.as_mut().poll(cx));
            timer = None;
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    #[test]
    fn an_answer_waits_longer_beside_others_and_not_for_ever() {
        let patience = Duration::from_secs(10);
        assert_eq!(waits_until(100 * SECOND, 90 * SECOND, patience), 110 * SECOND);
        assert_eq!(waits_until(100 * SECOND, 105 * SECOND, patience), 115 * SECOND, "another one moved");
        assert_eq!(waits_until(100 * SECOND, 139 * SECOND, patience), 140 * SECOND);
        assert_eq!(waits_until(100 * SECOND, 999 * SECOND, patience), 140 * SECOND);
        assert_eq!(waits_until(1, 2, Duration::MAX), Nanos::MAX);
    }
}
