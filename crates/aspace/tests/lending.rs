//! Pages that objects lend to mappings: the races of the essay at the top of `mappers.rs`, and what is to be seen of them.

mod machine;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
    mpsc,
};
use std::time::Duration;

use addr::Prot;
use aspace::{
    AddressSpace, Advice, Backing, Fault, Mappers, Mapping, Object, ObjectError, Placement, Policy,
};
use machine::{Pages, RW, Sim, anonymous, object, page, range};
use owned::{Memory, OwnedFrame, Use};
use percpu::{CpuId, Pinned, Unpinned};

const BASE: u64 = 0x1000;

fn end(sim: &'static Sim, space: &Arc<dyn AddressSpace>, ctx: &Unpinned<'_>) {
    space.clear(ctx);
    assert_eq!(sim.owned(), [0; Use::COUNT], "frames were not given back");
}

/// Two CPUs that know page [`BASE`] of an object of two pages, and the space.
fn shown_on_two_cpus(sim: &'static Sim) -> (Arc<Pages>, Arc<dyn AddressSpace>) {
    let pages = sim.cpus.on(0, |ctx| Pages::new(sim, 1, &[41, 42], &ctx));
    let space = sim.cpus.on(0, |ctx| {
        let space = sim.space(&ctx);
        let at = Placement::Fixed(page(BASE));
        space.map(at, 2, object(&pages, 0, RW, true), &ctx).expect("there is room");
        space
    });
    for cpu in [0, 1] {
        sim.cpus.on(cpu, |ctx| {
            sim.enter(&*space, &ctx);
            assert_eq!(sim.load(&*space, page(BASE), &ctx), Ok(41));
        });
    }
    (pages, space)
}

#[test]
fn a_page_that_is_cut_off_while_its_mapping_is_away_does_not_come_back() {
    [true, false].into_iter().for_each(cut_off_while_its_mapping_is_away);
}

/// The page is given to who may sleep, or, if it is `at_hand`, to who may not.
fn cut_off_while_its_mapping_is_away(at_hand: bool) {
    let sim = Sim::new(2, 256);
    let (pages, space) = shown_on_two_cpus(sim);
    *pages.at_hand.lock().unwrap() = Some(at_hand);
    let ((given, wait), (cut, go_on)) = (mpsc::channel(), mpsc::channel());
    *pages.on_given.lock().unwrap() = Some(Box::new(move || {
        given.send(()).expect("the other CPU waits");
        // Who has to wait for this fault is not waited for.
        let _ = go_on.recv_timeout(Duration::from_millis(200));
    }));
    let ends = std::sync::Mutex::new((wait, cut));
    sim.cpus.run(|cpu, ctx| {
        if cpu == CpuId::default() {
            // The second page has no frame yet. What was there before the cut may be seen, and what is there after it may not be.
            let _ = sim.load(&*space, page(BASE + 1), &ctx);
        } else {
            let (wait, cut) = &*ends.lock().unwrap();
            wait.recv().expect("a page is given");
            assert_eq!(space.unmap(range(BASE, 2), &ctx), Ok(()));
            pages.resize(sim, 0, &ctx);
            let at = Placement::Fixed(page(BASE));
            space.map(at, 2, object(&pages, 0, RW, true), &ctx).expect("there is room");
            let _ = cut.send(());
        }
    });
    sim.cpus.on(0, |ctx| {
        assert_eq!(sim.load(&*space, page(BASE + 1), &ctx), Err(Fault::BeyondObject));
        sim.leave(&*space, &ctx);
    });
    sim.cpus.on(1, |ctx| {
        sim.leave(&*space, &ctx);
        end(sim, &space, &ctx);
    });
}

