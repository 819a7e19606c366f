//! The versions of the config that were in force, on disk: each is written whole or not at all.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use xxhash_rust::xxh3::xxh3_128;

use super::disk;
use crate::clock::UnixMillis;
use crate::config::effective::Change;

/// Versions that are kept.
const MOST: usize = 100;

/// How a version came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// The server started with it.
    Start,
    /// The file was changed.
    File,
    /// SIGHUP.
    Signal,
    /// The admin API.
    Api,
    /// Somebody went back to an earlier one.
    Rollback,
    /// The server went back by itself.
    Automatic,
}

/// A version of the config.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// Its number; they only grow.
    pub version: u64,
    /// When it came in force, in Unix milliseconds.
    pub at: UnixMillis,
    /// Who brought it.
    pub who: String,
    /// How.
    pub how: How,
    /// Why, if somebody or something said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What was not as before.
    pub changes: Vec<Change>,
}

/// How a version is kept. The text may hold secrets: only the owner may read it.
#[derive(Serialize, Deserialize)]
struct Kept {
    #[serde(flatten)]
    version: Version,
    text: Option<String>,
}

/// What is owed to the config file.
#[derive(Serialize, Deserialize)]
struct Promise {
    version: u64,
    /// Of its text before.
    before: Option<String>,
}

const PROMISE: &str = "promise";

fn hash(text: &str) -> String {
    format!("{:032x}", xxh3_128(text.as_bytes()))
}

/// The history in a folder.
#[derive(Debug)]
pub struct History {
    folder: PathBuf,
    /// Oldest first.
    versions: Vec<Version>,
}

impl History {
    /// Opens it. A file that cannot be read is passed over: it is no version that anybody can go back to.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let mut versions: Vec<Version> = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_none_or(|ending| ending != "json") {
                continue;
            }
            match read(&path) {
                Ok(kept) => versions.push(kept.version),
                Err(error) => log::warn!("config history: {} is passed over: {error}", path.display()),
            }
        }
        versions.sort_by_key(|version| version.version);
        Ok(Self { folder: folder.to_owned(), versions })
    }

    /// The versions, oldest first.
    pub fn versions(&self) -> &[Version] {
        &self.versions
    }

    /// The latest.
    pub fn latest(&self) -> Option<&Version> {
        self.versions.last()
    }

    /// The text of a version; `None` inside for one of a server without a file.
    pub fn text(&self, version: u64) -> Option<Option<String>> {
        let known = self.versions.iter().any(|known| known.version == version);
        known.then(|| read(&self.path(version)).ok()).flatten().map(|kept| kept.text)
    }

    /// Writes the next version, whose number is filled in here.
    ///
    /// # Errors
    /// When it cannot be written, or it is not sure that it is there after a crash; then it is removed again.
    pub fn add(&mut self, mut version: Version, text: Option<String>) -> io::Result<u64> {
        version.version = self.latest().map_or(1, |latest| latest.version + 1);
        let number = version.version;
        let kept = Kept { version, text };
        let text = serde_json::to_vec_pretty(&kept).map_err(io::Error::other)?;
        if let Err(error) = disk::write(&self.path(number), &text, 0o600) {
            // It may be in its place, and a start would take it for what was in force.
            if let Err(error) = disk::remove(&self.path(number)) {
                log::error!("config history: version {number}, which is not in force, cannot be removed: {error}");
            }
            return Err(error);
        }
        self.versions.push(kept.version);
        while self.versions.len() > MOST {
            let oldest = self.versions.remove(0);
            // What is left behind is found again, and deleted with the next.
            let _ = fs::remove_file(self.path(oldest.version));
        }
        Ok(number)
    }

    /// Notes that the config file, which says `before`, is to get the text of the next version: should the process die after the
    /// version is written and before the file is, the next one makes up for it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn promise(&self, before: Option<&str>) -> io::Result<()> {
        let version = self.latest().map_or(1, |latest| latest.version + 1);
        let promise = Promise { version, before: before.map(hash) };
        disk::write(&self.folder.join(PROMISE), &serde_json::to_vec(&promise).map_err(io::Error::other)?, 0o600)
    }

    /// The file has its text, or will not get it.
    ///
    /// # Errors
    /// When the note cannot be removed.
    pub fn settle(&self) -> io::Result<()> {
        disk::remove(&self.folder.join(PROMISE))
    }

    /// What a file that says `now` should have got, of the latest version; not if somebody has changed it since.
    pub fn owed(&self, now: Option<&str>) -> Option<(u64, String)> {
        let bytes = fs::read(self.folder.join(PROMISE)).ok()?;
        let promise: Promise = serde_json::from_slice(&bytes).ok()?;
        let latest = self.latest()?.version;
        let text = self.text(latest)??;
        let is_owed = promise.version == latest && promise.before == now.map(hash) && now != Some(text.as_str());
        is_owed.then_some((latest, text))
    }

    fn path(&self, version: u64) -> PathBuf {
        self.folder.join(format!("{version:08}.json"))
    }
}

fn read(path: &Path) -> io::Result<Kept> {
    serde_json::from_slice(&fs::read(path)?).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(who: &str) -> Version {
        Version { version: 0, at: 1, who: who.to_owned(), how: How::Api, reason: None, changes: Vec::new() }
    }

    #[test]
    fn versions_are_found_again_with_their_texts() {
        let folder = tempfile::tempdir().unwrap();
        let mut history = History::open(folder.path()).unwrap();
        assert_eq!(history.add(version("a"), Some(String::from("one"))).unwrap(), 1);
        assert_eq!(history.add(version("b"), None).unwrap(), 2);
        let again = History::open(folder.path()).unwrap();
        assert_eq!(again.versions(), history.versions());
        assert_eq!(again.text(1), Some(Some(String::from("one"))));
        assert_eq!((again.text(2), again.text(3)), (Some(None), None));
    }

    #[test]
    fn half_a_file_is_no_version_and_takes_none_away() {
        let folder = tempfile::tempdir().unwrap();
        let mut history = History::open(folder.path()).unwrap();
        history.add(version("a"), Some(String::from("one"))).unwrap();
        fs::write(folder.path().join("00000002.json"), b"{\"version\": 2, \"at\"").unwrap();
        fs::write(folder.path().join("00000002.json.new"), b"rubbish").unwrap();
        let mut history = History::open(folder.path()).unwrap();
        assert_eq!(history.latest().unwrap().version, 1);
        assert_eq!(history.add(version("b"), Some(String::from("two"))).unwrap(), 2);
        assert_eq!(History::open(folder.path()).unwrap().text(2), Some(Some(String::from("two"))));
    }

    #[test]
    fn a_version_that_could_not_be_made_safe_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let mut history = History::open(folder.path()).unwrap();
        history.add(version("a"), Some(String::from("one"))).unwrap();
        disk::death::refuse(true);
        let refused = history.add(version("b"), Some(String::from("two")));
        disk::death::refuse(false);
        assert!(refused.is_err());
        for history in [&history, &History::open(folder.path()).unwrap()] {
            assert_eq!(history.latest().unwrap().version, 1);
            assert_eq!(history.text(2), None);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(history.add(version("c"), Some(String::from("three"))).unwrap(), 2);
    }

    #[test]
    fn the_oldest_go() {
        let folder = tempfile::tempdir().unwrap();
        let mut history = History::open(folder.path()).unwrap();
        for _ in 0..MOST + 3 {
            history.add(version("a"), None).unwrap();
        }
        let again = History::open(folder.path()).unwrap();
        assert_eq!((again.versions().len(), again.versions()[0].version), (MOST, 4));
    }
}
