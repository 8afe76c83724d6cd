//! Open files: what descriptors refer to, with an offset and flags that all of them share.
//!
//! A regular file's offset is a sleeping lock held for the length of a read or write, so that calls through one open
//! file follow one another as POSIX asks. Page faults nest inside it. Pipes, devices and the like have no offset and
//! do not take it, so a reader that waits does not keep a writer out.

use alloc::{
    sync::{Arc, Weak},
    vec::Vec,
};
use core::{
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

use addr::Prot;
use aspace::Object;
use linux_raw_sys::general as c;
use sync::{RwLock, SpinLock};

use super::{
    Result,
    entry::Entry,
    epoll::{Item, Watches},
    inode::{Claim, Kind, Volume},
    io::{Sink, Source, moved},
    pipe::PipeEnd,
    poll::{Events, Readiness},
    proc::Text,
    record::Owner,
    store::{MAX_SIZE, Store, WriteAt},
};
use crate::{errno::Errno, limits::RLIMIT_FSIZE, task};

/// Flags that `fcntl(F_SETFL)` can change.
const CHANGEABLE: u32 = c::O_APPEND | c::O_NONBLOCK | c::O_DIRECT | c::O_NOATIME;
/// Flags that are only about how to open.
const OPENING: u32 = c::O_CREAT | c::O_EXCL | c::O_NOCTTY | c::O_TRUNC | c::O_CLOEXEC;

/// An open file.
pub struct OpenFile {
    /// What is open, and what it is called.
    pub entry: Arc<Entry>,
    flags: AtomicU32,
    position: RwLock<Position>,
    end: Option<PipeEnd>,
    /// The right to write a regular file.
    _writing: Option<Claim>,
    /// What watches it in epolls.
    watches: Watches,
}

struct Position {
    /// In bytes; for a directory, the position in the listing.
    offset: u64,
    /// The contents of a file of /proc, made when it is read from the start.
    text: Text,
}

/// Where a seek counts from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// The start of the file.
    Start,
    /// Where the offset is.
    Current,
    /// The end of the file.
    End,
    /// To the next data.
    Data,
    /// To the next hole.
    Hole,
}

/// What a listing shows of one name.
pub struct Listed<'a> {
    /// The number of the inode.
    pub number: u64,
    /// The position after this name.
    pub next: u64,
    /// `DT_DIR` and so on.
    pub kind: u8,
    /// The name.
    pub name: &'a [u8],
}

impl OpenFile {
    fn assemble(entry: Arc<Entry>, flags: u32, end: Option<PipeEnd>, writing: Option<Claim>) -> Arc<Self> {
        Arc::new(Self {
            entry,
            flags: AtomicU32::new(flags & !OPENING),
            position: RwLock::new(Position { offset: 0, text: Text::default() }),
            end,
            _writing: writing,
            watches: SpinLock::new(Vec::new()),
        })
    }

    /// Open what `entry` is, with the flags of `open`. EISDIR for writing a directory, ELOOP for a symbolic link,
    /// ENXIO for a device that is not there, ETXTBSY for writing a program that is run; named pipes wait for the other side.
    pub fn open(entry: Arc<Entry>, flags: u32) -> Result<Arc<Self>> {
        if flags & c::O_PATH != 0 {
            return Ok(Self::assemble(
                entry,
                flags & (c::O_PATH | c::O_DIRECTORY | c::O_NOFOLLOW),
                None,
                None,
            ));
        }
        let (reads, writes) = access(flags);
        let mut writing = None;
        let end = match &entry.inode.kind {
            Kind::Symlink(_) | Kind::Link(_) => return Err(Errno::ELOOP),
            Kind::Directory(_) | Kind::Listing(_) if writes || flags & c::O_CREAT != 0 => {
                return Err(Errno::EISDIR);
            }
            // A socket in the tree is a name to connect to; the others have none.
            Kind::Special(_) | Kind::SocketName(_) => return Err(Errno::ENXIO),
            Kind::Device(device) => {
                device.check_open()?;
                None
            }
            // A pipe without a name, opened again through /proc/self/fd, waits for nobody.
            Kind::Fifo(pipe) if entry.inode.volume == Volume::Anonymous => {
                Some(PipeEnd::new(pipe.clone(), reads, writes))
            }
            Kind::Fifo(pipe) => Some(PipeEnd::open(pipe.clone(), reads, writes, flags & c::O_NONBLOCK == 0)?),
            Kind::File(store) if writes => {
                writing = Some(entry.inode.claim_writing()?);
                if flags & c::O_TRUNC != 0 {
                    store.set_size(0)?;
                    entry.inode.touch();
                }
                None
            }
            _ => None,
        };
        Ok(Self::assemble(entry, flags, end, writing))
    }

