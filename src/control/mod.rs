//! Steering a running Tidegate: its config is changed as a whole or not at all, and every change can be taken back.
//!
//! A change comes from the file (which is looked at, or on SIGHUP), from the admin API, or from a rollback. It is validated,
//! given to the gateway, written to the history ([`history`]), shown to requests, and watched ([`watch`]): when errors jump after
//! it, it is taken back ([`judge`]). What a crash left undone is made up for at the next start ([`make_up`]). What cannot change in a running process is told, and waits for the next start. Whoever changes
//! something is in the log of changes ([`audit`]).

mod audit;
mod disk;
mod handle;
mod history;
mod judge;
#[cfg(test)]
mod kill_tests;
mod watch;

use serde::Serialize;
use utoipa::ToSchema;

use crate::config::ConfigError;
use crate::config::effective::Change;

pub use audit::{AuditEntry, AuditLog};
pub use handle::{Control, make_up};
pub use history::{How, Version};

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(example = json!({"version": 7, "changes": [{"key": "gateway.routes.users.retries", "before": "1", "after": "2"}], "restart": []}))]
pub struct Applied {
    /// The version that is in force now.
    pub version: u64,
    /// What is not as it was.
    pub changes: Vec<Change>,
    /// Keys whose change waits for the next start.
    pub restart: Vec<String>,
}

/// Why a change was not made. Everything is as it was.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The config has mistakes.
    #[error(transparent)]
    Invalid(#[from] ConfigError),
    /// What it asks for cannot be started.
    #[error("it cannot be put in force: {0}")]
    Start(String),
    /// There is no such version.
    #[error("there is no version {0} in the history")]
    NoVersion(u64),
    /// There is nothing before the version in force.
    #[error("there is no earlier version in the history")]
    NothingBefore,
    /// Somebody changed it in between.
    #[error("the config is at version {0}; read it again")]
    Conflict(u64),
    /// Somebody edited the file, which is not read yet.
    #[error("the config file was changed and is not read yet; reload it first, or wait a moment")]
    FileChanged,
    /// There is no file to keep it in.
    #[error("the server was started without --config FILE, so there is no file to change")]
    NoFile,
    /// The history or the file cannot be written.
    #[error("{what} cannot be written: {error}")]
    Disk {
        /// Which.
        what: &'static str,
        /// Why.
        error: std::io::Error,
    },
}
