//! Real servers in private folders, started by `scripts/services`, and a line to them that can be bad.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// A server of its own for one test.
pub struct Service {
    folder: tempfile::TempDir,
    kind: &'static str,
    args: Vec<String>,
    /// What the script says of where it is.
    pub address: String,
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/services")
}

fn run(args: &[&str]) -> String {
    let output = Command::new(script())
        .args(args)
        .env("TIDEGATE_SERVICES_PARENT", std::process::id().to_string())
        .output()
        .expect("scripts/services can be run");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "scripts/services {args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

impl Service {
    /// Starts `redis`, `redis-cluster`, `kafka`, `postgres`, `mariadb`, `etcd` or `nginx`, with further arguments for it.
    pub fn start(kind: &'static str, args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let args: Vec<String> = args.iter().map(|arg| String::from(*arg)).collect();
        let mut service = Self { folder, kind, args, address: String::new() };
        service.address = service.launch();
        service
    }

    /// Where it keeps what it has.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn launch(&self) -> String {
        let folder = self.folder.path().to_str().unwrap();
        let args: Vec<&str> =
            ["start", self.kind, folder].into_iter().chain(self.args.iter().map(String::as_str)).collect();
        run(&args)
    }

    /// A file that the script has put into the server's folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `kill -9`; of one node of a cluster, counted from 1.
    pub fn kill(&self, node: Option<u32>) {
        let folder =
            node.map_or_else(|| self.folder.path().to_owned(), |n| self.folder.path().join(format!("node-{n}")));
        let pid: i32 = std::fs::read_to_string(folder.join("pid")).unwrap().trim().parse().unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL)
            .unwrap();
        let begun = Instant::now();
        let gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ") || stat.contains(") X ")
        };
        while !gone() {
            assert!(begun.elapsed() < Duration::from_secs(10), "process {pid} outlives its kill");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Starts what was killed again, where it was.
    pub fn restart(&self) {
        assert_eq!(self.launch(), self.address);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = Command::new(script()).args(["stop", self.folder.path().to_str().unwrap()]).output();
    }
}

/// A Redis that tests share, each with a prefix of its own. It ends with this process.
pub fn redis() -> &'static str {
    static SHARED: OnceLock<Service> = OnceLock::new();
    &SHARED.get_or_init(|| Service::start("redis", &[])).address
}

/// A prefix, or name, that no other test has.
pub fn fresh(what: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{what}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A connection to Redis that is not Tidegate's.
pub fn redis_client(url: &str) -> deadpool_redis::redis::Connection {
    deadpool_redis::redis::Client::open(url).unwrap().get_connection().unwrap()
}

/// What a bad line does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Line {
    /// All goes through.
    Good,
    /// Answers come late.
    Slow,
    /// Requests go through, answers do not.
    Swallow,
    /// The same, but of answers to scripts alone.
    SwallowScripts,
    /// Nothing goes through, and connections end.
    Cut,
}

/// A proxy on loopback whose line can be made bad.
pub struct Proxy {
    pub address: SocketAddr,
    line: Arc<AtomicU8>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Proxy {
    /// In front of an address.
    pub fn to(target: &str) -> Self {
        Self::listen_on("127.0.0.1:0", target)
    }

    /// The same, listening where it is told.
    pub fn listen_on(at: &str, target: &str) -> Self {
        let target: SocketAddr = target.trim_start_matches("redis://").parse().unwrap();
        let listener = TcpListener::bind(at).unwrap();
        let address = listener.local_addr().unwrap();
        let line = Arc::new(AtomicU8::new(Line::Good as u8));
        let open: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let (the_line, held) = (line.clone(), open.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = TcpStream::connect_timeout(&target, Duration::from_secs(2));
                let Some(server) = server.ok().filter(|_| the_line.load(Ordering::SeqCst) != Line::Cut as u8) else {
                    continue;
                };
                for stream in [&client, &server] {
                    stream.set_nodelay(true).unwrap();
                    held.lock().unwrap().push(stream.try_clone().unwrap());
                }
                let (c, s) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let script = Arc::new(AtomicBool::new(false));
                let (line, sent) = (the_line.clone(), script.clone());
                std::thread::spawn(move || pump(c, s, None, &sent));
                std::thread::spawn(move || pump(server, client, Some(line), &script));
            }
        });
        Self { address, line, open }
    }

    /// Makes the line good or bad. To cut ends what is open.
    pub fn set(&self, line: Line) {
        self.line.store(line as u8, Ordering::SeqCst);
        if line == Line::Cut {
            self.cut();
        }
    }

    /// Ends what is open.
    pub fn cut(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Answers go the way of `line`; `script` says whether the latest request was one.
fn pump(mut from: TcpStream, mut to: TcpStream, line: Option<Arc<AtomicU8>>, script: &AtomicBool) {
    let mut piece = [0; 64 << 10];
    while let Ok(n @ 1..) = from.read(&mut piece) {
        if line.is_none() && piece[..n].starts_with(b"*") {
            script.store(piece[..n.min(64)].windows(4).any(|word| word == b"EVAL"), Ordering::SeqCst);
        }
        let line = line.as_ref().map_or(Line::Good as u8, |line| line.load(Ordering::SeqCst));
        let swallowed = line == Line::SwallowScripts as u8 && script.load(Ordering::SeqCst);
        if line == Line::Swallow as u8 || swallowed {
            continue;
        }
        if line == Line::Slow as u8 {
            std::thread::sleep(Duration::from_millis(150));
        }
        if to.write_all(&piece[..n]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
