//! The catalogue's stores: the same tests on SQLite, PostgreSQL and MariaDB, each with a database of its own.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use deadpool_postgres::tokio_postgres;
use mysql_async::prelude::Queryable;
use rust_decimal::Decimal;
use serde_json::json;
use tidegate::catalog::{
    CatalogError, Facet, Facets, Imported, NewProduct, ProductPatch, SearchQuery, Sort, Status, Store, demo,
};
use tidegate::clock::Clock;
use tidegate::database::{Address, DatabaseError, DatabaseOptions};

use super::services::{Line, Proxy, Service, fresh};
use super::support::within;

/// A database of one test.
struct Place {
    options: DatabaseOptions,
    _folder: tempfile::TempDir,
}

impl Place {
    fn store(&self) -> Store {
        self.store_at(Clock::system())
    }

    fn store_at(&self, clock: Clock) -> Store {
        Store::new(&self.options, clock).unwrap()
    }
}

fn postgres() -> &'static str {
    static SHARED: OnceLock<Service> = OnceLock::new();
    &SHARED.get_or_init(|| Service::start("postgres", &[])).address
}

fn mariadb() -> &'static str {
    static SHARED: OnceLock<Service> = OnceLock::new();
    &SHARED.get_or_init(|| Service::start("mariadb", &[])).address
}

fn at_postgres(url: &str) -> DatabaseOptions {
    DatabaseOptions { address: Address::Postgres(Box::new(url.parse().unwrap())), ..DatabaseOptions::default() }
}

fn at_mysql(url: &str) -> DatabaseOptions {
    let opts = mysql_async::Opts::from_url(url).unwrap();
    DatabaseOptions { address: Address::MySql(Box::new(opts)), ..DatabaseOptions::default() }
}

fn in_database(url: &str, name: &str) -> String {
    format!("{}/{name}", url.rsplit_once('/').unwrap().0)
}

async fn on_postgres(sql: &str) {
    let (client, line) = tokio_postgres::connect(postgres(), tokio_postgres::NoTls).await.unwrap();
    let line = tokio::spawn(line);
    client.batch_execute(sql).await.unwrap();
    drop(client);
    let _ = line.await;
}

async fn on_mariadb(sql: &str) {
    let mut conn = mysql_async::Conn::from_url(mariadb()).await.unwrap();
    conn.query_drop(sql).await.unwrap();
    conn.disconnect().await.unwrap();
}

/// A place in each of the three, all empty.
async fn places() -> Vec<(&'static str, Place)> {
    let name = fresh("shop").replace('-', "_");
    on_postgres(&format!("CREATE DATABASE {name}")).await;
    on_mariadb(&format!("CREATE DATABASE {name} CHARACTER SET latin1")).await;
    let folder = || tempfile::tempdir().unwrap();
    let file = folder();
    vec![
        ("SQLite", Place { options: DatabaseOptions::sqlite(file.path().join("shop/catalog.db")), _folder: file }),
        ("PostgreSQL", Place { options: at_postgres(&in_database(postgres(), &name)), _folder: folder() }),
        ("MariaDB", Place { options: at_mysql(&in_database(mariadb(), &name)), _folder: folder() }),
    ]
}

/// What `catalog.url` is set to for a place in each of the three, all empty.
pub async fn urls() -> Vec<(&'static str, String)> {
    let name = fresh("shop").replace('-', "_");
    on_postgres(&format!("CREATE DATABASE {name}")).await;
    on_mariadb(&format!("CREATE DATABASE {name}")).await;
    vec![
        ("SQLite", String::new()),
        ("PostgreSQL", in_database(postgres(), &name)),
        ("MariaDB", in_database(mariadb(), &name)),
    ]
}

/// The made-up shop of 10,000 products in a PostgreSQL of its own: the setting that names it, and the active products' names by id.
pub async fn demo_shop() -> (String, HashMap<String, String>) {
    let url = urls().await.swap_remove(1).1;
    let store = Store::new(&at_postgres(&url), Clock::system()).unwrap();
    store.migrate().await.unwrap();
    let shop: Vec<NewProduct> = demo::shop(demo::PRODUCTS, demo::SEED).collect();
    assert_eq!(fill(&store, &shop).await.created, 10_000);
    store.close().await;
    let shown = shop.into_iter().filter(|product| product.status == Status::Active);
    (url, shown.map(|product| (product.id, product.name)).collect())
}

/// Places with tables.
async fn stores() -> Vec<(&'static str, Place, Store)> {
    let mut stores = vec![];
    for (name, place) in places().await {
        let store = place.store();
        assert!(!store.migrate().await.unwrap().is_empty(), "{name}");
        stores.push((name, place, store));
    }
    stores
}

