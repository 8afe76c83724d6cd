//! Mirrors: what is put in is found, what goes says so, and tables go when nothing needs them.
#![cfg(not(loom))]

use addr::{Frame, Page, PageRange, Prot};
use owned::{Use, testing};
use pagetable::Mirror;
use percpu::{AtomicCpuSet, CpuSet, Pinned, testing::Machine};
use tlb::{Gather, Shootdown};

struct NoTlb;

impl Shootdown for NoTlb {
    fn flush(&self, _: &Pinned<'_>, _: &CpuSet, _: PageRange) {}
}

const RW: Prot = Prot::READ.union(Prot::WRITE);

fn page(n: u64) -> Page {
    Page::new(n).expect("a page number")
}

#[test]
fn entries_come_change_and_go() {
    let (machine, frames) = (Machine::new(1), testing::memory(64, 1));
    machine.on(0, |ctx| {
        let pin = ctx.pin();
        let mirror = Mirror::new(frames, &pin, None).expect("memory");
        let frame = Frame::new(7).expect("a frame number");
        let at = page((3 << 27) + 5);
        assert!(mirror.clear(at).is_empty() && !mirror.lower(at, Prot::empty()));
        assert!(mirror.prepare(at, frames, &pin).is_some());
        assert_eq!(mirror.pages(), 4);
        assert!(mirror.peek(at).is_empty());
        mirror.prepare(at, frames, &pin).unwrap().set(frame, Prot::READ);
        mirror.prepare(at, frames, &pin).unwrap().set(frame, RW);
        assert_eq!((mirror.peek(at).frame(), mirror.peek(at).prot()), (frame, RW));
        assert!(!mirror.lower(at, Prot::all()), "nothing is lost");
        assert!(mirror.lower(at, Prot::READ | Prot::EXEC));
        assert_eq!(mirror.peek(at).prot(), Prot::READ, "no right comes back");
        assert!(mirror.lower(at, Prot::empty()));
        assert!(!mirror.clear(at).is_present());
        // Tables that nothing needs, by levels; those that something needs stay.
        let other = page((3 << 27) + (1 << 18));
        assert!(mirror.prepare(other, frames, &pin).is_some());
        mirror.prepare(other, frames, &pin).unwrap().set(frame, RW);
        assert_eq!(mirror.pages(), 6);
        let sweep = |kept: Option<Page>| {
            mirror.sweep(|served, unlink| {
                if kept.is_none_or(|kept| !served.contains(kept)) {
                    let mut gather = Gather::new(frames, ctx);
                    unlink(&mut gather);
                    gather.flush(&pin, &NoTlb, &AtomicCpuSet::new());
                }
            });
        };
        sweep(Some(other));
        assert_eq!(mirror.pages(), 4);
        assert_eq!(mirror.peek(other).frame(), frame);
        assert!(mirror.clear(other).is_present());
        sweep(None);
        assert_eq!(mirror.pages(), 1);
        // SAFETY: the mirror isn't used any more.
        frames.free(&pin, unsafe { mirror.retire() });
        assert_eq!(frames.stats().owned, [0; Use::COUNT]);
    });
}

/// What a table serves may become free between its turn and that of the table above it.
#[test]
fn a_table_that_others_are_linked_in_stays() {
    let (machine, frames) = (Machine::new(1), testing::memory(64, 1));
    machine.on(0, |ctx| {
        let pin = ctx.pin();
        let mirror = Mirror::new(frames, &pin, None).expect("memory");
        assert!(mirror.prepare(page(5), frames, &pin).is_some());
        for (least, left) in [(1 << 10, 4), (1, 1)] {
            mirror.sweep(|served, unlink| {
                if served.len() >= least {
                    let mut gather = Gather::new(frames, ctx);
                    unlink(&mut gather);
                    gather.flush(&pin, &NoTlb, &AtomicCpuSet::new());
                }
            });
            assert_eq!((mirror.pages(), frames.stats().owned[Use::PageTable as usize]), (left, left));
        }
        // SAFETY: the mirror isn't used any more.
        frames.free(&pin, unsafe { mirror.retire() });
    });
}

#[test]
fn a_table_that_there_is_no_frame_for_is_not_made() {
    let (machine, frames) = (Machine::new(1), testing::memory(64, 1));
    machine.on(0, |ctx| {
        let pin = ctx.pin();
        let mirror = Mirror::new(frames, &pin, None).expect("memory");
        let hogs: Vec<_> = std::iter::from_fn(|| frames.alloc(&pin, Use::Kernel)).collect();
        assert!(mirror.prepare(page(5), frames, &pin).is_none());
        hogs.into_iter().for_each(|frame| frames.free(&pin, frame));
        assert!(mirror.prepare(page(5), frames, &pin).is_some());
    });
}

/// Counts the ranges that are flushed.
struct Flushes(std::cell::Cell<u32>);

// SAFETY: the test has one thread.
unsafe impl Sync for Flushes {}

impl Shootdown for Flushes {
    fn flush(&self, _: &Pinned<'_>, cpus: &CpuSet, range: PageRange) {
        assert!(!cpus.is_empty() && !range.is_empty());
        self.0.set(self.0.get() + 1);
    }
}

#[test]
fn all_tables_go_at_the_end_without_memory() {
    let (machine, frames) = (Machine::new(1), testing::memory(256, 1));
    machine.on(0, |ctx| {
        let pin = ctx.pin();
        let mirror = Mirror::new(frames, &pin, None).expect("memory");
        let mut tables = 0;
        // One page in each 2 MiB, and a few in other parts of the address space, until there is no frame.
        let sparse = (0..3).map(|i| i << 27 | i << 18).chain((1..1024).map(|i| i << 9)).map(page);
        for at in sparse {
            let Some(entry) = mirror.prepare(at, frames, &pin) else { break };
            entry.set(Frame::new(7).expect("a frame number"), RW);
            assert!(mirror.clear(at).is_present());
            tables += 1;
        }
        assert!(tables > 100 && mirror.pages() > tables);
        let active = AtomicCpuSet::new();
        active.insert(pin.cpu());
        let (flushes, mut freed) = (Flushes(std::cell::Cell::new(0)), 0);
        let mut gather = Gather::new(frames, ctx);
        let mut flush = |gather: &mut Gather<'_>| {
            let before = frames.stats().owned[Use::PageTable as usize];
            gather.flush(&pin, &flushes, &active);
            gather.release(&pin);
            freed += before - frames.stats().owned[Use::PageTable as usize];
        };
        mirror.strip(&mut gather, &mut flush);
        flush(&mut gather);
        drop(gather);
        assert_eq!((mirror.pages(), frames.stats().owned[Use::PageTable as usize]), (1, 1));
        assert!(freed > tables && flushes.0.get() > 0);
        // SAFETY: the mirror isn't used any more.
        frames.free(&pin, unsafe { mirror.retire() });
    });
}
