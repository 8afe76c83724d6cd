//! The boot image: a cpio archive of format "newc" (cpio(5)), as Linux's initramfs.
//!
//! The archive is read in place and trusted no further than any input: a malformed one gives an error, after the
//! entries before the fault. Names may not leave the tree.

use core::str;

/// One entry of an archive.
#[derive(Debug, PartialEq, Eq)]
pub struct Item<'a> {
    /// The path, without leading slashes or "./".
    pub name: &'a [u8],
    /// Type and permissions, as `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change, in seconds since 1970.
    pub modified: u32,
    /// Number and device of the file: entries that agree in it and have more than one link are one file.
    pub identity: (u32, u32, u32),
    /// How many names the file has.
    pub links: u32,
    /// Major and minor number, for a device.
    pub device: (u32, u32),
    /// Contents of a file, target of a symbolic link.
    pub data: &'a [u8],
}

/// Why an archive can't be read on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// It ends in the middle of an entry, or without a trailer.
    Short,
    /// An entry does not begin with the magic number.
    Magic,
    /// A number is not hexadecimal, or a name is empty or not terminated.
    Header,
    /// A name has `..` in it.
    Name,
}

/// Reads an archive entry by entry.
pub struct Archive<'a> {
    rest: &'a [u8],
    /// Bytes read so far, for the alignment.
    at: usize,
    done: bool,
}

const HEADER: usize = 110;
const TRAILER: &[u8] = b"TRAILER!!!";

impl<'a> Archive<'a> {
    /// The archive in `bytes`; none if there are no bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, at: 0, done: bytes.is_empty() }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (now, rest) = self.rest.split_at_checked(n).ok_or(Malformed::Short)?;
        self.rest = rest;
        self.at += n;
        Ok(now)
    }

    /// Skip to a multiple of four; the end of the archive may come first.
    fn align(&mut self) {
        let skip = (4 - self.at % 4) % 4;
        self.rest = self.rest.get(skip..).unwrap_or(&[]);
        self.at += skip;
    }

    fn item(&mut self) -> Result<Option<Item<'a>>, Malformed> {
        let header = self.take(HEADER)?;
        if !header.starts_with(b"070701") && !header.starts_with(b"070702") {
            return Err(Malformed::Magic);
        }
        let mut fields = [0u32; 13];
        for (i, field) in fields.iter_mut().enumerate() {
            let digits = header.get(6 + 8 * i..14 + 8 * i).ok_or(Malformed::Header)?;
            *field = number(digits).ok_or(Malformed::Header)?;
        }
        let [ino, mode, uid, gid, links, modified, size, major, minor, rmajor, rminor, name_len, _check] =
            fields;
        let name = match self.take(name_len as usize)?.split_last() {
            Some((0, name)) if !name.is_empty() => name,
            _ => return Err(Malformed::Header),
        };
        self.align();
        if name == TRAILER {
            return Ok(None);
        }
        let data = self.take(size as usize)?;
        self.align();
        Ok(Some(Item {
            name: tidy(name)?,
            mode,
            uid,
            gid,
            modified,
            identity: (major, minor, ino),
            links,
            device: (rmajor, rminor),
            data,
        }))
    }
}

/// Eight hexadecimal digits.
fn number(digits: &[u8]) -> Option<u32> {
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u32::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
}

/// A name without what does not matter at its ends.
fn tidy(name: &[u8]) -> Result<&[u8], Malformed> {
    if name.contains(&0) || name.split(|&b| b == b'/').any(|part| part == b"..") {
        return Err(Malformed::Name);
    }
    let mut name = name;
    while let Some(rest) = name.strip_prefix(b"/").or_else(|| name.strip_prefix(b"./")) {
        name = rest;
    }
    Ok(name.strip_suffix(b"/").unwrap_or(name))
}

impl<'a> Iterator for Archive<'a> {
    type Item = Result<Item<'a>, Malformed>;

    /// The next entry; after an error or the trailer, nothing.
    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        match self.item() {
            Ok(Some(item)) => Some(Ok(item)),
            Ok(None) => {
                self.done = true;
                None
            }
            Err(e) => {
                self.done = true;
                Some(Err(e))
            }
        }
    }
}
