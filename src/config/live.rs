//! What a running server follows: the settings that are read anew for each request, in one value that is replaced as a whole.
//!
//! All else in a [`Config`] is of the process' start. So there is one question about a setting, whether it is here, and
//! handlers can only get at what is.

use std::fmt;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use ipnet::IpNet;
use parking_lot::Mutex;

use super::{Config, ConfigError};
use crate::event::access::OriginPattern;
use crate::event::intake::Rules;

/// The keys of these settings.
const KEYS: &[&str] = &[
    "catalog.warm_rate",
    "catalog.warm_up",
    "ingest.cors_origins",
    "ingest.max_age",
    "ingest.max_future",
    "ingest.privacy_signal",
    "ingest.unknown_sites",
    "log.level",
    "server.admin_key",
    "server.admin_key_file",
    "server.max_body_bytes",
    "server.trusted_proxies",
];

/// Whether a running server follows a change of this key. (What the gateway follows is its own matter.)
pub fn follows(key: &str) -> bool {
    key.starts_with("sites.") || KEYS.contains(&key)
}

/// The settings.
#[derive(Clone, PartialEq)]
pub struct Live {
    /// Proxies whose word on addresses is taken.
    pub trusted_proxies: Vec<IpNet>,
    /// Key of the operator's endpoints.
    pub admin_key: Option<String>,
    /// Longest body, in bytes.
    pub max_body: usize,
    /// Whose pages may read the answers to their beacons; `None` is all.
    pub cors: Option<Vec<OriginPattern>>,
    /// Rules of events.
    pub rules: Rules,
    /// Popular products that are read into the cache.
    pub warm_up: usize,
    /// Of them a second, at most.
    pub warm_rate: u32,
    /// Filter of the log.
    pub log: String,
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The admin key is a secret.
        f.debug_struct("Live").field("rules", &self.rules).field("log", &self.log).finish_non_exhaustive()
    }
}

type Follower = Box<dyn Fn(&Live) + Send + Sync>;

/// The settings in force, for all who read them. Cheap to clone.
#[derive(Clone)]
pub struct LiveConfig(Arc<Inner>);

struct Inner {
    now: ArcSwap<Live>,
    /// Held while settings are published, so that all see them in one order.
    followers: Mutex<Vec<Follower>>,
}

impl fmt::Debug for LiveConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LiveConfig")
    }
}

impl LiveConfig {
    /// Begins with these.
    pub fn new(live: Arc<Live>) -> Self {
        Self(Arc::new(Inner { now: ArcSwap::new(live), followers: Mutex::new(Vec::new()) }))
    }

    /// As they are now, for one look.
    pub fn load(&self) -> Guard<Arc<Live>> {
        self.0.now.load()
    }

    /// As they are now, to be kept.
    pub fn load_full(&self) -> Arc<Live> {
        self.0.now.load_full()
    }

    /// Others from now on: whoever asks after this has returned gets these.
    pub fn publish(&self, live: Arc<Live>) {
        let followers = self.0.followers.lock();
        self.0.now.store(live.clone());
        followers.iter().for_each(|follow| follow(&live));
    }

    /// Calls `follow` with the settings of now, and whenever there are others: for what is not asked for by requests. It must
    /// be quick.
    pub fn follow(&self, follow: impl Fn(&Live) + Send + Sync + 'static) {
        let mut followers = self.0.followers.lock();
        follow(&self.load());
        followers.push(Box::new(follow));
    }
}