fn new(json: serde_json::Value) -> NewProduct {
    NewProduct::read(&json).unwrap()
}

fn shoe(id: &str, price: &str) -> NewProduct {
    new(json!({"id": id, "name": format!("Shoe {id}"), "price": price}))
}

async fn fill(store: &Store, products: &[NewProduct]) -> Imported {
    let mut sum = Imported::default();
    for batch in products.chunks(500) {
        let done = store.import_batch(batch.to_vec()).await.unwrap();
        sum.created += done.created;
        sum.updated += done.updated;
        sum.unchanged += done.unchanged;
    }
    sum
}

#[actix_web::test]
async fn several_that_start_at_once_migrate_once() {
    for (name, place) in places().await {
        let four = (0..4).map(|_| {
            let store = place.store();
            tokio::spawn(async move {
                let applied = store.migrate().await;
                store.close().await;
                applied
            })
        });
        let mut applied = vec![];
        for one in futures_util::future::join_all(four).await {
            applied.extend(one.unwrap().unwrap_or_else(|error| panic!("{name}: {error}")));
        }
        let different: HashSet<&String> = applied.iter().collect();
        assert!(!applied.is_empty() && different.len() == applied.len(), "{name}: {applied:?}");
        let store = place.store();
        assert!(store.migrate().await.unwrap().is_empty(), "{name}: there is nothing left to do");
        store.ping().await.unwrap();
        assert_eq!(store.products(&["1"]).await.unwrap(), [], "{name}");
        store.close().await;
    }
}

#[actix_web::test]
async fn a_product_comes_back_as_it_was_given() {
    let clock = Clock::manual(1_700_000_000_000);
    for (name, place) in places().await {
        let store = place.store_at(clock.clone());
        store.migrate().await.unwrap();
        fill(&store, &[shoe("b", "1"), new(json!({"id": "c", "name": "Gone", "price": 1, "status": "inactive"}))])
            .await;
        let given = new(json!({
            "id": "sku:1.a-B_c", "name": "Crème brûlée 👟 «日本» ' \" \\ %", "description": "two\nlines\tand ?",
            "category": "Café & Tea", "brand": "Müller's", "price": "0.10", "currency": "JPY", "stock": 1_000_000_000,
            "images": ["https://shop.example/a.webp", {"url": "/b.webp", "alt": "ß"}],
            "attributes": [{"name": "Größe", "value": "ЁЖ"}, {"name": "a", "value": "b"}],
            "related": ["c", "nobody", "b"]
        }));
        let made = store.create(given.clone()).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        let [read] = &store.products(&["nobody", "sku:1.a-B_c", "sku:1.a-b_c", "'; --", ""]).await.unwrap()[..] else {
            panic!("{name}: only one is there")
        };
        assert_eq!(&made, read, "{name}");
        assert_eq!((&made.name, &made.description), (&given.name, &given.description), "{name}");
        assert_eq!((&made.category, &made.brand), (&given.category, &given.brand), "{name}");
        assert_eq!((&made.images, &made.attributes), (&given.images, &given.attributes), "{name}");
        assert_eq!((made.price.to_string().as_str(), made.currency.as_str()), ("0.10", "JPY"), "{name}");
        assert_eq!((made.stock, made.status), (1_000_000_000, Status::Active), "{name}");
        assert_eq!((made.created_at, made.updated_at), (1_700_000_000_000, 1_700_000_000_000), "{name}");
        let related: Vec<&str> = made.related.iter().map(|other| other.id.as_str()).collect();
        assert_eq!(related, ["b"], "{name}: neither the inactive nor the missing");
        assert_eq!(store.create(given).await.unwrap_err(), CatalogError::Exists, "{name}");
        let order: Vec<String> =
            store.products(&["b", "sku:1.a-B_c", "b"]).await.unwrap().into_iter().map(|product| product.id).collect();
        assert_eq!(order, ["b", "sku:1.a-B_c"], "{name}");
        store.close().await;
    }
}

