//! One fault, from the moment that its page is known: TRAP and UNPROT.
//!
//! ```text
//! lock the page                                   // others that fault on it sleep here
//! level already suffices: a lost race, or the kernel is stricter than the level: repeat; the second time, reinstall
//! ask the handler
//!     Grant: raise                                // written since the last set? noted before the kernel opens the page
//!     the kernel says that there is no frame: ask again, as Missing; then give it one, and raise
//! unlock
//! ```
//! Where the kernel can raise a page as it goes back to the access (Quire), a grant stores the level and leaves the rest to
//! that, without a call of its own. From then until the kernel has done it, the page's bit in its group's `born` is set, and the kernel
//! clears it. Who lowers the page holds it, and waits for the bit, or lets the page be; so nothing is raised after it was
//! lowered. A thread that finds the level sufficient meanwhile repeats, and then has the kernel raise the page itself. The
//! region's end waits for all bits, as the kernel writes them.
//!
//! A thread in a handler holds the lock of the page it faulted on, and waits for no other: neighbours that a
//! handler grants or evicts besides are only tried. So waits form no cycle. Two mistakes would wait for ever and
//! are found instead: a handler that touches the page it holds, and a deferred one that touches the page it
//! resolves for another thread.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{ffi::c_int, sync::atomic::Ordering};

use crate::{
    access::{Access, Kind, PageNo, PageRange},
    budget,
    error::Backend,
    fixup,
    group::{Group, PAGES},
    handler::{Fault, Resolution, SignalSafe},
    mechanism::Stop,
    region::{Futex, Inner, OnFail},
    sys::{self, Digits},
    thread::Block,
};

/// How often an access may be repeated at a level that suffices before something is wrong.
const REPEATS: usize = 1000;

/// Where a fault came from.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub kind: Kind,
    /// The instruction; 0 if the fault came through a descriptor.
    pub pc: usize,
    /// The signal; 0 if the fault came through a descriptor.
    pub signal: c_int,
    /// The kernel may raise the page on the way back.
    pub upcall: bool,
}

/// What the kernel is to do on the way back: raise the page to this level, and then clear these bits of the word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Later {
    pub level: Access,
    pub word: usize,
    pub mask: u32,
}

/// What the faulting thread does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Repeats the access.
    Resume {
        /// The page was raised, and threads that sleep for it were woken.
        raised: bool,
    },
    /// Has the kernel raise the page, and repeats the access.
    Raise(Later),
    /// Goes on elsewhere.
    Divert(usize),
    /// Gets the signal as if we were not there.
    Forward,
}

/// Resolve a fault on a page.
pub fn resolve(region: &Inner, block: &Block, page: PageNo, offset: usize, place: Place) -> Outcome {
    let Some((group, bit)) = region.slot(page) else { return Outcome::Forward };
    group.lock(bit, &Futex, |_| refuse_own(region, block, page));
    let outcome = resolve_locked(region, block, group, page, offset, place);
    group.unlock(bit, &Futex);
    outcome
}

fn resolve_locked(
    region: &Inner,
    block: &Block,
    group: &Group,
    page: PageNo,
    offset: usize,
    place: Place,
) -> Outcome {
    let mut kind = place.kind;
    let level = group.level(page.0);
    if level >= kind.needs() {
        let asked = repeats(block, place.pc, page, offset);
        let fresh = region.creates && region.is_unborn(group, page);
        if asked == 0 && place.pc != 0 && !fresh {
            return Outcome::Resume { raised: false };
        }
        if asked > REPEATS {
            report(region, page, kind, place.pc, libc::EDEADLK, "faults for ever at a level that suffices");
        }
        // A SIGBUS of memory whose levels do not raise one: the file has no such byte.
        if (region.splits || region.backend == Backend::Native) && place.signal == libc::SIGBUS {
            kind = Kind::Missing;
        } else {
            let span = region.span(page.into());
            let given = if fresh { region.bear(group, page) } else { Ok(()) };
            match given.and_then(|()| region.mechanism.reinstall(span, level)) {
                Ok(()) => return Outcome::Resume { raised: false },
                Err(Stop::Missing(_)) => kind = Kind::Missing,
                Err(Stop::Os(errno)) => return failed(region, group, page, kind, place.pc, errno.0),
            }
        }
    }
    loop {
        let fault = Fault {
            page,
            offset,
            kind,
            level,
            wanted: region.least(place.kind),
            region: region.id,
            pc: place.pc,
        };
        match region.ask(block, &fault, place.pc == 0) {
            Resolution::Grant(to) => match grant(region, group, &fault, to, place.upcall) {
                Ok(later) => {
                    region.speculate(block, &fault, to);
                    return raised(block, later);
                }
                Err(Stop::Missing(_)) if kind != Kind::Missing => kind = Kind::Missing,
                Err(stop) => return failed(region, group, page, kind, place.pc, code(stop)),
            },
            Resolution::GrantRange(range, to) => match grant(region, group, &fault, to, place.upcall) {
                Ok(later) => {
                    region.grant_others(range, page, to);
                    return raised(block, later);
                }
                Err(Stop::Missing(_)) if kind != Kind::Missing => kind = Kind::Missing,
                Err(stop) => return failed(region, group, page, kind, place.pc, code(stop)),
            },
            Resolution::Retry => return Outcome::Resume { raised: false },
            Resolution::Divert => match fixup::target(place.pc) {
                Some(target) => return Outcome::Divert(target),
                None => report(region, page, kind, place.pc, libc::ENOEXEC, "diverted where no fault_or is"),
            },
            Resolution::Forward if place.pc != 0 => return Outcome::Forward,
            Resolution::Forward => report(region, page, kind, place.pc, libc::EINVAL, "nobody to forward to"),
            Resolution::Defer => {
                report(region, page, kind, place.pc, libc::EINVAL, "there is no deferred handler")
            }
            Resolution::Fail(code) => return failed(region, group, page, kind, place.pc, code),
        }
    }
}

