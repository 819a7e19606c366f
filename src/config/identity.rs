//! `[identity]`: accounts, tokens and keys, as they are written, and what becomes of them.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use super::raw::section;
use super::units::Span;
use crate::identity::{Argon2Options, IdentityOptions, IssuerOptions, JwksUrl, Role, algorithm};

section! {
    /// `[identity]`
    Identity {
        /// Who issues our tokens.
        issuer: String = String::from("tidegate"),
        /// Whom they are for.
        audience: String = String::from("tidegate"),
        /// Whether anybody may make an account.
        registration: bool = true,
        /// Of an access token.
        access_lifetime: Span = Span::secs(600),
        /// Of a refresh token that nobody uses.
        refresh_lifetime: Span = Span::secs(30 * 86_400),
        /// How long somebody stays logged in.
        session_lifetime: Span = Span::secs(90 * 86_400),
        /// How long a key signs.
        key_rotation: Span = Span::secs(30 * 86_400),
        /// How often others' changes are read.
        refresh_interval: Span = Span::secs(2),
        /// Work of a password.
        argon2: Argon2 = Argon2::default(),
        /// Threads that hash.
        hash_threads: usize = 0,
        /// Passwords that wait for one.
        hash_queue: usize = 64,
        /// Others whose tokens are taken.
        issuers: Vec<Issuer> = Vec::new(),
    }
}

section! {
    /// `[identity.argon2]`
    Argon2 {
        /// In KiB.
        memory: u32 = 19 * 1024,
        /// Over the memory.
        passes: u32 = 2,
        /// Lanes.
        lanes: u32 = 1,
    }
}

section! {
    /// `[[identity.issuers]]`
    Issuer {
        /// What its tokens call it.
        issuer: String = String::new(),
        /// Where its keys are.
        jwks_url: String = String::new(),
        /// Whether they may come over plain HTTP from another machine.
        insecure: bool = false,
        /// Whom its tokens must be for.
        audience: String = String::new(),
        /// What they may be signed with.
        algorithms: Vec<String> = Vec::new(),
        /// Roles that it may give.
        roles: Vec<String> = vec![String::from("user")],
        /// How often its keys are read.
        refresh_interval: Span = Span::secs(300),
        /// How long they are used when they cannot be read.
        max_stale: Span = Span::secs(86_400),
        /// For an answer.
        timeout: Span = Span::secs(2),
        /// Authorities, PEM.
        ca_file: String = String::new(),
    }
}

