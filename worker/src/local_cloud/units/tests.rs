//! Units of small trees on disk; the scripts are run by the machine's shell where that shows most.

use std::fs;

use camino::Utf8PathBuf;

use super::*;

const NGINX: &str = "[Unit]\nDescription=web\nAfter=network-online.target app.service\n\
    [Service]\nType=forking\nPIDFile=/run/nginx.pid\n\
    ExecStartPre=/usr/sbin/nginx -t -q -g 'daemon on; master_process on;'\n\
    ExecStart=/usr/sbin/nginx -g 'daemon on; master_process on;'\n\
    ExecStop=-/sbin/start-stop-daemon --quiet --stop --retry QUIT/5 --pidfile /run/nginx.pid\n\
    TimeoutStopSec=5\nKillMode=mixed\n[Install]\nWantedBy=multi-user.target\n";

struct Tree {
    dir: tempfile::TempDir,
}

impl Tree {
    fn new() -> Tree {
        let tree = Tree {
            dir: tempfile::tempdir().unwrap(),
        };
        for layer in ["base", "app"] {
            fs::create_dir(tree.path(layer)).unwrap();
        }
        tree
    }

    fn path(&self, layer: &str) -> Utf8PathBuf {
        Utf8PathBuf::from_path_buf(self.dir.path().join(layer)).unwrap()
    }

