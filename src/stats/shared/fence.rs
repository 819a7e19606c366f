//! How far the shared store has counted this instance's journal, group by group, and what follows from it. Pure.

use crate::clock::UnixMillis;

use super::fold::Known;

/// The fence of one slot group, as it is in Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fence {
    /// The next entry.
    pub next: u64,
    /// What was put down at once, when the group was made.
    pub known: Known,
    /// Whether the instance's windows are still to be published whole.
    pub parts_pending: bool,
}

/// The fences of all groups; a group without one is `None`: it is new, or was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fences(pub Vec<Option<Fence>>);

impl Fences {
    /// Groups that have none.
    pub fn missing(&self) -> Vec<usize> {
        (0..self.0.len()).filter(|group| self.0[*group].is_none()).collect()
    }

    /// Where reading begins, once no group is missing.
    pub fn start(&self) -> u64 {
        self.0.iter().flatten().map(|fence| fence.next).min().unwrap_or(0)
    }

    /// The first entry after `from` at which a delta has to end: where another group goes on, or where what was put down
    /// at once ends.
    pub fn boundary(&self, from: u64) -> Option<u64> {
        let ends = self.0.iter().flatten().flat_map(|fence| [fence.next, fence.known.base]);
        ends.filter(|end| *end > from).min()
    }

    /// Groups that the delta `[from, to)` is for.
    pub fn open(&self, from: u64) -> impl Iterator<Item = (usize, Fence)> + '_ {
        let open = move |(group, fence): (usize, &Option<Fence>)| Some((group, (*fence)?));
        self.0.iter().enumerate().filter_map(open).filter(move |(_, fence)| fence.next <= from)
    }

    /// The delta up to `to` is in this group.
    pub fn advance(&mut self, group: usize, to: u64) {
        if let Some(Some(fence)) = self.0.get_mut(group) {
            fence.next = fence.next.max(to);
        }
    }
}

/// What the script says of a delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is in now.
    Applied,
    /// It was in: an earlier sending took effect although nothing was heard of it.
    Already,
    /// The store does not stand where it had confirmed to stand: it has lost something, or somebody else writes here.
    Elsewhere,
}

impl Outcome {
    /// Of the script's word.
    pub fn of(word: &str) -> Option<Self> {
        match word {
            "ok" => Some(Self::Applied),
            "already" => Some(Self::Already),
            "missing" | "behind" | "inside" | "exists" => Some(Self::Elsewhere),
            _ => None,
        }
    }
}

impl Fence {
    /// Of a hash's fields `next`, `base`, `since` and `parts`.
    pub fn parse(next: &str, base: Option<&str>, since: Option<&str>, parts: Option<&str>) -> Option<Self> {
        let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
        Some(Self {
            next: next.parse().ok()?,
            known: Known {
                base: number(base).unwrap_or(0).max(0) as u64,
                since: number(since).unwrap_or(UnixMillis::MIN),
            },
            parts_pending: parts == Some("pending"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fence(next: u64, base: u64) -> Option<Fence> {
        Some(Fence { next, known: Known { base, since: 0 }, parts_pending: false })
    }

    #[test]
    fn deltas_end_where_groups_differ() {
        let mut fences = Fences(vec![fence(10, 0), fence(30, 0), fence(10, 20)]);
        assert_eq!(fences.start(), 10);
        assert_eq!(fences.boundary(10), Some(20));
        assert_eq!(fences.open(10).map(|(group, _)| group).collect::<Vec<_>>(), [0, 2]);
        [0, 2].into_iter().for_each(|group| fences.advance(group, 20));
        assert_eq!((fences.start(), fences.boundary(20)), (20, Some(30)));
        [0, 2].into_iter().for_each(|group| fences.advance(group, 30));
        assert_eq!(fences.boundary(30), None);
        assert_eq!(fences.open(30).count(), 3);
        assert_eq!(Fences(vec![None, fence(1, 0)]).missing(), [0]);
    }

    #[test]
    fn a_fence_is_read_from_its_fields() {
        let parsed = Fence::parse("7", Some("5"), Some("-3"), Some("pending")).unwrap();
        assert_eq!(parsed, Fence { next: 7, known: Known { base: 5, since: -3 }, parts_pending: true });
        assert_eq!(Fence::parse("7", None, None, Some("done")).unwrap().known.base, 0);
        assert_eq!(Fence::parse("x", None, None, None), None);
        assert_eq!(Outcome::of("missing"), Some(Outcome::Elsewhere));
        assert_eq!(Outcome::of("?"), None);
    }
}
