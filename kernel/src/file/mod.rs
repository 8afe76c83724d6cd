//! Files: a tree in memory, pipes, devices, the terminal, /proc and /sys.
//!
//! ```text
//!  descriptor --table--> OpenFile --> Entry --> Inode --> Kind: Store (pages) | Directory | Pipe | Device | Text ...
//!                        offset,      a name    metadata
//!                        flags        in the tree
//!
//!  io, page   where bytes come from and go to              store      a regular file's pages, shared with mappings
//!  table      descriptors; root, working directory         inode      what there is, with its metadata
//!  open       open files: read, write, seek, list          entry      names and how they hang together
//!  path       path resolution                              directory  create, link, unlink, rename
//!  reached    entries on the way of a walk, not counted    published  places and working directories, read without a lock
//!  pipe       pipes, named and not     event   eventfd     cpio, unpack, startup   the boot image
//!  special    what has no bytes at offsets: socket, epoll, timerfd, pidfd, signalfd
//!  tty, line  the terminal             dev     /dev        proc, sys  what is made up when someone looks
//! ```
//!
//! # Lock order
//! From the outside in; each line may be held while those below are taken.
//!
//! 1. an open file's position (sleeping)
//! 2. `RENAME`, then directories from the root downwards (sleeping; see `directory`)
//! 3. a store's `writer`, a pipe's ring, a console's `WRITERS` (sleeping). User memory may be touched here and above,
//!    but not with a directory locked; so page faults, with the locks of the address space, come next
//! 4. a store's `pages` (sleeping), taken by page faults for a look-up
//! 5. descriptor tables, `CHANGES` of places, metadata, `flock`, locks of `fcntl` (spinning)
//! 6. the terminal's `STATE` and wait queues (spinning, interrupts off)
//!
//! Files are closed, and pages and entries dropped, with no lock of 5 or 6 held. There is no global lock on the way of
//! a read, a write, a page fault or a look-up of a path.
//!
//! # Who frees what
//! A frame of a file is freed by the last of: the file's store, mappings, a copy in progress. A store dies with its
//! inode, that with the last name, open file or mapping. [`teardown`] empties the tree at the end of the machine.

mod cpio;
mod dev;
mod directory;
mod entry;
mod epoll;
mod event;
mod flock;
mod inode;
mod io;
mod line;
mod open;
mod page;
mod path;
mod pidfd;
mod pipe;
mod poll;
mod proc;
pub mod proc_frames;
mod proc_memory;
mod proc_numa;
mod proc_pages;
mod proc_pid;
mod proc_users;
mod published;
mod random;
mod reached;
mod record;
pub mod selftest;
mod signalfd;
mod socket;
mod special;
mod startup;
mod store;
mod sys;
mod table;
mod timerfd;
pub mod tty;
mod unpack;

use alloc::{format, sync::Arc, vec::Vec};

use aspace::Object;
use linux_raw_sys::general as c;
use sync::{Readers, SpinLock};

pub use dev::{Device, node, split as split_device};
pub use directory::{
    Directory, Existing, capacity as name_capacity, check_room, create, link, rename, rmdir, unlink,
};
pub use entry::Entry;
pub use epoll::{Epoll, Interest};
pub use event::{Event, flags_are_known as event_flags_are_known};
pub use inode::{Claim, Inode, Kind, Time, Volume};
pub use io::{KernelBuffer, MAX_TRANSFER, Sink, Source, UserBuffer, moved};
pub use open::{Listed, OpenFile, Seek, access, truncate};
pub use path::{Follow, Found, Last, Start, read_link};
pub use pidfd::ProcessFile;
pub use pipe::{Pipe, PipeEnd};
pub use poll::{Events, Readiness};
pub use random::fill as random_bytes;
pub use reached::Reached;
pub use record::{Owner, Record};
pub use signalfd::{SignalFile, arrived as signal_arrived};
pub use socket::{
    AF_UNIX, Address, Credentials, Flags as SocketFlags, Number as SocketNumber, Received, Sent, Socket,
    Style, collect_sockets, release_files,
};
pub use special::Special;
pub use startup::Startup;
pub use store::{MAX_SIZE, Store, capacity};
pub use table::{FileTable, Files, FsInfo, FsShare, Lent, Share};
pub use timerfd::{Setting, TimerFile};