#[test]
fn a_page_that_is_lent_is_copied_before_it_is_written() {
    let sim = Sim::new(1, 256);
    sim.cpus.on(0, |ctx| {
        let pages = Pages::new(sim, 1, &[41], &ctx);
        let space = sim.space(&ctx);
        let (private, shared) = (BASE, BASE + 1000);
        for (at, whose) in [(private, false), (shared, true)] {
            let mapping = object(&pages, 0, RW, whose);
            space.map(Placement::Fixed(page(at)), 1, mapping, &ctx).expect("there is room");
        }
        sim.enter(&*space, &ctx);
        // Read first, so that the page is there when it is written; and allowed anew.
        assert_eq!(sim.load(&*space, page(private), &ctx), Ok(41));
        assert_eq!(space.protect(range(private, 1), Prot::READ, &ctx), Ok(()));
        assert_eq!(space.protect(range(private, 1), RW, &ctx), Ok(()));
        assert_eq!(sim.store(&*space, page(private), 7, &ctx), Ok(()));
        assert_eq!(sim.load(&*space, page(shared), &ctx), Ok(41), "a private store is seen in the object");
        assert_eq!(sim.store(&*space, page(shared), 42, &ctx), Ok(()));
        assert_eq!(sim.load(&*space, page(private), &ctx), Ok(7));
        sim.leave(&*space, &ctx);
        space.clear(&ctx);
        pages.free(sim, &ctx);
        assert_eq!(sim.owned(), [0; Use::COUNT], "frames were not given back");
    });
}

#[test]
fn who_shows_a_page_is_found() {
    let sim = Sim::new(2, 256);
    let (pages, space) = shown_on_two_cpus(sim);
    sim.cpus.on(0, |ctx| {
        let shown = |ctx: &Unpinned<'_>| {
            let mut counts = [0; 2];
            let mappers = pages.mappers().expect("it says who maps it");
            mappers.shown(0..2, ctx, &mut |page| counts[page as usize] += 1);
            counts
        };
        assert_eq!(shown(&ctx), [1, 0]);
        // Another mapping here, from the second page on, and a child, which asks for what it shows when it uses it.
        let there = object(&pages, 1, RW, true);
        space.map(Placement::Fixed(page(BASE + 1000)), 1, there, &ctx).expect("there is room");
        assert_eq!(sim.load(&*space, page(BASE + 1000), &ctx), Ok(42));
        assert_eq!(sim.load(&*space, page(BASE + 1), &ctx), Ok(42));
        let child = space.fork(&ctx).expect("there is memory");
        sim.leave(&*space, &ctx);
        sim.enter(&*child, &ctx);
        assert_eq!(sim.load(&*child, page(BASE), &ctx), Ok(41));
        assert_eq!(shown(&ctx), [2, 2]);
        sim.leave(&*child, &ctx);
        child.clear(&ctx);
        assert_eq!(shown(&ctx), [1, 2]);
        pages.resize(sim, 0, &ctx);
        assert_eq!(shown(&ctx), [0, 0]);
    });
    sim.cpus.on(1, |ctx| {
        sim.leave(&*space, &ctx);
        end(sim, &space, &ctx);
    });
}

