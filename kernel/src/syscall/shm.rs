//! System V shared memory: segments by id and key, which are there until someone removes them.
//!
//! A segment is an object of mappings that no file names. The table holds each by a strong reference until IPC_RMID,
//! and by a weak one from then on: so the last mapping that goes takes a removed segment with it, wherever it goes (by
//! `shmdt`, `munmap`, `execve` or the end of a process), and nobody has to be told. How many mappings there are is
//! counted when asked for, by the way back from the object to the spaces that map it.

use alloc::{
    collections::BTreeMap,
    format,
    sync::{Arc, Weak},
    vec::Vec,
};

use addr::{PAGE_BYTES, PAGE_SIZE, PageRange, Prot, USER_END, USER_END_PAGE, VirtAddr};
use aspace::{Backing, Error, Flags, Mappers, Mapping, Object, ObjectError, Placement, Policy};
use owned::{Memory, OwnedFrame};
use percpu::{Pinned, Unpinned};
use sync::SpinLock;

use super::Args;
use crate::{
    errno::{Errno, SysResult},
    file::{self, Entry, Store, Time},
    memory,
    stats::{self, Counter},
    task, usercopy,
};

/// The key of segments that no key finds.
const PRIVATE: i32 = 0;
const CREATE: u32 = 0o1000;
const EXCLUSIVE: u32 = 0o2000;
const HUGE_PAGES: u32 = 0o4000;
const READ_ONLY: u32 = 0o10000;
const ROUND_DOWN: u32 = 0o20000;
const REMAP: u32 = 0o40000;
const EXECUTABLE: u32 = 0o100000;
/// In a mode that `shmctl` tells: removed, but still mapped.
const REMOVED: u32 = 0o1000;
/// In a mode that `shmctl` tells: locked into memory, where everything here is anyway.
const LOCKED: u32 = 0o2000;
/// Linux's SHMMNI: the most segments there may be.
const MOST: usize = 4096;
/// Linux's default for the largest segment, in bytes, and for all of them, in pages.
const LARGEST: u64 = u64::MAX - (1 << 24);

/// What `shmctl` tells and changes.
#[derive(Clone, Copy)]
struct About {
    key: i32,
    uid: u32,
    gid: u32,
    /// Permission bits, and LOCKED.
    mode: u32,
    /// Seconds since 1970, 0 for never.
    attached: i64,
    detached: i64,
    changed: i64,
    creator: u32,
    /// The last process to attach or detach it.
    last: u32,
    removed: bool,
}

struct Segment {
    memory: Arc<Entry>,
    /// Bytes, as asked for.
    size: u64,
    about: SpinLock<About>,
}

impl Segment {
    fn store(&self) -> Result<&Store, Errno> {
        self.memory.inode.store().ok_or(Errno::EINVAL)
    }
    fn pages(&self) -> u64 {
        self.size.div_ceil(PAGE_SIZE)
    }
    /// Address spaces may keep the segment a little longer than they map it.
    fn is_mapped(&self) -> bool {
        self.mappers().is_some_and(Mappers::is_mapped)
    }
    fn mappings(&self) -> u64 {
        self.mappers().map_or(0, |mappers| mappers.count(&task::unpinned()))
    }
}

/// As the memory itself, which is a file without a name.
impl Object for Segment {
    fn page(
        &self,
        index: u64,
        policy: &Policy,
        frames: &Memory,
        ctx: &Unpinned<'_>,
    ) -> Result<OwnedFrame, ObjectError> {
        self.memory.page(index, policy, frames, ctx)
    }
    fn lend(
        &self,
        index: u64,
        policy: &Policy,
        frames: &Memory,
        ctx: &Unpinned<'_>,
    ) -> Result<OwnedFrame, ObjectError> {
        self.memory.lend(index, policy, frames, ctx)
    }
    fn at_hand(&self, index: u64, lent: bool, frames: &Memory, pin: &Pinned<'_>) -> Option<OwnedFrame> {
        self.memory.at_hand(index, lent, frames, pin)
    }
    fn identity(&self) -> (u64, u64) {
        self.memory.identity()
    }
    fn path(&self) -> Vec<u8> {
        Object::path(&*self.memory)
    }
    fn mappers(&self) -> Option<&Mappers> {
        self.memory.mappers()
    }
    fn is_memory(&self) -> bool {
        true
    }
    fn is_resident(&self, index: u64, ctx: &Unpinned<'_>) -> bool {
        self.memory.is_resident(index, ctx)
    }
    fn has(&self, index: u64, ctx: &Unpinned<'_>) -> Result<bool, ObjectError> {
        self.memory.has(index, ctx)
    }
    fn put(
        &self,
        index: u64,
        bytes: Option<&[u8; PAGE_BYTES]>,
        policy: &Policy,
        ctx: &Unpinned<'_>,
    ) -> Result<bool, ObjectError> {
        self.memory.put(index, bytes, policy, ctx)
    }
    fn punch(&self, index: u64, pages: u64, ctx: &Unpinned<'_>) -> Result<(), ObjectError> {
        self.memory.punch(index, pages, ctx)
    }
}

