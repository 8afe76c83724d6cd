//! Random operations by 2 to 8 CPUs at once, checked against what the calls mean, page by page.
//!
//! Every call and every access is logged with the times of a common clock before and after. Afterwards each page is
//! taken as a few registers: *what is mapped there*, *its protection*, *its contents*. Calls that returned success
//! write them; accesses read them. A write can be what a reader saw unless it began after the reader had finished, or
//! another write lies wholly between the two. That is real-time order for each register, so a translation, a frame or
//! a right that should have been gone when an access began shows as an answer that no write explains.
//!
//! What moves (remap) or is copied (fork) carries its source's possible values at that time.

mod machine;

use std::{
    collections::{BTreeSet, HashMap},
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use addr::{PageRange, Prot};
use aspace::{Access, AddressSpace, Advice, Error, Fault, Placement, RemapTo};
use machine::{Pages, RW, Random, Sim, anonymous, object, page, range};
use owned::Use;
use percpu::Unpinned;

/// Pages that are fought over: on both sides of the border of two leaf tables.
const WINDOW: std::ops::Range<u64> = 0x9fff8..0xa0008;
/// Most address spaces in a run.
const SPACES: usize = 4;

/// What processors do by themselves between two steps of a CPU.
const STIRS: usize = 4;
/// Pages that are audited after each step.
const AUDITED: u64 = 4;

fn window() -> PageRange {
    range(WINDOW.start, WINDOW.end - WINDOW.start)
}

/// What a register is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Kind {
    /// The mapping: the stamp of the call that made it, or 0.
    Mapped,
    /// The protection, as bits.
    Protection,
    /// The contents.
    Data,
    /// What the contents are again after they were dropped.
    Fresh,
    /// Whether it is a guard: 1 or 0.
    Guarded,
}
use Kind::{Data, Fresh, Guarded, Mapped, Protection};
const KINDS: [Kind; 5] = [Mapped, Protection, Data, Fresh, Guarded];

/// A register of a page of an address space.
type Place = (Kind, usize, u64);
/// The clock before and after.
type Span = (u64, u64);

/// What a register may hold after a write.
#[derive(Clone, Copy, Debug)]
enum Value {
    /// This.
    Known(u64),
    /// What another register could be read as during the write.
    From(Place),
}

#[derive(Clone, Copy, Debug)]
struct Write {
    span: Span,
    value: Value,
    /// Whether it surely happened; if not, it explains readers but does not hide earlier writes.
    sure: bool,
}

#[derive(Debug)]
#[allow(dead_code, reason = "the CPU is for whoever reads the message")]
struct Read {
    cpu: usize,
    space: usize,
    page: u64,
    access: Access,
    span: Span,
    answer: Result<u64, Fault>,
}

/// What one CPU did.
#[derive(Default)]
struct Log {
    writes: Vec<(Place, Write)>,
    reads: Vec<Read>,
}

impl Log {
    fn write(&mut self, at: Place, span: Span, value: Value) {
        self.writes.push((at, Write { span, value, sure: true }));
    }
}

struct Registers(HashMap<Place, Vec<Write>>);

impl Registers {
    fn new(writes: impl Iterator<Item = (Place, Write)>) -> Self {
        let mut all: HashMap<Place, Vec<Write>> = HashMap::new();
        writes.for_each(|(at, write)| all.entry(at).or_default().push(write));
        Self(all)
    }
    /// What a reader of `at` during `span` may see.
    fn read(&self, at: Place, span: Span) -> BTreeSet<u64> {
        let mut values = BTreeSet::new();
        self.collect(at, span, &mut BTreeSet::new(), &mut values);
        values
    }
    fn collect(
        &self,
        at: Place,
        (start, end): Span,
        asked: &mut BTreeSet<(Place, Span)>,
        values: &mut BTreeSet<u64>,
    ) {
        let Some(writes) = self.0.get(&at) else { return };
        // Of the sure writes that were over when the reader began, the one that began last hides all that were over
        // before it began.
        let hidden =
            writes.iter().filter(|w| w.sure && w.span.1 < start).map(|w| w.span.0).max().unwrap_or(0);
        for w in writes.iter().filter(|w| w.span.0 < end && w.span.1 >= hidden) {
            match w.value {
                Value::Known(value) => drop(values.insert(value)),
                Value::From(source) => {
                    if asked.insert((source, w.span)) {
                        self.collect(source, w.span, asked, values);
                    }
                }
            }
        }
    }
}

