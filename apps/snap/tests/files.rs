//! What is restored from files that a crash has cut short, a full disk refused, or somebody changed.
#![cfg(not(any(loom, shuttle)))]

mod common;

use std::collections::BTreeMap;

use common::{MemDisk, Step};
use snap::{Codec, Error, Folder, Gate, Image, Mode, Snap, SnapConfig};
use vmprim::Region;

const PAGES: usize = 6;
const CONFIG: SnapConfig = SnapConfig { mode: Mode::Trap, pool: 4 << 12, codec: Codec::None };

/// A region on such a disk, as long as it is used.
fn open(disk: &MemDisk, config: SnapConfig) -> Snap {
    Snap::open_on(disk.clone(), Region::builder(PAGES << 12), config).unwrap()
}

fn dump(snap: &Snap) -> Vec<u8> {
    let mut bytes = vec![0; snap.region().len()];
    snap.region().alias().unwrap().read_into(0, &mut bytes).unwrap();
    bytes
}

fn write(snap: &Snap, random: &mut fastrand::Rng, pages: usize) {
    let view = snap.region().view::<u8>().unwrap();
    for _ in 0..pages {
        let page = random.usize(..PAGES) << 12;
        (0..40).for_each(|_| _ = view.set(page + random.usize(..4096), random.u8(..)));
    }
}

/// The memory at each cut, from epoch 1, and how many steps the disk had taken when it was durable.
struct History {
    dumps: Vec<Vec<u8>>,
    durable: Vec<usize>,
}

/// So many checkpoints, each of a page or two; with folds that are waited for, or without.
fn history(disk: &MemDisk, cuts: usize, config: SnapConfig) -> History {
    let mut random = fastrand::Rng::with_seed(11);
    let (snap, gate) = (open(disk, config), Gate::new());
    let mut history = History { dumps: Vec::new(), durable: Vec::new() };
    for cut in 0..cuts {
        write(&snap, &mut random, if cut == 0 { 20 } else { 2 });
        snap.checkpoint(&gate, |state| state.extend(format!("state {}", cut + 1).bytes())).unwrap();
        history.durable.push(disk.steps());
        history.dumps.push(dump(&snap));
        snap.finish_folding();
    }
    history
}

/// The disk as a crash may leave it.
#[derive(Default)]
struct World {
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    files: BTreeMap<usize, Vec<u8>>,
    durable_bytes: BTreeMap<usize, usize>,
}

impl World {
    fn step(&mut self, step: &Step) {
        match step {
            Step::Create(name, number) => {
                self.names.insert(name.clone(), *number);
                self.files.insert(*number, Vec::new());
            }
            Step::Append(number, bytes) => self.files.get_mut(number).unwrap().extend(bytes),
            Step::SyncFile(number) => _ = self.durable_bytes.insert(*number, self.files[number].len()),
            Step::Rename(from, to) => {
                let number = self.names.remove(from).unwrap();
                self.names.insert(to.clone(), number);
            }
            Step::Remove(name) => _ = self.names.remove(name),
            Step::Sync => self.durable_names = self.names.clone(),
        }
    }

    /// Everything that was asked for happened.
    fn kept(&self) -> MemDisk {
        let files = self.names.iter().map(|(name, number)| (name.clone(), self.files[number].clone()));
        MemDisk::of(&files.collect())
    }

    /// Of what was not made durable, any part happened: names are the old ones or the new, files are cut short, or
    /// have zeros where they were written last.
    fn lost(&self, random: &mut fastrand::Rng) -> MemDisk {
        let mut names = if random.bool() { self.names.clone() } else { self.durable_names.clone() };
        if random.bool() {
            for (name, number) in self.names.iter().chain(&self.durable_names) {
                match random.bool() {
                    true => _ = names.insert(name.clone(), *number),
                    // A name that has been durable, and is still, does not go.
                    false if self.names.get(name) != self.durable_names.get(name) => _ = names.remove(name),
                    false => {}
                }
            }
        }
        let files = names.iter().map(|(name, number)| {
            let mut bytes = self.files[number].clone();
            let durable = self.durable_bytes.get(number).copied().unwrap_or(0);
            let kept = durable + random.usize(..=bytes.len() - durable);
            match random.bool() {
                true => bytes.truncate(kept),
                false => bytes[kept..].fill(0),
            }
            (name.clone(), bytes)
        });
        MemDisk::of(&files.collect())
    }
}

/// Restore, and compare: no epoch that was durable is gone, and a crash is no damage to warn of.
fn check(disk: &MemDisk, history: &History, step: usize, what: &str) -> u64 {
    let durable = history.durable.iter().take_while(|&&at| at <= step).count() as u64;
    match Image::read(disk).unwrap() {
        None => {
            assert_eq!(durable, 0, "{what}: nothing was restored");
            0
        }
        Some(image) => {
            assert!(image.epoch >= durable, "{what}: epoch {} of {durable}", image.epoch);
            assert_eq!(image.warnings, [] as [String; 0], "{what}");
            assert!(image.bytes == history.dumps[image.epoch as usize - 1], "{what}: another memory");
            assert_eq!(image.state, format!("state {}", image.epoch).into_bytes());
            image.epoch
        }
    }
}

