//! Where objects are: from an address to its slot and back.
//!
//! ```text
//! reservation (one mapping):   class 0          class 1                   …
//!   of a class of k pages:     [guard][k pages][guard][k pages][guard] …
//!   an object in its slot:     [unused … pattern | object | slack][guard]
//! ```
//! A guard is the right one of a slot and the left one of the next. Slots are carved in order; a guard is made when
//! its slot is.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use crate::stack::Stack;

pub const PAGE: usize = 4096;
/// Bytes of addresses of a class.
const SHARE: usize = 1 << 35;
/// Classes of 1 to 16 pages, then of powers of two.
pub const CLASSES: usize = 16 + 8;
/// Bytes of what is known of a class's slots.
const RECORDS: usize = SHARE / (2 * PAGE) * size_of::<Slot>();

/// States of a slot; 0 if it never held an object.
pub const LIVE: u32 = 1;
pub const FREED: u32 = 2;

/// What is known of a slot. Zeros at first.
#[derive(Debug)]
#[repr(C)]
pub struct Slot {
    pub size: AtomicUsize,
    /// Bytes from the slot's start to the object.
    pub offset: AtomicUsize,
    pub state: AtomicU32,
    /// Threads, by number.
    pub allocated_by: AtomicU32,
    pub freed_by: AtomicU32,
    /// The next in a list, plus one.
    next: AtomicU32,
    /// Where that was, if stacks are noted.
    pub allocated_at: Stack,
    pub freed_at: Stack,
}

/// Slots of a class that are not live. All under `lock`.
#[derive(Debug)]
struct Lists {
    lock: AtomicBool,
    carved: AtomicU32,
    free: AtomicU32,
    /// First in, first out.
    oldest: AtomicU32,
    newest: AtomicU32,
    quarantined: AtomicU32,
}

impl Lists {
    const fn new() -> Self {
        Self {
            lock: AtomicBool::new(false),
            carved: AtomicU32::new(0),
            free: AtomicU32::new(0),
            oldest: AtomicU32::new(0),
            newest: AtomicU32::new(0),
            quarantined: AtomicU32::new(0),
        }
    }
}

static LISTS: [Lists; CLASSES] = [const { Lists::new() }; CLASSES];
static OBJECTS: AtomicUsize = AtomicUsize::new(0);
static RECORD: AtomicUsize = AtomicUsize::new(0);
/// 0 not tried, 1 being made, 2 there, 3 refused.
static STATE: AtomicU32 = AtomicU32::new(0);

/// A slot: its class and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub class: usize,
    pub number: u32,
}

/// Pages of a class's slots.
pub const fn pages(class: usize) -> usize {
    if class < 16 { class + 1 } else { 1 << (class - 16 + 5) }
}

/// The class for so many pages.
pub fn class_of(wanted: usize) -> Option<usize> {
    match wanted {
        0 => Some(0),
        1..=16 => Some(wanted - 1),
        _ => {
            let class = 16 + (wanted.next_power_of_two().trailing_zeros() as usize).checked_sub(5)?;
            (class < CLASSES).then_some(class)
        }
    }
}

fn map(len: usize) -> Option<usize> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: no fixed address.
    let at =
        unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    (at != libc::MAP_FAILED).then_some(at as usize)
}

/// The reservation, made at first use.
pub fn ready() -> bool {
    loop {
        // Acquire: pairs with Release below; the addresses are there.
        match STATE.load(Ordering::Acquire) {
            2 => return true,
            3 => return false,
            0 if STATE.compare_exchange(0, 1, Ordering::Relaxed, Ordering::Relaxed).is_ok() => {
                let made = map(CLASSES * SHARE).zip(map(CLASSES * RECORDS));
                if let Some((objects, records)) = made {
                    // SAFETY: our own mapping.
                    unsafe { libc::madvise(objects as *mut _, CLASSES * SHARE, libc::MADV_NOHUGEPAGE) };
                    OBJECTS.store(objects, Ordering::Relaxed);
                    RECORD.store(records, Ordering::Relaxed);
                }
                // Release: pairs with Acquire above.
                STATE.store(if made.is_some() { 2 } else { 3 }, Ordering::Release);
            }
            _ => std::hint::spin_loop(),
        }
    }
}

