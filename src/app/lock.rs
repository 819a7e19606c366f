//! One process at a time holds a data folder; the lock's file says who.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The lock of a data folder, until dropped. The kernel lets go of it when the process dies, however it dies.
#[derive(Debug)]
pub struct DataLock {
    file: File,
}

/// Why the folder could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error(
        "{folder}: held by {holder}; stop it, name another folder, or work through it with --url where there is one"
    )]
    Held {
        /// The folder.
        folder: PathBuf,
        /// What the holder wrote into it.
        holder: String,
        /// Where its server listens.
        url: Option<String>,
    },
    /// The disk.
    #[error("{folder}: cannot be locked: {error}")]
    Io {
        /// The folder.
        folder: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl DataLock {
    /// Takes the folder, which is made if there is none.
    pub fn acquire(folder: &Path) -> Result<Self, LockError> {
        let failed = |error| LockError::Io { folder: folder.to_owned(), error };
        // Accounts and events are nobody else's business. One that is there is its owner's to decide on.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let path = folder.join("LOCK");
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // What it says is for people; not being able to read it changes nothing.
                let _ = file.read_to_string(&mut holder);
                let holder = holder.trim();
                let url = holder.split_whitespace().find(|word| word.starts_with("http://")).map(str::to_owned);
                let holder = if holder.is_empty() { "another process" } else { holder }.to_owned();
                return Err(LockError::Held { folder: folder.to_owned(), holder, url });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let mut lock = Self { file };
        lock.describe(&format!("process {}", std::process::id())).map_err(failed)?;
        Ok(lock)
    }

    /// Writes who holds it.
    pub fn describe(&mut self, holder: &str) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(holder.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_hears_who_the_first_is() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = DataLock::acquire(folder.path()).unwrap();
        first.describe("process 7 at http://127.0.0.1:8080").unwrap();
        let error = DataLock::acquire(folder.path()).unwrap_err();
        assert!(error.to_string().contains("held by process 7"), "{error}");
        let LockError::Held { url, .. } = error else { panic!() };
        assert_eq!(url.as_deref(), Some("http://127.0.0.1:8080"));
        drop(first);
        DataLock::acquire(folder.path()).unwrap();
    }
}
