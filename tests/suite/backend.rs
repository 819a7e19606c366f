//! Services behind the gateway that do as a test tells them, byte for byte, and remember what they saw.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    /// Path and query, as sent.
    pub target: String,
    pub version: String,
    /// In their order, names as sent.
    pub headers: Vec<(String, String)>,
    pub trailers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Of all requests, counted from 0.
    pub number: u64,
    /// Of its connection's requests, counted from 0.
    pub on_connection: u64,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
    }
}

/// What is answered.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Before anything is written.
    pub wait: Duration,
    /// Written as they are, one after the other.
    pub pieces: Vec<(Vec<u8>, Duration)>,
    /// Whether the connection ends then.
    pub close: bool,
}

impl Reply {
    /// Exactly these bytes.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self { wait: Duration::ZERO, pieces: vec![(bytes.into(), Duration::ZERO)], close: false }
    }

    /// A whole answer.
    pub fn with(status: u16, headers: &[(&str, &str)], body: &str) -> Self {
        let mut head = format!("HTTP/1.1 {status} Status\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        Self::raw(format!("{head}\r\n{body}"))
    }

    /// 200 with a text.
    pub fn ok(body: &str) -> Self {
        Self::with(200, &[("content-type", "text/plain")], body)
    }

    /// The connection ends without a word.
    pub fn hang_up() -> Self {
        Self { wait: Duration::ZERO, pieces: Vec::new(), close: true }
    }

    pub fn after(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    pub fn then(mut self, bytes: impl Into<Vec<u8>>, pause: Duration) -> Self {
        self.pieces.push((bytes.into(), pause));
        self
    }

    pub fn close(mut self) -> Self {
        self.close = true;
        self
    }
}

/// A service.
pub struct Backend {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    answer: Box<dyn Fn(&Seen) -> Reply + Send + Sync>,
    seen: Mutex<Vec<Seen>>,
    keep: AtomicBool,
    count: AtomicU64,
    connections: AtomicU64,
    under_way: AtomicU64,
    most_under_way: AtomicU64,
    stopped: AtomicBool,
    open: Mutex<HashMap<u64, TcpStream>>,
}

impl Backend {
    /// On a free port of loopback.
    pub fn start(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_on("127.0.0.1:0", answer)
    }

    /// Where it was before.
    pub fn start_on(at: &str, answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(at).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            answer: Box::new(answer),
            seen: Mutex::default(),
            keep: AtomicBool::new(true),
            count: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            under_way: AtomicU64::new(0),
            most_under_way: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            open: Mutex::default(),
        });
        let serving = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if serving.stopped.load(Ordering::SeqCst) {
                    break;
                }
                let number = serving.connections.fetch_add(1, Ordering::SeqCst);
                serving.open.lock().unwrap().insert(number, stream.try_clone().unwrap());
                let serving = serving.clone();
                std::thread::spawn(move || {
                    serving.serve(&stream);
                    serving.open.lock().unwrap().remove(&number);
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        });
        Self { address, shared }
    }

    /// One that says what it saw, as JSON.
    pub fn echo() -> Self {
        Self::start(|seen| {
            let body = serde_json::json!({
                "method": seen.method, "target": seen.target, "headers": seen.headers, "trailers": seen.trailers,
                "body": String::from_utf8_lossy(&seen.body),
            });
            Reply::with(200, &[("content-type", "application/json")], &body.to_string())
        })
    }

    /// Everything it saw, in order, unless it is to forget.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// Does not keep what it sees from now on, only counts.
    pub fn forgetful(self) -> Self {
        self.shared.keep.store(false, Ordering::SeqCst);
        self
    }

    /// Requests that arrived whole.
    pub fn count(&self) -> u64 {
        self.shared.count.load(Ordering::SeqCst)
    }

    /// Connections that were made.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// The most requests that were under way at once.
    pub fn most_under_way(&self) -> u64 {
        self.shared.most_under_way.load(Ordering::SeqCst)
    }

    /// Takes no more, and ends what is open, as if killed.
    pub fn kill(&self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // The listener notices with its next connection.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
        for (_, stream) in self.shared.open.lock().unwrap().drain() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Shared {
    fn serve(&self, stream: &TcpStream) {
        let _ = stream.set_nodelay(true);
        let _ = stream.set_read_timeout(Some(Duration::from_secs(60)));
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        for on_connection in 0.. {
            let Some(mut seen) = read(&mut reader, &mut writer) else { return };
            seen.on_connection = on_connection;
            seen.number = self.count.fetch_add(1, Ordering::SeqCst);
            if self.keep.load(Ordering::SeqCst) {
                self.seen.lock().unwrap().push(seen.clone());
            }
            let under_way = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_under_way.fetch_max(under_way, Ordering::SeqCst);
            let reply = (self.answer)(&seen);
            std::thread::sleep(reply.wait);
            let wrote = reply.pieces.iter().all(|(bytes, pause)| {
                std::thread::sleep(*pause);
                writer.write_all(bytes).is_ok()
            });
            self.under_way.fetch_sub(1, Ordering::SeqCst);
            if reply.close || !wrote || seen.header("connection").is_some_and(|c| c.eq_ignore_ascii_case("close")) {
                return;
            }
        }
    }
}

/// Reads one request; `None` at the end of the connection, or where it is cut off or makes no sense.
fn read(reader: &mut BufReader<TcpStream>, writer: &mut &TcpStream) -> Option<Seen> {
    let first = line(reader)?;
    let mut parts = first.split(' ');
    let (method, target, version) = (parts.next()?, parts.next()?, parts.next()?);
    let headers = fields(reader)?;
    let find = |name: &str| headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str());
    if find("expect").is_some_and(|expect| expect.eq_ignore_ascii_case("100-continue")) {
        writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
    }
    let mut body = Vec::new();
    let mut trailers = Vec::new();
    if find("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        loop {
            let size = line(reader)?;
            let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
            if size == 0 {
                trailers = fields(reader)?;
                break;
            }
            let start = body.len();
            body.resize(start + size, 0);
            reader.read_exact(&mut body[start..]).ok()?;
            line(reader)?;
        }
    } else if let Some(length) = find("content-length") {
        body.resize(length.parse().ok()?, 0);
        reader.read_exact(&mut body).ok()?;
    }
    let (method, target, version) = (method.to_owned(), target.to_owned(), version.to_owned());
    Some(Seen { method, target, version, headers, trailers, body, number: 0, on_connection: 0 })
}

fn line(reader: &mut BufReader<TcpStream>) -> Option<String> {
    let mut text = Vec::new();
    reader.read_until(b'\n', &mut text).ok()?;
    let text = text.strip_suffix(b"\r\n")?;
    Some(String::from_utf8_lossy(text).into_owned())
}

fn fields(reader: &mut BufReader<TcpStream>) -> Option<Vec<(String, String)>> {
    let mut fields = Vec::new();
    loop {
        let text = line(reader)?;
        if text.is_empty() {
            return Some(fields);
        }
        let (name, value) = text.split_once(':')?;
        fields.push((name.to_owned(), value.trim().to_owned()));
    }
}
