//! What the radix tree promises of costs: that they do not grow with what else is mapped, and that addresses are not used up.

#[path = "../machine/mod.rs"]
mod machine;

use std::{
    collections::BTreeSet,
    sync::Mutex,
    time::{Duration, Instant},
};

use addr::{PageRange, Prot};
use aspace::{Access, AddressSpace, Placement};
use machine::{Pages, RW, Random, Sim, anonymous, object, page, range};
use owned::Use;
use percpu::Unpinned;

const BASE: u64 = 1 << 20;
const GIB: u64 = 1 << 18;

/// How long the fastest of some pieces of work took, each of the same number of calls.
struct Fastest(Duration);

impl Fastest {
    fn of(pieces: impl Iterator<Item = impl FnOnce()>) -> Self {
        let time = |piece: Box<dyn FnOnce() + '_>| {
            let start = Instant::now();
            piece();
            start.elapsed()
        };
        Self(pieces.map(|piece| time(Box::new(piece))).min().expect("a piece at least"))
    }
    /// Not much longer than `other`, beyond what a clock and a cache may do.
    fn is_like(&self, other: &Fastest) -> bool {
        self.0 <= other.0 * 3 + Duration::from_micros(200)
    }
}

/// Every second page of `pages` loses the right to store, piece by piece; how long the first pieces and the last took.
fn alternate(space: &dyn AddressSpace, pages: u64, ctx: &Unpinned<'_>) -> (Fastest, Fastest) {
    const PIECE: u64 = 1 << 12;
    let piece = |number: u64| {
        move || {
            for i in (number * PIECE..(number + 1) * PIECE).step_by(2) {
                assert_eq!(space.protect(range(BASE + i, 1), Prot::READ, ctx), Ok(()));
            }
        }
    };
    let all = pages / PIECE;
    let first = Fastest::of((0..all / 8).map(piece));
    (all / 8..all - all / 8).for_each(|number| piece(number)());
    (first, Fastest::of((all - all / 8..all).map(piece)))
}

/// Looks at pages of a mapping of `pages` pages whose protections alternate find what is there, at no more cost than in a small
/// one; and reports find all of it.
fn look(space: &dyn AddressSpace, pages: u64, ctx: &Unpinned<'_>) -> Fastest {
    let mut random = Random::new(pages, 0);
    let looks = Fastest::of((0..32).map(|_| {
        let at: Vec<_> = (0..1000).map(|_| random.below(pages)).collect();
        move || {
            for i in at {
                let (area, mapping) = space.find(range(BASE + i, 8), ctx).expect("it is mapped");
                assert_eq!(area, range(BASE + i, 1));
                assert_eq!(mapping.prot, if i % 2 == 0 { Prot::READ } else { RW });
            }
        }
    }));
    let (mut areas, start) = (0, Instant::now());
    space.mappings(ctx, &mut |info| {
        assert_eq!(info.range, range(BASE + areas, 1));
        areas += 1;
    });
    assert_eq!(areas, pages);
    println!("{pages} mappings: 1000 looks {:?}, a report {:?}", looks.0, start.elapsed());
    looks
}

#[test]
fn a_million_alternating_protections_cost_no_more_each() {
    const PAGES: u64 = 1 << 20;
    let sim = Sim::new(1, 256);
    sim.cpus.on(0, |ctx| {
        let space = |pages| {
            let space = sim.space(&ctx);
            space.map(Placement::Fixed(page(BASE)), pages, anonymous(RW), &ctx).expect("there is room");
            space
        };
        let (small, large) = (space(PAGES >> 5), space(PAGES));
        alternate(&*small, PAGES >> 5, &ctx);
        let (first, last) = alternate(&*large, PAGES, &ctx);
        println!("2048 calls: first {:?}, last {:?}", first.0, last.0);
        assert!(last.is_like(&first), "first {:?}, last {:?}", first.0, last.0);
        let (few, many) = (look(&*small, PAGES >> 5, &ctx), look(&*large, PAGES, &ctx));
        assert!(many.is_like(&few), "{:?} among few, {:?} among many", few.0, many.0);
        // Contents survive a time without any rights.
        let at = page(BASE + 12345);
        sim.enter(&*large, &ctx);
        assert_eq!(sim.store(&*large, at, 7, &ctx), Ok(()));
        assert_eq!(large.protect(range(BASE, PAGES), Prot::empty(), &ctx), Ok(()));
        assert_eq!(sim.load(&*large, at, &ctx), Err(aspace::Fault::Denied));
        assert_eq!(large.protect(range(BASE, PAGES), RW, &ctx), Ok(()));
        assert_eq!(sim.load(&*large, at, &ctx), Ok(7));
        assert_eq!(large.usage(&ctx).mappings, 1);
        sim.leave(&*large, &ctx);
        [small, large].iter().for_each(|space| space.clear(&ctx));
        assert_eq!(sim.owned(), [0; Use::COUNT]);
    });
}

