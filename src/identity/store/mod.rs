//! What is asked of the database: accounts, families of refresh tokens, API keys, and the public halves of signing keys.

mod purge;
mod sessions;
mod tokens;

pub(super) use purge::Purge;
pub(super) use sessions::{ChangePassword, DeleteAccount, EndSessions, SessionRow, Sessions};
pub(super) use tokens::{Begin, Revoke, Rotate, Rotated};

use super::api_key::ApiKey;
use super::error::IdentityError;
use super::principal::{Role, roles};
use super::ring::Retired;
use crate::clock::UnixMillis;
use crate::database::{DatabaseError, Dialect, Row, Session, Value, Work, end};

/// An account, as it is stored.
#[derive(Clone)]
pub(super) struct Account {
    pub id: String,
    pub login: String,
    pub email: Option<String>,
    /// argon2id, in PHC form.
    pub password: String,
    pub roles: Vec<Role>,
    pub created_at: UnixMillis,
}

const ACCOUNT: &str = "SELECT a.id, a.login, a.email, a.password, a.roles, a.created_at FROM accounts a";

fn account(row: &mut Row) -> Result<Account, DatabaseError> {
    Ok(Account {
        id: row.text(0)?,
        login: row.text(1)?,
        email: row.optional(2)?,
        password: row.text(3)?,
        roles: roles(&row.text(4)?),
        created_at: row.int(5)?,
    })
}

fn role_text(roles: &[Role]) -> Value {
    Value::text(roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(" "))
}

fn optional(n: Option<i64>) -> Value {
    n.map_or(Value::Null, Value::Int)
}

/// Makes an account.
pub(super) struct CreateAccount(pub Account);

impl Work for CreateAccount {
    type Done = ();
    type Error = IdentityError;

    fn writes(&self) -> bool {
        true
    }

    async fn run<S: Session>(&self, s: &mut S, _: UnixMillis) -> Result<(), IdentityError> {
        let Account { id, login, email, password, roles, created_at } = &self.0;
        let email = email.as_ref().map_or(Value::Null, Value::text);
        let values = vec![
            Value::text(id),
            Value::text(login),
            email,
            Value::text(password),
            role_text(roles),
            Value::Int(*created_at),
        ];
        let sql = "INSERT INTO accounts (id, login, email, password, roles, created_at) VALUES (?, ?, ?, ?, ?, ?)";
        s.rows(sql, values).await?;
        Ok(())
    }
}

/// How an account is found.
pub(super) enum By {
    /// By its name, or by its e-mail if it has an `@`.
    Login(String),
    Id(String),
}

/// Finds an account.
pub(super) struct FindAccount(pub By);

impl Work for FindAccount {
    type Done = Option<Account>;
    type Error = IdentityError;

    fn writes(&self) -> bool {
        false
    }

    async fn run<S: Session>(&self, s: &mut S, _: UnixMillis) -> Result<Option<Account>, IdentityError> {
        let (column, value) = match &self.0 {
            By::Login(login) if login.contains('@') => ("email", login),
            By::Login(login) => ("login", login),
            By::Id(id) => ("id", id),
        };
        let sql = format!("{ACCOUNT} WHERE a.{column} = ?");
        Ok(s.rows(&sql, vec![Value::text(value)]).await?.first_mut().map(account).transpose()?)
    }
}

/// Whether somebody logged into an account from a network before.
pub(super) struct IsKnown {
    pub account: String,
    /// Its hash.
    pub network: String,
}

impl Work for IsKnown {
    type Done = bool;
    type Error = IdentityError;

    fn writes(&self) -> bool {
        false
    }

    async fn run<S: Session>(&self, s: &mut S, _: UnixMillis) -> Result<bool, IdentityError> {
        let sql = "SELECT id FROM token_families WHERE account_id = ? AND network = ? LIMIT 1";
        Ok(!s.rows(sql, vec![Value::text(&self.account), Value::text(&self.network)]).await?.is_empty())
    }
}

