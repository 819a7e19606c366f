//! The catalogue as others see it: reads through the cache, lifetimes that follow popularity, writes that invalidate.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;

use super::answer::{Brief, Explained, HEAD, HotProduct, TAIL, Warmed, data, tagged};
use super::popularity::{Lifetime, PopularityHandle};
use super::words;
use super::{CatalogError, NewProduct, Product, ProductPatch, SearchQuery, Sort, Status, Store};
use crate::cache::{CacheError, CacheHandle, FillError, Filled, Found, Kind};
use crate::clock::{Clock, Stopwatch};
use crate::database::DatabaseError;

/// Products of one batch of a warm-up.
const WARM_BATCH: usize = 50;
/// Popular products that are looked through for those of the catalogue.
const HOTTEST: usize = 1000;
/// When a write whose outcome is not known is taken for done once more.
const AFTERWARDS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30)];
/// Until the migrations are done.
const NOT_READY: &str = "the catalogue's tables are not up to date yet";
/// Products that show one as related and are invalidated with it one by one; where there are more, all products are.
const MOST_REFERRERS: usize = 1000;

/// The catalogue. Cheap to clone.
#[derive(Clone)]
pub struct CatalogHandle {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    cache: CacheHandle,
    popularity: PopularityHandle,
    clock: Clock,
    detail: Kind,
    search: Kind,
    /// How long a product lives in the cache that nobody looks at.
    base: Duration,
    /// Why the last read of the database failed, if it did for more than itself.
    fault: Mutex<Option<String>>,
}

impl From<CatalogError> for FillError {
    fn from(error: CatalogError) -> Self {
        match error.retry_after() {
            Some(retry_after) => Self::Unavailable { what: error.to_string().into(), retry_after },
            None => Self::Failed(error.to_string().into()),
        }
    }
}

impl Inner {
    fn ready(&self) -> Result<(), FillError> {
        if self.store.database().is_ready() {
            return Ok(());
        }
        Err(FillError::Unavailable { what: NOT_READY.into(), retry_after: Duration::from_secs(1) })
    }

    /// The whole answer, so that a hit hands it on without making anything; its time is that of this reading.
    fn enveloped<T: Serialize>(&self, data: &T) -> Result<Vec<u8>, FillError> {
        let mut body = HEAD.to_vec();
        serde_json::to_writer(&mut body, data).map_err(|error| FillError::Failed(error.to_string().into()))?;
        body.extend_from_slice(TAIL);
        body.extend_from_slice(self.clock.now().div_euclid(1000).to_string().as_bytes());
        body.push(b'}');
        Ok(body)
    }

    async fn invalidate(&self, ids: &[String]) {
        if ids.len() > MOST_REFERRERS {
            self.cache.invalidate_kind(self.detail).await;
        } else {
            let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
            self.cache.invalidate(self.detail, &ids).await;
        }
        self.cache.invalidate_kind(self.search).await;
    }

    /// Keeps in mind whether the database can be read.
    fn noted<T>(&self, read: Result<T, CatalogError>) -> Result<T, CatalogError> {
        let fault = read.as_ref().err().filter(|error| error.is_passing()).map(ToString::to_string);
        let mut held = self.fault.lock();
        if held.is_some() != fault.is_some() {
            match &fault {
                Some(fault) => log::warn!("catalogue: {fault}; what is cached is served"),
                None => log::info!("catalogue: the database can be read again"),
            }
        }
        *held = fault;
        drop(held);
        read
    }

    fn filled(&self, product: &Product) -> Result<Filled, FillError> {
        // Kept for the shop's own use, and not shown.
        if product.status == Status::Inactive {
            return Ok(Filled::missing());
        }
        let body = self.enveloped(product)?;
        let lifetime = self.popularity.lifetime(&product.id, self.base).lifetime;
        let tag = tagged(product.version, xxhash_rust::xxh3::xxh3_64(data(&body)));
        Ok(Filled { lifetime: Some(lifetime), ..Filled::new(body, tag) })
    }