#[test]
fn protections_of_an_objects_pages_use_descriptors_while_they_last() {
    // Half of all descriptors, and twice what Linux allows mappings.
    const PAGES: u64 = 1 << 18;
    let sim = Sim::new(1, 256);
    sim.cpus.on(0, |ctx| {
        let pages = Pages::new(sim, 1, &[1, 2], &ctx);
        let space = sim.space(&ctx);
        let at = Placement::Fixed(page(BASE));
        space.map(at, PAGES, object(&pages, 0, RW, true), &ctx).expect("there is room");
        let (first, last) = alternate(&*space, PAGES, &ctx);
        println!("2048 calls: first {:?}, last {:?}", first.0, last.0);
        assert!(last.is_like(&first), "first {:?}, last {:?}", first.0, last.0);
        assert_eq!(space.usage(&ctx).mappings, PAGES);
        assert_eq!(space.unmap(range(BASE, PAGES), &ctx), Ok(()));
        // They come back, however often the protection of one page changes.
        space.map(at, 1, object(&pages, 0, RW, true), &ctx).expect("there is room");
        for i in 0..(1 << 18) + 10 {
            let prot = if i % 2 == 0 { Prot::READ } else { RW };
            assert_eq!(space.protect(range(BASE, 1), prot, &ctx), Ok(()), "change {i}");
            if i % 256 == 0 {
                (0..8).for_each(|_| sim.tick(&ctx));
            }
        }
        space.clear(&ctx);
        pages.free(sim, &ctx);
        assert_eq!(sim.owned(), [0; Use::COUNT]);
    });
}

#[test]
fn a_touched_terabyte_forks_in_time_of_what_was_touched() {
    const PAGES: u64 = 1 << 28;
    let sim = Sim::new(1, 256);
    sim.cpus.on(0, |ctx| {
        let space = sim.space(&ctx);
        space.map(Placement::Fixed(page(BASE)), PAGES, anonymous(RW), &ctx).expect("there is room");
        let fork = || {
            let start = Instant::now();
            let child = space.fork(&ctx).expect("there is memory");
            let took = start.elapsed();
            assert_eq!(child.usage(&ctx).mapped_pages, PAGES);
            child.clear(&ctx);
            took
        };
        let untouched = (0..8).map(|_| fork()).min().expect("some");
        for i in 0..16 {
            let at = page(BASE + i * (PAGES / 16));
            assert_eq!(space.fault(at.base(), Access::Write, &ctx), Ok(()));
        }
        let touched = (0..8).map(|_| fork()).min().expect("some");
        println!("fork of 1 TiB: untouched {untouched:?}, with 16 pages {touched:?}");
        assert!(untouched < Duration::from_millis(20) && touched < Duration::from_millis(40));
        space.clear(&ctx);
    });
}

/// What is mapped by the CPUs of a run, and which addresses it has ever had.
#[derive(Default)]
struct Ledger {
    ranges: Vec<PageRange>,
    mapped: u64,
    peak: u64,
    /// Numbers of the GiB that had a page.
    used: BTreeSet<u64>,
}

/// CPUs map ranges of up to `largest` pages wherever they may be, about `kept` at a time, and unmap what any of them has mapped.
/// Addresses in use, by whole GiB, are at most an arena for each CPU and twice the most pages that were mapped, and two GiB more
/// if some ranges are large.
fn wander(cpus: usize, kept: usize, largest: u64, steps: usize) {
    let sim = Sim::new(cpus, 1024);
    let space = sim.cpus.on(0, |ctx| sim.space(&ctx));
    let ledger = Mutex::new(Ledger::default());
    sim.cpus.run(|cpu, ctx| {
        let mut random = Random::new(largest, cpu.index());
        for step in 0..steps {
            let taken = {
                let mut ledger = ledger.lock().unwrap();
                let there = ledger.ranges.len();
                let many = random.below(2 * kept as u64) < there as u64;
                many.then(|| ledger.ranges.swap_remove(random.below(there as u64) as usize))
            };
            if let Some(range) = taken {
                assert_eq!(space.unmap(range, &ctx), Ok(()));
                ledger.lock().unwrap().mapped -= range.len();
            } else {
                // Mostly small ones.
                let most = (largest >> random.below(14)).max(1);
                let pages = 1 + random.below(most);
                let got = space.map(Placement::Anywhere, pages, anonymous(RW), &ctx).expect("there is room");
                let (first, last) = (got.start().number() / GIB, (got.end().number() - 1) / GIB);
                let ledger = &mut *ledger.lock().unwrap();
                ledger.ranges.push(got);
                ledger.mapped += pages;
                ledger.peak = ledger.peak.max(ledger.mapped);
                ledger.used.extend(first..=last);
            }
            if step % 8 == 0 {
                sim.tick(&ctx);
            }
        }
    });
    let Ledger { peak, used, .. } = ledger.into_inner().unwrap();
    let more = if largest > 1 << 12 { 2 } else { 0 };
    let (in_use, bound) = (used.len() as u64 * GIB, 2 * peak + (cpus as u64 + more) * GIB);
    println!("{cpus} CPUs, ranges up to {largest} pages: {in_use} pages of addresses, bound {bound}");
    assert!(in_use <= bound, "{in_use} pages of addresses for at most {peak} mapped by {cpus} CPUs");
    sim.cpus.on(0, |ctx| space.clear(&ctx));
}

