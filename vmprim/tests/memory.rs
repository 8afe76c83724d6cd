//! Other memory than the usual: files, huge pages, many pages at once.
#![cfg(not(any(loom, shuttle)))]

mod common;

use std::{fs::File, io::Write, os::unix::fs::FileExt};

use common::{PAGE, ways};
use vmprim::{Access, Backend, Backing, Error, Needs, PageNo, PageSet, Region};

const PAGES: usize = 16;

/// A file whose bytes are the numbers of their pages, in the folder for temporary files.
fn file(name: &str) -> File {
    let path = std::env::temp_dir().join(format!("vmprim-{}-{name}", std::process::id()));
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.create(true).truncate(true).read(true).write(true).open(&path).unwrap();
    (0..PAGES).for_each(|page| file.write_all(&[page as u8; PAGE]).unwrap());
    std::fs::remove_file(path).unwrap();
    file
}

fn take(region: &Region) -> Vec<usize> {
    let mut set = PageSet::new();
    region.take_dirty(0..PAGES, &mut set).unwrap();
    set.iter().map(|page| page.0).collect()
}

/// Dirty sets of a file's pages, private and shared, by traps and by the kernel's tracking.
#[test]
fn files_have_dirty_sets() {
    for backend in [Backend::Signal, Backend::AsyncDirty] {
        for shared in [false, true] {
            let file = file("dirty");
            let backing = Backing::File { file: file.try_clone().unwrap(), offset: PAGE as u64, shared };
            let builder = Region::builder((PAGES - 1) * PAGE).backing(backing).need(Needs::DIRTY);
            let region = match builder.backend(backend).build() {
                Ok(region) => region,
                Err(Error::Unsupported { tried, .. }) if !common::is_must(backend) => {
                    eprintln!("left out: {tried:?}");
                    continue;
                }
                Err(error) => panic!("{error}"),
            };
            let view = region.view::<u8>().unwrap();
            let context = format!("{backend:?}, shared {shared}");
            let mut set = PageSet::new();
            region.take_dirty(0..PAGES - 1, &mut set).unwrap();
            set.clear();
            assert_eq!((view.get(0), view.get(5 * PAGE)), (Some(1), Some(6)), "{context}");
            view.set(7 * PAGE + 5, 0xaa);
            view.set(2 * PAGE, 0xbb);
            region.take_dirty(0..PAGES - 1, &mut set).unwrap();
            let written = [PageNo(2), PageNo(7)];
            assert!(written.iter().all(|&page| set.contains(page)), "{context}: {set:?}");
            assert!(!set.contains(PageNo(5)), "{context}: a page that was read is dirty");
            set.clear();
            view.set(7 * PAGE, 0xcc);
            region.take_dirty(0..PAGES - 1, &mut set).unwrap();
            assert_eq!(set.iter().collect::<Vec<_>>(), [PageNo(7)], "{context}");
            let mut byte = [0];
            file.read_exact_at(&mut byte, 3 * PAGE as u64).unwrap();
            assert_eq!(byte[0], if shared { 0xbb } else { 3 }, "{context}");
            assert_eq!(region.alias().is_ok(), shared, "{context}");
        }
    }
}

/// The alias of a shared file sees what the view's levels forbid.
#[test]
fn a_shared_file_has_an_alias() {
    let backing = Backing::File { file: file("alias"), offset: 0, shared: true };
    let region = Region::builder(PAGES * PAGE)
        .backing(backing)
        .need(Needs::ALIAS | Needs::NONE_LEVEL)
        .build()
        .unwrap();
    region.protect(0..PAGES, Access::None).unwrap();
    let mut bytes = [0; 2];
    region.alias().unwrap().read_into(4 * PAGE - 1, &mut bytes).unwrap();
    assert_eq!(bytes, [3, 4]);
    assert_eq!(region.alias().unwrap().read_into(PAGES * PAGE - 1, &mut bytes), Err(Error::Range));
    assert!(region.alias().unwrap().atomic::<std::sync::atomic::AtomicU64>(4).is_err(), "not aligned");
}

