//! Servers for tests: in this process on a manual clock, or the real binary to be killed.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tidegate::app::App;
use tidegate::clock::Clock;
use tidegate::config::Config;

/// A server in this process, on port 0 and a folder of its own.
pub struct TestApp {
    app: Option<App>,
    pub url: String,
    pub clock: Clock,
    pub folder: tempfile::TempDir,
}

impl TestApp {
    /// With the defaults, on the system's clock.
    pub async fn start() -> Self {
        Self::with(&[], Clock::system()).await
    }

    /// With settings (`"journal.durability" = "synced"`) and a clock.
    pub async fn with(settings: &[(&str, &str)], clock: Clock) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::on(folder, settings, clock).await
    }

    /// With a gateway on port 0: `toml` goes on where `[gateway]` has begun.
    pub async fn with_gateway(toml: &str, settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = gateway_file(folder.path(), toml);
        Self::of(folder, Some(&file), settings, Clock::system()).await
    }

    /// With a config file.
    pub async fn with_file(toml: &str, settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tidegate.toml");
        std::fs::write(&file, toml).unwrap();
        Self::of(folder, Some(&file), settings, Clock::system()).await
    }

    /// Where the admin API is, as `http://...`.
    pub fn admin(&self) -> String {
        format!("http://{}", self.app().admin_address().expect("an admin API"))
    }

    /// Where the gateway takes plain HTTP, as `http://...`.
    pub fn gateway(&self) -> String {
        format!("http://{}", self.app().gateway_address().expect("a gateway"))
    }

    /// On a folder that was used before.
    pub async fn on(folder: tempfile::TempDir, settings: &[(&str, &str)], clock: Clock) -> Self {
        Self::of(folder, None, settings, clock).await
    }

    async fn of(folder: tempfile::TempDir, file: Option<&Path>, settings: &[(&str, &str)], clock: Clock) -> Self {
        let mut env = vec![
            (String::from("TIDEGATE__SERVER__LISTEN"), String::from("127.0.0.1:0")),
            (String::from("TIDEGATE__ADMIN__LISTEN"), String::from("127.0.0.1:0")),
            (String::from("TIDEGATE__DATA__DIR"), folder.path().join("data").display().to_string()),
        ];
        for (key, value) in settings {
            let name = format!("TIDEGATE__{}", key.to_uppercase().replace('.', "__"));
            env.retain(|(known, _)| *known != name);
            env.push((name, String::from(*value)));
        }
        let config = Config::load(file, env.into_iter()).unwrap();
        let app = App::start(config, clock.clone()).await.unwrap();
        Self { url: format!("http://{}", app.address()), app: Some(app), clock, folder }
    }

    pub fn app(&self) -> &App {
        self.app.as_ref().unwrap()
    }

    /// Stops it and gives its folder for another.
    pub async fn stop(mut self) -> tempfile::TempDir {
        self.app.take().unwrap().stop().await.unwrap();
        std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap())
    }

    /// Waits until all that is accepted is counted.
    pub async fn counted(&self) {
        let core = self.app().core();
        let end = core.journal.end();
        let waited = tokio::time::timeout(Duration::from_secs(20), core.stats.counted_through(end)).await;
        waited.expect("everything is counted within 20 s");
    }

    pub async fn get(&self, path: &str) -> Answer {
        super::client::get(&format!("{}{path}", self.url)).await
    }

    /// The `data` of a 200.
    pub async fn data(&self, path: &str) -> Value {
        let answer = self.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()["data"].clone()
    }

    pub async fn post(&self, body: impl Into<Vec<u8>>) -> Answer {
        super::client::post(&format!("{}/api/v1/events", self.url), &[], body.into()).await
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        // A failing test may drop it outside the runtime, where its pools cannot go; the failure should be what is told.
        if std::thread::panicking() {
            std::mem::forget(self.app.take());
        }
    }
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// A config file with a gateway on port 0; `toml` goes on where `[gateway]` has begun.
pub fn gateway_file(folder: &Path, toml: &str) -> PathBuf {
    let file = folder.join("tidegate.toml");
    std::fs::write(&file, format!("[gateway]\nlisten = \"127.0.0.1:0\"\n{toml}")).unwrap();
    file
}

