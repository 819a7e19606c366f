//! The last good answer of a registry, kept on disk for a start while the registry is down.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::node::{Answer, target_at};
use crate::durable;
use crate::gateway::options::TargetOptions;

/// The longest file that is read, in bytes.
const MAX_BYTES: u64 = 4 << 20;

#[derive(Serialize, Deserialize)]
struct Kept {
    /// What was asked for. An answer to another question is of no use.
    of: String,
    targets: Vec<Target>,
}

#[derive(Serialize, Deserialize)]
struct Target {
    address: String,
    weight: u64,
}

/// Where the answer for an upstream is kept.
pub(super) fn path(folder: &Path, upstream: &str) -> PathBuf {
    // A name must not lead out of the folder.
    let safe = |c: char| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '.' };
    let name: String = upstream.chars().map(safe).collect();
    folder.join(format!("discovery-{name}.json"))
}

/// Writes it whole or not at all: whoever starts finds the old one or the new one.
pub(super) fn write(path: &Path, of: &str, targets: &[TargetOptions]) -> io::Result<()> {
    let targets = targets.iter().map(|t| Target { address: t.address.clone(), weight: u64::from(t.weight) }).collect();
    let text = serde_json::to_vec_pretty(&Kept { of: of.to_owned(), targets }).map_err(io::Error::other)?;
    durable::write_with_folder(path, &text)
}

/// What was kept for this question. No file is no error, a broken one is.
pub(super) fn read(path: &Path, of: &str) -> io::Result<Vec<TargetOptions>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(error),
    };
    let mut text = vec![];
    file.take(MAX_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is too long"));
    }
    let kept: Kept = serde_json::from_slice(&text).map_err(io::Error::other)?;
    if kept.of != of {
        return Ok(vec![]);
    }
    // Somebody may have had their hands in it.
    Ok(Answer::of(kept.targets.iter().map(|t| target_at(&t.address, t.weight))).targets)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_kept_is_found_again_by_the_same_question() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(&folder.path().join("made"), "../users api");
        assert!(path.ends_with("made/discovery-...users.api.json"), "{}", path.display());
        assert_eq!(read(&path, "etcd /users/").unwrap(), []);
        let at = |address: &str| TargetOptions { address: String::from(address), weight: 3 };
        write(&path, "etcd /users/", &[at("old:1")]).unwrap();
        write(&path, "etcd /users/", &[at("10.0.0.1:1"), at("[::1]:2")]).unwrap();
        assert_eq!(read(&path, "etcd /users/").unwrap(), [at("10.0.0.1:1"), at("[::1]:2")]);
        assert_eq!(read(&path, "etcd /orders/").unwrap(), []);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_broken_file_is_an_error_and_a_bad_node_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(folder.path(), "users");
        for broken in ["", "{", "[]", r#"{"of": "x", "targets": [{"address": "a:1"}]}"#, r#"{"of": "x"}"#] {
            fs::write(&path, broken).unwrap();
            assert!(read(&path, "x").is_err(), "{broken}");
        }
        fs::write(&path, vec![b' '; MAX_BYTES as usize + 1]).unwrap();
        assert!(read(&path, "x").is_err());
        let text = r#"{"of": "x", "targets": [{"address": "a b:1", "weight": 1}, {"address": "a:1", "weight": 2}]}"#;
        fs::write(&path, text).unwrap();
        assert_eq!(read(&path, "x").unwrap(), [TargetOptions { address: String::from("a:1"), weight: 2 }]);
    }
}
