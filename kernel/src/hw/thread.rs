//! The machine's side of a thread: its kernel stack, its saved registers, its floating-point state, and the switch.
//!
//! Everything here is touched by one CPU at a time: the one that runs the thread, or the one that is switching to it.
//! The hand-over is `Task::on_cpu` in `sched.rs`: cleared with Release after the registers are saved, read with Acquire
//! by whoever takes the thread next.

use alloc::sync::Arc;
use core::{
    cell::UnsafeCell,
    marker::PhantomData,
    mem::ManuallyDrop,
    ops::Deref,
    ptr,
    sync::atomic::{AtomicBool, Ordering},
    task::Waker,
};

use percpu::{CpuId, Host, Pinned, Unpinned};

use super::{TrapFrame, cpu, fpu::XState, paging::KernelStack, switch};
use crate::{
    own::Lent,
    places::Place,
    task::{Handle, Task},
};

/// Registers and stack of a thread that may not be running.
pub struct Thread {
    stack: ManuallyDrop<KernelStack>,
    saved: UnsafeCell<Saved>,
    /// Its stack and its floating-point state have been given back.
    is_buried: AtomicBool,
}

struct Saved {
    /// Kernel stack pointer while switched out.
    rsp: u64,
    /// User bases of FS and GS while switched out.
    fs: u64,
    gs: u64,
    /// x87, SSE and AVX state of a user thread while switched out.
    xstate: Option<XState>,
}

// SAFETY: `saved` is used only by the CPU that runs the thread or switches to or from it; `sched.rs` hands a thread
// from CPU to CPU by `on_cpu` (Release, Acquire).
unsafe impl Sync for Thread {}
// SAFETY: as above; nothing in it is bound to a CPU.
unsafe impl Send for Thread {}

const FRAME_BYTES: usize = size_of::<TrapFrame>();

impl Thread {
    /// A thread that will begin in `entry` on a stack of its own; None without memory. `user`: it will run user code,
    /// so it has floating-point state and a [`TrapFrame`] on top of its stack.
    pub fn new(user: bool, entry: extern "C" fn() -> !) -> Option<Self> {
        let stack = KernelStack::new()?;
        // SAFETY: the stack is fresh, mapped and owned by the value.
        let rsp = unsafe { switch::first_stack(stack.top(), FRAME_BYTES, entry) };
        let xstate = if user { Some(XState::new()?) } else { None };
        Some(Self {
            stack: ManuallyDrop::new(stack),
            saved: UnsafeCell::new(Saved { rsp, fs: 0, gs: 0, xstate }),
            is_buried: AtomicBool::new(false),
        })
    }

    fn frame_ptr(&self) -> *mut TrapFrame {
        core::ptr::with_exposed_provenance_mut(self.stack.top().as_u64() as usize - FRAME_BYTES)
    }

    /// The addresses of its stack.
    pub fn stack_span(&self) -> core::ops::Range<usize> {
        self.stack.span()
    }

    /// Set the registers with which a thread that has not run yet will enter user mode.
    pub fn set_first_frame(&mut self, frame: &TrapFrame, fs: u64) {
        // SAFETY: the frame lies within the stack that `self` owns, and `&mut` says that nobody runs on it.
        unsafe { self.frame_ptr().write(frame.clone()) };
        self.saved.get_mut().fs = fs;
    }

    /// Give a thread that has not run yet a copy of the calling thread's floating-point state and GS base.
    pub fn copy_state_of_caller(&mut self) {
        let saved = self.saved.get_mut();
        saved.gs = cpu::user_gs_base();
        if let Some(x) = &mut saved.xstate {
            x.save();
        }
    }

    /// Run `f` on the calling thread's own floating-point state, brought to memory before and reloaded after.
    pub fn with_xstate<R>(&self, f: impl FnOnce(&mut XState) -> R) -> Option<R> {
        let _off = super::irq::Off::new();
        // SAFETY: callers are `current()` (the only path to a running thread's Thread); interrupts are off, so no
        // switch saves into it meanwhile.
        let saved = unsafe { &mut *self.saved.get() };
        let x = saved.xstate.as_mut()?;
        x.save();
        let r = f(x);
        x.restore();
        Some(r)
    }

