//! x87, SSE and AVX state of user threads. The kernel itself is built without any of them, so the registers hold the
//! current user thread's values also inside the kernel, and are saved when another thread comes.
//!
//! The area has the standard, non-compacted layout of `xsave` (Intel SDM vol. 1, 13.4), which is what Linux puts in
//! signal frames; without XSAVE it is the 512 bytes of `fxsave`. `xsave` proper rather than `xsaveopt`: the latter's
//! "unchanged since the last restore from this address" is not worth the reasoning once areas are freed and reused.

use alloc::alloc::{Layout, alloc_zeroed, dealloc};
use core::{
    arch::asm,
    ptr::NonNull,
    slice,
    sync::atomic::{AtomicU32, Ordering},
};

use super::cpu::{self, Features};

/// x87, SSE, AVX: the state components that the kernel offers.
const WANTED: u32 = 0b111;
/// Bytes of `fxsave`'s area, with which every area begins.
const LEGACY: usize = 512;
const MXCSR: usize = 24;

static COMPONENTS: AtomicU32 = AtomicU32::new(0);
static SIZE: AtomicU32 = AtomicU32::new(LEGACY as u32);
static MXCSR_VALID: AtomicU32 = AtomicU32::new(0xffbf);

/// The state components in use, as in XCR0; 0 without XSAVE.
pub fn features() -> u64 {
    // Relaxed: written by `init`, before any other CPU starts.
    COMPONENTS.load(Ordering::Relaxed).into()
}

/// Bytes of an area: 512 without XSAVE, else what CPUID says for [`features`].
pub fn size() -> usize {
    // Relaxed: as in `features`.
    SIZE.load(Ordering::Relaxed) as usize
}

/// The bits of MXCSR that may be set.
pub fn mxcsr_mask() -> u32 {
    // Relaxed: as in `features`.
    MXCSR_VALID.load(Ordering::Relaxed)
}

/// Bytes of stack that the delivery of a signal takes at most: the state, a magic number after it, its alignment, and
/// less than 1 KiB for the rest of the frame and the red zone.
pub fn signal_stack_bytes() -> usize {
    size() + 4 + 64 + 1024
}

/// Find out the layout, on the boot CPU.
pub fn init() {
    if cpu::features().contains(Features::XSAVE) {
        // Relaxed, here and below: see `features`.
        COMPONENTS.store(cpu::cpuid(0xd, 0)[0] & WANTED, Ordering::Relaxed);
    }
    init_cpu();
    if features() != 0 {
        // EBX: size for what XCR0 enables now.
        SIZE.store(cpu::cpuid(0xd, 0)[1], Ordering::Relaxed);
    }
    #[repr(C, align(16))]
    struct Legacy([u8; LEGACY]);
    let mut area = Legacy([0; LEGACY]);
    // SAFETY: 512 bytes, aligned to 16.
    unsafe { asm!("fxsave64 [{}]", in(reg) &mut area, options(nostack, preserves_flags)) };
    let mask = u32::from_le_bytes([area.0[28], area.0[29], area.0[30], area.0[31]]);
    if mask != 0 {
        MXCSR_VALID.store(mask, Ordering::Relaxed);
    }
}

/// Enable the state components on this CPU, and clear the registers.
pub(super) fn init_cpu() {
    let wanted = features() as u32;
    // SAFETY: CR4.OSXSAVE is set where there is XSAVE, the components exist, and x87 is among them.
    unsafe {
        if wanted != 0 {
            asm!("xsetbv", in("ecx") 0, in("eax") wanted, in("edx") 0, options(nomem, nostack, preserves_flags));
        }
        asm!("fninit", options(nomem, nostack));
    }
}

/// A thread's floating-point state while it is not in the registers.
pub struct XState {
    area: NonNull<u8>,
}

// SAFETY: owns plain memory.
unsafe impl Send for XState {}
// SAFETY: `&XState` only reads.
unsafe impl Sync for XState {}

impl XState {
    fn layout() -> Layout {
        match Layout::from_size_align(size(), 64) {
            Ok(l) => l,
            Err(_) => unreachable!(),
        }
    }

    /// The state with which a program begins; None without memory.
    pub fn new() -> Option<Self> {
        // SAFETY: the size isn't 0.
        let area = NonNull::new(unsafe { alloc_zeroed(Self::layout()) })?;
        let mut new = Self { area };
        new.reset();
        Some(new)
    }

    /// Back to the state with which a program begins: all registers 0, all exceptions masked.
    pub fn reset(&mut self) {
        let bytes = self.bytes_mut();
        bytes.fill(0);
        bytes[..2].copy_from_slice(&0x37fu16.to_le_bytes());
        bytes[MXCSR..MXCSR + 4].copy_from_slice(&0x1f80u32.to_le_bytes());
        if features() != 0 {
            // x87 and SSE are present, so that what a signal handler sees is theirs.
            bytes[LEGACY] = 0b11;
        }
    }

    /// Bring the registers' content here.
    #[inline]
    pub fn save(&mut self) {
        let at = self.area.as_ptr();
        // SAFETY: the area has the right size and alignment; the instructions only write it. The header's other bytes
        // are 0 from the start, as `xrstor` will want.
        unsafe {
            if features() != 0 {
                asm!("xsave64 [{}]", in(reg) at, in("eax") !0u32, in("edx") !0u32, options(nostack, preserves_flags));
            } else {
                asm!("fxsave64 [{}]", in(reg) at, options(nostack, preserves_flags));
            }
        }
    }

    /// Load the registers with what is here.
    #[inline]
    pub fn restore(&self) {
        let at = self.area.as_ptr();
        // SAFETY: the area came from `reset` or `save`, or was checked (see `bytes_mut`); the kernel does not use the
        // registers.
        unsafe {
            if features() != 0 {
                asm!("xrstor64 [{}]", in(reg) at, in("eax") !0u32, in("edx") !0u32,
                     options(readonly, nostack, preserves_flags));
            } else {
                asm!("fxrstor64 [{}]", in(reg) at, options(readonly, nostack, preserves_flags));
            }
        }
    }

    /// The area, [`size`] bytes, as programs see it in signal frames.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: owned, initialised, of that size.
        unsafe { slice::from_raw_parts(self.area.as_ptr(), size()) }
    }

    /// The area for writing. [`Self::restore`] faults, in the kernel, on what the manual forbids (SDM vol. 1, 13.8.1):
    /// bits of MXCSR outside [`mxcsr_mask`], components outside [`features`], a header that is not 0 after its first
    /// word. Whoever writes what a program says checks that first.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.area.as_ptr(), size()) }
    }
}

impl Drop for XState {
    fn drop(&mut self) {
        // SAFETY: allocated with the same layout: the size does not change after `init`.
        unsafe { dealloc(self.area.as_ptr(), Self::layout()) };
    }
}