    fn write(&self, layer: &str, path: &str, text: &str) {
        let path = self.path(layer).join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn enable(&self, layer: &str, unit: &str) {
        let folder = self
            .path(layer)
            .join("etc/systemd/system/multi-user.target.wants");
        fs::create_dir_all(&folder).unwrap();
        let target = format!("/lib/systemd/system/{unit}");
        std::os::unix::fs::symlink(target, folder.join(unit)).unwrap();
    }

    fn unit(&self, name: &str, text: &str) {
        self.write("app", &format!("lib/systemd/system/{name}"), text);
        self.enable("app", name);
    }

    fn image(&self) -> ImageTree {
        ImageTree::new(vec![self.path("base"), self.path("app")], 1)
    }

    fn refusal(&self) -> String {
        plan(&self.image()).unwrap_err().to_string()
    }
}

#[test]
fn units_of_the_base_system_are_left_alone_and_after_orders_the_rest() {
    let tree = Tree::new();
    tree.write(
        "base",
        "lib/systemd/system/cron.service",
        "[Service]\nType=notify\n",
    );
    tree.enable("base", "cron.service");
    tree.unit("nginx.service", NGINX);
    tree.unit(
        "zapp.service",
        "[Unit]\nAfter=nginx.service\n[Service]\nExecStart=/bin/true\n",
    );
    tree.unit("app.service", "[Service]\nExecStart=/usr/local/bin/app\n");
    let plan = plan(&tree.image()).unwrap();
    assert_eq!(
        plan.names().collect::<Vec<_>>(),
        ["app.service", "nginx.service", "zapp.service"]
    );
}

#[test]
fn a_service_of_a_package_that_the_pipeline_asked_for_is_an_application_also_in_the_base() {
    let tree = Tree::new();
    for (package, priority, unit) in [
        ("nginx-common", "optional", "nginx.service"),
        ("cron", "important", "cron.service"),
        ("systemd-resolved", "optional", "systemd-resolved.service"),
    ] {
        tree.write(
            "base",
            &format!("lib/systemd/system/{unit}"),
            "[Service]\nExecStart=/bin/true\n",
        );
        tree.write(
            "base",
            &format!("var/lib/dpkg/info/{package}.list"),
            &format!("/.\n/lib/systemd/system/{unit}\n"),
        );
        tree.enable("base", unit);
        let status = fs::read_to_string(tree.path("base").join("var/lib/dpkg/status"));
        let status = status.unwrap_or_default();
        tree.write(
            "base",
            "var/lib/dpkg/status",
            &format!("{status}Package: {package}\nPriority: {priority}\n\n"),
        );
    }
    let plan = plan(&tree.image()).unwrap();
    assert_eq!(plan.names().collect::<Vec<_>>(), ["nginx.service"]);
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    let tree = Tree::new();
    tree.unit("a.service", "[Service]\nType=notify\nExecStart=/bin/a\n");
    assert!(
        tree.refusal().starts_with("unit a.service: Type=notify "),
        "{}",
        tree.refusal()
    );
    let tree = Tree::new();
    tree.unit(
        "a.service",
        "[Service]\nExecStart=/bin/a\nDynamicUser=yes\n",
    );
    assert!(
        tree.refusal()
            .starts_with("unit a.service: [Service] DynamicUser ")
    );
    let tree = Tree::new();
    tree.unit("a.service", "[Service]\nExecStart=/bin/a %m\n");
    assert!(
        tree.refusal().contains("the specifier %m"),
        "{}",
        tree.refusal()
    );
    let tree = Tree::new();
    tree.unit("a.socket", "[Socket]\nListenStream=80\n");
    assert!(
        tree.refusal().starts_with("unit a.socket: "),
        "{}",
        tree.refusal()
    );
    let tree = Tree::new();
    assert!(
        tree.refusal().contains("0 application units"),
        "{}",
        tree.refusal()
    );
}

#[test]
fn drop_ins_change_a_unit_and_a_masked_one_is_left_out() {
    let tree = Tree::new();
    tree.unit("a.service", "[Service]\nExecStart=/bin/a\nType=notify\n");
    let dropin = "[Service]\nExecStart=\nExecStart=/bin/b\nType=simple\n";
    tree.write("app", "etc/systemd/system/a.service.d/10.conf", dropin);
    tree.enable("app", "b.service");
    let masked = tree.path("app").join("etc/systemd/system/b.service");
    std::os::unix::fs::symlink("/dev/null", masked).unwrap();
    let plan = plan(&tree.image()).unwrap();
    assert_eq!(plan.names().collect::<Vec<_>>(), ["a.service"]);
    assert_eq!(plan.left_out, ["b.service: masked"]);
    assert_eq!(plan.services[0].start[0].words, ["/bin/b"]);
}

#[test]
fn command_lines_are_split_and_expanded_as_systemd_does() {
    let tree = Tree::new();
    tree.write(
        "app",
        "etc/default/a",
        "# no\nOPTS=\"-x 'y'\" \nPORT=8080\n",
    );
    tree.unit(
        "a@eu.service",
        "[Service]\nUser=web\nEnvironment=\"NAME=a b\" Q=1\nEnvironmentFile=-/etc/none\n\
         EnvironmentFile=/etc/default/a\nExecStart=/bin/a --region=%i \\\n  -p ${PORT} $OPTS \"it's 100%%\"\n",
    );
    tree.write("app", "etc/passwd", "web:x:33:33::/var/www:/bin/sh\n");
    let plan = plan(&tree.image()).unwrap();
    let service = &plan.services[0];
    assert_eq!(service.environment["NAME"], "a b");
    assert_eq!(service.environment["HOME"], "/var/www");
    let script = plan.script().unwrap();
    let expected = r"'/bin/a' '--region=eu' '-p' '8080' '-x' ''\''y'\''' 'it'\''s 100%'";
    assert!(script.contains(expected), "{script}");
}

#[test]
fn deleted_and_replaced_paths_hide_what_is_below() {
    let tree = Tree::new();
    tree.write("base", "etc/a", "old");
    tree.write("base", "etc/conf/one", "1");
    tree.write("app", "etc/b", "new");
    std::os::unix::fs::symlink("../etc/b", tree.path("app").join("etc/link")).unwrap();
    std::os::unix::fs::symlink("/../../../etc/passwd", tree.path("app").join("etc/out")).unwrap();
    let image = tree.image();
    assert_eq!(image.read("/etc/link").as_deref(), Some("new"));
    assert!(
        !image.exists("/etc/out"),
        "a link does not lead out of the image"
    );
    assert_eq!(image.list("/etc"), ["a", "b", "conf", "link", "out"]);
    // A folder replaced by a file hides the folder's content.
    tree.write("app", "etc/conf", "file");
    assert!(!image.exists("/etc/conf/one"));
}

#[test]
fn the_script_is_one_the_shell_understands() {
    let tree = Tree::new();
    tree.unit("nginx.service", NGINX);
    tree.unit(
        "app.service",
        "[Service]\nUser=www-data\nRuntimeDirectory=app\nStateDirectory=app\nRestart=on-failure\n\
         ExecStartPre=+/bin/mkdir -p /srv\nExecStart=/usr/local/bin/app\nExecStop=/bin/kill 1\n",
    );
    tree.unit(
        "once.service",
        "[Service]\nType=oneshot\nExecStart=/bin/a\nExecStart=-/bin/b\n",
    );
    let script = plan(&tree.image()).unwrap().script().unwrap();
    let checked = std::process::Command::new("sh")
        .args(["-n", "-c", &script])
        .status()
        .unwrap();
    assert!(checked.success(), "{script}");
}
