//! How many different ones: exact while they are few, a sketch when they are many.
//!
//! Up to a limit the 64-bit hashes themselves are kept and the count is exact. Beyond it they go into a HyperLogLog sketch
//! (Flajolet et al. 2007; Apache DataSketches' `Hll8` with 2^14 registers, 16 KiB), whose bound on the error comes with
//! every answer. Both states, and the count, follow from the set of hashes alone: whatever the order and the batches they
//! came in, and however sets were united, the number is the same.

use datasketches::hll::{HllSketch, HllType, HllUnion};
use hashbrown::HashSet;

/// 2^14 registers.
const LG_K: u8 = 14;
/// Two standard deviations of the order-independent estimate, 2 * 1.039 / sqrt(2^14), rounded up.
const ERROR_BOUND: f64 = 0.0163;
/// Memory of a sketch.
const SKETCH_BYTES: usize = (1 << LG_K) + 256;

const VERSION: u8 = 1;
const EXACT: u8 = 1;
const SKETCH: u8 = 2;

/// A set of hashes that can tell how many there are.
#[derive(Clone, Debug)]
pub struct Uniques {
    limit: usize,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    Exact(HashSet<u64>),
    /// A union and not a plain sketch, because other sketches come to be merged into it.
    Sketch(Box<HllUnion>),
}

/// A number of different ones.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Unique {
    /// How many.
    pub count: u64,
    /// How far off that may be, as a part of the count (two standard deviations); `None` when it is exact.
    pub error_bound: Option<f64>,
}

impl Unique {
    /// The bound of an answer with several numbers: the widest.
    pub fn widest(bounds: impl IntoIterator<Item = Option<f64>>) -> Option<f64> {
        bounds.into_iter().flatten().reduce(f64::max)
    }
}

/// The bytes are no set: a newer version wrote them, or they are damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed set of hashes")]
pub struct MalformedSet;

impl Uniques {
    /// An empty set, exact up to `limit` hashes.
    pub fn new(limit: usize) -> Self {
        Self { limit, state: State::Exact(HashSet::new()) }
    }

    /// Adds a hash. True when the set is exact and did not hold it.
    pub fn insert(&mut self, hash: u64) -> bool {
        match &mut self.state {
            State::Exact(set) => {
                let new = set.insert(hash);
                if new && set.len() > self.limit {
                    self.promote();
                }
                new
            }
            State::Sketch(sketch) => {
                sketch.update_value(hash);
                false
            }
        }
    }

    /// Adds all that `other` holds.
    pub fn union(&mut self, other: &Uniques) {
        match &other.state {
            State::Exact(set) => set.iter().for_each(|hash| {
                self.insert(*hash);
            }),
            State::Sketch(sketch) => self.merge(&sketch.to_sketch(HllType::Hll8)),
        }
    }

    /// How many there are.
    pub fn count(&self) -> Unique {
        match &self.state {
            State::Exact(set) => Unique { count: set.len() as u64, error_bound: None },
            State::Sketch(sketch) => {
                // Not `estimate`, which is a little better but depends on the order of insertion.
                Unique { count: sketch.composite_estimate().round() as u64, error_bound: Some(ERROR_BOUND) }
            }
        }
    }

    /// Whether [`Uniques::count`] is exact.
    pub fn exact(&self) -> bool {
        matches!(self.state, State::Exact(_))
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        match &self.state {
            State::Exact(set) => set.is_empty(),
            State::Sketch(_) => false,
        }
    }

    /// The hashes, while they are kept.
    pub fn hashes(&self) -> Option<impl Iterator<Item = u64> + '_> {
        match &self.state {
            State::Exact(set) => Some(set.iter().copied()),
            State::Sketch(_) => None,
        }
    }

    /// About how much memory it takes.
    pub fn memory(&self) -> usize {
        size_of::<Self>()
            + match &self.state {
                State::Exact(set) => set.allocation_size(),
                State::Sketch(_) => SKETCH_BYTES,
            }
    }

    /// The set as bytes.
    pub fn encode(&self) -> Vec<u8> {
        match &self.state {
            State::Exact(set) => encode_exact(set.iter().copied().collect()),
            State::Sketch(sketch) => {
                let mut bytes = vec![VERSION, SKETCH];
                bytes.extend_from_slice(&sketch.to_sketch(HllType::Hll8).serialize());
                bytes
            }
        }
    }

    /// Adds what [`Uniques::encode`] or [`encode_exact`] wrote.
    ///
    /// # Errors
    /// [`MalformedSet`]; nothing was added then.
    pub fn absorb(&mut self, bytes: &[u8]) -> Result<(), MalformedSet> {
        match bytes {
            [VERSION, EXACT, hashes @ ..] if hashes.len().is_multiple_of(8) => {
                if let State::Exact(set) = &mut self.state {
                    set.reserve((hashes.len() / 8).min(self.limit + 1 - set.len().min(self.limit)));
                }
                for hash in hashes.as_chunks::<8>().0 {
                    self.insert(u64::from_le_bytes(*hash));
                }
                Ok(())
            }
            [VERSION, SKETCH, sketch @ ..] => {
                let sketch = HllSketch::deserialize(sketch).map_err(|_| MalformedSet)?;
                if sketch.lg_config_k() != LG_K {
                    return Err(MalformedSet);
                }
                self.merge(&sketch);
                Ok(())
            }
            _ => Err(MalformedSet),
        }
    }

    fn merge(&mut self, sketch: &HllSketch) {
        self.promote();
        if let State::Sketch(own) = &mut self.state {
            own.update(sketch);
        }
    }

    fn promote(&mut self) {
        if let State::Exact(set) = &self.state {
            let mut sketch = Box::new(HllUnion::new(LG_K).expect("14 is a valid size"));
            set.iter().for_each(|hash| sketch.update_value(*hash));
            self.state = State::Sketch(sketch);
        }
    }
}

/// Hashes as the bytes of an exact set. Eight bytes each: sorted differences of 10,000 random hashes would take seven.
pub fn encode_exact(mut hashes: Vec<u64>) -> Vec<u8> {
    hashes.sort_unstable();
    let mut bytes = Vec::with_capacity(2 + hashes.len() * 8);
    bytes.extend_from_slice(&[VERSION, EXACT]);
    for hash in hashes {
        bytes.extend_from_slice(&hash.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
#[path = "uniques_tests.rs"]
mod tests;