#[test]
fn after_a_crash_at_any_byte_the_last_durable_image_is_restored() {
    for (config, cuts) in [(CONFIG, 9), (SnapConfig { mode: Mode::PreCopy, ..CONFIG }, 3)] {
        let disk = MemDisk::default();
        let history = history(&disk, cuts, config);
        let log = disk.state().log.clone();
        assert!(cuts < 9 || disk.files().keys().any(|name| name.ends_with("base") && name != "1.base"));
        let mut random = fastrand::Rng::with_seed(12);
        let mut world = World::default();
        let mut crashes = 0;
        for (at, step) in log.iter().enumerate() {
            if let Step::Append(number, bytes) = step {
                // Cut short within each record, at its ends, and at each field of the header and the footer.
                let ends = [1, 4, 24, 60, 63, 64, 65, 68, 72, 76, 77];
                let records = (1..bytes.len().div_ceil(4112)).flat_map(|i| [i * 4112 + 64, i * 4112 + 70]);
                let tail = [1, 8, 12, 32, 48, 55, 56, 57, 64, 70].map(|n| bytes.len().saturating_sub(n));
                for cut in ends.into_iter().chain(records).chain(tail).filter(|&cut| cut < bytes.len()) {
                    let whole = world.files[number].len();
                    world.files.get_mut(number).unwrap().extend(&bytes[..cut]);
                    check(&world.kept(), &history, at, &format!("step {at}, byte {cut}"));
                    check(&world.lost(&mut random), &history, at, &format!("step {at}, byte {cut}, lost"));
                    world.files.get_mut(number).unwrap().truncate(whole);
                    crashes += 2;
                }
            }
            world.step(step);
            check(&world.kept(), &history, at + 1, &format!("after step {at}"));
            for _ in 0..20 {
                check(&world.lost(&mut random), &history, at + 1, &format!("after step {at}, lost"));
                crashes += 1;
            }
        }
        assert!(crashes > 300, "{crashes}");
    }
}

#[test]
fn after_a_crash_checkpoints_go_on() {
    let disk = MemDisk::default();
    let history = history(&disk, 5, CONFIG);
    let log = disk.state().log.clone();
    let mut random = fastrand::Rng::with_seed(13);
    let mut world = World::default();
    for (at, step) in log.iter().enumerate() {
        world.step(step);
        let disk = world.lost(&mut random);
        let snap = open(&disk, CONFIG);
        assert!(disk.files().keys().all(|name| !name.ends_with("tmp")));
        if let Some(restored) = snap.restored() {
            assert!(dump(&snap) == history.dumps[restored.epoch as usize - 1], "step {at}");
        }
        write(&snap, &mut random, 2);
        let cut = snap.checkpoint(&Gate::new(), |state| state.push(7)).unwrap();
        let image = Image::read(&disk).unwrap().unwrap();
        assert!(image.bytes == dump(&snap) && image.epoch == cut.epoch && image.state == [7], "step {at}");
    }
}

#[test]
fn one_flipped_byte_costs_no_more_than_its_image() {
    for codec in [Codec::None, Codec::Lz4] {
        let disk = MemDisk::default();
        let history = history(&disk, 3, SnapConfig { codec, ..CONFIG });
        let files = disk.files();
        assert_eq!(files.keys().collect::<Vec<_>>(), ["1.base", "2.delta", "3.delta"]);
        for (name, bytes) in &files {
            let epoch: u64 = name.split('.').next().unwrap().parse().unwrap();
            let (len, mut random) = (bytes.len(), fastrand::Rng::with_seed(14));
            let at = (0..200).chain(len - 200..len).chain((0..len).step_by(61));
            for at in at {
                let mut files = files.clone();
                files.get_mut(name).unwrap()[at] ^= 1 << random.u8(..8);
                match (Image::read(&MemDisk::of(&files)), epoch) {
                    (Err(Error::NothingWhole { reasons }), 1) => {
                        assert!(reasons.iter().any(|reason| reason.contains("1.base")), "{reasons:?}");
                    }
                    (Ok(Some(image)), 2..) => {
                        assert_eq!(image.epoch, epoch - 1, "{name}, byte {at}");
                        assert!(image.bytes == history.dumps[image.epoch as usize - 1]);
                        let named = image.warnings.iter().any(|warning| warning.contains(name));
                        assert!(named && !image.warnings.is_empty(), "{name}: {:?}", image.warnings);
                    }
                    (other, _) => panic!("{name}, byte {at}: {other:?}"),
                }
            }
        }
    }
}

