//! Inodes: what a name stands for, with its metadata.
//!
//! An inode lives while a name, an open file or a mapping refers to it; so a removed file that is still open lives on.

use alloc::{
    boxed::Box,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use linux_raw_sys::general as c;
use sync::SeqLock;

use super::{
    Result, dev::Device, directory::Directory, entry::Entry, event::Event, flock::Flock, io::Source,
    pipe::Pipe, proc::Text, proc_pages::PageMap, record::Records, socket::Socket, special::Special,
    store::Store, tty::Channel,
};
use crate::{errno::Errno, hw};

/// A time as programs see it: seconds and nanoseconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Time {
    /// Whole seconds.
    pub sec: i64,
    /// The rest, 0..10^9.
    pub nsec: u32,
}

impl Time {
    /// The present.
    pub fn now() -> Self {
        let ns = hw::timer::boot_epoch_ns().saturating_add(hw::timer::now());
        Self { sec: (ns / 1_000_000_000) as i64, nsec: (ns % 1_000_000_000) as u32 }
    }
}

/// The file systems that programs can tell apart by `st_dev`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Volume {
    /// The tree in memory.
    Root,
    /// /proc.
    Proc,
    /// /sys.
    Sys,
    /// Pipes and other things without a name.
    Anonymous,
}

impl Volume {
    /// `st_dev`: device 0:minor, as Linux numbers file systems without a disk.
    pub fn device(self) -> u64 {
        match self {
            Volume::Root => 1,
            Volume::Proc => 21,
            Volume::Sys => 22,
            Volume::Anonymous => 13,
        }
    }
    /// `f_type` of `statfs`.
    pub fn magic(self) -> u32 {
        match self {
            Volume::Root => c::TMPFS_MAGIC,
            Volume::Proc => c::PROC_SUPER_MAGIC,
            Volume::Sys => c::SYSFS_MAGIC,
            Volume::Anonymous => c::PIPEFS_MAGIC,
        }
    }
}

/// Makes the contents of a file when it is read.
pub type MakeText = dyn Fn() -> Result<Text> + Send + Sync;
/// Takes all that one call writes to a file.
pub type TakeText = dyn Fn(&[u8]) -> Result<()> + Send + Sync;

/// A file whose contents are made up when somebody looks.
pub struct MadeUp {
    /// What it says.
    pub make: Box<MakeText>,
    /// What is done with what is written to it, if it can be written.
    pub take: Option<Box<TakeText>>,
}

impl MadeUp {
    /// The most that a call may write, in bytes.
    const MOST: usize = 4096;

    /// Take what a call writes, whole. EIO if the file isn't for writing, EINVAL if that is too much.
    pub fn write(&self, source: &mut dyn Source) -> Result<usize> {
        let take = self.take.as_ref().ok_or(Errno::EIO)?;
        let len = source.left();
        if len > Self::MOST {
            return Err(Errno::EINVAL);
        }
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
        bytes.resize(len, 0);
        if source.take(&mut bytes) < len {
            return Err(Errno::EFAULT);
        }
        take(&bytes)?;
        Ok(len)
    }
}

/// A directory whose entries are made up when someone looks.
pub trait Listing: Send + Sync {
    /// What `name` stands for.
    fn lookup(&self, name: &[u8]) -> Option<Node>;
    /// The names, in ascending order of position.
    fn names(&self) -> Vec<Name>;
}

/// One name of a [`Listing`].
pub struct Name {
    /// Where it stands in the listing, at least 2; it keeps this place when others come and go.
    pub position: u64,
    /// The name.
    pub name: Vec<u8>,
    /// `DT_DIR` and so on.
    pub kind: u8,
}

/// What a [`Listing`] finds.
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
}

/// Where a [`Link`] leads.
pub enum Target {
    /// To a path, from the directory that the link is in.
    Path(Vec<u8>),
    /// To this very file, whatever it is called by now.
    Entry(Arc<Entry>),
}

/// A symbolic link whose target is made up when someone looks.
pub trait Link: Send + Sync {
    /// What `readlink` says.
    fn text(&self) -> Result<Vec<u8>>;
    /// What a path that goes through it finds.
    fn follow(&self) -> Result<Target> {
        self.text().map(Target::Path)
    }
}

