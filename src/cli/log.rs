//! The log of the process: env_logger's, with a filter that can be changed while it runs.

use std::sync::Arc;

use arc_swap::ArcSwap;
use env_logger::{Builder, Logger};
use log::{Log, Metadata, Record};
use parking_lot::Mutex;

/// The log. Cheap to clone.
#[derive(Clone)]
pub struct ProcessLog(Arc<Inner>);

struct Inner {
    logger: ArcSwap<Logger>,
    /// The filter's text.
    filter: Mutex<String>,
}

/// Starts the log of this process.
///
/// # Errors
/// When it has one.
pub fn start(filter: &str) -> anyhow::Result<ProcessLog> {
    let logger = logger(filter);
    let most = logger.filter();
    let inner = Inner { logger: ArcSwap::from_pointee(logger), filter: Mutex::new(filter.to_owned()) };
    let log = ProcessLog(Arc::new(inner));
    log::set_boxed_logger(Box::new(log.clone()))?;
    log::set_max_level(most);
    Ok(log)
}

fn logger(filter: &str) -> Logger {
    Builder::new().parse_filters(filter).build()
}

impl ProcessLog {
    /// Logs what this filter lets through from now on.
    pub fn filter(&self, filter: &str) {
        let mut known = self.0.filter.lock();
        if *known == filter {
            return;
        }
        let logger = logger(filter);
        let most = logger.filter();
        self.0.logger.store(Arc::new(logger));
        // Records above this do not even get as far as the logger.
        log::set_max_level(most);
        filter.clone_into(&mut known);
    }
}

impl Log for ProcessLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.0.logger.load().enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        self.0.logger.load().log(record);
    }

    fn flush(&self) {
        self.0.logger.load().flush();
    }
}
