//! What `[identity]` says, checked.

use std::path::PathBuf;
use std::time::Duration;

use jsonwebtoken::Algorithm;

use super::password::Argon2Options;
use super::principal::Role;

/// How accounts, tokens and keys are kept.
#[derive(Clone, Debug)]
pub struct IdentityOptions {
    /// Folder of the signing keys.
    pub keys: PathBuf,
    /// Who issues our tokens.
    pub issuer: String,
    /// Whom they are for.
    pub audience: String,
    /// Whether anybody may make an account.
    pub registration: bool,
    /// How long an access token holds.
    pub access_lifetime: Duration,
    /// How long a refresh token holds that nobody uses.
    pub refresh_lifetime: Duration,
    /// How long somebody stays logged in at most.
    pub session_lifetime: Duration,
    /// How long a key signs.
    pub key_rotation: Duration,
    /// How often keys are read that other instances made or revoked.
    pub refresh_interval: Duration,
    /// How much work a password is.
    pub argon2: Argon2Options,
    /// Threads that hash passwords.
    pub hash_threads: usize,
    /// Passwords that wait for one.
    pub hash_queue: usize,
    /// Others whose tokens are taken.
    pub issuers: Vec<IssuerOptions>,
}

impl Default for IdentityOptions {
    fn default() -> Self {
        Self {
            keys: PathBuf::from("data/identity"),
            issuer: String::from("tidegate"),
            audience: String::from("tidegate"),
            registration: true,
            access_lifetime: Duration::from_secs(600),
            refresh_lifetime: Duration::from_secs(30 * 86_400),
            session_lifetime: Duration::from_secs(90 * 86_400),
            key_rotation: Duration::from_secs(30 * 86_400),
            refresh_interval: Duration::from_secs(2),
            argon2: Argon2Options::default(),
            hash_threads: 1,
            hash_queue: 64,
            issuers: vec![],
        }
    }
}

/// Another issuer.
#[derive(Clone, Debug)]
pub struct IssuerOptions {
    /// What its tokens call it.
    pub issuer: String,
    /// Where its keys are.
    pub jwks: JwksUrl,
    /// Whom its tokens must be for.
    pub audience: String,
    /// What they may be signed with.
    pub algorithms: Vec<Algorithm>,
    /// Roles that it may give; others in its tokens are left out.
    pub roles: Vec<Role>,
    /// How often its keys are read.
    pub refresh: Duration,
    /// How long they are used when they cannot be.
    pub stale: Duration,
    /// For an answer.
    pub timeout: Duration,
    /// Authorities, PEM; `None` are the system's.
    pub ca: Option<Vec<u8>>,
}

/// Where keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwksUrl {
    /// Whether with TLS.
    pub tls: bool,
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path and query.
    pub path: String,
}

impl JwksUrl {
    /// Reads `https://login.example/keys`.
    pub fn parse(url: &str) -> Option<Self> {
        let uri: hyper::Uri = url.parse().ok()?;
        let tls = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let host = uri.host().filter(|host| !host.is_empty())?.trim_matches(['[', ']']).to_owned();
        // A password has no place here.
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return None;
        }
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Some(Self { tls, host, port, path })
    }

    /// Whether nobody but this machine is on the way there.
    pub fn is_loopback(&self) -> bool {
        let address = self.host.parse::<std::net::IpAddr>();
        address.map_or_else(|_| self.host.eq_ignore_ascii_case("localhost"), |address| address.is_loopback())
    }

    /// As in `Host`.
    pub(super) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// Algorithms that an issuer may be allowed.
pub fn algorithm(name: &str) -> Option<Algorithm> {
    match name {
        "EdDSA" => Some(Algorithm::EdDSA),
        "RS256" => Some(Algorithm::RS256),
        "ES256" => Some(Algorithm::ES256),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_keys_are_read() {
        let url = JwksUrl::parse("https://login.example/a/keys?v=2").unwrap();
        assert_eq!(
            (url.tls, url.host.as_str(), url.port, url.path.as_str()),
            (true, "login.example", 443, "/a/keys?v=2")
        );
        let url = JwksUrl::parse("http://[::1]:8080").unwrap();
        assert_eq!((url.tls, url.authority().as_str(), url.path.as_str()), (false, "[::1]:8080", "/"));
        for (url, here) in [
            ("http://127.0.0.1/", true),
            ("http://127.9.9.9:80/", true),
            ("http://[::1]/", true),
            ("http://LocalHost/", true),
            ("http://10.0.0.1/", false),
            ("http://[::2]/", false),
            ("http://localhost.example/", false),
            ("http://127.0.0.1.example/", false),
            ("http://login/", false),
        ] {
            assert_eq!(JwksUrl::parse(url).unwrap().is_loopback(), here, "{url}");
        }
        for bad in ["", "/keys", "ftp://a/keys", "https://", "https://u:p@a/keys", "login.example/keys"] {
            assert_eq!(JwksUrl::parse(bad), None, "{bad}");
        }
    }
}
