//! Writing an image: to a name of its own, then durable, then its name.

use std::io;

use crc32c::{crc32c, crc32c_append};
use sync::mutant;

use crate::{
    disk::{Disk, Sink},
    format::{Codec, Footer, Header, RECORD, padding},
};

/// Bytes that are written at once.
const BATCH: usize = 1 << 20;

/// The ending of a file that is not durable yet.
pub const UNFINISHED: &str = ".tmp";

/// The name of an image.
pub fn name(header: &Header) -> String {
    format!("{}.{}", header.epoch, if header.parent.is_some() { "delta" } else { "base" })
}

/// An image that is being written.
///
/// Once a write has failed, pages are taken and dropped; [`finish`](Self::finish) says the error.
pub struct Writer {
    header: Header,
    sink: Option<Box<dyn Sink>>,
    failed: Option<io::Error>,
    bytes: Vec<u8>,
    packed: Vec<u8>,
    records: u64,
    heads_crc: u32,
    written: u64,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { header, records, written, .. } = self;
        write!(f, "Writer({header:?}, {records} records, {written} bytes)")
    }
}

impl Writer {
    /// Begin an image; an error is kept for [`finish`](Self::finish).
    pub fn new(disk: &dyn Disk, header: Header) -> Self {
        let (sink, failed) = match disk.create(&(name(&header) + UNFINISHED)) {
            Ok(sink) => (Some(sink), None),
            Err(error) => (None, Some(error)),
        };
        let mut bytes = Vec::with_capacity(BATCH + RECORD + header.page as usize + 8);
        bytes.extend(header.encode());
        Self { header, sink, failed, bytes, packed: Vec::new(), records: 0, heads_crc: 0, written: 0 }
    }

    /// Whether writing goes on.
    pub const fn works(&self) -> bool {
        self.failed.is_none()
    }

    /// Bytes written so far, those that are gathered included.
    pub const fn written(&self) -> u64 {
        self.written + self.bytes.len() as u64
    }

    /// Write out what is gathered, if there is no room for another page.
    pub fn make_room(&mut self) {
        if self.bytes.len() >= BATCH {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if let (Some(sink), None) = (&mut self.sink, &self.failed) {
            self.failed = sink.append(&self.bytes).err();
        }
        self.written += self.bytes.len() as u64;
        self.bytes.clear();
    }

    /// Add a page whose contents `copy` puts into the bytes that it is given.
    pub fn page(&mut self, page: u32, copy: impl FnOnce(&mut [u8])) {
        self.make_room();
        let at = self.bytes.len();
        self.bytes.resize(at + RECORD + self.header.page as usize, 0);
        copy(&mut self.bytes[at + RECORD..]);
        self.seal(page, at);
    }

    /// Make a record of the page whose contents stand last.
    fn seal(&mut self, page: u32, at: usize) {
        let body = &self.bytes[at + RECORD..];
        // SAFETY: bytes may be looked at as words.
        let (head, words, tail) = unsafe { body.align_to::<u64>() };
        let is_zero = words.iter().all(|&word| word == 0) && head.iter().chain(tail).all(|&byte| byte == 0);
        let stored = match self.header.codec {
            _ if is_zero => 0,
            Codec::None => body.len(),
            Codec::Lz4 => {
                self.packed.resize(lz4_flex::block::get_maximum_output_size(body.len()), 0);
                match lz4_flex::block::compress_into(body, &mut self.packed) {
                    Ok(len) if len < body.len() => {
                        self.bytes[at + RECORD..at + RECORD + len].copy_from_slice(&self.packed[..len]);
                        len
                    }
                    _ => body.len(),
                }
            }
        };
        self.bytes.truncate(at + RECORD + stored);
        self.end_record(page, at);
    }

    /// Add a page as it is stored in another image of the same codec.
    pub fn stored(&mut self, page: u32, stored: &[u8]) {
        self.make_room();
        let at = self.bytes.len();
        self.bytes.resize(at + RECORD, 0);
        self.bytes.extend(stored);
        self.end_record(page, at);
    }

    fn end_record(&mut self, page: u32, at: usize) {
        let stored = (self.bytes.len() - at - RECORD) as u32;
        let crc = crc32c(&self.bytes[at + RECORD..]);
        for (i, field) in [page, stored, crc].into_iter().enumerate() {
            self.bytes[at + 4 * i..at + 4 * i + 4].copy_from_slice(&field.to_le_bytes());
        }
        self.heads_crc = crc32c_append(self.heads_crc, &self.bytes[at..at + RECORD]);
        let padding = padding((RECORD as u64) + u64::from(stored));
        self.bytes.resize(self.bytes.len() + padding, 0);
        self.records += 1;
    }

    /// Add the state and the end, make the image durable, and give it its name; how many bytes it has.
    ///
    /// # Errors
    /// The first error of all that was written; there is no such image then, and what there was of it is removed if
    /// that can be done.
    pub fn finish(mut self, disk: &dyn Disk, state: &[u8]) -> io::Result<u64> {
        self.bytes.extend(state);
        self.bytes.resize(self.bytes.len() + padding(state.len() as u64), 0);
        let Header { epoch, id, .. } = self.header;
        let footer = Footer {
            records: self.records,
            epoch,
            id,
            state: state.len() as u64,
            heads_crc: self.heads_crc,
            state_crc: crc32c(state),
        };
        self.bytes.extend(footer.encode());
        self.flush();
        let name = name(&self.header);
        let unfinished = name.clone() + UNFINISHED;
        let result = self.end(disk, &unfinished, &name);
        if result.is_err() {
            // On a full disk this may fail too; whoever opens the folder next removes it.
            let _ = disk.remove(&unfinished);
        }
        result
    }

    fn end(&mut self, disk: &dyn Disk, unfinished: &str, name: &str) -> io::Result<u64> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let early = mutant!("snap-name-before-sync");
        if early {
            disk.rename(unfinished, name)?;
        }
        if let Some(mut sink) = self.sink.take() {
            sink.sync()?;
        }
        if !early {
            disk.rename(unfinished, name)?;
        }
        disk.sync()?;
        Ok(self.written)
    }
}