impl Config {
    /// Whether a server that was started with `start` can follow this. Settings that depend on each other were checked
    /// together; but where one of them is of the start, the other must also fit to what that was.
    ///
    /// # Errors
    /// With every setting that does not, by its key.
    pub fn fits(&self, start: &Config) -> Result<(), ConfigError> {
        let mut mistakes = Vec::new();
        if let Some(at) = start.admin.listen
            && !at.ip().to_canonical().is_loopback()
            && self.live.admin_key.is_none()
        {
            mistakes.push(format!(
                "server.admin_key: until the next start the admin API listens on {at}, beyond this machine, where it must \
                 have a key; restart with the other admin.listen first"
            ));
        }
        let room = start.journal.queue_bytes as u64;
        if room < super::room_for(self.live.max_body as u64) {
            mistakes.push(format!(
                "server.max_body_bytes: until the next start journal.queue_bytes is {room}, which has no room for such a \
                 body; restart with the larger one"
            ));
        }
        if mistakes.is_empty() { Ok(()) } else { Err(ConfigError(mistakes)) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn config(text: &str) -> Config {
        super::super::Origin::default().with_text(text.to_owned()).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    /// Another value for every key that is followed, and for some that are not.
    #[test]
    fn what_is_followed_is_what_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        std::fs::write(&file, "0123456789abcdef").unwrap();
        let before = config("");
        let other = |key: &str, value: &str| {
            let (section, name) = key.rsplit_once('.').unwrap();
            config(&format!("[{section}]\n{name} = {value}\n"))
        };
        let followed = [
            ("catalog.warm_rate", "7"),
            ("catalog.warm_up", "7"),
            ("ingest.cors_origins", "[\"https://a.example\"]"),
            ("ingest.max_age", "\"1d\""),
            ("ingest.max_future", "\"1h\""),
            ("ingest.privacy_signal", "\"drop\""),
            ("log.level", "\"debug\""),
            ("server.admin_key", "\"0123456789abcdef\""),
            ("server.admin_key_file", &format!("\"{}\"", file.display())),
            ("server.max_body_bytes", "\"1MiB\""),
            ("server.trusted_proxies", "[\"10.0.0.0/8\"]"),
            ("sites.shop.write_keys", "[\"key-of-shop\"]"),
            ("sites.shop.origins", "[\"https://shop.example\"]"),
            ("sites.shop.privacy_signal", "\"drop\""),
        ];
        for (key, value) in followed {
            assert!(follows(key), "{key}");
            assert!(other(key, value).live != before.live, "{key} changes nothing");
        }
        let rejecting = config("[ingest]\nunknown_sites = \"reject\"\n[sites.a]\n");
        assert!(follows("ingest.unknown_sites") && rejecting.live != config("[sites.a]").live);
        for key in KEYS {
            assert!(
                followed.iter().any(|(known, _)| known == key) || *key == "ingest.unknown_sites",
                "{key} is not tried"
            );
        }
        for (key, value) in [
            ("server.listen", "\"127.0.0.1:1\""),
            ("server.workers", "7"),
            ("server.max_connections", "7"),
            ("server.client_timeout", "\"7s\""),
            ("server.keep_alive", "\"7s\""),
            ("server.drain_timeout", "\"7s\""),
            ("ingest.max_sites", "7"),
            ("ingest.visit_timeout", "\"7s\""),
            ("ingest.max_open_visits", "700"),
            ("journal.durability", "\"synced\""),
            ("catalog.pool_size", "7"),
            ("admin.max_rise", "0.5"),
        ] {
            assert!(!follows(key), "{key}");
            assert!(other(key, value).live == before.live, "{key}");
        }
    }

    #[test]
    fn it_must_fit_to_what_is_of_the_start() {
        let open = "[admin]\nlisten = \"0.0.0.0:8081\"\n[server]\nadmin_key = \"0123456789abcdef\"\n";
        let start = config(open);
        assert!(config(open).fits(&start).is_ok());
        // Both at once are fine for the next start, but the key would be gone before the listener is.
        let error = config("").fits(&start).unwrap_err().to_string();
        assert!(error.starts_with("server.admin_key: ") && error.contains("0.0.0.0:8081"), "{error}");
        assert!(config("").fits(&config("")).is_ok());
        assert!(config(open).fits(&config("")).is_ok());

        let large = config("[server]\nmax_body_bytes = \"100MiB\"\n[journal]\nqueue_bytes = \"256MiB\"\n");
        let error = large.fits(&config("")).unwrap_err().to_string();
        assert!(error.starts_with("server.max_body_bytes: "), "{error}");
        assert!(config("").fits(&large).is_ok());
    }

    #[test]
    fn followers_see_what_is_published() {
        let live = LiveConfig::new(config("").live);
        let seen = Arc::new(AtomicUsize::new(0));
        let also = seen.clone();
        live.follow(move |live| also.store(live.warm_up, Ordering::SeqCst));
        assert_eq!(seen.load(Ordering::SeqCst), 1000);
        live.publish(config("[catalog]\nwarm_up = 7").live);
        assert_eq!((seen.load(Ordering::SeqCst), live.load().warm_up, live.load_full().warm_up), (7, 7, 7));
        assert!(!format!("{:?}", config("[server]\nadmin_key = \"0123456789abcdef\"").live).contains("0123"));
    }
}
