//! An image file, byte by byte; numbers are little-endian.
//!
//! ```text
//! header   0 magic QSNP    4 version (16)   6 codec (8)     7 kind (8): 0 base, 1 delta
//!          8 page size    12 0             16 region length (64)
//!         24 epoch (64)   32 id (64)       40 parent's epoch (64)    48 parent's id (64)
//!         56 0            60 crc32c of bytes 0 to 59
//! records  0 page          4 stored length  8 crc32c of the stored bytes   12 the bytes, and zeros up to a multiple of 8
//! state    as many bytes as the footer says, and zeros up to a multiple of 8
//! footer   0 magic QEND    4 crc32c of bytes 8 to 55
//!          8 records (64) 16 epoch (64)    24 id (64)      32 state's length (64)
//!         40 crc32c of the records' first 12 bytes         44 crc32c of the state    48 0 (64)
//! ```
//! - A record of 0 bytes is a page of zeros; one of as many bytes as a page is the page; one of fewer is the page as
//!   the codec has it. If a page has several records, the last one counts.
//! - The state comes last because the rounds of a checkpoint have written records before it is known.
//! - The id is drawn at the cut, and a delta names its parent's: so files of different histories, which may have the
//!   same epochs, are not taken for one chain. A fold keeps epoch and id, as its base stands for the same cut.

use crc32c::crc32c;

/// How pages are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// As they are.
    #[default]
    None = 0,
    /// Compressed, where that makes them shorter.
    Lz4 = 1,
}

/// Bytes of a header.
pub const HEADER: usize = 64;
/// Bytes of a record before its contents.
pub const RECORD: usize = 12;
/// Bytes of a footer.
pub const FOOTER: usize = 56;

const MAGIC: u32 = u32::from_le_bytes(*b"QSNP");
const END: u32 = u32::from_le_bytes(*b"QEND");
const VERSION: u16 = 1;

/// What an image is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// How pages are stored.
    pub codec: Codec,
    /// Bytes of a page.
    pub page: u32,
    /// Bytes of the region.
    pub region: u64,
    /// The number of the cut, from 1.
    pub epoch: u64,
    /// The cut's random name.
    pub id: u64,
    /// Epoch and id of the image that this one changes; `None` of a base.
    pub parent: Option<(u64, u64)>,
}

/// The end of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    pub records: u64,
    pub epoch: u64,
    pub id: u64,
    pub state: u64,
    pub heads_crc: u32,
    pub state_crc: u32,
}

/// Bytes up to the next multiple of 8.
pub const fn padding(len: u64) -> usize {
    (len.next_multiple_of(8) - len) as usize
}

fn get<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(get(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(get(bytes, at))
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let (epoch, id) = self.parent.unwrap_or_default();
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[6] = self.codec as u8;
        bytes[7] = self.parent.is_some().into();
        bytes[8..12].copy_from_slice(&self.page.to_le_bytes());
        for (at, field) in [(16, self.region), (24, self.epoch), (32, self.id), (40, epoch), (48, id)] {
            bytes[at..at + 8].copy_from_slice(&field.to_le_bytes());
        }
        let crc = crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; HEADER]) -> Result<Self, &'static str> {
        if u32_at(bytes, 0) != MAGIC {
            return Err("it is no image");
        }
        if u32_at(bytes, 60) != crc32c(&bytes[..60]) {
            return Err("its header is damaged");
        }
        if u16::from_le_bytes(get(bytes, 4)) != VERSION {
            return Err("it is of another version");
        }
        let codec = match bytes[6] {
            0 => Codec::None,
            1 => Codec::Lz4,
            _ => return Err("its codec is unknown"),
        };
        let parent = match bytes[7] {
            0 => None,
            _ => Some((u64_at(bytes, 40), u64_at(bytes, 48))),
        };
        let [region, epoch, id] = [16, 24, 32].map(|at| u64_at(bytes, at));
        let page = u32_at(bytes, 8);
        if !page.is_power_of_two() || parent.is_some_and(|(parent, _)| parent >= epoch) {
            return Err("its header makes no sense");
        }
        Ok(Self { codec, page, region, epoch, id, parent })
    }
}

impl Footer {
    pub fn encode(&self) -> [u8; FOOTER] {
        let mut bytes = [0; FOOTER];
        bytes[0..4].copy_from_slice(&END.to_le_bytes());
        for (at, field) in [(8, self.records), (16, self.epoch), (24, self.id), (32, self.state)] {
            bytes[at..at + 8].copy_from_slice(&field.to_le_bytes());
        }
        bytes[40..44].copy_from_slice(&self.heads_crc.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.state_crc.to_le_bytes());
        let crc = crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8; FOOTER]) -> Result<Self, &'static str> {
        if u32_at(bytes, 0) != END || u32_at(bytes, 4) != crc32c(&bytes[8..]) {
            return Err("its end is missing or damaged");
        }
        let [records, epoch, id, state] = [8, 16, 24, 32].map(|at| u64_at(bytes, at));
        Ok(Self { records, epoch, id, state, heads_crc: u32_at(bytes, 40), state_crc: u32_at(bytes, 44) })
    }
}
