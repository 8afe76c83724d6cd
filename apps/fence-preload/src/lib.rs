//! `malloc` and its kin for unmodified programs, each of whose objects ends at a guard page:
//!
//!     LD_PRELOAD=libfence_preload.so FENCE_RATE=100 ./program
//!
//! An access past an object's end, or to what was freed, ends the program, with the call stacks of the access, the
//! allocation and the free. Variables of the environment:
//! - `FENCE_RATE=N`: one object of N is guarded, the others are glibc's.
//! - `FENCE_ALIGN=1`: objects end exactly at the guard, at addresses that need not be multiples of 16. Without it up to
//!   15 bytes are left between, whose contents are looked at when the object is freed.
//! - `FENCE_STACKS=0`: no call stacks.
//!
//! What can't be guarded (16 MiB or more, more than a page's alignment, no more mappings where guards need them) comes from glibc, by
//! the names under which it has its allocator besides (`__libc_malloc`).
#![cfg(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu"))]

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    ptr,
    sync::atomic::{AtomicUsize, Ordering},
};

use fence::raw;

unsafe extern "C" {
    fn __libc_malloc(size: usize) -> *mut c_void;
    fn __libc_calloc(count: usize, size: usize) -> *mut c_void;
    fn __libc_realloc(at: *mut c_void, size: usize) -> *mut c_void;
    fn __libc_memalign(align: usize, size: usize) -> *mut c_void;
    fn __libc_free(at: *mut c_void);
}

/// What `malloc` promises of addresses.
const USUAL: usize = 16;
const PAGE: usize = 4096;

/// The alignment that `malloc` gives, and every how many objects are guarded; 0 until the environment was read.
static ALIGN: AtomicUsize = AtomicUsize::new(0);
static RATE: AtomicUsize = AtomicUsize::new(1);
static COUNT: AtomicUsize = AtomicUsize::new(0);

fn number(name: &CStr) -> Option<usize> {
    // SAFETY: a name; the value is read at once.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    // SAFETY: as `getenv` says.
    let value = (!value.is_null()).then(|| unsafe { CStr::from_ptr(value) })?;
    value.to_str().ok()?.parse().ok()
}

extern "C" fn lock() {
    raw::lock();
}

extern "C" fn unlock() {
    raw::unlock();
}

#[cold]
fn begin() -> usize {
    let align = match number(c"FENCE_ALIGN") {
        Some(align) if align.is_power_of_two() && align <= USUAL => align,
        _ => USUAL,
    };
    // Relaxed, all: threads begin after the first allocation; at worst each reads the same.
    RATE.store(number(c"FENCE_RATE").unwrap_or(1).max(1), Ordering::Relaxed);
    if ALIGN.swap(align, Ordering::Relaxed) == 0 {
        if number(c"FENCE_STACKS") != Some(0) {
            raw::note_stacks();
        }
        // SAFETY: functions that stay as long as the process.
        unsafe { libc::pthread_atfork(Some(lock), Some(unlock), Some(unlock)) };
    }
    align
}

/// A guarded object, if its turn has come.
fn place(size: usize, align: Option<usize>) -> Option<*mut c_void> {
    let usual = match ALIGN.load(Ordering::Relaxed) {
        0 => begin(),
        align => align,
    };
    let rate = RATE.load(Ordering::Relaxed);
    if rate > 1 {
        // Relaxed, and not by read-modify-write: where threads meet, one more or less is guarded.
        let left = COUNT.load(Ordering::Relaxed);
        COUNT.store(if left == 0 { rate - 1 } else { left - 1 }, Ordering::Relaxed);
        if left > 0 {
            return None;
        }
    }
    raw::place(size, align.unwrap_or(usual)).map(<*mut u8>::cast)
}

fn no_memory() -> *mut c_void {
    // SAFETY: this thread's.
    unsafe { *libc::__errno_location() = libc::ENOMEM };
    ptr::null_mut()
}

/// As malloc(3).
#[unsafe(no_mangle)]
pub extern "C" fn malloc(size: usize) -> *mut c_void {
    // SAFETY: as its caller asks; so below.
    place(size, None).unwrap_or_else(|| unsafe { __libc_malloc(size) })
}

