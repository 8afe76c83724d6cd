//! Random sequences of operations by one thread: every answer, every list of mappings and every page's contents must
//! be what the oracle says, in every address space, and every frame must come back.

mod machine;

use std::{cell::Cell, sync::Arc};

use addr::{Page, PageRange, Prot, USER_END_PAGE};
use aspace::{
    Access, AddressSpace, Advice, Error, Flags, LOWEST, Label, Limits, Lock, MMAP_TOP, Mode, Place,
    Placement, Policy, RemapTo, Resident, STACK_GAP, Seen, Totals, Unmoved,
    model::{Model, Objects, State},
};
use frames::{Node, NodeSet};
use machine::{Pages, Sim, anonymous, list, object, page, range};
use owned::Use;
use percpu::Unpinned;
use proptest::prelude::*;

/// Where ranges begin: so that they cross the borders of tables of every level, and the ends of user space; and a little
/// more than the gap below a stack apart.
const WINDOWS: [u64; 7] = [
    LOWEST - 4,
    (1 << 9) - 8,
    (1 << 9) - 8 + STACK_GAP + 4,
    (1 << 18) - 8,
    (1 << 27) - 8,
    MMAP_TOP - 24,
    USER_END_PAGE.number() - 16,
];
const WINDOW: u64 = 24;
/// Pages of each of two objects.
const OBJECT: u64 = 20;

#[derive(Clone, Debug)]
enum Op {
    Map {
        at: At,
        start: u64,
        pages: u64,
        prot: Prot,
        backing: Option<(usize, u64)>,
        shared: bool,
        flags: Flags,
    },
    Unmap(PageRange),
    Protect(PageRange, Prot, bool),
    Advise(PageRange, Advice),
    Remap(PageRange, u64, To, bool),
    Lock(PageRange, Lock),
    LockAll(Option<Lock>, Option<Lock>),
    /// Limits for what follows.
    Limit(Limits),
    Grow(Page),
    /// An object gets another length, or a hole.
    Resize(usize, u64),
    Punch(usize, u64),
    /// From now on no shared mapping of it may write, if none can.
    Seal(usize),
    Load(Page),
    Store(Page),
    Fetch(Page),
    /// To whatever frame comes, but another one.
    Move(Page),
    Fork,
    Exit,
    Switch(usize),
}

#[derive(Clone, Copy, Debug)]
enum At {
    Anywhere,
    Hint,
    Fixed,
    NoReplace,
    Low,
    LowHint,
}

#[derive(Clone, Copy, Debug)]
enum To {
    InPlace,
    MayMove,
    Hint(u64),
    Fixed(u64),
}