#[test]
fn addresses_in_use_are_bounded_by_what_is_mapped() {
    wander(1, 50, 1 << 10, 20_000);
    wander(2, 1000, 1 << 10, 20_000);
    wander(4, 300, 1 << 12, 10_000);
    wander(8, 600, 1 << 11, 5_000);
    // Of these most go to what all CPUs share.
    wander(4, 100, 1 << 14, 10_000);
    wander(4, 20, 1 << 18, 4000);
}

/// CPUs map ranges of any size between a page and a TiB, and unmap some, in pieces too: addresses in use, by whole GiB, stay below
/// what is said of them, though more is handed out than there is.
#[test]
fn addresses_of_ranges_of_all_sizes_are_bounded_and_do_not_run_out() {
    const CPUS: usize = 4;
    const STEPS: usize = 20_000;
    /// 8 TiB.
    const MOST: u64 = 8 << 28;
    let sim = Sim::new(CPUS, 8192);
    let space = sim.cpus.on(0, |ctx| sim.space(&ctx));
    let ledger = Mutex::new((Ledger::default(), 0u64));
    sim.cpus.run(|cpu, ctx| {
        let mut random = Random::new(77, cpu.index());
        for step in 0..STEPS {
            let size = random.below(29);
            let pages = 1 + random.below(1 << size);
            let taken = {
                let (Ledger { ranges, mapped, .. }, _) = &mut *ledger.lock().unwrap();
                let there = ranges.len() as u64;
                let full = *mapped + pages * CPUS as u64 > MOST || there > 2000;
                (there > 0 && (full || random.below(3) == 0))
                    .then(|| ranges.swap_remove(random.below(there) as usize))
            };
            if let Some(range) = taken {
                // In pieces, of which none is heard of, if they are small.
                let half = PageRange::new(range.start(), page(range.start().number() + range.len() / 2));
                let rest = PageRange::new(page(range.start().number() + range.len() / 2), range.end());
                if random.below(2) == 0 && range.len() > 1 {
                    for part in [half, rest].into_iter().flatten() {
                        assert_eq!(space.unmap(part, &ctx), Ok(()));
                    }
                } else {
                    assert_eq!(space.unmap(range, &ctx), Ok(()));
                }
                ledger.lock().unwrap().0.mapped -= range.len();
            } else {
                let got = space.map(Placement::Anywhere, pages, anonymous(RW), &ctx).expect("there is room");
                if random.below(4) == 0 {
                    assert_eq!(space.fault(got.start().base(), Access::Write, &ctx), Ok(()));
                }
                let (first, last) = (got.start().number() / GIB, (got.end().number() - 1) / GIB);
                let (ledger, handed) = &mut *ledger.lock().unwrap();
                ledger.ranges.push(got);
                ledger.mapped += pages;
                ledger.peak = ledger.peak.max(ledger.mapped);
                ledger.used.extend(first..=last);
                *handed += pages;
            }
            if step % 8 == 0 {
                sim.tick(&ctx);
            }
        }
    });
    let (Ledger { peak, used, .. }, handed) = ledger.into_inner().unwrap();
    let (in_use, bound) = (used.len() as u64 * GIB, 2 * peak + CPUS as u64 * GIB);
    println!("{in_use} pages of addresses for at most {peak} mapped, {handed} handed out, bound {bound}");
    assert!(in_use <= bound, "{in_use} pages of addresses for at most {peak} mapped");
    // More than a program has.
    assert!(handed > 1 << 35, "{handed} pages");
    sim.cpus.on(0, |ctx| space.clear(&ctx));
}
