//! The ranking: what is published, kept in order, with the steps of lifetimes. Its owner alone writes it. Pure.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::buckets::edges;
use super::handle::{HOTTEST, Hot, Published, Score, Shown};
use super::scores::{Mark, Product, Scores};
use super::shared::Part;
use crate::clock::UnixMillis;

/// What the other instances have of a product.
struct Others {
    part: Part,
    /// Which reading of all of them it is of.
    generation: u64,
}

/// Puts together what this instance and the others have counted.
pub(super) struct Ranking {
    published: Arc<Published>,
    /// The highest first, then by id.
    order: BTreeSet<(Reverse<u64>, Arc<str>)>,
    /// What is shown of each slot of the scores.
    slots: Vec<Option<Arc<str>>>,
    /// The windows that are shown.
    edges: [u32; 2],
    others: HashMap<Arc<str>, Others>,
    /// Products of the others that are kept, at least; twice as many at most.
    most_others: usize,
    generation: u64,
    /// Something of the others changed since it was published last.
    stale: bool,
    /// Steps of products that a snapshot knew, until they are shown.
    kept: HashMap<Arc<str>, u8>,
    /// Steps that changed since the last snapshot.
    changed: HashMap<Arc<str>, u8>,
}

impl Ranking {
    /// Nothing is shown yet; `max_products` of the others have their place.
    pub fn new(published: Arc<Published>, kept: HashMap<Arc<str>, u8>, max_products: usize) -> Self {
        let (order, others, changed) = Default::default();
        Self {
            published,
            order,
            slots: Vec::new(),
            edges: [0, 0],
            others,
            most_others: max_products.max(1),
            generation: 0,
            stale: false,
            kept,
            changed,
        }
    }

    /// Begins again with other scores: what is shown is taken back as far as they do not have it.
    pub fn reset(&mut self, scores: &mut Scores, kept: HashMap<Arc<str>, u8>, now: UnixMillis) {
        for id in std::mem::take(&mut self.slots).into_iter().flatten() {
            if scores.find(&id).is_none() {
                self.refresh(&id, None, now);
            }
        }
        self.kept = kept;
        self.changed.clear();
        self.edges = [0, 0];
        scores.mark_all(Mark::Unshown);
    }

    /// Publishes what changed, with the windows as they are now.
    pub fn publish(&mut self, scores: &mut Scores, now: UnixMillis, counted: u64) {
        // The scores' time is that of the entries; nobody may be shown what a clock that was set back cannot know.
        let now = now.max(scores.time());
        let edges = edges(now);
        if edges != self.edges {
            self.edges = edges;
            scores.mark_all(Mark::Unshown);
            self.slide(scores, now);
        }
        let slots = scores.take(Mark::Unshown, usize::MAX);
        self.slots.resize(scores.slots() as usize, None);
        for slot in &slots {
            let id = scores.product(*slot).map(|product| product.id.clone());
            let held = std::mem::replace(&mut self.slots[*slot as usize], id.clone());
            // It may have another slot now, whose turn comes.
            if let Some(held) = held.filter(|held| Some(held) != id.as_ref() && scores.find(held).is_none()) {
                self.refresh(&held, None, now);
            }
        }
        for product in slots.iter().filter_map(|slot| scores.product(*slot)) {
            self.refresh(&product.id, Some(product), now);
        }
        let published = self.published.clone();
        if !slots.is_empty() || std::mem::take(&mut self.stale) {
            published.hottest.store(Arc::new(self.hottest()));
        }
        if !scores.tail().is_empty() || !published.tail.load().is_empty() {
            published.tail.store(Arc::new(scores.tail().clone()));
        }
        let numbers = &published.numbers;
        numbers.products.store(scores.len() as u64, Ordering::Relaxed);
        numbers.ignored.store(scores.ignored(), Ordering::Relaxed);
        published.counted.send_if_modified(|held| {
            let changed = *held != counted;
            *held = counted;
            changed
        });
    }

