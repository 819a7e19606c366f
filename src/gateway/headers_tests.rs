use std::net::IpAddr;

use super::*;

fn map(lines: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in lines {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        map.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    map
}

fn all<'a>(map: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    map.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
}

struct Way {
    chain: Chain,
    request_id: HeaderValue,
    trace: TraceContext,
}

impl Way {
    fn new(proxied: bool) -> Self {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let chain = match proxied {
            true => Chain { client: ip("1.1.1.1"), proxies: vec![ip("10.0.0.1")] },
            false => Chain { client: ip("2001:db8::1"), proxies: Vec::new() },
        };
        let trace = TraceContext { trace_id: 0xABC, span_id: 7, sampled: true, state: None };
        Self { chain, request_id: HeaderValue::from_static("id-1"), trace }
    }

    fn passage(&self) -> Passage<'_> {
        Passage {
            version: Version::HTTP_11,
            upgrade: false,
            to_http2: false,
            chain: &self.chain,
            https: true,
            authority: Some("shop.example:8443"),
            request_id: &self.request_id,
            trace: &self.trace,
            unix_seconds: 1_700_000_000,
        }
    }

    fn send(&self, lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = map(lines);
        to_upstream(&mut headers, &self.passage());
        headers
    }
}

/// What every request has, whatever it came with.
fn assert_ours(headers: &HeaderMap, chain: &str) {
    for (name, value) in [
        ("x-request-id", "id-1"),
        ("traceparent", "00-00000000000000000000000000000abc-0000000000000007-01"),
        ("x-trace-id", "00000000000000000000000000000abc"),
        ("x-gateway-time", "1700000000"),
        ("x-forwarded-for", chain),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "shop.example:8443"),
        ("x-forwarded-port", "8443"),
    ] {
        assert_eq!(all(headers, name), [value], "{name}");
    }
    assert_eq!(headers.keys().filter(|name| is_owned(name.as_str())).count(), 8, "{headers:?}");
}

/// Ways to write a name.
fn spellings(name: &str) -> Vec<String> {
    let dashes: Vec<usize> = name.match_indices('-').map(|(at, _)| at).collect();
    let mut found = vec![name.to_owned(), name.to_ascii_uppercase()];
    for mask in 1..1_u32 << dashes.len() {
        let mut bytes = name.as_bytes().to_vec();
        for (bit, at) in dashes.iter().enumerate() {
            if mask & 1 << bit != 0 {
                bytes[*at] = b'_';
            }
        }
        let spelled = String::from_utf8(bytes).unwrap();
        found.extend([spelled.to_ascii_uppercase(), spelled]);
    }
    found
}

#[test]
fn nothing_of_ours_is_injected_dropped_or_doubled() {
    let way = Way::new(false);
    let mut count = 0;
    for name in [
        "X-Internal-Token",
        "X-Internal-User-Id",
        "X-Trace-ID",
        "X-Gateway-Time",
        "X-Real-IP",
        "X-Request-ID",
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "X-Forwarded-Host",
        "X-Forwarded-Port",
        "X-Forwarded-Prefix",
        "X-Forwarded-Client-Cert",
        "Forwarded",
        "Traceparent",
        "Tracestate",
    ] {
        for spelling in spellings(name) {
            // Once, twice, named in Connection, and only named there.
            for lines in [
                vec![(spelling.as_str(), "forged")],
                vec![(spelling.as_str(), "forged"), (spelling.as_str(), "again"), (name, "third")],
                vec![(spelling.as_str(), "forged"), ("connection", spelling.as_str())],
                vec![("connection", "close"), ("connection", spelling.as_str())],
            ] {
                let headers = way.send(&lines);
                assert_ours(&headers, "2001:db8::1");
                assert!(!headers.values().any(|value| value == "forged" || value == "again"), "{lines:?}");
                let mut trailer = map(&lines);
                trailers(&mut trailer);
                assert!(trailer.is_empty(), "{lines:?}");
                count += 1;
            }
        }
    }
    assert!(count >= 200, "{count}");
}

