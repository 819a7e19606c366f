//! Who a visitor is, without keeping who it is.
//!
//! A visitor is its `user_id`, or else a SipHash-2-4 (Aumasson, Bernstein 2012) of site, address and agent, keyed with a
//! salt that exists for one UTC day and is then gone: nobody can link an anonymous visitor over days, nor try addresses
//! against yesterday's hashes. The salt lies in the data folder only so that a restart does not count visitors twice.

use std::fs;
use std::hash::Hasher;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use siphasher::sip::SipHasher24;
use xxhash_rust::xxh3::Xxh3;

use crate::clock::{DAY, UnixMillis};

/// A key of the anonymous hash.
pub type Salt = [u8; 16];

/// Hash of a known visitor. The same in every instance, so that their numbers can be united.
pub fn known(site: &str, user_id: &str) -> u64 {
    hashed(b'u', site, user_id)
}

/// Hash of a client's session id.
pub fn session(site: &str, session_id: &str) -> u64 {
    hashed(b's', site, session_id)
}

/// Dedup key of a client's event id.
pub fn dedup_key(site: &str, id: &[u8]) -> u128 {
    let mut hasher = Xxh3::new();
    hasher.update(&[b'i', site.len() as u8]);
    hasher.update(site.as_bytes());
    hasher.update(id);
    hasher.digest128()
}

fn hashed(kind: u8, site: &str, text: &str) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.update(&[kind, site.len() as u8]);
    hasher.update(site.as_bytes());
    hasher.update(text.as_bytes());
    // 0 stands for "none" in the journal.
    hasher.digest().max(1)
}

/// Hash of an anonymous visitor.
pub fn anonymous(salt: &Salt, site: &str, address: &str, agent: &str) -> u64 {
    let mut hasher = SipHasher24::new_with_key(salt);
    for part in [site, address, agent] {
        hasher.write_u32(part.len() as u32);
        hasher.write(part.as_bytes());
    }
    hasher.finish().max(1)
}

/// The salts in force: the day's, and those of the days in an imported log.
#[derive(Debug)]
pub struct Salts {
    path: PathBuf,
    today: ArcSwap<(i64, Salt)>,
    rotation: Mutex<()>,
    import_key: Salt,
    /// Salts that other instances use too, by day; the last two.
    shared: Mutex<Vec<(i64, Salt)>>,
}

impl Salts {
    /// Takes up the salts kept in `folder`, or makes the first.
    pub fn open(folder: &Path, now: UnixMillis) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let import_path = folder.join("import.key");
        let import_key = match fs::read(&import_path).ok().and_then(|bytes| Salt::try_from(bytes.as_slice()).ok()) {
            Some(key) => key,
            None => {
                let key = random();
                write_private(&import_path, &key)?;
                key
            }
        };
        let path = folder.join("day.salt");
        let day = now.div_euclid(DAY);
        let kept = fs::read(&path).ok().and_then(|bytes| decode(&bytes)).filter(|(kept, _)| *kept == day);
        let today = match kept {
            Some(today) => today,
            None => make(&path, day)?,
        };
        Ok(Self {
            path,
            today: ArcSwap::from_pointee(today),
            rotation: Mutex::new(()),
            import_key,
            shared: Mutex::default(),
        })
    }

    /// The salt of the day of `now`. The first call of a day makes it and overwrites yesterday's.
    pub fn today(&self, now: UnixMillis) -> Salt {
        let day = now.div_euclid(DAY);
        let held = **self.today.load();
        if held.0 >= day {
            return held.1;
        }
        let _one = self.rotation.lock();
        let held = **self.today.load();
        if held.0 >= day {
            return held.1;
        }
        let agreed = self.shared.lock().iter().find(|(of, _)| *of == day).copied();
        let made = agreed.map_or_else(|| make(&self.path, day), |agreed| keep(&self.path, agreed));
        let made = made.unwrap_or_else(|error| {
            // Without a disk the salt still rotates; a restart within the day then counts its visitors anew.
            log::error!("cannot keep the day's visitor salt: {error}");
            (day, random())
        });
        self.today.store(std::sync::Arc::new(made));
        made.1
    }

    /// What this instance proposes as the salt of a day: its own if it has one already.
    pub fn offer(&self, day: i64, now: UnixMillis) -> Salt {
        if day == now.div_euclid(DAY) { self.today(now) } else { random() }
    }

    /// Whether the instances have agreed on the salt of a day.
    pub fn is_shared(&self, day: i64) -> bool {
        self.shared.lock().iter().any(|(of, _)| *of == day)
    }

    /// Takes over the salt that the instances have agreed on for a day, at once or when the day comes.
    pub fn adopt(&self, day: i64, salt: Salt) {
        let _one = self.rotation.lock();
        let mut shared = self.shared.lock();
        shared.push((day, salt));
        let old = shared.len().saturating_sub(2);
        shared.drain(..old);
        if self.today.load().0 == day && self.today.load().1 != salt {
            if let Err(error) = keep(&self.path, (day, salt)) {
                log::error!("cannot keep the day's visitor salt: {error}");
            }
            self.today.store(std::sync::Arc::new((day, salt)));
        }
    }

    /// The salt of a day in an imported log: the same at every import here, so that importing twice finds the same
    /// visitors. The log itself holds the addresses, so rotating it would protect nobody.
    pub fn of_import(&self, at: UnixMillis) -> Salt {
        let mut salt = [0; 16];
        for (half, chunk) in salt.chunks_mut(8).enumerate() {
            let mut hasher = SipHasher24::new_with_key(&self.import_key);
            hasher.write_i64(at.div_euclid(DAY));
            hasher.write_usize(half);
            chunk.copy_from_slice(&hasher.finish().to_le_bytes());
        }
        salt
    }
}

