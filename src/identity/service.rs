//! Identity as others see it: whom a request is from, by what is published in this process.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use jsonwebtoken::EncodingKey;
use parking_lot::Mutex;
use serde_json::json;
use siphasher::sip::SipHasher13;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::api_key::{self, Keys};
use super::cache::Verified;
use super::claims::{Claims, Several};
use super::error::{IdentityError, Rejection};
use super::hashing::Hashing;
use super::issuers::Issuer;
use super::lockout::Lockout;
use super::options::{IdentityOptions, IssuerOptions};
use super::password::Passwords;
use super::principal::{Principal, Proof, Role};
use super::random;
use super::ring::{Retired, Ring, verifying};
use super::ring_file::open_ring;
use super::store::Mark;
use super::token::{Sent, VerifyingKey, outline, sent, sign, verify};
use super::unknown::Unknown;
use crate::clock::{Clock, UnixMillis};
use crate::database::Database;

/// Networks of accounts whose failures are kept; about 20 MB at most.
const LOCKOUT: usize = 100_000;
/// Intervals of refreshing that may pass in vain before that is worth telling; five seconds at least.
const LONG: u32 = 3;
/// Between two looks into the database for a key of ours that is not known, in milliseconds.
const UNKNOWN: i64 = 1000;

/// Who somebody is. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Identity {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub options: IdentityOptions,
    pub database: Database,
    pub clock: Clock,
    pub hashing: Hashing,
    pub lockout: Mutex<Lockout>,
    /// Names are counted under hashes that nobody can aim at.
    secret: [u8; 16],
    pub signing: ArcSwap<Signing>,
    own: ArcSwap<OwnKeys>,
    /// Those of other instances, as they were read last.
    pub others: ArcSwap<Vec<Retired>>,
    /// Of the keys; what other keys verified is verified again.
    generation: Arc<AtomicU64>,
    pub api_keys: ArcSwapOption<Keys>,
    pub mark: Mutex<Option<Mark>>,
    pub issuers: Vec<Arc<Issuer>>,
    verified: Verified,
    /// When the database was asked for a key of ours that is not known.
    asked_at: AtomicI64,
    /// Keys of ours that are not known.
    pub unknown: Mutex<Unknown>,
    pub syncing: Arc<tokio::sync::Mutex<()>>,
    /// Keys of this instance that others can find in the database: no other may sign what they are to take.
    pub handed: ArcSwap<Vec<String>>,
    /// Whether the database was read the last time that was tried, and when it was read last.
    pub synced: AtomicBool,
    pub synced_at: AtomicI64,
    /// Whether the next signing key could not be taken up the last time that was tried.
    pub stuck: AtomicBool,
    pub tally: Tally,
    /// Whether the background is to end, and what runs there.
    pub stopping: watch::Sender<bool>,
    pub tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// What happened since the start.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub logins: [AtomicU64; 3],
    identified: AtomicU64,
    cached: AtomicU64,
    rejected: Mutex<BTreeMap<&'static str, u64>>,
    pub reused: AtomicU64,
}

/// What happened since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentityStats {
    /// Logins that went well, that were wrong, and that were refused for too many attempts.
    pub logins: [u64; 3],
    /// Requests whose token or key was good.
    pub identified: u64,
    /// Those of them that were known from a moment before.
    pub cached: u64,
    /// Tokens and keys that were not, by why.
    pub rejected: Vec<(&'static str, u64)>,
    /// Refresh tokens that came a second time.
    pub reused: u64,
}

/// Our keys, and the one that signs.
#[derive(Debug)]
pub(super) struct Signing {
    pub ring: Ring,
    key: EncodingKey,
}

impl Signing {
    pub fn new(ring: Ring) -> Self {
        let key = ring.active.encoding();
        Self { ring, key }
    }
}

/// The public keys of all instances.
#[derive(Debug, Default)]
struct OwnKeys {
    by_kid: HashMap<String, (VerifyingKey, UnixMillis)>,
    jwks: Bytes,
}

/// What is known of a request at once.
#[derive(Debug)]
pub enum Recognised {
    /// Whom it is from; `None` if it does not say so, or not in a way that is ours.
    Done(Result<Option<Arc<Principal>>, Rejection>),
    /// A token of a key that is not known yet: [`Identity::ask`].
    Ask(String),
}

