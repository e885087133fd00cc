//! The partition table: a protective MBR, and a GPT at both ends of the disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use oast_artifacts::Digest;

pub const SECTOR: u64 = 512;
const ENTRIES: u32 = 128;
const ENTRY_BYTES: u32 = 128;
/// Sectors of one array of entries.
const ARRAY_SECTORS: u64 = (ENTRIES * ENTRY_BYTES) as u64 / SECTOR;
const SIGNATURE: &[u8; 8] = b"EFI PART";
const HEADER_BYTES: u32 = 92;

/// A partition type or identity, in the order of its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guid([u8; 16]);

/// EFI system partition.
pub const TYPE_ESP: Guid = Guid::new(0xc12a_7328_f81f_11d2_ba4b_00a0_c93e_c93b);
/// Root of an x86-64 Linux, by the discoverable partitions specification.
pub const TYPE_ROOT_X86_64: Guid = Guid::new(0x4f68_bce3_e8cd_4db1_96e7_fbca_f984_b709);

impl Guid {
    /// From its text read as one number.
    pub const fn new(value: u128) -> Self {
        Self(value.to_be_bytes())
    }

    /// A valid (random-form) GUID that is a function of a key and a purpose.
    pub fn derived(key: Digest, purpose: &str) -> Self {
        let mut text = key.as_bytes().to_vec();
        text.extend_from_slice(purpose.as_bytes());
        let digest = Digest::of(&text);
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest.as_bytes()[..16]);
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(bytes)
    }

    /// As the disk has it: the first three groups are little endian.
    fn on_disk(self) -> [u8; 16] {
        let mut bytes = self.0;
        bytes[0..4].reverse();
        bytes[4..6].reverse();
        bytes[6..8].reverse();
        bytes
    }
}

impl std::fmt::Display for Guid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// One partition, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    pub kind: Guid,
    pub id: Guid,
    pub name: &'static str,
    pub start: u64,
    pub len: u64,
}

/// What a table says about one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub kind: [u8; 16],
    pub start: u64,
    pub len: u64,
}

/// Bytes that a disk needs behind its last partition.
pub const TAIL_BYTES: u64 = (ARRAY_SECTORS + 1) * SECTOR;

/// Writes the tables of a disk of `len` bytes.
pub fn write(disk: &File, len: u64, id: Guid, partitions: &[Partition]) -> io::Result<()> {
    let sectors = len / SECTOR;
    let mut array = vec![0; (ENTRIES * ENTRY_BYTES) as usize];
    for (entry, partition) in array.chunks_exact_mut(ENTRY_BYTES as usize).zip(partitions) {
        entry[..16].copy_from_slice(&partition.kind.on_disk());
        entry[16..32].copy_from_slice(&partition.id.on_disk());
        entry[32..40].copy_from_slice(&(partition.start / SECTOR).to_le_bytes());
        let last = (partition.start + partition.len) / SECTOR - 1;
        entry[40..48].copy_from_slice(&last.to_le_bytes());
        for (at, unit) in partition.name.encode_utf16().take(36).enumerate() {
            entry[56 + at * 2..58 + at * 2].copy_from_slice(&unit.to_le_bytes());
        }
    }
    disk.write_all_at(&protective_mbr(sectors), 0)?;
    let backup_array = sectors - 1 - ARRAY_SECTORS;
    disk.write_all_at(&header(1, sectors - 1, 2, sectors, id, &array), SECTOR)?;
    disk.write_all_at(&array, 2 * SECTOR)?;
    disk.write_all_at(&array, backup_array * SECTOR)?;
    disk.write_all_at(
        &header(sectors - 1, 1, backup_array, sectors, id, &array),
        (sectors - 1) * SECTOR,
    )
}

fn protective_mbr(sectors: u64) -> [u8; 512] {
    let mut mbr = [0; 512];
    let entry = &mut mbr[446..462];
    entry[1..4].copy_from_slice(&[0, 2, 0]);
    entry[4] = 0xee;
    entry[5..8].copy_from_slice(&[0xff; 3]);
    entry[8..12].copy_from_slice(&1_u32.to_le_bytes());
    entry[12..16].copy_from_slice(&u32::try_from(sectors - 1).unwrap_or(u32::MAX).to_le_bytes());
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    mbr
}

