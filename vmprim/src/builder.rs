//! Building a region: memory, backend, handlers.
//!
//! A backend is chosen by what it can give on any kernel (`gives`), and then by whether it works here (`probe.rs`).
//! Where the program names none, the order is: the kernel's own tracking if only dirty sets are asked for; then
//! what splits no mapping and signals the faulting thread; then `mprotect`; then threads that read faults.

use std::{
    fs::File,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Mutex,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use crate::{
    access::{Access, PageSize},
    budget, deferred, dispatch,
    error::{Backend, Errno, Error, Needs, Reason},
    group::{Group, PAGES},
    handler::{DeferredHandler, InlineHandler},
    mechanism::{self, Ground, Span, signal},
    pool, probe,
    region::{Inner, OnFail, Region, RegionId},
    sys::{self, Mapping},
    thread, upcall,
};

/// What memory a region is.
#[derive(Debug)]
pub enum Backing {
    /// Anonymous memory, which has no alias.
    Anon,
    /// A file in memory, mapped twice.
    Memfd,
    /// A file from `offset`, a multiple of 4096; shared with other mappings of it, or private.
    File {
        /// Open for reading, and for writing if it is shared.
        file: File,
        /// In bytes.
        offset: u64,
        /// Writes go to the file.
        shared: bool,
    },
}

/// Memory of the program's own that a region takes over.
#[derive(Clone, Copy, Debug)]
struct Adopted {
    base: usize,
}

/// What a region is to be; see [`Region::builder`].
pub struct Builder {
    len: usize,
    page: PageSize,
    backing: Option<Backing>,
    adopted: Option<Adopted>,
    backend: Backend,
    needs: Needs,
    initial: Access,
    reserve: bool,
    inline: Option<Box<dyn InlineHandler>>,
    deferred: Option<Box<dyn DeferredHandler>>,
    workers: usize,
    pool: usize,
    on_fail: OnFail,
    pub(crate) probing: bool,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").field("len", &self.len).field("needs", &self.needs).finish_non_exhaustive()
    }
}

impl Region {
    /// A region of `len` bytes, a multiple of the page. Unless more is said: pages of 4096 bytes at ReadWrite, the
    /// memory and the backend that meet the needs best, and faults granted what they want.
    pub fn builder(len: usize) -> Builder {
        Builder {
            len,
            page: PageSize(sys::BASE),
            backing: None,
            adopted: None,
            backend: Backend::Auto,
            needs: Needs::NOTHING,
            initial: Access::ReadWrite,
            reserve: false,
            inline: None,
            deferred: None,
            workers: 1,
            pool: 0,
            on_fail: OnFail::Abort,
            probing: false,
        }
    }
}