#[actix_web::test]
async fn prices_are_exact() {
    for (name, _place, store) in stores().await {
        let prices = ["0.10", "0.20", "0.00", "99999999.99", "9999999999.9999", "0.0001", "19.99", "1.005"];
        let products: Vec<NewProduct> =
            prices.iter().enumerate().map(|(n, price)| shoe(&n.to_string(), price)).collect();
        fill(&store, &products).await;
        let ids: Vec<String> = (0..prices.len()).map(|n| n.to_string()).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let read = store.products(&ids).await.unwrap();
        let texts: Vec<String> = read.iter().map(|product| product.price.to_string()).collect();
        assert_eq!(texts, prices, "{name}");
        assert_eq!(read[0].price + read[1].price, Decimal::new(3, 1), "{name}");
        assert!(serde_json::to_string(&read[0]).unwrap().contains("\"price\":\"0.10\""));
        let exactly = |price: &str| SearchQuery {
            min_price: Some(price.parse().unwrap()),
            max_price: Some(price.parse().unwrap()),
            ..SearchQuery::default()
        };
        for price in prices {
            assert_eq!(store.search(&exactly(price)).await.unwrap().total, 1, "{name}: {price}");
        }
        store.close().await;
    }
}

#[actix_web::test]
async fn a_change_is_fenced_by_the_version() {
    let clock = Clock::manual(1_700_000_000_000);
    for (name, place) in places().await {
        let store = place.store_at(clock.clone());
        store.migrate().await.unwrap();
        let first = store.create(shoe("1", "5")).await.unwrap();
        let patch = |json: serde_json::Value| ProductPatch::read("1", &json).unwrap();
        clock.advance(Duration::from_secs(1));
        let second = store.patch("1", patch(json!({"price": "6.50"})), Some(first.version)).await.unwrap();
        assert!(second.version > first.version && second.updated_at > first.updated_at, "{name}");
        assert_eq!(
            (second.name, second.price.to_string(), second.created_at),
            (first.name, "6.50".into(), first.created_at)
        );
        let conflict = CatalogError::Conflict { current: second.version };
        let late = store.patch("1", patch(json!({"stock": 1})), Some(first.version)).await;
        assert_eq!(late.unwrap_err(), conflict, "{name}");
        assert_eq!(store.replace(shoe("1", "7"), Some(first.version)).await.unwrap_err(), conflict, "{name}");
        assert_eq!(store.delete("1", Some(first.version)).await.unwrap_err(), conflict, "{name}");
        // Within one millisecond it grows too.
        let third = store.replace(shoe("1", "7"), Some(second.version)).await.unwrap();
        assert_eq!(third.version, second.version + 1, "{name}");
        store.delete("1", Some(third.version)).await.unwrap();
        for gone in [
            store.delete("1", None).await.unwrap_err(),
            store.patch("1", patch(json!({})), None).await.unwrap_err(),
            store.replace(shoe("1", "7"), None).await.unwrap_err(),
        ] {
            assert_eq!(gone, CatalogError::NotFound, "{name}");
        }
        clock.advance(Duration::from_secs(1));
        let again = store.create(shoe("1", "5")).await.unwrap();
        assert!(again.version > third.version, "{name}: an old version must not come back");
        store.close().await;
    }
}

