//! `epoll`: a set of files to wait for, that says which have become ready.
//!
//! # Claim
//! A wait costs what has changed, not what is watched; no change is lost; and closing a file waits for no epoll.
//!
//! # The idea
//! Each watched file is an [`Item`]. It is a watcher on the file's wait queues (`wait.rs`): whenever the file wakes its
//! sleepers, it also puts the item into the epoll's *ready list*, unless it is there, and wakes who waits on that. A
//! wait takes items from the list, and asks each file what it can do *now*: the list is a hint, the answer is the
//! truth. A file that has nothing to tell drops out of the list. One that has is reported and then
//!
//! ```text
//!   level       goes to the end of the list: the next wait asks it again
//!   EPOLLET     drops out until the file's next wake
//!   ONESHOT     drops out, and tells nothing until EPOLL_CTL_MOD
//! ```
//! *Nothing is lost*: an item leaves the list before its file is asked. A change that the answer didn't show comes after
//! the answer, and so finds the item outside of the list and enters it again. Adding and modifying register first, and
//! ask afterwards.
//!
//! # Who holds whom
//! ```text
//!   Epoll --> items --> Item --> Ready (list, sleepers)         OpenFile ..> Item (weak)
//!                        ^          |                            its queues --> Item
//!                        +----------+ while in the list          Item ..> OpenFile, Epoll (weak)
//! ```
//! A file that is closed takes its items out of its queues; the epoll finds the dead ones when it meets them.
//!
//! A wake may come in an interrupt, with the file's queue locked: it must neither free anything nor take memory. It
//! uses the item and the ready list only, both held by the queue; and the list has room for every item, since room is
//! made when an item is added and each is in it at most once.
//!
//! # Locks
//! `items` (sleeping) is held to add, change, remove and collect; [`NESTING`] (sleeping) before it, to add an epoll to
//! an epoll. A file's queue, then the ready list, then the epoll's own queue (spinning): an epoll in an epoll makes
//! that a chain, which ends since rings are refused.
//!
//! Source: epoll(7), and Linux's fs/eventpoll.c for the limits.

use alloc::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Weak},
    task::Wake,
    vec::Vec,
};
use core::{
    sync::atomic::{AtomicUsize, Ordering},
    task::Waker,
};

use linux_raw_sys::general as c;
use sync::{RwLock, SpinLock};

use super::{
    Result,
    open::OpenFile,
    poll::{Events, Readiness},
    special::Special,
};
use crate::{
    errno::Errno,
    hw::{self, irq},
    memory, task,
    wait::{WaitQueue, Woken},
};

/// The most edges in a chain of epolls that watch one another (Linux's EP_MAX_NESTS).
const MAX_NESTS: usize = 4;
/// The most items on the machine, as Linux's /proc/sys/fs/epoll/max_user_watches bounds them.
const MAX_ITEMS: usize = 1 << 18;
/// Flags that are not events.
const FLAGS: u32 = c::EPOLLET | c::EPOLLONESHOT | c::EPOLLWAKEUP | c::EPOLLEXCLUSIVE;
/// What may go with EPOLLEXCLUSIVE.
const EXCLUSIVE_OK: u32 =
    c::EPOLLIN | c::EPOLLOUT | c::EPOLLERR | c::EPOLLHUP | c::EPOLLWAKEUP | c::EPOLLET | c::EPOLLEXCLUSIVE;
/// Told whether asked for or not.
const ALWAYS: u32 = c::EPOLLERR | c::EPOLLHUP;

/// Items that exist.
static ITEMS: AtomicUsize = AtomicUsize::new(0);
/// Held while the graph of epolls is looked at or gets an edge.
static NESTING: RwLock<()> = RwLock::new(());

/// What a program wants to know of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Interest {
    /// `EPOLLIN` and so on, with the flags.
    pub events: u32,
    /// Given back with each report.
    pub data: u64,
}

impl Interest {
    fn with_always(self) -> Self {
        Self { events: self.events | ALWAYS, ..self }
    }
    fn has(self, flag: u32) -> bool {
        self.events & flag != 0
    }
}

/// Which item: the descriptor as it was when added, and the address of the open file, which stays its own as long as
/// the item is there.
type Key = (i32, usize);

fn key(fd: i32, file: &Arc<OpenFile>) -> Key {
    (fd, Arc::as_ptr(file).addr())
}

