//! Defects that radix address spaces were published with, as tests that all designs must pass: see docs/radixvm.md. Each is named
//! by its number there.

mod machine;

use std::sync::atomic::Ordering;

use addr::Prot;
use aspace::{Access, AddressSpace, Advice, Fault, Placement, RemapTo};
use machine::{Pages, RW, Sim, anonymous, object, page, range};
use owned::Use;
use percpu::Unpinned;

/// A mapping that is folded at every level: it begins and ends in the middle of a leaf, and has whole spans of 8, 64, 512 and
/// 2^18 pages.
const START: u64 = (1 << 20) - 37;
const END: u64 = (2 << 20) + 101;
/// Pages around which parts of it begin and end.
const EDGES: [u64; 9] =
    [START, START + 5, 1 << 20, (1 << 20) + 8, (1 << 20) + 64, (1 << 20) + 512, 5 << 18, END - 64, END];

/// What is expected of a page: nothing is mapped, or these rights and this value.
type Expected = Option<(Prot, u64)>;

/// Do `operation` to parts of a fresh mapping, each with pages before, in and behind it that were stored to; after that a
/// page of the part is `inside` of what it was, and the others are as before.
fn to_parts(
    operation: impl Fn(&dyn AddressSpace, addr::PageRange, &Unpinned<'_>),
    inside: impl Fn(u64) -> Expected,
) {
    let sim = Sim::new(1, 2048);
    sim.cpus.on(0, |ctx| {
        for (i, from) in EDGES.into_iter().enumerate() {
            for to in EDGES[i..].iter().flat_map(|&to| [to, to + 1]).filter(|&to| from < to && to <= END) {
                let space = sim.space(&ctx);
                sim.enter(&*space, &ctx);
                space.map(Placement::Fixed(page(START)), END - START, anonymous(RW), &ctx).expect("room");
                let near = |at: u64| [at.wrapping_sub(9), at.wrapping_sub(1), at, at + 1, at + 9];
                let stored: Vec<_> = [from, to, (from + to) / 2]
                    .into_iter()
                    .flat_map(near)
                    .filter(|at| (START..END).contains(at))
                    .collect();
                stored.iter().for_each(|&at| assert_eq!(sim.store(&*space, page(at), at, &ctx), Ok(())));
                operation(&*space, range(from, to - from), &ctx);
                for &at in stored.iter().chain(&[START, END - 1]) {
                    let before = if stored.contains(&at) { at } else { 0 };
                    let expected = if (from..to).contains(&at) { inside(before) } else { Some((RW, before)) };
                    let seen = sim.load(&*space, page(at), &ctx);
                    let written = space.fault(page(at).base(), Access::Write, &ctx);
                    let (read, write) = match expected {
                        None => (Err(Fault::NoMapping), Err(Fault::NoMapping)),
                        Some((prot, value)) => {
                            let write = if prot.contains(Prot::WRITE) { Ok(()) } else { Err(Fault::Denied) };
                            (if prot.is_empty() { Err(Fault::Denied) } else { Ok(value) }, write)
                        }
                    };
                    assert_eq!((seen, written), (read, write), "page {at:#x}, part {from:#x}..{to:#x}");
                }
                sim.leave(&*space, &ctx);
                space.clear(&ctx);
            }
        }
        assert_eq!(sim.owned(), [0; Use::COUNT], "frames were not given back");
    });
}

#[test]
fn d2_protecting_a_part_of_a_span_leaves_the_rest() {
    let protect = |prot| {
        to_parts(
            |space, part, ctx| assert_eq!(space.protect(part, prot, ctx), Ok(())),
            |value| Some((prot, value)),
        );
    };
    protect(Prot::READ);
    protect(Prot::empty());
}

#[test]
fn d2_unmapping_a_part_of_a_span_leaves_the_rest() {
    to_parts(|space, part, ctx| assert_eq!(space.unmap(part, ctx), Ok(())), |_| None);
}

#[test]
fn d2_advice_on_a_part_of_a_span_leaves_the_rest() {
    let advise = |advice| {
        move |space: &dyn AddressSpace, part, ctx: &Unpinned<'_>| {
            assert_eq!(space.advise(part, advice, ctx), Ok(()));
        }
    };
    to_parts(advise(Advice::DontNeed), |_| Some((RW, 0)));
    to_parts(advise(Advice::WillNeed), |value| Some((RW, value)));
}

