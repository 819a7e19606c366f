//! What is known of an upstream's targets, and whether an answer may change it.
//!
//! An answer that would leave no target is suspect: a registry that has lost its data, a renamed service, or a checker gone
//! wrong look just the same as a service that is gone, and a gateway that keeps what it knew costs nothing in that last case
//! but errors that would be errors anyway. So it is never accepted by itself, however often it comes: the last targets stay
//! until the registry names others, and the fault is shown until then. An answer with some bad nodes among good ones counts.

use crate::clock::Nanos;
use crate::gateway::connect::ConnectError;
use crate::gateway::options::TargetOptions;

use super::node::{Answer, MAX_NODES};

/// What is wrong with a registry. The texts name no addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It cannot be reached.
    #[error("{0}")]
    Connect(ConnectError),
    /// It does not answer.
    #[error("it does not answer in time")]
    Late,
    /// It went away while it was heard.
    #[error("it closed the connection")]
    Lost,
    /// It answered something else than 200.
    #[error("it answered {0}")]
    Status(u16),
    /// It answered 401 or 403.
    #[error("it refused; a token is missing, wrong, or may not read this")]
    Refused,
    /// It says more than is read.
    #[error("its answer is too long")]
    TooLong,
    /// It says what cannot be understood.
    #[error("its answer cannot be understood")]
    Malformed,
    /// It names more nodes than are taken.
    #[error("it names more than {MAX_NODES} nodes")]
    TooMany,
    /// It names no nodes.
    #[error("it names no nodes")]
    Empty,
    /// It names nodes, and none is good.
    #[error("none of its {0} nodes can be used")]
    AllBad(usize),
}

impl Fault {
    /// Whether it answered, and the answer is what is wrong.
    fn is_suspect(&self) -> bool {
        matches!(self, Self::TooLong | Self::Malformed | Self::TooMany | Self::Empty | Self::AllBad(_))
    }
}

/// Where targets are from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// There are none yet.
    Nowhere,
    /// The config.
    Config,
    /// The disk: what the registry said before the last start.
    Disk,
    /// The registry.
    Registry,
}

/// What is worth a line in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// All was well, and this is not.
    Began(Fault),
    /// It is well again.
    Ended,
    /// There were no bad nodes, and there are.
    Rejects,
}

/// Numbers since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Answers that count.
    pub answers: u64,
    /// Those that changed something.
    pub changes: u64,
    /// Answers that were suspect: empty, without one good node, too long, or not to be understood.
    pub suspect: u64,
    /// Times it could not be asked, or did not answer.
    pub failures: u64,
}

#[derive(Debug)]
pub(super) struct Keeper {
    pub targets: Vec<TargetOptions>,
    pub origin: Origin,
    /// Counts up with each change of `targets`.
    pub generation: u64,
    /// Bad nodes in the last answer.
    pub rejected: usize,
    pub fault: Option<Fault>,
    /// When an answer counted last.
    pub answered_at: Option<Nanos>,
    pub counts: Counts,
}

impl Keeper {
    pub fn new() -> Self {
        Self {
            targets: vec![],
            origin: Origin::Nowhere,
            generation: 0,
            rejected: 0,
            fault: None,
            answered_at: None,
            counts: Counts::default(),
        }
    }

    /// Those of the config, for ever.
    pub fn fixed(targets: &[TargetOptions]) -> Self {
        let targets = Answer::of(targets.iter().cloned().map(Ok)).targets;
        Self { targets, origin: Origin::Config, generation: 1, ..Self::new() }
    }

    /// The registry answered. Changes show in `generation`.
    pub fn heard(&mut self, answer: Answer, now: Nanos) -> Option<News> {
        let fault = match &answer {
            Answer { nodes: 0, .. } => Some(Fault::Empty),
            Answer { nodes, .. } if *nodes > MAX_NODES => Some(Fault::TooMany),
            Answer { nodes, rejected, .. } if nodes == rejected => Some(Fault::AllBad(*nodes)),
            _ => None,
        };
        let rejects = answer.rejected > 0 && self.rejected == 0;
        self.rejected = answer.rejected;
        if let Some(fault) = fault {
            return self.failed(fault);
        }
        self.counts.answers += 1;
        self.answered_at = Some(now);
        self.origin = Origin::Registry;
        if self.targets != answer.targets {
            self.targets = answer.targets;
            self.generation += 1;
            self.counts.changes += 1;
        }
        match self.fault.take() {
            Some(_) => Some(News::Ended),
            None => rejects.then_some(News::Rejects),
        }
    }

    /// The registry said that nothing has changed.
    pub fn confirmed(&mut self, now: Nanos) {
        if self.fault.is_none() {
            self.answered_at = Some(now);
        }
    }