#[actix_web::test]
async fn of_changes_at_once_each_is_made_or_told_of() {
    for (name, _place, store) in stores().await {
        let start = store.create(shoe("1", "5")).await.unwrap();
        let changes = (0..16u32).map(|n| {
            let store = store.clone();
            let patch = ProductPatch { stock: Some(n + 1), ..ProductPatch::default() };
            tokio::spawn(async move { store.patch("1", patch, Some(start.version)).await })
        });
        let done: Vec<_> = futures_util::future::join_all(changes).await.into_iter().map(Result::unwrap).collect();
        let won: Vec<u32> = done.iter().filter_map(|one| one.as_ref().ok()).map(|product| product.stock).collect();
        assert_eq!(won.len(), 1, "{name}: {done:?}");
        assert!(done.iter().all(|one| matches!(one, Ok(_) | Err(CatalogError::Conflict { .. }))), "{name}: {done:?}");
        assert_eq!(store.products(&["1"]).await.unwrap()[0].stock, won[0], "{name}");
        // Imports of the same products, in other orders, with brands that are new.
        let imports = (0..6usize).map(|n| {
            let store = store.clone();
            let mut batch: Vec<NewProduct> = (0..40)
                .map(|id| new(json!({"id": id, "name": format!("v{n}"), "price": n, "brand": format!("b{}", id % 7)})))
                .collect();
            batch.rotate_left(n * 7);
            tokio::spawn(async move { store.import_batch(batch).await })
        });
        for one in futures_util::future::join_all(imports).await {
            one.unwrap().unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let page = store.search(&SearchQuery { per_page: 100, ..SearchQuery::default() }).await.unwrap();
        let names: HashSet<&String> = page.items.iter().map(|item| &item.name).collect();
        assert_eq!((page.total, names.len()), (40, 1), "{name}: the last one as a whole");
        store.close().await;
    }
}

#[actix_web::test]
async fn an_import_twice_is_the_same_as_once() {
    let shop: Vec<NewProduct> = demo::shop(600, 3).collect();
    for (name, _place, store) in stores().await {
        let first = fill(&store, &shop).await;
        assert_eq!(first, Imported { created: 600, ..Imported::default() }, "{name}");
        let ids: Vec<&str> = shop.iter().map(|product| product.id.as_str()).collect();
        let before = store.products(&ids).await.unwrap();
        assert_eq!(before.len(), 600, "{name}");
        let second = fill(&store, &shop).await;
        assert_eq!(second, Imported { unchanged: 600, ..Imported::default() }, "{name}");
        assert_eq!(store.products(&ids).await.unwrap(), before, "{name}");
        let mut other = shop[..3].to_vec();
        other[1].related = vec![];
        other.push(NewProduct { stock: other[2].stock + 1, ..other[2].clone() });
        let third = store.import_batch(other).await.unwrap();
        assert_eq!(
            third,
            Imported { updated: 2, unchanged: 1, ..Imported::default() },
            "{name}: the later of two counts"
        );
        store.close().await;
    }
}

/// The same questions, answered by looking at every product.
struct Naive(Vec<NewProduct>, HashMap<String, HashSet<String>>);

impl Naive {
    fn of(products: impl Iterator<Item = NewProduct>) -> Self {
        let products: Vec<NewProduct> = products.collect();
        let words = products.iter().map(|product| (product.id.clone(), Self::all_words(product))).collect();
        Self(products, words)
    }

    fn words(text: &str) -> Vec<String> {
        text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).map(str::to_lowercase).collect()
    }

    fn all_words(product: &NewProduct) -> HashSet<String> {
        let attributes = product.attributes.iter().map(|a| a.value.as_str());
        let texts = [&product.id, &product.name, &product.description].map(String::as_str).into_iter();
        let texts = texts.chain(product.category.as_deref()).chain(product.brand.as_deref()).chain(attributes);
        texts.flat_map(Self::words).collect()
    }

    fn fits(&self, product: &NewProduct, query: &SearchQuery, without: &str) -> bool {
        let words = query.q.as_deref().map(Self::words);
        let held = &self.1[&product.id];
        let price = |least: &Option<Decimal>, most: &Option<Decimal>| {
            least.is_none_or(|p| product.price >= p) && most.is_none_or(|p| product.price <= p)
        };
        product.status == Status::Active
            && words.is_none_or(|words| !words.is_empty() && words.iter().all(|word| held.contains(word)))
            && (without == "category" || query.category.is_none() || query.category == product.category)
            && (without == "brand" || query.brand.is_none() || query.brand == product.brand)
            && (without == "price" || price(&query.min_price, &query.max_price))
            && (without == "stock" || query.in_stock.is_none_or(|there| there == (product.stock > 0)))
    }

    fn ids(&self, query: &SearchQuery) -> Vec<String> {
        let mut found: Vec<&NewProduct> = self.0.iter().filter(|product| self.fits(product, query, "")).collect();
        let words = query.q.as_deref().map(Self::words).unwrap_or_default();
        let mut distinct = vec![];
        for word in words {
            if !distinct.contains(&word) {
                distinct.push(word);
            }
        }
        let rank = |product: &NewProduct| {
            let name: HashSet<String> = Self::words(&product.name).into_iter().collect();
            distinct.iter().take(4).filter(|word| name.contains(*word)).count()
        };
        found.sort_by(|a, b| {
            let order = match query.sort {
                Sort::Price => a.price.cmp(&b.price),
                Sort::PriceDesc => b.price.cmp(&a.price),
                Sort::Name => a.name.to_lowercase().cmp(&b.name.to_lowercase()),
                Sort::Relevance if query.q.is_some() => rank(b).cmp(&rank(a)),
                Sort::Newest | Sort::Relevance => b.created_at.cmp(&a.created_at),
            };
            order.then_with(|| a.id.cmp(&b.id))
        });
        found.into_iter().map(|product| product.id.clone()).collect()
    }

    fn facets(&self, query: &SearchQuery) -> Facets {
        let count = |without: &str, value: fn(&NewProduct) -> Option<String>| {
            let mut counts: BTreeMap<String, u64> = BTreeMap::new();
            for product in self.0.iter().filter(|product| self.fits(product, query, without)) {
                if let Some(value) = value(product) {
                    *counts.entry(value).or_default() += 1;
                }
            }
            let mut facets: Vec<Facet> = counts.into_iter().map(|(value, count)| Facet { value, count }).collect();
            facets.sort_by_key(|facet| std::cmp::Reverse(facet.count));
            facets.truncate(50);
            facets
        };
        let steps = [0, 25, 50, 100, 250, 500, i64::MAX];
        let ranges = steps.windows(2).map(|step| {
            let fits = |product: &&NewProduct| {
                self.fits(product, query, "price")
                    && product.price >= Decimal::from(step[0])
                    && product.price < Decimal::from(step[1])
            };
            tidegate::catalog::PriceRange {
                from: step[0],
                to: (step[1] != i64::MAX).then_some(step[1]),
                count: self.0.iter().filter(fits).count() as u64,
            }
        });
        let stock = |there: bool| {
            let fits = |p: &&NewProduct| self.fits(p, query, "stock") && (p.stock > 0) == there;
            self.0.iter().filter(fits).count() as u64
        };
        Facets {
            categories: count("category", |product| product.category.clone()),
            brands: count("brand", |product| product.brand.clone()),
            prices: ranges.filter(|range| range.count > 0).collect(),
            in_stock: stock(true),
            out_of_stock: stock(false),
        }
    }
}

