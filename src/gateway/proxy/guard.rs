//! The framing of HTTP/1 requests, looked at byte by byte before the parser sees it, and refused where two readers could
//! see two different things (RFC 9112, sections 2.2, 5.2, 6 and 11.2).
//!
//! Parsers are lenient in what they take for the end of a line, a length or an encoding, each in its own way; request
//! smuggling lives on the differences. This accepts only what every reader must see alike: lines that end in CRLF, no folded
//! lines, one `Host`, one `Content-Length` of digits or one `Transfer-Encoding: chunked` and not both, chunk sizes of hex
//! digits. It keeps no bytes but those of a line that is not complete yet.

use memchr::{memchr, memchr2};

/// Longest line that is looked at: of a head, of a chunk's size with its extensions, of a trailer. The parser's own bound on
/// the whole head is usually reached first.
const MAX_LINE: usize = 64 << 10;
/// Longest line with the size of a chunk.
const MAX_SIZE_LINE: usize = 1 << 10;
/// All trailers of a request together.
const MAX_TRAILERS: usize = 16 << 10;

/// What is wrong, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// How many of the bytes that were shown are good.
    pub good: usize,
    /// Whether it is in a head: then the request can still be refused with an answer.
    pub in_head: bool,
    /// What it is, for the log.
    pub what: &'static str,
}

/// The guard of one connection.
#[derive(Debug, Default)]
pub struct Guard {
    state: State,
    /// The part of a line that has come, while it is not complete.
    partial: Vec<u8>,
    head: Head,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before a request: one empty line is let through.
    #[default]
    Start,
    RequestLine,
    Headers,
    Body(u64),
    ChunkSize,
    ChunkData(u64),
    /// The CRLF behind a chunk; so many of its bytes are left.
    ChunkEnd(u8),
    /// Bytes of trailers so far.
    Trailers(usize),
    /// Something was wrong; nothing more is let through.
    Refused,
}

/// What the head said so far.
#[derive(Debug, Default)]
struct Head {
    http10: bool,
    hosts: u32,
    length: Option<u64>,
    chunked: bool,
}

