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

    /// Whether they may operate the server: by a role, or by a key's scope.
    pub fn operates(&self) -> bool {
        self.is(Role::Operator) || self.is(Role::Admin) || (self.proof == Proof::Key && self.may("operator"))
    }
}