    /// Shows a product as it is counted here and by the others.
    fn refresh(&mut self, id: &Arc<str>, product: Option<&Product>, now: UnixMillis) {
        let others = self.others.get(id).map(|others| &others.part);
        let exact = product.is_none_or(|product| product.exact_from <= now)
            && others.is_none_or(|others| others.exact_from <= now);
        let local = product.map(|product| product.sums(self.edges));
        let others = others.map_or([0, 0], |others| others.sums(self.edges));
        self.set(id, self.published.shown(id), Shown { local, others, exact, step: 0 });
    }

    /// Drops what of the others has left the windows.
    fn slide(&mut self, scores: &Scores, now: UnixMillis) {
        let moved = self.others.iter_mut().filter_map(|(id, others)| others.part.slide(now).then(|| id.clone()));
        for id in moved.collect::<Vec<_>>() {
            if self.others.get(&id).is_some_and(|others| others.part.is_empty()) {
                self.others.remove(&id);
            }
            self.refresh(&id, scores.find(&id), now);
            self.stale = true;
        }
    }

    /// What the other instances have of a product now.
    pub fn set_others(&mut self, scores: &Scores, id: &Arc<str>, part: Part, now: UnixMillis) {
        let product = scores.find(id);
        let id = product.map_or(id, |product| &product.id);
        if part.is_empty() {
            if self.others.remove(id).is_none() {
                return;
            }
        } else {
            self.others.insert(id.clone(), Others { part, generation: self.generation });
        }
        self.refresh(id, product, now);
        self.stale = true;
        if self.others.len() > 2 * self.most_others {
            self.drop_lowest(scores, now);
        }
    }

    /// Makes room: the lowest of the others go. Each comes back when it changes.
    fn drop_lowest(&mut self, scores: &Scores, now: UnixMillis) {
        let score = |(id, others): (&Arc<str>, &Others)| {
            let [views, units] = others.part.sums(self.edges);
            (super::score(views, units), id.clone())
        };
        let mut all: Vec<(u64, Arc<str>)> = self.others.iter().map(score).collect();
        let lowest = all.len().saturating_sub(self.most_others);
        if lowest > 0 {
            all.select_nth_unstable(lowest - 1);
        }
        for (_, id) in all.into_iter().take(lowest) {
            self.others.remove(&id);
            self.refresh(&id, scores.find(&id), now);
        }
    }

    /// All of the others is read anew from here on.
    pub fn new_generation(&mut self) {
        self.generation += 1;
    }

