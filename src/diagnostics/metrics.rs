//! Numbers for Prometheus, beside those of actix-web-prom about requests. Read when they are asked for; nothing is
//! counted twice for them on the way of an event.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus::core::{Collector, Desc};
use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};

use crate::catalog::CatalogHandle;
use crate::gateway::Gateway;
use crate::identity::Identity;
use crate::journal::Journal;
use crate::stats::{SharedState, StatsHandle};
use crate::stream::StreamHandle;

/// The collector of the rooms' numbers.
pub struct Rooms {
    journal: Journal,
    stats: StatsHandle,
    stream: Option<StreamHandle>,
    catalog: CatalogHandle,
    identity: Identity,
    gateway: Option<Gateway>,
    describes: Desc,
}

impl Rooms {
    /// Of these rooms.
    pub fn new(
        journal: Journal,
        stats: StatsHandle,
        stream: Option<StreamHandle>,
        catalog: CatalogHandle,
        identity: Identity,
        gateway: Option<Gateway>,
    ) -> prometheus::Result<Self> {
        let describes =
            Desc::new("tidegate_rooms".into(), "Numbers of the rooms".into(), Vec::new(), Default::default())?;
        Ok(Self { journal, stats, stream, catalog, identity, gateway, describes })
    }
}

pub(super) fn family(name: &str, help: &str, kind: MetricType, values: &[(&[(&str, &str)], f64)]) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    let metrics = values.iter().map(|(labels, value)| {
        let mut metric = Metric::default();
        let labels = labels.iter().map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        });
        metric.set_label(labels.collect());
        if kind == MetricType::COUNTER {
            let mut counter = prometheus::proto::Counter::default();
            counter.set_value(*value);
            metric.set_counter(counter);
        } else {
            let mut gauge = prometheus::proto::Gauge::default();
            gauge.set_value(*value);
            metric.set_gauge(gauge);
        }
        metric
    });
    family.set_metric(metrics.collect());
    family
}

impl Collector for Rooms {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.describes]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let stats = self.journal.stats();
        let read = |value: &AtomicU64| value.load(Ordering::Relaxed) as f64;
        let counter = |name, help, value| family(name, help, MetricType::COUNTER, &[(&[], value)]);
        let gauge = |name, help, value| family(name, help, MetricType::GAUGE, &[(&[], value)]);
        let (end, totals) = self.journal.totals();
        let (mut accepted, mut duplicates) = (0, 0);
        let mut rejected = std::collections::BTreeMap::new();
        for site in totals.0.values() {
            accepted += site.accepted;
            duplicates += site.duplicates;
            for (code, count) in &site.rejected {
                *rejected.entry(code.as_str()).or_insert(0) += count;
            }
        }
        let mut outcomes = vec![(vec![("outcome", "accepted")], accepted as f64)];
        outcomes.push((vec![("outcome", "duplicate")], duplicates as f64));
        outcomes.extend(rejected.iter().map(|(code, count)| (vec![("outcome", *code)], *count as f64)));
        let outcomes: Vec<(&[(&str, &str)], f64)> = outcomes.iter().map(|(l, v)| (l.as_slice(), *v)).collect();
        let (panicked, failed) = self.stats.restarts_by_cause();
        let restarts: [(&[(&str, &str)], f64); 2] = [
            (&[("actor", "aggregator"), ("cause", "panic")], panicked as f64),
            (&[("actor", "aggregator"), ("cause", "failure")], failed as f64),
        ];
        let admission = self.journal.admission();
        let mut families = vec![
            family(
                "tidegate_events_total",
                "Events that came in, by what became of them, since the journal began",
                MetricType::COUNTER,
                &outcomes,
            ),
            counter("tidegate_journal_blocks_total", "Group commits since the start", read(&stats.blocks)),
            counter("tidegate_journal_written_bytes_total", "Bytes written since the start", read(&stats.bytes)),
            counter("tidegate_journal_failures_total", "Group commits that failed", read(&stats.failures)),
            gauge("tidegate_journal_bytes", "Bytes of the journal on disk", read(&stats.disk_bytes)),
            gauge("tidegate_journal_segments", "Segments of the journal on disk", read(&stats.segments)),
            gauge("tidegate_journal_end_offset", "Offset after the last committed entry", end as f64),
            gauge("tidegate_journal_oldest_offset", "Offset of the oldest entry on disk", read(&stats.oldest)),
            gauge("tidegate_dedup_keys", "Event ids remembered", read(&stats.dedup_keys)),
            gauge("tidegate_open_visits", "Visits that are open", read(&stats.visits)),
            counter(
                "tidegate_visits_evicted_total",
                "Visits closed early for want of room",
                read(&stats.visits_evicted),
            ),
            gauge("tidegate_ingest_waiting_requests", "Requests that wait for the journal", admission.items() as f64),
            gauge("tidegate_ingest_waiting_bytes", "Bytes of requests in memory", admission.bytes() as f64),
            counter(
                "tidegate_ingest_refused_total",
                "Requests refused because too much waited",
                admission.refused() as f64,
            ),
            gauge("tidegate_stats_offset", "Offset through which events are counted", self.stats.counted() as f64),
            gauge("tidegate_stats_behind", "Entries not yet counted", end.saturating_sub(self.stats.counted()) as f64),
            counter("tidegate_stats_lost_total", "Entries lost to damage of the journal", self.stats.lost() as f64),
            counter(
                "tidegate_stats_commits_total",
                "Transactions of the statistics' store",
                self.stats.commits() as f64,
            ),
            family("tidegate_actor_restarts_total", "Actors made anew, by cause", MetricType::COUNTER, &restarts),
            gauge("process_resident_memory_bytes", "Resident memory", resident_bytes().unwrap_or(0) as f64),
        ];
        if let Some(shared) = self.stats.shared_state() {
            families.extend(shared_store(shared, end));
        }
        if let Some(stream) = &self.stream {
            families.extend(super::stream::families(stream, end));
        }
        families.extend(super::catalog::families(&self.catalog));
        families.extend(super::identity::families(&self.identity));
        if let Some(gateway) = &self.gateway {
            families.extend(super::gateway::families(gateway));
        }
        families
    }
}

