//! What an instance has of a product, as the others read it: MessagePack, since Redis' scripts unpack that by themselves.
//!
//! An array of integers: version, the second from which on it is exact, then twice (views, units) how many buckets, and for
//! each its distance from the one before and its count. `share.lua` reads the same. Pure.

use crate::catalog::popularity::buckets::{Counts, edges};
use crate::catalog::popularity::scores::Product;
use crate::catalog::popularity::{Kind, Window};
use crate::clock::{HOUR, SECOND, UnixMillis};

const VERSION: u64 = 1;
/// By how much the clock of another instance may be ahead; what it has beyond is not believed.
const AHEAD: UnixMillis = HOUR;

/// What one instance, or some, have of a product.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Views and units.
    pub counts: [Counts; 2],
    /// From this moment on that is exact.
    pub exact_from: UnixMillis,
}

impl Part {
    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.counts.iter().all(|counts| counts.sum() == 0)
    }

    /// Views and units that count when the windows begin at `edges`.
    pub fn sums(&self, edges: [u32; 2]) -> [u64; 2] {
        [self.counts[0].since(edges[0]), self.counts[1].since(edges[1])]
    }

    /// Drops what counts no more, and what lies too far ahead; true when there was any.
    pub fn slide(&mut self, now: UnixMillis) -> bool {
        let (oldest, mut moved) = (edges(now), false);
        for kind in Kind::ALL {
            moved |= self.counts[kind as usize].keep(oldest[kind as usize], newest(kind.window(), now));
        }
        moved
    }

    /// How long there is still something of each kind, in milliseconds.
    pub fn lives(&self, now: UnixMillis) -> [i64; 2] {
        Kind::ALL.map(|kind| {
            let last = self.counts[kind as usize].iter().last();
            last.map_or(0, |(bucket, _)| kind.window().leaves(bucket) - now)
        })
    }
}

fn newest(window: Window, now: UnixMillis) -> u32 {
    window.bucket(now.saturating_add(AHEAD))
}

/// Packs what is counted of a product.
pub fn encode(product: &Product) -> Vec<u8> {
    let mut ints = vec![VERSION, product.exact_from.max(0).unsigned_abs().div_ceil(SECOND.unsigned_abs())];
    for counts in &product.counts {
        ints.push(counts.iter().len() as u64);
        let mut before = 0;
        for (bucket, n) in counts.iter() {
            ints.extend([u64::from(bucket - before), u64::from(n)]);
            before = bucket;
        }
    }
    let mut out = Vec::with_capacity(3 + 3 * ints.len());
    out.push(0xdc);
    out.extend((ints.len() as u16).to_be_bytes());
    for n in ints {
        match n {
            0..=0x7f => out.push(n as u8),
            0x80..=0xff => out.extend([0xcc, n as u8]),
            0x100..=0xffff => {
                out.push(0xcd);
                out.extend((n as u16).to_be_bytes());
            }
            0x1_0000..=0xffff_ffff => {
                out.push(0xce);
                out.extend((n as u32).to_be_bytes());
            }
            _ => {
                out.push(0xcf);
                out.extend(n.to_be_bytes());
            }
        }
    }
    out
}

/// Adds what another instance has packed; false, and nothing is added, when that is none of ours.
pub fn add(to: &mut Part, bytes: &[u8]) -> bool {
    let Some(part) = decode(bytes) else { return false };
    for (to, from) in to.counts.iter_mut().zip(&part.counts) {
        from.iter().for_each(|(bucket, n)| to.add(bucket, n));
    }
    to.exact_from = to.exact_from.max(part.exact_from);
    true
}