    /// Drops what was not read since then.
    pub fn forget_others(&mut self, scores: &Scores, now: UnixMillis) {
        let old = self.others.iter().filter(|(_, others)| others.generation != self.generation);
        for id in old.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            self.others.remove(&id);
            self.refresh(&id, scores.find(&id), now);
            self.stale = true;
        }
    }

    fn set(&mut self, id: &Arc<str>, before: Option<Shown>, mut shown: Shown) {
        // What has left the windows with the clock, and not with an entry, is nothing too.
        let nothing = shown.local.unwrap_or_default() == [0, 0] && shown.others == [0, 0];
        let was = before.map(|shown| shown.score());
        let old = before.map_or_else(|| self.kept.remove(id).unwrap_or(0), |shown| shown.step);
        let score = shown.score();
        shown.step = self.published.steps.step(usize::from(old), score) as u8;
        if was.is_some() && (nothing || was != Some(score)) {
            self.order.remove(&(Reverse(was.unwrap_or_default()), id.clone()));
        }
        if !nothing && was != Some(score) {
            self.order.insert((Reverse(score), id.clone()));
        }
        if old != shown.step {
            self.changed.insert(id.clone(), shown.step);
        }
        if before != Some(shown) || nothing {
            self.published.show(id, (!nothing).then_some(shown));
        }
    }

    fn hottest(&self) -> Vec<Hot> {
        let hot = self.order.iter().take(HOTTEST).filter_map(|(Reverse(score), id)| {
            let shown = self.published.shown(id)?;
            let local = shown.local.unwrap_or_default();
            let [views_24h, units_7d] = [0, 1].map(|kind| local[kind].saturating_add(shown.others[kind]));
            Some(Hot {
                product_id: id.clone(),
                score: Score { views_24h, units_7d, score: *score, exact: shown.exact },
            })
        });
        hot.collect()
    }

    /// Steps that changed since the last time they were saved.
    pub fn changed_steps(&self) -> &HashMap<Arc<str>, u8> {
        &self.changed
    }

    /// They are saved.
    pub fn saved(&mut self) {
        self.changed.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::popularity::{Kind, Step, Steps};
    use crate::clock::HOUR;

    const NOW: UnixMillis = 1_700_000_000_000;

    fn ranking(most: usize) -> (Ranking, Arc<Published>, Scores) {
        let steps = Steps::new(vec![Step { above: 100, factor: 2 }], 0.8);
        let published = Arc::new(Published::new(steps, 0, None));
        let mut ranking = Ranking::new(published.clone(), HashMap::new(), most);
        let mut scores = Scores::new(100);
        scores.restored(NOW);
        ranking.publish(&mut scores, NOW, 0);
        (ranking, published, scores)
    }

    fn others(views: u32, ago: UnixMillis, exact_from: UnixMillis) -> Part {
        let mut part = Part { exact_from, ..Part::default() };
        part.counts[0].add(Kind::Views.window().bucket(NOW - ago), views);
        part
    }

    fn told(published: &Published) -> Vec<(String, u64, bool)> {
        published
            .hottest
            .load()
            .iter()
            .map(|hot| (hot.product_id.to_string(), hot.score.score, hot.score.exact))
            .collect()
    }

    #[test]
    fn the_others_counts_rank_with_ours_and_slide() {
        let (mut ranking, published, mut scores) = ranking(10);
        scores.add(Kind::Views, "a", NOW, 90);
        scores.add(Kind::Views, "b", NOW, 95);
        ranking.set_others(&scores, &Arc::from("a"), others(20, 23 * HOUR, 0), NOW);
        ranking.set_others(&scores, &Arc::from("c"), others(1, 0, NOW + 23 * HOUR), NOW);
        ranking.publish(&mut scores, NOW, 1);
        assert_eq!(told(&published), [("a".into(), 110, true), ("b".into(), 95, true), ("c".into(), 1, false)]);
        assert_eq!(published.shown("a").unwrap().step, 1);
        // Ours change, and theirs stay; then theirs leave.
        scores.add(Kind::Views, "b", NOW, 20);
        ranking.publish(&mut scores, NOW, 2);
        assert_eq!(told(&published)[..2], [("b".into(), 115, true), ("a".into(), 110, true)]);
        ranking.publish(&mut scores, NOW + 2 * HOUR, 2);
        assert_eq!(told(&published), [("b".into(), 115, true), ("a".into(), 90, true), ("c".into(), 1, false)]);
        // Nothing of it any more.
        ranking.set_others(&scores, &Arc::from("c"), Part::default(), NOW);
        ranking.publish(&mut scores, NOW + 2 * HOUR, 2);
        assert_eq!((told(&published).len(), published.shown("c")), (2, None));
    }

    #[test]
    fn of_the_others_so_many_are_kept_and_none_that_is_not_read_again() {
        let (mut ranking, published, mut scores) = ranking(10);
        scores.add(Kind::Views, "p1", NOW, 1000);
        for i in 1..=500u32 {
            ranking.set_others(&scores, &Arc::from(format!("p{i}")), others(i, 0, 0), NOW);
            assert!(ranking.others.len() <= 20);
        }
        ranking.publish(&mut scores, NOW, 1);
        let hot = told(&published);
        assert!((11..=21).contains(&hot.len()), "{}", hot.len());
        assert_eq!(hot[..3], [("p1".into(), 1000, true), ("p500".into(), 500, true), ("p499".into(), 499, true)]);
        ranking.new_generation();
        ranking.set_others(&scores, &Arc::from("p3"), others(3, 0, 0), NOW);
        ranking.forget_others(&scores, NOW);
        ranking.publish(&mut scores, NOW, 1);
        assert_eq!(told(&published), [("p1".into(), 1000, true), ("p3".into(), 3, true)]);
    }
}