impl Identity {
    /// Takes up the signing keys, or makes the first, and begins to keep what is published up to date. Must be called within a
    /// runtime.
    ///
    /// # Errors
    /// When the keys cannot be read or written, or another issuer's settings cannot be used.
    pub fn start(options: IdentityOptions, database: Database, clock: Clock) -> Result<Self, IdentityError> {
        let ring = open_ring(&options.keys, clock.now())?;
        let passwords = Passwords::new(options.argon2)?;
        let generation = Arc::new(AtomicU64::new(0));
        let issuer = |issuer: &IssuerOptions| {
            Issuer::new(issuer.clone(), clock.clone(), generation.clone())
                .map_err(|why| IdentityError::Keys(format!("of {}: {why}", issuer.issuer)))
        };
        let issuers = options.issuers.iter().map(issuer).collect::<Result<_, _>>()?;
        let inner = Inner {
            hashing: Hashing::new(passwords, options.hash_threads, options.hash_queue),
            lockout: Mutex::new(Lockout::new(LOCKOUT)),
            secret: random()?,
            signing: ArcSwap::from_pointee(Signing::new(ring)),
            own: ArcSwap::default(),
            others: ArcSwap::default(),
            generation,
            api_keys: ArcSwapOption::empty(),
            mark: Mutex::default(),
            issuers,
            verified: Verified::new(),
            asked_at: AtomicI64::new(UnixMillis::MIN / 2),
            unknown: Mutex::new(Unknown::new()),
            syncing: Arc::default(),
            handed: ArcSwap::default(),
            synced: AtomicBool::new(false),
            synced_at: AtomicI64::new(clock.now()),
            stuck: AtomicBool::new(false),
            tally: Tally::default(),
            stopping: watch::Sender::new(false),
            tasks: Mutex::default(),
            options,
            database,
            clock,
        };
        inner.publish();
        let inner = Arc::new(inner);
        super::tend::start(&inner);
        Ok(Self { inner })
    }

    /// Whom a request is from, by its `Authorization` headers (all of them), as far as that is known at once.
    pub fn recognise<'a>(&self, authorization: impl Iterator<Item = &'a [u8]>) -> Recognised {
        let result = match sent(authorization) {
            Sent::Nothing => return Recognised::Done(Ok(None)),
            Sent::Bad(why) => Err(Rejection::Invalid(why)),
            Sent::Bearer(token) => match self.inner.recognise(token) {
                Some(result) => result,
                None => return Recognised::Ask(token.to_owned()),
            },
        };
        Recognised::Done(self.inner.counted(result).map(Some))
    }

    /// Whom a token is from whose key is not known yet: its issuer is asked, unless it was a moment ago.
    ///
    /// # Errors
    /// When it is not good, or that cannot be said now.
    pub async fn ask(&self, token: String) -> Result<Option<Arc<Principal>>, Rejection> {
        let result = self.inner.ask(&token).await;
        self.inner.counted(result).map(Some)
    }

    /// Whose an API key is that came in a place of its own; `None` if it does not look like one of ours.
    pub fn key(&self, sent: &[u8]) -> Option<Result<Arc<Principal>, Rejection>> {
        let text = std::str::from_utf8(sent).ok().filter(|text| api_key::looks_like_one(text))?;
        self.inner.recognise(text).map(|result| self.inner.counted(result))
    }

    /// The public keys, as a JSON Web Key Set.
    pub fn jwks(&self) -> Bytes {
        self.inner.own.load().jwks.clone()
    }

    /// For how long that may be kept.
    pub fn jwks_lifetime(&self) -> Duration {
        (self.inner.options.key_rotation / 2).min(Duration::from_secs(300))
    }

    /// What is the matter, if anything. It names no address and no secret: another issuer by its place in the config.
    pub fn faults(&self) -> Vec<String> {
        let inner = &self.inner;
        let mut faults = Vec::new();
        if inner.stuck.load(Ordering::Relaxed) {
            faults.push(String::from("the next signing key cannot be written; the old one signs on"));
        }
        if !inner.database.is_ready() {
            faults.push(String::from("the database is not ready; nobody can log in"));
        } else if !inner.synced.load(Ordering::Acquire) {
            let ago = inner.clock.now().saturating_sub(inner.synced_at.load(Ordering::Relaxed));
            let long = inner.options.refresh_interval.saturating_mul(LONG).max(Duration::from_secs(5));
            if u128::try_from(ago).unwrap_or(0) >= long.as_millis() {
                faults.push(String::from("the database cannot be read; API keys are used as they were read last"));
            }
        }
        for (at, issuer) in inner.issuers.iter().enumerate() {
            faults.extend(issuer.fault().map(|fault| format!("the keys of identity.issuers.#{} {fault}", at + 1)));
        }
        faults
    }

    /// What happened since the start.
    pub fn stats(&self) -> IdentityStats {
        let tally = &self.inner.tally;
        let of = |n: &AtomicU64| n.load(Ordering::Relaxed);
        IdentityStats {
            logins: [of(&tally.logins[0]), of(&tally.logins[1]), of(&tally.logins[2])],
            identified: of(&tally.identified),
            cached: of(&tally.cached),
            rejected: tally.rejected.lock().iter().map(|(why, n)| (*why, *n)).collect(),
            reused: of(&tally.reused),
        }
    }
}

