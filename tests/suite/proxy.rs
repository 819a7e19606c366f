//! A TCP proxy that can be slow, swallow answers, and cut connections.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Clone)]
pub struct Proxy {
    pub address: SocketAddr,
    target: Arc<Mutex<Option<SocketAddr>>>,
    swallow: Arc<AtomicBool>,
    delay: Arc<AtomicU64>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    pub swallowed: Arc<AtomicU64>,
}

impl Proxy {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap(),
            target: Arc::default(),
            swallow: Arc::default(),
            delay: Arc::default(),
            open: Arc::default(),
            swallowed: Arc::default(),
        };
        let serving = proxy.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { continue };
                let Some(target) = *serving.target.lock().unwrap() else { continue };
                let Ok(server) = TcpStream::connect(target) else { continue };
                serving.join(client, server);
            }
        });
        proxy
    }

    fn join(&self, client: TcpStream, server: TcpStream) {
        let pair = |stream: &TcpStream| stream.try_clone().unwrap();
        self.open.lock().unwrap().extend([pair(&client), pair(&server)]);
        let (there, back) = ((pair(&client), pair(&server)), (server, client));
        for (mut from, mut to, answers) in [(there.0, there.1, false), (back.0, back.1, true)] {
            let this = self.clone();
            std::thread::spawn(move || {
                let mut buffer = vec![0; 64 << 10];
                while let Ok(n @ 1..) = from.read(&mut buffer) {
                    let delay = this.delay.load(Ordering::SeqCst);
                    if delay > 0 {
                        std::thread::sleep(Duration::from_millis(delay));
                    }
                    if answers && this.swallow.load(Ordering::SeqCst) {
                        // What comes after a gap makes no sense: this connection is as good as dead.
                        this.swallowed.fetch_add(n as u64, Ordering::SeqCst);
                        break;
                    }
                    if to.write_all(&buffer[..n]).is_err() {
                        break;
                    }
                }
                if !answers || !this.swallow.load(Ordering::SeqCst) {
                    let _ = to.shutdown(Shutdown::Both);
                }
            });
        }
    }

    pub fn aim(&self, target: SocketAddr) {
        *self.target.lock().unwrap() = Some(target);
    }

    pub fn delay(&self, millis: u64) {
        self.delay.store(millis, Ordering::SeqCst);
    }

    /// Requests still go through; their answers do not come back.
    pub fn swallow(&self, on: bool) {
        self.swallow.store(on, Ordering::SeqCst);
    }

    pub fn cut(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
