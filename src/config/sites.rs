//! `[sites.NAME]` and what `[ingest]` says of sites: who may send events, and whose pages may read the answer.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::{Deserialize, Deserializer, de};

use super::raw::{Ingest, section};
use crate::event::access::{Access, OriginPattern, WriteKey};
use crate::event::intake::{PrivacyPolicy, SiteRules, Sites, UnknownSites, is_site};

section! {
    /// `[sites.NAME]`
    Site {
        /// For Sec-GPC and DNT; as all sites do, if it is not set.
        privacy_signal: Option<PrivacyPolicy> = None,
        /// By which events are taken.
        write_keys: Option<Keys> = None,
        /// From which events are taken.
        origins: Option<Vec<String>> = None,
    }
}

/// Write keys as they are written. No message has them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Keys(pub Vec<String>);

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Whatever it is instead is not repeated: it may be a key.
        let wrong = || de::Error::custom("it must be a list of texts, like [\"a-key-of-ours\"]");
        let list = Vec::<toml::Value>::deserialize(deserializer).map_err(|_| wrong())?;
        let texts = list.into_iter().map(|value| value.as_str().map(str::to_owned).ok_or_else(wrong));
        texts.collect::<Result<_, _>>().map(Self)
    }
}

/// Checks the sites; every mistake goes to `bad` with its key.
pub(super) fn sites(raw: &BTreeMap<String, Site>, unknown: UnknownSites, bad: &mut impl FnMut(&str, String)) -> Sites {
    if unknown == UnknownSites::Reject && raw.is_empty() {
        let message = "no event would be taken; name the sites, each in a section [sites.NAME], which may be empty";
        bad("ingest.unknown_sites", String::from(message));
    }
    let mut by_name = HashMap::new();
    for (name, site) in raw {
        if !is_site(name) {
            bad("sites", format!("`{name}` is no site: 1 to 64 characters of A-Z a-z 0-9 _ . : -"));
        }
        let mut access = Access::default();
        let (keys, origins) = (site.write_keys.as_ref().map(|keys| &keys.0), site.origins.as_ref());
        for (name_of, list) in [("write_keys", keys), ("origins", origins)] {
            // Whoever takes the last one away wants nobody in, and would have let in all.
            if list.is_some_and(Vec::is_empty) {
                let message = "an empty list would be met by nobody; leave it out to take events from everybody";
                bad(&format!("sites.{name}.{name_of}"), String::from(message));
            }
        }
        for (place, text) in keys.into_iter().flatten().enumerate() {
            match WriteKey::parse(text) {
                Some(key) => access.write_keys.push(key),
                None => bad(
                    &format!("sites.{name}.write_keys"),
                    format!("key {} must have 8 to 128 characters of A-Z a-z 0-9 - . _ ~", place + 1),
                ),
            }
        }
        access.origins = patterns(&format!("sites.{name}.origins"), origins.into_iter().flatten(), bad);
        by_name.insert(name.clone(), SiteRules { privacy: site.privacy_signal, access });
    }
    Sites::new(by_name)
}

fn patterns<'a>(
    key: &str,
    raw: impl Iterator<Item = &'a String>,
    bad: &mut impl FnMut(&str, String),
) -> Vec<OriginPattern> {
    let mut origins = Vec::new();
    for text in raw {
        match OriginPattern::parse(text) {
            Ok(origin) => origins.push(origin),
            Err(error) => bad(key, format!("`{text}` {error}")),
        }
    }
    origins
}