    /// What the database has of these, in their order.
    async fn read(&self, ids: &[Arc<str>]) -> Result<Vec<Filled>, FillError> {
        self.ready()?;
        let wanted: Vec<&str> = ids.iter().map(|id| &**id).collect();
        let products = self.noted(self.store.products(&wanted).await)?;
        let mut found = products.iter().peekable();
        let mut filled = Vec::with_capacity(ids.len());
        for id in wanted {
            filled.push(match found.next_if(|product| product.id == id) {
                Some(product) => self.filled(product)?,
                None => Filled::missing(),
            });
        }
        Ok(filled)
    }
}

impl CatalogHandle {
    /// Puts the parts together and begins to bring the tables up to date, again and again until the database lets it. Must
    /// be called within a runtime.
    ///
    /// # Errors
    /// When the cache lacks a type that the catalogue needs.
    pub fn start(
        store: Store,
        cache: CacheHandle,
        popularity: PopularityHandle,
        clock: Clock,
        base: Duration,
    ) -> Result<Self, CacheError> {
        let kind =
            |name: &str| cache.kind(name).ok_or_else(|| CacheError::Options(format!("there is no type `{name}`")));
        let (detail, search) = (kind("product_detail")?, kind("product_search")?);
        let inner = Arc::new(Inner { store, cache, popularity, clock, detail, search, base, fault: Mutex::default() });
        inner.store.database().prepare();
        Ok(Self { inner })
    }

    /// Waits until the tables are up to date, at most so long; whether they are.
    pub async fn ready(&self, limit: Duration) -> bool {
        self.inner.store.database().ready(limit).await
    }

    /// A product as the answer's JSON ([`data`] takes it out), its version as the tag; without a body if there is no such active product.
    ///
    /// # Errors
    /// When no tier has it and the database cannot be read.
    pub async fn product(&self, id: &str) -> Result<Found, CacheError> {
        let make = || {
            let (inner, wanted): (_, Arc<str>) = (self.inner.clone(), id.into());
            move || {
                let (inner, ids) = (inner.clone(), [wanted.clone()]);
                async move { inner.read(&ids).await.map(|mut filled| filled.pop().unwrap_or_else(Filled::missing)) }
            }
        };
        self.inner.cache.get_with(self.inner.detail, id, make).await
    }

    /// The same of several, in the order of `ids`: at most one round trip to Redis, and one read of the database.
    ///
    /// # Errors
    /// As [`CatalogHandle::product`], each for itself.
    pub async fn products(&self, ids: &[&str]) -> Result<Vec<Result<Found, CacheError>>, CacheError> {
        let inner = self.inner.clone();
        let fill = move |ids: Vec<Arc<str>>| {
            let inner = inner.clone();
            async move { inner.read(&ids).await }
        };
        self.inner.cache.get_many(self.inner.detail, ids, fill).await
    }

    /// A page of results as the answer's JSON. Questions that mean the same are one entry of the cache.
    ///
    /// # Errors
    /// [`CatalogError::Invalid`] for a question that cannot be asked; inside, what reading came to.
    pub async fn search(&self, query: SearchQuery) -> Result<Result<Found, CacheError>, CatalogError> {
        let query = Arc::new(canonical(query)?);
        let key = key(&query);
        let inner = self.inner.clone();
        let fill = move || {
            let (inner, query) = (inner.clone(), query.clone());
            async move {
                inner.ready()?;
                let page = inner.noted(inner.store.search(&query).await)?;
                let body = inner.enveloped(&page)?;
                let tag = tagged(0, xxhash_rust::xxh3::xxh3_64(data(&body)));
                Ok(Filled::new(body, tag))
            }
        };
        Ok(self.inner.cache.get(self.inner.search, &key, fill).await)
    }

