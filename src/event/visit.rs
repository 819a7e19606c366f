//! Visits: the sessions of visitors who send no `session_id`.
//!
//! A visit ends after a time without an event (30 minutes unless configured). The journal's writer assigns it before
//! the event is written, so that every reader of the journal, now or later, finds the same session in the event.

use hashbrown::HashMap;
use xxhash_rust::xxh3::xxh3_64;

use crate::clock::UnixMillis;

#[derive(Clone, Copy, Debug, PartialEq)]
struct Visit {
    /// Names the visit; never changes, while `first` may move back when events come late.
    key: UnixMillis,
    first: UnixMillis,
    last: UnixMillis,
    /// When this server last heard of it, which is not when it happened for imported or delayed events.
    heard: UnixMillis,
}

/// The open visits, by visitor.
#[derive(Debug)]
pub struct Visits {
    timeout: UnixMillis,
    most: usize,
    open: HashMap<u64, Visit>,
    evicted: u64,
}

impl Visits {
    /// Visits that end after `timeout` milliseconds of silence; at most `most` are kept open.
    pub fn new(timeout: UnixMillis, most: usize) -> Self {
        Self { timeout, most: most.max(2), open: HashMap::new(), evicted: 0 }
    }

    /// The session of an event that happened `at` and arrives `now`.
    pub fn assign(&mut self, visitor: u64, at: UnixMillis, now: UnixMillis) -> u64 {
        let timeout = self.timeout;
        if self.open.len() >= self.most && !self.open.contains_key(&visitor) {
            self.make_room(now);
        }
        let visit = self.open.entry(visitor).or_insert(Visit { key: at, first: at, last: at, heard: now });
        visit.heard = now;
        if at > visit.last + timeout {
            *visit = Visit { key: at, first: at, last: at, heard: now };
        } else if at < visit.first - timeout {
            // Older than the open visit: one session for each time-out's length of the past.
            return name(visitor, at - at.rem_euclid(timeout));
        }
        visit.first = visit.first.min(at);
        visit.last = visit.last.max(at);
        name(visitor, visit.key)
    }

    /// Forgets visits that ended before `now`.
    pub fn expire(&mut self, now: UnixMillis) {
        let timeout = self.timeout;
        self.open.retain(|_, visit| visit.heard + timeout >= now);
        if self.open.capacity() > 4 * self.open.len().max(1024) {
            self.open.shrink_to_fit();
        }
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Visits closed early because too many were open at once; each may have become two sessions.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    fn make_room(&mut self, now: UnixMillis) {
        self.expire(now);
        if self.open.len() < self.most {
            return;
        }
        // Half at once, so that the cost of looking is shared by as many new visits.
        let mut heard: Vec<UnixMillis> = self.open.values().map(|visit| visit.heard).collect();
        let middle = heard.len() / 2;
        let (_, limit, _) = heard.select_nth_unstable(middle);
        let limit = *limit;
        let before = self.open.len();
        let mut drop = before / 2;
        self.open.retain(|_, visit| {
            let goes = visit.heard <= limit && drop > 0;
            drop -= usize::from(goes);
            !goes
        });
        self.evicted += (before - self.open.len()) as u64;
    }

    /// The open visits as bytes, for the journal's checkpoint.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.open.len() as u64).to_le_bytes());
        for (visitor, visit) in &self.open {
            out.extend_from_slice(&visitor.to_le_bytes());
            for at in [visit.key, visit.first, visit.last, visit.heard] {
                out.extend_from_slice(&at.to_le_bytes());
            }
        }
    }

    /// Reads what [`Visits::encode`] wrote and returns the rest; `None` if it is cut short.
    pub fn decode<'a>(&mut self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let (count, mut rest) = bytes.split_first_chunk::<8>()?;
        let count = usize::try_from(u64::from_le_bytes(*count)).ok()?;
        if rest.len() / 40 < count {
            return None;
        }
        for _ in 0..count {
            let mut word = || {
                let (word, tail) = rest.split_first_chunk::<8>()?;
                rest = tail;
                Some(*word)
            };
            let visitor = u64::from_le_bytes(word()?);
            let mut at = || Some(i64::from_le_bytes(word()?));
            let visit = Visit { key: at()?, first: at()?, last: at()?, heard: at()? };
            self.open.insert(visitor, visit);
        }
        Some(rest)
    }
}

fn name(visitor: u64, key: UnixMillis) -> u64 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&visitor.to_le_bytes());
    bytes[8..].copy_from_slice(&key.to_le_bytes());
    xxh3_64(&bytes).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::MINUTE;

    fn visits() -> Visits {
        Visits::new(30 * MINUTE, 1000)
    }

    #[test]
    fn a_visit_ends_after_half_an_hour_of_silence() {
        let mut visits = visits();
        let first = visits.assign(1, 0, 0);
        assert_eq!(visits.assign(1, 30 * MINUTE, 0), first);
        assert_eq!(visits.assign(1, 60 * MINUTE, 0), first, "each event keeps it open");
        assert_ne!(visits.assign(1, 90 * MINUTE + 1, 0), first);
        assert_ne!(visits.assign(2, 0, 0), first);
    }

    #[test]
    fn late_events_join_the_visit_they_touch() {
        let mut visits = visits();
        let visit = visits.assign(1, 100 * MINUTE, 0);
        assert_eq!(visits.assign(1, 80 * MINUTE, 0), visit);
        assert_eq!(visits.assign(1, 55 * MINUTE, 0), visit, "the visit now begins at 80");
        let old = visits.assign(1, 5 * MINUTE, 0);
        assert_ne!(old, visit);
        assert_eq!(visits.assign(1, 6 * MINUTE, 0), old);
        assert_eq!(visits.assign(1, 101 * MINUTE, 0), visit, "the old event did not close it");
    }

    #[test]
    fn a_checkpoint_holds_every_visit() {
        let mut visits = visits();
        let sessions: Vec<u64> = (0..100).map(|v| visits.assign(v, v as i64, 0)).collect();
        let mut bytes = Vec::new();
        visits.encode(&mut bytes);
        bytes.push(9);
        let mut again = Visits::new(30 * MINUTE, 1000);
        assert_eq!(again.decode(&bytes), Some(&[9][..]));
        for (v, session) in sessions.iter().enumerate() {
            assert_eq!(again.assign(v as u64, MINUTE, 0), *session);
        }
        assert_eq!(Visits::new(1, 1).decode(&bytes[..50]), None);
    }

    #[test]
    fn memory_is_bounded_and_the_loss_is_counted() {
        let mut visits = Visits::new(30 * MINUTE, 100);
        for v in 0..1000 {
            visits.assign(v, 0, v as i64);
            assert!(visits.len() <= 100);
        }
        assert!(visits.evicted() >= 900);
        visits.expire(31 * MINUTE + 1000);
        assert!(visits.is_empty());
    }
}
