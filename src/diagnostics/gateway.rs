//! How the gateway is: its part of health, and its metrics. Addresses of targets are in neither.

use prometheus::proto::{MetricFamily, MetricType};
use serde::Serialize;
use utoipa::ToSchema;

use super::health::Status;
use super::metrics::family;
use crate::gateway::Gateway;
use crate::gateway::breaker::State;
use crate::gateway::canary::{CanaryFaults, CanarySnapshot, Phase, SideSnapshot};
use crate::gateway::table::Service;
use crate::gateway::upstream::UpstreamSnapshot;

/// The gateway.
#[derive(Debug, Serialize, ToSchema)]
pub struct GatewayHealth {
    /// The worst of all parts. It is never worse than degraded: what works still does.
    pub status: Status,
    /// The services behind it.
    upstreams: Vec<UpstreamHealth>,
    /// Whether shared limits work without Redis at present.
    limits_degraded: bool,
    /// Why it is not kept how far canaries are, or not shared by instances.
    #[serde(skip_serializing_if = "Option::is_none")]
    canaries: Option<String>,
}

/// A service.
#[derive(Debug, Serialize, ToSchema)]
struct UpstreamHealth {
    name: String,
    status: Status,
    /// What is the matter.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Targets that are well.
    usable: usize,
    targets: usize,
    /// State of the breaker.
    #[serde(skip_serializing_if = "Option::is_none")]
    breaker: Option<State>,
}

impl UpstreamHealth {
    fn of(service: &Service) -> Self {
        let snapshot = service.upstream().snapshot();
        let fault = service.watcher().snapshot().fault.map(|fault| fault.to_string());
        let breaker = snapshot.breaker.as_ref().map(|breaker| breaker.state);
        let (usable, targets) = (snapshot.usable, snapshot.targets.len());
        let reason = match breaker {
            Some(State::Open | State::ForcedOpen) => Some(String::from("its breaker is open")),
            _ if targets == 0 => Some(fault.clone().unwrap_or_else(|| String::from("it has no targets"))),
            _ if snapshot.in_panic => Some(String::from("too few targets are well, so all are used")),
            _ if usable < targets => Some(format!("{} of {targets} targets are not well", targets - usable)),
            _ => fault,
        };
        let status = if reason.is_some() { Status::Degraded } else { Status::Ok };
        Self { name: snapshot.name, status, reason, usable, targets, breaker }
    }
}

impl GatewayHealth {
    /// Reads published numbers only.
    pub fn of(gateway: &Gateway) -> Self {
        let upstreams: Vec<UpstreamHealth> = gateway.table().services.values().map(UpstreamHealth::of).collect();
        let limits_degraded = gateway.limits().stats().degraded;
        let limits = if limits_degraded { Status::Degraded } else { Status::Ok };
        let CanaryFaults { disk, redis } = gateway.canaries().faults();
        let canaries = disk
            .map(|why| format!("how far they are cannot be kept on disk: {why}"))
            .or_else(|| redis.map(|why| format!("how far they are cannot be shared: {why}")));
        let of_canaries = if canaries.is_some() { Status::Degraded } else { Status::Ok };
        let all = upstreams.iter().map(|upstream| upstream.status);
        let status = all.fold(limits.max(of_canaries), Status::max);
        Self { status, upstreams, limits_degraded, canaries }
    }
}

/// A number of each upstream.
struct OfUpstreams {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    read: fn(&UpstreamSnapshot) -> f64,
}

const OF_UPSTREAMS: &[OfUpstreams] = &[
    OfUpstreams {
        name: "tidegate_upstream_requests_total",
        help: "Requests that an upstream was to answer",
        kind: MetricType::COUNTER,
        read: |upstream| upstream.requests as f64,
    },
    OfUpstreams {
        name: "tidegate_upstream_in_flight",
        help: "Requests under way to an upstream",
        kind: MetricType::GAUGE,
        read: |upstream| upstream.in_flight as f64,
    },
    OfUpstreams {
        name: "tidegate_upstream_waiting",
        help: "Requests that wait for a place under way",
        kind: MetricType::GAUGE,
        read: |upstream| upstream.waiting as f64,
    },
    OfUpstreams {
        name: "tidegate_upstream_usable_targets",
        help: "Targets that are well",
        kind: MetricType::GAUGE,
        read: |upstream| upstream.usable as f64,
    },
    OfUpstreams {
        name: "tidegate_upstream_panic_picks_total",
        help: "Targets chosen among all because too few were well",
        kind: MetricType::COUNTER,
        read: |upstream| upstream.panic_picks as f64,
    },
    OfUpstreams {
        name: "tidegate_upstream_no_target_total",
        help: "Requests for which there was no target",
        kind: MetricType::COUNTER,
        read: |upstream| upstream.no_target as f64,
    },
];

/// Names of a breaker's states, as `tidegate_breaker_state` has them.
const STATES: &[(State, &str)] = &[
    (State::Closed, "closed"),
    (State::Open, "open"),
    (State::HalfOpen, "half_open"),
    (State::ForcedOpen, "forced_open"),
    (State::ForcedClosed, "forced_closed"),
];

