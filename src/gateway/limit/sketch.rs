//! What is remembered of buckets that had to go: for each cell the latest TAT of all that fell into it.
//!
//! A key reads the least of its cells, which is never before its own TAT: a bucket that was evicted may come back emptier
//! than it was, but never fuller (a count-min sketch, Cormode and Muthukrishnan 2005, with maxima for sums). Cells heal by
//! themselves as time passes their moments. Limits that take very different times to fill have cells apart, so that a long one
//! under pressure does not spoil a short one.

use crate::clock::Nanos;

const ROWS: usize = 2;
const CLASSES: usize = 4;
/// A cell counts in 2^26 ns, 67 ms, rounded up: 32 bits last for nine years.
const TICK: u32 = 26;

#[derive(Debug)]
pub(super) struct Sketch {
    cells: Box<[u32]>,
    width: usize,
}

impl Sketch {
    /// As large as `bytes` allow, in a power of two.
    pub fn new(bytes: usize) -> Self {
        let cells = bytes / size_of::<u32>() / (ROWS * CLASSES);
        let width = (cells / 2 + 1).next_power_of_two();
        Self { cells: vec![0; width * ROWS * CLASSES].into_boxed_slice(), width }
    }

    /// Which cells a limit uses, by the time that it takes from empty to full.
    pub fn class(fill: u64) -> u8 {
        const SECOND: u64 = 1_000_000_000;
        match fill {
            0..SECOND => 0,
            SECOND..16_000_000_000 => 1,
            16_000_000_000..256_000_000_000 => 2,
            _ => 3,
        }
    }

    pub fn bytes(&self) -> usize {
        size_of_val(&*self.cells)
    }

    fn places(&self, class: u8, hash: u64) -> [usize; ROWS] {
        let first = usize::from(class) % CLASSES * ROWS * self.width;
        let mask = self.width - 1;
        [first + (hash >> 12) as usize % (mask + 1), first + self.width + (hash >> 28) as usize % (mask + 1)]
    }

    /// A bucket goes that is full at a moment.
    pub fn add(&mut self, class: u8, hash: u64, full: Nanos) {
        let tick = u32::try_from((full >> TICK) + 1).unwrap_or(u32::MAX);
        for place in self.places(class, hash) {
            if let Some(cell) = self.cells.get_mut(place) {
                *cell = tick.max(*cell);
            }
        }
    }

    /// A moment at which a key's bucket is full for sure; 0 when nothing is remembered.
    pub fn read(&self, class: u8, hash: u64) -> Nanos {
        let cells = self.places(class, hash).map(|place| self.cells.get(place).copied().unwrap_or(u32::MAX));
        u64::from(cells.into_iter().min().unwrap_or(0)) << TICK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_ever_read_too_early_and_classes_are_apart() {
        let mut sketch = Sketch::new(8192);
        assert_eq!(sketch.bytes(), 8192);
        let keys: Vec<(u64, u64)> = (1..5000_u64)
            .map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15), 86_400_000_000_000 + n * 7_777_777))
            .collect();
        for (hash, full) in &keys {
            sketch.add(1, *hash, *full);
        }
        assert!(keys.iter().all(|(hash, full)| sketch.read(1, *hash) >= *full));
        assert!(keys.iter().all(|(hash, _)| sketch.read(2, *hash) == 0));
    }
}