/// A page of the accounts, by login.
pub(super) struct ListAccounts {
    /// Logins behind this one.
    pub after: String,
    pub limit: u64,
}

impl Work for ListAccounts {
    type Done = Vec<Account>;
    type Error = IdentityError;

    fn writes(&self) -> bool {
        false
    }

    async fn run<S: Session>(&self, s: &mut S, _: UnixMillis) -> Result<Vec<Account>, IdentityError> {
        let sql = format!("{ACCOUNT} WHERE a.login > ? ORDER BY a.login LIMIT ?");
        let mut rows = s.rows(&sql, vec![Value::text(&self.after), Value::whole(self.limit)]).await?;
        Ok(rows.iter_mut().map(account).collect::<Result<_, _>>()?)
    }
}

/// Changes a column of an account; whether that was done.
pub(super) enum ChangeAccount {
    /// A new hash of the same password, if it still has the old one.
    Hash { id: String, old: String, new: String },
    /// Other roles, if it is there.
    Roles { id: String, roles: Vec<Role> },
}

impl Work for ChangeAccount {
    type Done = bool;
    type Error = IdentityError;

    fn writes(&self) -> bool {
        true
    }

    async fn run<S: Session>(&self, s: &mut S, _: UnixMillis) -> Result<bool, IdentityError> {
        s.begin().await?;
        let done = self.change(s).await;
        end(s, done).await
    }
}

impl ChangeAccount {
    async fn change<S: Session>(&self, s: &mut S) -> Result<bool, IdentityError> {
        let (id, old, sql, value) = match self {
            Self::Hash { id, old, new } => {
                (id, Some(old), "UPDATE accounts SET password = ? WHERE id = ?", Value::text(new))
            }
            Self::Roles { id, roles } => (id, None, "UPDATE accounts SET roles = ? WHERE id = ?", role_text(roles)),
        };
        if !hold(s, id, old.map(String::as_str)).await? {
            return Ok(false);
        }
        s.rows(sql, vec![value, Value::text(id)]).await?;
        Ok(true)
    }
}

/// Holds an account to the end of the transaction: whether it is there, and has this hash of a password. What begins, changes
/// and ends all sessions of an account does this first, so that it happens one after another.
async fn hold<S: Session>(s: &mut S, account: &str, password: Option<&str>) -> Result<bool, IdentityError> {
    let sql = format!("SELECT password FROM accounts WHERE id = ?{}", lock::<S>());
    let mut rows = s.rows(&sql, vec![Value::text(account)]).await?;
    let Some(row) = rows.first_mut() else { return Ok(false) };
    let held = row.text(0)?;
    Ok(password.is_none_or(|password| password == held))
}

/// What locks the rows that are read. SQLite has one writer at a time.
fn lock<S: Session>() -> &'static str {
    if S::DIALECT == Dialect::Sqlite { "" } else { " FOR UPDATE" }
}

/// Stores an API key.
pub(super) struct StoreKey(pub ApiKey);

impl Work for StoreKey {
    type Done = ();
    type Error = IdentityError;

    fn writes(&self) -> bool {
        true
    }

    async fn run<S: Session>(&self, s: &mut S, _: UnixMillis) -> Result<(), IdentityError> {
        let key = &self.0;
        let values = vec![
            Value::text(&key.id),
            Value::text(&key.name),
            Value::text(&key.hash),
            Value::text(key.scopes.join(" ")),
            Value::Int(key.created_at),
            optional(key.expires_at),
        ];
        let sql = "INSERT INTO api_keys (id, name, hash, scopes, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)";
        s.rows(sql, values).await?;
        Ok(())
    }
}

/// Revokes one; whether there is one.
pub(super) struct RevokeKey(pub String);

impl Work for RevokeKey {
    type Done = bool;
    type Error = IdentityError;

    fn writes(&self) -> bool {
        true
    }