    /// The most popular products of the catalogue now. Ids that it does not have are left out, since anybody may send a
    /// beacon; while that cannot be known, all are shown without their names.
    pub async fn hottest(&self, limit: usize) -> Vec<HotProduct> {
        let hot = self.inner.popularity.hottest(HOTTEST);
        let mut shown = Vec::with_capacity(limit);
        for hot in hot.chunks(limit.clamp(1, 100)) {
            let ids: Vec<&str> = hot.iter().map(|hot| &*hot.product_id).collect();
            let found = self.products(&ids).await.unwrap_or_default();
            for (hot, found) in hot.iter().zip(&found) {
                let product = match found {
                    Ok(Found { body: None, .. }) => continue,
                    Ok(Found { body: Some(body), .. }) => Brief::read(body),
                    Err(_) => None,
                };
                shown.push(HotProduct::of(hot, product));
                if shown.len() >= limit {
                    return shown;
                }
            }
        }
        shown
    }

    /// Why a product is cached for as long as it is.
    pub fn explain(&self, id: &str) -> Explained {
        let score = self.inner.popularity.score(id);
        let Lifetime { lifetime, factor, why, .. } = self.inner.popularity.lifetime(id, self.inner.base);
        Explained {
            score: score.score,
            views_24h: score.views_24h,
            units_7d: score.units_7d,
            exact: score.exact,
            base_lifetime: self.inner.base.as_secs(),
            lifetime: lifetime.as_secs(),
            factor,
            why,
        }
    }

    /// Stores a product that is not there yet.
    ///
    /// # Errors
    /// [`CatalogError::Exists`] if it is; or when the database is busy, slow or away.
    pub async fn create(&self, new: NewProduct) -> Result<Product, CatalogError> {
        let product = self.written(&new.id.clone(), self.inner.store.create(new)).await?;
        Ok(product)
    }

    /// Replaces a product, if it is at the expected version.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], [`CatalogError::Conflict`]; or when the database is busy, slow or away.
    pub async fn replace(&self, new: NewProduct, expected: Option<u64>) -> Result<Product, CatalogError> {
        self.written(&new.id.clone(), self.inner.store.replace(new, expected)).await
    }

    /// Changes a product, if it is at the expected version.
    ///
    /// # Errors
    /// As [`CatalogHandle::replace`].
    pub async fn patch(&self, id: &str, patch: ProductPatch, expected: Option<u64>) -> Result<Product, CatalogError> {
        self.written(id, self.inner.store.patch(id, patch, expected)).await
    }

    /// Deletes a product, if it is at the expected version.
    ///
    /// # Errors
    /// As [`CatalogHandle::replace`].
    pub async fn delete(&self, id: &str, expected: Option<u64>) -> Result<(), CatalogError> {
        self.written(id, self.inner.store.delete(id, expected)).await
    }

    /// Waits for a write and invalidates what shows it. A write of which nothing is known may have been done.
    async fn written<T>(
        &self,
        id: &str,
        write: impl Future<Output = Result<T, CatalogError>>,
    ) -> Result<T, CatalogError> {
        // Before it: afterwards a deleted product is no longer known as related.
        let referrers = self.inner.store.referrers(id, MOST_REFERRERS).await?;
        let result = write.await;
        let touched = match &result {
            Ok(_) => true,
            Err(error) => error.is_passing() && !matches!(error, CatalogError::Database(DatabaseError::Busy(_))),
        };
        if touched {
            let mut ids = referrers;
            ids.push(id.to_owned());
            self.inner.invalidate(&ids).await;
            if result.is_err() {
                // The database may be at it still.
                let inner = self.inner.clone();
                tokio::spawn(async move {
                    for wait in AFTERWARDS {
                        tokio::time::sleep(wait).await;
                        inner.invalidate(&ids).await;
                    }
                });
            }
        }
        result
    }

