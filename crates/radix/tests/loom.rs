//! Every interleaving, and every order in which memory may be seen, of CPUs that meet in a tree of three levels of two slots.
//!
//! Each key has a cell that loom watches: who holds a key writes to it, who shares it reads it. A CPU that finds a slot locked
//! gives up after a few looks, and says so; the models check what the successful operations have left.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test --release -p quire-radix --test loom`.
#![cfg(loom)]

use std::{ops::Range, ptr::NonNull};

use loom::{cell::UnsafeCell, sync::Arc, thread};
use percpu::{CpuId, Pinned, testing::explore};
use radix::{
    Error, Given, Mode, Reserve, Section, SlotGuard, Tree,
    page::Page,
    testing::{Host, Tiny},
};
use refcache::AllStopped;

type Space = Host<Tiny>;

/// Rounds until an empty node is judged in CPU 0's next.
const EPOCHS: usize = 1;

fn pin(cpu: usize) -> Pinned<'static> {
    // SAFETY: each CPU is one thread's in a model, and the main thread's before and after.
    unsafe { Pinned::assume(CpuId::new(cpu).expect("a CPU")) }
}

fn stopped() -> AllStopped {
    // SAFETY: used by the main thread, before the others begin and after they have ended.
    unsafe { AllStopped::assume() }
}

/// A tree, and a cell for each of its keys.
struct Sim {
    space: NonNull<Space>,
    tree: Option<Tree<Space>>,
    cells: [UnsafeCell<()>; 8],
}

// SAFETY: loom fails the test if two uses of a cell race; that none do is what is shown.
unsafe impl Sync for Sim {}
// SAFETY: as above.
unsafe impl Send for Sim {}

