//! The line to the other instances: listens to their invalidations, and looks after Redis while it is not well.

use std::sync::Arc;
use std::time::Duration;

use super::core::Core;
use super::l2::L2;

/// How often the line is asked whether it lives.
const RHYTHM: Duration = Duration::from_millis(250);
/// How long its answer may take: after a second nobody trusts it anyway.
const PATIENCE: Duration = Duration::from_secs(1);
/// The first wait for another try; it doubles up to [`LONGEST`].
const SHORTEST: Duration = Duration::from_millis(50);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(1);
/// How often the breaker and what is pending are looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Runs until it is dropped.
pub(super) async fn run(core: Arc<Core>) {
    if let Some(l2) = &core.l2 {
        futures_util::future::join(listen(&core, l2), tend(&core, l2)).await;
    }
}

async fn listen(core: &Core, l2: &L2) {
    let mut wait = SHORTEST;
    let mut told = false;
    loop {
        let error = match l2.client.subscribe(&l2.channel).await {
            Ok(subscription) => {
                l2.trust.begins(core.micros());
                wait = SHORTEST;
                if std::mem::take(&mut told) {
                    log::info!("the cache hears of invalidations again");
                }
                let alive = |ago: Duration| {
                    let ago = u64::try_from(ago.as_micros()).unwrap_or(u64::MAX);
                    l2.trust.alive(core.micros().saturating_sub(ago));
                };
                subscription.attend(RHYTHM, PATIENCE, alive, |message| core.heard(message)).await
            }
            Err(error) => error,
        };
        l2.trust.ends();
        if !std::mem::replace(&mut told, true) {
            log::warn!("the cache hears of no invalidations: {error}; it serves nothing older than 1 s from memory");
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST);
    }
}

async fn tend(core: &Core, l2: &L2) {
    let mut told = false;
    loop {
        if l2.breaker.lock().due(core.since.elapsed()) {
            let looking = async {
                l2.look().await?;
                // What it missed comes first: until then its values may be old.
                l2.flush(core.clock.now()).await
            };
            let looked = tokio::time::timeout(l2.look_limit(), looking).await;
            let well = matches!(looked, Ok(Ok(())));
            if l2.breaker.lock().looked(well, core.since.elapsed()) && std::mem::take(&mut told) {
                log::info!("the cache's second tier is well again");
            }
            if !well && !std::mem::replace(&mut told, true) {
                let why = looked.map_or_else(|_| None, Result::err).map(|error| error.to_string());
                let why = why.unwrap_or_else(|| String::from("Redis does not answer in time"));
                log::warn!("the cache works without its second tier: {why}");
            }
        } else if l2.up() && l2.pending() > 0 {
            let _ = tokio::time::timeout(l2.look_limit(), l2.flush(core.clock.now())).await;
        }
        tokio::time::sleep(LOOK).await;
    }
}
