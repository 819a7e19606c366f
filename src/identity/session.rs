//! Refresh tokens: what they look like, and what becomes of one that is presented.
//!
//! A token is good once, and its use gives the next of its family. One that comes a second time was stolen, or its thief
//! was first: the family ends, and everybody must log in again (RFC 9700, section 4.14.2). A client that did not get the
//! answer may ask again within [`GRACE`], as long as nobody used what it was given; what it was given first then counts as
//! used, so that at most one token of a family is ever good.
//!
//! The first half of a token is its family's *handle*, by which one is known for a used one also when there is nothing of it
//! any more: whoever has the handle had a token of the family. So used tokens are forgotten after [`KEPT`], and a family that
//! is refreshed for months has two or three rows. Only hashes of either are stored.

use std::time::Duration;

use super::error::IdentityError;
use super::{hex, random, sha256};
use crate::clock::{UnixMillis, millis};

/// How long an answer that was lost may be asked for again.
pub(super) const GRACE: Duration = Duration::from_secs(10);
/// How long a used token is kept: for [`GRACE`], on whatever instance with whatever clock.
pub(super) const KEPT: Duration = Duration::from_secs(600);
const PREFIX: &str = "tgr_";
/// Hex digits of each half.
const HALF: usize = 32;

/// A token, which only its client has, and what we keep of it.
pub(super) struct RefreshToken {
    pub text: String,
    pub traces: Traces,
}

/// Hashes of a token and of its family's handle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Traces {
    pub hash: String,
    pub handle: String,
}

/// A token that was sent.
pub(super) struct Sent<'a> {
    handle: &'a str,
    pub traces: Traces,
}

impl RefreshToken {
    /// The first of a family.
    pub fn first() -> Result<Self, IdentityError> {
        Self::of(&hex(&random::<{ HALF / 2 }>()?))
    }

    /// The next one after this.
    pub fn after(sent: &Sent<'_>) -> Result<Self, IdentityError> {
        Self::of(sent.handle)
    }

    fn of(handle: &str) -> Result<Self, IdentityError> {
        let text = format!("{PREFIX}{handle}{}", hex(&random::<{ HALF / 2 }>()?));
        let traces = Traces { hash: sha256(text.as_bytes()), handle: sha256(handle.as_bytes()) };
        Ok(Self { text, traces })
    }
}

/// What a token is known by that was sent, if it looks like one.
pub(super) fn sent(text: &str) -> Option<Sent<'_>> {
    let secret = text.strip_prefix(PREFIX)?;
    let handle = secret.get(..HALF)?;
    let whole = secret.len() == 2 * HALF && secret.bytes().all(|b| b.is_ascii_hexdigit());
    let traces = || Traces { hash: sha256(text.as_bytes()), handle: sha256(handle.as_bytes()) };
    whole.then(|| Sent { handle, traces: traces() })
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
        let fresh = now.saturating_sub(used_at) <= millis(GRACE);
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
        let token = RefreshToken::first().unwrap();
        let seen = sent(&token.text).unwrap();
        assert_eq!(seen.traces, token.traces);
        assert_ne!(token.text, RefreshToken::first().unwrap().text);
        for bad in ["", "tgr_", "tgr_xyz", &token.text[..67], &format!("{}0", token.text), &token.text[4..]] {
            assert!(sent(bad).is_none(), "{bad}");
        }
        assert!(sent(&format!("tgr_{}", "ä".repeat(32))).is_none());
        // The next is another one of the same family.
        let next = RefreshToken::after(&seen).unwrap();
        assert_eq!(next.traces.handle, token.traces.handle);
        assert_ne!(next.traces.hash, token.traces.hash);
    }
}