impl Sim {
    /// Key `k` of `keys` has descriptor `desc`, folded as far as may be.
    fn new(cpus: usize, keys: Range<u64>, desc: u32) -> Self {
        let space = NonNull::from(Box::leak(Box::new(Space::owned(cpus))));
        // SAFETY: it is dropped when the model ends, after all that uses it.
        let tree = Tree::new(unsafe { space.as_ref() }, &pin(0)).expect("there is memory");
        let sim = Self { space, tree: Some(tree), cells: Default::default() };
        sim.map(0, keys, desc).expect("nobody else is here");
        sim
    }
    fn space(&self) -> &'static Space {
        // SAFETY: as above.
        unsafe { self.space.as_ref() }
    }
    fn tree(&self) -> &Tree<Space> {
        self.tree.as_ref().expect("until the end")
    }
    fn write(&self, keys: Range<u64>) {
        keys.for_each(|key| self.cells[key as usize].with_mut(|_| ()));
    }
    fn with_reserve<R>(
        &self,
        cpu: usize,
        f: impl FnOnce(&mut Reserve<Space>, &Section<'_, Space>) -> R,
    ) -> R {
        let (pin, mut reserve) = (pin(cpu), Reserve::new());
        let result = f(&mut reserve, &Section::new(self.space(), &pin));
        reserve.give_back(self.space(), &pin);
        result
    }
    /// Give all keys a descriptor, or none.
    fn map(&self, cpu: usize, keys: Range<u64>, desc: u32) -> Result<(), Error> {
        self.with_reserve(cpu, |reserve, section| {
            let page = if desc == 0 { Page::EMPTY } else { Page::new(desc) };
            let mode = if desc == 0 { Mode::Take } else { Mode::Fill };
            let mut guard = self.tree().lock_range(keys.clone(), mode, reserve, section)?;
            self.write(keys);
            guard.replace(page.word(), |_| ());
            Ok(())
        })
    }
    /// Change the descriptor of what is mapped.
    fn protect(&self, cpu: usize, keys: Range<u64>, desc: u32) -> Result<(), Error> {
        self.with_reserve(cpu, |reserve, section| {
            let mut guard = self.tree().lock_range(keys.clone(), Mode::Edit, reserve, section)?;
            self.write(keys);
            guard.update(|span| match Page::of(span.value) {
                Page::EMPTY => 0,
                page => page.with_desc(desc).word(),
            });
            Ok(())
        })
    }
    /// A fault: give a page that is mapped the frame of this number. False if nothing is mapped.
    fn touch(&self, cpu: usize, key: u64, pfn: u64) -> Result<bool, Error> {
        self.touch_then(cpu, key, pfn, |_| true)
    }
    /// A fault on `key`, which is in a leaf, that also gives `beside` a frame, if nobody is there. Whether it did.
    fn touch_both(&self, cpu: usize, [key, beside]: [u64; 2], pfn: u64) -> Result<bool, Error> {
        self.touch_then(cpu, key, pfn, |guard| {
            let Some(mut other) = guard.beside(beside, |_| true) else { return false };
            self.write(beside..beside + 1);
            other.set(Page::of(other.span().value).with_pfn(pfn).word());
            true
        })
    }
    /// A fault that does something more while it has the page.
    fn touch_then(
        &self,
        cpu: usize,
        key: u64,
        pfn: u64,
        then: impl FnOnce(&SlotGuard<'_, Space>) -> bool,
    ) -> Result<bool, Error> {
        self.with_reserve(cpu, |reserve, section| {
            reserve.fill(self.space(), &(key..key + 1), section.pin())?;
            let Some(mut guard) = self.tree().lock_one(key, section)? else { return Ok(false) };
            guard.narrow_to(key, reserve)?;
            self.write(key..key + 1);
            guard.set(Page::of(guard.span().value).with_pfn(pfn).word());
            Ok(then(&guard))
        })
    }
    fn get(&self, cpu: usize, key: u64) -> Page {
        let pin = pin(cpu);
        Page::of(self.tree().get(key, &Section::new(self.space(), &pin)).value)
    }
    /// Call `f` with the tree's twin.
    fn fork(&self, cpu: usize) -> Result<Twin, Error> {
        let pin = pin(cpu);
        let section = Section::new(self.space(), &pin);
        let mut twin = Tree::new(self.space(), &pin)?;
        let forked = self.tree().lock_range(0..8, Mode::Freeze, &mut Reserve::new(), &section);
        let result = forked.map(|mut guard| {
            self.write(0..8);
            guard.fork(&mut twin, |_, _| Ok(Given::Same))
        });
        match result {
            Ok(Ok(())) => Ok(Twin(twin)),
            Ok(Err(error)) | Err(error) => {
                twin.retire(&section, |_| ());
                Err(error)
            }
        }
    }
    /// Both CPUs wait until everything that is dead is gone.
    fn settle(&self) {
        self.space().settle(&stopped());
    }
}

struct Twin(Tree<Space>);

impl Drop for Sim {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        self.tree().audit(&stopped());
        let tree = self.tree.take().expect("the end comes once");
        let pin = pin(0);
        tree.retire(&Section::new(self.space(), &pin), |_| ());
        self.settle();
        assert_eq!(self.space().memory().0, 0, "all nodes are collected");
        (1..16).for_each(|desc| assert_eq!(self.space().named(desc), 0, "descriptor {desc}"));
        // SAFETY: made from a box, and nobody uses it any more.
        drop(unsafe { Box::from_raw(self.space.as_ptr()) });
    }
}

/// Run `first` on CPU 0 and `second` on CPU 1, who wait `patience` times for a slot.
fn two<A, B: Send + 'static>(
    sim: Sim,
    patience: usize,
    first: impl FnOnce(&Sim) -> A,
    second: impl FnOnce(&Sim) -> B + Send + 'static,
) -> (Sim, A, B) {
    sim.space().be_patient(patience);
    let sim = Arc::new(sim);
    let other = sim.clone();
    let thread = thread::spawn(move || {
        let result = second(&other);
        drop(other);
        result
    });
    let a = first(&sim);
    let b = thread.join().expect("the other CPU went well");
    sim.space().be_patient(usize::MAX);
    (Arc::try_unwrap(sim).unwrap_or_else(|_| panic!("the other CPU is done")), a, b)
}