fn code(stop: Stop) -> i32 {
    match stop {
        Stop::Missing(_) => libc::EFAULT,
        Stop::Os(errno) => errno.0,
    }
}

fn raised(block: &Block, later: Option<Later>) -> Outcome {
    // Relaxed: this thread's own.
    block.again.store(0, Ordering::Relaxed);
    later.map_or(Outcome::Resume { raised: true }, Outcome::Raise)
}

/// How often in a row this access was repeated for nothing.
fn repeats(block: &Block, pc: usize, page: PageNo, offset: usize) -> usize {
    let at = page.0.wrapping_shl(20) ^ offset;
    // Relaxed, all: this thread's own.
    let same = block.again_pc.load(Ordering::Relaxed) == pc && block.again_at.load(Ordering::Relaxed) == at;
    let asked = if same { block.again.load(Ordering::Relaxed) } else { 0 };
    block.again_pc.store(pc, Ordering::Relaxed);
    block.again_at.store(at, Ordering::Relaxed);
    block.again.store(asked.wrapping_add(1), Ordering::Relaxed);
    asked
}

/// Raise the page of a fault, locked, to `to`; if it came by an `upcall` what is left to be done.
fn grant(
    region: &Inner,
    group: &Group,
    fault: &Fault,
    to: Access,
    upcall: bool,
) -> Result<Option<Later>, Stop> {
    // Where there is no Read, what may be read may be written.
    let to = if region.has_read || to == Access::None { to } else { Access::ReadWrite };
    if to < fault.wanted {
        report(
            region,
            fault.page,
            fault.kind,
            fault.pc,
            libc::EINVAL,
            "the handler granted less than it must",
        );
    }
    let span = region.span(fault.page.into());
    if fault.kind == Kind::Missing {
        region.mechanism.create(span).map_err(Stop::Os)?;
        if fault.level > Access::None {
            region.mechanism.reinstall(span, fault.level)?;
        }
    }
    let (at, bit) = (fault.page.0 / PAGES, 1 << (fault.page.0 % PAGES));
    if upcall && region.resumes && span.len == sys::BASE && to > fault.level && fault.kind != Kind::Missing {
        region.set_level(at, bit, to);
        let word = std::ptr::from_ref(group.resuming(bit)) as usize;
        return Ok(Some(Later { level: to, word, mask: bit }));
    }
    region.raise(group, at, bit, to).map(|()| None)
}

/// Nothing can be done: end the process, or go on with the page open and the region marked.
fn failed(region: &Inner, group: &Group, page: PageNo, kind: Kind, pc: usize, code: i32) -> Outcome {
    if region.probing
        && let Some(target) = fixup::target(pc)
    {
        return Outcome::Divert(target);
    }
    if region.on_fail == OnFail::Abort {
        report(region, page, kind, pc, code, "cannot be resolved");
    }
    // Release: pairs with Acquire in `Region::check`.
    region.poisoned.store(i64::from(code) | Inner::POISONED, Ordering::Release);
    let span = region.span(page.into());
    let level = group.level(page.0);
    let opened = region.mechanism.create(span).map_err(Stop::Os).and_then(|()| {
        if level > Access::None {
            region.mechanism.reinstall(span, level)?;
        }
        region.raise(group, page.0 / PAGES, 1 << (page.0 % PAGES), Access::ReadWrite)
    });
    if opened.is_err() {
        report(region, page, kind, pc, code, "cannot be resolved, nor opened");
    }
    Outcome::Resume { raised: true }
}

/// End the process if this thread would wait for itself.
pub fn refuse_own(region: &Inner, block: &Block, page: PageNo) {
    let own = |held: &crate::thread::Held| {
        // Relaxed: this thread's own.
        held.region.load(Ordering::Relaxed) == std::ptr::from_ref(region) as usize
            && held.page.load(Ordering::Relaxed) == page.0
    };
    // The last frame is of the fault that waits.
    let outer = block.depth.load(Ordering::Relaxed).saturating_sub(1);
    if block.frames.iter().take(outer).any(own) {
        report(region, page, Kind::Read, 0, libc::EDEADLK, "a handler touched the page that it holds");
    }
    if own(&block.serves) {
        let why = "a deferred handler touched the page that it resolves";
        report(region, page, Kind::Read, 0, libc::EDEADLK, why);
    }
}

