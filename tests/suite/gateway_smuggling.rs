//! Requests that two readers could read in two ways, sent through the gateway to a real nginx: it must see as many requests as
//! the client gets answers, each with the gateway's own headers and nobody else's.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use crate::backend::{Backend, Seen};
use crate::services::Service;
use crate::support::TestApp;
use crate::wire::{PATIENCE, Wire, beside};

/// The outer server reads every request to its end before it hands it on, and logs what it read.
const NGINX: &str = r#"
underscores_in_headers on;
ignore_invalid_headers off;
keepalive_requests 100000;
log_format seen escape=json '{"request":"$request_method $request_uri","read":"$upstream_status","status":"$status","host":"$host",'
    '"body":"$request_body","internal":"$http_x_internal_token$http_x_internal_consumer$http_x_internal_admin",'
    '"for":"$http_x_forwarded_for","proto":"$http_x_forwarded_proto","forwarded":"$http_forwarded$http_x_real_ip",'
    '"asked":"$http_x_forwarded_host","id":"$http_x_request_id","trace":"$http_x_trace_id","parent":"$http_traceparent",'
    '"via":"$http_via","connection":"$http_connection","expect":"$http_expect","upgrade":"$http_upgrade"}';
server {
    listen 127.0.0.1:@PORT@;
    access_log @DIR@/seen.log seen;
    client_body_buffer_size 64k;
    location / { proxy_pass http://127.0.0.1:@PORT2@; }
}
server {
    listen 127.0.0.1:@PORT2@;
    location / { return 200 "$request_method $request_uri"; }
}
"#;

/// A request that must never be seen where it stands in another one's body.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: t\r\n\r\n";

struct Case {
    what: &'static str,
    sent: Vec<u8>,
    /// The answers in order: what nginx says it was asked, or the gateway's refusal.
    answers: Vec<Expected>,
}

#[derive(Clone, Debug, PartialEq)]
enum Expected {
    Passed(&'static str),
    /// Framed badly: the connection ends.
    Refused,
    /// Framed well, and refused all the same, with this status.
    Answered(u16),
}

fn case(what: &'static str, sent: impl Into<Vec<u8>>, answers: &[Expected]) -> Case {
    Case { what, sent: sent.into(), answers: answers.to_vec() }
}

fn passes(what: &'static str, sent: impl Into<Vec<u8>>, asked: &[&'static str]) -> Case {
    Case { what, sent: sent.into(), answers: asked.iter().map(|asked| Expected::Passed(asked)).collect() }
}

fn refused(what: &'static str, sent: impl Into<Vec<u8>>) -> Case {
    case(what, sent, &[Expected::Refused])
}

/// 400, and the connection goes on.
fn answered(what: &'static str, sent: impl Into<Vec<u8>>) -> Case {
    case(what, sent, &[Expected::Answered(400)])
}

/// A `POST /a` with these header lines and what follows them.
fn post(lines: &str, rest: &str) -> String {
    format!("POST /a HTTP/1.1\r\nHost: t\r\n{lines}\r\n\r\n{rest}")
}

/// A `POST /a` in chunks that are written like this.
fn chunks(body: &str) -> String {
    post("Transfer-Encoding: chunked", body)
}

/// A `GET /a` with these header lines.
fn get(lines: &str) -> String {
    format!("GET /a HTTP/1.1\r\nHost: t\r\n{lines}\r\n\r\n")
}

fn lengths_and_encodings() -> Vec<Case> {
    let smuggle = |lines: &str| post(lines, &format!("0\r\n\r\n{HIDDEN}"));
    vec![
        refused("CL.TE", smuggle("Content-Length: 38\r\nTransfer-Encoding: chunked")),
        refused("TE.CL", smuggle("Transfer-Encoding: chunked\r\nContent-Length: 5")),
        refused("CL.TE with length 0", smuggle("Content-Length: 0\r\nTransfer-Encoding: chunked")),
        refused("two equal lengths", post("Content-Length: 3\r\nContent-Length: 3", "abc")),
        refused("two lengths", post("Content-Length: 0\r\nContent-Length: 33", HIDDEN)),
        refused("two lengths, apart", post("Content-Length: 33\r\nX-A: b\r\ncontent-length: 0", HIDDEN)),
        refused("a list of lengths", post("Content-Length: 33, 33", HIDDEN)),
        refused("a length with a plus", post("Content-Length: +33", HIDDEN)),
        refused("a length with a minus", post("Content-Length: -33", HIDDEN)),
        refused("a length in hex", post("Content-Length: 0x21", HIDDEN)),
        refused("a length with an underscore", post("Content-Length: 3_3", HIDDEN)),
        refused("a length with a fraction", post("Content-Length: 33.0", HIDDEN)),
        refused("a length beyond 64 bits", post("Content-Length: 18446744073709551650", HIDDEN)),
        refused("no length", post("Content-Length:", HIDDEN)),
        refused("a length with white space before the colon", post("Content-Length : 33", HIDDEN)),
        refused("a length with a tab before the colon", post("Content-Length\t: 33", HIDDEN)),
        refused("a length in disguise", post("Content_Length: 33", HIDDEN)),
        refused("an encoding in disguise", smuggle("Transfer_Encoding: chunked")),
        refused("half a disguise beside a length", smuggle("Content-Length: 38\r\nTransfer_Encoding: chunked")),
        refused("two encodings", smuggle("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity")),
        refused("chunked twice", smuggle("Transfer-Encoding: chunked, chunked")),
        refused("chunked before another", smuggle("Transfer-Encoding: chunked, identity")),
        refused("chunked behind another", smuggle("Transfer-Encoding: gzip, chunked")),
        refused("nearly chunked", smuggle("Transfer-Encoding: xchunked")),
        refused("chunked in quotes", smuggle("Transfer-Encoding: \"chunked\"")),
        refused("chunked with a parameter", smuggle("Transfer-Encoding: chunked;q=1")),
        refused("chunked behind a vertical tab", smuggle("Transfer-Encoding: \u{b}chunked")),
        refused("no encoding", smuggle("Transfer-Encoding:")),
        refused("white space before the colon", smuggle("Transfer-Encoding : chunked")),
        refused("an encoding on a folded line", smuggle("Transfer-Encoding:\r\n chunked")),
        refused("an encoding hidden in a folded line", smuggle("X-A: b\r\n Transfer-Encoding: chunked")),
        refused("an encoding behind a bare LF", smuggle("X-A: b\nTransfer-Encoding: chunked")),
        refused("an encoding behind a bare CR", smuggle("X-A: b\rTransfer-Encoding: chunked")),
        refused(
            "an encoding in HTTP/1.0",
            b"POST /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".as_slice(),
        ),
        passes("white space around a length", post("Content-Length: \t3 \t", "abc"), &["POST /a"]),
        passes("leading zeros are digits", post("Content-Length: 0003", "abc"), &["POST /a"]),
        passes("a body that looks like a request", post("Content-Length: 33", HIDDEN), &["POST /a"]),
        passes("a GET with such a body", get("Content-Length: 33") + HIDDEN, &["GET /a"]),
        passes("an encoding in capitals", post("TRANSFER-ENCODING: CHUNKED", "3\r\nabc\r\n0\r\n\r\n"), &["POST /a"]),
    ]
}

fn chunked_bodies() -> Vec<Case> {
    let hidden = format!("21\r\n{HIDDEN}\r\n0\r\n\r\n");
    vec![
        passes("a chunk that looks like a request", chunks(&hidden), &["POST /a"]),
        passes("sizes in either case", chunks("a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n"), &["POST /a"]),
        passes("zeros before a size", chunks("0003\r\nabc\r\n000\r\n\r\n"), &["POST /a"]),
        passes("extensions", chunks("3;a=b;c=\"d;e\"\r\nabc\r\n0;f\r\n\r\n"), &["POST /a"]),
        passes("trailers", chunks("3\r\nabc\r\n0\r\nX-Sum: 1\r\nX-Internal-Token: 1\r\n\r\n"), &["POST /a"]),
        passes("what follows the last chunk", chunks("0\r\n\r\n") + &get("X-A: b"), &["POST /a", "GET /a"]),
        refused("a size with 0x", chunks(&hidden.replace("21", "0x21"))),
        refused("a size with a plus", chunks("+3\r\nabc\r\n0\r\n\r\n")),
        refused("a size with a minus", chunks("-3\r\nabc\r\n0\r\n\r\n")),
        refused("a size with an underscore", chunks("0_3\r\nabc\r\n0\r\n\r\n")),
        refused("a size with white space before it", chunks(" 3\r\nabc\r\n0\r\n\r\n")),
        refused("a size with white space behind it", chunks("3 \r\nabc\r\n0\r\n\r\n")),
        refused("a size beyond 64 bits", chunks("10000000000000003\r\nabc\r\n0\r\n\r\n")),
        refused("no size", chunks("\r\nabc\r\n0\r\n\r\n")),
        refused("a size with a bare LF", chunks("3\nabc\r\n0\r\n\r\n")),
        refused("an extension that ends in LF", chunks("3;a\nabc\r\n0\r\n\r\n")),
        refused("an extension with a bare CR", chunks("3;a\rb\r\nabc\r\n0\r\n\r\n")),
        refused("a chunk that ends in LF", chunks("3\r\nabc\n0\r\n\r\n")),
        refused("a chunk longer than it says", chunks("3\r\nabcd\r\n0\r\n\r\n")),
        refused("a length in the trailers", chunks("0\r\nContent-Length: 33\r\n\r\n") + HIDDEN),
        refused("an encoding in the trailers", chunks("0\r\nTransfer-Encoding: chunked\r\n\r\n") + HIDDEN),
        refused("a host in the trailers", chunks("0\r\nHost: u\r\n\r\n")),
        refused("a folded trailer", chunks("0\r\nX-A: b\r\n c\r\n\r\n")),
        refused("a trailer that ends in LF", chunks("0\r\nX-A: b\n\r\n")),
    ]
}

fn lines_and_targets() -> Vec<Case> {
    vec![
        refused("lines that end in LF", "GET /a HTTP/1.1\nHost: t\n\n"),
        refused("one line that ends in LF", "GET /a HTTP/1.1\r\nHost: t\nX-A: b\r\n\r\n"),
        refused("a head that ends in LF", "GET /a HTTP/1.1\r\nHost: t\r\n\n"),
        refused("NUL in a value", get("X-A: b\0c")),
        refused("NUL in a name", get("X-\0A: b")),
        refused("NUL in the target", "GET /a\0b HTTP/1.1\r\nHost: t\r\n\r\n"),
        refused("a name with white space", get("X A: b")),
        refused("no name", get(": b")),
        refused("no colon", get("X-A")),
        refused("a line before the headers that is folded", "GET /a HTTP/1.1\r\n X-A: b\r\nHost: t\r\n\r\n"),
        refused("no Host", "GET /a HTTP/1.1\r\n\r\n"),
        refused("two Hosts", get("Host: u")),
        refused("two equal Hosts", get("Host: t")),
        refused("a Host on a folded line", "GET /a HTTP/1.1\r\nHost:\r\n t\r\n\r\n"),
        answered("a Host with a user", "GET /a HTTP/1.1\r\nHost: admin@t\r\n\r\n"),
        answered("a Host with a path", "GET /a HTTP/1.1\r\nHost: t/b\r\n\r\n"),
        answered("a list of Hosts", "GET /a HTTP/1.1\r\nHost: t, u\r\n\r\n"),
        answered("a Host with a port that is none", "GET /a HTTP/1.1\r\nHost: t:80x\r\n\r\n"),
        answered("an authority with a user", "GET http://admin@t/a HTTP/1.1\r\nHost: t\r\n\r\n"),
        refused("two spaces in the request line", "GET  /a HTTP/1.1\r\nHost: t\r\n\r\n"),
        refused("a tab in the request line", "GET\t/a\tHTTP/1.1\r\nHost: t\r\n\r\n"),
        refused("a space in the target", "GET /a HTTP/1.1 HTTP/1.1\r\nHost: t\r\n\r\n"),
        refused("HTTP/0.9", "GET /a\r\n\r\n"),
        refused("HTTP/1.2", "GET /a HTTP/1.2\r\nHost: t\r\n\r\n"),
        refused("HTTP/11.1", "GET /a HTTP/11.1\r\nHost: t\r\n\r\n"),
        refused("http/1.1", "GET /a http/1.1\r\nHost: t\r\n\r\n"),
        refused("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        refused("a greeting of TLS", b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03\r\n".as_slice()),
        refused("a fragment", "GET /a#b HTTP/1.1\r\nHost: t\r\n\r\n"),
        refused("a method that is none", "G(T /a HTTP/1.1\r\nHost: t\r\n\r\n"),
        passes("one empty line before a request", format!("\r\n{}", get("X-A: b")), &["GET /a"]),
        passes("the absolute form", "GET http://t/b HTTP/1.1\r\nHost: other\r\n\r\n", &["GET /b"]),
        passes("the absolute form without a path", "GET http://t HTTP/1.1\r\nHost: t\r\n\r\n", &["GET /"]),
        passes("a method of nobody's", "BREW /a HTTP/1.1\r\nHost: t\r\n\r\n", &["BREW /a"]),
        case(
            "CONNECT, and a request behind it",
            format!("CONNECT t:443 HTTP/1.1\r\nHost: t:443\r\n\r\n{}", get("X-A: b")),
            &[Expected::Answered(405), Expected::Passed("GET /a")],
        ),
        passes("two in a row", get("X-A: b").repeat(2), &["GET /a", "GET /a"]),
        passes(
            "a body, and a request behind it",
            post("Content-Length: 3", "abc") + &get("X-A: b"),
            &["POST /a", "GET /a"],
        ),
        case(
            "a good one, and a bad one behind it",
            get("X-A: b") + &get("Host: u"),
            &[Expected::Passed("GET /a"), Expected::Refused],
        ),
        case("a bad one, and a good one behind it", get("Host: u") + HIDDEN, &[Expected::Refused]),
        passes("an upgrade that is refused", get("Connection: upgrade\r\nUpgrade: websocket"), &["GET /a"]),
        passes(
            "a request behind such an upgrade",
            get("Connection: upgrade\r\nUpgrade: websocket") + &get("X-A: b"),
            &["GET /a", "GET /a"],
        ),
        case(
            "bytes behind such an upgrade",
            get("Connection: upgrade\r\nUpgrade: websocket") + "\u{1}\u{5}hello\r\n",
            &[Expected::Passed("GET /a"), Expected::Refused],
        ),
        passes(
            "an upgrade to HTTP/2, which is never passed on",
            get("Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__")
                + &get("X-A: b"),
            &["GET /a", "GET /a"],
        ),
        passes(
            "an upgrade with a body",
            post("Content-Length: 33\r\nConnection: upgrade\r\nUpgrade: websocket", HIDDEN).replace("POST", "GET"),
            &["GET /a"],
        ),
    ]
}

fn headers_of_ours() -> Vec<Case> {
    let names = [
        "X-Internal-Token: 1",
        "x-internal-token: 1\r\nX-INTERNAL-TOKEN: 2",
        "X_Internal_Token: 1",
        "X-Internal_Consumer: till",
        "X-Internal-Admin: 1\r\nConnection: x-internal-admin",
        "Connection: close-not, X-Forwarded-For, X-Request-ID, X-Trace-ID, traceparent, X-Internal-Consumer",
        "Connection: host",
        "Connection: content-length",
        "X-Forwarded-For: 1.2.3.4",
        "X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-For: 5.6.7.8",
        "X_Forwarded_For: 1.2.3.4",
        "X-Forwarded_For: 1.2.3.4\r\nConnection: x-forwarded-for",
        "Forwarded: for=1.2.3.4;proto=https",
        "X-Real-IP: 1.2.3.4\r\nX_Real_IP: 1.2.3.4",
        "X-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nX_Forwarded_Host: evil",
        "X-Request-ID: has spaces in it\r\nX_Request_ID: spoof",
        "X-Request-ID: a\r\nX-Request-ID: b",
        "X-Trace-ID: spoof\r\nX_Trace_ID: spoof\r\ntraceparent: rubbish",
    ];
    names.iter().map(|lines| passes(lines, get(lines), &["GET /a"])).collect()
}

/// What nginx saw, line by line as it is written.
struct Log {
    path: PathBuf,
    lines: usize,
}

impl Log {
    /// The lines up to the one that asks for this.
    fn through(&mut self, marker: &str) -> Vec<HashMap<String, String>> {
        let begun = Instant::now();
        loop {
            let text = std::fs::read_to_string(&self.path).unwrap();
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            let lines: Vec<HashMap<String, String>> =
                whole.lines().skip(self.lines).map(|line| serde_json::from_str(line).unwrap()).collect();
            if lines.iter().any(|line| line["request"] == marker) {
                self.lines += lines.len();
                return lines;
            }
            assert!(begun.elapsed() < PATIENCE, "{marker} is not in the log");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
}

/// Sends a case; the answers, and what is wrong with them.
fn run(gateway: SocketAddr, case: &Case) -> Result<(), String> {
    let mut wire = Wire::connect(gateway);
    wire.send(&case.sent);
    for expected in &case.answers {
        let Some(answer) = wire.answer() else { return Err(format!("no answer where {expected:?} was expected")) };
        let got = (answer.status, answer.text());
        match expected {
            Expected::Passed(asked) if got == (200, String::from(*asked)) => {}
            Expected::Refused if got.0 == 400 => {}
            Expected::Answered(status) if got.0 == *status => {}
            _ => return Err(format!("{got:?} where {expected:?} was expected")),
        }
    }
    if case.answers.last() != Some(&Expected::Refused) {
        // The connection goes on, and what comes next is the answer to what is asked next.
        if !wire.try_send("GET /last HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n") {
            return Err(String::from("the connection ended"));
        }
        match wire.answer() {
            Some(answer) if answer.text() == "GET /last" => {}
            other => return Err(format!("{other:?} where the last answer was expected")),
        }
    }
    if wire.more() {
        return Err(format!("{:?} instead of the end", String::from_utf8_lossy(&wire.held)));
    }
    Ok(())
}

fn check_headers(line: &HashMap<String, String>) -> Result<(), String> {
    let is_hex = |text: &str, length| text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit());
    let good = line["internal"].is_empty()
        && line["for"] == "127.0.0.1"
        && line["proto"] == "http"
        && line["forwarded"].is_empty()
        && matches!(line["asked"].as_str(), "t" | "t:443")
        && line["id"].len() == 36
        && is_hex(&line["trace"], 32)
        && line["parent"].starts_with(&format!("00-{}-", line["trace"]))
        && line["via"].ends_with(" tidegate");
    if good { Ok(()) } else { Err(format!("nginx was told {line:?}")) }
}

#[actix_web::test]
async fn a_server_behind_sees_as_many_requests_as_a_client_gets_answers() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("site");
    std::fs::write(&file, NGINX).unwrap();
    let nginx = Service::start("nginx", &[file.to_str().unwrap()]);
    let toml = format!(
        "workers = 1\n[gateway.upstreams.a]\ntargets = [\"{}\"]\nbreaker = false\nmax_fails = 0\n[[gateway.routes]]\nname = \"all\"\npath = \"/\"\nupstream = \"a\"\nretries = 0\n",
        nginx.address
    );
    let app = TestApp::with_gateway(&toml, &[]).await;
    let gateway = app.app().gateway_address().unwrap();
    let seen = nginx.file("seen.log");
    let (cases, failures) = beside(move || {
        let mut log = Log { path: seen, lines: 0 };
        let cases: Vec<Case> = [lengths_and_encodings(), chunked_bodies(), lines_and_targets(), headers_of_ours()]
            .into_iter()
            .flatten()
            .collect();
        let mut failures = Vec::new();
        let mut passed = 0;
        let mut counted = 0;
        for (number, case) in cases.iter().enumerate() {
            eprintln!("case {number}: {}", case.what);
            let mut fail = |why: String| failures.push(format!("{}: {why}", case.what));
            // What hangs is told like all else.
            let ran = std::panic::catch_unwind(|| run(gateway, case));
            if let Err(why) = ran.unwrap_or_else(|_| Err(String::from("neither an answer nor an end"))) {
                fail(why);
            }
            // On a connection of its own, over the same one to nginx: whatever was left there would be answered first.
            let marker = format!("GET /marker-{number}");
            let answer =
                Wire::connect(gateway).ask(format!("{marker} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"));
            if answer.text() != marker {
                fail(format!("the next client was answered {:?}", answer.text()));
            }
            let lines = log.through(&marker);
            // What did not come whole was not asked.
            let whole: Vec<_> = lines.iter().filter(|line| line["read"] == "200").collect();
            let expected: Vec<&str> = case
                .answers
                .iter()
                .filter_map(|expected| if let Expected::Passed(asked) = expected { Some(*asked) } else { None })
                .collect();
            let last = if case.answers.last() == Some(&Expected::Refused) { None } else { Some("GET /last") };
            let expected: Vec<&str> = expected.into_iter().chain(last).chain([marker.as_str()]).collect();
            let asked: Vec<&str> = whole.iter().map(|line| line["request"].as_str()).collect();
            if asked != expected {
                fail(format!("nginx was asked {asked:?} and not {expected:?}"));
            }
            passed += expected.len();
            counted += whole.len();
            for line in whole {
                if let Err(why) = check_headers(line) {
                    fail(why);
                }
            }
        }
        assert!(counted >= passed || !failures.is_empty());
        (cases.len(), failures)
    })
    .await;
    assert!(cases >= 50, "{cases}");
    assert!(failures.is_empty(), "{} of {cases} cases:\n{}", failures.len(), failures.join("\n"));
}

/// Each of the gateway's names, once, in whatever spelling it could be read.
fn spelled(seen: &Seen, name: &str) -> Vec<String> {
    let plain = |name: &str| name.to_ascii_lowercase().replace('_', "-");
    seen.headers.iter().filter(|(n, _)| plain(n) == name).map(|(_, value)| value.clone()).collect()
}

#[actix_web::test]
async fn what_the_gateway_says_is_there_once_and_nobody_else_says_it() {
    let backend = Backend::echo();
    let toml = format!(
        "workers = 1\n[gateway.upstreams.a]\ntargets = [\"{}\"]\n[[gateway.routes]]\nname = \"all\"\npath = \"/\"\nupstream = \"a\"\nrequest_headers = {{ x-internal-zone = \"edge\" }}\n",
        backend.address
    );
    let app = TestApp::with_gateway(&toml, &[]).await;
    let gateway = app.app().gateway_address().unwrap();
    let spoofs = [
        "X-Internal-Zone: mine",
        "x_internal_zone: mine",
        "X-Internal-Zone: mine\r\nConnection: x-internal-zone",
        "Connection: x-internal-zone, x-forwarded-for, x-forwarded-proto, x-request-id, traceparent, x-trace-id, via, host",
        "Connection: X-Forwarded-Host\r\nConnection: x-gateway-time\r\nX-Gateway-Time: 1\r\nX_Gateway_Time: 1",
        "X-Forwarded-For: 1.2.3.4\r\nX_Forwarded_For: 5.6.7.8\r\nX-Forwarded-for: 9.9.9.9",
        "X-Forwarded-Proto: https\r\nx_forwarded-proto: https\r\nX-Forwarded-Port: 1\r\nX-Forwarded-Server: x",
        "X-Request-ID: one\r\nX-Request-ID: two",
        "X_Request_ID: one",
        "traceparent: 00-00000000000000000000000000000000-0000000000000000-01\r\ntracestate: a=b",
        "X-Trace-ID: one\r\nX_Trace_ID: two",
        "Keep-Alive: 5\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\nTE: gzip\r\nUpgrade: h2c",
        "Host_: x\r\nTransfer_encoding_: x\r\nContent-_Length: 5",
        "Forwarded: for=1.2.3.4\r\nX-Real-IP: 1.2.3.4\r\nx_real_ip: 1.2.3.4\r\nX-Real_Ip: 1.2.3.4",
    ];
    beside(move || {
        for spoof in spoofs {
            let answer = Wire::connect(gateway).ask(get(spoof));
            assert_eq!(answer.status, 200, "{spoof:?}: {}", answer.text());
            let seen = backend.seen().pop().unwrap();
            for (name, value) in [
                ("x-internal-zone", "edge"),
                ("x-forwarded-for", "127.0.0.1"),
                ("x-forwarded-proto", "http"),
                ("x-forwarded-host", "t"),
                ("x-forwarded-port", "80"),
                ("x-request-id", answer.header("x-request-id").unwrap()),
                ("via", "1.1 tidegate"),
            ] {
                assert_eq!(spelled(&seen, name), [value], "{name} after {spoof:?}");
            }
            for name in ["x-trace-id", "traceparent", "x-gateway-time", "host"] {
                assert_eq!(spelled(&seen, name).len(), 1, "{name} after {spoof:?}");
            }
            assert_ne!(seen.all("x-gateway-time"), ["1"]);
            let gone = [
                "x-forwarded-server",
                "forwarded",
                "x-real-ip",
                "tracestate",
                "keep-alive",
                "proxy-connection",
                "proxy-authorization",
                "te",
                "upgrade",
                "connection",
                "transfer-encoding",
            ];
            for name in gone {
                assert!(spelled(&seen, name).is_empty(), "{name} after {spoof:?}");
            }
        }
    })
    .await;
}

#[actix_web::test]
async fn trailers_say_nothing_that_is_the_gateways() {
    let backend = Backend::echo();
    let toml = format!(
        "workers = 1\n[gateway.upstreams.a]\ntargets = [\"{}\"]\n[[gateway.routes]]\nname = \"all\"\npath = \"/\"\nupstream = \"a\"\n",
        backend.address
    );
    let app = TestApp::with_gateway(&toml, &[]).await;
    let gateway = app.app().gateway_address().unwrap();
    beside(move || {
        let names =
            "X-Internal-Token, X_Internal_Token, X-Request-ID, X-Forwarded-For, Authorization, Set-Cookie, X-Sum";
        let lines: String = names.split(", ").map(|name| format!("{name}: 1\r\n")).collect();
        let answer = Wire::connect(gateway).ask(post(
            &format!("Trailer: {names}\r\nTransfer-Encoding: chunked"),
            &format!("3\r\nabc\r\n0\r\n{lines}\r\n"),
        ));
        let seen = answer.json();
        assert_eq!(seen["body"], "abc");
        assert_eq!(seen["trailers"], serde_json::json!([["x-sum", "1"]]));
    })
    .await;
}