struct World {
    sim: &'static Sim,
    clock: AtomicU64,
    stamps: AtomicU64,
    object: Arc<Pages>,
    spaces: RwLock<Vec<Arc<dyn AddressSpace>>>,
    /// Held while a space is added, so that there are never more than [`SPACES`].
    forking: Mutex<()>,
}

/// What the object holds on the page that is mapped at page `n` of the window.
fn object_value(n: u64) -> u64 {
    n - WINDOW.start + 1
}

#[derive(Clone, Copy)]
enum Op {
    Map,
    Unmap,
    Protect,
    DontNeed,
    Guard,
    Unguard,
    Remap,
    Fork,
    Switch,
    Access(Access),
}

/// Each as often as it stands here.
const OPS: [(Op, usize); 12] = [
    (Op::Map, 4),
    (Op::Unmap, 3),
    (Op::Protect, 4),
    (Op::DontNeed, 3),
    (Op::Guard, 2),
    (Op::Unguard, 2),
    (Op::Remap, 2),
    (Op::Fork, 1),
    (Op::Switch, 1),
    (Op::Access(Access::Write), 11),
    (Op::Access(Access::Exec), 1),
    (Op::Access(Access::Read), 10),
];

/// One CPU.
struct Cpu<'w> {
    world: &'w World,
    number: usize,
    random: Random,
    log: Log,
    /// The space that it runs.
    here: usize,
    space: Arc<dyn AddressSpace>,
}

impl World {
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }
    fn stamp(&self) -> u64 {
        self.stamps.fetch_add(1, Ordering::Relaxed)
    }
}

impl Cpu<'_> {
    fn step(&mut self, op: Op, ctx: &Unpinned<'_>) {
        let (world, here, sim) = (self.world, self.here, self.world.sim);
        let space = &*self.space;
        let size = WINDOW.end - WINDOW.start;
        let first = WINDOW.start + self.random.below(size);
        let pages = 1 + self.random.below((WINDOW.end - first).min(6));
        let (all, r, at) = (first..first + pages, range(first, pages), page(first));
        let prot = self.random.pick(&[RW, RW, Prot::READ, Prot::empty(), Prot::all()]);
        let log = &mut self.log;
        let start = world.now();
        match op {
            Op::Map => {
                let of_object = self.random.below(2) == 1;
                let mapping = match of_object {
                    true => object(&world.object, first - WINDOW.start, prot, false),
                    false => anonymous(prot),
                };
                let place = self.random.pick(&[Placement::Fixed(at), Placement::FixedNoReplace(at)]);
                match space.map(place, pages, mapping, ctx) {
                    Ok(got) => {
                        assert_eq!(got, r);
                        let (span, id) = ((start, world.now()), world.stamp());
                        for n in all {
                            let fresh = if of_object { object_value(n) } else { 0 };
                            for (kind, value) in KINDS.iter().zip([id, prot.bits().into(), fresh, fresh, 0]) {
                                log.write((*kind, here, n), span, Value::Known(value));
                            }
                        }
                    }
                    Err(error) => assert_eq!(error, Error::Exists),
                }
            }
            Op::Unmap => {
                assert_eq!(space.unmap(r, ctx), Ok(()));
                let span = (start, world.now());
                all.for_each(|n| log.write((Mapped, here, n), span, Value::Known(0)));
            }
            Op::Protect => {
                let answer = space.protect(r, prot, ctx);
                assert!(matches!(answer, Ok(()) | Err(Error::NoMapping)), "{answer:?}");
                let (span, value) = ((start, world.now()), Value::Known(prot.bits().into()));
                let write = Write { span, value, sure: answer.is_ok() };
                log.writes.extend(all.map(|n| ((Protection, here, n), write)));
            }
            Op::DontNeed => {
                let answer = space.advise(r, Advice::DontNeed, ctx);
                assert!(matches!(answer, Ok(()) | Err(Error::NoMapping)), "{answer:?}");
                let span = (start, world.now());
                all.for_each(|n| log.write((Data, here, n), span, Value::From((Fresh, here, n))));
            }
            Op::Guard => {
                let answer = space.advise(r, Advice::InstallGuards, ctx);
                assert!(matches!(answer, Ok(()) | Err(Error::NoMapping)), "{answer:?}");
                let span = (start, world.now());
                for n in all {
                    log.write((Data, here, n), span, Value::From((Fresh, here, n)));
                    log.write((Guarded, here, n), span, Value::Known(1));
                }
            }
            Op::Unguard => {
                let answer = space.advise(r, Advice::RemoveGuards, ctx);
                assert!(matches!(answer, Ok(()) | Err(Error::NoMapping)), "{answer:?}");
                let span = (start, world.now());
                all.for_each(|n| log.write((Guarded, here, n), span, Value::Known(0)));
            }
            Op::Remap => {
                let to = WINDOW.start + self.random.below(size - pages + 1);
                match space.remap(r, pages, RemapTo::Fixed(page(to)), ctx) {
                    Ok(got) => {
                        assert_eq!(got, page(to));
                        let span = (start, world.now());
                        for i in 0..pages {
                            // A hole between several mappings is not moved: there the target stays as it was.
                            for kind in KINDS {
                                let value = Value::From((kind, here, first + i));
                                log.writes.push(((kind, here, to + i), Write { span, value, sure: false }));
                            }
                            log.write((Mapped, here, first + i), span, Value::Known(0));
                        }
                    }
                    Err(error) => assert!(matches!(error, Error::Invalid | Error::NoMapping), "{error:?}"),
                }
            }
            Op::Fork => {
                let _one = world.forking.lock().unwrap();
                let there = world.spaces.read().unwrap().len();
                if there < SPACES {
                    let child = space.fork(ctx).expect("there is memory");
                    let span = (start, world.now());
                    for (n, kind) in WINDOW.flat_map(|n| KINDS.map(|kind| (n, kind))) {
                        log.write((kind, there, n), span, Value::From((kind, here, n)));
                    }
                    world.spaces.write().unwrap().push(child);
                }
            }
            Op::Switch => {
                let spaces = world.spaces.read().unwrap().clone();
                let there = self.random.below(spaces.len() as u64) as usize;
                sim.leave(space, ctx);
                sim.enter(&*spaces[there], ctx);
                (self.here, self.space) = (there, spaces[there].clone());
            }
            Op::Access(access) => {
                let value = world.stamp();
                let answer = match access {
                    Access::Read => sim.load(space, at, ctx),
                    Access::Write => sim.store(space, at, value, ctx).map(|()| value),
                    Access::Exec => sim.fetch(space, at, ctx).map(|()| 0),
                };
                let span = (start, world.now());
                if access == Access::Write && answer.is_ok() {
                    log.write((Data, here, first), span, Value::Known(value));
                }
                log.reads.push(Read { cpu: self.number, space: here, page: first, access, span, answer });
            }
        }
    }
}

