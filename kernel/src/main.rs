//! The Quire kernel: runs unmodified Linux programs on many CPUs, in an address space that does not serialise.
//!
//! `hw` is the machine. Above it, from the bottom: memory (frames, heap), scheduler and waiting, tasks and processes,
//! traps, signals and futexes, files, system calls. The address space itself is in `crates/`.
#![no_std]
#![no_main]
#![deny(unsafe_code)]

extern crate alloc;

mod algo;
mod central;
mod cpu_time;
mod elf;
mod errno;
mod exec;
mod fault;
mod file;
mod futex;
mod grace;
mod heap;
mod hw;
mod ids;
mod limits;
mod memory;
mod oom;
mod options;
mod own;
mod panic;
mod places;
mod planted;
mod process;
mod realm;
mod reclaim;
mod rseq;
mod sanitize;
mod sched;
mod selftest;
mod shootdown;
mod signal;
mod stats;
mod supervisor;
mod syscall;
mod task;
mod timers;
mod trap;
mod upcall;
mod usercopy;
mod userfault;
mod vdso;
mod wait;

use hw::boot::Info;

/// The boot CPU, when `hw` has set up tables, frames, heap, interrupts and the clock; interrupts are off.
fn kernel_main(info: &'static Info) -> ! {
    options::init(info.cmdline());
    let (cpus, nodes) = (hw::cpu::count(), hw::numa::topology().nodes());
    log!("Quire {}: {cpus} CPUs, {nodes} nodes, {}", env!("CARGO_PKG_VERSION"), info.cmdline());
    central::init(options::get().frames_mode);
    places::init();
    planted::init();
    vdso::init();
    realm::init();
    let kernel = process::init(file::Share::empty(), file::FsShare::root());
    hw::smp::start();
    timers::init(options::get().serial_time);
    hw::serial::enable_input();
    supervisor::start(kernel);
    cpu_main()
}

/// Every CPU, when it is ready to run threads; interrupts are off.
fn cpu_main() -> ! {
    sched::run()
}