/// Two first touches of one folded span (D1), and waiting for the slot that is narrowed (D11): each has its own page alone.
#[test]
fn first_touches_of_one_span_do_not_meet() {
    explore("two first touches of two pages of one span", None, || {
        let sim = Sim::new(2, 0..4, 1);
        let (sim, a, b) = two(sim, 2, |sim| sim.touch(0, 0, 10), |sim| sim.touch(1, 1, 11));
        for (result, key, pfn) in [(a, 0, 10), (b, 1, 11)] {
            let expected = if result.is_ok() { pfn } else { 0 };
            assert_eq!(sim.get(0, key), Page::new(1).with_pfn(expected));
        }
        assert!(a.is_ok() || b.is_ok());
        (2..4).for_each(|key| assert_eq!(sim.get(0, key), Page::new(1)));
    });
}

/// The same page: one of them is first, and nobody has a slot that is not bottommost (the cells show it).
#[test]
fn a_narrowed_slot_has_one_winner() {
    explore("two first touches of one page", Some(3), || {
        let sim = Sim::new(2, 0..4, 1);
        let (sim, a, b) = two(sim, 2, |sim| sim.touch(0, 0, 10), |sim| sim.touch(1, 0, 11));
        let pfn = sim.get(0, 0).pfn();
        assert!(a.is_ok() && pfn == 10 || b.is_ok() && pfn == 11);
    });
}

/// A fault waits for a part of a span that a range operation narrows.
#[test]
fn a_range_that_narrows_and_a_fault_divide_the_span() {
    explore("protecting a part against touching a page of it", Some(2), || {
        let sim = Sim::new(2, 0..4, 1);
        let (sim, a, b) = two(sim, 2, |sim| sim.protect(0, 1..3, 2), |sim| sim.touch(1, 2, 11));
        let desc = if a.is_ok() { 2 } else { 1 };
        let pfn = if b.is_ok() { 11 } else { 0 };
        assert_eq!(sim.get(0, 2), Page::new(desc).with_pfn(pfn));
        assert_eq!(sim.get(0, 1), Page::new(desc));
        assert_eq!((sim.get(0, 0), sim.get(0, 3)), (Page::new(1), Page::new(1)));
    });
}

/// Two ranges that overlap are ordered, as wholes (D3's re-lock: the second finds what the first has left).
#[test]
fn overlapping_ranges_are_ordered() {
    explore("two overlapping ranges", Some(2), || {
        let sim = Sim::new(2, 0..8, 1);
        let (sim, a, b) = two(sim, 1, |sim| sim.map(0, 1..6, 2), |sim| sim.map(1, 3..7, 3));
        let desc: Vec<_> = (0..8).map(|key| sim.get(0, key).desc()).collect();
        match (a, b) {
            (Ok(()), Ok(())) => {
                assert!(desc == [1, 2, 2, 2, 2, 2, 3, 1] || desc == [1, 2, 2, 3, 3, 3, 3, 1], "{desc:?}")
            }
            (Ok(()), _) => assert_eq!(desc, [1, 2, 2, 2, 2, 2, 1, 1]),
            (_, Ok(())) => assert_eq!(desc, [1, 1, 1, 3, 3, 3, 3, 1]),
            _ => assert_eq!(desc, [1; 8]),
        }
    });
}

