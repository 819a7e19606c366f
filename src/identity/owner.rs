//! What the owner of an account does with it: another password, its sessions, its end.
//!
//! Passwords are proved anew for what a thief of a token must not do, under the same lockout as a login. A session is a family
//! of refresh tokens; access tokens of one that has ended hold until they expire.

use serde::Serialize;
use utoipa::ToSchema;

use super::accounts::Tokens;
use super::error::{BadField, IdentityError};
use super::lockout::Network;
use super::names;
use super::principal::{Principal, Proof};
use super::service::Identity;
use super::store::{Account, By, ChangePassword, DeleteAccount, EndSessions, FindAccount, SessionRow, Sessions};
use crate::clock::rfc3339;

/// A session of an account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct SessionView {
    /// By which it can be ended.
    #[schema(example = "0d5e7e9bb1ce4a6c8f8e5d2a43c1f7b0")]
    pub id: String,
    /// When somebody logged in, RFC 3339.
    pub created_at: String,
    /// When its tokens were last refreshed, RFC 3339.
    pub last_used_at: String,
    /// When it ends if they are not again, RFC 3339.
    pub expires_at: String,
    /// Whether it is the one that asks.
    pub current: bool,
}

/// The account of whom a token of ours is from, and the token's session.
fn of(principal: &Principal) -> Result<(&str, &str), IdentityError> {
    match &principal.proof {
        Proof::Account { session } => Ok((&principal.id, session)),
        Proof::Issuer(_) | Proof::Key => Err(IdentityError::NoAccount),
    }
}

/// Under what guesses at an account's password count here: no login is written so.
fn counted(id: &str) -> String {
    format!("#{id}")
}

impl Identity {
    async fn own(&self, id: &str) -> Result<Account, IdentityError> {
        self.inner.ready()?;
        let account = self.inner.database.run(FindAccount(By::Id(id.to_owned()))).await?;
        account.ok_or(IdentityError::NotFound("account"))
    }

    /// Gives an account another password. All its sessions end, also the one that asks, as whoever knows a token of it should
    /// not stay; the answer is a new one.
    ///
    /// # Errors
    /// [`IdentityError::Credentials`] when the current password is wrong, [`IdentityError::Invalid`] when the new one cannot be
    /// taken, [`IdentityError::TooMany`], [`IdentityError::NoAccount`]; or when the database or the hashing is busy.
    pub async fn change_password(
        &self,
        principal: &Principal,
        (current, new): (&str, &str),
        network: Network,
    ) -> Result<Tokens, IdentityError> {
        let (id, _) = of(principal)?;
        self.inner.may_issue().await?;
        let account = self.own(id).await?;
        if let Some(message) = names::unfit_password(new, &account.login, account.email.as_deref()) {
            return Err(IdentityError::Invalid(vec![BadField { field: "new_password", message }]));
        }
        if !names::may_be_password(current) {
            return Err(IdentityError::Credentials);
        }
        let inner = &self.inner;
        let change = async |mut account: Account, _| {
            let hash = inner.hashing.hash(new.to_owned(), network).await?;
            let old = std::mem::replace(&mut account.password, hash.clone());
            let (begin, tokens) = inner.session(&account, network)?;
            let change = ChangePassword { account: account.id, old: Some(old), new: hash, then: Some(begin) };
            Ok(inner.database.run(change).await?.then_some(tokens))
        };
        inner.proven(Some(account), &counted(id), (current, network), change).await
    }

    /// Deletes an account, with its sessions and the networks that it is known from.
    ///
    /// # Errors
    /// As for [`Identity::change_password`].
    pub async fn delete_account(
        &self,
        principal: &Principal,
        password: &str,
        network: Network,
    ) -> Result<(), IdentityError> {
        let (id, _) = of(principal)?;
        let account = self.own(id).await?;
        if !names::may_be_password(password) {
            return Err(IdentityError::Credentials);
        }
        let inner = &self.inner;
        let delete = async |account: Account, _| {
            let delete = DeleteAccount { account: account.id, old: Some(account.password) };
            Ok(inner.database.run(delete).await?.then_some(()))
        };
        inner.proven(Some(account), &counted(id), (password, network), delete).await
    }

    /// The sessions of an account, at most 1000, the one that was used last first.
    ///
    /// # Errors
    /// [`IdentityError::NoAccount`]; or when the database is busy.
    pub async fn sessions(&self, principal: &Principal) -> Result<Vec<SessionView>, IdentityError> {
        let (id, current) = of(principal)?;
        self.inner.ready()?;
        let view = |row: SessionRow| SessionView {
            current: row.id == current,
            id: row.id,
            created_at: rfc3339(row.created_at),
            last_used_at: rfc3339(row.used_at),
            expires_at: rfc3339(row.expires_at),
        };
        Ok(self.inner.database.run(Sessions(id.to_owned())).await?.into_iter().map(view).collect())
    }

    /// Ends one session of an account.
    ///
    /// # Errors
    /// [`IdentityError::NotFound`] when it has no such, [`IdentityError::NoAccount`]; or when the database is busy.
    pub async fn end_session(&self, principal: &Principal, session: &str) -> Result<(), IdentityError> {
        let (id, _) = of(principal)?;
        self.inner.ready()?;
        let one = Some(session.to_owned());
        let ended = self.inner.database.run(EndSessions { account: id.to_owned(), one }).await?;
        if ended { Ok(()) } else { Err(IdentityError::NotFound("session")) }
    }

    /// Ends all sessions of an account, also the one that asks.
    ///
    /// # Errors
    /// [`IdentityError::NoAccount`]; or when the database is busy.
    pub async fn end_sessions(&self, principal: &Principal) -> Result<(), IdentityError> {
        let (id, _) = of(principal)?;
        self.inner.ready()?;
        self.inner.database.run(EndSessions { account: id.to_owned(), one: None }).await?;
        Ok(())
    }
}
