//! The owner: takes the outcomes that wait and has them weighed.
//!
//! A first outcome wakes it by a message. It then looks again after each [`PAUSE`] for as long as there is something, and
//! nobody sends meanwhile: a busy upstream costs fifty looks a second, however many requests it has, and an idle one none.

use std::sync::Weak;
use std::time::Duration;

use actix::{Actor, ActorContext, Arbiter, AsyncContext, Context, Handler, Message};

use super::handle::Inner;
use super::judge::Outcome;
use crate::actor::supervisor::{Exit, Life};

/// Between two looks.
pub(super) const PAUSE: Duration = Duration::from_millis(20);

/// Something waits, or the breaker is gone.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Wake;

/// Fails.
#[cfg(test)]
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Crash;

pub(super) struct Owner {
    life: Life,
    breaker: Weak<Inner>,
    batch: Vec<Outcome>,
    /// Whether it will look again by itself.
    looking: bool,
    /// Whether the thread is its own, and ends with it.
    own_thread: bool,
}

impl Owner {
    pub fn new(life: Life, breaker: Weak<Inner>, own_thread: bool) -> Self {
        Self { life, breaker, batch: Vec::new(), looking: false, own_thread }
    }

    fn look(&mut self, ctx: &mut Context<Self>) {
        let Some(breaker) = self.breaker.upgrade() else {
            self.life.ends(Exit::Stopped);
            ctx.stop();
            if self.own_thread {
                Arbiter::current().stop();
            }
            return;
        };
        if breaker.settle(&mut self.batch) && !self.looking {
            self.looking = true;
            ctx.run_later(PAUSE, |this, ctx| {
                this.looking = false;
                this.look(ctx);
            });
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // It will not look again, so who leaves an outcome must see that nobody is there.
        if let Some(breaker) = self.breaker.upgrade() {
            breaker.forget_owner();
        }
    }
}

impl Actor for Owner {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        // What came while there was no owner.
        self.look(ctx);
    }
}

impl Handler<Wake> for Owner {
    type Result = ();

    fn handle(&mut self, _: Wake, ctx: &mut Context<Self>) {
        self.look(ctx);
    }
}

#[cfg(test)]
impl Handler<Crash> for Owner {
    type Result = ();

    fn handle(&mut self, _: Crash, _: &mut Context<Self>) {
        // A panic without its message and trace, which would take longer than a restart may.
        std::panic::resume_unwind(Box::new("as the test asked"));
    }
}
