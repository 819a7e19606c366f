//! Who somebody is: accounts and their passwords, access tokens of ours and of other issuers, refresh tokens, and API keys.
//!
//! [`Identity`] is what others see. Whom a request is from is read from what is published in this process: the public keys
//! of all instances, those of other issuers, and the table of API keys, each refreshed in the background. The database is
//! asked by what is for accounts: registering, logging in, refreshing, logging out, `me`, sessions, a new password, deleting.
//! Beyond that one request in a second asks it at most: one whose token is of a key of ours that is not known here.

mod accounts;
mod api_key;
mod cache;
mod claims;
mod error;
mod hashing;
mod issuers;
mod lockout;
mod names;
mod operate;
mod options;
mod owner;
mod password;
mod principal;
mod ring;
mod ring_file;
mod service;
mod session;
mod store;
mod tend;
#[cfg(test)]
mod tests;
mod token;
mod unknown;

pub use accounts::{AccountView, Tokens};
pub use api_key::{ApiKey, is_key, is_shown_id};
pub use error::{BadField, IdentityError, Rejection};
pub use lockout::Network;
pub use names::Registration;
pub use operate::{
    check_password, create_account, create_key, delete_account, end_sessions, find_account, find_key, list_accounts,
    list_keys, revoke_key, set_password, set_roles, store_key,
};
pub use options::{IdentityOptions, IssuerOptions, JwksUrl, algorithm};
pub use owner::SessionView;
pub use password::Argon2Options;
pub use principal::{Principal, Proof, Role};
pub use service::{Identity, IdentityStats, Recognised};

/// Bytes that nobody can guess.
fn random<const N: usize>() -> Result<[u8; N], IdentityError> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| IdentityError::Internal("the system has no randomness"))?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// As hex.
fn sha256(bytes: &[u8]) -> String {
    hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref())
}
