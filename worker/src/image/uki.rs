//! The unified kernel image: a systemd stub with the kernel, the initrd and the command line as further PE sections.

/// A section that the stub looks for.
#[derive(Debug, Clone, Copy)]
pub struct Section<'a> {
    /// At most eight bytes, with its dot.
    pub name: &'a str,
    pub data: &'a [u8],
}

/// Why a stub could not take the sections, or a file is no unified image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UkiError {
    #[error("it is no 64-bit PE program ({0})")]
    NotPe(&'static str),
    #[error("its header has no room for {0} more sections; use another stub")]
    NoRoom(usize),
    #[error("section {0} is larger than a PE file can hold")]
    TooLarge(String),
    #[error("section {0} overlaps another or leaves the file")]
    Overlap(String),
}

const SECTION_BYTES: usize = 40;
/// Initialized data, readable.
const CHARACTERISTICS: u32 = 0x4000_0040;

/// Where the parts of a PE header are.
struct Header {
    coff: usize,
    optional: usize,
    table: usize,
    count: usize,
}

/// One row of the section table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub name: String,
    pub virtual_size: u32,
    pub virtual_address: u32,
    pub file_size: u32,
    pub file_offset: u32,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?).into())
}

fn header(pe: &[u8]) -> Result<Header, UkiError> {
    if pe.get(..2) != Some(b"MZ") {
        return Err(UkiError::NotPe("no MZ at its start"));
    }
    let at = word(pe, 0x3c).ok_or(UkiError::NotPe("cut off"))? as usize;
    if pe.get(at..at + 4) != Some(b"PE\0\0") {
        return Err(UkiError::NotPe("no PE signature"));
    }
    let coff = at + 4;
    let count = half(pe, coff + 2).ok_or(UkiError::NotPe("cut off"))?;
    let size = half(pe, coff + 16).ok_or(UkiError::NotPe("cut off"))?;
    let optional = coff + 20;
    if half(pe, optional) != Some(0x20b) || size < 68 {
        return Err(UkiError::NotPe("not PE32+"));
    }
    Ok(Header {
        coff,
        optional,
        table: optional + size,
        count,
    })
}

/// The section table.
pub fn sections(pe: &[u8]) -> Result<Vec<Row>, UkiError> {
    let header = header(pe)?;
    let mut rows = Vec::new();
    for at in 0..header.count {
        let row = header.table + at * SECTION_BYTES;
        let name = pe.get(row..row + 8).ok_or(UkiError::NotPe("cut off"))?;
        let get = |offset| word(pe, row + offset).ok_or(UkiError::NotPe("cut off"));
        rows.push(Row {
            name: String::from_utf8_lossy(name)
                .trim_end_matches('\0')
                .to_owned(),
            virtual_size: get(8)?,
            virtual_address: get(12)?,
            file_size: get(16)?,
            file_offset: get(20)?,
        });
    }
    Ok(rows)
}

/// The machine that a program is for, as the format counts: 0x8664 is x86-64, 0xaa64 is arm64.
pub fn machine(pe: &[u8]) -> Option<u16> {
    let header = header(pe).ok()?;
    u16::try_from(half(pe, header.coff)?).ok()
}

/// The signatures of a program, as they stand in its certificate table. None where nobody signed it.
pub fn signature(pe: &[u8]) -> Option<&[u8]> {
    /// Behind the fields of a 64-bit program; the fifth directory, of eight bytes each.
    const CERTIFICATES: usize = 112 + 4 * 8;
    let header = header(pe).ok()?;
    let row = header.optional + CERTIFICATES;
    if row + 8 > header.table {
        return None;
    }
    let (start, length) = (word(pe, row)? as usize, word(pe, row + 4)? as usize);
    let table = pe.get(start..start.checked_add(length)?)?;
    (!table.is_empty()).then_some(table)
}

