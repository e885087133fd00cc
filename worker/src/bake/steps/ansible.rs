//! `ansible`: a playbook, played by an Ansible that is beside the image and never in it.
//!
//! Ansible with its Python and libraries is unpacked from the packages of the image's own
//! distribution and shown in memory at `/run/oast-ansible`; it runs by its own loader and
//! libraries, so the image needs neither. Modules run by the same Python, with the image as `/`.

use oast_model::pipeline::{Ansible, Run};
use serde_json::json;

use super::run::Found;
use crate::sandbox::{Bind, SecretFile};

/// Packages that make the tool, with what they depend on. Modules find apt's library in it.
pub const PACKAGES: [&str; 3] = ["ansible-core", "python3-apt", "libc-bin"];

const TOOL: &str = "/run/oast-ansible";
const PLAY: &str = "/run/oast-play";
const PYTHON: &str = "/run/oast-python";
const INVENTORY: &str = "/run/oast-inventory";
const VARIABLES: &str = "/run/oast-variables.json";
/// In memory, and so never in the image.
const SCRATCH: &str = "/tmp/.oast-ansible";

/// The loader and the folder of libraries of this machine's architecture.
#[cfg(target_arch = "x86_64")]
const LOADER: (&str, &str) = ("ld-linux-x86-64.so.2", "x86_64-linux-gnu");
#[cfg(target_arch = "aarch64")]
const LOADER: (&str, &str) = ("ld-linux-aarch64.so.1", "aarch64-linux-gnu");

/// The folders that the play finds.
#[derive(Clone, Copy, Debug)]
pub struct Folders<'a> {
    /// The unpacked tool.
    pub tool: &'a camino::Utf8Path,
    /// The commit's folder with the playbook.
    pub play: &'a camino::Utf8Path,
}

/// The command of the step, and what it finds. `playbook` is its path in the play's folder.
pub fn command(play: &Ansible, playbook: &str, folders: Folders<'_>) -> (Run, Found) {
    let tags = match play.tags.as_slice() {
        [] => String::new(),
        tags => format!(" --tags {}", tags.join(",")),
    };
    let command = format!(
        "cd {PLAY}\nexec {PYTHON} {TOOL}/usr/bin/ansible-playbook -i {INVENTORY} -u root \
         -e @{VARIABLES}{tags} -- \"$1\"\n"
    );
    let (loader, libraries) = LOADER;
    // `--argv0` tells Python where it is: its own modules lie beside it.
    let python = format!(
        "#!/bin/sh\nexec {TOOL}/usr/lib/{libraries}/{loader} --argv0 {TOOL}/usr/bin/python3 \
         --library-path {TOOL}/usr/lib/{libraries}:{TOOL}/usr/lib {TOOL}/usr/bin/python3 \"$@\"\n"
    );
    let inventory =
        format!("localhost ansible_connection=local ansible_python_interpreter={PYTHON}\n");
    let file = |target: &str, mode, text: String| SecretFile {
        target: target.into(),
        mode,
        data: text.into_bytes(),
    };
    let env = [
        ("ANSIBLE_NOCOLOR", "1"),
        ("ANSIBLE_LOCALHOST_WARNING", "0"),
        ("ANSIBLE_INVENTORY_UNPARSED_WARNING", "0"),
        ("ANSIBLE_RETRY_FILES_ENABLED", "0"),
        ("ANSIBLE_HOME", SCRATCH),
        ("ANSIBLE_LOCAL_TEMP", "/tmp/.oast-ansible/local"),
        ("ANSIBLE_REMOTE_TEMP", "/tmp/.oast-ansible/remote"),
        ("ANSIBLE_COLLECTIONS_PATH", "/run/oast-play/collections"),
        ("LOCPATH", "/run/oast-ansible/usr/lib/locale"),
        ("PYTHONDONTWRITEBYTECODE", "1"),
    ];
    let found = Found {
        binds: vec![
            Bind::read_only(folders.tool.as_std_path(), TOOL),
            Bind::read_only(folders.play.as_std_path(), PLAY),
        ],
        files: vec![
            file(PYTHON, 0o555, python),
            file(INVENTORY, 0o444, inventory),
            file(VARIABLES, 0o400, json!(play.variables).to_string()),
        ],
        env: env
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        ..Found::default()
    };
    let run = Run {
        args: vec![playbook.to_owned()],
        timeout: play.timeout,
        network: play.network,
        secrets: play.secrets.clone(),
        ..Run::new(command)
    };
    (run, found)
}
