//! Request bodies: capped as sent, capped again as decompressed, and paid for from the ingest budget as they come in.

use std::io::{self, Read};
use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::http::header;
use actix_web::web::{Bytes, BytesMut, Payload};
use futures_util::{FutureExt, StreamExt};

use super::error::ApiError;
use crate::actor::admission::Permit;

/// Larger bodies are decompressed and decoded off the HTTP thread, so that its other connections go on.
pub const INLINE: usize = 128 * 1024;

/// What a body may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Its bytes, as sent and decompressed.
    pub bytes: usize,
    /// How long its sender may pause.
    pub pause: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    Identity,
    Gzip,
    Deflate,
    Brotli,
    Zstd,
}

/// Reads a body and undoes its encoding.
pub async fn read(req: &HttpRequest, payload: Payload, limits: Limits, permit: &mut Permit) -> Result<Bytes, ApiError> {
    let coding = coding(req)?;
    let sent = read_raw(req, payload, limits, permit).await?;
    let most = limits.bytes;
    let coding = match coding {
        // Trackers that may not set headers send gzip and say nothing.
        Coding::Identity if sent.starts_with(&[0x1f, 0x8b, 0x08]) => Coding::Gzip,
        coding => coding,
    };
    if coding == Coding::Identity {
        return Ok(sent);
    }
    if sent.len() <= INLINE / 128 {
        return expand(coding, &sent, most, permit).map(Bytes::from);
    }
    Box::pin(expand_elsewhere(coding, sent, most, permit)).await
}

/// Decompresses off the HTTP thread.
async fn expand_elsewhere(coding: Coding, sent: Bytes, most: usize, permit: &mut Permit) -> Result<Bytes, ApiError> {
    // A share of the budget goes along, and pays while the body grows.
    let mut share = permit.split();
    let work = move || (expand(coding, &sent, most, &mut share), share);
    let (body, share) = actix_web::web::block(work).await.map_err(ApiError::internal)?;
    permit.join(share);
    body.map(Bytes::from)
}

fn coding(req: &HttpRequest) -> Result<Coding, ApiError> {
    let Some(value) = req.headers().get(header::CONTENT_ENCODING) else { return Ok(Coding::Identity) };
    match value.to_str().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "" | "identity" => Ok(Coding::Identity),
        "gzip" | "x-gzip" => Ok(Coding::Gzip),
        "deflate" => Ok(Coding::Deflate),
        "br" => Ok(Coding::Brotli),
        "zstd" => Ok(Coding::Zstd),
        _ => Err(ApiError::UnsupportedEncoding),
    }
}

async fn read_raw(
    req: &HttpRequest,
    mut payload: Payload,
    limits: Limits,
    permit: &mut Permit,
) -> Result<Bytes, ApiError> {
    let most = limits.bytes;
    let declared = req.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|length| length > most) {
        return Err(ApiError::TooLarge(most));
    }
    // Most bodies come in one piece, which is then used as it is.
    let mut first: Option<Bytes> = None;
    let mut whole: Option<BytesMut> = None;
    let mut length = 0;
    loop {
        // Most pieces are there already and need no timer.
        let piece = match payload.next().now_or_never() {
            Some(piece) => piece,
            None => tokio::time::timeout(limits.pause, payload.next()).await.map_err(|_| ApiError::TooSlow)?,
        };
        let Some(piece) = piece else { break };
        let piece = piece.map_err(|error| ApiError::BadRequest(format!("the body could not be read: {error}")))?;
        length += piece.len();
        if length > most {
            return Err(ApiError::TooLarge(most));
        }
        permit.grow(piece.len())?;
        match (&mut whole, first.take()) {
            (Some(whole), _) => whole.extend_from_slice(&piece),
            (None, None) => first = Some(piece),
            (None, Some(before)) => {
                let mut all = BytesMut::with_capacity(declared.unwrap_or(2 * length).min(most).max(length));
                all.extend_from_slice(&before);
                all.extend_from_slice(&piece);
                whole = Some(all);
            }
        }
    }
    Ok(match (whole, first) {
        (Some(whole), _) => whole.freeze(),
        (None, first) => first.unwrap_or_default(),
    })
}

