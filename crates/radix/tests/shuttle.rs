//! Five CPUs that do anything at all to the same pages, in schedules drawn at random: longer ones than can be explored whole.
//! The same for a family of trees, which are forked and ended meanwhile.
//!
//! A record beside each tree says who holds which key, and what the last holder has left there. Holders compare, so each
//! history is one in which operations follow each other; a lookup finds a value that was there during its time. A fork
//! copies the record.
#![cfg(shuttle)]

use std::{ops::Range, sync::Mutex};

use percpu::{CpuId, Pinned};
use radix::{
    Given, Mode, Reserve, Section, Span, Tree,
    page::Page,
    testing::{Host, Small},
};
use refcache::AllStopped;
use shuttle::{
    Config, Runner,
    rand::{Rng, thread_rng},
    scheduler::{PctScheduler, RandomScheduler, Scheduler},
    sync::Arc,
    thread,
};

const CPUS: usize = 5;
const STEPS: usize = 12;
/// Keys that are used, of 64: some edges of nodes, in one part of the tree.
const KEYS: u64 = 24;

type Space = Host<Small>;

fn pin(cpu: usize) -> Pinned<'static> {
    // SAFETY: each CPU is one thread's, and the main thread's before and after.
    unsafe { Pinned::assume(CpuId::new(cpu).expect("a CPU")) }
}

/// What must be at a key: the last values with the times from which they were there, and who holds it.
#[derive(Clone, Default)]
struct Key {
    values: Vec<(u64, Page)>,
    holder: Option<usize>,
}

/// A tree.
struct Sim {
    space: &'static Space,
    tree: Tree<Space>,
    /// A clock, and the keys. No point at which shuttle switches.
    keys: Mutex<(u64, Vec<Key>)>,
}