#[test]
fn what_belongs_to_a_connection_ends_with_it() {
    let lines = [
        ("connection", "keep-alive, X-Mine"),
        ("connection", "x-other,, "),
        ("x-mine", "1"),
        ("x-other", "2"),
        ("x-third", "3"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("te", "gzip"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("http2-settings", "AAA"),
        ("proxy-authenticate", "Basic"),
        ("proxy-authorization", "Basic AAA"),
        ("accept", "*/*"),
    ];
    let way = Way::new(false);
    let request = way.send(&lines);
    assert_ours(&request, "2001:db8::1");
    let mut answer = map(&lines);
    to_client(&mut answer, false, &way.request_id);
    for headers in [&request, &answer] {
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).filter(|name| !is_owned(name)).collect();
        left.retain(|name| *name != "via");
        left.sort_unstable();
        assert_eq!(left, ["accept", "x-third"]);
    }
    assert_eq!(all(&answer, "x-request-id"), ["id-1"]);
}

#[test]
fn connection_takes_nothing_away_that_others_rely_on() {
    let lines = [
        (
            "connection",
            "host, Content-Length, authorization, cookie, cache-control, x-request-id, x-trace-id, content-type",
        ),
        ("host", "shop.example"),
        ("content-length", "5"),
        ("authorization", "Bearer a"),
        ("cookie", "a=b"),
        ("cache-control", "no-cache"),
        ("content-type", "text/plain"),
    ];
    let headers = Way::new(false).send(&lines);
    for (name, value) in &lines[1..] {
        assert_eq!(all(&headers, name), [*value]);
    }
    assert!(!headers.contains_key("connection"));
    assert_ours(&headers, "2001:db8::1");
}

#[test]
fn other_spellings_of_names_that_count_do_not_pass() {
    let way = Way::new(false);
    for name in
        ["content_length", "transfer_encoding", "content_type", "set_cookie", "Proxy_Authorization", "keep_alive"]
    {
        assert!(!way.send(&[(name, "1")]).contains_key(name), "{name}");
    }
    let headers = way.send(&[("x_mine", "1"), ("x-mine", "2"), ("x-internal", "3"), ("x-forwarded", "4")]);
    assert_eq!(headers.len(), 8 + 4 + 1, "those of others do: {headers:?}");
}

#[test]
fn a_trusted_proxy_knows_how_the_client_came() {
    let proto = |proxied: bool, lines: &[(&str, &str)]| {
        let way = Way::new(proxied);
        let mut headers = map(lines);
        to_upstream(&mut headers, &Passage { https: false, authority: Some("shop.example"), ..way.passage() });
        let port = all(&headers, "x-forwarded-port")[0].to_owned();
        format!("{} {port} {}", all(&headers, "x-forwarded-proto")[0], all(&headers, "x-forwarded-for")[0])
    };
    let https = ("x-forwarded-proto", "https");
    assert_eq!(proto(true, &[https]), "https 443 1.1.1.1, 10.0.0.1");
    assert_eq!(proto(true, &[https, ("connection", "x-forwarded-proto")]), "https 443 1.1.1.1, 10.0.0.1");
    assert_eq!(proto(true, &[]), "http 80 1.1.1.1, 10.0.0.1");
    assert_eq!(proto(true, &[("x-forwarded-proto", "https\", x")]), "http 80 1.1.1.1, 10.0.0.1");
    assert_eq!(proto(true, &[https, https]), "http 80 1.1.1.1, 10.0.0.1");
    assert_eq!(proto(false, &[https]), "http 80 2001:db8::1");
}

#[test]
fn trailers_are_asked_for_and_carry_only_what_they_may() {
    let way = Way::new(false);
    let headers = way.send(&[("te", "gzip;q=0.5, Trailers"), ("connection", "te")]);
    assert_eq!((all(&headers, "te"), all(&headers, "connection")), (vec!["trailers"], vec!["te"]));
    let mut headers = map(&[("te", "trailers")]);
    to_upstream(&mut headers, &Passage { to_http2: true, ..way.passage() });
    assert_eq!((all(&headers, "te").len(), all(&headers, "connection").len()), (1, 0));
    assert!(!way.send(&[("te", "trailersx")]).contains_key("te"));
    let mut kept = map(&[
        ("grpc-status", "0"),
        ("x-checksum", "1"),
        ("content-length", "9"),
        ("Transfer-Encoding", "chunked"),
        ("host", "a"),
        ("Host_", "a"),
        ("authorization", "a"),
        ("Set-Cookie", "a"),
        ("SET_COOKIE", "a"),
        ("content_length", "9"),
        ("x-internal-token", "a"),
        ("trailer", "a"),
    ]);
    trailers(&mut kept);
    let mut names: Vec<&str> = kept.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["grpc-status", "host_", "x-checksum"]);
}

