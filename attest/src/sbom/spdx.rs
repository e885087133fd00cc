//! SPDX 2.3, JSON.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Bom, CREATED, CopiedFile, purl};
use crate::dpkg::Package;
use crate::hash::sha256;

const IMAGE: &str = "SPDXRef-Image";
const UNKNOWN: &str = "NOASSERTION";

/// The document, indented, with a line break at its end.
pub fn spdx(bom: &Bom) -> Vec<u8> {
    let mut packages = vec![image(bom)];
    packages.extend(bom.packages.iter().map(|package| part(bom, package)));
    let files: Vec<Value> = bom.files.iter().map(file).collect();
    let mut relations = vec![relation("SPDXRef-DOCUMENT", "DESCRIBES", IMAGE)];
    // A package whose files are not listed one and all may contain none of them: the document describes the files itself.
    for (from, kind, elements) in [
        (IMAGE, "CONTAINS", &packages[1..]),
        ("SPDXRef-DOCUMENT", "DESCRIBES", &files),
    ] {
        for element in elements {
            let id = element["SPDXID"]
                .as_str()
                .expect("every element has its id");
            relations.push(relation(from, kind, id));
        }
    }
    let references: BTreeMap<&String, (&String, &String)> = bom
        .packages
        .iter()
        .filter_map(|package| Some((&package.name, package.licence.as_ref()?)))
        .flat_map(|(package, licence)| {
            let each = licence.references.iter();
            each.map(move |(id, word)| (id, (word, package)))
        })
        .collect();
    let references: Vec<Value> = references
        .into_iter()
        .map(|(id, (word, package))| {
            json!({
                "licenseId": id,
                "name": word,
                "extractedText": format!("The text stands in /usr/share/doc/{package}/copyright of the image, under {word}."),
            })
        })
        .collect();
    let content = json!([packages, files]).to_string();
    let mut document = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": bom.image,
        "documentNamespace": format!("oast://sbom/{}/{}", bom.image, sha256(content.as_bytes())),
        "creationInfo": {
            "created": CREATED,
            "creators": [concat!("Tool: oast-", env!("CARGO_PKG_VERSION"))],
        },
        "packages": packages,
    });
    // A list with nothing in it is left out, as the form's own tools do.
    for (key, list) in [("files", files), ("hasExtractedLicensingInfos", references)] {
        if !list.is_empty() {
            document[key] = list.into();
        }
    }
    document["relationships"] = relations.into();
    let mut bytes = serde_json::to_vec_pretty(&document).expect("a value has text keys only");
    bytes.push(b'\n');
    bytes
}

fn image(bom: &Bom) -> Value {
    json!({
        "SPDXID": IMAGE,
        "name": bom.image,
        "versionInfo": format!("blake3:{}", bom.disk),
        "summary": format!("{} for {}, made from {}", bom.os.distro(), bom.arch, bom.base),
        "downloadLocation": UNKNOWN,
        "filesAnalyzed": false,
        "licenseConcluded": UNKNOWN,
        "licenseDeclared": UNKNOWN,
        "copyrightText": UNKNOWN,
        "primaryPackagePurpose": "OPERATING-SYSTEM",
    })
}

fn part(bom: &Bom, package: &Package) -> Value {
    let Package {
        name,
        version,
        arch,
        source,
        source_version,
        ..
    } = package;
    json!({
        "SPDXID": format!("SPDXRef-Package-{}-{}", plain(name), plain(arch)),
        "name": name,
        "versionInfo": version,
        "sourceInfo": format!("built from {source} {source_version}"),
        "downloadLocation": UNKNOWN,
        "filesAnalyzed": false,
        "licenseConcluded": UNKNOWN,
        "licenseDeclared": package.licence.as_ref().map_or(UNKNOWN, |licence| licence.expression.as_str()),
        "copyrightText": UNKNOWN,
        "externalRefs": [{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": purl(&bom.os, package),
        }],
    })
}

fn file(file: &CopiedFile) -> Value {
    json!({
        "SPDXID": format!("SPDXRef-File-{}", sha256(file.path.as_bytes())),
        "fileName": format!("./{}", file.path),
        "checksums": [
            {"algorithm": "SHA1", "checksumValue": file.hashes.sha1},
            {"algorithm": "SHA256", "checksumValue": file.hashes.sha256},
        ],
        "licenseConcluded": UNKNOWN,
        "licenseInfoInFiles": [UNKNOWN],
        "copyrightText": UNKNOWN,
    })
}

fn relation(from: &str, kind: &str, to: &str) -> Value {
    json!({
        "spdxElementId": from,
        "relationshipType": kind,
        "relatedSpdxElement": to,
    })
}

/// Ids have letters, digits, dots and dashes. Names of packages have no capitals, so a `+` cannot be taken for another name.
fn plain(text: &str) -> String {
    text.replace('+', ".2B").replace(['_', '~', ':'], "-")
}
