//! Work without an end that survives its panics: a future in an actor that its supervisor makes anew.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;

use actix::{Actor, ActorContext, ActorFutureExt, ArbiterHandle, AsyncContext, Context, WrapFuture};
use tokio::sync::watch;

use crate::actor::supervisor::{Exit, Life, Supervised};

/// What is done, until it is dropped.
pub(super) type Work = Pin<Box<dyn Future<Output = ()>>>;

/// Runs until this is dropped; then the work is dropped too, wherever it is.
pub(super) struct Task {
    stop: watch::Sender<bool>,
    worker: Supervised<Worker>,
}

struct Worker {
    life: Life,
    stop: watch::Receiver<bool>,
    work: Option<Work>,
}

impl Task {
    /// Starts work on an arbiter. `make` is called again after each panic, and should the work end. Must be called within
    /// actix's runtime.
    pub fn start(name: &'static str, arbiter: ArbiterHandle, make: impl Fn() -> Work + Send + Sync + 'static) -> Self {
        let (stop, stopped) = watch::channel(false);
        let factory = move |life| Worker { life, stop: stopped.clone(), work: Some(make()) };
        Self { stop, worker: Supervised::start(name, arbiter, factory) }
    }

    /// How often it was made anew.
    pub fn restarts(&self) -> u64 {
        let restarts = self.worker.restarts();
        restarts.panicked.load(Ordering::Relaxed) + restarts.failed.load(Ordering::Relaxed)
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

impl Actor for Worker {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        let (Some(work), mut stop) = (self.work.take(), self.stop.clone()) else { return };
        let run = async move {
            tokio::select! {
                biased;
                // An error is the handle's end too.
                _ = stop.wait_for(|stop| *stop) => Exit::Stopped,
                () = work => Exit::Failed,
            }
        };
        ctx.spawn(run.into_actor(self).map(|exit, this, ctx| {
            this.life.ends(exit);
            ctx.stop();
        }));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;
    use std::time::Duration;

    use super::*;
    use crate::clock::Stopwatch;

    async fn until(what: &str, mut done: impl FnMut() -> bool) {
        let since = Stopwatch::start();
        while !done() {
            assert!(since.elapsed() < Duration::from_secs(10), "not within 10 s: {what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    #[actix::test]
    async fn work_survives_panics_and_ends_with_its_handle() {
        struct Dropped(Arc<AtomicU64>);
        impl Drop for Dropped {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let (begun, dropped) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (begin, drops) = (begun.clone(), dropped.clone());
        let arbiter = actix::Arbiter::new();
        let task = Task::start("test", arbiter.handle(), move || {
            let (begin, dropped) = (begin.clone(), Dropped(drops.clone()));
            Box::pin(async move {
                let _dropped = dropped;
                match begin.fetch_add(1, Ordering::SeqCst) {
                    0 => panic!("as the test asks"),
                    1 => {}
                    _ => std::future::pending().await,
                }
            })
        });
        until("it is made anew after a panic and after an end", || begun.load(Ordering::SeqCst) == 3).await;
        assert_eq!(task.restarts(), 2);
        assert_eq!(dropped.load(Ordering::SeqCst), 2);
        drop(task);
        until("it ends with its handle", || dropped.load(Ordering::SeqCst) == 3).await;
    }

    #[actix::test]
    async fn it_may_be_started_from_a_task_of_tokio() {
        // As who looks at the config's file does.
        let arbiter = actix::Arbiter::new();
        let (begun, handle) = (Arc::new(AtomicU64::new(0)), arbiter.handle());
        let begin = begun.clone();
        let started = tokio::spawn(async move {
            Task::start("test", handle, move || {
                let begin = begin.clone();
                Box::pin(async move {
                    begin.fetch_add(1, Ordering::SeqCst);
                })
            })
        });
        let task = started.await.unwrap();
        until("it is made anew after its end", || begun.load(Ordering::SeqCst) > 1).await;
        drop(task);
    }
}
