//! A real Kafka for tests, and clients that are not ours to read it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use crate::services::{Service, fresh};

fn run(command: &mut Command) -> String {
    let shown = format!("{command:?}");
    let output = command.output().unwrap_or_else(|error| panic!("{shown}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{shown} failed:\n{}\n{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// A broker on loopback.
pub struct Broker(Service);

impl Broker {
    /// One of its own, with these properties.
    pub fn start(settings: &[&str]) -> Self {
        Self(Service::start("kafka", settings))
    }

    /// The one that tests share which do it no harm. It ends with this process.
    pub fn shared() -> &'static Broker {
        static SHARED: OnceLock<Broker> = OnceLock::new();
        SHARED.get_or_init(|| Broker::start(&[]))
    }

    /// One that speaks TLS and SASL as well, beside the plain address.
    pub fn secure() -> Self {
        Self::start(&["--secure"])
    }

    /// What a client of such a broker needs: a file by its name (`ca.pem`, `client.key`), or what is in it (`sasl`).
    pub fn secret(&self, name: &str) -> (String, String) {
        let path = self.0.file("secure").join(name);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        (path.to_str().unwrap().to_owned(), text)
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        &self.0.address
    }

    /// `kill -9`.
    pub fn kill(&self) {
        self.0.kill(None);
    }

    /// Starts it again on the same port and data.
    pub fn restart(&self) {
        self.0.restart();
    }

    /// One of Kafka's own command line tools.
    pub fn tool(&self, name: &str, arguments: &[&str]) -> String {
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/services"));
        run(command.args(["kafka-tool", name, "--bootstrap-server", self.address()]).args(arguments))
    }

    /// Every record of a topic, as another client sees them.
    pub fn read(&self, client: &str, topic: &str, isolation: &str) -> Vec<Value> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/read.py");
        let mut command = Command::new(python());
        command.arg(script).args([client, self.address(), topic, isolation]);
        run(&mut command).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Whether a test cannot be run, because the broker is not Apache Kafka but what stands in for it (scripts/services); says
/// so, with the reason.
pub fn skipped(test: &str, why: &str) -> bool {
    let kind = std::fs::read_to_string(Broker::shared().0.file("kind")).unwrap();
    let skipped = kind != "java";
    if skipped {
        // Past what the test harness keeps to itself.
        let _ = writeln!(std::io::stderr(), "skipped: {test}: it needs Apache Kafka; its stand-in {why}");
    }
    skipped
}

/// The interpreter that has the clients, from scripts/services.
fn python() -> PathBuf {
    let services = std::env::var_os("TIDEGATE_SERVICES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/services"), PathBuf::from);
    let found = services.join("kafka-clients/bin/python");
    assert!(found.exists(), "{} is missing: please run scripts/services kafka kafka-clients", found.display());
    found
}

/// A prefix that no other test has.
pub fn prefix() -> String {
    fresh("t")
}

/// Validates lines of JSON against one of the repository's schemas by another's implementation, and counts them.
pub fn validate(schema: &str, lines: &str) -> usize {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let input = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(input.path(), lines).unwrap();
    let mut command = Command::new(python());
    command.arg(root.join("tests/clients/validate.py")).arg(root.join("schemas").join(schema));
    run(command.stdin(std::fs::File::open(input.path()).unwrap())).trim().parse().unwrap()
}
