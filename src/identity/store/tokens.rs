//! What is asked of the database for refresh tokens and their families.

use super::{ACCOUNT, Account, account, hold, lock};
use crate::clock::{UnixMillis, millis};
use crate::database::{Session, Value, Work, end, list};
use crate::identity::error::IdentityError;
use crate::identity::session::{KEPT, Presented, Traces, Verdict};

/// Begins a family with its first token, if the account still has the password that was proved; whether it has.
pub(in crate::identity) struct Begin {
    pub family: String,
    pub account: String,
    /// Its hash.
    pub password: String,
    pub network: String,
    pub token: Traces,
    pub expires_at: UnixMillis,
    pub family_expires_at: UnixMillis,
}

impl Work for Begin {
    type Done = bool;
    type Error = IdentityError;

    fn writes(&self) -> bool {
        true
    }

    async fn run<S: Session>(&self, s: &mut S, now: UnixMillis) -> Result<bool, IdentityError> {
        s.begin().await?;
        let done = self.begin(s, now).await;
        end(s, done).await
    }
}

impl Begin {
    pub(super) async fn begin<S: Session>(&self, s: &mut S, now: UnixMillis) -> Result<bool, IdentityError> {
        if !hold(s, &self.account, Some(&self.password)).await? {
            return Ok(false);
        }
        let sql = "INSERT INTO token_families (id, account_id, network, handle, created_at, expires_at) \
                   VALUES (?, ?, ?, ?, ?, ?)";
        let values = vec![
            Value::text(&self.family),
            Value::text(&self.account),
            Value::text(&self.network),
            Value::text(&self.token.handle),
            Value::Int(now),
            Value::Int(self.family_expires_at),
        ];
        s.rows(sql, values).await?;
        insert_token(s, &self.token.hash, &self.family, self.expires_at, now).await?;
        Ok(true)
    }
}

async fn insert_token<S: Session>(
    s: &mut S,
    hash: &str,
    family: &str,
    expires_at: UnixMillis,
    now: UnixMillis,
) -> Result<(), IdentityError> {
    let sql = "INSERT INTO refresh_tokens (hash, family_id, created_at, expires_at) VALUES (?, ?, ?, ?)";
    s.rows(sql, vec![Value::text(hash), Value::text(family), Value::Int(now), Value::Int(expires_at)]).await?;
    Ok(())
}

pub(super) async fn revoke<S: Session>(s: &mut S, family: &str, now: UnixMillis) -> Result<(), IdentityError> {
    let sql = "UPDATE token_families SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL";
    s.rows(sql, vec![Value::Int(now), Value::text(family)]).await?;
    Ok(())
}

/// Uses a token.
pub(in crate::identity) struct Rotate {
    pub token: Traces,
    /// Hash of the next one.
    pub next: String,
    pub lifetime: i64,
}

/// What came of it.
pub(in crate::identity) enum Rotated {
    /// The next token holds until then.
    Next { account: Box<Account>, family: String, expires_at: UnixMillis },
    /// There is none.
    Dead,
    /// It was used before, and its family is revoked now.
    Reused,
}

impl Work for Rotate {
    type Done = Rotated;
    type Error = IdentityError;

    fn writes(&self) -> bool {
        true
    }

    async fn run<S: Session>(&self, s: &mut S, now: UnixMillis) -> Result<Rotated, IdentityError> {
        s.begin().await?;
        let done = self.rotate(s, now).await;
        end(s, done).await
    }
}

