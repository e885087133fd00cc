//! The bytes behind disks: page blobs that are written and read by a shared access signature.
//!
//! Rules that emulators leave out and the service enforces: at most 4 MiB a write, whole pages of
//! 512 bytes, nothing beyond the end, and a `Content-MD5` that is right. Bytes are kept in chunks
//! of 64 KiB, and only where something was written.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use md5::{Digest as _, Md5};

use crate::dice::Dice;
use crate::http::{Content, Method, Reply, Request};
use crate::time::Moment;

/// How the paths of links begin.
pub const PREFIX: &str = "/md-impexp-";

const PAGE: u64 = 512;
/// 128 pages, so that a word of 128 bits says which were written.
const CHUNK: u64 = 128 * PAGE;
const LARGEST_WRITE: u64 = 4 << 20;
/// A read without a range of more than this is refused, so that nobody reads a disk into memory.
const LARGEST_READ: u64 = 256 << 20;

#[derive(Debug, Clone)]
struct Chunk {
    bytes: Vec<u8>,
    written: u128,
}

#[derive(Debug)]
struct Grant {
    signature: String,
    write: bool,
    until: Moment,
}

#[derive(Debug)]
struct Blob {
    size: u64,
    chunks: BTreeMap<u64, Chunk>,
    grants: Vec<Grant>,
    etag: u64,
}

/// All blobs.
#[derive(Debug, Default)]
pub struct Blobs {
    blobs: BTreeMap<String, Blob>,
    /// Bytes that were accepted, of all blobs.
    pub received: u64,
}