fn header(own: u64, other: u64, array_at: u64, sectors: u64, id: Guid, array: &[u8]) -> [u8; 512] {
    let mut header = [0; 512];
    header[..8].copy_from_slice(SIGNATURE);
    header[8..12].copy_from_slice(&0x0001_0000_u32.to_le_bytes());
    header[12..16].copy_from_slice(&HEADER_BYTES.to_le_bytes());
    header[24..32].copy_from_slice(&own.to_le_bytes());
    header[32..40].copy_from_slice(&other.to_le_bytes());
    header[40..48].copy_from_slice(&(2 + ARRAY_SECTORS).to_le_bytes());
    header[48..56].copy_from_slice(&(sectors - 2 - ARRAY_SECTORS).to_le_bytes());
    header[56..72].copy_from_slice(&id.on_disk());
    header[72..80].copy_from_slice(&array_at.to_le_bytes());
    header[80..84].copy_from_slice(&ENTRIES.to_le_bytes());
    header[84..88].copy_from_slice(&ENTRY_BYTES.to_le_bytes());
    header[88..92].copy_from_slice(&crc32(array).to_le_bytes());
    let sum = crc32(&header[..HEADER_BYTES as usize]);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    header
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// Reads and verifies the table at one end of the disk (`backup` = the far one). `Err` says what is wrong.
pub fn read(disk: &File, len: u64, backup: bool) -> Result<Vec<Found>, String> {
    let io = |err: io::Error| err.to_string();
    let sectors = len / SECTOR;
    let own = if backup { sectors - 1 } else { 1 };
    let mut header = [0; 512];
    disk.read_exact_at(&mut header, own * SECTOR).map_err(io)?;
    let u64_at = |bytes: &[u8], at: usize| {
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
    };
    let u32_at = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    if &header[..8] != SIGNATURE {
        return Err("there is no GPT header".to_owned());
    }
    let mut summed = header;
    summed[16..20].fill(0);
    if u32_at(12) != HEADER_BYTES || crc32(&summed[..HEADER_BYTES as usize]) != u32_at(16) {
        return Err("the GPT header's checksum is wrong".to_owned());
    }
    if u64_at(&header, 24) != own {
        return Err("the GPT header says it lies elsewhere".to_owned());
    }
    let mut array = vec![0; (ENTRIES * ENTRY_BYTES) as usize];
    disk.read_exact_at(&mut array, u64_at(&header, 72) * SECTOR)
        .map_err(io)?;
    if u32_at(80) != ENTRIES || u32_at(84) != ENTRY_BYTES || crc32(&array) != u32_at(88) {
        return Err("the GPT entries' checksum is wrong".to_owned());
    }
    let (first, last) = (u64_at(&header, 40), u64_at(&header, 48));
    let mut found: Vec<Found> = Vec::new();
    for entry in array
        .chunks_exact(ENTRY_BYTES as usize)
        .filter(|entry| entry[..16] != [0; 16])
    {
        let (start, end) = (u64_at(entry, 32), u64_at(entry, 40));
        let floor = found
            .last()
            .map_or(first, |before| (before.start + before.len) / SECTOR);
        if start < floor || end < start || end > last {
            return Err(format!(
                "the partition at sector {start} overlaps or leaves the disk"
            ));
        }
        let kind = entry[..16].try_into().expect("sixteen bytes");
        found.push(Found {
            kind,
            start: start * SECTOR,
            len: (end - start + 1) * SECTOR,
        });
    }
    Ok(found)
}

impl Found {
    /// Whether the partition has this type.
    pub fn is(&self, kind: Guid) -> bool {
        self.kind == kind.on_disk()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_tables_say_the_same_and_damage_is_noticed() {
        let disk = tempfile::tempfile().unwrap();
        let len = 16 << 20;
        disk.set_len(len).unwrap();
        let key = Digest::of(b"key");
        let part = |start, name| Partition {
            kind: TYPE_ESP,
            id: Guid::derived(key, name),
            name,
            start,
            len: 2 << 20,
        };
        write(
            &disk,
            len,
            Guid::derived(key, "disk"),
            &[part(1 << 20, "a"), part(3 << 20, "b")],
        )
        .unwrap();
        let found = read(&disk, len, false).unwrap();
        assert_eq!(found, read(&disk, len, true).unwrap());
        assert_eq!(
            (found[1].start, found[1].len, found[1].is(TYPE_ESP)),
            (3 << 20, 2 << 20, true)
        );
        disk.write_all_at(b"x", 2 * SECTOR + 40).unwrap();
        assert!(read(&disk, len, false).unwrap_err().contains("checksum"));
        assert!(read(&disk, len, true).is_ok());
    }

    #[test]
    fn a_guid_prints_as_its_specification_writes_it() {
        assert_eq!(TYPE_ESP.to_string(), "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
        assert_eq!(TYPE_ESP.on_disk()[..4], [0x28, 0x73, 0x2a, 0xc1]);
    }
}
