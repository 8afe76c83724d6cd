//! Out of memory: who has to go.
//!
//! Memory is not promised when it is mapped, so a program learns that there is none when it touches a page. Calls
//! refuse with ENOMEM before the reserve is touched (`frames().low()`); a fault can't refuse. So a fault that finds no
//! frame ends the process that holds most frames, which is what frees most with one death and spares a small shell
//! from its runaway child; says so in the kernel's log; waits for it to go; and tries again.
//!
//! Who was killed, by whomever, has memory to give back before it is gone. So nobody else is chosen meanwhile; and while
//! memory is short, others' calls wait for it at their beginning, with nothing held, instead of being refused for want of what
//! is on its way. Both waits are bounded, since what the victim needs to end may be held by the one who waits (a fault in a
//! copy can hold a file's lock): then the fault is refused, and its own process ends.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering};

use linux_raw_sys::general::SIGKILL;
use owned::Use;

use crate::{
    hw, ids, memory,
    process::Process,
    realm, reclaim,
    signal::{self, SigInfo},
    task, wait,
};

/// How long is waited for those who were killed to give their memory back, in ns.
const PATIENCE: u64 = 2_000_000_000;
/// How often it looks, in ns.
const PERIOD: u64 = 2_000_000;

/// How many mappings' records fill a frame of the heap, about.
const MAPPINGS_PER_PAGE: u64 = 24;

/// Page tables are given back if they are this part of all memory.
const TABLES_PART: u64 = 16;

/// How many processes were killed and are not gone yet.
static LEAVING: AtomicUsize = AtomicUsize::new(0);

/// A process was killed.
pub fn leaves() {
    // Relaxed, here and below: a count. Who reads it late waits a little less, or chooses a second victim.
    LEAVING.fetch_add(1, Ordering::Relaxed);
}

/// It is gone, and its memory is free.
pub fn has_left() {
    LEAVING.fetch_sub(1, Ordering::Relaxed);
}

fn somebody_leaves() -> bool {
    LEAVING.load(Ordering::Relaxed) > 0
}

/// At the beginning of a call: if memory is short, wait until those who were killed are gone, collect what is left of what
/// has gone, and do without what can be made again. May sleep.
#[inline]
pub fn let_leave() {
    if somebody_leaves() {
        wait_for_leaving();
    }
    if realm::is_on() && memory::frames().low() {
        relieve();
    }
}

#[inline(never)]
fn relieve() {
    realm::collect_now(|| !memory::frames().low());
    if memory::frames().exhausted() {
        shed_tables();
    }
}

#[inline(never)]
fn wait_for_leaving() {
    let deadline = hw::timer::now() + PATIENCE;
    while memory::frames().low()
        && somebody_leaves()
        && !task::current().is_ending()
        && hw::timer::now() < deadline
    {
        wait::pause_until(hw::timer::now() + PERIOD);
    }
}

/// What a fault does that has found no frame. True: it should try again. May sleep.
pub fn make_room() -> bool {
    let me = task::current();
    if me.is_ending() {
        return false;
    }
    let is_enough = || !memory::frames().exhausted();
    // What is missing may be what waits to be collected, or what other CPUs keep at hand.
    realm::collect_now(is_enough);
    reclaim::drain_all();
    if !is_enough() {
        shed_tables();
    }
    if is_enough() {
        // There is some again, or no more was missing than one run of luck.
        return true;
    }
    let deadline = hw::timer::now() + PATIENCE;
    loop {
        if me.is_ending() {
            return false;
        }
        if !somebody_leaves() {
            if is_enough() {
                return true;
            }
            // Somebody may be on the way out unkilled.
            if !ids::all().iter().any(|p| p.is_leaving()) {
                let Some((victim, pages)) = choose() else { return false };
                end(&victim, pages);
                if Arc::ptr_eq(&victim, &me.process) {
                    return false;
                }
            }
        }
        if hw::timer::now() >= deadline {
            return false;
        }
        wait::pause_until(hw::timer::now() + PERIOD);
        realm::collect_now(is_enough);
    }
}

/// Have all address spaces give back page tables that can be made again, if they are so many that those which are needed can
/// be made without doing this again at once.
fn shed_tables() {
    let frames = memory::frames();
    let tables = frames.stats().owned[Use::PageTable as usize];
    if tables >= frames.total() / TABLES_PART {
        for mm in ids::all().iter().filter_map(|p| p.mm()) {
            mm.aspace.shed(&task::unpinned());
        }
        reclaim::drain_all();
    }
}

/// The process with most frames, and how many it has; of several the youngest.
fn choose() -> Option<(Arc<Process>, u64)> {
    let mut most: Option<(Arc<Process>, u64)> = None;
    for p in ids::all() {
        let Some(mm) = p.mm() else { continue };
        let u = mm.aspace.usage(&task::unpinned());
        // Its pages, its page tables, and what the kernel's heap holds for it.
        let pages = u.resident_pages + u.table_pages + u.mappings / MAPPINGS_PER_PAGE;
        if most.as_ref().is_none_or(|(_, n)| pages >= *n) {
            most = Some((p, pages));
        }
    }
    most
}

fn end(victim: &Arc<Process>, pages: u64) {
    let name = victim.leader().map(|t| t.comm()).unwrap_or_default();
    crate::log!(
        "out of memory: process {} ({}) found no frame; killed process {} ({}), the largest with {} KiB",
        task::current().process.pid,
        task::current().comm().escape_ascii(),
        victim.pid,
        name.escape_ascii(),
        pages * addr::PAGE_SIZE / 1024,
    );
    signal::send_process(victim, SigInfo::kernel(SIGKILL));
}
