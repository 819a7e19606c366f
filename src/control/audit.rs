//! The log of changes: who changed what in a running server, a line of JSON each, on disk before the change is confirmed.

use std::fs::File;
use std::io;
use std::path::Path;

use parking_lot::Mutex;
use serde::Serialize;
use serde_json::Value;

use super::disk;
use crate::clock::{UnixMillis, rfc3339};

/// A change that somebody made.
#[derive(Clone, Debug)]
pub struct AuditEntry<'a> {
    /// Who: the admin key, this machine, an account, an API key, somebody of another issuer, the command line, or the server.
    pub who: &'a str,
    /// What was done, like `breaker.force`.
    pub action: &'a str,
    /// To what, by its name.
    pub target: &'a str,
    /// What there is to say of it. No secrets, and no addresses of clients.
    pub detail: Value,
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    who: &'a str,
    action: &'a str,
    target: &'a str,
    #[serde(skip_serializing_if = "Value::is_null")]
    detail: &'a Value,
}

/// The log in its file.
#[derive(Debug)]
pub struct AuditLog(Mutex<File>);

impl AuditLog {
    /// Opens it at its end.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(Mutex::new(disk::lines(path)?)))
    }

    /// Writes a line, and waits for the disk.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn write(&self, now: UnixMillis, entry: &AuditEntry<'_>) -> io::Result<()> {
        let AuditEntry { who, action, target, detail } = entry;
        let line = Line { time: rfc3339(now), who, action, target, detail };
        let mut text = serde_json::to_vec(&line).map_err(io::Error::other)?;
        text.push(b'\n');
        disk::add_line(&mut self.0.lock(), &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_is_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        for (n, action) in ["breaker.force", "config.apply"].into_iter().enumerate() {
            let log = AuditLog::open(&path).unwrap();
            let entry = AuditEntry { who: "admin key", action, target: "users", detail: serde_json::json!({ "n": n }) };
            log.write(1_700_000_000_123, &entry).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((lines[0]["action"].as_str(), lines[1]["detail"]["n"].as_u64()), (Some("breaker.force"), Some(1)));
        assert_eq!(lines[0]["time"], "2023-11-14T22:13:20.123Z");
    }
}
