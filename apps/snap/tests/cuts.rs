//! The image is the memory at the cut: threads write all the while, and the image of each cut is compared with a copy of
//! the memory that was made in the cut, and with a model that repeats as many operations.
#![cfg(not(any(loom, shuttle)))]

mod common;
#[path = "../../../vmprim/tests/common/must.rs"]
mod must;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use common::MemDisk;
use snap::{Codec, Error, Gate, Image, Mode, Snap, SnapConfig};
use vmprim::{Access, Backend, PageNo, Region};

const PAGES: usize = 64;
const WORDS: usize = 512;
const THREADS: usize = 2;

/// Operation `n` of a thread's: three words, and what is added to each. Additions commute, so that a model needs no
/// order between threads.
fn operation(random: &mut fastrand::Rng) -> [(usize, u64); 3] {
    // A third of them in a few pages.
    let pages = if random.u8(..3) == 0 { 8 } else { PAGES };
    std::array::from_fn(|_| (random.usize(..pages) * WORDS + random.usize(..WORDS), random.u64(..)))
}

fn stream(seed: u64, thread: usize) -> fastrand::Rng {
    fastrand::Rng::with_seed(seed * 1000 + thread as u64)
}

fn word(region: &Region, at: usize) -> &AtomicU64 {
    // SAFETY: in the region, aligned, and used through atomics alone.
    unsafe { AtomicU64::from_ptr(region.base().cast::<u64>().add(at)) }
}

fn dump(region: &Region) -> Vec<u8> {
    let mut bytes = vec![0; region.len()];
    region.alias().unwrap().read_into(0, &mut bytes).unwrap();
    bytes
}

/// Memory that operations are repeated on.
struct Model {
    words: Vec<u64>,
    done: [u64; THREADS],
    streams: [fastrand::Rng; THREADS],
}

impl Model {
    fn new(seed: u64) -> Self {
        let streams = std::array::from_fn(|thread| stream(seed, thread));
        Self { words: vec![0; PAGES * WORDS], done: [0; THREADS], streams }
    }

    /// The memory after so many operations of each thread, no fewer than before.
    fn bytes(&mut self, counts: &[u64]) -> Vec<u8> {
        for (thread, &count) in counts.iter().enumerate() {
            let more = self.done[thread]..count;
            for (at, add) in more.flat_map(|_| operation(&mut self.streams[thread])) {
                self.words[at] = self.words[at].wrapping_add(add);
            }
            self.done[thread] = count;
        }
        self.words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }
}