fn random() -> Salt {
    *uuid::Uuid::new_v4().as_bytes()
}

fn decode(bytes: &[u8]) -> Option<(i64, Salt)> {
    let (day, salt) = bytes.split_at_checked(8)?;
    Some((i64::from_le_bytes(day.try_into().ok()?), salt.try_into().ok()?))
}

fn make(path: &Path, day: i64) -> io::Result<(i64, Salt)> {
    keep(path, (day, random()))
}

fn keep(path: &Path, (day, salt): (i64, Salt)) -> io::Result<(i64, Salt)> {
    let mut bytes = day.to_le_bytes().to_vec();
    bytes.extend_from_slice(&salt);
    write_private(path, &bytes)?;
    Ok((day, salt))
}

/// Writes a file that only its owner reads, whole or not at all.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let fresh = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    fs::rename(fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_anonymous_visitor_is_the_same_for_a_day_and_over_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let salts = Salts::open(folder.path(), 5).unwrap();
        let visitor = |salts: &Salts, now| anonymous(&salts.today(now), "shop", "192.0.2.1", "Firefox");
        let first = visitor(&salts, 5);
        assert_eq!(visitor(&salts, DAY - 1), first);
        assert_eq!(visitor(&Salts::open(folder.path(), DAY - 1).unwrap(), DAY - 1), first);
        let next = visitor(&salts, DAY);
        assert_ne!(next, first);
        assert_eq!(visitor(&Salts::open(folder.path(), DAY).unwrap(), DAY), next);
        assert_ne!(visitor(&Salts::open(folder.path(), 5).unwrap(), 5), first, "yesterday's salt is gone");
    }

    #[test]
    fn an_imported_day_has_one_salt_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let salt = Salts::open(folder.path(), 5).unwrap().of_import(3 * DAY);
        let later = Salts::open(folder.path(), 90 * DAY).unwrap();
        assert_eq!(later.of_import(3 * DAY + 7), salt);
        assert_ne!(later.of_import(4 * DAY), salt);
    }

    #[test]
    fn parts_of_a_hash_do_not_run_into_each_other() {
        assert_ne!(known("ab", "c"), known("a", "bc"));
        assert_ne!(anonymous(&[0; 16], "a", "bc", ""), anonymous(&[0; 16], "a", "b", "c"));
        assert_ne!(dedup_key("ab", b"c"), dedup_key("a", b"bc"));
    }
}
