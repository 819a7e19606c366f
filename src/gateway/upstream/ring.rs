//! The ring of `consistent_hash` (Karger et al. 1997): each target has points on it that follow from its address alone, so a
//! target that goes takes only its own keys along, and instances with the same targets agree on all of them.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Points of a target with the greatest weight.
const POINTS: u32 = 160;

/// Points in order, each with the place of its target in the list.
#[derive(Debug, Default)]
pub(super) struct Ring(Vec<(u64, u32)>);

impl Ring {
    /// A ring of addresses and weights. Its weights are relative to the next power of two of the greatest, so that keys move
    /// among targets that stay only where that changes.
    pub fn new<'a>(targets: impl Iterator<Item = (&'a str, u32)> + Clone) -> Self {
        let greatest = targets.clone().map(|(_, weight)| weight).max().unwrap_or(1);
        // With equal weights each has all the points.
        let equal = targets.clone().all(|(_, weight)| weight == greatest);
        let unit = if equal { greatest } else { greatest.next_power_of_two() }.max(1);
        let mut points: Vec<_> = (0u32..)
            .zip(targets)
            .flat_map(|(place, (address, weight))| {
                let points = (u64::from(weight) * u64::from(POINTS)).div_ceil(u64::from(unit));
                (0..points).map(move |n| (xxh3_64_with_seed(address.as_bytes(), n), place))
            })
            .collect();
        points.sort_unstable();
        Self(points)
    }

    /// Places of targets from a key on, in the order of their points; each comes as often as it has points.
    pub fn from(&self, key: u64) -> impl Iterator<Item = usize> {
        // Keys of callers may be alike in their high bits.
        let key = mix(key);
        let at = self.0.partition_point(|(point, _)| *point < key);
        let (before, after) = self.0.split_at(at);
        after.iter().chain(before).map(|(_, place)| *place as usize)
    }
}

/// Spreads a number over all of its bits (the end of SplitMix64: Steele, Lea, Flood 2014).
pub(super) fn mix(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(ring: &Ring, names: &[String], key: u64) -> String {
        names[ring.from(key).next().unwrap()].clone()
    }

    fn ring(names: &[String], weight: impl Fn(usize) -> u32) -> Ring {
        let weights: Vec<u32> = (0..names.len()).map(weight).collect();
        Ring::new(names.iter().map(String::as_str).zip(weights))
    }

    #[test]
    fn a_target_that_goes_moves_only_its_own_keys() {
        let names: Vec<String> = (0..10).map(|n| format!("10.0.0.{n}:80")).collect();
        let all = ring(&names, |_| 3);
        for gone in 0..10 {
            let rest: Vec<_> = names.iter().filter(|name| **name != names[gone]).cloned().collect();
            let fewer = ring(&rest, |_| 3);
            let mut moved = 0;
            for key in 0..20_000 {
                let before = first(&all, &names, key);
                if before == names[gone] {
                    moved += 1;
                } else {
                    assert_eq!(before, first(&fewer, &rest, key));
                }
            }
            assert!((1300..2700).contains(&moved), "its share was {moved} of 20,000");
        }
    }

    #[test]
    fn shares_follow_weights() {
        let names: Vec<String> = (0..4).map(|n| format!("node-{n}")).collect();
        let ring = ring(&names, |n| [1, 1, 2, 4][n]);
        let mut counts = [0f64; 4];
        (0..80_000u64).for_each(|key| counts[ring.from(key).next().unwrap()] += 1.0);
        for (count, meant) in counts.into_iter().zip([10e3, 10e3, 20e3, 40e3]) {
            assert!((0.7..1.3).contains(&(count / meant)), "{counts:?}");
        }
        assert!(Ring::new([].into_iter()).from(7).next().is_none());
    }
}
