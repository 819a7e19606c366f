//! A client of HTTP/1.1 that says exactly what it is told, byte for byte, and shows exactly what it got.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::support::Answer;

/// The longest that anything is waited for.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// A connection.
pub struct Wire {
    pub stream: TcpStream,
    /// What has come and is not used yet.
    pub held: Vec<u8>,
}

impl Wire {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, held: Vec::new() }
    }

    /// To the address of a URL.
    pub fn to(url: &str) -> Self {
        Self::connect(url.trim_start_matches("http://").parse().unwrap())
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// The same, where the other side may have hung up already.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// Waits for more; false at the end of the connection.
    pub fn more(&mut self) -> bool {
        let mut piece = [0; 16 << 10];
        match self.stream.read(&mut piece) {
            Ok(0) => false,
            Ok(n) => {
                self.held.extend_from_slice(&piece[..n]);
                true
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) => panic!("{error}, and there was {:?}", String::from_utf8_lossy(&self.held)),
        }
    }

    /// Whether nothing comes for so long.
    pub fn is_silent(&mut self, long: Duration) -> bool {
        self.stream.set_read_timeout(Some(long)).unwrap();
        let mut piece = [0; 1024];
        let read = self.stream.read(&mut piece);
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        match read {
            Ok(n) => {
                self.held.extend_from_slice(&piece[..n]);
                n == 0 && self.held.is_empty()
            }
            Err(_) => self.held.is_empty(),
        }
    }

    /// Everything up to and with this; `None` if the connection ends first.
    pub fn through(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.held.windows(end.len()).position(|window| window == end) {
                return Some(self.held.drain(..at + end.len()).collect());
            }
            if !self.more() {
                return None;
            }
        }
    }

    fn exactly(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.held.len() < length {
            if !self.more() {
                return None;
            }
        }
        Some(self.held.drain(..length).collect())
    }

    /// Status and headers of the next answer; `None` if there is none.
    pub fn head(&mut self) -> Option<Answer> {
        let text = String::from_utf8(self.through(b"\r\n\r\n")?).unwrap();
        let mut lines = text.trim_end().split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.map(|line| line.split_once(':').unwrap_or_else(|| panic!("{line:?} in {text:?}")));
        let headers = headers.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
        Some(Answer { status, headers, body: Vec::new() })
    }

    /// The next answer, whole; `None` if it does not come so.
    pub fn answer(&mut self) -> Option<Answer> {
        let mut answer = self.head()?;
        let chunked = answer.header("transfer-encoding") == Some("chunked");
        let length = answer.header("content-length").map(|length| length.parse::<usize>().unwrap());
        assert!(!(chunked && length.is_some()), "{answer:?}");
        if (100..200).contains(&answer.status) || answer.status == 204 || answer.status == 304 {
            return Some(answer);
        }
        if chunked {
            while let Some(chunk) = self.chunk()? {
                answer.body.extend(chunk);
            }
            let trailers = self.trailers()?;
            answer.headers.extend(trailers);
        } else if let Some(length) = length {
            answer.body = self.exactly(length)?;
        } else {
            while self.more() {}
            answer.body = std::mem::take(&mut self.held);
        }
        Some(answer)
    }

    /// The next chunk; `Some(None)` for the last one, and `None` at the end of the connection.
    pub fn chunk(&mut self) -> Option<Option<Vec<u8>>> {
        let size = String::from_utf8(self.through(b"\r\n")?).unwrap();
        let size = usize::from_str_radix(size.trim_end(), 16).unwrap_or_else(|_| panic!("{size:?}"));
        if size == 0 {
            return Some(None);
        }
        let mut chunk = self.exactly(size + 2)?;
        assert_eq!(chunk.split_off(size), b"\r\n");
        Some(Some(chunk))
    }

    /// What follows the last chunk.
    pub fn trailers(&mut self) -> Option<Vec<(String, String)>> {
        let mut trailers = Vec::new();
        loop {
            let line = String::from_utf8(self.through(b"\r\n")?).unwrap();
            if line == "\r\n" {
                return Some(trailers);
            }
            let (name, value) = line.split_once(':').unwrap();
            trailers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    /// Sends, and waits for an answer.
    pub fn ask(&mut self, bytes: impl AsRef<[u8]>) -> Answer {
        self.send(bytes);
        self.answer().expect("an answer")
    }

    /// Waits for the end of the connection; how long that took. Nothing may come before.
    pub fn end(&mut self) -> Duration {
        let begun = Instant::now();
        let more = self.more();
        assert!(!more, "{:?} came instead of the end", String::from_utf8_lossy(&self.held));
        begun.elapsed()
    }

    pub fn hang_up(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Runs what waits on sockets beside the test's own thread, on which parts of the server live.
pub async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    actix_web::web::block(work).await.unwrap()
}