/// What an inode is.
pub enum Kind {
    /// A regular file.
    File(Store),
    /// A directory.
    Directory(Directory),
    /// A symbolic link.
    Symlink(Box<[u8]>),
    /// A character device.
    Device(Device),
    /// A pipe, named or not.
    Fifo(Arc<Pipe>),
    /// The command's standard input, output or error where that is no terminal.
    Console(Channel),
    /// A counter of `eventfd`.
    Event(Event),
    /// A socket, or another file that is neither bytes nor a name.
    Special(Special),
    /// The name of a socket in the tree.
    SocketName(Weak<Socket>),
    /// A file of /proc or /sys.
    Text(MadeUp),
    /// /proc/N/pagemap.
    Pages(PageMap),
    /// A directory of /proc or /sys.
    Listing(Box<dyn Listing>),
    /// A symbolic link of /proc.
    Link(Box<dyn Link>),
}

impl Kind {
    /// The type bits of `st_mode`.
    pub fn type_bits(&self) -> u32 {
        match self {
            Kind::File(_) | Kind::Text(_) | Kind::Pages(_) => c::S_IFREG,
            Kind::Directory(_) | Kind::Listing(_) => c::S_IFDIR,
            Kind::Symlink(_) | Kind::Link(_) => c::S_IFLNK,
            Kind::Device(_) => c::S_IFCHR,
            Kind::Fifo(_) | Kind::Console(_) => c::S_IFIFO,
            Kind::Event(_) => 0,
            Kind::Special(special) => special.type_bits(),
            Kind::SocketName(_) => c::S_IFSOCK,
        }
    }
    /// The type as directories list it: `DT_DIR` and so on.
    pub fn listed(&self) -> u8 {
        (self.type_bits() >> 12) as u8
    }
    /// Whether names can be looked up in it.
    pub fn is_directory(&self) -> bool {
        matches!(self, Kind::Directory(_) | Kind::Listing(_))
    }
    /// Whether a path goes on from elsewhere.
    pub fn is_link(&self) -> bool {
        matches!(self, Kind::Symlink(_) | Kind::Link(_))
    }
}

/// The changeable metadata.
#[derive(Clone, Copy)]
pub struct Meta {
    /// Permission bits, with set-id and sticky: 0..=0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names that stand for it; 0 once removed.
    pub links: u32,
    /// Last access, as set; reads do not change it, so that they write no line that others use.
    pub accessed: Time,
    /// Last change of the contents.
    pub modified: Time,
    /// Last change of the metadata.
    pub changed: Time,
}

impl Meta {
    const WORDS: usize = 7;

    fn to_words(self) -> [u64; Self::WORDS] {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let [a, m, c] = [self.accessed, self.modified, self.changed];
        [
            pair(self.mode, self.uid),
            pair(self.gid, self.links),
            pair(a.nsec, m.nsec),
            c.nsec.into(),
            a.sec as u64,
            m.sec as u64,
            c.sec as u64,
        ]
    }

    fn from_words([owner, group, nsec, last, a, m, c]: [u64; Self::WORDS]) -> Self {
        let (low, high) = (|word: u64| word as u32, |word: u64| (word >> 32) as u32);
        let time = |sec: u64, nsec| Time { sec: sec as i64, nsec };
        Self {
            mode: low(owner),
            uid: high(owner),
            gid: low(group),
            links: high(group),
            accessed: time(a, low(nsec)),
            modified: time(m, high(nsec)),
            changed: time(c, low(last)),
        }
    }
}

/// A file, in the wide sense.
pub struct Inode {
    /// The number, unique in the volume.
    pub number: u64,
    /// The volume.
    pub volume: Volume,
    /// What it is.
    pub kind: Kind,
    /// Locks by `flock`.
    pub flock: Flock,
    /// Locks by `fcntl`.
    pub records: Records,
    /// A file that never had a name, and may get one.
    linkable: AtomicBool,
    /// How many [`Claim`]s there are for writing, or if negative, for running.
    claims: AtomicI64,
    /// Read by many, who write nothing for it.
    meta: SeqLock<{ Meta::WORDS }>,
}

