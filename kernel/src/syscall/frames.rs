//! Quire's own `prctl`: which algorithm hands out page frames, to a process and on a CPU. docs/frames-control.md has the
//! layout of what programs pass; other systems answer EINVAL.

use frames::AlgoKind;
use percpu::CpuId;

use crate::{
    algo,
    errno::{Errno, SysResult},
    file::proc_frames::columns,
    memory, sched,
    task::{self, CAP_SYS_NICE},
    usercopy,
};

/// The first argument. ASCII "QFR0".
pub const PR_QUIRE_FRAMES: u32 = 0x5146_5230;

const GET_PROCESS: u32 = 1;
const SET_PROCESS: u32 = 2;
const GET_CPU: u32 = 3;
const SET_CPU: u32 = 4;
const STATS: u32 = 5;

/// What a process chose.
#[derive(Clone, Copy)]
#[repr(C)]
struct OfProcess {
    /// 0 for each CPU's default; else an algorithm.
    algo: u32,
    /// 0.
    reserved: u32,
}
crate::pod!(OfProcess);

/// A CPU's default and bounds, and what changing the default took.
#[derive(Clone, Copy)]
#[repr(C)]
struct OfCpu {
    /// Which CPU is asked about.
    cpu: u32,
    /// Its default algorithm; 0 to leave it alone.
    algo: u32,
    /// Bounds in frames; both 0 to leave them alone.
    low: u64,
    high: u64,
    /// The default before.
    from: u32,
    /// Blocks that were evacuated.
    blocks: u32,
    /// Frames that the CPU kept and gave back.
    cached: u64,
    /// How long the switch took.
    ns: u64,
}
crate::pod!(OfCpu);

/// Numbers of a CPU, as in /proc/frames.
#[derive(Clone, Copy)]
#[repr(C)]
struct Numbers {
    /// Which CPU is asked about.
    cpu: u32,
    /// The algorithm in force.
    algo: u32,
    /// Its default algorithm.
    default: u32,
    /// 0.
    reserved: u32,
    /// In the order of /proc/frames.
    counts: [u64; 16],
}
crate::pod!(Numbers);

/// `prctl(PR_QUIRE_FRAMES, op, at, size)`.
pub fn control(op: u32, at: u64, size: u64) -> SysResult {
    match op {
        GET_PROCESS => {
            check::<OfProcess>(size)?;
            let algo = algo::code(task::current().process.frames.get());
            usercopy::write(at, &OfProcess { algo, reserved: 0 })?;
        }
        SET_PROCESS => {
            check::<OfProcess>(size)?;
            let OfProcess { algo, reserved } = usercopy::read(at)?;
            if reserved != 0 {
                return Err(Errno::EINVAL);
            }
            algo::choose(algo::choice(algo)?)?;
        }
        GET_CPU => {
            check::<OfCpu>(size)?;
            let asked: OfCpu = usercopy::read(at)?;
            usercopy::write(at, &of_cpu(mine(asked.cpu)?))?;
        }
        SET_CPU => {
            check::<OfCpu>(size)?;
            set_cpu(at)?;
        }
        STATS => {
            check::<Numbers>(size)?;
            let asked: Numbers = usercopy::read(at)?;
            usercopy::write(at, &numbers(online(asked.cpu)?))?;
        }
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

/// EINVAL for a structure of another size than this kernel's.
fn check<T>(size: u64) -> Result<(), Errno> {
    if size == size_of::<T>() as u64 { Ok(()) } else { Err(Errno::EINVAL) }
}

/// The CPU of this number. EINVAL if it doesn't run.
fn online(cpu: u32) -> Result<CpuId, Errno> {
    CpuId::new(cpu as usize).filter(|cpu| sched::online().contains(*cpu)).ok_or(Errno::EINVAL)
}

/// The same, if the caller may run there. EINVAL.
fn mine(cpu: u32) -> Result<CpuId, Errno> {
    let cpu = online(cpu)?;
    if task::current().affinity().contains(cpu) { Ok(cpu) } else { Err(Errno::EINVAL) }
}

fn of_cpu(cpu: CpuId) -> OfCpu {
    let (low, high) = memory::frames().allocator().bounds(cpu).unwrap_or_default();
    let algo = algo::code(Some(algo::default_of(cpu)));
    OfCpu { cpu: cpu.index() as u32, algo, low, high, from: algo, blocks: 0, cached: 0, ns: 0 }
}

/// EINVAL, EPERM, EBUSY, ENOMEM, EFAULT: nothing has changed.
fn set_cpu(at: u64) -> Result<(), Errno> {
    let wanted: OfCpu = usercopy::read(at)?;
    let cpu = mine(wanted.cpu)?;
    let kind: Option<AlgoKind> = algo::choice(wanted.algo)?;
    // It concerns all who run there. Everybody here is root, so only who gave the capability up is refused.
    if !task::is_capable(CAP_SYS_NICE) {
        return Err(Errno::EPERM);
    }
    // Written back before anything is done, so that the answer can be written afterwards.
    usercopy::write(at, &wanted)?;
    let switched = kind.map(|kind| algo::switch(cpu, kind)).transpose()?;
    if (wanted.low, wanted.high) != (0, 0) {
        memory::frames().allocator().set_bounds(cpu, wanted.low, wanted.high);
    }
    let mut now = of_cpu(cpu);
    if let Some((report, ns)) = switched {
        now.from = algo::code(Some(report.from));
        (now.blocks, now.cached, now.ns) = (report.blocks, report.cached, ns);
    }
    usercopy::write(at, &now)
}

fn numbers(cpu: CpuId) -> Numbers {
    let stats = memory::frames().allocator().cpu_stats(cpu);
    Numbers {
        cpu: cpu.index() as u32,
        algo: algo::code(Some(stats.algo)),
        default: algo::code(Some(algo::default_of(cpu))),
        reserved: 0,
        counts: columns(&stats).map(|(_, n)| n),
    }
}
