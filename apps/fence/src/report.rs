//! What is said of an access or a free that is wrong: by single writes, since the heap may be in any state.

use std::{
    ffi::{c_int, c_void},
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering},
};

use crate::{
    slots::{FREED, LIVE, PAGE, Place},
    stack,
};

/// A line made of words and numbers. Changed in place: a handler may have no more than 4 KiB of stack.
pub struct Line([u8; 256], usize);

impl Line {
    pub fn new() -> Self {
        Self([0; 256], 0)
    }
    pub fn text(&mut self, text: &str) -> &mut Self {
        for byte in text.bytes() {
            if let Some(place) = self.0.get_mut(self.1) {
                *place = byte;
                self.1 += 1;
            }
        }
        self
    }
    pub fn number(&mut self, n: usize) -> &mut Self {
        let mut digits = [0_u8; 20];
        let mut rest = n;
        let mut first = digits.len();
        loop {
            first -= 1;
            digits[first] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.text(std::str::from_utf8(&digits[first..]).unwrap_or("?"))
    }
    pub fn hex(&mut self, n: usize) -> &mut Self {
        self.text("0x");
        let digits = (64 - n.leading_zeros()).div_ceil(4).max(1);
        for digit in (0..digits).rev() {
            let digit = char::from_digit((n >> (4 * digit) & 15) as u32, 16).unwrap_or('?');
            self.text(digit.encode_utf8(&mut [0; 4]));
        }
        self
    }
    pub fn say(&self) {
        // SAFETY: the buffer holds that many bytes.
        unsafe { libc::write(2, self.0.as_ptr().cast(), self.1) };
    }
}

/// Say a line the first time that it is to be said.
pub fn say_once(said: &AtomicBool, text: &str) {
    // Relaxed: whichever thread finds it so.
    if !said.swap(true, Ordering::Relaxed) {
        Line::new().text(text).say();
    }
}

/// The object of a slot: how large, and whose.
fn object(line: &mut Line, place: Place) -> &mut Line {
    let slot = place.slot();
    // Relaxed, here and below: what the last holder wrote, as far as it is seen.
    let line = line
        .text("an object of ")
        .number(slot.size.load(Ordering::Relaxed))
        .text(" bytes, allocated by thread ");
    let line = line.number(slot.allocated_by.load(Ordering::Relaxed) as usize);
    match slot.state.load(Ordering::Relaxed) {
        FREED => line.text(", freed by thread ").number(slot.freed_by.load(Ordering::Relaxed) as usize),
        _ => line,
    }
}

/// A free that is wrong, or one that shows a store that was.
pub fn free(what: &str, place: Place) -> ! {
    object(Line::new().text("fence: ").text(what).text(": "), place).text("\n").say();
    stack::say_own("the call");
    stacks(place);
    // SAFETY: aborting needs nothing.
    unsafe { libc::abort() }
}

/// Where the object was allocated and freed.
fn stacks(place: Place) {
    if !place.is_carved() {
        return;
    }
    let slot = place.slot();
    stack::say("it was allocated", &slot.allocated_at);
    if slot.state.load(Ordering::Relaxed) == FREED {
        stack::say("it was freed", &slot.freed_at);
    }
}

/// An access at an address of ours that nobody may touch.
fn access(address: usize, write: bool) {
    let Some(place) = Place::of(address) else { return };
    let verb = if write { "write" } else { "read" };
    let state = |place: Place| if place.is_carved() { place.slot().state.load(Ordering::Relaxed) } else { 0 };
    let mut line = Line::new();
    line.text("fence: ").text(verb);
    let end = place.start() + place.len();
    if address >= place.start() && address < end {
        object(line.text(" after free: "), place).text("\n").say();
        stack::say_own("the access");
        stacks(place);
        return;
    }
    // In a guard: of the object before it, or of the one after, whichever is nearer.
    let offset = |place: Place| place.slot().offset.load(Ordering::Relaxed);
    let object_end = |place: Place| place.start() + offset(place) + place.slot().size.load(Ordering::Relaxed);
    let (left, right) = match address < place.start() {
        true => (None, Some(place)),
        false => (Some(place), Some(place.after())),
    };
    let known = |place: &Place| matches!(state(*place), LIVE | FREED);
    let past = left.filter(known).map(|left| (address - object_end(left), left));
    let before = right.filter(known).map(|right| (right.start() + offset(right) - address, right));
    let say_past = |line: &mut Line, (past, left): (usize, Place)| {
        object(line.number(past).text(" bytes past the end of "), left).text("\n").say();
        stacks(left);
    };
    let say_before = |line: &mut Line, (before, right): (usize, Place)| {
        object(line.number(before).text(" bytes before the start of "), right).text("\n").say();
        stacks(right);
    };
    line.text(" ");
    stack::say_own("the access");
    match (past, before) {
        (None, None) => line.text("in a guard of no object\n").say(),
        (Some(past), None) => say_past(&mut line, past),
        (None, Some(before)) => say_before(&mut line, before),
        // The nearer first; objects that leave much of their slots unused are far from the guard at their left.
        (Some(past), Some(before)) => {
            let mut or = Line::new();
            or.text("fence: or ");
            if past.0 <= before.0 {
                say_past(&mut line, past);
                say_before(&mut or, before);
            } else {
                say_before(&mut line, before);
                say_past(&mut or, past);
            }
        }
    }
}

static BEFORE: AtomicPtr<libc::sigaction> = AtomicPtr::new(std::ptr::null_mut());
/// How often the handler is looked for: Rust's runtime installs its own after the first allocations of the process.
const LOOKS: u32 = 64;

/// Have faults in guards and closed slots reported, before they end the process as they would. Others go to the
/// handler that was there.
pub fn install() {
    static LOOKED: AtomicU32 = AtomicU32::new(0);
    // Relaxed, both: how often does not matter; a fault before it is done is reported by the kernel alone.
    if LOOKED.load(Ordering::Relaxed) >= LOOKS || LOOKED.fetch_add(1, Ordering::Relaxed) >= LOOKS {
        return;
    }
    // SAFETY: zeros are valid structures; the one that is kept is in memory of its own, since this runs inside of
    // the allocator.
    unsafe {
        let mut now = std::mem::zeroed::<libc::sigaction>();
        libc::sigaction(libc::SIGSEGV, std::ptr::null(), &raw mut now);
        if now.sa_sigaction == on_signal as *const () as usize {
            return;
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let kept = libc::mmap(std::ptr::null_mut(), PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        if kept == libc::MAP_FAILED {
            return;
        }
        kept.cast::<libc::sigaction>().write(now);
        // Release: pairs with Acquire in `on_signal`.
        BEFORE.store(kept.cast(), Ordering::Release);
        let mut ours = std::mem::zeroed::<libc::sigaction>();
        ours.sa_sigaction = on_signal as *const () as usize;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        libc::sigaction(libc::SIGSEGV, &raw const ours, std::ptr::null_mut());
    }
}

unsafe extern "C" fn on_signal(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: what the kernel passed.
    let (address, error) = unsafe {
        let registers = &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        ((*info).si_addr() as usize, registers[libc::REG_ERR as usize])
    };
    // Acquire: pairs with Release in `install`.
    let before = BEFORE.load(Ordering::Acquire);
    // SAFETY: kept for ever.
    let before = unsafe { before.as_ref() }.map_or(libc::SIG_DFL, |before| before.sa_sigaction);
    if Place::of(address).is_none() && before != libc::SIG_DFL && before != libc::SIG_IGN {
        // SAFETY: a handler, called as one with three arguments; one that takes a single argument leaves the others
        // alone.
        unsafe {
            let before: unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                std::mem::transmute(before);
            before(signal, info, context);
        }
        return;
    }
    access(address, error & 2 != 0);
    // The access is repeated under the default.
    // SAFETY: zeros are the default action.
    unsafe {
        let default = std::mem::zeroed::<libc::sigaction>();
        libc::sigaction(signal, &raw const default, std::ptr::null_mut());
    }
}