impl Sim {
    fn new(space: &'static Space) -> Self {
        Self::of(space, Tree::new(space, &pin(0)).expect("there is memory"), vec![Page::EMPTY; KEYS as usize])
    }
    fn of(space: &'static Space, tree: Tree<Space>, pages: Vec<Page>) -> Self {
        let key = |page| Key { values: vec![(0, page)], holder: None };
        Self { space, tree, keys: Mutex::new((0, pages.into_iter().map(key).collect())) }
    }
    /// What there is, when nothing changes.
    fn pages(&self) -> Vec<Page> {
        let keys = self.keys.lock().unwrap();
        keys.1.iter().map(|key| key.values.last().expect("there is one").1).collect()
    }
    /// The holder of a span: nobody else has it, and what is there is what was left there. Then it is changed.
    fn change(&self, cpu: usize, span: Span, within: &Range<u64>, to: impl Fn(Page) -> Page) {
        let mut keys = self.keys.lock().unwrap();
        keys.0 += 1;
        let now = keys.0;
        for k in span.first..(span.first + span.keys).min(KEYS) {
            let key = &mut keys.1[k as usize];
            assert_eq!(key.holder, None, "key {k} is held twice");
            let last = key.values.last().expect("there is one").1;
            let seen = Page::of(span.value).part(k - span.first);
            assert!(
                span.frozen || seen.with_shared(false) == last.with_shared(false),
                "key {k}: {seen:?} {last:?}"
            );
            key.holder = Some(cpu);
            if within.contains(&k) {
                key.values.push((now, to(last)));
            }
        }
    }
    fn release(&self, cpu: usize) {
        let mut keys = self.keys.lock().unwrap();
        keys.1.iter_mut().filter(|key| key.holder == Some(cpu)).for_each(|key| key.holder = None);
    }
    fn range(&self, cpu: usize, range: Range<u64>, op: usize, reserve: &mut Reserve<Space>) {
        let pin = pin(cpu);
        let section = Section::new(self.space, &pin);
        let desc = 1 + cpu as u32;
        let mode = [Mode::Fill, Mode::Take, Mode::Edit][op];
        let guard = self.tree.lock_range(range.clone(), mode, reserve, &section);
        let mut guard = guard.expect("there is memory, and patience");
        let to = |old: Page| match mode {
            Mode::Fill => Page::new(desc),
            Mode::Edit if old.is_mapped() => old.with_desc(desc),
            Mode::Edit => old,
            _ => Page::EMPTY,
        };
        guard.spans().for_each(|span| self.change(cpu, span, &range, to));
        match mode {
            Mode::Edit => guard.update(|span| to(Page::of(span.value)).word()),
            _ => guard.replace(to(Page::EMPTY).word(), |_| ()),
        }
        self.release(cpu);
    }
    fn touch(&self, cpu: usize, key: u64, pfn: u64, reserve: &mut Reserve<Space>) {
        let pin = pin(cpu);
        let section = Section::new(self.space, &pin);
        reserve.fill(self.space, &(key..key + 1), &pin).expect("there is memory");
        let Some(mut guard) = self.tree.lock_one(key, &section).expect("there is patience") else { return };
        guard.narrow_to(key, reserve).expect("there is memory");
        let to = |old: Page| old.with_pfn(pfn).with_shared(false);
        self.change(cpu, guard.span(), &(key..key + 1), to);
        guard.set(to(Page::of(guard.span().value)).word());
        self.release(cpu);
    }
    fn look(&self, cpu: usize, key: u64) {
        let began = self.keys.lock().unwrap().0;
        let pin = pin(cpu);
        let found = self.tree.get(key, &Section::new(self.space, &pin));
        let seen = Page::of(found.value).part(key - found.first).with_shared(false);
        let keys = self.keys.lock().unwrap();
        let values = &keys.1[key as usize].values;
        // A change is noted before it is made: so the value may be one that had been replaced by then, but only by
        // changes whose holder was still at it.
        let from =
            values.iter().rposition(|(time, _)| *time <= began).expect("the first is of the beginning");
        let possible = &values[from.saturating_sub(1)..];
        assert!(possible.iter().any(|(_, page)| *page == seen), "key {key}: {seen:?} of {possible:?}");
    }
    fn fork(&self, cpu: usize, reserve: &mut Reserve<Space>) -> Self {
        let pin = pin(cpu);
        let section = Section::new(self.space, &pin);
        let mut twin = Tree::new(self.space, &pin).expect("there is memory");
        let guard = self.tree.lock_range(0..64, Mode::Freeze, reserve, &section);
        let mut guard = guard.expect("there is memory, and patience");
        guard.spans().for_each(|span| self.change(cpu, span, &(0..0), |old| old));
        let inherit = |_: Span, values: &mut [u64]| {
            // Nodes in which a slot has the last CPU's descriptor are copied at once.
            let copied = values.iter().any(|value| Page::of(*value).desc() == CPUS as u32);
            Ok(if copied { Given::Slots } else { Given::Same })
        };
        guard.fork(&mut twin, inherit).expect("there is memory");
        let pages = self.pages();
        for (key, page) in (0..KEYS).zip(&pages) {
            let found = twin.get(key, &section);
            assert_eq!(Page::of(found.value).part(key - found.first).with_shared(false), *page);
        }
        self.release(cpu);
        drop(guard);
        Self::of(self.space, twin, pages)
    }
    /// Make everything EMPTY.
    fn vacate(&self, cpu: usize, reserve: &mut Reserve<Space>) {
        let pin = pin(cpu);
        let section = Section::new(self.space, &pin);
        let guard = self.tree.lock_range(0..64, Mode::Vacate, reserve, &section);
        let mut guard = guard.expect("there is memory, and patience");
        guard.spans().for_each(|span| self.change(cpu, span, &(0..KEYS), |_| Page::EMPTY));
        guard.replace(Page::EMPTY.word(), |_| ());
        self.release(cpu);
    }
    /// A twin that ends at once, or changes something first.
    fn fork_and_end(&self, cpu: usize, reserve: &mut Reserve<Space>) {
        let twin = self.fork(cpu, reserve);
        if thread_rng().gen_bool(0.5) {
            twin.range(cpu, 1..7, 2, reserve);
        }
        twin.end(cpu);
    }
    fn end(self, cpu: usize) {
        let pin = pin(cpu);
        self.tree.retire(&Section::new(self.space, &pin), |_| ());
    }
    fn step(&self, cpu: usize, n: usize, reserve: &mut Reserve<Space>) {
        let mut rng = thread_rng();
        let (from, len) = (rng.gen_range(0..KEYS), rng.gen_range(1..=[1, 4, 16][n % 3]));
        let range = from..(from + len).min(KEYS);
        match rng.gen_range(0..21) {
            20 => self.vacate(cpu, reserve),
            0..4 => self.range(cpu, range, 0, reserve),
            4..7 => self.range(cpu, range, 1, reserve),
            7..10 => self.range(cpu, range, 2, reserve),
            10..14 => self.touch(cpu, from, 100 + (cpu * STEPS + n) as u64, reserve),
            14..16 => self.look(cpu, from),
            16 => self.fork_and_end(cpu, reserve),
            _ => self.space.tick(&mut pin(cpu)),
        }
    }
    fn check(&self) {
        // SAFETY: the other threads have ended.
        self.tree.audit(&unsafe { AllStopped::assume() });
        (0..KEYS).for_each(|key| self.look(0, key));
    }
}

