//! Invalidations that Redis has not heard of yet. While it has not, its value of such a key is the old one, so this
//! instance neither reads nor writes it there.

use std::collections::HashMap;

use super::Kind;

/// Keys remembered one by one; beyond it their whole type is invalidated instead.
const MOST: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct Pending {
    keys: HashMap<Kind, HashMap<Box<str>, u64>>,
    kinds: HashMap<Kind, u64>,
    count: usize,
    next: u64,
}

/// One of them. A later invalidation of the same is not done with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    pub kind: Kind,
    /// `None` is the whole type.
    pub id: Option<Box<str>>,
    seq: u64,
}

impl Pending {
    pub fn add(&mut self, kind: Kind, id: &str) -> Ticket {
        self.next += 1;
        if self.count >= MOST {
            return self.add_kind(kind);
        }
        let id: Box<str> = id.into();
        if self.keys.entry(kind).or_default().insert(id.clone(), self.next).is_none() {
            self.count += 1;
        }
        Ticket { kind, id: Some(id), seq: self.next }
    }

    pub fn add_kind(&mut self, kind: Kind) -> Ticket {
        self.next += 1;
        // It covers what was pending of single keys.
        self.count -= self.keys.remove(&kind).map_or(0, |keys| keys.len());
        self.kinds.insert(kind, self.next);
        Ticket { kind, id: None, seq: self.next }
    }

    pub fn done(&mut self, ticket: &Ticket) {
        match &ticket.id {
            Some(id) => {
                if let Some(keys) = self.keys.get_mut(&ticket.kind)
                    && keys.get(id) == Some(&ticket.seq)
                {
                    keys.remove(id);
                    self.count -= 1;
                }
            }
            None if self.kinds.get(&ticket.kind) == Some(&ticket.seq) => {
                self.kinds.remove(&ticket.kind);
            }
            None => {}
        }
    }

    pub fn holds(&self, kind: Kind, id: &str) -> bool {
        self.kinds.contains_key(&kind) || self.keys.get(&kind).is_some_and(|keys| keys.contains_key(id))
    }

    pub fn len(&self) -> usize {
        self.count + self.kinds.len()
    }

    /// Some of them: whole types first.
    pub fn some(&self, most: usize) -> Vec<Ticket> {
        let kinds = self.kinds.iter().map(|(kind, seq)| Ticket { kind: *kind, id: None, seq: *seq });
        let keys = self.keys.iter().flat_map(|(kind, keys)| {
            keys.iter().map(|(id, seq)| Ticket { kind: *kind, id: Some(id.clone()), seq: *seq })
        });
        kinds.chain(keys).take(most).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_invalidation_outlives_an_earlier_one_that_is_done() {
        let (mut pending, kind) = (Pending::default(), Kind(0));
        let first = pending.add(kind, "a");
        let second = pending.add(kind, "a");
        pending.done(&first);
        assert!(pending.holds(kind, "a") && !pending.holds(kind, "b") && pending.len() == 1);
        pending.done(&second);
        assert_eq!((pending.holds(kind, "a"), pending.len()), (false, 0));
    }

    #[test]
    fn too_many_keys_become_their_type() {
        let (mut pending, kind) = (Pending::default(), Kind(1));
        for i in 0..MOST + 5 {
            pending.add(kind, &i.to_string());
        }
        assert!(pending.holds(kind, "never named") && !pending.holds(Kind(0), "1"));
        let whole = pending.some(1).remove(0);
        assert_eq!(whole.id, None);
        while let Some(ticket) = pending.some(1).pop() {
            pending.done(&ticket);
        }
        assert_eq!((pending.len(), pending.holds(kind, "1")), (0, false));
    }
}