impl Guard {
    /// Looks at the next bytes of the connection.
    ///
    /// # Errors
    /// At the first byte that must not be let through. Nothing is let through after that.
    pub fn check(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            at += match self.state {
                State::Body(left) => self.skip(left, rest.len(), State::Body, State::Start),
                State::ChunkData(left) => self.skip(left, rest.len(), State::ChunkData, State::ChunkEnd(2)),
                State::ChunkEnd(left) => {
                    let expected = if left == 2 { b'\r' } else { b'\n' };
                    if rest[0] != expected {
                        return Err(self.refuse(at, "a chunk is longer than it says"));
                    }
                    self.state = if left == 2 { State::ChunkEnd(1) } else { State::ChunkSize };
                    1
                }
                State::Refused => return Err(self.refuse(at, "refused before")),
                State::Start | State::RequestLine | State::Headers | State::ChunkSize | State::Trailers(_) => {
                    match memchr(b'\n', rest) {
                        None => {
                            if self.partial.len() + rest.len() > MAX_LINE {
                                return Err(self.refuse(at, "a line is too long"));
                            }
                            self.partial.extend_from_slice(rest);
                            rest.len()
                        }
                        Some(end) => {
                            let judged = if self.partial.is_empty() {
                                self.line(&rest[..end])
                            } else {
                                let mut line = std::mem::take(&mut self.partial);
                                line.extend_from_slice(&rest[..end]);
                                let judged = self.line(&line);
                                line.clear();
                                self.partial = line;
                                judged
                            };
                            if let Err(what) = judged {
                                return Err(self.refuse(at, what));
                            }
                            end + 1
                        }
                    }
                }
            };
        }
        Ok(())
    }

    /// Whether a head has begun and is not complete.
    pub fn is_within_head(&self) -> bool {
        match self.state {
            State::Start => !self.partial.is_empty(),
            State::RequestLine | State::Headers => true,
            _ => false,
        }
    }

    fn refuse(&mut self, good: usize, what: &'static str) -> Violation {
        let in_head = matches!(self.state, State::Start | State::RequestLine | State::Headers);
        self.state = State::Refused;
        Violation { good, in_head, what }
    }

    fn skip(&mut self, left: u64, have: usize, more: fn(u64) -> State, done: State) -> usize {
        let taken = left.min(have as u64);
        self.state = if taken == left { done } else { more(left - taken) };
        taken as usize
    }

    /// A whole line, without its LF.
    fn line(&mut self, line: &[u8]) -> Result<(), &'static str> {
        let Some(line) = line.strip_suffix(b"\r") else {
            return Err("a line ends in LF without CR");
        };
        if memchr2(b'\r', 0, line).is_some() {
            return Err("CR or NUL within a line");
        }
        match self.state {
            State::Start if line.is_empty() => self.state = State::RequestLine,
            State::Start | State::RequestLine => {
                self.head = Head { http10: request_line(line)?, ..Head::default() };
                self.state = State::Headers;
            }
            State::Headers if line.is_empty() => self.state = self.head.framing()?,
            State::Headers => self.head.field(line)?,
            State::ChunkSize => {
                self.state = match chunk_size(line)? {
                    0 => State::Trailers(0),
                    size => State::ChunkData(size),
                };
            }
            State::Trailers(_) if line.is_empty() => self.state = State::Start,
            State::Trailers(before) => {
                let (name, _) = field(line)?;
                // What frames or routes a message must stand before it (RFC 9110, section 6.5.1).
                let forbidden = [b"content-length".as_slice(), b"transfer-encoding", b"host"];
                if forbidden.iter().any(|forbidden| name.eq_ignore_ascii_case(forbidden)) {
                    return Err("a trailer that frames or routes the message");
                }
                let all = before + line.len();
                if all > MAX_TRAILERS {
                    return Err("the trailers are too long");
                }
                self.state = State::Trailers(all);
            }
            State::Body(_) | State::ChunkData(_) | State::ChunkEnd(_) | State::Refused => {}
        }
        Ok(())
    }
}

impl Head {
    fn field(&mut self, line: &[u8]) -> Result<(), &'static str> {
        let (name, value) = field(line)?;
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => self.hosts += 1,
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                if self.length.is_some() {
                    return Err("more than one Content-Length");
                }
                self.length = Some(decimal(value).ok_or("a Content-Length that is no plain number")?);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if self.chunked {
                    return Err("more than one Transfer-Encoding");
                }
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err("a Transfer-Encoding other than chunked");
                }
                self.chunked = true;
            }
            _ => {
                // `Transfer_Encoding` is one for readers that hand headers on as variables.
                if matches!(name.len(), 14 | 17) && memchr(b'_', name).is_some() {
                    let dashed: Vec<u8> = name.iter().map(|b| if *b == b'_' { b'-' } else { *b }).collect();
                    if [b"content-length".as_slice(), b"transfer-encoding"]
                        .iter()
                        .any(|known| dashed.eq_ignore_ascii_case(known))
                    {
                        return Err("a framing header in disguise");
                    }
                }
            }
        }
        Ok(())
    }

    /// What follows the head.
    fn framing(&self) -> Result<State, &'static str> {
        if self.hosts > 1 || (self.hosts == 0 && !self.http10) {
            return Err("not exactly one Host");
        }
        match (self.chunked, self.length) {
            (true, Some(_)) => Err("both Content-Length and Transfer-Encoding"),
            (true, None) if self.http10 => Err("Transfer-Encoding in HTTP/1.0"),
            (true, None) => Ok(State::ChunkSize),
            (false, None | Some(0)) => Ok(State::Start),
            (false, Some(length)) => Ok(State::Body(length)),
        }
    }
}

