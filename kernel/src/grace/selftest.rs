//! The tests of grace periods, in the machine.

use alloc::{boxed::Box, format, string::String, sync::Arc};
use core::{
    ptr::NonNull,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use percpu::{CpuId, CpuSet, Pinned};
use rcu::{
    Head, Retired,
    kernel::{Domain, callbacks::SOFT},
};

use crate::{
    hw::{cpu, timer},
    process, realm, sched,
    selftest::{Test, await_count},
    task::{self, Task},
};

pub const TESTS: &[(&str, Test)] = &[
    ("a grace period waits for a section", waits_for_a_section),
    ("idle CPUs delay no grace period", idle_cpus_delay_nothing),
    ("a hurried grace period interrupts each running CPU once", hurries_once),
    ("a hurried grace period waits for a pin, and not spinning", hurries_asleep),
    ("a barrier waits for what all CPUs have retired", barrier_waits),
    ("a flood of retired objects is held back", flood_is_held_back),
    ("a grace period that does not end is told of", stall_is_told_of),
];

/// A section in the way, in ns.
const LONG: u64 = 30_000_000;

fn the_domain() -> Result<&'static Domain, String> {
    super::domain().ok_or_else(|| "there is no realm".into())
}

fn start_on(cpu: CpuId, f: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let kernel = process::supervisor().ok_or("no kernel process")?;
    let task = Task::kernel(kernel, f).ok_or("no memory for a thread")?;
    task.set_affinity(CpuSet::from_iter([cpu]));
    sched::start(task);
    Ok(())
}

/// All CPUs but the first.
fn others() -> impl Iterator<Item = CpuId> {
    (1..cpu::count()).filter_map(CpuId::new)
}

/// Has a section on CPU 1 for as long as [`LONG`]; `at` is 1 in it and 2 at its end.
fn section(domain: &'static Domain, at: &Arc<AtomicU64>) -> Result<(), String> {
    section_for(LONG, domain, at)
}

/// The same, for so many ns.
fn section_for(long: u64, domain: &'static Domain, at: &Arc<AtomicU64>) -> Result<(), String> {
    let Some(second) = CpuId::new(1).filter(|_| cpu::count() > 1) else {
        at.store(2, Ordering::Relaxed);
        return Ok(());
    };
    let there = at.clone();
    start_on(second, move || {
        let pin = task::pinned();
        let section = domain.read(&pin);
        // Release, twice: partner in `await_count`, and of the look after the period.
        there.store(1, Ordering::Release);
        let end = timer::now() + long;
        while timer::now() < end {
            cpu::pause();
        }
        there.store(2, Ordering::Release);
        drop(section);
    })?;
    await_count(at, 1, 10)
}

fn waits_for_a_section() -> Result<(), String> {
    let domain = the_domain()?;
    for wait in [super::synchronize, super::synchronize_expedited] {
        let at = Arc::new(AtomicU64::new(0));
        section(domain, &at)?;
        wait(domain);
        if at.load(Ordering::Acquire) != 2 {
            return Err("the section was not over".into());
        }
    }
    Ok(())
}

fn idle_cpus_delay_nothing() -> Result<(), String> {
    let domain = the_domain()?;
    // Idle CPUs have work to do at first, and this one's wakes some of them.
    let took = (0..20).map(|_| {
        let begin = timer::now();
        super::synchronize(domain);
        timer::now() - begin
    });
    match took.min() {
        Some(least) if least < sched::SLICE => Ok(()),
        least => Err(format!("a grace period took {least:?} ns at least")),
    }
}

fn hurries_once() -> Result<(), String> {
    let domain = the_domain()?;
    let (stop, running) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let test = || {
        for cpu in others() {
            let (stop, running) = (stop.clone(), running.clone());
            start_on(cpu, move || {
                running.fetch_add(1, Ordering::Release);
                // As in a long call: it reports nowhere, and is pinned half of the time.
                while !stop.load(Ordering::Relaxed) {
                    let pin = task::pinned();
                    cpu::pause();
                    drop(pin);
                    cpu::pause();
                }
            })?;
        }
        let others = others().count() as u64;
        await_count(&running, others, 60)?;
        super::synchronize_expedited(domain);
        let (kicks, periods) = (AtomicU64::new(0), domain.periods());
        let kick = |cpus: &CpuSet| {
            kicks.fetch_add(cpus.len() as u64, Ordering::Relaxed);
            super::kick(cpus);
        };
        domain.synchronize_expedited(&task::unpinned(), kick, super::relax(domain));
        let (kicks, periods) = (kicks.into_inner(), domain.periods() - periods);
        if periods > 0 && kicks == periods * others {
            Ok(())
        } else {
            Err(format!("{kicks} interrupts in {periods} periods"))
        }
    };
    sched::on_cpu(CpuId::default(), || {
        let result = test();
        // Else this thread couldn't go back.
        stop.store(true, Ordering::Relaxed);
        result
    })
}

