//! The keys that sign our tokens: one that does, one that will, and those whose tokens may still be about.
//!
//! The next key is published a whole period before it signs, so that whoever caches our keys knows it in time; an old one
//! stays until the last of its tokens has expired. No moment exists at which a token that we issued cannot be verified.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use serde::{Deserialize, Serialize};

use super::error::IdentityError;
use super::token::{LEEWAY, VerifyingKey};
use crate::clock::{SECOND, UnixMillis, millis};

/// An Ed25519 key pair. Its private half is never shown.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct SigningKey {
    /// Its name: the beginning of the hash of its public half.
    pub kid: String,
    /// PKCS#8, base64.
    private: String,
    /// Base64, as in a JWK.
    pub public: String,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

fn broken(what: &str) -> IdentityError {
    IdentityError::Keys(what.to_owned())
}

/// A key that verifies, from the public half as it is in a JWK.
pub(super) fn verifying(public: &str) -> Option<VerifyingKey> {
    let bytes = URL_SAFE_NO_PAD.decode(public).ok().filter(|bytes| bytes.len() == 32)?;
    Some(VerifyingKey { algorithm: Algorithm::EdDSA, key: DecodingKey::from_ed_der(&bytes) })
}

impl SigningKey {
    pub fn generate() -> Result<Self, IdentityError> {
        let private = Ed25519KeyPair::generate_pkcs8v1(&aws_lc_rs::rand::SystemRandom::new())
            .map_err(|_| broken("none can be made"))?;
        let pair = Ed25519KeyPair::from_pkcs8(private.as_ref()).map_err(|_| broken("none can be made"))?;
        let public = pair.public_key().as_ref();
        Ok(Self {
            kid: URL_SAFE_NO_PAD.encode(&digest(&SHA256, public).as_ref()[..12]),
            private: STANDARD_NO_PAD.encode(private.as_ref()),
            public: URL_SAFE_NO_PAD.encode(public),
        })
    }

    fn der(&self) -> Vec<u8> {
        // It was looked at when it was read.
        STANDARD_NO_PAD.decode(&self.private).unwrap_or_default()
    }

    /// For signing.
    pub fn encoding(&self) -> EncodingKey {
        EncodingKey::from_ed_der(&self.der())
    }

    #[cfg(test)]
    pub fn verifying(&self) -> VerifyingKey {
        verifying(&self.public).unwrap()
    }

    #[cfg(test)]
    pub fn public(&self) -> Vec<u8> {
        URL_SAFE_NO_PAD.decode(&self.public).unwrap()
    }

    #[cfg(test)]
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        Ed25519KeyPair::from_pkcs8(&self.der()).unwrap().sign(message).as_ref().to_vec()
    }

    fn check(&self) -> bool {
        let pair = Ed25519KeyPair::from_pkcs8(&self.der());
        pair.is_ok_and(|pair| URL_SAFE_NO_PAD.encode(pair.public_key().as_ref()) == self.public)
    }
}

/// An old key, by its public half.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Retired {
    pub kid: String,
    pub public: String,
    /// When the last of its tokens has expired.
    pub until: UnixMillis,
}

/// All of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Ring {
    pub active: SigningKey,
    /// Since when it signs.
    pub since: UnixMillis,
    pub next: SigningKey,
    pub retired: Vec<Retired>,
}

impl Ring {
    /// The first.
    pub fn new(now: UnixMillis) -> Result<Self, IdentityError> {
        Ok(Self { active: SigningKey::generate()?, since: now, next: SigningKey::generate()?, retired: vec![] })
    }

    /// Reads what [`Ring::write`] wrote.
    pub fn read(text: &[u8]) -> Result<Self, IdentityError> {
        let ring: Self = serde_json::from_slice(text).map_err(|_| broken("the file is not as it was written"))?;
        if !ring.active.check() || !ring.next.check() {
            return Err(broken("a key in the file is broken"));
        }
        Ok(ring)
    }

    /// As it is kept.
    pub fn write(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).unwrap_or_default()
    }

    /// What it is after `now`: the next key takes over when the active one has signed for a period, and what nobody needs any
    /// more is forgotten. `None` if nothing changes.
    pub fn step(&self, now: UnixMillis, period: Duration, lifetime: Duration) -> Result<Option<Self>, IdentityError> {
        let mut after = self.clone();
        after.retired.retain(|key| key.until > now);
        if now.saturating_sub(self.since) >= millis(period) {
            // It signs until this is published everywhere in this process, which takes no time; the leeway is more.
            let until = now.saturating_add(millis(lifetime)).saturating_add(2 * i64::from(LEEWAY) * SECOND);
            let Self { active, next, .. } = self.clone();
            after.retired.push(Retired { kid: active.kid, public: active.public, until });
            after.active = next;
            after.next = SigningKey::generate()?;
            after.since = now;
        }
        let changed = after.active.kid != self.active.kid || after.retired.len() != self.retired.len();
        Ok(changed.then_some(after))
    }

    /// The public halves, with the time until which each may be needed.
    pub fn published(&self, now: UnixMillis, period: Duration, lifetime: Duration) -> Vec<Retired> {
        let life = millis(lifetime).saturating_add(2 * i64::from(LEEWAY) * SECOND);
        // One whose turn is over signs on if the next cannot be taken up, as when the disk is full.
        let until = |periods: i64| {
            self.since.saturating_add(millis(period).saturating_mul(periods)).max(now).saturating_add(life)
        };
        let of = |key: &SigningKey, until| Retired { kid: key.kid.clone(), public: key.public.clone(), until };
        let now = [of(&self.active, until(1)), of(&self.next, until(2))];
        now.into_iter().chain(self.retired.iter().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(100);
    const LIFE: Duration = Duration::from_secs(10);

    #[test]
    fn every_token_can_be_verified_until_it_expires() {
        let mut ring = Ring::new(0).unwrap();
        let mut tokens: Vec<(UnixMillis, String)> = vec![];
        let mut signed_with = std::collections::HashSet::new();
        for now in (0..1_000_000).step_by(1000) {
            let known: Vec<String> = ring.published(now, PERIOD, LIFE).into_iter().map(|key| key.kid).collect();
            if let Some(after) = ring.step(now, PERIOD, LIFE).unwrap() {
                assert!(known.contains(&after.active.kid), "who signs was published before");
                ring = after;
            }
            tokens.push((now + 10_000, ring.active.kid.clone()));
            signed_with.insert(ring.active.kid.clone());
            let known: Vec<String> = ring.published(now, PERIOD, LIFE).into_iter().map(|key| key.kid).collect();
            assert!(known.len() <= 3, "nothing stays that nobody needs");
            tokens.retain(|(until, _)| *until > now);
            for (until, kid) in &tokens {
                assert!(known.contains(kid), "at {now} a token that holds until {until} cannot be verified");
            }
            for key in ring.published(now, PERIOD, LIFE) {
                assert!(key.until > now);
            }
        }
        assert_eq!(signed_with.len(), 10);
    }

    #[test]
    fn it_is_kept_and_read_again_and_shows_no_private_half() {
        let ring = Ring::new(5).unwrap();
        let again = Ring::read(&ring.write()).unwrap();
        assert_eq!((&again.active.kid, again.since), (&ring.active.kid, 5));
        assert!(!format!("{ring:?}").contains(&ring.active.private));
        assert!(Ring::read(b"{}").is_err());
        let mut text = String::from_utf8(ring.write()).unwrap();
        text = text.replace(&ring.next.public, &ring.active.public);
        assert!(Ring::read(text.as_bytes()).is_err());
    }
}
