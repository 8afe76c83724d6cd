//! Opening a region with its images, and checkpoints of it.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    os::fd::AsRawFd,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, atomic::Ordering},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use sync::mutant;
use vmprim::{Access, Builder, Needs, PageNo, PageRange, PageSet, Region};

use crate::{
    chain::{self, Found, Link},
    disk::{Disk, Folder},
    error::{Error, io},
    fold,
    format::{Codec, Header},
    gate::Gate,
    precopy,
    trap::{Handler, Trap},
    write::{UNFINISHED, Writer, name},
};

/// How pages are copied while threads write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Close the pages that were written; the first write to one that is not copied yet copies it.
    #[default]
    Trap,
    /// Copy in rounds, and what is written meanwhile once more.
    PreCopy,
}

/// How a region is kept.
#[derive(Clone, Copy, Debug)]
pub struct SnapConfig {
    /// How pages are copied.
    pub mode: Mode,
    /// Bytes for copies of pages that are not written yet; at least a page.
    pub pool: usize,
    /// How pages are stored.
    pub codec: Codec,
}

impl Default for SnapConfig {
    /// Traps, 16 MiB, pages as they are.
    fn default() -> Self {
        Self { mode: Mode::Trap, pool: 16 << 20, codec: Codec::None }
    }
}

/// What was found when the region was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The number of the cut.
    pub epoch: u64,
    /// What the program gave with it.
    pub state: Vec<u8>,
}

/// A checkpoint that is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cut {
    /// Its number.
    pub epoch: u64,
    /// Whether all pages were written, not only those that changed.
    pub is_base: bool,
    /// Different pages that were written.
    pub pages: usize,
    /// Bytes that were written.
    pub bytes: u64,
    /// Rounds before the cut: of closing pages, or of copying them.
    pub rounds: u32,
    /// How long operations could not begin: waiting for those in progress, and the cut.
    pub pause: Duration,
    /// The cut alone.
    pub cut: Duration,
    /// From the call to the end.
    pub took: Duration,
    /// How often a write waited for a buffer, or for the copier to complete a copy.
    pub waits: u64,
}

/// What folds have cost until now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Folds {
    /// Bases that were made.
    pub count: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// How long they took, one after the other.
    pub took: Duration,
    /// Processor time of that.
    pub busy: Duration,
}

/// What a checkpoint has taken upon itself.
#[derive(Debug, Default)]
pub struct Taken {
    pub pages: PageSet,
    pub state: Vec<u8>,
    pub rounds: u32,
    pub pause: Duration,
    pub cut: Duration,
}

/// What is known of the files.
#[derive(Debug, Default)]
struct Files {
    /// The newest image's chain, its base first.
    chain: Vec<Link>,
    /// The greatest epoch that was ever used.
    newest: u64,
    /// The next checkpoint is to be a base: a file of the chain was found damaged.
    wants_base: bool,
    /// A fold is running.
    folding: bool,
    /// Bytes of deltas up to which there is no fold, after one has failed.
    patience: u64,
    warnings: Vec<String>,
    folds: Folds,
}