fn a_page(windows: [u64; 2]) -> impl Strategy<Value = u64> {
    (prop::sample::select(windows.to_vec()), 0..WINDOW).prop_map(|(w, i)| w + i)
}
fn a_length() -> impl Strategy<Value = u64> {
    prop_oneof![1 => Just(0u64), 4 => 1..6u64, 10 => 1..WINDOW]
}
fn a_range(windows: [u64; 2]) -> impl Strategy<Value = PageRange> {
    (a_page(windows), a_length()).prop_map(|(start, pages)| range(start, pages))
}
/// One of few, so that neighbours often have the same; with a part each that another lacks.
fn a_policy() -> impl Strategy<Value = Policy> {
    let nodes = NodeSet::first(2);
    let bind = Policy { mode: Mode::Bind, nodes, told: nodes, ..Policy::DEFAULT };
    prop::sample::select(vec![
        Policy::DEFAULT,
        Policy { mode: Mode::Local, ..Policy::DEFAULT },
        bind,
        Policy { home: Node::new(1), ..bind },
        Policy { told: NodeSet::first(9), flags: 1 << 15, ..bind },
        Policy { mode: Mode::Interleave, ..bind },
    ])
}
fn a_prot() -> impl Strategy<Value = Prot> {
    (0u8..8).prop_map(Prot::from_bits_truncate)
}
fn an_op(windows: [u64; 2]) -> impl Strategy<Value = Op> {
    let at = prop::sample::select(
        &[At::Anywhere, At::Hint, At::Fixed, At::Fixed, At::NoReplace, At::Low, At::LowHint][..],
    );
    let backing = prop::option::weighted(0.5, (0usize..2, prop_oneof![0..OBJECT, Just(u64::MAX - 3)]));
    let prot = prop_oneof![Just(machine::RW), a_prot()];
    let to = prop_oneof![
        1 => Just(To::InPlace),
        2 => Just(To::MayMove),
        1 => a_page(windows).prop_map(To::Hint),
        4 => a_page(windows).prop_map(To::Fixed),
    ];
    let remap = (a_range(windows), prop::option::weighted(0.6, 0..2 * WINDOW), to, prop::bool::weighted(0.3));
    let few = Flags::DONT_FORK | Flags::WIPE_ON_FORK | Flags::SEQUENTIAL;
    let told = (any::<u16>(), any::<u16>()).prop_map(move |(a, b)| {
        Advice::Flags(Flags::from_bits_truncate(a) & few, Flags::from_bits_truncate(b) & few)
    });
    let advice = prop_oneof![
        3 => Just(Advice::DontNeed),
        1 => prop::sample::select(&[Advice::WillNeed, Advice::Cold, Advice::Free, Advice::DontNeedLocked][..]),
        2 => Just(Advice::InstallGuards),
        1 => Just(Advice::RemoveGuards),
        2 => a_policy().prop_map(Advice::Place),
        2 => told,
    ];
    let flags = prop_oneof![
        3 => Just(Flags::empty()),
        2 => Just(Flags::GROWS_DOWN),
        1 => Just(Flags::LOCKED),
        1 => Just(Flags::NO_RESERVE),
        1 => Just(Flags::DROPPABLE | Flags::WIPE_ON_FORK),
    ];
    let lock = || prop::sample::select(&[Lock::Off, Lock::Now, Lock::OnFault][..]);
    let limit = || prop_oneof![1 => 0..3 * WINDOW, 3 => Just(u64::MAX)];
    let limits = (limit(), limit(), limit(), limit()).prop_map(|(pages, data, stack, locked)| Limits {
        pages,
        data,
        stack,
        locked,
    });
    prop_oneof![
        5 => (at, a_page(windows), a_length(), prot, backing, any::<bool>(), flags).prop_map(
            |(at, start, pages, prot, backing, shared, flags)|
                Op::Map { at, start, pages, prot, backing, shared, flags }
        ),
        2 => a_range(windows).prop_map(Op::Unmap),
        3 => (a_range(windows), a_prot(), prop::bool::weighted(0.2)).prop_map(|(r, p, d)| Op::Protect(r, p, d)),
        3 => (a_range(windows), advice).prop_map(|(r, a)| Op::Advise(r, a)),
        3 => remap.prop_map(|(r, n, to, keep)| Op::Remap(r, n.unwrap_or(r.len()), to, keep)),
        1 => (a_range(windows), lock()).prop_map(|(r, l)| Op::Lock(r, l)),
        1 => (prop::option::of(lock()), prop::option::of(lock())).prop_map(|(a, b)| Op::LockAll(a, b)),
        1 => limits.prop_map(Op::Limit),
        2 => a_page(windows).prop_map(|n| Op::Grow(page(n))),
        1 => (0usize..2, 0..OBJECT).prop_map(|(o, n)| Op::Resize(o, n)),
        1 => (0usize..2, 0..OBJECT).prop_map(|(o, n)| Op::Punch(o, n)),
        1 => (0usize..4).prop_map(Op::Seal),
        3 => a_page(windows).prop_map(|n| Op::Load(page(n))),
        5 => a_page(windows).prop_map(|n| Op::Store(page(n))),
        1 => a_page(windows).prop_map(|n| Op::Fetch(page(n))),
        2 => a_page(windows).prop_map(|n| Op::Move(page(n))),
        1 => Just(Op::Fork),
        1 => Just(Op::Exit),
        1 => (0usize..4).prop_map(Op::Switch),
    ]
}

/// Operations that are all about the same two windows, so that they meet.
fn some_ops() -> impl Strategy<Value = Vec<Op>> {
    let window = || prop::sample::select(&WINDOWS[..]);
    (window(), window()).prop_flat_map(|(a, b)| prop::collection::vec(an_op([a, b]), 1..80))
}

/// An address space and its oracle.
struct Pair {
    real: Arc<dyn AddressSpace>,
    model: Model,
}

