//! Which key holds what. The two plain ones are the OpenResty deployment's; the others begin with `tg:popularity:`, and in a
//! cluster with the tag of their slot group, as those of the statistics do.

use xxhash_rust::xxh3::xxh3_64;

use crate::catalog::popularity::Kind;

/// Slot groups of a cluster.
const GROUPS: usize = 16;

/// Makes keys.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
    groups: usize,
}

impl Keys {
    /// Keys under `prefix`, in a cluster or not.
    pub fn new(prefix: &str, cluster: bool) -> Self {
        Self { prefix: prefix.to_owned(), groups: if cluster { GROUPS } else { 1 } }
    }

    /// How many groups there are.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// The group of a product.
    pub fn group(&self, id: &str) -> usize {
        if self.groups == 1 { 0 } else { (xxh3_64(id.as_bytes()) % self.groups as u64) as usize }
    }

    /// Whether the plain keys lie in the slots of the others.
    pub fn plain_beside(&self) -> bool {
        self.groups == 1
    }

    fn in_group(&self, group: usize, name: &str) -> String {
        let prefix = &self.prefix;
        if self.groups == 1 {
            format!("{prefix}tg:popularity:{name}")
        } else {
            format!("{{{prefix}tg-{group:02}}}:tg:popularity:{name}")
        }
    }

    /// State, changes and dues of a group.
    pub fn of_group(&self, group: usize) -> [String; 3] {
        ["state", "changed", "due"].map(|name| self.in_group(group, name))
    }

    /// The parts of a product.
    pub fn parts(&self, id: &str) -> String {
        self.in_group(self.group(id), &format!("of:{id}"))
    }

    /// The sum of a product, as the OpenResty deployment asks for it.
    pub fn plain(&self, kind: Kind, id: &str) -> String {
        let name = match kind {
            Kind::Views => "product:views:24h:",
            Kind::Units => "product:sales:7d:",
        };
        format!("{}{name}{id}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_keys_are_those_of_the_older_deployment() {
        for cluster in [false, true] {
            let keys = Keys::new("", cluster);
            assert_eq!(keys.plain(Kind::Views, "17"), "product:views:24h:17");
            assert_eq!(keys.plain(Kind::Units, "17"), "product:sales:7d:17");
        }
        assert_eq!(Keys::new("x:", false).parts("17"), "x:tg:popularity:of:17");
        let keys = Keys::new("x:", true);
        let group = keys.group("17");
        assert_eq!(keys.parts("17"), format!("{{x:tg-{group:02}}}:tg:popularity:of:17"));
        let [state, ..] = keys.of_group(group);
        assert_eq!(state, format!("{{x:tg-{group:02}}}:tg:popularity:state"));
        let groups: std::collections::HashSet<usize> = (0..500).map(|i| keys.group(&i.to_string())).collect();
        assert_eq!(groups.len(), GROUPS);
    }
}
