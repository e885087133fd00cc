//! Scripts, users, folders, retries, kept folders, secrets and units.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Result, ensure};
use oast_model::bake::Trust;

use crate::bench::{Bench, Given, contains};

pub async fn scripts_run_as_the_user_in_the_folder(bench: &Bench) -> Result<()> {
    let script = "#!/bin/bash\nset -e\nprintf '%s|' \"$@\" > args\n{ id -un; id -gn; pwd; echo \"$HOME\"; [[ x == x ]]; } > who\n";
    bench.file("ci/who.sh", script)?;
    let steps = r#"    - run: useradd --system --user-group --home-dir /srv/app --create-home app
    - user: app
    - workdir: /srv/app
    - run: { script: ci/who.sh, args: ["a b", "$HOME"] }
    - user: root
    - workdir: /srv/new/folder
    - run: id -un > who
"#;
    let done = bench.bake(steps).await?;
    done.image()?;
    ensure!(
        done.text(4, "srv/app/who")? == "app\napp\n/srv/app\n/srv/app\n",
        "{}",
        done.log
    );
    ensure!(done.text(4, "srv/app/args")? == "a b|$HOME|");
    ensure!(done.text(7, "srv/new/folder/who")? == "root\n");
    let root = done.layer(4)?;
    let owner = fs::metadata(root.join("srv/app/who"))?.uid();
    ensure!(
        owner != fs::metadata(&root)?.uid(),
        "the file belongs to root"
    );
    ensure!(
        done.files(4)? == ["srv", "srv/app", "srv/app/args", "srv/app/who"],
        "{:?}",
        done.files(4)?
    );

    let again = bench.bake(steps).await?;
    again.image()?;
    ensure!(again.made().is_empty(), "done again: {:?}", again.made());
    bench.file("ci/who.sh", format!("{script}# changed\n"))?;
    let changed = bench.bake(steps).await?;
    ensure!(changed.made() == [4, 7], "{:?}", changed.made());
    Ok(())
}

pub async fn a_failure_names_the_step_and_its_line(bench: &Bench) -> Result<()> {
    let done = bench
        .bake("    - run: \"true\"\n    - name: look\n      run: echo before; ls /no-such-folder\n")
        .await?;
    contains(
        &done.failure()?,
        &[
            "step 2 (look, line 9 of the pipeline file) ended with exit code 2",
            "before",
            "/no-such-folder",
        ],
    )?;
    let done = bench
        .bake("    - run: { command: \"sleep 600\", timeout: 1s }\n")
        .await?;
    contains(
        &done.failure()?,
        &["line 8 of the pipeline file) took longer than 1 s"],
    )?;
    let done = bench
        .bake("    - user: nobody-at-all\n    - run: id\n")
        .await?;
    contains(
        &done.failure()?,
        &["step 2 (run id, line 9", "no user \"nobody-at-all\""],
    )?;
    let done = bench.bake("    - run: { script: ci/no-such.sh }\n").await?;
    contains(
        &done.failure()?,
        &["oast.yaml:8: bake.steps[0] needs ci/no-such.sh, which the commit does not have"],
    )?;
    let done = bench
        .bake("    - run: { command: \"[ -z \\\"$http_proxy\\\" ] && ! bash -c 'exec 3<>/dev/tcp/127.0.0.1/3128'\", network: none }\n")
        .await?;
    done.image().map(drop)
}

pub async fn kept_folders_are_the_owners_and_in_no_layer(bench: &Bench) -> Result<()> {
    let step = |text: &str| {
        format!("    - run: {{ command: \"{text}\", caches: [/var/cache/kept, /root/.kept] }}\n")
    };
    let done = bench
        .bake(&step(
            "echo one > /var/cache/kept/n; echo two > /root/.kept/n; ls /var/cache/kept > /srv/seen",
        ))
        .await?;
    done.image()?;
    ensure!(done.text(1, "srv/seen")? == "n\n");
    let files = done.files(1)?;
    ensure!(
        !files.iter().any(|file| file.ends_with("/n")),
        "kept files are in the layer: {files:?}"
    );
    let look = step("cat /var/cache/kept/n /root/.kept/n > /srv/seen || echo none > /srv/seen");
    let done = bench.bake(&look).await?;
    done.image()?;
    ensure!(done.text(1, "srv/seen")? == "one\ntwo\n", "{}", done.log);
    let upload = Given {
        trust: Some(Trust::Upload("demo".to_owned())),
        ..Given::default()
    };
    let done = bench.bake_with(&look, upload).await?;
    done.image()?;
    ensure!(
        done.text(1, "srv/seen")? == "none\n",
        "an upload sees what a watched branch keeps"
    );
    Ok(())
}

