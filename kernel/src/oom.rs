//! Out of memory: who has to go.
//!
//! Memory is not promised when it is mapped, so a program learns that there is none when it touches a page. Calls
//! refuse with ENOMEM before the reserve is touched (`frames().low()`); a fault can't refuse. So a fault that finds no
//! frame ends the process that holds most frames, which is what frees most with one death and spares a small shell
//! from its runaway child; says so in the kernel's log; waits for it to go; and tries again.
//!
//! One victim at a time: while one, or whoever was killed otherwise, is on its way out, nobody else is chosen. The wait is bounded, since what the victim
//! needs to end may be held by the one who waits (a fault in a copy can hold a file's lock): then the fault is refused,
//! and its own process ends.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering};

use linux_raw_sys::general::SIGKILL;

use crate::{
    hw, memory,
    process::{self, Process, Status},
    reclaim, task, wait,
};

/// How long a fault waits for the victim to give its memory back, in ns.
const PATIENCE: u64 = 2_000_000_000;
/// How often it looks, in ns.
const PERIOD: u64 = 2_000_000;

/// How many mappings' records fill a frame of the heap, about.
const MAPPINGS_PER_PAGE: u64 = 24;

/// The process that was told to end last.
static VICTIM: AtomicU32 = AtomicU32::new(0);

/// What a fault does that has found no frame. True: it should try again. May sleep.
pub fn make_room() -> bool {
    let me = task::current();
    if me.is_ending() {
        return false;
    }
    // What is missing may be what other CPUs keep at hand.
    reclaim::drain_all();
    if !memory::frames().exhausted() {
        // There is some again, or no more was missing than one run of luck.
        return true;
    }
    let deadline = hw::timer::now() + PATIENCE;
    loop {
        if me.is_ending() {
            return false;
        }
        // Relaxed: at worst two are chosen at once.
        let last = VICTIM.load(Ordering::Relaxed);
        let leaving = process::find(last).filter(|p| p.ended().is_none());
        match leaving {
            Some(p) if Arc::ptr_eq(&p, &me.process) => return false,
            Some(_) => {}
            None if !memory::frames().exhausted() => return true,
            // Somebody else was ended meanwhile, and gives back what it has.
            None if process::all().iter().any(|p| is_leaving(p)) => {}
            None => match choose() {
                Some((victim, pages)) => {
                    VICTIM.store(victim.pid, Ordering::Relaxed);
                    end(&victim, pages);
                    continue;
                }
                None => return false,
            },
        }
        if hw::timer::now() >= deadline {
            return false;
        }
        wait::pause_until(hw::timer::now() + PERIOD);
    }
}

/// Whether a process was told to end, by whomever, and hasn't yet.
fn is_leaving(p: &Process) -> bool {
    p.ended().is_none() && p.leader().is_some_and(|leader| leader.is_ending())
}

/// The process with most frames, and how many it has; of several the youngest.
fn choose() -> Option<(Arc<Process>, u64)> {
    let mut most: Option<(Arc<Process>, u64)> = None;
    for p in process::all() {
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
    process::end_process(victim, Status::killed(SIGKILL));
}