    async fn run<S: Session>(&self, s: &mut S, now: UnixMillis) -> Result<bool, IdentityError> {
        let there = s.rows("SELECT id FROM api_keys WHERE id = ?", vec![Value::text(&self.0)]).await?;
        let sql = "UPDATE api_keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL";
        s.rows(sql, vec![Value::Int(now), Value::text(&self.0)]).await?;
        Ok(!there.is_empty())
    }
}

/// What tells whether API keys have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark(u64, Option<i64>, u64, Option<i64>);

/// All API keys, if they are not as they were.
pub(super) struct ChangedKeys(pub Option<Mark>);

impl Work for ChangedKeys {
    type Done = Option<(Mark, Vec<ApiKey>)>;
    type Error = IdentityError;

    fn writes(&self) -> bool {
        false
    }

    async fn run<S: Session>(&self, s: &mut S, _: UnixMillis) -> Result<Self::Done, IdentityError> {
        // First the mark: what changes after it is seen the next time.
        let sql = "SELECT COUNT(*), MAX(created_at), COUNT(revoked_at), MAX(revoked_at) FROM api_keys";
        let mut rows = s.rows(sql, vec![]).await?;
        let row = rows.first_mut().ok_or(DatabaseError::Corrupt("a count is missing"))?;
        let mark = Mark(row.whole(0)?, row.optional_int(1)?, row.whole(2)?, row.optional_int(3)?);
        if self.0 == Some(mark) {
            return Ok(None);
        }
        let sql =
            "SELECT id, name, hash, scopes, created_at, expires_at, revoked_at FROM api_keys ORDER BY created_at, id";
        let mut keys = Vec::new();
        for mut row in s.rows(sql, vec![]).await? {
            keys.push(ApiKey {
                id: row.text(0)?,
                name: row.text(1)?,
                hash: row.text(2)?,
                scopes: row.text(3)?.split_ascii_whitespace().map(str::to_owned).collect(),
                created_at: row.int(4)?,
                expires_at: row.optional_int(5)?,
                revoked_at: row.optional_int(6)?,
            });
        }
        Ok(Some((mark, keys)))
    }
}

/// Publishes the public halves of our signing keys.
pub(super) struct PublishKeys(pub Vec<Retired>);

impl Work for PublishKeys {
    type Done = ();
    type Error = IdentityError;

    fn writes(&self) -> bool {
        true
    }

    async fn run<S: Session>(&self, s: &mut S, _: UnixMillis) -> Result<(), IdentityError> {
        let behind = match S::DIALECT {
            Dialect::MySql => "ON DUPLICATE KEY UPDATE expires_at = VALUES(expires_at)",
            Dialect::Sqlite | Dialect::Postgres => "ON CONFLICT (kid) DO UPDATE SET expires_at = excluded.expires_at",
        };
        let sql = format!("INSERT INTO signing_keys (kid, public_key, expires_at) VALUES (?, ?, ?) {behind}");
        for key in &self.0 {
            s.rows(&sql, vec![Value::text(&key.kid), Value::text(&key.public), Value::Int(key.until)]).await?;
        }
        Ok(())
    }
}

/// Those of all instances.
pub(super) struct AllKeys;

impl Work for AllKeys {
    type Done = Vec<Retired>;
    type Error = IdentityError;

    fn writes(&self) -> bool {
        false
    }

    async fn run<S: Session>(&self, s: &mut S, now: UnixMillis) -> Result<Vec<Retired>, IdentityError> {
        let sql = "SELECT kid, public_key, expires_at FROM signing_keys WHERE expires_at > ? ORDER BY expires_at DESC LIMIT 1000";
        let mut keys = Vec::new();
        for mut row in s.rows(sql, vec![Value::Int(now)]).await? {
            keys.push(Retired { kid: row.text(0)?, public: row.text(1)?, until: row.int(2)? });
        }
        Ok(keys)
    }
}