pub async fn a_failed_try_leaves_nothing_behind(bench: &Bench) -> Result<()> {
    let step = |retries: u32| {
        format!(
            "    - run:\n        command: |\n          n=$(cat /kept{retries}/n 2>/dev/null || echo 0)\n          echo $((n + 1)) > /kept{retries}/n\n          [ ! -e /srv/tried ]\n          touch /srv/tried /srv/try-$n\n          [ $n -ge 2 ]\n        retries: {retries}\n        caches: [/kept{retries}]\n"
        )
    };
    let done = bench.bake(&step(1)).await?;
    contains(&done.failure()?, &["ended with exit code 1"])?;
    let done = bench.bake(&step(2)).await?;
    done.image()?;
    contains(&done.log, &["try 3 of 3"])?;
    let files = done.files(1)?;
    ensure!(
        files.contains(&"srv/try-2".to_owned()) && !files.contains(&"srv/try-1".to_owned()),
        "{files:?}"
    );
    Ok(())
}

pub async fn secrets_are_in_no_layer_and_no_log(bench: &Bench) -> Result<()> {
    const VALUE: &str = "hunter2-and-more";
    let steps = "    - run: stat -c '%a %U' \"$OAST_SECRETS/key\" > /srv/mode; cat \"$OAST_SECRETS/key\"; echo; echo \"is $TOKEN\"; cp \"$OAST_SECRETS/key\" /tmp/\n      secrets: [{ name: key, file: key }, { name: key, env: TOKEN }]\n";
    let given = Given {
        secrets: BTreeMap::from([("key".to_owned(), VALUE.to_owned())]),
        ..Given::default()
    };
    let done = bench.bake_with(steps, given).await?;
    done.image()?;
    ensure!(done.text(1, "srv/mode")? == "400 root\n");
    ensure!(!done.log.contains(VALUE), "the log has it: {}", done.log);
    ensure!(
        done.files(1)? == ["srv", "srv/mode"],
        "{:?}",
        done.files(1)?
    );
    // Another value is not another key, and a step without its secret never begins.
    let again = bench.bake(steps).await?;
    ensure!(again.made().is_empty());
    let done = bench
        .bake("    - run: echo x\n      secrets: [{ name: lost, env: LOST }]\n")
        .await?;
    contains(
        &done.failure()?,
        &["line 8", "needs the secret lost", "oast secret set"],
    )
}

pub async fn units_start_without_a_running_systemd(bench: &Bench) -> Result<()> {
    bench.file(
        "units/hello.service",
        "[Unit]\nDescription=Hello\n[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\nAlias=greeting.service\n",
    )?;
    let steps = "    - systemd: { install: [units/hello.service], enable: [hello.service], mask: [fstrim.timer], default: multi-user.target }\n";
    let done = bench.bake(steps).await?;
    done.image()?;
    let root = done.layer(1)?.join("etc/systemd/system");
    let link = |name: &str| fs::read_link(root.join(name));
    let unit = "/etc/systemd/system/hello.service";
    ensure!(link("multi-user.target.wants/hello.service")? == std::path::Path::new(unit));
    ensure!(link("greeting.service")? == std::path::Path::new(unit));
    ensure!(link("fstrim.timer")? == std::path::Path::new("/dev/null"));
    ensure!(link("default.target")?.ends_with("multi-user.target"));
    let files = done.files(1)?;
    ensure!(
        files
            .iter()
            .all(|file| file == "etc" || file.starts_with("etc/systemd")),
        "{files:?}"
    );
    let done = bench
        .bake("    - systemd: { enable: [no-such.service] }\n")
        .await?;
    contains(
        &done.failure()?,
        &[
            "step 1 (systemd enable no-such.service, line 8",
            "no-such.service",
        ],
    )
}