impl Inner {
    fn counted(&self, result: Result<Arc<Principal>, Rejection>) -> Result<Arc<Principal>, Rejection> {
        let why = match &result {
            Ok(_) => {
                self.tally.identified.fetch_add(1, Ordering::Relaxed);
                return result;
            }
            Err(Rejection::Invalid(why)) => why,
            Err(Rejection::Unavailable { .. }) => "unavailable",
        };
        *self.tally.rejected.lock().entry(why).or_default() += 1;
        result
    }

    /// `None` if the key is not known.
    fn recognise(&self, token: &str) -> Option<Result<Arc<Principal>, Rejection>> {
        let now = self.clock.now();
        if api_key::looks_like_one(token) {
            return Some(match self.api_keys.load().as_ref() {
                Some(keys) => keys.verify(token, now).map_err(Rejection::Invalid),
                // Not known to be wrong.
                None if api_key::id_of(token).is_some() => {
                    Err(Rejection::Unavailable { retry_after: Duration::from_secs(1) })
                }
                None => Err(Rejection::Invalid("malformed_key")),
            });
        }
        let (key, generation) = (Verified::key(token), self.generation.load(Ordering::Acquire));
        // An issuer's keys may have come to the end of their time, and then nothing moves the generation.
        if let Some(principal) =
            self.verified.get(&key, generation, now).filter(|principal| self.believed(principal, now))
        {
            self.tally.cached.fetch_add(1, Ordering::Relaxed);
            return Some(Ok(principal));
        }
        let done = self.verify_known(token, now)?;
        if let Ok(principal) = &done {
            self.verified.put(key, generation, principal.clone());
        }
        Some(done.map_err(Rejection::Invalid))
    }

    /// Whether whoever vouched for somebody is still believed.
    fn believed(&self, principal: &Principal, now: UnixMillis) -> bool {
        let Proof::Issuer(name) = &principal.proof else { return true };
        self.issuers.iter().find(|issuer| *issuer.options.issuer == **name).is_some_and(|issuer| issuer.usable(now))
    }

