//! Bases that were made elsewhere, copies from other images, and the operator's policies.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};
use camino::Utf8PathBuf;
use oast_model::bake::BakedImage;
use oast_model::fleet::VersionRef;
use oast_model::task::NamedImage;

use crate::bench::{Bench, Given, contains};
use crate::web::sha256;

/// A header with every number in it.
fn header() -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000);
    header.set_mode(0o644);
    header.set_size(0);
    header
}

/// A program for the small system: the engine's own, from the base that was baked before.
fn busybox(bench: &Bench) -> Result<Vec<u8>> {
    let tools = bench.farm.root.join("data/base/tools");
    for entry in fs::read_dir(&tools)? {
        let folder = Utf8PathBuf::from_path_buf(entry?.path())
            .ok()
            .context("UTF-8")?;
        let program = folder.join("usr/bin/busybox");
        if program.exists() {
            return Ok(fs::read(program)?);
        }
    }
    anyhow::bail!("no busybox under {tools}")
}

/// A system of a shell and a kernel that only looks like one.
fn system(bench: &Bench, extra: &[(&str, &str)]) -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut put = |path: &str, mode: u32, data: &[u8]| {
        let mut header = header();
        header.set_mode(mode);
        header.set_size(data.len() as u64);
        header.set_mtime(1_000_000);
        builder.append_data(&mut header, path, data)
    };
    put("usr/bin/busybox", 0o755, &busybox(bench)?)?;
    put("etc/os-release", 0o644, b"ID=alpine\nVERSION_ID=3.20\n")?;
    put("etc/passwd", 0o644, b"root:x:0:0::/root:/bin/sh\n")?;
    put("boot/vmlinuz-6.1.0-test", 0o644, &vec![1; 1 << 20])?;
    let modules = "usr/lib/modules/6.1.0-test";
    let builtin = b"kernel/fs/ext4/ext4.ko\n";
    put(&format!("{modules}/modules.builtin"), 0o644, builtin)?;
    put(&format!("{modules}/modules.dep"), 0o644, b"")?;
    for (path, text) in extra {
        put(path, 0o644, text.as_bytes())?;
    }
    for (link, target) in [
        ("bin", "usr/bin"),
        ("lib", "usr/lib"),
        ("usr/bin/sh", "busybox"),
    ] {
        let mut header = header();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        builder.append_link(&mut header, link, target)?;
    }
    Ok(builder.into_inner()?)
}

const LOOK: &str = "    - run: busybox cat /etc/os-release > /seen; busybox id -u >> /seen\n";

pub async fn a_root_file_system_is_a_base(bench: &Bench) -> Result<()> {
    // The engine's own tools come with the first bake of all.
    bench.bake("    - run: \"true\"\n").await?.image()?;
    let tar = system(bench, &[("etc/mine", "1")])?;
    bench.file("base/root.tar.zst", zstd::encode_all(tar.as_slice(), 1)?)?;
    let base = "{ rootfs: { path: base/root.tar.zst } }";
    let done = bench.bake_from(base, LOOK, Given::default()).await?;
    let image = done.image()?;
    ensure!(done.text(1, "seen")? == "ID=alpine\nVERSION_ID=3.20\n0\n");
    ensure!(image.base == "rootfs base/root.tar.zst" && image.package_count == 0);
    let again = bench.bake_from(base, LOOK, Given::default()).await?;
    ensure!(again.made().is_empty(), "{:?}", again.made());

    let steps = "    - packages: [jq]\n";
    let done = bench.bake_from(base, steps, Given::default()).await?;
    contains(
        &done.failure()?,
        &[
            "line 8 of the pipeline file",
            "the image is alpine-3.20",
            "debian-12",
            "use `run`",
        ],
    )?;
    bench.file("base/wrapped.tar", {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = header();
        header.set_size(0);
        header.set_mode(0o644);
        builder.append_data(&mut header, "rootfs/etc/passwd", &b""[..])?;
        builder.into_inner()?
    })?;
    let done = bench
        .bake_from(
            "{ rootfs: { path: base/wrapped.tar } }",
            LOOK,
            Given::default(),
        )
        .await?;
    contains(
        &done.failure()?,
        &["none of usr, etc", "pack the root file system itself"],
    )?;
    let done = bench
        .bake_from("{ rootfs: { path: oast.yaml } }", LOOK, Given::default())
        .await?;
    contains(&done.failure()?, &["is it a tar archive"])
}

pub async fn an_oci_image_of_the_web_is_a_base(bench: &Bench) -> Result<()> {
    let layer = system(bench, &[])?;
    let content = sha256(&layer);
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"diff_ids":["sha256:{content}"]}}}}"#
    );
    let manifest = r#"[{"Config":"c.json","Layers":["layer.tar"]}]"#;
    let mut builder = tar::Builder::new(Vec::new());
    let parts: [(&str, &[u8]); 3] = [
        ("layer.tar", &layer),
        ("c.json", config.as_bytes()),
        ("manifest.json", manifest.as_bytes()),
    ];
    for (name, data) in parts {
        let mut header = header();
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        builder.append_data(&mut header, name, data)?;
    }
    let file = builder.into_inner()?;
    let digest = sha256(&file);
    bench.serve("/image.tar", file);
    let base = format!(
        "{{ oci: {{ url: \"{}/image.tar\", sha256: {digest} }} }}",
        bench.web
    );
    let done = bench.bake_from(&base, LOOK, Given::default()).await?;
    done.image()?;
    contains(&done.text(1, "seen")?, &["alpine"])?;
    let wrong = base.replace(&digest, &sha256(b"other"));
    let done = bench.bake_from(&wrong, LOOK, Given::default()).await?;
    contains(
        &done.failure()?,
        &["base oci", &digest, "write the new one"],
    )
}