/// A node is replaced by a folded value while another CPU waits for one of its slots, which becomes DEAD (D12).
#[test]
fn who_waits_for_a_replaced_slot_finds_the_new_one() {
    explore("folding against a fault that waits", Some(2), || {
        let sim = Sim::new(2, 0..4, 1);
        sim.touch(0, 0, 9).expect("nobody else is here");
        let (sim, a, b) = two(sim, 2, |sim| sim.map(0, 0..4, 2), |sim| sim.touch(1, 0, 11));
        let page = sim.get(0, 0);
        match (a, b) {
            // In either order: the mapping throws the frame away if it is second.
            (Ok(()), Ok(_)) => assert!(page == Page::new(2) || page == Page::new(2).with_pfn(11)),
            (Ok(()), Err(_)) => assert_eq!(page, Page::new(2)),
            (Err(_), Ok(_)) => assert_eq!(page, Page::new(1).with_pfn(11)),
            (Err(_), Err(_)) => assert_eq!(page, Page::new(1).with_pfn(9)),
        }
        assert_eq!(sim.get(0, 3).desc(), if a.is_ok() { 2 } else { 1 });
    });
}

/// The same for a range, which waits at the very slot: it gets on, however long the other takes.
#[test]
fn a_range_waits_for_a_replaced_slot_until_it_is_dead() {
    explore("folding against a range that waits", Some(2), || {
        let sim = Sim::new(2, 0..2, 1);
        sim.touch(0, 0, 9).expect("nobody else is here");
        let patience = usize::MAX;
        let (sim, a, b) = two(sim, patience, |sim| sim.map(0, 0..2, 2), |sim| sim.protect(1, 0..1, 3));
        assert_eq!((a, b), (Ok(()), Ok(())));
        assert_eq!(sim.get(0, 1).desc(), 2);
        assert!(sim.get(0, 0) == Page::new(2) || sim.get(0, 0) == Page::new(3));
    });
}

/// How many nodes the tree has.
fn nodes(sim: &Sim, cpu: usize) -> usize {
    let pin = pin(cpu);
    sim.tree().nodes(&Section::new(sim.space(), &pin)).iter().sum()
}

/// A tree with an empty node of leaves, which is judged in CPU 0's next round.
fn nearly_collapsed() -> Sim {
    let sim = Sim::new(2, 0..2, 1);
    sim.touch(0, 0, 9).expect("nobody else is here");
    sim.map(0, 0..8, 0).expect("nobody else is here");
    for _ in 0..EPOCHS {
        sim.space().epoch(&stopped());
    }
    assert_eq!(nodes(&sim, 0), 3);
    sim
}

/// For each way that a race may end, whether it did so in some execution.
#[derive(Clone, Default)]
struct Seen(std::sync::Arc<[std::sync::atomic::AtomicBool; 2]>);

impl Seen {
    fn note(&self, which: bool) {
        self.0[usize::from(which)].store(true, std::sync::atomic::Ordering::Relaxed);
    }
    fn both(&self) -> bool {
        self.0.iter().all(|seen| seen.load(std::sync::atomic::Ordering::Relaxed))
    }
}

/// Refcache takes an empty node away while another CPU maps into it (D12): the mapping is there afterwards.
#[test]
fn what_is_mapped_into_a_collapsing_node_stays() {
    let seen = Seen::default();
    let noted = seen.clone();
    explore("collapse against mapping", None, move || {
        let sim = nearly_collapsed();
        let (sim, (), b) = two(sim, 3, |sim| sim.space().tick(&mut pin(0)), |sim| sim.map(1, 0..1, 2));
        // The collapsed node waits for its grace period, and there is another.
        noted.note(sim.space().memory().0 == 3);
        sim.space().tick(&mut pin(1));
        assert_eq!(sim.get(0, 0).desc(), if b.is_ok() { 2 } else { 0 });
        sim.settle();
        assert_eq!(sim.get(0, 0).desc(), if b.is_ok() { 2 } else { 0 });
    });
    assert!(seen.both(), "the node collapses first, or is revived first");
}