/// Checks that sections lie inside the file and apart from each other, in memory and in the file.
pub fn check(pe: &[u8]) -> Result<Vec<Row>, UkiError> {
    let rows = sections(pe)?;
    let overlap = |row: &Row| Err(UkiError::Overlap(row.name.clone()));
    for (at, row) in rows.iter().enumerate() {
        if u64::from(row.file_offset) + u64::from(row.file_size) > pe.len() as u64 {
            return overlap(row);
        }
        for other in &rows[..at] {
            let apart = |a: u32, a_len: u32, b: u32, b_len: u32| {
                u64::from(a) + u64::from(a_len) <= u64::from(b)
                    || u64::from(b) + u64::from(b_len) <= u64::from(a)
            };
            if !apart(
                row.virtual_address,
                row.virtual_size,
                other.virtual_address,
                other.virtual_size,
            ) || !apart(
                row.file_offset,
                row.file_size,
                other.file_offset,
                other.file_size,
            ) {
                return overlap(row);
            }
        }
    }
    Ok(rows)
}

/// Adds `added` to `stub`. Each starts on a boundary of its own behind everything before it, in memory and in the file.
pub fn build(stub: &[u8], added: &[Section<'_>]) -> Result<Vec<u8>, UkiError> {
    let header = header(stub)?;
    let rows = check(stub)?;
    let get = |offset| word(stub, header.optional + offset).ok_or(UkiError::NotPe("cut off"));
    let memory_step = get(32)?.max(1);
    let file_step = get(36)?.max(1);
    let end_of_table = header.table + (header.count + added.len()) * SECTION_BYTES;
    let first_data = rows
        .iter()
        .filter(|row| row.file_size > 0)
        .map(|row| row.file_offset)
        .min();
    if end_of_table > first_data.unwrap_or(get(60)?).min(get(60)?) as usize {
        return Err(UkiError::NoRoom(added.len()));
    }
    let mut pe = stub.to_vec();
    let mut address = rows
        .iter()
        .map(|row| {
            row.virtual_address
                .saturating_add(row.virtual_size.max(row.file_size))
        })
        .max()
        .unwrap_or(memory_step);
    for (at, section) in added.iter().enumerate() {
        let large = || UkiError::TooLarge(section.name.to_owned());
        address = address
            .checked_next_multiple_of(memory_step)
            .ok_or_else(large)?;
        let offset = pe.len().next_multiple_of(file_step as usize);
        let size = u32::try_from(section.data.len()).map_err(|_| large())?;
        pe.resize(offset, 0);
        pe.extend_from_slice(section.data);
        pe.resize(pe.len().next_multiple_of(file_step as usize), 0);
        let file_size = u32::try_from(pe.len() - offset).map_err(|_| large())?;

        let mut row = [0; SECTION_BYTES];
        let name = section.name.as_bytes();
        row[..name.len().min(8)].copy_from_slice(&name[..name.len().min(8)]);
        row[8..12].copy_from_slice(&size.to_le_bytes());
        row[12..16].copy_from_slice(&address.to_le_bytes());
        row[16..20].copy_from_slice(&file_size.to_le_bytes());
        row[20..24].copy_from_slice(&u32::try_from(offset).map_err(|_| large())?.to_le_bytes());
        row[36..40].copy_from_slice(&CHARACTERISTICS.to_le_bytes());
        let place = header.table + (header.count + at) * SECTION_BYTES;
        pe[place..place + SECTION_BYTES].copy_from_slice(&row);
        address = address.checked_add(size).ok_or_else(large)?;
    }
    let count =
        u16::try_from(header.count + added.len()).expect("a table of rows that fit in a header");
    pe[header.coff + 2..header.coff + 4].copy_from_slice(&count.to_le_bytes());
    let image = address
        .checked_next_multiple_of(memory_step)
        .ok_or_else(|| UkiError::TooLarge("(all)".to_owned()))?;
    pe[header.optional + 56..header.optional + 60].copy_from_slice(&image.to_le_bytes());
    // The checksum is optional for EFI programs, a stale one is worse than none.
    pe[header.optional + 64..header.optional + 68].fill(0);
    check(&pe)?;
    Ok(pe)
}