/// Numbers of the shared store.
fn shared_store(shared: &SharedState, end: u64) -> Vec<MetricFamily> {
    let counters = &shared.counters;
    let counter = |name, help, value: &AtomicU64| {
        family(name, help, MetricType::COUNTER, &[(&[], value.load(Ordering::Relaxed) as f64)])
    };
    let gauge = |name, help, value| family(name, help, MetricType::GAUGE, &[(&[], value)]);
    let delivered = shared.delivered();
    vec![
        gauge("tidegate_shared_up", "Whether the shared store answers", f64::from(u8::from(shared.is_up()))),
        gauge("tidegate_shared_offset", "Offset through which the shared store has the journal", delivered as f64),
        gauge("tidegate_shared_behind", "Entries not yet in the shared store", end.saturating_sub(delivered) as f64),
        counter("tidegate_shared_scripts_total", "Scripts that the shared store ran", &counters.scripts),
        counter("tidegate_shared_events_total", "Events delivered to the shared store", &counters.events),
        counter("tidegate_shared_failures_total", "Times it did not answer, or refused", &counters.failures),
        counter("tidegate_shared_resent_total", "Scripts sent again, as nothing was heard of them", &counters.resent),
        counter(
            "tidegate_shared_already_total",
            "Scripts that had been applied by an earlier sending",
            &counters.already,
        ),
        counter("tidegate_shared_losses_total", "Times the shared store had lost what it confirmed", &counters.losses),
        counter("tidegate_shared_rebuilds_total", "Slot groups built anew after a loss", &counters.rebuilds),
        counter(
            "tidegate_shared_foreign_keys_total",
            "Operations on keys that hold something foreign",
            &counters.foreign_keys,
        ),
        counter("tidegate_shared_questions_total", "Questions asked of the shared store", &counters.questions),
        counter("tidegate_shared_coalesced_total", "Questions answered by another one's answer", &counters.coalesced),
        counter("tidegate_shared_degraded_total", "Questions the embedded store answered instead", &counters.degraded),
    ]
}

/// Resident memory of this process, in bytes.
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