impl Rotate {
    async fn rotate<S: Session>(&self, s: &mut S, now: UnixMillis) -> Result<Rotated, IdentityError> {
        // All that happens to a family happens one after another. It is held before its tokens, as whatever deletes it takes
        // them in that order too: in one statement with its token it would be held after it.
        let sql = "SELECT family_id FROM refresh_tokens WHERE hash = ?";
        let mut rows = s.rows(sql, vec![Value::text(&self.token.hash)]).await?;
        let Some(row) = rows.first_mut() else { return self.unknown(s, now).await };
        let family = row.text(0)?;
        let sql = format!(
            "SELECT account_id, revoked_at, expires_at, handle FROM token_families WHERE id = ?{}",
            lock::<S>()
        );
        let mut rows = s.rows(&sql, vec![Value::text(&family)]).await?;
        let Some(row) = rows.first_mut() else { return Ok(Rotated::Dead) };
        let (owner, revoked_at, family_expires_at) = (row.text(0)?, row.optional_int(1)?, row.int(2)?);
        // Families of before have none, and in them each token has a half of its own.
        let has_handle = row.optional(3)?.as_ref() == Some(&self.token.handle);
        // It may have been used, or have gone, while this waited for the family.
        let sql = format!("SELECT used_at, expires_at FROM refresh_tokens WHERE hash = ?{}", lock::<S>());
        let mut rows = s.rows(&sql, vec![Value::text(&self.token.hash)]).await?;
        let Some(row) = rows.first_mut() else { return self.unknown(s, now).await };
        let mut token = Presented {
            family_revoked: revoked_at.is_some(),
            family_expires_at,
            used_at: row.optional_int(0)?,
            expires_at: row.int(1)?,
            successor_used: false,
        };
        if let Some(used_at) = token.used_at {
            let sql = "SELECT hash FROM refresh_tokens WHERE family_id = ? AND created_at >= ? AND used_at >= ? \
                       AND hash <> ? LIMIT 1";
            let values =
                vec![Value::text(&family), Value::Int(used_at), Value::Int(used_at), Value::text(&self.token.hash)];
            token.successor_used = !s.rows(sql, values).await?.is_empty();
        }
        match token.judge(now) {
            Verdict::Dead => return Ok(Rotated::Dead),
            Verdict::Reused => {
                revoke(s, &family, now).await?;
                return Ok(Rotated::Reused);
            }
            Verdict::Rotate => {
                let values = vec![Value::Int(now), Value::text(&self.token.hash)];
                s.rows("UPDATE refresh_tokens SET used_at = ? WHERE hash = ?", values).await?;
            }
            Verdict::Again => {
                // As if long ago: what was given out before and comes now is one too many.
                let sql = "UPDATE refresh_tokens SET used_at = 0 WHERE family_id = ? AND used_at IS NULL";
                s.rows(sql, vec![Value::text(&family)]).await?;
            }
        }
        let sql = format!("{ACCOUNT} WHERE a.id = ?");
        let owner = s.rows(&sql, vec![Value::text(&owner)]).await?.first_mut().map(account).transpose()?;
        let Some(owner) = owner else { return Ok(Rotated::Dead) };
        let expires_at = now.saturating_add(self.lifetime).min(token.family_expires_at);
        insert_token(s, &self.next, &family, expires_at, now).await?;
        if has_handle {
            forget_used(s, &family, now).await?;
        }
        Ok(Rotated::Next { account: Box::new(owner), family, expires_at })
    }
}

impl Rotate {
    /// One of which nothing is known: it is one that was used, if its family is there.
    async fn unknown<S: Session>(&self, s: &mut S, now: UnixMillis) -> Result<Rotated, IdentityError> {
        let sql = format!(
            "SELECT id FROM token_families WHERE handle = ? AND revoked_at IS NULL AND expires_at > ?{}",
            lock::<S>()
        );
        let mut rows = s.rows(&sql, vec![Value::text(&self.token.handle), Value::Int(now)]).await?;
        let Some(row) = rows.first_mut() else { return Ok(Rotated::Dead) };
        revoke(s, &row.text(0)?, now).await?;
        Ok(Rotated::Reused)
    }
}

/// Forgets tokens of a family that were used so long ago that the handle says all there is to say of them.
async fn forget_used<S: Session>(s: &mut S, family: &str, now: UnixMillis) -> Result<(), IdentityError> {
    // By their keys, which locks nothing of the families beside it.
    let sql = "SELECT hash FROM refresh_tokens WHERE family_id = ? AND used_at < ?";
    let values = vec![Value::text(family), Value::Int(now.saturating_sub(millis(KEPT)))];
    let mut used = Vec::new();
    for mut row in s.rows(sql, values).await? {
        used.push(row.text(0)?);
    }
    if !used.is_empty() {
        let (marks, values) = list(&used);
        s.rows(&format!("DELETE FROM refresh_tokens WHERE hash IN ({marks})"), values).await?;
    }
    Ok(())
}

/// Ends the family of a token, or a family.
pub(in crate::identity) enum Revoke {
    Token(Traces),
    Family(String),
}

impl Work for Revoke {
    type Done = ();
    type Error = IdentityError;

    fn writes(&self) -> bool {
        true
    }

    async fn run<S: Session>(&self, s: &mut S, now: UnixMillis) -> Result<(), IdentityError> {
        match self {
            Self::Family(family) => revoke(s, family, now).await,
            Self::Token(Traces { hash, handle }) => {
                let mut rows =
                    s.rows("SELECT family_id FROM refresh_tokens WHERE hash = ?", vec![Value::text(hash)]).await?;
                if rows.is_empty() {
                    let sql = "SELECT id FROM token_families WHERE handle = ?";
                    rows = s.rows(sql, vec![Value::text(handle)]).await?;
                }
                match rows.first_mut() {
                    Some(row) => revoke(s, &row.text(0)?, now).await,
                    None => Ok(()),
                }
            }
        }
    }
}
