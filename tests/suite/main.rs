//! The suite: one file a capability, all against the production wiring, in one binary because each links for seconds.

#![expect(clippy::disallowed_methods, reason = "tests wait for and measure what happens in real time")]

mod api;
mod architecture;
mod browser;
mod client;
mod crash;
mod kafka;
mod overload;
mod real_input;
mod services;
mod shared;
mod shared_faults;
mod stream;
mod support;
mod webdriver;
