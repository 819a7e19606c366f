//! Who sends a request: a question to whoever knows accounts, which the gateway does not.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper::HeaderMap;

/// Knows whose credentials are whose.
pub trait Identify: Send + Sync {
    /// Whose the credentials in these headers are.
    fn identify(&self, headers: &HeaderMap) -> Asked;

    /// Whose an API key is; `None` if it does not look like one of theirs.
    fn key(&self, sent: &[u8]) -> Option<Identified>;

    /// Whether this has all that makes an API key of theirs, be it good or not any more.
    fn is_key(&self, sent: &[u8]) -> bool;
}

/// What is known of a request's credentials.
pub enum Asked {
    /// This, at once.
    Now(Identified),
    /// Somebody has to be asked first.
    Later(BoxFuture<'static, Identified>),
}

/// A user; none where there are no credentials.
pub type Identified = Result<Option<User>, Unidentified>;

/// Who is behind good credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// For limits, canaries and upstreams; of a key, what is shown of it.
    pub id: Arc<str>,
    /// What a key, or a token of another issuer, may do; `None` if that is not limited.
    pub scopes: Option<Vec<String>>,
    /// Whether it is an API key.
    pub is_key: bool,
}

impl User {
    /// Whether they may do all of this.
    pub fn may(&self, needed: &[String]) -> bool {
        self.scopes.as_ref().is_none_or(|has| needed.iter().all(|scope| has.contains(scope)))
    }
}

/// Why nobody is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unidentified {
    /// The credentials are not good.
    Invalid,
    /// That cannot be said right now.
    Unavailable {
        /// When to come again.
        retry_after: Duration,
    },
}
