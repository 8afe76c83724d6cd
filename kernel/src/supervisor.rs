//! The kernel's own thread: starts the program, adopts orphans, and ends the machine with the program's status.
//!
//! The machine lives as long as the program, like a container: when it ends, what it left running is killed. Then
//! everything is given back, so that the account of frames can show that nothing was lost.

use alloc::{format, sync::Arc, vec::Vec};

use addr::PAGE_SIZE;
use linux_raw_sys::general::SIGKILL;
use owned::{Stats, Use};

use crate::{
    exec::{self, Program},
    file::{self, Share, Startup},
    hw, ids, memory, options, places,
    process::{self, Process, Status},
    realm, sched, selftest, stats, syscall,
    task::Task,
    wait,
};

/// How long the machine waits for killed processes and for idle CPUs to let go of memory, in ns.
const PATIENCE: u64 = 10_000_000_000;

/// Start the supervisor's thread.
pub fn start(kernel: Arc<Process>) {
    let parent = kernel.clone();
    match Task::kernel(kernel, move || run(&parent)) {
        Some(t) => {
            t.set_comm(b"supervisor");
            sched::start(t);
        }
        None => panic!("no memory for the first thread"),
    }
}

fn run(kernel: &Arc<Process>) {
    let before = memory::frames().stats().owned;
    let startup = file::init(memory::initramfs(), options::get());
    drop(kernel.set_files(Share::with_stdio()));
    let options = options::get();
    let status = match (options.refused, options.selftest) {
        (Some(why), _) => refuse(&why),
        (None, Some(which)) => selftest::run(&which),
        (None, None) => run_program(kernel, startup),
    };
    kill_the_rest(kernel);
    syscall::shm::clear();
    file::teardown(kernel);
    sched::unload_space();
    let (leaked, frames) = account(&before);
    if options::get().stats {
        record(&format!("stats {}", stats::json(leaked, &frames)));
    }
    places::write();
    record(&format!("exit {status}"));
    hw::exit(0);
}

/// Write a record for the driver.
pub fn record(text: &str) {
    hw::serial::control(format!("\x1e{text}\n").as_bytes());
}

/// Say why no program was started; the status that shells have for that.
fn refuse(why: &str) -> u32 {
    crate::log!("the program can't be run: {why}");
    hw::serial::stderr(format!("quire: the program can't be run: {why}\n").as_bytes());
    126
}

fn run_program(kernel: &Arc<Process>, startup: Option<Startup>) -> u32 {
    let Some(s) = startup else {
        crate::log!("the initramfs names no program");
        return 127;
    };
    if let Err(e) = file::set_first_directory(kernel, &s.cwd) {
        crate::log!("working directory: {e:?}");
    }
    let program = Program { path: s.path, argv: s.argv, envp: s.envp };
    let first = match exec::spawn_first(program, kernel) {
        Ok(p) => p,
        Err(e) => return refuse(&format!("{e:?}")),
    };
    record(&format!("ready {}", hw::timer::now()));
    file::tty::attach(first.pid);
    let ended = kernel.child_wait.wait(None, false, || {
        reap_orphans(kernel, &first);
        first.ended()
    });
    hw::marker::run_end();
    process::forget(kernel, &first);
    ended.unwrap_or(Status::killed(SIGKILL)).shell()
}

fn reap_orphans(kernel: &Arc<Process>, except: &Arc<Process>) {
    let ended: Vec<_> = kernel
        .children
        .lock()
        .iter()
        .filter(|c| c.ended().is_some() && !Arc::ptr_eq(c, except))
        .cloned()
        .collect();
    for c in ended {
        process::forget(kernel, &c);
    }
}

fn kill_the_rest(kernel: &Arc<Process>) {
    let deadline = hw::timer::now() + PATIENCE;
    let alone = kernel.child_wait.wait(Some(deadline), false, || {
        let ended: Vec<_> = kernel.children.lock().iter().filter(|c| c.ended().is_some()).cloned().collect();
        for c in ended {
            process::forget(kernel, &c);
        }
        let rest = ids::all();
        for p in &rest {
            process::end_process(p, Status::killed(SIGKILL));
        }
        (rest.is_empty() && ids::task_count() == 0).then_some(())
    });
    if alone.is_err() {
        crate::log!("{} processes did not end", ids::all().len());
    }
}

/// Where all frames are at the end, and how many programs, page tables or files still own although all of them are gone.
/// Idle CPUs let go of the last address space a moment later, and of what it has left behind; as long as they are at it, the
/// counts needn't fit together. So this waits for them.
fn account(before: &[u64; 5]) -> (i64, Stats) {
    let deadline = hw::timer::now() + PATIENCE;
    loop {
        realm::collect();
        let s = memory::frames().stats();
        let over = |u: Use| s.owned[u as usize] as i64 - before[u as usize] as i64;
        // Files are counted from zero: the boot image is given back with them.
        let leaked = over(Use::Anonymous) + over(Use::PageTable) + s.owned[Use::File as usize] as i64;
        let fits = s.free + s.cached + s.owned.iter().sum::<u64>() == s.total;
        if leaked == 0 && fits || hw::timer::now() > deadline {
            if leaked != 0 {
                crate::log!("{} KiB were lost", leaked * PAGE_SIZE as i64 / 1024);
            }
            return (leaked, s);
        }
        wait::pause_until(hw::timer::now() + 1_000_000);
    }
}
