//! Who a request is from.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::UnixMillis;

/// What somebody is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Has an account.
    User,
    /// May operate the server.
    Operator,
    /// May do everything.
    Admin,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::User, Self::Operator, Self::Admin];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    /// From its name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }
}

/// Roles as they are stored: `user operator`. Names that nobody knows are left out.
pub(super) fn roles(text: &str) -> Vec<Role> {
    text.split_ascii_whitespace().filter_map(Role::parse).collect()
}

/// What vouches for somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// A token of ours, of this family of refresh tokens.
    Account {
        /// The family.
        session: Arc<str>,
    },
    /// A token of another issuer.
    Issuer(Arc<str>),
    /// An API key.
    Key,
}

/// Somebody whose word on who they are was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// Of the account; of another issuer's, `issuer|subject`; of a key, what is shown of it.
    pub id: String,
    /// For people.
    pub name: String,
    /// What they are.
    pub roles: Vec<Role>,
    /// What a key, or another issuer, lets them do.
    pub scopes: Vec<String>,
    /// What vouches for them.
    pub proof: Proof,
    /// When that ends.
    pub expires_at: Option<UnixMillis>,
}

impl Principal {
    /// Whether they are this.
    pub fn is(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// Whether they may do this.
    pub fn may(&self, scope: &str) -> bool {
        self.scopes.iter().any(|has| has == scope)
    }

    /// Who they are, for the log of changes: what they are called and what no other is called. A name that others chose cannot
    /// break a line, or be as long as it likes.
    pub fn who(&self) -> String {
        match &self.proof {
            Proof::Account { .. } => format!("account {} ({})", plain(&self.name), plain(&self.id)),
            Proof::Issuer(_) if self.id.ends_with(&format!("|{}", self.name)) => plain(&self.id),
            Proof::Issuer(_) => format!("{} ({})", plain(&self.id), plain(&self.name)),
            Proof::Key => format!("key {} ({})", plain(&self.id), plain(&self.name)),
        }
    }

    /// Whether they may operate the server: by a role, or by a key's scope.
    pub fn operates(&self) -> bool {
        self.is(Role::Operator) || self.is(Role::Admin) || (self.proof == Proof::Key && self.may("operator"))
    }
}

/// Longest part of a name that is told, in characters.
const NAME: usize = 256;

fn plain(text: &str) -> String {
    text.chars().take(NAME).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(id: &str, name: &str, proof: Proof) -> String {
        let (id, name) = (id.to_owned(), name.to_owned());
        Principal { id, name, roles: vec![], scopes: vec![], proof, expires_at: None }.who()
    }

    #[test]
    fn everybody_is_told_apart_and_nobody_breaks_a_line() {
        let issuer = || Proof::Issuer("https://a.example".into());
        assert_eq!(who("6f1c", "jo.doe", Proof::Account { session: "f".into() }), "account jo.doe (6f1c)");
        assert_eq!(who("tg_1a2b", "till 7", Proof::Key), "key tg_1a2b (till 7)");
        assert_eq!(who("https://a.example|42", "Ann", issuer()), "https://a.example|42 (Ann)");
        assert_eq!(who("https://a.example|42", "42", issuer()), "https://a.example|42");
        let forged = who("https://a.example|x\nthe admin key", &"y".repeat(1000), issuer());
        assert!(!forged.contains('\n') && forged.len() < 400, "{forged}");
    }
}
