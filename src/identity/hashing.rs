//! Where passwords are hashed: off the threads that answer, so many at once, and a bounded number that waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::error::IdentityError;
use super::password::{Passwords, Verdict};
use crate::actor::admission::Overloaded;

/// How long a password may wait; who waits longer has gone away.
const PATIENCE: Duration = Duration::from_secs(3);

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Hashing {
    passwords: Arc<Passwords>,
    cores: Arc<Semaphore>,
    /// That hash or wait.
    inside: Arc<AtomicUsize>,
    most: usize,
}

struct Inside(Arc<AtomicUsize>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Hashing {
    /// So many threads, and so many that wait for one.
    pub fn new(passwords: Passwords, threads: usize, queue: usize) -> Self {
        Self {
            passwords: Arc::new(passwords),
            cores: Arc::new(Semaphore::new(threads)),
            inside: Arc::default(),
            most: threads + queue,
        }
    }

    pub async fn hash(&self, password: String) -> Result<String, IdentityError> {
        self.work(move |passwords| passwords.hash(&password)).await?
    }

    pub async fn verify(&self, password: String, hash: Option<String>) -> Result<Verdict, IdentityError> {
        self.work(move |passwords| passwords.verify(&password, hash.as_deref())).await
    }

    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Passwords) -> T + Send + 'static,
    ) -> Result<T, IdentityError> {
        let before = self.inside.fetch_add(1, Ordering::Relaxed);
        let inside = Inside(self.inside.clone());
        if before >= self.most {
            return Err(Overloaded.into());
        }
        let core = tokio::time::timeout(PATIENCE, self.cores.clone().acquire_owned()).await;
        let core = core.map_err(|_| Overloaded)?.map_err(|_| Overloaded)?;
        let passwords = self.passwords.clone();
        let done = tokio::task::spawn_blocking(move || {
            // They stay with the work when whoever asked goes away.
            let _held = (core, inside);
            work(&passwords)
        });
        done.await.map_err(|_| IdentityError::Internal("a password could not be hashed"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::password::Argon2Options;
    use super::*;

    #[actix_web::test]
    async fn what_waits_is_bounded() {
        let passwords = Passwords::new(Argon2Options { memory: 64, passes: 1, lanes: 1 }).unwrap();
        let hashing = Hashing::new(passwords, 1, 1);
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let first = tokio::spawn({
            let hashing = hashing.clone();
            async move { hashing.work(move |_| wait.recv().is_ok()).await }
        });
        while hashing.cores.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let second = tokio::spawn({
            let hashing = hashing.clone();
            async move { hashing.hash(String::from("correct horse")).await }
        });
        while hashing.inside.load(Ordering::Relaxed) < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(hashing.hash(String::from("x")).await, Err(IdentityError::Overloaded(Overloaded)));
        go.send(()).unwrap();
        assert_eq!(first.await.unwrap(), Ok(true));
        let hash = second.await.unwrap().unwrap();
        assert_eq!(hashing.verify(String::from("correct horse"), Some(hash)).await, Ok(Verdict::Right));
        assert_eq!(hashing.inside.load(Ordering::Relaxed), 0);
    }
}
