//! A server that dies at every moment of a change: what is started then has a whole config, and the one that was in force.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::death::{self, Death};
use super::{Control, make_up};
use crate::clock::Clock;
use crate::config::Config;
use crate::config::live::LiveConfig;

struct Server {
    folder: tempfile::TempDir,
    file: PathBuf,
    runtime: tokio::runtime::Runtime,
}

fn text(folder: &Path, workers: u32) -> String {
    format!("[data]\ndir = \"{}\"\n[server]\nworkers = {workers}\n", folder.join("data").display())
}

impl Server {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tidegate.toml");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        std::fs::write(&file, text(folder.path(), 1)).unwrap();
        std::fs::create_dir(folder.path().join("data")).unwrap();
        Self { folder, file, runtime }
    }

    fn text(&self, workers: u32) -> String {
        text(self.folder.path(), workers)
    }

    fn says(&self) -> String {
        std::fs::read_to_string(&self.file).unwrap()
    }

    /// As a process starts; with what it has in force.
    fn start(&self) -> (Control, usize) {
        let _inside = self.runtime.enter();
        let read = || Config::load(Some(&self.file), std::iter::empty()).unwrap();
        let mut config = read();
        if make_up(&config).unwrap() {
            config = read();
            assert!(!make_up(&config).unwrap(), "once");
        }
        let (workers, options, live) = (config.workers, config.admin, LiveConfig::new(config.live.clone()));
        (Control::start(Arc::new(config), live, None, options, Clock::system()).unwrap(), workers)
    }

    /// Does something, and dies at this moment of it; true if it was done before that.
    fn dies(&self, moment: u32, work: impl AsyncFnOnce(&Control)) -> bool {
        let (control, _) = self.start();
        death::after(Some(moment));
        let outcome = catch_unwind(AssertUnwindSafe(|| self.runtime.block_on(work(&control))));
        death::after(None);
        match outcome {
            Ok(()) => true,
            Err(death) if death.is::<Death>() => false,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// What must be so after every start.
    fn check(&self, control: &Control, workers: usize) {
        let (version, versions) = self.runtime.block_on(control.history());
        assert_eq!(versions.first().map(|latest| latest.version), Some(version));
        assert_eq!(self.says(), self.text(workers as u32), "what is in force is in the file");
        assert_eq!(control.config().workers, workers);
        let log = std::fs::read_to_string(self.folder.path().join("data/audit.log")).unwrap();
        let broken = log.lines().filter(|line| serde_json::from_str::<serde_json::Value>(line).is_err()).count();
        assert!(broken <= 1 && (log.is_empty() || log.ends_with('\n')), "at most the line it died in: {log}");
        let more = self.runtime.block_on(control.put(self.text(7), "next", None, "t")).unwrap();
        assert_eq!(more.version, version + 1, "it goes on");
        assert_eq!(self.says(), self.text(7));
    }
}

#[test]
fn a_change_is_there_as_a_whole_or_not_at_all() {
    let (mut old, mut new) = (0, 0);
    for moment in 0.. {
        let server = Server::new();
        let next = server.text(2);
        let done = server.dies(moment, async |control| {
            control.put(next, "next", None, "t").await.unwrap();
        });
        let (control, workers) = server.start();
        assert!(workers == 1 || workers == 2, "{workers}");
        assert!(!done || workers == 2, "what was confirmed is there");
        let before = if workers == 1 { &mut old } else { &mut new };
        *before += 1;
        assert!(workers == 2 || new == 0, "once it is in the history, it stays, whatever comes after");
        server.check(&control, workers);
        if done {
            break;
        }
    }
    // The file and the note beside their places, the line, the version, the file in its place, the note gone.
    assert!(old >= 10 && new >= 4, "{old} moments before, {new} after");
}

#[test]
fn a_change_that_was_taken_back_does_not_come_again() {
    let mut back = 0;
    for moment in 0.. {
        let server = Server::new();
        let (control, _) = server.start();
        server.runtime.block_on(control.put(server.text(2), "next", None, "t")).unwrap();
        drop(control);
        let done = server.dies(moment, async |control| {
            control.rollback(None, "t").await.unwrap();
        });
        let (control, workers) = server.start();
        assert!(workers == 1 || (workers == 2 && back == 0), "in the history it is taken back, and so it stays");
        back += u32::from(workers == 1);
        server.check(&control, workers);
        if done {
            break;
        }
    }
    assert!(back >= 4, "{back}");
}

#[test]
fn what_somebody_wrote_meanwhile_is_not_overwritten() {
    for moment in 0.. {
        let server = Server::new();
        let next = server.text(2);
        let done = server.dies(moment, async |control| {
            control.put(next, "next", None, "t").await.unwrap();
        });
        std::fs::write(&server.file, server.text(3)).unwrap();
        let (control, workers) = server.start();
        assert_eq!(workers, 3);
        server.check(&control, 3);
        if done {
            break;
        }
    }
}

#[test]
fn a_file_that_cannot_be_written_is_a_change_that_is_not_made() {
    let server = Server::new();
    let (control, _) = server.start();
    // Where the new text would be written first.
    std::fs::create_dir(server.folder.path().join("tidegate.toml.new")).unwrap();
    let error = server.runtime.block_on(control.put(server.text(2), "next", None, "t")).unwrap_err();
    assert!(error.to_string().starts_with("the config file cannot be written"), "{error}");
    assert_eq!((control.config().workers, server.says()), (1, server.text(1)));
    assert_eq!(server.runtime.block_on(control.history()).1.len(), 1);
}