use crate::{
    errno::Errno,
    memory,
    options::Options,
    process::Process,
    signal::{self, SigInfo},
    task,
};
use addr::PAGE_SIZE;

/// What file operations give.
pub type Result<T> = core::result::Result<T, Errno>;

static ROOT: SpinLock<Option<Arc<Entry>>> = SpinLock::new(None);
/// Which directory, or index of pages, each CPU is reading.
static READERS: Readers = Readers::new();
/// The standard input that the boot image brought, until the first process has it.
static INPUT: SpinLock<Option<Arc<Entry>>> = SpinLock::new(None);

/// The root of the tree: an empty one before [`init`].
pub fn root() -> Arc<Entry> {
    if let Some(root) = &*ROOT.lock() {
        return root.clone();
    }
    let fresh = entry::new_root();
    ROOT.lock().get_or_insert(fresh).clone()
}

/// Build the tree: the boot image's, with /dev, /proc, /sys and /tmp. Once, before the first program. `image` stays in
/// place for good: files are read from it until they are changed. A malformed image is unpacked up to the fault. Gives
/// what to run, if the image says so.
pub fn init(image: &'static [u8], options: Options) -> Option<Startup> {
    tty::configure(&options);
    store::set_limit();
    directory::set_limit();
    let root = root();
    if let Err(e) = unpack::unpack(&root, image) {
        crate::log!("the initramfs is malformed: {e:?}");
    }
    let tmp = Inode::new(Kind::Directory(Directory::new()), 0o1777, Volume::Root);
    let mounted = dev::mount(&root).and_then(|()| proc::mount(&root)).and_then(|()| sys::mount(&root));
    if let Err(e) = mounted.and_then(|()| create(&root, b"tmp", tmp).map(drop))
        && e != Errno::EEXIST
    {
        crate::log!("/dev, /proc, /sys, /tmp: {e:?}");
    }
    let (startup, input) = startup::take(&root);
    *INPUT.lock() = input;
    startup
}

/// Put `inode` into `root` as `name`, over whatever was there.
fn mount_at(root: &Arc<Entry>, name: &[u8], inode: Arc<Inode>) -> Result<Arc<Entry>> {
    if let Kind::Directory(directory) = &root.inode.kind
        && let Some(old) = directory.get(name)
    {
        empty(old.clone());
        if rmdir(root, name).is_err() {
            unlink(root, name)?;
        }
    }
    create(root, name, inode)
}

/// Take everything out of the tree below `entry` and give its pages back.
fn empty(entry: Arc<Entry>) {
    let mut left = Vec::from([entry]);
    while let Some(entry) = left.pop() {
        match &entry.inode.kind {
            Kind::Directory(directory) => left.extend(directory.take_all().into_values()),
            Kind::File(store) => store.clear(),
            _ => {}
        }
    }
}

/// Give back everything that files hold: no program runs any more, and `kernel` is the last process.
pub fn teardown(kernel: &Process) {
    kernel.files().clear();
    // Rings of sockets that nobody closed another one after.
    collect_sockets();
    let root = ROOT.lock().take();
    if let Some(root) = root {
        empty(root);
    }
    // No file is left that reads from it.
    memory::release_initramfs();
}

/// Make `path` the working directory of `process`, which has no thread yet or is the kernel's.
pub fn set_first_directory(process: &Process, path: &[u8]) -> Result<()> {
    process.fs.chdir(path)
}

