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
//! # The path of a token
//!
//! `http::client::User` (or `Operator`) hands the `Authorization` headers to [`identity::Identity::recognise`], which verifies
//! with keys that are published in this process: ours, those of other instances, those of other issuers, and API keys. Only a key
//! that nobody knows yet makes a request wait, for one question that all of them share.
//!
//! # The path of a proxied request
//!
//! ```text
//! GET /api/v1/users/7, on a listener of the gateway
//!   gateway::proxy::front    takes the connection; guard looks at its framing, hyper parses, worker has the order of the rest
//!   gateway::path, route     one form of the path, and the route that it takes
//!   gateway::limit           all limits of the request are paid together, or none -> 429
//!   gateway::headers         what the upstream may see, and what it is told
//!   gateway::breaker         whether the upstream is asked at all -> 503
//!   gateway::upstream        a place under way, a target that is well; whether it may be tried again
//!   gateway::proxy::send     a connection of this worker's pool, another try where that is safe
//!   gateway::proxy::answer   streamed as it comes; at its end the place is free, and log and metrics hear of it
//! ```
//!
//! Nothing of it waits in a mailbox or for Redis: [`gateway::limit`] exchanges leases, [`gateway::breaker`] weighs outcomes,
//! [`gateway::check`] and [`gateway::discovery`] look after targets beside it. A route with `own = true` calls the actix
//! application instead.
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
pub mod control;
pub mod database;
pub mod diagnostics;
mod durable;
pub mod event;
pub mod gateway;
pub mod http;
pub mod identity;
pub mod journal;
pub mod lifecycle;
pub mod redis;
pub mod stats;
pub mod stream;
