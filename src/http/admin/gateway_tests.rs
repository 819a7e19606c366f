use std::sync::Arc;

use super::gateway::{canary, noted, upstream};
use crate::clock::{Clock, Monotonic};
use crate::config::Config;
use crate::gateway::Gateway;
use crate::gateway::canary::{Canary, Phase};
use crate::gateway::options::{GatewayOptions, UpstreamTls};
use crate::gateway::upstream::Upstream;
use crate::http::error::ApiError;

fn options(folder: &std::path::Path, upstream: &str, canary: &str) -> GatewayOptions {
    let file = folder.join("tidegate.toml");
    let text = format!(
        "[data]\ndir = {folder:?}\n[gateway]\nlisten = \"127.0.0.1:0\"\n\
         [gateway.upstreams.{upstream}]\ntargets = [\"127.0.0.1:1\"]\n\
         [gateway.upstreams.next]\ntargets = [\"127.0.0.1:2\"]\n\
         [[gateway.routes]]\nname = \"all\"\npath = \"/\"\nupstream = \"{upstream}\"\n{canary}\n"
    );
    std::fs::write(&file, text).unwrap();
    Config::load(Some(&file), std::iter::empty()).unwrap().gateway
}

fn release(name: &str) -> String {
    format!("[gateway.routes.canary]\nupstream = \"next\"\nsteps = [5, 50]\nrelease = \"{name}\"")
}

#[actix::test]
async fn an_order_is_for_what_was_meant_when_it_was_given() {
    let folder = tempfile::tempdir().unwrap();
    let with = |upstream: &str, canary: &str| options(folder.path(), upstream, canary);
    let registry = prometheus::Registry::new();
    let start = with("stable", &release("1"));
    let gateway = Gateway::start(start, &registry, None, Monotonic::system(), Clock::system()).unwrap();
    let steer = |change: Option<GatewayOptions>| {
        noted(
            || canary(&gateway, "all"),
            Canary::is,
            || {
                // Somebody else changes the config while the disk takes the note.
                change.into_iter().for_each(|options| gateway.apply(options).unwrap());
                Ok(())
            },
        )
    };
    // What stays as it is is the same canary.
    steer(Some(with("stable", &release("1")))).unwrap().step();
    assert_eq!(gateway.canary("all").unwrap().snapshot().weight.part(), 0.5);
    for change in [with("stable", &release("2")), with("stable", "")] {
        let meant = gateway.canary("all").unwrap();
        let refused = steer(Some(change)).unwrap_err();
        assert!(matches!(&refused, ApiError::Conflict(_)) && refused.code() == "conflict", "{refused}");
        assert_eq!(meant.snapshot().phase, Phase::Running);
    }
    assert!(matches!(steer(None), Err(ApiError::NotFound(_))));

    let force = |change: Option<GatewayOptions>| {
        let note = || {
            change.into_iter().for_each(|options| gateway.apply(options).unwrap());
            Ok(())
        };
        noted(|| upstream(&gateway, "stable"), Upstream::is, note)
    };
    force(Some(with("stable", &release("3")))).unwrap();
    assert!(matches!(force(Some(with("other", ""))), Err(ApiError::Conflict(_))));
    assert!(matches!(force(None), Err(ApiError::NotFound(_))));
    // A note that cannot be written is an order that is not followed.
    let no_note = noted(|| Ok(()), |(), ()| true, || Err(ApiError::Internal));
    assert!(matches!(no_note, Err(ApiError::Internal)));
}

#[actix::test]
async fn a_config_that_cannot_start_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let limit = |limit: u64| {
        let limit = format!("[gateway.limits.one]\nby = [\"address\"]\nlimit = {limit}\nperiod = \"1h\"");
        options(folder.path(), "stable", &format!("{}\n{limit}", release("1")))
    };
    let registry = prometheus::Registry::new();
    let gateway = Gateway::start(limit(5), &registry, None, Monotonic::system(), Clock::system()).unwrap();
    let mut broken = limit(7);
    let tls = UpstreamTls { server_name: None, ca: Some(Arc::new(b"no certificate".to_vec())) };
    broken.upstreams.get_mut("stable").unwrap().tls = Some(tls);
    let before = gateway.table();
    gateway.apply(broken).unwrap_err();
    let limits = gateway.limits().stats().limits;
    assert_eq!(limits.iter().map(|limit| limit.options.limit).collect::<Vec<_>>(), [5]);
    assert!(Arc::ptr_eq(&before, &gateway.table()));
    gateway.apply(limit(7)).unwrap();
    assert_eq!(gateway.limits().stats().limits[0].options.limit, 7);
}
