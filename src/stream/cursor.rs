//! How far a journal is delivered, as it stands in Kafka beside what was delivered. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::StreamError;
use crate::clock::{UnixMillis, rfc3339};
use crate::event::RejectCode;
use crate::event::codec::Entry;
use crate::journal::{SiteTotals, Totals};

/// What became of a site's events, as far as they are delivered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Book {
    /// Events in the topic of events, or among the dead letters.
    pub counted: u64,
    /// Events that had been accepted before, and so are there once.
    pub duplicates: u64,
    /// Events that were refused, by code.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rejected: BTreeMap<String, u64>,
}

/// Books by site.
pub type Books = BTreeMap<String, Book>;

/// The record in the topic of cursors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Whose journal.
    pub journal: String,
    /// The number of the first entry that is not delivered.
    pub next: u64,
    /// When the last delivered event was received; RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// The first entry that was delivered: the journal had dropped those before it when the stream began. The books have
    /// them all the same.
    #[serde(default)]
    pub since: u64,
    /// What is delivered, since the journal began.
    #[serde(default)]
    pub sites: Books,
    /// Mode idempotent: the end of each partition of events once everything before `next` was there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ends: BTreeMap<i32, i64>,
}

impl Cursor {
    /// Of a journal nothing of which is in Kafka: it begins at the oldest entry that is left, and what came before is in
    /// the books as if delivered, so that they can be compared with the journal's.
    pub fn begin(journal: &str, oldest: u64, before: &Totals) -> Self {
        let mut cursor = Self { journal: journal.to_owned(), next: oldest, since: oldest, ..Self::default() };
        cursor.add(before);
        cursor
    }

    /// Adds what a run of entries holds.
    pub fn add(&mut self, run: &Totals) {
        for (site, totals) in &run.0 {
            let book = self.sites.entry(site.clone()).or_default();
            book.counted += totals.accepted;
            book.duplicates += totals.duplicates;
            for (code, count) in &totals.rejected {
                *book.rejected.entry(code.as_str().to_owned()).or_default() += count;
            }
        }
    }

    /// Moves on.
    pub fn advance(&mut self, next: u64, received: Option<UnixMillis>) {
        self.next = next;
        if let Some(received) = received {
            self.time = Some(rfc3339(received));
        }
    }

    /// As a record's value.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads what [`Cursor::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, StreamError> {
        serde_json::from_slice(bytes).map_err(|error| StreamError::Cursor(error.to_string()))
    }
}

/// Totals without those of later entries: what the journal had taken in before `later` began.
pub fn before(all: &Totals, later: &Totals) -> Totals {
    let mut before = Totals::default();
    for (site, totals) in &all.0 {
        let after = later.0.get(site).cloned().unwrap_or_default();
        let rest = SiteTotals {
            accepted: totals.accepted.saturating_sub(after.accepted),
            duplicates: totals.duplicates.saturating_sub(after.duplicates),
            rejected: totals
                .rejected
                .iter()
                .map(|(code, count)| (*code, count.saturating_sub(after.rejected.get(code).copied().unwrap_or(0))))
                .filter(|(_, count)| *count > 0)
                .collect(),
        };
        if rest != SiteTotals::default() {
            before.0.insert(site.clone(), rest);
        }
    }
    before
}

/// Counts an entry, and says when it was received if it is an event.
pub fn count(totals: &mut Totals, entry: &Entry<'_>) -> Option<UnixMillis> {
    totals.add(entry);
    match entry {
        Entry::Event(event) => Some(event.received),
        Entry::Outcome { .. } => None,
    }
}

/// The static word of a code that was read back; `None` when a newer version wrote it.
pub fn known_code(word: &str) -> Option<&'static str> {
    RejectCode::ALL.iter().map(|(code, _)| code.as_str()).find(|code| *code == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back_as_it_went() {
        let mut totals = Totals::default();
        totals.site("shop").accepted = 7;
        totals.site("shop").refuse(RejectCode::InvalidUrl, 2);
        totals.site("shop").refuse(RejectCode::Duplicate, 3);
        let mut cursor = Cursor::begin("j", 5, &totals);
        cursor.add(&totals);
        cursor.advance(20, Some(1_700_000_000_000));
        assert_eq!(Cursor::decode(&cursor.encode()).unwrap(), cursor);
        assert_eq!(cursor.sites["shop"].counted, 14);
        assert_eq!(cursor.sites["shop"].rejected["invalid_url"], 4);
        assert_eq!((cursor.since, cursor.next, cursor.time.as_deref()), (5, 20, Some("2023-11-14T22:13:20.000Z")));
        assert!(Cursor::decode(b"{}").is_err(), "no journal, no cursor");
        assert_eq!(known_code("invalid_url"), Some("invalid_url"));
    }

    #[test]
    fn what_came_before_is_all_without_what_came_after() {
        let mut all = Totals::default();
        all.site("a").accepted = 10;
        all.site("a").refuse(RejectCode::InvalidUrl, 2);
        all.site("b").accepted = 1;
        let mut later = Totals::default();
        later.site("a").accepted = 4;
        later.site("a").refuse(RejectCode::InvalidUrl, 2);
        later.site("b").accepted = 1;
        let before = before(&all, &later);
        assert_eq!(before.0.len(), 1);
        assert_eq!(before.0["a"], SiteTotals { accepted: 6, ..SiteTotals::default() });
    }
}
