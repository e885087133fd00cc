//! Users and groups as the image itself knows them.

use super::copy::CopyError;
use super::view::View;
use crate::bake::layer::UnpackedLayer;

/// Where a user without a home of its own is at home.
const NO_HOME: &str = "/";

/// Who a command runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Inside the image.
    pub uid: u32,
    /// Inside the image.
    pub gid: u32,
    /// Its home folder.
    pub home: String,
}

/// Finds `user` or `user:group`, names or numbers, in the layers.
///
/// # Errors
/// The image has no such user or group.
pub fn find(below: &[UnpackedLayer], owner: &str) -> Result<Account, CopyError> {
    let view = View(below);
    let (user, group) = match owner.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (owner, None),
    };
    let users = view.read("etc/passwd")?;
    let number = user.parse().ok();
    let known = users.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let uid = fields.get(2)?.parse().ok()?;
        let same = match number {
            Some(number) => uid == number,
            None => fields[0] == user,
        };
        same.then(|| Account {
            uid,
            gid: fields.get(3).and_then(|gid| gid.parse().ok()).unwrap_or(0),
            home: fields.get(5).copied().unwrap_or(NO_HOME).to_owned(),
        })
    });
    let mut account = match (known, number) {
        (Some(account), _) => account,
        (None, Some(uid)) => Account {
            uid,
            gid: 0,
            home: NO_HOME.to_owned(),
        },
        (None, None) => return Err(unknown("user", user)),
    };
    if let Some(group) = group {
        account.gid = match group.parse() {
            Ok(gid) => gid,
            Err(_) => {
                let groups = view.read("etc/group")?;
                let found = groups.lines().find_map(|line| {
                    let mut fields = line.split(':');
                    (fields.next() == Some(group)).then_some(())?;
                    fields.nth(1)?.parse().ok()
                });
                found.ok_or_else(|| unknown("group", group))?
            }
        };
    }
    Ok(account)
}

fn unknown(kind: &'static str, name: &str) -> CopyError {
    CopyError::Account {
        kind,
        name: name.to_owned(),
    }
}
