//! The audit: everything that came in is accepted, a duplicate, or refused with a reason; and what was accepted is
//! counted. The journal's writer and the statistics' store keep books of their own; this compares them.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use crate::journal::{Journal, JournalError, SiteTotals, Totals};
use crate::stats::answers::StoreAudit as StatsBook;
use crate::stats::{AsOf, AuditTotals, StatsError, StatsHandle};
use crate::stream::StreamHandle;

/// Both sides of the books.
#[derive(Debug, Serialize, ToSchema)]
pub struct Audit {
    /// Site by site.
    pub sites: Vec<SiteAudit>,
    /// Entries of the journal that damage made unreadable: accepted, and never counted.
    pub lost: u64,
    /// The other stores that the journal feeds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stores: Vec<StoreAudit>,
    /// Whether all sites agree in all stores, and nothing is lost.
    pub agree: bool,
    /// Through which entry of the journal.
    pub as_of: AsOf,
}

/// The books of a store beside the embedded one.
#[derive(Debug, Serialize, ToSchema)]
pub struct StoreAudit {
    /// `redis` or `kafka`.
    pub store: &'static str,
    /// Why it could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Every entry before this one is in it.
    pub delivered: u64,
    /// Site by site.
    pub sites: Vec<StoreSite>,
    /// Whether all sites agree.
    pub agree: bool,
}

/// A site's books in another store.
#[derive(Debug, Serialize, ToSchema)]
pub struct StoreSite {
    /// The site.
    pub site: String,
    /// What is in the store.
    pub store: StoreBook,
    /// What is not there yet.
    pub pending: StoreBook,
    /// Whether `store + pending = journal`.
    pub agree: bool,
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

/// Another store's books, as it tells them.
#[derive(Debug)]
pub struct Told {
    /// `redis` or `kafka`.
    pub store: &'static str,
    /// Its books and through which entry, or why it could not be asked.
    pub books: Result<(Books, u64), String>,
}

/// Takes the audit of one moment: the journal's books, the stores' a little earlier, and the entries between.
pub async fn audit(journal: &Journal, stats: &StatsHandle, stream: Option<&StreamHandle>) -> Result<Audit, AuditError> {
    let counted = stats.queries().audit().await?;
    let store = told(&counted);
    let mut others = Vec::new();
    if let Some(shared) = stats.shared_audit().await {
        let books = shared.map(|totals| (told(&totals), totals.as_of.offset)).map_err(|error| error.to_string());
        others.push(Told { store: "redis", books });
    }
    if let Some(stream) = stream {
        others.push(Told { store: "kafka", books: super::stream::books(stream) });
    }
    // Later than the stores', so that what lies between can be read.
    let (end, totals) = journal.totals();
    let totals = books(&totals);
    let pending = pending_of(journal, counted.as_of.offset, end).await?;
    let as_of = AsOf { offset: end, time: counted.as_of.time };
    let lost = journal.recovery().lost + stats.lost();
    let mut audit = compare(&totals, &store, &pending, lost, as_of);
    for Told { store, books } in others {
        let (error, books, delivered) = match books {
            Ok((books, delivered)) => (None, books, delivered),
            Err(error) => (Some(error), Books::new(), 0),
        };
        let mut other = StoreAudit { store, error, delivered, sites: Vec::new(), agree: false };
        if other.error.is_none() {
            let compared = compare(&totals, &books, &pending_of(journal, delivered, end).await?, 0, as_of);
            other.agree = compared.agree;
            let site = |site: SiteAudit| StoreSite {
                site: site.site,
                store: site.store,
                pending: site.pending,
                agree: site.agree,
            };
            other.sites = compared.sites.into_iter().map(site).collect();
        }
        audit.agree &= other.agree;
        audit.stores.push(other);
    }
    Ok(audit)
}

fn told(totals: &AuditTotals) -> Books {
    let book = |(site, book): (&String, &StatsBook)| {
        let (counted, duplicates, rejected) = (book.counted, book.duplicates, book.rejected.clone());
        (site.clone(), StoreBook { counted, duplicates, rejected })
    };
    totals.sites.iter().map(book).collect()
}

async fn pending_of(journal: &Journal, from: u64, end: u64) -> Result<Books, AuditError> {
    let reader = journal.reader(from);
    let read = tokio::task::spawn_blocking(move || pending(reader, end)).await;
    Ok(books(&read.map_err(|_| AuditError::Interrupted)??))
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
    Audit { agree: lost == 0 && sites.iter().all(|site| site.agree), sites, lost, stores: Vec::new(), as_of }
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
