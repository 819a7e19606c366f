//! Tokens that were verified a moment ago: a signature costs a hundred times what a look costs.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use hashlink::LruCache;
use parking_lot::Mutex;

use super::principal::Principal;
use super::token::LEEWAY;
use crate::clock::{SECOND, UnixMillis};

/// Parts, each with a lock of its own.
const PARTS: usize = 16;
/// Tokens in each.
const TOKENS: usize = 1024;

type Key = [u8; 32];
/// With the generation of the keys that verified it.
type Part = Mutex<LruCache<Key, (u64, Arc<Principal>)>>;

/// Tokens by their SHA-256: nobody finds another of the same.
pub(super) struct Verified {
    parts: [Part; PARTS],
}

impl std::fmt::Debug for Verified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verified")
    }
}

impl Verified {
    pub fn new() -> Self {
        Self { parts: std::array::from_fn(|_| Mutex::new(LruCache::new(TOKENS))) }
    }

    pub fn key(token: &str) -> Key {
        let mut key = [0; 32];
        key.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        key
    }

    fn part(&self, key: &Key) -> &Part {
        &self.parts[usize::from(key[0]) % PARTS]
    }

    /// Who sent it, if it was verified with the keys of this `generation` and has not expired.
    pub fn get(&self, key: &Key, generation: u64, now: UnixMillis) -> Option<Arc<Principal>> {
        let mut part = self.part(key).lock();
        let (of, principal) = part.get(key)?;
        let holds = *of == generation
            && principal.expires_at.is_some_and(|at| now < at.saturating_add(i64::from(LEEWAY) * SECOND));
        if holds {
            return Some(principal.clone());
        }
        part.remove(key);
        None
    }

    pub fn put(&self, key: Key, generation: u64, principal: Arc<Principal>) {
        self.part(&key).lock().insert(key, (generation, principal));
    }
}

#[cfg(test)]
mod tests {
    use super::super::principal::Proof;
    use super::*;

    #[test]
    fn it_forgets_what_expires_and_what_other_keys_verified() {
        let cache = Verified::new();
        let principal = Arc::new(Principal {
            id: String::from("u"),
            name: String::new(),
            roles: vec![],
            scopes: vec![],
            proof: Proof::Key,
            expires_at: Some(10_000),
        });
        let key = Verified::key("a.b.c");
        cache.put(key, 1, principal.clone());
        assert_eq!(cache.get(&key, 1, 39_999), Some(principal.clone()));
        assert_eq!(cache.get(&Verified::key("a.b.d"), 1, 0), None);
        assert_eq!(cache.get(&key, 2, 0), None);
        cache.put(key, 1, principal);
        assert_eq!(cache.get(&key, 1, 40_000), None);
    }
}