fn nothing_is_left(space: &Space) {
    // SAFETY: the other threads have ended.
    space.settle(&unsafe { AllStopped::assume() });
    assert_eq!(space.memory().0, 0);
    (1..16).for_each(|desc| assert_eq!(space.named(desc), 0, "descriptor {desc}"));
}

fn everything_at_once() {
    let space = Space::new(CPUS);
    let sim = Arc::new(Sim::new(space));
    let threads: Vec<_> = (0..CPUS)
        .map(|cpu| {
            let sim = sim.clone();
            thread::spawn(move || {
                let mut reserve = Reserve::new();
                (0..STEPS).for_each(|n| sim.step(cpu, n, &mut reserve));
                reserve.give_back(sim.space, &pin(cpu));
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().expect("the CPU went well"));
    let sim = Arc::try_unwrap(sim).unwrap_or_else(|_| panic!("all threads have ended"));
    sim.check();
    sim.end(0);
    nothing_is_left(space);
}

/// Trees of one family, some of which have the same nodes. Whoever has the last reference to one ends it.
type Family = Mutex<Vec<Arc<Sim>>>;

const TREES: usize = 3;

/// What a CPU does in a family: something to one of the trees; or it forks one, and puts the child in the place of another.
fn step(family: &Family, cpu: usize, n: usize, reserve: &mut Reserve<Space>) {
    let mut rng = thread_rng();
    let (one, other) = (rng.gen_range(0..TREES), rng.gen_range(0..TREES));
    let tree = family.lock().unwrap()[one].clone();
    let mut gone = None;
    match rng.gen_range(0..4) {
        0 => {
            let child = Arc::new(tree.fork(cpu, reserve));
            gone = Some(std::mem::replace(&mut family.lock().unwrap()[other], child));
        }
        1 => (0..KEYS).for_each(|key| tree.look(cpu, key)),
        _ => tree.step(cpu, n, reserve),
    }
    for tree in [Some(tree), gone].into_iter().flatten() {
        if let Some(tree) = Arc::into_inner(tree) {
            tree.end(cpu);
        }
    }
}

fn family_at_once() {
    let space = Space::new(CPUS);
    let first = Sim::new(space);
    let mut reserve = Reserve::new();
    first.range(0, 0..14, 0, &mut reserve);
    (0..14).step_by(3).for_each(|key| first.touch(0, key, 1 + key, &mut reserve));
    let mut trees = vec![Arc::new(first)];
    while trees.len() < TREES {
        trees.push(Arc::new(trees[trees.len() - 1].fork(0, &mut reserve)));
    }
    reserve.give_back(space, &pin(0));
    let family = Arc::new(Family::new(trees));
    let threads: Vec<_> = (0..CPUS)
        .map(|cpu| {
            let family = family.clone();
            thread::spawn(move || {
                let mut reserve = Reserve::new();
                (0..STEPS).for_each(|n| step(&family, cpu, n, &mut reserve));
                reserve.give_back(space, &pin(cpu));
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().expect("the CPU went well"));
    let trees = std::mem::take(&mut *family.lock().unwrap());
    for tree in trees {
        tree.check();
        Arc::into_inner(tree).expect("all threads have ended").end(0);
    }
    nothing_is_left(space);
}

/// Run under a scheduler's schedules.
fn explore(scheduler: impl Scheduler + 'static, run: fn()) {
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    Runner::new(scheduler, config).run(run);
}

const SCHEDULES: usize = 4000;

#[test]
fn each_key_has_one_holder_in_random_schedules() {
    explore(RandomScheduler::new(SCHEDULES), everything_at_once);
}

/// As few switches as a fault needs, at random places.
#[test]
fn each_key_has_one_holder_in_schedules_of_few_switches() {
    explore(PctScheduler::new(3, SCHEDULES), everything_at_once);
}

/// Three trees that share nodes: forks of forks, ends, and changes by all of them.
#[test]
fn trees_of_a_family_have_their_own_in_random_schedules() {
    explore(RandomScheduler::new(SCHEDULES), family_at_once);
}

#[test]
fn trees_of_a_family_have_their_own_in_schedules_of_few_switches() {
    explore(PctScheduler::new(3, SCHEDULES), family_at_once);
}
