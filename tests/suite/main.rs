//! The suite: one file a capability, all against the production wiring, in one binary because each links for seconds.

#![expect(clippy::disallowed_methods, reason = "tests wait for and measure what happens in real time")]

mod api;
mod architecture;
mod backend;
mod browser;
mod cache;
mod catalog;
mod catalog_cli;
mod catalog_stores;
mod changes;
mod client;
mod control;
mod crash;
mod discovery;
mod gateway;
mod gateway_canary;
mod gateway_canary_shared;
mod gateway_canary_state;
mod gateway_faults;
mod gateway_keys;
mod gateway_protocol;
mod gateway_slow;
mod gateway_smuggling;
mod identity;
mod identity_keys;
mod issuers;
mod kafka;
mod lifetimes;
mod limits;
mod live_config;
mod overload;
mod owners;
mod popularity;
mod real_input;
mod reload;
mod services;
mod shared;
mod shared_faults;
mod sites;
mod stream;
mod stream_faults;
mod stream_tls;
mod support;
mod webdriver;
mod wire;
