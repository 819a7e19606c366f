//! The catalogue's part of the composition: database, cache and popularity become one handle, and the cache is warmed.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use super::Core;
use crate::cache;
use crate::catalog::{CatalogHandle, Store};
use crate::database::Database;

/// How long a warm-up waits for what it needs.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it waits for the second tier: it is of use without.
const CONNECT: Duration = Duration::from_secs(2);
/// How long the start waits for the tables, so that the first request finds them where they are near.
const TABLES: Duration = Duration::from_secs(5);

/// Starts it. The database may be away: then what needs it answers 503 until it is back.
pub async fn start(core: &Core, database: Database) -> anyhow::Result<CatalogHandle> {
    let config = &core.config;
    let store = Store::on(database);
    let cache = cache::start(config.cache.clone(), core.clock.clone()).context("cannot start the cache")?;
    let base = config.cache.types.iter().find(|kind| kind.name == "product_detail").map(|kind| kind.lifetime);
    let base = base.context("the cache has no type product_detail")?;
    let catalog = CatalogHandle::start(store, cache, core.popularity.clone(), core.clock.clone(), base)?;
    if !catalog.ready(TABLES).await {
        log::warn!("catalogue: the database cannot be used yet; products are not served until it can");
    }
    tokio::spawn(warm(catalog.clone(), config.clone(), core.journal.end()));
    Ok(catalog)
}

async fn warm(catalog: CatalogHandle, config: Arc<crate::config::Config>, end: u64) {
    if config.live.warm_up == 0 || !catalog.ready(PATIENCE).await {
        return;
    }
    let popularity = catalog.popularity();
    let counted = tokio::time::timeout(PATIENCE, popularity.delivered_through(end)).await.is_ok();
    catalog.cache().connected(CONNECT).await;
    let warmed = catalog.warm(config.live.warm_up, config.live.warm_rate).await;
    if warmed.asked > 0 {
        let late = if counted { "" } else { ", before all views were counted" };
        log::info!("cache: {} popular products warmed in {} ms{late}", warmed.filled + warmed.present, warmed.took_ms);
    }
}

/// Ends it, when no request is left.
pub async fn stop(catalog: &CatalogHandle, deadline: Duration) {
    catalog.cache().stop(deadline).await;
    if tokio::time::timeout(deadline, catalog.store().close()).await.is_err() {
        log::warn!("drain: the catalogue's connections did not close in time");
    }
}
