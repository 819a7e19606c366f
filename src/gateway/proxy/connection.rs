//! What the parts that serve one connection know of it together.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::clock::Nanos;

/// The state of a client's connection. Only its own thread writes; it is atomic because what is upgraded may move.
#[derive(Clone, Debug, Default)]
pub struct ConnectionState(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    upgraded: AtomicBool,
    /// Its framing was broken: nothing more of it is believed.
    refused: AtomicBool,
    /// Requests that are not answered to their end.
    busy: AtomicU32,
    /// Since when nothing is under way.
    idle_since: AtomicU64,
    /// Since when a head is coming; 0 is not.
    head_since: AtomicU64,
    /// Since when the client takes nothing of what is to be written; 0 is not.
    stuck_since: AtomicU64,
    /// Of HTTP/2, when a piece of any answer was taken last, or a request was over.
    moved_at: AtomicU64,
    /// Of HTTP/1, when the answer under way has taken long enough; 0 is never.
    deadline: AtomicU64,
    /// For who waits for the end of an upgrade.
    ended: Notify,
}

/// Whether a connection has made us wait for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Look again then.
    For(Duration),
    /// Nothing was asked for so long that it is to be closed.
    Idle,
    /// A head has been coming, an answer not been taken, or been under way, for so long that it is to be cut.
    Slow,
}

impl ConnectionState {
    /// Of a connection that was made now.
    pub fn new(now: Nanos) -> Self {
        let state = Self::default();
        state.0.idle_since.store(now, Ordering::Relaxed);
        state
    }

    /// From now on its bytes are no HTTP: an upgrade was answered with 101.
    pub fn upgrade(&self) {
        self.0.upgraded.store(true, Ordering::Release);
    }

    /// Whether [`ConnectionState::upgrade`] was called.
    pub fn is_upgraded(&self) -> bool {
        self.0.upgraded.load(Ordering::Acquire)
    }

    /// Its framing is broken.
    pub fn refuse(&self) {
        self.0.refused.store(true, Ordering::Relaxed);
    }

    /// Whether its framing is broken.
    pub fn is_refused(&self) -> bool {
        self.0.refused.load(Ordering::Relaxed)
    }

    /// A request has come.
    pub fn begin(&self) {
        self.0.busy.fetch_add(1, Ordering::Relaxed);
    }

    /// A request is answered.
    pub fn end(&self, now: Nanos) {
        self.0.idle_since.store(now, Ordering::Relaxed);
        self.0.moved_at.store(now, Ordering::Relaxed);
        if self.is_heading() {
            self.heading(Some(now));
        }
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
        self.0.ended.notify_waiters();
    }

    /// Waits until no request is under way, an upgraded one above all.
    pub async fn over(&self) {
        loop {
            let ended = self.0.ended.notified();
            if self.0.busy.load(Ordering::Relaxed) == 0 {
                return;
            }
            ended.await;
        }
    }

    /// A piece of an answer of HTTP/2 was taken. Its client can refuse one answer and go on reading the rest, which the socket does
    /// not see; of HTTP/1, whether that takes anything says all.
    pub fn moved(&self, now: Nanos) {
        self.0.moved_at.store(now, Ordering::Relaxed);
    }

    /// When anything of any answer of HTTP/2 was taken last.
    pub fn moved_at(&self) -> Nanos {
        self.0.moved_at.load(Ordering::Relaxed)
    }

    /// When the answer of HTTP/1 that is under way has taken long enough, if ever.
    pub fn until(&self, deadline: Option<Nanos>) {
        self.0.deadline.store(deadline.unwrap_or_default(), Ordering::Relaxed);
    }

    /// What [`ConnectionState::until`] was told last.
    pub fn deadline(&self) -> Option<Nanos> {
        Some(self.0.deadline.load(Ordering::Relaxed)).filter(|at| *at != 0)
    }

    /// A head is coming since `since`, or none is.
    pub fn heading(&self, since: Option<Nanos>) {
        self.0.head_since.store(since.unwrap_or_default(), Ordering::Relaxed);
    }

    /// Whether a head is coming.
    pub fn is_heading(&self) -> bool {
        self.0.head_since.load(Ordering::Relaxed) != 0
    }

    /// The client takes nothing since `since`, or something again.
    pub fn stuck(&self, since: Option<Nanos>) {
        self.0.stuck_since.store(since.unwrap_or_default(), Ordering::Relaxed);
    }