/// Items with something to tell, perhaps, and who waits for them.
struct Ready {
    list: irq::Lock<VecDeque<Arc<Item>>>,
    waiters: WaitQueue,
}

impl Ready {
    /// Put `item` at the end unless it is in the list. From any context.
    fn push(&self, item: &Arc<Item>) {
        let mut list = self.list.lock();
        if !item.queued.replace_under(&mut list, true) {
            list.push_back(item.clone());
        }
    }

    fn pop(&self) -> Option<Arc<Item>> {
        let mut list = self.list.lock();
        let item = list.pop_front()?;
        item.queued.replace_under(&mut list, false);
        Some(item)
    }

    fn len(&self) -> usize {
        self.list.lock().len()
    }

    /// Make room for `room` items. ENOMEM.
    fn reserve(&self, room: usize) -> Result<()> {
        if self.list.lock().capacity() >= room {
            return Ok(());
        }
        // Memory is got, and given back, with the lock free.
        let mut spare = VecDeque::new();
        spare.try_reserve(room.next_power_of_two()).map_err(|_| Errno::ENOMEM)?;
        {
            let mut list = self.list.lock();
            spare.append(&mut list);
            core::mem::swap(&mut spare, &mut list);
        }
        Ok(())
    }

    fn remove(&self, item: &Arc<Item>) {
        let taken = {
            let mut list = self.list.lock();
            let at = list.iter().position(|i| Arc::ptr_eq(i, item));
            item.queued.replace_under(&mut list, false);
            at.and_then(|at| list.remove(at))
        };
        drop(taken);
    }
}

/// Whether an item is in its ready list; the list's lock guards it.
struct Queued(core::sync::atomic::AtomicBool);

impl Queued {
    /// Set it, and say what it was. The list is the proof that its lock is held.
    fn replace_under(&self, _list: &mut VecDeque<Arc<Item>>, now: bool) -> bool {
        // Relaxed: every access is under the list's lock.
        self.0.swap(now, Ordering::Relaxed)
    }
}

/// A watched file.
pub struct Item {
    file: Weak<OpenFile>,
    epoll: Weak<Epoll>,
    ready: Arc<Ready>,
    interest: SpinLock<Interest>,
    queued: Queued,
}

/// The file has changed.
impl Wake for Item {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.push(self);
        self.ready.waiters.wake_all();
    }
}