fn counts(state: &[u8]) -> Vec<u64> {
    state.chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// Ends the threads when it is dropped.
struct Stops<'s>(&'s AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Run {
    seed: u64,
    config: SnapConfig,
    backend: Backend,
    cuts: usize,
    delay: Duration,
}

/// Whether the system has what a backend is made of. What `Auto` takes, and signals, are everywhere.
fn is_there(backend: Backend, config: SnapConfig) -> bool {
    let region = Region::builder(PAGES * WORDS * 8).backend(backend);
    match Snap::open_on(MemDisk::default(), region, config) {
        Ok(_) => true,
        Err(Error::Memory(vmprim::Error::Unsupported { .. })) => {
            assert!(backend != Backend::Auto && !must::is_must(backend), "{backend:?} must work here");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

/// Checkpoints while threads write, opening the region anew half-way; how often writes waited.
fn run(Run { seed, config, backend, cuts, delay }: Run) -> u64 {
    println!("seed {seed}, {config:?}, {backend:?}");
    if !is_there(backend, config) {
        println!("left out: not on this system");
        return 0;
    }
    let disk = MemDisk::default();
    disk.state().delay = delay;
    let mut done = vec![0_u64; THREADS];
    let (mut waits, mut model) = (0, Model::new(seed));
    for half in 0..2 {
        let region = Region::builder(PAGES * WORDS * 8).backend(backend);
        let snap = Snap::open_on(disk.clone(), region, config).unwrap();
        assert_eq!(snap.restored().is_some(), half == 1);
        if let Some(restored) = snap.restored() {
            done = counts(&restored.state);
            assert!(dump(snap.region()) == model.bytes(&done), "what was restored is not the model");
        }
        let gate = Gate::new();
        // Threads write from a little before each checkpoint to its end, not while it is looked at.
        let (stop, runs) = (AtomicBool::new(false), AtomicBool::new(false));
        let counters: Vec<_> = done.iter().map(|&count| AtomicU64::new(count)).collect();
        let go = AtomicU64::new(0);
        std::thread::scope(|scope| {
            // Also if something below panics.
            let stops = Stops(&stop);
            for (thread, counter) in counters.iter().enumerate() {
                let (snap, gate, stop, runs, go) = (&snap, &gate, &stop, &runs, &go);
                scope.spawn(move || {
                    vmprim::attach().unwrap();
                    let mut random = stream(seed, thread);
                    (0..counter.load(Ordering::Relaxed)).for_each(|_| _ = operation(&mut random));
                    while !stop.load(Ordering::Relaxed) {
                        if !runs.load(Ordering::Relaxed) {
                            std::thread::yield_now();
                            continue;
                        }
                        let _pass = gate.enter();
                        for (at, add) in operation(&mut random) {
                            word(snap.region(), at).fetch_add(add, Ordering::Relaxed);
                        }
                        counter.fetch_add(1, Ordering::Relaxed);
                        go.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for _ in 0..cuts {
                runs.store(true, Ordering::Relaxed);
                // Some operations between cuts, whatever the machine does.
                let before = go.load(Ordering::Relaxed);
                while go.load(Ordering::Relaxed) < before + 40 {
                    std::thread::yield_now();
                }
                let mut copy = Vec::new();
                let cut = snap
                    .checkpoint(&gate, |state| {
                        copy = dump(snap.region());
                        counters.iter().for_each(|n| state.extend(n.load(Ordering::Relaxed).to_le_bytes()));
                    })
                    .unwrap();
                runs.store(false, Ordering::Relaxed);
                waits += cut.waits;
                let image = Image::read(&disk).unwrap().unwrap();
                assert_eq!((image.epoch, &*image.warnings), (cut.epoch, &[] as &[String]));
                assert!(image.bytes == copy, "the image is not the memory at the cut");
                assert!(image.bytes == model.bytes(&counts(&image.state)), "the image is not the model");
            }
            drop(stops);
        });
        done = counters.iter().map(|counter| counter.load(Ordering::Relaxed)).collect();
        assert_eq!(snap.take_warnings(), [] as [String; 0]);
    }
    waits
}

fn config(mode: Mode, pool: usize, codec: Codec) -> SnapConfig {
    SnapConfig { mode, pool, codec }
}

#[test]
fn images_by_traps_are_the_memory_at_the_cut() {
    for (seed, backend) in [(1, Backend::Auto), (2, Backend::Signal), (8, Backend::Native)] {
        let config = config(Mode::Trap, 64 << 12, Codec::None);
        run(Run { seed, config, backend, cuts: 6, delay: Duration::ZERO });
    }
    let config = config(Mode::Trap, 64 << 12, Codec::Lz4);
    run(Run { seed: 3, config, backend: Backend::Auto, cuts: 4, delay: Duration::ZERO });
}

#[test]
fn images_by_rounds_are_the_memory_at_the_cut() {
    for (seed, backend) in [(4, Backend::Auto), (5, Backend::UffdView), (9, Backend::Native)] {
        let config = config(Mode::PreCopy, 64 << 12, Codec::None);
        run(Run { seed, config, backend, cuts: 6, delay: Duration::ZERO });
    }
    let config = config(Mode::PreCopy, 1 << 12, Codec::Lz4);
    run(Run { seed: 6, config, backend: Backend::Auto, cuts: 4, delay: Duration::ZERO });
}

#[test]
fn a_pool_of_one_page_makes_writes_wait_and_images_the_same() {
    let config = config(Mode::Trap, 1, Codec::None);
    // Whether one waits is up to the machine: with enough cuts some do.
    let waits = (700..720).map(|seed| {
        run(Run { seed, config, backend: Backend::Auto, cuts: 6, delay: Duration::from_millis(3) })
    });
    assert!(waits.into_iter().any(|waits| waits > 0), "nobody ever waited");
}

#[test]
fn a_delta_has_what_changed_and_is_folded() {
    let disk = MemDisk::default();
    for mode in [Mode::Trap, Mode::PreCopy] {
        *disk.state() = common::State::default();
        let region = Region::builder(PAGES << 12);
        let snap = Snap::open_on(disk.clone(), region, config(mode, 1 << 20, Codec::None)).unwrap();
        let (gate, view) = (Gate::new(), snap.region().view::<u64>().unwrap());
        let write = |pages: std::ops::Range<usize>, value: u64| {
            let _pass = gate.enter();
            pages.for_each(|page| _ = view.set(page * WORDS, value));
        };
        write(0..60, 1);
        let cut = snap.checkpoint(&gate, |_| ()).unwrap();
        assert_eq!((cut.epoch, cut.is_base, cut.pages), (1, true, 60));
        for epoch in 2..=30 {
            write(10..20, epoch);
            let cut = snap.checkpoint(&gate, |_| ()).unwrap();
            assert_eq!((cut.epoch, cut.is_base, cut.pages), (epoch, false, 10));
            assert!(cut.bytes < 11 * 4200, "{} bytes for ten pages", cut.bytes);
            snap.finish_folding();
        }
        let cut = snap.checkpoint(&gate, |_| ()).unwrap();
        assert_eq!(cut.pages, 0);
        let names: Vec<_> = disk.files().into_keys().collect();
        assert!(names.len() < 25 && names[0] == "19.base", "{names:?}");
        let image = Image::read(&disk).unwrap().unwrap();
        assert!(image.bytes == dump(snap.region()));
    }
}

#[test]
fn a_checkpoint_during_a_checkpoint_is_refused() {
    for mode in [Mode::Trap, Mode::PreCopy] {
        let config = SnapConfig { mode, ..SnapConfig::default() };
        let snap = Snap::open_on(MemDisk::default(), Region::builder(8 << 12), config).unwrap();
        let gate = Gate::new();
        let mut inner = None;
        snap.checkpoint(&gate, |_| inner = Some(snap.checkpoint(&gate, |_| ()))).unwrap();
        assert!(matches!(inner, Some(Err(Error::Busy))));
        snap.checkpoint(&gate, |_| ()).unwrap();
    }
}

#[test]
fn a_pinned_page_stops_a_checkpoint_and_not_the_next() {
    let disk = MemDisk::default();
    let snap = Snap::open_on(disk.clone(), Region::builder(8 << 12), SnapConfig::default()).unwrap();
    let (gate, view) = (Gate::new(), snap.region().view::<u8>().unwrap());
    view.set(2 << 12, 5);
    let pin = snap.region().pin(3..4, Access::ReadWrite).unwrap();
    let error = snap.checkpoint(&gate, |_| ()).unwrap_err();
    assert_eq!(error.to_string(), "page 3 is pinned");
    assert_eq!(snap.region().level(PageNo(3)), Some(Access::ReadWrite));
    drop(pin);
    assert_eq!(snap.checkpoint(&gate, |_| ()).unwrap().pages, 2);
    assert!(Image::read(&disk).unwrap().unwrap().bytes == dump(snap.region()));
}

#[test]
fn a_state_that_panics_costs_a_base() {
    for mode in [Mode::Trap, Mode::PreCopy] {
        let disk = MemDisk::default();
        let config = SnapConfig { mode, ..SnapConfig::default() };
        let snap = Snap::open_on(disk.clone(), Region::builder(8 << 12), config).unwrap();
        let (gate, view) = (Gate::new(), snap.region().view::<u8>().unwrap());
        view.set(2 << 12, 5);
        snap.checkpoint(&gate, |_| ()).unwrap();
        view.set(3 << 12, 6);
        let panics = || snap.checkpoint(&gate, |_| panic!("as the test wants it"));
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).unwrap_err();
        view.set(4 << 12, 7);
        let cut = snap.checkpoint(&gate, |_| ()).unwrap();
        assert!(cut.is_base && cut.pages == 3, "{cut:?}");
        assert!(Image::read(&disk).unwrap().unwrap().bytes == dump(snap.region()));
        assert!(!snap.checkpoint(&gate, |_| ()).unwrap().is_base);
    }
}

#[test]
fn a_folder_is_one_process_s_and_of_one_size() {
    let folder = tempfile::tempdir().unwrap();
    let open = |pages: usize| Snap::open(folder.path(), Region::builder(pages << 12), SnapConfig::default());
    let snap = open(4).unwrap();
    assert!(snap.restored().is_none());
    snap.region().view::<u8>().unwrap().set(5000, 9);
    snap.checkpoint(&Gate::new(), |state| state.push(1)).unwrap();
    assert!(matches!(open(4), Err(Error::InUse { .. })));
    drop(snap);
    let error = open(5).unwrap_err().to_string();
    assert_eq!(
        error,
        "1.base is of 16384 bytes in pages of 4096, and the region has 20480 in pages of 4096: open it with as many"
    );
    let snap = open(4).unwrap();
    assert_eq!((snap.restored().unwrap().epoch, snap.region().view::<u8>().unwrap().get(5000)), (1, Some(9)));
    let shared = Arc::new(snap);
    let other = shared.clone();
    std::thread::spawn(move || other.checkpoint(&Gate::new(), |_| ()).unwrap()).join().unwrap();
}