fn questions() -> Vec<SearchQuery> {
    let base = || SearchQuery { per_page: 100, ..SearchQuery::default() };
    let q = |q: &str| SearchQuery { q: Some(q.to_owned()), ..base() };
    let price = |text: &str| Some(text.parse().unwrap());
    let mut all = vec![
        base(),
        q("shoe"),
        q("SHOE running"),
        q("light"),
        q("the by in"),
        q("usb-c"),
        q("Crème brûlée"),
        q("brul\u{e9}"),
        q("SØRLAND"),
        q("müller's"),
        q("7"),
        q("swift swift trail shoe black mesh"),
        q("nosuchword"),
        SearchQuery { category: Some("Running".into()), ..base() },
        SearchQuery { category: Some("running".into()), ..base() },
        SearchQuery { category: Some("Café & Tea".into()), brand: Some("Élan".into()), ..base() },
        SearchQuery { brand: Some("Kestrel & Co".into()), in_stock: Some(true), ..base() },
        SearchQuery { in_stock: Some(false), ..base() },
        SearchQuery { min_price: price("49.90"), max_price: price("99.99"), ..base() },
        SearchQuery { min_price: price("500"), max_price: price("1"), ..base() },
        SearchQuery { category: Some("Audio".into()), min_price: price("100"), in_stock: Some(true), ..q("pro") },
    ];
    for sort in [Sort::Price, Sort::PriceDesc, Sort::Name, Sort::Newest, Sort::Relevance] {
        all.push(SearchQuery { sort, ..base() });
        all.push(SearchQuery { sort, in_stock: Some(true), ..q("steel") });
    }
    all
}

#[actix_web::test]
async fn all_databases_find_the_same_as_looking_at_every_product() {
    let naive = Naive::of(demo::shop(3000, 5));
    let expected = questions().into_iter().map(|query| (query.clone(), naive.ids(&query), naive.facets(&query)));
    let expected: Vec<_> = expected.collect();
    let mut answers: Vec<Vec<String>> = vec![];
    for (name, _place, store) in stores().await {
        fill(&store, &naive.0).await;
        let mut texts = vec![];
        let mut found = 0;
        for (query, ids, facets) in &expected {
            let page = store.search(query).await.unwrap_or_else(|error| panic!("{name}: {query:?}: {error}"));
            found += ids.len();
            assert_eq!(page.total, ids.len() as u64, "{name}: {query:?}");
            let first: Vec<&String> = page.items.iter().map(|item| &item.id).collect();
            assert_eq!(first, ids.iter().take(100).collect::<Vec<_>>(), "{name}: {query:?}");
            assert_eq!(page.facets.as_ref(), Some(facets), "{name}: {query:?}");
            assert_eq!(page.total_pages, (ids.len() as u64).div_ceil(100), "{name}");
            texts.push(serde_json::to_string(&page).unwrap());
        }
        assert!(found > 10_000, "{name}: the questions find something: {found}");
        answers.push(texts);
        store.close().await;
    }
    for (at, query) in questions().iter().enumerate() {
        assert!(answers.iter().all(|texts| texts[at] == answers[0][at]), "to the last byte: {query:?}");
    }
}

