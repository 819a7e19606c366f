//! What an instance publishes of a window: its own numbers, whole, under its own name.
//!
//! Absolute values of one writer need no fence: whoever writes them twice writes the same. A question about the past reads
//! the fields of all instances and merges them as it merges windows, so visitors are united over instances exactly as
//! they are over hours.
//!
//! Sums are JSON; names are JSON compressed with zstd; sets are the bytes of [`Uniques`].

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::keys::Part;
use crate::event::BotReason;
use crate::stats::rollup::Rollup;
use crate::stats::uniques::Uniques;

/// A window's sums.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Sums {
    pub page_views: u64,
    pub events: u64,
    pub bots: BTreeMap<String, u64>,
    pub types: BTreeMap<String, u64>,
}

/// Longer lists of names are not believed.
const MOST_BYTES: usize = 64 << 20;

/// One part of a window, as bytes; `None` when there is nothing to say.
pub(super) fn encode(rollup: &Rollup, part: Part) -> Option<Vec<u8>> {
    match part {
        Part::Sums => serde_json::to_vec(&Sums {
            page_views: rollup.page_views,
            events: rollup.events,
            bots: rollup.bots.iter().map(|(reason, n)| ((*reason).to_owned(), *n)).collect(),
            types: rollup.types.iter().map(|(name, n)| (name.clone(), *n)).collect(),
        })
        .ok(),
        Part::Pages => names(&rollup.pages),
        Part::Referrers => names(&rollup.referrers),
        Part::Visitors => (!rollup.visitors.is_empty()).then(|| rollup.visitors.encode()),
        Part::Sessions => (!rollup.sessions.is_empty()).then(|| rollup.sessions.encode()),
    }
}

fn names(names: &HashMap<String, u64>) -> Option<Vec<u8>> {
    if names.is_empty() {
        return None;
    }
    // In order, so that the same names are the same bytes.
    let ordered: BTreeMap<&String, &u64> = names.iter().collect();
    zstd::bulk::compress(&serde_json::to_vec(&ordered).ok()?, 1).ok()
}

/// The bytes are no part of a window: a newer version wrote them, or somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a part of a window in the shared store cannot be read")]
pub(super) struct Malformed;

/// Adds sums to others.
pub(super) fn add_sums(to: &mut Sums, bytes: &[u8]) -> Result<(), Malformed> {
    let more: Sums = serde_json::from_slice(bytes).map_err(|_| Malformed)?;
    to.page_views += more.page_views;
    to.events += more.events;
    for (into, from) in [(&mut to.bots, more.bots), (&mut to.types, more.types)] {
        from.into_iter().for_each(|(name, n)| *into.entry(name).or_default() += n);
    }
    Ok(())
}

/// Adds names to others.
pub(super) fn add_names(to: &mut HashMap<String, u64>, bytes: &[u8]) -> Result<(), Malformed> {
    let text = zstd::bulk::decompress(bytes, MOST_BYTES).map_err(|_| Malformed)?;
    let more: HashMap<String, u64> = serde_json::from_slice(&text).map_err(|_| Malformed)?;
    more.into_iter().for_each(|(name, n)| *to.entry(name).or_default() += n);
    Ok(())
}

/// Adds a set to another.
pub(super) fn add_set(to: &mut Uniques, bytes: &[u8]) -> Result<(), Malformed> {
    to.absorb(bytes).map_err(|_| Malformed)
}

/// Bots' reasons that are known here.
pub(super) fn bot_reasons(bots: &BTreeMap<String, u64>) -> BTreeMap<&'static str, u64> {
    let known = |name: &str| BotReason::ALL.iter().map(|(reason, _)| reason.as_str()).find(|known| *known == name);
    bots.iter().filter_map(|(name, n)| Some((known(name)?, *n))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{Tier, WindowKey};

    fn rollup() -> Rollup {
        let key = WindowKey { site: "shop".into(), tier: Tier::Day, start: 0 };
        let mut rollup = Rollup::new(key, 100);
        rollup.page_views = 3;
        rollup.events = 5;
        rollup.bots.insert(BotReason::Crawler.as_str(), 2);
        rollup.types.insert("buy".into(), 2);
        rollup.pages = (0..500).map(|i| (format!("https://shop.example/p/{i}"), i)).collect();
        (0..10).for_each(|i| assert!(rollup.visitors.insert(i)));
        rollup
    }

    #[test]
    fn the_parts_of_two_instances_merge() {
        let one = rollup();
        let mut sums = Sums::default();
        let mut pages = HashMap::new();
        let mut visitors = Uniques::new(100);
        for _ in 0..2 {
            add_sums(&mut sums, &encode(&one, Part::Sums).unwrap()).unwrap();
            add_names(&mut pages, &encode(&one, Part::Pages).unwrap()).unwrap();
            add_set(&mut visitors, &encode(&one, Part::Visitors).unwrap()).unwrap();
        }
        assert_eq!((sums.page_views, sums.events, sums.types["buy"]), (6, 10, 4));
        assert_eq!(bot_reasons(&sums.bots), BTreeMap::from([(BotReason::Crawler.as_str(), 4)]));
        assert_eq!(pages["https://shop.example/p/499"], 998);
        assert_eq!(visitors.count().count, 10, "a union and no sum");
        assert!(encode(&one, Part::Referrers).is_none() && encode(&one, Part::Sessions).is_none());
        let size = encode(&one, Part::Pages).unwrap().len();
        assert!(size < 5_000, "{size}");
    }

    #[test]
    fn rubbish_is_refused() {
        assert_eq!(add_sums(&mut Sums::default(), b"[1"), Err(Malformed));
        assert_eq!(add_names(&mut HashMap::new(), b"no zstd"), Err(Malformed));
        assert_eq!(add_set(&mut Uniques::new(1), &[9, 9]), Err(Malformed));
    }
}
