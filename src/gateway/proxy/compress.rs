//! Compression of texts on their way to clients that take it, as they come: a pause of the source flushes what there is.

use std::io::{self, Write};
use std::task::{Context, Poll};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::body::Frame;
use hyper::header::{self, HeaderValue};
use hyper::{HeaderMap, StatusCode};

use super::answer::UpstreamBody;
use super::body::BodyError;

/// Shorter bodies are not worth it.
const LEAST: u64 = 256;
/// Of 1 to 11: the speed of gzip at the size of better.
const BROTLI_QUALITY: u32 = 4;
const BROTLI_WINDOW: u32 = 20;
const ZSTD_LEVEL: i32 = 3;
/// What is handed on at once, at least, while the source does not pause.
const PIECE: usize = 16 << 10;

/// An encoding that both sides know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// RFC 7932.
    Brotli,
    /// RFC 8878.
    Zstd,
    /// RFC 1952.
    Gzip,
}

impl Coding {
    /// The best one of those an `Accept-Encoding` has (RFC 9110, section 12.5.3).
    pub fn negotiate(accepted: &HeaderMap) -> Option<Self> {
        let mut best: Option<(f32, Self)> = None;
        let lines = accepted.get_all(header::ACCEPT_ENCODING).iter().filter_map(|line| line.to_str().ok());
        let offers: Vec<(&str, f32)> = lines.flat_map(|line| line.split(',')).filter_map(offer).collect();
        let weight = |name: &str| offers.iter().find(|(coding, _)| coding.eq_ignore_ascii_case(name)).map(|(_, q)| *q);
        for coding in [Self::Brotli, Self::Zstd, Self::Gzip] {
            let q = weight(coding.name()).or_else(|| weight("*")).unwrap_or_default();
            if q > 0.0 && best.is_none_or(|(least, _)| q > least) {
                best = Some((q, coding));
            }
        }
        best.map(|(_, coding)| coding)
    }

    /// As it is written in headers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Brotli => "br",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
    }
}

fn offer(text: &str) -> Option<(&str, f32)> {
    let mut parts = text.split(';');
    let coding = parts.next()?.trim();
    let q = parts.find_map(|part| {
        let (name, value) = part.split_once('=')?;
        name.trim().eq_ignore_ascii_case("q").then(|| value.trim().parse::<f32>().unwrap_or(0.0))
    });
    Some((coding, q.unwrap_or(1.0)))
}

/// Whether an answer is a text that may be compressed, and long enough; `length` is its body's, if known.
pub fn is_worth_it(status: StatusCode, headers: &HeaderMap, length: Option<u64>) -> bool {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or_default();
    let plain = !headers.contains_key(header::CONTENT_ENCODING)
        && !headers.contains_key(header::CONTENT_RANGE)
        && !text(header::CACHE_CONTROL).to_ascii_lowercase().contains("no-transform");
    let bodied = status.is_success() && status != StatusCode::PARTIAL_CONTENT && status != StatusCode::NO_CONTENT;
    plain && bodied && length.is_none_or(|length| length >= LEAST) && is_text(text(header::CONTENT_TYPE))
}

fn is_text(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    // Events are flushed one by one anyway, but many clients read them uncompressed only.
    (kind.starts_with("text/") && kind != "text/event-stream")
        || kind.ends_with("+json")
        || kind.ends_with("+xml")
        || matches!(
            kind.as_str(),
            "application/json" | "application/javascript" | "application/xml" | "application/x-ndjson"
        )
}

/// Says in the headers that the body is compressed.
pub fn announce(headers: &mut HeaderMap, coding: Coding) {
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::ACCEPT_RANGES);
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
    // The bytes are no longer those that a strong tag stands for (RFC 9110, section 8.8.1).
    if let Some(tag) = headers.get(header::ETAG).filter(|tag| tag.as_bytes().starts_with(b"\""))
        && let Ok(weak) = HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat())
    {
        headers.insert(header::ETAG, weak);
    }
}

/// A body that is compressed on its way.
pub struct Compressed {
    source: Box<UpstreamBody>,
    encoder: Option<Encoder>,
    /// Whether the encoder holds what has not been handed on.
    held: bool,
    trailers: Option<HeaderMap>,
}

impl std::fmt::Debug for Compressed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Compressed")
    }
}

enum Encoder {
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
    Gzip(GzEncoder<Vec<u8>>),
}

impl Encoder {
    fn new(coding: Coding) -> io::Result<Self> {
        Ok(match coding {
            Coding::Brotli => {
                Self::Brotli(Box::new(brotli::CompressorWriter::new(Vec::new(), 4096, BROTLI_QUALITY, BROTLI_WINDOW)))
            }
            Coding::Zstd => Self::Zstd(zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?),
            Coding::Gzip => Self::Gzip(GzEncoder::new(Vec::new(), Compression::new(4))),
        })
    }

    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Brotli(encoder) => encoder.write_all(data),
            Self::Zstd(encoder) => encoder.write_all(data),
            Self::Gzip(encoder) => encoder.write_all(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Brotli(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
            Self::Gzip(encoder) => encoder.flush(),
        }
    }