#[actix_web::test]
async fn pages_and_cursors_have_no_gaps_and_no_doubles() {
    let naive = Naive::of(demo::shop(700, 11));
    for (name, _place, store) in stores().await {
        fill(&store, &naive.0).await;
        for sort in [Sort::Price, Sort::PriceDesc, Sort::Name, Sort::Newest, Sort::Relevance] {
            for q in [None, Some(String::from("steel"))] {
                let mut query = SearchQuery { q, sort, per_page: 7, facets: false, ..SearchQuery::default() };
                let expected = naive.ids(&query);
                let mut by_page = vec![];
                loop {
                    let page = store.search(&query).await.unwrap();
                    by_page.extend(page.items.iter().map(|item| item.id.clone()));
                    assert_eq!(page.next.is_some(), u64::from(query.page) < page.total_pages, "{name}");
                    if page.next.is_none() {
                        break;
                    }
                    query.page += 1;
                }
                assert_eq!(by_page, expected, "{name}: {sort:?} by page");
                query.page = 1;
                let mut by_cursor = vec![];
                loop {
                    let page = store.search(&query).await.unwrap();
                    assert_eq!(page.total, expected.len() as u64, "{name}");
                    by_cursor.extend(page.items.iter().map(|item| item.id.clone()));
                    query.cursor = page.next;
                    if query.cursor.is_none() {
                        break;
                    }
                }
                assert_eq!(by_cursor, expected, "{name}: {sort:?} by cursor");
            }
        }
        store.close().await;
    }
}

#[actix_web::test]
async fn rubbish_finds_nothing_and_breaks_nothing() {
    let long = "x".repeat(10_000);
    let many = "+-*\"~<>()@' OR 1=1 -- ".repeat(500);
    let rubbish = [
        "\"",
        "'",
        "+",
        "-",
        "*",
        "~foo*",
        "\"unclosed",
        "a AND",
        "NOT",
        "NEAR(",
        "(((",
        "@@@",
        "foo:*",
        "<->",
        "!",
        "|",
        "&",
        "\\",
        "%",
        "_",
        "?",
        "$1",
        "\u{0}",
        "a\u{0}b",
        "👟",
        "‏עברית‏",
        "\u{feff}",
        "İstanbul ǅ ﬁ",
        long.as_str(),
        many.as_str(),
        "col:value",
        "^boost",
        "{a b}",
        "'; DROP TABLE products; --",
        "-shoe",
        "\u{1F1E9}\u{1F1EA}",
    ];
    for (name, _place, store) in stores().await {
        fill(&store, &[shoe("1", "1"), new(json!({"id": 2, "name": "İSTANBUL Ǆ ﬁ", "price": 1}))]).await;
        for q in rubbish {
            for sort in [Sort::Relevance, Sort::Name] {
                let query = SearchQuery { q: Some(q.to_owned()), sort, ..SearchQuery::default() };
                let found = store.search(&query).await;
                assert!(found.is_ok(), "{name}: {}: {found:?}", &q[..q.len().min(40)]);
            }
        }
        let found = store.search(&SearchQuery { q: Some("-shoe".into()), ..SearchQuery::default() }).await.unwrap();
        assert_eq!(found.total, 1, "{name}: signs are no operators");
        let query = SearchQuery { category: Some("\u{0}".into()), ..SearchQuery::default() };
        assert!(matches!(store.search(&query).await, Err(CatalogError::Invalid(_))), "{name}");
        assert_eq!(store.products(&["\u{0}", "👟", "a b", &long]).await.unwrap(), [], "{name}");
        store.close().await;
    }
}

/// Holds a product's row (or SQLite's file) until the returned value is dropped.
async fn hold(name: &str, place: &Place) -> Box<dyn std::any::Any> {
    match &place.options.address {
        Address::Sqlite(path) => {
            let conn = rusqlite::Connection::open(path).unwrap();
            conn.execute_batch("BEGIN IMMEDIATE").unwrap();
            Box::new(conn)
        }
        Address::Postgres(to) => {
            let (client, line) = to.connect(tokio_postgres::NoTls).await.unwrap();
            tokio::spawn(line);
            client.batch_execute("BEGIN; SELECT * FROM products FOR UPDATE").await.unwrap();
            Box::new(client)
        }
        Address::MySql(to) => {
            let mut conn = mysql_async::Conn::new((**to).clone()).await.unwrap();
            conn.query_drop("BEGIN").await.unwrap();
            conn.query_drop("SELECT * FROM products FOR UPDATE").await.unwrap_or_else(|e| panic!("{name}: {e}"));
            Box::new(conn)
        }
    }
}