struct World {
    sim: &'static Sim,
    objects: [Arc<Pages>; 2],
    contents: Objects,
    pairs: Vec<Pair>,
    current: usize,
    stamp: u64,
    limits: Limits,
    /// Which objects no shared mapping may write.
    sealed: [bool; 2],
}

/// Whether stores through a mapping of such pages could reach object `o`.
fn writes(state: &State, o: u64) -> bool {
    let of = state.object.is_some_and(|(id, _)| id == (1, o));
    of && state.shared && state.max_prot.contains(Prot::WRITE)
}

/// What the oracle is told of a place that may be anywhere: only this one knows the place that `locked` chooses.
fn chosen(answer: Result<Page, Error>) -> Option<Page> {
    answer.ok().filter(|_| machine::design() != machine::Design::Locked)
}

impl World {
    fn new(sim: &'static Sim, ctx: &Unpinned<'_>) -> Self {
        let numbers = |o: u64| (0..OBJECT).map(|i| 1_000_000 * (o + 1) + i).collect::<Vec<_>>();
        let objects = [0, 1].map(|o| Pages::new(sim, o, &numbers(o), ctx));
        let contents = [0, 1].map(|o| ((1, o), numbers(o))).into_iter().collect();
        let real = sim.space(ctx);
        sim.enter(&*real, ctx);
        let pairs = vec![Pair { real, model: Model::new() }];
        World {
            sim,
            objects,
            contents,
            pairs,
            current: 0,
            stamp: 1,
            limits: Limits::NONE,
            sealed: [false; 2],
        }
    }
    /// Fork, exit, and switch between the address spaces that there are.
    fn step_between(&mut self, op: &Op, ctx: &Unpinned<'_>) {
        let (sim, here) = (self.sim, self.current);
        match *op {
            Op::Fork if self.pairs.len() < 4 => {
                let child = Pair {
                    real: self.pairs[here].real.fork(ctx).expect("memory"),
                    model: self.pairs[here].model.fork(),
                };
                self.pairs.push(child);
            }
            Op::Exit if self.pairs.len() > 1 => {
                let gone = self.pairs.remove(here);
                sim.leave(&*gone.real, ctx);
                gone.real.clear(ctx);
                self.current = 0;
                sim.enter(&*self.pairs[0].real, ctx);
            }
            Op::Switch(to) if to < self.pairs.len() => {
                sim.leave(&*self.pairs[here].real, ctx);
                self.current = to;
                sim.enter(&*self.pairs[to].real, ctx);
            }
            Op::Resize(o, pages) => {
                self.objects[o].resize(sim, pages as usize, ctx);
                let contents = self.contents.get_mut(&(1, o as u64)).expect("there are two objects");
                contents.resize(pages as usize, 0);
                self.pairs.iter_mut().for_each(|pair| pair.model.cut((1, o as u64), pages..u64::MAX, true));
            }
            Op::Punch(o, index) => {
                self.objects[o].punch_page(sim, index as usize, ctx);
                let contents = self.contents.get_mut(&(1, o as u64)).expect("there are two objects");
                if let Some(value) = contents.get_mut(index as usize) {
                    *value = 0;
                }
            }
            // Half of the time nothing, so that there are objects to write to.
            Op::Seal(o) if o < 2 => {
                let could = |pair: &Pair| pair.model.list().iter().any(|(_, first)| writes(first, o as u64));
                let sealed = self.sealed[o] || !self.pairs.iter().any(could);
                assert_eq!(self.objects[o].seal(), sealed);
                self.sealed[o] = sealed;
            }
            _ => {}
        }
    }
    fn step(&mut self, op: &Op, ctx: &Unpinned<'_>) {
        let (sim, here, limits) = (self.sim, self.current, self.limits);
        let Pair { real, model } = &mut self.pairs[here];
        match *op {
            Op::Map { at, start, pages, prot, backing, shared, flags } => {
                let at = match at {
                    At::Anywhere => Placement::Anywhere,
                    At::Hint => Placement::Hint(page(start)),
                    At::Fixed => Placement::Fixed(page(start)),
                    At::NoReplace => Placement::FixedNoReplace(page(start)),
                    At::Low => Placement::Below32Bit,
                    At::LowHint => Placement::HintBelow32Bit(page(start)),
                };
                let mut m = match backing {
                    None => anonymous(prot),
                    Some((o, first)) => object(&self.objects[o], first, prot, shared),
                };
                m.shared = shared && (backing.is_some() || pages == 3);
                m.max_prot = if pages == 5 { Prot::READ } else { Prot::all() };
                m.label = if pages == 7 { Label::Vdso } else { Label::None };
                // Only memory of its own can grow down.
                m.flags = if backing.is_none() { flags } else { flags - Flags::GROWS_DOWN };
                let answer = real.map_within(at, pages, &m, &limits, ctx).map(|(range, _)| range);
                let sealed = backing.is_some_and(|(o, _)| self.sealed[o]) && m.may_write_object();
                let mut next = model.clone();
                next.choose(chosen(answer.map(|range| range.start())));
                match next.map(at, pages, &m, &limits) {
                    // What is sealed is found last, and nothing has changed.
                    Ok(_) if sealed => assert_eq!(answer, Err(Error::Sealed)),
                    wanted => {
                        assert_eq!(answer, wanted);
                        *model = next;
                    }
                }
            }
            Op::Unmap(r) => assert_eq!(real.unmap(r, ctx), model.unmap(r)),
            Op::Protect(r, prot, down) => {
                let answer = real.protect_within(r, prot, down, &limits, ctx);
                assert_eq!(answer, model.protect(r, prot, down, &limits));
            }
            Op::Advise(r, advice) => assert_eq!(real.advise(r, advice, ctx), model.advise(r, advice)),
            Op::Remap(r, pages, to, keep) => {
                let to = match to {
                    To::InPlace => RemapTo::InPlace,
                    To::MayMove => RemapTo::MayMove,
                    To::Hint(n) => RemapTo::Hint(page(n)),
                    To::Fixed(n) => RemapTo::Fixed(page(n)),
                };
                let answer = real.remap_within(r, pages, to, keep, &limits, ctx);
                model.choose(chosen(answer));
                assert_eq!(answer, model.remap(r, pages, to, keep, &limits));
            }
            Op::Lock(r, lock) => assert_eq!(real.lock(r, lock, &limits, ctx), model.lock(r, lock, &limits)),
            Op::LockAll(now, future) => {
                let answer = real.lock_all(now, future, &limits, ctx);
                assert_eq!(answer, model.lock_all(now, future, &limits));
            }
            Op::Limit(limits) => self.limits = limits,
            Op::Grow(at) => {
                // The oracle has a node for each page: no stacks from one window to the next but one.
                let limits = Limits { stack: limits.stack.min(2 * STACK_GAP), ..limits };
                assert_eq!(real.grow(at.base(), &limits, ctx), model.grow(at, &limits));
            }
            Op::Load(at) => assert_eq!(sim.load(&**real, at, ctx), model.load(at, &self.contents)),
            Op::Store(at) => {
                self.stamp += 1;
                let answer = sim.store(&**real, at, self.stamp, ctx);
                assert_eq!(answer, model.store(at, self.stamp, &mut self.contents));
            }
            Op::Fetch(at) => {
                let answer = model.access(at, Access::Exec, &self.contents).map(|_| ());
                assert_eq!(sim.fetch(&**real, at, ctx), answer);
            }
            Op::Move(at) => {
                let state = model.state(at).filter(|state| !state.guard);
                let first = Cell::new(true);
                let answer = real.move_page(at, Place::Local, &|_| !first.replace(false), ctx);
                match (answer, state) {
                    (Err(Unmoved::NoMapping), None) | (Err(Unmoved::Empty), Some(_)) => {}
                    // A page of its own, which a relative may have too; or one of its object's.
                    (
                        Ok(()) | Err(Unmoved::Shared),
                        Some(State { object: None, .. } | State { own: Some(_), .. }),
                    ) => {}
                    (Err(Unmoved::Object), Some(State { object: Some(_), own: None, .. })) => {}
                    _ => panic!("{at:?} was moved: {answer:?}, and is {state:?}"),
                }
            }
            Op::Fork | Op::Exit | Op::Switch(_) | Op::Resize(..) | Op::Punch(..) | Op::Seal(_) => {
                self.step_between(op, ctx)
            }
        }
    }
    /// Mappings of every space are as the oracle says; contents too, which fills and copies pages as it looks.
    fn compare(&mut self, contents: bool, ctx: &Unpinned<'_>) {
        for pair in &self.pairs {
            assert_eq!(list(&*pair.real, ctx), pair.model.list());
            let pages: u64 = pair.model.list().iter().map(|(r, _)| r.len()).sum();
            let usage = pair.real.usage(ctx);
            assert_eq!(usage.mapped_pages, pages);
            // The totals are kept step by step; here they are counted.
            let mut totals = Totals::default();
            pair.real.mappings(ctx, &mut |info| totals.add(info.mapping, info.range.len()));
            assert_eq!(usage.totals, Totals { peak: usage.totals.peak, ..totals });
            assert!(usage.totals.peak >= pages);
            let mut resident = 0;
            let everything = range(0, USER_END_PAGE.number());
            pair.real.inspect(everything, ctx, &mut |seen| {
                resident += u64::from(matches!(seen, Seen::Page(_, Resident { frame: Some(_), .. })));
            });
            assert_eq!(usage.resident_pages, resident);
            // What is seen of a part is cut to it.
            for (whole, first) in pair.model.list() {
                let part = range(whole.start().number() + whole.len() / 3, 2);
                let part = part.intersect(whole).expect("it begins there");
                let further = part.start().number() - whole.start().number();
                let object = first.object.map(|(id, index)| (id, index + further));
                let mut seen_parts = Vec::new();
                pair.real.inspect(part, ctx, &mut |seen| {
                    if let Seen::Mapping(info) = seen {
                        let object = info.mapping.object_page(0);
                        let object = object.map(|(object, index)| (object.identity(), index));
                        seen_parts.push((info.range, info.mapping.prot, object));
                    }
                });
                assert_eq!(seen_parts, [(part, first.prot, object)]);
            }
            for (range, first) in pair.model.list() {
                let last = range.end().checked_sub(1).expect("mappings are not empty");
                let shown =
                    first.object.filter(|_| first.shared).map(|(id, index)| (id, index + range.len() - 1));
                assert_eq!(pair.real.shared_page(last, ctx), shown);
            }
        }
        // The way back from the objects finds every mapping.
        for (o, object) in self.objects.iter().enumerate() {
            let shows = |first: &State| first.object.is_some_and(|(id, _)| id == (1, o as u64));
            let lists = self.pairs.iter().map(|pair| pair.model.list());
            let wanted: usize = lists.map(|list| list.iter().filter(|(_, first)| shows(first)).count()).sum();
            assert_eq!(object.mapped(ctx), wanted as u64);
        }
        if !contents {
            return;
        }
        self.sim.leave(&*self.pairs[self.current].real, ctx);
        for pair in &self.pairs {
            self.sim.enter(&*pair.real, ctx);
            for (range, _) in pair.model.list() {
                for at in range {
                    assert_eq!(
                        self.sim.load(&*pair.real, at, ctx),
                        pair.model.load(at, &self.contents),
                        "{at:?}"
                    );
                }
            }
            self.sim.leave(&*pair.real, ctx);
        }
        self.sim.enter(&*self.pairs[self.current].real, ctx);
    }
    fn end(self, ctx: &Unpinned<'_>) {
        self.sim.leave(&*self.pairs[self.current].real, ctx);
        for pair in &self.pairs {
            pair.real.clear(ctx);
        }
        self.objects.iter().for_each(|o| o.free(self.sim, ctx));
        assert_eq!(self.sim.owned(), [0; Use::COUNT], "frames were not given back");
    }
}

thread_local! {
    /// The machine of the last case, if that succeeded: what a failed one leaves behind is no start for the next.
    static SIM: Cell<Option<&'static Sim>> = const { Cell::new(None) };
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, max_shrink_iters: 2_000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn answers_mappings_and_contents_are_the_oracles(ops in some_ops()) {
        let sim = SIM.take().unwrap_or_else(|| Sim::new(1, 4096));
        sim.cpus.on(0, |ctx| {
            let mut world = World::new(sim, &ctx);
            for (i, op) in ops.iter().enumerate() {
                world.step(op, &ctx);
                world.compare(i % 24 == 23, &ctx);
            }
            world.compare(true, &ctx);
            world.end(&ctx);
        });
        SIM.set(Some(sim));
    }
}