#[test]
fn a_damaged_fold_costs_nothing() {
    let disk = MemDisk::default();
    let history = history(&disk, 9, CONFIG);
    let mut files = disk.files();
    let bases = files.keys().filter_map(|name| name.strip_suffix(".base")?.parse::<u64>().ok());
    let name = format!("{}.base", bases.max().unwrap());
    assert_ne!(name, "1.base");
    let bytes = files.get_mut(&name).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let image = Image::read(&MemDisk::of(&files)).unwrap().unwrap();
    assert!(image.epoch == 9 && image.bytes == history.dumps[8], "{}", image.epoch);
    assert!(image.warnings.iter().any(|warning| warning.contains(&name)), "{:?}", image.warnings);
}

#[test]
fn files_of_another_history_are_no_parents() {
    let (disk, other) = (MemDisk::default(), MemDisk::default());
    history(&disk, 3, CONFIG);
    history(&other, 2, CONFIG);
    let mut files = disk.files();
    files.insert("2.delta".to_owned(), other.files()["2.delta"].clone());
    // 2 is whole, but its parent is another 1; and 3's parent is another 2.
    let image = Image::read(&MemDisk::of(&files)).unwrap().unwrap();
    assert_eq!(image.epoch, 1);
    assert!(image.warnings.iter().filter(|warning| warning.contains("another history")).count() >= 2);
    // The number of an epoch that was lost is not used again.
    let disk = MemDisk::of(&files);
    let snap = open(&disk, CONFIG);
    assert_eq!(snap.checkpoint(&Gate::new(), |_| ()).unwrap().epoch, 4);
    assert_eq!(Image::read(&disk).unwrap().unwrap().epoch, 4);
}

#[test]
fn a_damaged_file_found_by_a_fold_is_replaced_from_memory() {
    let disk = MemDisk::default();
    let (snap, gate) = (open(&disk, CONFIG), Gate::new());
    let mut random = fastrand::Rng::with_seed(15);
    write(&snap, &mut random, 20);
    snap.checkpoint(&gate, |_| ()).unwrap();
    {
        let mut state = disk.state();
        let number = state.names["1.base"];
        state.files[number][500] ^= 4;
    }
    let mut bases = 0;
    for _ in 0..8 {
        write(&snap, &mut random, 2);
        bases += u32::from(snap.checkpoint(&gate, |_| ()).unwrap().is_base);
        snap.finish_folding();
    }
    assert_eq!(bases, 1, "no base was written, or more than one");
    let warnings = snap.take_warnings();
    assert!(warnings.iter().any(|warning| warning.contains("1.base")), "{warnings:?}");
    assert!(Image::read(&disk).unwrap().unwrap().bytes == dump(&snap));
}

#[test]
fn a_full_disk_leaves_the_image_before_and_loses_nothing() {
    for mode in [Mode::Trap, Mode::PreCopy] {
        let disk = MemDisk::default();
        let (snap, gate) = (open(&disk, SnapConfig { mode, ..CONFIG }), Gate::new());
        let mut random = fastrand::Rng::with_seed(16);
        write(&snap, &mut random, 20);
        snap.checkpoint(&gate, |_| ()).unwrap();
        let before = dump(&snap);
        let view = snap.region().view::<u8>().unwrap();
        view.set(7, 77);
        view.set((2 << 12) + 7, 77);
        for _ in 0..3 {
            let used: usize = disk.files().values().map(Vec::len).sum();
            disk.state().limit = Some(used + 5000);
            let error = snap.checkpoint(&gate, |_| ()).unwrap_err().to_string();
            assert!(error.starts_with("cannot write the image of epoch"), "{error}");
            let image = Image::read(&disk).unwrap().unwrap();
            assert!(image.epoch == 1 && image.bytes == before && image.warnings.is_empty());
            assert_eq!(disk.files().len(), 1, "what was written is left behind");
            view.set((4 << 12) + 7, 78);
            view.set(8, 78);
        }
        disk.state().limit = None;
        let cut = snap.checkpoint(&gate, |_| ()).unwrap();
        assert_eq!(cut.pages, 3);
        let image = Image::read(&disk).unwrap().unwrap();
        assert!(image.epoch == cut.epoch && image.bytes == dump(&snap), "what failed was forgotten");
    }
}

/// A child that another thread has forked has the file of the lock open until it runs its program. The folder is free as soon as
/// its holder gives it up, and not as soon as a child does.
#[test]
fn a_folder_s_lock_is_its_process_s_whoever_has_the_file_open() {
    let at = tempfile::tempdir().unwrap();
    let folder = Folder::open(at.path()).unwrap();
    // SAFETY: the child only waits.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: they touch no memory; it ends in any case.
        unsafe {
            libc::alarm(20);
            libc::pause();
            libc::_exit(0);
        }
    }
    drop(folder);
    let again = Folder::open(at.path());
    // SAFETY: our child; nobody wants its status.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    let folder = again.unwrap();
    // SAFETY: the child gives its copy up, which allocates nothing, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        drop(folder);
        // SAFETY: it ends the child.
        unsafe { libc::_exit(0) };
    }
    // SAFETY: our child; nobody wants its status.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    assert!(matches!(Folder::open(at.path()), Err(Error::InUse { .. })));
}