/// What a fold shares with checkpoints.
struct Shared {
    disk: Box<dyn Disk>,
    files: Mutex<Files>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Shared {
    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A region that is kept in images.
#[derive(Debug)]
pub struct Snap {
    region: Region,
    config: SnapConfig,
    trap: Option<Arc<Trap>>,
    shared: Arc<Shared>,
    restored: Option<Restored>,
    /// Held by a checkpoint; pages that one that failed has taken.
    carried: Mutex<PageSet>,
    fold: Mutex<Option<JoinHandle<()>>>,
}

impl Snap {
    /// A region, and the newest image of the folder in it; zeros if there are no images. The builder says the
    /// region's size, page size and backend; levels, handlers, needs and pool are set here.
    ///
    /// # Errors
    /// - [`Error::InUse`] if another process has the folder open, [`Error::Io`] if it cannot be used.
    /// - [`Error::NothingWhole`] if there are images and none can be restored.
    /// - [`Error::OtherMemory`] if the newest image is of another size.
    /// - [`Error::Memory`] if the region is refused.
    pub fn open(folder: impl AsRef<Path>, region: Builder, config: SnapConfig) -> Result<Self, Error> {
        Self::open_on(Folder::open(folder)?, region, config)
    }

    /// The same, on a disk that need not be a folder.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_on(disk: impl Disk + 'static, region: Builder, config: SnapConfig) -> Result<Self, Error> {
        let disk: Box<dyn Disk> = Box::new(disk);
        let (len, page) = (region.region_len(), region.page_size());
        let pages = len / page;
        if u32::try_from(pages).is_err() {
            return Err(Error::TooManyPages);
        }
        let Found { chain, state, warnings, newest } = chain::find(&*disk)?;
        if let Some(Link { name, header, .. }) = chain.last()
            && (header.region, header.page as usize) != (len as u64, page)
        {
            let has = (header.region, header.page);
            return Err(Error::OtherMemory { file: name.clone(), has, region: (len as u64, page as u32) });
        }
        for name in disk.list().map_err(io("cannot list the images"))? {
            if name.ends_with(UNFINISHED) {
                disk.remove(&name).map_err(io(format!("cannot remove {name}")))?;
            }
        }
        let region = region.need(Needs::ALIAS | Needs::DIRTY);
        let (region, trap, level) = match config.mode {
            Mode::PreCopy => (region.build()?, None, Access::ReadWrite),
            Mode::Trap => {
                let buffers = (config.pool / page).max(1);
                let trap = Arc::new(Trap::new(pages, buffers));
                let region = region.need(Needs::READ_LEVEL).pool(buffers).inline(Handler(trap.clone()));
                // Closed at first, so that each page's first write is noted.
                (region.initial(Access::None).build()?, Some(trap), Access::Read)
            }
        };
        let alias = region.alias()?;
        let mut there = PageSet::new();
        let mut result = Ok(());
        chain::pages(&*disk, &chain, |page_no, contents| {
            if result.is_ok() {
                result = alias.write_from(page_no as usize * page, contents);
            }
            there.insert(PageNo(page_no as usize));
        })?;
        result?;
        // Entries for what was restored, by few calls instead of a fault each: where there is no level None, faults do.
        let is_closed = trap.is_some() || region.protect(0..pages, Access::None).is_ok();
        for run in there.runs().into_iter().filter(|_| is_closed) {
            region.unprotect(run, level)?;
        }
        if trap.is_none() {
            // From here on: what is there is in the image.
            region.take_dirty(0..pages, &mut PageSet::new())?;
        }
        let restored = chain.last().map(|link| Restored { epoch: link.header.epoch, state });
        let files = Files { chain, newest, warnings, ..Files::default() };
        Ok(Self {
            region,
            config,
            trap,
            shared: Arc::new(Shared { disk, files: Mutex::new(files) }),
            restored,
            carried: Mutex::default(),
            fold: Mutex::default(),
        })
    }

    /// The region. Its levels are this crate's: do not raise or lower pages.
    pub const fn region(&self) -> &Region {
        &self.region
    }

    /// What was restored; `None` if there was no image.
    pub const fn restored(&self) -> Option<&Restored> {
        self.restored.as_ref()
    }

    /// What is to be told of damaged files and of folds that failed, once.
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.files().warnings)
    }

    /// What folds have cost since the region was opened.
    pub fn folds(&self) -> Folds {
        self.shared.files().folds
    }

    /// Make the region's state at one moment durable, and with it the bytes that `state` adds; returns when it is.
    /// `state` is called in the cut, while no thread is in the gate, and must not enter it.
    ///
    /// # Errors
    /// - [`Error::Busy`] if another checkpoint is running.
    /// - [`Error::Io`] if the image cannot be written: the one before is the newest still, and what changed is part
    ///   of the next.
    /// - [`Error::Memory`] if pages cannot be protected, for instance pinned ones. So in this case.
    pub fn checkpoint(&self, gate: &Gate, state: impl FnOnce(&mut Vec<u8>)) -> Result<Cut, Error> {
        let mut carried = match self.carried.try_lock() {
            Ok(carried) => carried,
            Err(TryLockError::WouldBlock) => return Err(Error::Busy),
            Err(TryLockError::Poisoned(poisoned)) => {
                // A program's `state` has panicked, and what that checkpoint had taken is not known: write all.
                self.shared.files().wants_base = true;
                self.carried.clear_poison();
                poisoned.into_inner()
            }
        };
        let begin = Instant::now();
        let (header, mut more) = self.begin()?;
        carried.iter().for_each(|page| more.insert(page));
        let disk = &*self.shared.disk;
        let mut writer = Writer::new(disk, header);
        let waited = self.waits();
        let mut taken = Taken::default();
        let result = match &self.trap {
            Some(trap) => trap.cut(&self.region, gate, more, state).and_then(|cut| {
                taken = cut;
                trap.copy(&self.region, &taken.pages, &mut writer)
            }),
            None => {
                let room = self.config.pool.max(self.region.page_size());
                precopy::checkpoint(&self.region, gate, more, room, &mut writer, &mut taken, state)
            }
        };
        let pages = &taken.pages;
        let written = result.and_then(|()| {
            let what = format!("cannot write the image of epoch {}", header.epoch);
            writer.finish(disk, &taken.state).map_err(io(what))
        });
        let bytes = match written {
            Ok(bytes) => bytes,
            Err(error) => {
                if !mutant!("snap-failed-forgotten") {
                    pages.iter().for_each(|page| carried.insert(page));
                }
                return Err(error);
            }
        };
        carried.clear();
        self.end(Link { name: name(&header), header, length: bytes });
        Ok(Cut {
            epoch: header.epoch,
            is_base: header.parent.is_none(),
            pages: pages.len(),
            bytes,
            rounds: taken.rounds,
            pause: taken.pause,
            cut: taken.cut,
            took: begin.elapsed(),
            waits: self.waits() - waited,
        })
    }

    fn waits(&self) -> u64 {
        // Relaxed: a count.
        self.trap.as_ref().map_or(0, |trap| trap.waits.load(Ordering::Relaxed))
    }

    /// The next image's header, and the pages that it has besides those written.
    fn begin(&self) -> Result<(Header, PageSet), Error> {
        let mut files = self.shared.files();
        files.newest += 1;
        let parent = files.chain.last().filter(|_| !files.wants_base);
        let parent = parent.map(|link| (link.header.epoch, link.header.id));
        // Not the pages that were written, but all that there are.
        let more = if files.wants_base { present(&self.region)? } else { PageSet::new() };
        let id = RandomState::new().build_hasher().finish();
        let header = Header {
            codec: self.config.codec,
            page: self.region.page_size() as u32,
            region: self.region.len() as u64,
            epoch: files.newest,
            id,
            parent,
        };
        Ok((header, more))
    }

    /// An image is durable.
    fn end(&self, link: Link) {
        let mut files = self.shared.files();
        if link.header.parent.is_none() {
            let before = files.chain.first().map_or(0, |base| base.header.epoch);
            files.chain.clear();
            files.wants_base = false;
            retire(&*self.shared.disk, before);
        }
        files.chain.push(link);
        let base = files.chain.first().map_or(0, |base| base.length);
        let deltas: u64 = files.chain.iter().skip(1).map(|delta| delta.length).sum();
        if deltas > base.max(files.patience) && !files.folding && !files.wants_base {
            files.folding = true;
            let (shared, chain) = (self.shared.clone(), files.chain.clone());
            let spawned = std::thread::Builder::new()
                .name("snap-fold".to_owned())
                .spawn(move || fold_in_background(&shared, &chain));
            let mut handle = self.fold.lock().unwrap_or_else(PoisonError::into_inner);
            match spawned {
                Ok(new) => *handle = Some(new),
                // Tried again after the next checkpoint.
                Err(_) => files.folding = false,
            }
        }
    }

    /// Wait for a fold that may be running.
    pub fn finish_folding(&self) {
        let handle = self.fold.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A panic was printed, and left the files as they were.
        let _ = handle.map(JoinHandle::join);
    }
}

