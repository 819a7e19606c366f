//! A value as it lies in Redis: a header of fixed length and the body.
//!
//! ```text
//! 0  "tc"           4  generation u64   20  lifetime ms u64    32  tag u64      44  body
//! 2  version 1     12  stored at  u64   28  fill took ms u32   40  crc32 u32
//! 3  flags: 1 is "does not exist"
//! ```
//!
//! Numbers are big-endian; `claim.lua` reads the first three. The sum is over all that is not it. What cannot be read is
//! not there.

use bytes::Bytes;

use crate::clock::UnixMillis;

const HEADER: usize = 44;
const SUM: std::ops::Range<usize> = 40..44;
const MAGIC: [u8; 3] = *b"tc\x01";
const NEGATIVE: u8 = 1;

/// What was stored.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stored {
    pub generation: u64,
    pub stored_at: UnixMillis,
    pub lifetime: UnixMillis,
    pub delta: f64,
    pub tag: u64,
    pub body: Option<Bytes>,
}

impl Stored {
    pub fn encode(&self) -> Vec<u8> {
        let body = self.body.as_deref().unwrap_or_default();
        let mut bytes = Vec::with_capacity(HEADER + body.len());
        let unsigned = |n: i64| u64::try_from(n).unwrap_or(0).to_be_bytes();
        bytes.extend_from_slice(&MAGIC);
        bytes.push(if self.body.is_none() { NEGATIVE } else { 0 });
        bytes.extend_from_slice(&self.generation.to_be_bytes());
        bytes.extend_from_slice(&unsigned(self.stored_at));
        bytes.extend_from_slice(&unsigned(self.lifetime));
        bytes.extend_from_slice(&(self.delta.clamp(0.0, 1e9).ceil() as u32).to_be_bytes());
        bytes.extend_from_slice(&self.tag.to_be_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(body);
        let sum = sum(&bytes);
        bytes[SUM].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// What the bytes say, if they say anything.
    pub fn decode(bytes: Bytes) -> Option<Self> {
        let at = |from: usize| -> Option<u64> { Some(u64::from_be_bytes(bytes.get(from..from + 8)?.try_into().ok()?)) };
        let short =
            |from: usize| -> Option<u32> { Some(u32::from_be_bytes(bytes.get(from..from + 4)?.try_into().ok()?)) };
        if bytes.len() < HEADER || bytes[..3] != MAGIC || bytes[3] > NEGATIVE || short(SUM.start)? != sum(&bytes) {
            return None;
        }
        let negative = bytes[3] == NEGATIVE;
        Some(Self {
            generation: at(4)?,
            stored_at: i64::try_from(at(12)?).ok()?,
            lifetime: i64::try_from(at(20)?).ok()?,
            delta: f64::from(short(28)?),
            tag: at(32)?,
            body: (!negative).then(|| bytes.slice(HEADER..)),
        })
    }
}

fn sum(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..SUM.start]);
    hasher.update(&bytes[HEADER..]);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(
            generation: u64, stored_at in 0..i64::MAX, lifetime in 0..i64::MAX, delta in 0..1_000_000_u32, tag: u64,
            body in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200)), flip in 0..2000_usize,
        ) {
            let body = body.map(Bytes::from);
            let stored = Stored { generation, stored_at, lifetime, delta: f64::from(delta), tag, body };
            let mut bytes = stored.encode();
            prop_assert_eq!(Stored::decode(bytes.clone().into()), Some(stored));
            let bit = flip % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Stored::decode(bytes.clone().into()), None, "one bit is wrong");
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes.truncate(flip % bytes.len());
            prop_assert_eq!(Stored::decode(bytes.into()), None, "the end is missing");
        }

        #[test]
        fn anything_foreign_is_not_there(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(Stored::decode(bytes.into()), None);
        }
    }
}