    /// Open something that needs no opening. A regular file may then be written and run at once.
    pub fn plain(entry: Arc<Entry>, flags: u32) -> Arc<Self> {
        Self::assemble(entry, flags, None, None)
    }

    /// One end of a new pipe.
    pub fn pipe_end(entry: Arc<Entry>, end: PipeEnd, flags: u32) -> Arc<Self> {
        Self::assemble(entry, flags, Some(end), None)
    }

    /// The flags as `fcntl(F_GETFL)` tells them.
    pub fn flags(&self) -> u32 {
        // Relaxed: a word of its own, no other memory depends on it.
        self.flags.load(Ordering::Relaxed)
    }

    /// Set the flags that can be changed.
    pub fn set_flags(&self, flags: u32) {
        let keep = self.flags() & !CHANGEABLE;
        // Relaxed: as in `flags`; of two racing calls one wins.
        self.flags.store(keep | flags & CHANGEABLE, Ordering::Relaxed);
    }

    /// The owner's number for locks: no other open file has it as long as this is there.
    pub fn number(&self) -> u64 {
        ptr::from_ref(self).addr() as u64
    }

    /// The pipe's end, if it is one.
    pub fn end(&self) -> Option<&PipeEnd> {
        self.end.as_ref()
    }

    /// Whether it was opened as a mere path: then nothing but its name can be used.
    pub fn is_path(&self) -> bool {
        self.flags() & c::O_PATH != 0
    }

    /// EBADF unless it is open for reading.
    pub fn check_readable(&self) -> Result<()> {
        if self.is_path() || !access(self.flags()).0 { Err(Errno::EBADF) } else { Ok(()) }
    }

    /// EBADF unless it is open for writing.
    pub fn check_writable(&self) -> Result<()> {
        if self.is_path() || !access(self.flags()).1 { Err(Errno::EBADF) } else { Ok(()) }
    }

