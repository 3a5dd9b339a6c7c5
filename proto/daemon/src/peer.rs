//! Who may ask for what?
//!
//! The kernel says which user is at the other end of a unix socket; the configuration says what that user may.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use nix::unistd::User;
use tonic::{Request, Status};

/// The process that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its user.
    pub uid: u32,
    /// Its process, where the kernel knows it in this process namespace.
    pub pid: Option<i32>,
}

/// What a user may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Looks, and changes nothing.
    Reader,
    /// Does all there is.
    Driver,
}

/// A user that the configuration names and this host can't tell.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// There is none of that name.
    #[error(
        "{key} names user {name:?}, which this host does not know: make that user, or name it by its number"
    )]
    Unknown {
        /// `drivers` or `readers`.
        key: &'static str,
        /// The name.
        name: String,
    },
    /// Looking failed.
    #[error("{key} names user {name:?}, and it can't be looked up")]
    Lookup {
        /// `drivers` or `readers`.
        key: &'static str,
        /// The name.
        name: String,
        /// Why.
        source: nix::Error,
    },
}

/// Which user has which role; all clones are one, and a reload changes them all.
#[derive(Debug, Clone, Default)]
pub struct Roles(Arc<RwLock<BTreeMap<u32, Role>>>);

/// User 0 needs no mention: it could become any other.
const ROOT: u32 = 0;

impl Roles {
    /// The roles of root, and of users given by name or number.
    ///
    /// # Errors
    ///
    /// Every name that can't be resolved.
    pub fn resolve(drivers: &[String], readers: &[String]) -> Result<Self, Vec<UserError>> {
        let roles = Self::default();
        roles.set(drivers, readers)?;
        Ok(roles)
    }

    /// Replaces all of them, or none if a name can't be resolved.
    ///
    /// # Errors
    ///
    /// Every name that can't be resolved.
    pub fn set(&self, drivers: &[String], readers: &[String]) -> Result<(), Vec<UserError>> {
        let mut table = BTreeMap::new();
        let mut errors = Vec::new();
        // Drivers last: who stands in both lists is one.
        for (key, role, names) in [
            ("readers", Role::Reader, readers),
            ("drivers", Role::Driver, drivers),
        ] {
            for name in names {
                match uid_of(key, name) {
                    Ok(uid) => drop(table.insert(uid, role)),
                    Err(error) => errors.push(error),
                }
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        table.insert(ROOT, Role::Driver);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = table;
        Ok(())
    }

    /// What a user may.
    #[must_use]
    pub fn of(&self, uid: u32) -> Option<Role> {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        table.get(&uid).copied()
    }

    /// Who sent a request, if it may do what takes a role; `verb` completes "uid 1000 may not".
    ///
    /// # Errors
    ///
    /// `PERMISSION_DENIED`, with the remedy.
    pub fn allow<T>(&self, request: &Request<T>, needed: Role, verb: &str) -> Result<Peer, Status> {
        let Some(peer) = request.extensions().get::<Peer>().copied() else {
            return Err(Status::permission_denied(
                "the kernel does not say which user is asking",
            ));
        };
        if self.of(peer.uid) >= Some(needed) {
            return Ok(peer);
        }
        let lists = match needed {
            Role::Reader => "readers or drivers",
            Role::Driver => "drivers",
        };
        Err(Status::permission_denied(format!(
            "uid {} may not {verb}: add it to {lists} in [daemon]",
            peer.uid
        )))
    }
}

fn uid_of(key: &'static str, name: &str) -> Result<u32, UserError> {
    if let Ok(uid) = name.parse() {
        return Ok(uid);
    }
    match User::from_name(name) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err(UserError::Unknown {
            key,
            name: name.to_owned(),
        }),
        Err(source) => Err(UserError::Lookup {
            key,
            name: name.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn from(uid: u32) -> Request<()> {
        let mut request = Request::new(());
        request.extensions_mut().insert(Peer { uid, pid: None });
        request
    }

    #[test]
    fn users_are_given_by_name_or_number() {
        let roles = Roles::resolve(&names(&["nobody"]), &names(&["1000", "nobody"])).unwrap();
        let nobody = User::from_name("nobody").unwrap().unwrap().uid.as_raw();
        assert_eq!(roles.of(0), Some(Role::Driver));
        assert_eq!(roles.of(nobody), Some(Role::Driver));
        assert_eq!(roles.of(1000), Some(Role::Reader));
        assert_eq!(roles.of(1001), None);
    }

    #[test]
    fn unknown_users_are_all_said_and_nothing_changes() {
        let roles = Roles::resolve(&[], &names(&["1000"])).unwrap();
        let errors = roles
            .set(&names(&["no-such-user", "-1"]), &names(&["no/user"]))
            .unwrap_err();
        let said: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let remedy = "which this host does not know: make that user, or name it by its number";
        assert_eq!(
            said,
            [
                format!("readers names user \"no/user\", {remedy}"),
                format!("drivers names user \"no-such-user\", {remedy}"),
                format!("drivers names user \"-1\", {remedy}"),
            ]
        );
        assert_eq!(roles.of(1000), Some(Role::Reader));
    }

    #[test]
    fn what_a_user_may_not_is_one_sentence_with_the_remedy() {
        let roles = Roles::resolve(&[], &names(&["1000"])).unwrap();
        let root = roles.allow(&from(0), Role::Driver, "attach").unwrap();
        assert_eq!(root.uid, 0);
        assert!(roles.allow(&from(1000), Role::Reader, "list").is_ok());
        let denied = roles.allow(&from(1000), Role::Driver, "attach").unwrap_err();
        assert_eq!(denied.code(), tonic::Code::PermissionDenied);
        assert_eq!(
            denied.message(),
            "uid 1000 may not attach: add it to drivers in [daemon]"
        );
        let denied = roles.allow(&from(1001), Role::Reader, "list").unwrap_err();
        assert_eq!(
            denied.message(),
            "uid 1001 may not list: add it to readers or drivers in [daemon]"
        );
        assert!(roles.allow(&Request::new(()), Role::Reader, "list").is_err());
    }
}