    /// The registry could not be heard, or not be believed.
    pub fn failed(&mut self, fault: Fault) -> Option<News> {
        if fault.is_suspect() {
            self.counts.suspect += 1
        } else {
            self.counts.failures += 1
        }
        let began = self.fault.is_none();
        self.fault = Some(fault.clone());
        began.then_some(News::Began(fault))
    }

    /// What the disk remembers; it serves only where nothing else is known.
    pub fn remembered(&mut self, targets: Vec<TargetOptions>) -> bool {
        let serves = self.origin == Origin::Nowhere && !targets.is_empty();
        if serves {
            self.targets = targets;
            self.origin = Origin::Disk;
            self.generation += 1;
        }
        serves
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::discovery::node::BadNode;

    fn at(address: &str) -> TargetOptions {
        TargetOptions { address: String::from(address), weight: 1 }
    }

    fn answer(addresses: &[&str], bad: usize) -> Answer {
        let good = addresses.iter().map(|address| Ok(at(address)));
        Answer::of(good.chain(std::iter::repeat_n(Err(BadNode::Form), bad)))
    }

    #[test]
    fn an_answer_without_targets_never_empties_the_pool() {
        let mut keeper = Keeper::new();
        assert_eq!(keeper.heard(answer(&["a:1", "b:1"], 0), 10), None);
        assert_eq!((keeper.generation, keeper.origin), (1, Origin::Registry));
        for round in 0..1000 {
            let news = keeper.heard(answer(&[], 0), 20);
            assert_eq!(news, (round == 0).then_some(News::Began(Fault::Empty)), "it is told once");
            assert_eq!(keeper.heard(answer(&[], 3), 20), None);
            assert_eq!(keeper.fault, Some(Fault::AllBad(3)));
            assert_eq!(keeper.failed(Fault::Malformed), None);
        }
        keeper.confirmed(20);
        assert_eq!((keeper.targets.len(), keeper.generation, keeper.answered_at), (2, 1, Some(10)));
        assert_eq!((keeper.counts.suspect, keeper.counts.answers), (3000, 1));
        assert_eq!(keeper.heard(answer(&["a:1", "b:1"], 0), 30), Some(News::Ended));
        assert_eq!(
            (keeper.generation, keeper.answered_at, keeper.fault.clone()),
            (1, Some(30), None),
            "nothing changed"
        );
        keeper.confirmed(35);
        assert_eq!(keeper.answered_at, Some(35));
        keeper.heard(answer(&["c:1"], 0), 40);
        assert_eq!((keeper.targets.clone(), keeper.generation), (vec![at("c:1")], 2));
    }

    #[test]
    fn a_bad_node_costs_only_itself() {
        let mut keeper = Keeper::new();
        assert_eq!(keeper.heard(answer(&["a:1"], 2), 1), Some(News::Rejects));
        assert_eq!((keeper.targets.clone(), keeper.rejected), (vec![at("a:1")], 2));
        assert_eq!(keeper.heard(answer(&["a:1"], 3), 2), None);
        assert_eq!(keeper.heard(answer(&["a:1"], 0), 3), None);
        assert_eq!(keeper.heard(answer(&["a:1"], 1), 4), Some(News::Rejects));
    }

    #[test]
    fn too_many_are_none() {
        let mut keeper = Keeper::new();
        keeper.heard(answer(&["a:1"], 0), 1);
        let many: Vec<String> = (0..=MAX_NODES).map(|n| format!("n{n}:1")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(keeper.heard(answer(&many, 0), 2), Some(News::Began(Fault::TooMany)));
        assert_eq!(keeper.targets, [at("a:1")]);
        assert_eq!(keeper.heard(answer(&many[1..], 0), 2), Some(News::Ended));
        assert_eq!(keeper.targets.len(), MAX_NODES);
    }

    #[test]
    fn the_disk_serves_only_until_the_registry_does() {
        let mut keeper = Keeper::new();
        assert!(!keeper.remembered(vec![]));
        assert_eq!(keeper.failed(Fault::Late), Some(News::Began(Fault::Late)));
        assert!(keeper.remembered(vec![at("old:1")]));
        assert!(!keeper.remembered(vec![at("older:1")]));
        assert_eq!((keeper.origin, keeper.generation, keeper.answered_at), (Origin::Disk, 1, None));
        assert_eq!(keeper.heard(answer(&[], 0), 2), None);
        assert_eq!((keeper.origin, keeper.targets.len()), (Origin::Disk, 1));
        assert_eq!(keeper.heard(answer(&["old:1"], 0), 3), Some(News::Ended));
        assert_eq!((keeper.origin, keeper.generation), (Origin::Registry, 1), "the same, and now confirmed");
        assert!(!keeper.remembered(vec![at("older:1")]));
        assert_eq!((keeper.counts.failures, keeper.counts.suspect), (1, 1));
    }
}