#[actix_web::test]
async fn an_exhausted_pool_says_busy_in_time_and_recovers() {
    for (name, mut place) in places().await {
        place.options.pool_size = 2;
        place.options.pool_queue = 3;
        place.options.pool_timeout = Duration::from_millis(200);
        place.options.query_timeout = Duration::from_secs(2);
        let store = place.store();
        store.migrate().await.unwrap();
        store.create(shoe("1", "1")).await.unwrap();
        let held = hold(name, &place).await;
        let begun = Instant::now();
        let changes = (0..12u32).map(|n| {
            let store = store.clone();
            let patch = ProductPatch { stock: Some(n), ..ProductPatch::default() };
            tokio::spawn(async move { store.patch("1", patch, None).await })
        });
        let changes: Vec<_> = changes.collect();
        let pool = || *store.pools().last().unwrap();
        within(Duration::from_secs(1), "all connections are in use", async || {
            let pool = pool();
            pool.in_use == pool.size && pool.refused > 0
        })
        .await;
        let mut busy = 0;
        for change in changes {
            match change.await.unwrap() {
                Err(CatalogError::Database(DatabaseError::Busy(_))) => busy += 1,
                Err(CatalogError::Database(DatabaseError::Deadline)) => {}
                other => panic!("{name}: {other:?}"),
            }
        }
        assert!(begun.elapsed() < Duration::from_secs(4), "{name}: {:?}", begun.elapsed());
        let size = pool().size;
        assert_eq!(busy, 12 - size, "{name}: only those that had a connection waited for the row");
        assert_eq!(pool().wait_timeouts, 3, "{name}");
        assert_eq!(pool().refused as usize, 12 - size - 3, "{name}");
        drop(held);
        within(Duration::from_secs(10), "it is as before", async || {
            let patch = ProductPatch { stock: Some(77), ..ProductPatch::default() };
            store.patch("1", patch, None).await.is_ok_and(|product| product.stock == 77)
        })
        .await;
        within(Duration::from_secs(5), "nothing is left", async || {
            store.pools().iter().all(|pool| pool.in_use == 0 && pool.waiting == 0)
        })
        .await;
        store.close().await;
    }
}

#[actix_web::test]
async fn a_reader_that_gives_up_leaves_no_connection_behind() {
    for (name, mut place) in places().await {
        place.options.pool_size = 2;
        let store = place.store();
        store.migrate().await.unwrap();
        fill(&store, &demo::shop(400, 1).collect::<Vec<_>>()).await;
        let ids: Vec<String> = (1..=200).map(|n| n.to_string()).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        for n in 0..60 {
            let asked = store.products(&ids);
            let _ = tokio::time::timeout(Duration::from_micros(n * 150), asked).await;
        }
        let read = store.products(&ids).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(read.len(), 200, "{name}");
        assert!(read.iter().zip(&ids).all(|(product, id)| product.id == *id), "{name}: each got its own answer");
        within(Duration::from_secs(5), "all permits are back", async || {
            store.pools().iter().all(|pool| pool.in_use == 0)
        })
        .await;
        store.close().await;
    }
}

#[actix_web::test]
async fn a_database_that_was_killed_is_used_again_by_itself() {
    for kind in ["postgres", "mariadb"] {
        let service = Service::start(kind, &[]);
        let options = if kind == "postgres" { at_postgres(&service.address) } else { at_mysql(&service.address) };
        let options = DatabaseOptions { query_timeout: Duration::from_secs(2), ..options };
        let store = Store::new(&options, Clock::system()).unwrap();
        store.migrate().await.unwrap();
        store.create(shoe("1", "1")).await.unwrap();
        // Several connections, each of which will be dead.
        let many = (0..8).map(|_| store.ping());
        assert!(futures_util::future::join_all(many).await.iter().all(Result::is_ok), "{kind}");
        service.kill(None);
        for _ in 0..10 {
            let begun = Instant::now();
            let error = store.products(&["1"]).await.unwrap_err();
            assert!(error.is_passing() && error.retry_after().is_some(), "{kind}: {error}");
            assert!(!error.to_string().contains("127.0.0.1"), "{kind}: {error}");
            assert!(begun.elapsed() < Duration::from_secs(3), "{kind}: {:?}", begun.elapsed());
        }
        let service = actix_web::web::block(move || {
            service.restart();
            service
        })
        .await
        .unwrap();
        let begun = Instant::now();
        let read = store.products(&["1"]).await;
        assert_eq!(read.unwrap_or_else(|error| panic!("{kind}: {error}")).len(), 1, "{kind}: at once");
        store.patch("1", ProductPatch { stock: Some(5), ..ProductPatch::default() }, None).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(5), "{kind}");
        store.close().await;
        drop(service);
    }
}