#[test]
fn only_one_real_upgrade_is_passed_on() {
    let asks = |method: Method, version: Version, lines: &[(&str, &str)]| upgrade(&method, version, &map(lines));
    let socket = [("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")];
    assert!(asks(Method::GET, Version::HTTP_11, &socket));
    assert!(!asks(Method::POST, Version::HTTP_11, &socket));
    assert!(!asks(Method::GET, Version::HTTP_10, &socket));
    assert!(!asks(Method::GET, Version::HTTP_2, &socket));
    assert!(!asks(Method::GET, Version::HTTP_11, &socket[1..]));
    for protocol in ["h2c", "H2C", "HTTP/2.0", "TLS/1.2", "websocket, h2c", "", "web socket"] {
        assert!(!asks(Method::GET, Version::HTTP_11, &[socket[0], ("upgrade", protocol)]), "{protocol}");
    }
    assert!(!asks(Method::GET, Version::HTTP_11, &[socket[0], socket[1], ("upgrade", "h2c")]));
    let way = Way::new(false);
    let mut headers = map(&[socket[0], socket[1], ("sec-websocket-key", "k")]);
    to_upstream(&mut headers, &Passage { upgrade: true, ..way.passage() });
    assert_eq!((all(&headers, "upgrade"), all(&headers, "connection")), (vec!["WebSocket"], vec!["upgrade"]));
    assert!(headers.contains_key("sec-websocket-key"));
    let mut answer = map(&socket);
    to_client(&mut answer, true, &way.request_id);
    assert_eq!((all(&answer, "upgrade"), all(&answer, "connection")), (vec!["WebSocket"], vec!["upgrade"]));
    let mut answer = map(&socket);
    to_client(&mut answer, false, &way.request_id);
    assert!(!answer.contains_key("upgrade") && !answer.contains_key("connection"));
}

#[test]
fn via_says_through_whom_and_how() {
    let way = Way::new(false);
    assert_eq!(
        all(&way.send(&[("via", "1.0 fred"), ("via", "1.1 p.example")]), "via"),
        ["1.0 fred, 1.1 p.example, 1.1 tidegate"]
    );
    let mut headers = HeaderMap::new();
    to_upstream(&mut headers, &Passage { version: Version::HTTP_2, ..way.passage() });
    assert_eq!(all(&headers, "via"), ["2.0 tidegate"]);
}

#[test]
fn what_is_for_the_inside_does_not_leave_in_answers() {
    let mut answer =
        map(&[("x-internal-node", "7"), ("X_Internal_Node", "7"), ("x-request-id", "a"), ("x-trace-id", "b")]);
    to_client(&mut answer, false, &HeaderValue::from_static("id-1"));
    assert_eq!(answer, map(&[("x-trace-id", "b"), ("x-request-id", "id-1")]));
}

#[test]
fn cookies_are_one_line() {
    let joined = |lines: &[&'static str]| {
        let lines = lines.iter().map(|line| (header::COOKIE, HeaderValue::from_static(line)));
        let mut headers: HeaderMap = lines.collect();
        join_cookies(&mut headers);
        headers.get_all(header::COOKIE).iter().map(|line| line.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert!(joined(&[]).is_empty());
    assert_eq!(joined(&["a=1; b=2"]), ["a=1; b=2"]);
    assert_eq!(joined(&["a=1", "b=2", "c=3"]), ["a=1; b=2; c=3"]);
}

#[test]
fn an_answer_has_the_length_that_it_was_read_with() {
    let readable = |lines: &[&'static str]| {
        let lines = lines.iter().map(|line| (header::TRANSFER_ENCODING, HeaderValue::from_static(line)));
        is_readable(&lines.collect())
    };
    assert!(readable(&[]) && readable(&["chunked"]) && readable(&["Chunked"]));
    assert!(!readable(&["gzip"]) && !readable(&["gzip, chunked"]) && !readable(&["gzip", "chunked"]));
    let mut headers = HeaderMap::new();
    headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("5"));
    to_client(&mut headers, false, &HeaderValue::from_static("r"));
    assert!(!headers.contains_key(header::CONTENT_LENGTH) && !headers.contains_key(header::TRANSFER_ENCODING));
}