    fn written(&mut self) -> &mut Vec<u8> {
        match self {
            Self::Brotli(encoder) => encoder.get_mut(),
            Self::Zstd(encoder) => encoder.get_mut(),
            Self::Gzip(encoder) => encoder.get_mut(),
        }
    }

    fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            // Its end is written when it is taken apart.
            Self::Brotli(encoder) => Ok(encoder.into_inner()),
            Self::Zstd(encoder) => encoder.finish(),
            Self::Gzip(encoder) => encoder.finish(),
        }
    }
}

impl Compressed {
    /// Compresses a body.
    ///
    /// # Errors
    /// When the encoder cannot be made; the body is given back.
    pub fn new(source: Box<UpstreamBody>, coding: Coding) -> Result<Self, (Box<UpstreamBody>, io::Error)> {
        match Encoder::new(coding) {
            Ok(encoder) => Ok(Self { source, encoder: Some(encoder), held: false, trailers: None }),
            Err(error) => Err((source, error)),
        }
    }

    /// The next piece.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.step(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Some(Err(error))),
            Poll::Ready(Ok(frame)) => Poll::Ready(frame.map(Ok)),
            Poll::Pending => Poll::Pending,
        }
    }

    fn step(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, BodyError>> {
        loop {
            let Some(encoder) = &mut self.encoder else {
                return Poll::Ready(Ok(self.trailers.take().map(Frame::trailers)));
            };
            match self.source.poll(cx) {
                Poll::Pending if self.held => {
                    encoder.flush()?;
                    self.held = false;
                    let piece = std::mem::take(encoder.written());
                    if !piece.is_empty() {
                        return Poll::Ready(Ok(Some(Frame::data(piece.into()))));
                    }
                }
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        encoder.write(&data)?;
                        self.held = true;
                        if encoder.written().len() >= PIECE {
                            return Poll::Ready(Ok(Some(Frame::data(std::mem::take(encoder.written()).into()))));
                        }
                    }
                    Err(frame) => self.trailers = frame.into_trailers().ok(),
                },
                Poll::Ready(None) => {
                    let rest = self.encoder.take().map(Encoder::finish).transpose()?.unwrap_or_default();
                    if !rest.is_empty() {
                        return Poll::Ready(Ok(Some(Frame::data(rest.into()))));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn negotiated(accept: &str) -> Option<&'static str> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_str(accept).unwrap());
        Coding::negotiate(&headers).map(Coding::name)
    }

    #[test]
    fn the_best_coding_that_both_know_is_taken() {
        assert_eq!(negotiated("gzip, deflate, br, zstd"), Some("br"));
        assert_eq!(negotiated("gzip"), Some("gzip"));
        assert_eq!(negotiated("br;q=0.5, gzip;q=0.8"), Some("gzip"));
        assert_eq!(negotiated("br;q=0, *;q=0.1"), Some("zstd"));
        assert_eq!(negotiated("*;q=0"), None);
        assert_eq!(negotiated("identity"), None);
        assert_eq!(negotiated("gzip;q=rubbish"), None);
        assert_eq!(Coding::negotiate(&HeaderMap::new()), None);
    }

    #[test]
    fn only_texts_that_nobody_forbids_are_compressed() {
        let worth = |status: u16, headers: &[(&'static str, &'static str)], length| {
            let map = headers
                .iter()
                .map(|(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_static(value)));
            is_worth_it(StatusCode::from_u16(status).unwrap(), &map.collect(), length)
        };
        let json = ("content-type", "application/json; charset=utf-8");
        assert!(worth(200, &[json], Some(5000)));
        assert!(worth(200, &[json], None));
        assert!(worth(200, &[("content-type", "image/svg+xml")], None));
        assert!(!worth(200, &[json], Some(10)));
        assert!(!worth(404, &[json], None));
        assert!(!worth(206, &[json, ("content-range", "bytes 0-1/2")], None));
        assert!(!worth(200, &[json, ("content-encoding", "br")], None));
        assert!(!worth(200, &[json, ("cache-control", "public, No-Transform")], None));
        assert!(!worth(200, &[("content-type", "text/event-stream")], None));
        assert!(!worth(200, &[("content-type", "image/png")], None));
        assert!(!worth(200, &[], None));
    }

    #[test]
    fn strong_tags_become_weak() {
        let mut headers = HeaderMap::new();
        headers.insert(header::ETAG, HeaderValue::from_static("\"a\""));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("5000"));
        announce(&mut headers, Coding::Gzip);
        assert_eq!(headers[header::ETAG], "W/\"a\"");
        assert_eq!(headers[header::CONTENT_ENCODING], "gzip");
        assert!(!headers.contains_key(header::CONTENT_LENGTH));
    }
}