/// Whether every answer is explained by some write; how many there were.
fn check(logs: Vec<Log>) -> usize {
    let unmapped = Write { span: (0, 0), value: Value::Known(0), sure: true };
    let unmapped = WINDOW.map(|n| ((Mapped, 0, n), unmapped));
    let (writes, reads): (Vec<_>, Vec<_>) = logs.into_iter().map(|log| (log.writes, log.reads)).unzip();
    let registers = Registers::new(unmapped.chain(writes.into_iter().flatten()));
    let mut checked = 0;
    for read in reads.iter().flatten() {
        let of = |kind| registers.read((kind, read.space, read.page), read.span);
        let (maps, prots, guards) = (of(Mapped), of(Protection), of(Guarded));
        let mapped = maps.iter().any(|&m| m != 0);
        let allowed = |p: &u64| read.access.allowed_by(Prot::from_bits_truncate(*p as u8));
        let explained = match read.answer {
            Ok(value) => {
                mapped
                    && prots.iter().any(allowed)
                    && guards.contains(&0)
                    && (read.access != Access::Read || of(Data).contains(&value))
            }
            Err(Fault::NoMapping) => maps.contains(&0),
            Err(Fault::Denied) => mapped && !prots.iter().all(allowed),
            // A fetch meets the guard of any page that may be used at all.
            Err(Fault::Guard) if read.access == Access::Exec => {
                mapped && prots.iter().any(|&p| p != 0) && guards.contains(&1)
            }
            Err(Fault::Guard) => mapped && prots.iter().any(allowed) && guards.contains(&1),
            Err(_) => false,
        };
        assert!(
            explained,
            "no write explains {read:?}: mapped {maps:?}, protection {prots:?}, guards {guards:?}, contents {:?}",
            of(Data)
        );
        checked += 1;
    }
    checked
}