struct Refusal(u16, &'static str, String);

impl Refusal {
    fn reply(self) -> Reply {
        let Refusal(status, code, message) = self;
        Reply {
            status,
            headers: vec![("x-ms-error-code", code.to_owned())],
            content: Content::Text(
                "application/xml",
                format!(
                    "<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
                ),
            ),
        }
    }
}

impl Blobs {
    /// A blob of zeros; returns its name.
    pub fn create(&mut self, size: u64, dice: &mut Dice) -> String {
        let name = dice.guid()[..12].replace('-', "");
        let blob = Blob {
            size,
            chunks: BTreeMap::new(),
            grants: Vec::new(),
            etag: 1,
        };
        self.blobs.insert(name.clone(), blob);
        name
    }

    /// Takes a blob away.
    pub fn remove(&mut self, name: &str) {
        self.blobs.remove(name);
    }

    /// A link to a blob's bytes.
    pub fn grant(
        &mut self,
        name: &str,
        write: bool,
        until: Moment,
        base: &str,
        dice: &mut Dice,
    ) -> String {
        let signature = format!("{}{}", dice.guid(), dice.guid()).replace('-', "");
        let container = dice.guid()[..12].replace('-', "");
        let link = format!(
            "{base}{PREFIX}{name}/{container}/abcd?sv=2018-03-28&sr=b&si={}&sp={}&se={}&sig={signature}",
            dice.guid(),
            if write { "rw" } else { "r" },
            until.short().replace(':', "%3A"),
        );
        if let Some(blob) = self.blobs.get_mut(name) {
            blob.grants.push(Grant {
                signature,
                write,
                until,
            });
        }
        link
    }

    /// Ends every link to a blob.
    pub fn revoke(&mut self, name: &str) {
        if let Some(blob) = self.blobs.get_mut(name) {
            blob.grants.clear();
        }
    }

    /// What keeps uploaded bytes from being a disk, in Azure's words.
    #[must_use]
    pub fn vhd_fault(&self, name: &str, uploaded: u64, disk: &str) -> Option<String> {
        let blob = self.blobs.get(name)?;
        let footer = blob.read(blob.size - PAGE, PAGE);
        if &footer[..8] != b"conectix" {
            let cookie = String::from_utf8_lossy(&footer[..8]).into_owned();
            return Some(format!(
                "The specified cookie value in VHD footer indicates that disk '{disk}' with blob {PREFIX}{name}/abcd is not a supported VHD. Disk is expected to have cookie value 'conectix', and has '{}'.",
                cookie.trim_matches('\0')
            ));
        }
        let mut size = [0; 8];
        size.copy_from_slice(&footer[48..56]);
        let size = u64::from_be_bytes(size);
        if size % (1 << 20) != 0 {
            return Some(format!(
                "The specified VHD of disk '{disk}' has an unsupported virtual size of {size} bytes. The size must be a whole number (in MBs)."
            ));
        }
        if size + PAGE != uploaded {
            return Some(format!(
                "The virtual size {size} in the VHD footer of disk '{disk}' does not go with the {uploaded} bytes of its upload."
            ));
        }
        let fixed = footer[60..64] == [0, 0, 0, 2];
        let sum: u32 = footer
            .iter()
            .enumerate()
            .filter(|(at, _)| !(64..68).contains(at))
            .map(|(_, byte)| u32::from(*byte))
            .sum();
        let right = footer[64..68] == (!sum).to_be_bytes();
        (!fixed || !right).then(|| {
            format!("The VHD footer of disk '{disk}' is not that of a fixed VHD, or its checksum is wrong.")
        })
    }

    /// Answers a request to a link.
    pub fn answer(&mut self, request: &Request, now: Moment, dice: &mut Dice) -> Reply {
        let mut reply = match self.serve(request, now) {
            Ok(reply) => reply,
            Err(refusal) => refusal.reply(),
        };
        reply.headers.extend([
            ("x-ms-request-id", dice.guid()),
            ("x-ms-version", "2018-03-28".to_owned()),
            ("date", now.rfc1123()),
        ]);
        reply
    }

    fn serve(&mut self, request: &Request, now: Moment) -> Result<Reply, Refusal> {
        let name = request.path[PREFIX.len()..].split('/').next();
        let name = name.unwrap_or_default().to_owned();
        let denied = |why: &str| {
            Refusal(
                403,
                "AuthenticationFailed",
                format!(
                    "Server failed to authenticate the request. Make sure the value of Authorization header is formed correctly including the signature. {why}"
                ),
            )
        };
        let Some(blob) = self.blobs.get_mut(&name) else {
            return Err(denied("There is no such signature."));
        };
        let signature = request.parameter("sig").unwrap_or_default();
        let grant = blob
            .grants
            .iter()
            .find(|grant| grant.signature == signature);
        let grant = grant.ok_or_else(|| denied("Signature did not match."))?;
        if grant.until <= now {
            return Err(denied("Signature not valid in the specified time frame."));
        }
        let may_write = grant.write;
        match (request.method, request.parameter("comp")) {
            (Method::Put, Some("page")) if may_write => {
                let taken = blob.put_page(request)?;
                self.received += taken;
                let blob = &self.blobs[&name];
                Ok(blob.describe(Reply::empty(201), now))
            }
            (Method::Put, _) => Err(Refusal(
                403,
                "AuthorizationPermissionMismatch",
                "This request is not authorized to perform this operation using this permission."
                    .to_owned(),
            )),
            (Method::Get, Some("pagelist")) => Ok(blob.describe(
                Reply {
                    status: 200,
                    headers: vec![("x-ms-blob-content-length", blob.size.to_string())],
                    content: Content::Text("application/xml", blob.page_list()),
                },
                now,
            )),
            (Method::Get, None) => blob.get(request).map(|reply| blob.describe(reply, now)),
            (Method::Head, None) => {
                let reply = Reply::empty(200).with("content-length", blob.size.to_string());
                Ok(blob.describe(reply, now))
            }
            _ => Err(Refusal(
                400,
                "UnsupportedHttpVerb",
                "The resource doesn't support the specified HTTP verb.".to_owned(),
            )),
        }
    }
}

impl Blob {
    fn describe(&self, reply: Reply, now: Moment) -> Reply {
        reply
            .with("etag", format!("\"0x8DC{:012X}\"", self.etag))
            .with("last-modified", now.rfc1123())
            .with("x-ms-blob-type", "PageBlob")
            .with("x-ms-blob-sequence-number", "0")
    }

    /// Put Page: update or clear. Returns the bytes that came.
    fn put_page(&mut self, request: &Request) -> Result<u64, Refusal> {
        let header = |name: &str| {
            Refusal(
                400,
                "InvalidHeaderValue",
                format!(
                    "The value for one of the HTTP headers is not in the correct format: {name}."
                ),
            )
        };
        let (from, until) = range(request)
            .and_then(|(from, until)| Some((from, until?)))
            .ok_or_else(|| header("Range"))?;
        if from > until || from % PAGE != 0 || (until + 1) % PAGE != 0 || until >= self.size {
            return Err(Refusal(
                416,
                "InvalidPageRange",
                "The page range specified is invalid.".to_owned(),
            ));
        }
        let length = until + 1 - from;
        let body = &request.body;
        match request.header("x-ms-page-write") {
            Some("clear") if body.is_empty() => {
                self.write(from, length, None);
                self.etag += 1;
                return Ok(0);
            }
            Some("update") => {}
            _ => return Err(header("x-ms-page-write")),
        }
        if length > LARGEST_WRITE {
            return Err(Refusal(
                413,
                "RequestBodyTooLarge",
                format!(
                    "The request body is too large and exceeds the maximum permissible limit of {LARGEST_WRITE} bytes."
                ),
            ));
        }
        if body.len() as u64 != length {
            return Err(header("Content-Length"));
        }
        if let Some(claimed) = request.header("content-md5")
            && STANDARD.encode(Md5::digest(body)) != claimed
        {
            return Err(Refusal(
                400,
                "Md5Mismatch",
                "The MD5 value specified in the request did not match with the MD5 value calculated by the server.".to_owned(),
            ));
        }
        self.write(from, length, Some(body));
        self.etag += 1;
        Ok(length)
    }

    /// Writes whole pages, or takes them away.
    fn write(&mut self, from: u64, length: u64, bytes: Option<&Bytes>) {
        let mut at = from;
        while at < from + length {
            let (number, inside) = (at / CHUNK, at % CHUNK);
            let part = (CHUNK - inside).min(from + length - at);
            let pages = mask(inside / PAGE, part / PAGE);
            match bytes {
                Some(bytes) => {
                    let chunk = self.chunks.entry(number).or_insert_with(|| Chunk {
                        bytes: vec![0; index(CHUNK)],
                        written: 0,
                    });
                    let source = &bytes[index(at - from)..index(at - from + part)];
                    chunk.bytes[index(inside)..index(inside + part)].copy_from_slice(source);
                    chunk.written |= pages;
                }
                None => {
                    if let Some(chunk) = self.chunks.get_mut(&number) {
                        chunk.bytes[index(inside)..index(inside + part)].fill(0);
                        chunk.written &= !pages;
                    }
                }
            }
            at += part;
        }
    }

    fn read(&self, from: u64, length: u64) -> Vec<u8> {
        let mut out = vec![0; index(length)];
        let mut at = from;
        while at < from + length {
            let (number, inside) = (at / CHUNK, at % CHUNK);
            let part = (CHUNK - inside).min(from + length - at);
            if let Some(chunk) = self.chunks.get(&number) {
                let source = &chunk.bytes[index(inside)..index(inside + part)];
                out[index(at - from)..index(at - from + part)].copy_from_slice(source);
            }
            at += part;
        }
        out
    }

    fn get(&self, request: &Request) -> Result<Reply, Refusal> {
        let unsatisfiable = || {
            Refusal(
                416,
                "InvalidRange",
                "The range specified is invalid for the current size of the resource.".to_owned(),
            )
        };
        let (from, until, status) = match range(request) {
            Some((from, until)) => (from, until.unwrap_or(u64::MAX).min(self.size - 1), 206),
            None => (0, self.size - 1, 200),
        };
        if from > until || until - from >= LARGEST_READ {
            return Err(unsatisfiable());
        }
        let bytes = self.read(from, until + 1 - from);
        let reply = Reply {
            status,
            headers: vec![(
                "content-range",
                format!("bytes {from}-{until}/{}", self.size),
            )],
            content: Content::Bytes(Bytes::from(bytes)),
        };
        Ok(reply)
    }

    /// Which pages were written, in runs.
    fn page_list(&self) -> String {
        let pages = self.chunks.iter().flat_map(|(number, chunk)| {
            let first = number * (CHUNK / PAGE);
            let written = chunk.written;
            (0..128).filter_map(move |bit| (written >> bit & 1 == 1).then_some(first + bit))
        });
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for page in pages {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == page => *last = page,
                _ => runs.push((page, page)),
            }
        }
        let mut list = String::from("<?xml version=\"1.0\" encoding=\"utf-8\"?><PageList>");
        for (first, last) in runs {
            let (from, until) = (first * PAGE, (last + 1) * PAGE - 1);
            list.extend([
                "<PageRange><Start>",
                &from.to_string(),
                "</Start><End>",
                &until.to_string(),
                "</End></PageRange>",
            ]);
        }
        list.push_str("</PageList>");
        list
    }
}

fn mask(first: u64, count: u64) -> u128 {
    let ones = if count >= 128 {
        u128::MAX
    } else {
        (1 << count) - 1
    };
    ones << first
}

fn index(n: u64) -> usize {
    usize::try_from(n).expect("blobs are addressed with 64 bits")
}

/// `bytes=a-b` of `x-ms-range` or `Range`.
fn range(request: &Request) -> Option<(u64, Option<u64>)> {
    let header = request
        .header("x-ms-range")
        .or_else(|| request.header("range"))?;
    let (from, until) = header.strip_prefix("bytes=")?.split_once('-')?;
    let until = match until {
        "" => None,
        until => Some(until.parse().ok()?),
    };
    Some((from.parse().ok()?, until))
}

#[cfg(test)]
mod tests;
