//! Call stacks, by the tables that exceptions are unwound with: programs that were compiled without frame pointers have them
//! too. Off until somebody asks for them, as a stack costs more than the rest of an allocation.

use std::{
    ffi::{CStr, c_int, c_void},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use crate::report::Line;

/// Return addresses that are kept, our own among them.
const FRAMES: usize = 14;

/// Return addresses, the innermost first; 0 where there are no more.
#[derive(Debug)]
#[repr(transparent)]
pub struct Stack([AtomicUsize; FRAMES]);

static ON: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    fn _Unwind_Backtrace(each: extern "C" fn(*mut c_void, *mut c_void) -> c_int, to: *mut c_void) -> c_int;
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
}

/// Note stacks from here on.
pub fn turn_on() {
    // Relaxed: an allocation before it is seen has none.
    ON.store(true, Ordering::Relaxed);
}

struct Taken {
    frames: [usize; FRAMES],
    len: usize,
}

extern "C" fn take(context: *mut c_void, to: *mut c_void) -> c_int {
    const GO_ON: c_int = 0;
    const END: c_int = 5;
    // SAFETY: the caller of the unwinder passed its own, and the context is valid during the call.
    let (taken, at) = unsafe { (&mut *to.cast::<Taken>(), _Unwind_GetIP(context)) };
    let Some(frame) = taken.frames.get_mut(taken.len).filter(|_| at != 0) else { return END };
    *frame = at;
    taken.len += 1;
    GO_ON
}

fn current() -> [usize; FRAMES] {
    let mut taken = Taken { frames: [0; FRAMES], len: 0 };
    // SAFETY: `take` gets what it expects.
    unsafe { _Unwind_Backtrace(take, (&raw mut taken).cast()) };
    taken.frames
}

/// Note the calling thread's stack, if stacks are noted.
pub fn note(to: &Stack) {
    // Relaxed, all: for reports.
    if ON.load(Ordering::Relaxed) {
        to.0.iter().zip(current()).for_each(|(to, at)| to.store(at, Ordering::Relaxed));
    }
}

/// Say a stack, if stacks are noted, under a heading.
pub fn say(heading: &str, stack: &Stack) {
    let frames = std::array::from_fn(|i| stack.0.get(i).map_or(0, |at| at.load(Ordering::Relaxed)));
    lines(heading, &frames);
}

/// The same of the calling thread, also in a handler.
pub fn say_own(heading: &str) {
    if ON.load(Ordering::Relaxed) {
        lines(heading, &current());
    }
}

fn lines(heading: &str, frames: &[usize; FRAMES]) {
    if !ON.load(Ordering::Relaxed) || frames[0] == 0 {
        return;
    }
    Line::new().text("fence:   ").text(heading).text(":\n").say();
    let module = |at: usize| {
        // SAFETY: zeros are valid, and the structure is.
        unsafe {
            let mut found = std::mem::zeroed::<libc::Dl_info>();
            (libc::dladdr(at as *const c_void, &raw mut found) != 0).then_some(found)
        }
    };
    let own = module(take as *const () as usize).map(|found| found.dli_fbase);
    let is_own = |at: &usize| own.is_some() && module(*at).map(|found| found.dli_fbase) == own;
    // In a program that has this in itself, nothing can be told apart.
    let skipped = frames.iter().take_while(|at| is_own(at)).count();
    let skipped = if skipped == FRAMES || frames[skipped] == 0 { 0 } else { skipped };
    for &at in frames[skipped..].iter().take_while(|&&at| at != 0) {
        let mut line = Line::new();
        line.text("fence:     ").hex(at);
        if let Some(found) = module(at) {
            // SAFETY: names that the loader keeps.
            let name = |name: *const libc::c_char| (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) });
            if let Some(Ok(name)) = name(found.dli_sname).map(CStr::to_str) {
                line.text(" ").text(name).text("+").hex(at - found.dli_saddr as usize);
            }
            if let Some(Ok(file)) = name(found.dli_fname).map(CStr::to_str) {
                line.text(" in ").text(file).text("+").hex(at - found.dli_fbase as usize);
            }
        }
        line.text("\n").say();
    }
}
