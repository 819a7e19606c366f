//! Whom a request is from: a token that was seen a moment ago, one that is forged, and an API key.
//!
//! `cargo bench --bench identity`

use criterion::{Criterion, criterion_group, criterion_main};
use tidegate::clock::Clock;
use tidegate::database::{Database, DatabaseOptions};
use tidegate::identity::{Argon2Options, Identity, IdentityOptions, Network, Recognised, Registration, create_key};

fn recognise(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (identity, token, key) = runtime.block_on(async {
        let options = DatabaseOptions::sqlite(folder.path().join("shop.db"));
        let database = Database::new(&options, Clock::system()).unwrap();
        database.migrate().await.unwrap();
        database.prepare();
        let (_, key) = create_key(&database, "till", &[], None, 0).await.unwrap();
        let argon2 = Argon2Options { memory: 64, passes: 1, lanes: 1 };
        let options = IdentityOptions { keys: folder.path().join("identity"), argon2, ..IdentityOptions::default() };
        let identity = Identity::start(options, database, Clock::system()).unwrap();
        assert!(identity.ready(std::time::Duration::from_secs(10)).await);
        let here = Network::of(std::net::Ipv4Addr::LOCALHOST.into());
        let new = Registration::new("jo.doe", None, "correct horse battery").unwrap();
        identity.register(new, here).await.unwrap();
        let login = identity.login("jo.doe", "correct horse battery", here).await.unwrap();
        (identity, format!("Bearer {}", login.access_token), key)
    });
    let known = |header: &str| match identity.recognise(std::iter::once(header.as_bytes())) {
        Recognised::Done(found) => found.is_ok(),
        Recognised::Ask(_) => panic!("its key is known"),
    };
    assert!(known(&token));
    criterion.bench_function("a token seen before", |b| b.iter(|| known(&token)));
    let forged = format!("{}AAAA", &token[..token.len() - 4]);
    assert!(!known(&forged));
    // All of the work of one that was never seen; what fails is not kept.
    criterion.bench_function("a forged token", |b| b.iter(|| known(&forged)));
    let key = format!("Bearer {key}");
    assert!(known(&key));
    criterion.bench_function("an API key", |b| b.iter(|| known(&key)));
}

criterion_group!(benches, recognise);
criterion_main!(benches);