/// Decompresses, paying for each piece before it is kept.
fn expand(coding: Coding, sent: &[u8], most: usize, permit: &mut Permit) -> Result<Vec<u8>, ApiError> {
    let broken = |error: io::Error| ApiError::BadRequest(format!("the body cannot be decompressed: {error}"));
    let mut reader = decoder(coding, sent).map_err(broken)?;
    let mut out = Vec::new();
    let mut piece = [0; 16 << 10];
    loop {
        let length = reader.read(&mut piece).map_err(broken)?;
        if length == 0 {
            return Ok(out);
        }
        if out.len() + length > most {
            return Err(ApiError::TooLarge(most));
        }
        if out.len() + length > out.capacity() {
            // The memory is paid for, not only what is in it.
            let capacity = (2 * out.capacity()).clamp(64 << 10, most.max(64 << 10));
            permit.grow(capacity - out.capacity())?;
            out.reserve_exact(capacity - out.len());
        }
        out.extend_from_slice(&piece[..length]);
    }
}

fn decoder(coding: Coding, sent: &[u8]) -> io::Result<Box<dyn Read + '_>> {
    Ok(match coding {
        Coding::Identity => Box::new(sent),
        Coding::Gzip => Box::new(flate2::read::MultiGzDecoder::new(sent)),
        // HTTP's deflate is zlib (RFC 9110, 8.4.1.2), but some clients send the bare stream.
        Coding::Deflate if sent.first().is_some_and(|b| b & 0x0f == 8) => {
            Box::new(flate2::read::ZlibDecoder::new(sent))
        }
        Coding::Deflate => Box::new(flate2::read::DeflateDecoder::new(sent)),
        Coding::Brotli => Box::new(brotli::Decompressor::new(sent, 4096)),
        Coding::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::new(sent)?;
            // 8 MiB of window, as RFC 9659 has it: a frame must not make us allocate what its header claims.
            decoder.window_log_max(23)?;
            Box::new(decoder)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actor::admission::Admission;
    use proptest::prelude::*;
    use std::io::Write;

    fn packed(coding: Coding, text: &[u8]) -> Vec<u8> {
        let level = flate2::Compression::default();
        match coding {
            Coding::Identity => text.to_vec(),
            Coding::Gzip => {
                let mut w = flate2::write::GzEncoder::new(Vec::new(), level);
                w.write_all(text).unwrap();
                w.finish().unwrap()
            }
            Coding::Deflate => {
                let mut w = flate2::write::ZlibEncoder::new(Vec::new(), level);
                w.write_all(text).unwrap();
                w.finish().unwrap()
            }
            Coding::Brotli => {
                let mut out = Vec::new();
                brotli::CompressorWriter::new(&mut out, 4096, 5, 22).write_all(text).unwrap();
                out
            }
            Coding::Zstd => zstd::encode_all(text, 3).unwrap(),
        }
    }

    fn expand(coding: Coding, sent: &[u8], most: usize) -> Result<Vec<u8>, &'static str> {
        let mut permit = Admission::new(1, 40 << 20).begin();
        super::expand(coding, sent, most, &mut permit).map_err(|error| error.code())
    }

    const ALL: [Coding; 5] = [Coding::Identity, Coding::Gzip, Coding::Deflate, Coding::Brotli, Coding::Zstd];

    #[test]
    fn every_coding_is_undone_and_capped() {
        let text = b"{\"type\":\"a\"}".repeat(1000);
        for coding in ALL {
            let sent = packed(coding, &text);
            assert_eq!(expand(coding, &sent, text.len()).as_deref(), Ok(&text[..]), "{coding:?}");
            assert_eq!(expand(coding, &sent, text.len() - 1), Err("body_too_large"), "{coding:?}");
        }
        let mut bare = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        bare.write_all(&text).unwrap();
        assert_eq!(expand(Coding::Deflate, &bare.finish().unwrap(), 1 << 20).as_deref(), Ok(&text[..]));
    }

    #[test]
    fn a_bomb_stops_at_the_cap() {
        let bomb = packed(Coding::Gzip, &vec![0; 50 << 20]);
        assert!(bomb.len() < 100_000);
        assert_eq!(expand(Coding::Gzip, &bomb, 1 << 20), Err("body_too_large"));
        assert_eq!(expand(Coding::Gzip, &bomb, 60 << 20), Err("overloaded"), "the budget comes first");
    }

    proptest! {
        #[test]
        fn rubbish_is_an_error_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for coding in ALL {
                let _ = expand(coding, &bytes, 10_000);
            }
        }
    }
}
