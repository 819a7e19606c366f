//! What a URL counts as: the page of a view, and the site a visitor came from.

use std::borrow::Cow;

use super::agent::cut;

/// Longer page names and referrers are cut, so that one client cannot fill the store.
const LONGEST: usize = 512;

/// Query parameters that name a campaign or a click and never a page.
const TRACKING: &[&str] = &[
    "fbclid", "gclid", "gbraid", "wbraid", "msclkid", "twclid", "dclid", "yclid", "igshid", "mc_cid", "mc_eid", "_ga",
];

/// The page that `url` is a view of: without its fragment and without tracking parameters.
pub fn page_of(url: &str) -> Cow<'_, str> {
    let bytes = url.as_bytes();
    let Some(special) = memchr::memchr2(b'?', b'#', bytes) else { return Cow::Borrowed(cut(url, LONGEST)) };
    let end = memchr::memchr(b'#', bytes).unwrap_or(url.len());
    if special == end {
        return Cow::Borrowed(cut(&url[..end], LONGEST));
    }
    let (path, query) = (&url[..special], &url[special + 1..end]);
    if !query.is_empty() && !query.split('&').any(is_tracking) {
        return Cow::Borrowed(cut(&url[..end], LONGEST));
    }
    let mut page = String::with_capacity(end);
    page.push_str(path);
    for (i, pair) in query.split('&').filter(|pair| !pair.is_empty() && !is_tracking(pair)).enumerate() {
        page.push(if i == 0 { '?' } else { '&' });
        page.push_str(pair);
    }
    page.truncate(page.floor_char_boundary(LONGEST));
    Cow::Owned(page)
}

fn is_tracking(pair: &str) -> bool {
    let name = pair.split_once('=').map_or(pair, |(name, _)| name);
    name.starts_with("utm_") || TRACKING.contains(&name)
}

/// The host that sent the visitor, lower case and without `www.`; `None` when it is the page's own or there is none.
pub fn referrer_of<'a>(referrer: &'a str, url: Option<&str>) -> Option<Cow<'a, str>> {
    let from = bare(host_of(referrer)?);
    if from.is_empty() || url.and_then(host_of).map(bare).is_some_and(|own| own.eq_ignore_ascii_case(from)) {
        return None;
    }
    let from = cut(from, LONGEST);
    Some(if from.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(from.to_ascii_lowercase())
    } else {
        Cow::Borrowed(from)
    })
}

fn host_of(url: &str) -> Option<&str> {
    let rest = &url[url.find("://")? + 3..];
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if host.starts_with('[') {
        return Some(&host[..host.find(']').map_or(host.len(), |end| end + 1)]);
    }
    Some(host.split_once(':').map_or(host, |(host, _)| host))
}

fn bare(host: &str) -> &str {
    match host.get(..4) {
        Some(www) if www.eq_ignore_ascii_case("www.") => &host[4..],
        _ => host,
    }
}

/// Whether `url` can name a page: an absolute URL, or a path.
pub fn is_url(url: &str) -> bool {
    if url.starts_with('/') {
        return true;
    }
    let Some((scheme, rest)) = url.split_once(':') else { return false };
    let scheme_ok = scheme.as_bytes().first().is_some_and(u8::is_ascii_alphabetic)
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
    scheme_ok && !rest.is_empty() && !matches!(scheme.to_ascii_lowercase().as_str(), "data" | "javascript" | "blob")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_its_url_without_what_only_tracks() {
        let cases = [
            ("https://shop.example/a", "https://shop.example/a"),
            ("https://shop.example/a#top", "https://shop.example/a"),
            ("https://shop.example/a?id=3&utm_source=x#top", "https://shop.example/a?id=3"),
            ("https://shop.example/a?utm_source=x", "https://shop.example/a"),
            ("https://shop.example/a?", "https://shop.example/a"),
            ("/a?q=1&&gclid=2&r=3", "/a?q=1&r=3"),
            ("/a?q=1&r=3", "/a?q=1&r=3"),
        ];
        for (url, page) in cases {
            assert_eq!(page_of(url), page, "{url}");
        }
        assert!(page_of(&format!("/{}", "é".repeat(600))).len() <= LONGEST);
    }

    #[test]
    fn a_referrer_is_a_foreign_host() {
        let url = Some("https://www.shop.example/a");
        assert_eq!(referrer_of("https://shop.example/b", url), None);
        assert_eq!(referrer_of("https://News.Example:8080/x?y", url).as_deref(), Some("news.example"));
        assert_eq!(referrer_of("https://user@www.news.example", url).as_deref(), Some("news.example"));
        assert_eq!(referrer_of("https://[::1]:80/", None).as_deref(), Some("[::1]"));
        assert_eq!(referrer_of("", url), None);
        assert_eq!(referrer_of("about:blank", url), None);
    }

    #[test]
    fn urls_are_absolute_or_paths() {
        for good in ["/", "https://a", "app://localhost/x", "//cdn.example/x"] {
            assert!(is_url(good), "{good}");
        }
        for bad in ["", "a/b", "javascript:alert(1)", "data:text/html,x", "https:", "1x://a"] {
            assert!(!is_url(bad), "{bad}");
        }
    }
}