/// How the table holds a segment.
enum Held {
    Here(Arc<Segment>),
    /// Only its mappings keep it.
    Removed(Weak<Segment>),
}

impl Held {
    fn is_removed(&self) -> bool {
        matches!(self, Held::Removed(_))
    }
    fn segment(&self) -> Option<Arc<Segment>> {
        match self {
            Held::Here(segment) => Some(segment.clone()),
            Held::Removed(segment) => segment.upgrade(),
        }
    }
}

#[derive(Default)]
struct Table {
    segments: BTreeMap<i32, Held>,
    next: i32,
}

/// Spins, innermost: nothing is dropped under it that could be the last reference to a segment.
static TABLE: SpinLock<Table> = SpinLock::new(Table { segments: BTreeMap::new(), next: 0 });

/// The segment `id`. EINVAL.
fn find(id: i32) -> Result<Arc<Segment>, Errno> {
    let held = TABLE.lock().segments.get(&id).map(|held| (held.segment(), held.is_removed()));
    let (segment, removed) = held.ok_or(Errno::EINVAL)?;
    segment.filter(|segment| !removed || segment.is_mapped()).ok_or(Errno::EINVAL)
}

/// The segments that there are, by id.
fn all() -> Vec<(i32, Arc<Segment>)> {
    let with = |(id, held): (&i32, &Held)| Some((*id, held.segment()?, held.is_removed()));
    let all: Vec<_> = TABLE.lock().segments.iter().filter_map(with).collect();
    let there = all.into_iter().filter(|(_, segment, removed)| !removed || segment.is_mapped());
    there.map(|(id, segment, _)| (id, segment)).collect()
}

/// Forget all segments: nobody is left who could use them.
pub fn clear() {
    let gone = core::mem::take(&mut TABLE.lock().segments);
    drop(gone);
}

/// `shmget(2)`, without huge pages.
pub fn shmget(a: &Args) -> SysResult {
    let (key, size, flags) = (a.int(0), a.raw(1), a.uint(2));
    if key != PRIVATE {
        let there = all().into_iter().find(|(_, segment)| segment.about.lock().key == key);
        if let Some((id, segment)) = there {
            return match flags & (CREATE | EXCLUSIVE) {
                both if both == CREATE | EXCLUSIVE => Err(Errno::EEXIST),
                _ if size > segment.size => Err(Errno::EINVAL),
                _ => Ok(id as usize),
            };
        }
        if flags & CREATE == 0 {
            return Err(Errno::ENOENT);
        }
    }
    create(key, size, flags)
}

