//! Registering, logging in, refreshing and logging out.

use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use serde::Serialize;
use utoipa::ToSchema;

use super::error::IdentityError;
use super::lockout::{Attempt, Lockout, Network};
use super::names::{self, Registration};
use super::password::Verdict;
use super::principal::{Principal, Proof, Role};
use super::service::{Identity, Inner};
use super::session::{RefreshToken, sent};
use super::store::{Account, Begin, By, ChangeAccount, CreateAccount, FindAccount, IsKnown, Revoke, Rotate, Rotated};
use super::{random, sha256};
use crate::clock::{UnixMillis, millis, rfc3339};
use crate::database::DatabaseError;

/// What somebody gets who logs in or refreshes.
#[derive(Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Tokens {
    /// Goes into `Authorization: Bearer`.
    #[schema(example = "eyJ0eXAiOiJhdCtqd3QiLCJhbGciOiJFZERTQSIsImtpZCI6Ii4uLiJ9.…")]
    pub access_token: String,
    /// Always `Bearer`.
    pub token_type: &'static str,
    /// For so many seconds.
    pub expires_in: u64,
    /// Good once, for the next ones.
    #[schema(example = "tgr_…")]
    pub refresh_token: String,
    /// For so many seconds.
    pub refresh_expires_in: u64,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

/// An account, as it is shown to its owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct AccountView {
    /// Its id; of a key, what is shown of it.
    #[schema(example = "6f1c3c0e7a514f0c9d6b1f2e3a4b5c6d")]
    pub id: String,
    /// Login, or the name of a key.
    #[schema(example = "jo.doe")]
    pub login: String,
    /// E-mail address.
    #[schema(example = "jo@shop.example")]
    pub email: Option<String>,
    /// What its owner is.
    pub roles: Vec<Role>,
    /// What a key may do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<String>,
    /// RFC 3339.
    pub created_at: Option<String>,
}

impl From<Account> for AccountView {
    fn from(account: Account) -> Self {
        Self {
            id: account.id,
            login: account.login,
            email: account.email,
            roles: account.roles,
            scopes: vec![],
            created_at: Some(rfc3339(account.created_at)),
        }
    }
}

/// How often a password is proved that others change at the same time.
const TRIES: usize = 4;

fn new_id() -> Result<String, IdentityError> {
    Ok(super::hex(&random::<16>()?))
}

/// An account as it begins: with the role `user`.
pub(super) fn new_account(new: Registration, hash: String, now: UnixMillis) -> Result<Account, IdentityError> {
    let Registration { login, email, .. } = new;
    Ok(Account { id: new_id()?, login, email, password: hash, roles: vec![Role::User], created_at: now })
}

impl Inner {
    pub(super) fn ready(&self) -> Result<(), IdentityError> {
        if self.database.is_ready() { Ok(()) } else { Err(IdentityError::NotReady) }
    }

    fn tokens(
        &self,
        account: &Account,
        family: &str,
        refresh: RefreshToken,
        refresh_until: UnixMillis,
    ) -> Result<Tokens, IdentityError> {
        let now = self.clock.now();
        Ok(Tokens {
            access_token: self.access_token(account, family, now)?,
            token_type: "Bearer",
            expires_in: self.options.access_lifetime.as_secs(),
            refresh_token: refresh.text,
            refresh_expires_in: u64::try_from(refresh_until.saturating_sub(now) / 1000).unwrap_or(0),
        })
    }

    /// The tokens of a new session, and what begins it.
    pub(super) fn session(&self, account: &Account, network: Network) -> Result<(Begin, Tokens), IdentityError> {
        let (family, token, now) = (new_id()?, RefreshToken::first()?, self.clock.now());
        let options = &self.options;
        let family_expires_at = now.saturating_add(millis(options.session_lifetime));
        let expires_at = now.saturating_add(millis(options.refresh_lifetime)).min(family_expires_at);
        let begin = Begin {
            family: family.clone(),
            account: account.id.clone(),
            password: account.password.clone(),
            network: network_hash(&account.id, network),
            token: token.traces.clone(),
            expires_at,
            family_expires_at,
        };
        Ok((begin, self.tokens(account, &family, token, expires_at)?))
    }

