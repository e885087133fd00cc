//! Packages and playbooks.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};

use crate::bench::{Bench, Given, contains};

pub async fn packages_come_from_the_engine_and_leave_nothing_else(bench: &Bench) -> Result<()> {
    let steps = "    - packages: [jq]\n    - run: echo '{\"a\":7}' | jq .a > /srv/seven; dpkg --audit > /srv/audit; apt-get check\n";
    let done = bench.bake(steps).await?;
    let image = done.image()?;
    ensure!(done.text(2, "srv/seven")? == "7\n", "{}", done.log);
    ensure!(done.text(2, "srv/audit")?.is_empty());
    ensure!(done.layer(1)?.join("usr/bin/jq").exists());
    let plain = bench.bake("    - run: \"true\"\n").await?.image()?;
    // jq, libjq1 and libonig5, as apt chooses them.
    ensure!(image.package_count == plain.package_count + 3, "{image:?}");
    let files = done.files(1)?;
    for unwanted in [
        "var/log",
        "var/lib/apt/lists",
        "var/cache/apt",
        "run/",
        "policy-rc.d",
    ] {
        ensure!(
            !files.iter().any(|file| file.contains(unwanted)),
            "{unwanted} is in {files:#?}"
        );
    }
    let again = bench.bake(steps).await?;
    ensure!(again.made().is_empty(), "{:?}", again.made());

    let done = bench
        .bake("    - name: tools\n      packages: [no-such-package-at-all]\n")
        .await?;
    contains(
        &done.failure()?,
        &[
            "step 1 (tools, line 8 of the pipeline file)",
            "Unable to locate package no-such-package-at-all",
        ],
    )
}

pub async fn the_example_of_a_golden_image_bakes(bench: &Bench) -> Result<()> {
    let done = bench.example("golden").await?;
    done.image()?;
    ensure!(
        done.text(5, "opt/checks/versions")?.starts_with("jq-"),
        "{}",
        done.log
    );
    ensure!(done.text(2, "etc/passwd")?.contains("ops:"));
    Ok(())
}

const PLAYBOOK: &str = r#"- hosts: all
  become: true
  vars: { greeting: nobody }
  roles: [site]
  tasks:
    - name: who is there
      ansible.builtin.command: id -un
      register: who
    - ansible.builtin.copy: { content: "{{ who.stdout }} {{ greeting }} {{ lookup('env', 'PLACE') }}\n", dest: /srv/who, mode: "0640" }
    - ansible.builtin.user: { name: deploy, system: true, home: /srv/deploy }
    - ansible.builtin.lineinfile: { path: /etc/motd, line: "made by a play", create: true }
    - ansible.builtin.copy: { src: "{{ lookup('env', 'OAST_SECRETS') }}/key", dest: /tmp/key }
    - { name: only when asked for, ansible.builtin.fail: { msg: "asked for" }, when: greeting == 'fail' }
    - { name: not played, ansible.builtin.file: { path: /srv/late, state: touch }, tags: [late] }
"#;

pub async fn a_playbook_is_played_without_ansible_in_the_image(bench: &Bench) -> Result<()> {
    bench.file(
        "ansible/site.yml",
        PLAYBOOK.replace("tags: [late]", "tags: [late, never]"),
    )?;
    bench.file(
        "ansible/roles/site/tasks/main.yml",
        "- ansible.builtin.template: { src: page.j2, dest: /srv/page.html }\n",
    )?;
    bench.file(
        "ansible/roles/site/templates/page.j2",
        "<p>{{ greeting }}</p>\n",
    )?;
    let steps = |greeting: &str| {
        format!(
            "    - env: {{ PLACE: here }}\n    - ansible: {{ playbook: ansible/site.yml, variables: {{ greeting: \"{greeting}\" }}, network: none }}\n      secrets: [{{ name: key, file: key }}]\n"
        )
    };
    let given = || Given {
        secrets: BTreeMap::from([("key".to_owned(), "hunter2-and-more".to_owned())]),
        ..Given::default()
    };
    let done = bench.bake_with(&steps("it's \\\"me\\\""), given()).await?;
    done.image()?;
    ensure!(
        done.text(2, "srv/who")? == "root it's \"me\" here\n",
        "{}",
        done.log
    );
    ensure!(done.text(2, "srv/page.html")? == "<p>it's \"me\"</p>\n");
    ensure!(done.text(2, "etc/motd")?.ends_with("made by a play\n"));
    ensure!(done.text(2, "etc/passwd")?.contains("deploy:"));
    let who = done.layer(2)?.join("srv/who");
    ensure!(fs::metadata(who)?.permissions().mode() & 0o777 == 0o640);
    let files = done.files(2)?;
    for unwanted in ["ansible", "python", "srv/late", "run/", "root/", "key"] {
        ensure!(
            !files.iter().any(|file| file.contains(unwanted)),
            "{unwanted} is in {files:#?}"
        );
    }
    let base = done.layer(0)?;
    ensure!(
        !base.join("usr/bin/python3").exists(),
        "the image has a Python of its own, so this proves nothing"
    );
    let again = bench.bake_with(&steps("it's \\\"me\\\""), given()).await?;
    ensure!(again.made().is_empty(), "{:?}", again.made());

    let done = bench.bake_with(&steps("fail"), given()).await?;
    contains(
        &done.failure()?,
        &["step 2 (ansible ansible/site.yml, line 9", "asked for"],
    )
}