/// Lookups and faults pass through a node while it collapses, and read nothing that was freed (D5, D12).
#[test]
fn a_collapsing_node_is_read_until_the_section_ends() {
    explore("collapse against lookup and fault", Some(3), || {
        let sim = nearly_collapsed();
        let (_sim, (), page) = two(
            sim,
            3,
            |sim| (0..3).for_each(|_| sim.space().tick(&mut pin(0))),
            |sim| {
                let page = sim.get(1, 0);
                assert_eq!(sim.touch(1, 0, 11), Ok(false));
                sim.space().tick(&mut pin(1));
                page
            },
        );
        assert_eq!(page, Page::EMPTY);
    });
}

/// A lookup that takes no lock reads what the value names while that is replaced (D5): it is freed a grace period later.
#[test]
fn what_a_lookup_has_found_is_not_freed_under_it() {
    #[repr(C)]
    struct Object {
        head: rcu::Head,
        sim: *const Sim,
    }
    unsafe fn free(head: NonNull<rcu::Head>, _: &Pinned<'_>) {
        // SAFETY: made from a box below, head first; the model goes on.
        let object = unsafe { Box::from_raw(head.cast::<Object>().as_ptr()) };
        // SAFETY: as above. Descriptor 1's contents are key 7's cell here.
        unsafe { &*object.sim }.cells[7].with_mut(|_| ());
    }
    explore("lookup against replacement of what it finds", Some(3), || {
        let sim = Sim::new(2, 0..4, 1);
        sim.cells[6].with_mut(|_| ());
        let (_sim, (), ()) = two(
            sim,
            3,
            |sim| {
                if sim.map(0, 0..4, 2).is_ok() {
                    let object = Box::leak(Box::new(Object { head: rcu::Head::new(), sim }));
                    // SAFETY: no slot names the descriptor any more; `free` frees it, once.
                    let retired = unsafe { rcu::Retired::new(NonNull::from(object).cast(), free) };
                    radix::Space::rcu(sim.space()).call(&pin(0), retired);
                    (0..3).for_each(|_| _ = radix::Space::rcu(sim.space()).tick(&mut pin(0)));
                }
            },
            |sim| {
                {
                    let pin = pin(1);
                    let section = Section::new(sim.space(), &pin);
                    let desc = Page::of(sim.tree().get(0, &section).value).desc();
                    sim.cells[8 - desc as usize].with(|_| ());
                }
                radix::Space::rcu(sim.space()).qs(&mut pin(1));
            },
        );
    });
}

/// A fork freezes a node in which another CPU changes a page (D14): the twin has it as it was before, or after.
#[test]
fn a_fork_waits_for_the_fault_in_the_node_that_it_freezes() {
    explore("freezing against a fault", None, || {
        let sim = Sim::new(2, 0..2, 1);
        sim.touch(0, 1, 9).expect("nobody else is here");
        let (sim, twin, touched) = two(sim, 3, |sim| sim.fork(0), |sim| sim.touch(1, 0, 11));
        let pfn = if touched.is_ok() { 11 } else { 0 };
        assert_eq!(sim.get(0, 0).pfn(), pfn);
        end_twin(&sim, twin, |pages| assert!(pages[0].pfn() == 0 || pages[0].pfn() == pfn, "{pages:?}"));
    });
}

/// A slot that is taken beside another belongs to one holder, whoever has locked it first.
#[test]
fn a_page_beside_a_fault_has_one_holder() {
    explore("a page beside a fault, and a range", Some(3), || {
        let sim = Sim::new(2, 0..2, 1);
        sim.touch(0, 1, 9).expect("nobody else is here");
        let (sim, both, done) =
            two(sim, 0, |sim| sim.touch_both(0, [1, 0], 11), |sim| sim.protect(1, 0..1, 2));
        let page = sim.get(0, 0);
        assert_eq!(page.pfn(), if both == Ok(true) { 11 } else { 0 });
        assert_eq!(page.desc(), if done.is_ok() { 2 } else { 1 });
    });
}

