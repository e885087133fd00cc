//! Which capabilities exist inside.
//!
//! All of them act only on what the sandbox's user namespace owns; cutting them further keeps rarely tested kernel
//! paths out of reach of build scripts. There is no system call filter yet.

use oast_daemon::isolate::{Fault, Named};
use std::io;

use super::spec::InitMode;

// Numbers of capability.h, which never change.
const CHOWN: u32 = 0;
const DAC_OVERRIDE: u32 = 1;
const DAC_READ_SEARCH: u32 = 2;
const FOWNER: u32 = 3;
const FSETID: u32 = 4;
const KILL: u32 = 5;
const SETGID: u32 = 6;
const SETUID: u32 = 7;
const SETPCAP: u32 = 8;
const NET_BIND_SERVICE: u32 = 10;
const NET_RAW: u32 = 13;
const IPC_OWNER: u32 = 15;
const SYS_MODULE: u32 = 16;
const SYS_RAWIO: u32 = 17;
const SYS_CHROOT: u32 = 18;
const SYS_TIME: u32 = 25;
const MKNOD: u32 = 27;
const AUDIT_WRITE: u32 = 29;
const SETFCAP: u32 = 31;
const MAC_OVERRIDE: u32 = 32;
const MAC_ADMIN: u32 = 33;
const SYSLOG: u32 = 34;
const WAKE_ALARM: u32 = 35;
const BLOCK_SUSPEND: u32 = 36;
const PERFMON: u32 = 38;
const BPF: u32 = 39;
const HIGHEST: u32 = 63;

/// What package scripts and build steps use. No mounting, no network administration.
const STEP_KEEPS: [u32; 16] = [
    CHOWN,
    DAC_OVERRIDE,
    DAC_READ_SEARCH,
    FOWNER,
    FSETID,
    KILL,
    SETGID,
    SETUID,
    SETPCAP,
    NET_BIND_SERVICE,
    NET_RAW,
    IPC_OWNER,
    SYS_CHROOT,
    MKNOD,
    AUDIT_WRITE,
    SETFCAP,
];
/// What no guest's init needs.
const INIT_LOSES: [u32; 10] = [
    SYS_MODULE,
    SYS_RAWIO,
    SYS_TIME,
    MAC_OVERRIDE,
    MAC_ADMIN,
    SYSLOG,
    WAKE_ALARM,
    BLOCK_SUSPEND,
    PERFMON,
    BPF,
];

/// Takes capabilities from the bounding set; what remains is what root has after the next exec.
pub(crate) fn drop_for(mode: InitMode) -> Result<(), Fault> {
    for capability in 0..=HIGHEST {
        let keep = match mode {
            InitMode::Ours => STEP_KEEPS.contains(&capability),
            InitMode::Own => !INIT_LOSES.contains(&capability),
        };
        if keep {
            continue;
        }
        // SAFETY: prctl with plain numbers.
        let answer = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        if answer != 0 {
            let error = io::Error::last_os_error();
            // The first number that the kernel does not know: all later ones are unknown too.
            if error.raw_os_error() == Some(libc::EINVAL) {
                break;
            }
            return Err(error).named("prctl PR_CAPBSET_DROP");
        }
    }
    Ok(())
}