fn create(key: i32, size: u64, flags: u32) -> SysResult {
    if size == 0 || size > LARGEST {
        return Err(Errno::EINVAL);
    }
    if flags & HUGE_PAGES != 0 || size.div_ceil(PAGE_SIZE) > memory::frames().stats().total {
        return Err(Errno::ENOMEM);
    }
    let name = format!("/SYSV{:08x}", key as u32);
    let memory = file::unnamed_file(name.as_bytes(), flags & 0o777, Store::unlimited())?;
    let about = About {
        key,
        uid: 0,
        gid: 0,
        mode: flags & 0o777,
        attached: 0,
        detached: 0,
        changed: Time::now().sec,
        creator: task::current().process.pid,
        last: 0,
        removed: false,
    };
    let segment = Arc::new(Segment { memory, size, about: SpinLock::new(about) });
    segment.store()?.set_size(segment.pages() * PAGE_SIZE)?;
    let mut table = TABLE.lock();
    // Removed ones that nobody maps any more have only left their ids.
    table.segments.retain(|_, held| !matches!(held, Held::Removed(gone) if gone.strong_count() == 0));
    if table.segments.len() >= MOST {
        return Err(Errno::ENOSPC);
    }
    let taken = |held: &Held| matches!(held, Held::Here(other) if other.about.lock().key == key);
    if key != PRIVATE && table.segments.values().any(taken) {
        // Another thread was faster. It may have asked for less, so the caller looks again.
        drop(table);
        return shmget(&Args([key as u32 as u64, size, flags.into(), 0, 0, 0]));
    }
    let mut id = table.next;
    while table.segments.contains_key(&id) {
        id = id.checked_add(1).unwrap_or(0);
    }
    table.next = id.checked_add(1).unwrap_or(0);
    table.segments.insert(id, Held::Here(segment));
    Ok(id as usize)
}

/// `shmat(2)`.
pub fn shmat(a: &Args) -> SysResult {
    let (id, mut at, flags) = (a.int(0), a.raw(1), a.uint(2));
    let remap = flags & REMAP != 0;
    if flags & ROUND_DOWN != 0 {
        at -= at % PAGE_SIZE;
    }
    if !at.is_multiple_of(PAGE_SIZE) || at == 0 && remap {
        return Err(Errno::EINVAL);
    }
    let segment = find(id)?;
    let n = segment.pages();
    let placement = if at == 0 {
        Placement::Anywhere
    } else {
        let end = at.checked_add(n * PAGE_SIZE).ok_or(Errno::EINVAL)?;
        let page = VirtAddr::user(at).filter(|_| end <= USER_END).ok_or(Errno::ENOMEM)?.page();
        if remap { Placement::Fixed(page) } else { Placement::FixedNoReplace(page) }
    };
    let mut prot = Prot::READ;
    prot.set(Prot::WRITE, flags & READ_ONLY == 0);
    prot.set(Prot::EXEC, flags & EXECUTABLE != 0);
    let max_prot = if flags & READ_ONLY == 0 { Prot::all() } else { Prot::READ | Prot::EXEC };
    let me = task::current();
    // A segment is attached for reading only as a file that is open for reading only is mapped.
    let told = if flags & READ_ONLY == 0 { Flags::empty() } else { Flags::READ_ONLY_FILE };
    let mapping = Mapping { max_prot, shared: true, flags: told, ..Mapping::anonymous(prot) };
    let mm = me.mm().ok_or(Errno::ENOMEM)?;
    let limits = me.process.limits.of_memory();
    let (placed, _) = mm
        .aspace
        .map_within(placement, n, &mapping.of(&segment, 0), &limits, &task::unpinned())
        .map_err(|e| match e {
            Error::Exists | Error::Invalid => Errno::EINVAL,
            Error::TooLow => Errno::EPERM,
            Error::LockLimit => Errno::EAGAIN,
            _ => Errno::ENOMEM,
        })?;
    stats::count(Counter::Maps);
    let mut about = segment.about.lock();
    (about.attached, about.last) = (Time::now().sec, me.process.pid);
    Ok(placed.start().base().as_u64() as usize)
}

/// `shmdt(2)`: unmaps what is left of the segment that was attached at an address.
pub fn shmdt(a: &Args) -> SysResult {
    let start = VirtAddr::user(a.raw(0)).filter(|at| at.as_u64().is_multiple_of(PAGE_SIZE));
    let start = start.ok_or(Errno::EINVAL)?.page();
    let me = task::current();
    let (mm, ctx) = (me.mm().ok_or(Errno::EINVAL)?, task::unpinned());
    let segments = all();
    let rest = PageRange::new(start, USER_END_PAGE).ok_or(Errno::EINVAL)?;
    // The first mapping from there on that is where it would be if a segment had been attached at `start`.
    let mut found = None;
    mm.aspace.areas(rest, &ctx, &mut |info| {
        let Backing::Object { object, page } = &info.mapping.backing else { return };
        let distance = info.range.start().number().checked_sub(start.number());
        if found.is_none() && info.mapping.shared && distance == Some(*page) {
            let identity = object.identity();
            found = segments.iter().find(|(_, segment)| segment.identity() == identity);
        }
    });
    let (_, segment) = found.ok_or(Errno::EINVAL)?;
    let range = PageRange::new(start, start.checked_add(segment.pages()).unwrap_or(USER_END_PAGE));
    let range = range.filter(|range| range.end() <= USER_END_PAGE).ok_or(Errno::EINVAL)?;
    // Another thread may have been quicker.
    if !mm.aspace.unmap_object(range, segment.identity(), &ctx).map_err(|_| Errno::ENOMEM)? {
        return Err(Errno::EINVAL);
    }
    let mut about = segment.about.lock();
    (about.detached, about.last) = (Time::now().sec, me.process.pid);
    Ok(0)
}