/// A cut comes while `take` has taken a page out, and has not yet told the other CPU: it must not be over before that is.
fn a_cut_waits(take: impl Fn(&dyn AddressSpace, &Unpinned<'_>)) {
    let sim = Sim::new(3, 256);
    let (pages, space) = shown_on_two_cpus(sim);
    let cutter = Arc::new(std::sync::Mutex::new(None));
    let (of, begun) = (pages.clone(), cutter.clone());
    *sim.on_flush.lock().unwrap() = Some(Arc::new(move || {
        let mut begun = begun.lock().unwrap();
        if begun.is_some() {
            return;
        }
        let (of, (done, wait)) = (of.clone(), mpsc::channel());
        // The frames are given back there, which finds whoever translates to them.
        *begun = Some(std::thread::spawn(move || {
            sim.cpus.on(2, |ctx| of.resize(sim, 0, &ctx));
            let _ = done.send(());
        }));
        drop(begun);
        let _ = wait.recv_timeout(Duration::from_millis(100));
    }));
    sim.cpus.on(1, |ctx| take(&*space, &ctx));
    let cutter = cutter.lock().unwrap().take().expect("somebody was shot down");
    cutter.join().expect("no CPU translates to what is given back");
    *sim.on_flush.lock().unwrap() = None;
    sim.cpus.on(0, |ctx| sim.leave(&*space, &ctx));
    sim.cpus.on(1, |ctx| {
        sim.leave(&*space, &ctx);
        end(sim, &space, &ctx);
    });
}

#[test]
fn a_cut_waits_for_what_is_unmapped() {
    a_cut_waits(|space, ctx| assert_eq!(space.unmap(range(BASE, 2), ctx), Ok(())));
}

#[test]
fn a_cut_waits_for_what_is_replaced() {
    a_cut_waits(|space, ctx| {
        let there = space.map(Placement::Fixed(page(BASE)), 2, anonymous(RW), ctx);
        assert_eq!(there, Ok(range(BASE, 2)));
    });
}

#[test]
fn a_cut_waits_for_what_is_discarded() {
    a_cut_waits(|space, ctx| assert_eq!(space.advise(range(BASE, 2), Advice::DontNeed, ctx), Ok(())));
}

/// An object that says when it ended.
struct Mortal {
    pages: Arc<Pages>,
    flushes: &'static AtomicUsize,
    /// How many flushes there had been.
    ended: Arc<AtomicUsize>,
}

impl Drop for Mortal {
    fn drop(&mut self) {
        self.ended.store(self.flushes.load(Ordering::SeqCst) + 1, Ordering::SeqCst);
    }
}

impl Object for Mortal {
    fn page(&self, i: u64, p: &Policy, f: &Memory, c: &Unpinned<'_>) -> Result<OwnedFrame, ObjectError> {
        self.pages.page(i, p, f, c)
    }
    fn lend(&self, i: u64, p: &Policy, f: &Memory, c: &Unpinned<'_>) -> Result<OwnedFrame, ObjectError> {
        self.pages.lend(i, p, f, c)
    }
    fn at_hand(&self, i: u64, lent: bool, f: &Memory, p: &Pinned<'_>) -> Option<OwnedFrame> {
        self.pages.at_hand(i, lent, f, p)
    }
    fn identity(&self) -> (u64, u64) {
        self.pages.identity()
    }
    fn path(&self) -> Vec<u8> {
        Vec::new()
    }
    fn mappers(&self) -> Option<&Mappers> {
        self.pages.mappers()
    }
}

#[test]
fn an_object_ends_after_the_flush() {
    let sim = Sim::new(2, 256);
    let pages = sim.cpus.on(0, |ctx| Pages::new(sim, 1, &[41, 42], &ctx));
    let ended = Arc::new(AtomicUsize::new(0));
    let space = sim.cpus.on(0, |ctx| {
        let space = sim.space(&ctx);
        let object: Arc<dyn Object> =
            Arc::new(Mortal { pages: pages.clone(), flushes: &sim.flushes, ended: ended.clone() });
        let mapping = Mapping { shared: true, ..Mapping::new(RW, Backing::Object { object, page: 0 }) };
        space.map(Placement::Fixed(page(BASE)), 2, mapping, &ctx).expect("there is room");
        sim.enter(&*space, &ctx);
        assert_eq!(sim.load(&*space, page(BASE), &ctx), Ok(41));
        space
    });
    let before = sim.flushes.load(Ordering::SeqCst);
    sim.cpus.on(1, |ctx| assert_eq!(space.unmap(range(BASE, 2), &ctx), Ok(())));
    assert!(sim.flushes.load(Ordering::SeqCst) > before, "nobody was shot down");
    for _ in 0..64 {
        (0..2).for_each(|cpu| sim.cpus.on(cpu, |ctx| sim.tick(&ctx)));
    }
    let ended = ended.load(Ordering::SeqCst);
    assert!(ended > 0, "an object is kept for ever");
    assert!(ended > before + 1, "an object ended before a CPU was told to forget its page");
    sim.cpus.on(0, |ctx| {
        sim.leave(&*space, &ctx);
        pages.free(sim, &ctx);
        end(sim, &space, &ctx);
    });
}
