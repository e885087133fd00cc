//! Checks OpenPGP signatures of release files with `gpgv`.
//!
//! A library in process (the `pgp` crate without its default features) was measured at 128 CPU
//! seconds of a release build, so the check is done by GnuPG's verifier, which every Debian and
//! Ubuntu machine has because apt uses it. gpgv trusts exactly the keyrings it is given and
//! nothing of the user's own.
//!
//! Only text that gpgv itself wrote out as signed is ever returned: parsing the signed message a
//! second time in here could disagree with gpgv about what was covered.

use std::io::Write;
use std::process::{Command, Stdio};

use base64::Engine as _;
use camino::Utf8PathBuf;

use super::source::Keyring;

/// A signature that does not hold, or cannot be checked.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    #[error(
        "check the signature of {what}: the program `gpgv` is not installed; \
         `apt-get install gpgv` brings it"
    )]
    NoGpgv { what: String },
    #[error("check the signature of {what}: {path}")]
    Io {
        what: String,
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("check the signature of {what}: the keyring {keyring} is not an OpenPGP keyring")]
    Keyring { what: String, keyring: String },
    #[error(
        "trust {what}: it is not signed by any key of {keyring} ({detail}). Either the archive \
         was tampered with, or the keyring is not the one of this archive"
    )]
    Untrusted {
        what: String,
        keyring: String,
        detail: String,
    },
    #[error("trust {what}: its signature is bad ({detail}); the text was changed after signing")]
    Bad { what: String, detail: String },
}

/// Checks a clear-signed message and returns the text that the signature covers.
pub fn verify_clear(
    message: &[u8],
    keyring: &Keyring,
    what: &str,
) -> Result<Vec<u8>, SignatureError> {
    // Text outside the signed part must not be there at all, and one file is one message.
    let start = b"-----BEGIN PGP SIGNED MESSAGE-----";
    let starts = message
        .windows(start.len())
        .filter(|window| window == start)
        .count();
    if !message.starts_with(start) || starts != 1 {
        return Err(SignatureError::Bad {
            what: what.to_owned(),
            detail: "it is not one clear-signed message".to_owned(),
        });
    }
    let folder = Scratch::new(what)?;
    let message_path = folder.write("message", message)?;
    let out = folder.path("text");
    let verdict = folder.gpgv(keyring, &["--output", out.as_str(), message_path.as_str()])?;
    verdict.judge(keyring, what)?;
    let text = std::fs::read(&out).map_err(|source| folder.io("read gpgv's output", source))?;
    Ok(text)
}

/// Checks a detached signature over `text`.
pub fn verify_detached(
    text: &[u8],
    signature: &[u8],
    keyring: &Keyring,
    what: &str,
) -> Result<(), SignatureError> {
    let folder = Scratch::new(what)?;
    let text_path = folder.write("text", text)?;
    let signature_path = folder.write("signature", signature)?;
    let verdict = folder.gpgv(keyring, &[signature_path.as_str(), text_path.as_str()])?;
    verdict.judge(keyring, what)
}

/// A folder for one check; it goes away with the value.
struct Scratch<'a> {
    folder: tempfile::TempDir,
    what: &'a str,
}

