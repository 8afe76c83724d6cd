//! Random operations on trees, forked or not, against plain lists of pages; also when memory runs out.

use std::{collections::BTreeSet, ops::Range};

use percpu::{CpuId, Pinned};
use proptest::prelude::*;
use radix::{
    Error, Given, Mode, Reserve, Section, Space, Taken, Tree,
    page::Page,
    testing::{Form, Host, Pages, Small},
};
use refcache::AllStopped;

const CPUS: usize = 2;
/// Trees that there are at once at most.
const TREES: usize = 3;

fn pin(cpu: usize) -> Pinned<'static> {
    // SAFETY: each test is one thread that plays all CPUs in turn.
    unsafe { Pinned::assume(CpuId::new(cpu).expect("a CPU")) }
}

fn stopped() -> AllStopped {
    // SAFETY: as above.
    unsafe { AllStopped::assume() }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Map(usize, usize, u32),
    Unmap(usize, usize),
    Protect(usize, usize, u32),
    /// A frame for one page, as a fault gives it one.
    Touch(usize),
    /// The same for a folded span, as a whole.
    TouchAll(usize),
    Fork(usize, usize),
    Exit,
    Epochs(usize),
}

/// A tree, and what must be in it: a page for each interval between two of the test's keys.
struct Twin<F: Form> {
    tree: Tree<Host<F>>,
    pages: Vec<Page>,
}

struct Sim<F: Form> {
    space: &'static Host<F>,
    /// Where intervals begin, and where the last one ends.
    keys: Vec<u64>,
    twins: Vec<Twin<F>>,
    reserve: Reserve<Host<F>>,
    next_frame: u64,
}

/// Whether a page is shared a tree may learn late, so it isn't compared.
fn plain(page: Page) -> Page {
    page.with_shared(false)
}

