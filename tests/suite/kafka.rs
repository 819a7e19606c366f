//! A real Kafka for tests, and clients that are not ours to read it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

/// The script that installs and starts services.
fn services() -> PathBuf {
    std::env::var_os("TIDEGATE_TEST_SERVICES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/services"), PathBuf::from)
}

fn run(command: &mut Command) -> String {
    let shown = format!("{command:?}");
    // What is started goes with this process, also when that is killed.
    let output = command.env("TIDEGATE_SERVICES_PARENT", std::process::id().to_string()).output();
    let output = output.unwrap_or_else(|error| panic!("{shown}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{shown} failed: these tests need a Kafka, which scripts/services installs with Maven and Java 17\n{}\n{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// A broker on loopback.
pub struct Broker {
    folder: PathBuf,
    settings: Vec<String>,
    pub address: String,
    _temporary: Option<tempfile::TempDir>,
}

impl Broker {
    /// One of its own, with these properties.
    pub fn start(settings: &[&str]) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let mut broker = Self {
            folder: temporary.path().join("kafka"),
            settings: settings.iter().map(|s| String::from(*s)).collect(),
            address: String::new(),
            _temporary: Some(temporary),
        };
        broker.restart();
        broker
    }

    /// The one that tests share which do it no harm.
    pub fn shared() -> &'static Broker {
        static SHARED: OnceLock<Broker> = OnceLock::new();
        SHARED.get_or_init(|| Broker::start(&[]))
    }

    /// `kill -9`.
    pub fn kill(&self) {
        run(Command::new(services()).arg("stop").arg(&self.folder));
    }

    /// Starts it again on the same port and data.
    pub fn restart(&mut self) {
        let mut command = Command::new(services());
        command.args(["start", "kafka"]).arg(&self.folder).args(&self.settings).stderr(Stdio::piped());
        let printed = run(&mut command);
        self.address = printed.lines().last().expect("an address").trim().to_owned();
    }

    /// One of Kafka's own command line tools.
    pub fn tool(&self, name: &str, arguments: &[&str]) -> String {
        let mut command = Command::new(services());
        run(command.args(["kafka-tool", name, "--bootstrap-server", &self.address]).args(arguments))
    }

    /// Every record of a topic, as another client sees them.
    pub fn read(&self, client: &str, topic: &str, isolation: &str) -> Vec<Value> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/read.py");
        let mut command = Command::new("python3");
        command.env("PYTHONPATH", clients()).arg(script).args([client, &self.address, topic, isolation]);
        let printed = run(&mut command);
        printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if self._temporary.is_some() {
            let _ = Command::new(services()).arg("stop").arg(&self.folder).output();
        }
    }
}

/// Where scripts/services has put the Python clients.
pub fn clients() -> PathBuf {
    let services = std::env::var_os("TIDEGATE_SERVICES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/services"), PathBuf::from);
    let found = services.join("kafka-clients");
    assert!(found.exists(), "{} is missing: please run scripts/services kafka kafka-clients", found.display());
    found
}

/// A prefix that no other test has.
pub fn prefix() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Validates lines of JSON against one of the repository's schemas by another's implementation, and counts them.
pub fn validate(schema: &str, lines: &str) -> usize {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let input = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(input.path(), lines).unwrap();
    let mut command = Command::new("python3");
    command
        .env("PYTHONPATH", clients())
        .arg(root.join("tests/clients/validate.py"))
        .arg(root.join("schemas").join(schema));
    run(command.stdin(std::fs::File::open(input.path()).unwrap())).trim().parse().unwrap()
}
