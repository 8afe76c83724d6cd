//! Checkpoints by `fork`, to compare with: the child has the memory as it was, copied by the kernel a page at a time as
//! the parent writes, and puts all of it into a file.

use std::{
    fs::read_to_string,
    io,
    path::Path,
    time::{Duration, Instant},
};

use snap::{Codec, Disk, Folder, Gate, Header, Image, Writer};

use crate::keeper::{Done, Memory};

/// Bytes of a page.
const PAGE: usize = 4096;

/// Memory of the process's own, and a folder for its images.
#[derive(Debug)]
pub struct Forker {
    pub memory: Memory,
    folder: Folder,
    epoch: u64,
    pub restored: Option<Vec<u8>>,
}

impl Forker {
    /// Open it; `len` bytes.
    pub fn open(folder: &Path, len: usize, huge: bool) -> Result<Self, String> {
        let text = |error: snap::Error| error.to_string();
        let memory = Memory::new(len, huge)?;
        let folder = Folder::open(folder).map_err(text)?;
        let image = Image::read(&folder).map_err(text)?;
        let epoch = image.as_ref().map_or(0, |image| image.epoch);
        let restored = match image {
            None => None,
            Some(image) if image.bytes.len() == len => {
                // SAFETY: the memory is ours.
                unsafe { memory.bytes() }.write(0, &image.bytes);
                Some(image.state)
            }
            Some(image) => {
                return Err(format!(
                    "the image has {} bytes, not {len}: give --mem as it was",
                    image.bytes.len()
                ));
            }
        };
        Ok(Self { memory, folder, epoch, restored })
    }

    /// A checkpoint: the fork in the cut, the rest in the child.
    pub fn checkpoint(
        &mut self,
        gate: &Gate,
        used: &dyn Fn() -> u64,
        state: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Done, String> {
        let begin = Instant::now();
        // SAFETY: the memory is ours, and the child's copy of it the child's.
        let bytes = unsafe { self.memory.bytes() };
        let (epoch, page) = (self.epoch + 1, PAGE as u32);
        let header = Header { codec: Codec::None, page, region: bytes.len(), epoch, id: epoch, parent: None };
        let mut own = Vec::new();
        let closing = Instant::now();
        let closed = gate.close();
        let cutting = Instant::now();
        state(&mut own);
        let used = used();
        // SAFETY: the child goes on in this thread alone, uses its own copy of the heap (which glibc's fork makes
        // usable) and the memory, and leaves by `_exit`.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let result = dump(&self.folder, header, bytes, used, &own);
            // SAFETY: ends the child, without the handlers of the parent.
            unsafe { libc::_exit(result.map_or_else(|error| error.raw_os_error().unwrap_or(255), |()| 0)) };
        }
        let cut = cutting.elapsed();
        drop(closed);
        let pause = closing.elapsed();
        if child < 0 {
            return Err(format!("cannot fork: {}", io::Error::last_os_error()));
        }
        let (status, extra) = wait(child);
        if status != 0 {
            let error = io::Error::from_raw_os_error(status >> 8 & 0xff);
            return Err(format!("cannot write the image of epoch {epoch}: {error}"));
        }
        self.epoch = epoch;
        let before = format!("{}.base", epoch - 1);
        if epoch > 1 {
            self.folder.remove(&before).map_err(|error| format!("cannot remove {before}: {error}"))?;
        }
        let length = self.folder.open(&format!("{epoch}.base")).and_then(|file| file.length());
        Ok(Done {
            epoch,
            pages: used.div_ceil(PAGE as u64),
            bytes: length.map_err(|error| error.to_string())?,
            pause,
            cut,
            took: begin.elapsed(),
            extra,
            ..Done::default()
        })
    }
}

/// In the child: all of the memory that was used.
fn dump(folder: &Folder, header: Header, bytes: pheap::Memory, used: u64, state: &[u8]) -> io::Result<()> {
    let mut writer = Writer::new(folder, header);
    for page in 0..used.div_ceil(PAGE as u64) {
        writer.page(page as u32, |to| bytes.read(page * PAGE as u64, to));
    }
    writer.finish(folder, state).map(drop)
}

/// Wait for the child; its status, and the most memory that was its alone: pages that the parent has written since, and
/// the tables of its address space.
fn wait(child: libc::pid_t) -> (i32, u64) {
    let (mut status, mut extra) = (0, 0);
    let mut looked = Instant::now();
    loop {
        // SAFETY: the child is ours, and the pointer is valid.
        if unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) } != 0 {
            return (status, extra);
        }
        std::thread::sleep(Duration::from_millis(2));
        // Not too often: it walks the child's tables.
        if looked.elapsed() > Duration::from_millis(50) {
            let rollup = kib(&format!("/proc/{child}/smaps_rollup"), &["Private_Clean:", "Private_Dirty:"]);
            extra = extra.max(rollup + kib(&format!("/proc/{child}/status"), &["VmPTE:"]));
            looked = Instant::now();
        }
    }
}

/// The sum of some lines of a file of the kernel's, in bytes.
pub fn kib(path: &str, lines: &[&str]) -> u64 {
    let text = read_to_string(path).unwrap_or_default();
    let line = |line: &str| {
        let rest = lines.iter().find_map(|name| line.strip_prefix(name))?;
        rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    text.lines().filter_map(line).sum::<u64>() * 1024
}