impl<'a> Scratch<'a> {
    fn new(what: &'a str) -> Result<Self, SignatureError> {
        let folder = tempfile::Builder::new()
            .prefix("oast-gpgv-")
            .tempdir()
            .map_err(|source| SignatureError::Io {
                what: what.to_owned(),
                path: "make a temporary folder".to_owned(),
                source,
            })?;
        Ok(Self { folder, what })
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<String, SignatureError> {
        let path = self.path(name);
        std::fs::write(&path, bytes).map_err(|source| self.io(&path, source))?;
        Ok(path)
    }

    fn io(&self, path: &str, source: std::io::Error) -> SignatureError {
        SignatureError::Io {
            what: self.what.to_owned(),
            path: path.to_owned(),
            source,
        }
    }

    fn gpgv(&self, keyring: &Keyring, args: &[&str]) -> Result<Verdict, SignatureError> {
        let mut command = Command::new("gpgv");
        command
            .env("LC_ALL", "C")
            // gpgv must not pick up a trustedkeys file of the user who runs the worker.
            .env("GNUPGHOME", self.folder.path())
            .args(["--quiet", "--status-fd", "1", "--weak-digest", "SHA1"])
            .args(["--weak-digest", "RIPEMD160"]);
        for file in self.keyring_files(keyring)? {
            command.arg("--keyring").arg(file);
        }
        let output =
            command
                .args(args)
                .stdin(Stdio::null())
                .output()
                .map_err(|source| match source.kind() {
                    std::io::ErrorKind::NotFound => SignatureError::NoGpgv {
                        what: self.what.to_owned(),
                    },
                    _ => self.io("run gpgv", source),
                })?;
        Ok(Verdict {
            status: String::from_utf8_lossy(&output.stdout).into_owned(),
            complaints: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// gpgv reads binary keyrings only, so armoured ones are unpacked first.
    fn keyring_files(&self, keyring: &Keyring) -> Result<Vec<Utf8PathBuf>, SignatureError> {
        let mut files = Vec::new();
        let mut add = |name: &str, bytes: &[u8], file: Option<&Utf8PathBuf>| {
            if let (Some(file), false) = (file, bytes.starts_with(b"-----BEGIN")) {
                files.push(file.clone());
                return Ok(());
            }
            let binary = dearmour(bytes).ok_or_else(|| SignatureError::Keyring {
                what: self.what.to_owned(),
                keyring: name.to_owned(),
            })?;
            let path = self.path(&format!("keyring-{}.gpg", files.len()));
            let mut out = std::fs::File::create(&path).map_err(|e| self.io(&path, e))?;
            out.write_all(&binary).map_err(|e| self.io(&path, e))?;
            files.push(Utf8PathBuf::from(path));
            Ok::<_, SignatureError>(())
        };
        match keyring {
            Keyring::Inline(text) => add("in the configuration", text.as_bytes(), None)?,
            Keyring::Files(list) | Keyring::Fingerprints { files: list, .. } => {
                for file in list {
                    let bytes = std::fs::read(file).map_err(|e| self.io(file.as_str(), e))?;
                    add(file.as_str(), &bytes, Some(file))?;
                }
            }
        }
        Ok(files)
    }
}

struct Verdict {
    status: String,
    complaints: String,
}

impl Verdict {
    /// A release file often has one signature per archive key, not all of which are in the
    /// keyring; one good signature is enough and a single bad one is too many. gpgv's exit code
    /// says neither, so its status lines are read.
    fn judge(&self, keyring: &Keyring, what: &str) -> Result<(), SignatureError> {
        let lines = || {
            self.status
                .lines()
                .filter_map(|line| line.strip_prefix("[GNUPG:] "))
                .map(|line| line.split_whitespace().collect::<Vec<_>>())
        };
        if lines().any(|line| matches!(line.first(), Some(&"BADSIG" | &"REVKEYSIG"))) {
            return Err(SignatureError::Bad {
                what: what.to_owned(),
                detail: self.detail(),
            });
        }
        let mut good = false;
        for line in lines() {
            match line.first() {
                // A GOODSIG comes right before its VALIDSIG; an expired key has EXPKEYSIG there.
                Some(&"GOODSIG") => good = true,
                Some(&"EXPKEYSIG" | &"EXPSIG" | &"ERRSIG") => good = false,
                Some(&"VALIDSIG") if good && keyring.admits(&line) => return Ok(()),
                _ => {}
            }
        }
        Err(SignatureError::Untrusted {
            what: what.to_owned(),
            keyring: keyring.describe(),
            detail: self.detail(),
        })
    }

    fn detail(&self) -> String {
        let lines: Vec<_> = self
            .complaints
            .lines()
            .map(|line| line.trim_start_matches("gpgv: ").trim())
            .filter(|line| !line.is_empty())
            .take(DETAIL_LINES)
            .collect();
        if lines.is_empty() {
            "it carries no signature".to_owned()
        } else {
            lines.join("; ")
        }
    }
}

/// How much of gpgv's own words an error repeats.
const DETAIL_LINES: usize = 4;

impl Keyring {
    /// Checks the fingerprints of a VALIDSIG line: the first is the key, the last its primary.
    fn admits(&self, valid: &[&str]) -> bool {
        let Self::Fingerprints { fingerprints, .. } = self else {
            return true;
        };
        [valid.get(1), valid.last()]
            .into_iter()
            .flatten()
            .any(|seen| {
                fingerprints
                    .iter()
                    .any(|wanted| seen.ends_with(wanted.as_str()))
            })
    }

    /// Names the keyring for a message.
    pub fn describe(&self) -> String {
        match self {
            Self::Inline(_) => "the key in the configuration".to_owned(),
            Self::Files(files) | Self::Fingerprints { files, .. } => files
                .iter()
                .map(|file| file.as_str())
                .collect::<Vec<_>>()
                .join(", "),
        }
    }
}

/// Decodes every armoured block of a key file. The CRC is not checked: the keys in it are only
/// as trustworthy as the file itself.
fn dearmour(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((_, block)) = rest.split_once("-----BEGIN PGP PUBLIC KEY BLOCK-----") {
        let (body, after) = block.split_once("-----END PGP PUBLIC KEY BLOCK-----")?;
        rest = after;
        let mut packed = String::new();
        let mut headers = true;
        for line in body.trim_start_matches([' ', '\t', '\r']).lines().skip(1) {
            let line = line.trim();
            if line.starts_with('=') {
                break;
            }
            // Armour headers (`Version: …`) end at the first empty line.
            if headers && (line.is_empty() || line.contains(": ")) {
                headers = !line.is_empty();
                continue;
            }
            headers = false;
            packed.push_str(line);
        }
        out.extend(
            base64::engine::general_purpose::STANDARD
                .decode(packed)
                .ok()?,
        );
    }
    (!out.is_empty()).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn armoured_blocks_are_decoded_with_and_without_headers() {
        let block = |inner: &str| {
            format!(
                "-----BEGIN PGP PUBLIC KEY BLOCK-----\n{inner}\n-----END PGP PUBLIC KEY BLOCK-----\n"
            )
        };
        let text = block("\naGVs\nbG8=\n=abcd") + &block("Version: x\n\nYQ==");
        assert_eq!(dearmour(text.as_bytes()).unwrap(), b"helloa");
        assert_eq!(dearmour(b"nothing"), None);
    }

    #[test]
    fn status_lines_decide_and_one_bad_signature_is_too_many() {
        let keyring = Keyring::Files(vec!["/k.gpg".into()]);
        let judge = |status: &str, keyring: &Keyring| {
            Verdict {
                status: status.to_owned(),
                complaints: String::new(),
            }
            .judge(keyring, "InRelease")
        };
        let good = "[GNUPG:] ERRSIG 1 1 10 01 1 9 -\n[GNUPG:] NO_PUBKEY 1\n\
                    [GNUPG:] GOODSIG A someone\n[GNUPG:] VALIDSIG AA11 2026 1 0 4 0 1 10 01 BB22\n";
        judge(good, &keyring).unwrap();
        let bad = format!("{good}[GNUPG:] BADSIG B someone\n");
        assert!(matches!(
            judge(&bad, &keyring),
            Err(SignatureError::Bad { .. })
        ));
        let expired = "[GNUPG:] EXPKEYSIG A x\n[GNUPG:] VALIDSIG AA11 2026 1 0 4 0 1 10 01 BB22\n";
        assert!(matches!(
            judge(expired, &keyring),
            Err(SignatureError::Untrusted { .. })
        ));
        assert!(matches!(
            judge("", &keyring),
            Err(SignatureError::Untrusted { .. })
        ));
        let only = |fingerprint: &str| Keyring::Fingerprints {
            files: vec!["/k.gpg".into()],
            fingerprints: vec![fingerprint.to_owned()],
        };
        judge(good, &only("BB22")).unwrap();
        assert!(judge(good, &only("CC33")).is_err());
    }
}