/// Find the program `path` for `execve`. EACCES if it is no regular file or nobody may execute it.
pub fn open_exec(path: &[u8], fs: &FsInfo) -> Result<Arc<Entry>> {
    let entry = fs.existing(fs.start(), path, Follow::Always)?;
    let executable = entry.inode.store().is_some() && entry.inode.meta().mode & 0o111 != 0;
    if executable { Ok(entry) } else { Err(Errno::EACCES) }
}

/// `pages` pages of zeros that forked processes share: what a shared anonymous mapping maps.
pub fn shared_memory(pages: u64) -> Result<Arc<dyn Object>> {
    let entry = unnamed_file(b"/dev/zero", 0o666, Store::unlimited())?;
    entry.inode.store().ok_or(Errno::ENOMEM)?.set_size(pages.saturating_mul(PAGE_SIZE))?;
    Ok(entry.object())
}

/// A regular file without a name in the tree, shown as `name` and removed. ENOMEM when memory is short.
pub fn unnamed_file(name: &[u8], mode: u32, store: Store) -> Result<Arc<Entry>> {
    if memory::frames().low() {
        return Err(Errno::ENOMEM);
    }
    let inode = Inode::new(Kind::File(store), mode, Volume::Root);
    inode.relink(-1);
    let entry = Entry::anonymous(name, inode);
    entry.set_removed();
    Ok(entry)
}

/// A new pipe: the reading and the writing end, with `flags` for both. ENOMEM when memory is short.
pub fn new_pipe(flags: u32) -> Result<(Arc<OpenFile>, Arc<OpenFile>)> {
    if memory::frames().low() {
        return Err(Errno::ENOMEM);
    }
    let pipe = Pipe::new()?;
    let inode = Inode::new(Kind::Fifo(pipe.clone()), 0o600, Volume::Anonymous);
    let entry = Entry::anonymous(format!("pipe:[{}]", inode.number).as_bytes(), inode);
    let (reader, writer) = (PipeEnd::new(pipe.clone(), true, false), PipeEnd::new(pipe, false, true));
    let reader = OpenFile::pipe_end(entry.clone(), reader, flags | c::O_RDONLY);
    Ok((reader, OpenFile::pipe_end(entry, writer, flags | c::O_WRONLY)))
}

/// A new `eventfd` counter.
pub fn new_event(count: u32, flags: u32) -> Result<Arc<OpenFile>> {
    let event = Event::new(count, flags & c::EFD_SEMAPHORE != 0);
    let inode = Inode::new(Kind::Event(event), 0o600, Volume::Anonymous);
    OpenFile::open(Entry::anonymous(b"anon_inode:[eventfd]", inode), c::O_RDWR | flags & c::O_NONBLOCK)
}

/// The command's standard file `fd` (0, 1, 2).
fn stdio(fd: usize) -> Arc<OpenFile> {
    if fd == 0 {
        let packed = INPUT.lock().take();
        if let Some(file) = packed.and_then(|entry| OpenFile::open(entry, c::O_RDONLY).ok()) {
            return file;
        }
    }
    if tty::is_terminal(fd) {
        let root = root();
        let console = path::existing(&root, Start::At(&root), b"/dev/console", Follow::Always);
        if let Ok(file) = console.and_then(|entry| OpenFile::open(entry, c::O_RDWR)) {
            return file;
        }
    }
    let (channel, flags) = match fd {
        0 => (tty::Channel::Input, c::O_RDONLY),
        1 => (tty::Channel::Output, c::O_WRONLY),
        _ => (tty::Channel::Error, c::O_WRONLY),
    };
    let inode = Inode::new(Kind::Console(channel), 0o600, Volume::Anonymous);
    let entry = Entry::anonymous(format!("pipe:[{}]", inode.number).as_bytes(), inode);
    OpenFile::plain(entry, flags)
}

/// Send `signal` to the calling thread, as the kernel does for a call that failed because of it.
fn raise(signal: u32) {
    let info = SigInfo::from_caller(signal, signal::code::SI_USER);
    signal::send_task(&task::current().arc(), info);
}