/// As calloc(3).
#[unsafe(no_mangle)]
pub extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
    let Some(bytes) = count.checked_mul(size) else { return no_memory() };
    match place(bytes, None) {
        Some(at) => {
            // A slot that was used before has zeros, but for the pattern in places.
            // SAFETY: an object of so many bytes.
            unsafe { at.cast::<u8>().write_bytes(0, bytes) };
            at
        }
        // SAFETY: see above.
        None => unsafe { __libc_calloc(count, size) },
    }
}

/// As free(3).
///
/// # Safety
/// What it says there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free(at: *mut c_void) {
    if !at.is_null() && !raw::free(at.cast()) {
        // SAFETY: not ours, so glibc's.
        unsafe { __libc_free(at) };
    }
}

/// As realloc(3). Guarded objects always move.
///
/// # Safety
/// What it says there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn realloc(at: *mut c_void, size: usize) -> *mut c_void {
    if at.is_null() {
        return malloc(size);
    }
    let Some(old) = raw::size_of(at.cast()) else {
        // SAFETY: glibc's.
        return unsafe { __libc_realloc(at, size) };
    };
    if size == 0 {
        // SAFETY: the caller's.
        unsafe { free(at) };
        return ptr::null_mut();
    }
    let new = malloc(size);
    if !new.is_null() {
        // SAFETY: two objects of as many bytes at least; the old one is the caller's to free.
        unsafe {
            ptr::copy_nonoverlapping(at.cast::<u8>(), new.cast::<u8>(), old.min(size));
            free(at);
        }
    }
    new
}

/// As reallocarray(3).
///
/// # Safety
/// What it says there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn reallocarray(at: *mut c_void, count: usize, size: usize) -> *mut c_void {
    match count.checked_mul(size) {
        // SAFETY: the caller's.
        Some(bytes) => unsafe { realloc(at, bytes) },
        None => no_memory(),
    }
}

/// As memalign(3).
#[unsafe(no_mangle)]
pub extern "C" fn memalign(align: usize, size: usize) -> *mut c_void {
    let placed = if align.is_power_of_two() { place(size, Some(align)) } else { None };
    // SAFETY: see above.
    placed.unwrap_or_else(|| unsafe { __libc_memalign(align, size) })
}

/// As aligned_alloc(3).
#[unsafe(no_mangle)]
pub extern "C" fn aligned_alloc(align: usize, size: usize) -> *mut c_void {
    memalign(align, size)
}

/// As posix_memalign(3).
///
/// # Safety
/// What it says there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_memalign(to: *mut *mut c_void, align: usize, size: usize) -> c_int {
    if !align.is_power_of_two() || !align.is_multiple_of(size_of::<usize>()) {
        return libc::EINVAL;
    }
    let at = memalign(align, size);
    if at.is_null() {
        return libc::ENOMEM;
    }
    // SAFETY: the caller's.
    unsafe { to.write(at) };
    0
}

/// As valloc(3).
#[unsafe(no_mangle)]
pub extern "C" fn valloc(size: usize) -> *mut c_void {
    memalign(PAGE, size)
}

/// As pvalloc(3).
#[unsafe(no_mangle)]
pub extern "C" fn pvalloc(size: usize) -> *mut c_void {
    size.checked_next_multiple_of(PAGE).map_or_else(no_memory, |size| memalign(PAGE, size.max(PAGE)))
}

/// As malloc_usable_size(3): of guarded objects what was asked for, no more.
///
/// # Safety
/// What it says there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc_usable_size(at: *mut c_void) -> usize {
    if at.is_null() {
        return 0;
    }
    if let Some(size) = raw::size_of(at.cast()) {
        return size;
    }
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let mut next = NEXT.load(Ordering::Relaxed);
    if next == 0 {
        let name: *const c_char = c"malloc_usable_size".as_ptr();
        // SAFETY: a name.
        next = unsafe { libc::dlsym(libc::RTLD_NEXT, name) } as usize;
        NEXT.store(next, Ordering::Relaxed);
    }
    if next == 0 {
        return 0;
    }
    // SAFETY: glibc's function of that name and type.
    let glibc_s = unsafe { std::mem::transmute::<usize, unsafe extern "C" fn(*mut c_void) -> usize>(next) };
    // SAFETY: glibc's object.
    unsafe { glibc_s(at) }
}
