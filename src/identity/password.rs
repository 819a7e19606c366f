//! Passwords as argon2id (RFC 9106), with the parameters in the hash, so that they can be changed.

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};

use super::error::IdentityError;
use super::random;

/// How much work a hash is. The default is the first choice of OWASP's Password Storage Cheat Sheet: 19 MiB, two passes, one
/// lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Argon2Options {
    /// In KiB.
    pub memory: u32,
    /// Over the memory.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Default for Argon2Options {
    fn default() -> Self {
        Self { memory: 19 * 1024, passes: 2, lanes: 1 }
    }
}

impl Argon2Options {
    /// As the algorithm takes them.
    ///
    /// # Errors
    /// When it does not.
    pub fn check(self) -> Result<(), String> {
        self.params().map(drop).map_err(|error| error.to_string())
    }

    fn params(self) -> Result<Params, argon2::Error> {
        Params::new(self.memory, self.passes, self.lanes, Some(Params::DEFAULT_OUTPUT_LEN))
    }
}

/// Hashes and verifies. All of it takes tens of milliseconds of a core and `memory`: see [`super::hashing`].
#[derive(Clone, Debug)]
pub(super) struct Passwords {
    params: Params,
    /// What a password is hashed with when there is no account.
    nobody: [u8; 16],
}

/// What became of a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Wrong,
    Right,
    /// Right, and to be hashed anew with today's parameters.
    Outdated,
}

impl Passwords {
    pub fn new(options: Argon2Options) -> Result<Self, IdentityError> {
        let params = options.params().map_err(|_| IdentityError::Internal("argon2 does not take its parameters"))?;
        Ok(Self { params, nobody: random()? })
    }

    fn argon2(&self) -> Argon2<'static> {
        Argon2::new(Algorithm::Argon2id, Version::V0x13, self.params.clone())
    }

    /// The hash, in PHC form.
    pub fn hash(&self, password: &str) -> Result<String, IdentityError> {
        let salt: [u8; 16] = random()?;
        let hash: PasswordHash = self
            .argon2()
            .hash_password_with_salt(password.as_bytes(), &salt)
            .map_err(|_| IdentityError::Internal("a password could not be hashed"))?;
        Ok(hash.to_string())
    }

    /// Verifies one against the hash of its account; without an account, the work is the same.
    pub fn verify(&self, password: &str, hash: Option<&str>) -> Verdict {
        let Some(hash) = hash.and_then(|hash| PasswordHash::new(hash).ok()) else {
            let mut out = [0; Params::DEFAULT_OUTPUT_LEN];
            let done = self.argon2().hash_password_into(password.as_bytes(), &self.nobody, &mut out);
            // What came out is of no use, but must have been worked for.
            std::hint::black_box((done.is_ok(), out));
            return Verdict::Wrong;
        };
        if self.argon2().verify_password(password.as_bytes(), &hash).is_err() {
            return Verdict::Wrong;
        }
        let same = |params: Params| {
            let of = |p: &Params| (p.m_cost(), p.t_cost(), p.p_cost());
            of(&params) == of(&self.params)
        };
        if Params::try_from(&hash).is_ok_and(same) { Verdict::Right } else { Verdict::Outdated }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn with(memory: u32, passes: u32) -> Passwords {
        Passwords::new(Argon2Options { memory, passes, lanes: 1 }).unwrap()
    }

    #[test]
    fn a_password_is_known_again_and_hashed_anew_when_the_work_changes() {
        let (old, new) = (with(64, 1), with(128, 2));
        let hash = old.hash("correct horse").unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=64,t=1,p=1$"), "{hash}");
        assert_ne!(hash, old.hash("correct horse").unwrap(), "each has a salt of its own");
        assert_eq!(old.verify("correct horse", Some(&hash)), Verdict::Right);
        assert_eq!(old.verify("correct hors", Some(&hash)), Verdict::Wrong);
        assert_eq!(new.verify("correct horse", Some(&hash)), Verdict::Outdated);
        assert_eq!(new.verify("", Some(&hash)), Verdict::Wrong);
        assert_eq!(new.verify("correct horse", None), Verdict::Wrong);
        assert_eq!(new.verify("correct horse", Some("$argon2id$rubbish")), Verdict::Wrong);
        assert!(Argon2Options { memory: 1, passes: 0, lanes: 0 }.check().is_err());
    }

    #[test]
    fn nobody_is_as_much_work_as_somebody() {
        let passwords = with(4096, 2);
        let hash = passwords.hash("correct horse").unwrap();
        let time = |hash: Option<&str>| {
            let fastest = |_| {
                let watch = crate::clock::Stopwatch::start();
                assert_eq!(passwords.verify("wrong", hash), Verdict::Wrong);
                watch.elapsed()
            };
            (0..3).map(fastest).min().unwrap()
        };
        // In turns, as others use the machine too.
        let rounds: Vec<_> = (0..10).map(|_| (time(Some(&hash)), time(None))).collect();
        let least = |side: fn(&(Duration, Duration)) -> Duration| rounds.iter().map(side).min().unwrap();
        let (somebody, nobody) = (least(|round| round.0), least(|round| round.1));
        assert!(nobody < somebody * 2 && somebody < nobody * 2, "{somebody:?} and {nobody:?}");
    }
}