fn decode(bytes: &[u8]) -> Option<Part> {
    let mut rest = bytes.strip_prefix(&[0xdc])?;
    let length = u16::from_be_bytes(*take(&mut rest)?);
    let mut ints = 0;
    let mut next = || {
        ints += 1;
        int(&mut rest)
    };
    if next()? != VERSION {
        return None;
    }
    let exact_from = i64::try_from(next()?).ok()?.checked_mul(SECOND)?;
    let mut part = Part { counts: Default::default(), exact_from };
    for counts in &mut part.counts {
        let mut bucket = 0u32;
        for _ in 0..next()? {
            bucket = bucket.checked_add(u32::try_from(next()?).ok()?)?;
            counts.add(bucket, u32::try_from(next()?).ok()?);
        }
    }
    (ints == usize::from(length) && rest.is_empty()).then_some(part)
}

fn int(from: &mut &[u8]) -> Option<u64> {
    Some(match take::<1>(from)?[0] {
        n @ 0..=0x7f => u64::from(n),
        0xcc => u64::from(take::<1>(from)?[0]),
        0xcd => u64::from(u16::from_be_bytes(*take(from)?)),
        0xce => u64::from(u32::from_be_bytes(*take(from)?)),
        0xcf => u64::from_be_bytes(*take(from)?),
        _ => return None,
    })
}

fn take<'a, const N: usize>(from: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (first, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(first)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use proptest::prelude::*;

    const NOW: UnixMillis = 1_700_000_000_000;

    fn product(views: &[(u32, u32)], units: &[(u32, u32)], exact_from: UnixMillis) -> Product {
        let counts = [views, units].map(|list| {
            let mut counts = Counts::default();
            list.iter().for_each(|(bucket, n)| counts.add(*bucket, *n));
            counts
        });
        Product { id: Arc::from("a"), counts, exact_from }
    }

    #[test]
    fn parts_add_up_and_slide() {
        let (views, units) = (Kind::Views.window().bucket(NOW), Kind::Units.window().bucket(NOW));
        let mut part = Part::default();
        assert!(add(&mut part, &encode(&product(&[(views - 95, 3), (views, 1)], &[(units, u32::MAX)], 0))));
        assert!(add(&mut part, &encode(&product(&[(views, 5)], &[(units - 167, 9)], NOW + 5))));
        assert_eq!(part.sums(edges(NOW)), [9, u64::from(u32::MAX) + 9]);
        assert!(part.exact_from >= NOW + 5);
        assert!(part.lives(NOW)[0] <= 24 * HOUR && part.lives(NOW)[0] > 23 * HOUR);
        assert!(!part.slide(NOW) && part.slide(NOW + HOUR) && !part.is_empty());
        assert_eq!(part.sums([0, 0]), [6, u64::from(u32::MAX)]);
        assert!(part.slide(NOW + 200 * HOUR) && part.is_empty());
        // Of a clock that is a day ahead.
        assert!(add(&mut part, &encode(&product(&[(views + 96, 3)], &[], 0))) && part.slide(NOW) && part.is_empty());
    }

    #[test]
    fn what_is_not_ours_adds_nothing() {
        let whole = encode(&product(&[(7, 300)], &[(9, 70_000)], NOW));
        for cut in 0..whole.len() {
            assert!(!add(&mut Part::default(), &whole[..cut]), "cut at {cut}");
        }
        let mut other = whole;
        other[3] = 2;
        assert!(!add(&mut Part::default(), &other), "another version");
    }

    proptest! {
        #[test]
        fn what_is_packed_is_read(
            views in proptest::collection::btree_map(any::<u32>(), 1u32.., 0..96),
            units in proptest::collection::btree_map(any::<u32>(), 1u32.., 0..168),
            exact_from in 0..4_000_000_000i64,
        ) {
            let list = |map: std::collections::BTreeMap<u32, u32>| map.into_iter().collect::<Vec<_>>();
            let product = product(&list(views), &list(units), exact_from * SECOND);
            let part = decode(&encode(&product)).unwrap();
            prop_assert_eq!((part.counts, part.exact_from), (product.counts, product.exact_from));
        }

        #[test]
        fn no_rubbish_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            add(&mut Part::default(), &bytes);
            add(&mut Part::default(), &[&[0xdc, 0, 9, 1][..], &bytes].concat());
        }
    }
}
