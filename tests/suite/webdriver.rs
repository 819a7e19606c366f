//! A real Chromium, driven over chromedriver's WebDriver protocol (W3C): fresh for each test, and gone with it.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tidegate::clock::Stopwatch;
use tokio::sync::{Mutex, MutexGuard};

use crate::client;

/// A name that leads to this machine, for what a page would do only on a host that is not called localhost.
pub const HOST: &str = "tidegate.test";

const ARGUMENTS: &[&str] = &[
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--no-proxy-server",
    // No request leaves this machine, whatever a page asks for.
    "--host-resolver-rules=MAP tidegate.test 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
];
const PATIENCE: Duration = Duration::from_secs(20);
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// One browser at a time: two on two cores would measure each other.
static TURN: Mutex<()> = Mutex::const_new(());

/// A browser.
pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
    _profile: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

/// One of its windows.
#[derive(Clone, Debug, PartialEq)]
pub struct Window(String);

impl Browser {
    /// Starts one, with an empty window.
    pub async fn start() -> Self {
        let turn = TURN.lock().await;
        let (driver, port) = start_driver();
        let profile = tempfile::tempdir().unwrap();
        let mut args: Vec<String> = ARGUMENTS.iter().map(|arg| String::from(*arg)).collect();
        args.push(format!("--user-data-dir={}", profile.path().display()));
        // From here on it is dropped, and so ended, if anything fails.
        let mut browser = Self { driver, port, session: String::new(), _profile: profile, _turn: turn };
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": args},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let session = browser.post("/session", wanted).await;
        browser.session = session["sessionId"].as_str().expect("a session").to_owned();
        browser
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        let answer = client::post(&url, &[("content-type", "application/json")], body.to_string().into()).await;
        let value = answer.json()["value"].take();
        assert_eq!(answer.status, 200, "{path}: {} {}", value["error"], value["message"]);
        value
    }

    async fn command(&self, command: &str, body: Value) -> Value {
        self.post(&format!("/session/{}/{command}", self.session), body).await
    }

    /// The window that the other methods work in.
    pub async fn window(&self) -> Window {
        let url = format!("http://127.0.0.1:{}/session/{}/window", self.port, self.session);
        Window(client::get(&url).await.json()["value"].as_str().expect("a window").to_owned())
    }

    /// Opens a window and works in it. (A window, as browsers do not draw what is in a hidden tab.)
    pub async fn new_window(&self) -> Window {
        let made = self.command("window/new", json!({"type": "window"})).await;
        let window = Window(made["handle"].as_str().expect("a window").to_owned());
        self.switch(&window).await;
        window
    }

    /// Works in this window from now on.
    pub async fn switch(&self, window: &Window) {
        self.command("window", json!({"handle": window.0})).await;
    }

    /// Loads a page.
    pub async fn open(&self, url: &str) {
        self.command("url", json!({"url": url})).await;
    }

    /// Runs the body of a function; what it returns.
    pub async fn run(&self, script: &str, args: Value) -> Value {
        self.command("execute/sync", json!({"script": script, "args": args})).await
    }

    /// Clicks what a CSS selector finds, like a person.
    pub async fn click(&self, selector: &str) {
        let found = self.command("element", json!({"using": "css selector", "value": selector})).await;
        let id = found[ELEMENT].as_str().expect("an element").to_owned();
        self.command(&format!("element/{id}/click"), json!({})).await;
    }

    /// A command of the DevTools protocol.
    pub async fn devtools(&self, command: &str, params: Value) -> Value {
        self.command("goog/cdp/execute", json!({"cmd": command, "params": params})).await
    }

    /// Asks a script every 20 ms until it returns something true.
    pub async fn until(&self, what: &str, script: &str, args: Value) -> Value {
        let begun = Stopwatch::start();
        loop {
            let value = self.run(script, args.clone()).await;
            if !matches!(value, Value::Null | Value::Bool(false)) {
                return value;
            }
            if begun.elapsed() > PATIENCE {
                let text = self.run("return document.body.innerText", json!([])).await;
                panic!("not within {PATIENCE:?}: {what}; the page says: {text}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What pages complained about since the last call: errors, warnings and violations of their security policy.
    pub async fn complaints(&self) -> Vec<String> {
        let log = self.command("se/log", json!({"type": "browser"})).await;
        let bad = |entry: &&Value| matches!(entry["level"].as_str(), Some("SEVERE" | "WARNING"));
        log.as_array().expect("a log").iter().filter(bad).map(|entry| entry["message"].to_string()).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        drop(self.driver.stdin.take());
        let _ = self.driver.wait();
    }
}

/// Runs chromedriver, and ends it with all that it started (they are one process group) as soon as standard input is
/// closed: when the test is over, and also when its process was aborted.
const DRIVER: &str = "chromedriver --port=0 </dev/null & cat >/dev/null; kill -9 -$$";

/// chromedriver on a free port, which it says itself.
fn start_driver() -> (Child, u16) {
    const MISSING: &str = "Chromium and chromedriver are needed here; install them with: scripts/services chromium";
    // Without this check chromedriver would say so in its own words, much later.
    for program in ["chromium", "chromedriver"] {
        let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(found.is_ok_and(|status| status.success()), "{MISSING}");
    }
    let mut command = Command::new("sh");
    command.args(["-c", DRIVER]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    let mut driver = command.spawn().unwrap();
    let mut stdout = BufReader::new(driver.stdout.take().unwrap());
    let (told, hears) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        while stdout.read_line(&mut line).is_ok_and(|read| read > 0) {
            if let Some((_, port)) = line.split_once("started successfully on port ") {
                let _ = told.send(port.trim().trim_end_matches('.').parse::<u16>());
            }
            line.clear();
        }
    });
    match hears.recv_timeout(PATIENCE) {
        Ok(Ok(port)) => (driver, port),
        _ => {
            drop(driver.stdin.take());
            let _ = driver.wait();
            panic!("chromedriver did not say within {PATIENCE:?} on which port it listens");
        }
    }
}