#[actix_web::test]
async fn a_silent_database_costs_no_more_than_the_deadline() {
    for kind in ["postgres", "mariadb"] {
        let url = if kind == "postgres" { postgres() } else { mariadb() };
        let (head, rest) = url.split_once("127.0.0.1:").unwrap();
        let (port, tail) = rest.split_once('/').unwrap();
        let proxy = Proxy::to(&format!("127.0.0.1:{port}"));
        let url = format!("{head}{}/{tail}", proxy.address);
        let options = if kind == "postgres" { at_postgres(&url) } else { at_mysql(&url) };
        let store =
            Store::new(&DatabaseOptions { query_timeout: Duration::from_millis(400), ..options }, Clock::system())
                .unwrap();
        store.ping().await.unwrap();
        proxy.set(Line::Swallow);
        for _ in 0..3 {
            let begun = Instant::now();
            assert_eq!(store.ping().await.unwrap_err(), CatalogError::Database(DatabaseError::Deadline), "{kind}");
            assert!(begun.elapsed() < Duration::from_millis(1500), "{kind}: {:?}", begun.elapsed());
        }
        proxy.cut();
        proxy.set(Line::Good);
        within(Duration::from_secs(10), "it answers again", async || store.ping().await.is_ok()).await;
        store.close().await;
    }
}

#[actix_web::test]
async fn tls_is_spoken_with_those_whom_the_authority_vouches_for() {
    for kind in ["postgres", "mariadb"] {
        let service = Service::start(kind, &[]);
        let ca = std::fs::read(service.folder().join("tls/ca.crt")).unwrap();
        let (options, wrong) = if kind == "postgres" {
            let url = format!("{}?sslmode=require", service.address);
            (at_postgres(&url), at_postgres(&url))
        } else {
            let url = format!("{}?require_ssl=true", service.address);
            (at_mysql(&url), at_mysql(&url))
        };
        let store = Store::new(&DatabaseOptions { ca: Some(ca), ..options }, Clock::system()).unwrap();
        store.migrate().await.unwrap_or_else(|error| panic!("{kind}: {error}"));
        store.create(shoe("1", "1")).await.unwrap();
        store.close().await;
        let store = Store::new(&wrong, Clock::system()).unwrap();
        let error = store.ping().await.unwrap_err();
        assert!(
            matches!(error, CatalogError::Database(DatabaseError::Refused(_))),
            "{kind}: a stranger's certificate: {error:?}"
        );
        store.close().await;
    }
}

#[actix_web::test]
async fn a_wrong_password_is_told_without_it() {
    for url in [postgres().replace(":tidegate@", ":hunter2@"), mariadb().replace(":tidegate@", ":hunter2@")] {
        let options = if url.starts_with("mysql") { at_mysql(&url) } else { at_postgres(&url) };
        let store = Store::new(&options, Clock::system()).unwrap();
        for error in [store.ping().await.unwrap_err(), store.migrate().await.unwrap_err()] {
            assert!(matches!(error, CatalogError::Database(DatabaseError::Refused(_))), "{error:?}");
            assert!(!error.to_string().contains("hunter2") && !error.to_string().contains("127.0.0.1"), "{error}");
        }
        store.close().await;
    }
}

/// What was logged as slow, of all stores of this process.
struct SlowLog(Mutex<Vec<String>>);

impl log::Log for SlowLog {
    fn enabled(&self, of: &log::Metadata) -> bool {
        of.target() == "tidegate::slow"
    }

    fn log(&self, record: &log::Record) {
        if self.enabled(record.metadata()) {
            self.0.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

#[actix_web::test]
async fn slow_statements_are_told_of_without_values() {
    static LOG: SlowLog = SlowLog(Mutex::new(Vec::new()));
    log::set_logger(&LOG).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    for (name, mut place) in places().await {
        // Everything is slow.
        place.options.slow_query = Duration::ZERO;
        let store = place.store();
        store.migrate().await.unwrap();
        LOG.0.lock().unwrap().clear();
        let product = json!({"id": "hunter2-id", "name": "hunter2 name", "price": "77.77", "brand": "hunter2 brand"});
        store.create(new(product)).await.unwrap();
        let query = SearchQuery {
            q: Some("hunter2".into()),
            category: Some("hunter2".into()),
            min_price: Some(Decimal::new(7777, 2)),
            ..SearchQuery::default()
        };
        store.search(&query).await.unwrap();
        let lines = LOG.0.lock().unwrap().clone();
        let stats = store.queries();
        assert_eq!(stats.statements, stats.slow, "{name}");
        assert!(stats.slow > 10 && lines.len() as u64 >= stats.slow, "{name}: {stats:?}");
        assert!(lines.iter().all(|line| line.starts_with("slow query: ") && line.contains(" ms: ")), "{name}");
        assert!(lines.iter().any(|line| line.contains("ms: SELECT ")), "{name}: {lines:?}");
        assert!(
            lines.iter().all(|line| !line.contains("hunter2") && !line.contains("77.77") && !line.contains("7777")),
            "{name}: {lines:?}"
        );
        store.close().await;
    }
}