    /// Proves the password of an account, as often as the lockout lets that be tried, and then does what it is for. That finds
    /// nothing done when somebody changed the password in between: then the new one is what has to be proved.
    pub(super) async fn proven<T>(
        &self,
        account: Option<Account>,
        name: &str,
        (password, network): (&str, Network),
        then: impl AsyncFn(Account, Verdict) -> Result<Option<T>, IdentityError>,
    ) -> Result<T, IdentityError> {
        let (key, now) = (self.account_key(name), self.clock.now());
        let guarded = self.lockout.lock().guarded(key, network, now);
        // Also asked for nobody: it must not show by its time whether there is an account.
        let of = account.as_ref().map_or(name, |account| &account.id);
        let known = guarded && {
            let network = network_hash(of, network);
            self.database.run(IsKnown { account: of.to_owned(), network }).await?
        };
        // Before anything counts: what finds no place must not push out what counted before.
        let place = self.hashing.place(network)?;
        let undecided = Undecided::begin(&self.lockout, key, network, known, now)?;
        let core = place.core().await?;
        let attempt = undecided.decide();
        let (mut account, mut first) = (account, Some(core));
        for _ in 0..TRIES {
            let hash = account.as_ref().map(|account| account.password.clone());
            let fresh = first.is_some();
            let core = match first.take() {
                Some(core) => core,
                None => self.hashing.place(network)?.core().await?,
            };
            let verdict = core.verify(password.to_owned(), hash).await?;
            let Some(proven) = account.filter(|_| verdict != Verdict::Wrong) else {
                return Err(IdentityError::Credentials);
            };
            if fresh {
                self.lockout.lock().succeeded(&attempt);
            }
            let id = proven.id.clone();
            if let Some(done) = then(proven, verdict).await? {
                return Ok(done);
            }
            account = self.database.run(FindAccount(By::Id(id))).await?;
        }
        Err(IdentityError::Database(DatabaseError::Serialization))
    }

    fn count_login(&self, outcome: usize) {
        if let Some(count) = self.tally.logins.get(outcome) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The account with a new hash, if one can be made now; the next login tries again.
    async fn rehash(&self, mut account: Account, password: String, network: Network) -> Account {
        if let Ok(new) = self.hashing.hash(password, network).await {
            let change =
                ChangeAccount::Hash { id: account.id.clone(), old: account.password.clone(), new: new.clone() };
            if self.database.run(change).await == Ok(true) {
                account.password = new;
            }
        }
        account
    }
}

/// An attempt that counts, and of which nothing is found out yet. Dropped so, as when no thread came in time or whoever asked
/// went away before, it is taken back.
struct Undecided<'a> {
    lockout: &'a Mutex<Lockout>,
    attempt: Attempt,
    open: bool,
}

impl<'a> Undecided<'a> {
    fn begin(
        lockout: &'a Mutex<Lockout>,
        key: u64,
        network: Network,
        known: bool,
        now: UnixMillis,
    ) -> Result<Self, IdentityError> {
        let attempt = lockout.lock().begin(key, network, known, now);
        let attempt = attempt.map_err(|retry_after| IdentityError::TooMany { retry_after })?;
        Ok(Self { lockout, attempt, open: true })
    }

    /// It is being found out now: a failure, unless it turns out to be none.
    fn decide(mut self) -> Attempt {
        self.open = false;
        self.attempt
    }
}

impl Drop for Undecided<'_> {
    fn drop(&mut self) {
        if self.open {
            self.lockout.lock().undecided(&self.attempt);
        }
    }
}

/// What is kept of the network that somebody logged in from: enough to know it again.
fn network_hash(account: &str, network: Network) -> String {
    let mut text = account.as_bytes().to_vec();
    text.extend_from_slice(&network.bytes());
    sha256(&text)
}

impl Identity {
    /// Makes an account, with the role `user`.
    ///
    /// # Errors
    /// When the name is taken, nobody may register, or there was too much of it from this network; or when the database or
    /// the hashing is busy.
    pub async fn register(&self, new: Registration, network: Network) -> Result<AccountView, IdentityError> {
        let inner = &self.inner;
        if !inner.options.registration {
            return Err(IdentityError::Closed);
        }
        inner.ready()?;
        let now = inner.clock.now();
        // First a place: what finds none makes no account that would count.
        let place = inner.hashing.place(network)?;
        inner.lockout.lock().register(network, now).map_err(|retry_after| IdentityError::TooMany { retry_after })?;
        let hash = place.core().await?.hash(new.password.clone()).await?;
        let account = new_account(new, hash, now)?;
        inner.database.run(CreateAccount(account.clone())).await?;
        Ok(account.into())
    }