/// One thread pinned on CPU 1 for as long as [`LONG`], and others on this one, which get it meanwhile.
fn hurries_asleep() -> Result<(), String> {
    let domain = the_domain()?;
    let (at, turns) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    section(domain, &at)?;
    if at.load(Ordering::Relaxed) == 2 {
        return Ok(());
    }
    sched::on_cpu(CpuId::default(), || {
        let (there, over) = (turns.clone(), at.clone());
        start_on(CpuId::default(), move || {
            // Acquire: partner of the section's end.
            while over.load(Ordering::Acquire) != 2 {
                there.fetch_add(1, Ordering::Relaxed);
                sched::yield_now();
            }
        })?;
        super::synchronize_expedited(domain);
        match (at.load(Ordering::Acquire), turns.load(Ordering::Relaxed)) {
            (2, 1..) => Ok(()),
            (2, 0) => Err("it has kept its CPU".into()),
            _ => Err("the section was not over".into()),
        }
    })
}

/// Counts that it was freed.
#[repr(C)]
struct Object {
    head: Head,
    freed: Arc<AtomicU64>,
}

unsafe fn free(head: NonNull<Head>, _: &Pinned<'_>) {
    // SAFETY: made from a box in `retire`, head first.
    let object = unsafe { Box::from_raw(head.cast::<Object>().as_ptr()) };
    // Release: partner of the look at the count.
    object.freed.fetch_add(1, Ordering::Release);
}

fn retire(domain: &Domain, freed: &Arc<AtomicU64>, bytes: usize) {
    let object = Box::leak(Box::new(Object { head: Head::new(), freed: freed.clone() }));
    // SAFETY: nobody has found the object; its head is its first field; `free` frees it, once.
    let retired = unsafe { Retired::new(NonNull::from(object).cast(), free) };
    domain.call(&task::pinned(), retired.of_bytes(bytes));
}

fn barrier_waits() -> Result<(), String> {
    const EACH: u64 = 100;
    let domain = the_domain()?;
    let (freed, ready) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    for cpu in sched::online().iter() {
        let (freed, ready) = (freed.clone(), ready.clone());
        start_on(cpu, move || {
            (0..EACH).for_each(|_| retire(domain, &freed, 0));
            ready.fetch_add(1, Ordering::Release);
        })?;
    }
    let cpus = cpu::count() as u64;
    await_count(&ready, cpus, 60)?;
    domain.barrier(&task::unpinned(), super::rest);
    match freed.load(Ordering::Acquire) {
        all if all == cpus * EACH => Ok(()),
        some => Err(format!("{some} of {} were freed", cpus * EACH)),
    }
}

fn flood_is_held_back() -> Result<(), String> {
    let domain = the_domain()?;
    let realm = realm::get().ok_or("there is no realm")?;
    let (at, freed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    section(domain, &at)?;
    // Three times what may wait, and for as long as the section lasts.
    let (mut most, mut retired) = (0, 0);
    while retired * 4096 < 3 * domain.limit() || at.load(Ordering::Acquire) < 2 {
        (0..16).for_each(|_| retire(domain, &freed, 4096));
        retired += 16;
        if super::is_asked(realm) {
            super::attend(realm);
        }
        most = most.max(domain.held(&task::pinned()).0);
    }
    domain.barrier(&task::unpinned(), super::rest);
    let freed = freed.load(Ordering::Acquire) as usize;
    if most > domain.limit() + SOFT || freed != retired {
        return Err(format!("{most} bytes waited, {freed} of {retired} were freed"));
    }
    Ok(())
}

/// By who waits for it; and by the tick of a CPU that has something to free, if nobody waits.
fn stall_is_told_of() -> Result<(), String> {
    type Way<'w> = &'w dyn Fn(&Arc<AtomicU64>);
    const SOON: u64 = 3 * sched::SLICE;
    let domain = the_domain()?;
    let told = |long, limit, wait: Way<'_>| {
        let at = Arc::new(AtomicU64::new(0));
        section_for(long, domain, &at)?;
        super::TOLD.lock().take();
        // Relaxed, twice: who looks here looks often.
        super::LIMIT.store(limit, Ordering::Relaxed);
        wait(&at);
        super::LIMIT.store(super::STALL, Ordering::Relaxed);
        Ok::<_, String>(super::TOLD.lock().take())
    };
    let waits: Way<'_> = &|_| super::synchronize(domain);
    let freed = Arc::new(AtomicU64::new(0));
    let ticks: Way<'_> = &|at| {
        retire(domain, &freed, 0);
        realm::set_due();
        // Acquire: partner of the section's end. As on the way to user mode, to which this thread never comes.
        while at.load(Ordering::Acquire) < 2 {
            if realm::is_due() {
                realm::work();
            }
            cpu::pause();
        }
    };
    sched::on_cpu(CpuId::default(), || {
        if let Some(stall) = told(LONG, super::STALL, waits)? {
            return Err(format!("told of one that ended: {stall}"));
        }
        if cpu::count() == 1 {
            return Ok(());
        }
        let second = CpuId::new(1).ok_or("no second CPU")?;
        for (who, wait) in [("who waits", waits), ("a tick", ticks)] {
            match told(8 * SOON, SOON, wait)? {
                Some(stall) if stall.cpus.contains(second) && stall.age >= SOON => {}
                Some(stall) => return Err(format!("by {who}: {stall}")),
                None => return Err(format!("not told of by {who}")),
            }
        }
        Ok(())
    })
}
