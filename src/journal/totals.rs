//! What the journal has taken in and refused, by site: one side of the audit.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::event::codec::{self, Entry};
use crate::event::{Outcome, RejectCode};

/// One site's totals since the journal began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SiteTotals {
    /// Events appended.
    pub accepted: u64,
    /// Events known already.
    pub duplicates: u64,
    /// Events refused, by code.
    pub rejected: BTreeMap<RejectCode, u64>,
}

impl SiteTotals {
    /// Every event that came in: accepted, known already, or refused.
    pub fn received(&self) -> u64 {
        self.accepted + self.duplicates + self.rejected.values().sum::<u64>()
    }

    /// Counts events that were not appended.
    pub fn refuse(&mut self, code: RejectCode, count: u64) {
        match code {
            RejectCode::Duplicate => self.duplicates += count,
            code => *self.rejected.entry(code).or_default() += count,
        }
    }
}

/// The totals of every site.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals(pub BTreeMap<String, SiteTotals>);

impl Totals {
    /// The totals of one site.
    pub fn site(&mut self, site: &str) -> &mut SiteTotals {
        // Two look-ups, but no allocation for a site that is known.
        if !self.0.contains_key(site) {
            self.0.insert(site.to_owned(), SiteTotals::default());
        }
        self.0.get_mut(site).expect("it was just put there")
    }

    /// Counts an entry.
    pub fn add(&mut self, entry: &Entry<'_>) {
        match entry {
            Entry::Event(event) => self.site(event.site).accepted += 1,
            Entry::Outcome { site, code, count } => self.site(site).refuse(*code, *count),
        }
    }

    /// As bytes, for the journal's checkpoint.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        let mut entries = 0u32;
        for (site, totals) in &self.0 {
            out.push(site.len() as u8);
            out.extend_from_slice(site.as_bytes());
            out.extend_from_slice(&totals.accepted.to_le_bytes());
            entries += 1;
            let duplicates = (RejectCode::Duplicate, totals.duplicates);
            let outcomes: Vec<_> = totals.rejected.iter().map(|(c, n)| (*c, *n)).chain([duplicates]).collect();
            out.push(outcomes.len() as u8);
            for (code, count) in outcomes {
                codec::put_outcome(out, &Outcome { site: String::new(), code, count });
            }
        }
        out[start..start + 4].copy_from_slice(&entries.to_le_bytes());
    }

    /// Reads what [`Totals::encode`] wrote and returns the rest.
    pub fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (count, mut rest) = bytes.split_first_chunk::<4>()?;
        let mut totals = Self::default();
        for _ in 0..u32::from_le_bytes(*count) {
            let (len, tail) = rest.split_first()?;
            let (site, tail) = tail.split_at_checked(usize::from(*len))?;
            let (accepted, tail) = tail.split_first_chunk::<8>()?;
            let (outcomes, mut tail) = tail.split_first()?;
            let site = totals.site(std::str::from_utf8(site).ok()?);
            site.accepted = u64::from_le_bytes(*accepted);
            for _ in 0..*outcomes {
                let (Entry::Outcome { code, count, .. }, after) = codec::take(tail).ok()? else { return None };
                site.refuse(code, count);
                tail = after;
            }
            rest = tail;
        }
        Some((totals, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_round_trip() {
        let mut totals = Totals::default();
        totals.site("shop").accepted = 1 << 40;
        totals.site("shop").refuse(RejectCode::Duplicate, 3);
        totals.site("shop").refuse(RejectCode::InvalidJson, 4);
        totals.site("other").refuse(RejectCode::InvalidUrl, 1);
        assert_eq!(totals.site("shop").received(), (1 << 40) + 7);
        let mut bytes = Vec::new();
        totals.encode(&mut bytes);
        bytes.push(1);
        assert_eq!(Totals::decode(&bytes), Some((totals, &[1][..])));
        for cut in 0..bytes.len() - 1 {
            assert!(Totals::decode(&bytes[..cut]).is_none());
        }
    }
}
