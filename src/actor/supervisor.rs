//! Supervision: an actor that panics is made anew by its factory, behind a handle that survives it.
//!
//! actix's own `Supervisor` neither catches panics nor makes a new value, so this does: the actor holds a [`Life`], whose
//! drop tells the supervisor how it ended; the supervisor counts restarts by cause, waits a little longer each time, and
//! asks the factory again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actix::dev::{SendError, ToEnvelope};
use actix::{Actor, Addr, ArbiterHandle, Context, Handler, MailboxError, Message};
use arc_swap::ArcSwapOption;
use tokio::sync::mpsc;

use crate::clock::Stopwatch;

/// The first wait before a restart; it doubles up to [`LONGEST_WAIT`].
const SHORTEST_WAIT: Duration = Duration::from_millis(50);
/// The longest wait before a restart.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// An actor that lived so long starts again with the shortest wait.
const STABLE: Duration = Duration::from_secs(60);

/// How an actor ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It was asked to.
    Stopped,
    /// It gave up, and says so.
    Failed,
    /// It panicked, or its thread died.
    Panicked,
}

/// Held by an actor; its drop reports the end. Whoever does not say otherwise has panicked.
#[derive(Debug)]
pub struct Life {
    exit: Exit,
    report: mpsc::UnboundedSender<Exit>,
}

impl Life {
    /// Says that the end to come is meant.
    pub fn ends(&mut self, exit: Exit) {
        self.exit = exit;
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        // Nobody listens once the supervisor has gone with the whole server.
        let _ = self.report.send(self.exit);
    }
}

/// How often an actor was made anew, by cause.
#[derive(Debug, Default)]
pub struct Restarts {
    /// After a panic.
    pub panicked: AtomicU64,
    /// After it gave up.
    pub failed: AtomicU64,
}

/// The handle of a supervised actor.
#[derive(Debug)]
pub struct Supervised<A: Actor> {
    addr: Arc<ArcSwapOption<Addr<A>>>,
    restarts: Arc<Restarts>,
}

impl<A: Actor> Clone for Supervised<A> {
    fn clone(&self) -> Self {
        Self { addr: self.addr.clone(), restarts: self.restarts.clone() }
    }
}

impl<A: Actor<Context = Context<A>>> Supervised<A> {
    /// Starts an actor on an arbiter and keeps it alive.
    pub fn start(
        name: &'static str,
        arbiter: ArbiterHandle,
        factory: impl Fn(Life) -> A + Send + Sync + 'static,
    ) -> Self {
        let (report, mut reports) = mpsc::unbounded_channel();
        let addr = Arc::new(ArcSwapOption::empty());
        let restarts = Arc::new(Restarts::default());
        let this = Self { addr: addr.clone(), restarts: restarts.clone() };
        let factory = Arc::new(factory);
        let launch = move |arbiter: &ArbiterHandle| {
            let (factory, life) = (factory.clone(), Life { exit: Exit::Panicked, report: report.clone() });
            A::start_in_arbiter(arbiter, move |_| factory(life))
        };
        addr.store(Some(Arc::new(launch(&arbiter))));
        let watch = async move {
            let mut wait = SHORTEST_WAIT;
            let mut since = Stopwatch::start();
            while let Some(exit) = reports.recv().await {
                match exit {
                    Exit::Stopped => break,
                    Exit::Failed => restarts.failed.fetch_add(1, Ordering::Relaxed),
                    Exit::Panicked => restarts.panicked.fetch_add(1, Ordering::Relaxed),
                };
                // With its thread everything on it ends; there is nowhere to start again.
                if !arbiter.spawn(async {}) {
                    break;
                }
                if since.elapsed() > STABLE {
                    wait = SHORTEST_WAIT;
                }
                log::error!("the {name} actor ended ({exit:?}); it starts again in {} ms", wait.as_millis());
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
                since = Stopwatch::start();
                addr.store(Some(Arc::new(launch(&arbiter))));
            }
        };
        // Not by `actix::spawn`: who follows a changed config may be on a task of tokio, which cannot do that.
        tokio::spawn(watch);
        this
    }

    /// Sends to the actor that lives now.
    pub async fn send<M>(&self, message: M) -> Result<M::Result, MailboxError>
    where
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
        M: Message + Send + 'static,
        M::Result: Send,
    {
        match self.addr.load_full() {
            Some(addr) => addr.send(message).await,
            None => Err(MailboxError::Closed),
        }
    }

    /// Leaves a message without waiting, over the one address whose bound holds; gives it back where there is no room, or
    /// nobody.
    pub fn try_send<M>(&self, message: M) -> Result<(), SendError<M>>
    where
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
        M: Message + Send + 'static,
        M::Result: Send,
    {
        match &*self.addr.load() {
            Some(addr) => addr.try_send(message),
            None => Err(SendError::Closed(message)),
        }
    }

    /// How often it was made anew.
    pub fn restarts(&self) -> &Restarts {
        &self.restarts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix::Arbiter;

    struct Counter {
        count: u32,
        life: Life,
    }
    impl Actor for Counter {
        type Context = Context<Self>;
    }
    #[derive(Message)]
    #[rtype(result = "u32")]
    struct Add;
    #[derive(Message)]
    #[rtype(result = "()")]
    struct Panic;
    #[derive(Message)]
    #[rtype(result = "()")]
    struct Stop;
    impl Handler<Add> for Counter {
        type Result = u32;
        fn handle(&mut self, _: Add, _: &mut Context<Self>) -> u32 {
            self.count += 1;
            self.count
        }
    }
    impl Handler<Panic> for Counter {
        type Result = ();
        fn handle(&mut self, _: Panic, _: &mut Context<Self>) {
            panic!("as the test asked");
        }
    }
    impl Handler<Stop> for Counter {
        type Result = ();
        fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
            use actix::ActorContext;
            self.life.ends(Exit::Stopped);
            ctx.stop();
        }
    }

    #[actix::test]
    async fn a_panicking_actor_comes_back_behind_its_handle() {
        let arbiter = Arbiter::new();
        let handle = Supervised::start("counter", arbiter.handle(), |life| Counter { count: 10, life });
        assert_eq!(handle.send(Add).await, Ok(11));
        for round in 1..=3 {
            assert!(handle.send(Panic).await.is_err());
            let watch = Stopwatch::start();
            while handle.send(Add).await != Ok(11) {
                assert!(watch.elapsed() < Duration::from_secs(10), "it did not come back");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert_eq!(handle.restarts().panicked.load(Ordering::Relaxed), round);
        }
        handle.send(Stop).await.unwrap();
        tokio::time::sleep(SHORTEST_WAIT * 3).await;
        assert!(handle.send(Add).await.is_err(), "a stopped actor stays stopped");
        assert_eq!(handle.restarts().panicked.load(Ordering::Relaxed), 3);
    }
}