/// What a backend can give on such memory, on a kernel that has all of it; or why it can't work there.
fn gives(backend: Backend, memory: Memory) -> Result<Needs, Reason> {
    let base = Needs::DIRTY;
    let levels = Needs::NONE_LEVEL | Needs::READ_LEVEL;
    let aliased = matches!(memory, Memory::Memfd | Memory::Shared);
    let alias = if aliased { Needs::ALIAS } else { Needs::NOTHING };
    match (backend, memory) {
        (Backend::Auto | Backend::Signal, _) => Ok(base | levels | alias),
        (Backend::UffdWp, Memory::Anon) => Ok(base | Needs::READ_LEVEL),
        (Backend::UffdWp, _) => Err(Reason::Backing("is for anonymous memory")),
        (Backend::UffdView, Memory::Memfd) => Ok(base | levels | alias),
        (Backend::UffdView, _) => Err(Reason::Backing("is for a memfd")),
        (Backend::UffdThread { .. }, Memory::Anon) => Ok(base | Needs::READ_LEVEL | Needs::SYSCALLS),
        (Backend::UffdThread { .. }, Memory::Memfd) => Ok(base | levels | alias | Needs::SYSCALLS),
        (Backend::UffdThread { .. }, _) => Err(Reason::Backing("is for anonymous memory or a memfd")),
        (Backend::AsyncDirty, Memory::Memfd) => Ok(base | alias | Needs::NONE_LEVEL | Needs::SYSCALLS),
        (Backend::AsyncDirty, _) => Ok(base | alias | Needs::SYSCALLS),
        (Backend::Native, _) => Ok(base | levels | alias | Needs::SYSCALLS),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    Anon,
    Memfd,
    Shared,
    Private,
}

impl Builder {
    /// The protection unit: a power of two, at least 4096.
    pub fn page(mut self, page: PageSize) -> Self {
        self.page = page;
        self
    }
    /// What memory it is; otherwise a memfd if an alias or the level None is needed, else anonymous.
    pub fn backing(mut self, backing: Backing) -> Self {
        self.backing = Some(backing);
        self
    }
    /// Take over memory of the program's own instead: private and anonymous, `len` bytes from `base`, both whole
    /// pages. When the region ends, the memory is readable and writable again and stays.
    ///
    /// # Safety
    /// The bytes are mapped so, are nobody else's to protect, and stay mapped as long as the region lives.
    pub unsafe fn adopt(mut self, base: *mut u8) -> Self {
        self.adopted = Some(Adopted { base: base as usize });
        self
    }
    /// Which backend; the environment variable `VMPRIM_BACKEND` names one where the program leaves it open.
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }
    /// What the program asks for.
    pub fn need(mut self, needs: Needs) -> Self {
        self.needs = self.needs | needs;
        self
    }
    /// The level of all pages at first.
    pub fn initial(mut self, level: Access) -> Self {
        self.initial = level;
        self
    }
    /// Give all pages of a memfd frames now, so that a full system says so here.
    pub fn reserve(mut self, reserve: bool) -> Self {
        self.reserve = reserve;
        self
    }
    /// A handler that runs in the thread that faulted.
    pub fn inline(mut self, handler: impl InlineHandler + 'static) -> Self {
        self.inline = Some(Box::new(handler));
        self
    }
    /// A handler that runs in threads of its own, so many; asked directly, or where the inline one answers `Defer`.
    pub fn deferred(mut self, handler: impl DeferredHandler + 'static, workers: usize) -> Self {
        self.deferred = Some(Box::new(handler));
        self.workers = workers.max(1);
        self
    }
    /// So many buffers of a page each, which handlers may take.
    pub fn pool(mut self, buffers: usize) -> Self {
        self.pool = buffers;
        self
    }
    /// Bytes of the region, as was said.
    pub const fn region_len(&self) -> usize {
        self.len
    }
    /// Bytes of a page, as was said so far.
    pub const fn page_size(&self) -> usize {
        self.page.0
    }
    /// What becomes of a fault that cannot be resolved.
    pub fn on_fail(mut self, on_fail: OnFail) -> Self {
        self.on_fail = on_fail;
        self
    }

    fn memory(&self) -> Memory {
        match (&self.backing, self.adopted) {
            (_, Some(_)) | (Some(Backing::Anon), _) => Memory::Anon,
            (Some(Backing::Memfd), _) => Memory::Memfd,
            (Some(Backing::File { shared: true, .. }), _) => Memory::Shared,
            (Some(Backing::File { shared: false, .. }), _) => Memory::Private,
            (None, None) => {
                let twice = self.needs.without(Needs::DIRTY | Needs::SYSCALLS | Needs::READ_LEVEL);
                let named = matches!(self.backend, Backend::UffdView);
                if twice.is_empty() && !named { Memory::Anon } else { Memory::Memfd }
            }
        }
    }

    /// Build it. The calling thread is attached.
    ///
    /// # Errors
    /// - [`Error::Range`] for a length or page that does not fit.
    /// - [`Error::NoSuchBackend`] if the environment names one that there isn't.
    /// - [`Error::Unsupported`] if no backend gives what is needed, with the reason for each.
    /// - [`Error::HandlerReplaced`] if somebody has replaced the library's signal handlers.
    /// - [`Error::Os`] if memory or threads are refused.
    pub fn build(mut self) -> Result<Region, Error> {
        self.needs = self.needs
            | match self.initial {
                Access::None => Needs::NONE_LEVEL,
                Access::Read => Needs::READ_LEVEL,
                Access::ReadWrite => Needs::NOTHING,
            };
        let unit = self.page.0;
        let fits =
            unit.is_power_of_two() && unit >= sys::BASE && self.len > 0 && self.len.is_multiple_of(unit);
        let aligned = self.adopted.is_none_or(|adopted| adopted.base % sys::BASE == 0);
        if !fits || !aligned || self.len > isize::MAX as usize / 2 {
            return Err(Error::Range);
        }
        dispatch::install()?;
        thread::attach()?;
        if self.backend == Backend::Auto
            && let Some(name) = std::env::var_os("VMPRIM_BACKEND")
        {
            let name = name.to_string_lossy().into_owned();
            self.backend = Backend::named(&name).ok_or(Error::NoSuchBackend { name })?;
        }
        let backend = self.choose()?;
        self.make(backend).map_err(|failed| match failed {
            Failed::Os(op, errno) => Error::Os { op, errno },
            Failed::Start(error) => error,
            Failed::Open(reason) => {
                Error::Unsupported { missing: Needs::NOTHING, tried: vec![(backend, reason)] }
            }
        })
    }

    /// The first backend that gives what is needed and works here.
    fn choose(&self) -> Result<Backend, Error> {
        let memory = self.memory();
        let threads = Backend::UffdThread { threads: self.workers };
        let only_dirty = self.needs.contains(Needs::DIRTY)
            && !self.needs.contains(Needs::READ_LEVEL)
            && !self.needs.contains(Needs::NONE_LEVEL)
            && self.inline.is_none()
            && self.deferred.is_none();
        let mut order = match self.backend {
            Backend::Auto if only_dirty => {
                vec![Backend::AsyncDirty, Backend::UffdView, Backend::UffdWp, Backend::Signal, threads]
            }
            Backend::Auto => {
                vec![Backend::UffdView, Backend::UffdWp, Backend::Signal, threads, Backend::AsyncDirty]
            }
            named => vec![named],
        };
        if self.backend == Backend::Auto && upcall::Calls::find().is_some() {
            order.insert(0, Backend::Native);
        }
        let mut tried = Vec::new();
        let mut given = Needs::NOTHING;
        for backend in order {
            let refusal = match gives(backend, memory) {
                Err(reason) => reason,
                Ok(gives) => match probe::result(backend, memory == Memory::Memfd, self.needs) {
                    Err(reason) => reason,
                    Ok(()) if gives.contains(self.needs) && self.is_met_at_once(backend, memory) => {
                        return Ok(backend);
                    }
                    Ok(()) => {
                        given = given | gives;
                        Reason::Lacks(self.needs.without(gives))
                    }
                },
            };
            tried.push((backend, refusal));
        }
        Err(Error::Unsupported { missing: self.needs.without(given), tried })
    }

    /// The kernel's tracking gives None by signals, which system calls do not get.
    fn is_met_at_once(&self, backend: Backend, memory: Memory) -> bool {
        let both = Needs::NONE_LEVEL | Needs::SYSCALLS;
        !(backend == Backend::AsyncDirty && memory == Memory::Memfd && self.needs.contains(both))
    }

    /// A region of a backend, whatever probes say.
    pub(crate) fn make(self, backend: Backend) -> Result<Region, Failed> {
        let memory = self.memory();
        let (len, initial) = (self.len, self.initial);
        let file = match (memory, self.backing) {
            (Memory::Memfd, _) => Some((sys::memfd(len).map_err(os("memfd_create"))?, 0)),
            (_, Some(Backing::File { file, offset, .. })) => Some((OwnedFd::from(file), offset)),
            _ => None,
        };
        let behind = file.as_ref().map(|(fd, offset)| (fd.as_raw_fd(), *offset));
        let flags = match memory {
            Memory::Memfd | Memory::Shared => libc::MAP_SHARED,
            Memory::Anon | Memory::Private => libc::MAP_PRIVATE,
        } | libc::MAP_NORESERVE;
        let both = libc::PROT_READ | libc::PROT_WRITE;
        let by_mprotect = backend == Backend::Signal;
        let protection = if by_mprotect { signal::protection(initial) } else { both };
        let advise = |mapping: &Mapping| {
            if !self.page.0.is_multiple_of(2 << 20) {
                // SAFETY: a new mapping of ours. A kernel without huge pages refuses, and need not be told.
                let _ = unsafe { sys::madvise(mapping.address, mapping.len, libc::MADV_NOHUGEPAGE) };
            }
            // SAFETY: a new mapping of ours.
            unsafe { sys::madvise(mapping.address, mapping.len, libc::MADV_DONTFORK) }.map_err(os("madvise"))
        };
        let view = match self.adopted {
            Some(_) => None,
            None => Some(Mapping::new(len, protection, flags, behind).map_err(os("mmap"))?),
        };
        let alias = match flags & libc::MAP_SHARED {
            0 => None,
            _ => Some(Mapping::new(len, both, flags, behind).map_err(os("mmap"))?),
        };
        view.iter().chain(&alias).try_for_each(advise)?;
        let base = view.as_ref().map_or(0, |view| view.address);
        let base = self.adopted.map_or(base, |adopted| adopted.base);
        if self.adopted.is_some() && by_mprotect {
            // SAFETY: the program gave the memory to us.
            unsafe { sys::mprotect(base, len, protection) }.map_err(os("mprotect"))?;
        }
        let memfd = if memory == Memory::Memfd { behind.map(|(fd, _)| fd) } else { None };
        let syscalls = self.needs.contains(Needs::SYSCALLS);
        let ground = Ground { base, len, memfd, syscalls, initial };
        let mechanism = mechanism::open(backend, &ground).map_err(Failed::Open)?;
        let all = Span { offset: 0, len };
        if !by_mprotect && memfd.is_none() && initial == Access::Read {
            mechanism.lower(&[all], Access::Read).map_err(os("write protection"))?;
        }
        let pages = len / self.page.0;
        let groups: Box<[Group]> = (0..pages.div_ceil(PAGES)).map(|_| Group::new(initial)).collect();
        let tracks = mechanism.tracks();
        let everything = |word: &sync::primitive::AtomicU32| word.store(u32::MAX, Ordering::Relaxed);
        if initial == Access::ReadWrite && !tracks {
            // Open from the start: any page may have been written when the first set is taken.
            groups.iter().for_each(|group| everything(&group.soft_dirty));
        }
        // A system call gets no signal.
        let at_once = syscalls && tracks && mechanism.creates();
        if (self.reserve || at_once)
            && let Some(file) = memfd
        {
            sys::allocate(file, 0, len).map_err(os("fallocate"))?;
            if mechanism.creates() {
                groups.iter().for_each(|group| everything(&group.born));
            }
        }
        if at_once && memfd.is_some() && initial == Access::ReadWrite {
            // Every page has its entry from the start.
            mechanism
                .reinstall(all, initial)
                .map_err(|_| Failed::Os("UFFDIO_CONTINUE", Errno(libc::EFAULT)))?;
        }
        if mechanism.splits() {
            budget::recount();
        }
        let pool = match self.pool {
            0 => None,
            count => Some(pool::Pool::new(count, self.page.0).map_err(os("mmap"))?),
        };
        static IDS: AtomicU64 = AtomicU64::new(1);
        let can = gives(backend, memory).map_err(Failed::Open)?;
        let threads = match backend {
            Backend::UffdThread { threads } => threads.max(1),
            _ => self.workers,
        };
        let inner = Inner {
            // Relaxed: any number once.
            id: RegionId(IDS.fetch_add(1, Ordering::Relaxed)),
            base,
            len,
            shift: self.page.0.trailing_zeros(),
            pages,
            groups,
            splits: mechanism.splits(),
            tracks,
            resumes: mechanism.resumes(),
            keeps_written: mechanism.keeps_written(),
            creates: mechanism.creates(),
            mechanism,
            backend,
            has_none: can.contains(Needs::NONE_LEVEL),
            has_read: can.contains(Needs::READ_LEVEL),
            inline: self.inline,
            deferred: self.deferred.map(deferred::Queue::new),
            on_fail: self.on_fail,
            poisoned: AtomicI64::new(0),
            probing: self.probing,
            generation: dispatch::generation(),
            pins: Mutex::default(),
            pool,
            alias,
            view,
            file: file.map(|(fd, _)| fd),
        };
        Region::start(inner, threads).map_err(Failed::Start)
    }
}

/// Why a region was not made.
#[derive(Debug)]
pub enum Failed {
    Os(&'static str, Errno),
    Open(Reason),
    Start(Error),
}

fn os(op: &'static str) -> impl Fn(Errno) -> Failed {
    move |errno| Failed::Os(op, errno)
}
