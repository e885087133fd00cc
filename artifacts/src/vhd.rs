//! The footer that makes a raw disk a fixed VHD: 512 bytes behind it.
//!
//! Azure takes this form only, with a size of whole MiB. The footer is a function of the disk's
//! length and of an id, so the same image is the same file wherever it is exported.

use oast_model::digest::Digest;

/// Length of the footer.
pub const FOOTER_BYTES: usize = 512;
/// What the length of a disk must be a multiple of.
pub const ALIGNMENT: u64 = 1 << 20;
/// 2024-01-01 in seconds since 2000-01-01, from where the format counts; fixed, so that equal
/// disks make equal files.
const MADE_AT: u32 = 757_382_400;

/// The footer of a fixed disk of `len` bytes. `id` makes the disk's identity.
pub fn footer(len: u64, id: Digest) -> [u8; FOOTER_BYTES] {
    let mut footer = [0; FOOTER_BYTES];
    let mut put = |at: usize, bytes: &[u8]| footer[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"conectix");
    put(8, &2_u32.to_be_bytes());
    put(12, &0x0001_0000_u32.to_be_bytes());
    put(16, &u64::MAX.to_be_bytes());
    put(24, &MADE_AT.to_be_bytes());
    // Readers take the size from the rounded geometry unless the creator is one that is known to
    // write exact sizes, which Hyper-V's name is.
    put(28, b"win ");
    put(32, &0x000a_0000_u32.to_be_bytes());
    put(36, b"Wi2k");
    put(40, &len.to_be_bytes());
    put(48, &len.to_be_bytes());
    let (cylinders, heads, sectors) = geometry(len / 512);
    put(56, &cylinders.to_be_bytes());
    put(58, &[heads, sectors]);
    // A fixed disk.
    put(60, &2_u32.to_be_bytes());
    put(68, &id.as_bytes()[..16]);
    let sum = checksum(&footer);
    footer[64..68].copy_from_slice(&sum.to_be_bytes());
    footer
}

/// Ones' complement of the sum of all bytes, the checksum's own counting as zero.
pub fn checksum(footer: &[u8; FOOTER_BYTES]) -> u32 {
    let sums = footer.iter().enumerate().map(|(at, byte)| match at {
        64..68 => 0,
        _ => u32::from(*byte),
    });
    !sums.sum::<u32>()
}

/// Cylinders, heads and sectors as the format's appendix computes them.
fn geometry(total: u64) -> (u16, u8, u8) {
    let total = total.min(65_535 * 16 * 255);
    let (sectors, heads, cylinder_heads) = if total >= 65_535 * 16 * 63 {
        (255_u8, 16_u64, total / 255)
    } else {
        let mut sectors = 17;
        let mut cylinder_heads = total / 17;
        let mut heads = cylinder_heads.div_ceil(1024).max(4);
        if cylinder_heads >= heads * 1024 || heads > 16 {
            (sectors, heads) = (31, 16);
            cylinder_heads = total / 31;
        }
        if cylinder_heads >= heads * 1024 {
            (sectors, heads) = (63, 16);
            cylinder_heads = total / 63;
        }
        (sectors, heads, cylinder_heads)
    };
    let cylinders = u16::try_from(cylinder_heads / heads).unwrap_or(u16::MAX);
    (cylinders, u8::try_from(heads).unwrap_or(16), sectors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_footer_states_the_exact_size_under_its_checksum() {
        let footer = footer(3 << 20, Digest::of(b"id"));
        assert_eq!(footer[48..56], (3_u64 << 20).to_be_bytes());
        assert_eq!(footer[64..68], checksum(&footer).to_be_bytes());
    }

    #[test]
    fn geometry_follows_the_appendix() {
        assert_eq!(geometry(65_535 * 16 * 255 + 1), (65_535, 16, 255));
        assert_eq!(geometry((40 << 20) / 512), (963, 5, 17));
    }
}
