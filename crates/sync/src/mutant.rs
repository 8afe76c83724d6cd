//! Seeded faults: one build holds them all, and the environment variable `QUIRE_MUTANT` names the one that is live.
//!
//! A fault is planted as `if mutant!("name") { wrong } else { right }`. Without the feature `mutants` the condition
//! is the constant `false`, so nothing of the fault is left in the program.

/// Whether the seeded fault of this name is live: the constant `false` without the feature `mutants`.
///
/// ```
/// let limit = if sync::mutant!("example-off-by-one") { 4 } else { 3 };
/// assert_eq!(limit, 3);
/// ```
#[macro_export]
macro_rules! mutant {
    ($name:literal) => {
        $crate::mutant::is_live($name)
    };
}

/// What [`mutant!`](crate::mutant!) expands to.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn is_live(_name: &str) -> bool {
    false
}

/// What [`mutant!`](crate::mutant!) expands to: the variable is read once.
#[cfg(feature = "mutants")]
pub fn is_live(name: &str) -> bool {
    static LIVE: std::sync::OnceLock<Option<std::string::String>> = std::sync::OnceLock::new();
    LIVE.get_or_init(|| std::env::var("QUIRE_MUTANT").ok()).as_deref() == Some(name)
}