/// One run of `steps` by each CPU, from an empty address space to nothing.
fn run(sim: &'static Sim, seed: u64, steps: usize) -> usize {
    let world = sim.cpus.on(0, |ctx| World {
        sim,
        clock: AtomicU64::new(1),
        stamps: AtomicU64::new(1000),
        object: Pages::new(sim, 1, &WINDOW.map(object_value).collect::<Vec<_>>(), &ctx),
        spaces: RwLock::new(vec![sim.space(&ctx)]),
        forking: Mutex::new(()),
    });
    let ops: Vec<Op> = OPS.iter().flat_map(|&(op, times)| std::iter::repeat_n(op, times)).collect();
    let logs = Mutex::new(Vec::new());
    sim.cpus.run(|id, ctx| {
        let number = id.index();
        let random = Random::new(seed, number);
        let space = world.spaces.read().unwrap()[0].clone();
        sim.enter(&*space, &ctx);
        let mut cpu = Cpu { world: &world, number, random, log: Log::default(), here: 0, space };
        for _ in 0..steps {
            let op = cpu.random.pick(&ops);
            for _ in 0..STIRS {
                sim.stir(window(), |n| cpu.random.below(n));
            }
            cpu.step(op, &ctx);
            let first = cpu.random.below(window().len());
            let audited = range(WINDOW.start + first, AUDITED.min(window().len() - first));
            sim.audit(&*cpu.space, audited, &ctx);
        }
        sim.leave(&*cpu.space, &ctx);
        logs.lock().unwrap().push(cpu.log);
    });
    sim.cpus.on(0, |ctx| {
        for space in world.spaces.read().unwrap().iter() {
            space.clear(&ctx);
        }
        world.object.free(sim, &ctx);
    });
    assert_eq!(sim.owned(), [0; Use::COUNT], "frames were not given back");
    check(logs.into_inner().unwrap())
}

/// Runs on `cpus` CPUs; prints how many accesses were checked.
fn runs(cpus: usize, rounds: u64, steps: usize) {
    let sim = Sim::new(cpus, 2048);
    let checked: usize = (1..=rounds).map(|seed| run(sim, seed, steps)).sum();
    println!("{cpus} CPUs: {checked} accesses explained, {} flushes", sim.flushes.load(Ordering::Relaxed));
}

#[test]
fn two_cpus_see_only_what_calls_explain() {
    runs(2, 120, 300);
}

#[test]
fn four_cpus_see_only_what_calls_explain() {
    runs(4, 60, 300);
}

#[test]
fn eight_cpus_see_only_what_calls_explain() {
    runs(8, 30, 300);
}

/// As many runs as there is time for, of 2 to 8 CPUs: a moment, or the seconds that `QUIRE_STRESS` says. A failure names
/// the seed of its run; `QUIRE_SEED` has the seed to begin with.
#[test]
fn runs_for_a_while() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let (time, first) = (number("QUIRE_STRESS").unwrap_or(2), number("QUIRE_SEED").unwrap_or(1000));
    let end = Instant::now() + Duration::from_secs(time);
    let sims: Vec<_> = (2..=8).map(|cpus| Sim::new(cpus, 2048)).collect();
    let (mut checked, mut rounds) = (0, 0);
    while Instant::now() < end {
        let (seed, sim) = (first + rounds, sims[rounds as usize % sims.len()]);
        let cpus = sim.cpus.cpus();
        let done = std::panic::catch_unwind(AssertUnwindSafe(|| run(sim, seed, 1200 / cpus)));
        checked += done.unwrap_or_else(|panic| {
            eprintln!("run with seed {seed}, {cpus} CPUs");
            std::panic::resume_unwind(panic)
        });
        rounds += 1;
    }
    println!("{rounds} runs of 2 to 8 CPUs: {checked} accesses explained");
}

/// The checker itself must not be content with anything.
#[test]
fn the_checker_notices_a_stale_load() {
    let at = (Data, 0, WINDOW.start);
    let known =
        |start, end, value| (at, Write { span: (start, end), value: Value::Known(value), sure: true });
    let data = Registers::new([known(1, 2, 7), known(3, 4, 8), known(6, 9, 9)].into_iter());
    let seen = |start, end| data.read(at, (start, end)).into_iter().collect::<Vec<_>>();
    assert_eq!(seen(5, 5), [8], "an overwritten value was accepted");
    assert_eq!(seen(7, 8), [8, 9], "a write in progress may be seen or not");
    assert_eq!(seen(10, 11), [9]);
}
