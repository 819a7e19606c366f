//! What can go wrong with accounts, tokens and keys. No message holds a password, a token or a key.

use std::time::Duration;

use crate::actor::admission::Overloaded;
use crate::database::{DatabaseError, Failure};

/// One field that cannot be taken, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadField {
    /// Its name.
    pub field: &'static str,
    /// What is allowed.
    pub message: &'static str,
}

/// The room's one error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Fields that cannot be taken; all of them.
    #[error("{}", .0.iter().map(|bad| format!("{}: {}", bad.field, bad.message)).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<BadField>),
    /// There is an account of this name or e-mail.
    #[error("there is an account with this login or e-mail already")]
    Exists,
    /// Name or password is wrong; which of them is not told.
    #[error("login or password is wrong")]
    Credentials,
    /// The refresh token is none of ours, expired, used before, or revoked.
    #[error("the refresh token is not valid; log in again")]
    RefreshToken,
    /// There were too many wrong attempts.
    #[error("too many attempts; try again later")]
    TooMany {
        /// When to try again.
        retry_after: Duration,
    },
    /// Nobody may register.
    #[error("registration is switched off")]
    Closed,
    /// There is no such account or key.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// It is for whoever has an account here.
    #[error("this is for accounts, not for keys or for whom others vouch")]
    NoAccount,
    /// Too many passwords wait to be hashed.
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
    /// The database cannot be used.
    #[error("the accounts' database {0}")]
    Database(DatabaseError),
    /// The tables are not there yet.
    #[error("the accounts' tables are not up to date yet")]
    NotReady,
    /// The signing keys cannot be used.
    #[error("the signing keys cannot be used: {0}")]
    Keys(String),
    /// A mistake of ours.
    #[error("{0}")]
    Internal(&'static str),
}

impl IdentityError {
    /// When the same may go well; `None` when waiting would not help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded(_) | Self::NotReady => Some(Duration::from_secs(1)),
            Self::Database(error) => error.retry_after(),
            Self::TooMany { retry_after } => Some(*retry_after),
            _ => None,
        }
    }
}

impl From<DatabaseError> for IdentityError {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::Exists => Self::Exists,
            error => Self::Database(error),
        }
    }
}

impl Failure for IdentityError {
    fn database(&self) -> Option<&DatabaseError> {
        match self {
            Self::Database(error) => Some(error),
            _ => None,
        }
    }
}

/// Why a request that says who it is from is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// It is forged, broken, expired, or not for us: 401. The word is for the metrics; whoever sent it is not told.
    Invalid(&'static str),
    /// It cannot be verified right now, as when its issuer's keys cannot be had: 503.
    Unavailable {
        /// When to try again.
        retry_after: Duration,
    },
}