    /// Reset the calling thread's floating-point state and segment bases to what `execve` gives.
    pub fn reset_state(&self) {
        self.with_xstate(|x| x.reset());
        cpu::set_fs_base(0);
        cpu::set_user_gs_base(0);
    }
}

/// The task that runs on a CPU, which this reference keeps alive, and the one that ran before it until
/// [`take_previous`]. No stack frame of a thread holds a reference to the thread itself across a switch, so a thread
/// that never runs again leaks nothing. On cache lines of its own: each switch writes it.
#[repr(align(128))]
struct Slot(UnsafeCell<(Option<Arc<Task>>, Previous)>);

/// The task that ran before.
type Previous = Option<Arc<Task>>;

// SAFETY: a CPU uses its own slot only, with interrupts off.
unsafe impl Sync for Slot {}

static SLOTS: [Slot; percpu::MAX_CPUS] = [const { Slot(UnsafeCell::new((None, None))) }; percpu::MAX_CPUS];

/// Where that is.
pub fn place() -> Place {
    Place::per_cpu("running thread", &SLOTS)
}

/// Switch this CPU from the current task to `next`, which nobody else runs; returns when something switches back.
/// The first thing to do then is [`take_previous`]. Interrupts are off.
pub fn switch_to(next: Arc<Task>) {
    assert!(!super::irq::enabled(), "a switch with interrupts on");
    // SAFETY: this CPU's own slot, interrupts are off.
    let (running, previous) = unsafe { &mut *SLOTS[cpu::id().index()].0.get() };
    cpu::set_current_task(Arc::as_ptr(&next).cast());
    let to: *const Thread = &next.thread;
    let prev = running.replace(next);
    let from: *const Thread = prev.as_ref().map_or(core::ptr::null(), |t| &t.thread);
    *previous = prev;
    // SAFETY: both tasks are kept alive by the slot until after the switch (`previous` until `take_previous`, which
    // runs on the next stack); the scheduler took `next` off its queue, so nobody else runs it. Interrupts are off, so
    // this CPU alone uses both `saved`.
    unsafe {
        let load = (*to).saved.get();
        let mut unused = 0u64;
        let mut save = &raw mut unused;
        if !from.is_null() {
            let s = (*from).saved.get();
            (*s).fs = cpu::fs_base();
            (*s).gs = cpu::user_gs_base();
            if let Some(x) = &mut (*s).xstate {
                x.save();
            }
            save = &raw mut (*s).rsp;
        }
        cpu::set_kernel_stack((*to).stack.top());
        cpu::set_fs_base((*load).fs);
        cpu::set_user_gs_base((*load).gs);
        if let Some(x) = &(*load).xstate {
            x.restore();
        }
        switch::switch(save, (*load).rsp);
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        if !*self.is_buried.get_mut() {
            // SAFETY: once, as its owner goes; nobody runs on it.
            unsafe { ManuallyDrop::drop(&mut self.stack) };
        }
    }
}

/// Give back at once what a thread that has ended needs no more: there may be references to it for long. Nothing for one that may run.
pub fn bury(task: &Task) {
    let thread = &task.thread;
    // Relaxed: decides who does it, no more.
    if !task.sched.is_dead() || thread.is_buried.swap(true, Ordering::Relaxed) {
        return;
    }
    // SAFETY: the thread is dead and switched away from, so no CPU uses what is saved, nor the stack, and none will; the swap
    // makes this the only one that takes them, `drop` included. `stack` is not used again: `stack_span` only says where it was.
    unsafe {
        (*thread.saved.get()).xstate = None;
        drop(ManuallyDrop::into_inner(ptr::read(&raw const thread.stack)));
    }
}

/// The task that ran on this CPU before the current one, once after each switch. Interrupts are off.
pub fn take_previous() -> Option<Arc<Task>> {
    assert!(!super::irq::enabled());
    // SAFETY: this CPU's own slot, interrupts are off.
    unsafe { (*SLOTS[cpu::id().index()].0.get()).1.take() }
}

