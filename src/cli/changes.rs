//! Changes that are made from the command line, straight on the database: they are in the log of changes of the data folder too,
//! beside those that a running server notes there.

use std::path::PathBuf;

use serde_json::Value;

use crate::clock::Clock;
use crate::config::Config;
use crate::control::{AuditEntry, AuditLog};
use crate::database::Database;

/// The database of accounts and keys, with its tables up to date.
pub async fn open(config: &Config) -> anyhow::Result<Database> {
    let say = |error| anyhow::anyhow!("the database {error}");
    let database = Database::new(&config.catalog, Clock::system()).map_err(say)?;
    database.migrate().await.map_err(say)?;
    Ok(database)
}

/// The log of changes.
pub struct Changes {
    path: PathBuf,
    who: String,
}

impl Changes {
    /// In the data folder.
    pub fn of(config: &Config) -> Self {
        let who = format!("the command line (uid {})", rustix::process::getuid().as_raw());
        Self { path: config.data.join("audit.log"), who }
    }

    /// Notes a change before it is made. Where the log cannot be written, as on a machine that has the database and not the
    /// folder, whoever makes it is told.
    pub fn note(&self, action: &str, target: &str, detail: Value) {
        let entry = AuditEntry { who: &self.who, action, target, detail };
        let written = AuditLog::open(&self.path).and_then(|log| log.write(Clock::system().now(), &entry));
        if let Err(error) = written {
            eprintln!("this change is in no log of changes: {} cannot be written: {error}", self.path.display());
        }
    }
}
