//! Where a thread goes on whose access is diverted: a table that the linker gathers.
//!
//! [`fault_or!`](crate::fault_or) writes a pair of self-relative distances into the section `vmp_fix`: to the
//! instruction that may fault, and to where it goes on.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

// A pair that no instruction matches: the section exists even in a program without others, so that its bounds do.
// R: nothing refers to entries by name, and the linker must keep them.
std::arch::global_asm!(".pushsection vmp_fix, \"aR\"", ".long 0, 0", ".popsection");

unsafe extern "C" {
    #[link_name = "__start_vmp_fix"]
    static START: [i32; 2];
    #[link_name = "__stop_vmp_fix"]
    static STOP: [i32; 2];
}

/// Where to go on if the instruction at `pc` faults.
pub fn target(pc: usize) -> Option<usize> {
    let (mut at, stop) = (&raw const START as usize, &raw const STOP as usize);
    while at < stop {
        // SAFETY: between the bounds there are pairs of distances, each from its own place.
        let [from, to] = unsafe { (at as *const [i32; 2]).read() };
        if at.wrapping_add_signed(from as isize) == pc {
            return Some(at.wrapping_add(4).wrapping_add_signed(to as isize));
        }
        at = at.wrapping_add(8);
    }
    None
}

/// One access that goes on elsewhere if a handler answers `Divert`: `fault_or!(store p, x, else { … })` stores the
/// `u64` `x` at `p`, and `fault_or!(load p, else { … })` is the `u64` at `p`. The block must leave: by `return`,
/// `break`, or as a value of the load.
///
/// The pointer must be valid for the access, or in a region whose handler diverts.
///
/// ```
/// use vmprim::{Access, Needs, Region, Resolution, fault_or, inline};
///
/// // SAFETY: the handler only answers.
/// let handler = unsafe { inline(|_, _| Resolution::Divert) };
/// let region = Region::builder(1 << 12).need(Needs::NONE_LEVEL).initial(Access::None).inline(handler).build()?;
/// let at = region.base().cast::<u64>();
/// // SAFETY: in a region whose handler diverts.
/// let found = unsafe { fault_or!(load at, else { 7 }) };
/// assert_eq!(found, 7);
/// # Ok::<(), vmprim::Error>(())
/// ```
#[macro_export]
macro_rules! fault_or {
    (store $at:expr, $value:expr, else $slow:block) => {{
        let (at, value): (*mut u64, u64) = ($at, $value);
        ::core::arch::asm!(
            "2: mov qword ptr [{at}], {value}",
            ".pushsection vmp_fix, \"aR\"",
            ".long 2b - .",
            ".long {slow} - .",
            ".popsection",
            at = in(reg) at,
            value = in(reg) value,
            slow = label { $slow },
            options(nostack, preserves_flags),
        );
    }};
    (load $at:expr, else $slow:block) => {'done: {
        let at: *const u64 = $at;
        let mut value = 0_u64;
        // Through the stack, since a block with a way out may have no output register. A push that faults has not
        // moved the stack.
        ::core::arch::asm!(
            "2: push qword ptr [{at}]",
            "pop qword ptr [{to}]",
            ".pushsection vmp_fix, \"aR\"",
            ".long 2b - .",
            ".long {slow} - .",
            ".popsection",
            at = in(reg) at,
            to = in(reg) &raw mut value,
            slow = label {
                #[allow(unreachable_code, reason = "the block may leave by itself")]
                { break 'done ($slow) }
            },
            options(preserves_flags),
        );
        value
    }};
}