fn golden(number: u32, image: BakedImage) -> Result<Given> {
    Ok(Given {
        images: vec![NamedImage {
            version: VersionRef {
                image: "golden".parse()?,
                number,
            },
            channel: "stable".parse()?,
            image,
        }],
        ..Given::default()
    })
}

pub async fn an_image_is_a_base_and_a_source_of_copies(bench: &Bench) -> Result<()> {
    let tar = system(bench, &[("opt/tool/data", "from the image")])?;
    bench.file("base/golden.tar", tar)?;
    let parent_steps = |text: &str| {
        format!(
            "    - run: {{ command: \"echo {text} > /golden; busybox ln -s data /opt/tool/link; busybox chmod 750 /opt/tool/data\" }}\n"
        )
    };
    let base = "{ rootfs: { path: base/golden.tar } }";
    let parent = bench
        .bake_from(base, &parent_steps("one"), Given::default())
        .await?;
    let first = parent.image()?;

    let child = "{ image: golden, channel: stable }";
    let steps = "    - run: busybox cat /golden > /child\n";
    let done = bench
        .bake_from(child, steps, golden(1, first.clone())?)
        .await?;
    let image = done.image()?;
    ensure!(done.text(1, "child")? == "one\n");
    ensure!(
        image.layers[..2] == first.layers[..],
        "the parent's layers are below"
    );
    ensure!(image.layers.len() == 3 && image.base == "golden@stable");
    let again = bench
        .bake_from(child, steps, golden(1, first.clone())?)
        .await?;
    ensure!(again.made().is_empty() && again.image()?.disk == image.disk);

    // The parent moves, and the child with it.
    let parent = bench
        .bake_from(base, &parent_steps("two"), Given::default())
        .await?;
    let second = parent.image()?;
    let done = bench
        .bake_from(child, steps, golden(2, second.clone())?)
        .await?;
    done.image()?;
    ensure!(done.made() == [1] && done.text(1, "child")? == "two\n");

    let copy = "    - copy: { image: golden, channel: stable, from: /opt/tool, to: /srv/tool }\n    - copy: { image: golden, channel: stable, from: /golden, to: /srv/ }\n";
    let done = bench.bake_with(copy, golden(2, second)?).await?;
    done.image()?;
    ensure!(done.text(1, "srv/tool/link")? == "from the image");
    let data = fs::metadata(done.layer(1)?.join("srv/tool/data"))?;
    ensure!(data.permissions().mode() & 0o777 == 0o750);
    ensure!(done.text(2, "srv/golden")? == "two\n");
    let done = bench.bake_with(copy, golden(1, first.clone())?).await?;
    ensure!(done.made() == [1, 2], "{:?}", done.made());
    let missing = copy.replace("/opt/tool,", "/opt/none,");
    let done = bench.bake_with(&missing, golden(1, first)?).await?;
    contains(
        &done.failure()?,
        &["line 8", "the other image has no /opt/none"],
    )?;

    let done = bench.bake_from(child, steps, Given::default()).await?;
    contains(
        &done.failure()?,
        &[
            "golden@stable",
            "team demo has published no image golden",
            "publish it first",
        ],
    )
}

pub async fn a_policy_is_in_every_pipeline_and_out_of_its_reach(bench: &Bench) -> Result<()> {
    let policy = "apiVersion: oast/v1\nkind: Policy\nname: hardening\nbefore:\n  - run: id -un > /srv/before\nafter:\n  - name: seal\n    run: id -un > /srv/after; pwd >> /srv/after; echo \"$PATH $LD_PRELOAD\" >> /srv/after\n---\napiVersion: oast/v1\nkind: Policy\nname: others\nteams: [somebody-else]\nafter: [{ run: \"false\" }]\n";
    bench.policy(policy)?;
    let steps = "    - env: { LD_PRELOAD: /srv/evil.so, PATH: /srv/evil:/usr/bin:/bin }\n    - workdir: /srv\n    - user: www-data\n    - run: \"true\"\n";
    let done = bench.bake(steps).await;
    bench.policy("")?;
    let done = done?;
    done.image()?;
    contains(&done.log, &["policy hardening: seal"])?;
    ensure!(done.text(1, "srv/before")? == "root\n");
    let after = done.text(6, "srv/after")?;
    ensure!(
        after.starts_with("root\n/\n") && !after.contains("evil"),
        "{after}"
    );

    bench
        .policy("apiVersion: oast/v1\nkind: Policy\nname: hardening\nafter:\n  - run: exit 3\n")?;
    let done = bench.bake("    - run: \"true\"\n").await;
    bench.policy("")?;
    contains(
        &done?.failure()?,
        &[
            "policy hardening: run exit 3",
            "line 5 of policy hardening",
            "exit code 3",
        ],
    )
}
