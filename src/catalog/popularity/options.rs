//! What can be set about popularity. Values are taken as valid: the configuration checks them.

use std::time::Duration;

use super::lifetime::{Step, Steps};
use super::shared::ShareOptions;

/// How popularity is counted and kept.
#[derive(Clone, Debug)]
pub struct PopularityOptions {
    /// Products counted exactly; those beyond are estimated together.
    pub max_products: usize,
    /// How often the snapshot is written; what came since is read again after a crash.
    pub snapshot_interval: Duration,
    /// How long changes gather before they are published.
    pub publish_interval: Duration,
    /// From which score a product is cached longer, and how much.
    pub steps: Steps,
    /// Types of events that are a view of their `product_id`.
    pub view_types: Vec<String>,
    /// Types of events that are a purchase.
    pub purchase_types: Vec<String>,
    /// Where several instances add up, if anywhere.
    pub share: Option<ShareOptions>,
}

impl Default for PopularityOptions {
    fn default() -> Self {
        Self {
            max_products: 100_000,
            snapshot_interval: Duration::from_secs(5),
            publish_interval: Duration::from_millis(250),
            steps: Steps::new(vec![Step { above: 100, factor: 2 }, Step { above: 1000, factor: 4 }], 0.8),
            view_types: vec![String::from("page_view"), String::from("product_view")],
            purchase_types: vec![String::from("purchase")],
            share: None,
        }
    }
}