/// Whether the request is of HTTP/1.0; it is `METHOD SP TARGET SP VERSION`, with single spaces.
fn request_line(line: &[u8]) -> Result<bool, &'static str> {
    let mut parts = line.split(|b| *b == b' ');
    let (method, target, version) = (parts.next(), parts.next(), parts.next());
    let (Some(method), Some(target), Some(version), None) = (method, target, version, parts.next()) else {
        return Err("a request line that is not METHOD TARGET VERSION");
    };
    if method.is_empty() || !method.iter().all(|b| is_token(*b)) || target.is_empty() {
        return Err("a request line without method or target");
    }
    // A fragment is never sent, and readers differ in what they make of it.
    if !target.iter().all(|b| (0x21..0x7f).contains(b) && *b != b'#') {
        return Err("a target with characters that must be escaped");
    }
    match version {
        b"HTTP/1.1" => Ok(false),
        b"HTTP/1.0" => Ok(true),
        _ => Err("a version other than HTTP/1.0 and HTTP/1.1"),
    }
}

/// Name and value of a header or trailer line; the value without the white space around it.
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), &'static str> {
    let Some(colon) = memchr(b':', line) else {
        return Err("a header line without a colon");
    };
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    // Also what begins with white space (a folded line), and white space before the colon.
    if name.is_empty() || !name.iter().all(|b| is_token(*b)) {
        return Err("a header's name with characters that are none of a name");
    }
    let value = value.trim_ascii();
    if value.iter().any(|b| (*b < 0x20 && *b != b'\t') || *b == 0x7f) {
        return Err("a control character in a header's value");
    }
    Ok((name, value))
}

/// `tchar` of RFC 9110, section 5.6.2.
fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    digits.iter().try_fold(0u64, |n, d| n.checked_mul(10)?.checked_add(u64::from(d - b'0')))
}

