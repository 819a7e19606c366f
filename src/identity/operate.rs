//! Accounts and keys for whoever operates the server: straight on the database, which a running server reads too.

use super::accounts::{AccountView, new_account};
use super::api_key::ApiKey;
use super::error::{BadField, IdentityError};
use super::names::{self, Registration};
use super::password::{Argon2Options, Passwords};
use super::principal::Role;
use super::store::{
    Account, By, ChangeAccount, ChangePassword, ChangedKeys, CreateAccount, DeleteAccount, EndSessions, FindAccount,
    ListAccounts, RevokeKey, StoreKey,
};
use crate::clock::UnixMillis;
use crate::database::Database;

/// Makes an API key; what is returned is the key itself, which is stored nowhere.
///
/// # Errors
/// When name or scopes cannot be, or the database cannot be used.
pub async fn create_key(
    database: &Database,
    name: &str,
    scopes: &[String],
    expires_at: Option<UnixMillis>,
    now: UnixMillis,
) -> Result<(ApiKey, String), IdentityError> {
    let (key, text) = ApiKey::make(name, scopes, expires_at, now)?;
    store_key(database, &key).await?;
    Ok((key, text))
}

/// Stores an API key that was made before: from then on it is good.
///
/// # Errors
/// When the database cannot be used.
pub async fn store_key(database: &Database, key: &ApiKey) -> Result<(), IdentityError> {
    database.run(StoreKey(key.clone())).await
}

/// All API keys.
///
/// # Errors
/// When the database cannot be used.
pub async fn list_keys(database: &Database) -> Result<Vec<ApiKey>, IdentityError> {
    Ok(database.run(ChangedKeys(None)).await?.map(|(_, keys)| keys).unwrap_or_default())
}

/// An API key, by what is shown of it.
///
/// # Errors
/// [`IdentityError::NotFound`]; or when the database cannot be used.
pub async fn find_key(database: &Database, shown: &str) -> Result<ApiKey, IdentityError> {
    let id = shown.strip_prefix("tg_").unwrap_or(shown).split('_').next().unwrap_or_default();
    let found = list_keys(database).await?.into_iter().find(|key| key.id == id);
    found.ok_or(IdentityError::NotFound("key"))
}

/// Revokes an API key.
///
/// # Errors
/// [`IdentityError::NotFound`]; or when the database cannot be used.
pub async fn revoke_key(database: &Database, key: &ApiKey) -> Result<(), IdentityError> {
    if database.run(RevokeKey(key.id.clone())).await? { Ok(()) } else { Err(IdentityError::NotFound("key")) }
}

/// An account, by its login or e-mail.
///
/// # Errors
/// [`IdentityError::NotFound`]; or when the database cannot be used.
pub async fn find_account(database: &Database, login: &str) -> Result<AccountView, IdentityError> {
    Ok(found(database, login).await?.into())
}

async fn found(database: &Database, login: &str) -> Result<Account, IdentityError> {
    let login = names::normal(login).ok_or(IdentityError::NotFound("account"))?;
    database.run(FindAccount(By::Login(login))).await?.ok_or(IdentityError::NotFound("account"))
}

/// Makes an account, with the role `user`, whether or not anybody may register.
///
/// # Errors
/// When the name is taken, or the database cannot be used.
pub async fn create_account(
    database: &Database,
    argon2: Argon2Options,
    new: Registration,
    now: UnixMillis,
) -> Result<AccountView, IdentityError> {
    let hash = Passwords::new(argon2)?.hash(&new.password)?;
    let account = new_account(new, hash, now)?;
    database.run(CreateAccount(account.clone())).await?;
    Ok(account.into())
}

/// The accounts whose logins are behind `after`, in their order, at most so many.
///
/// # Errors
/// When the database cannot be used.
pub async fn list_accounts(database: &Database, after: &str, limit: u64) -> Result<Vec<AccountView>, IdentityError> {
    let page = database.run(ListAccounts { after: after.to_owned(), limit }).await?;
    Ok(page.into_iter().map(AccountView::from).collect())
}

fn there(done: bool) -> Result<(), IdentityError> {
    if done { Ok(()) } else { Err(IdentityError::NotFound("account")) }
}

/// Gives an account its roles. They are in its tokens from the next refresh on.
///
/// # Errors
/// [`IdentityError::NotFound`]; or when the database cannot be used.
pub async fn set_roles(database: &Database, account: &AccountView, roles: &[Role]) -> Result<(), IdentityError> {
    there(database.run(ChangeAccount::Roles { id: account.id.clone(), roles: roles.to_vec() }).await?)
}

/// Gives an account another password, without the one that it had, and ends all its sessions.
///
/// # Errors
/// [`IdentityError::Invalid`] for a password that cannot be taken, [`IdentityError::NotFound`]; or when the database cannot be
/// used.
pub async fn set_password(
    database: &Database,
    argon2: Argon2Options,
    account: &AccountView,
    password: &str,
) -> Result<(), IdentityError> {
    check_password(account, password)?;
    let new = Passwords::new(argon2)?.hash(password)?;
    there(database.run(ChangePassword { account: account.id.clone(), old: None, new, then: None }).await?)
}

/// Whether a password can be taken for an account.
///
/// # Errors
/// [`IdentityError::Invalid`] if it cannot.
pub fn check_password(account: &AccountView, password: &str) -> Result<(), IdentityError> {
    match names::unfit_password(password, &account.login, account.email.as_deref()) {
        None => Ok(()),
        Some(message) => Err(IdentityError::Invalid(vec![BadField { field: "password", message }])),
    }
}

/// Ends all sessions of an account. Access tokens that are out end by themselves.
///
/// # Errors
/// [`IdentityError::NotFound`]; or when the database cannot be used.
pub async fn end_sessions(database: &Database, account: &AccountView) -> Result<(), IdentityError> {
    there(database.run(EndSessions { account: account.id.clone(), one: None }).await?)
}

/// Deletes an account, with all that is known of it. Access tokens that are out end by themselves.
///
/// # Errors
/// [`IdentityError::NotFound`]; or when the database cannot be used.
pub async fn delete_account(database: &Database, account: &AccountView) -> Result<(), IdentityError> {
    there(database.run(DeleteAccount { account: account.id.clone(), old: None }).await?)
}
