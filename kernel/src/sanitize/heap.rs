//! Redzones around what the heap hands out, and a quarantine for what comes back.
//! ```text
//!        | Header, poisoned    | the allocation | poisoned |
//!        ^ from the allocator  ^ to the caller             ^ at least REDZONE bytes
//! ```
//! The left redzone says who allocated, and then who freed. Freed blocks go to a queue, linked through their headers, and
//! only from its end back to the allocator, so a pointer that outlives its object meets poison for a while; and what the
//! allocator has in hand is poisoned too, so it does for as long as the memory isn't used for something else.

use core::{alloc::Layout, arch::asm, ptr::NonNull};

use super::{ON, exempt, shadow};
use crate::hw::{paging, serial};

/// Return addresses kept of who allocated or freed.
const CALLERS: usize = 5;
/// Bytes of poison behind an allocation, at least.
const REDZONE: usize = 32;

/// What a left redzone holds, right before the allocation.
#[repr(C, align(8))]
struct Header {
    /// The block that was freed next; its first byte of the caller's.
    next: Option<NonNull<u8>>,
    /// The caller's layout.
    layout: Layout,
    callers: [u64; CALLERS],
}

/// What to ask the allocator for, so that `layout` fits with its redzones; None if there is no such size.
pub fn with_redzones(layout: Layout) -> Option<Layout> {
    if !ON {
        return Some(layout);
    }
    let left = left_bytes(layout);
    let bytes = left.checked_add(layout.size())?.checked_add(REDZONE)?.checked_next_multiple_of(8)?;
    Layout::from_size_align(bytes, layout.align().max(16)).ok()
}

/// Bytes before the allocation: a multiple of its alignment.
fn left_bytes(layout: Layout) -> usize {
    size_of::<Header>().next_multiple_of(layout.align().max(16))
}

/// The caller's `layout` in a block that was allocated for it by [`with_redzones`]. The heap's lock is held.
pub fn open(block: NonNull<u8>, layout: Layout) -> NonNull<u8> {
    if !ON {
        return block;
    }
    let (left, outer) = (left_bytes(layout), with_redzones(layout).unwrap_or(layout));
    // SAFETY: the block is `outer.size()` bytes long, which is more than `left`.
    let at = unsafe { block.add(left) };
    let first = at.addr().get() as u64;
    shadow::fill(first - left as u64, left as u64, shadow::HEAP_LEFT);
    shadow::allow(first, layout.size() as u64);
    let end = first + layout.size().next_multiple_of(8) as u64;
    shadow::fill(end, (outer.size() - left) as u64 - (end - first), shadow::HEAP_RIGHT);
    exempt(|| {
        // SAFETY: within the left redzone, which is aligned and belongs to the block, and so to us.
        unsafe { header(at).write(Header { next: None, layout, callers: callers() }) }
    });
    at
}

/// The memory of a run that becomes part of the heap isn't allocated yet.
pub fn claimed(base: *mut u8, bytes: usize) {
    if ON {
        shadow::fill(base.addr() as u64, bytes as u64, shadow::HEAP_UNUSED);
    }
}

/// Panic unless `at` was allocated with `layout` and not freed since. The heap's lock is free, so that a panic may use
/// the heap.
pub fn expect_allocated(at: *mut u8, layout: Layout) {
    if !ON {
        return;
    }
    let first = at.addr() as u64;
    let before = shadow::read(first - 1);
    let here = shadow::read(first);
    let Some(at) = NonNull::new(at).filter(|_| before == shadow::HEAP_LEFT && here < shadow::GRANULE as u8)
    else {
        tell_about(first);
        panic!("sanitizer: {first:#x} is freed, and is no allocation, shadow {before:#x} {here:#x}");
    };
    // SAFETY: the shadow says that there is a header.
    let allocated = exempt(|| unsafe { (*header(at)).layout });
    assert!(allocated == layout, "sanitizer: {first:#x}, of {allocated:?}, is freed as {layout:?}");
}

/// Freed blocks in the order in which they were freed.
pub struct Quarantine {
    first: Option<NonNull<u8>>,
    last: Option<NonNull<u8>>,
    /// Bytes in it, redzones included.
    bytes: usize,
}

impl Quarantine {
    pub const fn new() -> Self {
        Self { first: None, last: None, bytes: 0 }
    }

