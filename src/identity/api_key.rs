//! API keys: `tg_`, a public id that is shown, a secret, and a checksum by which scanners and we tell one from rubbish
//! without asking a database.

use std::collections::HashMap;
use std::sync::Arc;

use super::error::{BadField, IdentityError};
use super::principal::{Principal, Proof};
use super::{hex, random, sha256};
use crate::clock::UnixMillis;

const PREFIX: &str = "tg_";
const ID: usize = 12;
const SECRET: usize = 64;
const CHECKSUM: usize = 8;

/// What is stored of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// Public: what is shown is `tg_` and this.
    pub id: String,
    /// What it is for.
    pub name: String,
    pub(super) hash: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// When it was made.
    pub created_at: UnixMillis,
    /// When it ends.
    pub expires_at: Option<UnixMillis>,
    /// When it was revoked.
    pub revoked_at: Option<UnixMillis>,
}

impl ApiKey {
    /// Makes one; its text is in nobody's hands but the caller's.
    ///
    /// # Errors
    /// [`IdentityError::Invalid`] for a name or scope that cannot be.
    pub fn make(
        name: &str,
        scopes: &[String],
        expires_at: Option<UnixMillis>,
        now: UnixMillis,
    ) -> Result<(Self, String), IdentityError> {
        let mut bad = Vec::new();
        if name.is_empty() || name.len() > 255 || name.chars().any(char::is_control) {
            bad.push(BadField { field: "name", message: "it must have 1 to 255 bytes, and no control characters" });
        }
        if !scopes.iter().all(|scope| is_scope(scope)) || scopes.len() > 15 {
            bad.push(BadField { field: "scopes", message: "there may be 15, each of 1 to 64 of A-Z a-z 0-9 : . _ -" });
        }
        if !bad.is_empty() {
            return Err(IdentityError::Invalid(bad));
        }
        let (id, secret): ([u8; ID / 2], [u8; SECRET / 2]) = (random()?, random()?);
        let id = hex(&id);
        let body = format!("{PREFIX}{id}_{}", hex(&secret));
        let text = format!("{body}{:08x}", crc32fast::hash(body.as_bytes()));
        let hash = sha256(text.as_bytes());
        let key = Self {
            id,
            name: name.to_owned(),
            hash,
            scopes: scopes.to_vec(),
            created_at: now,
            expires_at,
            revoked_at: None,
        };
        Ok((key, text))
    }

    /// What is shown of it.
    pub fn prefix(&self) -> String {
        format!("{PREFIX}{}", self.id)
    }

    /// Whether it may be used.
    pub fn holds(&self, now: UnixMillis) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|at| now < at)
    }
}

/// The id in what may be a key; `None` if it is none.
pub(super) fn id_of(text: &str) -> Option<&str> {
    let (id, rest) = text.strip_prefix(PREFIX)?.split_once('_')?;
    let body = text.len().checked_sub(CHECKSUM)?;
    let lower = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    let shape = id.len() == ID && rest.len() == SECRET + CHECKSUM && id.bytes().chain(rest.bytes()).all(lower);
    let sum = u32::from_str_radix(text.get(body..)?, 16).ok()?;
    (shape && crc32fast::hash(text.get(..body)?.as_bytes()) == sum).then_some(id)
}

/// Whether this may be a scope.
fn is_scope(scope: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b':' | b'.' | b'_' | b'-');
    (1..=64).contains(&scope.len()) && scope.bytes().all(inner)
}

/// Whether this is what is shown of a key, and nothing more of one.
pub fn is_shown_id(text: &str) -> bool {
    let lower = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    text.strip_prefix(PREFIX).is_some_and(|id| id.len() == ID && id.bytes().all(lower))
}

/// Whether this has all of a key's parts, and its checksum: nobody else has such ones.
pub fn is_key(sent: &[u8]) -> bool {
    std::str::from_utf8(sent).is_ok_and(|text| id_of(text).is_some())
}

/// Whether a text begins as a key does.
pub(super) fn looks_like_one(text: &str) -> bool {
    text.starts_with(PREFIX)
}

/// All keys, as they are published.
#[derive(Debug, Default)]
pub(super) struct Keys {
    by_id: HashMap<String, (ApiKey, Arc<Principal>)>,
}

impl Keys {
    pub fn new(keys: Vec<ApiKey>) -> Self {
        let with_id = |key: ApiKey| {
            let principal = Principal {
                id: key.prefix(),
                name: key.name.clone(),
                roles: vec![],
                scopes: key.scopes.clone(),
                proof: Proof::Key,
                expires_at: key.expires_at,
            };
            (key.id.clone(), (key, Arc::new(principal)))
        };
        Self { by_id: keys.into_iter().map(with_id).collect() }
    }

    /// Whose key this is.
    pub fn verify(&self, text: &str, now: UnixMillis) -> Result<Arc<Principal>, &'static str> {
        let id = id_of(text).ok_or("malformed_key")?;
        let (key, principal) = self.by_id.get(id).ok_or("unknown_key")?;
        // All bytes are compared, wherever the first difference is.
        let same =
            aws_lc_rs::constant_time::verify_slices_are_equal(sha256(text.as_bytes()).as_bytes(), key.hash.as_bytes());
        if same.is_err() {
            return Err("unknown_key");
        }
        if key.holds(now) { Ok(principal.clone()) } else { Err("ended_key") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_good_until_it_ends() {
        let scopes = [String::from("orders:read")];
        let (key, text) = ApiKey::make("till", &scopes, Some(1000), 0).unwrap();
        assert!(text.starts_with(&format!("{}_", key.prefix())) && text.len() == 88, "{}", key.prefix());
        assert!(!format!("{key:?}").contains(&text[16..]));
        assert!(is_shown_id(&key.prefix()) && !is_shown_id(&text) && !is_shown_id(&text[..16]));
        let keys = Keys::new(vec![key.clone()]);
        let principal = keys.verify(&text, 999).unwrap();
        assert_eq!(
            (principal.id.as_str(), principal.may("orders:read"), principal.operates()),
            (&*key.prefix(), true, false)
        );
        assert_eq!(keys.verify(&text, 1000), Err("ended_key"));
        let revoked = Keys::new(vec![ApiKey { revoked_at: Some(5), ..key.clone() }]);
        assert_eq!(revoked.verify(&text, 6), Err("ended_key"));
        let (_, other) = ApiKey::make("till", &scopes, None, 0).unwrap();
        assert_eq!(keys.verify(&other, 0), Err("unknown_key"));
        // The same id with another secret, and a good checksum.
        let body = format!("{}_{}", key.prefix(), "0".repeat(64));
        let forged = format!("{body}{:08x}", crc32fast::hash(body.as_bytes()));
        assert_eq!(keys.verify(&forged, 0), Err("unknown_key"));
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
            assert!(keys.verify(std::str::from_utf8(&bytes).unwrap(), 0).is_err(), "byte {at}");
            assert!(keys.verify(&text[..at], 0).is_err(), "{at} bytes");
        }
    }

    #[test]
    fn names_and_scopes_are_looked_at() {
        let make = |name: &str, scope: &str| ApiKey::make(name, &[scope.to_owned()], None, 0).is_ok();
        assert!(make("till 1", "a"));
        assert!(!make("", "a") && !make("a\nb", "a") && !make("a", "a b") && !make("a", ""));
    }
}
