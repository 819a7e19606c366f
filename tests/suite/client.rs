//! A plain HTTP client for tests: awc with room for large answers, and a raw connection for what awc would not send.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use futures_util::StreamExt;

use crate::support::Answer;

fn client() -> awc::Client {
    awc::Client::builder().timeout(Duration::from_secs(30)).disable_redirects().finish()
}

async fn answer(
    response: Result<
        awc::ClientResponse<impl futures_util::Stream<Item = Result<bytes::Bytes, awc::error::PayloadError>> + Unpin>,
        awc::error::SendRequestError,
    >,
) -> Answer {
    let mut response = response.expect("an answer");
    let headers = response
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    let status = response.status().as_u16();
    let mut body = Vec::new();
    while let Some(piece) = response.next().await {
        body.extend_from_slice(&piece.expect("the whole body"));
    }
    Answer { status, headers, body }
}

pub async fn get(url: &str) -> Answer {
    get_with(url, &[]).await
}

pub async fn get_with(url: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = client().get(url).no_decompress();
    for header in headers {
        request = request.append_header(*header);
    }
    answer(request.send().await).await
}

pub async fn post(url: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
    let mut request = client().post(url);
    for header in headers {
        request = request.append_header(*header);
    }
    answer(request.send_body(body).await).await
}

pub async fn request(method: &str, url: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = client().request(method.parse().unwrap(), url);
    for header in headers {
        request = request.insert_header(*header);
    }
    answer(request.send().await).await
}

pub async fn send(method: &str, url: &str, headers: &[(&str, &str)], body: &serde_json::Value) -> Answer {
    let mut request = client().request(method.parse().unwrap(), url);
    for header in headers {
        request = request.insert_header(*header);
    }
    answer(request.send_body(body.to_string()).await).await
}

/// A blocking connection that posts and tells apart an answer from none.
pub struct Raw {
    stream: TcpStream,
}

impl Raw {
    pub fn connect(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream })
    }

    /// Status and body of the answer; an error when there was none, or not all of it.
    pub fn post(&mut self, body: &str) -> std::io::Result<(u16, String)> {
        self.post_to("/api/v1/events", body)
    }

    /// The same to another path.
    pub fn post_to(&mut self, path: &str, body: &str) -> std::io::Result<(u16, String)> {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        self.stream.write_all([head.as_bytes(), body.as_bytes()].concat().as_slice())?;
        self.read()
    }

    /// The same with a GET.
    pub fn get(&mut self, path: &str) -> std::io::Result<(u16, String)> {
        self.stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: t\r\n\r\n").as_bytes())?;
        self.read()
    }

    fn read(&mut self) -> std::io::Result<(u16, String)> {
        // No answer at all may happen when a connection is closed for being idle; half an answer may not.
        let cut = || std::io::Error::from(std::io::ErrorKind::InvalidData);
        let none = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        let mut text = Vec::new();
        let mut piece = [0; 4096];
        loop {
            if let Some(end) = text.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&text[..end]).to_ascii_lowercase();
                let length: usize = head
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length:"))
                    .and_then(|n| n.trim().parse().ok())
                    .unwrap_or(0);
                while text.len() < end + 4 + length {
                    match self.stream.read(&mut piece) {
                        Ok(n) if n > 0 => text.extend_from_slice(&piece[..n]),
                        _ => return Err(cut()),
                    }
                }
                let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(cut)?;
                return Ok((status, String::from_utf8_lossy(&text[end + 4..end + 4 + length]).into_owned()));
            }
            match self.stream.read(&mut piece) {
                Ok(0) if text.is_empty() => return Err(none()),
                Ok(0) => return Err(cut()),
                Ok(n) => text.extend_from_slice(&piece[..n]),
                Err(error) => return Err(if text.is_empty() { error } else { cut() }),
            }
        }
    }
}