/// A page is used by a CPU that then stays, idles with the space still loaded, or has gone elsewhere; another CPU takes it
/// away, and a third gets its frame. The first finds nothing of it.
fn d20(first: impl Fn(&'static Sim, &dyn AddressSpace, &Unpinned<'_>)) {
    let sim = Sim::new(3, 128);
    let space = sim.cpus.on(0, |ctx| sim.space(&ctx));
    let frame = sim.cpus.on(0, |ctx| {
        space.map(Placement::Fixed(page(START)), 2, anonymous(RW), &ctx).expect("there is room");
        sim.enter(&*space, &ctx);
        assert_eq!(sim.store(&*space, page(START), 7, &ctx), Ok(()));
        first(sim, &*space, &ctx);
        sim.frame_of(&*space, page(START), &ctx).expect("it has one")
    });
    sim.cpus.on(1, |ctx| {
        assert_eq!(space.unmap(range(START, 1), &ctx), Ok(()));
        // What this CPU keeps at hand goes back to all.
        sim.frames.drain(&ctx.pin());
    });
    sim.cpus.on(2, |ctx| {
        let all: Vec<_> =
            std::iter::from_fn(|| sim.frames.alloc_zeroed(&ctx.pin(), Use::Anonymous)).collect();
        assert!(all.iter().any(|owned| owned.frame() == frame), "the frame was not given out again");
        all.iter().for_each(|owned| sim.entries(owned.frame())[0].store(99, Ordering::SeqCst));
        all.into_iter().for_each(|owned| sim.frames.free(&ctx.pin(), owned));
    });
    sim.cpus.on(0, |ctx| {
        sim.leave(&*space, &ctx);
        sim.enter(&*space, &ctx);
        assert_eq!(sim.load(&*space, page(START), &ctx), Err(Fault::NoMapping));
        sim.leave(&*space, &ctx);
        space.clear(&ctx);
        assert_eq!(sim.owned(), [0; Use::COUNT]);
    });
}

#[test]
fn d20_a_frame_that_others_freed_and_got_is_not_translated_to() {
    d20(|_, _, _| ());
    d20(|sim, space, ctx| {
        sim.leave(space, ctx);
        sim.enter(space, ctx);
    });
    d20(|sim, space, ctx| {
        // It runs another space for a while.
        sim.leave(space, ctx);
        let other = sim.space(ctx);
        sim.enter(&*other, ctx);
        sim.leave(&*other, ctx);
        other.clear(ctx);
        sim.enter(space, ctx);
    });
}

/// D9: everything is unmapped again and again, objects' pages too; nothing piles up, and in the end nothing is left.
#[test]
fn d9_unmapping_everything_gives_everything_back() {
    let sim = Sim::new(1, 1024);
    sim.cpus.on(0, |ctx| {
        let space = sim.space(&ctx);
        sim.enter(&*space, &ctx);
        let pages = Pages::new(sim, 1, &[1, 2, 3, 4], &ctx);
        let mut tables = 0;
        for round in 0..40 {
            for i in 0..8 {
                let at = START + (i << (9 + i));
                let mapping = if i % 2 == 0 { anonymous(RW) } else { object(&pages, 0, RW, i % 4 == 1) };
                space.map(Placement::Fixed(page(at)), 4, mapping, &ctx).expect("there is room");
                (at..at + 4).for_each(|at| assert_eq!(sim.store(&*space, page(at), i, &ctx), Ok(())));
            }
            assert_eq!(space.unmap(range(1 << 10, 1 << 34), &ctx), Ok(()));
            let usage = space.usage(&ctx);
            assert_eq!((usage.mapped_pages, usage.resident_pages, usage.mappings), (0, 0, 0));
            assert_eq!(sim.owned()[Use::Anonymous as usize], 0, "frames are left");
            assert_eq!(pages.mapped(&ctx), 0, "the object is thought to be mapped");
            if round == 0 {
                tables = usage.table_pages;
            }
            assert!(usage.table_pages <= tables, "{} tables after {tables}", usage.table_pages);
        }
        sim.leave(&*space, &ctx);
        space.clear(&ctx);
        // Nothing names the object any more, but what this test has.
        for _ in 0..16 {
            sim.tick(&ctx);
        }
        assert_eq!(std::sync::Arc::strong_count(&pages), 1, "descriptors are left");
        pages.free(sim, &ctx);
        assert_eq!(sim.owned(), [0; Use::COUNT]);
    });
}

#[test]
fn what_shrinks_and_moves_near_keeps_its_contents() {
    let sim = Sim::new(1, 512);
    sim.cpus.on(0, |ctx| {
        // Borders of leaf tables, and of the tables above.
        for border in [9 << 9, 5 << 18] {
            for (from, to) in
                [(border - 2, border + 4), (border - 2, border - 300), (border + 600, border + 2)]
            {
                let space = sim.space(&ctx);
                sim.enter(&*space, &ctx);
                space.map(Placement::Fixed(page(from)), 4, anonymous(RW), &ctx).expect("room");
                (from..from + 4).for_each(|at| assert_eq!(sim.store(&*space, page(at), at, &ctx), Ok(())));
                let target = RemapTo::Fixed(page(to));
                assert_eq!(space.remap(range(from, 4), 2, target, &ctx), Ok(page(to)));
                for i in 0..2 {
                    assert_eq!(
                        sim.load(&*space, page(to + i), &ctx),
                        Ok(from + i),
                        "from {from:#x} to {to:#x}"
                    );
                }
                sim.leave(&*space, &ctx);
                space.clear(&ctx);
            }
        }
    });
}