/// Series by one or two labels.
struct Series(Vec<(Vec<(&'static str, String)>, f64)>);

impl Series {
    fn family(&self, name: &str, help: &str, kind: MetricType) -> MetricFamily {
        let borrowed: Vec<(Vec<(&str, &str)>, f64)> = self
            .0
            .iter()
            .map(|(labels, value)| (labels.iter().map(|(name, label)| (*name, label.as_str())).collect(), *value))
            .collect();
        let slices: Vec<(&[(&str, &str)], f64)> = borrowed.iter().map(|(l, v)| (l.as_slice(), *v)).collect();
        family(name, help, kind, &slices)
    }
}

/// The gateway's metrics beside those of its routes.
pub(super) fn families(gateway: &Gateway) -> Vec<MetricFamily> {
    let upstreams: Vec<UpstreamSnapshot> =
        gateway.table().services.values().map(|service| service.upstream().snapshot()).collect();
    let named = |upstream: &UpstreamSnapshot| ("upstream", upstream.name.clone());
    let mut families: Vec<MetricFamily> = OF_UPSTREAMS
        .iter()
        .map(|of| {
            let series = upstreams.iter().map(|upstream| (vec![named(upstream)], (of.read)(upstream)));
            Series(series.collect()).family(of.name, of.help, of.kind)
        })
        .collect();
    let by = |label: &'static str, values: &dyn Fn(&UpstreamSnapshot) -> Vec<(String, f64)>| {
        let each = upstreams.iter().flat_map(|upstream| {
            values(upstream).into_iter().map(|(name, value)| (vec![named(upstream), (label, name)], value))
        });
        Series(each.collect())
    };
    let refused = by("reason", &|upstream| {
        vec![
            (String::from("circuit_open"), upstream.refused_open as f64),
            (String::from("queue_full"), upstream.refused_full as f64),
            (String::from("queue_timeout"), upstream.refused_timeout as f64),
        ]
    });
    families.push(refused.family(
        "tidegate_upstream_refused_total",
        "Requests that were not let through to an upstream",
        MetricType::COUNTER,
    ));
    let retries = by("outcome", &|upstream| {
        vec![
            (String::from("granted"), upstream.retries_granted as f64),
            (String::from("denied"), upstream.retries_denied as f64),
        ]
    });
    families.push(retries.family(
        "tidegate_upstream_retries_total",
        "Retries that the budget was asked for",
        MetricType::COUNTER,
    ));
    let states = by("state", &|upstream| {
        let now = upstream.breaker.as_ref().map(|breaker| breaker.state);
        let is = |state| f64::from(u8::from(now == Some(state)));
        if now.is_none() { Vec::new() } else { STATES.iter().map(|(s, name)| ((*name).to_owned(), is(*s))).collect() }
    });
    families.push(states.family("tidegate_breaker_state", "1 for the state a breaker is in", MetricType::GAUGE));
    let turns = upstreams.iter().filter_map(|upstream| {
        let breaker = upstream.breaker.as_ref()?;
        Some((vec![named(upstream)], breaker.transitions as f64))
    });
    families.push(Series(turns.collect()).family(
        "tidegate_breaker_transitions_total",
        "Changes of a breaker's state",
        MetricType::COUNTER,
    ));
    for (name, help, kind, read) in OF_TARGETS {
        let each = by("target", &|upstream| {
            upstream.targets.iter().map(|target| (target.id.to_string(), read(target))).collect()
        });
        families.push(each.family(name, help, *kind));
    }
    families.extend(of_limits(gateway));
    families.extend(of_canaries(gateway));
    if let Some(log) = gateway.access_log() {
        let counts = log.counts();
        let lines = [("written", counts.written), ("dropped", counts.dropped)];
        let lines = lines.map(|(outcome, count)| (vec![("outcome", outcome.to_owned())], count as f64));
        families.push(Series(lines.into()).family(
            "tidegate_gateway_access_log_lines_total",
            "Lines of the access log",
            MetricType::COUNTER,
        ));
    }
    families
}

type OfTarget = (&'static str, &'static str, MetricType, fn(&crate::gateway::upstream::TargetSnapshot) -> f64);

const OF_TARGETS: &[OfTarget] = &[
    ("tidegate_target_requests_total", "Requests sent to a target", MetricType::COUNTER, |t| t.requests as f64),
    ("tidegate_target_failures_total", "Those that failed", MetricType::COUNTER, |t| t.failures as f64),
    ("tidegate_target_ejections_total", "Times a target was left alone", MetricType::COUNTER, |t| t.ejections as f64),
    ("tidegate_target_in_flight", "Requests under way to a target", MetricType::GAUGE, |t| f64::from(t.in_flight)),
    ("tidegate_target_usable", "Whether a target is well", MetricType::GAUGE, |t| {
        f64::from(u8::from(t.healthy && t.ejected_ms.is_none()))
    }),
];

fn of_canaries(gateway: &Gateway) -> Vec<MetricFamily> {
    let table = gateway.table();
    let canaries: Vec<(String, CanarySnapshot)> = table
        .routes
        .iter()
        .filter_map(|route| {
            let (canary, _) = route.canary.as_ref()?;
            Some((route.options.name.clone(), canary.snapshot()))
        })
        .collect();
    if canaries.is_empty() {
        return Vec::new();
    }
    let one = |read: fn(&CanarySnapshot) -> f64| {
        Series(canaries.iter().map(|(route, canary)| (vec![("route", route.clone())], read(canary))).collect())
    };
    let sides = |read: fn(&SideSnapshot) -> f64| {
        let each = canaries.iter().flat_map(|(route, canary)| {
            [("stable", &canary.stable), ("canary", &canary.canary)]
                .map(|(side, of)| (vec![("route", route.clone()), ("side", side.to_owned())], read(of)))
        });
        Series(each.collect())
    };
    let shared = canaries.iter().filter_map(|(route, canary)| {
        let shared = f64::from(u8::from(canary.shared?));
        Some((vec![("route", route.clone())], shared))
    });
    let shared = Series(shared.collect());
    vec![
        one(|canary| canary.weight.part()).family(
            "tidegate_canary_weight",
            "Part of a route's requests that its canary is to get, 0 to 1",
            MetricType::GAUGE,
        ),
        one(|canary| f64::from(u8::from(canary.phase == Phase::Aborted))).family(
            "tidegate_canary_aborted",
            "Whether a canary is aborted",
            MetricType::GAUGE,
        ),
        one(|canary| canary.transitions as f64).family(
            "tidegate_canary_transitions_total",
            "Changes of a canary's weight or phase",
            MetricType::COUNTER,
        ),
        one(|canary| canary.aborts as f64).family(
            "tidegate_canary_aborts_total",
            "Times a canary was aborted",
            MetricType::COUNTER,
        ),
        one(|canary| f64::from(u8::from(canary.saved))).family(
            "tidegate_canary_saved",
            "Whether the disk has how far a canary is",
            MetricType::GAUGE,
        ),
        shared.family(
            "tidegate_canary_shared",
            "Whether other instances were told how far a canary is",
            MetricType::GAUGE,
        ),
        sides(|side| side.requests as f64).family(
            "tidegate_canary_requests_total",
            "Requests to either version of a route with a canary",
            MetricType::COUNTER,
        ),
        sides(|side| side.failures as f64).family(
            "tidegate_canary_failures_total",
            "Those that were answered 5xx or not at all",
            MetricType::COUNTER,
        ),
    ]
}

fn of_limits(gateway: &Gateway) -> Vec<MetricFamily> {
    let stats = gateway.limits().stats();
    let by = |label: &'static str, values: &dyn Fn(&crate::gateway::limit::LimitStats) -> Vec<(&'static str, u64)>| {
        let each = stats.limits.iter().flat_map(|limit| {
            let name = || ("limit", limit.name.to_string());
            values(limit).into_iter().map(move |(value, count)| (vec![name(), (label, value.to_owned())], count as f64))
        });
        Series(each.collect())
    };
    let requests = by("outcome", &|limit| {
        vec![("allowed", limit.allowed), ("denied", limit.denied), ("would_deny", limit.would_deny)]
    });
    let leases = by("direction", &|limit| vec![("taken", limit.leased), ("returned", limit.returned)]);
    let one = |read: fn(&crate::gateway::limit::LimitStats) -> f64| {
        let each = stats.limits.iter().map(|limit| (vec![("limit", limit.name.to_string())], read(limit)));
        Series(each.collect())
    };
    let plain = |name, help, kind, value: f64| family(name, help, kind, &[(&[], value)]);
    vec![
        requests.family("tidegate_limit_requests_total", "Requests that a limit was asked about", MetricType::COUNTER),
        leases.family(
            "tidegate_limit_lease_tokens_total",
            "Tokens taken from Redis and given back",
            MetricType::COUNTER,
        ),
        one(|limit| limit.buckets as f64).family(
            "tidegate_limit_buckets",
            "Buckets that are not full",
            MetricType::GAUGE,
        ),
        one(|limit| limit.evicted as f64).family(
            "tidegate_limit_evicted_total",
            "Buckets that went before they were full",
            MetricType::COUNTER,
        ),
        one(|limit| f64::from(u8::from(limit.degraded))).family(
            "tidegate_limit_degraded",
            "Whether a shared limit works without Redis",
            MetricType::GAUGE,
        ),
        plain("tidegate_limiter_bytes", "Memory of all buckets", MetricType::GAUGE, stats.bytes as f64),
        plain("tidegate_limiter_instances", "Instances that share limits", MetricType::GAUGE, stats.instances as f64),
        plain("tidegate_limiter_outages_total", "Times Redis was lost", MetricType::COUNTER, stats.outages as f64),
        plain(
            "tidegate_limiter_round_trips_total",
            "Answers of Redis, each for up to 256 buckets",
            MetricType::COUNTER,
            stats.round_trips as f64,
        ),
    ]
}
