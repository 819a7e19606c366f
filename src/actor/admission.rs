//! Admission: what may wait, counted in items and bytes, decided before anything is sent.
//!
//! actix mailboxes do not bound what they hold (`do_send` ignores the limit, and every clone of an address has a slot of
//! its own), so the bound is ours: a [`Permit`] is taken first, travels with the message, and gives its share back when
//! the message has been handled and the permit is dropped. A request pays for its bytes as they come in, and for a place
//! in the queue only when it is complete: clients that send slowly hold no places.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Too much is waiting already. Over HTTP this is 503 with `Retry-After`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too much is waiting to be handled; try again in a second")]
pub struct Overloaded;

/// A budget shared by everyone who wants to send.
#[derive(Clone, Debug)]
pub struct Admission(Arc<Budget>);

#[derive(Debug)]
struct Budget {
    max_items: usize,
    max_bytes: usize,
    items: AtomicUsize,
    bytes: AtomicUsize,
    refused: AtomicU64,
}

impl Admission {
    /// A budget of items and bytes.
    pub fn new(max_items: usize, max_bytes: usize) -> Self {
        Self(Arc::new(Budget {
            max_items,
            max_bytes,
            items: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
        }))
    }

    /// A permit for nothing yet: let it [`Permit::grow`], then [`Permit::queue`].
    pub fn begin(&self) -> Permit {
        Permit { budget: self.0.clone(), bytes: 0, queued: false }
    }

    /// Takes one item of so many bytes.
    pub fn admit(&self, bytes: usize) -> Result<Permit, Overloaded> {
        let mut permit = self.begin();
        permit.queue()?;
        permit.grow(bytes)?;
        Ok(permit)
    }

    /// Items that wait now.
    pub fn items(&self) -> usize {
        self.0.items.load(Ordering::Relaxed)
    }

    /// Bytes that wait now.
    pub fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// How often something was refused.
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }
}

/// A share of the budget. Dropping it gives the share back.
#[derive(Debug)]
pub struct Permit {
    budget: Arc<Budget>,
    bytes: usize,
    queued: bool,
}

impl Permit {
    /// Takes a place in the queue.
    pub fn queue(&mut self) -> Result<(), Overloaded> {
        if !self.queued && self.budget.items.fetch_add(1, Ordering::Relaxed) >= self.budget.max_items {
            self.budget.items.fetch_sub(1, Ordering::Relaxed);
            self.budget.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Overloaded);
        }
        self.queued = true;
        Ok(())
    }

    /// A permit of its own on the same budget, for work on another thread.
    pub fn split(&self) -> Permit {
        Permit { budget: self.budget.clone(), bytes: 0, queued: false }
    }

    /// Takes over what a split permit holds.
    pub fn join(&mut self, mut other: Permit) {
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Takes more bytes for the same item, as when a body turns out longer.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Overloaded> {
        let before = self.budget.bytes.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.budget.max_bytes {
            self.budget.bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.budget.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Overloaded);
        }
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        if self.queued {
            self.budget.items.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_and_bytes_are_both_bounded_and_come_back() {
        let admission = Admission::new(2, 100);
        let mut first = admission.admit(40).unwrap();
        let second = admission.admit(40).unwrap();
        assert_eq!(admission.admit(0).unwrap_err(), Overloaded);
        drop(second);
        assert!(admission.admit(61).is_err());
        assert!(first.grow(61).is_err());
        first.grow(60).unwrap();
        assert_eq!((admission.items(), admission.bytes(), admission.refused()), (1, 100, 3));
        drop(first);
        let mut slow = admission.begin();
        slow.grow(10).unwrap();
        assert_eq!((admission.items(), admission.bytes()), (0, 10), "no place before it is complete");
        slow.queue().unwrap();
        slow.queue().unwrap();
        assert_eq!(admission.items(), 1);
        drop(slow);
        assert_eq!((admission.items(), admission.bytes()), (0, 0));
    }
}