    /// Reads the hottest products into the cache, in batches, at most `rate` a second from the database.
    pub async fn warm(&self, limit: usize, rate: u32) -> Warmed {
        let watch = Stopwatch::start();
        let hot = self.inner.popularity.hottest(limit);
        let mut warmed = Warmed::default();
        let rate = rate.max(1);
        let batch = WARM_BATCH.min(rate as usize);
        for hot in hot.chunks(batch) {
            let begun = Stopwatch::start();
            let ids: Vec<&str> = hot.iter().map(|hot| &*hot.product_id).collect();
            let found = self.products(&ids).await.unwrap_or_default();
            let before = warmed.filled + warmed.missing;
            for found in &found {
                warmed.asked += 1;
                match found {
                    Err(_) => warmed.failed += 1,
                    Ok(found) if found.forward.is_none() => warmed.present += 1,
                    Ok(found) if found.body.is_none() => warmed.missing += 1,
                    Ok(_) => warmed.filled += 1,
                }
            }
            let read = warmed.filled + warmed.missing - before;
            let share = Duration::from_secs_f64(read as f64 / f64::from(rate));
            tokio::time::sleep(share.saturating_sub(begun.elapsed())).await;
        }
        warmed.took_ms = u64::try_from(watch.elapsed().as_millis()).unwrap_or(u64::MAX);
        warmed
    }

    /// Why products cannot be read from the database, as far as the last attempt knows.
    pub fn fault(&self) -> Option<String> {
        if self.inner.store.database().is_ready() {
            self.inner.fault.lock().clone()
        } else {
            Some(String::from(NOT_READY))
        }
    }

    /// The database.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// The cache.
    pub fn cache(&self) -> &CacheHandle {
        &self.inner.cache
    }

    /// The popularity.
    pub fn popularity(&self) -> &PopularityHandle {
        &self.inner.popularity
    }
}

/// The question in one form, whatever its spelling.
fn canonical(query: SearchQuery) -> Result<SearchQuery, CatalogError> {
    let words = query.q.as_deref().and_then(words::canonical);
    let sort = if query.sort == Sort::Relevance && words.is_none() { Sort::Newest } else { query.sort };
    let page = if query.cursor.is_some() { 1 } else { query.page };
    let prices = [query.min_price, query.max_price].map(|price| price.map(|price| price.normalize()));
    let [min_price, max_price] = prices;
    let query = SearchQuery { q: words, sort, page, min_price, max_price, ..query };
    query.check().map(drop)?;
    Ok(query)
}

/// The name of a canonical question. A list in JSON: no value can be mistaken for two.
fn key(query: &SearchQuery) -> String {
    let prices = [query.min_price, query.max_price].map(|price| price.map(|price| price.to_string()));
    let parts = (
        (&query.q, &query.category, &query.brand, prices, query.in_stock),
        (query.sort.as_str(), query.page, query.per_page, &query.cursor, query.facets),
    );
    serde_json::to_string(&parts).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rust_decimal::Decimal;

    #[test]
    fn questions_that_mean_the_same_are_one_entry() {
        let ask = |q: &str, price: &str| SearchQuery {
            q: Some(q.to_owned()),
            min_price: Some(price.parse::<Decimal>().unwrap()),
            ..SearchQuery::default()
        };
        let one = key(&canonical(ask(" Red  SHOE ", "5.00")).unwrap());
        assert_eq!(one, key(&canonical(ask("red shoe", "5")).unwrap()));
        assert_ne!(one, key(&canonical(ask("red", "5")).unwrap()));
        let blank = canonical(ask("  ", "5")).unwrap();
        assert_eq!((blank.q, blank.sort), (None, Sort::Newest));
        let crafted = SearchQuery { category: Some(String::from("a\",\"b")), ..SearchQuery::default() };
        let honest =
            SearchQuery { category: Some(String::from("a")), brand: Some(String::from("b")), ..SearchQuery::default() };
        assert_ne!(key(&canonical(crafted).unwrap()), key(&canonical(honest).unwrap()));
    }

    #[test]
    fn a_page_goes_on_under_another_spelling_of_the_question() {
        let first = canonical(SearchQuery { q: Some("Red shoe".into()), ..SearchQuery::default() }).unwrap();
        let next = first.cursor_behind(String::from("5"), String::from("42"));
        let again = SearchQuery { q: Some("red SHOE".into()), cursor: Some(next), page: 7, ..SearchQuery::default() };
        assert_eq!(canonical(again).unwrap().page, 1);
    }
}