/// Ends the process if a handler unwinds: the page would stay locked, and its faults unanswered, for ever.
#[derive(Debug)]
pub struct MustAnswer;

impl MustAnswer {
    /// What `handler` answers.
    pub fn of(handler: impl FnOnce() -> Resolution) -> Resolution {
        let guard = Self;
        let resolution = handler();
        std::mem::forget(guard);
        resolution
    }
}

impl Drop for MustAnswer {
    fn drop(&mut self) {
        sys::die(&["vmprim: a handler panicked, and its fault has no answer\n"]);
    }
}

/// Say what is wrong, and abort.
fn report(region: &Inner, page: PageNo, kind: Kind, pc: usize, errno: i32, what: &str) -> ! {
    let kind = match kind {
        Kind::Read => "read",
        Kind::Write => "write",
        Kind::Missing => "missing",
        Kind::Pin => "pin",
        Kind::Speculative => "speculative",
    };
    let number = |n: usize| Digits::new(n, 10);
    let (id, page, code) =
        (number(region.id.0 as usize), number(page.0), number(usize::try_from(errno).unwrap_or(0)));
    let pc = Digits::new(pc, 16);
    let [before_limit, after_limit] = hint(region, errno);
    let limit = if before_limit.is_empty() { None } else { Some(number(budget::limit())) };
    sys::die(&[
        "vmprim: region ",
        id.as_str(),
        " (",
        region.backend.name(),
        "), page ",
        page.as_str(),
        ", ",
        kind,
        " at 0x",
        pc.as_str(),
        ": ",
        what,
        " (code ",
        code.as_str(),
        ")",
        before_limit,
        limit.as_ref().map_or("", Digits::as_str),
        after_limit,
        "\n",
    ])
}

/// What to do where mappings are used up, before and after the limit.
fn hint(region: &Inner, errno: i32) -> [&'static str; 2] {
    match region.splits && (errno == libc::ENOMEM || budget::is_near()) {
        true => ["; mappings are used up: raise vm.max_map_count (", "), or use the backend uffd-view"],
        false => ["", ""],
    }
}

impl Inner {
    /// The least level that the backend has with which an access goes through.
    fn least(&self, kind: Kind) -> Access {
        if self.has_read { kind.needs() } else { Access::ReadWrite }
    }

    /// Ask the region's handlers. In a thread that is not the faulting one, deferred handlers are called directly; so
    /// they are by a pin where the region's threads read faults instead of waiting for deferred ones.
    pub fn ask(&self, block: &Block, fault: &Fault, direct: bool) -> Resolution {
        if let Some(inline) = &self.inline {
            match MustAnswer::of(|| inline.fault(fault, &SignalSafe { region: self, block })) {
                Resolution::Defer => {}
                resolution => return resolution,
            }
        }
        match &self.deferred {
            Some(queue) if direct || self.mechanism.faults().is_some() => queue.call(self, block, fault),
            Some(queue) => queue.hand_over(fault),
            None if self.inline.is_some() => Resolution::Defer,
            // Without handlers a region is for its dirty sets; but zeros where there was data must not pass in
            // silence.
            None if fault.kind == Kind::Missing => Resolution::Fail(libc::EIO),
            None => Resolution::Grant(fault.wanted),
        }
    }

    /// Raise those of `range` that are free and in the group of `page`, which is held and stays so.
    fn grant_others(&self, range: PageRange, page: PageNo, to: Access) {
        let Some((group, bit)) = self.slot(page) else { return };
        let first = page.0 / PAGES * PAGES;
        let mask = (0..PAGES).fold(0_u32, |mask, i| {
            let at = first.wrapping_add(i);
            let wanted = at >= range.start.0 && at < range.end() && at < self.pages;
            mask | u32::from(wanted).wrapping_shl(i as u32)
        });
        let got = group.try_lock(mask & !bit);
        let [none, read, _] = group.by_level(got);
        let below = if to == Access::Read { none } else { none | read };
        // What cannot be raised now traps when it is touched.
        let _ = self.raise(group, page.0 / PAGES, below, to);
        group.unlock(got, &Futex);
    }

    /// Where mappings are nearly used up, offer the handler the neighbours of a page just raised, so that mappings
    /// merge.
    fn speculate(&self, block: &Block, fault: &Fault, to: Access) {
        if !self.splits || fault.kind == Kind::Pin || !budget::is_near() {
            return;
        }
        for neighbour in [fault.page.0.wrapping_sub(1), fault.page.0.wrapping_add(1)] {
            let page = PageNo(neighbour);
            let Some((group, bit)) = self.slot(page) else { continue };
            if group.try_lock(bit) == 0 {
                continue;
            }
            let level = group.level(neighbour);
            if level < to {
                let ask = Fault { page, offset: 0, kind: Kind::Speculative, level, wanted: to, ..*fault };
                if self.inline.as_ref().map(|inline| inline.fault(&ask, &SignalSafe { region: self, block }))
                    == Some(Resolution::Grant(to))
                {
                    let _ = self.raise(group, neighbour / PAGES, bit, to);
                }
            }
            group.unlock(bit, &Futex);
        }
    }
}
