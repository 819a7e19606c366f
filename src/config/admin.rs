//! `[admin]`: where a running server is steered, and how its changes are watched.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use serde::Deserialize;

use super::raw::section;
use super::units::Span;

section! {
    /// `[admin]`
    Admin {
        /// Address and port.
        listen: String = String::from("127.0.0.1:8081"),
        /// The config's file.
        watch_file: bool = true,
        /// After a change.
        watch_for: Span = Span::secs(30),
        /// Of the part of failed requests.
        max_rise: f64 = 0.1,
        /// Before anything is decided.
        min_requests: u64 = 20,
    }
}

/// How a running server is steered.
#[derive(Clone, Copy, Debug)]
pub struct AdminOptions {
    /// Where the admin API is; `None` is nowhere.
    pub listen: Option<SocketAddr>,
    /// Whether the config's file is looked at for changes.
    pub watch_file: bool,
    /// How long a change is watched.
    pub watch_for: Duration,
    /// Rise of the part of failed requests, 0 to 1, at which a change is taken back; 1 never does.
    pub max_rise: f64,
    /// Requests below which nothing is decided.
    pub min_requests: u64,
}

/// Checks what the types cannot; every mistake goes to `bad` with its key.
pub(super) fn validate(raw: &Admin, has_key: bool, bad: &mut impl FnMut(&str, String)) -> AdminOptions {
    let listen = match raw.listen.as_str() {
        "" => None,
        text => match text.to_socket_addrs().ok().and_then(|mut found| found.next()) {
            Some(at) => Some(at),
            None => {
                bad("admin.listen", format!("`{text}` is no address like 127.0.0.1:8081"));
                None
            }
        },
    };
    if listen.is_some_and(|at| !at.ip().to_canonical().is_loopback()) && !has_key {
        bad(
            "admin.listen",
            String::from("beyond this machine it is open to nobody without a key: set server.admin_key, or 127.0.0.1"),
        );
    }
    if !(0.0..=1.0).contains(&raw.max_rise) {
        bad("admin.max_rise", String::from("it must be 0 to 1"));
    }
    let watch_for = raw.watch_for.0.unwrap_or_else(|| {
        bad("admin.watch_for", String::from("it cannot be forever"));
        Duration::ZERO
    });
    AdminOptions {
        listen,
        watch_file: raw.watch_file,
        watch_for,
        max_rise: raw.max_rise,
        min_requests: raw.min_requests.max(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(text: &str, has_key: bool) -> Vec<String> {
        let mut found = Vec::new();
        validate(&toml::from_str(text).unwrap(), has_key, &mut |key, _| found.push(key.to_owned()));
        found
    }

    #[test]
    fn it_is_never_open_beyond_this_machine_without_a_key() {
        assert!(mistakes("", false).is_empty());
        assert!(mistakes("listen = \"\"", false).is_empty());
        assert!(mistakes("listen = \"[::1]:8081\"", false).is_empty());
        for open in ["0.0.0.0:8081", "[::]:8081", "192.0.2.1:8081"] {
            assert_eq!(mistakes(&format!("listen = \"{open}\""), false), ["admin.listen"], "{open}");
            assert!(mistakes(&format!("listen = \"{open}\""), true).is_empty(), "{open}");
        }
        assert_eq!(mistakes("listen = \"nowhere\"", true), ["admin.listen"]);
        assert_eq!(mistakes("max_rise = 2.0\nwatch_for = \"forever\"", true), ["admin.max_rise", "admin.watch_for"]);
    }
}