impl Drop for Snap {
    fn drop(&mut self) {
        self.finish_folding();
    }
}

/// Of the calling thread.
fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is valid.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
}

fn fold_in_background(shared: &Shared, chain: &[Link]) {
    // Others go first: a fold has time.
    // SAFETY: a call without pointers; 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
    let begin = Instant::now();
    let result = fold::fold(&*shared.disk, chain);
    let (took, busy) = (begin.elapsed(), processor_time());
    // If a file is damaged, memory is the only whole copy, and all of it is to be written. On a full disk the chain
    // is as it was.
    let is_damaged = result.is_err() && {
        let epoch = |chain: &[Link]| chain.last().map(|link| link.header.epoch);
        chain::find(&*shared.disk).map_or(true, |found| epoch(&found.chain) < epoch(chain))
    };
    let mut files = shared.files();
    files.folding = false;
    match result {
        Ok(link) => {
            files.folds.count += 1;
            files.folds.bytes += link.length;
            files.folds.took += took;
            files.folds.busy += busy;
            let before = chain.first().map_or(0, |base| base.header.epoch);
            let at = files.chain.iter().position(|other| other.header.epoch == link.header.epoch);
            // Unless there is a newer base meanwhile.
            if let Some(at) = at {
                files.chain.splice(..=at, [link]);
                files.patience = 0;
                retire(&*shared.disk, before);
            }
        }
        Err(reason) => {
            files.patience = 2 * chain.iter().map(|link| link.length).sum::<u64>();
            files.wants_base = is_damaged;
            files.warnings.push(format!("images could not be folded: {reason}"));
        }
    }
}