impl Place {
    /// Where the slot starts.
    pub fn start(self) -> usize {
        let stride = (pages(self.class) + 1) * PAGE;
        // Relaxed: set before anything has a place.
        OBJECTS.load(Ordering::Relaxed) + self.class * SHARE + PAGE + self.number as usize * stride
    }
    /// Bytes of it.
    pub fn len(self) -> usize {
        pages(self.class) * PAGE
    }
    /// What is known of it.
    pub fn slot(self) -> &'static Slot {
        let at =
            RECORD.load(Ordering::Relaxed) + self.class * RECORDS + self.number as usize * size_of::<Slot>();
        // SAFETY: in the mapping of records, which stays; zeros and numbers are all it holds.
        unsafe { &*(at as *const Slot) }
    }
    /// The slot that an address is in, or whose right guard it is in; slot 0 for the class's first guard.
    pub fn of(address: usize) -> Option<Self> {
        let objects = OBJECTS.load(Ordering::Relaxed);
        let offset =
            address.checked_sub(objects).filter(|&offset| objects != 0 && offset < CLASSES * SHARE)?;
        let (class, within) = (offset / SHARE, offset % SHARE);
        let number = within.saturating_sub(PAGE) / ((pages(class) + 1) * PAGE);
        Some(Self { class, number: u32::try_from(number).ok()? })
    }
    /// Whether a live object starts at `address`.
    pub fn is_live(self, address: usize) -> bool {
        let slot = self.slot();
        self.is_carved()
            && slot.state.load(Ordering::Relaxed) == LIVE
            && address == self.start() + slot.offset.load(Ordering::Relaxed)
    }
    /// Bytes of its object.
    pub fn size(self) -> usize {
        self.slot().size.load(Ordering::Relaxed)
    }
    /// The next slot, whose left guard is this one's right.
    pub fn after(self) -> Self {
        Self { number: self.number + 1, ..self }
    }
    /// Whether the slot has been carved.
    pub fn is_carved(self) -> bool {
        // Relaxed: a guess, for reports.
        self.number < LISTS[self.class].carved.load(Ordering::Relaxed)
    }
}

/// The lists of a class, while `f` runs.
fn with<R>(class: usize, f: impl FnOnce(&Lists) -> R) -> R {
    let lists = &LISTS[class];
    // Acquire and Release: the lock of the lists.
    while lists.lock.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
        // SAFETY: it touches nothing.
        unsafe { libc::sched_yield() };
    }
    let result = f(lists);
    lists.lock.store(false, Ordering::Release);
    result
}

/// A slot of a class, and whether it was used before; nothing if the class is used up.
pub fn take(class: usize) -> Option<(Place, bool)> {
    // Relaxed, all below: under the lock.
    with(class, |lists| match lists.free.load(Ordering::Relaxed) {
        0 => {
            let number = lists.carved.load(Ordering::Relaxed);
            let place = Place { class, number };
            let fits = (number as usize + 2) * (pages(class) + 1) * PAGE < SHARE;
            fits.then(|| {
                lists.carved.store(number + 1, Ordering::Relaxed);
                (place, false)
            })
        }
        first => {
            let place = Place { class, number: first - 1 };
            lists.free.store(place.slot().next.load(Ordering::Relaxed), Ordering::Relaxed);
            Some((place, true))
        }
    })
}

/// A freed slot, closed, waits; the oldest that has waited behind `most` others is returned, for the caller to open
/// and give back.
pub fn quarantine(place: Place, most: u32) -> Option<Place> {
    // Relaxed, all below: under the lock.
    with(place.class, |lists| {
        let name = place.number + 1;
        place.slot().next.store(0, Ordering::Relaxed);
        match lists.newest.swap(name, Ordering::Relaxed) {
            0 => lists.oldest.store(name, Ordering::Relaxed),
            last => Place { number: last - 1, ..place }.slot().next.store(name, Ordering::Relaxed),
        }
        let waiting = lists.quarantined.load(Ordering::Relaxed) + 1;
        lists.quarantined.store(waiting.min(most), Ordering::Relaxed);
        (waiting > most).then(|| {
            let oldest = Place { number: lists.oldest.load(Ordering::Relaxed) - 1, ..place };
            let next = oldest.slot().next.load(Ordering::Relaxed);
            lists.oldest.store(next, Ordering::Relaxed);
            if next == 0 {
                lists.newest.store(0, Ordering::Relaxed);
            }
            oldest
        })
    })
}

/// A slot may be taken again.
pub fn give(place: Place) {
    // Relaxed, all below: under the lock.
    with(place.class, |lists| {
        let first = lists.free.load(Ordering::Relaxed);
        place.slot().next.store(first, Ordering::Relaxed);
        lists.free.store(place.number + 1, Ordering::Relaxed);
    });
}

/// Hold all lists, so that a child of a fork finds them whole.
pub fn lock_all() {
    for lists in &LISTS {
        // Acquire: as in `with`.
        while lists.lock.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            // SAFETY: it touches nothing.
            unsafe { libc::sched_yield() };
        }
    }
}

/// Give them up, in the process that held them or in its child.
pub fn unlock_all() {
    // Release: as in `with`.
    LISTS.iter().for_each(|lists| lists.lock.store(false, Ordering::Release));
}
