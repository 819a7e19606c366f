//! What happened along each route, for Prometheus: labels come from the config alone, so that no client can make series.

use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry};

use super::access_log::Used;

/// Bounds of the durations' buckets, in seconds.
const BUCKETS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// All routes' series.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: IntCounterVec,
    seconds: HistogramVec,
    bytes: IntCounterVec,
    retries: IntCounterVec,
    fallbacks: IntCounterVec,
}

/// Those of one route.
#[derive(Clone, Debug)]
pub struct RouteMetrics {
    /// By the first digit of the status, less one; and what the client did not wait for.
    requests: [IntCounter; 6],
    seconds: Histogram,
    bytes_in: IntCounter,
    bytes_out: IntCounter,
    retries: IntCounter,
    stale: IntCounter,
    other: IntCounter,
}

impl Metrics {
    /// Series in a registry.
    ///
    /// # Errors
    /// When they are there already.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let counters = |name: &str, help: &str, labels: &[&str]| -> prometheus::Result<IntCounterVec> {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            Ok(counters)
        };
        let seconds = HistogramVec::new(
            HistogramOpts::new(
                "tidegate_gateway_request_duration_seconds",
                "From a request's head to its answer's end",
            )
            .buckets(BUCKETS.to_vec()),
            &["route"],
        )?;
        registry.register(Box::new(seconds.clone()))?;
        Ok(Self {
            requests: counters(
                "tidegate_gateway_requests_total",
                "Requests along a route, by the class of their answer's status",
                &["route", "status"],
            )?,
            seconds,
            bytes: counters(
                "tidegate_gateway_body_bytes_total",
                "Bytes of bodies that passed along a route",
                &["route", "direction"],
            )?,
            retries: counters("tidegate_gateway_retries_total", "Requests sent again along a route", &["route"])?,
            fallbacks: counters(
                "tidegate_gateway_fallbacks_total",
                "Answers that stood in for those of a route's upstream",
                &["route", "by"],
            )?,
        })
    }

    /// The series of a route.
    pub fn route(&self, name: &str) -> RouteMetrics {
        let class = |class: &str| self.requests.with_label_values(&[name, class]);
        RouteMetrics {
            requests: [class("1xx"), class("2xx"), class("3xx"), class("4xx"), class("5xx"), class("cancelled")],
            seconds: self.seconds.with_label_values(&[name]),
            bytes_in: self.bytes.with_label_values(&[name, "in"]),
            bytes_out: self.bytes.with_label_values(&[name, "out"]),
            retries: self.retries.with_label_values(&[name]),
            stale: self.fallbacks.with_label_values(&[name, "stale"]),
            other: self.fallbacks.with_label_values(&[name, "upstream"]),
        }
    }
}

/// What one request adds.
#[derive(Clone, Copy, Debug)]
pub struct Observed {
    /// Status of the answer; 0 if the client did not wait for one.
    pub status: u16,
    /// From the head of the request to the end of the answer.
    pub took: Duration,
    /// Of the request's body.
    pub bytes_in: u64,
    /// Of the answer's.
    pub bytes_out: u64,
    /// Times it was sent again.
    pub retries: u32,
    /// What stood in.
    pub stood_in: Option<Used>,
}

impl RouteMetrics {
    /// Requests that were answered, and those of them with 500 and above.
    pub fn totals(&self) -> (u64, u64) {
        let [answered @ .., _cancelled] = &self.requests;
        (answered.iter().map(IntCounter::get).sum(), self.requests[4].get())
    }

    /// Requests whose client left before there was an answer.
    pub fn cancelled(&self) -> u64 {
        self.requests[5].get()
    }

    /// Adds a request.
    pub fn observe(&self, observed: &Observed) {
        let class = match observed.status {
            100..=599 => usize::from(observed.status / 100 - 1),
            _ => 5,
        };
        self.requests[class].inc();
        self.seconds.observe(observed.took.as_secs_f64());
        if observed.bytes_in > 0 {
            self.bytes_in.inc_by(observed.bytes_in);
        }
        self.bytes_out.inc_by(observed.bytes_out);
        if observed.retries > 0 {
            self.retries.inc_by(u64::from(observed.retries));
        }
        match observed.stood_in {
            Some(Used::Stale) => self.stale.inc(),
            Some(Used::Upstream) => self.other.inc(),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_class_and_the_impatient_apart() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        let route = metrics.route("a");
        let one = Observed {
            status: 204,
            took: Duration::from_millis(3),
            bytes_in: 5,
            bytes_out: 7,
            retries: 2,
            stood_in: Some(Used::Stale),
        };
        route.observe(&one);
        route.observe(&Observed { status: 0, ..one });
        let count = |class| metrics.requests.with_label_values(&["a", class]).get();
        assert_eq!((count("2xx"), count("cancelled"), count("5xx")), (1, 1, 0));
        assert_eq!(metrics.bytes.with_label_values(&["a", "out"]).get(), 14);
        assert_eq!(metrics.retries.with_label_values(&["a"]).get(), 4);
        assert_eq!(route.seconds.get_sample_count(), 2);
        assert_eq!(metrics.fallbacks.with_label_values(&["a", "stale"]).get(), 2);
    }
}
