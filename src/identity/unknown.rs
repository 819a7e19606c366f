//! Names of keys that tokens bear and nobody knows here, and whether they have been looked for since.
//!
//! How often they may be looked for is bounded, so a token of a key that is hours old and one of a key that was made a moment
//! ago look alike until the next reading. A name is therefore not refused before a reading has gone well that began after the
//! name was first seen: one that was under way may have been answered before there was that key.

use std::hash::{BuildHasher, RandomState};

use hashlink::LinkedHashMap;

/// Names that are kept for each issuer; 50 KB or so.
///
/// Whoever asks with a name that does not fit is refused at once, if the last reading went well. That can be wrong in the ten
/// seconds of a flood of names, but to say 503 to all of them would let anybody who makes up names have us answer as many 5xx
/// as he likes, and those count: against us where we stand behind a balancer, and in what takes back a change of the config.
const NAMES: usize = 1024;

/// What is known of them.
#[derive(Debug)]
pub(super) struct Unknown {
    /// By hashes that nobody can aim at, the one that was seen first in front: readings that had begun until then.
    seen: LinkedHashMap<u64, u64>,
    hasher: RandomState,
    /// Readings that have begun.
    begun: u64,
    /// The last of them that went well.
    well: u64,
}

impl Unknown {
    pub fn new() -> Self {
        Self { seen: LinkedHashMap::new(), hasher: RandomState::new(), begun: 0, well: 0 }
    }

    fn of(&self, name: Option<&str>) -> u64 {
        self.hasher.hash_one(name)
    }

    /// Remembers a name that is not known, if it is new and there is a place.
    pub fn see(&mut self, name: Option<&str>) {
        let name = self.of(name);
        if self.seen.contains_key(&name) {
            return;
        }
        if self.seen.len() >= NAMES {
            // One that is answered may be forgotten: the worst is that it has to wait for a reading again. One that waits
            // may not, or a flood of names would let none be answered.
            match self.seen.front() {
                Some((_, before)) if *before < self.well => _ = self.seen.pop_front(),
                _ => return,
            }
        }
        self.seen.insert(name, self.begun);
    }

    /// How many readings have begun.
    pub fn begun(&self) -> u64 {
        self.begun
    }

    /// One begins; its number.
    pub fn begin(&mut self) -> u64 {
        self.begun += 1;
        self.begun
    }

    /// It went well.
    pub fn succeeded(&mut self, reading: u64) {
        self.well = self.well.max(reading);
    }

    /// Whether a name was looked for in vain since it was first seen; also if that is not remembered.
    pub fn answered(&self, name: Option<&str>) -> bool {
        self.seen.get(&self.of(name)).is_none_or(|before| *before < self.well)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(unknown: &mut Unknown) {
        let reading = unknown.begin();
        unknown.succeeded(reading);
    }

    #[test]
    fn only_a_reading_that_began_later_answers_and_only_if_it_went_well() {
        let mut unknown = Unknown::new();
        let under_way = unknown.begin();
        unknown.see(Some("new"));
        unknown.see(None);
        unknown.succeeded(under_way);
        assert!(!unknown.answered(Some("new")) && !unknown.answered(None));
        let failed = unknown.begin();
        assert!(!unknown.answered(Some("new")), "{failed} has told nothing");
        read(&mut unknown);
        assert!(unknown.answered(Some("new")) && unknown.answered(None));
        unknown.see(Some("new"));
        assert!(unknown.answered(Some("new")), "it stays so");
    }

    #[test]
    fn a_flood_of_names_takes_no_place_from_those_who_wait_and_ends_with_the_next_reading() {
        let mut unknown = Unknown::new();
        unknown.see(Some("new"));
        for n in 0..100_000 {
            unknown.see(Some(&format!("made up {n}")));
        }
        assert_eq!(unknown.seen.len(), NAMES);
        assert!(!unknown.answered(Some("new")));
        assert!(unknown.answered(Some("made up 99999")), "there was no place");
        let waiting = (0..100_000).filter(|n| !unknown.answered(Some(&format!("made up {n}")))).count();
        assert_eq!(waiting, NAMES - 1, "no more of them wait");
        read(&mut unknown);
        unknown.see(Some("newer"));
        assert!(!unknown.answered(Some("newer")), "there is a place again");
        assert_eq!(unknown.seen.len(), NAMES);
    }
}