/// A fork that has passed the lower of two pages still waits for the upper one, which the fault gives up last.
#[test]
fn a_fork_waits_for_the_page_beside_a_fault() {
    explore("freezing against two pages of a fault", Some(3), || {
        let sim = Sim::new(2, 0..2, 1);
        sim.touch(0, 1, 9).expect("nobody else is here");
        let (sim, twin, both) = two(sim, 2, |sim| sim.fork(0), |sim| sim.touch_both(1, [1, 0], 11));
        let pfn = if both == Ok(true) { 11 } else { 0 };
        assert_eq!(sim.get(0, 0).pfn(), pfn);
        end_twin(&sim, twin, |pages| {
            let seen = [pages[0].pfn(), pages[1].pfn()];
            assert!(seen == [0, 9] || seen == [pfn, 11], "{pages:?}");
        });
    });
}

/// The same for a range: the twin has all of it as before, or as after.
#[test]
fn a_fork_sees_a_range_as_a_whole() {
    explore("freezing against a range", Some(2), || {
        let sim = Sim::new(2, 0..2, 1);
        sim.touch(0, 1, 9).expect("nobody else is here");
        let (sim, twin, done) = two(sim, 2, |sim| sim.fork(0), |sim| sim.protect(1, 0..2, 2));
        let desc = if done.is_ok() { 2 } else { 1 };
        (0..2).for_each(|key| assert_eq!(sim.get(0, key).desc(), desc));
        end_twin(&sim, twin, |pages| {
            assert_eq!(pages[0].desc(), pages[1].desc());
            assert!(pages[0].desc() == 1 || pages[0].desc() == desc, "{pages:?}");
        });
    });
}

/// A range of which all is EMPTY, in two nodes, where a fork locks nothing: the twin has all of what is mapped there or nothing.
#[test]
fn a_fork_sees_what_fills_empty_slots_as_a_whole() {
    explore("a fork's gate against a range", Some(2), || {
        let sim = Sim::new(2, 0..2, 1);
        let (sim, twin, done) = two(sim, 3, |sim| sim.fork(0), |sim| sim.map(1, 2..8, 2));
        if done.is_ok() {
            (2..8).for_each(|key| assert_eq!(sim.get(0, key), Page::new(2)));
        }
        end_twin(&sim, twin, |pages| {
            assert_eq!(pages[0], Page::new(1));
            assert!(pages[2..].iter().all(|page| *page == pages[2]), "{pages:?}");
            assert!(pages[2] == Page::EMPTY || done.is_ok() && pages[2] == Page::new(2), "{pages:?}");
        });
    });
}

/// A fork freezes the node whose place another CPU gives to a folded value: one of them is first, and the fold may be left out.
#[test]
fn a_fork_and_a_fold_of_one_node_are_ordered() {
    explore("freezing against folding", Some(3), || {
        let sim = Sim::new(2, 0..2, 1);
        sim.touch(0, 0, 9).expect("nobody else is here");
        let (sim, twin, done) = two(sim, 3, |sim| sim.fork(0), |sim| sim.map(1, 0..2, 2));
        let after = Page::new(2);
        if done.is_ok() {
            (0..2).for_each(|key| assert_eq!(sim.get(0, key), after));
        }
        end_twin(&sim, twin, |pages| {
            let before = pages[0].pfn() == 9 && pages[1] == Page::new(1);
            assert!(before || done.is_ok() && pages[..2] == [after; 2], "{pages:?}");
        });
    });
}

/// Two forks of one tree are ordered by the lock of the link that both freeze.
#[test]
fn two_forks_share_one_node() {
    explore("two forks", Some(2), || {
        let sim = Sim::new(2, 0..2, 1);
        sim.touch(0, 0, 9).expect("nobody else is here");
        let (sim, a, b) = two(sim, 3, |sim| sim.fork(0), |sim| sim.fork(1));
        let twins = u32::from(a.is_ok()) + u32::from(b.is_ok());
        let shared = {
            let pin = pin(0);
            sim.tree().sharers(0, &Section::new(sim.space(), &pin))
        };
        assert!(twins == 0 || shared == Some((1 + twins, false)), "{twins} {shared:?}");
        for twin in [a, b] {
            end_twin(&sim, twin, |pages| assert_eq!((pages[0].pfn(), pages[1].desc()), (9, 1)));
        }
        assert_eq!(sim.touch(0, 1, 10), Ok(true));
        assert_eq!((sim.get(0, 0).pfn(), sim.get(0, 1).pfn()), (9, 10));
    });
}