/// Huge pages, asked for by somebody else: levels and dirty sets stay those of single pages.
#[test]
fn huge_pages_change_nothing() {
    const MANY: usize = 3 * 512;
    for way in ways() {
        let region = way.builder(MANY).need(Needs::DIRTY).build().unwrap();
        // SAFETY: advice that changes no contents.
        unsafe { libc::madvise(region.base().cast(), MANY * PAGE, libc::MADV_HUGEPAGE) };
        let view = region.view::<u64>().unwrap();
        let at = |page: usize| page * PAGE / 8;
        (0..MANY).for_each(|page| _ = view.set(at(page), page as u64));
        let mut set = PageSet::new();
        region.take_dirty(0..MANY, &mut set).unwrap();
        assert_eq!(set.len(), MANY, "{way:?}");
        set.clear();
        region.take_dirty(0..MANY, &mut set).unwrap();
        assert!(set.is_empty(), "{way:?}");
        for page in [700, 3, 511, 512] {
            view.set(at(page), 9);
        }
        region.take_dirty(0..MANY, &mut set).unwrap();
        assert_eq!(set.iter().map(|page| page.0).collect::<Vec<_>>(), [3, 511, 512, 700], "{way:?}");
        let level = *way.levels().last().unwrap();
        region.protect_many(&[PageNo(600).into(), PageNo(602).into(), (900..903).into()], level).unwrap();
        assert_eq!(region.level(PageNo(600)), Some(level));
        for page in [600, 601, 902, 1100] {
            assert_eq!(view.get(at(page)), Some(page as u64), "{way:?}");
        }
    }
}

/// More scattered pages than any batch inside of the library holds.
#[test]
fn many_scattered_pages_are_lowered_and_found() {
    const MANY: usize = 5000;
    for way in ways() {
        let region = way.builder(MANY).need(Needs::DIRTY).build().unwrap();
        let view = region.view::<u64>().unwrap();
        let mut set = PageSet::new();
        (0..MANY).for_each(|page| _ = view.set(page * PAGE / 8, page as u64));
        region.take_dirty(0..MANY, &mut set).unwrap();
        set.clear();
        let odd = || (1..MANY).step_by(2);
        odd().for_each(|page| _ = view.set(page * PAGE / 8, 5));
        region.take_dirty(0..MANY, &mut set).unwrap();
        assert!(set.iter().map(|page| page.0).eq(odd()), "{way:?}");
        region.unprotect(0..MANY, Access::ReadWrite).unwrap();
        let level = *way.levels().last().unwrap();
        let scattered: Vec<_> = odd().map(|page| PageNo(page).into()).collect();
        region.protect_many(&scattered, level).unwrap();
        let at = |page: usize| region.level(PageNo(page));
        assert!(
            (0..MANY).all(|page| at(page) == Some(if page % 2 == 1 { level } else { Access::ReadWrite }))
        );
        let evicted = region.try_evict(&(0..MANY).map(PageNo).collect::<Vec<_>>(), level).unwrap();
        assert_eq!(evicted.len(), if level == Access::ReadWrite { 0 } else { MANY / 2 }, "{way:?}");
        assert!(
            (0..MANY)
                .all(|page| view.get(page * PAGE / 8) == Some(if page % 2 == 1 { 5 } else { page as u64 }))
        );
        take_all(&region, MANY);
    }
}

fn take_all(region: &Region, pages: usize) {
    let mut set = PageSet::new();
    region.take_dirty(0..pages, &mut set).unwrap();
    assert_eq!(region.take_dirty(0..pages + 1, &mut set), Err(Error::Range));
    assert_eq!(region.protect(PageNo(pages), Access::ReadWrite), Err(Error::Range));
    assert_eq!(region.protect(usize::MAX - 1..usize::MAX, Access::ReadWrite), Err(Error::Range));
}

#[test]
fn a_small_region_of_a_file_is_a_region() {
    let backing = Backing::File { file: file("small"), offset: 0, shared: true };
    let region = Region::builder(PAGES * PAGE).backing(backing).need(Needs::DIRTY).build().unwrap();
    take(&region);
    region.view::<u8>().unwrap().set(9 * PAGE, 1);
    assert_eq!(take(&region), [9]);
}
