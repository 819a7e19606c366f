//! What an attempt leaves behind that was not decided.

use std::net::IpAddr;
use std::time::Duration;

use super::*;
use crate::actor::admission::Overloaded;
use crate::clock::Clock;
use crate::database::{Database, DatabaseOptions};

const PASSWORD: &str = "correct horse battery";

fn network(n: u32) -> Network {
    Network::of(IpAddr::from(n.to_be_bytes()))
}

async fn identity(hash_queue: usize) -> (Identity, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(1_795_435_200_000);
    let database = Database::new(&DatabaseOptions::sqlite(folder.path().join("catalog.db")), clock.clone()).unwrap();
    database.prepare();
    assert!(database.ready(Duration::from_secs(20)).await);
    let argon2 = Argon2Options { memory: 64, passes: 1, lanes: 1 };
    let keys = folder.path().join("identity");
    let options = IdentityOptions { argon2, keys, hash_threads: 1, hash_queue, ..IdentityOptions::default() };
    (Identity::start(options, database, clock).unwrap(), folder)
}

#[actix_web::test]
async fn what_finds_no_place_is_not_counted() {
    let (identity, _folder) = identity(3).await;
    let held: Vec<_> = (0..4).map(|n| identity.inner.hashing.place(network(n)).unwrap()).collect();
    for n in 0..200 {
        let login = identity.login(&format!("user{n}"), PASSWORD, network(100 + n)).await;
        assert_eq!(login, Err(IdentityError::Overloaded(Overloaded)));
        let new = Registration::new(&format!("user{n}"), None, PASSWORD).unwrap();
        assert_eq!(identity.register(new, network(9)).await, Err(IdentityError::Overloaded(Overloaded)));
    }
    assert_eq!(identity.inner.lockout.lock().kept(), (0, 0, 0));
    drop(held);
    assert_eq!(identity.login("user1", PASSWORD, network(9)).await, Err(IdentityError::Credentials));
    assert_eq!(identity.inner.lockout.lock().kept(), (1, 1, 1));
    // A network that made nothing is not slowed down.
    let new = Registration::new("user1", None, PASSWORD).unwrap();
    assert!(identity.register(new, network(9)).await.is_ok());
    identity.stop(Duration::from_secs(5)).await;
}

#[actix_web::test]
async fn who_goes_away_before_the_password_is_hashed_leaves_no_count() {
    let (identity, _folder) = identity(30).await;
    let core = identity.inner.hashing.place(network(1)).unwrap().core().await.unwrap();
    for n in 0..20 {
        let (counted, asks) = (identity.clone(), identity.clone());
        let asking = actix_web::rt::spawn(async move { asks.login(&format!("user{n}"), PASSWORD, network(100)).await });
        while counted.inner.lockout.lock().kept() == (0, 0, 0) {
            tokio::task::yield_now().await;
        }
        asking.abort();
        assert!(asking.await.unwrap_err().is_cancelled());
        assert_eq!(identity.inner.lockout.lock().kept(), (0, 0, 0));
    }
    drop(core);
    assert_eq!(identity.login("user1", PASSWORD, network(100)).await, Err(IdentityError::Credentials));
    identity.stop(Duration::from_secs(5)).await;
}