impl Drop for Item {
    fn drop(&mut self) {
        // Relaxed: a count.
        ITEMS.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Item {
    fn waker(self: &Arc<Self>) -> Waker {
        Waker::from(self.clone())
    }

    fn interest(&self) -> Interest {
        *self.interest.lock()
    }

    /// What there is to tell of `file`, this item's, now.
    fn events(&self, file: &OpenFile) -> u32 {
        u32::from(file.readiness().events.with_synonyms().bits()) & self.interest().events & !FLAGS
    }

    /// Watch the queues of `file` that matter for the interest.
    fn register(self: &Arc<Self>, file: &OpenFile) -> Result<()> {
        const WRITES: u32 = c::EPOLLOUT | c::EPOLLWRNORM | c::EPOLLWRBAND;
        let wanted = self.interest().events & !(FLAGS | ALWAYS);
        let [reads, writes] = file.readiness().queues;
        // Errors and hang-ups are told by either queue; reads are watched unless only writes matter.
        let read = reads.filter(|_| wanted & !WRITES != 0 || wanted & WRITES == 0 || writes.is_none());
        let write = writes.filter(|_| wanted & WRITES != 0 || reads.is_none());
        for queue in [read, write].into_iter().flatten() {
            if let Err(e) = queue.watch(self.waker()) {
                self.unregister(file);
                return Err(e);
            }
        }
        Ok(())
    }

    /// Take the item out of the queues of `file`.
    pub fn unregister(self: &Arc<Self>, file: &OpenFile) {
        let waker = self.waker();
        file.readiness().queues.into_iter().flatten().for_each(|q| q.unwatch(&waker));
    }
}

/// Items as the open file knows them.
pub type Watches = SpinLock<Vec<Weak<Item>>>;

/// An epoll.
pub struct Epoll {
    items: RwLock<BTreeMap<Key, Arc<Item>>>,
    ready: Arc<Ready>,
    /// What it is open as.
    file: SpinLock<Weak<OpenFile>>,
}

impl Epoll {
    /// One that watches nothing, opened. ENOMEM.
    pub fn open() -> Result<Arc<OpenFile>> {
        let ready = Ready { list: irq::Lock::new(VecDeque::new()), waiters: WaitQueue::new() };
        let epoll = Arc::new(Self {
            items: RwLock::new(BTreeMap::new()),
            ready: Arc::new(ready),
            file: SpinLock::new(Weak::new()),
        });
        let file = Special::Epoll(epoll.clone()).open(c::O_RDWR)?;
        *epoll.file.lock() = Arc::downgrade(&file);
        Ok(file)
    }

    /// If `file` has something to tell by now, say so.
    fn announce(item: &Arc<Item>, file: &OpenFile) {
        if item.events(file) != 0 {
            item.wake_by_ref();
        }
    }

    /// EPOLL_CTL_ADD of `file`, open as `fd`. EEXIST, ELOOP, ENOSPC, ENOMEM.
    pub fn add(self: &Arc<Self>, fd: i32, file: &Arc<OpenFile>, interest: Interest) -> Result<()> {
        let ctx = task::unpinned();
        let inner = match file.special() {
            Some(Special::Epoll(inner)) => Some(inner),
            _ => None,
        };
        if interest.has(c::EPOLLEXCLUSIVE) && (interest.events & !EXCLUSIVE_OK != 0 || inner.is_some()) {
            return Err(Errno::EINVAL);
        }
        // An edge at either end of a chain may make it too long.
        let nesting = inner.is_some().then(|| NESTING.write(&ctx));
        if let Some(inner) = inner {
            let below = inner.depth_below(self, 0).ok_or(Errno::ELOOP)?;
            if below + 1 + self.depth_above(0) > MAX_NESTS {
                return Err(Errno::ELOOP);
            }
        }
        let mut items = self.items.write(&ctx);
        let key = key(fd, file);
        if items.contains_key(&key) {
            return Err(Errno::EEXIST);
        }
        if memory::frames().low() {
            return Err(Errno::ENOMEM);
        }
        // Relaxed: a count; the item's drop takes it back.
        if ITEMS.fetch_add(1, Ordering::Relaxed) >= MAX_ITEMS {
            ITEMS.fetch_sub(1, Ordering::Relaxed);
            return Err(Errno::ENOSPC);
        }
        let item = Arc::new(Item {
            file: Arc::downgrade(file),
            epoll: Arc::downgrade(self),
            ready: self.ready.clone(),
            interest: SpinLock::new(interest.with_always()),
            queued: Queued(core::sync::atomic::AtomicBool::new(false)),
        });
        // Those whose files were closed since are forgotten before the map would double.
        if items.len().is_power_of_two() {
            items.retain(|_, item| item.file.strong_count() > 0);
        }
        // Room for all items in the list, here where there may be an error; dead ones may still be in it.
        self.ready.reserve(items.len().max(self.ready.len()) + 1)?;
        file.watched_by(&item)?;
        if let Err(e) = item.register(file) {
            file.unwatched_by(&item);
            return Err(e);
        }
        items.insert(key, item.clone());
        Self::announce(&item, file);
        drop(items);
        drop(nesting);
        Ok(())
    }

    /// EPOLL_CTL_MOD. ENOENT, EINVAL if EPOLLEXCLUSIVE was or would be set.
    pub fn modify(&self, fd: i32, file: &Arc<OpenFile>, interest: Interest) -> Result<()> {
        let items = self.items.write(&task::unpinned());
        let item = items.get(&key(fd, file)).ok_or(Errno::ENOENT)?;
        if interest.has(c::EPOLLEXCLUSIVE) || item.interest().has(c::EPOLLEXCLUSIVE) {
            return Err(Errno::EINVAL);
        }
        item.unregister(file);
        *item.interest.lock() = interest.with_always();
        // There was room for it in the queues just now, which have not been given back.
        item.register(file)?;
        Self::announce(item, file);
        Ok(())
    }

    /// EPOLL_CTL_DEL. ENOENT.
    pub fn delete(&self, fd: i32, file: &Arc<OpenFile>) -> Result<()> {
        let item = {
            let mut items = self.items.write(&task::unpinned());
            items.remove(&key(fd, file)).ok_or(Errno::ENOENT)?
        };
        item.unregister(file);
        file.unwatched_by(&item);
        self.ready.remove(&item);
        Ok(())
    }

    /// The epolls that this one watches.
    fn inner(&self) -> Vec<Arc<OpenFile>> {
        let items: Vec<_> = self.items.read(&task::unpinned()).values().cloned().collect();
        let files = items.iter().filter_map(|i| i.file.upgrade());
        files.filter(|f| matches!(f.special(), Some(Special::Epoll(_)))).collect()
    }

    /// The longest chain of edges below this epoll; None if `avoid` is in one or it is too long to be looked at.
    fn depth_below(self: &Arc<Self>, avoid: &Arc<Epoll>, at: usize) -> Option<usize> {
        if Arc::ptr_eq(self, avoid) || at > MAX_NESTS {
            return None;
        }
        let mut depth = 0;
        for file in self.inner() {
            if let Some(Special::Epoll(epoll)) = file.special() {
                depth = depth.max(1 + epoll.depth_below(avoid, at + 1)?);
            }
        }
        Some(depth)
    }

    /// The longest chain of edges above this epoll, as far as it is looked at.
    fn depth_above(&self, at: usize) -> usize {
        let Some(file) = self.file.lock().upgrade().filter(|_| at <= MAX_NESTS) else { return 0 };
        let outer = file.watches();
        let depth = |item: &Arc<Item>| item.epoll.upgrade().map(|epoll| 1 + epoll.depth_above(at + 1));
        outer.iter().filter_map(depth).max().unwrap_or(0)
    }

    /// Take up to `most` reports, giving each to `put`. An error of `put` ends it, and counts only if nothing went.
    fn collect(&self, most: usize, put: &mut impl FnMut(usize, Interest) -> Result<()>) -> Result<usize> {
        let ctx = task::unpinned();
        let _items = self.items.write(&ctx);
        let mut done = 0;
        // What enters the list meanwhile is for the next time.
        for _ in 0..self.ready.len() {
            if done == most {
                break;
            }
            let Some(item) = self.ready.pop() else { break };
            let Some(file) = item.file.upgrade() else { continue };
            let events = item.events(&file);
            if events != 0 {
                let interest = item.interest();
                if let Err(e) = put(done, Interest { events, data: interest.data }) {
                    self.ready.push(&item);
                    return super::io::moved(done, 1, e);
                }
                done += 1;
                if interest.has(c::EPOLLONESHOT) {
                    item.interest.lock().events &= FLAGS;
                } else if !interest.has(c::EPOLLET) {
                    self.ready.push(&item);
                }
            }
        }
        Ok(done)
    }

    /// Wait until something is ready or `deadline` (ns since boot) has passed: the number of reports given to `put`, at
    /// most `most`. EINTR.
    pub fn wait(
        &self,
        most: usize,
        deadline: Option<u64>,
        mut put: impl FnMut(usize, Interest) -> Result<()>,
    ) -> Result<usize> {
        loop {
            let n = self.collect(most, &mut put)?;
            if n > 0 || deadline.is_some_and(|d| d <= hw::timer::now()) {
                return Ok(n);
            }
            let changed = || (self.ready.len() > 0).then_some(());
            match self.ready.waiters.wait(deadline, true, changed) {
                Ok(()) => {}
                Err(Woken::TimedOut) => return self.collect(most, &mut put),
                Err(Woken::Interrupted) => return Err(Errno::EINTR),
            }
        }
    }

    /// Whether an epoll or a poll that watches this one finds something: IN if a file is ready.
    pub fn readiness(&self) -> Readiness<'_> {
        let list: Vec<Arc<Item>> = self.ready.list.lock().iter().cloned().collect();
        let ready = list.iter().any(|item| item.file.upgrade().is_some_and(|file| item.events(&file) != 0));
        let events = if ready { Events::IN } else { Events::empty() };
        Readiness { events, queues: [Some(&self.ready.waiters), None] }
    }
}

impl Drop for Epoll {
    fn drop(&mut self) {
        for item in core::mem::take(self.items.get_mut()).into_values() {
            if let Some(file) = item.file.upgrade() {
                item.unregister(&file);
                file.unwatched_by(&item);
            }
        }
        // Items hold the list, and it holds them.
        let left = core::mem::take(&mut *self.ready.list.lock());
        drop(left);
    }
}