/// Remove what is older than the base of epoch `base`, and the delta of that epoch. What cannot be removed is tried
/// again next time.
fn retire(disk: &dyn Disk, base: u64) {
    for name in disk.list().unwrap_or_default() {
        if chain::parse(&name).is_some_and(|(epoch, is_base)| epoch < base || epoch == base && !is_base) {
            let _ = disk.remove(&name);
        }
    }
}

/// The pages of the region that have frames.
fn present(region: &Region) -> Result<PageSet, Error> {
    let mut pages = PageSet::new();
    let Some(file) = region.file() else {
        (0..region.pages()).for_each(|page| pages.insert(PageNo(page)));
        return Ok(pages);
    };
    // SAFETY: both calls change nothing but the position, which nobody uses.
    let seek = |from: usize, to| unsafe { libc::lseek(file.as_raw_fd(), from as libc::off_t, to) };
    let (mut at, size) = (0, region.page_size());
    while at < region.len() {
        let Ok(start) = usize::try_from(seek(at, libc::SEEK_DATA)) else {
            let error = std::io::Error::last_os_error();
            // No data from there on.
            return if error.raw_os_error() == Some(libc::ENXIO) {
                Ok(pages)
            } else {
                Err(io("cannot look for pages")(error))
            };
        };
        let end = usize::try_from(seek(start, libc::SEEK_HOLE)).unwrap_or(region.len()).min(region.len());
        let range: PageRange = (start / size..end.div_ceil(size)).into();
        (range.start.0..range.end()).for_each(|page| pages.insert(PageNo(page)));
        at = end;
    }
    Ok(pages)
}
