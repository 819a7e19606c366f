//! Identity's part of the composition: it is in the catalogue's database, and reads what others made there.

use std::time::Duration;

use anyhow::Context;

use super::Core;
use crate::database::Database;
use crate::identity::Identity;

/// How long the start waits for what other instances made; the catalogue has waited for the tables before.
const OTHERS: Duration = Duration::from_secs(1);

/// Starts it. The database may be away: then who registers or logs in is answered 503 until it is back.
pub async fn start(core: &Core, database: Database) -> anyhow::Result<Identity> {
    let identity = Identity::start(core.config.identity.clone(), database, core.clock.clone()).context("identity")?;
    if !identity.ready(OTHERS).await {
        log::warn!("identity: the database cannot be used yet; nobody can log in until it can");
    }
    Ok(identity)
}