    /// Whether it can be waited for, so that epoll takes it. EPERM.
    pub fn check_waitable(&self) -> Result<()> {
        let waitable = match &self.entry.inode.kind {
            Kind::Fifo(_) | Kind::Console(_) | Kind::Event(_) | Kind::Special(_) => true,
            Kind::Device(device) => device.is_waitable(),
            _ => false,
        };
        if waitable { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// Note that `item` watches the file. ENOMEM.
    pub fn watched_by(&self, item: &Arc<Item>) -> Result<()> {
        let mut watches = self.watches.lock();
        watches.retain(|w| w.strong_count() > 0);
        watches.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        watches.push(Arc::downgrade(item));
        Ok(())
    }

    /// Note that `item` watches it no more.
    pub fn unwatched_by(&self, item: &Arc<Item>) {
        self.watches.lock().retain(|w| w.as_ptr() != Arc::as_ptr(item));
    }

    /// What watches it.
    pub fn watches(&self) -> Vec<Arc<Item>> {
        self.watches.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// Whether calls may wait.
    pub fn blocks(&self) -> bool {
        self.flags() & c::O_NONBLOCK == 0
    }

    fn store(&self) -> Option<&Store> {
        self.entry.inode.store()
    }

    /// Whether it has an offset to move.
    fn has_offset(&self) -> bool {
        matches!(
            self.entry.inode.kind,
            Kind::File(_) | Kind::Text(_) | Kind::Pages(_) | Kind::Directory(_) | Kind::Listing(_)
        )
    }

    /// Read at the offset, and move it.
    pub fn read(&self, sink: &mut dyn Sink) -> Result<usize> {
        self.check_readable()?;
        let block = self.blocks();
        match &self.entry.inode.kind {
            Kind::File(store) => {
                let mut position = self.position.write(&task::unpinned());
                let n = store.read(position.offset, sink)?;
                position.offset += n as u64;
                Ok(n)
            }
            Kind::Pages(map) => {
                let mut position = self.position.write(&task::unpinned());
                let n = map.read(position.offset, sink)?;
                position.offset += n as u64;
                Ok(n)
            }
            Kind::Text(_) => {
                let mut position = self.position.write(&task::unpinned());
                let offset = position.offset;
                let n = self.read_text(&mut position, offset, sink)?;
                position.offset += n as u64;
                Ok(n)
            }
            Kind::Device(device) => device.read(sink, block),
            Kind::Fifo(_) => self.end.as_ref().ok_or(Errno::EBADF)?.pipe().read(sink, block),
            Kind::Console(channel) => channel.read(sink, block),
            Kind::Event(event) => event.read(sink, block),
            Kind::Special(special) => special.read(sink, block),
            Kind::SocketName(_) => Err(Errno::ENXIO),
            Kind::Directory(_) | Kind::Listing(_) => Err(Errno::EISDIR),
            Kind::Symlink(_) | Kind::Link(_) => Err(Errno::EINVAL),
        }
    }

    /// ESPIPE unless bytes can be read and written at an offset.
    pub fn check_offset(&self) -> Result<()> {
        match &self.entry.inode.kind {
            _ if self.is_path() => Err(Errno::EBADF),
            Kind::Fifo(_) | Kind::Console(_) | Kind::Event(_) | Kind::Special(_) => Err(Errno::ESPIPE),
            Kind::Device(device) if device.is_terminal() => Err(Errno::ESPIPE),
            _ => Ok(()),
        }
    }

    /// Read at `offset`, and leave the file's own alone. ESPIPE if it has none.
    pub fn read_at(&self, offset: u64, sink: &mut dyn Sink) -> Result<usize> {
        self.check_offset()?;
        self.check_readable()?;
        match &self.entry.inode.kind {
            Kind::File(store) => store.read(offset, sink),
            Kind::Pages(map) => map.read(offset, sink),
            Kind::Text(_) => {
                let mut position = self.position.write(&task::unpinned());
                self.read_text(&mut position, offset, sink)
            }
            Kind::Device(device) => device.read(sink, true),
            Kind::Directory(_) | Kind::Listing(_) => Err(Errno::EISDIR),
            _ => Err(Errno::ESPIPE),
        }
    }

    fn read_text(&self, position: &mut Position, offset: u64, sink: &mut dyn Sink) -> Result<usize> {
        let Kind::Text(file) = &self.entry.inode.kind else { return Err(Errno::EINVAL) };
        if offset == 0 || position.text.is_empty() {
            position.text = (file.make)()?;
        }
        let mut done = 0;
        for piece in position.text.rest(offset) {
            let wanted = piece.get(..sink.room()).unwrap_or(piece);
            let put = sink.put(wanted);
            done += put;
            if put < wanted.len() {
                return moved(done, 1, Errno::EFAULT);
            }
            if sink.room() == 0 {
                break;
            }
        }
        Ok(done)
    }

    /// Write at the offset, or at the end with O_APPEND, and move the offset.
    pub fn write(&self, source: &mut dyn Source) -> Result<usize> {
        self.check_writable()?;
        match &self.entry.inode.kind {
            Kind::File(store) => {
                let mut position = self.position.write(&task::unpinned());
                let (n, after) = self.write_store(store, position.offset, source)?;
                position.offset = after;
                Ok(n)
            }
            Kind::Device(device) => device.write(source),
            Kind::Fifo(_) => self.end.as_ref().ok_or(Errno::EBADF)?.pipe().write(source, self.blocks()),
            Kind::Console(channel) => channel.write(source),
            Kind::Event(event) => event.write(source, self.blocks()),
            Kind::Special(special) => special.write(source, self.blocks()),
            Kind::SocketName(_) => Err(Errno::ENXIO),
            Kind::Text(file) => file.write(source),
            Kind::Pages(_) => Err(Errno::EINVAL),
            Kind::Directory(_) | Kind::Listing(_) => Err(Errno::EISDIR),
            Kind::Symlink(_) | Kind::Link(_) => Err(Errno::EINVAL),
        }
    }

    /// Write at `offset`, or at the end with O_APPEND (as Linux does), and leave the file's own offset alone.
    pub fn write_at(&self, offset: u64, source: &mut dyn Source) -> Result<usize> {
        self.check_offset()?;
        self.check_writable()?;
        match &self.entry.inode.kind {
            Kind::File(store) => Ok(self.write_store(store, offset, source)?.0),
            Kind::Device(device) => device.write(source),
            Kind::Text(file) => file.write(source),
            _ => Err(Errno::ESPIPE),
        }
    }

    fn write_store(&self, store: &Store, offset: u64, source: &mut dyn Source) -> Result<(usize, u64)> {
        let append = self.flags() & c::O_APPEND != 0;
        let start = if append { store.size() } else { offset };
        check_size_limit(start)?;
        let at = if append { WriteAt::End } else { WriteAt::Offset(offset) };
        let (n, after) = store.write(at, source)?;
        if n > 0 {
            self.entry.inode.touch();
        }
        Ok((n, after))
    }

    /// Move the offset; says where it is then. ESPIPE if there is none, EINVAL for a place before the start, ENXIO
    /// for data or holes past the end.
    pub fn seek(&self, from: Seek, by: i64) -> Result<u64> {
        if self.is_path() {
            return Err(Errno::EBADF);
        }
        match &self.entry.inode.kind {
            Kind::Device(device) if !device.is_terminal() => return Ok(0),
            Kind::Event(_) => return Ok(0),
            Kind::Special(special) if special.seeks_nowhere() => return Ok(0),
            _ if !self.has_offset() => return Err(Errno::ESPIPE),
            _ => {}
        }
        let mut position = self.position.write(&task::unpinned());
        let base = match from {
            Seek::Start => 0,
            Seek::Current => position.offset,
            Seek::End => self.entry.inode.size(),
            Seek::Data | Seek::Hole => {
                let store = self.store().ok_or(Errno::EINVAL)?;
                let offset = u64::try_from(by).map_err(|_| Errno::ENXIO)?;
                position.offset = store.seek(offset, from == Seek::Data)?;
                return Ok(position.offset);
            }
        };
        let to = base.checked_add_signed(by).filter(|&o| o <= MAX_SIZE).ok_or(Errno::EINVAL)?;
        position.offset = to;
        Ok(to)
    }

    /// The offset.
    pub fn offset(&self) -> u64 {
        self.position.read(&task::unpinned()).offset
    }

    /// Set the size. EINVAL if it is no regular file.
    pub fn set_size(&self, size: u64) -> Result<()> {
        if self.check_writable().is_err() {
            return Err(if self.is_path() { Errno::EBADF } else { Errno::EINVAL });
        }
        truncate(&self.entry, size)
    }

    /// Show the names of the directory from the offset on, until `each` answers false for one, and move the offset
    /// to that one. ENOTDIR.
    pub fn list(&self, mut each: impl FnMut(&Listed<'_>) -> bool) -> Result<()> {
        if self.is_path() {
            return Err(Errno::EBADF);
        }
        let kind = &self.entry.inode.kind;
        if !kind.is_directory() {
            return Err(Errno::ENOTDIR);
        }
        if self.entry.is_removed() {
            return Err(Errno::ENOENT);
        }
        let mut position = self.position.write(&task::unpinned());
        let first = position.offset;
        let start = first.max(2);
        let mut show = |number, place, kind, name: &[u8]| {
            let shown = each(&Listed { number, next: place + 1, kind, name });
            if shown {
                position.offset = place + 1;
            }
            shown
        };
        let dots = [(&self.entry, b".".as_slice()), (&self.entry.parent(), b"..".as_slice())];
        for (place, (entry, name)) in (0..).zip(dots).skip_while(|&(place, _)| place < first) {
            if !show(entry.inode.number, place, c::DT_DIR as u8, name) {
                return Ok(());
            }
        }
        match kind {
            Kind::Directory(directory) => directory.list(start, |place, entry| {
                let kind = entry.inode.kind.listed();
                show(entry.inode.number, place, kind, &entry.name())
            }),
            Kind::Listing(listing) => {
                let parent = self.entry.inode.number;
                for n in listing.names().iter().filter(|n| n.position >= start) {
                    if !show(super::entry::made_up_number(parent, &n.name), n.position, n.kind, &n.name) {
                        break;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// What can be done now without waiting, and what to wait on.
    pub fn readiness(&self) -> Readiness<'_> {
        if self.is_path() {
            return Readiness { events: Events::NVAL, queues: [None, None] };
        }
        match (&self.entry.inode.kind, &self.end) {
            (_, Some(end)) => end.readiness(),
            (Kind::Device(device), _) => device.readiness(),
            (Kind::Console(channel), _) => channel.readiness(),
            (Kind::Event(event), _) => event.readiness(),
            (Kind::Special(special), _) => special.readiness(self.blocks()),
            _ => Readiness::ALWAYS,
        }
    }

    /// What is mapped of the file with `prot`, and the most that the mapping may ever allow; `None` is its entry. EACCES if
    /// the file is not open in the right way, ENODEV if it can't be mapped.
    pub fn mapping(&self, shared: bool, prot: Prot) -> Result<(Option<Arc<dyn Object>>, Prot)> {
        if self.is_path() {
            return Err(Errno::EBADF);
        }
        let (reads, writes) = access(self.flags());
        if !reads || shared && prot.contains(Prot::WRITE) && !writes {
            return Err(Errno::EACCES);
        }
        let mut most = if shared && !writes { Prot::READ | Prot::EXEC } else { Prot::all() };
        match &self.entry.inode.kind {
            Kind::File(store)
                if shared && store.seals() & (c::F_SEAL_WRITE | c::F_SEAL_FUTURE_WRITE) != 0 =>
            {
                if prot.contains(Prot::WRITE) {
                    return Err(Errno::EPERM);
                }
                most.remove(Prot::WRITE);
                Ok((None, most))
            }
            Kind::File(_) => Ok((None, most)),
            // A mapping of zeros is memory of its own, shared with nobody but forked children.
            Kind::Device(super::dev::Device::Zero) => Ok((Some(super::shared_memory(1 << 24)?), Prot::all())),
            // Nothing is executed from where files have no names.
            _ if prot.contains(Prot::EXEC) && self.entry.inode.volume == Volume::Anonymous => {
                Err(Errno::EPERM)
            }
            _ => Err(Errno::ENODEV),
        }
    }
    /// Whether it is a socket.
    pub fn is_socket(&self) -> bool {
        matches!(self.entry.inode.kind, Kind::Special(super::special::Special::Socket(_)))
    }
    /// Whether it is a file of bytes.
    pub fn is_regular(&self) -> bool {
        matches!(self.entry.inode.kind, Kind::File(_))
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.entry.inode.flock.unlock(self.number());
        self.entry.inode.records.release(Owner::File(self.number()));
        for item in core::mem::take(self.watches.get_mut()) {
            if let Some(item) = item.upgrade() {
                item.unregister(self);
            }
        }
    }
}

/// Whether `flags` open for reading, and for writing.
pub fn access(flags: u32) -> (bool, bool) {
    match flags & c::O_ACCMODE {
        c::O_RDONLY => (true, false),
        c::O_WRONLY => (false, true),
        // 3 is Linux's "for ioctl only"; O_RDWR is 2.
        c::O_RDWR => (true, true),
        _ => (false, false),
    }
}

/// Set the size of a file. EISDIR, EINVAL for what has no size, ETXTBSY for a program that is run, EFBIG with SIGXFSZ past
/// the limit.
pub fn truncate(entry: &Arc<Entry>, size: u64) -> Result<()> {
    let store = match &entry.inode.kind {
        Kind::File(store) => store,
        Kind::Directory(_) | Kind::Listing(_) => return Err(Errno::EISDIR),
        _ => return Err(Errno::EINVAL),
    };
    let _writing = entry.inode.claim_writing()?;
    if size > store.size() {
        check_size_limit(size.saturating_sub(1))?;
    }
    store.set_size(size)?;
    entry.inode.touch();
    Ok(())
}

/// EFBIG with SIGXFSZ if byte `offset` lies past RLIMIT_FSIZE.
fn check_size_limit(offset: u64) -> Result<()> {
    let limit = task::current().process.limits.soft(RLIMIT_FSIZE);
    if offset < limit {
        return Ok(());
    }
    super::raise(c::SIGXFSZ);
    Err(Errno::EFBIG)
}
