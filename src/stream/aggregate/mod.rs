//! Aggregates: what the events add up to, handed on as absolute numbers of windows.
//!
//! The actor ([`Aggregates`]) follows the journal only to learn which windows were touched ([`touched`]), waits until the
//! statistics have counted that far, and reads the numbers there ([`work`]). A message that comes twice says the same
//! twice; a [`state`] of few facts, kept in the cursor, says what is final and what is gone.

mod actor;
mod record;
mod state;
mod touched;
mod window;
mod work;

pub(super) use actor::Aggregates;
