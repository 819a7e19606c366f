//! `[popularity]`: how products are scored, as it is written, and what becomes of it.

use std::time::Duration;

use serde::Deserialize;

use super::raw::section;
use super::units::Span;
use crate::catalog::popularity::{self, PopularityOptions, ShareOptions, Steps};
use crate::stats::SharedOptions;

section! {
    /// `[popularity]`
    Popularity {
        /// Counted exactly.
        max_products: usize = 100_000,
        /// Age at which the snapshot is written.
        snapshot_interval: Span = Span::secs(5),
        /// Age at which the ranking is published.
        publish_interval: Span = Span::millis(250),
        /// From which score on a product is cached longer.
        steps: Vec<Step> = vec![Step { above: 100, factor: 2 }, Step { above: 1000, factor: 4 }],
        /// Part of a step's threshold below which it is left.
        hysteresis: f64 = 0.8,
        /// Types of events that are views.
        view_types: Vec<String> = vec![String::from("page_view"), String::from("product_view")],
        /// Types of events that are purchases.
        purchase_types: Vec<String> = vec![String::from("purchase")],
        /// Whether it is shared where `[stats]` is.
        share: bool = true,
        /// Age at which it is.
        share_interval: Span = Span::secs(1),
    }
}

/// One of `popularity.steps`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// The score it begins above.
    pub above: u64,
    /// How many times the base lifetime.
    pub factor: u32,
}

/// Checks what the types cannot; every mistake goes to `bad` with its key. `shared` is the Redis that `[stats]` names.
pub(super) fn validate(
    raw: &Popularity,
    shared: Option<&SharedOptions>,
    bad: &mut impl FnMut(&str, String),
) -> PopularityOptions {
    let mut finite = |key: &str, span: Span, least: u64| {
        let span = span.0.filter(|span| span.as_millis() >= u128::from(least));
        span.unwrap_or_else(|| {
            bad(key, format!("it must be at least {least}ms and not forever"));
            Duration::from_millis(least)
        })
    };
    let snapshot_interval = finite("popularity.snapshot_interval", raw.snapshot_interval, 100);
    let publish_interval = finite("popularity.publish_interval", raw.publish_interval, 10);
    let share_interval = finite("popularity.share_interval", raw.share_interval, 10);
    if !(1..=10_000_000).contains(&raw.max_products) {
        bad("popularity.max_products", String::from("it must be 1 to 10000000"));
    }
    if !(0.0..=1.0).contains(&raw.hysteresis) {
        bad("popularity.hysteresis", String::from("it must be 0 to 1, like 0.8"));
    }
    if raw.steps.len() > 20 {
        bad("popularity.steps", format!("there are {}; at most 20 can be told apart", raw.steps.len()));
    }
    if raw.steps.iter().any(|step| !(1..=1000).contains(&step.factor)) {
        bad("popularity.steps", String::from("a factor must be 1 to 1000"));
    }
    if !raw.steps.is_sorted_by(|a, b| a.above < b.above && a.factor <= b.factor) {
        bad("popularity.steps", String::from("each must begin above the one before it, and not live shorter"));
    }
    let token = |c: char| c.is_ascii_alphanumeric() || "_.:-".contains(c);
    for (key, types) in [("popularity.view_types", &raw.view_types), ("popularity.purchase_types", &raw.purchase_types)]
    {
        for kind in types {
            if kind.is_empty() || kind.len() > 64 || !kind.chars().all(token) {
                bad(key, format!("`{kind}` is no type of event: 1 to 64 characters of A-Z a-z 0-9 _ . : -"));
            }
        }
    }
    if let Some(both) = raw.view_types.iter().find(|kind| raw.purchase_types.contains(kind)) {
        bad("popularity.purchase_types", format!("`{both}` is in view_types too; an event is one of them"));
    }
    let steps = raw.steps.iter().map(|step| popularity::Step { above: step.above, factor: step.factor }).collect();
    let share = shared.filter(|_| raw.share).map(|shared| ShareOptions {
        redis: shared.redis.clone(),
        prefix: shared.prefix.clone(),
        interval: share_interval,
    });
    PopularityOptions {
        max_products: raw.max_products,
        snapshot_interval,
        publish_interval,
        steps: Steps::new(steps, raw.hysteresis),
        view_types: raw.view_types.clone(),
        purchase_types: raw.purchase_types.clone(),
        share,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(text: &str) -> Vec<(String, String)> {
        let raw: Popularity = toml::from_str(text).unwrap();
        let mut found = Vec::new();
        validate(&raw, None, &mut |key, message| found.push((key.to_owned(), message)));
        found
    }

    #[test]
    fn mistakes_name_the_key() {
        assert_eq!(mistakes(""), []);
        assert_eq!(mistakes("steps = []"), []);
        for (text, key) in [
            ("max_products = 0", "max_products"),
            ("snapshot_interval = \"forever\"", "snapshot_interval"),
            ("publish_interval = \"1ms\"", "publish_interval"),
            ("share_interval = \"1ms\"", "share_interval"),
            ("hysteresis = 1.5", "hysteresis"),
            ("hysteresis = nan", "hysteresis"),
            ("steps = [{above = 5, factor = 0}]", "steps"),
            ("steps = [{above = 5, factor = 3}, {above = 5, factor = 4}]", "steps"),
            ("steps = [{above = 5, factor = 3}, {above = 9, factor = 2}]", "steps"),
            ("view_types = [\"a b\"]", "view_types"),
            ("purchase_types = [\"page_view\"]", "purchase_types"),
        ] {
            let found = mistakes(text);
            assert!(found.len() == 1 && found[0].0 == format!("popularity.{key}"), "{text}: {found:?}");
        }
        assert!(toml::from_str::<Popularity>("steps = [{above = 5, factr = 3}]").is_err());
    }

    #[test]
    fn the_defaults_are_those_of_the_room() {
        let (made, default) =
            (validate(&Popularity::default(), None, &mut |_, _| panic!()), PopularityOptions::default());
        assert_eq!(format!("{made:?}"), format!("{default:?}"));
    }
}
