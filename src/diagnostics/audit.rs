//! The audit: everything that came in is accepted, a duplicate, or refused with a reason; and what was accepted is
//! counted. The journal's writer and the statistics' store keep books of their own; this compares them.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use crate::journal::{Journal, JournalError, SiteTotals, Totals};
use crate::stats::{AsOf, StatsError, StatsHandle};

/// Both sides of the books.
#[derive(Debug, Serialize, ToSchema)]
pub struct Audit {
    /// Site by site.
    pub sites: Vec<SiteAudit>,
    /// Entries of the journal that damage made unreadable: accepted, and never counted.
    pub lost: u64,
    /// Whether all sites agree, and nothing is lost.
    pub agree: bool,
    /// Through which entry of the journal.
    pub as_of: AsOf,
}

/// A site's books.
#[derive(Debug, Serialize, ToSchema)]
pub struct SiteAudit {
    /// The site.
    pub site: String,
    /// What the journal took in: `received = accepted + duplicates + rejected`.
    pub journal: JournalBook,
    /// What the store has counted of it.
    pub store: StoreBook,
    /// What it has not counted yet, read from the journal.
    pub pending: StoreBook,
    /// Whether `store + pending = journal`, in every number.
    pub agree: bool,
}

/// The journal's side.
#[derive(Debug, Serialize, ToSchema)]
pub struct JournalBook {
    /// All that came in.
    pub received: u64,
    /// Appended.
    pub accepted: u64,
    /// Known before.
    pub duplicates: u64,
    /// Refused, by code.
    pub rejected: BTreeMap<&'static str, u64>,
}

/// The store's side.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct StoreBook {
    /// Counted, bots included.
    pub counted: u64,
    /// Known before.
    pub duplicates: u64,
    /// Refused, by code.
    pub rejected: BTreeMap<&'static str, u64>,
}

impl From<&SiteTotals> for StoreBook {
    fn from(totals: &SiteTotals) -> Self {
        let rejected = totals.rejected.iter().map(|(code, count)| (code.as_str(), *count)).collect();
        Self { counted: totals.accepted, duplicates: totals.duplicates, rejected }
    }
}

/// Why no audit could be taken.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The store.
    #[error(transparent)]
    Stats(#[from] StatsError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The work was given up.
    #[error("the audit was interrupted")]
    Interrupted,
}

/// Takes the audit of one moment: the journal's books, the store's a little earlier, and the entries between.
pub async fn audit(journal: &Journal, stats: &StatsHandle) -> Result<Audit, AuditError> {
    let counted = stats.queries().audit().await?;
    let store = counted.sites.iter().map(|(site, book)| {
        let (counted, duplicates, rejected) = (book.counted, book.duplicates, book.rejected.clone());
        (site.clone(), StoreBook { counted, duplicates, rejected })
    });
    let store = store.collect();
    // Later than the store's, so that what lies between can be read.
    let (end, totals) = journal.totals();
    let reader = journal.reader(counted.as_of.offset);
    let pending =
        tokio::task::spawn_blocking(move || pending(reader, end)).await.map_err(|_| AuditError::Interrupted)??;
    let as_of = AsOf { offset: end, time: counted.as_of.time };
    let lost = journal.recovery().lost + stats.lost();
    Ok(compare(&books(&totals), &store, &books(&pending), lost, as_of))
}

/// The entries from the reader's place to `end`, which is the end of a block.
fn pending(mut reader: crate::journal::Reader, end: u64) -> Result<Totals, JournalError> {
    let mut totals = Totals::default();
    while reader.next() < end {
        let Some(chunk) = reader.read(1 << 20)? else { break };
        for (seq, entry) in chunk.entries() {
            if let (true, Ok(entry)) = (seq < end, entry) {
                totals.add(&entry);
            }
        }
    }
    Ok(totals)
}

/// What each site's books say.
pub type Books = BTreeMap<String, StoreBook>;

fn books(totals: &Totals) -> Books {
    totals.0.iter().map(|(site, totals)| (site.clone(), StoreBook::from(totals))).collect()
}

/// Compares the books. Pure, for the tests.
pub fn compare(journal: &Books, store: &Books, pending: &Books, lost: u64, as_of: AsOf) -> Audit {
    let mut names: Vec<&String> = journal.keys().chain(store.keys()).chain(pending.keys()).collect();
    names.sort();
    names.dedup();
    let sites: Vec<SiteAudit> = names
        .into_iter()
        .map(|name| {
            let of = |books: &Books| books.get(name).cloned().unwrap_or_default();
            let (journal, store, pending) = (of(journal), of(store), of(pending));
            let mut sum = store.clone();
            sum.counted += pending.counted;
            sum.duplicates += pending.duplicates;
            for (code, count) in &pending.rejected {
                *sum.rejected.entry(*code).or_default() += count;
            }
            let agree = sum == journal;
            let StoreBook { counted: accepted, duplicates, rejected } = journal;
            let received = accepted + duplicates + rejected.values().sum::<u64>();
            let journal = JournalBook { received, accepted, duplicates, rejected };
            SiteAudit { site: name.clone(), journal, store, pending, agree }
        })
        .collect();
    Audit { agree: lost == 0 && sites.iter().all(|site| site.agree), sites, lost, as_of }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(counted: u64) -> StoreBook {
        StoreBook { counted, duplicates: 2, rejected: [("invalid_url", 1)].into() }
    }

    #[test]
    fn books_agree_or_not() {
        let as_of = AsOf::default();
        let journal: Books = [(String::from("a"), book(10))].into();
        let mut store = journal.clone();
        let mut pending = Books::new();
        assert!(compare(&journal, &store, &pending, 0, as_of).agree);
        assert_eq!(compare(&journal, &store, &pending, 0, as_of).sites[0].journal.received, 13);
        store.insert("a".into(), book(7));
        assert!(!compare(&journal, &store, &pending, 0, as_of).agree);
        pending.insert("a".into(), StoreBook { counted: 3, ..StoreBook::default() });
        assert!(compare(&journal, &store, &pending, 0, as_of).agree);
        assert!(!compare(&journal, &store, &pending, 1, as_of).agree, "damage is no agreement");
        store.insert("ghost".into(), book(1));
        assert!(!compare(&journal, &store, &pending, 0, as_of).agree, "counted, but never appended");
    }
}
