//! The keys of `[gateway]` itself: where it listens, and what it keeps of connections.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Around, Gateway, Keys};
use crate::gateway::options::{AccessLog, TlsOptions};

/// What is known of the side towards clients.
pub(super) struct Front {
    pub listen: Option<SocketAddr>,
    pub tls: Option<TlsOptions>,
    pub client_timeout: Duration,
    pub keep_alive: Duration,
    pub access_log: AccessLog,
}

pub(super) fn front(raw: &Gateway, around: &Around<'_>, keys: &mut Keys<'_>) -> Front {
    let listen = address("listen", &raw.listen, keys);
    let tls = tls(raw, keys);
    if raw.listen.is_empty() && raw.tls_listen.is_empty() && !raw.routes.is_empty() {
        keys.bad(
            "listen",
            "there are routes, but nobody listens; write listen = \"0.0.0.0:8000\" in [gateway], or tls_listen = \
             \"0.0.0.0:8443\" with tls_cert_file and tls_key_file",
        );
    }
    // Port 0 is another one each time.
    let taken = |at: SocketAddr, by: SocketAddr| at == by && at.port() != 0;
    if listen.is_some_and(|at| taken(at, around.server)) {
        keys.bad("listen", "server.listen has this address; the gateway needs one of its own");
    }
    if let Some(tls) = &tls
        && (taken(tls.listen, around.server) || listen.is_some_and(|at| taken(at, tls.listen)))
    {
        keys.bad("tls_listen", "server.listen or gateway.listen has this address; HTTPS needs one of its own");
    }
    if raw.workers > 1024 {
        keys.bad("workers", "it must be 0 to 1024");
    }
    keys.within("max_connections", raw.max_connections, 1..=10_000_000);
    // Below 8 KiB there are browsers whose heads do not fit.
    if !(8 << 10..=1 << 20).contains(&raw.max_header_bytes.0) {
        keys.bad("max_header_bytes", "it must be 8KiB to 1MiB");
    }
    Front {
        listen,
        tls,
        client_timeout: keys.finite("client_timeout", raw.client_timeout, Duration::from_millis(100)),
        keep_alive: keys.finite("keep_alive", raw.keep_alive, Duration::ZERO),
        access_log: access_log(&raw.access_log, keys),
    }
}

fn address(key: &str, text: &str, keys: &mut Keys<'_>) -> Option<SocketAddr> {
    if text.is_empty() {
        return None;
    }
    let found = text.to_socket_addrs().ok().and_then(|mut found| found.next());
    if found.is_none() {
        keys.bad(key, format!("`{text}` is no address like 0.0.0.0:8000"));
    }
    found
}

fn tls(raw: &Gateway, keys: &mut Keys<'_>) -> Option<TlsOptions> {
    let files = [("tls_cert_file", &raw.tls_cert_file), ("tls_key_file", &raw.tls_key_file)];
    if raw.tls_listen.is_empty() {
        for (key, file) in files {
            if !file.is_empty() {
                keys.bad(key, "it is used with tls_listen only, and that is empty");
            }
        }
        return None;
    }
    for (key, file) in files {
        if file.is_empty() {
            keys.bad(key, "tls_listen needs tls_cert_file and tls_key_file, both PEM");
        } else if let Err(error) = std::fs::File::open(file) {
            keys.bad(key, format!("cannot be read: {error}"));
        }
    }
    let listen = address("tls_listen", &raw.tls_listen, keys)?;
    let [cert_file, key_file] = files.map(|(_, file)| PathBuf::from(file));
    Some(TlsOptions { listen, cert_file, key_file })
}

fn access_log(text: &str, keys: &mut Keys<'_>) -> AccessLog {
    match text {
        "" => AccessLog::Off,
        "stderr" => AccessLog::Stderr,
        path => {
            let path = Path::new(path);
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            if folder.is_some_and(|folder| !folder.is_dir()) || path.is_dir() {
                keys.bad("access_log", format!("`{text}` is no file in a folder that exists, and not \"stderr\""));
            }
            AccessLog::File(path.to_owned())
        }
    }
}