impl<F: Form> Sim<F> {
    fn new(keys: Vec<u64>) -> Self {
        let space = Host::<F>::new(CPUS);
        let tree = Tree::new(space, &pin(0)).expect("there is memory");
        let twins = vec![Twin { tree, pages: vec![Page::EMPTY; keys.len() - 1] }];
        Self { space, keys, twins, reserve: Reserve::new(), next_frame: 1 << 20 }
    }
    fn interval(&self, key: u64) -> usize {
        self.keys.partition_point(|k| *k <= key) - 1
    }
    fn intervals(&self, first: u64, keys: u64) -> Range<usize> {
        self.interval(first)..self.interval(first + keys - 1) + 1
    }
    /// Whether a tree has the frame in interval `i`.
    fn is_held(&self, i: usize, pfn: u64) -> bool {
        self.twins.iter().any(|twin| twin.pages[i].pfn() == pfn)
    }
    /// What an operation took out of a tree that had `before` is what was there, and frames are free if and only if nobody
    /// has them.
    fn check_taken(&self, before: &[Page], after: &[Page], taken: &[Taken]) {
        let mut seen = BTreeSet::new();
        for one in taken {
            for i in self.intervals(one.first, one.keys) {
                seen.insert(i);
                let page = Page::of(one.value).part(self.keys[i].max(one.first) - one.first);
                assert_eq!(plain(page), plain(before[i]), "{one:?} out of interval {i}");
                if page.pfn() != 0 {
                    let freed = one.owned && self.space.drop_frame(page.pfn());
                    assert_eq!(freed, !self.is_held(i, page.pfn()), "{page:?}, {one:?}");
                }
            }
        }
        let gone = (0..before.len()).filter(|&i| before[i].is_mapped() && before[i] != after[i]);
        gone.for_each(|i| assert!(seen.contains(&i), "interval {i} was not given back"));
    }
    fn apply(&mut self, t: usize, cpu: usize, op: Op, memory: Option<u32>) {
        self.space.fail_after(memory);
        if let Err(error) = self.try_apply(t, cpu, op) {
            // No key has changed, nothing is locked; with memory it goes well.
            assert_eq!((error, memory.is_some()), (Error::OutOfMemory, true));
            self.check();
            self.space.fail_after(None);
            self.try_apply(t, cpu, op).expect("there is memory");
        }
        self.space.fail_after(None);
        self.check();
    }
    fn try_apply(&mut self, t: usize, cpu: usize, op: Op) -> Result<(), Error> {
        let (pin, before) = (pin(cpu), self.twins[t].pages.clone());
        let section = Section::new(self.space, &pin);
        let mut taken = Vec::new();
        match op {
            Op::Map(from, to, _) | Op::Unmap(from, to) => {
                let page = if let Op::Map(_, _, desc) = op { Page::new(desc) } else { Page::EMPTY };
                let mode = if page.is_mapped() { Mode::Fill } else { Mode::Take };
                let keys = self.keys[from]..self.keys[to];
                let tree = &self.twins[t].tree;
                let mut guard = tree.lock_range(keys, mode, &mut self.reserve, &section)?;
                guard.replace(page.word(), |one| taken.push(one));
                drop(guard);
                self.twins[t].pages[from..to].fill(page);
                self.check_taken(&before, &self.twins[t].pages, &taken);
            }
            Op::Protect(from, to, desc) => {
                let keys = self.keys[from]..self.keys[to];
                let tree = &self.twins[t].tree;
                let mut guard = tree.lock_range(keys, Mode::Edit, &mut self.reserve, &section)?;
                guard.update(|span| match Page::of(span.value) {
                    Page::EMPTY => 0,
                    page => page.with_desc(desc).word(),
                });
                drop(guard);
                let pages = self.twins[t].pages[from..to].iter_mut().filter(|page| page.is_mapped());
                pages.for_each(|page| *page = page.with_desc(desc));
            }
            Op::Touch(i) | Op::TouchAll(i) => self.touch(t, i, matches!(op, Op::TouchAll(_)), &section)?,
            Op::Fork(from, to) => self.fork(t, self.keys[from]..self.keys[to], &section)?,
            Op::Exit if self.twins.len() > 1 => {
                let Twin { tree, pages } = self.twins.remove(t);
                tree.retire(&section, |one| taken.push(one));
                self.check_taken(&pages, &vec![Page::EMPTY; pages.len()], &taken);
            }
            Op::Exit => {}
            Op::Epochs(n) => {
                drop(section);
                (0..n).for_each(|_| self.space.epoch(&stopped()));
            }
        }
        Ok(())
    }
    fn touch(&mut self, t: usize, i: usize, all: bool, on: &Section<'_, Host<F>>) -> Result<(), Error> {
        let key = self.keys[i];
        // Frames of a larger span would not be free one by one.
        let all = all && self.keys.len() as u64 > Tree::<Host<F>>::keys();
        if self.keys[i + 1] != key + 1 {
            return Ok(());
        }
        self.reserve.fill(self.space, &(key..key + 1), on.pin())?;
        let (tree, pages) = (&self.twins[t].tree, &self.twins[t].pages);
        let Some(mut guard) = tree.lock_one(key, on)? else {
            assert!(!pages[i].is_mapped());
            return Ok(());
        };
        let has_frame = |span: radix::Span| span.frozen || Page::of(span.value).pfn() != 0;
        if !all || has_frame(guard.span()) {
            guard.narrow_to(key, &mut self.reserve)?;
        }
        let (keys, slot) = (guard.keys(), guard.span());
        assert_eq!((slot.first, slot.first + slot.keys), (keys.start, keys.end));
        let old = Page::of(slot.value);
        assert_eq!(plain(old), plain(pages[i]));
        if old.pfn() != 0 && !old.is_shared() {
            assert_eq!(self.twins.iter().filter(|twin| twin.pages[i].pfn() == old.pfn()).count(), 1);
            return Ok(());
        }
        let pfn = self.next_frame;
        self.next_frame += slot.keys;
        guard.set(old.with_pfn(pfn).with_shared(false).word());
        drop(guard);
        for j in self.intervals(slot.first, slot.keys) {
            self.twins[t].pages[j] = self.twins[t].pages[j].with_pfn(pfn + self.keys[j] - slot.first);
        }
        if old.pfn() != 0 {
            assert_eq!(self.space.drop_frame(old.pfn()), !self.is_held(i, old.pfn()));
        }
        Ok(())
    }
    fn fork(&mut self, t: usize, keys: Range<u64>, on: &Section<'_, Host<F>>) -> Result<(), Error> {
        if self.twins.len() == TREES {
            return Ok(());
        }
        let mut child = Tree::new(self.space, on.pin())?;
        let all = 0..Tree::<Host<F>>::keys();
        let mut pages = self.twins[t].pages.clone();
        // Whole slots within the range only, as what is not inherited is by mappings; or all, if slots aren't intervals.
        let some = self.keys.len() as u64 > all.end;
        let inside =
            |span: &radix::Span| !some || keys.start <= span.first && span.first + span.keys <= keys.end;
        let guard = self.twins[t].tree.lock_range(all, Mode::Freeze, &mut self.reserve, on);
        let forked = guard.and_then(|mut guard| {
            for span in guard.spans().filter(|span| !inside(span)) {
                pages[self.intervals(span.first, span.keys)].fill(Page::EMPTY);
            }
            guard.fork(&mut child, |span, _| {
                if !inside(&span) {
                    return Ok(Given::Nothing);
                }
                // Some of the nodes are copied at once.
                let copied = span.frozen && ((span.first ^ keys.start) / span.keys).is_multiple_of(3);
                Ok(if copied { Given::Slots } else { Given::Same })
            })
        });
        if forked.is_err() {
            child.retire(on, |one| {
                let pfn = Page::of(one.value).pfn();
                let frames = pfn..pfn + if pfn == 0 || !one.owned { 0 } else { one.keys };
                frames.for_each(|pfn| assert!(!self.space.drop_frame(pfn)));
            });
        } else {
            self.twins.push(Twin { tree: child, pages });
        }
        forked
    }
    /// What each tree says of every key is what its list says.
    fn check(&self) {
        let pin = pin(0);
        let section = Section::new(self.space, &pin);
        for (t, twin) in self.twins.iter().enumerate() {
            twin.tree.audit(&stopped());
            for (i, page) in twin.pages.iter().enumerate() {
                for key in [self.keys[i], self.keys[i + 1] - 1] {
                    let found = twin.tree.get(key, &section);
                    let seen = Page::of(found.value).part(key - found.first);
                    let expected = page.part(key - self.keys[i]);
                    assert_eq!(plain(seen), plain(expected), "tree {t}, key {key:#x}, {found:?}");
                }
            }
        }
    }
    /// After everything is gone only the roots are there.
    fn end(mut self) {
        for t in 0..self.twins.len() {
            self.apply(t, 0, Op::Unmap(0, self.keys.len() - 1), None);
            let pin = pin(1);
            let section = Section::new(self.space, &pin);
            let all = 0..Tree::<Host<F>>::keys();
            let guard = self.twins[t].tree.lock_range(all, Mode::Cover, &mut self.reserve, &section);
            let guard = guard.expect("there is memory");
            guard.spans().for_each(|span| assert_eq!((span.value, span.frozen), (0, false)));
        }
        self.reserve.give_back(self.space, &pin(0));
        let nodes = |sim: &Self, twin: &Twin<F>| -> usize {
            let pin = pin(0);
            twin.tree.nodes(&Section::new(sim.space, &pin)).iter().sum()
        };
        // Three epochs for each of at most four levels, and three more where a change meets a node that is under review. A
        // node is freed a grace period after it has left the tree.
        for epoch in 0..28 {
            let left = self.twins.iter().map(|twin| nodes(&self, twin)).max();
            assert!(epoch < 24 || left == Some(1), "more than the roots are left");
            self.space.epoch(&stopped());
        }
        assert_eq!(self.space.memory().0, self.twins.len(), "the roots only");
        (0..16).for_each(|desc| assert_eq!(self.space.named(desc), 0, "descriptor {desc}"));
        assert_eq!(self.space.shared_frames(), 0);
        let pin = pin(0);
        for twin in self.twins {
            let section = Section::new(self.space, &pin);
            twin.tree.retire(&section, |one| panic!("{one:?} was left"));
        }
        self.space.settle(&stopped());
        assert_eq!(self.space.memory(), (0, 0));
    }
}