/// Checks what the types cannot; every mistake goes to `bad` with its key.
pub(super) fn validate(raw: &Identity, data: &Path, bad: &mut impl FnMut(&str, String)) -> IdentityOptions {
    for (key, text) in [("identity.issuer", &raw.issuer), ("identity.audience", &raw.audience)] {
        if text.is_empty() || text.len() > 255 {
            bad(key, String::from("it must have 1 to 255 bytes"));
        }
    }
    let access_lifetime = span(bad, "identity.access_lifetime", raw.access_lifetime, 1000);
    if access_lifetime > Duration::from_secs(86_400) {
        // Nothing takes an access token back.
        bad("identity.access_lifetime", String::from("it must be at most 1d: a token that is out holds to its end"));
    }
    let argon2 = Argon2Options { memory: raw.argon2.memory, passes: raw.argon2.passes, lanes: raw.argon2.lanes };
    if let Err(why) = argon2.check() {
        bad("identity.argon2", format!("memory, passes and lanes do not go together: {why}"));
    }
    if raw.argon2.memory > 1 << 20 {
        bad("identity.argon2.memory", String::from("it must be at most 1048576 (KiB)"));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut issuers: Vec<IssuerOptions> = Vec::new();
    for (at, issuer) in raw.issuers.iter().enumerate() {
        let at = format!("identity.issuers.#{}", at + 1);
        if issuer.issuer == raw.issuer || issuers.iter().any(|other| other.issuer == issuer.issuer) {
            bad(&format!("{at}.issuer"), String::from("there are two of this name, or it is our own"));
        }
        issuers.extend(one(issuer, &at, bad));
    }
    IdentityOptions {
        keys: data.join("identity"),
        issuer: raw.issuer.clone(),
        audience: raw.audience.clone(),
        registration: raw.registration,
        access_lifetime,
        refresh_lifetime: span(bad, "identity.refresh_lifetime", raw.refresh_lifetime, 1000),
        session_lifetime: span(bad, "identity.session_lifetime", raw.session_lifetime, 1000),
        key_rotation: span(bad, "identity.key_rotation", raw.key_rotation, 1000),
        refresh_interval: span(bad, "identity.refresh_interval", raw.refresh_interval, 50),
        argon2,
        hash_threads: if raw.hash_threads == 0 { (cores / 2).max(1) } else { raw.hash_threads.min(256) },
        hash_queue: raw.hash_queue,
        issuers,
    }
}

fn span(bad: &mut impl FnMut(&str, String), key: &str, span: Span, least: u64) -> Duration {
    match span.0 {
        Some(span) if span >= Duration::from_millis(least) => span,
        _ => {
            bad(key, format!("it must be at least {least}ms, and not forever"));
            Duration::from_millis(least)
        }
    }
}

fn one(raw: &Issuer, at: &str, bad: &mut impl FnMut(&str, String)) -> Option<IssuerOptions> {
    let mut fine = true;
    let mut no = |key: &str, message: String| {
        bad(&format!("{at}.{key}"), message);
        fine = false;
    };
    if raw.issuer.is_empty() {
        no("issuer", String::from("it must be what the tokens' iss says"));
    }
    if raw.audience.is_empty() {
        no("audience", String::from("it must be what the tokens' aud says; without, tokens for others would be taken"));
    }
    let jwks = JwksUrl::parse(&raw.jwks_url);
    match &jwks {
        None => no("jwks_url", String::from("it must be like https://login.example/.well-known/jwks.json")),
        Some(url) if !url.tls && !url.is_loopback() && !raw.insecure => {
            let why = "it must begin with https://, as over http:// whoever is on the way can put keys of his own there and \
                       be anybody; in a network where nobody is, say insecure = true";
            no("jwks_url", String::from(why));
        }
        Some(_) => {}
    }
    let algorithms: Vec<_> = raw.algorithms.iter().filter_map(|name| algorithm(name)).collect();
    if algorithms.is_empty() || algorithms.len() != raw.algorithms.len() {
        no("algorithms", String::from("it must be a list of \"EdDSA\", \"RS256\" and \"ES256\""));
    }
    let roles: Vec<_> = raw.roles.iter().filter_map(|name| Role::parse(name)).collect();
    if roles.len() != raw.roles.len() {
        no("roles", String::from("it must be a list of \"user\", \"operator\" and \"admin\""));
    }
    let ca = match raw.ca_file.as_str() {
        "" => None,
        file => std::fs::read(file).map_err(|error| no("ca_file", format!("cannot be read: {error}"))).ok(),
    };
    let refresh = span(&mut no, "refresh_interval", raw.refresh_interval, 1000);
    let stale = span(&mut no, "max_stale", raw.max_stale, 1000);
    let timeout = span(&mut no, "timeout", raw.timeout, 10);
    if stale < refresh {
        no("max_stale", String::from("it must not be shorter than refresh_interval"));
    }
    let jwks = jwks.filter(|_| fine)?;
    let (issuer, audience) = (raw.issuer.clone(), raw.audience.clone());
    Some(IssuerOptions { issuer, jwks, audience, algorithms, roles, refresh, stale, timeout, ca })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> (IdentityOptions, Vec<String>) {
        let raw: Identity = toml::from_str(text).unwrap();
        let mut found = Vec::new();
        let options = validate(&raw, Path::new("data"), &mut |key, _| found.push(key.to_owned()));
        (options, found)
    }

    #[test]
    fn the_defaults_are_good() {
        let (options, bad) = check("");
        assert_eq!(bad, Vec::<String>::new());
        assert_eq!(options.keys, Path::new("data/identity"));
        assert!(options.hash_threads >= 1 && options.registration && options.issuers.is_empty());
    }

    #[test]
    fn an_issuer_is_read() {
        let (options, bad) = check(
            "[[issuers]]\nissuer = \"https://a.example\"\njwks_url = \"https://a.example/keys\"\naudience = \"shop\"\n\
             algorithms = [\"RS256\", \"ES256\"]",
        );
        assert_eq!(bad, Vec::<String>::new());
        assert_eq!((options.issuers[0].algorithms.len(), options.issuers[0].roles.as_slice()), (2, &[Role::User][..]));
    }

    #[test]
    fn mistakes_name_the_key() {
        let whole = "issuer = \"a\"\njwks_url = \"https://a/keys\"\naudience = \"b\"\nalgorithms = [\"EdDSA\"]\n";
        for (text, key) in [
            (String::from("issuer = \"\""), "identity.issuer"),
            (String::from("access_lifetime = \"2d\""), "identity.access_lifetime"),
            (String::from("refresh_lifetime = \"forever\""), "identity.refresh_lifetime"),
            (String::from("key_rotation = \"1ms\""), "identity.key_rotation"),
            (String::from("argon2 = { memory = 1 }"), "identity.argon2"),
            (String::from("argon2 = { memory = 2000000 }"), "identity.argon2.memory"),
            (
                format!("[[issuers]]\n{}", whole.replace("issuer = \"a\"", "issuer = \"tidegate\"")),
                "identity.issuers.#1.issuer",
            ),
            (format!("[[issuers]]\n{whole}[[issuers]]\n{whole}"), "identity.issuers.#2.issuer"),
            (format!("[[issuers]]\n{}", whole.replace("https", "ldap")), "identity.issuers.#1.jwks_url"),
            (format!("[[issuers]]\n{}", whole.replace("https://a/", "http://login/")), "identity.issuers.#1.jwks_url"),
            (
                format!("[[issuers]]\n{}", whole.replace("https://a/", "http://10.1.2.3/")),
                "identity.issuers.#1.jwks_url",
            ),
            (format!("[[issuers]]\n{}", whole.replace("EdDSA", "HS256")), "identity.issuers.#1.algorithms"),
            (format!("[[issuers]]\n{}", whole.replace("EdDSA", "none")), "identity.issuers.#1.algorithms"),
            (format!("[[issuers]]\n{}", whole.replace("\"b\"", "\"\"")), "identity.issuers.#1.audience"),
            (format!("[[issuers]]\n{whole}roles = [\"root\"]"), "identity.issuers.#1.roles"),
            (format!("[[issuers]]\n{whole}max_stale = \"10s\""), "identity.issuers.#1.max_stale"),
            (format!("[[issuers]]\n{whole}ca_file = \"/no/such/file\""), "identity.issuers.#1.ca_file"),
        ] {
            let (_, found) = check(&text);
            assert!(found.iter().any(|at| at == key), "{text}: {found:?}");
        }
        for (url, more) in [("http://127.0.0.1:80/", ""), ("http://[::1]/", ""), ("http://login/", "insecure = true")] {
            let text = format!("[[issuers]]\n{}{more}", whole.replace("https://a/", url));
            assert_eq!(check(&text).1, Vec::<String>::new(), "{text}");
        }
        assert!(toml::from_str::<Identity>("isuer = \"a\"").is_err());
    }
}
