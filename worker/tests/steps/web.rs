//! Files of the web.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use anyhow::{Result, ensure};
use sha2::{Digest, Sha256};

use crate::bench::{Bench, contains};

pub fn sha256(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(bytes) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

pub async fn a_file_of_the_web_is_what_its_digest_says(bench: &Bench) -> Result<()> {
    bench.serve("/tool", b"a tool\n".to_vec());
    bench.serve("/large", vec![7; 3 << 20]);
    let (web, tool) = (&bench.web, sha256(b"a tool\n"));
    let large = sha256(&vec![7; 3 << 20]);
    let steps = format!(
        "    - copy: {{ url: \"{web}/tool\", sha256: {tool}, to: /usr/local/bin/, mode: \"0755\" }}\n    - copy: {{ url: \"{web}/large\", sha256: {large}, to: /srv/large, owner: \"www-data:www-data\" }}\n"
    );
    let done = bench.bake(&steps).await?;
    done.image()?;
    ensure!(done.text(1, "usr/local/bin/tool")? == "a tool\n");
    let tool_file = fs::metadata(done.layer(1)?.join("usr/local/bin/tool"))?;
    ensure!(tool_file.permissions().mode() & 0o7777 == 0o755);
    let root = fs::metadata(done.layer(2)?)?.uid();
    let large_file = fs::metadata(done.layer(2)?.join("srv/large"))?;
    ensure!(large_file.len() == 3 << 20 && large_file.uid() == root + 33);

    // The content counts, not where it is: with another address nothing is fetched or made.
    let moved = steps.replace("/tool\"", "/nowhere/tool\"");
    let done = bench.bake(&moved).await?;
    done.image()?;
    ensure!(done.made().is_empty(), "{:?}", done.made());

    let other = sha256(b"another tool\n");
    let done = bench
        .bake(&format!(
            "    - copy: {{ url: \"{web}/tool\", sha256: {other}, to: /srv/tool }}\n"
        ))
        .await?;
    contains(
        &done.failure()?,
        &[
            "line 8 of the pipeline file",
            &tool,
            &other,
            "write the new one",
        ],
    )?;
    let done = bench
        .bake(&format!(
            "    - copy: {{ url: \"{web}/none\", sha256: {other}, to: /srv/tool }}\n"
        ))
        .await?;
    contains(&done.failure()?, &["line 8", "answered 404"])
}

pub async fn a_pipeline_cannot_reach_what_trusts_the_worker(bench: &Bench) -> Result<()> {
    let digest = sha256(b"");
    let farm = bench.farm.leader.address;
    for host in ["169.254.169.254", &farm.to_string(), "[::1]:80"] {
        let done = bench
            .bake(&format!(
                "    - copy: {{ url: \"http://{host}/x\", sha256: {digest}, to: /srv/x }}\n"
            ))
            .await?;
        contains(&done.failure()?, &["may not reach", "bake.proxy_allow"])?;
    }
    Ok(())
}
