//! Which files an initial RAM disk has: cpio archives one behind the other, the last one usually compressed.

use std::collections::BTreeSet;
use std::io::Read;

/// Unpacked, an initrd has some 50 to 200 MiB.
const UNPACKED_MAX: u64 = 1 << 30;
/// Compressed archives in compressed archives.
const NESTED_MAX: u32 = 2;
const HEADER_BYTES: usize = 110;

/// The paths in an initrd. `Err` says why they cannot be told.
pub fn names(bytes: &[u8]) -> Result<BTreeSet<String>, String> {
    let mut found = BTreeSet::new();
    read(bytes, 0, &mut found)?;
    Ok(found)
}

fn read(mut bytes: &[u8], depth: u32, found: &mut BTreeSet<String>) -> Result<(), String> {
    loop {
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        bytes = &bytes[zeros..];
        match bytes {
            [] => return Ok(()),
            [b'0', b'7', b'0', b'7', b'0', b'1' | b'2', ..] => bytes = archive(bytes, found)?,
            _ if depth >= NESTED_MAX => return Err("it is packed too often".to_owned()),
            _ => return read(&unpacked(bytes)?, depth + 1, found),
        }
    }
}

fn unpacked(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut plain = Vec::new();
    let reader: Box<dyn Read + '_> = match bytes {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::GzDecoder::new(bytes)),
        [0xfd, b'7', b'z', ..] => Box::new(liblzma::read::XzDecoder::new(bytes)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Box::new(zstd::stream::read::Decoder::new(bytes).map_err(|err| err.to_string())?)
        }
        [0x02, 0x21, 0x4c, 0x18, ..] => {
            return Err("it is packed with lz4, which is not read here".to_owned());
        }
        _ => return Err("it is no cpio archive in a known packing".to_owned()),
    };
    let mut reader = reader.take(UNPACKED_MAX);
    // Padding behind the packed archive is an error to some of these, after everything was unpacked.
    match reader.read_to_end(&mut plain) {
        Err(err) if plain.is_empty() => Err(err.to_string()),
        _ if plain.len() as u64 >= UNPACKED_MAX => {
            Err("it is larger than the 1 GiB that is read".to_owned())
        }
        _ => Ok(plain),
    }
}

/// Reads one archive and returns what is behind it.
fn archive<'b>(bytes: &'b [u8], found: &mut BTreeSet<String>) -> Result<&'b [u8], String> {
    let cut = || "it is cut off".to_owned();
    let mut at = 0_usize;
    loop {
        let header = bytes.get(at..at + HEADER_BYTES).ok_or_else(cut)?;
        let field = |place: usize| {
            let digits = std::str::from_utf8(&header[6 + place * 8..14 + place * 8]).ok()?;
            usize::from_str_radix(digits, 16).ok()
        };
        let damaged = || "an entry of it is damaged".to_owned();
        let (size, name) = (
            field(6).ok_or_else(damaged)?,
            field(11).ok_or_else(damaged)?,
        );
        let start = at + HEADER_BYTES;
        let text = bytes.get(start..start + name).ok_or_else(cut)?;
        let text = String::from_utf8_lossy(text)
            .trim_end_matches('\0')
            .to_owned();
        at = ((start + name).next_multiple_of(4) + size).next_multiple_of(4);
        if text == "TRAILER!!!" {
            return Ok(bytes.get(at..).unwrap_or_default());
        }
        if at > bytes.len() {
            return Err(cut());
        }
        found.insert(
            text.trim_start_matches("./")
                .trim_start_matches('/')
                .to_owned(),
        );
    }
}