/// `shmctl(2)`: IPC_RMID, IPC_SET, IPC_STAT, IPC_INFO, SHM_INFO, SHM_LOCK and SHM_UNLOCK. Locking is told only.
pub fn shmctl(a: &Args) -> SysResult {
    const IPC_RMID: i32 = 0;
    const IPC_SET: i32 = 1;
    const IPC_STAT: i32 = 2;
    const IPC_INFO: i32 = 3;
    const SHM_LOCK: i32 = 11;
    const SHM_UNLOCK: i32 = 12;
    const SHM_INFO: i32 = 14;
    let (id, command, at) = (a.int(0), a.int(1), a.raw(2));
    if id < 0 {
        return Err(Errno::EINVAL);
    }
    match command {
        IPC_RMID => remove(id)?,
        IPC_SET => set(&*find(id)?, at)?,
        IPC_STAT => tell(&*find(id)?, at)?,
        IPC_INFO => {
            // struct shminfo64: largest, smallest, most, most a process, most pages, and room for more.
            let most = MOST as u64;
            usercopy::write(at, &[LARGEST, 1, most, most, LARGEST, 0, 0, 0, 0])?;
        }
        SHM_INFO => {
            let segments = all();
            let resident = |(_, segment): &(i32, Arc<Segment>)| segment.store().map_or(0, Store::pages);
            let pages = segments.iter().map(|(_, segment)| segment.pages()).sum();
            // struct shm_info: segments, pages, those in memory, and three about swapping.
            let resident = segments.iter().map(resident).sum();
            usercopy::write(at, &[segments.len() as u64, pages, resident, 0, 0, 0])?;
        }
        SHM_LOCK => find(id)?.about.lock().mode |= LOCKED,
        SHM_UNLOCK => find(id)?.about.lock().mode &= !LOCKED,
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

/// IPC_RMID. No key finds it any more, and it goes with its last mapping.
fn remove(id: i32) -> Result<(), Errno> {
    let segment = find(id)?;
    {
        let mut about = segment.about.lock();
        (about.key, about.removed) = (PRIVATE, true);
    }
    let old = TABLE.lock().segments.insert(id, Held::Removed(Arc::downgrade(&segment)));
    // Here, with no lock held, it ends if nobody maps it.
    drop((old, segment));
    Ok(())
}

/// `struct shmid64_ds`, as words of 32 bits: key, uid, gid, creator's uid and gid, mode, sequence number, ...
const WORDS: usize = 28;

/// IPC_SET.
fn set(segment: &Segment, at: u64) -> Result<(), Errno> {
    let [_, uid, gid, _, _, mode, ..]: [u32; WORDS] = usercopy::read(at)?;
    if uid == u32::MAX || gid == u32::MAX {
        return Err(Errno::EINVAL);
    }
    let mut about = segment.about.lock();
    (about.uid, about.gid, about.mode) = (uid, gid, about.mode & !0o777 | mode & 0o777);
    about.changed = Time::now().sec;
    Ok(())
}

/// IPC_STAT.
fn tell(segment: &Segment, at: u64) -> Result<(), Errno> {
    let mappings = segment.mappings();
    let about = *segment.about.lock();
    let mode = about.mode | if about.removed { REMOVED } else { 0 };
    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let words: [u64; WORDS / 2] = [
        pair(about.key as u32, about.uid),
        pair(about.gid, 0),
        pair(0, mode),
        0,
        0,
        0,
        segment.size,
        about.attached as u64,
        about.detached as u64,
        about.changed as u64,
        pair(about.creator, about.last),
        mappings,
        0,
        0,
    ];
    usercopy::write(at, &words)
}