/// Hex digits alone, or with extensions behind a semicolon, which nobody needs and which are let through as they are.
fn chunk_size(line: &[u8]) -> Result<u64, &'static str> {
    if line.len() > MAX_SIZE_LINE {
        return Err("the extensions of a chunk are too long");
    }
    let digits = match memchr(b';', line) {
        Some(end) => &line[..end],
        None => line,
    };
    // 15 digits are more than anybody sends, and fit with room to spare.
    if digits.is_empty() || digits.len() > 15 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err("a chunk's size that is not plain hex digits");
    }
    if line[digits.len()..].iter().any(|b| !(0x20..0x7f).contains(b) && *b != b'\t') {
        return Err("a control character in a chunk's extension");
    }
    Ok(digits.iter().fold(0, |n, d| n * 16 + u64::from((*d as char).to_digit(16).unwrap_or_default())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    /// Shown whole, byte by byte, and in all pairs of pieces: the judgment must be the same.
    fn judge(text: &[u8]) -> Result<(), (usize, bool)> {
        let mut whole = Guard::default();
        let judged = whole.check(text).map_err(|v| (v.good, v.in_head));
        for cut in 0..text.len() {
            let mut guard = Guard::default();
            let in_two = guard
                .check(&text[..cut])
                .and_then(|()| guard.check(&text[cut..]).map_err(|v| Violation { good: v.good + cut, ..v }));
            assert_eq!(in_two.is_ok(), judged.is_ok(), "cut at {cut}: {:?}", String::from_utf8_lossy(text));
            if let (Err(violation), Err((_, in_head))) = (in_two, judged) {
                assert_eq!(violation.in_head, in_head);
            }
        }
        judged
    }

    fn good(text: &str) {
        assert_eq!(judge(text.as_bytes()), Ok(()), "{text:?}");
    }

    fn refused_in_head(text: &str) {
        assert!(matches!(judge(text.as_bytes()), Err((_, true))), "{text:?} was {:?}", judge(text.as_bytes()));
    }

    #[test]
    fn what_everybody_reads_alike_passes() {
        good(GET);
        good(&GET.repeat(3));
        good(&format!("\r\n{GET}"));
        good("GET / HTTP/1.0\r\n\r\n");
        good(&format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello{GET}"));
        good(&format!("POST / HTTP/1.1\r\nHost: a\r\ncontent-length:\t0 \r\n\r\n{GET}"));
        good(&format!(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nA;x=\"y\"\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n{GET}"
        ));
    }

    #[test]
    fn ambiguous_heads_are_refused_before_they_are_complete() {
        let with = |line: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{line}\r\n\r\n");
        for line in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 5",
            "Content-Length: 5\r\nContent-Length: 5",
            "Content-Length: 5, 5",
            "Content-Length: +5",
            "Content-Length: 0x5",
            "Content-Length: 5 5",
            "Content-Length: -1",
            "Content-Length:",
            "Content-Length: 99999999999999999999",
            "Content-Length : 5",
            "Content_Length: 5",
            "Transfer_Encoding: chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: identity",
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding: \u{b}chunked",
            "Transfer-Encoding:\r\n chunked",
            " Transfer-Encoding: chunked",
            "X: a\r\n\tb",
            "X: a\0b",
            "X: a\rb",
            "X: a\nTransfer-Encoding: chunked",
            "X y: a",
            ": a",
            "no colon",
            "Host: b",
        ] {
            refused_in_head(&with(line));
        }
        refused_in_head("GET / HTTP/1.1\n\n");
        refused_in_head("GET / HTTP/1.1\r\nHost: a\n\r\n");
        refused_in_head("GET / HTTP/1.1\r\n\r\n");
        refused_in_head("GET  / HTTP/1.1\r\nHost: a\r\n\r\n");
        refused_in_head("GET / x HTTP/1.1\r\nHost: a\r\n\r\n");
        refused_in_head("GET /\tx HTTP/1.1\r\nHost: a\r\n\r\n");
        refused_in_head("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n");
        refused_in_head("GET / HTTP/1.2\r\nHost: a\r\n\r\n");
        refused_in_head("GET / HTTP/2.0\r\nHost: a\r\n\r\n");
        refused_in_head("GET /\r\nHost: a\r\n\r\n");
        refused_in_head("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        refused_in_head("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
        refused_in_head("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n");
    }

    #[test]
    fn what_is_wrong_in_a_body_ends_the_connection() {
        let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        for body in [
            "0x5\r\nhello\r\n",
            "+5\r\nhello\r\n",
            "5_0\r\nhello\r\n",
            " 5\r\nhello\r\n",
            "5 \r\nhello\r\n",
            "\r\nhello\r\n",
            "-1\r\n",
            "5\nhello\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5\r\nhelloX\r\n",
            "5\r\nhello0\r\n\r\n",
            "1;\na\r\n",
            "1;x\u{1}\r\na\r\n",
            "10000000000000000\r\n",
            "0\r\nContent-Length: 5\r\n\r\n",
            "0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "0\r\n folded\r\n\r\n",
            "0\r\nX: a\n\r\n",
        ] {
            let judged = judge(format!("{chunked}{body}").as_bytes());
            assert!(matches!(judged, Err((good, false)) if good >= chunked.len()), "{body:?} was {judged:?}");
        }
    }

    #[test]
    fn nothing_passes_after_a_violation() {
        let mut guard = Guard::default();
        assert!(guard.check(b"GET / HTTP/1.1\n").is_err());
        assert_eq!(guard.check(GET.as_bytes()).map_err(|v| v.good), Err(0));
    }

    #[test]
    fn a_line_without_an_end_is_not_kept_for_ever() {
        let mut guard = Guard::default();
        let mut shown = 0;
        while guard.check(&[b'a'; 4096]).is_ok() {
            shown += 4096;
            assert!(shown <= MAX_LINE);
        }
        assert!(guard.partial.capacity() <= 2 * MAX_LINE);
    }
}
