//! What is asked of the database for all sessions of an account: a session is a family of refresh tokens.
//!
//! Whatever begins a session or ends them all holds the account first, and a refresh holds its family: so none lives on that
//! was begun with a password of before, or refreshed while the password changed.

use super::tokens::revoke;
use super::{Begin, hold, lock};
use crate::clock::UnixMillis;
use crate::database::{Session, Value, Work, end};
use crate::identity::error::IdentityError;

/// Gives an account another password, and ends all its sessions; whether that was done.
pub(in crate::identity) struct ChangePassword {
    pub account: String,
    /// The hash that was proved, and the account must have; an operator proves none.
    pub old: Option<String>,
    pub new: String,
    /// The session that goes on from here, if one does.
    pub then: Option<Begin>,
}

impl Work for ChangePassword {
    type Done = bool;
    type Error = IdentityError;

    fn writes(&self) -> bool {
        true
    }

    async fn run<S: Session>(&self, s: &mut S, now: UnixMillis) -> Result<bool, IdentityError> {
        s.begin().await?;
        let done = self.change(s, now).await;
        end(s, done).await
    }
}

impl ChangePassword {
    async fn change<S: Session>(&self, s: &mut S, now: UnixMillis) -> Result<bool, IdentityError> {
        if !hold(s, &self.account, self.old.as_deref()).await? {
            return Ok(false);
        }
        let values = vec![Value::text(&self.new), Value::text(&self.account)];
        s.rows("UPDATE accounts SET password = ? WHERE id = ?", values).await?;
        revoke_all(s, &self.account, now).await?;
        match &self.then {
            Some(begin) => begin.begin(s, now).await,
            None => Ok(true),
        }
    }
}

async fn revoke_all<S: Session>(s: &mut S, account: &str, now: UnixMillis) -> Result<(), IdentityError> {
    let sql = "UPDATE token_families SET revoked_at = ? WHERE account_id = ? AND revoked_at IS NULL";
    s.rows(sql, vec![Value::Int(now), Value::text(account)]).await?;
    Ok(())
}

/// Deletes an account, with its sessions and the networks that it was logged into from; whether that was done.
pub(in crate::identity) struct DeleteAccount {
    pub account: String,
    /// As with [`ChangePassword`].
    pub old: Option<String>,
}

impl Work for DeleteAccount {
    type Done = bool;
    type Error = IdentityError;

    fn writes(&self) -> bool {
        true
    }

    async fn run<S: Session>(&self, s: &mut S, _: UnixMillis) -> Result<bool, IdentityError> {
        s.begin().await?;
        let done = self.delete(s).await;
        end(s, done).await
    }
}

impl DeleteAccount {
    async fn delete<S: Session>(&self, s: &mut S) -> Result<bool, IdentityError> {
        if !hold(s, &self.account, self.old.as_deref()).await? {
            return Ok(false);
        }
        // Families before their tokens, as a refresh takes them.
        let sql = format!("SELECT id FROM token_families WHERE account_id = ?{}", lock::<S>());
        s.rows(&sql, vec![Value::text(&self.account)]).await?;
        s.rows("DELETE FROM accounts WHERE id = ?", vec![Value::text(&self.account)]).await?;
        Ok(true)
    }
}

/// A session that may still be refreshed.
pub(in crate::identity) struct SessionRow {
    pub id: String,
    pub created_at: UnixMillis,
    /// When its newest token was given out.
    pub used_at: UnixMillis,
    /// When that ends.
    pub expires_at: UnixMillis,
}

/// Those of an account, the one that was used last first.
pub(in crate::identity) struct Sessions(pub String);

impl Work for Sessions {
    type Done = Vec<SessionRow>;
    type Error = IdentityError;

    fn writes(&self) -> bool {
        false
    }

    async fn run<S: Session>(&self, s: &mut S, now: UnixMillis) -> Result<Vec<SessionRow>, IdentityError> {
        let sql = "SELECT f.id, f.created_at, MAX(t.created_at) AS used, MAX(t.expires_at) \
                   FROM token_families f JOIN refresh_tokens t ON t.family_id = f.id \
                   WHERE f.account_id = ? AND f.revoked_at IS NULL AND f.expires_at > ? AND t.expires_at > ? \
                   GROUP BY f.id, f.created_at ORDER BY used DESC, f.id LIMIT 1000";
        let values = vec![Value::text(&self.0), Value::Int(now), Value::Int(now)];
        let mut sessions = Vec::new();
        for mut row in s.rows(sql, values).await? {
            sessions.push(SessionRow {
                id: row.text(0)?,
                created_at: row.int(1)?,
                used_at: row.int(2)?,
                expires_at: row.int(3)?,
            });
        }
        Ok(sessions)
    }
}

/// Ends one session of an account, or all; whether there was one to end.
pub(in crate::identity) struct EndSessions {
    pub account: String,
    pub one: Option<String>,
}

impl Work for EndSessions {
    type Done = bool;
    type Error = IdentityError;

    fn writes(&self) -> bool {
        true
    }

    async fn run<S: Session>(&self, s: &mut S, now: UnixMillis) -> Result<bool, IdentityError> {
        s.begin().await?;
        let done = self.end(s, now).await;
        end(s, done).await
    }
}

impl EndSessions {
    async fn end<S: Session>(&self, s: &mut S, now: UnixMillis) -> Result<bool, IdentityError> {
        let Some(one) = &self.one else {
            // One that begins right now is begun before or after.
            let there = hold(s, &self.account, None).await?;
            revoke_all(s, &self.account, now).await?;
            return Ok(there);
        };
        let sql =
            "SELECT id FROM token_families WHERE id = ? AND account_id = ? AND revoked_at IS NULL AND expires_at > ?";
        let values = vec![Value::text(one), Value::text(&self.account), Value::Int(now)];
        let there = !s.rows(sql, values).await?.is_empty();
        if there {
            revoke(s, one, now).await?;
        }
        Ok(there)
    }
}