/// Refcache takes an empty node away, or a fork does (D12).
#[test]
fn a_fork_meets_a_collapsing_node() {
    explore("collapse against fork", None, || {
        let sim = nearly_collapsed();
        let (sim, (), twin) = two(sim, 3, |sim| sim.space().tick(&mut pin(0)), |sim| sim.fork(1));
        end_twin(&sim, twin, |pages| assert_eq!(pages, [Page::EMPTY; 8]));
        assert_eq!(sim.get(0, 0), Page::EMPTY);
    });
}

fn end_twin(sim: &Sim, twin: Result<Twin, Error>, check: impl FnOnce(&[Page])) {
    let Ok(Twin(twin)) = twin else { return };
    let pin = pin(0);
    let section = Section::new(sim.space(), &pin);
    let pages: Vec<_> = (0..8).map(|key| Page::of(twin.get(key, &section).value)).collect();
    check(&pages);
    twin.audit(&stopped());
    twin.retire(&section, |_| ());
}

/// Both trees that have a frozen node change it at once (D14): one copies and one takes over, or both copy.
#[test]
fn the_last_two_trees_part_from_a_frozen_node() {
    explore("two trees change a frozen node", None, || {
        let sim = Sim::new(2, 0..2, 1);
        sim.touch(0, 0, 9).expect("nobody else is here");
        let Twin(twin) = sim.fork(0).unwrap_or_else(|error| panic!("{error}"));
        let twin = Arc::new(twin);
        let theirs = twin.clone();
        let (sim, a, ()) = two(
            sim,
            3,
            |sim| sim.touch(0, 0, 10),
            move |sim| {
                let (pin, mut reserve) = (pin(1), Reserve::new());
                {
                    let section = Section::new(sim.space(), &pin);
                    let guard = theirs.lock_range(0..1, Mode::Edit, &mut reserve, &section);
                    guard.expect("nobody else uses it").update(|span| {
                        assert!(Page::of(span.value).is_shared());
                        Page::of(span.value).with_pfn(11).with_shared(false).word()
                    });
                }
                reserve.give_back(sim.space(), &pin);
            },
        );
        assert_eq!(a, Ok(true));
        assert_eq!(sim.get(0, 0).pfn(), 10);
        let twin = Arc::try_unwrap(twin).unwrap_or_else(|_| panic!("the other CPU is done"));
        end_twin(&sim, Ok(Twin(twin)), |pages| assert_eq!((pages[0].pfn(), pages[1].pfn()), (11, 0)));
        // The frame was in one node, then in two, and in the end each page gave it up.
        assert_eq!(sim.space().shared_frames(), usize::from(!sim.space().drop_frame(9)));
    });
}

impl Twin {
    /// Change keys in the twin, as its last user but for CPU `cpu`: a new descriptor, or none.
    fn change(&self, sim: &Sim, cpu: usize, keys: Range<u64>, desc: u32) -> Result<(), Error> {
        sim.with_reserve(cpu, |reserve, section| {
            let mode = if desc == 0 { Mode::Take } else { Mode::Edit };
            let mut guard = self.0.lock_range(keys.clone(), mode, reserve, section)?;
            match desc {
                0 => guard.replace(0, |_| ()),
                _ => guard.update(|span| Page::of(span.value).with_desc(desc).word()),
            }
            Ok(())
        })
    }
}