/// A right to write a file, or to run it as a program, while it lives: there are never both.
pub struct Claim {
    inode: Arc<Inode>,
    /// 1 to write it, -1 to run it.
    by: i64,
}

impl Claim {
    fn new(inode: &Arc<Inode>, by: i64) -> Result<Self> {
        let one_more = |claims: i64| (claims.signum() != -by).then_some(claims + by);
        // Relaxed: the count alone decides; what is in the file has locks of its own.
        let claimed = inode.claims.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        claimed.map(|_| Self { inode: inode.clone(), by }).map_err(|_| Errno::ETXTBSY)
    }
}

impl Clone for Claim {
    fn clone(&self) -> Self {
        // Relaxed: as above. Ours is there, so there is none of the other kind.
        self.inode.claims.fetch_add(self.by, Ordering::Relaxed);
        Self { inode: self.inode.clone(), by: self.by }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Relaxed: as above.
        self.inode.claims.fetch_sub(self.by, Ordering::Relaxed);
    }
}

impl Inode {
    /// A new inode with a number of its own and one link (two for a directory, as its own "." is one).
    pub fn new(kind: Kind, mode: u32, volume: Volume) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // Relaxed: only uniqueness matters.
        Self::numbered(NEXT.fetch_add(1, Ordering::Relaxed), kind, mode, volume)
    }

    /// A new inode with a given number.
    pub fn numbered(number: u64, kind: Kind, mode: u32, volume: Volume) -> Arc<Self> {
        let now = Time::now();
        let links = if kind.is_directory() { 2 } else { 1 };
        let meta =
            Meta { mode: mode & 0o7777, uid: 0, gid: 0, links, accessed: now, modified: now, changed: now };
        let linkable = AtomicBool::new(false);
        let (flock, records) = (Flock::new(), Records::new());
        let (claims, meta) = (AtomicI64::new(0), SeqLock::new(meta.to_words()));
        Arc::new(Self { number, volume, kind, flock, records, linkable, claims, meta })
    }

    /// The right to write it. ETXTBSY while it is run.
    pub fn claim_writing(self: &Arc<Self>) -> Result<Claim> {
        Claim::new(self, 1)
    }

    /// The right to run it. ETXTBSY while it may be written.
    pub fn claim_running(self: &Arc<Self>) -> Result<Claim> {
        Claim::new(self, -1)
    }

    /// Whether it may get a name although it has none (O_TMPFILE without O_EXCL).
    pub fn set_linkable(&self, may: bool) {
        // Relaxed: before the file is known to anybody else, or once it has a name, which its links tell.
        self.linkable.store(may, Ordering::Relaxed);
    }

    /// Whether it may get another name: a removed file may not.
    pub fn may_be_linked(&self) -> bool {
        // Relaxed: as above.
        self.meta().links > 0 || self.linkable.load(Ordering::Relaxed)
    }

    /// The metadata of now.
    pub fn meta(&self) -> Meta {
        Meta::from_words(self.meta.read())
    }

    /// Change the metadata. `change` must not sleep.
    pub fn update(&self, change: impl FnOnce(&mut Meta)) {
        self.meta.update(|words| {
            let mut meta = Meta::from_words(words);
            change(&mut meta);
            meta.to_words()
        });
    }

    /// Note that the contents have changed now.
    pub fn touch(&self) {
        let now = Time::now();
        self.update(|m| (m.modified, m.changed) = (now, now));
    }

    /// Count `by` names more or fewer, which changes the metadata now.
    pub fn relink(&self, by: i32) {
        let now = Time::now();
        self.update(|m| {
            m.links = m.links.saturating_add_signed(by);
            m.changed = now;
        });
    }

    /// Size in bytes, as `stat` says.
    pub fn size(&self) -> u64 {
        match &self.kind {
            Kind::File(store) => store.size(),
            Kind::Symlink(target) => target.len() as u64,
            Kind::Directory(d) => 20 * (d.len() as u64 + 2),
            _ => 0,
        }
    }

    /// `st_mode`: type and permissions.
    pub fn mode(&self) -> u32 {
        self.kind.type_bits() | self.meta().mode
    }

    /// The regular file's contents.
    pub fn store(&self) -> Option<&Store> {
        match &self.kind {
            Kind::File(store) => Some(store),
            _ => None,
        }
    }
}
