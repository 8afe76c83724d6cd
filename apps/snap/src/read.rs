//! Reading an image, and finding that it is not whole.

use std::io;

use crc32c::{crc32c, crc32c_append};

use crate::{
    disk::Source,
    format::{Codec, FOOTER, Footer, HEADER, Header, RECORD, padding, u32_at},
};

/// Bytes that are read at once.
const BATCH: usize = 1 << 20;

/// A record: where its stored bytes are.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    pub page: u32,
    /// Bytes from the file's start.
    pub at: u64,
    pub stored: u32,
}

/// A source that is read from its start to its end.
struct Stream<'s> {
    source: &'s dyn Source,
    end: u64,
    /// Where in the file the buffer's bytes begin.
    at: u64,
    buffer: Vec<u8>,
    used: usize,
}

impl Stream<'_> {
    fn place(&self) -> u64 {
        self.at + self.used as u64
    }

    /// The next `len` bytes.
    fn take(&mut self, len: usize) -> io::Result<&[u8]> {
        if self.buffer.len() - self.used < len {
            let place = self.place();
            let left = self.end.saturating_sub(place);
            if left < len as u64 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.buffer.resize(left.min(BATCH.max(len) as u64) as usize, 0);
            self.source.read(place, &mut self.buffer)?;
            (self.at, self.used) = (place, 0);
        }
        self.used += len;
        Ok(&self.buffer[self.used - len..self.used])
    }
}

fn short(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "it is cut short".to_owned(),
        _ => format!("it cannot be read: {error}"),
    }
}

/// An image's header.
pub fn header(source: &dyn Source) -> Result<Header, String> {
    let mut bytes = [0; HEADER];
    source.read(0, &mut bytes).map_err(|error| short(&error))?;
    Header::decode(&bytes).map_err(str::to_owned)
}

/// Read all of an image, and check all of it; `each` gets every record with its stored bytes. The header, the state,
/// and how many bytes it has.
///
/// # Errors
/// What is wrong with it. Records may have been handed out before that was found.
pub fn image(
    source: &dyn Source,
    mut each: impl FnMut(Record, &[u8]),
) -> Result<(Header, Vec<u8>, u64), String> {
    let failed = |error: io::Error| short(&error);
    let header = header(source)?;
    let length = source.length().map_err(failed)?;
    if length < (HEADER + FOOTER) as u64 {
        return Err("it is cut short".to_owned());
    }
    let mut bytes = [0; FOOTER];
    source.read(length - FOOTER as u64, &mut bytes).map_err(failed)?;
    let footer = Footer::decode(&bytes)?;
    if (footer.epoch, footer.id) != (header.epoch, header.id) {
        return Err("its end is another image's".to_owned());
    }
    let end = length - FOOTER as u64;
    let mut stream = Stream { source, end, at: HEADER as u64, buffer: Vec::new(), used: 0 };
    let pages = header.region / u64::from(header.page);
    let mut heads_crc = 0;
    for _ in 0..footer.records {
        let head = stream.take(RECORD).map_err(failed)?;
        heads_crc = crc32c_append(heads_crc, head);
        let [page, stored, crc] = [0, 4, 8].map(|at| u32_at(head, at));
        if u64::from(page) >= pages || stored > header.page {
            return Err("a record makes no sense".to_owned());
        }
        let at = stream.place();
        let padding = padding(RECORD as u64 + u64::from(stored));
        let body = stream.take(stored as usize + padding).map_err(failed)?;
        let (body, zeros) = body.split_at(stored as usize);
        if crc32c(body) != crc || zeros.iter().any(|&byte| byte != 0) {
            return Err(format!("its record of page {page} is damaged"));
        }
        each(Record { page, at, stored }, body);
    }
    let state_len = usize::try_from(footer.state).ok().filter(|&len| len as u64 <= end);
    let state_len = state_len.ok_or("its state makes no sense")?;
    let mut state = stream.take(state_len + padding(footer.state)).map_err(failed)?.to_owned();
    let zeros = state.split_off(state_len);
    let agrees = heads_crc == footer.heads_crc && crc32c(&state) == footer.state_crc;
    if !agrees || stream.place() != end || zeros.iter().any(|&byte| byte != 0) {
        return Err("its records, state and end do not agree".to_owned());
    }
    Ok((header, state, length))
}

/// A page's bytes, from those that are stored.
///
/// # Errors
/// If the codec makes no page of them.
pub fn unpack(codec: Codec, stored: &[u8], page: &mut [u8]) -> Result<(), String> {
    match stored.len() {
        0 => page.fill(0),
        len if len == page.len() => page.copy_from_slice(stored),
        _ => {
            let len = match codec {
                Codec::None => None,
                Codec::Lz4 => lz4_flex::block::decompress_into(stored, page).ok(),
            };
            if len != Some(page.len()) {
                return Err("a record does not unpack".to_owned());
            }
        }
    }
    Ok(())
}
