//! Tidegate: the edge of a web shop, in one binary.
//!
//! # The path of a beacon
//!
//! ```text
//! POST /api/v1/events
//!   http::ingest        reads the body (capped, paid for by a permit), asks event::decode for events
//!   event::intake       checks each against the rules, adds time, site, visitor, bot; event::codec makes it bytes
//!   journal::Gatherer   one message for all that this thread appends in this turn
//!   journal::writer     drops duplicates, assigns visits, writes one checksummed block  -> 202 with its durability
//!   stats::actor        reads the block, folds it into a stats::Delta
//!   stats::store        sums and cursor in one SQLite transaction
//!   stats::Live, Feed   what is stored is published: realtime, live feed, dashboard
//! ```
//!
//! # The path of a question
//!
//! `GET realtime` reads a published snapshot ([`stats::LiveReader`]), without a mailbox and without the store. Ranges and
//! lists are read from SQLite by a pool of its own ([`stats::Queries`]). Both say through which entry they count.
//!
//! # The path to Redis
//!
//! `stats::shared` has two further readers of the journal, one of counts and one of events, whose cursors lie in Redis and are
//! compared there by the script that applies a delta. Where Redis is, questions merge what all instances have published.
//!
//! # The path to Kafka
//!
//! [`stream`] has two further readers of the journal: one hands on events, one the numbers of the windows they touched. Their
//! cursors lie in Kafka, in the transaction of what they stand for.
//!
//! # The life of the process
//!
//! [`cli`] reads the command, [`config`] what it runs with, [`app`] puts the rooms together and takes them apart again in
//! the order of the flow. [`diagnostics`] tells how they are.

pub mod actor;
pub mod app;
pub mod cache;
pub mod catalog;
pub mod cli;
pub mod clock;
pub mod config;
pub mod diagnostics;
pub mod event;
pub mod gateway;
pub mod http;
pub mod journal;
pub mod lifecycle;
pub mod redis;
pub mod stats;
pub mod stream;
