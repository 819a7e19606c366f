//! By which a request may send events for a site: the write key that it shows, and where its page is from.

use actix_web::HttpRequest;
use actix_web::http::header::{self, HeaderMap, HeaderValue};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::event::access::{Claim, Origin, Shown, WriteKey};
use crate::event::decode::unescape;
use crate::event::intake::Rules;

/// The parameter and the header of the key.
const PARAMETER: &str = "write_key";
const HEADER: &str = "x-write-key";
/// Longest `Authorization: Basic` that is looked into: a key, and room for a password that nobody looks at.
const MAX_BASIC: usize = 512;

/// What a request shows. Where no site asks for anything, nobody looks.
pub fn claim(req: &HttpRequest, rules: &Rules) -> Claim {
    if !rules.sites.guarded() {
        return Claim::default();
    }
    Claim { key: key(req.headers(), req.query_string()), origin: origin(req.headers()) }
}

/// The key of header and parameter, which must be the same where there are both. The user of `Authorization: Basic` is one
/// only where there is neither: browsers send that by themselves to whoever asked for it once.
fn key(headers: &HeaderMap, query: &str) -> Shown<WriteKey> {
    let mut shown = Shown::Nothing;
    for value in headers.get_all(HEADER) {
        shown = shown.and(value.to_str().ok().and_then(WriteKey::parse));
    }
    for pair in query.split('&') {
        if let Some((PARAMETER, value)) = pair.split_once('=')
            && !value.is_empty()
        {
            shown = shown.and(WriteKey::parse(&unescape(value)));
        }
    }
    if shown == Shown::Nothing {
        let mut basic = headers.get_all(header::AUTHORIZATION).filter_map(basic_user);
        shown = basic.try_fold(shown, |shown, user| Some(shown.and(WriteKey::parse(&user?)))).unwrap_or(Shown::Unclear);
    }
    shown
}

/// The user of `Basic`, if it is that; inside, if it can be read.
fn basic_user(value: &HeaderValue) -> Option<Option<String>> {
    let text = value.to_str().ok()?;
    let (scheme, encoded) = text.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let encoded = encoded.trim();
    let decoded = (encoded.len() <= MAX_BASIC).then(|| STANDARD.decode(encoded).ok()).flatten();
    let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
    Some(text.map(|text| text.split(':').next().unwrap_or_default().to_owned()))
}

/// `Origin`, or that of `Referer` where there is none, as with images.
fn origin(headers: &HeaderMap) -> Shown<Origin> {
    let mut shown = Shown::Nothing;
    for value in headers.get_all(header::ORIGIN) {
        shown = shown.and(value.to_str().ok().and_then(Origin::parse));
    }
    if shown == Shown::Nothing {
        for value in headers.get_all(header::REFERER) {
            shown = shown.and(value.to_str().ok().and_then(Origin::of_url));
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::test::TestRequest;

    fn shown(headers: &[(&str, &str)], query: &str) -> Claim {
        let mut request = TestRequest::get().uri(&format!("/?{query}"));
        for header in headers {
            request = request.append_header(*header);
        }
        let request = request.to_http_request();
        Claim { key: key(request.headers(), request.query_string()), origin: origin(request.headers()) }
    }

    fn is_key(text: &str) -> Shown<WriteKey> {
        Shown::This(WriteKey::parse(text).unwrap())
    }

    fn is_origin(text: &str) -> Shown<Origin> {
        Shown::This(Origin::parse(text).unwrap())
    }

    #[test]
    fn keys_come_in_three_ways() {
        let key = |headers: &[(&str, &str)], query: &str| shown(headers, query).key;
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        assert_eq!(key(&[], ""), Shown::Nothing);
        assert_eq!(key(&[], "write_key=&url=/a"), Shown::Nothing);
        assert_eq!(key(&[("x-write-key", "key-of-ours")], ""), is_key("key-of-ours"));
        assert_eq!(key(&[], "url=%2Fa&write_key=key%2Dof-ours"), is_key("key-of-ours"));
        assert_eq!(key(&[("authorization", &basic("key-of-ours:"))], ""), is_key("key-of-ours"));
        assert_eq!(
            key(&[("authorization", &basic("key-of-ours:x").replace("Basic", "bASIC"))], ""),
            is_key("key-of-ours")
        );
        assert_eq!(key(&[("x-write-key", "key-of-ours")], "write_key=key-of-ours"), is_key("key-of-ours"));
        assert_eq!(
            key(&[("x-write-key", "key-of-ours"), ("x-write-key", "key-of-ours")], ""),
            is_key("key-of-ours"),
            "twice the same is one"
        );
        // What a browser sends for another's sake is no key beside one.
        assert_eq!(key(&[("authorization", &basic("staging:pw"))], "write_key=key-of-ours"), is_key("key-of-ours"));
        assert_eq!(key(&[("authorization", "Bearer key-of-ours")], ""), Shown::Nothing);
    }

    #[test]
    fn two_keys_are_none() {
        let key = |headers: &[(&str, &str)], query: &str| shown(headers, query).key;
        let giant = "k".repeat(100_000);
        let basic = format!("Basic {}", STANDARD.encode(&giant));
        assert_eq!(key(&[("x-write-key", "key-of-ours"), ("x-write-key", "key-of-others")], ""), Shown::Unclear);
        assert_eq!(key(&[("x-write-key", "key-of-ours")], "write_key=key-of-others"), Shown::Unclear);
        assert_eq!(key(&[], "write_key=key-of-ours&write_key=key-of-others"), Shown::Unclear);
        assert_eq!(key(&[("x-write-key", "key-of-ours, key-of-ours")], ""), Shown::Unclear, "joined by a proxy");
        assert_eq!(key(&[("x-write-key", &giant)], ""), Shown::Unclear);
        assert_eq!(key(&[("authorization", &basic)], ""), Shown::Unclear);
        for broken in ["Basic !", "Basic ", "basic a2V5LW9mLW91cnM", "Basic 9999"] {
            assert_eq!(key(&[("authorization", broken)], ""), Shown::Unclear, "{broken}");
        }
    }

    #[test]
    fn a_page_says_where_it_is_from() {
        let origin = |headers: &[(&str, &str)]| shown(headers, "").origin;
        let (own, other) = ("https://shop.example", "https://evil.example");
        assert_eq!(origin(&[]), Shown::Nothing);
        assert_eq!(origin(&[("origin", own)]), is_origin(own));
        assert_eq!(origin(&[("origin", "HTTPS://SHOP.example:443")]), is_origin(own));
        assert_eq!(origin(&[("origin", own), ("referer", "https://evil.example/x")]), is_origin(own));
        assert_eq!(origin(&[("origin", "null"), ("referer", "https://shop.example/x")]), Shown::Unclear);
        assert_eq!(origin(&[("origin", own), ("origin", other)]), Shown::Unclear);
        assert_eq!(origin(&[("referer", "https://shop.example/x?y")]), is_origin(own));
        assert_eq!(origin(&[("referer", "about:client")]), Shown::Unclear);
    }

    #[test]
    fn nobody_looks_where_no_site_asks() {
        let request = TestRequest::get().insert_header((HEADER, "key-of-ours")).to_http_request();
        assert_eq!(claim(&request, &Rules::default()), Claim::default());
    }
}