    /// Bytes in it, redzones included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Take in a block that was [opened](open). The heap's lock is held.
    pub fn push(&mut self, at: NonNull<u8>, layout: Layout) {
        shadow::fill(at.addr().get() as u64, layout.size() as u64, shadow::HEAP_FREED);
        let callers = callers();
        exempt(|| {
            // SAFETY: the headers of blocks that nobody else uses: the caller's, and one in the queue.
            unsafe {
                header(at).write(Header { next: None, layout, callers });
                match self.last {
                    Some(last) => (*header(last)).next = Some(at),
                    None => self.first = Some(at),
                }
            }
        });
        self.last = Some(at);
        self.bytes += with_redzones(layout).map_or(0, |outer| outer.size());
    }

    /// Take out the block that was freed first: what goes back to the allocator. The heap's lock is held.
    pub fn pop(&mut self) -> Option<(NonNull<u8>, Layout)> {
        let at = self.first?;
        // SAFETY: the header of a block in the queue.
        let (next, layout) = exempt(|| unsafe { ((*header(at)).next, (*header(at)).layout) });
        self.first = next;
        if next.is_none() {
            self.last = None;
        }
        let (left, outer) = (left_bytes(layout), with_redzones(layout)?);
        self.bytes -= outer.size();
        // No header from here on.
        shadow::fill((at.addr().get() - left) as u64, left as u64, shadow::HEAP_FREED);
        // SAFETY: the block began there.
        Some((unsafe { at.sub(left) }, outer))
    }
}

/// The header of the allocation at `at`.
fn header(at: NonNull<u8>) -> *mut Header {
    at.as_ptr().wrapping_sub(size_of::<Header>()).cast()
}

/// The return addresses on this stack, without the heap's own.
fn callers() -> [u64; CALLERS] {
    /// Frames of this function, its caller, and `GlobalAlloc`.
    const OWN: usize = 2;
    let mut rbp: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack, preserves_flags)) };
    let mut callers = [0; CALLERS];
    let top = paging::stack_top(rbp).unwrap_or(0);
    for n in 0..OWN + CALLERS {
        if !rbp.is_multiple_of(8) || rbp + 16 > top {
            break;
        }
        let frame: *const [u64; 2] = core::ptr::with_exposed_provenance(rbp as usize);
        // SAFETY: on this thread's stack, above this function's frame.
        let [next, address] = unsafe { frame.read_volatile() };
        if let Some(slot) = n.checked_sub(OWN).and_then(|n| callers.get_mut(n)) {
            *slot = address;
        }
        if next <= rbp {
            break;
        }
        rbp = next;
    }
    callers
}

/// Say, on the control channel, which allocation `bad` belongs to and who allocated or freed it, if that is known.
pub fn tell_about(bad: u64) {
    /// How far an allocation's beginning is looked for, in bytes.
    const FAR: u64 = 2 << 20;
    let granule = bad & !(shadow::GRANULE - 1);
    let behind = (0..FAR / 8).map(|n| granule.wrapping_sub(8 * n));
    let at = match shadow::read(granule) {
        shadow::HEAP_LEFT => (granule..).step_by(8).find(|at| shadow::read(*at) != shadow::HEAP_LEFT),
        // Back over the redzone behind it and then the allocation itself, to the redzone before it.
        shadow::HEAP_RIGHT | shadow::HEAP_FREED | 1..8 => behind
            .skip_while(|at| shadow::read(*at) == shadow::HEAP_RIGHT)
            .find(|at| !matches!(shadow::read(*at), shadow::HEAP_FREED | 0..8))
            .filter(|at| shadow::read(*at) == shadow::HEAP_LEFT)
            .map(|at| at + 8),
        _ => None,
    };
    let Some(at) = at.and_then(|at| NonNull::new(core::ptr::with_exposed_provenance_mut::<u8>(at as usize)))
    else {
        return;
    };
    // SAFETY: the shadow says that there is a header; the machine is about to end, whatever it holds.
    let (layout, callers) = exempt(|| unsafe { ((*header(at)).layout, (*header(at)).callers) });
    let first = at.addr().get() as u64;
    let what = if shadow::read(first) == shadow::HEAP_FREED { "freed" } else { "allocated" };
    let bytes = layout.size();
    serial::control_line(format_args!("{bytes} bytes at {first:#x} were {what} by"), false);
    for caller in callers.iter().filter(|caller| **caller != 0) {
        serial::control_line(format_args!("  at {caller:#x}"), false);
    }
}