/// What CPU 1 finds of key 1 in the first tree, by each way of looking: always what has been there from the start.
fn look(sim: &Sim) {
    let pin = pin(1);
    let section = Section::new(sim.space(), &pin);
    assert_eq!(Page::of(sim.tree().get(1, &section).value).desc(), 1, "got");
    let mut found = None;
    sim.tree().scan(1..2, &section, |one| {
        found = Some(Page::of(one.value).desc());
        true
    });
    assert_eq!(found, Some(1), "scanned");
    let mut glanced = None;
    sim.tree().glance(1..2, u64::MAX, &section, |one| glanced = Some(Page::of(one.value).desc()));
    assert_eq!(glanced, Some(1), "glanced");
    let locked = sim.tree().lock_one(1, &section);
    assert!(locked.is_err() || locked.is_ok_and(|guard| guard.is_some()), "locked");
}

/// A node that both trees have is left by the first, taken over by the second, and changed there (D14): who looks something up
/// in the first and is in that node doesn't find what is the second's.
#[test]
fn a_lookup_leaves_a_node_that_another_tree_takes_over() {
    for desc in [0, 2] {
        explore("a lookup against leaving and taking over", Some(3), move || {
            let sim = Sim::new(2, 0..2, 1);
            sim.touch(0, 0, 9).expect("nobody else is here");
            let twin = sim.fork(0).unwrap_or_else(|error| panic!("{error}"));
            let leave_and_take = |sim: &Sim| {
                if sim.touch(0, 0, 10).is_ok() {
                    twin.change(sim, 0, 1..2, desc).expect("nobody else uses it");
                }
            };
            let (sim, (), ()) = two(sim, 3, leave_and_take, look);
            end_twin(&sim, Ok(twin), |pages| assert!(pages[1].desc() == 1 || pages[1].desc() == desc));
        });
    }
}

/// The same for a lookup, or a fault, that has come by the link of a node before it was frozen.
#[test]
fn a_fault_leaves_a_node_that_was_frozen_and_taken_over() {
    explore("a fault against freezing, leaving and taking over", Some(2), || {
        let sim = Sim::new(2, 0..2, 1);
        sim.touch(0, 0, 9).expect("nobody else is here");
        let fork_and_all = |sim: &Sim| {
            let twin = sim.fork(0)?;
            if sim.touch(0, 0, 10).is_ok() {
                twin.change(sim, 0, 1..2, 0).expect("nobody else uses it");
            }
            Ok(twin)
        };
        let (sim, twin, ()) = two(sim, 3, fork_and_all, look);
        end_twin(&sim, twin, |pages| assert!(pages[1].desc() <= 1));
    });
}

/// Both trees part from their node at once, so either of them may be the one that takes it over, while a third CPU looks.
#[test]
fn a_lookup_meets_two_trees_that_part() {
    explore("a lookup against two trees that part", Some(2), || {
        let sim = Sim::new(3, 0..2, 1);
        sim.touch(0, 0, 9).expect("nobody else is here");
        let twin = std::sync::Arc::new(sim.fork(0).unwrap_or_else(|error| panic!("{error}")));
        let theirs = twin.clone();
        sim.space().be_patient(2);
        let sim = Arc::new(sim);
        let (one, other) = (sim.clone(), sim.clone());
        let parts = thread::spawn(move || _ = theirs.change(&one, 2, 1..2, 0));
        let looks = thread::spawn(move || look(&other));
        _ = sim.touch(0, 0, 10);
        parts.join().expect("the third CPU went well");
        looks.join().expect("the second CPU went well");
        sim.space().be_patient(usize::MAX);
        let sim = Arc::try_unwrap(sim).unwrap_or_else(|_| panic!("the others are done"));
        let twin = std::sync::Arc::try_unwrap(twin).unwrap_or_else(|_| panic!("the others are done"));
        end_twin(&sim, Ok(twin), |pages| assert!(pages[1].desc() <= 1));
    });
}
