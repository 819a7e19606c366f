//! What an event is: its wire formats, its rules, and its compact form in the journal.
//!
//! A body becomes [`wire::RawEvent`]s (`decode`), each is checked and enriched against the request that carried it
//! (`intake`: time, site and who may send for it, visitor, bot, privacy), and lands as one binary *entry* (`codec`) in a [`Batch`] that is
//! handed to the journal as a whole. Everything here is pure: no clock, no I/O.

pub mod access;
pub mod agent;
pub mod codec;
pub mod combined;
pub mod decode;
pub mod intake;
pub mod page;
pub mod record;
pub mod reject;
pub mod visit;
pub mod visitor;
pub mod wire;

use crate::clock::UnixMillis;
pub use agent::BotReason;
pub use reject::{Reject, RejectCode};

/// Refused events that an answer lists one by one.
pub const MAX_LISTED: usize = 1000;
/// The site of events that name none.
pub const DEFAULT_SITE: &str = "default";
/// The type of events that have a `url` and name no type.
pub const PAGE_VIEW: &str = "page_view";

/// An event as the journal holds it. Strings borrow from the journal's block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Event<'a> {
    /// When this server received it.
    pub received: UnixMillis,
    /// When it happened, after clock correction.
    pub timestamp: UnixMillis,
    /// The site it belongs to.
    pub site: &'a str,
    /// `page_view`, or the client's word for it.
    pub event_type: &'a str,
    /// The client's id, if it sent one.
    pub id: EventId<'a>,
    /// Hash of the visitor: of `user_id`, or of address and agent under the day's salt.
    pub visitor: u64,
    /// Hash of the session: of `session_id`, or of the visit the journal put it in; 0 for bots.
    pub session: u64,
    /// Absolute URL, or a path.
    pub url: Option<&'a str>,
    /// The referring URL as sent.
    pub referrer: Option<&'a str>,
    /// The page's title.
    pub title: Option<&'a str>,
    /// The shop's own name of the visitor.
    pub user_id: Option<&'a str>,
    /// The client's session id.
    pub session_id: Option<&'a str>,
    /// The product looked at or bought.
    pub product_id: Option<&'a str>,
    /// A JSON object, as sent.
    pub data: Option<&'a str>,
    /// Why the sender is counted as a bot.
    pub bot: Option<BotReason>,
    /// Came through the import, whose ids are remembered for ever.
    pub imported: bool,
}

/// The dedup id that came with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventId<'a> {
    /// None came; the journal's sequence number names the event.
    None,
    /// A lower-case hyphenated UUID, kept as its 16 bytes.
    Uuid([u8; 16]),
    /// Anything else.
    Text(&'a str),
}

/// Where an entry lies in a [`Batch`], and what the journal's writer decides about it.
#[derive(Clone, Copy, Debug)]
pub struct EntryMeta {
    /// First byte in [`Batch::bytes`].
    pub start: u32,
    /// Index of the event in the request, for the answer.
    pub index: u32,
    /// Dedup key: hash of site and client id; `None` when the client sent no id.
    pub key: Option<u128>,
    /// Kept for ever in the dedup index instead of 24 hours.
    pub imported: bool,
    /// Needs a visit from the journal, as no `session_id` came: visitor and time of the event.
    pub visit: Option<(u64, UnixMillis)>,
}

/// Events of one request, encoded and ready to append, with what was refused on the way.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Encoded entries, one after the other.
    pub bytes: Vec<u8>,
    /// One for each entry.
    pub entries: Vec<EntryMeta>,
    /// Refused events: index in the request and why; the first [`MAX_LISTED`] of them.
    pub rejected: Vec<Reject>,
    /// How many were refused, listed or not.
    pub refused: u64,
    /// How many are known to be in the journal already, without asking the dedup index.
    pub known: u32,
    /// Refused events by site, for the audit.
    pub outcomes: Vec<Outcome>,
}

impl Batch {
    /// Bytes this batch takes from the ingest budget while it waits.
    pub fn cost(&self) -> usize {
        self.bytes.len() + self.entries.len() * size_of::<EntryMeta>() + 256
    }

    /// Whether nothing came of the request so far.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.outcomes.is_empty()
    }

    /// Notes a refused event. Only so many are listed: a small body can hold millions of them.
    pub fn reject(&mut self, site: &str, index: u32, code: RejectCode, message: impl Into<String>) {
        match self.outcomes.iter_mut().find(|o| o.code == code && o.site == site) {
            Some(outcome) => outcome.count += 1,
            None => self.outcomes.push(Outcome { site: site.to_owned(), code, count: 1 }),
        }
        if code == RejectCode::Duplicate {
            self.known += 1;
            return;
        }
        self.refused += 1;
        if self.rejected.len() < MAX_LISTED {
            self.rejected.push(Reject::new(index, code, message));
        }
    }
}

/// How many events of a site were not appended, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The site, or [`reject::UNKNOWN_SITE`] when the event could not be read that far.
    pub site: String,
    /// Why.
    pub code: RejectCode,
    /// How many.
    pub count: u64,
}