    /// Logs in, by name or e-mail.
    ///
    /// # Errors
    /// [`IdentityError::Credentials`], [`IdentityError::TooMany`]; or when the database or the hashing is busy.
    pub async fn login(&self, login: &str, password: &str, network: Network) -> Result<Tokens, IdentityError> {
        let inner = &self.inner;
        inner.may_issue().await?;
        let Some(name) = names::normal(login).filter(|_| names::may_be_password(password)) else {
            // There can be no such account.
            inner.count_login(1);
            return Err(IdentityError::Credentials);
        };
        let account = inner.database.run(FindAccount(By::Login(name.clone()))).await?;
        let log_in = async |account: Account, verdict| {
            let outdated = verdict == Verdict::Outdated;
            let account = if outdated { inner.rehash(account, password.to_owned(), network).await } else { account };
            let (begin, tokens) = inner.session(&account, network)?;
            Ok(inner.database.run(begin).await?.then_some(tokens))
        };
        // What was typed is what counts: name and address counted as one would tell that they are of one account.
        let done = inner.proven(account, &name, (password, network), log_in).await;
        match &done {
            Ok(_) => inner.count_login(0),
            Err(IdentityError::Credentials) => inner.count_login(1),
            Err(IdentityError::TooMany { .. }) => inner.count_login(2),
            Err(_) => {}
        }
        done
    }

    /// New tokens for a refresh token, which is used up.
    ///
    /// # Errors
    /// [`IdentityError::RefreshToken`]; or when the database is busy.
    pub async fn refresh(&self, token: &str) -> Result<Tokens, IdentityError> {
        let inner = &self.inner;
        inner.may_issue().await?;
        let sent = sent(token).ok_or(IdentityError::RefreshToken)?;
        let next = RefreshToken::after(&sent)?;
        let lifetime = millis(inner.options.refresh_lifetime);
        let rotate = Rotate { token: sent.traces, next: next.traces.hash.clone(), lifetime };
        match inner.database.run(rotate).await? {
            Rotated::Next { account, family, expires_at } => inner.tokens(&account, &family, next, expires_at),
            Rotated::Dead => Err(IdentityError::RefreshToken),
            Rotated::Reused => {
                inner.tally.reused.fetch_add(1, Ordering::Relaxed);
                log::warn!("identity: a refresh token came a second time; its family is revoked");
                Err(IdentityError::RefreshToken)
            }
        }
    }

    /// Logs out: the family of the refresh token is revoked. What is no such token changes nothing.
    ///
    /// # Errors
    /// When the database is busy.
    pub async fn logout(&self, token: &str) -> Result<(), IdentityError> {
        self.inner.ready()?;
        match sent(token) {
            Some(sent) => self.inner.database.run(Revoke::Token(sent.traces)).await,
            None => Ok(()),
        }
    }

    /// The same, by an access token.
    ///
    /// # Errors
    /// When the database is busy.
    pub async fn logout_of(&self, principal: &Principal) -> Result<(), IdentityError> {
        self.inner.ready()?;
        match &principal.proof {
            Proof::Account { session } => self.inner.database.run(Revoke::Family(session.to_string())).await,
            Proof::Issuer(_) | Proof::Key => Ok(()),
        }
    }

    /// What is known of somebody.
    ///
    /// # Errors
    /// [`IdentityError::NotFound`] when the account is gone; or when the database is busy.
    pub async fn account(&self, principal: &Principal) -> Result<AccountView, IdentityError> {
        match &principal.proof {
            Proof::Account { .. } => {
                self.inner.ready()?;
                let account = self.inner.database.run(FindAccount(By::Id(principal.id.clone()))).await?;
                account.map(AccountView::from).ok_or(IdentityError::NotFound("account"))
            }
            Proof::Issuer(_) | Proof::Key => Ok(AccountView {
                id: principal.id.clone(),
                login: principal.name.clone(),
                email: None,
                roles: principal.roles.clone(),
                scopes: principal.scopes.clone(),
                created_at: None,
            }),
        }
    }
}
