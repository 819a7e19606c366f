//! Where passwords are hashed: off the threads that answer, so many at once, and a bounded number that waits.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::IdentityError;
use super::lockout::Network;
use super::password::{Passwords, Verdict};
use crate::actor::admission::Overloaded;

/// How long a password may wait; who waits longer has gone away.
const PATIENCE: Duration = Duration::from_secs(3);

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Hashing {
    passwords: Arc<Passwords>,
    cores: Arc<Semaphore>,
    inside: Arc<Mutex<Crowd>>,
    /// That may hash or wait, in all and from one network.
    most: (usize, usize),
}

/// Those that hash or wait.
#[derive(Debug, Default)]
struct Crowd {
    all: usize,
    /// Only of networks that have one.
    of: HashMap<Network, usize>,
}

/// A place among those that hash or wait. It is of one password: what is hashed next asks again.
#[derive(Debug)]
pub(super) struct Place {
    hashing: Hashing,
    network: Network,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inside = self.hashing.inside.lock();
        inside.all = inside.all.saturating_sub(1);
        if let Entry::Occupied(mut of) = inside.of.entry(self.network) {
            *of.get_mut() -= 1;
            if *of.get() == 0 {
                of.remove();
            }
        }
    }
}

/// A thread, for one password. Whatever is asked of it is done, also when whoever asked goes away.
#[derive(Debug)]
pub(super) struct Core {
    place: Place,
    _core: OwnedSemaphorePermit,
}

impl Hashing {
    /// So many threads, and so many that wait for one; a quarter of both from one network, so that it leaves others theirs.
    pub fn new(passwords: Passwords, threads: usize, queue: usize) -> Self {
        let most = threads.saturating_add(queue);
        Self {
            passwords: Arc::new(passwords),
            cores: Arc::new(Semaphore::new(threads)),
            inside: Arc::default(),
            most: (most, most.div_ceil(4)),
        }
    }

    /// Takes a place, at once or not at all.
    pub fn place(&self, network: Network) -> Result<Place, Overloaded> {
        let mut inside = self.inside.lock();
        let of = inside.of.get(&network).copied().unwrap_or_default();
        if inside.all >= self.most.0 || of >= self.most.1 {
            return Err(Overloaded);
        }
        inside.all += 1;
        inside.of.insert(network, of + 1);
        drop(inside);
        Ok(Place { hashing: self.clone(), network })
    }

    pub async fn hash(&self, password: String, network: Network) -> Result<String, IdentityError> {
        self.place(network)?.core().await?.hash(password).await
    }
}

impl Place {
    /// Waits for a thread.
    pub async fn core(self) -> Result<Core, Overloaded> {
        let core = tokio::time::timeout(PATIENCE, self.hashing.cores.clone().acquire_owned()).await;
        let core = core.map_err(|_| Overloaded)?.map_err(|_| Overloaded)?;
        Ok(Core { place: self, _core: core })
    }
}

impl Core {
    pub async fn hash(self, password: String) -> Result<String, IdentityError> {
        self.work(move |passwords| passwords.hash(&password)).await?
    }

    pub async fn verify(self, password: String, hash: Option<String>) -> Result<Verdict, IdentityError> {
        self.work(move |passwords| passwords.verify(&password, hash.as_deref())).await
    }

    async fn work<T: Send + 'static>(
        self,
        work: impl FnOnce(&Passwords) -> T + Send + 'static,
    ) -> Result<T, IdentityError> {
        let passwords = self.place.hashing.passwords.clone();
        let done = tokio::task::spawn_blocking(move || {
            // They stay with the work when whoever asked goes away.
            let _held = self;
            work(&passwords)
        });
        done.await.map_err(|_| IdentityError::Internal("a password could not be hashed"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::password::Argon2Options;
    use super::*;

    fn hashing(threads: usize, queue: usize) -> Hashing {
        let passwords = Passwords::new(Argon2Options { memory: 64, passes: 1, lanes: 1 }).unwrap();
        Hashing::new(passwords, threads, queue)
    }

    impl Hashing {
        fn inside(&self) -> (usize, usize) {
            let inside = self.inside.lock();
            (inside.all, inside.of.len())
        }
    }

    fn network(n: u32) -> Network {
        Network::of(std::net::IpAddr::from(n.to_be_bytes()))
    }

    #[actix_web::test]
    async fn what_waits_is_bounded() {
        let hashing = hashing(1, 1);
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let core = hashing.place(network(1)).unwrap().core().await.unwrap();
        let first = tokio::spawn(core.work(move |_| wait.recv().is_ok()));
        let second = tokio::spawn({
            let hashing = hashing.clone();
            async move { hashing.hash(String::from("correct horse"), network(2)).await }
        });
        while hashing.inside().0 < 2 {
            tokio::task::yield_now().await;
        }
        let third = hashing.hash(String::from("x"), network(3)).await;
        assert_eq!(third, Err(IdentityError::Overloaded(Overloaded)));
        // Whoever asked for the first goes away: its place is held as long as its thread is.
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        assert_eq!(hashing.place(network(3)).unwrap_err(), Overloaded);
        go.send(()).unwrap();
        let hash = second.await.unwrap().unwrap();
        let core = hashing.place(network(1)).unwrap().core().await.unwrap();
        assert_eq!(core.verify(String::from("correct horse"), Some(hash)).await, Ok(Verdict::Right));
        assert_eq!(hashing.inside(), (0, 0));
    }

    #[test]
    fn one_network_leaves_others_their_places() {
        let hashing = hashing(1, 15);
        let mut held: Vec<_> = (0..100).map_while(|_| hashing.place(network(1)).ok()).collect();
        assert_eq!(held.len(), 4);
        for n in 2..100 {
            held.extend((0..2).map_while(|_| hashing.place(network(n)).ok()));
        }
        assert_eq!(held.len(), 16);
        drop(held);
        assert!(hashing.place(network(1)).is_ok());
        assert_eq!(hashing.inside(), (0, 0));
    }
}
