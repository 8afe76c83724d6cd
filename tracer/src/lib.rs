//! A QEMU plugin that makes an emulated multiprocessor repeatable, and counts what its programs do.
//!
//! QEMU runs all virtual CPUs in one host thread, with time counted in instructions. This plugin ends each CPU's turn
//! after a *quantum* of instructions, so that the CPUs interleave finely, and the same way each time. Between
//! markers it counts, for each CPU and each operation: instructions, in user mode, in the kernel, for
//! zeroing frames, for periodic work; transfers of cache lines; interrupts sent to other CPUs. At the emulator's
//! end it writes a report. `docs/exact.md` and `docs/trace.md`
//! say how all of that is used.
//!
//! ```text
//!  marker, icr   what instructions and stores mean      tracer    QEMU's callbacks, and the state behind them
//!  turn          the quantum                            qemu      QEMU's interface
//!  lines         who has which cache line               options   what the plugin is told
//!  counts        windows, operations, accounts          report    what it writes
//!  places        a kernel without markers
//!  profile       instructions by block
//! ```

mod counts;
mod icr;
mod lines;
mod marker;
mod options;
mod places;
mod profile;
mod qemu;
mod report;
mod tracer;
mod turn;