    /// Whether the client takes nothing at present.
    pub fn is_stuck(&self) -> bool {
        self.0.stuck_since.load(Ordering::Relaxed) != 0
    }

    /// Whether it has made us wait for too long; `head` is how long a head may take, and a pause in what the client takes.
    pub fn judge(&self, now: Nanos, keep_alive: Duration, head: Duration) -> Patience {
        let left = self.deadline().map(|at| Duration::from_nanos(at.saturating_sub(now)));
        match (left, self.judge_moves(now, keep_alive, head)) {
            (Some(Duration::ZERO), _) => Patience::Slow,
            (Some(left), Patience::For(other)) => Patience::For(left.min(other)),
            (_, judged) => judged,
        }
    }

    fn judge_moves(&self, now: Nanos, keep_alive: Duration, head: Duration) -> Patience {
        let waited = |since: Nanos| Duration::from_nanos(now.saturating_sub(since));
        // Else an answer that nobody reads would hold its upstream's connection, and a place in flight, for ever.
        let stuck_since = self.0.stuck_since.load(Ordering::Relaxed);
        if stuck_since != 0 {
            let left = head.saturating_sub(waited(stuck_since));
            return if left.is_zero() { Patience::Slow } else { Patience::For(left) };
        }
        // Only now: a 101 that is not written yet is an answer like any other.
        if self.is_upgraded() {
            return Patience::For(keep_alive.max(head));
        }
        // A head that comes behind a request under way is not read on before that is answered.
        if self.0.busy.load(Ordering::Relaxed) > 0 {
            return Patience::For(head.min(keep_alive).max(Duration::from_millis(10)));
        }
        let head_since = self.0.head_since.load(Ordering::Relaxed);
        if head_since != 0 {
            let left = head.saturating_sub(waited(head_since));
            return if left.is_zero() { Patience::Slow } else { Patience::For(left) };
        }
        let left = keep_alive.saturating_sub(waited(self.0.idle_since.load(Ordering::Relaxed)));
        // A head may begin any moment, and has a time of its own.
        if left.is_zero() { Patience::Idle } else { Patience::For(left.min(head)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    #[test]
    fn idle_and_slow_connections_are_told_from_busy_ones() {
        let (keep, head) = (Duration::from_secs(60), Duration::from_secs(10));
        let state = ConnectionState::new(SECOND);
        assert_eq!(state.judge(2 * SECOND, keep, head), Patience::For(head));
        assert_eq!(state.judge(61 * SECOND, keep, head), Patience::Idle);
        state.heading(Some(60 * SECOND));
        assert_eq!(state.judge(61 * SECOND, keep, head), Patience::For(Duration::from_secs(9)));
        assert_eq!(state.judge(70 * SECOND, keep, head), Patience::Slow);
        state.heading(None);
        state.begin();
        assert!(matches!(state.judge(999 * SECOND, keep, head), Patience::For(_)), "an answer may take for ever");
        state.stuck(Some(999 * SECOND));
        assert_eq!(state.judge(1000 * SECOND, keep, head), Patience::For(Duration::from_secs(9)));
        assert_eq!(state.judge(1009 * SECOND, keep, head), Patience::Slow, "but it must be taken");
        state.stuck(None);
        state.end(999 * SECOND);
        assert!(matches!(state.judge(1000 * SECOND, keep, head), Patience::For(_)));
        assert_eq!(state.judge(1059 * SECOND, keep, head), Patience::Idle);
        state.begin();
        state.stuck(Some(1060 * SECOND));
        assert_eq!(state.judge(1069 * SECOND, keep, head), Patience::For(Duration::from_secs(1)));
        assert_eq!(state.judge(1070 * SECOND, keep, head), Patience::Slow, "whoever does not read is not waited for");
        state.stuck(None);
        assert!(matches!(state.judge(1999 * SECOND, keep, head), Patience::For(_)));
        state.until(Some(2001 * SECOND));
        assert_eq!(state.judge(2000 * SECOND, keep, head), Patience::For(Duration::from_secs(1)));
        assert_eq!(state.judge(2001 * SECOND, keep, head), Patience::Slow, "however fast it is taken");
        state.until(None);
        state.upgrade();
        assert!(matches!(state.judge(5000 * SECOND, keep, head), Patience::For(_)));
        state.stuck(Some(5000 * SECOND));
        assert_eq!(state.judge(5010 * SECOND, keep, head), Patience::Slow, "the 101 is to be taken, too");
    }
}
