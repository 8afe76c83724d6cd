//! Which edges of the control flow were taken: the compiler gives each a byte in a section of its own, and code that sets
//! it to 1 the first time.

/// How many edges were taken so far, and how many there are.
#[cfg(feature = "sanitize")]
pub fn edges() -> Option<(usize, usize)> {
    unsafe extern "C" {
        // The linker makes both of the section's name.
        static __start___sancov_bools: u8;
        static __stop___sancov_bools: u8;
    }
    let (start, stop) = (&raw const __start___sancov_bools, &raw const __stop___sancov_bools);
    let total = stop.addr() - start.addr();
    // SAFETY: within the section. Volatile, since other CPUs set some of them meanwhile: a count may miss those.
    let taken = (0..total).filter(|&i| unsafe { start.add(i).read_volatile() } != 0).count();
    Some((taken, total))
}

/// Other builds don't count.
#[cfg(not(feature = "sanitize"))]
pub fn edges() -> Option<(usize, usize)> {
    None
}
