//! Refresh tokens: what they look like, and what becomes of one that is presented.
//!
//! A token is good once, and its use gives the next of its family. One that comes a second time was stolen, or its thief
//! was first: the family ends, and everybody must log in again (RFC 9700, section 4.14.2). A client that did not get the
//! answer may ask again within [`GRACE`], as long as nobody used what it was given; what it was given first then counts as
//! used, so that at most one token of a family is ever good.

use std::time::Duration;

use super::error::IdentityError;
use super::{hex, random, sha256};
use crate::clock::UnixMillis;

/// How long an answer that was lost may be asked for again.
pub(super) const GRACE: Duration = Duration::from_secs(10);
const PREFIX: &str = "tgr_";

/// A token, which only its client has, and its hash, which we keep.
pub(super) struct RefreshToken {
    pub text: String,
    pub hash: String,
}

impl RefreshToken {
    pub fn new() -> Result<Self, IdentityError> {
        let secret: [u8; 32] = random()?;
        let text = format!("{PREFIX}{}", hex(&secret));
        let hash = sha256(text.as_bytes());
        Ok(Self { text, hash })
    }
}

/// The hash of a token that was sent, if it looks like one.
pub(super) fn hash_of(text: &str) -> Option<String> {
    let secret = text.strip_prefix(PREFIX)?;
    (secret.len() == 64 && secret.bytes().all(|b| b.is_ascii_hexdigit())).then(|| sha256(text.as_bytes()))
}

/// What is stored of a token that was presented.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Presented {
    pub used_at: Option<UnixMillis>,
    pub expires_at: UnixMillis,
    pub family_revoked: bool,
    pub family_expires_at: UnixMillis,
    /// Whether one that came after it was used.
    pub successor_used: bool,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is used now, and another follows.
    Rotate,
    /// Its answer was lost: another follows, and those that followed before are used.
    Again,
    /// It does not hold any more.
    Dead,
    /// It was used before: the family ends.
    Reused,
}

impl Presented {
    pub fn judge(&self, now: UnixMillis) -> Verdict {
        if self.family_revoked || now >= self.expires_at || now >= self.family_expires_at {
            return Verdict::Dead;
        }
        let Some(used_at) = self.used_at else { return Verdict::Rotate };
        let fresh = now.saturating_sub(used_at) <= i64::try_from(GRACE.as_millis()).unwrap_or(0);
        if fresh && !self.successor_used { Verdict::Again } else { Verdict::Reused }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_once() {
        let fresh = Presented { expires_at: 100_000, family_expires_at: 200_000, ..Presented::default() };
        assert_eq!(fresh.judge(0), Verdict::Rotate);
        assert_eq!(fresh.judge(100_000), Verdict::Dead);
        assert_eq!(Presented { family_expires_at: 50, ..fresh }.judge(50), Verdict::Dead);
        assert_eq!(Presented { family_revoked: true, ..fresh }.judge(0), Verdict::Dead);
        let used = Presented { used_at: Some(1000), ..fresh };
        assert_eq!(used.judge(11_000), Verdict::Again);
        assert_eq!(used.judge(11_001), Verdict::Reused);
        assert_eq!(Presented { successor_used: true, ..used }.judge(1001), Verdict::Reused);
        // What was replaced within the grace is marked as used long ago.
        assert_eq!(Presented { used_at: Some(0), ..fresh }.judge(50_000), Verdict::Reused);
        assert_eq!(Presented { family_revoked: true, ..used }.judge(1001), Verdict::Dead);
    }

    #[test]
    fn what_does_not_look_like_one_is_not_looked_for() {
        let token = RefreshToken::new().unwrap();
        assert_eq!(hash_of(&token.text).as_ref(), Some(&token.hash));
        assert_ne!(token.text, RefreshToken::new().unwrap().text);
        for bad in ["", "tgr_", "tgr_xyz", &token.text[..67], &format!("{}0", token.text), &token.text[4..]] {
            assert_eq!(hash_of(bad), None, "{bad}");
        }
    }
}
