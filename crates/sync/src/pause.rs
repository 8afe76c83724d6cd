//! Pauses: places at which a test has something else happen, for races that no seam of the code leads to.
//!
//! A place is marked `pause!("name")`, which is nothing at all without the feature `pause`. A test says what its own thread is to do
//! when it comes there next, such as to wait for what another thread does meanwhile. So a race is one run, the same each time.

#[cfg(feature = "pause")]
use core::cell::RefCell;
#[cfg(feature = "pause")]
use std::boxed::Box;

#[cfg(feature = "pause")]
type Next = Option<(&'static str, Box<dyn FnOnce()>)>;

#[cfg(feature = "pause")]
std::thread_local! {
    static NEXT: RefCell<Next> = const { RefCell::new(None) };
}

/// Let the calling thread call `f` when it next comes to the place of that name.
///
/// ```
/// use std::{cell::Cell, rc::Rc};
///
/// let seen = Rc::new(Cell::new(0));
/// let there = seen.clone();
/// sync::pause::once_at("example", move || there.set(there.get() + 1));
/// for _ in 0..2 {
///     sync::pause!("another");
///     sync::pause!("example");
/// }
/// assert_eq!(seen.get(), 1);
/// ```
#[cfg(feature = "pause")]
pub fn once_at(name: &'static str, f: impl FnOnce() + 'static) {
    NEXT.set(Some((name, Box::new(f))));
}

/// What [`pause!`](crate::pause!) expands to.
#[cfg(feature = "pause")]
pub fn reached(name: &str) {
    // Taken before it is called: it may come by other places.
    let next = NEXT.with_borrow_mut(|next| next.take_if(|(wanted, _)| *wanted == name));
    if let Some((_, f)) = next {
        f();
    }
}

/// What [`pause!`](crate::pause!) expands to.
#[cfg(not(feature = "pause"))]
#[inline(always)]
pub const fn reached(_name: &str) {}

/// A place for `pause::once_at`.
#[macro_export]
macro_rules! pause {
    ($name:literal) => {
        $crate::pause::reached($name)
    };
}
