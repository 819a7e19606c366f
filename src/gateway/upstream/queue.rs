//! How many requests are under way at once, and how many wait for that, in the order in which they came.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::Refused;
use super::counters::bump;

/// Places for requests under way, and for those that wait.
pub(super) struct Queue {
    places: Semaphore,
    /// Places that are to go when they are left: there are fewer now than are taken.
    owed: AtomicUsize,
    most: Mutex<usize>,
    waiting: AtomicUsize,
    max_waiting: AtomicUsize,
    /// Nanoseconds.
    timeout: AtomicU64,
    pub full: AtomicU64,
    pub timed_out: AtomicU64,
}

/// A place among those that wait, also for a future that is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Queue {
    pub fn new(most: usize, max_waiting: usize, timeout: Duration) -> Self {
        let most = most.clamp(1, Semaphore::MAX_PERMITS);
        let queue = Self {
            places: Semaphore::new(most),
            owed: AtomicUsize::new(0),
            most: Mutex::new(most),
            waiting: AtomicUsize::new(0),
            max_waiting: AtomicUsize::new(0),
            timeout: AtomicU64::new(0),
            full: AtomicU64::new(0),
            timed_out: AtomicU64::new(0),
        };
        queue.apply(most, max_waiting, timeout);
        queue
    }

    /// Other settings. Who is under way stays so: places that are too many go as they are left.
    pub fn apply(&self, most: usize, max_waiting: usize, timeout: Duration) {
        let most = most.clamp(1, Semaphore::MAX_PERMITS);
        let mut before = self.most.lock();
        let less =
            |by: usize| self.owed.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| Some(n.saturating_sub(by)));
        let more = if most < *before {
            // Owed first: a place that is left meanwhile must not be taken again.
            let fewer = *before - most;
            self.owed.fetch_add(fewer, Ordering::AcqRel);
            let gone = self.places.forget_permits(fewer);
            gone - less(gone).unwrap_or_default().min(gone)
        } else {
            let more = most - *before;
            more - less(more).unwrap_or_default().min(more)
        };
        self.places.add_permits(more);
        *before = most;
        self.max_waiting.store(max_waiting, Ordering::Relaxed);
        self.timeout.store(u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Whether a place was owed, and is no more.
    fn settle(&self) -> bool {
        // Mostly there is none, and then nothing need be written.
        self.owed.load(Ordering::Acquire) > 0
            && self.owed.fetch_update(Ordering::AcqRel, Ordering::Acquire, |owed| owed.checked_sub(1)).is_ok()
    }

    /// Takes a place if there is one and nobody waits. To be given back by [`Queue::leave`].
    pub fn try_enter(&self) -> bool {
        self.places.try_acquire().map(tokio::sync::SemaphorePermit::forget).is_ok()
    }

    /// Waits for a place. To be given back by [`Queue::leave`].
    pub async fn enter(&self) -> Result<(), Refused> {
        let before = self.waiting.fetch_add(1, Ordering::AcqRel);
        let waiting = Waiting(&self.waiting);
        if before >= self.max_waiting.load(Ordering::Relaxed) {
            bump(&self.full);
            return Err(Refused::Full);
        }
        let timeout = Duration::from_nanos(self.timeout.load(Ordering::Relaxed));
        let place = tokio::time::timeout(timeout, self.places.acquire()).await;
        drop(waiting);
        match place {
            Ok(Ok(place)) => {
                place.forget();
                Ok(())
            }
            // It is never closed.
            Ok(Err(_)) | Err(_) => {
                bump(&self.timed_out);
                Err(Refused::QueueTimeout)
            }
        }
    }

    /// Gives a place back.
    pub fn leave(&self) {
        if !self.settle() {
            self.places.add_permits(1);
        }
    }

    /// Requests under way, and that wait.
    pub fn counts(&self) -> (usize, usize) {
        let most = *self.most.lock() + self.owed.load(Ordering::Acquire);
        (most.saturating_sub(self.places.available_permits()), self.waiting.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::task::{Context, Poll, Waker};

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    const LONG: Duration = Duration::from_secs(60);

    #[actix::test]
    async fn it_is_bounded_in_both_and_first_come_is_first_served() {
        let queue = Queue::new(2, 2, LONG);
        assert!(queue.try_enter() && queue.try_enter() && !queue.try_enter());
        let (mut first, mut second) = (Box::pin(queue.enter()), Box::pin(queue.enter()));
        assert!(poll(first.as_mut()).is_pending() && poll(second.as_mut()).is_pending());
        assert_eq!(queue.enter().await, Err(Refused::Full));
        assert_eq!(queue.counts(), (2, 2));
        queue.leave();
        assert!(!queue.try_enter(), "nobody overtakes who waits");
        assert!(poll(second.as_mut()).is_pending());
        assert_eq!(poll(first.as_mut()), Poll::Ready(Ok(())));
        queue.leave();
        assert_eq!(poll(second.as_mut()), Poll::Ready(Ok(())));
        assert_eq!(queue.counts(), (2, 0));
        (0..2).for_each(|_| queue.leave());
        assert_eq!((queue.counts(), queue.full.load(Ordering::Relaxed)), ((0, 0), 1));
    }

    #[actix::test]
    async fn who_gives_up_or_waits_too_long_leaves() {
        let queue = Queue::new(1, 5, LONG);
        assert!(queue.try_enter());
        let mut gone = Box::pin(queue.enter());
        assert!(poll(gone.as_mut()).is_pending());
        let mut stays = Box::pin(queue.enter());
        assert!(poll(stays.as_mut()).is_pending());
        queue.leave();
        drop(gone);
        assert_eq!(poll(stays.as_mut()), Poll::Ready(Ok(())), "the place of who has gone is the next one's");
        drop(stays);
        queue.apply(1, 5, Duration::from_millis(10));
        assert_eq!(queue.enter().await, Err(Refused::QueueTimeout));
        assert_eq!((queue.counts(), queue.timed_out.load(Ordering::Relaxed)), ((1, 0), 1));
    }

    #[actix::test]
    async fn its_size_changes_under_those_who_are_in() {
        let queue = Queue::new(5, 0, LONG);
        assert!((0..4).all(|_| queue.try_enter()));
        queue.apply(2, 0, LONG);
        assert_eq!(queue.counts().0, 4);
        (0..2).for_each(|_| queue.leave());
        assert!(!queue.try_enter(), "two are in, of two");
        queue.leave();
        assert!(queue.try_enter() && !queue.try_enter());
        queue.apply(1, 0, LONG);
        queue.apply(4, 0, LONG);
        assert!(queue.try_enter() && queue.try_enter() && !queue.try_enter());
        (0..4).for_each(|_| queue.leave());
        assert!((0..4).all(|_| queue.try_enter()) && !queue.try_enter());
    }

    #[test]
    fn threads_never_exceed_it() {
        let queue = Arc::new(Queue::new(3, 100, LONG));
        let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (queue, inside, most) = (queue.clone(), inside.clone(), most.clone());
                std::thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                    let work = async || {
                        for _ in 0..500 {
                            if !queue.try_enter() {
                                queue.enter().await.unwrap();
                            }
                            most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                            tokio::task::yield_now().await;
                            inside.fetch_sub(1, Ordering::SeqCst);
                            queue.leave();
                        }
                    };
                    runtime.block_on(async { tokio::join!(work(), work(), work()) });
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!((most.load(Ordering::SeqCst), queue.counts()), (3, (0, 0)));
    }
}
