//! CycloneDX 1.6, JSON.

use serde_json::{Value, json};

use super::{Bom, CopiedFile, purl};
use crate::dpkg::Package;
use crate::hash::sha256;

/// The document, indented, with a line break at its end.
pub fn cyclonedx(bom: &Bom) -> Vec<u8> {
    let subject = json!({
        "type": "platform",
        "bom-ref": "image",
        "name": bom.image,
        "hashes": [{"alg": "BLAKE3", "content": bom.disk}],
        "properties": [
            {"name": "oast:image:base", "value": bom.base},
            {"name": "oast:image:arch", "value": bom.arch},
        ],
    });
    let mut components = vec![system(bom)];
    components.extend(bom.packages.iter().map(|package| library(bom, package)));
    components.extend(bom.files.iter().map(file));
    let refs: Vec<&Value> = components.iter().map(|part| &part["bom-ref"]).collect();
    let dependencies = json!([{"ref": "image", "dependsOn": refs}]);
    let metadata = json!({
        "tools": {"components": [{
            "type": "application",
            "name": "oast",
            "version": env!("CARGO_PKG_VERSION"),
        }]},
        "component": subject,
    });
    let content = json!([metadata, components]).to_string();
    let document = json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": format!("urn:uuid:{}", uuid(&content)),
        "version": 1,
        "metadata": metadata,
        "components": components,
        "dependencies": dependencies,
    });
    let mut bytes = serde_json::to_vec_pretty(&document).expect("a value has text keys only");
    bytes.push(b'\n');
    bytes
}

fn system(bom: &Bom) -> Value {
    let mut part = json!({
        "type": "operating-system",
        "bom-ref": "os",
        "name": bom.os.id,
        "version": bom.os.version,
    });
    if !bom.os.pretty.is_empty() {
        part["description"] = bom.os.pretty.clone().into();
    }
    part
}

fn library(bom: &Bom, package: &Package) -> Value {
    let purl = purl(&bom.os, package);
    let mut part = json!({
        "type": "library",
        "bom-ref": purl,
    });
    if !package.maintainer.is_empty() {
        part["publisher"] = package.maintainer.clone().into();
    }
    part["name"] = package.name.clone().into();
    part["version"] = package.version.clone().into();
    if let Some(licence) = &package.licence {
        part["licenses"] = match licence.single() {
            Some(id) => json!([{"license": {"id": id}}]),
            None => json!([{"expression": licence.expression}]),
        };
    }
    part["purl"] = purl.into();
    part["properties"] = json!([
        {"name": "oast:deb:source", "value": package.source},
        {"name": "oast:deb:source-version", "value": package.source_version},
    ]);
    part
}

fn file(file: &CopiedFile) -> Value {
    json!({
        "type": "file",
        "bom-ref": format!("file:{}", file.path),
        "name": format!("/{}", file.path),
        "hashes": [{"alg": "SHA-256", "content": file.hashes.sha256}],
        "properties": [{"name": "oast:file:size", "value": file.size.to_string()}],
    })
}

/// A UUID of the form for own schemes (version 8), from a hash.
fn uuid(content: &str) -> String {
    let hash = sha256(content.as_bytes());
    format!(
        "{}-{}-8{}-8{}-{}",
        &hash[..8],
        &hash[8..12],
        &hash[13..16],
        &hash[17..20],
        &hash[20..32]
    )
}