/// The real binary.
pub struct Process {
    child: Child,
    pub address: SocketAddr,
    pub url: String,
    /// Where its gateway takes plain HTTP, if it has one.
    pub gateway: Option<SocketAddr>,
    /// Where its admin API is.
    pub admin: String,
}

impl Process {
    /// Starts it on a data folder and waits until it says where it listens.
    pub fn start(data: &Path, settings: &[(&str, &str)]) -> Self {
        Self::start_within(data, settings, Duration::from_secs(30))
    }

    pub fn start_within(data: &Path, settings: &[(&str, &str)], patience: Duration) -> Self {
        Self::launch(data, None, settings, patience)
    }

    /// With a gateway: see [`gateway_file`].
    pub fn with_gateway(data: &Path, toml: &str, settings: &[(&str, &str)]) -> Self {
        let file = gateway_file(data.parent().unwrap(), toml);
        Self::launch(data, Some(&file), settings, Duration::from_secs(30))
    }

    fn launch(data: &Path, file: Option<&Path>, settings: &[(&str, &str)], patience: Duration) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(data);
        command.env("TIDEGATE__ADMIN__LISTEN", "127.0.0.1:0");
        if let Some(file) = file {
            command.arg("--config").arg(file);
        }
        for (key, value) in settings {
            command.env(format!("TIDEGATE__{}", key.to_uppercase().replace('.', "__")), value);
        }
        // Beside the folder, for tests that read it.
        let log = std::fs::File::create(data.with_extension("log")).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let (told, hears) = std::sync::mpsc::channel();
        let stdout = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stdout);
            // The last line that it says is that of the API.
            let mut said = String::new();
            while !said.contains("/docs/") && lines.read_line(&mut said).unwrap() > 0 {}
            let _ = told.send(said);
            let _ = lines.read_to_end(&mut Vec::new());
        });
        let said = hears.recv_timeout(patience).expect("the server says in time where it listens");
        let gateway = said.lines().find_map(|line| line.trim().strip_prefix("gateway")?.trim().strip_prefix("http://"));
        let gateway = gateway.map(|address| address.parse().unwrap());
        let admin = said.lines().find_map(|line| line.trim().strip_prefix("admin")).expect("an admin API");
        let admin = admin.trim().to_owned();
        let line = said;
        let url = line.split_whitespace().find(|word| word.starts_with("http://")).expect("an address");
        let url = url.trim_end_matches(',').to_owned();
        Self { child, address: url["http://".len()..].parse().unwrap(), url, gateway, admin }
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends it SIGHUP.
    pub fn hang_up(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    }

    /// SIGTERM; does not wait.
    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// Waits for its end and returns how long that took, and whether it was a success.
    pub fn wait(mut self, most: Duration) -> (Duration, bool) {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (begun.elapsed(), status.success());
            }
            assert!(begun.elapsed() < most, "it did not end within {most:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Resident memory, in bytes.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A test that failed must not leave a server behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the binary with arguments; its exit code, standard output and standard error.
pub fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tidegate")).args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// A file of the real input, which lies beside the repository.
pub fn real_data(name: &str) -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data").join(name);
    let path = std::env::var_os("TIDEGATE_TEST_DATA").map_or(beside, |folder| PathBuf::from(folder).join(name));
    path.exists().then_some(path)
}

/// Waits until `done`, at most 20 seconds.
pub async fn eventually(what: &str, done: impl AsyncFnMut() -> bool) {
    within(Duration::from_secs(20), what, done).await;
}

/// Waits until `done`, at most so long.
pub async fn within(most: Duration, what: &str, mut done: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !done().await {
        assert!(begun.elapsed() < most, "not within {most:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
