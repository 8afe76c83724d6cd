//! One allocator of frames for all CPUs, as other systems have it: what ours is measured against.
//!
//! * `frames=global`: a tree of free extents behind one lock.
//! * `frames=served`: the same tree, which CPU 0 alone touches. The others write what they want into a mailbox of theirs,
//!   interrupt CPU 0, and wait for the answer: the arrangement of Tian, Waddington and Kuang's baseline, whose one pager serves
//!   every fault, with an interrupt for the message.
//!
//! A CPU that waits has its interrupts on, so that it answers shootdowns; CPU 0 serves from its interrupt handler, and touches the
//! tree with interrupts off itself. The tree has a lock all the same, for those who can't wait.
#![allow(unsafe_code)] // says that this thread stays where it is; gives memory to the tree

use alloc::boxed::Box;
use core::{
    slice,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use addr::Frame;
use frames::Global;
use owned::{Central, Use};
use percpu::{CpuId, CpuSet, MAX_CPUS, Pinned};

use crate::{
    hw::{apic, cpu, irq},
    memory::{dm, frames},
};

/// How frames are handed out.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// By an allocator for each CPU.
    #[default]
    PerCpu,
    /// By one behind a lock.
    Global,
    /// By CPU 0.
    Served,
}

impl Mode {
    /// The mode of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "global" => Some(Self::Global),
            "served" => Some(Self::Served),
            _ => None,
        }
    }
}

/// A tree behind a lock.
struct Locked(Global<'static>);

impl Central for Locked {
    fn alloc(&self, _: &Pinned<'_>, order: u32, floor: u64) -> Option<Frame> {
        self.0.alloc_above(order, floor)
    }
    fn free(&self, _: &Pinned<'_>, first: Frame, order: u32) {
        let result = self.0.free(first, order);
        debug_assert!(result.is_ok(), "{result:?}");
    }
    fn free_frames(&self) -> u64 {
        self.0.free_frames()
    }
}

/// A tree that CPU 0 touches for all.
struct Served {
    tree: Global<'static>,
    /// How many are free.
    free: AtomicU64,
}

/// What a CPU wants, or what it got; on lines of its own.
#[repr(align(128))]
struct Mailbox(AtomicU64);

static MAILBOXES: [Mailbox; MAX_CPUS] = [const { Mailbox(AtomicU64::new(0)) }; MAX_CPUS];

/// In a mailbox: `STATE | order << 48 | frame number`, or how many frames must be left.
const EMPTY: u64 = 0;
const STATE: u64 = 0xff << 56;
const ALLOC: u64 = 1 << 56;
const FREE: u64 = 2 << 56;
const DONE: u64 = 3 << 56;
const NONE: u64 = 4 << 56;
const ORDER_SHIFT: u32 = 48;
const FRAME: u64 = (1 << ORDER_SHIFT) - 1;

impl Served {
    /// Interrupts off: do what `letter` asks for.
    fn answer(&self, letter: u64) -> u64 {
        let order = (letter >> ORDER_SHIFT & 0xff) as u32;
        // Relaxed, both: a number.
        if letter & STATE == ALLOC {
            let Some(first) = self.tree.alloc_above(order, letter & FRAME) else { return NONE };
            self.free.fetch_sub(1 << order, Ordering::Relaxed);
            DONE | first.number()
        } else {
            let result = Frame::new(letter & FRAME).map(|first| self.tree.free(first, order));
            debug_assert!(matches!(result, Some(Ok(()))), "{result:?}");
            self.free.fetch_add(1 << order, Ordering::Relaxed);
            DONE
        }
    }

    fn ask(&self, pin: &Pinned<'_>, letter: u64) -> u64 {
        // Who has interrupts off may hold a lock that CPU 0 waits for with interrupts off itself: it helps itself, under the
        // tree's own lock. Page faults never do.
        if pin.cpu().index() == 0 || !irq::enabled() {
            let _off = irq::Off::new();
            return self.answer(letter);
        }
        let mailbox = &MAILBOXES[pin.cpu().index()].0;
        // Release: what was done to the frames comes before; partner of the swap in `serve`.
        mailbox.store(letter, Ordering::Release);
        apic::send(&CpuSet::from_iter(CpuId::new(0)), apic::VECTOR_RESCHED);
        loop {
            // Acquire: partner of the store in `serve`.
            let answer = mailbox.load(Ordering::Acquire);
            if answer & STATE >= DONE {
                // Relaxed: nobody looks for an answer but this CPU.
                mailbox.store(EMPTY, Ordering::Relaxed);
                return answer;
            }
            cpu::pause();
        }
    }
}

impl Central for Served {
    fn alloc(&self, pin: &Pinned<'_>, order: u32, floor: u64) -> Option<Frame> {
        let answer = self.ask(pin, ALLOC | u64::from(order) << ORDER_SHIFT | floor.min(FRAME));
        if answer & STATE == DONE { Frame::new(answer & FRAME) } else { None }
    }
    fn free(&self, pin: &Pinned<'_>, first: Frame, order: u32) {
        self.ask(pin, FREE | u64::from(order) << ORDER_SHIFT | first.number());
    }
    fn free_frames(&self) -> u64 {
        // Relaxed: a number.
        self.free.load(Ordering::Relaxed)
    }
}

static SERVING: AtomicBool = AtomicBool::new(false);
static SERVER: irq::Lock<Option<&'static Served>> = irq::Lock::new(None);

/// The reschedule interrupt, and the timer for what came before interrupts could be sent: on CPU 0, answer what the others have asked.
#[inline]
pub fn serve() {
    // Relaxed: set before there is another CPU.
    if SERVING.load(Ordering::Relaxed) && cpu::id().index() == 0 {
        let Some(server) = *SERVER.lock() else { return };
        for mailbox in MAILBOXES.iter().take(cpu::count()) {
            // Acquire: partner of the store in `ask`.
            let letter = mailbox.0.load(Ordering::Acquire);
            if matches!(letter & STATE, ALLOC | FREE) {
                // Release: partner of the load in `ask`.
                mailbox.0.store(server.answer(letter), Ordering::Release);
            }
        }
    }
}

/// At boot, before there is another CPU: hand out frames in another way, if the command line says so.
pub fn init(mode: Mode) {
    if mode == Mode::PerCpu {
        return;
    }
    // SAFETY: the boot CPU, which runs nothing else yet.
    let pin = unsafe { Pinned::assume(cpu::id()) };
    let memory = frames();
    let range = [memory.span()];
    let layout = Global::layout(&range);
    let order = layout.size().div_ceil(addr::PAGE_BYTES).next_power_of_two().trailing_zeros();
    let Some(run) = memory.alloc_run(&pin, order, Use::Kernel) else {
        return crate::log!("no memory for a tree of all frames");
    };
    // SAFETY: fresh frames, which are never given back, reached by the direct map, zeroed here.
    let tree = unsafe {
        let at = dm().ptr(run.into_raw().base());
        at.write_bytes(0, layout.size());
        Global::empty(&range, slice::from_raw_parts_mut(at, layout.size()))
    };
    let central: &'static dyn Central = match mode {
        Mode::Served => {
            let server = Box::leak(Box::new(Served { tree, free: AtomicU64::new(0) }));
            *SERVER.lock() = Some(server);
            SERVING.store(true, Ordering::Relaxed);
            server
        }
        _ => Box::leak(Box::new(Locked(tree))),
    };
    // SAFETY: there is no other CPU yet.
    unsafe { memory.centralise(&pin, central) };
}
