//! How identity is: its part of health, and metrics of logins, tokens and keys. None of them names anybody.

use prometheus::proto::{MetricFamily, MetricType};
use serde::Serialize;
use utoipa::ToSchema;

use super::health::Status;
use super::metrics::family;
use crate::identity::Identity;

/// Accounts, tokens and keys.
#[derive(Debug, Serialize, ToSchema)]
pub struct IdentityHealth {
    /// Never worse than degraded: who has a good token or key is known all the same.
    pub status: Status,
    /// What is the matter, all of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl IdentityHealth {
    /// Reads published numbers only.
    pub fn of(identity: &Identity) -> Self {
        let faults = identity.faults();
        let status = if faults.is_empty() { Status::Ok } else { Status::Degraded };
        Self { status, reason: (!faults.is_empty()).then(|| faults.join("; ")) }
    }
}

/// What happened since the start.
pub fn families(identity: &Identity) -> Vec<MetricFamily> {
    let stats = identity.stats();
    let counter = |name: &str, help: &str, label: &str, values: &[(&str, u64)]| {
        let labels: Vec<[(&str, &str); 1]> = values.iter().map(|(value, _)| [(label, *value)]).collect();
        let values: Vec<(&[(&str, &str)], f64)> =
            labels.iter().zip(values).map(|(labels, (_, n))| (labels.as_slice(), *n as f64)).collect();
        family(name, help, MetricType::COUNTER, &values)
    };
    let [good, wrong, limited] = stats.logins;
    let fresh = stats.identified.saturating_sub(stats.cached);
    let mut families = vec![
        counter(
            "tidegate_logins_total",
            "Logins, by what became of them",
            "outcome",
            &[("good", good), ("wrong", wrong), ("limited", limited)],
        ),
        counter(
            "tidegate_tokens_verified_total",
            "Requests whose token or key was good, and whether that was known from a moment before",
            "cached",
            &[("no", fresh), ("yes", stats.cached)],
        ),
        family(
            "tidegate_refresh_tokens_reused_total",
            "Refresh tokens that came a second time",
            MetricType::COUNTER,
            &[(&[], stats.reused as f64)],
        ),
    ];
    if !stats.rejected.is_empty() {
        let help = "Tokens and keys that were refused, by why";
        families.push(counter("tidegate_tokens_rejected_total", help, "reason", &stats.rejected));
    }
    families
}