fn range(n: usize) -> impl Strategy<Value = (usize, usize)> {
    let len = move |len: usize| 1 + len * len * len / n / n;
    (0..n, 1..n).prop_map(move |(from, l)| (from, (from + len(l)).min(n)))
}

fn op(n: usize) -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => (range(n), 1..6u32).prop_map(|((from, to), desc)| Op::Map(from, to, desc)),
        4 => range(n).prop_map(|(from, to)| Op::Unmap(from, to)),
        3 => (range(n), 1..6u32).prop_map(|((from, to), desc)| Op::Protect(from, to, desc)),
        6 => (0..n).prop_map(Op::Touch),
        1 => (0..n).prop_map(Op::TouchAll),
        1 => range(n).prop_map(|(from, to)| Op::Fork(from, to)),
        1 => Just(Op::Fork(0, n)),
        1 => Just(Op::Exit),
        3 => (1..6usize).prop_map(Op::Epochs),
    ]
}

type Step = (usize, usize, Op, Option<u32>);

fn steps(n: usize) -> impl Strategy<Value = Vec<Step>> {
    let memory = prop_oneof![3 => Just(None), 1 => (0..4u32).prop_map(Some)];
    prop::collection::vec((0..TREES, 0..CPUS, op(n), memory), 1..60)
}

fn run<F: Form>(keys: Vec<u64>, steps: &[Step]) {
    let mut sim = Sim::<F>::new(keys);
    for &(t, cpu, op, memory) in steps {
        sim.apply(t % sim.twins.len(), cpu, op, memory);
    }
    sim.end();
}

/// Keys at and next to every level's edges, with single pages around them.
fn edges() -> Vec<u64> {
    let below = |level: usize| Host::<Pages>::BITS[level + 1..].iter().sum::<u32>();
    let [root, dir, table, block] = [0, 1, 2, 3].map(|level| 1 << below(level));
    let mut keys = BTreeSet::from([0, 1, Tree::<Host<Pages>>::keys() - 1, Tree::<Host<Pages>>::keys()]);
    let around = [root, root + dir, root + dir + 3 * table, 511 * table + 7 * block, 2 * root - block];
    for at in around.into_iter().chain([dir + 64, 255 * root]) {
        keys.extend([at - 2, at - 1, at, at + 1, at + 64, at + 65]);
    }
    keys.into_iter().collect()
}

fn cases() -> ProptestConfig {
    ProptestConfig::with_cases(if cfg!(debug_assertions) { 500 } else { 5000 })
}

proptest! {
    #![proptest_config(cases())]
    #[test]
    fn small_trees_are_as_their_lists(steps in steps(64)) {
        run::<Small>((0..=64).collect(), &steps);
    }
    #[test]
    fn trees_of_pages_are_as_their_lists(steps in steps(edges().len() - 1)) {
        run::<Pages>(edges(), &steps);
    }
}
