//! What to do about a failing call: one thing, as it is typed.

use std::fs;
use std::path::Path;

use crate::isolate::Fault;

const APPARMOR: &str = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";
const USERNS_CLONE: &str = "/proc/sys/kernel/unprivileged_userns_clone";
const MAX_USERNS: &str = "/proc/sys/user/max_user_namespaces";

/// What the machine looks like, read once so that the choice below is a pure function.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// The binary that will run the farm.
    pub exe: String,
    pub user: String,
    pub root: bool,
    pub container: bool,
    pub apparmor_restricts: bool,
    pub userns_clone_off: bool,
    pub no_user_namespaces: bool,
    pub file_system: String,
}

impl Machine {
    /// `root` and `user` are the caller's, before any namespace.
    pub fn read(user: String, root: bool, data: &Path) -> Self {
        let is = |path: &str, value: &str| {
            fs::read_to_string(path).is_ok_and(|text| text.trim() == value)
        };
        let exe = std::env::current_exe().map(|path| path.display().to_string());
        Self {
            exe: exe.unwrap_or_else(|_unreadable| "oast".into()),
            user,
            root,
            container: Path::new("/.dockerenv").exists()
                || Path::new("/run/.containerenv").exists(),
            apparmor_restricts: is(APPARMOR, "1"),
            userns_clone_off: is(USERNS_CLONE, "0"),
            no_user_namespaces: is(MAX_USERNS, "0"),
            file_system: file_system(data),
        }
    }
}

/// The fix for a fault of the named check.
pub fn fix(machine: &Machine, check: &str, fault: &Fault) -> String {
    let denied = matches!(fault.errno, libc::EPERM | libc::EACCES);
    if machine.no_user_namespaces || fault.errno == libc::ENOSPC && check == "namespaces" {
        return "sudo sysctl -w user.max_user_namespaces=15000".into();
    }
    if denied && machine.userns_clone_off && !machine.root {
        return "sudo sysctl -w kernel.unprivileged_userns_clone=1".into();
    }
    match check {
        "newuidmap" => "sudo apt install uidmap".into(),
        "subordinate ids" => {
            format!("sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {}", machine.user)
        }
        "data folder" => "choose a folder that you may write to with --data DIR".into(),
        "disk" => "free space there, or choose another file system with --data DIR".into(),
        "overlay" if !denied => format!(
            "the data folder is on {}, which cannot carry an overlay; choose ext4, xfs or btrfs with --data DIR",
            machine.file_system
        ),
        _ if machine.container => container(machine.root),
        _ if denied && machine.apparmor_restricts && !machine.root => apparmor(&machine.exe),
        "id map" if machine.root => {
            "give the container or user namespace 65,536 ids (for example podman run --userns=host)".into()
        }
        "id map" => "check that newuidmap and newgidmap are setuid root: sudo apt install --reinstall uidmap".into(),
        _ if machine.root => "run it outside of this restricted environment (see the failing call above)".into(),
        _ => format!("run it as root: sudo {} quickstart (files stay yours)", machine.exe),
    }
}

/// Ubuntu 24.04 and later: user namespaces of unconfined programs have no rights. A profile gives
/// them to this binary alone.
fn apparmor(exe: &str) -> String {
    format!(
        "AppArmor forbids user namespaces to programs without a profile. Either run\n  \
         sudo {exe} quickstart\n\
         or allow this binary:\n  \
         sudo tee /etc/apparmor.d/oast >/dev/null <<'END'\n\
         abi <abi/4.0>,\n\
         include <tunables/global>\n\
         profile oast \"{exe}\" flags=(unconfined) {{\n  \
         userns,\n  \
         include if exists <local/oast>\n\
         }}\n\
         END\n  \
         sudo apparmor_parser -r /etc/apparmor.d/oast"
    )
}

fn container(root: bool) -> String {
    let flags = "--security-opt seccomp=unconfined --security-opt apparmor=unconfined \
                 --security-opt systempaths=unconfined";
    if root {
        format!(
            "start the container with: docker run --cap-add SYS_ADMIN --cap-add NET_ADMIN {flags} ..."
        )
    } else {
        format!("start the container with: docker run {flags} ... (or run as root in it)")
    }
}

/// What the folder is on, for the message.
fn file_system(folder: &Path) -> String {
    let Ok(folder) = folder.canonicalize() else {
        return "an unknown file system".into();
    };
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ').skip(1);
            Some((words.next()?, words.next()?))
        })
        .filter(|(place, _)| folder.starts_with(place))
        .max_by_key(|(place, _)| place.len())
        .map_or_else(
            || "an unknown file system".into(),
            |(_, kind)| kind.to_owned(),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(errno: i32) -> Fault {
        Fault {
            call: "unshare".into(),
            path: None,
            errno,
            detail: None,
        }
    }

    fn machine() -> Machine {
        Machine {
            exe: "/opt/oast".into(),
            user: "ana".into(),
            ..Machine::default()
        }
    }

    #[test]
    fn each_known_obstacle_has_its_own_fix() {
        let plain = machine();
        assert_eq!(
            fix(&plain, "newuidmap", &fault(0)),
            "sudo apt install uidmap"
        );
        assert!(fix(&plain, "subordinate ids", &fault(0)).ends_with("100000-165535 ana"));
        assert!(fix(&plain, "namespaces", &fault(libc::ENOSPC)).contains("max_user_namespaces"));
        assert!(
            fix(&plain, "namespaces", &fault(libc::EPERM)).contains("sudo /opt/oast quickstart")
        );
        let fat = Machine {
            file_system: "vfat".into(),
            ..machine()
        };
        assert!(fix(&fat, "overlay", &fault(libc::EINVAL)).contains("vfat"));
    }

    #[test]
    fn ubuntu_gets_a_profile_for_this_binary() {
        let ubuntu = Machine {
            apparmor_restricts: true,
            ..machine()
        };
        let text = fix(&ubuntu, "root", &fault(libc::EACCES));
        assert!(
            text.contains("profile oast \"/opt/oast\" flags=(unconfined) {\n  userns,"),
            "{text}"
        );
        let root = Machine {
            root: true,
            ..ubuntu
        };
        assert!(!fix(&root, "root", &fault(libc::EACCES)).contains("AppArmor"));
    }

    #[test]
    fn a_container_gets_its_flags() {
        let docker = Machine {
            container: true,
            root: true,
            ..machine()
        };
        let text = fix(&docker, "proc", &fault(libc::EPERM));
        assert!(
            text.contains("--cap-add SYS_ADMIN") && text.contains("systempaths=unconfined"),
            "{text}"
        );
    }
}
