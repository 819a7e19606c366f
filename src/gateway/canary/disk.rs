//! Where releases stand, kept on disk for the next start: one file for all canaries, and for those that have left the config.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::former::Gone;
use super::ledger::Kept;

/// Its name within the folder.
pub(super) const NAME: &str = "canaries.json";
/// The longest file that is read or written, in bytes: a few thousand canaries.
const MAX_BYTES: usize = 16 << 20;
/// What the file is like. One of another version is not read.
const VERSION: u64 = 1;

#[derive(Serialize)]
struct Written<'a> {
    version: u64,
    canaries: &'a BTreeMap<String, Kept>,
    former: &'a [Gone],
}

#[derive(Deserialize)]
struct Versioned {
    version: u64,
}

#[derive(Deserialize)]
struct Found {
    canaries: BTreeMap<String, Value>,
    /// Files of before it was kept have none.
    #[serde(default)]
    former: Vec<Value>,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Canaries {
    /// By route.
    pub kept: BTreeMap<String, Kept>,
    /// Those that were not there any more.
    pub former: Vec<Gone>,
    /// Routes of which what was kept makes no sense, and why.
    pub faults: Vec<String>,
}

/// The file's text.
pub(super) fn text(canaries: &BTreeMap<String, Kept>, former: &[Gone]) -> io::Result<Vec<u8>> {
    let text = serde_json::to_vec_pretty(&Written { version: VERSION, canaries, former }).map_err(io::Error::other)?;
    if text.len() > MAX_BYTES {
        return Err(io::Error::other("there are too many canaries"));
    }
    Ok(text)
}

/// Reads it. No file is no error, one that is damaged, foreign or of another version is.
pub(super) fn read(path: &Path) -> io::Result<Canaries> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Canaries::default()),
        Err(error) => return Err(error),
    };
    let mut text = vec![];
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut text)?;
    let bad = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    if text.len() > MAX_BYTES {
        return Err(bad(String::from("it is too long")));
    }
    let Versioned { version } = serde_json::from_slice(&text)?;
    if version != VERSION {
        return Err(bad(format!("it is of version {version}, and version {VERSION} is what is understood here")));
    }
    let Found { canaries, former } = serde_json::from_slice(&text)?;
    let mut read = Canaries::default();
    for (route, value) in canaries {
        match sound::<Kept>(value, |kept| kept) {
            Ok(kept) => {
                read.kept.insert(route, kept);
            }
            Err(fault) => read.faults.push(format!("route {route}: {fault}")),
        }
    }
    for value in former {
        let route = value.get("route").and_then(Value::as_str).unwrap_or("?").to_owned();
        match sound::<Gone>(value, |gone| &gone.kept) {
            Ok(gone) => read.former.push(gone),
            Err(fault) => read.faults.push(format!("route {route}, before: {fault}")),
        }
    }
    Ok(read)
}

/// What came from outside, if it makes sense.
fn sound<T: DeserializeOwned>(value: Value, kept: impl FnOnce(&T) -> &Kept) -> Result<T, String> {
    let found: T = serde_json::from_value(value).map_err(|error| error.to_string())?;
    match kept(&found).fault() {
        None => Ok(found),
        Some(fault) => Err(fault.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::durable::write_with_folder as write;
    use crate::gateway::canary::handle::WeakCanary;
    use crate::gateway::canary::ledger::{Ledger, Turn};
    use crate::gateway::canary::{Phase, Reason, Weight};

    fn kept(route: &str, phase: Phase, weight: f64) -> (String, Kept) {
        let mut ledger = Ledger::new(Weight::percent(1.0).unwrap(), 5, 7);
        let weight = Weight::percent(weight).unwrap();
        let measured = Some(String::from("3.00 % of 400 requests failed"));
        ledger.turn(Turn { at: 9, phase, weight, reason: Reason::Errors, measured });
        (route.to_owned(), ledger.kept("release"))
    }

    #[test]
    fn what_is_kept_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made").join(NAME);
        assert!(read(&path).unwrap().kept.is_empty());
        let first = BTreeMap::from([kept("a", Phase::Running, 5.0), kept("b", Phase::Aborted, 0.0)]);
        write(&path, &text(&first, &[]).unwrap()).unwrap();
        assert_eq!(read(&path).unwrap().kept, first);
        let second = BTreeMap::from([kept("b", Phase::Held, 12.5)]);
        let (route, aborted) = kept("a", Phase::Aborted, 0.0);
        let gone = Gone { route, since: 8, kept: aborted, handle: WeakCanary::default() };
        write(&path, &text(&second, std::slice::from_ref(&gone)).unwrap()).unwrap();
        let found = read(&path).unwrap();
        assert!(found.kept == second && found.faults.is_empty());
        let former: Vec<_> = found.former.iter().map(|gone| (&*gone.route, gone.since, &gone.kept)).collect();
        assert_eq!(former, [("a", 8, &gone.kept)]);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn what_is_damaged_is_told_and_costs_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        let there = BTreeMap::from([kept("a", Phase::Running, 5.0), kept("b", Phase::Aborted, 0.0)]);
        let (route, held) = kept("c", Phase::Held, 7.0);
        let gone = Gone { route, since: 8, kept: held, handle: WeakCanary::default() };
        let good = text(&there, &[gone]).unwrap();
        for end in 0..good.len() {
            fs::write(&path, &good[..end]).unwrap();
            assert!(read(&path).is_err(), "{end} bytes of it");
        }
        for text in ["[]", "{}", r#"{"version": 2, "canaries": {}}"#, r#"{"version": 1}"#, "\u{0}\u{0}"] {
            fs::write(&path, text).unwrap();
            assert!(read(&path).is_err(), "{text}");
        }
        fs::write(&path, vec![b' '; MAX_BYTES + 1]).unwrap();
        assert!(read(&path).is_err());
        let good = String::from_utf8(good).unwrap();
        for (from, to) in [("5.0", "500"), ("\"running\"", "\"held\""), ("\"release\"", "\"something\""), ("9,", "{},")]
        {
            fs::write(&path, good.replacen(from, to, 1)).unwrap();
            let found = read(&path).unwrap();
            assert_eq!((found.kept.len(), found.faults.len()), (1, 1), "{from}");
            assert!(found.kept.contains_key("b") && found.faults[0].starts_with("route a: "), "{:?}", found.faults);
            assert_eq!(found.former.len(), 1);
        }
        fs::write(&path, good.replace("7.0", "700")).unwrap();
        let found = read(&path).unwrap();
        assert_eq!((found.kept.len(), found.former.len()), (2, 0));
        assert!(found.faults[0].starts_with("route c, before: a weight"), "{:?}", found.faults);
        // As it was written before they were kept.
        let (before, _) = good.split_once(",\n  \"former\"").unwrap();
        fs::write(&path, format!("{before}}}")).unwrap();
        let found = read(&path).unwrap();
        assert_eq!((found.kept.len(), found.former.len(), found.faults.len()), (2, 0, 0));
    }
}
