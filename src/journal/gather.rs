//! One thread's way to the journal: what its requests append in one turn of the event loop goes as one message.
//!
//! Waking the writer's thread and being woken by it costs a request more than its share of the write. So the first
//! request of a turn schedules a flush for the end of the turn, the others join it, and one answer comes back for all.

use std::cell::RefCell;
use std::rc::Rc;

use tokio::sync::oneshot;

use super::{AppendError, Appended, Durability, Journal, Message};
use crate::actor::admission::Permit;
use crate::event::Batch;

type Answer = Result<Appended, AppendError>;

/// Appends for one thread; clones share its turn.
#[derive(Clone)]
pub struct Gatherer {
    journal: Journal,
    turn: Rc<RefCell<Turn>>,
}

#[derive(Default)]
struct Turn {
    batches: Vec<(Batch, Permit)>,
    waiting: Vec<oneshot::Sender<Answer>>,
}

impl Gatherer {
    pub(super) fn new(journal: Journal) -> Self {
        Self { journal, turn: Rc::default() }
    }

    /// As [`Journal::append`], with the other requests of this turn. Must be called on an actix thread.
    pub async fn append(&self, batch: Batch, permit: Permit) -> Answer {
        if self.journal.options().durability == Durability::Received {
            return self.journal.append(batch, permit).await;
        }
        let (told, answer) = oneshot::channel();
        let first = {
            let mut turn = self.turn.borrow_mut();
            turn.batches.push((batch, permit));
            turn.waiting.push(told);
            turn.batches.len() == 1
        };
        if first {
            actix::spawn(flush(self.journal.clone(), self.turn.clone()));
        }
        answer.await.unwrap_or(Err(AppendError::Closed))
    }
}

async fn flush(journal: Journal, turn: Rc<RefCell<Turn>>) {
    // Everything that is ready now goes first, and joins.
    tokio::task::yield_now().await;
    let Turn { batches, waiting } = std::mem::take(&mut *turn.borrow_mut());
    let (reply, answer) = oneshot::channel();
    let sent = journal.tx.send(Message::Append { batches, reply: Some(reply) }).is_ok();
    let answers = if sent { answer.await.unwrap_or_default() } else { Vec::new() };
    // Whoever finds no answer takes the journal for closed. A client that went away needs none.
    for (told, answer) in waiting.into_iter().zip(answers) {
        let _ = told.send(answer);
    }
}
