//! How many mappings there may be, where guards are mappings; asked for inside of the allocator, so without memory.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::report::Line;

/// Linux's own, where it isn't told.
const DEFAULT: usize = 65_530;

/// Whether it was said that something freed stays open.
pub static OPEN: AtomicBool = AtomicBool::new(false);

/// `vm.max_map_count`.
pub fn mappings() -> usize {
    static KNOWN: AtomicUsize = AtomicUsize::new(0);
    // Relaxed, both: any thread finds the same.
    match KNOWN.load(Ordering::Relaxed) {
        0 => {
            let found = read().unwrap_or(DEFAULT);
            KNOWN.store(found, Ordering::Relaxed);
            found
        }
        known => known,
    }
}

fn read() -> Option<usize> {
    let mut text = [0_u8; 24];
    // SAFETY: a string that ends, and a buffer of as many bytes; the descriptor is ours.
    let len = unsafe {
        let file = libc::open(c"/proc/sys/vm/max_map_count".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if file < 0 {
            return None;
        }
        let len = libc::read(file, text.as_mut_ptr().cast(), text.len());
        libc::close(file);
        len
    };
    let text = text.get(..usize::try_from(len).ok()?)?;
    std::str::from_utf8(text).ok()?.trim().parse().ok().filter(|&n| n > 0)
}

/// Say, the first time, that there are no more guards; `mapped` if they are mappings.
pub fn say_once(mapped: bool) {
    static SAID: AtomicBool = AtomicBool::new(false);
    // Relaxed: whichever thread finds it so.
    if SAID.swap(true, Ordering::Relaxed) {
        return;
    }
    let mut line = Line::new();
    line.text("fence: no more guards, so objects from here on have none: ");
    match mapped {
        true => {
            line.text("they are mappings, and a tenth of vm.max_map_count (").number(mappings());
            line.text(") is left to the program; Linux 6.13 has guards without\n")
        }
        false => line.text("the kernel refuses one\n"),
    };
    line.say();
}