/// Whose pages may read the answers to their beacons: those of `ingest.cors_origins`, and the sites' own. `None` is all.
pub(super) fn cors(
    raw: &Ingest,
    sites: &BTreeMap<String, Site>,
    bad: &mut impl FnMut(&str, String),
) -> Option<Vec<OriginPattern>> {
    let listed = raw.cors_origins.iter().filter(|origin| *origin != "*");
    let mut allowed = patterns("ingest.cors_origins", listed, bad);
    if raw.cors_origins.iter().any(|origin| origin == "*") {
        return None;
    }
    let own = sites
        .values()
        .flat_map(|site| site.origins.iter().flatten())
        .filter_map(|origin| OriginPattern::parse(origin).ok());
    allowed.extend(own);
    Some(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Origin};

    fn config(text: &str) -> Result<Config, String> {
        Origin::default().with_text(text.to_owned()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_site_says_who_may_send() {
        let text = "[ingest]\ncors_origins = [\"https://a.example\"]\n[sites.shop]\nwrite_keys = [\"key-of-now\", \"key-before\"]\n\
                    [sites.blog]\norigins = [\"https://*.blog.example\"]\n[sites.plain]\n";
        let live = config(text).unwrap().live;
        let sites = &live.rules.sites;
        assert!(sites.guarded());
        let access = |name: &str| &sites.get(name).unwrap().access;
        assert_eq!(access("shop").write_keys.len(), 2);
        assert_eq!(access("blog").origins, [OriginPattern::parse("https://*.blog.example").unwrap()]);
        assert!(access("plain").is_open() && sites.get("other").is_none());
        assert_eq!(live.rules.unknown_sites, UnknownSites::Accept);
        let allowed = ["https://a.example", "https://*.blog.example"].map(|text| OriginPattern::parse(text).unwrap());
        assert_eq!(live.cors.as_deref(), Some(&allowed[..]), "the sites' pages may read their answers");
        assert_eq!(config("[sites.blog]\norigins = [\"https://blog.example\"]").unwrap().live.cors, None);
        assert_eq!(config("[ingest]\ncors_origins = []").unwrap().live.cors, Some(vec![]));
    }

    #[test]
    fn mistakes_have_their_key_and_no_secret() {
        for (text, key) in [
            (
                "[sites.shop]\nwrite_keys = [\"fine-fine\", \"s3cr3t\"]",
                "config:2: sites.shop.write_keys: key 2 must have",
            ),
            ("[sites.shop]\nwrite_keys = [\"s3cr3t and more\"]", "config:2: sites.shop.write_keys: key 1 must have"),
            (
                "[sites.shop]\nwrite_keys = \"s3cr3t-key\"",
                "config:2:14: sites.shop.write_keys: it must be a list of texts",
            ),
            (
                "[sites.shop]\nwrite_keys = [\"s3cr3t-key\", 5]",
                "config:2:14: sites.shop.write_keys: it must be a list of texts",
            ),
            ("[sites]\nshop = { write_keys = \"s3cr3t-key\" }", "config:2:23: sites.shop.write_keys: "),
            ("[sites.shop]\nwrite_keys = [\"s3cr3t-key]", "config:2:"),
            ("[sites.shop]\nwrite_keys = [s3cr3t-key]", "config:2:"),
            ("[sites.shop]\nwrite_keys = [\"fine\"] s3cr3t", "config:2:"),
            ("[sites.shop]\nwrite_keys = [\n  \"s3cr3t-key,\n  \"s3cr3t-too\"\n]", "config:4:"),
            (
                "[sites.shop]\nwrite_keyz = [\"s3cr3t-key\"]",
                "config:2:1: sites.shop.write_keyz: unknown key `write_keyz`; did you mean `write_keys`?",
            ),
            ("[sites.shop]\nwrite_keys = []", "config:2: sites.shop.write_keys: an empty list"),
            ("[sites.shop]\norigins = []", "config:2: sites.shop.origins: an empty list"),
            ("[sites.\"a b\"]\n", "config:1: sites: `a b` is no site"),
            ("[sites.shop]\norigins = [\"shop.example\"]", "config:2: sites.shop.origins: `shop.example` is no origin"),
            (
                "[ingest]\ncors_origins = [\"shop.example\"]",
                "config:2: ingest.cors_origins: `shop.example` is no origin",
            ),
            ("[ingest]\nunknown_sites = \"reject\"", "config:2: ingest.unknown_sites: no event would be taken"),
        ] {
            let error = config(text).unwrap_err();
            assert!(error.starts_with(key), "{text}\n{error}");
            assert!(!error.contains("s3cr3t"), "{error}");
        }
    }
}