/// The task that is calling. Not `Send`: it means something on this thread only.
#[derive(Clone, Copy)]
pub struct Current {
    task: *const Task,
    _thread: PhantomData<*const ()>,
}

impl Current {
    /// A counted reference to the task.
    pub fn arc(self) -> Arc<Task> {
        // SAFETY: the pointer came from an `Arc` that the scheduler holds while the task runs, which it does now.
        unsafe {
            Arc::increment_strong_count(self.task);
            Arc::from_raw(self.task)
        }
    }
    /// The memory that it runs in, as [`Task::space`], but lent.
    #[inline]
    pub fn lend_space(self) -> Option<Lent<'static, Handle>> {
        // SAFETY: the caller is the thread; and its task lives as long as it runs, which what is lent can't leave.
        unsafe { (*self.task).lend_space() }
    }
    /// Its own memory, as [`Task::mm`], but lent.
    #[inline]
    pub fn lend_mm(self) -> Option<Lent<'static, Handle>> {
        // SAFETY: as in `lend_space`.
        unsafe { (*self.task).lend_mm() }
    }
    /// The registers with which the task last entered the kernel from user mode.
    pub fn frame(&self) -> TrapFrame {
        // SAFETY: the frame is on the task's own stack, which is the running one.
        unsafe { (*self.task.read_frame()).clone() }
    }
    /// Replace those registers; they take effect on the return to user mode.
    pub fn set_frame(&self, frame: &TrapFrame) {
        // SAFETY: as in `frame`; no reference to it is live, since trap code passes the frame down by `&mut` only to
        // calls that do not use this one.
        unsafe { self.task.read_frame().write(frame.clone()) };
    }
    /// Enter user mode with [`Self::frame`] for the first time.
    pub fn enter_user(self) -> ! {
        // SAFETY: the frame is complete (set_first_frame or set_frame) and on top of this stack.
        unsafe { switch::return_to_user(self.task.read_frame()) }
    }
}

trait FrameOf {
    fn read_frame(self) -> *mut TrapFrame;
}
impl FrameOf for *const Task {
    fn read_frame(self) -> *mut TrapFrame {
        // SAFETY: only used on the current task, which is alive.
        unsafe { (*self).thread.frame_ptr() }
    }
}

impl Deref for Current {
    type Target = Task;
    fn deref(&self) -> &Task {
        // SAFETY: the scheduler keeps the running task alive, and `Current` can't leave its thread.
        unsafe { &*self.task }
    }
}

/// The calling task. Must not be used before the scheduler runs on this CPU.
pub fn current() -> Current {
    Current { task: cpu::current_task().cast(), _thread: PhantomData }
}

/// Whether this CPU runs a task yet.
pub fn has_current() -> bool {
    !cpu::current_task().is_null()
}

/// The kernel as the [`Host`] of its threads. Threads are never preempted inside the kernel, so being pinned is being
/// between two sleeps; the count catches those who sleep while pinned.
struct Kernel;

// SAFETY: kernel threads leave their CPU only in `sched::park`, which asserts that the count is zero, and on the way
// back to user mode; so a pinned thread keeps its CPU, and no other thread runs on it.
unsafe impl Host for Kernel {
    fn enter_pinned(&self) -> CpuId {
        cpu::preempt_inc();
        cpu::id()
    }
    fn leave_pinned(&self) {
        cpu::preempt_dec(crate::grace::on_unpinned);
    }
    fn pins(&self) -> usize {
        cpu::preempt_count() as usize
    }
    fn waker(&self) -> Waker {
        Waker::from(current().arc())
    }
    fn park(&self) {
        crate::sched::park();
    }
}

static KERNEL: Kernel = Kernel;

/// The calling thread may sleep. Only for thread context, with nothing pinned and no spin lock held: `sched::park`
/// asserts both in every build.
pub fn unpinned() -> Unpinned<'static> {
    // SAFETY: `sched::park` asserts the contract (interrupts on, nothing pinned) before it sleeps.
    unsafe { Unpinned::new(&KERNEL) }
}

/// Stay on this CPU until the result is dropped. For thread context.
pub fn pinned() -> Pinned<'static> {
    unpinned().pin()
}
