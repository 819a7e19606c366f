//! What is to be done to keys, gathered by slot group, as the script `apply.lua` takes it.

use hashbrown::HashSet;

use super::keys::Keys;

/// Operations on the keys of one group.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    /// The operations' keys, in their order; the fence comes before them.
    pub keys: Vec<String>,
    /// The operations.
    pub args: Vec<Vec<u8>>,
}

/// Operations by group.
#[derive(Debug)]
pub(super) struct Ops<'a> {
    keys: &'a Keys,
    expiring: &'a mut Expiring,
    now: i64,
    /// One a group; those without operations too, whose fences move as well.
    pub groups: Vec<Group>,
}

/// The keys whose expiry this process has set, so that it is not set with every delta. Forgotten now and then: to set one
/// again costs a command, to miss one would keep the key for ever.
#[derive(Debug, Default)]
pub(super) struct Expiring {
    set: HashSet<u64>,
}

/// More are not remembered.
const MOST_REMEMBERED: usize = 200_000;
/// Counters in one operation: what `MGET` can be unpacked for.
const MOST_ARGS: usize = 2000;

impl Expiring {
    pub fn forget(&mut self) {
        self.set.clear();
    }

    /// Whether the expiry of a key is to be set: true once.
    pub fn first(&mut self, key: &str, expires: i64) -> bool {
        if self.set.len() >= MOST_REMEMBERED {
            self.set.clear();
        }
        self.set.insert(xxhash_rust::xxh3::xxh3_64_with_seed(key.as_bytes(), expires as u64))
    }
}

impl<'a> Ops<'a> {
    /// None yet. What has expired at `now` (Unix seconds) is left out.
    pub fn new(keys: &'a Keys, expiring: &'a mut Expiring, now: i64) -> Self {
        let groups = (0..keys.groups()).map(|_| Group::default()).collect();
        Self { keys, expiring, now, groups }
    }

    /// Whether what expires then is gone already.
    pub fn is_over(&self, expires: i64) -> bool {
        expires <= self.now
    }

    /// Adds an operation on a key that expires at a time in Unix seconds, or never.
    pub fn put(&mut self, op: &str, name: &str, expires: Option<i64>, args: impl IntoIterator<Item = Vec<u8>>) {
        if expires.is_some_and(|expires| self.is_over(expires)) {
            return;
        }
        let group = self.keys.group(name);
        let key = self.keys.in_group(group, name);
        let expires = match expires {
            Some(expires) if self.expiring.first(&key, expires) => expires.to_string(),
            _ => String::new(),
        };
        let group = &mut self.groups[group];
        let at = group.args.len();
        group.args.extend([op.as_bytes().to_vec(), Vec::new(), expires.into_bytes()]);
        group.args.extend(args);
        group.args[at + 1] = (group.args.len() - at - 3).to_string().into_bytes();
        group.keys.push(key);
    }

    /// Adds to counters that expire at a time in Unix seconds, or never.
    pub fn counts(&mut self, expires: Option<i64>, counts: impl IntoIterator<Item = (String, u64)>) {
        if expires.is_some_and(|expires| self.is_over(expires)) {
            return;
        }
        let mut by_group: Vec<Vec<(String, u64)>> = vec![Vec::new(); self.groups.len()];
        for (name, n) in counts {
            let group = self.keys.group(&name);
            by_group[group].push((self.keys.in_group(group, &name), n));
        }
        let (op, expires) = match expires {
            Some(expires) => ("count", expires.to_string()),
            None => ("total", String::new()),
        };
        for (group, counts) in self.groups.iter_mut().zip(by_group) {
            for some in counts.chunks(MOST_ARGS) {
                let head = [op.to_owned(), some.len().to_string(), expires.clone()];
                group.args.extend(head.map(String::into_bytes));
                for (key, n) in some {
                    group.keys.push(key.clone());
                    group.args.push(n.to_string().into_bytes());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_name_their_arguments_and_expire_once() {
        let keys = Keys::new("", false);
        let mut expiring = Expiring::default();
        for round in 0..2 {
            let mut ops = Ops::new(&keys, &mut expiring, 100);
            ops.put("sadd", "a", Some(200), [b"5".to_vec()]);
            ops.put("sadd", "gone", Some(100), [b"5".to_vec()]);
            ops.put("sadd", "b", None, [b"x".to_vec(), b"y".to_vec()]);
            ops.counts(None, [(String::from("t1"), 1), (String::from("t2"), 2)]);
            ops.counts(Some(100), [(String::from("gone"), 1)]);
            ops.counts(Some(101), [(String::from("c"), 3)]);
            let group = &ops.groups[0];
            assert_eq!(group.keys, ["a", "b", "t1", "t2", "c"]);
            let args: Vec<&str> = group.args.iter().map(|arg| std::str::from_utf8(arg).unwrap()).collect();
            let expires = if round == 0 { "200" } else { "" };
            let counts = ["total", "2", "", "1", "2", "count", "1", "101", "3"];
            let sets = ["sadd", "1", expires, "5", "sadd", "2", "", "x", "y"];
            assert_eq!(args, [&sets[..], &counts[..]].concat());
        }
    }
}