    fn verify_known(&self, token: &str, now: UnixMillis) -> Option<Result<Arc<Principal>, &'static str>> {
        let outline = match outline(token) {
            Ok(outline) => outline,
            Err(why) => return Some(Err(why)),
        };
        if outline.issuer == self.options.issuer {
            // Ours always say which.
            let Some(kid) = &outline.kid else { return Some(Err("no_kid")) };
            let own = self.own.load();
            let (key, _) = own.by_kid.get(kid).filter(|(_, until)| now < *until)?;
            let claims = verify(token, key, &self.options.issuer, &self.options.audience, now);
            return Some(claims.and_then(account));
        }
        let Some(issuer) = self.issuers.iter().find(|issuer| issuer.options.issuer == outline.issuer) else {
            return Some(Err("unknown_issuer"));
        };
        let key = issuer.known(outline.kid.as_deref())?;
        Some(verify_foreign(token, &key, issuer, now))
    }

    async fn ask(self: &Arc<Self>, token: &str) -> Result<Arc<Principal>, Rejection> {
        let outline = outline(token).map_err(Rejection::Invalid)?;
        if let Some(issuer) = self.issuers.iter().find(|issuer| issuer.options.issuer == outline.issuer) {
            let key = issuer.key(outline.kid.as_deref()).await?;
            return verify_foreign(token, &key, issuer, self.clock.now()).map_err(Rejection::Invalid);
        }
        // Another instance may have made it a moment ago.
        let kid = outline.kid.as_deref();
        let before = {
            let mut unknown = self.unknown.lock();
            unknown.see(kid);
            unknown.begun()
        };
        let held = self.syncing.clone().lock_owned().await;
        // Somebody may have read them while this one waited, or less than a second ago.
        let now = self.clock.now();
        let may = self.unknown.lock().begun() == before
            && now.saturating_sub(self.asked_at.load(Ordering::Relaxed)) >= UNKNOWN;
        if may {
            self.asked_at.store(now, Ordering::Relaxed);
            let inner = self.clone();
            // It belongs to nobody: who hangs up must not have used up the question for those who wait.
            let syncing = tokio::spawn(async move { inner.sync_holding(held).await });
            drop(syncing.await);
        } else {
            drop(held);
        }
        match self.verify_known(token, self.clock.now()) {
            Some(done) => done.map_err(Rejection::Invalid),
            None if self.synced.load(Ordering::Acquire) && self.unknown.lock().answered(kid) => {
                Err(Rejection::Invalid("unknown_key"))
            }
            // It may be another instance's, made while nobody could tell us.
            None => Err(Rejection::Unavailable { retry_after: Duration::from_secs(1) }),
        }
    }

    /// Publishes our own public keys and those of other instances.
    pub fn publish(&self) {
        let (ours, others) = (self.public_keys(), self.others.load());
        let mut keys = OwnKeys::default();
        let mut listed = Vec::new();
        for key in ours.iter().chain(others.iter()) {
            let Some(verifies) = verifying(&key.public) else { continue };
            // The first is our own, or the one that holds longest.
            if keys.by_kid.contains_key(&key.kid) {
                continue;
            }
            keys.by_kid.insert(key.kid.clone(), (verifies, key.until));
            listed.push(
                json!({"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": key.kid, "x": key.public}),
            );
        }
        keys.jwks = serde_json::to_vec(&json!({"keys": listed})).unwrap_or_default().into();
        let before = self.own.load();
        let same = before.by_kid.len() == keys.by_kid.len()
            && keys
                .by_kid
                .iter()
                .all(|(kid, (_, until))| before.by_kid.get(kid).is_some_and(|(_, held)| held == until));
        if !same {
            self.own.store(Arc::new(keys));
            self.generation.fetch_add(1, Ordering::Release);
        }
    }

    /// The public halves of this instance's.
    pub fn public_keys(&self) -> Vec<Retired> {
        let options = &self.options;
        self.signing.load().ring.published(self.clock.now(), options.key_rotation, options.access_lifetime)
    }

    /// An access token.
    pub fn access_token(
        &self,
        account: &super::store::Account,
        family: &str,
        now: UnixMillis,
    ) -> Result<String, IdentityError> {
        let seconds = now.div_euclid(1000) as f64;
        let claims = Claims {
            iss: self.options.issuer.clone(),
            aud: Several::One(self.options.audience.clone()),
            sub: account.id.clone(),
            exp: seconds + self.options.access_lifetime.as_secs() as f64,
            nbf: None,
            iat: Some(seconds),
            name: Some(account.login.clone()),
            roles: Some(Several::Many(account.roles.iter().map(|role| role.name().to_owned()).collect())),
            scope: None,
            sid: Some(family.to_owned()),
        };
        let signing = self.signing.load();
        sign(&claims, &signing.ring.active.kid, &signing.key)
            .ok_or(IdentityError::Internal("a token could not be signed"))
    }

    /// Under which an account's failures count.
    pub fn account_key(&self, name: &str) -> u64 {
        let mut hasher = SipHasher13::new_with_key(&self.secret);
        hasher.write(name.as_bytes());
        hasher.finish()
    }
}

fn account(claims: Claims) -> Result<Arc<Principal>, &'static str> {
    let session = claims.sid.as_deref().ok_or("malformed")?.into();
    Ok(Arc::new(Principal {
        expires_at: Some(claims.expires_at()),
        name: claims.name.unwrap_or_else(|| claims.sub.clone()),
        roles: claims.roles.map(named).unwrap_or_default(),
        scopes: vec![],
        proof: Proof::Account { session },
        id: claims.sub,
    }))
}

fn named(roles: Several) -> Vec<Role> {
    roles.into_vec().iter().filter_map(|name| Role::parse(name)).collect()
}

fn verify_foreign(
    token: &str,
    key: &VerifyingKey,
    issuer: &Issuer,
    now: UnixMillis,
) -> Result<Arc<Principal>, &'static str> {
    let options = &issuer.options;
    let claims = verify(token, key, &options.issuer, &options.audience, now)?;
    let roles = claims.roles.clone().map(named).unwrap_or_default();
    Ok(Arc::new(Principal {
        // Two issuers may have the same subject.
        id: format!("{}|{}", options.issuer, claims.sub),
        expires_at: Some(claims.expires_at()),
        name: claims.name.unwrap_or(claims.sub),
        roles: roles.into_iter().filter(|role| options.roles.contains(role)).collect(),
        scopes: claims.scope.map(Several::into_vec).unwrap_or_default(),
        proof: Proof::Issuer(options.issuer.as_str().into()),
    }))
}
